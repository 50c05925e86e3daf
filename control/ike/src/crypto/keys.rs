//! Key derivation: SKEYSEED and SK_* (RFC 7296 section 2.14), children (2.17), rekeying (2.18), intermediate
//! exchanges (RFC 9370 section 2.2.2), post-quantum preshared keys (RFC 8784).

use super::{CryptoError, EspSuite, IkeSuite, Opener, Prf, Sealer, SharedSecret, split_secret};
use crate::SecretBytes;
use crate::wire::{IkeSpi, Nonce};

/// The keys of one IKE SA.
#[derive(Debug)]
pub struct IkeKeys {
    suite: IkeSuite,
    sk_d: SecretBytes,
    sk_ai: SecretBytes,
    sk_ar: SecretBytes,
    sk_ei: SecretBytes,
    sk_er: SecretBytes,
    sk_pi: SecretBytes,
    sk_pr: SecretBytes,
}

/// The keys of a pair of child SAs: cipher key, salt, integrity key, as [`EspSuite::key_len`] counts them.
#[derive(Debug)]
pub struct ChildKeys {
    /// For traffic from the initiator of the exchange that created the child.
    pub initiator: SecretBytes,
    /// For traffic from its responder.
    pub responder: SecretBytes,
}

/// Nonces and SPIs that enter a derivation, by their role in the exchange that created the IKE SA.
#[derive(Clone, Copy, Debug)]
pub struct Contribution<'a> {
    /// Ni.
    pub initiator_nonce: &'a Nonce,
    /// Nr.
    pub responder_nonce: &'a Nonce,
    /// SPIi of the SA being keyed.
    pub initiator_spi: IkeSpi,
    /// SPIr of the SA being keyed.
    pub responder_spi: IkeSpi,
}

impl IkeKeys {
    /// Keys after IKE_SA_INIT.
    pub fn initial(
        suite: &IkeSuite,
        shared: &SharedSecret,
        with: Contribution<'_>,
    ) -> Result<Self, CryptoError> {
        let (ni, nr) = (with.initiator_nonce.octets(), with.responder_nonce.octets());
        // RFC 7296 section 2.14: SKEYSEED = prf(Ni | Nr, g^ir). HMAC takes a key of any length.
        let seed = suite.prf.compute(&[ni, nr].concat(), &[shared.expose()]);
        Self::derive(suite, &seed, with)
    }

    /// Keys of the IKE SA that replaces this one. `shared` has the key exchange's secret first, then those of
    /// IKE_FOLLOWUP_KE in order; the PRF that makes SKEYSEED is the old SA's.
    pub fn rekeyed(
        &self,
        suite: &IkeSuite,
        shared: &[&SharedSecret],
        with: Contribution<'_>,
    ) -> Result<Self, CryptoError> {
        let (ni, nr) = (with.initiator_nonce.octets(), with.responder_nonce.octets());
        let (first, rest) = shared.split_first().ok_or(CryptoError::BadKeyLength)?;
        let mut parts = vec![first.expose(), ni, nr];
        parts.extend(rest.iter().map(|secret| secret.expose()));
        // RFC 7296 section 2.18, RFC 9370 section 2.2.4.
        let seed = self.suite.prf.compute(self.sk_d.expose(), &parts);
        Self::derive(suite, &seed, with)
    }

    /// Keys after an additional key exchange in IKE_INTERMEDIATE (RFC 9370 section 2.2.2).
    pub fn intermediate(&self, shared: &SharedSecret, with: Contribution<'_>) -> Result<Self, CryptoError> {
        let (ni, nr) = (with.initiator_nonce.octets(), with.responder_nonce.octets());
        let seed = self.suite.prf.compute(self.sk_d.expose(), &[shared.expose(), ni, nr]);
        Self::derive(&self.suite, &seed, with)
    }

    /// These keys with a post-quantum preshared key mixed into SK_d, SK_pi and SK_pr (RFC 8784 section 3).
    pub fn with_ppk(&self, ppk: &SecretBytes) -> Result<Self, CryptoError> {
        let mix = |secret: &SecretBytes| -> Result<SecretBytes, CryptoError> {
            let mixed = self.suite.prf.expand(ppk.expose(), &[secret.expose()], secret.len())?;
            Ok(SecretBytes::from_slice(&mixed))
        };
        let mut keys = self.duplicate();
        keys.sk_d = mix(&self.sk_d)?;
        keys.sk_pi = mix(&self.sk_pi)?;
        keys.sk_pr = mix(&self.sk_pr)?;
        Ok(keys)
    }

    /// Keys of a child. `shared` is empty without PFS; otherwise as for [`IkeKeys::rekeyed`].
    pub fn child(
        &self,
        suite: &EspSuite,
        shared: &[&SharedSecret],
        initiator_nonce: &Nonce,
        responder_nonce: &Nonce,
    ) -> Result<ChildKeys, CryptoError> {
        let mut parts: Vec<&[u8]> = shared.first().map(|first| first.expose()).into_iter().collect();
        parts.extend([initiator_nonce.octets(), responder_nonce.octets()]);
        parts.extend(shared.iter().skip(1).map(|secret| secret.expose()));
        let length = suite.key_len();
        // RFC 7296 section 2.17: all keys of the initiator's direction come first, encryption before
        // integrity.
        let stream = self.suite.prf.expand(self.sk_d.expose(), &parts, 2 * length)?;
        let (initiator, responder) = stream.split_at(length);
        Ok(ChildKeys {
            initiator: SecretBytes::from_slice(initiator),
            responder: SecretBytes::from_slice(responder),
        })
    }

    /// What seals this side's messages; a generation must never be used twice with one set of keys.
    pub fn sealer(&self, we_initiated: bool, generation: u32) -> Result<Sealer, CryptoError> {
        if we_initiated {
            Sealer::new(&self.suite, &self.sk_ei, &self.sk_ai, generation)
        } else {
            Sealer::new(&self.suite, &self.sk_er, &self.sk_ar, generation)
        }
    }

    /// What opens the peer's messages.
    pub fn opener(&self, we_initiated: bool) -> Result<Opener, CryptoError> {
        if we_initiated {
            Opener::new(&self.suite, &self.sk_er, &self.sk_ar)
        } else {
            Opener::new(&self.suite, &self.sk_ei, &self.sk_ai)
        }
    }

    /// Their suite.
    pub fn suite(&self) -> &IkeSuite {
        &self.suite
    }

    /// Their PRF.
    pub fn prf(&self) -> Prf {
        self.suite.prf
    }

    /// SK_pi or SK_pr: the key of the side that AUTH speaks for.
    pub fn auth_key(&self, of_initiator: bool) -> &SecretBytes {
        if of_initiator { &self.sk_pi } else { &self.sk_pr }
    }

    /// SK_ei, SK_er, SK_ai and SK_ar.
    pub(super) fn message_keys(&self) -> [&SecretBytes; 4] {
        [&self.sk_ei, &self.sk_er, &self.sk_ai, &self.sk_ar]
    }

    /// The seven keys in the order SK_d, ai, ar, ei, er, pi, pr, for the stash.
    pub fn export(&self) -> SecretBytes {
        let all = [&self.sk_d, &self.sk_ai, &self.sk_ar, &self.sk_ei, &self.sk_er, &self.sk_pi, &self.sk_pr];
        let mut out = Vec::with_capacity(Self::lengths(&self.suite).iter().sum());
        all.iter().for_each(|secret| out.extend_from_slice(secret.expose()));
        SecretBytes::new(out)
    }

    /// What [`IkeKeys::export`] wrote.
    pub fn import(suite: &IkeSuite, exported: &SecretBytes) -> Result<Self, CryptoError> {
        let lengths = Self::lengths(suite);
        if exported.len() != lengths.iter().sum() {
            return Err(CryptoError::BadKeyLength);
        }
        Self::from_stream(suite, exported.expose())
    }

    fn derive(suite: &IkeSuite, skeyseed: &[u8], with: Contribution<'_>) -> Result<Self, CryptoError> {
        let parts = [
            with.initiator_nonce.octets(),
            with.responder_nonce.octets(),
            &with.initiator_spi.0,
            &with.responder_spi.0,
        ];
        let stream = suite.prf.expand(skeyseed, &parts, Self::lengths(suite).iter().sum())?;
        Self::from_stream(suite, &stream)
    }

    fn from_stream(suite: &IkeSuite, stream: &[u8]) -> Result<Self, CryptoError> {
        let parts = split_secret(stream, &Self::lengths(suite)).ok_or(CryptoError::BadKeyLength)?;
        let [sk_d, sk_ai, sk_ar, sk_ei, sk_er, sk_pi, sk_pr] =
            <[SecretBytes; 7]>::try_from(parts).map_err(|_| CryptoError::BadKeyLength)?;
        Ok(Self { suite: suite.clone(), sk_d, sk_ai, sk_ar, sk_ei, sk_er, sk_pi, sk_pr })
    }

    pub(super) fn lengths(suite: &IkeSuite) -> [usize; 7] {
        let prf = suite.prf.output_len();
        // RFC 5282 section 7.1: with an AEAD, SK_ai and SK_ar have no octets.
        let integrity = suite.integrity.map_or(0, super::Integrity::key_len);
        let cipher = suite.cipher.key_len() + suite.cipher.salt_len();
        [prf, integrity, integrity, cipher, cipher, prf, prf]
    }

    fn duplicate(&self) -> Self {
        Self {
            suite: self.suite.clone(),
            sk_d: self.sk_d.duplicate(),
            sk_ai: self.sk_ai.duplicate(),
            sk_ar: self.sk_ar.duplicate(),
            sk_ei: self.sk_ei.duplicate(),
            sk_er: self.sk_er.duplicate(),
            sk_pi: self.sk_pi.duplicate(),
            sk_pr: self.sk_pr.duplicate(),
        }
    }
}

//! Key exchange methods: MODP and elliptic-curve Diffie-Hellman, X25519, ML-KEM.
//!
//! One interface for all: the initiator makes a private part and sends its public value, the responder
//! answers with one call, the initiator finishes. Private scalars come from the caller's [`Random`], except
//! for ML-KEM, whose key pairs and encapsulations aws-lc-rs draws from the system by itself.

use std::sync::Arc;

use aws_lc_rs::{agreement, kem};
use zeroize::Zeroizing;

use super::CryptoError;
use super::modp::{Exponent, Group};
use crate::{Random, SecretBytes};

/// Key exchange methods (IANA "Transform Type 4").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeMethod {
    /// Group 2, 1024 bits (RFC 7296 appendix B): only when named.
    Modp1024,
    /// Group 5, 1536 bits (RFC 3526): only when named.
    Modp1536,
    /// Group 14.
    Modp2048,
    /// Group 15.
    Modp3072,
    /// Group 16.
    Modp4096,
    /// Group 17.
    Modp6144,
    /// Group 18.
    Modp8192,
    /// Group 19, NIST P-256 (RFC 5903).
    Ecp256,
    /// Group 20, NIST P-384.
    Ecp384,
    /// Group 21, NIST P-521.
    Ecp521,
    /// Group 22, 1024 bits with a 160-bit subgroup (RFC 5114).
    Modp1024s160,
    /// Group 23, 2048 bits with a 224-bit subgroup.
    Modp2048s224,
    /// Group 24, 2048 bits with a 256-bit subgroup.
    Modp2048s256,
    /// Group 31 (RFC 8031).
    Curve25519,
    /// ML-KEM-512.
    MlKem512,
    /// ML-KEM-768.
    MlKem768,
    /// ML-KEM-1024.
    MlKem1024,
}

/// The outcome of a key exchange.
pub type SharedSecret = SecretBytes;

/// The initiator's half of a key exchange.
pub struct KePrivate {
    method: KeMethod,
    public: Vec<u8>,
    secret: Arc<Secret>,
}

impl KeMethod {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Modp1024,
        Self::Modp1536,
        Self::Modp2048,
        Self::Modp3072,
        Self::Modp4096,
        Self::Modp6144,
        Self::Modp8192,
        Self::Ecp256,
        Self::Ecp384,
        Self::Ecp521,
        Self::Modp1024s160,
        Self::Modp2048s224,
        Self::Modp2048s256,
        Self::Curve25519,
        Self::MlKem512,
        Self::MlKem768,
        Self::MlKem1024,
    ];

    /// Its number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::Modp1024 => 2,
            Self::Modp1536 => 5,
            Self::Modp2048 => 14,
            Self::Modp3072 => 15,
            Self::Modp4096 => 16,
            Self::Modp6144 => 17,
            Self::Modp8192 => 18,
            Self::Ecp256 => 19,
            Self::Ecp384 => 20,
            Self::Ecp521 => 21,
            Self::Modp1024s160 => 22,
            Self::Modp2048s224 => 23,
            Self::Modp2048s256 => 24,
            Self::Curve25519 => 31,
            Self::MlKem512 => 35,
            Self::MlKem768 => 36,
            Self::MlKem1024 => 37,
        }
    }

    /// The finite-field groups: an exponentiation takes from half a millisecond to many.
    pub const MODP: [Self; 10] = [
        Self::Modp1024,
        Self::Modp1536,
        Self::Modp2048,
        Self::Modp3072,
        Self::Modp4096,
        Self::Modp6144,
        Self::Modp8192,
        Self::Modp1024s160,
        Self::Modp2048s224,
        Self::Modp2048s256,
    ];

    /// From its number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.number() == number)
    }

    /// strongSwan's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Modp1024 => "modp1024",
            Self::Modp1536 => "modp1536",
            Self::Modp2048 => "modp2048",
            Self::Modp3072 => "modp3072",
            Self::Modp4096 => "modp4096",
            Self::Modp6144 => "modp6144",
            Self::Modp8192 => "modp8192",
            Self::Ecp256 => "ecp256",
            Self::Ecp384 => "ecp384",
            Self::Ecp521 => "ecp521",
            Self::Modp1024s160 => "modp1024s160",
            Self::Modp2048s224 => "modp2048s224",
            Self::Modp2048s256 => "modp2048s256",
            Self::Curve25519 => "curve25519",
            Self::MlKem512 => "mlkem512",
            Self::MlKem768 => "mlkem768",
            Self::MlKem1024 => "mlkem1024",
        }
    }

    /// Whether it is a KEM: then it may only be an additional key exchange, and the responder's value depends
    /// on the initiator's.
    pub fn is_kem(self) -> bool {
        matches!(self, Self::MlKem512 | Self::MlKem768 | Self::MlKem1024)
    }

    /// Begins an exchange as its initiator. ML-KEM draws its key pair from the system's randomness.
    #[expect(clippy::disallowed_methods, reason = "AWS-LC takes no randomness for ML-KEM")]
    pub fn initiate(self, rng: &mut dyn Random) -> Result<KePrivate, CryptoError> {
        let (public, secret) = match self.family() {
            Family::Modp(group) => {
                let exponent = group.exponent(rng);
                (group.public(&exponent), Secret::Modp(group, exponent))
            }
            Family::Curve(curve) => {
                let (private, public) = curve.generate(rng)?;
                (public, Secret::Curve(curve, private))
            }
            Family::Kem(algorithm) => {
                let key = kem::DecapsulationKey::generate(algorithm).map_err(|_| CryptoError::Library)?;
                let public =
                    key.encapsulation_key().and_then(|public| Ok(public.key_bytes()?.as_ref().to_vec()));
                (public.map_err(|_| CryptoError::Library)?, Secret::Kem(Box::new(key)))
            }
        };
        Ok(KePrivate { method: self, public, secret: Arc::new(secret) })
    }

    /// Answers a peer's public value: our public value (or ciphertext) and the shared secret. ML-KEM
    /// encapsulates with the system's randomness.
    #[expect(clippy::disallowed_methods, reason = "AWS-LC takes no randomness for ML-KEM")]
    pub fn respond(
        self,
        rng: &mut dyn Random,
        peer_public: &[u8],
    ) -> Result<(Vec<u8>, SharedSecret), CryptoError> {
        match self.family() {
            Family::Modp(group) => {
                let exponent = group.exponent(rng);
                let shared = group.agree(&exponent, peer_public)?;
                Ok((group.public(&exponent), shared))
            }
            Family::Curve(curve) => {
                let (private, public) = curve.generate(rng)?;
                Ok((public, curve.agree(&private, peer_public)?))
            }
            Family::Kem(algorithm) => {
                // FIPS 203 section 7.2: aws-lc checks the length and that every coefficient is reduced.
                let key = kem::EncapsulationKey::new(algorithm, peer_public)
                    .map_err(|_| CryptoError::InvalidPublicValue)?;
                let (ciphertext, shared) = key.encapsulate().map_err(|_| CryptoError::InvalidPublicValue)?;
                Ok((ciphertext.as_ref().to_vec(), SecretBytes::from_slice(shared.as_ref())))
            }
        }
    }

    /// Random octets that [`KeMethod::initiate`] and [`KeMethod::respond`] need, with some to spare where a
    /// draw may have to be repeated.
    pub(crate) fn octets_to_draw(self) -> usize {
        match self.family() {
            Family::Modp(group) => group.exponent_len(),
            Family::Curve(curve) => SPARE_DRAWS * curve.scalar_len(),
            Family::Kem(_) => 0,
        }
    }

    fn family(self) -> Family {
        match self {
            Self::Modp1024 => Family::Modp(Group::Modp1024),
            Self::Modp1536 => Family::Modp(Group::Modp1536),
            Self::Modp2048 => Family::Modp(Group::Modp2048),
            Self::Modp3072 => Family::Modp(Group::Modp3072),
            Self::Modp4096 => Family::Modp(Group::Modp4096),
            Self::Modp6144 => Family::Modp(Group::Modp6144),
            Self::Modp8192 => Family::Modp(Group::Modp8192),
            Self::Modp1024s160 => Family::Modp(Group::Modp1024s160),
            Self::Modp2048s224 => Family::Modp(Group::Modp2048s224),
            Self::Modp2048s256 => Family::Modp(Group::Modp2048s256),
            Self::Ecp256 => Family::Curve(Curve::P256),
            Self::Ecp384 => Family::Curve(Curve::P384),
            Self::Ecp521 => Family::Curve(Curve::P521),
            Self::Curve25519 => Family::Curve(Curve::X25519),
            Self::MlKem512 => Family::Kem(&kem::ML_KEM_512),
            Self::MlKem768 => Family::Kem(&kem::ML_KEM_768),
            Self::MlKem1024 => Family::Kem(&kem::ML_KEM_1024),
        }
    }
}

impl KePrivate {
    /// Its method.
    pub fn method(&self) -> KeMethod {
        self.method
    }

    /// What goes into the KE payload.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The same, for a computation beside; the secret is wiped with the last of them.
    pub(crate) fn share(&self) -> Self {
        Self { method: self.method, public: self.public.clone(), secret: self.secret.clone() }
    }

    /// Combines with the responder's value, which is checked first (RFC 6989).
    pub fn finish(&self, peer_public: &[u8]) -> Result<SharedSecret, CryptoError> {
        match &*self.secret {
            Secret::Modp(group, exponent) => group.agree(exponent, peer_public),
            Secret::Curve(curve, private) => curve.agree(private, peer_public),
            Secret::Kem(key) => {
                let shared = key
                    .decapsulate(kem::Ciphertext::from(peer_public))
                    .map_err(|_| CryptoError::InvalidPublicValue)?;
                Ok(SecretBytes::from_slice(shared.as_ref()))
            }
        }
    }
}

enum Family {
    Modp(Group),
    Curve(Curve),
    Kem(&'static kem::Algorithm<kem::AlgorithmId>),
}

enum Secret {
    Modp(Group, Exponent),
    Curve(Curve, agreement::PrivateKey),
    Kem(Box<kem::DecapsulationKey<kem::AlgorithmId>>),
}

#[derive(Clone, Copy)]
enum Curve {
    P256,
    P384,
    P521,
    X25519,
}

impl Curve {
    fn algorithm(self) -> &'static agreement::Algorithm {
        match self {
            Self::P256 => &agreement::ECDH_P256,
            Self::P384 => &agreement::ECDH_P384,
            Self::P521 => &agreement::ECDH_P521,
            Self::X25519 => &agreement::X25519,
        }
    }

    fn scalar_len(self) -> usize {
        match self {
            Self::P256 | Self::X25519 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    fn generate(self, rng: &mut dyn Random) -> Result<(agreement::PrivateKey, Vec<u8>), CryptoError> {
        let mut scalar = Zeroizing::new(vec![0; self.scalar_len()]);
        // A scalar outside [1, n) is drawn again: for P-521 after the mask below every second one at most.
        for _ in 0..DRAWS {
            rng.fill(&mut scalar);
            if let (Self::P521, Some(top)) = (self, scalar.first_mut()) {
                *top &= 1;
            }
            if let Ok(pair) = self.key_pair(&scalar) {
                return Ok(pair);
            }
        }
        Err(CryptoError::Library)
    }

    fn key_pair(self, scalar: &[u8]) -> Result<(agreement::PrivateKey, Vec<u8>), CryptoError> {
        let private = agreement::PrivateKey::from_private_key(self.algorithm(), scalar)
            .map_err(|_| CryptoError::Library)?;
        let public = private.compute_public_key().map_err(|_| CryptoError::Library)?;
        let public = match (self, public.as_ref()) {
            (Self::X25519, value) => value.to_vec(),
            // RFC 5903 section 7: x and y alone, without SEC 1's leading octet.
            (Self::P256 | Self::P384 | Self::P521, [_, point @ ..]) => point.to_vec(),
            (Self::P256 | Self::P384 | Self::P521, []) => return Err(CryptoError::Library),
        };
        Ok((private, public))
    }

    /// RFC 6989 section 2.3: aws-lc refuses points off the curve; RFC 8031 section 3.2 and RFC 7748
    /// section 6.1: it refuses an all-zero X25519 result.
    fn agree(self, private: &agreement::PrivateKey, peer: &[u8]) -> Result<SharedSecret, CryptoError> {
        let mut encoded = Vec::with_capacity(peer.len() + 1);
        let expected = match self {
            Self::X25519 => self.scalar_len(),
            Self::P256 | Self::P384 | Self::P521 => {
                encoded.push(UNCOMPRESSED);
                2 * self.scalar_len()
            }
        };
        if peer.len() != expected {
            return Err(CryptoError::InvalidPublicValue);
        }
        encoded.extend_from_slice(peer);
        let peer = agreement::UnparsedPublicKey::new(self.algorithm(), &encoded);
        // RFC 5903 section 7: the secret is the x coordinate.
        agreement::agree(private, peer, CryptoError::InvalidPublicValue, |secret| {
            Ok(SecretBytes::from_slice(secret))
        })
    }
}

impl std::fmt::Debug for KePrivate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KePrivate").field("method", &self.method).finish_non_exhaustive()
    }
}

const UNCOMPRESSED: u8 = 4;
const DRAWS: usize = 128;
/// That all of them lie outside [1, n) has a chance below 2^-120 for any curve.
const SPARE_DRAWS: usize = 4;

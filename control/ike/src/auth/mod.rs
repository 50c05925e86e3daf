//! Authentication (RFC 7296 section 2.15): pre-shared keys, signatures, certificates, identities.

pub mod certificate;
mod der;
pub mod dn;
mod int_auth;
mod octets;
mod signature;

use std::time::Duration;

pub use certificate::{CertificateCredential, CredentialError, TrustStore};
pub use int_auth::IntAuth;
pub use octets::{SignedOctets, SignedOctetsInput};

use zeroize::Zeroizing;

use crate::SecretBytes;
use crate::crypto::{CryptoError, Prf, constant_time_eq};
use crate::wire::{AuthMethod, AuthPayload, CertPayload, CertRequest, Identity};

/// How this side proves who it is.
#[derive(Debug)]
pub enum Credential {
    /// A pre-shared key.
    Psk(SecretBytes),
    /// A certificate with its private key.
    Certificate(Box<CertificateCredential>),
}

/// How the peer must prove who it is.
#[derive(Debug)]
pub enum Verifier {
    /// With this pre-shared key.
    Psk(SecretBytes),
    /// With a certificate of one of these CAs.
    Certificate(Box<TrustStore>),
}

/// Why a peer was not authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// The MAC does not verify: the pre-shared keys differ (or the identities that enter it).
    WrongPsk,
    /// The signature does not verify with the certificate's key.
    WrongSignature,
    /// The peer used another kind of authentication than configured.
    MethodMismatch {
        /// The method it used.
        received: u8,
    },
    /// A signature algorithm this crate does not accept.
    UnsupportedAlgorithm,
    /// The peer sent no certificate.
    NoCertificate,
    /// A certificate that cannot be parsed.
    MalformedCertificate,
    /// A certificate has expired.
    CertificateExpired {
        /// Seconds since 1970.
        not_after: i64,
    },
    /// A certificate is not valid yet: more often a wrong clock.
    CertificateNotYetValid {
        /// Seconds since 1970.
        not_before: i64,
    },
    /// No configured CA issued the chain.
    UntrustedCa {
        /// Issuer named in the peer's certificate.
        issuer: String,
    },
    /// The chain is rejected for another reason.
    InvalidChain(ChainFault),
    /// The certificate does not bear the identity that the peer claims.
    IdentityNotInCertificate {
        /// The identity claimed.
        claimed: Identity,
        /// The identities that the certificate bears.
        borne: Vec<Identity>,
    },
}

/// Other reasons to reject a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainFault {
    /// An intermediate is not a CA, or the end entity is one.
    NotACa,
    /// A path length, name or key-usage constraint.
    ConstraintViolation,
    /// Extended key usage excludes IKE.
    ExtendedKeyUsage,
    /// A signature inside the chain does not verify, or uses an algorithm not accepted.
    Signature,
    /// Anything else.
    Other,
}

/// What a peer announced about signatures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSignatureSupport {
    /// The hash numbers of SIGNATURE_HASH_ALGORITHMS; `None` if it sent none, and then the methods of
    /// RFC 7296 and RFC 4754 are used.
    pub hashes: Option<Vec<u16>>,
}

impl Credential {
    /// The AUTH payload of this side. ECDSA and RSA-PSS draw on the system's randomness inside aws-lc-rs.
    pub fn authenticate(
        &self,
        prf: Prf,
        octets: &SignedOctets,
        peer: &PeerSignatureSupport,
    ) -> Result<AuthPayload, CryptoError> {
        match self {
            Self::Psk(psk) => {
                let data = psk_mac(prf, psk, octets).to_vec();
                Ok(AuthPayload { method: AuthMethod::PSK, data })
            }
            Self::Certificate(certificate) => certificate.sign(octets, peer),
        }
    }

    /// The CERT payloads of this side, end entity first; empty with a pre-shared key.
    pub fn certificates(&self) -> Vec<CertPayload> {
        match self {
            Self::Psk(_) => Vec::new(),
            Self::Certificate(certificate) => certificate.certificates(),
        }
    }
}

impl Verifier {
    /// Checks the peer's AUTH payload, and with certificates the chain and that the end entity bears
    /// `claimed`. `unix_time` is the wall clock, since 1970. `certificates` are the peer's CERT payloads in
    /// order.
    pub fn verify(
        &self,
        prf: Prf,
        octets: &SignedOctets,
        auth: &AuthPayload,
        claimed: &Identity,
        certificates: &[CertPayload],
        unix_time: Duration,
    ) -> Result<(), AuthError> {
        match (self, auth.method) {
            (Self::Psk(psk), AuthMethod::PSK) => {
                let expected = psk_mac(prf, psk, octets);
                if constant_time_eq(&expected, &auth.data) { Ok(()) } else { Err(AuthError::WrongPsk) }
            }
            (Self::Certificate(trust), AuthMethod::RSA | AuthMethod::SIGNATURE)
            | (
                Self::Certificate(trust),
                AuthMethod::ECDSA_256 | AuthMethod::ECDSA_384 | AuthMethod::ECDSA_521,
            ) => trust.verify(octets, auth, claimed, certificates, unix_time),
            _ => Err(AuthError::MethodMismatch { received: auth.method.0 }),
        }
    }

    /// The CERTREQ payload of this side; `None` with a pre-shared key.
    pub fn certificate_request(&self) -> Option<CertRequest> {
        match self {
            Self::Psk(_) => None,
            Self::Certificate(trust) => Some(trust.certificate_request()),
        }
    }
}

/// prf(prf(secret, "Key Pad for IKEv2"), octets) (RFC 7296 section 2.15).
fn psk_mac(prf: Prf, psk: &SecretBytes, octets: &SignedOctets) -> Zeroizing<Vec<u8>> {
    let key = prf.compute(psk.expose(), &[b"Key Pad for IKEv2"]);
    prf.compute(&key, &[&octets.0])
}

/// The hashes this side announces in SIGNATURE_HASH_ALGORITHMS: SHA2-256, 384, 512, Identity (Ed25519).
pub const SIGNATURE_HASHES: [u16; 4] = [2, 3, 4, 5];

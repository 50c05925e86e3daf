//! Authentication (RFC 7296 section 2.15): pre-shared keys, signatures, certificates, identities.

pub mod certificate;
pub mod dn;
mod int_auth;
mod octets;

use std::time::Duration;

pub use certificate::{CertificateCredential, CredentialError, TrustStore};
pub use int_auth::IntAuth;
pub use octets::{SignedOctets, SignedOctetsInput};

use crate::SecretBytes;
use crate::crypto::{CryptoError, Prf};
use crate::wire::{AuthPayload, CertPayload, CertRequest, Identity};

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
        let _ = (prf, octets, peer);
        todo!()
    }

    /// The CERT payloads of this side, end entity first; empty with a pre-shared key.
    pub fn certificates(&self) -> Vec<CertPayload> {
        todo!()
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
        let _ = (prf, octets, auth, claimed, certificates, unix_time);
        todo!()
    }

    /// The CERTREQ payload of this side; `None` with a pre-shared key.
    pub fn certificate_request(&self) -> Option<CertRequest> {
        todo!()
    }
}

/// The hashes this side announces in SIGNATURE_HASH_ALGORITHMS: SHA2-256, 384, 512, Identity (Ed25519).
pub const SIGNATURE_HASHES: [u16; 4] = [2, 3, 4, 5];

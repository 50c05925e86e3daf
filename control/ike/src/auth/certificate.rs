//! Certificates (to be filled).

use crate::wire::{CertPayload, Identity};

/// A certificate chain with its private key.
pub struct CertificateCredential {
    chain: Vec<Vec<u8>>,
}

/// The CAs that peers' certificates must come from.
pub struct TrustStore {}

/// What is wrong with configured certificates or keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialError {
    /// Not PEM, or not of the expected kind.
    NotPem,
    /// No certificate in it.
    NoCertificate,
    /// A certificate that cannot be parsed.
    MalformedCertificate,
    /// No private key in it.
    NoKey,
    /// A key that cannot be parsed, or of a kind not supported.
    UnsupportedKey,
    /// The key is not the certificate's.
    KeyMismatch,
}

impl CertificateCredential {
    /// From PEM text: the certificate, then its intermediates; the key as PKCS #8, SEC1 or PKCS #1.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, CredentialError> {
        let _ = (certificates, key);
        todo!()
    }

    /// The chain as CERT payloads.
    pub fn certificates(&self) -> Vec<CertPayload> {
        todo!()
    }

    /// The identities that the certificate bears: what `local-id` may be.
    pub fn identities(&self) -> Vec<Identity> {
        let _ = &self.chain;
        todo!()
    }
}

impl CertificateCredential {
    pub(super) fn sign(
        &self,
        octets: &super::SignedOctets,
        peer: &super::PeerSignatureSupport,
    ) -> Result<crate::wire::AuthPayload, crate::crypto::CryptoError> {
        let _ = (octets, peer);
        todo!()
    }
}

impl TrustStore {
    pub(super) fn certificate_request(&self) -> crate::wire::CertRequest {
        todo!()
    }

    pub(super) fn verify(
        &self,
        octets: &super::SignedOctets,
        auth: &crate::wire::AuthPayload,
        claimed: &Identity,
        certificates: &[CertPayload],
        unix_time: std::time::Duration,
    ) -> Result<(), super::AuthError> {
        let _ = (octets, auth, claimed, certificates, unix_time);
        todo!()
    }

    /// From PEM text of one or more CA certificates.
    pub fn from_pem(certificates: &[u8]) -> Result<Self, CredentialError> {
        let _ = certificates;
        todo!()
    }
}

impl std::fmt::Debug for CertificateCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateCredential").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TrustStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustStore").finish_non_exhaustive()
    }
}

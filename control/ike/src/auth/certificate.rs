//! Certificates: our own chain and key, and the CAs that peers' chains must lead to (RFC 7296 section 3.6,
//! RFC 4945 section 5).
//!
//! rustls-webpki builds and checks the path with the caller's time. A peer's identity must stand in its
//! certificate: addresses, names and e-mail addresses in the subject alternative name, a DN as the subject.
//! The common name stands for nothing. Not done: revocation lists, OCSP, hash-and-URL, pinned self-signed
//! end-entity certificates.

use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime,
};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, RequiredEkuNotFoundContext,
    aws_lc_rs as algorithms,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::signature::{self, SigningKey};
use super::{AuthError, ChainFault, PeerSignatureSupport, SignedOctets, dn};
use crate::crypto::{CryptoError, sha1};
use crate::wire::{AuthPayload, CertEncoding, CertPayload, CertRequest, Identity};

/// A certificate chain with its private key.
pub struct CertificateCredential {
    chain: Vec<CertificateDer<'static>>,
    key: SigningKey,
}

/// The CAs that peers' certificates must come from.
pub struct TrustStore {
    anchors: Vec<TrustAnchor<'static>>,
    /// SHA-1 of each CA's SubjectPublicKeyInfo.
    key_hashes: Vec<[u8; 20]>,
}

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
        let chain = certificates_from_pem(certificates)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CredentialError::NoKey)?;
        let key = SigningKey::from_der(&key)?;
        let end_entity = chain.first().ok_or(CredentialError::NoCertificate)?;
        let (_, parsed) =
            X509Certificate::from_der(end_entity).map_err(|_| CredentialError::MalformedCertificate)?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public() {
            return Err(CredentialError::KeyMismatch);
        }
        Ok(Self { chain, key })
    }

    /// The chain as CERT payloads, end entity first (RFC 7296 section 3.6).
    pub fn certificates(&self) -> Vec<CertPayload> {
        let payload =
            |der: &CertificateDer<'_>| CertPayload { encoding: CertEncoding::X509, data: der.to_vec() };
        self.chain.iter().map(payload).collect()
    }

    /// The identities that the certificate bears: what `local-id` may be.
    pub fn identities(&self) -> Vec<Identity> {
        self.chain.first().and_then(|der| identities(der)).unwrap_or_default()
    }

    pub(super) fn sign(
        &self,
        octets: &SignedOctets,
        peer: &PeerSignatureSupport,
    ) -> Result<AuthPayload, CryptoError> {
        self.key.sign(&octets.0, peer)
    }
}

impl TrustStore {
    /// From PEM text of one or more CA certificates.
    pub fn from_pem(certificates: &[u8]) -> Result<Self, CredentialError> {
        let mut anchors = Vec::new();
        let mut key_hashes = Vec::new();
        for der in certificates_from_pem(certificates)? {
            let anchor =
                webpki::anchor_from_trusted_cert(&der).map_err(|_| CredentialError::MalformedCertificate)?;
            anchors.push(anchor.to_owned());
            let (_, parsed) =
                X509Certificate::from_der(&der).map_err(|_| CredentialError::MalformedCertificate)?;
            key_hashes.push(sha1(parsed.public_key().raw));
        }
        Ok(Self { anchors, key_hashes })
    }

    pub(super) fn certificate_request(&self) -> CertRequest {
        CertRequest { encoding: CertEncoding::X509, authorities: self.key_hashes.concat() }
    }

    pub(super) fn verify(
        &self,
        octets: &SignedOctets,
        auth: &AuthPayload,
        claimed: &Identity,
        certificates: &[CertPayload],
        unix_time: Duration,
    ) -> Result<(), AuthError> {
        // RFC 7296 section 3.6: the first certificate is the one whose key signs AUTH.
        let mut chain = certificates
            .iter()
            .filter(|payload| payload.encoding == CertEncoding::X509)
            .map(|payload| CertificateDer::from(payload.data.as_slice()));
        let der = chain.next().ok_or(AuthError::NoCertificate)?;
        let intermediates: Vec<CertificateDer<'_>> = chain.collect();
        let end_entity = EndEntityCert::try_from(&der).map_err(|_| AuthError::MalformedCertificate)?;
        end_entity
            .verify_for_usage(
                CHAIN_ALGORITHMS,
                &self.anchors,
                &intermediates,
                UnixTime::since_unix_epoch(unix_time),
                IkeUsage,
                None,
                None,
            )
            .map_err(|error| chain_error(&error, &der))?;
        signature::verify(&end_entity, &octets.0, auth)?;
        let borne = identities(&der).ok_or(AuthError::MalformedCertificate)?;
        if borne.iter().any(|identity| identity.matches(claimed)) {
            Ok(())
        } else {
            Err(AuthError::IdentityNotInCertificate { claimed: claimed.clone(), borne })
        }
    }
}

/// RFC 4945 section 5.1.3.12: without the extension anything goes; with it, IKE, or what CAs give to VPN
/// gateways in its stead.
struct IkeUsage;

impl ExtendedKeyUsageValidator for IkeUsage {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let mut present = Vec::new();
        for purpose in purposes {
            let purpose: Vec<usize> = purpose?.to_decoded_oid();
            if purpose == ANY_USAGE
                || matches!(purpose.as_slice(), [1, 3, 6, 1, 5, 5, 7, 3, 1 | 2 | 5 | 6 | 7 | 17])
            {
                return Ok(());
            }
            present.push(purpose);
        }
        if present.is_empty() {
            return Ok(());
        }
        let required = KeyUsage::required(&ID_KP_IPSEC_IKE);
        Err(webpki::Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext { required, present }))
    }
}

/// 1.3.6.1.5.5.7.3.17.
const ID_KP_IPSEC_IKE: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 17];
const ANY_USAGE: [usize; 5] = [2, 5, 29, 37, 0];

static CHAIN_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P256_SHA512,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ECDSA_P384_SHA512,
    algorithms::ECDSA_P521_SHA256,
    algorithms::ECDSA_P521_SHA384,
    algorithms::ECDSA_P521_SHA512,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

fn chain_error(error: &webpki::Error, end_entity: &[u8]) -> AuthError {
    use webpki::Error;
    let seconds = |time: &UnixTime| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let fault = match error {
        Error::CertExpired { not_after, .. } => {
            return AuthError::CertificateExpired { not_after: seconds(not_after) };
        }
        Error::CertNotValidYet { not_before, .. } => {
            return AuthError::CertificateNotYetValid { not_before: seconds(not_before) };
        }
        Error::UnknownIssuer => {
            let issuer = X509Certificate::from_der(end_entity)
                .map(|(_, parsed)| dn::to_text(parsed.issuer().as_raw()))
                .unwrap_or_default();
            return AuthError::UntrustedCa { issuer };
        }
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) | Error::UnsupportedCertVersion => {
            return AuthError::MalformedCertificate;
        }
        Error::CaUsedAsEndEntity | Error::EndEntityUsedAsCa => ChainFault::NotACa,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => ChainFault::ExtendedKeyUsage,
        Error::NameConstraintViolation
        | Error::PathLenConstraintViolated
        | Error::MaximumPathDepthExceeded => ChainFault::ConstraintViolation,
        Error::InvalidSignatureForPublicKey | Error::SignatureAlgorithmMismatch => ChainFault::Signature,
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => ChainFault::Signature,
        _ => ChainFault::Other,
    };
    AuthError::InvalidChain(fault)
}

/// The identities that a certificate bears.
fn identities(der: &[u8]) -> Option<Vec<Identity>> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let mut borne = Vec::new();
    if let Ok(Some(names)) = parsed.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => borne.push(Identity::Fqdn((*name).to_owned())),
                GeneralName::RFC822Name(name) => borne.push(Identity::Email((*name).to_owned())),
                GeneralName::IPAddress(octets) => {
                    let v4 = <[u8; 4]>::try_from(*octets).map(|octets| Identity::Ipv4(octets.into()));
                    let v6 = <[u8; 16]>::try_from(*octets).map(|octets| Identity::Ipv6(octets.into()));
                    borne.extend(v4.or(v6));
                }
                _ => {}
            }
        }
    }
    let subject = parsed.subject().as_raw();
    // An empty subject is an empty sequence.
    if subject.len() > 2 {
        borne.push(Identity::Dn(subject.to_vec()));
    }
    Some(borne)
}

fn certificates_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| CredentialError::NotPem)?;
    if certificates.is_empty() { Err(CredentialError::NoCertificate) } else { Ok(certificates) }
}

impl std::fmt::Display for CredentialError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotPem => "not a PEM file",
            Self::NoCertificate => "no certificate in the file",
            Self::MalformedCertificate => "a certificate cannot be parsed",
            Self::NoKey => "no private key in the file",
            Self::UnsupportedKey => {
                "the private key is not RSA (2048 bits up), ECDSA (P-256, P-384, P-521) or Ed25519"
            }
            Self::KeyMismatch => "the private key is not the certificate's",
        })
    }
}

impl std::error::Error for CredentialError {}

impl std::fmt::Debug for CertificateCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateCredential")
            .field("identities", &self.identities())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TrustStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustStore").field("authorities", &self.anchors.len()).finish_non_exhaustive()
    }
}

//! Signatures of the AUTH payload: RFC 7427 Digital Signature, RFC 4754 ECDSA, RFC 8420 Ed25519.
//!
//! SHA-1 is neither made nor accepted, and with it the RSA method of RFC 7296 in its usual form; a peer that
//! authenticates with RSA must know RFC 7427.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING,
    ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, EcdsaVerificationAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding,
    RsaKeyPair, UnparsedPublicKey,
};
use rustls_pki_types::{AlgorithmIdentifier, PrivateKeyDer, SignatureVerificationAlgorithm, alg_id};
use webpki::{EndEntityCert, aws_lc_rs as algorithms};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificate::CredentialError;
use super::der::{SEQUENCE, element};
use super::{AuthError, PeerSignatureSupport};
use crate::crypto::CryptoError;
use crate::wire::{AuthMethod, AuthPayload};

/// A private key.
pub(super) enum SigningKey {
    Rsa(Box<RsaKeyPair>),
    /// One key twice: for ASN.1 signatures (RFC 7427) and for fixed-length ones (RFC 4754).
    Ecdsa {
        curve: Curve,
        asn1: Box<EcdsaKeyPair>,
        fixed: Box<EcdsaKeyPair>,
    },
    Ed25519(Box<Ed25519KeyPair>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
}

/// Hash numbers of SIGNATURE_HASH_ALGORITHMS (IANA "IKEv2 Hash Algorithms").
const SHA2_256: u16 = 2;
const SHA2_384: u16 = 3;
const SHA2_512: u16 = 4;
const IDENTITY: u16 = 5;

impl Curve {
    fn signing(self) -> (&'static EcdsaSigningAlgorithm, &'static EcdsaSigningAlgorithm) {
        match self {
            Self::P256 => (&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P256_SHA256_FIXED_SIGNING),
            Self::P384 => (&ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P384_SHA384_FIXED_SIGNING),
            Self::P521 => (&ECDSA_P521_SHA512_ASN1_SIGNING, &ECDSA_P521_SHA512_FIXED_SIGNING),
        }
    }

    /// RFC 4754's method for the curve, and RFC 7427's identifier and hash for the curve's usual hash.
    fn methods(self) -> (AuthMethod, AlgorithmIdentifier, u16) {
        match self {
            Self::P256 => (AuthMethod::ECDSA_256, alg_id::ECDSA_SHA256, SHA2_256),
            Self::P384 => (AuthMethod::ECDSA_384, alg_id::ECDSA_SHA384, SHA2_384),
            Self::P521 => (AuthMethod::ECDSA_521, alg_id::ECDSA_SHA512, SHA2_512),
        }
    }
}

impl SigningKey {
    /// From PKCS #8, SEC1 or PKCS #1.
    pub(super) fn from_der(key: &PrivateKeyDer<'_>) -> Result<Self, CredentialError> {
        match key {
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der())
                .map(|pair| Self::Rsa(Box::new(pair)))
                .map_err(|_| CredentialError::UnsupportedKey),
            PrivateKeyDer::Sec1(der) => Self::ecdsa(|algorithm| {
                EcdsaKeyPair::from_private_key_der(algorithm, der.secret_sec1_der()).ok()
            })
            .ok_or(CredentialError::UnsupportedKey),
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                if let Ok(pair) = RsaKeyPair::from_pkcs8(der) {
                    return Ok(Self::Rsa(Box::new(pair)));
                }
                if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
                    return Ok(Self::Ed25519(Box::new(pair)));
                }
                Self::ecdsa(|algorithm| EcdsaKeyPair::from_pkcs8(algorithm, der).ok())
                    .ok_or(CredentialError::UnsupportedKey)
            }
            _ => Err(CredentialError::UnsupportedKey),
        }
    }

    fn ecdsa(load: impl Fn(&'static EcdsaSigningAlgorithm) -> Option<EcdsaKeyPair>) -> Option<Self> {
        [Curve::P256, Curve::P384, Curve::P521].into_iter().find_map(|curve| {
            let (asn1, fixed) = curve.signing();
            Some(Self::Ecdsa { curve, asn1: Box::new(load(asn1)?), fixed: Box::new(load(fixed)?) })
        })
    }

    /// The public key as a SubjectPublicKeyInfo holds it.
    pub(super) fn public(&self) -> &[u8] {
        match self {
            Self::Rsa(pair) => pair.public_key().as_ref(),
            Self::Ecdsa { asn1, .. } => asn1.public_key().as_ref(),
            Self::Ed25519(pair) => pair.public_key().as_ref(),
        }
    }

    /// Signs by the best method that both sides know.
    #[expect(
        clippy::disallowed_methods,
        reason = "AWS-LC draws for a signature itself, whatever it is given"
    )]
    pub(super) fn sign(
        &self,
        octets: &[u8],
        peer: &PeerSignatureSupport,
    ) -> Result<AuthPayload, CryptoError> {
        let knows = |hash| peer.hashes.as_ref().is_some_and(|hashes| hashes.contains(&hash));
        match self {
            Self::Rsa(pair) => {
                let choices: [(u16, &'static dyn RsaEncoding, AlgorithmIdentifier); 3] = [
                    (SHA2_256, &signature::RSA_PSS_SHA256, alg_id::RSA_PSS_SHA256),
                    (SHA2_384, &signature::RSA_PSS_SHA384, alg_id::RSA_PSS_SHA384),
                    (SHA2_512, &signature::RSA_PSS_SHA512, alg_id::RSA_PSS_SHA512),
                ];
                // RFC 7427 section 4: the hash is one that the peer announced. RFC 8247 section 3.2: PSS.
                let (_, encoding, identifier) = choices
                    .into_iter()
                    .find(|(hash, ..)| knows(*hash))
                    .ok_or(CryptoError::NoCommonSignature)?;
                let mut signed = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &SystemRandom::new(), octets, &mut signed)
                    .map_err(|_| CryptoError::Library)?;
                Ok(digital_signature(identifier, &signed))
            }
            Self::Ecdsa { curve, asn1, fixed } => {
                let (method, identifier, hash) = curve.methods();
                let rng = SystemRandom::new();
                if knows(hash) {
                    let signed = asn1.sign(&rng, octets).map_err(|_| CryptoError::Library)?;
                    return Ok(digital_signature(identifier, signed.as_ref()));
                }
                let signed = fixed.sign(&rng, octets).map_err(|_| CryptoError::Library)?;
                Ok(AuthPayload { method, data: signed.as_ref().to_vec() })
            }
            Self::Ed25519(pair) => {
                // RFC 8420 section 2: announced as the "Identity" hash.
                if !knows(IDENTITY) {
                    return Err(CryptoError::NoCommonSignature);
                }
                Ok(digital_signature(alg_id::ED25519, pair.sign(octets).as_ref()))
            }
        }
    }
}

/// RFC 7427 section 3: length and AlgorithmIdentifier, then the signature.
fn digital_signature(identifier: AlgorithmIdentifier, signature: &[u8]) -> AuthPayload {
    let identifier = element(SEQUENCE, identifier.as_ref());
    let mut data = vec![identifier.len() as u8];
    data.extend_from_slice(&identifier);
    data.extend_from_slice(signature);
    AuthPayload { method: AuthMethod::SIGNATURE, data }
}

/// Checks the signature in an AUTH payload with a certificate's key.
pub(super) fn verify(
    certificate: &EndEntityCert<'_>,
    octets: &[u8],
    auth: &AuthPayload,
) -> Result<(), AuthError> {
    match auth.method {
        AuthMethod::SIGNATURE => {
            let (&length, rest) = auth.data.split_first().ok_or(AuthError::UnsupportedAlgorithm)?;
            let (identifier, signed) =
                rest.split_at_checked(length.into()).ok_or(AuthError::UnsupportedAlgorithm)?;
            let candidates = candidates(identifier).ok_or(AuthError::UnsupportedAlgorithm)?;
            let verified =
                candidates.iter().any(|it| certificate.verify_signature(*it, octets, signed).is_ok());
            if verified { Ok(()) } else { Err(AuthError::WrongSignature) }
        }
        AuthMethod::ECDSA_256 => fixed(certificate, octets, auth, &signature::ECDSA_P256_SHA256_FIXED),
        AuthMethod::ECDSA_384 => fixed(certificate, octets, auth, &signature::ECDSA_P384_SHA384_FIXED),
        AuthMethod::ECDSA_521 => fixed(certificate, octets, auth, &signature::ECDSA_P521_SHA512_FIXED),
        _ => Err(AuthError::UnsupportedAlgorithm),
    }
}

/// RFC 4754 section 3: r and s concatenated, each as long as the order.
fn fixed(
    certificate: &EndEntityCert<'_>,
    octets: &[u8],
    auth: &AuthPayload,
    algorithm: &'static EcdsaVerificationAlgorithm,
) -> Result<(), AuthError> {
    let der = certificate.der();
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| AuthError::MalformedCertificate)?;
    let public = parsed.public_key().subject_public_key.data.as_ref();
    UnparsedPublicKey::new(algorithm, public)
        .verify(octets, &auth.data)
        .map_err(|_| AuthError::WrongSignature)
}

/// The algorithms that an AlgorithmIdentifier may mean: for ECDSA it names the hash but not the curve.
fn candidates(identifier: &[u8]) -> Option<&'static [&'static dyn SignatureVerificationAlgorithm]> {
    let (SEQUENCE, content, []) = super::der::read(identifier)? else { return None };
    TABLE.iter().find(|(known, _)| known.as_ref() == content).map(|(_, candidates)| *candidates)
}

type Candidates = &'static [&'static dyn SignatureVerificationAlgorithm];

static TABLE: [(AlgorithmIdentifier, Candidates); 10] = [
    (
        alg_id::ECDSA_SHA256,
        &[algorithms::ECDSA_P256_SHA256, algorithms::ECDSA_P384_SHA256, algorithms::ECDSA_P521_SHA256],
    ),
    (
        alg_id::ECDSA_SHA384,
        &[algorithms::ECDSA_P256_SHA384, algorithms::ECDSA_P384_SHA384, algorithms::ECDSA_P521_SHA384],
    ),
    (
        alg_id::ECDSA_SHA512,
        &[algorithms::ECDSA_P256_SHA512, algorithms::ECDSA_P384_SHA512, algorithms::ECDSA_P521_SHA512],
    ),
    (alg_id::ED25519, &[algorithms::ED25519]),
    (alg_id::RSA_PSS_SHA256, &[algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
    (alg_id::RSA_PSS_SHA384, &[algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
    (alg_id::RSA_PSS_SHA512, &[algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
    (alg_id::RSA_PKCS1_SHA256, &[algorithms::RSA_PKCS1_2048_8192_SHA256]),
    (alg_id::RSA_PKCS1_SHA384, &[algorithms::RSA_PKCS1_2048_8192_SHA384]),
    (alg_id::RSA_PKCS1_SHA512, &[algorithms::RSA_PKCS1_2048_8192_SHA512]),
];

//! Cryptography of IKEv2: suites, PRFs, the SK payload's protection, key exchanges, key derivation.
//!
//! Secrets live in [`SecretBytes`]; comparisons of secrets take constant time. Not done: AES-192, AES-CCM,
//! XCBC and CMAC, brainpool groups, Curve448.

pub(crate) mod beside;
pub mod ke;
mod key_log;
mod keys;
mod modp;
mod modp_primes;
mod prf;
mod sk;
mod suite;

use std::net::SocketAddr;

pub use beside::{Computation, ComputationId, Computed};
pub use ke::{KeMethod, KePrivate, SharedSecret};
pub use keys::{ChildKeys, Contribution, IkeKeys};
pub use sk::{Opener, Sealer};
pub use suite::{Cipher, EspSuite, IkeSuite, Integrity, Prf};

use crate::SecretBytes;
use crate::wire::IkeSpi;

/// Why a cryptographic operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CryptoError {
    /// Peer: the integrity check failed, or what it protects is too short or badly padded.
    NotAuthentic,
    /// Peer: a public value or ciphertext that the method forbids (RFC 6989, RFC 7748 section 6.1, FIPS 203).
    InvalidPublicValue,
    /// Ours: the SA has sealed as many messages as its nonces allow; it must be rekeyed.
    NoncesExhausted,
    /// Ours: a message longer than the format carries.
    TooLong,
    /// Ours: key material of a length that the suite does not have.
    BadKeyLength,
    /// Peer: it announced no signature hash that our key can sign with (RFC 7427 section 4).
    NoCommonSignature,
    /// The cryptographic library refused for a reason it does not tell.
    Library,
}

impl std::fmt::Display for CryptoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotAuthentic => "integrity check failed",
            Self::InvalidPublicValue => "invalid public value in key exchange",
            Self::NoncesExhausted => "nonces exhausted",
            Self::TooLong => "message too long",
            Self::BadKeyLength => "wrong key length",
            Self::NoCommonSignature => "no signature algorithm that the peer accepts",
            Self::Library => "cryptographic operation failed",
        })
    }
}

impl std::error::Error for CryptoError {}

/// SHA-1 of SPIs, address and port for NAT_DETECTION_* (RFC 7296 section 2.23).
pub fn nat_detection_hash(initiator_spi: IkeSpi, responder_spi: IkeSpi, address: SocketAddr) -> [u8; 20] {
    let mut input = [initiator_spi.0, responder_spi.0].concat();
    match address.ip() {
        std::net::IpAddr::V4(ip) => input.extend_from_slice(&ip.octets()),
        std::net::IpAddr::V6(ip) => input.extend_from_slice(&ip.octets()),
    }
    input.extend_from_slice(&address.port().to_be_bytes());
    sha1(&input)
}

/// SHA-1, for NAT detection and the CERTREQ payload, neither of which relies on collision resistance.
pub fn sha1(input: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, input);
    out.copy_from_slice(digest.as_ref());
    out
}

/// HMAC-SHA-256 over the concatenation of `parts`: for cookies.
pub fn hmac_sha256(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
    let mut context = aws_lc_rs::hmac::Context::with_key(&key);
    parts.iter().for_each(|part| context.update(part));
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// Whether two public-length octet strings are equal, in constant time.
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    subtle::ConstantTimeEq::ct_eq(a, b).into()
}

/// Lengths of everything cut from the key stream.
pub(crate) fn split_secret(stream: &[u8], lengths: &[usize]) -> Option<Vec<SecretBytes>> {
    let mut rest = stream;
    lengths
        .iter()
        .map(|&length| {
            let (head, tail) = rest.split_at_checked(length)?;
            rest = tail;
            Some(SecretBytes::from_slice(head))
        })
        .collect()
}

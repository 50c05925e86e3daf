//! What a suite looks like on the wire, and how its key material is cut up.
//!
//! Sources: RFC 4303 section 2 (packet format), RFC 4106 and RFC 7634 (8-byte explicit IV, 16-byte ICV,
//! key followed by a 4-byte salt), RFC 3602 (16-byte IV and blocks), RFC 2404 and RFC 4868 (truncated HMACs).

use std::fmt;

use braid_api::Suite;

/// SPI and sequence number (RFC 4303 section 2).
pub(super) const FIXED_HEADER: usize = 8;
/// Pad Length and Next Header, the last two bytes that are encrypted (RFC 4303 section 2).
pub(crate) const TRAILER: usize = 2;
/// Salt at the end of the key material of GCM and ChaCha20-Poly1305 (RFC 4106 section 8.1, RFC 7634 section 2).
pub(super) const SALT: usize = 4;
/// Explicit IV of GCM and ChaCha20-Poly1305 (RFC 4106 section 3.1, RFC 7634 section 2).
pub(super) const AEAD_IV: usize = 8;
/// Bytes before the payload with the AEAD suites.
pub(super) const AEAD_HEADER: usize = FIXED_HEADER + AEAD_IV;
/// ICV of GCM-16 and ChaCha20-Poly1305 (RFC 4106 section 6, RFC 7634 section 2).
pub(super) const AEAD_ICV: usize = 16;
/// Block, and so IV, of AES-CBC (RFC 3602 section 2).
pub(super) const CBC_BLOCK: usize = 16;

/// A suite, sorted by what has to be done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Transform {
    Aead(AeadCipher),
    Cbc(MacHash),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum AeadCipher {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum MacHash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Transform {
    pub(super) const fn of(suite: Suite) -> Transform {
        match suite {
            Suite::Aes128Gcm16 => Transform::Aead(AeadCipher::Aes128Gcm),
            Suite::Aes256Gcm16 => Transform::Aead(AeadCipher::Aes256Gcm),
            Suite::ChaCha20Poly1305 => Transform::Aead(AeadCipher::ChaCha20Poly1305),
            Suite::Aes128CbcSha1 | Suite::Aes256CbcSha1 => Transform::Cbc(MacHash::Sha1),
            Suite::Aes128CbcSha256 | Suite::Aes256CbcSha256 => Transform::Cbc(MacHash::Sha256),
            Suite::Aes128CbcSha384 | Suite::Aes256CbcSha384 => Transform::Cbc(MacHash::Sha384),
            Suite::Aes128CbcSha512 | Suite::Aes256CbcSha512 => Transform::Cbc(MacHash::Sha512),
        }
    }
}

/// Geometry of a suite on the wire, all in bytes.
///
/// `SPI(4) | sequence number(4) | IV | payload | padding | pad length(1) | next header(1) | ICV`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Explicit initialisation vector: 8 for GCM and ChaCha20-Poly1305, 16 for CBC.
    pub iv_len: usize,
    /// Integrity check value at the end of the packet.
    pub icv_len: usize,
    /// What the length of payload, padding and trailer is a multiple of: 4, or the cipher's block.
    pub align: usize,
}

impl Layout {
    /// The layout of `suite`.
    #[must_use]
    pub const fn of(suite: Suite) -> Layout {
        let icv_len = match Transform::of(suite) {
            Transform::Aead(_) => {
                return Layout { iv_len: AEAD_IV, icv_len: AEAD_ICV, align: 4 };
            }
            // RFC 2404 section 2, RFC 4868 section 2.3: SHA-1 cut to 96 bits, SHA-2 to half.
            Transform::Cbc(MacHash::Sha1) => 12,
            Transform::Cbc(MacHash::Sha256) => 16,
            Transform::Cbc(MacHash::Sha384) => 24,
            Transform::Cbc(MacHash::Sha512) => 32,
        };
        Layout { iv_len: CBC_BLOCK, icv_len, align: CBC_BLOCK }
    }

    /// Bytes before the payload: SPI, sequence number and IV.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        FIXED_HEADER + self.iv_len
    }

    /// Padding bytes that a payload of `payload` bytes needs (RFC 4303 section 2.4).
    #[inline]
    #[must_use]
    pub const fn pad_len(&self, payload: usize) -> usize {
        // `align` is a power of two.
        (payload + TRAILER).wrapping_neg() & (self.align - 1)
    }

    /// Length of the whole ESP packet, SPI to ICV, that carries a payload of `payload` bytes.
    #[inline]
    #[must_use]
    pub const fn sealed_len(&self, payload: usize) -> usize {
        self.header_len() + payload + self.pad_len(payload) + TRAILER + self.icv_len
    }

    /// The largest payload whose [`Self::sealed_len`] is at most `esp_len`; 0 if there is none.
    #[must_use]
    pub const fn max_payload(&self, esp_len: usize) -> usize {
        let encrypted = esp_len.saturating_sub(self.header_len() + self.icv_len);
        (encrypted & !(self.align - 1)).saturating_sub(TRAILER)
    }
}

/// Why key material was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The key material is not as long as the suite wants it.
    Length {
        /// What the suite wants, in bytes.
        expected: usize,
        /// What was given, in bytes.
        got: usize,
    },
    /// The cryptographic library refused the key.
    Refused,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Length { expected, got } => {
                write!(f, "key material of {got} bytes where the suite needs {expected}")
            }
            KeyError::Refused => f.write_str("the cryptographic library refused the key"),
        }
    }
}

impl std::error::Error for KeyError {}

/// Cuts key material into the encryption key and what follows it: salt, or integrity key.
pub(super) fn split_key(suite: Suite, key: &[u8]) -> Result<(&[u8], &[u8]), KeyError> {
    let expected = suite.key_len();
    if key.len() == expected {
        Ok(key.split_at(suite.encryption_key_len()))
    } else {
        Err(KeyError::Length { expected, got: key.len() })
    }
}

//! The ESP suites, by strongSwan's names.

use core::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An ESP suite: encryption and integrity together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Suite {
    /// AES-GCM with a 16-byte ICV, 128-bit key (RFC 4106).
    Aes128Gcm16,
    /// AES-GCM with a 16-byte ICV, 256-bit key (RFC 4106).
    Aes256Gcm16,
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
    /// AES-128-CBC (RFC 3602) with HMAC-SHA1-96 (RFC 2404).
    Aes128CbcSha1,
    /// AES-256-CBC with HMAC-SHA1-96.
    Aes256CbcSha1,
    /// AES-128-CBC with HMAC-SHA2-256-128 (RFC 4868).
    Aes128CbcSha256,
    /// AES-256-CBC with HMAC-SHA2-256-128.
    Aes256CbcSha256,
    /// AES-128-CBC with HMAC-SHA2-384-192 (RFC 4868).
    Aes128CbcSha384,
    /// AES-256-CBC with HMAC-SHA2-384-192.
    Aes256CbcSha384,
    /// AES-128-CBC with HMAC-SHA2-512-256 (RFC 4868).
    Aes128CbcSha512,
    /// AES-256-CBC with HMAC-SHA2-512-256.
    Aes256CbcSha512,
}

impl Suite {
    /// Every suite, strongest first within each family.
    pub const ALL: [Suite; 11] = [
        Suite::Aes256Gcm16,
        Suite::Aes128Gcm16,
        Suite::ChaCha20Poly1305,
        Suite::Aes256CbcSha512,
        Suite::Aes256CbcSha384,
        Suite::Aes256CbcSha256,
        Suite::Aes256CbcSha1,
        Suite::Aes128CbcSha512,
        Suite::Aes128CbcSha384,
        Suite::Aes128CbcSha256,
        Suite::Aes128CbcSha1,
    ];

    /// Bytes of the encryption key alone.
    pub const fn encryption_key_len(self) -> usize {
        match self {
            Suite::Aes128Gcm16
            | Suite::Aes128CbcSha1
            | Suite::Aes128CbcSha256
            | Suite::Aes128CbcSha384
            | Suite::Aes128CbcSha512 => 16,
            Suite::Aes256Gcm16
            | Suite::ChaCha20Poly1305
            | Suite::Aes256CbcSha1
            | Suite::Aes256CbcSha256
            | Suite::Aes256CbcSha384
            | Suite::Aes256CbcSha512 => 32,
        }
    }

    /// Bytes of the integrity key (CBC suites), or of the salt (RFC 4106 section 8.1, RFC 7634 section 2).
    pub const fn integrity_key_len(self) -> usize {
        match self {
            Suite::Aes128Gcm16 | Suite::Aes256Gcm16 | Suite::ChaCha20Poly1305 => 4,
            Suite::Aes128CbcSha1 | Suite::Aes256CbcSha1 => 20,
            Suite::Aes128CbcSha256 | Suite::Aes256CbcSha256 => 32,
            Suite::Aes128CbcSha384 | Suite::Aes256CbcSha384 => 48,
            Suite::Aes128CbcSha512 | Suite::Aes256CbcSha512 => 64,
        }
    }

    /// Bytes of the whole keying material of one direction, encryption key first.
    pub const fn key_len(self) -> usize {
        self.encryption_key_len() + self.integrity_key_len()
    }

    /// The name in strongSwan's proposal syntax.
    pub const fn name(self) -> &'static str {
        match self {
            Suite::Aes128Gcm16 => "aes128gcm16",
            Suite::Aes256Gcm16 => "aes256gcm16",
            Suite::ChaCha20Poly1305 => "chacha20poly1305",
            Suite::Aes128CbcSha1 => "aes128-sha1",
            Suite::Aes256CbcSha1 => "aes256-sha1",
            Suite::Aes128CbcSha256 => "aes128-sha256",
            Suite::Aes256CbcSha256 => "aes256-sha256",
            Suite::Aes128CbcSha384 => "aes128-sha384",
            Suite::Aes256CbcSha384 => "aes256-sha384",
            Suite::Aes128CbcSha512 => "aes128-sha512",
            Suite::Aes256CbcSha512 => "aes256-sha512",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name is of no suite.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownSuite;

impl FromStr for Suite {
    type Err = UnknownSuite;

    fn from_str(name: &str) -> Result<Self, UnknownSuite> {
        Suite::ALL.into_iter().find(|suite| suite.name() == name).ok_or(UnknownSuite)
    }
}

//! The algorithms, their numbers on the wire (IANA "IKEv2 Parameters") and strongSwan's names for them.

use std::fmt;

use super::ke::KeMethod;
use crate::wire::{Transform, TransformType};

/// Encryption algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cipher {
    /// AES-CBC with a 128-bit key (RFC 3602).
    Aes128Cbc,
    /// AES-CBC with a 256-bit key.
    Aes256Cbc,
    /// AES-GCM with a 16-octet ICV and a 128-bit key (RFC 4106, RFC 5282).
    Aes128Gcm16,
    /// AES-GCM with a 16-octet ICV and a 256-bit key.
    Aes256Gcm16,
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
}

impl Cipher {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Aes128Cbc, Self::Aes256Cbc, Self::Aes128Gcm16, Self::Aes256Gcm16, Self::ChaCha20Poly1305];

    /// As a transform.
    pub fn transform(self) -> Transform {
        let with_key = |id, bits| Transform::with_key(TransformType::Encryption, id, bits);
        match self {
            Self::Aes128Cbc => with_key(12, 128),
            Self::Aes256Cbc => with_key(12, 256),
            Self::Aes128Gcm16 => with_key(20, 128),
            Self::Aes256Gcm16 => with_key(20, 256),
            // RFC 7634 section 4: the Key Length attribute is not sent.
            Self::ChaCha20Poly1305 => Transform::new(TransformType::Encryption, 28),
        }
    }

    /// From a transform.
    pub fn from_transform(transform: &Transform) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| cipher.transform() == *transform)
    }

    /// Whether it protects integrity too.
    pub fn is_aead(self) -> bool {
        match self {
            Self::Aes128Gcm16 | Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => true,
            Self::Aes128Cbc | Self::Aes256Cbc => false,
        }
    }

    /// Octets of the key proper.
    pub fn key_len(self) -> usize {
        match self {
            Self::Aes128Cbc | Self::Aes128Gcm16 => 16,
            Self::Aes256Cbc | Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => 32,
        }
    }

    /// Octets of the salt that follows the key in the key material (RFC 5282 section 7.1, RFC 7634 section 2).
    pub fn salt_len(self) -> usize {
        if self.is_aead() { 4 } else { 0 }
    }

    /// strongSwan's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes128Cbc => "aes128",
            Self::Aes256Cbc => "aes256",
            Self::Aes128Gcm16 => "aes128gcm16",
            Self::Aes256Gcm16 => "aes256gcm16",
            Self::ChaCha20Poly1305 => "chacha20poly1305",
        }
    }
}

/// Integrity algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Integrity {
    /// AUTH_HMAC_SHA1_96 (RFC 2404).
    HmacSha1_96,
    /// AUTH_HMAC_SHA2_256_128 (RFC 4868).
    HmacSha256_128,
    /// AUTH_HMAC_SHA2_384_192 (RFC 4868).
    HmacSha384_192,
    /// AUTH_HMAC_SHA2_512_256 (RFC 4868).
    HmacSha512_256,
}

impl Integrity {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::HmacSha1_96, Self::HmacSha256_128, Self::HmacSha384_192, Self::HmacSha512_256];

    /// As a transform.
    pub fn transform(self) -> Transform {
        let id = match self {
            Self::HmacSha1_96 => 2,
            Self::HmacSha256_128 => 12,
            Self::HmacSha384_192 => 13,
            Self::HmacSha512_256 => 14,
        };
        Transform::new(TransformType::Integrity, id)
    }

    /// From a transform.
    pub fn from_transform(transform: &Transform) -> Option<Self> {
        Self::ALL.into_iter().find(|integrity| integrity.transform() == *transform)
    }

    /// Octets of the key.
    pub fn key_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 20,
            Self::HmacSha256_128 => 32,
            Self::HmacSha384_192 => 48,
            Self::HmacSha512_256 => 64,
        }
    }

    /// Octets of the truncated checksum.
    pub fn icv_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 12,
            Self::HmacSha256_128 => 16,
            Self::HmacSha384_192 => 24,
            Self::HmacSha512_256 => 32,
        }
    }

    /// strongSwan's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::HmacSha1_96 => "sha1",
            Self::HmacSha256_128 => "sha256",
            Self::HmacSha384_192 => "sha384",
            Self::HmacSha512_256 => "sha512",
        }
    }

    /// The PRF of the same hash, which an IKE proposal implies when it names none.
    pub fn prf(self) -> Prf {
        match self {
            Self::HmacSha1_96 => Prf::HmacSha1,
            Self::HmacSha256_128 => Prf::HmacSha256,
            Self::HmacSha384_192 => Prf::HmacSha384,
            Self::HmacSha512_256 => Prf::HmacSha512,
        }
    }
}

/// Pseudo-random functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prf {
    /// PRF_HMAC_SHA1 (RFC 2104).
    HmacSha1,
    /// PRF_HMAC_SHA2_256 (RFC 4868).
    HmacSha256,
    /// PRF_HMAC_SHA2_384.
    HmacSha384,
    /// PRF_HMAC_SHA2_512.
    HmacSha512,
}

impl Prf {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::HmacSha1, Self::HmacSha256, Self::HmacSha384, Self::HmacSha512];

    /// As a transform.
    pub fn transform(self) -> Transform {
        let id = match self {
            Self::HmacSha1 => 2,
            Self::HmacSha256 => 5,
            Self::HmacSha384 => 6,
            Self::HmacSha512 => 7,
        };
        Transform::new(TransformType::Prf, id)
    }

    /// From a transform.
    pub fn from_transform(transform: &Transform) -> Option<Self> {
        Self::ALL.into_iter().find(|prf| prf.transform() == *transform)
    }

    /// Octets of the output, which is also the preferred key length (RFC 7296 section 2.13).
    pub fn output_len(self) -> usize {
        match self {
            Self::HmacSha1 => 20,
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }

    /// strongSwan's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::HmacSha1 => "prfsha1",
            Self::HmacSha256 => "prfsha256",
            Self::HmacSha384 => "prfsha384",
            Self::HmacSha512 => "prfsha512",
        }
    }
}

/// What an IKE SA uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkeSuite {
    /// Encryption.
    pub cipher: Cipher,
    /// Integrity; `None` exactly with an AEAD.
    pub integrity: Option<Integrity>,
    /// PRF.
    pub prf: Prf,
    /// The key exchange of IKE_SA_INIT or CREATE_CHILD_SA.
    pub ke: KeMethod,
    /// Additional key exchanges by slot, 1 to 7, in ascending order (RFC 9370).
    pub additional: Vec<(u8, KeMethod)>,
}

/// What a child SA uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspSuite {
    /// Encryption.
    pub cipher: Cipher,
    /// Integrity; `None` exactly with an AEAD.
    pub integrity: Option<Integrity>,
    /// The key exchange (PFS); `None` for the child that IKE_AUTH creates, or without PFS.
    pub ke: Option<KeMethod>,
    /// Additional key exchanges by slot, 1 to 7, in ascending order (RFC 9370).
    pub additional: Vec<(u8, KeMethod)>,
    /// Extended sequence numbers.
    pub esn: bool,
}

impl EspSuite {
    /// Octets of key material for one direction: cipher key, salt, integrity key, in this order
    /// (RFC 7296 section 2.17).
    pub fn key_len(&self) -> usize {
        self.cipher.key_len() + self.cipher.salt_len() + self.integrity.map_or(0, Integrity::key_len)
    }
}

fn write_additional(f: &mut fmt::Formatter<'_>, additional: &[(u8, KeMethod)]) -> fmt::Result {
    additional.iter().try_for_each(|(slot, method)| write!(f, "-ke{slot}_{}", method.name()))
}

impl fmt::Display for IkeSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cipher.name())?;
        if let Some(integrity) = self.integrity {
            write!(f, "-{}", integrity.name())?;
        }
        if self.integrity.map(Integrity::prf) != Some(self.prf) {
            write!(f, "-{}", self.prf.name())?;
        }
        write!(f, "-{}", self.ke.name())?;
        write_additional(f, &self.additional)
    }
}

impl fmt::Display for EspSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cipher.name())?;
        if let Some(integrity) = self.integrity {
            write!(f, "-{}", integrity.name())?;
        }
        if let Some(ke) = self.ke {
            write!(f, "-{}", ke.name())?;
        }
        write_additional(f, &self.additional)?;
        if self.esn { f.write_str("-esn") } else { Ok(()) }
    }
}

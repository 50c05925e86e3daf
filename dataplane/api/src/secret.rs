//! Key material on its way into the core.

use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Key material: zeroized on drop, redacted in `Debug`, and not `Clone`, since an SA installed
/// twice would repeat its nonces.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SecretKey(Vec<u8>);

impl SecretKey {
    /// Longest material that a message may carry, in bytes.
    pub const MAX_LEN: usize = 96;

    /// Takes the material over.
    pub fn new(material: Vec<u8>) -> Self {
        SecretKey(material)
    }

    /// The bytes, for the cipher's key schedule only.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({} bytes)", self.0.len())
    }
}

impl Serialize for SecretKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = SecretKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {} bytes of key", SecretKey::MAX_LEN)
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<SecretKey, E> {
                if bytes.len() > SecretKey::MAX_LEN {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                Ok(SecretKey(bytes.to_vec()))
            }

            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<SecretKey, E> {
                self.visit_bytes(&Zeroizing::new(bytes))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

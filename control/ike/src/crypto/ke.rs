//! Key exchange methods: MODP and elliptic-curve Diffie-Hellman, X25519, ML-KEM.
//!
//! One interface for all: the initiator makes a private part and sends its public value, the responder
//! answers with one call, the initiator finishes. Private scalars come from the caller's [`Random`], except
//! for ML-KEM, whose key pairs and encapsulations aws-lc-rs draws from the system by itself.

use super::CryptoError;
use crate::{Random, SecretBytes};

/// Key exchange methods (IANA "Transform Type 4").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeMethod {
    /// Group 2, 1024 bits (RFC 7296 appendix B): only when named.
    Modp1024,
    /// Group 5, 1536 bits (RFC 3526): only when named.
    Modp1536,
    /// Group 14.
    Modp2048,
    /// Group 15.
    Modp3072,
    /// Group 16.
    Modp4096,
    /// Group 17.
    Modp6144,
    /// Group 18.
    Modp8192,
    /// Group 19, NIST P-256 (RFC 5903).
    Ecp256,
    /// Group 20, NIST P-384.
    Ecp384,
    /// Group 21, NIST P-521.
    Ecp521,
    /// Group 22, 1024 bits with a 160-bit subgroup (RFC 5114).
    Modp1024s160,
    /// Group 23, 2048 bits with a 224-bit subgroup.
    Modp2048s224,
    /// Group 24, 2048 bits with a 256-bit subgroup.
    Modp2048s256,
    /// Group 31 (RFC 8031).
    Curve25519,
    /// ML-KEM-512.
    MlKem512,
    /// ML-KEM-768.
    MlKem768,
    /// ML-KEM-1024.
    MlKem1024,
}

/// The outcome of a key exchange.
pub type SharedSecret = SecretBytes;

/// The initiator's half of a key exchange.
pub struct KePrivate {
    method: KeMethod,
    public: Vec<u8>,
}

impl KeMethod {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Modp1024,
        Self::Modp1536,
        Self::Modp2048,
        Self::Modp3072,
        Self::Modp4096,
        Self::Modp6144,
        Self::Modp8192,
        Self::Ecp256,
        Self::Ecp384,
        Self::Ecp521,
        Self::Modp1024s160,
        Self::Modp2048s224,
        Self::Modp2048s256,
        Self::Curve25519,
        Self::MlKem512,
        Self::MlKem768,
        Self::MlKem1024,
    ];

    /// Its number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::Modp1024 => 2,
            Self::Modp1536 => 5,
            Self::Modp2048 => 14,
            Self::Modp3072 => 15,
            Self::Modp4096 => 16,
            Self::Modp6144 => 17,
            Self::Modp8192 => 18,
            Self::Ecp256 => 19,
            Self::Ecp384 => 20,
            Self::Ecp521 => 21,
            Self::Modp1024s160 => 22,
            Self::Modp2048s224 => 23,
            Self::Modp2048s256 => 24,
            Self::Curve25519 => 31,
            Self::MlKem512 => 35,
            Self::MlKem768 => 36,
            Self::MlKem1024 => 37,
        }
    }

    /// From its number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.number() == number)
    }

    /// strongSwan's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Modp1024 => "modp1024",
            Self::Modp1536 => "modp1536",
            Self::Modp2048 => "modp2048",
            Self::Modp3072 => "modp3072",
            Self::Modp4096 => "modp4096",
            Self::Modp6144 => "modp6144",
            Self::Modp8192 => "modp8192",
            Self::Ecp256 => "ecp256",
            Self::Ecp384 => "ecp384",
            Self::Ecp521 => "ecp521",
            Self::Modp1024s160 => "modp1024s160",
            Self::Modp2048s224 => "modp2048s224",
            Self::Modp2048s256 => "modp2048s256",
            Self::Curve25519 => "curve25519",
            Self::MlKem512 => "mlkem512",
            Self::MlKem768 => "mlkem768",
            Self::MlKem1024 => "mlkem1024",
        }
    }

    /// Whether it is a KEM: then it may only be an additional key exchange, and the responder's value depends
    /// on the initiator's.
    pub fn is_kem(self) -> bool {
        matches!(self, Self::MlKem512 | Self::MlKem768 | Self::MlKem1024)
    }

    /// Begins an exchange as its initiator. ML-KEM draws its key pair from the system's randomness.
    pub fn initiate(self, rng: &mut dyn Random) -> Result<KePrivate, CryptoError> {
        let _ = rng;
        todo!()
    }

    /// Answers a peer's public value: our public value (or ciphertext) and the shared secret. ML-KEM
    /// encapsulates with the system's randomness.
    pub fn respond(
        self,
        rng: &mut dyn Random,
        peer_public: &[u8],
    ) -> Result<(Vec<u8>, SharedSecret), CryptoError> {
        let _ = (rng, peer_public);
        todo!()
    }
}

impl KePrivate {
    /// Its method.
    pub fn method(&self) -> KeMethod {
        self.method
    }

    /// What goes into the KE payload.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// Combines with the responder's value, which is checked first (RFC 6989).
    pub fn finish(self, peer_public: &[u8]) -> Result<SharedSecret, CryptoError> {
        let _ = peer_public;
        todo!()
    }
}

impl std::fmt::Debug for KePrivate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KePrivate").field("method", &self.method).finish_non_exhaustive()
    }
}

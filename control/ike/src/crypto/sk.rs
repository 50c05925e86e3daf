//! Protection of SK and SKF payloads: AEADs (RFC 5282, RFC 7634) and CBC with HMAC (RFC 7296 section 3.14).
//!
//! The explicit IV of an AEAD is `generation | counter`, four octets each, big endian. The counter advances
//! with every message sealed; the generation is handed out anew each time an IKE SA's state is adopted from a
//! stash, so that a stale counter in the stash repeats no nonce.

use zeroize::Zeroizing;

use super::{CryptoError, IkeSuite};
use crate::{Random, SecretBytes};

/// Seals what this side sends.
pub struct Sealer {
    generation: u32,
    counter: u32,
}

/// Opens what the peer sends.
pub struct Opener {}

impl Sealer {
    /// For the key material of one direction. `counter` is zero for a fresh SA or a fresh generation.
    pub fn new(
        suite: &IkeSuite,
        encryption: &SecretBytes,
        integrity: &SecretBytes,
        generation: u32,
    ) -> Result<Self, CryptoError> {
        let _ = (suite, encryption, integrity, generation);
        todo!()
    }

    /// The generation and the next counter.
    pub fn position(&self) -> (u32, u32) {
        (self.generation, self.counter)
    }

    /// Octets that follow the (fragment) header for `length` octets of plaintext: IV, ciphertext, padding, ICV.
    pub fn sealed_len(&self, length: usize) -> usize {
        let _ = length;
        todo!()
    }

    /// Appends IV, ciphertext and checksum to `out`, whose octets so far are the associated data. The random
    /// source gives CBC its unpredictable IV.
    pub fn seal(&mut self, out: &mut Vec<u8>, plain: &[u8], rng: &mut dyn Random) -> Result<(), CryptoError> {
        let _ = (out, plain, rng);
        todo!()
    }
}

impl Opener {
    /// For the key material of one direction.
    pub fn new(
        suite: &IkeSuite,
        encryption: &SecretBytes,
        integrity: &SecretBytes,
    ) -> Result<Self, CryptoError> {
        let _ = (suite, encryption, integrity);
        todo!()
    }

    /// Checks, decrypts and strips the padding.
    pub fn open(&self, associated: &[u8], body: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let _ = (associated, body);
        todo!()
    }
}

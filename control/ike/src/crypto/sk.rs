//! Protection of SK and SKF payloads: AEADs (RFC 5282, RFC 7634) and CBC with HMAC (RFC 7296 section 3.14).
//!
//! The explicit IV of an AEAD is `generation | counter`, four octets each, big endian. The counter advances
//! with every message sealed; the generation is handed out anew each time an IKE SA's state is adopted from a
//! stash, so that a stale counter in the stash repeats no nonce.

use aws_lc_rs::{aead, cipher, hmac, iv};
use zeroize::Zeroizing;

use super::{Cipher, CryptoError, IkeSuite, Integrity};
use crate::random::random_array;
use crate::{Random, SecretBytes};

/// Seals what this side sends.
pub struct Sealer {
    keys: SealKeys,
    generation: u32,
    counter: u32,
}

/// Opens what the peer sends.
pub struct Opener {
    keys: OpenKeys,
}

enum SealKeys {
    Aead(AeadKey),
    Cbc(Box<(cipher::EncryptingKey, Mac)>),
}

enum OpenKeys {
    Aead(AeadKey),
    Cbc(Box<(cipher::DecryptingKey, Mac)>),
}

struct AeadKey {
    key: aead::LessSafeKey,
    salt: Zeroizing<[u8; SALT_LEN]>,
}

struct Mac {
    key: hmac::Key,
    icv_len: usize,
}

impl Sealer {
    /// For the key material of one direction: cipher key and salt, and the integrity key unless the cipher is
    /// an AEAD. A generation must never be used twice with the same keys.
    pub fn new(
        suite: &IkeSuite,
        encryption: &SecretBytes,
        integrity: &SecretBytes,
        generation: u32,
    ) -> Result<Self, CryptoError> {
        let keys = match suite.integrity {
            None => SealKeys::Aead(AeadKey::new(suite.cipher, encryption)?),
            Some(algorithm) => {
                let key = cbc_key(suite.cipher, encryption)?;
                let key = cipher::EncryptingKey::cbc(key).map_err(|_| CryptoError::Library)?;
                SealKeys::Cbc(Box::new((key, Mac::new(algorithm, integrity)?)))
            }
        };
        Ok(Self { keys, generation, counter: 0 })
    }

    /// The generation and the next counter.
    pub fn position(&self) -> (u32, u32) {
        (self.generation, self.counter)
    }

    /// Octets that follow the (fragment) header for `length` octets of plaintext: IV, ciphertext, padding,
    /// ICV.
    pub fn sealed_len(&self, length: usize) -> usize {
        match &self.keys {
            SealKeys::Aead(_) => AEAD_IV_LEN + length + 1 + TAG_LEN,
            SealKeys::Cbc(keys) => BLOCK_LEN + (length + 1).next_multiple_of(BLOCK_LEN) + keys.1.icv_len,
        }
    }

    /// Appends IV, ciphertext and checksum to `out`, whose octets so far are the associated data. The random
    /// source gives CBC its unpredictable IV.
    pub fn seal(&mut self, out: &mut Vec<u8>, plain: &[u8], rng: &mut dyn Random) -> Result<(), CryptoError> {
        let associated = out.len();
        let next = self.counter.checked_add(1).ok_or(CryptoError::NoncesExhausted)?;
        match &self.keys {
            SealKeys::Aead(key) => {
                let iv = aead_iv(self.generation, self.counter);
                out.reserve(self.sealed_len(plain.len()));
                out.extend_from_slice(&iv);
                let start = out.len();
                out.extend_from_slice(plain);
                // RFC 5282 section 3: no alignment is needed, so the Pad Length alone.
                out.push(0);
                let (head, body) = out.split_at_mut(start);
                let associated = head.get(..associated).unwrap_or_default();
                let tag = key
                    .key
                    .seal_in_place_separate_tag(key.nonce(iv), aead::Aad::from(associated), body)
                    .map_err(|_| CryptoError::Library)?;
                out.extend_from_slice(tag.as_ref());
            }
            SealKeys::Cbc(keys) => {
                let (key, mac) = keys.as_ref();
                // RFC 7296 section 3.14: a CBC IV is unpredictable.
                let iv: [u8; BLOCK_LEN] = random_array(rng);
                out.extend_from_slice(&iv);
                let start = out.len();
                out.extend_from_slice(plain);
                let pad = (plain.len() + 1).next_multiple_of(BLOCK_LEN) - plain.len() - 1;
                out.resize(out.len() + pad, 0);
                out.push(pad as u8);
                let body = out.get_mut(start..).unwrap_or_default();
                let context = cipher::EncryptionContext::Iv128(iv::FixedLength::from(&iv));
                key.less_safe_encrypt(body, context).map_err(|_| CryptoError::Library)?;
                let tag = hmac::sign(&mac.key, out);
                out.extend_from_slice(tag.as_ref().get(..mac.icv_len).unwrap_or_default());
            }
        }
        self.counter = next;
        Ok(())
    }
}

impl Opener {
    /// For the key material of one direction.
    pub fn new(
        suite: &IkeSuite,
        encryption: &SecretBytes,
        integrity: &SecretBytes,
    ) -> Result<Self, CryptoError> {
        let keys = match suite.integrity {
            None => OpenKeys::Aead(AeadKey::new(suite.cipher, encryption)?),
            Some(algorithm) => {
                let key = cbc_key(suite.cipher, encryption)?;
                let key = cipher::DecryptingKey::cbc(key).map_err(|_| CryptoError::Library)?;
                OpenKeys::Cbc(Box::new((key, Mac::new(algorithm, integrity)?)))
            }
        };
        Ok(Self { keys })
    }

    /// Checks, decrypts and strips the padding.
    pub fn open(&self, associated: &[u8], body: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let mut plain = match &self.keys {
            OpenKeys::Aead(key) => {
                let (iv, sealed) =
                    body.split_first_chunk::<AEAD_IV_LEN>().ok_or(CryptoError::NotAuthentic)?;
                let mut plain = Zeroizing::new(sealed.to_vec());
                let length = key
                    .key
                    .open_in_place(key.nonce(*iv), aead::Aad::from(associated), &mut plain)
                    .map_err(|_| CryptoError::NotAuthentic)?
                    .len();
                plain.truncate(length);
                plain
            }
            OpenKeys::Cbc(keys) => {
                let (key, mac) = keys.as_ref();
                let covered = mac.check(associated, body)?;
                let (iv, ciphertext) =
                    covered.split_first_chunk::<BLOCK_LEN>().ok_or(CryptoError::NotAuthentic)?;
                let mut plain = Zeroizing::new(ciphertext.to_vec());
                let context = cipher::DecryptionContext::Iv128(iv::FixedLength::from(iv));
                key.decrypt(&mut plain, context).map_err(|_| CryptoError::NotAuthentic)?;
                plain
            }
        };
        // RFC 7296 section 3.14: the padding's content is not checked, only that it fits.
        let pad = usize::from(plain.pop().ok_or(CryptoError::NotAuthentic)?);
        let length = plain.len().checked_sub(pad).ok_or(CryptoError::NotAuthentic)?;
        plain.truncate(length);
        Ok(plain)
    }
}

impl AeadKey {
    fn new(cipher: Cipher, material: &SecretBytes) -> Result<Self, CryptoError> {
        let algorithm = match cipher {
            Cipher::Aes128Gcm16 => &aead::AES_128_GCM,
            Cipher::Aes256Gcm16 => &aead::AES_256_GCM,
            Cipher::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
            Cipher::Aes128Cbc | Cipher::Aes256Cbc => return Err(CryptoError::BadKeyLength),
        };
        // RFC 5282 section 7.1, RFC 7634 section 3: the salt follows the key.
        let (key, salt) =
            material.expose().split_at_checked(cipher.key_len()).ok_or(CryptoError::BadKeyLength)?;
        let salt = <[u8; SALT_LEN]>::try_from(salt).map_err(|_| CryptoError::BadKeyLength)?;
        let key = aead::UnboundKey::new(algorithm, key).map_err(|_| CryptoError::BadKeyLength)?;
        Ok(Self { key: aead::LessSafeKey::new(key), salt: Zeroizing::new(salt) })
    }

    fn nonce(&self, iv: [u8; AEAD_IV_LEN]) -> aead::Nonce {
        let mut nonce = [0; SALT_LEN + AEAD_IV_LEN];
        let (head, tail) = nonce.split_at_mut(SALT_LEN);
        head.copy_from_slice(self.salt.as_slice());
        tail.copy_from_slice(&iv);
        aead::Nonce::assume_unique_for_key(nonce)
    }
}

impl Mac {
    fn new(algorithm: Integrity, key: &SecretBytes) -> Result<Self, CryptoError> {
        if key.len() != algorithm.key_len() {
            return Err(CryptoError::BadKeyLength);
        }
        let hash = match algorithm {
            Integrity::HmacSha1_96 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Integrity::HmacSha256_128 => hmac::HMAC_SHA256,
            Integrity::HmacSha384_192 => hmac::HMAC_SHA384,
            Integrity::HmacSha512_256 => hmac::HMAC_SHA512,
        };
        Ok(Self { key: hmac::Key::new(hash, key.expose()), icv_len: algorithm.icv_len() })
    }

    /// The body without its checksum, which covers the message from the header on.
    fn check<'a>(&self, associated: &[u8], body: &'a [u8]) -> Result<&'a [u8], CryptoError> {
        let length = body.len().checked_sub(self.icv_len).ok_or(CryptoError::NotAuthentic)?;
        let (covered, icv) = body.split_at(length);
        let mut context = hmac::Context::with_key(&self.key);
        context.update(associated);
        context.update(covered);
        let tag = context.sign();
        let expected = tag.as_ref().get(..self.icv_len).unwrap_or_default();
        if super::constant_time_eq(expected, icv) { Ok(covered) } else { Err(CryptoError::NotAuthentic) }
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer")
            .field("generation", &self.generation)
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").finish_non_exhaustive()
    }
}

fn aead_iv(generation: u32, counter: u32) -> [u8; AEAD_IV_LEN] {
    ((u64::from(generation) << 32) | u64::from(counter)).to_be_bytes()
}

fn cbc_key(suite: Cipher, material: &SecretBytes) -> Result<cipher::UnboundCipherKey, CryptoError> {
    let algorithm = match suite {
        Cipher::Aes128Cbc => &cipher::AES_128,
        Cipher::Aes256Cbc => &cipher::AES_256,
        Cipher::Aes128Gcm16 | Cipher::Aes256Gcm16 | Cipher::ChaCha20Poly1305 => {
            return Err(CryptoError::BadKeyLength);
        }
    };
    cipher::UnboundCipherKey::new(algorithm, material.expose()).map_err(|_| CryptoError::BadKeyLength)
}

const SALT_LEN: usize = 4;
const AEAD_IV_LEN: usize = 8;
const TAG_LEN: usize = 16;
const BLOCK_LEN: usize = 16;

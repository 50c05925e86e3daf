//! The two AEAD engines behind one type: ring, and AWS-LC through aws-lc-rs.
//!
//! Both know the same three algorithms and must agree on every byte; the tests hold them against each other.
//! Which is the faster depends on the processor: ring stops at AVX2, AWS-LC goes on to AVX-512 with VAES.
//! Keys are expanded once, here. AWS-LC wipes its expanded keys when they are freed; ring does not offer that.

use aws_lc_rs::aead as aws;
use ring::aead as ring_aead;

use super::suite::{AeadCipher, KeyError};

/// Nonce of all three algorithms (RFC 4106 section 4, RFC 7634 section 2).
pub(super) const NONCE: usize = 12;

/// Which library does the AEAD suites. (The CBC suites are always done by AWS-LC: ring has no CBC.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// ring.
    Ring,
    /// AWS-LC, through aws-lc-rs.
    AwsLc,
}

impl Engine {
    /// The faster engine for this processor; asked once, at start.
    #[must_use]
    pub fn detect() -> Engine {
        #[cfg(target_arch = "x86_64")]
        {
            // What AWS-LC itself wants before it takes its AVX-512 code; below that ring is as fast or faster.
            let avx512 = std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512bw")
                && std::arch::is_x86_feature_detected!("avx512dq")
                && std::arch::is_x86_feature_detected!("avx512vl");
            if avx512
                && std::arch::is_x86_feature_detected!("vaes")
                && std::arch::is_x86_feature_detected!("vpclmulqdq")
            {
                return Engine::AwsLc;
            }
        }
        Engine::Ring
    }

    /// The engine's name, for status and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Ring => "ring",
            Engine::AwsLc => "aws-lc",
        }
    }
}

/// The packet was altered, or was sealed with another key.
#[derive(Debug)]
pub(super) struct NotAuthentic;

/// What a library reports for a message of 64 GiB (2^36 - 32 bytes) or more, and for nothing else.
/// An ESP packet is below 64 KiB.
const SHORT: &str = "an ESP packet is shorter than the cipher's limit of 64 GiB";

/// An expanded key in the engine of choice.
pub(super) enum Aead {
    Ring(Box<ring_aead::LessSafeKey>),
    AwsLc(aws::LessSafeKey),
}

impl Aead {
    /// `key` without the salt.
    pub(super) fn new(cipher: AeadCipher, key: &[u8], engine: Engine) -> Result<Aead, KeyError> {
        Ok(match engine {
            Engine::Ring => {
                let algorithm = match cipher {
                    AeadCipher::Aes128Gcm => &ring_aead::AES_128_GCM,
                    AeadCipher::Aes256Gcm => &ring_aead::AES_256_GCM,
                    AeadCipher::ChaCha20Poly1305 => &ring_aead::CHACHA20_POLY1305,
                };
                let key = ring_aead::UnboundKey::new(algorithm, key).map_err(|_| KeyError::Refused)?;
                Aead::Ring(Box::new(ring_aead::LessSafeKey::new(key)))
            }
            Engine::AwsLc => {
                let algorithm = match cipher {
                    AeadCipher::Aes128Gcm => &aws::AES_128_GCM,
                    AeadCipher::Aes256Gcm => &aws::AES_256_GCM,
                    AeadCipher::ChaCha20Poly1305 => &aws::CHACHA20_POLY1305,
                };
                let key = aws::UnboundKey::new(algorithm, key).map_err(|_| KeyError::Refused)?;
                Aead::AwsLc(aws::LessSafeKey::new(key))
            }
        })
    }

    /// Encrypts `text` in place and writes the tag (16 bytes).
    #[inline]
    pub(super) fn seal(&self, nonce: [u8; NONCE], aad: &[u8], text: &mut [u8], tag: &mut [u8]) {
        match self {
            Aead::Ring(key) => {
                let nonce = ring_aead::Nonce::assume_unique_for_key(nonce);
                let computed =
                    key.seal_in_place_separate_tag(nonce, ring_aead::Aad::from(aad), text).expect(SHORT);
                tag.copy_from_slice(computed.as_ref());
            }
            Aead::AwsLc(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(nonce);
                key.seal_in_place_scatter(nonce, aws::Aad::from(aad), text, &[], tag).expect(SHORT);
            }
        }
    }

    /// Encrypts `text` in place if `tag` proves it authentic; otherwise it is left in an unspecified state,
    /// but never as unauthenticated plaintext (both engines wipe it).
    #[inline]
    pub(super) fn open(
        &self,
        nonce: [u8; NONCE],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8],
    ) -> Result<(), NotAuthentic> {
        match self {
            Aead::Ring(key) => {
                let nonce = ring_aead::Nonce::assume_unique_for_key(nonce);
                let tag = ring_aead::Tag::try_from(tag).map_err(|_| NotAuthentic)?;
                key.open_in_place_separate_tag(nonce, ring_aead::Aad::from(aad), tag, text, 0..)
                    .map_err(|_| NotAuthentic)?;
            }
            Aead::AwsLc(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(nonce);
                key.open_in_place_separate_tag(nonce, aws::Aad::from(aad), tag, text)
                    .map_err(|_| NotAuthentic)?;
            }
        }
        Ok(())
    }
}

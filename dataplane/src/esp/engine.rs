//! The two AEAD engines behind one type: ring, and AWS-LC through aws-lc-rs.
//!
//! Both know the same three algorithms and must agree on every byte; the tests hold them against each other.
//! Which is the faster depends on the processor, and not only on what it says of itself: both have VAES, AWS-LC with
//! the 512 bits of AVX-512 too, which on Zen 4 are slower than ring's 256 up to some 3 KB and on Zen 5 faster from
//! 512 bytes on. So they are timed at start, by AES-128-GCM, which decides for all.
//! Keys are expanded once, here, and wiped when they are freed: AWS-LC does so itself, ring's are wiped by us (but for
//! what expanding one leaves on the stack).

use std::{
    array,
    hint::black_box,
    sync::OnceLock,
    time::{Duration, Instant},
};

use aws_lc_rs::aead as aws;
use ring::aead as ring_aead;

use super::suite::{AeadCipher, KeyError};
use crate::io::wiped::Wiped;

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
    /// The faster engine on this processor, for packets of everyday sizes. The first call takes a millisecond to find
    /// out, or tens of it on a processor without AES; all others have its answer.
    #[must_use]
    pub fn detect() -> Engine {
        static FASTER: OnceLock<Engine> = OnceLock::new();
        *FASTER.get_or_init(|| {
            let [ring, aws_lc] = time_both();
            faster(ring, aws_lc)
        })
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

/// Lengths of the packets that are timed, in bytes: a call, something between, a full packet.
const TIMED: [usize; 3] = [64, 512, 1400];
/// Packets in a row: more than a clock needs to see a difference.
const IN_A_ROW: u64 = 32;
/// Of so many turns the fastest counts, since whatever disturbs a turn makes it slower.
const TURNS: usize = 20;

/// How long ring and AWS-LC take to seal a packet of each size, in turns, with AES-128-GCM and keys of no secret.
fn time_both() -> [Duration; 2] {
    let engines = [Engine::Ring, Engine::AwsLc];
    let keys = engines.map(|engine| Aead::new(AeadCipher::Aes128Gcm, &[0; 16], engine).ok());
    let mut text = [0; TIMED[TIMED.len() - 1]];
    let mut number = 0_u64;
    let mut total = [Duration::ZERO; 2];
    for len in TIMED {
        let mut fastest = [Duration::MAX; 2];
        for _ in 0..TURNS {
            for (key, fastest) in keys.iter().zip(&mut fastest) {
                let Some(key) = key else { continue };
                let start = Instant::now();
                for _ in 0..IN_A_ROW {
                    number += 1;
                    let mut nonce = [0; NONCE];
                    nonce[4..].copy_from_slice(&number.to_be_bytes());
                    key.seal(nonce, &[0; 8], black_box(&mut text[..len]), &mut [0; 16]);
                }
                *fastest = (*fastest).min(start.elapsed());
            }
        }
        total = array::from_fn(|at| total[at].saturating_add(fastest[at]));
    }
    total
}

/// ring where it is faster by more than a twentieth: less is noise.
fn faster(ring: Duration, aws_lc: Duration) -> Engine {
    if ring.saturating_mul(20) < aws_lc.saturating_mul(19) { Engine::Ring } else { Engine::AwsLc }
}

/// The packet was altered, or was sealed with another key.
#[derive(Debug)]
pub(super) struct NotAuthentic;

/// What a library reports for a message of 64 GiB (2^36 - 32 bytes) or more, and for nothing else.
/// An ESP packet is below 64 KiB.
const SHORT: &str = "an ESP packet is shorter than the cipher's limit of 64 GiB";

/// An expanded key in the engine of choice.
pub(super) enum Aead {
    Ring(Wiped<ring_aead::LessSafeKey>),
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
                Aead::Ring(Wiped::new(ring_aead::LessSafeKey::new(key)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_is_taken_where_it_is_faster_by_more_than_noise() {
        let of = |ring, aws_lc| faster(Duration::from_nanos(ring), Duration::from_nanos(aws_lc));
        assert_eq!(of(456, 569), Engine::Ring);
        assert_eq!(of(455, 398), Engine::AwsLc);
        assert_eq!(of(950, 1000), Engine::AwsLc);
        assert_eq!(of(949, 1000), Engine::Ring);
        assert_eq!(faster(Duration::MAX, Duration::from_nanos(1)), Engine::AwsLc);
    }

    #[test]
    fn both_engines_are_timed() {
        let times = time_both();
        assert!(times.iter().all(|time| !time.is_zero() && *time < Duration::from_secs(1)), "{times:?}");
    }
}

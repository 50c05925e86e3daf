//! The bare AEAD call of the library that the core chooses on this processor, with nothing of ours around it.

use aws_lc_rs::aead as aws;
use braid_api::Suite;
use braid_dataplane::esp::{Engine, Layout};
use ring::aead as ring_aead;

use braid_bench::memory::BATCH;

const TAG: usize = 16;
const KEY: [u8; 32] = [0x5A; 32];

enum Key {
    Aws(aws::LessSafeKey),
    Ring(Box<ring_aead::LessSafeKey>),
}

/// A batch of texts as long as the encrypted part of an ESP packet, as far apart as ESP packets.
pub(crate) struct Bare {
    key: Key,
    layout: Layout,
    segment: usize,
    counter: u64,
    memory: Vec<u8>,
    sealed: Vec<u8>,
}

impl Bare {
    /// For inner packets of `len` bytes.
    pub(crate) fn new(suite: Suite, len: usize) -> Self {
        let key = match Engine::detect() {
            Engine::AwsLc => {
                let algorithm = match suite {
                    Suite::Aes128Gcm16 => &aws::AES_128_GCM,
                    Suite::Aes256Gcm16 => &aws::AES_256_GCM,
                    Suite::ChaCha20Poly1305 => &aws::CHACHA20_POLY1305,
                    other => panic!("{other} is no AEAD suite"),
                };
                let key = aws::UnboundKey::new(algorithm, &KEY[..algorithm.key_len()]).expect("its length");
                Key::Aws(aws::LessSafeKey::new(key))
            }
            Engine::Ring => {
                let algorithm = match suite {
                    Suite::Aes128Gcm16 => &ring_aead::AES_128_GCM,
                    Suite::Aes256Gcm16 => &ring_aead::AES_256_GCM,
                    Suite::ChaCha20Poly1305 => &ring_aead::CHACHA20_POLY1305,
                    other => panic!("{other} is no AEAD suite"),
                };
                let key =
                    ring_aead::UnboundKey::new(algorithm, &KEY[..algorithm.key_len()]).expect("its length");
                Key::Ring(Box::new(ring_aead::LessSafeKey::new(key)))
            }
        };
        let layout = Layout::of(suite);
        let segment = layout.sealed_len(len);
        let memory = vec![0; BATCH * segment];
        let mut bare = Bare { key, layout, segment, counter: 0, sealed: memory.clone(), memory };
        bare.seal();
        bare.sealed.copy_from_slice(&bare.memory);
        bare
    }

    /// Seals a batch in place.
    pub(crate) fn seal(&mut self) {
        let header = self.layout.header_len();
        for esp in self.memory.chunks_exact_mut(self.segment) {
            self.counter += 1;
            let (text, tag) = esp[header..].split_at_mut(self.segment - header - TAG);
            let (nonce, aad) = (nonce(self.counter), self.counter.to_be_bytes());
            match &self.key {
                Key::Aws(key) => key
                    .seal_in_place_scatter(
                        aws::Nonce::assume_unique_for_key(nonce),
                        aws::Aad::from(&aad),
                        text,
                        &[],
                        tag,
                    )
                    .expect("short enough"),
                Key::Ring(key) => {
                    let nonce = ring_aead::Nonce::assume_unique_for_key(nonce);
                    let computed = key
                        .seal_in_place_separate_tag(nonce, ring_aead::Aad::from(&aad), text)
                        .expect("short enough");
                    tag.copy_from_slice(computed.as_ref());
                }
            }
        }
    }

    /// Puts back what [`Bare::open`] has decrypted.
    pub(crate) fn refill(&mut self) {
        self.memory.copy_from_slice(&self.sealed);
    }

    /// Opens a batch in place.
    pub(crate) fn open(&mut self) {
        let header = self.layout.header_len();
        // The counters of the batch that the constructor sealed.
        for (esp, counter) in self.memory.chunks_exact_mut(self.segment).zip(1_u64..) {
            let (text, tag) = esp[header..].split_at_mut(self.segment - header - TAG);
            let (nonce, aad) = (nonce(counter), counter.to_be_bytes());
            match &self.key {
                Key::Aws(key) => {
                    let nonce = aws::Nonce::assume_unique_for_key(nonce);
                    key.open_in_place_separate_tag(nonce, aws::Aad::from(&aad), tag, text)
                        .expect("authentic");
                }
                Key::Ring(key) => {
                    let nonce = ring_aead::Nonce::assume_unique_for_key(nonce);
                    let tag = ring_aead::Tag::try_from(&*tag).expect("its length");
                    key.open_in_place_separate_tag(nonce, ring_aead::Aad::from(&aad), tag, text, 0..)
                        .expect("authentic");
                }
            }
        }
    }
}

/// Put together in a register and stored whole, as the core does it.
fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce.copy_from_slice(&(u128::from(counter) << 32).to_be_bytes()[..12]);
    nonce
}

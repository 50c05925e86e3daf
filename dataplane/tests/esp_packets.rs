//! Sealing and opening through the public interface: all suites, both engines, all lengths, and everything that
//! can happen to a packet on the way.

use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use braid_api::Suite;
use braid_dataplane::esp::{Engine, KeyError, Layout, OpenError, Opener, Sealer, write_trailer};
use proptest::prelude::*;

const ENGINES: [Engine; 2] = [Engine::Ring, Engine::AwsLc];
const IV_KEY: [u8; 16] = [0x1f; 16];
const SPI: [u8; 4] = [0xc0, 0xff, 0xee, 0x01];

fn key(suite: Suite) -> Vec<u8> {
    (0..suite.key_len()).map(|n| (n * 7 + 3) as u8).collect()
}

fn sealer(suite: Suite, esn: bool, engine: Engine) -> Sealer {
    Sealer::new(suite, &key(suite), esn, &IV_KEY, engine).unwrap()
}

fn opener(suite: Suite, esn: bool, engine: Engine) -> Opener {
    Opener::new(suite, &key(suite), esn, engine).unwrap()
}

fn is_aead(suite: Suite) -> bool {
    Layout::of(suite).iv_len == 8
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 + 5) as u8).collect()
}

fn seal(sealer: &Sealer, plain: &[u8], next_header: u8, seq: u64) -> Vec<u8> {
    let layout = sealer.layout();
    let mut esp = vec![0xdd; layout.sealed_len(plain.len())];
    esp[..4].copy_from_slice(&SPI);
    let (body, end) = esp[layout.header_len()..].split_at_mut(plain.len());
    body.copy_from_slice(plain);
    write_trailer(end, layout.pad_len(plain.len()), next_header);
    sealer.seal(&mut esp, seq);
    esp
}

#[test]
fn layouts() {
    let rows = [
        (Suite::Aes128Gcm16, 8, 16, 4),
        (Suite::Aes256Gcm16, 8, 16, 4),
        (Suite::ChaCha20Poly1305, 8, 16, 4),
        (Suite::Aes128CbcSha1, 16, 12, 16),
        (Suite::Aes256CbcSha1, 16, 12, 16),
        (Suite::Aes128CbcSha256, 16, 16, 16),
        (Suite::Aes256CbcSha256, 16, 16, 16),
        (Suite::Aes128CbcSha384, 16, 24, 16),
        (Suite::Aes256CbcSha384, 16, 24, 16),
        (Suite::Aes128CbcSha512, 16, 32, 16),
        (Suite::Aes256CbcSha512, 16, 32, 16),
    ];
    assert_eq!(rows.len(), Suite::ALL.len());
    for (suite, iv_len, icv_len, align) in rows {
        let layout = Layout::of(suite);
        assert_eq!(layout, Layout { iv_len, icv_len, align });
        assert_eq!(layout.header_len(), 8 + iv_len);
        for payload in 0..2100 {
            let pad = layout.pad_len(payload);
            assert!(pad < align);
            assert_eq!((payload + pad + 2) % align, 0);
            let sealed = layout.sealed_len(payload);
            assert_eq!(sealed, 8 + iv_len + payload + pad + 2 + icv_len);
            // The largest payload for a length: it fits, and one byte more does not.
            let max = layout.max_payload(sealed);
            assert!(max >= payload && layout.sealed_len(max) <= sealed);
            assert!(layout.sealed_len(max + 1) > sealed);
        }
        for esp_len in 0..=8 + iv_len + icv_len + align - 1 {
            assert_eq!(layout.max_payload(esp_len), 0);
        }
    }
}

/// Each engine against the other, every length.
#[test]
fn engines_agree_on_every_length() {
    for suite in Suite::ALL {
        for esn in [false, true] {
            let sealers = ENGINES.map(|engine| sealer(suite, esn, engine));
            let openers = ENGINES.map(|engine| opener(suite, esn, engine));
            for len in (0..=2000).step_by(if is_aead(suite) { 1 } else { 7 }) {
                let plain = payload(len);
                let seq = if esn { (5 << 32) + len as u64 } else { 1 + len as u64 };
                let packet = seal(&sealers[0], &plain, 41, seq);
                assert_eq!(packet[..8], [&SPI[..], &(seq as u32).to_be_bytes()].concat());
                assert_eq!(seal(&sealers[1], &plain, 41, seq), packet, "{suite} {len}");
                for opener in &openers {
                    let mut esp = packet.clone();
                    let opened = opener.open(&mut esp, seq).unwrap();
                    assert_eq!((&esp[opened.range()], opened.next_header), (&plain[..], 41));
                }
            }
        }
    }
}

/// RFC 4106 section 3.1: the IV is the sequence number, in full, and never repeats.
#[test]
fn aead_ivs_are_the_sequence_number() {
    for suite in Suite::ALL.into_iter().filter(|&suite| is_aead(suite)) {
        for engine in ENGINES {
            let packet = seal(&sealer(suite, true, engine), &payload(40), 4, 0x0102_0304_0506_0708);
            assert_eq!(packet[4..16], [5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        }
    }
}

/// RFC 3602 section 3: unpredictable. It is the sequence number encrypted under the IV key alone.
#[test]
fn cbc_ivs_are_the_encrypted_sequence_number() {
    let ecb = EncryptingKey::ecb(UnboundCipherKey::new(&AES_128, &IV_KEY).unwrap()).unwrap();
    for suite in Suite::ALL.into_iter().filter(|&suite| !is_aead(suite)) {
        for seq in [1, 2, 0xffff_ffff, 0x0102_0304_0506_0708] {
            let packet = seal(&sealer(suite, true, Engine::Ring), &payload(40), 4, seq);
            let mut block = u128::from(seq).to_be_bytes();
            ecb.less_safe_encrypt(&mut block, EncryptionContext::None).unwrap();
            assert_eq!(packet[8..24], block);
        }
    }
}

#[test]
fn keys_of_wrong_length_are_refused() {
    for suite in Suite::ALL {
        for engine in ENGINES {
            let expected = suite.key_len();
            for got in (0..=100).filter(|&got| got != expected) {
                let refused = KeyError::Length { expected, got };
                let key = vec![1; got];
                assert_eq!(Sealer::new(suite, &key, false, &IV_KEY, engine).unwrap_err(), refused);
                assert_eq!(Opener::new(suite, &key, false, engine).unwrap_err(), refused);
            }
        }
    }
}

/// Every bit of the key material counts.
#[test]
fn another_key_does_not_open() {
    for suite in Suite::ALL {
        for engine in ENGINES {
            let packet = seal(&sealer(suite, false, engine), &payload(80), 4, 9);
            let right = opener(suite, false, engine);
            for byte in 0..suite.key_len() {
                let mut wrong = key(suite);
                wrong[byte] ^= 1 << (byte % 8);
                let opener = Opener::new(suite, &wrong, false, engine).unwrap();
                let result = opener.open(&mut packet.clone(), 9);
                if is_aead(suite) || byte >= suite.encryption_key_len() {
                    assert_eq!(result, Err(OpenError::BadIcv));
                } else {
                    // The MAC does not depend on the encryption key; the plaintext does.
                    let (mut good, mut bad) = (packet.clone(), packet.clone());
                    right.open(&mut good, 9).unwrap();
                    let _ = opener.open(&mut bad, 9);
                    assert_ne!(good, bad);
                }
            }
        }
    }
}

/// The high half of the sequence number is authenticated with ESN, and only then.
#[test]
fn the_high_half_counts_with_esn() {
    for suite in Suite::ALL {
        for engine in ENGINES {
            let seq = (3 << 32) + 17;
            let packet = seal(&sealer(suite, true, engine), &payload(100), 4, seq);
            let with_esn = opener(suite, true, engine);
            for wrong in [17, (2 << 32) + 17, (4 << 32) + 17] {
                assert_eq!(with_esn.open(&mut packet.clone(), wrong), Err(OpenError::BadIcv));
            }
            assert!(with_esn.open(&mut packet.clone(), seq).is_ok());
            let without = opener(suite, false, engine);
            assert_eq!(without.open(&mut packet.clone(), seq), Err(OpenError::BadIcv));
            let packet = seal(&sealer(suite, false, engine), &payload(100), 4, 17);
            assert_eq!(with_esn.open(&mut packet.clone(), 17), Err(OpenError::BadIcv));
        }
    }
}

/// Truncated at either end, or lengthened, a packet is an error, never a panic.
#[test]
fn other_lengths_are_refused() {
    for suite in Suite::ALL {
        for engine in ENGINES {
            let packet = seal(&sealer(suite, false, engine), &payload(120), 4, 1);
            let opener = opener(suite, false, engine);
            let layout = opener.layout();
            for len in 0..packet.len() {
                let error = opener.open(&mut packet[..len].to_vec(), 1).unwrap_err();
                let encrypted = len.checked_sub(layout.header_len() + layout.icv_len);
                let expected = match encrypted {
                    None | Some(0..2) => OpenError::TooShort,
                    Some(n) if !is_aead(suite) && n % 16 != 0 => OpenError::NotWholeBlocks,
                    Some(_) => OpenError::BadIcv,
                };
                assert_eq!(error, expected, "{suite} cut to {len}");
                assert!(opener.open(&mut packet[packet.len() - len..].to_vec(), 1).is_err());
            }
            for more in 1..40 {
                let longer = [&packet[..], &vec![0; more]].concat();
                assert!(opener.open(&mut longer.clone(), 1).is_err());
            }
        }
    }
}

/// Authentic packets with every pad length and every kind of padding: ours is one the sender chose.
#[test]
fn padding_is_inspected() {
    for suite in Suite::ALL {
        for engine in ENGINES {
            let (sealer, opener) = (sealer(suite, false, engine), opener(suite, false, engine));
            let layout = sealer.layout();
            let seal_text = |text: &[u8]| {
                let mut esp = vec![0; layout.header_len() + text.len() + layout.icv_len];
                esp[layout.header_len()..][..text.len()].copy_from_slice(text);
                sealer.seal(&mut esp, 1);
                esp
            };
            let mut text = vec![0; 32];
            for pad in 0..=255u8 {
                // More padding than needed is allowed (RFC 4303 section 2.4), as much as there is room for.
                let room = text.len() - 2;
                text.fill(0xaa);
                for n in 1..=pad.min(30) {
                    text[room - usize::from(pad.min(30)) + usize::from(n) - 1] = n;
                }
                text[room..].copy_from_slice(&[pad, 59]);
                let result = opener.open(&mut seal_text(&text), 1);
                if usize::from(pad) > room {
                    assert_eq!(result, Err(OpenError::BadPadding));
                    continue;
                }
                let opened = result.unwrap();
                assert_eq!(opened.range().len(), room - usize::from(pad));
                assert_eq!(opened.next_header, 59);
                for wrong in room - usize::from(pad)..room {
                    let mut text = text.clone();
                    text[wrong] ^= 0x10;
                    assert_eq!(opener.open(&mut seal_text(&text), 1), Err(OpenError::BadPadding));
                }
            }
        }
    }
}

/// A refused packet leaves no plaintext behind.
#[test]
fn nothing_is_released_unless_authentic() {
    for suite in Suite::ALL {
        for engine in ENGINES {
            let plain = payload(600);
            let mut packet = seal(&sealer(suite, false, engine), &plain, 4, 1);
            *packet.last_mut().unwrap() ^= 1;
            let opener = opener(suite, false, engine);
            assert_eq!(opener.open(&mut packet, 1), Err(OpenError::BadIcv));
            assert!(!packet.windows(8).any(|bytes| plain.windows(8).any(|known| known == bytes)));
        }
    }
}

fn any_suite() -> impl Strategy<Value = Suite> {
    prop::sample::select(Suite::ALL.to_vec())
}

fn any_engine() -> impl Strategy<Value = Engine> {
    prop::sample::select(ENGINES.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn what_is_sealed_opens(
        suite in any_suite(),
        from in any_engine(),
        to in any_engine(),
        esn: bool,
        seq in 1u64..,
        material in prop::collection::vec(any::<u8>(), 96),
        plain in prop::collection::vec(any::<u8>(), 0..2000),
        next_header: u8,
    ) {
        let seq = if esn { seq } else { u64::from(seq as u32) };
        let key = &material[..suite.key_len()];
        let sealer = Sealer::new(suite, key, esn, &IV_KEY, from).unwrap();
        let opener = Opener::new(suite, key, esn, to).unwrap();
        let mut packet = seal(&sealer, &plain, next_header, seq);
        let opened = opener.open(&mut packet, seq).unwrap();
        prop_assert_eq!(&packet[opened.range()], &plain);
        prop_assert_eq!(opened.next_header, next_header);
    }

    #[test]
    fn every_flipped_bit_is_noticed(
        suite in any_suite(),
        engine in any_engine(),
        esn: bool,
        len in 0usize..1500,
        positions in prop::collection::vec(any::<prop::sample::Index>(), 24),
    ) {
        let packet = seal(&sealer(suite, esn, engine), &payload(len), 4, 77);
        let opener = opener(suite, esn, engine);
        for position in positions {
            let bit = position.index(packet.len() * 8);
            let mut flipped = packet.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(opener.open(&mut flipped, 77), Err(OpenError::BadIcv));
        }
    }

    #[test]
    fn noise_is_refused(
        suite in any_suite(),
        engine in any_engine(),
        esn: bool,
        noise in prop::collection::vec(any::<u8>(), 0..300),
        seq: u64,
    ) {
        let opener = opener(suite, esn, engine);
        prop_assert!(opener.open(&mut noise.clone(), seq).is_err());
    }
}

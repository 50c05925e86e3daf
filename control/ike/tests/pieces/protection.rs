//! SK payloads: every suite seals what it opens, opens nothing else, and repeats no nonce.

use braid_ike::SecretBytes;
use braid_ike::crypto::{
    Cipher, Contribution, CryptoError, IkeKeys, IkeSuite, Integrity, KeMethod, Opener, Prf, Sealer,
};
use braid_ike::wire::{
    ExchangeType, HEADER_LEN, Header, IkeSpi, Message, Nonce, Notify, NotifyType, Parsed, Payload, parse,
};

use crate::{Counting, hex};

fn suites() -> Vec<IkeSuite> {
    let mut suites = Vec::new();
    for cipher in Cipher::ALL {
        let integrities: Vec<Option<Integrity>> =
            if cipher.is_aead() { vec![None] } else { Integrity::ALL.into_iter().map(Some).collect() };
        for integrity in integrities {
            let (ke, prf) = (KeMethod::Ecp256, Prf::HmacSha256);
            suites.push(IkeSuite { cipher, integrity, prf, ke, additional: Vec::new() });
        }
    }
    suites
}

pub(crate) fn keys(suite: &IkeSuite) -> IkeKeys {
    let nonce = Nonce::new(vec![7; 32]).unwrap();
    let with = Contribution {
        initiator_nonce: &nonce,
        responder_nonce: &nonce,
        initiator_spi: IkeSpi([1; 8]),
        responder_spi: IkeSpi([2; 8]),
    };
    IkeKeys::initial(suite, &SecretBytes::new(vec![9; 32]), with).unwrap()
}

pub(crate) fn message(payloads: Vec<Payload>) -> Message {
    let header = Header::new(IkeSpi([1; 8]), IkeSpi([2; 8]), ExchangeType::Informational, true, false, 5);
    Message { header, payloads }
}

fn open(datagram: &[u8], opener: &Opener) -> Result<Message, CryptoError> {
    match parse(datagram).unwrap() {
        Parsed::Sealed(sealed) => Ok(sealed.open(opener)?.decode().unwrap()),
        Parsed::Plain(_) => panic!("not sealed"),
    }
}

#[test]
fn every_suite_opens_what_it_sealed() {
    for suite in suites() {
        let keys = keys(&suite);
        let (mut sealer, opener) = (keys.sealer(true, 0).unwrap(), keys.opener(false).unwrap());
        for length in 0..40 {
            let payload = Payload::Notify(Notify::new(NotifyType::COOKIE2, vec![3; length]));
            let sent = message(vec![payload]);
            let datagram = sent.seal(&mut sealer, &mut Counting(0)).unwrap();
            assert_eq!(datagram.len(), HEADER_LEN + 4 + sealer.sealed_len(8 + length), "{suite}");
            assert_eq!(open(&datagram, &opener).unwrap(), sent, "{suite}");
        }
        // An empty INFORMATIONAL: the liveness check.
        let empty = message(Vec::new());
        let datagram = empty.seal(&mut sealer, &mut Counting(0)).unwrap();
        assert_eq!(open(&datagram, &opener).unwrap(), empty, "{suite}");
    }
}

#[test]
fn any_changed_bit_is_noticed() {
    for suite in suites() {
        let keys = keys(&suite);
        let mut sealer = keys.sealer(false, 0).unwrap();
        let opener = keys.opener(true).unwrap();
        let sent = message(vec![Payload::Notify(Notify::bare(NotifyType::INITIAL_CONTACT))]);
        let datagram = sent.seal(&mut sealer, &mut Counting(0)).unwrap();
        for at in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[at] ^= 0x10;
            // Some of these no longer parse, and that is noticed too.
            let Ok(Parsed::Sealed(sealed)) = parse(&changed) else { continue };
            assert_eq!(sealed.open(&opener).err(), Some(CryptoError::NotAuthentic), "{suite} octet {at}");
        }
        // The other direction's keys, and the sender's own.
        assert_eq!(open(&datagram, &keys.opener(false).unwrap()).err(), Some(CryptoError::NotAuthentic));
    }
}

#[test]
fn short_bodies_are_not_authentic() {
    for suite in suites() {
        let opener = keys(&suite).opener(true).unwrap();
        for length in 0..70 {
            assert_eq!(opener.open(b"header", &vec![0; length]).err(), Some(CryptoError::NotAuthentic));
        }
    }
}

/// A stash written before the last messages were sealed is adopted under another generation.
#[test]
fn the_explicit_iv_is_generation_then_counter() {
    let suite = IkeSuite {
        cipher: Cipher::Aes256Gcm16,
        integrity: None,
        prf: Prf::HmacSha256,
        ke: KeMethod::Ecp256,
        additional: Vec::new(),
    };
    let keys = keys(&suite);
    let iv = |sealer: &mut Sealer| {
        let datagram = message(Vec::new()).seal(sealer, &mut Counting(0)).unwrap();
        datagram[HEADER_LEN + 4..][..8].to_vec()
    };
    let mut first = keys.sealer(true, 0).unwrap();
    assert_eq!(iv(&mut first), hex("00000000 00000000"));
    assert_eq!(iv(&mut first), hex("00000000 00000001"));
    assert_eq!(first.position(), (0, 2));
    let mut adopted = keys.sealer(true, 0x0102_0304).unwrap();
    assert_eq!(iv(&mut adopted), hex("01020304 00000000"));
    let mut next = keys.sealer(true, u32::MAX).unwrap();
    assert_eq!(iv(&mut next), hex("ffffffff 00000000"));
}

/// RFC 7296 section 3.14: padding of any length and content that the sender likes.
#[test]
fn longer_padding_is_accepted() {
    let suite = IkeSuite {
        cipher: Cipher::Aes128Cbc,
        integrity: Some(Integrity::HmacSha256_128),
        prf: Prf::HmacSha256,
        ke: KeMethod::Ecp256,
        additional: Vec::new(),
    };
    let (encryption, integrity) = (SecretBytes::new(vec![1; 16]), SecretBytes::new(vec![2; 32]));
    let opener = Opener::new(&suite, &encryption, &integrity).unwrap();
    let seal = |plain: &[u8]| {
        use aws_lc_rs::{cipher, hmac, iv};
        let key = cipher::UnboundCipherKey::new(&cipher::AES_128, &[1; 16]).unwrap();
        let key = cipher::EncryptingKey::cbc(key).unwrap();
        let mut body = plain.to_vec();
        let context = cipher::EncryptionContext::Iv128(iv::FixedLength::from(&[3; 16]));
        key.less_safe_encrypt(&mut body, context).unwrap();
        let mut sealed = [3; 16].to_vec();
        sealed.extend_from_slice(&body);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[2; 32]);
        let tag = hmac::sign(&key, &[b"header", sealed.as_slice()].concat());
        sealed.extend_from_slice(&tag.as_ref()[..16]);
        sealed
    };
    let mut plain = vec![0xaa; 48];
    plain[47] = 44;
    assert_eq!(*opener.open(b"header", &seal(&plain)).unwrap(), [0xaa; 3]);
    plain[47] = 47;
    assert_eq!(opener.open(b"header", &seal(&plain)).unwrap().len(), 0);
    // More padding than there is.
    plain[47] = 48;
    assert_eq!(opener.open(b"header", &seal(&plain)).err(), Some(CryptoError::NotAuthentic));
}

#[test]
fn key_material_of_another_length_is_refused() {
    for suite in suites() {
        let exact = suite.cipher.key_len() + suite.cipher.salt_len();
        let integrity = SecretBytes::new(vec![0; suite.integrity.map_or(0, Integrity::key_len)]);
        let key = |length: usize| SecretBytes::new(vec![0; length]);
        assert!(Sealer::new(&suite, &key(exact), &integrity, 0).is_ok(), "{suite}");
        for length in [0, exact - 1, exact + 1] {
            assert!(Sealer::new(&suite, &key(length), &integrity, 0).is_err(), "{suite}");
            assert!(Opener::new(&suite, &key(length), &integrity).is_err(), "{suite}");
        }
        if suite.integrity.is_some() {
            assert!(Sealer::new(&suite, &key(exact), &key(1), 0).is_err(), "{suite}");
        }
    }
}

/// A Notify COOKIE2 "abc" as the second message of generation 0x01020304, sealed by Python's `cryptography`
/// and `hmac`: keys count up from 1, integrity keys from 0x80, the CBC IV from 0x10.
const SEALED: [(Cipher, Option<Integrity>, &str); 11] = [
    (
        Cipher::Aes128Gcm16,
        None,
        "010101010101010102020202020202022e20250800000005000000442900002801020304000000015230f791 \
         e15a324a9b9665e819bffa0dac4aaefabe5553a2c1a10f3f",
    ),
    (
        Cipher::Aes256Gcm16,
        None,
        "010101010101010102020202020202022e202508000000050000004429000028010203040000000136120436 \
         bd3d0ec425e157d6910ec7a024d17f3f7ff6302fc7bd69b2",
    ),
    (
        Cipher::ChaCha20Poly1305,
        None,
        "010101010101010102020202020202022e20250800000005000000442900002801020304000000019ff73ae1 \
         7fbf0785e3ccef0254860ac7a324346cbede85ea819f2058",
    ),
    (
        Cipher::Aes128Cbc,
        Some(Integrity::HmacSha1_96),
        "010101010101010102020202020202022e202508000000050000004c29000030101112131415161718191a1b \
         1c1d1e1faa12e571f9423cd7a220a019441a1313add8c4491f7b98cd244b7aab",
    ),
    (
        Cipher::Aes128Cbc,
        Some(Integrity::HmacSha256_128),
        "010101010101010102020202020202022e202508000000050000005029000034101112131415161718191a1b \
         1c1d1e1faa12e571f9423cd7a220a019441a131325c83953461bc7deddbcad7019c572e5",
    ),
    (
        Cipher::Aes128Cbc,
        Some(Integrity::HmacSha384_192),
        "010101010101010102020202020202022e20250800000005000000582900003c101112131415161718191a1b \
         1c1d1e1faa12e571f9423cd7a220a019441a13137ad9cc1514834842488cf44eeeebae5e99e7b944e8123df0",
    ),
    (
        Cipher::Aes128Cbc,
        Some(Integrity::HmacSha512_256),
        "010101010101010102020202020202022e202508000000050000006029000044101112131415161718191a1b \
         1c1d1e1faa12e571f9423cd7a220a019441a13130f25b28df36e7e519c57aceb1493b2159ddb2d2145d2f470 \
         7215b8f01d770033",
    ),
    (
        Cipher::Aes256Cbc,
        Some(Integrity::HmacSha1_96),
        "010101010101010102020202020202022e202508000000050000004c29000030101112131415161718191a1b \
         1c1d1e1f97ff3d78c3cbc040e25a155f4a625de13da27ceb7b189d1712ecdb39",
    ),
    (
        Cipher::Aes256Cbc,
        Some(Integrity::HmacSha256_128),
        "010101010101010102020202020202022e202508000000050000005029000034101112131415161718191a1b \
         1c1d1e1f97ff3d78c3cbc040e25a155f4a625de11d0a68001c68245faa0ac377d78b5e3a",
    ),
    (
        Cipher::Aes256Cbc,
        Some(Integrity::HmacSha384_192),
        "010101010101010102020202020202022e20250800000005000000582900003c101112131415161718191a1b \
         1c1d1e1f97ff3d78c3cbc040e25a155f4a625de1a238f643c05618ade5ff136faf5895ce3595982cc8b1d005",
    ),
    (
        Cipher::Aes256Cbc,
        Some(Integrity::HmacSha512_256),
        "010101010101010102020202020202022e202508000000050000006029000044101112131415161718191a1b \
         1c1d1e1f97ff3d78c3cbc040e25a155f4a625de1aad955a0c78a9bc3578a47404d357135f91eba08330012d3 \
         4fe5dd79284c092f",
    ),
];

#[test]
fn every_suite_matches_an_independent_implementation() {
    let counting = |start: u8, length: usize| SecretBytes::new((start..).take(length).collect());
    for (cipher, integrity, expected) in SEALED {
        let (ke, prf) = (KeMethod::Ecp256, Prf::HmacSha256);
        let suite = IkeSuite { cipher, integrity, prf, ke, additional: Vec::new() };
        let encryption = counting(1, cipher.key_len() + cipher.salt_len());
        let integrity = counting(0x80, integrity.map_or(0, Integrity::key_len));
        let mut sealer = Sealer::new(&suite, &encryption, &integrity, 0x0102_0304).unwrap();
        let opener = Opener::new(&suite, &encryption, &integrity).unwrap();
        let sent = message(vec![Payload::Notify(Notify::new(NotifyType::COOKIE2, b"abc".to_vec()))]);
        let mut rng = Counting(0);
        sent.seal(&mut sealer, &mut rng).unwrap();
        assert_eq!(sent.seal(&mut sealer, &mut rng).unwrap(), hex(expected), "{suite}");
        assert_eq!(open(&hex(expected), &opener).unwrap(), sent, "{suite}");
    }
}

/// RFC 7634 appendix B.
#[test]
fn chacha20_poly1305_opens_the_rfcs_message() {
    let suite = IkeSuite {
        cipher: Cipher::ChaCha20Poly1305,
        integrity: None,
        prf: Prf::HmacSha256,
        ke: KeMethod::Curve25519,
        additional: Vec::new(),
    };
    let key = hex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f a0a1a2a3");
    let opener = Opener::new(&suite, &SecretBytes::new(key), &SecretBytes::default()).unwrap();
    let datagram =
        hex("c0c1c2c3c4c5c6c7 d0d1d2d3d4d5d6d7 2e202500 00000009 00000045 29000029 1011121314151617 \
         610394701f8d017f7c12924889 6b71bfe25236efd7cdc67066906315b2");
    let opened = open(&datagram, &opener).unwrap();
    assert_eq!(opened.header.exchange, ExchangeType::Informational);
    let window = Notify::new(NotifyType::SET_WINDOW_SIZE, vec![0, 0, 0, 10]);
    assert_eq!(opened.payloads, [Payload::Notify(window)]);
}

//! 32-byte keys in base64, as `wg` reads and writes them.
//!
//! Secrets are converted without branches or table look-ups that depend on them, are zeroized and never
//! shown. X25519 (RFC 7748) is AWS-LC's.

use core::{fmt, str::FromStr};

use aws_lc_rs::agreement;
use zeroize::Zeroizing;

/// Length of a key in base64 (RFC 4648 section 4), padding included.
pub(crate) const BASE64_LEN: usize = 44;

/// A private or preshared key.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<[u8; 32]>);

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// A text that is no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadKey;

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Secret(bytes)
    }

    /// A private key of random bytes.
    pub fn private(mut random: Zeroizing<[u8; 32]>) -> Self {
        // RFC 7748 section 5: decodeScalar25519. Done again wherever the key is used, but `wg` writes keys so.
        random[0] &= 248;
        random[31] = (random[31] & 127) | 64;
        Secret(random)
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// In base64.
    pub fn to_base64(&self) -> Zeroizing<String> {
        encode(&self.0)
    }

    /// The public key that belongs to this private key.
    pub fn public(&self) -> PublicKey {
        let private = agreement::PrivateKey::from_private_key(&agreement::X25519, self.expose());
        // Any 32 bytes are a private key, so AWS-LC has nothing to refuse.
        let public = private.expect("X25519 takes every key").compute_public_key();
        let public = public.expect("X25519 takes every key");
        PublicKey(public.as_ref().try_into().expect("X25519 has keys of 32 bytes"))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(32 bytes)")
    }
}

impl FromStr for Secret {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        decode(text.as_bytes()).map(Secret)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        decode(text.as_bytes()).map(|bytes| PublicKey(*bytes))
    }
}

fn encode(bytes: &[u8; 32]) -> Zeroizing<String> {
    // With room for the end of a line: a longer string would leave a copy in freed memory.
    let mut text = Zeroizing::new(String::with_capacity(BASE64_LEN + 1));
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            text.push(if place > group.len() { '=' } else { digit((bits >> shift) as u8 & 63) });
        }
    }
    text
}

/// Only what [`encode`] writes: a key has one text.
fn decode(text: &[u8]) -> Result<Zeroizing<[u8; 32]>, BadKey> {
    let (Ok(text), Some(b'=')) = (<&[u8; BASE64_LEN]>::try_from(text), text.last()) else {
        return Err(BadKey);
    };
    let mut bytes = Zeroizing::new([0; 32]);
    let mut wrong = 0;
    for (index, group) in text.chunks(4).enumerate() {
        let mut bits = 0;
        for (place, character) in group.iter().enumerate() {
            // The padding counts as zeros.
            let padding = 4 * index + place == BASE64_LEN - 1;
            let value = if padding { 0 } else { value(*character) };
            wrong |= value >> 6;
            bits = bits << 6 | (value & 63);
        }
        for (byte, shift) in bytes.iter_mut().skip(3 * index).zip([16, 8, 0]) {
            *byte = (bits >> shift) as u8;
        }
        // Bits behind the last byte are zero (RFC 4648 section 3.5).
        wrong |= if index == 10 { bits & 0xff } else { 0 };
    }
    if wrong == 0 { Ok(bytes) } else { Err(BadKey) }
}

/// The character of six bits: '0' to '9' follow "A-Za-z" by arithmetic, not by a table.
fn digit(six: u8) -> char {
    let six = i32::from(six);
    // Each shift is all ones exactly if `six` is above its bound.
    let above = |bound: i32, step: i32| ((bound - six) >> 8) & step;
    let code = six + 65 + above(25, 6) + above(51, -75) + above(61, -15) + above(62, 3);
    code as u8 as char
}

/// The six bits of a character; bits beyond them for what is none.
fn value(character: u8) -> i32 {
    let code = i32::from(character);
    // All ones exactly if the code lies within the bounds, times what it stands for.
    let within = |first: i32, last: i32, value: i32| ((first - 1 - code) & (code - last - 1)) >> 8 & value;
    -1 + within(65, 90, code - 64)
        + within(97, 122, code - 70)
        + within(48, 57, code + 5)
        + within(43, 43, 63)
        + within(47, 47, 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> [u8; 32] {
        core::array::from_fn(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).unwrap())
    }

    fn secret(hex: &str) -> Secret {
        Secret::new(Zeroizing::new(bytes(hex)))
    }

    #[test]
    fn public_keys_are_those_of_rfc_7748_section_6_1() {
        for (private, public) in [
            (
                "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
                "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
            ),
            (
                "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
                "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
            ),
        ] {
            let given = secret(private);
            assert_eq!(given.public(), PublicKey(bytes(public)));
            // Both of the RFC's keys are random bytes: clamping them changes their text, not their meaning.
            let clamped = Secret::private(Zeroizing::new(bytes(private)));
            assert_ne!(clamped, given);
            assert_eq!(clamped.public(), given.public());
        }
    }

    #[test]
    fn every_value_has_its_character() {
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        for (six, expected) in alphabet.chars().enumerate() {
            assert_eq!(digit(six as u8), expected);
        }
        for code in 0..=255u8 {
            let expected = alphabet.bytes().position(|known| known == code).map_or(-1, |six| six as i32);
            assert_eq!(value(code), expected, "{code}");
        }
    }

    #[test]
    fn a_text_that_encode_does_not_write_is_no_key() {
        let right = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let key: PublicKey = right.parse().unwrap();
        assert_eq!(key.0, core::array::from_fn(|index| index as u8));
        assert_eq!(key.to_string(), right);
        for wrong in [
            "",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8==",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8A",
            // Bits behind the last byte.
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=",
            "AAE=AwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh-=",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdH===",
            "äAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        ] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(BadKey), "{wrong}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", secret(&"41".repeat(32))), "Secret(32 bytes)");
    }
}

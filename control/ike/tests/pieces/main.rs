//! The pieces an exchange is made of, driven through the crate's public interface: primitives against
//! published vectors, key derivation against an independent implementation, messages against another parser,
//! authentication with certificates made for the test.

mod authentication;
mod corpus;
mod derivation;
mod fragments;
mod key_exchange;
mod messages;
mod protection;

use braid_ike::Random;

/// Octets counting up from a start: what "random" means in these tests.
pub(crate) struct Counting(pub(crate) u8);

impl Random for Counting {
    fn fill(&mut self, out: &mut [u8]) {
        for octet in out {
            *octet = self.0;
            self.0 = self.0.wrapping_add(1);
        }
    }
}

/// Gives one given number, right-aligned, whatever length is asked for.
pub(crate) struct Given(pub(crate) Vec<u8>);

impl Random for Given {
    fn fill(&mut self, out: &mut [u8]) {
        out.fill(0);
        let start = out.len().checked_sub(self.0.len()).expect("fits");
        out[start..].copy_from_slice(&self.0);
    }
}

/// Octets from hexadecimal, spaces ignored.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).expect("hex") as u8).collect();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()
}

/// SHA-256 in hexadecimal: how long expected values are written here.
pub(crate) fn digest(octets: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, octets);
    digest.as_ref().iter().map(|octet| format!("{octet:02x}")).collect()
}

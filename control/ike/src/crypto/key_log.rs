//! The keys of an IKE SA as Wireshark reads them: a row of its table `ikev2_decryption_table`.
//!
//! Not done: ChaCha20-Poly1305, which that table (Wireshark 4.0) does not know.

use std::fmt::Write;

use super::{Cipher, IkeKeys, Integrity};
use crate::SecretBytes;
use crate::wire::IkeSpi;

/// Longer than any row, so that no copy of it is left behind by growing.
const MAX_ROW: usize = 1024;

impl IkeKeys {
    /// The row for the SA with these SPIs, with its end of line; none for a cipher that Wireshark does not know.
    pub fn wireshark_row(&self, spi_i: IkeSpi, spi_r: IkeSpi) -> Option<SecretBytes> {
        let (cipher, integrity) = (cipher(self.suite().cipher)?, integrity(self.suite().integrity));
        let [sk_ei, sk_er, sk_ai, sk_ar] = self.message_keys().map(SecretBytes::expose);
        let mut row = String::with_capacity(MAX_ROW);
        for octets in [&spi_i.0[..], &spi_r.0, sk_ei, sk_er] {
            hex(&mut row, octets);
        }
        row.push_str(&format!("\"{cipher}\","));
        hex(&mut row, sk_ai);
        hex(&mut row, sk_ar);
        row.push_str(&format!("\"{integrity}\"\n"));
        Some(SecretBytes::new(row.into_bytes()))
    }
}

fn hex(row: &mut String, octets: &[u8]) {
    for octet in octets {
        // Writing to a String does not fail.
        let _ = write!(row, "{octet:02x}");
    }
    row.push(',');
}

fn cipher(cipher: Cipher) -> Option<&'static str> {
    match cipher {
        Cipher::Aes128Cbc => Some("AES-CBC-128 [RFC3602]"),
        Cipher::Aes256Cbc => Some("AES-CBC-256 [RFC3602]"),
        Cipher::Aes128Gcm16 => Some("AES-GCM-128 with 16 octet ICV [RFC5282]"),
        Cipher::Aes256Gcm16 => Some("AES-GCM-256 with 16 octet ICV [RFC5282]"),
        Cipher::ChaCha20Poly1305 => None,
    }
}

fn integrity(integrity: Option<Integrity>) -> &'static str {
    match integrity {
        None => "NONE [RFC4306]",
        Some(Integrity::HmacSha1_96) => "HMAC_SHA1_96 [RFC2404]",
        Some(Integrity::HmacSha256_128) => "HMAC_SHA2_256_128 [RFC4868]",
        Some(Integrity::HmacSha384_192) => "HMAC_SHA2_384_192 [RFC4868]",
        Some(Integrity::HmacSha512_256) => "HMAC_SHA2_512_256 [RFC4868]",
    }
}

#[cfg(test)]
mod tests {
    use super::super::{IkeSuite, KeMethod, Prf};
    use super::*;

    fn row(cipher: Cipher, integrity: Option<Integrity>) -> Option<String> {
        let suite = IkeSuite {
            cipher,
            integrity,
            prf: Prf::HmacSha256,
            ke: KeMethod::from_number(19).unwrap(),
            additional: Vec::new(),
        };
        let lengths = IkeKeys::lengths(&suite);
        // Of each key all octets are its place in the derivation: SK_d, ai, ar, ei, er, pi, pr.
        let octets = lengths.iter().zip(1_u8..).flat_map(|(length, octet)| vec![octet; *length]);
        let keys = IkeKeys::import(&suite, &SecretBytes::new(octets.collect())).unwrap();
        let row = keys.wireshark_row(IkeSpi([0xa1; 8]), IkeSpi([0x0b; 8]))?;
        Some(String::from_utf8(row.expose().to_vec()).unwrap())
    }

    #[test]
    fn rows_are_those_of_wiresharks_table() {
        let (key, salted) = (|octet: &str| octet.repeat(32), |octet: &str| octet.repeat(36));
        let spis = format!("{},{}", "a1".repeat(8), "0b".repeat(8));
        assert_eq!(
            row(Cipher::Aes256Gcm16, None).unwrap(),
            format!(
                "{spis},{},{},\"AES-GCM-256 with 16 octet ICV [RFC5282]\",,,\"NONE [RFC4306]\"\n",
                salted("04"),
                salted("05")
            )
        );
        assert_eq!(
            row(Cipher::Aes256Cbc, Some(Integrity::HmacSha256_128)).unwrap(),
            format!(
                "{spis},{},{},\"AES-CBC-256 [RFC3602]\",{},{},\"HMAC_SHA2_256_128 [RFC4868]\"\n",
                key("04"),
                key("05"),
                key("02"),
                key("03")
            )
        );
        assert_eq!(row(Cipher::ChaCha20Poly1305, None), None);
        let longest = row(Cipher::Aes256Cbc, Some(Integrity::HmacSha512_256)).unwrap();
        assert!(longest.len() <= MAX_ROW);
    }
}

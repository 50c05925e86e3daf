//! What another implementation of ESP and IKE makes of captured packets: tshark, given the keys, says whether
//! each is authentic and what is inside.
//!
//! Not done: ChaCha20-Poly1305, which Debian's tshark (4.0) does not know, and extended sequence
//! numbers, whose upper half it cannot be told.

use crate::capture::Recorded;
use crate::process::{check, run};
use crate::{Error, Result};
use std::net::IpAddr;
use std::process::Command;

/// An ESP SA, as tshark is told of it.
#[derive(Debug, Clone)]
pub struct EspSa {
    /// Outer source of its packets.
    pub source: IpAddr,
    /// Outer destination of its packets.
    pub destination: IpAddr,
    /// Its SPI.
    pub spi: u32,
    /// How it is encrypted.
    pub cipher: Cipher,
    /// Key of the cipher in hexadecimal, AES-GCM's salt behind it (RFC 4106 section 8.1).
    pub key: String,
    /// Key of the integrity algorithm in hexadecimal; empty with AES-GCM.
    pub integrity_key: String,
}

/// What tshark can decrypt and check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-GCM with an ICV of 16 octets (RFC 4106).
    Gcm16,
    /// AES-CBC (RFC 3602) with HMAC-SHA1-96 (RFC 2404).
    CbcSha1,
    /// AES-CBC with HMAC-SHA-256-128 (RFC 4868).
    CbcSha256,
    /// AES-CBC with HMAC-SHA-384-192 (RFC 4868).
    CbcSha384,
    /// AES-CBC with HMAC-SHA-512-256 (RFC 4868).
    CbcSha512,
}

impl Cipher {
    /// Names of encryption and integrity in tshark's table of SAs.
    fn names(self) -> (&'static str, &'static str) {
        const CBC: &str = "AES-CBC [RFC3602]";
        match self {
            Self::Gcm16 => ("AES-GCM with 16 octet ICV [RFC4106]", "NULL"),
            Self::CbcSha1 => (CBC, "HMAC-SHA-1-96 [RFC2404]"),
            Self::CbcSha256 => (CBC, "HMAC-SHA-256-128 [RFC4868]"),
            Self::CbcSha384 => (CBC, "HMAC-SHA-384-192 [RFC4868]"),
            Self::CbcSha512 => (CBC, "HMAC-SHA-512-256 [RFC4868]"),
        }
    }
}

impl EspSa {
    fn row(&self) -> String {
        let family = if self.source.is_ipv4() { "IPv4" } else { "IPv6" };
        let (cipher, integrity) = self.cipher.names();
        let hex = |key: &str| if key.is_empty() { String::new() } else { format!("0x{key}") };
        let (key, integrity_key) = (hex(&self.key), hex(&self.integrity_key));
        let fields = [
            family,
            &self.source.to_string(),
            &self.destination.to_string(),
            &format!("{:#010x}", self.spi),
            cipher,
            &key,
            integrity,
            &integrity_key,
        ];
        format!("uat:esp_sa:{}", fields.map(|field| format!("\"{field}\"")).join(","))
    }
}

/// A packet of ESP as tshark sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dissected {
    /// Its SPI.
    pub spi: u32,
    /// Its ICV was checked and is right.
    pub icv_good: bool,
    /// Its ICV was checked and is wrong.
    pub icv_bad: bool,
    /// Layers from the link's up, as in `eth:ethertype:ip:esp:ip:icmp:data`.
    pub layers: String,
    /// Destination addresses, the outer one first, one family after the other.
    pub destinations: Vec<String>,
}

impl Dissected {
    /// The layers within ESP; empty for what could not be decrypted.
    #[must_use]
    pub fn inside(&self) -> &str {
        self.layers.split_once(":esp:").map_or("", |(_, inside)| inside)
    }
}

/// Has tshark read a capture and hands out its packets of ESP. Fields of a whole packet are needed:
/// captures must not be cut short.
///
/// # Errors
/// When tshark is missing, does not know an algorithm, or says what is not understood.
pub fn esp(capture: &Recorded, sas: &[EspSa]) -> Result<Vec<Dissected>> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(capture.path()).args(["-n", "-Y", "esp", "-T", "fields"]);
    for preference in ["enable_encryption_decode", "enable_authentication_check"] {
        command.args(["-o", &format!("esp.{preference}:TRUE")]);
    }
    for sa in sas {
        command.args(["-o", &sa.row()]);
    }
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let ran = check("tshark", run(command)?)?;
    ran.stdout
        .lines()
        .map(|line| read(line).ok_or_else(|| Error::parse("tshark", format!("what is {line:?}"))))
        .collect()
}

const FIELDS: [&str; 6] = ["esp.spi", "esp.icv_good", "esp.icv_bad", "frame.protocols", "ip.dst", "ipv6.dst"];

fn read(line: &str) -> Option<Dissected> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [spi, good, bad, layers, v4, v6] = fields[..] else { return None };
    let is_true = |field: &str| matches!(field, "1" | "True");
    Some(Dissected {
        spi: u32::from_str_radix(spi.strip_prefix("0x")?, 16).ok()?,
        icv_good: is_true(good),
        icv_bad: is_true(bad),
        layers: layers.to_owned(),
        destinations: v4
            .split(',')
            .chain(v6.split(','))
            .map(str::to_owned)
            .filter(|it| !it.is_empty())
            .collect(),
    })
}

/// A message of IKE as tshark sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeMessage {
    /// RFC 7296 section 3.1: 34 is IKE_SA_INIT, 35 IKE_AUTH, 36 CREATE_CHILD_SA, 37 INFORMATIONAL.
    pub exchange: u8,
    /// Types of its payloads (RFC 7296 section 3.2), those within the Encrypted payload (46) behind it.
    pub payloads: Vec<u8>,
}

/// Has tshark read the IKE messages of a capture with the keys that a gateway logged. Those that it cannot
/// decrypt have nothing behind their Encrypted payload.
///
/// # Errors
/// When tshark is missing, finds a message malformed or not authentic, or says what is not understood.
pub fn ike(capture: &Recorded, key_log: &str) -> Result<Vec<IkeMessage>> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(capture.path()).args(["-n", "-Y", "isakmp", "-T", "fields"]);
    for row in key_log.lines() {
        command.args(["-o", &format!("uat:ikev2_decryption_table:{row}")]);
    }
    for field in ["isakmp.exchangetype", "isakmp.typepayload", "_ws.expert.message"] {
        command.args(["-e", field]);
    }
    let ran = check("tshark", run(command)?)?;
    let understood =
        |line: &str| read_ike(line).ok_or_else(|| Error::parse("tshark", format!("what is {line:?}")));
    ran.stdout.lines().map(understood).collect()
}

fn read_ike(line: &str) -> Option<IkeMessage> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [exchange, payloads, ""] = fields[..] else { return None };
    let payloads = payloads.split(',').map(|kind| kind.parse().ok()).collect::<Option<Vec<u8>>>()?;
    Some(IkeMessage { exchange: exchange.parse().ok()?, payloads })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_tshark_says() {
        let line = "0x00001001\t1\t0\teth:ethertype:ipv6:esp:ip:icmp:data\t10.2.0.2\t2001:db8::1";
        let read = read(line).unwrap();
        assert_eq!((read.spi, read.icv_good, read.icv_bad), (0x1001, true, false));
        assert_eq!((read.inside(), read.destinations.len()), ("ip:icmp:data", 2));
        let sealed = super::read("0x00001001\t\t\teth:ethertype:ip:esp\t192.0.2.1\t").unwrap();
        assert_eq!((sealed.inside(), sealed.icv_good), ("", false));
        assert_eq!(super::read("0x1001\t1"), None);
    }

    #[test]
    fn tells_tshark_of_an_sa() {
        let sa = EspSa {
            source: "192.0.2.1".parse().unwrap(),
            destination: "198.51.100.1".parse().unwrap(),
            spi: 0x1001,
            cipher: Cipher::CbcSha1,
            key: "00ff".to_owned(),
            integrity_key: "aa".to_owned(),
        };
        let row = "uat:esp_sa:\"IPv4\",\"192.0.2.1\",\"198.51.100.1\",\"0x00001001\",\"AES-CBC [RFC3602]\",\
                   \"0x00ff\",\"HMAC-SHA-1-96 [RFC2404]\",\"0xaa\"";
        assert_eq!(sa.row(), row);
    }
}

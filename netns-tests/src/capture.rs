//! Packets seen on a device, by tcpdump, read back into memory.

use crate::guard::{TempDir, temp_dir};
use crate::{Error, Netns, Process, Result};
use nix::sys::signal::Signal;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ETHERNET: u32 = 1;
const RAW_IP: u32 = 101;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
/// Holds what a loaded machine leaves unread for a while.
const BUFFER_KIB: u32 = 65_536;
/// Nanosecond pcap, written by `--time-stamp-precision=nano`, in this machine's byte order.
const MAGIC_NANO: u32 = 0xa1b2_3c4d;

/// A capture in progress; dropped, it ends and is forgotten.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
    directory: TempDir,
}

/// A capture that has ended; dropped, its file goes.
#[derive(Debug)]
pub struct Recorded {
    file: PathBuf,
    _directory: TempDir,
}

/// One captured packet.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Since the epoch.
    pub time: Duration,
    /// From the IP header on, as far as captured.
    pub ip: Vec<u8>,
    /// Length on the wire from the IP header on, in bytes; a GSO super-packet counts as one.
    pub wire_length: usize,
}

/// What a packet's headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number (IPv6: the first next header).
    pub protocol: u8,
    /// Source and destination port, for TCP and UDP (not in later fragments).
    pub ports: Option<(u16, u16)>,
    /// Bytes of all headers counted here: IP, and UDP's eight.
    pub length: usize,
}

impl Capture {
    /// Starts capturing on a device; returns when it is listening. `filter` is pcap's language,
    /// empty for everything; `snap` the bytes kept per packet.
    ///
    /// # Errors
    /// When tcpdump is missing or refuses.
    pub fn start(netns: &Netns, device: &str, filter: &str, snap: u32) -> Result<Self> {
        Self::start_with_buffer(netns, device, filter, snap, BUFFER_KIB)
    }

    /// As [`Capture::start`], with a ring in the kernel of so many KiB: a processor is held up while a large one is
    /// made.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn start_with_buffer(
        netns: &Netns,
        device: &str,
        filter: &str,
        snap: u32,
        buffer_kib: u32,
    ) -> Result<Self> {
        let directory = temp_dir("pcap")?;
        let file = directory.path().join("packets");
        let path = file.to_string_lossy().into_owned();
        let (snap, buffer_kib) = (snap.to_string(), buffer_kib.to_string());
        let mut argv = vec!["tcpdump", "-i", device, "-n", "-U", "-Z", "root", "-w", &path];
        argv.extend(["--immediate-mode", "-B", &buffer_kib, "--time-stamp-precision=nano", "-s", &snap]);
        if !filter.is_empty() {
            argv.push(filter);
        }
        let mut process = netns.spawn(&argv)?;
        process.wait_for_output("listening on", Duration::from_secs(10))?;
        Ok(Self { process, file, directory })
    }

    /// Ends the capture and hands out what was seen.
    ///
    /// # Errors
    /// When packets were lost to the capture itself: its absence would prove nothing then.
    pub fn stop(self) -> Result<Vec<Packet>> {
        self.record()?.packets()
    }

    /// Ends the capture and keeps what was seen as a file, for others to read.
    ///
    /// # Errors
    /// As [`Capture::stop`].
    pub fn record(mut self) -> Result<Recorded> {
        self.settle();
        self.process.signal(Signal::SIGINT);
        self.process.wait(Duration::from_secs(10))?;
        let said = self.process.stderr();
        let lost = said.lines().find(|line| line.contains("dropped by kernel"));
        if lost.is_none_or(|line| !line.starts_with("0 ")) {
            return Err(Error::parse("tcpdump", format!("capture is not complete: {said}")));
        }
        Ok(Recorded { file: self.file, _directory: self.directory })
    }

    /// Waits, for two seconds at most, until no more packets are being written: those still in the
    /// kernel's ring are lost when tcpdump ends.
    fn settle(&self) {
        /// tcpdump may not come to a processor for a while.
        const QUIET: u32 = 3;
        let length = || fs::metadata(&self.file).map_or(0, |metadata| metadata.len());
        let (mut before, mut quiet) = (length(), 0);
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(100));
            let now = length();
            quiet = if now == before { quiet + 1 } else { 0 };
            if quiet == QUIET {
                return;
            }
            before = now;
        }
    }
}

impl Recorded {
    /// The file, in pcap's format.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// What was seen.
    ///
    /// # Errors
    /// When the file is not what tcpdump writes.
    pub fn packets(&self) -> Result<Vec<Packet>> {
        parse(&fs::read(&self.file).map_err(Error::io("cannot read the capture"))?)
    }
}

impl Packet {
    /// Its headers; `None` when it is not IP or cut too short.
    #[must_use]
    pub fn headers(&self) -> Option<Headers> {
        headers(&self.ip)
    }

    /// True when it is UDP from or to one of the ports.
    #[must_use]
    pub fn is_udp_of(&self, wanted: &[u16]) -> bool {
        self.headers().is_some_and(|headers| {
            headers.protocol == 17
                && headers.ports.is_some_and(|(from, to)| wanted.contains(&from) || wanted.contains(&to))
        })
    }

    /// UDP payload, as far as captured.
    #[must_use]
    pub fn udp_payload(&self) -> Option<&[u8]> {
        let headers = self.headers().filter(|headers| headers.protocol == 17)?;
        self.ip.get(headers.length..)
    }

    /// True when it is an ESP packet in UDP (RFC 3948): port 4500, an SPI that is no marker,
    /// and not a keepalive of one byte.
    #[must_use]
    pub fn is_esp_in_udp(&self) -> bool {
        self.is_udp_of(&[4500])
            && self.udp_payload().is_some_and(|payload| payload.len() >= 8 && payload[..4] != [0, 0, 0, 0])
    }

    /// The MTU that it names, when it is an ICMP "fragmentation needed" (RFC 1191 section 4) or an
    /// ICMPv6 "packet too big" (RFC 4443 section 3.2).
    #[must_use]
    pub fn too_big(&self) -> Option<u32> {
        let headers = self.headers()?;
        let icmp = self.ip.get(headers.length..headers.length + 8)?;
        let mtu = u32::from_be_bytes([icmp[4], icmp[5], icmp[6], icmp[7]]);
        match (headers.protocol, icmp[0], icmp[1]) {
            (1, 3, 4) => Some(mtu & 0xFFFF),
            (58, 2, 0) => Some(mtu),
            _ => None,
        }
    }

    /// True when it is a WireGuard data message (type 4) on the port.
    #[must_use]
    pub fn is_wireguard_data(&self, port: u16) -> bool {
        self.is_udp_of(&[port])
            && self.udp_payload().is_some_and(|payload| payload.starts_with(&[4, 0, 0, 0]))
    }
}

fn headers(ip: &[u8]) -> Option<Headers> {
    let (source, destination, protocol, mut length, first) = match ip.first()? >> 4 {
        4 => {
            let fixed = ip.get(..20)?;
            let length = usize::from(fixed[0] & 0x0f) * 4;
            let first = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff == 0;
            let address =
                |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]).into();
            (address(12), address(16), fixed[9], length, first)
        }
        6 => {
            let address = |at: usize| {
                let bytes: [u8; 16] = ip.get(at..at + 16)?.try_into().ok()?;
                Some(IpAddr::V6(Ipv6Addr::from(bytes)))
            };
            (address(8)?, address(24)?, *ip.get(6)?, 40, true)
        }
        _ => return None,
    };
    let mut ports = None;
    if first && matches!(protocol, 6 | 17) {
        let bytes = ip.get(length..length + 4)?;
        ports = Some((u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])));
        if protocol == 17 {
            length += 8;
        }
    }
    Some(Headers { source, destination, protocol, ports, length })
}

fn parse(bytes: &[u8]) -> Result<Vec<Packet>> {
    let bad = |what: &str| Error::parse("capture file", what);
    let word =
        |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    if word(0) != Some(MAGIC_NANO) {
        return Err(bad("not a nanosecond pcap file"));
    }
    let link_header = match word(20) {
        Some(ETHERNET) => 14,
        Some(RAW_IP) => 0,
        other => return Err(bad(&format!("link type {other:?}"))),
    };
    let mut packets = Vec::new();
    let mut at = FILE_HEADER;
    while let (Some(seconds), Some(nanos), Some(kept), Some(wire)) =
        (word(at), word(at + 4), word(at + 8), word(at + 12))
    {
        let start = at + RECORD_HEADER;
        let end = start + kept as usize;
        let frame = bytes.get(start..end).ok_or_else(|| bad("cut short"))?;
        packets.push(Packet {
            time: Duration::new(u64::from(seconds), nanos),
            ip: frame.get(link_header..).unwrap_or_default().to_vec(),
            wire_length: (wire as usize).saturating_sub(link_header),
        });
        at = end;
    }
    Ok(packets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp_in_ipv4(payload: &[u8], port: u16) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        ip.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        ip.extend(port.to_be_bytes());
        ip.extend(port.to_be_bytes());
        ip.extend([0, 0, 0, 0]);
        ip.extend(payload);
        ip
    }

    fn packet(ip: Vec<u8>) -> Packet {
        Packet { time: Duration::ZERO, wire_length: ip.len(), ip }
    }

    #[test]
    fn tells_esp_from_ike_and_keepalives() {
        assert!(packet(udp_in_ipv4(&[0, 0, 0x10, 1, 0, 0, 0, 1], 4500)).is_esp_in_udp());
        assert!(!packet(udp_in_ipv4(&[0, 0, 0, 0, 1, 2, 3, 4], 4500)).is_esp_in_udp());
        assert!(!packet(udp_in_ipv4(&[0xff], 4500)).is_esp_in_udp());
        assert!(!packet(udp_in_ipv4(&[0, 0, 0x10, 1, 0, 0, 0, 1], 4501)).is_esp_in_udp());
    }

    #[test]
    fn reads_both_families() {
        let v4 = headers(&udp_in_ipv4(b"x", 7)).unwrap();
        assert_eq!((v4.protocol, v4.ports, v4.length), (17, Some((7, 7)), 28));
        let mut ip = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        ip.extend(Ipv6Addr::LOCALHOST.octets());
        ip.extend(Ipv6Addr::UNSPECIFIED.octets());
        ip.extend([0, 1, 0, 2, 0, 8, 0, 0]);
        let v6 = headers(&ip).unwrap();
        assert_eq!(v6.source, IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert_eq!(v6.ports, Some((1, 2)));
        assert_eq!(headers(&ip[..30]), None);
        assert_eq!(headers(&[]), None);
    }

    #[test]
    fn tells_the_mtu_of_an_error() {
        let mut ip = udp_in_ipv4(&[], 7);
        ip[9] = 1;
        ip[20..28].copy_from_slice(&[3, 4, 0, 0, 0, 0, 5, 0x9e]);
        assert_eq!(packet(ip.clone()).too_big(), Some(1438));
        ip[21] = 3;
        assert_eq!(packet(ip).too_big(), None);
    }

    #[test]
    fn reads_a_capture_file_and_refuses_a_cut_one() {
        let ip = udp_in_ipv4(b"abc", 9);
        let mut file = Vec::new();
        for word in [MAGIC_NANO, 0x0004_0002, 0, 0, 65535, RAW_IP] {
            file.extend(word.to_ne_bytes());
        }
        let length = u32::try_from(ip.len()).unwrap();
        for word in [7, 500, length, 60] {
            file.extend(word.to_ne_bytes());
        }
        file.extend(&ip);
        let packets = parse(&file).unwrap();
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].time, Duration::new(7, 500));
        assert_eq!(packets[0].udp_payload(), Some(&b"abc"[..]));
        assert_eq!(packets[0].wire_length, 60);
        assert!(parse(&file[..file.len() - 1]).is_err());
        assert!(parse(b"nonsense").is_err());
    }
}

//! Control packets inside IP and UDP (RFC 5881 sections 4 and 5, RFC 5883 section 5), for senders that write
//! whole packets, as into a tunnel.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
};

use crate::packet::LENGTH;

/// The UDP port of single-hop control packets (RFC 5881 section 4).
pub const PORT_SINGLE_HOP: u16 = 3784;
/// The UDP port of multihop control packets (RFC 5883 section 5).
pub const PORT_MULTIHOP: u16 = 4784;
/// The TTL and hop limit of what is sent (RFC 5881 section 5).
pub const TTL: u8 = 255;
/// Room for the longest packet written.
pub const MAX_LENGTH: usize = IPV6_HEADER + UDP_HEADER + LENGTH;

/// Precedence of network control, CS6 (RFC 4594 section 3.1).
const TRAFFIC_CLASS: u8 = 0xc0;
const PROTOCOL_UDP: u8 = 17;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;

/// The source port of a session: RFC 5881 section 4 wants one between 49152 and 65535 that stays, and that is
/// best unique among sessions.
pub fn source_port(discriminator: NonZeroU32) -> u16 {
    let folded = discriminator.get() ^ discriminator.get() >> 16;
    49152 | (folded & 0x3fff) as u16
}

/// A control packet's surroundings and its octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram<'a> {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// Its TTL or hop limit.
    pub ttl: u8,
    /// The UDP port it comes from.
    pub source_port: u16,
    /// The port it goes to: [`PORT_SINGLE_HOP`] or [`PORT_MULTIHOP`].
    pub port: u16,
    /// The UDP payload.
    pub payload: &'a [u8],
}

/// Why an IP packet is no BFD datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotBfd {
    /// Another protocol or port, extension headers, or a fragment.
    Other,
    /// Shorter than its headers say.
    Truncated,
    /// A checksum is wrong, or missing where it must not be.
    Checksum,
    /// Source and destination are of different families.
    Families,
}

impl fmt::Display for NotBfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotBfd::Other => "not a BFD control packet",
            NotBfd::Truncated => "shorter than its headers say",
            NotBfd::Checksum => "wrong checksum",
            NotBfd::Families => "addresses of two families",
        })
    }
}

impl Error for NotBfd {}

impl<'a> Datagram<'a> {
    /// Reads an IP packet.
    pub fn parse(packet: &'a [u8]) -> Result<Self, NotBfd> {
        match packet.first().ok_or(NotBfd::Truncated)? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => Err(NotBfd::Other),
        }
    }

    fn parse_v4(packet: &'a [u8]) -> Result<Self, NotBfd> {
        let header = packet.first_chunk::<IPV4_HEADER>().ok_or(NotBfd::Truncated)?;
        let header_length = usize::from(header[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        if header[9] != PROTOCOL_UDP || fragment {
            return Err(NotBfd::Other);
        }
        if header_length < IPV4_HEADER {
            return Err(NotBfd::Truncated);
        }
        let whole = packet.get(..total).ok_or(NotBfd::Truncated)?;
        let (options, udp) = whole.split_at_checked(header_length).ok_or(NotBfd::Truncated)?;
        if Sum::default().add(options).fold() != 0 {
            return Err(NotBfd::Checksum);
        }
        let [source, destination] = [12, 16]
            .map(|at| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3])));
        Self::parse_udp(source, destination, header[8], udp)
    }

    fn parse_v6(packet: &'a [u8]) -> Result<Self, NotBfd> {
        let (header, rest) = packet.split_first_chunk::<IPV6_HEADER>().ok_or(NotBfd::Truncated)?;
        if header[6] != PROTOCOL_UDP {
            return Err(NotBfd::Other);
        }
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let udp = rest.get(..length).ok_or(NotBfd::Truncated)?;
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        Self::parse_udp(address(8), address(24), header[7], udp)
    }

    fn parse_udp(source: IpAddr, destination: IpAddr, ttl: u8, udp: &'a [u8]) -> Result<Self, NotBfd> {
        let header = udp.first_chunk::<UDP_HEADER>().ok_or(NotBfd::Truncated)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (source_port, port, length, checksum) = (word(0), word(2), usize::from(word(4)), word(6));
        if port != PORT_SINGLE_HOP && port != PORT_MULTIHOP {
            return Err(NotBfd::Other);
        }
        let udp = udp.get(..length).ok_or(NotBfd::Truncated)?;
        let payload = udp.get(UDP_HEADER..).ok_or(NotBfd::Truncated)?;
        // RFC 768: zero is no checksum; RFC 8200 section 8.1: which IPv6 does not allow.
        let unchecked = checksum == 0 && source.is_ipv4();
        if !unchecked && (checksum == 0 || udp_sum(source, destination, udp).fold() != 0) {
            return Err(NotBfd::Checksum);
        }
        Ok(Datagram { source, destination, ttl, source_port, port, payload })
    }
}

/// Writes an IP packet around a control packet; returns its length.
pub fn write(
    out: &mut [u8; MAX_LENGTH],
    source: IpAddr,
    destination: IpAddr,
    ports: (u16, u16),
    control: &[u8; LENGTH],
) -> Result<usize, NotBfd> {
    const UDP: usize = UDP_HEADER + LENGTH;
    let header = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = &mut out[..IPV4_HEADER];
            header.fill(0);
            header[0] = 0x45;
            header[1] = TRAFFIC_CLASS;
            header[2..4].copy_from_slice(&((IPV4_HEADER + UDP) as u16).to_be_bytes());
            // Too short to be fragmented: it may not be (RFC 6864 section 4.1: then the identification may be
            // anything).
            header[6] = 0x40;
            header[8] = TTL;
            header[9] = PROTOCOL_UDP;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let sum = Sum::default().add(header).fold();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            IPV4_HEADER
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = &mut out[..IPV6_HEADER];
            header.fill(0);
            header[0] = 0x60 | TRAFFIC_CLASS >> 4;
            header[1] = TRAFFIC_CLASS << 4;
            header[4..6].copy_from_slice(&(UDP as u16).to_be_bytes());
            header[6] = PROTOCOL_UDP;
            header[7] = TTL;
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
            IPV6_HEADER
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Err(NotBfd::Families),
    };
    let udp = &mut out[header..header + UDP];
    udp[..2].copy_from_slice(&ports.0.to_be_bytes());
    udp[2..4].copy_from_slice(&ports.1.to_be_bytes());
    udp[4..6].copy_from_slice(&(UDP as u16).to_be_bytes());
    udp[6..8].fill(0);
    udp[UDP_HEADER..].copy_from_slice(control);
    // RFC 768: a computed zero is transmitted as all ones.
    let sum = match udp_sum(source, destination, udp).fold() {
        0 => u16::MAX,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    Ok(header + UDP)
}

/// The sum over pseudo-header, UDP header and payload.
fn udp_sum(source: IpAddr, destination: IpAddr, udp: &[u8]) -> Sum {
    let sum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Sum::default().add(&source.octets()).add(&destination.octets())
        }
        (source, destination) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            Sum::default().add(&octets(source)).add(&octets(destination))
        }
    };
    sum.add(&[0, PROTOCOL_UDP]).add(&(udp.len() as u16).to_be_bytes()).add(udp)
}

/// The Internet checksum (RFC 1071) of pieces of even length, the last excepted.
#[derive(Default)]
struct Sum(u32);

impl Sum {
    fn add(mut self, octets: &[u8]) -> Self {
        // At most 64 KiB: no overflow in 32 bits.
        for pair in octets.chunks(2) {
            self.0 += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
        self
    }

    fn fold(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        !((once & 0xffff) + (once >> 16)) as u16
    }
}

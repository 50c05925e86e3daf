//! Inner packets, parsed once into what the rest of the way needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use braid_api::Flow;
use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};
use siphasher::sip::SipHasher13;

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// The inner 5-tuple: addresses, protocol and ports, as far as the packet has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowKey {
    pub(crate) src: Address,
    pub(crate) dst: Address,
    /// Family, protocol, source port and destination port.
    pub rest: u64,
}

impl PartialEq for FlowKey {
    /// Word by word: a vector put together from what was just stored in halves waits for the stores.
    #[inline(always)]
    fn eq(&self, other: &FlowKey) -> bool {
        let differ = (self.src[0] ^ other.src[0])
            | (self.src[1] ^ other.src[1])
            | (self.dst[0] ^ other.dst[0])
            | (self.dst[1] ^ other.dst[1])
            | (self.rest ^ other.rest);
        differ == 0
    }
}

impl Eq for FlowKey {}

/// An address, upper half first; IPv4 stands in the lower. Not `u128`, whose alignment would make a
/// cache entry of a flow larger than a cache line.
type Address = [u64; 2];

#[inline(always)]
fn halves(address: u128) -> Address {
    [(address >> 64) as u64, address as u64]
}

#[inline(always)]
fn number(address: Address) -> u128 {
    u128::from(address[0]) << 64 | u128::from(address[1])
}

const V6_FLAG: u64 = 1 << 48;

impl FlowKey {
    #[inline(always)]
    fn new(v6: bool, src: u128, dst: u128, protocol: u8, ports: (u16, u16)) -> Self {
        let rest = if v6 { V6_FLAG } else { 0 }
            | u64::from(protocol) << 32
            | u64::from(ports.0) << 16
            | u64::from(ports.1);
        FlowKey { src: halves(src), dst: halves(dst), rest }
    }

    /// The key of a flow that somebody asks about.
    pub fn of(flow: &Flow) -> Self {
        let number = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let ports = match flow.protocol {
            protocol::TCP | protocol::UDP => (flow.src_port, flow.dst_port),
            protocol::ICMP | protocol::ICMPV6 => (flow.src_port, flow.src_port),
            _ => (0, 0),
        };
        FlowKey::new(flow.dst.is_ipv6(), number(flow.src), number(flow.dst), flow.protocol, ports)
    }

    /// A cheap number for per-worker caches; never for the choice of a path.
    #[inline(always)]
    pub fn slot(&self) -> usize {
        const MIX: u64 = 0x9E37_79B9_7F4A_7C15;
        let fold = self.src[1]
            ^ self.dst[1].rotate_left(29)
            ^ self.src[0].rotate_left(17)
            ^ self.dst[0].rotate_left(43);
        ((fold.wrapping_mul(MIX) ^ self.rest).wrapping_mul(MIX) >> 32) as usize
    }

    /// The seeded hash that picks a bucket; the same for both directions when `symmetric`.
    pub fn hash(&self, seed: &[u8; 16], symmetric: bool) -> u64 {
        use core::hash::Hasher;
        let ports = ((self.rest >> 16) as u16, self.rest as u16);
        let (mut low, mut high) = ((self.src, ports.0), (self.dst, ports.1));
        if symmetric && high < low {
            core::mem::swap(&mut low, &mut high);
        }
        let mut hasher = SipHasher13::new_with_key(seed);
        if self.rest & V6_FLAG != 0 {
            hasher.write_u128(number(low.0));
            hasher.write_u128(number(high.0));
        } else {
            hasher.write_u64(low.0[1] << 32 | high.0[1]);
        }
        hasher.write_u64(self.rest >> 32 << 32 | u64::from(low.1) << 16 | u64::from(high.1));
        hasher.finish()
    }
}

/// Part of a fragmented packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Identification.
    pub id: u32,
    /// Whether it begins the packet.
    pub first: bool,
}

/// What is known of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Its flow, for hashing and caching. Of a fragment that is not the first, without ports; of an
    /// ICMP error, the flow of the packet that it quotes, turned round.
    pub key: FlowKey,
    /// Source and destination address of a packet that quotes another, whose flow `key` is.
    quoting: Option<(Address, Address)>,
    /// IPv6 rather than IPv4.
    pub v6: bool,
    /// TOS or traffic class.
    pub tos: u8,
    /// IPv4: DF.
    pub df: bool,
    /// Bytes of the whole packet, by its header.
    pub len: usize,
    /// Bytes before the transport header.
    pub transport: usize,
    /// Transport protocol.
    pub protocol: u8,
    /// Set for fragments.
    pub fragment: Option<Fragment>,
    /// The IP header is of the shortest form: no options, no extension headers.
    pub plain: bool,
}

impl Packet {
    /// Destination address.
    #[inline]
    pub fn destination(&self) -> IpAddr {
        self.address(number(self.quoting.map_or(self.key.dst, |(_, dst)| dst)))
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> IpAddr {
        self.address(self.source_number())
    }

    /// Source address; an IPv4 address stands in the low half.
    #[inline]
    pub fn source_number(&self) -> u128 {
        number(self.quoting.map_or(self.key.src, |(src, _)| src))
    }

    /// Whether the flow is another's, which the packet quotes: its addresses say nothing about where
    /// this packet goes.
    #[inline]
    pub fn quotes(&self) -> bool {
        self.quoting.is_some()
    }

    #[inline]
    fn address(&self, number: u128) -> IpAddr {
        if self.v6 {
            IpAddr::V6(Ipv6Addr::from_bits(number))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(number as u32))
        }
    }
}

/// The bytes are no IP packet, or shorter than the packet says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// TCP and UDP over IPv4 without options and fragments: nearly all that there is. Inlined into its
/// callers, so that what they need of it stays in registers. `None`: ask [`parse`].
#[inline(always)]
pub fn parse_usual_v4(bytes: &[u8]) -> Option<Packet> {
    let header: &[u8; 24] = bytes.first_chunk()?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let first = word(0);
    let len = (first & 0xFFFF) as usize;
    let offset = u16::from_be_bytes([header[6], header[7]]);
    let protocol = header[9];
    let usual = first >> 24 == 0x45 && offset & 0x3FFF == 0 && has_ports(protocol);
    if !usual || len < 24 || len > bytes.len() {
        return None;
    }
    let ports = word(20);
    let (src, dst) = (u128::from(word(12)), u128::from(word(16)));
    Some(Packet {
        key: FlowKey::new(false, src, dst, protocol, ((ports >> 16) as u16, ports as u16)),
        quoting: None,
        v6: false,
        tos: (first >> 16) as u8,
        df: offset & 0x4000 != 0,
        len,
        transport: 20,
        protocol,
        fragment: None,
        plain: true,
    })
}

/// The same for IPv6 without extension headers.
#[inline(always)]
pub fn parse_usual_v6(bytes: &[u8]) -> Option<Packet> {
    let header: &[u8; 44] = bytes.first_chunk()?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let first = word(0);
    let len = 40 + (word(4) >> 16) as usize;
    let protocol = header[6];
    if first >> 28 != 6 || !has_ports(protocol) || len < 44 || len > bytes.len() {
        return None;
    }
    let ports = word(40);
    let (src, dst) = (v6_address(header, 8), v6_address(header, 24));
    Some(Packet {
        key: FlowKey::new(true, src, dst, protocol, ((ports >> 16) as u16, ports as u16)),
        quoting: None,
        v6: true,
        tos: (first >> 20) as u8,
        df: true,
        len,
        transport: 40,
        protocol,
        fragment: None,
        plain: true,
    })
}

#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    protocol == protocol::TCP || protocol == protocol::UDP
}

/// Parses any packet; bytes behind it (ESP allows them, RFC 4303 section 2.7) are not part of it.
///
/// # Errors
/// [`Malformed`].
pub fn parse(bytes: &[u8]) -> Result<Packet, Malformed> {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => parse_v4(bytes),
        Some(6) => parse_v6(bytes),
        _ => Err(Malformed),
    }
}

fn parse_v4(bytes: &[u8]) -> Result<Packet, Malformed> {
    let ip = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| Malformed)?;
    let header = ip.slice();
    let transport = header.len();
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if len < transport || len > bytes.len() {
        return Err(Malformed);
    }
    let offset = u16::from_be_bytes([header[6], header[7]]);
    let fragment = (offset & 0x3FFF != 0).then(|| Fragment {
        id: u32::from(u16::from_be_bytes([header[4], header[5]])),
        first: offset & 0x1FFF == 0,
    });
    let src = u128::from(u32::from_be_bytes([header[12], header[13], header[14], header[15]]));
    let dst = u128::from(u32::from_be_bytes([header[16], header[17], header[18], header[19]]));
    let packet = Packet {
        key: FlowKey::default(),
        quoting: None,
        v6: false,
        tos: header[1],
        df: offset & 0x4000 != 0,
        len,
        transport,
        protocol: header[9],
        fragment,
        plain: transport == 20,
    };
    Ok(packet.with_key(src, dst, &bytes[transport..len]))
}

fn parse_v6(bytes: &[u8]) -> Result<Packet, Malformed> {
    let ip = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Malformed)?;
    let header = ip.slice();
    let len = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if len > bytes.len() {
        return Err(Malformed);
    }
    let (protocol, transport, fragment) = skip_extensions(&bytes[..len], header[6])?;
    let packet = Packet {
        key: FlowKey::default(),
        quoting: None,
        v6: true,
        tos: header[0] << 4 | header[1] >> 4,
        df: true,
        len,
        transport,
        protocol,
        fragment,
        plain: transport == 40,
    };
    Ok(packet.with_key(v6_address(header, 8), v6_address(header, 24), &bytes[transport..len]))
}

#[inline(always)]
fn v6_address(header: &[u8], at: usize) -> u128 {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    u128::from_be_bytes(octets)
}

/// Walks the extension headers that may stand before the transport header (RFC 8200 section 4.1).
fn skip_extensions(packet: &[u8], mut next: u8) -> Result<(u8, usize, Option<Fragment>), Malformed> {
    let mut at = 40;
    let mut fragment = None;
    // RFC 8200 section 4.1 names seven; a longer chain is left unparsed, not refused.
    for _ in 0..8 {
        let len = match next {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => 8 + 8 * usize::from(*packet.get(at + 1).ok_or(Malformed)?),
            // Authentication header, in units of 4 bytes less 2 (RFC 4302 section 2.2).
            51 => 8 + 4 * usize::from(*packet.get(at + 1).ok_or(Malformed)?),
            44 => 8,
            _ => break,
        };
        let header = packet.get(at..at + len).ok_or(Malformed)?;
        if next == 44 {
            let offset = u16::from_be_bytes([header[2], header[3]]);
            // An atomic fragment (RFC 6946) is a whole packet.
            if offset & 0xFFF9 != 0 {
                let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                fragment = Some(Fragment { id, first: offset & 0xFFF8 == 0 });
            }
        }
        next = header[0];
        at += len;
        if fragment.is_some_and(|fragment| !fragment.first) {
            break;
        }
    }
    Ok((next, at, fragment))
}

impl Packet {
    /// With the flow key: what the transport header adds to the addresses. ICMP errors belong to the
    /// flow of the packet that they quote, turned round.
    fn with_key(mut self, src: u128, dst: u128, transport: &[u8]) -> Self {
        let half = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        let later = self.fragment.is_some_and(|fragment| !fragment.first);
        let mut ports = (0, 0);
        match self.protocol {
            _ if later => {}
            protocol::TCP | protocol::UDP if transport.len() >= 4 => ports = (half(0), half(2)),
            protocol::ICMP | protocol::ICMPV6 if transport.len() >= 8 => {
                let kind = transport[0];
                let (echo, error) = if self.v6 {
                    (kind == 128 || kind == 129, (1..=4).contains(&kind))
                } else {
                    (matches!(kind, 0 | 8 | 13 | 14), matches!(kind, 3 | 4 | 5 | 11 | 12))
                };
                if error && let Some(key) = quoted_key(self.v6, &transport[8..]) {
                    self.key = key;
                    self.quoting = Some((halves(src), halves(dst)));
                    return self;
                }
                if echo {
                    ports = (half(4), half(4));
                }
            }
            _ => {}
        }
        self.key = FlowKey::new(self.v6, src, dst, self.protocol, ports);
        self
    }
}

/// The key of the packet that an ICMP error quotes, in the direction of the error.
fn quoted_key(v6: bool, quoted: &[u8]) -> Option<FlowKey> {
    let key = if v6 {
        let ip = Ipv6HeaderSlice::from_slice(quoted).ok()?;
        let header = ip.slice();
        let (protocol, transport, _) = skip_extensions(quoted, header[6]).ok()?;
        let (src, dst) = (ip.source_addr().to_bits(), ip.destination_addr().to_bits());
        quoted_transport(true, src, dst, protocol, quoted.get(transport..)?)
    } else {
        let ip = Ipv4HeaderSlice::from_slice(quoted).ok()?;
        let (src, dst) = (ip.source_addr().to_bits(), ip.destination_addr().to_bits());
        quoted_transport(false, src.into(), dst.into(), ip.slice()[9], quoted.get(ip.slice().len()..)?)
    };
    Some(key)
}

fn quoted_transport(v6: bool, src: u128, dst: u128, protocol: u8, transport: &[u8]) -> FlowKey {
    let half = |at: usize| transport.get(at..at + 2).map_or(0, |pair| u16::from_be_bytes([pair[0], pair[1]]));
    match protocol {
        protocol::TCP | protocol::UDP => FlowKey::new(v6, dst, src, protocol, (half(2), half(0))),
        protocol::ICMP | protocol::ICMPV6 => FlowKey::new(v6, dst, src, protocol, (half(4), half(4))),
        _ => FlowKey::new(v6, dst, src, protocol, (0, 0)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    pub(crate) fn udp4(src: [u8; 4], dst: [u8; 4], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ipv4(src, dst, 64).udp(ports.0, ports.1);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).unwrap();
        bytes
    }

    pub(crate) fn udp6(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut src = [0; 16];
        (src[0], src[15]) = (0xfd, 1);
        let mut dst = src;
        dst[15] = 2;
        let mut bytes = Vec::new();
        PacketBuilder::ipv6(src, dst, 64).udp(ports.0, ports.1).write(&mut bytes, payload).unwrap();
        bytes
    }

    #[test]
    fn a_packet_gives_its_five_tuple() {
        let packet = parse(&udp4([10, 1, 0, 2], [10, 2, 0, 2], (1000, 2000), b"hello")).unwrap();
        assert_eq!(
            (packet.len, packet.transport, packet.protocol, packet.plain),
            (33, 20, protocol::UDP, true)
        );
        let flow = Flow {
            src: [10, 1, 0, 2].into(),
            dst: [10, 2, 0, 2].into(),
            protocol: protocol::UDP,
            src_port: 1000,
            dst_port: 2000,
        };
        assert_eq!(packet.key, FlowKey::of(&flow));
        assert_eq!(packet.destination(), flow.dst);
        let packet = parse(&udp6((7, 8), b"hello")).unwrap();
        assert_eq!((packet.len, packet.transport, packet.v6), (53, 40, true));
        assert_eq!(packet.source().to_string(), "fd00::1");
    }

    #[test]
    fn an_icmp_error_belongs_to_the_flow_it_quotes() {
        let flow = udp4([10, 1, 0, 2], [10, 2, 0, 2], (1000, 2000), b"hello");
        let answer = parse(&udp4([10, 2, 0, 2], [10, 1, 0, 2], (2000, 1000), b"")).unwrap();
        let builder = PacketBuilder::ipv4([10, 2, 0, 9], [10, 1, 0, 2], 64).icmpv4(
            etherparse::Icmpv4Type::TimeExceeded(etherparse::icmpv4::TimeExceededCode::TtlExceededInTransit),
        );
        let mut error = Vec::new();
        builder.write(&mut error, &flow[..28]).unwrap();
        let parsed = parse(&error).unwrap();
        assert_eq!(parsed.key, answer.key);
        assert!(parsed.quotes() && !answer.quotes());
        assert_eq!(parsed.source().to_string(), "10.2.0.9");
    }

    #[test]
    fn a_symmetric_hash_ignores_the_direction() {
        let there = parse(&udp4([10, 1, 0, 2], [10, 2, 0, 2], (1000, 2000), b"")).unwrap().key;
        let back = parse(&udp4([10, 2, 0, 2], [10, 1, 0, 2], (2000, 1000), b"")).unwrap().key;
        assert_eq!(there.hash(&[1; 16], true), back.hash(&[1; 16], true));
        assert_ne!(there.hash(&[1; 16], false), back.hash(&[1; 16], false));
        assert_ne!(there.hash(&[1; 16], false), there.hash(&[2; 16], false));
    }

    #[test]
    fn fragments_and_extension_headers_are_seen() {
        let mut packet = udp4([10, 1, 0, 2], [10, 2, 0, 2], (1000, 2000), &[0; 32]);
        packet[6] = 0x20;
        assert_eq!(parse(&packet).unwrap().fragment, Some(Fragment { id: 0, first: true }));
        packet[7] = 4;
        let later = parse(&packet).unwrap();
        assert_eq!(later.fragment, Some(Fragment { id: 0, first: false }));
        assert_eq!(later.key.rest & 0xFFFF_FFFF, 0);
        // Hop-by-hop options, then a fragment header, then UDP.
        let udp = udp6((7, 8), b"hello");
        let mut extended = udp[..40].to_vec();
        extended[6] = 0;
        extended[5] += 16;
        extended.extend([44, 0, 1, 4, 0, 0, 0, 0]);
        extended.extend([17, 0, 0, 1, 0, 0, 0, 9]);
        extended.extend(&udp[40..]);
        let parsed = parse(&extended).unwrap();
        assert_eq!((parsed.protocol, parsed.transport), (17, 56));
        assert_eq!(parsed.fragment, Some(Fragment { id: 9, first: true }));
        assert!(!parsed.plain);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(mut bytes: Vec<u8>, version in 0_u8..3) {
            if let (Some(first), 1..) = (bytes.first_mut(), version) {
                *first = if version == 1 { 0x45 } else { 0x60 };
            }
            if let Ok(packet) = parse(&bytes) {
                assert!(packet.transport <= packet.len && packet.len <= bytes.len());
            }
        }

        #[test]
        fn the_usual_way_is_only_a_shorter_one(mut bytes: Vec<u8>, v6: bool, udp: bool, fill in 0_usize..80) {
            bytes.resize(bytes.len().max(fill), 0);
            let protocol = if udp { protocol::UDP } else { protocol::TCP };
            if let (true, Some(head)) = (v6, bytes.first_chunk_mut::<8>()) {
                (head[0], head[4], head[5], head[6]) = (0x60, 0, head[5] % 64, protocol);
            } else if let Some(head) = bytes.first_chunk_mut::<10>() {
                (head[0], head[2], head[3], head[6], head[7], head[9]) = (0x45, 0, head[3] % 99, 0x40, 0, protocol);
            }
            if let Some(packet) = parse_usual_v4(&bytes).or_else(|| parse_usual_v6(&bytes)) {
                assert_eq!(parse(&bytes), Ok(packet));
            }
        }

        #[test]
        fn a_truncated_packet_is_malformed(cut in 0_usize..61) {
            let whole = udp6((7, 8), &[1; 13]);
            assert!(parse(&whole[..cut.min(whole.len() - 1)]).is_err());
        }
    }
}

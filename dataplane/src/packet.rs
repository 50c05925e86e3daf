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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowKey {
    /// Source address; an IPv4 address stands in the low half.
    pub src: u128,
    /// Destination address.
    pub dst: u128,
    /// Family, protocol, source port and destination port.
    pub rest: u64,
}

const V6_FLAG: u64 = 1 << 48;

impl FlowKey {
    #[inline]
    fn new(v6: bool, src: u128, dst: u128, protocol: u8, ports: (u16, u16)) -> Self {
        let rest = if v6 { V6_FLAG } else { 0 }
            | u64::from(protocol) << 32
            | u64::from(ports.0) << 16
            | u64::from(ports.1);
        FlowKey { src, dst, rest }
    }

    /// The key of a flow that somebody asks about.
    pub fn of(flow: &Flow) -> Self {
        let number = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let ports = match flow.protocol {
            protocol::TCP | protocol::UDP => (flow.src_port, flow.dst_port),
            protocol::ICMP | protocol::ICMPV6 => (flow.src_port, 0),
            _ => (0, 0),
        };
        FlowKey::new(flow.dst.is_ipv6(), number(flow.src), number(flow.dst), flow.protocol, ports)
    }

    /// A cheap number for per-worker caches; never for the choice of a path.
    #[inline]
    pub fn slot(&self) -> usize {
        const MIX: u64 = 0x9E37_79B9_7F4A_7C15;
        let fold = (self.src ^ self.dst.rotate_left(29)) as u64
            ^ ((self.src >> 64) as u64).rotate_left(17)
            ^ ((self.dst >> 64) as u64).rotate_left(43);
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
            hasher.write_u128(low.0);
            hasher.write_u128(high.0);
        } else {
            hasher.write_u64((low.0 as u64) << 32 | high.0 as u64);
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
    /// Source address; an IPv4 address stands in the low half.
    pub src: u128,
    /// Destination address.
    pub dst: u128,
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
        self.address(self.dst)
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> IpAddr {
        self.address(self.src)
    }

    /// Whether the flow is another's, which the packet quotes: its addresses say nothing about where
    /// this packet goes.
    #[inline]
    pub fn quotes(&self) -> bool {
        (self.key.src, self.key.dst) != (self.src, self.dst) || (self.key.rest >> 32) as u8 != self.protocol
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

/// Parses a packet; bytes behind it (ESP allows them, RFC 4303 section 2.7) are not part of it.
///
/// # Errors
/// [`Malformed`].
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Packet, Malformed> {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => parse_v4(bytes),
        Some(6) => parse_v6(bytes),
        _ => Err(Malformed),
    }
}

#[inline]
fn parse_v4(bytes: &[u8]) -> Result<Packet, Malformed> {
    let ip = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| Malformed)?;
    let header = ip.slice();
    let transport = header.len();
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if len < transport || len > bytes.len() {
        return Err(Malformed);
    }
    let offset = u16::from_be_bytes([header[6], header[7]]);
    let protocol = header[9];
    let fragment = (offset & 0x3FFF != 0).then(|| Fragment {
        id: u32::from(u16::from_be_bytes([header[4], header[5]])),
        first: offset & 0x1FFF == 0,
    });
    let src = u128::from(u32::from_be_bytes([header[12], header[13], header[14], header[15]]));
    let dst = u128::from(u32::from_be_bytes([header[16], header[17], header[18], header[19]]));
    let mut packet = Packet {
        key: FlowKey::default(),
        src,
        dst,
        v6: false,
        tos: header[1],
        df: offset & 0x4000 != 0,
        len,
        transport,
        protocol,
        fragment,
        plain: transport == 20,
    };
    packet.key = transport_key(&packet, &bytes[transport..len]);
    Ok(packet)
}

fn parse_v6(bytes: &[u8]) -> Result<Packet, Malformed> {
    let ip = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Malformed)?;
    let header = ip.slice();
    let len = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if len > bytes.len() {
        return Err(Malformed);
    }
    let number = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        u128::from_be_bytes(octets)
    };
    let (src, dst) = (number(8), number(24));
    let (protocol, transport, fragment) = skip_extensions(&bytes[..len], header[6])?;
    let mut packet = Packet {
        key: FlowKey::default(),
        src,
        dst,
        v6: true,
        tos: header[0] << 4 | header[1] >> 4,
        df: true,
        len,
        transport,
        protocol,
        fragment,
        plain: transport == 40,
    };
    packet.key = transport_key(&packet, &bytes[transport..len]);
    Ok(packet)
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

/// The flow key, with what the transport header adds to the addresses. ICMP errors belong to the
/// flow of the packet that they quote, turned round.
#[inline]
fn transport_key(packet: &Packet, transport: &[u8]) -> FlowKey {
    let (src, dst) = (packet.src, packet.dst);
    let half = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
    let later = packet.fragment.is_some_and(|fragment| !fragment.first);
    let ports = match packet.protocol {
        _ if later => (0, 0),
        protocol::TCP | protocol::UDP if transport.len() >= 4 => (half(0), half(2)),
        protocol::ICMP | protocol::ICMPV6 if transport.len() >= 8 => {
            let kind = transport[0];
            let (echo, error) = if packet.v6 {
                (kind == 128 || kind == 129, (1..=4).contains(&kind))
            } else {
                (matches!(kind, 0 | 8 | 13 | 14), matches!(kind, 3 | 4 | 5 | 11 | 12))
            };
            if error {
                return quoted_key(packet.v6, &transport[8..])
                    .unwrap_or_else(|| FlowKey::new(packet.v6, src, dst, packet.protocol, (0, 0)));
            }
            if echo { (half(4), 0) } else { (0, 0) }
        }
        _ => (0, 0),
    };
    FlowKey::new(packet.v6, src, dst, packet.protocol, ports)
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
        protocol::ICMP | protocol::ICMPV6 => FlowKey::new(v6, dst, src, protocol, (half(4), 0)),
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
        fn a_truncated_packet_is_malformed(cut in 0_usize..61) {
            let whole = udp6((7, 8), &[1; 13]);
            assert!(parse(&whole[..cut.min(whole.len() - 1)]).is_err());
        }
    }
}

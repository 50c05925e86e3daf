//! What is joined for the LAN and what is cut from it: flags where they belong, nothing repaired that arrived
//! broken, and a kernel that refuses super-packets.

mod pair;

use braid_api::Suite;
use braid_dataplane::{
    offload::{
        segment::Segmenter,
        vnet::{Gso, Vnet},
    },
    packet,
};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket, TcpHeader,
    TransportSlice,
};

use pair::{Pair, Protocol, Write, udp};

const ESP: Protocol = Protocol::Esp(Suite::Aes128Gcm16);
const BOTH: [Protocol; 2] = [ESP, Protocol::WireGuard];
/// Payload bytes of each segment.
const SEGMENT: usize = 1000;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// Headers of one flow in A's network, to B's.
fn ip(v6: bool, number: u16, protocol: IpNumber) -> IpHeaders {
    if v6 {
        let (source, destination) = (prefix(1), prefix(2));
        let header =
            Ipv6Header { next_header: protocol, hop_limit: 64, source, destination, ..Default::default() };
        return IpHeaders::Ipv6(header, Default::default());
    }
    let mut header = Ipv4Header::new(0, 64, protocol, [10, 1, 0, 1], [10, 2, 0, 1]).unwrap();
    header.identification = number;
    IpHeaders::Ipv4(header, Default::default())
}

fn prefix(network: u8) -> [u8; 16] {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[0xFD, 0, 0, network]);
    address
}

/// The flow's packet of this number, each of which but the last is full.
fn tcp(v6: bool, number: u16, flags: u8, len: usize) -> Vec<u8> {
    let mut header = TcpHeader::new(1000, 2000, 7 + u32::from(number) * SEGMENT as u32, 1024);
    header.acknowledgment_number = 5;
    set_flags(&mut header, flags);
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ip(ip(v6, number, IpNumber::TCP)).tcp_header(header);
    builder.write(&mut bytes, &vec![number as u8 ^ 0x5A; len]).unwrap();
    bytes
}

fn set_flags(header: &mut TcpHeader, flags: u8) {
    header.fin = flags & FIN != 0;
    header.psh = flags & PSH != 0;
    header.ack = flags & ACK != 0;
    header.ece = flags & ECE != 0;
    header.cwr = flags & CWR != 0;
}

fn udp_of(v6: bool, number: u16, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ip(ip(v6, number, IpNumber::UDP)).udp(1000, 2000);
    builder.write(&mut bytes, &vec![number as u8 ^ 0x5A; len]).unwrap();
    bytes
}

fn transport(v6: bool) -> usize {
    if v6 { 40 } else { 20 }
}

fn flags(bytes: &[u8]) -> u8 {
    bytes[transport(bytes[0] >> 4 == 6) + 13]
}

/// Pairs with routes for both families.
fn joining(protocol: Protocol) -> Pair {
    let mut pair = Pair::joining(protocol);
    pair.route_v6();
    pair
}

fn send(pair: &mut Pair, packets: &[Vec<u8>]) -> Vec<Write> {
    for bytes in packets {
        pair.send(&Write { bytes: bytes.clone(), vnet: Vnet::default() });
    }
    pair.flush(true);
    assert_eq!((pair.a.drops(), pair.b.drops()), (vec![], vec![]));
    pair.writes()
}

/// The packets in a write as the kernel cuts it.
fn cut(write: &Write) -> Vec<Vec<u8>> {
    if write.vnet.gso == Gso::None {
        assert_eq!(write.vnet, Vnet::default());
        return vec![write.bytes.clone()];
    }
    let packet = packet::parse(&write.bytes).unwrap();
    let segments = Segmenter::new(&write.bytes, &packet, write.vnet).unwrap();
    let packets = (0..segments.count()).map(|index| {
        let mut out = vec![0; segments.len(index)];
        segments.write(index, &mut out);
        out
    });
    packets.collect()
}

/// How many packets each write holds, all of which came out as they went in.
fn joined(writes: &[Write], sent: &[Vec<u8>]) -> Vec<usize> {
    let cut: Vec<Vec<Vec<u8>>> = writes.iter().map(cut).collect();
    assert_eq!(cut.concat(), sent);
    cut.iter().map(Vec::len).collect()
}

/// The kernel gives a super-packet fresh checksums: a broken packet in one would come out whole.
#[test]
fn what_arrived_broken_is_joined_to_nothing_and_stays_as_it_is() {
    for (protocol, v6) in BOTH.into_iter().flat_map(|protocol| [(protocol, false), (protocol, true)]) {
        let mut pair = joining(protocol);
        let tcp: Vec<_> = (0..3).map(|number| tcp(v6, number, ACK, SEGMENT)).collect();
        let udp: Vec<_> = (0..3).map(|number| udp_of(v6, number, SEGMENT)).collect();
        for (sent, checksum) in [(tcp, 16), (udp, 6)] {
            let writes = send(&mut pair, &sent);
            assert_eq!(joined(&writes, &sent), [3], "whole, these are joined");
            // Broken in the checksum, in the payload, and in the header of IPv4.
            let places = [transport(v6) + checksum, sent[0].len() - 1, 10];
            for at in places.into_iter().take(if v6 { 2 } else { 3 }) {
                for (broken, alone) in [(0, &[1, 2][..]), (1, &[1, 1, 1]), (2, &[2, 1])] {
                    let mut sent = sent.clone();
                    sent[broken][at] ^= 0x40;
                    let writes = send(&mut pair, &sent);
                    assert_eq!(
                        joined(&writes, &sent),
                        alone,
                        "packet {broken}, byte {at}, v6 {v6}, {protocol:?}"
                    );
                }
            }
        }
    }
}

/// Flags of packets in a row; packets and flags of each write.
type Joined = (&'static [u8], &'static [(usize, u8)]);

#[test]
fn what_is_joined_keeps_its_flags() {
    const CASES: &[Joined] = &[
        (&[ACK, ACK, ACK], &[(3, ACK)]),
        // What was pushed ends a super-packet, which is pushed in its place.
        (&[ACK, ACK | PSH, ACK], &[(2, ACK | PSH), (1, ACK)]),
        (&[ACK | PSH, ACK, ACK], &[(1, ACK | PSH), (2, ACK)]),
        // In a super-packet these would be the first segment's or the last one's.
        (&[ACK, ACK | CWR, ACK, ACK], &[(1, ACK), (1, ACK | CWR), (2, ACK)]),
        (&[ACK | CWR, ACK], &[(1, ACK | CWR), (1, ACK)]),
        (&[ACK, ACK | ECE, ACK | ECE], &[(1, ACK), (1, ACK | ECE), (1, ACK | ECE)]),
        (&[ACK, ACK | FIN], &[(1, ACK), (1, ACK | FIN)]),
    ];
    for (protocol, v6) in BOTH.into_iter().flat_map(|protocol| [(protocol, false), (protocol, true)]) {
        for (sent, written) in CASES {
            let mut pair = joining(protocol);
            let sent = sent.iter().zip(0..).map(|(flags, number)| tcp(v6, number, *flags, SEGMENT));
            let sent: Vec<_> = sent.collect();
            let writes = send(&mut pair, &sent);
            let packets = joined(&writes, &sent).into_iter();
            let found: Vec<_> = packets.zip(writes.iter().map(|write| flags(&write.bytes))).collect();
            assert_eq!(found, *written);
            assert!(writes.iter().all(|write| !write.vnet.ecn));
        }
    }
}

/// A super-packet of the LAN's kernel, with a partial checksum that nobody looks at.
fn super_packet(bytes: Vec<u8>, v6: bool, gso: Gso, header: usize, csum_offset: u16) -> Write {
    let vnet = Vnet {
        needs_csum: true,
        gso,
        ecn: false,
        hdr_len: (transport(v6) + header) as u16,
        gso_size: SEGMENT as u16,
        csum_start: transport(v6) as u16,
        csum_offset,
    };
    Write { bytes, vnet }
}

#[test]
fn what_is_cut_has_its_flags_where_they_belong() {
    // Of the super-packet; of its first, middle and last segment (RFC 3168 section 6.1.2).
    const CASES: &[(u8, [u8; 3])] = &[
        (ACK, [ACK; 3]),
        (ACK | PSH, [ACK, ACK, ACK | PSH]),
        (ACK | FIN | PSH, [ACK, ACK, ACK | FIN | PSH]),
        (ACK | CWR, [ACK | CWR, ACK, ACK]),
        (ACK | ECE, [ACK | ECE; 3]),
        (ACK | CWR | ECE | PSH, [ACK | CWR | ECE, ACK | ECE, ACK | ECE | PSH]),
    ];
    for (protocol, v6) in BOTH.into_iter().flat_map(|protocol| [(protocol, false), (protocol, true)]) {
        let mut pair = Pair::new(protocol);
        pair.route_v6();
        for (whole, each) in CASES {
            let gso = if v6 { Gso::Tcp6 } else { Gso::Tcp4 };
            let bytes = tcp(v6, 0, *whole, 2 * SEGMENT + 10);
            pair.send(&super_packet(bytes, v6, gso, 20, 16));
            pair.flush(true);
            let crossed = std::mem::take(&mut pair.crossed);
            assert_eq!(crossed.iter().map(Vec::len).collect::<Vec<_>>(), [3], "they leave together");
            let cut = std::mem::take(&mut pair.delivered);
            assert_eq!(cut.iter().map(|bytes| flags(bytes)).collect::<Vec<_>>(), each);
            // Another's arithmetic finds nothing but sequence, identification and flags of its own.
            for (number, (bytes, len)) in (0..).zip(cut.iter().zip([SEGMENT, SEGMENT, 10])) {
                let mut as_if_alone = tcp(v6, number, each[usize::from(number)], len);
                let payload = as_if_alone.len() - len;
                as_if_alone[payload..].fill(0x5A);
                let checksum = checksum_of(&as_if_alone);
                as_if_alone[transport(v6) + 16..][..2].copy_from_slice(&checksum);
                assert_eq!(*bytes, as_if_alone);
            }
        }
        let bytes = udp_of(v6, 0, 2 * SEGMENT + 10);
        pair.send(&super_packet(bytes, v6, Gso::Udp, 8, 6));
        pair.flush(true);
        let cut = std::mem::take(&mut pair.delivered);
        assert_eq!(cut.len(), 3);
        for bytes in &cut {
            let at = transport(v6) + 6;
            assert_eq!(bytes[at..at + 2], checksum_of(bytes));
        }
        assert_eq!((pair.a.drops(), pair.b.drops()), (vec![], vec![]));
    }
}

/// The transport checksum by etherparse.
fn checksum_of(bytes: &[u8]) -> [u8; 2] {
    let packet = SlicedPacket::from_ip(bytes).unwrap();
    let (Some(net), Some(transport)) = (packet.net, packet.transport) else { panic!("no packet") };
    let checksum = match (net, transport) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            tcp.to_header().calc_checksum_ipv4(&ip.header().to_header(), tcp.payload())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            tcp.to_header().calc_checksum_ipv6(&ip.header().to_header(), tcp.payload())
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload())
        }
        other => panic!("{other:?}"),
    };
    checksum.unwrap().to_be_bytes()
}

#[test]
fn a_kernel_that_refuses_super_packets_gets_their_packets_and_no_more_of_them() {
    let of_tcp =
        |base: u16| (base..base + 3).map(|number| tcp(false, number, ACK, SEGMENT)).collect::<Vec<_>>();
    let of_udp =
        |base: u16| (base..base + 3).map(|number| udp_of(false, number, SEGMENT)).collect::<Vec<_>>();
    type Refuses = fn(Vnet) -> bool;
    // A kernel before 6.2 knows TCP's and not UDP's.
    let cases: [(Refuses, &[usize]); 2] =
        [(|vnet| vnet.gso == Gso::Udp, &[3]), (|vnet| vnet.gso != Gso::None, &[1, 1, 1])];
    for (refuses, tcp_after) in cases {
        let mut pair = joining(ESP);
        pair.device.refuses = refuses;
        for round in 0..3 {
            let sent = of_udp(round * 3);
            let writes = send(&mut pair, &sent);
            assert_eq!(joined(&writes, &sent), [1, 1, 1]);
            assert_eq!(pair.device.refused.get(), 1, "the kernel is not asked again");
        }
        let asked = pair.device.refused.get();
        for round in 0..2 {
            let sent = of_tcp(round * 3);
            let writes = send(&mut pair, &sent);
            assert_eq!(joined(&writes, &sent), tcp_after);
        }
        assert!(pair.device.refused.get() <= asked + 1);
        assert_eq!(pair.lost, 0);
    }
    // One that has refused TCP's is offered none at all.
    let mut pair = joining(ESP);
    pair.device.refuses = |vnet| vnet.gso != Gso::None;
    for (sent, joined_then) in [(of_tcp(0), [1, 1, 1]), (of_udp(0), [1, 1, 1]), (of_tcp(3), [1, 1, 1])] {
        let writes = send(&mut pair, &sent);
        assert_eq!(joined(&writes, &sent), joined_then);
    }
    assert_eq!((pair.device.refused.get(), pair.lost), (1, 0));
}

#[test]
fn what_a_device_does_not_take_is_lost_packet_by_packet() {
    let mut pair = joining(ESP);
    pair.device.refuses = |_| true;
    let sent: Vec<_> = (0..3).map(|number| tcp(false, number, ACK, SEGMENT)).collect();
    assert!(send(&mut pair, &sent).is_empty());
    assert_eq!(pair.lost, 3);
    let lone = udp(1, 0, 0, 64).bytes;
    assert!(send(&mut pair, &[lone]).is_empty());
    assert_eq!(pair.lost, 4);
}

//! Two gateways without devices: what goes in at one end comes out at the other, unchanged, and in
//! order within each flow, however the packets of many flows, sizes and classes follow each other.

mod pair;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use braid_api::{
    Allowed, BootId, Epoch, GatewaySettings, Group, GroupId, Member, Op, Suite, Target, Transaction, Tunnel,
    TunnelId,
};
use braid_dataplane::{
    forward::{Arrival, Departure, Now, Progress, Wire},
    offload::{coalesce::Slots, vnet::Vnet},
    packet,
    runs::HEADROOM,
    wireguard::{MAX_HANDSHAKE, OVERHEAD},
};
use etherparse::PacketBuilder;
use proptest::prelude::*;

use pair::{Datagram, Gateway, Pair, Protocol, Side, TUNNELS, Write, tunnel, udp, uso};

/// What a flow sends next: how many segments of what size, in which class.
#[derive(Clone, Debug)]
struct Step {
    flow: u16,
    tos: u8,
    segments: u32,
    size: usize,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![4_usize..100, 480_usize..560, 1300_usize..1380, Just(1372)];
    let step = (0_u16..24, prop_oneof![4 => Just(0_u8), 1 => Just(46)], 1_u32..40, size, any::<bool>());
    let step = step.prop_map(|(flow, tos, segments, size, whole)| Step {
        flow,
        tos,
        segments: if whole { 1 } else { segments },
        size,
    });
    prop::collection::vec(step, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_flow_comes_out_whole_and_in_order(
        steps in steps(),
        protocol in 0_usize..3,
        flush_every in 1_usize..80,
    ) {
        const PROTOCOLS: [Protocol; 3] = [
            Protocol::Esp(Suite::Aes128Gcm16),
            Protocol::Esp(Suite::Aes256CbcSha512),
            Protocol::WireGuard,
        ];
        let mut pair = Pair::new(PROTOCOLS[protocol]);
        let mut numbers: HashMap<u16, u32> = HashMap::new();
        let mut whole: Vec<Vec<u8>> = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let next = numbers.entry(step.flow).or_default();
            if step.segments == 1 {
                let write = udp(step.flow, step.tos, *next, step.size);
                pair.send(&write);
                whole.push(write.bytes);
            } else {
                pair.send(&uso(step.flow, *next, step.segments, step.size));
            }
            *next += step.segments;
            if index % flush_every == 0 {
                pair.flush(true);
            }
        }
        pair.flush(true);
        prop_assert_eq!(pair.a.drops(), vec![]);
        prop_assert_eq!(pair.b.drops(), vec![]);
        let mut expected: HashMap<u16, u32> = HashMap::new();
        for packet in &pair.delivered {
            let slices = etherparse::SlicedPacket::from_ip(packet).unwrap();
            let Some(etherparse::TransportSlice::Udp(udp)) = slices.transport else { panic!("no UDP") };
            let flow = udp.source_port() - 1000;
            let number = u32::from_be_bytes(udp.payload()[..4].try_into().unwrap());
            let next = expected.entry(flow).or_default();
            prop_assert_eq!(number, *next, "flow {}", flow);
            *next += 1;
        }
        prop_assert_eq!(expected, numbers);
        // What needed nothing done to it arrives byte by byte.
        for bytes in whole {
            prop_assert!(pair.delivered.contains(&bytes));
        }
    }
}

#[test]
fn a_masked_tunnel_carries_nothing_from_the_next_packet_on() {
    let mut pair = Pair::new(Protocol::Esp(Suite::Aes128Gcm16));
    for flow in 0..200 {
        pair.send(&udp(flow, 0, 0, 64));
    }
    pair.flush(true);
    let both = pair.sent();
    assert!(both.iter().all(|sent| *sent > 0), "{both:?}");
    assert!(pair.a.writer.states().mask_by_core(TunnelId(0)));
    for flow in 0..200 {
        pair.send(&udp(flow, 0, 1, 700));
    }
    pair.flush(true);
    let after = pair.sent();
    assert_eq!((after[0], after[1]), (both[0], both[1] + 200));
    assert_eq!(pair.delivered.len(), 400);
}

#[test]
fn an_error_goes_where_its_addresses_say_and_keeps_its_flow_together() {
    let quoted = udp(3, 0, 0, 64).bytes;
    let mut error = Vec::new();
    PacketBuilder::ipv4([10, 1, 0, 9], [10, 2, 0, 1], 64)
        .icmpv4(etherparse::Icmpv4Type::TimeExceeded(
            etherparse::icmpv4::TimeExceededCode::TtlExceededInTransit,
        ))
        .write(&mut error, &quoted[..28])
        .unwrap();
    assert!(packet::parse(&error).unwrap().quotes());
    let mut pair = Pair::new(Protocol::Esp(Suite::Aes128Gcm16));
    pair.send(&Write { bytes: error.clone(), vnet: Vnet::default() });
    pair.flush(true);
    assert_eq!(pair.delivered, [error]);
    assert_eq!(pair.a.drops(), []);
}

#[test]
fn nobody_sends_from_our_own_addresses() {
    let own: Vec<IpAddr> = vec![[169, 254, 1, 2].into(), [10, 1, 0, 1].into()];
    let mut pair = Pair::new(Protocol::Esp(Suite::Aes128Gcm16));
    let from = |source: [u8; 4]| {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(source, [10, 2, 0, 1], 64).udp(7, 9).write(&mut bytes, b"content").unwrap();
        Write { bytes, vnet: Vnet::default() }
    };
    let everywhere = ["10.1.0.0/16", "0.0.0.0/0"].map(|prefix| {
        let target = Target::Group(GroupId(0));
        Op::PutRoute { prefix: prefix.parse().unwrap(), target }
    });
    let settings = GatewaySettings {
        hash_seed: [0; 16],
        symmetric_hash: false,
        pin_replies: false,
        icmp_source: Vec::new(),
        own: Vec::new(),
    };
    let mut epoch = 2;
    let mut apply = |pair: &mut Pair, ops: Vec<Op>| {
        pair.b.writer.apply(Transaction { epoch: Epoch(epoch), ops }, 0).unwrap();
        epoch += 1;
    };
    apply(&mut pair, everywhere.into());
    let mut delivered = 0;
    // Known as ours or not, what was found allowed before is looked at again.
    for (known, dropped) in [(false, 0), (true, 2), (true, 4)] {
        let own = if known { own.clone() } else { Vec::new() };
        apply(&mut pair, vec![Op::SetGateway(GatewaySettings { own, ..settings.clone() })]);
        for source in [[169, 254, 1, 2], [10, 1, 0, 1], [10, 1, 0, 9], [203, 0, 113, 9]] {
            pair.send(&from(source));
        }
        pair.flush(true);
        delivered += if known { 2 } else { 4 };
        assert_eq!(pair.delivered.len(), delivered);
        let counted = pair.b.drops();
        assert_eq!(counted, if dropped == 0 { vec![] } else { vec![("source_not_allowed", dropped)] });
    }
}

#[test]
fn wireguard_is_padded_within_the_mtu_and_without_a_session_nothing_leaves() {
    let mut pair = Pair::new(Protocol::WireGuard);
    // 1600 bytes outside leave 1540, and 1540 is no multiple of 16.
    for len in [33, 1536, 1537, 1540] {
        pair.send(&udp(1, 0, len as u32, len - 28));
    }
    pair.flush(true);
    assert_eq!(pair.delivered.iter().map(Vec::len).collect::<Vec<_>>(), [33, 1536, 1537, 1540]);
    // Whitepaper section 5.4.6: padded to 16, but not beyond the MTU.
    assert_eq!(pair.crossed.concat(), [48, 1536, 1540, 1540].map(|padded| padded + OVERHEAD));
    assert_eq!((pair.a.drops(), pair.b.drops()), (vec![], vec![]));
    let lone = Gateway::new(Side::A, Protocol::WireGuard);
    let mut reader = lone.reader;
    let tables = reader.enter();
    let carrier = tables.tunnel(TunnelId(0)).unwrap().outbound.as_ref().unwrap();
    assert!(carrier.wireguard().unwrap().sending().is_none());
}

/// The kernel joins datagrams of equal length, whatever they are.
#[test]
fn a_handshake_message_is_kept_though_what_follows_is_opened_in_its_place() {
    let mut pair = Pair::new(Protocol::WireGuard);
    let initiation: Vec<u8> = [1, 0, 0, 0].into_iter().chain(4..MAX_HANDSHAKE as u8).collect();
    let packet = udp(1, 0, 7, MAX_HANDSHAKE - OVERHEAD - 28).bytes;
    let wire = Wire::WireGuard(SocketAddr::from(([192, 0, 2, 2], 4500)));
    let mut joined = vec![0; wire.headroom()];
    joined.extend(&initiation);
    let tables = pair.a.reader.enter();
    let carrier = tables.tunnel(TunnelId(0)).unwrap().outbound.as_ref().unwrap();
    let mut session = carrier.wireguard().unwrap().sending().unwrap();
    const DATA: usize = 40;
    for _ in 0..DATA {
        let mut sealed = [0; MAX_HANDSHAKE];
        session.seal(&packet, &mut sealed).unwrap();
        joined.extend(sealed);
    }
    let from = SocketAddr::from(([192, 0, 2, 1], 51_820));
    let len = joined.len() - wire.headroom();
    let mut arrival = Arrival::new(0, len, MAX_HANDSHAKE, from, 0, wire);
    let mut slots = Datagram(joined);
    let theirs = pair.b.reader.enter();
    let progress = pair.b.forwarder.inward(&theirs, &mut slots, &mut arrival, Now::from_nanos(1));
    assert_eq!(progress, Progress::Done);
    assert_eq!(pair.b.forwarder.handshakes.iter().map(|it| it.message()).collect::<Vec<_>>(), [initiation]);
    let opened: Vec<_> =
        pair.b.forwarder.lan.pending().iter().map(|it| slots.bytes(it.first()).to_vec()).collect();
    assert_eq!(pair.b.forwarder.lan.pending().iter().map(|it| it.count()).sum::<usize>(), DATA);
    assert!(opened.iter().all(|opened| *opened == packet));
}

#[test]
fn a_peer_reaches_only_what_it_may_and_our_inside_address() {
    let mut pair = Pair::new(Protocol::WireGuard);
    let mut epoch = 2;
    for (reach, delivered) in [(vec![], 1), (vec!["10.2.0.0/24"], 2), (vec!["10.2.1.0/24", "10.3.0.0/16"], 2)]
    {
        for number in 0..TUNNELS {
            let Some(Op::PutTunnel(mut settings)) =
                tunnel(Side::B, Protocol::WireGuard, BootId([2; 16]), number).into_iter().next()
            else {
                panic!("a tunnel");
            };
            settings.reach = reach.iter().map(|prefix| prefix.parse().unwrap()).collect();
            pair.b
                .writer
                .apply(Transaction { epoch: Epoch(epoch), ops: vec![Op::PutTunnel(settings)] }, 0)
                .unwrap();
            epoch += 1;
        }
        pair.send(&udp(1, 0, 0, 64));
        pair.flush(true);
        assert_eq!(pair.delivered.len(), delivered, "{reach:?}");
    }
    assert_eq!(pair.b.drops(), [("destination_not_allowed", 1)]);
    // A ping of the inside address is answered all the same.
    let mut ping = Vec::new();
    PacketBuilder::ipv4([10, 1, 0, 9], [169, 254, 1, 2], 64)
        .icmpv4_echo_request(1, 1)
        .write(&mut ping, &[0; 64])
        .unwrap();
    let inside =
        Op::PutRoute { prefix: "169.254.1.2/32".parse().unwrap(), target: Target::Tunnel(TunnelId(0)) };
    pair.a.writer.apply(Transaction { epoch: Epoch(2), ops: vec![inside] }, 0).unwrap();
    pair.send(&Write { bytes: ping, vnet: Vnet::default() });
    pair.flush(true);
    assert!(!pair.b.forwarder.runs.is_empty(), "no answer");
}

/// B, whose way back leads into the second tunnel alone, hears by the first one.
fn heard_beside_the_route(allowed: Allowed) -> Pair {
    let mut pair = Pair::new(Protocol::Esp(Suite::Aes128Gcm16));
    let only = |id| vec![Member { tunnel: TunnelId(id), weight: 1, priority: 0 }];
    let ops = vec![Op::PutGroup(Group { id: GroupId(0), members: only(0) })];
    pair.a.writer.apply(Transaction { epoch: Epoch(2), ops }, 0).unwrap();
    let mut ops = vec![
        Op::PutGroup(Group { id: GroupId(0), members: only(1) }),
        Op::PutRoute { prefix: "10.9.0.0/16".parse().unwrap(), target: Target::Tunnel(TunnelId(1)) },
    ];
    let tunnel = tunnel(Side::B, Protocol::Esp(Suite::Aes128Gcm16), BootId([2; 16]), 0).remove(0);
    if let Op::PutTunnel(settings) = tunnel {
        ops.push(Op::PutTunnel(Tunnel { allowed, ..settings }));
    }
    pair.b.writer.apply(Transaction { epoch: Epoch(2), ops }, 0).unwrap();
    pair
}

#[test]
fn where_neighbors_choose_the_routes_a_peer_may_send_whatever_leads_into_any_group() {
    // By the group's other tunnel, by a tunnel's own route, and by none.
    let sources = [[10, 1, 0, 9], [10, 9, 0, 1], [203, 0, 113, 9]];
    for (allowed, may_send) in [(Allowed::Routed, 0), (Allowed::RoutedAnywhere, 1)] {
        let mut pair = heard_beside_the_route(allowed);
        for source in sources {
            let mut bytes = Vec::new();
            PacketBuilder::ipv4(source, [10, 2, 0, 1], 64).udp(7, 9).write(&mut bytes, b"content").unwrap();
            pair.send(&Write { bytes, vnet: Vnet::default() });
        }
        pair.flush(true);
        let from: Vec<&[u8]> = pair.delivered.iter().map(|packet| &packet[12..16]).collect();
        assert_eq!(from, sources[..may_send]);
        assert_eq!(pair.b.drops(), [("source_not_allowed", (sources.len() - may_send) as u64)]);
    }
}

/// By which tunnels B's packets to A's network leave: those that answer the flow of this number, or begin one.
fn answered_by(pair: &mut Pair, flow: u16) -> TunnelId {
    let there = udp(flow, 0, 0, 64).bytes;
    let mut bytes = Vec::new();
    let [source, destination] = [16, 12].map(|at| <[u8; 4]>::try_from(&there[at..at + 4]).unwrap());
    let answer = PacketBuilder::ipv4(source, destination, 64).udp(2000, 1000 + flow);
    answer.write(&mut bytes, b"answer").unwrap();
    let mut buffer = vec![0; 4096];
    let at = HEADROOM..HEADROOM + bytes.len();
    buffer[at.clone()].copy_from_slice(&bytes);
    let mut departure = Departure::new(at, Vnet::default());
    let tables = pair.b.reader.enter();
    let progress = pair.b.forwarder.outward(&tables, &mut buffer, &mut departure, Now::from_nanos(1));
    assert_eq!(progress, Progress::Done);
    let mut by = None;
    pair.b.forwarder.runs.flush(true, |run| by = run.carrier.esp().map(|sa| sa.tunnel));
    by.unwrap()
}

#[test]
fn answers_leave_by_the_tunnel_of_the_question_where_they_are_pinned() {
    const FLOWS: u16 = 64;
    for pin_replies in [false, true] {
        let mut pair = Pair::new(Protocol::Esp(Suite::Aes128Gcm16));
        let mask = vec![Op::Mask(TunnelId(1))];
        pair.a.writer.apply(Transaction { epoch: Epoch(2), ops: mask }, 0).unwrap();
        let settings = GatewaySettings {
            hash_seed: [7; 16],
            symmetric_hash: false,
            pin_replies,
            icmp_source: Vec::new(),
            own: Vec::new(),
        };
        let ops = vec![Op::SetGateway(settings)];
        pair.b.writer.apply(Transaction { epoch: Epoch(2), ops }, 0).unwrap();
        // These begin on B's side, and stay where their hash leads though A speaks by the first tunnel alone.
        let begun: Vec<_> = (FLOWS..2 * FLOWS).map(|flow| answered_by(&mut pair, flow)).collect();
        (0..2 * FLOWS).for_each(|flow| pair.send(&udp(flow, 0, 0, 64)));
        pair.flush(true);
        assert_eq!(pair.delivered.len(), usize::from(2 * FLOWS));
        let answers: Vec<_> = (0..FLOWS).map(|flow| answered_by(&mut pair, flow)).collect();
        let by_first = answers.iter().filter(|by| **by == TunnelId(0)).count();
        assert_eq!(by_first == usize::from(FLOWS), pin_replies, "{by_first}");
        let again: Vec<_> = (FLOWS..2 * FLOWS).map(|flow| answered_by(&mut pair, flow)).collect();
        assert_eq!(again, begun);
        // A tunnel that is down answers nothing.
        let mask = vec![Op::Mask(TunnelId(0))];
        pair.b.writer.apply(Transaction { epoch: Epoch(3), ops: mask }, 0).unwrap();
        assert!((0..2 * FLOWS).all(|flow| answered_by(&mut pair, flow) == TunnelId(1)));
    }
}

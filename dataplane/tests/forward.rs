//! Two gateways without devices: what goes in at one end comes out at the other, unchanged, and in
//! order within each flow, however the packets of many flows, sizes and classes follow each other.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use aws_lc_rs::agreement;
use braid_api::{
    Allowed, BootId, DfPolicy, Direction, Encapsulation, Epoch, GatewaySettings, Group, GroupId, Member, Op,
    Sa, SaId, SecretKey, Selectors, Spi, Suite, Target, Transaction, Tunnel, TunnelId, WireGuard,
};
use braid_dataplane::{
    drop_reason::DropReason,
    esp::Engine,
    forward::{Arrival, Departure, Drops, Forwarder, Now, Progress, Wire},
    offload::{
        coalesce::Slots,
        vnet::{Gso, Vnet},
    },
    packet,
    runs::{HEADROOM, TAILROOM},
    tables::{Carrier, Reader, Writer},
    wireguard::{MAX_HANDSHAKE, OVERHEAD},
};
use etherparse::PacketBuilder;
use proptest::prelude::*;

const TUNNELS: u32 = 2;
const MTU: u16 = 1600;

struct Gateway {
    writer: Writer,
    reader: Reader,
    forwarder: Forwarder,
    drops: Arc<Drops>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    A = 1,
    B = 2,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    Esp(Suite),
    WireGuard,
}

/// Each side's private key is known to the other, which makes the public one of it.
fn keys(side: Side, peer: Side, tunnel: TunnelId) -> Op {
    let public = |side: Side| {
        let private = agreement::PrivateKey::from_private_key(&agreement::X25519, &[side as u8; 32]).unwrap();
        private.compute_public_key().unwrap().as_ref().try_into().unwrap()
    };
    Op::PutWireGuard(WireGuard {
        tunnel,
        private_key: SecretKey::new(vec![side as u8; 32]),
        peer_public_key: public(peer),
        preshared_key: None,
        keepalive: None,
        initiate: false,
        begin: false,
    })
}

fn tunnel(side: Side, protocol: Protocol, boot: BootId, number: u32) -> Vec<Op> {
    let address = |side: Side| SocketAddr::from(([192, 0, 2, side as u8], 4500 + number as u16));
    let inside = |side: Side| vec![IpAddr::from([169, 254, 1, side as u8])];
    let peer = if side == Side::A { Side::B } else { Side::A };
    let settings = Tunnel {
        id: TunnelId(number),
        name: format!("t{number}"),
        local: address(side),
        remote: Some(address(peer)),
        uplink: None,
        follow_remote: false,
        encapsulation: match protocol {
            Protocol::Esp(_) => Encapsulation::Udp,
            Protocol::WireGuard => Encapsulation::WireGuard,
        },
        keepalive: false,
        inside: inside(side),
        peer_inside: inside(peer),
        path_mtu: MTU,
        clamp_mtu: MTU,
        df: DfPolicy::Honour,
        allowed: Allowed::Routed,
        probe: None,
        bfd: Vec::new(),
        reach: Vec::new(),
    };
    let id = TunnelId(number);
    let suite = match protocol {
        Protocol::Esp(suite) => suite,
        Protocol::WireGuard => return vec![Op::PutTunnel(settings), keys(side, peer, id), Op::Unmask(id)],
    };
    let sa = |direction: Direction| {
        let sender = if direction == Direction::Out { side } else { peer };
        let key = (0..suite.key_len()).map(|at| (at as u8).wrapping_mul(37) ^ sender as u8 ^ number as u8);
        Op::PutSa(Sa {
            id: SaId(u64::from(number) * 2 + 1 + u64::from(direction == Direction::Out)),
            boot,
            tunnel: TunnelId(number),
            direction,
            spi: Spi(((sender as u32) << 16) | (256 + number)),
            suite,
            key: SecretKey::new(key.collect()),
            esn: false,
            replay_window: 64,
            selectors: Selectors::default(),
        })
    };
    vec![Op::PutTunnel(settings), sa(Direction::In), sa(Direction::Out), Op::Unmask(TunnelId(number))]
}

impl Gateway {
    fn new(side: Side, protocol: Protocol) -> Self {
        let boot = BootId([side as u8; 16]);
        let mut writer = Writer::new(1, boot, Engine::detect(), &[3; 32]);
        let members =
            (0..TUNNELS).map(|id| Member { tunnel: TunnelId(id), weight: 1, priority: 0 }).collect();
        let to = if side == Side::A { "10.2.0.0/16" } else { "10.1.0.0/16" };
        let mut ops: Vec<Op> = (0..TUNNELS).flat_map(|number| tunnel(side, protocol, boot, number)).collect();
        ops.push(Op::PutGroup(Group { id: GroupId(0), members }));
        ops.push(Op::PutRoute { prefix: to.parse().unwrap(), target: Target::Group(GroupId(0)) });
        writer.apply(Transaction { epoch: Epoch(1), ops }, 0).unwrap();
        let drops = Arc::new(Drops::new(1));
        let forwarder = Forwarder::new(0, 64, false, writer.states().clone(), drops.clone());
        Gateway { reader: writer.reader(), writer, forwarder, drops }
    }

    fn drops(&self) -> Vec<(&'static str, u64)> {
        let counted = DropReason::ALL.iter().map(|reason| (reason.name(), self.drops.sum(*reason as usize)));
        counted.filter(|(_, count)| *count > 0).collect()
    }
}

struct Datagram(Vec<u8>);

impl Slots for Datagram {
    fn slot(&self, _: usize) -> &[u8] {
        &self.0
    }

    fn slot_mut(&mut self, _: usize) -> &mut [u8] {
        &mut self.0
    }
}

/// One write of the LAN's kernel: a packet, or a super-packet to be cut.
#[derive(Clone, Debug)]
struct Write {
    bytes: Vec<u8>,
    vnet: Vnet,
}

/// Makes WireGuard's sessions; ESP needs none.
fn meet(a: &mut Gateway, b: &mut Gateway) {
    let (ours, theirs) = (a.reader.enter(), b.reader.enter());
    for (us, them) in ours.tunnels().zip(theirs.tunnels()) {
        let peers = [us, them].map(|tunnel| tunnel.outbound.as_ref().and_then(Carrier::wireguard).cloned());
        let [Some(us), Some(them)] = peers else { return };
        let from = IpAddr::from([192, 0, 2, 1]);
        let (mut message, mut reply) = ([0; MAX_HANDSHAKE], [0; MAX_HANDSHAKE]);
        us.want_session();
        assert_eq!(us.handle_timeout(true, &mut message), MAX_HANDSHAKE);
        let response = them.handle_handshake(from, &message, &mut reply).unwrap().reply;
        let keepalive = us.handle_handshake(from, &reply[..response], &mut message).unwrap().reply;
        assert_eq!(them.receiving().open(&message[..keepalive], &mut reply), Ok(0));
    }
}

/// Both gateways with the wire between them; the buffer is used as the worker uses it.
struct Pair {
    a: Gateway,
    b: Gateway,
    wire: Wire,
    buffer: Vec<u8>,
    used: usize,
    delivered: Vec<Vec<u8>>,
}

impl Pair {
    fn new(protocol: Protocol) -> Self {
        let (mut a, mut b) = (Gateway::new(Side::A, protocol), Gateway::new(Side::B, protocol));
        meet(&mut a, &mut b);
        let wire = if protocol == Protocol::WireGuard { Wire::WireGuard } else { Wire::Udp };
        Pair { a, b, wire, buffer: vec![0; 256 * 1024], used: 0, delivered: Vec::new() }
    }

    /// Packets that each tunnel of A has sent.
    fn sent(&mut self) -> Vec<u64> {
        let tables = self.a.reader.enter();
        tables.tunnels().map(|tunnel| tunnel.outbound.as_ref().unwrap().esp().unwrap().sequence()).collect()
    }

    fn send(&mut self, write: &Write) {
        let now = Now::from_nanos(1);
        let start = self.used + HEADROOM;
        let at = start..start + write.bytes.len();
        self.buffer[at.clone()].copy_from_slice(&write.bytes);
        let mut departure = Departure::new(at.clone(), write.vnet);
        loop {
            let tables = self.a.reader.enter();
            let progress = self.a.forwarder.outward(&tables, &mut self.buffer, &mut departure, now);
            drop(tables);
            match progress {
                Progress::Done => break,
                Progress::Full => self.flush(true),
            }
        }
        if departure.is_kept() {
            self.used = at.end + TAILROOM;
        }
        if self.a.forwarder.runs.has_closed() {
            self.flush(false);
        }
        if self.used > 128 * 1024 {
            self.flush(true);
        }
    }

    fn flush(&mut self, all: bool) {
        let Pair { a, b, wire, buffer, used, delivered } = self;
        a.forwarder.runs.flush(all, |run| {
            let from = run.local;
            let segment = run.segment;
            match run.carrier.clone() {
                Carrier::Esp(sa) => run.seal(&mut sa.lock(), buffer).unwrap(),
                Carrier::WireGuard(peer) => {
                    run.seal_wireguard(&mut peer.sending().unwrap(), buffer).unwrap();
                }
            }
            let sealed: Vec<u8> = run.pieces(buffer).flatten().copied().collect();
            let mut arrival = Arrival::new(0, sealed.len(), segment, from, 0, *wire);
            let mut slots = Datagram([vec![0; wire.headroom()], sealed].concat());
            let tables = b.reader.enter();
            let progress = b.forwarder.inward(&tables, &mut slots, &mut arrival, Now::from_nanos(1));
            assert_eq!(progress, Progress::Done);
            for pending in b.forwarder.lan.pending() {
                let place = pending.first();
                let start = usize::from(place.start);
                delivered.push(slots.0[start..start + usize::from(place.len)].to_vec());
            }
            b.forwarder.lan.clear();
        });
        if a.forwarder.runs.is_empty() {
            *used = 0;
        }
    }
}

fn udp(flow: u16, tos: u8, number: u32, len: usize) -> Write {
    let mut payload = vec![flow as u8 ^ number as u8; len.max(4)];
    payload[..4].copy_from_slice(&number.to_be_bytes());
    let mut bytes = Vec::new();
    let mut ip = etherparse::Ipv4Header::new(
        0,
        64,
        etherparse::IpNumber::UDP,
        [10, 1, (flow >> 8) as u8, flow as u8],
        [10, 2, 0, 1],
    )
    .unwrap();
    ip.dscp = etherparse::IpDscp::try_new(tos).unwrap();
    PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
        .udp(1000 + flow, 2000)
        .write(&mut bytes, &payload)
        .unwrap();
    Write { bytes, vnet: Vnet::default() }
}

/// A super-packet whose every segment begins with its number.
fn uso(flow: u16, first: u32, segments: u32, size: usize) -> Write {
    let mut write = udp(flow, 0, 0, size * segments as usize);
    for index in 0..segments {
        let at = 28 + index as usize * size;
        write.bytes[at..at + 4].copy_from_slice(&(first + index).to_be_bytes());
    }
    write.vnet = Vnet {
        needs_csum: true,
        gso: Gso::Udp,
        ecn: false,
        hdr_len: 28,
        gso_size: size as u16,
        csum_start: 20,
        csum_offset: 6,
    };
    write
}

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
    let mut joined = vec![0; Wire::WireGuard.headroom()];
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
    let len = joined.len() - Wire::WireGuard.headroom();
    let mut arrival = Arrival::new(0, len, MAX_HANDSHAKE, from, 0, Wire::WireGuard);
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

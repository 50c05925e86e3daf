//! Each reason for which the packet path drops, counted once, and nothing else counted.

mod pair;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use braid_api::{
    Bfd, BootId, Direction, Op, Sa, SaId, SecretKey, Selectors, Spi, Suite, Target, Tunnel, TunnelId,
};
use braid_dataplane::{
    forward::{Arrival, Now, Progress, Wire},
    offload::{
        coalesce::Slots,
        vnet::{Gso, Vnet},
    },
    runs::MAX_RUNS,
    wireguard::OVERHEAD,
};
use etherparse::PacketBuilder;

use pair::{Datagram, Pair, Protocol, Side, TUNNELS, Write, tunnel, udp};

const SUITE: Suite = Suite::Aes128Gcm16;
const ESP: Protocol = Protocol::Esp(SUITE);

fn whole(bytes: Vec<u8>) -> Write {
    Write { bytes, vnet: Vnet::default() }
}

fn from_to(source: [u8; 4], destination: [u8; 4]) -> Write {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(source, destination, 64).udp(7, 9).write(&mut bytes, b"content").unwrap();
    whole(bytes)
}

fn outbound(number: u32) -> SaId {
    SaId(u64::from(number) * 2 + 2)
}

/// For each tunnel.
fn all(op: impl Fn(u32) -> Op) -> Vec<Op> {
    (0..TUNNELS).map(op).collect()
}

/// A tunnel of this side, changed.
fn changed(side: Side, number: u32, change: impl Fn(&mut Tunnel)) -> Op {
    let Op::PutTunnel(mut settings) = tunnel(side, ESP, BootId([side as u8; 16]), number).remove(0) else {
        panic!("a tunnel comes first")
    };
    change(&mut settings);
    Op::PutTunnel(settings)
}

/// A's SAs again, for these addresses alone.
fn narrow(number: u32) -> Op {
    Op::PutSa(Sa {
        id: SaId(100 + u64::from(number)),
        boot: BootId([Side::A as u8; 16]),
        tunnel: TunnelId(number),
        direction: Direction::Out,
        spi: Spi(4096 + number),
        suite: SUITE,
        key: SecretKey::new(vec![number as u8; SUITE.key_len()]),
        esn: false,
        replay_window: 64,
        selectors: Selectors {
            local: vec!["10.1.0.0/24".parse().unwrap()],
            remote: vec!["10.2.0.0/24".parse().unwrap()],
        },
    })
}

/// What A does with a packet of its LAN: the reason, how many packets, what was changed before.
#[test]
fn what_comes_from_the_lan_and_cannot_leave_is_counted_once() {
    let vnet = |gso| Vnet {
        needs_csum: true,
        gso,
        hdr_len: 28,
        gso_size: 100,
        csum_start: 20,
        csum_offset: 6,
        ecn: false,
    };
    let mut beyond = udp(1, 0, 0, 64);
    beyond.vnet = Vnet { csum_start: 1000, ..vnet(Gso::None) };
    let remote = [10, 7, 0, 1];
    let no_remote = || {
        let ops = tunnel(Side::A, ESP, BootId([Side::A as u8; 16]), TUNNELS).into_iter().skip(1);
        let target = Target::Tunnel(TunnelId(TUNNELS));
        let route = Op::PutRoute { prefix: "10.7.0.0/16".parse().unwrap(), target };
        let unknown = changed(Side::A, TUNNELS, |settings| settings.remote = None);
        [unknown, route].into_iter().chain(ops).collect::<Vec<_>>()
    };
    let mut cut = pair::uso(1, 0, 5, 100);
    cut.bytes[16..20].copy_from_slice(&remote);
    let no_sa = || all(|number| Op::RemoveSa(outbound(number)));
    let few = || no_sa().into_iter().chain(all(narrow)).collect::<Vec<_>>();
    let mut df = udp(1, 0, 0, 1600);
    df.bytes[6] |= 0x40;
    let cases: Vec<(&str, Vec<Op>, Write, u64)> = vec![
        ("inner_malformed", vec![], whole(vec![0x45, 0, 0, 20]), 1),
        ("inner_malformed", vec![], whole(vec![0x15; 40]), 1),
        ("inner_malformed", vec![], whole(udp(1, 0, 0, 64).bytes[..60].to_vec()), 1),
        // The device's header contradicts the packet.
        ("inner_malformed", vec![], Write { vnet: vnet(Gso::Tcp4), ..udp(1, 0, 0, 300) }, 1),
        ("inner_malformed", vec![], beyond, 1),
        ("no_route", vec![], from_to([10, 1, 0, 1], [10, 9, 0, 1]), 1),
        ("not_routable", vec![], from_to([10, 1, 0, 1], [224, 0, 0, 5]), 1),
        ("not_routable", vec![], from_to([10, 1, 0, 1], [255; 4]), 1),
        ("no_tunnel", all(|number| Op::Mask(TunnelId(number))), udp(1, 0, 0, 64), 1),
        ("no_sa", no_sa(), udp(1, 0, 0, 64), 1),
        ("no_sa", no_remote(), from_to([10, 1, 0, 1], remote), 1),
        // A super-packet is the packets that it stands for.
        ("no_sa", no_sa(), pair::uso(1, 0, 5, 100), 5),
        ("no_sa", no_remote(), cut, 5),
        ("no_tunnel", all(|number| Op::Mask(TunnelId(number))), pair::uso(1, 0, 5, 100), 5),
        ("selector_out", few(), from_to([10, 1, 1, 1], [10, 2, 0, 1]), 1),
        ("selector_out", few(), from_to([10, 1, 0, 1], [10, 2, 1, 1]), 1),
        ("too_big", vec![], df, 1),
    ];
    for (at, (reason, ops, write, count)) in cases.into_iter().enumerate() {
        let mut pair = Pair::new(ESP);
        if !ops.is_empty() {
            pair.a.apply(ops);
        }
        pair.send(&write);
        assert!(pair.a.forwarder.runs.is_empty(), "case {at}: it leaves");
        assert_eq!(pair.a.drops(), [(reason, count)], "case {at}");
        assert_eq!(pair.delivered.len(), 0);
    }
    // Inside the selectors it leaves.
    let mut pair = Pair::new(ESP);
    pair.a.apply(few());
    pair.send(&from_to([10, 1, 0, 1], [10, 2, 0, 1]));
    assert!(!pair.a.forwarder.runs.is_empty());
    assert_eq!(pair.a.drops(), []);
}

/// A has a way to B's inside address.
fn pair_to_inside() -> Pair {
    let mut pair = Pair::new(ESP);
    let prefix = "169.254.1.2/32".parse().unwrap();
    pair.a.apply(vec![Op::PutRoute { prefix, target: Target::Tunnel(TunnelId(0)) }]);
    pair
}

fn ping(id: u16, len: usize) -> Write {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ipv4([169, 254, 1, 1], [169, 254, 1, 2], 64).icmpv4_echo_request(id, 1);
    builder.write(&mut bytes, &vec![7; len]).unwrap();
    whole(bytes)
}

fn probe_reply(cookie: u64) -> Write {
    let mut bytes = Vec::new();
    let payload = [&b"braidprb"[..], &cookie.to_be_bytes()].concat();
    let builder = PacketBuilder::ipv4([169, 254, 1, 1], [169, 254, 1, 2], 64).icmpv4_echo_reply(1, 1);
    builder.write(&mut bytes, &payload).unwrap();
    whole(bytes)
}

/// B's tunnel with a BFD session.
fn watched() -> Op {
    let [local, remote] = [[169, 254, 1, 2].into(), [169, 254, 1, 1].into()];
    let session = Bfd { local, remote, interval: Duration::from_secs(1), multiplier: 3 };
    changed(Side::B, 0, |settings| settings.bfd = vec![session])
}

fn bfd() -> Write {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ipv4([169, 254, 1, 1], [169, 254, 1, 2], 255).udp(49_152, 3784);
    builder.write(&mut bytes, &[0x20; 24]).unwrap();
    whole(bytes)
}

/// What A's LAN gets of the answers that wait in B.
fn answers(pair: &mut Pair) -> Vec<Vec<u8>> {
    let Pair { a, b, buffer, .. } = pair;
    let mut got = Vec::new();
    b.forwarder.runs.flush(true, |run| {
        let sa = Arc::clone(run.carrier.esp().unwrap());
        run.seal(&mut sa.lock(), buffer).unwrap();
        let sealed: Vec<u8> = run.pieces(buffer).flatten().copied().collect();
        let mut arrival = Arrival::new(0, sealed.len(), run.segment, run.local, 0, Wire::Udp);
        let mut slots = Datagram(sealed);
        let tables = a.reader.enter();
        let progress = a.forwarder.inward(&tables, &mut slots, &mut arrival, Now::from_nanos(1));
        assert_eq!(progress, Progress::Done);
        got.extend(a.forwarder.lan.pending().iter().map(|pending| slots.bytes(pending.first()).to_vec()));
        a.forwarder.lan.clear();
    });
    got
}

#[test]
fn in_overload_data_is_shed_and_what_proves_the_tunnel_alive_is_not() {
    let mut pair = pair_to_inside();
    pair.b.apply(vec![watched()]);
    pair.b.forwarder.overloaded = true;
    for write in [udp(1, 0, 0, 64), ping(1, 64), probe_reply(5), bfd()] {
        pair.send(&write);
    }
    pair.flush(true);
    assert_eq!(pair.b.drops(), [("overload", 1)]);
    assert!(pair.delivered.is_empty());
    assert_eq!(pair.b.forwarder.probe_replies.iter().map(|reply| reply.cookie).collect::<Vec<_>>(), [5]);
    assert_eq!(pair.b.forwarder.bfd_packets.len(), 1);
    let [answer] = &answers(&mut pair)[..] else { panic!("no answer") };
    assert_eq!((&answer[12..20], answer[20]), (&[169, 254, 1, 2, 169, 254, 1, 1][..], 0));
    // What the core does not answer itself is for the kernel, and no data either.
    let mut to_us = from_to([169, 254, 1, 1], [169, 254, 1, 2]);
    to_us.bytes[8] = 3;
    pair.send(&to_us);
    pair.flush(true);
    assert_eq!(pair.delivered, [to_us.bytes]);
    assert_eq!((pair.a.drops(), pair.b.drops()), (vec![], vec![("overload", 1)]));
    pair.b.forwarder.overloaded = false;
    pair.send(&udp(1, 0, 0, 64));
    pair.flush(true);
    assert_eq!(pair.delivered.len(), 2);
}

#[test]
fn what_the_gateway_cannot_take_for_itself_is_counted() {
    const KEPT: usize = 64;
    const MORE: usize = 3;
    let mut pair = pair_to_inside();
    (0..KEPT + MORE).for_each(|cookie| pair.send(&probe_reply(cookie as u64)));
    pair.flush(true);
    assert_eq!(pair.b.forwarder.probe_replies.len(), KEPT);
    assert_eq!(pair.b.drops(), [("liveness_full", MORE as u64)]);

    let mut pair = pair_to_inside();
    pair.b.apply(vec![watched()]);
    (0..KEPT + MORE).for_each(|_| pair.send(&bfd()));
    pair.flush(true);
    assert_eq!(pair.b.forwarder.bfd_packets.len(), KEPT);
    assert_eq!(pair.b.drops(), [("liveness_full", MORE as u64)]);

    // Each length opens a run of its own, and none leaves.
    let mut pair = pair_to_inside();
    for number in 0..MAX_RUNS + MORE {
        pair.send(&ping(number as u16, 64 + number * 16));
        pair.flush(true);
    }
    assert_eq!(pair.b.drops(), [("echo_full", MORE as u64)]);
    assert_eq!(answers(&mut pair).len(), MAX_RUNS);

    let mut pair = pair_to_inside();
    pair.b.apply(all(|number| Op::RemoveSa(outbound(number))));
    pair.send(&ping(1, 64));
    pair.flush(true);
    assert_eq!(pair.b.drops(), [("no_sa", 1)]);
    assert_eq!(pair.delivered.len(), 0);
}

/// What B does with a datagram that comes to this address of its: what is counted, and whether its sender is the
/// peer's address from then on.
#[test]
fn what_wireguard_does_not_take_is_counted_once_and_moves_nobody() {
    let local = |host: u8, port: u16| SocketAddr::from(([192, 0, 2, host], port));
    let (ours, elsewhere) = (local(2, 4500), local(77, 7777));
    type Change = fn(&mut Vec<u8>);
    let cases: [(&str, SocketAddr, Change); 9] = [
        ("bad_icv", ours, |sealed| *sealed.last_mut().unwrap() ^= 1),
        ("bad_icv", ours, |sealed| sealed[8] ^= 1),
        ("unknown_session", ours, |sealed| sealed[5] ^= 1),
        ("counter_limit", ours, |sealed| sealed[8..16].fill(0xFF)),
        ("not_wireguard", ours, |sealed| sealed[0] = 5),
        ("not_wireguard", ours, |sealed| sealed[1] = 1),
        ("not_wireguard", ours, |sealed| sealed.truncate(31)),
        // Of another tunnel, and an address that no tunnel has.
        ("unknown_session", local(2, 4501), |_| ()),
        ("unknown_session", local(3, 4500), |_| ()),
    ];
    let mut pair = Pair::new(Protocol::WireGuard);
    let seal = |pair: &mut Pair| {
        let packet = from_to([10, 1, 0, 1], [10, 2, 0, 1]).bytes;
        let mut sealed = vec![0; packet.len() + OVERHEAD];
        let tables = pair.a.reader.enter();
        let carrier = tables.tunnel(TunnelId(0)).unwrap().outbound.as_ref().unwrap();
        carrier.wireguard().unwrap().sending().unwrap().seal(&packet, &mut sealed).unwrap();
        sealed
    };
    let receive = |pair: &mut Pair, datagram: &[u8], to: SocketAddr| {
        let before = pair.b.drops();
        let wire = Wire::WireGuard(to);
        let mut slots = Datagram([&vec![0; wire.headroom()], datagram].concat());
        let mut arrival = Arrival::new(0, datagram.len(), datagram.len(), elsewhere, 0, wire);
        let mut reader = pair.b.reader.clone();
        let tables = reader.enter();
        let progress = pair.b.forwarder.inward(&tables, &mut slots, &mut arrival, Now::from_nanos(1));
        assert_eq!(progress, Progress::Done);
        let delivered = pair.b.forwarder.lan.pending().len();
        pair.b.forwarder.lan.clear();
        let moved = tables.tunnel(TunnelId(0)).unwrap().live.remote() == Some(elsewhere);
        let of = |name| before.iter().find(|(reason, _)| *reason == name).map_or(0, |(_, count)| *count);
        let counted = pair.b.drops().into_iter().map(|(name, count)| (name, count - of(name)));
        (counted.filter(|(_, count)| *count > 0).collect::<Vec<_>>(), delivered, moved)
    };
    for (at, (reason, to, change)) in cases.into_iter().enumerate() {
        let mut sealed = seal(&mut pair);
        change(&mut sealed);
        assert_eq!(receive(&mut pair, &sealed, to), (vec![(reason, 1)], 0, false), "case {at}");
    }
    let sealed = seal(&mut pair);
    assert_eq!(receive(&mut pair, &sealed, ours), (vec![], 1, true));
    assert_eq!(receive(&mut pair, &sealed, ours), (vec![("replayed", 1)], 0, true));
}

//! What the packet path does for IKE: hands its messages over, changes SAs without losing a packet,
//! tells of a new SA's first packet, and follows a peer that may move.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use braid_api::{
    Allowed, BootId, DfPolicy, Direction, Encapsulation, Epoch, Event, Op, Sa, SaId, SecretKey, Selectors,
    Spi, Suite, Target, Transaction, Tunnel, TunnelId,
};
use braid_dataplane::{
    drop_reason::DropReason,
    esp::Engine,
    forward::{Arrival, Departure, Drops, Forwarder, Now, Progress, Wire},
    offload::{coalesce::Slots, vnet::Vnet},
    runs::HEADROOM,
    tables::{Reader, Writer},
};
use etherparse::PacketBuilder;

const SUITE: Suite = Suite::Aes128Gcm16;
const TUNNEL: TunnelId = TunnelId(0);

struct Gateway {
    writer: Writer,
    reader: Reader,
    forwarder: Forwarder,
    drops: Arc<Drops>,
    boot: BootId,
    epoch: u64,
}

/// One datagram, or several of equal size.
struct Datagrams(Vec<u8>);

impl Slots for Datagrams {
    fn slot(&self, _: usize) -> &[u8] {
        &self.0
    }

    fn slot_mut(&mut self, _: usize) -> &mut [u8] {
        &mut self.0
    }
}

fn outer(side: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, side], 4500))
}

impl Gateway {
    fn new(side: u8, follow_remote: bool) -> Self {
        let boot = BootId([side; 16]);
        let mut writer = Writer::new(1, boot, Engine::detect(), &[3; 32]);
        writer.begin_sync();
        let settings = Tunnel {
            id: TUNNEL,
            name: "t".into(),
            local: outer(side),
            remote: Some(outer(3 - side)),
            uplink: None,
            follow_remote,
            encapsulation: Encapsulation::Udp,
            keepalive: false,
            inside: vec![IpAddr::from([169, 254, 1, side])],
            peer_inside: vec![IpAddr::from([169, 254, 1, 3 - side])],
            path_mtu: 1500,
            clamp_mtu: 1500,
            df: DfPolicy::Honour,
            allowed: Allowed::Routed,
            probe: None,
            bfd: Vec::new(),
            reach: Vec::new(),
        };
        let prefix = format!("10.{}.0.0/16", 3 - side).parse().unwrap();
        let drops = Arc::new(Drops::new(1));
        let forwarder = Forwarder::new(0, 64, false, writer.states().clone(), drops.clone());
        let mut gateway = Gateway { reader: writer.reader(), writer, forwarder, drops, boot, epoch: 0 };
        gateway.apply(vec![
            Op::PutTunnel(settings),
            Op::PutRoute { prefix, target: Target::Tunnel(TUNNEL) },
            Op::Unmask(TUNNEL),
        ]);
        gateway
    }

    fn apply(&mut self, ops: Vec<Op>) {
        self.epoch += 1;
        self.writer.apply(Transaction { epoch: Epoch(self.epoch), ops }, 0).unwrap();
    }

    /// Installs one half of the pair with this number; both sides give it the same id.
    fn put_sa(&mut self, number: u64, from: u8, direction: Direction) {
        let key = (0..SUITE.key_len()).map(|at| (at as u8).wrapping_mul(37) ^ from ^ (number as u8) << 3);
        self.apply(vec![Op::PutSa(Sa {
            id: sa_id(number, direction),
            boot: self.boot,
            tunnel: TUNNEL,
            direction,
            spi: Spi((u32::from(from) << 16) | (256 + number as u32)),
            suite: SUITE,
            key: SecretKey::new(key.collect()),
            esn: true,
            replay_window: 1024,
            selectors: Selectors::default(),
        })]);
    }

    fn drops(&self) -> Vec<(&'static str, u64)> {
        let counted = DropReason::ALL.iter().map(|reason| (reason.name(), self.drops.sum(*reason as usize)));
        counted.filter(|(_, count)| *count > 0).collect()
    }

    /// Takes one packet from the LAN; it waits in an open run.
    fn take(&mut self, buffer: &mut [u8], at: core::ops::Range<usize>) {
        let mut departure = Departure::new(at, Vnet::default());
        let tables = self.reader.enter();
        let progress = self.forwarder.outward(&tables, buffer, &mut departure, Now::from_nanos(1));
        assert_eq!(progress, Progress::Done);
    }

    /// Everything that waits, sealed.
    fn seal(&mut self, buffer: &mut [u8]) -> Vec<(Vec<u8>, usize)> {
        let mut sealed = Vec::new();
        self.forwarder.runs.flush(true, |run| {
            let sa = Arc::clone(run.carrier.esp().unwrap());
            let segment = run.segment;
            run.seal(&mut sa.lock(), buffer).unwrap();
            sealed.push((run.pieces(buffer).flatten().copied().collect(), segment));
        });
        sealed
    }

    /// Receives datagrams; the inner packets that came out.
    fn receive(&mut self, bytes: Vec<u8>, segment: usize, from: SocketAddr, wire: Wire) -> Vec<Vec<u8>> {
        let mut arrival = Arrival::new(0, bytes.len(), segment, from, 0, wire);
        let mut slots = Datagrams(bytes);
        let tables = self.reader.enter();
        let progress = self.forwarder.inward(&tables, &mut slots, &mut arrival, Now::from_nanos(5));
        assert_eq!(progress, Progress::Done);
        let pending = self.forwarder.lan.pending().iter().map(|pending| pending.first());
        let out = pending.map(|place| slots.0[usize::from(place.start)..][..usize::from(place.len)].to_vec());
        let out = out.collect();
        self.forwarder.lan.clear();
        out
    }

    /// Where the IKE messages start and end.
    fn punted(&mut self) -> Vec<(usize, usize)> {
        self.forwarder.punted.drain(..).map(|range| (range.start, range.end)).collect()
    }

    fn remote(&mut self) -> SocketAddr {
        self.reader.enter().tunnel(TUNNEL).unwrap().live.remote().unwrap()
    }
}

/// Ids ascend in the order in which IKE installs: in before out.
fn sa_id(number: u64, direction: Direction) -> SaId {
    SaId(number * 2 + u64::from(direction == Direction::Out))
}

fn packet(number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4([10, 1, 0, 1], [10, 2, 0, 1], 64)
        .udp(1000, 2000)
        .write(&mut bytes, &number.to_be_bytes())
        .unwrap();
    bytes
}

fn number_of(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[28..32].try_into().unwrap())
}

/// A sends one packet through its newest SA; what is on the wire.
fn sealed(a: &mut Gateway, number: u32) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let bytes = packet(number);
    let at = HEADROOM..HEADROOM + bytes.len();
    buffer[at.clone()].copy_from_slice(&bytes);
    a.take(&mut buffer, at);
    a.seal(&mut buffer).remove(0).0
}

fn pair(follow_remote: bool) -> (Gateway, Gateway) {
    let (mut a, mut b) = (Gateway::new(1, false), Gateway::new(2, follow_remote));
    b.put_sa(1, 1, Direction::In);
    a.put_sa(1, 1, Direction::Out);
    (a, b)
}

fn spis(events: &[Event]) -> Vec<u32> {
    let traffic = events.iter().map(|event| match event {
        Event::Traffic(traffic) => traffic[0].spi.0,
        other => panic!("{other:?}"),
    });
    traffic.collect()
}

#[test]
fn a_rekey_under_traffic_loses_and_reorders_nothing() {
    let (mut a, mut b) = pair(false);
    let mut delivered = Vec::new();
    let mut wire: Vec<Vec<u8>> = Vec::new();
    let mut next = 0;
    for number in 2..30 {
        // Packets of the old SA are open in a run, sealed, and on the wire while the SA changes.
        let mut buffer = vec![0; 64 * 1024];
        let mut used = HEADROOM;
        for step in 0..40 {
            let bytes = packet(next);
            next += 1;
            buffer[used..used + bytes.len()].copy_from_slice(&bytes);
            a.take(&mut buffer, used..used + bytes.len());
            used += 1024;
            match step {
                10 => b.put_sa(number, 1, Direction::In),
                20 => a.put_sa(number, 1, Direction::Out),
                30 => a.apply(vec![Op::RemoveSa(sa_id(number - 1, Direction::Out))]),
                _ => {}
            }
        }
        for (bytes, segment) in a.seal(&mut buffer) {
            wire.extend(bytes.chunks(segment).map(<[u8]>::to_vec));
        }
        for datagram in wire.drain(..) {
            let segment = datagram.len();
            delivered.extend(b.receive(datagram, segment, outer(1), Wire::Udp));
        }
        // The peer has moved to the new one; then the old one goes (RFC 7296 section 2.8).
        b.apply(vec![Op::RemoveSa(sa_id(number - 1, Direction::In))]);
    }
    assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
    let numbers: Vec<u32> = delivered.iter().map(|packet| number_of(packet)).collect();
    assert_eq!(numbers, (0..next).collect::<Vec<_>>());
    assert_eq!(
        spis(&b.forwarder.events),
        (1..30).map(|number| (1 << 16) | (256 + number)).collect::<Vec<_>>()
    );
}

#[test]
fn without_the_newest_outbound_sa_the_one_before_it_carries() {
    let (mut a, mut b) = pair(false);
    b.put_sa(2, 1, Direction::In);
    a.put_sa(2, 1, Direction::Out);
    a.apply(vec![Op::RemoveSa(sa_id(2, Direction::Out))]);
    let bytes = sealed(&mut a, 9);
    assert_eq!(bytes[..4], 0x0001_0101_u32.to_be_bytes());
    let segment = bytes.len();
    assert_eq!(b.receive(bytes, segment, outer(1), Wire::Udp), [packet(9)]);
    // A new SA is never an old one: neither the id nor the key comes back.
    let mut again = Gateway::new(1, false);
    again.put_sa(1, 1, Direction::Out);
    assert_eq!(sealed(&mut again, 1)[..4], 0x0001_0101_u32.to_be_bytes());
}

#[test]
fn ike_among_esp_goes_to_control_in_overload_too() {
    let (mut a, mut b) = pair(false);
    let first = sealed(&mut a, 1);
    let segment = first.len();
    let mut ike = vec![0; 4];
    ike.resize(segment, 0xAA);
    let last = sealed(&mut a, 2);
    let buffer = [first, ike.clone(), last].concat();
    let out = b.receive(buffer.clone(), segment, outer(1), Wire::Udp);
    assert_eq!(out, [packet(1), packet(2)]);
    assert_eq!(b.punted(), [(segment + 4, 2 * segment)]);
    b.forwarder.overloaded = true;
    assert!(b.receive(ike.clone(), segment, outer(1), Wire::Udp).is_empty());
    assert_eq!(b.punted(), [(4, segment)]);
    assert_eq!(b.drops(), []);
    // On port 500 there is no marker, and nothing is ESP.
    assert_eq!(Wire::of(SocketAddr::from(([192, 0, 2, 1], 500))), Wire::Ike);
    assert!(b.receive(vec![0xFF], 1, outer(1), Wire::Ike).is_empty());
    let esp = sealed(&mut a, 3);
    let len = esp.len();
    assert!(b.receive(esp, len, outer(1), Wire::Ike).is_empty());
    assert_eq!(b.punted(), [(0, len)]);
    assert_eq!(b.drops(), []);
}

#[test]
fn a_buffer_full_of_ike_is_bounded() {
    let (_, mut b) = pair(false);
    let out = b.receive([0, 0, 0, 0, 1].repeat(200), 5, outer(1), Wire::Udp);
    assert!(out.is_empty());
    let kept = b.forwarder.punted.len() as u64;
    assert_eq!(b.drops(), [("punt_full", 200 - kept)]);
    assert!((1..200).contains(&kept));
}

#[test]
fn only_the_newest_packet_moves_a_peer_and_only_where_it_may_move() {
    let elsewhere = SocketAddr::from(([198, 51, 100, 9], 61_000));
    let (mut a, mut b) = pair(true);
    let packets: Vec<Vec<u8>> = (0..4).map(|number| sealed(&mut a, number)).collect();
    let segment = packets[0].len();
    let hear = |b: &mut Gateway, number: usize, from| {
        b.receive(packets[number].clone(), segment, from, Wire::Udp);
        b.remote()
    };
    assert_eq!(hear(&mut b, 0, outer(1)), outer(1));
    assert_eq!(hear(&mut b, 2, elsewhere), elsewhere);
    // Late, from where the peer was before.
    assert_eq!(hear(&mut b, 1, outer(1)), elsewhere);
    // Replayed from where an attacker is.
    assert_eq!(hear(&mut b, 2, SocketAddr::from(([203, 0, 113, 66], 4500))), elsewhere);
    assert_eq!(hear(&mut b, 3, outer(1)), outer(1));

    let (mut a, mut b) = pair(false);
    let bytes = sealed(&mut a, 1);
    assert_eq!(b.receive(bytes, segment, elsewhere, Wire::Udp).len(), 1);
    assert_eq!(b.remote(), outer(1));
}

#[test]
fn traffic_is_told_once_and_again_to_another_control() {
    let (mut a, mut b) = pair(false);
    assert_eq!(b.writer.traffic(10), []);
    let bytes = sealed(&mut a, 1);
    let segment = bytes.len();
    b.receive(bytes, segment, outer(1), Wire::Udp);
    let told = b.writer.traffic(1_000_000_005);
    assert_eq!((told.len(), told[0].sa, told[0].packets), (1, sa_id(1, Direction::In), 1));
    assert_eq!(told[0].heard_ago, Some(std::time::Duration::from_secs(1)));
    assert_eq!((told[0].bytes, told[0].direction), (packet(1).len() as u64, Direction::In));
    assert_eq!(b.writer.traffic(2_000_000_000), []);
    b.writer.begin_sync();
    assert_eq!(b.writer.traffic(2_000_000_000).len(), 1);
    // As the worker counts when a run leaves.
    a.reader.enter().tunnel(TUNNEL).unwrap().outbound.as_ref().unwrap().esp().unwrap().counter.add(3, 300);
    let sent = a.writer.traffic(9);
    assert_eq!((sent.len(), sent[0].packets, sent[0].heard_ago), (1, 3, None));
    assert_eq!(sent[0].direction, Direction::Out);
}

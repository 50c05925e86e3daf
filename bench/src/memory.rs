//! A forwarder with its tables, and what feeds it in place of devices and sockets.

pub mod large;

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use aws_lc_rs::agreement;
use braid_api::{
    Allowed, BootId, DfPolicy, Direction, Encapsulation, Epoch, Group, GroupId, Member, Op, Sa, SaId,
    SecretKey, Selectors, Spi, Suite, Target, Transaction, Tunnel, TunnelId, WireGuard,
};
use braid_dataplane::{
    drop_reason::DropReason,
    esp::Engine,
    forward::{Arrival, Departure, Drops, Forwarder, Progress, Wire},
    offload::{coalesce::Slots, vnet::Vnet},
    runs::{HEADROOM, Run, TAILROOM},
    tables::{Carrier, Reader, Writer},
    wireguard::MAX_HANDSHAKE,
    worker::{KEEP_BYTES, monotonic},
};

/// Packets that are read together.
pub const BATCH: usize = 64;

/// Inner header of IPv4 and UDP, in bytes.
pub const HEADER: usize = 28;
const SEGMENTS: u16 = 64;
const OPS: usize = 50_000;

/// Which end of the tunnels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What is measured.
    Ours,
    /// The other end.
    Peer,
}

/// What the tunnels are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// IPsec, in UDP.
    Esp(Suite),
    /// With keys that either end knows.
    WireGuard,
}

/// One gateway without devices.
pub struct Gateway {
    /// Of its tables.
    pub reader: Reader,
    forwarder: Forwarder,
    drops: Arc<Drops>,
    // The tables live as long as it publishes them.
    writer: Writer,
    epoch: u64,
}

impl Gateway {
    /// `tunnels` tunnels, whose members and routes `ops` adds. Those of WireGuard have no session yet.
    pub fn new(side: Side, protocol: Protocol, tunnels: u32, ops: impl Iterator<Item = Op>) -> Self {
        let boot = BootId([side as u8; 16]);
        let writer = Writer::new(1, boot, Engine::detect(), &[3; 32]);
        let drops = Arc::new(Drops::new(1));
        let forwarder = Forwarder::new(0, SEGMENTS, true, writer.states().clone(), Arc::clone(&drops));
        let mut gateway = Gateway { reader: writer.reader(), forwarder, drops, writer, epoch: 0 };
        let tunnels_ops = (0..tunnels).flat_map(|number| tunnel(side, protocol, boot, number));
        let unmask = (0..tunnels).map(|number| Op::Unmask(TunnelId(number)));
        let mut ops = tunnels_ops.chain(ops).chain(unmask);
        loop {
            let some: Vec<Op> = ops.by_ref().take(OPS).collect();
            if some.is_empty() {
                return gateway;
            }
            gateway.apply(some);
        }
    }

    /// Applies one transaction.
    ///
    /// # Panics
    /// When it is not valid.
    pub fn apply(&mut self, ops: Vec<Op>) {
        self.epoch += 1;
        let transaction = Transaction { epoch: Epoch(self.epoch), ops };
        self.writer.apply(transaction, monotonic().nanos).expect("a valid transaction");
    }

    /// Makes WireGuard's sessions with a peer; ESP needs none.
    pub fn meet(&mut self, peer: &mut Gateway) {
        let (ours, theirs) = (self.reader.enter(), peer.reader.enter());
        for (us, them) in ours.tunnels().zip(theirs.tunnels()) {
            let of = |tunnel: &Arc<braid_dataplane::tables::Tunnel>| {
                tunnel.outbound.as_ref().and_then(Carrier::wireguard).cloned()
            };
            let (Some(us), Some(them)) = (of(us), of(them)) else { return };
            let from = IpAddr::from([192, 0, 2, 1]);
            let (mut message, mut reply) = ([0; MAX_HANDSHAKE], [0; MAX_HANDSHAKE]);
            us.want_session();
            assert_eq!(us.handle_timeout(true, &mut message), MAX_HANDSHAKE);
            let response = them.handle_handshake(from, &message, &mut reply).expect("an initiation").reply;
            let keepalive =
                us.handle_handshake(from, &reply[..response], &mut message).expect("a response").reply;
            let opened = them.receiving().open(&message[..keepalive], &mut reply);
            assert_eq!(opened, Ok(0));
        }
    }

    /// Takes a batch from the source as far as sealed runs, each of which `leave` gets with the buffer that
    /// it lies in, as the worker does between device and socket.
    pub fn outward(&mut self, source: &mut Source, mut leave: impl FnMut(&Run, &[u8])) {
        let now = monotonic();
        let tables = self.reader.enter();
        let Source { len, buffer, .. } = source;
        let mut kept = 0;
        for at in (HEADROOM..buffer.len()).step_by(HEADROOM + *len + TAILROOM) {
            let mut departure = Departure::new(at..at + *len, Vnet::default());
            while self.forwarder.outward(&tables, buffer, &mut departure, now) == Progress::Full {
                flush(&mut self.forwarder, true, buffer, &mut leave);
            }
            if departure.is_kept() {
                kept += *len;
            }
            if self.forwarder.runs.has_closed() || kept > KEEP_BYTES {
                flush(&mut self.forwarder, kept > KEEP_BYTES, buffer, &mut leave);
                kept = if kept > KEEP_BYTES { 0 } else { kept };
            }
        }
        flush(&mut self.forwarder, true, buffer, &mut leave);
    }

    /// Takes received runs as far as packets for the LAN, and forgets these; their number.
    pub fn inward(&mut self, pool: &mut Pool) -> usize {
        let now = monotonic();
        let tables = self.reader.enter();
        let mut packets = 0;
        for arrival in &mut pool.arrivals {
            while self.forwarder.inward(&tables, &mut pool.slots, arrival, now) == Progress::Full {
                packets += black_box(self.forwarder.lan.pending()).len();
                self.forwarder.lan.clear();
            }
        }
        packets += black_box(self.forwarder.lan.pending()).len();
        self.forwarder.lan.clear();
        packets
    }

    /// A packet that was dropped was not forwarded, and must not count as fast.
    pub fn assert_no_drops(&self) {
        for reason in DropReason::ALL {
            assert_eq!(self.drops.sum(*reason as usize), 0, "{}", reason.name());
        }
    }
}

#[inline]
fn flush(forwarder: &mut Forwarder, all: bool, buffer: &mut [u8], leave: &mut impl FnMut(&Run, &[u8])) {
    forwarder.runs.flush(all, |run| {
        match run.carrier.clone() {
            Carrier::Esp(sa) => {
                let mut sequence = sa.lock();
                run.seal(&mut sequence, buffer).expect("far below 2^32 packets");
                leave(run, buffer);
                drop(sequence);
                sa.counter.add(u64::from(run.count), run.inner_bytes);
            }
            Carrier::WireGuard(peer) => {
                let mut session = peer.sending().expect("a session");
                run.seal_wireguard(&mut session, buffer).expect("far below 2^60 packets");
                leave(run, buffer);
            }
        }
        run.live.sent(0, u64::from(run.count), run.inner_bytes);
    });
}

/// Flows that take turns. A batch of packets stands in the buffer as the worker has read it.
pub struct Source {
    headers: Vec<[u8; HEADER]>,
    next: usize,
    len: usize,
    buffer: Vec<u8>,
}

impl Source {
    /// Packets of `len` bytes, one flow to each destination.
    pub fn new(len: usize, destinations: impl Iterator<Item = Ipv4Addr>) -> Self {
        let headers = destinations.enumerate().map(|(flow, to)| header(len, flow as u16, to)).collect();
        Source { headers, next: 0, len, buffer: vec![0xA5; BATCH * (HEADROOM + len + TAILROOM)] }
    }

    /// Reads the next batch.
    pub fn refill(&mut self) {
        for place in self.buffer.chunks_exact_mut(HEADROOM + self.len + TAILROOM) {
            place[HEADROOM..HEADROOM + HEADER].copy_from_slice(&self.headers[self.next]);
            self.next = (self.next + 1) % self.headers.len();
        }
    }
}

/// What the peer has received.
pub struct Pool {
    slots: Buffers,
    arrivals: Vec<Arrival>,
    protocol: Protocol,
}

struct Buffers(Vec<Box<[u8]>>);

impl Slots for Buffers {
    fn slot(&self, slot: usize) -> &[u8] {
        &self.0[slot]
    }

    fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        &mut self.0[slot]
    }
}

impl Pool {
    /// Nothing yet.
    pub fn new(protocol: Protocol) -> Self {
        let headroom = wire(protocol, outer(Side::Ours, 0)).headroom();
        let slots = (0..BATCH).map(|_| vec![0; 65_536 + headroom].into_boxed_slice()).collect();
        Pool { slots: Buffers(slots), arrivals: Vec::with_capacity(BATCH), protocol }
    }

    /// Receives a batch, whose sequence numbers are fresh.
    pub fn refill(&mut self, from: &mut Gateway, source: &mut Source) {
        self.arrivals.clear();
        source.refill();
        from.outward(source, |run, buffer| {
            let slot = self.arrivals.len();
            let wire = wire(self.protocol, run.to);
            let mut len = 0;
            for piece in run.pieces(buffer) {
                let at = wire.headroom() + len;
                self.slots.0[slot][at..at + piece.len()].copy_from_slice(piece);
                len += piece.len();
            }
            self.arrivals.push(Arrival::new(slot, len, run.segment, outer(Side::Ours, 0), 0, wire));
        });
    }
}

/// The socket of a tunnel's address.
fn wire(protocol: Protocol, local: SocketAddr) -> Wire {
    if protocol == Protocol::WireGuard { Wire::WireGuard(local) } else { Wire::Udp }
}

/// A group of the tunnels in `members`, all alike.
pub fn group(id: u32, members: core::ops::Range<u32>) -> Op {
    let member = |tunnel| Member { tunnel: TunnelId(tunnel), weight: 1, priority: 0 };
    Op::PutGroup(Group { id: GroupId(id), members: members.map(member).collect() })
}

/// A route to a group.
pub fn route(to: Ipv4Addr, len: u8, group: u32) -> Op {
    let prefix = ipnet::IpNet::new(IpAddr::V4(to), len).expect("at most 32 bits");
    Op::PutRoute { prefix, target: Target::Group(GroupId(group)) }
}

fn outer(side: Side, number: u32) -> SocketAddr {
    let net = if side == Side::Ours { 0xC000_0200_u32 } else { 0xC633_6400 };
    SocketAddr::from((Ipv4Addr::from_bits(net + number / 1000), 4500 + (number % 1000) as u16))
}

fn other(side: Side) -> Side {
    if side == Side::Ours { Side::Peer } else { Side::Ours }
}

/// A tunnel and its keys.
fn tunnel(side: Side, protocol: Protocol, boot: BootId, number: u32) -> Vec<Op> {
    let id = TunnelId(number);
    let tunnel = Op::PutTunnel(Tunnel {
        id,
        name: format!("tunnel-{number}"),
        local: outer(side, number),
        remote: Some(outer(other(side), number)),
        uplink: None,
        follow_remote: false,
        encapsulation: match protocol {
            Protocol::Esp(_) => Encapsulation::Udp,
            Protocol::WireGuard => Encapsulation::WireGuard,
        },
        keepalive: false,
        inside: vec![Ipv4Addr::new(169, 254, 1, 1 + side as u8).into()],
        peer_inside: vec![Ipv4Addr::new(169, 254, 1, 1 + other(side) as u8).into()],
        path_mtu: 9200,
        clamp_mtu: 9100,
        df: DfPolicy::Honour,
        allowed: Allowed::Routed,
        probe: None,
        bfd: Vec::new(),
        reach: Vec::new(),
    });
    let suite = match protocol {
        Protocol::Esp(suite) => suite,
        Protocol::WireGuard => return vec![tunnel, keys(side, id)],
    };
    // An SA is known by its sender.
    let sa = |n: u64, direction: Direction| {
        let sender = if direction == Direction::Out { side } else { other(side) };
        let mut key: Vec<u8> =
            (0..suite.key_len()).map(|at| (at as u8).wrapping_mul(37) ^ sender as u8).collect();
        key[..4].copy_from_slice(&number.to_be_bytes());
        Op::PutSa(Sa {
            id: SaId(1 + n + 2 * u64::from(number)),
            boot,
            tunnel: id,
            direction,
            spi: Spi((1 + sender as u32) << 24 | number),
            suite,
            key: SecretKey::new(key),
            esn: false,
            replay_window: 2048,
            selectors: Selectors::default(),
        })
    };
    vec![tunnel, sa(0, Direction::In), sa(1, Direction::Out)]
}

/// Each side's private key is known to the other, which makes the public one of it.
fn keys(side: Side, tunnel: TunnelId) -> Op {
    let private = |side: Side| [1 + side as u8; 32];
    let public = |private: [u8; 32]| {
        let key = agreement::PrivateKey::from_private_key(&agreement::X25519, &private).expect("32 bytes");
        key.compute_public_key().expect("X25519 takes every key").as_ref().try_into().expect("32 bytes")
    };
    Op::PutWireGuard(WireGuard {
        tunnel,
        private_key: SecretKey::new(private(side).to_vec()),
        peer_public_key: public(private(other(side))),
        preshared_key: None,
        keepalive: None,
        initiate: false,
        begin: false,
    })
}

/// IPv4 and UDP, from a source and a port of its own for each flow.
fn header(len: usize, flow: u16, to: Ipv4Addr) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    header[6] = 0x40;
    header[8] = 64;
    header[9] = 17;
    header[12..16].copy_from_slice(&(0x0A01_0000 | u32::from(flow)).to_be_bytes());
    header[16..20].copy_from_slice(&to.octets());
    let words = header[..20].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xFFFF) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    header[20..22].copy_from_slice(&(1024 + flow).to_be_bytes());
    header[22..24].copy_from_slice(&53_u16.to_be_bytes());
    header[24..26].copy_from_slice(&((len - 20) as u16).to_be_bytes());
    header
}

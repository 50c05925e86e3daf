//! Two gateways without sockets: what is written into one's device comes out of the other's.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
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
    forward::{Arrival, Departure, Drops, Forwarder, Now, Progress, Wire},
    io::tun::TunDevice,
    offload::{
        coalesce::{Coalescer, Slots},
        vnet::{Gso, VNET_LEN, Vnet},
    },
    runs::{HEADROOM, TAILROOM},
    tables::{Carrier, Reader, Writer},
    wireguard::MAX_HANDSHAKE,
    worker::lan,
};
use etherparse::PacketBuilder;

pub(crate) const TUNNELS: u32 = 2;
pub(crate) const MTU: u16 = 1600;

pub(crate) struct Gateway {
    pub(crate) writer: Writer,
    pub(crate) reader: Reader,
    pub(crate) forwarder: Forwarder,
    pub(crate) drops: Arc<Drops>,
    epoch: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    A = 1,
    B = 2,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protocol {
    Esp(Suite),
    WireGuard,
}

impl Protocol {
    /// The socket of a tunnel's address.
    pub(crate) fn wire(self, local: SocketAddr) -> Wire {
        if self == Protocol::WireGuard { Wire::WireGuard(local) } else { Wire::Udp }
    }
}

/// Each side's private key is known to the other, which makes the public one of it.
pub(crate) fn keys(side: Side, peer: Side, tunnel: TunnelId) -> Op {
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

pub(crate) fn tunnel(side: Side, protocol: Protocol, boot: BootId, number: u32) -> Vec<Op> {
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
    pub(crate) fn new(side: Side, protocol: Protocol) -> Self {
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
        Gateway { reader: writer.reader(), writer, forwarder, drops, epoch: 1 }
    }

    pub(crate) fn apply(&mut self, ops: Vec<Op>) {
        self.epoch += 1;
        self.writer.apply(Transaction { epoch: Epoch(self.epoch), ops }, 0).unwrap();
    }

    pub(crate) fn drops(&self) -> Vec<(&'static str, u64)> {
        let counted = DropReason::ALL.iter().map(|reason| (reason.name(), self.drops.sum(*reason as usize)));
        counted.filter(|(_, count)| *count > 0).collect()
    }
}

pub(crate) struct Datagram(pub(crate) Vec<u8>);

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
pub(crate) struct Write {
    pub(crate) bytes: Vec<u8>,
    pub(crate) vnet: Vnet,
}

/// The LAN's device of a gateway, and what the kernel has taken.
pub(crate) struct Device {
    vnet_hdr: bool,
    /// What the kernel does not want.
    pub(crate) refuses: fn(Vnet) -> bool,
    pub(crate) refused: Cell<usize>,
    taken: RefCell<Vec<Write>>,
}

impl Device {
    fn new(vnet_hdr: bool) -> Self {
        Device { vnet_hdr, refuses: |_| false, refused: Cell::new(0), taken: RefCell::default() }
    }
}

impl TunDevice for Device {
    fn vnet_hdr(&self) -> bool {
        self.vnet_hdr
    }

    fn read(&self, _: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<bool> {
        let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let (head, bytes) = all.split_at(if self.vnet_hdr { VNET_LEN } else { 0 });
        let vnet = head.try_into().map_or(Vnet::default(), |head| Vnet::decode(head).unwrap());
        if (self.refuses)(vnet) {
            self.refused.update(|refused| refused + 1);
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.taken.borrow_mut().push(Write { bytes: bytes.to_vec(), vnet });
        Ok(true)
    }
}

/// Makes WireGuard's sessions; ESP needs none.
pub(crate) fn meet(a: &mut Gateway, b: &mut Gateway) {
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
pub(crate) struct Pair {
    pub(crate) a: Gateway,
    pub(crate) b: Gateway,
    protocol: Protocol,
    pub(crate) buffer: Vec<u8>,
    used: usize,
    /// Lengths of the datagrams of each run.
    pub(crate) crossed: Vec<Vec<usize>>,
    pub(crate) delivered: Vec<Vec<u8>>,
    /// B's.
    pub(crate) device: Device,
    /// Packets that B's device did not take.
    pub(crate) lost: u64,
}

impl Pair {
    pub(crate) fn new(protocol: Protocol) -> Self {
        let (mut a, mut b) = (Gateway::new(Side::A, protocol), Gateway::new(Side::B, protocol));
        meet(&mut a, &mut b);
        Pair {
            a,
            b,
            protocol,
            buffer: vec![0; 256 * 1024],
            used: 0,
            crossed: Vec::new(),
            delivered: Vec::new(),
            device: Device::new(false),
            lost: 0,
        }
    }

    /// With super-packets for B's LAN.
    pub(crate) fn joining(protocol: Protocol) -> Self {
        let mut pair = Pair::new(protocol);
        pair.b.forwarder.lan = Coalescer::new(true);
        pair.device = Device::new(true);
        pair
    }

    /// IPv6 too takes A's packets to B.
    pub(crate) fn route_v6(&mut self) {
        for (gateway, to) in [(&mut self.a, "fd00:2::/32"), (&mut self.b, "fd00:1::/32")] {
            let target = Target::Group(GroupId(0));
            gateway.apply(vec![Op::PutRoute { prefix: to.parse().unwrap(), target }]);
        }
    }

    /// What was written to B's device since the last call.
    pub(crate) fn writes(&mut self) -> Vec<Write> {
        self.delivered.clear();
        self.device.taken.take()
    }

    /// Packets that each tunnel of A has sent.
    pub(crate) fn sent(&mut self) -> Vec<u64> {
        let tables = self.a.reader.enter();
        tables.tunnels().map(|tunnel| tunnel.outbound.as_ref().unwrap().esp().unwrap().sequence()).collect()
    }

    pub(crate) fn send(&mut self, write: &Write) {
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

    pub(crate) fn flush(&mut self, all: bool) {
        let Pair { a, b, protocol, buffer, used, crossed, delivered, device, lost } = self;
        a.forwarder.runs.flush(all, |run| {
            let from = run.local;
            let segment = run.segment;
            let wire = protocol.wire(run.to);
            match run.carrier.clone() {
                Carrier::Esp(sa) => run.seal(&mut sa.lock(), buffer).unwrap(),
                Carrier::WireGuard(peer) => {
                    run.seal_wireguard(&mut peer.sending().unwrap(), buffer).unwrap();
                }
            }
            let sealed: Vec<u8> = run.pieces(buffer).flatten().copied().collect();
            crossed.push(sealed.chunks(segment).map(<[u8]>::len).collect());
            let mut arrival = Arrival::new(0, sealed.len(), segment, from, 0, wire);
            let mut slots = Datagram([vec![0; wire.headroom()], sealed].concat());
            let tables = b.reader.enter();
            let progress = b.forwarder.inward(&tables, &mut slots, &mut arrival, Now::from_nanos(1));
            assert_eq!(progress, Progress::Done);
            let before = device.taken.borrow().len();
            *lost += lan::write(Some(device), &mut b.forwarder.lan, &slots);
            delivered.extend(device.taken.borrow()[before..].iter().map(|write| write.bytes.clone()));
        });
        if a.forwarder.runs.is_empty() {
            *used = 0;
        }
    }
}

pub(crate) fn udp(flow: u16, tos: u8, number: u32, len: usize) -> Write {
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
pub(crate) fn uso(flow: u16, first: u32, segments: u32, size: usize) -> Write {
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

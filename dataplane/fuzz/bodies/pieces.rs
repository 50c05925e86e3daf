//! What the fuzz targets do with their input. `cargo test` runs the same over the committed corpus.

use std::{net::SocketAddr, sync::Arc};

use braid_api::{
    Allowed, BootId, DfPolicy, Direction, Encapsulation, Epoch, FRAME_HEADER_LEN, FromCore, Op, Sa, SaId,
    SecretKey, Selectors, Spi, Suite, Target, ToCore, Transaction, Tunnel, TunnelId, decode, encode,
    launcher::{FromClient, ToControl, ToCoreProcess},
    punt::{FromPunt, ToPunt},
};
use braid_dataplane::{
    drop_reason::DropReason,
    esp::{Engine, NEXT_HEADER_NONE, write_trailer},
    forward::{Arrival, Departure, Drops, Forwarder, Now, Progress, Wire},
    offload::{
        coalesce::{Pending, Slots},
        vnet::{VNET_LEN, Vnet},
    },
    packet,
    runs::{HEADROOM, TAILROOM},
    tables::{Reader, Writer},
};

const TUNNEL: TunnelId = TunnelId(0);
const SUITE: Suite = Suite::Aes128Gcm16;
/// Of both directions: the gateway understands itself.
const SPI: Spi = Spi(0x1001);
const BOOT: BootId = BootId([7; 16]);

struct Gateway {
    reader: Reader,
    forwarder: Forwarder,
    drops: Arc<Drops>,
    _writer: Writer,
}

struct Buffer(Vec<u8>);

impl Slots for Buffer {
    fn slot(&self, _: usize) -> &[u8] {
        &self.0
    }

    fn slot_mut(&mut self, _: usize) -> &mut [u8] {
        &mut self.0
    }
}

fn outer() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 4500))
}

impl Gateway {
    fn new() -> Self {
        let tunnel = Tunnel {
            id: TUNNEL,
            name: "t".into(),
            local: outer(),
            remote: Some(outer()),
            uplink: None,
            follow_remote: false,
            encapsulation: Encapsulation::Udp,
            keepalive: false,
            inside: vec![[169, 254, 1, 1].into()],
            peer_inside: vec![[169, 254, 1, 2].into()],
            path_mtu: 1500,
            clamp_mtu: 1400,
            df: DfPolicy::Honour,
            allowed: Allowed::Routed,
            probe: None,
            bfd: Vec::new(),
            reach: Vec::new(),
        };
        let sa = |id, direction| {
            Op::PutSa(Sa {
                id: SaId(id),
                boot: BOOT,
                tunnel: TUNNEL,
                direction,
                spi: SPI,
                suite: SUITE,
                key: SecretKey::new(vec![5; SUITE.key_len()]),
                esn: false,
                replay_window: 64,
                selectors: Selectors::default(),
            })
        };
        let mut ops = vec![Op::PutTunnel(tunnel), sa(1, Direction::In), sa(2, Direction::Out)];
        let routes = ["10.0.0.0/8", "fd00::/8"].into_iter().filter_map(|prefix| prefix.parse().ok());
        ops.extend(routes.map(|prefix| Op::PutRoute { prefix, target: Target::Tunnel(TUNNEL) }));
        ops.push(Op::Unmask(TUNNEL));
        let mut writer = Writer::new(1, BOOT, Engine::Ring, &[3; 32]);
        assert!(writer.apply(Transaction { epoch: Epoch(1), ops }, 0).is_ok());
        let drops = Arc::new(Drops::new(1));
        let forwarder = Forwarder::new(0, 64, true, writer.states().clone(), Arc::clone(&drops));
        Gateway { reader: writer.reader(), forwarder, drops, _writer: writer }
    }

    fn dropped(&self) -> u64 {
        DropReason::ALL.iter().map(|reason| self.drops.sum(*reason as usize)).sum()
    }

    fn receive(&mut self, arrival: &mut Arrival, slots: &mut impl Slots) {
        let tables = self.reader.enter();
        while self.forwarder.inward(&tables, slots, arrival, Now::from_nanos(1)) == Progress::Full {
            self.forwarder.lan.clear();
        }
        for pending in self.forwarder.lan.pending() {
            let first = slots.bytes(pending.first());
            assert!(packet::parse(first).is_ok(), "the LAN gets packets");
            let _ = pending.headers(first);
            assert_eq!(pending.apart().count(), pending.count());
        }
    }
}

/// What the device gives: its header, and a packet.
pub(crate) fn inner(input: &[u8]) {
    let Some((head, bytes)) = input.split_first_chunk::<VNET_LEN>() else { return };
    for usual in [packet::parse_usual_v4(bytes), packet::parse_usual_v6(bytes)].into_iter().flatten() {
        let Ok(parsed) = packet::parse(bytes) else { panic!("what is usual is a packet") };
        assert_eq!(format!("{usual:?}"), format!("{parsed:?}"));
    }
    let Some(vnet) = Vnet::decode(*head) else { return };
    let mut gateway = Gateway::new();
    let at = HEADROOM..HEADROOM + bytes.len();
    let mut buffer = vec![0; at.end + TAILROOM];
    buffer[at.clone()].copy_from_slice(bytes);
    let mut departure = Departure::new(at, vnet);
    let mut left = 0;
    loop {
        let tables = gateway.reader.enter();
        let progress = gateway.forwarder.outward(&tables, &mut buffer, &mut departure, Now::from_nanos(1));
        drop(tables);
        gateway.forwarder.runs.flush(true, |run| left += run.count);
        if progress == Progress::Done {
            break;
        }
    }
    assert_eq!(left == 0, gateway.dropped() > 0, "it leaves or is counted");
}

/// Datagrams of one sender: what kind of socket, how long each of them is, the outer TOS.
pub(crate) fn datagram(input: &[u8]) {
    let wires = [Wire::Udp, Wire::Ike, Wire::Esp4, Wire::Esp6, Wire::WireGuard(outer())];
    let [wire, segment, tos, datagrams @ ..] = input else { return };
    let wire = wires[usize::from(*wire) % wires.len()];
    let mut slots = Buffer([&vec![0; wire.headroom()], datagrams].concat());
    let mut gateway = Gateway::new();
    let mut arrival = Arrival::new(0, datagrams.len(), usize::from(*segment), outer(), *tos, wire);
    gateway.receive(&mut arrival, &mut slots);
    assert!(gateway.forwarder.lan.pending().is_empty(), "nobody without the key gets through");
}

/// An authentic ESP packet: next header, padding, the outer TOS, and what is inside.
pub(crate) fn sealed(input: &[u8]) {
    let [next_header, padding, tos, inside @ ..] = input else { return };
    if inside.len() > 9000 {
        return;
    }
    let mut gateway = Gateway::new();
    let outbound = {
        let tables = gateway.reader.enter();
        let carrier = tables.tunnel(TUNNEL).and_then(|tunnel| tunnel.outbound.clone());
        let Some(sa) = carrier.as_ref().and_then(|carrier| carrier.esp()).cloned() else {
            panic!("the gateway has one")
        };
        sa
    };
    let layout = outbound.layout;
    let mut esp = vec![0; layout.sealed_len(inside.len())];
    esp[..4].copy_from_slice(&SPI.0.to_be_bytes());
    let end = esp.len() - layout.icv_len;
    let payload = layout.header_len();
    esp[payload..payload + inside.len()].copy_from_slice(inside);
    write_trailer(&mut esp[payload + inside.len()..end], layout.pad_len(inside.len()), *next_header);
    // 0 is what a sender that obeys RFC 4303 says.
    esp[end - 2] = esp[end - 2].wrapping_add(*padding);
    outbound.sealer().seal(&mut esp, 1);
    let mut arrival = Arrival::new(0, esp.len(), esp.len(), outer(), *tos, Wire::Udp);
    gateway.receive(&mut arrival, &mut Buffer(esp));
    let forwarder = &mut gateway.forwarder;
    let mut ends = forwarder.lan.pending().iter().map(Pending::count).sum::<usize>();
    ends += forwarder.probe_replies.len() + forwarder.bfd_packets.len();
    forwarder.runs.flush(true, |run| ends += run.count as usize);
    let dummy = *next_header == NEXT_HEADER_NONE && gateway.dropped() == 0;
    assert_eq!(ends as u64 + gateway.dropped() + u64::from(dummy), 1, "it ends in one place");
}

/// What is decoded is written, read and written alike.
macro_rules! again {
    ($message:ty, $bytes:expr) => {
        decode::<$message>($bytes).ok().and_then(|message| {
            let written = encode(&message).ok()?;
            let Ok(read) = decode::<$message>(&written[FRAME_HEADER_LEN..]) else {
                panic!("what was written is not read")
            };
            assert!(encode(&read).is_ok_and(|again| again[..] == written[..]));
            Some(read)
        })
    };
}

/// A message between the processes: which, and its bytes. Transactions are applied.
pub(crate) fn message(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 7 {
        0 => {
            if let Some(ToCore::Apply(transaction)) = again!(ToCore, bytes) {
                let mut writer = Writer::new(1, BOOT, Engine::Ring, &[3; 32]);
                let _ = writer.apply(transaction, 0);
            }
        }
        1 => drop(again!(FromCore, bytes)),
        2 => drop(again!(ToPunt, bytes)),
        3 => drop(again!(FromPunt, bytes)),
        4 => drop(again!(ToCoreProcess, bytes)),
        5 => drop(again!(FromClient, bytes)),
        _ => drop(again!(ToControl, bytes)),
    }
}

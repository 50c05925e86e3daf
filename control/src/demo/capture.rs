//! What really crossed the wire between the gateways: every packet that came into `net`, judged.
//!
//! A packet is accepted only if it crosses between the gateways' outer addresses of that path and shows neither
//! the marker nor an inner address, and is ESP in UDP (RFC 3948) with the SPI that was negotiated for that tunnel
//! and direction, or a message of IKEv2 (RFC 7296) whose content is encrypted; for a WireGuard tunnel, one of
//! its messages. Everything else but ARP counts as a leak.
//!
//! The wire also tells which way each paced flow goes: flows differ by packet size by more than
//! either protocol pads. So whether a flow was moved is seen, not asked.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size, set_socket_timeout};

use super::crossing::Marker;
use super::error::Error;
use super::net::Namespace;
use super::paced::{FLOWS, payload_len};
use super::stop::Stop;
use super::topology::{PATHS, SITE_A, SITE_B};

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From gateway A to gateway B.
    AToB,
    /// From gateway B to gateway A.
    BToA,
}

/// What the failover was doing when a packet was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Both paths whole.
    Before,
    /// One path cut.
    Cut,
    /// Both whole again.
    Restored,
    /// The same, and only flows that began after that.
    NewFlows,
}

/// What may cross on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// ESP with these SPIs from A to B and from B to A.
    Esp([u32; 2]),
    /// WireGuard's messages.
    WireGuard,
}

/// By path.
pub(super) type Wires = [Wire; 2];

/// A capture under way.
#[derive(Debug)]
pub(super) struct Capture {
    seen: Arc<Mutex<Seen>>,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

/// What has been seen.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    stage: Stage,
    wires: Wires,
    marker: Marker,
    /// Sealed packets by path and direction.
    pub(super) sealed: [[u64; 2]; 2],
    /// Messages of IKE and of WireGuard's handshakes.
    pub(super) handshakes: u64,
    /// Packets that are neither.
    pub(super) leaks: u64,
    /// The first of them.
    pub(super) first_leak: Option<String>,
    /// Packets by stage, direction, flow and path.
    flows: [[[[u32; 2]; FLOWS]; 2]; 4],
}

impl Capture {
    /// Looks at everything that comes into `net` from now on.
    ///
    /// # Errors
    /// When the kernel refuses a packet socket.
    pub(super) fn start(net: &Namespace, wires: Wires, marker: Marker) -> Result<Self, Error> {
        let (socket, devices) = net.run(move |inside| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Datagram,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .map_err(Error::system("cannot capture packets"))?;
            let mut devices = Vec::new();
            for (path, which) in PATHS.iter().enumerate() {
                devices.push((inside.index(which.device_a)?, path, Direction::AToB));
                devices.push((inside.index(which.device_b)?, path, Direction::BToA));
            }
            Ok((socket, devices))
        })?;
        set_socket_timeout(&socket, Timeout::Recv, Some(READ_LIMIT))
            .map_err(Error::system("cannot capture packets"))?;
        // More than the limit is a wish only; a packet missed here is missed by nobody else.
        let _ = set_socket_recv_buffer_size(&socket, BUFFER);
        let seen = Arc::new(Mutex::new(Seen::new(wires, marker)));
        let stop = Stop::default();
        let thread = {
            let (seen, stop) = (Arc::clone(&seen), stop.clone());
            thread::spawn(move || watch(&socket, &devices, &seen, &stop))
        };
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// Packets from now on belong to this stage.
    pub(super) fn enter(&self, stage: Stage) {
        lock(&self.seen).stage = stage;
    }

    /// What has been seen so far.
    pub(super) fn so_far(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            // A capture that panicked has seen too little, and the verdict says so.
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn new(wires: Wires, marker: Marker) -> Self {
        Self {
            stage: Stage::Before,
            wires,
            marker,
            sealed: [[0; 2]; 2],
            handshakes: 0,
            leaks: 0,
            first_leak: None,
            flows: [[[[0; 2]; FLOWS]; 2]; 4],
        }
    }

    /// All sealed packets.
    pub(super) fn packets(&self) -> u64 {
        self.sealed.iter().flatten().sum()
    }

    /// Sealed packets of paced flows on a path in a stage, per direction.
    pub(super) fn on_path(&self, stage: Stage, path: usize) -> [u64; 2] {
        self.flows[stage as usize].map(|flows| flows.iter().map(|flow| u64::from(flow[path])).sum())
    }

    /// Flows of a direction that went over this path alone in a stage.
    pub(super) fn flows_on(&self, stage: Stage, direction: Direction, path: usize) -> Vec<usize> {
        let flows = &self.flows[stage as usize][direction as usize];
        (0..FLOWS).filter(|flow| flows[*flow][path] > 0 && flows[*flow][1 - path] == 0).collect()
    }

    /// Flows that were not on this path before the cut, and were seen on it later.
    pub(super) fn moved_to(&self, path: usize) -> usize {
        let others = [Direction::AToB, Direction::BToA].map(|direction| {
            self.flows_on(Stage::Before, direction, 1 - path).into_iter().filter(move |flow| {
                [Stage::Cut, Stage::Restored]
                    .iter()
                    .any(|stage| self.flows[*stage as usize][direction as usize][*flow][path] > 0)
            })
        });
        others.into_iter().map(Iterator::count).sum()
    }

    /// Judges one packet, from the IP header on.
    fn judge(&mut self, path: usize, direction: Direction, packet: &[u8]) {
        match self.accept(path, direction, packet) {
            Ok(sealed) => {
                self.sealed[path][direction as usize] += 1;
                if let Some(flow) = flow_of(self.wires[path], sealed) {
                    self.flows[self.stage as usize][direction as usize][flow][path] += 1;
                }
            }
            Err(Refused::Keepalive) => {}
            Err(Refused::Handshake) => self.handshakes += 1,
            Err(Refused::Leak(what)) => {
                self.leaks += 1;
                let told = || format!("{what} on {}: {}", PATHS[path].name, describe(packet));
                self.first_leak.get_or_insert_with(told);
            }
        }
    }

    /// The sealed packet within, if it is one that may cross here.
    fn accept<'p>(&self, path: usize, direction: Direction, packet: &'p [u8]) -> Result<&'p [u8], Refused> {
        let hidden = [
            (&self.marker[..], "a payload in clear"),
            (&SITE_A.host6.octets()[..], "an inner address in clear"),
            (&SITE_B.host6.octets()[..], "an inner address in clear"),
            (&pair(SITE_A.host, SITE_B.host)[..], "an inner header in clear"),
            (&pair(SITE_B.host, SITE_A.host)[..], "an inner header in clear"),
        ];
        for (secret, what) in hidden {
            if contains(packet, secret) {
                return Err(Refused::Leak(what));
            }
        }
        let (a, b) = (PATHS[path].a, PATHS[path].b);
        let ends = if direction == Direction::AToB { pair(a, b) } else { pair(b, a) };
        let udp = match packet {
            // RFC 791 section 3.1: version 4, no options, not a fragment, protocol 17.
            [0x45, _, _, _, _, _, fragment, offset, _, 17, ..] if fragment & 0x3f == 0 && *offset == 0 => {
                packet.get(20..).unwrap_or_default()
            }
            _ => return Err(Refused::Leak("a packet that is not UDP")),
        };
        if packet[12..20] != ends {
            return Err(Refused::Leak("a packet between other addresses"));
        }
        match self.wires[path] {
            Wire::Esp(spis) => accept_esp(spis[direction as usize], udp),
            Wire::WireGuard => accept_wireguard(udp),
        }
    }
}

fn accept_esp(wanted: u32, udp: &[u8]) -> Result<&[u8], Refused> {
    // RFC 3948 section 2: both ports 4500; a single 0xff is a keepalive; SPI 0 is not ESP.
    match udp {
        [0x11, 0x94, 0x11, 0x94, _, _, _, _, 0xff] => Err(Refused::Keepalive),
        // RFC 3948 section 2.2: the non-ESP marker stands before IKE.
        [0x11, 0x94, 0x11, 0x94, _, _, _, _, 0, 0, 0, 0, ike @ ..] if is_encrypted_ike(ike) => {
            Err(Refused::Handshake)
        }
        [0x11, 0x94, 0x11, 0x94, _, _, _, _, esp @ ..] => match esp.first_chunk() {
            Some(spi) if u32::from_be_bytes(*spi) == wanted => Ok(esp),
            _ => Err(Refused::Leak("an SPI of nobody")),
        },
        _ => Err(Refused::Leak("a UDP packet that is not ESP")),
    }
}

/// WireGuard whitepaper section 5.4: a type, three zero bytes, and a length that goes with the type.
fn accept_wireguard(udp: &[u8]) -> Result<&[u8], Refused> {
    match udp {
        [0xca, 0x6c, 0xca, 0x6c, _, _, _, _, message @ ..] => match (message, message.len()) {
            ([4, 0, 0, 0, ..], 32..) => Ok(message),
            ([1, 0, 0, 0, ..], 148) | ([2, 0, 0, 0, ..], 92) | ([3, 0, 0, 0, ..], 64) => {
                Err(Refused::Handshake)
            }
            _ => Err(Refused::Leak("a UDP packet that is not WireGuard")),
        },
        _ => Err(Refused::Leak("a UDP packet that is not WireGuard")),
    }
}

enum Refused {
    Keepalive,
    /// Of IKE or WireGuard.
    Handshake,
    Leak(&'static str),
}

/// RFC 7296 section 3.1: version 2, a whole message, and nothing in it but the encrypted payload (section 3.14)
/// or a fragment of it (RFC 7383 section 2.5).
fn is_encrypted_ike(message: &[u8]) -> bool {
    const ENCRYPTED: [u8; 2] = [46, 53];
    let Some(header) = message.first_chunk::<28>() else { return false };
    let length = u32::from_be_bytes([header[24], header[25], header[26], header[27]]);
    header[17] == 0x20 && ENCRYPTED.contains(&header[16]) && length as usize == message.len()
}

fn watch(socket: &OwnedFd, devices: &[(u32, usize, Direction)], seen: &Mutex<Seen>, stop: &Stop) {
    let mut buffer = vec![0; 1 << 17];
    while !stop.is_set() {
        let Ok((length, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else {
            continue;
        };
        if from.pkttype() == PACKET_OUTGOING || from.protocol() == ETH_P_ARP.to_be() {
            continue;
        }
        let device = devices.iter().find(|(index, ..)| *index as usize == from.ifindex());
        if let Some((_, path, direction)) = device {
            lock(seen).judge(*path, *direction, &buffer[..length]);
        }
    }
}

/// Which paced flow sealed packets of this length belong to, if any.
fn flow_of(wire: Wire, sealed: &[u8]) -> Option<usize> {
    // What leaves together, of one flow, is seen as one packet: the head comes again.
    let head = if wire == Wire::WireGuard { 8 } else { 4 };
    let is_head = |at: usize| sealed.get(at..at + head) == sealed.get(..head);
    let together =
        |len: usize| sealed.len().is_multiple_of(len) && (len..sealed.len()).step_by(len).all(is_head);
    (0..FLOWS).find(|flow| together(sealed_len(wire, payload_len(*flow))))
}

fn sealed_len(wire: Wire, payload: usize) -> usize {
    match wire {
        Wire::Esp(_) => esp_len(payload),
        Wire::WireGuard => wireguard_len(payload),
    }
}

/// Length of the WireGuard message around an IPv4 UDP packet with this payload: type, receiver and counter, padding
/// to sixteen bytes, and sixteen of tag (whitepaper section 5.4.6).
fn wireguard_len(payload: usize) -> usize {
    16 + (20 + 8 + payload).next_multiple_of(16) + 16
}

/// Length of the ESP packet around an IPv4 UDP packet with this payload, for AES-GCM-16: RFC 4303
/// section 2 (SPI, sequence number; padding to four bytes with the two bytes of trailer), RFC 4106
/// (eight bytes of IV, sixteen of ICV).
fn esp_len(payload: usize) -> usize {
    8 + 8 + (20 + 8 + payload + 2).next_multiple_of(4) + 16
}

/// What a person needs to find out where a packet came from.
fn describe(packet: &[u8]) -> String {
    match packet {
        [first, _, _, _, _, _, _, _, _, protocol, _, _, a, b, c, d, e, f, g, h, ..] if first >> 4 == 4 => {
            format!(
                "protocol {protocol}, {} > {}, {} bytes",
                Ipv4Addr::new(*a, *b, *c, *d),
                Ipv4Addr::new(*e, *f, *g, *h),
                packet.len()
            )
        }
        _ => format!("{} bytes", packet.len()),
    }
}

fn pair(from: Ipv4Addr, to: Ipv4Addr) -> [u8; 8] {
    let mut pair = [0; 8];
    pair[..4].copy_from_slice(&from.octets());
    pair[4..].copy_from_slice(&to.octets());
    pair
}

fn contains(packet: &[u8], wanted: &[u8]) -> bool {
    packet.windows(wanted.len()).any(|window| window == wanted)
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    // Counters are whole at any moment, whoever panicked.
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

const PACKET_OUTGOING: u8 = 4;
const ETH_P_ARP: u16 = 0x0806;
const READ_LIMIT: Duration = Duration::from_millis(50);
const BUFFER: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const SPIS: [[u32; 2]; 2] = [[0x1001, 0x1002], [0x2001, 0x2002]];
    const WIRES: Wires = [Wire::Esp(SPIS[0]), Wire::Esp(SPIS[1])];
    const MARKER: Marker = *b"0123456789abcdef";

    fn outer(ends: [u8; 8], spi: u32, esp: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
        packet.extend(ends);
        packet.extend([0x11, 0x94, 0x11, 0x94, 0, 0, 0, 0]);
        packet.extend(spi.to_be_bytes());
        packet.resize(28 + esp, 0xee);
        packet
    }

    fn judged(packet: &[u8]) -> Seen {
        let mut seen = Seen::new(WIRES, MARKER);
        seen.judge(0, Direction::AToB, packet);
        seen
    }

    fn ends() -> [u8; 8] {
        pair(PATHS[0].a, PATHS[0].b)
    }

    #[test]
    fn esp_of_this_run_is_accepted_and_told_by_its_size() {
        let seen = judged(&outer(ends(), 0x1001, esp_len(payload_len(5))));
        assert_eq!((seen.packets(), seen.leaks), (1, 0));
        assert_eq!(seen.flows_on(Stage::Before, Direction::AToB, 0), [5]);
        assert_eq!(seen.on_path(Stage::Before, 0), [1, 0]);
    }

    #[test]
    fn everything_else_is_a_leak() {
        let with = |secret: &[u8]| {
            let mut packet = outer(ends(), 0x1001, 300);
            packet[100..100 + secret.len()].copy_from_slice(secret);
            packet
        };
        let mut tcp = outer(ends(), 0x1001, 300);
        tcp[9] = 6;
        let mut port = outer(ends(), 0x1001, 300);
        port[23] = 0;
        for packet in [
            outer(ends(), 0x1002, 300),
            outer(ends(), 0, 300),
            outer(pair(PATHS[0].b, PATHS[0].a), 0x1001, 300),
            outer(pair(SITE_A.plain_host, SITE_B.plain_host), 0x1001, 300),
            with(&MARKER),
            with(&SITE_B.host6.octets()),
            with(&pair(SITE_A.host, SITE_B.host)),
            tcp,
            port,
            Vec::new(),
            vec![0x60; 60],
            outer(ends(), 0x1001, 300)[..22].to_vec(),
        ] {
            let seen = judged(&packet);
            assert_eq!((seen.packets(), seen.leaks), (0, 1), "{packet:02x?}");
            assert!(seen.first_leak.is_some());
        }
    }

    #[test]
    fn a_nat_keepalive_is_neither() {
        let mut packet = outer(ends(), 0, 4);
        packet.truncate(28);
        packet.push(0xff);
        let seen = judged(&packet);
        assert_eq!((seen.packets(), seen.leaks), (0, 0));
    }

    #[test]
    fn ike_is_accepted_where_its_content_is_encrypted() {
        let message = |next_payload: u8| {
            let mut packet = outer(ends(), 0, 4 + 28 + 60);
            packet[32 + 16..32 + 20].copy_from_slice(&[next_payload, 0x20, 37, 0x08]);
            packet[32 + 24..32 + 28].copy_from_slice(&88_u32.to_be_bytes());
            packet
        };
        let seen = judged(&message(46));
        assert_eq!((seen.packets(), seen.handshakes, seen.leaks), (0, 1, 0));
        let mut long = message(46);
        long.push(0);
        let mut marked = message(46);
        marked[70..70 + MARKER.len()].copy_from_slice(&MARKER);
        for packet in [message(33), long, marked] {
            let seen = judged(&packet);
            assert_eq!((seen.packets(), seen.handshakes, seen.leaks), (0, 0, 1), "{packet:02x?}");
        }
    }

    #[test]
    fn wireguard_is_accepted_message_by_message_and_told_by_its_size() {
        let outer = |kind: u8, len: usize| {
            let mut packet = outer(ends(), 0, len);
            packet[20..24].copy_from_slice(&[0xca, 0x6c, 0xca, 0x6c]);
            packet[28] = kind;
            packet
        };
        let judged = |packet: &[u8]| {
            let mut seen = Seen::new([Wire::WireGuard; 2], MARKER);
            seen.judge(0, Direction::AToB, packet);
            seen
        };
        let len = wireguard_len(payload_len(5));
        let seen = judged(&outer(4, len));
        assert_eq!((seen.packets(), seen.leaks), (1, 0));
        assert_eq!(seen.flows_on(Stage::Before, Direction::AToB, 0), [5]);
        let mut two = outer(4, 2 * len);
        two.copy_within(28..36, 28 + len);
        assert_eq!(judged(&two).flows_on(Stage::Before, Direction::AToB, 0), [5]);
        for (kind, len) in [(1, 148), (2, 92), (3, 64)] {
            let seen = judged(&outer(kind, len));
            assert_eq!((seen.packets(), seen.handshakes, seen.leaks), (0, 1, 0));
            assert_eq!(judged(&outer(kind, len + 1)).leaks, 1);
        }
        let mut esp = outer(4, len);
        esp[20..24].copy_from_slice(&[0x11, 0x94, 0x11, 0x94]);
        for packet in [outer(0, len), outer(5, len), outer(4, 31), esp] {
            assert_eq!((judged(&packet).packets(), judged(&packet).leaks), (0, 1));
        }
    }

    #[test]
    fn only_a_healthy_flow_that_changes_over_is_moved() {
        let mut seen = Seen::new(WIRES, MARKER);
        let mut packet = |path: usize, flow: usize, stage: Stage| {
            seen.stage = stage;
            let ends = pair(PATHS[path].a, PATHS[path].b);
            let packet = outer(ends, SPIS[path][0], esp_len(payload_len(flow)));
            seen.judge(path, Direction::AToB, &packet);
        };
        packet(0, 1, Stage::Before);
        packet(1, 2, Stage::Before);
        packet(1, 3, Stage::Before);
        packet(1, 1, Stage::Cut);
        packet(1, 2, Stage::Cut);
        packet(0, 1, Stage::Restored);
        packet(0, 3, Stage::Restored);
        assert_eq!(seen.leaks, 0);
        assert_eq!(seen.moved_to(0), 1);
    }
}

//! Numbered UDP packets at an even pace over many flows, and what became of each of them.
//!
//! Loss, order and content are judged per flow and per packet, with the time at which each was
//! sent, so that a scenario can say "nothing outside these moments". The packets of a flow have a
//! length that no other flow's have: a capture of encrypted packets tells which flow went which way
//! (see [`Load::esp_flow`] and [`Load::wireguard_flow`]).

use crate::{Error, Netns, Result, retry_until};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Flow (two bytes) and sequence number (four).
const HEADER: usize = 6;
/// Shorter than any that counts.
const WARM_UP: [u8; 4] = *b"warm";
const WARM_UP_LIMIT: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(1);
const READ_LIMIT: Duration = Duration::from_millis(50);
/// Reads without a packet after the end of sending, until none is expected any more.
const QUIET_READS: u32 = 6;
/// Holds a second of the fastest load, should the receiver not run.
const RECEIVE_BUFFER: usize = 32 << 20;
/// ESP with AES-GCM: SPI, sequence number, IV; then padding length, next header; then ICV.
const ESP_HEAD: usize = 16;
const ESP_TAIL: usize = 16;
const ESP_ALIGN: usize = 4;
/// WireGuard: type, receiver, counter; then the tag.
const WIREGUARD_OVERHEAD: usize = 16 + 16;
const WIREGUARD_ALIGN: usize = 16;

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Flows, each with a source port of its own; served by turns.
    pub flows: usize,
    /// Sends each millisecond, of all flows together.
    pub per_ms: usize,
    /// Packets of one flow in one send: more than one make a super-packet for the kernel to cut.
    pub burst: usize,
    /// UDP payload of the first flow's packets, bytes.
    pub smallest: usize,
    /// By how many bytes each flow's packets are longer than the last one's.
    pub step: usize,
    /// Type of service (RFC 2474), which the outer header has as well; over IPv4.
    pub tos: u8,
    /// Where it is sent to; the flows' source ports follow. Where the hash has a fixed seed, a flow
    /// has the same way in every run.
    pub port: u16,
}

impl Load {
    /// Lengths by which flows can be told apart on the outer wire.
    #[must_use]
    pub const fn told_apart(flows: usize, per_ms: usize) -> Self {
        Self { flows, per_ms, burst: 1, smallest: 200, step: ESP_ALIGN, tos: 0, port: 20_000 }
    }

    /// The same for WireGuard as well, which pads to more.
    #[must_use]
    pub const fn told_apart_anywhere(flows: usize, per_ms: usize) -> Self {
        Self { step: WIREGUARD_ALIGN, ..Self::told_apart(flows, per_ms) }
    }

    /// Packets of one length. Only these can be sent in bursts.
    #[must_use]
    pub const fn of_length(flows: usize, per_ms: usize, length: usize) -> Self {
        Self { flows, per_ms, burst: 1, smallest: length, step: 0, tos: 0, port: 20_000 }
    }

    /// The same flows elsewhere.
    #[must_use]
    pub const fn at_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// The same flows with this type of service.
    #[must_use]
    pub const fn of_tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }

    /// Longest time between two packets of a flow while all goes well.
    #[must_use]
    pub fn flow_interval(&self) -> Duration {
        TICK * u32::try_from(self.flows.div_ceil(self.per_ms)).unwrap_or(u32::MAX)
    }

    /// Which flow an ESP packet in UDP belongs to, by the length of its UDP payload, with AES-GCM
    /// and IPv4 inside and [`Load::told_apart`].
    #[must_use]
    pub fn esp_flow(&self, udp_payload: usize) -> Option<usize> {
        let sealed = |payload: usize| {
            let inner = 20 + 8 + payload + 2;
            ESP_HEAD + inner.div_ceil(ESP_ALIGN) * ESP_ALIGN + ESP_TAIL
        };
        self.flow_of(udp_payload, sealed)
    }

    /// The same of a data message of WireGuard, with [`Load::told_apart_anywhere`].
    #[must_use]
    pub fn wireguard_flow(&self, udp_payload: usize) -> Option<usize> {
        let sealed =
            |payload: usize| (20 + 8 + payload).next_multiple_of(WIREGUARD_ALIGN) + WIREGUARD_OVERHEAD;
        self.flow_of(udp_payload, sealed)
    }

    /// `sealed` says how long a payload is on the outer wire.
    fn flow_of(&self, udp_payload: usize, sealed: impl Fn(usize) -> usize) -> Option<usize> {
        let beyond = udp_payload.checked_sub(sealed(self.smallest))?;
        let flow = beyond / self.step.max(1);
        (flow < self.flows && sealed(self.length(flow)) == udp_payload).then_some(flow)
    }

    fn length(&self, flow: usize) -> usize {
        self.smallest + self.step * flow
    }
}

/// A load under way.
#[derive(Debug)]
pub struct Paced {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Sent>,
    receiver: JoinHandle<Received>,
}

#[derive(Debug, Default)]
struct Sent {
    /// Per flow and sequence number.
    at: Vec<Vec<Duration>>,
    refused: usize,
}

#[derive(Debug, Default)]
struct Received {
    arrivals: Vec<Arrival>,
    damaged: usize,
}

/// A packet that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its flow.
    pub flow: usize,
    /// Its number within the flow, from 0.
    pub sequence: usize,
    /// Since the origin.
    pub at: Duration,
}

/// A packet that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    /// Its flow.
    pub flow: usize,
    /// Its number within the flow, from 0.
    pub sequence: usize,
    /// Since the origin.
    pub sent: Duration,
}

/// What was sent and what arrived.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// Per flow and sequence number: when it was sent, since the origin.
    sent: Vec<Vec<Duration>>,
    /// In the order of arrival.
    arrivals: Vec<Arrival>,
    /// Packets that the sender's own kernel did not take: an ICMP error, or no buffer.
    pub refused: usize,
    /// Packets that arrived with other content than was sent.
    pub damaged: usize,
}

impl Paced {
    /// Starts sending from one namespace to an address in the other. Times in the log are since
    /// `origin`.
    ///
    /// # Errors
    /// When the sockets cannot be made.
    pub fn start(from: &Netns, to: &Netns, address: &str, load: Load, origin: Instant) -> Result<Self> {
        let address: IpAddr = address.parse().map_err(|bad| Error::parse("an address", bad))?;
        let target = SocketAddr::new(address, load.port);
        let sink = to.enter(|| sink(target))??;
        let flows = from.enter(|| sources(target, load))??;
        warm_up(&flows, &sink)?;
        let stop = Arc::new(AtomicBool::new(false));
        let receiver = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || receive(&sink, load, origin, &stop))
        };
        let sender = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || send(&flows, load, origin, &stop))
        };
        Ok(Self { stop, sender, receiver })
    }

    /// Stops, waits for what is still under way, and hands the log over.
    ///
    /// # Errors
    /// When one of its threads panicked.
    pub fn finish(self) -> Result<Log> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| Error::Usage("the paced load panicked".to_owned());
        let sent = self.sender.join().map_err(panicked)?;
        let received = self.receiver.join().map_err(panicked)?;
        Ok(Log {
            sent: sent.at,
            arrivals: received.arrivals,
            refused: sent.refused,
            damaged: received.damaged,
        })
    }
}

impl Log {
    /// Packets sent.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.sent.iter().map(Vec::len).sum()
    }

    /// Packets that never arrived.
    #[must_use]
    pub fn lost(&self) -> Vec<Packet> {
        let mut arrived: Vec<Vec<bool>> = self.sent.iter().map(|flow| vec![false; flow.len()]).collect();
        for arrival in &self.arrivals {
            if let Some(seen) = arrived.get_mut(arrival.flow).and_then(|flow| flow.get_mut(arrival.sequence))
            {
                *seen = true;
            }
        }
        let packets = self.sent.iter().enumerate().flat_map(|(flow, sent)| {
            sent.iter().enumerate().map(move |(sequence, sent)| Packet { flow, sequence, sent: *sent })
        });
        packets.filter(|packet| !arrived[packet.flow][packet.sequence]).collect()
    }

    /// Of each flow's packets that were sent at this moment or later: how many were lost before the first that
    /// arrived, and when that one arrived. Flows of which none arrived are left out.
    #[must_use]
    pub fn resumed(&self, moment: Duration) -> Vec<(usize, Duration)> {
        let mut first: Vec<Option<&Arrival>> = vec![None; self.sent.len()];
        let sent = |arrival: &Arrival| self.sent.get(arrival.flow)?.get(arrival.sequence).copied();
        for arrival in self.arrivals.iter().filter(|arrival| sent(arrival).is_some_and(|sent| sent >= moment))
        {
            if let Some(first) = first.get_mut(arrival.flow)
                && first.is_none_or(|first| arrival.sequence < first.sequence)
            {
                *first = Some(arrival);
            }
        }
        let lost = |first: &Arrival| {
            let before = self.sent[first.flow].iter().take_while(|sent| **sent < moment).count();
            (first.sequence.saturating_sub(before), first.at)
        };
        first.into_iter().flatten().map(lost).collect()
    }

    /// The longest time in which nothing arrived, whatever its flow, between the first arrival and `end`.
    #[must_use]
    pub fn longest_gap(&self, end: Duration) -> Duration {
        let mut before = self.arrivals.first().map_or(Duration::ZERO, |first| first.at);
        let mut longest = Duration::ZERO;
        for at in self.arrivals.iter().map(|arrival| arrival.at.min(end)).chain([end]) {
            longest = longest.max(at.saturating_sub(before));
            before = at;
        }
        longest
    }

    /// Arrivals after a later packet of their flow, duplicates included.
    #[must_use]
    pub fn overtaken(&self) -> Vec<Arrival> {
        let mut next = vec![0; self.sent.len()];
        let mut overtaken = Vec::new();
        for arrival in &self.arrivals {
            let Some(next) = next.get_mut(arrival.flow) else { continue };
            if arrival.sequence < *next {
                overtaken.push(*arrival);
            } else {
                *next = arrival.sequence + 1;
            }
        }
        overtaken
    }

    /// How long each arrival was under way.
    #[must_use]
    pub fn transit_times(&self) -> Vec<Duration> {
        let sent = |arrival: &Arrival| self.sent.get(arrival.flow)?.get(arrival.sequence).copied();
        self.arrivals.iter().filter_map(|arrival| arrival.at.checked_sub(sent(arrival)?)).collect()
    }

    /// What is wrong, unless every packet arrived once, unchanged, and in its flow's order.
    #[must_use]
    pub fn flaw(&self) -> Option<String> {
        let (lost, overtaken) = (self.lost(), self.overtaken());
        if lost.is_empty() && overtaken.is_empty() && self.refused + self.damaged == 0 && self.sent() > 0 {
            return None;
        }
        Some(format!(
            "of {} packets: {} lost (first {:?}), {} overtaken or doubled (first {:?}), {} damaged, \
             {} refused by the sender",
            self.sent(),
            lost.len(),
            lost.iter().min_by_key(|packet| packet.sent),
            overtaken.len(),
            overtaken.first(),
            self.damaged,
            self.refused
        ))
    }
}

fn sink(target: SocketAddr) -> Result<UdpSocket> {
    let failed = || Error::io("cannot set up the paced receiver");
    let sink = UdpSocket::bind(target).map_err(failed())?;
    sink.set_read_timeout(Some(READ_LIMIT)).map_err(failed())?;
    // A full buffer would look like loss on the way.
    setsockopt(&sink, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .map_err(|errno| Error::io("no receive buffer")(errno.into()))?;
    Ok(sink)
}

fn sources(target: SocketAddr, load: Load) -> Result<Vec<UdpSocket>> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // The receiver of the other direction has the port itself.
    let ports = (load.port..).skip(1).take(load.flows);
    let one = |port| {
        let socket = UdpSocket::bind((any, port))?;
        socket.connect(target)?;
        socket.set_nonblocking(true)?;
        if load.tos != 0 {
            setsockopt(&socket, sockopt::Ipv4Tos, &i32::from(load.tos))?;
        }
        if load.burst > 1 {
            let length = i32::try_from(load.smallest).unwrap_or(i32::MAX);
            setsockopt(&socket, sockopt::UdpGsoSegment, &length)?;
        }
        Ok(socket)
    };
    ports.map(one).collect::<std::io::Result<_>>().map_err(Error::io("cannot make the flows"))
}

/// Has one packet cross first: while a kernel asks for its neighbour's address, it keeps few packets
/// of those that come, and those it lets go are overtaken.
fn warm_up(flows: &[UdpSocket], sink: &UdpSocket) -> Result<()> {
    let mut packet = [0; WARM_UP.len()];
    retry_until("a first packet to cross", WARM_UP_LIMIT, || {
        for flow in flows.iter().take(1) {
            flow.send(&WARM_UP).map_err(|error| error.to_string())?;
        }
        let length = sink.recv(&mut packet).map_err(|error| error.to_string())?;
        if packet[..length] == WARM_UP { Ok(()) } else { Err("another packet".to_owned()) }
    })
}

fn send(flows: &[UdpSocket], load: Load, origin: Instant, stop: &AtomicBool) -> Sent {
    // A sender that changes CPUs has its packets overtake each other in the kernel's queues.
    let mut cpu = CpuSet::new();
    let _ = cpu.set(0).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpu));
    let mut sent = Sent { at: vec![Vec::new(); flows.len()], refused: 0 };
    let mut packets = vec![0; load.length(flows.len()) * load.burst];
    let (mut next, mut due) = (0, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..load.per_ms {
            let flow = next % flows.len();
            next += 1;
            let sequence = sent.at[flow].len();
            let length = load.length(flow);
            let packets = &mut packets[..length * load.burst];
            for (number, packet) in packets.chunks_exact_mut(length).enumerate() {
                fill(packet, flow, sequence + number);
            }
            let at = origin.elapsed();
            match flows[flow].send(packets) {
                Ok(_) => sent.at[flow].extend(std::iter::repeat_n(at, load.burst)),
                // Its own buffer is full: nothing was sent, and nobody else is to blame.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => sent.refused += 1,
            }
        }
        due += TICK;
        let now = Instant::now();
        match due.checked_duration_since(now) {
            Some(left) => std::thread::sleep(left),
            // Never make up for lost time by a burst.
            None => due = now,
        }
    }
    sent
}

/// Bytes that no other packet has.
fn fill(packet: &mut [u8], flow: usize, sequence: usize) {
    let mark = pattern(flow, sequence);
    packet.fill(mark);
    // Far fewer flows and packets than fit.
    #[allow(clippy::cast_possible_truncation)]
    let (flow, sequence) = ((flow as u16).to_be_bytes(), (sequence as u32).to_be_bytes());
    packet[..2].copy_from_slice(&flow);
    packet[2..HEADER].copy_from_slice(&sequence);
}

fn pattern(flow: usize, sequence: usize) -> u8 {
    // The remainder fits.
    #[allow(clippy::cast_possible_truncation)]
    let mark = ((flow * 31 + sequence * 7) % 251) as u8;
    mark
}

fn receive(sink: &UdpSocket, load: Load, origin: Instant, stop: &AtomicBool) -> Received {
    let mut received = Received::default();
    let mut packet = vec![0; 65_536];
    let mut quiet = 0;
    while !stop.load(Ordering::Relaxed) || quiet < QUIET_READS {
        let Ok(length) = sink.recv(&mut packet) else {
            quiet = if stop.load(Ordering::Relaxed) { quiet + 1 } else { 0 };
            continue;
        };
        let at = origin.elapsed();
        if packet[..length] == WARM_UP {
            continue;
        }
        match read(&packet[..length], load) {
            Some((flow, sequence)) => received.arrivals.push(Arrival { flow, sequence, at }),
            None => received.damaged += 1,
        }
    }
    received
}

/// Flow and number; `None` when it is not as it was sent.
fn read(packet: &[u8], load: Load) -> Option<(usize, usize)> {
    let (flow, rest) = packet.split_first_chunk()?;
    let (sequence, rest) = rest.split_first_chunk()?;
    let (flow, sequence) = (usize::from(u16::from_be_bytes(*flow)), u32::from_be_bytes(*sequence) as usize);
    let mark = pattern(flow, sequence);
    let whole = packet.len() == load.length(flow) && rest.iter().all(|byte| *byte == mark);
    (whole && flow < load.flows).then_some((flow, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load::told_apart(4, 4);

    fn log(sent: [usize; 2], arrivals: &[(usize, usize)]) -> Log {
        let ms = |n: usize| Duration::from_millis(n as u64);
        Log {
            sent: sent.iter().map(|&packets| (0..packets).map(ms).collect()).collect(),
            arrivals: arrivals
                .iter()
                .enumerate()
                .map(|(at, &(flow, sequence))| Arrival { flow, sequence, at: ms(at) })
                .collect(),
            ..Log::default()
        }
    }

    #[test]
    fn tells_loss_from_order() {
        let log = log([3, 2], &[(0, 0), (1, 1), (0, 2), (1, 0), (0, 2)]);
        let lost: Vec<_> = log.lost().iter().map(|packet| (packet.flow, packet.sequence)).collect();
        assert_eq!(lost, [(0, 1)]);
        let overtaken: Vec<_> = log.overtaken().iter().map(|late| (late.flow, late.sequence)).collect();
        assert_eq!(overtaken, [(1, 0), (0, 2)]);
        assert!(log.flaw().is_some());
        // Sent at 0, 1, 2, 0 and 2 ms, each arriving at the millisecond of its place.
        assert_eq!(log.transit_times(), [0, 0, 0, 3, 2].map(Duration::from_millis));
    }

    #[test]
    fn tells_when_a_flow_is_heard_again() {
        // Sent each millisecond from 0 on; the second flow's packets 1 and 2 are lost.
        let log = log([4, 4], &[(0, 0), (1, 0), (0, 1), (0, 2), (0, 3), (1, 3)]);
        assert_eq!(
            log.resumed(Duration::from_millis(1)),
            [(0, Duration::from_millis(2)), (2, Duration::from_millis(5))]
        );
        assert_eq!(log.resumed(Duration::from_millis(9)), []);
    }

    #[test]
    fn tells_how_long_nothing_arrived() {
        let mut log = log([4, 0], &[(0, 0), (0, 1), (0, 2), (0, 3)]);
        let ms = Duration::from_millis;
        log.arrivals[3].at = ms(9);
        assert_eq!(log.longest_gap(ms(10)), ms(7));
        // What comes too late is no end of it.
        assert_eq!(log.longest_gap(ms(8)), ms(6));
        assert_eq!(log.longest_gap(ms(20)), ms(11));
        assert_eq!(Log::default().longest_gap(ms(5)), ms(5));
    }

    #[test]
    fn all_in_order_has_no_flaw_and_nothing_sent_has_one() {
        assert_eq!(log([2, 1], &[(0, 0), (1, 0), (0, 1)]).flaw(), None);
        assert!(log([0, 0], &[]).flaw().is_some());
    }

    #[test]
    fn reads_what_it_wrote_and_nothing_else() {
        let mut packet = vec![0; LOAD.length(3)];
        fill(&mut packet, 3, 70_000);
        assert_eq!(read(&packet, LOAD), Some((3, 70_000)));
        assert_eq!(read(&packet[..packet.len() - 1], LOAD), None);
        packet[100] ^= 1;
        assert_eq!(read(&packet, LOAD), None);
        assert_eq!(read(&[0; 3], LOAD), None);
    }

    #[test]
    fn every_flow_has_a_length_of_its_own_on_the_wire() {
        // RFC 4303 section 2: 200 bytes of payload are 228 inside; 230 with the trailer, 232 aligned.
        assert_eq!(LOAD.esp_flow(16 + 232 + 16), Some(0));
        assert_eq!(LOAD.esp_flow(16 + 236 + 16), Some(1));
        assert_eq!(LOAD.esp_flow(16 + 244 + 16), Some(3));
        assert_eq!(LOAD.esp_flow(16 + 248 + 16), None);
        assert_eq!(LOAD.esp_flow(16 + 233 + 16), None);
        // WireGuard's whitepaper section 5.4.6: 228 bytes are padded to 240.
        let load = Load::told_apart_anywhere(4, 4);
        assert_eq!(load.wireguard_flow(32 + 240), Some(0));
        assert_eq!(load.wireguard_flow(32 + 256), Some(1));
        assert_eq!(load.wireguard_flow(32 + 288), Some(3));
        assert_eq!(load.wireguard_flow(32 + 304), None);
        assert_eq!(load.wireguard_flow(32 + 241), None);
        assert_eq!(load.esp_flow(16 + 280 + 16), Some(3));
    }
}

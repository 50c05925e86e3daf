//! The paced generator: many UDP flows of numbered packets at a steady rate, one direction, and
//! what of them arrived when. From its log follows what a failure cost.
//!
//! Each flow has a packet size of its own, so that a look at the encrypted outer packets tells
//! which flow went which way without asking the gateways (see `capture`).

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::crossing::Marker;
use super::error::Error;
use super::net::Namespace;
use super::stop::Stop;

/// Flows of one generator.
pub(super) const FLOWS: usize = 64;

/// UDP payload of a flow's packets, in bytes.
pub(super) const fn payload_len(flow: usize) -> usize {
    SMALLEST + STEP * flow
}

/// A generator under way.
#[derive(Debug)]
pub(super) struct Paced {
    stop: Stop,
    sender: JoinHandle<Vec<Vec<Duration>>>,
    receiver: JoinHandle<Vec<Arrival>>,
}

/// What was sent and what arrived, times since the origin given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Log {
    /// Per flow and sequence number: when it was sent.
    pub(super) sent: Vec<Vec<Duration>>,
    /// Per flow and sequence number: when it arrived first.
    pub(super) arrived: Vec<Vec<Option<Duration>>>,
}

#[derive(Debug, Clone, Copy)]
struct Arrival {
    flow: u16,
    sequence: u32,
    at: Duration,
}

/// What a cut cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outage {
    /// Packets sent in all.
    pub(super) sent: usize,
    /// Packets that never arrived, in all.
    pub(super) lost: usize,
    /// Flows that lost packets by the cut.
    pub(super) hit: Vec<usize>,
    /// Of these, flows that no packet of got through again while the path was cut.
    pub(super) not_recovered: usize,
    /// From the cut until the last of the others got through again.
    pub(super) recovery: Duration,
}

impl Paced {
    /// Starts sending from `from` in one namespace to `to` in the other.
    ///
    /// # Errors
    /// When the sockets cannot be made.
    pub(super) fn start(
        (sender, from): (&Namespace, Ipv4Addr),
        (receiver, to): (&Namespace, Ipv4Addr),
        marker: Marker,
        origin: Instant,
    ) -> Result<Self, Error> {
        let failed = || Error::system("cannot set up the paced flows");
        let sink = receiver.run(move |_| UdpSocket::bind((to, 0)).map_err(failed()))?;
        sink.set_read_timeout(Some(READ_LIMIT)).map_err(failed())?;
        // A full buffer would look like loss in a tunnel. More than the limit is a wish only.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&sink, BUFFER);
        let to = sink.local_addr().map_err(failed())?;
        let flows = sender.run(move |_| {
            (0..FLOWS)
                .map(|_| {
                    let flow = UdpSocket::bind((from, 0))?;
                    flow.connect(to)?;
                    flow.set_nonblocking(true)?;
                    Ok(flow)
                })
                .collect::<std::io::Result<Vec<_>>>()
                .map_err(failed())
        })?;
        let stop = Stop::default();
        let receiver = {
            let stop = stop.clone();
            thread::spawn(move || receive(&sink, &marker, origin, &stop))
        };
        let sender = {
            let stop = stop.clone();
            thread::spawn(move || send(&flows, &marker, origin, &stop))
        };
        Ok(Self { stop, sender, receiver })
    }

    /// Stops, waits for what is still under way, and hands the log over.
    pub(super) fn finish(self) -> Log {
        self.stop.set();
        // A generator that panicked has an empty log: nothing sent, nothing shown.
        let sent = self.sender.join().unwrap_or_default();
        let mut arrived: Vec<Vec<Option<Duration>>> =
            sent.iter().map(|flow| vec![None; flow.len()]).collect();
        for arrival in self.receiver.join().unwrap_or_default() {
            let flow = arrived.get_mut(usize::from(arrival.flow));
            if let Some(first) = flow.and_then(|flow| flow.get_mut(arrival.sequence as usize)) {
                first.get_or_insert(arrival.at);
            }
        }
        Log { sent, arrived }
    }
}

impl Log {
    /// What the cut cost, which lasted from `cut` to `restored`.
    pub(super) fn outage(&self, cut: Duration, restored: Duration) -> Outage {
        let mut outage = Outage::default();
        for (flow, (sent, arrived)) in self.sent.iter().zip(&self.arrived).enumerate() {
            outage.sent += sent.len();
            outage.lost += arrived.iter().filter(|at| at.is_none()).count();
            // A packet under way at the moment of the cut is lost by it, too.
            let hit = |at: &Duration| (cut.saturating_sub(UNDER_WAY)..restored).contains(at);
            let mut during = sent.iter().zip(arrived).filter(|(at, _)| hit(at)).peekable();
            let mut lost = false;
            let mut through = None;
            for (_, arrived) in during.by_ref() {
                match arrived {
                    None => (lost, through) = (true, None),
                    Some(at) if lost => through = through.or(Some(*at)),
                    Some(_) => {}
                }
            }
            if lost {
                outage.hit.push(flow);
                match through {
                    Some(at) => outage.recovery = outage.recovery.max(at.saturating_sub(cut)),
                    None => outage.not_recovered += 1,
                }
            }
        }
        outage
    }
}

fn send(flows: &[UdpSocket], marker: &Marker, origin: Instant, stop: &Stop) -> Vec<Vec<Duration>> {
    let mut sent = vec![Vec::new(); flows.len()];
    let mut packet = vec![0; payload_len(flows.len())];
    packet[..marker.len()].copy_from_slice(marker);
    let (mut next, mut due) = (0, Instant::now());
    while !stop.is_set() {
        for _ in 0..BURST {
            let flow = next % flows.len();
            next += 1;
            let sequence = sent[flow].len() as u32;
            packet[16..18].copy_from_slice(&(flow as u16).to_be_bytes());
            packet[18..22].copy_from_slice(&sequence.to_be_bytes());
            let at = origin.elapsed();
            // A full send buffer is our own fault: such a packet was never sent. Any other error is
            // an answer from the network, which this packet pays for.
            let outcome = flows[flow].send(&packet[..payload_len(flow)]);
            if !outcome.is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                sent[flow].push(at);
            }
        }
        due += TICK;
        let now = Instant::now();
        match due.checked_duration_since(now) {
            Some(left) => thread::sleep(left),
            // Never make up for lost time by a burst.
            None => due = now,
        }
    }
    sent
}

fn receive(sink: &UdpSocket, marker: &Marker, origin: Instant, stop: &Stop) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    let mut packet = [0; 2048];
    let mut quiet = 0;
    while !stop.is_set() || quiet < QUIET_READS {
        let Ok(length) = sink.recv(&mut packet) else {
            quiet = if stop.is_set() { quiet + 1 } else { 0 };
            continue;
        };
        let at = origin.elapsed();
        let Some((flow, sequence)) = parse(&packet[..length], marker) else { continue };
        arrivals.push(Arrival { flow, sequence, at });
    }
    arrivals
}

fn parse(packet: &[u8], marker: &Marker) -> Option<(u16, u32)> {
    let rest = packet.strip_prefix(marker)?;
    let (flow, rest) = rest.split_first_chunk()?;
    let (sequence, _) = rest.split_first_chunk()?;
    Some((u16::from_be_bytes(*flow), u32::from_be_bytes(*sequence)))
}

// Twice the smallest is more than the largest, so that two packets sent as one super-packet are
// never taken for one packet of another flow. ESP pads to four bytes (RFC 4303 section 2.4).
const SMALLEST: usize = 256;
/// More than WireGuard pads.
const STEP: usize = 16;
/// Eight packets a millisecond: each flow has one every eight milliseconds.
const BURST: usize = 8;
const TICK: Duration = Duration::from_millis(1);
const READ_LIMIT: Duration = Duration::from_millis(50);
const QUIET_READS: u32 = 3;
const BUFFER: usize = 4 << 20;
const UNDER_WAY: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// One packet each 10 ms; those whose sequence number is in `lost` do not arrive.
    fn flow(packets: u64, lost: std::ops::Range<u64>) -> (Vec<Duration>, Vec<Option<Duration>>) {
        (0..packets).map(|n| (ms(10 * n), (!lost.contains(&n)).then_some(ms(10 * n + 1)))).unzip()
    }

    fn log(flows: &[(Vec<Duration>, Vec<Option<Duration>>)]) -> Log {
        let (sent, arrived) = flows.iter().cloned().unzip();
        Log { sent, arrived }
    }

    #[test]
    fn recovery_is_counted_from_the_cut_to_the_last_flow_that_comes_back() {
        let log = log(&[flow(100, 20..26), flow(100, 0..0), flow(100, 20..31)]);
        let outage = log.outage(ms(195), ms(700));
        assert_eq!((outage.sent, outage.lost), (300, 17));
        assert_eq!(outage.hit, [0, 2]);
        assert_eq!(outage.recovery, ms(311 - 195));
        assert_eq!(outage.not_recovered, 0);
    }

    #[test]
    fn a_flow_that_comes_back_only_with_the_path_did_not_recover() {
        let outage = log(&[flow(100, 20..80)]).outage(ms(195), ms(700));
        assert_eq!((outage.not_recovered, outage.lost, outage.recovery), (1, 60, Duration::ZERO));
    }

    #[test]
    fn a_second_gap_counts_to_its_end() {
        let (sent, mut arrived) = flow(100, 20..26);
        arrived[40] = None;
        let outage = log(&[(sent, arrived)]).outage(ms(195), ms(700));
        assert_eq!(outage.recovery, ms(411 - 195));
    }

    #[test]
    fn loss_outside_the_cut_is_counted_but_hits_no_flow() {
        let outage = log(&[flow(100, 90..92), flow(100, 2..3)]).outage(ms(195), ms(700));
        assert_eq!((outage.lost, outage.hit.len()), (3, 0));
    }

    #[test]
    fn packets_are_told_by_marker_flow_and_number() {
        let marker = [7; 16];
        let mut packet = marker.to_vec();
        packet.extend([0, 9, 0, 0, 1, 2, 0xff]);
        assert_eq!(parse(&packet, &marker), Some((9, 258)));
        assert_eq!(parse(&packet, &[8; 16]), None);
        assert_eq!(parse(&packet[..20], &marker), None);
    }

    #[test]
    fn the_longest_packet_fits_a_tunnel() {
        const SMALLEST_INNER_MTU: usize = 1406;
        assert!(28 + payload_len(FLOWS - 1) <= SMALLEST_INNER_MTU);
    }
}

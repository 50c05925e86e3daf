//! One forwarding thread: poll, drain, forward, flush.
//!
//! Receive is drained before transmit, so that what a peer sends is opened before more is sent to
//! it, and probes and IKE are seen even in overload. Pools stay open over system calls until their
//! device or socket is empty.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, mpsc},
    time::Duration,
};

use braid_api::{Encapsulation, Event, SaId, TunnelId};
use rustix::event::{PollFd, PollFlags};

use crate::{
    drop_reason::DropReason,
    forward::{Arrival, Departure, Drops, Forwarder, Now, Progress, Wire},
    handshakes,
    io::{
        batch::{Outgoing, ReceivePool, SendBatch},
        tun::{TunDevice, TunQueue},
    },
    liveness::Input,
    offload::{
        MAX_HEADERS,
        coalesce::{Coalescer, Pending, Slots},
        vnet::{VNET_LEN, Vnet},
    },
    punt::PuntLine,
    runs::{HEADROOM, Run, TAILROOM},
    tables::{Carrier, IDLE_GAP, Reader, Tables, Ticks, TunnelStates},
    wireguard::NotSealed,
};

/// Slots of the receive pool: 48 buffers of 64 KiB.
const SLOTS: usize = 48;
/// Messages of one recvmmsg: what is merged by GRO is large, so that few fill the pool.
const RECEIVE_LIMIT: usize = 16;
/// Bytes and packets read from the device before the sockets are looked at again.
const TRANSMIT_BYTES: usize = 512 * 1024;
const TRANSMIT_PACKETS: usize = 256;
/// A batch that took longer than this many ticks has late packets: 1 ms.
const LATE: u32 = 10;
/// Nobody is kept off the processor longer, in ticks: 1 s.
const MOST_LATE: u32 = 10_000;
/// Bytes of packets that stay where they were read until they are sealed: what a core's cache holds.
pub const KEEP_BYTES: usize = 128 * 1024;
/// Most that one read of the device brings: its header, 64 KiB, and room to see that it was more.
const MAX_READ: usize = 65_536 + 256;
/// Writes to the device in one phase before data for the LAN is shed: at 2 us each, a few
/// milliseconds, less than what in-tunnel probes may wait.
const OVERLOAD_WRITES: usize = 1024;

/// How long a worker that has run dry looks again before it sleeps. A wake-up costs more than this
/// saves anybody else, who is yielded to: TCP gains a twentieth.
const LINGER_NANOS: u64 = 50_000;
/// A worker that always finds something to forward looks at its commands each so many rounds, of which the longest
/// takes milliseconds.
const COMMAND_ROUNDS: u32 = 64;

/// To a worker.
#[derive(Debug)]
pub enum Command {
    /// The worker's queue of the device.
    Tun(TunQueue),
    /// An outer socket.
    Socket(OuterSocket),
    /// The socket of this address is no longer needed.
    Close(SocketAddr),
    /// End the thread.
    Stop,
}

/// From a worker to the core's service thread.
#[derive(Debug)]
pub enum Notice {
    /// For control, as it is.
    Event(Event),
    /// The SA has used up its sequence numbers.
    Exhausted(SaId),
    /// A packet was larger than the outer path takes.
    TooBigOutside(TunnelId),
    /// The device or a socket is gone; the worker has let go of it.
    Lost {
        /// One line.
        what: String,
    },
}

/// Where notices go: a bounded queue, and an eventfd that wakes its reader.
#[derive(Clone, Debug)]
pub struct Notices {
    queue: mpsc::SyncSender<Notice>,
    wake: Arc<OwnedFd>,
}

impl Notices {
    /// Into `queue`, whose reader polls `wake`.
    pub fn new(queue: mpsc::SyncSender<Notice>, wake: Arc<OwnedFd>) -> Self {
        Notices { queue, wake }
    }

    /// Sends a notice; when the queue is full it is lost, which the answer says, and its cause will speak again.
    pub fn send(&self, notice: Notice) -> bool {
        let sent = self.queue.try_send(notice).is_ok();
        if sent {
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
        sent
    }
}

/// An outer socket and what comes out of it.
#[derive(Debug)]
pub struct OuterSocket {
    /// Bound address; port 0 for raw ESP.
    pub local: SocketAddr,
    /// It is WireGuard's, not ESP's and IKE's.
    pub wireguard: bool,
    /// Non-blocking.
    pub fd: OwnedFd,
}

impl OuterSocket {
    fn wire(&self) -> Wire {
        if self.wireguard { Wire::WireGuard } else { Wire::of(self.local) }
    }
}

/// Sends runs; the worker and the liveness thread have one each.
#[derive(Debug, Default)]
pub struct Sender {
    sockets: Vec<OuterSocket>,
    by_address: HashMap<SocketAddr, usize>,
    batch: SendBatch,
    gso: bool,
}

/// What became of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    /// Packets that the kernel refused, by cause.
    pub full: u32,
    /// Larger than the path takes.
    pub too_big: u32,
    /// For another reason.
    pub failed: u32,
}

impl Sender {
    /// With `gso` runs go out in one piece over UDP.
    pub fn new(gso: bool) -> Self {
        Sender { gso, ..Sender::default() }
    }

    /// Adds a socket, or replaces the one with its address.
    pub fn add(&mut self, socket: OuterSocket) {
        self.remove(socket.local);
        self.by_address.insert(socket.local, self.sockets.len());
        self.sockets.push(socket);
    }

    /// Closes the socket with this address.
    pub fn remove(&mut self, local: SocketAddr) {
        if let Some(index) = self.by_address.remove(&local) {
            self.sockets.swap_remove(index);
            if let Some(moved) = self.sockets.get(index) {
                self.by_address.insert(moved.local, index);
            }
        }
    }

    /// The socket with this address.
    pub fn socket(&self, local: SocketAddr) -> Option<BorrowedFd<'_>> {
        self.by_address.get(&local).map(|&index| self.sockets[index].fd.as_fd())
    }

    /// Sends one datagram from the socket with the address `local`.
    pub fn send_one(&mut self, local: SocketAddr, datagram: &[u8], out: Outgoing) -> Sent {
        self.send(local, core::iter::once(datagram), datagram.len(), 1, out)
    }

    /// Sends what lies in `pieces`, one after the other, from the socket with the address `local`:
    /// packets of `segment` bytes, `packets` in all, of which only the last may be shorter.
    pub fn send<'a>(
        &mut self,
        local: SocketAddr,
        pieces: impl Iterator<Item = &'a [u8]> + Clone,
        segment: usize,
        packets: u32,
        out: Outgoing,
    ) -> Sent {
        let Some(&index) = self.by_address.get(&local) else {
            return Sent { failed: packets, ..Sent::default() };
        };
        let socket = self.sockets[index].fd.as_fd();
        let mut sent = Sent::default();
        if self.gso && local.port() != 0 {
            match self.batch.send_gso(socket, pieces.clone(), segment, out) {
                Ok(()) => return sent,
                // A device without checksum offload takes no GSO: one by one then, for this run.
                Err(error)
                    if packets > 1 && matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => {}
                Err(error) => {
                    sent.count(&error, packets);
                    return sent;
                }
            }
        }
        let datagrams = pieces.flat_map(|piece| piece.chunks(segment));
        self.batch.send_each(socket, datagrams, out, |error| sent.count(&error, 1));
        sent
    }
}

impl Sent {
    fn count(&mut self, error: &io::Error, packets: u32) {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => self.full += packets,
            Some(libc::EMSGSIZE) => self.too_big += packets,
            _ => self.failed += packets,
        }
    }

    fn all(self) -> u32 {
        self.full + self.too_big + self.failed
    }
}

/// What a worker is made of.
pub struct Worker {
    number: usize,
    forwarder: Forwarder,
    reader: Reader,
    device: Option<TunQueue>,
    sender: Sender,
    pool: ReceivePool,
    /// Packets from the device, of which the first `used` bytes wait to be sealed.
    buffer: Vec<u8>,
    used: usize,
    commands: mpsc::Receiver<Command>,
    wake: OwnedFd,
    notices: Notices,
    probes: mpsc::SyncSender<Input>,
    punt: PuntLine,
    handshakes: handshakes::Line,
    now: Now,
    lateness: Lateness,
    /// To the device, in this phase.
    writes: usize,
}

/// What a worker is told at its start.
pub struct Setup {
    /// 0 to the number of workers less one.
    pub number: usize,
    /// Segments that the kernel takes in one GSO send; 1 for no GSO.
    pub max_segments: u16,
    /// Whether super-packets may be made.
    pub offload: bool,
    /// The tables.
    pub reader: Reader,
    /// The tunnel-state array.
    pub states: TunnelStates,
    /// Drops by reason.
    pub drops: Arc<Drops>,
    /// Commands; `wake` says that one waits.
    pub commands: mpsc::Receiver<Command>,
    /// An eventfd.
    pub wake: OwnedFd,
    /// To the service thread.
    pub notices: Notices,
    /// To the liveness thread; bounded, a reply or a BFD packet that does not fit is lost.
    pub probes: mpsc::SyncSender<Input>,
    /// To control.
    pub punt: PuntLine,
    /// To WireGuard's thread; bounded, what does not fit is lost.
    pub handshakes: handshakes::Line,
}

impl Worker {
    /// A worker without device and sockets, which come as commands.
    pub fn new(setup: Setup) -> Self {
        Worker {
            number: setup.number,
            forwarder: Forwarder::new(
                setup.number,
                setup.max_segments,
                setup.offload,
                setup.states,
                setup.drops,
            ),
            reader: setup.reader,
            device: None,
            sender: Sender::new(setup.max_segments > 1),
            pool: ReceivePool::new(SLOTS),
            buffer: vec![0; KEEP_BYTES + TAILROOM + HEADROOM + MAX_READ],
            used: 0,
            commands: setup.commands,
            wake: setup.wake,
            notices: setup.notices,
            probes: setup.probes,
            punt: setup.punt,
            handshakes: setup.handshakes,
            now: monotonic(),
            lateness: Lateness::default(),
            writes: 0,
        }
    }

    /// Forwards until told to stop.
    pub fn run(mut self) {
        let mut last_work = 0;
        let mut worked = false;
        let mut rounds = 0_u32;
        loop {
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(COMMAND_ROUNDS) && !self.take_commands() {
                return;
            }
            self.now = self.lateness.at(monotonic(), worked);
            let received = self.receive();
            let transmitted = self.transmit();
            worked = received || transmitted;
            if worked {
                last_work = self.now.nanos;
            } else if self.now.nanos.saturating_sub(last_work) < LINGER_NANOS {
                std::thread::yield_now();
            } else if !self.wait() {
                return;
            }
        }
    }

    /// Waits for anything; false at the end.
    fn wait(&mut self) -> bool {
        let mut polled = Vec::with_capacity(2 + self.sender.sockets.len());
        polled.push(PollFd::new(&self.wake, PollFlags::IN));
        polled.extend(self.sender.sockets.iter().map(|socket| PollFd::new(&socket.fd, PollFlags::IN)));
        polled.extend(self.device.iter().map(|device| PollFd::new(device, PollFlags::IN)));
        if rustix::event::poll(&mut polled, None).is_err() {
            return true;
        }
        let told = !polled[0].revents().is_empty();
        drop(polled);
        if !told {
            return true;
        }
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
        self.take_commands()
    }

    /// Does what it is told; false at the end.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Tun(queue)) => {
                    self.forwarder.lan = Coalescer::new(queue.vnet_hdr());
                    self.device = Some(queue);
                }
                Ok(Command::Socket(socket)) => self.sender.add(socket),
                Ok(Command::Close(local)) => self.sender.remove(local),
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return false,
                Err(mpsc::TryRecvError::Empty) => return true,
            }
        }
    }

    /// Drains the sockets and writes to the LAN; false when nothing was there.
    fn receive(&mut self) -> bool {
        let mut any = false;
        let mut reader = self.reader.clone();
        self.writes = 0;
        loop {
            let before = self.pool.free();
            let tables = reader.enter();
            for index in 0..self.sender.sockets.len() {
                self.receive_from(index, &tables);
            }
            drop(tables);
            let received = before - self.pool.free();
            any |= received > 0;
            if received == 0 {
                break;
            }
            if self.pool.free() == 0 {
                self.write_lan();
                self.pool.clear();
                if !self.forwarder.overloaded {
                    break;
                }
            }
        }
        self.forwarder.overloaded = false;
        if any {
            self.write_lan();
            self.pool.clear();
            self.flush(true);
        }
        any
    }

    /// Receives from one socket into the pools.
    fn receive_from(&mut self, index: usize, tables: &Tables) {
        let socket = &self.sender.sockets[index];
        let (wire, local) = (socket.wire(), socket.local);
        let slots = match self.pool.receive(socket.fd.as_fd(), RECEIVE_LIMIT, wire.headroom()) {
            Ok(slots) => slots,
            Err(error) => {
                self.sender.remove(local);
                self.notices.send(Notice::Lost { what: format!("socket {local}: {error}") });
                return;
            }
        };
        for slot in slots {
            let Some(got) = self.pool.received(slot) else { continue };
            // An empty datagram is too short for anything.
            if got.truncated || got.len == 0 {
                self.forwarder.drop(DropReason::Truncated, 1);
                continue;
            }
            let mut arrival = Arrival::new(slot, got.len, got.segment, got.from, got.tos, wire);
            loop {
                match self.forwarder.inward(tables, &mut self.pool, &mut arrival, self.now) {
                    Progress::Done => break,
                    Progress::Full => self.write_lan(),
                }
            }
            for reply in self.forwarder.probe_replies.drain(..) {
                let _ = self.probes.try_send(Input::Reply(reply));
            }
            for packet in self.forwarder.bfd_packets.drain(..) {
                let _ = self.probes.try_send(Input::Bfd(packet));
            }
            self.punt(slot, local, got.from);
            self.hand_over_handshakes(local);
            for event in self.forwarder.events.drain(..) {
                self.notices.send(Notice::Event(event));
            }
            self.forwarder.overloaded = self.writes + self.forwarder.lan.pending().len() > OVERLOAD_WRITES;
        }
    }

    /// Hands the IKE messages of a slot to control.
    fn punt(&mut self, slot: usize, local: SocketAddr, from: SocketAddr) {
        for message in &self.forwarder.punted {
            if let Err(reason) = self.punt.offer(local, from, &self.pool.slot(slot)[message.clone()]) {
                self.forwarder.drop(reason, 1);
            }
        }
        self.forwarder.punted.clear();
    }

    /// Hands WireGuard's handshake messages to the thread that computes.
    fn hand_over_handshakes(&mut self, local: SocketAddr) {
        for message in core::mem::take(&mut self.forwarder.handshakes) {
            if !self.handshakes.offer(local, message) {
                self.forwarder.drop(DropReason::HandshakeLoad, 1);
            }
        }
    }

    /// Writes everything that waits for the LAN.
    fn write_lan(&mut self) {
        let Some(device) = &self.device else {
            let lost: usize = self.forwarder.lan.pending().iter().map(Pending::count).sum();
            self.forwarder.drop(DropReason::DeviceFull, lost as u64);
            self.forwarder.lan.clear();
            return;
        };
        let mut refused = None;
        let mut lost = 0;
        for pending in self.forwarder.lan.pending() {
            match write_pending(device, pending, &self.pool) {
                Ok(true) => {}
                Ok(false) => lost += pending.count(),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && pending.count() > 1 => {
                    // Some kernels take the header and refuse what it says: one by one from now on.
                    refused = Some(pending.gso(self.pool.bytes(pending.first())));
                    for place in pending.apart() {
                        let parts = [IoSlice::new(&[0; VNET_LEN]), IoSlice::new(self.pool.bytes(place))];
                        lost += usize::from(!matches!(device.write(&parts), Ok(true)));
                    }
                }
                Err(_) => lost += pending.count(),
            }
        }
        self.writes += self.forwarder.lan.pending().len();
        self.forwarder.lan.clear();
        if lost > 0 {
            self.forwarder.drop(DropReason::DeviceFull, lost as u64);
        }
        if let Some(gso) = refused {
            self.forwarder.lan.disable(gso);
        }
    }

    /// Reads from the device into runs; false when nothing was there.
    fn transmit(&mut self) -> bool {
        let (mut bytes, mut packets) = (0, 0);
        let mut reader = self.reader.clone();
        let tables = reader.enter();
        while bytes < TRANSMIT_BYTES && packets < TRANSMIT_PACKETS {
            let Some(device) = &self.device else { break };
            let head = if device.vnet_hdr() { VNET_LEN } else { 0 };
            let start = self.used + HEADROOM;
            let len = match device.read(&mut self.buffer[start..]) {
                Ok(Some(len)) => len,
                Ok(None) => break,
                Err(error) => {
                    self.device = None;
                    self.notices.send(Notice::Lost { what: format!("TUN device: {error}") });
                    break;
                }
            };
            bytes += len;
            packets += 1;
            let read = start..start + len;
            let vnet =
                if head == 0 { Some(Vnet::default()) } else { decode_vnet(&self.buffer[read.clone()]) };
            match vnet {
                Some(vnet) => self.transmit_one(&tables, read.start + head..read.end, vnet),
                None => self.forwarder.drop(DropReason::InnerMalformed, 1),
            }
        }
        if packets > 0 {
            self.flush(true);
            self.write_errors();
        }
        packets > 0
    }

    fn transmit_one(&mut self, tables: &Tables, at: core::ops::Range<usize>, vnet: Vnet) {
        let end = at.end;
        let mut departure = Departure::new(at, vnet);
        while self.forwarder.outward(tables, &mut self.buffer, &mut departure, self.now) == Progress::Full {
            self.flush(true);
        }
        if departure.is_kept() {
            self.used = end + TAILROOM;
        }
        if self.forwarder.runs.has_closed() || self.used > KEEP_BYTES {
            self.flush(self.used > KEEP_BYTES);
        }
    }

    /// Lets runs leave: all, or those that are full and what must go before them.
    fn flush(&mut self, all: bool) {
        let Worker { forwarder, sender, notices, number, buffer, used, .. } = self;
        let drops = Arc::clone(forwarder.drops());
        forwarder.runs.flush(all, |run| leave(run, buffer, sender, &drops, *number, notices));
        if forwarder.runs.is_empty() {
            *used = 0;
        }
    }

    fn write_errors(&mut self) {
        let Some(device) = &self.device else { return };
        for error in self.forwarder.errors.drain(..) {
            let head = [0; VNET_LEN];
            let head = if device.vnet_hdr() { &head[..] } else { &[] };
            let _ = device.write(&[IoSlice::new(head), IoSlice::new(&error)]);
        }
    }
}

/// Seals a run and sends it, under the guard of the SA or the session, so that wire order is sequence order.
fn leave(
    run: &mut Run,
    buffer: &mut [u8],
    sender: &mut Sender,
    drops: &Drops,
    number: usize,
    notices: &Notices,
) {
    let carrier = run.carrier.clone();
    let count = run.count;
    let out = Outgoing { to: run.to, tos: run.tos };
    let refused = |reason: DropReason| drops.add(number, reason as usize, u64::from(count));
    let sent = match &carrier {
        Carrier::Esp(sa) => {
            let mut sequence = sa.lock();
            if run.seal(&mut sequence, buffer).is_err() {
                refused(DropReason::Exhausted);
                notices.send(Notice::Exhausted(sa.id));
                return;
            }
            let local = match run.encapsulation {
                Encapsulation::Esp => SocketAddr::new(run.local.ip(), 0),
                Encapsulation::Udp | Encapsulation::WireGuard => run.local,
            };
            sender.send(local, run.pieces(buffer), run.segment, count, out)
        }
        Carrier::WireGuard(peer) => {
            let Some(mut session) = peer.sending() else {
                refused(DropReason::NoSession);
                return;
            };
            if let Err(NotSealed(reason)) = run.seal_wireguard(&mut session, buffer) {
                refused(reason);
                return;
            }
            sender.send(run.local, run.pieces(buffer), run.segment, count, out)
        }
    };
    if sent.all() > 0 {
        for (reason, packets) in [
            (DropReason::SocketFull, sent.full),
            (DropReason::PathMtu, sent.too_big),
            (DropReason::SendFailed, sent.failed),
        ] {
            drops.add(number, reason as usize, u64::from(packets));
        }
        if sent.too_big > 0 {
            notices.send(Notice::TooBigOutside(carrier.tunnel()));
        }
    }
    let delivered = u64::from(count - sent.all().min(count));
    let bytes =
        if sent.all() == 0 { run.inner_bytes } else { run.inner_bytes * delivered / u64::from(count.max(1)) };
    run.live.sent(number, delivered, bytes);
    if let Carrier::Esp(sa) = &carrier {
        sa.counter.add(delivered, bytes);
    }
}

fn write_pending(device: &TunQueue, pending: &Pending, pool: &ReceivePool) -> io::Result<bool> {
    /// The device's header, the packet's headers, the first payload and the others.
    const MOST: usize = 3 + 64;
    let first = pool.bytes(pending.first());
    if !device.vnet_hdr() {
        return device.write(&[IoSlice::new(first)]);
    }
    let (vnet, headers) = pending.headers(first);
    let Some((headers, len)): Option<([u8; MAX_HEADERS], usize)> = headers else {
        return device.write(&[IoSlice::new(&vnet), IoSlice::new(first)]);
    };
    let mut parts = [IoSlice::new(&[]); MOST];
    parts[0] = IoSlice::new(&vnet);
    parts[1] = IoSlice::new(&headers[..len]);
    parts[2] = IoSlice::new(&first[len..]);
    let mut count = 3;
    for (part, place) in parts[3..].iter_mut().zip(pending.rest()) {
        *part = IoSlice::new(pool.bytes(*place));
        count += 1;
    }
    device.write(&parts[..count])
}

fn decode_vnet(packet: &[u8]) -> Option<Vnet> {
    Vnet::decode(packet.get(..VNET_LEN)?.try_into().ok()?)
}

/// By how much packets may have been later than their batch's time: a thread that loses the processor
/// within a batch goes on with the time of the batch's start, and what it forwards then must not look
/// old to the next batch.
#[derive(Default)]
struct Lateness {
    last: u64,
    ticks: u32,
    until: u64,
}

impl Lateness {
    /// The time of the next batch; `worked` says whether there was one between this call and the last.
    fn at(&mut self, now: Now, worked: bool) -> Now {
        let took = now.ticks.0.wrapping_sub(Ticks::from_nanos(self.last).0);
        if worked && took > LATE {
            self.ticks = self.ticks.max(took.min(MOST_LATE));
            self.until = now.nanos + u64::from(IDLE_GAP + self.ticks) * Ticks::NANOS;
        } else if now.nanos > self.until {
            self.ticks = 0;
        }
        self.last = now.nanos;
        Now { late: self.ticks, ..now }
    }
}

/// The time since an arbitrary start that does not jump.
pub fn monotonic() -> Now {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let time = Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
    Now::from_nanos(time.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_lost_the_processor_is_late_until_no_stamp_of_it_counts() {
        const MS: u64 = 1_000_000;
        let mut lateness = Lateness::default();
        let mut at = |ms: u64, worked| lateness.at(Now::from_nanos(ms * MS), worked).late;
        assert_eq!(at(5000, false), 0);
        assert_eq!(at(5001, true), 0);
        // 12 ms in one batch: late for that long and the idle gap.
        assert_eq!(at(5013, true), 120);
        assert_eq!(at(5014, true), 120);
        assert_eq!(at(5035, false), 120);
        assert_eq!(at(5036, true), 0);
        // Silence makes nothing late.
        assert_eq!(at(9000, false), 0);
    }
}

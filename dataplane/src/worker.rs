//! One forwarding thread: poll, drain, forward, flush.
//!
//! Receive is drained before transmit, so that what a peer sends is opened before more is sent to
//! it, and probes and IKE are seen even in overload. Pools stay open over system calls until their
//! device or socket is empty.

pub mod lan;
mod sender;
#[cfg(test)]
mod tests;

use std::{
    io::IoSlice,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use braid_api::{Event, SaId, TunnelId};
use braid_bfd::Unread;
use rustix::event::{PollFd, PollFlags};

use crate::{
    drop_reason::DropReason,
    forward::{Arrival, Departure, Drops, Forwarder, Now, Progress},
    handshakes,
    io::{
        batch::ReceivePool,
        tun::{TunDevice, TunQueue},
    },
    liveness::Input,
    offload::{
        coalesce::{Coalescer, Slots},
        vnet::{VNET_LEN, Vnet},
    },
    punt::PuntLine,
    runs::{HEADROOM, TAILROOM},
    tables::{IDLE_GAP, Reader, Tables, Ticks, TunnelStates},
};

pub use sender::{OuterSocket, Sender, Sent};

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
    /// A router says that the outer path takes no more than this.
    Narrow {
        /// Whose path.
        tunnel: TunnelId,
        /// In bytes of the outer packet.
        path_mtu: u16,
    },
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

/// How far a worker has read its sockets, in monotonic nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Drained(Arc<Line>);

/// Written each round: nothing else shall lie beside it.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    /// When it last found them empty, and in the lowest bit whether it reads just now. All that had come by then has
    /// been heard.
    empty: AtomicU64,
    /// When it last began to read.
    began: AtomicU64,
}

impl Drained {
    const READS: u64 = 1;

    /// Since when something waits that has come. `is_readable` says whether it does so in a socket of the worker's;
    /// what was heard is to be asked after this.
    pub fn unread(&self, is_readable: impl FnOnce() -> bool) -> Option<Unread> {
        let before = self.0.empty.load(Ordering::Acquire);
        // Taken from the socket, it waits in the worker's hands.
        let unread = is_readable() || self.0.empty.load(Ordering::Acquire) & Self::READS != 0;
        let read_at = self.0.began.load(Ordering::Relaxed);
        unread.then_some(Unread { since: before & !Self::READS, read_at })
    }

    pub(crate) fn begin(&self, nanos: u64) {
        self.0.began.store(nanos, Ordering::Relaxed);
        self.0.empty.fetch_or(Self::READS, Ordering::AcqRel);
    }

    pub(crate) fn end(&self, nanos: u64) {
        self.0.empty.store(nanos & !Self::READS, Ordering::Release);
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
    drained: Drained,
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
    /// For the liveness thread.
    pub drained: Drained,
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
            drained: setup.drained,
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
        let received = self.sender.sockets.iter().filter(|socket| socket.receives);
        polled.extend(received.map(|socket| PollFd::new(&socket.fd, PollFlags::IN)));
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
        let mut began = self.now.nanos;
        loop {
            self.drained.begin(began);
            let before = self.pool.free();
            let tables = reader.enter();
            for index in 0..self.sender.sockets.len() {
                self.receive_from(index, &tables);
            }
            drop(tables);
            let received = before - self.pool.free();
            any |= received > 0;
            if received == 0 {
                self.drained.end(began);
                break;
            }
            if self.pool.free() == 0 {
                self.write_lan();
                self.pool.clear();
                if !self.forwarder.overloaded {
                    break;
                }
            }
            began = monotonic().nanos;
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
        if !socket.receives {
            return;
        }
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
            self.hand_over_liveness();
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

    /// Hands probes' replies and BFD to the liveness thread.
    fn hand_over_liveness(&mut self) {
        let replies = self.forwarder.probe_replies.drain(..).map(Input::Reply);
        let all = replies.chain(self.forwarder.bfd_packets.drain(..).map(Input::Bfd));
        let lost = all.filter_map(|input| self.probes.try_send(input).err()).count();
        if lost > 0 {
            self.forwarder.drop(DropReason::LivenessFull, lost as u64);
        }
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
        self.writes += self.forwarder.lan.pending().len();
        let lost = lan::write(self.device.as_ref(), &mut self.forwarder.lan, &self.pool);
        if lost > 0 {
            self.forwarder.drop(DropReason::DeviceFull, lost);
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
        forwarder.runs.flush(all, |run| sender::leave(run, buffer, sender, &drops, *number, notices));
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

//! The thread that runs the BFD sessions outside the tunnels by sockets of its own: `links` decides, this moves
//! packets. Like the other liveness thread it survives the death of control.
//!
//! Packets are sent from a socket of each session, since each wants a source port of its own (RFC 5881 section 4),
//! and received by one for each address of ours and port. What cannot be opened, since an address is not there
//! yet or another program has the port, is tried again each second.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use braid_api::{BfdLink, BfdLinkStats, Event};
use braid_bfd::packet::LENGTH;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::SendFlags,
};

use super::{
    links::{Door, Key, Links, Outcome},
    random,
};
use crate::{
    counters::OTHER_THREAD,
    drop_reason::DropReason,
    forward::Drops,
    io::ttl,
    worker::{Notice, Notices, monotonic},
};

/// Between two tries to open what is not there.
const RETRY_NANOS: u64 = 1_000_000_000;
const LONGEST_SLEEP_NANOS: u64 = 3_600_000_000_000;
/// Source ports tried for a session: "MUST be in the range 49152 through 65535" (RFC 5881 section 4).
const PORTS_TRIED: u16 = 16;
const FIRST_PORT: u16 = 49_152;
/// Packets of one socket before the others have their turn.
const PER_ROUND: usize = 64;
/// More than a control packet with any authentication; what is longer is none.
const BUFFER: usize = 512;

type Published = Arc<Mutex<BTreeMap<(IpAddr, IpAddr), BfdLinkStats>>>;

/// How the thread is reached.
pub(crate) struct LinkHandle {
    wanted: mpsc::Sender<Vec<BfdLink>>,
    wake: Arc<OwnedFd>,
    published: Published,
}

impl LinkHandle {
    /// These are the sessions from now on.
    pub(crate) fn set(&self, links: Vec<BfdLink>) {
        if self.wanted.send(links).is_ok() {
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }

    /// Where they stand.
    pub(crate) fn stats(&self) -> Vec<BfdLinkStats> {
        // Whole after each change of it.
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.values().cloned().collect()
    }
}

/// An open socket, or why there is none.
type Opened = Result<OwnedFd, String>;

/// The thread's state.
pub(crate) struct LinkThread {
    links: Links,
    wanted: mpsc::Receiver<Vec<BfdLink>>,
    wake: Arc<OwnedFd>,
    notices: Notices,
    drops: Arc<Drops>,
    published: Published,
    doors: BTreeMap<Door, Opened>,
    senders: BTreeMap<Key, Opened>,
    /// Why sessions cannot send or receive.
    problems: BTreeMap<Key, String>,
    /// When sockets are looked at next.
    look_at: u64,
    outcome: Outcome,
}

impl LinkThread {
    /// A thread's state without sessions; `wake` is an eventfd.
    pub(crate) fn new(wake: OwnedFd, notices: Notices, drops: Arc<Drops>) -> (Self, LinkHandle) {
        let (sender, wanted) = mpsc::channel();
        let (wake, published) = (Arc::new(wake), Published::default());
        let handle = LinkHandle { wanted: sender, wake: wake.clone(), published: published.clone() };
        let thread = LinkThread {
            links: Links::new(),
            wanted,
            wake,
            notices,
            drops,
            published,
            doors: BTreeMap::new(),
            senders: BTreeMap::new(),
            problems: BTreeMap::new(),
            look_at: u64::MAX,
            outcome: Outcome::default(),
        };
        (thread, handle)
    }

    /// Runs until the handle is gone.
    pub(crate) fn run(mut self) {
        loop {
            let ready = self.wait();
            let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
            loop {
                match self.wanted.try_recv() {
                    Ok(links) => {
                        self.links.set(links, monotonic().nanos, &mut random);
                        self.look_at = 0;
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            // What has been received is heard before a deadline fires.
            self.receive(&ready);
            if self.look_at <= monotonic().nanos {
                self.look_at_sockets();
            }
            self.run_sessions(monotonic().nanos);
        }
    }

    /// Waits for packets, commands and deadlines; which doors have something.
    fn wait(&self) -> Vec<Door> {
        let now = monotonic().nanos;
        let wait = self.links.due().min(self.look_at).saturating_sub(now).min(LONGEST_SLEEP_NANOS);
        let timeout =
            Timespec { tv_sec: (wait / 1_000_000_000) as i64, tv_nsec: (wait % 1_000_000_000) as _ };
        let doors: Vec<(&Door, &OwnedFd)> =
            self.doors.iter().filter_map(|(door, socket)| Some((door, socket.as_ref().ok()?))).collect();
        let mut polled: Vec<PollFd<'_>> = vec![PollFd::new(&self.wake, PollFlags::IN)];
        polled.extend(doors.iter().map(|(_, socket)| PollFd::new(*socket, PollFlags::IN)));
        // Interrupted, it finds nothing, and looks again.
        let _ = rustix::event::poll(&mut polled, Some(&timeout));
        let ready = doors.iter().zip(&polled[1..]).filter(|(_, fd)| !fd.revents().is_empty());
        ready.map(|((door, _), _)| (*door).clone()).collect()
    }

    fn receive(&mut self, ready: &[Door]) {
        let mut buffer = [0; BUFFER];
        for door in ready {
            for _ in 0..PER_ROUND {
                let Some(Ok(socket)) = self.doors.get(door) else { break };
                match ttl::receive(socket.as_fd(), &mut buffer) {
                    Ok(None) => break,
                    Ok(Some(arrived)) => {
                        let (now, from) = (monotonic().nanos, arrived.from.ip());
                        let payload = &buffer[..arrived.len];
                        if self.links.handle_packet(now, door, from, arrived.ttl, payload).is_err() {
                            self.drops.add(OTHER_THREAD, DropReason::BfdDiscarded as usize, 1);
                        }
                    }
                    Err(error) => {
                        self.doors.insert(door.clone(), Err(error.to_string()));
                        break;
                    }
                }
            }
        }
    }

    /// Opens what is missing, closes what nobody needs.
    fn look_at_sockets(&mut self) {
        self.look_at = monotonic().nanos + RETRY_NANOS;
        let wanted = self.links.doors();
        self.doors.retain(|door, socket| wanted.contains(door) && is_good(socket, door.interface.as_deref()));
        for door in wanted {
            self.doors.entry(door).or_insert_with_key(|door| {
                let local = SocketAddr::new(door.local, door.port);
                let socket = ttl::open(local, door.interface.as_deref());
                socket.map_err(|error| format!("no socket on {local}: {error}"))
            });
        }
        let keys: BTreeMap<Key, Option<String>> =
            self.links.keys().map(|(key, interface)| (key, interface.map(str::to_owned))).collect();
        self.senders.retain(|key, socket| {
            keys.get(key).is_some_and(|interface| is_good(socket, interface.as_deref()))
        });
        for (key, interface) in keys {
            let Some((port, _)) = self.links.ports(key) else { continue };
            let opened = self.senders.entry(key);
            let opened = &*opened.or_insert_with(|| open_sender(key.local, port, interface.as_deref()));
            let door = self.links.door(key).and_then(|door| self.doors.get(&door));
            if let Some(problem) = door.into_iter().chain([opened]).find_map(|socket| socket.as_ref().err()) {
                self.problems.insert(key, problem.clone());
            } else {
                self.problems.remove(&key);
            }
            self.outcome.touched.insert(key);
        }
        self.problems.retain(|key, _| self.senders.contains_key(key));
        self.publish();
        if self.doors.is_empty() {
            self.look_at = u64::MAX;
        }
    }

    fn run_sessions(&mut self, now: u64) {
        if self.links.due() > now {
            return;
        }
        self.links.handle_timeout(now);
        let mut outcome = core::mem::take(&mut self.outcome);
        self.links.drain(now, &mut random, &mut outcome);
        for (Key { local, remote }, verdict, silent) in outcome.votes.drain(..) {
            self.notices.send(Notice::Event(Event::BfdLink { local, remote, verdict, silent }));
        }
        for (key, control) in outcome.packets.drain(..) {
            self.send(key, &control);
        }
        self.outcome = outcome;
        self.publish();
    }

    /// What the kernel does not take is lost like any packet: silence tells.
    fn send(&self, key: Key, control: &[u8; LENGTH]) {
        if let (Some(Ok(socket)), Some((_, port))) = (self.senders.get(&key), self.links.ports(key)) {
            let to = SocketAddr::new(key.remote, port);
            let _ = rustix::net::sendto(socket, control, SendFlags::DONTWAIT, &to);
        }
    }

    /// Shows where sessions stand. Whoever looks just now is not waited for: the next packet shows it too.
    fn publish(&mut self) {
        let Ok(mut published) = self.published.try_lock() else { return };
        while let Some(key) = self.outcome.touched.pop_first() {
            let at = (key.local, key.remote);
            match self.links.stats(key, self.problems.get(&key).cloned()) {
                Some(stats) => drop(published.insert(at, stats)),
                None => drop(published.remove(&at)),
            }
        }
    }
}

fn is_good(socket: &Opened, interface: Option<&str>) -> bool {
    socket.as_ref().is_ok_and(|socket| interface.is_none_or(|name| ttl::is_on(socket.as_fd(), name)))
}

/// A socket bound to `port` or, if others have it, to one of those that follow.
fn open_sender(local: IpAddr, port: u16, interface: Option<&str>) -> Opened {
    let mut failed = io::Error::from(io::ErrorKind::AddrInUse);
    for port in (0..PORTS_TRIED).map(|step| FIRST_PORT | port.wrapping_add(step)) {
        match ttl::open(SocketAddr::new(local, port), interface) {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => failed = error,
            Err(error) => {
                failed = error;
                break;
            }
        }
    }
    Err(format!("no socket on {local}: {failed}"))
}

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use braid_api::{Bfd, BfdState, Verdict};
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    struct Side {
        handle: LinkHandle,
        notices: mpsc::Receiver<Notice>,
    }

    impl Side {
        fn start() -> Self {
            let fd = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
            let (queue, notices) = mpsc::sync_channel(64);
            let drops = Arc::new(Drops::new(1));
            let (thread, handle) = LinkThread::new(fd(), Notices::new(queue, Arc::new(fd())), drops);
            thread::spawn(move || thread.run());
            Side { handle, notices }
        }

        fn verdict(&self) -> Verdict {
            match self.notices.recv_timeout(PATIENCE) {
                Ok(Notice::Event(Event::BfdLink { verdict, .. })) => verdict,
                other => panic!("{other:?}"),
            }
        }

        fn stats(&self, fits: impl Fn(&BfdLinkStats) -> bool) -> BfdLinkStats {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let stats = self.handle.stats();
                match stats.first() {
                    Some(first) if fits(first) => return first.clone(),
                    _ => assert!(Instant::now() < deadline, "{stats:?}"),
                }
                thread::yield_now();
            }
        }
    }

    fn link(local: &str, remote: &str, interface: Option<&str>) -> BfdLink {
        let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
        // Patient, for a machine that does something else.
        let bfd = Bfd { local, remote, interval: Duration::from_millis(300), multiplier: 5 };
        BfdLink { bfd, multihop: interface.is_none(), interface: interface.map(str::to_owned) }
    }

    #[test]
    fn two_ends_hear_each_other_by_sockets() {
        for interface in [Some("lo"), None] {
            let sides = [Side::start(), Side::start()];
            sides[0].handle.set(vec![link("127.77.0.1", "127.77.0.2", interface)]);
            sides[1].handle.set(vec![link("127.77.0.2", "127.77.0.1", interface)]);
            for side in &sides {
                assert_eq!((side.verdict(), side.verdict()), (Verdict::Withdrawn, Verdict::Up));
                let stats = side.stats(|stats| stats.session.state == BfdState::Up);
                assert_eq!((stats.problem, stats.session.vote), (None, Verdict::Up));
            }
            // Gone without a word, it is missed.
            let [left, gone] = sides;
            drop(gone);
            left.handle.set(vec![link("127.77.0.1", "127.77.0.2", interface)]);
            assert_eq!((left.verdict(), left.verdict()), (Verdict::Up, Verdict::Down));
        }
    }

    #[test]
    fn what_cannot_be_opened_is_said_and_tried_again() {
        // TEST-NET-1, which nobody has.
        let side = Side::start();
        side.handle.set(vec![link("192.0.2.77", "192.0.2.78", None)]);
        let problem = side.stats(|stats| stats.problem.is_some()).problem.unwrap();
        assert!(problem.starts_with("no socket on 192.0.2.77:4784: "), "{problem}");
        // Another program has the port.
        let taken = std::net::UdpSocket::bind("127.77.0.3:4784").unwrap();
        side.handle.set(vec![link("127.77.0.3", "127.77.0.4", None)]);
        side.stats(|stats| stats.session.local.to_string() == "127.77.0.3" && stats.problem.is_some());
        drop(taken);
        side.stats(|stats| stats.problem.is_none());
    }
}

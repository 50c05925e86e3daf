//! The core's own thread: takes devices and sockets from the launcher, transactions and questions
//! from control, notices from the workers, and passes each on.
//!
//! One control at a time: a new connection takes the place of the old one, whose process is gone or
//! will be. A control that does not read, sends what does not decode, or has another version, is cut
//! off; the workers notice nothing.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use braid_api::{
    Answer, Encapsulation, Event, FRAME_HEADER_LEN, FromCore, Hello, MAX_TRAFFIC, Query, ToCore, TunnelId,
    VERSION, decode, encode, frame_len,
    launcher::{OUTER_MARK, ToCoreProcess},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::{SocketFlags, sockopt},
};

use crate::{
    drop_reason::DropReason,
    forward::Drops,
    handshakes,
    io::{path, tun::TunQueue},
    liveness::{Input, link_thread::LinkHandle},
    packet::FlowKey,
    punt::Punt,
    run::Launcher,
    tables::{Ticks, Writer},
    worker::{Command, Notice, OuterSocket, monotonic},
};

/// Bytes that may wait for a control that does not read.
const MAX_BACKLOG: usize = 64 << 20;
/// How often path MTUs, peers' addresses and what SAs have carried are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How many times that SA lifetimes are; one that ends is told of at once.
const LIFETIMES_EVERY: u32 = 4;
/// How long a lowered path MTU is believed (RFC 1191 section 6.3 wants at least ten minutes before
/// a larger one is tried; the kernel forgets after ten).
const PATH_MTU_AGE: Duration = Duration::from_secs(600);

/// The threads and how they are reached.
pub(crate) struct Threads {
    pub(crate) commands: Vec<(mpsc::Sender<Command>, OwnedFd)>,
    pub(crate) inputs: mpsc::SyncSender<Input>,
    pub(crate) handshakes: handshakes::Line,
    pub(crate) links: LinkHandle,
    pub(crate) drops: Arc<Drops>,
    pub(crate) max_segments: u16,
}

impl Threads {
    fn command(&self, number: usize, command: Command) {
        if let Some((sender, wake)) = self.commands.get(number)
            && sender.send(command).is_ok()
        {
            let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
        }
    }
}

fn is_readable(fd: &impl AsFd) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(rustix::event::poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now))? > 0)
}

/// The state of the service thread.
pub(crate) struct Service {
    writer: Writer,
    threads: Threads,
    listener: OwnedFd,
    punt: Punt,
    launcher: Launcher,
    notices: mpsc::Receiver<Notice>,
    wake: Arc<OwnedFd>,
    control: Option<Connection>,
    sockets: BTreeMap<SocketAddr, Encapsulation>,
    lowered: BTreeMap<TunnelId, Instant>,
    started: Instant,
    offload: bool,
    /// Rounds of housekeeping.
    rounds: u32,
}

impl Service {
    #[expect(clippy::too_many_arguments, reason = "all that the process has opened, once")]
    pub(crate) fn new(
        writer: Writer,
        threads: Threads,
        listener: OwnedFd,
        punt: Punt,
        launcher: Launcher,
        notices: mpsc::Receiver<Notice>,
        wake: Arc<OwnedFd>,
        offload: bool,
    ) -> Self {
        Service {
            writer,
            threads,
            listener,
            punt,
            launcher,
            notices,
            wake,
            control: None,
            sockets: BTreeMap::new(),
            lowered: BTreeMap::new(),
            started: Instant::now(),
            offload,
            rounds: 0,
        }
    }

    /// Serves until the launcher is gone.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut housekeeping = Instant::now();
        loop {
            let ready = self.wait()?;
            if ready.launcher && !self.serve_launcher()? {
                return Ok(());
            }
            // All of it before control's frames, which name what the launcher has sent.
            while ready.launcher && is_readable(&self.launcher)? {
                if !self.serve_launcher()? {
                    return Ok(());
                }
            }
            if ready.notices {
                self.serve_workers();
            }
            if ready.listener {
                self.accept();
            }
            if ready.control {
                self.serve_control();
            }
            // Whoever called may have been let in already, with the frames of control.
            if ready.punt_listener {
                self.punt.finish(&mut self.writer);
            }
            if ready.punt {
                self.punt.serve(&mut self.writer);
            }
            if housekeeping.elapsed() >= HOUSEKEEPING {
                housekeeping = Instant::now();
                self.housekeeping();
            }
            self.flush_control();
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut polled = Vec::with_capacity(6);
        polled.extend(self.punt.socket().map(|socket| PollFd::new(socket, PollFlags::IN)));
        let punt = !polled.is_empty();
        if let Some(control) = &self.control {
            let wants =
                if control.backlog.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            polled.push(PollFd::new(&control.socket, wants));
        }
        polled.push(PollFd::new(&self.punt.listener, PollFlags::IN));
        polled.push(PollFd::new(&self.listener, PollFlags::IN));
        polled.push(PollFd::new(&self.wake, PollFlags::IN));
        // The kernel looks at them in this order. A transaction, or a datagram, follows upon the sockets that it
        // names, so that whoever sees the one, and then looks, sees the others.
        polled.push(PollFd::new(&self.launcher, PollFlags::IN));
        let timeout = Timespec { tv_sec: HOUSEKEEPING.as_secs() as i64, tv_nsec: 0 };
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let punt = punt && polled.first().is_some_and(|fd| !fd.revents().is_empty());
        let ready: Vec<bool> = polled.iter().rev().map(|fd| !fd.revents().is_empty()).collect();
        let ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        Ok(Ready {
            launcher: ready(0),
            notices: ready(1),
            listener: ready(2),
            punt_listener: ready(3),
            control: self.control.is_some() && ready(4),
            punt,
        })
    }

    /// False when the launcher is gone.
    fn serve_launcher(&mut self) -> io::Result<bool> {
        let Some((message, fds)) = self.launcher.receive()? else { return Ok(false) };
        match message {
            ToCoreProcess::Start { .. } => {}
            ToCoreProcess::Tun { vnet_hdr, .. } => {
                for (number, queue) in TunQueue::of(fds, vnet_hdr)?.into_iter().enumerate() {
                    self.threads.command(number, Command::Tun(queue));
                }
            }
            ToCoreProcess::Udp { local, wireguard } => {
                let encapsulation = if wireguard { Encapsulation::WireGuard } else { Encapsulation::Udp };
                self.add_socket(local, encapsulation, fds)?;
            }
            ToCoreProcess::RawEsp { local } => {
                self.add_socket(SocketAddr::new(local, 0), Encapsulation::Esp, fds)?;
            }
            ToCoreProcess::Close { local } => {
                self.sockets.remove(&local);
                self.punt.remove_socket(local);
                for number in 0..self.threads.commands.len() {
                    self.threads.command(number, Command::Close(local));
                }
                let _ = self.threads.inputs.send(Input::Close(local));
                self.threads.handshakes.send(handshakes::Input::Close(local));
            }
        }
        self.writer.set_sockets(self.sockets.iter().map(|(local, kind)| (*local, *kind)).collect());
        Ok(true)
    }

    /// A socket for each worker, or one for all, from which the first receives, and more handles for the threads that
    /// send of themselves.
    fn add_socket(
        &mut self,
        local: SocketAddr,
        encapsulation: Encapsulation,
        fds: Vec<OwnedFd>,
    ) -> io::Result<()> {
        self.sockets.insert(local, encapsulation);
        let wireguard = encapsulation == Encapsulation::WireGuard;
        let handle = |fd: &OwnedFd, receives| {
            Ok::<_, io::Error>(OuterSocket { local, wireguard, receives, fd: fd.try_clone()? })
        };
        let socket = |fd| handle(fd, false);
        if let Some(first) = fds.first() {
            let _ = self.threads.inputs.send(Input::Socket(socket(first)?));
            // Without them, as where descriptors are short, silence is judged as it is.
            if let Ok(received) = fds.iter().map(OwnedFd::try_clone).collect() {
                let _ = self.threads.inputs.send(Input::Readers(local, received));
            }
            self.threads.handshakes.send(handshakes::Input::Socket(socket(first)?));
            self.punt.add_socket(socket(first)?);
        }
        for number in 0..self.threads.commands.len() {
            if let Some(fd) = fds.get(number).or(fds.first().filter(|_| fds.len() == 1)) {
                self.threads.command(number, Command::Socket(handle(fd, number < fds.len())?));
            }
        }
        Ok(())
    }

    fn serve_workers(&mut self) {
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
        while let Ok(notice) = self.notices.try_recv() {
            match notice {
                Notice::Event(event) => {
                    // First where the peer is: what comes up brings routes, of which none shall cover it.
                    if let Event::WireGuard { tunnel, up: true } = event
                        && let Some(heard) = self.writer.heard_at(tunnel)
                    {
                        self.tell(&FromCore::Event(heard));
                    }
                    self.tell(&FromCore::Event(event));
                }
                Notice::Exhausted(_) => self.report_lifetimes(),
                Notice::TooBigOutside(tunnel) => self.ask_path_mtu(tunnel),
                Notice::Narrow { tunnel, path_mtu } => self.narrow(tunnel, path_mtu),
                Notice::Lost { what } => tracing::error!("lost {what}"),
            }
        }
    }

    fn report_lifetimes(&mut self) {
        for event in self.writer.lifetimes() {
            self.tell(&FromCore::Event(event));
        }
    }

    /// What SAs have carried: it suppresses DPD and asks for rekeys.
    fn report_traffic(&mut self) {
        if !self.control.as_ref().is_some_and(|control| control.greeted) {
            return;
        }
        let traffic = self.writer.traffic(monotonic().nanos);
        for part in traffic.chunks(MAX_TRAFFIC) {
            self.tell(&FromCore::Event(Event::Traffic(part.to_vec())));
        }
    }

    /// The kernel refused a packet as too big for its path: it knows what the path takes.
    fn ask_path_mtu(&mut self, tunnel: TunnelId) {
        if let Some((path_mtu, used)) = self.path_mtus(tunnel) {
            self.lower(tunnel, path_mtu.min(used));
        }
    }

    /// A router says what the path takes, and the kernel does not know it.
    fn narrow(&mut self, tunnel: TunnelId, path_mtu: u16) {
        if self.path_mtus(tunnel).is_some_and(|(_, used)| path_mtu < used) {
            self.lower(tunnel, path_mtu);
        }
    }

    fn lower(&mut self, tunnel: TunnelId, path_mtu: u16) {
        self.lowered.insert(tunnel, Instant::now());
        self.writer.set_path_mtu(tunnel, Some(path_mtu));
        self.tell(&FromCore::Event(Event::PathMtu { tunnel, path_mtu }));
    }

    /// What the kernel says that a tunnel's path takes, and what the tunnel takes it for.
    fn path_mtus(&self, tunnel: TunnelId) -> Option<(u16, u16)> {
        let mut reader = self.writer.reader();
        let tables = reader.enter();
        let found = tables.tunnel(tunnel)?;
        let (local, remote, put) = (found.settings.local, found.live.remote()?, found.settings.path_mtu);
        let used = found.live.path_mtu().map_or(put, |lowered| lowered.min(put));
        let path_mtu = path::path_mtu(local.ip(), remote.ip(), OUTER_MARK, self.punt.uplink(local)).ok()?;
        Some((path_mtu, used))
    }

    /// A path was narrow for long. Control has put the tunnel with what was found then, and learns that there is
    /// more now.
    fn look_again(&mut self, tunnel: TunnelId) {
        match self.path_mtus(tunnel) {
            Some((path_mtu, used)) if path_mtu <= used => drop(self.lowered.insert(tunnel, Instant::now())),
            wider => {
                self.lowered.remove(&tunnel);
                self.writer.set_path_mtu(tunnel, None);
                if let Some((path_mtu, _)) = wider {
                    self.tell(&FromCore::Event(Event::PathMtu { tunnel, path_mtu }));
                }
            }
        }
    }

    fn housekeeping(&mut self) {
        self.rounds = self.rounds.wrapping_add(1);
        if self.rounds.is_multiple_of(LIFETIMES_EVERY) {
            self.report_lifetimes();
        }
        for event in self.writer.moved() {
            self.tell(&FromCore::Event(event));
        }
        self.report_traffic();
        let due: Vec<TunnelId> = self
            .lowered
            .iter()
            .filter(|(_, since)| since.elapsed() > PATH_MTU_AGE)
            .map(|(id, _)| *id)
            .collect();
        // Later, if nobody would hear of it.
        if self.control.as_ref().is_some_and(|control| control.greeted) {
            due.into_iter().for_each(|tunnel| self.look_again(tunnel));
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::acceptfrom_with(&self.listener, flags) else { return };
        let socket = socket.0;
        let ours = rustix::process::getuid();
        let allowed =
            sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid == ours || peer.uid.is_root());
        if allowed {
            self.control =
                Some(Connection { socket, greeted: false, input: Vec::new(), backlog: Vec::new() });
        }
    }

    fn serve_control(&mut self) {
        let Some(mut control) = self.control.take() else { return };
        let mut open = control.fill().is_ok();
        // What control sent there before these frames, such as a stash that is now forgotten, is there.
        self.punt.finish(&mut self.writer);
        while let Some(message) = control.next_frame() {
            match message {
                Ok(message) if open => open = self.serve(&mut control, message),
                _ => {
                    open = false;
                    break;
                }
            }
        }
        // What was read last, such as a last transaction, is served even when the peer is gone.
        if open && !control.ended() {
            self.control = Some(control);
        }
    }

    /// Serves one message; false to end the connection.
    fn serve(&mut self, control: &mut Connection, message: ToCore) -> bool {
        match message {
            ToCore::Hello { version } => {
                control.greeted = true;
                let hello = self.hello();
                control.put(&FromCore::Hello(hello)) && version == VERSION
            }
            _ if !control.greeted => false,
            ToCore::Apply(transaction) => match self.writer.apply(transaction, monotonic().nanos) {
                Ok(applied) => {
                    self.threads.handshakes.send(handshakes::Input::Changed(applied.tunnels.clone()));
                    let _ = self.threads.inputs.send(Input::Changed(applied.tunnels));
                    // Their verdicts are told after the transaction is.
                    let told = control.put(&FromCore::Applied { epoch: applied.epoch });
                    if let Some(links) = applied.bfd_links {
                        self.threads.links.set(links);
                    }
                    told
                }
                Err(rejected) => control.put(&FromCore::Rejected(rejected)),
            },
            ToCore::Query { number, query } => {
                let answer = self.answer(query);
                control.put(&FromCore::Answer { number, answer })
            }
        }
    }

    fn hello(&mut self) -> Hello {
        let workers = self.threads.commands.len() as u32;
        let offload = self.offload && self.threads.max_segments > 1;
        self.writer.hello(self.started.elapsed(), workers, offload)
    }

    fn answer(&mut self, query: Query) -> Answer {
        let now = monotonic().nanos;
        match query {
            Query::Stats => {
                let mut stats = self.writer.stats(now);
                let drops = |reason: &DropReason| {
                    (reason.name().to_owned(), self.threads.drops.sum(*reason as usize))
                };
                stats.drops = DropReason::ALL.iter().map(drops).collect();
                stats.bfd_links = self.threads.links.stats();
                Answer::Stats(stats)
            }
            Query::Path(flow) => {
                let mut reader = self.writer.reader();
                let tables = reader.enter();
                let settings = tables.settings();
                let key = FlowKey::of(&flow);
                let hash = key.hash(&settings.hash_seed, settings.symmetric_hash);
                let pinned =
                    tables.pins().and_then(|pins| pins.peek(key.hash(&settings.hash_seed, true), now));
                Answer::Path(tables.path(&flow, hash, pinned, Ticks::from_nanos(now)))
            }
            Query::Echo { tunnel, len } => {
                let _ = self.threads.inputs.send(Input::Echo(tunnel, len));
                Answer::Echo
            }
            Query::Handshake(tunnel) => {
                self.threads.handshakes.send(handshakes::Input::Begin(tunnel));
                Answer::Handshake
            }
            Query::Stash { from } => Answer::Stash(self.writer.stash(from)),
        }
    }

    fn tell(&mut self, message: &FromCore) {
        if let Some(control) = &mut self.control
            && control.greeted
            && !control.put(message)
        {
            self.control = None;
        }
    }

    fn flush_control(&mut self) {
        if let Some(control) = &mut self.control
            && control.flush().is_err()
        {
            self.control = None;
        }
    }
}

struct Ready {
    launcher: bool,
    notices: bool,
    listener: bool,
    control: bool,
    punt_listener: bool,
    punt: bool,
}

/// Control's connection.
struct Connection {
    socket: OwnedFd,
    greeted: bool,
    /// Read and not yet decoded; may hold keys.
    input: Vec<u8>,
    backlog: Vec<u8>,
}

impl Connection {
    /// Reads what waits.
    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = zeroize::Zeroizing::new([0; 65_536]);
        // At most one frame and a chunk are held.
        while self.input.len() <= braid_api::MAX_FRAME_LEN {
            match rustix::io::read(self.socket.as_fd(), &mut chunk[..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.input.extend_from_slice(&chunk[..len]),
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next whole message; an error ends the connection.
    fn next_frame(&mut self) -> Option<Result<ToCore, ()>> {
        let header: [u8; FRAME_HEADER_LEN] = self.input.get(..FRAME_HEADER_LEN)?.try_into().ok()?;
        let Ok(len) = frame_len(header) else { return Some(Err(())) };
        let end = FRAME_HEADER_LEN + len;
        let message = decode(self.input.get(FRAME_HEADER_LEN..end)?).map_err(|_| ());
        // Behind a message with keys nothing of it stays.
        zeroize::Zeroize::zeroize(&mut self.input[..end]);
        self.input.drain(..end);
        Some(message)
    }

    fn ended(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let _ = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        polled[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR)
    }

    /// Queues a message; false when too much waits already.
    fn put(&mut self, message: &FromCore) -> bool {
        let Ok(frame) = encode(message) else { return false };
        if self.backlog.len() + frame.len() > MAX_BACKLOG {
            return false;
        }
        self.backlog.extend_from_slice(&frame);
        self.flush().is_ok()
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.backlog.is_empty() {
            match rustix::net::send(&self.socket, &self.backlog, rustix::net::SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.backlog.drain(..sent);
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

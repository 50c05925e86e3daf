//! `braid run`: the small parent that keeps the privileges.
//!
//! It owns the run directory, starts the core and control and starts them again when they die,
//! opens the device and the sockets and hands them to the core, and makes the kernel like
//! control's plan ([`kernel`]). It touches no packet, and looks into no key: what control is configured by is kept here
//! for its next life, unread.
//!
//! Invariants:
//! - Listening sockets, device and outer sockets are held here and survive a crash of the core:
//!   the next core gets the same ones, and control reconnects to the same paths.
//! - What outlives this process in the kernel when it is killed is what protects: `unreachable`
//!   routes and the rules to them. The next run in the same run directory adopts them, a clean
//!   exit removes them.
//! - A plan is in force whole or not at all.
//!
//! - What others remove of ours while braid runs is put back ([`watch`]).
//!
//! Not done: sysctls that others change while braid runs stay so until the next plan.

mod aside;
mod error;
mod install;
#[cfg(test)]
mod install_tests;
mod kernel;
mod layout;
mod learned;
#[cfg(test)]
mod learned_tests;
mod netlink;
mod next_hop;
mod process;
mod run_dir;
mod slot;
mod sockets;
mod sysctl;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::rc::Rc;
use std::time::{Duration, Instant};

use braid_api::launcher::{
    FromClient, KernelPlan, LAUNCHER_SOCKET, PUNT_SOCKET, TABLES_SOCKET, ToControl, ToCoreProcess,
};
use braid_dataplane::io::netlink as netlink_notices;
use rustix::net::SocketType;
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use error::StartError;
use kernel::Kernel;
pub use layout::PROTOCOL;
pub use learned::PROTOCOL as LEARNED_PROTOCOL;
use process::{Process, Role};
use run_dir::RunDir;
use wire::{Connection, Listener};

/// Exit status for wrong usage, configuration or surroundings.
const EXIT_USAGE: u8 = 2;
/// How long a process may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// Between two repairs of the kernel's state.
const REPAIR_INTERVAL: Duration = Duration::from_secs(1);
/// Multicast groups by their bits: links, and the addresses of both families.
const LINKS_AND_ADDRESSES: u32 = netlink_notices::LINKS | (1 << 4) | (1 << 8);
/// Deaths of a process before the first plan is in force after which there is no point.
const MAX_EARLY_DEATHS: u32 = 10;

/// What `braid run` was asked to do.
#[derive(Clone, Debug)]
pub struct RunArgs {
    /// The configuration file; control reads it.
    pub config: PathBuf,
    /// The run directory.
    pub run_dir: PathBuf,
    /// Allows `[tunnel.manual]`.
    pub insecure_manual_keys: bool,
    /// Where control appends the keys of IKE SAs.
    pub ike_key_log: Option<PathBuf>,
    /// The program of core and control, which it becomes by its `argv[0]`.
    pub program: PathBuf,
}

impl RunArgs {
    /// Arguments for this very program.
    pub fn new(config: PathBuf, run_dir: PathBuf, insecure_manual_keys: bool) -> Self {
        // The link, not its target: it still leads to this program when the file was replaced.
        let program = PathBuf::from("/proc/self/exe");
        Self { config, run_dir, insecure_manual_keys, ike_key_log: None, program }
    }
}

/// Runs until SIGTERM or SIGINT, or until control finds its configuration wrong.
pub fn run(args: RunArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, launch(args)),
        Err(error) => Err(StartError::System { what: "cannot start the launcher", error }),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("braid: {error}");
            match error {
                StartError::System { .. } | StartError::Spawn { .. } => ExitCode::FAILURE,
                StartError::Capability(_)
                | StartError::NoTun(_)
                | StartError::Busy { .. }
                | StartError::Open(_)
                | StartError::File { .. } => ExitCode::from(EXIT_USAGE),
            }
        }
    }
}

enum Event {
    Accepted(Connection),
    Message(u64, FromClient, Option<OwnedFd>),
    Closed(u64),
    Ended(Role, io::Result<ExitStatus>),
    Restart(Role),
    HandedOver,
    /// Something of ours may be missing in the kernel.
    Missing,
    /// A link is up, or, with `None`, any may be, or has another address.
    LinkUp(Option<String>),
    /// Time to look.
    Repair,
}

/// What a connected core was sent.
#[derive(Default)]
struct Sent {
    started: bool,
    device: Option<u64>,
    sockets: BTreeSet<SocketAddr>,
}

struct Launcher {
    args: RunArgs,
    dir: RunDir,
    kernel: Kernel,
    /// For the core: tables, then punt.
    listening: [OwnedFd; 2],
    /// What hears ICMP errors, as far as it can be had.
    icmp: Vec<OwnedFd>,
    events: mpsc::UnboundedSender<Event>,
    connections: BTreeMap<u64, Rc<Connection>>,
    next_connection: u64,
    core: Process,
    control: Process,
    core_connection: Option<u64>,
    control_connection: Option<u64>,
    /// What the next life of control may go on with; it holds keys, and is not looked into.
    in_force: Option<OwnedFd>,
    sent: Sent,
    /// Control waits for the core to have its sockets.
    owes_done: bool,
    /// A plan has come into force.
    ready: bool,
    watches_slot: bool,
    missing: Option<watch::Pending>,
    watches_links: bool,
    last_repair: Option<Instant>,
}

async fn launch(mut args: RunArgs) -> Result<u8, StartError> {
    let system = |what| move |error| StartError::System { what, error };
    check_privileges()?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("cannot watch signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("cannot watch signals"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(system("cannot watch signals"))?;
    // Nothing that is started from here needs more than this process has.
    let _ = rustix::thread::set_no_new_privs(true);
    let dir = RunDir::open(&args.run_dir)?;
    args.run_dir = dir.path().to_owned();
    drop_needless().map_err(system("cannot drop capabilities"))?;
    let kernel = Kernel::new(dir.record()).map_err(system("cannot reach the kernel by netlink"))?;
    let (events, mut incoming) = mpsc::unbounded_channel();
    let listener = dir.listen(LAUNCHER_SOCKET, SocketType::SEQPACKET)?;
    let listener = Listener::new(listener).map_err(system("cannot serve launcher.sock"))?;
    let listening =
        [dir.listen(TABLES_SOCKET, SocketType::STREAM)?, dir.listen(PUNT_SOCKET, SocketType::SEQPACKET)?];
    tokio::task::spawn_local(accept_all(listener, events.clone()));
    let mut launcher = Launcher {
        args,
        dir,
        kernel,
        listening,
        icmp: [false, true].into_iter().filter_map(|v6| braid_dataplane::io::icmp::open(v6).ok()).collect(),
        events,
        connections: BTreeMap::new(),
        next_connection: 0,
        core: Process::new(Role::Core),
        control: Process::new(Role::Control),
        core_connection: None,
        control_connection: None,
        in_force: None,
        sent: Sent::default(),
        owes_done: false,
        ready: false,
        watches_slot: false,
        missing: None,
        watches_links: false,
        last_repair: None,
    };
    let mut outcome = launcher.start(Role::Core).and_then(|()| launcher.start(Role::Control)).map(|()| None);
    while let Ok(None) = outcome {
        outcome = tokio::select! {
            biased;
            _ = terminate.recv() => Ok(Some(0)),
            _ = interrupt.recv() => Ok(Some(0)),
            _ = hangup.recv() => {
                launcher.control.signal(Signal::HUP);
                Ok(None)
            }
            Some(event) = incoming.recv() => launcher.handle(event).await,
        };
    }
    launcher.stop(&mut incoming).await;
    outcome.map(|code| code.unwrap_or(0))
}

fn check_privileges() -> Result<(), StartError> {
    use rustix::thread::CapabilitySet;
    let has = rustix::thread::capabilities(None)
        .map_err(|error| StartError::System { what: "cannot read capabilities", error: error.into() })?;
    for (capability, name) in
        [(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::NET_RAW, "CAP_NET_RAW")]
    {
        if !has.effective.contains(capability) {
            return Err(StartError::Capability(name));
        }
    }
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/dev/net/tun", flags, rustix::fs::Mode::empty())
        .map_err(|error| StartError::NoTun(error.into()))?;
    Ok(())
}

/// Keeps what the launcher and its children need; they get no more than it has.
fn drop_needless() -> io::Result<()> {
    use rustix::thread::CapabilitySet;
    let needed = CapabilitySet::NET_ADMIN
        | CapabilitySet::NET_RAW
        | CapabilitySet::NET_BIND_SERVICE
        // The core's liveness thread runs at a realtime priority.
        | CapabilitySet::SYS_NICE
        // Control reads a configuration that belongs to the user who typed sudo.
        | CapabilitySet::DAC_READ_SEARCH;
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective &= needed;
    sets.permitted &= needed;
    sets.inheritable &= needed;
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

async fn accept_all(listener: Listener, events: mpsc::UnboundedSender<Event>) {
    loop {
        match listener.accept().await {
            Ok(connection) => {
                if events.send(Event::Accepted(connection)).is_err() {
                    return;
                }
            }
            Err(error) => {
                // Out of descriptors, for one: those in use may be free again soon.
                tracing::warn!("launcher.sock: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Launcher {
    fn start(&mut self, role: Role) -> Result<(), StartError> {
        let events = self.events.clone();
        let ended = move |status| drop(events.send(Event::Ended(role, status)));
        let args = self.args.clone();
        let spawn = |error| StartError::Spawn { name: role.name(), error };
        let in_force = self.in_force.as_ref().filter(|_| role == Role::Control);
        let in_force = in_force.map(OwnedFd::try_clone).transpose().map_err(spawn)?;
        self.process(role).start(&args, in_force, ended).map_err(spawn)
    }

    fn process(&mut self, role: Role) -> &mut Process {
        match role {
            Role::Core => &mut self.core,
            Role::Control => &mut self.control,
        }
    }

    /// Handles one event; `Some` ends the run with this exit status.
    async fn handle(&mut self, event: Event) -> Result<Option<u8>, StartError> {
        match event {
            Event::Accepted(connection) => self.accepted(connection),
            Event::Message(id, message, file) => self.message(id, message, file).await,
            Event::Closed(id) => self.closed(id),
            Event::Ended(role, status) => return Ok(self.ended(role, status)),
            Event::Restart(role) => {
                if let Err(error) = self.start(role) {
                    tracing::error!("{error}");
                    self.restart_later(role);
                }
            }
            Event::HandedOver => self.kernel.inherit(&self.dir),
            Event::Missing => self.repair_later(),
            Event::LinkUp(interface) => self.kernel.renew_next_hops(interface.as_deref()),
            Event::Repair => self.repair().await,
        }
        Ok(None)
    }

    fn accepted(&mut self, connection: Connection) {
        /// Core and control, each perhaps twice while one life takes over from the other.
        const MAX_CONNECTIONS: usize = 8;
        if self.connections.len() >= MAX_CONNECTIONS {
            return;
        }
        let id = self.next_connection;
        self.next_connection += 1;
        let connection = Rc::new(connection);
        self.connections.insert(id, Rc::clone(&connection));
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            while let Some((message, file)) = connection.receive().await {
                if events.send(Event::Message(id, message, file)).is_err() {
                    return;
                }
            }
            let _ = events.send(Event::Closed(id));
        });
    }

    fn closed(&mut self, id: u64) {
        self.connections.remove(&id);
        if self.core_connection == Some(id) {
            self.core_connection = None;
        }
        if self.control_connection == Some(id) {
            self.control_connection = None;
            self.owes_done = false;
        }
    }

    async fn message(&mut self, id: u64, message: FromClient, file: Option<OwnedFd>) {
        match message {
            FromClient::Core if self.control_connection != Some(id) => {
                self.core_connection = Some(id);
                self.sent = Sent::default();
                self.repair().await;
            }
            FromClient::Control if self.core_connection != Some(id) => {
                self.control_connection = Some(id);
                self.kernel.handle_new_control();
            }
            FromClient::Routes(changes) if self.control_connection == Some(id) => {
                if let Err(error) = self.kernel.change_routes(&self.dir, changes) {
                    tracing::error!("{error}");
                }
                self.answer(&ToControl::RoutesDone).await;
            }
            FromClient::InForce if self.control_connection == Some(id) => self.in_force = file,
            FromClient::Plan(plan) if self.control_connection == Some(id) => self.plan(plan).await,
            // Of somebody who is another or did not say who it is, or a plan file that could not be read.
            FromClient::Core
            | FromClient::Control
            | FromClient::Plan(_)
            | FromClient::Routes(_)
            | FromClient::InForce
            | FromClient::PlanFile { .. } => self.closed(id),
        }
    }

    async fn plan(&mut self, plan: KernelPlan) {
        if let Err(error) = self.kernel.apply(&self.dir, plan) {
            self.answer(&ToControl::Failed { message: error.to_string() }).await;
            return;
        }
        self.watch_slot();
        self.watch_kernel();
        self.watch_links();
        self.owes_done = true;
        self.supply_core().await;
    }

    /// Other gateways hand sysctls over to our slot's socket.
    fn watch_slot(&mut self) {
        if self.watches_slot {
            return;
        }
        let Some(socket) = self.kernel.slot_socket() else { return };
        let Ok(socket) = UnixDatagram::from_std(socket.into()) else { return };
        self.watches_slot = true;
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            // Asked without reading: what is there is for the slot itself to read and to check.
            let nothing = || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock));
            while socket.readable().await.is_ok() {
                if events.send(Event::HandedOver).is_err() {
                    return;
                }
                let _ = socket.try_io(Interest::READABLE, nothing);
            }
        });
    }

    fn watch_kernel(&mut self) {
        if self.missing.is_some() {
            return;
        }
        let events = self.events.clone();
        match watch::start(move || events.send(Event::Missing).is_ok()) {
            Ok(pending) => self.missing = Some(pending),
            Err(error) => tracing::warn!("cannot watch routes and rules: {error}"),
        }
    }

    /// Apart from [`watch`]: a link that comes back has next hops put back at once, and needs no look at the plan.
    fn watch_links(&mut self) {
        if core::mem::replace(&mut self.watches_links, true) {
            return;
        }
        let subscribed = netlink_notices::subscribe(LINKS_AND_ADDRESSES);
        let socket = match subscribed.and_then(|socket| UnixDatagram::from_std(socket.into())) {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!("cannot watch links: {error}"),
        };
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            let mut buffer = vec![0; netlink_notices::BUFFER_LEN];
            let mut receiver = netlink_notices::Receiver::default();
            while socket.readable().await.is_ok() {
                let receive = || receiver.receive(socket.as_fd(), &mut buffer);
                let up = match socket.try_io(Interest::READABLE, receive) {
                    Ok(Some(len)) => links_up(&buffer[..len]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Vec::new(),
                    // Notices were lost.
                    Ok(None) | Err(_) => vec![None],
                };
                for interface in up {
                    if events.send(Event::LinkUp(interface)).is_err() {
                        return;
                    }
                }
            }
        });
    }

    /// At most once in [`REPAIR_INTERVAL`]: another program may remove again what we put back.
    fn repair_later(&mut self) {
        let since = self.last_repair.map_or(REPAIR_INTERVAL, |last| last.elapsed());
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(REPAIR_INTERVAL.saturating_sub(since)).await;
            let _ = events.send(Event::Repair);
        });
    }

    async fn repair(&mut self) {
        self.last_repair = Some(Instant::now());
        if let Some(pending) = &self.missing {
            pending.clear();
        }
        if let Err(error) = self.kernel.repair(&self.dir) {
            tracing::error!("{error}");
        }
        self.supply_core().await;
    }

    async fn answer(&mut self, answer: &ToControl) {
        let connection = self.control_connection.and_then(|id| self.connections.get(&id)).cloned();
        let Some(connection) = connection else { return };
        match connection.send(answer, &[]).await {
            // It has ended and says why, or does not and this is told of once it is waited for.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => tracing::warn!("control does not listen: {error}"),
            Ok(()) => {}
        }
    }

    /// Sends the core what it has not been sent, and then tells control, if it waits.
    async fn supply_core(&mut self) {
        let connection = self.core_connection.and_then(|id| self.connections.get(&id)).cloned();
        let Some(connection) = connection else { return };
        if let Err(error) = self.send_missing(&connection).await {
            // It is restarted, or says hello again, and gets everything.
            tracing::warn!("the core does not listen: {error}");
            self.core_connection = None;
            return;
        }
        if self.owes_done && self.sent.started {
            self.owes_done = false;
            self.ready = true;
            self.answer(&ToControl::Done).await;
        }
    }

    async fn send_missing(&mut self, core: &Connection) -> io::Result<()> {
        let Some(plan) = self.kernel.plan() else { return Ok(()) };
        if !self.sent.started {
            let start = ToCoreProcess::Start { workers: plan.workers, offload: plan.offload };
            let fds: Vec<_> = self.listening.iter().chain(&self.icmp).map(AsFd::as_fd).collect();
            core.send(&start, &fds).await?;
            self.sent.started = true;
        }
        if let Some(device) = self.kernel.device()
            && self.sent.device != Some(device.generation)
        {
            let tun = &device.tun;
            let message = ToCoreProcess::Tun { name: tun.name.clone(), vnet_hdr: tun.vnet_hdr };
            core.send(&message, &borrow(&tun.fds)).await?;
            self.sent.device = Some(device.generation);
        }
        for (local, socket) in self.kernel.sockets() {
            if !self.sent.sockets.contains(local) {
                let message = match local.port() {
                    0 => ToCoreProcess::RawEsp { local: local.ip() },
                    _ => ToCoreProcess::Udp { local: *local, wireguard: socket.wireguard },
                };
                core.send(&message, &borrow(&socket.fds)).await?;
                self.sent.sockets.insert(*local);
            }
        }
        let closed = |local: &&SocketAddr| !self.kernel.sockets().contains_key(*local);
        let closed: Vec<SocketAddr> = self.sent.sockets.iter().filter(closed).copied().collect();
        for local in closed {
            core.send(&ToCoreProcess::Close { local }, &[]).await?;
            self.sent.sockets.remove(&local);
        }
        Ok(())
    }

    fn ended(&mut self, role: Role, status: io::Result<ExitStatus>) -> Option<u8> {
        let what = match &status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let code = status.ok().and_then(|status| status.code());
        if !self.ready && role == Role::Control && code == Some(i32::from(EXIT_USAGE)) {
            // It has said why on stderr.
            self.control.ended();
            return Some(EXIT_USAGE);
        }
        self.restart_later(role);
        if !self.ready && self.process(role).deaths() >= MAX_EARLY_DEATHS {
            eprintln!("braid: {} does not start ({what})", role.name());
            return Some(1);
        }
        tracing::warn!("{} ended ({what}): starting it again", role.name());
        None
    }

    fn restart_later(&mut self, role: Role) {
        let wait = self.process(role).ended();
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(wait).await;
            let _ = events.send(Event::Restart(role));
        });
    }

    /// Control first, while the core still carries its traffic; then the core; then the kernel.
    async fn stop(mut self, incoming: &mut mpsc::UnboundedReceiver<Event>) {
        for role in [Role::Control, Role::Core] {
            self.process(role).signal(Signal::TERM);
            let stopped = self.await_end(role, incoming);
            if tokio::time::timeout(STOP_PATIENCE, stopped).await.is_err() {
                tracing::warn!("{} does not stop: killing it", role.name());
                self.process(role).signal(Signal::KILL);
                let _ = tokio::time::timeout(STOP_PATIENCE, self.await_end(role, incoming)).await;
            }
        }
        self.connections.clear();
        self.kernel.undo(&self.dir);
        self.dir.close();
    }

    async fn await_end(&mut self, role: Role, incoming: &mut mpsc::UnboundedReceiver<Event>) {
        while self.process(role).is_running() {
            match incoming.recv().await {
                // The other one too may end now, by itself or by a signal to all.
                Some(Event::Ended(ended, _)) => {
                    self.process(ended).ended();
                }
                Some(_) => {}
                None => return,
            }
        }
    }
}

/// What a notice of links or addresses says for [`Event::LinkUp`].
fn links_up(datagram: &[u8]) -> Vec<Option<String>> {
    let links = netlink_notices::links(datagram);
    match links.is_empty() {
        // Of an address.
        true => vec![None],
        false => links.into_iter().filter(|(_, carries)| *carries).map(|(name, _)| Some(name)).collect(),
    }
}

fn borrow(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

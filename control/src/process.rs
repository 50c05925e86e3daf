//! The control process: connects [`Turn`] to the launcher, the core, the kernel's notices, the
//! administration socket, signals and the clock. One thread; never on a packet's way.

mod bgp;
mod checkup;
mod ike;
mod metrics;
mod names;
mod serve;
mod worker;

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use braid_api::{Answer, FromCore, Query, StashValue, ToCore, launcher::ToControl};
use braid_dataplane::io::heap;
use clap::Parser;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};

use crate::{
    admin::{self, Asked, Response},
    bgp::Bgp,
    config::{self, Config, ConfigError, Files},
    core_client::{CoreClient, Incoming},
    ike::{Ike, punt::PuntClient},
    in_force::InForce,
    key_log::{KeyLog, KeyLogError},
    launcher_client::LauncherClient,
    memory::{self, Memory},
    metrics::Metrics,
    outer::Outer,
    status::Status,
    turn::{Effect, Event, Note, Token, Turn},
    watch::{Lookup, Watch},
};

use checkup::Checkup;
use names::Names;
use worker::Worker;

/// Wrong usage or configuration.
const EXIT_USAGE: u8 = 2;
/// Questions that wait.
const QUEUE: usize = 64;
/// IKE datagrams that are taken before anything else is looked at.
const DATAGRAMS_PER_ROUND: usize = 32;
/// What BGP takes in before deadlines that have passed, besides two events for each neighbor: those that wait, and one
/// for each connection behind them.
const BGP_WAITING: usize = 32;
/// And for so long, since each of them may be many routes: a deadline may be when others are to hear of us.
const BGP_PATIENCE: Duration = Duration::from_millis(200);
/// At rest the loop looks at the names of peers this often.
const NAMES_INTERVAL: Duration = Duration::from_secs(5);
/// Names the configuration that a life begins with, as the token of a reload does its own.
const START: Token = Token(0);
/// Between two looks for memory that handshakes and documents have left free: of ten thousand tunnels at once it is a
/// third of all, of a thousand in `braid status` two thirds, in pieces between what stays.
const TRIM_INTERVAL: Duration = Duration::from_secs(30);

/// Braid's control process. It is started by `braid run`, or as a service unit beside the launcher.
#[derive(Parser, Debug)]
#[command(
    name = "braid-control",
    version,
    after_help = "\
Example: braid-control --config /etc/braid/braid.toml --run-dir /run/braid"
)]
struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where the sockets are
    #[arg(long, value_name = "DIR", default_value = "/run/braid")]
    run_dir: PathBuf,
    /// Allow [tunnel.manual], for tests only
    #[arg(long)]
    insecure_manual_keys: bool,
    /// Where the configuration cannot be applied, go on with what stdin holds: what was in force in an earlier
    /// life, as the launcher has kept it
    #[arg(long)]
    in_force: bool,
    /// Append the keys of every IKE SA to this file, for Wireshark: see `braid run --help`
    #[arg(long, value_name = "FILE")]
    ike_key_log: Option<PathBuf>,
}

/// Why control ends.
#[derive(Debug)]
enum Failure {
    /// The configuration, line by line.
    Config(Vec<ConfigError>),
    /// The launcher could not do its first part.
    Plan(String),
    /// The file for the keys of IKE SAs.
    KeyLog(KeyLogError),
    /// The run directory.
    RunDir { path: PathBuf, error: io::Error },
    /// Something that is there on every Linux.
    System { what: &'static str, error: io::Error },
}

/// Runs the process. `args` are its arguments, its name first.
pub fn main_with_args(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // Whoever closed our stdout does not want to know.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    crate::logging::init();
    // Started as /proc/self/exe, it would be called `exe`.
    let _ = rustix::thread::set_name(c"braid-control");
    // Without its launcher, control can do nothing.
    let parent_death = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    let result = parent_death
        .map_err(|error| Failure::System {
            what: "cannot bind its life to the launcher's",
            error: error.into(),
        })
        .and_then(|()| run(args));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let usage = match failure {
                Failure::Config(errors) => {
                    errors.iter().for_each(|error| eprintln!("{error}"));
                    true
                }
                Failure::Plan(message) => {
                    eprintln!("braid: {message}");
                    true
                }
                Failure::KeyLog(error) => {
                    eprintln!("braid: {error}");
                    true
                }
                Failure::RunDir { path, error } => {
                    eprintln!("braid-control: {}: {error}", path.display());
                    false
                }
                Failure::System { what, error } => {
                    eprintln!("braid-control: {what}: {error}");
                    false
                }
            };
            if usage { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    let mut files = Files::default();
    let config = load(&mut files, &args.config, args.insecure_manual_keys);
    let (config, in_force) = match args.in_force.then(|| earlier(&args)).flatten() {
        Some(earlier) => go_on(config, files, earlier),
        None => (config.map_err(Failure::Config)?, InForce { files, workers: default_workers() }),
    };
    let key_log = args.ike_key_log.as_deref().map(KeyLog::open).transpose().map_err(Failure::KeyLog)?;
    if let Some(key_log) = &key_log {
        tracing::warn!("{key_log}");
    }
    drop_privileges();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::System { what: "cannot start", error })?;
    let kept = (in_force.keep_or_warn(), in_force.workers);
    // The files' texts hold keys.
    drop(in_force);
    runtime.block_on(control(args, Arc::new(config), kept, key_log))
}

/// What was in force in an earlier life; `None` where the launcher has not kept it.
fn earlier(args: &Args) -> Option<(Config, InForce)> {
    let kept = InForce::read(io::stdin());
    // It holds keys, and has served.
    if let Ok(null) = std::fs::File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(null);
    }
    let unread = |error| tracing::warn!("what was in force cannot be read again: {error}");
    let mut kept = kept.map_err(|error| unread(error.to_string())).ok()?;
    let config = load(&mut kept.files, &args.config, args.insecure_manual_keys);
    let lines =
        |errors: Vec<ConfigError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Some((config.map_err(|errors| unread(lines(errors))).ok()?, kept))
}

/// The files as they stand, or what was in force where they cannot be applied while braid runs.
fn go_on(
    config: Result<Config, Vec<ConfigError>>,
    files: Files,
    (before, kept): (Config, InForce),
) -> (Config, InForce) {
    match config {
        Ok(config) if config.core.fits(&before.core, kept.workers) => {
            return (config, InForce { files, workers: kept.workers });
        }
        Ok(config) => tracing::error!("{}: [core] cannot change while braid runs", config.file.display()),
        Err(errors) => errors.iter().for_each(|error| tracing::error!("{error}")),
    }
    tracing::error!("going on with the configuration that was in force: `braid reload` applies a mended one");
    (before, kept)
}

/// Reads a configuration, and refuses fixed keys that were not asked for.
fn load(
    files: &mut Files,
    file: &std::path::Path,
    insecure_manual_keys: bool,
) -> Result<Config, Vec<ConfigError>> {
    let config = config::load_from(files, file)?;
    match config.manual_keys() {
        Some(error) if !insecure_manual_keys => Err(vec![error]),
        _ => Ok(config),
    }
}

/// Control needs no privilege but to read its configuration at a reload, and to listen on BGP's port.
fn drop_privileges() {
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
    let kept = match capabilities(None) {
        Ok(sets) => sets.permitted & (CapabilitySet::DAC_READ_SEARCH | CapabilitySet::NET_BIND_SERVICE),
        Err(_) => CapabilitySet::empty(),
    };
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    // What is not there to be dropped does no harm.
    let _ = set_capabilities(None, sets);
    let _ = rustix::thread::set_no_new_privs(true);
}

struct Control {
    args: Args,
    launcher_life: String,
    start: Instant,
    turn: Turn,
    watch: Watch,
    lookups: BTreeMap<String, Lookup>,
    names: Names,
    core: CoreClient,
    launcher: LauncherClient,
    greeted: bool,
    waiting: HashMap<Token, oneshot::Sender<Response>>,
    /// Forwarding threads, where the configuration does not say.
    workers: u32,
    /// For our next life, once the launcher has put it in force: what this one began with ([`START`]), and reloads that
    /// are on their way; `None` where no copy could be made.
    kept: HashMap<Token, Option<OwnedFd>>,
    /// Made, or read as a configuration, so far.
    documents: u64,
    next_token: u64,
    /// Questions to the core, by number; those of the turn itself have nobody who waits.
    queries: BTreeMap<u32, Pending>,
    next_query: u32,
    /// Looks of `braid doctor` that are under way.
    checkups: Vec<Checkup>,
    loaded: mpsc::UnboundedSender<Loaded>,
    ike: Ike,
    bgp: Bgp,
    /// What `bgp` was configured by.
    bgp_config: Option<Arc<Config>>,
    key_log: Option<KeyLog>,
    punt: PuntClient,
    worker: Worker,
    metrics: Metrics,
    /// The core's count of our adoptions.
    generation: braid_api::Generation,
}

/// Whoever waits for an answer of the core.
enum Pending {
    Turn,
    /// The stash, as far as it was read.
    Stash(Vec<(u64, StashValue)>),
    /// The ages of the SAs that the stash speaks of.
    Ages(Vec<(u64, StashValue)>),
    Status(oneshot::Sender<Response>),
    Scrape(oneshot::Sender<Status>),
    Doctor(Option<String>, oneshot::Sender<Response>),
    /// An echo, or a handshake that nobody asked for; the answer says nothing.
    Echo,
    Checkup(Checkup),
    Path(braid_api::Flow, oneshot::Sender<Response>),
    Handshake(oneshot::Sender<Response>),
}

/// A configuration that was read beside the loop.
struct Loaded {
    token: Token,
    config: Result<(Config, Option<OwnedFd>), Vec<ConfigError>>,
}

async fn control(
    args: Args,
    config: Arc<Config>,
    (kept, workers): (Option<OwnedFd>, u32),
    key_log: Option<KeyLog>,
) -> Result<(), Failure> {
    let system = |what| move |error| Failure::System { what, error };
    let run_dir = |error| Failure::RunDir { path: args.run_dir.clone(), error };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("cannot watch signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("cannot watch signals"))?;
    let mut quit = signal(SignalKind::quit()).map_err(system("cannot watch signals"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(system("cannot watch signals"))?;
    let launcher_life = launcher_life();
    let mut memory = memory::load(&args.run_dir, &launcher_life)
        .map_err(run_dir)?
        .map_or_else(|| random().map(Memory::new), Ok)
        .map_err(system("no randomness"))?;
    let fresh_seed = random().map_err(system("no randomness"))?;
    let hash_seed = memory::hash_seed(&args.run_dir, fresh_seed).map_err(run_dir)?;
    let mut watch =
        Watch::new(config.core.device.clone()).map_err(system("cannot reach the kernel by netlink"))?;
    let lookups = lookups_of(&config);
    let mut names = Names::new();
    names.resolve_first(&lookups, &memory.outer).await;
    for (name, outer) in watch.look(&lookups, names.resolved()) {
        memory.outer.entry(name).or_default().update(outer);
    }
    let launcher = LauncherClient::connect(&args.run_dir).await.map_err(run_dir)?;
    let (asked, mut questions) = mpsc::channel(QUEUE);
    admin::serve(&args.run_dir, asked).map_err(run_dir)?;
    let (loaded, mut configurations) = mpsc::unbounded_channel();
    let start = Instant::now();
    let mut control = Control {
        launcher_life,
        start,
        turn: Turn::new(config, memory, hash_seed, workers, Duration::ZERO),
        watch,
        lookups,
        names,
        core: CoreClient::new(&args.run_dir),
        launcher,
        greeted: false,
        waiting: HashMap::new(),
        workers,
        kept: HashMap::from([(START, kept)]),
        documents: 0,
        next_token: 0,
        queries: BTreeMap::new(),
        next_query: 0,
        checkups: Vec::new(),
        loaded,
        ike: Ike::new().with_key_log(key_log.is_some()),
        bgp: Bgp::new(u64::from_ne_bytes(random().map_err(system("no randomness"))?)),
        bgp_config: None,
        key_log,
        punt: PuntClient::new(&args.run_dir),
        worker: Worker::start().map_err(system("cannot start a thread"))?,
        metrics: Metrics::new(),
        generation: braid_api::Generation(0),
        args,
    };
    control.look_at_links(None);
    control.run_effects().await?;
    control.drive_bgp().await?;
    control.drive_metrics();
    let mut look_at_names = tokio::time::interval(NAMES_INTERVAL);
    let mut trim = tokio::time::interval(TRIM_INTERVAL);
    trim.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trimmed_after = (0, 0);
    let mut overdue = Overdue::default();
    let is_stop = loop {
        let deadline = control.turn.poll_timeout().map(|at| control.start + at);
        let ike_deadline = control.ike.poll_timeout();
        let bgp_deadline = overdue.look(control.bgp.poll_timeout());
        let checkup = control.checkup_due();
        let event = tokio::select! {
            biased;
            _ = terminate.recv() => break true,
            _ = interrupt.recv() => break true,
            // Its next life goes on with what it leaves.
            _ = quit.recv() => break false,
            incoming = control.core.next() => control.handle_core(incoming),
            answer = control.launcher.next() => Some(match answer {
                Ok(ToControl::Done) => {
                    control.keep(START).await;
                    Event::PlanDone
                }
                Ok(ToControl::RoutesDone) => Event::RoutesDone,
                Ok(ToControl::Failed { message }) => Event::PlanFailed { message },
                // The launcher is gone or is ending: so do we; the core goes on.
                Err(_) => break false,
            }),
            // Without a tunnel that negotiates nobody listens, and the core counts it so.
            received = control.punt.next(), if control.ike.has_peers() => {
                let now = Instant::now();
                control.ike.handle_datagram(&received, now);
                let together = core::iter::from_fn(|| control.punt.received()).take(DATAGRAMS_PER_ROUND);
                together.for_each(|received| control.ike.handle_datagram(&received, now));
                None
            }
            (life, computed) = control.worker.next() => {
                control.ike.handle_computed(life, computed, Instant::now());
                None
            }
            () = sleep_until(bgp_deadline) => {
                control.handle_bgp_deadline(&mut overdue).await;
                None
            }
            happened = control.bgp.next() => {
                control.bgp.handle(happened, Instant::now());
                None
            }
            () = control.watch.changed() => {
                Some(Event::Outer(control.look(None)))
            }
            () = sleep_until(deadline) => Some(Event::Timer),
            () = sleep_until(ike_deadline) => {
                control.ike.handle_timeout(Instant::now());
                None
            }
            () = sleep_until(checkup) => {
                control.finish_checkups();
                None
            }
            Some(loaded) = configurations.recv() => control.configured(loaded),
            Some(asked) = questions.recv() => control.answer(asked),
            asked = control.metrics.next() => {
                control.scrape(asked);
                None
            }
            _ = hangup.recv() => {
                control.reload(None);
                None
            }
            () = control.names.changed() => Some(Event::Outer(control.look(None))),
            _ = look_at_names.tick() => {
                control.refresh_names();
                None
            }
            _ = trim.tick() => {
                let used = (control.ike.installed(), control.documents);
                if core::mem::replace(&mut trimmed_after, used) != used {
                    heap::trim();
                }
                None
            }
            // Last: large tables are worked on while nothing else is to be done.
            () = core::future::ready(()), if control.bgp.has_work() => None,
        };
        if let Some(event) = event {
            control.handle(event);
            control.run_effects().await?;
        }
        control.drive_bgp().await?;
        control.drive_ike().await?;
        control.drive_metrics();
    };
    if is_stop {
        control.take_leave().await?;
    }
    control.end();
    Ok(())
}

/// Deadlines that have passed while what was sent before them may still wait in sockets: this process may have stood
/// still, and the clock has not. Nobody is called silent before that was read; bounded, since somebody who never stops
/// sending must not keep others from hearing of us.
#[derive(Default)]
struct Overdue {
    /// Events that were taken in since.
    taken: usize,
    since: Option<Instant>,
}

impl Overdue {
    /// The deadline is another one, perhaps.
    fn look(&mut self, deadline: Option<Instant>) -> Option<Instant> {
        if deadline.is_none_or(|at| at > Instant::now()) {
            *self = Overdue::default();
        }
        deadline
    }

    /// The next event that goes before what is due, of no more than `most`. Safe to cancel if `next` is.
    async fn next<T>(&mut self, most: usize, mut next: impl AsyncFnMut() -> T) -> Option<T> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.taken >= most || since.elapsed() >= BGP_PATIENCE {
            return None;
        }
        // The runtime, which has this thread only, asks the kernel before it comes back here, and wakes the tasks that
        // read; it runs tasks in the order in which they were woken, so that those have read when this one ends.
        tokio::task::yield_now().await;
        let _ = tokio::spawn(core::future::ready(())).await;
        let found = tokio::select! {
            biased;
            found = next() => Some(found),
            () = core::future::ready(()) => None,
        };
        self.taken += usize::from(found.is_some());
        found
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => core::future::pending().await,
    }
}

impl Control {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn end(&self) {
        let _ = std::fs::remove_file(self.args.run_dir.join(admin::ADMIN_SOCKET));
    }

    /// Looks at outer paths and links, also at those of a configuration that comes.
    fn look(&mut self, next: Option<&Config>) -> BTreeMap<String, Outer> {
        // First what takes notices away, or one that comes between the two would not be followed by a look at links.
        let outer = self.watch.look(&self.lookups, self.names.resolved());
        self.look_at_links(next);
        outer
    }

    fn look_at_links(&mut self, next: Option<&Config>) {
        let configs = next.into_iter().chain([&**self.turn.config()]);
        let names = configs.flat_map(Config::links).map(str::to_owned).collect();
        match self.watch.links_up(&names) {
            Ok(up) => self.turn.handle(Event::Links(up), self.now()),
            Err(error) => {
                tracing::warn!("cannot look at links, tried again: {error}");
                self.watch.note_change();
            }
        }
    }

    fn handle_core(&mut self, incoming: Incoming) -> Option<Event> {
        let message = match incoming {
            Incoming::Message(message) => message,
            Incoming::Lost => {
                for (_, pending) in core::mem::take(&mut self.queries) {
                    self.answer_without_core(pending);
                }
                return core::mem::take(&mut self.greeted).then_some(Event::CoreGone);
            }
            Incoming::OtherVersion { theirs } => {
                let ours = braid_api::VERSION;
                tracing::error!(
                    "the forwarding core has version {theirs} of the boundary, not {ours}: restart braid"
                );
                return None;
            }
        };
        match message {
            FromCore::Hello(hello) => {
                self.greeted = true;
                self.generation = hello.generation;
                Some(Event::CoreHello(hello))
            }
            FromCore::Applied { epoch } => Some(Event::Applied(epoch)),
            FromCore::Rejected(rejected) => Some(Event::Rejected(rejected)),
            FromCore::Event(braid_api::Event::Echo { tunnel, len }) => {
                self.note_echo(tunnel, len);
                None
            }
            FromCore::Event(event) => {
                // Our own look tells as well until when that is so.
                if matches!(event, braid_api::Event::PathMtu { .. }) {
                    self.watch.note_change();
                }
                Some(Event::Core(event))
            }
            FromCore::Answer { number, answer } => match (self.queries.remove(&number)?, answer) {
                (Pending::Turn, Answer::Stats(stats)) => Some(Event::Stats(stats.tunnels)),
                (Pending::Stash(read), Answer::Stash(more)) => {
                    self.read_stash(read, more);
                    None
                }
                (Pending::Ages(stash), Answer::Stats(stats)) => {
                    self.start_ike(stash, Some(&stats));
                    None
                }
                (pending, answer) => {
                    self.pass_answer(pending, answer);
                    None
                }
            },
        }
    }

    async fn run_effects(&mut self) -> Result<(), Failure> {
        for effect in self.turn.take_effects() {
            match effect {
                Effect::Remember | Effect::RememberLater => {
                    // Without the record no key may be sent.
                    memory::save(&self.args.run_dir, &self.launcher_life, self.turn.memory())
                        .map_err(|error| Failure::RunDir { path: self.args.run_dir.clone(), error })?;
                }
                Effect::Transaction(transaction) => {
                    if let Err(error) = self.core.send(&ToCore::Apply(transaction)) {
                        tracing::error!("a change of the tables does not fit a frame: {error}");
                    }
                }
                Effect::Plan(plan) => {
                    if let Err(error) = self.launcher.plan(*plan).await {
                        let path = self.args.run_dir.clone();
                        return Err(Failure::RunDir { path, error });
                    }
                }
                Effect::Routes(changes) => {
                    if let Err(error) = self.launcher.routes(changes).await {
                        let path = self.args.run_dir.clone();
                        return Err(Failure::RunDir { path, error });
                    }
                }
                Effect::QueryStats => self.query(Query::Stats, Pending::Turn),
                Effect::Reconnect => self.core.reconnect(),
                Effect::InForce(token) => self.keep(token).await,
                Effect::Reply(token, result) => self.reply(token, result),
                Effect::Note(note) => log(&note),
                Effect::Exit { message } => return Err(Failure::Plan(message)),
            }
        }
        Ok(())
    }

    /// Leaves the configuration that has come into force to our next life.
    async fn keep(&mut self, token: Token) {
        let Some(kept) = self.kept.remove(&token) else { return };
        // Without a copy, an earlier one goes too.
        if let Err(error) = self.launcher.in_force(kept.as_ref().map(AsFd::as_fd)).await {
            tracing::warn!("the launcher does not keep what is in force: {error}");
        }
    }

    async fn handle_bgp_deadline(&mut self, overdue: &mut Overdue) {
        let neighbors = self.turn.config().bgp.as_ref().map_or(0, |bgp| bgp.neighbors.len());
        let bgp = &mut self.bgp;
        match overdue.next(BGP_WAITING + 2 * neighbors, async || bgp.next().await).await {
            Some(happened) => self.bgp.handle(happened, Instant::now()),
            None => {
                *overdue = Overdue::default();
                self.bgp.handle_timeout(Instant::now());
            }
        }
    }

    fn query(&mut self, query: Query, pending: Pending) {
        self.next_query = self.next_query.wrapping_add(1);
        let number = self.next_query;
        if self.core.send(&ToCore::Query { number, query }).is_ok() {
            self.queries.insert(number, pending);
        }
    }
}

fn log(note: &Note) {
    if note.is_warning() {
        tracing::warn!("{note}");
    } else {
        tracing::info!("{note}");
    }
}

fn lookups_of(config: &Config) -> BTreeMap<String, Lookup> {
    config.tunnels.iter().map(|tunnel| (tunnel.name.clone(), Lookup::of(tunnel))).collect()
}

/// One below four CPUs, else one per CPU less one.
fn default_workers() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 4 { 1 } else { u32::try_from(cpus - 1).unwrap_or(u32::MAX).min(64) }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// Names one life of our parent, the launcher: its process id and when it was started. Control's own
/// restarts do not change it, a new `braid run` does. Under a service manager it is the manager's.
fn launcher_life() -> String {
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let stat = std::fs::read_to_string(format!("/proc/{parent}/stat")).unwrap_or_default();
    // proc(5): the name may hold anything, but ends with the last bracket; field 22 is the start.
    let started = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)).unwrap_or("?");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("{parent}:{started}:{}", boot.trim())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::io::AsyncReadExt;

    use super::*;

    /// Reads octets one by one, as they come.
    fn reader() -> (std::os::unix::net::UnixStream, mpsc::Receiver<u8>) {
        let (far, near) = std::os::unix::net::UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut near = tokio::net::UnixStream::from_std(near).unwrap();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut octet = [0];
            while near.read_exact(&mut octet).await.is_ok() && sender.send(octet[0]).await.is_ok() {}
        });
        (far, receiver)
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await }).unwrap();
    }

    #[test]
    fn what_came_while_the_process_stood_still_is_read_before_deadlines() {
        run(async {
            let (mut far, mut received) = reader();
            // The reader waits, and then others have much to do.
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            for _ in 0..1000 {
                tokio::spawn(async {
                    for _ in 0..3 {
                        tokio::task::yield_now().await;
                    }
                });
            }
            far.write_all(b"ab").unwrap();
            let mut overdue = Overdue::default();
            let deadline = Some(Instant::now());
            for wanted in [Some(b'a'), Some(b'b'), None] {
                overdue.look(deadline);
                let next = async || received.recv().await.unwrap();
                assert_eq!(overdue.next(10, next).await, wanted);
            }
        });
    }

    #[test]
    fn somebody_who_never_stops_sending_puts_deadlines_off_for_a_while_only() {
        run(async {
            let (mut far, mut received) = reader();
            far.write_all(&[0; 1000]).unwrap();
            let mut overdue = Overdue::default();
            let now = Instant::now();
            let mut taken = 0;
            overdue.look(Some(now));
            while overdue.next(10, async || received.recv().await.unwrap()).await.is_some() {
                overdue.look(Some(now));
                taken += 1;
            }
            assert_eq!(taken, 10);
            // The next deadline has as much patience.
            overdue.look(Some(now + Duration::from_secs(100)));
            assert!(overdue.next(10, async || received.recv().await.unwrap()).await.is_some());
            // But not for events that take long.
            overdue.since = overdue.since.and_then(|since| since.checked_sub(BGP_PATIENCE));
            assert!(overdue.next(10, async || received.recv().await.unwrap()).await.is_none());
        });
    }
}

//! One event in, one set of effects out, in one direction.
//!
//! [`Turn`] is control's whole state: the configuration, what the kernel and the core should be
//! like and what of it is confirmed, and which tunnels are offered to traffic. It does no I/O, reads
//! no clock and draws no randomness.
//!
//! Invariants:
//! - Effects of one event leave in the order of [`Effect`]: the record of keys, then transactions,
//!   then plans, then everything slower.
//! - A tunnel is offered only after the core has confirmed its SAs, and is masked in the same turn
//!   in which any signal speaks against it.
//! - A manual key is recorded before it is sent, and a recorded key is never sent again: see
//!   [`crate::keys`]. Only the core's own word that a transaction is not in force takes it back.
//! - Nothing in the core is changed before the launcher's plan for it is in force.
//! - What an earlier life has left at work, in the core and in the kernel, stays as it is until the core's
//!   stash was read.

mod bfd;
mod ike;
mod learned;
mod message;
mod offer;
mod sets;
mod sync;
mod view;
mod yielding;

#[cfg(test)]
mod learned_tests;
#[cfg(test)]
mod tests;

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use braid_api::{Epoch, RejectReason, TunnelId, launcher::PlannedSocket};

use crate::{
    config::{Config, ConfigError, Fault, IKE_PORT, NAT_PORT},
    desired::{self, Circumstances, Desired, Negotiated, Numbers},
    failover::{Health, Obstacle},
    memory::Memory,
    outer::{Links, Outer, Update},
};

pub(crate) use ike::NOTE;
pub use ike::{Carried, IkeOp, IkeState, NotHeld};
pub use learned::{Learned, LearnedRoute};
pub use message::{Effect, Event, Note, Token};
pub use view::{FailureView, RouteView, State, TunnelView};

use sync::Core;

/// After a plan that failed although an earlier one worked.
const PLAN_RETRY: Duration = Duration::from_secs(5);
/// After the core refused a tunnel for want of a socket, which may be on its way to it.
const SOCKET_RETRY: Duration = Duration::from_millis(500);
/// How long a plan waits for the core of an earlier life to say what was negotiated with its peers.
const PLAN_PATIENCE: Duration = Duration::from_secs(1);
/// How long a reload keeps the sockets that it has no use for: a Delete is sent three times meanwhile.
const PARTING: Duration = Duration::from_secs(2);
/// Between two builds of the desired state for outer paths that have changed, for each tunnel: about twenty
/// times what it costs.
const REBUILD_GAP: Duration = Duration::from_micros(100);
/// Between looks at the counters while a tunnel is silent, should a verdict have been lost.
const STATS_INTERVAL: Duration = Duration::from_secs(1);

/// Control's state.
#[derive(Debug)]
pub struct Turn {
    config: Arc<Config>,
    /// The configuration before a reload whose plan is not in force yet.
    fallback: Option<(Arc<Config>, Token)>,
    memory: Memory,
    hash_seed: [u8; 16],
    workers: u32,
    desired: Desired,
    /// Counts the plans, so that none is compared where time matters.
    plan_wanted: u64,
    plan_sent: Option<u64>,
    plan_in_force: Option<u64>,
    plan_retry: Option<Duration>,
    /// UDP sockets of the plan that was sent last, and of the one in force.
    sockets_sent: Vec<PlannedSocket>,
    sockets_in_force: Vec<PlannedSocket>,
    /// Sockets that a reload has no use for, kept until then: the peers behind them are being told, from where
    /// they know us, that their SAs end.
    parting: Option<(Duration, Vec<PlannedSocket>)>,
    /// An earlier life's plan is in force, and belongs to peers that only the core's stash knows: nothing is
    /// planned before that was read, or until this time.
    plan_held_until: Option<Duration>,
    core: Option<Core>,
    /// Numbers that the core has confirmed.
    numbers: Numbers,
    /// Indexes into the tunnels of the configuration, with what the core said.
    refused: BTreeMap<usize, RejectReason>,
    refusal_retry: Option<Duration>,
    /// So long the tunnels of a new core may take to come up.
    core_settles: Option<Duration>,
    tunnels: Vec<Runtime>,
    by_name: BTreeMap<String, usize>,
    deadlines: BTreeSet<(Duration, usize)>,
    /// Tunnels to be looked at before this turn ends.
    touched: BTreeSet<usize>,
    /// Those that a signal says are down, or whose neighbor is silent.
    silent: BTreeSet<usize>,
    /// Those of whose last failure not all that follows has been done.
    converging: BTreeSet<usize>,
    stats_at: Option<Duration>,
    /// Those who asked for a reload that is not in the core yet.
    awaiting_sync: Vec<Token>,
    warned_manual: bool,
    /// The core of the last connection.
    last_boot: Option<braid_api::BootId>,
    /// Connections in a row in which the core was not what it was taken for.
    disagreements: u32,
    needs_reconnect: bool,
    /// An outer path changed: the desired state is built anew in a turn of its own, so that its
    /// cost delays no mask.
    needs_rebuild: bool,
    /// Not before this: building costs time for every tunnel, and thousands may come up one by one.
    next_rebuild: Duration,
    /// What IKE has settled, by tunnel name.
    negotiated: BTreeMap<String, Negotiated>,
    /// As [`Circumstances::found`].
    found: BTreeMap<String, SocketAddr>,
    /// What BGP has learned.
    learned: learned::Table,
    /// Links of routes and neighbors that are up.
    links: Links,
    bfd: bfd::Sessions,
    /// Counts the times that tunnels were offered to traffic or taken back, and links came or went.
    offer_changes: u64,
    /// What it was when it was last looked at who yields.
    yielded_after: u64,
    /// Counts the times that the core's tunnels may have changed.
    held_changes: u64,
    effects: Vec<Effect>,
}

/// What changes of a tunnel while it runs.
#[derive(Debug)]
struct Runtime {
    health: Health,
    offer: Offer,
    /// The core holds flows on it until they fall idle.
    draining: bool,
    /// What IKE says.
    ike: IkeState,
    /// What WireGuard says.
    session: Session,
    /// Adopted masked: the counters tell why.
    unexplained: bool,
    /// The neighbor in it was not heard for its hold time, which is the value.
    silent_neighbor: Option<Duration>,
    /// From where the peer was heard, if it moved or was unknown.
    heard_from: Option<SocketAddr>,
    /// What the core found its outer path to take, while no look of ours has seen it so: the core asks for where its
    /// packets go, and we for what is configured.
    narrow: Option<u16>,
    deadline: Option<Duration>,
    obstacle: Option<Obstacle>,
    /// Since the kind of obstacle, or its absence, last changed.
    since: Duration,
    failovers: u64,
    /// The same by their causes, as [`Obstacle::cause`] names them.
    causes: BTreeMap<&'static str, u64>,
    /// Most have none.
    last_failure: Option<Box<Failure>>,
    /// Of the core's last verdict, until it has become a failure.
    stages: Option<Stages>,
}

/// Why a tunnel was taken out, and when.
#[derive(Clone, Debug)]
struct Failure {
    at: Duration,
    why: Obstacle,
    stages: Option<Stages>,
    /// After what time all that follows of it was in the core.
    converged: Option<Duration>,
}

/// When the core took a tunnel out, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stages {
    /// It came to the verdict.
    pub detected: u64,
    /// The tunnel was masked.
    pub masked: u64,
}

/// A WireGuard tunnel's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Session {
    /// The core was not heard of it yet: one that was offered to traffic goes on.
    Unknown,
    None,
    Up,
    /// There was one.
    Lost,
}

/// Whether traffic may choose a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Offer {
    Masked,
    /// Unmasked by this transaction, which is not confirmed yet.
    Unmasking(Epoch),
    Live,
}

impl Turn {
    /// Control with a configuration; `memory` holds the outer paths as seen now.
    ///
    /// `hash_seed` and `workers` apply where the configuration says nothing.
    pub fn new(
        config: Arc<Config>,
        memory: Memory,
        hash_seed: [u8; 16],
        workers: u32,
        now: Duration,
    ) -> Self {
        let plan_held_until = memory.planned.then_some(now + PLAN_PATIENCE);
        let mut turn = Turn {
            config: config.clone(),
            fallback: None,
            memory,
            hash_seed,
            workers,
            desired: Desired::default(),
            plan_wanted: 0,
            plan_sent: None,
            plan_in_force: None,
            plan_retry: None,
            sockets_sent: Vec::new(),
            sockets_in_force: Vec::new(),
            parting: None,
            plan_held_until,
            core: None,
            numbers: Numbers::default(),
            refused: BTreeMap::new(),
            refusal_retry: None,
            core_settles: None,
            tunnels: Vec::new(),
            by_name: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            touched: BTreeSet::new(),
            silent: BTreeSet::new(),
            converging: BTreeSet::new(),
            stats_at: None,
            awaiting_sync: Vec::new(),
            warned_manual: false,
            last_boot: None,
            disagreements: 0,
            needs_reconnect: false,
            needs_rebuild: false,
            next_rebuild: Duration::ZERO,
            negotiated: BTreeMap::new(),
            found: BTreeMap::new(),
            learned: learned::Table::new(),
            links: Links::new(),
            bfd: bfd::Sessions::default(),
            offer_changes: 0,
            yielded_after: 0,
            held_changes: 0,
            effects: Vec::new(),
        };
        turn.configure(config, now);
        turn.settle(now);
        turn
    }

    /// What is to be remembered over a restart of control.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The configuration in force, or on its way.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The launcher has done its part at least once.
    pub fn has_plan_in_force(&self) -> bool {
        self.plan_in_force.is_some()
    }

    /// Links of routes and neighbors that are up.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Neighbors outside the tunnels whose paths BFD says are down.
    pub fn bfd_down(&self) -> &BTreeSet<IpAddr> {
        self.bfd.down()
    }

    /// Another number than before: [`Turn::is_offered`], [`Turn::awaits_bgp`], [`Turn::is_drained`],
    /// [`Turn::is_yielding`], [`Turn::links`] and [`Turn::bfd_down`] may answer otherwise.
    pub fn offer_changes(&self) -> u64 {
        self.offer_changes
    }

    /// Whether a tunnel is offered to traffic.
    pub fn is_offered(&self, tunnel: &str) -> bool {
        let runtime = self.by_name.get(tunnel).and_then(|index| self.tunnels.get(*index));
        runtime.is_some_and(|runtime| runtime.offer == Offer::Live)
    }

    /// Whether the silence of the BGP neighbor in a tunnel is all that keeps it from traffic.
    pub fn awaits_bgp(&self, tunnel: &str) -> bool {
        let runtime = self.by_name.get(tunnel).and_then(|index| self.tunnels.get(*index));
        runtime.is_some_and(|runtime| matches!(runtime.obstacle, Some(Obstacle::NeighborSilent { .. })))
    }

    /// Whether a tunnel is to be drained, now or when it is up.
    pub fn is_drained(&self, tunnel: &str) -> bool {
        self.memory.drained.contains(tunnel)
    }

    /// When [`Event::Timer`] is due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let rebuild = self.needs_rebuild.then_some(self.next_rebuild);
        let health = self.deadlines.first().map(|(deadline, _)| *deadline);
        let parting = self.parting.as_ref().map(|(until, _)| *until);
        let timers = [
            rebuild,
            health,
            parting,
            self.stats_at,
            self.plan_retry,
            self.plan_held_until,
            self.refusal_retry,
            self.core_settles,
        ];
        timers.into_iter().flatten().min()
    }

    /// The effects of the events so far.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        let mut effects = core::mem::take(&mut self.effects);
        effects.sort_by_key(Effect::rank);
        effects.dedup_by(|a, b| {
            matches!(
                (a, b),
                (Effect::Remember, Effect::Remember) | (Effect::RememberLater, Effect::RememberLater)
            )
        });
        effects
    }

    /// Why a configuration cannot follow the one in force.
    ///
    /// A manual key is installed once: its SA cannot be given other parameters.
    pub fn objections(&self, config: &Config) -> Vec<ConfigError> {
        let mut objections = Vec::new();
        for tunnel in &config.tunnels {
            let before = self.by_name.get(&tunnel.name).and_then(|index| self.config.tunnels.get(*index));
            let Some(manual) = tunnel.manual() else { continue };
            for (name, key) in [("key-in", &manual.key_in), ("key-out", &manual.key_out)] {
                if !self.memory.keys.is_used(&self.memory.keys.digest(manual.suite, key.expose())) {
                    continue;
                }
                let same = before.is_some_and(|before| {
                    let (Some(old), new) = (before.manual(), manual) else { return false };
                    old.key_in == new.key_in
                        && old.key_out == new.key_out
                        && (old.spi_in, old.spi_out) == (new.spi_in, new.spi_out)
                        && (old.esn, old.replay_window) == (new.esn, new.replay_window)
                        && before.selectors == tunnel.selectors
                });
                if !same {
                    let problem = "the key was installed before with other settings";
                    let remedy = "a manual key is installed once: change the keys as well, or restart braid";
                    objections.push(ConfigError {
                        file: config.file.clone(),
                        line: tunnel.line,
                        key: format!("tunnel.manual.{name}"),
                        fault: Fault::Invalid { problem: problem.to_owned(), remedy: remedy.to_owned() },
                    });
                }
            }
        }
        objections
    }

    /// Takes one event in. [`Turn::take_effects`] gives what is to be done.
    pub fn handle(&mut self, event: Event, now: Duration) {
        match event {
            Event::Configured { config, outer, token } => self.handle_configured(config, outer, token, now),
            Event::Outer(outer) => self.handle_outer(outer, now),
            Event::Links(up) => self.handle_links(up),
            Event::PlanDone => self.handle_plan_done(),
            Event::PlanFailed { message } => self.handle_plan_failed(message, now),
            Event::CoreHello(hello) => self.handle_hello(hello, now),
            Event::CoreGone => self.handle_core_gone(),
            Event::Applied(epoch) => self.handle_applied(epoch, now),
            Event::Rejected(rejected) => self.handle_rejected(rejected, now),
            Event::Core(event) => self.handle_core_event(event, now),
            Event::Stats(stats) => self.handle_stats(&stats, now),
            Event::Drain { tunnel, token } => self.handle_drain(tunnel, true, token),
            Event::Undrain { tunnel, token } => self.handle_drain(tunnel, false, token),
            Event::Ike(states) => self.handle_ike(states),
            Event::Adopt { negotiated } => self.handle_adopt(negotiated),
            Event::Learned(learned) => self.handle_learned(learned, now),
            Event::RoutesDone => self.learned.kernel_done(),
            Event::Timer => self.handle_timer(now),
        }
        self.settle(now);
    }

    fn handle_configured(
        &mut self,
        config: Arc<Config>,
        outer: BTreeMap<String, Outer>,
        token: Token,
        now: Duration,
    ) {
        let objections = self.objections(&config);
        if !objections.is_empty() {
            let lines = objections.iter().map(ToString::to_string).collect();
            self.effects.push(Effect::Reply(token, Err(lines)));
            return;
        }
        for (name, news) in outer {
            self.memory.outer.entry(name).or_default().update(news);
        }
        if let Some((_, earlier)) = &self.fallback {
            let line = "another reload came before this one was in force".to_owned();
            self.effects.push(Effect::Reply(*earlier, Err(vec![line])));
        }
        // The one to fall back to is the last whose plan was in force.
        let safe = self.fallback.take().map_or_else(|| self.config.clone(), |(config, _)| config);
        self.fallback = Some((safe, token));
        self.refused.clear();
        self.keep_sockets_of_peers(now);
        self.configure(config, now);
    }

    /// Makes a configuration the current one; what runs under a name goes on.
    fn configure(&mut self, config: Arc<Config>, now: Duration) {
        let peer = |tunnel: &crate::config::Tunnel| tunnel.wireguard().map(|keys| keys.peer_public_key);
        let known = self.config.tunnels.iter().zip(self.tunnels.drain(..));
        let mut running: BTreeMap<String, (Runtime, _)> =
            known.map(|(tunnel, runtime)| (tunnel.name.clone(), (runtime, peer(tunnel)))).collect();
        self.tunnels = Vec::with_capacity(config.tunnels.len());
        self.deadlines.clear();
        self.silent.clear();
        self.converging.clear();
        self.by_name.clear();
        let before = core::mem::replace(&mut self.config, config.clone());
        self.forget_negotiated(&before);
        for (index, tunnel) in config.tunnels.iter().enumerate() {
            let mut runtime = match running.remove(&tunnel.name) {
                Some((runtime, before)) if before == peer(tunnel) => runtime,
                // Another peer is somewhere else.
                Some((runtime, _)) => {
                    self.found.remove(&tunnel.name);
                    self.memory.heard.remove(&tunnel.name);
                    Runtime { heard_from: None, narrow: None, ..runtime }
                }
                None => Runtime::new(tunnel.hold_down, now),
            };
            runtime.health.set_hold_down(tunnel.hold_down);
            runtime.deadline = None;
            let blocked = self.memory.outer.get(&tunnel.name).and_then(|outer| outer.blocked.clone());
            runtime.health.handle_outer(blocked, now);
            self.tunnels.push(runtime);
            self.by_name.insert(tunnel.name.clone(), index);
            self.touched.insert(index);
        }
        let by_name = &self.by_name;
        self.found.retain(|name, _| by_name.contains_key(name));
        self.memory.outer.retain(|name, _| by_name.contains_key(name));
        self.memory.heard.retain(|name, _| by_name.contains_key(name));
        self.memory.drained.retain(|name| by_name.contains_key(name));
        self.memory.yielding.retain(|name, _| by_name.contains_key(name));
        self.learned.configure(&config);
        self.learned.set_links(&config, &self.links);
        self.offer_changes += 1;
        self.held_changes += 1;
        self.effects.push(Effect::RememberLater);
        let (_, more) = desired::kept_apart(&config, &self.memory.outer);
        if more > 0 {
            self.effects.push(Effect::Note(Note::NotApart { more }));
        }
        self.rebuild();
    }

    /// Something that the desired state depends on has changed.
    fn rebuild(&mut self) {
        let refused: BTreeSet<usize> = self.refused.keys().copied().collect();
        let learned = self.learned.groups();
        let mut desired = desired::build(
            &self.config,
            &Circumstances {
                outer: &self.memory.outer,
                hash_seed: self.hash_seed,
                workers: self.workers,
                keys: &self.memory.keys,
                numbers: &self.numbers,
                refused: &refused,
                negotiated: &self.negotiated,
                found: &self.found,
                heard: &self.memory.heard,
                yielding: &self.memory.yielding,
                learned: &learned,
            },
        );
        drop(learned);
        self.learned.built(&desired.learned);
        for prefix in self.learned.overruled() {
            desired.tables.routes.remove(&prefix);
        }
        if let Some((_, sockets)) = &mut self.parting {
            let udp = &mut desired.plan.udp;
            let used: BTreeSet<SocketAddr> = udp.iter().map(|socket| socket.local).collect();
            sockets.retain(|socket| !used.contains(&socket.local));
            udp.extend(sockets.iter().cloned());
        }
        self.parting.take_if(|(_, sockets)| sockets.is_empty());
        if desired.plan != self.desired.plan {
            self.plan_wanted += 1;
        }
        self.desired = desired;
        self.share_tunnels();
        if let Some(core) = &mut self.core {
            core.is_dirty = true;
        }
    }

    /// A peer is heard here: no route into the device shall cover it.
    fn note_heard(&mut self, index: usize, remote: IpAddr) {
        let Some(tunnel) = self.config.tunnels.get(index) else { return };
        if self.memory.heard.get(&tunnel.name) == Some(&remote) {
            return;
        }
        self.memory.heard.insert(tunnel.name.clone(), remote);
        self.needs_rebuild |= desired::may_cover_heard(&self.config, &self.desired.plan.apart, remote);
    }

    /// Of very many tunnels one copy is enough.
    fn share_tunnels(&mut self) {
        let Some(core) = &self.core else { return };
        for (id, tunnel) in &mut self.desired.tables.tunnels {
            if let Some(held) = core.mirror.tunnels.get(id).filter(|held| *held == tunnel) {
                *tunnel = held.clone();
            }
        }
    }

    /// IKE speaks from the sockets of the configuration of before a little longer. Only those that are open
    /// are kept, so that no plan fails for their sake.
    fn keep_sockets_of_peers(&mut self, now: Duration) {
        let tables = &self.desired.tables.tunnels;
        let with_ids = self.config.tunnels.iter().zip(&self.desired.ids);
        let local = |id: &Option<TunnelId>| Some(tables.get(&(*id)?)?.local.ip());
        let locals: BTreeSet<IpAddr> =
            with_ids.filter(|(tunnel, _)| tunnel.ike().is_some()).filter_map(|(_, id)| local(id)).collect();
        let before = self.parting.take().map_or_else(Vec::new, |(_, sockets)| sockets);
        let kept = self.sockets_in_force.iter().filter(|socket| {
            let is_ike = matches!(socket.local.port(), IKE_PORT | NAT_PORT);
            is_ike && (locals.contains(&socket.local.ip()) || before.contains(socket))
        });
        let kept: Vec<PlannedSocket> = kept.cloned().collect();
        self.parting = (!kept.is_empty()).then_some((now + PARTING, kept));
    }

    fn handle_outer(&mut self, outer: BTreeMap<String, Outer>, now: Duration) {
        for (name, mut news) in outer {
            let Some(index) = self.by_name.get(&name).copied() else { continue };
            let narrow = self.tunnels.get_mut(index).map(|runtime| &mut runtime.narrow);
            if let (Some(Some(found)), Some(mtu)) = (narrow.as_deref(), news.mtu) {
                // Who never saw it narrow does not know that it is wide again.
                news.mtu = Some(mtu.min(*found));
                narrow.into_iter().for_each(|narrow| *narrow = narrow.filter(|found| mtu > *found));
            }
            let known = self.memory.outer.entry(name).or_default();
            let update = known.update(news);
            if update != Update::Nothing {
                self.effects.push(Effect::RememberLater);
            }
            self.needs_rebuild |= update == Update::Path;
            let blocked = known.blocked.clone();
            if let Some(runtime) = self.tunnels.get_mut(index) {
                runtime.health.handle_outer(blocked, now);
            }
            self.touched.insert(index);
        }
    }

    fn handle_links(&mut self, up: Links) {
        if up == self.links {
            return;
        }
        let lost = self.links.keys().filter(|name| !up.contains_key(*name)).map(|name| (name, false));
        let found = up.keys().filter(|name| !self.links.contains_key(*name)).map(|name| (name, true));
        for (interface, is_up) in lost.chain(found) {
            self.effects.push(Effect::Note(Note::Link { interface: interface.clone(), is_up }));
        }
        self.links = up;
        self.learned.set_links(&self.config, &self.links);
        self.offer_changes += 1;
    }

    fn handle_plan_done(&mut self) {
        self.plan_in_force = self.plan_sent.take();
        self.sockets_in_force = core::mem::take(&mut self.sockets_sent);
        self.plan_retry = None;
        if !core::mem::replace(&mut self.memory.planned, true) {
            self.effects.push(Effect::RememberLater);
        }
        self.touch_all();
    }

    fn handle_plan_failed(&mut self, message: String, now: Duration) {
        self.plan_sent = None;
        if let Some((config, token)) = self.fallback.take() {
            self.effects.push(Effect::Reply(token, Err(vec![message])));
            self.configure(config, now);
        } else if self.plan_in_force.is_none() {
            self.effects.push(Effect::Exit { message });
        } else {
            self.effects.push(Effect::Note(Note::PlanFailed { message }));
            self.plan_retry = Some(now + PLAN_RETRY);
        }
    }

    fn handle_timer(&mut self, now: Duration) {
        if self.needs_rebuild && self.next_rebuild <= now {
            self.needs_rebuild = false;
            // Where peers were heard: very many may move at once.
            self.effects.push(Effect::RememberLater);
            self.rebuild();
            let tunnels = u32::try_from(self.tunnels.len()).unwrap_or(u32::MAX);
            self.next_rebuild = now + REBUILD_GAP * tunnels;
        }
        if self.parting.take_if(|(until, _)| *until <= now).is_some() {
            self.rebuild();
        }
        while let Some((deadline, index)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.pop_first();
            if let Some(runtime) = self.tunnels.get_mut(index) {
                runtime.deadline = None;
            }
            self.touched.insert(index);
        }
        if self.stats_at.is_some_and(|at| at <= now) {
            self.stats_at = None;
            if self.core.is_some() {
                self.effects.push(Effect::QueryStats);
            }
        }
        for due in [&mut self.plan_retry, &mut self.plan_held_until] {
            due.take_if(|at| *at <= now);
        }
        if self.core_settles.take_if(|at| *at <= now).is_some() {
            self.offer_changes += 1;
        }
        if self.refusal_retry.is_some_and(|at| at <= now) {
            self.refusal_retry = None;
            self.refused.retain(|_, reason| !sync::passes(*reason));
            self.rebuild();
            self.touch_all();
        }
    }

    /// Drives everything towards what is desired.
    fn settle(&mut self, now: Duration) {
        let may_plan = self.plan_retry.is_none() && self.plan_held_until.is_none();
        if self.plan_sent.is_none() && may_plan && !self.is_planned() {
            self.plan_sent = Some(self.plan_wanted);
            self.sockets_sent = self.desired.plan.udp.clone();
            self.effects.push(Effect::Plan(Box::new(self.desired.plan.clone())));
        }
        if self.plan_sent.is_none()
            && self.is_planned()
            && let Some((_, token)) = self.fallback.take()
        {
            self.effects.push(Effect::InForce(token));
            self.awaiting_sync.push(token);
        }
        self.offer(now);
        self.yield_to_others();
        self.send_bfd_links();
        self.pump();
        self.mirror_learned();
        if self.needs_reconnect && self.core.as_ref().is_none_or(|core| !core.awaits_answer()) {
            self.needs_reconnect = false;
            self.effects.push(Effect::Reconnect);
        }
        if self.is_synced() {
            for token in core::mem::take(&mut self.awaiting_sync) {
                self.effects.push(Effect::Reply(token, self.reload_result()));
                self.effects.push(Effect::Note(Note::Reloaded));
            }
        }
        let silent = self.core.is_some() && !self.silent.is_empty();
        if silent && self.stats_at.is_none() {
            self.stats_at = Some(now + STATS_INTERVAL);
        } else if !silent {
            self.stats_at = None;
        }
    }

    fn reload_result(&self) -> Result<String, Vec<String>> {
        let refused = self.refused.iter().filter_map(|(index, reason)| {
            let tunnel = self.config.tunnels.get(*index)?;
            Some(format!("tunnel {}: {}", tunnel.name, Obstacle::Refused(*reason)))
        });
        let refused: Vec<String> = refused.collect();
        if refused.is_empty() { Ok("the configuration is in force".to_owned()) } else { Err(refused) }
    }

    /// Whether the kernel's part is as desired.
    fn is_planned(&self) -> bool {
        self.plan_in_force == Some(self.plan_wanted)
    }

    fn touch_all(&mut self) {
        self.touched.extend(0..self.tunnels.len());
    }

    /// The number by which the core knows a tunnel.
    fn number(&self, index: usize) -> Option<TunnelId> {
        self.numbers.tunnels.get(&self.config.tunnels.get(index)?.name).copied()
    }

    /// The tunnel that the core knows by a number.
    fn index(&self, id: TunnelId) -> Option<usize> {
        let name = self.core.as_ref()?.names.get(&id)?;
        self.by_name.get(name).copied()
    }
}

impl Runtime {
    fn new(hold_down: Duration, now: Duration) -> Self {
        Runtime {
            health: Health::new(hold_down),
            offer: Offer::Masked,
            draining: false,
            ike: IkeState::default(),
            session: Session::Unknown,
            unexplained: false,
            silent_neighbor: None,
            heard_from: None,
            narrow: None,
            deadline: None,
            obstacle: Some(Obstacle::NoPlan),
            since: now,
            failovers: 0,
            causes: BTreeMap::new(),
            last_failure: None,
            stages: None,
        }
    }
}

//! Bringing the core's tables to what they should be, one transaction at a time, and what the core
//! says of itself.

use core::time::Duration;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use braid_api::{
    BootId, Cause, Direction, Epoch, Event as CoreEvent, Hello, MAX_OPS, Op, RejectReason, Rejected, Sa,
    SaId, SecretKey, Transaction, TunnelId, TunnelState, TunnelStats, Verdict, WireGuard,
};
use braid_dataplane::tables::key_check;

use super::{
    Effect, Note, Offer, SOCKET_RETRY, Session, Stages, Token, Turn,
    ike::{IkeSa, IkeSas, IkeState},
};
use crate::{
    config::Config,
    desired::{Numbers, SaSpec, WireGuardSpec},
    failover::Obstacle,
    keys::KeyDigest,
    mirror::{Beside, Change, HeldSa, Mirror},
    wireguard::Secret,
};

/// Most changes in one transaction, so that others get in between.
const MAX_CHANGES: usize = MAX_OPS / 4;
/// Most of a frame that changes may fill, by a generous estimate.
const MAX_WEIGHT: usize = braid_api::MAX_FRAME_LEN / 2;
/// How long tunnels may take to come up with a new core: some attempts of IKE or WireGuard.
const CORE_SETTLES: Duration = Duration::from_secs(15);
/// Connections in a row that ended in a disagreement with the core, before giving up on it.
const MAX_DISAGREEMENTS: u32 = 3;
/// The core's word of a lost link comes within this of our own look, however busy the machine is.
const SAME_FAILURE: Duration = Duration::from_secs(1);

/// One connection to the core.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) boot: BootId,
    /// When the core was started, may lie before control was.
    pub(super) uptime: (Duration, Duration),
    pub(super) mirror: Mirror,
    /// Tunnels of the core.
    pub(super) names: BTreeMap<TunnelId, String>,
    /// What is desired has changed since `queue` was made.
    pub(super) is_dirty: bool,
    next_epoch: u64,
    /// The last transaction that was confirmed or refused: they are in the order in which they were sent.
    answered: Epoch,
    next_sa: u64,
    queue: VecDeque<Change>,
    outstanding: Option<Outstanding>,
    /// SAs on their way.
    installing: BTreeSet<(TunnelId, Direction)>,
    /// Who waits for a transaction of the offers.
    waiting: BTreeMap<Epoch, (Token, &'static str)>,
    /// What transactions of the offers unmask.
    pub(super) unmasking: BTreeMap<Epoch, Vec<TunnelId>>,
    /// SAs that IKE made.
    pub(super) ike: IkeSas,
}

#[derive(Debug)]
struct Outstanding {
    epoch: Epoch,
    changes: Vec<Change>,
    /// Keys that were recorded for this transaction.
    marked: Vec<KeyDigest>,
}

impl Core {
    fn new(hello: &Hello, now: Duration) -> Self {
        Core {
            boot: hello.boot,
            uptime: (hello.uptime, now),
            mirror: Mirror::stale(),
            names: hello.tunnels.iter().map(|tunnel| (tunnel.id, tunnel.name.clone())).collect(),
            is_dirty: true,
            next_epoch: 1,
            answered: Epoch(0),
            // A number is never used twice in a boot: the generation, which the core counts up at
            // every adoption, makes those of this connection higher than all before.
            next_sa: (u64::from(hello.generation.0) << 32) | 1,
            queue: VecDeque::new(),
            outstanding: None,
            installing: BTreeSet::new(),
            waiting: BTreeMap::new(),
            unmasking: BTreeMap::new(),
            ike: IkeSas::new(hello.stash_entries > 0),
        }
    }

    /// A number for an SA: numbers ascend in the order of the transactions.
    pub(super) fn sa_number(&mut self) -> SaId {
        let id = SaId(self.next_sa);
        self.next_sa += 1;
        id
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.outstanding.is_none() && !self.is_dirty
    }

    /// Whether every transaction was confirmed or refused.
    pub(super) fn is_answered(&self) -> bool {
        self.answered.0 + 1 == self.next_epoch
    }

    pub(super) fn is_installing(&self, tunnel: TunnelId, direction: Direction) -> bool {
        self.installing.contains(&(tunnel, direction))
    }

    pub(super) fn transaction(&mut self, ops: Vec<Op>) -> Transaction {
        let epoch = Epoch(self.next_epoch);
        self.next_epoch += 1;
        Transaction { epoch, ops }
    }

    /// Whoever waits for the next transaction, and what they are told then.
    pub(super) fn await_next(&mut self, token: Token, line: &'static str) {
        self.waiting.insert(Epoch(self.next_epoch), (token, line));
    }

    pub(super) fn awaits_answer(&self) -> bool {
        self.outstanding.is_some()
    }
}

impl Turn {
    /// Whether everything that can be in the core is there.
    pub(super) fn is_synced(&self) -> bool {
        self.is_planned() && self.core.as_ref().is_none_or(|core| core.is_idle())
    }

    pub(super) fn handle_hello(&mut self, hello: Hello, now: Duration) {
        let before = self.last_boot;
        let is_new = before.is_some_and(|boot| boot != hello.boot);
        // So is one of which nobody knows, and that has nothing.
        let forgot_paths = is_new || before.is_none() && hello.tunnels.is_empty();
        let mut core = Core::new(&hello, now);
        self.numbers = Numbers {
            tunnels: hello.tunnels.iter().map(|tunnel| (tunnel.name.clone(), tunnel.id)).collect(),
            groups: hello.groups.iter().map(|group| (group.id, group.members.clone())).collect(),
        };
        core.mirror.held = hello.tunnels.iter().map(|tunnel| tunnel.id).collect();
        adopt_sas(&mut core, &hello, &self.config, &self.memory.keys);
        let adopted: Vec<KeyDigest> = core.mirror.sas().filter_map(|(_, sa)| sa.digest).collect();
        for digest in adopted.iter().filter(|digest| !self.memory.keys.is_used(digest)).collect::<Vec<_>>() {
            self.memory.keys.mark(*digest, hello.boot);
            self.effects.push(Effect::Remember);
        }
        let adopted = adopted.len();
        let exhausted: BTreeSet<TunnelId> =
            hello.sas.iter().filter(|sa| sa.stopped).map(|sa| sa.tunnel).collect();
        for (tunnel, runtime) in self.config.tunnels.iter().zip(&mut self.tunnels) {
            runtime.offer = Offer::Masked;
            runtime.draining = false;
            runtime.unexplained = false;
            runtime.health.handle_hello(now);
            // Where nobody but a core has looked, it was the last one.
            let by_core = runtime.narrow.is_some() || tunnel.remote.is_none() && tunnel.uplink.is_none();
            if forgot_paths
                && by_core
                && let Some(outer) = self.memory.outer.get_mut(&tunnel.name)
            {
                (outer.mtu, runtime.narrow) = (None, None);
            }
            if before != Some(hello.boot) {
                runtime.health.handle_new_core(now);
                // Nobody else misses a session.
                match (runtime.session, runtime.heard_from.take()) {
                    (Session::Up, Some(remote)) => drop(self.found.insert(tunnel.name.clone(), remote)),
                    (Session::Up, None) | (Session::Unknown, _) => {}
                    (Session::None | Session::Lost, _) => drop(self.found.remove(&tunnel.name)),
                }
            }
            runtime.ike = IkeState::default();
            runtime.session = Session::Unknown;
        }
        if hello.stash_entries == 0 {
            self.negotiated.clear();
            self.plan_held_until = None;
        }
        for tunnel in &hello.tunnels {
            let Some(runtime) = self.by_name.get(&tunnel.name).and_then(|index| self.tunnels.get_mut(*index))
            else {
                continue;
            };
            match tunnel.state {
                TunnelState::Masked => runtime.unexplained = true,
                TunnelState::Live => runtime.offer = Offer::Live,
                TunnelState::Draining => (runtime.offer, runtime.draining) = (Offer::Live, true),
            }
            if exhausted.contains(&tunnel.id) {
                runtime.health.handle_liveness(false, Cause::Exhausted, Duration::ZERO, now);
            }
            if tunnel.state == TunnelState::Draining && self.memory.drained.insert(tunnel.name.clone()) {
                self.effects.push(Effect::RememberLater);
            }
        }
        if !hello.tunnels.is_empty() {
            self.effects.push(Effect::QueryStats);
        }
        if is_new {
            self.core_settles = Some(now + CORE_SETTLES);
        }
        self.last_boot = Some(hello.boot);
        self.refused.clear();
        self.core = Some(core);
        self.learned.core_lost();
        self.forget_bfd_links();
        self.offer_changes += 1;
        // By the core's numbers, or its tunnels would be taken for others and masked.
        self.rebuild();
        self.touch_all();
        self.effects.push(Effect::Note(Note::CoreFound { adopted, new: is_new }));
    }

    pub(super) fn handle_core_gone(&mut self) {
        let Some(core) = self.core.take() else { return };
        for (token, _) in core.waiting.into_values() {
            let line = "the forwarding core went away before it confirmed".to_owned();
            self.effects.push(Effect::Reply(token, Err(vec![line])));
        }
        for runtime in &mut self.tunnels {
            runtime.offer = Offer::Masked;
            runtime.draining = false;
        }
        self.forget_bfd_links();
        self.offer_changes += 1;
        self.touch_all();
        self.effects.push(Effect::Note(Note::CoreLost));
    }

    /// Sends the next transaction, if nothing stands against it.
    pub(super) fn pump(&mut self) {
        // The core that is to be looked at again has to answer first, and could be asked more without an end.
        if !self.is_planned() || self.needs_reconnect {
            return;
        }
        // What an earlier life had negotiated is put into the tunnels at once, or their traffic would stop.
        if self.core.as_ref().is_none_or(|core| core.outstanding.is_some() || core.ike.awaits_stash) {
            return;
        }
        if self.learned.needs_build() || self.core.as_ref().is_some_and(|core| core.is_dirty) {
            self.refill();
        }
        let Some(core) = &mut self.core else { return };
        if core.queue.is_empty() {
            self.pump_learned();
            return;
        }
        let mut changes = Vec::new();
        let mut weight = 0;
        while changes.len() < MAX_CHANGES
            && let Some(change) = core.queue.pop_front()
        {
            weight += weight_of(&change);
            if weight > MAX_WEIGHT && !changes.is_empty() {
                core.queue.push_front(change);
                break;
            }
            changes.push(match change {
                // IKE may have taken numbers since the queue was made.
                Change::PutSa(_, tunnel, direction, spec) => {
                    Change::PutSa(core.sa_number(), tunnel, direction, spec)
                }
                other => other,
            });
        }
        let mut marked = Vec::new();
        let mut tunnels = BTreeSet::new();
        let mut ops = Vec::with_capacity(changes.len());
        for change in &changes {
            if let Change::PutSa(_, tunnel, direction, spec) = change {
                // Recorded before it is sent: should the answer be lost, it counts as installed.
                self.memory.keys.mark(spec.digest, core.boot);
                marked.push(spec.digest);
                tunnels.insert(*tunnel);
                core.installing.insert((*tunnel, *direction));
            }
            ops.push(op(change, &self.config, core.boot));
        }
        let transaction = core.transaction(ops);
        core.outstanding = Some(Outstanding { epoch: transaction.epoch, changes, marked });
        if !tunnels.is_empty() {
            self.effects.push(Effect::Remember);
            if !core::mem::replace(&mut self.warned_manual, true) {
                self.effects.push(Effect::Note(Note::ManualKeys { tunnels: tunnels.len() }));
            }
        }
        self.effects.push(Effect::Transaction(transaction));
    }

    /// Sends the next routes that BGP has learned; after the last, what an earlier life left may go.
    fn pump_learned(&mut self) {
        let Some(core) = &mut self.core else { return };
        let configured = &self.desired.tables.routes;
        let ops = self.learned.core_ops(|prefix| configured.contains_key(prefix));
        // A prefix that was the configuration's is not any more.
        for op in &ops {
            if let Op::PutRoute { prefix, .. } = op {
                core.mirror.routes.remove(prefix);
            }
        }
        if !ops.is_empty() {
            let transaction = core.transaction(ops);
            core.outstanding =
                Some(Outstanding { epoch: transaction.epoch, changes: Vec::new(), marked: Vec::new() });
            self.effects.push(Effect::Transaction(transaction));
        } else if core.mirror.stale && self.learned.may_sweep() {
            core.is_dirty = true;
            self.pump();
        }
    }

    /// Makes the queue anew from what the core has confirmed.
    fn refill(&mut self) {
        // Numbers may have been confirmed since the tables were built.
        self.rebuild();
        let Some(core) = &mut self.core else { return };
        let (sas, keys) = (&self.desired.tables.sas, &self.memory.keys);
        let mirror = &core.mirror;
        let installable = |tunnel: TunnelId| {
            [Direction::In, Direction::Out].into_iter().all(|direction| {
                sas.get(&(tunnel, direction)).is_some_and(|spec| {
                    mirror.holds_sa(tunnel, direction, spec) || !keys.is_used(&spec.digest)
                })
            })
        };
        core.queue = mirror.changes_to(&self.desired.tables, &self.learned, installable).into();
        core.is_dirty = false;
    }

    pub(super) fn handle_applied(&mut self, epoch: Epoch, now: Duration) {
        let Some(core) = &mut self.core else { return };
        core.answered = core.answered.max(epoch);
        if let Some((token, line)) = core.waiting.remove(&epoch) {
            self.effects.push(Effect::Reply(token, Ok(line.to_owned())));
        }
        if let Some(steps) = core.ike.pending.remove(&epoch) {
            self.ike_applied(steps, now);
            return;
        }
        let Some(outstanding) = core.outstanding.take_if(|outstanding| outstanding.epoch == epoch) else {
            for tunnel in core.unmasking.remove(&epoch).unwrap_or_default() {
                let index = core.names.get(&tunnel).and_then(|name| self.by_name.get(name)).copied();
                if let Some(runtime) = index.and_then(|index| self.tunnels.get_mut(index))
                    && runtime.offer == Offer::Unmasking(epoch)
                {
                    runtime.offer = Offer::Live;
                    self.touched.extend(index);
                    self.offer_changes += 1;
                }
            }
            return;
        };
        for change in outstanding.changes {
            match &change {
                Change::PutTunnel(tunnel) => {
                    self.numbers.tunnels.insert(tunnel.name.clone(), tunnel.id);
                    core.names.insert(tunnel.id, tunnel.name.clone());
                }
                Change::RemoveTunnel(id) => {
                    if let Some(name) = core.names.remove(id) {
                        self.numbers.tunnels.remove(&name);
                    }
                    core.ike.forget(|tunnel| tunnel == *id);
                }
                Change::PutGroup(group) => {
                    self.numbers.groups.insert(group.id, group.members.clone());
                }
                Change::RemoveGroup(id) => {
                    self.numbers.groups.remove(id);
                }
                Change::PutSa(_, tunnel, direction, _) => {
                    core.installing.remove(&(*tunnel, *direction));
                    let index = core.names.get(tunnel).and_then(|name| self.by_name.get(name)).copied();
                    if let Some(runtime) = index.and_then(|index| self.tunnels.get_mut(index)) {
                        runtime.health.handle_new_keys(now);
                    }
                }
                Change::Sweep => {
                    let held = &core.mirror.tunnels;
                    core.names.retain(|id, _| held.contains_key(id));
                    core.ike.forget(|tunnel| !held.contains_key(&tunnel));
                    self.numbers.tunnels.retain(|_, id| held.contains_key(id));
                    let groups = &core.mirror.groups;
                    self.numbers.groups.retain(|id, _| groups.contains_key(id));
                    self.disagreements = 0;
                }
                Change::SetGateway(_)
                | Change::PutWireGuard(..)
                | Change::RemoveSa(_)
                | Change::PutRoute(..)
                | Change::RemoveRoute(_) => {}
            }
            core.mirror.apply(change);
        }
        self.held_changes += 1;
        self.touch_all();
    }

    pub(super) fn handle_rejected(&mut self, rejected: Rejected, now: Duration) {
        let Some(core) = &mut self.core else { return };
        core.answered = core.answered.max(rejected.epoch);
        core.unmasking.remove(&rejected.epoch);
        let line = format!("the forwarding core refused it: {:?}", rejected.reason);
        if let Some((token, _)) = core.waiting.remove(&rejected.epoch) {
            self.effects.push(Effect::Reply(token, Err(vec![line])));
        }
        if let Some(steps) = core.ike.pending.remove(&rejected.epoch) {
            self.ike_rejected(steps);
            self.effects.push(Effect::Note(Note::CoreRefused { tunnel: None, rejected }));
            return;
        }
        let outstanding = core.outstanding.take_if(|outstanding| outstanding.epoch == rejected.epoch);
        let mut culprit = None;
        if let Some(outstanding) = outstanding {
            // Those of BGP have no changes of ours.
            if outstanding.changes.is_empty() {
                self.learned.core_refused();
            }
            // The core's word: nothing of it is in force, so these keys have never counted.
            for digest in &outstanding.marked {
                self.memory.keys.unmark(digest);
            }
            if !outstanding.marked.is_empty() {
                self.effects.push(Effect::Remember);
            }
            core.installing.clear();
            culprit = outstanding.changes.get(rejected.op as usize).and_then(|change| match change {
                Change::PutTunnel(tunnel) => self.by_name.get(&tunnel.name).copied(),
                Change::PutSa(_, _, _, spec) => Some(spec.index),
                Change::PutWireGuard(_, spec) => Some(spec.index),
                Change::SetGateway(_)
                | Change::RemoveSa(_)
                | Change::PutGroup(_)
                | Change::PutRoute(..)
                | Change::RemoveRoute(_)
                | Change::RemoveGroup(_)
                | Change::RemoveTunnel(_)
                | Change::Sweep => None,
            });
        }
        let tunnel =
            culprit.and_then(|index| self.config.tunnels.get(index)).map(|tunnel| tunnel.name.clone());
        self.effects.push(Effect::Note(Note::CoreRefused { tunnel, rejected: rejected.clone() }));
        if let Some(index) = culprit {
            self.refused.insert(index, rejected.reason);
            if passes(rejected.reason) {
                self.refusal_retry = Some(now + SOCKET_RETRY);
            }
            self.rebuild();
        } else {
            // The core is not what it was taken for: look again, but not for ever.
            core.queue.clear();
            self.disagreements += 1;
            self.needs_reconnect = self.disagreements <= MAX_DISAGREEMENTS;
        }
        self.touch_all();
    }

    pub(super) fn handle_core_event(&mut self, event: CoreEvent, now: Duration) {
        match event {
            CoreEvent::Liveness { tunnel, verdict, cause, silent, detected, masked } => {
                let Some(index) = self.index(tunnel) else { return };
                let Some(runtime) = self.tunnels.get_mut(index) else { return };
                runtime.unexplained = false;
                match verdict {
                    Verdict::Up => runtime.health.handle_liveness(true, cause, silent, now),
                    Verdict::Down => {
                        let stages = Stages { detected, masked };
                        runtime.stages = Some(stages);
                        // A look at the links may have come first.
                        let seen = runtime.last_failure.as_mut().filter(|failure| {
                            let just_now = now.saturating_sub(failure.at) < SAME_FAILURE;
                            just_now && matches!(failure.why, Obstacle::Outer(_))
                        });
                        if let Some(failure) = seen.filter(|_| cause == Cause::Link) {
                            failure.stages.get_or_insert(stages);
                        }
                        runtime.health.handle_liveness(false, cause, silent, now);
                    }
                    Verdict::Withdrawn => runtime.health.handle_withdrawn(cause, now),
                }
                self.touched.insert(index);
            }
            CoreEvent::WireGuard { tunnel, up } => {
                let Some(index) = self.index(tunnel) else { return };
                let Some(runtime) = self.tunnels.get_mut(index) else { return };
                runtime.session = match (up, runtime.session) {
                    (true, _) => Session::Up,
                    (false, Session::Up | Session::Lost) => Session::Lost,
                    (false, Session::Unknown | Session::None) => Session::None,
                };
                runtime.unexplained &= !up;
                self.touched.insert(index);
                let name = self.config.tunnels.get(index).map(|tunnel| &tunnel.name).filter(|_| up);
                if let Some(remote) = name.and_then(|name| self.found.remove(name)) {
                    // Where it was called, or where it is said to be next.
                    runtime.heard_from.get_or_insert(remote);
                    self.note_remote(tunnel, None);
                }
            }
            CoreEvent::SaLifetime { sa, hard } => {
                let Some(core) = &self.core else { return };
                if core.ike.sas.contains_key(&sa) && !hard {
                    return; // IKE rekeys
                }
                let manual = core.mirror.sas().find(|(id, _)| *id == sa).map(|(_, sa)| sa.tunnel);
                let Some(tunnel) = manual.or_else(|| Some(core.ike.sas.get(&sa)?.tunnel)) else { return };
                let Some(index) = self.index(tunnel) else { return };
                if hard && let Some(runtime) = self.tunnels.get_mut(index) {
                    runtime.health.handle_liveness(false, Cause::Exhausted, Duration::ZERO, now);
                    self.touched.insert(index);
                } else if let Some(tunnel) = self.config.tunnels.get(index) {
                    let tunnel = tunnel.name.clone();
                    self.effects.push(Effect::Note(Note::NearlyExhausted { tunnel }));
                }
            }
            // Only what negotiates keys needs it.
            CoreEvent::Traffic(_) => {}
            CoreEvent::BfdLink { local, remote, verdict, silent } => {
                self.handle_bfd_link(local, remote, verdict, silent);
            }
            // Only doctor asks for it.
            CoreEvent::Echo { .. } => {}
            CoreEvent::EndpointMoved { tunnel: id, remote } => {
                let Some(index) = self.index(id) else { return };
                if self.follow(index, remote) {
                    return; // only what IKE has said already
                }
                if let (Some(runtime), Some(tunnel)) =
                    (self.tunnels.get_mut(index), self.config.tunnels.get(index))
                {
                    let expected = self.desired.tables.tunnels.get(&id).and_then(|tunnel| tunnel.remote);
                    if runtime.heard_from.replace(remote).or(expected) != Some(remote) {
                        let tunnel = tunnel.name.clone();
                        self.effects.push(Effect::Note(Note::Moved { tunnel, remote }));
                    }
                    self.touched.insert(index);
                    self.note_heard(index, remote.ip());
                }
            }
            CoreEvent::PathMtu { tunnel, path_mtu } => {
                // A narrower path is as good as put so: whatever is wider is put again, also the value of before.
                if let Some(held) = self.core.as_mut().and_then(|core| core.mirror.tunnels.get_mut(&tunnel)) {
                    let held = Arc::make_mut(held);
                    held.path_mtu = held.path_mtu.min(path_mtu);
                }
                let Some(index) = self.index(tunnel) else { return };
                let (Some(tunnel), Some(runtime)) =
                    (self.config.tunnels.get(index), self.tunnels.get_mut(index))
                else {
                    return;
                };
                let outer = self.memory.outer.entry(tunnel.name.clone()).or_default();
                runtime.narrow = Some(path_mtu).filter(|found| outer.mtu.is_none_or(|known| known > *found));
                if outer.mtu.replace(path_mtu) != Some(path_mtu) {
                    self.effects.push(Effect::RememberLater);
                    self.needs_rebuild = true;
                }
            }
        }
    }

    /// Verdicts that were given while nobody listened show in the counters.
    pub(super) fn handle_stats(&mut self, stats: &[TunnelStats], now: Duration) {
        for stats in stats {
            let Some(index) = self.index(stats.tunnel) else { continue };
            let probe = self.config.tunnels.get(index).and_then(|tunnel| tunnel.probe);
            let Some(runtime) = self.tunnels.get_mut(index) else { continue };
            let adopted = stats.remote.filter(|_| runtime.heard_from.is_none());
            runtime.heard_from = runtime.heard_from.or(adopted);
            // What the core said may have been lost, where it had much to say at once.
            if let Some(wireguard) = stats.wireguard.filter(|_| runtime.session == Session::Unknown) {
                runtime.session =
                    if wireguard.last_handshake.is_some() { Session::Up } else { Session::None };
            }
            if let Some(hold_time) = runtime.silent_neighbor {
                let is_silent = stats.heard_ago.is_none_or(|ago| ago >= hold_time);
                runtime.health.handle_neighbor(is_silent.then_some(hold_time), now);
            }
            let unexplained = core::mem::replace(&mut runtime.unexplained, false);
            // An answer is what brings a tunnel back: that the peer is heard says nothing of the way there.
            let within = |ago: Option<Duration>| {
                probe.is_some_and(|probe| ago.is_some_and(|ago| ago < probe.interval * probe.multiplier))
            };
            let looked_for = runtime.health.is_silent() || unexplained;
            let votes = |vote: Verdict| stats.bfd.iter().any(|session| session.vote == vote);
            if votes(Verdict::Down) {
                if unexplained {
                    let silent = stats.heard_ago.unwrap_or_default();
                    runtime.health.handle_liveness(false, Cause::Bfd, silent, now);
                }
            } else if looked_for && votes(Verdict::Up) {
                runtime.health.handle_liveness(true, Cause::Bfd, Duration::ZERO, now);
            } else if looked_for {
                runtime.health.handle_withdrawn(Cause::Bfd, now);
            }
            // Probes that were never answered took nothing out: it was the link, of which a look tells.
            let may_be_probes = stats.answered_ago.is_some();
            if within(stats.answered_ago) && looked_for {
                runtime.health.handle_liveness(true, Cause::Probe, Duration::ZERO, now);
            } else if unexplained && stats.masked_by_core && probe.is_some() && may_be_probes {
                let (cause, since) = match within(stats.heard_ago) {
                    true => (Cause::OneWay, stats.answered_ago),
                    false => (Cause::Probe, stats.heard_ago),
                };
                runtime.health.handle_liveness(false, cause, since.unwrap_or_default(), now);
            }
            self.touched.insert(index);
            adopted.into_iter().for_each(|remote| self.note_heard(index, remote.ip()));
        }
    }
}

/// What the core may no longer refuse in a moment: a socket is on its way to it, or a tunnel that has the peer is on
/// its way out of it.
pub(super) fn passes(reason: RejectReason) -> bool {
    matches!(reason, RejectReason::NoSocket | RejectReason::PeerTaken)
}

/// Recognises the SAs that go on working: those of fixed keys by their keys; those of IKE are its own.
fn adopt_sas(core: &mut Core, hello: &Hello, config: &Config, keys: &crate::keys::KeyRecord) {
    let by_name: BTreeMap<&str, &crate::config::Tunnel> =
        config.tunnels.iter().map(|tunnel| (tunnel.name.as_str(), tunnel)).collect();
    for sa in &hello.sas {
        let tunnel = core.names.get(&sa.tunnel).and_then(|name| by_name.get(name.as_str()));
        if tunnel.is_some_and(|tunnel| tunnel.ike().is_some()) {
            core.ike.insert(sa.id, IkeSa { tunnel: sa.tunnel, direction: sa.direction, is_held: true });
            continue;
        }
        let digest = tunnel.and_then(|tunnel| tunnel.manual()).and_then(|manual| {
            let (spi, key) = match sa.direction {
                Direction::In => (manual.spi_in, &manual.key_in),
                Direction::Out => (manual.spi_out, &manual.key_out),
            };
            let same = (sa.spi, sa.suite) == (spi, manual.suite)
                && sa.key_check == key_check(hello.boot, key.expose());
            same.then(|| keys.digest(manual.suite, key.expose()))
        });
        let held =
            HeldSa { tunnel: sa.tunnel, direction: sa.direction, spi: sa.spi, suite: sa.suite, digest };
        core.mirror.insert_sa(sa.id, held);
    }
}

fn op(change: &Change, config: &Config, boot: BootId) -> Op {
    match change {
        Change::SetGateway(settings) => Op::SetGateway(settings.clone()),
        Change::PutTunnel(tunnel) => Op::PutTunnel((**tunnel).clone()),
        Change::PutWireGuard(id, spec) => Op::PutWireGuard(wireguard(config, *id, spec)),
        Change::RemoveSa(id) => Op::RemoveSa(*id),
        Change::PutSa(id, tunnel, direction, spec) => Op::PutSa(Sa {
            id: *id,
            boot,
            tunnel: *tunnel,
            direction: *direction,
            spi: spec.spi,
            suite: spec.suite,
            key: key(config, *direction, spec),
            esn: spec.esn,
            replay_window: spec.replay_window,
            selectors: spec.selectors.clone(),
        }),
        Change::PutGroup(group) => Op::PutGroup(group.clone()),
        Change::PutRoute(prefix, target) => Op::PutRoute { prefix: *prefix, target: *target },
        Change::RemoveRoute(prefix) => Op::RemoveRoute { prefix: *prefix },
        Change::RemoveGroup(id) => Op::RemoveGroup(*id),
        Change::RemoveTunnel(id) => Op::RemoveTunnel(*id),
        Change::Sweep => Op::Sweep,
    }
}

/// The queue is made anew with every configuration, so the index is valid; an empty key, which the
/// core refuses, would be the answer to one that is not.
fn key(config: &Config, direction: Direction, spec: &SaSpec) -> SecretKey {
    let manual = config.tunnels.get(spec.index).and_then(|tunnel| tunnel.manual());
    let key = manual.map(|manual| match direction {
        Direction::In => &manual.key_in,
        Direction::Out => &manual.key_out,
    });
    SecretKey::new(key.map_or_else(Vec::new, |key| key.expose().to_vec()))
}

/// As with [`key`], the index is valid.
fn wireguard(config: &Config, tunnel: TunnelId, spec: &WireGuardSpec) -> WireGuard {
    let keys = config.tunnels.get(spec.index).and_then(|tunnel| tunnel.wireguard());
    let material = |secret: &Secret| SecretKey::new(secret.expose().to_vec());
    WireGuard {
        tunnel,
        private_key: keys.map_or(SecretKey::new(Vec::new()), |keys| material(&keys.private_key)),
        peer_public_key: spec.peer.0,
        preshared_key: keys.and_then(|keys| keys.preshared_key.as_ref()).map(material),
        keepalive: spec.keepalive,
        initiate: spec.initiate,
        begin: spec.begin,
    }
}

/// Upper estimate of a change's length in a frame, in bytes.
fn weight_of(change: &Change) -> usize {
    const PREFIX: usize = 20;
    match change {
        Change::PutTunnel(tunnel) => {
            let allowed = match &tunnel.allowed {
                braid_api::Allowed::Routed | braid_api::Allowed::RoutedAnywhere => 0,
                braid_api::Allowed::Prefixes(prefixes) => prefixes.len(),
            };
            400 + (allowed + tunnel.reach.len() + 3 * tunnel.bfd.len()) * PREFIX
        }
        Change::PutSa(_, _, _, spec) => {
            200 + (spec.selectors.local.len() + spec.selectors.remote.len()) * PREFIX
        }
        Change::PutGroup(group) => 20 + group.members.len() * PREFIX,
        Change::SetGateway(settings) => 100 + (settings.icmp_source.len() + settings.own.len()) * PREFIX,
        Change::PutRoute(..) => 100,
        Change::PutWireGuard(..) => 200,
        Change::RemoveSa(_)
        | Change::RemoveRoute(_)
        | Change::RemoveGroup(_)
        | Change::RemoveTunnel(_)
        | Change::Sweep => 40,
    }
}

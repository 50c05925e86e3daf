//! Routes that BGP has learned, on their way into the core and the kernel.
//!
//! They are kept apart from what the configuration says, since there may be a million of them: a change costs
//! what has changed. Prefixes with equal ways share a *set*, whose tunnels are a group of the core.
//!
//! A way over a link is the kernel's alone, by a route that goes before those into the device; the core and the
//! kernel have the tunnels behind it all the while, so that nothing waits for them when the link goes, and what the
//! other end still sends by a tunnel is accepted. Links of the configuration's routes go the same way. A link or a
//! router on it that has failed is withdrawn by one message to the launcher, before BGP has looked at a single
//! prefix; what it then says of each is in the kernel already.
//!
//! Invariants:
//! - A prefix whose entry differs from what the core or the kernel has of it is in the queue for that, or on its
//!   way. That a next hop is withdrawn makes no difference: neither side has it any more. What the core refused waits
//!   for the next connection or choice, or it would be refused for ever.
//! - A group is wanted as long as a set needs it, and removed only after the core has no route into it.
//! - What an earlier life of control had learned stays in the core and in the kernel until [`Learned::complete`]
//!   and all that is learned now is there.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use braid_api::{
    BfdLink, GroupId, Op, Target,
    launcher::{IntoDevice, LearnedVia, RouteChanges, RoutePut},
};
use ipnet::IpNet;

use super::{
    Effect, Note, Turn,
    sets::{Members, NONE, Set, SetId, Sets, Ways},
};
use crate::{
    config::{Config, Link},
    desired::LearnedMember,
    mirror::Beside,
    outer::Links,
    shared::Shared,
};

/// Routes in one message to the launcher, which does nothing else meanwhile.
pub(super) const MAX_KERNEL: usize = 1536;
/// Routes in one transaction.
const MAX_CORE: usize = 8192;

/// A prefix, and the ways to it; none: it is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LearnedRoute {
    /// The prefix.
    pub prefix: IpNet,
    /// Before the tunnels, if there is one.
    pub link: Option<Link>,
    /// By their names, in order, with their shares.
    pub tunnels: Vec<(String, u16)>,
    /// Behind those, in the same form: flows that were there may end there, and all go there if those fail.
    pub standby: Vec<(String, u16)>,
}

/// What BGP says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Learned {
    /// What was learned before is void.
    pub reset: bool,
    /// What is new.
    pub routes: Vec<LearnedRoute>,
    /// That is all for now: what an earlier life left may go.
    pub complete: bool,
    /// Names of the neighbors with sessions, if that has changed.
    pub sessions: Option<BTreeSet<String>>,
    /// Tunnels whose neighbors were not heard for the hold time, which is the value, and have no session since; if
    /// that may have changed.
    pub silent: Option<BTreeMap<String, Duration>>,
    /// The BFD sessions with neighbors outside the tunnels, if that has changed.
    pub bfd_links: Option<Vec<BfdLink>>,
    /// Routers on links that nobody names as next hops any more, while BGP has not chosen anew for all their
    /// prefixes; if that has changed.
    pub failed: Option<BTreeSet<Link>>,
}

/// A prefix.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// A set, or [`NONE`].
    wanted: SetId,
    /// A group that the core has it in, or is about to unless it refuses; or [`NONE`].
    core: u32,
    /// Number in [`Table::vias`] of what the kernel has or is about to, or [`NONE`].
    kernel: u32,
    in_core_queue: bool,
    in_kernel_queue: bool,
}

impl Entry {
    const NEW: Entry =
        Entry { wanted: NONE, core: NONE, kernel: NONE, in_core_queue: false, in_kernel_queue: false };
}

/// What the kernel is to have: a link, the device, or both.
struct Way<'t> {
    link: Option<&'t Link>,
    device: bool,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Table {
    routes: BTreeMap<IpNet, Entry>,
    sets: Sets,
    /// A next hop that was withdrawn is taken out of those that have it.
    pub(super) vias: Shared<LearnedVia, u32>,
    /// Next hops that the launcher is to be told of.
    withdrawn: BTreeSet<Link>,
    /// How many routes the core has into each group.
    held: BTreeMap<GroupId, usize>,
    for_core: VecDeque<IpNet>,
    /// What the transaction that is on its way changes, with the groups that the core had before, or [`NONE`].
    unconfirmed: Vec<(IpNet, u32)>,
    for_kernel: VecDeque<IpNet>,
    /// Messages that are with the launcher.
    in_flight: u32,
    /// What an earlier life left may go.
    complete: bool,
    swept_kernel: bool,
    /// Prefixes that the configuration routes too, with its distance; those of inside peers have zero.
    configured: BTreeMap<IpNet, u8>,
    /// The configuration's links that are up: each prefix's of lowest distance.
    links: BTreeMap<IpNet, (u8, Link)>,
    /// Links that are up.
    pub(super) up: BTreeSet<String>,
    /// As [`Learned::failed`].
    failed: BTreeSet<Link>,
    distance: u8,
    /// A prefix that the configuration has too has changed, or a group is free: the tables are to be built anew.
    needs_build: bool,
}

/// Which route a prefix has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Configuration,
    Bgp,
}

impl Table {
    pub(super) fn new() -> Self {
        Table {
            routes: BTreeMap::new(),
            sets: Sets::default(),
            vias: Shared::default(),
            withdrawn: BTreeSet::new(),
            held: BTreeMap::new(),
            for_core: VecDeque::new(),
            unconfirmed: Vec::new(),
            for_kernel: VecDeque::new(),
            in_flight: 0,
            complete: false,
            swept_kernel: false,
            configured: BTreeMap::new(),
            links: BTreeMap::new(),
            up: BTreeSet::new(),
            failed: BTreeSet::new(),
            distance: u8::MAX,
            needs_build: false,
        }
    }

    /// Another configuration: other routes and sources may win.
    pub(super) fn configure(&mut self, config: &Config) {
        let peers = config.tunnels.iter().flat_map(|tunnel| &tunnel.peer_inside);
        self.configured = peers.map(|peer| (IpNet::from(*peer), 0)).collect();
        let routes = config.routes.iter().filter(|route| route.link.is_none());
        self.configured.extend(routes.map(|route| (route.prefix, route.distance)));
        self.distance = config.bgp.as_ref().map_or(u8::MAX, |bgp| bgp.distance);
        self.sets.configure(config);
        // Nobody will say so.
        self.complete |= config.bgp.is_none();
        self.needs_build = true;
        self.requeue();
    }

    /// These links are up, and no others.
    pub(super) fn set_links(&mut self, config: &Config, up: &Links) {
        let mut links: BTreeMap<IpNet, (u8, Link)> = BTreeMap::new();
        for route in &config.routes {
            let Some(link) = route.link.as_ref().filter(|link| up.contains_key(&link.interface)) else {
                continue;
            };
            let way = (route.distance, link.clone());
            links
                .entry(route.prefix)
                .and_modify(|known| *known = way.clone().min(known.clone()))
                .or_insert(way);
        }
        let before = std::mem::replace(&mut self.links, links);
        let prefixes: BTreeSet<IpNet> = before.keys().chain(self.links.keys()).copied().collect();
        for prefix in prefixes {
            if before.get(&prefix) != self.links.get(&prefix) {
                self.routes.entry(prefix).or_insert(Entry::NEW);
                self.queue(prefix);
            }
        }
        let before = core::mem::replace(&mut self.up, up.keys().cloned().collect());
        let is_lost = |interface: &String| before.contains(interface) && !up.contains_key(interface);
        self.withdraw(|link| is_lost(&link.interface));
        self.requeue_by(|link| up.contains_key(&link.interface) && !before.contains(&link.interface));
    }

    /// These routers are named as next hops no more, and no others.
    pub(super) fn set_failed(&mut self, failed: BTreeSet<Link>) {
        let before = core::mem::replace(&mut self.failed, failed.clone());
        let is_lost = |link: &Link| failed.contains(link) && !before.contains(link);
        self.withdraw(is_lost);
        // They are the configuration's no less.
        let configured = self.links.iter().filter(|(_, (_, link))| is_lost(link));
        for prefix in configured.map(|(prefix, _)| *prefix).collect::<Vec<_>>() {
            self.queue(prefix);
        }
        self.requeue_by(|link| before.contains(link) && !failed.contains(link));
    }

    /// Whether a learned way over a link may be used.
    fn is_usable(&self, link: &Link) -> bool {
        self.up.contains(&link.interface) && !self.failed.contains(link)
    }

    /// The launcher is to take these next hops from all routes.
    fn withdraw(&mut self, is_lost: impl Fn(&Link) -> bool) {
        let withdrawn = &mut self.withdrawn;
        self.vias.replace(|_, via| {
            let link = via.link.as_ref().filter(|link| is_lost(link))?;
            withdrawn.insert(link.clone());
            Some(LearnedVia { link: None, ..*via })
        });
    }

    /// Learned ways by these links may be used again, where BGP has not chosen others meanwhile.
    fn requeue_by(&mut self, concerned: impl Fn(&Link) -> bool) {
        let is_by = |set: &Set| set.ways.link.as_ref().is_some_and(&concerned);
        if !self.sets.any(is_by) {
            return;
        }
        let sets = &self.sets;
        let routes = self.routes.iter().filter(|(_, entry)| sets.get(entry.wanted).is_some_and(is_by));
        for prefix in routes.map(|(prefix, _)| *prefix).collect::<Vec<_>>() {
            self.queue(prefix);
        }
    }

    fn requeue(&mut self) {
        for prefix in self.routes.keys().copied().collect::<Vec<_>>() {
            self.queue(prefix);
        }
    }

    fn owner(&self, prefix: &IpNet) -> Owner {
        match self.configured.get(prefix) {
            Some(distance) if *distance <= self.distance => Owner::Configuration,
            Some(_) | None => Owner::Bgp,
        }
    }

    /// Takes a choice in.
    pub(super) fn learn(&mut self, route: LearnedRoute) {
        let members = Members { tunnels: route.tunnels, standby: route.standby };
        let set = self.sets.intern(Ways { link: route.link, members }, self.held.len());
        let entry = self.routes.entry(route.prefix).or_insert(Entry::NEW);
        let before = core::mem::replace(&mut entry.wanted, set);
        self.sets.release(before);
        self.needs_build |= self.configured.contains_key(&route.prefix);
        self.queue(route.prefix);
    }

    /// All of it is void.
    pub(super) fn forget(&mut self) {
        for prefix in self.routes.keys().copied().collect::<Vec<_>>() {
            self.learn(LearnedRoute { prefix, link: None, tunnels: Vec::new(), standby: Vec::new() });
        }
    }

    fn queue(&mut self, prefix: IpNet) {
        let Some(entry) = self.routes.get_mut(&prefix) else { return };
        if !core::mem::replace(&mut entry.in_core_queue, true) {
            self.for_core.push_back(prefix);
        }
        if !core::mem::replace(&mut entry.in_kernel_queue, true) {
            self.for_kernel.push_back(prefix);
        }
    }

    /// The sets that are in use.
    pub(super) fn groups(&self) -> Vec<Vec<LearnedMember<'_>>> {
        self.sets.groups()
    }

    /// The tables were built, with these groups for [`Table::groups`].
    pub(super) fn built(&mut self, groups: &[Option<GroupId>]) {
        self.needs_build = false;
        let moved = self.sets.built(groups);
        if moved.is_empty() {
            return;
        }
        // Those of new sets are in the queue anyway.
        let concerned = self.routes.iter().filter(|(_, entry)| moved.contains(&entry.wanted));
        for prefix in concerned.map(|(prefix, _)| *prefix).collect::<Vec<_>>() {
            self.queue(prefix);
        }
    }

    /// Prefixes that the configuration routes and BGP has a better way to.
    pub(super) fn overruled(&self) -> impl Iterator<Item = IpNet> {
        let weaker = self.configured.iter().filter(|(_, distance)| **distance > self.distance);
        weaker.map(|(prefix, _)| *prefix).filter(|prefix| self.has_route(prefix))
    }

    fn target(&self, prefix: &IpNet, entry: &Entry) -> Option<GroupId> {
        let set = self.sets.get(entry.wanted)?;
        set.group.filter(|_| self.owner(prefix) == Owner::Bgp)
    }

    pub(super) fn needs_build(&self) -> bool {
        self.needs_build || self.sets.have_changed
    }

    /// Another connection to the core: it may hold anything.
    pub(super) fn core_lost(&mut self) {
        self.held.clear();
        self.unconfirmed.clear();
        for entry in self.routes.values_mut() {
            entry.core = NONE;
        }
        self.requeue();
    }

    /// Operations for the core, as many as one transaction takes. `replaced` has a route of its own.
    pub(super) fn core_ops(&mut self, replaced: impl Fn(&IpNet) -> bool) -> Vec<Op> {
        let mut ops = Vec::new();
        self.unconfirmed.clear();
        while ops.len() < MAX_CORE
            && let Some(prefix) = self.for_core.pop_front()
        {
            let Some(mut entry) = self.routes.get(&prefix).copied() else { continue };
            entry.in_core_queue = false;
            let target = self.target(&prefix, &entry).map_or(NONE, |group| group.0);
            if target != entry.core {
                let before = ops.len();
                if target != NONE {
                    ops.push(Op::PutRoute { prefix, target: Target::Group(GroupId(target)) });
                    *self.held.entry(GroupId(target)).or_default() += 1;
                } else if !replaced(&prefix) {
                    ops.push(Op::RemoveRoute { prefix });
                }
                if ops.len() > before {
                    self.unconfirmed.push((prefix, entry.core));
                }
                self.let_go(entry.core);
                entry.core = target;
            }
            self.put(prefix, entry);
        }
        ops
    }

    /// The core's word: nothing of the last transaction is in force.
    pub(super) fn core_refused(&mut self) {
        for (prefix, before) in core::mem::take(&mut self.unconfirmed) {
            let mut entry = self.routes.get(&prefix).copied().unwrap_or(Entry::NEW);
            if before != NONE {
                *self.held.entry(GroupId(before)).or_default() += 1;
            }
            self.let_go(entry.core);
            entry.core = before;
            self.put(prefix, entry);
        }
    }

    fn let_go(&mut self, group: u32) {
        if group == NONE {
            return;
        }
        if let Some(count) = self.held.get_mut(&GroupId(group)) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&GroupId(group));
                // Now it may go, if nobody wants it.
                self.needs_build = true;
            }
        }
    }

    fn put(&mut self, prefix: IpNet, entry: Entry) {
        let idle = !entry.in_core_queue && !entry.in_kernel_queue;
        if idle && entry.wanted == NONE && entry.core == NONE && entry.kernel == NONE {
            self.routes.remove(&prefix);
        } else {
            self.routes.insert(prefix, entry);
        }
    }

    /// The next message for the launcher, if it is not busy; what is withdrawn goes at once, and alone. `source` is
    /// that of our own traffic, by family.
    pub(super) fn kernel_message(
        &mut self,
        source: impl Fn(bool) -> Option<core::net::IpAddr>,
    ) -> Option<RouteChanges> {
        let mut message = RouteChanges::default();
        while message.withdraw.len() < MAX_KERNEL
            && let Some(link) = self.withdrawn.pop_first()
        {
            message.withdraw.push(link);
        }
        if message.withdraw.is_empty() {
            if self.in_flight > 0 {
                return None;
            }
            self.fill(&mut message, source);
        }
        let something = message != RouteChanges::default();
        self.in_flight += u32::from(something);
        something.then_some(message)
    }

    fn fill(&mut self, message: &mut RouteChanges, source: impl Fn(bool) -> Option<core::net::IpAddr>) {
        while message.put.len() + message.remove.len() < MAX_KERNEL
            && let Some(prefix) = self.for_kernel.pop_front()
        {
            let Some(mut entry) = self.routes.get(&prefix).copied() else { continue };
            entry.in_kernel_queue = false;
            let wanted = self.way(&prefix, &entry).map(|way| LearnedVia {
                link: way.link.cloned(),
                device: way.device.then(|| IntoDevice { source: source(prefix.addr().is_ipv4()) }),
            });
            if wanted.as_ref() != self.vias.get(entry.kernel) {
                let taken = wanted.and_then(|via| Some((self.vias.take(&via, NONE as usize)?.0, via)));
                self.vias.release(entry.kernel);
                entry.kernel = taken.as_ref().map_or(NONE, |(number, _)| *number);
                match taken {
                    Some((_, via)) => message.put.push(RoutePut { prefix, via }),
                    None => message.remove.push(prefix),
                }
            }
            self.put(prefix, entry);
        }
        self.vias.free_unused();
        if self.complete && self.for_kernel.is_empty() && !self.swept_kernel {
            self.swept_kernel = true;
            message.sweep = true;
        }
    }

    /// What the kernel is to have of a prefix from here; the plan has what the configuration sends into the device.
    fn way(&self, prefix: &IpNet, entry: &Entry) -> Option<Way<'_>> {
        let ways = self.sets.get(entry.wanted).map(|set| &set.ways);
        let by_tunnels = self.configured.get(prefix).copied();
        let configured = self.links.get(prefix).filter(|(distance, _)| {
            by_tunnels.is_none_or(|other| *distance <= other)
                && (ways.is_none() || *distance <= self.distance)
        });
        let learned = ways.and_then(|ways| ways.link.as_ref());
        let learned = learned.filter(|link| self.owner(prefix) == Owner::Bgp && self.is_usable(link));
        let link = configured.map(|(_, link)| link).or(learned);
        let device = ways.is_some_and(|ways| !ways.members.tunnels.is_empty());
        (link.is_some() || device).then_some(Way { link, device })
    }

    /// The link by which the kernel takes a prefix.
    fn link(&self, prefix: &IpNet, entry: &Entry) -> Option<&Link> {
        self.way(prefix, entry)?.link
    }

    /// The launcher has done it.
    pub(super) fn kernel_done(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Every prefix that BGP decides about, with its link and its group; whether the kernel takes the link.
    pub(super) fn view(&self) -> impl Iterator<Item = (IpNet, Option<(&Link, bool)>, Option<GroupId>)> {
        self.routes.iter().filter_map(|(prefix, entry)| {
            let set = self.sets.get(entry.wanted)?;
            let taken = self.link(prefix, entry);
            let link = set.ways.link.as_ref().map(|link| (link, taken == Some(link)));
            (self.owner(prefix) == Owner::Bgp).then_some((*prefix, link, set.group))
        })
    }

    /// Whether the kernel takes a link of the configuration, or one that was learned, before the tunnels.
    pub(super) fn has_link(&self, prefix: &IpNet) -> bool {
        self.routes.get(prefix).is_some_and(|entry| self.link(prefix, entry).is_some())
    }

    /// Whether the kernel takes this link of the configuration.
    pub(super) fn takes_link(&self, prefix: &IpNet, link: &Link) -> bool {
        self.routes.get(prefix).is_some_and(|entry| self.link(prefix, entry) == Some(link))
    }
}

impl Beside for Table {
    fn holds(&self, group: GroupId) -> bool {
        self.held.contains_key(&group)
    }

    fn has_route(&self, prefix: &IpNet) -> bool {
        self.routes.get(prefix).is_some_and(|entry| self.target(prefix, entry).is_some())
    }

    fn may_sweep(&self) -> bool {
        self.complete && self.for_core.is_empty()
    }
}

impl Turn {
    pub(super) fn handle_learned(&mut self, learned: Learned, now: Duration) {
        let was_crowded = self.learned.sets.is_crowded();
        if learned.reset {
            self.learned.forget();
            self.learned.set_failed(BTreeSet::new());
        }
        if let Some(failed) = learned.failed {
            self.learned.set_failed(failed);
        }
        for route in learned.routes {
            self.learned.learn(route);
        }
        if self.learned.sets.is_crowded() && !was_crowded {
            self.effects.push(Effect::Note(Note::TooManyGroups));
        }
        if learned.complete && !self.learned.complete {
            self.learned.complete = true;
            if let Some(core) = &mut self.core {
                core.is_dirty = true;
            }
        }
        if let Some(silent) = learned.silent {
            self.handle_silent_neighbors(&silent, now);
        }
        if let Some(links) = learned.bfd_links {
            self.want_bfd_links(links);
        }
        if let Some(sessions) = learned.sessions
            && self.memory.sessions != sessions
        {
            self.memory.sessions = sessions;
            self.effects.push(Effect::RememberLater);
        }
    }

    /// A neighbor that is not heard speaks against its tunnel only while nothing else is heard there either, which the
    /// core knows: its BGP may have died alone.
    fn handle_silent_neighbors(&mut self, silent: &BTreeMap<String, Duration>, now: Duration) {
        let mut ask = false;
        for (name, index) in &self.by_name {
            let Some(runtime) = self.tunnels.get_mut(*index) else { continue };
            let before = core::mem::replace(&mut runtime.silent_neighbor, silent.get(name).copied());
            if before == runtime.silent_neighbor {
                continue;
            }
            self.touched.insert(*index);
            match runtime.silent_neighbor {
                Some(_) => ask = true,
                None => runtime.health.handle_neighbor(None, now),
            }
        }
        if ask {
            self.effects.push(Effect::QueryStats);
        }
    }

    /// The core has confirmed everything it was told, and so has whoever chooses routes nothing more to say: what
    /// follows of the failures so far has been done.
    pub fn handle_quiet(&mut self, now: Duration) {
        let is_quiet = |core: &super::sync::Core| core.is_idle() && core.is_answered();
        if self.converging.is_empty() || !self.core.as_ref().is_some_and(is_quiet) {
            return;
        }
        if !self.learned.for_core.is_empty() || self.learned.needs_build() {
            return;
        }
        for index in core::mem::take(&mut self.converging) {
            let failure = self.tunnels.get_mut(index).and_then(|runtime| runtime.last_failure.as_mut());
            if let Some(failure) = failure {
                failure.converged = Some(now.saturating_sub(failure.at));
            }
        }
    }

    /// Sends the launcher the next routes, if it waits for any.
    pub(super) fn mirror_learned(&mut self) {
        if !self.has_plan_in_force() {
            return;
        }
        let sources = &self.config.gateway.source;
        let source = |v4: bool| sources.iter().copied().find(|address| address.is_ipv4() == v4);
        if let Some(changes) = self.learned.kernel_message(source) {
            self.effects.push(Effect::Routes(changes));
        }
    }
}

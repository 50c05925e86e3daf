//! Routes that BGP has learned, on their way into the core and the kernel.
//!
//! They are kept apart from what the configuration says, since there may be a million of them: a change costs
//! what has changed. Prefixes with equal paths share a *set*, which is a group of the core.
//!
//! Invariants:
//! - A prefix whose entry differs from what the core or the kernel has of it is in the queue for that, or on its
//!   way.
//! - A group is wanted as long as a set needs it, and removed only after the core has no route into it.
//! - What an earlier life of control had learned stays in the core and in the kernel until [`Learned::complete`]
//!   and all that is learned now is there.

use std::collections::{BTreeMap, VecDeque};

use braid_api::{
    GroupId, Op, Target,
    launcher::{LearnedVia, RouteChanges, RoutePut},
};
use ipnet::IpNet;

use super::{Effect, Turn};
use crate::{config::Config, mirror::Beside};

/// Routes in one message to the launcher, which does nothing else meanwhile.
const MAX_KERNEL: usize = 2048;
/// Routes in one transaction.
const MAX_CORE: usize = 8192;

/// One way to a prefix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hop {
    /// Into a tunnel, by its name.
    Tunnel(String),
    /// To a router on a link, by the kernel alone.
    Link {
        /// The router.
        gateway: core::net::IpAddr,
        /// The link.
        interface: String,
    },
}

/// A prefix, and the ways to it with their shares; none: it is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LearnedRoute {
    /// The prefix.
    pub prefix: IpNet,
    /// All of one kind, in order.
    pub paths: Vec<(Hop, u16)>,
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
    pub sessions: Option<std::collections::BTreeSet<String>>,
}

/// Ways that prefixes share.
type Paths = Vec<(Hop, u16)>;
/// Index into [`Table::sets`].
type SetId = u32;
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Set {
    paths: Paths,
    uses: usize,
    /// In the tables as last built.
    group: Option<GroupId>,
}

/// A prefix.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// A set, or [`NONE`].
    wanted: SetId,
    /// A group that the core has it in or is about to, or [`NONE`].
    core: u32,
    /// Index into [`Table::vias`] that the kernel has or is about to, or [`NONE`].
    kernel: u32,
    in_core_queue: bool,
    in_kernel_queue: bool,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Table {
    routes: BTreeMap<IpNet, Entry>,
    sets: Vec<Set>,
    by_paths: BTreeMap<Paths, SetId>,
    free: Vec<SetId>,
    vias: Vec<LearnedVia>,
    /// How many routes the core has into each group.
    held: BTreeMap<GroupId, usize>,
    for_core: VecDeque<IpNet>,
    for_kernel: VecDeque<IpNet>,
    /// A message is with the launcher.
    kernel_busy: bool,
    /// What an earlier life left may go.
    complete: bool,
    swept_kernel: bool,
    /// Prefixes that the configuration routes too, with its distance; those of inside peers have zero.
    configured: BTreeMap<IpNet, u8>,
    distance: u8,
    /// Sets have come or gone, or a prefix that the configuration has too: the tables are to be built anew.
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
            sets: Vec::new(),
            by_paths: BTreeMap::new(),
            free: Vec::new(),
            vias: Vec::new(),
            held: BTreeMap::new(),
            for_core: VecDeque::new(),
            for_kernel: VecDeque::new(),
            kernel_busy: false,
            complete: false,
            swept_kernel: false,
            configured: BTreeMap::new(),
            distance: u8::MAX,
            needs_build: false,
        }
    }

    /// Another configuration: other routes and sources may win.
    pub(super) fn configure(&mut self, config: &Config) {
        let peers = config.tunnels.iter().flat_map(|tunnel| &tunnel.peer_inside);
        self.configured = peers.map(|peer| (IpNet::from(*peer), 0)).collect();
        self.configured.extend(config.routes.iter().map(|route| (route.prefix, route.distance)));
        self.distance = config.bgp.as_ref().map_or(u8::MAX, |bgp| bgp.distance);
        // Nobody will say so.
        self.complete |= config.bgp.is_none();
        self.needs_build = true;
        self.requeue();
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
        let set = if route.paths.is_empty() { NONE } else { self.intern(route.paths) };
        let entry = self.routes.entry(route.prefix).or_insert(Entry {
            wanted: NONE,
            core: NONE,
            kernel: NONE,
            in_core_queue: false,
            in_kernel_queue: false,
        });
        let before = core::mem::replace(&mut entry.wanted, set);
        self.release(before);
        self.needs_build |= self.configured.contains_key(&route.prefix);
        self.queue(route.prefix);
    }

    /// All of it is void.
    pub(super) fn forget(&mut self) {
        for prefix in self.routes.keys().copied().collect::<Vec<_>>() {
            self.learn(LearnedRoute { prefix, paths: Vec::new() });
        }
    }

    fn intern(&mut self, paths: Paths) -> SetId {
        if let Some(id) = self.by_paths.get(&paths) {
            self.sets[*id as usize].uses += 1;
            return *id;
        }
        let set = Set { paths: paths.clone(), uses: 1, group: None };
        let id = match self.free.pop() {
            Some(id) => {
                self.sets[id as usize] = set;
                id
            }
            None => {
                self.sets.push(set);
                (self.sets.len() - 1) as SetId
            }
        };
        self.by_paths.insert(paths, id);
        self.needs_build = true;
        id
    }

    fn release(&mut self, id: SetId) {
        let Some(set) = self.sets.get_mut(id as usize) else { return };
        set.uses -= 1;
        if set.uses == 0 {
            self.by_paths.remove(&set.paths);
            set.paths = Paths::new();
            set.group = None;
            self.free.push(id);
            self.needs_build = true;
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

    /// The sets that are in use, each as a list of tunnels with their shares.
    pub(super) fn groups(&self) -> Vec<Vec<(&str, u16)>> {
        self.by_paths.keys().map(tunnels).collect()
    }

    /// The tables were built, with these groups for [`Table::groups`].
    pub(super) fn built(&mut self, groups: &[Option<GroupId>]) {
        self.needs_build = false;
        let mut moved = Vec::new();
        for (id, group) in self.by_paths.values().zip(groups) {
            let group = *group;
            let set = &mut self.sets[*id as usize];
            if core::mem::replace(&mut set.group, group) != group {
                moved.push(*id);
            }
        }
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
        let set = self.sets.get(entry.wanted as usize)?;
        set.group.filter(|_| self.owner(prefix) == Owner::Bgp)
    }

    pub(super) fn needs_build(&self) -> bool {
        self.needs_build
    }

    /// Another connection to the core: it may hold anything.
    pub(super) fn core_lost(&mut self) {
        self.held.clear();
        for entry in self.routes.values_mut() {
            entry.core = NONE;
        }
        self.requeue();
    }

    /// Operations for the core, as many as one transaction takes. `replaced` has a route of its own.
    pub(super) fn core_ops(&mut self, replaced: impl Fn(&IpNet) -> bool) -> Vec<Op> {
        let mut ops = Vec::new();
        while ops.len() < MAX_CORE
            && let Some(prefix) = self.for_core.pop_front()
        {
            let Some(mut entry) = self.routes.get(&prefix).copied() else { continue };
            entry.in_core_queue = false;
            let target = self.target(&prefix, &entry).map_or(NONE, |group| group.0);
            if target != entry.core {
                if target != NONE {
                    ops.push(Op::PutRoute { prefix, target: Target::Group(GroupId(target)) });
                    *self.held.entry(GroupId(target)).or_default() += 1;
                } else if !replaced(&prefix) {
                    ops.push(Op::RemoveRoute { prefix });
                }
                self.let_go(entry.core);
                entry.core = target;
            }
            self.put(prefix, entry);
        }
        ops
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

    /// The next message for the launcher, if it is not busy. `source` is that of our own traffic, by family.
    pub(super) fn kernel_message(
        &mut self,
        source: impl Fn(bool) -> Option<core::net::IpAddr>,
    ) -> Option<RouteChanges> {
        if self.kernel_busy {
            return None;
        }
        let mut message = RouteChanges::default();
        while message.put.len() + message.remove.len() < MAX_KERNEL
            && let Some(prefix) = self.for_kernel.pop_front()
        {
            let Some(mut entry) = self.routes.get(&prefix).copied() else { continue };
            entry.in_kernel_queue = false;
            let via =
                self.sets.get(entry.wanted as usize).and_then(|set| set.paths.first()).map(
                    |path| match &path.0 {
                        Hop::Tunnel(_) => LearnedVia::Device { source: source(prefix.addr().is_ipv4()) },
                        Hop::Link { gateway, interface } => {
                            LearnedVia::Gateway { gateway: *gateway, interface: interface.clone() }
                        }
                    },
                );
            let wanted = via.as_ref().map_or(NONE, |via| self.via_index(via));
            if wanted != entry.kernel {
                match via {
                    Some(via) => message.put.push(RoutePut { prefix, via }),
                    None => message.remove.push(prefix),
                }
                entry.kernel = wanted;
            }
            self.put(prefix, entry);
        }
        if self.complete && self.for_kernel.is_empty() && !self.swept_kernel {
            self.swept_kernel = true;
            message.sweep = true;
        }
        let something = message.sweep || !message.put.is_empty() || !message.remove.is_empty();
        self.kernel_busy = something;
        something.then_some(message)
    }

    /// There are few of them.
    fn via_index(&mut self, via: &LearnedVia) -> u32 {
        let known = self.vias.iter().position(|other| other == via);
        known.unwrap_or_else(|| {
            self.vias.push(via.clone());
            self.vias.len() - 1
        }) as u32
    }

    /// The launcher has done it.
    pub(super) fn kernel_done(&mut self) {
        self.kernel_busy = false;
    }

    /// Every prefix with its paths and its group, if the core is to have it from here.
    pub(super) fn view(&self) -> impl Iterator<Item = (IpNet, &[(Hop, u16)], Option<GroupId>)> {
        self.routes.iter().filter_map(|(prefix, entry)| {
            let set = self.sets.get(entry.wanted as usize)?;
            (self.owner(prefix) == Owner::Bgp).then_some((*prefix, set.paths.as_slice(), set.group))
        })
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

/// Without links, which are the kernel's.
fn tunnels(paths: &Paths) -> Vec<(&str, u16)> {
    let mut tunnels = Vec::with_capacity(paths.len());
    for (hop, weight) in paths {
        match hop {
            Hop::Tunnel(name) => tunnels.push((name.as_str(), *weight)),
            Hop::Link { .. } => {}
        }
    }
    tunnels
}

impl Turn {
    pub(super) fn handle_learned(&mut self, learned: Learned) {
        if learned.reset {
            self.learned.forget();
        }
        for route in learned.routes {
            self.learned.learn(route);
        }
        if learned.complete && !self.learned.complete {
            self.learned.complete = true;
            if let Some(core) = &mut self.core {
                core.is_dirty = true;
            }
        }
        if let Some(sessions) = learned.sessions
            && self.memory.sessions != sessions
        {
            self.memory.sessions = sessions;
            self.effects.push(Effect::RememberLater);
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

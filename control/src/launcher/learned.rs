//! Routes that control learns: which the kernel has, and the steps to what it should have. Pure.
//!
//! There may be a million of them, so they are kept apart from the plan, under a protocol number and metrics of
//! their own: a change costs what has changed, and looking after the plan never lists them. They outlive
//! control; what its next life does not confirm goes when that asks for it.
//!
//! A learned prefix that covers a peer's outer address is captured as a planned one is ([`super::layout`]): its
//! routes live in the slot's table, and the layout has the rules that lead there. A way over a link is for outer
//! packets too, so that it lives in table main, and in the slot's table as well, should rules lead there.
//!
//! A way over a link goes before every way into the device, the plan's too: whoever learns has compared them. What
//! stands behind carries the traffic as soon as the link's route goes.
//!
//! All routes into tunnels lead to one device, so that moving prefixes from tunnel to tunnel changes nothing here:
//! next-hop objects would save nothing.
//!
//! Not done: a learned route that others remove stays away until it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use braid_api::launcher::{KernelPlan, LearnedVia, RouteChanges};
use ipnet::IpNet;

use super::error::invalid_prefix;
use super::layout::{DEVICE_METRIC, MAIN, SLOTS, WORST_METRIC, table_of};

/// Routing protocol number of learned routes.
pub const PROTOCOL: u8 = 0xB2;

/// The metric of a slot's learned routes into the device: behind those of all plans.
fn metric(slot: u8) -> u32 {
    DEVICE_METRIC + u32::from(SLOTS) + u32::from(slot)
}

/// The metric of a slot's routes over links: before those of all plans.
pub(super) fn link_metric(slot: u8) -> u32 {
    DEVICE_METRIC - u32::from(SLOTS) + u32::from(slot)
}

/// The metric of the `unreachable` behind each.
fn unreachable_metric(slot: u8) -> u32 {
    WORST_METRIC - u32::from(SLOTS) - u32::from(slot)
}

/// The slot that an `unreachable` route of this protocol number belongs to.
pub(super) fn slot_of_metric(metric: u32) -> Option<u8> {
    let behind = WORST_METRIC.checked_sub(u32::from(SLOTS))?;
    u8::try_from(behind.checked_sub(metric)?).ok().filter(|slot| *slot < SLOTS)
}

/// Where a kernel route leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// An ICMP error.
    Unreachable,
    /// As learned.
    Via(LearnedVia),
    /// Over a link, in a run that was killed.
    Left,
}

/// A kernel route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Route {
    /// Destination.
    pub(super) prefix: IpNet,
    /// Routing table.
    pub(super) table: u32,
    /// Lower wins.
    pub(super) metric: u32,
    /// Where it leads.
    pub(super) way: Way,
}

/// A change of the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Creates or replaces.
    Put(Route),
    /// Removes.
    Remove(Route),
}

#[derive(Clone, Copy, Debug)]
struct Held {
    /// Index into [`Learned::vias`]; [`STALE`] for one of a run that was killed.
    via: u16,
    /// Put by the present life of control.
    fresh: bool,
    captured: bool,
}

const STALE: u16 = u16::MAX;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Learned {
    routes: BTreeMap<IpNet, Held>,
    vias: Vec<LearnedVia>,
    peers: BTreeSet<IpAddr>,
    protect: BTreeSet<IpNet>,
    slot: u8,
}

impl Learned {
    /// What a killed run left in the kernel: prefixes of `unreachable` routes, and whether they were captured.
    pub(super) fn adopt(&mut self, slot: u8, found: impl IntoIterator<Item = (IpNet, bool)>) {
        self.slot = slot;
        for (prefix, captured) in found {
            self.routes.entry(prefix).or_insert(Held { via: STALE, fresh: false, captured });
        }
    }

    /// Another life of control.
    pub(super) fn handle_new_control(&mut self) {
        self.routes.values_mut().for_each(|held| held.fresh = false);
    }

    /// Takes changes in: steps that add, then steps that remove.
    pub(super) fn change(&mut self, changes: RouteChanges) -> (Vec<Step>, Vec<Step>) {
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        for put in changes.put {
            let prefix = put.prefix.trunc();
            let is_whole = |interface: &str| !interface.is_empty();
            let usable = match &put.via {
                LearnedVia::Device { source } => {
                    source.is_none_or(|source| source.is_ipv4() == prefix.addr().is_ipv4())
                }
                LearnedVia::Gateway { interface, .. } => is_whole(interface),
            };
            if usable && invalid_prefix(&prefix).is_none() {
                self.put(prefix, put.via, &mut add, &mut remove);
            }
        }
        for prefix in changes.remove {
            self.remove(prefix.trunc(), &mut remove);
        }
        if changes.sweep {
            let old = self.routes.iter().filter(|(_, held)| !held.fresh).map(|(prefix, _)| *prefix);
            for prefix in old.collect::<Vec<_>>() {
                self.remove(prefix, &mut remove);
            }
        }
        (add, remove)
    }

    fn put(&mut self, prefix: IpNet, via: LearnedVia, add: &mut Vec<Step>, remove: &mut Vec<Step>) {
        let Some(index) = self.via_index(&via) else { return };
        let captured = self.is_captured(&prefix);
        let held = Held { via: index, fresh: true, captured };
        let before = self.routes.insert(prefix, held);
        match before {
            Some(before) if before.via == index && before.captured == captured => return,
            Some(before) => {
                // In the same place it is replaced; what has no place any more goes.
                let kept = self.held_routes(prefix, held);
                let gone = self.held_routes(prefix, before).into_iter();
                let same_place = |a: &Route, b: &Route| (a.table, a.metric) == (b.table, b.metric);
                remove.extend(
                    gone.filter(|gone| !kept.iter().any(|kept| same_place(kept, gone))).map(Step::Remove),
                );
            }
            None => {}
        }
        add.extend(self.held_routes(prefix, held).into_iter().map(Step::Put));
    }

    fn remove(&mut self, prefix: IpNet, remove: &mut Vec<Step>) {
        if let Some(held) = self.routes.remove(&prefix) {
            // The way first: what protects goes last.
            remove.extend(self.held_routes(prefix, held).into_iter().rev().map(Step::Remove));
        }
    }

    /// The kernel routes of a prefix: what protects, then the way.
    fn held_routes(&self, prefix: IpNet, held: Held) -> Vec<Route> {
        let captured = held.captured.then(|| table_of(self.slot));
        let table = captured.unwrap_or(MAIN);
        let unreachable =
            Route { prefix, table, metric: unreachable_metric(self.slot), way: Way::Unreachable };
        let metric = metric(self.slot);
        match self.vias.get(usize::from(held.via)) {
            Some(via @ LearnedVia::Device { .. }) => {
                vec![unreachable, Route { prefix, table, metric, way: Way::Via(via.clone()) }]
            }
            Some(via @ LearnedVia::Gateway { .. }) => {
                let metric = link_metric(self.slot);
                let route = |table| Route { prefix, table, metric, way: Way::Via(via.clone()) };
                captured.into_iter().chain([MAIN]).map(route).collect()
            }
            None => vec![unreachable],
        }
    }

    /// There are few; more than fit are refused.
    fn via_index(&mut self, via: &LearnedVia) -> Option<u16> {
        let index = match self.vias.iter().position(|other| other == via) {
            Some(index) => index,
            None => {
                self.vias.push(via.clone());
                self.vias.len() - 1
            }
        };
        u16::try_from(index).ok().filter(|index| *index != STALE)
    }

    fn is_captured(&self, prefix: &IpNet) -> bool {
        let covered = prefix.network()..=prefix.broadcast();
        prefix.prefix_len() == 0 || self.peers.range(covered).next().is_some()
    }

    /// A plan is about to come into force: steps that take prefixes to where they belong under it, before it and
    /// after it.
    pub(super) fn relocate(&mut self, slot: u8, plan: &KernelPlan) -> (Vec<Step>, Vec<Step>) {
        self.slot = slot;
        self.peers = plan.peers.iter().copied().collect();
        self.protect = plan.protect.iter().map(IpNet::trunc).collect();
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let mut concerned: BTreeSet<IpNet> = self.covering_peers();
        concerned.extend(self.routes.iter().filter(|(_, held)| held.captured).map(|(prefix, _)| *prefix));
        for prefix in concerned {
            let Some(held) = self.routes.get(&prefix).copied() else { continue };
            let captured = self.is_captured(&prefix);
            if captured == held.captured || held.via == STALE {
                continue;
            }
            let moved = Held { captured, ..held };
            self.routes.insert(prefix, moved);
            let (now, mut gone) = (self.held_routes(prefix, moved), self.held_routes(prefix, held));
            gone.retain(|route| !now.contains(route));
            before.extend(now.into_iter().map(Step::Put));
            after.extend(gone.into_iter().rev().map(Step::Remove));
        }
        (before, after)
    }

    fn covering_peers(&self) -> BTreeSet<IpNet> {
        let hosts = self.peers.iter().copied().map(IpNet::from);
        let defaults = ["0.0.0.0/0", "::/0"].iter().filter_map(|net| net.parse().ok());
        let covering = hosts.flat_map(wider_or_equal).chain(defaults);
        covering.filter(|net| self.routes.contains_key(net)).collect()
    }

    /// Prefixes with routes into the device that the layout has to know of, with their sources: the captured
    /// ones, and those that cover a protected prefix.
    pub(super) fn known_to_layout(&self) -> BTreeMap<IpNet, Option<IpAddr>> {
        let mut known = self.covering_peers();
        known.extend(self.protect.iter().flat_map(|net| wider_or_equal(*net)));
        let source = |prefix: IpNet| {
            let held = self.routes.get(&prefix)?;
            match self.vias.get(usize::from(held.via))? {
                LearnedVia::Device { source } => Some((prefix, *source)),
                LearnedVia::Gateway { .. } => None,
            }
        };
        known.into_iter().filter_map(source).collect()
    }

    /// Steps that make all of them again, on a device that is new.
    pub(super) fn again(&self) -> Vec<Step> {
        let all = self.routes.iter().flat_map(|(prefix, held)| self.held_routes(*prefix, *held));
        all.map(Step::Put).collect()
    }

    /// Steps that remove all of them.
    pub(super) fn clear(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for prefix in self.routes.keys().copied().collect::<Vec<_>>() {
            self.remove(prefix, &mut steps);
        }
        steps
    }
}

fn wider_or_equal(net: IpNet) -> impl Iterator<Item = IpNet> {
    let lengths = 0..=net.prefix_len();
    lengths.filter_map(move |len| IpNet::new(net.addr(), len).ok()).map(|net| net.trunc())
}

#[cfg(test)]
mod tests {
    use braid_api::launcher::RoutePut;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn device() -> LearnedVia {
        LearnedVia::Device { source: None }
    }

    fn gateway() -> LearnedVia {
        LearnedVia::Gateway { gateway: "10.1.0.254".parse().unwrap(), interface: "lan0".to_owned() }
    }

    fn put(prefix: &str, via: LearnedVia) -> RouteChanges {
        let put = vec![RoutePut { prefix: net(prefix), via }];
        RouteChanges { put, ..RouteChanges::default() }
    }

    fn plan(peers: &[&str]) -> KernelPlan {
        let peers = peers.iter().map(|peer| peer.parse().unwrap()).collect();
        KernelPlan { peers, ..KernelPlan::default() }
    }

    /// The kernel, as far as it matters: routes by place.
    #[derive(Default, PartialEq, Debug)]
    struct Kernel(BTreeMap<(IpNet, u32, u32), Way>);

    impl Kernel {
        fn run(&mut self, steps: impl IntoIterator<Item = Step>) {
            for step in steps {
                match step {
                    Step::Put(route) => {
                        self.0.insert((route.prefix, route.table, route.metric), route.way);
                    }
                    Step::Remove(route) => {
                        let removed = self.0.remove(&(route.prefix, route.table, route.metric));
                        assert!(removed.is_some(), "{route:?} was not there");
                    }
                }
            }
        }

        /// Tables and ways of a prefix, best metric first.
        fn ways(&self, prefix: &str) -> Vec<(u32, Way)> {
            let of = self.0.iter().filter(|((other, ..), _)| *other == net(prefix));
            let mut found: Vec<_> =
                of.map(|((_, table, metric), way)| (*metric, *table, way.clone())).collect();
            found.sort_by_key(|(metric, ..)| *metric);
            found.into_iter().map(|(_, table, way)| (table, way)).collect()
        }
    }

    fn apply(learned: &mut Learned, kernel: &mut Kernel, changes: RouteChanges) {
        let (add, remove) = learned.change(changes);
        kernel.run(add);
        kernel.run(remove);
    }

    #[test]
    fn a_route_into_the_device_has_an_unreachable_behind_it() {
        let (mut learned, mut kernel) = (Learned::default(), Kernel::default());
        learned.relocate(3, &plan(&[]));
        apply(&mut learned, &mut kernel, put("10.2.0.0/16", device()));
        assert_eq!(kernel.ways("10.2.0.0/16"), [(MAIN, Way::Via(device())), (MAIN, Way::Unreachable)]);
        assert_eq!(learned.change(put("10.2.0.0/16", device())), (Vec::new(), Vec::new()));
        apply(&mut learned, &mut kernel, put("10.2.0.0/16", gateway()));
        assert_eq!(kernel.ways("10.2.0.0/16"), [(MAIN, Way::Via(gateway()))]);
        let remove = RouteChanges { remove: vec![net("10.2.0.0/16")], ..RouteChanges::default() };
        apply(&mut learned, &mut kernel, remove);
        assert_eq!(kernel, Kernel::default());
        assert_eq!(learned.routes.len(), 0);
    }

    #[test]
    fn what_is_not_put_again_is_swept() {
        let (mut learned, mut kernel) = (Learned::default(), Kernel::default());
        learned.relocate(0, &plan(&[]));
        for prefix in ["10.2.0.0/16", "10.3.0.0/16"] {
            apply(&mut learned, &mut kernel, put(prefix, device()));
        }
        learned.handle_new_control();
        apply(&mut learned, &mut kernel, put("10.3.0.0/16", device()));
        assert_eq!(kernel.ways("10.2.0.0/16").len(), 2);
        apply(&mut learned, &mut kernel, RouteChanges { sweep: true, ..RouteChanges::default() });
        assert_eq!((kernel.ways("10.2.0.0/16").len(), kernel.ways("10.3.0.0/16").len()), (0, 2));
        kernel.run(learned.clear());
        assert_eq!(kernel, Kernel::default());
    }

    #[test]
    fn what_a_killed_run_left_goes_with_the_sweep_or_is_taken_over() {
        let mut learned = Learned::default();
        learned.relocate(2, &plan(&[]));
        learned.adopt(2, [(net("10.2.0.0/16"), false), (net("10.3.0.0/16"), false)]);
        let mut kernel = Kernel::default();
        kernel.run(learned.again());
        apply(&mut learned, &mut kernel, put("10.3.0.0/16", device()));
        apply(&mut learned, &mut kernel, RouteChanges { sweep: true, ..RouteChanges::default() });
        assert_eq!(kernel.ways("10.2.0.0/16"), []);
        assert_eq!(kernel.ways("10.3.0.0/16").len(), 2);
        assert_eq!(slot_of_metric(unreachable_metric(2)), Some(2));
        assert_eq!(slot_of_metric(WORST_METRIC), None);
        assert_eq!(slot_of_metric(metric(2)), None);
        for slot in 0..SLOTS {
            assert!(0 < link_metric(slot) && link_metric(slot) < DEVICE_METRIC);
            assert!((DEVICE_METRIC + u32::from(SLOTS)..).contains(&metric(slot)));
        }
    }

    #[test]
    fn a_route_that_covers_a_peer_leaves_table_main_and_comes_back() {
        let (mut learned, mut kernel) = (Learned::default(), Kernel::default());
        learned.relocate(1, &plan(&["203.0.113.1"]));
        for prefix in ["203.0.112.0/21", "0.0.0.0/0", "10.0.0.0/8", "::/0"] {
            apply(&mut learned, &mut kernel, put(prefix, device()));
        }
        let table = |kernel: &Kernel, prefix: &str| kernel.ways(prefix)[0].0;
        assert_eq!(table(&kernel, "203.0.112.0/21"), table_of(1));
        assert_eq!(table(&kernel, "0.0.0.0/0"), table_of(1));
        assert_eq!(table(&kernel, "::/0"), table_of(1));
        assert_eq!(table(&kernel, "10.0.0.0/8"), MAIN);
        let known: Vec<_> = learned.known_to_layout().into_keys().collect();
        assert_eq!(known, [net("0.0.0.0/0"), net("203.0.112.0/21"), net("::/0")]);
        // The peer moves: another prefix covers it.
        let (before, after) = learned.relocate(1, &plan(&["10.9.9.9"]));
        kernel.run(before);
        kernel.run(after);
        assert_eq!(table(&kernel, "203.0.112.0/21"), MAIN);
        assert_eq!(table(&kernel, "10.0.0.0/8"), table_of(1));
        assert_eq!(kernel.0.len(), 8);
        // A default route over a link is one for outer packets too, and where rules lead it is as well.
        apply(&mut learned, &mut kernel, put("0.0.0.0/0", gateway()));
        let over = Way::Via(gateway());
        assert_eq!(kernel.ways("0.0.0.0/0"), [(MAIN, over.clone()), (table_of(1), over.clone())]);
        // So is one to what begins to cover a peer, and it leaves no trace.
        apply(&mut learned, &mut kernel, put("10.3.0.0/16", gateway()));
        assert_eq!(kernel.ways("10.3.0.0/16"), [(MAIN, over.clone())]);
        for (peer, ways) in [("10.3.4.5", 2), ("10.9.9.9", 1)] {
            let (before, after) = learned.relocate(1, &plan(&[peer]));
            kernel.run(before);
            kernel.run(after);
            assert_eq!(kernel.ways("10.3.0.0/16").len(), ways, "{peer}");
        }
        kernel.run(learned.clear());
        assert_eq!(kernel, Kernel::default());
    }

    #[test]
    fn what_covers_a_protected_prefix_is_known_to_the_layout() {
        let (mut learned, mut kernel) = (Learned::default(), Kernel::default());
        let plan = KernelPlan { protect: vec![net("10.2.0.0/16")], ..plan(&[]) };
        learned.relocate(0, &plan);
        for prefix in ["10.0.0.0/8", "10.2.3.0/24", "10.3.0.0/16"] {
            apply(&mut learned, &mut kernel, put(prefix, device()));
        }
        assert_eq!(learned.known_to_layout().into_keys().collect::<Vec<_>>(), [net("10.0.0.0/8")]);
    }

    #[test]
    fn nonsense_is_not_taken() {
        let mut learned = Learned::default();
        learned.relocate(0, &plan(&[]));
        let v6 = LearnedVia::Device { source: Some("fd00::1".parse().unwrap()) };
        for (prefix, via) in [("224.0.0.0/4", device()), ("127.0.0.0/8", device()), ("10.0.0.0/8", v6)] {
            assert_eq!(learned.change(put(prefix, via)), (Vec::new(), Vec::new()), "{prefix}");
        }
        assert_eq!(learned.routes.len(), 0);
    }
}

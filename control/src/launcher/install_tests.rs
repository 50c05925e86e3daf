//! What carries the steps of learned routes out, before a kernel that refuses some of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use braid_api::launcher::{IntoDevice, KernelPlan, LearnedVia, NextHop, RouteChanges, RoutePut};
use ipnet::IpNet;

use super::install::{Change, Installer, Routing};
use super::layout::MAIN;
use super::learned::{Learned, Route, Step, Way, link_metric, unreachable_metric};
use super::next_hop;

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(super) const INTO: IntoDevice = IntoDevice { source: None };

pub(super) fn hop(host: u8) -> NextHop {
    NextHop { gateway: [10, 1, 0, host].into(), interface: "lan0".to_owned() }
}

pub(super) fn device() -> LearnedVia {
    LearnedVia { link: None, device: Some(INTO) }
}

pub(super) fn gateway() -> LearnedVia {
    LearnedVia { link: Some(hop(254)), device: None }
}

pub(super) fn both() -> LearnedVia {
    by(254)
}

/// By this router, and by tunnels behind it.
pub(super) fn by(host: u8) -> LearnedVia {
    LearnedVia { link: Some(hop(host)), device: Some(INTO) }
}

pub(super) fn put(prefix: &str, via: LearnedVia) -> RouteChanges {
    let put = vec![RoutePut { prefix: net(prefix), via }];
    RouteChanges { put, ..RouteChanges::default() }
}

pub(super) fn withdraw(hops: impl IntoIterator<Item = NextHop>) -> RouteChanges {
    RouteChanges { withdraw: hops.into_iter().collect(), ..RouteChanges::default() }
}

pub(super) fn plan(peers: &[&str]) -> KernelPlan {
    let peers = peers.iter().map(|peer| peer.parse().unwrap()).collect();
    KernelPlan { peers, ..KernelPlan::default() }
}

/// Prefix, table and metric.
type Place = (IpNet, u32, u32);

/// The kernel, as far as it matters: routes by place, and next-hop objects.
#[derive(Default, Debug)]
pub(super) struct Kernel {
    pub(super) routes: BTreeMap<Place, Way>,
    pub(super) next_hops: BTreeMap<u32, NextHop>,
    /// Objects that another program made.
    pub(super) foreign: BTreeSet<u32>,
    /// Objects that went with their link, of which the launcher has not heard.
    pub(super) gone: BTreeSet<u32>,
    /// Gateways that it takes no object of.
    pub(super) refuses: BTreeSet<IpAddr>,
    pub(super) lacks_objects: bool,
    /// So many times it does not say what there is.
    pub(super) fails: u32,
    /// Routes that it was asked to remove.
    pub(super) removals: u32,
    /// How often it looked through all routes for those by an object that it removed.
    pub(super) searches: u32,
}

/// Where a route leads, whatever the number of its next hop.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum To {
    Unreachable,
    Device,
    Link(NextHop),
}

impl Routing for Kernel {
    fn next_hops(&mut self, _: u8) -> io::Result<Option<BTreeSet<u32>>> {
        self.fail()?;
        Ok((!self.lacks_objects).then(|| self.next_hops.keys().copied().collect()))
    }

    fn learned_routes(&mut self, _: u8) -> io::Result<Vec<Route>> {
        self.fail()?;
        let routes = self.routes.iter();
        let route = |(&(prefix, table, metric), &way): (&Place, &Way)| Route { prefix, table, metric, way };
        Ok(routes.map(route).collect())
    }

    fn put_next_hop(&mut self, id: u32, next_hop: &NextHop) -> io::Result<()> {
        assert!(!self.lacks_objects, "asked for what it does not know of");
        if self.foreign.contains(&id) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if self.refuses.contains(&next_hop.gateway) {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        assert_eq!(self.next_hops.insert(id, next_hop.clone()), None, "{id} is there");
        self.gone.remove(&id);
        Ok(())
    }

    fn remove_next_hop(&mut self, id: u32) -> io::Result<()> {
        if self.gone.remove(&id) {
            return Ok(());
        }
        assert!(self.next_hops.remove(&id).is_some(), "{id} is not ours or not there");
        let before = self.routes.len();
        self.routes.retain(|_, way| *way != Way::NextHop(id));
        self.searches += u32::from(self.routes.len() < before);
        Ok(())
    }

    fn change_routes<'r>(
        &mut self,
        changes: &[Change<'r>],
        _: u32,
    ) -> io::Result<Vec<(&'r Route, io::Error)>> {
        let mut refused = Vec::new();
        for change in changes {
            let (Change::Put(route) | Change::Remove(route)) = *change;
            let place = (route.prefix, route.table, route.metric);
            match change {
                Change::Put(Route { way, .. }) => {
                    if let Way::NextHop(id) = way
                        && !self.next_hops.contains_key(id)
                    {
                        assert!(self.gone.contains(id), "{route:?}");
                        refused.push((route, io::ErrorKind::InvalidInput.into()));
                        continue;
                    }
                    self.routes.insert(place, *way);
                }
                Change::Remove(Route { way, .. }) => {
                    self.removals += 1;
                    let removed = self.routes.remove(&place);
                    let is_refused = matches!(way, Way::NextHop(id) if !self.next_hops.contains_key(id));
                    assert!(is_refused || removed == Some(*way), "{route:?}");
                }
            }
        }
        Ok(refused)
    }
}

impl Kernel {
    fn fail(&mut self) -> io::Result<()> {
        match self.fails.checked_sub(1) {
            Some(left) => {
                self.fails = left;
                Err(io::ErrorKind::Other.into())
            }
            None => Ok(()),
        }
    }

    /// Behind every route into the device stands an `unreachable`.
    fn check(&self) {
        let devices = self.routes.iter().filter(|(_, way)| matches!(way, Way::Device(_)));
        for ((prefix, table, _), _) in devices {
            let here = (*prefix, *table, 0)..=(*prefix, *table, u32::MAX);
            let last = self.routes.range(here).next_back().unwrap().1;
            assert_eq!(*last, Way::Unreachable, "{prefix}");
        }
    }

    fn to(&self, way: Way) -> To {
        match way {
            Way::Unreachable => To::Unreachable,
            Way::Device(_) => To::Device,
            Way::NextHop(id) => To::Link(self.next_hops[&id].clone()),
        }
    }

    /// Tables and ways of a prefix, best metric first.
    pub(super) fn ways(&self, prefix: &str) -> Vec<(u32, To)> {
        let of = self.routes.iter().filter(|((other, ..), _)| *other == net(prefix));
        let mut found: Vec<_> =
            of.map(|((_, table, metric), way)| (*metric, *table, self.to(*way))).collect();
        found.sort_by_key(|(metric, ..)| *metric);
        found.into_iter().map(|(_, table, to)| (table, to)).collect()
    }

    /// All of it, whatever the numbers of the next hops.
    pub(super) fn picture(&self) -> BTreeMap<Place, To> {
        self.routes.iter().map(|(place, way)| (*place, self.to(*way))).collect()
    }

    /// The link goes, with all that is by it.
    pub(super) fn lose_links(&mut self) {
        self.gone.extend(std::mem::take(&mut self.next_hops).into_keys());
        self.routes.retain(|_, way| !matches!(way, Way::NextHop(_)));
    }
}

/// What the launcher does with them.
#[derive(Default)]
pub(super) struct Rig {
    pub(super) learned: Learned,
    pub(super) installer: Installer,
    pub(super) kernel: Kernel,
}

impl Rig {
    /// With a plan that has these peers.
    pub(super) fn new(slot: u8, peers: &[&str]) -> Self {
        let mut rig = Rig::default();
        rig.relocate(slot, &plan(peers));
        rig
    }

    pub(super) fn run(&mut self, steps: &[Step]) {
        self.installer.run(&mut self.kernel, steps, 0).unwrap();
        self.kernel.check();
        assert_eq!(self.kernel.searches, 0);
    }

    pub(super) fn withdraw(&mut self, failed: &[NextHop]) -> Vec<Step> {
        let steps = self.learned.withdraw(failed);
        self.installer.run(&mut self.kernel, &steps, 0).unwrap();
        self.kernel.check();
        self.kernel.searches = 0;
        steps
    }

    /// In the order in which the launcher does it.
    pub(super) fn apply(&mut self, changes: RouteChanges) {
        self.withdraw(&changes.withdraw);
        let (add, remove) = self.learned.change(changes);
        self.run(&add);
        self.run(&remove);
    }

    pub(super) fn relocate(&mut self, slot: u8, plan: &KernelPlan) {
        let (before, after) = self.learned.relocate(slot, plan);
        self.run(&before);
        self.run(&after);
    }

    /// The launcher has heard that this link may be up, or any.
    pub(super) fn renew(&mut self, interface: Option<&str>) -> Vec<Step> {
        let there = self.kernel.next_hops.keys().copied().collect();
        let again = self.learned.next_hops_again(interface, &there);
        self.kernel.removals = 0;
        self.installer.renew(&mut self.kernel, &again, 0).unwrap();
        self.kernel.check();
        assert_eq!((self.kernel.removals, self.kernel.searches), (0, 0));
        again
    }

    pub(super) fn adopt(&mut self) -> io::Result<()> {
        let adopted = self.installer.adopt(&mut self.kernel, 2, &mut self.learned);
        assert_eq!(self.kernel.searches, 0);
        adopted
    }

    /// All of it goes, but what others made.
    pub(super) fn clear(&mut self) {
        let steps = self.learned.clear();
        self.run(&steps);
        assert_eq!((self.kernel.routes.len(), self.kernel.next_hops.len()), (0, 0));
        assert!(self.learned.is_empty());
    }
}

/// Lines of the log meanwhile.
fn logged(act: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, act);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn an_object_that_was_there_first_is_not_removed() {
    let mut rig = Rig::new(2, &[]);
    rig.kernel.foreign = [next_hop::id(2, 0)].into();
    rig.apply(put("10.2.0.0/16", both()));
    assert_eq!((rig.kernel.ways("10.2.0.0/16").len(), rig.kernel.next_hops.len()), (2, 0));
    // The model sees to it that no foreign one goes.
    rig.apply(withdraw([hop(254)]));
    rig.apply(put("10.2.0.0/16", both()));
    rig.apply(RouteChanges { remove: vec![net("10.2.0.0/16")], ..RouteChanges::default() });
    rig.apply(put("10.2.0.0/16", gateway()));
    // Its maker removes it: the number is ours.
    rig.kernel.foreign.clear();
    rig.renew(None);
    assert_eq!(rig.kernel.ways("10.2.0.0/16"), [(MAIN, To::Link(hop(254)))]);
    rig.clear();
}

#[test]
fn what_moves_to_a_next_hop_that_is_refused_leaves_the_one_before() {
    let mut rig = Rig::new(2, &[]);
    for prefix in ["10.2.0.0/16", "10.3.0.0/16"] {
        rig.apply(put(prefix, by(1)));
    }
    rig.kernel.refuses = [hop(2).gateway].into();
    rig.apply(put("10.3.0.0/16", by(2)));
    assert_eq!(rig.kernel.ways("10.3.0.0/16")[0], (MAIN, To::Device));
    assert_eq!(rig.kernel.ways("10.2.0.0/16")[0], (MAIN, To::Link(hop(1))));
    rig.kernel.refuses.clear();
    rig.renew(None);
    assert_eq!(rig.kernel.ways("10.3.0.0/16")[0], (MAIN, To::Link(hop(2))));
    rig.clear();
}

/// Its object went with its link, and nobody has said so yet.
#[test]
fn what_moves_to_a_next_hop_that_has_just_gone_leaves_the_one_before() {
    let mut rig = Rig::new(2, &[]);
    rig.apply(put("10.2.0.0/16", by(1)));
    rig.apply(put("10.3.0.0/16", by(2)));
    let (id, _) = rig.kernel.next_hops.iter().find(|(_, link)| **link == hop(2)).unwrap();
    let id = *id;
    rig.kernel.next_hops.remove(&id);
    rig.kernel.gone.insert(id);
    rig.kernel.routes.retain(|_, way| *way != Way::NextHop(id));
    rig.apply(put("10.2.0.0/16", by(2)));
    assert_eq!(rig.kernel.ways("10.2.0.0/16")[0], (MAIN, To::Device));
    rig.renew(None);
    assert_eq!(rig.kernel.ways("10.2.0.0/16")[0], (MAIN, To::Link(hop(2))));
    rig.clear();
}

#[test]
fn a_next_hop_that_is_refused_is_told_of_once_until_it_is_taken_or_removed() {
    let mut rig = Rig::new(2, &[]);
    rig.kernel.refuses = [hop(254).gateway].into();
    let told = logged(|| {
        rig.apply(put("10.2.0.0/16", gateway()));
        rig.apply(put("10.3.0.0/16", gateway()));
        for _ in 0..10 {
            rig.renew(Some("lan0"));
        }
    });
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("10.1.0.254 on lan0"), "{told:?}");
    let told = logged(|| {
        rig.kernel.refuses.clear();
        rig.renew(Some("lan0"));
        assert_eq!(rig.kernel.routes.len(), 2);
        rig.kernel.refuses = [hop(254).gateway].into();
        rig.kernel.lose_links();
        rig.renew(Some("lan0"));
        rig.apply(withdraw([hop(254)]));
        rig.apply(put("10.2.0.0/16", gateway()));
    });
    assert_eq!(told.len(), 2, "{told:?}");
    rig.clear();
}

#[test]
fn a_kernel_without_next_hop_objects_is_asked_for_none_and_told_of_once() {
    let mut rig = Rig::new(2, &[]);
    rig.kernel.lacks_objects = true;
    let told = logged(|| {
        rig.adopt().unwrap();
        for host in 0..10 {
            let prefix = format!("10.{host}.0.0/16");
            rig.apply(put(&prefix, by(host)));
            assert_eq!(rig.kernel.ways(&prefix).len(), 2);
        }
        rig.renew(None);
        rig.adopt().unwrap();
        rig.apply(withdraw([hop(1)]));
    });
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("5.3"), "{told:?}");
}

#[test]
fn what_a_killed_run_left_is_looked_for_until_the_kernel_says() {
    for fails in 0..=2 {
        let mut rig = Rig::new(2, &[]);
        let place = |prefix: &str, metric| (net(prefix), MAIN, metric);
        rig.kernel.next_hops = [(next_hop::id(2, 7), hop(7)), (next_hop::id(2, 9), hop(9))].into();
        rig.kernel.routes = [
            (place("10.2.0.0/16", link_metric(2)), Way::NextHop(next_hop::id(2, 7))),
            (place("10.2.0.0/16", unreachable_metric(2)), Way::Unreachable),
            // By a gateway of its own, as versions before these objects made it.
            (place("10.3.0.0/16", link_metric(2)), Way::NextHop(0)),
        ]
        .into();
        rig.kernel.fails = fails;
        for _ in 0..fails {
            assert!(rig.adopt().is_err());
        }
        rig.adopt().unwrap();
        assert_eq!(rig.kernel.next_hops.len(), 0, "after {fails}");
        assert_eq!(rig.kernel.ways("10.2.0.0/16"), [(MAIN, To::Unreachable)]);
        assert_eq!(rig.kernel.ways("10.3.0.0/16"), []);
        // Once only: what is put from now on is ours.
        rig.apply(put("10.3.0.0/16", gateway()));
        rig.adopt().unwrap();
        assert_eq!(rig.kernel.ways("10.3.0.0/16"), [(MAIN, To::Link(hop(254)))]);
        rig.apply(RouteChanges { sweep: true, ..RouteChanges::default() });
        assert_eq!(rig.kernel.ways("10.2.0.0/16"), []);
        rig.clear();
    }
}

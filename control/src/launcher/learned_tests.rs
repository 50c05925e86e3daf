//! Learned routes, and a kernel that does what it is told.

use std::collections::{BTreeMap, BTreeSet};

use braid_api::launcher::{IntoDevice, KernelPlan, LearnedVia, NextHop, RouteChanges, RoutePut};
use ipnet::IpNet;
use proptest::prelude::*;

use super::layout::{DEVICE_METRIC, MAIN, SLOTS, WORST_METRIC, table_of};
use super::learned::{
    Learned, MAX_OVER_LINKS, Step, Way, link_metric, metric, slot_of_metric, unreachable_metric,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

const INTO: IntoDevice = IntoDevice { source: None };

fn hop(host: u8) -> NextHop {
    NextHop { gateway: [10, 1, 0, host].into(), interface: "lan0".to_owned() }
}

fn device() -> LearnedVia {
    LearnedVia { link: None, device: Some(INTO) }
}

fn gateway() -> LearnedVia {
    LearnedVia { link: Some(hop(254)), device: None }
}

fn both() -> LearnedVia {
    LearnedVia { device: Some(INTO), ..gateway() }
}

fn put(prefix: &str, via: LearnedVia) -> RouteChanges {
    let put = vec![RoutePut { prefix: net(prefix), via }];
    RouteChanges { put, ..RouteChanges::default() }
}

fn withdraw(hops: impl IntoIterator<Item = NextHop>) -> RouteChanges {
    RouteChanges { withdraw: hops.into_iter().collect(), ..RouteChanges::default() }
}

fn plan(peers: &[&str]) -> KernelPlan {
    let peers = peers.iter().map(|peer| peer.parse().unwrap()).collect();
    KernelPlan { peers, ..KernelPlan::default() }
}

/// The kernel, as far as it matters: routes by place, and next-hop objects.
#[derive(Default, PartialEq, Debug)]
struct Kernel {
    routes: BTreeMap<(IpNet, u32, u32), Way>,
    next_hops: BTreeMap<u32, NextHop>,
}

/// Where a route leads, whatever the number of its next hop.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum To {
    Unreachable,
    Device,
    Link(NextHop),
}

impl Kernel {
    fn run(&mut self, steps: impl IntoIterator<Item = Step>) {
        for step in steps {
            match step {
                Step::PutNextHop(id, next_hop) => {
                    assert_eq!(self.next_hops.insert(id, next_hop), None, "{id} is there");
                }
                Step::RemoveNextHop(id) => {
                    assert!(self.next_hops.remove(&id).is_some(), "{id} was not there");
                    self.routes.retain(|_, way| *way != Way::NextHop(id));
                }
                Step::Put(route) => {
                    if let Way::NextHop(id) = route.way {
                        assert!(self.next_hops.contains_key(&id), "{route:?}");
                    }
                    self.routes.insert((route.prefix, route.table, route.metric), route.way);
                }
                Step::Remove(route) => {
                    let removed = self.routes.remove(&(route.prefix, route.table, route.metric));
                    assert_eq!(removed, Some(route.way), "{route:?}");
                }
            }
        }
        self.check();
    }

    /// Behind every route into the device stands an `unreachable`.
    fn check(&self) {
        let devices = self.routes.iter().filter(|(_, way)| matches!(way, Way::Device(_)));
        for ((prefix, table, _), _) in devices {
            let behind = self.routes.iter().filter(|((p, t, _), _)| (p, t) == (prefix, table));
            let (_, last) = behind.max_by_key(|((.., metric), _)| *metric).unwrap();
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
    fn ways(&self, prefix: &str) -> Vec<(u32, To)> {
        let of = self.routes.iter().filter(|((other, ..), _)| *other == net(prefix));
        let mut found: Vec<_> =
            of.map(|((_, table, metric), way)| (*metric, *table, self.to(*way))).collect();
        found.sort_by_key(|(metric, ..)| *metric);
        found.into_iter().map(|(_, table, to)| (table, to)).collect()
    }

    /// All of it, whatever the numbers of the next hops.
    fn picture(&self) -> BTreeMap<(IpNet, u32, u32), To> {
        self.routes.iter().map(|(place, way)| (*place, self.to(*way))).collect()
    }

    /// The link goes, with all that is by it.
    fn lose_links(&mut self) {
        self.next_hops.clear();
        self.routes.retain(|_, way| !matches!(way, Way::NextHop(_)));
    }
}

/// In the order in which the launcher does it.
fn apply(learned: &mut Learned, kernel: &mut Kernel, changes: RouteChanges) {
    kernel.run(learned.withdraw(&changes.withdraw));
    let (add, remove) = learned.change(changes);
    kernel.run(add);
    kernel.run(remove);
}

fn relocate(learned: &mut Learned, kernel: &mut Kernel, slot: u8, plan: &KernelPlan) {
    let (before, after) = learned.relocate(slot, plan);
    kernel.run(before);
    kernel.run(after);
}

#[test]
fn a_route_into_the_device_has_an_unreachable_behind_it() {
    let (mut learned, mut kernel) = (Learned::default(), Kernel::default());
    learned.relocate(3, &plan(&[]));
    apply(&mut learned, &mut kernel, put("10.2.0.0/16", device()));
    assert_eq!(kernel.ways("10.2.0.0/16"), [(MAIN, To::Device), (MAIN, To::Unreachable)]);
    assert_eq!(learned.change(put("10.2.0.0/16", device())), (Vec::new(), Vec::new()));
    apply(&mut learned, &mut kernel, put("10.2.0.0/16", gateway()));
    assert_eq!(kernel.ways("10.2.0.0/16"), [(MAIN, To::Link(hop(254)))]);
    let remove = RouteChanges { remove: vec![net("10.2.0.0/16")], ..RouteChanges::default() };
    apply(&mut learned, &mut kernel, remove);
    assert_eq!(kernel, Kernel::default());
    assert!(learned.is_empty());
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
    relocate(&mut learned, &mut kernel, 1, &plan(&["10.9.9.9"]));
    assert_eq!(table(&kernel, "203.0.112.0/21"), MAIN);
    assert_eq!(table(&kernel, "10.0.0.0/8"), table_of(1));
    assert_eq!(kernel.routes.len(), 8);
    // A default route over a link is one for outer packets too, and where rules lead it is as well.
    apply(&mut learned, &mut kernel, put("0.0.0.0/0", gateway()));
    let over = To::Link(hop(254));
    assert_eq!(kernel.ways("0.0.0.0/0"), [(MAIN, over.clone()), (table_of(1), over.clone())]);
    // So is one to what begins to cover a peer, and it leaves no trace.
    apply(&mut learned, &mut kernel, put("10.3.0.0/16", gateway()));
    assert_eq!(kernel.ways("10.3.0.0/16"), [(MAIN, over.clone())]);
    for (peer, ways) in [("10.3.4.5", 2), ("10.9.9.9", 1)] {
        relocate(&mut learned, &mut kernel, 1, &plan(&[peer]));
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
    let v6 = Some(IntoDevice { source: Some("fd00::1".parse().unwrap()) });
    let nameless = Some(NextHop { interface: String::new(), ..hop(1) });
    for (prefix, via) in [
        ("224.0.0.0/4", device()),
        ("127.0.0.0/8", device()),
        ("10.0.0.0/8", LearnedVia { link: None, device: v6 }),
        ("10.0.0.0/8", LearnedVia { link: Some(hop(1)), device: v6 }),
        ("10.0.0.0/8", LearnedVia { link: nameless, device: Some(INTO) }),
        ("10.0.0.0/8", LearnedVia::default()),
    ] {
        assert_eq!(learned.change(put(prefix, via)), (Vec::new(), Vec::new()), "{prefix}");
    }
    assert!(learned.is_empty());
}

#[test]
fn a_next_hop_that_fails_is_one_step_and_leaves_what_stands_behind() {
    let (mut learned, mut kernel) = (Learned::default(), Kernel::default());
    learned.relocate(1, &plan(&["203.0.113.1"]));
    for prefix in ["10.2.0.0/16", "10.3.0.0/16", "203.0.112.0/21"] {
        apply(&mut learned, &mut kernel, put(prefix, both()));
    }
    apply(&mut learned, &mut kernel, put("10.4.0.0/16", gateway()));
    let (over, behind) = (To::Link(hop(254)), [To::Device, To::Unreachable]);
    let table = |table: u32| behind.clone().map(|to| (table, to));
    assert_eq!(kernel.ways("10.2.0.0/16"), [&[(MAIN, over.clone())], &table(MAIN)[..]].concat());
    let captured = [&[(MAIN, over.clone()), (table_of(1), over.clone())], &table(table_of(1))[..]].concat();
    assert_eq!(kernel.ways("203.0.112.0/21"), captured);
    // What is captured has its rules before the link fails.
    assert_eq!(learned.known_to_layout().len(), 1);
    // One for each gateway, link and what stands behind.
    let steps = learned.withdraw(&[hop(254), hop(253)]);
    assert_eq!(steps.len(), 2, "{steps:?}");
    kernel.run(steps);
    assert_eq!(kernel.ways("10.2.0.0/16"), table(MAIN));
    assert_eq!(kernel.ways("203.0.112.0/21"), table(table_of(1)));
    assert_eq!((kernel.ways("10.4.0.0/16"), kernel.next_hops.len()), (Vec::new(), 0));
    // Nothing is left to be done of what is said of each afterwards.
    for prefix in ["10.2.0.0/16", "203.0.112.0/21"] {
        assert_eq!(learned.change(put(prefix, device())), (Vec::new(), Vec::new()));
    }
    let remove = RouteChanges { remove: vec![net("10.4.0.0/16")], ..RouteChanges::default() };
    assert_eq!(learned.change(remove), (Vec::new(), Vec::new()));
    // The same way again is a new object.
    apply(&mut learned, &mut kernel, put("10.2.0.0/16", both()));
    assert_eq!(kernel.ways("10.2.0.0/16")[0], (MAIN, over.clone()));
    // One that is put back before the launcher has heard of each is none of the old one's.
    apply(&mut learned, &mut kernel, withdraw([hop(254)]));
    apply(&mut learned, &mut kernel, put("10.3.0.0/16", both()));
    assert_eq!((kernel.ways("10.2.0.0/16").len(), kernel.ways("10.3.0.0/16").len()), (2, 3));
    kernel.run(learned.clear());
    assert_eq!(kernel, Kernel::default());
}

#[test]
fn moving_between_gateways_uses_few_numbers() {
    let (mut learned, mut kernel) = (Learned::default(), Kernel::default());
    learned.relocate(0, &plan(&[]));
    let via = |host: u32| LearnedVia { link: Some(hop(host as u8)), device: Some(INTO) };
    let mut numbers = BTreeSet::new();
    for host in 0..1000 {
        apply(&mut learned, &mut kernel, put("10.2.0.0/16", via(host % 200)));
        assert_eq!(kernel.next_hops.len(), 1);
        assert_eq!(kernel.ways("10.2.0.0/16").len(), 3);
        numbers.extend(kernel.next_hops.keys().copied());
        if host % 3 == 0 {
            apply(&mut learned, &mut kernel, withdraw([hop((host % 200) as u8)]));
        }
    }
    assert!(numbers.len() <= 2, "{numbers:?}");
}

#[test]
fn what_the_kernel_removed_with_a_link_is_made_again() {
    let (mut learned, mut kernel) = (Learned::default(), Kernel::default());
    learned.relocate(1, &plan(&["203.0.113.1"]));
    let other = LearnedVia { link: Some(NextHop { interface: "dx0".to_owned(), ..hop(9) }), device: None };
    apply(&mut learned, &mut kernel, put("203.0.112.0/21", both()));
    apply(&mut learned, &mut kernel, put("10.2.0.0/16", gateway()));
    apply(&mut learned, &mut kernel, put("10.3.0.0/16", other));
    let whole = kernel.picture();
    kernel.lose_links();
    assert!(learned.has_next_hops(Some("lan0")) && !learned.has_next_hops(Some("eth0")));
    let there = |kernel: &Kernel| kernel.next_hops.keys().copied().collect();
    kernel.run(learned.next_hops_again(Some("lan0"), &there(&kernel)));
    assert_eq!(kernel.next_hops.len(), 2);
    kernel.run(learned.next_hops_again(None, &there(&kernel)));
    assert_eq!(kernel.picture(), whole);
    assert_eq!(learned.next_hops_again(None, &there(&kernel)), []);
}

const PREFIXES: [&str; 5] = ["0.0.0.0/0", "10.0.0.0/8", "10.2.0.0/16", "203.0.112.0/21", "::/0"];
const PEERS: [&str; 4] = ["203.0.113.1", "10.2.0.1", "10.9.0.1", "2001:db8::1"];

/// What control knows: the ways of prefixes, as it has said them, less what it has withdrawn.
#[derive(Clone, Debug)]
enum Act {
    Put(usize, LearnedVia),
    Remove(usize),
    Withdraw(u8),
    Relocate(Vec<usize>),
    /// Another life of control, which says again only what is in the mask.
    NewControl(u8),
    /// The link goes and comes back, and nobody but the launcher knows.
    Flap,
}

fn any_act() -> impl Strategy<Value = Act> {
    let prefix = 0..PREFIXES.len();
    let link = prop::option::of((0_u8..3).prop_map(hop));
    let via = (link, any::<bool>())
        .prop_map(|(link, device)| LearnedVia { link, device: device.then_some(INTO) })
        .prop_filter("a way", |via| *via != LearnedVia::default());
    prop_oneof![
        6 => (prefix.clone(), via).prop_map(|(prefix, via)| Act::Put(prefix, via)),
        2 => prefix.prop_map(Act::Remove),
        2 => (0_u8..3).prop_map(Act::Withdraw),
        1 => prop::collection::vec(0..PEERS.len(), 0..3).prop_map(Act::Relocate),
        1 => any::<u8>().prop_map(Act::NewControl),
        1 => Just(Act::Flap),
    ]
}

proptest! {
    #[test]
    fn any_way_to_a_state_leads_to_the_same_kernel(acts in prop::collection::vec(any_act(), 0..40)) {
        let (mut learned, mut kernel) = (Learned::default(), Kernel::default());
        let mut said: BTreeMap<usize, LearnedVia> = BTreeMap::new();
        let mut last_plan = plan(&[]);
        relocate(&mut learned, &mut kernel, 5, &last_plan);
        for act in acts {
            match act {
                Act::Put(prefix, via) => {
                    apply(&mut learned, &mut kernel, put(PREFIXES[prefix], via.clone()));
                    said.insert(prefix, via);
                }
                Act::Remove(prefix) => {
                    let remove = vec![net(PREFIXES[prefix])];
                    apply(&mut learned, &mut kernel, RouteChanges { remove, ..RouteChanges::default() });
                    said.remove(&prefix);
                }
                Act::Withdraw(host) => {
                    apply(&mut learned, &mut kernel, withdraw([hop(host)]));
                    for via in said.values_mut() {
                        via.link.take_if(|link| *link == hop(host));
                    }
                }
                Act::Relocate(peers) => {
                    let peers: Vec<&str> = peers.into_iter().map(|peer| PEERS[peer]).collect();
                    last_plan = plan(&peers);
                    relocate(&mut learned, &mut kernel, 5, &last_plan);
                }
                Act::NewControl(mask) => {
                    learned.handle_new_control();
                    said.retain(|prefix, via| mask & (1 << prefix) != 0 && *via != LearnedVia::default());
                    for (prefix, via) in &said {
                        apply(&mut learned, &mut kernel, put(PREFIXES[*prefix], via.clone()));
                    }
                    apply(&mut learned, &mut kernel, RouteChanges { sweep: true, ..RouteChanges::default() });
                }
                Act::Flap => {
                    kernel.lose_links();
                    kernel.run(learned.next_hops_again(Some("lan0"), &BTreeSet::new()));
                }
            }
        }
        let (mut fresh, mut model) = (Learned::default(), Kernel::default());
        relocate(&mut fresh, &mut model, 5, &last_plan);
        for (prefix, via) in said.into_iter().filter(|(_, via)| *via != LearnedVia::default()) {
            apply(&mut fresh, &mut model, put(PREFIXES[prefix], via));
        }
        prop_assert_eq!(kernel.picture(), model.picture());
        prop_assert_eq!(kernel.next_hops.len(), model.next_hops.len());
        prop_assert_eq!(learned.known_to_layout(), fresh.known_to_layout());
        kernel.run(learned.clear());
        prop_assert_eq!(kernel, Kernel::default());
    }
}

#[test]
fn one_way_over_a_link_too_many_is_refused_and_what_is_behind_it_carries() {
    let (mut learned, mut kernel) = (Learned::default(), Kernel::default());
    learned.relocate(1, &plan(&[]));
    let host = |index: usize| [11, (index >> 14) as u8, (index >> 6) as u8, (index << 2) as u8];
    let prefix = |index: usize| IpNet::new(host(index).into(), 30).unwrap();
    let via = |index: usize, device| LearnedVia {
        link: Some(NextHop { gateway: host(index).into(), interface: "lan0".to_owned() }),
        device,
    };
    let puts = |range: core::ops::Range<usize>, device| RouteChanges {
        put: range.map(|index| RoutePut { prefix: prefix(index), via: via(index, device) }).collect(),
        ..RouteChanges::default()
    };
    apply(&mut learned, &mut kernel, puts(0..MAX_OVER_LINKS, None));
    assert_eq!((kernel.next_hops.len(), learned.take_refused()), (MAX_OVER_LINKS, None));
    let last = MAX_OVER_LINKS;
    apply(&mut learned, &mut kernel, puts(last..last + 1, Some(INTO)));
    apply(&mut learned, &mut kernel, puts(last + 1..last + 2, None));
    assert_eq!(kernel.next_hops.len(), MAX_OVER_LINKS);
    let ways = |kernel: &Kernel, index| kernel.ways(&prefix(index).to_string());
    assert_eq!(ways(&kernel, last), [(MAIN, To::Device), (MAIN, To::Unreachable)]);
    assert_eq!(ways(&kernel, last + 1), []);
    assert_eq!((learned.take_refused(), learned.take_refused()), (Some(prefix(last)), None));
    // One that has a number may have more prefixes, and who had one may not keep what is no longer so.
    apply(
        &mut learned,
        &mut kernel,
        RouteChanges {
            put: vec![
                RoutePut { prefix: prefix(last + 1), via: via(0, None) },
                RoutePut { prefix: prefix(1), via: via(last, None) },
            ],
            ..RouteChanges::default()
        },
    );
    assert_eq!(ways(&kernel, last + 1).len(), 1);
    assert_eq!((ways(&kernel, 1), kernel.next_hops.len()), (vec![], MAX_OVER_LINKS - 1));
    kernel.run(learned.clear());
    assert_eq!(kernel, Kernel::default());
    assert!(learned.is_empty());
}

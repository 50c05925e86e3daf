//! The tables: what neighbors send, what is chosen, what is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use braid_bgp::{
    Announcement, Attributes, Family, Nlri, RouteLimit, Update,
    policy::{PrefixFilter, PrefixMatch},
    rib::{
        Change, Chosen, ImportSettings, MAX_PATHS, NeighborId, Notice, Resolver, Rib,
        decision::{Candidate, DecisionSettings, Multipath, Reason, decide},
    },
};
use ipnet::IpNet;
use proptest::prelude::*;

use crate::{Everything, address, announce, attributes, net, withdraw};

const A: NeighborId = NeighborId(1);
const B: NeighborId = NeighborId(2);
const LOCAL_AS: u32 = 65000;

/// Two external neighbors, 10.0.0.1 and 10.0.0.2.
fn rib() -> Rib {
    let mut rib = Rib::new(LOCAL_AS, [9, 9, 9, 9].into(), DecisionSettings::default());
    for (neighbor, last) in [(A, 1), (B, 2)] {
        rib.put_neighbor(neighbor, ImportSettings::external());
        rib.established(neighbor, Ipv4Addr::new(1, 1, 1, last), address(last));
    }
    rib
}

fn changes(rib: &mut Rib) -> Vec<(String, Vec<(u32, u32)>)> {
    let changes = rib.decide(&Everything, usize::MAX);
    assert!(!rib.pending());
    let paths = |change: &Change| change.paths.iter().map(|path| (path.neighbor.0, path.weight)).collect();
    changes.iter().map(|change| (change.prefix.to_string(), paths(change))).collect()
}

fn one(prefix: &str, paths: &[(u32, u32)]) -> Vec<(String, Vec<(u32, u32)>)> {
    vec![(prefix.to_string(), paths.to_vec())]
}

#[test]
fn a_route_comes_is_shared_falls_back_and_goes() {
    let mut rib = rib();
    rib.update(A, &announce(&["10.1.0.0/16"], attributes(&[1, 7], 1)));
    assert_eq!(changes(&mut rib), one("10.1.0.0/16", &[(1, 1)]));
    rib.update(B, &announce(&["10.1.0.0/16"], attributes(&[1, 7], 2)));
    assert_eq!(changes(&mut rib), one("10.1.0.0/16", &[(1, 1), (2, 1)]));
    // The same once more is no change.
    rib.update(B, &announce(&["10.1.0.0/16"], attributes(&[1, 7], 2)));
    assert_eq!(changes(&mut rib), []);
    // AWS's maintenance: a lower MED on the healthy tunnel.
    rib.update(B, &announce(&["10.1.0.0/16"], Attributes { med: Some(100), ..attributes(&[1, 7], 2) }));
    assert_eq!(changes(&mut rib), one("10.1.0.0/16", &[(1, 1)]));
    rib.update(A, &withdraw(&["10.1.0.0/16"]));
    assert_eq!(changes(&mut rib), one("10.1.0.0/16", &[(2, 1)]));
    rib.down(B, &[]);
    assert_eq!(changes(&mut rib), one("10.1.0.0/16", &[]));
    assert!(rib.is_empty());
}

#[test]
fn what_comes_and_goes_between_two_decisions_was_never_there() {
    let mut rib = rib();
    rib.update(A, &announce(&["10.1.0.0/16"], attributes(&[1], 1)));
    rib.update(A, &withdraw(&["10.1.0.0/16", "10.2.0.0/16"]));
    assert!(!rib.pending() && rib.is_empty());
    assert_eq!(changes(&mut rib), []);
}

#[test]
fn weights_are_the_neighbors_or_the_link_bandwidths() {
    let mut rib = rib();
    rib.put_neighbor(A, ImportSettings { weight: 3, ..ImportSettings::external() });
    let bandwidth = |bits: f32| (0x4004_fde8_u64) << 32 | u64::from((bits / 8.0).to_bits());
    let with = |communities: &[u64], last| Attributes {
        extended_communities: communities.to_vec(),
        ..attributes(&[1], last)
    };
    rib.update(A, &announce(&["10.1.0.0/16"], with(&[bandwidth(1e9)], 1)));
    rib.update(B, &announce(&["10.1.0.0/16"], with(&[], 2)));
    assert_eq!(changes(&mut rib), one("10.1.0.0/16", &[(1, 3), (2, 1)]));
    rib.update(B, &announce(&["10.1.0.0/16"], with(&[bandwidth(5e9)], 2)));
    assert_eq!(changes(&mut rib), one("10.1.0.0/16", &[(1, 200), (2, 1000)]));
    // Nonsense says nothing.
    rib.update(B, &announce(&["10.1.0.0/16"], with(&[bandwidth(f32::NAN), bandwidth(-1.0)], 2)));
    assert_eq!(changes(&mut rib), one("10.1.0.0/16", &[(1, 3), (2, 1)]));
    // Another weight is another choice, of chosen paths only.
    rib.put_neighbor(B, ImportSettings { weight: 9, ..ImportSettings::external() });
    assert_eq!(changes(&mut rib), one("10.1.0.0/16", &[(1, 3), (2, 9)]));
}

#[test]
fn our_own_as_our_own_routes_and_what_does_not_pass_is_not_chosen() {
    let mut rib = rib();
    let filter = PrefixFilter::only(["10.0.0.0/8 le 24".parse().unwrap()])
        .except([PrefixMatch::within(net("10.9.0.0/16"))]);
    rib.put_neighbor(A, ImportSettings { filter, ..ImportSettings::external() });
    rib.update(
        A,
        &announce(&["10.1.0.0/16", "10.9.1.0/24", "11.0.0.0/8", "10.1.1.0/25"], attributes(&[1], 1)),
    );
    rib.update(A, &announce(&["10.2.0.0/16"], attributes(&[1, LOCAL_AS, 7], 1)));
    let originated = Attributes { originator: Some([9, 9, 9, 9].into()), ..attributes(&[1], 1) };
    rib.update(A, &announce(&["10.3.0.0/16"], originated));
    assert_eq!(changes(&mut rib), one("10.1.0.0/16", &[(1, 1)]));
    assert_eq!((rib.counts(A).received, rib.counts(A).accepted), (6, 1));
    let reason = |rib: &Rib, prefix| rib.explain(&net(prefix), &Everything)[0].reason;
    assert_eq!(reason(&rib, "10.2.0.0/16"), Reason::Looped);
    assert_eq!(reason(&rib, "11.0.0.0/8"), Reason::Filtered);
    // Another filter needs no refresh.
    rib.put_neighbor(
        A,
        ImportSettings {
            filter: PrefixFilter::only(["11.0.0.0/8".parse().unwrap()]),
            ..ImportSettings::external()
        },
    );
    let mut changed = changes(&mut rib);
    changed.sort();
    assert_eq!(changed, [one("10.1.0.0/16", &[]), one("11.0.0.0/8", &[(1, 1)])].concat());
    assert_eq!((rib.counts(A).received, rib.counts(A).accepted), (6, 1));
}

struct Reach(BTreeMap<IpAddr, u32>);

impl Resolver for Reach {
    fn cost(&self, _: NeighborId, attributes: &Attributes) -> Option<u32> {
        self.0.get(&attributes.next_hop).copied()
    }
}

/// Next hops of this neighbor are reached over a link.
struct OverLink(NeighborId);

impl Resolver for OverLink {
    fn cost(&self, _: NeighborId, _: &Attributes) -> Option<u32> {
        Some(0)
    }

    fn is_link(&self, neighbor: NeighborId, _: &Attributes) -> bool {
        neighbor == self.0
    }
}

#[test]
fn behind_a_best_path_over_a_link_the_best_of_the_others_stand_by() {
    let mut rib = rib();
    let decided = |rib: &mut Rib, link| {
        let changes = rib.decide(&OverLink(link), usize::MAX);
        let of = |paths: &[Chosen]| paths.iter().map(|path| path.neighbor).collect::<Vec<_>>();
        changes.iter().map(|change| (of(&change.paths), of(&change.standby))).collect::<Vec<_>>()
    };
    rib.update(A, &announce(&["10.1.0.0/16"], attributes(&[1], 1)));
    assert_eq!(decided(&mut rib, A), [(vec![A], vec![])]);
    // A longer path comes in a tunnel: the choice is the same, and what stands by is news.
    rib.update(B, &announce(&["10.1.0.0/16"], attributes(&[1, 2], 2)));
    assert_eq!(decided(&mut rib, A), [(vec![A], vec![B])]);
    // Other attributes of what stands by are news as well.
    rib.update(B, &announce(&["10.1.0.0/16"], attributes(&[1, 3], 2)));
    assert_eq!(decided(&mut rib, A), [(vec![A], vec![B])]);
    rib.update(A, &withdraw(&["10.1.0.0/16"]));
    assert_eq!(decided(&mut rib, A), [(vec![B], vec![])]);
    // Behind a best path in a tunnel no link stands by.
    rib.update(A, &announce(&["10.1.0.0/16"], attributes(&[1], 1)));
    assert_eq!(decided(&mut rib, B), [(vec![A], vec![])]);
    rib.update(B, &withdraw(&["10.1.0.0/16"]));
    assert_eq!(decided(&mut rib, B), []);
}

#[test]
fn behind_the_best_path_the_best_of_the_others_stand_by() {
    let mut rib = rib();
    let decided = |rib: &mut Rib| {
        let of = |paths: &[Chosen]| paths.iter().map(|path| path.neighbor).collect::<Vec<_>>();
        let changes = rib.decide(&Everything, usize::MAX);
        changes.iter().map(|change| (of(&change.paths), of(&change.standby))).collect::<Vec<_>>()
    };
    let med = |med, of| Attributes { med: Some(med), ..attributes(&[1], of) };
    rib.update(A, &announce(&["10.1.0.0/16"], med(100, 1)));
    rib.update(B, &announce(&["10.1.0.0/16"], med(100, 2)));
    assert_eq!(decided(&mut rib), [(vec![A, B], vec![])]);
    // AWS is about to work on A's end, and says so by the other's lower MED.
    rib.update(B, &announce(&["10.1.0.0/16"], med(50, 2)));
    assert_eq!(decided(&mut rib), [(vec![B], vec![A])]);
    // What our own AS has passed on, or nobody reaches, does not stand by.
    rib.update(A, &announce(&["10.1.0.0/16"], attributes(&[1, LOCAL_AS], 1)));
    assert_eq!(decided(&mut rib), [(vec![B], vec![])]);
    rib.update(A, &announce(&["10.1.0.0/16"], med(100, 1)));
    assert_eq!(decided(&mut rib), [(vec![B], vec![A])]);
    rib.update(B, &announce(&["10.1.0.0/16"], med(100, 2)));
    assert_eq!(decided(&mut rib), [(vec![A, B], vec![])]);
    rib.update(A, &withdraw(&["10.1.0.0/16"]));
    assert_eq!(decided(&mut rib), [(vec![B], vec![])]);
}

#[test]
fn a_second_path_by_the_same_way_does_not_stand_by_in_anothers_place() {
    let mut rib = rib();
    let med = |med, of| Attributes { med: Some(med), ..attributes(&[1], of) };
    let nlri = |path_id| Nlri { prefix: net("10.1.0.0/16"), path_id };
    let say = |rib: &mut Rib, neighbor, path_id, attributes| {
        let announced = vec![Announcement { attributes, nlri: vec![nlri(path_id)] }];
        rib.update(neighbor, &Update { withdrawn: vec![], announced });
    };
    say(&mut rib, A, 1, Arc::new(med(10, 1)));
    say(&mut rib, A, 2, Arc::new(med(20, 1)));
    say(&mut rib, B, 1, Arc::new(med(30, 2)));
    let of = |paths: &[Chosen]| paths.iter().map(|path| path.neighbor).collect::<Vec<_>>();
    let changes = rib.decide(&Everything, usize::MAX);
    let changes: Vec<_> = changes.iter().map(|change| (of(&change.paths), of(&change.standby))).collect();
    assert_eq!(changes, [(vec![A], vec![B])]);
    // By another next hop it does.
    say(&mut rib, A, 2, Arc::new(med(20, 3)));
    let changes = rib.decide(&Everything, usize::MAX);
    let changes: Vec<_> = changes.iter().map(|change| (of(&change.paths), of(&change.standby))).collect();
    assert_eq!(changes, [(vec![A], vec![A])]);
}

#[test]
fn next_hops_that_come_and_go() {
    let mut rib = rib();
    let mut reach = Reach([(address(1), 5), (address(2), 5)].into());
    rib.update(A, &announce(&["10.1.0.0/16", "10.2.0.0/16"], attributes(&[1], 1)));
    rib.update(B, &announce(&["10.1.0.0/16"], attributes(&[1], 2)));
    assert_eq!(rib.decide(&reach, usize::MAX).len(), 2);
    reach.0.remove(&address(1));
    rib.next_hops_changed(|_, next_hop| next_hop == address(1));
    let changed: Vec<_> = rib
        .decide(&reach, usize::MAX)
        .into_iter()
        .map(|change| (change.prefix, change.paths.len()))
        .collect();
    assert_eq!(changed, [(net("10.1.0.0/16"), 1), (net("10.2.0.0/16"), 0)]);
    assert_eq!(rib.explain(&net("10.2.0.0/16"), &reach)[0].reason, Reason::Unreachable);
    reach.0.insert(address(1), 9);
    rib.next_hops_changed(|neighbor, _| neighbor == A);
    let changed = rib.decide(&reach, usize::MAX);
    let of = |paths: &[Chosen]| paths.iter().map(|path| path.neighbor).collect::<Vec<_>>();
    let changed: Vec<_> = changed.iter().map(|change| (of(&change.paths), of(&change.standby))).collect();
    // Where there is a nearer one, the farther next hop only stands by.
    assert_eq!(changed, [(vec![B], vec![A]), (vec![A], vec![])]);
    let why: Vec<_> =
        rib.explain(&net("10.1.0.0/16"), &reach).iter().map(|path| (path.neighbor, path.reason)).collect();
    assert_eq!(why, [(B, Reason::Best), (A, Reason::Cost)]);
}

#[test]
fn a_neighbor_that_comes_back_changes_nothing_that_it_repeats() {
    let mut rib = rib();
    let routes = announce(&["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"], attributes(&[1], 1));
    rib.update(A, &routes);
    let v6 = Attributes { next_hop: "fd00::1".parse().unwrap(), ..attributes(&[1], 1) };
    rib.update(A, &announce(&["fd00:1::/32"], v6));
    assert_eq!(changes(&mut rib).len(), 4);
    rib.down(A, &[Family::Ipv4]);
    assert_eq!(changes(&mut rib), one("fd00:1::/32", &[]));
    assert_eq!((rib.counts(A).received, rib.counts(A).stale), (3, 3));
    assert!(rib.explain(&net("10.1.0.0/16"), &Everything)[0].stale);
    rib.established(A, [1, 1, 1, 1].into(), address(1));
    rib.update(A, &announce(&["10.1.0.0/16"], attributes(&[1], 1)));
    rib.update(A, &announce(&["10.2.0.0/16"], attributes(&[1, 7], 1)));
    assert_eq!(changes(&mut rib), one("10.2.0.0/16", &[(1, 1)]));
    rib.end_of_rib(A, Family::Ipv6);
    assert_eq!(changes(&mut rib), []);
    rib.end_of_rib(A, Family::Ipv4);
    assert_eq!(changes(&mut rib), one("10.3.0.0/16", &[]));
    assert_eq!((rib.counts(A).received, rib.counts(A).stale), (2, 0));
}

#[test]
fn after_our_own_restart_nothing_is_chosen_before_all_have_spoken() {
    let now = crate::origin();
    let waiting = [(A, Family::Ipv4), (B, Family::Ipv4), (B, Family::Ipv6)];
    let mut rib = rib();
    rib.defer(now + Duration::from_secs(60), waiting);
    rib.update(A, &announce(&["10.1.0.0/16"], attributes(&[1], 1)));
    rib.end_of_rib(A, Family::Ipv4);
    assert!(!rib.pending() && rib.decide(&Everything, usize::MAX).is_empty());
    rib.end_of_rib(B, Family::Ipv4);
    rib.handle_timeout(now + Duration::from_secs(59));
    assert_eq!((rib.pending(), rib.poll_timeout()), (false, Some(now + Duration::from_secs(60))));
    let mut late = |end: &dyn Fn(&mut Rib)| {
        end(&mut rib);
        assert!(rib.pending());
        assert_eq!(rib.poll_timeout(), None::<Instant>);
        rib.defer(now + Duration::from_secs(60), [(B, Family::Ipv6)]);
    };
    late(&|rib| rib.handle_timeout(now + Duration::from_secs(60)));
    late(&|rib| rib.do_not_wait(B));
    late(&|rib| rib.wait_only_for(B, &[Family::Ipv4]));
    late(&|rib| rib.end_of_rib(B, Family::Ipv6));
    late(&|rib| rib.remove_neighbor(B));
    rib.defer(now, []);
    assert_eq!(changes(&mut rib), one("10.1.0.0/16", &[(1, 1)]));
}

#[test]
fn a_neighbor_that_sends_too_much_is_told_of_in_time() {
    let mut rib = rib();
    rib.put_neighbor(A, ImportSettings { limit: Some(RouteLimit::new(10)), ..ImportSettings::external() });
    let prefix = |n: u32| format!("10.{n}.0.0/16");
    let send = |rib: &mut Rib, n: u32| rib.update(A, &announce(&[&prefix(n)], attributes(&[1], 1)));
    for n in 0..7 {
        assert_eq!(send(&mut rib, n), None);
    }
    assert_eq!(send(&mut rib, 7), Some(Notice::NearLimit { received: 8, most: 10 }));
    assert_eq!((send(&mut rib, 8), send(&mut rib, 9)), (None, None));
    // What is known may change; what is new is not taken.
    assert_eq!(rib.update(A, &announce(&[&prefix(3)], attributes(&[1, 1], 1))), None);
    assert_eq!(send(&mut rib, 10), Some(Notice::BeyondLimit { most: 10 }));
    assert_eq!((rib.counts(A).received, rib.len()), (10, 10));
    for n in 0..5 {
        rib.update(A, &withdraw(&[&prefix(n)]));
    }
    for n in 0..2 {
        assert_eq!(send(&mut rib, n), None);
    }
    assert_eq!(send(&mut rib, 2), Some(Notice::NearLimit { received: 8, most: 10 }));
}

#[test]
fn work_is_done_in_pieces() {
    let mut rib = rib();
    let prefixes: Vec<String> = (0..100).map(|n| format!("10.{n}.0.0/16")).collect();
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    rib.update(A, &announce(&prefixes, attributes(&[1], 1)));
    assert_eq!(rib.decide(&Everything, 30).len(), 30);
    assert!(rib.pending());
    assert_eq!(rib.decide(&Everything, 100).len(), 70);
    assert_eq!(rib.best().count(), 100);
    assert_eq!(rib.received(A).count(), 100);
}

/// What happens to a table.
#[derive(Clone, Debug)]
enum Happening {
    Announce(u32, Vec<u8>, u32, Box<Attributes>),
    Withdraw(u32, Vec<u8>, u32),
    Down(u32, bool),
    Sweep(u32),
    Remove(u32),
    Filter(u32, bool),
    Weight(u32, u32),
    Reach(u8, Option<u32>),
    Decide(usize),
}

fn prefix(n: u8) -> IpNet {
    net(&format!("10.{n}.0.0/16"))
}

fn settings(filtered: bool, weight: u32) -> ImportSettings {
    let filter = if filtered {
        PrefixFilter::all().except([PrefixMatch::exactly(prefix(1))])
    } else {
        PrefixFilter::all()
    };
    ImportSettings { filter, weight, ..ImportSettings::external() }
}

fn happening() -> impl Strategy<Value = Happening> {
    let neighbor = 1u32..4;
    let prefixes = || proptest::collection::vec(0u8..5, 1..3);
    let attributes =
        (proptest::collection::vec(prop_oneof![Just(1u32), Just(2), Just(LOCAL_AS)], 1..3), 1u8..4, 0u32..2)
            .prop_map(|(as_path, next_hop, med)| Attributes {
                med: Some(med),
                ..attributes(&as_path, next_hop)
            });
    prop_oneof![
        8 => (neighbor.clone(), prefixes(), 0u32..2, attributes).prop_map(|(n, p, id, a)| Happening::Announce(n, p, id, Box::new(a))),
        4 => (neighbor.clone(), prefixes(), 0u32..2).prop_map(|(n, p, id)| Happening::Withdraw(n, p, id)),
        1 => (neighbor.clone(), any::<bool>()).prop_map(|(n, retain)| Happening::Down(n, retain)),
        1 => neighbor.clone().prop_map(Happening::Sweep),
        1 => neighbor.clone().prop_map(Happening::Remove),
        1 => (neighbor.clone(), any::<bool>()).prop_map(|(n, filtered)| Happening::Filter(n, filtered)),
        1 => (neighbor, 1u32..3).prop_map(|(n, weight)| Happening::Weight(n, weight)),
        2 => (1u8..4, proptest::option::of(0u32..2)).prop_map(|(n, cost)| Happening::Reach(n, cost)),
        4 => (1usize..4).prop_map(Happening::Decide),
    ]
}

/// Neighbor, next hop, weight and attributes of paths that are forwarded by.
type Forwarded = BTreeSet<(u32, IpAddr, u32, Attributes)>;

/// The same without any cleverness: all routes in one list.
struct Model {
    routes: BTreeMap<(u32, IpNet, u32), (Attributes, bool)>,
    settings: BTreeMap<u32, (bool, u32)>,
    reach: Reach,
}

impl Model {
    fn choose(&self, decision: &DecisionSettings) -> BTreeMap<IpNet, [Forwarded; 2]> {
        let mut out = BTreeMap::new();
        for prefix in (0..5).map(prefix) {
            let mut candidates = Vec::new();
            for ((neighbor, of, path_id), (attributes, _)) in &self.routes {
                let (filtered, _) = self.settings[neighbor];
                let barred = attributes.as_path.contains(&LOCAL_AS) || filtered && *of == self::prefix(1);
                let cost = self.reach.0.get(&attributes.next_hop);
                if let (true, false, Some(cost)) = (*of == prefix, barred, cost) {
                    candidates.push(Candidate {
                        attributes,
                        external: true,
                        local_pref: 100,
                        cost: *cost,
                        peer_id: Ipv4Addr::new(1, 1, 1, *neighbor as u8),
                        peer_address: address(*neighbor as u8),
                        path_id: *path_id,
                        neighbor: *neighbor,
                    });
                }
            }
            let (chosen, others) = self.best(candidates, decision);
            if !chosen.is_empty() {
                out.insert(prefix, [chosen, self.best(others, decision).0]);
            }
        }
        out
    }
    /// What is forwarded by of these, and the others.
    fn best<'c>(
        &self,
        candidates: Vec<Candidate<'c>>,
        decision: &DecisionSettings,
    ) -> (Forwarded, Vec<Candidate<'c>>) {
        let mut reasons = decide(&candidates, decision).into_iter();
        let (chosen, mut others): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|_| reasons.next().unwrap().chosen());
        let way = |path: &Candidate<'_>| (path.neighbor, path.attributes.next_hop);
        others.retain(|other| chosen.iter().all(|path| way(path) != way(other)));
        let forwarded = chosen.into_iter().map(|path| {
            let weight = self.settings[&path.neighbor].1;
            (path.neighbor, path.attributes.next_hop, weight, path.attributes.clone())
        });
        (forwarded.collect(), others)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_forwarders_table_is_what_the_routes_say(happenings in proptest::collection::vec(happening(), 1..80)) {
        let decision = DecisionSettings { multipath: Multipath::Relaxed, ..DecisionSettings::default() };
        let mut rib = Rib::new(LOCAL_AS, [9, 9, 9, 9].into(), decision);
        let mut model = Model {
            routes: BTreeMap::new(),
            settings: BTreeMap::new(),
            reach: Reach([1, 2, 3].map(|last| (address(last), 0)).into()),
        };
        let join = |rib: &mut Rib, neighbor: u32, (filtered, weight): (bool, u32)| {
            rib.put_neighbor(NeighborId(neighbor), settings(filtered, weight));
            let id = Ipv4Addr::new(1, 1, 1, neighbor as u8);
            rib.established(NeighborId(neighbor), id, address(neighbor as u8));
        };
        for neighbor in 1..4 {
            join(&mut rib, neighbor, (false, 1));
            model.settings.insert(neighbor, (false, 1));
        }
        let mut forwarder = BTreeMap::new();
        let apply = |forwarder: &mut BTreeMap<IpNet, [BTreeSet<_>; 2]>, changes: Vec<Change>| {
            for change in changes {
                let forwarded = [&change.paths, &change.standby].map(|paths| {
                    let of = |path: &Chosen| {
                        (path.neighbor.0, path.next_hop, path.weight, (*path.attributes).clone())
                    };
                    paths.iter().map(of).collect()
                });
                if change.paths.is_empty() {
                    assert!(forwarder.remove(&change.prefix).is_some(), "a change that is none: {change:?}");
                } else {
                    forwarder.insert(change.prefix, forwarded);
                }
            }
        };
        for happening in happenings {
            match happening {
                Happening::Announce(neighbor, prefixes, path_id, attributes) => {
                    let nlri: Vec<_> = prefixes.iter().map(|n| Nlri { prefix: prefix(*n), path_id }).collect();
                    for nlri in &nlri {
                        model.routes.insert((neighbor, nlri.prefix, path_id), ((*attributes).clone(), false));
                    }
                    let announced = vec![Announcement { attributes: Arc::new(*attributes), nlri }];
                    rib.update(NeighborId(neighbor), &Update { withdrawn: vec![], announced });
                }
                Happening::Withdraw(neighbor, prefixes, path_id) => {
                    let withdrawn: Vec<_> = prefixes.iter().map(|n| Nlri { prefix: prefix(*n), path_id }).collect();
                    for nlri in &withdrawn {
                        model.routes.remove(&(neighbor, nlri.prefix, path_id));
                    }
                    rib.update(NeighborId(neighbor), &Update { withdrawn, announced: vec![] });
                }
                Happening::Down(neighbor, retain) => {
                    rib.down(NeighborId(neighbor), if retain { &[Family::Ipv4] } else { &[] });
                    model.routes.retain(|(of, ..), _| *of != neighbor || retain);
                    let own = model.routes.iter_mut().filter(|((of, ..), _)| *of == neighbor);
                    own.for_each(|(_, (_, stale))| *stale = true);
                }
                Happening::Sweep(neighbor) => {
                    rib.sweep_stale(NeighborId(neighbor), &[Family::Ipv4]);
                    model.routes.retain(|(of, ..), (_, stale)| *of != neighbor || !*stale);
                }
                Happening::Remove(neighbor) => {
                    rib.remove_neighbor(NeighborId(neighbor));
                    model.routes.retain(|(of, ..), _| *of != neighbor);
                    join(&mut rib, neighbor, model.settings[&neighbor]);
                }
                Happening::Filter(neighbor, filtered) => {
                    let settings = model.settings.get_mut(&neighbor).unwrap();
                    settings.0 = filtered;
                    rib.put_neighbor(NeighborId(neighbor), self::settings(settings.0, settings.1));
                }
                Happening::Weight(neighbor, weight) => {
                    let settings = model.settings.get_mut(&neighbor).unwrap();
                    settings.1 = weight;
                    rib.put_neighbor(NeighborId(neighbor), self::settings(settings.0, settings.1));
                }
                Happening::Reach(last, cost) => {
                    match cost {
                        Some(cost) => drop(model.reach.0.insert(address(last), cost)),
                        None => drop(model.reach.0.remove(&address(last))),
                    }
                    rib.next_hops_changed(|_, next_hop| next_hop == address(last));
                }
                Happening::Decide(budget) => apply(&mut forwarder, rib.decide(&model.reach, budget)),
            }
        }
        apply(&mut forwarder, rib.decide(&model.reach, usize::MAX));
        prop_assert_eq!(&forwarder, &model.choose(&decision));
        let prefixes: BTreeSet<_> = model.routes.keys().map(|(_, prefix, _)| *prefix).collect();
        prop_assert_eq!(rib.len(), prefixes.len());
        for neighbor in 1..4 {
            let own = model.routes.iter().filter(|((of, ..), _)| *of == neighbor);
            let counts = rib.counts(NeighborId(neighbor));
            prop_assert_eq!(counts.received, own.clone().count());
            prop_assert_eq!(counts.stale, own.filter(|(_, (_, stale))| *stale).count());
            let received: BTreeMap<_, _> = rib.received(NeighborId(neighbor)).collect();
            prop_assert_eq!(received.len(), counts.received);
        }
    }
}

#[test]
fn a_neighbor_holds_up_so_many_paths_to_a_prefix_and_no_more() {
    let mut rib = rib();
    let most = u32::try_from(MAX_PATHS).unwrap();
    let path = |path_id: u32, med: u32| {
        let nlri = vec![Nlri { prefix: net("10.1.0.0/16"), path_id }];
        let attributes = Attributes { med: Some(med), ..attributes(&[1], 1) };
        Update {
            withdrawn: Vec::new(),
            announced: vec![Announcement { attributes: attributes.into(), nlri }],
        }
    };
    for id in 0..most {
        assert_eq!(rib.update(A, &path(id, 1)), None);
    }
    // RFC 7911 section 6. Said once, counted always.
    let notice = Notice::TooManyPaths { prefix: net("10.1.0.0/16") };
    assert_eq!(rib.update(A, &path(most, 1)), Some(notice));
    assert_eq!(rib.update(A, &path(most + 1, 1)), None);
    let counts = rib.counts(A);
    assert_eq!((counts.received, counts.left_out), (MAX_PATHS, 2));
    // One that is held may change, another neighbor has its own, and one that goes makes room.
    assert_eq!((rib.update(A, &path(0, 2)), rib.update(B, &path(most, 1))), (None, None));
    let gone = Nlri { prefix: net("10.1.0.0/16"), path_id: 3 };
    rib.update(A, &Update { withdrawn: vec![gone, Nlri { path_id: most, ..gone }], announced: Vec::new() });
    assert_eq!(rib.update(A, &path(most, 1)), None);
    let counts = [rib.counts(A), rib.counts(B)];
    assert_eq!(counts.map(|counts| (counts.received, counts.left_out)), [(MAX_PATHS, 2), (1, 0)]);
    rib.established(A, [1, 1, 1, 1].into(), address(1));
    assert_eq!(rib.counts(A).left_out, 0);
}

/// Prefixes 10.0.0.0/24 to 10.x.y.0/24.
fn many(count: u32) -> Vec<IpNet> {
    (0..count).map(|n| net(&format!("10.{}.{}.0/24", n / 256, n % 256))).collect()
}

fn sent(prefixes: &[IpNet]) -> Update {
    let nlri = prefixes.iter().map(|prefix| Nlri { prefix: *prefix, path_id: 0 }).collect();
    Update {
        withdrawn: Vec::new(),
        announced: vec![Announcement { attributes: attributes(&[1], 1).into(), nlri }],
    }
}

#[test]
fn what_goes_with_a_session_goes_in_portions() {
    const PORTION: usize = 64;
    let mut rib = rib();
    let all = many(1000);
    let limit = Some(RouteLimit::new(1000));
    rib.put_neighbor(A, ImportSettings { limit, ..ImportSettings::external() });
    rib.update(A, &sent(&all));
    assert_eq!(changes(&mut rib).len(), 1000);
    rib.down(A, &[]);
    // At once none of them counts any more, and nothing was looked at yet.
    assert_eq!((rib.counts(A).received, rib.received(A).count(), rib.len()), (0, 0, 1000));
    assert!(rib.explain(&all[0], &Everything).is_empty() && rib.pending());
    // B's are decided between the portions.
    rib.update(B, &sent(&[net("1.2.3.0/24")]));
    let portion = rib.decide(&Everything, PORTION);
    assert!(portion.len() <= PORTION && portion.iter().any(|change| change.prefix == net("1.2.3.0/24")));
    // A is back, and sends some of what is still there, some of what is not, and up to its limit of others.
    rib.established(A, [1, 1, 1, 1].into(), address(1));
    let again: Vec<IpNet> = all.iter().step_by(2).copied().collect();
    let others: Vec<IpNet> =
        (0..500).map(|n| net(&format!("172.{}.{}.0/24", 16 + n / 256, n % 256))).collect();
    assert!(matches!(rib.update(A, &sent(&again)), None | Some(Notice::NearLimit { .. })));
    rib.update(A, &sent(&others));
    assert_eq!(rib.counts(A).received, 1000);
    let mut gone = BTreeSet::new();
    while rib.pending() {
        let portion = rib.decide(&Everything, PORTION);
        assert!(portion.len() <= PORTION);
        gone.extend(portion.iter().filter(|change| change.paths.is_empty()).map(|change| change.prefix));
    }
    // Of what was repeated in time the forwarder has heard nothing.
    assert!(gone.iter().all(|prefix| !again.contains(prefix)), "{} gone", gone.len());
    assert_eq!((rib.len(), rib.counts(A).received, rib.counts(A).accepted), (1001, 1000, 1000));
    // Removed, it takes all with it, and takes no more.
    rib.remove_neighbor(A);
    rib.update(A, &sent(&[net("198.51.100.0/24")]));
    while rib.pending() {
        rib.decide(&Everything, PORTION);
    }
    assert_eq!((rib.len(), rib.counts(A).received), (1, 0));
}

#[test]
fn stale_routes_are_swept_in_portions_and_what_was_repeated_stays() {
    let mut rib = rib();
    let all = many(300);
    rib.update(A, &sent(&all));
    changes(&mut rib);
    rib.down(A, &[Family::Ipv4]);
    assert_eq!((rib.counts(A).stale, rib.pending()), (300, false));
    rib.update(A, &sent(&all[..100]));
    rib.end_of_rib(A, Family::Ipv4);
    assert_eq!((rib.counts(A).received, rib.counts(A).stale), (100, 0));
    let mut gone = 0;
    while rib.pending() {
        let portion = rib.decide(&Everything, 10);
        assert!(portion.len() <= 10);
        gone += portion.len();
    }
    assert_eq!((gone, rib.len()), (200, 100));
}

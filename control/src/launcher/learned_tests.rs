//! Learned routes, and a kernel that does what it is told.

use std::collections::{BTreeMap, BTreeSet};

use braid_api::launcher::{IntoDevice, KernelPlan, LearnedVia, NextHop, RouteChanges, RoutePut};
use ipnet::IpNet;
use proptest::prelude::*;

use super::install_tests::{INTO, Kernel, Rig, To, both, device, gateway, hop, net, plan, put, withdraw};
use super::layout::{DEVICE_METRIC, MAIN, SLOTS, WORST_METRIC, table_of};
use super::learned::{MAX_NEXT_HOPS, Way, link_metric, metric, slot_of_metric, unreachable_metric};

#[test]
fn a_route_into_the_device_has_an_unreachable_behind_it() {
    let mut rig = Rig::new(3, &[]);
    rig.apply(put("10.2.0.0/16", device()));
    assert_eq!(rig.kernel.ways("10.2.0.0/16"), [(MAIN, To::Device), (MAIN, To::Unreachable)]);
    assert_eq!(rig.learned.change(put("10.2.0.0/16", device())), (Vec::new(), Vec::new()));
    rig.apply(put("10.2.0.0/16", gateway()));
    assert_eq!(rig.kernel.ways("10.2.0.0/16"), [(MAIN, To::Link(hop(254)))]);
    let remove = RouteChanges { remove: vec![net("10.2.0.0/16")], ..RouteChanges::default() };
    rig.apply(remove);
    rig.clear();
}

#[test]
fn what_is_not_put_again_is_swept() {
    let mut rig = Rig::new(0, &[]);
    for prefix in ["10.2.0.0/16", "10.3.0.0/16"] {
        rig.apply(put(prefix, device()));
    }
    rig.learned.handle_new_control();
    rig.apply(put("10.3.0.0/16", device()));
    assert_eq!(rig.kernel.ways("10.2.0.0/16").len(), 2);
    rig.apply(RouteChanges { sweep: true, ..RouteChanges::default() });
    assert_eq!((rig.kernel.ways("10.2.0.0/16").len(), rig.kernel.ways("10.3.0.0/16").len()), (0, 2));
    rig.clear();
}

#[test]
fn what_a_killed_run_left_goes_with_the_sweep_or_is_taken_over() {
    let mut rig = Rig::new(2, &[]);
    for prefix in ["10.2.0.0/16", "10.3.0.0/16"] {
        rig.kernel.routes.insert((net(prefix), MAIN, unreachable_metric(2)), Way::Unreachable);
    }
    rig.adopt().unwrap();
    rig.apply(put("10.3.0.0/16", device()));
    rig.apply(RouteChanges { sweep: true, ..RouteChanges::default() });
    assert_eq!(rig.kernel.ways("10.2.0.0/16"), []);
    assert_eq!(rig.kernel.ways("10.3.0.0/16").len(), 2);
    assert_eq!(slot_of_metric(unreachable_metric(2)), Some(2));
    assert_eq!(slot_of_metric(WORST_METRIC), None);
    assert_eq!(slot_of_metric(metric(2)), None);
    for slot in 0..SLOTS {
        // Above NetworkManager's 50 for VPNs, below a DHCP client's 100.
        assert!(50 < link_metric(slot) && link_metric(slot) < DEVICE_METRIC);
        assert!((DEVICE_METRIC + u32::from(SLOTS)..100).contains(&metric(slot)));
    }
}

#[test]
fn a_route_that_covers_a_peer_leaves_table_main_and_comes_back() {
    let mut rig = Rig::new(1, &["203.0.113.1"]);
    for prefix in ["203.0.112.0/21", "0.0.0.0/0", "10.0.0.0/8", "::/0"] {
        rig.apply(put(prefix, device()));
    }
    let table = |kernel: &Kernel, prefix: &str| kernel.ways(prefix)[0].0;
    assert_eq!(table(&rig.kernel, "203.0.112.0/21"), table_of(1));
    assert_eq!(table(&rig.kernel, "0.0.0.0/0"), table_of(1));
    assert_eq!(table(&rig.kernel, "::/0"), table_of(1));
    assert_eq!(table(&rig.kernel, "10.0.0.0/8"), MAIN);
    let known: Vec<_> = rig.learned.known_to_layout().into_keys().collect();
    assert_eq!(known, [net("0.0.0.0/0"), net("203.0.112.0/21"), net("::/0")]);
    // The peer moves: another prefix covers it.
    rig.relocate(1, &plan(&["10.9.9.9"]));
    assert_eq!(table(&rig.kernel, "203.0.112.0/21"), MAIN);
    assert_eq!(table(&rig.kernel, "10.0.0.0/8"), table_of(1));
    assert_eq!(rig.kernel.routes.len(), 8);
    // A default route over a link is one for outer packets too, and where rules lead it is as well.
    rig.apply(put("0.0.0.0/0", gateway()));
    let over = To::Link(hop(254));
    assert_eq!(rig.kernel.ways("0.0.0.0/0"), [(MAIN, over.clone()), (table_of(1), over.clone())]);
    // So is one to what begins to cover a peer, and it leaves no trace.
    rig.apply(put("10.3.0.0/16", gateway()));
    assert_eq!(rig.kernel.ways("10.3.0.0/16"), [(MAIN, over.clone())]);
    for (peer, ways) in [("10.3.4.5", 2), ("10.9.9.9", 1)] {
        rig.relocate(1, &plan(&[peer]));
        assert_eq!(rig.kernel.ways("10.3.0.0/16").len(), ways, "{peer}");
    }
    rig.clear();
}

#[test]
fn a_route_over_a_link_to_what_is_apart_is_where_rules_lead_too() {
    let mut rig = Rig::new(1, &[]);
    rig.apply(put("10.3.0.0/16", both()));
    let apart = KernelPlan { apart: vec![net("10.2.0.0/16"), net("10.3.0.0/16")], ..plan(&[]) };
    rig.relocate(1, &apart);
    rig.apply(put("10.2.0.0/16", gateway()));
    let over = To::Link(hop(254));
    assert_eq!(rig.kernel.ways("10.2.0.0/16"), [(MAIN, over.clone()), (table_of(1), over.clone())]);
    let behind = [To::Device, To::Unreachable].map(|to| (table_of(1), to));
    let all = [vec![(MAIN, over.clone()), (table_of(1), over.clone())], behind.to_vec()].concat();
    assert_eq!(rig.kernel.ways("10.3.0.0/16"), all);
    rig.relocate(1, &plan(&[]));
    assert_eq!(rig.kernel.ways("10.2.0.0/16"), [(MAIN, over)]);
    assert_eq!(rig.kernel.ways("10.3.0.0/16").iter().filter(|(table, _)| *table != MAIN).count(), 0);
    rig.clear();
}

#[test]
fn what_covers_a_protected_prefix_is_known_to_the_layout() {
    let mut rig = Rig::default();
    let plan = KernelPlan { protect: vec![net("10.2.0.0/16")], ..plan(&[]) };
    rig.relocate(0, &plan);
    for prefix in ["10.0.0.0/8", "10.2.3.0/24", "10.3.0.0/16"] {
        rig.apply(put(prefix, device()));
    }
    assert_eq!(rig.learned.known_to_layout().into_keys().collect::<Vec<_>>(), [net("10.0.0.0/8")]);
}

#[test]
fn nonsense_is_not_taken() {
    let mut rig = Rig::new(0, &[]);
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
        assert_eq!(rig.learned.change(put(prefix, via)), (Vec::new(), Vec::new()), "{prefix}");
    }
    assert!(rig.learned.is_empty());
}

#[test]
fn a_next_hop_that_fails_is_one_step_and_leaves_what_stands_behind() {
    let mut rig = Rig::new(1, &["203.0.113.1"]);
    for prefix in ["10.2.0.0/16", "10.3.0.0/16", "203.0.112.0/21"] {
        rig.apply(put(prefix, both()));
    }
    rig.apply(put("10.4.0.0/16", gateway()));
    let (over, behind) = (To::Link(hop(254)), [To::Device, To::Unreachable]);
    let table = |table: u32| behind.clone().map(|to| (table, to));
    assert_eq!(rig.kernel.ways("10.2.0.0/16"), [&[(MAIN, over.clone())], &table(MAIN)[..]].concat());
    let captured = [&[(MAIN, over.clone()), (table_of(1), over.clone())], &table(table_of(1))[..]].concat();
    assert_eq!(rig.kernel.ways("203.0.112.0/21"), captured);
    // What is captured has its rules before the link fails.
    assert_eq!(rig.learned.known_to_layout().len(), 1);
    // One for each gateway, link and what stands behind.
    let steps = rig.withdraw(&[hop(254), hop(253)]);
    assert_eq!(steps.len(), 2, "{steps:?}");
    assert_eq!(rig.kernel.ways("10.2.0.0/16"), table(MAIN));
    assert_eq!(rig.kernel.ways("203.0.112.0/21"), table(table_of(1)));
    assert_eq!((rig.kernel.ways("10.4.0.0/16"), rig.kernel.next_hops.len()), (Vec::new(), 0));
    // Nothing is left to be done of what is said of each afterwards.
    for prefix in ["10.2.0.0/16", "203.0.112.0/21"] {
        assert_eq!(rig.learned.change(put(prefix, device())), (Vec::new(), Vec::new()));
    }
    let remove = RouteChanges { remove: vec![net("10.4.0.0/16")], ..RouteChanges::default() };
    assert_eq!(rig.learned.change(remove), (Vec::new(), Vec::new()));
    // The same way again is a new object.
    rig.apply(put("10.2.0.0/16", both()));
    assert_eq!(rig.kernel.ways("10.2.0.0/16")[0], (MAIN, over.clone()));
    // One that is put back before the launcher has heard of each is none of the old one's.
    rig.apply(withdraw([hop(254)]));
    rig.apply(put("10.3.0.0/16", both()));
    assert_eq!((rig.kernel.ways("10.2.0.0/16").len(), rig.kernel.ways("10.3.0.0/16").len()), (2, 3));
    rig.clear();
}

#[test]
fn moving_between_gateways_uses_few_numbers() {
    let mut rig = Rig::new(0, &[]);
    let via = |host: u32| LearnedVia { link: Some(hop(host as u8)), device: Some(INTO) };
    let mut numbers = BTreeSet::new();
    for host in 0..1000 {
        rig.apply(put("10.2.0.0/16", via(host % 200)));
        assert_eq!(rig.kernel.next_hops.len(), 1);
        assert_eq!(rig.kernel.ways("10.2.0.0/16").len(), 3);
        numbers.extend(rig.kernel.next_hops.keys().copied());
        if host % 3 == 0 {
            rig.apply(withdraw([hop((host % 200) as u8)]));
        }
    }
    assert!(numbers.len() <= 2, "{numbers:?}");
}

#[test]
fn what_the_kernel_removed_with_a_link_is_made_again() {
    let mut rig = Rig::new(1, &["203.0.113.1"]);
    let other = LearnedVia { link: Some(NextHop { interface: "dx0".to_owned(), ..hop(9) }), device: None };
    rig.apply(put("203.0.112.0/21", both()));
    rig.apply(put("10.2.0.0/16", gateway()));
    rig.apply(put("10.3.0.0/16", other));
    let whole = rig.kernel.picture();
    rig.kernel.lose_links();
    assert!(rig.learned.has_next_hops(Some("lan0")) && !rig.learned.has_next_hops(Some("eth0")));
    rig.renew(Some("lan0"));
    assert_eq!(rig.kernel.next_hops.len(), 2);
    rig.renew(None);
    assert_eq!(rig.kernel.picture(), whole);
    assert_eq!(rig.renew(None), []);
}

/// As a neighbor on an IPv6 network may announce them: each route by a next hop of its own.
#[test]
fn next_hops_beyond_the_bound_take_nothing_from_others() {
    const BEYOND: u32 = 70_000;
    let mut rig = Rig::new(0, &[]);
    rig.apply(put("10.9.0.0/16", both()));
    let numbered = |index: u32| {
        let bits = 0x2001_0db8_u128 << 96 | u128::from(index) << 64;
        let link = NextHop { gateway: (bits | 1).to_be_bytes().into(), interface: "lan0".to_owned() };
        let device = index.is_multiple_of(2).then_some(INTO);
        let prefix = IpNet::new(bits.to_be_bytes().into(), 64).unwrap();
        RoutePut { prefix, via: LearnedVia { link: Some(link), device } }
    };
    assert!(!rig.learned.had_too_many());
    for first in (0..BEYOND).step_by(1000) {
        let put = (first..first + 1000).map(numbered).collect();
        rig.apply(RouteChanges { put, ..RouteChanges::default() });
    }
    assert!(rig.learned.had_too_many());
    assert_eq!(rig.kernel.next_hops.len(), MAX_NEXT_HOPS);
    let ways = |rig: &Rig, index| rig.kernel.ways(&numbered(index).prefix.to_string());
    let behind = [(MAIN, To::Device), (MAIN, To::Unreachable)];
    for index in [0, 2, 1000] {
        let over = [(MAIN, To::Link(numbered(index).via.link.unwrap()))];
        assert_eq!(ways(&rig, index), [&over[..], &behind].concat());
    }
    assert_eq!((ways(&rig, BEYOND - 2), ways(&rig, BEYOND - 1)), (behind.to_vec(), Vec::new()));
    assert_eq!(rig.kernel.ways("10.9.0.0/16")[0], (MAIN, To::Link(hop(254))));
    // What had one of them and is to have one too many has neither.
    let moved = RoutePut { prefix: numbered(1).prefix, ..numbered(BEYOND - 1) };
    rig.apply(RouteChanges { put: vec![moved], ..RouteChanges::default() });
    assert_eq!(ways(&rig, 1), []);
    // Where others go there is room.
    rig.apply(RouteChanges { remove: vec![numbered(2).prefix], ..RouteChanges::default() });
    rig.apply(RouteChanges { put: vec![numbered(BEYOND - 1)], ..RouteChanges::default() });
    assert_eq!(ways(&rig, BEYOND - 1), [(MAIN, To::Link(numbered(BEYOND - 1).via.link.unwrap()))]);
    rig.clear();
}

const PREFIXES: [&str; 5] = ["0.0.0.0/0", "10.0.0.0/8", "10.2.0.0/16", "203.0.112.0/21", "::/0"];
const PEERS: [&str; 4] = ["203.0.113.1", "10.2.0.1", "10.9.0.1", "2001:db8::1"];

/// What control knows: the ways of prefixes, as it has said them, less what it has withdrawn.
#[derive(Clone, Debug)]
enum Act {
    Put(usize, LearnedVia),
    Remove(usize),
    Withdraw(u8),
    /// Peers, and whether the second prefix is apart.
    Relocate(Vec<usize>, bool),
    /// A plan with these peers that fails half-way.
    FailToRelocate(Vec<usize>),
    /// Another life of control, which says again only what is in the mask.
    NewControl(u8),
    /// The link goes and comes back, and nobody but the launcher knows.
    Flap,
    /// From now on the kernel takes this one, or takes it no more.
    Refuse(u8),
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
        1 => (prop::collection::vec(0..PEERS.len(), 0..3), any::<bool>())
            .prop_map(|(peers, apart)| Act::Relocate(peers, apart)),
        1 => prop::collection::vec(0..PEERS.len(), 0..3).prop_map(Act::FailToRelocate),
        1 => any::<u8>().prop_map(Act::NewControl),
        1 => Just(Act::Flap),
        1 => (0_u8..3).prop_map(Act::Refuse),
    ]
}

proptest! {
    #[test]
    fn any_way_to_a_state_leads_to_the_same_kernel(acts in prop::collection::vec(any_act(), 0..40)) {
        let mut rig = Rig::default();
        let mut said: BTreeMap<usize, LearnedVia> = BTreeMap::new();
        let mut last_plan = plan(&[]);
        rig.relocate(5, &last_plan);
        for act in acts {
            match act {
                Act::Put(prefix, via) => {
                    rig.apply(put(PREFIXES[prefix], via.clone()));
                    said.insert(prefix, via);
                }
                Act::Remove(prefix) => {
                    let remove = vec![net(PREFIXES[prefix])];
                    rig.apply(RouteChanges { remove, ..RouteChanges::default() });
                    said.remove(&prefix);
                }
                Act::Withdraw(host) => {
                    rig.apply(withdraw([hop(host)]));
                    for via in said.values_mut() {
                        via.link.take_if(|link| *link == hop(host));
                    }
                }
                Act::Relocate(peers, apart) => {
                    let peers: Vec<&str> = peers.into_iter().map(|peer| PEERS[peer]).collect();
                    let apart = if apart { vec![net(PREFIXES[1])] } else { Vec::new() };
                    last_plan = KernelPlan { apart, ..plan(&peers) };
                    rig.relocate(5, &last_plan);
                }
                Act::FailToRelocate(peers) => {
                    let peers: Vec<&str> = peers.into_iter().map(|peer| PEERS[peer]).collect();
                    let (before, _) = rig.learned.relocate(5, &plan(&peers));
                    rig.run(&before);
                    rig.relocate(5, &last_plan);
                }
                Act::NewControl(mask) => {
                    rig.learned.handle_new_control();
                    said.retain(|prefix, via| mask & (1 << prefix) != 0 && *via != LearnedVia::default());
                    for (prefix, via) in &said {
                        rig.apply(put(PREFIXES[*prefix], via.clone()));
                    }
                    rig.apply(RouteChanges { sweep: true, ..RouteChanges::default() });
                }
                Act::Flap => {
                    rig.kernel.lose_links();
                    rig.renew(Some("lan0"));
                }
                Act::Refuse(host) => {
                    let gateway = hop(host).gateway;
                    if !rig.kernel.refuses.remove(&gateway) {
                        rig.kernel.refuses.insert(gateway);
                    }
                }
            }
        }
        rig.kernel.refuses.clear();
        rig.renew(None);
        let mut fresh = Rig::default();
        fresh.relocate(5, &last_plan);
        for (prefix, via) in said.into_iter().filter(|(_, via)| *via != LearnedVia::default()) {
            fresh.apply(put(PREFIXES[prefix], via));
        }
        prop_assert_eq!(rig.kernel.picture(), fresh.kernel.picture());
        prop_assert_eq!(rig.kernel.next_hops.len(), fresh.kernel.next_hops.len());
        prop_assert_eq!(rig.learned.known_to_layout(), fresh.learned.known_to_layout());
        rig.clear();
    }
}

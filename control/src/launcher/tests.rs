//! The layout of routes and rules, and the steps between two layouts.

use std::collections::BTreeSet;

use braid_api::launcher::{KernelPlan, OUTER_MARK, PlannedRoute};
use ipnet::IpNet;
use proptest::prelude::*;

use super::layout::{
    Action, DEVICE_METRIC, Layout, MAIN, Route, SLOTS, Step, Via, WORST_METRIC, slot_of_metric, steps,
    table_of, unreachable_metric,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn plan(routes: &[&str], protect: &[&str], peers: &[&str]) -> KernelPlan {
    KernelPlan {
        device: "braid0".to_owned(),
        mtu: 1400,
        workers: 1,
        addresses: vec![net("169.254.10.2/30")],
        routes: routes.iter().map(|r| PlannedRoute { prefix: net(r), source: None }).collect(),
        protect: protect.iter().map(|p| net(p)).collect(),
        peers: peers.iter().map(|p| p.parse().unwrap()).collect(),
        ..KernelPlan::default()
    }
}

/// Ways to a prefix, best metric first.
fn ways(layout: &Layout, table: u32, prefix: &str) -> Vec<Via> {
    let here = |r: &&Route| r.table == table && r.prefix == net(prefix);
    let mut found: Vec<&Route> = layout.routes.iter().filter(here).collect();
    found.sort_by_key(|r| r.metric);
    found.into_iter().map(|r| r.via).collect()
}

#[test]
fn an_unreachable_of_worst_metric_stands_behind_every_route() {
    let layout = Layout::of(&plan(&["10.2.0.0/16", "fd02::/16"], &["10.0.0.0/8"], &[]), 0, true);
    for prefix in ["10.2.0.0/16", "fd02::/16"] {
        assert_eq!(ways(&layout, MAIN, prefix), [Via::Device, Via::Unreachable], "{prefix}");
    }
    assert_eq!(ways(&layout, MAIN, "10.0.0.0/8"), [Via::Unreachable]);
    // The connected route of an inside address dies with the device.
    assert_eq!(ways(&layout, MAIN, "169.254.10.0/30"), [Via::Unreachable]);
    assert_eq!(layout.routes.iter().map(|r| r.metric).max(), Some(WORST_METRIC));
}

#[test]
fn a_prefix_that_covers_a_peer_leaves_table_main() {
    let peers = ["203.0.113.1", "2001:db8::1"];
    let routes = ["203.0.112.0/21", "10.2.0.0/16", "2001:db8::/32"];
    let layout = Layout::of(&plan(&routes, &[], &peers), 3, true);
    for prefix in ["203.0.112.0/21", "2001:db8::/32"] {
        assert_eq!(ways(&layout, table_of(3), prefix), [Via::Device, Via::Unreachable], "{prefix}");
        assert_eq!(ways(&layout, MAIN, prefix), [], "{prefix}");
    }
    assert_eq!(ways(&layout, MAIN, "10.2.0.0/16"), [Via::Device, Via::Unreachable]);
    for v6 in [false, true] {
        let skip = layout.rules.iter().find(|r| r.v6 == v6 && r.mark == Some(OUTER_MARK)).unwrap();
        let Action::Goto(end) = skip.action else { panic!("{skip:?}") };
        assert!(layout.rules.iter().any(|r| r.v6 == v6 && r.priority == end && r.action == Action::Nop));
        // Every rule that leads to our own table or refuses lies between the jump and its end.
        let own = |r: &&super::layout::Rule| {
            r.v6 == v6 && matches!(r.action, Action::Lookup { table, .. } if table != MAIN)
        };
        assert!(layout.rules.iter().filter(own).all(|r| (skip.priority..end).contains(&r.priority)));
        assert_eq!(layout.rules.iter().filter(own).count(), 1);
    }
}

#[test]
fn what_is_apart_leaves_table_main() {
    let apart = ["10.2.0.0/16", "fd02::/16", "198.51.100.1/32", "10.0.0.0/8"].map(net);
    let mut plan =
        plan(&["10.2.0.0/16", "fd02::/16", "198.51.100.1/32", "10.3.0.1/32"], &["10.0.0.0/8"], &[]);
    plan.apart = apart.to_vec();
    let learned = [(net("10.9.0.0/16"), None)].into();
    let layout = Layout::with(&plan, 0, true, &learned);
    for prefix in apart.map(|prefix| prefix.to_string()) {
        assert_eq!(ways(&layout, table_of(0), &prefix), [Via::Device, Via::Unreachable], "{prefix}");
        assert_eq!(ways(&layout, MAIN, &prefix), [], "{prefix}");
    }
    // An inside peer is not, nor the network of an inside address, whose connected route is in main.
    assert_eq!(ways(&layout, MAIN, "10.3.0.1/32"), [Via::Device, Via::Unreachable]);
    assert_eq!(ways(&layout, MAIN, "169.254.10.0/30"), [Via::Unreachable]);
    // Of main, what is more specific is taken before; where we only protect, also a route for exactly that, as what came
    // out of the device may anywhere.
    let lookups = |layout: &Layout, from_device: bool| -> BTreeSet<(IpNet, u32)> {
        let lookup = |rule: &super::layout::Rule| match rule.action {
            Action::Lookup { table: MAIN, suppress_len, .. } => Some((rule.to?, suppress_len?)),
            _ => None,
        };
        layout.rules.iter().filter(|rule| rule.iif.is_some() == from_device).filter_map(lookup).collect()
    };
    let with_lengths = |lengths: [u32; 4]| apart.into_iter().zip(lengths).collect::<BTreeSet<_>>();
    assert_eq!(lookups(&layout, false), with_lengths([16, 16, 32, 7]));
    assert_eq!(lookups(&layout, true), with_lengths([15, 15, 31, 7]));
    // A known peer's is nobody else's, and nothing protected leaves a wider route.
    plan.peers.push("fd02::7".parse().unwrap());
    let learned = [(net("8.0.0.0/5"), None)].into();
    let layout = Layout::with(&plan, 0, true, &learned);
    assert_eq!(lookups(&layout, false), with_lengths([16, 16, 32, 8]));
    assert_eq!(lookups(&layout, true), with_lengths([15, 16, 31, 7]));
    for v6 in [false, true] {
        assert!(layout.rules.iter().any(|rule| rule.v6 == v6 && rule.mark == Some(OUTER_MARK)));
    }
}

#[test]
fn a_default_route_never_competes_in_table_main() {
    // The peer is of the other family: nothing is covered.
    let layout = Layout::of(&plan(&["0.0.0.0/0"], &[], &["2001:db8::1"]), 0, true);
    assert_eq!(ways(&layout, MAIN, "0.0.0.0/0"), []);
    assert_eq!(ways(&layout, table_of(0), "0.0.0.0/0"), [Via::Device, Via::Unreachable]);
    let lookups: Vec<_> = layout
        .rules
        .iter()
        .filter(|r| !r.v6 && r.iif.is_none() && r.to.is_none())
        .filter_map(|r| match r.action {
            Action::Lookup { table, suppress_len, .. } => Some((table, suppress_len)),
            _ => None,
        })
        .collect();
    // First whatever is more specific in main, then ours.
    assert_eq!(lookups, [(MAIN, Some(0)), (table_of(0), None)]);
}

#[test]
fn a_protected_prefix_does_not_shadow_a_wider_route() {
    let layout = Layout::of(&plan(&["0.0.0.0/0", "fd00::/8"], &["10.0.0.0/8", "fd02::/16"], &[]), 0, true);
    assert_eq!(ways(&layout, MAIN, "10.0.0.0/8"), [Via::Device, Via::Unreachable]);
    assert_eq!(ways(&layout, MAIN, "fd02::/16"), [Via::Device, Via::Unreachable]);
}

#[test]
fn a_protected_prefix_that_covers_a_peer_passes_the_reverse_path_filter() {
    let layout = Layout::of(&plan(&[], &["203.0.113.0/24"], &["203.0.113.1"]), 0, true);
    assert_eq!(ways(&layout, table_of(0), "203.0.113.0/24"), [Via::Device, Via::Unreachable]);
}

#[test]
fn only_transit_lets_packets_from_the_device_back_into_it() {
    for slot in [0, 5] {
        let mut plan = plan(&["0.0.0.0/0", "10.2.0.0/16"], &[], &["203.0.113.1"]);
        let layout = Layout::of(&plan, slot, true);
        for v6 in [false, true] {
            let of_device = |r: &&super::layout::Rule| r.v6 == v6 && r.iif.as_deref() == Some("braid0");
            let rules: Vec<_> = layout.rules.iter().filter(of_device).collect();
            assert!(rules.len() >= 2);
            for rule in &rules {
                match rule.action {
                    Action::Lookup { table, suppress_group, .. } => {
                        assert_eq!((table, suppress_group), (MAIN, Some(table_of(slot))));
                    }
                    Action::Unreachable => {}
                    Action::Nop | Action::Goto(_) => panic!("{rule:?}"),
                }
            }
            // Nothing that comes in by the device gets past the last of its rules.
            assert_eq!(rules.last().unwrap().action, Action::Unreachable);
            assert_eq!(rules.last().unwrap().to, None);
        }
        plan.transit = true;
        assert!(Layout::of(&plan, slot, true).rules.iter().all(|r| r.iif.is_none()));
    }
}

#[test]
fn without_ipv6_in_the_kernel_there_are_no_rules_of_it() {
    let layout = Layout::of(&plan(&["0.0.0.0/0"], &[], &[]), 0, false);
    assert!(layout.rules.iter().all(|r| !r.v6));
    assert!(!layout.rules.is_empty());
}

#[test]
fn all_that_is_ours_tells_its_slot() {
    let mut priorities = BTreeSet::new();
    for slot in 0..SLOTS {
        let routes = ["0.0.0.0/0", "203.0.113.1/32", "::/0", "2001:db8::1/128"];
        let layout = Layout::of(&plan(&routes, &[], &["203.0.113.1", "2001:db8::1"]), slot, true);
        for rule in &layout.rules {
            assert_eq!(rule.slot(), Some(slot), "{rule:?}");
            assert!(priorities.insert((rule.v6, rule.priority)), "{rule:?}");
            assert!(rule.priority < 32_766, "before main: {rule:?}");
        }
        for route in layout.routes.iter().filter(|r| r.via == Via::Unreachable) {
            assert_eq!(slot_of_metric(route.metric), Some(slot));
        }
        assert_eq!(slot_of_metric(unreachable_metric(slot)), Some(slot));
    }
    assert_eq!(slot_of_metric(DEVICE_METRIC), None);
}

#[test]
fn longer_prefixes_are_asked_first_whatever_gateway_has_them() {
    let long = Layout::of(&plan(&["203.0.113.0/24"], &[], &["203.0.113.1"]), SLOTS - 1, true);
    let short = Layout::of(&plan(&["203.0.112.0/21"], &[], &["203.0.113.1"]), 0, true);
    let of_prefix = |layout: &Layout| -> Vec<u32> {
        layout.rules.iter().filter(|r| r.to.is_some()).map(|r| r.priority).collect()
    };
    assert!(of_prefix(&long).iter().max() < of_prefix(&short).iter().min());
}

#[test]
fn an_unchanged_plan_takes_no_step() {
    let layout = Layout::of(&plan(&["0.0.0.0/0", "10.2.0.0/16"], &["10.0.0.0/8"], &["203.0.113.1"]), 0, true);
    assert_eq!(steps(&layout, &layout), []);
}

#[test]
fn a_new_source_is_one_step_without_a_gap() {
    let mut plan = plan(&["10.2.0.0/16"], &[], &[]);
    let before = Layout::of(&plan, 0, true);
    plan.routes[0].source = Some("10.1.0.1".parse().unwrap());
    let found = steps(&before, &Layout::of(&plan, 0, true));
    assert!(matches!(found[..], [Step::ChangeRoute { .. }]), "{found:?}");
}

#[test]
fn a_jump_is_added_before_what_it_jumps_over_and_removed_after_it() {
    let layout = Layout::of(&plan(&["0.0.0.0/0"], &[], &["203.0.113.1"]), 0, true);
    let is_jump = |s: &Step| matches!(s, Step::AddRule(r) | Step::RemoveRule(r) if !r.v6 && r.mark.is_some());
    let is_ours = |s: &Step| {
        matches!(s, Step::AddRule(r) | Step::RemoveRule(r)
            if !r.v6 && matches!(r.action, Action::Lookup { table, .. } if table != MAIN))
    };
    let adds = steps(&Layout::default(), &layout);
    assert!(adds.iter().position(is_jump).unwrap() < adds.iter().position(is_ours).unwrap());
    let removals = steps(&layout, &Layout::default());
    assert!(removals.iter().position(is_jump).unwrap() > removals.iter().position(is_ours).unwrap());
}

/// Applies a step as the kernel would, and refuses what the kernel refuses.
fn apply(layout: &mut Layout, step: &Step) {
    match step.clone() {
        Step::AddAddress(a) => assert!(layout.addresses.insert(a)),
        Step::RemoveAddress(a) => assert!(layout.addresses.remove(&a)),
        Step::AddRoute(route) => {
            let taken =
                |r: &Route| (r.prefix, r.table, r.metric) == (route.prefix, route.table, route.metric);
            assert!(!layout.routes.iter().any(taken), "{route:?}");
            layout.routes.insert(route);
        }
        Step::ChangeRoute { from, to } => {
            assert!(layout.routes.remove(&from));
            assert!(layout.routes.insert(to));
        }
        Step::RemoveRoute(r) => assert!(layout.routes.remove(&r)),
        Step::AddRule(r) => assert!(layout.rules.insert(r)),
        Step::RemoveRule(r) => assert!(layout.rules.remove(&r)),
    }
}

fn any_plan() -> impl Strategy<Value = KernelPlan> {
    let prefixes = prop::sample::subsequence(
        vec![
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.2.0.0/16",
            "203.0.112.0/21",
            "203.0.113.0/24",
            "::/0",
            "fd00::/8",
            "2001:db8::/32",
        ],
        0..8,
    );
    let peers = prop::sample::subsequence(vec!["203.0.113.1", "2001:db8::1", "10.2.0.1"], 0..=3);
    let source = prop::option::of(prop::sample::select(vec!["10.1.0.1", "10.1.0.2"]));
    let flags = (any::<bool>(), any::<bool>());
    (prefixes.clone(), prefixes, peers, flags, source).prop_map(|(r, p, peers, flags, source)| {
        let mut plan = plan(&r, &p, &peers);
        plan.transit = flags.0;
        if flags.1 {
            plan.apart =
                plan.routes.iter().map(|route| route.prefix).chain(plan.protect.iter().copied()).collect();
        }
        for route in plan.routes.iter_mut().filter(|r| r.prefix.addr().is_ipv4()) {
            route.source = source.map(|s| s.parse().unwrap());
        }
        plan
    })
}

proptest! {
    #[test]
    fn steps_lead_from_any_plan_to_any_other_and_back(a in any_plan(), b in any_plan()) {
        let (from, to) = (Layout::of(&a, 0, true), Layout::of(&b, 0, true));
        let both: BTreeSet<IpNet> = {
            let now: BTreeSet<_> = from.unreachable().collect();
            to.unreachable().filter(|p| now.contains(p)).collect()
        };
        let taken = steps(&from, &to);
        let first_removal = taken.iter().position(Step::removes).unwrap_or(taken.len());
        prop_assert!(taken[first_removal..].iter().all(Step::removes));
        let mut layout = from.clone();
        for step in &taken {
            apply(&mut layout, step);
            // Protected before and after means protected in between.
            let now: BTreeSet<_> = layout.unreachable().collect();
            prop_assert!(both.is_subset(&now));
        }
        prop_assert_eq!(&layout, &to);
        for step in taken.into_iter().rev() {
            apply(&mut layout, &step.inverse());
        }
        prop_assert_eq!(layout, from);
    }

    #[test]
    fn every_protected_prefix_ends_in_an_unreachable(plan in any_plan(), slot in 0..SLOTS) {
        let layout = Layout::of(&plan, slot, true);
        let named = plan.routes.iter().map(|r| r.prefix).chain(plan.protect.iter().copied());
        for prefix in named {
            let behind = layout.routes.iter().filter(|r| r.prefix == prefix).max_by_key(|r| r.metric);
            prop_assert_eq!(behind.map(|r| r.via), Some(Via::Unreachable));
        }
    }
}

//! What neighbors are told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use braid_bgp::{
    Attributes, Family, Origin, Outgoing, RouteLimit,
    adj_out::{AdjOut, ExportSettings},
    attributes::{GRACEFUL_SHUTDOWN, NO_ADVERTISE, NO_EXPORT},
    policy::{PrefixFilter, PrefixMatch},
    rib::{Change, Chosen, NeighborId, Notice},
};
use ipnet::IpNet;
use proptest::prelude::*;

use crate::{address, attributes, net};

const PEER: NeighborId = NeighborId(1);
const SOURCE: NeighborId = NeighborId(2);

fn settings() -> ExportSettings {
    let sources = BTreeSet::from([SOURCE, NeighborId(3)]);
    ExportSettings { sources, ..ExportSettings::external(65000, "169.254.10.2".parse().unwrap()) }
}

fn change(prefix: &str, source: NeighborId, attributes: Option<Attributes>) -> Change {
    let chosen = |attributes: Attributes| Chosen {
        neighbor: source,
        next_hop: attributes.next_hop,
        weight: 1,
        attributes: Arc::new(attributes),
    };
    Change { prefix: net(prefix), paths: attributes.map(chosen).into_iter().collect(), standby: Vec::new() }
}

/// The one announcement that is due.
fn only(out: &mut AdjOut) -> Option<Attributes> {
    let (outgoing, notice) = out.poll(usize::MAX);
    assert_eq!((outgoing.withdrawn, notice), (vec![], None));
    let [(attributes, prefixes)] = &outgoing.announced[..] else { return None };
    assert_eq!(prefixes.len(), 1);
    Some((**attributes).clone())
}

#[test]
fn what_we_announce_begins_with_our_as_and_leads_to_us() {
    let mut out = AdjOut::new(PEER, ExportSettings { prepend: 2, med: Some(200), ..settings() });
    out.announce([net("10.1.2.3/16")]);
    let told = only(&mut out).unwrap();
    assert_eq!(told.as_path, [65000; 3]);
    assert_eq!((told.med, told.local_pref, told.origin), (Some(200), None, Origin::Igp));
    assert_eq!(told.next_hop, "169.254.10.2".parse::<IpAddr>().unwrap());
    assert_eq!(out.advertised().next().unwrap().0, &net("10.1.0.0/16"));
    assert!(!out.pending());
    // The other end is to return by another tunnel: everything is told again, differently.
    out.configure(ExportSettings { prepend: 4, ..settings() });
    assert_eq!(only(&mut out).unwrap().as_path, [65000; 5]);
    out.announce([]);
    assert_eq!(out.poll(9).0, Outgoing { withdrawn: vec![net("10.1.0.0/16")], announced: vec![] });
    assert!(out.is_empty());
}

#[test]
fn what_is_passed_on_to_another_as_has_lost_what_does_not_leave_ours() {
    let rich = Attributes {
        med: Some(5),
        local_pref: Some(200),
        communities: vec![7],
        extended_communities: vec![0x0002_0000_0000_0001, 0x4004_0000_0000_0001],
        originator: Some([1, 1, 1, 1].into()),
        cluster_list: vec![[2, 2, 2, 2].into()],
        ..attributes(&[64512], 9)
    };
    let mut out = AdjOut::new(PEER, settings());
    out.handle_change(&change("10.2.0.0/16", SOURCE, Some(rich.clone())), Some(150));
    let told = only(&mut out).unwrap();
    assert_eq!(told.as_path, [65000, 64512]);
    assert_eq!((told.med, told.local_pref, told.originator, told.cluster_list.len()), (None, None, None, 0));
    assert_eq!((told.communities, told.extended_communities), (vec![7], vec![0x0002_0000_0000_0001]));
    // Within our AS it is what it was, but leads to us and says how much we like it.
    let mut out = AdjOut::new(PEER, ExportSettings { external: false, ..settings() });
    out.handle_change(&change("10.2.0.0/16", SOURCE, Some(rich.clone())), Some(150));
    let told = only(&mut out).unwrap();
    assert_eq!((told.as_path, told.med, told.local_pref), (vec![64512], Some(5), Some(150)));
    assert_eq!(told.next_hop, "169.254.10.2".parse::<IpAddr>().unwrap());
}

/// RFC 8326 section 4: the community, and no preference within the AS; a MED for who looks at no communities.
#[test]
fn a_way_that_is_about_to_go_is_told_to_be_the_worst() {
    for external in [true, false] {
        let mut out = AdjOut::new(PEER, ExportSettings { med: Some(200), external, ..settings() });
        out.announce([net("10.1.0.0/16")]);
        let before = only(&mut out).unwrap();
        out.set_leaving(true);
        let leaving = only(&mut out).unwrap();
        assert_eq!((&leaving.communities[..], leaving.med), (&[GRACEFUL_SHUTDOWN][..], Some(u32::MAX - 1)));
        assert_eq!(leaving.local_pref, if external { None } else { Some(0) });
        out.set_leaving(true);
        assert!(only(&mut out).is_none());
        out.set_leaving(false);
        assert_eq!(only(&mut out).unwrap(), before);
    }
}

#[test]
fn what_is_not_told() {
    let tagged = |community| Attributes { communities: vec![community], ..attributes(&[64512], 9) };
    let internal = ExportSettings { external: false, ..settings() };
    let deny = PrefixFilter::all().except([PrefixMatch::within(net("10.0.0.0/8"))]);
    let filtered = ExportSettings { filter: deny, ..settings() };
    let addressless = ExportSettings { next_hop_v4: None, ..settings() };
    let plain = || attributes(&[64512], 9);
    let cases = [
        ("NO_EXPORT to another AS", settings(), SOURCE, tagged(NO_EXPORT), Some(100), false),
        ("NO_EXPORT within ours", internal.clone(), SOURCE, tagged(NO_EXPORT), Some(100), true),
        ("NO_ADVERTISE", internal.clone(), SOURCE, tagged(NO_ADVERTISE), Some(100), false),
        ("what it sent itself", settings(), PEER, plain(), Some(100), false),
        ("what nobody named", settings(), NeighborId(9), plain(), Some(100), false),
        ("internal to internal", internal, SOURCE, plain(), None, false),
        ("internal to external", settings(), SOURCE, plain(), None, true),
        ("filtered", filtered, SOURCE, plain(), Some(100), false),
        ("no address of the family", addressless, SOURCE, plain(), Some(100), false),
    ];
    for (what, mut settings, source, attributes, preference, told) in cases {
        settings.sources.insert(PEER);
        let mut out = AdjOut::new(PEER, settings);
        out.handle_change(&change("10.2.0.0/16", source, Some(attributes)), preference);
        assert_eq!(only(&mut out).is_some(), told, "{what}");
    }
}

#[test]
fn the_default_is_to_pass_nothing_on() {
    let mut out = AdjOut::new(PEER, ExportSettings::external(65000, address(1)));
    out.handle_change(&change("10.2.0.0/16", SOURCE, Some(attributes(&[1], 9))), Some(100));
    assert!(!out.pending());
}

#[test]
fn no_more_than_the_peer_takes_with_a_warning_before() {
    let mut out = AdjOut::new(PEER, ExportSettings { limit: Some(RouteLimit::new(10)), ..settings() });
    let prefixes = |most: u8| (0..most).map(|n| net(&format!("10.{n}.0.0/16"))).collect::<Vec<_>>();
    out.announce(prefixes(7));
    assert_eq!(out.poll(usize::MAX).1, None);
    out.announce(prefixes(8));
    assert_eq!(out.poll(usize::MAX).1, Some(Notice::NearLimit { received: 8, most: 10 }));
    out.announce(prefixes(13));
    assert_eq!(out.poll(usize::MAX).1, Some(Notice::BeyondLimit { most: 10 }));
    assert_eq!((out.len(), out.held_back()), (10, 3));
    // Once is enough; and what goes makes room.
    out.announce(prefixes(13).into_iter().skip(2));
    let (outgoing, notice) = out.poll(usize::MAX);
    assert_eq!((outgoing.withdrawn.len(), outgoing.announced[0].1.len(), notice), (2, 2, None));
    assert_eq!((out.len(), out.held_back()), (10, 1));
}

#[test]
fn a_refresh_repeats_one_family_and_withdraws_what_has_gone() {
    let v6 = Some("fd00::2".parse().unwrap());
    let mut out = AdjOut::new(PEER, ExportSettings { next_hop_v6: v6, ..settings() });
    out.announce(["10.1.0.0/16", "10.2.0.0/16", "fd00::/16"].map(net));
    out.poll(usize::MAX);
    out.announce(["10.1.0.0/16", "fd00::/16"].map(net));
    out.refresh(Family::Ipv4);
    let (outgoing, _) = out.poll(usize::MAX);
    assert_eq!(outgoing.withdrawn, [net("10.2.0.0/16")]);
    assert_eq!(outgoing.announced.len(), 1);
    assert_eq!(outgoing.announced[0].1, [net("10.1.0.0/16")]);
    // A new session is told everything.
    out.restart(true);
    assert_eq!(out.poll(usize::MAX).0.announced.len(), 2);
}

/// RFC 4271 section 9.2, RFC 8654 section 4.
#[test]
fn a_route_that_fits_no_message_is_not_told_and_takes_its_predecessor_back() {
    let with = |communities: usize, ases: usize| Attributes {
        communities: vec![7; communities],
        ..attributes(&vec![70_000; ases], 9)
    };
    let prefix = net("10.2.0.0/16");
    let mut out = AdjOut::new(PEER, ExportSettings { limit: Some(RouteLimit::new(1)), ..settings() });
    let mut told = |attributes| {
        out.handle_change(&change("10.2.0.0/16", SOURCE, Some(attributes)), Some(100));
        let outgoing = out.poll(usize::MAX).0;
        (outgoing.announced.len(), outgoing.withdrawn, out.len(), out.held_back())
    };
    assert_eq!(told(with(2000, 1)), (0, vec![], 0, 0));
    assert_eq!(told(with(900, 1)), (1, vec![], 1, 0));
    assert_eq!(told(with(2000, 2)), (0, vec![prefix], 0, 0));
    assert_eq!(told(with(2001, 2)), (0, vec![], 0, 0));
    assert_eq!(told(with(1, 1)), (1, vec![], 1, 0));
    // RFC 6793 section 4.2.2: with AS numbers of two octets, the path stands in it twice.
    assert_eq!(told(with(1, 900)).0, 1);
    out.restart(false);
    assert!(out.poll(usize::MAX).0.announced.is_empty() && out.is_empty());
    out.restart(true);
    assert_eq!(out.poll(usize::MAX).0.announced.len(), 1);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "what is tested is how long it takes")]
fn a_peer_that_asks_again_and_again_costs_no_more_than_one_that_asks_once() {
    let mut out = AdjOut::new(PEER, settings());
    let prefixes = (0..100_000u32).map(|n| IpNet::new(Ipv4Addr::from(0x0a00_0000 + (n << 8)).into(), 24));
    out.announce(prefixes.map(Result::unwrap));
    out.poll(usize::MAX);
    let begin = Instant::now();
    for _ in 0..3000 {
        out.refresh(Family::Ipv4);
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    // What it asks once it was told some of it, it gets from the start.
    let told =
        |out: &mut AdjOut, budget| out.poll(budget).0.announced.iter().map(|(_, p)| p.len()).sum::<usize>();
    assert_eq!(told(&mut out, 40_000), 40_000);
    out.refresh(Family::Ipv4);
    assert_eq!(told(&mut out, usize::MAX), 100_000);
}

/// What happens to a table of what is told.
#[derive(Clone, Debug)]
enum Happening {
    Originate(BTreeSet<u8>),
    Change(u8, u32, Option<u32>),
    Configure(u8, bool, bool, Option<u32>),
    Restart,
    Refresh,
    Poll(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => proptest::collection::btree_set(0u8..6, 0..4).prop_map(Happening::Originate),
        6 => (0u8..6, 1u32..4, proptest::option::of(1u32..4)).prop_map(|(n, source, med)| Happening::Change(n, source, med)),
        1 => (0u8..2, any::<bool>(), any::<bool>(), proptest::option::of(1u32..5))
            .prop_map(|(prepend, external, filtered, limit)| Happening::Configure(prepend, external, filtered, limit)),
        1 => Just(Happening::Restart),
        1 => Just(Happening::Refresh),
        4 => (1usize..4).prop_map(Happening::Poll),
    ]
}

fn prefix(n: u8) -> IpNet {
    net(&format!("10.{n}.0.0/16"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_peer_holds_what_a_fresh_table_would_tell_it(happenings in proptest::collection::vec(happening(), 1..60)) {
        let mut current = settings();
        let mut out = AdjOut::new(PEER, current.clone());
        let mut peer: BTreeMap<IpNet, Attributes> = BTreeMap::new();
        let (mut originated, mut changes) = (BTreeSet::new(), BTreeMap::new());
        let apply = |peer: &mut BTreeMap<IpNet, Attributes>, outgoing: Outgoing| {
            for prefix in outgoing.withdrawn {
                assert!(peer.remove(&prefix).is_some(), "withdrawn without need: {prefix}");
            }
            for (attributes, prefixes) in outgoing.announced {
                peer.extend(prefixes.into_iter().map(|prefix| (prefix, (*attributes).clone())));
            }
        };
        for happening in happenings {
            match happening {
                Happening::Originate(set) => {
                    originated = set;
                    out.announce(originated.iter().map(|n| prefix(*n)));
                }
                Happening::Change(n, source, med) => {
                    let attributes = med.map(|med| Attributes { med: Some(med), ..attributes(&[source], 9) });
                    let change = change(&format!("10.{n}.0.0/16"), NeighborId(source), attributes);
                    out.handle_change(&change, Some(100 + source));
                    changes.insert(n, (change, source));
                }
                Happening::Configure(prepend, external, filtered, limit) => {
                    let filter = PrefixFilter::all();
                    let filter = if filtered { filter.except([PrefixMatch::exactly(prefix(1))]) } else { filter };
                    let limit = limit.map(RouteLimit::new);
                    current = ExportSettings { prepend, external, filter, limit, ..settings() };
                    out.configure(current.clone());
                }
                Happening::Restart => {
                    peer.clear();
                    out.restart(true);
                }
                Happening::Refresh => out.refresh(Family::Ipv4),
                Happening::Poll(budget) => apply(&mut peer, out.poll(budget).0),
            }
        }
        while out.pending() {
            apply(&mut peer, out.poll(2).0);
        }
        let mut fresh = AdjOut::new(PEER, ExportSettings { limit: None, ..current.clone() });
        fresh.announce(originated.iter().map(|n| prefix(*n)));
        for (change, source) in changes.values() {
            fresh.handle_change(change, Some(100 + *source));
        }
        fresh.poll(usize::MAX);
        let expected: BTreeMap<_, _> = fresh.advertised().map(|(prefix, a)| (*prefix, (**a).clone())).collect();
        let held: BTreeMap<_, _> = out.advertised().map(|(prefix, a)| (*prefix, (**a).clone())).collect();
        prop_assert_eq!(&peer, &held);
        match current.limit {
            None => prop_assert_eq!(&peer, &expected),
            Some(limit) => {
                // What it held before the limit came is not taken away.
                prop_assert!(peer.iter().all(|(prefix, attributes)| expected.get(prefix) == Some(attributes)));
                prop_assert!(peer.len() >= expected.len().min(limit.most as usize));
                prop_assert_eq!(peer.len() + out.held_back(), expected.len());
            }
        }
    }
}

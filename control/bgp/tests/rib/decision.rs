//! The decision process.

use std::net::Ipv4Addr;

use braid_bgp::{
    Attributes, Origin,
    attributes::GRACEFUL_SHUTDOWN,
    rib::decision::{Candidate, DecisionSettings, Multipath, Reason, decide},
};
use proptest::prelude::*;

use crate::{address, attributes};

/// One path as a table or a generator writes it.
#[derive(Clone, Debug)]
struct Path {
    attributes: Attributes,
    external: bool,
    local_pref: u32,
    cost: u32,
    peer: u8,
    peer_id: u8,
    path_id: u32,
}

impl Path {
    fn candidate(&self) -> Candidate<'_> {
        Candidate {
            attributes: &self.attributes,
            external: self.external,
            local_pref: self.local_pref,
            cost: self.cost,
            peer_id: Ipv4Addr::new(1, 1, 1, self.peer_id),
            peer_address: address(self.peer),
            path_id: self.path_id,
            neighbor: u32::from(self.peer),
        }
    }
}

/// From peer number `peer`, whose identifier is in that order too.
fn path(peer: u8, as_path: &[u32], change: impl FnOnce(&mut Path)) -> Path {
    let attributes = attributes(as_path, peer);
    let mut path =
        Path { attributes, external: true, local_pref: 100, cost: 0, peer, peer_id: peer, path_id: 0 };
    change(&mut path);
    path
}

fn plain() -> DecisionSettings {
    DecisionSettings { multipath: Multipath::Off, ..DecisionSettings::default() }
}

fn judge(paths: &[Path], settings: &DecisionSettings) -> Vec<Reason> {
    decide(&paths.iter().map(Path::candidate).collect::<Vec<_>>(), settings)
}

/// The first is best, and the second is lost for this reason, in whatever order they come.
fn beats(reason: Reason, better: Path, worse: Path, settings: &DecisionSettings) {
    assert_eq!(judge(&[better.clone(), worse.clone()], settings), [Reason::Best, reason]);
    assert_eq!(judge(&[worse, better], settings), [reason, Reason::Best]);
}

#[test]
fn every_step_in_its_place() {
    // The worse path wins every later step.
    let late = |peer, as_path: &[u32]| path(peer, as_path, |_| {});
    let cases = [
        (Reason::LocalPref, path(9, &[1, 2, 3], |p| p.local_pref = 101), late(1, &[1])),
        (
            Reason::AsPathLength,
            path(9, &[1, 2], |p| p.attributes.origin = Origin::Incomplete),
            late(1, &[1, 2, 3]),
        ),
        (
            Reason::Origin,
            path(9, &[1], |p| p.attributes.med = Some(9)),
            path(1, &[1], |p| p.attributes.origin = Origin::Egp),
        ),
        (
            Reason::Med,
            path(9, &[1, 2], |p| (p.attributes.med, p.cost) = (Some(8), 9)),
            path(1, &[1, 3], |p| p.attributes.med = Some(9)),
        ),
        (Reason::Med, path(9, &[1], |_| {}), path(1, &[1], |p| p.attributes.med = Some(1))),
        (Reason::External, path(9, &[1], |p| p.cost = 9), path(1, &[1], |p| p.external = false)),
        (Reason::Cost, path(9, &[1], |p| p.cost = 1), path(1, &[1], |p| p.cost = 2)),
        (Reason::Identifier, path(9, &[1], |p| p.peer_id = 1), path(1, &[1], |p| p.peer_id = 2)),
        (
            Reason::Identifier,
            path(9, &[1], |p| p.attributes.originator = Some([1, 1, 1, 0].into())),
            late(1, &[1]),
        ),
        (
            Reason::ClusterList,
            path(9, &[1], |p| p.peer_id = 1),
            path(1, &[1], |p| p.attributes.cluster_list = vec![[1; 4].into()]),
        ),
        (Reason::Address, path(2, &[1], |p| p.peer_id = 1), path(3, &[1], |p| p.peer_id = 1)),
        (Reason::PathId, path(1, &[1], |p| p.path_id = 4), path(1, &[1], |p| p.path_id = 5)),
    ];
    for (reason, better, worse) in cases {
        beats(reason, better, worse, &plain());
    }
}

#[test]
fn the_preference_is_the_peers_if_it_is_internal_and_ours_if_not() {
    let internal =
        |preference| path(9, &[], move |p| (p.external, p.attributes.local_pref) = (false, preference));
    let external = |preference| path(1, &[], move |p| p.local_pref = preference);
    beats(Reason::LocalPref, internal(Some(200)), external(150), &plain());
    beats(Reason::LocalPref, external(150), internal(None), &plain());
    // RFC 8326: what is about to go is the last choice.
    let going = path(1, &[], |p| (p.local_pref, p.attributes.communities) = (900, vec![GRACEFUL_SHUTDOWN]));
    beats(Reason::LocalPref, external(1), going, &plain());
}

#[test]
fn meds_count_within_a_neighbor_as_only() {
    let from = |peer, asn, med| path(peer, &[asn, 7], move |p| p.attributes.med = med);
    let one = [from(1, 1, Some(50)), from(2, 2, Some(10))];
    assert_eq!(judge(&one, &plain()), [Reason::Best, Reason::Identifier]);
    let always = DecisionSettings { always_compare_med: true, ..plain() };
    assert_eq!(judge(&one, &always), [Reason::Med, Reason::Best]);
    let worst = DecisionSettings { missing_med_is_worst: true, ..plain() };
    beats(Reason::Med, from(9, 1, Some(1000)), from(1, 1, None), &worst);
    // Internal routes without AS_PATH stand for our own AS.
    let inner = |peer, med| path(peer, &[], move |p| (p.external, p.attributes.med) = (false, Some(med)));
    beats(Reason::Med, inner(9, 1), inner(1, 2), &plain());
}

#[test]
fn a_med_eliminates_whatever_the_order() {
    // Pairwise comparison would go round in circles: 1 beats 2 by identifier, 2 beats 3, 3 beats 1 by MED.
    let paths = [
        path(1, &[1, 7], |p| p.attributes.med = Some(20)),
        path(2, &[2, 7], |_| {}),
        path(3, &[1, 7], |p| p.attributes.med = Some(10)),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let reasons = judge(&order.map(|index| paths[index].clone()), &plain());
        for (index, reason) in order.into_iter().zip(reasons) {
            assert_eq!(reason, [Reason::Med, Reason::Best, Reason::Identifier][index], "{order:?}");
        }
    }
}

#[test]
fn equal_paths_share_and_relaxed_ones_need_only_equal_length() {
    let paths = [
        path(1, &[1, 7], |_| {}),
        path(2, &[1, 7], |_| {}),
        path(3, &[2, 7], |_| {}),
        path(4, &[2, 7, 7], |_| {}),
        path(5, &[1, 7], |p| p.external = false),
        path(6, &[1, 7], |p| p.cost = 1),
    ];
    let shared = |multipath, max_paths| {
        let settings = DecisionSettings { multipath, max_paths, ..DecisionSettings::default() };
        let reasons = judge(&paths, &settings);
        let chosen = (0..paths.len()).filter(|index| reasons[*index].chosen());
        chosen.map(|index| index + 1).collect::<Vec<_>>()
    };
    assert_eq!(shared(Multipath::Off, 8), [1]);
    assert_eq!(shared(Multipath::Equal, 8), [1, 2]);
    assert_eq!(shared(Multipath::Relaxed, 8), [1, 2, 3]);
    assert_eq!(shared(Multipath::Relaxed, 2), [1, 2]);
    assert_eq!(shared(Multipath::Relaxed, 1), [1]);
}

#[test]
fn two_paths_of_one_peer_by_one_next_hop_are_one_way() {
    let by = |path_id, next_hop| {
        path(1, &[1], move |p| (p.path_id, p.attributes.next_hop) = (path_id, address(next_hop)))
    };
    let reasons = judge(&[by(1, 1), by(2, 1), by(3, 2)], &DecisionSettings::default());
    assert_eq!(reasons, [Reason::Best, Reason::PathId, Reason::Multipath]);
}

/// Whether `a` eliminates `b` in a step, as RFC 4271 section 9.1.2.2 puts it.
fn eliminates(step: usize, a: &Path, b: &Path, settings: &DecisionSettings) -> bool {
    let preference = |p: &Path| match (p.attributes.communities.contains(&GRACEFUL_SHUTDOWN), p.external) {
        (true, _) => 0,
        (false, true) => p.local_pref,
        (false, false) => p.attributes.local_pref.unwrap_or(100),
    };
    let med = |p: &Path| p.attributes.med.unwrap_or(if settings.missing_med_is_worst { u32::MAX } else { 0 });
    let same_as = a.attributes.as_path.first() == b.attributes.as_path.first();
    let id = |p: &Path| p.attributes.originator.unwrap_or(Ipv4Addr::new(1, 1, 1, p.peer_id));
    match step {
        0 => preference(a) > preference(b),
        1 => a.attributes.as_path.len() < b.attributes.as_path.len(),
        2 => a.attributes.origin < b.attributes.origin,
        3 => (same_as || settings.always_compare_med) && med(a) < med(b),
        4 => a.external && !b.external,
        5 => a.cost < b.cost,
        6 => id(a) < id(b),
        7 => a.attributes.cluster_list.len() < b.attributes.cluster_list.len(),
        8 => a.peer < b.peer,
        9 => a.path_id < b.path_id,
        _ => false,
    }
}

const STEPS: [Reason; 10] = [
    Reason::LocalPref,
    Reason::AsPathLength,
    Reason::Origin,
    Reason::Med,
    Reason::External,
    Reason::Cost,
    Reason::Identifier,
    Reason::ClusterList,
    Reason::Address,
    Reason::PathId,
];

/// The same, slowly: each step asks of every pair.
fn model(paths: &[Path], settings: &DecisionSettings) -> Vec<Reason> {
    let mut reasons = vec![Reason::Best; paths.len()];
    let mut equal = Vec::new();
    for (step, reason) in STEPS.into_iter().enumerate() {
        let alive: Vec<usize> = (0..paths.len()).filter(|index| reasons[*index] == Reason::Best).collect();
        if step == 6 {
            equal = alive.clone();
        }
        for b in &alive {
            if alive.iter().any(|a| eliminates(step, &paths[*a], &paths[*b], settings)) {
                reasons[*b] = reason;
            }
        }
    }
    let best = (0..paths.len()).find(|index| reasons[*index] == Reason::Best);
    let Some(best) = best.filter(|_| settings.multipath != Multipath::Off) else { return reasons };
    // The next best of what is left joins, again and again.
    let mut ways = vec![best];
    equal.retain(|index| *index != best);
    while !equal.is_empty() {
        let next = *equal
            .iter()
            .find(|a| {
                equal.iter().all(|b| {
                    let first = (6..10).find(|step| {
                        eliminates(*step, &paths[*b], &paths[**a], settings)
                            || eliminates(*step, &paths[**a], &paths[*b], settings)
                    });
                    first.is_none_or(|step| eliminates(step, &paths[**a], &paths[*b], settings))
                })
            })
            .unwrap();
        equal.retain(|index| *index != next);
        let (path, first) = (&paths[next], &paths[best]);
        let alike =
            settings.multipath == Multipath::Relaxed || path.attributes.as_path == first.attributes.as_path;
        let new = ways.iter().all(|way| {
            (paths[*way].peer, paths[*way].attributes.next_hop) != (path.peer, path.attributes.next_hop)
        });
        if alike && new && ways.len() < settings.max_paths {
            ways.push(next);
            reasons[next] = Reason::Multipath;
        }
    }
    reasons
}

fn any_path() -> impl Strategy<Value = Path> {
    let sent = (
        prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)],
        proptest::collection::vec(1u32..4, 0..3),
        proptest::option::of(0u32..3),
        proptest::option::of(99u32..102),
        proptest::option::of(0u8..3),
        0usize..3,
        0u8..3,
        proptest::bool::weighted(0.1),
    );
    (sent, any::<bool>(), 99u32..102, 0u32..2, 1u8..4, 0u32..2).prop_map(
        |(
            (origin, as_path, med, preference, originator, clusters, next_hop, going),
            external,
            local_pref,
            cost,
            peer,
            path_id,
        )| Path {
            attributes: Attributes {
                origin,
                med,
                local_pref: preference,
                originator: originator.map(|last| Ipv4Addr::new(1, 1, 1, last)),
                cluster_list: vec![Ipv4Addr::UNSPECIFIED; clusters],
                communities: if going { vec![GRACEFUL_SHUTDOWN] } else { Vec::new() },
                ..attributes(&as_path, next_hop)
            },
            external,
            local_pref,
            cost,
            peer,
            peer_id: peer % 2,
            path_id,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_decides_as_the_model_does_and_whatever_the_order(
        mut paths in proptest::collection::vec(any_path(), 0..7),
        multipath in prop_oneof![Just(Multipath::Off), Just(Multipath::Equal), Just(Multipath::Relaxed)],
        max_paths in 1usize..4,
        flags in any::<[bool; 2]>(),
        turn in 0usize..7,
    ) {
        // A peer sends one path of one identifier.
        let mut seen = std::collections::BTreeSet::new();
        paths.retain(|path| seen.insert((path.peer, path.path_id)));
        let settings = DecisionSettings {
            multipath,
            max_paths,
            always_compare_med: flags[0],
            missing_med_is_worst: flags[1],
        };
        let mut reasons = judge(&paths, &settings);
        prop_assert_eq!(&reasons, &model(&paths, &settings));
        prop_assert_eq!(reasons.iter().filter(|reason| **reason == Reason::Best).count(), paths.len().min(1));
        if !paths.is_empty() {
            let turn = turn % paths.len();
            paths.rotate_left(turn);
            reasons.rotate_left(turn);
            prop_assert_eq!(judge(&paths, &settings), reasons.clone());
            paths.reverse();
            reasons.reverse();
            prop_assert_eq!(judge(&paths, &settings), reasons);
        }
    }
}

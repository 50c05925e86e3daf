//! What a peer may do wrong (RFC 4271 section 6, RFC 7606), and what it costs.

use braid_bgp::{Cause, Effect, Event, Family, Handling, Neighbor, NeighborConfig, SessionState};
use proptest::prelude::*;

use crate::{
    SECOND, config,
    script::{
        AS_PATH, AS4, EVERYTHING, IPV4, NEXT_HOP, ORIGIN, REACH, Script, TEN_ONE, keepalive, message,
        notification, open, update,
    },
};

fn established() -> Script {
    Script::established(config(0), EVERYTHING)
}

/// What is done about an UPDATE: attribute and handling of what was malformed, routes announced and withdrawn.
fn outcome(octets: &[u8], internal: bool) -> (Vec<(u8, Handling)>, usize, usize) {
    let config =
        if internal { NeighborConfig { local_as: 65001, remote_as: 65001, ..config(0) } } else { config(0) };
    let mut script = Script::established(config, EVERYTHING);
    let effects = script.feed(octets);
    let (mut malformed, mut announced, mut withdrawn) = (Vec::new(), 0, 0);
    for effect in &effects {
        match effect {
            Effect::Event(Event::Malformed { attribute, handling, .. }) => {
                malformed.push((*attribute, *handling))
            }
            Effect::Event(Event::Update(update)) => {
                announced +=
                    update.announced.iter().map(|announcement| announcement.nlri.len()).sum::<usize>();
                withdrawn += update.withdrawn.len();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(script.neighbor.state(), SessionState::Established);
    let counters = script.neighbor.counters();
    let count = |of| malformed.iter().filter(|(_, handling)| *handling == of).count() as u64;
    assert_eq!(counters.attributes_discarded, count(Handling::AttributeDiscarded));
    assert_eq!(counters.treated_as_withdrawn, count(Handling::TreatedAsWithdrawn));
    assert_eq!(counters.malformed_messages, 0);
    (malformed, announced, withdrawn)
}

#[test]
fn every_class_of_rfc_7606() {
    use Handling::{AttributeDiscarded, TreatedAsWithdrawn};
    let medium: &[u8] = &[0x80, 4, 4, 0, 0, 0, 5];
    let with = |extra: &[u8]| update(&[], &[ORIGIN, AS_PATH, NEXT_HOP, extra], TEN_ONE);
    assert_eq!(outcome(&with(medium), false), (vec![], 1, 0));

    let withdrawn: &[(u8, &str, Vec<u8>)] = &[
        (1, "ORIGIN of wrong length", update(&[], &[&[0x40, 1, 2, 0, 0], AS_PATH, NEXT_HOP], TEN_ONE)),
        (1, "ORIGIN unknown", update(&[], &[&[0x40, 1, 1, 3], AS_PATH, NEXT_HOP], TEN_ONE)),
        (1, "ORIGIN flagged optional", update(&[], &[&[0xc0, 1, 1, 0], AS_PATH, NEXT_HOP], TEN_ONE)),
        (1, "no ORIGIN", update(&[], &[AS_PATH, NEXT_HOP], TEN_ONE)),
        (
            2,
            "AS_PATH with an unknown segment",
            update(&[], &[ORIGIN, &[0x40, 2, 6, 9, 1, 0, 0, 0xfd, 0xe9], NEXT_HOP], TEN_ONE),
        ),
        (
            2,
            "AS_PATH beyond its end",
            update(&[], &[ORIGIN, &[0x40, 2, 6, 2, 2, 0, 0, 0xfd, 0xe9], NEXT_HOP], TEN_ONE),
        ),
        (2, "AS_PATH with an empty segment", update(&[], &[ORIGIN, &[0x40, 2, 2, 2, 0], NEXT_HOP], TEN_ONE)),
        (
            2,
            "AS_PATH with an AS_SET (RFC 9774)",
            update(
                &[],
                &[ORIGIN, &[0x40, 2, 12, 2, 1, 0, 0, 0xfd, 0xe9, 1, 1, 0, 0, 0, 1], NEXT_HOP],
                TEN_ONE,
            ),
        ),
        (
            2,
            "AS_PATH of another neighbor",
            update(&[], &[ORIGIN, &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xea], NEXT_HOP], TEN_ONE),
        ),
        (2, "no AS_PATH", update(&[], &[ORIGIN, NEXT_HOP], TEN_ONE)),
        (3, "NEXT_HOP of wrong length", update(&[], &[ORIGIN, AS_PATH, &[0x40, 3, 3, 1, 2, 3]], TEN_ONE)),
        (3, "NEXT_HOP 0.0.0.0", update(&[], &[ORIGIN, AS_PATH, &[0x40, 3, 4, 0, 0, 0, 0]], TEN_ONE)),
        (3, "no NEXT_HOP", update(&[], &[ORIGIN, AS_PATH], TEN_ONE)),
        (4, "MED of wrong length", with(&[0x80, 4, 3, 0, 0, 5])),
        (8, "communities of wrong length", with(&[0xc0, 8, 3, 1, 2, 3])),
        (16, "extended communities of wrong length", with(&[0xc0, 16, 7, 1, 2, 3, 4, 5, 6, 7])),
        (32, "large communities of wrong length", with(&[0xc0, 32, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])),
        (99, "an unknown well-known attribute", with(&[0x40, 99, 1, 1])),
    ];
    for (attribute, what, octets) in withdrawn {
        let (malformed, announced, withdrawn) = outcome(octets, false);
        assert!(malformed.contains(&(*attribute, TreatedAsWithdrawn)), "{what}: {malformed:?}");
        assert_eq!((announced, withdrawn), (0, 1), "{what}");
    }

    let discarded: &[(u8, &str, &[u8])] = &[
        (6, "ATOMIC_AGGREGATE with a value", &[0x40, 6, 1, 0]),
        (7, "AGGREGATOR of wrong length", &[0xc0, 7, 6, 0, 1, 10, 0, 0, 1]),
        (5, "LOCAL_PREF of wrong length from outside", &[0x40, 5, 3, 0, 0, 1]),
        (9, "ORIGINATOR_ID of wrong length from outside", &[0x80, 9, 3, 0, 0, 1]),
        (10, "CLUSTER_LIST of wrong length from outside", &[0x80, 10, 3, 0, 0, 1]),
    ];
    for (attribute, what, extra) in discarded {
        assert_eq!(outcome(&with(extra), false), (vec![(*attribute, AttributeDiscarded)], 1, 0), "{what}");
    }
    // The same from inside costs the route.
    for (attribute, what, extra) in &discarded[2..] {
        let (malformed, announced, withdrawn) = outcome(&with(extra), true);
        assert_eq!(
            (malformed, announced, withdrawn),
            (vec![(*attribute, TreatedAsWithdrawn)], 0, 1),
            "{what}"
        );
    }

    // Section 3 (d): nor does one from inside do without NEXT_HOP (RFC 4271 section 5.1.3) for routes in the body.
    let octets = update(&[], &[ORIGIN, AS_PATH], TEN_ONE);
    assert_eq!(outcome(&octets, true), (vec![(3, TreatedAsWithdrawn)], 0, 1));
    assert_eq!(outcome(&update(&[], &[ORIGIN, AS_PATH, REACH], &[]), true), (vec![], 1, 0));

    // Section 3 (g): of an attribute that comes twice, the first counts.
    let twice = outcome(&with(&[medium, &[0x80, 4, 4, 0, 0, 0, 9]].concat()), false);
    assert_eq!((twice.1, twice.2), (1, 0));
    // Section 4: an attribute that overruns the attributes.
    let overrun = outcome(&with(&[0x80, 4, 9, 0, 0, 0, 5]), false);
    assert_eq!((overrun.1, overrun.2), (0, 1));
    // The strongest handling counts.
    let both = outcome(&with(&[&[0x40, 6, 1, 0][..], &[0x80, 4, 3, 0, 0, 5]].concat()), false);
    assert_eq!((both.0.len(), both.1, both.2), (2, 0, 1));
}

/// Section 5.2: an error whose routes are not found cannot be treated as their withdrawal.
#[test]
fn what_is_malformed_without_reachable_routes() {
    let (bad_origin, discarded): (&[u8], &[u8]) = (&[0x40, 1, 1, 9], &[0x40, 6, 1, 0]);
    let empty_reach: Vec<u8> = [&[0x80, 14, 21], &REACH[3..24]].concat();
    let withdrawing: &[u8] = &[0x80, 15, 8, 0, 2, 1, 32, 0xfd, 0, 0, 1];
    let v6_end: &[u8] = &[0x80, 15, 3, 0, 2, 1];
    let fatal: &[(&str, Vec<u8>, (u8, u8))] = &[
        ("nothing but the attribute", update(&[], &[bad_origin], &[]), (3, 6)),
        ("withdrawn routes in the body", update(TEN_ONE, &[bad_origin, AS_PATH], &[]), (3, 6)),
        ("MP_UNREACH_NLRI", update(&[], &[withdrawing, bad_origin], &[]), (3, 6)),
        ("what would be an End-of-RIB", update(&[], &[v6_end, bad_origin], &[]), (3, 6)),
        ("MP_REACH_NLRI without routes", update(&[], &[&empty_reach, bad_origin, AS_PATH], &[]), (3, 6)),
        ("attributes that overrun", update(&[], &[withdrawing, &[0x80, 4, 9, 0]], &[]), (3, 1)),
        ("the strongest counts", update(&[], &[discarded, &[0x80, 4, 3, 0, 0, 5]], &[]), (3, 5)),
    ];
    for (what, octets, expected) in fatal {
        let mut script = established();
        assert_eq!(notification(&script.feed(octets)), Some(*expected), "{what}");
        assert_eq!(script.neighbor.counters().malformed_messages, 1, "{what}");
    }
    // What is discarded leaves no doubt; nor is there anything wrong with these.
    for (what, octets, malformed, withdrawn) in [
        ("discarded", update(TEN_ONE, &[discarded], &[]), vec![(6, Handling::AttributeDiscarded)], 1),
        ("body", update(TEN_ONE, &[], &[]), vec![], 1),
        ("MP_UNREACH_NLRI", update(&[], &[withdrawing], &[]), vec![], 1),
        ("both, and attributes", update(TEN_ONE, &[ORIGIN, AS_PATH, withdrawing], &[]), vec![], 2),
        ("attributes", update(&[], &[ORIGIN, AS_PATH], &[]), vec![], 0),
    ] {
        assert_eq!(outcome(&octets, false), (malformed, 0, withdrawn), "{what}");
    }
    // Routes were found, though of a family that was not negotiated, or besides others that are withdrawn.
    let mut script = Script::established(config(0), &[IPV4, AS4]);
    let effects = script.feed(&update(&[], &[REACH, bad_origin, AS_PATH], &[]));
    assert!(matches!(effects[..], [Effect::Event(Event::Malformed { attribute: 1, .. })]), "{effects:?}");
    let octets = update(TEN_ONE, &[REACH, bad_origin, AS_PATH], &[]);
    assert_eq!(outcome(&octets, false), (vec![(1, Handling::TreatedAsWithdrawn)], 0, 2));
}

#[test]
fn what_ends_the_session() {
    let mp_reach: &[u8] = &[0x80, 14, 5, 0, 2, 1, 4, 1];
    let mp_unreach: &[u8] = &[0x80, 15, 3, 0, 2, 1];
    let flagged = |flags: u8, attribute: &[u8]| [&[flags], &attribute[1..]].concat();
    let beyond: Vec<u8> = [&[0x80, 14, 22], &REACH[3..24], &[129]].concat();
    let cases: &[(&str, Vec<u8>, (u8, u8))] = &[
        (
            "a prefix beyond 32 bits",
            update(&[], &[ORIGIN, AS_PATH, NEXT_HOP], &[33, 10, 1, 0, 0, 0]),
            (3, 10),
        ),
        ("a prefix cut off", update(&[], &[ORIGIN, AS_PATH, NEXT_HOP], &[24, 10]), (3, 10)),
        // RFC 7606 section 3 (i): in the same manner.
        ("a withdrawn prefix cut off", update(&[24, 10], &[], &[]), (3, 10)),
        ("lengths that do not fit", message(2, &[0, 9, 0, 0]), (3, 1)),
        ("MP_REACH_NLRI cut off", update(&[], &[ORIGIN, AS_PATH, mp_reach], &[]), (3, 9)),
        ("MP_REACH_NLRI beyond 128 bits", update(&[], &[&beyond, ORIGIN, AS_PATH], &[]), (3, 9)),
        ("MP_UNREACH_NLRI beyond its end", update(&[], &[&[0x80, 15, 9, 0, 2, 1]], &[]), (3, 9)),
        // RFC 7606 section 3 (g).
        ("MP_REACH_NLRI twice", update(&[], &[REACH, ORIGIN, AS_PATH, REACH], &[]), (3, 1)),
        ("MP_UNREACH_NLRI twice", update(&[], &[mp_unreach, mp_unreach], &[]), (3, 1)),
        // RFC 7606 sections 3 (c) and 5.3: flags in conflict make them incorrect, and where the routes are unknown.
        (
            "MP_REACH_NLRI flagged transitive",
            update(&[], &[&flagged(0xc0, REACH), ORIGIN, AS_PATH], &[]),
            (3, 4),
        ),
        (
            "MP_REACH_NLRI flagged well-known",
            update(&[], &[&flagged(0x40, REACH), ORIGIN, AS_PATH, NEXT_HOP], TEN_ONE),
            (3, 4),
        ),
        ("MP_UNREACH_NLRI flagged transitive", update(&[], &[&flagged(0xc0, mp_unreach)], &[]), (3, 4)),
        ("MP_UNREACH_NLRI flagged well-known", update(&[], &[&flagged(0, mp_unreach)], &[]), (3, 4)),
        ("a marker that is none", vec![0; 19], (1, 1)),
        ("a length below the header's", [&[0xff; 16][..], &[0, 18, 4]].concat(), (1, 2)),
        ("a length beyond 4096", [&[0xff; 16][..], &[0x10, 1, 2]].concat(), (1, 2)),
        ("an unknown type", message(9, &[]), (1, 3)),
        ("a KEEPALIVE with a body", message(4, &[1]), (1, 2)),
        ("an OPEN in between", open(65001, 30, [10, 0, 0, 2], EVERYTHING), (5, 0)),
    ];
    for (what, octets, expected) in cases {
        let mut script = established();
        let effects = script.feed(octets);
        assert_eq!(notification(&effects), Some(*expected), "{what}: {effects:?}");
        // A message that is only not expected is none of these.
        let malformed = u64::from(expected.0 != 5);
        assert_eq!(script.neighbor.counters().malformed_messages, malformed, "{what}");
        let down = effects.iter().any(|effect| {
            matches!(effect, Effect::Event(Event::Down { cause: Cause::Sent(_), retain }) if retain.is_empty())
        });
        assert!(down, "{what}: {effects:?}");
        assert_ne!(script.neighbor.state(), SessionState::Established);
        // What follows on the connection is of no interest.
        assert_eq!(script.feed(&keepalive()), []);
    }
}

#[test]
fn opens_that_are_refused() {
    let cases: &[(&str, Vec<u8>, (u8, u8))] = &[
        ("another AS", open(65009, 30, [10, 0, 0, 2], &[IPV4]), (2, 2)),
        ("another AS in four octets", open(65001, 30, [10, 0, 0, 2], &[IPV4, &[65, 4, 0, 1, 0, 0]]), (2, 2)),
        ("a hold time of one second", open(65001, 1, [10, 0, 0, 2], EVERYTHING), (2, 6)),
        ("no identifier", open(65001, 30, [0; 4], EVERYTHING), (2, 3)),
        (
            "version 3",
            {
                let mut open = open(65001, 30, [10, 0, 0, 2], &[]);
                open[19] = 3;
                open
            },
            (2, 1),
        ),
        ("an UPDATE first", update(&[], &[], &[]), (5, 0)),
        ("a KEEPALIVE first", keepalive(), (5, 0)),
    ];
    for (what, octets, expected) in cases {
        let mut script = Script::accepted(config(0));
        let effects = script.feed(octets);
        let sent = notification(&effects).unwrap_or_else(|| panic!("{what}: {effects:?}"));
        assert!(sent.0 == expected.0 && (sent.0 == 5 || sent == *expected), "{what}: {sent:?}");
        assert!(
            effects.iter().any(|effect| matches!(effect, Effect::Event(Event::Failed(Cause::Sent(_))))),
            "{what}"
        );
    }
}

/// Both ends have connected, and the peer of this identifier sends its OPEN on both connections, on ours first
/// or not. Which connection was closed: ours?
fn collision(peer_id: [u8; 4], ours_first: bool) -> bool {
    let now = crate::origin();
    let mut neighbor = Neighbor::new(config(0), 1);
    neighbor.start(now);
    let Some(Effect::Connect(ours)) = neighbor.poll_effect() else { panic!("no attempt") };
    neighbor.handle_connected(now, ours);
    let theirs = neighbor.handle_accepted(now).unwrap();
    let mut effects = Vec::new();
    for id in if ours_first { [ours, theirs] } else { [theirs, ours] } {
        neighbor.handle_bytes(now, id, &open(65001, 30, peer_id, EVERYTHING));
        effects.extend(std::iter::from_fn(|| neighbor.poll_effect()));
    }
    // RFC 4486: Connection Collision Resolution.
    assert_eq!(notification(&effects), Some((6, 7)));
    let closed = effects.iter().filter_map(|effect| match effect {
        Effect::Close(id) => Some(*id),
        _ => None,
    });
    let closed: Vec<_> = closed.collect();
    assert_eq!(closed.len(), 1);
    let left = if closed == [ours] { theirs } else { ours };
    neighbor.handle_bytes(now, left, &keepalive());
    assert_eq!(neighbor.state(), SessionState::Established);
    closed == [ours]
}

#[test]
fn of_two_connections_that_of_the_higher_identifier_survives() {
    for ours_first in [true, false] {
        assert!(collision([10, 0, 0, 2], ours_first));
        assert!(!collision([9, 9, 9, 9], ours_first));
        // RFC 6286: of equal identifiers, that of the higher AS number.
        assert!(collision([10, 0, 0, 1], ours_first));
    }
}

/// What the peer will resolve in favour of its own connection, once it has read our OPEN there, is not established
/// before: both would be lost.
#[test]
fn the_connection_that_the_peer_will_keep_is_kept_before_its_open_comes() {
    let begin = crate::origin();
    let second = std::time::Duration::from_secs(1);
    for (now, survives) in [(begin + second, false), (begin + 6 * second, true)] {
        let mut neighbor = Neighbor::new(config(0), 1);
        neighbor.start(begin);
        let Some(Effect::Connect(ours)) = neighbor.poll_effect() else { panic!("no attempt") };
        neighbor.handle_connected(begin, ours);
        let theirs = neighbor.handle_accepted(begin).unwrap();
        for message in [open(65001, 30, [10, 0, 0, 2], EVERYTHING), keepalive()] {
            neighbor.handle_bytes(now, ours, &message);
        }
        // One on which nothing was heard for long is dead.
        assert_eq!(neighbor.state() == SessionState::Established, survives);
        for message in [open(65001, 30, [10, 0, 0, 2], EVERYTHING), keepalive()] {
            neighbor.handle_bytes(now, theirs, &message);
        }
        assert_eq!((neighbor.state(), neighbor.counters().established), (SessionState::Established, 1));
    }
}

#[test]
fn an_open_that_is_refused_ends_its_own_connection_only() {
    let now = crate::origin();
    let mut neighbor = Neighbor::new(config(0), 1);
    neighbor.start(now);
    let Some(Effect::Connect(ours)) = neighbor.poll_effect() else { panic!("no attempt") };
    neighbor.handle_connected(now, ours);
    neighbor.handle_bytes(now, ours, &open(65001, 30, [10, 0, 0, 2], EVERYTHING));
    let theirs = neighbor.handle_accepted(now).unwrap();
    neighbor.handle_bytes(now, theirs, &open(65009, 30, [10, 0, 0, 2], &[IPV4]));
    let effects: Vec<_> = std::iter::from_fn(|| neighbor.poll_effect()).collect();
    assert_eq!(notification(&effects), Some((2, 2)));
    assert!(effects.contains(&Effect::Close(theirs)) && !effects.contains(&Effect::Close(ours)));
    neighbor.handle_bytes(now, ours, &keepalive());
    assert_eq!(neighbor.state(), SessionState::Established);
}

#[test]
fn a_peer_with_two_octets_of_as_number() {
    let mut script = Script::established(config(0), &[IPV4]);
    // AS_PATH 65001 23456 64999, AS4_PATH 4200000001 64999 (RFC 6793 section 4.2.3).
    let path: &[u8] = &[0x40, 2, 8, 2, 3, 0xfd, 0xe9, 0x5b, 0xa0, 0xfd, 0xe7];
    let path4: &[u8] = &[0xc0, 17, 10, 2, 2, 0xfa, 0x56, 0xea, 0x01, 0, 0, 0xfd, 0xe7];
    let update = script.routes(&update(&[], &[ORIGIN, path, NEXT_HOP, path4], TEN_ONE));
    assert_eq!(update.announced[0].attributes.as_path, [65001, 4_200_000_001, 64999]);
}

#[test]
fn several_paths_a_prefix_where_that_was_agreed_on() {
    // RFC 7911: the peer can send several paths of IPv4 unicast.
    let add_path: &[u8] = &[69, 4, 0, 1, 1, 2];
    let paths: &[u8] = &[0, 0, 0, 7, 16, 10, 1, 0, 0, 0, 9, 16, 10, 1];
    let mut script =
        Script::established(NeighborConfig { add_path: true, ..config(0) }, &[IPV4, AS4, add_path]);
    assert_eq!(script.neighbor.established().unwrap().0.add_path, [Family::Ipv4]);
    let announced = script.routes(&update(&[], &[ORIGIN, AS_PATH, NEXT_HOP], paths)).announced;
    let ids: Vec<_> = announced[0].nlri.iter().map(|nlri| (nlri.prefix.to_string(), nlri.path_id)).collect();
    assert_eq!(ids, [("10.1.0.0/16".to_string(), 7), ("10.1.0.0/16".to_string(), 9)]);
    let withdrawn = script.routes(&update(&paths[..7], &[], &[])).withdrawn;
    assert_eq!(withdrawn[0].path_id, 7);
}

#[test]
fn a_family_that_was_not_agreed_on_is_ignored() {
    let mut script = Script::established(config(0), &[IPV4, AS4]);
    assert_eq!(script.feed(&update(&[], &[ORIGIN, AS_PATH, REACH], &[])), []);
    let mut script = established();
    assert_eq!(script.routes(&update(&[], &[ORIGIN, AS_PATH, REACH], &[])).announced.len(), 1);
}

#[test]
fn attributes_that_nobody_knows_are_passed_on_if_they_are_to_be() {
    let mut script = established();
    let transitive: &[u8] = &[0xc0, 201, 2, 1, 2];
    let local: &[u8] = &[0x80, 202, 2, 1, 2];
    let update = script.routes(&update(&[], &[ORIGIN, AS_PATH, NEXT_HOP, transitive, local], TEN_ONE));
    let opaque = &update.announced[0].attributes.opaque;
    assert_eq!(opaque.len(), 1);
    // RFC 4271 section 5: with the partial bit.
    assert_eq!((opaque[0].code, opaque[0].flags, &opaque[0].value[..]), (201, 0xe0, &[1, 2][..]));
    // Nor do they keep the rest of what was received.
    assert!(opaque[0].value.is_unique());
}

#[test]
fn as_number_zero_is_malformed() {
    // RFC 7607 section 2. The peer's AS comes first, as it must.
    let (header, own) = AS_PATH.split_at(5);
    let longer = [&[0x40, 2, header[2] + 4, 2, 2], own, &[0; 4]].concat();
    let octets = update(&[], &[ORIGIN, &longer, NEXT_HOP], TEN_ONE);
    assert_eq!(outcome(&octets, false), (vec![(2, Handling::TreatedAsWithdrawn)], 0, 1));

    let aggregator: &[u8] = &[0xc0, 7, 8, 0, 0, 0, 0, 192, 0, 2, 1];
    let octets = update(&[], &[ORIGIN, AS_PATH, NEXT_HOP, aggregator], TEN_ONE);
    assert_eq!(outcome(&octets, false), (vec![(7, Handling::AttributeDiscarded)], 1, 0));
    let effects = established().feed(&octets);
    let update = effects.iter().find_map(|effect| match effect {
        Effect::Event(Event::Update(update)) => Some(update),
        _ => None,
    });
    assert_eq!(update.unwrap().announced[0].attributes.aggregator, None);
}

#[test]
fn ends_of_rib_are_told_apart_from_nothing() {
    let mut script = established();
    let v6: &[u8] = &[0x80, 15, 3, 0, 2, 1];
    let told = |effects: Vec<Effect>| match &effects[..] {
        [Effect::Event(Event::EndOfRib(family))] => Some(*family),
        [] => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(told(script.feed(&update(&[], &[], &[]))), Some(Family::Ipv4));
    assert_eq!(told(script.feed(&update(&[], &[v6], &[]))), Some(Family::Ipv6));
    assert_eq!(told(script.feed(&update(&[], &[ORIGIN, v6], &[]))), None);
}

#[test]
fn refreshes_of_unknown_families_and_kinds_are_ignored() {
    let mut script = established();
    for body in [[0, 9, 0, 9], [0, 25, 0, 70], [0, 1, 1, 1], [0, 1, 2, 1]] {
        assert_eq!(script.feed(&message(5, &body)), [], "{body:?}");
    }
    assert_eq!(script.feed(&message(5, &[0, 1, 0, 1])), [Effect::Event(Event::Refresh(Family::Ipv4))]);
}

#[test]
fn a_peer_that_never_speaks_is_given_up() {
    let mut script = Script::accepted(config(0));
    script.now += 241 * SECOND;
    script.neighbor.handle_timeout(script.now);
    assert_eq!(notification(&script.effects()), Some((4, 0)));
    assert_eq!(script.neighbor.poll_timeout(), None);
}

proptest! {
    #[test]
    fn random_octets_never_panic_and_leave_nothing_behind(
        octets in proptest::collection::vec(any::<u8>(), 0..200),
        kind in 0u8..7,
        framed: bool,
        stage in 0..3,
    ) {
        let octets = if framed { message(kind, &octets) } else { octets };
        let mut script = match stage {
            0 => Script::accepted(config(0)),
            1 => {
                let mut script = Script::accepted(config(0));
                script.feed(&open(65001, 30, [10, 0, 0, 2], EVERYTHING));
                script
            }
            _ => established(),
        };
        let effects = script.feed(&octets);
        prop_assert!(effects.len() < 20);
        script.now += 100_000 * SECOND;
        script.neighbor.handle_timeout(script.now);
    }

    #[test]
    fn attributes_of_any_octets_never_panic(
        attributes in proptest::collection::vec((any::<u8>(), 0u8..40, proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
        nlri in proptest::collection::vec(any::<u8>(), 0..12),
        internal: bool,
    ) {
        let attributes: Vec<Vec<u8>> = attributes
            .into_iter()
            .map(|(flags, code, value)| [&[flags & 0xef, code, value.len() as u8][..], &value].concat())
            .collect();
        let attributes: Vec<&[u8]> = attributes.iter().map(Vec::as_slice).collect();
        let config = if internal { NeighborConfig { local_as: 65001, ..config(0) } } else { config(0) };
        let mut script = Script::established(config, EVERYTHING);
        script.feed(&update(&[], &attributes, &nlri));
    }

    #[test]
    fn it_does_not_matter_how_octets_are_cut_up(cuts in proptest::collection::vec(1usize..40, 1..60)) {
        let stream = [
            update(&[], &[ORIGIN, AS_PATH, NEXT_HOP], TEN_ONE),
            keepalive(),
            update(TEN_ONE, &[], &[]),
            update(&[], &[ORIGIN, NEXT_HOP], TEN_ONE),
            message(5, &[0, 1, 0, 1]),
            message(3, &[6, 2]),
        ].concat();
        let mut whole = established();
        let expected = whole.feed(&stream);
        let mut pieces = established();
        let mut out = Vec::new();
        let (mut rest, mut cuts) = (&stream[..], cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            out.extend(pieces.feed(piece));
            rest = tail;
        }
        prop_assert_eq!(out, expected);
    }
}

#[test]
fn a_peer_that_takes_nothing_is_told_so_and_its_routes_go() {
    // RFC 9687 section 4; graceful restart keeps nothing after a NOTIFICATION (RFC 4724 section 4.2).
    let restart: &[u8] = &[64, 6, 0, 120, 0, 1, 1, 0x80];
    let config = NeighborConfig { graceful_restart: Some(120 * SECOND), ..config(0) };
    let mut script = Script::established(config, &[IPV4, AS4, restart]);
    script.neighbor.handle_send_hold_expired(script.now, script.id);
    let effects = script.effects();
    assert_eq!(notification(&effects), Some((8, 0)));
    let down = effects.iter().find_map(|effect| match effect {
        Effect::Event(Event::Down { cause: Cause::Sent(sent), retain }) => Some((sent.code, retain.len())),
        _ => None,
    });
    assert_eq!(down, Some((8, 0)), "{effects:?}");
    // Of a connection that is not established, it is the end without a word.
    let mut script = Script::accepted(crate::config(0));
    script.neighbor.handle_send_hold_expired(script.now, script.id);
    assert_eq!(notification(&script.effects()), None);
}

#[test]
fn a_keepalive_after_updates_says_that_they_were_all() {
    let settled = [Effect::Event(Event::Settled)];
    let mut script = established();
    script.routes(&update(&[], &[ORIGIN, AS_PATH, NEXT_HOP], TEN_ONE));
    assert_eq!(script.feed(&keepalive()), settled);
    assert_eq!(script.feed(&keepalive()), []);
    // Some send one at once, before any UPDATE.
    let mut script = established();
    assert_eq!(script.feed(&keepalive()), []);
    script.routes(&update(&[], &[ORIGIN, AS_PATH, NEXT_HOP], TEN_ONE));
    assert_eq!(script.feed(&keepalive()), settled);
    // Who has nothing sends two.
    let mut script = established();
    assert_eq!(script.feed(&keepalive()), []);
    assert_eq!(script.feed(&keepalive()), settled);
}

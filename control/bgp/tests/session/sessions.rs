//! Sessions between two of ours: how they begin, end, and begin again.

use std::{collections::BTreeSet, time::Duration};

use braid_bgp::{
    Attributes, Cause, Effect, Event, Family, NeighborConfig, Notification, Outgoing, Refused, SessionState,
};

use crate::{
    SECOND, announce, attributes, config,
    net::Net,
    script::{EVERYTHING, Script, keepalive},
};

fn notified(cause: &Cause) -> (bool, u8, u8) {
    match cause {
        Cause::Sent(Notification { code, subcode, .. }) => (true, *code, *subcode),
        Cause::Received(Notification { code, subcode, .. }) => (false, *code, *subcode),
        other => panic!("{other:?}"),
    }
}

fn failures(net: &Net, end: usize) -> Vec<&Cause> {
    let failed = |event: &&Event| matches!(event, Event::Failed(_));
    let causes = net.events_of(end).into_iter().filter(failed).map(|event| match event {
        Event::Failed(cause) => cause,
        _ => unreachable!(),
    });
    causes.collect()
}

/// The routes that an end has received: announced prefixes with their attributes.
fn announced(net: &Net, end: usize) -> Vec<(String, Attributes)> {
    let mut out = Vec::new();
    for event in net.events_of(end) {
        if let Event::Update(update) = event {
            for announcement in &update.announced {
                out.extend(
                    announcement
                        .nlri
                        .iter()
                        .map(|nlri| (nlri.prefix.to_string(), (*announcement.attributes).clone())),
                );
            }
        }
    }
    out
}

#[test]
fn both_ends_connect_and_one_session_comes_of_it() {
    let mut rounds = 0;
    for seed in 1..300 {
        let mut net = Net::new(seed, [config(0), config(1)]);
        // From both connecting at once to one far ahead of the other.
        net.delay_millis = 1 + seed % 50;
        net.start(0);
        net.run(Duration::from_millis(seed * 7 % 200));
        net.start(1);
        net.run(10 * SECOND);
        assert!(net.both_established(), "seed {seed}: {:?}", net.events);
        assert_eq!(net.connections(), 1, "seed {seed}");
        // RFC 4271 section 6.8 leaves a race: one end may be established on the connection that the other, which
        // is not yet, gives up for one with the higher identifier. Then both begin once more.
        assert!(net.ends.iter().all(|end| end.counters().established <= 2), "seed {seed}");
        rounds += net.ends[0].counters().established;
        net.events.clear();
        net.run(3600 * SECOND);
        net.events.retain(|(.., event)| *event != Event::Settled);
        assert_eq!(net.events, [], "seed {seed}");
    }
    assert!(rounds < 330, "{rounds}: seldom, among 299");
}

#[test]
fn equal_identifiers_in_two_systems_do_not_hinder_them() {
    // RFC 6286: identifiers are unique within an AS only.
    for seed in 1..50 {
        let mut net = Net::new(
            seed,
            [0, 1].map(|end| NeighborConfig { router_id: [10, 0, 0, 9].into(), ..config(end) }),
        );
        net.start(0);
        net.start(1);
        net.run(30 * SECOND);
        assert!(net.both_established(), "seed {seed}: {:?}", net.events);
    }
}

#[test]
fn a_passive_end_waits_and_a_stopped_one_refuses() {
    let mut net = Net::new(1, [config(0), NeighborConfig { passive: true, ..config(1) }]);
    net.start(1);
    net.run(10 * SECOND);
    assert_eq!((net.connections(), net.ends[1].state()), (0, SessionState::Active));
    net.start(0);
    net.run(5 * SECOND);
    assert!(net.both_established());
    net.act(1, |neighbor, now| neighbor.stop(now, "enough"));
    net.run(SECOND);
    assert_eq!(net.ends[1].handle_accepted(net.now), Err(Refused::Stopped));
    net.run(300 * SECOND);
    assert_eq!(net.ends[1].state(), SessionState::Idle);
    net.start(1);
    net.run(70 * SECOND);
    assert!(net.both_established());
}

#[test]
fn what_is_agreed_on_is_what_both_have() {
    let mut net = Net::new(
        1,
        [
            NeighborConfig { hold_time: 90 * SECOND, ..config(0) },
            NeighborConfig { families: vec![Family::Ipv6], hold_time: 9 * SECOND, ..config(1) },
        ],
    );
    net.start(0);
    net.start(1);
    net.run(10 * SECOND);
    for end in 0..2 {
        let (negotiated, _) = net.ends[end].established().unwrap();
        assert_eq!(negotiated.hold_time, 9 * SECOND);
        assert_eq!(negotiated.families, [Family::Ipv6]);
        assert_eq!(negotiated.remote_as, 65001 - end as u32);
        assert!(negotiated.four_octet_as && negotiated.route_refresh);
    }
}

#[test]
fn no_common_family_is_no_session() {
    let families = |family| move |end| NeighborConfig { families: vec![family], ..config(end) };
    let mut net = Net::new(1, [families(Family::Ipv4)(0), families(Family::Ipv6)(1)]);
    net.start(0);
    net.start(1);
    net.run(30 * SECOND);
    assert!(!net.both_established());
    // RFC 5492 section 5: Unsupported Capability.
    assert!(failures(&net, 1).iter().any(|cause| notified(cause) == (true, 2, 7)), "{:?}", net.events);
}

#[test]
fn keepalives_come_after_three_quarters_to_a_whole_of_their_interval() {
    let mut script = Script::established(config(0), EVERYTHING);
    let (mut gaps, mut last) = (BTreeSet::new(), script.now);
    while gaps.len() < 40 {
        script.now = script.neighbor.poll_timeout().unwrap();
        script.neighbor.handle_timeout(script.now);
        let effects = script.effects();
        if effects
            .iter()
            .any(|effect| matches!(effect, Effect::Transmit(_, octets) if *octets == keepalive()))
        {
            // RFC 4271 section 10: of a third of the hold time, which is 30 s.
            let gap = script.now - last;
            assert!((15 * SECOND / 2..=10 * SECOND).contains(&gap), "{gap:?}");
            assert!(gaps.insert(gap), "all are alike: {gaps:?}");
            last = script.now;
        }
        // The peer is heard all the while.
        script.feed(&keepalive());
    }
    assert!(*gaps.first().unwrap() < 8 * SECOND && *gaps.last().unwrap() > 19 * SECOND / 2, "{gaps:?}");
}

#[test]
fn silence_ends_the_session_with_the_hold_time() {
    for seed in 1..50 {
        let mut net = Net::established(seed, [config(0), config(1)]);
        let cut = net.elapsed();
        net.cut = true;
        net.run(31 * SECOND);
        for end in 0..2 {
            let [(at, cause)] = net.downs(end)[..] else { panic!("seed {seed}: {:?}", net.events) };
            // The last KEEPALIVE came at most ten seconds before the cut.
            assert!((19 * SECOND..=30 * SECOND + SECOND / 10).contains(&(at - cut)), "seed {seed}: {at:?}");
            assert_eq!(notified(cause), (true, 4, 0));
        }
        net.cut = false;
        net.run(70 * SECOND);
        assert!(net.both_established(), "seed {seed}");
    }
}

#[test]
fn a_wrong_as_number_is_named_and_tried_again_ever_more_slowly() {
    let mut net = Net::new(1, [config(0), NeighborConfig { remote_as: 64999, ..config(1) }]);
    net.start(0);
    net.start(1);
    net.run(600 * SECOND);
    assert_eq!((net.downs(0), net.downs(1)), (vec![], vec![]));
    let seen = |end: usize, which| {
        failures(&net, end).iter().any(|cause| **cause != Cause::Transport && notified(cause) == which)
    };
    assert!(seen(1, (true, 2, 2)) && seen(0, (false, 2, 2)), "{:?}", net.events);
    // Two ends that try at most once a minute after the first few attempts.
    let attempts = failures(&net, 1).len();
    assert!((10..=60).contains(&attempts), "{attempts}");
}

#[test]
fn the_reason_of_a_stop_reaches_the_peer() {
    let mut net = Net::established(1, [config(0), config(1)]);
    net.act(0, |neighbor, now| neighbor.stop(now, "maintenance until noon"));
    net.run(SECOND);
    assert_eq!(net.downs(0)[0].1, &Cause::Stopped);
    let (_, cause) = net.downs(1)[0];
    assert_eq!(notified(cause), (false, 6, 2));
    let Cause::Received(notification) = cause else { unreachable!() };
    assert!(notification.text.ends_with("maintenance until noon"), "{notification}");
}

#[test]
fn what_the_peer_says_stays_on_one_line() {
    let mut net = Net::established(1, [config(0), config(1)]);
    net.act(0, |neighbor, now| neighbor.stop(now, "bye\nneighbor b is established\u{1b}[2J"));
    net.run(SECOND);
    let Cause::Received(notification) = net.downs(1)[0].1 else { unreachable!() };
    assert!(notification.text.ends_with("bye neighbor b is established [2J"), "{:?}", notification.text);
}

#[test]
fn too_many_routes_pause_the_session() {
    let mut net = Net::established(1, [config(0), config(1)]);
    net.act(0, |neighbor, now| neighbor.stop_for_too_many_routes(now, 120 * SECOND));
    net.run(100 * SECOND);
    assert_eq!(notified(net.downs(1)[0].1), (false, 6, 1));
    assert_eq!(net.ends[0].handle_accepted(net.now), Err(Refused::Paused));
    assert!(!net.both_established());
    net.run(90 * SECOND);
    assert!(net.both_established());
}

#[test]
fn a_session_that_pauses_does_so_although_it_is_stopped_and_started() {
    // The other end waits, so that only this one can end the pause.
    let passive = NeighborConfig { passive: true, ..config(1) };
    let mut net = Net::established(1, [config(0), passive]);
    net.act(0, |neighbor, now| neighbor.stop_for_too_many_routes(now, 120 * SECOND));
    for _ in 0..3 {
        net.run(30 * SECOND);
        net.act(0, |neighbor, now| neighbor.stop(now, "the tunnel is down"));
        net.run(SECOND);
        net.start(0);
    }
    net.run(26 * SECOND);
    assert_eq!((net.ends[0].state(), net.ends[0].counters().established), (SessionState::Idle, 1));
    net.run(2 * SECOND);
    assert!(net.both_established());
    // Of one that stays stopped, nothing comes when the pause is over.
    net.act(0, |neighbor, now| neighbor.stop_for_too_many_routes(now, 120 * SECOND));
    net.act(0, |neighbor, now| neighbor.stop(now, "the tunnel is down"));
    net.run(150 * SECOND);
    assert_eq!(net.ends[0].state(), SessionState::Idle);
    net.start(0);
    net.run(SECOND);
    assert!(net.both_established());
}

#[test]
fn bfd_ends_the_session_at_once_and_retains_nothing() {
    let mut net = Net::established(1, [config(0), config(1)]);
    net.act(0, |neighbor, now| neighbor.handle_bfd_down(now));
    let [Event::Down { cause, retain }] = net.events_of(0)[..] else { panic!("{:?}", net.events) };
    assert_eq!((notified(cause), &retain[..]), ((true, 6, 10), &[][..]));
    net.run(10 * SECOND);
    assert!(net.both_established());
}

#[test]
fn routes_of_both_families_arrive_as_they_were_sent() {
    let mut net = Net::established(1, [config(0), config(1)]);
    let rich = Attributes {
        as_path: (0..300).map(|n| if n == 0 { 65000 } else { 4_200_000_000 + n }).collect(),
        med: Some(7),
        atomic_aggregate: true,
        aggregator: Some((4_200_000_001, [10, 9, 8, 7].into())),
        communities: vec![0x1234_5678, 0xffff_0000],
        extended_communities: vec![0x0002_0001_0000_0005],
        large_communities: vec![[1, 2, 3], [4_200_000_000, 0, 9]],
        ..(*attributes(65000, "169.254.10.2")).clone()
    };
    let v6 = Attributes { next_hop: "fd00::2".parse().unwrap(), ..rich.clone() };
    let mut outgoing = announce(&rich.clone().into(), &["10.1.0.0/16", "0.0.0.0/0", "192.0.2.1/32"]);
    outgoing.announced.extend(announce(&v6.clone().into(), &["fd00:1::/32", "::/0"]).announced);
    net.act(0, |neighbor, _| neighbor.send(&outgoing));
    net.run(SECOND);
    let got = announced(&net, 1);
    let of = |prefix: &str| &got.iter().find(|(name, _)| name == prefix).unwrap().1;
    assert_eq!(got.len(), 5);
    assert_eq!((of("10.1.0.0/16"), of("::/0")), (&rich, &v6));
    net.events.clear();
    let withdrawn = ["10.1.0.0/16", "::/0"].map(|prefix| prefix.parse().unwrap());
    net.act(0, |neighbor, _| neighbor.send(&Outgoing { withdrawn: withdrawn.to_vec(), announced: vec![] }));
    net.run(SECOND);
    let mut gone: Vec<_> = net
        .events_of(1)
        .into_iter()
        .flat_map(|event| match event {
            Event::Update(update) => update.withdrawn.iter().map(|nlri| nlri.prefix).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        })
        .collect();
    gone.sort();
    assert_eq!(gone, withdrawn);
}

#[test]
fn an_internal_peer_gets_what_an_external_one_must_not() {
    let internal = [0, 1].map(|end| NeighborConfig { local_as: 65000, remote_as: 65000, ..config(end) });
    for (configs, expected) in [(internal, Some(200)), ([config(0), config(1)], None)] {
        let mut net = Net::established(1, configs);
        let sent = Attributes { local_pref: Some(200), ..(*attributes(65000, "10.0.0.9")).clone() };
        net.act(0, |neighbor, _| neighbor.send(&announce(&sent.clone().into(), &["10.1.0.0/16"])));
        net.run(SECOND);
        assert_eq!(announced(&net, 1)[0].1.local_pref, expected);
    }
}

#[test]
fn a_hundred_thousand_routes_in_full_messages() {
    let mut net = Net::established(1, [config(0), config(1)]);
    let prefixes: Vec<_> = (0..100_000u32)
        .map(|n| format!("{}/24", std::net::Ipv4Addr::from(n << 8)).parse().unwrap())
        .collect();
    let outgoing =
        Outgoing { withdrawn: vec![], announced: vec![(attributes(65000, "10.0.0.9"), prefixes.clone())] };
    net.act(0, |neighbor, _| neighbor.send(&outgoing));
    net.act(0, |neighbor, _| neighbor.send_end_of_rib(Family::Ipv4));
    net.run(10 * SECOND);
    assert_eq!(announced(&net, 1).len(), prefixes.len());
    assert_eq!(net.events_of(1).last(), Some(&&Event::EndOfRib(Family::Ipv4)));
    // Four octets a route, 4096 a message.
    assert!(net.ends[0].counters().updates_sent < 130, "{:?}", net.ends[0].counters());
}

#[test]
fn routes_that_no_message_can_carry_are_counted() {
    let mut net = Net::established(1, [config(0), config(1)]);
    let huge = Attributes { communities: vec![1; 2000], ..(*attributes(65000, "10.0.0.9")).clone() };
    net.act(0, |neighbor, _| neighbor.send(&announce(&huge.into(), &["10.1.0.0/16"])));
    net.act(0, |neighbor, _| neighbor.send(&announce(&attributes(65000, "10.0.0.9"), &["fd00::/16"])));
    net.run(SECOND);
    assert_eq!((net.ends[0].counters().unsendable, announced(&net, 1).len()), (2, 0));
    assert!(net.both_established());
}

#[test]
fn a_refresh_is_asked_for_and_told() {
    let mut net = Net::established(1, [config(0), config(1)]);
    assert!(net.act(0, |neighbor, _| neighbor.request_refresh(Family::Ipv6)));
    net.run(SECOND);
    assert_eq!(net.events_of(1), [&Event::Refresh(Family::Ipv6)]);
}

#[test]
fn sessions_outlive_a_network_that_breaks_them_again_and_again() {
    for seed in 1..60 {
        let mut net = Net::established(seed, [config(0), config(1)]);
        net.delay_millis = 3000;
        for round in 0..5 {
            net.reset();
            net.run(SECOND * (1 + (seed + round) as u32 % 7));
            net.reset();
            net.cut = round % 2 == 0;
            net.run(SECOND * (seed as u32 % 40));
            net.cut = false;
            net.run(5 * SECOND);
        }
        net.delay_millis = 20;
        net.run(200 * SECOND);
        assert!(net.both_established(), "seed {seed}");
        assert_eq!(net.connections(), 1, "seed {seed}");
    }
}

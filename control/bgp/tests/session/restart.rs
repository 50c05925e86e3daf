//! Graceful restart (RFC 4724), of either end.

use std::time::Duration;

use braid_bgp::{Cause, Event, Family, Neighbor, NeighborConfig};

use crate::{SECOND, announce, attributes, config, net::Net};

const BOTH: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// End 0 comes back from the dead; packets were forwarded all along, or not.
fn reborn(forwarding_preserved: bool) -> Neighbor {
    let mut neighbor = Neighbor::new(config(0), 77);
    neighbor.set_restarting(forwarding_preserved);
    neighbor
}

fn sweeps(net: &Net, end: usize) -> Vec<(Duration, Vec<Family>)> {
    let sweeps = net.events.iter().filter_map(|(at, of, event)| match event {
        Event::SweepStale(families) if *of == end => Some((*at, families.clone())),
        _ => None,
    });
    sweeps.collect()
}

fn retained(net: &Net, end: usize) -> Vec<Family> {
    let mut downs = net.events_of(end).into_iter().filter_map(|event| match event {
        Event::Down { retain, .. } => Some(retain.clone()),
        _ => None,
    });
    downs.next_back().unwrap()
}

#[test]
fn routes_of_a_peer_that_comes_back_in_time_stay_until_it_has_sent_all() {
    for noticed in [true, false] {
        let mut net = Net::established(1, [config(0), config(1)]);
        net.replace(0, reborn(true), noticed);
        net.start(0);
        net.run(30 * SECOND);
        assert!(net.both_established(), "{:?}", net.events);
        let [(_, cause)] = net.downs(1)[..] else { panic!("{:?}", net.events) };
        assert_eq!(*cause, if noticed { Cause::Transport } else { Cause::Replaced });
        assert_eq!(retained(&net, 1), BOTH);
        let (negotiated, _) = net.ends[1].established().unwrap();
        let restart = negotiated.graceful_restart.as_ref().unwrap();
        assert!(restart.restarted);
        assert_eq!((&restart.preserved[..], restart.time), (&BOTH[..], 120 * SECOND));
        net.run(60 * SECOND);
        assert_eq!(sweeps(&net, 1), []);

        // One family is complete; the other's time runs out.
        net.act(0, |neighbor, _| neighbor.send_end_of_rib(Family::Ipv6));
        net.run(SECOND);
        assert_eq!(net.events_of(1).last(), Some(&&Event::EndOfRib(Family::Ipv6)));
        net.run(400 * SECOND);
        let [(_, families)] = &sweeps(&net, 1)[..] else { panic!("{:?}", net.events) };
        assert_eq!(families, &[Family::Ipv4]);
    }
}

#[test]
fn after_both_ends_of_rib_nothing_is_swept() {
    let mut net = Net::established(1, [config(0), config(1)]);
    net.replace(0, reborn(true), true);
    net.start(0);
    net.run(10 * SECOND);
    for family in BOTH {
        net.act(0, |neighbor, _| neighbor.send_end_of_rib(family));
    }
    net.run(1000 * SECOND);
    assert_eq!(sweeps(&net, 1), []);
}

#[test]
fn routes_that_the_peer_does_not_forward_any_more_go_when_it_is_back() {
    let mut net = Net::established(1, [config(0), config(1)]);
    net.replace(0, reborn(false), true);
    net.start(0);
    net.run(10 * SECOND);
    assert_eq!(
        sweeps(&net, 1).into_iter().map(|(_, families)| families).collect::<Vec<_>>(),
        [BOTH.to_vec()]
    );
}

#[test]
fn routes_of_a_peer_that_stays_away_go_after_its_restart_time() {
    let mut net = Net::established(1, [config(0), config(1)]);
    let gone = net.elapsed();
    net.replace(0, reborn(true), true);
    net.run(119 * SECOND);
    assert_eq!(sweeps(&net, 1), []);
    net.run(2 * SECOND);
    assert_eq!(sweeps(&net, 1), [(gone + 120 * SECOND, BOTH.to_vec())]);
}

#[test]
fn a_second_restart_takes_what_the_first_left_stale() {
    let mut net = Net::established(1, [config(0), config(1)]);
    net.replace(0, reborn(true), true);
    net.start(0);
    net.run(10 * SECOND);
    net.replace(0, reborn(true), true);
    assert_eq!(sweeps(&net, 1).len(), 1);
    let last = net.events_of(1).into_iter().rev().take(2).collect::<Vec<_>>();
    assert!(matches!(last[..], [Event::Down { .. }, Event::SweepStale(_)]), "{last:?}");
}

#[test]
fn without_graceful_restart_or_after_a_notification_nothing_is_retained() {
    let plain = |end| NeighborConfig { graceful_restart: None, ..config(end) };
    for configs in [[plain(0), config(1)], [config(0), plain(1)]] {
        let mut net = Net::established(1, configs);
        net.reset();
        assert_eq!((retained(&net, 0), retained(&net, 1)), (vec![], vec![]));
    }
    let mut net = Net::established(1, [config(0), config(1)]);
    net.act(0, |neighbor, now| neighbor.stop(now, ""));
    net.run(SECOND);
    assert_eq!(retained(&net, 1), []);
}

#[test]
fn without_graceful_restart_a_peer_that_came_back_unseen_waits_for_the_hold_time() {
    // RFC 4271 section 6.8: the established connection wins.
    let plain = |end| NeighborConfig { graceful_restart: None, ..config(end) };
    let mut net = Net::established(1, [plain(0), plain(1)]);
    net.replace(0, Neighbor::new(plain(0), 5), false);
    net.start(0);
    net.run(15 * SECOND);
    assert_eq!(net.downs(1), []);
    net.run(120 * SECOND);
    assert!(net.both_established(), "{:?}", net.events);
}

#[test]
fn our_own_restart_is_told_until_it_is_complete() {
    let mut net = Net::new(1, [config(0), config(1)]);
    net.ends[0].set_restarting(true);
    net.start(0);
    net.start(1);
    net.run(10 * SECOND);
    let restart = |net: &Net| net.ends[1].established().unwrap().0.graceful_restart.clone().unwrap();
    assert!(restart(&net).restarted && restart(&net).preserved == BOTH);
    net.ends[0].restart_completed();
    net.reset();
    net.run(30 * SECOND);
    assert!(!restart(&net).restarted && restart(&net).preserved == BOTH);
    // Routes pass as ever.
    net.act(0, |neighbor, _| neighbor.send(&announce(&attributes(65000, "10.0.0.9"), &["10.0.0.0/8"])));
    net.run(SECOND);
    assert!(matches!(net.events_of(1).last(), Some(Event::Update(_))));
}

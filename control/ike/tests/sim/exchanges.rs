//! Every exchange between two endpoints, in calm weather.

use std::time::Duration;

use braid_ike::{DownCause, EspTransport, Event, PeerId, Role};

use crate::config::{A, B, peer};
use crate::net::Net;

/// Node 0 initiates to node 1; each knows the other by its index.
pub(crate) fn pair(seed: u64) -> Net {
    let mut net = Net::new(seed, &[A, B]);
    net.put_peer(1, 0, peer(Role::Respond, B, A));
    net.put_peer(0, 1, peer(Role::Initiate, A, B));
    net
}

#[test]
fn psk_comes_up_in_two_round_trips() {
    let mut net = pair(1);
    assert!(net.run_until(Duration::from_secs(1), |net| net.is_up(0, 1) && net.is_up(1, 0)));
    assert_eq!(net.now - net.start, Duration::from_millis(40), "four messages of 10 ms");
    assert!(net.connected(0, 1));
    assert_eq!(net.transport(0, 1), Some(EspTransport::Udp { keepalive: false }));
    assert_eq!(net.nodes[0].datagrams + net.nodes[1].datagrams, 4);
    assert!(net.ping(0, 1) && net.ping(1, 0));
    net.run(Duration::from_secs(1));
    assert_eq!((net.nodes[0].esp_received, net.nodes[1].esp_received), (1, 1));
    let ups = |events: &[Event]| events.iter().filter(|e| matches!(e, Event::PeerUp { .. })).count();
    assert_eq!((ups(&net.nodes[0].events), ups(&net.nodes[1].events)), (1, 1));
    let status = net.nodes[0].endpoint.status(net.now, PeerId(1)).unwrap();
    assert_eq!(status.ike.unwrap().suite, "aes128gcm16-prfsha256-curve25519");
    assert_eq!(status.child.unwrap().suite, "aes128gcm16");
}

pub(crate) fn up(net: &mut Net) {
    assert!(
        net.run_until(Duration::from_secs(60), |net| net.is_up(0, 1)
            && net.is_up(1, 0)
            && net.connected(0, 1)),
        "not up: {:?} / {:?}",
        net.failures(0),
        net.failures(1)
    );
}

/// Runs for a while with traffic both ways, one packet every 5 ms; none may be lost.
pub(crate) fn run_with_traffic(net: &mut Net, time: Duration) {
    let end = net.now + time;
    while net.now < end {
        assert!(net.ping(0, 1) && net.ping(1, 0), "no outbound SA after {:?}", net.now - net.start);
        net.run(Duration::from_millis(5));
    }
    net.run(Duration::from_secs(1));
    let [a, b] = [&net.nodes[0], &net.nodes[1]];
    assert_eq!((a.esp_lost_here, b.esp_lost_here), (0, 0), "packets for an SA that is not there");
    assert_eq!((a.esp_received, b.esp_received), (b.esp_sent, a.esp_sent));
}

pub(crate) fn sas_in_core(net: &Net) -> [usize; 2] {
    [net.nodes[0].core.sas.len(), net.nodes[1].core.sas.len()]
}

#[test]
fn a_child_is_rekeyed_without_loss_by_either_side() {
    for side in [0, 1] {
        let mut net = pair(2);
        up(&mut net);
        for _ in 0..5 {
            let before = net.nodes[0].core.outbound(PeerId(1)).unwrap().id;
            net.act(side, |e, now, rng| e.rekey_child(now, rng, PeerId(1 - side as u32)));
            run_with_traffic(&mut net, Duration::from_millis(200));
            assert_ne!(net.nodes[0].core.outbound(PeerId(1)).unwrap().id, before);
            assert!(net.connected(0, 1));
        }
        net.run(Duration::from_secs(10));
        assert_eq!(sas_in_core(&net), [2, 2], "old SAs are gone after their grace");
        let status = net.nodes[side].endpoint.status(net.now, PeerId(1 - side as u32)).unwrap();
        assert_eq!(status.child.unwrap().rekeys, 5);
    }
}

#[test]
fn an_ike_sa_is_rekeyed_without_loss_by_either_side() {
    for side in [0, 1] {
        let mut net = pair(3);
        up(&mut net);
        for _ in 0..5 {
            net.act(side, |e, now, rng| e.rekey_ike(now, rng, PeerId(1 - side as u32)));
            run_with_traffic(&mut net, Duration::from_millis(200));
            assert!(net.connected(0, 1));
        }
        net.act(1 - side, |e, now, rng| e.rekey_child(now, rng, PeerId(side as u32)));
        run_with_traffic(&mut net, Duration::from_millis(200));
        net.run(Duration::from_secs(40));
        for node in &net.nodes {
            assert_eq!(node.endpoint.ike_sas(), 1);
            assert_eq!(node.stash.len(), 1);
            assert!(!node.events.iter().any(|e| matches!(e, Event::PeerDown { .. })));
        }
        assert!(net.failures(0).is_empty() && net.failures(1).is_empty());
    }
}

#[test]
fn lifetimes_rekey_both_for_a_day() {
    let mut net = pair(4);
    up(&mut net);
    for _ in 0..24 * 60 {
        assert!(net.ping(0, 1) && net.ping(1, 0));
        net.run(Duration::from_secs(60));
        assert!(net.connected(0, 1));
    }
    let rekeys = |net: &Net, node: usize| {
        let events = net.nodes[node].events.iter();
        let (mut child, mut ike) = (0, 0);
        events.for_each(|event| match event {
            Event::ChildRekeyed { .. } => child += 1,
            Event::IkeRekeyed { .. } => ike += 1,
            _ => {}
        });
        (child, ike)
    };
    for node in [0, 1] {
        let (child, ike) = rekeys(&net, node);
        assert!((24..=32).contains(&child), "{child} child rekeys in a day");
        assert!((3..=4).contains(&ike), "{ike} IKE rekeys in a day");
        assert_eq!(net.nodes[node].esp_lost_here, 0);
    }
    assert!(sas_in_core(&net).iter().all(|count| *count <= 4));
}

#[test]
fn deletion_of_a_child_makes_another() {
    for side in [0, 1] {
        let mut net = pair(5);
        up(&mut net);
        net.act(side, |e, now, rng| e.delete_child(now, rng, PeerId(1 - side as u32)));
        assert!(net.run_until(Duration::from_secs(1), |net| !net.is_up(0, 1) && !net.is_up(1, 0)));
        assert!(net.run_until(Duration::from_secs(10), |net| net.is_up(0, 1) && net.is_up(1, 0)));
        assert!(net.connected(0, 1));
    }
}

#[test]
fn deletion_of_the_ike_sa_makes_another() {
    for side in [0, 1] {
        let mut net = pair(6);
        up(&mut net);
        net.run(Duration::from_secs(20));
        net.act(side, |e, now, rng| e.reset_peer(now, rng, PeerId(1 - side as u32)));
        assert!(!net.is_up(side, 1 - side as u32));
        assert!(net.run_until(Duration::from_secs(2), |net| net.is_up(0, 1) && net.is_up(1, 0)));
        assert!(net.connected(0, 1));
        net.run(Duration::from_secs(60));
        assert_eq!(net.nodes[0].endpoint.ike_sas(), 1);
        assert_eq!(net.nodes[1].endpoint.ike_sas(), 1);
        assert_eq!(sas_in_core(&net), [2, 2]);
    }
}

#[test]
fn removal_of_a_peer_tells_the_other_side() {
    let mut net = pair(7);
    up(&mut net);
    net.act(0, |e, now, rng| e.remove_peer(now, rng, PeerId(1)));
    net.run(Duration::from_secs(1));
    assert!(!net.is_up(1, 0));
    net.run(Duration::from_secs(60));
    assert_eq!(sas_in_core(&net), [0, 0]);
    assert_eq!(net.nodes[0].endpoint.ike_sas() + net.nodes[1].endpoint.ike_sas(), 0);
    assert!(net.nodes.iter().all(|node| node.stash.is_empty()));
}

#[test]
fn a_silent_peer_is_dead_after_the_timeout_and_tried_again_for_ever() {
    let mut net = pair(8);
    up(&mut net);
    let silent_since = net.now;
    net.nodes[1].cut = true;
    assert!(net.run_until(Duration::from_secs(60), |net| !net.is_up(0, 1)));
    let took = net.now - silent_since;
    assert!((29..=31).contains(&took.as_secs()), "{took:?}");
    assert!(net.nodes[0].core.sas.is_empty());
    net.run(Duration::from_secs(3600));
    let sent = net.nodes[0].datagrams;
    net.run(Duration::from_secs(600));
    assert!(net.nodes[0].datagrams > sent, "still trying");
    net.nodes[1].cut = false;
    assert!(net.run_until(Duration::from_secs(60), |net| net.is_up(0, 1) && net.is_up(1, 0)));
    assert!(net.connected(0, 1));
}

#[test]
fn esp_counts_as_life() {
    let mut net = pair(9);
    up(&mut net);
    net.run(Duration::from_secs(1));
    let before = net.nodes[0].datagrams + net.nodes[1].datagrams;
    run_with_traffic(&mut net, Duration::from_secs(60));
    assert_eq!(net.nodes[0].datagrams + net.nodes[1].datagrams, before, "no DPD while ESP is heard");
}

/// Both are told at once; who initiates tries again, and is not told that its configuration is wrong.
#[test]
fn an_endpoint_that_closes_tells_its_peers() {
    for side in [0, 1] {
        let mut net = pair(11);
        up(&mut net);
        net.run(Duration::from_secs(20));
        // What is under way does not stand in the way.
        net.act(side, |e, now, rng| e.rekey_child(now, rng, PeerId(1 - side as u32)));
        net.act(side, |e, now, rng| e.close(now, rng));
        assert!(!net.nodes[side].endpoint.is_closed());
        assert!(net.run_until(Duration::from_millis(300), |net| net.nodes[side].endpoint.is_closed()));
        assert!(net.nodes[side].core.sas.is_empty());
        assert!(net.nodes[1 - side].core.outbound(PeerId(side as u32)).is_none());
        let other = &net.nodes[1 - side];
        assert!(
            matches!(other.events.last(), Some(Event::PeerDown { cause: DownCause::PeerDeleted, .. }))
                || other.events.iter().rev().take(3).any(|e| matches!(e, Event::PeerDown { .. })),
            "{:?}",
            other.events
        );
        let sent = net.nodes[0].datagrams;
        net.run(Duration::from_secs(120));
        assert!(!net.is_up(0, 1) && !net.is_up(1, 0));
        let misled = |fault: &&braid_ike::Fault| matches!(fault, braid_ike::Fault::NoProposal { .. });
        assert!(!net.failures(1 - side).iter().any(misled));
        let tries = net.nodes[0].datagrams - sent;
        assert_eq!(side == 1, tries > 3, "{tries} datagrams of node 0 after node {side} has closed");
        assert!(tries < 60);
    }
}

#[test]
fn a_close_is_told_through_loss_and_does_not_wait_for_the_dead() {
    let mut told = 0;
    for seed in 0..100 {
        let mut net = pair(seed);
        up(&mut net);
        net.weather.loss = 30;
        net.act(0, |e, now, rng| e.close(now, rng));
        net.run_until(Duration::from_millis(300), |net| net.nodes[0].endpoint.is_closed());
        net.run(Duration::from_millis(20));
        told += usize::from(!net.is_up(1, 0));
    }
    assert!(told >= 95, "{told} of 100 peers heard it");
    let mut net = pair(12);
    up(&mut net);
    net.nodes[1].cut = true;
    net.act(0, |e, now, rng| e.close(now, rng));
    assert_eq!(net.nodes[0].core.sas.len(), 0, "ours go without waiting");
    net.run(Duration::from_secs(40));
    assert!(net.nodes[0].endpoint.is_closed(), "in the end it is given up");
    assert_eq!(net.nodes[0].endpoint.ike_sas(), 0);
}

//! Key exchanges that are computed beside the loop, and what happens until they are.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use braid_ike::crypto::KeMethod;
use braid_ike::{EndpointSettings, Event, PeerConfig, PeerId, Role};

use crate::config::{A, B, peer};
use crate::exchanges::{run_with_traffic, sas_in_core, up};
use crate::net::Net;

/// A pair with such key exchanges; each computation takes up to this long.
fn pair_with(seed: u64, takes: Duration, all: bool, change: impl Fn(&mut PeerConfig)) -> Net {
    let beside: &'static [KeMethod] = if all { &KeMethod::ALL } else { &KeMethod::MODP };
    let settings = EndpointSettings { beside, ..EndpointSettings::default() };
    let mut net = Net::with_settings(seed, &[A, B], settings);
    net.computed_in = takes;
    let (mut a, mut b) = (peer(Role::Initiate, A, B), peer(Role::Respond, B, A));
    change(&mut a);
    change(&mut b);
    net.put_peer(1, 0, b);
    net.put_peer(0, 1, a);
    net
}

fn modp(config: &mut PeerConfig) {
    config.ike_proposals = vec!["aes128gcm16-prfsha256-modp2048".parse().unwrap()];
    config.esp_proposals = vec!["aes128gcm16-modp1024".parse().unwrap()];
}

fn hybrid(config: &mut PeerConfig) {
    config.ike_proposals = vec!["aes128gcm16-prfsha256-curve25519-ke1_mlkem512".parse().unwrap()];
    config.esp_proposals = vec!["aes128gcm16-curve25519-ke1_ecp256-ke2_mlkem512".parse().unwrap()];
}

fn count(net: &Net, node: usize, what: impl Fn(&Event) -> bool) -> usize {
    net.nodes[node].events.iter().filter(|event| what(event)).count()
}

/// Up, and rekeyed by either side, without a message or a packet too much.
fn lives(mut net: Net) {
    up(&mut net);
    for side in [0, 1] {
        let other = PeerId(1 - side as u32);
        net.act(side, |e, now, rng| e.rekey_child(now, rng, other));
        run_with_traffic(&mut net, Duration::from_secs(1));
        net.act(side, |e, now, rng| e.rekey_ike(now, rng, other));
        run_with_traffic(&mut net, Duration::from_secs(1));
    }
    for node in [0, 1] {
        assert_eq!(count(&net, node, |e| matches!(e, Event::ChildRekeyed { .. })), 2);
        assert_eq!(count(&net, node, |e| matches!(e, Event::IkeRekeyed { .. })), 2);
        assert_eq!(net.failures(node), Vec::<&braid_ike::Fault>::new());
        let counters = net.nodes[node].endpoint.counters();
        assert_eq!((counters.retransmissions, counters.unexpected), (0, 0));
    }
    net.run(Duration::from_secs(70));
    assert_eq!(sas_in_core(&net), [2, 2]);
    assert!(net.nodes.iter().all(|node| node.endpoint.ike_sas() == 1 && node.stash.len() == 1));
}

#[test]
fn finite_fields_come_up_and_are_rekeyed() {
    lives(pair_with(71, Duration::from_millis(100), false, modp));
}

#[test]
fn every_exchange_waits_for_what_it_needs() {
    lives(pair_with(72, Duration::from_millis(100), true, hybrid));
}

#[test]
fn what_takes_longer_than_a_retransmission_is_answered_once() {
    let mut net = pair_with(73, Duration::ZERO, true, |_| {});
    up(&mut net);
    net.computed_in = Duration::from_secs(6);
    net.act(0, |e, now, rng| e.rekey_child(now, rng, PeerId(1)));
    let rekeyed = |net: &Net| (0..2).all(|n| count(net, n, |e| matches!(e, Event::ChildRekeyed { .. })) == 1);
    assert!(net.run_until(Duration::from_secs(25), rekeyed));
    net.computed_in = Duration::ZERO;
    run_with_traffic(&mut net, Duration::from_secs(10));
    assert!(net.nodes[1].endpoint.counters().retransmitted_requests > 0);
    assert!(rekeyed(&net));
    assert_eq!(net.nodes[0].endpoint.counters().unexpected, 0);
}

#[test]
fn a_result_for_what_has_ended_changes_nothing() {
    // At every point of the way up and of a rekey.
    for step in 0..60 {
        let mut net = pair_with(74 + step, Duration::from_millis(80), true, hybrid);
        if step >= 30 {
            up(&mut net);
            net.act(0, |e, now, rng| e.rekey_child(now, rng, PeerId(1)));
        }
        net.run(Duration::from_millis(12) * (step as u32 % 30));
        for node in [0, 1] {
            net.act(node, |e, now, rng| e.remove_peer(now, rng, PeerId(1 - node as u32)));
        }
        net.run(Duration::from_secs(120));
        assert_eq!(sas_in_core(&net), [0, 0], "step {step}");
        for node in &net.nodes {
            assert_eq!((node.endpoint.ike_sas(), node.endpoint.half_open(), node.stash.len()), (0, 0, 0));
        }
    }
}

#[test]
fn a_peer_that_is_reset_while_it_is_computed_comes_up_again() {
    for step in 0..30 {
        let mut net = pair_with(174 + step, Duration::from_millis(80), true, hybrid);
        up(&mut net);
        net.act(1, |e, now, rng| e.rekey_ike(now, rng, PeerId(0)));
        net.run(Duration::from_millis(12) * step as u32);
        net.act(step as usize % 2, |e, now, rng| e.reset_peer(now, rng, PeerId(1 - step as u32 % 2)));
        net.run(Duration::from_secs(90));
        up(&mut net);
        assert_eq!(sas_in_core(&net), [2, 2], "step {step}");
        run_with_traffic(&mut net, Duration::from_secs(1));
    }
}

#[test]
fn a_flood_of_slow_first_requests_is_bounded_and_starves_nobody() {
    let quick = |config: &mut PeerConfig| {
        config.ike_proposals = vec!["aes128gcm16-prfsha256-modp1024".parse().unwrap()];
        config.esp_proposals = vec!["aes128gcm16-modp1024".parse().unwrap()];
    };
    let mut net = pair_with(75, Duration::ZERO, false, quick);
    let first = Rc::new(RefCell::new(Vec::<u8>::new()));
    let recorder = first.clone();
    net.censor = Some(Box::new(move |from, bytes| {
        if from == 0 && recorder.borrow().is_empty() {
            recorder.borrow_mut().extend_from_slice(bytes);
        }
        false
    }));
    let mut anyone = peer(Role::Respond, B, A);
    anyone.remote = None;
    quick(&mut anyone);
    net.put_peer(1, 7, anyone);
    up(&mut net);
    net.censor = None;
    // 77 ms is what the largest group takes.
    net.computed_in = Duration::from_millis(154);
    let template = first.borrow().clone();
    for burst in 0..40u32 {
        for number in 0..100u32 {
            let mut bytes = template.clone();
            bytes[..4].copy_from_slice(&(burst << 16 | number).to_be_bytes());
            let remote = format!("10.1.{burst}.{number}:500").parse().unwrap();
            net.inject(1, braid_ike::Path { local: format!("{B}:500").parse().unwrap(), remote }, bytes);
        }
        if burst == 10 {
            net.act(1, |e, now, rng| e.rekey_child(now, rng, PeerId(0)));
        }
        net.ping(0, 1);
        net.run(Duration::from_millis(50));
        // What is computed, what waits, and what was answered before it had to show a cookie.
        assert!(net.nodes[1].endpoint.half_open() <= 64, "{}", net.nodes[1].endpoint.half_open());
    }
    let counters = net.nodes[1].endpoint.counters();
    assert!(counters.cookies_sent > 3_500, "{}", counters.cookies_sent);
    assert_eq!(net.nodes[1].esp_lost_here, 0);
    assert_eq!(count(&net, 1, |e| matches!(e, Event::ChildRekeyed { .. })), 1, "it had its turns");
    net.run(Duration::from_secs(60));
    assert_eq!(net.nodes[1].endpoint.half_open(), 0);
}

#[test]
fn a_repeated_first_request_is_computed_once() {
    let mut net = pair_with(76, Duration::from_secs(3), true, |_| {});
    assert!(net.run_until(Duration::from_secs(14), |net| net.is_up(0, 1) && net.is_up(1, 0)));
    let counters = net.nodes[1].endpoint.counters();
    assert_eq!(counters.half_open_refused, 0);
    assert_eq!(net.nodes[1].endpoint.ike_sas(), 1);
    run_with_traffic(&mut net, Duration::from_secs(1));
}

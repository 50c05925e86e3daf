//! NATs whose mapping changes, and MOBIKE (RFC 4555).

use std::time::Duration;

use braid_ike::wire::Header;
use braid_ike::{Encapsulation, EspTransport, Event, PeerId, Role};

use crate::config::{A, B, peer};
use crate::exchanges::{pair, sas_in_core, up};
use crate::net::Net;

fn behind_nat(net: &mut Net, port: u16) {
    net.nat.clear();
    for (inside, outside) in [(500, port), (4500, port + 1)] {
        let outside = format!("203.0.113.9:{outside}").parse().unwrap();
        net.nat.insert(format!("{A}:{inside}").parse().unwrap(), outside);
    }
}

/// Node 0 stands behind a NAT; node 1 takes calls from anywhere.
fn pair_behind_nat(seed: u64, mode: Encapsulation, mobike: bool) -> Net {
    let mut net = Net::new(seed, &[A, B]);
    behind_nat(&mut net, 10_000);
    let mut responder = peer(Role::Respond, B, A);
    (responder.remote, responder.encapsulation, responder.mobike) = (None, mode, mobike);
    net.put_peer(1, 0, responder);
    let mut initiator = peer(Role::Initiate, A, B);
    (initiator.encapsulation, initiator.mobike) = (mode, mobike);
    net.put_peer(0, 1, initiator);
    up(&mut net);
    // Only who stands behind the NAT has a mapping to keep.
    assert_eq!(net.transport(1, 0), Some(EspTransport::Udp { keepalive: false }));
    assert_eq!(net.transport(0, 1), Some(EspTransport::Udp { keepalive: true }));
    assert_eq!(remote(&net), "203.0.113.9:10001");
    net
}

/// Where node 1 finds node 0.
fn remote(net: &Net) -> String {
    net.nodes[1].endpoint.status(net.now, PeerId(0)).unwrap().path.unwrap().remote.to_string()
}

/// Pings both ways until both arrive; how long that took.
fn until_both_ways(net: &mut Net, limit: Duration) -> Duration {
    let start = net.now;
    while net.now - start < limit {
        let before = [net.nodes[0].esp_received, net.nodes[1].esp_received];
        assert!(net.ping(0, 1) && net.ping(1, 0));
        net.run(Duration::from_millis(100));
        if net.nodes[0].esp_received > before[0] && net.nodes[1].esp_received > before[1] {
            return net.now - start;
        }
    }
    panic!("one way after {limit:?}");
}

fn never_down(net: &Net) {
    for node in &net.nodes {
        assert!(!node.events.iter().any(|e| matches!(e, Event::PeerDown { .. })));
        assert_eq!(node.endpoint.ike_sas(), 1);
    }
    assert_eq!(sas_in_core(net), [2, 2]);
}

/// RFC 7296 section 2.23: without MOBIKE the peer follows any authentic packet.
#[test]
fn without_mobike_a_new_mapping_is_followed() {
    for mode in [Encapsulation::Auto, Encapsulation::Udp] {
        let mut net = pair_behind_nat(12, mode, false);
        behind_nat(&mut net, 20_000);
        net.act(0, |e, now, rng| e.probe(now, rng, PeerId(1)));
        net.run(Duration::from_millis(10));
        assert_eq!(remote(&net), "203.0.113.9:20001");
        assert!(net.nodes[1].events.iter().any(|e| matches!(e, Event::EndpointMoved { .. })));
        never_down(&net);
    }
}

/// RFC 4555 section 3.8: with MOBIKE a message that does not say so moves nothing.
///
/// ```text
/// A (behind a NAT)          new mapping             B
/// INFORMATIONAL, NAT_DETECTION_* ----------------->   answers to where it came from, moves nothing
/// <------------- NAT_DETECTION_* of the new mapping
/// UPDATE_SA_ADDRESSES, COOKIE2, NAT_DETECTION_* -->   sends ESP and IKE to the new mapping
/// <------------------------ COOKIE2, NAT_DETECTION_*
/// ```
#[test]
fn with_mobike_a_new_mapping_is_found_by_a_probe_and_told() {
    for mode in [Encapsulation::Auto, Encapsulation::Udp] {
        let mut net = pair_behind_nat(13, mode, true);
        behind_nat(&mut net, 20_000);
        net.act(0, |e, now, rng| e.probe(now, rng, PeerId(1)));
        net.run(Duration::from_millis(25));
        assert_eq!(remote(&net), "203.0.113.9:10001", "answered, not followed");
        net.run(Duration::from_millis(10));
        assert_eq!(remote(&net), "203.0.113.9:20001");
        let moved = |e: &&Event| matches!(e, Event::EndpointMoved { .. });
        assert_eq!(net.nodes[1].events.iter().filter(moved).count(), 1);
        assert_eq!(net.nodes[0].events.iter().filter(moved).count(), 0);
        net.run(Duration::from_secs(1));
        // What was told once is not told again.
        let sent = net.nodes[0].datagrams;
        net.act(0, |e, now, rng| e.probe(now, rng, PeerId(1)));
        net.run(Duration::from_secs(1));
        assert_eq!(net.nodes[0].datagrams, sent + 1);
        never_down(&net);
    }
}

#[test]
fn with_mobike_dpd_alone_brings_traffic_back_after_a_new_mapping() {
    // Whoever rekeyed since, and whatever life of control: who began tells where it is.
    for (rekeys, restarts) in [(None, false), (Some(0), false), (Some(1), false), (Some(1), true)] {
        let mut net = pair_behind_nat(14, Encapsulation::Udp, true);
        if let Some(node) = rekeys {
            net.act(node, |e, now, rng| e.rekey_ike(now, rng, PeerId(1 - node as u32)));
            net.run(Duration::from_secs(1));
        }
        if restarts {
            net.restart_control(0, 1, 1, peer(Role::Initiate, A, B));
            net.run(Duration::from_secs(1));
        }
        until_both_ways(&mut net, Duration::from_millis(200));
        behind_nat(&mut net, 20_000);
        let took = until_both_ways(&mut net, Duration::from_secs(15));
        assert!(took > Duration::from_secs(5), "found by DPD, after {took:?}");
        net.run(Duration::from_secs(40));
        never_down(&net);
    }
}

/// What the other side asked by the old path is asked again by the new one at once.
#[test]
fn a_request_that_went_by_the_old_path_is_sent_by_the_new_one() {
    let mut net = pair_behind_nat(20, Encapsulation::Udp, true);
    behind_nat(&mut net, 20_000);
    net.act(1, |e, now, rng| e.probe(now, rng, PeerId(0)));
    // Between two retransmissions.
    net.run(Duration::from_millis(3_600));
    let waits = |net: &Net| net.nodes[1].endpoint.status(net.now, PeerId(0)).unwrap().waiting_for.is_some();
    assert!(waits(&net));
    net.act(0, |e, now, rng| e.probe(now, rng, PeerId(1)));
    net.run(Duration::from_millis(60));
    assert_eq!(remote(&net), "203.0.113.9:20001");
    assert!(!waits(&net), "asked again and answered");
    never_down(&net);
}

/// The core follows ESP to its new source (RFC 4555 section 3.8 leaves that open), and IKE goes there too.
#[test]
fn with_mobike_esp_alone_is_followed() {
    let mut net = pair_behind_nat(15, Encapsulation::Udp, true);
    behind_nat(&mut net, 20_000);
    net.act(1, |e, now, rng| {
        e.handle_esp_moved(now, rng, PeerId(0), "203.0.113.9:20001".parse().unwrap());
    });
    net.act(1, |e, now, rng| e.probe(now, rng, PeerId(0)));
    net.run(Duration::from_millis(25));
    assert_eq!(net.nodes[1].endpoint.counters().retransmissions, 0);
    assert_eq!(remote(&net), "203.0.113.9:20001");
}

#[test]
fn mobike_moves_both_ends_to_a_new_address() {
    let mut net = pair(13);
    up(&mut net);
    net.run(Duration::from_secs(5));
    net.readdress(0, "192.0.2.77");
    net.act(0, |e, now, rng| {
        e.set_addresses(now, rng, PeerId(1), "192.0.2.77".parse().unwrap(), B.parse().unwrap());
    });
    net.run(Duration::from_secs(2));
    assert_eq!(remote(&net), "192.0.2.77:4500");
    for node in &net.nodes {
        assert!(node.events.iter().any(|e| matches!(e, Event::EndpointMoved { .. })));
    }
    until_both_ways(&mut net, Duration::from_millis(200));
    never_down(&net);
    net.run(Duration::from_secs(60));
    assert!(net.is_up(0, 1) && net.is_up(1, 0), "DPD goes by the new path");
}

/// Into a NAT and out of it again: ESP is bare where it can be.
#[test]
fn a_move_behind_a_nat_changes_the_encapsulation() {
    let mut net = Net::new(16, &[A, B]);
    for (node, role, local, remote) in [(1, Role::Respond, B, A), (0, Role::Initiate, A, B)] {
        let mut config = peer(role, local, remote);
        config.encapsulation = Encapsulation::Auto;
        net.put_peer(node, 1 - node as u32, config);
    }
    up(&mut net);
    assert_eq!(net.transport(0, 1), Some(EspTransport::Esp));
    for (port, address, behind_nat) in [(Some(30_000), "192.0.2.78", true), (None, "192.0.2.79", false)] {
        net.nat.clear();
        for (inside, outside) in port.into_iter().flat_map(|port| [(500, port), (4500, port + 1)]) {
            let inside = format!("{address}:{inside}").parse().unwrap();
            net.nat.insert(inside, format!("203.0.113.9:{outside}").parse().unwrap());
        }
        net.readdress(0, address);
        net.act(0, |e, now, rng| {
            e.set_addresses(now, rng, PeerId(1), address.parse().unwrap(), B.parse().unwrap());
        });
        net.run(Duration::from_secs(1));
        let udp = |keepalive| if behind_nat { EspTransport::Udp { keepalive } } else { EspTransport::Esp };
        assert_eq!(net.transport(0, 1), Some(udp(true)));
        assert_eq!(net.transport(1, 0), Some(udp(false)));
        until_both_ways(&mut net, Duration::from_millis(200));
    }
    never_down(&net);
}

/// RFC 4555 section 3.5: who moves again before the first move is answered is found at the last place.
#[test]
fn a_second_move_overtakes_the_first() {
    let mut net = pair(17);
    up(&mut net);
    net.run(Duration::from_secs(1));
    for last in 77..=79 {
        let address = format!("192.0.2.{last}");
        net.readdress(0, &address);
        net.act(0, |e, now, rng| {
            e.set_addresses(now, rng, PeerId(1), address.parse().unwrap(), B.parse().unwrap());
        });
        net.run(Duration::from_millis(5));
    }
    net.run(Duration::from_secs(5));
    assert_eq!(remote(&net), "192.0.2.79:4500");
    until_both_ways(&mut net, Duration::from_millis(200));
    never_down(&net);
}

/// Nobody else can say that a peer has moved: what is not authentic is not heard.
#[test]
fn a_copied_probe_from_elsewhere_moves_nobody() {
    for mobike in [false, true] {
        let mut net = pair_behind_nat(18, Encapsulation::Udp, mobike);
        let sent = std::rc::Rc::new(std::cell::RefCell::new(Vec::<Vec<u8>>::new()));
        let recorder = sent.clone();
        net.censor = Some(Box::new(move |from, bytes| {
            let is_request = Header::decode(bytes).is_ok_and(|(header, _)| !header.response);
            if from == 0 && is_request {
                recorder.borrow_mut().push(bytes.to_vec());
            }
            false
        }));
        net.act(0, |e, now, rng| e.probe(now, rng, PeerId(1)));
        net.run(Duration::from_secs(1));
        let path = braid_ike::Path {
            local: format!("{B}:4500").parse().unwrap(),
            remote: "203.0.113.66:4500".parse().unwrap(),
        };
        let copied = sent.borrow().clone();
        assert!(!copied.is_empty());
        copied.into_iter().for_each(|bytes| net.inject(1, path, bytes));
        net.run(Duration::from_secs(1));
        assert_eq!(remote(&net), "203.0.113.9:10001");
        never_down(&net);
    }
}

//! Control dies at any moment of a child's rekey: what the core holds goes on, and what is half lost is replaced.

use std::time::Duration;

use braid_ike::{Direction, Event, PeerId, Role};

use crate::config::{A, B, peer};
use crate::exchanges::{pair, run_with_traffic, sas_in_core, up};
use crate::net::Net;

/// A rekey's two round trips take 40 ms.
const REKEY: u64 = 40;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn restart(net: &mut Net, node: usize) {
    let (role, local, remote) = if node == 0 { (Role::Initiate, A, B) } else { (Role::Respond, B, A) };
    net.restart_control(node, 1, 1 - node as u32, peer(role, local, remote));
}

/// With traffic both ways, which [`run_with_traffic`] counts at the end.
fn traffic(net: &mut Net, time: Duration) {
    let end = net.now + time;
    while net.now < end {
        assert!(net.ping(0, 1) && net.ping(1, 0), "no outbound SA");
        net.run(ms(1));
    }
}

fn rekeying(seed: u64) -> Net {
    let mut net = pair(seed);
    up(&mut net);
    net.run(Duration::from_secs(5));
    net.act(0, |e, now, rng| e.rekey_child(now, rng, PeerId(1)));
    net
}

fn halves(net: &Net, node: usize) -> [usize; 2] {
    let sas = &net.nodes[node].core.sas;
    [Direction::In, Direction::Out].map(|way| sas.keys().filter(|(_, direction)| *direction == way).count())
}

/// Nobody was down, and one pair is left.
fn is_settled(net: &mut Net, what: &str) {
    net.run(Duration::from_secs(80));
    assert_eq!(sas_in_core(net), [2, 2], "{what}");
    assert!(net.connected(0, 1), "{what}");
    for node in &net.nodes {
        let down = |event: &Event| matches!(event, Event::PeerDown { .. });
        assert!(!node.events.iter().any(down), "{what}: {:?}", node.events);
        assert_eq!(node.endpoint.ike_sas(), 1, "{what}");
    }
}

#[test]
fn control_killed_at_any_moment_of_a_rekey_loses_no_packet() {
    for node in [0, 1] {
        for after in 1..REKEY + 20 {
            let what = format!("node {node}, {after} ms after the request");
            let mut net = rekeying(32);
            traffic(&mut net, ms(after));
            restart(&mut net, node);
            assert!(net.is_up(0, 1) && net.is_up(1, 0), "{what}");
            run_with_traffic(&mut net, Duration::from_secs(8));
            is_settled(&mut net, &what);
        }
    }
}

/// The responder has answered, and waits with the outbound half until the new pair is used. Nothing is sent
/// that would tell it so.
#[test]
fn an_outbound_half_that_was_lost_is_replaced() {
    for after in 11..30 {
        let mut net = rekeying(33);
        net.run(ms(after));
        assert_eq!(halves(&net, 1), [2, 1], "after {after} ms");
        let old = net.nodes[1].core.outbound(PeerId(0)).unwrap().id;
        restart(&mut net, 1);
        assert_eq!(halves(&net, 1), [2, 1], "both go on");
        assert!(net.is_up(1, 0), "by the old one");
        assert!(net.run_until(ms(100), |net| halves(net, 1)[1] == 2), "another is there soon");
        run_with_traffic(&mut net, Duration::from_secs(1));
        assert_ne!(net.nodes[1].core.outbound(PeerId(0)).unwrap().id, old);
        is_settled(&mut net, &format!("after {after} ms"));
    }
}

/// The peer does not know the new pair yet when it is asked to replace it, and deletes the old one before it is
/// asked again.
#[test]
fn an_answer_that_was_lost_with_the_outbound_half_comes_again() {
    let mut net = rekeying(34);
    net.censor = Some(Box::new(|from, _| from == 1));
    traffic(&mut net, ms(15));
    net.censor = None;
    restart(&mut net, 1);
    run_with_traffic(&mut net, Duration::from_secs(8));
    is_settled(&mut net, "its answer was lost");
}

/// The core lost the heir: the replaced pair carries the traffic until there is another.
#[test]
fn a_replaced_child_goes_on_if_its_heir_is_gone() {
    let mut net = rekeying(35);
    net.censor = Some(Box::new(|from, _| from == 1));
    net.run(ms(15));
    net.censor = None;
    let heir = net.nodes[1].core.sas.keys().map(|(id, _)| *id).max().unwrap();
    net.nodes[1].core.sas.remove(&(heir, Direction::In)).unwrap();
    restart(&mut net, 1);
    assert!(net.is_up(1, 0));
    assert_eq!(halves(&net, 1), [1, 1]);
    net.run(Duration::from_secs(10));
    run_with_traffic(&mut net, Duration::from_secs(1));
    is_settled(&mut net, "the heir is gone");
}

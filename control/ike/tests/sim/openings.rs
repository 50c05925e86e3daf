//! Many peers at once: who is tried when.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use braid_ike::wire::{ExchangeType, Header, Identity};
use braid_ike::{EndpointSettings, PeerConfig, PeerId, Role};

use crate::config::{A, B, peer};
use crate::net::Net;

/// Where nobody is.
const SILENT: &str = "203.0.113.9";

/// One of many tunnels between two addresses, told apart by their identities.
fn one_of_many(role: Role, local: &str, remote: &str, number: u32) -> PeerConfig {
    let name = |address: &str| Identity::Fqdn(format!("t{number}.{address}.example.com"));
    PeerConfig { local_id: name(local), remote_id: Some(name(remote)), ..peer(role, local, remote) }
}

/// Unanswered first requests: at most at one time, and the order of those that were sent once.
#[derive(Default)]
struct Seen {
    open: BTreeMap<[u8; 8], u32>,
    most: usize,
    order: Vec<u64>,
}

/// Watches what node 0 begins; SPIs stand for peers in the order of their appearance.
fn watch(net: &mut Net) -> Rc<RefCell<Seen>> {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let watching = seen.clone();
    net.censor = Some(Box::new(move |_, bytes| {
        let header = Header::decode(bytes).unwrap().0;
        if header.exchange == ExchangeType::IkeSaInit {
            let mut seen = watching.borrow_mut();
            if header.response {
                seen.open.remove(&header.initiator_spi.0);
            } else {
                *seen.open.entry(header.initiator_spi.0).or_default() += 1;
                seen.order.push(u64::from_be_bytes(header.initiator_spi.0));
            }
            let once = seen.open.values().filter(|sent| **sent == 1).count();
            seen.most = seen.most.max(once);
        }
        false
    }));
    seen
}

fn all_up(net: &Net, peers: impl IntoIterator<Item = u32>) -> bool {
    peers.into_iter().all(|number| net.is_up(0, number) && net.is_up(1, number))
}

#[test]
fn a_cold_start_of_many_is_worked_off_in_order_and_asks_no_cookie() {
    let mut net = Net::new(61, &[A, B]);
    let seen = watch(&mut net);
    for number in 0..500 {
        net.put_peer(1, number, one_of_many(Role::Respond, B, A, number));
    }
    for number in 0..500 {
        net.put_peer(0, number, one_of_many(Role::Initiate, A, B, number));
    }
    let mut ups = Vec::new();
    let took = net.run_until(Duration::from_secs(5), |net| {
        ups = (0..500).filter(|number| net.is_up(0, *number)).collect();
        // Whoever is up is up before all that come a window behind it.
        assert!(ups.iter().enumerate().all(|(rank, number)| number.abs_diff(rank as u32) <= 64));
        ups.len() == 500 && all_up(net, 0..500)
    });
    assert!(took, "{} are up", ups.len());
    let (most, counters) = (seen.borrow().most, net.nodes[1].endpoint.counters());
    assert_eq!(most, EndpointSettings::default().max_opening_of_one);
    assert_eq!((counters.cookies_sent, counters.half_open_refused), (0, 0));
    assert_eq!(net.nodes[0].endpoint.counters().retransmissions, 0);
    // A round trip of 20 ms for every 32, and what one takes.
    assert!(net.now - net.start <= Duration::from_millis(500 / 32 * 20 + 60), "{:?}", net.now - net.start);
}

#[test]
fn a_silent_peer_with_many_tunnels_delays_nobody() {
    let mut net = Net::new(62, &[A, B]);
    for number in 100..200 {
        net.put_peer(1, number, one_of_many(Role::Respond, B, A, number));
    }
    let seen = watch(&mut net);
    for number in 0..200 {
        let remote = if number < 100 { SILENT } else { B };
        net.put_peer(0, number, one_of_many(Role::Initiate, A, remote, number));
    }
    assert!(net.run_until(Duration::from_millis(200), |net| all_up(net, 100..200)));
    // Nor do those that are tried again for ever.
    net.run(Duration::from_secs(120));
    for number in 200..300 {
        net.put_peer(1, number, one_of_many(Role::Respond, B, A, number));
        net.put_peer(0, number, one_of_many(Role::Initiate, A, B, number));
    }
    assert!(net.run_until(Duration::from_millis(200), |net| all_up(net, 200..300)));
    assert!(seen.borrow().most <= EndpointSettings::default().max_opening);
}

#[test]
fn nobody_is_passed_over_among_many_that_do_not_answer() {
    let mut net = Net::new(63, &[A, B]);
    for number in 0..1_000u32 {
        let remote = format!("203.0.{}.{}", number / 250, number % 250);
        net.put_peer(0, number, one_of_many(Role::Initiate, A, &remote, number));
    }
    // 64 at a time, for 500 ms each.
    net.run(Duration::from_millis(500) * (1_000 / 64) + Duration::from_millis(1));
    let attempts =
        |net: &Net, number| net.nodes[0].endpoint.status(net.now, PeerId(number)).unwrap().attempts;
    let tried: Vec<u32> = (0..1_000).map(|number| attempts(&net, number)).collect();
    assert!(tried.iter().all(|attempts| *attempts >= 1), "{tried:?}");
    net.run(Duration::from_secs(300));
    let tried: Vec<u32> = (0..1_000).map(|number| attempts(&net, number)).collect();
    assert!(tried.iter().all(|attempts| (5..=15).contains(attempts)), "{tried:?}");
}

#[test]
fn a_peer_that_comes_back_is_found_and_all_its_tunnels_soon_after() {
    let mut net = Net::new(64, &[A, B]);
    net.nodes[1].cut = true;
    for number in 0..300 {
        net.put_peer(1, number, one_of_many(Role::Respond, B, A, number));
        net.put_peer(0, number, one_of_many(Role::Initiate, A, B, number));
    }
    net.run(Duration::from_secs(60));
    net.nodes[1].cut = false;
    assert!(net.run_until(Duration::from_secs(1), |net| (0..300).any(|number| net.is_up(0, number))));
    // The longest pause between two attempts, a quarter longer, and the attempt.
    assert!(net.run_until(Duration::from_secs(40), |net| all_up(net, 0..300)));
}

#[test]
fn a_peer_that_answers_late_is_not_taken_for_silent() {
    let mut net = Net::new(65, &[A, B]);
    (net.weather.delay_min, net.weather.delay_max) = (Duration::from_millis(300), Duration::from_millis(310));
    for number in 0..320 {
        net.put_peer(1, number, one_of_many(Role::Respond, B, A, number));
        net.put_peer(0, number, one_of_many(Role::Initiate, A, B, number));
    }
    // 32 for each round trip of 600 ms, and some that were begun meanwhile.
    assert!(net.run_until(Duration::from_secs(9), |net| all_up(net, 0..320)));
}

#[test]
fn who_is_reached_otherwise_or_removed_leaves_the_line() {
    let mut net = Net::new(66, &[A, B]);
    net.nodes[1].cut = true;
    for number in 0..100 {
        net.put_peer(0, number, one_of_many(Role::Initiate, A, B, number));
    }
    let retry_in =
        |net: &Net, number| net.nodes[0].endpoint.status(net.now, PeerId(number)).unwrap().retry_in;
    net.run(Duration::from_millis(10));
    assert_eq!(retry_in(&net, 90), Some(Duration::ZERO), "it waits for its turn");
    net.nodes[1].cut = false;
    // The peer calls first.
    net.put_peer(1, 90, one_of_many(Role::Initiate, B, A, 90));
    assert!(net.run_until(Duration::from_millis(100), |net| net.is_up(0, 90)));
    assert_eq!(retry_in(&net, 90), None);
    net.nodes[1].cut = true;
    for number in (0..100).filter(|number| *number != 90) {
        net.act(0, |endpoint, now, rng| endpoint.remove_peer(now, rng, PeerId(number)));
    }
    net.nodes[1].cut = false;
    let before = net.nodes[0].datagrams;
    net.run(Duration::from_secs(5));
    assert_eq!(net.nodes[0].datagrams, before, "nobody is left to be tried");
    assert!(net.is_up(0, 90));
}

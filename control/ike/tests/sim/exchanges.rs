//! Every exchange between two endpoints, in calm weather.

use std::time::Duration;

use braid_ike::{EspTransport, Event, PeerId, Role};

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
    assert_eq!(net.transport(0, 1), Some(EspTransport::Udp));
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

//! What two sides can agree on beyond the plain case.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use braid_ike::wire::{ExchangeType, Header};
use braid_ike::{
    Encapsulation, EndpointSettings, EspTransport, Event, PeerConfig, PeerId, Ppk, Role, SecretBytes,
};

use crate::config::{A, B, peer};
use crate::exchanges::{pair, run_with_traffic, up};
use crate::net::Net;

/// A pair whose configurations are changed first.
fn pair_with(seed: u64, settings: EndpointSettings, change: impl Fn(&mut PeerConfig)) -> Net {
    let mut net = Net::with_settings(seed, &[A, B], settings);
    for (node, role, local, remote) in [(1, Role::Respond, B, A), (0, Role::Initiate, A, B)] {
        let mut config = peer(role, local, remote);
        change(&mut config);
        net.put_peer(node, 1 - node as u32, config);
    }
    net
}

fn plain(change: impl Fn(&mut PeerConfig)) -> Net {
    pair_with(11, EndpointSettings::default(), change)
}

fn rekey_all(net: &mut Net) {
    for node in [0, 1] {
        net.act(node, |e, now, rng| e.rekey_child(now, rng, PeerId(1 - node as u32)));
        run_with_traffic(net, Duration::from_millis(500));
        net.act(node, |e, now, rng| e.rekey_ike(now, rng, PeerId(1 - node as u32)));
        run_with_traffic(net, Duration::from_millis(500));
    }
    assert!(net.failures(0).is_empty() && net.failures(1).is_empty());
}

#[test]
fn without_a_nat_auto_means_plain_esp() {
    for mode in [Encapsulation::Auto, Encapsulation::Esp] {
        let mut net = plain(|config| {
            config.encapsulation = mode;
            config.mobike = false;
        });
        up(&mut net);
        assert_eq!(net.transport(0, 1), Some(EspTransport::Esp));
        assert_eq!(net.transport(1, 0), Some(EspTransport::Esp));
        rekey_all(&mut net);
    }
}

#[test]
fn keys_are_logged_where_they_are_asked_for_and_nowhere_else() {
    let change = |config: &mut PeerConfig| {
        config.ike_proposals = vec!["aes256gcm16-prfsha384-ecp384-ke1_mlkem768".parse().unwrap()];
    };
    let settings = EndpointSettings { key_log: true, ..EndpointSettings::default() };
    let mut net = pair_with(15, settings, change);
    up(&mut net);
    rekey_all(&mut net);
    // The first SA's keys before and after the additional key exchange, and two rekeys.
    let rows = &net.nodes[0].key_log;
    assert_eq!(rows.len(), 4, "{rows:?}");
    let spis = |row: &String| row.split(',').take(2).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(spis(&rows[0]), spis(&rows[1]));
    assert!(rows.windows(2).all(|two| two[0] != two[1]) && spis(&rows[1]) != spis(&rows[2]));
    assert_eq!(net.nodes[0].key_log, net.nodes[1].key_log, "both sides have the same keys");
    let mut net = plain(change);
    up(&mut net);
    rekey_all(&mut net);
    assert!(net.nodes.iter().all(|node| node.key_log.is_empty()));
}

#[test]
fn large_messages_go_in_fragments() {
    let settings = EndpointSettings { fragment_size: 180, ..EndpointSettings::default() };
    let mut net = pair_with(14, settings, |_| {});
    net.weather.delay_max = Duration::from_millis(60);
    net.weather.loss = 20;
    up(&mut net);
    assert!(net.nodes[0].datagrams > 4);
    net.weather.loss = 0;
    rekey_all(&mut net);
}

#[test]
fn another_group_is_tried_when_the_first_guess_is_refused() {
    let mut net = Net::new(15, &[A, B]);
    let mut responder = peer(Role::Respond, B, A);
    responder.ike_proposals = vec!["aes128gcm16-prfsha256-curve25519".parse().unwrap()];
    responder.esp_proposals = vec!["aes128gcm16-curve25519".parse().unwrap()];
    net.put_peer(1, 0, responder);
    let mut initiator = peer(Role::Initiate, A, B);
    initiator.ike_proposals = vec!["aes128gcm16-prfsha256-ecp256-curve25519".parse().unwrap()];
    initiator.esp_proposals = vec!["aes128gcm16-ecp256-curve25519".parse().unwrap()];
    net.put_peer(0, 1, initiator);
    up(&mut net);
    rekey_all(&mut net);
}

#[test]
fn every_kind_of_suite_comes_up_and_is_rekeyed() {
    for (ike, esp) in [
        ("aes256-sha256-modp2048", "aes256-sha256-modp2048-esn"),
        ("aes128-sha1-modp2048", "aes128-sha1"),
        ("aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384"),
        ("chacha20poly1305-prfsha512-ecp521", "chacha20poly1305-ecp521-noesn"),
    ] {
        let mut net = plain(|config| {
            config.ike_proposals = vec![ike.parse().unwrap()];
            config.esp_proposals = vec![esp.parse().unwrap()];
        });
        up(&mut net);
        rekey_all(&mut net);
    }
}

#[test]
fn ml_kem_is_mixed_in_at_first_and_at_every_rekey() {
    let settings = EndpointSettings { fragment_size: 600, ..EndpointSettings::default() };
    let mut net = pair_with(16, settings, |config| {
        config.ike_proposals =
            vec!["aes256gcm16-prfsha384-curve25519-ke1_mlkem768-ke2_mlkem512".parse().unwrap()];
        config.esp_proposals = vec!["aes256gcm16-curve25519-ke1_mlkem768".parse().unwrap()];
    });
    up(&mut net);
    rekey_all(&mut net);
    let status = net.nodes[0].endpoint.status(net.now, PeerId(1)).unwrap();
    assert!(status.ike.unwrap().suite.contains("ke1_mlkem768-ke2_mlkem512"));
    assert!(status.child.unwrap().suite.contains("ke1_mlkem768"));
}

fn ppk(id: &str, required: bool) -> Option<Ppk> {
    Some(Ppk { id: id.as_bytes().to_vec(), secret: SecretBytes::from_slice(b"quantum"), required })
}

#[test]
fn ppk_is_used_where_both_have_it() {
    let mut net = plain(|config| config.ppk = ppk("one", true));
    up(&mut net);
    rekey_all(&mut net);
    // One side does without, where the other allows it.
    let mut net =
        plain(|config| config.ppk = (config.role == Role::Initiate).then(|| ppk("one", false)).flatten());
    up(&mut net);
    let mut net = plain(|config| {
        config.ppk = ppk(if config.role == Role::Initiate { "one" } else { "two" }, false);
    });
    up(&mut net);
    // Required, and not the same.
    let mut net = plain(|config| {
        config.ppk = ppk(if config.role == Role::Initiate { "one" } else { "two" }, true);
    });
    net.run(Duration::from_secs(5));
    assert!(!net.is_up(0, 1) && !net.is_up(1, 0));
    assert!(net.failures(1).iter().any(|fault| matches!(fault, braid_ike::Fault::Ppk { .. })));
}

#[test]
fn childless_makes_its_first_child_with_pfs() {
    let mut net = plain(|config| config.childless = true);
    up(&mut net);
    let status = net.nodes[0].endpoint.status(net.now, PeerId(1)).unwrap();
    assert_eq!(status.child.unwrap().suite, "aes128gcm16-curve25519");
    rekey_all(&mut net);
}

#[test]
fn selectors_are_narrowed_to_what_both_allow() {
    let mut net = plain(|config| {
        let narrow = config.role == Role::Respond;
        if narrow {
            config.local_ts = vec!["10.2.0.0/16".parse().unwrap()];
            config.remote_ts = vec!["10.0.0.0/8".parse().unwrap()];
        }
    });
    up(&mut net);
    let out = net.nodes[0].core.outbound(PeerId(1)).unwrap();
    assert_eq!(out.local, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(out.remote, ["10.2.0.0/16".parse().unwrap()]);
    let out = net.nodes[1].core.outbound(PeerId(0)).unwrap();
    assert_eq!(out.local, ["10.2.0.0/16".parse().unwrap()]);
}

#[test]
fn volume_rekeys_a_child_by_bytes_and_by_packets() {
    let mut at = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let mut net = pair_with(seed, EndpointSettings::default(), |config| {
            (config.child_bytes, config.child_packets) = (Some(1_000_000), Some(1_000));
        });
        up(&mut net);
        for by_bytes in [true, false] {
            let child = net.nodes[0].core.outbound(PeerId(1)).unwrap().id;
            let used = |net: &mut Net, share: u64| {
                let (bytes, packets) = if by_bytes { (share * 1_000, 1) } else { (1, share) };
                net.act(0, |e, now, rng| e.handle_sa_used(now, rng, PeerId(1), child, bytes, packets));
                net.run(Duration::from_millis(100));
                net.nodes[0].core.outbound(PeerId(1)).unwrap().id != child
            };
            let share = (700..=1_000).step_by(5).find(|share| used(&mut net, *share)).unwrap();
            assert!((800..=900).contains(&share), "{share} thousandths");
            at.insert(share);
        }
        run_with_traffic(&mut net, Duration::from_secs(1));
    }
    assert!(at.len() > 5, "at random: {at:?}");
}

#[test]
fn a_name_is_resolved_before_every_attempt() {
    let mut net = Net::new(17, &[A, B]);
    let mut config = peer(Role::Initiate, A, B);
    (config.remote, config.remote_is_name, config.local) = (None, true, None);
    net.put_peer(0, 1, config);
    net.put_peer(1, 0, peer(Role::Respond, B, A));
    let asked =
        |net: &Net| net.nodes[0].events.iter().filter(|e| matches!(e, Event::WantsAddress { .. })).count();
    net.run(Duration::from_millis(10));
    assert_eq!((asked(&net), net.nodes[0].datagrams), (1, 0));
    let answer = |net: &mut Net, remote: &str| {
        let (local, remote) = (A.parse().unwrap(), remote.parse().unwrap());
        net.act(0, |e, now, rng| e.set_addresses(now, rng, PeerId(1), local, remote));
    };
    answer(&mut net, "198.51.100.99");
    assert!(net.run_until(Duration::from_secs(60), |net| asked(net) == 2), "the old address did not answer");
    answer(&mut net, B);
    up(&mut net);
}

#[test]
fn cookies_cost_one_round_trip() {
    let settings = EndpointSettings { cookie_threshold: 0, ..EndpointSettings::default() };
    let mut net = pair_with(18, settings, |_| {});
    up(&mut net);
    assert_eq!(net.nodes[0].datagrams + net.nodes[1].datagrams, 6);
    assert_eq!(net.nodes[1].endpoint.counters().cookies_sent, 1);
}

#[test]
fn control_comes_back_and_renegotiates_nothing() {
    for node in [0, 1] {
        let mut net = pair(19);
        up(&mut net);
        net.act(node, |e, now, rng| e.rekey_ike(now, rng, PeerId(1 - node as u32)));
        net.run(Duration::from_secs(600));
        let before = net.nodes[node].core.outbound(PeerId(1 - node as u32)).unwrap().id;
        let child_of = |net: &Net| {
            net.nodes[node].endpoint.status(net.now, PeerId(1 - node as u32)).unwrap().child.unwrap()
        };
        let planned = child_of(&net).rekey_in;
        let (role, local, remote) = if node == 0 { (Role::Initiate, A, B) } else { (Role::Respond, B, A) };
        net.restart_control(node, 1, 1 - node as u32, peer(role, local, remote));
        assert!(net.is_up(node, 1 - node as u32), "up at once");
        run_with_traffic(&mut net, Duration::from_secs(2));
        let after = net.nodes[node].core.outbound(PeerId(1 - node as u32)).unwrap();
        assert_eq!(after.id, before);
        let rekey_in = child_of(&net).rekey_in;
        let passed = planned.saturating_sub(rekey_in).as_secs_f64();
        assert!((2.9..3.2).contains(&passed), "{planned:?} became {rekey_in:?}: the age counts");
        rekey_all(&mut net);
    }
}

/// Both have been silent for as long: the one that made the SA asks, the other has its answer in that.
#[test]
fn of_two_idle_sides_one_asks() {
    let mut net = pair(5);
    up(&mut net);
    let asked = Rc::new(RefCell::new([0; 2]));
    let counted = asked.clone();
    net.censor = Some(Box::new(move |from, bytes| {
        let Ok((header, ..)) = Header::decode(bytes) else { return false };
        let asks = header.exchange == ExchangeType::Informational && !header.response;
        counted.borrow_mut()[from] += u32::from(asks);
        false
    }));
    net.run(Duration::from_secs(300));
    let asked = *asked.borrow();
    assert!(asked.contains(&0), "{asked:?}");
    assert!((28..=31).contains(&(asked[0] + asked[1])), "every ten seconds: {asked:?}");
    assert!(net.connected(0, 1));
}

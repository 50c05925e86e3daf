//! What goes wrong: configurations that do not fit, messages that nobody should act on, and collisions.

use std::time::Duration;

use braid_ike::wire::{ExchangeType, Header, IkeSpi};
use braid_ike::{EndpointSettings, Event, Fault, Path, PeerConfig, PeerId, Role};

use crate::config::{A, B, id, peer, psk};
use crate::exchanges::{pair, run_with_traffic, sas_in_core, up};
use crate::net::{Net, Seeded};

/// A pair whose responder is changed; runs for a while.
fn misfit(change: impl Fn(&mut PeerConfig)) -> Net {
    let mut net = Net::new(21, &[A, B]);
    let mut responder = peer(Role::Respond, B, A);
    change(&mut responder);
    net.put_peer(1, 0, responder);
    net.put_peer(0, 1, peer(Role::Initiate, A, B));
    net.run(Duration::from_secs(5));
    assert!(!net.is_up(0, 1) && !net.is_up(1, 0));
    assert_eq!(sas_in_core(&net), [0, 0]);
    net
}

fn sees(net: &Net, node: usize, what: impl Fn(&Fault) -> bool) {
    assert!(net.failures(node).into_iter().any(&what), "node {node}: {:?}", net.failures(node));
}

#[test]
fn no_common_proposal() {
    let net = misfit(|c| c.ike_proposals = vec!["aes256-sha256-modp2048".parse().unwrap()]);
    sees(
        &net,
        0,
        |fault| matches!(fault, Fault::NoProposal { ours, peers } if !ours.is_empty() && peers.is_empty()),
    );
    sees(
        &net,
        1,
        |fault| matches!(fault, Fault::NoProposal { ours, peers } if !ours.is_empty() && !peers.is_empty()),
    );
    let net = misfit(|c| c.esp_proposals = vec!["aes256-sha256".parse().unwrap()]);
    sees(&net, 0, |fault| matches!(fault, Fault::NoProposal { .. }));
    sees(&net, 1, |fault| matches!(fault, Fault::NoProposal { .. }));
}

#[test]
fn wrong_psk() {
    let net = misfit(|c| (c.credential, c.verifier) = psk("another"));
    sees(&net, 0, |fault| matches!(fault, Fault::PeerRejectedUs { by_certificate: false }));
    sees(&net, 1, |fault| matches!(fault, Fault::AuthMismatch));
}

#[test]
fn wrong_identity() {
    let net = misfit(|c| c.remote_id = Some(id("192.0.2.200")));
    sees(&net, 0, |fault| matches!(fault, Fault::PeerRejectedUs { by_certificate: false }));
    sees(&net, 1, |fault| {
        matches!(fault, Fault::PeerIdMismatch { expected, received }
            if *expected == id("192.0.2.200") && *received == id(A))
    });
}

#[test]
fn no_common_selectors() {
    let mut net = Net::new(27, &[A, B]);
    let mut responder = peer(Role::Respond, B, A);
    responder.local_ts = vec!["10.2.0.0/16".parse().unwrap()];
    net.put_peer(1, 0, responder);
    let mut initiator = peer(Role::Initiate, A, B);
    initiator.remote_ts = vec!["10.3.0.0/16".parse().unwrap()];
    net.put_peer(0, 1, initiator);
    net.run(Duration::from_secs(5));
    assert!(!net.is_up(0, 1) && !net.is_up(1, 0));
    sees(&net, 0, |fault| matches!(fault, Fault::TrafficSelectors { .. }));
    sees(&net, 1, |fault| matches!(fault, Fault::TrafficSelectors { peers, .. } if !peers.0.is_empty()));
}

#[test]
fn unreachable_peer() {
    let mut net = Net::new(22, &[A, B]);
    net.put_peer(0, 1, peer(Role::Initiate, A, B));
    net.nodes[1].cut = true;
    net.run(Duration::from_secs(20));
    sees(&net, 0, |fault| matches!(fault, Fault::Unreachable { sent } if *sent >= 4));
}

#[test]
fn a_retransmitted_request_gets_the_same_answer() {
    let mut net = pair(23);
    up(&mut net);
    net.run(Duration::from_secs(1));
    // Every answer of node 1 is lost twice.
    let mut seen: Vec<Vec<u8>> = Vec::new();
    net.censor = Some(Box::new(move |from, bytes| {
        let header = Header::decode(bytes).unwrap().0;
        if from == 1 && header.response {
            seen.push(bytes.to_vec());
            assert!(seen.iter().all(|other| other == bytes), "octet for octet");
            return seen.len() < 3;
        }
        false
    }));
    net.act(0, |e, now, rng| e.rekey_child(now, rng, PeerId(1)));
    net.run_until(Duration::from_secs(10), |net| {
        net.nodes[0].events.iter().any(|e| matches!(e, Event::ChildRekeyed { .. }))
    });
    net.censor = None;
    assert_eq!(net.nodes[1].endpoint.counters().retransmitted_requests, 2);
    run_with_traffic(&mut net, Duration::from_secs(1));
    assert!(net.connected(0, 1));
}

#[test]
fn foreign_octets_change_nothing() {
    let mut net = pair(24);
    let path =
        Path { local: format!("{B}:4500").parse().unwrap(), remote: format!("{A}:4500").parse().unwrap() };
    // What node 0 sent, to be sent again damaged.
    let sent = std::rc::Rc::new(std::cell::RefCell::new(Vec::<Vec<u8>>::new()));
    let recorder = sent.clone();
    net.censor = Some(Box::new(move |from, bytes| {
        if from == 0 {
            recorder.borrow_mut().push(bytes.to_vec());
        }
        false
    }));
    up(&mut net);
    net.run(Duration::from_secs(30));
    net.censor = None;
    let status = net.nodes[1].endpoint.status(net.now, PeerId(0)).unwrap();
    let before = (net.nodes[1].datagrams, net.nodes[1].endpoint.ike_sas());
    let mut rng = Seeded(24);
    for _ in 0..5_000 {
        let recorded = sent.borrow();
        // The first request is everybody's to send; all others need the keys.
        let mut bytes = recorded[1 + rng.below(recorded.len() as u64 - 1) as usize].clone();
        drop(recorded);
        for _ in 0..=rng.below(3) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << rng.below(8);
        }
        bytes.truncate(bytes.len() - rng.below(2) as usize * rng.below(20) as usize);
        let is_first = Header::decode(&bytes).is_ok_and(|(header, _)| {
            header.exchange == ExchangeType::IkeSaInit && header.responder_spi == IkeSpi::ZERO
        });
        if !is_first {
            net.inject(1, path, bytes);
        }
    }
    net.run(Duration::from_millis(1));
    let after = net.nodes[1].endpoint.status(net.now, PeerId(0)).unwrap();
    assert_eq!((net.nodes[1].datagrams, net.nodes[1].endpoint.ike_sas()), before, "not answered");
    assert_eq!((after.path, after.child.map(|c| c.id)), (status.path, status.child.map(|c| c.id)));
    run_with_traffic(&mut net, Duration::from_secs(1));
}

#[test]
fn a_flood_of_first_requests_is_bounded_and_disturbs_nobody() {
    let mut net = pair(25);
    let first = std::rc::Rc::new(std::cell::RefCell::new(Vec::<u8>::new()));
    let recorder = first.clone();
    net.censor = Some(Box::new(move |from, bytes| {
        if from == 0 && recorder.borrow().is_empty() {
            recorder.borrow_mut().extend_from_slice(bytes);
        }
        false
    }));
    // A responder that takes calls from anywhere.
    let mut anyone = peer(Role::Respond, B, A);
    anyone.remote = None;
    net.put_peer(1, 7, anyone);
    up(&mut net);
    net.censor = None;
    let template = first.borrow().clone();
    let sent = net.nodes[1].sent;
    let mut received = 0;
    for second in 0u32..2 {
        for number in 0..2_000u32 {
            let mut bytes = template.clone();
            bytes[..4].copy_from_slice(&(second << 16 | number).to_be_bytes());
            let remote = format!("10.{}.{}.{}:500", second, number / 256, number % 256).parse().unwrap();
            received += bytes.len() as u64;
            net.inject(1, Path { local: format!("{B}:500").parse().unwrap(), remote }, bytes);
        }
        net.ping(0, 1);
        net.run(Duration::from_secs(1));
    }
    let endpoint = &net.nodes[1].endpoint;
    assert_eq!(endpoint.half_open(), 64, "the threshold, then cookies");
    assert!(endpoint.counters().cookies_sent >= 3_900);
    assert!(net.nodes[1].sent - sent < received, "never answered by more than was sent");
    assert_eq!(net.nodes[1].esp_lost_here, 0);
    run_with_traffic(&mut net, Duration::from_secs(1));
    net.run(Duration::from_secs(40));
    assert_eq!(net.nodes[1].endpoint.half_open(), 0);
}

#[test]
fn failed_authentications_are_bounded_too() {
    let settings = EndpointSettings { max_half_open_of_one: 64, ..EndpointSettings::default() };
    let mut net = Net::with_settings(28, &[A, B], settings);
    let mut responder = peer(Role::Respond, B, A);
    (responder.credential, responder.verifier) = psk("another");
    net.put_peer(1, 0, responder);
    for attempt in 0..200 {
        net.put_peer(0, attempt, peer(Role::Initiate, A, B));
    }
    net.run(Duration::from_secs(10));
    let endpoint = &net.nodes[1].endpoint;
    assert!(endpoint.counters().failed_authentication > 0);
    assert!(endpoint.counters().half_open_refused > 0);
    assert!(endpoint.ike_sas() <= 64, "{} kept for one address", endpoint.ike_sas());
    net.nodes[0].cut = true;
    net.run(Duration::from_secs(61));
    assert_eq!(net.nodes[1].endpoint.ike_sas(), 0);
}

/// Every kind of datagram that changes nothing is counted by its kind, and only a true repetition is answered,
/// with the same octets as before.
#[test]
fn what_is_replayed_or_out_of_place_is_counted() {
    let mut net = pair(29);
    let sent = std::rc::Rc::new(std::cell::RefCell::new(Vec::<Vec<u8>>::new()));
    let recorder = sent.clone();
    net.censor = Some(Box::new(move |from, bytes| {
        if from == 0 {
            recorder.borrow_mut().push(bytes.to_vec());
        }
        false
    }));
    up(&mut net);
    for _ in 0..3 {
        net.act(0, |e, now, rng| e.probe(now, rng, PeerId(1)));
        net.run(Duration::from_secs(1));
    }
    net.act(1, |e, now, rng| e.probe(now, rng, PeerId(0)));
    net.run(Duration::from_secs(1));
    net.censor = None;
    let sent = sent.borrow().clone();
    // IKE_SA_INIT, IKE_AUTH, three probes, and an answer.
    assert_eq!(sent.len(), 6);
    let path =
        Path { local: format!("{B}:4500").parse().unwrap(), remote: format!("{A}:4500").parse().unwrap() };
    let mut play = |bytes: Vec<u8>| {
        let before = (*net.nodes[1].endpoint.counters(), net.nodes[1].datagrams);
        net.inject(1, path, bytes);
        net.run(Duration::from_millis(1));
        (before.0, *net.nodes[1].endpoint.counters(), net.nodes[1].datagrams - before.1)
    };
    let (before, after, answers) = play(sent[4].clone());
    assert_eq!(
        (after.retransmitted_requests, answers),
        (before.retransmitted_requests + 1, 1),
        "the last one"
    );
    for old in &sent[1..4] {
        let (before, after, answers) = play(old.clone());
        assert_eq!((after.outside_window, answers), (before.outside_window + 1, 0));
    }
    let (before, after, answers) = play(sent[5].clone());
    assert_eq!((after.unexpected, answers), (before.unexpected + 1, 0), "an answer to nothing");
    let altered = |at: usize, octet: u8| {
        let mut bytes = sent[4].clone();
        bytes[at] ^= octet;
        bytes
    };
    // RFC 7296 section 3.1: SPIs, version, flags, message ID.
    let (before, after, answers) = play(altered(15, 1));
    assert_eq!((after.unknown_spi, answers), (before.unknown_spi + 1, 0));
    let (before, after, answers) = play(altered(17, 0x10));
    assert_eq!((after.other_version, answers), (before.other_version + 1, 0));
    let (before, after, answers) = play(altered(19, 0x08));
    assert_eq!(
        (after.unknown_spi + after.unexpected, answers),
        (before.unknown_spi + before.unexpected + 1, 0)
    );
    let (before, after, answers) = play(altered(23, 0x08));
    assert_eq!((after.outside_window, answers), (before.outside_window + 1, 0), "far ahead");
    let (before, after, answers) = play(altered(23, 0x01));
    let counted = after.unauthenticated + after.outside_window;
    assert_eq!((counted, answers), (before.unauthenticated + before.outside_window + 1, 0));
    let (before, after, answers) = play(altered(sent[4].len() - 1, 1));
    assert_eq!((after.unauthenticated, answers), (before.unauthenticated + 1, 0));
    let (before, after, answers) = play(sent[4][..20].to_vec());
    assert_eq!((after.malformed, answers), (before.malformed + 1, 0));
    run_with_traffic(&mut net, Duration::from_secs(1));
    assert!(net.nodes.iter().all(|node| node.endpoint.ike_sas() == 1));
}

/// RFC 5685 is not announced; a REDIRECT, and whatever else somebody answers in clear before the peer does,
/// is waited out.
#[test]
fn answers_in_clear_that_are_not_the_peers_do_not_end_an_attempt() {
    use braid_ike::wire::{Message, Notify, NotifyType, Payload};
    for kind in [
        NotifyType::REDIRECT,
        NotifyType::NO_PROPOSAL_CHOSEN,
        NotifyType::INVALID_SYNTAX,
        NotifyType::AUTHENTICATION_FAILED,
    ] {
        let mut net = pair(30);
        let first = std::rc::Rc::new(std::cell::RefCell::new(Vec::<u8>::new()));
        let recorder = first.clone();
        net.censor = Some(Box::new(move |from, bytes| {
            let is_first = from == 0 && recorder.borrow().is_empty();
            if is_first {
                recorder.borrow_mut().extend_from_slice(bytes);
            }
            is_first
        }));
        net.run(Duration::from_millis(1));
        let request = Header::decode(&first.borrow()).unwrap().0;
        let header = Header { from_initiator: false, response: true, ..request };
        let bytes = Message { header, payloads: vec![Payload::Notify(Notify::bare(kind))] }.encode_plain();
        let path =
            Path { local: format!("{A}:500").parse().unwrap(), remote: format!("{B}:500").parse().unwrap() };
        net.inject(0, path, bytes);
        let took = net.run_until(Duration::from_millis(700), |net| net.is_up(0, 1) && net.is_up(1, 0));
        assert!(took, "{kind}: {:?}", net.failures(0));
        assert!(net.connected(0, 1));
    }
}

/// RFC 7296 section 2.5: of messages in clear, the first request too. Without a configured peer, and when it is
/// shorter than any first request, there is no answer; a payload without the bit is skipped.
#[test]
fn an_unknown_critical_payload_in_a_first_request_is_refused() {
    use braid_ike::wire::{NotifyType, Parsed, parse};
    const UNKNOWN: u8 = 222;
    let mut net = Net::new(91, &[A, B]);
    net.put_peer(1, 0, peer(Role::Respond, B, A));
    let answers = std::rc::Rc::new(std::cell::RefCell::new(Vec::<Vec<u8>>::new()));
    let recorder = answers.clone();
    net.censor = Some(Box::new(move |from, bytes| {
        recorder.borrow_mut().extend((from == 1).then(|| bytes.to_vec()));
        false
    }));
    let request = |flags: u8, body: u8, response: bool| {
        let length = 28 + 4 + body;
        let mut bytes = vec![7; 8];
        bytes.extend([0; 8]);
        bytes.extend([UNKNOWN, 0x20, 34, if response { 0x20 } else { 0x08 }]);
        bytes.extend([0; 4]);
        bytes.extend([0, 0, 0, length, 0, flags, 0, 4 + body]);
        bytes.resize(usize::from(length), 0xAB);
        bytes
    };
    let path =
        Path { local: format!("{B}:500").parse().unwrap(), remote: format!("{A}:500").parse().unwrap() };
    let stranger = Path { remote: "203.0.113.200:500".parse().unwrap(), ..path };
    let mut play = |path: Path, bytes: Vec<u8>| {
        let before = net.nodes[1].endpoint.counters().malformed;
        net.inject(1, path, bytes);
        net.run(Duration::from_millis(1));
        assert_eq!(net.nodes[1].endpoint.counters().malformed, before + 1);
        assert_eq!(net.nodes[1].endpoint.ike_sas(), 0);
        answers.borrow_mut().drain(..).collect::<Vec<_>>()
    };
    let answer = play(path, request(0x80, 100, false));
    assert_eq!(answer.len(), 1);
    let Ok(Parsed::Plain(message)) = parse(&answer[0]) else { panic!("in clear") };
    let refusal = message.notify(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD).unwrap();
    assert_eq!(refusal.data, [UNKNOWN]);
    assert!(message.header.response && message.header.responder_spi.is_zero());
    for (path, bytes) in [
        (stranger, request(0x80, 100, false)),
        (path, request(0x80, 8, false)),
        (path, request(0x80, 100, true)),
        (path, request(0, 100, false)),
    ] {
        assert_eq!(play(path, bytes), Vec::<Vec<u8>>::new());
    }
}

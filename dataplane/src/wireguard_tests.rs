//! Two peers by hand: what crosses between them is these tests' to keep, alter and repeat.

use std::net::Ipv4Addr;

use braid_api::SecretKey;

use super::*;

const US: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const THEM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const PACKET: [u8; 32] = {
    let mut packet = [7; 32];
    (packet[0], packet[2], packet[3]) = (0x45, 0, 32);
    packet
};

fn public(private: u8) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from([private; 32])).to_bytes()
}

fn settings(ours: u8, peer: u8, preshared: Option<u8>) -> WireGuard {
    WireGuard {
        tunnel: TunnelId(u32::from(ours)),
        private_key: SecretKey::new(vec![ours; 32]),
        peer_public_key: public(peer),
        preshared_key: preshared.map(|byte| SecretKey::new(vec![byte; 32])),
        keepalive: None,
        initiate: false,
        begin: false,
    }
}

fn peer(ours: u8, theirs: u8, preshared: Option<u8>) -> Peer {
    let settings = settings(ours, theirs, preshared);
    let identities = Identities::new(u32::from(ours) << 8);
    identities.make(&settings, [0; 16], [ours; 16], |_| false).unwrap()
}

fn pair() -> (Peer, Peer) {
    (peer(1, 2, Some(9)), peer(2, 1, Some(9)))
}

/// An initiation; for want of a session it is asked for.
fn initiation(from: &Peer) -> Vec<u8> {
    assert!(from.sending().is_none());
    let mut out = [0; MAX_HANDSHAKE];
    assert_eq!(from.handle_timeout(true, &mut out), MAX_HANDSHAKE);
    out.to_vec()
}

fn answer(to: &Peer, message: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut reply = [0; MAX_HANDSHAKE];
    let handled = to.handle_handshake(THEM, message, &mut reply)?;
    Ok(reply[..handled.reply].to_vec())
}

/// The handshake of `a` with `b`, up to the first packet, which tells `b` that it worked.
fn shake(a: &Peer, b: &Peer) {
    let response = answer(b, &initiation(a)).unwrap();
    assert!(b.sending().is_none(), "nothing proves yet that the initiator lives");
    let keepalive = answer(a, &response).unwrap();
    assert_eq!(keepalive.len(), OVERHEAD);
    assert_eq!(open(b, &keepalive), Ok(Vec::new()));
    assert!(b.heard() && !b.heard() && b.is_up());
}

fn seal(from: &Peer, packet: &[u8]) -> Vec<u8> {
    let mut out = vec![0; packet.len() + OVERHEAD];
    from.sending().unwrap().seal(packet, &mut out).unwrap();
    out
}

fn open(at: &Peer, datagram: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut out = vec![0; datagram.len()];
    let len = at.receiving().open(datagram, &mut out)?;
    out.truncate(len);
    Ok(out)
}

#[test]
fn packets_cross_once_a_handshake_is_done() {
    let (a, b) = pair();
    shake(&a, &b);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let sealed = seal(from, &PACKET);
        assert_eq!(message(&sealed), Ok(Message::Data { index: to.index }));
        assert_eq!(open(to, &sealed).unwrap(), PACKET);
    }
    assert_eq!((a.stats().handshakes, b.stats().handshakes), (1, 1));
    assert!(a.stats().last_handshake.is_some());
    // Whitepaper section 5.4.6: what pads a packet is none of it.
    let mut padded = PACKET.to_vec();
    padded.extend([0; 16]);
    assert_eq!(open(&b, &seal(&a, &padded)).unwrap(), PACKET);
}

#[test]
fn what_was_to_be_sent_before_the_session_asks_for_no_second_one() {
    let (a, b) = pair();
    let first = initiation(&a);
    assert!(a.sending().is_none() && b.sending().is_none(), "more is to be sent meanwhile");
    let keepalive = answer(&a, &answer(&b, &first).unwrap()).unwrap();
    assert_eq!(open(&b, &keepalive), Ok(Vec::new()));
    let mut out = [0; MAX_HANDSHAKE];
    for peer in [&a, &b] {
        assert_eq!(peer.handle_timeout(true, &mut out), 0);
    }
}

#[test]
fn both_may_begin_at_once() {
    let (a, b) = pair();
    let (from_a, from_b) = (initiation(&a), initiation(&b));
    let (by_b, by_a) = (answer(&b, &from_a).unwrap(), answer(&a, &from_b).unwrap());
    for (to, response, other) in [(&a, by_b, &b), (&b, by_a, &a)] {
        let keepalive = answer(to, &response).unwrap();
        assert_eq!(open(other, &keepalive), Ok(Vec::new()));
    }
    for (from, to) in [(&a, &b), (&b, &a)] {
        assert_eq!(open(to, &seal(from, &PACKET)).unwrap(), PACKET);
    }
}

#[test]
fn a_session_outlives_the_handshake_that_follows_it() {
    let (a, b) = pair();
    shake(&a, &b);
    let late = seal(&a, &PACKET);
    a.want_session();
    let mut out = [0; MAX_HANDSHAKE];
    // boringtun's clock ticks for the peer that is to see a later timestamp.
    assert_eq!(a.handle_timeout(true, &mut out), MAX_HANDSHAKE);
    let keepalive = answer(&a, &answer(&b, &out).unwrap()).unwrap();
    assert_eq!(open(&b, &keepalive), Ok(Vec::new()));
    assert_eq!(open(&b, &late).unwrap(), PACKET, "under way while the keys were changed");
    assert_eq!(open(&b, &seal(&a, &PACKET)).unwrap(), PACKET);
    assert_eq!(a.stats().handshakes, 2);
}

#[test]
fn what_is_altered_replayed_or_anothers_is_refused_by_its_own_name() {
    let (a, b) = pair();
    shake(&a, &b);
    let sealed = seal(&a, &PACKET);
    for at in [HEADER, sealed.len() - 1] {
        let mut altered = sealed.clone();
        altered[at] ^= 1;
        assert_eq!(open(&b, &altered), Err(DropReason::BadIcv));
    }
    // Refused packets have not moved the window.
    assert_eq!(open(&b, &sealed).unwrap(), PACKET);
    assert_eq!(open(&b, &sealed), Err(DropReason::Replayed));
    let (c, d) = pair();
    shake(&c, &d);
    // Of another session with the same index; its counter is new here.
    (0..2).for_each(|_| drop(seal(&c, &PACKET)));
    assert_eq!(open(&b, &seal(&c, &PACKET)), Err(DropReason::BadIcv));
    let old = seal(&a, &PACKET);
    // boringtun's window has 1024 places.
    for _ in 0..1100 {
        open(&b, &seal(&a, &PACKET)).unwrap();
    }
    assert_eq!(open(&b, &old), Err(DropReason::TooOld));
    let mut of_no_session = sealed;
    of_no_session[4] ^= 1;
    assert_eq!(open(&b, &of_no_session), Err(DropReason::UnknownSession));
    // Authentic, and no IP packet.
    assert_eq!(open(&b, &seal(&a, &[0; 32])), Err(DropReason::DecryptedMalformed));
}

#[test]
fn counters_end_at_the_limits_of_the_protocol() {
    let mut datagram = [0; OVERHEAD];
    datagram[0] = 4;
    // Whitepaper section 6.1: Reject-After-Messages is 2^64 - 2^13 - 1.
    let limit = u64::MAX - 8192;
    for (counter, allowed) in [(0, true), (limit - 1, true), (limit, false), (u64::MAX, false)] {
        datagram[8..16].copy_from_slice(&counter.to_le_bytes());
        assert_eq!(message(&datagram).is_ok(), allowed, "{counter:x}");
    }
    assert_eq!(message(&datagram), Err(DropReason::CounterLimit));
}

#[test]
fn only_the_protocols_own_messages_are_looked_at() {
    for (kind, len) in [(1, 148), (2, 92), (3, 64)] {
        let mut datagram = vec![0; len];
        datagram[0] = kind;
        assert_eq!(message(&datagram), Ok(Message::Handshake));
        assert_eq!(message(&datagram[1..]), Err(DropReason::NotWireGuard));
        assert_eq!(message(&datagram[..len - 1]), Err(DropReason::NotWireGuard));
        // Section 5.4.2: three reserved bytes are zero.
        datagram[2] = 1;
        assert_eq!(message(&datagram), Err(DropReason::NotWireGuard));
    }
    for short in [&[][..], &[4, 0, 0], &[4, 0, 0, 0, 1], &[4; 31]] {
        assert_eq!(message(short), Err(DropReason::NotWireGuard));
    }
}

#[test]
fn wrong_keys_make_no_session() {
    // Another private key behind the public key that is expected.
    let (a, b) = (peer(3, 2, None), peer(2, 1, None));
    assert_eq!(answer(&b, &initiation(&a)), Err(DropReason::BadHandshake));
    // Other preshared keys: the response shows it.
    let (a, b) = (peer(1, 2, Some(8)), peer(2, 1, Some(9)));
    let response = answer(&b, &initiation(&a)).unwrap();
    assert_eq!(answer(&a, &response), Err(DropReason::BadHandshake));
    assert!(a.sending().is_none());
}

#[test]
fn an_initiation_that_comes_again_leads_to_nothing() {
    let (a, b) = pair();
    let first = initiation(&a);
    answer(&b, &first).unwrap();
    assert_eq!(answer(&b, &first), Err(DropReason::ReplayedHandshake));
}

#[test]
fn strangers_are_told_apart_before_any_secret_is_used() {
    let (a, b) = pair();
    let ours = &b.identity;
    let mut reply = [0; MAX_HANDSHAKE];
    let message = initiation(&a);
    assert_eq!(ours.admit(US, &message, &mut reply), Admission::From(public(1)));
    // For another public key, or with a MAC that nobody made.
    assert_eq!(a.identity.admit(US, &message, &mut reply), Admission::NotOurs);
    let mut forged = message.clone();
    forged[120] ^= 1;
    assert_eq!(ours.admit(US, &forged, &mut reply), Admission::NotOurs);
    // The MAC is right, since the public key is no secret, but nobody signed what it covers.
    let response = answer(&b, &message).unwrap();
    assert_eq!(a.identity.admit(THEM, &response, &mut reply), Admission::For(a.index));
}

#[test]
fn under_load_a_sender_proves_its_address() {
    let (a, b) = pair();
    let mut reply = [0; MAX_HANDSHAKE];
    let message = initiation(&a);
    let admitted = (0..2 * HANDSHAKES_PER_SECOND)
        .take_while(|_| b.identity.admit(US, &message, &mut reply) == Admission::From(public(1)))
        .count() as u64;
    assert_eq!(admitted, HANDSHAKES_PER_SECOND);
    let Admission::Cookie(len) = b.identity.admit(US, &message, &mut reply) else { panic!("no cookie") };
    assert_eq!(len, 64);
    // The next initiation has the cookie in it, and is good from this address only (section 5.3).
    assert_eq!(answer(&a, &reply[..len]), Ok(Vec::new()));
    let mut out = [0; MAX_HANDSHAKE];
    assert!(matches!(a.lock().format_handshake_initiation(&mut out, true), TunnResult::WriteToNetwork(_)));
    assert_eq!(b.identity.admit(THEM, &out, &mut reply), Admission::Cookie(64));
    // A proven address is good for a few, and does not use up what others have.
    let again = (0..100).filter(|_| b.identity.admit(US, &out, &mut reply) == Admission::From(public(1)));
    assert_eq!(again.count(), HANDSHAKES_PER_SOURCE as usize);
    // Without the load nobody is asked. A second of the limiter's has to pass.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let unasked = Admission::From(public(1));
    while b.identity.admit(THEM, &message, &mut reply) != unasked {
        assert!(std::time::Instant::now() < deadline);
        b.identity.handle_second();
        std::thread::yield_now();
    }
}

#[test]
fn beyond_the_limit_a_source_is_looked_at_a_few_times_only() {
    let mut second = Second { admitted: HANDSHAKES_PER_SECOND, ..Second::default() };
    let mut taken = |from: &str| (0..100).filter(|_| second.admits(from.parse().unwrap())).count();
    assert_eq!(taken("192.0.2.1"), HANDSHAKES_PER_SOURCE as usize);
    assert_eq!(taken("192.0.2.2"), HANDSHAKES_PER_SOURCE as usize);
    // One network of IPv6 is one source.
    assert_eq!(taken("2001:db8:1:1::1"), HANDSHAKES_PER_SOURCE as usize);
    assert_eq!(taken("2001:db8:1:1:ffff::2"), 0);
    assert_eq!(taken("2001:db8:1:2::1"), HANDSHAKES_PER_SOURCE as usize);
    // So many are known, and nobody else; those that are known still have what is theirs.
    let mut second = Second { admitted: HANDSHAKES_PER_SECOND, ..Second::default() };
    let source = |number: usize| IpAddr::V4(Ipv4Addr::from_bits(number as u32));
    assert!((0..MAX_SOURCES).all(|number| second.admits(source(number))));
    assert!(!second.admits(source(MAX_SOURCES)));
    assert!(second.admits(source(0)));
    assert_eq!(second.by_source.len(), MAX_SOURCES);
}

#[test]
fn a_session_is_renewed_in_time_and_by_the_other_side_if_need_be() {
    let due = |secs, initiated| is_due(Some(Duration::from_secs(secs)), initiated);
    // Whitepaper section 6.1: Rekey-After-Time is 120 s; Reject-After-Time, when it is too late, 180 s.
    assert_eq!([0, 119, 120, 179].map(|secs| due(secs, true)), [false, false, true, true]);
    assert_eq!([0, 120, 149, 150, 179].map(|secs| due(secs, false)), [false, false, false, true, true]);
    assert!(is_due(None, true) && is_due(None, false));
}

#[test]
fn what_is_sent_ends_at_the_limits_of_the_protocol_too() {
    // Whitepaper section 6.1: Rekey-After-Messages is 2^60, Reject-After-Messages 2^64 - 2^13 - 1.
    let (rekey, reject) = (1 << 60, u64::MAX - 8192);
    let wanted = [(0, (false, true)), (rekey - 1, (false, true)), (rekey, (true, true))];
    for (counter, limits) in wanted.into_iter().chain([
        (reject - 1, (true, true)),
        (reject, (true, false)),
        (u64::MAX, (true, false)),
    ]) {
        assert_eq!(of_counter(counter), limits, "{counter:x}");
    }
}

#[test]
fn a_tunnel_that_is_to_have_a_session_asks_for_it_as_long_as_it_is_reachable() {
    let identities = Identities::new(0);
    let wanted = WireGuard { initiate: true, ..settings(1, 2, None) };
    let a = identities.make(&wanted, [0; 16], [1; 16], |_| false).unwrap();
    let mut out = [0; MAX_HANDSHAKE];
    assert_eq!(a.handle_timeout(false, &mut out), 0);
    assert_eq!(a.handle_timeout(true, &mut out), MAX_HANDSHAKE);
    // Once at a time; boringtun sends it again after five seconds.
    assert_eq!(a.handle_timeout(true, &mut out), 0);
    let b = peer(2, 1, None);
    assert_eq!(b.handle_timeout(true, &mut out), 0);
}

#[test]
fn a_tunnel_that_is_to_begin_does_so_once() {
    let settings = WireGuard { begin: true, ..settings(1, 2, None) };
    let a = Identities::new(0).make(&settings, [0; 16], [1; 16], |_| false).unwrap();
    let mut out = [0; MAX_HANDSHAKE];
    assert_eq!(a.handle_timeout(true, &mut out), MAX_HANDSHAKE);
    assert_eq!(a.handle_timeout(true, &mut out), 0);
}

#[test]
fn indexes_are_unique_and_identities_shared() {
    let identities = Identities::new(0x00FF_FFFF);
    let make = |ours: u8, theirs| {
        identities.make(&settings(ours, theirs, None), [0; 16], [ours; 16], |index| index == 0).unwrap()
    };
    let peers = [make(1, 2), make(1, 3), make(2, 1)];
    assert_eq!(peers.each_ref().map(|peer| peer.index), [0x00FF_FFFF, 1, 2]);
    assert!(Arc::ptr_eq(&peers[0].identity, &peers[1].identity));
    assert!(!Arc::ptr_eq(&peers[0].identity, &peers[2].identity));
    let refused = |settings| identities.make(&settings, [0; 16], [0; 16], |_| false).map(|_| ());
    let short = WireGuard { private_key: SecretKey::new(vec![1; 31]), ..settings(1, 2, None) };
    assert_eq!(refused(short), Err(RejectReason::BadKey));
    let nobody = WireGuard { peer_public_key: [0; 32], ..settings(1, 2, None) };
    assert_eq!(refused(nobody), Err(RejectReason::BadKey));
}

#[test]
fn padding_ends_at_the_mtu() {
    for (len, padded) in [(0, 0), (1, 16), (16, 16), (17, 32), (1408, 1408), (1409, 1420), (1420, 1420)] {
        assert_eq!(padded_len(len, 1420), padded, "{len}");
    }
}

proptest::proptest! {
    #[test]
    fn any_datagram_is_refused_or_understood(mut bytes: Vec<u8>, kind in 0_u8..6, len in 0_usize..200) {
        bytes.resize(len, 0);
        if let Some(head) = bytes.first_chunk_mut::<4>() {
            *head = [kind, 0, 0, 0];
        }
        let (a, b) = pair();
        shake(&a, &b);
        match message(&bytes) {
            Ok(Message::Data { .. }) => assert!(open(&b, &bytes).is_err()),
            Ok(Message::Handshake) => {
                let mut reply = [0; MAX_HANDSHAKE];
                let _ = b.identity.admit(US, &bytes, &mut reply);
                assert!(answer(&b, &bytes).is_err());
            }
            Err(_) => {}
        }
    }
}

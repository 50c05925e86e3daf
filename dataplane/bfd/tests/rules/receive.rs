//! Reception (RFC 5880 section 6.8.6) and demultiplexing (section 6.3).

use std::time::Duration;

use braid_bfd::{
    Config, Diagnostic, Discard, DownCause, Event, Hops, InsertError, Packet, Sessions, State, Watch,
};
use proptest::prelude::*;

use crate::{MS, SECOND, config, ms, packet, sent, session, up};

/// A table with one session on path 1, whose discriminator is 1.
fn table() -> Sessions<u8> {
    let mut sessions = Sessions::new(4);
    sessions.insert(1, config(), &mut || 1).unwrap();
    sessions
}

fn refused(reason: Discard, payload: &[u8]) {
    let mut sessions = table();
    assert_eq!(sessions.handle_payload(0, &1, 255, payload), Err(reason));
    for other in Discard::ALL {
        assert_eq!(sessions.discarded().get(other), u64::from(other == reason), "{other}");
    }
    assert_eq!(sessions.get(&1).unwrap().state(), State::Down);
}

fn altered(at: usize, value: u8) -> Vec<u8> {
    let mut octets = packet(State::Down).encode().to_vec();
    octets[at] = value;
    octets
}

#[test]
fn a_correct_packet_is_accepted() {
    let mut sessions = table();
    assert_eq!(sessions.handle_payload(0, &1, 255, &packet(State::Down).encode()), Ok(()));
    assert_eq!(sessions.get(&1).unwrap().state(), State::Init);
}

#[test]
fn octets_after_the_packet_do_not_matter() {
    let mut octets = packet(State::Down).encode().to_vec();
    octets.extend([1, 2, 3]);
    assert_eq!(table().handle_payload(0, &1, 255, &octets), Ok(()));
}

#[test]
fn less_than_four_octets_are_no_packet() {
    for length in 0..4 {
        refused(Discard::Truncated, &packet(State::Down).encode()[..length]);
    }
}

#[test]
fn another_version_is_discarded() {
    for version in [0, 2, 7] {
        refused(Discard::Version, &altered(0, version << 5));
    }
}

#[test]
fn a_length_below_the_minimum_is_discarded() {
    refused(Discard::LengthTooSmall, &altered(3, 23));
    // With an authentication section the minimum is 26.
    let mut authenticated = altered(1, 0x44);
    authenticated[3] = 25;
    authenticated.push(0);
    refused(Discard::LengthTooSmall, &authenticated);
}

#[test]
fn a_length_beyond_the_payload_is_discarded() {
    refused(Discard::LengthBeyondPayload, &altered(3, 25));
    refused(Discard::LengthBeyondPayload, &packet(State::Down).encode()[..23]);
}

#[test]
fn a_multiplier_of_zero_is_discarded() {
    refused(Discard::ZeroMultiplier, &altered(2, 0));
}

#[test]
fn a_multipoint_packet_is_discarded() {
    refused(Discard::Multipoint, &altered(1, 0x41));
}

#[test]
fn a_sender_without_discriminator_is_discarded() {
    refused(Discard::ZeroMyDiscriminator, &altered(7, 0));
}

#[test]
fn a_discriminator_selects_the_session_or_none() {
    let unknown = Packet { your_discriminator: 9, ..packet(State::Down) };
    refused(Discard::UnknownDiscriminator, &unknown.encode());
}

#[test]
fn without_discriminator_only_down_and_admin_down_are_accepted() {
    for state in [State::Init, State::Up] {
        let unnamed = Packet { your_discriminator: 0, ..packet(state) };
        refused(Discard::ZeroYourDiscriminator, &unnamed.encode());
    }
    for (state, becomes) in [(State::Down, State::Init), (State::AdminDown, State::Down)] {
        let unnamed = Packet { your_discriminator: 0, ..packet(state) };
        let mut sessions = table();
        sessions.handle_payload(0, &1, 255, &unnamed.encode()).unwrap();
        assert_eq!(sessions.get(&1).unwrap().state(), becomes);
    }
}

#[test]
fn without_discriminator_the_path_selects_the_session() {
    let unnamed = Packet { your_discriminator: 0, ..packet(State::Down) };
    let mut sessions = table();
    sessions.insert(2, config(), &mut || 2).unwrap();
    assert_eq!(sessions.handle_payload(0, &3, 255, &unnamed.encode()), Err(Discard::UnknownPeer));
    assert_eq!(sessions.handle_payload(0, &2, 255, &unnamed.encode()), Ok(()));
    assert_eq!(sessions.get(&1).unwrap().state(), State::Down);
    assert_eq!(sessions.get(&2).unwrap().state(), State::Init);
}

#[test]
fn a_discriminator_does_not_carry_a_packet_to_another_path() {
    let mut sessions = table();
    sessions.insert(2, config(), &mut || 2).unwrap();
    let result = sessions.handle_payload(0, &2, 255, &packet(State::Down).encode());
    assert_eq!(result, Err(Discard::WrongPath));
}

#[test]
fn over_one_hop_the_ttl_is_255() {
    for ttl in [0, 1, 254] {
        let mut session = session(config());
        assert_eq!(session.handle_packet(0, ttl, &packet(State::Down)), Err(Discard::Ttl));
    }
}

#[test]
fn over_several_hops_the_ttl_has_the_configured_minimum() {
    let mut session = session(config().with_hops(Hops::Multi { min_ttl: 250 }));
    assert_eq!(session.handle_packet(0, 249, &packet(State::Down)), Err(Discard::Ttl));
    assert_eq!(session.handle_packet(0, 250, &packet(State::Down)), Ok(()));
}

#[test]
fn an_authenticated_packet_is_discarded() {
    let mut authenticated = altered(1, 0x44);
    authenticated[3] = 26;
    authenticated.extend([1, 2]);
    refused(Discard::Authenticated, &authenticated);
}

#[test]
fn the_earlier_rule_speaks_first() {
    // Every field is wrong; each repair brings out the next reason.
    let mut octets = [0; 26];
    octets[1] = 0xc5;
    let repairs: [(usize, u8, Discard); 9] = [
        (0, 1 << 5, Discard::Version),
        (3, 200, Discard::LengthTooSmall),
        (3, 26, Discard::LengthBeyondPayload),
        (2, 3, Discard::ZeroMultiplier),
        (1, 0xc4, Discard::Multipoint),
        (7, 77, Discard::ZeroMyDiscriminator),
        (11, 9, Discard::ZeroYourDiscriminator),
        (11, 1, Discard::UnknownDiscriminator),
        (1, 0xc0, Discard::Authenticated),
    ];
    for (at, value, reason) in repairs {
        refused(reason, &octets);
        octets[at] = value;
    }
    // Up in state Down changes nothing (RFC 5880 section 6.2).
    let mut sessions = table();
    assert_eq!(sessions.handle_payload(0, &1, 255, &octets), Ok(()));
    assert_eq!(sessions.get(&1).unwrap().state(), State::Down);
}

#[test]
fn what_the_peer_says_is_kept() {
    let mut session = session(config());
    let said =
        Packet { diagnostic: Diagnostic::PATH_DOWN, required_min_rx: 2_000_000, ..packet(State::Down) };
    session.handle_packet(0, 255, &said).unwrap();
    let status = session.status();
    assert_eq!(status.remote_state, State::Down);
    assert_eq!(status.remote_diagnostic, Diagnostic::PATH_DOWN);
    assert_eq!(status.remote_discriminator, 77);
    assert_eq!(status.remote_multiplier, 3);
    assert_eq!(status.tx_interval, Duration::from_secs(2));
    assert!(status.remote_control_plane_independent);
}

#[test]
fn a_session_comes_up_by_the_three_way_handshake() {
    let mut session = session(config());
    session.handle_packet(0, 255, &packet(State::Down)).unwrap();
    assert_eq!((session.state(), session.poll_event()), (State::Init, None));
    session.handle_packet(0, 255, &packet(State::Init)).unwrap();
    assert_eq!((session.state(), session.poll_event()), (State::Up, Some(Event::Up)));
    assert_eq!(session.status().diagnostic, Diagnostic::NONE);
}

#[test]
fn the_peers_down_is_down_at_once() {
    let mut session = up(config(), 0);
    let down = Packet { diagnostic: Diagnostic::DETECTION_TIME_EXPIRED, ..packet(State::Down) };
    session.handle_packet(MS, 255, &down).unwrap();
    let cause = DownCause::Signaled { diagnostic: Diagnostic::DETECTION_TIME_EXPIRED };
    assert_eq!(session.poll_event(), Some(Event::Down(cause)));
    let told = sent(&mut session, MS);
    assert_eq!((told[0].state, told[0].diagnostic), (State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN));
}

#[test]
fn the_peers_admin_down_is_told_apart_from_a_failure() {
    let mut session = up(config(), 0);
    session.handle_packet(MS, 255, &packet(State::AdminDown)).unwrap();
    assert_eq!(session.poll_event(), Some(Event::Down(DownCause::RemoteAdminDown)));
    assert_eq!(session.state(), State::Down);
}

#[test]
fn a_disabled_session_says_so_and_listens_to_nobody() {
    let mut session = up(config(), 0);
    session.disable();
    assert_eq!(session.poll_event(), Some(Event::Down(DownCause::AdminDown)));
    let told = sent(&mut session, 0);
    assert_eq!((told[0].state, told[0].diagnostic), (State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN));
    for state in [State::Down, State::Init, State::Up] {
        assert_eq!(session.handle_packet(MS, 255, &packet(state)), Err(Discard::AdminDown));
    }
    assert_eq!(session.state(), State::AdminDown);
    // RFC 5880 section 6.8.16: packets go on, at least for a detection time.
    let mut times = 0;
    while let Some(at) = session.poll_timeout().filter(|at| *at < 5 * SECOND) {
        session.handle_timeout(at, None, None);
        times += sent(&mut session, at).iter().filter(|packet| packet.state == State::AdminDown).count();
    }
    assert!(times >= 4, "{times}");
    session.enable();
    assert_eq!((session.state(), session.poll_event()), (State::Down, None));
    assert_eq!(sent(&mut session, 5 * SECOND)[0].state, State::Down);
}

#[test]
fn the_table_is_bounded_and_discriminators_are_unique_and_not_zero() {
    let mut sessions = Sessions::new(3);
    let mut draws = [0, 0, 5, u32::MAX, u32::MAX].into_iter();
    let mut random = || draws.next().unwrap_or(u32::MAX);
    for path in 0..3u8 {
        sessions.insert(path, config(), &mut random).unwrap();
        assert_eq!(sessions.insert(path, config(), &mut random), Err(InsertError::Exists));
    }
    assert_eq!(sessions.insert(3, config(), &mut random), Err(InsertError::Full));
    let mut taken: Vec<_> = sessions.iter().map(|(_, session)| session.discriminator().get()).collect();
    taken.sort();
    taken.dedup();
    assert_eq!(taken.len(), 3);
    assert!(sessions.remove(&0) && !sessions.remove(&0));
    sessions.insert(3, config(), &mut random).unwrap();
}

#[test]
fn a_removed_session_is_due_no_more() {
    let mut sessions = table();
    sessions.handle_timeout(0, |_| Watch::default());
    while sessions.poll_transmit(0, &mut || 0).is_some() {}
    assert!(sessions.poll_timeout().is_some());
    sessions.remove(&1);
    assert_eq!(sessions.poll_timeout(), None);
    assert_eq!(
        sessions.handle_payload(0, &1, 255, &packet(State::Down).encode()),
        Err(Discard::UnknownDiscriminator)
    );
}

#[test]
fn a_changed_configuration_reaches_the_session() {
    let mut sessions = table();
    let slower = Config::new(ms(3000), 5).unwrap();
    assert!(sessions.configure(&1, slower) && !sessions.configure(&2, slower));
    let (path, octets) = sessions.poll_transmit(0, &mut || 0).unwrap();
    let packet = Packet::decode(&octets).unwrap();
    assert_eq!((path, packet.desired_min_tx, packet.multiplier.get()), (1, 3_000_000, 5));
    assert!(sessions.disable(&1) && sessions.enable(&1) && !sessions.disable(&2) && !sessions.enable(&2));
}

proptest! {
    #[test]
    fn random_octets_never_panic(
        octets in proptest::collection::vec(any::<u8>(), 0..64),
        ttl in any::<u8>(),
        later in 0..10 * SECOND,
    ) {
        let mut sessions = table();
        let _ = sessions.handle_payload(0, &1, ttl, &octets);
        sessions.handle_timeout(later, |_| Watch::default());
        while sessions.poll_transmit(later, &mut || 0).is_some() {}
        prop_assert!(sessions.poll_timeout().is_none_or(|at| at > later));
    }

    #[test]
    fn what_is_encoded_is_decoded(
        state in prop_oneof![
            Just(State::AdminDown), Just(State::Down), Just(State::Init), Just(State::Up)
        ],
        flags in any::<[bool; 4]>(),
        multiplier in 1..=u8::MAX,
        words in any::<[u32; 5]>(),
    ) {
        let [poll, r#final, control_plane_independent, demand] = flags;
        let packet = Packet {
            state,
            poll,
            r#final,
            control_plane_independent,
            demand,
            multiplier: multiplier.try_into().unwrap(),
            my_discriminator: (words[0] | 1).try_into().unwrap(),
            your_discriminator: words[1],
            desired_min_tx: words[2],
            required_min_rx: words[3],
            required_min_echo_rx: words[4],
            ..packet(State::Down)
        };
        prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
    }
}

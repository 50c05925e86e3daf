//! Intervals, poll sequences, jitter and detection (RFC 5880 sections 6.5, 6.8.2 to 6.8.7, 6.8.18).

use braid_bfd::{Config, Diagnostic, DownCause, Event, Nanos, Packet, Role, Session, State, Unread};

use crate::{MS, SECOND, config, ms, packet, sent, session, up};

/// What is sent until `until` while the peer sends `packet` every 20 ms, answering polls if it `answers`.
fn run(
    session: &mut Session,
    from: Nanos,
    until: Nanos,
    said: Packet,
    answers: bool,
) -> Vec<(Nanos, Packet)> {
    let mut out = Vec::new();
    let mut now = from;
    while now < until {
        session.handle_packet(now, 255, &said).unwrap();
        for packet in sent(session, now) {
            out.push((now, packet));
            if packet.poll && answers {
                session.handle_packet(now, 255, &Packet { r#final: true, ..said }).unwrap();
            }
        }
        now += 20 * MS;
        while let Some(at) = session.poll_timeout().filter(|at| *at < now) {
            let at = at.max(now - 20 * MS);
            session.handle_timeout(at, None, None);
            for packet in sent(session, at) {
                out.push((at, packet));
                if packet.poll && answers {
                    session.handle_packet(at, 255, &Packet { r#final: true, ..said }).unwrap();
                }
            }
        }
    }
    out
}

#[test]
fn until_up_packets_are_a_second_apart() {
    let mut session = session(config());
    let mut times = Vec::new();
    while let Some(at) = session.poll_timeout().filter(|at| *at <= 4 * SECOND) {
        session.handle_timeout(at, None, None);
        for packet in sent(&mut session, at) {
            assert_eq!(packet.desired_min_tx, 1_000_000);
            assert_eq!(packet.required_min_rx, 50_000);
            times.push(at / MS);
        }
    }
    // The longest that jitter leaves.
    assert_eq!(times, [0, 900, 1800, 2700, 3600]);
}

#[test]
fn a_slower_session_is_not_hurried_by_slow_start() {
    let slow = Config::new(ms(3000), 3).unwrap();
    assert_eq!(sent(&mut session(slow), 0)[0].desired_min_tx, 3_000_000);
}

#[test]
fn once_up_the_configured_interval_is_announced_by_a_poll_sequence() {
    let mut session = session(config());
    session.handle_packet(0, 255, &packet(State::Init)).unwrap();
    let first = sent(&mut session, 0);
    assert_eq!((first[0].state, first[0].poll, first[0].desired_min_tx), (State::Up, true, 50_000));
    // "The Poll Sequence MUST be performed by setting the Poll bit on those scheduled periodic transmissions".
    let out = run(&mut session, 0, 200 * MS, packet(State::Up), false);
    assert!(out.len() >= 3 && out.iter().all(|(_, packet)| packet.poll), "{out:?}");
    session.handle_packet(200 * MS, 255, &Packet { r#final: true, ..packet(State::Up) }).unwrap();
    let out = run(&mut session, 200 * MS, 400 * MS, packet(State::Up), false);
    assert!(out.len() >= 3 && out.iter().all(|(_, packet)| !packet.poll), "{out:?}");
}

#[test]
fn a_poll_is_answered_at_once_without_poll_bit() {
    let mut session = up(config(), 0);
    sent(&mut session, 0);
    session.handle_packet(MS, 255, &Packet { poll: true, ..packet(State::Up) }).unwrap();
    let answers = sent(&mut session, MS);
    assert_eq!(answers.len(), 1);
    assert!(answers[0].r#final && !answers[0].poll);
}

#[test]
fn a_poll_is_answered_in_any_state_and_also_where_the_peer_wants_no_packets() {
    let mut session = session(config());
    sent(&mut session, 0);
    let poll = Packet { poll: true, required_min_rx: 0, ..packet(State::Up) };
    session.handle_packet(MS, 255, &poll).unwrap();
    assert_eq!(session.state(), State::Down);
    assert!(sent(&mut session, MS)[0].r#final);
}

#[test]
fn during_a_poll_of_ours_the_answer_to_theirs_has_no_poll_bit() {
    let mut session = session(config());
    session.handle_packet(0, 255, &Packet { poll: true, ..packet(State::Init) }).unwrap();
    let out = sent(&mut session, 0);
    assert!(out.iter().all(|packet| !(packet.poll && packet.r#final)), "{out:?}");
    assert!(out[0].r#final);
    let out = run(&mut session, MS, 100 * MS, packet(State::Up), false);
    assert!(out[0].1.poll);
}

#[test]
fn an_answered_poll_does_not_delay_the_periodic_packet() {
    let mut session = up(config(), 0);
    sent(&mut session, 0);
    let due = session.poll_timeout();
    session.handle_packet(MS, 255, &Packet { poll: true, ..packet(State::Up) }).unwrap();
    sent(&mut session, MS);
    assert_eq!(session.poll_timeout(), due);
}

#[test]
fn a_change_of_state_is_told_at_once() {
    let mut session = session(config());
    assert_eq!(sent(&mut session, 0).len(), 1);
    session.handle_packet(MS, 255, &packet(State::Down)).unwrap();
    assert_eq!(session.poll_timeout(), Some(0));
    let told = sent(&mut session, MS);
    assert_eq!((told.len(), told[0].state, told[0].your_discriminator), (1, State::Init, 77));
}

#[test]
fn the_interval_is_the_larger_of_ours_and_what_the_peer_can_take() {
    for (theirs, interval) in [(10_000, ms(50)), (50_000, ms(50)), (400_000, ms(400))] {
        let mut session = up(config(), 0);
        session.handle_packet(0, 255, &Packet { required_min_rx: theirs, ..packet(State::Up) }).unwrap();
        assert_eq!(session.status().tx_interval, interval);
    }
}

#[test]
fn an_interval_that_the_peer_reduces_is_honored_at_once() {
    let mut session = up(config(), 0);
    session.handle_packet(0, 255, &Packet { required_min_rx: 5_000_000, ..packet(State::Up) }).unwrap();
    session.handle_packet(10 * MS, 255, &packet(State::Up)).unwrap();
    let mut at = session.poll_timeout().unwrap();
    while sent(&mut session, at).is_empty() {
        at = session.poll_timeout().unwrap();
    }
    assert!(at <= 50 * MS, "{at}");
}

#[test]
fn a_peer_that_can_take_no_packets_gets_none() {
    let mut session = up(config(), 0);
    sent(&mut session, 0);
    let out = run(&mut session, 0, SECOND, Packet { required_min_rx: 0, ..packet(State::Up) }, true);
    assert_eq!(out, []);
}

#[test]
fn a_passive_session_is_silent_until_the_peer_is_heard_and_again_once_it_is_forgotten() {
    let mut session = session(config().with_role(Role::Passive));
    assert_eq!((sent(&mut session, 0), session.poll_timeout()), (vec![], None));
    session.handle_packet(SECOND, 255, &packet(State::Down)).unwrap();
    assert_eq!(sent(&mut session, SECOND)[0].state, State::Init);
    session.handle_timeout(SECOND + 150 * MS, None, None);
    assert_eq!(session.state(), State::Down);
    assert_eq!((sent(&mut session, 2 * SECOND), session.poll_timeout()), (vec![], None));
}

#[test]
fn the_detection_time_is_the_peers_multiplier_times_the_slower_interval() {
    for (multiplier, desired_min_tx, time) in [(3, 10_000, 150), (3, 70_000, 210), (5, 50_000, 250)] {
        let mut session = up(config(), 0);
        let multiplier = u8::try_into(multiplier).unwrap();
        let said = Packet { multiplier, desired_min_tx, ..packet(State::Up) };
        session.handle_packet(MS, 255, &said).unwrap();
        assert_eq!(session.status().detection_time, ms(time));
        session.handle_timeout((1 + time) * MS - 1, None, None);
        assert_eq!(session.state(), State::Up);
        session.handle_timeout((1 + time) * MS, None, None);
        assert_eq!(session.state(), State::Down);
        let cause = DownCause::Expired { silent: ms(time) };
        assert_eq!(session.poll_event(), Some(Event::Down(cause)));
        let told = sent(&mut session, (1 + time) * MS);
        assert_eq!(told[0].diagnostic, Diagnostic::DETECTION_TIME_EXPIRED);
        // RFC 5880 section 6.8.1: the peer's discriminator is forgotten with it.
        assert_eq!(told[0].your_discriminator, 0);
        assert_eq!(told[0].desired_min_tx, 1_000_000);
    }
}

#[test]
fn detection_ends_init_too_but_not_down() {
    let mut session = session(config());
    session.handle_packet(0, 255, &packet(State::Down)).unwrap();
    assert_eq!(session.state(), State::Init);
    session.handle_timeout(150 * MS, Some(150 * MS), None);
    assert_eq!((session.state(), session.poll_event()), (State::Down, None));
    session.handle_timeout(10 * SECOND, None, None);
    assert_eq!(session.state(), State::Down);
}

#[test]
fn a_peer_that_falls_silent_while_down_is_forgotten() {
    let mut session = session(config());
    session.handle_packet(0, 255, &packet(State::Up)).unwrap();
    assert_eq!(sent(&mut session, 0)[0].your_discriminator, 77);
    assert_eq!(session.poll_timeout(), Some(150 * MS));
    session.handle_timeout(150 * MS, None, None);
    assert_eq!(sent(&mut session, 150 * MS)[0].your_discriminator, 0);
}

#[test]
fn a_peer_held_down_by_a_zero_interval_is_free_again_after_a_detection_time() {
    // RFC 5880 section 6.8.18.
    let mut session = session(config());
    sent(&mut session, 0);
    session.handle_packet(0, 255, &Packet { required_min_rx: 0, ..packet(State::Up) }).unwrap();
    sent(&mut session, 0);
    assert_eq!(session.poll_timeout(), Some(150 * MS));
    session.handle_timeout(150 * MS, None, None);
    assert_eq!(sent(&mut session, 150 * MS).len(), 1);
}

#[test]
fn a_packet_that_the_path_authenticated_is_a_sign_of_life_for_a_session_that_is_up() {
    let mut session = up(config(), 0);
    for step in 1..100 {
        session.handle_timeout(step * 100 * MS, Some((step * 100 - 10) * MS), None);
        assert_eq!(session.state(), State::Up);
        assert!(session.poll_timeout().is_some());
    }
    session.handle_timeout(9_890 * MS + 150 * MS, Some(9_890 * MS), None);
    assert_eq!(session.poll_event(), Some(Event::Down(DownCause::Expired { silent: ms(150) })));
}

#[test]
fn no_sign_of_life_outweighs_what_the_peer_signals() {
    let mut session = up(config(), 0);
    session.handle_timeout(100 * MS, Some(100 * MS), None);
    session.handle_packet(100 * MS, 255, &packet(State::Down)).unwrap();
    assert_eq!(session.state(), State::Down);
}

#[test]
fn a_machine_that_stood_still_waits_one_interval_more_and_only_once() {
    let mut session = up(config(), 0);
    session.handle_timeout(SECOND, None, None);
    assert_eq!(session.state(), State::Up);
    session.handle_packet(SECOND + 40 * MS, 255, &packet(State::Up)).unwrap();
    session.handle_timeout(SECOND + 189 * MS, None, None);
    assert_eq!(session.state(), State::Up);
    session.handle_timeout(3 * SECOND, None, None);
    assert_eq!(session.state(), State::Up);
    session.handle_timeout(3 * SECOND + 50 * MS, None, None);
    assert_eq!(session.state(), State::Down);
}

/// All has been read that came before `since`, and a reader was last at work at `read_at`, in milliseconds.
fn unread(since: Nanos, read_at: Nanos) -> Option<Unread> {
    Some(Unread { since: since * MS, read_at: read_at * MS })
}

#[test]
fn a_peer_is_silent_only_as_far_as_it_was_listened_to() {
    let mut session = up(config(), 0);
    // Nothing was read since 100 ms, and something waits.
    for at in 150..250 {
        session.handle_timeout(at * MS, None, unread(100, 100));
        assert_eq!((session.state(), session.poll_event()), (State::Up, None), "{at}");
    }
    // It was the peer's.
    session.handle_timeout(250 * MS, Some(200 * MS), unread(249, 249));
    assert_eq!(session.state(), State::Up);
    // What had come when the detection time was over has been read, and nothing of it was the peer's.
    session.handle_timeout(350 * MS, Some(200 * MS), unread(349, 349));
    assert_eq!(session.state(), State::Up);
    session.handle_timeout(351 * MS, Some(200 * MS), unread(350, 350));
    assert_eq!(session.poll_event(), Some(Event::Down(DownCause::Expired { silent: ms(151) })));
}

#[test]
fn what_waits_is_waited_for_a_short_time_and_shorter_where_somebody_reads() {
    for (is_read, wanted) in [(false, 250), (true, 160)] {
        let mut session = up(config(), 0);
        let mut down = None;
        for at in 0..1000 {
            session.handle_timeout(at * MS, None, unread(0, if is_read { at } else { 0 }));
            if down.is_none() && session.state() != State::Up {
                down = Some(at);
            }
        }
        assert_eq!(down, Some(wanted));
    }
}

#[test]
fn a_machine_that_stood_still_has_its_interval_where_something_is_unread_too() {
    let mut session = up(config(), 0);
    session.handle_timeout(SECOND, None, unread(100, 100));
    session.handle_timeout(SECOND + 49 * MS, None, unread(100, 1001));
    assert_eq!(session.state(), State::Up);
    session.handle_timeout(SECOND + 50 * MS, None, None);
    assert_eq!(session.state(), State::Down);
}

#[test]
fn a_longer_transmit_interval_waits_for_the_end_of_the_poll_sequence() {
    let mut session = up(config(), 0);
    session.configure(config().with_min_tx(ms(200)).unwrap());
    let told = sent(&mut session, MS);
    assert_eq!((told[0].poll, told[0].desired_min_tx), (true, 200_000));
    assert_eq!(session.status().tx_interval, ms(50));
    session.handle_packet(2 * MS, 255, &Packet { r#final: true, ..packet(State::Up) }).unwrap();
    assert_eq!(session.status().tx_interval, ms(200));
}

#[test]
fn a_shorter_transmit_interval_is_used_at_once() {
    let mut session = up(config(), 0);
    session.configure(config().with_min_tx(ms(20)).unwrap());
    assert!(sent(&mut session, MS)[0].poll);
    session.handle_packet(MS, 255, &Packet { required_min_rx: 1, ..packet(State::Up) }).unwrap();
    assert_eq!(session.status().tx_interval, ms(20));
}

#[test]
fn a_shorter_receive_interval_counts_for_detection_after_the_poll_sequence() {
    let mut session = up(config(), 0);
    let quick = Packet { desired_min_tx: 10_000, ..packet(State::Up) };
    session.handle_packet(0, 255, &quick).unwrap();
    session.configure(config().with_min_rx(ms(20)).unwrap());
    assert_eq!(sent(&mut session, MS)[0].required_min_rx, 20_000);
    assert_eq!(session.status().detection_time, ms(150));
    session.handle_packet(2 * MS, 255, &Packet { r#final: true, ..quick }).unwrap();
    assert_eq!(session.status().detection_time, ms(60));
}

#[test]
fn a_longer_receive_interval_counts_for_detection_at_once() {
    let mut session = up(config(), 0);
    session.configure(config().with_min_rx(ms(100)).unwrap());
    sent(&mut session, MS);
    assert_eq!(session.status().detection_time, ms(300));
}

#[test]
fn a_change_within_a_poll_sequence_waits_for_a_packet_without_final_bit() {
    let mut session = up(config(), 0);
    session.configure(config().with_min_tx(ms(200)).unwrap());
    assert_eq!(sent(&mut session, 0)[0].desired_min_tx, 200_000);
    session.configure(config().with_min_tx(ms(300)).unwrap());
    let out = run(&mut session, MS, 200 * MS, packet(State::Up), false);
    assert!(out.iter().all(|(_, packet)| packet.desired_min_tx == 200_000 && packet.poll), "{out:?}");
    let last = Packet { r#final: true, ..packet(State::Up) };
    session.handle_packet(200 * MS, 255, &last).unwrap();
    assert_eq!(sent(&mut session, 200 * MS), []);
    // The final bit of a packet that was on its way twice ends nothing more.
    session.handle_packet(201 * MS, 255, &last).unwrap();
    assert_eq!(session.status().tx_interval, ms(200));
    session.handle_packet(202 * MS, 255, &packet(State::Up)).unwrap();
    let told = sent(&mut session, 202 * MS);
    assert_eq!((told[0].poll, told[0].desired_min_tx), (true, 300_000));
    assert_eq!(session.status().tx_interval, ms(200));
    session.handle_packet(203 * MS, 255, &last).unwrap();
    assert_eq!(session.status().tx_interval, ms(300));
}

#[test]
fn a_session_that_goes_down_within_a_poll_sequence_is_slow_at_once() {
    let mut session = up(config(), 0);
    session.configure(config().with_min_tx(ms(200)).unwrap());
    sent(&mut session, 0);
    session.handle_packet(MS, 255, &packet(State::Down)).unwrap();
    let told = sent(&mut session, MS);
    assert_eq!((told[0].desired_min_tx, told[0].state), (1_000_000, State::Down));
    assert_eq!(session.status().tx_interval, ms(1000));
}

#[test]
fn the_multiplier_changes_without_poll_sequence() {
    let mut session = up(config(), 0);
    sent(&mut session, 0);
    session.configure(Config::new(ms(50), 7).unwrap());
    let told = sent(&mut session, MS);
    assert_eq!((told[0].multiplier.get(), told[0].poll), (7, false));
}

#[test]
fn a_peer_in_demand_mode_gets_news_by_poll_sequence_and_nothing_else() {
    let mut session = up(config(), 0);
    sent(&mut session, 0);
    let demand = Packet { demand: true, ..packet(State::Up) };
    assert_eq!(run(&mut session, 0, SECOND, demand, true), []);
    session.configure(Config::new(ms(50), 7).unwrap());
    let out = run(&mut session, SECOND, SECOND + 19 * MS, demand, false);
    assert!(out.len() == 1 && out[0].1.poll, "{out:?}");
    let out = run(&mut session, SECOND + 100 * MS, 2 * SECOND, demand, true);
    assert!(out.len() == 1 && out[0].1.poll, "{out:?}");
    // It leaves demand mode: packets flow again.
    assert!(run(&mut session, 2 * SECOND, 3 * SECOND, packet(State::Up), true).len() >= 19);
}

#[test]
fn every_interval_is_jittered() {
    for multiplier in [1, 3] {
        let mut session = up(Config::new(ms(100), multiplier).unwrap(), 0);
        let mut seed = 1u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed
        };
        session.poll_transmit(0, &mut random);
        let mut last: Option<Nanos> = None;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let at = session.poll_timeout().unwrap();
            session.handle_packet(at, 255, &packet(State::Up)).unwrap();
            if session.poll_transmit(at, &mut random).is_some() {
                if let Some(last) = last {
                    let percent = (at - last) / MS;
                    assert!((75..=90).contains(&percent), "{multiplier}: {percent}");
                    seen.insert(percent);
                }
                last = Some(at);
            }
        }
        assert!(seen.len() >= 13, "{multiplier}: {seen:?}");
    }
}

#[test]
fn ten_milliseconds_times_three() {
    let mut session = up(Config::new(ms(10), 3).unwrap(), 0);
    session.handle_packet(0, 255, &Packet { desired_min_tx: 10_000, ..packet(State::Up) }).unwrap();
    session.handle_timeout(30 * MS - 1, None, None);
    assert_eq!(session.state(), State::Up);
    session.handle_timeout(30 * MS, None, None);
    assert_eq!(session.state(), State::Down);
}

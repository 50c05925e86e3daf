//! What signals do to tunnels, and who carries then.

use braid_api::{BfdState, BfdStats};
use braid_dataplane::tables::Ticks;

use super::*;

#[test]
fn a_verdict_of_the_core_masks_in_the_same_turn_and_names_its_cause() {
    let mut rig = Rig::settled();
    rig.liveness("b", true);
    rig.settle();
    rig.liveness("b", false);
    assert_eq!(rig.state("b"), Some(TunnelState::Masked), "by the core itself");
    rig.control_step();
    assert!(matches!(rig.to_core[0].ops[..], [Op::Mask(_)]));
    assert_eq!(rig.view("b"), (State::Down, "no answer to probes for 900 ms".to_owned()));
    rig.settle_for(5);
    assert_eq!(rig.state("b"), Some(TunnelState::Masked), "only control unmasks");
    rig.liveness("b", true);
    while rig.control_step() {}
    assert_eq!(rig.view("b").0, State::Down, "watched for a moment");
    rig.settle();
    assert_eq!(rig.view("b").0, State::Up);
    let views = rig.turn.tunnels(rig.now);
    assert_eq!(views[1].failovers, 1);
    let failure = views[1].last_failure.as_ref().unwrap();
    assert_eq!(failure.why.cause(), "probe");
    assert_eq!(failure.stages, Some(Stages { detected: 1_000_000, masked: 1_012_000 }));
}

/// Where the core sends a packet by the first route, as it stands.
fn carried_by(rig: &Rig) -> String {
    let core = rig.core.as_ref().unwrap();
    let mut reader = core.reader();
    let address = |text: &str| text.parse().unwrap();
    let (src, dst) = (address("10.1.0.1"), address("10.2.0.1"));
    let flow = braid_api::Flow { src, dst, protocol: 17, src_port: 1, dst_port: 2 };
    let path = reader.enter().path(&flow, 0, None, Ticks::from_nanos(rig.now.as_nanos() as u64));
    let tunnels = core.summary().0;
    tunnels.iter().find(|tunnel| Some(tunnel.id) == path.tunnel).unwrap().name.clone()
}

#[test]
fn a_tunnel_that_does_not_preempt_stands_by_until_nobody_else_carries() {
    let mut rig = Rig::with(7);
    rig.settle();
    for name in ["a", "b", "c"] {
        rig.liveness(name, true);
    }
    rig.settle();
    assert_eq!((rig.view("c").0, carried_by(&rig)), (State::Up, "c".to_owned()));
    rig.liveness("c", false);
    rig.settle();
    assert_eq!((rig.view("c").0, carried_by(&rig)), (State::Down, "b".to_owned()));
    rig.liveness("c", true);
    rig.settle();
    let stands_by = |rig: &Rig| {
        let (state, reason) = rig.view("c");
        (state, reason.contains("preempt = false"), rig.turn.is_yielding("c"), carried_by(rig))
    };
    assert_eq!(stands_by(&rig), (State::Standby, true, true, "b".to_owned()));
    rig.kill_control(true);
    rig.settle();
    assert_eq!(stands_by(&rig), (State::Standby, true, true, "b".to_owned()));
    // Before control has heard of it.
    rig.liveness("b", false);
    assert_eq!(carried_by(&rig), "a");
    rig.settle();
    // Those that it has yielded to are gone, whoever is behind them.
    assert_eq!((rig.view("c").0, carried_by(&rig)), (State::Up, "c".to_owned()));
    assert_eq!((rig.view("a").0, rig.turn.is_yielding("c")), (State::Standby, false));
    rig.liveness("b", true);
    rig.settle();
    assert_eq!(
        (rig.view("c").0, rig.view("b").0, carried_by(&rig)),
        (State::Up, State::Standby, "c".to_owned())
    );
    // With a reload it takes back what it has lost.
    rig.liveness("c", false);
    rig.settle();
    rig.liveness("c", true);
    rig.settle();
    assert_eq!(carried_by(&rig), "b");
    rig.reload(4);
    rig.settle();
    assert_eq!((rig.view("c").0, rig.turn.is_yielding("c")), (State::Up, false));
}

#[test]
fn bfd_that_is_down_is_found_by_a_control_that_adopts_and_ends_with_its_session() {
    let session = |vote| BfdStats {
        local: "169.254.11.2".parse().unwrap(),
        remote: "169.254.11.1".parse().unwrap(),
        state: if vote == Verdict::Up { BfdState::Up } else { BfdState::Down },
        remote_state: BfdState::Up,
        diagnostic: 1,
        remote_diagnostic: 0,
        interval: Duration::from_millis(50),
        detection: Duration::from_millis(150),
        multiplier: 3,
        vote,
    };
    let mut rig = Rig::settled();
    let id = rig.id("b").unwrap();
    let set = |rig: &Rig, stats: Option<BfdStats>| {
        let mut reader = rig.core.as_ref().unwrap().reader();
        reader.enter().tunnel(id).unwrap().live.set_bfd(false, stats);
    };
    set(&rig, Some(session(Verdict::Down)));
    rig.core.as_ref().unwrap().states().mask_by_core(id);
    rig.kill_control(true);
    rig.settle();
    let (state, reason) = rig.view("b");
    assert_eq!(state, State::Down);
    assert!(reason.starts_with("BFD is down"), "{reason}");
    let stats = rig.core.as_ref().map(|core| core.stats(rig.now.as_nanos() as u64));
    let status = crate::status::status(
        &rig.turn,
        &crate::ike::Ike::new(),
        &crate::bgp::Bgp::new(0),
        stats.as_ref(),
        rig.now,
    );
    let shown = serde_json::to_value(status.tunnels[1].bfd.as_ref().unwrap()).unwrap();
    assert_eq!(
        (&shown["state"], &shown["interval_ms"], &shown["multiplier"]),
        (&"down".into(), &50.0.into(), &3.into())
    );
    assert_eq!(shown["diagnostic"], "control detection time expired");
    assert_eq!(status.tunnels[0].bfd, None);
    // A verdict that was lost shows in the counters; a session that is gone has no say.
    for after in [Some(session(Verdict::Up)), None] {
        set(&rig, Some(session(Verdict::Down)));
        rig.core.as_ref().unwrap().states().mask_by_core(id);
        rig.kill_control(true);
        rig.settle();
        assert_eq!(rig.view("b").0, State::Down);
        set(&rig, after);
        rig.settle();
        assert_eq!(rig.view("b").0, State::Up);
    }
}

#[test]
fn a_verdict_that_meets_an_unmask_on_its_way_wins() {
    let mut rig = Rig::settled();
    rig.liveness("b", false);
    rig.settle_for(5);
    rig.liveness("b", true);
    while rig.control_step() {}
    rig.sleep(Duration::from_secs(1));
    assert!(matches!(rig.to_core[0].ops[..], [Op::Undrain(_), Op::Unmask(_)]), "on its way");
    rig.liveness("b", false);
    rig.core_step();
    assert_eq!(rig.state("b"), Some(TunnelState::Live), "the unmask came after the core's mask");
    rig.settle_for(5);
    assert_eq!(rig.state("b"), Some(TunnelState::Masked));
}

#[test]
fn a_link_that_goes_masks_at_once_and_comes_back_after_the_hold_down() {
    let mut rig = Rig::settled();
    rig.link("a", true);
    rig.settle();
    let plans = rig.plans;
    rig.link("a", false);
    assert!(matches!(rig.to_core[0].ops[..], [Op::Mask(_)]));
    assert_eq!(rig.view("a"), (State::Down, "link eth1 is down".to_owned()));
    rig.settle();
    rig.link("a", true);
    assert_eq!(rig.state("a"), Some(TunnelState::Masked));
    rig.settle();
    assert_eq!(rig.state("a"), Some(TunnelState::Live));
    assert_eq!(rig.plans, plans, "the kernel's part did not change");
}

#[test]
fn a_link_that_was_lost_for_a_moment_is_known_by_the_core_alone() {
    let mut rig = Rig::settled();
    rig.verdict("a", false, Cause::Link);
    rig.control_step();
    assert_eq!(rig.view("a"), (State::Down, "the link of its outer path is down".to_owned()));
    rig.link("a", true);
    rig.settle_for(5);
    assert_eq!(rig.state("a"), Some(TunnelState::Masked));
    rig.verdict("a", true, Cause::Link);
    rig.settle();
    assert_eq!(rig.state("a"), Some(TunnelState::Live));
    // Our own look may come first, or alone: the core's times are those of the same failure.
    let stages = Some(Stages { detected: 1_000_000, masked: 1_012_000 });
    for (by_core, by_look) in [(1, 2), (2, 1)] {
        for step in 1..=2 {
            if step == by_look {
                rig.link("a", false);
            }
            if step == by_core {
                rig.verdict("a", false, Cause::Link);
                rig.control_step();
            }
        }
        let views = rig.turn.tunnels(rig.now);
        let failure = views[0].last_failure.as_ref().unwrap();
        assert_eq!((failure.why.cause(), failure.stages), ("link", stages));
        rig.link("a", true);
        rig.verdict("a", true, Cause::Link);
        rig.settle_for(60);
        assert_eq!(rig.state("a"), Some(TunnelState::Live));
    }
    rig.link("a", false);
    rig.settle();
    let views = rig.turn.tunnels(rig.now);
    assert_eq!(views[0].last_failure.as_ref().unwrap().stages, None);
    assert_eq!(views[0].failovers, 4);
}

#[test]
fn a_link_that_returned_when_nobody_listened_is_not_waited_for() {
    let mut rig = Rig::settled();
    rig.verdict("a", false, Cause::Link);
    rig.settle_for(5);
    assert_eq!(rig.state("a"), Some(TunnelState::Masked));
    rig.disconnect(true);
    rig.settle();
    assert_eq!(rig.state("a"), Some(TunnelState::Live));
}

#[test]
fn the_highest_priority_that_is_up_carries() {
    let mut rig = Rig::settled();
    rig.reload(4);
    rig.settle();
    let states = |rig: &Rig| ["a", "b", "c"].map(|name| rig.view(name).0);
    // b is the highest of 10.3.0.0/16, c of 10.2.0.0/16.
    assert_eq!(states(&rig), [State::Standby, State::Up, State::Up]);
    rig.link("b", false);
    rig.settle();
    assert_eq!(states(&rig), [State::Up, State::Down, State::Up]);
    let (routes, _) = rig.turn.routes(|_| true, 0);
    let route = routes.iter().find(|route| route.prefix.to_string() == "10.3.0.0/16").unwrap();
    assert_eq!(route.paths, [("a", 1, true), ("b", 1, false)]);
}

/// The SA of a tunnel in one direction.
fn sa_of(rig: &Rig, name: &str, direction: Direction) -> braid_api::SaId {
    let (id, sas) = (rig.id(name).unwrap(), rig.core.as_ref().unwrap().summary().1);
    sas.iter().find(|sa| sa.tunnel == id && sa.direction == direction).unwrap().id
}

#[test]
fn an_sa_that_is_used_up_takes_its_tunnel_out_until_there_are_new_keys() {
    const USED_UP: &str = "the SA's sequence numbers are used up";
    for direction in [Direction::In, Direction::Out] {
        let mut rig = Rig::settled();
        let sa = sa_of(&rig, "a", direction);
        let soon = Note::NearlyExhausted { tunnel: "a".to_owned() };
        rig.event(Event::Core(CoreEvent::SaLifetime { sa, hard: false }));
        assert!(rig.notes.contains(&soon) && !masks(&rig));
        rig.event(Event::Core(CoreEvent::SaLifetime { sa, hard: true }));
        assert!(masks(&rig));
        rig.settle();
        assert_eq!(rig.state("a"), Some(TunnelState::Masked));
        let (state, reason) = rig.view("a");
        assert!(state == State::Down && reason.starts_with(USED_UP), "{reason}");
        assert_eq!(rig.view("b").0, State::Up);
        assert_eq!(rig.turn.tunnels(rig.now)[0].last_failure.as_ref().unwrap().why.cause(), "exhausted");
        rig.reload(3);
        rig.settle();
        assert_eq!((rig.view("a").0, rig.state("a")), (State::Up, Some(TunnelState::Live)));
    }
    // It happened while nobody listened.
    let mut rig = Rig::settled();
    rig.disconnect(true);
    let mut hello = rig.core.as_mut().unwrap().hello(Duration::ZERO, 1, true);
    let a = rig.id("a").unwrap();
    hello.sas.iter_mut().filter(|sa| sa.tunnel == a).for_each(|sa| sa.stopped = true);
    rig.connected = true;
    rig.event(Event::CoreHello(hello));
    rig.settle();
    let (state, reason) = rig.view("a");
    assert!(state == State::Down && reason.starts_with(USED_UP), "{reason}");
    assert_eq!((rig.state("a"), rig.view("b").0), (Some(TunnelState::Masked), State::Up));
}

#[test]
fn an_sa_that_ike_made_is_rekeyed_in_time_and_out_once_it_is_used_up() {
    let mut rig = Rig::with(NEGOTIATED);
    rig.settle();
    rig.negotiate("a");
    rig.settle_for(5);
    assert_eq!(rig.view("a").0, State::Up);
    let sa = sa_of(&rig, "a", Direction::Out);
    rig.event(Event::Core(CoreEvent::SaLifetime { sa, hard: false }));
    let told = rig.notes.iter().any(|note| matches!(note, Note::NearlyExhausted { .. }));
    assert!(!told && !masks(&rig));
    rig.event(Event::Core(CoreEvent::SaLifetime { sa, hard: true }));
    assert!(masks(&rig));
    rig.settle_for(5);
    assert_eq!(rig.view("a").0, State::Down);
}

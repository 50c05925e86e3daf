//! Control was killed, and its next life takes over what runs.

use super::*;

#[test]
fn control_killed_adopts_what_runs() {
    let mut rig = Rig::settled();
    rig.event(Event::Drain { tunnel: "c".to_owned(), token: Token(1) });
    rig.settle();
    let before = rig.core.as_ref().unwrap().summary();
    rig.kill_control(true);
    rig.finish_plan(true);
    rig.connect();
    while rig.core_step() || rig.control_step() {}
    assert_eq!(rig.core.as_ref().unwrap().summary(), before, "nothing changed");
    rig.settle();
    assert_eq!(rig.core.as_ref().unwrap().summary(), before);
    assert_eq!(rig.view("a").0, State::Up);
    assert_eq!(rig.view("c").0, State::Draining);
}

#[test]
fn control_killed_knows_its_tunnels_by_the_cores_numbers() {
    let mut rig = Rig::settled();
    let before = rig.core.as_ref().unwrap().summary();
    // The file was changed meanwhile: numbers by its order would be others'.
    rig.variant = 6;
    rig.kill_control(true);
    for _ in 0..20 {
        rig.connect();
        assert!(!masks(&rig), "{:?}", rig.to_core);
        rig.finish_plan(true);
        while rig.core_step() || rig.control_step() {}
        rig.sleep(Duration::from_millis(100));
    }
    assert_eq!(rig.core.as_ref().unwrap().summary(), before);
    assert_eq!(rig.view("a").0, State::Up);
}

/// Only the stash knows where the peers are and what was agreed upon with them.
#[test]
fn control_killed_leaves_negotiated_tunnels_alone_until_the_stash_is_read() {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let mut rig = Rig::with(NEGOTIATED);
    rig.connect();
    rig.event(Event::Adopt { negotiated: BTreeMap::new() });
    rig.settle();
    NAMES.iter().for_each(|name| rig.negotiate(name));
    let mut plan = None;
    for _ in 0..5 {
        plan = rig.plan.clone().or(plan);
        rig.settle_for(1);
    }
    let plan = plan.expect("the peers' addresses are news for the kernel");
    assert!(NAMES.iter().all(|name| rig.state(name) == Some(TunnelState::Live)));
    let before = rig.core.as_ref().unwrap().summary();
    rig.kill_control(true);
    assert!(rig.plan.is_none(), "the plan in force may hold what is not known yet");
    rig.connect();
    // Whatever IKE says before it has read the stash.
    rig.tell("a", IkeState::Negotiating { by_peer: true });
    rig.sleep(Duration::from_millis(10));
    assert!(rig.to_core.is_empty() && rig.plan.is_none(), "{:?}", rig.to_core);
    let negotiated = NAMES.iter().map(|name| ((*name).to_owned(), path(name))).collect();
    rig.event(Event::Adopt { negotiated });
    NAMES.iter().for_each(|name| rig.tell(name, IkeState::Up));
    assert!(!masks(&rig), "{:?}", rig.to_core);
    assert_eq!(rig.plan.as_ref(), Some(&plan));
    for _ in 0..20 {
        rig.finish_plan(true);
        assert!(!masks(&rig), "{:?}", rig.to_core);
        while rig.core_step() || rig.control_step() {}
        rig.sleep(Duration::from_millis(100));
    }
    assert_eq!(rig.core.as_ref().unwrap().summary(), before);
    assert!(NAMES.iter().all(|name| rig.view(name) == (State::Up, String::new())));
}

#[test]
fn a_plan_waits_for_a_core_that_does_not_answer_but_not_for_long() {
    let mut rig = Rig::settled();
    rig.kill_control(true);
    rig.sleep(PLAN_PATIENCE / 2);
    assert!(rig.plan.is_none());
    rig.sleep(PLAN_PATIENCE);
    assert!(rig.plan.is_some());
}

#[test]
fn a_verdict_given_while_control_was_dead_shows_in_the_counters() {
    let mut rig = Rig::settled();
    let id = rig.id("a").unwrap();
    let core = rig.core.as_ref().unwrap();
    let mut reader = core.reader();
    reader.enter().tunnel(id).unwrap().live.answered(1, Duration::from_millis(1), Duration::from_millis(1));
    core.states().mask_by_core(id);
    rig.kill_control(true);
    rig.settle_for(20);
    assert_eq!(rig.view("a").0, State::Down);
    assert_eq!(rig.state("a"), Some(TunnelState::Masked));
    rig.liveness("a", true);
    rig.settle();
    assert_eq!(rig.view("a").0, State::Up);
    // Probes that nobody ever answered say nothing: it was the link, and that is looked at.
    let id = rig.id("b").unwrap();
    rig.core.as_ref().unwrap().states().mask_by_core(id);
    rig.kill_control(true);
    rig.settle_for(20);
    assert_eq!(rig.view("b").0, State::Up);
    assert_eq!(rig.state("b"), Some(TunnelState::Live));
}

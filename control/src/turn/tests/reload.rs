//! Another configuration while all runs.

use super::*;

/// What a plan and a tunnel say of the inner MTU.
fn mtus(rig: &Rig) -> (Option<u16>, u16, u16) {
    let core = rig.core.as_ref().unwrap();
    let mut reader = core.reader();
    let tables = reader.enter();
    let tunnel = tables.tunnel(rig.id("a").unwrap()).unwrap();
    (rig.last_mtu, tunnel.settings.path_mtu, tunnel.mtu)
}

#[test]
fn a_path_that_is_wide_again_makes_its_tunnel_wide_again() {
    let mut rig = Rig::settled();
    let lower = |rig: &mut Rig| {
        for name in ["a", "b", "c"] {
            let tunnel = rig.id(name).unwrap();
            rig.core.as_mut().unwrap().set_path_mtu(tunnel, Some(1400));
            rig.event(Event::Core(CoreEvent::PathMtu { tunnel, path_mtu: 1400 }));
        }
        rig.settle();
    };
    assert_eq!(mtus(&rig), (Some(1438), 1500, 1438));
    let look = |rig: &mut Rig, mtu| {
        for name in ["a", "b", "c"] {
            let outer = Outer { mtu: Some(mtu), ..Outer::default() };
            rig.event(Event::Outer([(name.to_owned(), outer)].into()));
        }
        rig.settle();
    };
    // A look of ours says so that had seen it narrow, or the core: we may ask for another way than its packets take.
    lower(&mut rig);
    look(&mut rig, 1500);
    assert_eq!(mtus(&rig), (Some(1338), 1400, 1338));
    look(&mut rig, 1400);
    look(&mut rig, 1500);
    assert_eq!(mtus(&rig), (Some(1438), 1500, 1438));
    lower(&mut rig);
    let tunnel = rig.id("a").unwrap();
    rig.event(Event::Core(CoreEvent::PathMtu { tunnel, path_mtu: 1500 }));
    rig.settle();
    assert_eq!(mtus(&rig), (Some(1438), 1500, 1438));
    // It was so for no longer than it took to hear of it: what was put before is put once more.
    rig.core.as_mut().unwrap().set_path_mtu(tunnel, Some(1400));
    for path_mtu in [1400, 1500] {
        rig.event(Event::Core(CoreEvent::PathMtu { tunnel, path_mtu }));
    }
    assert_eq!(mtus(&rig).2, 1338);
    rig.settle();
    assert_eq!(mtus(&rig), (Some(1438), 1500, 1438));
    // What the last core had found of a path that nobody else looks at is as good as forgotten.
    let mut rig = Rig::with(NEGOTIATED);
    rig.settle();
    let tunnel = rig.id("a").unwrap();
    rig.event(Event::Core(CoreEvent::PathMtu { tunnel, path_mtu: 1400 }));
    rig.settle();
    assert_eq!(mtus(&rig).1, 1400);
    rig.kill_core();
    rig.settle();
    assert_eq!(mtus(&rig).1, 1500);
}

#[test]
fn a_reload_touches_only_what_changed() {
    let mut rig = Rig::settled();
    rig.reload(3);
    rig.finish_plan(true);
    let ops = &rig.to_core.iter().flat_map(|transaction| &transaction.ops).collect::<Vec<_>>();
    let a = rig.id("a").unwrap();
    for op in ops {
        match op {
            Op::Mask(id) | Op::Unmask(id) | Op::Undrain(id) => assert_eq!(*id, a),
            Op::PutSa(sa) => assert_eq!(sa.tunnel, a),
            Op::RemoveSa(_) => {}
            other => panic!("{other:?}"),
        }
    }
    rig.settle();
    assert_eq!(rig.view("a").0, State::Up);
}

#[test]
fn a_reload_of_the_same_keys_with_other_settings_is_refused() {
    let mut rig = Rig::settled();
    let mut config = (*configuration(0)).clone();
    let crate::config::Keys::Manual(manual) = &mut config.tunnels[0].keys else { panic!("manual keys") };
    manual.esn = true;
    let event = Event::Configured { config: Arc::new(config), outer: BTreeMap::new(), token: Token(9) };
    rig.event(event);
    let (token, Err(lines)) = &rig.replies[0] else { panic!("refused") };
    assert_eq!((*token, lines.len()), (Token(9), 2));
    assert!(lines[0].contains("tunnel.manual.key-in") && lines[0].contains("installed once"), "{lines:?}");
    assert!(rig.to_core.is_empty() && rig.plan.is_none());
}

#[test]
fn a_plan_that_fails_at_a_reload_changes_nothing() {
    let mut rig = Rig::settled();
    let before = rig.core.as_ref().unwrap().summary();
    let token = rig.reload(2);
    rig.finish_plan(false);
    assert_eq!(rig.replies, [(token, Err(vec!["no".to_owned()]))]);
    assert!(rig.in_force.is_empty());
    rig.settle();
    assert_eq!(rig.core.as_ref().unwrap().summary(), before);
    assert_eq!(rig.view("c").0, State::Up);
    assert_eq!(rig.exited, None);
}

#[test]
fn a_reload_keeps_the_sockets_from_which_peers_are_told() {
    let mut rig = Rig::with(NEGOTIATED);
    rig.settle();
    let of_c = |rig: &Rig| {
        let sockets = rig.plan.iter().flat_map(|plan| &plan.udp);
        sockets.filter(|socket| socket.local.ip().to_string() == "192.0.2.3").count()
    };
    let token = rig.reload(NEGOTIATED_LESS);
    assert_eq!(of_c(&rig), 2);
    assert!(rig.in_force.is_empty());
    rig.finish_plan(true);
    assert_eq!(rig.in_force, [token]);
    while rig.core_step() || rig.control_step() {}
    assert_eq!(rig.replies, [(token, Ok("the configuration is in force".to_owned()))]);
    rig.sleep(PARTING - Duration::from_millis(1));
    assert!(rig.plan.is_none());
    rig.sleep(Duration::from_millis(1));
    assert!(rig.plan.is_some() && of_c(&rig) == 0);
    rig.finish_plan(true);
    // What the next configuration uses again is not closed.
    rig.reload(NEGOTIATED);
    rig.finish_plan(true);
    rig.reload(NEGOTIATED_LESS);
    rig.finish_plan(true);
    rig.reload(NEGOTIATED);
    rig.settle();
    assert!(rig.turn.desired.plan.udp.iter().any(|socket| socket.local.ip().to_string() == "192.0.2.3"));
    assert!(rig.turn.parting.is_none());
}

#[test]
fn a_removed_tunnel_goes_and_comes_back_only_with_other_keys() {
    let mut rig = Rig::settled();
    rig.reload(2);
    rig.settle();
    assert_eq!(rig.id("c"), None);
    rig.reload(0);
    rig.settle();
    assert_eq!(rig.id("c"), None, "its keys were installed once");
    assert!(rig.replies.last().unwrap().1.is_err());
}

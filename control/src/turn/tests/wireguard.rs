//! Where peers were found, and who keeps the traffic when the core dies.

use super::*;

/// `road` has no address in the configuration, and `site` has one.
fn two_of_wireguard(key_of_road: char) -> String {
    let tunnel = |name: &str, host: u8, peer: char, more: &str| {
        let key = |fill: char| format!("{}=", fill.to_string().repeat(43));
        format!(
            "[[tunnel]]\nname = \"{name}\"\ntype = \"wireguard\"\nlocal = \"192.0.2.9\"\n{more}\
             role = \"respond\"\ninside = \"10.8.0.{host}/32\"\n[tunnel.wireguard]\nprivate-key = \"{}\"\n\
             peer-public-key = \"{}\"\n",
            key('E'),
            key(peer),
        )
    };
    let site = tunnel("site", 2, 'M', "remote = \"203.0.113.9\"\n");
    [tunnel("road", 1, key_of_road, ""), site].concat()
}

/// The first has the higher priority, and none takes its traffic back.
fn without_preemption() -> String {
    let text = two_of_wireguard('I').replace("type =", "preempt = false\ntype =");
    let text = text.replace("name = \"road\"", "name = \"road\"\npriority = 1");
    text + "[[route]]\nprefix = \"10.9.0.0/16\"\nvia = [\"road\", \"site\"]\n"
}

#[test]
fn the_death_of_the_core_is_no_failure_of_its_tunnels() {
    let mut rig = Rig::with_text(&without_preemption());
    rig.settle_for(5);
    let up = |rig: &mut Rig, name: &str, up: bool| {
        session(rig, name, up);
        rig.settle_for(1);
    };
    let carries = |rig: &Rig| ["road", "site"].map(|name| rig.view(name).0);
    let first = [State::Up, State::Standby];
    let second = [State::Standby, State::Up];
    for name in ["road", "site"] {
        up(&mut rig, name, true);
    }
    assert_eq!(carries(&rig), first);
    // With a new core, the second may come first.
    rig.kill_core();
    rig.settle_for(1);
    for name in ["site", "road"] {
        up(&mut rig, name, true);
    }
    assert_eq!((carries(&rig), rig.turn.is_yielding("road")), (first, false));
    rig.settle_for(20);
    assert_eq!(carries(&rig), first);
    // A failure of its own is one, and outlives the core.
    for is_up in [false, true] {
        up(&mut rig, "road", is_up);
    }
    assert_eq!(carries(&rig), second);
    rig.kill_core();
    rig.settle_for(1);
    for name in ["road", "site"] {
        up(&mut rig, name, true);
    }
    assert_eq!(carries(&rig), second);
    rig.settle_for(20);
    // The other one is gone.
    for is_up in [false, true] {
        up(&mut rig, "site", is_up);
    }
    assert_eq!(carries(&rig), first);
    // So is it not to come back for long.
    rig.kill_core();
    rig.settle_for(1);
    up(&mut rig, "site", true);
    rig.settle_for(20);
    up(&mut rig, "road", true);
    assert_eq!(carries(&rig), second);
}

/// Which of both a new core is to call, and where it takes them to be.
fn called(rig: &mut Rig) -> ([bool; 2], [Option<SocketAddr>; 2]) {
    rig.kill_core();
    rig.finish_plan(true);
    rig.connect();
    let ops = rig.to_core.iter().flat_map(|sent| &sent.ops);
    let begin: Vec<bool> = ops
        .filter_map(|op| match op {
            Op::PutWireGuard(keys) => Some(keys.begin),
            _ => None,
        })
        .collect();
    rig.settle_for(5);
    (begin.try_into().unwrap(), remotes(rig))
}

fn remotes(rig: &Rig) -> [Option<SocketAddr>; 2] {
    ["road", "site"].map(|name| {
        let mut reader = rig.core.as_ref().unwrap().reader();
        reader.enter().tunnel(rig.id(name).unwrap()).unwrap().live.remote()
    })
}

fn session(rig: &mut Rig, name: &str, up: bool) {
    let tunnel = rig.id(name).unwrap();
    rig.event(Event::Core(CoreEvent::WireGuard { tunnel, up }));
}

#[test]
fn a_new_core_calls_those_that_had_a_session_with_the_last() {
    let mut rig = Rig::with_text(&two_of_wireguard('I'));
    rig.settle_for(5);
    let remote: SocketAddr = "198.51.100.7:4711".parse().unwrap();
    let of_site: SocketAddr = "203.0.113.9:51820".parse().unwrap();
    for name in ["road", "site"] {
        let tunnel = rig.id(name).unwrap();
        rig.event(Event::Core(CoreEvent::EndpointMoved { tunnel, remote }));
    }
    // They were heard, and are gone.
    session(&mut rig, "road", false);
    assert_eq!(called(&mut rig), ([false, false], [None, Some(of_site)]));
    let tunnel = rig.id("road").unwrap();
    rig.event(Event::Core(CoreEvent::EndpointMoved { tunnel, remote }));
    session(&mut rig, "road", true);
    // The second dies before it has heard anything.
    for _ in 0..2 {
        assert_eq!(called(&mut rig), ([true, false], [Some(remote), Some(of_site)]));
    }
    // The next one had a session, but not the time to say where.
    session(&mut rig, "road", true);
    assert_eq!(called(&mut rig), ([true, false], [Some(remote), Some(of_site)]));
    // It has a session: what the core knows by itself it is not told again, then and later.
    session(&mut rig, "road", true);
    rig.settle_for(5);
    rig.reload(0);
    assert!(rig.to_core.iter().all(|sent| sent.ops.is_empty()), "{:?}", rig.to_core);
    assert_eq!(remotes(&rig)[0], Some(remote));
    // It did not answer.
    session(&mut rig, "road", false);
    assert_eq!(called(&mut rig), ([false, false], [None, Some(of_site)]));
}

#[test]
fn another_peer_is_not_called_where_the_last_one_was() {
    let mut rig = Rig::with_text(&two_of_wireguard('I'));
    rig.settle_for(5);
    let tunnel = rig.id("road").unwrap();
    rig.event(Event::Core(CoreEvent::EndpointMoved { tunnel, remote: "198.51.100.7:4711".parse().unwrap() }));
    session(&mut rig, "road", true);
    assert_eq!(called(&mut rig).0, [true, false]);
    rig.more = two_of_wireguard('Q');
    rig.reload(0);
    rig.finish_plan(true);
    let begins = |op: &Op| matches!(op, Op::PutWireGuard(keys) if keys.begin);
    assert!(!rig.to_core.iter().flat_map(|sent| &sent.ops).any(begins));
    rig.settle_for(5);
    assert_eq!(called(&mut rig).0, [false, false]);
}

#[test]
fn a_peer_that_is_where_it_is_expected_has_not_moved() {
    let mut rig = Rig::with_text(&two_of_wireguard('I'));
    rig.settle_for(5);
    for (name, remote, is_news) in [
        ("site", "203.0.113.9:51820", false),
        ("site", "198.51.100.7:4711", true),
        ("site", "198.51.100.7:4711", false),
        ("site", "203.0.113.9:51820", true),
        ("road", "198.51.100.8:4712", true),
    ] {
        rig.notes.clear();
        let tunnel = rig.id(name).unwrap();
        rig.event(Event::Core(CoreEvent::EndpointMoved { tunnel, remote: remote.parse().unwrap() }));
        let told = rig.notes.iter().any(|note| matches!(note, Note::Moved { .. }));
        assert_eq!(told, is_news, "{name} {remote}");
    }
}

#[test]
fn where_a_peer_is_heard_no_learned_route_shall_cover_it() {
    const BGP: &str = "[bgp]\nasn = 65010\nrouter-id = \"10.1.0.1\"\n[[bgp.neighbor]]\nname = \"far\"\n\
                       address = \"10.9.0.2\"\ninterface = \"dx0\"\nasn = 65020\n";
    let moves = |rig: &mut Rig, name: &str, remote: &str| {
        let tunnel = rig.id(name).unwrap();
        rig.event(Event::Core(CoreEvent::EndpointMoved { tunnel, remote: remote.parse().unwrap() }));
        rig.settle_for(5);
    };
    let knows = |rig: &Rig, peer: &str| {
        let plan = &rig.turn.desired.plan;
        assert!(rig.turn.is_planned() && !plan.apart.is_empty());
        plan.peers.contains(&peer.parse().unwrap())
    };
    let mut rig = Rig::with_text(&(two_of_wireguard('I') + BGP));
    rig.settle_for(5);
    assert!(knows(&rig, "203.0.113.9") && !knows(&rig, "198.51.100.7"));
    moves(&mut rig, "road", "198.51.100.7:4711");
    assert!(knows(&rig, "198.51.100.7"));
    // Only the address counts, and the present one.
    let plans = rig.plans;
    moves(&mut rig, "road", "198.51.100.7:4712");
    moves(&mut rig, "site", "203.0.113.9:1");
    assert_eq!(rig.plans, plans);
    moves(&mut rig, "road", "198.51.100.8:4711");
    assert!(knows(&rig, "198.51.100.8") && !knows(&rig, "198.51.100.7"));
    // Neither process's death makes it unknown.
    rig.kill_core();
    rig.settle_for(5);
    assert!(knows(&rig, "198.51.100.8"));
    rig.kill_control(false);
    assert!(rig.turn.desired.plan.peers.contains(&"198.51.100.8".parse().unwrap()), "from the first plan on");
    // Another peer is somewhere else.
    rig.settle_for(5);
    rig.more = two_of_wireguard('Q') + BGP;
    rig.reload(0);
    rig.finish_plan(true);
    rig.settle_for(5);
    assert!(!knows(&rig, "198.51.100.8"));
    // Static routes are kept apart from everywhere: clients that come and go cost no plan.
    let mut rig = Rig::with_text(&without_preemption());
    rig.settle_for(5);
    let plans = rig.plans;
    moves(&mut rig, "road", "198.51.100.7:4711");
    assert!(!knows(&rig, "198.51.100.7") && rig.plans == plans);
}

#[test]
fn more_prefixes_than_can_be_kept_apart_are_told() {
    let route = |index: usize| format!("[[route]]\nprefix = \"11.{index}.0.0/16\"\nvia = [\"road\"]\n");
    let with = |routes: usize| {
        let routes: String = (0..routes).map(route).collect();
        let mut rig = Rig::with_text(&(two_of_wireguard('I') + &routes));
        rig.settle_for(5);
        let tunnel = rig.id("road").unwrap();
        let remote: SocketAddr = "11.0.0.7:4711".parse().unwrap();
        rig.event(Event::Core(CoreEvent::EndpointMoved { tunnel, remote }));
        rig.settle_for(5);
        let plan = &rig.turn.desired.plan;
        let is_told = rig.notes.iter().any(|note| matches!(note, Note::NotApart { more: 1 }));
        (plan.apart.len(), plan.peers.contains(&remote.ip()), is_told)
    };
    // Two are there already. The widest are.
    assert_eq!(with(62), (64, false, false));
    assert_eq!(with(63), (64, true, true));
}

#[test]
fn only_families_of_unknown_peers_are_kept_apart() {
    let apart = |text: &str| {
        let config = crate::config::parse(text, Path::new("x.toml"), 0o600);
        let config = config.unwrap_or_else(|errors| panic!("{errors:?}"));
        let (apart, _) = desired::kept_apart(&config, &BTreeMap::new());
        apart.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let routes = "[[route]]\nprefix = \"10.9.0.0/16\"\nvia = [\"road\"]\n\
                  [[route]]\nprefix = \"fd09::/16\"\nvia = [\"road\"]\n";
    let text =
        "[gateway]\nname = \"x\"\nprotect = [\"10.0.0.0/8\"]\n".to_owned() + &two_of_wireguard('I') + routes;
    assert_eq!(apart(&text), ["10.0.0.0/8", "10.9.0.0/16"]);
    assert_eq!(
        apart(&text.replace("192.0.2.9", "2001:db8::9").replace("203.0.113.9", "2001:db8::7")),
        ["fd09::/16"]
    );
    // An interface that is named does not stand against a route.
    assert_eq!(
        apart(&text.replace("local = ", "uplink = \"wan0\"\nlocal = ")),
        ["10.0.0.0/8", "10.9.0.0/16"]
    );
}

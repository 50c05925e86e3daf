//! Routes that BGP has learned, through the shipped turn into the core's shipped tables.

use braid_api::{
    Target,
    launcher::{LearnedVia, RouteChanges},
};
use ipnet::IpNet;

use super::{
    learned::{MAX_KERNEL, Table},
    sets::{MAX_GROUPS, MAX_STANDBY, MAX_UNEVEN},
    tests::Rig,
    *,
};
use crate::{
    config::Link,
    desired::{LearnedMember, STANDBY},
    outer::Addresses,
};

const BGP: &str = "[bgp]\nasn = 65010\nrouter-id = \"10.1.0.1\"\n";

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn by(prefix: &str, tunnels: &[(&str, u16)]) -> LearnedRoute {
    let tunnels = tunnels.iter().map(|(name, weight)| ((*name).to_owned(), *weight));
    LearnedRoute { prefix: net(prefix), link: None, tunnels: tunnels.collect(), standby: Vec::new() }
}

fn learn(rig: &mut Rig, routes: Vec<LearnedRoute>, complete: bool) {
    rig.event(Event::Learned(Learned { routes, complete, ..Learned::default() }));
    rig.settle();
}

fn target(rig: &Rig, prefix: IpNet) -> Option<Target> {
    let mut reader = rig.core.as_ref().unwrap().reader();
    let found = reader.enter().route(prefix.addr());
    found.filter(|(found, _)| *found == prefix).map(|(_, target)| target)
}

/// Names and weights of the tunnels that the core sends a prefix to.
fn ways(rig: &Rig, prefix: &str) -> Vec<(String, u16)> {
    let core = rig.core.as_ref().unwrap();
    let (tunnels, _, groups) = core.summary();
    let Some(Target::Group(id)) = target(rig, net(prefix)) else { return Vec::new() };
    let group = groups.iter().find(|group| group.id == id).unwrap();
    let name = |id| tunnels.iter().find(|tunnel| tunnel.id == id).unwrap().name.clone();
    let mut ways: Vec<_> = group.members.iter().map(|member| (name(member.tunnel), member.weight)).collect();
    ways.sort();
    ways
}

fn two(weights: [u16; 2]) -> Vec<(String, u16)> {
    vec![("a".to_owned(), weights[0]), ("b".to_owned(), weights[1])]
}

#[test]
fn learned_routes_come_move_and_go() {
    let mut rig = Rig::with_text(BGP);
    rig.settle();
    learn(&mut rig, vec![by("10.8.0.0/16", &[("a", 1), ("b", 3)]), by("10.9.0.0/16", &[("b", 1)])], true);
    assert_eq!(ways(&rig, "10.8.0.0/16"), two([1, 3]));
    assert_eq!(ways(&rig, "10.9.0.0/16"), [("b".to_owned(), 1)]);
    assert!(rig.kernel.keys().eq(&[net("10.8.0.0/16"), net("10.9.0.0/16")]));
    learn(&mut rig, vec![by("10.8.0.0/16", &[("b", 3)]), by("10.9.0.0/16", &[])], true);
    assert_eq!(ways(&rig, "10.8.0.0/16"), [("b".to_owned(), 3)]);
    assert_eq!(ways(&rig, "10.9.0.0/16"), []);
    assert!(rig.kernel.keys().eq(&[net("10.8.0.0/16")]));
    // A group that nobody wants any more is gone: those of the configuration and one are left.
    let groups = rig.core.as_ref().unwrap().summary().2.len();
    learn(&mut rig, vec![by("10.8.0.0/16", &[])], true);
    assert_eq!(rig.core.as_ref().unwrap().summary().2.len(), groups - 1);
}

#[test]
fn what_bgp_has_a_better_choice_than_stands_by_in_the_same_group() {
    let mut rig = Rig::with_text(BGP);
    rig.settle();
    let members = |rig: &Rig| {
        let core = rig.core.as_ref().unwrap();
        let Some(Target::Group(id)) = target(rig, net("10.8.0.0/16")) else { panic!("no group") };
        let (tunnels, _, groups) = core.summary();
        let group = groups.iter().find(|group| group.id == id).unwrap();
        let name = |id| tunnels.iter().find(|tunnel| tunnel.id == id).unwrap().name.clone();
        let mut members: Vec<_> =
            group.members.iter().map(|member| (name(member.tunnel), member.priority)).collect();
        members.sort();
        (id, members)
    };
    let of = |priorities: [i32; 2]| vec![("a".to_owned(), priorities[0]), ("b".to_owned(), priorities[1])];
    learn(&mut rig, vec![by("10.8.0.0/16", &[("a", 3), ("b", 1)])], true);
    let (group, equal) = members(&rig);
    assert_eq!(equal, of([0, 0]));
    // The other end asks for b, and a still is a way: the group keeps its buckets.
    let standby = vec![("a".to_owned(), 1)];
    learn(&mut rig, vec![LearnedRoute { standby, ..by("10.8.0.0/16", &[("b", 1)]) }], true);
    assert_eq!(members(&rig), (group, of([STANDBY, 0])));
    // Configured as low as can be, a tunnel that BGP chooses is before one that it does not.
    let lowest = format!(
        "{BGP}[[tunnel]]\nname = \"d\"\nlocal = \"192.0.2.4\"\nrole = \"respond\"\ninside = \"169.254.20.2/30\"\n\
         priority = {}\n[tunnel.ike]\npsk = \"x\"\nremote-id = \"d.example\"\n",
        i32::MIN
    );
    let mut rig = Rig::with_text(&lowest);
    rig.settle();
    let standby = vec![("a".to_owned(), 1)];
    learn(&mut rig, vec![LearnedRoute { standby, ..by("10.8.0.0/16", &[("d", 1)]) }], true);
    let (_, last) = members(&rig);
    assert!(last[0].1 == STANDBY && last[1].1 > STANDBY, "{last:?}");
}

#[test]
fn of_very_many_ways_the_last_have_nothing_that_stands_by() {
    let mut table = Table::new();
    let count = MAX_STANDBY + 88;
    for number in 0..count {
        let prefix = format!("10.{}.{}.0/24", number >> 8, number & 255);
        let standby = vec![("b".to_owned(), 1)];
        table.learn(LearnedRoute { standby, ..by(&prefix, &[("a", number as u16 + 1)]) });
    }
    let groups = table.groups();
    assert_eq!(groups.len(), count);
    assert_eq!(groups.iter().filter(|members| members.len() == 2).count(), MAX_STANDBY);
    // There is room again once others have gone.
    table.forget();
    assert_eq!(table.groups().len(), 0);
    table.learn(LearnedRoute { standby: vec![("b".to_owned(), 1)], ..by("10.9.0.0/24", &[("a", 1)]) });
    assert_eq!(table.groups()[0].len(), 2);
}

/// The prefixes 10.0.0.0/24 and up by number.
fn numbered(number: usize) -> String {
    format!("10.{}.{}.0/24", number >> 8, number & 255)
}

#[test]
fn very_many_different_shares_end_in_the_configured_ones() {
    let mut table = Table::new();
    let route = |number: usize| {
        let (a, b) = (number % 100 + 1, number / 100 + 102);
        by(&numbered(number), &[("a", a as u16), ("b", b as u16)])
    };
    (0..4000).for_each(|number| table.learn(route(number)));
    let groups = table.groups();
    let weights =
        |members: &Vec<LearnedMember<'_>>| members.iter().map(|member| member.weight).collect::<Vec<_>>();
    assert_eq!(groups.len(), MAX_UNEVEN + 1);
    assert_eq!(groups.iter().filter(|members| weights(members) == [1, 1]).count(), 1);
    // One that is there is anybody's.
    table.learn(LearnedRoute { prefix: net("11.0.0.0/8"), ..route(0) });
    assert_eq!(table.groups().len(), MAX_UNEVEN + 1);
    // What goes makes room, but for the configured shares and for the set that has another user.
    (0..100).for_each(|number| table.learn(by(&numbered(number), &[])));
    (4000..4100).for_each(|number| table.learn(route(number)));
    assert_eq!(table.groups().len(), MAX_UNEVEN);
    let newest = |members: &Vec<_>| weights(members)[1] == 4099 / 100 + 102;
    assert_eq!(table.groups().iter().filter(|members| newest(members)).count(), 98);
    table.forget();
    assert_eq!(table.groups().len(), 0);
}

#[test]
fn very_many_sets_of_tunnels_end_in_single_ones() {
    let names: Vec<String> = (0..12).map(|number| format!("t{number}")).collect();
    let mut table = Table::new();
    let subset = |number: usize| {
        let chosen = names.iter().enumerate().filter(|(index, _)| number >> index & 1 == 1);
        chosen.map(|(_, name)| (name.as_str(), 1)).collect::<Vec<_>>()
    };
    (1..4096).for_each(|number| table.learn(by(&numbered(number), &subset(number))));
    let singles = |table: &Table| table.groups().iter().filter(|members| members.len() == 1).count();
    assert_eq!(table.groups().len() - singles(&table), MAX_GROUPS);
    assert_eq!(singles(&table), names.len());
    // One tunnel at very many shares is one group in the end, and nobody else's loss.
    let mut table = Table::new();
    (1..4000).for_each(|number| table.learn(by(&numbered(number), &[("a", number as u16)])));
    assert_eq!(table.groups().len(), MAX_UNEVEN + 1);
}

#[test]
fn a_group_has_no_more_members_than_the_core_takes() {
    let many = |count: usize, first: char| -> Vec<(String, u16)> {
        (0..count).map(|number| (format!("{first}{number:03}"), 1)).collect()
    };
    for (tunnels, standby, kept) in [(300, 10, 256), (250, 10, 250), (3, 300, 3)] {
        let mut table = Table::new();
        let (tunnels, standby) = (many(tunnels, 'a'), many(standby, 'b'));
        table.learn(LearnedRoute { tunnels, standby, ..by("10.8.0.0/16", &[]) });
        let groups = table.groups();
        assert_eq!(groups[0].len(), 256);
        assert_eq!(groups[0].iter().filter(|member| !member.standby).count(), kept);
    }
}

#[test]
fn whoever_wants_too_many_groups_is_named_once_and_has_all_routes() {
    let mut rig = Rig::with_text(BGP);
    rig.settle();
    let before = rig.core.as_ref().unwrap().summary().2.len();
    let routes = |from: usize| {
        let route = |number: usize| by(&numbered(number), &[("a", number as u16 + 1), ("b", 5000)]);
        (from..from + 1000).map(route).collect::<Vec<_>>()
    };
    learn(&mut rig, routes(0), false);
    learn(&mut rig, routes(1000), true);
    let groups = rig.core.as_ref().unwrap().summary().2.len();
    assert!(groups <= before + MAX_UNEVEN + 1, "{groups} groups");
    assert!((0..2000).all(|number| target(&rig, net(&numbered(number))).is_some()));
    assert_eq!(ways(&rig, &numbered(0)), two([1, 5000]));
    assert_eq!(ways(&rig, &numbered(1999)), two([1, 1]));
    assert_eq!(rig.notes.iter().filter(|note| **note == Note::TooManyGroups).count(), 1);
}

#[test]
fn what_the_core_refused_is_not_taken_for_installed() {
    let mut rig = Rig::with_text(BGP);
    rig.settle();
    let prefix = "10.8.0.0/16";
    rig.refuses = Some(net(prefix));
    // After some connections control leaves it at that.
    learn(&mut rig, vec![by(prefix, &[("a", 1), ("b", 1)])], true);
    assert_eq!(ways(&rig, prefix), []);
    rig.refuses = None;
    learn(&mut rig, vec![by(prefix, &[("a", 1), ("b", 1)])], true);
    assert_eq!(ways(&rig, prefix), two([1, 1]));
    // It has left nothing behind: another group is removed once its last route has gone.
    learn(&mut rig, vec![by(prefix, &[("b", 1)])], true);
    let groups = rig.core.as_ref().unwrap().summary().2.len();
    learn(&mut rig, vec![by(prefix, &[])], true);
    assert_eq!(rig.core.as_ref().unwrap().summary().2.len(), groups - 1);
}

#[test]
fn the_lower_distance_wins_and_the_other_stands_by() {
    let mut rig = Rig::with_text(BGP);
    rig.settle();
    let configured = ways(&rig, "10.2.0.0/16");
    assert_eq!(configured.len(), 3);
    // By the configuration, with distance 1.
    learn(&mut rig, vec![by("10.2.0.0/16", &[("a", 1)])], true);
    assert_eq!(ways(&rig, "10.2.0.0/16"), configured);
    // The same route, at distance 100.
    let mut rig = Rig::with_text(&format!("{BGP}distance = 10\n"));
    rig.far_routes = true;
    rig.reload(0);
    rig.settle();
    assert_eq!(ways(&rig, "10.2.0.0/16"), configured);
    learn(&mut rig, vec![by("10.2.0.0/16", &[("a", 1)])], true);
    assert_eq!(ways(&rig, "10.2.0.0/16"), [("a".to_owned(), 1)]);
    learn(&mut rig, vec![by("10.2.0.0/16", &[])], true);
    assert_eq!(ways(&rig, "10.2.0.0/16"), configured);
    // An inside peer is nobody else's.
    learn(&mut rig, vec![by("169.254.11.1/32", &[("a", 1)])], true);
    assert_eq!(ways(&rig, "169.254.11.1/32"), []);
}

#[test]
fn what_an_earlier_life_learned_stays_until_all_is_said() {
    let mut rig = Rig::with_text(BGP);
    rig.settle();
    let kept = by("10.8.0.0/16", &[("a", 1), ("b", 1)]);
    learn(&mut rig, vec![kept.clone(), by("10.9.0.0/16", &[("b", 1)])], true);
    rig.kill_control(true);
    rig.swept = false;
    rig.settle();
    // Nothing is said yet: everything is as it was.
    assert_eq!(ways(&rig, "10.8.0.0/16"), two([1, 1]));
    assert_eq!(ways(&rig, "10.9.0.0/16"), [("b".to_owned(), 1)]);
    assert!(!rig.swept);
    learn(&mut rig, vec![kept], false);
    assert_eq!(ways(&rig, "10.9.0.0/16"), [("b".to_owned(), 1)]);
    learn(&mut rig, Vec::new(), true);
    assert_eq!(ways(&rig, "10.8.0.0/16"), two([1, 1]));
    assert_eq!(ways(&rig, "10.9.0.0/16"), []);
    assert!(rig.swept);
}

#[test]
fn a_new_core_gets_all_of_it_again() {
    let mut rig = Rig::with_text(BGP);
    rig.settle();
    learn(&mut rig, vec![by("10.8.0.0/16", &[("a", 1), ("b", 1)])], true);
    rig.kill_core();
    rig.settle();
    assert_eq!(ways(&rig, "10.8.0.0/16"), two([1, 1]));
}

#[test]
fn many_routes_go_in_portions_and_a_reset_takes_all_back() {
    let mut rig = Rig::with_text(BGP);
    rig.settle();
    let prefix =
        |index: u32| IpNet::new(std::net::Ipv4Addr::from(0x0b00_0000 + (index << 8)).into(), 24).unwrap();
    let route = |index| LearnedRoute { prefix: prefix(index), ..by("10.0.0.0/8", &[("a", 1), ("b", 1)]) };
    learn(&mut rig, (0..20_000).map(route).collect(), true);
    assert!((0..20_000).all(|index| target(&rig, prefix(index)).is_some()));
    assert_eq!(rig.kernel.len(), 20_000);
    rig.event(Event::Learned(Learned { reset: true, complete: true, ..Learned::default() }));
    rig.settle();
    assert!((0..20_000).all(|index| target(&rig, prefix(index)).is_none()));
    assert!(rig.kernel.is_empty());
}

const DIRECT: &str = "10.9.0.1 on dx0";

/// Where the kernel sends a prefix beside the plan.
fn kernel(rig: &Rig, prefix: &str) -> Option<String> {
    let LearnedVia { link, device } = rig.kernel.get(&net(prefix))?;
    let link = link.as_ref().map(|Link { gateway, interface }| format!("{gateway} on {interface}"));
    let ways = link.into_iter().chain(device.map(|_| "device".to_owned()));
    Some(ways.collect::<Vec<_>>().join(", then "))
}

fn links(rig: &mut Rig, up: &[&str]) {
    rig.event(Event::Links(up.iter().map(|name| ((*name).to_owned(), Addresses::default())).collect()));
    rig.settle();
}

/// Static routes to 10.2.0.0/16 have distance 100 in tunnels, and these over links.
fn with_links(bgp: &str, links: &[(&str, u8)]) -> Rig {
    let mut text = bgp.to_owned();
    for (interface, distance) in links {
        text.push_str(&format!(
            "[[route]]\nprefix = \"10.2.0.0/16\"\ndistance = {distance}\n\
             via = {{ interface = \"{interface}\", gateway = \"10.9.0.1\" }}\n"
        ));
    }
    let mut rig = Rig::with_text(&text);
    rig.far_routes = true;
    rig.reload(0);
    rig.settle();
    rig
}

/// Whether each path of a prefix carries its traffic, as `braid status` says.
fn shown(rig: &Rig, prefix: &str) -> Vec<(String, bool)> {
    let mut shown = Vec::new();
    for route in rig.turn.routes(|other| *other == net(prefix), 10).0 {
        let tunnels = route.paths.iter().map(|(name, _, active)| ((*name).to_owned(), *active));
        shown.extend(route.link.map(|(link, active)| (link.interface.clone(), active)));
        shown.extend(tunnels);
    }
    shown
}

#[test]
fn a_link_of_the_configuration_goes_before_tunnels_while_it_is_up() {
    let mut rig = with_links("", &[("dx0", 5), ("dx1", 6)]);
    let tunnels = ways(&rig, "10.2.0.0/16");
    assert_eq!(tunnels.len(), 3);
    let in_use = |rig: &Rig| {
        let of = shown(rig, "10.2.0.0/16").into_iter().filter(|(_, active)| *active).map(|(name, _)| name);
        of.collect::<Vec<_>>()
    };
    assert_eq!((kernel(&rig, "10.2.0.0/16"), in_use(&rig).len()), (None, 3));
    for (up, wanted, shown) in [
        (&["dx0"][..], Some(DIRECT), "dx0"),
        (&["dx0", "dx1"], Some(DIRECT), "dx0"),
        (&["dx1"], Some("10.9.0.1 on dx1"), "dx1"),
    ] {
        links(&mut rig, up);
        assert_eq!(kernel(&rig, "10.2.0.0/16").as_deref(), wanted);
        assert_eq!(in_use(&rig), [shown]);
        // The core has its route all the while.
        assert_eq!(ways(&rig, "10.2.0.0/16"), tunnels);
    }
    links(&mut rig, &[]);
    assert_eq!((kernel(&rig, "10.2.0.0/16"), in_use(&rig).len()), (None, 3));
}

#[test]
fn a_link_waits_behind_what_has_a_lower_distance() {
    let mut rig = with_links("", &[("dx0", 200)]);
    links(&mut rig, &["dx0"]);
    assert_eq!(kernel(&rig, "10.2.0.0/16"), None);
    // BGP has 20.
    let mut rig = with_links(BGP, &[("dx0", 50)]);
    links(&mut rig, &["dx0"]);
    assert_eq!(kernel(&rig, "10.2.0.0/16").as_deref(), Some(DIRECT));
    learn(&mut rig, vec![by("10.2.0.0/16", &[("a", 1)])], true);
    assert_eq!(kernel(&rig, "10.2.0.0/16").as_deref(), Some("device"));
    learn(&mut rig, vec![by("10.2.0.0/16", &[])], true);
    assert_eq!(kernel(&rig, "10.2.0.0/16").as_deref(), Some(DIRECT));
}

/// The router of [`DIRECT`], and routes by it before tunnels.
fn direct() -> Link {
    Link { gateway: "10.9.0.1".parse().unwrap(), interface: "dx0".to_owned() }
}

fn over(prefix: &str, tunnels: &[(&str, u16)]) -> LearnedRoute {
    LearnedRoute { link: Some(direct()), ..by(prefix, tunnels) }
}

const BEFORE_TUNNELS: &str = "10.9.0.1 on dx0, then device";

#[test]
fn behind_a_learned_link_core_and_kernel_have_the_tunnels() {
    let mut rig = with_links(BGP, &[]);
    links(&mut rig, &["dx0"]);
    learn(&mut rig, vec![over("10.8.0.0/16", &[("a", 1), ("b", 3)])], true);
    assert_eq!(kernel(&rig, "10.8.0.0/16").as_deref(), Some(BEFORE_TUNNELS));
    assert_eq!(ways(&rig, "10.8.0.0/16"), two([1, 3]));
    let idle = |name: &str| (name.to_owned(), false);
    assert_eq!(shown(&rig, "10.8.0.0/16"), [("dx0".to_owned(), true), idle("a"), idle("b")]);
    // The link goes: nothing changes in the core.
    learn(&mut rig, vec![by("10.8.0.0/16", &[("a", 1), ("b", 3)])], true);
    assert_eq!(kernel(&rig, "10.8.0.0/16").as_deref(), Some("device"));
    assert_eq!(ways(&rig, "10.8.0.0/16"), two([1, 3]));
    // A learned link goes before tunnels of the configuration that are farther, whose kernel route is the plan's.
    let configured = ways(&rig, "10.2.0.0/16");
    learn(&mut rig, vec![over("10.2.0.0/16", &[])], true);
    assert_eq!(kernel(&rig, "10.2.0.0/16").as_deref(), Some(DIRECT));
    assert_eq!(ways(&rig, "10.2.0.0/16"), configured);
    learn(&mut rig, vec![by("10.2.0.0/16", &[])], true);
    assert_eq!(kernel(&rig, "10.2.0.0/16"), None);
}

fn fail(rig: &mut Rig, failed: impl IntoIterator<Item = Link>) {
    let failed = Some(failed.into_iter().collect());
    rig.event(Event::Learned(Learned { failed, ..Learned::default() }));
    rig.settle();
}

/// What the launcher was told since the last time.
fn told(rig: &mut Rig) -> Vec<RouteChanges> {
    core::mem::take(&mut rig.kernel_messages)
}

fn withdrawn() -> RouteChanges {
    RouteChanges { withdraw: vec![direct()], ..RouteChanges::default() }
}

#[test]
fn a_link_that_fails_is_one_message_and_what_bgp_says_after_it_none() {
    let mut rig = with_links(BGP, &[]);
    let loses: [fn(&mut Rig); 2] = [|rig| links(rig, &[]), |rig| fail(rig, [direct()])];
    for lose in loses {
        links(&mut rig, &["dx0"]);
        learn(&mut rig, vec![over("10.8.0.0/16", &[("a", 1)]), over("10.9.0.0/16", &[])], true);
        told(&mut rig);
        lose(&mut rig);
        assert_eq!(told(&mut rig), [withdrawn()]);
        assert_eq!(kernel(&rig, "10.8.0.0/16").as_deref(), Some("device"));
        assert_eq!(kernel(&rig, "10.9.0.0/16").as_deref(), Some(""));
        assert_eq!(shown(&rig, "10.8.0.0/16"), [("dx0".to_owned(), false), ("a".to_owned(), true)]);
        // BGP has looked at them.
        learn(&mut rig, vec![by("10.8.0.0/16", &[("a", 1)]), by("10.9.0.0/16", &[])], true);
        let only = told(&mut rig);
        assert_eq!((only.len(), &only[0].put, &only[0].remove), (1, &vec![], &vec![net("10.9.0.0/16")]));
        fail(&mut rig, None);
        links(&mut rig, &["dx0"]);
        assert_eq!(told(&mut rig), []);
    }
}

#[test]
fn a_link_that_is_back_before_bgp_has_looked_gets_its_routes_back() {
    let mut rig = with_links(BGP, &[]);
    let flaps: [fn(&mut Rig, bool); 2] =
        [|rig, up| links(rig, if up { &["dx0"] } else { &[] }), |rig, up| fail(rig, (!up).then(direct))];
    links(&mut rig, &["dx0"]);
    learn(&mut rig, vec![over("10.8.0.0/16", &[("a", 1)]), over("10.9.0.0/16", &[])], true);
    for flap in flaps {
        told(&mut rig);
        flap(&mut rig, false);
        // Something else has it looked at: it is not put back over a link that is down.
        rig.reload(0);
        rig.settle();
        assert_eq!(kernel(&rig, "10.8.0.0/16").as_deref(), Some("device"));
        flap(&mut rig, true);
        assert_eq!(kernel(&rig, "10.8.0.0/16").as_deref(), Some(BEFORE_TUNNELS));
        assert_eq!(kernel(&rig, "10.9.0.0/16").as_deref(), Some(DIRECT));
    }
}

#[test]
fn what_an_earlier_speaker_said_of_a_router_is_void() {
    let mut rig = with_links(BGP, &[]);
    links(&mut rig, &["dx0"]);
    learn(&mut rig, vec![over("10.8.0.0/16", &[("a", 1)])], true);
    fail(&mut rig, [direct()]);
    rig.event(Event::Learned(Learned { reset: true, ..Learned::default() }));
    rig.settle();
    assert_eq!(kernel(&rig, "10.8.0.0/16"), None);
    learn(&mut rig, vec![over("10.8.0.0/16", &[("a", 1)])], true);
    assert_eq!(kernel(&rig, "10.8.0.0/16").as_deref(), Some(BEFORE_TUNNELS));
}

#[test]
fn the_configurations_route_by_a_router_outlives_its_bgp() {
    let mut rig = with_links(BGP, &[("dx0", 5)]);
    links(&mut rig, &["dx0"]);
    learn(&mut rig, vec![over("10.8.0.0/16", &[])], true);
    fail(&mut rig, [direct()]);
    assert_eq!(kernel(&rig, "10.8.0.0/16").as_deref(), Some(""));
    assert_eq!(kernel(&rig, "10.2.0.0/16").as_deref(), Some(DIRECT));
    links(&mut rig, &[]);
    assert_eq!(kernel(&rig, "10.2.0.0/16"), None);
}

#[test]
fn a_withdrawal_waits_for_no_other_message_and_ways_that_nobody_has_are_forgotten() {
    let mut table = Table::new();
    table.up = ["dx0".to_owned()].into();
    table.learn(over("10.8.0.0/16", &[("a", 1)]));
    table.learn(over("10.9.0.0/16", &[]));
    assert_eq!(table.kernel_message(|_| None).unwrap().put.len(), 2);
    for _ in 0..10 {
        // The launcher is busy all the while.
        table.set_failed([direct()].into());
        assert_eq!(table.kernel_message(|_| None), Some(withdrawn()));
        table.set_failed(BTreeSet::new());
        assert_eq!(table.kernel_message(|_| None), None);
        table.kernel_done();
        assert_eq!(table.kernel_message(|_| None), None);
        table.kernel_done();
        assert_eq!(table.kernel_message(|_| None).unwrap().put.len(), 2);
    }
    assert!(table.vias.iter().count() <= 2);
}

#[test]
fn a_message_of_the_longest_routes_fits() {
    let interface = "a-link-of-15-ch".to_owned();
    let address: IpAddr = "2001:db8::ffff".parse().unwrap();
    let mut table = Table::new();
    table.up = [interface.clone()].into();
    for index in 0..2 * MAX_KERNEL {
        let prefix =
            IpNet::new((0x2001_0db8_u128 << 96 | (index as u128) << 64).to_be_bytes().into(), 64).unwrap();
        let link = Some(Link { gateway: address, interface: interface.clone() });
        table.learn(LearnedRoute { prefix, link, ..by("::/0", &[("a", 1)]) });
    }
    let changes = table.kernel_message(|_| Some(address)).unwrap();
    assert_eq!(changes.put.len(), MAX_KERNEL);
    let message = braid_api::encode(&braid_api::launcher::FromClient::Routes(changes)).unwrap();
    assert!(message.len() < braid_api::launcher::MAX_MESSAGE_LEN, "{} bytes", message.len());
}

fn fall_silent(rig: &mut Rig, tunnels: &[&str]) {
    let hold_time = Duration::from_secs(30);
    let silent = tunnels.iter().map(|name| ((*name).to_owned(), hold_time)).collect();
    rig.event(Event::Learned(Learned { silent: Some(silent), ..Learned::default() }));
    rig.settle_for(1);
}

#[test]
fn a_neighbor_that_falls_silent_takes_its_tunnel_out_if_nothing_else_is_heard_there() {
    let mut rig = Rig::with_text(BGP);
    rig.settle();
    rig.sleep(Duration::from_secs(100));
    // Its BGP has died, but its packets come.
    rig.hear("b");
    fall_silent(&mut rig, &["b"]);
    assert_eq!((rig.view("b").0, rig.turn.awaits_bgp("b")), (State::Up, false));
    let changes = rig.turn.offer_changes();
    rig.settle_for(25);
    assert_eq!(rig.view("b").0, State::Up);
    // Now they do not come any more either.
    rig.settle_for(10);
    let why = "BGP: neither the neighbor nor anything else was heard for 30 s".to_owned();
    assert_eq!(rig.view("b"), (State::Down, why));
    assert!(rig.turn.awaits_bgp("b") && !rig.turn.is_offered("b") && rig.turn.offer_changes() > changes);
    assert!(rig.turn.is_offered("a"));
    rig.settle_for(100);
    assert_eq!(rig.view("b").0, State::Down);
    rig.hear("b");
    rig.settle_for(2);
    assert_eq!(rig.view("b").0, State::Up);
    rig.settle_for(40);
    assert_eq!(rig.view("b").0, State::Down);
    // A session proves both directions, so that nothing is waited for.
    fall_silent(&mut rig, &[]);
    assert_eq!((rig.view("b").0, rig.turn.awaits_bgp("b")), (State::Up, false));
}

#[test]
fn a_failure_has_converged_when_the_core_has_confirmed_what_bgp_makes_of_it() {
    let mut rig = Rig::with_text(BGP);
    rig.settle();
    learn(&mut rig, vec![by("10.8.0.0/16", &[("a", 1), ("b", 1)])], true);
    rig.sleep(Duration::from_secs(100));
    fall_silent(&mut rig, &["b"]);
    assert_eq!((rig.view("b").0, rig.converged("b")), (State::Down, None));
    rig.sleep(Duration::from_millis(3));
    // BGP chooses anew; that is not in the core yet.
    rig.event(Event::Learned(Learned { routes: vec![by("10.8.0.0/16", &[("a", 1)])], ..Learned::default() }));
    rig.quiet();
    assert_eq!(rig.converged("b"), None);
    rig.settle_for(1);
    rig.quiet();
    let took = rig.converged("b").unwrap();
    assert!(took >= Duration::from_millis(3), "{took:?}");
    rig.sleep(Duration::from_secs(1));
    rig.quiet();
    assert_eq!(rig.converged("b"), Some(took));
}

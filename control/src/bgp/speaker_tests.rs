//! Speakers joined without anything in between: octets that one sends are what the other receives, in order, and
//! time passes only when the test says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use braid_bgp::{ConnectionId, SessionState, rib::NeighborId};

use super::speaker::{Command, Speaker};
use crate::{
    config::{self, Config},
    outer::{Addresses, Links},
    turn::LearnedRoute,
};

const OURS: &str = "[[bgp.neighbor]]\ntunnel = \"a\"\nasn = 65020\n\
                    [[bgp.neighbor]]\ntunnel = \"b\"\nasn = 65020\n";

/// A gateway with tunnels a and b; `host` is its end of the inside networks.
fn configuration(asn: u32, host: u8, announce: &str, neighbors: &str) -> Config {
    let mut text = String::new();
    for (name, net) in [("a", 10), ("b", 11)] {
        text.push_str(&format!(
            "[[tunnel]]\nname = \"{name}\"\nlocal = \"192.0.2.{net}\"\nrole = \"respond\"\n\
             inside = [\"169.254.{net}.{host}/30\", \"fd00:{net}::{host}/126\"]\n\
             [tunnel.ike]\npsk = \"x\"\nremote-id = \"{name}.example\"\n"
        ));
    }
    text.push_str(&format!(
        "[bgp]\nasn = {asn}\nrouter-id = \"10.{host}.0.1\"\nannounce = [{announce}]\n{neighbors}"
    ));
    config::parse(&text, Path::new("x.toml"), 0o600).unwrap()
}

/// Two gateways. The second one's neighbors wait to be connected to.
struct Joined {
    now: Instant,
    speakers: [Speaker; 2],
    /// By tunnel, the connection at either end.
    connections: BTreeMap<String, [(NeighborId, ConnectionId); 2]>,
    learned: [BTreeMap<String, LearnedRoute>; 2],
}

fn speaker(config: &Config, now: Instant) -> Speaker {
    Speaker::new(config, config.bgp.as_ref().unwrap(), 1, now)
}

fn theirs(announce: &str) -> Config {
    let neighbors = OURS.replace("65020", "65010").replace("asn =", "passive = true\nasn =");
    configuration(65_020, 1, announce, &neighbors)
}

/// As [`theirs`], in our own AS.
fn inside() -> Config {
    let neighbors = OURS.replace("65020", "65010").replace("asn =", "passive = true\nasn =");
    configuration(65_010, 1, BOTH, &neighbors)
}

impl Joined {
    fn new(ours: &str, announce: &str) -> Self {
        Joined::between([configuration(65_010, 2, "\"10.1.0.0/16\"", ours), theirs(announce)])
    }

    fn between(configs: [Config; 2]) -> Self {
        let now = Instant::now();
        let mut speakers = configs.map(|config| speaker(&config, now));
        for speaker in &mut speakers {
            speaker.begin(None, now);
        }
        let mut joined = Joined { now, speakers, connections: BTreeMap::new(), learned: Default::default() };
        for tunnel in ["a", "b"] {
            joined.offer(tunnel, true);
        }
        joined.settle();
        joined
    }

    fn offer(&mut self, tunnel: &str, offered: bool) {
        for speaker in &mut self.speakers {
            speaker.offer(tunnel, offered, false, self.now);
        }
    }

    fn sleep(&mut self, time: Duration) {
        self.now += time;
        for speaker in &mut self.speakers {
            speaker.handle_timeout(self.now);
        }
        self.settle();
    }

    /// Our process dies, so that connections break without a word, and another takes its place; the tunnels are still
    /// to be offered to it.
    fn restart(&mut self, ours: &Config) {
        for name in ["a", "b"] {
            let [_, (number, id)] = self.connections.remove(name).unwrap();
            self.speakers[1].closed(number, id, self.now);
        }
        self.settle();
        let mut again = speaker(ours, self.now);
        again.begin(Some(&["a".to_owned(), "b".to_owned()].into()), self.now);
        self.speakers[0] = again;
        self.learned[0].clear();
    }

    /// Carries everything and lets both do all their work.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let mut quiet = true;
            for side in 0..2 {
                while let Some(command) = self.speakers[side].poll_command() {
                    quiet = false;
                    self.carry(side, command);
                }
                if self.speakers[side].has_work(|_| true) {
                    quiet = false;
                    self.speakers[side].work(|_| true, self.now);
                }
                for route in self.speakers[side].take_changes() {
                    self.learned[side].insert(route.prefix.to_string(), route);
                }
                self.learned[side].retain(|_, route| route.link.is_some() || !route.tunnels.is_empty());
            }
            if quiet {
                return;
            }
        }
        panic!("they never come to rest");
    }

    fn carry(&mut self, side: usize, command: Command) {
        let far = 1 - side;
        match command {
            Command::Connect(number, id) => {
                let peer = &self.speakers[side].peers[&number];
                let (name, local) = (peer.name.clone(), peer.endpoint.local.unwrap());
                let remote = peer.endpoint.remote;
                let accepted = self.speakers[far]
                    .neighbor_at(local, remote)
                    .and_then(|other| Some((other, self.speakers[far].accepted(other, self.now)?)));
                let Some(other) = accepted else {
                    self.speakers[side].closed(number, id, self.now);
                    return;
                };
                let mut ends = [(number, id), other];
                if side == 1 {
                    ends.reverse();
                }
                self.connections.insert(name, ends);
                self.speakers[far].drain(other.0, self.now);
                self.speakers[side].connected(number, id, self.now);
            }
            Command::Transmit(number, id, octets) => {
                if let Some(ends) = self.connections.values().find(|ends| ends[side] == (number, id)) {
                    let (number, id) = ends[far];
                    self.speakers[far].received(number, id, &octets, self.now);
                }
            }
            Command::Close(number, id) => self.close(side, (number, id)),
        }
    }

    fn close(&mut self, side: usize, end: (NeighborId, ConnectionId)) {
        let closed =
            self.connections.iter().find(|(_, ends)| ends[side] == end).map(|(name, _)| name.clone());
        if let Some(ends) = closed.and_then(|name| self.connections.remove(&name)) {
            let (number, id) = ends[1 - side];
            self.speakers[1 - side].closed(number, id, self.now);
        }
    }

    /// What is shown of our neighbors; nothing goes on after it.
    fn shown(&mut self, neighbors: &str) -> (Vec<super::Trouble>, Vec<super::NeighborView>) {
        let config = configuration(65_010, 2, "", neighbors);
        let mut bgp = super::Bgp::new(1);
        bgp.speaker = Some(std::mem::replace(&mut self.speakers[0], speaker(&config, self.now)));
        bgp.config.clone_from(&config.bgp);
        (bgp.troubles(), bgp.neighbors(self.now))
    }

    fn states(&self, side: usize) -> Vec<SessionState> {
        self.speakers[side].peers.values().map(|peer| peer.state()).collect()
    }

    fn ways(&self, prefix: &str) -> Vec<&str> {
        let route = self.learned[0].get(prefix);
        let link = route.and_then(|route| route.link.as_ref()).map(|link| link.interface.as_str());
        let tunnels = route.into_iter().flat_map(|route| &route.tunnels).map(|(name, _)| name.as_str());
        link.into_iter().chain(tunnels).collect()
    }
}

const BOTH: &str = "\"10.2.0.0/16\", \"fd00:2::/48\"";

#[test]
fn equal_paths_by_two_tunnels_share_traffic_in_both_families() {
    let joined = Joined::new(OURS, BOTH);
    assert_eq!(joined.states(0), [SessionState::Established; 2]);
    for prefix in ["10.2.0.0/16", "fd00:2::/48"] {
        assert_eq!(joined.ways(prefix), ["a", "b"], "{prefix}");
    }
    // What we announce arrives there.
    assert!(joined.learned[1].contains_key("10.1.0.0/16"));
    assert!(joined.speakers.iter().all(Speaker::is_complete));
}

#[test]
fn a_tunnel_that_goes_down_takes_its_neighbor_along_and_brings_it_back() {
    let mut joined = Joined::new(OURS, BOTH);
    joined.offer("a", false);
    joined.settle();
    assert_eq!(joined.ways("10.2.0.0/16"), ["b"]);
    assert_eq!(joined.speakers[0].established(), ["b".to_owned()].into());
    // Nobody tries meanwhile.
    joined.sleep(Duration::from_secs(20));
    assert_eq!(joined.speakers[0].established(), ["b".to_owned()].into());
    joined.offer("a", true);
    joined.settle();
    assert_eq!(joined.ways("10.2.0.0/16"), ["a", "b"]);
}

#[test]
fn the_other_end_returns_by_the_tunnel_of_the_higher_priority() {
    let ours = configuration(65_010, 2, "\"10.1.0.0/16\"", OURS);
    let mut standby = ours.clone();
    standby.tunnels[1].priority = -1;
    let mut joined = Joined::new(OURS, BOTH);
    let (now, bgp) = (joined.now, standby.bgp.clone().unwrap());
    joined.speakers[0].configure(&standby, &bgp, now);
    joined.settle();
    // Sessions go on, and MEDs differ now.
    assert_eq!(joined.states(0), [SessionState::Established; 2]);
    let there = &joined.learned[1]["10.1.0.0/16"];
    assert_eq!(there.tunnels, [("a".to_owned(), 1)]);
    // The other way stands by there: what is busy on it ends on it.
    assert_eq!(there.standby, [("b".to_owned(), 1)]);
}

#[test]
fn a_tunnel_that_is_drained_is_told_to_be_the_worst_and_keeps_its_session() {
    let mut joined = Joined::new(OURS, BOTH);
    let there = |joined: &Joined| {
        let tunnels = joined.learned[1]["10.1.0.0/16"].tunnels.iter();
        tunnels.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    joined.speakers[0].set_drained(["a".to_owned()].into());
    joined.settle();
    assert_eq!(there(&joined), ["b"]);
    // Whatever is configured meanwhile.
    let (now, ours) = (joined.now, configuration(65_010, 2, "\"10.1.0.0/16\"", OURS));
    joined.speakers[0].configure(&ours, ours.bgp.as_ref().unwrap(), now);
    joined.settle();
    assert_eq!(
        (there(&joined), joined.states(0)),
        (vec!["b".to_owned()], vec![SessionState::Established; 2])
    );
    joined.speakers[0].set_drained(BTreeSet::new());
    joined.settle();
    assert_eq!(there(&joined), ["a", "b"]);
}

#[test]
fn a_tunnel_that_stands_behind_others_is_worse_than_any_and_better_than_one_that_goes() {
    let mut joined = Joined::new(OURS, BOTH);
    let ours = |priority: i32| {
        let mut config = configuration(65_010, 2, "\"10.1.0.0/16\"", OURS);
        config.tunnels[1].priority = priority;
        config
    };
    let there = |joined: &mut Joined| {
        joined.settle();
        assert_eq!(joined.states(0), [SessionState::Established; 2]);
        let tunnels = joined.learned[1]["10.1.0.0/16"].tunnels.iter();
        tunnels.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    joined.speakers[0].set_yielding(["a".to_owned()].into());
    assert_eq!(there(&mut joined), ["b"]);
    // Whatever priorities are configured meanwhile.
    let (now, config) = (joined.now, ours(-1));
    joined.speakers[0].configure(&config, config.bgp.as_ref().unwrap(), now);
    assert_eq!(there(&mut joined), ["b"]);
    joined.speakers[0].set_drained(["b".to_owned()].into());
    assert_eq!(there(&mut joined), ["a"]);
    joined.speakers[0].set_drained(BTreeSet::new());
    joined.speakers[0].set_yielding(BTreeSet::new());
    assert_eq!(there(&mut joined), ["a"]);
    let config = ours(0);
    joined.speakers[0].configure(&config, config.bgp.as_ref().unwrap(), now);
    assert_eq!(there(&mut joined), ["a", "b"]);
}

#[test]
fn a_neighbor_that_is_not_heard_is_told_of_and_tried_while_that_is_all_that_is_wrong() {
    let mut joined = Joined::new(OURS, BOTH);
    // Nothing is carried in a any more, and nobody notices.
    joined.connections.remove("a");
    for _ in 0..40 {
        joined.sleep(Duration::from_secs(1));
        if !joined.speakers[0].silent.is_empty() {
            break;
        }
    }
    assert_eq!(joined.speakers[0].silent, [("a".to_owned(), Duration::from_secs(30))].into());
    assert_eq!(joined.ways("10.2.0.0/16"), ["b"]);
    let now = joined.now;
    joined.speakers[0].offer("a", false, true, now);
    for _ in 0..90 {
        joined.sleep(Duration::from_secs(1));
    }
    // It is back, and its routes count once the tunnel does.
    assert_eq!(joined.states(0), [SessionState::Established; 2]);
    assert!(joined.speakers[0].silent.is_empty());
    assert_eq!(joined.ways("10.2.0.0/16"), ["b"]);
    joined.offer("a", true);
    joined.settle();
    assert_eq!(
        (joined.ways("10.2.0.0/16"), joined.states(0)),
        (vec!["a", "b"], vec![SessionState::Established; 2])
    );
    // Who says goodbye is heard.
    let now = joined.now;
    joined.speakers[1].stop("for a test", now);
    joined.settle();
    assert!(joined.speakers[0].silent.is_empty());
}

#[test]
fn filters_keep_out_what_is_ours_and_what_is_nobodys() {
    let announce = "\"10.1.7.0/24\", \"169.254.11.0/30\", \"10.2.0.0/16\", \"224.0.0.0/4\", \"0.0.0.0/0\"";
    let joined = Joined::new(OURS, announce);
    assert_eq!(joined.learned[0].keys().collect::<Vec<_>>(), ["0.0.0.0/0", "10.2.0.0/16"]);
    let only = OURS.replace("asn", "import = [\"10.0.0.0/8 le 24\"]\nasn");
    let joined = Joined::new(&only, announce);
    assert_eq!(joined.learned[0].keys().collect::<Vec<_>>(), ["10.1.7.0/24", "10.2.0.0/16"]);
}

#[test]
fn a_neighbor_is_told_what_its_filter_lets_pass() {
    let mut joined = Joined::new(OURS, BOTH);
    let told = |joined: &Joined| joined.learned[1].keys().cloned().collect::<Vec<_>>();
    let announce = "\"10.1.0.0/16\", \"10.1.7.0/24\", \"10.3.0.0/16\"";
    for (key, expected) in [
        ("", &["10.1.0.0/16", "10.1.7.0/24", "10.3.0.0/16"][..]),
        ("export-prefixes = [\"10.1.0.0/16 le 24\"]\n", &["10.1.0.0/16", "10.1.7.0/24"]),
        ("export-prefixes = \"10.3.0.0/16\"\n", &["10.3.0.0/16"]),
        ("export-prefixes = []\n", &[]),
    ] {
        let (now, text) = (joined.now, OURS.replace("asn", &format!("{key}asn")));
        let ours = configuration(65_010, 2, announce, &text);
        joined.speakers[0].configure(&ours, ours.bgp.as_ref().unwrap(), now);
        joined.settle();
        assert_eq!(told(&joined), expected, "{key}");
        assert_eq!(joined.states(0), [SessionState::Established; 2]);
    }
}

#[test]
fn after_a_restart_nothing_is_chosen_before_all_is_said() {
    let mut joined = Joined::new(OURS, BOTH);
    assert_eq!(joined.states(1), [SessionState::Established; 2]);
    joined.restart(&configuration(65_010, 2, "\"10.1.0.0/16\"", OURS));
    // The other end keeps our routes.
    assert!(joined.learned[1].contains_key("10.1.0.0/16"));
    joined.speakers[0].offer("a", true, false, joined.now);
    joined.settle();
    assert_eq!(joined.speakers[0].established(), ["a".to_owned()].into());
    assert!(joined.speakers[0].is_deferring() && !joined.speakers[0].is_complete());
    assert!(joined.learned[0].is_empty());
    joined.speakers[0].offer("b", true, false, joined.now);
    joined.settle();
    assert!(joined.speakers[0].is_complete());
    assert_eq!(joined.ways("10.2.0.0/16"), ["a", "b"]);
    assert!(joined.learned[1].contains_key("10.1.0.0/16"));
}

/// RFC 4724 section 4.1: nor is a family waited for of which no End-of-RIB can come, since the neighbor lacks it
/// or has no graceful restart at all.
#[test]
fn after_a_restart_only_what_can_be_said_is_waited_for() {
    for lacks in ["families = [\"ipv4\"]\n", "graceful-restart = false\n"] {
        let ours = configuration(65_010, 2, "\"10.1.0.0/16\"", OURS);
        let neighbors =
            OURS.replace("65020", "65010").replace("asn =", &format!("passive = true\n{lacks}asn ="));
        let announce = "\"10.2.0.0/16\"";
        let mut joined = Joined::between([ours.clone(), configuration(65_020, 1, announce, &neighbors)]);
        joined.restart(&ours);
        joined.speakers[0].offer("a", true, false, joined.now);
        joined.settle();
        assert!(joined.speakers[0].is_deferring() && joined.learned[0].is_empty(), "{lacks}");
        joined.speakers[0].offer("b", true, false, joined.now);
        joined.settle();
        assert_eq!(joined.states(0), [SessionState::Established; 2]);
        assert!(!joined.speakers[0].is_deferring(), "{lacks}");
        assert_eq!(joined.ways("10.2.0.0/16"), ["a", "b"], "{lacks}");
        // Without End-of-RIB, a second KEEPALIVE says that it was all.
        joined.sleep(Duration::from_secs(10));
        assert!(joined.speakers[0].is_complete(), "{lacks}");
    }
}

#[test]
fn a_neighbor_that_does_not_come_back_is_waited_for_only_so_long() {
    let now = Instant::now();
    let ours = configuration(65_010, 2, "\"10.1.0.0/16\"", OURS);
    let mut speaker = speaker(&ours, now);
    speaker.begin(Some(&["a".to_owned()].into()), now);
    assert!(!speaker.is_complete());
    speaker.handle_timeout(now + Duration::from_secs(61));
    assert!(speaker.has_work(|_| true));
    speaker.work(|_| true, now + Duration::from_secs(61));
    assert!(speaker.is_complete());
}

#[test]
fn a_neighbor_that_is_named_is_re_advertised_and_others_are_not() {
    // By a we hear it, b is told.
    let ours = OURS.replacen("tunnel = \"b\"\n", "tunnel = \"b\"\nexport = [\"bgp:a\"]\n", 1);
    let mut joined = Joined::new(&ours, BOTH);
    // It is told to b's other end, which finds its own AS in it; what counts is that it was told.
    let told =
        |joined: &Joined| joined.speakers[0].peers.values().map(|peer| peer.out.len()).collect::<Vec<_>>();
    assert_eq!(told(&joined), [1, 3]);
    // A configuration that names nobody takes it back.
    let (now, plain) = (joined.now, configuration(65_010, 2, "\"10.1.0.0/16\"", OURS));
    joined.speakers[0].configure(&plain, plain.bgp.as_ref().unwrap(), now);
    joined.settle();
    assert_eq!(told(&joined), [1, 1]);
}

#[test]
fn too_many_routes_end_the_session() {
    let most = OURS.replace("asn", "max-prefix = 1\nasn");
    let joined = Joined::new(&most, BOTH);
    assert!(joined.speakers[0].established().is_empty());
    assert!(joined.learned[0].is_empty());
}

#[test]
fn messages_that_end_the_session_count_as_malformed_too() {
    // A KEEPALIVE with a body, and an UPDATE whose routes go beyond their end.
    for body in [&[4, 0][..], &[2, 0, 0, 0, 0, 24, 10]] {
        let mut joined = Joined::new(OURS, BOTH);
        let [(number, id), _] = joined.connections["a"];
        let message = [&[0xff; 16], &[0, 18 + body.len() as u8][..], body].concat();
        joined.speakers[0].received(number, id, &message, joined.now);
        assert_eq!(joined.speakers[0].established(), ["b".to_owned()].into());
        let malformed: Vec<_> = joined.shown(OURS).1.iter().map(|neighbor| neighbor.malformed).collect();
        assert_eq!(malformed, [1, 0], "{body:?}");
    }
}

#[test]
fn the_log_hears_once_a_session_of_what_is_malformed() {
    let mut joined = Joined::new(OURS, BOTH);
    let [(number, id), _] = joined.connections["a"];
    joined.speakers[0].take_said();
    // An UPDATE with an ORIGIN that does not exist, and no other attribute.
    let body: &[u8] = &[0, 0, 0, 4, 0x40, 1, 1, 9, 16, 10, 77];
    let update = [&[0xff; 16], &[0, 19 + body.len() as u8, 2][..], body].concat();
    for _ in 0..100 {
        joined.speakers[0].received(number, id, &update, joined.now);
    }
    let counters = joined.speakers[0].peers[&number].session.counters();
    assert!(counters.treated_as_withdrawn >= 100, "{counters:?}");
    let mut lines: Vec<_> = joined.speakers[0].take_said().into_iter().map(|said| said.line).collect();
    assert!(!lines.is_empty() && lines.len() < 10, "{lines:?}");
    let said = lines.len();
    lines.dedup();
    assert_eq!(lines.len(), said);
    let malformed: Vec<_> = joined.shown(OURS).1.iter().map(|neighbor| neighbor.malformed).collect();
    assert_eq!(malformed, [100, 0]);
}

/// How many prefixes of ours to announce.
fn many(count: usize) -> String {
    (0..count)
        .map(|index| format!("\"10.1.{}.{}/32\"", index / 256, index % 256))
        .collect::<Vec<_>>()
        .join(", ")
}

#[test]
fn what_comes_near_to_what_aws_takes_is_told_before() {
    let limited = OURS.replacen("asn", "max-advertised = 5000\nasn", 1);
    for (count, neighbors, names, most) in [
        (79, OURS, &[][..], None),
        (80, OURS, &["a", "b"], Some(100)),
        (100, &limited, &["b"], Some(100)),
        (150, OURS, &["a", "b"], None),
        (900, OURS, &["a", "b"], Some(1000)),
        (1001, &limited, &["b"], None),
        (120, &OURS.replace("65020", "65010"), &[], None),
    ] {
        let announce = many(count);
        let mut joined = Joined::between([
            configuration(65_010, 2, &announce, neighbors),
            if neighbors.contains("65020") { theirs(BOTH) } else { inside() },
        ]);
        assert_eq!(joined.states(0), [SessionState::Established; 2]);
        let said = |joined: &mut Joined| {
            let lines = joined.speakers[0].take_said().into_iter().filter(|said| said.warning);
            lines.map(|said| said.line).collect::<Vec<_>>()
        };
        let lines = said(&mut joined);
        assert_eq!(lines.len(), names.len(), "{count}: {lines:?}");
        for (line, name) in lines.iter().zip(names) {
            let begin = format!(
                "neighbor {name} is told {count} routes: if it is AWS's, it ends the session beyond 100 "
            );
            assert!(
                line.starts_with(&begin) && line.contains("1000") && line.contains("max-advertised"),
                "{line}"
            );
        }
        let (troubles, _) = joined.shown(neighbors);
        let found: Vec<_> = troubles.into_iter().map(|trouble| (trouble.name, trouble.why)).collect();
        let expected = names.iter().flat_map(|name| {
            most.map(|most| ((*name).to_owned(), super::Why::NearAws { told: count, most }))
        });
        assert_eq!(found, expected.collect::<Vec<_>>(), "{count}");
    }
}

#[test]
fn who_asks_for_routes_again_is_told_all_of_them() {
    let mut joined = Joined::new(OURS, BOTH);
    let [(number, id), _] = joined.connections["a"];
    // RFC 2918 section 3: IPv4 unicast, which is all that we announce.
    let refresh = [&[0xff; 16][..], &[0, 23, 5, 0, 1, 0, 1]].concat();
    let mut said = |refreshed: bool| {
        if refreshed {
            joined.speakers[0].received(number, id, &refresh, joined.now);
        }
        joined.speakers[0].work(|_| true, joined.now);
        let mut said = Vec::new();
        while let Some(command) = joined.speakers[0].poll_command() {
            let Command::Transmit(to, _, octets) = command else { panic!("{command:?}") };
            assert_eq!(to, number);
            said.extend(octets);
        }
        said
    };
    assert!(said(false).is_empty());
    for _ in 0..2 {
        let update = said(true);
        // An UPDATE that ends with the prefix.
        assert!(update.get(18) == Some(&2) && update.ends_with(&[16, 10, 1]), "{update:?}");
    }
    assert_eq!(joined.states(0), [SessionState::Established; 2]);
}

#[test]
fn a_session_on_a_link_waits_while_bfd_says_that_the_path_is_down() {
    let (now, address) = (Instant::now(), "10.9.0.2".parse().unwrap());
    let text = "[[bgp.neighbor]]\naddress = \"10.9.0.2\"\ninterface = \"dx0\"\nasn = 65020\nbfd = true\n\
                [[bgp.neighbor]]\naddress = \"10.8.0.2\"\nmultihop = true\nasn = 65020\n\
                bfd = { interval = \"50ms\" }\nsource = \"10.1.0.1\"\n\
                [[bgp.neighbor]]\naddress = \"10.7.0.2\"\nmultihop = true\nasn = 65020\n";
    let config = configuration(65_010, 2, "", text);
    let mut speaker = speaker(&config, now);
    speaker.begin(None, now);
    let dx0 = Links::from([("dx0".to_owned(), Addresses::default())]);
    speaker.set_links(&dx0, now);
    let on_link = |speaker: &Speaker| speaker.peers.values().next().unwrap().state();
    // RFC 5882 section 4.1: a neighbor whose BFD was never heard is tried all the same.
    assert_ne!(on_link(&speaker), SessionState::Idle);
    speaker.set_bfd_down(&[address].into(), now);
    assert_eq!(on_link(&speaker), SessionState::Idle);
    // Whatever else happens meanwhile.
    speaker.set_links(&Links::new(), now);
    speaker.set_links(&dx0, now);
    speaker.configure(&config, config.bgp.as_ref().unwrap(), now);
    speaker.handle_timeout(now + Duration::from_secs(300));
    assert_eq!(on_link(&speaker), SessionState::Idle);
    speaker.set_bfd_down(&BTreeSet::new(), now);
    assert_ne!(on_link(&speaker), SessionState::Idle);
    // Our end is what is configured, or what routing chooses, and stays.
    let wanted = |speaker: &mut Speaker, towards: Option<&str>| {
        let links = speaker.bfd_links(|_| Some(towards?.parse().unwrap()));
        let text = |link: braid_api::BfdLink| {
            let bfd = link.bfd;
            format!("{} {} {:?} {}", bfd.local, bfd.remote, bfd.interval, link.multihop)
        };
        links.into_iter().map(text).collect::<Vec<_>>()
    };
    let (near, far) = ("10.9.0.1 10.9.0.2 300ms false", "10.1.0.1 10.8.0.2 50ms true");
    assert_eq!(wanted(&mut speaker, None), [far]);
    assert_eq!(wanted(&mut speaker, Some("10.9.0.1")), [near, far]);
    assert_eq!(wanted(&mut speaker, None), [near, far]);
    // Without BFD it has no say.
    let plain = configuration(65_010, 2, "", &text.replace("bfd = true\n", ""));
    speaker.set_bfd_down(&[address].into(), now);
    speaker.configure(&plain, plain.bgp.as_ref().unwrap(), now);
    assert_ne!(on_link(&speaker), SessionState::Idle);
}

#[test]
fn without_graceful_restart_what_was_left_stays_until_the_neighbors_seem_to_have_said_all() {
    let plain = OURS.replace("asn", "graceful-restart = false\nasn");
    let mut joined = Joined::new(&plain, BOTH);
    joined.restart(&configuration(65_010, 2, "\"10.1.0.0/16\"", &plain));
    joined.speakers[0].offer("a", true, false, joined.now);
    joined.settle();
    // What is said is chosen at once; that it is all is not said before a KEEPALIVE after it.
    assert_eq!(joined.ways("10.2.0.0/16"), ["a"]);
    joined.sleep(Duration::from_secs(10));
    assert!(!joined.speakers[0].is_complete(), "b is still missing");
    joined.speakers[0].offer("b", true, false, joined.now);
    joined.settle();
    assert_eq!(joined.ways("10.2.0.0/16"), ["a", "b"]);
    assert!(!joined.speakers[0].is_complete());
    joined.sleep(Duration::from_secs(10));
    assert!(joined.speakers[0].is_complete());
}

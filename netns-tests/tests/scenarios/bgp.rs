//! BGP with Debian's FRR and BIRD at the other end of the tunnels: routes of both families learned and announced,
//! traffic spread over equal paths and moved off a failing one, signatures, many routes.
//!
//! The far gateway is a second Braid with fixed routes and no BGP of its own: what comes for its inside addresses
//! reaches its kernel, where the daemon listens.

use crate::kernel::kill_part;
use crate::pair::{Pair, Setup, Side, patient};
use crate::wireguard::{self, Pairs};
use braid_netns::frr::Frr;
use braid_netns::gateway::Gateway;
use braid_netns::paced::{Load, Paced};
use braid_netns::routing::{Bird, Peer, Speaker};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, CLIENT6, NET_A, NET_A6, NET_B, NET_B6, SERVER, SERVER6};
use braid_netns::traffic::{Pings, ping};
use braid_netns::wireguard::Implementation;
use braid_netns::{Netns, Result, Topology, retry_until};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
use serde_json::Value;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("bgp::frr_over_one_tunnel_like_aws", frr_over_one_tunnel_like_aws),
    ("bgp::frr_over_two_tunnels", frr_over_two_tunnels),
    ("bgp::frr_over_wireguard", frr_over_wireguard),
    ("bgp::many_routes_from_bird", many_routes_from_bird),
    ("bgp::a_router_on_the_lan", a_router_on_the_lan),
    ("bgp::doctor_says_why_there_is_no_session", doctor_says_why_there_is_no_session),
    ("bgp::a_port_that_another_program_has", a_port_that_another_program_has),
    ("bgp::what_was_learned_stays_unreachable", what_was_learned_stays_unreachable),
];

/// For a machine that does something else.
pub(crate) const SOON: Duration = Duration::from_secs(60);
const FEW: Pings = Pings { count: 3, interval: Duration::from_millis(20), size: 56, df: false };
pub(crate) const OURS: u32 = 65_010;
pub(crate) const THEIRS: u32 = 64_512;
/// Each way.
const LOAD: Load = Load::told_apart(64, 2);
/// None of its flows ever pauses for as long as a flow must to be moved.
const BUSY: Load = Load::told_apart(16, 4);

/// The near side without routes, and with this BGP.
pub(crate) fn with_bgp(text: String, bgp: &str) -> String {
    let tunnels = text.split("\n[[route]]").next().unwrap_or_default();
    format!(
        "{tunnels}\n[bgp]\nasn = {OURS}\nrouter-id = \"10.1.0.1\"\nannounce = [\"{NET_A}\", \"{NET_A6}\"]\n{bgp}"
    )
}

/// The far side without routes, and with a session in each of its tunnels.
pub(crate) fn far_with_bgp(text: &str, tunnels: usize) -> String {
    let before = text.split("\n[[route]]").next().unwrap_or_default();
    let neighbors: String = (0..tunnels)
        .map(|index| format!("[[bgp.neighbor]]\ntunnel = \"t{index}\"\nasn = {OURS}\n"))
        .collect();
    format!(
        "{before}\n[bgp]\nasn = {THEIRS}\nrouter-id = \"10.2.0.1\"\nannounce = [\"{NET_B}\", \"{NET_B6}\"]\n{neighbors}"
    )
}

pub(crate) fn neighbors(count: usize, more: &str) -> String {
    (0..count)
        .map(|index| format!("[[bgp.neighbor]]\ntunnel = \"t{index}\"\nasn = {THEIRS}\n{more}\n"))
        .collect()
}

pub(crate) fn start(tunnels: usize, bgp: &str) -> Result<Pair> {
    let setup = Setup { tunnels, ..Setup::default() };
    let topology = Topology::builder().paths(tunnels).build()?;
    Pair::start_edited(&setup, topology, |side, text| match side {
        Side::A => with_bgp(patient(text), bgp),
        Side::B => patient(text),
    })
}

pub(crate) fn far(tunnels: usize) -> Speaker {
    let peer = |index: usize| {
        let net = 10 + index;
        Peer {
            address: format!("169.254.{net}.1"),
            local: format!("169.254.{net}.2"),
            local6: format!("fd00:ffff:{net}::2"),
            asn: OURS,
            hops: 1,
            md5: None,
            passive: false,
            ttl_security: false,
            med: 100,
        }
    };
    Speaker {
        asn: THEIRS,
        id: "10.2.0.1".to_owned(),
        timers: (3, 9),
        graceful_restart: false,
        networks: vec![NET_B.to_owned(), NET_B6.to_owned()],
        peers: (0..tunnels).map(peer).collect(),
    }
}

/// Waits until what the status says is so.
pub(crate) fn until(gateway: &Gateway, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    retry_until(what, SOON, || {
        let status = gateway.status().map_err(|error| error.to_string())?;
        if is(&status) {
            return Ok(status);
        }
        let routes: String = status["routes"].to_string().chars().take(4000).collect();
        Err(format!("neighbors {}, routes {routes}", status["neighbors"]))
    })
}

pub(crate) fn established(status: &Value) -> usize {
    let all = status["neighbors"].as_array().into_iter().flatten();
    all.filter(|neighbor| neighbor["state"] == "established").count()
}

/// Tunnels that carry a prefix learned by BGP.
pub(crate) fn ways(status: &Value, prefix: &str) -> Vec<String> {
    let routes = status["routes"].as_array().into_iter().flatten();
    let route = routes.into_iter().find(|route| route["prefix"] == prefix && route["origin"] == "bgp");
    let paths = route.and_then(|route| route["paths"].as_array()).into_iter().flatten();
    let active = paths.filter(|path| path["active"] == true);
    active.filter_map(|path| Some(path["tunnel"].as_str()?.to_owned())).collect()
}

pub(crate) fn both_ways(status: &Value, tunnels: &[&str]) -> bool {
    [NET_B, NET_B6].iter().all(|prefix| ways(status, prefix) == tunnels)
}

/// Answered in both families, from either side.
pub(crate) fn answered(topology: &Topology) -> Outcome {
    let ways = [
        (&topology.client, SERVER),
        (&topology.client, SERVER6),
        (&topology.server, CLIENT),
        (&topology.server, CLIENT6),
    ];
    for (from, to) in ways {
        // The far side may have taken its routes up a moment later.
        retry_until(&format!("{to} to answer"), SOON, || match ping(from, to, &FEW) {
            Ok(result) if result.rtt_ms.len() == 3 => Ok(()),
            Ok(result) => Err(format!("{} of 3", result.rtt_ms.len())),
            Err(error) => Err(error.to_string()),
        })?;
    }
    Ok(())
}

/// Routes that the kernel has into the device, by Braid's number for what is learned.
fn mirrored(netns: &Netns) -> Result<usize> {
    let v4 = netns.ip("-4 route show table all proto 178")?;
    let v6 = netns.ip("-6 route show table all proto 178")?;
    Ok([v4, v6].iter().flat_map(|text| text.lines()).filter(|line| line.contains("dev braid0")).count())
}

/// A counter of the kernel's TCP in a namespace.
pub(crate) fn counter(netns: &Netns, name: &str) -> Result<u64> {
    let text = netns.run(&["cat", "/proc/net/netstat"])?.stdout;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split(' ').zip(values.split(' ')).find(|(other, _)| *other == name);
    Ok(found.and_then(|(_, value)| value.parse().ok()).unwrap_or_default())
}

/// Hold time 30 s, a signature, MED; a peer that only knows one of our networks; and a clean end.
fn frr_over_one_tunnel_like_aws() -> Outcome {
    let mut pair = start(1, &neighbors(1, "md5 = \"between-us\"\nmax-prefix = 100\nmax-advertised = 100"))?;
    let mut speaker = far(1);
    speaker.timers = (10, 30);
    speaker.peers[0].md5 = Some("wrong".to_owned());
    let netns = &pair.topology.gateway_b;
    let frr = Frr::speak(netns, &speaker)?;
    // With another key not a segment is taken.
    let gateway = &pair.topology.gateway_a;
    retry_until("segments with a wrong signature", SOON, || match counter(gateway, "TCPMD5Failure") {
        Ok(0) => Err("none".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    })?;
    assert_eq!(established(&pair.a.status()?), 0);
    drop(frr);
    speaker.peers[0].md5 = Some("between-us".to_owned());
    let frr = Frr::speak(netns, &speaker)?;
    let status = until(&pair.a, "routes by t0", |status| {
        // FRR may send back what it was told, which is not accepted.
        let neighbor = &status["neighbors"][0];
        both_ways(status, &["t0"]) && established(status) == 1 && neighbor["advertised"] == 2
    })?;
    let neighbor = &status["neighbors"][0];
    assert_eq!(neighbor["address"], "169.254.10.2");
    assert_eq!(neighbor["hold_time_s"], 30);
    assert_eq!((neighbor["accepted"].as_u64(), neighbor["advertised"].as_u64()), (Some(2), Some(2)));
    let tunnel = &status["tunnels"][0]["bgp"];
    assert_eq!((tunnel["state"].as_str(), tunnel["advertised"].as_u64()), (Some("established"), Some(2)));
    answered(&pair.topology)?;
    assert_eq!(mirrored(&pair.topology.gateway_a)?, 2);
    let why = pair.a.braid(&["routes", NET_B, "--why"])?;
    assert!(
        why.status.success() && why.stdout.contains("64512") && why.stdout.contains("best"),
        "{}",
        why.stdout
    );
    retry_until("our route at FRR", SOON, || {
        let learned = frr.json(&format!("show bgp ipv4 unicast {NET_A} json"));
        let learned = learned.map_err(|error| error.to_string())?;
        let by_us = learned["paths"][0]["aspath"]["string"].as_str() == Some(OURS.to_string().as_str());
        if by_us { Ok(()) } else { Err(learned.to_string()) }
    })?;
    // An end that is told: the far side forgets at once, and nothing is left here.
    pair.a.process().stop(SOON)?;
    retry_until("the session ended there", Duration::from_secs(20), || {
        let said = frr.json("show bgp summary json").map_err(|error| error.to_string())?;
        let state = said["ipv4Unicast"]["peers"]["169.254.10.1"]["state"].clone();
        if state == "Established" { Err(state.to_string()) } else { Ok(()) }
    })?;
    let left = pair.topology.gateway_a.ip("route show table all proto 178")?;
    assert_eq!(left.trim(), "");
    Ok(())
}

/// Both ends are others': the tunnel wireguard-go's, which knows no route but what FRR puts, and the session FRR's.
fn frr_over_wireguard() -> Outcome {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let keys = Pairs::generate(&topology)?;
    let _peer = wireguard::peer_routed(&topology, Implementation::Go, &keys, ("", ""), &[])?;
    let text = wireguard::braid(&[path.a.to_string(), path.b.to_string()], &keys, "initiate", "");
    let neighbor = format!("[[bgp.neighbor]]\ntunnel = \"wg\"\nasn = {THEIRS}\nhold-time = \"9s\"\n");
    let mut gateway = Gateway::start(&topology.gateway_a, &with_bgp(text, &neighbor))?;
    gateway.wait_up(SOON)?;
    let mut speaker = far(1);
    let peer = &mut speaker.peers[0];
    (peer.address, peer.local) = ("169.254.10.2".to_owned(), "169.254.10.1".to_owned());
    peer.local6 = "fd00:ffff::1".to_owned();
    let frr = Frr::speak(&topology.gateway_b, &speaker)?;
    let learned = |status: &Value| established(status) == 1 && both_ways(status, &["wg"]);
    until(&gateway, "routes by the tunnel", learned)?;
    answered(&topology)?;
    // A tunnel that is cut takes its neighbor and the routes along, and brings them back.
    let faults = topology.cut(0)?;
    until(&gateway, "no route", |status| established(status) == 0 && both_ways(status, &[]))?;
    for fault in faults {
        fault.undo()?;
    }
    until(&gateway, "routes again", learned)?;
    answered(&topology)?;
    drop(frr);
    until(&gateway, "no neighbor", |status| established(status) == 0 && both_ways(status, &[]))?;
    Ok(())
}

fn frr_over_two_tunnels() -> Outcome {
    let pair = start(2, &neighbors(2, "hold-time = \"9s\""))?;
    let topology = &pair.topology;
    let frr = Frr::speak(&topology.gateway_b, &far(2))?;
    until(&pair.a, "routes by both", |status| both_ways(status, &["t0", "t1"]))?;
    answered(topology)?;
    let origin = Instant::now();
    let load = Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?;
    retry_until("both tunnels carry", SOON, || {
        let status = pair.a.status().map_err(|error| error.to_string())?;
        let sent = |index: usize| status["tunnels"][index]["tx_packets"].as_u64().unwrap_or_default();
        if sent(0) > 1000 && sent(1) > 1000 { Ok(()) } else { Err(format!("{} and {}", sent(0), sent(1))) }
    })?;
    // Cut silently: masked by the probes, and the neighbor goes with its tunnel.
    let faults = topology.cut(0)?;
    let status = until(&pair.a, "routes by t1 alone", |status| both_ways(status, &["t1"]))?;
    assert_eq!(established(&status), 1, "{status}");
    answered(topology)?;
    for fault in faults {
        fault.undo()?;
    }
    until(&pair.a, "both again", |status| established(status) == 2 && both_ways(status, &["t0", "t1"]))?;
    answered(topology)?;
    let log = load.finish()?;
    // Of one half of the flows, what was on its way to a tunnel that was cut.
    let lost = log.lost().len();
    assert!(lost > 0 && lost * 2 < log.sent(), "{lost} of {} lost", log.sent());
    // The far side names another tunnel as the better one, as AWS does when it is about to work on the other: what is
    // busy there ends there.
    let load = Paced::start(&topology.client, &topology.server, SERVER, BUSY, Instant::now())?;
    let med = |med: u32| -> Outcome {
        frr.configure(&["route-map to0 permit 10", &format!("set metric {med}")])?;
        frr.vtysh("clear bgp * soft out")?;
        Ok(())
    };
    med(50)?;
    let status = until(&pair.a, "the lower MED", |status| both_ways(status, &["t0"]))?;
    assert_eq!(status["tunnels"][1]["state"], "standby", "{status}");
    let sent = |status: &Value| status["tunnels"][1]["tx_packets"].as_u64().unwrap_or_default();
    let before = sent(&status);
    until(&pair.a, "more of the busy flows", |status| sent(status) > before + 1000)?;
    med(100)?;
    until(&pair.a, "the same MED", |status| both_ways(status, &["t0", "t1"]))?;
    assert_eq!(load.finish()?.flaw(), None);
    answered(topology)
}

/// A router outside the tunnels, by address and interface: what it sends is the kernel's, and is told to the far
/// side, since `export` names it; what the far side sends is told to it.
fn a_router_on_the_lan() -> Outcome {
    const BEHIND: &str = "10.9.0.0/16";
    let bgp = format!(
        "{}[[bgp.neighbor]]\nname = \"lan-router\"\naddress = \"{CLIENT}\"\ninterface = \"lan0\"\n\
         asn = 65100\nexport = [\"bgp:t0\"]\n",
        neighbors(1, "export = [\"bgp:lan-router\"]")
    );
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let pair = Pair::start_edited(&setup, Topology::builder().build()?, |side, text| match side {
        Side::A => with_bgp(patient(text), &bgp),
        Side::B => patient(text) + &format!("\n[[route]]\nprefix = \"{BEHIND}\"\nvia = [\"t0\"]\n"),
    })?;
    let topology = &pair.topology;
    topology.client.ip("address add 10.9.0.1/32 dev lo")?;
    let router = Speaker {
        asn: 65_100,
        id: "10.9.0.1".to_owned(),
        networks: vec![BEHIND.to_owned()],
        peers: vec![Peer {
            address: "10.1.0.1".to_owned(),
            local: CLIENT.to_owned(),
            local6: CLIENT6.to_owned(),
            ..far(1).peers.remove(0)
        }],
        ..far(1)
    };
    let bird = Bird::start(&topology.client, &router, &[])?;
    let frr = Frr::speak(&topology.gateway_b, &far(1))?;
    let status = until(&pair.a, "both neighbors", |status| {
        established(status) == 2
            && both_ways(status, &["t0"])
            && status["routes"].to_string().contains(BEHIND)
    })?;
    let routes = status["routes"].as_array().into_iter().flatten();
    let route = routes.into_iter().find(|route| route["prefix"] == BEHIND);
    let path = route.map(|route| route["paths"][0].clone()).unwrap_or_default();
    assert_eq!(
        (path["interface"].as_str(), path["gateway"].as_str()),
        (Some("lan0"), Some(CLIENT)),
        "{status}"
    );
    retry_until("the far side told", SOON, || {
        let said =
            frr.json(&format!("show bgp ipv4 unicast {BEHIND} json")).map_err(|error| error.to_string())?;
        let way = said["paths"][0]["aspath"]["string"].as_str().unwrap_or_default().to_owned();
        if way == format!("{OURS} 65100") { Ok(()) } else { Err(said.to_string()) }
    })?;
    retry_until("the router told", SOON, || {
        let said = bird.birdc(&["show", "route", "for", SERVER, "all"]).map_err(|error| error.to_string())?;
        if said.contains(&format!("BGP.as_path: {OURS} {THEIRS}")) { Ok(()) } else { Err(said) }
    })?;
    retry_until("an answer from behind the router", SOON, || {
        match ping(&topology.server, "10.9.0.1", &FEW) {
            Ok(result) if result.rtt_ms.len() == 3 => Ok(()),
            Ok(result) => Err(format!("{} of 3", result.rtt_ms.len())),
            Err(error) => Err(error.to_string()),
        }
    })?;
    Ok(())
}

fn many_routes_from_bird() -> Outcome {
    const MANY: u64 = 100_000;
    let pair = start(1, &neighbors(1, ""))?;
    let topology = &pair.topology;
    // From 11.0.0.0 on.
    let route = |index: u64| format!("{}.{}.{}.0/24", 11 + (index >> 16), (index >> 8) & 255, index & 255);
    let routes: Vec<String> = (0..MANY).map(route).collect();
    let bird = Bird::start(&topology.gateway_b, &far(1), &routes)?;
    let neighbor = |status: &Value, what: &str| status["neighbors"][0][what].as_u64();
    until(&pair.a, "all routes", |status| neighbor(status, "accepted") == Some(MANY + 2))?;
    let gateway = &topology.gateway_a;
    retry_until("all routes in the kernel", SOON, || {
        let there = mirrored(gateway).map_err(|error| error.to_string())?;
        if there as u64 == MANY + 2 { Ok(()) } else { Err(there.to_string()) }
    })?;
    answered(topology)?;
    let way = pair.a.braid(&["path", "11.77.3.9"])?;
    assert!(way.status.success() && way.stdout.contains("11.77.3.0/24"), "{} {}", way.stdout, way.stderr);
    // Another life of control takes over what is there.
    kill_part(gateway, "braid-control")?;
    until(&pair.a, "all routes again", |status| neighbor(status, "accepted") == Some(MANY + 2))?;
    // A neighbor without graceful restart does not say when it has said all: what comes late goes and comes again.
    retry_until("all routes in the kernel again", SOON, || {
        let there = mirrored(gateway).map_err(|error| error.to_string())?;
        if there as u64 == MANY + 2 { Ok(()) } else { Err(there.to_string()) }
    })?;
    // And all of it goes.
    bird.birdc(&["disable", "peer0"])?;
    retry_until("no route in the kernel", SOON, || {
        let there = mirrored(gateway).map_err(|error| error.to_string())?;
        if there == 0 { Ok(()) } else { Err(there.to_string()) }
    })
    .map_err(Into::into)
}

/// When the gateway was killed, and when the next start fails.
fn what_was_learned_stays_unreachable() -> Outcome {
    let mut pair = start(1, &neighbors(1, ""))?;
    let netns = &pair.topology.gateway_a;
    let _other = Frr::speak(&pair.topology.gateway_b, &far(1))?;
    until(&pair.a, "routes", |status| both_ways(status, &["t0"]))?;
    let guards = || netns.ip("route show table all proto 178 type unreachable");
    retry_until("a guard of what was learned", SOON, || match guards() {
        Ok(shown) if shown.contains(NET_B) => Ok(()),
        Ok(shown) => Err(shown),
        Err(error) => Err(error.to_string()),
    })?;
    let text = std::fs::read_to_string(pair.a.configuration())?;
    pair.a.process().signal(nix::sys::signal::Signal::SIGKILL);
    pair.a.process().wait(SOON)?;
    retry_until("the others to end", SOON, || match netns.processes() {
        Ok(left) if left.is_empty() => Ok(()),
        Ok(left) => Err(format!("{left:?}")),
        Err(error) => Err(error.to_string()),
    })?;
    assert!(guards()?.contains(NET_B));
    // Another's device has the name of ours.
    netns.ip("tuntap add braid0 mode tun")?;
    assert_eq!(Gateway::start(netns, &text)?.process().wait(SOON)?.code(), Some(2));
    netns.ip("link del braid0")?;
    assert!(guards()?.contains(NET_B), "a start that failed took it");
    let mut next = Gateway::start(netns, &text)?;
    until(&next, "routes", |status| both_ways(status, &["t0"]))?;
    assert_eq!(next.process().stop(SOON)?.code(), Some(0));
    assert_eq!(guards()?, "");
    Ok(())
}

/// Sessions that we begin are there all the same, doctor says what is missing, and the port is taken once it is free.
fn a_port_that_another_program_has() -> Outcome {
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let topology = Topology::builder().build()?;
    // Without a listener behind it, so that who calls is refused.
    let taken = topology.gateway_a.enter(|| -> nix::Result<OwnedFd> {
        let kind = (AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC);
        let taken = socket(kind.0, kind.1, kind.2, None)?;
        bind(taken.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 179))?;
        Ok(taken)
    })??;
    let pair = Pair::start_edited(&setup, topology, |side, text| match side {
        Side::A => with_bgp(patient(text), &neighbors(1, "")),
        Side::B => patient(text),
    })?;
    let _other = Frr::speak(&pair.topology.gateway_b, &far(1))?;
    until(&pair.a, "the session", |status| established(status) == 1)?;
    let others = || -> Result<Value> {
        let said = pair.a.braid(&["doctor", "--json"])?.stdout;
        let report: Value =
            serde_json::from_str(&said).map_err(|bad| braid_netns::Error::parse("doctor", bad))?;
        Ok(report["others"].clone())
    };
    let found = others()?;
    let problem = found[0]["problem"].as_str().unwrap_or_default();
    assert!(problem.starts_with("cannot listen on 169.254.10.1:179: Address already in use"), "{found}");
    drop(taken);
    retry_until("nothing to be found", SOON, || match others() {
        Ok(found) if found == serde_json::json!([]) => Ok(()),
        Ok(found) => Err(found.to_string()),
        Err(error) => Err(error.to_string()),
    })?;
    Ok(())
}

/// Nobody there, a password that only one end has, and AS numbers that either side does not expect.
fn doctor_says_why_there_is_no_session() -> Outcome {
    let pair = start(1, &neighbors(1, ""))?;
    let says = |key: &str, problem: &str| {
        retry_until(problem, SOON, || {
            let said = pair.a.braid(&["doctor", "--json"]).map_err(|error| error.to_string())?.stdout;
            let report: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
            let finding = &report["tunnels"][0]["findings"][0];
            let fits = finding["key"] == key
                && finding["problem"].as_str().is_some_and(|text| text.contains(problem));
            if fits && finding["step"] == "BGP with t0" { Ok(()) } else { Err(said) }
        })
    };
    says("bgp.neighbor.address", "169.254.10.2 refuses TCP port 179: there is no BGP speaker")?;
    let text = patient(Setup { tunnels: 1, ..Setup::default() }.configuration(Side::A, &pair.topology.paths));
    pair.a.write_configuration(&with_bgp(text, &neighbors(1, "md5 = \"between-us\"")))?;
    let reload = pair.a.braid(&["reload"])?;
    assert!(reload.status.success(), "{}", reload.stderr);
    let signed = || {
        let mut speaker = far(1);
        speaker.peers[0].md5 = Some("between-us".to_owned());
        speaker
    };
    let netns = &pair.topology.gateway_b;
    let other = Frr::speak(netns, &far(1))?;
    says("bgp.neighbor.md5", "its MD5 password is another, it has none, or no BGP speaker runs there")?;
    drop(other);
    let other = Frr::speak(netns, &Speaker { asn: THEIRS + 1, ..signed() })?;
    says("bgp.neighbor.asn", "169.254.10.2 says that its AS number is 64513, 64512 is expected")?;
    drop(other);
    let mut speaker = signed();
    speaker.peers[0].asn = OURS + 1;
    let other = Frr::speak(netns, &speaker)?;
    says("bgp.asn", "169.254.10.2 expects another AS number than ours, which is 65010")?;
    drop(other);
    let _right = Frr::speak(netns, &signed())?;
    until(&pair.a, "the session", |status| established(status) == 1)?;
    let said = pair.a.braid(&["doctor"])?.stdout;
    assert!(!said.contains("BGP"), "{said}");
    Ok(())
}

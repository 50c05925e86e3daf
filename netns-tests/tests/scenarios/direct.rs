//! A plain interface as a path, as with Direct Connect: preferred while it is there, with the tunnels behind it.
//!
//! The gateways share a link `dx0` besides the outer paths. What goes over it is plain by the user's own choice.

use crate::bgp::{OURS, SOON, THEIRS, established, far, far_with_bgp, neighbors, until, with_bgp};
use crate::kernel::{kill_part, signal_part};
use crate::pair::{Pair, Setup, Side, patient};
use braid_netns::capture::{Capture, Packet};
use braid_netns::fault::cut;
use braid_netns::frr::Frr;
use braid_netns::gateway::Gateway;
use braid_netns::paced::{Load, Paced};
use braid_netns::routing::{Bird, Peer};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, CLIENT6, NET_A, NET_A6, NET_B, NET_B6, SERVER, SERVER6};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Netns, Result, Topology, retry_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("direct::a_static_route_over_a_link", || a_static_route_over_a_link(&V4)),
    ("direct::a_static_ipv6_route_over_a_link", || a_static_route_over_a_link(&V6)),
    ("direct::a_router_on_a_link_before_tunnels", || a_router_on_a_link_before_tunnels(&V4)),
    ("direct::an_ipv6_router_on_a_link_before_tunnels", || a_router_on_a_link_before_tunnels(&V6)),
    ("direct::a_next_hop_is_on_the_link_or_unreachable", a_next_hop_is_on_the_link_or_unreachable),
    ("direct::bfd_on_a_link_with_frr", bfd_on_a_link_with_frr),
    ("direct::bfd_on_a_link_between_two_gateways", bfd_on_a_link_between_two_gateways),
    ("direct::the_next_hop_of_another_program_stays", the_next_hop_of_another_program_stays),
    ("direct::many_prefixes_leave_a_link_as_one", many_prefixes_leave_a_link_as_one),
];

pub(crate) const LINK: &str = "dx0";
pub(crate) const NEAR: &str = "10.9.0.1";
pub(crate) const FAR: &str = "10.9.0.2";
const NEAR6: &str = "fd00:9::1";
const FAR6: &str = "fd00:9::2";

/// What crosses the link, of one family.
struct Ends {
    client: &'static str,
    server: &'static str,
    net_a: &'static str,
    net_b: &'static str,
    near: &'static str,
    far: &'static str,
    /// As `ip` and pcap call it.
    family: &'static str,
    icmp: &'static str,
    /// A prefix that nobody has.
    nowhere: &'static str,
}

const V4: Ends = Ends {
    client: CLIENT,
    server: SERVER,
    net_a: NET_A,
    net_b: NET_B,
    near: NEAR,
    far: FAR,
    family: "-4",
    icmp: "icmp",
    nowhere: "198.51.100.0/24",
};
const V6: Ends = Ends {
    client: CLIENT6,
    server: SERVER6,
    net_a: NET_A6,
    net_b: NET_B6,
    near: NEAR6,
    far: FAR6,
    family: "-6",
    icmp: "icmp6",
    nowhere: "2001:db8:77::/48",
};
/// Each way.
const LOAD: Load = Load::told_apart(64, 2);
const FEW: Pings = Pings { count: 5, interval: Duration::from_millis(20), size: 56, df: false };
/// From the loss of a link to the last flow on a tunnel; far more than it takes.
const MOVED: Duration = Duration::from_secs(3);

/// The standard network, with the link.
pub(crate) fn topology(paths: usize) -> Result<Topology> {
    let topology = Topology::builder().paths(paths).build()?;
    topology.gateway_a.veth(LINK, &topology.gateway_b, LINK, 1500)?;
    topology.gateway_a.address(LINK, &format!("{NEAR}/30"))?;
    topology.gateway_b.address(LINK, &format!("{FAR}/30"))?;
    topology.gateway_a.sysctl(&keeps_addresses(), "1")?;
    topology.gateway_a.address(LINK, &format!("{NEAR6}/64"))?;
    topology.gateway_b.address(LINK, &format!("{FAR6}/64"))?;
    Ok(topology)
}

/// Tunnels behind the link: for one prefix.
fn behind_link(text: &str, prefix: &str, gateway: &str) -> String {
    let route = format!("\n[[route]]\nprefix = \"{prefix}\"\n");
    text.replace(&route, &format!("{route}distance = 5\n"))
        + &format!("{route}via = [{{ interface = \"{LINK}\", gateway = \"{gateway}\" }}]\n")
}

/// What carries a prefix, as the status says.
pub(crate) fn carries(status: &Value, prefix: &str) -> Vec<String> {
    let routes = status["routes"].as_array().into_iter().flatten();
    let paths = routes.filter(|route| route["prefix"] == prefix);
    let paths = paths.flat_map(|route| route["paths"].as_array().into_iter().flatten());
    let active = paths.filter(|path| path["active"] == true);
    let mut names: Vec<String> = active
        .filter_map(|path| path["tunnel"].as_str().or(path["interface"].as_str()))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Pings each way, and looks that they go by this device and not by the other, if that is up.
fn crosses_by(topology: &Topology, ends: &Ends, device: &str, other: Option<&str>) -> Outcome {
    let netns = &topology.gateway_a;
    let used = Capture::start(netns, device, ends.icmp, 64)?;
    let idle = other.map(|other| Capture::start(netns, other, ends.icmp, 64)).transpose()?;
    for (from, to) in [(&topology.client, ends.server), (&topology.server, ends.client)] {
        assert_eq!(ping(from, to, &FEW)?.rtt_ms.len(), 5, "{to} by {device}");
    }
    let of_pings = |packets: Vec<Packet>| {
        let ends = |packet: &Packet| {
            packet.headers().is_some_and(|headers| {
                [headers.source, headers.destination]
                    .iter()
                    .all(|end| [ends.client, ends.server].contains(&&*end.to_string()))
            })
        };
        packets.iter().filter(|packet| ends(packet)).count()
    };
    assert_eq!(of_pings(used.stop()?), 20, "on {device}");
    if let Some(idle) = idle {
        assert_eq!(of_pings(idle.stop()?), 0, "on {other:?}");
    }
    Ok(())
}

fn loads(topology: &Topology, ends: &Ends, origin: Instant) -> Result<[Paced; 2]> {
    Ok([
        Paced::start(&topology.client, &topology.server, ends.server, LOAD, origin)?,
        Paced::start(&topology.server, &topology.client, ends.client, LOAD, origin)?,
    ])
}

/// Routes that Braid has over links.
fn over_links(netns: &Netns, ends: &Ends) -> Result<Vec<String>> {
    let text = netns.ip(&format!("{} route show table all proto 178", ends.family))?;
    Ok(text.lines().filter(|line| line.contains(&format!("dev {LINK}"))).map(str::to_owned).collect())
}

/// Its next-hop objects.
fn next_hops(netns: &Netns) -> Result<Vec<String>> {
    Ok(netns.ip("-o nexthop show proto 178")?.lines().map(str::to_owned).collect())
}

/// Waits until so many routes go over the link.
fn until_over_links(netns: &Netns, ends: &Ends, count: usize) -> Outcome {
    retry_until(&format!("{count} routes over the link"), SOON, || match over_links(netns, ends) {
        Ok(found) if found.len() == count => Ok(()),
        Ok(found) => Err(found.len().to_string()),
        Err(error) => Err(error.to_string()),
    })
    .map_err(Into::into)
}

/// The link is lost under load and comes back: the loss costs what it takes to hear of it, the return nothing.
fn lost_and_back(pair: &Pair, ends: &Ends, tunnels: &[&str], on_link: impl Fn(&Value) -> bool) -> Outcome {
    let topology = &pair.topology;
    let origin = Instant::now();
    let under_way = loads(topology, ends, origin)?;
    let lost_at = origin.elapsed();
    topology.gateway_a.ip(&format!("link set {LINK} down"))?;
    until(&pair.a, "the tunnels to carry", |status| carries(status, ends.net_b) == tunnels)?;
    retry_until("all flows by the tunnels", SOON, || {
        (origin.elapsed() > lost_at + MOVED).then_some(()).ok_or("not yet")
    })?;
    for load in under_way {
        let log = load.finish()?;
        let resumed = log.resumed(lost_at);
        assert_eq!(resumed.len(), LOAD.flows, "every flow goes on");
        let slowest = resumed.iter().map(|(_, at)| *at - lost_at).max().unwrap_or_default();
        assert!(slowest < MOVED, "the slowest flow came back after {slowest:?}");
    }
    crosses_by(topology, ends, "braid0", None)?;
    let origin = Instant::now();
    let under_way = loads(topology, ends, origin)?;
    topology.gateway_a.ip(&format!("link set {LINK} up"))?;
    until(&pair.a, "the link to carry", &on_link)?;
    for load in under_way {
        let log = load.finish()?;
        assert_eq!((log.lost(), log.refused, log.damaged), (Vec::new(), 0, 0), "of {}", log.sent());
    }
    crosses_by(topology, ends, LINK, Some("braid0"))?;
    if ends.family == "-4" {
        return Ok(());
    }
    // As kernels do by themselves: the address goes with the link, and comes back after it.
    topology.gateway_a.sysctl(&keeps_addresses(), "0")?;
    topology.gateway_a.ip(&format!("link set {LINK} down"))?;
    until(&pair.a, "the tunnels to carry", |status| carries(status, ends.net_b) == tunnels)?;
    topology.gateway_a.ip(&format!("link set {LINK} up"))?;
    retry_until("the link without a way to the gateway", SOON, || {
        match topology.gateway_a.ip("-6 route show") {
            Ok(routes) if routes.contains(&format!("fe80::/64 dev {LINK}")) => Ok(()),
            Ok(routes) => Err(routes),
            Err(error) => Err(error.to_string()),
        }
    })?;
    topology.gateway_a.address(LINK, &format!("{}/64", ends.near))?;
    until_over_links(&topology.gateway_a, ends, 1)?;
    until(&pair.a, "the link to carry", &on_link)?;
    crosses_by(topology, ends, LINK, Some("braid0"))
}

/// Whether IPv6 addresses outlive the link.
fn keeps_addresses() -> String {
    format!("net/ipv6/conf/{LINK}/keep_addr_on_down")
}

fn a_static_route_over_a_link(ends: &Ends) -> Outcome {
    let setup = Setup::default();
    let mut pair = Pair::start_edited(&setup, topology(2)?, |side, text| match side {
        Side::A => behind_link(&patient(text), ends.net_b, ends.far),
        Side::B => behind_link(&patient(text), ends.net_a, ends.near),
    })?;
    let on_link = |status: &Value| carries(status, ends.net_b) == [LINK];
    until(&pair.a, "the link to carry", on_link)?;
    crosses_by(&pair.topology, ends, LINK, Some("braid0"))?;
    lost_and_back(&pair, ends, &["t0", "t1"], on_link)?;
    // Control dies: the link carries all the while.
    let under_way = loads(&pair.topology, ends, Instant::now())?;
    kill_part(&pair.topology.gateway_a, "braid-control")?;
    until(&pair.a, "the link to carry", on_link)?;
    for load in under_way {
        assert_eq!(load.finish()?.flaw(), None);
    }
    // A reload takes the link out of the configuration, and puts it back.
    let plain = patient(setup.configuration(Side::A, &pair.topology.paths));
    let under_way = loads(&pair.topology, ends, Instant::now())?;
    for (text, by) in
        [(plain.clone(), &["t0", "t1"][..]), (behind_link(&plain, ends.net_b, ends.far), &[LINK])]
    {
        pair.a.write_configuration(&text)?;
        assert!(pair.a.braid(&["reload"])?.status.success());
        until(&pair.a, "the other way", |status| carries(status, ends.net_b) == by)?;
    }
    for load in under_way {
        let log = load.finish()?;
        assert_eq!((log.lost(), log.refused, log.damaged), (Vec::new(), 0, 0), "of {}", log.sent());
    }
    let both = |netns: &Netns| {
        Ok::<_, braid_netns::Error>((over_links(netns, ends)?.len(), next_hops(netns)?.len()))
    };
    assert_eq!(both(&pair.topology.gateway_a)?, (1, 1));
    // What a gateway that was killed leaves, the next one removes, and a clean end leaves nothing.
    pair.a.process().signal(Signal::SIGKILL);
    pair.a.process().wait(SOON)?;
    let netns = &pair.topology.gateway_a;
    retry_until("the others to end", SOON, || match netns.processes() {
        Ok(left) if left.is_empty() => Ok(()),
        Ok(left) => Err(format!("{left:?}")),
        Err(error) => Err(error.to_string()),
    })?;
    // Versions before next-hop objects left their routes by themselves.
    netns.ip(&format!("route add {} via {} dev {LINK} proto 178 metric 51", ends.nowhere, ends.far))?;
    assert_eq!(both(netns)?, (2, 1));
    let mut next = Gateway::start(netns, &plain)?;
    until(&next, "its plan", |status| status["core"] == true)?;
    until_over_links(netns, ends, 0)?;
    assert_eq!(both(netns)?, (0, 0));
    next.write_configuration(&behind_link(&plain, ends.net_b, ends.far))?;
    assert!(next.braid(&["reload"])?.status.success());
    until(&next, "the link to carry", on_link)?;
    next.process().stop(SOON)?;
    assert_eq!(both(netns)?, (0, 0));
    Ok(())
}

/// It has the number that would be the gateway's first: there is no route by it then, but none of its own is lost.
fn the_next_hop_of_another_program_stays() -> Outcome {
    const ID: u32 = 0xb200_0000;
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let topology = topology(1)?;
    topology.gateway_a.ip(&format!("nexthop add id {ID} via {CLIENT} dev lan0"))?;
    topology.gateway_a.ip(&format!("route add 198.18.0.0/24 nhid {ID}"))?;
    let mut pair = Pair::start_edited(&setup, topology, |side, text| match side {
        Side::A => behind_link(&patient(text), NET_B, FAR),
        Side::B => patient(text),
    })?;
    pair.a.process().wait_for_output("refuses 10.9.0.2 on dx0 as a next hop", SOON)?;
    // What stands behind the link carries.
    let netns = pair.topology.gateway_a.clone();
    assert_eq!(over_links(&netns, &V4)?.len(), 0);
    assert_eq!(ping(&pair.topology.client, SERVER, &FEW)?.rtt_ms.len(), 5);
    let stays = || -> Outcome {
        assert!(netns.ip("nexthop show")?.contains(&format!("id {ID} via {CLIENT}")));
        assert!(netns.ip("route show")?.contains("198.18.0.0/24"));
        Ok(())
    };
    let plain = patient(setup.configuration(Side::A, &pair.topology.paths));
    pair.a.write_configuration(&plain)?;
    assert!(pair.a.braid(&["reload"])?.status.success());
    until(&pair.a, "the tunnel", |status| carries(status, NET_B) == ["t0"])?;
    stays()?;
    pair.a.process().stop(SOON)?;
    stays()
}

/// The far router announces the same prefix on the link and in the tunnel; the link is preferred.
fn a_router_on_a_link_before_tunnels(ends: &Ends) -> Outcome {
    let pair = beside_link(&preferred_neighbor(ends.far, THEIRS), ends)?;
    let mut speaker = far(1);
    let on_link = Peer {
        address: ends.near.to_owned(),
        local: ends.far.to_owned(),
        local6: FAR6.to_owned(),
        ..speaker.peers[0].clone()
    };
    speaker.peers.push(on_link);
    let _frr = Frr::speak(&pair.topology.gateway_b, &speaker)?;
    let on_link = |status: &Value| established(status) == 2 && carries(status, ends.net_b) == [LINK];
    until(&pair.a, "the link to carry, the tunnel to stand by", |status| {
        let stands_by = status["routes"].to_string().contains("\"active\":false,\"tunnel\":\"t0\"");
        on_link(status) && stands_by
    })?;
    crosses_by(&pair.topology, ends, LINK, Some("braid0"))?;
    lost_and_back(&pair, ends, &["t0"], on_link)?;
    assert_eq!(over_links(&pair.topology.gateway_a, ends)?.len(), 1);
    Ok(())
}

/// A router on the link names another next hop, which counts only where an address of ours shares its network.
fn a_next_hop_is_on_the_link_or_unreachable() -> Outcome {
    const OTHER: &str = "10.9.1.2";
    let pair = beside_link(&preferred_neighbor(FAR, THEIRS), &V4)?;
    let netns = &pair.topology.gateway_a;
    pair.topology.gateway_b.address(LINK, &format!("{OTHER}/24"))?;
    let mut speaker = far(1);
    let on_link = Peer { address: NEAR.to_owned(), local: FAR.to_owned(), ..speaker.peers[0].clone() };
    speaker.peers.push(on_link);
    let frr = Frr::speak(&pair.topology.gateway_b, &speaker)?;
    let by =
        |way: &'static str| move |status: &Value| established(status) == 2 && carries(status, NET_B) == [way];
    until(&pair.a, "the link to carry", by(LINK))?;
    frr.configure(&["route-map to1 permit 10", &format!("set ip next-hop {OTHER}")])?;
    until(&pair.a, "the tunnel to carry", by("t0"))?;
    let why = pair.a.braid(&["routes", NET_B, "--why"])?.stdout;
    let line = why.lines().find(|line| line.contains(OTHER)).ok_or_else(|| why.clone())?;
    assert!(line.ends_with("next hop not reachable"), "{why}");
    // An address alone makes it one of the link's; that its interface was up all the time.
    netns.address(LINK, "10.9.1.1/24")?;
    until(&pair.a, "the link to carry again", by(LINK))?;
    retry_until("the next hop", SOON, || match netns.ip("nexthop show") {
        Ok(there) if there.contains(&format!("via {OTHER} dev {LINK}")) => Ok(()),
        Ok(there) => Err(there),
        Err(error) => Err(error.to_string()),
    })?;
    crosses_by(&pair.topology, &V4, LINK, Some("braid0"))?;
    netns.ip(&format!("addr del 10.9.1.1/24 dev {LINK}"))?;
    until(&pair.a, "the tunnel to carry again", by("t0"))?;
    assert_eq!(established(&pair.a.status()?), 2);
    Ok(())
}

/// What a BGP neighbor on the link is configured by: preferred.
fn preferred_neighbor(address: &str, asn: u32) -> String {
    format!(
        "[[bgp.neighbor]]\nname = \"direct\"\naddress = \"{address}\"\ninterface = \"{LINK}\"\n\
         asn = {asn}\nlocal-preference = 200\n"
    )
}

/// The same, and watched.
fn watched_neighbor(address: &str, asn: u32) -> String {
    preferred_neighbor(address, asn) + "bfd = { interval = \"50ms\", multiplier = 3 }\n"
}

/// A tunnel beside the link: A speaks BGP in it and to this neighbor, B is to have FRR beside it.
fn beside_link(neighbor: &str, ends: &Ends) -> Result<Pair> {
    let bgp = neighbors(1, "") + neighbor;
    let setup = Setup { tunnels: 1, ..Setup::default() };
    Pair::start_edited(&setup, topology(1)?, |side, text| match side {
        Side::A => with_bgp(patient(text), &bgp),
        Side::B => behind_link(&patient(text), ends.net_a, ends.near),
    })
}

fn bfd_of_link(status: &Value) -> &Value {
    let neighbors = status["neighbors"].as_array().into_iter().flatten();
    neighbors
        .filter(|neighbor| neighbor["name"] == "direct")
        .map(|neighbor| &neighbor["bfd"])
        .next()
        .unwrap_or(&Value::Null)
}

/// Packets vanish on the link, which stays up, under load; then they do not any more.
fn vanishes_and_back(pair: &Pair, loads: Vec<Paced>, origin: Instant) -> Outcome {
    let topology = &pair.topology;
    let lost_at = origin.elapsed();
    let faults = [cut(&topology.gateway_a, &[LINK])?, cut(&topology.gateway_b, &[LINK])?];
    let status = until(&pair.a, "the tunnel to carry", |status| carries(status, NET_B) == ["t0"])?;
    let direct = &status["neighbors"][1];
    assert_eq!((&direct["name"], &direct["bfd"]["state"]), (&"direct".into(), &"down".into()), "{direct}");
    assert_eq!(direct["reason"], "BFD says that the path is down", "{direct}");
    retry_until("all flows by the tunnel", SOON, || {
        (origin.elapsed() > lost_at + MOVED).then_some(()).ok_or("not yet")
    })?;
    for load in loads {
        let resumed = load.finish()?.resumed(lost_at);
        assert_eq!(resumed.len(), LOAD.flows, "every flow goes on");
        let slowest = resumed.iter().map(|(_, at)| *at - lost_at).max().unwrap_or_default();
        // The hold time is 9 s and more.
        assert!(slowest < MOVED, "the slowest flow came back after {slowest:?}");
    }
    for fault in faults {
        fault.undo()?;
    }
    let on_link = |status: &Value| established(status) == 2 && carries(status, NET_B) == [LINK];
    until(&pair.a, "the link to carry again", on_link)?;
    Ok(())
}

/// As above, where packets vanish: FRR's bfdd is heard on the link.
fn bfd_on_a_link_with_frr() -> Outcome {
    let pair = beside_link(&watched_neighbor(FAR, THEIRS), &V4)?;
    let netns = &pair.topology.gateway_b;
    let peer = format!("peer {NEAR} local-address {FAR} interface {LINK}");
    let bfdd = format!(
        "bfd\n {peer}\n  detect-multiplier 3\n  receive-interval 50\n  transmit-interval 50\n !\n!\n"
    );
    let mut speaker = far(1);
    let on_link = Peer { address: NEAR.to_owned(), local: FAR.to_owned(), ..speaker.peers[0].clone() };
    speaker.peers.push(on_link);
    let mut frr = Frr::speak(netns, &speaker)?;
    // Nobody answers to BFD yet: that is no verdict.
    let on_link = |status: &Value| established(status) == 2 && carries(status, NET_B) == [LINK];
    let status = until(&pair.a, "the link to carry", on_link)?;
    assert_eq!(bfd_of_link(&status)["state"], "down", "{status}");
    let seen = Capture::start(netns, LINK, "udp port 3784", 128)?;
    frr.add("bfdd", &bfdd)?;
    let is_up = |status: &Value| {
        let bfd = bfd_of_link(status);
        on_link(status) && bfd["state"] == "up" && bfd["interval_ms"] == 50.0 && bfd["multiplier"] == 3
    };
    until(&pair.a, "BFD to be up", is_up)?;
    // Control is killed: the session goes on.
    kill_part(&pair.topology.gateway_a, "braid-control")?;
    until(&pair.a, "BFD to be up", is_up)?;
    let counters = frr.json("show bfd peers counters json")?;
    assert_eq!(counters[0]["session-down"], 0, "{counters}");
    // RFC 5881 sections 4 and 5.
    let ours = seen.stop()?;
    let ours: Vec<&Packet> =
        ours.iter().filter(|packet| packet.ip.get(12..16) == Some(&[10, 9, 0, 1])).collect();
    assert!(ours.len() > 10, "{} packets", ours.len());
    for packet in ours {
        let port = u16::from_be_bytes([packet.ip[20], packet.ip[21]]);
        assert!(packet.ip[8] == 255 && port >= 49_152, "TTL {}, port {port}", packet.ip[8]);
    }
    // Disabled by its user: no verdict.
    frr.configure(&["bfd", &peer, "shutdown"])?;
    until(&pair.a, "BFD to be down", |status| bfd_of_link(status)["state"] == "down")?;
    assert!(on_link(&pair.a.status()?));
    frr.configure(&["bfd", &peer, "no shutdown"])?;
    until(&pair.a, "BFD to be up", is_up)?;
    // The other way FRR decides, which is not asked to listen to its bfdd.
    let origin = Instant::now();
    let load = Paced::start(&pair.topology.client, &pair.topology.server, SERVER, LOAD, origin)?;
    vanishes_and_back(&pair, vec![load], origin)
}

/// Both ends leave the link.
fn bfd_on_a_link_between_two_gateways() -> Outcome {
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let pair = Pair::start_edited(&setup, topology(1)?, |side, text| match side {
        Side::A => with_bgp(patient(text), &(neighbors(1, "") + &watched_neighbor(FAR, THEIRS))),
        Side::B => far_with_bgp(&patient(text), 1) + &watched_neighbor(NEAR, OURS),
    })?;
    let ready = |prefix: &'static str| {
        move |status: &Value| {
            let bfd = bfd_of_link(status)["state"] == "up";
            bfd && established(status) == 2 && carries(status, prefix) == [LINK]
        }
    };
    for (gateway, prefix) in [(&pair.a, NET_B), (&pair.b, NET_A)] {
        until(gateway, "the link to carry", ready(prefix))?;
    }
    let origin = Instant::now();
    vanishes_and_back(&pair, loads(&pair.topology, &V4, origin)?.into(), origin)?;
    until(&pair.b, "the link to carry", ready(NET_A))?;
    crosses_by(&pair.topology, &V4, LINK, Some("braid0"))
}

/// A full table over the link, with the tunnel behind it, and the load to one of the last prefixes in it.
fn many_prefixes_leave_a_link_as_one() -> Outcome {
    const MANY: usize = 20_000;
    const LATE: &str = "198.18.0.0/24";
    const LATE_HOST: &str = "198.18.0.1";
    let bgp = format!("{}{}", neighbors(1, ""), watched_neighbor(FAR, THEIRS));
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let mut pair = Pair::start_edited(&setup, topology(1)?, |side, text| match side {
        Side::A => with_bgp(patient(text), &bgp),
        Side::B => behind_link(&patient(text), NET_A, NEAR),
    })?;
    let (netns, far_netns) = (pair.topology.gateway_a.clone(), pair.topology.gateway_b.clone());
    pair.topology.server.ip(&format!("address add {LATE_HOST}/32 dev lo"))?;
    far_netns.ip(&format!("route add {LATE} via {SERVER}"))?;
    let bfdd = format!(
        "bfd\n peer {NEAR} local-address {FAR} interface {LINK}\n  detect-multiplier 3\n  \
         receive-interval 50\n  transmit-interval 50\n !\n!\n"
    );
    let _frr = Frr::start(&far_netns, &[("bfdd", &bfdd)])?;
    let mut speaker = far(1);
    let on_link = Peer { address: NEAR.to_owned(), local: FAR.to_owned(), ..speaker.peers[0].clone() };
    speaker.peers.push(on_link);
    let route = |index: usize| format!("{}.{}.{}.0/24", 11 + (index >> 16), (index >> 8) & 255, index & 255);
    let routes: Vec<String> = (0..MANY).map(route).chain([LATE.to_owned()]).collect();
    let _bird = Bird::start(&far_netns, &speaker, &routes)?;
    let all = MANY + 2;
    let on_link = |status: &Value| {
        let accepted = |index: usize| status["neighbors"][index]["accepted"].as_u64();
        // The tunnel has an IPv6 prefix as well.
        let told = (accepted(0), accepted(1)) == (Some(all as u64 + 1), Some(all as u64));
        told && carries(status, NET_B) == [LINK] && bfd_of_link(status)["state"] == "up"
    };
    until(&pair.a, "the link to carry", on_link)?;
    until_over_links(&netns, &V4, all)?;
    // All of them have the device behind them.
    let behind = || netns.ip("-4 route show proto 178 dev braid0").map(|text| text.lines().count());
    assert_eq!((behind()?, next_hops(&netns)?.len()), (all, 1));
    let origin = Instant::now();
    let load = Paced::start(&pair.topology.client, &pair.topology.server, LATE_HOST, LOAD, origin)?;
    let changes = netns.spawn(&["ip", "-4", "monitor", "route"])?;
    let faults = [cut(&netns, &[LINK])?, cut(&far_netns, &[LINK])?];
    let lost_at = origin.elapsed();
    retry_until("the next hop gone", SOON, || match next_hops(&netns) {
        Ok(left) if left.is_empty() => Ok(()),
        Ok(left) => Err(left.join(", ")),
        Err(error) => Err(error.to_string()),
    })?;
    // All at once, and what stands behind was not touched.
    assert_eq!((over_links(&netns, &V4)?.len(), behind()?), (0, all));
    until(&pair.a, "the tunnel to carry", |status| carries(status, NET_B) == ["t0"])?;
    retry_until("all flows by the tunnel", SOON, || {
        (origin.elapsed() > lost_at + MOVED).then_some(()).ok_or("not yet")
    })?;
    let resumed = load.finish()?.resumed(lost_at);
    assert_eq!(resumed.len(), LOAD.flows, "every flow goes on");
    let slowest = resumed.iter().map(|(_, at)| *at - lost_at).max().unwrap_or_default();
    assert!(slowest < MOVED, "the slowest flow came back after {slowest:?}");
    assert_eq!((over_links(&netns, &V4)?.len(), behind()?), (0, all));
    // Of what BGP has said of each prefix since, the kernel was told nothing.
    let told = changes.stdout();
    assert!(told.lines().count() < MANY / 100, "{}", told.lines().count());
    // The link is back: nothing is lost.
    let load = Paced::start(&pair.topology.client, &pair.topology.server, LATE_HOST, LOAD, Instant::now())?;
    for fault in faults {
        fault.undo()?;
    }
    until(&pair.a, "the link to carry again", on_link)?;
    until_over_links(&netns, &V4, all)?;
    let log = load.finish()?;
    assert_eq!((log.lost(), log.refused, log.damaged), (Vec::new(), 0, 0), "of {}", log.sent());
    // Each of them is put back by itself, so that `ip monitor` would have seen it before: it is late on a busy machine,
    // and loses what its socket has no room for.
    retry_until("the kernel to tell of routes", SOON, || match changes.stdout().lines().count() {
        told if told > MANY / 20 => Ok(()),
        told => Err(format!("{told} lines")),
    })?;
    // The link is down for a moment that control knows nothing of.
    signal_part(&netns, "braid-control", Signal::SIGSTOP)?;
    netns.ip(&format!("link set {LINK} down"))?;
    assert_eq!((over_links(&netns, &V4)?.len(), next_hops(&netns)?.len()), (0, 0));
    netns.ip(&format!("link set {LINK} up"))?;
    until_over_links(&netns, &V4, all)?;
    signal_part(&netns, "braid-control", Signal::SIGCONT)?;
    until(&pair.a, "the link to carry still", on_link)?;
    pair.a.process().stop(SOON)?;
    assert_eq!((netns.ip("route show table all proto 178")?.trim(), next_hops(&netns)?.len()), ("", 0));
    Ok(())
}

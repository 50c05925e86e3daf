//! BGP beyond one or two tunnels: traffic spread over many by ECMP, by one gateway or by a router over several,
//! routes that flap beside traffic, and IPv6 alone.

use crate::bgp::{
    OURS, SOON, THEIRS, answered, both_ways, established, far, far_with_bgp, neighbors, start, until, ways,
    with_bgp,
};
use crate::failover::{answers_to_probes, cut_and_restore_under};
use crate::ike::negotiated;
use crate::pair::{Pair, Setup, Side, patient};
use braid_netns::frr::Frr;
use braid_netns::gateway::Gateway;
use braid_netns::paced::{Load, Log, Paced};
use braid_netns::routing::{Bird, Peer, Speaker};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, CLIENT6, NET_A, NET_B, NET_B6, SERVER, SERVER6};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Error, Netns, Result, Topology, retry_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("bgp_spread::frr_over_four_tunnels", frr_over_four_tunnels),
    ("bgp_spread::frr_over_eight_tunnels", frr_over_eight_tunnels),
    ("bgp_spread::frr_over_four_gateways", frr_over_four_gateways),
    ("bgp_spread::flows_stay_while_a_tunnel_flaps", || flows_stay_while_a_tunnel_flaps(0, SERVER)),
    ("bgp_spread::flows_stay_while_a_tunnel_and_many_routes_flap", || {
        flows_stay_while_a_tunnel_flaps(MANY, SERVER)
    }),
    ("bgp_spread::flows_to_a_late_route_stay_while_a_tunnel_and_many_flap", || {
        flows_stay_while_a_tunnel_flaps(MANY, LATE_HOST)
    }),
    ("bgp_spread::routes_flap_beside_traffic", routes_flap_beside_traffic),
    ("bgp_spread::ipv6_alone", ipv6_alone),
];

/// Each way.
const LOAD: Load = Load::told_apart(64, 2);
const STAGE: Duration = Duration::from_secs(2);
const FEW: Pings = Pings { count: 3, interval: Duration::from_millis(20), size: 56, df: false };

fn frr_over_four_tunnels() -> Outcome {
    frr_over(4)
}

fn frr_over_eight_tunnels() -> Outcome {
    frr_over(8)
}

fn sent(status: &Value) -> Vec<u64> {
    let tunnels = status["tunnels"].as_array().into_iter().flatten();
    tunnels.map(|tunnel| tunnel["tx_packets"].as_u64().unwrap_or_default()).collect()
}

/// One router announces the same by every tunnel: all carry, and when one goes, the others do.
fn frr_over(count: usize) -> Outcome {
    let pair = start(count, &neighbors(count, ""))?;
    let topology = &pair.topology;
    let _frr = Frr::speak(&topology.gateway_b, &far(count))?;
    let names: Vec<String> = (0..count).map(|index| format!("t{index}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let before =
        until(&pair.a, "routes by all", |status| both_ways(status, &all) && established(status) == count)?;
    let neighbors = before["neighbors"].as_array().map_or(0, Vec::len);
    assert_eq!((established(&before), neighbors), (count, count));
    answered(topology)?;
    let before = sent(&pair.a.status()?);
    let origin = Instant::now();
    let load = Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?;
    past(origin, STAGE)?;
    let log = load.finish()?;
    assert_eq!(log.flaw(), None);
    // 64 flows: a fair share is far more than a quarter of one, which the probes alone never reach.
    let least = log.sent() as u64 / count as u64 / 4;
    for (name, (before, after)) in all.iter().zip(before.iter().zip(sent(&pair.a.status()?))) {
        assert!(after - before >= least, "{name} carried {} of {} packets", after - before, log.sent());
    }
    let faults = topology.cut(0)?;
    until(&pair.a, "the others to carry", |status| both_ways(status, &all[1..]))?;
    for fault in faults {
        fault.undo()?;
    }
    until(&pair.a, "all to carry again", |status| both_ways(status, &all))?;
    Ok(())
}

/// Far more than control tells the core at once.
const MANY: usize = 6000;
/// The last of them, and a host there.
const LATE: &str = "198.18.0.0/24";
const LATE_HOST: &str = "198.18.0.1";

/// Learned routes, spread over four tunnels, of which one is cut and returns: its flows find another way, and no other
/// flow moves, when it fails, when BGP says so of each prefix, and when it is back.
fn flows_stay_while_a_tunnel_flaps(more: usize, server: &str) -> Outcome {
    const COUNT: usize = 4;
    let setup = Setup { tunnels: COUNT, ..Setup::default() };
    let topology = Topology::builder().paths(COUNT).build()?;
    topology.server.ip(&format!("address add {LATE_HOST}/32 dev lo"))?;
    topology.gateway_b.ip(&format!("route add {LATE} via {SERVER}"))?;
    let pair = Pair::start_edited(&setup, topology, |side, text| match side {
        Side::A => with_bgp(text, &neighbors(COUNT, "hold-time = \"9s\"")),
        Side::B => text,
    })?;
    let mut speaker = far(COUNT);
    let route = |index: usize| format!("11.{}.{}.0/24", index >> 8, index & 255);
    speaker.networks.extend((0..more).map(route).chain([LATE.to_owned()]));
    let told = speaker.networks.len() as u64;
    let _frr = Frr::speak(&pair.topology.gateway_b, &speaker)?;
    let by = |status: &Value, tunnels: &[&str]| {
        let neighbors = status["neighbors"].as_array().into_iter().flatten();
        let whole =
            neighbors.filter(|neighbor| neighbor["accepted"] == told && neighbor["state"] == "established");
        whole.count() == tunnels.len() && both_ways(status, tunnels) && ways(status, LATE) == tunnels
    };
    let all = ["t0", "t1", "t2", "t3"];
    until(&pair.a, "routes by all", |status| by(status, &all))?;
    answered(&pair.topology)?;
    for tunnel in 0..COUNT {
        answers_to_probes(&pair, tunnel)?;
    }
    let causes = cut_and_restore_under(&pair, COUNT, server, |back| {
        let carry = if back { &all[..] } else { &all[1..] };
        until(&pair.a, &format!("{carry:?} to carry"), |status| by(status, carry)).map(drop)
    })?;
    assert_eq!(causes, ["probe", "probe"]);
    Ok(())
}

/// Equal paths of the router.
const GATEWAYS: usize = 4;
/// The router's AS number.
const ROUTERS: u32 = 65_100;
/// The router's address among the gateways.
const ROUTER: &str = "10.3.0.254";
/// From the end of a gateway to the last flow by another; far more than it takes.
const MOVED: Duration = Duration::from_secs(3);

/// The standard network, where A is a router that has a LAN of gateways behind it: each took over one of A's outer
/// paths, and has a tunnel there to the one far gateway.
struct Fleet {
    // Before the network: dropped first.
    near: Vec<Gateway>,
    far: Gateway,
    frr: Frr,
    namespaces: Vec<Netns>,
    topology: Topology,
}

impl Fleet {
    fn start() -> Result<Self> {
        let topology = Topology::builder().paths(GATEWAYS).direct().build()?;
        let router = &topology.gateway_a;
        // By ports too: else all flows between two hosts go one way.
        router.sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
        router.ip("link add br0 type bridge")?;
        router.ip("link set br0 up")?;
        router.address("br0", &format!("{ROUTER}/24"))?;
        let namespaces = (0..GATEWAYS).map(|index| place(&topology, index)).collect::<Result<Vec<_>>>()?;
        let started = |(index, netns)| Gateway::start(netns, &near_configuration(&topology, index));
        let near = namespaces.iter().enumerate().map(started).collect::<Result<Vec<_>>>()?;
        let far = Gateway::start(&topology.gateway_b, &far_configuration(&topology))?;
        let frr = Frr::speak(router, &router_of_fleet())?;
        let bgp = format!("router bgp {ROUTERS}");
        frr.configure(&[&bgp, "address-family ipv4 unicast", &format!("maximum-paths {GATEWAYS}")])?;
        // All devices are there now.
        topology.keep_flows_in_order()?;
        namespaces.iter().try_for_each(Netns::keep_flows_in_order)?;
        Ok(Self { near, far, frr, namespaces, topology })
    }

    /// Waits until these gateways carry, and no others, by the router's kernel and by the far gateway.
    fn carried_by(&self, gateways: &[usize]) -> Result<()> {
        let wanted: BTreeSet<String> = gateways.iter().map(|index| near_address(*index)).collect();
        retry_until(&format!("next hops {wanted:?}"), SOON, || {
            let there = next_hops(&self.topology.gateway_a).map_err(|error| error.to_string())?;
            if there == wanted { Ok(()) } else { Err(format!("{there:?}")) }
        })?;
        let tunnels: Vec<String> = gateways.iter().map(|index| format!("t{index}")).collect();
        until(&self.far, "the tunnels of these", |status| ways(status, NET_A) == tunnels).map(drop)
    }

    /// Packets that each gateway has sent into its tunnel, and had from there.
    fn counts(&self) -> Result<Vec<[u64; 2]>> {
        let count = |gateway: &Gateway| {
            let status = gateway.status()?;
            let of = |what: &str| status["tunnels"][0][what].as_u64().unwrap_or_default();
            Ok([of("tx_packets"), of("rx_packets")])
        };
        self.near.iter().map(count).collect()
    }

    fn loads(&self, origin: Instant) -> Result<[Paced; 2]> {
        let Topology { client, server, .. } = &self.topology;
        Ok([
            Paced::start(client, server, SERVER, LOAD, origin)?,
            Paced::start(server, client, CLIENT, LOAD, origin)?,
        ])
    }

    /// Each gateway carries a fair share of both directions, and nothing is lost.
    fn all_share(&self) -> Outcome {
        let before = self.counts()?;
        let origin = Instant::now();
        let loads = self.loads(origin)?;
        past(origin, STAGE)?;
        let logs = finished(loads)?;
        let after = self.counts()?;
        for (way, log) in logs.iter().enumerate() {
            assert_eq!(log.flaw(), None);
            // 64 flows: as with tunnels.
            let least = (log.sent() / GATEWAYS / 4) as u64;
            let carried: Vec<u64> =
                before.iter().zip(&after).map(|(before, after)| after[way] - before[way]).collect();
            assert!(carried.iter().all(|count| *count >= least), "{carried:?} of {}", log.sent());
        }
        Ok(())
    }
}

fn near_address(index: usize) -> String {
    format!("10.3.0.{}", index + 1)
}

/// A namespace on the router's LAN, with one of the router's outer paths.
fn place(topology: &Topology, index: usize) -> Result<Netns> {
    let (router, path) = (&topology.gateway_a, &topology.paths[index]);
    let netns = Netns::new(&format!("gw{index}"))?;
    netns.make_router()?;
    let port = format!("port{index}");
    netns.veth("lan0", router, &port, 1500)?;
    router.ip(&format!("link set {port} master br0"))?;
    netns.address("lan0", &format!("{}/24", near_address(index)))?;
    router.ip(&format!("link set {} netns {}", path.device, netns.name()))?;
    netns.ip(&format!("link set {} up", path.device))?;
    netns.address(&path.device, &format!("{}/30", path.a))?;
    Ok(netns)
}

/// What the far side sends is told to the router, and what the router sends to the far side.
fn near_configuration(topology: &Topology, index: usize) -> String {
    let address = near_address(index);
    let mut text = format!("[gateway]\nname = \"gateway-{index}\"\nsource = \"{address}\"\n");
    Setup::default().write_tunnel(&mut text, Side::A, index, &topology.paths[index]);
    negotiated(Side::A, &patient(text), "", false)
        + &format!(
            "\n[bgp]\nasn = {OURS}\nrouter-id = \"{address}\"\n\
             [[bgp.neighbor]]\ntunnel = \"t{index}\"\nasn = {THEIRS}\nexport = [\"bgp:router\"]\n\
             [[bgp.neighbor]]\nname = \"router\"\naddress = \"{ROUTER}\"\ninterface = \"lan0\"\n\
             asn = {ROUTERS}\nexport = [\"bgp:t{index}\"]\n"
        )
}

fn far_configuration(topology: &Topology) -> String {
    let setup = Setup { tunnels: GATEWAYS, ..Setup::default() };
    let text = negotiated(Side::B, &patient(setup.configuration(Side::B, &topology.paths)), "", false);
    far_with_bgp(&text, GATEWAYS)
}

fn router_of_fleet() -> Speaker {
    let speaker = far(1);
    let peer = |index| Peer {
        address: near_address(index),
        local: ROUTER.to_owned(),
        local6: "fd00:3::254".to_owned(),
        ..speaker.peers[0].clone()
    };
    let peers = (0..GATEWAYS).map(peer).collect();
    Speaker { asn: ROUTERS, id: ROUTER.to_owned(), networks: vec![NET_A.to_owned()], peers, ..speaker }
}

/// Where a kernel sends what is for the far network, by BGP.
fn next_hops(netns: &Netns) -> Result<BTreeSet<String>> {
    let said = netns.ip(&format!("-json route show {NET_B} proto bgp"))?;
    let routes: Value = serde_json::from_str(&said).map_err(|bad| Error::parse("ip route", bad))?;
    // One next hop stands in the route itself.
    let route = &routes[0];
    let hops = route["nexthops"].as_array().into_iter().flatten().chain([route]);
    Ok(hops.filter_map(|hop| hop["gateway"].as_str()).map(str::to_owned).collect())
}

fn past(origin: Instant, moment: Duration) -> Result<()> {
    retry_until("enough packets", SOON, || (origin.elapsed() > moment).then_some(()).ok_or("not yet"))
}

fn finished(loads: [Paced; 2]) -> Result<Vec<Log>> {
    loads.into_iter().map(Paced::finish).collect()
}

/// Scale-out by BGP: each gateway is one more equal path of a router. One ends as its user wishes, under load, and
/// comes back: its end costs what it takes to tell the others, its return nothing.
fn frr_over_four_gateways() -> Outcome {
    let mut fleet = Fleet::start()?;
    fleet.carried_by(&[0, 1, 2, 3])?;
    let routes = fleet.frr.json(&format!("show ip route {NET_B} json"))?;
    let hops = routes[NET_B][0]["nexthops"].as_array().map_or(0, Vec::len);
    assert_eq!(hops, GATEWAYS, "{routes}");
    fleet.all_share()?;
    let origin = Instant::now();
    let loads = fleet.loads(origin)?;
    let ended = origin.elapsed();
    fleet.near[3].process().stop(SOON)?;
    fleet.carried_by(&[0, 1, 2])?;
    past(origin, ended + MOVED)?;
    for log in finished(loads)? {
        let resumed = log.resumed(ended);
        assert_eq!(resumed.len(), LOAD.flows, "every flow goes on");
        let slowest = resumed.iter().map(|(_, at)| *at - ended).max().unwrap_or_default();
        assert!(slowest < MOVED, "the slowest flow came back after {slowest:?}");
    }
    let loads = fleet.loads(Instant::now())?;
    fleet.near[3] = Gateway::start(&fleet.namespaces[3], &near_configuration(&fleet.topology, 3))?;
    fleet.carried_by(&[0, 1, 2, 3])?;
    for log in finished(loads)? {
        // Its neighbors hear of it while its own kernel's routes are being made.
        let few = log.lost().len() * 100 <= log.sent();
        assert!(few && (log.refused, log.damaged) == (0, 0), "{:?} of {}", log.lost(), log.sent());
    }
    fleet.all_share()
}

/// A family's routes come and go; what goes by the other notices nothing, and in the end all is there.
fn routes_flap_beside_traffic() -> Outcome {
    const FLAPS: usize = 20;
    let pair = start(2, &neighbors(2, ""))?;
    let topology = &pair.topology;
    let bird = Bird::start(&topology.gateway_b, &far(2), &[])?;
    // Two connections that begin at once may end each other before the flaps, so the count need not begin at one.
    let sessions = |status: &Value| {
        let neighbors = status["neighbors"].as_array().into_iter().flatten();
        neighbors.map(|neighbor| neighbor["established"].as_u64()).collect::<Vec<_>>()
    };
    let before = sessions(&until(&pair.a, "routes by both", |status| both_ways(status, &["t0", "t1"]))?);
    answered(topology)?;
    let load = Paced::start(&topology.client, &topology.server, SERVER, LOAD, Instant::now())?;
    for _ in 0..FLAPS {
        // The second static protocol is that of IPv6.
        bird.birdc(&["disable", "static2"])?;
        bird.birdc(&["enable", "static2"])?;
    }
    bird.birdc(&["disable", "static2"])?;
    until(&pair.a, "its end", |status| !status["routes"].to_string().contains(NET_B6))?;
    bird.birdc(&["enable", "static2"])?;
    let status = until(&pair.a, "routes by both", |status| both_ways(status, &["t0", "t1"]))?;
    assert_eq!(load.finish()?.flaw(), None);
    assert_eq!(sessions(&status), before, "a session ended of it: {status}");
    answered(topology)
}

/// Tunnels with IPv6 alone inside: session, next hops and routes have no other family.
fn ipv6_alone() -> Outcome {
    let only_v6 = |text: String| {
        let mut text = text;
        for (net, host) in [(10, 1), (10, 2), (11, 1), (11, 2)] {
            text = text.replace(&format!("\"169.254.{net}.{host}/30\", "), "");
        }
        text
    };
    let setup = Setup { tunnels: 2, ..Setup::default() };
    let pair = Pair::start_edited(&setup, Topology::builder().paths(2).build()?, |side, text| match side {
        Side::A => with_bgp(only_v6(patient(text)), &neighbors(2, "")),
        Side::B => only_v6(patient(text)),
    })?;
    let topology = &pair.topology;
    let mut speaker: Speaker = far(2);
    for (index, peer) in speaker.peers.iter_mut().enumerate() {
        let net = 10 + index;
        let (address, local) = (format!("fd00:ffff:{net}::1"), format!("fd00:ffff:{net}::2"));
        *peer = Peer { address, local, ..peer.clone() };
    }
    // FRR ends each session over IPv6 whose interface has no link-local address, once it knows the interface.
    topology.gateway_b.ip("addr add fe80::2/64 dev braid0")?;
    let _frr = Frr::speak(&topology.gateway_b, &speaker)?;
    let status = until(&pair.a, "routes by both", |status| {
        let routes = status["routes"].as_array().into_iter().flatten();
        let mut learned = routes.filter(|route| route["origin"] == "bgp" && route["prefix"] == NET_B6);
        established(status) == 2
            && learned.any(|route| route["paths"].as_array().is_some_and(|paths| paths.len() == 2))
    })?;
    assert_eq!(status["neighbors"][0]["families"], serde_json::json!(["ipv6"]), "{status}");
    for (from, to) in [(&topology.client, SERVER6), (&topology.server, CLIENT6)] {
        retry_until(&format!("{to} to answer"), SOON, || match ping(from, to, &FEW) {
            Ok(result) if result.rtt_ms.len() == 3 => Ok(()),
            Ok(result) => Err(format!("{} of 3", result.rtt_ms.len())),
            Err(error) => Err(error.to_string()),
        })?;
    }
    Ok(())
}

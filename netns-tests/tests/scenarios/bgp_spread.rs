//! BGP beyond one or two tunnels: traffic spread over many by ECMP, routes that flap beside traffic, and IPv6 alone.

use crate::bgp::{SOON, answered, both_ways, established, far, neighbors, start, until, with_bgp};
use crate::pair::{Pair, Setup, Side, patient};
use braid_netns::frr::Frr;
use braid_netns::paced::{Load, Paced};
use braid_netns::routing::{Bird, Peer, Speaker};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT6, NET_B6, SERVER, SERVER6};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Topology, retry_until};
use serde_json::Value;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("bgp_spread::frr_over_four_tunnels", frr_over_four_tunnels),
    ("bgp_spread::frr_over_eight_tunnels", frr_over_eight_tunnels),
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
    let before = until(&pair.a, "routes by all", |status| both_ways(status, &all))?;
    let neighbors = before["neighbors"].as_array().map_or(0, Vec::len);
    assert_eq!((established(&before), neighbors), (count, count));
    answered(topology)?;
    let before = sent(&pair.a.status()?);
    let origin = Instant::now();
    let load = Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?;
    retry_until("enough packets", SOON, || (origin.elapsed() > STAGE).then_some(()).ok_or("not yet"))?;
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

/// A family's routes come and go; what goes by the other notices nothing, and in the end all is there.
fn routes_flap_beside_traffic() -> Outcome {
    const FLAPS: usize = 20;
    let pair = start(2, &neighbors(2, ""))?;
    let topology = &pair.topology;
    let bird = Bird::start(&topology.gateway_b, &far(2), &[])?;
    // Two connections that begin at once may end each other before the flaps, so the count need not begin at one.
    let sessions = |status: &serde_json::Value| {
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

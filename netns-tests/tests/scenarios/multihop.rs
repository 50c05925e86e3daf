//! BGP and BFD with a router beyond another one (RFC 5883): a path that breaks in its middle, where no link tells.

use crate::bgp::{SOON, established, far, far_with_bgp, neighbors, until, ways, with_bgp};
use crate::pair::{Pair, Setup, Side, patient};
use braid_netns::capture::{Capture, Packet};
use braid_netns::fault::cut;
use braid_netns::frr::Frr;
use braid_netns::routing::{Peer, Speaker};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, GATEWAY_A, NET_A, NET_B};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Netns, Result, Topology, retry_until};
use serde_json::Value;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] =
    &[("multihop::bfd_with_frr_beyond_a_router", bfd_with_frr_beyond_a_router)];

/// The router that speaks BGP, and its end of the link to the one between.
const ROUTER: &str = "10.8.0.2";
const ROUTERS: u32 = 65_100;
const LINK: &str = "10.8.0.0/30";
/// What it announces, and an address there.
const BEHIND: &str = "10.9.0.0/24";
const HOST_BEHIND: &str = "10.9.0.1";
/// Of the router between, towards the gateway and towards the router.
const BETWEEN: [&str; 2] = ["eth0", "hop0"];
const INTERVAL_MS: u32 = 100;
const MULTIPLIER: u32 = 3;
/// Beyond the detection time, until all have acted on it and were asked; far less than the hold time.
const MARGIN: Duration = Duration::from_secs(4);
const FEW: Pings = Pings { count: 3, interval: Duration::from_millis(20), size: 56, df: false };

/// The router, beyond the client, which is the router between.
fn beyond(topology: &Topology) -> Result<Netns> {
    let (gateway, between) = (&topology.gateway_a, &topology.client);
    let router = Netns::new("router")?;
    between.make_router()?;
    router.make_router()?;
    between.veth(BETWEEN[1], &router, "eth0", 1500)?;
    between.address(BETWEEN[1], "10.8.0.1/30")?;
    router.address("eth0", &format!("{ROUTER}/30"))?;
    router.address("lo", &format!("{HOST_BEHIND}/24"))?;
    for prefix in [LINK, BEHIND] {
        gateway.ip(&format!("route add {prefix} via {CLIENT}"))?;
    }
    between.ip(&format!("route add {BEHIND} via {ROUTER}"))?;
    router.ip(&format!("route add {NET_A} via 10.8.0.1"))?;
    Ok(router)
}

/// The gateway's neighbor: what it sends is told to the far gateway, and what that sends is told to it.
///
/// It waits for FRR to connect: when both connect at once, FRR 8.4 may ask for the next hops as if they were on a
/// link, whatever `ebgp-multihop` says, and takes none for reachable then.
fn near_bgp() -> String {
    format!(
        "{}[[bgp.neighbor]]\nname = \"router\"\naddress = \"{ROUTER}\"\nmultihop = true\npassive = true\n\
         asn = {ROUTERS}\nbfd = {{ interval = \"{INTERVAL_MS}ms\", multiplier = {MULTIPLIER} }}\nexport = [\"bgp:t0\"]\n",
        neighbors(1, "export = [\"bgp:router\"]")
    )
}

fn start_frr(router: &Netns) -> Result<Frr> {
    let peer = Peer {
        address: GATEWAY_A.to_owned(),
        local: ROUTER.to_owned(),
        local6: "fd00:8::2".to_owned(),
        hops: 2,
        ..far(1).peers.remove(0)
    };
    let speaker = Speaker {
        asn: ROUTERS,
        id: ROUTER.to_owned(),
        networks: vec![BEHIND.to_owned()],
        peers: vec![peer],
        ..far(1)
    };
    let mut frr = Frr::speak(router, &speaker)?;
    frr.add(
        "bfdd",
        &format!(
            "bfd\n profile quick\n  detect-multiplier {MULTIPLIER}\n  receive-interval {INTERVAL_MS}\n  \
             transmit-interval {INTERVAL_MS}\n !\n!\n"
        ),
    )?;
    let (bgp, bfd) = (format!("router bgp {ROUTERS}"), format!("neighbor {GATEWAY_A} bfd profile quick"));
    frr.configure(&[&bgp, &bfd])?;
    Ok(frr)
}

fn router(status: &Value) -> &Value {
    let mut neighbors = status["neighbors"].as_array().into_iter().flatten();
    neighbors.find(|neighbor| neighbor["name"] == "router").unwrap_or(&Value::Null)
}

fn is_up(status: &Value) -> bool {
    let bfd = &router(status)["bfd"];
    established(status) == 2 && bfd["state"] == "up" && bfd["interval_ms"] == f64::from(INTERVAL_MS)
}

/// What FRR's kernel has of the far network.
fn learned(router: &Netns) -> Result<bool> {
    Ok(router.ip(&format!("route show {NET_B} proto bgp"))?.contains("via 10.8.0.1"))
}

/// Either side has what the other one announces.
fn all_there(pair: &Pair, netns: &Netns) -> Outcome {
    until(&pair.a, "BFD with the router", is_up)?;
    until(&pair.b, "what is behind the router", |status| ways(status, BEHIND) == ["t0"])?;
    retry_until("the far network at the router", SOON, || match learned(netns) {
        Ok(true) => Ok(()),
        Ok(false) => Err("no route".to_owned()),
        Err(error) => Err(error.to_string()),
    })?;
    // The answer goes by what the router learned: it has no default route.
    retry_until("an answer from behind the router", SOON, || {
        match ping(&pair.topology.server, HOST_BEHIND, &FEW) {
            Ok(result) if result.rtt_ms.len() == 3 => Ok(()),
            Ok(result) => Err(format!("{} of 3", result.rtt_ms.len())),
            Err(error) => Err(error.to_string()),
        }
    })?;
    Ok(())
}

/// Cut silently, in both directions and in one, of which the end that hears nothing tells the other.
fn bfd_with_frr_beyond_a_router() -> Outcome {
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let topology = Topology::builder().build()?;
    let netns = beyond(&topology)?;
    let pair = Pair::start_edited(&setup, topology, |side, text| match side {
        Side::A => with_bgp(patient(text), &near_bgp()),
        Side::B => far_with_bgp(&patient(text), 1),
    })?;
    let seen = Capture::start(&netns, "eth0", "udp dst port 4784", 128)?;
    let frr = start_frr(&netns)?;
    all_there(&pair, &netns)?;
    retry_until("FRR's session", SOON, || {
        let peer = frr.json("show bfd peers json").map_err(|error| error.to_string())?[0].clone();
        if peer["multihop"] == true && peer["status"] == "up" { Ok(()) } else { Err(peer.to_string()) }
    })?;
    assert_eq!(frr.json("show bfd peers counters json")?[0]["session-down"], 0);
    as_rfc_5883_wants(&seen.stop()?);
    for devices in [&BETWEEN[..], &BETWEEN[..1]] {
        let cut_at = Instant::now();
        let fault = cut(&pair.topology.client, devices)?;
        // Who is told that the other end hears nothing goes from Down to Init (RFC 5880 section 6.2).
        until(&pair.a, "BFD to be down", |status| {
            let router = router(status);
            router["bfd"]["state"] != "up" && router["reason"] == "BFD says that the path is down"
        })?;
        until(&pair.b, "nothing behind the router", |status| ways(status, BEHIND).is_empty())?;
        retry_until("nothing of the far network at the router", SOON, || match learned(&netns) {
            Ok(false) => Ok(()),
            Ok(true) => Err("a route".to_owned()),
            Err(error) => Err(error.to_string()),
        })?;
        let gone = cut_at.elapsed();
        let detection = Duration::from_millis((INTERVAL_MS * MULTIPLIER).into());
        assert!(gone < detection + MARGIN, "the routes went after {gone:?}, by {devices:?}");
        fault.undo()?;
        all_there(&pair, &netns)?;
    }
    Ok(())
}

/// What arrives from the gateway.
fn as_rfc_5883_wants(packets: &[Packet]) {
    let ours: Vec<&Packet> =
        packets.iter().filter(|packet| packet.ip.get(12..16) == Some(&[10, 1, 0, 1])).collect();
    assert!(ours.len() > 3, "{} packets", ours.len());
    for packet in ours {
        let port = u16::from_be_bytes([packet.ip[20], packet.ip[21]]);
        // The router between took one off.
        assert!(packet.ip[8] == 254 && port >= 49_152, "TTL {}, port {port}", packet.ip[8]);
    }
}

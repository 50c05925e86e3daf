//! What guards a BGP session, with Debian's FRR at the other end: only neighbors on the link (RFC 5082) that know the
//! password (RFC 2385), of both families and whoever begins, and never more routes than the other end takes.

use crate::bgp::{OURS, SOON, counter, established, far, neighbors, until, with_bgp};
use crate::pair::{Pair, Setup, Side, patient};
use braid_netns::frr::Frr;
use braid_netns::gateway::Gateway;
use braid_netns::routing::{Peer, Speaker};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, CLIENT6, GATEWAY_A, NET_A, NET_A6};
use braid_netns::{Result, Topology, retry_until};
use serde_json::Value;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("bgp_guard::only_from_the_link", || guarded(GATEWAY_A, CLIENT, false)),
    ("bgp_guard::only_from_the_link_where_braid_begins", || guarded(GATEWAY_A, CLIENT, true)),
    ("bgp_guard::only_from_the_link_by_ipv6", || guarded(GATEWAY_A6, CLIENT6, false)),
    ("bgp_guard::only_from_the_link_by_ipv6_where_braid_begins", || guarded(GATEWAY_A6, CLIENT6, true)),
    ("bgp_guard::the_101st_route_is_held_back", the_101st_route_is_held_back),
];

const ROUTERS: u32 = 65_100;
const PASSWORD: &str = "between-us";
const GATEWAY_A6: &str = "fd00:1::1";
/// RFC 5082: one less than what is sent, as if a router stood between.
const FROM_BEYOND: u8 = 254;
/// Segments with something wrong, until it is no accident.
const SEVERAL: u64 = 3;

/// A router on the LAN: with another password it is not heard, nor from farther away.
fn guarded(gateway: &str, router: &str, braid_begins: bool) -> Outcome {
    let topology = Topology::builder().build()?;
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let bgp = format!(
        "[[bgp.neighbor]]\nname = \"router\"\naddress = \"{router}\"\ninterface = \"lan0\"\nasn = {ROUTERS}\n\
         ttl-security = true\nmd5 = \"{PASSWORD}\"\npassive = {}\n",
        !braid_begins
    );
    let netns = &topology.gateway_a;
    let text = with_bgp(patient(setup.configuration(Side::A, &topology.paths)), &bgp);
    // Both anew each time: a connection of which one end hears nothing is forgotten after minutes only.
    let start = |password: &str, hops: u8| -> Result<(Gateway, Frr)> {
        let peer = Peer {
            address: gateway.to_owned(),
            local: router.to_owned(),
            local6: CLIENT6.to_owned(),
            asn: OURS,
            hops,
            md5: Some(password.to_owned()),
            passive: braid_begins,
            ttl_security: hops == 1,
            ..far(1).peers.remove(0)
        };
        let speaker =
            Speaker { asn: ROUTERS, id: CLIENT.to_owned(), networks: vec![], peers: vec![peer], ..far(1) };
        Ok((Gateway::start(netns, &text)?, Frr::speak(&topology.client, &speaker)?))
    };
    let refused = |what: &str, password: &str, hops: u8| -> Outcome {
        // Either end refuses what the other one sends.
        let seen = || -> Result<u64> { Ok(counter(netns, what)? + counter(&topology.client, what)?) };
        let before = seen()?;
        let (mut braid, frr) = start(password, hops)?;
        retry_until(what, SOON, || match seen() {
            Ok(now) if now >= before + SEVERAL => Ok(()),
            Ok(now) => Err((now - before).to_string()),
            Err(error) => Err(error.to_string()),
        })?;
        assert_eq!(established(&braid.status()?), 0, "{what}");
        assert_ne!(session(&frr, gateway)?["bgpState"], "Established", "{what}");
        braid.process().stop(SOON)?;
        Ok(())
    };
    refused("TCPMD5Failure", "wrong", 1)?;
    refused("TCPMinTTLDrop", PASSWORD, FROM_BEYOND)?;
    let (mut braid, frr) = start(PASSWORD, 1)?;
    until(&braid, "the session", |status| established(status) == 1)?;
    let session = session(&frr, gateway)?;
    let port = if braid_begins { "portLocal" } else { "portForeign" };
    assert_eq!(session[port], 179, "who begins: {session}");
    braid.process().stop(SOON)?;
    Ok(())
}

fn session(frr: &Frr, gateway: &str) -> Result<Value> {
    Ok(frr.json(&format!("show bgp neighbors {gateway} json"))?[gateway].clone())
}

/// As AWS, which ends a session of more than 100 routes.
fn the_101st_route_is_held_back() -> Outcome {
    const MOST: usize = 100;
    let all: Vec<String> = (0..=MOST)
        .map(|index| if index == 0 { NET_A.to_owned() } else { format!("10.77.{index}.0/24") })
        .collect();
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let announced = |count: usize| format!("announce = [\"{}\"]\n", all[..count].join("\", \""));
    let configured = |text: String, count: usize| {
        with_bgp(patient(text), &neighbors(1, "max-advertised = 100"))
            .replace(&format!("announce = [\"{NET_A}\", \"{NET_A6}\"]\n"), &announced(count))
    };
    let mut pair = Pair::start_edited(&setup, Topology::builder().build()?, |side, text| match side {
        Side::A => configured(text, all.len()),
        Side::B => patient(text),
    })?;
    let speaker = far(1);
    let frr = Frr::speak(&pair.topology.gateway_b, &speaker)?;
    frr.configure(&[
        &format!("router bgp {}", speaker.asn),
        "address-family ipv4 unicast",
        "neighbor 169.254.10.1 maximum-prefix 100",
    ])?;
    let held = |advertised: usize, held_back: usize| {
        move |status: &Value| {
            let neighbor = &status["neighbors"][0];
            neighbor["advertised"] == advertised
                && neighbor["held_back"] == held_back
                && established(status) == 1
        }
    };
    let status = until(&pair.a, "100 routes told and one held back", held(MOST, 1))?;
    let of_frr = |count: usize| {
        retry_until(&format!("{count} routes at FRR"), SOON, || {
            let said = frr.json("show bgp ipv4 unicast summary json").map_err(|error| error.to_string())?;
            let peer = &said["peers"]["169.254.10.1"];
            let there = peer["state"] == "Established" && peer["pfxRcd"] == count;
            if there { Ok(()) } else { Err(peer.to_string()) }
        })
    };
    of_frr(MOST)?;
    pair.a.process().wait_for_output("takes 100 routes: others are held back", SOON)?;
    let before = status["neighbors"][0]["established"].clone();
    // Several keepalives later too.
    let since = Instant::now();
    retry_until("a hold time to pass", SOON, || {
        (since.elapsed() > Duration::from_secs(9)).then_some(()).ok_or("not yet")
    })?;
    assert_eq!(pair.a.status()?["neighbors"][0]["established"], before, "the session ended");
    of_frr(MOST)?;
    // Room for it.
    let text = setup.configuration(Side::A, &pair.topology.paths);
    let text = configured(text, all.len()).replace(&format!("\"{}\", ", all[1]), "");
    pair.a.write_configuration(&text)?;
    assert!(pair.a.braid(&["reload"])?.status.success());
    until(&pair.a, "100 routes told", held(MOST, 0))?;
    retry_until("the last one at FRR", SOON, || {
        let said = frr.json("show bgp ipv4 unicast json").map_err(|error| error.to_string())?;
        let (first, last) = (&said["routes"][&all[1]], &said["routes"][&all[MOST]]);
        if first.is_null() && !last.is_null() { Ok(()) } else { Err(format!("{first} {last}")) }
    })?;
    assert_eq!(pair.a.status()?["neighbors"][0]["established"], before, "the session ended");
    Ok(())
}

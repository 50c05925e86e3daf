//! Peers of WireGuard that are not where they were: behind a NAT that changes its mind or forgets, on either side, and
//! back at home after they were heard from elsewhere.

use crate::clients::{ROAD, road};
use crate::mobile::{masquerade, masquerade_anew, masquerade_towards};
use crate::pair::START;
use crate::wireguard::{Pairs, answered, braid, carries, peer};
use crate::wireguard_rekey::handshakes;
use braid_netns::capture::{Capture, Packet};
use braid_netns::fault;
use braid_netns::gateway::Gateway;
use braid_netns::runner::{Outcome, Scenario, side_by_side};
use braid_netns::topology::{CLIENT, NET_A, SERVER};
use braid_netns::traffic::{Pings, ping};
use braid_netns::wireguard::{Implementation, MTU, PORT, Wireguard};
use braid_netns::{Topology, retry_until};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("wireguard_roam::behind_a_nat_that_changes", behind_a_nat_that_changes),
    ("wireguard_roam::the_peer_is_behind_a_nat_that_changes", the_peer_is_behind_a_nat_that_changes),
    ("wireguard_roam::kept_alive_through_a_nat_that_forgets", kept_alive_through_a_nat_that_forgets),
    ("wireguard_roam::the_peer_is_back_where_it_was", the_peer_is_back_where_it_was),
];

/// Of `braid`'s configuration.
const PROBE: &str = "probe = \"200ms\"";
const UNPROBED: &str = "probe = \"off\"";

/// The peer follows what is authentic.
fn behind_a_nat_that_changes() -> Outcome {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let keys = Pairs::generate(&topology)?;
    masquerade(&topology, 20_000)?;
    let peer = peer(&topology, Implementation::Go, &keys, "", "")?;
    let text = braid(&[path.a.to_string(), path.b.to_string()], &keys, "initiate", "keepalive = \"1s\"\n");
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    gateway.wait_up(START)?;
    carries(&topology)?;
    assert!(peer.show("endpoints")?.contains(":20"), "not through the NAT's port");
    let before = handshakes(&gateway)?;
    masquerade_anew(&topology, "b0", "198.51.100.2/30", 30_000)?;
    carries(&topology)?;
    let endpoints = peer.show("endpoints")?;
    assert!(endpoints.contains(":30"), "still at the old mapping: {endpoints}");
    assert_eq!(handshakes(&gateway)?, before, "followed, not begun anew");
    Ok(())
}

/// Braid follows what is authentic: a peer of which nothing else is known, by either family, and one that is elsewhere
/// than the configuration says.
fn the_peer_is_behind_a_nat_that_changes() -> Outcome {
    let cases = [("respond", false), ("respond", true), ("initiate", false)];
    side_by_side(cases.map(|(role, v6)| {
        move || followed(role, v6).map_err(|error| format!("{role}, over IPv6: {v6}: {error}").into())
    }))
}

fn followed(role: &str, v6: bool) -> Outcome {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let keys = Pairs::generate(&topology)?;
    let (a, endpoint, nat, length) = match v6 {
        true => (path.a6.to_string(), format!("[{}]:{PORT}", path.a6), "2001:db8:a::2", 64),
        false => (path.a.to_string(), format!("{}:{PORT}", path.a), "192.0.2.2", 30),
    };
    let remote = if role == "initiate" { path.b.to_string() } else { String::new() };
    // Who is behind a NAT is not reached from before it.
    let _unreached = fault::drop_matching(internet, &["a0"], &format!("ip daddr {}", path.b))?;
    masquerade_towards(&topology, "a0", 20_000)?;
    let ours = Capture::start(&topology.gateway_a, "wan0", &format!("udp and src host {a}"), 128)?;
    let text = braid(&[a, remote], &keys, role, "").replace(PROBE, UNPROBED);
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    let _peer = peer(&topology, Implementation::Go, &keys, &endpoint, "PersistentKeepalive = 1\n")?;
    gateway.wait_up(START)?;
    let is_at = |mapping: &str| {
        retry_until("Braid to follow", START, || {
            let found = gateway.status().map_err(|error| error.to_string())?["tunnels"][0]["remote"].clone();
            let is_there = found.as_str().is_some_and(|at| at.contains(nat) && at.contains(mapping));
            if is_there { Ok(()) } else { Err(found.to_string()) }
        })
    };
    is_at(":20")?;
    answered(&topology.client, SERVER)?;
    let before = handshakes(&gateway)?;
    masquerade_anew(&topology, "a0", &format!("{nat}/{length}"), 30_000)?;
    is_at(":30")?;
    for (from, to) in [(&topology.client, SERVER), (&topology.server, CLIENT)] {
        assert_eq!(ping(from, to, &Pings::default())?.rtt_ms.len(), 3, "pings to {to}");
    }
    assert_eq!(handshakes(&gateway)?, before, "followed, not begun anew");
    urgent(&ours.stop()?);
    Ok(())
}

/// RFC 2597: messages of handshakes are marked AF41.
fn urgent(ours: &[Packet]) {
    const AF41: u8 = 34 << 2;
    let is_handshake =
        |packet: &&Packet| packet.udp_payload().is_some_and(|payload| matches!(payload.first(), Some(1..=3)));
    let class = |packet: &Packet| match packet.ip[0] >> 4 {
        4 => packet.ip[1],
        _ => packet.ip[0] << 4 | packet.ip[1] >> 4,
    };
    let classes: Vec<u8> = ours.iter().filter(is_handshake).map(class).collect();
    assert!(!classes.is_empty() && classes.iter().all(|class| *class == AF41), "{classes:?}");
}

/// Who is kept alive is reached from outside after some silence, and who is not is not.
fn kept_alive_through_a_nat_that_forgets() -> Outcome {
    side_by_side([true, false].map(|kept_alive| {
        move || reached_through_a_nat(kept_alive).map_err(|error| format!("{kept_alive}: {error}").into())
    }))
}

fn reached_through_a_nat(kept_alive: bool) -> Outcome {
    const FORGOTTEN_AFTER: &str = "3";
    const SILENCE: Duration = Duration::from_secs(5);
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let keys = Pairs::generate(&topology)?;
    masquerade(&topology, 20_000)?;
    for of in ["", "_stream"] {
        internet.sysctl(&format!("net/netfilter/nf_conntrack_udp_timeout{of}"), FORGOTTEN_AFTER)?;
    }
    let _peer = peer(&topology, Implementation::Go, &keys, "", "")?;
    let more = if kept_alive { "keepalive = \"1s\"\n" } else { "" };
    let text =
        braid(&[path.a.to_string(), path.b.to_string()], &keys, "initiate", more).replace(PROBE, UNPROBED);
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    gateway.wait_up(START)?;
    answered(&topology.client, SERVER)?;
    let ours = Capture::start(&topology.gateway_a, "wan0", &format!("udp and src host {}", path.a), 128)?;
    // What is awaited is that nothing happens.
    sleep(SILENCE);
    let from_outside = ping(&topology.server, CLIENT, &Pings::default())?.rtt_ms.len();
    assert_eq!(from_outside, if kept_alive { 3 } else { 0 }, "answers");
    let ours = ours.stop()?;
    let keepalives: Vec<&Packet> = ours.iter().filter(|packet| is_keepalive(packet)).collect();
    assert_eq!(ours.len() - keepalives.len(), from_outside, "besides the answers");
    if kept_alive {
        // The core looks each 250 ms; there are those of the time in which the pings were sent, too.
        let gaps = keepalives.windows(2).map(|pair| pair[1].time.saturating_sub(pair[0].time));
        let early = gaps.clone().min().unwrap_or_default();
        let late = gaps.max().unwrap_or_default();
        let second = Duration::from_secs(1);
        assert!(keepalives.len() >= 4, "{} keepalives", keepalives.len());
        assert!(early > second * 3 / 4 && late < second * 2, "{early:?} to {late:?} apart");
    } else {
        assert!(keepalives.is_empty(), "{} keepalives", keepalives.len());
    }
    Ok(())
}

/// Whitepaper section 6.5: a data message with nothing inside.
fn is_keepalive(packet: &Packet) -> bool {
    packet.is_wireguard_data(PORT) && packet.udp_payload().is_some_and(|payload| payload.len() == 32)
}

/// It was heard from elsewhere, then fell silent, and waits where the configuration has it.
fn the_peer_is_back_where_it_was() -> Outcome {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let keys = Pairs::generate(&topology)?;
    let elsewhere = road(&topology)?;
    let text = braid(&[path.a.to_string(), path.b.to_string()], &keys, "initiate", "");
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    let away = Wireguard::start(&elsewhere, Implementation::Go, MTU, &["169.254.10.1/30"], &[NET_A])?;
    away.configure(&format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
         [Peer]\nPublicKey = {}\nEndpoint = {}:{PORT}\nPersistentKeepalive = 1\n\
         AllowedIPs = {NET_A}, 169.254.10.2/32\n",
        keys.peer.private, keys.braid.public, path.a
    ))?;
    gateway.wait_up(START)?;
    retry_until("answers to probes from elsewhere", START, || {
        let status = gateway.status().map_err(|error| error.to_string())?;
        let tunnel = &status["tunnels"][0];
        let is_there = tunnel["remote"] == format!("{}:{PORT}", ROAD[1]) && tunnel["latency_ms"].is_number();
        if is_there { Ok(()) } else { Err(tunnel.to_string()) }
    })?;
    drop(away);
    let silent = Instant::now();
    let _back = peer(&topology, Implementation::Go, &keys, "", "")?;
    answered(&topology.client, SERVER)?;
    // A call where it was heard, and five seconds later one where it is.
    let took = silent.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    Ok(())
}

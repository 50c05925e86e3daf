//! Two Braids that negotiate: they come up by themselves, change keys under load without losing a
//! packet, outlive the death of either process, and find each other through loss and a NAT.

use crate::kernel::kill_part;
use crate::pair::{Pair, START, Setup, Side};
use braid_netns::capture::Capture;
use braid_netns::paced::{Load, Paced};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, SERVER, SERVER6};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Topology, gateway::Gateway, poll_until, retry_until};
use serde_json::Value;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("ike::comes_up_by_itself_in_both_roles", comes_up_by_itself_in_both_roles),
    ("ike::rekeys_under_load_lose_nothing", rekeys_under_load_lose_nothing),
    ("ike::control_killed_under_load_is_adopted", control_killed_under_load_is_adopted),
    ("ike::a_killed_core_gets_new_keys", a_killed_core_gets_new_keys),
    ("ike::a_gateway_that_stops_tells_its_peer", a_gateway_that_stops_tells_its_peer),
    ("ike::comes_up_through_loss", comes_up_through_loss),
    ("ike::follows_a_nat", follows_a_nat),
];

const LOAD: Load = Load::told_apart(64, 2);
/// A handshake on a machine that does something else, with lost messages sent again.
const PATIENCE: Duration = Duration::from_secs(60);
const KEYS: &str = "psk = \"correct horse battery staple\"\n";

/// Negotiated instead of fixed keys. B only answers, unless `both` start.
pub(crate) fn negotiated(side: Side, text: &str, more: &str, both: bool) -> String {
    let mut out = String::new();
    let mut manual = false;
    for line in text.lines() {
        if line == "[tunnel.manual]" {
            manual = true;
            out.push_str("[tunnel.ike]\n");
            out.push_str(KEYS);
            out.push_str(more);
        } else if line.starts_with('[') || line.is_empty() {
            manual = false;
        }
        if !manual {
            out.push_str(line);
            out.push('\n');
            if line.starts_with("type = ") && side == Side::B && !both {
                out.push_str("role = \"respond\"\n");
            }
        }
    }
    out
}

fn start(tunnels: usize, more: &str) -> braid_netns::Result<Pair> {
    let setup = Setup { tunnels, ..Setup::default() };
    let topology = Topology::builder().paths(tunnels).build()?;
    // Nothing but IKE shall speak: a busy machine may well be late for probes.
    Pair::start_edited(&setup, topology, |side, text| negotiated(side, &without_probes(&text), more, false))
}

fn without_probes(text: &str) -> String {
    let keep = |line: &&str| !line.starts_with("probe = ");
    text.lines()
        .filter(keep)
        .flat_map(|line| [line, "\n"])
        .collect::<String>()
        .replace("\n[tunnel.", "\nprobe = \"off\"\n[tunnel.")
}

fn tunnels(status: &Value) -> impl Iterator<Item = &Value> {
    status["tunnels"].as_array().into_iter().flatten()
}

fn spis(status: &Value) -> Vec<String> {
    tunnels(status)
        .map(|tunnel| format!("{} {}", tunnel["child"]["spi_in"], tunnel["child"]["spi_out"]))
        .collect()
}

fn rekeys(status: &Value) -> u64 {
    tunnels(status).map(|tunnel| tunnel["child"]["rekeys"].as_u64().unwrap_or(0)).min().unwrap_or(0)
}

fn answers(topology: &Topology) -> Outcome {
    for address in [SERVER, SERVER6] {
        let answered = ping(&topology.client, address, &Pings::default())?;
        assert!(answered.loss() == 0.0, "{address}: {answered:?}");
    }
    Ok(())
}

fn comes_up_by_itself_in_both_roles() -> Outcome {
    let setup = Setup::default();
    for both in [false, true] {
        let topology = Topology::builder().paths(setup.tunnels).build()?;
        let capture = Capture::start(&topology.gateway_a, "wan0", "ip or ip6", 128)?;
        let pair = Pair::start_edited(&setup, topology, |side, text| negotiated(side, &text, "", both))?;
        answers(&pair.topology)?;
        for gateway in [&pair.a, &pair.b] {
            let status = gateway.status()?;
            for tunnel in tunnels(&status) {
                assert!(tunnel["ike"]["suite"].as_str().is_some_and(|suite| !suite.is_empty()), "{tunnel}");
                assert!(tunnel["child"]["rekey_in_s"].as_u64().is_some_and(|left| left > 0), "{tunnel}");
            }
        }
        // What one sends on is what the other expects. Where both have begun, one of two SAs goes first.
        retry_until("the same SAs at both ends", START, || {
            let status = |gateway: &Gateway| gateway.status().map_err(|error| error.to_string());
            let [a, b] = [status(&pair.a)?, status(&pair.b)?];
            let spis = |status: &Value, names: [&str; 2]| -> Vec<Value> {
                tunnels(status).flat_map(|it| names.map(|name| it["child"][name].clone())).collect()
            };
            let [ours, theirs] = [spis(&a, ["spi_in", "spi_out"]), spis(&b, ["spi_out", "spi_in"])];
            if ours == theirs { Ok(()) } else { Err(format!("{ours:?} and {theirs:?}")) }
        })?;
        for packet in capture.stop()? {
            let inner = packet.headers().is_some_and(|headers| headers.destination.to_string() == SERVER);
            assert!(!inner, "in clear: {packet:?}");
        }
    }
    Ok(())
}

fn rekeys_under_load_lose_nothing() -> Outcome {
    /// Of each tunnel's child SA; the IKE SA changes beside it.
    const REKEYS: u64 = 4;
    let pair = start(2, "child-lifetime = \"6s\"\nlifetime = \"14s\"\n")?;
    let topology = &pair.topology;
    let before = [spis(&pair.a.status()?), spis(&pair.b.status()?)];
    let origin = Instant::now();
    let loads = [
        Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?,
        Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?,
    ];
    let rekeyed = poll_until("the rekeys", PATIENCE, || {
        let counts = [rekeys(&pair.a.status().ok()?), rekeys(&pair.b.status().ok()?)];
        counts.iter().all(|count| *count >= REKEYS).then_some(())
    });
    let seen = format!("{}\n{}", pair.a.status()?, pair.b.status()?);
    for load in loads {
        let log = load.finish()?;
        assert_eq!(log.flaw(), None, "{seen}");
        assert!(log.sent() > 10_000);
    }
    rekeyed.map_err(|timeout| format!("{timeout}: {seen}"))?;
    let after = [spis(&pair.a.status()?), spis(&pair.b.status()?)];
    assert!(before[0].iter().zip(&after[0]).all(|(before, after)| before != after), "{before:?} {after:?}");
    Ok(())
}

fn control_killed_under_load_is_adopted() -> Outcome {
    let pair = start(2, "")?;
    let topology = &pair.topology;
    let before = [spis(&pair.a.status()?), spis(&pair.b.status()?)];
    let origin = Instant::now();
    let loads = [
        Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?,
        Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?,
    ];
    for kill in 0..4 {
        let (gateway, netns) = [(&pair.a, &topology.gateway_a), (&pair.b, &topology.gateway_b)][kill % 2];
        kill_part(netns, "braid-control")?;
        all_up(gateway)?;
    }
    // Both at once, then again before they have adopted anything, or while they do.
    for kills in [1, 1, 3] {
        for _ in 0..kills {
            for netns in [&topology.gateway_a, &topology.gateway_b] {
                kill_part(netns, "braid-control")?;
            }
        }
        for gateway in [&pair.a, &pair.b] {
            all_up(gateway)?;
        }
    }
    let drops = format!("dropped at A {:?}, at B {:?}", pair.a.drops()?, pair.b.drops()?);
    for load in loads {
        assert_eq!(load.finish()?.flaw(), None, "{drops}");
    }
    for (gateway, before) in [&pair.a, &pair.b].into_iter().zip(before) {
        let status = gateway.status()?;
        assert_eq!(spis(&status), before, "{status}");
        for tunnel in tunnels(&status) {
            assert_eq!(tunnel["failovers"], 0, "{tunnel}");
            assert!(tunnel["ike"]["suite"].is_string(), "{tunnel}");
        }
    }
    Ok(())
}

/// Whoever began, and whoever is killed: the peer learns of it from the new negotiation alone.
fn a_killed_core_gets_new_keys() -> Outcome {
    /// From the kill until the last packet that is lost was sent.
    const SILENCE: Duration = Duration::from_secs(3);
    for victim in [Side::A, Side::B] {
        let pair = start(2, "")?;
        let topology = &pair.topology;
        let netns = if victim == Side::A { &topology.gateway_a } else { &topology.gateway_b };
        let before = spis(&pair.a.status()?);
        let origin = Instant::now();
        let loads = [
            Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?,
            Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?,
        ];
        let killed = origin.elapsed();
        kill_part(netns, "braid-dataplane")?;
        let mut seen = String::new();
        for gateway in [&pair.a, &pair.b] {
            let status = retry_until("new keys", PATIENCE, || {
                let status = gateway.status().map_err(|error| error.to_string())?;
                let fresh = spis(&status).iter().all(|new| !before.contains(new));
                let up = tunnels(&status).all(|tunnel| tunnel["state"] == "up");
                if fresh && up { Ok(status) } else { Err(status.to_string()) }
            })?;
            seen += &status.to_string();
        }
        answers(topology)?;
        for load in loads {
            let log = load.finish()?;
            let lost = log.lost();
            let back = lost.iter().map(|packet| packet.sent.saturating_sub(killed)).max();
            assert!(back.is_none_or(|back| back < SILENCE), "{back:?}, {} lost: {seen}", lost.len());
            assert!(lost.len() < log.sent(), "nothing arrived: {seen}");
        }
    }
    Ok(())
}

fn a_gateway_that_stops_tells_its_peer() -> Outcome {
    let mut pair = start(2, "")?;
    let edit = |text: String| negotiated(Side::A, &without_probes(&text), "", false);
    let one = Setup { tunnels: 1, ..Setup::default() }.configuration(Side::A, &pair.topology.paths);
    let one = edit(one);
    pair.a.write_configuration(&one)?;
    let reloaded = pair.a.braid(&["reload"])?;
    assert!(reloaded.status.success(), "{}", reloaded.stderr);
    is_told(&pair.b, 1)?;
    pair.a.process().stop(START)?;
    is_told(&pair.b, 0)?;
    pair.a = Gateway::start(&pair.topology.gateway_a, &one)?;
    pair.a.wait_up(PATIENCE)?;
    pair.b.process().stop(START)?;
    is_told(&pair.a, 0)
}

/// Nothing else may have told it: neither a probe nor DPD speaks this soon.
fn is_told(gateway: &Gateway, tunnel: usize) -> Outcome {
    const SOON: Duration = Duration::from_secs(5);
    retry_until("the peer's last word", SOON, || {
        let status = gateway.status().map_err(|error| error.to_string())?;
        let tunnel = &status["tunnels"][tunnel];
        let reason = tunnel["reason"].as_str().unwrap_or_default();
        let told = ["the peer has deleted the SA", "the peer deleted the SA"];
        if told.iter().any(|told| reason.contains(told)) { Ok(()) } else { Err(tunnel.to_string()) }
    })?;
    Ok(())
}

fn comes_up_through_loss() -> Outcome {
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let topology = Topology::builder().paths(1).build()?;
    let loss = topology.lose(0, 20.0)?;
    let edit = |side, text: String| negotiated(side, &without_probes(&text), "", false);
    let mut pair = Pair::launch(&setup, topology, edit)?;
    pair.a.wait_up(PATIENCE)?;
    pair.b.wait_up(PATIENCE)?;
    for fault in loss {
        fault.undo()?;
    }
    answers(&pair.topology)
}

fn follows_a_nat() -> Outcome {
    let topology = Topology::builder().build()?;
    let internet = topology.internet.clone().ok_or("no internet")?;
    internet.nft(
        "table ip nat { chain post { type nat hook postrouting priority 100; \
         oifname b0 meta l4proto udp masquerade to :40000-49999 random; }; }",
    )?;
    let remote = format!("remote = \"{}\"\n", topology.paths[0].a);
    let setup = Setup { tunnels: 1, ..Setup::default() };
    // DPD speaks up after the mapping is forgotten, and with it the new address is heard.
    let pair = Pair::start_edited(&setup, topology, |side, text| {
        let more = if side == Side::B { "remote-id = \"a.example\"\n" } else { "local-id = \"a.example\"\n" };
        let more = format!("{more}dpd-interval = \"3s\"\ndpd-timeout = \"20s\"\n");
        let text = negotiated(side, &without_probes(&text), &more, false);
        if side == Side::B { text.replace(&remote, "") } else { text }
    })?;
    answers(&pair.topology)?;
    let seen = |gateway: &Gateway| -> braid_netns::Result<String> {
        Ok(gateway.status()?["tunnels"][0]["remote"].as_str().unwrap_or_default().to_owned())
    };
    let mapped = seen(&pair.b)?;
    assert!(!mapped.ends_with(":4500"), "{mapped}");
    let before = spis(&pair.b.status()?);
    // From now on the NAT forgets within a second of silence, and gives out another port.
    for timeout in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
        internet.sysctl(&format!("net/netfilter/{timeout}"), "1")?;
    }
    poll_until("the new mapping", PATIENCE, || (seen(&pair.b).ok()? != mapped).then_some(()))?;
    answers(&pair.topology)?;
    assert_eq!(spis(&pair.b.status()?), before, "the keys outlive the move");
    Ok(())
}

fn all_up(gateway: &Gateway) -> Outcome {
    retry_until("every tunnel up", START, || {
        let status = gateway.status().map_err(|error| error.to_string())?;
        let there =
            tunnels(&status).all(|tunnel| tunnel["state"] == "up" && tunnel["ike"]["suite"].is_string());
        if there { Ok(()) } else { Err(status.to_string()) }
    })?;
    Ok(())
}

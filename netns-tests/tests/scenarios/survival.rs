//! A process killed under load: control, without which traffic goes on, and the core, whose
//! counters die with it.

use crate::failover::answers_to_probes;
use crate::kernel::kill_part;
use crate::pair::{Pair, START, Setup, Side, patient};
use crate::wires::Wires;
use braid_netns::capture::{Capture, Headers};
use braid_netns::gateway::Gateway;
use braid_netns::paced::{Load, Paced};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, CLIENT6, SERVER, SERVER6};
use braid_netns::traffic::{IperfServer, Pings, ping};
use braid_netns::{Error, Result, poll_until, retry_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("survival::control_killed_under_load_loses_nothing", control_killed_under_load_loses_nothing),
    ("survival::control_goes_on_with_what_was_in_force", control_goes_on_with_what_was_in_force),
    ("survival::a_killed_core_resumes_no_manual_key", a_killed_core_resumes_no_manual_key),
];

/// Each way; with TCP beside it, a load at which nothing need be lost.
const LOAD: Load = Load::told_apart(64, 2);
const KILLS: usize = 4;
const FEW: Pings = Pings { count: 2, interval: Duration::from_millis(10), size: 56, df: false };

fn control_killed_under_load_loses_nothing() -> Outcome {
    let pair = Pair::start_patient(&Setup::default())?;
    let topology = &pair.topology;
    let wires = [Wires::watch(topology, Side::A)?, Wires::watch(topology, Side::B)?];
    let before = [pair.a.status()?, pair.b.status()?];
    let server = IperfServer::start(&topology.server, SERVER)?;
    let origin = Instant::now();
    let loads = [
        Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?,
        Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?,
    ];
    let mut tcp = server.tcp_at_rate(&topology.client, 4, 20, 6)?;
    for kill in 0..KILLS {
        let (gateway, netns) = [(&pair.a, &topology.gateway_a), (&pair.b, &topology.gateway_b)][kill % 2];
        kill_part(netns, "braid-control")?;
        all_are(gateway, "up")?;
    }
    let tcp = tcp.finish()?;
    let drops = format!("dropped at A {:?}, at B {:?}", drops(&pair.a.status()?), drops(&pair.b.status()?));
    for load in loads {
        assert_eq!(load.finish()?.flaw(), None, "{drops}");
    }
    assert!(tcp.bytes > 10_000_000, "{tcp:?}");
    for (gateway, before) in [&pair.a, &pair.b].into_iter().zip(&before) {
        let after = gateway.status()?;
        assert_eq!(self::drops(&after), self::drops(before));
        went_on(before, &after);
    }
    for wires in wires {
        let ways = wires.stop()?;
        assert!(ways.count() > 10_000, "{} packets", ways.count());
        assert_eq!(ways.out_of_sequence(), None);
    }
    Ok(())
}

/// Files that cannot be applied stand beside a control that dies: it goes on with what was last applied, and nothing is
/// lost.
fn control_goes_on_with_what_was_in_force() -> Outcome {
    const MORE: &str = "10.99.0.0/16";
    let setup = Setup::default();
    let pair = Pair::start_patient(&setup)?;
    let (netns, paths) = (&pair.topology.gateway_a, &pair.topology.paths);
    let right = patient(setup.configuration(Side::A, paths));
    let reloaded = format!("{right}\n[[route]]\nprefix = \"{MORE}\"\nvia = [\"t0\"]\n");
    let has_more = || netns.ip(&format!("route show {MORE}")).map(|shown| !shown.is_empty());
    let before = pair.a.status()?;
    let (client, server) = (&pair.topology.client, &pair.topology.server);
    let origin = Instant::now();
    let loads = [
        Paced::start(client, server, SERVER, LOAD, origin)?,
        Paced::start(server, client, CLIENT, LOAD, origin)?,
    ];
    for (in_force, is_reloaded) in [(&right, false), (&reloaded, true)] {
        pair.a.write_configuration(in_force)?;
        let ran = pair.a.braid(&["reload"])?;
        assert!(ran.status.success(), "{}", ran.stderr);
        // Without a tunnel: nothing of it may be begun.
        let fewer = Setup { tunnels: 1, ..Setup::default() }.configuration(Side::A, paths);
        let other_device = format!("[core]\ndevice = \"other0\"\n\n{}", patient(fewer));
        let wrongs = [
            (Some("[gateway"), "braid.toml:1"),
            (Some(&other_device), "[core] device"),
            (None, "braid.toml"),
        ];
        for (wrong, why) in wrongs {
            match wrong {
                Some(text) => pair.a.write_configuration(text)?,
                None => {
                    std::fs::remove_file(pair.a.configuration()).map_err(Error::io("cannot remove it"))?
                }
            }
            kill_part(netns, "braid-control")?;
            let after = all_are(&pair.a, "up")?;
            went_on(&before, &after);
            assert_eq!(has_more()?, is_reloaded, "{why}");
            let ran = pair.a.braid(&["reload"])?;
            assert!(!ran.status.success() && ran.stderr.contains(why), "{why}: {}", ran.stderr);
        }
    }
    pair.a.write_configuration(&right)?;
    let ran = pair.a.braid(&["reload"])?;
    assert!(ran.status.success() && !has_more()?, "{}", ran.stderr);
    for load in loads {
        assert_eq!(load.finish()?.flaw(), None, "dropped {:?}", drops(&pair.a.status()?));
    }
    Ok(())
}

/// Waits until the gateway answers and every tunnel is in this state.
fn all_are(gateway: &Gateway, state: &str) -> Result<Value> {
    retry_until(&format!("every tunnel {state}"), START, || {
        let status = gateway.status().map_err(|error| error.to_string())?;
        let there = tunnels(&status).all(|tunnel| tunnel["state"] == state);
        if there { Ok(status) } else { Err(status.to_string()) }
    })
}

/// The same core with the same SAs.
fn went_on(before: &Value, after: &Value) {
    assert!(after["uptime_s"].as_f64() >= before["uptime_s"].as_f64(), "{after}");
    for (before, after) in tunnels(before).zip(tunnels(after)) {
        for field in ["name", "local", "remote", "inside", "mtu", "uplink"] {
            assert_eq!(before[field], after[field]);
        }
        for field in ["spi_in", "spi_out", "suite"] {
            assert_eq!(before["child"][field], after["child"][field]);
        }
        for field in ["sequence_out", "sequence_in"] {
            let [before, after] = [before, after].map(|tunnel| tunnel["child"][field].as_u64());
            assert!(before.is_some() && after > before, "{field} {before:?}, then {after:?}");
        }
        assert_eq!(after["failovers"], 0, "{after}");
    }
}

fn tunnels(status: &Value) -> impl Iterator<Item = &Value> {
    status["tunnels"].as_array().into_iter().flatten()
}

/// Counted drops, without the multicast that kernels send to every device by themselves.
fn drops(status: &Value) -> BTreeMap<&str, u64> {
    let counted = status["drops"].as_object().into_iter().flatten();
    counted
        .filter_map(|(reason, count)| Some((reason.as_str(), count.as_u64()?)))
        .filter(|(reason, count)| *count > 0 && *reason != "not_routable")
        .collect()
}

fn a_killed_core_resumes_no_manual_key() -> Outcome {
    let mut pair = Pair::start(&Setup::default())?;
    let topology = &pair.topology;
    let (netns, far) = (&topology.gateway_a, &topology.gateway_b);
    let mut captures = Vec::new();
    for (netns, device) in [(netns, "wan0"), (netns, "wan1"), (far, "lan0")] {
        captures.push(Capture::start(netns, device, "ip or ip6", 96)?);
    }
    for tunnel in [0, 1] {
        answers_to_probes(&pair, tunnel)?;
    }
    kill_part(netns, "braid-dataplane")?;
    // On the way there, its sockets may come later than its tables.
    let status = retry_until("the tunnels given up", START, || {
        let status = pair.a.status().map_err(|error| error.to_string())?;
        let reason = |tunnel: &Value| tunnel["reason"].as_str().unwrap_or_default().to_owned();
        let given_up = |tunnel| reason(tunnel).starts_with("manual keys are not reused");
        if tunnels(&status).all(given_up) { Ok(status) } else { Err(status.to_string()) }
    })?;
    for tunnel in tunnels(&status) {
        assert_eq!(tunnel["state"], "down");
        assert_eq!(tunnel["child"], Value::Null);
        assert_eq!(tunnel["mtu"], 1438);
    }
    // Silence is what the peer hears.
    for tunnel in tunnels(&all_are(&pair.b, "down")?) {
        assert_eq!(tunnel["last_failure"]["cause"], "probe", "{tunnel}");
    }
    let before = count(&pair.a.status()?, "no_tunnel");
    for address in [SERVER, SERVER6] {
        assert!(ping(&topology.client, address, &FEW)?.rtt_ms.is_empty(), "{address}");
    }
    assert_eq!(count(&pair.a.status()?, "no_tunnel") - before, u64::from(2 * FEW.count));
    for capture in captures {
        let packets = capture.stop()?;
        let clear = packets.iter().filter_map(|packet| packet.headers()).find(is_inner);
        assert_eq!(clear, None);
    }
    // Other keys bring it back.
    let other = Setup { suite: "aes256gcm16", key_bytes: 36, ..Setup::default() };
    for (gateway, side) in [(&pair.a, Side::A), (&pair.b, Side::B)] {
        gateway.write_configuration(&other.configuration(side, &topology.paths))?;
        let reload = gateway.braid(&["reload"])?;
        assert!(reload.status.success(), "{}", reload.stderr);
    }
    pair.wait_up()?;
    for address in [SERVER, SERVER6] {
        assert_eq!(ping(&pair.topology.client, address, &FEW)?.rtt_ms.len(), 2, "{address}");
    }
    unreachable_when_all_is_gone(pair)
}

/// The launcher killed with what it started: the device is gone, the `unreachable` routes are not.
fn unreachable_when_all_is_gone(mut pair: Pair) -> Outcome {
    let topology = &pair.topology;
    pair.a.process().signal(Signal::SIGKILL);
    pair.a.process().wait(START)?;
    poll_until("the device gone", START, || {
        topology.gateway_a.devices().ok()?.iter().all(|device| device != "braid0").then_some(())
    })?;
    for address in [SERVER, SERVER6] {
        let refused = topology.client.output(&["ping", "-n", "-c", "2", "-W", "1", address])?;
        let told = refused.stdout.matches("nreachable").count() + refused.stdout.matches("No route").count();
        assert!(told > 0, "{address}: {}", refused.stdout);
    }
    Ok(())
}

/// Addresses that no wire outside and no far network may show while no tunnel is up.
fn is_inner(headers: &Headers) -> bool {
    let inner: Vec<IpAddr> =
        [CLIENT, CLIENT6, SERVER, SERVER6].iter().filter_map(|text| text.parse().ok()).collect();
    inner.contains(&headers.source) || inner.contains(&headers.destination)
}

fn count(status: &Value, reason: &str) -> u64 {
    status["drops"][reason].as_u64().unwrap_or_default()
}

//! Changes while traffic flows: drain and undrain, and reloads that add, weigh and remove tunnels.
//! Nothing may be lost and nothing overtaken, whatever is changed.

use crate::pair::{Pair, START, Setup, Side, patient};
use crate::wires::{Ways, Wires, now};
use braid_netns::gateway::Gateway;
use braid_netns::paced::{Load, Paced};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, NET_A, NET_A6, NET_B, NET_B6, SERVER};
use braid_netns::{Result, Topology, retry_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("change::drain_and_undrain_under_load", drain_and_undrain_under_load),
    ("change::reload_under_load", reload_under_load),
];

/// A packet of each flow every 48 ms: every pause is an idle gap, also where the paths seem to differ by
/// some of it (a probe that was late on a slow machine).
const SPARSE: Load = Load::told_apart(48, 1);
/// A packet of each flow every 2 ms: idle only when the machine is slow. Longer than any of the others.
const BUSY: Load = Load { smallest: 600, port: 21_000, ..Load::told_apart(8, 4) };
const STAGE: Duration = Duration::from_millis(600);
/// Whatever was decided before has left the gateways.
const SETTLE: Duration = Duration::from_millis(100);

/// Both loads, both ways.
struct Traffic(Vec<Paced>);

impl Traffic {
    fn start(topology: &Topology) -> Result<Self> {
        let (client, server) = (&topology.client, &topology.server);
        let origin = Instant::now();
        let mut all = Vec::new();
        for load in [SPARSE, BUSY] {
            all.push(Paced::start(client, server, SERVER, load, origin)?);
            all.push(Paced::start(server, client, CLIENT, load, origin)?);
        }
        Ok(Self(all))
    }

    /// Ends it; every packet must have arrived once and in order.
    fn finish(self, gateways: [&Gateway; 2]) -> Outcome {
        let drops = gateways.map(|gateway| gateway.status().map(|status| status["drops"].to_string()));
        for load in self.0 {
            assert_eq!(load.finish()?.flaw(), None, "{drops:?}");
        }
        Ok(())
    }
}

/// A stage of traffic, from when all that was before has settled; on the captures' clock.
fn stage() -> Range<Duration> {
    sleep(SETTLE);
    let start = now();
    sleep(STAGE);
    start..now()
}

fn drain_and_undrain_under_load() -> Outcome {
    const DRAINED: usize = 0;
    let pair = Pair::start_patient(&Setup::default())?;
    let topology = &pair.topology;
    let order = |verb: &str| -> Outcome {
        for gateway in [&pair.a, &pair.b] {
            let ran = gateway.braid(&[verb, "t0"])?;
            assert!(ran.status.success(), "{verb}: {}", ran.stderr);
        }
        Ok(())
    };
    let wires = [Wires::watch(topology, Side::A)?, Wires::watch(topology, Side::B)?];
    let traffic = Traffic::start(topology)?;
    let before = stage();
    order("drain")?;
    let drained = stage();
    assert_eq!(pair.a.status()?["tunnels"][DRAINED]["state"], "draining");
    traffic.finish([&pair.a, &pair.b])?;
    // All flows have been idle: none is left on it, whoever starts.
    let traffic = Traffic::start(topology)?;
    let anew = stage();
    assert_eq!(pair.a.status()?["tunnels"][DRAINED]["buckets"], 0);
    order("undrain")?;
    let undrained = stage();
    assert_eq!(pair.a.status()?["tunnels"][DRAINED]["state"], "up");
    traffic.finish([&pair.a, &pair.b])?;
    for wires in wires {
        let ways = wires.stop()?;
        assert_eq!(ways.out_of_sequence(), None);
        let on = |load, during: &Range<Duration>| flows_on(&ways, load, DRAINED, during);
        let (sparse, busy) = (on(SPARSE, &before), on(BUSY, &before));
        assert!(!sparse.is_empty() && !busy.is_empty(), "the tunnel carried nothing");
        assert_eq!(on(SPARSE, &drained), BTreeSet::new());
        assert!(on(BUSY, &drained).is_subset(&busy));
        assert_eq!((on(SPARSE, &anew), on(BUSY, &anew)), (BTreeSet::new(), BTreeSet::new()));
        assert_eq!(on(SPARSE, &undrained), sparse);
        assert!(on(BUSY, &undrained).is_subset(&busy));
    }
    Ok(())
}

fn flows_on(ways: &Ways, load: Load, path: usize, during: &Range<Duration>) -> BTreeSet<usize> {
    let flows = ways.of_flows(load, during.clone());
    flows.into_iter().filter(|(_, paths)| paths.contains(&path)).map(|(flow, _)| flow).collect()
}

/// Three tunnels in the file; `via` names those that carry, each with its weight.
fn configuration(topology: &Topology, side: Side, tunnels: usize, via: &[(usize, u16)]) -> String {
    let mut text = Setup { tunnels, ..Setup::default() }.configuration(side, &topology.paths);
    let all: Vec<String> = (0..tunnels).map(|index| format!("\"t{index}\"")).collect();
    let used: Vec<String> = via.iter().map(|(index, _)| format!("\"t{index}\"")).collect();
    text = text.replace(&format!("via = [{}]", all.join(", ")), &format!("via = [{}]", used.join(", ")));
    // The two sides are never reloaded in the same moment: what one sends already or still, the
    // other has to take.
    let far = if side == Side::A { [NET_B, NET_B6] } else { [NET_A, NET_A6] };
    for index in 0..tunnels {
        let weight = via.iter().find(|(used, _)| *used == index).map_or(1, |(_, weight)| *weight);
        let name = format!("name = \"t{index}\"\n");
        text = text.replace(&name, &format!("{name}weight = {weight}\nallowed = {far:?}\n"));
    }
    patient(text)
}

fn reload_under_load() -> Outcome {
    let topology = Topology::builder().paths(3).build()?;
    let two = [(0, 1), (1, 1)];
    let start = |side, netns| Gateway::start(netns, &configuration(&topology, side, 2, &two));
    let mut a = start(Side::A, &topology.gateway_a)?;
    let mut b = start(Side::B, &topology.gateway_b)?;
    a.wait_up(START)?;
    b.wait_up(START)?;
    let reload = |tunnels, via: &[(usize, u16)]| -> Outcome {
        for (gateway, side) in [(&a, Side::A), (&b, Side::B)] {
            gateway.write_configuration(&configuration(&topology, side, tunnels, via))?;
            let ran = gateway.braid(&["reload"])?;
            assert!(ran.status.success(), "{}", ran.stderr);
        }
        for gateway in [&a, &b] {
            all_up(gateway, tunnels)?;
        }
        Ok(())
    };
    let wires = [Wires::watch(&topology, Side::A)?, Wires::watch(&topology, Side::B)?];
    let before = a.status()?;
    let traffic = Traffic::start(&topology)?;
    let at_first = stage();
    // A tunnel first comes up on both sides, then is used: its peer may not know it yet.
    reload(3, &two)?;
    let idle = stage();
    reload(3, &[(0, 1), (1, 1), (2, 2)])?;
    let three = stage();
    reload(3, &[(0, 5), (1, 1), (2, 1)])?;
    stage();
    invalid_file_changes_nothing(&a)?;
    stage();
    let after = a.status()?;
    // And is first used no more, then removed.
    reload(3, &two)?;
    let unused = stage();
    traffic.finish([&a, &b])?;
    let traffic = Traffic::start(&topology)?;
    reload(2, &two)?;
    let at_last = stage();
    traffic.finish([&a, &b])?;
    unchanged(&before, &after);
    unchanged(&after, &a.status()?);
    for wires in wires {
        let ways = wires.stop()?;
        assert_eq!(ways.out_of_sequence(), None);
        let third = |during| flows_on(&ways, SPARSE, 2, during).len();
        assert_eq!([&at_first, &idle, &unused, &at_last].map(third), [0; 4]);
        // Half of the flows; 48 flows in a fair draw are between 8 and 40 with certainty.
        assert!((8..=40).contains(&third(&three)), "{} flows on the new tunnel", third(&three));
    }
    Ok(())
}

fn invalid_file_changes_nothing(gateway: &Gateway) -> Outcome {
    let before = gateway.status()?;
    for (text, said) in [("[gateway\n", "braid.toml:1"), ("[gateway]\nnaem = \"x\"\n", "name")] {
        gateway.write_configuration(text)?;
        let ran = gateway.braid(&["reload"])?;
        assert_eq!(ran.status.code(), Some(2), "{}", ran.stderr);
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
    let after = gateway.status()?;
    unchanged(&before, &after);
    for field in ["gateway", "routes"] {
        assert_eq!(before[field], after[field]);
    }
    Ok(())
}

fn all_up(gateway: &Gateway, count: usize) -> Result<()> {
    retry_until("every tunnel up", START, || {
        let status = gateway.status().map_err(|error| error.to_string())?;
        let heard = |tunnel: &Value| tunnel["state"] == "up" && tunnel["latency_ms"].is_number();
        let tunnels = status["tunnels"].as_array().ok_or("no tunnels")?;
        if tunnels.len() == count && tunnels.iter().all(heard) { Ok(()) } else { Err(status.to_string()) }
    })
}

/// The tunnels of both have the same SAs, which went on, and were never out of service.
fn unchanged(before: &Value, after: &Value) {
    let tunnels = |status: &'_ Value| status["tunnels"].as_array().cloned().unwrap_or_default();
    for old in tunnels(before).iter().take(2) {
        let now = tunnels(after).into_iter().find(|tunnel| tunnel["name"] == old["name"]);
        let now = now.unwrap_or_default();
        let service = |tunnel: &Value| (tunnel["state"].to_string(), tunnel["failovers"].to_string());
        assert_eq!(service(&now), service(old), "{old}, then {now}");
        for field in ["spi_in", "spi_out", "suite"] {
            assert_eq!(now["child"][field], old["child"][field]);
        }
        let sequence = |tunnel: &Value| tunnel["child"]["sequence_out"].as_u64();
        assert!(sequence(&now) >= sequence(old) && sequence(old).is_some(), "{old}, then {now}");
        assert!(now["since_s"].as_f64() >= old["since_s"].as_f64(), "{old}, then {now}");
    }
}

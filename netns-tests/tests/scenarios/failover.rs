//! A tunnel cut in mid-path, silently, under a paced load of many flows in both directions: how much
//! is lost and for how long, and that no flow of a healthy tunnel notices.

use crate::bfd::Stopped;
use crate::pair::{PROBE_INTERVAL, PROBE_MULTIPLIER, Pair, START, Setup, Side, patient};
use crate::wires::{Ways, Wires, now};
use braid_netns::gateway::Gateway;
use braid_netns::paced::{Load, Log, Paced};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, SERVER};
use braid_netns::{Result, Topology, retry_until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("failover::one_of_two_tunnels_cut", one_of_two_tunnels_cut),
    ("failover::one_of_four_tunnels_cut", || one_of_four_tunnels_cut(None)),
    ("failover::one_of_four_tunnels_cut_at_two_workers", || one_of_four_tunnels_cut(Some(2))),
    ("failover::one_direction_of_a_tunnel_cut", one_direction_of_a_tunnel_cut),
    ("failover::without_preemption", without_preemption),
    ("failover::a_router_says_that_the_peer_is_not_reached", a_router_says_that_the_peer_is_not_reached),
    ("failover::a_link_is_lost_while_control_stands_still", a_link_is_lost_while_control_stands_still),
];

/// Each way: every flow has a packet each 16 ms.
pub(crate) const LOAD: Load = Load::told_apart_anywhere(64, 2).of_tos(0x40);
/// Which tunnel.
pub(crate) const CUT: usize = 0;
/// A probe's interval until the first one meets the cut, the detection time, and for a machine with
/// two CPUs and more processes than that to come to it.
const SLACK: Duration = Duration::from_millis(600);
pub(crate) const RECOVERY: Duration =
    Duration::from_millis(PROBE_INTERVAL * (PROBE_MULTIPLIER + 1)).saturating_add(SLACK);
/// By how many detection times the sender into a dead direction is later than who hears nothing: the peer is
/// heard all the while.
const ONE_WAY_DETECTIONS: u64 = 5;
const ONE_WAY_RECOVERY: Duration =
    Duration::from_millis(PROBE_INTERVAL * (PROBE_MULTIPLIER * ONE_WAY_DETECTIONS + 2)).saturating_add(SLACK);
/// Long beside all the above, short beside a test's patience.
pub(crate) const STAGE: Duration = Duration::from_millis(1200);
/// A tunnel may have been offered a moment after the first packet: whose flow has gone home by then.
const SETTLE: Duration = Duration::from_millis(500);
/// What was on its way in the moment of the cut.
const UNDER_WAY: Duration = Duration::from_millis(20);

fn one_of_two_tunnels_cut() -> Outcome {
    cut_and_restore(&Pair::start(&Setup::default())?, 2)?;
    Ok(())
}

fn one_of_four_tunnels_cut(workers: Option<u32>) -> Outcome {
    cut_and_restore(&Pair::start(&Setup { tunnels: 4, workers, ..Setup::default() })?, 4)?;
    Ok(())
}

/// The text with probes that miss nothing in ten seconds.
fn slowly_probed(text: &str) -> String {
    let probe = format!("{{ interval = \"{PROBE_INTERVAL}ms\", multiplier = {PROBE_MULTIPLIER} }}");
    text.replace(&probe, "{ interval = \"1s\", multiplier = 10 }")
}

/// The core hears of its uplinks itself.
fn a_link_is_lost_while_control_stands_still() -> Outcome {
    let topology = Topology::builder().paths(2).build()?;
    let pair = Pair::start_edited(&Setup::default(), topology, |_, text| slowly_probed(&text))?;
    answers_to_probes(&pair, CUT)?;
    let topology = &pair.topology;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let origin = Instant::now();
    let load = Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?;
    sleep(STAGE);
    let control = Stopped::control(&topology.gateway_a)?;
    let cut = origin.elapsed();
    // The other end of the cable.
    internet.ip("link set a0 down")?;
    sleep(STAGE);
    internet.ip("link set a0 up")?;
    drop(control);
    wait_for_state(&pair.a, "up")?;
    let status = pair.a.status()?;
    let tunnel = &status["tunnels"][CUT];
    assert_eq!(
        (&tunnel["last_failure"]["cause"], &tunnel["failovers"]),
        (&"link".into(), &1.into()),
        "{tunnel}"
    );
    // Most often none at all: the link says so itself.
    let log = load.finish()?;
    let excused = cut.saturating_sub(UNDER_WAY)..cut + RECOVERY;
    let late = log.lost().into_iter().find(|packet| !excused.contains(&packet.sent));
    assert_eq!((late, log.refused, log.damaged), (None, 0, 0), "cut at {cut:?}");
    Ok(())
}

/// Long before the probes would have missed anything by themselves.
fn a_router_says_that_the_peer_is_not_reached() -> Outcome {
    for (setup, family) in [(Setup::default(), 4), (Setup { outer6: Some(CUT), ..Setup::default() }, 6)] {
        let topology = Topology::builder().paths(2).build()?;
        let pair = Pair::start_edited(&setup, topology, |_, text| slowly_probed(&text))?;
        answers_to_probes(&pair, CUT)?;
        let internet = pair.topology.internet.as_ref().ok_or("no internet")?;
        let path = &pair.topology.paths[CUT];
        let origin = Instant::now();
        let load = Paced::start(&pair.topology.client, &pair.topology.server, SERVER, LOAD, origin)?;
        let fault = braid_netns::fault::cut(internet, &["b0"])?;
        let to = if family == 6 { format!("{}/128", path.b6) } else { format!("{}/32", path.b) };
        internet.ip(&format!("-{family} route add unreachable {to}"))?;
        let said = Instant::now();
        wait_for_state(&pair.a, "down")?;
        // Ten seconds without the router's word.
        assert!(said.elapsed() < Duration::from_secs(5), "{:?}", said.elapsed());
        assert_eq!(cause(&pair.a)?, "probe");
        load.finish()?;
        internet.ip(&format!("-{family} route del unreachable {to}"))?;
        fault.undo()?;
        wait_for_state(&pair.a, "up")?;
    }
    Ok(())
}

/// Waits until the probes of this tunnel have a say, at both ends: those that were never answered have none.
pub(crate) fn answers_to_probes(pair: &Pair, tunnel: usize) -> Result<()> {
    for gateway in [&pair.a, &pair.b] {
        retry_until("answers to probes", START, || {
            let tunnel = gateway.status().map_err(|error| error.to_string())?["tunnels"][tunnel].clone();
            if tunnel["latency_ms"].is_number() { Ok(()) } else { Err(tunnel.to_string()) }
        })?;
    }
    Ok(())
}

/// A tunnel that comes back stands by for the one that took its traffic, and follows it when that is drained.
fn without_preemption() -> Outcome {
    let setup = Setup::default();
    let preferred = "[[tunnel]]\nname = \"t0\"\npriority = 10\npreempt = false\n";
    let pair = Pair::start_edited(&setup, Topology::builder().paths(2).build()?, |_, text| {
        patient(text).replace("[[tunnel]]\nname = \"t0\"\n", preferred)
    })?;
    let topology = &pair.topology;
    let states = |wanted: [&str; 2]| -> Outcome {
        for gateway in [&pair.a, &pair.b] {
            retry_until(&format!("{wanted:?}"), START, || {
                let status = gateway.status().map_err(|error| error.to_string())?;
                let tunnels = &status["tunnels"];
                let is = |index: usize| tunnels[index]["state"] == wanted[index];
                if is(0) && is(1) { Ok(()) } else { Err(tunnels.to_string()) }
            })?;
        }
        Ok(())
    };
    let both = |command: &str, tunnel: &str| -> Outcome {
        for gateway in [&pair.a, &pair.b] {
            let said = gateway.braid(&[command, tunnel])?;
            assert!(said.status.success(), "{}", said.stderr);
        }
        Ok(())
    };
    states(["up", "standby"])?;
    answers_to_probes(&pair, CUT)?;
    let faults = topology.cut(CUT)?;
    states(["down", "up"])?;
    for fault in faults {
        fault.undo()?;
    }
    states(["standby", "up"])?;
    let origin = Instant::now();
    let loads = [
        Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?,
        Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?,
    ];
    sleep(STAGE);
    let reason = pair.a.status()?["tunnels"][CUT]["reason"].to_string();
    assert!(reason.contains("preempt = false"), "{reason}");
    both("drain", "t1")?;
    states(["up", "draining"])?;
    both("undrain", "t1")?;
    states(["up", "standby"])?;
    sleep(STAGE);
    for load in loads {
        assert_eq!(load.finish()?.flaw(), None);
    }
    Ok(())
}

/// When things happened: on the load's clock, and on the captures'.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) load: Duration,
    capture: Duration,
}

impl Moment {
    pub(crate) fn now(origin: Instant) -> Self {
        Self { load: origin.elapsed(), capture: now() }
    }
}

/// Nothing of A's comes through any more, all of B's does: either end finds its own way out.
fn one_direction_of_a_tunnel_cut() -> Outcome {
    let pair = Pair::start(&Setup::default())?;
    let topology = &pair.topology;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let wires = [Wires::watch(topology, Side::A)?, Wires::watch(topology, Side::B)?];
    let origin = Instant::now();
    let there = Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?;
    let back = Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?;
    sleep(SETTLE);
    let steady = Moment::now(origin);
    sleep(STAGE);
    let cut = Moment::now(origin);
    let fault = braid_netns::fault::cut(internet, &["a0"])?;
    state_of_the_cut(&pair, "down")?;
    let causes = [cause(&pair.a)?, cause(&pair.b)?];
    sleep(STAGE);
    let restored = Moment::now(origin);
    fault.undo()?;
    state_of_the_cut(&pair, "up")?;
    sleep(STAGE);
    let end = Moment::now(origin);
    let there = there.finish()?;
    bounded_by(&there, cut, restored, ONE_WAY_RECOVERY);
    // The way back is whole; what B sends by it is heard until B takes the other.
    let back = back.finish()?;
    assert_eq!((back.lost().len(), back.refused, back.damaged), (0, 0, 0), "{:?}", back.flaw());
    assert_eq!(causes, ["one-way", "probe"]);
    for wires in wires {
        let ways = wires.stop()?;
        assert_eq!(ways.out_of_sequence(), None);
        stayed(&ways, (CUT, 2), [steady, cut, restored, end], ONE_WAY_RECOVERY);
    }
    Ok(())
}

/// Of a pair with so many tunnels; says what each gateway names as the cause.
pub(crate) fn cut_and_restore(pair: &Pair, tunnels: usize) -> Result<[String; 2]> {
    cut_and_restore_under(pair, tunnels, SERVER, |_| Ok(()))
}

/// The same towards this host, with more to wait for after the cut (`false`) and after its end (`true`).
pub(crate) fn cut_and_restore_under(
    pair: &Pair,
    tunnels: usize,
    server: &str,
    settled: impl Fn(bool) -> Result<()>,
) -> Result<[String; 2]> {
    cut_one_and_restore(pair, (CUT, tunnels), server, settled)
}

/// The same of any tunnel of so many.
pub(crate) fn cut_one_and_restore(
    pair: &Pair,
    (tunnel, tunnels): (usize, usize),
    server: &str,
    settled: impl Fn(bool) -> Result<()>,
) -> Result<[String; 2]> {
    let topology = &pair.topology;
    let wires = [Wires::watch(topology, Side::A)?, Wires::watch(topology, Side::B)?];
    let origin = Instant::now();
    let start = || {
        let there = Paced::start(&topology.client, &topology.server, server, LOAD, origin)?;
        let back = Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?;
        Result::Ok([there, back])
    };
    let before = failures(pair)?;
    let loads = start()?;
    sleep(SETTLE);
    let steady = Moment::now(origin);
    sleep(STAGE);
    assert_eq!(failures(pair)?, before, "something failed before the cut");
    let cut = Moment::now(origin);
    let faults = topology.cut(tunnel)?;
    state_of(pair, tunnel, "down")?;
    let causes = [cause_of(&pair.a, tunnel)?, cause_of(&pair.b, tunnel)?];
    settled(false)?;
    sleep(STAGE);
    let restored = Moment::now(origin);
    for fault in faults {
        fault.undo()?;
    }
    state_of(pair, tunnel, "up")?;
    settled(true)?;
    sleep(STAGE);
    let end = Moment::now(origin);
    for load in loads {
        bounded_by(&load.finish()?, cut, restored, RECOVERY);
    }
    // Those flows were busy all the time. After a gap they go home.
    let again = Moment::now(origin);
    let loads = start()?;
    sleep(STAGE);
    for load in loads {
        assert_eq!(load.finish()?.flaw(), None);
    }
    for wires in wires {
        let ways = wires.stop()?;
        assert_eq!(ways.out_of_sequence(), None);
        stayed(&ways, (tunnel, tunnels), [steady, cut, restored, end], RECOVERY);
        let home = ways.of_flows(LOAD, again.capture..now());
        let used: BTreeSet<usize> = home.values().flatten().copied().collect();
        assert!(used.contains(&tunnel), "nothing came home: {used:?}");
    }
    Ok(causes)
}

/// What has failed so far, of the tunnels and of BGP's sessions on either side.
fn failures(pair: &Pair) -> Result<[Vec<Value>; 2]> {
    let of = |gateway: &Gateway| {
        let status = gateway.status()?;
        let tunnels = status["tunnels"].as_array().into_iter().flatten();
        let neighbors = status["neighbors"].as_array().into_iter().flatten();
        let tunnels = tunnels.map(|tunnel| {
            let failure = &tunnel["last_failure"];
            json!([tunnel["state"], failure["cause"], failure["reason"], failure["detected_ns"]])
        });
        let neighbors = neighbors.map(|neighbor| json!([neighbor["state"], neighbor["established"]]));
        Result::Ok(tunnels.chain(neighbors).collect())
    };
    Ok([of(&pair.a)?, of(&pair.b)?])
}

/// Why the gateway took the tunnel out.
pub(crate) fn cause(gateway: &Gateway) -> Result<String> {
    cause_of(gateway, CUT)
}

fn cause_of(gateway: &Gateway, tunnel: usize) -> Result<String> {
    let status = gateway.status()?;
    Ok(status["tunnels"][tunnel]["last_failure"]["cause"].as_str().unwrap_or_default().to_owned())
}

pub(crate) fn state_of_the_cut(pair: &Pair, state: &str) -> Result<()> {
    state_of(pair, CUT, state)
}

fn state_of(pair: &Pair, tunnel: usize, state: &str) -> Result<()> {
    wait_for_state_of(&pair.a, tunnel, state)?;
    wait_for_state_of(&pair.b, tunnel, state)
}

pub(crate) fn wait_for_state(gateway: &Gateway, state: &str) -> Result<()> {
    wait_for_state_of(gateway, CUT, state)
}

fn wait_for_state_of(gateway: &Gateway, tunnel: usize, state: &str) -> Result<()> {
    retry_until(&format!("the cut tunnel {state}"), START, || {
        let status = gateway.status().map_err(|error| error.to_string())?;
        let tunnel = &status["tunnels"][tunnel];
        if tunnel["state"] == state { Ok(()) } else { Err(tunnel.to_string()) }
    })
}

/// Loss and disorder only where the cut excuses them: from the cut on, as long as it may take to
/// notice it.
pub(crate) fn bounded_by(log: &Log, cut: Moment, restored: Moment, recovery: Duration) {
    let excused = cut.load.saturating_sub(UNDER_WAY)..cut.load + recovery;
    assert!(excused.end < restored.load, "the cut lasted too short to judge");
    let lost = log.lost();
    let late = lost.iter().filter(|packet| !excused.contains(&packet.sent)).min_by_key(|packet| packet.sent);
    assert_eq!(late, None, "cut at {:?}: {} lost, {:?}", cut.load, lost.len(), log.flaw());
    let disorder = log.overtaken();
    let outside = disorder.iter().find(|late| !excused.contains(&late.at));
    assert_eq!(outside, None, "cut at {:?}", cut.load);
    assert_eq!((log.refused, log.damaged), (0, 0));
    // At most what the flows of one tunnel send until it is noticed.
    let flows: BTreeSet<usize> = lost.iter().map(|packet| packet.flow).collect();
    let per_flow = recovery.as_millis() / LOAD.flow_interval().as_millis() + 2;
    assert!(!lost.is_empty(), "a cut that loses nothing is none");
    assert!(lost.len() as u128 <= flows.len() as u128 * per_flow, "{} of {flows:?}", lost.len());
    assert!(flows.len() < LOAD.flows, "flows of every tunnel lost packets");
}

/// No flow of a healthy tunnel is ever seen elsewhere; those of the cut one all find another way.
fn stayed(
    ways: &Ways,
    (hit_tunnel, tunnels): (usize, usize),
    [steady, cut, restored, end]: [Moment; 4],
    recovery: Duration,
) {
    let whole = steady.capture..end.capture;
    let before = ways.of_flows(LOAD, steady.capture..cut.capture);
    assert_eq!(before.len(), LOAD.flows);
    let mut hit = 0;
    let meanwhile = ways.of_flows(LOAD, cut.capture + recovery..restored.capture);
    for (flow, paths) in &before {
        assert_eq!(paths.len(), 1, "flow {flow} before the cut: {paths:?}");
        if paths.contains(&hit_tunnel) {
            hit += 1;
            let now = meanwhile.get(flow);
            assert!(
                now.is_some_and(|now| now.len() == 1 && !now.contains(&hit_tunnel)),
                "flow {flow}: {now:?}"
            );
        } else {
            let home = paths.first().copied().unwrap_or_default();
            let moved = ways.first_elsewhere(LOAD, whole.clone(), *flow, home);
            let moved = moved.map(|(at, to)| (to, at.saturating_sub(cut.capture)));
            let lasted = restored.capture - cut.capture;
            assert_eq!(moved, None, "flow {flow} left {home} for, after the cut of {lasted:?}");
        }
    }
    assert!(hit > 0 && hit < LOAD.flows, "{hit} flows of {tunnels} tunnels hit");
}

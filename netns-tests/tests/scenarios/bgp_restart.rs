//! Restarts of either end of a BGP session under load, with Debian's BIRD and FRR at the other end: control is killed
//! and comes back, the other's daemon is killed and comes back, and no packet is lost (RFC 4724).

use crate::bfd::{INTERVAL_MS, as_rfc_5881_wants, failovers, sessions_are, with_bfd};
use crate::bgp::{SOON, answered, both_ways, established, far, neighbors, start, until, with_bgp};
use crate::kernel::kill_part;
use crate::pair::{Pair, Setup, Side, patient};
use braid_netns::capture::Capture;
use braid_netns::frr::Frr;
use braid_netns::paced::{Load, Paced};
use braid_netns::routing::{Bird, Speaker};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, SERVER};
use braid_netns::{Netns, Result, Topology, retry_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Instant;

pub(crate) const ALL: &[Scenario] = &[
    ("bgp_restart::bird_and_control_restart_under_load", bird_and_control_restart_under_load),
    ("bgp_restart::frr_and_control_restart_under_load", frr_and_control_restart_under_load),
    ("bgp_restart::frr_tells_control_from_the_path", frr_tells_control_from_the_path),
];

/// Each way.
const LOAD: Load = Load::told_apart(64, 2);
const KILLS: usize = 2;

fn loads(topology: &Topology) -> Result<[Paced; 2]> {
    let origin = Instant::now();
    Ok([
        Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?,
        Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?,
    ])
}

/// Of the far side, which keeps routes and says that its own are kept.
fn speaker(tunnels: usize) -> Speaker {
    Speaker { graceful_restart: true, timers: (10, 30), ..far(tunnels) }
}

/// The daemon at the other end.
enum Other {
    Bird(Option<Bird>),
    Frr(Frr),
}

impl Other {
    fn kill(&mut self) -> Result<()> {
        match self {
            Self::Bird(bird) => {
                if let Some(mut bird) = bird.take() {
                    bird.process().signal(Signal::SIGKILL);
                    bird.process().wait(SOON)?;
                }
                Ok(())
            }
            Self::Frr(frr) => frr.kill("bgpd"),
        }
    }

    fn start_again(&mut self, netns: &Netns) -> Result<()> {
        match self {
            Self::Bird(bird) => {
                *bird = Some(Bird::start(netns, &speaker(2), &[])?);
                Ok(())
            }
            Self::Frr(frr) => frr.start_again("bgpd", &without_end_of_rib()),
        }
    }
}

fn bird_and_control_restart_under_load() -> Outcome {
    both_restart(|netns| Ok(Other::Bird(Some(Bird::start(netns, &speaker(2), &[])?))))
}

fn frr_and_control_restart_under_load() -> Outcome {
    both_restart(|netns| Ok(Other::Frr(Frr::speak(netns, &speaker(2))?)))
}

/// FRR 8.4 that has restarted says that it has sent all, and sends it some seconds later: whoever believes it has no
/// routes meanwhile (RFC 4724 section 4.2).
fn without_end_of_rib() -> String {
    format!("router bgp {}\n bgp graceful-restart disable-eor\nexit\n", far(1).asn)
}

fn both_restart(other: impl Fn(&Netns) -> Result<Other>) -> Outcome {
    let pair = start(2, &neighbors(2, "hold-time = \"30s\""))?;
    let topology = &pair.topology;
    let mut other = other(&topology.gateway_b)?;
    let all_there = |status: &Value| {
        established(status) == 2 && both_ways(status, &["t0", "t1"]) && stale(status) == [0, 0]
    };
    let before = until(&pair.a, "routes by both", all_there)?;
    assert_eq!(before["neighbors"][0]["graceful_restart"], true, "{before}");
    answered(topology)?;
    let under_way = loads(topology)?;
    for _ in 0..KILLS {
        kill_part(&topology.gateway_a, "braid-control")?;
        until(&pair.a, "both sessions again", all_there)?;
    }
    // The other side restarts: its routes stay, and are there when it is back.
    for _ in 0..KILLS {
        other.kill()?;
        let status = until(&pair.a, "the end of both sessions", |status| established(status) == 0)?;
        assert!(both_ways(&status, &["t0", "t1"]), "{status}");
        assert!(stale(&status).iter().all(|count| *count >= 2), "{status}");
        other.start_again(&topology.gateway_b)?;
        let status = until(&pair.a, "both sessions again", |status| established(status) == 2)?;
        assert!(both_ways(&status, &["t0", "t1"]), "{status}");
        until(&pair.a, "nothing stale", all_there)?;
    }
    for load in under_way {
        assert_eq!(load.finish()?.flaw(), None);
    }
    answered(topology)
}

/// Routes kept of each neighbor that is gone.
fn stale(status: &Value) -> Vec<u64> {
    let neighbors = status["neighbors"].as_array().into_iter().flatten();
    neighbors.filter_map(|neighbor| neighbor["stale"].as_u64()).collect()
}

/// FRR's BFD is not one of its BGP (`check-control-plane-failure`): the core goes on with its sessions, whose C bit
/// says so, and what FRR has learned stays in use until control is back.
fn frr_tells_control_from_the_path() -> Outcome {
    const PEER: &str = "169.254.10.1";
    /// The far gateway has no route there of its own, which FRR would prefer.
    const ALONE: [&str; 2] = ["10.1.77.0/24", "fd00:1:77::/64"];
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let pair = Pair::start_edited(&setup, Topology::builder().build()?, |side, text| match side {
        Side::A => with_bgp(with_bfd(text), &neighbors(1, "hold-time = \"30s\""))
            .replace("announce = [", &format!("announce = [\"{}\", \"{}\", ", ALONE[0], ALONE[1])),
        Side::B => patient(text),
    })?;
    let topology = &pair.topology;
    let netns = &topology.gateway_b;
    let mut frr = Frr::speak(netns, &speaker(1))?;
    frr.add(
        "bfdd",
        "bfd\n profile quick\n  detect-multiplier 3\n  receive-interval 50\n  transmit-interval 50\n !\n!\n",
    )?;
    let inside = Capture::start(netns, "braid0", "udp port 3784", 128)?;
    frr.configure(&[
        &format!("router bgp {}", far(1).asn),
        &format!("neighbor {PEER} bfd profile quick"),
        &format!("neighbor {PEER} bfd check-control-plane-failure"),
    ])?;
    let says = |command: &str| frr.json(command).map_err(|error| error.to_string());
    // Of what FRR holds: its session, how many it has lost, and that its kernel has our routes of both families.
    let session = || {
        let peer = says(&format!("show bgp neighbors {PEER} json"))?[PEER].clone();
        let dropped = peer["connectionsDropped"].as_u64().unwrap_or_default();
        let learned =
            netns.ip("route show proto bgp").and_then(|v4| Ok(v4 + &netns.ip("-6 route show proto bgp")?));
        let learned = learned.map_err(|error| error.to_string())?;
        let there = peer["bgpState"] == "Established" && ALONE.iter().all(|net| learned.contains(net));
        if there { Ok(dropped) } else { Err(format!("{} {learned}", peer["bgpState"])) }
    };
    let bfd_is_up = || {
        retry_until("FRR's BFD session", SOON, || {
            let peers = says("show bfd peers json")?;
            let up = peers[0]["status"] == "up" && peers[0]["remote-transmit-interval"] == 50;
            if up { Ok(()) } else { Err(peers.to_string()) }
        })
    };
    until(&pair.a, "routes", |status| established(status) == 1 && both_ways(status, &["t0"]))?;
    bfd_is_up()?;
    sessions_are(&pair.a, "up", INTERVAL_MS)?;
    let mut dropped = retry_until("FRR's routes", SOON, session)?;
    answered(topology)?;
    let changes = netns.spawn(&["ip", "monitor", "route"])?;
    let downs = || Ok::<_, String>(says("show bfd peers counters json")?[0]["session-down"].clone());
    let before = downs()?;
    let under_way = loads(topology)?;
    for _ in 0..KILLS {
        kill_part(&topology.gateway_a, "braid-control")?;
        dropped = retry_until("FRR to lose the session and have it again", SOON, || match session() {
            Ok(now) if now > dropped => Ok(now),
            Ok(now) => Err(format!("{now} sessions lost")),
            Err(error) => Err(error),
        })?;
        until(&pair.a, "the session", |status| established(status) == 1 && both_ways(status, &["t0"]))?;
        sessions_are(&pair.a, "up", INTERVAL_MS)?;
    }
    for load in under_way {
        assert_eq!(load.finish()?.flaw(), None);
    }
    assert_eq!((downs()?, failovers(&pair.a)?), (before, 0));
    bfd_is_up()?;
    let deleted = changes.stdout();
    let deleted = deleted.lines().find(|line| line.starts_with("Deleted") && line.contains("proto bgp"));
    assert_eq!(deleted, None, "FRR gave up a route");
    as_rfc_5881_wants(&inside.stop()?, [169, 254, 10, 1]);
    Ok(())
}

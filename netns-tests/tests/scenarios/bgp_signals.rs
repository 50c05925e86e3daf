//! What BGP and failover tell each other: a neighbor that falls silent takes its tunnel out, a tunnel that is drained
//! is told to be the worst, and answers keep to the tunnel of the question.

use crate::bfd::Stopped;
use crate::bgp::{SOON, answered, both_ways, established, far, neighbors, start, until, with_bgp};
use crate::pair::{Pair, Setup, Side, patient};
use braid_netns::frr::Frr;
use braid_netns::gateway::Gateway;
use braid_netns::paced::{Load, Paced};
use braid_netns::routing::Bird;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, NET_A, NET_A6, SERVER};
use braid_netns::{Topology, retry_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("bgp_signals::a_silent_neighbor_takes_its_tunnel_out", a_silent_neighbor_takes_its_tunnel_out),
    ("bgp_signals::a_neighbor_that_dies_alone_does_not", a_neighbor_that_dies_alone_does_not),
    ("bgp_signals::control_that_stood_still_reads_first", control_that_stood_still_reads_first),
    ("bgp_signals::the_other_end_leaves_a_drained_tunnel", the_other_end_leaves_a_drained_tunnel),
    ("bgp_signals::answers_keep_to_the_tunnel_of_the_question", answers_keep_to_the_tunnel_of_the_question),
];

/// Each way.
const LOAD: Load = Load::told_apart(64, 2);
const STAGE: Duration = Duration::from_secs(1);

fn state(status: &Value, tunnel: usize) -> &str {
    status["tunnels"][tunnel]["state"].as_str().unwrap_or_default()
}

/// Two tunnels without probes and without BFD, with a route of the configuration as well: only the hold time tells.
fn silent(text: String) -> String {
    let lines = text.lines().map(|line| if line.starts_with("probe = ") { "probe = \"off\"" } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

fn pair_without_probes() -> braid_netns::Result<Pair> {
    let route = format!("[[route]]\nprefix = \"10.2.0.0/16\"\nvia = [\"t0\", \"t1\"]\n{}", neighbors(2, ""));
    let setup = Setup { tunnels: 2, ..Setup::default() };
    let topology = Topology::builder().paths(2).build()?;
    Pair::start_edited(&setup, topology, |side, text| match side {
        Side::A => with_bgp(silent(text), &route),
        Side::B => silent(text),
    })
}

fn a_silent_neighbor_takes_its_tunnel_out() -> Outcome {
    let pair = pair_without_probes()?;
    let topology = &pair.topology;
    let _bird = Bird::start(&topology.gateway_b, &far(2), &[])?;
    until(&pair.a, "routes by both", |status| both_ways(status, &["t0", "t1"]))?;
    answered(topology)?;
    let faults = topology.cut(0)?;
    let status = until(&pair.a, "the tunnel to be down", |status| state(status, 0) == "down")?;
    let tunnel = &status["tunnels"][0];
    assert_eq!(tunnel["failover_causes"], serde_json::json!({ "bgp": 1 }), "{tunnel}");
    assert_eq!(tunnel["last_failure"]["cause"], "bgp", "{tunnel}");
    assert_eq!(state(&status, 1), "up");
    // The configuration's route and BGP's leave it alike, and soon.
    let status = until(&pair.a, "all to go by the other", |status| {
        let routes = status["routes"].as_array().into_iter().flatten();
        let mut fixed = routes.filter(|route| route["prefix"] == "10.2.0.0/16");
        let active = |route: &Value| route["paths"].to_string().matches("\"active\":true").count();
        let converged = status["tunnels"][0]["last_failure"]["converged_ms"].is_number();
        fixed.any(|route| active(route) == 1) && both_ways(status, &["t1"]) && converged
    })?;
    let converged = status["tunnels"][0]["last_failure"]["converged_ms"].as_f64();
    assert!(converged.is_some_and(|ms| ms < 5000.0), "{status}");
    answered(topology)?;
    for fault in faults {
        fault.undo()?;
    }
    until(&pair.a, "all to carry again", |status| {
        both_ways(status, &["t0", "t1"]) && state(status, 0) == "up"
    })?;
    Ok(())
}

/// Packets come: what has died is the neighbor's BGP, and the configuration's routes do not depend on that.
fn a_neighbor_that_dies_alone_does_not() -> Outcome {
    let pair = pair_without_probes()?;
    let topology = &pair.topology;
    let mut bird = Bird::start(&topology.gateway_b, &far(2), &[])?;
    until(&pair.a, "routes by both", |status| both_ways(status, &["t0", "t1"]))?;
    let origin = Instant::now();
    let load = Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?;
    // It stands still, and its kernel goes on.
    bird.process().signal(Signal::SIGSTOP);
    let status = until(&pair.a, "both sessions to end", |status| {
        let neighbors = status["neighbors"].as_array().into_iter().flatten();
        neighbors.filter(|neighbor| neighbor["state"] != "established").count() == 2
    })?;
    load.finish()?;
    assert_eq!((state(&status, 0), state(&status, 1)), ("up", "up"), "{status}");
    assert_eq!(status["tunnels"][0]["failovers"], 0, "{status}");
    bird.process().signal(Signal::SIGCONT);
    Ok(())
}

/// A router on the LAN that goes on sending, and itself waits for nothing.
fn control_that_stood_still_reads_first() -> Outcome {
    const HOLD: Duration = Duration::from_secs(3);
    const ASN: u16 = 65_100;
    let topology = Topology::builder().build()?;
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let bgp = format!(
        "[[bgp.neighbor]]\nname = \"router\"\naddress = \"{CLIENT}\"\ninterface = \"lan0\"\nasn = {ASN}\n"
    );
    let listener = topology.client.enter(|| TcpListener::bind((CLIENT, 179)))??;
    let text = with_bgp(patient(setup.configuration(Side::A, &topology.paths)), &bgp);
    let mut braid = Gateway::start(&topology.gateway_a, &text)?;
    let mut connection = listener.accept()?.0;
    // RFC 4271 section 4.2, of router 10.1.0.2.
    let message = |kind: u8, body: &[u8]| {
        let len = (19 + body.len() as u16).to_be_bytes();
        [&[0xff; 16][..], &len, &[kind], body].concat()
    };
    let [asn, hold] = [ASN, HOLD.as_secs() as u16].map(u16::to_be_bytes);
    connection.write_all(&message(1, &[&[4][..], &asn, &hold, &[10, 1, 0, 2, 0]].concat()))?;
    let mut sending = connection.try_clone()?;
    let keepalive = message(4, &[]);
    let sender = thread::spawn(move || {
        while sending.write_all(&keepalive).is_ok() {
            thread::sleep(HOLD / 6);
        }
    });
    until(&braid, "the session", |status| established(status) == 1)?;
    let stopped = Stopped::control(&topology.gateway_a)?;
    thread::sleep(2 * HOLD);
    drop(stopped);
    let until_known = Instant::now() + HOLD;
    while Instant::now() < until_known {
        assert_eq!(established(&braid.status()?), 1);
        thread::sleep(HOLD / 30);
    }
    // All that came is OPEN and KEEPALIVEs.
    connection.set_nonblocking(true)?;
    let mut came = Vec::new();
    let end = connection.read_to_end(&mut came).err().map(|error| error.kind());
    assert_eq!(end, Some(ErrorKind::WouldBlock), "the session has ended");
    connection.shutdown(Shutdown::Both)?;
    sender.join().map_err(|_| "the sender has failed")?;
    braid.process().stop(SOON)?;
    Ok(())
}

/// FRR learns by MED that the tunnel is to be avoided, and by its end that it may come back.
fn the_other_end_leaves_a_drained_tunnel() -> Outcome {
    let pair = start(2, &neighbors(2, ""))?;
    let topology = &pair.topology;
    let frr = Frr::speak(&topology.gateway_b, &far(2))?;
    until(&pair.a, "routes by both", |status| both_ways(status, &["t0", "t1"]))?;
    let best = |family: &str, prefix: &str| {
        let said = frr
            .json(&format!("show bgp {family} unicast {prefix} json"))
            .map_err(|error| error.to_string())?;
        let paths = said["paths"].as_array().into_iter().flatten();
        let carry = paths.filter(|path| path["bestpath"]["overall"] == true || path["multipath"] == true);
        let by = carry.filter_map(|path| Some(path["peer"]["peerId"].as_str()?.to_owned()));
        Ok::<_, String>((by.collect::<BTreeSet<_>>(), said.to_string()))
    };
    let wait = |peers: &[&str]| -> Outcome {
        for (family, prefix) in [("ipv4", NET_A), ("ipv6", NET_A6)] {
            retry_until("FRR's choice", SOON, || {
                let (by, said) = best(family, prefix)?;
                if by.iter().eq(peers) { Ok(()) } else { Err(said) }
            })?;
        }
        Ok(())
    };
    wait(&["169.254.10.1", "169.254.11.1"])?;
    let origin = Instant::now();
    let there = Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?;
    let back = Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?;
    retry_until("enough packets", SOON, || (origin.elapsed() > STAGE).then_some(()).ok_or("not yet"))?;
    let drained = pair.a.braid(&["drain", "t0"])?;
    assert!(drained.status.success(), "{}", drained.stderr);
    wait(&["169.254.11.1"])?;
    let (_, said) = best("ipv4", NET_A)?;
    assert!(said.contains("gracefulShutdown") || said.contains("graceful-shutdown"), "{said}");
    // The session stays, and so do the routes that are heard by it.
    let status = pair.a.status()?;
    assert_eq!((state(&status, 0), &status["neighbors"][0]["state"]), ("draining", &"established".into()));
    let undrained = pair.a.braid(&["undrain", "t0"])?;
    assert!(undrained.status.success(), "{}", undrained.stderr);
    wait(&["169.254.10.1", "169.254.11.1"])?;
    for log in [there.finish()?, back.finish()?] {
        assert_eq!(log.flaw(), None);
    }
    Ok(())
}

/// What comes by one tunnel is answered by the same where that is asked for, and else by both.
fn answers_keep_to_the_tunnel_of_the_question() -> Outcome {
    const QUESTIONS: u64 = 48;
    for pin in [false, true] {
        let setup = Setup { tunnels: 2, ..Setup::default() };
        let topology = Topology::builder().paths(2).build()?;
        let pair = Pair::start_edited(&setup, topology, |side, text| {
            let text = silent(text);
            let pinned = text.replacen("hash-seed", "pin-replies = true\nhash-seed", 1);
            if side == Side::A && pin { pinned } else { text }
        })?;
        let topology = &pair.topology;
        // All questions come by t1.
        let drained = pair.b.braid(&["drain", "t0"])?;
        assert!(drained.status.success(), "{}", drained.stderr);
        let sent = || -> braid_netns::Result<u64> {
            Ok(pair.a.status()?["tunnels"][0]["tx_packets"].as_u64().unwrap_or_default())
        };
        let before = sent()?;
        for id in 1..=QUESTIONS {
            // Each a flow of its own.
            topology.server.run(&["ping", "-c", "1", "-W", "5", "-e", &id.to_string(), CLIENT])?;
        }
        let by_other = sent()? - before;
        // Of 48 answers to both, t0 would have about 24.
        assert_eq!(by_other < QUESTIONS / 4, pin, "{by_other} answers of {QUESTIONS} by the other tunnel");
    }
    Ok(())
}

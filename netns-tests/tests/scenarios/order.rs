//! No packet of a flow overtakes another: with one and two workers a gateway, packets that are small,
//! that are large, and that are cut from super-packets and joined again; and TCP at full speed, by
//! what its sender found out about order.

use crate::pair::{Pair, Setup, patient};
use crate::wireguard;
use braid_netns::paced::{Load, Paced};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, SERVER};
use braid_netns::traffic::{IperfServer, TcpLoad};
use braid_netns::{Error, Netns, Result, Topology};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("order::one_worker", one_worker),
    ("order::two_workers", two_workers),
    ("order::two_workers_as_raw_esp", two_workers_as_raw_esp),
    ("order::two_workers_over_wireguard", two_workers_over_wireguard),
];

/// Each way. At the first, a gateway sees 120,000 packets a second.
const LOADS: [Load; 3] = [
    Load::of_length(64, 60, 24),
    Load::of_length(16, 20, 1400),
    Load { burst: 30, ..Load::of_length(4, 3, 1400) },
];
const PORT: u16 = 20_000;
const STAGE: Duration = Duration::from_millis(1500);
/// What Linux's TCP counts when it finds that its segments were reordered, not lost.
const REORDERED: [&str; 3] = ["TCPSACKReorder", "TCPRenoReorder", "TCPTSReorder"];

fn one_worker() -> Outcome {
    in_order(&Setup::default(), 1, PORT)
}

fn two_workers() -> Outcome {
    in_order(&Setup::default(), 2, PORT)
}

/// One socket receives for all.
fn two_workers_as_raw_esp() -> Outcome {
    in_order(&Setup { encapsulation: "esp", ..Setup::default() }, 2, PORT)
}

/// Each tunnel has one lock, whichever worker's packets it carries; of a load that leaves room, none is lost either.
fn two_workers_over_wireguard() -> Outcome {
    let pair = wireguard::pair(2, &[0, 1], |text| of_workers(2, text))?;
    let topology = &pair.topology;
    let loads = both_ways(topology, wireguard::LOAD, PORT)?;
    sleep(STAGE);
    for load in loads {
        assert_eq!(load.finish()?.flaw(), None);
    }
    all_in_order(&pair, PORT)
}

/// `back` is the port of the flows from the server.
fn in_order(setup: &Setup, workers: u32, back: u16) -> Outcome {
    let topology = Topology::builder().paths(setup.tunnels).build()?;
    let pair = Pair::start_edited(setup, topology, |_, text| of_workers(workers, text))?;
    all_in_order(&pair, back)
}

fn of_workers(workers: u32, text: String) -> String {
    format!("[core]\nworkers = {workers}\n\n{}", patient(text))
}

fn both_ways(topology: &Topology, load: Load, back: u16) -> Result<[Paced; 2]> {
    let origin = Instant::now();
    let there = Paced::start(&topology.client, &topology.server, SERVER, load, origin)?;
    Ok([there, Paced::start(&topology.server, &topology.client, CLIENT, load.at_port(back), origin)?])
}

fn all_in_order(pair: &Pair, back: u16) -> Outcome {
    let topology = &pair.topology;
    for load in LOADS {
        let paced = both_ways(topology, load, back)?;
        sleep(STAGE);
        for paced in paced {
            let log = paced.finish()?;
            assert_eq!(log.overtaken(), [], "{:?}", log.flaw());
            // A slow machine may lose some, but what was lost is not what was looked at.
            assert!(log.lost().len() < log.sent() / 2 && log.damaged == 0, "{load:?}: {:?}", log.flaw());
        }
    }
    let server = IperfServer::start(&topology.server, SERVER)?;
    for reverse in [false, true] {
        let sender = if reverse { &topology.server } else { &topology.client };
        let before = reordered(sender)?;
        let tcp = server.tcp(&topology.client, &TcpLoad { flows: 4, seconds: 2, reverse })?;
        assert!(tcp.bytes > 50_000_000, "{tcp:?}");
        assert_eq!(reordered(sender)? - before, 0, "{tcp:?}");
    }
    Ok(())
}

/// How often TCP in this namespace found segments reordered.
fn reordered(netns: &Netns) -> Result<u64> {
    // Not /proc/net: that is the process's first thread's namespace, not this thread's.
    let text = netns.enter(|| fs::read_to_string("/proc/thread-self/net/netstat"))?;
    let text = text.map_err(Error::io("cannot read TCP's counters"))?;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let pairs = lines.chunks_exact(2).flat_map(|pair| pair[0].iter().zip(&pair[1]));
    let counts: Vec<u64> = pairs
        .filter(|(name, _)| REORDERED.contains(name))
        .filter_map(|(_, count)| count.parse().ok())
        .collect();
    if counts.len() == REORDERED.len() {
        Ok(counts.iter().sum())
    } else {
        Err(Error::parse("TCP's counters", format!("{counts:?} of {REORDERED:?}")))
    }
}

//! One system on one topology, measured: throughput, small packets, processor time, round trips.

use crate::counter::Counter;
use crate::cpu::Busy;
use crate::generator::{FirstHop, Offer, Sent, send};
use braid_netns::topology::{CLIENT, SERVER};
use braid_netns::traffic::{IperfServer, PingResult, Pings, TcpLoad, ping};
use braid_netns::{Error, Result, Topology};
use clap::ValueEnum;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// One kind of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    /// One TCP flow, each direction after the other; processor seconds per GB of each.
    Tcp1,
    /// Eight TCP flows, each direction after the other.
    Tcp8,
    /// Small UDP packets over 256 flows at each fixed offer, counted at the receiver.
    Small,
    /// Pings every 10 ms through the idle tunnel.
    RttIdle,
    /// Pings every 10 ms beside one TCP flow.
    RttTcp,
    /// Pings every 10 ms beside the overload of small packets.
    RttOverload,
}

/// What to measure, and how long.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Which measurements.
    pub tests: Vec<Test>,
    /// Seconds each takes.
    pub seconds: u32,
    /// Offers of small packets, in thousands a second.
    pub offers_kpps: Vec<u32>,
    /// The overload during which pings are timed, in thousands a second.
    pub overload_kpps: u32,
    /// Length of small packets in bytes, IP header included.
    pub small_length: usize,
    /// Flows of small packets.
    pub small_flows: u16,
}

/// Measured values by name; the name ends in the unit.
pub type Figures = BTreeMap<String, f64>;

/// Between two probes.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);

/// Measures all that the plan wants. A single measurement that fails is named in the error list
/// and the others still count.
#[must_use]
pub fn measure(topology: &Topology, plan: &Plan) -> (Figures, Vec<String>) {
    let mut figures = Figures::new();
    let mut failures = Vec::new();
    for test in &plan.tests {
        let done = match test {
            Test::Tcp1 => tcp(topology, plan, 1, &mut figures),
            Test::Tcp8 => tcp(topology, plan, 8, &mut figures),
            Test::Small => small(topology, plan, &mut figures),
            Test::RttIdle => rtt_idle(topology, plan, &mut figures),
            Test::RttTcp => rtt_tcp(topology, plan, &mut figures),
            Test::RttOverload => rtt_overload(topology, plan, &mut figures),
        };
        if let Err(error) = done {
            failures.push(format!("{test:?}: {error}"));
        }
    }
    (figures, failures)
}

fn tcp(topology: &Topology, plan: &Plan, flows: u32, figures: &mut Figures) -> Result<()> {
    let server = IperfServer::start(&topology.server, SERVER)?;
    for (reverse, direction) in [(false, "up"), (true, "down")] {
        let load = TcpLoad { flows, seconds: plan.seconds, reverse };
        let before = Busy::now()?;
        let result = server.tcp(&topology.client, &load)?;
        let busy = before.seconds_until(Busy::now()?);
        #[allow(clippy::cast_precision_loss)] // far below 2^52 bytes
        let gigabytes = result.bytes as f64 / 1e9;
        let mut put = |what: &str, value: f64| {
            figures.insert(format!("tcp{flows}_{direction}_{what}"), value);
        };
        put("gbps", result.bits_per_second / 1e9);
        put("cpu_s_per_gb", busy / gigabytes);
    }
    Ok(())
}

fn small(topology: &Topology, plan: &Plan, figures: &mut Figures) -> Result<()> {
    for &kpps in &plan.offers_kpps {
        let counter = Counter::start(&topology.server, "eth0", plan.small_length)?;
        let before = Busy::now()?;
        let sent = offer(topology, plan, kpps, &AtomicBool::new(false))?;
        let busy = before.seconds_until(Busy::now()?);
        let arrived = counter.settle()?;
        if arrived.datagrams > sent.packets {
            let more = format!("{} arrived of {} sent", arrived.datagrams, sent.packets);
            return Err(Error::parse("small packets", more));
        }
        #[allow(clippy::cast_precision_loss)] // far below 2^52 packets
        let (delivered, entries) = (arrived.datagrams as f64, arrived.entries as f64);
        let seconds = sent.elapsed.as_secs_f64();
        let mut put = |what: &str, value: f64| {
            figures.insert(format!("small{kpps}_{what}"), value);
        };
        put("offered_kpps", sent.rate() / 1e3);
        put("delivered_kpps", delivered / seconds / 1e3);
        put("datagrams_per_entry", delivered / entries.max(1.0));
        put("cpu_us_per_packet", busy * 1e6 / delivered.max(1.0));
    }
    Ok(())
}

fn offer(topology: &Topology, plan: &Plan, kpps: u32, stop: &AtomicBool) -> Result<Sent> {
    let hop = FirstHop {
        client: &topology.client,
        device: "eth0",
        gateway: &topology.gateway_a,
        gateway_device: "lan0",
    };
    let offer = Offer {
        rate: f64::from(kpps) * 1e3,
        duration: Duration::from_secs(u64::from(plan.seconds)),
        flows: plan.small_flows,
        length: plan.small_length,
    };
    let address =
        |text: &str| text.parse::<Ipv4Addr>().map_err(|bad| Error::parse(format!("address {text}"), bad));
    send(&hop, address(CLIENT)?, address(SERVER)?, &offer, stop)
}

fn rtt_idle(topology: &Topology, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let pings = Pings { count: probes(plan.seconds), interval: PROBE_INTERVAL, ..Pings::default() };
    put_rtt(figures, "idle", &ping(&topology.client, SERVER, &pings)?);
    Ok(())
}

fn rtt_tcp(topology: &Topology, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let server = IperfServer::start(&topology.server, SERVER)?;
    let load = TcpLoad { flows: 1, seconds: plan.seconds + 1, reverse: false };
    let mut running = server.tcp_in_background(&topology.client, &load)?;
    let pings = Pings { count: probes(plan.seconds), interval: PROBE_INTERVAL, ..Pings::default() };
    let result = ping(&topology.client, SERVER, &pings);
    running.finish()?;
    put_rtt(figures, "tcp", &result?);
    Ok(())
}

fn rtt_overload(topology: &Topology, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let counter = Counter::start(&topology.server, "eth0", plan.small_length)?;
    let stop = AtomicBool::new(false);
    // The load outlasts the probes, so that none of them is timed without it.
    let longer = Plan { seconds: plan.seconds + 30, ..plan.clone() };
    let (sent, result) = std::thread::scope(|scope| {
        let load = scope.spawn(|| offer(topology, &longer, plan.overload_kpps, &stop));
        let pings = Pings { count: probes(plan.seconds), interval: PROBE_INTERVAL, ..Pings::default() };
        let result = ping(&topology.client, SERVER, &pings);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (load.join(), result)
    });
    let sent = match sent {
        Ok(sent) => sent?,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    drop(counter);
    put_rtt(figures, "overload", &result?);
    figures.insert("rtt_overload_offered_kpps".to_owned(), sent.rate() / 1e3);
    Ok(())
}

fn probes(seconds: u32) -> u32 {
    seconds * 100
}

fn put_rtt(figures: &mut Figures, when: &str, result: &PingResult) {
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        if let Some(rtt_ms) = result.quantile(quantile) {
            figures.insert(format!("rtt_{when}_{name}_ms"), rtt_ms);
        }
    }
    figures.insert(format!("rtt_{when}_loss"), result.loss());
}

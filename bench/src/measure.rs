//! One system on one topology, measured: throughput, small packets, processor time, round trips.

use crate::counter::{Arrived, Counter};
use crate::cpu::Busy;
use crate::generator::{Control, FirstHop, Offer, Sent, send};
use crate::system::Running;
use braid_netns::topology::{CLIENT, SERVER};
use braid_netns::traffic::{IperfServer, PingResult, Pings, TcpLoad, ping};
use braid_netns::{Error, Result, Topology};
use clap::ValueEnum;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

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
    /// Pings, and probes in the tunnel, every 10 ms beside one TCP flow.
    RttTcp,
    /// Pings, and probes in the tunnel, every 10 ms beside the overload of small packets.
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
    /// TCP's congestion control.
    pub congestion: String,
    /// Plain forwarding is measured once a round instead of before every system.
    pub rounds: bool,
}

/// Measured values by name; the name ends in the unit.
pub type Figures = BTreeMap<String, f64>;

/// Between two probes.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// How long a system's own probes are watched.
const OWN_PROBES: Duration = Duration::from_secs(10);
/// Until queues are as full as they will be.
const WARM_UP: Duration = Duration::from_millis(500);

/// Measures all that the plan wants. A single measurement that fails is named in the error list
/// and the others still count. `far_end` is the other end of the tunnel, inside, for probes from
/// gateway to gateway.
#[must_use]
pub fn measure(
    topology: &Topology,
    plan: &Plan,
    far_end: Option<&str>,
    running: &dyn Running,
) -> (Figures, Vec<String>) {
    let mut figures = Figures::new();
    let mut failures = Vec::new();
    for test in &plan.tests {
        let done = match test {
            Test::Tcp1 => tcp(topology, plan, 1, &mut figures),
            Test::Tcp8 => tcp(topology, plan, 8, &mut figures),
            Test::Small => small(topology, plan, &mut figures),
            Test::RttIdle => rtt_idle(topology, plan, &mut figures),
            Test::RttTcp => rtt_tcp(topology, plan, far_end, &mut figures),
            Test::RttOverload => rtt_overload(topology, plan, far_end, running, &mut figures),
        };
        if let Err(error) = done {
            failures.push(format!("{test:?}: {error}"));
        }
    }
    (figures, failures)
}

fn tcp(topology: &Topology, plan: &Plan, flows: u32, figures: &mut Figures) -> Result<()> {
    let server = IperfServer::start(&topology.server, SERVER)?.with_congestion(&plan.congestion);
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
        let (window, sent) = beside_overload(topology, plan, kpps, |control| {
            std::thread::sleep(WARM_UP);
            let from = Moment::now(&counter, control)?;
            std::thread::sleep(Duration::from_secs(u64::from(plan.seconds)));
            Ok((from, Moment::now(&counter, control)?))
        })?;
        let total = counter.settle()?.datagrams;
        if total > sent.packets {
            let more = format!("{total} arrived of {} sent", sent.packets);
            return Err(Error::parse("small packets", more));
        }
        put_small(figures, kpps, &window.0, &window.1);
    }
    Ok(())
}

/// Counts at one moment, while packets are being sent: what drains from queues afterwards was
/// not delivered at that rate.
struct Moment {
    at: Instant,
    sent: u64,
    arrived: Arrived,
    busy: Busy,
}

impl Moment {
    fn now(counter: &Counter<'_>, control: &Control) -> Result<Self> {
        // Reading the counter takes milliseconds, the others nothing.
        let arrived = counter.read()?;
        Ok(Self {
            at: Instant::now(),
            sent: control.sent.load(Ordering::Relaxed),
            arrived,
            busy: Busy::now()?,
        })
    }
}

#[allow(clippy::cast_precision_loss)] // far below 2^52 packets
fn put_small(figures: &mut Figures, kpps: u32, from: &Moment, to: &Moment) {
    let seconds = (to.at - from.at).as_secs_f64();
    let delivered = (to.arrived.datagrams - from.arrived.datagrams) as f64;
    let entries = (to.arrived.entries - from.arrived.entries) as f64;
    let mut put = |what: &str, value: f64| {
        figures.insert(format!("small{kpps}_{what}"), value);
    };
    put("offered_kpps", (to.sent - from.sent) as f64 / seconds / 1e3);
    put("delivered_kpps", delivered / seconds / 1e3);
    put("datagrams_per_entry", delivered / entries.max(1.0));
    let busy = from.busy.seconds_until(to.busy);
    put("cpu_us_per_packet", busy * 1e6 / delivered.max(1.0));
}

/// Does `work` while small packets are being offered, then stops them.
fn beside_overload<T>(
    topology: &Topology,
    plan: &Plan,
    kpps: u32,
    work: impl FnOnce(&Control) -> Result<T>,
) -> Result<(T, Sent)> {
    let control = Control::default();
    // The load outlasts the work, so that no part of it goes without.
    let longer = Plan { seconds: plan.seconds + 30, ..plan.clone() };
    let (done, sent) = std::thread::scope(|scope| {
        let load = scope.spawn(|| offer(topology, &longer, kpps, &control));
        let done = work(&control);
        control.stop.store(true, Ordering::Relaxed);
        (done, load.join())
    });
    match sent {
        Ok(sent) => Ok((done?, sent?)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn offer(topology: &Topology, plan: &Plan, kpps: u32, control: &Control) -> Result<Sent> {
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
    send(&hop, address(CLIENT)?, address(SERVER)?, &offer, control)
}

fn rtt_idle(topology: &Topology, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let pings = Pings { count: probes(plan.seconds), interval: PROBE_INTERVAL, ..Pings::default() };
    put_rtt(figures, "idle", &ping(&topology.client, SERVER, &pings)?);
    Ok(())
}

fn rtt_tcp(topology: &Topology, plan: &Plan, far_end: Option<&str>, figures: &mut Figures) -> Result<()> {
    let server = IperfServer::start(&topology.server, SERVER)?.with_congestion(&plan.congestion);
    let load = TcpLoad { flows: 1, seconds: plan.seconds + 1, reverse: false };
    let mut running = server.tcp_in_background(&topology.client, &load)?;
    let result = both_pings(topology, plan, far_end);
    running.finish()?;
    put_both(figures, "tcp", &result?);
    Ok(())
}

fn rtt_overload(
    topology: &Topology,
    plan: &Plan,
    far_end: Option<&str>,
    running: &dyn Running,
    figures: &mut Figures,
) -> Result<()> {
    let _counter = Counter::start(&topology.server, "eth0", plan.small_length)?;
    let ((result, own), sent) = beside_overload(topology, plan, plan.overload_kpps, |_| {
        std::thread::sleep(WARM_UP);
        let begin = Instant::now();
        let before = running.own_probes();
        let result = both_pings(topology, plan, far_end)?;
        // What it tells of is recent, not of a window: most of it shall be of this load.
        if before.is_some() {
            std::thread::sleep(OWN_PROBES.saturating_sub(begin.elapsed()));
        }
        Ok((result, before.zip(running.own_probes())))
    })?;
    put_both(figures, "overload", &result);
    if let Some((before, after)) = own {
        figures.insert("rtt_overload_own_p99_ms".to_owned(), after.p99_ms);
        let (sent, answered) = (after.sent - before.sent, after.answered - before.answered);
        #[allow(clippy::cast_precision_loss)] // thousands
        let loss = 1.0 - answered.min(sent) as f64 / sent.max(1) as f64;
        figures.insert("rtt_overload_own_loss".to_owned(), loss);
    }
    figures.insert("rtt_overload_offered_kpps".to_owned(), sent.rate() / 1e3);
    Ok(())
}

/// Pings with the traffic, from client to server, and at the same time probes in the tunnel, from one
/// gateway to the other, as whoever watches a tunnel sends them.
fn both_pings(
    topology: &Topology,
    plan: &Plan,
    far_end: Option<&str>,
) -> Result<(PingResult, Option<PingResult>)> {
    let pings = Pings { count: probes(plan.seconds), interval: PROBE_INTERVAL, ..Pings::default() };
    std::thread::scope(|scope| {
        let probe = far_end.map(|to| {
            let pings = &pings;
            scope.spawn(move || ping(&topology.gateway_a, to, pings))
        });
        let through = ping(&topology.client, SERVER, &pings);
        let probe = probe.map(|probe| match probe.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        Ok((through?, probe.transpose()?))
    })
}

fn put_both(figures: &mut Figures, when: &str, (through, probe): &(PingResult, Option<PingResult>)) {
    put_rtt(figures, when, through);
    if let Some(probe) = probe {
        put_rtt(figures, &format!("{when}_probe"), probe);
    }
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

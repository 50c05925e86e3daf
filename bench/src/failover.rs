//! A tunnel cut at full load, silently in mid-path, by its link or with ICMP errors: when the cores find it, how long
//! they take to mask it, and when the flows that it carried arrive by the other tunnel; that BFD finds nothing
//! where nothing is; and a tunnel drained and taken back, which loses nothing. Flows of the other tunnel stay on it.

mod goals;
mod wire;

pub use goals::{Goal, goals};

use crate::scale::{Far, OURS, THEIRS, learned, prefix};
use wire::{MARK, Wire};

use braid_netns::fault;
use braid_netns::gateway::Gateway;
use braid_netns::paced::{Load, Log, Paced};
use braid_netns::topology::{CLIENT, GATEWAY_A, GATEWAY_B, NET_A, NET_B, SERVER};
use braid_netns::traffic::{IperfServer, RunningTcp, TcpLoad};
use braid_netns::{Error, Result, Topology, retry_until};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(30);
const TUNNELS: usize = 2;
const CUT: usize = 0;
/// Measured on each way: every flow has a packet each 4 ms.
const FLOWS: Load = Load::told_apart(32, 8).of_tos(MARK);
/// Through a drain: every flow has a packet each 48 ms, so that every pause is an idle gap, and it moves.
const SPARSE: Load = Load::told_apart(48, 1).of_tos(MARK);
const BACK_PORT: u16 = 21_000;
/// TCP connections to the server that take what there is.
const TCP_FLOWS: u32 = 4;
const BEFORE: Duration = Duration::from_millis(1500);
const AFTER: Duration = Duration::from_millis(1500);
/// For TCP to load the return of the tunnel too.
const RETURN: Duration = Duration::from_millis(4000);
/// A flow may go home for so long after the tunnel is back.
const SETTLE: Duration = Duration::from_millis(1000);
/// Between two looks at very many routes, each of which costs the gateway something.
const LOOK: Duration = Duration::from_millis(200);
/// Until all learned routes lead into both tunnels.
const CONVERGED: Duration = Duration::from_secs(120);

/// What takes a tunnel away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Packets of both ways vanish in mid-path: BFD finds it.
    Silent,
    /// A's own link goes down.
    Link,
    /// A router says to A that B cannot be reached, and what B sends vanishes there; without BFD, and with probes of
    /// 300 ms.
    Icmp,
    /// Both gateways are told to drain it, and then to take it back.
    Drain,
}

/// What to measure with.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// What takes a tunnel away.
    pub how: How,
    /// BFD's, times 3, where it is what finds the cut.
    pub interval: Duration,
    /// Prefixes that A has learned through both tunnels.
    pub routes: u32,
}

/// Two gateways with two tunnels.
#[derive(Debug)]
pub struct Pair {
    setup: Setup,
    // Before the network: dropped first.
    a: Gateway,
    b: Gateway,
    tcp: IperfServer,
    // B's neighbors of A, one in each tunnel.
    _far: Vec<Far>,
    topology: Topology,
}

/// One cut.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// How long the cut took to be made. What follows is measured from its end, and may be that much more; with a
    /// link, which is down before the command has ended, from its begin.
    pub cutting_ms: f64,
    /// Until the core of either gateway found it; `None` where control did.
    pub detected_ms: [Option<f64>; 2],
    /// From then on until the tunnel was masked.
    pub masked_us: [Option<f64>; 2],
    /// Flows whose next packet was lost: of both ways, or only of A's where only A is told.
    pub flows_hit: usize,
    /// Until a packet of each of them arrived: the fastest, the median, the slowest.
    pub traffic_ms: [f64; 3],
    /// Flows of the other tunnel that were seen on this one, from the cut until it was back, at either gateway.
    pub healthy_moved: usize,
    /// Why the other tunnel was taken out meanwhile at either gateway, if it was.
    pub false_verdicts: Vec<String>,
    /// What 99 of 100 round trips of A's probes in the tunnel had not exceeded before the cut, beside the load.
    pub probe_ms: Option<f64>,
    /// What each gateway gives as the cause, if it has noticed.
    pub causes: [String; 2],
    /// TCP's goodput over the whole round, the cut in it.
    pub gbit_per_s: f64,
}

/// One drain and return.
#[derive(Debug, Clone, Serialize)]
pub struct Drained {
    /// Flows that the tunnel carried, both ways.
    pub flows: usize,
    /// Of them, those that had left it before it was taken back.
    pub left: usize,
    /// Packets that did not arrive, of both ways, from before the drain until after the return.
    pub lost: usize,
    /// Packets that a later one of their flow had overtaken, or that came twice.
    pub reordered: usize,
    /// Flows of the other tunnel that were seen on this one.
    pub healthy_moved: usize,
    /// TCP's goodput over the whole round.
    pub gbit_per_s: f64,
}

/// A time at full load in which nothing was cut.
#[derive(Debug, Clone, Serialize)]
pub struct Quiet {
    /// How long.
    pub seconds: u32,
    /// How often a tunnel was taken out, at both gateways.
    pub failovers: u64,
    /// And why.
    pub causes: Vec<String>,
    /// TCP's goodput.
    pub gbit_per_s: f64,
}

impl Pair {
    /// Starts them, and waits until all is up and all routes are learned.
    ///
    /// # Errors
    /// When something is missing or does not come up.
    pub fn start(setup: Setup) -> Result<Self> {
        let topology = Topology::builder().paths(TUNNELS).build()?;
        // What else overtakes in the kernels of the network is not the gateways' doing.
        topology.keep_flows_in_order()?;
        let start = |is_a: bool, netns| Gateway::start(netns, &configuration(&topology, is_a, &setup));
        let (a, b) = (start(true, &topology.gateway_a)?, start(false, &topology.gateway_b)?);
        let tcp = IperfServer::start(&topology.server, SERVER)?;
        let mut pair = Self { setup, a, b, tcp, _far: Vec::new(), topology };
        pair.wait_tunnels()?;
        if setup.routes > 0 {
            let far = |index| {
                let address = Ipv4Addr::new(169, 254, inside(index), 2);
                Far::start(&pair.topology.gateway_b, address, Some(learned(setup.routes, address)))
            };
            pair._far = (0..TUNNELS).map(far).collect::<Result<_>>()?;
        }
        pair.wait_up()?;
        Ok(pair)
    }

    /// Cuts a tunnel under load and takes it into service again.
    ///
    /// # Errors
    /// When a program is missing, or the cut is not noticed.
    pub fn round(&mut self) -> Result<Round> {
        let wire = Wire::watch(&self.topology, CUT)?;
        let mut tcp = self.load((BEFORE + AFTER + RETURN).as_secs() as u32)?;
        let (origin, origin_ns) = (Instant::now(), monotonic()?);
        let ways = self.flows(FLOWS, origin)?;
        sleep(BEFORE);
        let probe_ms = self.a.status()?["tunnels"][CUT]["latency_p99_ms"].as_f64();
        let others_before = self.others()?;
        let at = wire::now();
        let begin = origin.elapsed();
        let undo = self.cut()?;
        let end = origin.elapsed();
        let how = self.setup.how;
        let cut = if how == How::Link { begin } else { end };
        sleep(AFTER);
        let b_knows = if how == How::Icmp { Value::Null } else { self.failure(&self.b)? };
        let failures = [self.failure(&self.a)?, b_knows];
        undo(self)?;
        self.wait_tunnels()?;
        sleep(SETTLE);
        let logs = ways.into_iter().map(Paced::finish).collect::<Result<Vec<Log>>>()?;
        let bits = tcp.finish()?.bits_per_second;
        let seen = wire.stop(FLOWS)?;
        self.wait_up()?;
        let false_verdicts =
            self.false_verdicts(&others_before, |at_ns| (at_ns as f64 - origin_ns as f64) / 1e6 - ms(cut))?;
        let told = if how == How::Silent { 2 } else { 1 };
        let resumed = resumed(&logs[..told], cut);
        let pick =
            |part: usize| resumed.get((resumed.len().saturating_sub(1)) * part / 2).copied().unwrap_or(0.0);
        Ok(Round {
            cutting_ms: ms(end - begin),
            detected_ms: failures.each_ref().map(|failure| {
                let at = failure["detected_ns"].as_u64()?;
                Some((at as f64 - origin_ns as f64) / 1e6 - ms(cut))
            }),
            masked_us: failures.each_ref().map(|failure| failure["masked_us"].as_f64()),
            flows_hit: resumed.len(),
            traffic_ms: [pick(0), pick(1), pick(2)],
            healthy_moved: seen.iter().map(|seen| seen.strangers(at)).sum(),
            false_verdicts,
            probe_ms,
            causes: failures
                .each_ref()
                .map(|failure| failure["cause"].as_str().unwrap_or_default().to_owned()),
            gbit_per_s: bits / 1e9,
        })
    }

    /// Drains a tunnel at both ends under load, and takes it back.
    ///
    /// # Errors
    /// When a program is missing or refuses, or the tunnel carried none of the flows.
    pub fn drain(&mut self) -> Result<Drained> {
        let wire = Wire::watch(&self.topology, CUT)?;
        let mut tcp = self.load((BEFORE + AFTER + RETURN).as_secs() as u32)?;
        let ways = self.flows(SPARSE, Instant::now())?;
        sleep(BEFORE);
        let at = wire::now();
        self.order("drain")?;
        sleep(AFTER);
        let returned = wire::now();
        self.order("undrain")?;
        self.wait_tunnels()?;
        sleep(AFTER);
        let logs = ways.into_iter().map(Paced::finish).collect::<Result<Vec<Log>>>()?;
        let bits = tcp.finish()?.bits_per_second;
        let seen = wire.stop(SPARSE)?;
        let flows: usize = seen.iter().map(|seen| seen.flows_before(at)).sum();
        // Whatever was decided before has left the gateways.
        let left_on_it: usize = seen.iter().map(|seen| seen.flows_in(returned - SETTLE / 4..returned)).sum();
        let bad = |log: &Log| log.refused + log.damaged;
        Ok(Drained {
            flows,
            left: flows.saturating_sub(left_on_it),
            lost: logs.iter().map(|log| log.lost().len() + bad(log)).sum(),
            reordered: logs.iter().map(|log| log.overtaken().len()).sum(),
            healthy_moved: seen.iter().map(|seen| seen.strangers(at)).sum(),
            gbit_per_s: bits / 1e9,
        })
    }

    /// At both gateways.
    fn order(&self, verb: &str) -> Result<()> {
        for gateway in [&self.a, &self.b] {
            let ran = gateway.braid(&[verb, "t0"])?;
            if !ran.status.success() {
                return Err(Error::Usage(format!("{verb}: {}", ran.stderr)));
            }
        }
        Ok(())
    }

    /// Both ways.
    fn flows(&self, load: Load, origin: Instant) -> Result<[Paced; 2]> {
        let Topology { client, server, .. } = &self.topology;
        Ok([
            Paced::start(client, server, SERVER, load, origin)?,
            Paced::start(server, client, CLIENT, load.at_port(BACK_PORT), origin)?,
        ])
    }

    /// Loads both tunnels and counts what is taken for a failure.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn quiet(&mut self, seconds: u32) -> Result<Quiet> {
        let before = self.failovers()?;
        let bits = self.load(seconds)?.finish()?.bits_per_second;
        let statuses = [self.a.status()?, self.b.status()?];
        let tunnels = statuses.iter().flat_map(|status| status["tunnels"].as_array().into_iter().flatten());
        let causes = tunnels
            .filter(|tunnel| tunnel["failovers"] != 0)
            .map(|tunnel| tunnel["last_failure"].to_string());
        let causes = causes.collect();
        Ok(Quiet { seconds, failovers: self.failovers()? - before, causes, gbit_per_s: bits / 1e9 })
    }

    fn load(&self, seconds: u32) -> Result<RunningTcp> {
        let load = TcpLoad { flows: TCP_FLOWS, seconds, reverse: false };
        self.tcp.tcp_in_background(&self.topology.client, &load)
    }

    fn cut(&self) -> Result<Undo> {
        let internet =
            self.topology.internet.as_ref().ok_or_else(|| Error::Usage("no internet".to_owned()))?;
        let (path, a) = (&self.topology.paths[CUT], &self.topology.gateway_a);
        match self.setup.how {
            How::Silent => {
                // Both directions in one command.
                let devices = [format!("a{CUT}"), format!("b{CUT}")];
                let fault = fault::cut(internet, &devices.each_ref().map(String::as_str))?;
                Ok(Box::new(move |_| fault.undo()))
            }
            How::Link => {
                let (device, far) = (path.device.clone(), path.b);
                let next = Ipv4Addr::from(u32::from(path.a) + 1);
                a.ip(&format!("link set {device} down"))?;
                Ok(Box::new(move |pair| {
                    pair.topology.gateway_a.ip(&format!("link set {device} up"))?;
                    // The kernel has removed it with the link.
                    pair.topology
                        .gateway_a
                        .ip(&format!("route add {far}/32 via {next} dev {device}"))
                        .map(drop)
                }))
            }
            How::Drain => Err(Error::Usage("a drain is no cut".to_owned())),
            How::Icmp => {
                let fault = fault::cut(internet, &[&format!("b{CUT}")])?;
                let route = format!("unreachable {}/32", path.b);
                internet.ip(&format!("route add {route}"))?;
                let internet = internet.clone();
                Ok(Box::new(move |_| {
                    internet.ip(&format!("route del {route}"))?;
                    fault.undo()
                }))
            }
        }
    }

    fn failure(&self, gateway: &Gateway) -> Result<Value> {
        retry_until("the cut noticed", START, || {
            let status = gateway.status().map_err(|error| error.to_string())?;
            let tunnel = &status["tunnels"][CUT];
            if tunnel["state"] == "down" {
                Ok(tunnel["last_failure"].clone())
            } else {
                Err(tunnel.to_string())
            }
        })
    }

    /// The tunnels, and the routes through them.
    fn wait_up(&mut self) -> Result<()> {
        self.wait_tunnels()?;
        if self.setup.routes == 0 {
            return Ok(());
        }
        retry_until("all routes by both tunnels", CONVERGED, || {
            let said = self.a.status().map_err(|error| error.to_string())?;
            let neighbors = &said["neighbors"];
            let all = |neighbor: &Value| neighbor["accepted"] == self.setup.routes && neighbor["stale"] == 0;
            let learned = neighbors.as_array().is_some_and(|each| each.iter().all(all));
            if !learned {
                sleep(LOOK);
                return Err(neighbors.to_string());
            }
            let last = prefix(self.setup.routes - 1);
            let said = self.a.braid(&["routes", &last.to_string()]).map_err(|error| error.to_string())?;
            if (0..TUNNELS).all(|index| said.stdout.contains(&format!("t{index}"))) {
                Ok(())
            } else {
                Err(said.stdout)
            }
        })
    }

    fn wait_tunnels(&mut self) -> Result<()> {
        for gateway in [&mut self.a, &mut self.b] {
            gateway.wait_up(START)?;
            retry_until("BFD up", START, || {
                let status = gateway.status().map_err(|error| error.to_string())?;
                let tunnels = status["tunnels"].as_array().ok_or("no tunnels")?;
                let with_bfd = self.setup.how != How::Icmp;
                let up = |tunnel: &Value| {
                    // A probe has to have been answered, or its silence would say nothing.
                    let heard = tunnel["latency_ms"].is_number();
                    tunnel["state"] == "up" && heard && (!with_bfd || tunnel["bfd"]["state"] == "up")
                };
                if tunnels.iter().all(up) { Ok(()) } else { Err(status["tunnels"].to_string()) }
            })?;
        }
        Ok(())
    }

    /// How often each tunnel that is never cut was taken out, and why it last was.
    fn others(&self) -> Result<Vec<(u64, Value)>> {
        let mut others = Vec::new();
        for gateway in [&self.a, &self.b] {
            let status = gateway.status()?;
            let tunnels = status["tunnels"].as_array().into_iter().flatten().skip(CUT + 1);
            others.extend(
                tunnels.map(|tunnel| {
                    (tunnel["failovers"].as_u64().unwrap_or(0), tunnel["last_failure"].clone())
                }),
            );
        }
        Ok(others)
    }

    /// Why one of them was taken out since, and when by that clock.
    fn false_verdicts(&self, before: &[(u64, Value)], clock_ms: impl Fn(u64) -> f64) -> Result<Vec<String>> {
        let others = self.others()?;
        let grown = others.iter().zip(before).filter(|(after, before)| after.0 > before.0);
        let say = |failure: &Value| {
            let at = failure["detected_ns"].as_u64().map_or(f64::NAN, &clock_ms);
            format!("{at:.0} ms after the cut: {}", failure["reason"])
        };
        Ok(grown.map(|(after, _)| say(&after.1)).collect())
    }

    fn failovers(&self) -> Result<u64> {
        let mut sum = 0;
        for gateway in [&self.a, &self.b] {
            let status = gateway.status()?;
            let tunnels = status["tunnels"].as_array().into_iter().flatten();
            sum += tunnels.filter_map(|tunnel| tunnel["failovers"].as_u64()).sum::<u64>();
        }
        Ok(sum)
    }
}

/// When the flows whose next packet was lost were heard again, in milliseconds from the cut, ascending.
fn resumed(logs: &[Log], cut: Duration) -> Vec<f64> {
    let mut resumed: Vec<f64> = logs
        .iter()
        .flat_map(|log| log.resumed(cut))
        .filter(|(lost, _)| *lost > 0)
        .map(|(_, at)| ms(at.saturating_sub(cut)))
        .collect();
    resumed.sort_by(f64::total_cmp);
    resumed
}

/// How a cut is mended.
type Undo = Box<dyn FnOnce(&Pair) -> Result<()>>;

/// Third number of a tunnel's inside addresses.
fn inside(tunnel: usize) -> u8 {
    10 + tunnel as u8
}

fn configuration(topology: &Topology, is_a: bool, setup: &Setup) -> String {
    let (name, source, far) =
        if is_a { ("gateway-a", GATEWAY_A, NET_B) } else { ("gateway-b", GATEWAY_B, NET_A) };
    let mut text = format!("[gateway]\nname = \"{name}\"\nsource = \"{source}\"\n");
    for (index, path) in topology.paths.iter().enumerate() {
        let (local, remote, host, role) =
            if is_a { (path.a, path.b, 1, "initiate") } else { (path.b, path.a, 2, "respond") };
        // Probes that would notice nothing so soon, beside BFD.
        let signals = match setup.how {
            How::Silent | How::Link | How::Drain => format!(
                "probe = {{ interval = \"1s\", multiplier = 5 }}\nbfd = {{ interval = \"{}ms\", multiplier = 3 }}\n",
                setup.interval.as_millis()
            ),
            How::Icmp => "probe = { interval = \"300ms\", multiplier = 3 }\n".to_owned(),
        };
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\n[[tunnel]]\nname = \"t{index}\"\nrole = \"{role}\"\nlocal = \"{local}\"\nremote = \"{remote}\"\n\
             inside = \"169.254.{}.{host}/30\"\nhold-down = \"0ms\"\n{signals}\
             \n[tunnel.ike]\npsk = \"known to all who measure\"\n",
            inside(index)
        );
    }
    let _ = write!(text, "\n[[route]]\nprefix = \"{far}\"\nvia = [\"t0\", \"t1\"]\n");
    if is_a && setup.routes > 0 {
        let _ = write!(text, "\n[bgp]\nasn = {OURS}\nrouter-id = \"{GATEWAY_A}\"\nannounce = []\n");
        for index in 0..TUNNELS {
            let _ = write!(
                text,
                "\n[[bgp.neighbor]]\ntunnel = \"t{index}\"\nasn = {THEIRS}\nhold-time = \"90s\"\n"
            );
        }
    }
    text
}

/// The clock of the cores' moments.
fn monotonic() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|errno| Error::io("no clock")(errno.into()))?;
    Ok(Duration::from(now).as_nanos() as u64)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

//! A tunnel cut at full load, silently in mid-path, by its link or with ICMP errors: when the cores find it, how long
//! they take to mask it, and when the flows that it carried arrive by the other tunnel; and that BFD finds nothing
//! where nothing is.

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
use std::thread::sleep;
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(30);
const TUNNELS: usize = 2;
const CUT: usize = 0;
/// Measured on each way: every flow has a packet each 4 ms.
const FLOWS: Load = Load::of_length(32, 8, 200);
const BACK_PORT: u16 = 21_000;
/// TCP connections to the server that take what there is.
const TCP_FLOWS: u32 = 4;
const BEFORE: Duration = Duration::from_millis(1500);
const AFTER: Duration = Duration::from_millis(1500);

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
}

/// Two gateways with two tunnels.
#[derive(Debug)]
pub struct Pair {
    how: How,
    // Before the network: dropped first.
    a: Gateway,
    b: Gateway,
    tcp: IperfServer,
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
    /// What each gateway gives as the cause, if it has noticed.
    pub causes: [String; 2],
    /// TCP's goodput over the whole round, the cut in it.
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
    /// Starts them, with BFD at this interval, times 3, where it is what finds the cut; waits until all is up.
    ///
    /// # Errors
    /// When something is missing or does not come up.
    pub fn start(how: How, interval: Duration) -> Result<Self> {
        let topology = Topology::builder().paths(TUNNELS).build()?;
        let interval = (how != How::Icmp).then_some(interval);
        let start = |is_a: bool, netns| Gateway::start(netns, &configuration(&topology, is_a, interval));
        let (a, b) = (start(true, &topology.gateway_a)?, start(false, &topology.gateway_b)?);
        let tcp = IperfServer::start(&topology.server, SERVER)?;
        let mut pair = Self { how, a, b, tcp, topology };
        pair.wait_up()?;
        Ok(pair)
    }

    /// Cuts a tunnel under load and takes it into service again.
    ///
    /// # Errors
    /// When a program is missing, or the cut is not noticed.
    pub fn round(&mut self) -> Result<Round> {
        let mut tcp = self.load((BEFORE + AFTER).as_secs() as u32 + 1)?;
        let (origin, origin_ns) = (Instant::now(), monotonic()?);
        let Topology { client, server, .. } = &self.topology;
        let ways = [
            Paced::start(client, server, SERVER, FLOWS, origin)?,
            Paced::start(server, client, CLIENT, FLOWS.at_port(BACK_PORT), origin)?,
        ];
        sleep(BEFORE);
        let begin = origin.elapsed();
        let undo = self.cut()?;
        let end = origin.elapsed();
        let cut = if self.how == How::Link { begin } else { end };
        sleep(AFTER);
        let logs = ways.into_iter().map(Paced::finish).collect::<Result<Vec<Log>>>()?;
        let bits = tcp.finish()?.bits_per_second;
        let b_knows = if self.how == How::Icmp { Value::Null } else { self.failure(&self.b)? };
        let failures = [self.failure(&self.a)?, b_knows];
        undo(self)?;
        self.wait_up()?;
        let told = if self.how == How::Silent { 2 } else { 1 };
        let mut resumed: Vec<f64> = logs
            .iter()
            .take(told)
            .flat_map(|log| log.resumed(cut))
            .filter(|(lost, _)| *lost > 0)
            .map(|(_, at)| ms(at.saturating_sub(cut)))
            .collect();
        resumed.sort_by(f64::total_cmp);
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
            causes: failures
                .each_ref()
                .map(|failure| failure["cause"].as_str().unwrap_or_default().to_owned()),
            gbit_per_s: bits / 1e9,
        })
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
        match self.how {
            How::Silent => {
                // Both directions in one command.
                let devices = [format!("a{CUT}"), format!("b{CUT}")];
                let fault = fault::cut(internet, &devices.each_ref().map(String::as_str))?;
                Ok(Box::new(move |_| fault.undo()))
            }
            How::Link => {
                let (device, far) = (path.device.clone(), path.b);
                let next = std::net::Ipv4Addr::from(u32::from(path.a) + 1);
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

    fn wait_up(&mut self) -> Result<()> {
        for gateway in [&mut self.a, &mut self.b] {
            gateway.wait_up(START)?;
            retry_until("BFD up", START, || {
                let status = gateway.status().map_err(|error| error.to_string())?;
                let tunnels = status["tunnels"].as_array().ok_or("no tunnels")?;
                let with_bfd = self.how != How::Icmp;
                let up = |tunnel: &Value| {
                    // A probe has to have been answered, or its silence would say nothing.
                    let heard = tunnel["latency_ms"].is_number();
                    tunnel["state"] == "up" && heard && (!with_bfd || tunnel["bfd"]["state"] == "up")
                };
                if tunnels.iter().all(up) { Ok(()) } else { Err(status.to_string()) }
            })?;
        }
        Ok(())
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

/// How a cut is mended.
type Undo = Box<dyn FnOnce(&Pair) -> Result<()>>;

fn configuration(topology: &Topology, is_a: bool, interval: Option<Duration>) -> String {
    let (name, source, far) =
        if is_a { ("gateway-a", GATEWAY_A, NET_B) } else { ("gateway-b", GATEWAY_B, NET_A) };
    let mut text = format!("[gateway]\nname = \"{name}\"\nsource = \"{source}\"\n");
    for (index, path) in topology.paths.iter().enumerate() {
        let (local, remote, host, role) =
            if is_a { (path.a, path.b, 1, "initiate") } else { (path.b, path.a, 2, "respond") };
        // Probes that would notice nothing so soon, beside BFD.
        let signals = match interval {
            Some(interval) => format!(
                "probe = {{ interval = \"1s\", multiplier = 5 }}\nbfd = {{ interval = \"{}ms\", multiplier = 3 }}\n",
                interval.as_millis()
            ),
            None => "probe = { interval = \"300ms\", multiplier = 3 }\n".to_owned(),
        };
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\n[[tunnel]]\nname = \"t{index}\"\nrole = \"{role}\"\nlocal = \"{local}\"\nremote = \"{remote}\"\n\
             inside = \"169.254.{}.{host}/30\"\nhold-down = \"0ms\"\n{signals}\
             \n[tunnel.ike]\npsk = \"known to all who measure\"\n",
            10 + index
        );
    }
    let _ = write!(text, "\n[[route]]\nprefix = \"{far}\"\nvia = [\"t0\", \"t1\"]\n");
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

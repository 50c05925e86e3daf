//! A full table from one neighbor: how long until the core forwards by all of it, what it takes in memory, and what
//! the traffic notices.

use super::{Far, OURS, THEIRS, Target, learned, prefix};
use braid_bgp::Outgoing;
use braid_netns::gateway::Gateway;
use braid_netns::topology::{NET_A, NET_B, SERVER};
use braid_netns::traffic::{IperfServer, TcpLoad};
use braid_netns::{Error, Netns, Result, Topology, retry_until};
use serde::Serialize;
use std::fs;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(20);
const NEIGHBOR: Ipv4Addr = Ipv4Addr::new(169, 254, 10, 2);
const MOST_SECONDS: f64 = 10.0;
const MOST_MIB: f64 = 1024.0;
/// Of the throughput, percent.
const MOST_LESS: f64 = 5.0;
/// Of the flow that leaves processor time to others, Mbit/s: about a third of what two processors can do for both
/// gateways and both ends.
const PACED: u32 = 2000;

/// What became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Routes {
    /// Routes sent.
    pub routes: u32,
    /// From the first message until the core forwards by all of them, seconds.
    pub loaded: Target,
    /// From the withdrawal until it forwards by none, seconds.
    pub withdrawn: Target,
    /// Processor time of control for both, seconds.
    pub control_cpu_s: [f64; 2],
    /// The most that control and the core had resident, MiB.
    pub resident_mib: [Target; 2],
    /// One TCP flow through the tunnel without routes coming, while they are loaded, while they are withdrawn, Gbit/s.
    pub gbps: [f64; 3],
    /// By how much less it is while they are loaded, percent of what it is without.
    pub less_percent: Target,
    /// The same of a flow that leaves processor time, and how much it carries without routes coming, Gbit/s.
    pub paced_less_percent: Target,
    /// See there.
    pub paced_gbps: f64,
}

/// Measures it; each throughput over so many seconds.
///
/// # Errors
/// When the tunnel or the session does not come up, or the routes do not arrive.
pub fn routes(count: u32, seconds: u32) -> Result<Routes> {
    let topology = Topology::builder().direct().build()?;
    let b = Gateway::start(&topology.gateway_b, &configuration(false, &topology))?;
    let a = Gateway::start(&topology.gateway_a, &configuration(true, &topology))?;
    for gateway in [&a, &b] {
        retry_until("the tunnel up", LIMIT, || {
            let status = gateway.status().map_err(|error| error.to_string())?;
            if status["tunnels"][0]["state"] == "up" { Ok(()) } else { Err(status["tunnels"].to_string()) }
        })?;
    }
    let far = Far::start(&topology.gateway_b, NEIGHBOR, None)?;
    retry_until("the session", LIMIT, || {
        let status = a.status().map_err(|error| error.to_string())?;
        if status["neighbors"][0]["state"] == "established" {
            Ok(())
        } else {
            Err(status["neighbors"].to_string())
        }
    })?;
    let server = IperfServer::start(&topology.server, SERVER)?;
    let load = TcpLoad { flows: 1, seconds, reverse: false };
    let idle = server.tcp(&topology.client, &load)?.bits_per_second / 1e9;

    let before = control_cpu(&topology.gateway_a)?;
    let mut flow = server.tcp_in_background(&topology.client, &load)?;
    let begin = Instant::now();
    far.say(learned(count, NEIGHBOR))?;
    wait_until(&a, count, true)?;
    let loaded = begin.elapsed().as_secs_f64();
    let loading = flow.finish()?.bits_per_second / 1e9;
    let middle = control_cpu(&topology.gateway_a)?;

    let mut flow = server.tcp_in_background(&topology.client, &load)?;
    let begin = Instant::now();
    far.say(Outgoing { withdrawn: (0..count).map(prefix).collect(), announced: Vec::new() })?;
    wait_until(&a, count, false)?;
    let withdrawn = begin.elapsed().as_secs_f64();
    let withdrawing = flow.finish()?.bits_per_second / 1e9;
    let after = control_cpu(&topology.gateway_a)?;

    let paced = || server.tcp_at_rate(&topology.client, 1, PACED, seconds);
    let paced_idle = paced()?.finish()?.bits_per_second / 1e9;
    let mut flow = paced()?;
    far.say(learned(count, NEIGHBOR))?;
    wait_until(&a, count, true)?;
    let paced_loading = flow.finish()?.bits_per_second / 1e9;
    let less = |with: f64, without: f64| Target::most((1.0 - with / without) * 100.0, MOST_LESS);
    let peak = |name| Ok::<_, Error>(Target::most(peak_mib(&topology.gateway_a, name)?, MOST_MIB));
    Ok(Routes {
        routes: count,
        loaded: Target::most(loaded, MOST_SECONDS),
        withdrawn: Target::most(withdrawn, MOST_SECONDS),
        control_cpu_s: [middle - before, after - middle],
        resident_mib: [peak("braid-control")?, peak("braid-dataplane")?],
        gbps: [idle, loading, withdrawing],
        less_percent: less(loading, idle),
        paced_less_percent: less(paced_loading, paced_idle),
        paced_gbps: paced_idle,
    })
}

fn configuration(near: bool, topology: &Topology) -> String {
    let path = &topology.paths[0];
    let (name, local, remote, role, host) = match near {
        true => ("a", path.a, path.b, "initiate", 1),
        false => ("b", path.b, path.a, "respond", 2),
    };
    let rest = match near {
        true => format!(
            "[[route]]\nprefix = \"{NET_B}\"\nvia = [\"t\"]\n\n[bgp]\nasn = {OURS}\nrouter-id = \"10.1.0.1\"\n\
             announce = [\"{NET_A}\"]\n[[bgp.neighbor]]\ntunnel = \"t\"\nasn = {THEIRS}\nhold-time = \"90s\"\n"
        ),
        false => format!("[[route]]\nprefix = \"{NET_A}\"\nvia = [\"t\"]\n"),
    };
    format!(
        "[gateway]\nname = \"{name}\"\n\n[[tunnel]]\nname = \"t\"\ntype = \"ipsec\"\nrole = \"{role}\"\n\
         local = \"{local}\"\nremote = \"{remote}\"\ninside = \"169.254.10.{host}/30\"\nprobe = \"off\"\n\
         \n[tunnel.ike]\npsk = \"of the two\"\n\n{rest}"
    )
}

/// Waits until the core has all of them, or none: asked for the last one, and then for some of all.
fn wait_until(gateway: &Gateway, count: u32, there: bool) -> Result<()> {
    const ASKED: u32 = 16;
    let last = count - 1;
    for number in core::iter::once(last).chain((0..ASKED).map(|part| last / ASKED * part)) {
        let net = prefix(number);
        retry_until("the core's answer", LIMIT, || {
            let said =
                gateway.braid(&["path", &net.addr().to_string()]).map_err(|error| error.to_string())?;
            if said.stdout.contains(&net.to_string()) == there {
                return Ok(());
            }
            thread::sleep(PAUSE);
            Err(said.stdout)
        })?;
    }
    Ok(())
}

fn control_cpu(netns: &Netns) -> Result<f64> {
    Ok(super::Usage::of(netns)?.0.get("braid-control").map_or(0.0, |part| part.cpu_s))
}

/// The most that a process has had resident.
fn peak_mib(netns: &Netns, name: &str) -> Result<f64> {
    let mut peak = 0.0;
    for pid in netns.processes()? {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        if read("comm").trim() == name {
            let status = read("status");
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            peak = kib.unwrap_or(0.0) / 1024.0;
        }
    }
    Ok(peak)
}

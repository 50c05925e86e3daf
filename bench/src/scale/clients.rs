//! WireGuard clients that are connected and idle: what they cost the gateway.

use super::{Target, Usage};
use braid_netns::gateway::Gateway;
use braid_netns::guard::temp_dir;
use braid_netns::{Netns, Result, clients, retry_until};
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ROAD: &str = "192.0.2.2";
const PORT: u16 = 51820;
const LIMIT: Duration = Duration::from_secs(120);
/// Until what the start has left behind is over.
const SETTLE: Duration = Duration::from_secs(5);
const MOST_CPU_PERCENT: f64 = 2.0;
const MOST_KIB: f64 = 16.0;

/// What they cost.
#[derive(Debug, Clone, Serialize)]
pub struct Clients {
    /// Clients.
    pub clients: u16,
    /// Seconds until all were connected.
    pub connected_after_s: f64,
    /// Seconds watched; with more than 120, each has made a new session.
    pub seconds: f64,
    /// Share of one processor that all processes of the gateway took, percent.
    pub cpu_percent: Target,
    /// Resident memory for each client, KiB, beyond that of a gateway without.
    pub kib_per_client: Target,
    /// Processor time in the time watched.
    pub usage: Usage,
    /// Resident memory of each process at the end, KiB.
    pub resident: Usage,
    /// Of a gateway without clients.
    pub without: Usage,
}

/// Measures it, watching for this long.
///
/// # Errors
/// When they do not connect, or one does not stay.
pub fn clients(count: u16, watch: Duration) -> Result<Clients> {
    let (gateway, road) = (Netns::new("gw")?, Netns::new("road")?);
    gateway.veth("wan0", &road, "eth0", 1500)?;
    gateway.address("wan0", &format!("{GATEWAY}/30"))?;
    road.address("eth0", &format!("{ROAD}/30"))?;
    let directory = temp_dir("clients")?;
    let file = directory.path().join("clients.toml");
    let keys = clients::Clients::generate(count)?;
    let configuration = format!(
        "[gateway]\nname = \"hub\"\n[clients]\nnetwork = \"{}\"\nlocal = \"{GATEWAY}\"\n\
         reach = \"10.1.0.0/16\"\nprivate-key = \"{}\"\nfile = \"{}\"\n",
        clients::NETWORK,
        keys.gateway_key(),
        file.display()
    );
    let without = {
        let running = Gateway::start(&gateway, &configuration)?;
        connected(&running, 0)?;
        std::thread::sleep(SETTLE);
        Usage::of(&gateway)?
    };
    keys.write(&file)?;
    let started = Instant::now();
    let running = Gateway::start(&gateway, &configuration)?;
    connected(&running, 0)?;
    let _played = keys.connect(&road, SocketAddrV4::new(GATEWAY, PORT))?;
    connected(&running, count.into())?;
    let connected_after_s = started.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let before = Usage::of(&gateway)?;
    let begin = Instant::now();
    std::thread::sleep(watch);
    let (seconds, resident) = (begin.elapsed().as_secs_f64(), Usage::of(&gateway)?);
    // They are what was watched.
    connected(&running, count.into())?;
    let usage = resident.since(&before);
    let grown = resident.total().resident_kib - without.total().resident_kib;
    Ok(Clients {
        clients: count,
        connected_after_s,
        seconds,
        cpu_percent: Target::most(usage.total().cpu_s / seconds * 100.0, MOST_CPU_PERCENT),
        kib_per_client: Target::most(grown / f64::from(count), MOST_KIB),
        usage,
        resident,
        without,
    })
}

/// Waits until so many are up.
fn connected(gateway: &Gateway, count: usize) -> Result<()> {
    retry_until(&format!("{count} clients connected"), LIMIT, || {
        let status = gateway.status().map_err(|error| error.to_string())?;
        let tunnels = status["tunnels"].as_array().map_or(&[][..], Vec::as_slice);
        let up = tunnels.iter().filter(|tunnel| tunnel["state"] == "up").count();
        if up >= count { Ok(()) } else { Err(format!("{up} are")) }
    })
}

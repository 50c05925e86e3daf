//! First messages of IKE from spoofed addresses against a gateway whose tunnels carry traffic.

use super::pair::{Pair, Setup, Side};
use super::{Target, Usage};
use braid_netns::capture::Capture;
use braid_netns::paced::{Load, Paced};
use braid_netns::raw::{self, RawSocket};
use braid_netns::topology::{CLIENT, SERVER};
use braid_netns::{Error, Family, Netns, Result, fault};
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const TUNNELS: usize = 20;
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
const LOAD: Load = Load::told_apart(16, 1);
const IKE_PORT: u16 = 500;
/// RFC 6598: a quarter of a million addresses that nobody has.
const SPOOFED: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const SPOOFED_NET: &str = "100.64.0.0/10";
const SPOOFED_COUNT: u32 = 1 << 18;
const TICK: Duration = Duration::from_millis(1);
/// One that answers everybody: without it, strangers are refused before they cost anything.
const OPEN: &str = "\n[[tunnel]]\nname = \"open\"\ntype = \"ipsec\"\nrole = \"respond\"\nlocal = \"198.51.100.1\"\n\
                    probe = \"off\"\n\n[tunnel.ike]\npsk = \"of whoever comes\"\nremote-id = \"roaming.example.com\"\n";
/// Beyond it, it is no growth with the flood any more.
const MOST_GROWTH_KIB: f64 = 16.0 * 1024.0;

/// What the packets in the tunnel met.
#[derive(Debug, Clone, Serialize)]
pub struct Traffic {
    /// Packets sent, both ways together.
    pub sent: usize,
    /// That did not arrive.
    pub lost: usize,
    /// One-way times, milliseconds.
    pub p50_ms: f64,
    /// The same.
    pub p99_ms: f64,
    /// The same.
    pub max_ms: f64,
}

/// What it did.
#[derive(Debug, Clone, Serialize)]
pub struct Flood {
    /// First messages sent a second.
    pub rate: f64,
    /// First messages sent.
    pub messages: u64,
    /// Traffic without it.
    pub idle: Traffic,
    /// Traffic beside it when the attacked gateway's kernel drops it: what sending it on the same
    /// processors does.
    pub unheard: Traffic,
    /// Traffic beside it.
    pub flooded: Traffic,
    /// Packets lost beside it.
    pub lost: Target,
    /// What the attacked gateway's memory grew by, KiB.
    pub grown_kib: Target,
    /// What its processes used, and grew by, in that time.
    pub usage: Usage,
    /// The attacked gateway's answers to the spoofed addresses.
    pub answers: u64,
    /// Times that a tunnel was taken out, at both ends.
    pub failovers: u64,
}

/// Measures it: `rate` first messages a second, for this long.
///
/// # Errors
/// When the tunnels do not come up.
pub fn flood(rate: u32, time: Duration) -> Result<Flood> {
    let setup = Setup { tunnels: TUNNELS, more_of_b: OPEN.to_owned(), ..Setup::default() };
    let topology = braid_netns::Topology::builder().build()?;
    let capture = Capture::start(&topology.gateway_a, "wan0", "udp src port 500", 0)?;
    let pair = setup.launch_on(topology)?;
    pair.wait_up(TUNNELS, PAUSE, LIMIT)?;
    let template = first_message(capture)?;
    let internet = pair.internet()?;
    internet.ip(&format!("route add blackhole {SPOOFED_NET}"))?;
    internet.nft(&format!(
        "table ip answers {{ counter seen {{ }}\n chain c {{ type filter hook prerouting priority -300; \
         udp sport {IKE_PORT} ip daddr {SPOOFED_NET} counter name seen; }}\n}}"
    ))?;
    pair.topology.gateway_b.ip("route add default via 198.51.100.2 dev wan0")?;
    let target = pair.topology.paths[0].b;

    let idle = traffic(&pair, time)?;
    let beside = || {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| spoof(internet, target, &template, rate, &stop));
            let traffic = traffic(&pair, time);
            stop.store(true, Ordering::Relaxed);
            match sender.join() {
                Ok(sent) => Ok::<_, Error>((traffic?, sent?)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    };
    let drop = fault::drop_matching(&pair.topology.gateway_b, &["wan0"], &format!("ip saddr {SPOOFED_NET}"))?;
    let (unheard, _) = beside()?;
    drop.undo()?;
    let before = pair.usage(Side::B)?;
    let answers = answers_of(internet)?;
    let (flooded, (messages, elapsed)) = beside()?;
    let answers = answers_of(internet)? - answers;
    let usage = pair.usage(Side::B)?.since(&before);
    let mut failovers = 0;
    for side in [Side::A, Side::B] {
        let status = pair.gateway(side).status()?;
        let tunnels = status["tunnels"].as_array().into_iter().flatten();
        failovers += tunnels.filter_map(|tunnel| tunnel["failovers"].as_u64()).sum::<u64>();
    }
    #[allow(clippy::cast_precision_loss)] // some ten thousands
    Ok(Flood {
        rate: messages as f64 / elapsed.as_secs_f64(),
        messages,
        lost: Target::most(flooded.lost as f64, 0.0),
        grown_kib: Target::most(usage.total().resident_kib, MOST_GROWTH_KIB),
        idle,
        unheard,
        flooded,
        usage,
        answers,
        failovers,
    })
}

fn answers_of(internet: &Netns) -> Result<u64> {
    let listed = internet.nft("list counter ip answers seen")?;
    let mut words = listed.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    let count = words.next().and_then(|word| word.parse().ok());
    count.ok_or_else(|| Error::parse("nft list counter", format!("no count in {listed:?}")))
}

/// What A began with: its payloads are what a peer would send.
fn first_message(capture: Capture) -> Result<Vec<u8>> {
    let packets = capture.stop()?;
    let first = packets.iter().find_map(|packet| packet.udp_payload());
    first.map(<[u8]>::to_vec).ok_or_else(|| Error::Usage("no IKE_SA_INIT was seen".to_owned()))
}

/// Sends it from one spoofed address after the other, each time as another SA.
fn spoof(
    from: &Netns,
    target: Ipv4Addr,
    template: &[u8],
    rate: u32,
    stop: &AtomicBool,
) -> Result<(u64, Duration)> {
    let socket = RawSocket::open(from, Family::V4)?;
    let mut message = template.to_vec();
    let started = Instant::now();
    let mut sent: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = u64::try_from(started.elapsed().as_millis()).unwrap_or(0) * u64::from(rate) / 1000;
        while sent < due {
            // Never zero: those of the real ones are random.
            message[..8].copy_from_slice(&(sent + 1).to_be_bytes());
            // The remainder fits.
            #[allow(clippy::cast_possible_truncation)]
            let source = Ipv4Addr::from(u32::from(SPOOFED) + (sent % u64::from(SPOOFED_COUNT)) as u32);
            let ports = ((IpAddr::from(source), IKE_PORT), (IpAddr::from(target), IKE_PORT));
            socket.send(&raw::udp(ports.0, ports.1, 0, &message))?;
            sent += 1;
        }
        std::thread::sleep(TICK);
    }
    Ok((sent, started.elapsed()))
}

/// Paced packets both ways in the first tunnel.
fn traffic(pair: &Pair, time: Duration) -> Result<Traffic> {
    let origin = Instant::now();
    let (client, server) = (&pair.topology.client, &pair.topology.server);
    let loads = [
        Paced::start(client, server, SERVER, LOAD, origin)?,
        Paced::start(server, client, CLIENT, LOAD, origin)?,
    ];
    std::thread::sleep(time);
    let mut traffic = Traffic { sent: 0, lost: 0, p50_ms: 0.0, p99_ms: 0.0, max_ms: 0.0 };
    let mut times = Vec::new();
    for load in loads {
        let log = load.finish()?;
        traffic.sent += log.sent();
        traffic.lost += log.lost().len();
        times.extend(log.transit_times());
    }
    times.sort_unstable();
    let quantile = |per_mille: usize| {
        let at = times.len().saturating_sub(1) * per_mille / 1000;
        times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    (traffic.p50_ms, traffic.p99_ms, traffic.max_ms) = (quantile(500), quantile(990), quantile(1000));
    Ok(traffic)
}

//! WireGuard clients that are connected and idle: what they cost the gateway. The clients are boringtun's, all in
//! one thread and behind one socket.

use super::{Target, Usage};
use base64::prelude::{BASE64_STANDARD, Engine};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use braid_netns::gateway::Gateway;
use braid_netns::guard::temp_dir;
use braid_netns::{Error, Netns, Result, retry_until};
use serde::Serialize;
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const GATEWAY: &str = "192.0.2.1";
const ROAD: &str = "192.0.2.2";
const PORT: u16 = 51820;
const LIMIT: Duration = Duration::from_secs(120);
/// Until what the start has left behind is over.
const SETTLE: Duration = Duration::from_secs(5);
/// As the configurations that `braid client` prints.
const KEEPALIVE: u16 = 25;
const TICK: Duration = Duration::from_millis(250);
/// So many begin in a tick: less than what has a gateway ask for cookies.
const BEGIN: usize = 100;
const MOST_CPU_PERCENT: f64 = 2.0;
const MOST_KIB: f64 = 16.0;

/// What they cost.
#[derive(Debug, Clone, Serialize)]
pub struct Clients {
    /// Clients.
    pub clients: usize,
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
#[allow(clippy::cast_precision_loss)] // thousands of clients
pub fn clients(count: usize, watch: Duration) -> Result<Clients> {
    let (gateway, road) = (Netns::new("gw")?, Netns::new("road")?);
    gateway.veth("wan0", &road, "eth0", 1500)?;
    gateway.address("wan0", &format!("{GATEWAY}/30"))?;
    road.address("eth0", &format!("{ROAD}/30"))?;
    let directory = temp_dir("clients")?;
    let file = directory.path().join("clients.toml");
    let own = random()?;
    let configuration = format!(
        "[gateway]\nname = \"hub\"\n[clients]\nnetwork = \"10.64.0.0/14\"\nlocal = \"{GATEWAY}\"\n\
         reach = \"10.1.0.0/16\"\nprivate-key = \"{}\"\nfile = \"{}\"\n",
        BASE64_STANDARD.encode(own),
        file.display()
    );
    let without = {
        let running = Gateway::start(&gateway, &configuration)?;
        connected(&running, 0)?;
        std::thread::sleep(SETTLE);
        Usage::of(&gateway)?
    };
    let keys = (0..count).map(|_| random()).collect::<Result<Vec<_>>>()?;
    let preshared = random()?;
    write_list(&file, &keys, preshared)?;
    let started = Instant::now();
    let running = Gateway::start(&gateway, &configuration)?;
    connected(&running, 0)?;
    let server = PublicKey::from(&StaticSecret::from(own));
    let tunns: Vec<Tunn> = keys
        .into_iter()
        .enumerate()
        .map(|(index, key)| {
            Tunn::new(StaticSecret::from(key), server, Some(preshared), Some(KEEPALIVE), index as u32, None)
        })
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let played = scope.spawn(|| road.enter(|| play(tunns, &stop)));
        let measured = (|| {
            connected(&running, count)?;
            let connected_after_s = started.elapsed().as_secs_f64();
            std::thread::sleep(SETTLE);
            let before = Usage::of(&gateway)?;
            let begin = Instant::now();
            std::thread::sleep(watch);
            let (seconds, resident) = (begin.elapsed().as_secs_f64(), Usage::of(&gateway)?);
            // They are what was watched.
            connected(&running, count)?;
            let usage = resident.since(&before);
            let grown = resident.total().resident_kib - without.total().resident_kib;
            Ok(Clients {
                clients: count,
                connected_after_s,
                seconds,
                cpu_percent: Target::most(usage.total().cpu_s / seconds * 100.0, MOST_CPU_PERCENT),
                kib_per_client: Target::most(grown / count as f64, MOST_KIB),
                usage,
                resident,
                without: without.clone(),
            })
        })();
        stop.store(true, Ordering::Relaxed);
        played.join().map_err(|_| Error::Usage("the clients panicked".to_owned()))???;
        measured
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

/// Plays all clients until told to stop.
fn play(mut tunns: Vec<Tunn>, stop: &AtomicBool) -> Result<()> {
    let failed = || Error::io("the clients' socket");
    let socket = UdpSocket::bind((ROAD, 0)).map_err(failed())?;
    socket.connect((GATEWAY, PORT)).map_err(failed())?;
    socket.set_read_timeout(Some(Duration::from_millis(10))).map_err(failed())?;
    let from: IpAddr = IpAddr::from([192, 0, 2, 1]);
    let (mut datagram, mut out) = ([0; 2048], [0; 2048]);
    let (mut begun, mut next_tick) = (0, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        if let Ok(len) = socket.recv(&mut datagram) {
            // A response, a cookie and a packet have the receiver's index at different places.
            let at = if datagram[0] == 2 { 8 } else { 4 };
            let index =
                u32::from_le_bytes([datagram[at], datagram[at + 1], datagram[at + 2], datagram[at + 3]]) >> 8;
            if let Some(tunn) = tunns.get_mut(index as usize)
                && let TunnResult::WriteToNetwork(reply) =
                    tunn.decapsulate(Some(from), &datagram[..len], &mut out)
            {
                // What is lost is sent again by the timers.
                let _ = socket.send(reply);
            }
        }
        if Instant::now() < next_tick {
            continue;
        }
        next_tick += TICK;
        let end = (begun + BEGIN).min(tunns.len());
        for tunn in &mut tunns[begun..end] {
            if let TunnResult::WriteToNetwork(initiation) = tunn.format_handshake_initiation(&mut out, false)
            {
                let _ = socket.send(initiation);
            }
        }
        begun = end;
        for tunn in &mut tunns[..begun] {
            if let TunnResult::WriteToNetwork(message) = tunn.update_timers(&mut out) {
                let _ = socket.send(message);
            }
        }
    }
    Ok(())
}

fn write_list(file: &Path, keys: &[[u8; 32]], preshared: [u8; 32]) -> Result<()> {
    let mut text = String::new();
    for (index, key) in keys.iter().enumerate() {
        let public = PublicKey::from(&StaticSecret::from(*key));
        let address = std::net::Ipv4Addr::from_bits(0x0a40_0002 + index as u32);
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "[[client]]\nname = \"c{index}\"\naddress = \"{address}\"\npublic-key = \"{}\"\npreshared-key = \"{}\"\n",
            BASE64_STANDARD.encode(public.as_bytes()),
            BASE64_STANDARD.encode(preshared)
        );
    }
    let failed = || Error::io("cannot write the clients");
    fs::write(file, text).map_err(failed())?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).map_err(failed())
}

fn random() -> Result<[u8; 32]> {
    use std::io::Read;
    let mut bytes = [0; 32];
    let read = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(Error::io("cannot read /dev/urandom"))?;
    Ok(bytes)
}

//! A full table from one neighbor: how long until the core forwards by all of it, what it takes in memory, and what
//! the traffic notices.

use super::Target;
use braid_bgp::{
    Attributes, ConnectionId, Effect, Event, Family, Neighbor, NeighborConfig, Outgoing, SessionState,
};
use braid_netns::gateway::Gateway;
use braid_netns::topology::{NET_A, NET_B, SERVER};
use braid_netns::traffic::{IperfServer, TcpLoad};
use braid_netns::{Error, Netns, Result, Topology, retry_until};
use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(20);
const OURS: u32 = 65_010;
const THEIRS: u32 = 64_512;
const NEIGHBOR: &str = "169.254.10.2";
const PORT: u16 = 179;
/// Prefixes that share their attributes, as in a real table.
const SHARED: u32 = 20;
/// First of the prefixes; each is a /25.
const FIRST: u32 = 0x0b00_0000;
const LENGTH: u8 = 25;
/// What the sender waits for octets before it looks at its timers.
const READ: Duration = Duration::from_millis(20);
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
    let far = Far::start(&topology.gateway_b)?;
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
    far.say(table(count))?;
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
    far.say(table(count))?;
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

fn prefix(number: u32) -> IpNet {
    let size = 32 - u32::from(LENGTH);
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(FIRST + (number << size)), LENGTH))
}

fn table(count: u32) -> Outgoing {
    let group = |group: u32| {
        let attributes = Attributes {
            as_path: vec![THEIRS, 3356 + group % 50, 1000 + group % 60_000],
            communities: vec![(THEIRS << 16) | (group % 400), (3356 << 16) | 5],
            ..Attributes::originated([169, 254, 10, 2].into())
        };
        let prefixes = (group * SHARED..count.min((group + 1) * SHARED)).map(prefix).collect();
        (Arc::new(attributes), prefixes)
    };
    Outgoing { withdrawn: Vec::new(), announced: (0..count.div_ceil(SHARED)).map(group).collect() }
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

/// The neighbor: a session on a connection of its own thread.
struct Far {
    orders: Sender<Outgoing>,
    thread: JoinHandle<Result<()>>,
}

impl Far {
    fn start(netns: &Netns) -> Result<Self> {
        let listener =
            netns.enter(|| TcpListener::bind((NEIGHBOR, PORT)))?.map_err(Error::io("cannot listen"))?;
        let (orders, taken) = mpsc::channel();
        let thread = thread::spawn(move || serve(&listener, &taken));
        Ok(Self { orders, thread })
    }

    fn say(&self, outgoing: Outgoing) -> Result<()> {
        let ended = self.thread.is_finished() || self.orders.send(outgoing).is_err();
        if ended { Err(Error::Usage("the session has ended".to_owned())) } else { Ok(()) }
    }
}

/// Until whoever gives orders is gone.
fn serve(listener: &TcpListener, orders: &Receiver<Outgoing>) -> Result<()> {
    let failed = Error::io("the far session");
    let (mut stream, _) = listener.accept().map_err(Error::io("cannot accept"))?;
    stream.set_read_timeout(Some(READ)).map_err(failed)?;
    let config = NeighborConfig { passive: true, ..NeighborConfig::new(THEIRS, OURS, [10, 2, 0, 1].into()) };
    let mut session = Neighbor::new(config, 1);
    session.start(Instant::now());
    let refused = |_| Error::Usage("the session takes no connection".to_owned());
    let id = session.handle_accepted(Instant::now()).map_err(refused)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut told = false;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => session.handle_bytes(Instant::now(), id, &buffer[..len]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(Error::io("the far session")(error)),
        }
        if session.poll_timeout().is_some_and(|at| at <= Instant::now()) {
            session.handle_timeout(Instant::now());
        }
        if session.state() == SessionState::Established {
            if !core::mem::replace(&mut told, true) {
                session.send_end_of_rib(Family::Ipv4);
            }
            match orders.try_recv() {
                Ok(outgoing) => session.send(&outgoing),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        write(&mut stream, &mut session, id)?;
    }
}

fn write(stream: &mut TcpStream, session: &mut Neighbor, id: ConnectionId) -> Result<()> {
    while let Some(effect) = session.poll_effect() {
        match effect {
            Effect::Transmit(of, octets) if of == id => {
                stream.write_all(&octets).map_err(Error::io("the far session"))?;
            }
            Effect::Event(Event::Down { cause, .. }) => {
                return Err(Error::Usage(format!("the far session ended: {cause:?}")));
            }
            Effect::Transmit(..) | Effect::Event(_) | Effect::Connect(_) | Effect::Close(_) => {}
        }
    }
    Ok(())
}

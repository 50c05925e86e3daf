//! The document that `braid status --json` prints, and `braid path`'s answer.
//!
//! Pure: from control's state and the core's counters.

use core::time::Duration;
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use braid_api::{
    BfdState, BfdStats, Direction, Encapsulation, Flow, PathAnswer, SaStats, Spi, Stats, TunnelId,
    TunnelStats,
};
use braid_ike::PeerStatus;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    bgp::{Bgp, NeighborView, RouteAnswer},
    config,
    turn::{FailureView, Stages, State, TunnelView, Turn},
};

/// The whole document.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The gateway's name.
    pub gateway: String,
    /// Since the forwarding core started, in seconds.
    pub uptime_s: f64,
    /// Every configured tunnel, in the order of the file.
    pub tunnels: Vec<Tunnel>,
    /// Every route into the tunnels, and what BGP has learned.
    pub routes: Vec<Route>,
    /// Learned routes beyond those listed.
    pub routes_left_out: usize,
    /// BGP neighbors, in the order of the file.
    pub neighbors: Vec<NeighborView>,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Whether the forwarding core answers.
    pub core: bool,
    /// `[metrics]`.
    #[serde(default)]
    pub metrics: Option<Metrics>,
}

/// Where metrics are answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Metrics {
    /// As configured.
    pub listen: String,
    /// Why they are not, if so.
    pub problem: Option<String>,
}

/// A tunnel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Tunnel {
    /// As configured.
    pub name: String,
    /// `ipsec` or `wireguard`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `up`, `down`, `connecting`, `standby` or `draining`.
    pub state: String,
    /// Why it is not up.
    pub reason: String,
    /// In this state, in seconds.
    pub since_s: f64,
    /// Outer address of ours, with the port unless it is raw ESP.
    pub local: Option<String>,
    /// The peer's.
    pub remote: Option<String>,
    /// Our inside addresses.
    pub inside: String,
    /// Largest inner packet, in bytes.
    pub mtu: u16,
    /// Interface that outer packets leave by.
    pub uplink: Option<String>,
    /// Inner packets sent.
    pub tx_packets: u64,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Inner packets received.
    pub rx_packets: u64,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Smoothed round-trip time of the probes.
    pub latency_ms: Option<f64>,
    /// What 99 of 100 recent round trips do not exceed.
    pub latency_p99_ms: Option<f64>,
    /// Probes sent since the core began.
    pub probes_sent: u64,
    /// And answered.
    pub probes_answered: u64,
    /// The IKE SA.
    pub ike: Option<IkeSa>,
    /// The SA pair.
    pub child: Option<Child>,
    /// Its BFD session; of two, the one that is worse off.
    pub bfd: Option<Bfd>,
    /// Of a WireGuard tunnel.
    pub wireguard: Option<WireGuard>,
    /// The BGP neighbor in it.
    pub bgp: Option<TunnelBgp>,
    /// Share within a group.
    pub weight: u16,
    /// The highest that is up carries traffic.
    pub priority: i32,
    /// ECMP buckets that lead to it now.
    pub buckets: u32,
    /// How often it was taken out while it carried.
    pub failovers: u64,
    /// The same by their causes.
    pub failover_causes: BTreeMap<String, u64>,
    /// Why it was taken out last, and how long ago.
    pub last_failure: Option<Failure>,
    /// Whether the core has it, and has counted: zeros of one that it has not are no counts.
    #[serde(skip)]
    pub counted: bool,
}

/// The BGP neighbor in a tunnel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TunnelBgp {
    /// RFC 4271 section 8.2.2.
    pub state: String,
    /// Routes it holds up.
    pub received: usize,
    /// Routes it was told.
    pub advertised: usize,
}

/// An IKE SA.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IkeSa {
    /// In strongSwan's words.
    pub suite: String,
    /// Until it is rekeyed, in seconds.
    pub rekey_in_s: u64,
    /// We made it.
    pub initiator: bool,
    /// A NAT is on the way, or one side says so to have ESP in UDP.
    pub nat: bool,
}

/// An SA pair.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Child {
    /// Encryption and integrity.
    pub suite: String,
    /// Of packets from the peer.
    pub spi_in: String,
    /// Of packets to the peer.
    pub spi_out: String,
    /// Fixed keys are never changed.
    pub rekey_in_s: Option<u64>,
    /// Since the tunnel is up.
    pub rekeys: u64,
    /// Last sequence number sent.
    pub sequence_out: u64,
    /// Highest sequence number authenticated.
    pub sequence_in: u64,
}

/// A BFD session.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Bfd {
    /// `admin-down`, `down`, `init` or `up`.
    pub state: String,
    /// Between two packets of ours, as both ends have agreed; a session that is not up sends once a second.
    pub interval_ms: f64,
    /// So many intervals of silence take it down at the peer.
    pub multiplier: u8,
    /// The peer's state.
    pub remote_state: String,
    /// After what silence it goes down here.
    pub detection_ms: f64,
    /// Why it last went down.
    pub diagnostic: Option<String>,
    /// Our address.
    pub local: String,
    /// The peer's.
    pub remote: String,
    /// Why it cannot send or receive, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// WireGuard's session.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WireGuard {
    /// Since the handshake that made the session in use; `null`: there is none.
    pub last_handshake_s: Option<f64>,
    /// Since its keys were set.
    pub handshakes: u64,
    /// Ours.
    pub public_key: String,
    /// The peer's.
    pub peer_public_key: String,
}

/// A failure of the past.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// `link`, `probe`, `exhausted`, `core` and so on.
    pub cause: String,
    /// In words.
    pub reason: String,
    /// In seconds.
    pub ago_s: f64,
    /// When the core found it, in nanoseconds of CLOCK_MONOTONIC; nothing where control did.
    pub detected_ns: Option<u64>,
    /// From then until the tunnel was masked, in microseconds.
    pub masked_us: Option<f64>,
    /// From when control heard of it until all that follows of it was in the core, BGP's choices too, in
    /// milliseconds; nothing while that is under way.
    #[serde(default)]
    pub converged_ms: Option<f64>,
}

/// A route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Inner destination.
    pub prefix: String,
    /// `static`, `bgp` or `connected`.
    pub origin: String,
    /// Its paths.
    pub paths: Vec<Path>,
}

/// A path of a route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Path {
    /// The tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// Or the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The router on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Its share.
    pub weight: u16,
    /// Whether it carries this route's traffic now.
    pub active: bool,
}

/// Learned routes that `braid status` lists at most.
const MAX_LEARNED: usize = 10_000;

/// Builds the document. Without a core there are no counters.
pub fn status(turn: &Turn, ike: &crate::ike::Ike, bgp: &Bgp, stats: Option<&Stats>, now: Duration) -> Status {
    let (routes, routes_left_out) = turn.routes(|_| true, MAX_LEARNED);
    let routes = routes.into_iter().map(route).collect();
    Status { routes, routes_left_out, ..without_routes(turn, ike, bgp, stats, now) }
}

/// The document but for its routes, of which there may be a million.
pub fn without_routes(
    turn: &Turn,
    ike: &crate::ike::Ike,
    bgp: &Bgp,
    stats: Option<&Stats>,
    now: Duration,
) -> Status {
    let by_tunnel: BTreeMap<TunnelId, &TunnelStats> =
        stats.iter().flat_map(|stats| &stats.tunnels).map(|stats| (stats.tunnel, stats)).collect();
    let mut sas: BTreeMap<(TunnelId, Direction), &SaStats> = BTreeMap::new();
    for sa in stats.iter().flat_map(|stats| &stats.sas) {
        sas.insert((sa.tunnel, sa.direction), sa);
    }
    let mut neighbors = bgp.neighbors(std::time::Instant::now());
    let links = stats.map(|stats| stats.bfd_links.as_slice()).unwrap_or_default();
    let by_remote: HashMap<IpAddr, _> = links.iter().map(|link| (link.session.remote, link)).collect();
    for neighbor in neighbors.iter_mut().filter(|neighbor| neighbor.tunnel.is_none()) {
        let link = neighbor.address.parse().ok().and_then(|address: IpAddr| by_remote.get(&address));
        neighbor.bfd = link.map(|link| Bfd { problem: link.problem.clone(), ..bfd(&link.session) });
    }
    let neighbors_in: HashMap<&str, &NeighborView> =
        neighbors.iter().rev().filter_map(|neighbor| Some((neighbor.tunnel.as_deref()?, neighbor))).collect();
    let tunnel = |view: &TunnelView<'_>| {
        let stats = view.id.and_then(|id| by_tunnel.get(&id)).copied();
        let peer = ike.status(&view.tunnel.name, std::time::Instant::now());
        let neighbor = neighbors_in.get(view.tunnel.name.as_str());
        let bgp = neighbor.map(|neighbor| TunnelBgp {
            state: neighbor.state.clone(),
            received: neighbor.received,
            advertised: neighbor.advertised,
        });
        Tunnel { bgp, ..tunnel_status(view, stats, &sas, peer.as_ref()) }
    };
    let tunnels: Vec<Tunnel> = turn.tunnels(now).iter().map(tunnel).collect();
    let by_name: HashMap<&str, &Tunnel> =
        tunnels.iter().map(|tunnel| (tunnel.name.as_str(), tunnel)).collect();
    for neighbor in &mut neighbors {
        let of = neighbor.tunnel.as_deref().and_then(|name| by_name.get(name));
        neighbor.bfd = neighbor.bfd.take().or_else(|| of?.bfd.clone());
    }
    Status {
        gateway: turn.config().gateway.name.clone(),
        uptime_s: seconds(turn.uptime(now)),
        tunnels,
        routes: Vec::new(),
        routes_left_out: 0,
        neighbors,
        drops: stats.map(|stats| stats.drops.iter().cloned().collect()).unwrap_or_default(),
        core: turn.has_core(),
        metrics: None,
    }
}

fn failure(failure: &FailureView<'_>) -> Failure {
    let masked = |stages: Stages| stages.masked.saturating_sub(stages.detected) as f64 / 1e3;
    Failure {
        cause: failure.why.cause().to_owned(),
        reason: failure.why.to_string(),
        ago_s: seconds(failure.ago),
        detected_ns: failure.stages.map(|stages| stages.detected),
        masked_us: failure.stages.map(masked),
        converged_ms: failure.converged.map(|time| time.as_secs_f64() * 1e3),
    }
}

/// A route as it is shown.
pub(crate) fn route(route: crate::turn::RouteView<'_>) -> Route {
    let by_tunnel = |(tunnel, weight, active): (&str, u16, bool)| Path {
        tunnel: Some(tunnel.to_owned()),
        interface: None,
        gateway: None,
        weight,
        active,
    };
    let by_link = |(link, active): (&config::Link, bool)| Path {
        tunnel: None,
        interface: Some(link.interface.clone()),
        gateway: Some(link.gateway.to_string()),
        weight: 1,
        active,
    };
    Route {
        prefix: route.prefix.to_string(),
        origin: route.origin.to_owned(),
        paths: route.link.map(by_link).into_iter().chain(route.paths.into_iter().map(by_tunnel)).collect(),
    }
}

/// What `braid routes` says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Routes {
    /// Those asked for.
    pub routes: Vec<Route>,
    /// Learned ones beyond those listed.
    pub left_out: usize,
    /// All paths by BGP to each prefix, if that was asked.
    pub why: Vec<RouteAnswer>,
}

/// Routes to a prefix and all within it, the one that a packet to an address takes, or all.
pub fn routes(turn: &Turn, bgp: &Bgp, asked: Option<&Asked>, why: bool) -> Routes {
    /// More than a person reads.
    const MAX: usize = 100_000;
    const MAX_EXPLAINED: usize = 1000;
    let wanted = |prefix: &IpNet| match asked {
        None => true,
        Some(Asked::Prefix(net)) => net.contains(prefix),
        Some(Asked::Address(address)) => prefix.contains(address),
    };
    let (mut routes, left_out) = turn.routes(wanted, MAX);
    if let Some(Asked::Address(_)) = asked {
        let longest = routes.iter().map(|route| route.prefix.prefix_len()).max();
        routes.retain(|route| Some(route.prefix.prefix_len()) == longest);
    }
    let mut explained: Vec<IpNet> = routes.iter().map(|route| route.prefix).collect();
    if let Some(Asked::Prefix(net)) = asked
        && !explained.contains(net)
    {
        // One that none of its paths can be used for is worth a word.
        explained.insert(0, *net);
    }
    explained.truncate(if why { MAX_EXPLAINED } else { 0 });
    let why = explained.into_iter().map(|prefix| bgp.explain(prefix));
    let why = why.filter(|answer| !answer.paths.is_empty()).collect();
    Routes { routes: routes.into_iter().map(route).collect(), left_out, why }
}

/// What `braid routes` is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    /// This prefix, and all within it.
    Prefix(IpNet),
    /// What a packet takes.
    Address(IpAddr),
}

fn tunnel_status(
    view: &TunnelView<'_>,
    stats: Option<&TunnelStats>,
    sas: &BTreeMap<(TunnelId, Direction), &SaStats>,
    peer: Option<&PeerStatus>,
) -> Tunnel {
    let tunnel = view.tunnel;
    let sequence = |direction| view.id.and_then(|id| sas.get(&(id, direction))).map_or(0, |sa| sa.sequence);
    let used = match &tunnel.keys {
        config::Keys::Manual(manual) => Some((manual.suite, manual.spi_in, manual.spi_out)),
        config::Keys::Ike(_) => peer
            .and_then(|peer| peer.child.as_ref())
            .zip(view.negotiated)
            .map(|(child, negotiated)| (negotiated.suite, Spi(child.spi_in), Spi(child.spi_out))),
        config::Keys::WireGuard(_) => None,
    };
    let child = used.map(|(suite, spi_in, spi_out)| Child {
        suite: suite.to_string(),
        spi_in: spi_in.to_string(),
        spi_out: spi_out.to_string(),
        rekey_in_s: peer.and_then(|peer| peer.child.as_ref()).map(|child| child.rekey_in.as_secs()),
        rekeys: peer.and_then(|peer| peer.child.as_ref()).map_or(0, |child| child.rekeys),
        sequence_out: sequence(Direction::Out),
        sequence_in: sequence(Direction::In),
    });
    let remote = stats.and_then(|stats| stats.remote).or_else(|| {
        let address = match &tunnel.remote {
            Some(config::Remote::Address(address)) => Some(*address),
            Some(config::Remote::Name(_)) => view.outer?.remote,
            None => None,
        };
        Some(SocketAddr::new(address?, tunnel.ports().1))
    });
    let local = tunnel.local.or_else(|| view.outer?.local);
    let local = local.map(|local| SocketAddr::new(local, tunnel.ports().0));
    let encapsulation = view.negotiated.map_or(tunnel.encapsulation(), |path| path.encapsulation);
    Tunnel {
        name: tunnel.name.clone(),
        kind: if tunnel.wireguard().is_some() { "wireguard" } else { "ipsec" }.to_owned(),
        state: view.state.name().to_owned(),
        reason: view.reason.clone(),
        since_s: seconds(view.since),
        local: local.map(|local| outer_address(local, encapsulation)),
        remote: remote.map(|remote| outer_address(remote, encapsulation)),
        inside: tunnel.inside.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        // The core assumes the worst of a tunnel without SAs.
        mtu: stats.filter(|_| view.has_sas).map_or(view.mtu, |stats| stats.mtu),
        uplink: tunnel.uplink.clone().or_else(|| view.outer?.interface.clone()),
        tx_packets: stats.map_or(0, |stats| stats.tx_packets),
        tx_bytes: stats.map_or(0, |stats| stats.tx_bytes),
        rx_packets: stats.map_or(0, |stats| stats.rx_packets),
        rx_bytes: stats.map_or(0, |stats| stats.rx_bytes),
        latency_ms: stats.and_then(|stats| stats.latency).map(milliseconds),
        latency_p99_ms: stats.and_then(|stats| stats.latency_p99).map(milliseconds),
        probes_sent: stats.map_or(0, |stats| stats.probes.0),
        probes_answered: stats.map_or(0, |stats| stats.probes.1),
        ike: peer.and_then(|peer| peer.ike.as_ref()).map(|ike| IkeSa {
            suite: ike.suite.clone(),
            rekey_in_s: ike.rekey_in.as_secs(),
            initiator: ike.initiator,
            nat: ike.nat_here || ike.nat_there,
        }),
        child: child.filter(|_| view.has_sas),
        bfd: stats.and_then(|stats| stats.bfd.iter().min_by_key(|session| rank(session))).map(bfd),
        wireguard: tunnel.wireguard().map(|keys| wireguard(keys, stats)),
        bgp: None,
        weight: tunnel.weight,
        priority: tunnel.priority,
        buckets: stats.map_or(0, |stats| stats.buckets),
        failovers: view.failovers,
        failover_causes: view.causes.iter().map(|(cause, count)| ((*cause).to_owned(), *count)).collect(),
        last_failure: view.last_failure.as_ref().map(failure),
        counted: stats.is_some(),
    }
}

/// The session that is worse off comes first.
fn rank(session: &BfdStats) -> u8 {
    match session.state {
        BfdState::AdminDown => 0,
        BfdState::Down => 1,
        BfdState::Init => 2,
        BfdState::Up => 3,
    }
}

fn bfd(session: &BfdStats) -> Bfd {
    let state = |state| match state {
        BfdState::AdminDown => "admin-down".to_owned(),
        BfdState::Down => "down".to_owned(),
        BfdState::Init => "init".to_owned(),
        BfdState::Up => "up".to_owned(),
    };
    let diagnostic = braid_bfd::Diagnostic::from_code(session.diagnostic);
    Bfd {
        state: state(session.state),
        interval_ms: milliseconds(session.interval),
        multiplier: session.multiplier,
        remote_state: state(session.remote_state),
        detection_ms: milliseconds(session.detection),
        diagnostic: (diagnostic != braid_bfd::Diagnostic::NONE).then(|| diagnostic.to_string()),
        local: session.local.to_string(),
        remote: session.remote.to_string(),
        problem: None,
    }
}

fn wireguard(keys: &config::WireGuard, stats: Option<&TunnelStats>) -> WireGuard {
    let stats = stats.and_then(|stats| stats.wireguard);
    WireGuard {
        last_handshake_s: stats.and_then(|stats| stats.last_handshake).map(seconds),
        handshakes: stats.map_or(0, |stats| stats.handshakes),
        public_key: keys.private_key.public().to_string(),
        peer_public_key: keys.peer_public_key.to_string(),
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn outer_address(address: SocketAddr, encapsulation: Encapsulation) -> String {
    match encapsulation {
        Encapsulation::Udp | Encapsulation::WireGuard => address.to_string(),
        Encapsulation::Esp => address.ip().to_string(),
    }
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

/// What `braid path` says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Way {
    /// Source of the flow.
    pub src: String,
    /// Destination of the flow.
    pub dst: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// The matching route.
    pub prefix: Option<String>,
    /// Number of its group.
    pub group: Option<u32>,
    /// Members of the group.
    pub members: Vec<WayMember>,
    /// The flow's bucket.
    pub bucket: Option<u16>,
    /// Where the bucket belongs while all is well.
    pub home: Option<String>,
    /// Where the flow goes now.
    pub tunnel: Option<String>,
    /// Why, in words.
    pub why: String,
}

/// A member of the group that a flow goes by.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WayMember {
    /// The tunnel.
    pub tunnel: String,
    /// Its share.
    pub weight: u16,
    /// The highest that is up carries traffic.
    pub priority: i32,
    /// Its state.
    pub state: String,
    /// Why it is not up.
    pub reason: String,
}

/// Explains the core's answer.
pub fn way(turn: &Turn, flow: &Flow, answer: &PathAnswer, now: Duration) -> Way {
    let views = turn.tunnels(now);
    let state = |name: &str| {
        let view = views.iter().find(|view| view.tunnel.name == name);
        view.map(|view| (view.state, view.reason.clone())).unwrap_or((State::Down, String::new()))
    };
    let name = |id: Option<TunnelId>| Some(turn.tunnel_name(id?)?.to_owned());
    let members = answer.group.map(|group| turn.group_members(group)).unwrap_or_default();
    let member = |(tunnel, weight, priority): (&str, u16, i32)| {
        let (state, reason) = state(tunnel);
        WayMember { tunnel: tunnel.to_owned(), weight, priority, state: state.name().to_owned(), reason }
    };
    let (home, tunnel) = (name(answer.home), name(answer.tunnel));
    let why = reason(answer, home.as_deref(), tunnel.as_deref(), &state);
    Way {
        src: flow.src.to_string(),
        dst: flow.dst.to_string(),
        protocol: flow.protocol,
        sport: flow.src_port,
        dport: flow.dst_port,
        prefix: answer.prefix.map(|prefix| prefix.to_string()),
        group: answer.group.map(|group| group.0),
        members: members.into_iter().map(member).collect(),
        bucket: answer.bucket,
        home,
        tunnel,
        why,
    }
}

fn reason(
    answer: &PathAnswer,
    home: Option<&str>,
    tunnel: Option<&str>,
    state: &dyn Fn(&str) -> (State, String),
) -> String {
    let Some(prefix) = answer.prefix else {
        return "no route of Braid covers the destination: the kernel's other routes decide".to_owned();
    };
    let Some(tunnel) = tunnel else {
        return format!("no tunnel of {prefix} carries traffic: the packet is dropped, never sent in clear");
    };
    if answer.group.is_none() {
        return format!("the destination is {tunnel}'s inside peer, which is always reached through it");
    }
    if answer.bucket.is_none() {
        return format!("{tunnel} is the only tunnel of {prefix}");
    }
    let Some(home) = home.filter(|home| *home != tunnel) else {
        return format!("the bucket belongs to {tunnel}");
    };
    let (state, reason) = state(home);
    if state == State::Up {
        return format!(
            "the bucket belongs to {home}, which is back: it goes home when its flows are idle for a moment"
        );
    }
    let because = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    format!("the bucket belongs to {home}, which is {}{because}: {tunnel} stands in", state.name())
}

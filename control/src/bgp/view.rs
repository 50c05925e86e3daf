//! What a speaker shows of itself, for `braid status` and `braid routes`.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    Bgp,
    speaker::{Peer, Speaker, describe},
};

/// A neighbor in `braid status --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NeighborView {
    /// Unique.
    pub name: String,
    /// Where it is.
    pub address: String,
    /// The tunnel that it is in.
    pub tunnel: Option<String>,
    /// Its AS number.
    pub asn: u32,
    /// RFC 4271 section 8.2.2.
    pub state: String,
    /// Why it is not established.
    pub reason: String,
    /// Since the session was established, in seconds.
    pub since_s: Option<f64>,
    /// Routes it holds up.
    pub received: usize,
    /// Those that passed the filter and have no loop.
    pub accepted: usize,
    /// Those that are kept although it has gone (RFC 4724).
    pub stale: usize,
    /// Paths beyond what may lead to one prefix (RFC 7911), not taken.
    pub left_out: u64,
    /// Routes it was told.
    pub advertised: usize,
    /// Routes that it takes no more.
    pub held_back: usize,
    /// Agreed on, in seconds; zero is none.
    pub hold_time_s: Option<u64>,
    /// Of which routes are exchanged.
    pub families: Vec<String>,
    /// Both ends keep routes over a restart (RFC 4724).
    pub graceful_restart: bool,
    /// BFD with it.
    pub bfd: Option<crate::status::Bfd>,
    /// Messages received.
    pub messages_received: u64,
    /// Times the session was established.
    pub established: u64,
    /// Messages with something wrong, whether they ended the session or not (RFC 7606).
    pub malformed: u64,
}

/// What `braid routes PREFIX` says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RouteAnswer {
    /// The prefix.
    pub prefix: String,
    /// All paths by BGP, the best first.
    pub paths: Vec<PathView>,
}

/// A path that a neighbor sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PathView {
    /// Who.
    pub neighbor: String,
    /// Where packets go.
    pub next_hop: IpAddr,
    /// AS numbers, nearest first.
    pub as_path: Vec<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF as sent.
    pub local_pref: Option<u32>,
    /// Communities as `AS:VALUE`.
    pub communities: Vec<String>,
    /// Its sender has gone and may come back.
    pub stale: bool,
    /// It carries traffic.
    pub chosen: bool,
    /// What became of it, and why.
    pub why: String,
}

impl Bgp {
    /// Every configured neighbor, in the order of the file.
    pub fn neighbors(&self, now: Instant) -> Vec<NeighborView> {
        let (Some(speaker), Some(config)) = (&self.speaker, &self.config) else { return Vec::new() };
        let by_name: BTreeMap<&str, NeighborView> = speaker
            .peers
            .iter()
            .map(|(number, peer)| (peer.name.as_str(), neighbor(speaker, peer, *number, now)))
            .collect();
        config.neighbors.iter().filter_map(|neighbor| by_name.get(neighbor.name.as_str()).cloned()).collect()
    }

    /// All paths to a prefix.
    pub fn explain(&self, prefix: IpNet) -> RouteAnswer {
        let speaker = self.speaker.as_ref();
        let paths = speaker.map(|speaker| explain(speaker, &prefix)).unwrap_or_default();
        RouteAnswer { prefix: prefix.to_string(), paths }
    }
}

fn explain(speaker: &Speaker, prefix: &IpNet) -> Vec<PathView> {
    let explained = speaker.rib.explain(prefix, &speaker.reach);
    let path = |path: braid_bgp::rib::Explained| PathView {
        neighbor: speaker.peers.get(&path.neighbor).map(|peer| peer.name.clone()).unwrap_or_default(),
        next_hop: path.attributes.next_hop,
        as_path: path.attributes.as_path.clone(),
        med: path.attributes.med,
        local_pref: path.attributes.local_pref,
        communities: path
            .attributes
            .communities
            .iter()
            .map(|c| format!("{}:{}", c >> 16, c & 0xffff))
            .collect(),
        stale: path.stale,
        chosen: path.reason.chosen(),
        why: path.reason.text().to_owned(),
    };
    explained.into_iter().map(path).collect()
}

fn neighbor(
    speaker: &Speaker,
    peer: &Peer,
    number: braid_bgp::rib::NeighborId,
    now: Instant,
) -> NeighborView {
    let counts = speaker.rib.counts(number);
    let counters = peer.session.counters();
    let established = peer.session.established();
    let tunnel = match &peer.place {
        crate::config::Place::Tunnel(name) => Some(name.clone()),
        crate::config::Place::Address { .. } => None,
    };
    let reason = match (&established, speaker.obstacle(peer), peer.session.last_cause()) {
        (Some(_), _, _) => String::new(),
        (None, None, None) => format!("no answer yet from {}", peer.endpoint.remote),
        (None, Some(obstacle), _) => obstacle.to_owned(),
        (None, None, Some(cause)) => describe(cause),
    };
    let negotiated = established.map(|(negotiated, _)| negotiated);
    NeighborView {
        name: peer.name.clone(),
        address: peer.endpoint.remote.to_string(),
        tunnel,
        asn: peer.session.config().remote_as,
        state: peer.state().name().to_owned(),
        reason,
        since_s: established.map(|(_, since)| tenths(now.saturating_duration_since(since))),
        received: counts.received,
        accepted: counts.accepted,
        stale: counts.stale,
        left_out: counts.left_out,
        advertised: if established.is_some() { peer.out.len() } else { 0 },
        held_back: peer.out.held_back(),
        hold_time_s: negotiated.map(|negotiated| negotiated.hold_time.as_secs()),
        families: negotiated
            .map(|negotiated| negotiated.families.iter().map(|family| family_name(*family)).collect())
            .unwrap_or_default(),
        graceful_restart: negotiated.is_some_and(|negotiated| negotiated.graceful_restart.is_some()),
        bfd: None,
        messages_received: counters.messages_received,
        established: counters.established,
        malformed: counters.attributes_discarded
            + counters.treated_as_withdrawn
            + counters.malformed_messages,
    }
}

fn family_name(family: braid_bgp::Family) -> String {
    match family {
        braid_bgp::Family::Ipv4 => "ipv4".to_owned(),
        braid_bgp::Family::Ipv6 => "ipv6".to_owned(),
    }
}

fn tenths(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

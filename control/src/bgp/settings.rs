//! From the configuration to what sessions, tables and filters are told. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use braid_bgp::{
    Family, NeighborConfig, RouteLimit,
    adj_out::ExportSettings,
    policy::{PrefixFilter, PrefixMatch},
    rib::{ImportSettings, NeighborId, decision::DecisionSettings},
};
use ipnet::IpNet;

use crate::config::{Bgp, Config, Neighbor, Place};

/// Between the MEDs of two priorities.
const MED_STEP: u32 = 100;
/// What is never a destination: this host, loopback, link-local unicast of IPv6, multicast.
const NEVER: [&str; 6] = ["0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::1/128", "fe80::/10", "ff00::/8"];

/// Both ends of a neighbor's connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The neighbor's address.
    pub remote: IpAddr,
    /// Ours; `None`: routing chooses.
    pub local: Option<IpAddr>,
    /// Only over this interface.
    pub interface: Option<String>,
    /// TTL of packets sent is 255 anyway; packets received must have it too (RFC 5082).
    pub ttl_security: bool,
    /// RFC 2385.
    pub md5: Option<crate::config::Key>,
}

/// What becomes of one neighbor's part of the configuration.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Settings {
    pub(super) endpoint: Endpoint,
    pub(super) session: NeighborConfig,
    pub(super) import: ImportSettings,
    /// Without what depends on other neighbors' numbers.
    pub(super) export: ExportSettings,
}

/// `None` for a neighbor whose tunnel has no addresses of one family at both ends.
pub(super) fn of(config: &Config, bgp: &Bgp, neighbor: &Neighbor) -> Option<Settings> {
    let (endpoint, families) = endpoint(config, neighbor)?;
    let tunnel = neighbor.tunnel().and_then(|name| config.tunnels.iter().find(|tunnel| tunnel.name == name));
    let mut session = NeighborConfig::new(bgp.asn, neighbor.asn, bgp.router_id);
    session.hold_time = neighbor.hold_time;
    session.passive = neighbor.passive;
    session.families = neighbor.families.clone().filter(|families| !families.is_empty()).unwrap_or(families);
    session.add_path = neighbor.add_path;
    session.graceful_restart = neighbor.graceful_restart;
    let external = session.external();
    let filter = match &neighbor.import {
        Some(rules) => PrefixFilter::only(rules.iter().copied()),
        None => PrefixFilter::all().except(own(config, bgp).into_iter().map(PrefixMatch::within)),
    };
    let never = NEVER.iter().filter_map(|net| net.parse().ok()).map(PrefixMatch::within);
    let import = ImportSettings {
        external,
        filter: filter.except(never),
        local_pref: neighbor.local_preference,
        weight: neighbor.weight.or(tunnel.map(|tunnel| tunnel.weight)).unwrap_or(1).into(),
        limit: Some(RouteLimit::new(neighbor.max_prefix)),
    };
    let (next_hop_v4, next_hop_v6) = match tunnel {
        Some(tunnel) => next_hops(tunnel.inside.iter().map(IpNet::addr)),
        None => next_hops(endpoint.local),
    };
    let export = ExportSettings {
        local_as: bgp.asn,
        external,
        next_hop_v4,
        next_hop_v6,
        prepend: neighbor.prepend,
        med: neighbor.med.or_else(|| med_by_priority(config, bgp, tunnel?.priority)),
        filter: match &neighbor.export_prefixes {
            Some(rules) => PrefixFilter::only(rules.iter().copied()),
            None => PrefixFilter::all(),
        },
        sources: BTreeSet::new(),
        limit: neighbor.max_advertised.map(RouteLimit::new),
        leaving: false,
    };
    Some(Settings { endpoint, session, import, export })
}

/// Of a speaker's decisions.
pub(super) fn decision(bgp: &Bgp) -> DecisionSettings {
    DecisionSettings {
        multipath: bgp.multipath,
        max_paths: bgp.max_paths.into(),
        always_compare_med: bgp.always_compare_med,
        missing_med_is_worst: false,
    }
}

/// The numbers of the neighbors whose routes this one is told.
pub(super) fn sources(neighbor: &Neighbor, numbers: &BTreeMap<String, NeighborId>) -> BTreeSet<NeighborId> {
    neighbor.export.iter().filter_map(|name| numbers.get(name).copied()).collect()
}

/// Our addresses by family.
pub(super) fn next_hops(addresses: impl IntoIterator<Item = IpAddr>) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (mut v4, mut v6) = (None, None);
    for address in addresses {
        match address {
            IpAddr::V4(address) => v4 = v4.or(Some(address)),
            IpAddr::V6(address) => v6 = v6.or(Some(address)),
        }
    }
    (v4, v6)
}

/// The families that both ends have addresses of are offered.
fn endpoint(config: &Config, neighbor: &Neighbor) -> Option<(Endpoint, Vec<Family>)> {
    let (remote, local, interface, families) = match &neighbor.place {
        Place::Tunnel(name) => {
            let tunnel = config.tunnels.iter().find(|tunnel| tunnel.name == *name)?;
            let mut both: Vec<(IpAddr, IpAddr)> = Vec::new();
            for peer in &tunnel.peer_inside {
                let ours = tunnel.inside.iter().map(IpNet::addr);
                both.extend(ours.filter(|ours| ours.is_ipv4() == peer.is_ipv4()).map(|ours| (*peer, ours)));
            }
            // IPv4 carries the session of a tunnel that has both.
            both.sort_by_key(|(peer, _)| peer.is_ipv6());
            let families = both.iter().map(|(peer, _)| family_of(*peer)).collect();
            let (remote, local) = *both.first()?;
            (remote, Some(local), None, families)
        }
        Place::Address { address, interface, source } => {
            (*address, *source, interface.clone(), vec![family_of(*address)])
        }
    };
    let (ttl_security, md5) = (neighbor.ttl_security, neighbor.md5.clone());
    Some((Endpoint { remote, local, interface, ttl_security, md5 }, families))
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
}

/// What nobody else may announce to us: what we announce, and the inside networks.
fn own(config: &Config, bgp: &Bgp) -> Vec<IpNet> {
    let inside = config.tunnels.iter().flat_map(|tunnel| &tunnel.inside).map(IpNet::trunc);
    let source = config.gateway.source.iter().copied().map(IpNet::from);
    bgp.announce.iter().copied().chain(inside).chain(source).collect()
}

/// The other end is to return by the tunnels that carry: those of lower priority have a higher MED.
fn med_by_priority(config: &Config, bgp: &Bgp, priority: i32) -> Option<u32> {
    let named: BTreeSet<&str> = bgp.neighbors.iter().filter_map(Neighbor::tunnel).collect();
    let with_neighbors = config.tunnels.iter().filter(|tunnel| named.contains(tunnel.name.as_str()));
    let priorities: BTreeSet<i32> = with_neighbors.map(|tunnel| tunnel.priority).collect();
    let rank = priorities.iter().rev().position(|other| *other == priority)?;
    (priorities.len() > 1).then_some(MED_STEP.saturating_mul(u32::try_from(rank).unwrap_or(u32::MAX)))
}

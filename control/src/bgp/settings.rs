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

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use braid_bgp::rib::decision::Multipath;

    use super::*;

    const TEXT: &str = r#"
[[tunnel]]
name = "a"
local = "192.0.2.1"
role = "respond"
inside = ["169.254.10.2/30", "fd00:10::2/126"]
weight = 5
[tunnel.ike]
psk = "x"
remote-id = "a.example"
[[tunnel]]
name = "b"
local = "192.0.2.2"
role = "respond"
inside = "169.254.11.2/30"
priority = -1
weight = 6
[tunnel.ike]
psk = "x"
remote-id = "b.example"
[bgp]
asn = 65010
router-id = "10.1.0.1"
multipath = "relaxed"
max-paths = 7
always-compare-med = true
[[bgp.neighbor]]
tunnel = "a"
asn = 64512
hold-time = "9s"
passive = true
add-path = true
local-preference = 200
prepend = 2
max-prefix = 1000
max-advertised = 100
graceful-restart = "60s"
md5 = "secret"
[[bgp.neighbor]]
tunnel = "b"
asn = 65010
weight = 3
med = 44
families = ["ipv4"]
graceful-restart = false
[[bgp.neighbor]]
address = "10.1.0.254"
interface = "lan0"
source = "10.1.0.1"
asn = 64999
ttl-security = true
"#;

    #[test]
    fn everything_that_is_configured_arrives_where_it_counts() {
        let config = crate::config::parse(TEXT, Path::new("x.toml"), 0o600).unwrap();
        let bgp = config.bgp.as_ref().unwrap();
        let [a, b, router] = [0, 1, 2].map(|index| of(&config, bgp, &bgp.neighbors[index]).unwrap());

        let session = |settings: &Settings| {
            let NeighborConfig { local_as, remote_as, router_id, hold_time, passive, add_path, .. } =
                settings.session;
            (local_as, remote_as, router_id.to_string(), hold_time.as_secs(), passive, add_path)
        };
        assert_eq!(session(&a), (65_010, 64_512, "10.1.0.1".to_owned(), 9, true, true));
        assert_eq!(session(&b), (65_010, 65_010, "10.1.0.1".to_owned(), 30, false, false));
        assert_eq!(a.session.families, [Family::Ipv4, Family::Ipv6]);
        assert_eq!(b.session.families, [Family::Ipv4]);
        let kept =
            [&a, &b, &router].map(|settings| settings.session.graceful_restart.map(|time| time.as_secs()));
        assert_eq!(kept, [Some(60), None, Some(120)]);

        let import = |settings: &Settings| {
            let ImportSettings { external, local_pref, weight, limit, .. } = &settings.import;
            (*external, *local_pref, *weight, limit.unwrap().most)
        };
        // Without a weight of its own, the tunnel's; outside the tunnels, one.
        assert_eq!(import(&a), (true, 200, 5, 1000));
        assert_eq!(import(&b), (false, 100, 3, 2_000_000));
        assert_eq!(import(&router), (true, 100, 1, 2_000_000));

        let export = |settings: &Settings| {
            let ExportSettings { local_as, external, prepend, med, limit, leaving, .. } = &settings.export;
            (*local_as, *external, *prepend, *med, limit.map(|limit| limit.most), *leaving)
        };
        assert_eq!(export(&a), (65_010, true, 2, Some(0), Some(100), false));
        assert_eq!(export(&b), (65_010, false, 0, Some(44), None, false));
        assert_eq!(export(&router), (65_010, true, 0, None, None, false));
        let hops =
            [&a, &b, &router].map(|settings| (settings.export.next_hop_v4, settings.export.next_hop_v6));
        let v4 = |text: &str| Some(text.parse().unwrap());
        assert_eq!(hops[0], (v4("169.254.10.2"), Some("fd00:10::2".parse().unwrap())));
        assert_eq!(hops[1..], [(v4("169.254.11.2"), None), (v4("10.1.0.1"), None)]);

        let end = |settings: &Settings| {
            let Endpoint { remote, local, interface, ttl_security, md5 } = &settings.endpoint;
            let md5 = md5.as_ref().map(|key| key.expose().to_vec());
            (remote.to_string(), local.unwrap().to_string(), interface.clone(), *ttl_security, md5)
        };
        let text = |text: &str| text.to_owned();
        assert_eq!(
            end(&a),
            (text("169.254.10.1"), text("169.254.10.2"), None, false, Some(b"secret".to_vec()))
        );
        assert_eq!(end(&router), (text("10.1.0.254"), text("10.1.0.1"), Some(text("lan0")), true, None));

        let DecisionSettings { multipath, max_paths, always_compare_med, .. } = decision(bgp);
        assert_eq!((multipath, max_paths, always_compare_med), (Multipath::Relaxed, 7, true));
        // Without priorities that differ no MED is told, and by default equal paths share.
        let plain = TEXT.replace("priority = -1\n", "").replace("multipath = \"relaxed\"\n", "");
        let config = crate::config::parse(&plain, Path::new("x.toml"), 0o600).unwrap();
        let bgp = config.bgp.as_ref().unwrap();
        assert_eq!(of(&config, bgp, &bgp.neighbors[0]).unwrap().export.med, None);
        assert_eq!(decision(bgp).multipath, Multipath::Equal);
        assert_eq!(bgp.neighbors[0].hold_time, Duration::from_secs(9));
    }
}

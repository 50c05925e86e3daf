//! Where next hops lead: into tunnels that are offered to traffic, or over links. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use braid_bgp::{
    Attributes,
    rib::{Change, Chosen, NeighborId, Resolver},
};
use ipnet::IpNet;

use crate::{
    config::{Config, Link, Place},
    outer::Links,
    turn::LearnedRoute,
};

/// What next hops are judged by.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    own: BTreeSet<IpAddr>,
    /// Whose inside peer an address is.
    peers: BTreeMap<IpAddr, String>,
    /// Tunnels that are offered to traffic.
    offered: BTreeSet<String>,
    links: Links,
    places: BTreeMap<NeighborId, Place>,
}

/// One way to a next hop.
enum Hop {
    /// Into a tunnel, by its name.
    Tunnel(String),
    /// To a router on a link.
    Link(Link),
}

impl Reach {
    /// Takes a configuration over.
    pub(super) fn configure(&mut self, config: &Config, places: BTreeMap<NeighborId, Place>) {
        self.own = config.tunnels.iter().flat_map(|tunnel| &tunnel.inside).map(IpNet::addr).collect();
        self.own.extend(&config.gateway.source);
        self.peers.clear();
        for tunnel in &config.tunnels {
            self.peers.extend(tunnel.peer_inside.iter().map(|peer| (*peer, tunnel.name.clone())));
        }
        self.places = places;
    }

    /// Whether a tunnel is offered to traffic.
    pub(super) fn is_offered(&self, tunnel: &str) -> bool {
        self.offered.contains(tunnel)
    }

    /// Says whether that is another answer than before.
    pub(super) fn offer(&mut self, tunnel: &str, offered: bool) -> bool {
        if offered { self.offered.insert(tunnel.to_owned()) } else { self.offered.remove(tunnel) }
    }

    /// These links are up, and no others; the interfaces of which that is another answer than before.
    pub(super) fn set_links(&mut self, links: &Links) -> BTreeSet<String> {
        let before = core::mem::replace(&mut self.links, links.clone());
        let names = before.keys().chain(links.keys());
        names.filter(|name| before.get(*name) != links.get(*name)).cloned().collect()
    }

    /// Links that are up.
    pub(super) fn links_up(&self) -> impl Iterator<Item = &String> {
        self.links.keys()
    }

    /// Whether a link is up.
    pub(super) fn is_up(&self, interface: &str) -> bool {
        self.links.contains_key(interface)
    }

    /// Whether a path by this neighbor goes by one of these links.
    pub(super) fn is_by(&self, interfaces: &BTreeSet<String>, neighbor: NeighborId) -> bool {
        let place = self.places.get(&neighbor).and_then(Place::interface);
        place.is_some_and(|interface| interfaces.contains(interface))
    }

    /// Whether a path by this neighbor and next hop goes by a tunnel.
    pub(super) fn concerns(&self, tunnel: &str, neighbor: NeighborId, next_hop: IpAddr) -> bool {
        self.tunnel(neighbor, next_hop).is_some_and(|name| name == tunnel)
    }

    /// The tunnel to a next hop, whether it is up or not.
    fn tunnel(&self, neighbor: NeighborId, next_hop: IpAddr) -> Option<&String> {
        self.peers.get(&next_hop).or_else(|| match self.places.get(&neighbor)? {
            // A tunnel has one other end: whatever next hop is named there lies behind it.
            Place::Tunnel(name) => Some(name),
            Place::Address { .. } => None,
        })
    }

    /// The way to a next hop.
    fn hop(&self, neighbor: NeighborId, next_hop: IpAddr, link_local: Option<Ipv6Addr>) -> Option<Hop> {
        if let Some(tunnel) = self.tunnel(neighbor, next_hop) {
            return self.offered.contains(tunnel).then(|| Hop::Tunnel(tunnel.clone()));
        }
        match self.places.get(&neighbor)? {
            Place::Tunnel(_) => None,
            Place::Address { interface: Some(interface), address, .. } => {
                let gateway = gateway(next_hop, link_local);
                let addresses = self.links.get(interface)?;
                // RFC 4271 section 6.3: not ourselves; the neighbor, or another that shares a network with us. A
                // link-local address is on its link.
                let is_there = !addresses.own.contains(&gateway)
                    && (gateway == *address
                        || is_link_local(gateway)
                        || addresses.networks.iter().any(|network| network.contains(&gateway)));
                is_there.then(|| Hop::Link(Link { gateway, interface: interface.clone() }))
            }
            // Several hops away: it is for others to forward there, and for us to pass on.
            Place::Address { interface: None, .. } => None,
        }
    }

    /// What a choice of the routing table means to whoever forwards: a link that is best, tunnels that carry the
    /// traffic or would without the link, and tunnels that stand by behind these.
    pub(super) fn route(&self, change: &Change) -> LearnedRoute {
        let hop = |path: &Chosen| self.hop(path.neighbor, path.next_hop, path.attributes.link_local);
        let link = change.paths.iter().find_map(hop).and_then(|hop| match hop {
            Hop::Link(link) => Some(link),
            Hop::Tunnel(_) => None,
        });
        let by_tunnels = |paths: &[Chosen]| {
            shares(paths.iter().filter_map(|path| match hop(path)? {
                Hop::Tunnel(name) => Some((name, path.weight)),
                Hop::Link(_) => None,
            }))
        };
        let standby = by_tunnels(&change.standby);
        if link.is_some() {
            return LearnedRoute { prefix: change.prefix, link, tunnels: standby, standby: Vec::new() };
        }
        let tunnels = by_tunnels(&change.paths);
        let carries = |name: &String| tunnels.iter().any(|(other, _)| other == name);
        // Where others forward what is best, nothing of ours stands by.
        let standby = standby.into_iter().filter(|(name, _)| !tunnels.is_empty() && !carries(name)).collect();
        LearnedRoute { prefix: change.prefix, link, tunnels, standby }
    }
}

/// What each tunnel carries of the sum of its paths' weights, in the core's range.
fn shares(paths: impl Iterator<Item = (String, u32)>) -> Vec<(String, u16)> {
    let mut shares: BTreeMap<String, u32> = BTreeMap::new();
    for (name, weight) in paths {
        let sum = shares.entry(name).or_default();
        *sum = sum.saturating_add(weight);
    }
    let most = shares.values().copied().max().unwrap_or(1).max(1);
    let fit = |weight: u32| match most {
        0..=0xffff => weight,
        _ => (u64::from(weight) * 0xffff / u64::from(most)) as u32,
    };
    shares.into_iter().map(|(name, weight)| (name, fit(weight).max(1) as u16)).collect()
}

/// The address on a link that stands for a next hop.
pub(super) fn gateway(next_hop: IpAddr, link_local: Option<Ipv6Addr>) -> IpAddr {
    link_local.map_or(next_hop, IpAddr::V6)
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

impl Resolver for Reach {
    fn cost(&self, neighbor: NeighborId, attributes: &Attributes) -> Option<u32> {
        let next_hop = attributes.next_hop;
        if self.own.contains(&next_hop) {
            return None;
        }
        match (self.hop(neighbor, next_hop, attributes.link_local), self.places.get(&neighbor)) {
            (Some(_), _) => Some(0),
            (None, Some(Place::Address { interface: None, .. })) if !self.peers.contains_key(&next_hop) => {
                Some(1)
            }
            (None, _) => None,
        }
    }

    fn is_link(&self, neighbor: NeighborId, attributes: &Attributes) -> bool {
        matches!(self.hop(neighbor, attributes.next_hop, attributes.link_local), Some(Hop::Link(_)))
    }

    fn is_same_way(&self, one: (NeighborId, IpAddr), other: (NeighborId, IpAddr)) -> bool {
        let tunnel = self.tunnel(one.0, one.1);
        tunnel.is_some() && tunnel == self.tunnel(other.0, other.1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use braid_bgp::Attributes;

    use super::*;
    use crate::outer::Addresses;

    fn chosen(neighbor: u32, next_hop: &str, weight: u32) -> Chosen {
        let next_hop = next_hop.parse().unwrap();
        let attributes = Arc::new(Attributes::originated(next_hop));
        Chosen { neighbor: NeighborId(neighbor), next_hop, weight, attributes }
    }

    fn reach() -> Reach {
        let mut reach = Reach::default();
        reach.own.insert("169.254.10.2".parse().unwrap());
        for (peer, tunnel) in [("169.254.10.1", "a"), ("169.254.11.1", "b")] {
            reach.peers.insert(peer.parse().unwrap(), tunnel.to_owned());
        }
        let link = Place::Address {
            address: "10.1.0.254".parse().unwrap(),
            interface: Some("lan0".to_owned()),
            source: None,
        };
        let far = Place::Address { address: "10.9.0.1".parse().unwrap(), interface: None, source: None };
        let places = [Place::Tunnel("a".to_owned()), Place::Tunnel("b".to_owned()), link, far];
        let addresses = Addresses {
            own: ["10.1.0.1".parse().unwrap()].into(),
            networks: ["10.1.0.0/24".parse().unwrap()].into(),
        };
        reach.links.insert("lan0".to_owned(), addresses);
        reach.places = (0..).map(NeighborId).zip(places).collect();
        reach
    }

    #[test]
    fn a_next_hop_is_reached_while_its_tunnel_is_offered() {
        let mut reach = reach();
        let cost = |reach: &Reach, neighbor, hop: &str| {
            reach.cost(NeighborId(neighbor), &Attributes::originated(hop.parse().unwrap()))
        };
        assert_eq!(cost(&reach, 0, "169.254.10.1"), None);
        assert!(reach.offer("a", true) && !reach.offer("a", true));
        assert_eq!(cost(&reach, 0, "169.254.10.1"), Some(0));
        // Whatever is named in a tunnel lies behind it, but for the peer of another one and ourselves.
        assert_eq!(cost(&reach, 0, "192.0.2.7"), Some(0));
        assert_eq!(cost(&reach, 0, "169.254.11.1"), None);
        assert_eq!(cost(&reach, 0, "169.254.10.2"), None);
        assert_eq!(cost(&reach, 2, "10.1.0.254"), Some(0));
        // RFC 4271 section 6.3: another router that shares a network with us, by either family, and no other.
        assert_eq!(cost(&reach, 2, "10.1.0.7"), Some(0));
        assert_eq!(cost(&reach, 2, "10.1.1.7"), None);
        assert_eq!(cost(&reach, 2, "10.1.0.1"), None);
        let mut by_link_local = Attributes::originated("2001:db8::7".parse().unwrap());
        assert_eq!(reach.cost(NeighborId(2), &by_link_local), None);
        by_link_local.link_local = Some("fe80::7".parse().unwrap());
        assert_eq!(reach.cost(NeighborId(2), &by_link_local), Some(0));
        let changed = reach.set_links(&Links::new());
        assert!(changed == ["lan0".to_owned()].into() && reach.is_by(&changed, NeighborId(2)));
        assert_eq!(cost(&reach, 2, "10.1.0.254"), None);
        assert!(!reach.is_by(&changed, NeighborId(0)) && !reach.is_by(&changed, NeighborId(3)));
        assert_eq!(cost(&reach, 3, "10.9.0.1"), Some(1));
        assert!(reach.concerns("a", NeighborId(0), "192.0.2.7".parse().unwrap()));
        assert!(!reach.concerns("a", NeighborId(0), "169.254.11.1".parse().unwrap()));
        assert!(reach.offer("a", false));
        assert_eq!(cost(&reach, 0, "192.0.2.7"), None);
        // What a neighbor names lies behind its tunnel, unless it is another tunnel's other end.
        let way = |neighbor, next_hop: &str| (NeighborId(neighbor), next_hop.parse().unwrap());
        let (a, behind_a) = (way(0, "169.254.10.1"), way(0, "192.0.2.7"));
        assert!(reach.is_same_way(a, behind_a) && reach.is_same_way(a, way(3, "169.254.10.1")));
        assert!(!reach.is_same_way(a, way(0, "169.254.11.1")));
        assert!(!reach.is_same_way(way(2, "10.1.0.254"), way(2, "10.1.0.254")));
    }

    #[test]
    fn a_link_that_is_best_has_tunnels_behind_it() {
        let mut reach = reach();
        reach.offer("a", true);
        reach.offer("b", true);
        let prefix = "10.2.0.0/16".parse().unwrap();
        let route = |paths, standby| {
            let route = reach.route(&Change { prefix, paths, standby });
            (route.link, route.tunnels, route.standby)
        };
        let tunnel = |name: &str, weight| (name.to_owned(), weight);
        let both = vec![chosen(1, "169.254.11.1", 3), chosen(0, "169.254.10.1", 1)];
        let only = |name: &str| vec![tunnel(name, 1)];
        assert_eq!(route(both.clone(), Vec::new()), (None, vec![tunnel("a", 1), tunnel("b", 3)], Vec::new()));
        let link = Link { gateway: "10.1.0.254".parse().unwrap(), interface: "lan0".to_owned() };
        let best = vec![chosen(2, "10.1.0.254", 1)];
        assert_eq!(route(best.clone(), Vec::new()), (Some(link.clone()), Vec::new(), Vec::new()));
        assert_eq!(route(best.clone(), both), (Some(link), vec![tunnel("a", 1), tunnel("b", 3)], Vec::new()));
        // A tunnel that carries does not stand by behind itself, nor one behind what others forward.
        let (a, b) = (chosen(0, "169.254.10.1", 1), chosen(1, "169.254.11.1", 1));
        assert_eq!(route(vec![b.clone()], vec![a.clone()]), (None, only("b"), only("a")));
        assert_eq!(route(vec![b.clone()], vec![a.clone(), b]), (None, only("b"), only("a")));
        assert_eq!(route(vec![chosen(3, "10.9.0.1", 1)], vec![a]), (None, Vec::new(), Vec::new()));
        // Two paths by one tunnel are one member; weights fit.
        let one = vec![chosen(0, "169.254.10.1", 100_000), chosen(0, "192.0.2.7", 100_000)];
        assert_eq!(route(one, Vec::new()), (None, vec![tunnel("a", 65_535)], Vec::new()));
        for nothing in [vec![chosen(3, "10.9.0.1", 1)], Vec::new()] {
            assert_eq!(route(nothing, Vec::new()), (None, Vec::new(), Vec::new()));
        }
    }
}

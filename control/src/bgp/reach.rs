//! Where next hops lead: into tunnels that are offered to traffic, or over links. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use braid_bgp::rib::{Change, Chosen, NeighborId, Resolver};
use ipnet::IpNet;

use crate::{
    config::{Config, Place},
    turn::{Hop, LearnedRoute},
};

/// What next hops are judged by.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    own: BTreeSet<IpAddr>,
    /// Whose inside peer an address is.
    peers: BTreeMap<IpAddr, String>,
    /// Tunnels that are offered to traffic.
    offered: BTreeSet<String>,
    places: BTreeMap<NeighborId, Place>,
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

    /// Whether a path by this neighbor and next hop goes by a tunnel.
    pub(super) fn concerns(&self, tunnel: &str, neighbor: NeighborId, next_hop: IpAddr) -> bool {
        match self.peers.get(&next_hop) {
            Some(name) => name == tunnel,
            None => matches!(self.places.get(&neighbor), Some(Place::Tunnel(name)) if name == tunnel),
        }
    }

    /// The way to a next hop.
    fn hop(&self, neighbor: NeighborId, next_hop: IpAddr, link_local: Option<Ipv6Addr>) -> Option<Hop> {
        let by_tunnel = |name: &String| self.offered.contains(name).then(|| Hop::Tunnel(name.clone()));
        if let Some(tunnel) = self.peers.get(&next_hop) {
            return by_tunnel(tunnel);
        }
        match self.places.get(&neighbor)? {
            // A tunnel has one other end: whatever next hop is named there lies behind it.
            Place::Tunnel(name) => by_tunnel(name),
            Place::Address { interface: Some(interface), .. } => Some(Hop::Link {
                gateway: link_local.map_or(next_hop, IpAddr::V6),
                interface: interface.clone(),
            }),
            // Several hops away: it is for others to forward there, and for us to pass on.
            Place::Address { interface: None, .. } => None,
        }
    }

    /// What a choice of the routing table means to whoever forwards. Paths are of one kind, that of the best.
    pub(super) fn route(&self, change: &Change) -> LearnedRoute {
        let hop = |path: &Chosen| {
            let hop = self.hop(path.neighbor, path.next_hop, path.attributes.link_local)?;
            Some((hop, path.weight))
        };
        let hops: Vec<(Hop, u32)> = change.paths.iter().filter_map(hop).collect();
        let mut paths: BTreeMap<Hop, u32> = BTreeMap::new();
        match hops.first() {
            None => {}
            Some((link @ Hop::Link { .. }, weight)) => drop(paths.insert(link.clone(), *weight)),
            Some((Hop::Tunnel(_), _)) => {
                for (hop, weight) in hops {
                    if matches!(hop, Hop::Tunnel(_)) {
                        let sum = paths.entry(hop).or_default();
                        *sum = sum.saturating_add(weight);
                    }
                }
            }
        }
        let most = paths.values().copied().max().unwrap_or(1).max(1);
        let fit = |weight: u32| match most {
            0..=0xffff => weight,
            _ => (u64::from(weight) * 0xffff / u64::from(most)) as u32,
        };
        let paths = paths.into_iter().map(|(hop, weight)| (hop, fit(weight).max(1) as u16)).collect();
        LearnedRoute { prefix: change.prefix, paths }
    }
}

impl Resolver for Reach {
    fn cost(&self, neighbor: NeighborId, next_hop: IpAddr) -> Option<u32> {
        if self.own.contains(&next_hop) {
            return None;
        }
        match (self.hop(neighbor, next_hop, None), self.places.get(&neighbor)) {
            (Some(_), _) => Some(0),
            (None, Some(Place::Address { interface: None, .. })) if !self.peers.contains_key(&next_hop) => {
                Some(1)
            }
            (None, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use braid_bgp::Attributes;

    use super::*;

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
        reach.places = (0..).map(NeighborId).zip(places).collect();
        reach
    }

    #[test]
    fn a_next_hop_is_reached_while_its_tunnel_is_offered() {
        let mut reach = reach();
        let cost =
            |reach: &Reach, neighbor, hop: &str| reach.cost(NeighborId(neighbor), hop.parse().unwrap());
        assert_eq!(cost(&reach, 0, "169.254.10.1"), None);
        assert!(reach.offer("a", true) && !reach.offer("a", true));
        assert_eq!(cost(&reach, 0, "169.254.10.1"), Some(0));
        // Whatever is named in a tunnel lies behind it, but for the peer of another one and ourselves.
        assert_eq!(cost(&reach, 0, "192.0.2.7"), Some(0));
        assert_eq!(cost(&reach, 0, "169.254.11.1"), None);
        assert_eq!(cost(&reach, 0, "169.254.10.2"), None);
        assert_eq!(cost(&reach, 2, "10.1.0.254"), Some(0));
        assert_eq!(cost(&reach, 3, "10.9.0.1"), Some(1));
        assert!(reach.concerns("a", NeighborId(0), "192.0.2.7".parse().unwrap()));
        assert!(!reach.concerns("a", NeighborId(0), "169.254.11.1".parse().unwrap()));
        assert!(reach.offer("a", false));
        assert_eq!(cost(&reach, 0, "192.0.2.7"), None);
    }

    #[test]
    fn paths_of_a_route_are_of_the_best_ones_kind() {
        let mut reach = reach();
        reach.offer("a", true);
        reach.offer("b", true);
        let prefix = "10.2.0.0/16".parse().unwrap();
        let route = |paths| reach.route(&Change { prefix, paths });
        let tunnel = |name: &str| Hop::Tunnel(name.to_owned());
        let both = route(vec![chosen(1, "169.254.11.1", 3), chosen(0, "169.254.10.1", 1)]);
        assert_eq!(both.paths, [(tunnel("a"), 1), (tunnel("b"), 3)]);
        let link = route(vec![chosen(2, "10.1.0.254", 1), chosen(0, "169.254.10.1", 1)]);
        let gateway = "10.1.0.254".parse().unwrap();
        assert_eq!(link.paths, [(Hop::Link { gateway, interface: "lan0".to_owned() }, 1)]);
        let first = route(vec![chosen(0, "169.254.10.1", 1), chosen(2, "10.1.0.254", 1)]);
        assert_eq!(first.paths, [(tunnel("a"), 1)]);
        // Two paths by one tunnel are one member; weights fit.
        let one = route(vec![chosen(0, "169.254.10.1", 100_000), chosen(0, "192.0.2.7", 100_000)]);
        assert_eq!(one.paths, [(tunnel("a"), 65_535)]);
        assert_eq!(route(vec![chosen(3, "10.9.0.1", 1)]).paths, []);
        assert_eq!(route(Vec::new()).paths, []);
    }
}

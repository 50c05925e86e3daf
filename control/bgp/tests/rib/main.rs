//! Routing tables: the decision process against a table and a model, the tables against recomputation.

mod adj_out;
mod decision;
mod table;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use braid_bgp::{
    Announcement, Attributes, Nlri, Update,
    rib::{NeighborId, Resolver},
};
use ipnet::IpNet;

/// Where the virtual clock begins.
#[allow(clippy::disallowed_methods)]
pub(crate) fn origin() -> std::time::Instant {
    std::time::Instant::now()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

/// A route with this AS_PATH by 10.0.0.`next_hop`.
pub(crate) fn attributes(as_path: &[u32], next_hop: u8) -> Attributes {
    Attributes { as_path: as_path.to_vec(), ..Attributes::originated(address(next_hop)) }
}

pub(crate) fn announce(prefixes: &[&str], attributes: Attributes) -> Update {
    let nlri = prefixes.iter().map(|prefix| Nlri { prefix: net(prefix), path_id: 0 }).collect();
    Update { withdrawn: Vec::new(), announced: vec![Announcement { attributes: Arc::new(attributes), nlri }] }
}

pub(crate) fn withdraw(prefixes: &[&str]) -> Update {
    let withdrawn = prefixes.iter().map(|prefix| Nlri { prefix: net(prefix), path_id: 0 }).collect();
    Update { withdrawn, announced: Vec::new() }
}

/// Every next hop at no cost.
pub(crate) struct Everything;

impl Resolver for Everything {
    fn cost(&self, _: NeighborId, _: &Attributes) -> Option<u32> {
        Some(0)
    }
}

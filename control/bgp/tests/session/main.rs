//! Sessions: two neighbors on a simulated network, and one against a peer that says what it likes.

mod errors;
mod net;
mod restart;
mod script;
mod sessions;

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use braid_bgp::{Attributes, Family, NeighborConfig, Outgoing};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Where the virtual clock begins.
#[allow(clippy::disallowed_methods)]
pub(crate) fn origin() -> std::time::Instant {
    std::time::Instant::now()
}

/// The settings of end 0 or 1: AS 65000 and 65001, identifiers 10.0.0.1 and 10.0.0.2.
pub(crate) fn config(end: u32) -> NeighborConfig {
    NeighborConfig {
        families: vec![Family::Ipv4, Family::Ipv6],
        ..NeighborConfig::new(65000 + end, 65001 - end, Ipv4Addr::from(0x0a00_0001 + end))
    }
}

/// Attributes as an external peer of this AS number sends them.
pub(crate) fn attributes(asn: u32, next_hop: &str) -> Arc<Attributes> {
    let next_hop = next_hop.parse().unwrap();
    Arc::new(Attributes { as_path: vec![asn], ..Attributes::originated(next_hop) })
}

pub(crate) fn announce(attributes: &Arc<Attributes>, prefixes: &[&str]) -> Outgoing {
    let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    Outgoing { withdrawn: Vec::new(), announced: vec![(attributes.clone(), prefixes)] }
}

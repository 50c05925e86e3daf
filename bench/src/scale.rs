//! IKE, BGP and WireGuard at scale, on the shipped binaries: gateways in namespaces with as many tunnels, routes or
//! clients as asked for, and what that costs; and the core's tables alone. What is measured is what `ike-scale --help`,
//! `bgp-scale --help`, `wireguard-scale --help` and `table-scale --help` say.

mod clients;
mod cold;
mod flood;
mod held;
mod idle;
mod neighbor;
mod pair;
mod rekeys;
mod routes;
mod table;
mod usage;

pub use clients::{Clients, clients};
pub use cold::{Cold, cold};
pub use flood::{Flood, flood};
pub use held::{Held, held};
pub use idle::{Idle, idle};
pub(crate) use neighbor::{Far, OURS, THEIRS, prefix, table as learned};
pub use rekeys::{Rekeys, rekeys};
pub use routes::{Routes, routes};
pub use table::{Cost, Table, Way, table};
pub use usage::{Part, Usage};

use serde::Serialize;

/// A figure and what it is to be.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Target {
    /// Measured.
    pub is: f64,
    /// At most.
    pub most: f64,
    /// It is no more.
    pub reached: bool,
}

impl Target {
    pub(crate) fn most(is: f64, most: f64) -> Self {
        Self { is, most, reached: is <= most }
    }
}

/// The targets that were not reached, in words.
pub fn missed<'a>(targets: impl IntoIterator<Item = (&'a str, Target)>) -> Vec<String> {
    let missed = targets.into_iter().filter(|(_, target)| !target.reached);
    missed.map(|(what, target)| format!("{what}: {:.2}, at most {}", target.is, target.most)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_named() {
        let targets = [("a", Target::most(2.0, 2.0)), ("b", Target::most(2.5, 2.0))];
        assert_eq!(missed(targets), ["b: 2.50, at most 2"]);
        // Never measured is not reached.
        assert!(!Target::most(f64::NAN, 1.0).reached);
    }
}

//! IKE, BGP and WireGuard at scale, on the shipped binaries: gateways in namespaces with as many tunnels, routes or
//! clients as asked for, and what that costs. What is measured is what `ike-scale --help`, `bgp-scale --help` and
//! `wireguard-scale --help` say.

mod clients;
mod cold;
mod flood;
mod held;
mod pair;
mod rekeys;
mod routes;
mod usage;

pub use clients::{Clients, clients};
pub use cold::{Cold, cold};
pub use flood::{Flood, flood};
pub use held::{Held, held};
pub use rekeys::{Rekeys, rekeys};
pub use routes::{Routes, routes};
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
    fn most(is: f64, most: f64) -> Self {
        Self { is, most, reached: is <= most }
    }
}

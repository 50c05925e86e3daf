//! Measurements of Braid: criterion micro-benchmarks (`benches/`), the whole-path comparison with plain
//! forwarding and with peers (`cargo run --release -p braid-bench --bin compare`), IKE at scale
//! (`--bin ike-scale`; BGP, WireGuard and the core's tables likewise), and how fast a cut tunnel is left (`--bin failover`).
//!
//! Everything of one comparison runs on one machine, one topology and in one go, since absolute
//! figures move with the machine and only ratios can be carried elsewhere.

#![forbid(unsafe_code)]

pub mod chart;
pub mod counter;
pub mod cpu;
pub mod failover;
pub mod generator;
pub mod goals;
pub mod measure;
pub mod memory;
pub mod report;
pub mod scale;
pub mod system;

pub use braid_netns::{Error, Result};

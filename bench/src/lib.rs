//! Measurements of Braid: criterion micro-benchmarks (`benches/`), the whole-path comparison with plain
//! forwarding and with peers (`cargo run --release -p braid-bench --bin compare`), and IKE at scale
//! (`--bin ike-scale`).
//!
//! Everything of one comparison runs on one machine, one topology and in one go, since absolute
//! figures move with the machine and only ratios can be carried elsewhere.

#![forbid(unsafe_code)]

pub mod chart;
pub mod counter;
pub mod cpu;
pub mod generator;
pub mod measure;
pub mod report;
pub mod scale;
pub mod system;

pub use braid_netns::{Error, Result};

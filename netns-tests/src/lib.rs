//! Network namespaces for tests and benchmarks: a harness that builds small networks on one
//! machine, breaks them on purpose, and removes every trace.
//!
//! Everything a test makes lives in namespaces whose names start with `bn<pid>-`, so that what a
//! killed run left behind can be told from what runs now, and is removed by the next run
//! ([`guard::reap_stale`]). Nothing is ever configured in the machine's own namespace.
//!
//! It drives `ip`, `nft`, `tc`, `ethtool`, `iperf3`, `ping`, `tcpdump`, `tshark`, FRR and BIRD; `netns-tests/run`
//! installs them. It needs root.
//!
//! Not done: netem (delay, reordering), which the kernels we test on lack.

#![forbid(unsafe_code)]

pub mod capture;
pub mod clients;
pub mod content;
pub mod dissect;
mod error;
pub mod fault;
pub mod frr;
pub mod gateway;
pub mod guard;
pub mod leak;
mod netns;
pub mod paced;
mod process;
pub mod raw;
pub mod routing;
pub mod runner;
pub mod strongswan;
pub mod topology;
pub mod traffic;
mod wait;
pub mod wireguard;

pub use error::Error;
pub use netns::{Family, Netns, Offload};
pub use process::{Process, Ran};
pub use topology::{Topology, TopologyBuilder};
pub use wait::{poll_until, retry_until};

/// What every fallible call of the harness returns.
pub type Result<T> = std::result::Result<T, Error>;

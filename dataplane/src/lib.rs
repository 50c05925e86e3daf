//! Braid's forwarding core: encrypts packets over tunnels and spreads flows over them by ECMP.
//!
//! A [`worker`] reads packets from the TUN device and from the outer sockets, and hands them to
//! [`forward`], which is pure: it sees the published [`tables`], writes into the worker's bounded
//! pools, and neither does I/O nor reads a clock. See the README for the way of a packet.

pub mod counters;
pub mod drop_reason;
pub mod esp;
pub mod forward;
pub mod handshakes;
pub mod io;
pub mod liveness;
pub mod offload;
pub mod packet;
pub mod punt;
pub mod run;
pub mod runs;
mod sandbox;
mod service;
pub mod tables;
pub mod wireguard;
pub mod worker;

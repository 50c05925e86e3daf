//! Braid's control process, its launcher and the command `braid`.
//!
//! `config` reads the configuration, `desired` turns it into what the kernel and the core should
//! be like, and `turn` takes one event in and gives one set of effects out. All of these are pure;
//! `process` connects them to sockets, clocks and files.

#![forbid(unsafe_code)]

pub mod admin;
pub mod bgp;
pub mod cli;
pub mod config;
pub mod core_client;
pub mod demo;
pub mod desired;
pub mod doctor;
pub mod failover;
pub mod ike;
pub mod import;
mod in_force;
pub mod key_log;
pub mod keys;
pub mod launcher;
pub mod launcher_client;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod mirror;
pub mod outer;
pub mod process;
mod shared;
pub mod status;
pub mod turn;
pub mod watch;
pub mod wireguard;

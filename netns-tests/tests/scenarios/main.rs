//! Scenarios in network namespaces, run by `netns-tests/run` (root; see `braid_netns::runner`).
//! Each builds its own network, asserts on what users would see, and leaves nothing behind.

mod authority;
mod aws;
mod bfd;
mod bgp;
mod bgp_guard;
mod bgp_restart;
mod bgp_signals;
mod bgp_spread;
mod change;
mod clients;
mod collide;
mod commands;
mod demo;
mod direct;
mod direct_tunnel;
mod dissect;
mod doctor;
mod failover;
mod hostile;
mod hostile_wireguard;
mod ike;
mod kernel;
mod lan;
mod metrics;
mod mobile;
mod multihop;
mod order;
#[allow(dead_code, reason = "part of it is for groups that are not listed yet")]
mod pair;
mod rekey;
mod sizes;
mod smoke;
mod spread;
mod strongswan;
mod survival;
mod swan;
mod tunnel;
mod unknown_peer;
mod wireguard;
mod wireguard_rekey;
mod wireguard_roam;
mod wires;

use braid_netns::runner::{self, Scenario};
use std::process::ExitCode;

#[rustfmt::skip]
const GROUPS: &[&[Scenario]] = &[
    smoke::ALL,
    kernel::ALL,
    tunnel::ALL,
    dissect::ALL,
    sizes::ALL,
    hostile::ALL,
    hostile_wireguard::ALL,
    lan::ALL,
    survival::ALL,
    ike::ALL,
    doctor::ALL,
    rekey::ALL,
    failover::ALL,
    bfd::ALL,
    change::ALL,
    spread::ALL,
    order::ALL,
    commands::ALL,
    demo::ALL,
    strongswan::ALL,
    collide::ALL,
    mobile::ALL,
    aws::ALL,
    bgp::ALL,
    bgp_guard::ALL,
    bgp_restart::ALL,
    bgp_signals::ALL,
    bgp_spread::ALL,
    direct::ALL,
    direct_tunnel::ALL,
    multihop::ALL,
    unknown_peer::ALL,
    wireguard::ALL,
    wireguard_rekey::ALL,
    wireguard_roam::ALL,
    clients::ALL,
    metrics::ALL,
];

fn main() -> ExitCode {
    runner::main(&GROUPS.concat())
}

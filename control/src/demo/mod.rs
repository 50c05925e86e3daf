//! `braid demo`: the main job on one machine, with nothing to configure.
//!
//! Client, two gateways, the world between them, and server are network namespaces that this
//! process makes by itself and that vanish with it, however it ends. The gateways are the same
//! `braid run` that anybody would start. All figures are measured in the run that prints them:
//! throughput by turns with plain kernel forwarding over the same links, the split from the
//! gateways' counters, loss and recovery from numbered packets, and encryption and the way of
//! each flow from a look at the outer links.

#![forbid(unsafe_code)]

mod bulk;
mod capture;
mod crossing;
mod display;
mod error;
mod gateway;
mod measure;
mod net;
mod paced;
mod report;
mod stop;
mod topology;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use display::Display;
use error::Error;
use report::Report;
use stop::Stop;

/// Shows the main job on this machine, with nothing to configure.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Example: braid demo --seconds 10\n\n\
    Needs root, or a kernel that allows unprivileged user namespaces. Changes nothing on this machine.")]
pub struct DemoArgs {
    /// What the tunnels speak
    #[arg(long = "type", value_enum, default_value_t = TunnelType::Ipsec)]
    pub tunnel_type: TunnelType,
    /// How long the tunnels are loaded, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Number of TCP flows
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub flows: u16,
    /// Print one JSON document and nothing else
    #[arg(long)]
    pub json: bool,
    /// Become the gateway whose directory this is.
    #[arg(long, hide = true, requires = "parent")]
    gateway: Option<PathBuf>,
    /// The process without which that gateway must not run.
    #[arg(long, hide = true)]
    parent: Option<i32>,
}

/// What the tunnels of a demonstration speak.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelType {
    /// ESP in UDP, keys by IKEv2
    Ipsec,
    /// WireGuard
    Wireguard,
    /// One of each
    Mixed,
}

impl TunnelType {
    /// What each of the two tunnels speaks.
    fn protocols(self) -> [Protocol; 2] {
        match self {
            TunnelType::Ipsec => [Protocol::Esp; 2],
            TunnelType::Wireguard => [Protocol::WireGuard; 2],
            TunnelType::Mixed => [Protocol::Esp, Protocol::WireGuard],
        }
    }
}

/// What one tunnel speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Esp,
    WireGuard,
}

/// Runs the demonstration. Success only if traffic crossed encrypted and failover worked; otherwise
/// one line on stderr says why not.
pub fn run(args: DemoArgs) -> ExitCode {
    if let (Some(home), Some(parent)) = (&args.gateway, args.parent) {
        return gateway::become_gateway(home, parent);
    }
    match demonstrate(&args) {
        Ok(report) => conclude(&report, args.json),
        Err(error) => fail(&error),
    }
}

fn demonstrate(args: &DemoArgs) -> Result<Report, Error> {
    // First of all, while there is one thread only.
    net::gain_privileges()?;
    let stop = Stop::on_signals()?;
    let mut display = Display::new(args.json);
    display.line(HEAD);
    let seconds = Duration::from_secs(args.seconds.into());
    measure::perform(args.tunnel_type.protocols(), seconds, args.flows.into(), &stop, &mut display)
}

fn conclude(report: &Report, json: bool) -> ExitCode {
    let text = if json { report.json() + "\n" } else { format!("\n{}", report.summary()) };
    if let Err(error) = std::io::stdout().write_all(text.as_bytes()) {
        return fail(&Error::System { what: "cannot print".to_owned(), source: error });
    }
    match report.shortfalls.first() {
        None => ExitCode::SUCCESS,
        Some(shortfall) => fail(&Error::NotShown(shortfall.clone())),
    }
}

fn fail(error: &Error) -> ExitCode {
    eprintln!("braid demo: {error}");
    ExitCode::FAILURE
}

const HEAD: &str = "braid demo: two networks, two encrypted tunnels, one link\n\n\
    \x20 client --- gateway-a === path-1 === gateway-b --- server\n\
    \x20 10.1.0.2             === path-2 ===             10.2.0.2\n";

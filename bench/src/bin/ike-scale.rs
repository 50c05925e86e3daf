//! IKE at scale, on the shipped binaries, in namespaces of its own.

use braid_bench::cpu::Machine;
use braid_bench::scale::{self, Cold, Flood, Held, Idle, Rekeys};
use braid_netns::{Error, guard};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Measures what many tunnels cost two Braid gateways, each by itself, keys by IKE with a pre-shared
/// key, AES-256-GCM and group 20 (Braid's defaults).
///
/// cold: from the start of both programs until 1,000 tunnels are up, and control's processor time for
/// each; held: processor time and memory of idle tunnels that dead peer detection keeps; idle: both of a
/// gateway with one tunnel and its probes; flood: 2,000
/// first messages a second from spoofed addresses, and what the traffic in a tunnel notices of them;
/// rekeys: the rate at which nothing is dropped, then 100 rekeys of the child SA and 20 of the IKE SA at
/// half of it.
///
/// Needs root, and what netns-tests/run installs. Build Braid first: cargo build --release
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Measurements to take.
    #[arg(long, value_delimiter = ',', value_enum, value_name = "NAME,…", default_values_t = Name::ALL)]
    only: Vec<Name>,
    /// Tunnels from a cold start.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=65_000))]
    tunnels: u32,
    /// Idle tunnels.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=65_000))]
    held: u32,
    /// Seconds that idle tunnels, or the one, are watched.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    watch: u32,
    /// First messages a second in the flood.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds of flood, and as many without it.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Rekeys of the child SA under load.
    #[arg(long, default_value_t = 100)]
    child_rekeys: u32,
    /// Rekeys of the IKE SA under load.
    #[arg(long, default_value_t = 20)]
    ike_rekeys: u32,
    /// Bytes of the packets during the rekeys, IP header included.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(29..=1400))]
    length: u16,
    /// Write the figures here; without it they go to stdout.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  ike-scale                                  everything, about ten minutes
  ike-scale --only cold,rekeys
  ike-scale --only held --held 2000 --watch 60 --json held.json

Exit status: 0 all was measured and every target reached; 1 one was missed, or something failed; 2 wrong usage.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Cold,
    Held,
    Idle,
    Flood,
    Rekeys,
}

impl Name {
    const ALL: [Self; 5] = [Self::Cold, Self::Held, Self::Idle, Self::Flood, Self::Rekeys];
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    cold: Option<Cold>,
    held: Option<Held>,
    idle: Option<Idle>,
    flood: Option<Flood>,
    rekeys: Option<Rekeys>,
    /// Measurements that could not be taken.
    failures: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    guard::watch_signals();
    guard::reap_stale();
    let report = measure(&arguments);
    let reached = report.failures.is_empty() && missed(&report).is_empty();
    missed(&report).iter().for_each(|missed| eprintln!("ike-scale: missed: {missed}"));
    match write(&arguments, &report) {
        Ok(()) if reached => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ike-scale: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Report {
    let mut failures = Vec::new();
    let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
    let wanted = |name| arguments.only.contains(&name);
    let cold = wanted(Name::Cold)
        .then(|| take("cold", &mut failures, || scale::cold(arguments.tunnels as usize)))
        .flatten();
    let held = wanted(Name::Held)
        .then(|| {
            take("held", &mut failures, || scale::held(arguments.held as usize, seconds(arguments.watch)))
        })
        .flatten();
    let idle = wanted(Name::Idle)
        .then(|| take("idle", &mut failures, || scale::idle(seconds(arguments.watch))))
        .flatten();
    let flood = wanted(Name::Flood)
        .then(|| take("flood", &mut failures, || scale::flood(arguments.rate, seconds(arguments.seconds))))
        .flatten();
    let length = usize::from(arguments.length);
    let rekeys = wanted(Name::Rekeys)
        .then(|| {
            let of = || scale::rekeys(arguments.child_rekeys, arguments.ike_rekeys, length);
            take("rekeys", &mut failures, of)
        })
        .flatten();
    Report { machine: Machine::look(), cold, held, idle, flood, rekeys, failures }
}

fn take<T>(name: &str, failures: &mut Vec<String>, measure: impl FnOnce() -> Result<T, Error>) -> Option<T> {
    eprintln!("ike-scale: {name}");
    match measure() {
        Ok(measured) => Some(measured),
        Err(error) => {
            eprintln!("ike-scale: {name}: {error}");
            failures.push(format!("{name}: {error}"));
            None
        }
    }
}

/// The targets that were not reached, in words.
fn missed(report: &Report) -> Vec<String> {
    let mut targets = Vec::new();
    if let Some(cold) = &report.cold {
        targets.push(("seconds until all tunnels are up", cold.seconds));
        targets.extend(cold.control_cpu_ms.map(|target| ("control's milliseconds for a handshake", target)));
    }
    if let Some(held) = &report.held {
        targets.extend(held.cpu_percent.map(|target| ("percent of a processor for idle tunnels", target)));
        targets.extend(held.kib_per_tunnel.map(|target| ("KiB resident for a tunnel", target)));
    }
    if let Some(idle) = &report.idle {
        targets.extend(idle.resident_mib.map(|target| ("MiB resident in a gateway of one tunnel", target)));
        targets.extend(idle.cpu_percent.map(|target| ("percent of a processor for one idle tunnel", target)));
    }
    if let Some(flood) = &report.flood {
        targets.push(("packets lost beside a flood", flood.lost));
        targets.push(("KiB that a flood adds", flood.grown_kib));
    }
    targets.extend(report.rekeys.as_ref().map(|rekeys| ("packets lost in rekeys", rekeys.lost)));
    scale::missed(targets)
}

fn write(arguments: &Arguments, report: &Report) -> Result<(), Error> {
    let json = serde_json::to_string_pretty(report).map_err(|bad| Error::parse("JSON", bad))?;
    match &arguments.json {
        None => println!("{json}"),
        Some(path) => std::fs::write(path, json + "\n")
            .map_err(Error::io(format!("cannot write {}", path.display())))?,
    }
    Ok(())
}

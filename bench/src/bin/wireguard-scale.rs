//! Idle WireGuard clients on a gateway of the shipped binaries, in namespaces of their own.

use braid_bench::cpu::Machine;
use braid_bench::scale::{self, Clients, missed};
use braid_netns::{Error, guard};
use clap::Parser;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// Measures what very many WireGuard clients that are connected and idle cost a Braid gateway: processor time and
/// resident memory. The clients, which share the machine's processors, are boringtun's and send a keepalive every
/// 25 seconds.
///
/// Needs root, and what netns-tests/run installs. Build Braid first: cargo build --release
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit status: 0 every target reached; 1 one was missed, or something failed; 2 wrong usage."
)]
struct Arguments {
    /// Clients.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    clients: u16,
    /// Seconds watched; with more than 120, each client has made a new session.
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    clients: Clients,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    guard::watch_signals();
    guard::reap_stale();
    match measure(&arguments) {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            missed.iter().for_each(|missed| eprintln!("wireguard-scale: missed: {missed}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("wireguard-scale: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the figures; the targets that were not reached, in words.
fn measure(arguments: &Arguments) -> Result<Vec<String>, Error> {
    let watch = Duration::from_secs(arguments.seconds.into());
    let report = Report { clients: scale::clients(arguments.clients, watch)?, machine: Machine::look() };
    println!("{}", serde_json::to_string_pretty(&report).map_err(|bad| Error::parse("JSON", bad))?);
    let clients = &report.clients;
    let targets = [
        ("percent of a processor", clients.cpu_percent),
        ("KiB resident for each client", clients.kib_per_client),
    ];
    Ok(missed(targets))
}

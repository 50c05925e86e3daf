//! A full table in a gateway of the shipped binaries, in namespaces of its own.

use braid_bench::cpu::Machine;
use braid_bench::scale::{self, Routes, missed};
use braid_netns::{Error, guard};
use clap::Parser;
use serde::Serialize;
use std::process::ExitCode;

/// Measures what very many routes from one BGP neighbor in a tunnel cost a Braid gateway: the time until its core
/// forwards by all of them, and by none after they were withdrawn; the most memory that control and the core had
/// resident; and what one TCP flow through the tunnel notices. Kernel routes are made as well, and not waited for.
///
/// The neighbor, the flow's ends and both gateways share the machine's processors.
///
/// Needs root, and what netns-tests/run installs. Build Braid first: cargo build --release
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit status: 0 every target reached; 1 one was missed, or something failed; 2 wrong usage."
)]
struct Arguments {
    /// Routes.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    routes: u32,
    /// Seconds of each measurement of throughput; what is shorter than loading is taken within it.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    routes: Routes,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    guard::watch_signals();
    guard::reap_stale();
    match measure(&arguments) {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            missed.iter().for_each(|missed| eprintln!("bgp-scale: missed: {missed}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bgp-scale: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the figures; the targets that were not reached, in words.
fn measure(arguments: &Arguments) -> Result<Vec<String>, Error> {
    let report =
        Report { routes: scale::routes(arguments.routes, arguments.seconds)?, machine: Machine::look() };
    println!("{}", serde_json::to_string_pretty(&report).map_err(|bad| Error::parse("JSON", bad))?);
    let routes = &report.routes;
    let targets = [
        ("seconds until all are in the core", routes.loaded),
        ("seconds until none is", routes.withdrawn),
        ("MiB resident in control", routes.resident_mib[0]),
        ("MiB resident in the core", routes.resident_mib[1]),
        ("percent less throughput meanwhile of a flow that takes all there is", routes.less_percent),
        ("percent less throughput meanwhile of a flow that does not", routes.paced_less_percent),
    ];
    Ok(missed(targets))
}

//! How fast a cut tunnel is left, on the shipped binaries, in namespaces of its own.

use braid_bench::cpu::Machine;
use braid_bench::failover::{How, Pair, Quiet, Round};
use braid_netns::{Result, guard};
use clap::Parser;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// Cuts one of two tunnels of two Braid gateways, at full load (TCP that takes what there is, and paced flows both
/// ways by which the time is told), again and again; and loads them without a cut.
///
/// Needs root, and what netns-tests/run installs. Build Braid first: cargo build --release
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Cuts.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// What cuts it.
    #[arg(long, value_enum, default_value = "silent")]
    how: How,
    /// BFD's interval in milliseconds; the multiplier is 3.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(10..=1000))]
    interval: u64,
    /// Seconds at full load without a cut, first; 0 for none.
    #[arg(long, default_value_t = 120)]
    quiet: u32,
    /// Print one JSON document and nothing else.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    how: How,
    interval_ms: u64,
    quiet: Option<Quiet>,
    rounds: Vec<Round>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    guard::watch_signals();
    guard::reap_stale();
    let report = match measure(&arguments) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("failover: {error}");
            guard::remove_all();
            return ExitCode::FAILURE;
        }
    };
    if arguments.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("failover: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        print(&report);
    }
    ExitCode::SUCCESS
}

fn measure(arguments: &Arguments) -> Result<Report> {
    let mut pair = Pair::start(arguments.how, Duration::from_millis(arguments.interval))?;
    let quiet = (arguments.quiet > 0).then(|| pair.quiet(arguments.quiet)).transpose()?;
    let mut rounds = Vec::new();
    for number in 1..=arguments.rounds {
        let round = pair.round()?;
        eprintln!("failover: cut {number} of {}: {:.1} ms", arguments.rounds, round.traffic_ms[2]);
        rounds.push(round);
    }
    let (how, interval_ms) = (arguments.how, arguments.interval);
    Ok(Report { machine: Machine::look(), how, interval_ms, quiet, rounds })
}

fn print(report: &Report) {
    println!("{:?}, BFD {} ms x 3", report.how, report.interval_ms);
    if let Some(quiet) = &report.quiet {
        println!(
            "{} s at {:.2} Gbit/s without a cut: {} failovers {:?}",
            quiet.seconds, quiet.gbit_per_s, quiet.failovers, quiet.causes
        );
    }
    println!(
        "from the cut: found at A and B (ms), masked after (us), traffic of the flows hit (ms: first, median, last)"
    );
    for round in &report.rounds {
        let Round { traffic_ms: [first, median, last], .. } = round;
        let known = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        let [a, b] = round.detected_ms.map(known);
        let [ma, mb] = round.masked_us.map(known);
        println!(
            "found {a:>6} {b:>6}  masked {ma:>6} {mb:>6}  traffic {first:6.1} {median:6.1} {last:6.1}  \
             ({} flows, cut made in {:.1} ms, {:?}, {:.2} Gbit/s)",
            round.flows_hit, round.cutting_ms, round.causes, round.gbit_per_s
        );
    }
}

//! How fast a cut tunnel is left, on the shipped binaries, in namespaces of its own.

use braid_bench::cpu::Machine;
use braid_bench::failover::{Drained, Goal, How, Pair, Quiet, Round, Setup, goals};
use braid_bench::scale::missed;
use braid_netns::{Result, guard};
use clap::Parser;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// Cuts one of two tunnels of two Braid gateways, at full load (TCP that takes what there is, and paced flows both
/// ways by which the time is told), again and again; or drains it and takes it back; and loads them without a cut.
///
/// What the figures are to be: after a silent cut with BFD at 10 ms all flows on the other tunnel within 50 ms, after
/// link loss within 10 ms, after an ICMP error within 10 ms and three round trips of the probes; masked within 1 ms of
/// detection, with however many routes; by drain and return no packet lost, none reordered; no flow of the other tunnel
/// moved; no failover where nothing was cut.
///
/// Needs root, and what netns-tests/run installs. Build Braid first: cargo build --release
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit status: 0 every target reached; 1 one was missed, or something failed; 2 wrong usage."
)]
struct Arguments {
    /// Cuts, or drains.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// What takes it away.
    #[arg(long, value_enum, default_value = "silent")]
    how: How,
    /// BFD's interval in milliseconds; the multiplier is 3.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(10..=1000))]
    interval: u64,
    /// Seconds at full load without a cut, first; 0 for none.
    #[arg(long, default_value_t = 600)]
    quiet: u32,
    /// Prefixes that A has learned by BGP through both tunnels when the cut comes.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    routes: u32,
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
    routes: u32,
    rounds: Vec<Round>,
    drains: Vec<Drained>,
    targets: Vec<Goal>,
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
    let missed = missed(report.targets.iter().map(|goal| (goal.what, goal.target)));
    missed.iter().for_each(|missed| eprintln!("failover: missed: {missed}"));
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(arguments: &Arguments) -> Result<Report> {
    let Arguments { how, interval: interval_ms, routes, .. } = *arguments;
    let mut pair = Pair::start(Setup { how, interval: Duration::from_millis(interval_ms), routes })?;
    let quiet = (arguments.quiet > 0).then(|| pair.quiet(arguments.quiet)).transpose()?;
    let (mut rounds, mut drains) = (Vec::new(), Vec::new());
    for number in 1..=arguments.rounds {
        if how == How::Drain {
            drains.push(pair.drain()?);
            eprintln!("failover: drain {number} of {}", arguments.rounds);
            continue;
        }
        let round = pair.round()?;
        eprintln!("failover: cut {number} of {}: {:.1} ms", arguments.rounds, round.traffic_ms[2]);
        rounds.push(round);
    }
    let targets = goals(how, quiet.as_ref(), &rounds, &drains);
    Ok(Report { machine: Machine::look(), how, interval_ms, quiet, routes, rounds, drains, targets })
}

fn print(report: &Report) {
    println!("{:?}, BFD {} ms x 3, {} routes learned", report.how, report.interval_ms, report.routes);
    if let Some(quiet) = &report.quiet {
        println!(
            "{} s at {:.2} Gbit/s without a cut: {} failovers {:?}",
            quiet.seconds, quiet.gbit_per_s, quiet.failovers, quiet.causes
        );
    }
    for drained in &report.drains {
        let Drained { flows, left, lost, reordered, healthy_moved, gbit_per_s } = drained;
        println!(
            "{left} of {flows} flows left it; {lost} packets lost, {reordered} reordered, {healthy_moved} flows of the \
             other tunnel moved, {gbit_per_s:.2} Gbit/s"
        );
    }
    if report.rounds.is_empty() {
        return;
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
             ({} flows, {} others moved, cut made in {:.1} ms, {:?}, {:.2} Gbit/s)",
            round.flows_hit, round.healthy_moved, round.cutting_ms, round.causes, round.gbit_per_s
        );
        for verdict in &round.false_verdicts {
            println!("the other tunnel was taken out: {verdict}");
        }
    }
}

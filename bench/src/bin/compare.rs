//! Whole-path comparison of Braid with plain forwarding and with peers, on one machine, in one go.

use braid_bench::chart;
use braid_bench::cpu::{Machine, placement};
use braid_bench::goals::goals;
use braid_bench::measure::{Figures, Plan, Test, measure};
use braid_bench::report::{Entry, Report, Run};
use braid_bench::system::{self, System, verify};
use braid_netns::{Error, Topology, guard, traffic::CONGESTION_CONTROL};
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Compares ways to join two networks: plain kernel forwarding, Braid, strongSwan's userspace
/// ESP, wireguard-go, boringtun-cli.
///
/// Builds client - gateway A - gateway B - server in four network namespaces joined by veth
/// pairs, measures plain forwarding and then one system, and so on in turn, each several times,
/// and prints medians and ratios. Before a system is measured, a capture between the gateways
/// proves that traffic crosses in that system's encryption.
///
/// Needs root. Peers and tools come with netns-tests/run; build Braid first:
/// cargo build --release
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Systems to compare, of those that --list shows; plain forwarding always runs.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    systems: Vec<String>,
    /// Measurements to take.
    #[arg(long, value_delimiter = ',', value_enum, value_name = "TEST,…")]
    tests: Vec<Test>,
    /// Runs of each system; medians are shown.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Seconds each measurement takes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Offers of small packets, in thousands a second.
    #[arg(long, value_delimiter = ',', value_name = "KPPS,…", default_values_t = [270, 340])]
    offers: Vec<u32>,
    /// Small packets, in thousands a second, during which round trips are timed.
    #[arg(long, default_value_t = 400, value_name = "KPPS")]
    overload: u32,
    /// Length of small packets: bytes of IP, headers included.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(29..=1500))]
    length: u16,
    /// Flows of small packets.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=40_000))]
    flows: u16,
    /// TCP's congestion control. Plain forwarding makes half of it where bbr paces by its estimates, and what is slower
    /// loses nothing.
    #[arg(long, value_name = "NAME", default_value = CONGESTION_CONTROL)]
    congestion: String,
    /// One run of one second each: for a look, not for figures to publish.
    #[arg(long)]
    quick: bool,
    /// Measure plain forwarding once a round instead of before every system.
    #[arg(long)]
    rounds: bool,
    /// Write everything, every run included, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a bar chart.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Show the systems' names and end.
    #[arg(long)]
    list: bool,
}

const EXAMPLES: &str = "Examples:
  compare                                        everything, over an hour; with --rounds 35 minutes
  compare --quick --systems plain                is the machine fit for it?
  compare --systems braid-128-1 --tests tcp1,small --runs 3
  compare --json bench.json --svg bench.svg > bench.md

Exit status: 0 everything was measured, and what Braid is to reach was reached; 1 something failed or was missed (the
output says what); 2 wrong usage.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let systems = match chosen(&arguments) {
        Ok(systems) => systems,
        Err(unknown) => {
            eprintln!("compare: {unknown}");
            return ExitCode::from(2);
        }
    };
    if arguments.list {
        systems.iter().for_each(|system| println!("{:20} {}", system.name(), system.title()));
        return ExitCode::SUCCESS;
    }
    guard::watch_signals();
    guard::reap_stale();
    let report = compare(&arguments, &systems);
    println!("{}", report.markdown());
    let failed = report.systems.iter().any(|entry| !entry.failures.is_empty())
        || report.goals.iter().any(|goal| !goal.reached);
    match write_files(&arguments, &report) {
        Ok(()) if !failed => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The systems asked for, plain forwarding first.
fn chosen(arguments: &Arguments) -> Result<Vec<Box<dyn System>>, String> {
    let all = system::all();
    let names: Vec<String> = all.iter().map(|system| system.name()).collect();
    if let Some(unknown) = arguments.systems.iter().find(|name| !names.contains(name)) {
        return Err(format!("no system {unknown}; there are {}", names.join(", ")));
    }
    let wanted =
        |name: &String| name == "plain" || arguments.systems.is_empty() || arguments.systems.contains(name);
    Ok(all.into_iter().filter(|system| wanted(&system.name())).collect())
}

fn plan(arguments: &Arguments) -> Plan {
    let all = [Test::Tcp1, Test::Tcp8, Test::Small, Test::RttIdle, Test::RttTcp, Test::RttOverload];
    Plan {
        tests: if arguments.tests.is_empty() { all.to_vec() } else { arguments.tests.clone() },
        seconds: if arguments.quick { 1 } else { arguments.seconds },
        offers_kpps: arguments.offers.clone(),
        overload_kpps: arguments.overload,
        small_length: usize::from(arguments.length),
        small_flows: arguments.flows,
        congestion: arguments.congestion.clone(),
        rounds: arguments.rounds,
    }
}

fn compare(arguments: &Arguments, systems: &[Box<dyn System>]) -> Report {
    let plan = plan(arguments);
    let runs = if arguments.quick { 1 } else { arguments.runs };
    let mut entries: Vec<Entry> = systems
        .iter()
        .map(|system| Entry { name: system.name(), title: system.title(), ..Entry::default() })
        .collect();
    let (plain, others) = systems.split_at(1);
    for run in 1..=runs {
        let mut limit = Figures::new();
        if others.is_empty() || arguments.rounds {
            limit = once(plain[0].as_ref(), &plan, run, &mut entries[0], None);
        }
        for (system, entry) in others.iter().zip(1..) {
            if !arguments.rounds {
                limit = once(plain[0].as_ref(), &plan, run, &mut entries[0], None);
            }
            once(system.as_ref(), &plan, run, &mut entries[entry], Some(&limit));
        }
    }
    entries.iter_mut().for_each(Entry::summarize);
    let mut report = Report { machine: Machine::look(), plan, runs, systems: entries, goals: Vec::new() };
    report.goals = goals(&report);
    report
}

/// One run of one system on a fresh topology.
fn once(system: &dyn System, plan: &Plan, run: u32, entry: &mut Entry, limit: Option<&Figures>) -> Figures {
    eprintln!("run {run}: {}", system.title());
    match try_once(system, plan, entry) {
        Ok((figures, failures)) => {
            entry.failures.extend(failures.into_iter().map(|what| format!("run {run}: {what}")));
            let plain = limit.unwrap_or(&figures).clone();
            entry.each.push(Run { figures: figures.clone(), plain });
            figures
        }
        Err(error) => {
            eprintln!("run {run}: {}: {error}", system.title());
            entry.failures.push(format!("run {run}: {error}"));
            Figures::new()
        }
    }
}

fn try_once(system: &dyn System, plan: &Plan, entry: &mut Entry) -> Result<(Figures, Vec<String>), Error> {
    let topology = Topology::builder().direct().paths(system.paths()).build()?;
    let mut running = system.start(&topology)?;
    verify(&topology, system.wire(), running.as_mut())?;
    if entry.placement.is_empty() {
        entry.placement = placement(&topology.gateway_a)?;
        entry.placement.extend(placement(&topology.gateway_b)?);
    }
    let (figures, mut failures) = measure(&topology, plan, system.far_end(), running.as_ref());
    if !failures.is_empty() {
        failures.push(running.diagnosis());
        failures.retain(|failure| !failure.is_empty());
    }
    Ok((figures, failures))
}

fn write_files(arguments: &Arguments, report: &Report) -> Result<(), Error> {
    let write = |path: &Path, text: String| {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .map_err(Error::io(format!("cannot make {}", directory.display())))?;
        }
        std::fs::write(path, text).map_err(Error::io(format!("cannot write {}", path.display())))
    };
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(report).map_err(|bad| Error::parse("JSON", bad))?;
        write(path, json)?;
    }
    if let Some(path) = &arguments.svg {
        write(path, chart::svg(report))?;
    }
    Ok(())
}

//! The core's tables with a million prefixes, in memory.

use braid_bench::cpu::Machine;
use braid_bench::scale::{self, Table, missed};
use braid_netns::Error;
use clap::Parser;
use serde::Serialize;
use std::process::ExitCode;

/// Measures the core's tables, as they ship, without devices: the bytes that a prefix takes, both copies together; a
/// transaction of one operation with one prefix in the table and with 1,000,000; and the outward way of packets of 256
/// flows with 1,000,000 prefixes and 10,000 tunnels beside one of each (and by 256 tunnels beside 256 of each), in turn. Look-ups in cold memory stand apart.
///
/// Needs neither root nor other programs. Takes half a minute and 2 GiB.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit status: 0 every target reached; 1 one was missed, or something failed; 2 wrong usage."
)]
struct Arguments {}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    table: Table,
}

fn main() -> ExitCode {
    let Arguments {} = Arguments::parse();
    match measure() {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            missed.iter().for_each(|missed| eprintln!("table-scale: missed: {missed}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("table-scale: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the figures; the targets that were not reached, in words.
fn measure() -> Result<Vec<String>, Error> {
    let report = Report { table: scale::table()?, machine: Machine::look() };
    println!("{}", serde_json::to_string_pretty(&report).map_err(|bad| Error::parse("JSON", bad))?);
    let table = &report.table;
    let [v4, v6] = table.bytes_per_prefix;
    let mut targets = vec![("bytes for an IPv4 prefix", v4), ("bytes for an IPv6 prefix", v6)];
    let more = "microseconds that a large table adds to a transaction of one operation";
    targets.extend(table.transactions.iter().map(|cost| (more, cost.more_us)));
    let less = "percent fewer packets with all prefixes and tunnels";
    targets.extend(table.packets.iter().map(|way| (less, way.less_percent)));
    Ok(missed(targets))
}

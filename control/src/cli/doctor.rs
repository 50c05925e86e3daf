//! `braid doctor`.

use std::{fmt::Write, process::ExitCode};

use super::{
    FAILED, RunDir,
    ask::{ask, print},
};
use crate::{
    admin::Request,
    doctor::{Finding, Report},
};

/// Says why a tunnel does not come up or carries nothing, and the remedy.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exits with 0 when nothing was found, with 1 when something was.

Examples: braid doctor
          braid doctor aws-a")]
pub(super) struct Args {
    /// The tunnel's name [default: all]
    tunnel: Option<String>,
    /// Print one JSON document and nothing else
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let value = match ask(&args.run_dir.path, &Request::Doctor { tunnel: args.tunnel.clone() }) {
        Ok(value) => value,
        Err(code) => return code,
    };
    let report = match serde_json::from_value::<Report>(value.clone()) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("braid: the gateway is of another version: {error}");
            return ExitCode::from(FAILED);
        }
    };
    if args.json {
        print(&format!("{value}\n"));
    } else {
        print(&text(&report));
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for tunnel in &report.tunnels {
        let word = if tunnel.findings.is_empty() { ", nothing found" } else { "" };
        // Writing to a string never fails.
        let _ = writeln!(text, "{}: {}{word}", tunnel.name, tunnel.state);
        tunnel.findings.iter().for_each(|finding| describe(&mut text, finding));
    }
    if !report.others.is_empty() {
        text.push_str("besides:\n");
        report.others.iter().for_each(|finding| describe(&mut text, finding));
    }
    text
}

fn describe(text: &mut String, finding: &Finding) {
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name:<8}{value}");
        }
    };
    line("step", &finding.step);
    line("found", &finding.problem);
    line("key", &finding.key);
    line("remedy", &finding.remedy);
}

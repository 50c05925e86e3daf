//! Runs scenarios one at a time and proves after each that nothing was left behind.
//!
//! A scenario needs root and programs that `netns-tests/run` installs, so plain `cargo test` only
//! says so; with `BRAID_NETNS=1` the scenarios run, and what is missing fails instead of being
//! skipped.

use crate::{guard, leak};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// What a scenario returns: any error is a failure.
pub type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A scenario: `group::name`, and the function that asserts on outcomes.
pub type Scenario = (&'static str, fn() -> Outcome);

/// Runs parts of a scenario on threads of their own: those that wait more than they work.
///
/// # Errors
/// The first one's, in their order.
///
/// # Panics
/// When one of them does.
pub fn side_by_side<F: FnOnce() -> Outcome + Send>(parts: impl IntoIterator<Item = F>) -> Outcome {
    std::thread::scope(|scope| {
        let start = |part: F| scope.spawn(move || part().map_err(|error| error.to_string()));
        let running: Vec<_> = parts.into_iter().map(start).collect();
        for part in running {
            part.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        Ok(())
    })
}

/// Programs without which no scenario can run.
const PROGRAMS: [&str; 7] = ["ip", "nft", "tc", "ethtool", "iperf3", "ping", "tcpdump"];

#[derive(Default)]
struct Arguments {
    list: bool,
    exact: bool,
    filters: Vec<String>,
    skip: Vec<String>,
}

impl Arguments {
    fn read(given: impl Iterator<Item = String>) -> Self {
        let mut read = Self::default();
        let mut given = given.peekable();
        while let Some(argument) = given.next() {
            match argument.as_str() {
                "--list" => read.list = true,
                "--exact" => read.exact = true,
                "--skip" => read.skip.extend(given.next()),
                // The built-in harness's options that take a value.
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => {
                    given.next();
                }
                option if option.starts_with('-') => {}
                _ => read.filters.push(argument),
            }
        }
        read
    }

    fn wants(&self, name: &str) -> bool {
        let matches = |filter: &String| {
            if self.exact { name == filter } else { name.contains(filter.as_str()) }
        };
        (self.filters.is_empty() || self.filters.iter().any(matches)) && !self.skip.iter().any(matches)
    }
}

/// The `main` of a scenario binary: runs what the command line selects, prints one line each and
/// at last `N passed, N failed`, alone on a line.
#[must_use]
pub fn main(scenarios: &[Scenario]) -> ExitCode {
    let arguments = Arguments::read(std::env::args().skip(1));
    let chosen: Vec<&Scenario> = scenarios.iter().filter(|(name, _)| arguments.wants(name)).collect();
    if arguments.list {
        for (name, _) in &chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("BRAID_NETNS").is_none_or(|value| value != "1") {
        println!("{} scenarios need root and network namespaces: netns-tests/run", chosen.len());
        return ExitCode::SUCCESS;
    }
    if let Err(missing) = prerequisites() {
        eprintln!("{missing}");
        println!("\n0 passed, {} failed", chosen.len());
        return ExitCode::FAILURE;
    }
    guard::watch_signals();
    guard::reap_stale();
    // The message of a panic is part of the verdict; a backtrace through the runner is noise.
    std::panic::set_hook(Box::new(|panic| {
        if let Some(at) = panic.location() {
            print!("at {at}: ");
        }
    }));
    let failed: Vec<&str> =
        chosen.iter().filter(|scenario| !passes(scenario)).map(|(name, _)| *name).collect();
    if !failed.is_empty() {
        println!("\nfailed:");
        failed.iter().for_each(|name| println!("    {name}"));
    }
    if chosen.is_empty() {
        eprintln!("no scenario has such a name; --list shows them");
    }
    println!("\n{} passed, {} failed", chosen.len() - failed.len(), failed.len());
    if failed.is_empty() && !chosen.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn prerequisites() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("scenarios make network namespaces: run netns-tests/run as root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<&str> = PROGRAMS
        .into_iter()
        .filter(|program| !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("not installed: {}; netns-tests/run installs them", missing.join(", ")))
    }
}

fn passes((name, scenario): &Scenario) -> bool {
    use std::io::Write;
    print!("test {name} ... ");
    let _ = std::io::stdout().flush();
    let started = Instant::now();
    let verdict = run_checked(*scenario);
    let seconds = started.elapsed().as_secs_f64();
    match &verdict {
        Ok(()) => println!("ok ({seconds:.1} s)"),
        Err(why) => println!("FAILED ({seconds:.1} s)\n{why}"),
    }
    verdict.is_ok()
}

fn run_checked(scenario: fn() -> Outcome) -> Result<(), String> {
    let check = leak::Check::begin().map_err(|error| error.to_string())?;
    let outcome = match catch_unwind(AssertUnwindSafe(scenario)) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(panic) => Err(panic_text(panic.as_ref())),
    };
    let left_over = check.left_over().map_err(|error| error.to_string())?;
    if left_over.is_empty() {
        return outcome;
    }
    // The next scenario must not fail for this one.
    guard::remove_all();
    let mut why = outcome.err().unwrap_or_default();
    why.push_str("\nleft behind:");
    for line in left_over {
        why.push_str("\n    ");
        why.push_str(&line);
    }
    Err(why.trim_start().to_owned())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Arguments {
        Arguments::read(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn selects_by_part_of_the_name() {
        let arguments = read("--test-threads 1 smoke --nocapture");
        assert!(arguments.wants("smoke::plain") && !arguments.wants("ecmp::spread"));
        let exact = read("--exact smoke");
        assert!(!exact.wants("smoke::plain") && exact.wants("smoke"));
        let skipping = read("--skip plain");
        assert!(!skipping.wants("smoke::plain") && skipping.wants("ecmp::spread"));
    }

    #[test]
    fn parts_run_side_by_side_and_the_first_failure_is_told() {
        let both = std::sync::Barrier::new(2);
        let part = |fails: bool| {
            let both = &both;
            move || {
                both.wait();
                if fails { Err("this one".into()) } else { Ok(()) }
            }
        };
        assert_eq!(side_by_side([false, true].map(part)).unwrap_err().to_string(), "this one");
    }

    #[test]
    fn a_scenario_that_fails_says_why() {
        assert_eq!(panic_text(&"boom"), "boom");
        assert_eq!(panic_text(&"boom".to_owned()), "boom");
    }
}

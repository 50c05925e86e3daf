//! The command `braid`: arguments in, exit status out.
//!
//! 0: done; 1: what was asked for failed or is not so; 2: wrong usage or configuration. Errors are
//! one line each on stderr.

mod check;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

/// Joins networks over several encrypted tunnels and uses them as one link.
#[derive(Parser, Debug)]
#[command(name = "braid", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Check(check::Args),
}

const EXAMPLES: &str = "\
Examples:
  braid check --config /etc/braid/braid.toml       see whether a configuration is right";

/// Runs the command. `args` are the process's, its name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            eprintln!("{}", one_line(&error.render().to_string()));
            return ExitCode::from(WRONG_USAGE);
        }
        Err(help) => {
            // Whoever closed our stdout does not want to know.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    match cli.command {
        Command::Check(args) => check::run(&args),
    }
}

/// What is wrong with the arguments, without the page of usage that follows it.
fn one_line(error: &str) -> String {
    let said = error.lines().take_while(|line| !line.starts_with("Usage:"));
    let said: Vec<&str> = said.map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = said.join(" ");
    format!("braid: {}; see braid --help", said.strip_prefix("error: ").unwrap_or(&said))
}

/// Exit status for wrong usage or configuration.
const WRONG_USAGE: u8 = 2;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_one_line() {
        for args in
            [vec!["braid"], vec!["braid", "chekc"], vec!["braid", "check"], vec!["braid", "check", "x"]]
        {
            let error = Cli::try_parse_from(&args).unwrap_err();
            if error.use_stderr() {
                let line = one_line(&error.render().to_string());
                assert!(!line.contains('\n') && line.starts_with("braid: "), "{line}");
            }
        }
    }

    #[test]
    fn every_command_teaches_with_an_example() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains("Example"), "{}", command.get_name());
        }
    }
}

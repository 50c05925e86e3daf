//! The command `braid`: arguments in, exit status out.
//!
//! 0: done; 1: what was asked for failed or is not so; 2: wrong usage or configuration. Errors are
//! one line each on stderr.

mod ask;
mod check;
mod client;
mod doctor;
mod file;
mod import;
mod keys;
mod routes;
mod run;
mod status;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};

/// Joins networks over several encrypted tunnels and uses them as one link.
#[derive(Parser, Debug)]
#[command(name = "braid", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Demo(crate::demo::DemoArgs),
    Check(check::Args),
    Run(run::Args),
    Status(status::Args),
    Doctor(doctor::Args),
    Path(ask::PathArgs),
    Routes(routes::Args),
    Drain(ask::Drain),
    Undrain(ask::Undrain),
    Rekey(ask::Rekey),
    Reload(ask::Reload),
    Client(client::Args),
    Import(import::Args),
    Genkey(keys::Genkey),
    Pubkey(keys::Pubkey),
    Genpsk(keys::Genpsk),
}

/// The run directory of the gateway that is asked.
#[derive(clap::Args, Debug)]
struct RunDir {
    /// Where the gateway's sockets are
    #[arg(long = "run-dir", value_name = "DIR", default_value_os_t = ask::default_run_dir())]
    path: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  braid demo                                      see it work on this machine, nothing to configure
  braid check --config /etc/braid/braid.toml      see whether a configuration is right
  braid run --config /etc/braid/braid.toml        run a gateway
  braid status --watch                            see what it does
  braid doctor                                    see why a tunnel does not come up
  braid path 10.2.0.5                             see which tunnel a packet takes, and why";

/// Runs the command. `args` are the process's, its name first.
///
/// The program is all three: under the name of the core or of control it is that process, since
/// `braid run` starts itself under these names.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match Part::of(&args) {
        Part::Command => command(args),
        Part::Core(rest) => braid_dataplane::run::main(rest.iter().cloned()),
        Part::Control(rest) => {
            let name = OsString::from("braid-control");
            crate::process::main_with_args(core::iter::once(name).chain(rest.iter().cloned()))
        }
    }
}

/// What this process is to be, with the arguments that follow.
enum Part<'a> {
    Command,
    Core(&'a [OsString]),
    Control(&'a [OsString]),
}

impl<'a> Part<'a> {
    fn of(args: &'a [OsString]) -> Self {
        let (Some(name), rest) = (args.first(), args.get(1..).unwrap_or_default()) else {
            return Part::Command;
        };
        match std::path::Path::new(name).file_name().and_then(|name| name.to_str()) {
            Some("braid-dataplane") => return Part::Core(rest),
            Some("braid-control") => return Part::Control(rest),
            _ => {}
        }
        match (rest.first().and_then(|first| first.to_str()), rest.get(1..).unwrap_or_default()) {
            (Some("core-process"), rest) => Part::Core(rest),
            (Some("control-process"), rest) => Part::Control(rest),
            _ => Part::Command,
        }
    }
}

fn command(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(WRONG_USAGE);
        }
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
        Command::Demo(args) => crate::demo::run(args),
        Command::Check(args) => check::run(&args),
        Command::Run(args) => run::run(args),
        Command::Status(args) => status::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Path(args) => ask::path(&args),
        Command::Routes(args) => routes::run(&args),
        Command::Drain(args) => ask::drain(args),
        Command::Undrain(args) => ask::undrain(args),
        Command::Rekey(args) => ask::rekey(args),
        Command::Reload(args) => ask::reload(&args),
        Command::Client(args) => client::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Genkey(_) => keys::genkey(),
        Command::Pubkey(_) => keys::pubkey(),
        Command::Genpsk(_) => keys::genpsk(),
    }
}

/// What is wrong with the arguments, without the page of usage that follows it.
fn one_line(error: &str) -> String {
    let said = error.lines().take_while(|line| !line.starts_with("Usage:"));
    let said: Vec<&str> = said.map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = said.join(" ");
    format!("braid: {}; see braid --help", said.strip_prefix("error: ").unwrap_or(&said))
}

/// Exit status when what was asked for failed or is not so.
const FAILED: u8 = 1;
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

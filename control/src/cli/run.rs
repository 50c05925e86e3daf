//! `braid run`.

use std::{path::PathBuf, process::ExitCode};

use super::{WRONG_USAGE, ask::default_run_dir};
use crate::{config, launcher};

/// Starts the forwarding core and the control process, in the foreground.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
SIGTERM and Ctrl-C stop it and remove every device, route and rule that it made; SIGHUP reloads the
configuration. Needs CAP_NET_ADMIN and CAP_NET_RAW. BRAID_LOG=debug logs more.

Example: braid run --config /etc/braid/braid.toml")]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where the sockets are; one for each gateway on the machine
    /// [default: run-dir of the configuration, or /run/braid]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Allow [tunnel.manual], for tests only: every start repeats nonces
    #[arg(long)]
    insecure_manual_keys: bool,
    /// Append the keys of every IKE SA to FILE, which others must not read, for Wireshark's table
    /// ikev2_decryption_table. Whoever has the file reads and forges IKE: for finding faults only
    #[arg(long, value_name = "FILE")]
    ike_key_log: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> ExitCode {
    crate::logging::init();
    let run_dir = match args.run_dir {
        Some(run_dir) => run_dir,
        // Only where it is: control says what is wrong with the rest.
        None => match config::load(&args.config) {
            Ok(config) => config.core.run_dir.unwrap_or_else(default_run_dir),
            Err(errors) => {
                errors.iter().for_each(|error| eprintln!("{error}"));
                return ExitCode::from(WRONG_USAGE);
            }
        },
    };
    let run = launcher::RunArgs::new(args.config, run_dir, args.insecure_manual_keys);
    launcher::run(launcher::RunArgs { ike_key_log: args.ike_key_log, ..run })
}

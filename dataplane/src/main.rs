//! The forwarding core as a program of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    braid_dataplane::run::main(std::env::args_os().skip(1))
}

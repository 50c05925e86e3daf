//! The command `braid`.

use std::process::ExitCode;

fn main() -> ExitCode {
    braid_control::cli::main(std::env::args_os())
}

//! The control process as a program of its own, for a separate service unit.

use std::process::ExitCode;

fn main() -> ExitCode {
    braid_control::process::main_with_args(std::env::args_os())
}

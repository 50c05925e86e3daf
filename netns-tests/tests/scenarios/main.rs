//! Scenarios in network namespaces, run by `netns-tests/run` (root; see `braid_netns::runner`).
//! Each builds its own network, asserts on what users would see, and leaves nothing behind.

mod kernel;
#[allow(dead_code, reason = "part of it is for groups that are not listed yet")]
mod pair;
mod smoke;
mod tunnel;

use braid_netns::runner::{self, Scenario};
use std::process::ExitCode;

fn main() -> ExitCode {
    let groups: [&[Scenario]; 3] = [smoke::ALL, kernel::ALL, tunnel::ALL];
    runner::main(&groups.concat())
}

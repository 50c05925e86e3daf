//! Scenarios in network namespaces, run by `netns-tests/run` (root; see `braid_netns::runner`).
//! Each builds its own network, asserts on what users would see, and leaves nothing behind.

mod smoke;

use braid_netns::runner::{self, Scenario};
use std::process::ExitCode;

fn main() -> ExitCode {
    let groups: [&[Scenario]; 1] = [smoke::ALL];
    runner::main(&groups.concat())
}

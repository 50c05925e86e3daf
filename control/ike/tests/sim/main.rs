//! The shipped state machines on a simulated network.

mod authentic;
mod beside;
mod certificates;
mod collisions;
mod config;
mod duplicates;
mod exchanges;
mod faults;
mod features;
mod moves;
mod net;
mod openings;
#[path = "../../fuzz/bodies/operations.rs"]
mod operations;
mod restarts;
mod schedules;

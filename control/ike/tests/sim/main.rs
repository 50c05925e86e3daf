//! The shipped state machines on a simulated network.

mod certificates;
mod config;
mod duplicates;
mod exchanges;
mod faults;
mod features;
mod moves;
mod net;
mod schedules;

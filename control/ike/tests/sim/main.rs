//! The shipped state machines on a simulated network.

mod config;
mod exchanges;
mod net;
mod schedules;

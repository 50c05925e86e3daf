//! From the start of two gateways until all their tunnels are up.

use super::pair::{Setup, Side};
use super::{Target, Usage};
use braid_netns::Result;
use serde::Serialize;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(200);
/// Two cores, 1,000 tunnels.
const MOST_S: f64 = 10.0;
/// Of one side, for one handshake with a pre-shared key and group 20.
const MOST_CPU_MS: f64 = 5.0;

/// What it took.
#[derive(Debug, Clone, Serialize)]
pub struct Cold {
    /// Tunnels.
    pub tunnels: usize,
    /// Seconds from the start of both programs until both say that all are up.
    pub seconds: Target,
    /// Processor time of control for each tunnel, milliseconds, of the side that begins and of the one
    /// that answers: reading the configuration and being asked for the status are part of it.
    pub control_cpu_ms: [Target; 2],
    /// Of all processes of each side.
    pub usage: [Usage; 2],
}

/// Measures it.
///
/// # Errors
/// When they do not come up.
#[allow(clippy::cast_precision_loss)] // thousands of tunnels
pub fn cold(tunnels: usize) -> Result<Cold> {
    let setup = Setup { tunnels, ..Setup::default() };
    let topology = Setup::direct().build()?;
    let started = Instant::now();
    let pair = setup.launch_on(topology)?;
    pair.wait_up(tunnels, PAUSE, LIMIT)?;
    let seconds = started.elapsed().as_secs_f64();
    let usage = [pair.usage(Side::A)?, pair.usage(Side::B)?];
    let control_cpu_ms = usage.each_ref().map(|usage| {
        let control = usage.0.get("braid-control").copied().unwrap_or_default();
        Target::most(control.cpu_s * 1e3 / tunnels as f64, MOST_CPU_MS)
    });
    Ok(Cold { tunnels, seconds: Target::most(seconds, MOST_S), control_cpu_ms, usage })
}

//! Idle tunnels, kept by dead peer detection alone.

use super::pair::{Setup, Side};
use super::{Target, Usage};
use braid_netns::Result;
use serde::Serialize;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(480);
const PAUSE: Duration = Duration::from_secs(2);
/// Until what the start has left behind is over: lingering SAs, the first round of probes.
const SETTLE: Duration = Duration::from_secs(15);
const MOST_CPU_PERCENT: f64 = 5.0;
const MOST_KIB: f64 = 32.0;

/// What they cost, each side by itself.
#[derive(Debug, Clone, Serialize)]
pub struct Held {
    /// Tunnels.
    pub tunnels: usize,
    /// Seconds until they were up.
    pub up_after_s: f64,
    /// Seconds watched.
    pub seconds: f64,
    /// Share of one processor that all processes of a side took, percent: A's, B's.
    pub cpu_percent: [Target; 2],
    /// Resident memory of a side for each tunnel, KiB, beyond that of a gateway with one tunnel.
    pub kib_per_tunnel: [Target; 2],
    /// Processor time in the time watched.
    pub usage: [Usage; 2],
    /// Resident memory of each process at the end, KiB.
    pub resident: [Usage; 2],
    /// Resident memory of a gateway with one tunnel, KiB.
    pub one_tunnel_kib: [f64; 2],
}

/// Measures it, watching for this long.
///
/// # Errors
/// When they do not come up, or one does not stay up.
#[allow(clippy::cast_precision_loss)] // thousands of tunnels
pub fn held(tunnels: usize, watch: Duration) -> Result<Held> {
    let one = {
        let pair = Setup { tunnels: 1, ..Setup::default() }.launch()?;
        pair.wait_up(1, PAUSE, LIMIT)?;
        [pair.usage(Side::A)?.total().resident_kib, pair.usage(Side::B)?.total().resident_kib]
    };
    let started = Instant::now();
    let pair = Setup { tunnels, ..Setup::default() }.launch()?;
    pair.wait_up(tunnels, PAUSE, LIMIT)?;
    let up_after_s = started.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let before = [pair.usage(Side::A)?, pair.usage(Side::B)?];
    let begin = Instant::now();
    std::thread::sleep(watch);
    let seconds = begin.elapsed().as_secs_f64();
    let after = [pair.usage(Side::A)?, pair.usage(Side::B)?];
    // They are what was watched.
    pair.wait_up(tunnels, Duration::ZERO, Duration::ZERO)?;
    let usage = [after[0].since(&before[0]), after[1].since(&before[1])];
    Ok(Held {
        tunnels,
        up_after_s,
        seconds,
        cpu_percent: usage
            .each_ref()
            .map(|usage| Target::most(usage.total().cpu_s / seconds * 100.0, MOST_CPU_PERCENT)),
        kib_per_tunnel: [0, 1].map(|side: usize| {
            let grown = after[side].total().resident_kib - one[side];
            Target::most(grown / tunnels as f64, MOST_KIB)
        }),
        usage,
        resident: after,
        one_tunnel_kib: one,
    })
}

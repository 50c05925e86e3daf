//! A gateway of one tunnel that has nothing to do but to keep it.

use super::pair::{Setup, Side};
use super::{Target, Usage};
use braid_netns::Result;
use serde::Serialize;
use std::thread::sleep;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
/// Until what the start has left behind is over.
const SETTLE: Duration = Duration::from_secs(5);
const MOST_MIB: f64 = 64.0;
const MOST_CPU_PERCENT: f64 = 1.0;

/// What it costs, all processes of a side together: A's, B's.
#[derive(Debug, Clone, Serialize)]
pub struct Idle {
    /// Seconds watched.
    pub seconds: f64,
    /// Resident memory at the end, MiB.
    pub resident_mib: [Target; 2],
    /// Share of one processor, percent.
    pub cpu_percent: [Target; 2],
    /// Resident memory of each process, KiB, and all its processor time.
    pub usage: [Usage; 2],
}

/// Measures it, watching for this long.
///
/// # Errors
/// When the tunnel does not come up, or does not stay up.
pub fn idle(watch: Duration) -> Result<Idle> {
    let pair = Setup { tunnels: 1, probed: true, ..Setup::default() }.launch()?;
    pair.wait_up(1, PAUSE, LIMIT)?;
    sleep(SETTLE);
    let before = [pair.usage(Side::A)?, pair.usage(Side::B)?];
    let begin = Instant::now();
    sleep(watch);
    let seconds = begin.elapsed().as_secs_f64();
    let usage = [pair.usage(Side::A)?, pair.usage(Side::B)?];
    // It is what was watched.
    pair.wait_up(1, Duration::ZERO, Duration::ZERO)?;
    let share = |side: usize| usage[side].since(&before[side]).total().cpu_s / seconds * 100.0;
    Ok(Idle {
        seconds,
        resident_mib: [0, 1]
            .map(|side: usize| Target::most(usage[side].total().resident_kib / 1024.0, MOST_MIB)),
        cpu_percent: [0, 1].map(|side: usize| Target::most(share(side), MOST_CPU_PERCENT)),
        usage,
    })
}

//! Processor time of the whole machine, and where threads may run.

use braid_netns::{Error, Netns, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;

/// `/proc/stat` counts in hundredths of a second on every architecture Linux supports
/// (`USER_HZ`, part of its ABI).
const TICKS_PER_SECOND: f64 = 100.0;

/// Busy processor time since boot, all processors together, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy(u64);

impl Busy {
    /// Reads it.
    ///
    /// # Errors
    /// When `/proc/stat` is not what it should be.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").map_err(Error::io("cannot read /proc/stat"))?;
        Self::parse(&text).ok_or_else(|| Error::parse("/proc/stat", "no cpu line"))
    }

    /// user, nice, system, irq and softirq; not idle, not waiting for a disk, not stolen.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find(|line| line.starts_with("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
            return None;
        };
        Some(Self(user + nice + system + irq + softirq))
    }

    /// Seconds of processor time since `self` was read, until `later`.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // some thousands of ticks
    pub fn seconds_until(self, later: Self) -> f64 {
        later.0.saturating_sub(self.0) as f64 / TICKS_PER_SECOND
    }
}

/// The machine a comparison ran on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Model name of the processor.
    pub processor: String,
    /// Processors this process may use.
    pub processors: usize,
    /// Kernel release.
    pub kernel: String,
}

impl Machine {
    /// Looks.
    #[must_use]
    pub fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            processor: model.unwrap_or("unknown").trim_matches([' ', '\t', ':']).to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
        }
    }
}

/// Every process in the namespace: its name, number of threads, and the processors they may use.
///
/// # Errors
/// When the namespace is gone.
pub fn placement(netns: &Netns) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for pid in netns.processes()? {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let mut allowed: BTreeMap<String, usize> = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            *allowed.entry(list.unwrap_or("?").trim().to_owned()).or_default() += 1;
        }
        let threads: Vec<String> =
            allowed.iter().map(|(list, count)| format!("{count} threads on processors {list}")).collect();
        found.push(format!("{}: {}", name.trim(), threads.join(", ")));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_busy() {
        let before = Busy::parse("cpu  100 1 50 9000 7 3 20 44 0 0\ncpu0 …").unwrap();
        let after = Busy::parse("cpu  150 1 70 9999 9 3 30 99 0 0\n").unwrap();
        assert!((before.seconds_until(after) - 0.8).abs() < 1e-9);
        assert_eq!(Busy::parse("cpu  1 2\n"), None);
        assert_eq!(Busy::parse("intr 1\n"), None);
    }
}

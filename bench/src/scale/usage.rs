//! What the processes of a namespace use: processor time to the nanosecond, and resident memory.

use braid_netns::{Error, Netns, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;

/// One process, or all of one name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Part {
    /// Processor time, seconds.
    pub cpu_s: f64,
    /// Resident, KiB.
    pub resident_kib: f64,
}

/// By process name.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Usage(pub BTreeMap<String, Part>);

impl Usage {
    /// Of all that runs in the namespace.
    ///
    /// # Errors
    /// When nothing does.
    pub fn of(netns: &Netns) -> Result<Self> {
        let mut usage = Self::default();
        for pid in netns.processes()? {
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let part = usage.0.entry(read("comm").trim().to_owned()).or_default();
            part.resident_kib += resident(&read("status"));
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            part.cpu_s += threads
                .map(|thread| cpu(&fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default()))
                .sum::<f64>();
        }
        if usage.0.is_empty() {
            return Err(Error::Usage(format!("nothing runs in {}", netns.label())));
        }
        Ok(usage)
    }

    /// All processes together.
    #[must_use]
    pub fn total(&self) -> Part {
        self.0.values().fold(Part::default(), |sum, part| Part {
            cpu_s: sum.cpu_s + part.cpu_s,
            resident_kib: sum.resident_kib + part.resident_kib,
        })
    }

    /// What was added since `before`, by name.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let grown = self.0.iter().map(|(name, part)| {
            let was = before.0.get(name).copied().unwrap_or_default();
            let grown =
                Part { cpu_s: part.cpu_s - was.cpu_s, resident_kib: part.resident_kib - was.resident_kib };
            (name.clone(), grown)
        });
        Self(grown.collect())
    }
}

/// proc(5): nanoseconds on a processor come first.
#[allow(clippy::cast_precision_loss)] // far below 2^52 nanoseconds
fn cpu(schedstat: &str) -> f64 {
    let nanos: u64 = schedstat.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
    nanos as f64 / 1e9
}

pub(super) fn resident(status: &str) -> f64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_words() {
        assert!((cpu("1500000000 77 3\n") - 1.5).abs() < 1e-9);
        assert!((resident("Name:\tx\nVmRSS:\t  2048 kB\n") - 2048.0).abs() < 1e-9);
        assert!(cpu("") == 0.0 && resident("VmSize: 1 kB") == 0.0);
    }

    #[test]
    fn what_was_added_is_told_by_name() {
        let usage =
            |cpu_s, resident_kib| Usage(BTreeMap::from([("x".to_owned(), Part { cpu_s, resident_kib })]));
        let grown = usage(3.0, 50.0).since(&usage(1.0, 20.0));
        assert_eq!(grown.total(), Part { cpu_s: 2.0, resident_kib: 30.0 });
        assert_eq!(usage(3.0, 50.0).since(&Usage::default()), usage(3.0, 50.0));
    }
}

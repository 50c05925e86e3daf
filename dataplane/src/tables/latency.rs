//! What the round trips of a tunnel's probes are like: how long the slow ones take, not only the mean.

use std::{
    sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Parts of an octave: a quantile is at most an eighth too large.
const PARTS: usize = 8;
/// 1 µs to 16 s.
const OCTAVES: usize = 24;
/// Round trips after which each counts half as much as a new one.
const MEMORY: u16 = 1024;

/// Round trips by their length, the recent ones weighing more. One thread writes, any reads.
pub(super) struct Latencies {
    counts: [AtomicU16; OCTAVES * PARTS],
    /// All of them.
    total: AtomicU16,
    answered: AtomicU64,
}

impl Latencies {
    pub(super) fn new() -> Self {
        Latencies {
            counts: [const { AtomicU16::new(0) }; OCTAVES * PARTS],
            total: AtomicU16::new(0),
            answered: AtomicU64::new(0),
        }
    }

    /// One more round trip.
    pub(super) fn add(&self, sample: Duration) {
        let cell = &self.counts[cell_of(sample)];
        cell.store(cell.load(Relaxed) + 1, Relaxed);
        self.answered.store(self.answered.load(Relaxed) + 1, Relaxed);
        let mut total = self.total.load(Relaxed) + 1;
        if total >= 2 * MEMORY {
            total = 0;
            for cell in &self.counts {
                let half = cell.load(Relaxed) / 2;
                cell.store(half, Relaxed);
                total += half;
            }
        }
        self.total.store(total, Relaxed);
    }

    /// Round trips so far, forgotten ones too.
    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// What this share of the round trips does not exceed, rounded up by an eighth at most; `None` of none.
    pub(super) fn quantile(&self, share: f64) -> Option<Duration> {
        let counts: Vec<u16> = self.counts.iter().map(|cell| cell.load(Relaxed)).collect();
        let total: u32 = counts.iter().copied().map(u32::from).sum();
        let wanted = (f64::from(total) * share).ceil().max(1.0) as u32;
        let mut seen = 0;
        let cell = counts.iter().position(|&count| {
            seen += u32::from(count);
            seen >= wanted
        })?;
        Some(longest_of(cell))
    }
}

fn cell_of(sample: Duration) -> usize {
    let micros = (sample.as_micros().min(u128::from(u32::MAX)) as u64).max(1);
    let octave = micros.ilog2() as usize;
    let part = ((micros << 3) >> octave) as usize % PARTS;
    (octave * PARTS + part).min(OCTAVES * PARTS - 1)
}

/// The end of a cell.
fn longest_of(cell: usize) -> Duration {
    let (octave, part) = (cell / PARTS, cell % PARTS);
    let eighths = ((PARTS + part + 1) as u64) << octave;
    Duration::from_nanos(eighths * 1000 / PARTS as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_at_most_an_eighth_too_large() {
        for micros in [1, 2, 3, 7, 8, 9, 1000, 1023, 1024, 9999, 16_000_000] {
            let latencies = Latencies::new();
            assert_eq!(latencies.quantile(0.99), None);
            let sample = Duration::from_micros(micros);
            latencies.add(sample);
            let found = latencies.quantile(0.99).unwrap();
            assert!(found > sample, "{found:?} of {sample:?}");
            assert!(found <= sample + sample / 8 + Duration::from_micros(1), "{found:?} of {sample:?}");
        }
        let latencies = Latencies::new();
        latencies.add(Duration::ZERO);
        latencies.add(Duration::from_secs(3600));
        assert_eq!(latencies.answered(), 2);
        assert!(latencies.quantile(1.0).unwrap() > Duration::from_secs(8));
    }

    #[test]
    fn the_slowest_hundredth_is_told_apart() {
        let latencies = Latencies::new();
        for number in 0..1000 {
            latencies.add(Duration::from_millis(if number % 50 == 0 { 20 } else { 1 }));
        }
        assert!(latencies.quantile(0.5).unwrap() < Duration::from_millis(2));
        assert!(latencies.quantile(0.97).unwrap() < Duration::from_millis(2));
        assert!(latencies.quantile(0.99).unwrap() >= Duration::from_millis(20));
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let latencies = Latencies::new();
        (0..5000).for_each(|_| latencies.add(Duration::from_secs(1)));
        (0..10 * u32::from(MEMORY)).for_each(|_| latencies.add(Duration::from_millis(1)));
        assert!(latencies.quantile(0.99).unwrap() < Duration::from_millis(2));
        assert_eq!(latencies.answered(), 5000 + 10 * u64::from(MEMORY));
    }
}

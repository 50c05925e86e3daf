//! Counters that cost no shared cache line per packet.
//!
//! Each worker writes into a cache line of its own; whoever asks adds the lines up. Sums are
//! eventually exact: a reader may miss what is being added at that moment, never counts twice.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// `N` counters for each worker, and one more set that all other threads share.
#[derive(Debug)]
pub struct PerWorker<const N: usize> {
    slots: Box<[Slot<N>]>,
}

#[derive(Debug)]
#[repr(align(64))]
struct Slot<const N: usize>([AtomicU64; N]);

impl<const N: usize> PerWorker<N> {
    /// Zeroes for workers numbered 0 to `workers - 1`.
    pub fn new(workers: usize) -> Self {
        let slots = (0..=workers).map(|_| Slot(std::array::from_fn(|_| AtomicU64::new(0)))).collect();
        PerWorker { slots }
    }

    /// Adds `n` to counter `counter`, which is below `N`. A thread that is no worker passes any
    /// number that no worker has, such as [`OTHER_THREAD`].
    pub fn add(&self, worker: usize, counter: usize, n: u64) {
        let shared = self.slots.len() - 1;
        if worker < shared {
            // Only this worker writes here, so that no locked instruction is needed.
            let slot = &self.slots[worker].0[counter];
            slot.store(slot.load(Relaxed).wrapping_add(n), Relaxed);
        } else {
            self.slots[shared].0[counter].fetch_add(n, Relaxed);
        }
    }

    /// Counter `counter`, below `N`, over all threads.
    pub fn sum(&self, counter: usize) -> u64 {
        self.slots.iter().fold(0, |sum, slot| sum.wrapping_add(slot.0[counter].load(Relaxed)))
    }
}

/// The worker number of threads that are no workers.
pub const OTHER_THREAD: usize = usize::MAX;

/// Packets and bytes of one SA, added to once per run of packets.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct PacketCounter {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl PacketCounter {
    /// Adds a run.
    pub fn add(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Packets so far.
    pub fn packets(&self) -> u64 {
        self.packets.load(Relaxed)
    }

    /// Inner bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_workers_and_other_threads() {
        let counters = PerWorker::<2>::new(2);
        std::thread::scope(|scope| {
            for worker in [0, 1, OTHER_THREAD, OTHER_THREAD] {
                let counters = &counters;
                scope.spawn(move || (0..1000).for_each(|_| counters.add(worker, 1, 2)));
            }
        });
        assert_eq!((counters.sum(0), counters.sum(1)), (0, 8000));
    }

    #[test]
    fn each_worker_has_a_cache_line() {
        assert_eq!(size_of::<Slot<4>>(), 64);
    }
}

//! Work that keeps a processor for long is done beside that of the core's liveness thread.
//!
//! A kernel that does not preempt itself (`PREEMPT_NONE`, the default of servers) lets no thread in, of whatever
//! priority, while it grows a table of a million routes: 28 ms have been seen, and a peer that says each 10 ms by BFD
//! that it lives is given up after 30.

use braid_dataplane::run::LIVENESS_CPU;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The calling thread is not on that processor while this lives, where there is another one.
pub(super) struct Aside(Option<CpuSet>);

impl Aside {
    pub(super) fn step() -> Self {
        let step = || {
            let before = sched_getaffinity(None).ok()?;
            let mut others = before;
            others.unset(LIVENESS_CPU);
            if others == before || others.count() == 0 {
                return None;
            }
            sched_setaffinity(None, &others).ok().map(|()| before)
        };
        Aside(step())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // It was allowed before.
            let _ = sched_setaffinity(None, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_steps_aside_and_back() {
        let before = sched_getaffinity(None).unwrap();
        let aside = Aside::step();
        let meanwhile = sched_getaffinity(None).unwrap();
        assert_eq!(meanwhile.is_set(LIVENESS_CPU), before.is_set(LIVENESS_CPU) && before.count() == 1);
        assert!(meanwhile.count() > 0);
        // Where there is nowhere else to go it stays.
        let mut only = CpuSet::new();
        only.set(LIVENESS_CPU);
        if before.is_set(LIVENESS_CPU) {
            sched_setaffinity(None, &only).unwrap();
            let there = Aside::step();
            assert_eq!(sched_getaffinity(None).unwrap(), only);
            drop(there);
            assert_eq!(sched_getaffinity(None).unwrap(), only);
            sched_setaffinity(None, &meanwhile).unwrap();
        }
        drop(aside);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}

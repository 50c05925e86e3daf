//! Scheduling of the calling thread.

use std::io;

/// First in, first out: the thread runs before all ordinary ones. Needs CAP_SYS_NICE.
///
/// # Errors
/// `PermissionDenied`.
pub fn realtime() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: sched_setscheduler reads one sched_param; thread 0 is the calling one.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// There is no such CPU, or the thread may not use it.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

//! Ctrl-C and SIGTERM as a flag that every wait looks at, so that what was made is always undone.
//! A second signal ends the process at once: even then nothing is left, since the namespaces and
//! the gateways live no longer than this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use super::error::Error;

/// Set once somebody wants the demonstration to end.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Takes SIGINT, SIGTERM and SIGHUP over, for this thread and those it starts from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn on_signals() -> Result<Self, Error> {
        let stop = Self::default();
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().map_err(Error::system("cannot block signals"))?;
        let arriving = SignalFd::new(&signals).map_err(Error::system("cannot wait for signals"))?;
        let seen = stop.clone();
        thread::spawn(move || {
            while arriving.read_signal().is_ok() {
                if seen.0.swap(true, Ordering::Relaxed) {
                    std::process::exit(1);
                }
            }
        });
        Ok(stop)
    }

    /// Whether it is time to end.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks for the end.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// [`Error::Interrupted`] once it is time to end.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.is_set() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Sleeps, unless interrupted.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub(super) fn sleep(&self, duration: Duration) -> Result<(), Error> {
        let end = Instant::now() + duration;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(SLICE));
        }
    }

    /// Asks `probe` every few milliseconds until it has an answer.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Late`] after `limit`, and whatever `probe` finds.
    pub(super) fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut probe: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let end = Instant::now() + limit;
        loop {
            if let Some(found) = probe()? {
                return Ok(found);
            }
            if Instant::now() >= end {
                return Err(Error::Late { what: what.to_owned(), after: limit });
            }
            self.sleep(SLICE)?;
        }
    }
}

/// How soon a signal is noticed.
const SLICE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_stop_ends_every_wait() {
        let stop = Stop::default();
        assert!(stop.sleep(Duration::from_millis(1)).is_ok());
        stop.set();
        assert!(matches!(stop.sleep(Duration::from_secs(60)), Err(Error::Interrupted)));
        let waited = stop.wait_for("nothing", Duration::from_secs(60), || Ok(None::<()>));
        assert!(matches!(waited, Err(Error::Interrupted)));
    }

    #[test]
    fn what_never_comes_is_late() {
        let waited = Stop::default().wait_for("rain", Duration::from_millis(5), || Ok(None::<()>));
        assert!(matches!(waited, Err(Error::Late { what, .. }) if what == "rain"));
    }
}

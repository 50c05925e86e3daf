//! The two processes: started as this very program under another name, watched, started again.
//!
//! Each leads a process group of its own, so that Ctrl-C reaches the launcher alone, which stops
//! them in order. Each sets `PR_SET_PDEATHSIG` when it starts, so that none outlives the launcher.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::process::Command;

use super::RunArgs;

/// The first restart waits this long, each further one twice as long.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A process that lived this long is healthy: its next death is a first one.
const HEALTHY: Duration = Duration::from_secs(10);

/// Which process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// The forwarding core.
    Core,
    /// The control process.
    Control,
}

impl Role {
    /// The name that a process goes by.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Core => "braid-dataplane",
            Self::Control => "braid-control",
        }
    }

    fn arguments(self, args: &RunArgs) -> Vec<OsString> {
        let run_dir = [OsString::from("--run-dir"), args.run_dir.clone().into_os_string()];
        match self {
            Self::Core => run_dir.into(),
            Self::Control => {
                let mut all = vec![OsString::from("--config"), args.config.clone().into_os_string()];
                all.extend(run_dir);
                if args.insecure_manual_keys {
                    all.push("--insecure-manual-keys".into());
                }
                if let Some(file) = &args.ike_key_log {
                    all.extend([OsString::from("--ike-key-log"), file.clone().into_os_string()]);
                }
                all
            }
        }
    }
}

/// One of the two, running or waiting to be started again.
#[derive(Debug)]
pub(super) struct Process {
    role: Role,
    running: Option<OwnedFd>,
    started: Instant,
    deaths: u32,
}

impl Process {
    /// One that was not started yet.
    pub(super) fn new(role: Role) -> Self {
        Self { role, running: None, started: Instant::now(), deaths: 0 }
    }

    /// Starts it, control with what was in force in an earlier life, if there was one. `ended` is called with its exit
    /// status.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn start(
        &mut self,
        args: &RunArgs,
        in_force: Option<OwnedFd>,
        ended: impl FnOnce(io::Result<ExitStatus>) + 'static,
    ) -> io::Result<()> {
        let mut child = Command::new(&args.program)
            .arg0(self.role.name())
            .args(self.role.arguments(args))
            .args(in_force.as_ref().map(|_| "--in-force"))
            .stdin(in_force.map_or_else(Stdio::null, Stdio::from))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // A descriptor, not the number: that may be another's by the time of a signal.
        self.running = match pid {
            Some(pid) => Some(rustix::process::pidfd_open(pid, PidfdFlags::empty())?),
            None => None,
        };
        self.started = Instant::now();
        tokio::task::spawn_local(async move { ended(child.wait().await) });
        Ok(())
    }

    /// Whether it runs.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Sends a signal, if it runs.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.running {
            let _ = rustix::process::pidfd_send_signal(process, signal);
        }
    }

    /// Notes its end; how long to wait before the next start.
    pub(super) fn ended(&mut self) -> Duration {
        self.running = None;
        if self.started.elapsed() >= HEALTHY {
            self.deaths = 0;
        }
        let wait = backoff(self.deaths);
        self.deaths = self.deaths.saturating_add(1);
        wait
    }

    /// Deaths since it was last healthy.
    pub(super) fn deaths(&self) -> u32 {
        self.deaths
    }
}

fn backoff(deaths: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << deaths.min(10)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_wait_longer_each_time_and_never_above_a_second() {
        let waits: Vec<u128> = (0..9).map(|deaths| backoff(deaths).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }
}

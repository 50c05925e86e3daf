//! Programs run in a namespace: to their end, or in the background.

use crate::guard::{TempDir, temp_dir};
use crate::{Error, Result, poll_until};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// What a program that ran to its end left.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit status.
    pub status: ExitStatus,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

/// Runs `command` to its end, whatever its exit status.
pub(crate) fn run(mut command: Command) -> Result<Ran> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| spawn_error(&command, source))?;
    Ok(Ran {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Turns a non-zero exit status into an error.
pub(crate) fn check(command_line: &str, ran: Ran) -> Result<Ran> {
    if ran.status.success() {
        return Ok(ran);
    }
    let said = if ran.stderr.trim().is_empty() { &ran.stdout } else { &ran.stderr };
    Err(Error::Command {
        command: command_line.to_owned(),
        status: ran.status.to_string(),
        output: said.trim().to_owned(),
    })
}

fn spawn_error(command: &Command, source: std::io::Error) -> Error {
    Error::Spawn { program: command.get_program().to_string_lossy().into_owned(), source }
}

/// The command as a person would type it, for messages.
pub(crate) fn line(argv: &[&str]) -> String {
    argv.join(" ")
}

/// A program in the background. It leads a process group of its own; the whole group is killed
/// when this is dropped. Its output goes to files, so it never blocks on a full pipe.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: TempDir,
    ended: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn start(mut command: Command, name: &str) -> Result<Self> {
        let output = temp_dir("out")?;
        let open =
            |file: &str| File::create(output.path().join(file)).map_err(Error::io("cannot keep output"));
        let child = command
            .stdin(Stdio::null())
            .stdout(open("stdout")?)
            .stderr(open("stderr")?)
            .process_group(0)
            .spawn()
            .map_err(|source| spawn_error(&command, source))?;
        Ok(Self { child, name: name.to_owned(), output, ended: None })
    }

    /// Process id; also the process group's.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// What it has written to stdout so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.written("stdout")
    }

    /// What it has written to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.written("stderr")
    }

    fn written(&self, file: &str) -> String {
        let bytes = fs::read(self.output.path().join(file)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Sends a signal to the whole group.
    pub fn signal(&self, signal: Signal) {
        let _ = killpg(Pid::from_raw(self.pid()), signal);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it still runs after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        poll_until(&what, deadline, || self.ended())
    }

    /// Waits until stdout or stderr contains `text`; an end without it is a failure at once.
    ///
    /// # Errors
    /// [`Error::Timeout`], or [`Error::Command`] when it ended.
    pub fn wait_for_output(&mut self, text: &str, deadline: Duration) -> Result<()> {
        let what = format!("{text:?} from {}", self.name);
        let seen = poll_until(&what, deadline, || {
            let over = self.ended().is_some();
            let found = self.stdout().contains(text) || self.stderr().contains(text);
            (found || over).then_some(found)
        })?;
        if seen {
            return Ok(());
        }
        Err(self.failure())
    }

    /// The error that says how it ended and what it said.
    pub fn failure(&mut self) -> Error {
        let status = self.ended().map_or("still runs".to_owned(), |status| status.to_string());
        let said = format!("{}{}", self.stderr(), self.stdout());
        let tail: Vec<&str> = said.trim().lines().rev().take(12).collect();
        Error::Command {
            command: self.name.clone(),
            status,
            output: tail.into_iter().rev().collect::<Vec<_>>().join("\n"),
        }
    }

    /// Asks it to end by SIGTERM, waits, and kills what is left of its group.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it did not end by itself within `deadline`.
    pub fn stop(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        let status = self.wait(deadline);
        self.signal(Signal::SIGKILL);
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

//! Why building, breaking or measuring a test network failed.

use std::fmt;
use std::io;
use std::time::Duration;

/// A failure of the harness itself or of a program it ran.
#[derive(Debug)]
pub enum Error {
    /// A program is not installed or could not be started.
    Spawn {
        /// Its name.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ran and failed.
    Command {
        /// The whole command line.
        command: String,
        /// Exit status, in words.
        status: String,
        /// What it wrote to stderr (or stdout, when stderr is empty), trimmed.
        output: String,
    },
    /// A file or socket operation failed.
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A condition did not come about in time.
    Timeout {
        /// The condition.
        what: String,
        /// How long was waited.
        after: Duration,
        /// The last state seen, or why it could not be seen.
        last: String,
    },
    /// A program's output could not be understood.
    Parse {
        /// Which output.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The test asked for something that cannot be.
    Usage(String),
}

impl Error {
    /// Wraps an I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// An output that could not be understood.
    pub fn parse(what: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self::Parse { what: what.into(), detail: detail.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spawn { program, source } => {
                write!(f, "cannot start {program} (netns-tests/run installs it): {source}")
            }
            Self::Command { command, status, output } => write!(f, "`{command}`: {status}: {output}"),
            Self::Io { what, source } => write!(f, "{what}: {source}"),
            Self::Timeout { what, after, last } => {
                write!(f, "{what}: not within {:.1} s", after.as_secs_f64())?;
                if last.is_empty() { Ok(()) } else { write!(f, "; last: {last}") }
            }
            Self::Parse { what, detail } => write!(f, "{what}: {detail}"),
            Self::Usage(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Spawn { source, .. } | Self::Io { source, .. } => Some(source),
            Self::Command { .. } | Self::Timeout { .. } | Self::Parse { .. } | Self::Usage(_) => None,
        }
    }
}

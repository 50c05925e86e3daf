//! What is wrong with a configuration, and where: one line each.
//!
//! A message never repeats a secret: values of key material are described, not shown.

use core::{fmt, ops::Range};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::Files;

/// Errors that are reported for one file; more are counted only.
const MAX_ERRORS: usize = 200;

/// Why a configuration is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The file cannot be read.
    Unreadable {
        /// The system's words.
        cause: String,
    },
    /// The file is longer than a configuration may be.
    TooLong {
        /// Most bytes.
        limit: u64,
    },
    /// It is no TOML.
    Syntax {
        /// What the parser expected.
        problem: String,
    },
    /// A key that no version knows.
    UnknownKey {
        /// The known key that it resembles most.
        nearest: Option<&'static str>,
        /// All keys known here.
        known: &'static [&'static str],
    },
    /// A key that must be there.
    Missing {
        /// A line that would do.
        example: String,
    },
    /// A value of another type.
    WrongType {
        /// What would be right.
        expected: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// A value that means nothing or cannot work.
    Invalid {
        /// What is wrong.
        problem: String,
        /// What would be right.
        remedy: String,
    },
    /// It repeats what another line says.
    Conflict {
        /// With what.
        problem: String,
        /// The other line.
        line: u32,
        /// What would be right.
        remedy: String,
    },
    /// It names something that is not configured.
    UnknownName {
        /// The kind of thing.
        kind: &'static str,
        /// The name.
        name: String,
        /// Those that exist.
        known: Arc<[String]>,
    },
    /// The file holds a secret and others may read it.
    SecretExposed {
        /// Permission bits.
        mode: u32,
    },
    /// Fixed keys were not asked for on the command line.
    ManualKeys,
    /// More errors than are worth reading.
    TooManyErrors {
        /// Those left out.
        left_out: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Unreadable { cause } => write!(f, "cannot be read: {cause}"),
            Fault::TooLong { limit } => write!(f, "longer than {limit} bytes"),
            Fault::Syntax { problem } => write!(f, "not TOML: {problem}"),
            Fault::UnknownKey { nearest: Some(nearest), .. } => {
                write!(f, "unknown key; did you mean `{nearest}`?")
            }
            Fault::UnknownKey { nearest: None, known } => {
                write!(f, "unknown key; known here: {}", known.join(", "))
            }
            Fault::Missing { example } => write!(f, "missing; for example {example}"),
            Fault::WrongType { expected, found } => {
                write!(f, "{found} where {expected} belongs")?;
                match (*expected, *found) {
                    ("a string", "an integer stands" | "a decimal number stands") => {
                        f.write_str("; write it in quotes, a duration with its unit: \"300ms\"")
                    }
                    _ => Ok(()),
                }
            }
            Fault::Invalid { problem, remedy } => write!(f, "{problem}; {remedy}"),
            Fault::Conflict { problem, line, remedy } => write!(f, "{problem} (line {line}); {remedy}"),
            Fault::UnknownName { kind, name, known } => write_unknown_name(f, kind, name, known),
            Fault::SecretExposed { mode } => {
                write!(f, "the file holds a secret and others may read it (mode {mode:04o}); chmod 600 it")
            }
            Fault::ManualKeys => f.write_str(
                "fixed keys are for tests only, since a restart repeats nonces; \
                 start with --insecure-manual-keys if that is what you want",
            ),
            Fault::TooManyErrors { left_out } => write!(f, "{left_out} more errors; mend these first"),
        }
    }
}

fn write_unknown_name(f: &mut fmt::Formatter<'_>, kind: &str, name: &str, known: &[String]) -> fmt::Result {
    const SHOWN: usize = 12;
    write!(f, "no {kind} is named {name:?}; ")?;
    if known.is_empty() {
        return write!(f, "there is none");
    }
    write!(f, "known: {}", known.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", "))?;
    if known.len() > SHOWN {
        write!(f, " and {} more", known.len() - SHOWN)?;
    }
    Ok(())
}

/// One line: `FILE:LINE: key: what is wrong; what would be right`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// As it was named by the user.
    pub file: PathBuf,
    /// From 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// Dotted path of the key; empty when the fault is in no key.
    pub key: String,
    /// What is wrong.
    pub fault: Fault,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        // One line, whatever the file holds.
        let text = self.fault.to_string();
        write!(f, " {}", text.replace(['\n', '\r'], " "))
    }
}

impl core::error::Error for ConfigError {}

/// Collects the errors of one file.
#[derive(Debug)]
pub(super) struct Report {
    file: PathBuf,
    /// Where the files that this one names come from.
    pub(super) files: Files,
    line_starts: Vec<usize>,
    errors: Vec<ConfigError>,
    left_out: usize,
}

impl Report {
    pub(super) fn new(file: &Path, text: &str) -> Self {
        let line_starts = core::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Report {
            file: file.to_owned(),
            files: Files::default(),
            line_starts,
            errors: Vec::new(),
            left_out: 0,
        }
    }

    /// The line, from 1, in which a byte stands.
    pub(super) fn line_of(&self, at: usize) -> u32 {
        self.line_starts.partition_point(|start| *start <= at) as u32
    }

    pub(super) fn error(&mut self, span: Range<usize>, key: impl fmt::Display, fault: Fault) {
        let line = self.line_of(span.start);
        self.error_at_line(line, key, fault);
    }

    pub(super) fn error_at_line(&mut self, line: u32, key: impl fmt::Display, fault: Fault) {
        if self.errors.len() >= MAX_ERRORS {
            self.left_out += 1;
            return;
        }
        self.errors.push(ConfigError { file: self.file.clone(), line, key: key.to_string(), fault });
    }

    /// In another file, which this one names.
    pub(super) fn error_in(&mut self, file: &Path, line: u32, key: impl fmt::Display, fault: Fault) {
        let before = self.errors.len();
        self.error_at_line(line, key, fault);
        if let Some(error) = self.errors.get_mut(before) {
            error.file = file.to_owned();
        }
    }

    /// The errors of another file, which this one names.
    pub(super) fn extend(&mut self, other: Report) {
        for ConfigError { file, line, key, fault } in other.errors {
            self.error_in(&file, line, key, fault);
        }
        self.left_out += other.left_out;
    }

    pub(super) fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    /// By line; the order of finding decides within one.
    pub(super) fn into_errors(mut self) -> Vec<ConfigError> {
        self.errors.sort_by_key(|error| error.line);
        if self.left_out > 0 {
            self.errors.push(ConfigError {
                file: self.file,
                line: 0,
                key: String::new(),
                fault: Fault::TooManyErrors { left_out: self.left_out },
            });
        }
        self.errors
    }
}

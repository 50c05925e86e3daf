//! What can go wrong in a demonstration, by fault: the machine, the gateways, or what was shown.

use core::fmt;
use core::time::Duration;
use std::io;

/// Why the demonstration ended early, or what it failed to show.
#[derive(Debug)]
pub(super) enum Error {
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// Neither root nor user namespaces: no namespaces can be made.
    Privileges(io::Error),
    /// The operating system refused something.
    System {
        /// What was tried.
        what: String,
        /// What it answered.
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    Netlink {
        /// What was tried, and where.
        what: String,
        /// What it answered.
        source: rtnetlink::Error,
    },
    /// A namespace's thread is gone.
    NamespaceGone(&'static str),
    /// A gateway ended by itself.
    GatewayDied {
        /// Which.
        name: &'static str,
        /// The last line it wrote.
        said: String,
    },
    /// A gateway answered nonsense, or nothing.
    Status {
        /// Which.
        name: &'static str,
        /// What it said instead.
        said: String,
    },
    /// Something did not come in time.
    Late {
        /// What was awaited.
        what: String,
        /// How long.
        after: Duration,
    },
    /// What the demonstration is for did not happen.
    NotShown(Shortfall),
}

/// What a complete run did not show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shortfall {
    /// These protocols did not cross.
    NotCrossed(Vec<&'static str>),
    /// A packet on the outer link was no ESP packet of this run.
    InClear(String),
    /// No packet was seen on the outer link of this path.
    NothingSeen(&'static str),
    /// No flow happened to be on this tunnel, so that cutting it showed nothing.
    TunnelIdle(&'static str),
    /// Flows of the cut tunnel that never came back while it was cut.
    NotRecovered(usize),
    /// Flows of the healthy tunnel that were moved.
    HealthyMoved(usize),
    /// The tunnel carried nothing after it had been restored.
    NotReturned(&'static str),
}

impl Error {
    /// For `map_err`: names what was tried.
    pub(super) fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what: what.into(), source: source.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupted => write!(f, "interrupted"),
            Self::Privileges(source) => write!(
                f,
                "cannot make network namespaces ({source}); run as root, or where unprivileged user namespaces are allowed"
            ),
            Self::System { what, source } => write!(f, "{what}: {source}"),
            Self::Netlink { what, source } => write!(f, "{what}: {source}"),
            Self::NamespaceGone(name) => write!(f, "the namespace of {name} is gone"),
            Self::GatewayDied { name, said } => write!(f, "{name} ended by itself: {said}"),
            Self::Status { name, said } => write!(f, "{name} gives no status: {said}"),
            Self::Late { what, after } => write!(f, "{what}: not within {:.1} s", after.as_secs_f64()),
            Self::NotShown(shortfall) => shortfall.fmt(f),
        }
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCrossed(which) => write!(f, "did not cross: {}", which.join(", ")),
            Self::InClear(what) => write!(f, "not encrypted: {what}"),
            Self::NothingSeen(path) => write!(f, "no encrypted packet was seen on {path}"),
            Self::TunnelIdle(path) => write!(f, "no flow was on {path}, so that its loss shows nothing"),
            Self::NotRecovered(flows) => write!(f, "{flows} flows of the cut tunnel did not recover"),
            Self::HealthyMoved(flows) => write!(f, "{flows} flows of the healthy tunnel were moved"),
            Self::NotReturned(path) => write!(f, "{path} carried nothing after it had been restored"),
        }
    }
}

impl std::error::Error for Error {}

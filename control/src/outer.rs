//! The outer path of a tunnel, as the machine sees it: addresses, interface, MTU, what blocks it; and links that are
//! paths themselves.
//!
//! Pure; `watch` finds out.

use core::{fmt, net::IpAddr};
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Links that are up, by the names of their interfaces.
pub type Links = BTreeMap<String, Addresses>;

/// The addresses of an interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    /// Ours.
    pub own: BTreeSet<IpAddr>,
    /// What they put on the link.
    pub networks: BTreeSet<IpNet>,
}

/// What blocks an outer path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Blocked {
    /// The name of the peer has no usable address.
    Unresolved {
        /// The name.
        name: String,
        /// What the resolver says.
        cause: String,
    },
    /// No route leads to the peer.
    NoRoute {
        /// The peer.
        remote: IpAddr,
    },
    /// The outgoing interface does not exist.
    NoInterface {
        /// Its name.
        name: String,
    },
    /// The outgoing interface is down or has lost its carrier.
    LinkDown {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocked::Unresolved { name, cause } => write!(f, "{name} cannot be resolved: {cause}"),
            Blocked::NoRoute { remote } => write!(f, "no route leads to {remote}"),
            Blocked::NoInterface { name } => write!(f, "there is no interface {name}"),
            Blocked::LinkDown { name } => write!(f, "link {name} is down"),
        }
    }
}

/// What is known of one tunnel's outer path. What is not known keeps its last value, since a tunnel
/// whose link is down is still the same tunnel.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Outer {
    /// The peer's address.
    pub remote: Option<IpAddr>,
    /// Ours.
    pub local: Option<IpAddr>,
    /// The outgoing interface.
    pub interface: Option<String>,
    /// Largest outer packet, in bytes: the interface's MTU, or less where the path says so.
    pub mtu: Option<u16>,
    /// What blocks it now.
    pub blocked: Option<Blocked>,
}

impl Outer {
    /// Takes news over.
    pub fn update(&mut self, news: Outer) -> Update {
        let merged = Outer {
            remote: news.remote.or(self.remote),
            local: news.local.or(self.local),
            interface: news.interface.or_else(|| self.interface.clone()),
            mtu: news.mtu.or(self.mtu),
            blocked: news.blocked,
        };
        let path = |outer: &Outer| (outer.remote, outer.local, outer.interface.clone(), outer.mtu);
        let update = if merged == *self {
            Update::Nothing
        } else if path(&merged) == path(self) {
            Update::Blocked
        } else {
            Update::Path
        };
        *self = merged;
        update
    }
}

/// What news have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Update {
    /// Nothing.
    Nothing,
    /// Only what blocks the path.
    Blocked,
    /// The path itself.
    Path,
}

//! What a session is told by its user.

use std::{net::Ipv4Addr, time::Duration};

use crate::update::Family;

/// How many routes may pass, and from how many on to warn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteLimit {
    /// No more than this.
    pub most: u32,
    /// Warn at this number.
    pub warn_at: u32,
}

impl RouteLimit {
    /// Warns at four fifths.
    pub fn new(most: u32) -> Self {
        RouteLimit { most, warn_at: (u64::from(most) * 4 / 5) as u32 }
    }
}

/// A neighbor's settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NeighborConfig {
    /// Our AS number.
    pub local_as: u32,
    /// The neighbor's. Equal to ours: an internal peer.
    pub remote_as: u32,
    /// Our identifier.
    pub router_id: Ipv4Addr,
    /// Proposed hold time: zero (no keepalives) or at least 3 s (RFC 4271 section 4.2); whole seconds count.
    pub hold_time: Duration,
    /// Wait for the peer to connect, never connect.
    pub passive: bool,
    /// Families offered; at least one.
    pub families: Vec<Family>,
    /// Accept several paths a prefix (RFC 7911).
    pub add_path: bool,
    /// Graceful restart (RFC 4724): for how long the peer is asked to keep our routes.
    pub graceful_restart: Option<Duration>,
    /// For how long the routes of a peer that has come back are kept until it has said that it sent all.
    pub stale_time: Duration,
    /// After a failed attempt to connect, at first; doubles up to a minute.
    pub connect_retry: Duration,
}

impl NeighborConfig {
    /// A session for IPv4 with graceful restart and the hold time of AWS.
    pub fn new(local_as: u32, remote_as: u32, router_id: Ipv4Addr) -> Self {
        NeighborConfig {
            local_as,
            remote_as,
            router_id,
            hold_time: Duration::from_secs(30),
            passive: false,
            families: vec![Family::Ipv4],
            add_path: false,
            graceful_restart: Some(Duration::from_secs(120)),
            stale_time: Duration::from_secs(360),
            connect_retry: Duration::from_secs(2),
        }
    }

    /// Whether the neighbor is in another AS.
    pub fn external(&self) -> bool {
        self.local_as != self.remote_as
    }
}

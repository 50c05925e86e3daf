//! BGP-4 (RFC 4271) as pure state machines: [`Neighbor`] is the session with one peer, from bytes and deadlines
//! to routes and back; [`rib::Rib`] holds what all peers sent and chooses; [`adj_out::AdjOut`] is what one peer is
//! told. The caller carries [`Event`]s from sessions to tables and what the tables yield back to sessions.
//!
//! Nothing here opens a socket or reads a clock: the caller passes `now` and what was received, and carries out
//! [`Effect`]s. Jitter is drawn from a seed that the caller gives. Messages and the states of RFC 4271 section 8
//! are those of rustbgpd-wire and rustbgpd-fsm; none of their types is part of this interface.
//!
//! Done: 4-octet AS numbers (RFC 6793), IPv4 and IPv6 unicast (RFC 4760), route refresh (RFC 2918), graceful
//! restart in both roles (RFC 4724), add-path from the peer (RFC 7911), extended messages from the peer
//! (RFC 8654), revised error handling (RFC 7606), collisions, Cease subcodes (RFC 4486, 9003, 9384).
//!
//! The caller's: TCP, its MD5 signatures and GTSM (RFC 5082), which are socket options.
//!
//! Not done: confederations, route reflection, AS_SETs (RFC 9774: such routes are withdrawn), enhanced route
//! refresh, long-lived graceful restart, IPv4 routes with IPv6 next hops.

#![forbid(unsafe_code)]

pub mod adj_out;
pub mod attributes;
pub mod config;
mod connection;
pub mod effect;
pub mod neighbor;
pub mod policy;
pub mod rib;
pub mod update;

pub use attributes::{Attributes, Origin};
pub use config::{NeighborConfig, RouteLimit};
pub use effect::{Cause, ConnectionId, Effect, Event, Negotiated, Notification, SessionState};
pub use neighbor::{Counters, Neighbor, Opened, Refused};
pub use update::{Announcement, Family, Handling, Nlri, Outgoing, Update};

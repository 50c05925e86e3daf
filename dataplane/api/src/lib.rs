//! All that crosses between Braid's forwarding core and its control process:
//! ids, operations, events and their codec. No I/O.
//!
//! The core is the server of two Unix sockets in the run directory:
//! `tables.sock` carries [`ToCore`] and [`FromCore`] frames, `punt.sock` IKE datagrams (see [`punt`]).
//! A third, `launcher.sock`, belongs to the launcher, which keeps the privileges
//! (see [`launcher`]).
//!
//! Invariants that these types carry:
//! - a [`SecretKey`] cannot be cloned, is zeroized when dropped and never printed;
//! - a [`Transaction`] is applied whole or not at all;
//! - an SA names the [`BootId`] of the core it was made for, so that no SA is installed in
//!   another life of the core, whose counters would start again.

#![forbid(unsafe_code)]

mod codec;
mod event;
mod ids;
pub mod launcher;
mod octets;
mod op;
pub mod punt;
mod query;
mod secret;
mod suite;

pub use codec::{DecodeError, FRAME_HEADER_LEN, MAX_FRAME_LEN, decode, encode, frame_len};
pub use event::{
    Cause, Event, FromCore, GroupSummary, Hello, RejectReason, Rejected, SaSummary, SaTraffic, Side,
    TunnelSummary, Verdict,
};
pub use ids::{BootId, Epoch, Generation, GroupId, SaId, Spi, TunnelId};
pub use op::{
    Allowed, Bfd, BfdLink, DfPolicy, Direction, Encapsulation, Flow, GatewaySettings, Group, MAX_BFD_LINKS,
    MAX_OPS, MAX_STASH_ENTRIES, MAX_STASH_LEN, MAX_TRAFFIC, Member, Op, Probe, Sa, Selectors, StashValue,
    Target, ToCore, Transaction, Tunnel, WireGuard,
};
pub use query::{
    Answer, BfdLinkStats, BfdState, BfdStats, PathAnswer, Query, SaStats, Stats, TunnelState, TunnelStats,
    WireGuardStats,
};
pub use secret::SecretKey;
pub use suite::Suite;

/// Version of everything in this crate; a difference refuses the connection.
pub const VERSION: u32 = 11;

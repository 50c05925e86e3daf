//! Bidirectional Forwarding Detection (RFC 5880) in asynchronous mode as pure state machines: [`Session`] is one
//! of them, [`Sessions`] is all of a gateway with their demultiplexing and deadlines, [`datagram`] puts control
//! packets into IP and UDP for one hop (RFC 5881) or several (RFC 5883).
//!
//! Nothing here reads a clock, draws a random number or opens a socket. Time is monotonic [`Nanos`], which the
//! caller passes, as it passes randomness. One mutation, then drain: after every `handle_*` or change of
//! configuration, call `poll_transmit` until it yields nothing, then `poll_event` likewise; come back at
//! `poll_timeout`.
//!
//! The control plane independent bit is always set: sessions live where packets are forwarded. Intervals are
//! any number of microseconds from 10 ms up, which includes the common ones of RFC 7419.
//!
//! One thing departs from RFC 5880 section 6.8.4, by design: where the caller knows that the path
//! authenticated some packet from the peer (`heard`), the detection time of a session that is up runs from
//! that packet, since a timer that expires meanwhile is late. What the peer signals counts always.
//!
//! Not done: the echo function (never sent, none accepted: 0 is advertised), authentication (such packets are
//! refused), demand mode of our own (the peer's is honoured), point-to-multipoint.

#![forbid(unsafe_code)]

pub mod config;
pub mod datagram;
pub mod packet;
pub mod session;
pub mod sessions;
pub mod state;

pub use config::{Config, ConfigError, Hops, Role};
pub use packet::{Diagnostic, Discard, Packet};
pub use session::{DownCause, Event, Session, Status, Unread};
pub use sessions::{Counters, InsertError, Sessions, Watch};
pub use state::State;

/// A moment, in nanoseconds of a monotonic clock.
pub type Nanos = u64;

//! ESP (RFC 4303) without the book-keeping: packets are sealed and opened here, and replays recognised.
//!
//! Everything is a function of its arguments: no clock, no randomness, no I/O, and no allocation once a key is
//! expanded. Who may use which sequence number, which SA a packet belongs to and what an opened packet may
//! contain is decided by the caller.
//!
//! - [`Layout`]: lengths on the wire.
//! - [`Sealer`], [`Opener`]: one direction of one SA, its keys expanded once. AEAD suites run on either
//!   [`Engine`]; CBC suites always on AWS-LC.
//! - [`Replay`]: the receive window.
//! - [`sa`]: a cipher with its identity, and its sequence number or receive window.
//!
//! A key and a sequence number make a nonce: a `(key, sequence number)` pair must never be sealed twice.
//!
//! Not done: transport mode, NULL encryption, explicit re-synchronisation of extended sequence numbers
//! (RFC 4303 appendix A3), traffic-flow padding on send (it is ignored on receipt, being part of the payload).

mod cbc;
mod engine;
mod open;
mod replay;
pub mod sa;
mod seal;
mod suite;
#[cfg(test)]
mod vectors;

pub use engine::Engine;
pub use open::{OpenError, Opened, Opener};
pub use replay::{Replay, ReplayError};
pub use seal::{Sealer, write_trailer};
pub use suite::{KeyError, Layout};

/// Next Header of an IPv4 packet inside (tunnel mode).
pub const NEXT_HEADER_IPV4: u8 = 4;
/// Next Header of an IPv6 packet inside (tunnel mode).
pub const NEXT_HEADER_IPV6: u8 = 41;
/// Next Header of a dummy packet, to be dropped without remark (RFC 4303 section 2.6).
pub const NEXT_HEADER_NONE: u8 = 59;

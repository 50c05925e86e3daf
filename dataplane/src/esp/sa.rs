//! Security associations as the packet path holds them: identity, cipher, and the one piece of
//! state that must never start again.
//!
//! Invariants:
//! - The sequence number of an outbound SA and the replay window of an inbound one live here and
//!   nowhere else. Tables refer to an SA by `Arc`; no change of a table makes a second one.
//! - A sequence number is handed out once. The counter never wraps: the SA stops
//!   (RFC 4303 section 3.3.3).
//! - Reserving, sealing and sending a run of packets happen under one [`Sequence`], so that wire
//!   order is sequence order whatever the number of workers.

use std::{
    net::IpAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use braid_api::{SaId, Selectors, Spi, Suite, TunnelId};

use super::{Layout, Opener, Replay, Sealer};
use crate::counters::PacketCounter;

/// What both directions have in common.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Never used again in this boot.
    pub id: SaId,
    /// On the wire.
    pub spi: Spi,
    /// Carries it.
    pub tunnel: TunnelId,
    /// Encryption and integrity.
    pub suite: Suite,
    /// Extended sequence numbers (RFC 4304).
    pub esn: bool,
    /// Accepted inner addresses.
    pub selectors: Selectors,
    /// Keyed digest of the key, for control to recognise a manual key.
    pub key_check: [u8; 16],
    /// When it was installed, in monotonic nanoseconds.
    pub installed: u64,
}

/// No sequence number is left, or fewer than asked for: the SA has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exhausted;

/// An SA to the peer.
pub struct OutboundSa {
    /// Never used again in this boot.
    pub id: SaId,
    /// The peer's.
    pub spi: Spi,
    /// Carries it.
    pub tunnel: TunnelId,
    /// Encryption and integrity.
    pub suite: Suite,
    /// Lengths of the parts of a packet.
    pub layout: Layout,
    /// Extended sequence numbers (RFC 4304).
    pub esn: bool,
    /// Accepted inner addresses.
    pub selectors: Selectors,
    /// The selectors accept every packet.
    pub any: bool,
    /// Packets and inner bytes sealed.
    pub counter: PacketCounter,
    /// Keyed digest of the key.
    pub key_check: [u8; 16],
    /// When it was installed, in monotonic nanoseconds.
    pub installed: u64,
    sealer: Sealer,
    /// The next sequence number; 2^64 does not fit, hence wide.
    next: Mutex<u128>,
    stopped: AtomicBool,
}

impl OutboundSa {
    /// A new SA, whose first packet has sequence number 1 (RFC 4303 section 2.2).
    pub fn new(identity: Identity, sealer: Sealer) -> Self {
        OutboundSa {
            id: identity.id,
            spi: identity.spi,
            tunnel: identity.tunnel,
            suite: identity.suite,
            layout: sealer.layout(),
            esn: identity.esn,
            any: accepts_all(&identity.selectors),
            selectors: identity.selectors,
            counter: PacketCounter::default(),
            key_check: identity.key_check,
            installed: identity.installed,
            sealer,
            next: Mutex::new(1),
            stopped: AtomicBool::new(false),
        }
    }

    /// Takes the SA for one run: reserve, seal, send, then drop the guard.
    pub fn lock(&self) -> Sequence<'_> {
        // A worker that panicked has reserved what it has reserved; the counter is still right.
        Sequence { next: self.next.lock().unwrap_or_else(PoisonError::into_inner), sa: self }
    }

    /// The cipher.
    #[inline]
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// No sequence number is left.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    /// The last sequence number that was handed out, 0 before the first.
    pub fn sequence(&self) -> u64 {
        (*self.lock().next - 1) as u64
    }

    /// The last sequence number that will be handed out.
    pub fn last_sequence(&self) -> u64 {
        if self.esn { u64::MAX } else { u64::from(u32::MAX) }
    }

    /// Whether an inner packet may take this SA (RFC 4301 section 4.4.1.1).
    #[inline]
    pub fn accepts(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.any || (covers(&self.selectors.local, source) && covers(&self.selectors.remote, destination))
    }
}

/// The exclusive right to the SA's next sequence numbers.
pub struct Sequence<'a> {
    next: MutexGuard<'a, u128>,
    sa: &'a OutboundSa,
}

impl Sequence<'_> {
    /// Takes `count` numbers, at least one, and returns the first.
    ///
    /// # Errors
    /// [`Exhausted`] when fewer are left: the SA stops for good rather than wrap
    /// (RFC 4303 section 3.3.3).
    pub fn reserve(&mut self, count: u32) -> Result<u64, Exhausted> {
        let first = *self.next;
        let end = first + u128::from(count);
        if self.sa.is_stopped() || end > u128::from(self.sa.last_sequence()) + 1 {
            self.sa.stopped.store(true, Relaxed);
            return Err(Exhausted);
        }
        *self.next = end;
        // Below `end`, which is at most 2^64.
        Ok(first as u64)
    }

    /// The cipher.
    #[inline]
    pub fn sealer(&self) -> &Sealer {
        &self.sa.sealer
    }

    /// The SA itself.
    #[inline]
    pub fn sa(&self) -> &OutboundSa {
        self.sa
    }
}

/// An SA from the peer.
pub struct InboundSa {
    /// Never used again in this boot.
    pub id: SaId,
    /// Chosen by us, unique in the core.
    pub spi: Spi,
    /// Carries it.
    pub tunnel: TunnelId,
    /// Encryption and integrity.
    pub suite: Suite,
    /// Lengths of the parts of a packet.
    pub layout: Layout,
    /// Extended sequence numbers (RFC 4304).
    pub esn: bool,
    /// Accepted inner addresses.
    pub selectors: Selectors,
    /// The selectors accept every packet.
    pub any: bool,
    /// Packets and inner bytes accepted.
    pub counter: PacketCounter,
    /// Keyed digest of the key.
    pub key_check: [u8; 16],
    /// When it was installed, in monotonic nanoseconds.
    pub installed: u64,
    opener: Opener,
    replay: Mutex<Replay>,
}

impl InboundSa {
    /// A new SA with an empty replay window.
    pub fn new(identity: Identity, opener: Opener, replay: Replay) -> Self {
        InboundSa {
            id: identity.id,
            spi: identity.spi,
            tunnel: identity.tunnel,
            suite: identity.suite,
            layout: opener.layout(),
            esn: identity.esn,
            any: accepts_all(&identity.selectors),
            selectors: identity.selectors,
            counter: PacketCounter::default(),
            key_check: identity.key_check,
            installed: identity.installed,
            opener,
            replay: Mutex::new(replay),
        }
    }

    /// The cipher.
    #[inline]
    pub fn opener(&self) -> &Opener {
        &self.opener
    }

    /// The replay window, for one run of packets.
    pub fn replay(&self) -> MutexGuard<'_, Replay> {
        // A worker that panicked between two packets leaves the window between two packets.
        self.replay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an opened packet is what was agreed on (RFC 4301 section 5.2, step 4).
    #[inline]
    pub fn accepts(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.any || (covers(&self.selectors.remote, source) && covers(&self.selectors.local, destination))
    }
}

fn covers(list: &[ipnet::IpNet], address: IpAddr) -> bool {
    list.is_empty() || list.iter().any(|prefix| prefix.contains(&address))
}

/// No list at all, or lists that hold the whole of both families.
fn accepts_all(selectors: &Selectors) -> bool {
    let whole = |list: &[ipnet::IpNet]| {
        let default = |v4: bool| list.iter().any(|net| net.prefix_len() == 0 && net.addr().is_ipv4() == v4);
        list.is_empty() || (default(true) && default(false))
    };
    whole(&selectors.local) && whole(&selectors.remote)
}

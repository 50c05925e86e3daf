//! The way of a packet, without I/O, clock or allocation: [`Forwarder::outward`] from the LAN into
//! runs for the wire, [`Forwarder::inward`] from the wire into super-packets for the LAN.
//!
//! A [`Forwarder`] is one worker's: its pools are bounded, and when one is full the call says so
//! and is repeated after the worker has emptied it. Every packet that ends here adds one to exactly
//! one [`DropReason`].

mod bfd;
mod ecn;
mod flow_cache;
mod fragment;
pub(crate) mod icmp;
mod inward;
mod mss;
mod outward;
mod wireguard;

use std::sync::Arc;

use braid_api::{Event, TunnelId};

pub use bfd::BfdPacket;
#[cfg(test)]
pub(crate) use bfd::take as take_bfd;
pub use inward::{Arrival, Wire};
pub use outward::Departure;

use crate::{
    counters::PerWorker,
    drop_reason::DropReason,
    handshakes::Handshake,
    offload::coalesce::Coalescer,
    runs::Runs,
    tables::{Ticks, TunnelStates},
};

/// Drops by reason, for all workers.
pub type Drops = PerWorker<{ DropReason::COUNT }>;

/// The time of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic.
    pub nanos: u64,
    /// The same.
    pub ticks: Ticks,
    /// By how many ticks packets of the last batches may have been later than their batch's time.
    pub late: u32,
}

impl Now {
    /// From monotonic nanoseconds.
    pub fn from_nanos(nanos: u64) -> Self {
        Now { nanos, ticks: Ticks::from_nanos(nanos), late: 0 }
    }
}

/// Whether an input is dealt with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Progress {
    /// Entirely.
    Done,
    /// A pool is full: empty it and call again with the same input.
    Full,
}

/// A probe's reply that came out of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeReply {
    /// Whose.
    pub tunnel: TunnelId,
    /// Echoed from the request.
    pub cookie: u64,
    /// When it was received, in monotonic nanoseconds.
    pub nanos: u64,
}

/// Most replies, of each kind, that wait for the worker.
const MAX_REPLIES: usize = 64;

/// What one worker keeps between packets.
pub struct Forwarder {
    /// For the wire.
    pub runs: Runs,
    /// For the LAN.
    pub lan: Coalescer,
    /// ICMP errors for the LAN.
    pub errors: Vec<Vec<u8>>,
    /// Probes' replies for the liveness thread.
    pub probe_replies: Vec<ProbeReply>,
    /// BFD packets for the liveness thread.
    pub bfd_packets: Vec<BfdPacket>,
    /// IKE messages in the slot of the last arrival, for control.
    pub punted: Vec<core::ops::Range<usize>>,
    /// WireGuard's handshake messages of the last arrival.
    pub handshakes: Vec<Handshake>,
    /// For control.
    pub events: Vec<Event>,
    /// Data for the LAN is shed.
    pub overloaded: bool,
    worker: usize,
    states: TunnelStates,
    drops: Arc<Drops>,
    flows: flow_cache::FlowCache,
    sources: flow_cache::SourceCache,
    fragments: fragment::FragmentCache,
    limiter: icmp::Limiter,
    /// Of the next packet that is cut although it forbade it.
    fragment_id: u16,
    scratch: Vec<u8>,
    /// A WireGuard packet that is being opened.
    sealed: Vec<u8>,
}

impl Forwarder {
    /// For worker number `worker`; `max_segments` per GSO send, `offload` of the device.
    pub fn new(
        worker: usize,
        max_segments: u16,
        offload: bool,
        states: TunnelStates,
        drops: Arc<Drops>,
    ) -> Self {
        Forwarder {
            runs: Runs::new(max_segments),
            lan: Coalescer::new(offload),
            errors: Vec::with_capacity(MAX_REPLIES),
            probe_replies: Vec::with_capacity(MAX_REPLIES),
            bfd_packets: Vec::with_capacity(MAX_REPLIES),
            punted: Vec::with_capacity(MAX_REPLIES),
            handshakes: Vec::new(),
            events: Vec::with_capacity(MAX_REPLIES),
            overloaded: false,
            worker,
            states,
            drops,
            flows: flow_cache::FlowCache::new(),
            sources: flow_cache::SourceCache::new(),
            fragments: fragment::FragmentCache::new(),
            limiter: icmp::Limiter::default(),
            // Far from another worker's: hosts put together what comes of both.
            fragment_id: (worker as u16).wrapping_mul(0x9E37),
            scratch: Vec::with_capacity(65_536),
            sealed: Vec::with_capacity(65_536),
        }
    }

    /// Where drops are counted.
    pub fn drops(&self) -> &Arc<Drops> {
        &self.drops
    }

    /// Counts packets that end for one reason.
    #[inline]
    pub fn drop(&self, reason: DropReason, packets: u64) {
        self.drops.add(self.worker, reason as usize, packets);
    }
}

//! A tunnel as the packet path sees it.
//!
//! [`Tunnel`] never changes: a new one takes its place in both copies of the tables. What changes
//! under traffic is in [`TunnelLive`], which is carried from one to the next.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU16, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use braid_api::{BfdStats, TunnelId};

use super::{
    latency::Latencies,
    mtu::{inner_mtu, smallest_inner_mtu},
};
use crate::{counters::PerWorker, esp::sa::OutboundSa, wireguard::Peer};

/// A tunnel's settings, its MTU and what carries it now.
pub struct Tunnel {
    /// What control has put.
    pub settings: Arc<braid_api::Tunnel>,
    /// Largest inner packet, in bytes.
    pub mtu: u16,
    /// What carries it; `None`: nothing can be sent.
    pub outbound: Option<Carrier>,
    /// What changes under traffic.
    pub live: Arc<TunnelLive>,
}

impl Tunnel {
    /// `remote` is where the peer is, or will be once this is in force; `found` is what its path was found to take,
    /// if less than the settings say.
    pub(super) fn new(
        settings: Arc<braid_api::Tunnel>,
        outbound: Option<Carrier>,
        live: Arc<TunnelLive>,
        remote: Option<SocketAddr>,
        found: Option<u16>,
    ) -> Self {
        let path_mtu = found.map_or(settings.path_mtu, |found| found.min(settings.path_mtu));
        let outer_v6 = remote.unwrap_or(settings.local).is_ipv6();
        let mtu = match &outbound {
            Some(Carrier::Esp(sa)) => inner_mtu(path_mtu, outer_v6, settings.encapsulation, sa.suite),
            Some(Carrier::WireGuard(_)) | None => {
                smallest_inner_mtu(path_mtu, outer_v6, settings.encapsulation)
            }
        };
        Tunnel { settings, mtu, outbound, live }
    }
}

/// What packets to the peer are sealed by.
#[derive(Clone)]
pub enum Carrier {
    /// The newest SA to the peer.
    Esp(Arc<OutboundSa>),
    /// The peer's session, if it has one.
    WireGuard(Arc<Peer>),
}

impl Carrier {
    /// Whose.
    #[inline]
    pub fn tunnel(&self) -> TunnelId {
        match self {
            Carrier::Esp(sa) => sa.tunnel,
            Carrier::WireGuard(peer) => peer.tunnel,
        }
    }

    /// Whether it is this one.
    #[inline]
    pub fn is(&self, other: &Carrier) -> bool {
        match (self, other) {
            (Carrier::Esp(this), Carrier::Esp(other)) => Arc::ptr_eq(this, other),
            (Carrier::WireGuard(this), Carrier::WireGuard(other)) => Arc::ptr_eq(this, other),
            (Carrier::Esp(_), Carrier::WireGuard(_)) | (Carrier::WireGuard(_), Carrier::Esp(_)) => false,
        }
    }

    /// The SA, if it is one.
    pub fn esp(&self) -> Option<&Arc<OutboundSa>> {
        match self {
            Carrier::Esp(sa) => Some(sa),
            Carrier::WireGuard(_) => None,
        }
    }

    /// The peer, if it is one.
    pub fn wireguard(&self) -> Option<&Arc<Peer>> {
        match self {
            Carrier::Esp(_) => None,
            Carrier::WireGuard(peer) => Some(peer),
        }
    }
}

const TX_PACKETS: usize = 0;
const TX_BYTES: usize = 1;
const RX_PACKETS: usize = 2;
const RX_BYTES: usize = 3;

/// What changes under traffic. All threads write here without a lock.
pub struct TunnelLive {
    counters: PerWorker<4>,
    /// Monotonic nanoseconds, 0 for never.
    heard: AtomicU64,
    /// Monotonic nanoseconds, 0 for never.
    answered: AtomicU64,
    /// Nanoseconds, 0 for unknown.
    latency: AtomicU64,
    /// From the first answer on: most tunnels of a large gateway are not probed.
    latencies: OnceLock<Box<Latencies>>,
    probes_sent: AtomicU64,
    remote: ArcSwapOption<SocketAddr>,
    /// 0 for none.
    path_mtu: AtomicU16,
    /// BFD sessions over IPv4 and over IPv6.
    bfd: [ArcSwapOption<BfdStats>; 2],
}

impl TunnelLive {
    pub(super) fn new(workers: usize, remote: Option<SocketAddr>) -> Self {
        TunnelLive {
            counters: PerWorker::new(workers),
            heard: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            latency: AtomicU64::new(0),
            latencies: OnceLock::new(),
            probes_sent: AtomicU64::new(0),
            remote: ArcSwapOption::from_pointee(remote),
            path_mtu: AtomicU16::new(0),
            bfd: [ArcSwapOption::empty(), ArcSwapOption::empty()],
        }
    }

    /// Counts a run of inner packets that was sealed and handed to the socket.
    pub fn sent(&self, worker: usize, packets: u64, bytes: u64) {
        self.counters.add(worker, TX_PACKETS, packets);
        self.counters.add(worker, TX_BYTES, bytes);
    }

    /// Counts a run of inner packets that was authenticated and accepted.
    pub fn received(&self, worker: usize, packets: u64, bytes: u64) {
        self.counters.add(worker, RX_PACKETS, packets);
        self.counters.add(worker, RX_BYTES, bytes);
    }

    /// Inner packets and bytes sent.
    pub fn tx(&self) -> (u64, u64) {
        (self.counters.sum(TX_PACKETS), self.counters.sum(TX_BYTES))
    }

    /// Inner packets and bytes received.
    pub fn rx(&self) -> (u64, u64) {
        (self.counters.sum(RX_PACKETS), self.counters.sum(RX_BYTES))
    }

    /// Notes that a packet was authenticated at `now`, in monotonic nanoseconds; called at most once
    /// per batch.
    pub fn heard(&self, now: u64) {
        if self.heard.load(Relaxed) != now {
            self.heard.store(now.max(1), Relaxed);
        }
    }

    /// When a packet was last authenticated, in monotonic nanoseconds.
    pub fn last_heard(&self) -> Option<u64> {
        match self.heard.load(Relaxed) {
            0 => None,
            nanos => Some(nanos),
        }
    }

    /// A probe was sent. Only the liveness thread says so.
    pub fn probed(&self) {
        self.probes_sent.store(self.probes_sent.load(Relaxed) + 1, Relaxed);
    }

    /// A probe was answered at `now`, in monotonic nanoseconds: its round-trip time, and the smoothed one.
    /// Only the liveness thread says so.
    pub fn answered(&self, now: u64, sample: Duration, smoothed: Duration) {
        self.answered.store(now.max(1), Relaxed);
        self.latency.store((smoothed.as_nanos() as u64).max(1), Relaxed);
        self.latencies.get_or_init(|| Box::new(Latencies::new())).add(sample);
    }

    /// Probes that were sent, and that were answered.
    pub fn probes(&self) -> (u64, u64) {
        (self.probes_sent.load(Relaxed), self.latencies.get().map_or(0, |latencies| latencies.answered()))
    }

    /// What 99 of 100 recent round trips of the probes do not exceed.
    pub fn latency_p99(&self) -> Option<Duration> {
        self.latencies.get()?.quantile(0.99)
    }

    /// When a probe was last answered, in monotonic nanoseconds.
    pub fn last_answered(&self) -> Option<u64> {
        match self.answered.load(Relaxed) {
            0 => None,
            nanos => Some(nanos),
        }
    }

    /// Smoothed round-trip time of the probes.
    pub fn latency(&self) -> Option<Duration> {
        match self.latency.load(Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// The BFD session of this family stands here now, or there is none.
    pub fn set_bfd(&self, v6: bool, stats: Option<BfdStats>) {
        let slot = &self.bfd[usize::from(v6)];
        if slot.load().as_deref() != stats.as_ref() {
            slot.store(stats.map(Arc::new));
        }
    }

    /// Its BFD sessions.
    pub fn bfd(&self) -> impl Iterator<Item = BfdStats> {
        self.bfd.iter().filter_map(|slot| slot.load().as_deref().copied())
    }

    /// Outer address of the peer now.
    #[inline]
    pub fn remote(&self) -> Option<SocketAddr> {
        self.remote.load().as_deref().copied()
    }

    /// Notes where an authenticated packet came from; true when the peer has moved.
    pub fn heard_from(&self, from: SocketAddr) -> bool {
        if self.remote() == Some(from) {
            return false;
        }
        self.set_remote(Some(from));
        true
    }

    pub(super) fn set_remote(&self, remote: Option<SocketAddr>) {
        self.remote.store(remote.map(Arc::new));
    }

    /// Largest outer packet that the path was found to take, in bytes.
    pub fn path_mtu(&self) -> Option<u16> {
        match self.path_mtu.load(Relaxed) {
            0 => None,
            mtu => Some(mtu),
        }
    }

    pub(super) fn set_path_mtu(&self, mtu: Option<u16>) {
        self.path_mtu.store(mtu.unwrap_or(0), Relaxed);
    }
}

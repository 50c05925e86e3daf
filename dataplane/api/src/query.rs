//! Questions to the core and their answers.

use core::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

use crate::{Direction, Flow, GroupId, SaId, Spi, Suite, TunnelId, Verdict};

/// A question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Query {
    /// All counters.
    Stats,
    /// Which way a flow goes now. Changes nothing.
    Path(Flow),
    /// Sends an echo request of this length, in bytes of the inner packet, to the peer's inside address, whether
    /// or not the tunnel is masked. What comes back is told by [`crate::Event::Echo`].
    Echo {
        /// Which tunnel.
        tunnel: TunnelId,
        /// At least what a probe takes.
        len: u16,
    },
    /// Begins a handshake with the peer of a WireGuard tunnel, whatever the age of its session.
    Handshake(TunnelId),
    /// The stash, entry by entry in ascending key order, from this key on.
    Stash {
        /// First key wanted.
        from: u64,
    },
}

/// An answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Query::Stats`].
    Stats(Stats),
    /// To [`Query::Path`].
    Path(PathAnswer),
    /// To [`Query::Echo`]: it will be sent if the tunnel can send.
    Echo,
    /// To [`Query::Handshake`]: it begins if the peer's address is known.
    Handshake,
    /// To [`Query::Stash`]: as many as fit into a frame; empty at the end.
    Stash(Vec<(u64, crate::op::StashValue)>),
}

/// All counters of the core.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Tunnels by ascending id.
    pub tunnels: Vec<TunnelStats>,
    /// SAs by ascending id.
    pub sas: Vec<SaStats>,
    /// Every drop reason with its count, in the core's order.
    pub drops: Vec<(String, u64)>,
    /// Routes in the prefix table.
    pub routes: u64,
    /// BFD sessions outside the tunnels, by their addresses.
    pub bfd_links: Vec<BfdLinkStats>,
}

/// Where a tunnel stands in the core.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TunnelState {
    /// In no group's choice.
    Masked,
    /// Carries traffic where its priority allows.
    Live,
    /// Loses its flows as they fall idle.
    Draining,
}

/// Counters of one tunnel, of inner packets and inner bytes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TunnelStats {
    /// Which.
    pub tunnel: TunnelId,
    /// Where it stands.
    pub state: TunnelState,
    /// Whether it is masked by a verdict of the core's own liveness thread.
    pub masked_by_core: bool,
    /// Sealed and handed to the socket.
    pub tx_packets: u64,
    /// Bytes of inner packets.
    pub tx_bytes: u64,
    /// Authenticated and accepted.
    pub rx_packets: u64,
    /// Bytes of inner packets.
    pub rx_bytes: u64,
    /// Since the last authenticated packet.
    pub heard_ago: Option<Duration>,
    /// Since the last answer to a probe.
    pub answered_ago: Option<Duration>,
    /// Smoothed round-trip time of the probes.
    pub latency: Option<Duration>,
    /// What 99 of 100 recent round trips do not exceed.
    pub latency_p99: Option<Duration>,
    /// Probes sent, and answered.
    pub probes: (u64, u64),
    /// Inner MTU now.
    pub mtu: u16,
    /// Outer address of the peer now.
    pub remote: Option<SocketAddr>,
    /// Buckets that lead to it now, over all groups.
    pub buckets: u32,
    /// Its BFD sessions, at most one for each family.
    pub bfd: Vec<BfdStats>,
    /// Of a WireGuard tunnel that has keys.
    pub wireguard: Option<WireGuardStats>,
}

/// Where a WireGuard tunnel stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WireGuardStats {
    /// Since the last handshake that made the session in use; `None`: there is no session.
    pub last_handshake: Option<Duration>,
    /// Handshakes since its keys were put.
    pub handshakes: u64,
}

/// A state of BFD (RFC 5880 section 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum BfdState {
    /// Disabled by its user.
    AdminDown,
    /// The peer is not heard, or does not hear.
    Down,
    /// The peer is heard.
    Init,
    /// Both ends hear each other.
    Up,
}

/// Where a BFD session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BfdStats {
    /// Ours.
    pub local: IpAddr,
    /// The peer's.
    pub remote: IpAddr,
    /// Our state.
    pub state: BfdState,
    /// The peer's, as it last said.
    pub remote_state: BfdState,
    /// Why ours last changed for the worse (RFC 5880 section 4.1).
    pub diagnostic: u8,
    /// And the peer's.
    pub remote_diagnostic: u8,
    /// At what interval we send, before jitter: the longer of what both ends want.
    pub interval: Duration,
    /// After what silence the session goes down.
    pub detection: Duration,
    /// Ours.
    pub multiplier: u8,
    /// What the session has to say of its tunnel, or of the path outside.
    pub vote: Verdict,
}

/// Where a BFD session outside the tunnels stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BfdLinkStats {
    /// The session.
    pub session: BfdStats,
    /// Why it cannot send or receive, if so.
    pub problem: Option<String>,
}

/// Counters of one SA.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SaStats {
    /// Which.
    pub sa: SaId,
    /// Of which tunnel.
    pub tunnel: TunnelId,
    /// Ours or the peer's.
    pub direction: Direction,
    /// On the wire.
    pub spi: Spi,
    /// Encryption and integrity.
    pub suite: Suite,
    /// Packets.
    pub packets: u64,
    /// Inner bytes.
    pub bytes: u64,
    /// Out: last sequence number used; in: highest authenticated.
    pub sequence: u64,
    /// Since it was installed.
    pub age: Duration,
}

/// The way of one flow, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PathAnswer {
    /// The matching route, if any.
    pub prefix: Option<IpNet>,
    /// Its group, unless the route names a tunnel itself.
    pub group: Option<GroupId>,
    /// The flow's bucket, in a group of more than one member.
    pub bucket: Option<u16>,
    /// Where the bucket belongs while all is well.
    pub home: Option<TunnelId>,
    /// Where it leads now; `None`: dropped.
    pub tunnel: Option<TunnelId>,
}

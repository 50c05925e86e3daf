//! What an [`crate::Endpoint`] wants done, in an order that matters.
//!
//! The owner takes effects one by one and carries each out before the next: an inbound SA is confirmed by
//! the core before the datagram behind it leaves, since that datagram lets the peer use the SA; a stash value
//! is stored before the datagram that it travels with is sent. An effect never refers to a later one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::SecretBytes;
use crate::crypto::{Computation, EspSuite};
use crate::diagnosis::Diagnosis;

/// A configured peer: one tunnel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u32);

/// An IKE SA of this endpoint; never used twice in its life, and the key of its stash value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IkeSaId(pub u64);

/// A pair of ESP SAs of this endpoint; never used twice in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChildId(pub u64);

/// What the core still holds of a child SA of an earlier life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldChild {
    /// How long ago the first half was installed.
    pub age: Duration,
    /// The outbound half is there as well as the inbound one.
    pub outbound: bool,
}

/// Outer addresses and UDP ports of one datagram.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Path {
    /// Ours.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
}

impl Path {
    /// The way back.
    pub fn reversed(self) -> Self {
        Self { local: self.remote, remote: self.local }
    }
}

/// Direction of an ESP SA, as seen from here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// From the peer.
    In,
    /// To the peer.
    Out,
}

/// How ESP of an SA travels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EspTransport {
    /// In UDP (RFC 3948), on the IKE SA's ports.
    Udp {
        /// A NAT stands before us, whose mapping must be kept open (RFC 3948 section 4).
        keepalive: bool,
    },
    /// As IP protocol 50 (RFC 4303).
    Esp,
}

/// One direction of a child SA, with its keys.
#[derive(Debug)]
pub struct ChildSa {
    /// Whose.
    pub peer: PeerId,
    /// The pair that it belongs to.
    pub id: ChildId,
    /// From or to the peer.
    pub direction: Direction,
    /// In: chosen here, unique in the endpoint. Out: the peer's.
    pub spi: u32,
    /// Encryption and integrity.
    pub suite: EspSuite,
    /// Encryption key, then integrity key or salt (RFC 7296 section 2.17).
    pub key: SecretBytes,
    /// Extended sequence numbers (RFC 4304).
    pub esn: bool,
    /// Inner addresses on our side.
    pub local: Vec<IpNet>,
    /// Inner addresses on the peer's side.
    pub remote: Vec<IpNet>,
    /// In UDP or bare.
    pub transport: EspTransport,
    /// Outer addresses and ports, as they are now.
    pub path: Path,
}

/// Something to be done.
#[derive(Debug)]
pub enum Effect {
    /// Puts one direction of a child SA into the core. The answer, if it failed, goes to
    /// [`crate::Endpoint::handle_install_failed`].
    Install(Box<ChildSa>),
    /// Takes one direction of a child SA out of the core.
    Remove {
        /// Whose.
        peer: PeerId,
        /// The pair.
        id: ChildId,
        /// Which half.
        direction: Direction,
    },
    /// Sends a datagram.
    Transmit {
        /// From where to where.
        path: Path,
        /// IKE message without the non-ESP marker, or a NAT keepalive.
        bytes: Vec<u8>,
        /// Whether four zero octets go in front (RFC 3948 section 2.2).
        non_esp_marker: bool,
        /// Stored before the datagram is sent.
        stash: Option<StashUpdate>,
    },
    /// Stores the state of an IKE SA.
    Stash(StashUpdate),
    /// Forgets the stored state of an IKE SA.
    ForgetStash(u64),
    /// Computes beside everything else, and brings the result to [`crate::Endpoint::handle_computed`]. It has no
    /// place in the order; there are never more under way than the settings say.
    Compute(Computation),
    /// Appends a line to the key log; only where [`crate::EndpointSettings::key_log`] asks for it. Whoever has
    /// it reads the IKE SA.
    KeyLog(SecretBytes),
    /// Tells.
    Event(Event),
}

/// The state of an IKE SA for the next life of this process; holds keys.
#[derive(Debug)]
pub struct StashUpdate {
    /// The SA's number, [`IkeSaId`].
    pub key: u64,
    /// Opaque.
    pub value: SecretBytes,
}

/// Why a tunnel went down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DownCause {
    /// Nothing authenticated was heard for the DPD timeout.
    DeadPeer,
    /// The peer deleted it.
    PeerDeleted,
    /// It was deleted here: configuration or command.
    Deleted,
    /// It reached the end of its lifetime before it could be rekeyed.
    Expired,
    /// The peer broke the protocol, or refused what an established SA needs.
    Refused,
    /// The core could not hold it.
    InstallFailed,
}

/// Something that the owner should know.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The peer has a working IKE SA and a working child: traffic may go.
    PeerUp {
        /// Which.
        peer: PeerId,
        /// The IKE suite, in strongSwan's words.
        ike_suite: String,
        /// The ESP suite.
        esp_suite: String,
    },
    /// The peer has none any more.
    PeerDown {
        /// Which.
        peer: PeerId,
        /// Why.
        cause: DownCause,
    },
    /// A child SA carries traffic in both directions.
    ChildUp {
        /// Whose.
        peer: PeerId,
        /// Which.
        child: ChildId,
        /// Ours.
        spi_in: u32,
        /// The peer's.
        spi_out: u32,
    },
    /// A child SA has taken the place of another.
    ChildRekeyed {
        /// Whose.
        peer: PeerId,
        /// The old one.
        old: ChildId,
        /// The new one.
        new: ChildId,
    },
    /// A child SA is gone.
    ChildDown {
        /// Whose.
        peer: PeerId,
        /// Which.
        child: ChildId,
    },
    /// The IKE SA was rekeyed.
    IkeRekeyed {
        /// Whose.
        peer: PeerId,
    },
    /// The peer is reached by another path from now on; its SAs in the core follow.
    EndpointMoved {
        /// Which.
        peer: PeerId,
        /// From now on.
        path: Path,
        /// In UDP or bare, from now on.
        transport: EspTransport,
    },
    /// An attempt needs addresses: [`crate::Endpoint::set_addresses`] answers.
    WantsAddress {
        /// Which.
        peer: PeerId,
        /// The configured local address, if any.
        local: Option<IpAddr>,
    },
    /// An attempt or an SA failed.
    Failed {
        /// Which, as far as known.
        peer: Option<PeerId>,
        /// What and where.
        diagnosis: Box<Diagnosis>,
        /// Until the next attempt, if there will be one.
        retry_in: Option<Duration>,
    },
}

/// Why [`crate::Endpoint::poll_timeout`] names an instant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TimerKind {
    /// An unanswered request is sent again, or given up.
    Retransmit,
    /// The peer has been silent.
    Dpd,
    /// A key grows old.
    Rekey,
    /// An SA reaches its end, or its grace time after that.
    Expiry,
    /// A NAT's mapping is kept open.
    Keepalive,
    /// A queued exchange is due.
    Queue,
    /// A peer is tried again.
    Retry,
}

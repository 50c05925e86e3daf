//! From the core to control.

use core::time::Duration;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    Answer, BootId, Direction, Epoch, Generation, GroupId, Member, SaId, Spi, Suite, TunnelId, TunnelState,
};

/// A frame from the core to control.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromCore {
    /// The first frame.
    Hello(Hello),
    /// The transaction is in force for every batch from now on.
    Applied {
        /// The transaction's.
        epoch: Epoch,
    },
    /// Nothing of the transaction is in force.
    Rejected(Rejected),
    /// To a query.
    Answer {
        /// The query's.
        number: u32,
        /// The answer.
        answer: Answer,
    },
    /// Something happened.
    Event(Event),
}

/// What the core is and holds, for control to adopt.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The core's [`crate::VERSION`].
    pub version: u32,
    /// This life of the core.
    pub boot: BootId,
    /// Of this adoption, ascending.
    pub generation: Generation,
    /// Since the core started.
    pub uptime: Duration,
    /// Forwarding threads.
    pub workers: u32,
    /// What the kernel gave: TUN segmentation offload and UDP GSO.
    pub offload: bool,
    /// Tunnels by ascending id.
    pub tunnels: Vec<TunnelSummary>,
    /// SAs by ascending id.
    pub sas: Vec<SaSummary>,
    /// Groups by ascending id.
    pub groups: Vec<GroupSummary>,
    /// Values in the stash.
    pub stash_entries: u32,
}

/// A tunnel that the core holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TunnelSummary {
    /// Its id.
    pub id: TunnelId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: TunnelState,
}

/// An SA that the core holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SaSummary {
    /// Its id.
    pub id: SaId,
    /// Its tunnel.
    pub tunnel: TunnelId,
    /// Ours or the peer's.
    pub direction: Direction,
    /// On the wire.
    pub spi: Spi,
    /// Encryption and integrity.
    pub suite: Suite,
    /// Keyed digest of the key under the boot id, so that control can tell whether a manual key is
    /// the one of its configuration; it gives nothing away that the key's holder does not know.
    pub key_check: [u8; 16],
    /// Why it no longer works, if so.
    pub stopped: bool,
}

/// A group that the core holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupSummary {
    /// Its id.
    pub id: GroupId,
    /// Its members.
    pub members: Vec<Member>,
}

/// Why a transaction was refused, and by which operation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rejected {
    /// The transaction's.
    pub epoch: Epoch,
    /// Index of the operation at fault.
    pub op: u32,
    /// What is wrong with it.
    pub reason: RejectReason,
}

/// What is wrong with an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RejectReason {
    /// More than [`crate::MAX_OPS`] operations.
    TooManyOps,
    /// The epoch is not above the last one of this connection.
    StaleEpoch,
    /// No such tunnel.
    UnknownTunnel,
    /// No such group.
    UnknownGroup,
    /// No such SA.
    UnknownSa,
    /// The id is out of the range that the core holds.
    IdOutOfRange,
    /// The SA's id is or was in use in this boot.
    SaIdUsed,
    /// The SA was made for another life of the core.
    OtherBoot,
    /// The inbound SPI is in use or reserved (RFC 4303 section 2.1).
    SpiTaken,
    /// The key has another length than the suite's, or is weak.
    BadKey,
    /// The replay window is not 64 to 8192.
    BadReplayWindow,
    /// Groups or routes still name it.
    InUse,
    /// No member, too many, one twice, or a weight of 0.
    BadMembers,
    /// A name over 64 bytes, of the tunnel or its uplink, or one in use by another tunnel.
    BadName,
    /// No socket for this local address.
    NoSocket,
    /// The path MTU leaves no room for a packet.
    BadMtu,
    /// A probe without a peer inside address, or with interval or multiplier 0.
    BadProbe,
    /// A BFD session whose interval or multiplier is out of range, whose addresses are not ours or of two
    /// families, or a second one of a family; outside the tunnels, too many or two between the same addresses.
    BadBfd,
    /// The stash is full or the value too long.
    StashFull,
    /// Keys of WireGuard for a tunnel of ESP, or an SA for one of WireGuard.
    OtherProtocol,
    /// Another tunnel of the same socket and private key has this peer.
    PeerTaken,
}

/// Which of both ends a fault concerns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Side {
    /// Outbound.
    Tx,
    /// Inbound.
    Rx,
}

/// What the liveness thread found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Verdict {
    /// The tunnel is masked already.
    Down,
    /// It answers (again); control decides.
    Up,
    /// The signal has no vote any more: it is no longer asked for, or one of both ends disabled it.
    Withdrawn,
}

/// What spoke.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Cause {
    /// In-tunnel probe.
    Probe,
    /// In-tunnel probes that stay unanswered although the peer is heard: the way there is dead, the way back
    /// is not.
    OneWay,
    /// BFD session in the tunnel.
    Bfd,
    /// The uplink lost its carrier, is down or is gone; up when it carries again.
    Link,
    /// The outbound SA has no sequence number left (RFC 4303 section 3.3.3).
    Exhausted,
}

/// What an SA has carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SaTraffic {
    /// Which.
    pub sa: SaId,
    /// Of which tunnel.
    pub tunnel: TunnelId,
    /// Ours or the peer's.
    pub direction: Direction,
    /// On the wire.
    pub spi: Spi,
    /// Packets since it was installed.
    pub packets: u64,
    /// Inner bytes since it was installed.
    pub bytes: u64,
    /// Inbound: since a packet of the tunnel was last authenticated.
    pub heard_ago: Option<Duration>,
}

/// Something that control should know.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Event {
    /// The core's liveness thread has spoken; a `Down` was masked before this was sent.
    Liveness {
        /// Which tunnel.
        tunnel: TunnelId,
        /// What.
        verdict: Verdict,
        /// By what.
        cause: Cause,
        /// Between the last sign of life and the verdict; zero where the peer itself said that it is down.
        silent: Duration,
        /// When the core came to it, in nanoseconds of CLOCK_MONOTONIC.
        detected: u64,
        /// A `Down`: when the mask was in force, on the same clock.
        masked: u64,
    },
    /// What a BFD session outside the tunnels has to say from now on; all of them after each
    /// [`crate::Op::SetBfdLinks`].
    BfdLink {
        /// Ours.
        local: IpAddr,
        /// The peer's.
        remote: IpAddr,
        /// What.
        verdict: Verdict,
        /// A `Down`: since the last sign of life; zero where the peer itself said that it is down.
        silent: Duration,
    },
    /// An SA has used up this share of its sequence numbers.
    SaLifetime {
        /// Which.
        sa: SaId,
        /// True: it has stopped. False: it should be rekeyed.
        hard: bool,
    },
    /// SAs that have carried packets since they were last reported, about once a second; and at
    /// once, alone, an inbound SA whose first packet was authenticated: the peer uses it. At most
    /// [`crate::MAX_TRAFFIC`] in one event.
    Traffic(Vec<SaTraffic>),
    /// An authenticated packet came from another outer address, and the core sends there from now
    /// on: see [`crate::Tunnel::follow_remote`].
    EndpointMoved {
        /// Which tunnel.
        tunnel: TunnelId,
        /// From where.
        remote: SocketAddr,
    },
    /// A WireGuard tunnel has a session, or none any more; told again after its keys were put.
    WireGuard {
        /// Which tunnel.
        tunnel: TunnelId,
        /// Packets can be sent.
        up: bool,
    },
    /// An echo that [`crate::Query::Echo`] asked for came back.
    Echo {
        /// Which tunnel.
        tunnel: TunnelId,
        /// Of the inner packet, in bytes.
        len: u16,
    },
    /// The outer path takes less or more.
    PathMtu {
        /// Which tunnel.
        tunnel: TunnelId,
        /// Largest outer packet, in bytes.
        path_mtu: u16,
    },
}

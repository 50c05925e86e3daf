//! What a session wants done, and what it has to tell.

use std::{fmt, net::Ipv4Addr, time::Duration};

use bytes::Bytes;

use crate::update::{Family, Handling, Update};

/// One TCP connection of a neighbor, or the attempt to make one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId(pub u64);

/// What the caller does for a session, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Connect to the neighbor's port 179, under a name that was not used before.
    Connect(ConnectionId),
    /// Send these octets.
    Transmit(ConnectionId, Bytes),
    /// Close the connection, once what was sent has left.
    Close(ConnectionId),
    /// Something has happened.
    Event(Event),
}

/// The states of RFC 4271 section 8.2.2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SessionState {
    /// Nothing is under way.
    Idle,
    /// Connecting.
    Connect,
    /// Waiting for the peer to connect, or for the next attempt.
    Active,
    /// Our OPEN is sent.
    OpenSent,
    /// The peer's OPEN has come.
    OpenConfirm,
    /// Routes are exchanged.
    Established,
}

impl SessionState {
    /// The name in status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            SessionState::Idle => "idle",
            SessionState::Connect => "connect",
            SessionState::Active => "active",
            SessionState::OpenSent => "opensent",
            SessionState::OpenConfirm => "openconfirm",
            SessionState::Established => "established",
        }
    }
}

/// What both ends have agreed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// The peer's AS number.
    pub remote_as: u32,
    /// The peer's identifier.
    pub remote_id: Ipv4Addr,
    /// The smaller of both hold times; zero: none.
    pub hold_time: Duration,
    /// Families of which routes may be exchanged.
    pub families: Vec<Family>,
    /// Families of which the peer may send several paths a prefix.
    pub add_path: Vec<Family>,
    /// The peer understands ROUTE-REFRESH.
    pub route_refresh: bool,
    /// AS numbers have four octets.
    pub four_octet_as: bool,
    /// The peer's graceful restart, if both ends have it.
    pub graceful_restart: Option<PeerRestart>,
}

/// What the peer says of its restarts (RFC 4724 section 3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerRestart {
    /// It has restarted, and waits for our End-of-RIB.
    pub restarted: bool,
    /// For how long its routes are to be kept when it goes.
    pub time: Duration,
    /// Families in which it has it.
    pub families: Vec<Family>,
    /// Those in which it has forwarded all along.
    pub preserved: Vec<Family>,
}

/// An error that one end has reported (RFC 4271 section 4.5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notification {
    /// Error code.
    pub code: u8,
    /// Subcode.
    pub subcode: u8,
    /// What a person reads.
    pub text: String,
}

impl Notification {
    /// Whether the Hold Timer has expired (RFC 4271 section 6.5).
    pub fn is_hold_time(&self) -> bool {
        self.code == 4
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}/{})", self.text, self.code, self.subcode)
    }
}

/// Why a session ended or did not come about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The connection broke, or could not be made.
    Transport,
    /// The peer reported an error.
    Received(Notification),
    /// We reported one, among them the end of the hold time.
    Sent(Notification),
    /// The peer came back before its former connection was seen to break.
    Replaced,
    /// The user stopped it.
    Stopped,
}

/// Something has happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Routes may be exchanged: send what there is, then End-of-RIB of each family.
    Established(Negotiated),
    /// The session has ended. Routes of the families in `retain` become stale and stay (RFC 4724 section 4.2);
    /// all others of the neighbor go at once.
    Down {
        /// Why.
        cause: Cause,
        /// Families whose routes stay.
        retain: Vec<Family>,
    },
    /// Routes of these families that are still stale go.
    SweepStale(Vec<Family>),
    /// Routes.
    Update(Update),
    /// The peer has sent all that it has; what is still stale goes.
    EndOfRib(Family),
    /// As far as can be told without graceful restart the peer has sent all that it has: a KEEPALIVE came after
    /// UPDATEs, or two came without any.
    Settled,
    /// The peer wants everything of this family again.
    Refresh(Family),
    /// An UPDATE had something wrong with it that did not end the session (RFC 7606).
    Malformed {
        /// The attribute's type code; zero if it could not be read.
        attribute: u8,
        /// What was done about it.
        handling: Handling,
        /// What was wrong.
        detail: String,
    },
    /// An attempt failed; another follows unless the user stopped it.
    Failed(Cause),
}

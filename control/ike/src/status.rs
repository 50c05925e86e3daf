//! What the endpoint tells about itself: per peer, and counted.

use std::time::{Duration, Instant};

use crate::diagnosis::Diagnosis;
use crate::effect::{ChildId, EspTransport, Path};
use crate::wire::ExchangeType;

/// Where a peer stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PeerState {
    /// Nothing is under way; a responder waits like this.
    Idle,
    /// A connection is being made, or waits for its next attempt.
    Connecting,
    /// A child SA carries traffic.
    Up,
}

/// A peer, for `status` and `doctor`.
#[derive(Clone, PartialEq, Debug)]
pub struct PeerStatus {
    /// Where it stands.
    pub state: PeerState,
    /// Outer addresses, once known.
    pub path: Option<Path>,
    /// The established IKE SA.
    pub ike: Option<IkeStatus>,
    /// The child SA that carries traffic.
    pub child: Option<ChildStatus>,
    /// The exchange that waits for an answer.
    pub waiting_for: Option<ExchangeType>,
    /// Attempts since it was last up.
    pub attempts: u32,
    /// Until the next attempt.
    pub retry_in: Option<Duration>,
    /// The last thing that failed, and when.
    pub last_failure: Option<(Instant, Diagnosis)>,
}

/// An established IKE SA.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IkeStatus {
    /// In strongSwan's words.
    pub suite: String,
    /// Until it is rekeyed.
    pub rekey_in: Duration,
    /// We made it.
    pub initiator: bool,
    /// A NAT stands before us.
    pub nat_here: bool,
    /// A NAT stands before the peer, or it says so.
    pub nat_there: bool,
}

/// A child SA.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChildStatus {
    /// Which.
    pub id: ChildId,
    /// In strongSwan's words.
    pub suite: String,
    /// Ours.
    pub spi_in: u32,
    /// The peer's.
    pub spi_out: u32,
    /// Until it is rekeyed.
    pub rekey_in: Duration,
    /// Rekeys since the peer came up.
    pub rekeys: u64,
    /// In UDP or bare.
    pub transport: EspTransport,
}

/// What was received and not acted on, and other things worth counting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Datagrams that are no IKE message.
    pub malformed: u64,
    /// Of another major version.
    pub other_version: u64,
    /// For no SA of ours.
    pub unknown_spi: u64,
    /// That failed the integrity check, or had none where one is needed.
    pub unauthenticated: u64,
    /// Requests outside the window.
    pub outside_window: u64,
    /// Responses to nothing, and messages out of place.
    pub unexpected: u64,
    /// Requests received again.
    pub retransmitted_requests: u64,
    /// Requests of ours sent again.
    pub retransmissions: u64,
    /// First requests from nobody configured.
    pub unknown_peer: u64,
    /// First requests without a common proposal.
    pub no_proposal: u64,
    /// First requests answered with a cookie.
    pub cookies_sent: u64,
    /// First requests with a wrong cookie.
    pub wrong_cookies: u64,
    /// First requests dropped because too many SAs are half open.
    pub half_open_refused: u64,
    /// Handshakes that ended in a failed authentication.
    pub failed_authentication: u64,
}

//! Why an IKE SA or a child SA did not come to be, or ended: with the fields that an operator has to compare.
//!
//! The kinds are split by fault and carry what either side said, so that the one who prints them needs no
//! other source.

use std::net::SocketAddr;

use crate::wire::{DecodeError, Identity, IkeSpi, NotifyType, Proposal, TrafficSelector};

/// The step that failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Step {
    /// IKE_SA_INIT.
    Init,
    /// IKE_INTERMEDIATE.
    Intermediate,
    /// IKE_AUTH.
    Auth,
    /// CREATE_CHILD_SA for a new child.
    CreateChild,
    /// CREATE_CHILD_SA that replaces a child.
    RekeyChild,
    /// CREATE_CHILD_SA that replaces the IKE SA.
    RekeyIke,
    /// INFORMATIONAL.
    Informational,
    /// Nothing was being negotiated.
    Established,
}

/// What failed, where.
#[derive(Clone, PartialEq, Debug)]
pub struct Diagnosis {
    /// During which exchange.
    pub step: Step,
    /// The peer's outer address, as far as known.
    pub remote: Option<SocketAddr>,
    /// Whether the peer started the IKE SA.
    pub by_peer: bool,
    /// The IKE SA, by its initiator's SPI.
    pub spi: IkeSpi,
    /// What.
    pub fault: Fault,
}

/// What failed.
#[derive(Clone, PartialEq, Debug)]
pub enum Fault {
    /// No answer at all: UDP 500 or 4500 is blocked, or nobody listens there.
    Unreachable {
        /// How many times the request was sent.
        sent: u32,
    },
    /// An established peer fell silent.
    DeadPeer,
    /// No common proposal; either list may be empty where the other side does not tell.
    NoProposal {
        /// What we offered, or accept.
        ours: Vec<Proposal>,
        /// What the peer offered; empty if it only refused.
        peers: Vec<Proposal>,
    },
    /// The groups do not match: the peer wants one that is not offered, or keeps asking.
    InvalidKe {
        /// Groups that we offered.
        offered: Vec<u16>,
        /// The group that the peer asked for.
        wanted: u16,
    },
    /// The peer's AUTH payload is wrong: another pre-shared key, most often.
    AuthMismatch,
    /// The peer's AUTH uses a method that the configuration does not accept for it.
    AuthMethodMismatch {
        /// RFC 7296 section 3.8.
        method: u8,
    },
    /// The peer refused us with AUTHENTICATION_FAILED: another pre-shared key, identity or CA there.
    PeerRejectedUs {
        /// Our proof was a certificate's signature, not a pre-shared key.
        by_certificate: bool,
    },
    /// The peer calls itself something else than `remote-id`.
    PeerIdMismatch {
        /// Configured.
        expected: Identity,
        /// Received.
        received: Identity,
    },
    /// Nobody configured matches the peer that called.
    UnknownPeer {
        /// How it calls itself; none before IKE_AUTH.
        identity: Option<Identity>,
        /// What it wants us to be.
        wants: Option<Identity>,
    },
    /// A certificate, ours or the peer's, does not do.
    Certificate(crate::auth::AuthError),
    /// Post-quantum pre-shared keys (RFC 8784) do not match.
    Ppk {
        /// PPK_ID that the peer named.
        received: Option<Vec<u8>>,
    },
    /// No common traffic selectors.
    TrafficSelectors {
        /// Ours: local, remote.
        ours: (Vec<TrafficSelector>, Vec<TrafficSelector>),
        /// The peer's, in our words: local, remote; empty if it only refused.
        peers: (Vec<TrafficSelector>, Vec<TrafficSelector>),
    },
    /// The peer deleted an SA.
    PeerDeleted {
        /// Less than a minute after it was established.
        at_once: bool,
    },
    /// The peer answered with an error of another kind.
    PeerError(NotifyType),
    /// The peer's message breaks the protocol.
    Malformed(DecodeError),
    /// The peer's message is well-formed and lacks something, or says what no peer may say.
    Violation(Violation),
    /// An end of life came before a rekey succeeded.
    Expired,
    /// The core refused an SA.
    InstallFailed,
    /// A NAT is on the way, but `encapsulation = "esp"` forbids UDP encapsulation.
    NatForbidden,
}

/// What a peer must not do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Violation {
    /// A payload that the exchange needs is missing.
    MissingPayload(&'static str),
    /// The answer chooses what was not offered.
    NotOffered,
    /// A nonce outside 16 to 256 octets (RFC 7296 section 2.10), or shorter than half the PRF's key.
    BadNonce,
    /// A public value outside its group (RFC 6989).
    BadPublicValue,
    /// An SPI that is zero or reserved.
    BadSpi,
    /// A critical payload that is not known (RFC 7296 section 2.5).
    UnknownCritical(u8),
    /// Asked for cookies again and again.
    CookieLoop,
    /// An exchange that is out of place.
    UnexpectedExchange,
}

//! Settings of the endpoint and of each peer, as parsed values.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::SecretBytes;
use crate::auth::{Credential, Verifier};
use crate::crypto::KeMethod;
use crate::proposal::{EspProposal, IkeProposal};
use crate::wire::Identity;

/// Limits and habits that concern all peers.
#[derive(Clone, Debug)]
pub struct EndpointSettings {
    /// The port without NAT traversal (RFC 7296 section 2.23).
    pub port: u16,
    /// The port of NAT traversal; datagrams there carry the non-ESP marker.
    pub nat_port: u16,
    /// Half-open IKE SAs above which a cookie is asked for (RFC 7296 section 2.6).
    pub cookie_threshold: usize,
    /// Half-open IKE SAs at most.
    pub max_half_open: usize,
    /// Half-open IKE SAs with one remote address at most.
    pub max_half_open_of_one: usize,
    /// How long a half-open IKE SA of a peer's making may last.
    pub half_open_lifetime: Duration,
    /// The first retransmission comes after this; each further interval doubles.
    pub retransmit_first: Duration,
    /// Longest interval between two retransmissions.
    pub retransmit_max: Duration,
    /// An initial exchange is given up when it has had no answer for this long.
    pub connect_timeout: Duration,
    /// First requests of ours that may be unanswered at once, unless they were sent again.
    pub max_opening: usize,
    /// Of them, to one remote address. Below `cookie_threshold` two of a kind cost each other no cookie.
    pub max_opening_of_one: usize,
    /// Key exchanges that the owner computes beside its loop ([`crate::Effect::Compute`]); others are computed at
    /// once.
    pub beside: &'static [KeMethod],
    /// Computations that the owner has at one time.
    pub max_computations: usize,
    /// Pause before the second attempt at a peer; doubles up to `retry_max`, with jitter.
    pub retry_first: Duration,
    /// Longest pause between two attempts.
    pub retry_max: Duration,
    /// Between two NAT keepalives (RFC 3948 section 4).
    pub keepalive: Duration,
    /// How long an old inbound child SA is kept for packets under way.
    pub old_inbound_grace: Duration,
    /// Largest IKE datagram without UDP header before it is fragmented (RFC 7383), in octets.
    pub fragment_size: usize,
    /// Offer the keys of every IKE SA as [`crate::Effect::KeyLog`], so that its messages can be read.
    pub key_log: bool,
}

impl Default for EndpointSettings {
    fn default() -> Self {
        Self {
            port: 500,
            nat_port: 4500,
            cookie_threshold: 64,
            max_half_open: 1024,
            max_half_open_of_one: 512,
            half_open_lifetime: Duration::from_secs(30),
            retransmit_first: Duration::from_millis(500),
            retransmit_max: Duration::from_secs(8),
            connect_timeout: Duration::from_secs(15),
            max_opening: 64,
            max_opening_of_one: 32,
            beside: &KeMethod::MODP,
            max_computations: 2,
            retry_first: Duration::from_millis(500),
            retry_max: Duration::from_secs(30),
            keepalive: Duration::from_secs(20),
            old_inbound_grace: Duration::from_secs(5),
            fragment_size: 1232,
            key_log: false,
        }
    }
}

/// Who starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// We connect, and connect again for ever; the peer may as well.
    Initiate,
    /// We wait for the peer.
    Respond,
}

/// Whether ESP goes in UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encapsulation {
    /// Always: NAT detection is made to say so on both sides.
    Udp,
    /// Only where a NAT is on the way.
    Auto,
    /// Never.
    Esp,
}

/// When a key is replaced, and when it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetime {
    /// The SA ends here.
    pub hard: Duration,
    /// Replaced this long before...
    pub margin: Duration,
    /// ...and at random up to this much earlier still, so that tunnels do not march in step.
    pub jitter: Duration,
}

impl Lifetime {
    /// The margin of AWS's scale: a tenth of the lifetime, 270 s at most, and as much again at random.
    pub fn of(hard: Duration) -> Self {
        let margin = (hard / 10).min(Duration::from_secs(270));
        Self { hard, margin, jitter: margin }
    }
}

/// A post-quantum pre-shared key (RFC 8784).
#[derive(Debug)]
pub struct Ppk {
    /// PPK_ID, without its type octet (type PPK_ID_FIXED).
    pub id: Vec<u8>,
    /// The key.
    pub secret: SecretBytes,
    /// Refuse peers that do not use it.
    pub required: bool,
}

/// One peer.
#[derive(Debug)]
pub struct PeerConfig {
    /// By which the next life of this process knows it again.
    pub name: String,
    /// Who starts.
    pub role: Role,
    /// Our outer address; left out: the owner's routing chooses ([`crate::Event::WantsAddress`]).
    pub local: Option<IpAddr>,
    /// Its outer address; left out: a name to be resolved, or on a responder any.
    pub remote: Option<IpAddr>,
    /// The remote is a name: ask before every attempt.
    pub remote_is_name: bool,
    /// How we call ourselves.
    pub local_id: Identity,
    /// How the peer must call itself; `None` accepts any that the credentials prove.
    pub remote_id: Option<Identity>,
    /// How we prove who we are.
    pub credential: Arc<Credential>,
    /// What we accept as the peer's proof.
    pub verifier: Arc<Verifier>,
    /// For the IKE SA, most wanted first.
    pub ike_proposals: Vec<IkeProposal>,
    /// For child SAs, most wanted first.
    pub esp_proposals: Vec<EspProposal>,
    /// Of the IKE SA.
    pub ike_lifetime: Lifetime,
    /// Of a child SA.
    pub child_lifetime: Lifetime,
    /// A child is rekeyed before it has carried this many octets in one direction, with a margin.
    pub child_bytes: Option<u64>,
    /// A child is rekeyed before it has carried this many packets in one direction, with a margin.
    pub child_packets: Option<u64>,
    /// After this much silence the peer is asked whether it lives.
    pub dpd_interval: Duration,
    /// After this much silence it is dead.
    pub dpd_timeout: Duration,
    /// Whether ESP goes in UDP.
    pub encapsulation: Encapsulation,
    /// Inner addresses on our side.
    pub local_ts: Vec<IpNet>,
    /// Inner addresses on the peer's.
    pub remote_ts: Vec<IpNet>,
    /// RFC 4555.
    pub mobike: bool,
    /// RFC 7383.
    pub fragmentation: bool,
    /// RFC 8784.
    pub ppk: Option<Ppk>,
    /// As initiator, make the first child by CREATE_CHILD_SA where the peer allows (RFC 6023).
    pub childless: bool,
    /// Tell the peer that older SAs with this identity are dead (RFC 7296 section 2.4).
    pub initial_contact: bool,
}

impl PeerConfig {
    /// Whether SAs made under `self` no longer fit `new`; lifetimes and timers apply to live SAs as they are.
    ///
    /// Credentials are compared by pointer: who reloads a configuration keeps the `Arc` of what did not change.
    pub(crate) fn must_renegotiate(&self, new: &Self) -> bool {
        let same_ppk = match (&self.ppk, &new.ppk) {
            (None, None) => true,
            (Some(a), Some(b)) => a.id == b.id && a.secret == b.secret && a.required == b.required,
            (Some(_), None) | (None, Some(_)) => false,
        };
        !(self.local == new.local
            && self.remote == new.remote
            && self.remote_is_name == new.remote_is_name
            && self.local_id == new.local_id
            && self.remote_id == new.remote_id
            && Arc::ptr_eq(&self.credential, &new.credential)
            && Arc::ptr_eq(&self.verifier, &new.verifier)
            && self.ike_proposals == new.ike_proposals
            && self.esp_proposals == new.esp_proposals
            && self.encapsulation == new.encapsulation
            && self.local_ts == new.local_ts
            && self.remote_ts == new.remote_ts
            && same_ppk)
    }
}

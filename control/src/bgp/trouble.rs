//! Why neighbors have no session, or may soon have none, for `braid doctor`.

use std::net::IpAddr;

use braid_bgp::{Cause, Notification, Opened};

use super::{Bgp, net::Unreached, speaker::Peer};
use crate::config::Place;

/// A neighbor without a session, or that may lose it, and what is known of the reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Our address towards it, if one is configured or known.
    pub local: Option<IpAddr>,
    /// The tunnel that it is in.
    pub tunnel: Option<String>,
    /// Our AS number.
    pub our_asn: u32,
    /// Its, as configured.
    pub asn: u32,
    /// Who answers there says that it is.
    pub opened: Option<Opened>,
    /// Segments are signed (RFC 2385).
    pub is_signed: bool,
    /// It is waited for.
    pub is_passive: bool,
    /// Why.
    pub why: Why,
}

/// Why a neighbor has no session, or may lose it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// It may not have one: its path is down.
    Held(&'static str),
    /// We have refused it.
    WeRefuse(Notification),
    /// It has refused us.
    ItRefuses(Notification),
    /// It could not be connected to.
    Unreached(Unreached),
    /// Connections break.
    Broken,
    /// Nothing has come of it yet.
    Trying,
    /// It has one, and AWS would soon end it.
    NearAws {
        /// Routes it was told.
        told: usize,
        /// Those that it takes.
        most: u32,
    },
}

impl Bgp {
    /// Neighbors without sessions, or that may lose them, in the order of the file.
    pub fn troubles(&self) -> Vec<Trouble> {
        let (Some(speaker), Some(config)) = (&self.speaker, &self.config) else { return Vec::new() };
        let trouble = |neighbor: &crate::config::Neighbor| {
            let peer = speaker.peers.values().find(|peer| peer.name == neighbor.name)?;
            let why = match peer.session.established() {
                None => speaker.obstacle(peer).map_or_else(|| why(peer), Why::Held),
                // Who has taken more is not AWS, or has another limit.
                Some(_) => {
                    let told = peer.out.len();
                    Why::NearAws { told, most: peer.near_aws().filter(|most| told <= *most as usize)? }
                }
            };
            Some(Trouble {
                name: peer.name.clone(),
                address: peer.endpoint.remote,
                local: peer.endpoint.local,
                tunnel: match &peer.place {
                    Place::Tunnel(name) => Some(name.clone()),
                    Place::Address { .. } => None,
                },
                our_asn: config.asn,
                asn: neighbor.asn,
                opened: peer.session.last_open(),
                is_signed: neighbor.md5.is_some(),
                is_passive: neighbor.passive,
                why,
            })
        };
        config.neighbors.iter().filter_map(trouble).collect()
    }
}

fn why(peer: &Peer) -> Why {
    match (&peer.unreached, &peer.refusal, peer.session.last_cause()) {
        (Some(unreached), ..) => Why::Unreached(unreached.clone()),
        // What was said tells more than that connections break after it.
        (None, Some(Cause::Sent(said)), _) => Why::WeRefuse(said.clone()),
        (None, Some(Cause::Received(said)), _) => Why::ItRefuses(said.clone()),
        (None, _, Some(Cause::Transport | Cause::Replaced)) => Why::Broken,
        (None, ..) => Why::Trying,
    }
}

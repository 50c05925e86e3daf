//! Child SAs: a pair of ESP SAs, its timers, and which half of it the core holds.
//!
//! The inbound half is in the core from before the peer may use it until a grace time after the pair has
//! ended. The outbound half is put there when the peer is known to hold its inbound half: at once for the side
//! that started the exchange, later for the other (RFC 7296 section 2.8: a responder goes on sending on the
//! old SA until the new one is seen in use, or the old one is deleted).

use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::Cx;
use crate::crypto::EspSuite;
use crate::effect::{ChildId, ChildSa, Direction, Effect, EspTransport, Event, Path, PeerId};
use crate::random::random_u64;
use crate::settings::PeerConfig;
use crate::{Random, SecretBytes};

/// How long the outbound half may wait for a sign that the peer is ready; then the pair is deleted.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(60);
/// When a deletion that did not come about is tried again.
const DELETED_WITHIN: Duration = Duration::from_secs(45);
/// How long a pair that lost a collision may wait for the peer to delete it.
const REDUNDANT_FOR: Duration = Duration::from_secs(60);

/// Where a child stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChildState {
    /// Carries traffic.
    Live,
    /// Our CREATE_CHILD_SA that replaces it is queued or under way.
    Rekeying,
    /// The peer has replaced it by another and will delete it.
    Replaced(ChildId),
    /// It lost a collision; whoever made it deletes it.
    Redundant,
    /// Our Delete is queued or under way.
    Deleting,
}

/// What two sides have agreed on for a pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ChildTerms {
    pub(crate) spi_in: u32,
    pub(crate) spi_out: u32,
    pub(crate) suite: EspSuite,
    pub(crate) esn: bool,
    pub(crate) local: Vec<IpNet>,
    pub(crate) remote: Vec<IpNet>,
}

/// A pair of ESP SAs.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) id: ChildId,
    pub(crate) terms: ChildTerms,
    pub(crate) state: ChildState,
    pub(crate) created: Instant,
    pub(crate) rekey_at: Instant,
    pub(crate) expires_at: Instant,
    /// It is replaced once it has carried so much in one direction.
    pub(crate) volume: Volume,
    /// Set while the outbound half waits, with the instant when it waits no longer.
    pub(crate) pending_out: Option<(Instant, Box<ChildSa>)>,
    pub(crate) in_installed: bool,
    pub(crate) out_installed: bool,
}

/// How much a pair may carry in one direction before it is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Volume {
    bytes: Option<u64>,
    packets: Option<u64>,
}

impl Volume {
    /// Of the configured limits, with the margin that times have too: 80 to 90 percent, at random, so that
    /// both sides do not ask at once.
    pub(crate) fn of(config: &PeerConfig, rng: &mut dyn Random) -> Self {
        let share = 800 + random_u64(rng) % 100;
        let soft = |limit: u64| (u128::from(limit) * u128::from(share) / 1000) as u64;
        Self { bytes: config.child_bytes.map(soft), packets: config.child_packets.map(soft) }
    }

    /// Whether that has been carried.
    pub(crate) fn is_used_up(self, bytes: u64, packets: u64) -> bool {
        let over = |limit: Option<u64>, used: u64| limit.is_some_and(|limit| used >= limit);
        over(self.bytes, bytes) || over(self.packets, packets)
    }
}

/// The inbound half of a pair that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lingering {
    pub(crate) id: ChildId,
    pub(crate) spi_in: u32,
    pub(crate) until: Instant,
}

/// Both directions' keys.
pub(crate) struct ChildKeys {
    pub(crate) inbound: SecretBytes,
    pub(crate) outbound: SecretBytes,
}

impl Child {
    /// Installs the inbound half; the outbound half waits.
    pub(crate) fn install(
        cx: &mut Cx<'_>,
        peer: PeerId,
        config: &PeerConfig,
        terms: ChildTerms,
        keys: ChildKeys,
        (transport, path): (EspTransport, Path),
    ) -> Self {
        let id = cx.ids.next_child();
        let half = |direction, spi, key| ChildSa {
            peer,
            id,
            direction,
            spi,
            suite: terms.suite.clone(),
            key,
            esn: terms.esn,
            local: terms.local.clone(),
            remote: terms.remote.clone(),
            transport,
            path,
        };
        let inbound = half(Direction::In, terms.spi_in, keys.inbound);
        let outbound = half(Direction::Out, terms.spi_out, keys.outbound);
        cx.effects.push_back(Effect::Install(Box::new(inbound)));
        let jitter = cx.random_below(config.child_lifetime.jitter);
        let soft = config.child_lifetime.hard.saturating_sub(config.child_lifetime.margin + jitter);
        Self {
            id,
            terms,
            state: ChildState::Live,
            created: cx.now,
            rekey_at: cx.now + soft,
            expires_at: cx.now + config.child_lifetime.hard,
            volume: Volume::of(config, cx.rng),
            pending_out: Some((cx.now + READY_WITHIN, Box::new(outbound))),
            in_installed: true,
            out_installed: false,
        }
    }

    /// Installs the outbound half if it still waits; says whether it did.
    pub(crate) fn activate(&mut self, cx: &mut Cx<'_>, (transport, path): (EspTransport, Path)) -> bool {
        let Some((_, mut outbound)) = self.pending_out.take() else { return false };
        (outbound.transport, outbound.path) = (transport, path);
        self.out_installed = true;
        let (peer, child) = (outbound.peer, self.id);
        cx.effects.push_back(Effect::Install(outbound));
        let (spi_in, spi_out) = (self.terms.spi_in, self.terms.spi_out);
        cx.effects.push_back(Effect::Event(Event::ChildUp { peer, child, spi_in, spi_out }));
        true
    }

    /// Ends the pair: the outbound half at once, the inbound after the grace time.
    pub(crate) fn end(self, cx: &mut Cx<'_>, peer: PeerId, grace: Duration) -> Option<Lingering> {
        let id = self.id;
        if self.out_installed {
            cx.effects.push_back(Effect::Remove { peer, id, direction: Direction::Out });
            cx.effects.push_back(Effect::Event(Event::ChildDown { peer, child: id }));
        }
        let spi_in = self.terms.spi_in;
        if !self.in_installed {
            cx.esp_spis.remove(&spi_in);
            return None;
        }
        if grace.is_zero() {
            cx.effects.push_back(Effect::Remove { peer, id, direction: Direction::In });
            cx.esp_spis.remove(&spi_in);
            return None;
        }
        Some(Lingering { id, spi_in, until: cx.now + grace })
    }

    /// It lost a collision: it is never used for sending, and waits for its maker's Delete.
    pub(crate) fn make_redundant(&mut self, now: Instant) {
        self.state = ChildState::Redundant;
        self.pending_out = None;
        self.expires_at = self.expires_at.min(now + REDUNDANT_FOR);
    }

    /// Our Delete is on its way; should it get lost in a change of IKE SAs, it is sent again.
    pub(crate) fn mark_deleting(&mut self, now: Instant) {
        self.state = ChildState::Deleting;
        self.expires_at = self.expires_at.min(now + DELETED_WITHIN);
    }

    /// Whether traffic can go out through it.
    pub(crate) fn is_usable(&self) -> bool {
        self.out_installed
            && matches!(self.state, ChildState::Live | ChildState::Rekeying | ChildState::Replaced(_))
    }

    /// Its outbound half was lost with the life that had its key: only what the peer sends passes.
    pub(crate) fn is_half(&self) -> bool {
        let lives = matches!(self.state, ChildState::Live | ChildState::Rekeying);
        lives && self.in_installed && !self.out_installed && self.pending_out.is_none()
    }

    /// The next thing to happen to it by time alone.
    pub(crate) fn deadline(&self) -> Instant {
        let pending = self.pending_out.as_ref().map(|(at, _)| *at);
        let rekey = (self.state == ChildState::Live).then_some(self.rekey_at);
        [pending, rekey].into_iter().flatten().fold(self.expires_at, Instant::min)
    }
}

impl Lingering {
    pub(crate) fn remove(self, cx: &mut Cx<'_>, peer: PeerId) {
        cx.effects.push_back(Effect::Remove { peer, id: self.id, direction: Direction::In });
        cx.esp_spis.remove(&self.spi_in);
    }
}

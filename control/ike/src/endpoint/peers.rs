//! Peers: trying again for ever, telling up from down, and keeping one SA where two came to be.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Endpoint;
use super::openings::Ticket;
use super::timers::Owner;
use crate::diagnosis::{Diagnosis, Fault, Step};
use crate::effect::{DownCause, Effect, Event, IkeSaId, Path, PeerId, TimerKind};
use crate::random::{Random, random_u64};
use crate::sa::contest::Contest;
use crate::sa::exchanges::init::offers;
use crate::sa::{End, IkeSa, Phase, Want};
use crate::settings::{PeerConfig, Role};
use crate::status::{ChildStatus, IkeStatus, PeerState, PeerStatus};
use crate::wire::{ExchangeType, Message, Proposal, ProposalSpi};

/// A peer that stayed up this long is tried again at once.
const STEADY: Duration = Duration::from_secs(10);
/// An IKE SA without a child is kept this long, where it is not for us to make one. A simultaneous rekey has
/// such an SA until it is clear which one inherits.
const EMPTY_FOR: Duration = Duration::from_secs(60);
/// Between two reports of callers for whom there is no peer.
const BETWEEN_STRANGERS: Duration = Duration::from_secs(1);

/// A peer and what is known of it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) config: Arc<PeerConfig>,
    /// Outer addresses: ours, the peer's.
    addresses: (Option<IpAddr>, Option<IpAddr>),
    /// In the order of their making.
    pub(super) sas: Vec<IkeSaId>,
    up_since: Option<Instant>,
    cause: DownCause,
    attempts: u32,
    next_try: Option<Instant>,
    /// It is due and waits for its turn.
    ticket: Option<Ticket>,
    /// The owner was asked for addresses.
    asked: bool,
    last_failure: Option<(Instant, Diagnosis)>,
}

impl Peer {
    fn new(config: Arc<PeerConfig>) -> Self {
        let addresses = (config.local, config.remote);
        Self {
            config,
            addresses,
            sas: Vec::new(),
            up_since: None,
            cause: DownCause::Deleted,
            attempts: 0,
            next_try: None,
            ticket: None,
            asked: false,
            last_failure: None,
        }
    }
}

impl Endpoint {
    /// Adds a peer or changes its configuration. SAs stay where the change allows it.
    pub fn put_peer(&mut self, now: Instant, rng: &mut dyn Random, id: PeerId, config: Arc<PeerConfig>) {
        self.directory.put(id, config.clone());
        match self.peers.get_mut(&id) {
            None => {
                self.peers.insert(id, Peer::new(config));
            }
            Some(peer) => {
                let renegotiate = peer.config.must_renegotiate(&config);
                if renegotiate {
                    peer.addresses = (config.local, config.remote);
                    (peer.attempts, peer.asked) = (0, false);
                }
                peer.config = config.clone();
                for sa in peer.sas.clone() {
                    let config = config.clone();
                    let end = End { cause: DownCause::Deleted, diagnosis: None };
                    self.with_sa(now, rng, sa, |sa, cx| {
                        if renegotiate {
                            sa.delete(cx, end);
                        } else {
                            sa.config = Some(config);
                        }
                    });
                }
            }
        }
        self.refresh_peer(now, rng, id);
    }

    /// Ends a peer's SAs and forgets it.
    pub fn remove_peer(&mut self, now: Instant, rng: &mut dyn Random, id: PeerId) {
        self.directory.remove(id);
        for sa in self.sas_of(id) {
            let end = End { cause: DownCause::Deleted, diagnosis: None };
            self.with_sa(now, rng, sa, |sa, cx| sa.delete(cx, end));
        }
        if let Some(peer) = self.peers.remove(&id) {
            if let Some(ticket) = peer.ticket {
                self.openings.leave(&self.settings, ticket);
            }
            if peer.up_since.is_some() {
                let event = Event::PeerDown { peer: id, cause: DownCause::Deleted };
                self.effects.push_back(Effect::Event(event));
            }
        }
        self.timers.set(Owner::Peer(id), None);
    }

    /// Outer addresses for the next attempt: what [`Event::WantsAddress`] asks for. With MOBIKE an established
    /// SA moves to them (RFC 4555); without, it is made anew.
    pub fn set_addresses(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        id: PeerId,
        local: IpAddr,
        remote: IpAddr,
    ) {
        self.directory.resolved(id, remote);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.addresses = (Some(local), Some(remote));
        if std::mem::take(&mut peer.asked) {
            peer.next_try = Some(now);
        }
        for sa in self.sas_of(id) {
            self.with_sa(now, rng, sa, |sa, cx| {
                let moved = sa.path.local.ip() != local || sa.path.remote.ip() != remote;
                if !moved || !sa.is_established() || !sa.began {
                    return;
                }
                if sa.caps.mobike {
                    let path = Path {
                        local: SocketAddr::new(local, sa.path.local.port()),
                        remote: SocketAddr::new(remote, sa.path.remote.port()),
                    };
                    // What is under way already goes by the new path (RFC 4555 section 3.5).
                    sa.move_to(cx, path);
                    sa.want(cx.now, Want::MoveAddresses(path));
                    sa.hurry(cx);
                } else {
                    sa.delete(cx, End { cause: DownCause::Deleted, diagnosis: None });
                }
            });
        }
        self.refresh_peer(now, rng, id);
    }

    /// Tries a peer now, whatever its backoff, as soon as it is its turn.
    pub fn initiate(&mut self, now: Instant, rng: &mut dyn Random, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.next_try = Some(now);
        }
        self.try_peer(now, rng, id);
    }

    pub(super) fn try_peer(&mut self, now: Instant, rng: &mut dyn Random, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.next_try.is_none_or(|at| at > now) {
            return self.set_peer_timer(id);
        }
        peer.next_try = None;
        let config = peer.config.clone();
        let unknown = peer.addresses.0.is_none() || peer.addresses.1.is_none();
        // A name is resolved again before every attempt; the answer is awaited once.
        if unknown || (config.remote_is_name && !peer.asked && peer.attempts > 0) {
            peer.asked = true;
            peer.attempts = peer.attempts.max(1);
            peer.next_try = Some(now + self.settings.retry_max);
            self.effects.push_back(Effect::Event(Event::WantsAddress { peer: id, local: config.local }));
            return self.set_peer_timer(id);
        }
        peer.asked = config.remote_is_name && peer.asked;
        if let (Some(remote), None) = (peer.addresses.1, peer.ticket) {
            peer.ticket = Some(self.openings.wait(&self.settings, id, remote));
        }
        self.set_peer_timer(id);
        self.open_next(now, rng);
    }

    /// Tries those whose turn it is.
    pub(super) fn open_next(&mut self, now: Instant, rng: &mut dyn Random) {
        // What is opened settles, and comes here again.
        if !self.openings.begin_serving() {
            return;
        }
        while let Some(id) = self.openings.next(&self.settings) {
            self.open(now, rng, id);
        }
        self.openings.end_serving();
    }

    fn open(&mut self, now: Instant, rng: &mut dyn Random, id: PeerId) {
        let contact =
            !self.sas_of(id).iter().any(|sa| self.sas.get(sa).is_some_and(|sa| sa.is_established()));
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.ticket = None;
        let (Some(local), Some(remote)) = peer.addresses else {
            // The configuration changed meanwhile: they are asked for.
            peer.next_try = Some(now);
            return self.set_peer_timer(id);
        };
        peer.attempts = peer.attempts.saturating_add(1);
        let config = peer.config.clone();
        let port = self.settings.port;
        let path = Path { local: SocketAddr::new(local, port), remote: SocketAddr::new(remote, port) };
        let (sa, upcalls) = self.with_cx(now, rng, |cx| IkeSa::connect(cx, id, config, path, contact));
        self.settle(now, rng, Box::new(sa), upcalls);
        self.set_peer_timer(id);
    }

    fn set_peer_timer(&mut self, id: PeerId) {
        let at = self.peers.get(&id).and_then(|peer| peer.next_try);
        self.timers.set(Owner::Peer(id), at.map(|at| (at, TimerKind::Retry)));
    }

    /// Tells whether the peer is up, and sees to it that somebody tries.
    pub(super) fn refresh_peer(&mut self, now: Instant, rng: &mut dyn Random, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let sas: Vec<&IkeSa> = peer.sas.iter().filter_map(|sa| self.sas.get(sa)).map(|sa| &**sa).collect();
        let working = sas.iter().rev().find(|sa| sa.usable_child().is_some());
        match (working, peer.up_since) {
            (Some(sa), None) => {
                let suite = sa.crypt.as_ref().map(|crypt| crypt.keys.suite().to_string());
                let child = sa.usable_child().map(|child| child.terms.suite.to_string());
                let event = Event::PeerUp {
                    peer: id,
                    ike_suite: suite.unwrap_or_default(),
                    esp_suite: child.unwrap_or_default(),
                };
                self.effects.push_back(Effect::Event(event));
                peer.up_since = Some(now);
            }
            (None, Some(since)) => {
                let cause = peer.cause;
                self.effects.push_back(Effect::Event(Event::PeerDown { peer: id, cause }));
                peer.up_since = None;
                if now >= since + STEADY {
                    peer.attempts = 0;
                }
            }
            (Some(_), Some(since)) if now >= since + STEADY => peer.attempts = 0,
            (Some(_), Some(_)) | (None, None) => {}
        }
        let hopeful = sas.iter().any(|sa| match sa.phase {
            Phase::Handshake(_) => sa.initiator,
            Phase::Established => true,
            // On its way out; if a successor exists, it counts itself.
            Phase::Replaced | Phase::Deleting | Phase::Closed { .. } | Phase::Dead => false,
        });
        let is_due = peer.next_try.is_some() || peer.ticket.is_some();
        if peer.config.role == Role::Initiate && !hopeful && !is_due {
            peer.next_try = Some(now + backoff(&self.settings, peer.attempts, rng));
        } else if hopeful && !peer.asked {
            peer.next_try = None;
            if let Some(ticket) = peer.ticket.take() {
                self.openings.leave(&self.settings, ticket);
            }
        }
        self.set_peer_timer(id);
    }

    /// An SA has ended, for a reason that somebody should know.
    pub(super) fn note_end(&mut self, now: Instant, sa: &IkeSa, end: End) {
        let served = sa.peer.is_some_and(|peer| {
            let mut others = self.sas_of(peer).into_iter().filter(|id| *id != sa.id);
            others.any(|id| self.sas.get(&id).is_some_and(|other| other.usable_child().is_some()))
        });
        // One of two was too many: no failure.
        if end.cause == DownCause::PeerDeleted && served {
            return;
        }
        let known = sa.peer.and_then(|peer| self.peers.get_mut(&peer));
        if matches!(end.diagnosis.as_ref().map(|d| (d.by_peer, d.step)), Some((true, Step::Auth))) {
            self.counters.failed_authentication += 1;
        }
        if let Some(peer) = known {
            peer.cause = end.cause;
            if let Some(diagnosis) = &end.diagnosis {
                peer.last_failure = Some((now, diagnosis.clone()));
            }
        }
        if let Some(diagnosis) = end.diagnosis {
            let diagnosis = Box::new(diagnosis);
            let event = Event::Failed { peer: sa.peer, diagnosis, retry_in: None };
            self.effects.push_back(Effect::Event(event));
        }
    }

    /// Nothing of what a known peer offers is accepted here.
    pub(super) fn report_no_proposal(&mut self, path: Path, message: &Message, offered: &[Proposal]) {
        let Some((peer, config)) = self.directory.candidates(path).next() else { return };
        let fault = Fault::NoProposal {
            ours: offers(&config.ike_proposals, ProposalSpi::None),
            peers: offered.to_vec(),
        };
        self.report_refused(Some(peer), path, message, fault);
    }

    /// Somebody calls for whom there is no peer: told once in [`BETWEEN_STRANGERS`], since anybody can do that.
    pub(super) fn report_stranger(&mut self, now: Instant, path: Path, message: &Message) {
        if self.stranger_told.is_some_and(|told| now.saturating_duration_since(told) < BETWEEN_STRANGERS) {
            return;
        }
        self.stranger_told = Some(now);
        self.report_refused(None, path, message, Fault::UnknownPeer { identity: None, wants: None });
    }

    /// The peer's first message came to nothing.
    fn report_refused(&mut self, peer: Option<PeerId>, path: Path, message: &Message, fault: Fault) {
        let diagnosis = Diagnosis {
            step: Step::Init,
            remote: Some(path.remote),
            by_peer: true,
            spi: message.header.initiator_spi,
            fault,
        };
        let event = Event::Failed { peer, diagnosis: Box::new(diagnosis), retry_in: None };
        self.effects.push_back(Effect::Event(event));
    }

    /// A new SA is established: of several with one peer, one stays ([`crate::sa::contest`]).
    pub(super) fn resolve_duplicates(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        new: IkeSaId,
        peer: PeerId,
        initial_contact: bool,
    ) {
        let Some(rival) = self.sas.get(&new).map(|sa| sa.as_rival()) else { return };
        for id in self.sas_of(peer).into_iter().filter(|id| *id != new) {
            let Some(other) = self.sas.get(&id) else { continue };
            match &other.phase {
                // Ours has not got as far as IKE_AUTH: the peer has authenticated nothing of it.
                Phase::Handshake(_) if other.initiator => {
                    if other.current_exchange() != Some(ExchangeType::IkeAuth) {
                        self.with_sa(now, rng, id, |sa, cx| sa.die(cx, None));
                    }
                }
                // RFC 7296 section 2.4: the peer knows nothing of older ones.
                Phase::Established | Phase::Replaced | Phase::Deleting if initial_contact => {
                    let end = End { cause: DownCause::Deleted, diagnosis: None };
                    let mut lingering = Vec::new();
                    self.with_sa(now, rng, id, |sa, cx| {
                        lingering = sa.retire_children(cx);
                        sa.die(cx, Some(end));
                    });
                    // It may have been late: the peer may have sent on them until a moment ago.
                    self.with_sa(now, rng, new, |sa, _| sa.lingering.extend(lingering));
                }
                Phase::Established => self.with_sa(now, rng, id, |sa, cx| sa.contest(cx, rival)),
                Phase::Handshake(_)
                | Phase::Replaced
                | Phase::Deleting
                | Phase::Closed { .. }
                | Phase::Dead => {}
            }
        }
    }

    /// It is known whether the peer has the older of two SAs.
    pub(super) fn settle_contest(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        id: IkeSaId,
        contest: Contest,
        is_alive: bool,
    ) {
        let peer = self.sas.get(&id).and_then(|sa| sa.peer);
        let others = peer.map_or_else(Vec::new, |peer| self.sas_of(peer)).into_iter();
        let line = others
            .filter_map(|other| self.sas.get(&other))
            .filter(|other| other.id != id && other.is_established() && other.first_spis() == contest.rival);
        // With the younger one gone there is nothing to choose; DPD goes on.
        let rival = line.max_by_key(|other| (other.usable_child().is_some(), other.id));
        let Some(rival) = rival.map(|rival| rival.id) else { return };
        let end = End { cause: DownCause::Deleted, diagnosis: None };
        if is_alive {
            let (loser, winner) = if contest.yields { (id, rival) } else { (rival, id) };
            let mut lingering = Vec::new();
            self.with_sa(now, rng, loser, |sa, cx| {
                lingering = sa.retire_children(cx);
                sa.delete(cx, end);
            });
            // What the peer has sent on its children already is still received.
            self.with_sa(now, rng, winner, |sa, _| sa.lingering.extend(lingering));
        } else {
            self.with_sa(now, rng, id, |sa, cx| sa.die(cx, Some(end)));
        }
    }

    /// An established SA without a child.
    pub(super) fn handle_childless(&mut self, now: Instant, rng: &mut dyn Random, id: IkeSaId, peer: PeerId) {
        let others = self.sas_of(peer);
        let served = others
            .iter()
            .filter(|other| **other != id)
            .any(|other| self.sas.get(other).is_some_and(|sa| sa.usable_child().is_some()));
        let initiates = self.peers.get(&peer).is_some_and(|peer| peer.config.role == Role::Initiate);
        self.with_sa(now, rng, id, |sa, cx| {
            let since = sa.childless_since.unwrap_or(cx.now);
            if (served || !initiates) && cx.now >= since + EMPTY_FOR {
                // Left over from a collision, or of no use to the peer.
                sa.delete(cx, End { cause: DownCause::Deleted, diagnosis: None });
            } else if initiates && !served {
                sa.want(cx.now, Want::CreateChild);
                sa.pump(cx);
            }
        });
    }

    /// Where a peer stands.
    pub fn status(&self, now: Instant, id: PeerId) -> Option<PeerStatus> {
        let peer = self.peers.get(&id)?;
        let sas: Vec<&IkeSa> =
            peer.sas.iter().rev().filter_map(|sa| self.sas.get(sa)).map(|sa| &**sa).collect();
        let working = sas.iter().find(|sa| sa.usable_child().is_some());
        let established = working.or_else(|| sas.iter().find(|sa| sa.is_established()));
        let waiting = sas.iter().find_map(|sa| sa.current_exchange());
        // It is its turn any moment.
        let next_try = peer.next_try.or(peer.ticket.map(|_| now));
        let state = match (working.is_some(), sas.is_empty() && next_try.is_none()) {
            (true, _) => PeerState::Up,
            (false, true) => PeerState::Idle,
            (false, false) => PeerState::Connecting,
        };
        let ike = established.and_then(|sa| {
            Some(IkeStatus {
                suite: sa.crypt.as_ref()?.keys.suite().to_string(),
                rekey_in: sa.rekey_at.saturating_duration_since(now),
                initiator: sa.initiator,
                nat_here: sa.nat.here,
                nat_there: sa.nat.there,
            })
        });
        let child = working.and_then(|sa| {
            let child = sa.usable_child()?;
            Some(ChildStatus {
                id: child.id,
                suite: child.terms.suite.to_string(),
                spi_in: child.terms.spi_in,
                spi_out: child.terms.spi_out,
                rekey_in: child.rekey_at.saturating_duration_since(now),
                rekeys: sa.child_rekeys,
                transport: sa.esp_transport().0,
            })
        });
        Some(PeerStatus {
            state,
            path: established.or(sas.first()).map(|sa| sa.path),
            ike,
            child,
            waiting_for: waiting,
            attempts: peer.attempts,
            retry_in: next_try.map(|at| at.saturating_duration_since(now)),
            last_failure: peer.last_failure.clone(),
        })
    }
}

/// The pause before an attempt: none before the first, then doubling, a quarter more or less at random.
fn backoff(settings: &crate::EndpointSettings, attempts: u32, rng: &mut dyn Random) -> Duration {
    if attempts == 0 {
        return Duration::ZERO;
    }
    let factor = 1u32 << (attempts - 1).min(16);
    let pause = settings.retry_first.saturating_mul(factor).min(settings.retry_max);
    let jitter = random_u64(rng) % (u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX) / 2).max(1);
    pause * 3 / 4 + Duration::from_nanos(jitter)
}

//! IKE for all tunnels: one [`Endpoint`], its effects carried out in order.
//!
//! Pure: no socket and no clock. [`Ike::drive`] gives what [`Turn`] is to do and which datagrams leave.
//!
//! Invariants:
//! - Effects are done one after the other: what changes the core is answered by it before anything behind
//!   it is done, so that no datagram invites traffic to an SA that the core does not hold. Only bad news
//!   overtake: a tunnel that is down is masked in the turn in which that is known.
//! - Nothing survives the core but what its stash holds: another core means another endpoint.
//! - Only finite-field Diffie-Hellman leaves the order and the loop ([`Ike::take_computations`]): a responder
//!   computes 2.6 ms for modp2048, 11 for modp4096 and 77 for modp8192, but 0.1 for ecp256, 0.4 for ecp384 and
//!   0.03 more for ML-KEM-768.

mod adopt;
mod peers;
pub mod punt;
mod settings;
pub mod words;

use core::time::Duration;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use braid_api::{
    Direction, Epoch, SaId, SaTraffic, SecretKey, Selectors, Spi, StashValue,
    punt::{NON_ESP_MARKER, PuntIn, PuntOut},
};
use braid_ike::{
    ChildId, ChildSa, Computation, Computed, DownCause, Effect, Endpoint, EndpointSettings, EspTransport,
    Event, Path, PeerConfig, PeerId, PeerStatus, SecretBytes, StashUpdate, TimerKind,
};
use ipnet::IpNet;

use crate::{
    config::{self, core_suite},
    desired::Negotiated,
    turn::{Event as TurnEvent, IkeOp, IkeState, Turn},
};

use adopt::SaNote;

/// Most changes of the core's tables in one transaction.
const MAX_OPS: usize = 64;
/// How long a look at a silent peer may wait for others...
const TOGETHER: Duration = Duration::from_millis(100);
/// ...and the share of the shortest interval between such looks that it may be.
const TOGETHER_SHARE: u32 = 16;
/// Strangers that are remembered.
const MAX_STRANGERS: usize = 8;

/// The system's randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl braid_ike::Random for SystemRandom {
    fn fill(&mut self, out: &mut [u8]) {
        // Without randomness no key may be made. The kernel's source cannot fail once it was read, and the
        // start of control reads it.
        getrandom::fill(out).expect("the system's randomness was there at the start");
    }
}

/// Counts the endpoints of this process: what was computed for one is nothing to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Life(u64);

/// IKE.
#[derive(Debug, Default)]
pub struct Ike {
    /// There is one as long as there is a core whose stash was read.
    endpoint: Option<Endpoint>,
    random: SystemRandom,
    peers: BTreeMap<PeerId, Peer>,
    by_name: BTreeMap<String, PeerId>,
    next_peer: u32,
    queue: VecDeque<Effect>,
    /// Operations that come before the queue.
    first: Vec<IkeOp>,
    waiting: Option<Waiting>,
    /// SAs in the core or on their way there.
    sas: BTreeMap<(ChildId, Way), SaId>,
    notes: BTreeMap<SaId, SaNote>,
    /// Inbound SAs of before that nobody speaks for, and when they go.
    strays: Vec<(Instant, SaId)>,
    /// Pairs of SAs, since the start.
    installed: u64,
    states: BTreeMap<String, IkeState>,
    out: Vec<PuntOut>,
    computations: Vec<Computation>,
    life: Life,
    seen_changes: Option<u64>,
    /// [`TOGETHER`], or less.
    together: Option<Duration>,
    /// Tunnels that were up with the last core, and by which path: their peers do not know yet that it is gone.
    lost: BTreeMap<String, Path>,
    /// The keys of IKE SAs are asked for.
    logs_keys: bool,
    /// Rows for the key log.
    key_log: Vec<SecretBytes>,
    /// Who called and belongs to no tunnel, the last ones.
    strangers: VecDeque<(Instant, braid_ike::Diagnosis)>,
}

/// [`braid_ike::Direction`], ordered.
type Way = braid_ike::Direction;

/// A tunnel.
#[derive(Debug)]
struct Peer {
    name: String,
    /// As it was configured when `config` was made of it.
    tunnel: config::Tunnel,
    config: Arc<PeerConfig>,
    is_up: bool,
    /// Addresses were asked for and not known.
    wants_address: bool,
    given: Option<(std::net::IpAddr, std::net::IpAddr)>,
    /// What failed last, and when.
    last_failure: Option<(Instant, braid_ike::Diagnosis)>,
}

/// A transaction on its way.
#[derive(Debug)]
struct Waiting {
    epoch: Epoch,
    /// The child that it installs.
    child: Option<(PeerId, ChildId)>,
    installed: Vec<(ChildId, Way, SaId)>,
}

/// Time, as the endpoint and as the turn measure it.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For the endpoint.
    pub instant: Instant,
    /// For the turn.
    pub turn: Duration,
}

impl Ike {
    /// Without a core.
    pub fn new() -> Self {
        Ike::default()
    }

    /// Whether [`Ike::take_key_log`] is to have something to give.
    #[must_use]
    pub fn with_key_log(self, logs_keys: bool) -> Self {
        Ike { logs_keys, ..self }
    }

    /// Rows for the key log since the last time, to be written before the datagrams leave.
    pub fn take_key_log(&mut self) -> Vec<SecretBytes> {
        core::mem::take(&mut self.key_log)
    }

    /// Whether any tunnel negotiates, or has a last word to hear.
    pub fn has_peers(&self) -> bool {
        !self.peers.is_empty() || self.endpoint.as_ref().is_some_and(|endpoint| endpoint.ike_sas() > 0)
    }

    /// Pairs of SAs that were handed to the core since the start.
    pub fn installed(&self) -> u64 {
        self.installed
    }

    /// Ends all SAs and tells the peers.
    pub fn close(&mut self, now: Instant) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.close(now, &mut self.random);
        }
    }

    /// Whether every peer knows.
    pub fn is_closed(&self) -> bool {
        self.endpoint.as_ref().is_none_or(Endpoint::is_closed) && self.queue.is_empty()
    }

    /// When [`Ike::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let stray = self.strays.iter().map(|(until, _)| *until).min();
        let Some((at, kind)) = self.endpoint.as_ref().and_then(Endpoint::poll_timeout) else { return stray };
        // Nobody waits for these to the millisecond, and thousands of tunnels have them: those that are due
        // in a row are done together, which wakes every process on their way once.
        let may_wait = matches!(kind, TimerKind::Dpd | TimerKind::Keepalive);
        let at = if may_wait { at + self.together.unwrap_or(TOGETHER) } else { at };
        Some(stray.map_or(at, |stray| stray.min(at)))
    }

    /// What is known of a tunnel.
    pub fn status(&self, tunnel: &str, now: Instant) -> Option<PeerStatus> {
        self.endpoint.as_ref()?.status(now, *self.by_name.get(tunnel)?)
    }

    /// What failed last with a tunnel's peer, whoever began, and when.
    pub fn last_failure(&self, tunnel: &str) -> Option<&(Instant, braid_ike::Diagnosis)> {
        self.peers.get(self.by_name.get(tunnel)?)?.last_failure.as_ref()
    }

    /// What the endpoint has counted.
    pub fn counters(&self) -> Option<&braid_ike::Counters> {
        self.endpoint.as_ref().map(Endpoint::counters)
    }

    /// Failures of those that belong to no tunnel, the last ones.
    pub fn strangers(&self) -> impl Iterator<Item = &(Instant, braid_ike::Diagnosis)> {
        self.strangers.iter()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.drop_due_strays(now);
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.handle_timeout(now, &mut self.random);
        }
    }

    /// A datagram came.
    pub fn handle_datagram(&mut self, received: &PuntIn, now: Instant) {
        if let Some(endpoint) = &mut self.endpoint {
            let path = Path { local: received.local, remote: received.remote };
            endpoint.handle_datagram(now, &mut self.random, path, &received.bytes);
        }
    }

    /// What is to be computed beside the loop.
    pub fn take_computations(&mut self) -> Vec<(Life, Computation)> {
        core::mem::take(&mut self.computations).into_iter().map(|task| (self.life, task)).collect()
    }

    /// It is computed.
    pub fn handle_computed(&mut self, life: Life, computed: Computed, now: Instant) {
        if let (true, Some(endpoint)) = (life == self.life, &mut self.endpoint) {
            endpoint.handle_computed(now, &mut self.random, computed);
        }
    }

    /// The core is gone, and with it all that was negotiated.
    pub fn handle_core_gone(&mut self, now: Instant) {
        let up = self.peers.values().filter(|peer| peer.is_up).filter_map(|peer| {
            let path = self.endpoint.as_ref()?.status(now, *self.by_name.get(&peer.name)?)?.path?;
            Some((peer.name.clone(), path))
        });
        let mut lost: BTreeMap<String, Path> = up.collect();
        lost.extend(core::mem::take(&mut self.lost));
        let (next_peer, logs_keys, life) = (self.next_peer, self.logs_keys, Life(self.life.0 + 1));
        *self = Ike { next_peer, logs_keys, life, lost, ..Ike::default() };
    }

    /// A transaction is in force, or not.
    pub fn handle_answer(&mut self, epoch: Epoch, applied: bool, now: Instant) {
        let Some(waiting) = self.waiting.take_if(|waiting| waiting.epoch == epoch) else { return };
        if applied {
            return;
        }
        for (child, way, id) in waiting.installed {
            self.sas.remove(&(child, way));
            self.notes.remove(&id);
        }
        if let (Some((peer, child)), Some(endpoint)) = (waiting.child, &mut self.endpoint) {
            endpoint.handle_install_failed(now, &mut self.random, peer, child);
        }
    }

    /// An SA's sequence numbers run out soon: its child is rekeyed.
    pub fn handle_sa_lifetime(&mut self, sa: SaId, now: Instant) {
        let Some(note) = self.notes.get(&sa) else { return };
        if let (Some(peer), Some(endpoint)) = (self.by_name.get(&note.tunnel), &mut self.endpoint) {
            endpoint.rekey_child(now, &mut self.random, *peer);
        }
    }

    /// Replaces a tunnel's keys now: those of its IKE SA, or of its child SA.
    ///
    /// # Errors
    /// Why there is nothing to replace.
    pub fn rekey(&mut self, tunnel: &str, ike: bool, now: Instant) -> Result<(), String> {
        let (Some(peer), Some(endpoint)) = (self.by_name.get(tunnel), &mut self.endpoint) else {
            return Err(format!("no tunnel that negotiates keys is named {tunnel:?}"));
        };
        let status = endpoint.status(now, *peer);
        if !status.is_some_and(|status| status.ike.is_some() && (ike || status.child.is_some())) {
            return Err(format!("tunnel {tunnel} has no keys yet"));
        }
        if ike {
            endpoint.rekey_ike(now, &mut self.random, *peer);
        } else {
            endpoint.rekey_child(now, &mut self.random, *peer);
        }
        Ok(())
    }

    /// The core misses the peer: it is asked whether it lives.
    pub fn handle_silence(&mut self, tunnel: &str, now: Instant) {
        if let (Some(peer), Some(endpoint)) = (self.by_name.get(tunnel), &mut self.endpoint) {
            endpoint.probe(now, &mut self.random, *peer);
        }
    }

    /// The core follows the peer to another address.
    pub fn handle_moved(&mut self, tunnel: &str, remote: SocketAddr, now: Instant) {
        if let (Some(peer), Some(endpoint)) = (self.by_name.get(tunnel), &mut self.endpoint) {
            endpoint.handle_esp_moved(now, &mut self.random, *peer, remote);
        }
    }

    /// SAs have carried packets: a sign of life, and a measure of their keys' age.
    pub fn handle_traffic(&mut self, traffic: &[SaTraffic], now: Instant) {
        let Some(endpoint) = &mut self.endpoint else { return };
        for sa in traffic {
            let Some(note) = self.notes.get(&sa.sa) else { continue };
            let Some(peer) = self.by_name.get(&note.tunnel).copied() else { continue };
            if sa.direction == Direction::In {
                let at = now.checked_sub(sa.heard_ago.unwrap_or_default()).unwrap_or(now);
                endpoint.handle_esp_heard(now, &mut self.random, peer, Some(sa.spi.0), at);
            }
            let child = ChildId(note.child);
            endpoint.handle_sa_used(now, &mut self.random, peer, child, sa.bytes, sa.packets);
        }
    }

    /// Does what can be done; the datagrams leave after the turn's effects.
    pub fn drive(&mut self, turn: &mut Turn, now: Now) -> Vec<PuntOut> {
        self.sync_peers(turn, now);
        self.collect(turn, now);
        while self.waiting.is_none() && self.step(turn, now) {
            self.collect(turn, now);
        }
        core::mem::take(&mut self.out)
    }

    /// Takes the endpoint's effects over, and what is bad news at once.
    fn collect(&mut self, turn: &mut Turn, now: Now) {
        while let Some(effect) = self.endpoint.as_mut().and_then(Endpoint::poll_effect) {
            if let Effect::Event(Event::PeerDown { peer, cause }) = &effect {
                let (peer, cause) = (*peer, *cause);
                // It came before.
                self.queue.retain(
                    |effect| !matches!(effect, Effect::Event(Event::PeerUp { peer: up, .. }) if *up == peer),
                );
                self.peer_down(peer, cause);
            } else if let Effect::Compute(computation) = effect {
                self.computations.push(computation);
            } else {
                self.queue.push_back(effect);
            }
        }
        self.tell(turn, now);
    }

    fn tell(&mut self, turn: &mut Turn, now: Now) {
        if !self.states.is_empty() {
            turn.handle(TurnEvent::Ike(core::mem::take(&mut self.states)), now.turn);
        }
    }

    /// Does the next thing; false if there is none.
    fn step(&mut self, turn: &mut Turn, now: Now) -> bool {
        if !self.first.is_empty() {
            let ops = core::mem::take(&mut self.first);
            self.send(turn, ops);
            return true;
        }
        let Some(effect) = self.queue.pop_front() else { return false };
        match effect {
            Effect::Install(first) => self.install(turn, *first, now),
            Effect::Remove { .. } | Effect::Stash(_) | Effect::ForgetStash(_) => self.change(turn, effect),
            Effect::Transmit { path, bytes, non_esp_marker, stash } => {
                let bytes = if non_esp_marker { [&NON_ESP_MARKER[..], &bytes].concat() } else { bytes };
                let stash = stash.map(|update| (update.key, stash_value(update)));
                self.out.push(PuntOut { local: path.local, remote: path.remote, bytes, stash });
            }
            // Taken already.
            Effect::Compute(computation) => self.computations.push(computation),
            Effect::KeyLog(row) => self.key_log.push(row),
            Effect::Event(event) => self.handle_event(turn, event, now),
        }
        true
    }

    /// Both halves of a child go in one transaction, if both are there.
    fn install(&mut self, turn: &mut Turn, first: ChildSa, now: Now) {
        let (peer, child) = (first.peer, first.id);
        let mut halves = vec![first];
        while matches!(self.queue.front(), Some(Effect::Install(next)) if next.id == child)
            && let Some(Effect::Install(next)) = self.queue.pop_front()
        {
            halves.push(*next);
        }
        let ways: Vec<Way> = halves.iter().map(|half| half.direction).collect();
        let ops: Option<Vec<(IkeOp, SaNote)>> =
            halves.into_iter().map(|half| self.install_op(half)).collect();
        let is_held = self.peers.get(&peer).is_some_and(|peer| turn.holds_tunnel(&peer.name));
        let stash = if is_held { self.take_stash_behind() } else { None };
        let carried = ops.and_then(|ops| {
            let (mut ops, notes): (Vec<_>, Vec<_>) = ops.into_iter().unzip();
            ops.extend(stash);
            Some((turn.carry(ops).ok()??, notes))
        });
        let Some((carried, notes)) = carried else {
            if let Some(endpoint) = &mut self.endpoint {
                endpoint.handle_install_failed(now.instant, &mut self.random, peer, child);
            }
            return;
        };
        let mut installed = Vec::new();
        for ((way, note), id) in ways.into_iter().zip(notes).zip(carried.installed) {
            self.sas.insert((child, way), id);
            self.notes.insert(id, note);
            installed.push((child, way, id));
        }
        self.installed += 1;
        self.waiting = Some(Waiting { epoch: carried.epoch, child: Some((peer, child)), installed });
    }

    /// The value that tells of what was just done goes into force with it: whoever comes after us must not find
    /// SAs in the core that the stash does not speak of. Events in between change nothing.
    fn take_stash_behind(&mut self) -> Option<IkeOp> {
        let at =
            self.queue.iter().position(|effect| !matches!(effect, Effect::Event(_) | Effect::KeyLog(_)))?;
        self.queue.get(at).filter(|effect| matches!(effect, Effect::Stash(_)))?;
        match self.queue.remove(at)? {
            Effect::Stash(update) => Some(IkeOp::Stash(update.key, stash_value(update))),
            _ => None,
        }
    }

    fn install_op(&self, sa: ChildSa) -> Option<(IkeOp, SaNote)> {
        let peer = self.peers.get(&sa.peer)?;
        let suite = core_suite(sa.suite.cipher, sa.suite.integrity)?;
        let negotiated = path_of(sa.path, sa.transport, suite);
        let note = SaNote {
            child: sa.id.0,
            inbound: sa.direction == Way::In,
            tunnel: peer.name.clone(),
            negotiated,
        };
        let op = IkeOp::Install {
            tunnel: peer.name.clone(),
            negotiated,
            direction: match sa.direction {
                Way::In => Direction::In,
                Way::Out => Direction::Out,
            },
            spi: Spi(sa.spi),
            suite,
            key: SecretKey::new(core::mem::take(&mut *sa.key.into_zeroizing())),
            esn: sa.esn,
            replay_window: peer.tunnel.ike()?.replay_window,
            selectors: Selectors { local: any_is_none(sa.local), remote: any_is_none(sa.remote) },
            note: note.value()?,
        };
        Some((op, note))
    }

    /// What needs no key goes together.
    fn change(&mut self, turn: &mut Turn, first: Effect) {
        let mut ops = Vec::new();
        let mut next = Some(first);
        while let Some(effect) = next.take() {
            match effect {
                Effect::Remove { id, direction, .. } => {
                    if let Some(sa) = self.sas.remove(&(id, direction)) {
                        self.notes.remove(&sa);
                        ops.push(IkeOp::Remove(sa));
                    }
                }
                Effect::Stash(update) => ops.push(IkeOp::Stash(update.key, stash_value(update))),
                Effect::ForgetStash(key) => ops.push(IkeOp::Forget(key)),
                other @ (Effect::Install(_)
                | Effect::Transmit { .. }
                | Effect::Compute(_)
                | Effect::KeyLog(_)
                | Effect::Event(_)) => {
                    self.queue.push_front(other);
                    break;
                }
            }
            if ops.len() < MAX_OPS {
                next = self.queue.pop_front();
            }
        }
        self.send(turn, ops);
    }

    fn send(&mut self, turn: &mut Turn, ops: Vec<IkeOp>) {
        // A tunnel that the core does not hold has nothing to be changed.
        if let Ok(Some(carried)) = turn.carry(ops) {
            self.waiting = Some(Waiting { epoch: carried.epoch, child: None, installed: Vec::new() });
        }
    }

    fn handle_event(&mut self, turn: &mut Turn, event: Event, now: Now) {
        match event {
            Event::PeerUp { peer, ike_suite, esp_suite } => {
                let Some(peer) = self.peers.get_mut(&peer) else { return };
                peer.is_up = true;
                tracing::info!("tunnel {}: IKE is up: {ike_suite}, ESP {esp_suite}", peer.name);
                self.states.insert(peer.name.clone(), IkeState::Up);
                self.tell(turn, now);
            }
            Event::PeerDown { peer, cause } => self.peer_down(peer, cause),
            Event::EndpointMoved { peer, path, transport } => self.move_to(turn, peer, path, transport),
            Event::WantsAddress { peer, .. } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.wants_address = true;
                }
                self.give_addresses(turn, peer, now.instant);
            }
            Event::Failed { peer, diagnosis, .. } => {
                let reason = words::reason(&diagnosis);
                let Some(peer) = peer.and_then(|peer| self.peers.get_mut(&peer)) else {
                    tracing::info!("IKE: {reason}");
                    // The last word of each address, so that none drives out the others.
                    let from = |diagnosis: &braid_ike::Diagnosis| diagnosis.remote.map(|remote| remote.ip());
                    self.strangers.retain(|(_, before)| from(before) != from(&diagnosis));
                    if self.strangers.len() >= MAX_STRANGERS {
                        self.strangers.pop_front();
                    }
                    self.strangers.push_back((now.instant, *diagnosis));
                    return;
                };
                tracing::warn!("tunnel {}: {reason}", peer.name);
                let same_sa = peer.last_failure.as_ref().is_some_and(|(_, last)| last.spi == diagnosis.spi);
                if same_sa && matches!(diagnosis.fault, braid_ike::Fault::PeerDeleted { .. }) {
                    return; // the peer's answer to what failed before
                }
                peer.last_failure = Some((now.instant, *diagnosis));
                if !peer.is_up {
                    self.states.insert(peer.name.clone(), IkeState::Failed { cause: "ike", reason });
                    self.tell(turn, now);
                }
            }
            Event::ChildUp { peer, spi_in, spi_out, .. } => {
                if let Some(peer) = self.peers.get(&peer) {
                    let (spi_in, spi_out) = (Spi(spi_in), Spi(spi_out));
                    tracing::info!("tunnel {}: SAs {spi_in} in, {spi_out} out", peer.name);
                }
            }
            Event::ChildRekeyed { peer, .. } => self.log(peer, "its SAs were rekeyed"),
            Event::IkeRekeyed { peer } => self.log(peer, "its IKE SA was rekeyed"),
            Event::ChildDown { .. } => {}
        }
    }

    fn log(&self, peer: PeerId, what: &str) {
        if let Some(peer) = self.peers.get(&peer) {
            tracing::info!("tunnel {}: {what}", peer.name);
        }
    }

    fn peer_down(&mut self, id: PeerId, cause: DownCause) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.is_up = false;
        let (cause, reason) = words::down(cause);
        self.states.insert(peer.name.clone(), IkeState::Failed { cause, reason: reason.to_owned() });
    }

    /// The tunnel in the core follows, and so do the notes of its SAs.
    fn move_to(&mut self, turn: &mut Turn, id: PeerId, path: Path, transport: EspTransport) {
        let Some(peer) = self.peers.get(&id) else { return };
        let mut ops = Vec::new();
        for (sa, note) in self.notes.iter_mut().filter(|(_, note)| note.tunnel == peer.name) {
            note.negotiated = path_of(path, transport, note.negotiated.suite);
            ops.push(IkeOp::Move { tunnel: peer.name.clone(), negotiated: note.negotiated });
            ops.extend(note.value().map(|value| IkeOp::Note(*sa, value)));
        }
        self.send(turn, ops);
    }
}

fn path_of(path: Path, transport: EspTransport, suite: braid_api::Suite) -> Negotiated {
    let (local, remote, encapsulation) = match transport {
        EspTransport::Udp { .. } => (path.local, path.remote, braid_api::Encapsulation::Udp),
        EspTransport::Esp => {
            let bare = |address: SocketAddr| SocketAddr::new(address.ip(), 0);
            (bare(path.local), bare(path.remote), braid_api::Encapsulation::Esp)
        }
    };
    let keepalive = transport == EspTransport::Udp { keepalive: true };
    Negotiated { local, remote, encapsulation, keepalive, suite }
}

fn stash_value(update: StashUpdate) -> StashValue {
    StashValue(core::mem::take(&mut *update.value.into_zeroizing()))
}

/// Selectors that let every address pass need not be looked at for every packet.
fn any_is_none(nets: Vec<IpNet>) -> Vec<IpNet> {
    let any = |v4: bool| nets.iter().any(|net| net.addr().is_ipv4() == v4 && net.prefix_len() == 0);
    if any(true) && any(false) { Vec::new() } else { nets }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nat_before_us_asks_for_keepalives() {
        let path = Path { local: ([192, 0, 2, 1], 4500).into(), remote: ([192, 0, 2, 2], 4500).into() };
        let of = |transport| path_of(path, transport, braid_api::Suite::Aes128Gcm16);
        assert!(of(EspTransport::Udp { keepalive: true }).keepalive);
        assert!(!of(EspTransport::Udp { keepalive: false }).keepalive);
        let bare = of(EspTransport::Esp);
        assert_eq!((bare.keepalive, bare.local.port(), bare.remote.port()), (false, 0, 0));
    }
}

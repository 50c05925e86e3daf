//! All peers and IKE SAs of one gateway: who gets which datagram, who is tried when, what of two SAs with one
//! peer stays.
//!
//! One mutation, then drain: after each call that changes something the owner takes all effects by
//! [`Endpoint::poll_effect`] and asks [`Endpoint::poll_timeout`] anew.
//!
//! Invariants: an SA is found by its SPI and by nothing else; half-open SAs are bounded, and above a threshold
//! cost the caller a round trip first (cookies); what nobody vouches for is answered at most once and with
//! fewer octets than it had, or with IKE_SA_INIT's own answer.

pub(crate) mod computations;
pub(crate) mod cookies;
pub(crate) mod directory;
mod inbound;
pub(crate) mod openings;
mod peers;
pub(crate) mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::crypto::Computed;
use crate::crypto::beside::Made;
use crate::effect::{ChildId, DownCause, Effect, Event, HeldChild, IkeSaId, PeerId, TimerKind};
use crate::random::Random;
use crate::sa::stash::AdoptError;
use crate::sa::{Bequest, Cx, End, Ids, IkeSa, Phase, Upcall, Want};
use crate::secret::SecretBytes;
use crate::settings::EndpointSettings;
use crate::status::Counters;
use crate::wire::IkeSpi;
use computations::{Asker, Computations, First, FirstKey};
use cookies::Cookies;
use directory::Directory;
use openings::Openings;
use peers::Peer;
use timers::{Owner, Timers};

/// IKEv2 for one gateway.
#[derive(Debug)]
pub struct Endpoint {
    settings: EndpointSettings,
    peers: BTreeMap<PeerId, Peer>,
    directory: Directory,
    sas: BTreeMap<IkeSaId, Box<IkeSa>>,
    by_spi: BTreeMap<IkeSpi, IkeSaId>,
    /// SAs of others' making that are not authenticated, by the initiator's SPI and address.
    half_open: BTreeMap<(IkeSpi, SocketAddr), IkeSaId>,
    /// First requests of others whose answer is being computed.
    firsts: BTreeMap<FirstKey, First>,
    computations: Computations,
    esp_spis: BTreeSet<u32>,
    timers: Timers,
    openings: Openings,
    effects: VecDeque<Effect>,
    cookies: Cookies,
    ids: Ids,
    counters: Counters,
    /// What the wall clock showed, and when.
    wall: (Instant, Duration),
    is_closing: bool,
    /// When a call for which there is no peer was told of last.
    stranger_told: Option<Instant>,
}

/// An IKE SA of an earlier life, at work again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Adopted {
    /// Whose.
    pub peer: PeerId,
    /// The SA; its stash value keeps its key.
    pub ike: IkeSaId,
    /// Its children whose SAs stay in the core as they are. Those of other children are to be taken out: the
    /// endpoint speaks of them no more.
    pub children: Vec<ChildId>,
}

impl Endpoint {
    /// Without peers. `unix_time` is the wall clock at `now`, since 1970: certificates are checked by it.
    pub fn new(now: Instant, unix_time: Duration, settings: EndpointSettings, rng: &mut dyn Random) -> Self {
        Self {
            settings,
            peers: BTreeMap::new(),
            directory: Directory::default(),
            sas: BTreeMap::new(),
            by_spi: BTreeMap::new(),
            half_open: BTreeMap::new(),
            firsts: BTreeMap::new(),
            computations: Computations::default(),
            esp_spis: BTreeSet::new(),
            timers: Timers::default(),
            openings: Openings::default(),
            effects: VecDeque::new(),
            cookies: Cookies::new(rng),
            ids: Ids::default(),
            counters: Counters::default(),
            wall: (now, unix_time),
            is_closing: false,
            stranger_told: None,
        }
    }

    /// The next thing to be done, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Endpoint::handle_timeout`] is due, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, TimerKind)> {
        self.timers.next()
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// IKE SAs of others' making that are not authenticated.
    pub fn half_open(&self) -> usize {
        self.half_open.len() + self.firsts.len()
    }

    /// IKE SAs of any kind.
    pub fn ike_sas(&self) -> usize {
        self.sas.len()
    }

    /// The wall clock was set.
    pub fn set_wall_clock(&mut self, now: Instant, unix_time: Duration) {
        self.wall = (now, unix_time);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, rng: &mut dyn Random) {
        // Each owner once: what is due again at once waits for the next call.
        let due: Vec<Owner> = std::iter::from_fn(|| self.timers.pop(now)).collect();
        for owner in due {
            match owner {
                Owner::Sa(id) => self.with_sa(now, rng, id, |sa, cx| sa.handle_timeout(cx)),
                Owner::Peer(id) => self.try_peer(now, rng, id),
            }
        }
    }

    /// A computation that [`Effect::Compute`] asked for is done. One that nobody awaits any more changes nothing.
    pub fn handle_computed(&mut self, now: Instant, rng: &mut dyn Random, computed: Computed) {
        let Computed { id, made } = computed;
        match self.computations.done(id) {
            Some(Asker::Sa(sa) | Asker::HalfOpen(sa, _)) => {
                let is_awaited = self.sas.get(&sa).is_some_and(|sa| sa.aside.awaits(id));
                if let Some(mut sa) = is_awaited.then(|| self.sas.remove(&sa)).flatten() {
                    let ((), upcalls) = self.with_made(now, rng, Some(made), |cx| sa.computed(cx, id));
                    self.settle(now, rng, sa, upcalls);
                }
            }
            Some(Asker::First(key)) => self.answer_first(now, rng, key, made),
            None => {}
        }
        self.compute();
    }

    /// Hands out what is to be computed, as much as may be at one time.
    fn compute(&mut self) {
        let Self { computations, sas, firsts, settings, effects, .. } = self;
        let is_awaited = |asker, id| match asker {
            Asker::Sa(sa) | Asker::HalfOpen(sa, _) => sas.get(&sa).is_some_and(|sa| sa.aside.awaits(id)),
            Asker::First(key) => firsts.contains_key(&key),
        };
        while let Some(computation) = computations.next(settings, is_awaited) {
            effects.push_back(Effect::Compute(computation));
        }
    }

    /// A child could not be installed: it is deleted at the peer, and another one made.
    pub fn handle_install_failed(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        peer: PeerId,
        child: ChildId,
    ) {
        for id in self.sas_of(peer) {
            self.with_sa(now, rng, id, |sa, cx| sa.install_failed(cx, child));
        }
    }

    /// Authenticated ESP came from the peer at `at`, on the inbound SA with this SPI where it is known: a sign
    /// of life, and the sign that a rekeyed child may be used for sending.
    pub fn handle_esp_heard(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        peer: PeerId,
        spi_in: Option<u32>,
        at: Instant,
    ) {
        for id in self.sas_of(peer) {
            self.with_sa(now, rng, id, |sa, cx| sa.esp_heard(cx, spi_in, at));
        }
    }

    /// Authenticated ESP of the peer comes from another address; the core follows it already.
    pub fn handle_esp_moved(&mut self, now: Instant, rng: &mut dyn Random, peer: PeerId, remote: SocketAddr) {
        for id in self.sas_of(peer) {
            self.with_sa(now, rng, id, |sa, _| sa.esp_moved(remote));
        }
    }

    /// How much a child has carried since it was installed, in the busier direction.
    pub fn handle_sa_used(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        peer: PeerId,
        child: ChildId,
        bytes: u64,
        packets: u64,
    ) {
        for id in self.sas_of(peer) {
            self.with_sa(now, rng, id, |sa, cx| sa.child_used(cx, child, bytes, packets));
        }
    }

    /// Rekeys the peer's IKE SA now.
    pub fn rekey_ike(&mut self, now: Instant, rng: &mut dyn Random, peer: PeerId) {
        self.want_of(now, rng, peer, |_| Some(Want::RekeyIke));
    }

    /// Rekeys the peer's child SA now.
    pub fn rekey_child(&mut self, now: Instant, rng: &mut dyn Random, peer: PeerId) {
        for id in self.sas_of(peer) {
            self.with_sa(now, rng, id, |sa, cx| {
                if let Some(child) = sa.usable_child().map(|child| child.id) {
                    sa.want_child_rekey(cx.now, child);
                    sa.pump(cx);
                }
            });
        }
    }

    /// Deletes the peer's child SA now; the side that initiates makes another.
    pub fn delete_child(&mut self, now: Instant, rng: &mut dyn Random, peer: PeerId) {
        self.want_of(now, rng, peer, |sa| sa.usable_child().map(|child| Want::DeleteChild(child.id)));
    }

    /// Asks the peer now whether it lives.
    pub fn probe(&mut self, now: Instant, rng: &mut dyn Random, peer: PeerId) {
        self.want_of(now, rng, peer, |_| Some(Want::Probe));
    }

    /// Ends the peer's SAs; with role `Initiate` they are made anew.
    pub fn reset_peer(&mut self, now: Instant, rng: &mut dyn Random, peer: PeerId) {
        for id in self.sas_of(peer) {
            let end = End { cause: DownCause::Deleted, diagnosis: None };
            self.with_sa(now, rng, id, |sa, cx| sa.delete(cx, end));
        }
        self.refresh_peer(now, rng, peer);
    }

    /// Ends all SAs and tells the peers, as far as [`Endpoint::is_closed`] is waited for. Nobody is tried or
    /// answered any more.
    pub fn close(&mut self, now: Instant, rng: &mut dyn Random) {
        self.is_closing = true;
        self.firsts.clear();
        // Nobody waits long for the answers.
        self.settings.retransmit_first = self.settings.retransmit_first.min(CLOSING_RETRANSMIT);
        self.settings.retransmit_max = self.settings.retransmit_max.min(CLOSING_RETRANSMIT);
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.remove_peer(now, rng, peer);
        }
        // The Delete waits for the answer to what is under way.
        let waiting = self.sas.values().filter(|sa| matches!(sa.phase, Phase::Replaced)).map(|sa| sa.id);
        for id in waiting.collect::<Vec<_>>() {
            self.with_sa(now, rng, id, |sa, cx| sa.hurry(cx));
        }
    }

    /// Whether every peer has acknowledged the end of its SAs, or was given up.
    pub fn is_closed(&self) -> bool {
        let ends = |sa: &IkeSa| matches!(sa.phase, Phase::Established | Phase::Replaced | Phase::Deleting);
        self.is_closing && !self.sas.values().any(|sa| ends(sa))
    }

    /// The state of the peer's established IKE SA, for the stash; holds keys.
    pub fn export(&self, now: Instant, peer: PeerId) -> Option<SecretBytes> {
        let peer = self.peers.get(&peer)?;
        let sas = peer.sas.iter().rev().filter_map(|id| self.sas.get(id));
        sas.filter(|sa| sa.is_established()).find_map(|sa| sa.export(now))
    }

    /// Takes an IKE SA over from an earlier life. `generation` is the core's for this adoption and has never
    /// been used before: it keeps the nonces of both lives apart. `held` tells what the core holds of a child:
    /// nothing where the inbound half is missing, and then it is deleted at the peer. One that lacks only its
    /// outbound half, whose key is lost, is received on until another has taken its place. All values are
    /// adopted, the highest key first, before anything else is done: so no number is given out twice, and of two
    /// IKE SAs that both claim a child the heir has it.
    ///
    /// # Errors
    /// The value is of another layout, or its peer is not configured: then the SA is lost, and another is made.
    pub fn adopt(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        value: &[u8],
        generation: u32,
        held: &dyn Fn(ChildId) -> Option<HeldChild>,
    ) -> Result<Adopted, AdoptError> {
        let (sa, upcalls) = self.with_cx(now, rng, |cx| IkeSa::import(cx, value, generation, held));
        let sa = sa?;
        if self.by_spi.contains_key(&sa.our_spi()) || self.sas.contains_key(&sa.id) {
            return Err(AdoptError::Duplicate);
        }
        self.ids.ike = self.ids.ike.max(sa.id.0);
        let peer = sa.peer.ok_or(AdoptError::UnknownPeer)?;
        let children = sa.children.iter().filter(|child| child.in_installed).map(|child| child.id).collect();
        let adopted = Adopted { peer, ike: sa.id, children };
        let works = |sa: &IkeSa| sa.is_established() && sa.usable_child().is_some();
        // What the earlier life was about to find out. The younger one was adopted before.
        let younger = self.sas_of(peer).into_iter().filter_map(|id| self.sas.get(&id)).find(|sa| works(sa));
        let rival = younger.filter(|_| works(&sa)).map(|younger| younger.as_rival());
        let id = sa.id;
        self.settle(now, rng, Box::new(sa), upcalls);
        if let Some(rival) = rival {
            self.with_sa(now, rng, id, |sa, cx| sa.contest(cx, rival));
        }
        Ok(adopted)
    }

    /// Numbers of children that an earlier life gave out stay taken: those of SAs that the core still holds.
    pub fn reserve_child_ids(&mut self, highest: ChildId) {
        self.ids.child = self.ids.child.max(highest.0);
    }

    fn want_of(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        peer: PeerId,
        want: impl Fn(&IkeSa) -> Option<Want>,
    ) {
        for id in self.sas_of(peer) {
            self.with_sa(now, rng, id, |sa, cx| {
                if let Some(want) = want(sa).filter(|_| sa.is_established()) {
                    sa.want(cx.now, want);
                    sa.pump(cx);
                }
            });
        }
    }

    fn sas_of(&self, peer: PeerId) -> Vec<IkeSaId> {
        self.peers.get(&peer).map_or_else(Vec::new, |peer| peer.sas.clone())
    }

    fn unix_time(&self, now: Instant) -> Duration {
        self.wall.1 + now.saturating_duration_since(self.wall.0)
    }

    /// Runs `act` with everything an SA may use.
    fn with_cx<T>(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        act: impl FnOnce(&mut Cx<'_>) -> T,
    ) -> (T, Vec<Upcall>) {
        self.with_made(now, rng, None, act)
    }

    /// The same, with what was computed.
    fn with_made<T>(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        made: Option<Made>,
        act: impl FnOnce(&mut Cx<'_>) -> T,
    ) -> (T, Vec<Upcall>) {
        let unix_time = self.unix_time(now);
        let mut upcalls = Vec::new();
        let mut cx = Cx {
            now,
            unix_time,
            rng,
            settings: &self.settings,
            effects: &mut self.effects,
            esp_spis: &mut self.esp_spis,
            ids: &mut self.ids,
            upcalls: &mut upcalls,
            directory: &self.directory,
            counters: &mut self.counters,
            computations: &mut self.computations,
            made,
        };
        let out = act(&mut cx);
        (out, upcalls)
    }

    /// Runs `act` on an SA and follows up what came of it.
    fn with_sa(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        id: IkeSaId,
        act: impl FnOnce(&mut IkeSa, &mut Cx<'_>),
    ) {
        let Some(mut sa) = self.sas.remove(&id) else { return };
        let ((), upcalls) = self.with_cx(now, rng, |cx| act(&mut sa, cx));
        self.settle(now, rng, sa, upcalls);
    }

    /// Puts an SA back, or forgets it, and does what it asks of the endpoint.
    fn settle(&mut self, now: Instant, rng: &mut dyn Random, mut sa: Box<IkeSa>, upcalls: Vec<Upcall>) {
        let (id, peer) = (sa.id, sa.peer);
        self.openings.note(&self.settings, id, sa.path.remote.ip(), sa.opening());
        if let Some(end) = sa.end.take_if(|_| !matches!(sa.phase, Phase::Handshake(_))) {
            self.note_end(now, &sa, end);
        }
        if sa.is_dead() {
            self.forget(&sa);
        } else {
            self.keep(sa);
        }
        for upcall in upcalls {
            match upcall {
                Upcall::New(new) => self.settle(now, rng, new, Vec::new()),
                Upcall::Bequest(bequest) => self.hand_over(now, rng, *bequest),
                Upcall::Established { sa, peer, initial_contact } => {
                    self.resolve_duplicates(now, rng, sa, peer, initial_contact);
                }
                Upcall::Release(heir) => self.with_sa(now, rng, heir, |sa, cx| {
                    sa.held_until = None;
                    sa.pump(cx);
                }),
                Upcall::Contested { sa, contest, is_alive } => {
                    self.settle_contest(now, rng, sa, contest, is_alive);
                }
                Upcall::Childless { sa, peer } => self.handle_childless(now, rng, sa, peer),
            }
        }
        if let Some(peer) = peer {
            self.refresh_peer(now, rng, peer);
        }
        self.set_sa_timer(id);
        self.open_next(now, rng);
        self.compute();
    }

    fn keep(&mut self, sa: Box<IkeSa>) {
        let half_open = (sa.spi_i, sa.path.remote);
        if sa.is_handshake() && !sa.initiator {
            // Once, by the address of the first request, wherever the peer floats to.
            if !self.by_spi.contains_key(&sa.our_spi()) {
                self.half_open.insert(half_open, sa.id);
            }
        } else if !sa.initiator && !matches!(sa.phase, Phase::Closed { .. }) {
            // One that failed to authenticate still counts while it is kept for its last answer.
            // A port may have floated since, so the index is searched by SPI.
            let range = (sa.spi_i, LOWEST_ADDRESS)..;
            let stale: Vec<_> = self
                .half_open
                .range(range)
                .take_while(|((spi, _), _)| *spi == sa.spi_i)
                .filter(|(_, id)| **id == sa.id)
                .map(|(key, _)| *key)
                .collect();
            for key in stale {
                self.half_open.remove(&key);
            }
        }
        self.by_spi.insert(sa.our_spi(), sa.id);
        if let Some(peer) = sa.peer.and_then(|peer| self.peers.get_mut(&peer))
            && !peer.sas.contains(&sa.id)
        {
            peer.sas.push(sa.id);
        }
        self.sas.insert(sa.id, sa);
    }

    fn forget(&mut self, sa: &IkeSa) {
        self.half_open.retain(|_, id| *id != sa.id);
        self.by_spi.remove(&sa.our_spi());
        self.timers.set(Owner::Sa(sa.id), None);
        if let Some(peer) = sa.peer.and_then(|peer| self.peers.get_mut(&peer)) {
            peer.sas.retain(|id| *id != sa.id);
        }
        if sa.crypt.is_some() && sa.peer.is_some() {
            self.effects.push_back(Effect::ForgetStash(sa.id.0));
        }
    }

    fn set_sa_timer(&mut self, id: IkeSaId) {
        let deadline = self.sas.get(&id).and_then(|sa| sa.deadline(&self.settings));
        self.timers.set(Owner::Sa(id), deadline);
    }

    /// An SA, or what it was rekeyed into, if that is established.
    fn living(&self, id: IkeSaId) -> Option<IkeSaId> {
        let line = std::iter::successors(Some(id), |id| self.sas.get(id).and_then(|sa| sa.heir));
        line.take(8).find(|id| self.sas.get(id).is_some_and(|sa| sa.is_established()))
    }

    /// Gives children to the SA that inherits them; without it, they end.
    fn hand_over(&mut self, now: Instant, rng: &mut dyn Random, bequest: Bequest) {
        let Bequest { to, peer, children, lingering, queue, child_rekeys, contest } = bequest;
        let lives = |id: &IkeSaId| self.sas.get(id).is_some_and(|sa| sa.is_established());
        let others = self.sas_of(peer);
        let living = self.living(to).or_else(|| others.into_iter().rev().find(lives));
        let heir = living.and_then(|id| self.sas.remove(&id));
        let Some(mut heir) = heir else {
            let ((), _) = self.with_cx(now, rng, |cx| {
                for child in children {
                    child.end(cx, peer, Duration::ZERO);
                }
                lingering.into_iter().for_each(|old| old.remove(cx, peer));
            });
            return;
        };
        heir.children.extend(children);
        heir.lingering.extend(lingering);
        queue.into_iter().for_each(|(due, want)| heir.want(due, want));
        heir.child_rekeys += child_rekeys;
        heir.held_until = None;
        heir.take_contest(now, contest);
        heir.drop_twins(now);
        heir.note_children(now);
        self.effects.extend(heir.stash_update(now).map(Effect::Stash));
        self.effects.push_back(Effect::Event(Event::IkeRekeyed { peer }));
        self.settle(now, rng, heir, Vec::new());
    }
}

/// Retransmission of the last Deletes.
const CLOSING_RETRANSMIT: Duration = Duration::from_millis(80);
const LOWEST_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

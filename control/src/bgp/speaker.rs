//! One BGP speaker without I/O: carries events from sessions to the tables, and what these yield back to
//! sessions and on to whoever forwards.
//!
//! Invariants:
//! - A session in a tunnel runs only while the tunnel is offered to traffic, or its own silence is all that speaks
//!   against that; one on a link only while that is up, one with BFD only while that does not say that the path is
//!   down: what goes down takes its neighbor and its routes with it, without graceful restart.
//! - Work is done in portions ([`Speaker::work`]), so that a table of any size lets others get in between.
//! - After a restart nothing is chosen, and no End-of-RIB is sent, before the neighbors of the life before have
//!   said all, or until a deadline (RFC 4724 section 4.1).

mod next_hops;
mod paths;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use braid_bgp::{
    Cause, ConnectionId, Effect, Event, Family, Neighbor, NeighborConfig, SessionState,
    adj_out::{AdjOut, LEAVING_MED},
    rib::{Change, Chosen, MAX_PATHS, NeighborId, Notice, Rib},
};
use bytes::Bytes;

use next_hops::{Failed, Named};

use super::{
    aws,
    net::Unreached,
    reach::Reach,
    settings::{self, Endpoint, Settings},
};
use crate::{
    config::{self, BfdTiming, Bgp, Config, Place},
    turn::LearnedRoute,
};

/// Prefixes decided in one portion.
const DECIDED: usize = 2048;
/// Prefixes told to one neighbor in one portion.
const TOLD: usize = 2048;
/// How long those who had sessions may take to say all after a restart of ours.
const DEFERRAL: Duration = Duration::from_secs(60);
/// Of routes told in a tunnel that stands behind others: worse than any by priority, and better than one that goes.
const YIELDING_MED: u32 = LEAVING_MED - 1;
/// A neighbor that sent too much is left alone for so long.
const TOO_MANY_PAUSE: Duration = Duration::from_secs(300);

/// What is to be done on a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// Connect.
    Connect(NeighborId, ConnectionId),
    /// Send.
    Transmit(NeighborId, ConnectionId, Bytes),
    /// Close, once what was sent has left.
    Close(NeighborId, ConnectionId),
}

/// Something for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Said {
    pub(super) warning: bool,
    pub(super) line: String,
}

/// A neighbor.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) endpoint: Endpoint,
    pub(super) session: Neighbor,
    pub(super) out: AdjOut,
    session_config: NeighborConfig,
    local_pref: u32,
    external: bool,
    /// As configured.
    med: Option<u32>,
    /// As agreed for the last session.
    hold_time: Duration,
    /// Our address towards a neighbor outside the tunnels, once connected.
    local: Option<IpAddr>,
    bfd: Option<BfdTiming>,
    /// Our end of its BFD session, which stays where no better is known.
    bfd_local: Option<IpAddr>,
    /// Families whose End-of-RIB is owed.
    owed: BTreeSet<Family>,
    last_failure: Option<Cause>,
    /// An attempt to connect is under way.
    connecting: Option<ConnectionId>,
    /// The last attempt to connect came to nothing.
    pub(super) unreached: Option<Unreached>,
    /// Why the last OPEN, or the last session, was refused; not overwritten by connections that break after it.
    pub(super) refusal: Option<Cause>,
    /// Types of the malformed attributes that the log has heard of in this session.
    malformed: BTreeSet<u8>,
    /// The next hops that it has named.
    named: Named,
    /// It is configured how many routes it takes.
    is_limited: bool,
    /// The limit of AWS's of which the log has heard in this session.
    warned_of: Option<u32>,
}

/// The speaker.
pub(super) struct Speaker {
    asn: u32,
    router_id: Ipv4Addr,
    pub(super) rib: Rib,
    pub(super) reach: Reach,
    pub(super) peers: BTreeMap<NeighborId, Peer>,
    numbers: BTreeMap<String, NeighborId>,
    next_number: u32,
    seed: u64,
    /// Sessions may start: it is known whether we have restarted.
    begun: bool,
    commands: VecDeque<Command>,
    changes: Vec<LearnedRoute>,
    said: Vec<Said>,
    /// Neighbors of whom something may be to be sent.
    unsent: BTreeSet<NeighborId>,
    was_deferring: bool,
    /// Neighbors without graceful restart that had sessions in the life before, and have not said all: until then,
    /// or this time, what that life left stays.
    unsettled: BTreeSet<NeighborId>,
    unsettled_until: Option<Instant>,
    /// Neighbors outside the tunnels whose paths BFD says are down.
    bfd_down: BTreeSet<IpAddr>,
    /// Tunnels that are being drained.
    drained: BTreeSet<String>,
    /// Tunnels that stand behind others after a failure.
    yielding: BTreeSet<String>,
    /// Tunnels whose neighbors were not heard for their hold time, which is the value, and not since.
    pub(super) silent: BTreeMap<String, Duration>,
    /// Tunnels that would be offered to traffic, were their neighbors heard.
    trying: BTreeSet<String>,
    /// Which sessions are established has changed.
    pub(super) sessions_changed: bool,
    failed: Failed,
}

impl Speaker {
    /// One with nothing; `seed` is for jitter.
    pub(super) fn new(config: &Config, bgp: &Bgp, seed: u64, now: Instant) -> Self {
        let mut speaker = Speaker {
            asn: bgp.asn,
            router_id: bgp.router_id,
            rib: Rib::new(bgp.asn, bgp.router_id, settings::decision(bgp)),
            reach: Reach::default(),
            peers: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_number: 0,
            seed,
            begun: false,
            commands: VecDeque::new(),
            changes: Vec::new(),
            said: Vec::new(),
            unsent: BTreeSet::new(),
            was_deferring: false,
            unsettled: BTreeSet::new(),
            unsettled_until: None,
            bfd_down: BTreeSet::new(),
            drained: BTreeSet::new(),
            yielding: BTreeSet::new(),
            silent: BTreeMap::new(),
            trying: BTreeSet::new(),
            sessions_changed: false,
            failed: Failed::default(),
        };
        speaker.configure(config, bgp, now);
        speaker
    }

    /// Whether a configuration needs a new speaker: another AS number, identifier or way of choosing.
    pub(super) fn is_another(&self, before: &Bgp, bgp: &Bgp) -> bool {
        (self.asn, self.router_id) != (bgp.asn, bgp.router_id)
            || settings::decision(before) != settings::decision(bgp)
    }

    /// Takes a configuration over: sessions whose own settings did not change go on.
    pub(super) fn configure(&mut self, config: &Config, bgp: &Bgp, now: Instant) {
        let mut wanted: Vec<(&config::Neighbor, Settings)> = Vec::new();
        for neighbor in &bgp.neighbors {
            wanted.extend(settings::of(config, bgp, neighbor).map(|settings| (neighbor, settings)));
        }
        let names: BTreeSet<&str> = wanted.iter().map(|(neighbor, _)| neighbor.name.as_str()).collect();
        let gone = self.numbers.iter().filter(|(name, _)| !names.contains(name.as_str()));
        for number in gone.map(|(_, number)| *number).collect::<Vec<_>>() {
            self.remove(number, "no longer configured", now);
        }
        for (neighbor, settings) in &wanted {
            let known = self.numbers.get(&neighbor.name).copied();
            let same = known.and_then(|number| self.peers.get(&number)).is_some_and(|peer| {
                peer.session_config == settings.session
                    && peer.endpoint == settings.endpoint
                    && peer.place == neighbor.place
            });
            if let Some(number) = known.filter(|_| !same) {
                self.remove(number, "configured anew", now);
            }
            if !same {
                self.next_number += 1;
                self.numbers.insert(neighbor.name.clone(), NeighborId(self.next_number));
            }
        }
        for (neighbor, settings) in wanted {
            let Some(number) = self.numbers.get(&neighbor.name).copied() else { continue };
            self.rib.put_neighbor(number, settings.import.clone());
            let mut export = settings.export.clone();
            export.sources = settings::sources(neighbor, &self.numbers);
            let med = export.med;
            if neighbor.tunnel().is_some_and(|tunnel| self.yielding.contains(tunnel)) {
                export.med = Some(YIELDING_MED);
            }
            export.leaving = neighbor.tunnel().is_some_and(|tunnel| self.drained.contains(tunnel));
            match self.peers.get_mut(&number) {
                Some(peer) => {
                    peer.local_pref = settings.import.local_pref;
                    peer.bfd = neighbor.bfd;
                    peer.med = med;
                    peer.is_limited = neighbor.max_advertised.is_some();
                    if let Some(local) = peer.local {
                        (export.next_hop_v4, export.next_hop_v6) = settings::next_hops([local]);
                    }
                    peer.out.configure(export);
                }
                None => drop(self.peers.insert(number, self.peer(number, neighbor, settings, export))),
            }
            if let Some(peer) = self.peers.get_mut(&number) {
                peer.out.announce(bgp.announce.iter().copied());
            }
            self.unsent.insert(number);
        }
        let places = self.peers.iter().map(|(number, peer)| (*number, peer.place.clone())).collect();
        self.reach.configure(config, places);
        self.rib.next_hops_changed(|_, _| true);
        self.feed_all();
        if self.begun {
            self.start_all(now);
        }
    }

    fn peer(
        &self,
        number: NeighborId,
        neighbor: &config::Neighbor,
        settings: Settings,
        export: braid_bgp::adj_out::ExportSettings,
    ) -> Peer {
        // Each its own jitter.
        let seed = self.seed ^ u64::from(number.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Peer {
            name: neighbor.name.clone(),
            place: neighbor.place.clone(),
            endpoint: settings.endpoint,
            session: Neighbor::new(settings.session.clone(), seed),
            out: AdjOut::new(number, export),
            session_config: settings.session,
            local_pref: settings.import.local_pref,
            external: settings.import.external,
            med: settings.export.med,
            hold_time: neighbor.hold_time,
            local: None,
            bfd: neighbor.bfd,
            bfd_local: None,
            owed: BTreeSet::new(),
            last_failure: None,
            connecting: None,
            unreached: None,
            refusal: None,
            malformed: BTreeSet::new(),
            named: Named::default(),
            is_limited: neighbor.max_advertised.is_some(),
            warned_of: None,
        }
    }

    fn remove(&mut self, number: NeighborId, why: &str, now: Instant) {
        if let Some(mut peer) = self.peers.remove(&number) {
            peer.session.stop(now, why);
            while let Some(effect) = peer.session.poll_effect() {
                self.command(number, effect);
            }
            self.numbers.retain(|_, other| *other != number);
            if let Place::Tunnel(tunnel) = &peer.place {
                self.silent.remove(tunnel);
            }
            self.sessions_changed = true;
        }
        self.rib.remove_neighbor(number);
        self.unsent.remove(&number);
        self.unsettled.remove(&number);
    }

    /// The core is there: sessions may start. `had_sessions` are the neighbors of an earlier life of ours whose
    /// routes are still in use, if there was one.
    pub(super) fn begin(&mut self, had_sessions: Option<&BTreeSet<String>>, now: Instant) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        if let Some(names) = had_sessions {
            let mut waiting = Vec::new();
            for (number, peer) in &mut self.peers {
                // RFC 4724 section 4.1: packets were forwarded all along, by the core.
                peer.session.set_restarting(true);
                if !names.contains(&peer.name) {
                    continue;
                }
                // Whether it has graceful restart shows when it is established.
                self.unsettled.insert(*number);
                if peer.session_config.graceful_restart.is_some() {
                    waiting.extend(peer.session_config.families.iter().map(|family| (*number, *family)));
                }
            }
            self.unsettled_until = Some(now + DEFERRAL);
            self.rib.defer(now + DEFERRAL, waiting);
            self.was_deferring = self.is_deferring();
        }
        if !self.was_deferring {
            self.end_deferral();
        }
        self.start_all(now);
    }

    /// Whether nothing is chosen yet after a restart.
    pub(super) fn is_deferring(&self) -> bool {
        self.rib.poll_timeout().is_some()
    }

    /// What is chosen is all there is: what an earlier life left may go.
    pub(super) fn is_complete(&self) -> bool {
        let is_settled = self.unsettled.is_empty() && !self.is_deferring();
        self.begun && is_settled && !self.rib.pending() && self.changes.is_empty()
    }

    /// OPENs no longer speak of a restart.
    fn end_deferral(&mut self) {
        self.was_deferring = false;
        for (number, peer) in &mut self.peers {
            peer.session.restart_completed();
            self.unsent.insert(*number);
        }
    }

    /// The neighbor at an address, and which of ours it may reach.
    pub(super) fn neighbor_at(&self, remote: IpAddr, local: IpAddr) -> Option<NeighborId> {
        let is = |endpoint: &Endpoint| {
            endpoint.remote == remote && endpoint.local.is_none_or(|ours| ours == local)
        };
        self.peers.iter().find(|(_, peer)| is(&peer.endpoint)).map(|(number, _)| *number)
    }

    /// A neighbor has connected; `None` closes the connection.
    pub(super) fn accepted(&mut self, number: NeighborId, now: Instant) -> Option<ConnectionId> {
        // Not drained yet: the caller first has to know the connection by its number.
        let peer = self.peers.get_mut(&number)?;
        peer.unreached = None;
        peer.session.handle_accepted(now).ok()
    }

    /// A connection could not be made, for this reason.
    pub(super) fn unreached(&mut self, number: NeighborId, why: Unreached) {
        if let Some(peer) = self.peers.get_mut(&number) {
            // Who refused us accepted connections before.
            (peer.unreached, peer.refusal) = (Some(why), None);
        }
    }

    /// A connection is made. `local` is our end.
    pub(super) fn connected(&mut self, number: NeighborId, id: ConnectionId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&number) {
            (peer.connecting, peer.unreached) = (None, None);
            peer.session.handle_connected(now, id);
            self.drain(number, now);
        }
    }

    /// Routes of a neighbor outside the tunnels go to our address towards it.
    pub(super) fn local_address(&mut self, number: NeighborId, local: IpAddr) {
        let Some(peer) = self.peers.get_mut(&number) else { return };
        if matches!(peer.place, Place::Address { .. }) {
            peer.local = Some(local);
            let (v4, v6) = settings::next_hops([local]);
            peer.out.set_next_hops(v4, v6);
        }
    }

    /// Octets from a connection.
    pub(super) fn received(&mut self, number: NeighborId, id: ConnectionId, octets: &[u8], now: Instant) {
        if let Some(peer) = self.peers.get_mut(&number) {
            peer.session.handle_bytes(now, id, octets);
            self.drain(number, now);
        }
    }

    /// A connection could not be made, or has closed.
    pub(super) fn closed(&mut self, number: NeighborId, id: ConnectionId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&number) {
            peer.session.handle_closed(now, id);
            self.drain(number, now);
        }
    }

    /// A neighbor has taken nothing for too long.
    pub(super) fn stuck(&mut self, number: NeighborId, id: ConnectionId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&number) {
            peer.session.handle_send_hold_expired(now, id);
            self.drain(number, now);
        }
    }

    /// What was to be sent to a neighbor has left.
    pub(super) fn sent(&mut self, number: NeighborId) {
        self.unsent.insert(number);
    }

    /// The next deadline.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let sessions = self.peers.values().filter_map(|peer| peer.session.poll_timeout());
        sessions.chain(self.rib.poll_timeout()).chain(self.unsettled_until).min()
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for number in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&number) else { continue };
            if peer.session.poll_timeout().is_some_and(|at| at <= now) {
                peer.session.handle_timeout(now);
                self.drain(number, now);
            }
        }
        self.rib.handle_timeout(now);
        if self.unsettled_until.take_if(|until| *until <= now).is_some() {
            self.unsettled.clear();
        }
    }

    /// Ends all sessions, telling the peers why.
    pub(super) fn stop(&mut self, why: &str, now: Instant) {
        for number in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&number) else { continue };
            peer.session.stop(now, why);
            self.drain(number, now);
        }
    }

    /// Whether [`Speaker::work`] has something to do. `has_room` tells who takes more.
    pub(super) fn has_work(&self, has_room: impl Fn(NeighborId) -> bool) -> bool {
        self.rib.pending()
            || self.was_deferring != self.is_deferring()
            || self.failed.has_changed()
            || !self.changes.is_empty()
            || self.unsent.iter().any(|number| has_room(*number))
    }

    /// Does a portion of it.
    pub(super) fn work(&mut self, has_room: impl Fn(NeighborId) -> bool, now: Instant) {
        if self.begun && self.was_deferring && !self.is_deferring() {
            self.end_deferral();
        }
        for change in self.rib.decide(&self.reach, DECIDED) {
            let preference = self.external_preference(&change);
            for (number, peer) in &mut self.peers {
                peer.out.handle_change(&change, preference);
                if peer.out.pending() {
                    self.unsent.insert(*number);
                }
            }
            self.changes.push(self.reach.route(&change));
        }
        if !self.rib.pending() {
            self.failed.clear();
        }
        if !self.is_deferring() && !self.rib.pending() {
            let owing = self.peers.iter().filter(|(_, peer)| !peer.owed.is_empty());
            self.unsent.extend(owing.map(|(number, _)| *number));
        }
        let ready: Vec<_> = self.unsent.iter().copied().filter(|number| has_room(*number)).collect();
        for number in ready {
            self.tell(number, now);
        }
    }

    /// The preference that internal peers are told of a route from outside.
    fn external_preference(&self, change: &Change) -> Option<u32> {
        let peer = self.peers.get(&change.paths.first()?.neighbor)?;
        peer.external.then_some(peer.local_pref)
    }

    fn tell(&mut self, number: NeighborId, now: Instant) {
        let complete = !self.is_deferring() && !self.rib.pending();
        let Some(peer) = self.peers.get_mut(&number) else {
            self.unsent.remove(&number);
            return;
        };
        if peer.session.established().is_none() {
            self.unsent.remove(&number);
            return;
        }
        let (outgoing, notice) = peer.out.poll(TOLD);
        peer.session.send(&outgoing);
        let near = peer.near_aws();
        if near > peer.warned_of {
            peer.warned_of = near;
            self.said.push(Said { warning: true, line: aws::warning(&peer.name, peer.out.len()) });
        }
        if !peer.out.pending() {
            if complete {
                for family in std::mem::take(&mut peer.owed) {
                    peer.session.send_end_of_rib(family);
                }
            }
            self.unsent.remove(&number);
        }
        if let Some(notice) = notice {
            let line = match notice {
                Notice::NearLimit { received, most } => {
                    format!("neighbor {} is told {received} routes and takes {most}", peer.name)
                }
                // Only of what is received.
                Notice::TooManyPaths { .. } => return,
                Notice::BeyondLimit { most } => {
                    format!("neighbor {} takes {most} routes: others are held back", peer.name)
                }
            };
            self.said.push(Said { warning: true, line });
        }
        self.drain(number, now);
    }

    /// Choices since the last time.
    pub(super) fn take_changes(&mut self) -> Vec<LearnedRoute> {
        std::mem::take(&mut self.changes)
    }

    /// What is to be done on connections.
    pub(super) fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Lines for the log.
    pub(super) fn take_said(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.said)
    }

    /// Names of the neighbors with established sessions.
    pub(super) fn established(&self) -> BTreeSet<String> {
        let established = self.peers.values().filter(|peer| peer.session.established().is_some());
        established.map(|peer| peer.name.clone()).collect()
    }

    /// Takes what a session wants done, in its order.
    pub(super) fn drain(&mut self, number: NeighborId, now: Instant) {
        while let Some(effect) = self.peers.get_mut(&number).and_then(|peer| peer.session.poll_effect()) {
            match effect {
                Effect::Event(event) => self.handle_event(number, event, now),
                other => self.command(number, other),
            }
        }
    }

    fn command(&mut self, number: NeighborId, effect: Effect) {
        if let Some(peer) = self.peers.get_mut(&number) {
            match effect {
                Effect::Connect(id) => peer.connecting = Some(id),
                // Given up, for want of an answer.
                Effect::Close(id) if peer.connecting == Some(id) => {
                    (peer.connecting, peer.unreached) = (None, Some(Unreached::Silent));
                }
                Effect::Close(_) | Effect::Transmit(..) | Effect::Event(_) => {}
            }
        }
        self.commands.extend(match effect {
            Effect::Connect(id) => Some(Command::Connect(number, id)),
            Effect::Transmit(id, octets) => Some(Command::Transmit(number, id, octets)),
            Effect::Close(id) => Some(Command::Close(number, id)),
            Effect::Event(_) => None,
        });
    }

    fn handle_event(&mut self, number: NeighborId, event: Event, now: Instant) {
        let Some(peer) = self.peers.get_mut(&number) else { return };
        match event {
            Event::Established(negotiated) => {
                self.rib.established(number, negotiated.remote_id, peer.endpoint.remote);
                // RFC 4724 section 4.1: who has no graceful restart, or restarts itself, is not waited for.
                if negotiated.graceful_restart.as_ref().is_none_or(|restart| restart.restarted) {
                    self.rib.do_not_wait(number);
                } else {
                    // Section 2: the End-of-RIB is of a family, and of those that were not negotiated none comes.
                    self.rib.wait_only_for(number, &negotiated.families);
                    self.unsettled.remove(&number);
                }
                // From now on we forward also while the session is away.
                peer.session.set_restarting(true);
                if !self.was_deferring {
                    peer.session.restart_completed();
                }
                peer.out.restart(negotiated.four_octet_as);
                peer.owed = negotiated.families.iter().copied().collect();
                peer.hold_time = negotiated.hold_time;
                peer.last_failure = None;
                (peer.unreached, peer.refusal) = (None, None);
                peer.malformed.clear();
                peer.warned_of = None;
                if let Place::Tunnel(tunnel) = &peer.place {
                    self.silent.remove(tunnel);
                }
                self.unsent.insert(number);
                self.sessions_changed = true;
                let line = format!("neighbor {} (AS {}) is established", peer.name, negotiated.remote_as);
                self.said.push(Said { warning: false, line });
            }
            Event::Down { cause, retain } => {
                peer.note_refusal(&cause);
                if let (Cause::Sent(notification), Place::Tunnel(tunnel)) = (&cause, &peer.place)
                    && notification.is_hold_time()
                {
                    self.silent.insert(tunnel.clone(), peer.hold_time);
                }
                self.rib.down(number, &retain);
                if retain.is_empty() {
                    self.rib.do_not_wait(number);
                    self.unsettled.remove(&number);
                }
                self.sessions_changed = true;
                let kept = if retain.is_empty() { "" } else { "; its routes are kept while it restarts" };
                let line = format!("neighbor {} is down: {}{kept}", peer.name, describe(&cause));
                self.said.push(Said { warning: true, line });
                if retain.is_empty() {
                    self.fail_next_hops(number);
                }
            }
            Event::SweepStale(families) => self.rib.sweep_stale(number, &families),
            Event::Update(update) => {
                self.note_next_hops(number, &update);
                let notice = self.rib.update(number, &update);
                self.handle_notice(number, notice, now);
            }
            Event::EndOfRib(family) => {
                self.rib.end_of_rib(number, family);
                // Of the others it is still to come, and the rib knows whether it is waited for.
                if peer.session.established().is_some_and(|(negotiated, _)| negotiated.families.len() == 1) {
                    self.unsettled.remove(&number);
                }
            }
            Event::Settled => drop(self.unsettled.remove(&number)),
            Event::Refresh(family) => {
                peer.out.refresh(family);
                self.unsent.insert(number);
            }
            // All are counted; the log, that a peer could fill with them, hears of each type once a session.
            Event::Malformed { attribute, .. } if !peer.malformed.insert(attribute) => {}
            Event::Malformed { attribute, detail, .. } => {
                let line = format!(
                    "neighbor {} sent a malformed attribute of type {attribute}: {detail}",
                    peer.name
                );
                self.said.push(Said { warning: true, line });
            }
            Event::Failed(cause) => {
                peer.note_refusal(&cause);
                // The same again is no news.
                if peer.last_failure.as_ref() != Some(&cause) {
                    let line = format!("neighbor {} is not reached: {}", peer.name, describe(&cause));
                    self.said.push(Said { warning: !matches!(cause, Cause::Stopped), line });
                    peer.last_failure = Some(cause);
                }
            }
        }
    }

    fn handle_notice(&mut self, number: NeighborId, notice: Option<Notice>, now: Instant) {
        let (Some(notice), Some(peer)) = (notice, self.peers.get_mut(&number)) else { return };
        let line = match notice {
            Notice::NearLimit { received, most } => {
                format!("neighbor {} has sent {received} routes and may send {most}", peer.name)
            }
            Notice::TooManyPaths { prefix } => format!(
                "neighbor {} sends more than {MAX_PATHS} paths to {prefix}: others are left out (add-path)",
                peer.name
            ),
            Notice::BeyondLimit { most } => {
                peer.session.stop_for_too_many_routes(now, TOO_MANY_PAUSE);
                format!(
                    "neighbor {} has sent more than {most} routes (max-prefix): its session rests for {} s; have it \
                     send fewer, or allow more",
                    peer.name,
                    TOO_MANY_PAUSE.as_secs()
                )
            }
        };
        self.said.push(Said { warning: true, line });
    }

    /// Gives what was chosen to neighbors who are told other neighbors' routes: some may be told more than
    /// before.
    fn feed_all(&mut self) {
        if !self.peers.values().any(|peer| peer.out.has_sources()) {
            return;
        }
        let best = self.rib.best().map(|(prefix, neighbor, attributes)| {
            let next_hop = attributes.next_hop;
            let path = Chosen { neighbor, next_hop, weight: 1, attributes: attributes.clone() };
            Change { prefix: *prefix, paths: vec![path], standby: Vec::new() }
        });
        for change in &best.collect::<Vec<_>>() {
            let preference = self.external_preference(change);
            for peer in self.peers.values_mut().filter(|peer| peer.out.has_sources()) {
                peer.out.handle_change(change, preference);
            }
        }
    }
}

impl Peer {
    fn note_refusal(&mut self, cause: &Cause) {
        if matches!(cause, Cause::Sent(_) | Cause::Received(_)) {
            self.refusal = Some(cause.clone());
        }
    }

    /// The limit of AWS's that what it is told comes near to, or passes.
    pub(super) fn near_aws(&self) -> Option<u32> {
        let may_be = self.external && !self.is_limited && self.place.tunnel().is_some();
        aws::reached(self.out.len()).filter(|_| may_be)
    }

    /// The state of its session.
    pub(super) fn state(&self) -> SessionState {
        self.session.state()
    }
}

/// In words.
pub(super) fn describe(cause: &Cause) -> String {
    match cause {
        Cause::Transport => "the connection failed".to_owned(),
        Cause::Received(notification) => format!("it says {notification}"),
        Cause::Sent(notification) => format!("we say {notification}"),
        Cause::Replaced => "it has connected anew".to_owned(),
        Cause::Stopped => "stopped".to_owned(),
    }
}

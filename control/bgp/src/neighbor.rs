//! The session with one neighbor, over as many TCP connections as it takes: attempts and retries, collisions
//! (RFC 4271 section 6.8), graceful restart of either end (RFC 4724).
//!
//! Invariants: at most one connection is established, at most one is being initiated and at most one that the
//! peer made is not established, so there are three at most. Routes are retained only between a loss without
//! NOTIFICATION and the peer's End-of-RIB, and never longer than two deadlines.

use std::{
    collections::VecDeque,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustbgpd_fsm as fsm;
use rustbgpd_wire::{
    Message, NotificationCode, NotificationMessage, OpenMessage, RouteRefreshMessage, RouteRefreshSubtype,
    encode_message, notification::cease_subcode,
};

use crate::{
    config::NeighborConfig,
    connection::{Connection, Output, OwnRestart, Timer, describe},
    effect::{Cause, ConnectionId, Effect, Event, Negotiated, PeerRestart, SessionState},
    update::{self, Context, Family, Fatal, Handling, Outgoing},
};

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A connection that comes so soon after the session was established was under way before: a collision, and not
/// a peer that has restarted.
const SETTLING: Duration = Duration::from_secs(5);

/// Why a connection is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The user stopped the session.
    Stopped,
    /// The session pauses, having received too many routes.
    Paused,
}

/// What has passed since the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Messages received.
    pub messages_received: u64,
    /// UPDATEs received.
    pub updates_received: u64,
    /// UPDATEs sent.
    pub updates_sent: u64,
    /// Attributes left out as malformed.
    pub attributes_discarded: u64,
    /// UPDATEs whose routes counted as withdrawn.
    pub treated_as_withdrawn: u64,
    /// Messages so malformed that the session ended.
    pub malformed_messages: u64,
    /// Times the session was established.
    pub established: u64,
    /// Routes that could not be written into a message.
    pub unsendable: u64,
}

/// A session with a neighbor.
#[derive(Debug)]
pub struct Neighbor {
    config: NeighborConfig,
    wire: fsm::PeerConfig,
    own: OwnRestart,
    running: bool,
    connections: Vec<Connection>,
    next_id: u64,
    /// When the next attempt begins.
    retry_at: Option<Instant>,
    /// Until then nothing is accepted.
    paused_until: Option<Instant>,
    /// Attempts that failed in a row.
    failures: u32,
    established: Option<(ConnectionId, Instant, Negotiated)>,
    /// UPDATEs and KEEPALIVEs of the established session so far, until it seems settled.
    heard: Option<(bool, bool)>,
    /// Families with stale routes.
    retained: Vec<Family>,
    retained_until: Option<Instant>,
    seed: u64,
    effects: VecDeque<Effect>,
    counters: Counters,
    last_cause: Option<Cause>,
    last_open: Option<Opened>,
}

/// Who a peer said it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Its AS number.
    pub asn: u32,
    /// Its identifier.
    pub id: Ipv4Addr,
}

impl Neighbor {
    /// A session that is stopped. Jitter is drawn from the seed.
    pub fn new(config: NeighborConfig, seed: u64) -> Self {
        let mut wire = fsm::PeerConfig::new(config.local_as, config.remote_as, config.router_id);
        wire.hold_time = config.hold_time.as_secs().min(u64::from(u16::MAX)) as u16;
        wire.families = config.families.iter().map(|family| family.to_wire()).collect();
        wire.disable_ipv4_unicast = !config.families.contains(&Family::Ipv4);
        wire.add_path_receive = config.add_path;
        wire.connect_retry_secs = config.connect_retry.as_secs().clamp(1, 60) as u32;
        if let Some(time) = config.graceful_restart {
            wire.graceful_restart = true;
            // RFC 4724 section 3: the restart time has 12 bits.
            wire.gr_restart_time = time.as_secs().min(4095) as u16;
        }
        Neighbor {
            config,
            wire,
            own: OwnRestart { restarting: false, forwarding_preserved: false },
            running: false,
            connections: Vec::new(),
            next_id: 0,
            retry_at: None,
            paused_until: None,
            failures: 0,
            established: None,
            heard: None,
            retained: Vec::new(),
            retained_until: None,
            seed,
            effects: VecDeque::new(),
            counters: Counters::default(),
            last_cause: None,
            last_open: None,
        }
    }

    /// The settings.
    pub fn config(&self) -> &NeighborConfig {
        &self.config
    }

    /// The state of the connection that is furthest.
    pub fn state(&self) -> SessionState {
        self.connections.iter().map(Connection::state).max().unwrap_or(match self.running {
            true if self.config.passive => SessionState::Active,
            _ => SessionState::Idle,
        })
    }

    /// What both ends have agreed on, and since when.
    pub fn established(&self) -> Option<(&Negotiated, Instant)> {
        self.established.as_ref().map(|(_, since, negotiated)| (negotiated, *since))
    }

    /// Why the last session or attempt ended.
    pub fn last_cause(&self) -> Option<&Cause> {
        self.last_cause.as_ref()
    }

    /// What the last OPEN from its address said, whether or not it was accepted.
    pub fn last_open(&self) -> Option<Opened> {
        self.last_open
    }

    /// What has passed.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// When [`Neighbor::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = [self.retry_at, self.retained_until, self.paused_until];
        deadlines.into_iter().chain(self.connections.iter().map(Connection::due)).flatten().min()
    }

    /// What is to be done next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The connection is made.
    pub fn handle_connected(&mut self, now: Instant, id: ConnectionId) {
        if let Some(connection) =
            self.find(id).filter(|connection| connection.state() == SessionState::Connect)
        {
            connection.made = Some(now);
            self.drive(now, id, fsm::Event::TcpConnectionConfirmed, Cause::Transport);
        }
    }

    /// The connection could not be made, or has closed.
    pub fn handle_closed(&mut self, now: Instant, id: ConnectionId) {
        self.drive(now, id, fsm::Event::TcpConnectionFails, Cause::Transport);
    }

    /// The neighbor has connected.
    pub fn handle_accepted(&mut self, now: Instant) -> Result<ConnectionId, Refused> {
        if !self.running {
            return Err(Refused::Stopped);
        }
        if self.paused_until.is_some_and(|until| until > now) {
            return Err(Refused::Paused);
        }
        // The peer that connects once more has given up its former attempt.
        let former = self
            .connections
            .iter()
            .find(|connection| !connection.initiated && connection.state() != SessionState::Established);
        if let Some(former) = former.map(|connection| connection.id) {
            self.discard(former);
        }
        let id = self.add(false);
        let Neighbor { connections, config, own, seed, .. } = self;
        if let Some(connection) = connections.iter_mut().find(|connection| connection.id == id) {
            connection.made = Some(now);
            // Its timer and its wish to connect are of no use here.
            connection.drive(now, fsm::Event::ManualStart, config, *own, &mut |time| jitter(seed, time));
        }
        self.drive(now, id, fsm::Event::TcpConnectionAcknowledged, Cause::Transport);
        Ok(id)
    }

    /// Octets from a connection, in order.
    pub fn handle_bytes(&mut self, now: Instant, id: ConnectionId, octets: &[u8]) {
        let Some(connection) = self.find(id) else { return };
        connection.receive(octets);
        while let Some(message) = self.find(id).and_then(Connection::next_message) {
            match message {
                Ok(message) => {
                    self.counters.messages_received += 1;
                    self.handle_message(now, id, message);
                }
                Err(error) => {
                    self.counters.malformed_messages += 1;
                    self.drive(now, id, fsm::Event::DecodeError(error), Cause::Transport);
                }
            }
        }
    }

    /// Does what is due. What has been received is to be handed in before.
    pub fn handle_timeout(&mut self, now: Instant) {
        let ids: Vec<_> = self.connections.iter().map(|connection| connection.id).collect();
        for id in ids {
            while let Some(timer) = self.find(id).and_then(|connection| connection.expired(now)) {
                let event = match timer {
                    Timer::ConnectRetry => fsm::Event::ConnectRetryTimerExpires,
                    Timer::Hold => fsm::Event::HoldTimerExpires,
                    Timer::Keepalive => fsm::Event::KeepaliveTimerExpires,
                };
                self.drive(now, id, event, Cause::Transport);
            }
        }
        if self.retained_until.is_some_and(|until| until <= now) {
            self.sweep();
        }
        self.paused_until = self.paused_until.filter(|until| *until > now);
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.attempt(now);
        }
    }

    /// The peer has taken nothing for the send hold time (RFC 9687): the session ends with NOTIFICATION 8, as it
    /// would after the hold time.
    pub fn handle_send_hold_expired(&mut self, now: Instant, id: ConnectionId) {
        if self.find(id).is_none_or(|connection| connection.state() != SessionState::Established) {
            return self.handle_closed(now, id);
        }
        let code = NotificationCode::SendHoldTimerExpired;
        let notification = NotificationMessage::new(code, 0, Bytes::new());
        self.drive(now, id, fsm::Event::UpdateValidationError(notification), Cause::Transport);
    }

    /// BFD says that the path is gone (RFC 5882 section 4.3): the session ends with Cease/BFD Down (RFC 9384),
    /// and nothing is retained.
    pub fn handle_bfd_down(&mut self, now: Instant) {
        self.sweep();
        let ids: Vec<_> = self.connections.iter().map(|connection| connection.id).collect();
        for id in ids {
            self.drive(now, id, fsm::Event::BfdDown, Cause::Transport);
        }
    }

    /// Starts the session.
    pub fn start(&mut self, now: Instant) {
        if !self.running {
            self.running = true;
            self.failures = 0;
            self.attempt(now);
        }
    }

    /// Stops it, telling the peer why (RFC 9003).
    pub fn stop(&mut self, now: Instant, reason: &str) {
        self.running = false;
        self.retry_at = None;
        self.sweep();
        let reason = rustbgpd_wire::notification::encode_shutdown_communication(reason);
        let ids: Vec<_> = self.connections.iter().map(|connection| connection.id).collect();
        for id in ids {
            self.drive(now, id, fsm::Event::ManualStop { reason: Some(reason.clone()) }, Cause::Stopped);
            self.discard(id);
        }
    }

    /// The peer has sent more routes than it may: ends the session (RFC 4486 subcode 1) and pauses it.
    pub fn stop_for_too_many_routes(&mut self, now: Instant, pause: Duration) {
        let Some((id, ..)) = self.established else { return };
        let code = cease_subcode::MAX_PREFIXES;
        let notification = NotificationMessage::new(NotificationCode::Cease, code, Bytes::new());
        self.drive(now, id, fsm::Event::UpdateValidationError(notification), Cause::Transport);
        self.paused_until = Some(now + pause);
        self.retry_at = (!self.config.passive).then_some(now + pause);
    }

    /// We have restarted: from now on OPENs say so, and whether packets were forwarded all along (RFC 4724
    /// section 4.1). To be called before the start.
    pub fn set_restarting(&mut self, forwarding_preserved: bool) {
        self.own = OwnRestart { restarting: true, forwarding_preserved };
    }

    /// Routes are chosen again: OPENs no longer speak of a restart; that we forward while we are gone, they do.
    pub fn restart_completed(&mut self) {
        self.own.restarting = false;
    }

    /// Sends routes, if the session is established.
    pub fn send(&mut self, outgoing: &Outgoing) {
        let Some((id, _, negotiated)) = &self.established else { return };
        let (messages, unsendable) = update::encode(outgoing, negotiated.four_octet_as);
        self.counters.updates_sent += messages.len() as u64;
        self.counters.unsendable += unsendable as u64;
        self.effects.extend(messages.into_iter().map(|message| Effect::Transmit(*id, message)));
    }

    /// Says that all routes of a family have been sent.
    pub fn send_end_of_rib(&mut self, family: Family) {
        let Some((id, _, negotiated)) = &self.established else { return };
        if let (true, Some(message)) = (negotiated.families.contains(&family), update::end_of_rib(family)) {
            self.effects.push_back(Effect::Transmit(*id, message));
        }
    }

    /// Asks for all routes of a family once more; says whether the peer understands that.
    pub fn request_refresh(&mut self, family: Family) -> bool {
        let Some((id, _, negotiated)) = &self.established else { return false };
        let (afi, safi) = family.to_wire();
        let message = encode_message(&Message::RouteRefresh(RouteRefreshMessage::new(afi, safi)));
        let (true, Ok(message)) = (negotiated.route_refresh, message) else { return false };
        self.effects.push_back(Effect::Transmit(*id, message.freeze()));
        true
    }

    fn handle_message(&mut self, now: Instant, id: ConnectionId, message: Message) {
        match message {
            Message::Open(open) => self.handle_open(now, id, open),
            Message::Keepalive => {
                // The one that establishes the session is none of these.
                let established = self.established.as_ref().is_some_and(|(other, ..)| *other == id);
                self.drive(now, id, fsm::Event::KeepaliveReceived, Cause::Transport);
                match self.heard.filter(|_| established) {
                    Some((false, false)) => self.heard = Some((false, true)),
                    Some(_) => {
                        self.heard = None;
                        self.effects.push_back(Effect::Event(Event::Settled));
                    }
                    None => {}
                }
            }
            Message::Notification(notification) => {
                let cause = Cause::Received(describe(&notification));
                self.drive(now, id, fsm::Event::NotificationReceived(notification), cause);
            }
            Message::RouteRefresh(refresh) => self.handle_refresh(now, id, &refresh),
            Message::Update(message) => {
                self.counters.updates_received += 1;
                let Some(context) = self.find(id).and_then(|connection| connection.context.as_ref()) else {
                    return self.drive(now, id, fsm::Event::UpdateReceived, Cause::Transport);
                };
                match update::parse(&message, context) {
                    Ok(parsed) => {
                        self.drive(now, id, fsm::Event::UpdateReceived, Cause::Transport);
                        self.heard = self.heard.map(|(_, keepalive)| (true, keepalive));
                        self.take(parsed);
                    }
                    Err(Fatal::Decode(error)) => {
                        self.counters.malformed_messages += 1;
                        self.drive(now, id, fsm::Event::DecodeError(error), Cause::Transport);
                    }
                    Err(Fatal::Invalid(subcode, data)) => {
                        self.counters.malformed_messages += 1;
                        let code = NotificationCode::UpdateMessage;
                        let notification = NotificationMessage::new(code, subcode, Bytes::from(data));
                        self.drive(
                            now,
                            id,
                            fsm::Event::UpdateValidationError(notification),
                            Cause::Transport,
                        );
                    }
                }
            }
            // RFC 4271 knows no other type, and the decoder yields none.
            _ => {}
        }
    }

    fn handle_open(&mut self, now: Instant, id: ConnectionId, open: OpenMessage) {
        self.last_open = Some(Opened { asn: open.four_byte_as(), id: open.bgp_identifier });
        if self.survives_collision(now, id, &open) {
            self.drive(now, id, fsm::Event::OpenReceived(open), Cause::Transport);
        }
    }

    fn handle_refresh(&mut self, now: Instant, id: ConnectionId, refresh: &RouteRefreshMessage) {
        let Some(context) = self.find(id).and_then(|connection| connection.context.as_ref()) else {
            let (afi, safi) = Family::Ipv4.to_wire();
            return self.drive(now, id, fsm::Event::RouteRefreshReceived { afi, safi }, Cause::Transport);
        };
        // RFC 2918 section 4: a family that was not negotiated is ignored; RFC 7313's markers were not either.
        let family = refresh.afi().zip(refresh.safi()).and_then(Family::from_wire);
        if let Some(family) = family.filter(|family| context.families.contains(family))
            && refresh.subtype() == RouteRefreshSubtype::Normal
        {
            self.effects.push_back(Effect::Event(Event::Refresh(family)));
        }
    }

    fn take(&mut self, parsed: update::Parsed) {
        for (attribute, handling, detail) in parsed.malformed {
            match handling {
                Handling::AttributeDiscarded => self.counters.attributes_discarded += 1,
                Handling::TreatedAsWithdrawn => self.counters.treated_as_withdrawn += 1,
            }
            self.effects.push_back(Effect::Event(Event::Malformed { attribute, handling, detail }));
        }
        if !parsed.update.withdrawn.is_empty() || !parsed.update.announced.is_empty() {
            self.effects.push_back(Effect::Event(Event::Update(parsed.update)));
        }
        if let Some(family) = parsed.end_of_rib {
            self.retained.retain(|retained| *retained != family);
            self.retained_until = self.retained_until.filter(|_| !self.retained.is_empty());
            self.effects.push_back(Effect::Event(Event::EndOfRib(family)));
        }
    }

    /// Whether a connection lives on, on which an OPEN has come while there is another (RFC 4271 section 6.8).
    fn survives_collision(&mut self, now: Instant, id: ConnectionId, open: &OpenMessage) -> bool {
        // An OPEN that is refused anyway ends only its own connection.
        if fsm::negotiation::validate_open(open, &self.wire).is_err() {
            return true;
        }
        let initiated = self.find(id).is_some_and(|connection| connection.initiated);
        if let Some((established, since, negotiated)) = &self.established
            && *established != id
        {
            if negotiated.graceful_restart.is_some() && now >= *since + SETTLING {
                // RFC 4724 section 5: the peer has restarted, although TCP did not notice.
                let established = *established;
                self.drive(now, established, fsm::Event::TcpConnectionFails, Cause::Replaced);
                return true;
            }
            self.reject(id, cease_subcode::CONNECTION_COLLISION_RESOLUTION);
            return false;
        }
        // Also one on which the peer's OPEN is still to come, since its identifier is known now: were this one
        // established first, the peer would end it for the other, which we had ended for this one. The peer that has
        // not spoken for long is not there.
        let competes = |connection: &Connection| match connection.state() {
            SessionState::OpenConfirm => true,
            SessionState::OpenSent => connection.made.is_some_and(|made| now < made + SETTLING),
            _ => false,
        };
        let other = self.connections.iter().find(|connection| connection.id != id && competes(connection));
        let Some(other) = other.map(|connection| connection.id) else { return true };
        // The connection that the end with the higher identifier initiated is kept; RFC 6286 section 2.3: with
        // equal identifiers, the end with the higher AS number.
        let ours = (self.config.router_id, self.config.local_as);
        let keep_initiated = ours > (open.bgp_identifier, open.four_byte_as());
        let survives = keep_initiated == initiated;
        let loser = if survives { other } else { id };
        self.reject(loser, cease_subcode::CONNECTION_COLLISION_RESOLUTION);
        survives
    }

    fn find(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|connection| connection.id == id)
    }

    fn add(&mut self, initiated: bool) -> ConnectionId {
        self.next_id += 1;
        let id = ConnectionId(self.next_id);
        self.connections.push(Connection::new(id, initiated, &self.wire));
        id
    }

    /// Begins to connect, unless that is under way or the session is established.
    fn attempt(&mut self, now: Instant) {
        let under_way = self.connections.iter().any(|connection| connection.initiated);
        if self.running && !self.config.passive && !under_way && self.established.is_none() {
            // RFC 4271 section 8.1.3 (IdleHoldTimer): also one that was stopped and started meanwhile stays idle so
            // long, since it would break off for the same reason.
            if let Some(until) = self.paused_until.filter(|until| *until > now) {
                self.retry_at = Some(until);
                return;
            }
            let id = self.add(true);
            self.drive(now, id, fsm::Event::ManualStart, Cause::Transport);
        }
    }

    /// Drives a connection's state machine and acts on what comes out. `cause` is why the session ends, if it
    /// does and we send no NOTIFICATION.
    fn drive(&mut self, now: Instant, mut id: ConnectionId, event: fsm::Event, mut cause: Cause) {
        let Neighbor { connections, config, own, seed, .. } = self;
        let Some(connection) = connections.iter_mut().find(|connection| connection.id == id) else { return };
        let before = connection.state();
        let broken = matches!(event, fsm::Event::TcpConnectionFails);
        let out = connection.drive(now, event, config, *own, &mut |time| jitter(seed, time));
        let (after, initiated) = (connection.state(), connection.initiated);
        let (mut down, mut notified) = (false, false);
        for output in out {
            match output {
                Output::Connect => {
                    // A name of its own, so that nothing late is said of it that belongs to the last attempt.
                    self.next_id += 1;
                    let next = ConnectionId(self.next_id);
                    if let Some(connection) = self.find(id) {
                        connection.id = next;
                    }
                    id = next;
                    self.effects.push_back(Effect::Connect(id));
                }
                Output::Transmit(octets) => self.effects.push_back(Effect::Transmit(id, octets)),
                Output::Notified(notification) => {
                    cause = if cause == Cause::Stopped { cause } else { Cause::Sent(notification) };
                    notified = true;
                }
                Output::Close => self.effects.push_back(Effect::Close(id)),
                Output::Established(negotiated) => self.establish(now, id, &negotiated),
                Output::Down => down = true,
            }
        }
        // A connection that the peer made is of no use once it is lost.
        let over = after == SessionState::Idle || !initiated && after <= SessionState::Active;
        if over {
            self.connections.retain(|connection| connection.id != id);
        }
        if down && before == SessionState::Established {
            self.end(now, cause, notified);
        } else if over || broken {
            self.last_cause = Some(cause.clone());
            self.effects.push_back(Effect::Event(Event::Failed(cause)));
        }
        let under_way = self.connections.iter().any(|connection| connection.initiated);
        if over && self.running && !self.config.passive && !under_way && self.established.is_none() {
            let pause =
                self.config.connect_retry.saturating_mul(1 << self.failures.min(6)).min(LONGEST_PAUSE);
            self.failures += 1;
            self.retry_at = Some(now + jitter(&mut self.seed, pause));
        }
    }

    fn establish(&mut self, now: Instant, id: ConnectionId, negotiated: &fsm::NegotiatedSession) {
        let negotiated = agreed(negotiated, &self.config);
        let extended = self.find(id).and_then(|connection| connection.negotiated()).is_some_and(|n| {
            // RFC 8654 section 4: both ends have said so; we always do.
            n.peer_extended_message
        });
        let context = Context {
            four_octet_as: negotiated.four_octet_as,
            remote_as: negotiated.remote_as,
            external: self.config.external(),
            families: negotiated.families.clone(),
            add_path: negotiated.add_path.clone(),
        };
        if let Some(connection) = self.find(id) {
            connection.context = Some(context);
            if extended {
                connection.extend();
            }
        }
        let others: Vec<_> = self.connections.iter().map(|connection| connection.id).collect();
        for other in others.into_iter().filter(|other| *other != id) {
            self.reject(other, cease_subcode::CONNECTION_COLLISION_RESOLUTION);
        }
        self.failures = 0;
        self.retry_at = None;
        self.counters.established += 1;
        // RFC 4724 section 4.2: what the peer has not preserved goes at once, the rest has some time.
        let restart = negotiated.graceful_restart.as_ref();
        let preserved = |family: &Family| restart.is_some_and(|restart| restart.preserved.contains(family));
        let (kept, lost): (Vec<_>, Vec<_>) = self.retained.iter().partition(|family| preserved(family));
        self.retained_until = (!kept.is_empty()).then_some(now + self.config.stale_time);
        self.retained = kept;
        self.effects.push_back(Effect::Event(Event::Established(negotiated.clone())));
        if !lost.is_empty() {
            self.effects.push_back(Effect::Event(Event::SweepStale(lost)));
        }
        self.established = Some((id, now, negotiated));
        self.heard = Some((false, false));
    }

    /// The established session has ended.
    fn end(&mut self, now: Instant, cause: Cause, notified: bool) {
        let Some((_, _, negotiated)) = self.established.take() else { return };
        // RFC 4724 section 4.2: what is still stale from an earlier restart goes.
        self.sweep();
        // After a NOTIFICATION of either end, routes go as RFC 4271 says.
        let lost = !notified && matches!(cause, Cause::Transport | Cause::Replaced);
        let restart = negotiated.graceful_restart.filter(|_| lost);
        let (retain, time) =
            restart.map_or((Vec::new(), Duration::ZERO), |restart| (restart.families, restart.time));
        if !retain.is_empty() {
            self.retained.clone_from(&retain);
            self.retained_until = Some(now + time);
        }
        self.last_cause = Some(cause.clone());
        self.effects.push_back(Effect::Event(Event::Down { cause, retain }));
    }

    /// What is stale goes.
    fn sweep(&mut self) {
        self.retained_until = None;
        if !self.retained.is_empty() {
            let retained = std::mem::take(&mut self.retained);
            self.effects.push_back(Effect::Event(Event::SweepStale(retained)));
        }
    }

    /// Ends a connection with a Cease.
    fn reject(&mut self, id: ConnectionId, subcode: u8) {
        let notification = NotificationMessage::new(NotificationCode::Cease, subcode, Bytes::new());
        // Before the OPEN there is nobody to tell.
        if self.find(id).is_some_and(|connection| connection.state() >= SessionState::OpenSent)
            && let Ok(message) = encode_message(&Message::Notification(notification))
        {
            self.effects.push_back(Effect::Transmit(id, message.freeze()));
        }
        self.discard(id);
    }

    fn discard(&mut self, id: ConnectionId) {
        if self.find(id).is_some() {
            self.connections.retain(|connection| connection.id != id);
            self.effects.push_back(Effect::Close(id));
        }
    }
}

fn agreed(negotiated: &fsm::NegotiatedSession, config: &NeighborConfig) -> Negotiated {
    let families = |wire: &[_]| -> Vec<Family> {
        config.families.iter().copied().filter(|family| wire.contains(&family.to_wire())).collect()
    };
    let mut add_path = families(&negotiated.add_path_families.keys().copied().collect::<Vec<_>>());
    add_path.retain(|_| config.add_path);
    let restart = (config.graceful_restart.is_some() && negotiated.peer_gr_capable).then(|| {
        let listed = |preserved: bool| {
            let listed =
                negotiated.peer_gr_families.iter().filter(|family| !preserved || family.forwarding_preserved);
            families(&listed.map(|family| (family.afi, family.safi)).collect::<Vec<_>>())
        };
        PeerRestart {
            restarted: negotiated.peer_restart_state,
            time: Duration::from_secs(u64::from(negotiated.peer_restart_time)),
            families: listed(false),
            preserved: listed(true),
        }
    });
    Negotiated {
        remote_as: negotiated.peer_asn,
        remote_id: negotiated.peer_router_id,
        hold_time: Duration::from_secs(u64::from(negotiated.hold_time)),
        families: families(&negotiated.negotiated_families),
        add_path,
        route_refresh: negotiated.peer_route_refresh,
        four_octet_as: negotiated.four_octet_as,
        graceful_restart: restart,
    }
}

/// RFC 4271 section 10: 75 to 100 % of a duration.
fn jitter(seed: &mut u64, time: Duration) -> Duration {
    // splitmix64, which passes through every state.
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    time - (time / 4).mul_f64(mixed as f64 / u64::MAX as f64)
}

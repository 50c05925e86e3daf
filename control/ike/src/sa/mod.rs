//! One IKE SA: its messages, its exchanges, its children.
//!
//! [`window`] owns message IDs and retransmission; each exchange has a file in [`exchanges`]; [`timers`] says
//! what happens by time alone. An IKE SA knows nothing of others: what concerns them goes up to the endpoint
//! as an [`Upcall`].
//!
//! Invariants: one request of ours at a time; nothing that was not authenticated changes state after
//! IKE_SA_INIT; every queue is bounded; a child is in exactly one IKE SA.

pub(crate) mod beside;
pub(crate) mod child;
pub(crate) mod children;
pub(crate) mod contest;
pub(crate) mod core_events;
pub(crate) mod exchanges;
pub(crate) mod key_log;
pub(crate) mod nat;
pub(crate) mod parts;
pub(crate) mod receive;
pub(crate) mod stash;
pub(crate) mod timers;
pub(crate) mod window;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Random;
use crate::auth::PeerSignatureSupport;
use crate::crypto::beside::Made;
use crate::crypto::{CryptoError, IkeKeys, Opener, Sealer};
use crate::diagnosis::{Diagnosis, Fault, Step};
use crate::effect::{ChildId, DownCause, Effect, EspTransport, Event, IkeSaId, Path, PeerId, StashUpdate};
use crate::endpoint::computations::Computations;
use crate::endpoint::directory::Directory;
use crate::endpoint::openings::Opening;
use crate::random::random_u64;
use crate::settings::{EndpointSettings, Lifetime, PeerConfig};
use crate::status::Counters;
use crate::wire::fragment::seal_fragmented;
use crate::wire::{Delete, ExchangeType, Header, IkeSpi, Message, Payload};
use beside::Aside;
use child::{Child, Lingering};
use contest::Contest;
use exchanges::auth::AuthTask;
use exchanges::create_child::ChildTask;
use exchanges::followup::{AwaitedFollowup, Followup};
use exchanges::init::Handshake;
use exchanges::rekey_ike::{IkeCollision, RekeyTask};
use nat::Nat;
use window::Window;

/// Most child SAs of one IKE SA.
pub(crate) const MAX_CHILDREN: usize = 16;
/// Most exchanges waiting for the window.
const MAX_QUEUE: usize = 64;
/// How long an SA that has ended still answers retransmissions.
pub(crate) const CLOSED_FOR: Duration = Duration::from_secs(30);

/// What an IKE SA may use and change outside itself.
pub(crate) struct Cx<'a> {
    pub(crate) now: Instant,
    /// Wall clock, for certificates.
    pub(crate) unix_time: Duration,
    pub(crate) rng: &'a mut dyn Random,
    pub(crate) settings: &'a EndpointSettings,
    pub(crate) effects: &'a mut VecDeque<Effect>,
    pub(crate) esp_spis: &'a mut BTreeSet<u32>,
    pub(crate) ids: &'a mut Ids,
    pub(crate) upcalls: &'a mut Vec<Upcall>,
    pub(crate) directory: &'a Directory,
    pub(crate) counters: &'a mut Counters,
    pub(crate) computations: &'a mut Computations,
    /// What was computed, for the one who asked for it.
    pub(crate) made: Option<Made>,
}

/// Numbers that are given out once.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    pub(crate) ike: u64,
    pub(crate) child: u64,
}

impl Ids {
    pub(crate) fn next_ike(&mut self) -> IkeSaId {
        self.ike += 1;
        IkeSaId(self.ike)
    }

    pub(crate) fn next_child(&mut self) -> ChildId {
        self.child += 1;
        ChildId(self.child)
    }
}

/// What concerns other IKE SAs.
#[derive(Debug)]
pub(crate) enum Upcall {
    /// The SA is authenticated.
    Established { sa: IkeSaId, peer: PeerId, initial_contact: bool },
    /// A rekey has made this SA.
    New(Box<IkeSa>),
    /// The children go to another SA of the same peer.
    Bequest(Box<Bequest>),
    /// The one that came before is gone: the SA may start exchanges.
    Release(IkeSaId),
    /// It is known whether the peer has an SA that may be left over.
    Contested { sa: IkeSaId, contest: Contest, is_alive: bool },
    /// The SA has had no usable child for a while.
    Childless { sa: IkeSaId, peer: PeerId },
}

/// What an SA leaves to another one.
#[derive(Debug)]
pub(crate) struct Bequest {
    pub(crate) to: IkeSaId,
    pub(crate) peer: PeerId,
    pub(crate) children: Vec<Child>,
    pub(crate) lingering: Vec<Lingering>,
    pub(crate) queue: VecDeque<(Instant, Want)>,
    pub(crate) child_rekeys: u64,
    pub(crate) contest: Option<Contest>,
}

/// Where an IKE SA stands.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Not authenticated yet.
    Handshake(Box<Handshake>),
    /// Authenticated.
    Established,
    /// Another one has taken its place; it is to be deleted, by the peer or by us.
    Replaced,
    /// Our Delete is under way.
    Deleting,
    /// It has ended, and only repeats its last answer.
    Closed { until: Instant },
    /// It can be forgotten.
    Dead,
}

/// Our request that is under way.
#[derive(Debug)]
pub(crate) enum Task {
    Init,
    Intermediate,
    Auth(Box<AuthTask>),
    Child(Box<ChildTask>),
    RekeyIke(Box<RekeyTask>),
    Followup(Box<Followup>),
    DeleteChildren(Vec<ChildId>),
    DeleteIke,
    Probe,
    MoveAddresses {
        cookie2: Vec<u8>,
        path: Path,
    },
    /// Of an earlier life of this process: only the window matters.
    Forgotten {
        spi_in: Option<u32>,
        rekeys_ike: bool,
        busy: bool,
    },
}

/// An exchange that we want.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    DeleteIke,
    DeleteChild(ChildId),
    MoveAddresses(Path),
    RekeyIke,
    RekeyChild(ChildId),
    CreateChild,
    Probe,
}

/// What the peer announced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerCaps {
    pub(crate) fragmentation: bool,
    pub(crate) mobike: bool,
    pub(crate) childless: bool,
    pub(crate) intermediate: bool,
    pub(crate) ppk: bool,
    pub(crate) signatures: PeerSignatureSupport,
}

/// Keys at work.
#[derive(Debug)]
pub(crate) struct Crypt {
    pub(crate) keys: IkeKeys,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
}

impl Crypt {
    pub(crate) fn new(keys: IkeKeys, initiator: bool, generation: u32) -> Result<Self, CryptoError> {
        let sealer = keys.sealer(initiator, generation)?;
        let opener = keys.opener(initiator)?;
        Ok(Self { keys, sealer, opener })
    }
}

/// Why an SA ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) cause: DownCause,
    pub(crate) diagnosis: Option<Diagnosis>,
}

/// What follows once the answer has been sent.
#[derive(Debug)]
pub(crate) enum After {
    Activate(ChildId),
    CloseByPeer(Option<End>),
}

/// One IKE SA.
#[derive(Debug)]
pub(crate) struct IkeSa {
    pub(crate) id: IkeSaId,
    pub(crate) peer: Option<PeerId>,
    pub(crate) config: Option<Arc<PeerConfig>>,
    /// We made it: flag I of what we send.
    pub(crate) initiator: bool,
    /// We made the first of its line, whoever rekeyed since: MOBIKE's initiator (RFC 4555 section 2.1).
    pub(crate) began: bool,
    /// The SPIs of the first of its line, if that was another.
    pub(crate) first_spis: Option<(IkeSpi, IkeSpi)>,
    pub(crate) spi_i: IkeSpi,
    pub(crate) spi_r: IkeSpi,
    pub(crate) path: Path,
    pub(crate) phase: Phase,
    pub(crate) crypt: Option<Crypt>,
    pub(crate) window: Window,
    pub(crate) task: Option<Task>,
    /// What waits for a computation.
    pub(crate) aside: Aside,
    pub(crate) queue: VecDeque<(Instant, Want)>,
    pub(crate) children: Vec<Child>,
    pub(crate) lingering: Vec<Lingering>,
    pub(crate) nat: Nat,
    pub(crate) caps: PeerCaps,
    pub(crate) after: Vec<After>,
    pub(crate) collision: Option<IkeCollision>,
    /// The SA that has taken this one's place.
    pub(crate) heir: Option<IkeSaId>,
    /// Until then it starts no exchange but a probe: who inherits the children is not settled between both
    /// sides.
    pub(crate) held_until: Option<Instant>,
    /// It may be left over: a younger one with the same peer is there.
    pub(crate) contest: Option<Contest>,
    pub(crate) awaited: Option<Box<AwaitedFollowup>>,
    /// SPIs that the peer deleted while an exchange of ours that may have made them is under way.
    pub(crate) early_deletes: Vec<u32>,
    pub(crate) created: Instant,
    pub(crate) last_heard: Instant,
    pub(crate) last_sent: Instant,
    pub(crate) rekey_at: Instant,
    pub(crate) expires_at: Instant,
    /// Set while it is established and has no usable child.
    pub(crate) childless_since: Option<Instant>,
    /// When that is looked at next.
    pub(crate) childless_at: Instant,
    /// Of the child that ended last.
    pub(crate) last_child_lived: Option<Duration>,
    pub(crate) child_rekeys: u64,
    pub(crate) end: Option<End>,
}

impl IkeSa {
    /// An SA without keys.
    pub(crate) fn blank(
        cx: &mut Cx<'_>,
        initiator: bool,
        (spi_i, spi_r): (IkeSpi, IkeSpi),
        path: Path,
        phase: Phase,
    ) -> Self {
        let now = cx.now;
        Self {
            id: cx.ids.next_ike(),
            peer: None,
            config: None,
            initiator,
            began: initiator,
            first_spis: None,
            spi_i,
            spi_r,
            path,
            phase,
            crypt: None,
            window: Window::default(),
            task: None,
            aside: Aside::default(),
            queue: VecDeque::new(),
            children: Vec::new(),
            lingering: Vec::new(),
            nat: Nat::default(),
            caps: PeerCaps::default(),
            after: Vec::new(),
            collision: None,
            heir: None,
            held_until: None,
            contest: None,
            awaited: None,
            early_deletes: Vec::new(),
            created: now,
            last_heard: now,
            last_sent: now,
            rekey_at: now + Duration::from_secs(86_400),
            expires_at: now + Duration::from_secs(86_400),
            childless_since: None,
            childless_at: now,
            last_child_lived: None,
            child_rekeys: 0,
            end: None,
        }
    }

    /// The SPI by which datagrams find it.
    pub(crate) fn our_spi(&self) -> IkeSpi {
        if self.initiator { self.spi_i } else { self.spi_r }
    }

    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.phase, Phase::Dead)
    }

    pub(crate) fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Established)
    }

    pub(crate) fn is_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_))
    }

    /// Where our first request stands; of an SA that began otherwise, that it is answered.
    pub(crate) fn opening(&self) -> Opening {
        match (&self.phase, self.window.outstanding()) {
            (Phase::Handshake(_), None) if self.aside.is_first() => Opening::Fresh,
            (Phase::Handshake(handshake), Some(out)) if out.exchange == ExchangeType::IkeSaInit => {
                match out.sent {
                    _ if handshake.claimed.is_some() || self.aside.is_first_answer() => Opening::Answered,
                    0 | 1 => Opening::Fresh,
                    _ => Opening::Late,
                }
            }
            _ if self.spi_r.is_zero() => Opening::Over,
            _ => Opening::Answered,
        }
    }

    /// How ESP of this SA travels now.
    pub(crate) fn esp_transport(&self) -> (EspTransport, Path) {
        let mode = self.config.as_ref().map_or(crate::Encapsulation::Auto, |config| config.encapsulation);
        (self.nat.transport(mode), self.path)
    }

    /// Sets the rekey and end times of a fresh SA.
    pub(crate) fn start_lifetime(&mut self, cx: &mut Cx<'_>, lifetime: Lifetime) {
        let jitter = cx.random_below(lifetime.jitter);
        self.rekey_at = cx.now + lifetime.hard.saturating_sub(lifetime.margin + jitter);
        self.expires_at = cx.now + lifetime.hard;
        self.last_heard = cx.now;
    }

    /// What waits and concerns the children: it goes where they go.
    pub(crate) fn take_child_wants(&mut self) -> VecDeque<(Instant, Want)> {
        let mut queue = std::mem::take(&mut self.queue);
        queue.extend(self.aside.take_child_want().map(|want| (self.created, want)));
        queue.retain(|(_, want)| !matches!(want, Want::RekeyIke | Want::DeleteIke | Want::Probe));
        queue
    }

    /// Queues an exchange once.
    pub(crate) fn want(&mut self, due: Instant, want: Want) {
        // Of several moves the last one counts.
        if matches!(want, Want::MoveAddresses(_)) {
            self.queue.retain(|(_, queued)| !matches!(queued, Want::MoveAddresses(_)));
        }
        if let Some(queued) = self.queue.iter_mut().find(|(_, queued)| *queued == want) {
            queued.0 = queued.0.min(due);
        } else if want == Want::DeleteIke {
            self.queue.push_front((due, want));
        } else if self.queue.len() < MAX_QUEUE {
            self.queue.push_back((due, want));
        }
    }

    /// When a queued exchange may start.
    pub(crate) fn free_at(&self, due: Instant, want: Want) -> Instant {
        let held = self.held_until.filter(|_| self.is_established() && want != Want::Probe);
        held.map_or(due, |until| due.max(until))
    }

    /// Starts the next exchange, if none is under way.
    pub(crate) fn pump(&mut self, cx: &mut Cx<'_>) {
        while self.window.outstanding().is_none()
            && !self.aside.is_ours()
            && matches!(self.phase, Phase::Established | Phase::Replaced)
        {
            let due = self.queue.iter().position(|(at, want)| self.free_at(*at, *want) <= cx.now);
            let Some((_, want)) = due.and_then(|index| self.queue.remove(index)) else { return };
            match want {
                Want::DeleteIke => self.start_delete_ike(cx),
                Want::DeleteChild(id) => self.start_delete_children(cx, id),
                Want::MoveAddresses(path) => self.start_move(cx, path),
                Want::RekeyIke => self.start_rekey_ike(cx),
                Want::RekeyChild(id) => self.start_rekey_child(cx, id),
                Want::CreateChild => self.start_create_child(cx),
                Want::Probe => self.start_probe(cx),
            }
        }
    }

    pub(crate) fn header(&self, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
        Header::new(self.spi_i, self.spi_r, exchange, self.initiator, response, message_id)
    }

    /// Seals a message into one datagram or several.
    fn seal(&mut self, cx: &mut Cx<'_>, header: Header, payloads: Vec<Payload>) -> Option<Vec<Vec<u8>>> {
        let wanted = self.config.as_ref().is_none_or(|config| config.fragmentation);
        let limit = if self.caps.fragmentation && wanted {
            cx.settings.fragment_size
        } else {
            crate::wire::MAX_MESSAGE
        };
        let crypt = self.crypt.as_mut()?;
        seal_fragmented(&Message { header, payloads }, limit, &mut crypt.sealer, cx.rng).ok()
    }

    /// Sends a request. There must be none under way.
    pub(crate) fn start_request(
        &mut self,
        cx: &mut Cx<'_>,
        task: Task,
        exchange: ExchangeType,
        payloads: Vec<Payload>,
    ) {
        let header = self.header(exchange, false, self.window.next_request());
        let Some(datagrams) = self.seal(cx, header, payloads) else {
            self.fail(cx, step_of(exchange), Fault::Expired);
            return;
        };
        self.window.sent(cx.now, cx.settings, exchange, datagrams.clone());
        self.task = Some(task);
        self.transmit(cx, self.path, datagrams);
    }

    /// Seals, keeps and sends the answer to the request that `header` began, then does what waited for it.
    pub(crate) fn respond(&mut self, cx: &mut Cx<'_>, request: &Header, path: Path, payloads: Vec<Payload>) {
        let header = self.header(request.exchange, true, request.message_id);
        let Some(datagrams) = self.seal(cx, header, payloads) else {
            self.fail(cx, step_of(request.exchange), Fault::Expired);
            return;
        };
        self.window.answered(datagrams.clone());
        // RFC 7296 section 2.11: the answer goes where the request came from.
        self.transmit(cx, path, datagrams);
        for after in std::mem::take(&mut self.after) {
            match after {
                After::Activate(id) => self.activate_child(cx, id),
                After::CloseByPeer(end) => {
                    // Its last packets may be behind its Delete.
                    let lingering = self.retire_children(cx);
                    self.close(cx, end);
                    self.lingering = lingering;
                }
            }
        }
    }

    pub(crate) fn transmit(&mut self, cx: &mut Cx<'_>, path: Path, datagrams: Vec<Vec<u8>>) {
        let kept = matches!(self.phase, Phase::Established | Phase::Replaced | Phase::Deleting);
        let mut stash = kept.then(|| self.stash_update(cx.now)).flatten();
        let non_esp_marker = path.local.port() == cx.settings.nat_port;
        for bytes in datagrams {
            let stash = stash.take();
            cx.effects.push_back(Effect::Transmit { path, bytes, non_esp_marker, stash });
        }
        self.last_sent = cx.now;
    }

    /// The state to be kept with what is sent.
    pub(crate) fn stash_update(&self, now: Instant) -> Option<StashUpdate> {
        Some(StashUpdate { key: self.id.0, value: self.export(now)? })
    }

    /// Why and when it failed, for a diagnosis.
    pub(crate) fn diagnosis(&self, step: Step, fault: Fault) -> Diagnosis {
        let remote = Some(self.path.remote);
        Diagnosis { step, remote, by_peer: !self.initiator, spi: self.spi_i, fault }
    }

    /// Reports a failure that the SA survives.
    pub(crate) fn report(&self, cx: &mut Cx<'_>, step: Step, fault: Fault, retry_in: Option<Duration>) {
        let diagnosis = Box::new(self.diagnosis(step, fault));
        cx.effects.push_back(Effect::Event(Event::Failed { peer: self.peer, diagnosis, retry_in }));
    }

    /// Ends the SA because of a fault; the peer is not told.
    pub(crate) fn fail(&mut self, cx: &mut Cx<'_>, step: Step, fault: Fault) {
        let cause = match &fault {
            Fault::DeadPeer | Fault::Unreachable { .. } => DownCause::DeadPeer,
            Fault::PeerDeleted { .. } => DownCause::PeerDeleted,
            Fault::Expired => DownCause::Expired,
            Fault::InstallFailed => DownCause::InstallFailed,
            _ => DownCause::Refused,
        };
        let diagnosis = Some(self.diagnosis(step, fault));
        self.die(cx, Some(End { cause, diagnosis }));
    }

    /// Ends the SA; its children leave the core at once.
    pub(crate) fn die(&mut self, cx: &mut Cx<'_>, end: Option<End>) {
        self.drop_children(cx);
        cx.upcalls.extend(self.heir.map(Upcall::Release));
        self.window.settle();
        self.aside = Aside::default();
        let unused = match self.task.take() {
            Some(Task::Auth(task)) => task.spi_in,
            Some(Task::Child(task)) => Some(task.spi_in),
            Some(Task::Followup(followup)) => followup.spi_in(),
            Some(_) | None => None,
        };
        let awaited = self.awaited.take().and_then(|awaited| awaited.spi_in());
        unused.into_iter().chain(awaited).for_each(|spi| {
            cx.esp_spis.remove(&spi);
        });
        self.queue.clear();
        if self.end.is_none() {
            self.end = end;
        }
        self.phase = Phase::Dead;
    }

    /// Ends the SA, but keeps answering retransmissions for a while.
    pub(crate) fn close(&mut self, cx: &mut Cx<'_>, end: Option<End>) {
        if self.is_dead() {
            return;
        }
        self.die(cx, end);
        self.phase = Phase::Closed { until: cx.now + CLOSED_FOR };
        // A next life must not take it for one that works.
        if self.peer.is_some() {
            cx.effects.push_back(Effect::ForgetStash(self.id.0));
        }
    }

    /// Tells the peer that the SA ends, after everything under way.
    pub(crate) fn start_delete_ike(&mut self, cx: &mut Cx<'_>) {
        self.queue.clear();
        let payloads = vec![Payload::Delete(Delete::Ike)];
        self.phase = Phase::Deleting;
        self.start_request(cx, Task::DeleteIke, ExchangeType::Informational, payloads);
    }

    /// Ends the SA from our side: children at once, the Delete when the window allows.
    pub(crate) fn delete(&mut self, cx: &mut Cx<'_>, end: End) {
        match &self.phase {
            Phase::Established | Phase::Replaced => {
                self.drop_children(cx);
                if self.end.is_none() {
                    self.end = Some(end);
                }
                // A request under way is given up: its answer no longer matters, and a Delete waits for no one.
                self.queue.clear();
                self.phase = Phase::Replaced;
                self.drop_ours(cx);
                self.expires_at = cx.now + CLOSED_FOR * 2;
                self.want(cx.now, Want::DeleteIke);
                self.pump(cx);
            }
            Phase::Handshake(_) => self.die(cx, Some(end)),
            Phase::Deleting | Phase::Closed { .. } | Phase::Dead => {}
        }
    }

    /// Two NAT keepalives or messages are never farther apart than the settings say.
    pub(crate) fn send_keepalive(&mut self, cx: &mut Cx<'_>) {
        // RFC 3948 section 4: one octet 0xFF, without the marker.
        let (path, bytes) = (self.path, vec![0xff]);
        cx.effects.push_back(Effect::Transmit { path, bytes, non_esp_marker: false, stash: None });
        self.last_sent = cx.now;
    }
}

impl Cx<'_> {
    /// Uniform enough, below the bound.
    pub(crate) fn random_below(&mut self, bound: Duration) -> Duration {
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        if nanos == 0 { Duration::ZERO } else { Duration::from_nanos(random_u64(self.rng) % nanos) }
    }

    /// A fresh inbound ESP SPI, unique in the endpoint; RFC 4303 section 2.1: 1 to 255 are reserved.
    pub(crate) fn allocate_esp_spi(&mut self) -> u32 {
        loop {
            let spi = u32::from_be_bytes(crate::random::random_array(self.rng));
            if spi > 255 && self.esp_spis.insert(spi) {
                return spi;
            }
        }
    }
}

/// The step that an exchange is.
pub(crate) fn step_of(exchange: ExchangeType) -> Step {
    match exchange {
        ExchangeType::IkeSaInit => Step::Init,
        ExchangeType::IkeIntermediate => Step::Intermediate,
        ExchangeType::IkeAuth => Step::Auth,
        ExchangeType::CreateChildSa | ExchangeType::IkeFollowupKe => Step::CreateChild,
        ExchangeType::Informational => Step::Informational,
        ExchangeType::Other(_) => Step::Established,
    }
}

//! What happens to an IKE SA by time alone.

use std::time::{Duration, Instant};

use super::child::ChildState;
use super::exchanges::followup::FollowupKind;
use super::{CLOSED_FOR, Cx, End, IkeSa, Phase, Task, Upcall, Want, step_of};
use crate::diagnosis::{Fault, Step};
use crate::effect::{DownCause, TimerKind};
use crate::wire::ExchangeType;

/// An unanswered request is never given up sooner than this after it was sent.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at an SA without a child.
const CHILDLESS_AGAIN: Duration = Duration::from_secs(10);
/// How long a better answer may come after an error that nobody vouches for.
const CLAIM_PATIENCE: Duration = Duration::from_secs(1);
/// A peer whose ESP lives may leave IKE unanswered for this many DPD timeouts.
const ESP_PATIENCE: u32 = 4;

impl IkeSa {
    /// When [`IkeSa::handle_timeout`] has something to do, and what.
    pub(crate) fn deadline(&self, cx_settings: &crate::EndpointSettings) -> Option<(Instant, TimerKind)> {
        let mut first: Option<(Instant, TimerKind)> = None;
        let mut at = |instant: Instant, kind| {
            if first.is_none_or(|(earliest, _)| instant < earliest) {
                first = Some((instant, kind));
            }
        };
        // What is computed is answered, or goes on by itself.
        let is_busy = self.window.outstanding().is_some() || self.aside.is_ours();
        if let Some(out) = self.window.outstanding().filter(|_| !self.aside.is_ours()) {
            at(out.next_at, TimerKind::Retransmit);
            if let Some(end) = self.patience_ends(cx_settings) {
                at(end, TimerKind::Retransmit);
            }
        }
        match &self.phase {
            Phase::Handshake(_) if self.initiator => {}
            Phase::Handshake(_) => at(self.created + cx_settings.half_open_lifetime, TimerKind::Expiry),
            Phase::Established => {
                at(self.rekey_at.min(self.expires_at), TimerKind::Rekey);
                if !is_busy {
                    self.silent_at().into_iter().for_each(|due| at(due, TimerKind::Dpd));
                }
                if self.childless_since.is_some() {
                    at(self.childless_at, TimerKind::Queue);
                }
                self.contest.iter().for_each(|contest| at(contest.until, TimerKind::Dpd));
                if self.nat.here {
                    at(self.last_sent + cx_settings.keepalive, TimerKind::Keepalive);
                }
            }
            Phase::Replaced | Phase::Deleting => at(self.expires_at, TimerKind::Expiry),
            Phase::Closed { until } => at(*until, TimerKind::Expiry),
            Phase::Dead => {}
        }
        if !is_busy && matches!(self.phase, Phase::Established | Phase::Replaced) {
            self.queue.iter().for_each(|(due, want)| at(self.free_at(*due, *want), TimerKind::Queue));
        }
        if self.is_established() {
            self.children.iter().for_each(|child| at(child.deadline(), TimerKind::Rekey));
        }
        self.lingering.iter().for_each(|old| at(old.until, TimerKind::Expiry));
        first
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Cx<'_>) {
        self.handle_phase_timeout(cx);
        self.handle_request_timeout(cx);
        if self.is_established() {
            self.handle_children_timeout(cx);
        }
        if let Some(peer) = self.peer {
            let now = cx.now;
            let (due, kept) =
                std::mem::take(&mut self.lingering).into_iter().partition(|old| old.until <= now);
            self.lingering = kept;
            let due: Vec<super::child::Lingering> = due;
            due.into_iter().for_each(|old| old.remove(cx, peer));
        }
        self.pump(cx);
    }

    fn handle_phase_timeout(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        match &self.phase {
            Phase::Handshake(_) if self.initiator => {}
            Phase::Handshake(_) => {
                if now >= self.created + cx.settings.half_open_lifetime {
                    self.die(cx, None);
                }
            }
            Phase::Established if now >= self.expires_at => {
                let diagnosis = Some(self.diagnosis(Step::RekeyIke, Fault::Expired));
                self.delete(cx, End { cause: DownCause::Expired, diagnosis });
            }
            Phase::Established => {
                if now >= self.rekey_at || self.window.is_near_end() {
                    // Tried again at this pace until the hard end.
                    self.rekey_at = now + Duration::from_secs(30);
                    self.want(now, Want::RekeyIke);
                }
                let silent = self.silent_at().is_some_and(|at| now >= at);
                if silent && self.window.outstanding().is_none() && !self.aside.is_ours() {
                    self.want(now, Want::Probe);
                }
                if let (Some(_), Some(peer)) = (self.childless_since, self.peer)
                    && now >= self.childless_at
                {
                    self.childless_at = now + CHILDLESS_AGAIN;
                    cx.upcalls.push(Upcall::Childless { sa: self.id, peer });
                }
                if self.nat.here && now >= self.last_sent + cx.settings.keepalive {
                    self.send_keepalive(cx);
                }
                self.end_contest(cx);
            }
            // The peer did not delete what it replaced, or does not answer our Delete.
            Phase::Replaced if now >= self.expires_at => {
                self.expires_at = now + CLOSED_FOR;
                self.want(now, Want::DeleteIke);
            }
            Phase::Deleting if now >= self.expires_at => self.die(cx, None),
            Phase::Replaced | Phase::Deleting => {}
            Phase::Closed { until } if now >= *until => self.phase = Phase::Dead,
            Phase::Closed { .. } | Phase::Dead => {}
        }
    }

    /// When the peer's silence is to be asked about. Both sides fell silent for each other at the same time:
    /// the one that made the SA asks, and is heard, before the other would.
    fn silent_at(&self) -> Option<Instant> {
        let interval = self.config.as_ref()?.dpd_interval;
        let patience = if self.initiator { Duration::ZERO } else { interval / 8 };
        Some(self.last_heard + interval + patience)
    }

    fn handle_request_timeout(&mut self, cx: &mut Cx<'_>) {
        let Some(out) = self.window.outstanding().filter(|_| !self.aside.is_ours()) else { return };
        let (exchange, sent) = (out.exchange, out.sent);
        if self.patience_ends(cx.settings).is_some_and(|end| cx.now >= end) {
            match &self.phase {
                // Nothing was ever lost with it.
                Phase::Replaced | Phase::Deleting => self.die(cx, None),
                Phase::Handshake(handshake) => {
                    let claimed = handshake.claimed.as_ref().map(|(_, fault)| fault.clone());
                    self.fail(cx, step_of(exchange), claimed.unwrap_or(Fault::Unreachable { sent }));
                }
                Phase::Established | Phase::Closed { .. } | Phase::Dead => {
                    self.fail(cx, step_of(exchange), Fault::DeadPeer);
                }
            }
            return;
        }
        let path = self.path;
        let longest =
            if self.contest.is_some() { cx.settings.retransmit_first } else { cx.settings.retransmit_max };
        if let Some(datagrams) = self.window.retransmit(cx.now, longest).map(<[Vec<u8>]>::to_vec) {
            cx.counters.retransmissions += 1;
            self.transmit(cx, path, datagrams);
        }
    }

    /// When the request under way is given up.
    fn patience_ends(&self, settings: &crate::EndpointSettings) -> Option<Instant> {
        let out = self.window.outstanding()?;
        let config = self.config.as_ref()?;
        Some(match &self.phase {
            Phase::Handshake(handshake) => {
                let end = out.since + settings.connect_timeout;
                handshake.claimed.as_ref().map_or(end, |(at, _)| end.min(*at + CLAIM_PATIENCE))
            }
            Phase::Replaced | Phase::Deleting => out.since + settings.connect_timeout.min(config.dpd_timeout),
            Phase::Established | Phase::Closed { .. } | Phase::Dead => {
                // ESP that was authenticated counts as life, but not for ever: without IKE no key is replaced.
                let end = self.last_heard.max(out.since - config.dpd_interval.min(config.dpd_timeout));
                (end + config.dpd_timeout)
                    .max(out.since + LEAST_PATIENCE)
                    .min(out.since + config.dpd_timeout * ESP_PATIENCE)
            }
        })
    }

    fn handle_children_timeout(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        let due: Vec<_> = self.children.iter().filter(|c| c.deadline() <= now).map(|c| c.id).collect();
        for id in due {
            let Some(child) = self.child_mut(id) else { continue };
            let unused = child.pending_out.as_ref().is_some_and(|(until, _)| *until <= now);
            if unused || child.expires_at <= now {
                self.expire_child(cx, id, unused);
            } else if child.state == ChildState::Live && child.rekey_at <= now {
                self.want_child_rekey(now, id);
            }
        }
    }

    /// A child comes to its end, or the peer never used it: it is deleted.
    fn expire_child(&mut self, cx: &mut Cx<'_>, id: crate::ChildId, unused: bool) {
        let now = cx.now;
        let Some(child) = self.child_mut(id) else { return };
        child.expires_at = now + CLOSED_FOR;
        child.pending_out = None;
        let (was, had, unused) = (child.state, child.is_usable(), unused || child.is_half());
        child.state = ChildState::Deleting;
        self.want(now, Want::DeleteChild(id));
        match was {
            ChildState::Deleting => return,
            // The peer has neither used nor dropped it; it had its time.
            ChildState::Replaced(heir) => self.activate_child(cx, heir),
            ChildState::Live | ChildState::Rekeying if had => {
                self.report(cx, Step::RekeyChild, Fault::Expired, None)
            }
            ChildState::Live | ChildState::Rekeying | ChildState::Redundant => {}
        }
        if unused {
            let waiting = self.children.iter_mut().filter(|old| old.state == ChildState::Replaced(id));
            waiting.for_each(|old| old.state = ChildState::Live);
        }
        self.note_children(now);
    }

    /// Queues the replacement of a child.
    pub(crate) fn want_child_rekey(&mut self, now: Instant, id: crate::ChildId) {
        if let Some(child) = self.child_mut(id).filter(|child| child.state == ChildState::Live) {
            child.state = ChildState::Rekeying;
            self.want(now, Want::RekeyChild(id));
        }
    }

    /// Which exchange is under way, for the status.
    pub(crate) fn current_exchange(&self) -> Option<ExchangeType> {
        self.task.as_ref()?;
        self.window.outstanding().map(|out| out.exchange)
    }

    /// Whether the answer to a request of ours may make a child that the peer holds already.
    pub(crate) fn is_making_child(&self) -> bool {
        match &self.task {
            Some(Task::Forgotten { spi_in, .. }) => spi_in.is_some(),
            Some(Task::DeleteChildren(_)) => false,
            _ => self.is_busy_with_child(),
        }
    }

    /// Whether a child of this SA is being made, replaced or deleted by us (RFC 7296 section 2.25.2).
    pub(crate) fn is_busy_with_child(&self) -> bool {
        match &self.task {
            Some(Task::Child(_) | Task::DeleteChildren(_)) => true,
            Some(Task::Followup(followup)) => matches!(followup.kind, FollowupKind::Child(_)),
            Some(Task::Forgotten { busy, .. }) => *busy,
            Some(
                Task::Init
                | Task::Intermediate
                | Task::Auth(_)
                | Task::RekeyIke(_)
                | Task::DeleteIke
                | Task::Probe
                | Task::MoveAddresses { .. },
            )
            | None => false,
        }
    }
}

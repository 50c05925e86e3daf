//! CREATE_CHILD_SA for children (RFC 7296 sections 1.3.1, 1.3.3, 2.8, 2.25): new ones and replacements.
//!
//! Make before break: the new pair carries traffic before the old one is deleted, by the side that asked. A
//! responder keeps sending on the old pair until it sees the new one used or the old one deleted.

use std::time::{Duration, Instant};

use super::super::beside::Ours;
use super::super::child::{Child, ChildState, ChildTerms};
use super::super::parts::Parts;
use super::super::{After, Cx, IkeSa, Task, Want};
use super::auth::refused;
use super::followup::{Followup, FollowupKind};
use super::negotiate::{check_answer, child_offers, choose_child, first_group, proposed_selectors};
use crate::SecretBytes;
use crate::crypto::{KeMethod, KePrivate};
use crate::diagnosis::{Fault, Step, Violation};
use crate::effect::{ChildId, Effect, Event};
use crate::proposal::ChildExchange;
use crate::settings::PeerConfig;
use crate::wire::{ExchangeType, KePayload, Nonce, Notify, NotifySubject, NotifyType, Payload, ProtocolId};

/// Between two attempts that failed for a reason that may last.
const RETRY: Duration = Duration::from_secs(30);

/// The peer's simultaneous rekey of the child that we are rekeying (RFC 7296 section 2.8.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ChildCollision {
    pub(crate) child: ChildId,
    /// The lower of that exchange's nonces.
    pub(crate) low_nonce: Vec<u8>,
}

/// Our CREATE_CHILD_SA under way.
#[derive(Debug)]
pub(crate) struct ChildTask {
    pub(crate) replaces: Option<ChildId>,
    pub(crate) spi_in: u32,
    pub(crate) ni: Nonce,
    pub(crate) ke: Option<KePrivate>,
    pub(crate) retried: bool,
    pub(crate) collision: Option<ChildCollision>,
}

/// A child agreed on, whose key exchanges are not all made.
#[derive(Debug)]
pub(crate) struct PendingChild {
    pub(crate) replaces: Option<ChildId>,
    pub(crate) terms: ChildTerms,
    pub(crate) ni: Nonce,
    pub(crate) nr: Nonce,
    pub(crate) collision: Option<ChildCollision>,
}

impl PendingChild {
    fn low_nonce(&self) -> Vec<u8> {
        self.ni.octets().min(self.nr.octets()).to_vec()
    }
}

impl IkeSa {
    pub(crate) fn start_create_child(&mut self, cx: &mut Cx<'_>) {
        let Some(config) = self.config.clone() else { return };
        if self.usable_child().is_none() {
            self.send_create_child(cx, &config, None, first_group(&config), false);
        }
    }

    pub(crate) fn start_rekey_child(&mut self, cx: &mut Cx<'_>, id: ChildId) {
        let Some(config) = self.config.clone() else { return };
        // The peer may have replaced or deleted it while the request waited.
        let still = self.child_mut(id).filter(|child| child.state == ChildState::Rekeying);
        let Some(child) = still else { return };
        let group = child.terms.suite.ke.or_else(|| first_group(&config));
        self.send_create_child(cx, &config, Some(id), group, false);
    }

    /// The key pair is there. What it was for may have come about otherwise.
    pub(crate) fn go_on_with_child(
        &mut self,
        cx: &mut Cx<'_>,
        replaces: Option<ChildId>,
        group: KeMethod,
        retried: bool,
    ) {
        let Some(config) = self.config.clone().filter(|_| self.is_established()) else { return };
        let is_missed = match replaces {
            Some(old) => self.child_mut(old).is_some_and(|child| child.state == ChildState::Rekeying),
            None => self.usable_child().is_none(),
        };
        if is_missed {
            self.send_create_child(cx, &config, replaces, Some(group), retried);
        }
    }

    fn send_create_child(
        &mut self,
        cx: &mut Cx<'_>,
        config: &PeerConfig,
        replaces: Option<ChildId>,
        group: Option<KeMethod>,
        retried: bool,
    ) {
        if let Some(group) = group
            && self.awaits_key_pair(cx, group, Ours::Child { replaces, group, retried })
        {
            return;
        }
        let ke = match group.map(|group| cx.key_pair(group)).transpose() {
            Ok(ke) => ke,
            Err(_) => {
                return self.retry_child(cx, replaces, Fault::Violation(Violation::BadPublicValue), RETRY);
            }
        };
        let spi_in = cx.allocate_esp_spi();
        let ni = Nonce::generate(cx.rng);
        let mut payloads = Vec::new();
        let old = replaces.and_then(|id| self.child_mut(id)).map(|child| child.terms.spi_in);
        // RFC 7296 section 1.3.3: the old pair by the SPI that we receive on.
        payloads.extend(old.map(|spi| Payload::Notify(Notify::about_esp(NotifyType::REKEY_SA, spi))));
        payloads.push(Payload::Sa(child_offers(config, spi_in, ChildExchange::CreateChildSa)));
        payloads.push(Payload::Nonce(ni.clone()));
        payloads
            .extend(ke.as_ref().map(|ke| {
                Payload::Ke(KePayload { group: ke.method().number(), data: ke.public().to_vec() })
            }));
        payloads.extend(proposed_selectors(config));
        let task = ChildTask { replaces, spi_in, ni, ke, retried, collision: None };
        self.start_request(cx, Task::Child(Box::new(task)), ExchangeType::CreateChildSa, payloads);
    }

    pub(crate) fn handle_child_response(&mut self, cx: &mut Cx<'_>, mut task: ChildTask, parts: &Parts<'_>) {
        let Some(config) = self.config.clone().filter(|_| self.is_established()) else {
            cx.esp_spis.remove(&task.spi_in);
            return;
        };
        if let Some(error) = parts.error() {
            cx.esp_spis.remove(&task.spi_in);
            return self.handle_child_refusal(cx, &config, task, error);
        }
        let answer = check_answer(&config, parts, task.spi_in, ChildExchange::CreateChildSa);
        let (terms, nr) = match (answer, parts.nonce) {
            (Ok(terms), Some(nr)) => (terms, nr.clone()),
            (answer, _) => {
                let fault = answer.err().unwrap_or(Fault::Violation(Violation::MissingPayload("Nr")));
                return self.discard_child(cx, &task, fault);
            }
        };
        let shared = match (terms.suite.ke, task.ke.take(), parts.ke) {
            (None, _, _) => Some(Vec::new()),
            (Some(method), Some(private), Some(ke))
                if ke.group == method.number() && private.method() == method =>
            {
                cx.agree(&private, &ke.data).ok().map(|secret| vec![secret])
            }
            (Some(_), _, _) => None,
        };
        let Some(shared) = shared else {
            return self.discard_child(cx, &task, Fault::Violation(Violation::BadPublicValue));
        };
        let additional = terms.suite.additional.clone();
        let ChildTask { replaces, ni, collision, .. } = task;
        let pending = PendingChild { replaces, terms, ni, nr, collision };
        let kind = FollowupKind::Child(Box::new(pending));
        self.continue_exchange(cx, Followup { kind, shared, additional, ke: None }, parts);
    }

    /// The answer does not do: the peer holds a pair that we cannot use, and is told to delete it.
    fn discard_child(&mut self, cx: &mut Cx<'_>, task: &ChildTask, fault: Fault) {
        cx.esp_spis.remove(&task.spi_in);
        let step = if task.replaces.is_some() { Step::RekeyChild } else { Step::CreateChild };
        self.fail(cx, step, fault);
    }

    fn handle_child_refusal(
        &mut self,
        cx: &mut Cx<'_>,
        config: &PeerConfig,
        task: ChildTask,
        error: &Notify,
    ) {
        let ChildTask { replaces, collision, retried, ke, .. } = task;
        if collision.is_some() {
            return self.settle_child(cx.now, replaces, collision.as_ref(), RETRY);
        }
        match error.kind {
            // RFC 7296 section 2.25: somebody's other exchange is in the way.
            NotifyType::TEMPORARY_FAILURE => {
                let pause = Duration::from_secs(1) + cx.random_below(Duration::from_secs(3));
                self.postpone_child(cx.now, replaces, pause);
            }
            // RFC 7296 section 2.25.1: the peer has it no longer; a new one is made if it is missed.
            NotifyType::CHILD_SA_NOT_FOUND => {
                let half = replaces.and_then(|old| self.child_mut(old)).is_some_and(|old| old.is_half());
                if half {
                    // The answer of an earlier life that makes it may not have arrived.
                    let pause = Duration::from_secs(1) + cx.random_below(Duration::from_secs(3));
                    self.postpone_child(cx.now, replaces, pause);
                } else if let Some(old) = replaces {
                    self.end_child(cx, old, cx.settings.old_inbound_grace);
                }
            }
            NotifyType::INVALID_KE_PAYLOAD if !retried => {
                let group = error.wanted_group().and_then(KeMethod::from_number);
                let offered = config.esp_proposals.iter().any(|p| group.is_some_and(|g| p.kes.contains(&g)));
                if offered && ke.is_some_and(|ke| Some(ke.method()) != group) {
                    self.send_create_child(cx, config, replaces, group, true);
                } else {
                    self.retry_child(cx, replaces, Fault::PeerError(error.kind), RETRY);
                }
            }
            kind => self.retry_child(cx, replaces, refused(config, kind), RETRY),
        }
    }

    /// Our exchange came to nothing: the peer's of the same child stands, or ours is made again later.
    pub(crate) fn settle_child(
        &mut self,
        now: Instant,
        replaces: Option<ChildId>,
        collision: Option<&ChildCollision>,
        pause: Duration,
    ) {
        let old = replaces.and_then(|old| self.child_mut(old));
        match (old, collision) {
            (Some(old), Some(rival)) => old.state = ChildState::Replaced(rival.child),
            (_, None) => self.postpone_child(now, replaces, pause),
            (None, Some(_)) => {}
        }
    }

    fn postpone_child(&mut self, now: Instant, replaces: Option<ChildId>, pause: Duration) {
        match replaces {
            Some(old) => {
                if let Some(child) = self.child_mut(old).filter(|child| child.state == ChildState::Rekeying) {
                    child.state = ChildState::Live;
                    child.rekey_at = now + pause;
                }
            }
            None => self.want(now + pause, Want::CreateChild),
        }
    }

    fn retry_child(&mut self, cx: &mut Cx<'_>, replaces: Option<ChildId>, fault: Fault, pause: Duration) {
        let step = if replaces.is_some() { Step::RekeyChild } else { Step::CreateChild };
        self.report(cx, step, fault, Some(pause));
        self.postpone_child(cx.now, replaces, pause);
    }

    /// Initiator: all secrets are there.
    pub(crate) fn finish_our_child(
        &mut self,
        cx: &mut Cx<'_>,
        pending: PendingChild,
        shared: &[SecretBytes],
    ) {
        let low_nonce = pending.low_nonce();
        let PendingChild { replaces, terms, ni, nr, collision } = pending;
        let (spi, secrets) = (terms.spi_in, shared.iter().collect::<Vec<_>>());
        if self.early_deletes.contains(&terms.spi_out) {
            cx.esp_spis.remove(&spi);
            return self.settle_child(cx.now, replaces, collision.as_ref(), Duration::from_secs(1));
        }
        let Some(new) = self.make_child(cx, terms, &secrets, (&ni, &nr), true) else {
            cx.esp_spis.remove(&spi);
            return self.retry_child(cx, replaces, Fault::InstallFailed, RETRY);
        };
        // RFC 7296 section 2.8.1: of two replacements the one with the lowest nonce is closed by its maker.
        let rival = collision.filter(|rival| self.child_mut(rival.child).is_some());
        if let Some(rival) = rival {
            if low_nonce < rival.low_nonce {
                if let Some(child) = self.child_mut(new) {
                    child.make_redundant(cx.now);
                    child.mark_deleting(cx.now);
                }
                if let Some(old) = replaces.and_then(|old| self.child_mut(old)) {
                    old.state = ChildState::Replaced(rival.child);
                }
                self.want(cx.now, Want::DeleteChild(new));
                return;
            }
            if let Some(child) = self.child_mut(rival.child) {
                child.make_redundant(cx.now);
            }
        }
        // The peer made one meanwhile: one is enough, and this one its maker can delete.
        let other = |child: &Child| child.id != new && (child.is_usable() || child.pending_out.is_some());
        if replaces.is_none() && self.children.iter().any(other) {
            if let Some(child) = self.child_mut(new) {
                child.make_redundant(cx.now);
                child.mark_deleting(cx.now);
            }
            self.want(cx.now, Want::DeleteChild(new));
            return;
        }
        self.activate_child(cx, new);
        if let Some(child) = replaces.and_then(|old| self.child_mut(old)) {
            let old = child.id;
            child.mark_deleting(cx.now);
            self.want(cx.now, Want::DeleteChild(old));
            self.note_rekey(cx, old, new);
        }
    }

    fn note_rekey(&mut self, cx: &mut Cx<'_>, old: ChildId, new: ChildId) {
        self.child_rekeys += 1;
        if let Some(peer) = self.peer {
            cx.effects.push_back(Effect::Event(Event::ChildRekeyed { peer, old, new }));
        }
    }

    /// Responder: CREATE_CHILD_SA of either kind.
    pub(crate) fn handle_create_child(&mut self, cx: &mut Cx<'_>, parts: &Parts<'_>) -> Vec<Payload> {
        let of_ike =
            parts.sa.and_then(|offers| offers.first()).is_some_and(|p| p.protocol == ProtocolId::Ike);
        let answer = if of_ike {
            self.handle_rekey_ike_request(cx, parts)
        } else {
            self.handle_child_request(cx, parts)
        };
        answer.unwrap_or_else(|notify| vec![Payload::Notify(notify)])
    }

    fn handle_child_request(&mut self, cx: &mut Cx<'_>, parts: &Parts<'_>) -> Result<Vec<Payload>, Notify> {
        let config = self.config.clone().ok_or(Notify::bare(NotifyType::NO_ADDITIONAL_SAS))?;
        // RFC 7296 section 2.25.2: not while the IKE SA itself is being replaced or closed.
        if !self.is_established() || self.is_rekeying_ike() {
            return Err(Notify::bare(NotifyType::TEMPORARY_FAILURE));
        }
        let replaces =
            parts.notify(NotifyType::REKEY_SA).map(|notify| self.rekeyed_child(notify)).transpose()?;
        // Both sides miss a child and make one: the maker of the IKE SA goes first.
        let ours_too = matches!(&self.task, Some(Task::Child(task)) if task.replaces.is_none());
        if replaces.is_none() && ours_too && self.initiator {
            return Err(Notify::bare(NotifyType::TEMPORARY_FAILURE));
        }
        if self.children.len() >= super::super::MAX_CHILDREN {
            return Err(Notify::bare(NotifyType::NO_ADDITIONAL_SAS));
        }
        let exchange = ChildExchange::CreateChildSa;
        let chosen = choose_child(&config, parts, exchange).map_err(|refusal| {
            let step = if replaces.is_some() { Step::RekeyChild } else { Step::CreateChild };
            self.report(cx, step, refusal.fault, None);
            refusal.notify
        })?;
        let ni = parts.nonce.ok_or(Notify::bare(NotifyType::INVALID_SYNTAX))?.clone();
        let (public, shared) = match chosen.selected.suite.ke {
            None => (None, Vec::new()),
            Some(method) => {
                let ke = parts.ke.filter(|ke| ke.group == method.number());
                let ke = ke.ok_or(Notify::invalid_ke(method.number()))?;
                let answer = cx.answer_ke(method, &ke.data);
                let (public, secret) = answer.map_err(|_| Notify::bare(NotifyType::INVALID_SYNTAX))?;
                (Some(KePayload { group: method.number(), data: public }), vec![secret])
            }
        };
        let (spi_in, nr) = (cx.allocate_esp_spi(), Nonce::generate(cx.rng));
        let (sa, selectors) = chosen.payloads(spi_in);
        let mut payloads = vec![sa, Payload::Nonce(nr.clone())];
        payloads.extend(public.map(Payload::Ke));
        payloads.extend(selectors);
        let terms = chosen.terms(spi_in);
        let additional = terms.suite.additional.clone();
        let pending = PendingChild { replaces, terms, ni, nr, collision: None };
        let kind = FollowupKind::Child(Box::new(pending));
        payloads.extend(self.await_followup(cx, Followup { kind, shared, additional, ke: None })?);
        Ok(payloads)
    }

    /// The child that a REKEY_SA names, if it may be rekeyed (RFC 7296 section 2.25.1).
    fn rekeyed_child(&self, notify: &Notify) -> Result<ChildId, Notify> {
        let NotifySubject::Esp(spi) = notify.subject else {
            return Err(Notify::bare(NotifyType::INVALID_SYNTAX));
        };
        let child = self.children.iter().find(|child| child.terms.spi_out == spi);
        match child.map(|child| (child.id, child.state)) {
            // The answer that makes it may be late; the peer would end a child that we are about to learn of.
            None if self.is_making_child() => Err(Notify::bare(NotifyType::TEMPORARY_FAILURE)),
            None => Err(Notify::about_esp(NotifyType::CHILD_SA_NOT_FOUND, spi)),
            Some((_, ChildState::Deleting)) => Err(Notify::bare(NotifyType::TEMPORARY_FAILURE)),
            Some((
                id,
                ChildState::Live | ChildState::Rekeying | ChildState::Replaced(_) | ChildState::Redundant,
            )) => Ok(id),
        }
    }

    /// Responder: all secrets are there.
    pub(crate) fn finish_peers_child(
        &mut self,
        cx: &mut Cx<'_>,
        pending: PendingChild,
        shared: &[SecretBytes],
    ) -> Result<(), Notify> {
        let low_nonce = pending.low_nonce();
        let PendingChild { replaces, terms, ni, nr, .. } = pending;
        let (spi, secrets) = (terms.spi_in, shared.iter().collect::<Vec<_>>());
        let Some(new) = self.make_child(cx, terms, &secrets, (&ni, &nr), false) else {
            cx.esp_spis.remove(&spi);
            return Err(Notify::bare(NotifyType::NO_ADDITIONAL_SAS));
        };
        let Some(old) = replaces else {
            self.after.push(After::Activate(new));
            return Ok(());
        };
        if let Some(rival) = self.our_rekey_of(old) {
            *rival = Some(ChildCollision { child: new, low_nonce });
            return Ok(());
        }
        match self.child_mut(old) {
            Some(child) => {
                child.state = ChildState::Replaced(new);
                self.note_rekey(cx, old, new);
            }
            // It was deleted between the exchanges.
            None => self.after.push(After::Activate(new)),
        }
        Ok(())
    }

    /// Our own rekey of a child, if it is under way.
    pub(crate) fn our_rekey_of(&mut self, old: ChildId) -> Option<&mut Option<ChildCollision>> {
        match &mut self.task {
            Some(Task::Child(task)) if task.replaces == Some(old) => Some(&mut task.collision),
            Some(Task::Followup(followup)) => match &mut followup.kind {
                FollowupKind::Child(pending) if pending.replaces == Some(old) => Some(&mut pending.collision),
                FollowupKind::Child(_) | FollowupKind::Ike(_) => None,
            },
            _ => None,
        }
    }
}

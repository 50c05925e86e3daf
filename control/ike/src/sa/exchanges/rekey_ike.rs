//! CREATE_CHILD_SA for the IKE SA itself (RFC 7296 sections 1.3.2, 2.8.2, 2.18, 2.25.2).
//!
//! The children go to the new SA; the side that asked deletes the old one. When both sides asked at once, the
//! new SA whose exchange has the lowest nonce is deleted by its maker, and the other inherits.

use std::time::Duration;

use super::super::beside::Ours;
use super::super::parts::Parts;
use super::super::{Bequest, CLOSED_FOR, Cx, End, IkeSa, Phase, Task, Upcall, Want};
use super::followup::{Followup, FollowupKind};
use super::init::offers;
use crate::SecretBytes;
use crate::crypto::{Contribution, IkeSuite, KeMethod, KePrivate};
use crate::diagnosis::{Fault, Step, Violation};
use crate::effect::{DownCause, Effect, Event, IkeSaId};
use crate::proposal::IkeProposal;
use crate::random::random_array;
use crate::settings::PeerConfig;
use crate::wire::{ExchangeType, IkeSpi, KePayload, Nonce, Notify, NotifyType, Payload, ProposalSpi};

/// Our CREATE_CHILD_SA under way.
#[derive(Debug)]
pub(crate) struct RekeyTask {
    spi: IkeSpi,
    ni: Nonce,
    pub(crate) ke: KePrivate,
    retried: bool,
}

/// The peer's simultaneous rekey: its new SA, and the lower nonce of its exchange.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct IkeCollision {
    pub(crate) sa: IkeSaId,
    pub(crate) low_nonce: Vec<u8>,
}

/// A new IKE SA agreed on, whose key exchanges are not all made.
#[derive(Debug)]
pub(crate) struct PendingIke {
    suite: IkeSuite,
    spi_i: IkeSpi,
    spi_r: IkeSpi,
    ni: Nonce,
    nr: Nonce,
}

impl IkeSa {
    pub(crate) fn start_rekey_ike(&mut self, cx: &mut Cx<'_>) {
        let (Some(config), Some(crypt)) = (self.config.clone(), &self.crypt) else { return };
        if self.is_established() {
            let group = crypt.keys.suite().ke;
            self.send_rekey_ike(cx, &config, group, false);
        }
    }

    /// The key pair is there.
    pub(crate) fn go_on_with_ike(&mut self, cx: &mut Cx<'_>, group: KeMethod, retried: bool) {
        if let Some(config) = self.config.clone().filter(|_| self.is_established()) {
            self.send_rekey_ike(cx, &config, group, retried);
        }
    }

    fn send_rekey_ike(&mut self, cx: &mut Cx<'_>, config: &PeerConfig, group: KeMethod, retried: bool) {
        if self.awaits_key_pair(cx, group, Ours::Ike { group, retried }) {
            return;
        }
        let Ok(ke) = cx.key_pair(group) else { return };
        let (spi, ni) = (IkeSpi(random_array(cx.rng)), Nonce::generate(cx.rng));
        let payloads = vec![
            Payload::Sa(offers(&config.ike_proposals, ProposalSpi::Ike(spi))),
            Payload::Nonce(ni.clone()),
            Payload::Ke(KePayload { group: group.number(), data: ke.public().to_vec() }),
        ];
        let task = RekeyTask { spi, ni, ke, retried };
        self.start_request(cx, Task::RekeyIke(Box::new(task)), ExchangeType::CreateChildSa, payloads);
    }

    /// Whether our own rekey of this SA is under way.
    pub(crate) fn is_rekeying_ike(&self) -> bool {
        match &self.task {
            Some(Task::RekeyIke(_)) => true,
            Some(Task::Followup(followup)) => matches!(followup.kind, FollowupKind::Ike(_)),
            Some(Task::Forgotten { rekeys_ike, .. }) => *rekeys_ike,
            _ => false,
        }
    }

    pub(crate) fn handle_rekey_ike_response(&mut self, cx: &mut Cx<'_>, task: RekeyTask, parts: &Parts<'_>) {
        let Some(config) = self.config.clone().filter(|_| self.is_established()) else { return };
        if let Some(error) = parts.error() {
            return self.handle_rekey_ike_refusal(cx, &config, task, error);
        }
        let RekeyTask { spi, ni, ke: private, .. } = task;
        let selected = parts.sa.and_then(|answer| IkeProposal::accept(&config.ike_proposals, answer));
        let (Some(selected), Some(nr), Some(ke)) = (selected, parts.nonce, parts.ke) else {
            return self.fail(cx, Step::RekeyIke, Fault::Violation(Violation::NotOffered));
        };
        let peer_spi = match selected.peer_spi {
            ProposalSpi::Ike(spi) if !spi.is_zero() => spi,
            _ => return self.fail(cx, Step::RekeyIke, Fault::Violation(Violation::BadSpi)),
        };
        let fits = selected.suite.ke == private.method() && ke.group == private.method().number();
        let Some(secret) = fits.then(|| cx.agree(&private, &ke.data).ok()).flatten() else {
            return self.fail(cx, Step::RekeyIke, Fault::Violation(Violation::BadPublicValue));
        };
        let additional = selected.suite.additional.clone();
        let pending = PendingIke { suite: selected.suite, spi_i: spi, spi_r: peer_spi, ni, nr: nr.clone() };
        let kind = FollowupKind::Ike(Box::new(pending));
        self.continue_exchange(cx, Followup { kind, shared: vec![secret], additional, ke: None }, parts);
    }

    fn handle_rekey_ike_refusal(
        &mut self,
        cx: &mut Cx<'_>,
        config: &PeerConfig,
        task: RekeyTask,
        error: &Notify,
    ) {
        if self.yield_to_peers_rekey(cx) {
            return;
        }
        match error.kind {
            NotifyType::TEMPORARY_FAILURE => {
                let pause = Duration::from_secs(1) + cx.random_below(Duration::from_secs(3));
                self.rekey_at = cx.now + pause;
            }
            NotifyType::INVALID_KE_PAYLOAD if !task.retried => {
                let group = error.wanted_group().and_then(KeMethod::from_number);
                let group = group.filter(|g| config.ike_proposals.iter().any(|p| p.kes.contains(g)));
                if let Some(group) = group {
                    self.send_rekey_ike(cx, config, group, true);
                }
            }
            kind => {
                let fault = match kind {
                    NotifyType::NO_PROPOSAL_CHOSEN => Fault::NoProposal {
                        ours: offers(&config.ike_proposals, ProposalSpi::None),
                        peers: Vec::new(),
                    },
                    other => Fault::PeerError(other),
                };
                // Tried again by the timer, until the hard end makes a new SA.
                self.report(cx, Step::RekeyIke, fault, Some(Duration::from_secs(30)));
            }
        }
    }

    /// The peer's own rekey stands: its SA inherits. The peer deletes this one.
    pub(crate) fn yield_to_peers_rekey(&mut self, cx: &mut Cx<'_>) -> bool {
        let (Some(collision), Some(peer)) = (self.collision.take(), self.peer) else { return false };
        cx.upcalls.push(Upcall::Bequest(Box::new(Bequest {
            to: collision.sa,
            peer,
            children: std::mem::take(&mut self.children),
            lingering: std::mem::take(&mut self.lingering),
            queue: self.take_child_wants(),
            child_rekeys: self.child_rekeys,
            contest: self.contest.take(),
        })));
        self.heir = Some(collision.sa);
        self.retire(cx);
        true
    }

    /// From now on another SA stands for this one.
    fn retire(&mut self, cx: &Cx<'_>) {
        self.phase = Phase::Replaced;
        self.queue.clear();
        self.expires_at = cx.now + CLOSED_FOR * 2;
        self.childless_since = None;
    }

    /// Initiator: all secrets are there.
    pub(crate) fn finish_our_ike(&mut self, cx: &mut Cx<'_>, pending: &PendingIke, shared: &[SecretBytes]) {
        let Some(mut new) = self.successor(cx, true, pending, shared) else {
            return self.fail(cx, Step::RekeyIke, Fault::Violation(Violation::BadNonce));
        };
        let low_nonce = pending.ni.octets().min(pending.nr.octets());
        // RFC 7296 section 2.8.2.
        if self.collision.as_ref().is_some_and(|rival| low_nonce < rival.low_nonce.as_slice()) {
            new.delete(cx, End { cause: DownCause::Deleted, diagnosis: None });
            // The children first: the peer is never without any.
            self.yield_to_peers_rekey(cx);
            cx.upcalls.push(Upcall::New(Box::new(new)));
            return;
        }
        self.collision = None;
        self.bequeath(cx, &mut new);
        // The peer may hold the children back until it knows that the old SA is gone.
        new.held_until = Some(cx.now + CLOSED_FOR);
        cx.upcalls.push(Upcall::New(Box::new(new)));
        self.want(cx.now, Want::DeleteIke);
    }

    /// Responder: CREATE_CHILD_SA with a proposal for IKE.
    pub(crate) fn handle_rekey_ike_request(
        &mut self,
        cx: &mut Cx<'_>,
        parts: &Parts<'_>,
    ) -> Result<Vec<Payload>, Notify> {
        let config = self.config.clone().ok_or(Notify::bare(NotifyType::NO_ADDITIONAL_SAS))?;
        // RFC 7296 section 2.25.2: not while a child of it is in the making, or it is being closed.
        if !self.is_established() || self.is_busy_with_child() || self.collision.is_some() {
            return Err(Notify::bare(NotifyType::TEMPORARY_FAILURE));
        }
        let syntax = || Notify::bare(NotifyType::INVALID_SYNTAX);
        let (offered, ni) = (parts.sa.ok_or_else(syntax)?, parts.nonce.ok_or_else(syntax)?);
        let Some(selected) = IkeProposal::select(&config.ike_proposals, offered) else {
            let ours = offers(&config.ike_proposals, ProposalSpi::None);
            let fault = Fault::NoProposal { ours, peers: offered.to_vec() };
            self.report(cx, Step::RekeyIke, fault, None);
            return Err(Notify::bare(NotifyType::NO_PROPOSAL_CHOSEN));
        };
        let spi_i = match selected.peer_spi {
            ProposalSpi::Ike(spi) if !spi.is_zero() => spi,
            _ => return Err(syntax()),
        };
        let method = selected.suite.ke;
        let ke = parts.ke.filter(|ke| ke.group == method.number());
        let ke = ke.ok_or(Notify::invalid_ke(method.number()))?;
        let (public, secret) = cx.answer_ke(method, &ke.data).map_err(|_| syntax())?;
        let (spi_r, nr) = (IkeSpi(random_array(cx.rng)), Nonce::generate(cx.rng));
        let answer = IkeProposal::answer(&selected.suite, selected.number, ProposalSpi::Ike(spi_r));
        let mut payloads = vec![
            Payload::Sa(vec![answer]),
            Payload::Nonce(nr.clone()),
            Payload::Ke(KePayload { group: method.number(), data: public }),
        ];
        let additional = selected.suite.additional.clone();
        let pending = PendingIke { suite: selected.suite, spi_i, spi_r, ni: ni.clone(), nr };
        let kind = FollowupKind::Ike(Box::new(pending));
        payloads
            .extend(self.await_followup(cx, Followup { kind, shared: vec![secret], additional, ke: None })?);
        Ok(payloads)
    }

    /// Responder: all secrets are there.
    pub(crate) fn finish_peers_ike(
        &mut self,
        cx: &mut Cx<'_>,
        pending: &PendingIke,
        shared: &[SecretBytes],
    ) -> Result<(), Notify> {
        let refuse = || Notify::bare(NotifyType::TEMPORARY_FAILURE);
        if !self.is_established() || self.is_busy_with_child() {
            return Err(refuse());
        }
        let mut new = self.successor(cx, false, pending, shared).ok_or_else(refuse)?;
        if self.is_rekeying_ike() {
            let low_nonce = pending.ni.octets().min(pending.nr.octets()).to_vec();
            self.collision = Some(IkeCollision { sa: new.id, low_nonce });
            new.held_until = Some(cx.now + CLOSED_FOR * 2);
            cx.effects.extend(new.stash_update(cx.now).map(Effect::Stash));
        } else {
            self.bequeath(cx, &mut new);
        }
        cx.upcalls.push(Upcall::New(Box::new(new)));
        Ok(())
    }

    /// A fresh SA between the same two, without children.
    fn successor(
        &self,
        cx: &mut Cx<'_>,
        initiator: bool,
        pending: &PendingIke,
        shared: &[SecretBytes],
    ) -> Option<Self> {
        let config = self.config.clone()?;
        let with = Contribution {
            initiator_nonce: &pending.ni,
            responder_nonce: &pending.nr,
            initiator_spi: pending.spi_i,
            responder_spi: pending.spi_r,
        };
        let secrets: Vec<_> = shared.iter().collect();
        let keys = self.crypt.as_ref()?.keys.rekeyed(&pending.suite, &secrets, with).ok()?;
        let spis = (pending.spi_i, pending.spi_r);
        let mut new = Self::blank(cx, initiator, spis, self.path, Phase::Established);
        new.take_keys(cx, keys, 0).ok()?;
        (new.peer, new.caps) = (self.peer, self.caps.clone());
        (new.began, new.first_spis) = (self.began, Some(self.first_spis()));
        new.nat = super::super::nat::Nat { seen: None, ..self.nat };
        new.start_lifetime(cx, config.ike_lifetime);
        new.config = Some(config);
        new.childless_since = Some(cx.now);
        Some(new)
    }

    /// Gives all that lives to the successor.
    fn bequeath(&mut self, cx: &mut Cx<'_>, new: &mut Self) {
        new.children = std::mem::take(&mut self.children);
        new.lingering = std::mem::take(&mut self.lingering);
        new.queue = self.take_child_wants();
        new.child_rekeys = self.child_rekeys;
        new.take_contest(cx.now, self.contest.take());
        new.note_children(cx.now);
        self.heir = Some(new.id);
        self.retire(cx);
        cx.effects.extend(new.stash_update(cx.now).map(Effect::Stash));
        if let Some(peer) = self.peer {
            cx.effects.push_back(Effect::Event(Event::IkeRekeyed { peer }));
        }
    }
}

//! IKE_FOLLOWUP_KE (RFC 9370 section 2.2.4): additional key exchanges after CREATE_CHILD_SA, one each, tied to
//! it by the opaque data of ADDITIONAL_KEY_EXCHANGE. Without any, CREATE_CHILD_SA is complete at once.

use std::time::{Duration, Instant};

use super::super::beside::Ours;
use super::super::parts::Parts;
use super::super::{Cx, IkeSa, Task};
use super::create_child::PendingChild;
use super::rekey_ike::PendingIke;
use crate::SecretBytes;
use crate::crypto::{KeMethod, KePrivate};
use crate::diagnosis::{Fault, Step, Violation};
use crate::random::random_array;
use crate::wire::{ExchangeType, KePayload, Notify, NotifyType, Payload};

/// How long a responder waits for the next exchange.
const WAIT: Duration = Duration::from_secs(30);
/// Longest link data accepted.
const MAX_LINK: usize = 256;

/// What the exchanges are for.
#[derive(Debug)]
pub(crate) enum FollowupKind {
    Child(Box<PendingChild>),
    Ike(Box<PendingIke>),
}

/// An SA in the making.
#[derive(Debug)]
pub(crate) struct Followup {
    pub(crate) kind: FollowupKind,
    /// The secrets so far, in order.
    pub(crate) shared: Vec<SecretBytes>,
    /// Still to be made.
    pub(crate) additional: Vec<(u8, KeMethod)>,
    /// Initiator: the one under way.
    pub(crate) ke: Option<KePrivate>,
}

impl Followup {
    /// Our inbound SPI of the child in the making.
    pub(crate) fn spi_in(&self) -> Option<u32> {
        match &self.kind {
            FollowupKind::Child(pending) => Some(pending.terms.spi_in),
            FollowupKind::Ike(_) => None,
        }
    }
}

/// Responder: an SA in the making, and how its next exchange is known.
#[derive(Debug)]
pub(crate) struct AwaitedFollowup {
    link: [u8; 16],
    until: Instant,
    followup: Followup,
}

impl AwaitedFollowup {
    /// Our inbound SPI of the child in the making.
    pub(crate) fn spi_in(&self) -> Option<u32> {
        self.followup.spi_in()
    }

    /// Key exchanges still to be made.
    pub(crate) fn additional(&self) -> &[(u8, KeMethod)] {
        &self.followup.additional
    }
}

impl IkeSa {
    /// Initiator: makes the next key exchange, or the SA.
    pub(crate) fn continue_exchange(&mut self, cx: &mut Cx<'_>, followup: Followup, parts: &Parts<'_>) {
        let Some(&(_, method)) = followup.additional.first() else {
            return match followup.kind {
                FollowupKind::Child(pending) => self.finish_our_child(cx, *pending, &followup.shared),
                FollowupKind::Ike(pending) => self.finish_our_ike(cx, &pending, &followup.shared),
            };
        };
        let link = parts.notify(NotifyType::ADDITIONAL_KEY_EXCHANGE).filter(|n| n.data.len() <= MAX_LINK);
        let Some(link) = link else {
            let missing = Violation::MissingPayload("ADDITIONAL_KEY_EXCHANGE");
            return self.abandon(cx, &followup, Fault::Violation(missing));
        };
        if self.awaits_key_pair(cx, method, Ours::Followup(link.clone())) {
            // It stands for what is being made, for whatever the peer does meanwhile.
            self.task = Some(Task::Followup(Box::new(followup)));
        } else {
            self.send_followup(cx, followup, link.clone());
        }
    }

    /// The next key exchange, tied to the one before.
    pub(crate) fn send_followup(&mut self, cx: &mut Cx<'_>, mut followup: Followup, link: Notify) {
        let made = followup.additional.first().map(|(_, method)| (*method, cx.key_pair(*method)));
        let Some((method, Ok(private))) = made else {
            return self.abandon(cx, &followup, Fault::Violation(Violation::BadPublicValue));
        };
        let payloads = vec![
            Payload::Ke(KePayload { group: method.number(), data: private.public().to_vec() }),
            Payload::Notify(link),
        ];
        followup.ke = Some(private);
        self.start_request(cx, Task::Followup(Box::new(followup)), ExchangeType::IkeFollowupKe, payloads);
    }

    pub(crate) fn handle_followup_response(
        &mut self,
        cx: &mut Cx<'_>,
        mut followup: Followup,
        parts: &Parts<'_>,
    ) {
        if !self.is_established() {
            return self.release(cx, &followup);
        }
        let secret = match (followup.ke.take(), parts.ke, parts.error()) {
            (Some(private), Some(ke), None) if ke.group == private.method().number() => {
                cx.agree(&private, &ke.data).ok()
            }
            (_, _, Some(error)) => return self.abandon(cx, &followup, Fault::PeerError(error.kind)),
            (_, _, None) => None,
        };
        let Some(secret) = secret else {
            return self.abandon(cx, &followup, Fault::Violation(Violation::BadPublicValue));
        };
        followup.shared.push(secret);
        followup.additional.remove(0);
        self.continue_exchange(cx, followup, parts);
    }

    pub(crate) fn release(&mut self, cx: &mut Cx<'_>, followup: &Followup) {
        if let FollowupKind::Child(pending) = &followup.kind {
            cx.esp_spis.remove(&pending.terms.spi_in);
        }
    }

    fn abandon(&mut self, cx: &mut Cx<'_>, followup: &Followup, fault: Fault) {
        self.release(cx, followup);
        let pause = Duration::from_secs(5) + cx.random_below(Duration::from_secs(5));
        match &followup.kind {
            FollowupKind::Child(pending) => {
                self.report(cx, Step::RekeyChild, fault, Some(pause));
                self.settle_child(cx.now, pending.replaces, pending.collision.as_ref(), pause);
            }
            FollowupKind::Ike(_) => {
                self.report(cx, Step::RekeyIke, fault, Some(pause));
                if !self.yield_to_peers_rekey(cx) {
                    self.rekey_at = cx.now + pause;
                }
            }
        }
    }

    /// Responder: makes the SA, or waits for the next key exchange.
    pub(crate) fn await_followup(
        &mut self,
        cx: &mut Cx<'_>,
        followup: Followup,
    ) -> Result<Option<Payload>, Notify> {
        if followup.additional.is_empty() {
            match followup.kind {
                FollowupKind::Child(pending) => self.finish_peers_child(cx, *pending, &followup.shared)?,
                FollowupKind::Ike(pending) => self.finish_peers_ike(cx, &pending, &followup.shared)?,
            }
            return Ok(None);
        }
        if let Some(old) = self.awaited.take() {
            self.release(cx, &old.followup);
        }
        let link: [u8; 16] = random_array(cx.rng);
        self.awaited = Some(Box::new(AwaitedFollowup { link, until: cx.now + WAIT, followup }));
        Ok(Some(Payload::Notify(Notify::new(NotifyType::ADDITIONAL_KEY_EXCHANGE, link.to_vec()))))
    }

    pub(crate) fn handle_followup(&mut self, cx: &mut Cx<'_>, parts: &Parts<'_>) -> Vec<Payload> {
        let answer = self.answer_followup(cx, parts);
        answer.unwrap_or_else(|notify| vec![Payload::Notify(notify)])
    }

    fn answer_followup(&mut self, cx: &mut Cx<'_>, parts: &Parts<'_>) -> Result<Vec<Payload>, Notify> {
        let link = parts.notify(NotifyType::ADDITIONAL_KEY_EXCHANGE).map(|notify| notify.data.as_slice());
        let known = self.awaited.take_if(|awaited| link == Some(&awaited.link[..]) && cx.now < awaited.until);
        // RFC 9370 section 2.2.4: the state may have been given up.
        let AwaitedFollowup { mut followup, .. } = *known.ok_or(Notify::bare(NotifyType::STATE_NOT_FOUND))?;
        let method = followup.additional.first().map(|(_, method)| *method);
        let ke = parts.ke.filter(|ke| method.is_some_and(|method| method.number() == ke.group));
        let answer = method.zip(ke).and_then(|(method, ke)| cx.answer_ke(method, &ke.data).ok());
        let Some((public, secret)) = answer else {
            self.release(cx, &followup);
            return Err(Notify::bare(NotifyType::INVALID_SYNTAX));
        };
        let group = ke.map_or(0, |ke| ke.group);
        followup.additional.remove(0);
        followup.shared.push(secret);
        let mut payloads = vec![Payload::Ke(KePayload { group, data: public })];
        payloads.extend(self.await_followup(cx, followup)?);
        Ok(payloads)
    }
}

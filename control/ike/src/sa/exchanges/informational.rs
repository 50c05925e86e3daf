//! INFORMATIONAL (RFC 7296 section 1.4): deletions, liveness, and MOBIKE's address updates (RFC 4555).

use super::super::child::ChildState;
use super::super::nat::Nat;
use super::super::parts::Parts;
use super::super::{After, Cx, End, IkeSa, Phase, Task, Want};
use super::auth::rejected;
use crate::crypto::constant_time_eq;
use crate::diagnosis::{Fault, Step, Violation};
use crate::effect::{ChildId, DownCause, Path};
use crate::random::random_array;
use crate::wire::{Delete, ExchangeType, Notify, NotifyType, Payload};

/// An SA deleted sooner than this after it was made points at the peer's configuration.
const AT_ONCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Most SPIs remembered that were deleted before they were known.
const MAX_EARLY_DELETES: usize = 16;

impl IkeSa {
    pub(crate) fn handle_informational(
        &mut self,
        cx: &mut Cx<'_>,
        path: Path,
        parts: &Parts<'_>,
    ) -> Vec<Payload> {
        let mut payloads = Vec::new();
        let deletes_ike = parts.deletes.iter().any(|delete| matches!(delete, Delete::Ike));
        if deletes_ike {
            // RFC 7296 section 1.4.1: the answer to it is empty, and its children end with it.
            self.peer_deletes_ike(cx, parts);
            return payloads;
        }
        let mut ended = Vec::new();
        for delete in &parts.deletes {
            if let Delete::Esp(spis) = delete {
                spis.iter().for_each(|spi| ended.extend(self.peer_deletes_child(cx, *spi)));
            }
        }
        if !ended.is_empty() {
            payloads.push(Payload::Delete(Delete::Esp(ended)));
        }
        if self.caps.mobike {
            if parts.has(NotifyType::UPDATE_SA_ADDRESSES) {
                self.peer_moves(cx, path, parts, &mut payloads);
            }
            // RFC 4555 section 3.8: in the request means in the answer; nothing else follows from it.
            if let Some(config) = self.config.as_ref().filter(|_| Nat::is_asked(parts)) {
                let (mode, spi_i, spi_r) = (config.encapsulation, self.spi_i, self.spi_r);
                payloads.extend(Nat::payloads(mode, cx.rng, spi_i, spi_r, path));
            }
        }
        payloads.extend(parts.cookie2());
        payloads
    }

    fn peer_deletes_ike(&mut self, cx: &mut Cx<'_>, parts: &Parts<'_>) {
        // RFC 7296 section 2.25.2: a rekey of ours that is under way is forgotten; the peer's stands.
        self.yield_to_peers_rekey(cx);
        let refused = parts.has(NotifyType::AUTHENTICATION_FAILED);
        let end = matches!(self.phase, Phase::Established).then(|| {
            let at_once = cx.now < self.created + AT_ONCE;
            let fault = match &self.config {
                Some(config) if refused => rejected(config),
                Some(_) | None => Fault::PeerDeleted { at_once },
            };
            let diagnosis = Some(self.diagnosis(Step::Informational, fault));
            End { cause: DownCause::PeerDeleted, diagnosis }
        });
        self.after.push(After::CloseByPeer(end));
    }

    /// The peer ends a child by the SPI it receives on; returns ours of the pair.
    fn peer_deletes_child(&mut self, cx: &mut Cx<'_>, spi_out: u32) -> Option<u32> {
        let Some(child) = self.children.iter().find(|child| child.terms.spi_out == spi_out) else {
            // The answer that makes it may be late.
            if self.is_busy_with_child() && self.early_deletes.len() < MAX_EARLY_DELETES {
                self.early_deletes.push(spi_out);
            }
            return None;
        };
        let (id, spi_in, state) = (child.id, child.terms.spi_in, child.state);
        let heir = match state {
            ChildState::Replaced(heir) => Some(heir),
            // The peer's rekey is done, ours of the same child is still under way.
            ChildState::Rekeying => {
                self.our_rekey_of(id).and_then(|rival| rival.as_ref()).map(|rival| rival.child)
            }
            ChildState::Live | ChildState::Redundant | ChildState::Deleting => None,
        };
        // RFC 7296 section 2.8: now the peer is known to use the new pair.
        if let Some(heir) = heir {
            self.activate_child(cx, heir);
        }
        let until = cx.now + cx.settings.old_inbound_grace;
        let waits = heir.and_then(|heir| self.child_mut(heir)).is_some_and(|heir| heir.is_half());
        match self.child_mut(id) {
            // Nothing can go out by its heir: until that has one, what is under way may still be received.
            Some(child) if waits => child.expires_at = child.expires_at.min(until),
            Some(_) | None => self.end_child(cx, id, cx.settings.old_inbound_grace),
        }
        // RFC 7296 section 1.4.1: what our own Delete under way names is not named again.
        let ours_under_way = matches!(&self.task, Some(Task::DeleteChildren(ids)) if ids.contains(&id));
        (!ours_under_way).then_some(spi_in)
    }

    pub(crate) fn start_delete_children(&mut self, cx: &mut Cx<'_>, first: ChildId) {
        // One message for all that wait.
        let mut ids = vec![first];
        self.queue.retain(|(_, want)| match want {
            Want::DeleteChild(id) => {
                ids.push(*id);
                false
            }
            _ => true,
        });
        let mut spis = Vec::new();
        for id in &ids {
            if let Some(child) = self.child_mut(*id) {
                child.mark_deleting(cx.now);
                spis.push(child.terms.spi_in);
            }
        }
        self.note_children(cx.now);
        if !spis.is_empty() {
            let payloads = vec![Payload::Delete(Delete::Esp(spis))];
            self.start_request(cx, Task::DeleteChildren(ids), ExchangeType::Informational, payloads);
        }
    }

    pub(crate) fn handle_children_deleted(&mut self, cx: &mut Cx<'_>, ids: &[ChildId]) {
        ids.iter().for_each(|id| self.end_child(cx, *id, cx.settings.old_inbound_grace));
    }

    /// Asks whether the peer lives, and behind a NAT where it sees us (RFC 4555 section 3.8).
    pub(crate) fn start_probe(&mut self, cx: &mut Cx<'_>) {
        let mut payloads = Vec::new();
        if let Some(config) = self.config.as_ref().filter(|_| self.caps.mobike && self.began && self.nat.here)
        {
            let (mode, spi_i, spi_r) = (config.encapsulation, self.spi_i, self.spi_r);
            payloads = Nat::payloads(mode, cx.rng, spi_i, spi_r, self.path);
        }
        self.note_asked();
        self.start_request(cx, Task::Probe, ExchangeType::Informational, payloads);
    }

    pub(crate) fn handle_probe_response(&mut self, cx: &mut Cx<'_>, parts: &Parts<'_>) {
        self.note_alive(cx);
        // RFC 4555 section 3.8: the NAT maps us to another address or port, which the peer does not follow
        // by itself.
        if self.caps.mobike && self.began && self.nat.has_moved(parts) {
            self.want(cx.now, Want::MoveAddresses(self.path));
        }
    }

    /// MOBIKE: tells the peer that we are elsewhere (RFC 4555 section 3.5).
    pub(crate) fn start_move(&mut self, cx: &mut Cx<'_>, path: Path) {
        let Some(config) = self.config.clone() else { return };
        self.move_to(cx, path);
        let cookie2: [u8; 16] = random_array(cx.rng);
        let mut payloads = vec![
            Payload::Notify(Notify::bare(NotifyType::UPDATE_SA_ADDRESSES)),
            Payload::Notify(Notify::new(NotifyType::COOKIE2, cookie2.to_vec())),
        ];
        payloads.extend(Nat::payloads(config.encapsulation, cx.rng, self.spi_i, self.spi_r, path));
        let task = Task::MoveAddresses { cookie2: cookie2.to_vec(), path };
        self.start_request(cx, task, ExchangeType::Informational, payloads);
    }

    pub(crate) fn handle_move_response(
        &mut self,
        cx: &mut Cx<'_>,
        cookie2: &[u8],
        path: Path,
        parts: &Parts<'_>,
    ) {
        if parts.error().is_some() {
            if self.path == path {
                self.want(cx.now + cx.settings.retransmit_max, Want::MoveAddresses(path));
            }
            return;
        }
        // RFC 4555 sections 3.7 and 4.2.5: another cookie ends the SA.
        let echoed = parts.notify(NotifyType::COOKIE2).is_some_and(|n| constant_time_eq(&n.data, cookie2));
        if !echoed {
            let fault = Fault::Violation(Violation::MissingPayload("COOKIE2"));
            let diagnosis = Some(self.diagnosis(Step::Informational, fault));
            return self.delete(cx, End { cause: DownCause::Refused, diagnosis });
        }
        let nat = Nat::detect(parts, self.spi_i, self.spi_r, path);
        // Another move may have begun meanwhile.
        if nat.supported && self.path == path {
            self.change_way(cx, path, nat);
        }
    }

    fn peer_moves(&mut self, cx: &mut Cx<'_>, path: Path, parts: &Parts<'_>, payloads: &mut Vec<Payload>) {
        let nat = Nat::detect(parts, self.spi_i, self.spi_r, path);
        // RFC 4555 section 3.9: the peer forbids NATs, yet there is one.
        if parts.has(NotifyType::NO_NATS_ALLOWED) && (nat.here || nat.there) {
            payloads.push(Payload::Notify(Notify::bare(NotifyType::UNEXPECTED_NAT_DETECTED)));
            return;
        }
        if path != self.path {
            // RFC 4555 section 3.5: what waits for an answer went by the old path.
            self.window.hurry(cx.now, cx.settings);
        }
        self.change_way(cx, path, if nat.supported { nat } else { self.nat });
    }
}

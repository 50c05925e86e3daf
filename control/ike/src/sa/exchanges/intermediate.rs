//! IKE_INTERMEDIATE (RFC 9242) as far as RFC 9370 needs it: one additional key exchange each, in the order of
//! their slots, before IKE_AUTH. What was exchanged is authenticated by IKE_AUTH.

use super::super::beside::Ours;
use super::super::parts::Parts;
use super::super::{Cx, IkeSa, Phase, Task};
use crate::crypto::{Contribution, SharedSecret};
use crate::diagnosis::{Fault, Step, Violation};
use crate::effect::Path;
use crate::wire::fragment::inner_chain;
use crate::wire::{ExchangeType, Header, KePayload, Message, Notify, NotifyType, Opened, Payload};

impl IkeSa {
    pub(crate) fn send_intermediate(&mut self, cx: &mut Cx<'_>) {
        let header = self.header(ExchangeType::IkeIntermediate, false, self.window.next_request());
        let Phase::Handshake(handshake) = &self.phase else { return };
        let Some(&(_, method)) = handshake.additional.first() else { return };
        if self.awaits_key_pair(cx, method, Ours::Intermediate) {
            return;
        }
        let Phase::Handshake(handshake) = &mut self.phase else { return };
        let Ok(private) = cx.key_pair(method) else {
            self.violate(cx, ExchangeType::IkeIntermediate, Violation::BadPublicValue);
            return;
        };
        let payloads =
            vec![Payload::Ke(KePayload { group: method.number(), data: private.public().to_vec() })];
        handshake.ke = Some(private);
        self.cover(&header, &payloads);
        self.start_request(cx, Task::Intermediate, ExchangeType::IkeIntermediate, payloads);
    }

    /// Adds one of our messages to what AUTH covers.
    fn cover(&mut self, header: &Header, payloads: &[Payload]) {
        let (first, chain) = inner_chain(payloads);
        let octets = Message::int_auth_octets(header, first, &chain);
        let initiator = self.initiator;
        if let (Phase::Handshake(handshake), Some(crypt)) = (&mut self.phase, &self.crypt) {
            handshake.int_auth.add(&crypt.keys, initiator, &octets);
        }
    }

    /// Adds one of the peer's.
    fn cover_received(&mut self, opened: &Opened) {
        let octets = Message::int_auth_octets(&opened.header, opened.first_inner, &opened.inner);
        let initiator = self.initiator;
        if let (Phase::Handshake(handshake), Some(crypt)) = (&mut self.phase, &self.crypt) {
            handshake.int_auth.add(&crypt.keys, !initiator, &octets);
        }
    }

    pub(crate) fn handle_intermediate_response(
        &mut self,
        cx: &mut Cx<'_>,
        opened: &Opened,
        parts: &Parts<'_>,
    ) {
        self.cover_received(opened);
        let Phase::Handshake(handshake) = &mut self.phase else { return };
        let (Some(private), Some(ke)) = (handshake.ke.take(), parts.ke) else {
            let fault = parts.error().map_or(Fault::Violation(Violation::MissingPayload("KE")), |error| {
                Fault::PeerError(error.kind)
            });
            self.fail(cx, Step::Intermediate, fault);
            return;
        };
        if ke.group != private.method().number() {
            self.violate(cx, ExchangeType::IkeIntermediate, Violation::NotOffered);
            return;
        }
        handshake.additional.remove(0);
        let Some(()) = cx.agree(&private, &ke.data).ok().and_then(|shared| self.mix(cx, &shared)) else {
            self.violate(cx, ExchangeType::IkeIntermediate, Violation::BadPublicValue);
            return;
        };
        self.continue_handshake(cx);
    }

    /// Responder: answers one additional key exchange. The answer still goes under the old keys.
    pub(crate) fn handle_intermediate_request(
        &mut self,
        cx: &mut Cx<'_>,
        path: Path,
        opened: &Opened,
        parts: &Parts<'_>,
    ) {
        let request = opened.header;
        self.cover_received(opened);
        let Phase::Handshake(handshake) = &mut self.phase else { return };
        let wanted = handshake.additional.first().map(|(_, method)| *method);
        let (Some(method), Some(ke)) = (wanted, parts.ke) else {
            self.refuse_intermediate(cx, &request, path);
            return;
        };
        let answer = (ke.group == method.number()).then(|| cx.answer_ke(method, &ke.data).ok()).flatten();
        let Some((public, shared)) = answer else {
            self.refuse_intermediate(cx, &request, path);
            return;
        };
        handshake.additional.remove(0);
        let payloads = vec![Payload::Ke(KePayload { group: method.number(), data: public })];
        let header = self.header(request.exchange, true, request.message_id);
        self.cover(&header, &payloads);
        self.respond(cx, &request, path, payloads);
        if self.mix(cx, &shared).is_none() {
            self.violate(cx, ExchangeType::IkeIntermediate, Violation::BadPublicValue);
        }
    }

    fn refuse_intermediate(&mut self, cx: &mut Cx<'_>, request: &Header, path: Path) {
        let payloads = vec![Payload::Notify(Notify::bare(NotifyType::INVALID_SYNTAX))];
        self.respond(cx, request, path, payloads);
        let diagnosis = Some(self.diagnosis(Step::Intermediate, Fault::Violation(Violation::NotOffered)));
        self.close(cx, Some(super::super::End { cause: crate::DownCause::Refused, diagnosis }));
    }

    /// RFC 9370 section 2.2.2: the next keys.
    fn mix(&mut self, cx: &mut Cx<'_>, shared: &SharedSecret) -> Option<()> {
        let Phase::Handshake(handshake) = &self.phase else { return None };
        let with = Contribution {
            initiator_nonce: &handshake.ni,
            responder_nonce: handshake.nr.as_ref()?,
            initiator_spi: self.spi_i,
            responder_spi: self.spi_r,
        };
        let keys = self.crypt.as_ref()?.keys.intermediate(shared, with).ok()?;
        self.take_keys(cx, keys, 0).ok()
    }
}

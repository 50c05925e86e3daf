//! What a datagram is to an IKE SA: a new request, an old one, the awaited answer, or nothing.

use aws_lc_rs::digest::{SHA256, digest};

use super::beside::Ours;
use super::nat::Nat;
use super::parts::Parts;
use super::window::RequestAge;
use super::{Cx, End, IkeSa, Phase, Task, step_of};
use crate::diagnosis::{Fault, Violation};
use crate::effect::{DownCause, Effect, Event, Path};
use crate::wire::{
    DecodeError, ExchangeType, Header, Message, Notify, NotifyType, Opened, Parsed, Payload, Sealed,
};

impl IkeSa {
    /// Takes a datagram that carries this SA's SPIs.
    pub(crate) fn receive(&mut self, cx: &mut Cx<'_>, path: Path, bytes: &[u8], parsed: Parsed<'_>) {
        let header = match &parsed {
            Parsed::Plain(message) => &message.header,
            Parsed::Sealed(sealed) => &sealed.header,
        };
        // RFC 7296 section 3.1: the flag names the side that made the SA.
        if header.from_initiator == self.initiator {
            cx.counters.unexpected += 1;
            return;
        }
        match parsed {
            Parsed::Plain(message) => self.receive_plain(cx, path, bytes, &message),
            Parsed::Sealed(sealed) if sealed.header.response => self.receive_response(cx, path, sealed),
            Parsed::Sealed(sealed) => self.receive_request(cx, path, bytes, sealed),
        }
        self.pump(cx);
    }

    fn receive_plain(&mut self, cx: &mut Cx<'_>, path: Path, bytes: &[u8], message: &Message) {
        let awaited = message.header.response
            && message.header.exchange == ExchangeType::IkeSaInit
            && self.window.awaits(message.header.message_id, ExchangeType::IkeSaInit);
        if awaited && self.aside.is_ours() {
            // The first answer is the one.
            cx.counters.unexpected += 1;
        } else if awaited && matches!(self.task, Some(Task::Init)) {
            self.handle_init_response(cx, path, bytes, message);
        } else {
            // Nothing else is ever accepted in clear.
            cx.counters.unauthenticated += 1;
        }
    }

    fn receive_response(&mut self, cx: &mut Cx<'_>, path: Path, sealed: Sealed<'_>) {
        let header = sealed.header;
        if !self.window.awaits(header.message_id, header.exchange) || self.aside.is_ours() {
            cx.counters.unexpected += 1;
            return;
        }
        let fragment = sealed.fragment;
        let Some(opened) = self.open(cx, sealed) else { return };
        self.heard(cx, path);
        let whole = match fragment {
            Some(position) => self.window.responses.insert(position, opened),
            None => Some(opened),
        };
        if let Some(opened) = whole {
            self.take_answer(cx, opened);
        }
    }

    /// Takes the authentic answer up, or puts it aside until the secret is computed.
    pub(crate) fn take_answer(&mut self, cx: &mut Cx<'_>, opened: Opened) {
        let message = match opened.decode() {
            Ok(message) => message,
            // RFC 7296 section 2.21: what is authentic and malformed ends the SA.
            Err(error) => return self.fail(cx, step_of(opened.header.exchange), malformed(error)),
        };
        let agreement = self.agreement(&Parts::of(&message.payloads));
        let asked = agreement.and_then(|(private, peer)| self.awaits_agreement(cx, private, peer));
        match asked {
            Some(id) => self.put_aside(id, Ours::Answer(opened)),
            None => self.handle_response(cx, &opened, &message),
        }
    }

    fn receive_request(&mut self, cx: &mut Cx<'_>, path: Path, bytes: &[u8], sealed: Sealed<'_>) {
        let header = sealed.header;
        let first = sealed.fragment.is_none_or(|position| position.number == 1);
        match self.window.request_age(header.message_id) {
            RequestAge::Outside => cx.counters.outside_window += 1,
            // RFC 7383 section 2.6.1: only the first fragment brings the answer again.
            RequestAge::Answered if first => {
                let authentic = self.crypt.as_ref().is_some_and(|crypt| sealed.open(&crypt.opener).is_ok());
                let Some(answer) = self.window.answer_again(&sha256(bytes), authentic) else {
                    cx.counters.unauthenticated += 1;
                    return;
                };
                cx.counters.retransmitted_requests += 1;
                let non_esp_marker = path.local.port() == cx.settings.nat_port;
                for bytes in answer {
                    let bytes = bytes.clone();
                    cx.effects.push_back(Effect::Transmit { path, bytes, non_esp_marker, stash: None });
                }
            }
            RequestAge::Answered => {}
            RequestAge::Next if self.aside.is_peers() => cx.counters.retransmitted_requests += 1,
            RequestAge::Next => {
                let fragment = sealed.fragment;
                let Some(opened) = self.open(cx, sealed) else { return };
                if first {
                    self.window.arriving(sha256(bytes));
                }
                let whole = match fragment {
                    Some(position) => self.window.requests.insert(position, opened),
                    None => Some(opened),
                };
                if let Some(opened) = whole {
                    self.take_request(cx, path, opened);
                }
            }
        }
    }

    fn open(&mut self, cx: &mut Cx<'_>, sealed: Sealed<'_>) -> Option<Opened> {
        let opened = self.crypt.as_ref().and_then(|crypt| sealed.open(&crypt.opener).ok());
        if opened.is_none() {
            cx.counters.unauthenticated += 1;
        }
        opened
    }

    fn take_request(&mut self, cx: &mut Cx<'_>, path: Path, opened: Opened) {
        self.heard(cx, path);
        let header = opened.header;
        match opened.decode() {
            Ok(message) => self.admit_request(cx, path, opened, &message),
            // RFC 7296 section 2.5: the request is refused, the SA stays.
            Err(DecodeError::UnsupportedCritical(kind)) => {
                let notify = Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![kind]);
                self.respond(cx, &header, path, vec![Payload::Notify(notify)]);
            }
            Err(error) => {
                // RFC 7296 section 2.21.3: fatal to both sides, and only when authenticated.
                let payloads = vec![Payload::Notify(Notify::bare(NotifyType::INVALID_SYNTAX))];
                self.respond(cx, &header, path, payloads);
                let diagnosis = Some(self.diagnosis(step_of(header.exchange), malformed(error)));
                self.close(cx, Some(End { cause: DownCause::Refused, diagnosis }));
            }
        }
    }

    /// The answer to what was put aside is computed.
    pub(crate) fn answer_request(&mut self, cx: &mut Cx<'_>, path: Path, opened: Opened) {
        if let Ok(message) = opened.decode() {
            self.handle_request(cx, path, &opened, &message);
        }
    }

    pub(crate) fn handle_request(&mut self, cx: &mut Cx<'_>, path: Path, opened: &Opened, message: &Message) {
        let header = message.header;
        match &self.phase {
            Phase::Handshake(_) => self.handle_handshake_request(cx, path, opened, message),
            Phase::Established | Phase::Replaced | Phase::Deleting => {
                let parts = Parts::of(&message.payloads);
                let payloads = match header.exchange {
                    ExchangeType::Informational => self.handle_informational(cx, path, &parts),
                    ExchangeType::CreateChildSa => self.handle_create_child(cx, &parts),
                    ExchangeType::IkeFollowupKe => self.handle_followup(cx, &parts),
                    // RFC 7296 section 2.21.3: an exchange out of place is a protocol error.
                    ExchangeType::IkeSaInit
                    | ExchangeType::IkeAuth
                    | ExchangeType::IkeIntermediate
                    | ExchangeType::Other(_) => {
                        vec![Payload::Notify(Notify::bare(NotifyType::INVALID_SYNTAX))]
                    }
                };
                self.respond(cx, &header, path, payloads);
            }
            Phase::Closed { .. } | Phase::Dead => cx.counters.unexpected += 1,
        }
    }

    fn handle_response(&mut self, cx: &mut Cx<'_>, opened: &Opened, message: &Message) {
        let Some(sent) = self.window.settle() else { return };
        let parts = Parts::of(&message.payloads);
        match self.task.take() {
            Some(Task::Intermediate) => self.handle_intermediate_response(cx, opened, &parts),
            Some(Task::Auth(task)) => self.handle_auth_response(cx, *task, &parts),
            Some(Task::Child(task)) => self.handle_child_response(cx, *task, &parts),
            Some(Task::RekeyIke(task)) => self.handle_rekey_ike_response(cx, *task, &parts),
            Some(Task::Followup(followup)) => self.handle_followup_response(cx, *followup, &parts),
            Some(Task::DeleteChildren(ids)) => self.handle_children_deleted(cx, &ids),
            Some(Task::DeleteIke) => self.die(cx, None),
            Some(Task::Probe) => self.handle_probe_response(cx, &parts),
            Some(Task::MoveAddresses { cookie2, path }) => {
                self.handle_move_response(cx, &cookie2, path, &parts)
            }
            Some(Task::Forgotten { spi_in, rekeys_ike, .. }) => {
                self.handle_forgotten(cx, spi_in, rekeys_ike, &parts)
            }
            Some(Task::Init) | None => {
                self.fail(cx, step_of(sent.exchange), Fault::Violation(Violation::UnexpectedExchange));
            }
        }
        if self.task.is_none() {
            self.early_deletes.clear();
        }
        // RFC 7296 section 2.21.3: after INVALID_SYNTAX the SA is as good as gone.
        if parts.has(NotifyType::INVALID_SYNTAX) && self.is_established() {
            self.fail(cx, step_of(sent.exchange), Fault::PeerError(NotifyType::INVALID_SYNTAX));
        }
    }

    /// Something fresh and authentic came from the peer.
    fn heard(&mut self, cx: &mut Cx<'_>, path: Path) {
        self.last_heard = cx.now;
        if path == self.path {
            return;
        }
        // RFC 7296 section 2.23: a peer behind a NAT is followed to where its authentic packets come from;
        // in the handshake the peer decides on the ports. RFC 4555 section 3.8: with MOBIKE an IKE message
        // changes nothing unless it says so, and ESP alone is followed.
        let is_dynamic = self.nat.there && !self.caps.mobike;
        let follow = is_dynamic || (self.is_handshake() && !self.initiator);
        if follow {
            self.move_to(cx, path);
        }
    }

    /// From now on the peer is reached by this path.
    pub(crate) fn move_to(&mut self, cx: &mut Cx<'_>, path: Path) {
        self.change_way(cx, path, self.nat);
    }

    /// From now on the peer is reached by this path, with these NATs on it; ESP may go in UDP or bare now.
    pub(crate) fn change_way(&mut self, cx: &mut Cx<'_>, path: Path, nat: Nat) {
        let before = self.esp_transport();
        (self.path, self.nat) = (path, nat);
        let (transport, path) = self.esp_transport();
        let Some(peer) = self.peer.filter(|_| !self.is_handshake()) else { return };
        if before != (transport, path) {
            cx.effects.push_back(Effect::Event(Event::EndpointMoved { peer, path, transport }));
        }
    }

    /// Authentic octets that break the protocol end an SA that is being made.
    pub(crate) fn violate(&mut self, cx: &mut Cx<'_>, exchange: ExchangeType, violation: Violation) {
        self.fail(cx, step_of(exchange), Fault::Violation(violation));
    }
}

/// The digest by which a retransmitted request is known again.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

fn malformed(error: DecodeError) -> Fault {
    match error {
        DecodeError::UnsupportedCritical(kind) => Fault::Violation(Violation::UnknownCritical(kind)),
        other => Fault::Malformed(other),
    }
}

/// Whether a header can open an IKE SA: the first message of an initiator.
pub(crate) fn is_first_request(header: &Header) -> bool {
    header.exchange == ExchangeType::IkeSaInit
        && !header.response
        && header.from_initiator
        && header.message_id == 0
        && header.responder_spi.is_zero()
}

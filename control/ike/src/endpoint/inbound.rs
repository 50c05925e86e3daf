//! Datagrams: to the SA that they belong to, or to a new one.

use std::time::Instant;

use super::Endpoint;
use super::computations::{Asker, First, FirstKey};
use crate::crypto::KeMethod;
use crate::crypto::beside::{Drawn, Made, Task};
use crate::effect::{Effect, Path};
use crate::proposal::IkeProposal;
use crate::random::Random;
use crate::sa::IkeSa;
use crate::sa::exchanges::init::Acceptable;
use crate::sa::parts::Parts;
use crate::sa::receive::is_first_request;
use crate::wire::{DecodeError, ExchangeType, Header, Message, Notify, NotifyType, Parsed, Payload, parse};

/// A header, an SA of one transform, a KE payload of 32 octets and a nonce of 16 (RFC 7296 section 3).
const SHORTEST_FIRST: usize = 28 + 20 + 40 + 20;

impl Endpoint {
    /// Takes a datagram that came in on `path`, without the non-ESP marker.
    pub fn handle_datagram(&mut self, now: Instant, rng: &mut dyn Random, path: Path, bytes: &[u8]) {
        let parsed = match parse(bytes) {
            Ok(parsed) => parsed,
            // Not answered: RFC 7296 section 2.5 leaves it open, and nobody vouches for the sender.
            Err(DecodeError::MajorVersion { .. }) => {
                self.counters.other_version += 1;
                return;
            }
            Err(DecodeError::UnsupportedCritical(kind)) => {
                self.counters.malformed += 1;
                self.refuse_critical(path, bytes, kind);
                return;
            }
            Err(_) => {
                self.counters.malformed += 1;
                return;
            }
        };
        let header = match &parsed {
            Parsed::Plain(message) => message.header,
            Parsed::Sealed(sealed) => sealed.header,
        };
        if is_first_request(&header) {
            if let Parsed::Plain(message) = &parsed {
                self.handle_first_request(now, rng, path, bytes, message);
            } else {
                self.counters.malformed += 1;
            }
            return;
        }
        // RFC 7296 section 2.6: the receiver's own SPI finds the SA.
        let ours = if header.from_initiator { header.responder_spi } else { header.initiator_spi };
        let id = self.by_spi.get(&ours).copied().filter(|id| self.fits(*id, &header));
        match id {
            Some(id) => self.with_sa(now, rng, id, |sa, cx| sa.receive(cx, path, bytes, parsed)),
            None => self.counters.unknown_spi += 1,
        }
    }

    /// Whether both SPIs are the SA's; only the answer to our first request brings a new one.
    fn fits(&self, id: crate::IkeSaId, header: &Header) -> bool {
        self.sas.get(&id).is_some_and(|sa| {
            let fresh = sa.spi_r.is_zero() && header.exchange == ExchangeType::IkeSaInit && header.response;
            sa.spi_i == header.initiator_spi && (sa.spi_r == header.responder_spi || fresh)
        })
    }

    fn handle_first_request(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        path: Path,
        bytes: &[u8],
        message: &Message,
    ) {
        let spi = message.header.initiator_spi;
        if let Some(id) = self.half_open.get(&(spi, path.remote)).copied() {
            self.with_sa(now, rng, id, |sa, cx| sa.repeat_init(cx, path, bytes));
            return;
        }
        if self.firsts.contains_key(&(spi, path.remote)) {
            self.counters.retransmitted_requests += 1;
            return;
        }
        // Who ends says no more to strangers: a refusal would tell the peer of a configuration that does not fit.
        if self.is_closing {
            self.counters.unknown_peer += 1;
            return;
        }
        let parts = Parts::of(&message.payloads);
        let (Some(_), Some(ke), Some(nonce)) = (parts.sa, parts.ke, parts.nonce) else {
            self.counters.malformed += 1;
            return;
        };
        if self.directory.candidates(path).next().is_none() {
            self.counters.unknown_peer += 1;
            self.report_stranger(now, path, message);
            self.refuse(path, &message.header, Notify::bare(NotifyType::NO_PROPOSAL_CHOSEN));
            return;
        }
        let is_slow = KeMethod::from_number(ke.group).is_some_and(|ke| self.settings.beside.contains(&ke));
        let is_crowded = is_slow && self.computations.is_crowded();
        if is_crowded || self.half_open() >= self.settings.cookie_threshold {
            let cookie = parts.notify(NotifyType::COOKIE).map(|notify| notify.data.as_slice());
            let right = cookie.is_some_and(|c| self.cookies.check(c, path.remote, spi, nonce));
            if !right {
                self.counters.wrong_cookies += u64::from(cookie.is_some());
                self.counters.cookies_sent += 1;
                let cookie = self.cookies.make(now, rng, path.remote, spi, nonce);
                self.refuse(path, &message.header, Notify::new(NotifyType::COOKIE, cookie));
                return;
            }
        }
        let all = self.half_open.keys().chain(self.firsts.keys());
        let of_one = all.filter(|(_, remote)| remote.ip() == path.remote.ip()).count();
        if self.half_open() >= self.settings.max_half_open || of_one >= self.settings.max_half_open_of_one {
            self.counters.half_open_refused += 1;
            return;
        }
        self.accept_first(now, rng, path, bytes, message, None);
    }

    /// The answer to a first request is computed.
    pub(super) fn answer_first(&mut self, now: Instant, rng: &mut dyn Random, key: FirstKey, made: Made) {
        let Some(First { path, bytes }) = self.firsts.remove(&key) else { return };
        if let Ok(Parsed::Plain(message)) = parse(&bytes) {
            self.accept_first(now, rng, path, &bytes, &message, Some(made));
        }
    }

    /// Chooses and answers; with a slow key exchange, only once its result is there.
    fn accept_first(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        path: Path,
        bytes: &[u8],
        message: &Message,
        made: Option<Made>,
    ) {
        let parts = Parts::of(&message.payloads);
        let (Some(offered), Some(ke), Some(nonce)) = (parts.sa, parts.ke, parts.nonce) else { return };
        let found = self.directory.candidates(path).find_map(|(_, config)| {
            IkeProposal::select(&config.ike_proposals, offered).map(|selected| (selected, config.clone()))
        });
        let Some((selected, config)) = found else {
            self.counters.no_proposal += 1;
            self.report_no_proposal(path, message, offered);
            self.refuse(path, &message.header, Notify::bare(NotifyType::NO_PROPOSAL_CHOSEN));
            return;
        };
        // RFC 7296 section 1.2: the group that the initiator guessed is not the one chosen.
        if ke.group != selected.suite.ke.number() {
            let notify = Notify::invalid_ke(selected.suite.ke.number());
            self.refuse(path, &message.header, notify);
            return;
        }
        let method = selected.suite.ke;
        if made.is_none() && self.settings.beside.contains(&method) {
            let (key, peer) = ((message.header.initiator_spi, path.remote), ke.data.clone());
            let task = Task::Answer { method, drawn: Drawn::for_method(method, rng), peer };
            if self.computations.ask(Asker::First(key), task).is_some() {
                self.firsts.insert(key, First { path, bytes: bytes.to_vec() });
                self.compute();
            } else {
                self.counters.half_open_refused += 1;
            }
            return;
        }
        let acceptable = Acceptable { selected, config: &config, ke, nonce };
        let (made, upcalls) =
            self.with_made(now, rng, made, |cx| IkeSa::accept(cx, path, bytes, message, acceptable));
        match made {
            Some(sa) => self.settle(now, rng, Box::new(sa), upcalls),
            None => self.counters.malformed += 1,
        }
    }

    /// RFC 7296 section 2.5: a request with a critical payload that is not known is rejected by this notify. Of
    /// messages in clear only the first request is one; a response is dropped, and so is what could not have
    /// begun an SA and would be shorter than its answer.
    fn refuse_critical(&mut self, path: Path, bytes: &[u8], kind: u8) {
        let Ok((header, _)) = Header::decode(bytes) else { return };
        let known = self.directory.candidates(path).next().is_some();
        if is_first_request(&header) && known && !self.is_closing && bytes.len() >= SHORTEST_FIRST {
            self.refuse(path, &header, Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![kind]));
        }
    }

    /// An answer in clear that leaves no state behind.
    fn refuse(&mut self, path: Path, request: &Header, notify: Notify) {
        let header = Header {
            responder_spi: crate::wire::IkeSpi::ZERO,
            from_initiator: false,
            response: true,
            ..*request
        };
        let bytes = Message { header, payloads: vec![Payload::Notify(notify)] }.encode_plain();
        let non_esp_marker = path.local.port() == self.settings.nat_port;
        self.effects.push_back(Effect::Transmit { path, bytes, non_esp_marker, stash: None });
    }
}

//! Message IDs, the window of one, and retransmission (RFC 7296 sections 2.1 to 2.4): the one place that
//! owns them.
//!
//! Invariants: at most one request of ours is unanswered; its datagrams are sent again octet for octet; the
//! answer to the peer's latest request is kept and sent again octet for octet, to that same request only.

use std::time::{Duration, Instant};

use crate::settings::EndpointSettings;
use crate::wire::ExchangeType;
use crate::wire::fragment::Reassembly;

/// Our unanswered request.
#[derive(Debug)]
pub(crate) struct Outstanding {
    pub(crate) message_id: u32,
    pub(crate) exchange: ExchangeType,
    pub(crate) datagrams: Vec<Vec<u8>>,
    /// When it was sent first.
    pub(crate) since: Instant,
    /// How often it was sent.
    pub(crate) sent: u32,
    /// When it is sent again.
    pub(crate) next_at: Instant,
    interval: Duration,
}

/// The answer to the peer's latest request.
#[derive(Debug)]
struct Answered {
    message_id: u32,
    /// SHA-256 of the request's first datagram.
    request: [u8; 32],
    response: Vec<Vec<u8>>,
}

/// Where a received request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RequestAge {
    /// The next one.
    Next,
    /// The one answered last.
    Answered,
    /// Neither: outside the window.
    Outside,
}

/// Both directions' message IDs.
#[derive(Debug, Default)]
pub(crate) struct Window {
    next_request: u32,
    outstanding: Option<Outstanding>,
    expected: u32,
    answered: Option<Answered>,
    /// SHA-256 of the first datagram of the request that is being received.
    arriving: Option<[u8; 32]>,
    pub(crate) requests: Reassembly,
    pub(crate) responses: Reassembly,
}

impl Window {
    /// From message IDs kept by an earlier life.
    pub(crate) fn resume(next_request: u32, expected: u32) -> Self {
        Self { next_request, expected, ..Self::default() }
    }

    pub(crate) fn outstanding(&self) -> Option<&Outstanding> {
        self.outstanding.as_ref()
    }

    /// The ID that the next request of ours carries.
    pub(crate) fn next_request(&self) -> u32 {
        self.next_request
    }

    /// The ID that the peer's next request must carry.
    pub(crate) fn expected(&self) -> u32 {
        self.expected
    }

    /// Whether the IDs are near their end; RFC 7296 section 2.2: the IKE SA must be rekeyed before they wrap.
    pub(crate) fn is_near_end(&self) -> bool {
        self.next_request.max(self.expected) >= u32::MAX - 1024
    }

    /// Notes a request as sent. There must be none outstanding.
    pub(crate) fn sent(
        &mut self,
        now: Instant,
        settings: &EndpointSettings,
        exchange: ExchangeType,
        datagrams: Vec<Vec<u8>>,
    ) {
        debug_assert!(self.outstanding.is_none());
        let interval = settings.retransmit_first;
        self.outstanding = Some(Outstanding {
            message_id: self.next_request,
            exchange,
            datagrams,
            since: now,
            sent: 1,
            next_at: now + interval,
            interval,
        });
        self.next_request = self.next_request.saturating_add(1);
        self.responses.clear();
    }

    /// IKE_SA_INIT is sent anew with a cookie or another group: the ID stays 0.
    pub(crate) fn restart(&mut self) {
        self.outstanding = None;
        self.next_request = 0;
    }

    /// Whether a response answers our request.
    pub(crate) fn awaits(&self, message_id: u32, exchange: ExchangeType) -> bool {
        self.outstanding.as_ref().is_some_and(|out| out.message_id == message_id && out.exchange == exchange)
    }

    /// The request is answered.
    pub(crate) fn settle(&mut self) -> Option<Outstanding> {
        self.responses.clear();
        self.outstanding.take()
    }

    /// The request's datagrams, if it is time to send them again.
    pub(crate) fn retransmit(&mut self, now: Instant, longest: Duration) -> Option<&[Vec<u8>]> {
        let out = self.outstanding.as_mut().filter(|out| out.next_at <= now)?;
        // RFC 7296 section 2.4: exponentially growing intervals.
        out.interval = (out.interval * 2).min(longest);
        out.next_at = now + out.interval;
        out.sent = out.sent.saturating_add(1);
        Some(&out.datagrams)
    }

    /// Sends the request again at once: the path has changed.
    pub(crate) fn hurry(&mut self, now: Instant, settings: &EndpointSettings) {
        if let Some(out) = &mut self.outstanding {
            out.next_at = now;
            out.interval = settings.retransmit_first / 2;
        }
    }

    pub(crate) fn request_age(&self, message_id: u32) -> RequestAge {
        match &self.answered {
            _ if message_id == self.expected => RequestAge::Next,
            Some(answered) if answered.message_id == message_id => RequestAge::Answered,
            Some(_) | None => RequestAge::Outside,
        }
    }

    /// The first datagram of the next request has arrived and is authentic.
    pub(crate) fn arriving(&mut self, digest: [u8; 32]) {
        self.arriving = Some(digest);
    }

    /// The peer's next request is complete and answered.
    pub(crate) fn answered(&mut self, response: Vec<Vec<u8>>) {
        let request = self.arriving.take().unwrap_or_default();
        self.answered = Some(Answered { message_id: self.expected, request, response });
        self.expected = self.expected.saturating_add(1);
        self.requests.clear();
    }

    /// The kept answer, if `digest` is of the request that it answers or the caller has authenticated it.
    pub(crate) fn answer_again(&self, digest: &[u8; 32], authentic: bool) -> Option<&[Vec<u8>]> {
        let answered = self.answered.as_ref()?;
        (authentic || answered.request == *digest).then_some(answered.response.as_slice())
    }

    /// The kept answer, for the stash.
    pub(crate) fn kept_answer(&self) -> Option<(&[u8; 32], &[Vec<u8>])> {
        self.answered.as_ref().map(|answered| (&answered.request, answered.response.as_slice()))
    }

    /// Puts an answer back that an earlier life gave to the request before `expected`.
    pub(crate) fn restore_answer(&mut self, request: [u8; 32], response: Vec<Vec<u8>>) {
        if let Some(message_id) = self.expected.checked_sub(1) {
            self.answered = Some(Answered { message_id, request, response });
        }
    }

    /// Puts a request back that an earlier life sent; it is sent again at once.
    pub(crate) fn restore_request(&mut self, now: Instant, exchange: ExchangeType, datagrams: Vec<Vec<u8>>) {
        if let Some(message_id) = self.next_request.checked_sub(1) {
            let interval = Duration::from_millis(500);
            self.outstanding = Some(Outstanding {
                message_id,
                exchange,
                datagrams,
                since: now,
                sent: 0,
                next_at: now,
                interval,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> EndpointSettings {
        EndpointSettings {
            retransmit_first: Duration::from_millis(500),
            retransmit_max: Duration::from_secs(2),
            ..EndpointSettings::default()
        }
    }

    #[allow(clippy::disallowed_methods)] // some instant to count from
    fn some_instant() -> Instant {
        Instant::now()
    }

    #[test]
    fn intervals_double_up_to_the_bound() {
        let start = some_instant();
        let mut window = Window::default();
        window.sent(start, &settings(), ExchangeType::Informational, vec![vec![1]]);
        let mut at = Vec::new();
        for tick in 0..=80 {
            let now = start + Duration::from_millis(100) * tick;
            if window.retransmit(now, settings().retransmit_max).is_some() {
                at.push(tick * 100);
            }
        }
        assert_eq!(at, [500, 1500, 3500, 5500, 7500]);
        assert_eq!(window.outstanding().map(|out| out.sent), Some(6));
    }

    #[test]
    fn only_the_answered_request_is_answered_again() {
        let mut window = Window::default();
        assert_eq!(window.request_age(0), RequestAge::Next);
        window.arriving([7; 32]);
        window.answered(vec![vec![9]]);
        assert_eq!(window.request_age(0), RequestAge::Answered);
        assert_eq!(window.request_age(1), RequestAge::Next);
        assert_eq!(window.request_age(2), RequestAge::Outside);
        assert_eq!(window.answer_again(&[8; 32], false), None);
        assert_eq!(window.answer_again(&[7; 32], false), Some(&[vec![9]][..]));
        assert_eq!(window.answer_again(&[8; 32], true), Some(&[vec![9]][..]));
    }

    #[test]
    fn a_response_must_match_the_request() {
        let mut window = Window::default();
        window.sent(some_instant(), &settings(), ExchangeType::Informational, vec![vec![1]]);
        assert!(window.awaits(0, ExchangeType::Informational));
        assert!(!window.awaits(0, ExchangeType::CreateChildSa));
        assert!(!window.awaits(1, ExchangeType::Informational));
        window.settle();
        assert!(!window.awaits(0, ExchangeType::Informational));
        assert_eq!(window.next_request(), 1);
    }
}

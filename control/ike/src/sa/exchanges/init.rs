//! IKE_SA_INIT (RFC 7296 section 1.2): suite, key exchange, nonces, and what either side is able to do.
//!
//! Nothing here is authenticated: until IKE_AUTH succeeds an SA costs a bounded entry and nothing else. An
//! answer that merely claims a failure is believed only when the request has had no better answer by the end
//! of its time, except for COOKIE and INVALID_KE_PAYLOAD, which have bounded retries.

use std::sync::Arc;
use std::time::Instant;

use super::super::beside::Ours;
use super::super::nat::Nat;
use super::super::parts::Parts;
use super::super::{Cx, IkeSa, PeerCaps, Phase, Task};
use crate::auth::{IntAuth, PeerSignatureSupport, SIGNATURE_HASHES};
use crate::crypto::{Contribution, IkeKeys, IkeSuite, KeMethod, KePrivate};
use crate::diagnosis::{Fault, Step, Violation};
use crate::effect::{Path, PeerId};
use crate::proposal::{IkeProposal, Selected};
use crate::random::random_array;
use crate::settings::PeerConfig;
use crate::wire::{
    ExchangeType, Header, IkeSpi, KePayload, Message, Nonce, Notify, NotifyType, Payload, Proposal,
    ProposalSpi,
};

/// How often an initiator begins anew because of COOKIE or INVALID_KE_PAYLOAD.
const MAX_RESTARTS: u8 = 5;

/// What is kept until IKE_AUTH.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) ni: Nonce,
    /// Empty until the responder's is known.
    pub(crate) nr: Option<Nonce>,
    pub(crate) ke: Option<KePrivate>,
    /// The last IKE_SA_INIT messages as they were on the wire: AUTH covers them.
    pub(crate) request: Vec<u8>,
    pub(crate) response: Vec<u8>,
    pub(crate) restarts: u8,
    pub(crate) cookie: Option<Vec<u8>>,
    pub(crate) int_auth: IntAuth,
    /// Additional key exchanges still to be made, in order.
    pub(crate) additional: Vec<(u8, KeMethod)>,
    /// An error the peer claimed without proof.
    pub(crate) claimed: Option<(Instant, Fault)>,
    /// We have no SA with this peer yet.
    pub(crate) initial_contact: bool,
}

impl Handshake {
    fn new(ni: Nonce) -> Self {
        Self {
            ni,
            nr: None,
            ke: None,
            request: Vec::new(),
            response: Vec::new(),
            restarts: 0,
            cookie: None,
            int_auth: IntAuth::new(),
            additional: Vec::new(),
            claimed: None,
            initial_contact: false,
        }
    }
}

/// What an answerable first request asks of us.
pub(crate) struct Acceptable<'a> {
    pub(crate) selected: Selected<IkeSuite>,
    pub(crate) config: &'a PeerConfig,
    pub(crate) ke: &'a KePayload,
    pub(crate) nonce: &'a Nonce,
}

impl IkeSa {
    /// Begins an IKE SA as its initiator.
    pub(crate) fn connect(
        cx: &mut Cx<'_>,
        peer: PeerId,
        config: Arc<PeerConfig>,
        path: Path,
        initial_contact: bool,
    ) -> Self {
        let spi_i = fresh_spi(cx);
        let mut handshake = Handshake::new(Nonce::generate(cx.rng));
        handshake.initial_contact = initial_contact;
        let group = config.ike_proposals.iter().find_map(|proposal| proposal.kes.first()).copied();
        let phase = Phase::Handshake(Box::new(handshake));
        let mut sa = Self::blank(cx, true, (spi_i, IkeSpi::ZERO), path, phase);
        sa.peer = Some(peer);
        sa.config = Some(config);
        match group {
            Some(group) => sa.send_init(cx, group),
            None => sa.fail(cx, Step::Init, Fault::NoProposal { ours: Vec::new(), peers: Vec::new() }),
        }
        sa
    }

    pub(crate) fn send_init(&mut self, cx: &mut Cx<'_>, group: KeMethod) {
        let Some(config) = self.config.clone() else { return };
        let Phase::Handshake(handshake) = &mut self.phase else { return };
        let fresh = handshake.ke.take().filter(|ke| ke.method() == group);
        if fresh.is_none() && self.awaits_key_pair(cx, group, Ours::Init(group)) {
            return;
        }
        let Phase::Handshake(handshake) = &mut self.phase else { return };
        let ke = match fresh.map_or_else(|| cx.key_pair(group), Ok) {
            Ok(ke) => ke,
            Err(_) => {
                self.fail(cx, Step::Init, Fault::Violation(Violation::BadPublicValue));
                return;
            }
        };
        let mut payloads = Vec::new();
        // RFC 7296 section 2.6: the cookie comes first, the rest is as before.
        payloads.extend(
            handshake
                .cookie
                .iter()
                .map(|cookie| Payload::Notify(Notify::new(NotifyType::COOKIE, cookie.clone()))),
        );
        payloads.push(Payload::Sa(offers(&config.ike_proposals, ProposalSpi::None)));
        payloads.push(Payload::Ke(KePayload { group: group.number(), data: ke.public().to_vec() }));
        payloads.push(Payload::Nonce(handshake.ni.clone()));
        payloads.extend(Nat::payloads(config.encapsulation, cx.rng, self.spi_i, IkeSpi::ZERO, self.path));
        payloads.extend(announcements(&config));
        let header = Header::new(self.spi_i, IkeSpi::ZERO, ExchangeType::IkeSaInit, true, false, 0);
        let bytes = Message { header, payloads }.encode_plain();
        handshake.ke = Some(ke);
        handshake.request.clone_from(&bytes);
        self.window.sent(cx.now, cx.settings, ExchangeType::IkeSaInit, vec![bytes.clone()]);
        self.task = Some(Task::Init);
        self.transmit(cx, self.path, vec![bytes]);
    }

    /// The responder's answer, or somebody's.
    pub(crate) fn handle_init_response(
        &mut self,
        cx: &mut Cx<'_>,
        path: Path,
        bytes: &[u8],
        message: &Message,
    ) {
        let parts = Parts::of(&message.payloads);
        let Some(config) = self.config.clone() else { return };
        let (Some(proposals), Some(ke), Some(nr)) = (parts.sa, parts.ke, parts.nonce) else {
            self.handle_init_refusal(cx, &config, &parts);
            return;
        };
        let Phase::Handshake(handshake) = &mut self.phase else { return };
        let Some(private) = handshake.ke.take() else { return };
        let offered = IkeProposal::accept(&config.ike_proposals, proposals);
        let selected = match offered {
            Some(selected)
                if selected.suite.ke.number() == ke.group && private.method() == selected.suite.ke =>
            {
                selected
            }
            Some(_) | None => {
                handshake.ke = Some(private);
                handshake.claimed = Some((cx.now, Fault::Violation(Violation::NotOffered)));
                return;
            }
        };
        if message.header.responder_spi.is_zero() {
            handshake.ke = Some(private);
            return;
        }
        if let Some(id) = self.awaits_agreement(cx, &private, &ke.data) {
            let Phase::Handshake(handshake) = &mut self.phase else { return };
            handshake.ke = Some(private);
            self.put_aside(id, Ours::InitAnswer { path, bytes: bytes.to_vec() });
            return;
        }
        let Phase::Handshake(handshake) = &mut self.phase else { return };
        let Ok(shared) = cx.agree(&private, &ke.data) else {
            // The answer may be forged; the peer's own would not follow any more, so the attempt ends.
            self.fail(cx, Step::Init, Fault::Violation(Violation::BadPublicValue));
            return;
        };
        handshake.nr = Some(nr.clone());
        handshake.response = bytes.to_vec();
        handshake.additional.clone_from(&selected.suite.additional);
        self.spi_r = message.header.responder_spi;
        let with = Contribution {
            initiator_nonce: &handshake.ni,
            responder_nonce: nr,
            initiator_spi: self.spi_i,
            responder_spi: self.spi_r,
        };
        let keys = IkeKeys::initial(&selected.suite, &shared, with);
        if keys.and_then(|keys| self.take_keys(cx, keys, 0)).is_err() {
            self.fail(cx, Step::Init, Fault::Violation(Violation::BadNonce));
            return;
        }
        self.caps = caps(&parts);
        self.nat = Nat::detect(&parts, self.spi_i, self.spi_r, path);
        self.window.settle();
        self.task = None;
        self.float(cx, &config);
        self.continue_handshake(cx);
    }

    /// RFC 7296 section 2.23, RFC 4555 section 3.3: from here on port 4500, where NAT traversal or MOBIKE is used.
    fn float(&mut self, cx: &Cx<'_>, config: &PeerConfig) {
        let udp = self.nat.transport(config.encapsulation) != crate::EspTransport::Esp;
        let wanted = self.nat.supported && (udp || config.mobike);
        if wanted && self.path.local.port() == cx.settings.port {
            self.path.local.set_port(cx.settings.nat_port);
            if self.path.remote.port() == cx.settings.port {
                self.path.remote.set_port(cx.settings.nat_port);
            }
        }
    }

    /// The next message of the handshake: IKE_INTERMEDIATE while key exchanges are left, then IKE_AUTH.
    pub(crate) fn continue_handshake(&mut self, cx: &mut Cx<'_>) {
        let Phase::Handshake(handshake) = &self.phase else { return };
        if handshake.additional.is_empty() {
            self.send_auth(cx);
        } else if self.caps.intermediate {
            self.send_intermediate(cx);
        } else {
            self.violate(cx, ExchangeType::IkeSaInit, Violation::NotOffered);
        }
    }

    fn handle_init_refusal(&mut self, cx: &mut Cx<'_>, config: &PeerConfig, parts: &Parts<'_>) {
        let Phase::Handshake(handshake) = &mut self.phase else { return };
        if let Some(cookie) = parts.notify(NotifyType::COOKIE) {
            // RFC 7296 section 2.6: 1 to 64 octets.
            if cookie.data.is_empty() || cookie.data.len() > 64 || handshake.restarts >= MAX_RESTARTS {
                handshake.claimed = Some((cx.now, Fault::Violation(Violation::CookieLoop)));
                return;
            }
            handshake.cookie = Some(cookie.data.clone());
            handshake.restarts += 1;
            let Some(group) = handshake.ke.as_ref().map(KePrivate::method) else { return };
            self.window.restart();
            self.send_init(cx, group);
            return;
        }
        let Some(error) = parts.error() else { return };
        if error.kind == NotifyType::INVALID_KE_PAYLOAD {
            let offered: Vec<KeMethod> =
                config.ike_proposals.iter().flat_map(|proposal| proposal.kes.iter().copied()).collect();
            let wanted = error.wanted_group().unwrap_or(0);
            let tried = handshake.ke.as_ref().map(|ke| ke.method().number());
            let group = KeMethod::from_number(wanted).filter(|group| offered.contains(group));
            match group {
                Some(group) if handshake.restarts < MAX_RESTARTS && tried != Some(wanted) => {
                    handshake.restarts += 1;
                    self.window.restart();
                    self.send_init(cx, group);
                }
                Some(_) | None => {
                    let offered = offered.into_iter().map(KeMethod::number).collect();
                    handshake.claimed = Some((cx.now, Fault::InvalidKe { offered, wanted }));
                }
            }
            return;
        }
        let fault = match error.kind {
            NotifyType::NO_PROPOSAL_CHOSEN => Fault::NoProposal {
                ours: offers(&config.ike_proposals, ProposalSpi::None),
                peers: Vec::new(),
            },
            other => Fault::PeerError(other),
        };
        handshake.claimed = Some((cx.now, fault));
    }

    /// Begins an IKE SA as its responder.
    pub(crate) fn accept(
        cx: &mut Cx<'_>,
        path: Path,
        bytes: &[u8],
        message: &Message,
        acceptable: Acceptable<'_>,
    ) -> Option<Self> {
        let Acceptable { selected, config, ke, nonce: ni } = acceptable;
        let parts = Parts::of(&message.payloads);
        let (spi_i, spi_r) = (message.header.initiator_spi, fresh_spi(cx));
        let nr = Nonce::generate(cx.rng);
        let (public, shared) = cx.answer_ke(selected.suite.ke, &ke.data).ok()?;
        let with = Contribution {
            initiator_nonce: ni,
            responder_nonce: &nr,
            initiator_spi: spi_i,
            responder_spi: spi_r,
        };
        let keys = IkeKeys::initial(&selected.suite, &shared, with).ok()?;
        let mut handshake = Handshake::new(ni.clone());
        handshake.request = bytes.to_vec();
        handshake.additional.clone_from(&selected.suite.additional);
        let answer = IkeProposal::answer(&selected.suite, selected.number, ProposalSpi::None);
        let group = selected.suite.ke.number();
        let mut payloads = vec![
            Payload::Sa(vec![answer]),
            Payload::Ke(KePayload { group, data: public }),
            Payload::Nonce(nr.clone()),
        ];
        handshake.nr = Some(nr);
        let nat = Nat::detect(&parts, spi_i, spi_r_of_request(), path);
        if nat.supported {
            payloads.extend(Nat::payloads(config.encapsulation, cx.rng, spi_i, spi_r, path));
        }
        let caps = caps(&parts);
        payloads.extend(answers(config, &caps));
        payloads.extend(config.verifier.certificate_request().map(Payload::CertReq));
        let header = Header::new(spi_i, spi_r, ExchangeType::IkeSaInit, false, true, 0);
        let response = Message { header, payloads }.encode_plain();
        handshake.response.clone_from(&response);
        let mut sa = Self::blank(cx, false, (spi_i, spi_r), path, Phase::Handshake(Box::new(handshake)));
        sa.take_keys(cx, keys, 0).ok()?;
        sa.nat = nat;
        sa.caps = caps;
        sa.window.arriving(super::super::receive::sha256(bytes));
        sa.window.answered(vec![response.clone()]);
        sa.transmit(cx, path, vec![response]);
        Some(sa)
    }

    /// The first request again: the same answer (RFC 7296 section 2.1).
    pub(crate) fn repeat_init(&mut self, cx: &mut Cx<'_>, path: Path, bytes: &[u8]) {
        let Phase::Handshake(handshake) = &self.phase else { return };
        if handshake.request == bytes && !self.initiator {
            cx.counters.retransmitted_requests += 1;
            let response = handshake.response.clone();
            self.transmit(cx, path, vec![response]);
        }
    }
}

/// Our proposals, numbered from 1.
pub(crate) fn offers(proposals: &[IkeProposal], spi: ProposalSpi) -> Vec<Proposal> {
    proposals.iter().zip(1..=u8::MAX).map(|(proposal, number)| proposal.offer(number, spi.clone())).collect()
}

fn fresh_spi(cx: &mut Cx<'_>) -> IkeSpi {
    loop {
        let spi = IkeSpi(random_array(cx.rng));
        if !spi.is_zero() {
            return spi;
        }
    }
}

/// RFC 7296 section 2.23: the hashes of the first request are made with the responder's SPI still zero.
fn spi_r_of_request() -> IkeSpi {
    IkeSpi::ZERO
}

fn announcements(config: &PeerConfig) -> Vec<Payload> {
    let mut notifies = vec![Notify::signature_hashes(&SIGNATURE_HASHES)];
    if config.fragmentation {
        notifies.push(Notify::bare(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED));
    }
    if config.ike_proposals.iter().any(|proposal| !proposal.additional.is_empty()) {
        notifies.push(Notify::bare(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED));
    }
    if config.ppk.is_some() {
        notifies.push(Notify::bare(NotifyType::USE_PPK));
    }
    notifies.into_iter().map(Payload::Notify).collect()
}

fn answers(config: &PeerConfig, caps: &PeerCaps) -> Vec<Payload> {
    let mut notifies = vec![Notify::bare(NotifyType::CHILDLESS_IKEV2_SUPPORTED)];
    if caps.signatures.hashes.is_some() {
        notifies.push(Notify::signature_hashes(&SIGNATURE_HASHES));
    }
    if caps.fragmentation && config.fragmentation {
        notifies.push(Notify::bare(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED));
    }
    if caps.intermediate {
        notifies.push(Notify::bare(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED));
    }
    if caps.ppk && config.ppk.is_some() {
        notifies.push(Notify::bare(NotifyType::USE_PPK));
    }
    notifies.into_iter().map(Payload::Notify).collect()
}

fn caps(parts: &Parts<'_>) -> PeerCaps {
    let hashes = parts
        .notify(NotifyType::SIGNATURE_HASH_ALGORITHMS)
        .map(|notify| notify.numbers().collect::<Vec<_>>());
    PeerCaps {
        fragmentation: parts.has(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED),
        mobike: false,
        childless: parts.has(NotifyType::CHILDLESS_IKEV2_SUPPORTED),
        intermediate: parts.has(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED),
        ppk: parts.has(NotifyType::USE_PPK),
        signatures: PeerSignatureSupport { hashes },
    }
}

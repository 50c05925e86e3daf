//! IKE_AUTH (RFC 7296 section 1.2): who the peer is, and the first child.
//!
//! The SA is established, and a child installed, only after the peer's AUTH payload was verified. With PPK
//! (RFC 8784) the key enters SK_d, SK_pi and SK_pr here. Not done: EAP, several authentications.

use std::sync::Arc;

use super::super::parts::Parts;
use super::super::{After, Cx, End, IkeSa, Phase, Task, Upcall, Want};
use super::init::Handshake;
use super::negotiate::{check_answer, child_offers, choose_child, proposed_selectors};
use crate::auth::{AuthError, Credential, SignedOctets, SignedOctetsInput};
use crate::crypto::IkeKeys;
use crate::diagnosis::{Fault, Step, Violation};
use crate::effect::{DownCause, Effect, Path};
use crate::proposal::ChildExchange;
use crate::settings::PeerConfig;
use crate::wire::{
    AuthPayload, ExchangeType, Header, IdPayload, Message, Notify, NotifyType, Opened, Payload,
};

/// PPK_ID of fixed form (RFC 8784 section 5.1).
const PPK_ID_FIXED: u8 = 2;

/// Our IKE_AUTH request under way.
#[derive(Debug)]
pub(crate) struct AuthTask {
    /// Inbound SPI offered for the first child; none when childless.
    pub(crate) spi_in: Option<u32>,
    /// The keys with the PPK mixed in, if one was offered.
    ppk_keys: Option<IkeKeys>,
    int_auth: Option<Vec<u8>>,
}

impl IkeSa {
    pub(crate) fn send_auth(&mut self, cx: &mut Cx<'_>) {
        let Some(config) = self.config.clone() else { return };
        let message_id = self.window.next_request();
        let built = self.build_auth(cx, &config, message_id);
        match built {
            Ok((task, payloads)) => {
                self.start_request(cx, Task::Auth(Box::new(task)), ExchangeType::IkeAuth, payloads);
            }
            Err(fault) => self.fail(cx, Step::Auth, fault),
        }
    }

    fn build_auth(
        &mut self,
        cx: &mut Cx<'_>,
        config: &PeerConfig,
        message_id: u32,
    ) -> Result<(AuthTask, Vec<Payload>), Fault> {
        let missing = Fault::Violation(Violation::UnexpectedExchange);
        let (Phase::Handshake(handshake), Some(crypt)) = (&self.phase, &self.crypt) else {
            return Err(missing);
        };
        let int_auth = (!handshake.int_auth.is_empty()).then(|| handshake.int_auth.finish(message_id));
        let ppk_keys = match &config.ppk {
            Some(ppk) if self.caps.ppk => crypt.keys.with_ppk(&ppk.secret).ok(),
            // RFC 8784 section 3: a required PPK that the peer does not do ends the attempt.
            Some(ppk) if ppk.required => return Err(Fault::Ppk { received: None }),
            Some(_) | None => None,
        };
        let id = IdPayload::new(config.local_id.clone());
        let sign = |keys: &IkeKeys| {
            let octets = signed_octets(handshake, keys, true, &id, int_auth.as_deref())?;
            config
                .credential
                .authenticate(keys.prf(), &octets, &self.caps.signatures)
                .map_err(|_| Fault::Certificate(AuthError::UnsupportedAlgorithm))
        };
        let auth = sign(ppk_keys.as_ref().unwrap_or(&crypt.keys))?;
        let mut payloads = vec![Payload::IdI(id.clone())];
        payloads.extend(config.credential.certificates().into_iter().map(Payload::Cert));
        payloads.extend(config.verifier.certificate_request().map(Payload::CertReq));
        payloads.extend(config.remote_id.clone().map(|id| Payload::IdR(IdPayload::new(id))));
        payloads.push(Payload::Auth(auth));
        if let (Some(_), Some(ppk)) = (&ppk_keys, &config.ppk) {
            let data = [&[PPK_ID_FIXED][..], &ppk.id].concat();
            payloads.push(Payload::Notify(Notify::new(NotifyType::PPK_IDENTITY, data)));
            if !ppk.required {
                let plain = sign(&crypt.keys)?;
                payloads.push(Payload::Notify(Notify::new(NotifyType::NO_PPK_AUTH, plain.data)));
            }
        }
        if handshake.initial_contact && config.initial_contact {
            payloads.push(Payload::Notify(Notify::bare(NotifyType::INITIAL_CONTACT)));
        }
        if config.mobike {
            payloads.push(Payload::Notify(Notify::bare(NotifyType::MOBIKE_SUPPORTED)));
        }
        let childless = config.childless && self.caps.childless;
        let spi_in = (!childless).then(|| cx.allocate_esp_spi());
        if let Some(spi) = spi_in {
            payloads.push(Payload::Sa(child_offers(config, spi, ChildExchange::IkeAuth)));
            payloads.extend(proposed_selectors(config));
        }
        Ok((AuthTask { spi_in, ppk_keys, int_auth }, payloads))
    }

    pub(crate) fn handle_auth_response(&mut self, cx: &mut Cx<'_>, task: AuthTask, parts: &Parts<'_>) {
        let Some(config) = self.config.clone() else { return };
        let spi_in = task.spi_in;
        let verified = self.verify_responder(cx, &config, task, parts);
        let mut outcome = Ok(());
        match (&verified, spi_in) {
            (Ok(()), Some(spi)) => outcome = self.take_first_child(cx, &config, spi, parts),
            (Ok(()), None) => self.want(cx.now, Want::CreateChild),
            (Err(_), Some(spi)) => {
                cx.esp_spis.remove(&spi);
            }
            (Err(_), None) => {}
        }
        match (verified, outcome) {
            (Ok(()), Ok(())) => {
                let mobike = parts.has(NotifyType::MOBIKE_SUPPORTED) && config.mobike;
                self.establish(cx, mobike, parts.has(NotifyType::INITIAL_CONTACT))
            }
            (Err(fault), _) if parts.auth.is_none() => self.fail(cx, Step::Auth, fault),
            // RFC 7296 section 2.21.2: the peer believes the SA to exist; it is told.
            (Err(fault), _) | (Ok(()), Err(fault)) => {
                let end =
                    End { cause: DownCause::Refused, diagnosis: Some(self.diagnosis(Step::Auth, fault)) };
                self.phase = Phase::Established;
                self.delete(cx, end);
            }
        }
    }

    fn verify_responder(
        &mut self,
        cx: &Cx<'_>,
        config: &PeerConfig,
        task: AuthTask,
        parts: &Parts<'_>,
    ) -> Result<(), Fault> {
        let missing = || match parts.error() {
            Some(error) if error.kind == NotifyType::AUTHENTICATION_FAILED => rejected(config),
            Some(error) => Fault::PeerError(error.kind),
            None => Fault::Violation(Violation::MissingPayload("IDr or AUTH")),
        };
        let (Some(id), Some(auth)) = (parts.id_r, parts.auth) else { return Err(missing()) };
        check_identity(config, &id.identity)?;
        // RFC 8784 section 3: the responder says whether it used the PPK.
        let use_ppk = task.ppk_keys.is_some() && parts.has(NotifyType::PPK_IDENTITY);
        if !use_ppk && config.ppk.as_ref().is_some_and(|ppk| ppk.required) {
            return Err(Fault::Ppk { received: None });
        }
        if let (true, Some(keys), Some(crypt)) = (use_ppk, task.ppk_keys, &mut self.crypt) {
            crypt.keys = keys;
        }
        let (Phase::Handshake(handshake), Some(crypt)) = (&self.phase, &self.crypt) else {
            return Err(Fault::Violation(Violation::UnexpectedExchange));
        };
        let octets = signed_octets(handshake, &crypt.keys, false, id, task.int_auth.as_deref())?;
        config
            .verifier
            .verify(crypt.keys.prf(), &octets, auth, &id.identity, &parts.certs, cx.unix_time)
            .map_err(auth_fault)
    }

    fn take_first_child(
        &mut self,
        cx: &mut Cx<'_>,
        config: &PeerConfig,
        spi: u32,
        parts: &Parts<'_>,
    ) -> Result<(), Fault> {
        let answer = match parts.error() {
            Some(error) => Err(refused(config, error.kind)),
            None => check_answer(config, parts, spi, ChildExchange::IkeAuth),
        };
        let nonces = match &self.phase {
            Phase::Handshake(handshake) => handshake.nr.clone().map(|nr| (handshake.ni.clone(), nr)),
            _ => None,
        };
        let (terms, (ni, nr)) = match (answer, nonces) {
            (Ok(terms), Some(nonces)) => (terms, nonces),
            (Err(fault), _) => {
                cx.esp_spis.remove(&spi);
                return Err(fault);
            }
            (Ok(_), None) => return Err(Fault::Violation(Violation::UnexpectedExchange)),
        };
        let id = self.make_child(cx, terms, &[], (&ni, &nr), true).ok_or(Fault::InstallFailed)?;
        self.activate_child(cx, id);
        Ok(())
    }

    fn establish(&mut self, cx: &mut Cx<'_>, mobike: bool, initial_contact: bool) {
        let (Some(config), Some(peer)) = (self.config.clone(), self.peer) else { return };
        self.caps.mobike = mobike;
        self.phase = Phase::Established;
        self.task = None;
        self.created = cx.now;
        self.start_lifetime(cx, config.ike_lifetime);
        self.note_children(cx.now);
        cx.upcalls.push(Upcall::Established { sa: self.id, peer, initial_contact });
        if self.initiator {
            cx.effects.extend(self.stash_update(cx.now).map(Effect::Stash));
        }
    }

    /// A request on an SA that is not authenticated yet.
    pub(crate) fn handle_handshake_request(
        &mut self,
        cx: &mut Cx<'_>,
        path: Path,
        opened: &Opened,
        message: &Message,
    ) {
        let Phase::Handshake(handshake) = &self.phase else { return };
        let parts = Parts::of(&message.payloads);
        let more = !handshake.additional.is_empty();
        match message.header.exchange {
            ExchangeType::IkeIntermediate if !self.initiator => {
                self.handle_intermediate_request(cx, path, opened, &parts);
            }
            ExchangeType::IkeAuth if !self.initiator && !more => {
                self.handle_auth_request(cx, path, &message.header, &parts);
            }
            ExchangeType::IkeSaInit
            | ExchangeType::IkeIntermediate
            | ExchangeType::IkeAuth
            | ExchangeType::CreateChildSa
            | ExchangeType::Informational
            | ExchangeType::IkeFollowupKe
            | ExchangeType::Other(_) => cx.counters.unexpected += 1,
        }
    }

    fn handle_auth_request(&mut self, cx: &mut Cx<'_>, path: Path, request: &Header, parts: &Parts<'_>) {
        match self.verify_initiator(cx, path, request, parts) {
            Ok((config, payloads)) => {
                let payloads = self.answer_auth(cx, &config, payloads, parts);
                let mobike = parts.has(NotifyType::MOBIKE_SUPPORTED) && config.mobike;
                self.establish(cx, mobike, parts.has(NotifyType::INITIAL_CONTACT));
                self.respond(cx, request, path, payloads);
            }
            Err(fault) => {
                let payloads = vec![Payload::Notify(Notify::bare(NotifyType::AUTHENTICATION_FAILED))];
                self.respond(cx, request, path, payloads);
                let diagnosis = Some(self.diagnosis(Step::Auth, fault));
                self.close(cx, Some(End { cause: DownCause::Refused, diagnosis }));
            }
        }
    }

    /// Finds out who calls and checks it; returns our own proof.
    fn verify_initiator(
        &mut self,
        cx: &mut Cx<'_>,
        path: Path,
        request: &Header,
        parts: &Parts<'_>,
    ) -> Result<(Arc<PeerConfig>, Vec<Payload>), Fault> {
        let (Some(id), Some(auth)) = (parts.id_i, parts.auth) else {
            return Err(Fault::Violation(Violation::MissingPayload("IDi or AUTH")));
        };
        let (Phase::Handshake(handshake), Some(crypt)) = (&self.phase, &mut self.crypt) else {
            return Err(Fault::Violation(Violation::UnexpectedExchange));
        };
        let wants = parts.id_r.map(|id| &id.identity);
        let (peer, config) = cx.directory.identify(path, &id.identity, wants, crypt.keys.suite())?;
        self.peer = Some(peer);
        self.config = Some(config.clone());
        let int_auth =
            (!handshake.int_auth.is_empty()).then(|| handshake.int_auth.finish(request.message_id));
        let (auth, ppk_used) = choose_ppk(&config, crypt, self.caps.ppk, auth, parts)?;
        let octets = signed_octets(handshake, &crypt.keys, true, id, int_auth.as_deref())?;
        config
            .verifier
            .verify(crypt.keys.prf(), &octets, &auth, &id.identity, &parts.certs, cx.unix_time)
            .map_err(auth_fault)?;
        let ours = IdPayload::new(config.local_id.clone());
        let octets = signed_octets(handshake, &crypt.keys, false, &ours, int_auth.as_deref())?;
        let auth = config
            .credential
            .authenticate(crypt.keys.prf(), &octets, &self.caps.signatures)
            .map_err(|_| Fault::Certificate(AuthError::UnsupportedAlgorithm))?;
        let mut payloads = vec![Payload::IdR(ours)];
        payloads.extend(config.credential.certificates().into_iter().map(Payload::Cert));
        payloads.push(Payload::Auth(auth));
        if ppk_used {
            payloads.push(Payload::Notify(Notify::bare(NotifyType::PPK_IDENTITY)));
        }
        Ok((config, payloads))
    }

    fn answer_auth(
        &mut self,
        cx: &mut Cx<'_>,
        config: &PeerConfig,
        mut payloads: Vec<Payload>,
        parts: &Parts<'_>,
    ) -> Vec<Payload> {
        if config.mobike && parts.has(NotifyType::MOBIKE_SUPPORTED) {
            payloads.push(Payload::Notify(Notify::bare(NotifyType::MOBIKE_SUPPORTED)));
        }
        // RFC 6023: an initiator that wants no child sends neither SA nor TS payloads.
        if parts.sa.is_none() && parts.ts_i.is_none() && parts.ts_r.is_none() {
            return payloads;
        }
        let nonces = match &self.phase {
            Phase::Handshake(handshake) => handshake.nr.clone().map(|nr| (handshake.ni.clone(), nr)),
            _ => None,
        };
        let chosen = choose_child(config, parts, ChildExchange::IkeAuth);
        match (chosen, nonces) {
            (Ok(chosen), Some((ni, nr))) => {
                let spi = cx.allocate_esp_spi();
                let (sa, selectors) = chosen.payloads(spi);
                if let Some(id) = self.make_child(cx, chosen.terms(spi), &[], (&ni, &nr), false) {
                    self.after.push(After::Activate(id));
                    payloads.push(sa);
                    payloads.extend(selectors);
                }
            }
            (Err(refusal), _) => {
                // RFC 7296 section 1.2: the IKE SA is made all the same.
                payloads.push(Payload::Notify(refusal.notify));
                self.report(cx, Step::Auth, refusal.fault, None);
            }
            (Ok(_), None) => {}
        }
        payloads
    }
}

/// RFC 8784 section 3: uses the PPK if both have the same, and the plain AUTH otherwise if either allows it.
fn choose_ppk(
    config: &PeerConfig,
    crypt: &mut super::super::Crypt,
    offered: bool,
    auth: &AuthPayload,
    parts: &Parts<'_>,
) -> Result<(AuthPayload, bool), Fault> {
    let named = parts.notify(NotifyType::PPK_IDENTITY).and_then(|notify| notify.data.split_first());
    let Some(ppk) = config.ppk.as_ref().filter(|_| offered) else {
        return match (&config.ppk, parts.notify(NotifyType::NO_PPK_AUTH)) {
            (Some(ppk), _) if ppk.required => Err(Fault::Ppk { received: None }),
            (_, Some(plain)) => Ok((AuthPayload { method: auth.method, data: plain.data.clone() }, false)),
            (_, None) => Ok((auth.clone(), false)),
        };
    };
    let received = named.map(|(_, id)| id.to_vec());
    if matches!(named, Some((&PPK_ID_FIXED, id)) if id == ppk.id) {
        crypt.keys = crypt.keys.with_ppk(&ppk.secret).map_err(|_| Fault::Ppk { received })?;
        return Ok((auth.clone(), true));
    }
    match (named, parts.notify(NotifyType::NO_PPK_AUTH)) {
        _ if ppk.required => Err(Fault::Ppk { received }),
        (Some(_), Some(plain)) => Ok((AuthPayload { method: auth.method, data: plain.data.clone() }, false)),
        (Some(_), None) => Err(Fault::Ppk { received }),
        (None, _) => Ok((auth.clone(), false)),
    }
}

fn signed_octets(
    handshake: &Handshake,
    keys: &IkeKeys,
    of_initiator: bool,
    id: &IdPayload,
    int_auth: Option<&[u8]>,
) -> Result<SignedOctets, Fault> {
    let nr = handshake.nr.as_ref().ok_or(Fault::Violation(Violation::MissingPayload("Nr")))?;
    let (message, peer_nonce) =
        if of_initiator { (&handshake.request, nr) } else { (&handshake.response, &handshake.ni) };
    let sk_p = keys.auth_key(of_initiator);
    Ok(SignedOctets::new(&SignedOctetsInput { prf: keys.prf(), message, peer_nonce, sk_p, id, int_auth }))
}

fn check_identity(config: &PeerConfig, received: &crate::wire::Identity) -> Result<(), Fault> {
    match &config.remote_id {
        Some(expected) if !expected.matches(received) => {
            Err(Fault::PeerIdMismatch { expected: expected.clone(), received: received.clone() })
        }
        Some(_) | None => Ok(()),
    }
}

fn auth_fault(error: AuthError) -> Fault {
    match error {
        AuthError::WrongPsk => Fault::AuthMismatch,
        AuthError::MethodMismatch { received } => Fault::AuthMethodMismatch { method: received },
        other => Fault::Certificate(other),
    }
}

/// The peer does not take our proof.
pub(crate) fn rejected(config: &PeerConfig) -> Fault {
    let by_certificate = match &*config.credential {
        Credential::Psk(_) => false,
        Credential::Certificate(_) => true,
    };
    Fault::PeerRejectedUs { by_certificate }
}

/// What a refused child means.
pub(crate) fn refused(config: &PeerConfig, kind: NotifyType) -> Fault {
    match kind {
        NotifyType::NO_PROPOSAL_CHOSEN => Fault::NoProposal {
            ours: child_offers(config, 0, ChildExchange::CreateChildSa),
            peers: Vec::new(),
        },
        NotifyType::TS_UNACCEPTABLE => Fault::TrafficSelectors {
            ours: (
                super::negotiate::selectors(&config.local_ts),
                super::negotiate::selectors(&config.remote_ts),
            ),
            peers: (Vec::new(), Vec::new()),
        },
        NotifyType::AUTHENTICATION_FAILED => rejected(config),
        other => Fault::PeerError(other),
    }
}

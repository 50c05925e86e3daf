//! What an IKE SA puts aside while a key exchange is computed beside the loop.
//!
//! A message is taken up again, whole, once the result is there: for the state machine it came a little later.
//! Its request or answer is known already, so that repetitions of it are not acted on. Our next exchange waits.
//!
//! Invariants: at most one computation for what we began and one for what the peer began; with the SA, or the
//! exchange, goes the wish for the result.

use super::parts::Parts;
use super::{Cx, IkeSa, Phase, Task, Want};
use crate::crypto::beside::{Drawn, Made, Task as Compute};
use crate::crypto::{ComputationId, CryptoError, KeMethod, KePrivate, SharedSecret};
use crate::effect::{ChildId, Path};
use crate::endpoint::computations::Asker;
use crate::wire::{ExchangeType, Message, Notify, Opened, Parsed, parse};

/// What goes on with a result, of what we began.
#[derive(Debug)]
pub(crate) enum Ours {
    /// IKE_SA_INIT with a key pair.
    Init(KeMethod),
    /// The answer to it.
    InitAnswer { path: Path, bytes: Vec<u8> },
    /// IKE_INTERMEDIATE with a key pair.
    Intermediate,
    /// CREATE_CHILD_SA with a key pair.
    Child { replaces: Option<ChildId>, group: KeMethod, retried: bool },
    /// The same for the IKE SA.
    Ike { group: KeMethod, retried: bool },
    /// IKE_FOLLOWUP_KE with a key pair; the task is in its place already.
    Followup(Notify),
    /// The answer to one of these.
    Answer(Opened),
}

/// Both sides' computations.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    ours: Option<Box<(ComputationId, Ours)>>,
    peers: Option<Box<(ComputationId, Path, Opened)>>,
}

impl Aside {
    /// Something that we began is being computed.
    pub(crate) fn is_ours(&self) -> bool {
        self.ours.is_some()
    }

    /// A request of the peer is being computed.
    pub(crate) fn is_peers(&self) -> bool {
        self.peers.is_some()
    }

    /// Our first request needs its key pair still.
    pub(crate) fn is_first(&self) -> bool {
        matches!(self.ours.as_deref(), Some((_, Ours::Init(_))))
    }

    /// Our first request is answered.
    pub(crate) fn is_first_answer(&self) -> bool {
        matches!(self.ours.as_deref(), Some((_, Ours::InitAnswer { .. })))
    }

    /// Whether the result is awaited.
    pub(crate) fn awaits(&self, id: ComputationId) -> bool {
        self.ours.as_ref().is_some_and(|ours| ours.0 == id)
            || self.peers.as_ref().is_some_and(|peers| peers.0 == id)
    }

    /// Our exchange with a child, as what it was before it began.
    pub(crate) fn take_child_want(&mut self) -> Option<Want> {
        let ours = self.ours.take_if(|ours| matches!(ours.1, Ours::Child { .. }))?;
        match ours.1 {
            Ours::Child { replaces: Some(old), .. } => Some(Want::RekeyChild(old)),
            _ => Some(Want::CreateChild),
        }
    }
}

impl IkeSa {
    /// A result is there.
    pub(crate) fn computed(&mut self, cx: &mut Cx<'_>, id: ComputationId) {
        if let Some(ours) = self.aside.ours.take_if(|ours| ours.0 == id) {
            self.go_on(cx, ours.1);
        } else if let Some(peers) = self.aside.peers.take_if(|peers| peers.0 == id) {
            let (_, path, opened) = *peers;
            self.answer_request(cx, path, opened);
        }
        self.pump(cx);
    }

    fn go_on(&mut self, cx: &mut Cx<'_>, ours: Ours) {
        match ours {
            Ours::Init(group) => self.send_init(cx, group),
            Ours::InitAnswer { path, bytes } => {
                if let Ok(Parsed::Plain(message)) = parse(&bytes) {
                    self.handle_init_response(cx, path, &bytes, &message);
                }
            }
            Ours::Intermediate => self.send_intermediate(cx),
            Ours::Child { replaces, group, retried } => self.go_on_with_child(cx, replaces, group, retried),
            Ours::Ike { group, retried } => self.go_on_with_ike(cx, group, retried),
            Ours::Followup(link) => {
                if let Some(Task::Followup(followup)) = self.task.take() {
                    self.send_followup(cx, *followup, link);
                }
            }
            Ours::Answer(opened) => self.take_answer(cx, opened),
        }
    }

    /// Nothing that we began matters any more: the SA ends.
    pub(crate) fn drop_ours(&mut self, cx: &mut Cx<'_>) {
        match self.aside.ours.take().map(|ours| ours.1) {
            // It settles the request, and of an SA that ends makes nothing.
            Some(Ours::Answer(opened)) => self.take_answer(cx, opened),
            Some(Ours::Followup(_)) => {
                if let Some(Task::Followup(followup)) = self.task.take() {
                    self.release(cx, &followup);
                }
            }
            Some(
                Ours::Init(_)
                | Ours::InitAnswer { .. }
                | Ours::Intermediate
                | Ours::Child { .. }
                | Ours::Ike { .. },
            )
            | None => {}
        }
    }

    /// Whether a key pair is made beside; what we began waits for it.
    pub(crate) fn awaits_key_pair(&mut self, cx: &mut Cx<'_>, method: KeMethod, ours: Ours) -> bool {
        let is_made = matches!(&cx.made, Some(Made::KeyPair { method: made, .. }) if *made == method);
        if is_made || !cx.is_beside(method) {
            return false;
        }
        let drawn = Drawn::for_method(method, cx.rng);
        let id = cx.computations.ask(self.asker(), Compute::KeyPair { method, drawn });
        self.aside.ours = id.map(|id| Box::new((id, ours)));
        self.aside.is_ours()
    }

    /// Whether the shared secret of our exchange is computed beside.
    pub(crate) fn awaits_agreement(
        &self,
        cx: &mut Cx<'_>,
        private: &KePrivate,
        peer: &[u8],
    ) -> Option<ComputationId> {
        let is_made = matches!(&cx.made, Some(Made::Agreement { peer: made, .. }) if made == peer);
        if is_made || !cx.is_beside(private.method()) {
            return None;
        }
        let task = Compute::Agreement { private: private.share(), peer: peer.to_vec() };
        cx.computations.ask(self.asker(), task)
    }

    /// What we began goes on with that result.
    pub(crate) fn put_aside(&mut self, id: ComputationId, ours: Ours) {
        self.aside.ours = Some(Box::new((id, ours)));
    }

    /// The private value and the peer's that an answer brings together, where that is still wanted.
    pub(crate) fn agreement<'a>(&'a self, parts: &Parts<'a>) -> Option<(&'a KePrivate, &'a [u8])> {
        let is_established = self.is_established();
        let private = match (&self.task, &self.phase) {
            (Some(Task::Intermediate), Phase::Handshake(handshake)) => handshake.ke.as_ref(),
            (Some(Task::Child(task)), _) if is_established => task.ke.as_ref(),
            (Some(Task::RekeyIke(task)), _) if is_established => Some(&task.ke),
            (Some(Task::Followup(followup)), _) if is_established => followup.ke.as_ref(),
            _ => None,
        }?;
        let ke = parts.ke.filter(|ke| ke.group == private.method().number() && parts.error().is_none())?;
        Some((private, ke.data.as_slice()))
    }

    /// Takes an authentic request up, or puts it aside until its answer is computed.
    pub(crate) fn admit_request(&mut self, cx: &mut Cx<'_>, path: Path, opened: Opened, message: &Message) {
        let wanted = self.wanted_answer(cx, message);
        let Some((method, peer)) = wanted else { return self.handle_request(cx, path, &opened, message) };
        let drawn = Drawn::for_method(method, cx.rng);
        let id = cx.computations.ask(self.asker(), Compute::Answer { method, drawn, peer });
        // Without room for it the request is as good as lost on the way.
        self.aside.peers = id.map(|id| Box::new((id, path, opened)));
    }

    /// The key exchange that a request asks for, if it will have to be computed, and beside.
    fn wanted_answer(&self, cx: &Cx<'_>, message: &Message) -> Option<(KeMethod, Vec<u8>)> {
        let parts = Parts::of(&message.payloads);
        let ke = parts.ke?;
        let method = KeMethod::from_number(ke.group).filter(|method| cx.is_beside(*method))?;
        let is_next = |additional: &[(u8, KeMethod)]| additional.first().is_some_and(|next| next.1 == method);
        let is_wanted = match (&self.phase, message.header.exchange) {
            (Phase::Handshake(handshake), ExchangeType::IkeIntermediate) => {
                !self.initiator && is_next(&handshake.additional)
            }
            (Phase::Established, ExchangeType::CreateChildSa) => {
                let config = self.config.as_ref()?;
                let ours = config.ike_proposals.iter().flat_map(|proposal| &proposal.kes);
                ours.chain(config.esp_proposals.iter().flat_map(|proposal| &proposal.kes))
                    .any(|ours| *ours == method)
            }
            (Phase::Established, ExchangeType::IkeFollowupKe) => {
                self.awaited.as_ref().is_some_and(|awaited| is_next(awaited.additional()))
            }
            _ => false,
        };
        is_wanted.then(|| (method, ke.data.clone()))
    }

    fn asker(&self) -> Asker {
        if self.is_handshake() && !self.initiator {
            Asker::HalfOpen(self.id, self.path.remote.ip())
        } else {
            Asker::Sa(self.id)
        }
    }
}

impl Cx<'_> {
    /// Whether the owner computes it.
    pub(crate) fn is_beside(&self, method: KeMethod) -> bool {
        self.settings.beside.contains(&method)
    }

    /// The key pair that was made beside, or one that is made now.
    pub(crate) fn key_pair(&mut self, method: KeMethod) -> Result<KePrivate, CryptoError> {
        match self.made.take() {
            Some(Made::KeyPair { method: made, result }) if made == method => result,
            _ => method.initiate(self.rng),
        }
    }

    /// The answer to a public value that was computed beside, or is now.
    pub(crate) fn answer_ke(
        &mut self,
        method: KeMethod,
        peer: &[u8],
    ) -> Result<(Vec<u8>, SharedSecret), CryptoError> {
        match self.made.take() {
            Some(Made::Answer { method: made, peer: of, result }) if made == method && of == peer => result,
            _ => method.respond(self.rng, peer),
        }
    }

    /// The secret that was computed beside, or is now.
    pub(crate) fn agree(&mut self, private: &KePrivate, peer: &[u8]) -> Result<SharedSecret, CryptoError> {
        match self.made.take() {
            Some(Made::Agreement { peer: of, result }) if of == peer => result,
            _ => private.finish(peer),
        }
    }
}

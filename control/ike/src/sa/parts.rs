//! A message's payloads, sorted by what they are; of those that must not repeat, the first counts.

use crate::wire::{
    AuthPayload, CertPayload, CertRequest, Delete, IdPayload, KePayload, Nonce, Notify, NotifyType, Payload,
    Proposal, TrafficSelector,
};

/// Views into a decoded message.
#[derive(Default)]
pub(crate) struct Parts<'a> {
    pub(crate) sa: Option<&'a [Proposal]>,
    pub(crate) ke: Option<&'a KePayload>,
    pub(crate) nonce: Option<&'a Nonce>,
    pub(crate) id_i: Option<&'a IdPayload>,
    pub(crate) id_r: Option<&'a IdPayload>,
    pub(crate) auth: Option<&'a AuthPayload>,
    pub(crate) certs: Vec<CertPayload>,
    pub(crate) cert_request: Option<&'a CertRequest>,
    pub(crate) ts_i: Option<&'a [TrafficSelector]>,
    pub(crate) ts_r: Option<&'a [TrafficSelector]>,
    pub(crate) notifies: Vec<&'a Notify>,
    pub(crate) deletes: Vec<&'a Delete>,
}

impl<'a> Parts<'a> {
    pub(crate) fn of(payloads: &'a [Payload]) -> Self {
        let mut parts = Self::default();
        for payload in payloads {
            match payload {
                Payload::Sa(proposals) => keep(&mut parts.sa, proposals.as_slice()),
                Payload::Ke(ke) => keep(&mut parts.ke, ke),
                Payload::IdI(id) => keep(&mut parts.id_i, id),
                Payload::IdR(id) => keep(&mut parts.id_r, id),
                Payload::Cert(cert) => parts.certs.push(cert.clone()),
                Payload::CertReq(request) => keep(&mut parts.cert_request, request),
                Payload::Auth(auth) => keep(&mut parts.auth, auth),
                Payload::Nonce(nonce) => keep(&mut parts.nonce, nonce),
                Payload::Notify(notify) => parts.notifies.push(notify),
                Payload::Delete(delete) => parts.deletes.push(delete),
                Payload::TsI(selectors) => keep(&mut parts.ts_i, selectors.as_slice()),
                Payload::TsR(selectors) => keep(&mut parts.ts_r, selectors.as_slice()),
                Payload::VendorId(_) | Payload::Configuration(_) | Payload::Eap(_) => {}
            }
        }
        parts
    }

    /// The first notification of a type.
    pub(crate) fn notify(&self, kind: NotifyType) -> Option<&'a Notify> {
        self.notifies.iter().find(|notify| notify.kind == kind).copied()
    }

    /// Whether there is a notification of a type.
    pub(crate) fn has(&self, kind: NotifyType) -> bool {
        self.notify(kind).is_some()
    }

    /// The first error that the peer reports, known or not.
    pub(crate) fn error(&self) -> Option<&'a Notify> {
        self.notifies.iter().find(|notify| notify.kind.is_error()).copied()
    }

    /// The value of the peer's COOKIE2, for the answer (RFC 4555 section 4.2.5).
    pub(crate) fn cookie2(&self) -> Option<Payload> {
        let cookie = self.notify(NotifyType::COOKIE2)?;
        Some(Payload::Notify(Notify::new(NotifyType::COOKIE2, cookie.data.clone())))
    }
}

fn keep<T>(slot: &mut Option<T>, value: T) {
    if slot.is_none() {
        *slot = Some(value);
    }
}

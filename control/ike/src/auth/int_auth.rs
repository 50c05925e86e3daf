//! Authentication of IKE_INTERMEDIATE exchanges (RFC 9242 section 3.3.2).

use crate::crypto::IkeKeys;

/// What the intermediate exchanges so far contribute to AUTH.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntAuth {
    initiator: Vec<u8>,
    responder: Vec<u8>,
}

impl IntAuth {
    /// No exchange yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one message. `keys` are those that protected it, `octets` come from
    /// [`crate::wire::Message::int_auth_octets`].
    pub fn add(&mut self, keys: &IkeKeys, from_initiator: bool, octets: &[u8]) {
        let chain = if from_initiator { &mut self.initiator } else { &mut self.responder };
        // RFC 9242 section 3.3.2: IntAuth_n = prf(SK_p(n), IntAuth_(n-1) | A | P).
        *chain = keys.prf().compute(keys.auth_key(from_initiator).expose(), &[chain, octets]).to_vec();
    }

    /// Whether there was any exchange.
    pub fn is_empty(&self) -> bool {
        self.initiator.is_empty() && self.responder.is_empty()
    }

    /// IntAuth: both chains, then the message ID of the first IKE_AUTH request.
    pub fn finish(&self, auth_message_id: u32) -> Vec<u8> {
        [self.initiator.as_slice(), &self.responder, &auth_message_id.to_be_bytes()].concat()
    }
}

//! The octets that AUTH covers (RFC 7296 section 2.15, RFC 9242 section 3.3.2).

use crate::SecretBytes;
use crate::crypto::Prf;
use crate::wire::{IdPayload, Nonce};

/// What goes into the octets of one side.
#[derive(Debug)]
pub struct SignedOctetsInput<'a> {
    /// The PRF of the IKE SA.
    pub prf: Prf,
    /// That side's whole IKE_SA_INIT message as it was on the wire (the last one sent, after COOKIE or
    /// INVALID_KE_PAYLOAD), without the non-ESP marker.
    pub message: &'a [u8],
    /// The *other* side's nonce.
    pub peer_nonce: &'a Nonce,
    /// That side's SK_pi or SK_pr.
    pub sk_p: &'a SecretBytes,
    /// That side's ID payload.
    pub id: &'a IdPayload,
    /// What IKE_INTERMEDIATE exchanges contributed ([`super::IntAuth::finish`]), if there were any.
    pub int_auth: Option<&'a [u8]>,
}

/// The octets that the AUTH payload of one side covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedOctets(pub(super) Vec<u8>);

impl SignedOctets {
    /// RealMessage | the other's nonce | prf(SK_p, IDi'/IDr') | IntAuth.
    pub fn new(input: &SignedOctetsInput<'_>) -> Self {
        let maced_id = input.prf.compute(input.sk_p.expose(), &[&input.id.body()]);
        let parts = [
            input.message,
            input.peer_nonce.octets(),
            maced_id.as_slice(),
            input.int_auth.unwrap_or_default(),
        ];
        Self(parts.concat())
    }
}

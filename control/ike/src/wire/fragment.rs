//! Fragments (RFC 7383): splitting what is sent, and putting together what arrives.
//!
//! Only authenticated fragments reach a [`Reassembly`], so its memory is the peer's to fill but not a
//! stranger's; it is bounded all the same. One message is reassembled at a time per direction, since the
//! window is one.

use zeroize::Zeroizing;

use super::header::HEADER_LEN;
use super::message::{Opened, seal_payload};
use super::payload::{GENERIC_LEN, Payload, PayloadType, encode_chain};
use super::{DecodeError, MAX_MESSAGE, Message};
use crate::Random;
use crate::crypto::{CryptoError, Sealer};

/// Most fragments of one message, in either direction.
pub const MAX_FRAGMENTS: u16 = 128;

/// Which fragment of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPosition {
    /// From 1.
    pub number: u16,
    /// At least `number`.
    pub total: u16,
}

impl FragmentPosition {
    pub(crate) const LEN: usize = 4;

    pub(crate) fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let kind = PayloadType::EncryptedFragment;
        let Some((&[n0, n1, t0, t1], _)) = body.split_first_chunk::<4>() else {
            return Err(DecodeError::BadLength(kind));
        };
        let position = Self { number: u16::from_be_bytes([n0, n1]), total: u16::from_be_bytes([t0, t1]) };
        // RFC 7383 section 2.6: number and total are not zero, number is at most total.
        if position.number == 0 || position.number > position.total {
            return Err(DecodeError::BadValue(kind));
        }
        if position.total > MAX_FRAGMENTS {
            return Err(DecodeError::TooMany(kind));
        }
        Ok(position)
    }

    fn octets(self) -> [u8; 4] {
        let ([n0, n1], [t0, t1]) = (self.number.to_be_bytes(), self.total.to_be_bytes());
        [n0, n1, t0, t1]
    }
}

/// Seals a message into datagrams of at most `limit` octets (IKE message, without UDP and IP headers), one
/// SK datagram if it fits, SKF datagrams otherwise.
pub fn seal_fragmented(
    message: &Message,
    limit: usize,
    sealer: &mut Sealer,
    rng: &mut dyn Random,
) -> Result<Vec<Vec<u8>>, CryptoError> {
    let (first, chain) = encode_chain(&message.payloads);
    let chain = Zeroizing::new(chain);
    if HEADER_LEN + GENERIC_LEN + sealer.sealed_len(chain.len()) <= limit {
        let kind = PayloadType::Encrypted;
        return Ok(vec![seal_payload(&message.header, kind, first, &[], &chain, sealer, rng)?]);
    }
    let overhead = HEADER_LEN + GENERIC_LEN + FragmentPosition::LEN;
    let mut room = limit.saturating_sub(overhead);
    while room > 0 && overhead + sealer.sealed_len(room) > limit {
        room -= 1;
    }
    if room == 0 {
        return Err(CryptoError::TooLong);
    }
    let total = u16::try_from(chain.len().div_ceil(room)).map_err(|_| CryptoError::TooLong)?;
    if total > MAX_FRAGMENTS {
        return Err(CryptoError::TooLong);
    }
    let kind = PayloadType::EncryptedFragment;
    (1..=total)
        .zip(chain.chunks(room))
        .map(|(number, part)| {
            // RFC 7383 section 2.5: only the first fragment names the first inner payload.
            let first = if number == 1 { first } else { 0 };
            let position = FragmentPosition { number, total }.octets();
            seal_payload(&message.header, kind, first, &position, part, sealer, rng)
        })
        .collect()
}

/// Fragments of one message, waiting for the rest.
#[derive(Debug, Default)]
pub struct Reassembly {
    message_id: u32,
    total: u16,
    first_inner: u8,
    received: u16,
    octets: usize,
    parts: Vec<Option<Zeroizing<Vec<u8>>>>,
}

impl Reassembly {
    /// Nothing received yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an authenticated fragment; returns the whole when it completes it.
    pub fn insert(&mut self, position: FragmentPosition, fragment: Opened) -> Option<Opened> {
        let other_message = self.message_id != fragment.header.message_id;
        // RFC 7383 section 2.6: a larger total replaces what was collected (the sender has lowered its
        // fragment size), a smaller one is discarded.
        if self.parts.is_empty() || other_message || position.total > self.total {
            self.restart(fragment.header.message_id, position.total);
        } else if position.total < self.total {
            return None;
        }
        let slot = self.parts.get_mut(usize::from(position.number) - 1)?;
        if slot.is_some() || self.octets + fragment.inner.len() > MAX_MESSAGE {
            return None;
        }
        if position.number == 1 {
            self.first_inner = fragment.first_inner;
        }
        self.octets += fragment.inner.len();
        self.received += 1;
        *slot = Some(fragment.inner);
        if self.received < self.total {
            return None;
        }
        let mut inner = Zeroizing::new(Vec::with_capacity(self.octets));
        self.parts.drain(..).flatten().for_each(|part| inner.extend_from_slice(&part));
        let first_inner = self.first_inner;
        self.restart(0, 0);
        Some(Opened { header: fragment.header, outer: fragment.outer, first_inner, inner })
    }

    /// Drops what was collected.
    pub fn clear(&mut self) {
        self.restart(0, 0);
    }

    fn restart(&mut self, message_id: u32, total: u16) {
        *self = Self { message_id, total, ..Self::default() };
        self.parts.resize_with(total.into(), || None);
    }
}

/// The header and inner chain of a message as sent, for [`Message::int_auth_octets`].
pub fn inner_chain(payloads: &[Payload]) -> (u8, Zeroizing<Vec<u8>>) {
    let (first, chain) = encode_chain(payloads);
    (first, Zeroizing::new(chain))
}

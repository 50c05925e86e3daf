//! Whole messages: header and payload chain, in clear or inside an Encrypted payload (RFC 7296 section 3.14).
//!
//! A sealed datagram is opened first and decoded after: what is inside an SK payload is never looked at
//! before its integrity has been checked.

use zeroize::Zeroizing;

use super::fragment::FragmentPosition;
use super::header::{HEADER_LEN, Header};
use super::payload::{GENERIC_LEN, Payload, PayloadType, decode_chain, decode_raw, encode_chain, walk_chain};
use super::{DecodeError, MAX_MESSAGE};
use crate::Random;
use crate::crypto::{CryptoError, Opener, Sealer};

/// A message: header and payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Header.
    pub header: Header,
    /// Payloads, in order.
    pub payloads: Vec<Payload>,
}

/// A datagram taken apart as far as it can be without keys.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// No encrypted payload: IKE_SA_INIT, or something nobody authenticated.
    Plain(Message),
    /// Ends in an SK or SKF payload.
    Sealed(Sealed<'a>),
}

/// A datagram that ends in an SK or SKF payload.
#[derive(Debug)]
pub struct Sealed<'a> {
    /// Header; not authenticated until [`Sealed::open`] succeeds.
    pub header: Header,
    /// The fragment's position, for SKF.
    pub fragment: Option<FragmentPosition>,
    first_inner: u8,
    outer: Vec<Payload>,
    associated: &'a [u8],
    body: &'a [u8],
}

/// What an encrypted payload held: authenticated, not yet decoded.
#[derive(Debug)]
pub struct Opened {
    /// The header, now authenticated.
    pub header: Header,
    /// Payloads that stood before SK in clear; authenticated as associated data.
    pub outer: Vec<Payload>,
    /// Type of the first inner payload (RFC 7383: meaningful in the first fragment only).
    pub first_inner: u8,
    /// The inner chain, or a fragment of it.
    pub inner: Zeroizing<Vec<u8>>,
}

/// Takes a datagram (without the non-ESP marker) apart.
pub fn parse(datagram: &[u8]) -> Result<Parsed<'_>, DecodeError> {
    if datagram.len() > MAX_MESSAGE {
        return Err(DecodeError::LengthMismatch);
    }
    let (header, first) = Header::decode(datagram)?;
    let chain = datagram.get(HEADER_LEN..).unwrap_or_default();
    let raw = walk_chain(first, chain)?;
    let Some((last, before)) = raw.split_last() else {
        return Ok(Parsed::Plain(Message { header, payloads: Vec::new() }));
    };
    let kind = PayloadType::from_number(last.kind);
    let (fragment, prefix) = match kind {
        Some(PayloadType::Encrypted) => (None, 0),
        Some(PayloadType::EncryptedFragment) => {
            let position = FragmentPosition::decode(last.body)?;
            (Some(position), FragmentPosition::LEN)
        }
        _ => return Ok(Parsed::Plain(Message { header, payloads: decode_raw(&raw)? })),
    };
    let body_start = HEADER_LEN + last.start + GENERIC_LEN + prefix;
    let (associated, body) = datagram.split_at_checked(body_start).ok_or(DecodeError::Truncated)?;
    let outer = decode_raw(before)?;
    Ok(Parsed::Sealed(Sealed { header, fragment, first_inner: last.next, outer, associated, body }))
}

impl Sealed<'_> {
    /// Checks and decrypts. A failure says nothing but that.
    pub fn open(self, opener: &Opener) -> Result<Opened, CryptoError> {
        let inner = opener.open(self.associated, self.body)?;
        Ok(Opened { header: self.header, outer: self.outer, first_inner: self.first_inner, inner })
    }
}

impl Opened {
    /// Decodes the inner chain of an unfragmented message, outer payloads first.
    pub fn decode(&self) -> Result<Message, DecodeError> {
        let mut payloads = self.outer.clone();
        payloads.extend(decode_chain(self.first_inner, &self.inner)?);
        Ok(Message { header: self.header, payloads })
    }
}

impl Message {
    /// Encodes the message in clear.
    pub fn encode_plain(&self) -> Vec<u8> {
        let (first, chain) = encode_chain(&self.payloads);
        let mut out = Vec::with_capacity(HEADER_LEN + chain.len());
        self.header.encode(first, (HEADER_LEN + chain.len()) as u32, &mut out);
        out.extend_from_slice(&chain);
        out
    }

    /// Encodes the message with all payloads inside one SK payload.
    pub fn seal(&self, sealer: &mut Sealer, rng: &mut dyn Random) -> Result<Vec<u8>, CryptoError> {
        let (first, chain) = encode_chain(&self.payloads);
        let chain = Zeroizing::new(chain);
        seal_payload(&self.header, PayloadType::Encrypted, first, &[], &chain, sealer, rng)
    }

    /// The inner chain as IntAuth covers it: octets of A, then of P (RFC 9242 section 3.3.2).
    ///
    /// The header's and the Encrypted payload's lengths are as if P stood there unencrypted, without IV,
    /// padding or checksum, whether or not the message was fragmented. Payloads in clear before SK, which the
    /// RFC would add to A, are not covered: with a peer that sends any, authentication fails.
    pub fn int_auth_octets(header: &Header, first_inner: u8, inner: &[u8]) -> Zeroizing<Vec<u8>> {
        let total = HEADER_LEN + GENERIC_LEN + inner.len();
        let mut out = Zeroizing::new(Vec::with_capacity(total));
        header.encode(PayloadType::Encrypted.number(), total as u32, &mut out);
        let length = (GENERIC_LEN + inner.len()) as u16;
        out.extend_from_slice(&[first_inner, 0]);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(inner);
        out
    }

    /// First notification of a type.
    pub fn notify(&self, kind: super::NotifyType) -> Option<&super::Notify> {
        self.payloads.iter().find_map(|payload| match payload {
            Payload::Notify(notify) if notify.kind == kind => Some(notify),
            _ => None,
        })
    }
}

/// Builds one datagram whose last payload is SK or SKF over `inner`.
pub(crate) fn seal_payload(
    header: &Header,
    kind: PayloadType,
    first_inner: u8,
    prefix: &[u8],
    inner: &[u8],
    sealer: &mut Sealer,
    rng: &mut dyn Random,
) -> Result<Vec<u8>, CryptoError> {
    let payload_len = GENERIC_LEN + prefix.len() + sealer.sealed_len(inner.len());
    let total = HEADER_LEN + payload_len;
    let length = u16::try_from(payload_len).map_err(|_| CryptoError::TooLong)?;
    let mut out = Vec::with_capacity(total);
    header.encode(kind.number(), total as u32, &mut out);
    out.extend_from_slice(&[first_inner, 0]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(prefix);
    sealer.seal(&mut out, inner, rng)?;
    debug_assert_eq!(out.len(), total);
    Ok(out)
}

//! The wire format: RFC 7296 section 3, fragments by RFC 7383.
//!
//! Untrusted octets are decoded once, into types that cannot be wrong; every list has a bound. A datagram is
//! [`parse`]d into a [`Parsed::Plain`] message, or a [`Parsed::Sealed`] one that is opened with the SA's
//! keys and only then decoded. Nothing is allocated in proportion to a number that the peer merely states.
//!
//! Unknown payloads without the critical bit are skipped (RFC 7296 section 2.5). Not done: AH, EAP (kept as
//! octets), Configuration payloads (kept as octets).

pub mod fragment;
mod header;
mod identity;
mod message;
mod notify;
mod payload;
mod sa;
mod traffic_selector;

pub use header::{ExchangeType, HEADER_LEN, Header, IkeSpi};
pub use identity::{IdPayload, Identity};
pub use message::{Message, Opened, Parsed, Sealed, parse};
pub use notify::{Notify, NotifySubject, NotifyType};
pub use payload::{
    AuthMethod, AuthPayload, CertEncoding, CertPayload, CertRequest, Delete, KePayload, Nonce, Payload,
    PayloadType, decode_chain, encode_chain,
};
pub use sa::{Proposal, ProposalSpi, ProtocolId, Transform, TransformType};
pub use traffic_selector::{AddressRange, TrafficSelector};

/// Most payloads in one message.
pub const MAX_PAYLOADS: usize = 64;
/// Most proposals in one SA payload.
pub const MAX_PROPOSALS: usize = 32;
/// Most transforms in one proposal.
pub const MAX_TRANSFORMS: usize = 64;
/// Most selectors in one TS payload.
pub const MAX_SELECTORS: usize = 64;
/// Most SPIs in one Delete payload.
pub const MAX_DELETED: usize = 64;
/// Longest message accepted, reassembled or not.
pub const MAX_MESSAGE: usize = 65_535;

/// What is wrong with a message that cannot be decoded: all of it the sender's fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Shorter than its fields need.
    Truncated,
    /// The header's length is not the datagram's.
    LengthMismatch,
    /// The initiator's SPI is zero.
    ZeroSpi,
    /// A major version other than 2. The header is as decoded; nothing in it is authenticated.
    MajorVersion {
        /// The header.
        header: Header,
        /// The version.
        major: u8,
    },
    /// A payload this crate does not know, with its critical bit (RFC 7296 section 2.5).
    UnsupportedCritical(u8),
    /// A length field inside a payload contradicts another one.
    BadLength(PayloadType),
    /// A value that the payload's definition forbids.
    BadValue(PayloadType),
    /// More of something than this crate's bounds allow.
    TooMany(PayloadType),
    /// SK or SKF not last in the datagram, or inside another SK.
    MisplacedEncrypted,
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Truncated => f.write_str("message truncated"),
            Self::LengthMismatch => f.write_str("the header's length is not the datagram's"),
            Self::ZeroSpi => f.write_str("the initiator's SPI is zero"),
            Self::MajorVersion { major, .. } => write!(f, "IKE major version {major}"),
            Self::UnsupportedCritical(kind) => write!(f, "unknown critical payload {kind}"),
            Self::BadLength(kind) => write!(f, "wrong length inside a {kind:?} payload"),
            Self::BadValue(kind) => write!(f, "forbidden value inside a {kind:?} payload"),
            Self::TooMany(kind) => write!(f, "too many elements inside a {kind:?} payload"),
            Self::MisplacedEncrypted => f.write_str("misplaced encrypted payload"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// A cursor over untrusted octets.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    kind: PayloadType,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], kind: PayloadType) -> Self {
        Self { rest: bytes, kind }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::BadLength(self.kind))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(DecodeError::BadLength(self.kind))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}

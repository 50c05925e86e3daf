//! Security Association payloads: proposals and transforms (RFC 7296 section 3.3).
//!
//! A [`Transform`] carries numbers; the algorithms they mean are in [`crate::crypto`].

use super::payload::PayloadType;
use super::{DecodeError, IkeSpi, MAX_PROPOSALS, MAX_TRANSFORMS, Reader};

/// Protocol of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProtocolId {
    /// 1.
    Ike,
    /// 2; never accepted.
    Ah,
    /// 3.
    Esp,
    /// Any other; never accepted.
    Other(u8),
}

impl ProtocolId {
    /// From its number.
    pub fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Ike,
            2 => Self::Ah,
            3 => Self::Esp,
            other => Self::Other(other),
        }
    }

    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Ike => 1,
            Self::Ah => 2,
            Self::Esp => 3,
            Self::Other(number) => number,
        }
    }
}

/// The SPI inside a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposalSpi {
    /// IKE_SA_INIT.
    None,
    /// A rekeyed IKE SA.
    Ike(IkeSpi),
    /// A child SA.
    Esp(u32),
    /// Of another size; never accepted.
    Other(Vec<u8>),
}

/// Type of a transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TransformType {
    /// 1: ENCR.
    Encryption,
    /// 2: PRF.
    Prf,
    /// 3: INTEG.
    Integrity,
    /// 4: key exchange method (RFC 9370), once "Diffie-Hellman group".
    KeyExchange,
    /// 5: ESN.
    Esn,
    /// 6 to 12: additional key exchange 1 to 7 (RFC 9370).
    AdditionalKe(u8),
    /// Any other; a proposal with it is not accepted (RFC 7296 section 3.3.6).
    Other(u8),
}

impl TransformType {
    /// From its number.
    pub fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Encryption,
            2 => Self::Prf,
            3 => Self::Integrity,
            4 => Self::KeyExchange,
            5 => Self::Esn,
            6..=12 => Self::AdditionalKe(number - 5),
            other => Self::Other(other),
        }
    }

    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Encryption => 1,
            Self::Prf => 2,
            Self::Integrity => 3,
            Self::KeyExchange => 4,
            Self::Esn => 5,
            Self::AdditionalKe(slot) => slot + 5,
            Self::Other(number) => number,
        }
    }
}

/// One transform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transform {
    /// Its type.
    pub kind: TransformType,
    /// Its ID within the type.
    pub id: u16,
    /// The Key Length attribute, in bits.
    pub key_bits: Option<u16>,
    /// Other attributes as sent; a transform with any is not accepted (RFC 7296 section 3.3.6).
    pub other_attributes: Vec<u8>,
}

impl Transform {
    /// One without attributes.
    pub fn new(kind: TransformType, id: u16) -> Self {
        Self { kind, id, key_bits: None, other_attributes: Vec::new() }
    }

    /// One with a key length.
    pub fn with_key(kind: TransformType, id: u16, key_bits: u16) -> Self {
        Self { kind, id, key_bits: Some(key_bits), other_attributes: Vec::new() }
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body, PayloadType::Sa);
        let kind = TransformType::from_number(reader.u8()?);
        reader.u8()?;
        let mut transform = Self::new(kind, reader.u16()?);
        while !reader.is_empty() {
            let (kind, value) = (reader.u16()?, reader.u16()?);
            match kind {
                KEY_LENGTH if transform.key_bits.is_none() => transform.key_bits = Some(value),
                _ => {
                    transform.other_attributes.extend_from_slice(&kind.to_be_bytes());
                    transform.other_attributes.extend_from_slice(&value.to_be_bytes());
                    // RFC 7296 section 3.3.5: without the AF bit the second field is the value's length.
                    if kind & AF_BIT == 0 {
                        transform.other_attributes.extend_from_slice(reader.take(value.into())?);
                    }
                }
            }
        }
        Ok(transform)
    }

    fn encode(&self, last: bool, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[if last { 0 } else { MORE_TRANSFORMS }, 0, 0, 0, self.kind.number(), 0]);
        out.extend_from_slice(&self.id.to_be_bytes());
        if let Some(bits) = self.key_bits {
            out.extend_from_slice(&KEY_LENGTH.to_be_bytes());
            out.extend_from_slice(&bits.to_be_bytes());
        }
        out.extend_from_slice(&self.other_attributes);
        super::payload::patch_length(out, start);
    }
}

/// One proposal: an alternative from each transform type is to be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Its number, from 1.
    pub number: u8,
    /// Its protocol.
    pub protocol: ProtocolId,
    /// Its SPI.
    pub spi: ProposalSpi,
    /// Its transforms, in order of preference within a type.
    pub transforms: Vec<Transform>,
}

impl Proposal {
    /// Decodes the body of an SA payload.
    pub(crate) fn decode_all(body: &[u8]) -> Result<Vec<Self>, DecodeError> {
        let mut reader = Reader::new(body, PayloadType::Sa);
        let mut proposals = Vec::new();
        loop {
            let more = reader.u8()?;
            reader.u8()?;
            let length = usize::from(reader.u16()?);
            let body = reader.take(length.checked_sub(4).ok_or(DecodeError::BadLength(PayloadType::Sa))?)?;
            if proposals.len() == MAX_PROPOSALS {
                return Err(DecodeError::TooMany(PayloadType::Sa));
            }
            proposals.push(Self::decode(body)?);
            match (more, reader.is_empty()) {
                (0, true) => return Ok(proposals),
                (MORE_PROPOSALS, false) => {}
                _ => return Err(DecodeError::BadValue(PayloadType::Sa)),
            }
        }
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body, PayloadType::Sa);
        let [number, protocol, spi_size, count] = reader.array()?;
        let protocol = ProtocolId::from_number(protocol);
        let spi = reader.take(spi_size.into())?;
        let spi = match (protocol, spi.len()) {
            (_, 0) => ProposalSpi::None,
            (ProtocolId::Ike, 8) => {
                <[u8; 8]>::try_from(spi).map_or(ProposalSpi::None, |octets| ProposalSpi::Ike(IkeSpi(octets)))
            }
            (ProtocolId::Esp, 4) => <[u8; 4]>::try_from(spi)
                .map_or(ProposalSpi::None, |octets| ProposalSpi::Esp(u32::from_be_bytes(octets))),
            _ => ProposalSpi::Other(spi.to_vec()),
        };
        if usize::from(count) > MAX_TRANSFORMS {
            return Err(DecodeError::TooMany(PayloadType::Sa));
        }
        let mut transforms = Vec::with_capacity(count.into());
        for left in (0..count).rev() {
            let more = reader.u8()?;
            reader.u8()?;
            let length = usize::from(reader.u16()?);
            let body = reader.take(length.checked_sub(4).ok_or(DecodeError::BadLength(PayloadType::Sa))?)?;
            if more != if left == 0 { 0 } else { MORE_TRANSFORMS } {
                return Err(DecodeError::BadValue(PayloadType::Sa));
            }
            transforms.push(Transform::decode(body)?);
        }
        if !reader.is_empty() {
            return Err(DecodeError::BadLength(PayloadType::Sa));
        }
        Ok(Self { number, protocol, spi, transforms })
    }

    pub(crate) fn encode_all(proposals: &[Self], out: &mut Vec<u8>) {
        for (index, proposal) in proposals.iter().enumerate() {
            let start = out.len();
            let more = if index + 1 == proposals.len() { 0 } else { MORE_PROPOSALS };
            let spi = match &proposal.spi {
                ProposalSpi::None => Vec::new(),
                ProposalSpi::Ike(spi) => spi.0.to_vec(),
                ProposalSpi::Esp(spi) => spi.to_be_bytes().to_vec(),
                ProposalSpi::Other(spi) => spi.clone(),
            };
            let count = proposal.transforms.len();
            out.extend_from_slice(&[more, 0, 0, 0, proposal.number, proposal.protocol.number()]);
            out.extend_from_slice(&[spi.len() as u8, count as u8]);
            out.extend_from_slice(&spi);
            for (index, transform) in proposal.transforms.iter().enumerate() {
                transform.encode(index + 1 == count, out);
            }
            super::payload::patch_length(out, start);
        }
    }
}

const MORE_PROPOSALS: u8 = 2;
const MORE_TRANSFORMS: u8 = 3;
const AF_BIT: u16 = 0x8000;
const KEY_LENGTH: u16 = AF_BIT | 14;

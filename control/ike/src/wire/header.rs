//! The IKE header (RFC 7296 section 3.1).
//!
//! Invariant: a decoded [`Header`] has major version 2 and a length equal to the datagram's. Unknown
//! exchange types are kept, since the answer to them depends on whether they were authenticated.

use std::fmt;

use super::DecodeError;

/// An IKE SA's SPI as chosen by one side; zero means "not chosen yet".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct IkeSpi(pub [u8; 8]);

impl IkeSpi {
    /// The responder's SPI in the first request.
    pub const ZERO: Self = Self([0; 8]);

    /// Whether it is not chosen yet.
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}

impl fmt::Display for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The exchange a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExchangeType {
    /// IKE_SA_INIT.
    IkeSaInit,
    /// IKE_AUTH.
    IkeAuth,
    /// CREATE_CHILD_SA.
    CreateChildSa,
    /// INFORMATIONAL.
    Informational,
    /// IKE_INTERMEDIATE (RFC 9242).
    IkeIntermediate,
    /// IKE_FOLLOWUP_KE (RFC 9370).
    IkeFollowupKe,
    /// Any other number.
    Other(u8),
}

impl ExchangeType {
    /// From its number on the wire.
    pub fn from_number(number: u8) -> Self {
        match number {
            34 => Self::IkeSaInit,
            35 => Self::IkeAuth,
            36 => Self::CreateChildSa,
            37 => Self::Informational,
            43 => Self::IkeIntermediate,
            44 => Self::IkeFollowupKe,
            other => Self::Other(other),
        }
    }

    /// Its number on the wire.
    pub fn number(self) -> u8 {
        match self {
            Self::IkeSaInit => 34,
            Self::IkeAuth => 35,
            Self::CreateChildSa => 36,
            Self::Informational => 37,
            Self::IkeIntermediate => 43,
            Self::IkeFollowupKe => 44,
            Self::Other(number) => number,
        }
    }
}

/// The IKE header. The first payload's type and the length are the encoder's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// SPI of the side that started the IKE SA.
    pub initiator_spi: IkeSpi,
    /// SPI of the other side.
    pub responder_spi: IkeSpi,
    /// Which exchange.
    pub exchange: ExchangeType,
    /// Flag I: the sender started the IKE SA (not this exchange).
    pub from_initiator: bool,
    /// Flag R: this answers a request of the same message ID.
    pub response: bool,
    /// Flag V: the sender could speak a higher major version.
    pub higher_version: bool,
    /// Minor version; zero when sent, ignored when received (RFC 7296 section 2.5).
    pub minor_version: u8,
    /// Message ID.
    pub message_id: u32,
}

/// Length of the header in octets.
pub const HEADER_LEN: usize = 28;

const FLAG_INITIATOR: u8 = 0x08;
const FLAG_VERSION: u8 = 0x10;
const FLAG_RESPONSE: u8 = 0x20;

impl Header {
    /// A header as this side sends it.
    pub fn new(
        initiator_spi: IkeSpi,
        responder_spi: IkeSpi,
        exchange: ExchangeType,
        from_initiator: bool,
        response: bool,
        message_id: u32,
    ) -> Self {
        Self {
            initiator_spi,
            responder_spi,
            exchange,
            from_initiator,
            response,
            higher_version: false,
            minor_version: 0,
            message_id,
        }
    }

    /// Decodes the header and checks its version and length; also returns the first payload's type.
    pub fn decode(datagram: &[u8]) -> Result<(Self, u8), DecodeError> {
        let Some((head, _)) = datagram.split_first_chunk::<HEADER_LEN>() else {
            return Err(DecodeError::Truncated);
        };
        let [
            i0,
            i1,
            i2,
            i3,
            i4,
            i5,
            i6,
            i7,
            r0,
            r1,
            r2,
            r3,
            r4,
            r5,
            r6,
            r7,
            next,
            version,
            exchange,
            flags,
            m0,
            m1,
            m2,
            m3,
            l0,
            l1,
            l2,
            l3,
        ] = *head;
        let header = Self {
            initiator_spi: IkeSpi([i0, i1, i2, i3, i4, i5, i6, i7]),
            responder_spi: IkeSpi([r0, r1, r2, r3, r4, r5, r6, r7]),
            exchange: ExchangeType::from_number(exchange),
            from_initiator: flags & FLAG_INITIATOR != 0,
            response: flags & FLAG_RESPONSE != 0,
            higher_version: flags & FLAG_VERSION != 0,
            minor_version: version & 0x0f,
            message_id: u32::from_be_bytes([m0, m1, m2, m3]),
        };
        // RFC 7296 section 2.5: a higher major version is answered with INVALID_MAJOR_VERSION, which needs
        // the header's other fields.
        if version >> 4 != 2 {
            return Err(DecodeError::MajorVersion { header, major: version >> 4 });
        }
        if u32::from_be_bytes([l0, l1, l2, l3]) as usize != datagram.len() {
            return Err(DecodeError::LengthMismatch);
        }
        // RFC 7296 section 3.1: the initiator's SPI is never zero.
        if header.initiator_spi.is_zero() {
            return Err(DecodeError::ZeroSpi);
        }
        Ok((header, next))
    }

    /// Appends the header for a message of `length` octets in all.
    pub fn encode(&self, next_payload: u8, length: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.initiator_spi.0);
        out.extend_from_slice(&self.responder_spi.0);
        let mut flags = 0;
        for (set, bit) in [
            (self.from_initiator, FLAG_INITIATOR),
            (self.higher_version, FLAG_VERSION),
            (self.response, FLAG_RESPONSE),
        ] {
            if set {
                flags |= bit;
            }
        }
        out.extend_from_slice(&[
            next_payload,
            0x20 | (self.minor_version & 0x0f),
            self.exchange.number(),
            flags,
        ]);
        out.extend_from_slice(&self.message_id.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
    }

    /// The header of the response to this request.
    pub fn response(&self) -> Self {
        Self {
            from_initiator: !self.from_initiator,
            response: true,
            higher_version: false,
            minor_version: 0,
            ..*self
        }
    }
}

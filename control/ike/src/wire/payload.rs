//! Payloads and the chain they form (RFC 7296 section 3.2 and following).

use super::identity::IdPayload;
use super::notify::{Notify, NotifySubject, NotifyType};
use super::sa::Proposal;
use super::traffic_selector::TrafficSelector;
use super::{DecodeError, MAX_DELETED, MAX_PAYLOADS, Reader};

/// The payload types this crate knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum PayloadType {
    /// Security Association.
    Sa = 33,
    /// Key Exchange.
    Ke = 34,
    /// Identification of the initiator.
    IdI = 35,
    /// Identification of the responder.
    IdR = 36,
    /// Certificate.
    Cert = 37,
    /// Certificate Request.
    CertReq = 38,
    /// Authentication.
    Auth = 39,
    /// Nonce.
    Nonce = 40,
    /// Notify.
    Notify = 41,
    /// Delete.
    Delete = 42,
    /// Vendor ID.
    VendorId = 43,
    /// Traffic selectors of the initiator's side.
    TsI = 44,
    /// Traffic selectors of the responder's side.
    TsR = 45,
    /// Encrypted and Authenticated.
    Encrypted = 46,
    /// Configuration.
    Configuration = 47,
    /// EAP.
    Eap = 48,
    /// Encrypted and Authenticated Fragment (RFC 7383).
    EncryptedFragment = 53,
}

impl PayloadType {
    /// From its number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            33 => Self::Sa,
            34 => Self::Ke,
            35 => Self::IdI,
            36 => Self::IdR,
            37 => Self::Cert,
            38 => Self::CertReq,
            39 => Self::Auth,
            40 => Self::Nonce,
            41 => Self::Notify,
            42 => Self::Delete,
            43 => Self::VendorId,
            44 => Self::TsI,
            45 => Self::TsR,
            46 => Self::Encrypted,
            47 => Self::Configuration,
            48 => Self::Eap,
            53 => Self::EncryptedFragment,
            _ => return None,
        })
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// A Key Exchange payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KePayload {
    /// Key exchange method's number.
    pub group: u16,
    /// Public value, ML-KEM key or ciphertext.
    pub data: Vec<u8>,
}

/// A nonce of 16 to 256 octets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nonce(Vec<u8>);

impl Nonce {
    /// RFC 7296 section 3.9: between 16 and 256 octets.
    pub fn new(octets: Vec<u8>) -> Option<Self> {
        (16..=256).contains(&octets.len()).then_some(Self(octets))
    }

    /// A fresh one of 32 octets: at least half the key size of every PRF (RFC 7296 section 2.10).
    pub fn generate(rng: &mut dyn crate::Random) -> Self {
        Self(crate::random::random_array::<32>(rng).to_vec())
    }

    /// Its octets.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

/// How a certificate, or a request for one, is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertEncoding(pub u8);

impl CertEncoding {
    /// X.509 certificate, signature.
    pub const X509: Self = Self(4);
    /// Hash and URL of an X.509 certificate; not followed.
    pub const HASH_AND_URL: Self = Self(12);
}

/// A Certificate payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertPayload {
    /// Encoding.
    pub encoding: CertEncoding,
    /// Data.
    pub data: Vec<u8>,
}

/// A Certificate Request payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertRequest {
    /// Encoding.
    pub encoding: CertEncoding,
    /// Concatenated SHA-1 hashes of the trusted CAs' public keys (RFC 7296 section 3.7).
    pub authorities: Vec<u8>,
}

/// Authentication methods (IANA "IKEv2 Authentication Method").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthMethod(pub u8);

impl AuthMethod {
    /// RSA with PKCS #1 v1.5; the hash is SHA-1 by default.
    pub const RSA: Self = Self(1);
    /// Pre-shared key.
    pub const PSK: Self = Self(2);
    /// ECDSA with SHA-256 on P-256 (RFC 4754).
    pub const ECDSA_256: Self = Self(9);
    /// ECDSA with SHA-384 on P-384 (RFC 4754).
    pub const ECDSA_384: Self = Self(10);
    /// ECDSA with SHA-512 on P-521 (RFC 4754).
    pub const ECDSA_521: Self = Self(11);
    /// NULL (RFC 7619); never accepted.
    pub const NULL: Self = Self(13);
    /// Digital Signature (RFC 7427).
    pub const SIGNATURE: Self = Self(14);
}

/// An Authentication payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthPayload {
    /// Method.
    pub method: AuthMethod,
    /// Data.
    pub data: Vec<u8>,
}

/// A Delete payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delete {
    /// The IKE SA that carries it.
    Ike,
    /// ESP SAs, by the SPIs the sender receives on.
    Esp(Vec<u32>),
    /// SAs of another protocol: ignored.
    Other {
        /// Protocol ID.
        protocol: u8,
        /// Octets of one SPI.
        spi_size: u8,
        /// All SPIs.
        spis: Vec<u8>,
    },
}

/// A payload, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Security Association.
    Sa(Vec<Proposal>),
    /// Key Exchange.
    Ke(KePayload),
    /// Identification of the initiator.
    IdI(IdPayload),
    /// Identification of the responder.
    IdR(IdPayload),
    /// Certificate.
    Cert(CertPayload),
    /// Certificate Request.
    CertReq(CertRequest),
    /// Authentication.
    Auth(AuthPayload),
    /// Nonce.
    Nonce(Nonce),
    /// Notify.
    Notify(Notify),
    /// Delete.
    Delete(Delete),
    /// Vendor ID.
    VendorId(Vec<u8>),
    /// Traffic selectors of the initiator's side.
    TsI(Vec<TrafficSelector>),
    /// Traffic selectors of the responder's side.
    TsR(Vec<TrafficSelector>),
    /// Configuration, undecoded.
    Configuration(Vec<u8>),
    /// EAP, undecoded.
    Eap(Vec<u8>),
}

impl Payload {
    /// Its type.
    pub fn kind(&self) -> PayloadType {
        match self {
            Self::Sa(_) => PayloadType::Sa,
            Self::Ke(_) => PayloadType::Ke,
            Self::IdI(_) => PayloadType::IdI,
            Self::IdR(_) => PayloadType::IdR,
            Self::Cert(_) => PayloadType::Cert,
            Self::CertReq(_) => PayloadType::CertReq,
            Self::Auth(_) => PayloadType::Auth,
            Self::Nonce(_) => PayloadType::Nonce,
            Self::Notify(_) => PayloadType::Notify,
            Self::Delete(_) => PayloadType::Delete,
            Self::VendorId(_) => PayloadType::VendorId,
            Self::TsI(_) => PayloadType::TsI,
            Self::TsR(_) => PayloadType::TsR,
            Self::Configuration(_) => PayloadType::Configuration,
            Self::Eap(_) => PayloadType::Eap,
        }
    }

    /// `None` for the two encrypted payloads, which [`super::parse`] handles.
    fn decode(kind: PayloadType, body: &[u8]) -> Result<Option<Self>, DecodeError> {
        let mut reader = Reader::new(body, kind);
        Ok(Some(match kind {
            PayloadType::Sa => Self::Sa(Proposal::decode_all(body)?),
            PayloadType::Ke => {
                let (group, _reserved) = (reader.u16()?, reader.u16()?);
                Self::Ke(KePayload { group, data: reader.rest().to_vec() })
            }
            PayloadType::IdI => Self::IdI(IdPayload::decode(body)?),
            PayloadType::IdR => Self::IdR(IdPayload::decode(body)?),
            PayloadType::Cert => {
                let encoding = CertEncoding(reader.u8()?);
                Self::Cert(CertPayload { encoding, data: reader.rest().to_vec() })
            }
            PayloadType::CertReq => {
                let encoding = CertEncoding(reader.u8()?);
                Self::CertReq(CertRequest { encoding, authorities: reader.rest().to_vec() })
            }
            PayloadType::Auth => {
                let [method, ..] = reader.array::<4>()?;
                Self::Auth(AuthPayload { method: AuthMethod(method), data: reader.rest().to_vec() })
            }
            PayloadType::Nonce => Self::Nonce(Nonce::new(body.to_vec()).ok_or(DecodeError::BadLength(kind))?),
            PayloadType::Notify => Self::Notify(decode_notify(reader)?),
            PayloadType::Delete => Self::Delete(decode_delete(reader)?),
            PayloadType::VendorId => Self::VendorId(body.to_vec()),
            PayloadType::TsI => Self::TsI(TrafficSelector::decode_all(body, kind)?),
            PayloadType::TsR => Self::TsR(TrafficSelector::decode_all(body, kind)?),
            PayloadType::Configuration => Self::Configuration(body.to_vec()),
            PayloadType::Eap => Self::Eap(body.to_vec()),
            PayloadType::Encrypted | PayloadType::EncryptedFragment => return Ok(None),
        }))
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Sa(proposals) => Proposal::encode_all(proposals, out),
            Self::Ke(ke) => {
                out.extend_from_slice(&ke.group.to_be_bytes());
                out.extend_from_slice(&[0, 0]);
                out.extend_from_slice(&ke.data);
            }
            Self::IdI(id) | Self::IdR(id) => out.extend_from_slice(&id.body()),
            Self::Cert(cert) => {
                out.push(cert.encoding.0);
                out.extend_from_slice(&cert.data);
            }
            Self::CertReq(request) => {
                out.push(request.encoding.0);
                out.extend_from_slice(&request.authorities);
            }
            Self::Auth(auth) => {
                out.extend_from_slice(&[auth.method.0, 0, 0, 0]);
                out.extend_from_slice(&auth.data);
            }
            Self::Nonce(nonce) => out.extend_from_slice(&nonce.0),
            Self::Notify(notify) => encode_notify(notify, out),
            Self::Delete(delete) => encode_delete(delete, out),
            Self::TsI(selectors) | Self::TsR(selectors) => TrafficSelector::encode_all(selectors, out),
            Self::VendorId(data) | Self::Configuration(data) | Self::Eap(data) => out.extend_from_slice(data),
        }
    }
}

fn decode_notify(mut reader: Reader<'_>) -> Result<Notify, DecodeError> {
    let [protocol, spi_size] = reader.array()?;
    let kind = NotifyType(reader.u16()?);
    let spi = reader.take(spi_size.into())?;
    let subject = match (protocol, spi) {
        // RFC 7296 section 3.10: without an SPI the protocol is ignored.
        (_, []) => NotifySubject::Ike,
        (3, &[a, b, c, d]) => NotifySubject::Esp(u32::from_be_bytes([a, b, c, d])),
        _ => NotifySubject::Other { protocol, spi: spi.to_vec() },
    };
    Ok(Notify { subject, kind, data: reader.rest().to_vec() })
}

fn encode_notify(notify: &Notify, out: &mut Vec<u8>) {
    let kind = notify.kind.0.to_be_bytes();
    match &notify.subject {
        NotifySubject::Ike => out.extend_from_slice(&[0, 0, kind[0], kind[1]]),
        NotifySubject::Esp(spi) => {
            out.extend_from_slice(&[3, 4, kind[0], kind[1]]);
            out.extend_from_slice(&spi.to_be_bytes());
        }
        NotifySubject::Other { protocol, spi } => {
            out.extend_from_slice(&[*protocol, spi.len() as u8, kind[0], kind[1]]);
            out.extend_from_slice(spi);
        }
    }
    out.extend_from_slice(&notify.data);
}

fn decode_delete(mut reader: Reader<'_>) -> Result<Delete, DecodeError> {
    let bad = DecodeError::BadLength(PayloadType::Delete);
    let [protocol, spi_size] = reader.array()?;
    let count = usize::from(reader.u16()?);
    let spis = reader.rest();
    if spis.len() != count * usize::from(spi_size) {
        return Err(bad);
    }
    if count > MAX_DELETED {
        return Err(DecodeError::TooMany(PayloadType::Delete));
    }
    match (protocol, spi_size) {
        // RFC 7296 section 3.11: the IKE SA has no SPI here; whether none is counted once or not at all is all
        // the same.
        (1, 0) => Ok(Delete::Ike),
        (1, _) => Err(bad),
        (3, 4) => {
            Ok(Delete::Esp(spis.as_chunks::<4>().0.iter().map(|spi| u32::from_be_bytes(*spi)).collect()))
        }
        (3, _) => Err(bad),
        _ => Ok(Delete::Other { protocol, spi_size, spis: spis.to_vec() }),
    }
}

fn encode_delete(delete: &Delete, out: &mut Vec<u8>) {
    match delete {
        Delete::Ike => out.extend_from_slice(&[1, 0, 0, 0]),
        Delete::Esp(spis) => {
            out.extend_from_slice(&[3, 4]);
            out.extend_from_slice(&(spis.len() as u16).to_be_bytes());
            spis.iter().for_each(|spi| out.extend_from_slice(&spi.to_be_bytes()));
        }
        Delete::Other { protocol, spi_size, spis } => {
            let count = spis.len().checked_div(usize::from(*spi_size)).unwrap_or(0);
            out.extend_from_slice(&[*protocol, *spi_size]);
            out.extend_from_slice(&(count as u16).to_be_bytes());
            out.extend_from_slice(spis);
        }
    }
}

/// One element of a chain before its body is decoded.
pub(crate) struct RawPayload<'a> {
    pub(crate) kind: u8,
    pub(crate) critical: bool,
    /// The type of the payload after this one.
    pub(crate) next: u8,
    /// Where the generic header begins, within the chain.
    pub(crate) start: usize,
    pub(crate) body: &'a [u8],
}

/// Walks a chain down to the end, or down to an encrypted payload, which is the last by definition.
pub(crate) fn walk_chain(first: u8, bytes: &[u8]) -> Result<Vec<RawPayload<'_>>, DecodeError> {
    let mut raw = Vec::new();
    let (mut kind, mut at) = (first, 0);
    while kind != NO_NEXT {
        if raw.len() == MAX_PAYLOADS {
            return Err(DecodeError::Truncated);
        }
        let rest = bytes.get(at..).unwrap_or_default();
        let Some((&[next, flags, l0, l1], _)) = rest.split_first_chunk::<GENERIC_LEN>() else {
            return Err(DecodeError::Truncated);
        };
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let Some(body) = rest.get(GENERIC_LEN..length) else {
            return Err(DecodeError::Truncated);
        };
        raw.push(RawPayload { kind, critical: flags & CRITICAL != 0, next, start: at, body });
        at += length;
        if matches!(
            PayloadType::from_number(kind),
            Some(PayloadType::Encrypted | PayloadType::EncryptedFragment)
        ) {
            break;
        }
        kind = next;
    }
    if at != bytes.len() {
        return Err(DecodeError::LengthMismatch);
    }
    Ok(raw)
}

/// Decodes the payloads of a chain whose first one is of type `first`, none of them encrypted.
pub fn decode_chain(first: u8, bytes: &[u8]) -> Result<Vec<Payload>, DecodeError> {
    decode_raw(&walk_chain(first, bytes)?)
}

pub(crate) fn decode_raw(raw: &[RawPayload<'_>]) -> Result<Vec<Payload>, DecodeError> {
    let mut payloads = Vec::with_capacity(raw.len());
    for item in raw {
        match PayloadType::from_number(item.kind) {
            Some(kind) => {
                payloads.push(Payload::decode(kind, item.body)?.ok_or(DecodeError::MisplacedEncrypted)?);
            }
            // RFC 7296 section 2.5: the critical bit matters only where the type is not understood.
            None if item.critical => return Err(DecodeError::UnsupportedCritical(item.kind)),
            None => {}
        }
    }
    Ok(payloads)
}

/// Encodes a chain; also returns the first payload's type, zero when there is none.
pub fn encode_chain(payloads: &[Payload]) -> (u8, Vec<u8>) {
    let mut out = Vec::new();
    for (index, payload) in payloads.iter().enumerate() {
        let start = out.len();
        let next = payloads.get(index + 1).map_or(NO_NEXT, |next| next.kind().number());
        out.extend_from_slice(&[next, 0, 0, 0]);
        payload.encode_body(&mut out);
        patch_length(&mut out, start);
    }
    (payloads.first().map_or(NO_NEXT, |first| first.kind().number()), out)
}

/// Writes the length of what began at `start` into its octets 2 and 3.
pub(crate) fn patch_length(out: &mut [u8], start: usize) {
    // A message is at most 64 KiB, and whoever builds a longer one fails when it is sealed or sent.
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    if let Some(field) = out.get_mut(start + 2..start + 4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// "No Next Payload".
pub(crate) const NO_NEXT: u8 = 0;
/// Octets of the generic payload header.
pub(crate) const GENERIC_LEN: usize = 4;
const CRITICAL: u8 = 0x80;

//! Opening: an ESP packet becomes an inner packet, or an error and nothing else.

use std::fmt;
use std::ops::Range;

use braid_api::Suite;

use super::cbc::CbcOpener;
use super::engine::{Aead, Engine};
use super::seal::{AeadParameters, Salt, word};
use super::suite::{AEAD_IV, CBC_BLOCK, FIXED_HEADER, KeyError, Layout, TRAILER, Transform, split_key};

/// Opens the packets of one inbound SA. Its keys are expanded once; it can be shared between threads.
///
/// On drop AWS-LC wipes its expanded keys and the salt is wiped here; ring keeps no promise for its own.
pub struct Opener {
    layout: Layout,
    esn: bool,
    cipher: Cipher,
}

enum Cipher {
    Aead { key: Aead, salt: Salt },
    Cbc(Box<CbcOpener>),
}

/// Where the inner packet is, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// First byte of the inner packet in the buffer.
    pub start: usize,
    /// One past its last byte. Anything the sender added for traffic-flow confidentiality (RFC 4303 section 2.7)
    /// is still inside: the inner packet knows its own length.
    pub end: usize,
    /// RFC 4303 section 2.6: 4 IPv4, 41 IPv6, 59 a dummy packet.
    pub next_header: u8,
}

impl Opened {
    /// The inner packet's place as a range.
    #[inline]
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// Why a packet was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Shorter than header, trailer and ICV.
    TooShort,
    /// What should be CBC blocks is not a multiple of the block.
    NotWholeBlocks,
    /// Not authentic: altered, or of another key or sequence number.
    BadIcv,
    /// Authentic, but its padding is longer than the packet or not 1, 2, 3…
    BadPadding,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OpenError::TooShort => "ESP packet too short",
            OpenError::NotWholeBlocks => "ESP packet is not made of whole cipher blocks",
            OpenError::BadIcv => "ESP packet is not authentic",
            OpenError::BadPadding => "ESP packet is badly padded",
        })
    }
}

impl std::error::Error for OpenError {}

impl Opener {
    /// Expands `key` (encryption key, then salt or integrity key: [`Suite::key_len`] bytes).
    ///
    /// With `esn` the high half of the sequence number is authenticated (RFC 4303 section 2.2.1).
    ///
    /// # Errors
    /// [`KeyError::Length`] if `key` is not as long as the suite wants it.
    pub fn new(suite: Suite, key: &[u8], esn: bool, engine: Engine) -> Result<Opener, KeyError> {
        let (encryption, rest) = split_key(suite, key)?;
        let cipher = match Transform::of(suite) {
            Transform::Aead(cipher) => {
                Cipher::Aead { key: Aead::new(cipher, encryption, engine)?, salt: Salt::new(rest)? }
            }
            Transform::Cbc(hash) => Cipher::Cbc(Box::new(CbcOpener::new(hash, encryption, rest)?)),
        };
        Ok(Opener { layout: Layout::of(suite), esn, cipher })
    }

    /// The suite's geometry.
    #[inline]
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Verifies and decrypts `esp` (SPI to ICV) in place. `seq` is the full sequence number as
    /// [`super::Replay::check`] inferred it; without ESN only the packet's own 32 bits count.
    ///
    /// # Errors
    /// As [`OpenError`] says. Unless the error is [`OpenError::BadPadding`] no plaintext is left in `esp`,
    /// whose encrypted part may have been wiped.
    #[inline]
    pub fn open(&self, esp: &mut [u8], seq: u64) -> Result<Opened, OpenError> {
        self.layout.check(esp.len())?;
        let seq_high = self.esn.then_some((seq >> 32) as u32);
        let start = self.layout.header_len();
        let (packet, icv) = esp.split_at_mut(esp.len() - self.layout.icv_len);
        let text = match &self.cipher {
            Cipher::Aead { key, salt } => {
                let opening = aead_parameters(packet, salt, seq, self.esn);
                let text = &mut packet[FIXED_HEADER + AEAD_IV..];
                key.open(opening.nonce, opening.aad(), text, icv).map_err(|_| OpenError::BadIcv)?;
                text
            }
            Cipher::Cbc(cbc) => {
                cbc.verify(packet, seq_high, icv).map_err(|_| OpenError::BadIcv)?;
                let (header, text) = packet.split_at_mut(FIXED_HEADER + CBC_BLOCK);
                cbc.decrypt(cbc_iv(header), text);
                text
            }
        };
        let (len, next_header) = read_trailer(text)?;
        Ok(Opened { start, end: start + len, next_header })
    }

    /// Like [`Self::open`], but decrypts to the start of `out` and leaves `esp` as it is; the inner packet and its
    /// trailer, `esp.len()` less header and ICV, are written. Saves the copy with AWS-LC, and only there.
    ///
    /// # Errors
    /// As [`OpenError`] says. Unless the error is [`OpenError::BadPadding`] no plaintext is left in `out`.
    ///
    /// # Panics
    /// If `out` is too short.
    #[inline]
    pub fn open_into(&self, esp: &[u8], seq: u64, out: &mut [u8]) -> Result<Opened, OpenError> {
        self.layout.check(esp.len())?;
        let seq_high = self.esn.then_some((seq >> 32) as u32);
        let (packet, icv) = esp.split_at(esp.len() - self.layout.icv_len);
        let (header, text) = packet.split_at(self.layout.header_len());
        let out = &mut out[..text.len()];
        match &self.cipher {
            Cipher::Aead { key, salt } => {
                let opening = aead_parameters(header, salt, seq, self.esn);
                key.open_into(opening.nonce, opening.aad(), text, icv, out).map_err(|_| OpenError::BadIcv)?;
            }
            Cipher::Cbc(cbc) => {
                cbc.verify(packet, seq_high, icv).map_err(|_| OpenError::BadIcv)?;
                out.copy_from_slice(text);
                cbc.decrypt(cbc_iv(header), out);
            }
        }
        let (end, next_header) = read_trailer(out)?;
        Ok(Opened { start: 0, end, next_header })
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("layout", &self.layout).field("esn", &self.esn).finish_non_exhaustive()
    }
}

/// From the packet's own header, save for the high half of the sequence number.
#[inline]
fn aead_parameters(packet: &[u8], salt: &Salt, seq: u64, esn: bool) -> AeadParameters {
    let seq = seq >> 32 << 32 | u64::from(word(packet, 4));
    let iv = u64::from(word(packet, 8)) << 32 | u64::from(word(packet, 12));
    AeadParameters::new(salt, iv, word(packet, 0), seq, esn)
}

/// The IV at the end of a CBC suite's header.
#[inline]
fn cbc_iv(header: &[u8]) -> [u8; CBC_BLOCK] {
    let mut iv = [0; CBC_BLOCK];
    iv.copy_from_slice(&header[FIXED_HEADER..FIXED_HEADER + CBC_BLOCK]);
    iv
}

/// Length of the payload, and next header, of decrypted text that `Layout::check` has found long enough.
///
/// RFC 4303 section 2.4: the padding is inspected, since all our transforms use the default padding.
#[inline]
fn read_trailer(text: &[u8]) -> Result<(usize, u8), OpenError> {
    let (text, trailer) = text.split_at(text.len() - TRAILER);
    let pad = usize::from(trailer[0]);
    let payload = text.len().checked_sub(pad).ok_or(OpenError::BadPadding)?;
    let padding = &text[payload..];
    if padding.iter().zip(1u8..).all(|(&byte, n)| byte == n) {
        Ok((payload, trailer[1]))
    } else {
        Err(OpenError::BadPadding)
    }
}

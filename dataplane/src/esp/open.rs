//! Opening: an ESP packet becomes an inner packet, or an error and nothing else.

use std::fmt;
use std::ops::Range;

use braid_api::Suite;

use super::cbc::CbcOpener;
use super::engine::{Aead, Engine};
use super::seal::{AeadParameters, Salt, word};
use super::suite::{
    AEAD_HEADER, AEAD_ICV, CBC_BLOCK, FIXED_HEADER, KeyError, Layout, TRAILER, Transform, split_key,
};

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
        match &self.cipher {
            Cipher::Aead { key, salt } => {
                check_aead_len(esp.len())?;
                let (packet, icv) = esp.split_at_mut(esp.len() - AEAD_ICV);
                let (header, text) = packet.split_at_mut(AEAD_HEADER);
                let opening = aead_parameters(header, salt, seq, self.esn);
                key.open(opening.nonce, opening.aad(), text, icv).map_err(|_| OpenError::BadIcv)?;
                opened(text, AEAD_HEADER)
            }
            Cipher::Cbc(cbc) => {
                let (header, text) = self.verified_cbc(cbc, esp, seq)?;
                let (iv, header_len, end) = (cbc_iv(header), header.len(), header.len() + text.len());
                let text = &mut esp[header_len..end];
                cbc.decrypt(iv, text);
                opened(text, header_len)
            }
        }
    }

    /// Header and encrypted part of a packet whose ICV is right: it is verified before anything is decrypted
    /// (RFC 4303 section 3.4.4.1).
    #[inline(never)]
    fn verified_cbc<'a>(
        &self,
        cbc: &CbcOpener,
        esp: &'a [u8],
        seq: u64,
    ) -> Result<(&'a [u8], &'a [u8]), OpenError> {
        let header_len = self.layout.header_len();
        let encrypted = esp
            .len()
            .checked_sub(header_len + self.layout.icv_len)
            .filter(|&encrypted| encrypted >= TRAILER)
            .ok_or(OpenError::TooShort)?;
        if encrypted % CBC_BLOCK != 0 {
            return Err(OpenError::NotWholeBlocks);
        }
        let (packet, icv) = esp.split_at(header_len + encrypted);
        let seq_high = self.esn.then_some((seq >> 32) as u32);
        cbc.verify(packet, seq_high, icv).map_err(|_| OpenError::BadIcv)?;
        Ok(packet.split_at(header_len))
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

/// Whether there is room for header, trailer and ICV. Stream ciphers open any length beyond.
#[inline]
fn check_aead_len(esp_len: usize) -> Result<(), OpenError> {
    if esp_len < AEAD_HEADER + TRAILER + AEAD_ICV { Err(OpenError::TooShort) } else { Ok(()) }
}

/// Finds the payload at the start of decrypted `text`, which begins at `start` in the caller's buffer and is
/// long enough for the trailer.
///
/// RFC 4303 section 2.4: the padding is inspected, since all our transforms use the default padding.
#[inline]
fn opened(text: &[u8], start: usize) -> Result<Opened, OpenError> {
    let (text, trailer) = text.split_at(text.len() - TRAILER);
    let payload = text.len().checked_sub(usize::from(trailer[0])).ok_or(OpenError::BadPadding)?;
    let padding = &text[payload..];
    if padding.iter().zip(1u8..).all(|(&byte, n)| byte == n) {
        Ok(Opened { start, end: start + payload, next_header: trailer[1] })
    } else {
        Err(OpenError::BadPadding)
    }
}

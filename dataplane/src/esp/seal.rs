//! Sealing: an inner packet becomes an ESP packet.

use std::fmt;

use braid_api::Suite;
use zeroize::Zeroize;

use super::cbc::CbcSealer;
use super::engine::{Aead, Engine, NONCE};
use super::suite::{
    AEAD_HEADER, AEAD_ICV, FIXED_HEADER, KeyError, Layout, SALT, TRAILER, Transform, split_key,
};

/// Seals the packets of one outbound SA. Its keys are expanded once; it can be shared between threads.
///
/// On drop AWS-LC wipes its expanded keys and the salt is wiped here; ring keeps no promise for its own.
pub struct Sealer {
    layout: Layout,
    esn: bool,
    cipher: Cipher,
}

enum Cipher {
    Aead { key: Aead, salt: Salt },
    Cbc(Box<CbcSealer>),
}

impl Sealer {
    /// Expands `key` (encryption key, then salt or integrity key: [`Suite::key_len`] bytes).
    ///
    /// With `esn` the high half of the sequence number is authenticated (RFC 4303 section 2.2.1).
    /// `iv_key` makes the IVs of the CBC suites: fresh random bytes for each SA, told to nobody; the AEAD suites
    /// take no notice of it.
    ///
    /// # Errors
    /// [`KeyError::Length`] if `key` is not as long as the suite wants it.
    pub fn new(
        suite: Suite,
        key: &[u8],
        esn: bool,
        iv_key: &[u8; 16],
        engine: Engine,
    ) -> Result<Sealer, KeyError> {
        let (encryption, rest) = split_key(suite, key)?;
        let cipher = match Transform::of(suite) {
            Transform::Aead(cipher) => {
                Cipher::Aead { key: Aead::new(cipher, encryption, engine)?, salt: Salt::new(rest)? }
            }
            Transform::Cbc(hash) => Cipher::Cbc(Box::new(CbcSealer::new(hash, encryption, rest, iv_key)?)),
        };
        Ok(Sealer { layout: Layout::of(suite), esn, cipher })
    }

    /// The suite's geometry.
    #[inline]
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Seals in place.
    ///
    /// `esp` is the whole ESP packet: the SPI at `esp[..4]`, and from [`Layout::header_len`] up to the ICV the
    /// payload with its trailer ([`write_trailer`]), in clear. Sequence number, IV and ICV are written here.
    ///
    /// `seq` must not have been used before, and without ESN must fit 32 bits.
    ///
    /// # Panics
    /// If `esp` is shorter than header, trailer and ICV, or for CBC not made of whole blocks: the caller lays out
    /// packets by [`Layout`].
    #[inline]
    pub fn seal(&self, esp: &mut [u8], seq: u64) {
        match &self.cipher {
            Cipher::Aead { key, salt } => {
                // RFC 4106 section 3.1 and RFC 7634 section 2 ask of the IV only that it never repeats for a
                // key: the sequence number itself.
                let sealing = self.aead_header(esp, salt, seq, seq);
                let (_, text) = esp.split_at_mut(AEAD_HEADER);
                let (text, tag) = text.split_at_mut(text.len() - AEAD_ICV);
                key.seal(sealing.nonce, sealing.aad(), text, tag);
            }
            Cipher::Cbc(cbc) => self.seal_cbc(cbc, esp, seq, cbc.iv(seq)),
        }
    }

    /// Writes sequence number and explicit IV, and makes nonce and additional data of them.
    #[inline]
    fn aead_header(&self, esp: &mut [u8], salt: &Salt, seq: u64, iv: u64) -> AeadParameters {
        self.write_seq(esp, seq);
        esp[FIXED_HEADER..AEAD_HEADER].copy_from_slice(&iv.to_be_bytes());
        AeadParameters::new(salt, iv, word(esp, 0), seq, self.esn)
    }

    #[inline(never)]
    fn seal_cbc(&self, cbc: &CbcSealer, esp: &mut [u8], seq: u64, iv: [u8; 16]) {
        self.write_seq(esp, seq);
        let header_len = self.layout.header_len();
        esp[FIXED_HEADER..header_len].copy_from_slice(&iv);
        let (packet, icv) = esp.split_at_mut(esp.len() - self.layout.icv_len);
        let seq_high = self.esn.then_some((seq >> 32) as u32);
        cbc.seal(packet, header_len, iv, seq_high, icv);
    }

    /// Only the low half is transmitted (RFC 4303 section 2.2.1).
    #[inline]
    fn write_seq(&self, esp: &mut [u8], seq: u64) {
        debug_assert!(self.esn || seq <= u64::from(u32::MAX));
        esp[4..FIXED_HEADER].copy_from_slice(&(seq as u32).to_be_bytes());
    }

    /// [`Self::seal`] with a given IV: published packets have IVs of their own.
    #[cfg(test)]
    pub(super) fn seal_with_iv(&self, esp: &mut [u8], seq: u64, iv: &[u8]) {
        match &self.cipher {
            Cipher::Aead { key, salt } => {
                let iv = u64::from_be_bytes(iv.try_into().expect("8 bytes"));
                let sealing = self.aead_header(esp, salt, seq, iv);
                let (_, text) = esp.split_at_mut(AEAD_HEADER);
                let (text, tag) = text.split_at_mut(text.len() - AEAD_ICV);
                key.seal(sealing.nonce, sealing.aad(), text, tag);
            }
            Cipher::Cbc(cbc) => self.seal_cbc(cbc, esp, seq, iv.try_into().expect("16 bytes")),
        }
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("layout", &self.layout).field("esn", &self.esn).finish_non_exhaustive()
    }
}

/// Writes the ESP trailer at the start of `after_payload`: `pad` bytes 1, 2, 3…, pad length, next header
/// (RFC 4303 section 2.4).
///
/// # Panics
/// If `after_payload` is shorter than `pad + 2`.
#[inline]
pub fn write_trailer(after_payload: &mut [u8], pad: usize, next_header: u8) {
    let (padding, rest) = after_payload.split_at_mut(pad);
    // The AEAD suites pad to 4 bytes: three cases, no loop.
    match padding {
        [] => {}
        [one] => *one = 1,
        [one, two] => (*one, *two) = (1, 2),
        [one, two, three] => (*one, *two, *three) = (1, 2, 3),
        more => more.iter_mut().zip(1u8..).for_each(|(byte, n)| *byte = n),
    }
    rest[..TRAILER].copy_from_slice(&[pad as u8, next_header]);
}

/// The implicit part of the nonce: secret, and wiped on drop.
pub(super) struct Salt(u32);

impl Salt {
    pub(super) fn new(bytes: &[u8]) -> Result<Salt, KeyError> {
        let bytes: [u8; SALT] = bytes.try_into().map_err(|_| KeyError::Refused)?;
        Ok(Salt(u32::from_be_bytes(bytes)))
    }
}

impl Drop for Salt {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Nonce and additional data of one packet.
///
/// Both are put together in registers and stored whole: a processor that loads 8 bytes which were stored 4 at a
/// time waits for the stores, and does so for every packet.
pub(super) struct AeadParameters {
    pub(super) nonce: [u8; NONCE],
    aad: [u8; 16],
    aad_len: usize,
}

impl AeadParameters {
    /// `seq` is the full sequence number, of which the high half counts only with `esn`.
    #[inline]
    pub(super) fn new(salt: &Salt, iv: u64, spi: u32, seq: u64, esn: bool) -> AeadParameters {
        let mut nonce = [0; NONCE];
        // RFC 4106 section 4, RFC 7634 section 2: salt, then IV.
        let bytes = ((u128::from(salt.0) << 64 | u128::from(iv)) << 32).to_be_bytes();
        nonce.copy_from_slice(&bytes[..NONCE]);
        // RFC 4106 section 5, RFC 7634 section 2.1: SPI and sequence number, the latter in full with ESN.
        let (aad, aad_len) = if esn {
            ((u128::from(spi) << 64 | u128::from(seq)) << 32, 12)
        } else {
            (u128::from(spi) << 96 | u128::from(seq as u32) << 64, 8)
        };
        AeadParameters { nonce, aad: aad.to_be_bytes(), aad_len }
    }

    #[inline]
    pub(super) fn aad(&self) -> &[u8] {
        &self.aad[..self.aad_len]
    }
}

/// Big-endian word at `offset`.
#[inline]
pub(super) fn word(packet: &[u8], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&packet[offset..offset + 4]);
    u32::from_be_bytes(bytes)
}

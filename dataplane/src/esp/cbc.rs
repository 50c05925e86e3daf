//! AES-CBC (RFC 3602) with a truncated HMAC (RFC 2404, RFC 4868), encrypt-then-MAC, by AWS-LC.
//!
//! The IV of CBC must not be predictable by who chooses plaintext (RFC 3602 section 3). It is
//! the sequence number encrypted, as one block, under a secret key that serves for nothing else: a permutation
//! of distinct blocks, so never the same twice, and without the key indistinguishable from random blocks. This is the
//! first method of NIST SP 800-38A appendix C, save that the key is not the encryption key.
//!
//! Both key schedules and the two keyed hash states are computed once. What AWS-LC is asked for a packet
//! works on copies on the stack; nothing is allocated.

use aws_lc_rs::cipher::{
    AES_128, AES_256, Algorithm, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext,
    UnboundCipherKey,
};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use subtle::ConstantTimeEq;

use super::engine::NotAuthentic;
use super::suite::{CBC_BLOCK, KeyError, MacHash};

/// Why AES-CBC cannot refuse: its only condition is whole blocks, which the callers' geometry guarantees.
const WHOLE_BLOCKS: &str = "the encrypted part is a multiple of the block";

/// The integrity half: an HMAC key with its two hash states already keyed.
pub(super) struct Mac(hmac::Key);

impl Mac {
    pub(super) fn new(hash: MacHash, key: &[u8]) -> Mac {
        Mac(hmac::Key::new(algorithm(hash), key))
    }

    /// The whole HMAC of `packet` (SPI to the last encrypted byte).
    ///
    /// RFC 4303 section 2.2.1: with extended sequence numbers the high half is authenticated, not transmitted,
    /// and stands behind the packet.
    #[inline]
    pub(super) fn tag(&self, packet: &[u8], seq_high: Option<u32>) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(packet);
        if let Some(high) = seq_high {
            context.update(&high.to_be_bytes());
        }
        context.sign()
    }
}

/// What seals.
pub(super) struct CbcSealer {
    cipher: EncryptingKey,
    iv_cipher: EncryptingKey,
    mac: Mac,
}

impl CbcSealer {
    /// `encryption` is 16 or 32 bytes long.
    pub(super) fn new(
        hash: MacHash,
        encryption: &[u8],
        integrity: &[u8],
        iv_key: &[u8; 16],
    ) -> Result<CbcSealer, KeyError> {
        Ok(CbcSealer {
            cipher: EncryptingKey::cbc(unbound(encryption)?).map_err(|_| KeyError::Refused)?,
            iv_cipher: EncryptingKey::ecb(unbound(iv_key)?).map_err(|_| KeyError::Refused)?,
            mac: Mac::new(hash, integrity),
        })
    }

    /// The IV of sequence number `seq`.
    #[inline(never)]
    pub(super) fn iv(&self, seq: u64) -> [u8; CBC_BLOCK] {
        let mut block = [0; CBC_BLOCK];
        block[8..].copy_from_slice(&seq.to_be_bytes());
        self.iv_cipher.less_safe_encrypt(&mut block, EncryptionContext::None).expect(WHOLE_BLOCKS);
        block
    }

    /// Encrypts `packet[header_len..]` in place and writes the ICV, as long as `icv` is.
    #[inline]
    pub(super) fn seal(
        &self,
        packet: &mut [u8],
        header_len: usize,
        iv: [u8; CBC_BLOCK],
        seq_high: Option<u32>,
        icv: &mut [u8],
    ) {
        let context = EncryptionContext::Iv128(FixedLength::from(iv));
        self.cipher.less_safe_encrypt(&mut packet[header_len..], context).expect(WHOLE_BLOCKS);
        let tag = self.mac.tag(packet, seq_high);
        icv.copy_from_slice(&tag.as_ref()[..icv.len()]);
    }
}

/// What opens.
pub(super) struct CbcOpener {
    cipher: DecryptingKey,
    mac: Mac,
}

impl CbcOpener {
    /// `encryption` is 16 or 32 bytes long.
    pub(super) fn new(hash: MacHash, encryption: &[u8], integrity: &[u8]) -> Result<CbcOpener, KeyError> {
        Ok(CbcOpener {
            cipher: DecryptingKey::cbc(unbound(encryption)?).map_err(|_| KeyError::Refused)?,
            mac: Mac::new(hash, integrity),
        })
    }

    /// Compares the ICV in constant time. Nothing may be decrypted before this has succeeded
    /// (RFC 4303 section 3.4.4.1).
    #[inline]
    pub(super) fn verify(
        &self,
        packet: &[u8],
        seq_high: Option<u32>,
        icv: &[u8],
    ) -> Result<(), NotAuthentic> {
        let tag = self.mac.tag(packet, seq_high);
        if bool::from(tag.as_ref()[..icv.len()].ct_eq(icv)) { Ok(()) } else { Err(NotAuthentic) }
    }

    /// Decrypts whole blocks in place.
    #[inline(never)]
    pub(super) fn decrypt(&self, iv: [u8; CBC_BLOCK], text: &mut [u8]) {
        let context = DecryptionContext::Iv128(FixedLength::from(iv));
        self.cipher.decrypt(text, context).expect(WHOLE_BLOCKS);
    }
}

fn unbound(key: &[u8]) -> Result<UnboundCipherKey, KeyError> {
    let algorithm: &'static Algorithm = if key.len() == 16 { &AES_128 } else { &AES_256 };
    UnboundCipherKey::new(algorithm, key).map_err(|_| KeyError::Refused)
}

fn algorithm(hash: MacHash) -> hmac::Algorithm {
    match hash {
        MacHash::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        MacHash::Sha256 => hmac::HMAC_SHA256,
        MacHash::Sha384 => hmac::HMAC_SHA384,
        MacHash::Sha512 => hmac::HMAC_SHA512,
    }
}

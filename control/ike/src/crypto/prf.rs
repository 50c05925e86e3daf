//! PRF and prf+ (RFC 7296 sections 2.13), HMAC with full output.

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use super::CryptoError;
use super::suite::Prf;

impl Prf {
    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha384 => hmac::HMAC_SHA384,
            Self::HmacSha512 => hmac::HMAC_SHA512,
        }
    }

    /// prf(key, the concatenation of `parts`).
    pub fn compute(self, key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        let mut context = hmac::Context::with_key(&hmac::Key::new(self.algorithm(), key));
        parts.iter().for_each(|part| context.update(part));
        Zeroizing::new(context.sign().as_ref().to_vec())
    }

    /// prf+(key, the concatenation of `parts`), `length` octets; at most 255 blocks.
    pub fn expand(
        self,
        key: &[u8],
        parts: &[&[u8]],
        length: usize,
    ) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let key = hmac::Key::new(self.algorithm(), key);
        let mut out = Zeroizing::new(Vec::with_capacity(length + self.output_len()));
        let mut previous = Zeroizing::new(Vec::new());
        // RFC 7296 section 2.13: the counter is one octet and begins at 1.
        for counter in 1..=u8::MAX {
            if out.len() >= length {
                break;
            }
            let mut context = hmac::Context::with_key(&key);
            context.update(&previous);
            parts.iter().for_each(|part| context.update(part));
            context.update(&[counter]);
            *previous = context.sign().as_ref().to_vec();
            out.extend_from_slice(&previous);
        }
        if out.len() < length {
            return Err(CryptoError::BadKeyLength);
        }
        out.truncate(length);
        Ok(out)
    }
}

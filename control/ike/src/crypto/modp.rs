//! MODP groups over crypto-bigint's constant-time Montgomery arithmetic, with short exponents.
//!
//! Invariant: no exponentiation's time depends on an exponent's value, only on the length chosen for the
//! group. A peer's value is checked by RFC 6989 sections 2.1 and 2.2 before it is used.

use std::sync::OnceLock;

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd, Resize};
use zeroize::{Zeroize, Zeroizing};

use super::CryptoError;
use super::modp_primes as primes;
use crate::{Random, SecretBytes};

/// One of the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    Modp1024,
    Modp1536,
    Modp2048,
    Modp3072,
    Modp4096,
    Modp6144,
    Modp8192,
    Modp1024s160,
    Modp2048s224,
    Modp2048s256,
}

struct Parameters {
    monty: BoxedMontyParams,
    generator: BoxedMontyForm,
    /// p - 1.
    minus_one: BoxedUint,
    /// Order of the subgroup, where it is small.
    order: Option<BoxedUint>,
    bits: u32,
}

/// A private exponent, wiped on drop.
pub(super) struct Exponent(BoxedUint);

impl Drop for Exponent {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Group {
    /// Octets of a public value and of the shared secret (RFC 7296 section 3.4).
    pub(super) fn len(self) -> usize {
        self.bits() as usize / 8
    }

    /// Octets of a private exponent.
    pub(super) fn exponent_len(self) -> usize {
        self.exponent_bits() as usize / 8
    }

    /// A fresh private exponent.
    pub(super) fn exponent(self, rng: &mut dyn Random) -> Exponent {
        let mut octets = Zeroizing::new(vec![0; self.exponent_len()]);
        rng.fill(&mut octets);
        self.exponent_from(&octets)
    }

    fn exponent_from(self, octets: &[u8]) -> Exponent {
        Exponent(BoxedUint::from_be_slice_truncated(octets, self.exponent_bits()))
    }

    /// g^x, as long as p.
    pub(super) fn public(self, exponent: &Exponent) -> Vec<u8> {
        let power = self.parameters().generator.pow_bounded_exp(&exponent.0, self.exponent_bits());
        power.retrieve().to_be_bytes().to_vec()
    }

    /// y^x for the peer's y, as long as p.
    pub(super) fn agree(self, exponent: &Exponent, peer: &[u8]) -> Result<SecretBytes, CryptoError> {
        let base = self.checked(peer)?;
        let mut power = base.pow_bounded_exp(&exponent.0, self.exponent_bits());
        let mut secret = power.retrieve();
        power.as_montgomery_mut().zeroize();
        let octets = SecretBytes::new(secret.to_be_bytes().to_vec());
        secret.zeroize();
        Ok(octets)
    }

    fn checked(self, peer: &[u8]) -> Result<BoxedMontyForm, CryptoError> {
        let parameters = self.parameters();
        if peer.len() != self.len() {
            return Err(CryptoError::InvalidPublicValue);
        }
        let value = BoxedUint::from_be_slice_truncated(peer, parameters.bits);
        // RFC 6989 section 2.1: 1 < y < p - 1.
        if value <= BoxedUint::one_with_precision(parameters.bits) || value >= parameters.minus_one {
            return Err(CryptoError::InvalidPublicValue);
        }
        let value = BoxedMontyForm::new(value, &parameters.monty);
        if let Some(order) = &parameters.order {
            // RFC 6989 section 2.2: y^q = 1, so y lies in the subgroup and leaks nothing of the exponent.
            let power = value.pow_bounded_exp(order, order.bits_precision());
            if power != BoxedMontyForm::one(&parameters.monty) {
                return Err(CryptoError::InvalidPublicValue);
            }
        }
        Ok(value)
    }

    fn bits(self) -> u32 {
        match self {
            Self::Modp1024 | Self::Modp1024s160 => 1024,
            Self::Modp1536 => 1536,
            Self::Modp2048 | Self::Modp2048s224 | Self::Modp2048s256 => 2048,
            Self::Modp3072 => 3072,
            Self::Modp4096 => 4096,
            Self::Modp6144 => 6144,
            Self::Modp8192 => 8192,
        }
    }

    /// At least the greater of the exponent sizes that RFC 3526 section 8 gives, in whole 64-bit words. With a
    /// small subgroup 64 bits more than its order, which makes the exponent's bias modulo q negligible.
    fn exponent_bits(self) -> u32 {
        match self {
            Self::Modp1024 | Self::Modp1536 => 256,
            Self::Modp2048 => 320,
            Self::Modp3072 => 448,
            Self::Modp4096 => 512,
            Self::Modp6144 => 576,
            Self::Modp8192 => 640,
            Self::Modp1024s160 => 256,
            Self::Modp2048s224 | Self::Modp2048s256 => 320,
        }
    }

    fn parameters(self) -> &'static Parameters {
        static TABLE: [OnceLock<Parameters>; 10] = [const { OnceLock::new() }; 10];
        let hex = |text: &str, bits| {
            // Constants of this crate: a test decodes every one of them.
            BoxedUint::from_be_hex(text, bits).into_option().expect("constant hexadecimal")
        };
        TABLE[self as usize].get_or_init(|| {
            let bits = self.bits();
            let (p, g, q) = match self {
                Self::Modp1024 => (primes::MODP_1024, None, None),
                Self::Modp1536 => (primes::MODP_1536, None, None),
                Self::Modp2048 => (primes::MODP_2048, None, None),
                Self::Modp3072 => (primes::MODP_3072, None, None),
                Self::Modp4096 => (primes::MODP_4096, None, None),
                Self::Modp6144 => (primes::MODP_6144, None, None),
                Self::Modp8192 => (primes::MODP_8192, None, None),
                Self::Modp1024s160 => {
                    (primes::MODP_1024_160_P, Some(primes::MODP_1024_160_G), Some(primes::MODP_1024_160_Q))
                }
                Self::Modp2048s224 => {
                    (primes::MODP_2048_224_P, Some(primes::MODP_2048_224_G), Some(primes::MODP_2048_224_Q))
                }
                Self::Modp2048s256 => {
                    (primes::MODP_2048_256_P, Some(primes::MODP_2048_256_G), Some(primes::MODP_2048_256_Q))
                }
            };
            let p = hex(p, bits);
            let minus_one = p.wrapping_sub(BoxedUint::one_with_precision(bits));
            let p = Odd::new(p).into_option().expect("an odd constant");
            let monty = BoxedMontyParams::new_vartime(p);
            let generator = g.map_or_else(|| BoxedUint::from(2_u64).resize(bits), |g| hex(g, bits));
            let generator = BoxedMontyForm::new(generator, &monty);
            let order = q.map(|q| hex(&format!("{q:0>64}"), 256));
            Parameters { monty, generator, minus_one, order, bits }
        })
    }
}

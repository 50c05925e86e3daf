//! Randomness as an argument: the shipped program passes the system's, a simulation a seeded one.

/// A source of random octets, unpredictable in production.
pub trait Random {
    /// Fills `out` wholly.
    fn fill(&mut self, out: &mut [u8]);
}

/// A random octet array from a `dyn` source.
pub fn random_array<const N: usize>(rng: &mut dyn Random) -> [u8; N] {
    let mut out = [0; N];
    rng.fill(&mut out);
    out
}

/// A random `u64`.
pub fn random_u64(rng: &mut dyn Random) -> u64 {
    u64::from_be_bytes(random_array(rng))
}

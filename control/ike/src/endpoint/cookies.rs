//! Cookies (RFC 7296 section 2.6): under load, the first request is answered with one and forgotten.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::Random;
use crate::crypto::{constant_time_eq, hmac_sha256};
use crate::random::random_array;
use crate::wire::{IkeSpi, Nonce};

/// How long a secret makes cookies; those of the one before are still accepted.
const ROTATE: Duration = Duration::from_secs(60);
/// Octets of the MAC in a cookie.
const MAC_LEN: usize = 16;

/// The secrets that make cookies.
pub(crate) struct Cookies {
    current: [u8; 32],
    previous: [u8; 32],
    version: u8,
    rotated: Option<Instant>,
}

impl Cookies {
    pub(crate) fn new(rng: &mut dyn Random) -> Self {
        Self { current: random_array(rng), previous: random_array(rng), version: 0, rotated: None }
    }

    /// A cookie for this first request.
    pub(crate) fn make(
        &mut self,
        now: Instant,
        rng: &mut dyn Random,
        remote: SocketAddr,
        spi: IkeSpi,
        nonce: &Nonce,
    ) -> Vec<u8> {
        match self.rotated {
            None => self.rotated = Some(now),
            Some(at) if now >= at + ROTATE => {
                self.previous = std::mem::replace(&mut self.current, random_array(rng));
                self.version = self.version.wrapping_add(1);
                self.rotated = Some(now);
            }
            Some(_) => {}
        }
        Self::cookie(self.version, &self.current, remote, spi, nonce)
    }

    /// Whether the cookie is one of ours for this request.
    pub(crate) fn check(&self, cookie: &[u8], remote: SocketAddr, spi: IkeSpi, nonce: &Nonce) -> bool {
        [(self.version, &self.current), (self.version.wrapping_sub(1), &self.previous)].into_iter().any(
            |(version, secret)| constant_time_eq(cookie, &Self::cookie(version, secret, remote, spi, nonce)),
        )
    }

    fn cookie(version: u8, secret: &[u8; 32], remote: SocketAddr, spi: IkeSpi, nonce: &Nonce) -> Vec<u8> {
        let address = match remote.ip() {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let port = remote.port().to_be_bytes();
        let mac = hmac_sha256(secret, &[nonce.octets(), &address, &port, &spi.0]);
        [&[version], &mac[..MAC_LEN]].concat()
    }
}

impl std::fmt::Debug for Cookies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cookies").field("version", &self.version).finish_non_exhaustive()
    }
}

//! Which manual keys were given to which life of the core.
//!
//! A key that was ever sent to a core may have been installed there; installing it again, in that
//! core or the next, would start its counter again and with AES-GCM repeat nonces. So the record
//! is written before the key is sent, kept as long as one launcher lives, and holds digests under
//! a random salt only.

use std::collections::BTreeMap;

use braid_api::{BootId, Suite};
use ring::hmac;

/// Digest of one direction's keying material under the record's salt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct KeyDigest(pub [u8; 32]);

/// The record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRecord {
    salt: [u8; 32],
    used: BTreeMap<KeyDigest, BootId>,
}

impl KeyRecord {
    /// Nothing was used yet.
    pub fn new(salt: [u8; 32]) -> Self {
        KeyRecord { salt, used: BTreeMap::new() }
    }

    /// A record of an earlier life of control.
    pub fn restore(salt: [u8; 32], used: BTreeMap<KeyDigest, BootId>) -> Self {
        KeyRecord { salt, used }
    }

    /// Random, by which digests of different runs differ.
    pub fn salt(&self) -> &[u8; 32] {
        &self.salt
    }

    /// Keys that were sent, and to which core.
    pub fn used(&self) -> &BTreeMap<KeyDigest, BootId> {
        &self.used
    }

    /// The digest of a key.
    pub fn digest(&self, suite: Suite, key: &[u8]) -> KeyDigest {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.salt));
        context.update(suite.name().as_bytes());
        context.update(&[0]);
        context.update(key);
        let tag = context.sign();
        KeyDigest(core::array::from_fn(|index| tag.as_ref()[index]))
    }

    /// Whether a key was ever sent.
    pub fn is_used(&self, digest: &KeyDigest) -> bool {
        self.used.contains_key(digest)
    }

    /// A key is about to be sent.
    pub(crate) fn mark(&mut self, digest: KeyDigest, boot: BootId) {
        self.used.insert(digest, boot);
    }

    /// The core said that nothing of the transaction is in force.
    pub(crate) fn unmark(&mut self, digest: &KeyDigest) {
        self.used.remove(digest);
    }
}

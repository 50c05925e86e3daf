//! WireGuard as people write it: keys, and configurations of wg-quick.

pub mod import;
mod key;

pub(crate) use key::BASE64_LEN;
pub use key::{BadKey, PublicKey, Secret};

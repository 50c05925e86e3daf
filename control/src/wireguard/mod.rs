//! WireGuard's keys, as people write them.

mod key;

pub(crate) use key::BASE64_LEN;
pub use key::{BadKey, PublicKey, Secret};

//! Newtypes for every id, so that none is taken for another.

use core::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id! {
    /// A tunnel. Control hands the numbers out, densely from 0: the core indexes by them.
    TunnelId(u32)
}
id! {
    /// An ECMP group. Control hands the numbers out, densely from 0.
    GroupId(u32)
}
id! {
    /// One direction of an SA, never used twice within one boot of the core.
    SaId(u64)
}
id! {
    /// Number of a transaction, ascending within one connection.
    Epoch(u64)
}
id! {
    /// How often control has adopted this boot of the core.
    ///
    /// It is part of every IKE AEAD's explicit IV, so that a stale stash repeats no nonce.
    Generation(u32)
}

/// Security parameters index (RFC 4303 section 2.1). 0 to 255 are reserved.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Spi(pub u32);

impl fmt::Debug for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Random name of one life of the core.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BootId(pub [u8; 16]);

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

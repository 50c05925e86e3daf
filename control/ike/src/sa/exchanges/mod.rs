//! The exchanges, one file each.

pub(crate) mod auth;
pub(crate) mod create_child;
pub(crate) mod followup;
pub(crate) mod informational;
pub(crate) mod init;
pub(crate) mod intermediate;
pub(crate) mod negotiate;
pub(crate) mod rekey_ike;

//! Identification payloads (RFC 7296 section 3.5).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::DecodeError;

/// An identity.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// ID_IPV4_ADDR.
    Ipv4(Ipv4Addr),
    /// ID_FQDN, as sent (comparison ignores ASCII case: [`Identity::matches`]).
    Fqdn(String),
    /// ID_RFC822_ADDR.
    Email(String),
    /// ID_IPV6_ADDR.
    Ipv6(Ipv6Addr),
    /// ID_DER_ASN1_DN: a DER `Name`.
    Dn(Vec<u8>),
    /// ID_KEY_ID.
    KeyId(Vec<u8>),
    /// Any other type, or one of the above whose content is not what its type says; never matches.
    Other {
        /// ID type.
        kind: u8,
        /// Identification data.
        data: Vec<u8>,
    },
}

/// An IDi or IDr payload. The reserved octets are kept because AUTH covers them as they were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPayload {
    /// Whose it is.
    pub identity: Identity,
    /// Zero when we send it.
    pub reserved: [u8; 3],
}

impl IdPayload {
    /// The payload as this side sends it.
    pub fn new(identity: Identity) -> Self {
        Self { identity, reserved: [0; 3] }
    }

    /// Decodes a payload body.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let Some((&[kind, r0, r1, r2], data)) = body.split_first_chunk::<4>() else {
            return Err(DecodeError::Truncated);
        };
        Ok(Self { identity: Identity::from_wire(kind, data), reserved: [r0, r1, r2] })
    }

    /// The payload's body: what MACedIDForI and MACedIDForR are computed over (RFC 7296 section 2.15).
    pub fn body(&self) -> Vec<u8> {
        let mut out = vec![self.identity.kind()];
        out.extend_from_slice(&self.reserved);
        self.identity.encode_data(&mut out);
        out
    }
}

impl Identity {
    /// From type and data on the wire.
    pub fn from_wire(kind: u8, data: &[u8]) -> Self {
        let other = || Self::Other { kind, data: data.to_vec() };
        let text =
            || std::str::from_utf8(data).ok().filter(|t| !t.is_empty() && t.is_ascii()).map(str::to_owned);
        match kind {
            ID_IPV4 => <[u8; 4]>::try_from(data).map_or_else(|_| other(), |a| Self::Ipv4(a.into())),
            ID_IPV6 => <[u8; 16]>::try_from(data).map_or_else(|_| other(), |a| Self::Ipv6(a.into())),
            ID_FQDN => text().map_or_else(other, Self::Fqdn),
            ID_EMAIL => text().map_or_else(other, Self::Email),
            ID_DN => Self::Dn(data.to_vec()),
            ID_KEY_ID => Self::KeyId(data.to_vec()),
            _ => other(),
        }
    }

    /// The ID type on the wire.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Ipv4(_) => ID_IPV4,
            Self::Fqdn(_) => ID_FQDN,
            Self::Email(_) => ID_EMAIL,
            Self::Ipv6(_) => ID_IPV6,
            Self::Dn(_) => ID_DN,
            Self::KeyId(_) => ID_KEY_ID,
            Self::Other { kind, .. } => *kind,
        }
    }

    fn encode_data(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ipv4(address) => out.extend_from_slice(&address.octets()),
            Self::Ipv6(address) => out.extend_from_slice(&address.octets()),
            Self::Fqdn(text) | Self::Email(text) => out.extend_from_slice(text.as_bytes()),
            Self::Dn(data) | Self::KeyId(data) | Self::Other { data, .. } => out.extend_from_slice(data),
        }
    }

    /// Equal for identities that match each other, by [`Identity::matches`]; for a DN, whose rules are finer, the
    /// same for all.
    pub(crate) fn index_key(&self) -> (u8, Vec<u8>) {
        let key = match self {
            Self::Fqdn(name) => name.to_ascii_lowercase().into_bytes(),
            Self::Email(address) => match address.rsplit_once('@') {
                Some((user, host)) => format!("{user}@{}", host.to_ascii_lowercase()).into_bytes(),
                None => address.clone().into_bytes(),
            },
            Self::Dn(_) => Vec::new(),
            Self::Ipv4(_) | Self::Ipv6(_) | Self::KeyId(_) | Self::Other { .. } => {
                let mut data = Vec::new();
                self.encode_data(&mut data);
                data
            }
        };
        (self.kind(), key)
    }

    /// Whether a received identity is the one configured. Names compare without regard to ASCII case
    /// (RFC 4343; RFC 5280 section 7.5 for an e-mail's domain), DNs by [`crate::auth::dn`]'s rules.
    pub fn matches(&self, received: &Self) -> bool {
        match (self, received) {
            (Self::Fqdn(a), Self::Fqdn(b)) => a.eq_ignore_ascii_case(b),
            (Self::Email(a), Self::Email(b)) => match (a.rsplit_once('@'), b.rsplit_once('@')) {
                (Some((user_a, host_a)), Some((user_b, host_b))) => {
                    user_a == user_b && host_a.eq_ignore_ascii_case(host_b)
                }
                _ => a == b,
            },
            (Self::Dn(a), Self::Dn(b)) => a == b || crate::auth::dn::equal(a, b),
            (Self::Other { .. }, _) => false,
            (a, b) => a == b,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4(address) => write!(f, "{address}"),
            Self::Ipv6(address) => write!(f, "{address}"),
            Self::Fqdn(text) | Self::Email(text) => write!(f, "{}", text.escape_debug()),
            Self::Dn(der) => f.write_str(&crate::auth::dn::to_text(der)),
            Self::KeyId(data) => {
                f.write_str("key-id ")?;
                hex(f, data)
            }
            Self::Other { kind, data } => {
                write!(f, "identity type {kind} ")?;
                hex(f, data)
            }
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn hex(f: &mut fmt::Formatter<'_>, data: &[u8]) -> fmt::Result {
    data.iter().take(64).try_for_each(|octet| write!(f, "{octet:02x}"))
}

const ID_IPV4: u8 = 1;
const ID_FQDN: u8 = 2;
const ID_EMAIL: u8 = 3;
const ID_IPV6: u8 = 5;
const ID_DN: u8 = 9;
const ID_KEY_ID: u8 = 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_matches_is_found_by_the_same_key() {
        let name = |text: &str| Identity::Fqdn(text.to_owned());
        let mail = |text: &str| Identity::Email(text.to_owned());
        let all = [
            name("a.example.com"),
            name("A.Example.COM"),
            name("b.example.com"),
            mail("a@example.com"),
            mail("a@EXAMPLE.com"),
            mail("A@example.com"),
            mail("a.example.com"),
            Identity::Ipv4([192, 0, 2, 1].into()),
            Identity::KeyId(vec![192, 0, 2, 1]),
            Identity::Dn(vec![0x30, 0]),
        ];
        let mut matching = 0;
        for a in &all {
            for b in all.iter().filter(|b| a.matches(b)) {
                assert_eq!(a.index_key(), b.index_key(), "{a} and {b}");
                matching += 1;
            }
        }
        assert_eq!(matching, all.len() + 4, "each itself, and two pairs");
        assert_ne!(all[0].index_key(), all[6].index_key(), "of another kind");
        assert_ne!(all[3].index_key(), all[5].index_key(), "the user's case counts");
    }
}

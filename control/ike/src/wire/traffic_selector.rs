//! Traffic selectors (RFC 7296 section 3.13) and the arithmetic of narrowing (section 2.9).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::payload::PayloadType;
use super::{DecodeError, MAX_SELECTORS, Reader};

/// An inclusive range of addresses of one family; start is never above end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressRange {
    /// IPv4.
    V4(Ipv4Addr, Ipv4Addr),
    /// IPv6.
    V6(Ipv6Addr, Ipv6Addr),
}

impl AddressRange {
    /// A prefix's addresses.
    pub fn from_prefix(prefix: IpNet) -> Self {
        match prefix {
            IpNet::V4(net) => Self::V4(net.network(), net.broadcast()),
            IpNet::V6(net) => Self::V6(net.network(), net.broadcast()),
        }
    }

    /// What both contain.
    pub fn intersection(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::V4(a, b), Self::V4(c, d)) => {
                let (start, end) = (a.max(c), b.min(d));
                (start <= end).then_some(Self::V4(start, end))
            }
            (Self::V6(a, b), Self::V6(c, d)) => {
                let (start, end) = (a.max(c), b.min(d));
                (start <= end).then_some(Self::V6(start, end))
            }
            (Self::V4(..), Self::V6(..)) | (Self::V6(..), Self::V4(..)) => None,
        }
    }

    /// Whether all of `other` lies within.
    pub fn contains(self, other: Self) -> bool {
        self.intersection(other) == Some(other)
    }

    /// Whether the address lies within.
    pub fn contains_address(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(start, end), IpAddr::V4(address)) => (start..=end).contains(&address),
            (Self::V6(start, end), IpAddr::V6(address)) => (start..=end).contains(&address),
            (Self::V4(..), IpAddr::V6(_)) | (Self::V6(..), IpAddr::V4(_)) => false,
        }
    }

    /// The fewest prefixes that cover exactly the range: at most 62 (IPv4) or 254 (IPv6).
    pub fn prefixes(self) -> Vec<IpNet> {
        match self {
            Self::V4(start, end) => ipnet::Ipv4Subnets::new(start, end, 0).map(IpNet::V4).collect(),
            Self::V6(start, end) => ipnet::Ipv6Subnets::new(start, end, 0).map(IpNet::V6).collect(),
        }
    }
}

/// One traffic selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrafficSelector {
    /// IP protocol, 0 for any.
    pub protocol: u8,
    /// First port (or ICMP type and code); 0 to 65535 for any, 65535 to 0 for "opaque".
    pub start_port: u16,
    /// Last port.
    pub end_port: u16,
    /// Addresses.
    pub addresses: AddressRange,
}

impl TrafficSelector {
    /// Any protocol and port within a prefix.
    pub fn from_prefix(prefix: IpNet) -> Self {
        Self { protocol: 0, start_port: 0, end_port: u16::MAX, addresses: AddressRange::from_prefix(prefix) }
    }

    /// Whether it restricts neither protocol nor ports.
    pub fn is_addresses_only(&self) -> bool {
        self.protocol == 0 && self.start_port == 0 && self.end_port == u16::MAX
    }

    /// What both select.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let protocol = match (self.protocol, other.protocol) {
            (0, protocol) | (protocol, 0) => protocol,
            (a, b) if a == b => a,
            _ => return None,
        };
        let addresses = self.addresses.intersection(other.addresses)?;
        let (start_port, end_port) = match (self.is_opaque(), other.is_opaque()) {
            (true, true) => (u16::MAX, 0),
            // RFC 7296 section 3.13.1: OPAQUE lies within ANY, and within nothing else.
            (true, false) if other.is_any_port() => (u16::MAX, 0),
            (false, true) if self.is_any_port() => (u16::MAX, 0),
            (true, false) | (false, true) => return None,
            (false, false) => (self.start_port.max(other.start_port), self.end_port.min(other.end_port)),
        };
        let opaque = (start_port, end_port) == (u16::MAX, 0);
        (opaque || start_port <= end_port).then_some(Self { protocol, start_port, end_port, addresses })
    }

    /// Whether it selects all that `other` does.
    pub fn contains(&self, other: &Self) -> bool {
        self.intersection(other) == Some(*other)
    }

    /// RFC 7296 section 2.9: every intersection of what we allow with what the peer proposes, in the order
    /// of the proposal, without those that another one contains. Empty means TS_UNACCEPTABLE.
    pub fn narrow(allowed: &[Self], proposed: &[Self]) -> Vec<Self> {
        let mut narrowed: Vec<Self> = Vec::new();
        for proposed in proposed.iter().take(MAX_SELECTORS) {
            for allowed in allowed {
                let Some(both) = proposed.intersection(allowed) else { continue };
                if narrowed.iter().any(|have| have.contains(&both)) {
                    continue;
                }
                narrowed.retain(|have| !both.contains(have));
                if narrowed.len() < MAX_SELECTORS {
                    narrowed.push(both);
                }
            }
        }
        narrowed
    }

    fn is_opaque(&self) -> bool {
        self.start_port == u16::MAX && self.end_port == 0
    }

    fn is_any_port(&self) -> bool {
        self.start_port == 0 && self.end_port == u16::MAX
    }

    pub(crate) fn decode_all(body: &[u8], kind: PayloadType) -> Result<Vec<Self>, DecodeError> {
        let mut reader = Reader::new(body, kind);
        let [count, ..] = reader.array::<4>()?;
        // RFC 7296 section 3.13: one selector at least.
        if count == 0 {
            return Err(DecodeError::BadValue(kind));
        }
        if usize::from(count) > MAX_SELECTORS {
            return Err(DecodeError::TooMany(kind));
        }
        let mut selectors = Vec::with_capacity(count.into());
        for _ in 0..count {
            let (ts_type, protocol, length) = (reader.u8()?, reader.u8()?, reader.u16()?);
            let body =
                reader.take(usize::from(length).checked_sub(4).ok_or(DecodeError::BadLength(kind))?)?;
            let mut body = Reader::new(body, kind);
            let (start_port, end_port) = (body.u16()?, body.u16()?);
            let addresses = match ts_type {
                TS_IPV4 => AddressRange::V4(body.array::<4>()?.into(), body.array::<4>()?.into()),
                TS_IPV6 => AddressRange::V6(body.array::<16>()?.into(), body.array::<16>()?.into()),
                // RFC 7296 section 2.9: selectors of an unknown type are left out when narrowing.
                _ => continue,
            };
            let selector = Self { protocol, start_port, end_port, addresses };
            let ordered = match addresses {
                AddressRange::V4(start, end) => start <= end,
                AddressRange::V6(start, end) => start <= end,
            };
            if !body.is_empty() {
                return Err(DecodeError::BadLength(kind));
            }
            if !ordered || (start_port > end_port && !selector.is_opaque()) {
                return Err(DecodeError::BadValue(kind));
            }
            selectors.push(selector);
        }
        if !reader.is_empty() {
            return Err(DecodeError::BadLength(kind));
        }
        Ok(selectors)
    }

    pub(crate) fn encode_all(selectors: &[Self], out: &mut Vec<u8>) {
        out.extend_from_slice(&[selectors.len() as u8, 0, 0, 0]);
        for selector in selectors {
            let (ts_type, length, addresses) = match selector.addresses {
                AddressRange::V4(start, end) => (TS_IPV4, 16, [start.octets(), end.octets()].concat()),
                AddressRange::V6(start, end) => (TS_IPV6, 40, [start.octets(), end.octets()].concat()),
            };
            out.extend_from_slice(&[ts_type, selector.protocol, 0, length]);
            out.extend_from_slice(&selector.start_port.to_be_bytes());
            out.extend_from_slice(&selector.end_port.to_be_bytes());
            out.extend_from_slice(&addresses);
        }
    }
}

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefixes = self.addresses.prefixes();
        match (prefixes.as_slice(), self.addresses) {
            ([prefix], _) => write!(f, "{prefix}")?,
            (_, AddressRange::V4(start, end)) => write!(f, "{start}-{end}")?,
            (_, AddressRange::V6(start, end)) => write!(f, "{start}-{end}")?,
        }
        if !self.is_addresses_only() {
            write!(f, "[{}/{}-{}]", self.protocol, self.start_port, self.end_port)?;
        }
        Ok(())
    }
}

const TS_IPV4: u8 = 7;
const TS_IPV6: u8 = 8;

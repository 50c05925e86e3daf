//! A million prefixes and ten thousand tunnels, beside few of each.

use super::{Gateway, Protocol, Side, group, route};
use braid_api::Suite;
use std::net::Ipv4Addr;

/// Flows of the traffic that passes, each to a prefix of its own.
pub const FLOWS: u32 = 256;
/// Configured.
pub const PREFIXES: u32 = 1_000_000;
/// Configured.
pub const TUNNELS: u32 = 10_000;
/// Between two active prefixes.
pub const STRIDE: u32 = PREFIXES / FLOWS;

/// By the golden ratio: neighbours in number are far apart, and all are evenly spread.
const SPREAD: u32 = 0x9E37_79B1;
/// Of 128.0.0.0/2, in which they lie, a quarter is taken.
const FIRST: u32 = 0x8000_0000;
const SLOTS: u32 = 1 << 22;
const ESP: Protocol = Protocol::Esp(Suite::Aes128Gcm16);

/// Address `host` of prefix number `index`, one of a million /24 with gaps between them.
#[must_use]
pub fn address(index: u32, host: u32) -> Ipv4Addr {
    // An odd factor: no slot twice.
    let slot = index.wrapping_mul(SPREAD) % SLOTS;
    Ipv4Addr::from_bits(FIRST + (slot << 8) + host)
}

/// Every prefix leads into one of the tunnels; those at a multiple of the stride all into the first.
#[must_use]
pub fn large() -> Gateway {
    let groups = (0..TUNNELS).map(|id| group(id, id..id + 1));
    let to = |index: u32| if index.is_multiple_of(STRIDE) { 0 } else { index % TUNNELS };
    let routes = (0..PREFIXES).map(move |index| route(address(index, 0), 24, to(index)));
    Gateway::new(Side::Ours, ESP, TUNNELS, groups.chain(routes))
}

/// One prefix, which covers all of those, and one tunnel.
#[must_use]
pub fn small() -> Gateway {
    let ops = [group(0, 0..1), route(Ipv4Addr::from_bits(FIRST), 2, 0)];
    Gateway::new(Side::Ours, ESP, 1, ops.into_iter())
}

/// A prefix and a tunnel for each of the flows, with `offset` as in the large one.
#[must_use]
pub fn few(offset: u32) -> Gateway {
    let ops =
        (0..FLOWS).flat_map(|id| [group(id, id..id + 1), route(address(id * STRIDE + offset, 0), 24, id)]);
    Gateway::new(Side::Ours, ESP, FLOWS, ops)
}

//! The core's tables with very many entries, in memory: what a prefix takes, what a transaction costs, and what
//! traffic notices.

use super::Target;
use crate::memory::large::{FLOWS, PREFIXES, STRIDE, TUNNELS, address, few, large, small};
use crate::memory::{BATCH, Gateway, Protocol, Side, Source, group, route};
use braid_api::{GroupId, Member, Op, Suite, Target as To};
use braid_netns::{Error, Result};
use ipnet::{IpNet, Ipv6Net};
use serde::Serialize;
use std::fs;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

const MOST_BYTES: f64 = 256.0;
/// What the reads of a deep trie add that no cache holds. A table that was copied or walked would add milliseconds.
const MOST_MORE_US: f64 = 25.0;
const MOST_SLOWER: f64 = 10.0;
const TRANSACTIONS: u32 = 20_000;
/// Each of which apportions 4096 buckets.
const GROUPS: u32 = 2000;
const PACKETS_FOR: Duration = Duration::from_secs(3);
/// Operations of one transaction while a table is filled.
const OPS: usize = 50_000;

/// What they cost.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// Prefixes.
    pub prefixes: u32,
    /// Tunnels that traffic could take.
    pub tunnels: u32,
    /// By which the process grew for each prefix while it was put, both copies and all else that keeps it: IPv4, IPv6.
    pub bytes_per_prefix: [Target; 2],
    /// Transactions of one operation.
    pub transactions: Vec<Cost>,
    /// The whole outward way of packets of 256 flows, each to a prefix of its own.
    pub packets: Vec<Way>,
    /// Of a prefix that was looked up shortly before, and of one that was not, nanoseconds.
    pub look_up_ns: [f64; 2],
}

/// Of a transaction of one operation, the median.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    /// What it does.
    pub operation: &'static str,
    /// With one prefix in the table, and with all, microseconds.
    pub us: [f64; 2],
    /// The difference, microseconds.
    pub more_us: Target,
}

/// Of a packet, the median over batches in turn.
#[derive(Debug, Clone, Serialize)]
pub struct Way {
    /// Tunnels that the flows take, and that are configured where there are few.
    pub active_tunnels: u32,
    /// Of the packet, bytes.
    pub length: usize,
    /// With as few prefixes and tunnels as that takes, and with all, nanoseconds.
    pub ns: [f64; 2],
    /// By how much fewer pass in a time with all, percent.
    pub less_percent: Target,
}

/// Measures it.
///
/// # Errors
/// When the kernel does not say how large the process is.
pub fn table() -> Result<Table> {
    let (v4, v4_bytes) = filled(|index| IpNet::new_assert(address(index, 0).into(), 24))?;
    let (v6, v6_bytes) = filled(|index| IpNet::V6(network6(index)))?;
    drop(v6);
    let transactions = transactions(v4);
    let mut large = large();
    Ok(Table {
        prefixes: PREFIXES,
        tunnels: TUNNELS,
        bytes_per_prefix: [v4_bytes, v6_bytes].map(|bytes| Target::most(bytes, MOST_BYTES)),
        transactions,
        // All to the first tunnel; then each to one of its own.
        packets: [(1, 0, 64), (1, 0, 1400), (FLOWS, 1, 64), (FLOWS, 1, 1400)]
            .map(|(active_tunnels, offset, length)| way(&mut large, active_tunnels, offset, length))
            .into(),
        look_up_ns: look_ups(&mut large),
    })
}

/// One of a million /48, with nothing near any of them in 2000::/3.
fn network6(index: u32) -> Ipv6Net {
    let slot = u64::from(index).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 19;
    Ipv6Net::new_assert(Ipv6Addr::from_bits((1 << 125) | (u128::from(slot) << 80)), 48)
}

/// A group of two tunnels.
fn gateway() -> Gateway {
    Gateway::new(Side::Ours, Protocol::Esp(Suite::Aes128Gcm16), 2, std::iter::once(group(0, 0..2)))
}

/// With a million prefixes, and by how many bytes the process grew for each.
fn filled(prefix: impl Fn(u32) -> IpNet) -> Result<(Gateway, f64)> {
    let mut gateway = gateway();
    let before = resident_bytes()?;
    let mut ops = (0..PREFIXES).map(|index| put(prefix(index)));
    loop {
        let some: Vec<Op> = ops.by_ref().take(OPS).collect();
        if some.is_empty() {
            break;
        }
        gateway.apply(some);
    }
    Ok((gateway, (resident_bytes()? - before) / f64::from(PREFIXES)))
}

fn put(prefix: IpNet) -> Op {
    Op::PutRoute { prefix, target: To::Group(GroupId(0)) }
}

fn resident_bytes() -> Result<f64> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(Error::io("cannot read /proc/self/status"))?;
    Ok(super::usage::resident(&status) * 1024.0)
}

/// An operation by its number.
type Make<'a> = &'a dyn Fn(u32) -> Op;

/// The same operations on a table of one prefix and on the large one, in turn.
fn transactions(mut large: Gateway) -> Vec<Cost> {
    let mut small = gateway();
    small.apply(vec![route(Ipv4Addr::new(128, 0, 0, 0), 2, 0)]);
    let host = |number: u32| IpNet::from(IpAddr::V4(address(number % PREFIXES, 7)));
    let remove = |number| Op::RemoveRoute { prefix: host(number) };
    // The group that every prefix uses.
    let weigh = |number: u32| {
        let member = |tunnel: u32| Member {
            tunnel: braid_api::TunnelId(tunnel),
            weight: 1 + ((number + tunnel) % 2) as u16,
            priority: 0,
        };
        Op::PutGroup(braid_api::Group { id: GroupId(0), members: (0..2).map(member).collect() })
    };
    let operations: [(&str, u32, Make<'_>); 3] = [
        ("a route is put", TRANSACTIONS, &|number| put(host(number))),
        ("a route is removed", TRANSACTIONS, &remove),
        ("the group of all routes is weighed anew", GROUPS, &weigh),
    ];
    let cost = |(operation, count, op): (&'static str, u32, Make<'_>)| {
        let mut times = [Vec::new(), Vec::new()];
        for number in 0..count {
            for (gateway, times) in [&mut small, &mut large].into_iter().zip(&mut times) {
                let ops = vec![op(number)];
                let begin = Instant::now();
                gateway.apply(ops);
                times.push(begin.elapsed());
            }
        }
        let us = times.map(|times| median_ns(times) / 1e3);
        Cost { operation, us, more_us: Target::most(us[1] - us[0], MOST_MORE_US) }
    };
    operations.map(cost).into()
}

fn way(large: &mut Gateway, active_tunnels: u32, offset: u32, length: usize) -> Way {
    let mut small = if active_tunnels == 1 { small() } else { few(offset) };
    let destinations = || (0..FLOWS).map(|flow| address(flow * STRIDE + offset, 1));
    let mut sources = [Source::new(length, destinations()), Source::new(length, destinations())];
    let mut times = [Vec::new(), Vec::new()];
    let begin = Instant::now();
    while begin.elapsed() < PACKETS_FOR {
        for ((gateway, source), times) in
            [&mut small, &mut *large].into_iter().zip(&mut sources).zip(&mut times)
        {
            source.refill();
            let begin = Instant::now();
            gateway.outward(source, |run, buffer| run.pieces(buffer).for_each(consume));
            times.push(begin.elapsed());
        }
    }
    small.assert_no_drops();
    large.assert_no_drops();
    let ns = times.map(|times| median_ns(times) / BATCH as f64);
    Way { active_tunnels, length, ns, less_percent: Target::most((1.0 - ns[0] / ns[1]) * 100.0, MOST_SLOWER) }
}

/// Warm, cold.
fn look_ups(gateway: &mut Gateway) -> [f64; 2] {
    let tables = gateway.reader.enter();
    let warm = |n: u32| address(n % FLOWS * STRIDE, 1);
    let cold = |n: u32| address(n, 1);
    let time = |destination: &dyn Fn(u32) -> Ipv4Addr| {
        let all: Vec<IpAddr> = (0..PREFIXES).map(|n| destination(n).into()).collect();
        let begin = Instant::now();
        for destination in &all {
            black_box(tables.route(*destination));
        }
        begin.elapsed().as_secs_f64() * 1e9 / f64::from(PREFIXES)
    };
    [time(&warm), time(&cold)]
}

/// Where a sealed run would go to the socket.
fn consume(piece: &[u8]) {
    black_box(piece);
}

fn median_ns(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |median| median.as_secs_f64() * 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_as_many_as_are_counted() {
        let spread: std::collections::BTreeSet<Ipv4Addr> =
            (0..PREFIXES).map(|index| address(index, 0)).collect();
        let networks: std::collections::BTreeSet<Ipv6Net> = (0..PREFIXES).map(network6).collect();
        assert_eq!([spread.len(), networks.len()], [PREFIXES as usize; 2]);
    }
}

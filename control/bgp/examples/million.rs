//! How long a full table takes: `cargo run --release -p braid-bgp --example million [ROUTES]`.
//!
//! One neighbor sends routes in UPDATEs of a real table's shape (some twenty routes share their attributes),
//! another the same with longer paths; they are read, chosen, lost and withdrawn.

#![allow(clippy::disallowed_methods)]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use braid_bgp::{
    Attributes, ConnectionId, Effect, Event, Neighbor, NeighborConfig, Outgoing, Update,
    rib::{ImportSettings, NeighborId, Resolver, Rib, decision::DecisionSettings},
};
use ipnet::{IpNet, Ipv4Net};

const SHARED: u32 = 20;
const A: NeighborId = NeighborId(1);
const B: NeighborId = NeighborId(2);

struct Everything;

impl Resolver for Everything {
    fn cost(&self, _: NeighborId, _: &Attributes) -> Option<u32> {
        Some(0)
    }
}

fn prefix(n: u32) -> IpNet {
    // Spread over the address space, all different.
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(n.reverse_bits()), 25).trunc())
}

fn routes(count: u32, extra: &[u32]) -> Outgoing {
    let group = |group: u32| {
        let as_path = [&[65001][..], extra, &[3356 + group % 50, 1000 + group % 70_000]].concat();
        let attributes = Attributes {
            as_path,
            communities: vec![(65001 << 16) | (group % 400), (3356 << 16) | 5],
            ..Attributes::originated([169, 254, 10, 1].into())
        };
        let prefixes = (group * SHARED..count.min((group + 1) * SHARED)).map(prefix).collect();
        (Arc::new(attributes), prefixes)
    };
    Outgoing { withdrawn: Vec::new(), announced: (0..count.div_ceil(SHARED)).map(group).collect() }
}

/// Passes octets between two ends until both are silent; yields what the second has received.
fn exchange(now: Instant, ends: &mut [Neighbor; 2], ids: [ConnectionId; 2], mut take: impl FnMut(Update)) {
    let mut moved = true;
    while std::mem::take(&mut moved) {
        for from in 0..2 {
            while let Some(effect) = ends[from].poll_effect() {
                moved = true;
                match effect {
                    Effect::Transmit(_, octets) => ends[1 - from].handle_bytes(now, ids[1 - from], &octets),
                    Effect::Event(Event::Update(update)) => take(update),
                    Effect::Event(_) | Effect::Connect(_) | Effect::Close(_) => {}
                }
                while let (0, Some(effect)) = (from, ends[1].poll_effect()) {
                    match effect {
                        Effect::Event(Event::Update(update)) => take(update),
                        Effect::Transmit(_, octets) => ends[0].handle_bytes(now, ids[0], &octets),
                        Effect::Event(_) | Effect::Connect(_) | Effect::Close(_) => {}
                    }
                }
            }
        }
    }
}

/// Resident memory in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096 / (1 << 20)
}

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let out = act();
    let took: Duration = begin.elapsed();
    println!("{what:44} {:8.0} ms {:6} MiB resident", took.as_secs_f64() * 1000.0, resident());
    out
}

fn take_all(rib: &mut Rib, received: &mut Vec<Update>) {
    for update in received.drain(..) {
        assert_eq!(rib.update(A, &update), None);
    }
}

fn main() {
    let count: u32 = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let now = Instant::now();
    let config = |local, remote, last| NeighborConfig {
        passive: last == 2,
        ..NeighborConfig::new(local, remote, Ipv4Addr::new(10, 0, 0, last))
    };
    let mut ends = [Neighbor::new(config(65001, 65000, 1), 1), Neighbor::new(config(65000, 65001, 2), 2)];
    ends.iter_mut().for_each(|end| end.start(now));
    let Some(Effect::Connect(first)) = ends[0].poll_effect() else { return };
    let Ok(second) = ends[1].handle_accepted(now) else { return };
    ends[0].handle_connected(now, first);
    let ids = [first, second];
    exchange(now, &mut ends, ids, |_| {});

    let mut rib = Rib::new(65000, [10, 0, 0, 2].into(), DecisionSettings::default());
    for (neighbor, last) in [(A, 1), (B, 3)] {
        rib.put_neighbor(neighbor, ImportSettings::external());
        rib.established(neighbor, [10, 0, 0, last].into(), IpAddr::from([169, 254, 10, last]));
    }
    let outgoing = routes(count, &[]);
    timed("write messages", || ends[0].send(&outgoing));
    drop(outgoing);
    let mut received = Vec::new();
    timed("read messages", || exchange(now, &mut ends, ids, |update| received.push(update)));
    timed("take routes", || take_all(&mut rib, &mut received));
    let changes = timed("choose", || rib.decide(&Everything, usize::MAX).len());
    println!("{} prefixes, {changes} changes", rib.len());

    ends[0].send(&routes(count, &[7]));
    let update = |rib: &mut Rib, neighbor, ends: &mut _| {
        exchange(now, ends, ids, |update| assert_eq!(rib.update(neighbor, &update), None));
    };
    timed("read and take as many from another", || update(&mut rib, B, &mut ends));
    let changes = timed("choose", || rib.decide(&Everything, usize::MAX).len());
    println!("{changes} changes");
    timed("the first neighbor goes", || rib.down(A, &[]));
    let changes = timed("choose", || rib.decide(&Everything, usize::MAX).len());
    println!("{changes} changes");
    ends[0].send(&Outgoing { withdrawn: (0..count).map(prefix).collect(), announced: Vec::new() });
    timed("read and take the other's withdrawals", || update(&mut rib, B, &mut ends));
    let changes = timed("choose", || rib.decide(&Everything, usize::MAX).len());
    println!("{changes} changes, {} prefixes left", rib.len());
}

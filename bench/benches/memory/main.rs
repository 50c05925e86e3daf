//! The way of a packet in memory, without devices: nanoseconds a packet, next to the bare AEAD call.
//!
//! Two works that are to be compared take turns, batch by batch, so that whatever slows the machine slows
//! both. A batch is 64 packets of 256 flows; one criterion iteration is one packet. What the device would
//! have read stands in the buffer before the time starts; one reading of the clock per batch is part of
//! outward, as in the worker.
//! At the end stand the medians over batches, with their difference.

mod bare;

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use braid_api::Suite;
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};

use bare::Bare;
use braid_bench::memory::large::{FLOWS, PREFIXES, STRIDE, address, large, small};
use braid_bench::memory::{BATCH, Gateway, Pool, Protocol, Side, Source, group, route};

/// A batch of work: what it needs is made by the first and not timed, the second is.
struct Work<'a> {
    prepare: Box<dyn FnMut() + 'a>,
    run: Box<dyn FnMut() + 'a>,
}

impl<'a> Work<'a> {
    fn new(run: impl FnMut() + 'a) -> Self {
        Work { prepare: Box::new(|| ()), run: Box::new(run) }
    }

    fn time(&mut self) -> Duration {
        (self.prepare)();
        let start = Instant::now();
        (self.run)();
        start.elapsed()
    }
}

/// Times two works in turn, and reports each; a line for the summary.
fn compare(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    works: [(&str, Work<'_>); 2],
) -> Option<String> {
    let [(first_name, mut first), (second_name, mut second)] = works;
    let mut batches: Vec<(u32, u32)> = Vec::new();
    for reported in 0..2 {
        let label = [first_name, second_name][reported];
        group.bench_function(format!("{name}/{label}"), |bencher| {
            bencher.iter_custom(|iterations| {
                let count = iterations.div_ceil(BATCH as u64);
                let mut total = Duration::ZERO;
                for _ in 0..count {
                    let times = [first.time(), second.time()];
                    total += times[reported];
                    batches.push((times[0].as_nanos() as u32, times[1].as_nanos() as u32));
                }
                total.mul_f64(iterations as f64 / (count * BATCH as u64) as f64)
            });
        });
    }
    let of = |value: fn(&(u32, u32)) -> i64| {
        let mut all: Vec<i64> = batches.iter().map(value).collect();
        all.sort_unstable();
        all.get(all.len() / 2).map(|median| *median as f64 / BATCH as f64)
    };
    let first = of(|pair| i64::from(pair.0))?;
    let second = of(|pair| i64::from(pair.1))?;
    let difference = of(|pair| i64::from(pair.0) - i64::from(pair.1))?;
    Some(format!(
        "{name:<34} {first_name} {first:>7.1}  {second_name} {second:>7.1}  difference {difference:>6.1}"
    ))
}

/// Where a sealed run would go to the socket.
fn consume(run: &[u8]) {
    black_box(run);
}

fn two_tunnels(side: Side, protocol: Protocol) -> Gateway {
    let net = if side == Side::Ours { Ipv4Addr::new(16, 0, 0, 0) } else { Ipv4Addr::new(10, 1, 0, 0) };
    Gateway::new(side, protocol, 2, [group(0, 0..2), route(net, 8, 0)].into_iter())
}

fn flows(len: usize) -> Source {
    Source::new(len, (0..FLOWS).map(|flow| Ipv4Addr::from_bits(0x1000_0001 + flow)))
}

fn against_bare(criterion: &mut Criterion, summary: &mut Vec<String>) {
    let mut group = criterion.benchmark_group("memory");
    group.throughput(Throughput::Elements(1));
    let aes = [64, 512, 1400, 9000].map(|len| (Suite::Aes128Gcm16, len));
    let others = [(Suite::Aes256Gcm16, 1400), (Suite::ChaCha20Poly1305, 1400)];
    let esp = aes.into_iter().chain(others).map(|(suite, len)| (Protocol::Esp(suite), suite, len));
    let wireguard = [64, 1400, 9000].map(|len| (Protocol::WireGuard, Suite::ChaCha20Poly1305, len));
    for (protocol, suite, len) in esp.chain(wireguard) {
        let (mut ours, source) = (two_tunnels(Side::Ours, protocol), flows(len));
        let mut peer = two_tunnels(Side::Peer, protocol);
        ours.meet(&mut peer);
        let name = match protocol {
            Protocol::Esp(suite) => format!("{suite}/{len}"),
            Protocol::WireGuard => format!("wireguard/{len}"),
        };
        let mut bare = Bare::new(suite, len);
        let source = std::cell::RefCell::new(source);
        let outward = Work {
            prepare: Box::new(|| source.borrow_mut().refill()),
            run: Box::new(|| {
                ours.outward(&mut source.borrow_mut(), |run, buffer| run.pieces(buffer).for_each(consume))
            }),
        };
        let works = [("outward", outward), ("bare", Work::new(|| bare.seal()))];
        summary.extend(compare(&mut group, &format!("seal/{name}"), works));
        ours.assert_no_drops();

        let mut source = source.into_inner();
        let pool = std::cell::RefCell::new(Pool::new(protocol));
        let bare = std::cell::RefCell::new(Bare::new(suite, len));
        let inward = Work {
            prepare: Box::new(|| pool.borrow_mut().refill(&mut ours, &mut source)),
            run: Box::new(|| assert_eq!(peer.inward(&mut pool.borrow_mut()), BATCH)),
        };
        let open = Work {
            prepare: Box::new(|| bare.borrow_mut().refill()),
            run: Box::new(|| bare.borrow_mut().open()),
        };
        let works = [("inward", inward), ("bare", open)];
        summary.extend(compare(&mut group, &format!("open/{name}"), works));
        peer.assert_no_drops();
    }
    group.finish();
}

fn at_scale(criterion: &mut Criterion, summary: &mut Vec<String>) {
    let large = std::cell::RefCell::new(large());
    let mut group = criterion.benchmark_group("scale");
    group.throughput(Throughput::Elements(1));
    for (name, offset) in [("into one tunnel", 0), ("into 256 tunnels", 1)] {
        for len in [64, 1400] {
            let mut small = small();
            let destinations = || (0..FLOWS).map(|flow| address(flow * STRIDE + offset, 1));
            let sources = [(); 2].map(|()| std::cell::RefCell::new(Source::new(len, destinations())));
            let [for_large, for_small] = &sources;
            let big = Work {
                prepare: Box::new(|| for_large.borrow_mut().refill()),
                run: Box::new(|| {
                    large.borrow_mut().outward(&mut for_large.borrow_mut(), |run, buffer| {
                        run.pieces(buffer).for_each(consume)
                    });
                }),
            };
            let little = Work {
                prepare: Box::new(|| for_small.borrow_mut().refill()),
                run: Box::new(|| {
                    small.outward(&mut for_small.borrow_mut(), |run, buffer| {
                        run.pieces(buffer).for_each(consume)
                    })
                }),
            };
            let works = [("1M prefixes", big), ("1 prefix", little)];
            summary.extend(compare(&mut group, &format!("{name}/{len}"), works));
            small.assert_no_drops();
        }
    }
    large.borrow().assert_no_drops();
    look_ups(&mut group, &mut large.borrow_mut());
    group.finish();
}

fn look_ups(group: &mut BenchmarkGroup<'_, WallTime>, gateway: &mut Gateway) {
    let tables = gateway.reader.enter();
    let cold: Vec<IpAddr> = (0..PREFIXES).map(|n| address(n, 1).into()).collect();
    let warm: Vec<IpAddr> = (0..FLOWS).map(|n| address(n * STRIDE, 1).into()).collect();
    for (name, destinations) in [("look-up warm", warm), ("look-up cold", cold)] {
        let mut next = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                next = if next + 1 == destinations.len() { 0 } else { next + 1 };
                black_box(tables.route(destinations[next])).expect("a route")
            });
        });
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut summary = Vec::new();
    against_bare(&mut criterion, &mut summary);
    at_scale(&mut criterion, &mut summary);
    criterion.final_summary();
    println!("\nNanoseconds a packet, medians over batches of {BATCH}, both works in turn:");
    for line in summary {
        println!("{line}");
    }
}

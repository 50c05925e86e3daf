//! Two neighbors joined by simulated TCP: ordered, segmented anyhow, delayed; the clock is virtual.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use braid_bgp::{Cause, ConnectionId, Effect, Event, Neighbor, NeighborConfig, SessionState};

/// After which an attempt to connect into the void fails.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound.max(1)
    }
}

enum Happening {
    Connect,
    Connected,
    Bytes(Vec<u8>),
    Closed,
}

type Socket = (usize, ConnectionId);

pub(crate) struct Net {
    pub(crate) now: Instant,
    start: Instant,
    pub(crate) ends: [Neighbor; 2],
    /// The other end of each socket.
    sockets: BTreeMap<Socket, Socket>,
    queue: BTreeMap<(Instant, u64), (Socket, Happening)>,
    /// When the last octets for a socket arrive: they keep their order.
    last: BTreeMap<Socket, Instant>,
    sequence: u64,
    random: Seeded,
    pub(crate) delay_millis: u64,
    /// Nothing arrives any more, and nobody is told.
    pub(crate) cut: bool,
    pub(crate) events: Vec<(Duration, usize, Event)>,
}

impl Net {
    pub(crate) fn new(seed: u64, configs: [NeighborConfig; 2]) -> Self {
        let now = crate::origin();
        let [a, b] = configs;
        Net {
            now,
            start: now,
            ends: [Neighbor::new(a, seed), Neighbor::new(b, seed + 1000)],
            sockets: BTreeMap::new(),
            queue: BTreeMap::new(),
            last: BTreeMap::new(),
            sequence: 0,
            random: Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            delay_millis: 20,
            cut: false,
            events: Vec::new(),
        }
    }

    /// Both started, and run until they are established.
    pub(crate) fn established(seed: u64, configs: [NeighborConfig; 2]) -> Self {
        let mut net = Net::new(seed, configs);
        net.start(0);
        net.start(1);
        net.run(Duration::from_secs(60));
        assert!(net.both_established(), "seed {seed}: {:?}", net.events);
        net.events.clear();
        net
    }

    pub(crate) fn act<T>(&mut self, end: usize, act: impl FnOnce(&mut Neighbor, Instant) -> T) -> T {
        let out = act(&mut self.ends[end], self.now);
        self.drain(end);
        out
    }

    pub(crate) fn start(&mut self, end: usize) {
        self.act(end, |neighbor, now| neighbor.start(now));
    }

    pub(crate) fn both_established(&self) -> bool {
        self.ends.iter().all(|end| end.state() == SessionState::Established)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub(crate) fn events_of(&self, end: usize) -> Vec<&Event> {
        self.events.iter().filter(|(_, of, _)| *of == end).map(|(_, _, event)| event).collect()
    }

    /// Why the end's session ended, and when.
    pub(crate) fn downs(&self, end: usize) -> Vec<(Duration, &Cause)> {
        let downs = self.events.iter().filter(|(_, of, _)| *of == end);
        downs
            .filter_map(|(at, _, event)| match event {
                Event::Down { cause, .. } => Some((*at, cause)),
                _ => None,
            })
            .collect()
    }

    /// How many TCP connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.sockets.len() / 2
    }

    /// Every connection breaks, and both ends notice.
    pub(crate) fn reset(&mut self) {
        let sockets = std::mem::take(&mut self.sockets);
        self.queue.retain(|_, (_, happening)| matches!(happening, Happening::Connect));
        for (end, id) in sockets.into_keys() {
            self.act(end, |neighbor, now| neighbor.handle_closed(now, id));
        }
    }

    /// The end's process dies and comes back; the other is told only if `noticed`.
    pub(crate) fn replace(&mut self, end: usize, neighbor: Neighbor, noticed: bool) {
        self.ends[end] = neighbor;
        let gone: Vec<_> =
            self.sockets.iter().filter(|((of, _), _)| *of == end).map(|(a, b)| (*a, *b)).collect();
        for (socket, other) in gone {
            self.sockets.remove(&socket);
            self.sockets.remove(&other);
            self.queue.retain(|_, (of, _)| *of != socket && *of != other);
            if noticed {
                self.act(other.0, |neighbor, now| neighbor.handle_closed(now, other.1));
            }
        }
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        let mut still = 0;
        loop {
            let arrival = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timeout = (0..2).filter_map(|end| Some((self.ends[end].poll_timeout()?, end))).min();
            let next = arrival.into_iter().chain(timeout.map(|(at, _)| at)).min();
            let Some(at) = next.filter(|at| *at <= until) else { break };
            still = if at > self.now { 0 } else { still + 1 };
            assert!(still < 10_000, "time stands still at {:?}", self.elapsed());
            self.now = self.now.max(at);
            if arrival.is_some_and(|arrival| arrival <= self.now) {
                let (_, (socket, happening)) = self.queue.pop_first().unwrap();
                self.happen(socket, happening);
            } else if let Some((_, end)) = timeout {
                self.act(end, |neighbor, now| neighbor.handle_timeout(now));
            }
        }
        self.now = until;
    }

    fn happen(&mut self, (end, id): Socket, happening: Happening) {
        match happening {
            Happening::Connect => {
                let other = 1 - end;
                match self.ends[other].handle_accepted(self.now) {
                    Ok(accepted) => {
                        self.sockets.insert((end, id), (other, accepted));
                        self.sockets.insert((other, accepted), (end, id));
                        self.later((end, id), Happening::Connected);
                        self.drain(other);
                    }
                    Err(_) => self.later((end, id), Happening::Closed),
                }
            }
            Happening::Connected => self.act(end, |neighbor, now| neighbor.handle_connected(now, id)),
            Happening::Bytes(octets) => {
                self.act(end, |neighbor, now| neighbor.handle_bytes(now, id, &octets))
            }
            Happening::Closed => {
                self.sockets.remove(&(end, id));
                self.act(end, |neighbor, now| neighbor.handle_closed(now, id));
            }
        }
    }

    fn drain(&mut self, end: usize) {
        while let Some(effect) = self.ends[end].poll_effect() {
            match effect {
                Effect::Event(event) => self.events.push((self.elapsed(), end, event)),
                Effect::Connect(id) if self.cut => {
                    self.sequence += 1;
                    let at = (self.now + CONNECT_TIMEOUT, self.sequence);
                    self.queue.insert(at, ((end, id), Happening::Closed));
                }
                Effect::Connect(id) => self.later((end, id), Happening::Connect),
                Effect::Transmit(id, octets) => {
                    let Some(other) = self.sockets.get(&(end, id)).copied() else { continue };
                    let mut rest = &octets[..];
                    while !rest.is_empty() {
                        let (piece, tail) = rest.split_at(1 + self.random.below(rest.len() as u64) as usize);
                        self.later(other, Happening::Bytes(piece.to_vec()));
                        rest = tail;
                    }
                }
                Effect::Close(id) => {
                    self.queue.retain(|_, (socket, _)| *socket != (end, id));
                    if let Some(other) = self.sockets.remove(&(end, id)) {
                        self.later(other, Happening::Closed);
                    }
                }
            }
        }
    }

    fn later(&mut self, socket: Socket, happening: Happening) {
        if self.cut {
            return;
        }
        let delay = Duration::from_millis(1 + self.random.below(self.delay_millis));
        let at = (self.now + delay).max(self.last.get(&socket).copied().unwrap_or(self.now));
        self.last.insert(socket, at);
        self.sequence += 1;
        self.queue.insert((at, self.sequence), (socket, happening));
    }
}

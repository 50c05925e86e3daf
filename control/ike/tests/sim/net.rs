//! A seeded network between endpoints, with a core behind each that checks what it is told.
//!
//! Loss, duplication, delay and reordering are drawn from one seed; time jumps from event to event. The core
//! refuses what the real one refuses (an SA installed twice, a key used twice) by panicking, since no schedule
//! may ever lead there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use braid_ike::{
    ChildId, ChildSa, Computed, Direction, Effect, Endpoint, EndpointSettings, EspTransport, Event,
    HeldChild, Path, PeerConfig, PeerId, Random,
};

/// Splitmix64.
#[derive(Clone)]
pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True in `percent` of a hundred.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

impl Random for Seeded {
    fn fill(&mut self, out: &mut [u8]) {
        out.iter_mut().for_each(|octet| *octet = self.next() as u8);
    }
}

/// What crosses the network.
#[derive(Clone)]
pub(crate) enum Packet {
    Ike(Vec<u8>),
    Esp { spi: u32, key: Vec<u8> },
    Keepalive,
}

/// The SAs that a node's core holds.
#[derive(Default)]
pub(crate) struct Core {
    pub(crate) sas: BTreeMap<(ChildId, Direction), ChildSa>,
    /// In the order of installation; the newest outbound carries traffic.
    order: Vec<(ChildId, Direction)>,
    ever: BTreeSet<(ChildId, Direction)>,
    out_keys: BTreeSet<Vec<u8>>,
}

impl Core {
    fn install(&mut self, sa: ChildSa) {
        let id = (sa.id, sa.direction);
        assert!(self.ever.insert(id), "{id:?} installed twice");
        if sa.direction == Direction::Out {
            assert!(self.out_keys.insert(sa.key.expose().to_vec()), "{id:?}: a key is used by two SAs");
        } else {
            let taken = self.sas.values().any(|o| o.direction == Direction::In && o.spi == sa.spi);
            assert!(!taken, "inbound SPI {:08x} taken", sa.spi);
        }
        assert!(sa.spi > 255);
        assert_eq!(sa.key.len(), sa.suite.key_len());
        self.order.push(id);
        self.sas.insert(id, sa);
    }

    fn follow(&mut self, peer: PeerId, path: Path, transport: EspTransport) {
        let sas = self.sas.values_mut().filter(|sa| sa.peer == peer);
        sas.for_each(|sa| (sa.path, sa.transport) = (path, transport));
    }

    fn remove(&mut self, id: ChildId, direction: Direction) {
        assert!(self.sas.remove(&(id, direction)).is_some(), "{id:?} {direction:?} removed but not there");
        self.order.retain(|other| *other != (id, direction));
    }

    /// The SA that traffic to the peer takes.
    pub(crate) fn outbound(&self, peer: PeerId) -> Option<&ChildSa> {
        self.order
            .iter()
            .rev()
            .filter(|(_, direction)| *direction == Direction::Out)
            .map(|id| &self.sas[id])
            .find(|sa| sa.peer == peer)
    }

    pub(crate) fn inbound(&self, spi: u32) -> Option<&ChildSa> {
        self.sas.values().find(|sa| sa.direction == Direction::In && sa.spi == spi)
    }
}

/// A gateway.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) core: Core,
    pub(crate) address: SocketAddr,
    pub(crate) events: Vec<Event>,
    pub(crate) stash: BTreeMap<u64, Vec<u8>>,
    /// When each child was installed.
    pub(crate) installed: BTreeMap<ChildId, Instant>,
    pub(crate) esp_sent: u64,
    pub(crate) esp_received: u64,
    pub(crate) esp_lost_here: u64,
    pub(crate) rng: Seeded,
    /// Octets of IKE sent.
    pub(crate) sent: u64,
    pub(crate) datagrams: u64,
    /// Rows for Wireshark.
    pub(crate) key_log: Vec<String>,
    /// Nothing goes in or out.
    pub(crate) cut: bool,
}

/// The network's manners.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    pub(crate) delay_min: Duration,
    pub(crate) delay_max: Duration,
}

impl Weather {
    pub(crate) const CALM: Weather = Weather {
        loss: 0,
        duplicates: 0,
        delay_min: Duration::from_millis(10),
        delay_max: Duration::from_millis(10),
    };
}

/// A rewriting of addresses on the way: from the inside, to the outside.
pub(crate) type Nat = BTreeMap<SocketAddr, SocketAddr>;

/// Sees each IKE datagram with its sender before it goes: true drops it.
pub(crate) type Censor = Box<dyn FnMut(usize, &[u8]) -> bool>;

pub(crate) struct Net {
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) nodes: Vec<Node>,
    pub(crate) weather: Weather,
    pub(crate) nat: Nat,
    pub(crate) rng: Seeded,
    queue: BTreeMap<(Instant, u64), (usize, Path, Packet)>,
    /// What nodes compute beside, by when it is done.
    computing: BTreeMap<(Instant, u64), (usize, Computed)>,
    /// How long a computation takes at most.
    pub(crate) computed_in: Duration,
    settings: EndpointSettings,
    sequence: u64,
    /// Events since time last moved.
    still: u32,
    pub(crate) censor: Option<Censor>,
}

pub(crate) const UNIX_TIME: Duration = Duration::from_secs(1_790_000_000);

impl Net {
    pub(crate) fn new(seed: u64, addresses: &[&str]) -> Self {
        Self::with_settings(seed, addresses, EndpointSettings::default())
    }

    #[allow(clippy::disallowed_methods)] // the one instant that all others are counted from
    pub(crate) fn with_settings(seed: u64, addresses: &[&str], settings: EndpointSettings) -> Self {
        let now = Instant::now();
        let nodes = addresses
            .iter()
            .enumerate()
            .map(|(index, address)| {
                let mut rng = Seeded(seed.wrapping_mul(31).wrapping_add(index as u64 + 1));
                Node {
                    endpoint: Endpoint::new(now, UNIX_TIME, settings.clone(), &mut rng),
                    core: Core::default(),
                    address: format!("{address}:500").parse().unwrap(),
                    events: Vec::new(),
                    stash: BTreeMap::new(),
                    installed: BTreeMap::new(),
                    esp_sent: 0,
                    esp_received: 0,
                    esp_lost_here: 0,
                    rng,
                    sent: 0,
                    datagrams: 0,
                    key_log: Vec::new(),
                    cut: false,
                }
            })
            .collect();
        Self {
            now,
            start: now,
            nodes,
            weather: Weather::CALM,
            nat: Nat::new(),
            rng: Seeded(seed ^ 0xfeed),
            queue: BTreeMap::new(),
            computing: BTreeMap::new(),
            computed_in: Duration::ZERO,
            settings,
            sequence: 0,
            still: 0,
            censor: None,
        }
    }

    /// The node loses all that it knew: its endpoint, its core and its stash.
    pub(crate) fn restart(&mut self, index: usize) {
        let now = self.now;
        self.computing.retain(|_, (node, _)| *node != index);
        let node = &mut self.nodes[index];
        node.endpoint = Endpoint::new(now, UNIX_TIME, self.settings.clone(), &mut node.rng);
        node.core = Core::default();
        node.stash.clear();
        node.installed.clear();
    }

    /// The node's control dies and comes back: the core and the stash stay.
    pub(crate) fn restart_control(&mut self, index: usize, generation: u32, peer: u32, config: PeerConfig) {
        let (now, config) = (self.now, Arc::new(config));
        self.computing.retain(|_, (node, _)| *node != index);
        let node = &mut self.nodes[index];
        node.endpoint = Endpoint::new(now, UNIX_TIME, self.settings.clone(), &mut node.rng);
        node.endpoint.put_peer(now, &mut node.rng, PeerId(peer), config);
        let highest = node.installed.keys().last().copied().unwrap_or(ChildId(0));
        node.endpoint.reserve_child_ids(highest);
        let mut kept = BTreeSet::new();
        for value in std::mem::take(&mut node.stash).values().rev() {
            let (core, installed) = (&node.core, &node.installed);
            let held = |id: ChildId| {
                let there = |direction| core.sas.contains_key(&(id, direction));
                let (age, outbound) = (now - *installed.get(&id)?, there(Direction::Out));
                there(Direction::In).then_some(HeldChild { age, outbound })
            };
            let adopted = node.endpoint.adopt(now, &mut node.rng, value, generation, &held);
            kept.extend(adopted.expect("what an endpoint stashed, it adopts").children);
        }
        let stale: Vec<_> = node.core.sas.keys().filter(|(id, _)| !kept.contains(id)).copied().collect();
        stale.into_iter().for_each(|(id, direction)| node.core.remove(id, direction));
        self.drain(index);
    }

    /// Acts on a node's endpoint, then carries out its effects.
    pub(crate) fn act<T>(
        &mut self,
        node: usize,
        act: impl FnOnce(&mut Endpoint, Instant, &mut Seeded) -> T,
    ) -> T {
        let now = self.now;
        let Node { endpoint, rng, .. } = &mut self.nodes[node];
        let out = act(endpoint, now, rng);
        self.drain(node);
        out
    }

    pub(crate) fn put_peer(&mut self, node: usize, peer: u32, config: PeerConfig) {
        let config = Arc::new(config);
        self.act(node, |endpoint, now, rng| endpoint.put_peer(now, rng, PeerId(peer), config));
    }

    fn drain(&mut self, index: usize) {
        while let Some(effect) = self.nodes[index].endpoint.poll_effect() {
            let node = &mut self.nodes[index];
            match effect {
                Effect::Install(sa) => {
                    node.installed.entry(sa.id).or_insert(self.now);
                    node.core.install(*sa);
                }
                Effect::Remove { id, direction, .. } => node.core.remove(id, direction),
                Effect::Transmit { path, bytes, non_esp_marker, stash } => {
                    if let Some(update) = stash {
                        node.stash.insert(update.key, update.value.expose().to_vec());
                    }
                    node.sent += bytes.len() as u64;
                    node.datagrams += 1;
                    let packet = if bytes == [0xff] {
                        assert!(!non_esp_marker);
                        Packet::Keepalive
                    } else {
                        assert_eq!(non_esp_marker, path.local.port() == 4500);
                        Packet::Ike(bytes)
                    };
                    self.send(index, path, packet);
                }
                Effect::Stash(update) => {
                    node.stash.insert(update.key, update.value.expose().to_vec());
                }
                Effect::ForgetStash(key) => {
                    node.stash.remove(&key);
                }
                Effect::Compute(computation) => {
                    let under_way = self.computing.values().filter(|(node, _)| *node == index).count();
                    assert!(under_way < self.settings.max_computations);
                    let bound = self.computed_in.as_micros() as u64 + 1;
                    let done = self.now + Duration::from_micros(self.rng.below(bound));
                    self.sequence += 1;
                    self.computing.insert((done, self.sequence), (index, computation.run()));
                }
                Effect::KeyLog(row) => node.key_log.push(String::from_utf8(row.expose().to_vec()).unwrap()),
                Effect::Event(event) => {
                    if let Event::EndpointMoved { peer, path, transport } = &event {
                        node.core.follow(*peer, *path, *transport);
                    }
                    node.events.push(event);
                }
            }
        }
    }

    fn send(&mut self, from: usize, path: Path, packet: Packet) {
        if let (Some(censor), Packet::Ike(bytes)) = (&mut self.censor, &packet)
            && censor(from, bytes)
        {
            return;
        }
        let copies = if self.rng.chance(self.weather.duplicates) { 2 } else { 1 };
        for _ in 0..copies {
            let lost = self.rng.chance(self.weather.loss);
            let spread = (self.weather.delay_max - self.weather.delay_min).as_micros() as u64;
            let delay = self.weather.delay_min + Duration::from_micros(self.rng.below(spread + 1));
            if lost || self.nodes[from].cut {
                continue;
            }
            let source = self.nat.get(&path.local).copied().unwrap_or(path.local);
            let inside = self.nat.iter().find(|(_, outside)| **outside == path.remote).map(|(i, _)| *i);
            let destination = inside.unwrap_or(path.remote);
            let to = self.nodes.iter().position(|node| node.address.ip() == destination.ip());
            if let Some(to) = to {
                self.sequence += 1;
                let arrived = Path { local: destination, remote: source };
                self.queue.insert((self.now + delay, self.sequence), (to, arrived, packet.clone()));
            }
        }
    }

    /// The node has another address from now on; both sides' ESP follows by IKE alone.
    pub(crate) fn readdress(&mut self, node: usize, address: &str) {
        self.nodes[node].address = format!("{address}:500").parse().unwrap();
    }

    /// Puts foreign octets on the wire.
    pub(crate) fn inject(&mut self, to: usize, path: Path, bytes: Vec<u8>) {
        self.sequence += 1;
        self.queue.insert((self.now, self.sequence), (to, path, Packet::Ike(bytes)));
    }

    /// Does the next thing that happens, unless that is after `until`.
    pub(crate) fn step(&mut self, until: Instant) -> bool {
        let packet = self.queue.first_key_value().map(|((at, _), _)| *at);
        let timer = (0..self.nodes.len())
            .filter_map(|index| self.nodes[index].endpoint.poll_timeout().map(|(at, _)| (at, index)))
            .min();
        let computed = self.computing.first_key_value().map(|((at, _), _)| *at);
        let next = packet.into_iter().chain(computed).chain(timer.map(|(at, _)| at)).min();
        let Some(at) = next.filter(|at| *at <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.still = if at > self.now { 0 } else { self.still + 1 };
        assert!(self.still < 10_000, "time stands still at {:?}", self.now - self.start);
        self.now = self.now.max(at);
        // What was received goes before what is due.
        if packet.is_some_and(|packet| packet <= at) {
            if let Some((_, (to, path, packet))) = self.queue.pop_first() {
                self.deliver(to, path, packet);
            }
        } else if computed.is_some_and(|computed| computed <= at) {
            if let Some((_, (index, computed))) = self.computing.pop_first() {
                self.act(index, |endpoint, now, rng| endpoint.handle_computed(now, rng, computed));
            }
        } else if let Some((_, index)) = timer {
            self.act(index, |endpoint, now, rng| endpoint.handle_timeout(now, rng));
        }
        true
    }

    fn deliver(&mut self, to: usize, path: Path, packet: Packet) {
        if self.nodes[to].cut {
            return;
        }
        match packet {
            Packet::Keepalive => {}
            Packet::Ike(bytes) => {
                self.act(to, |endpoint, now, rng| endpoint.handle_datagram(now, rng, path, &bytes));
            }
            Packet::Esp { spi, key } => {
                let node = &mut self.nodes[to];
                match node.core.inbound(spi) {
                    Some(sa) => {
                        assert_eq!(sa.key.expose(), key, "both ends of an SA have one key");
                        let peer = sa.peer;
                        node.esp_received += 1;
                        self.act(to, |endpoint, now, rng| {
                            endpoint.handle_esp_heard(now, rng, peer, Some(spi), now);
                        });
                    }
                    None => node.esp_lost_here += 1,
                }
            }
        }
    }

    /// Sends one ESP packet, if there is an SA for it.
    pub(crate) fn ping(&mut self, from: usize, peer: u32) -> bool {
        let node = &mut self.nodes[from];
        let Some(sa) = node.core.outbound(PeerId(peer)) else { return false };
        node.esp_sent += 1;
        let (path, spi, key) = (sa.path, sa.spi, sa.key.expose().to_vec());
        self.send(from, path, Packet::Esp { spi, key });
        true
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Runs until `done`, at most for `limit`; says whether it came to pass.
    pub(crate) fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Net) -> bool) -> bool {
        let until = self.now + limit;
        loop {
            if done(self) {
                return true;
            }
            if !self.step(until) {
                return done(self);
            }
        }
    }

    /// Whether traffic passes both ways between two nodes: each sends on an SA that the other receives on.
    pub(crate) fn connected(&self, a: usize, b: usize) -> bool {
        let one_way = |from: usize, to: usize| {
            let out = self.nodes[from].core.outbound(PeerId(to as u32));
            out.is_some_and(|out| self.nodes[to].core.inbound(out.spi).is_some_and(|sa| sa.key == out.key))
        };
        one_way(a, b) && one_way(b, a)
    }

    pub(crate) fn is_up(&self, node: usize, peer: u32) -> bool {
        let status = self.nodes[node].endpoint.status(self.now, PeerId(peer));
        status.is_some_and(|status| status.state == braid_ike::PeerState::Up)
    }

    pub(crate) fn failures(&self, node: usize) -> Vec<&braid_ike::Fault> {
        let faults = self.nodes[node].events.iter().filter_map(|event| match event {
            Event::Failed { diagnosis, .. } => Some(&diagnosis.fault),
            _ => None,
        });
        faults.collect()
    }

    pub(crate) fn transport(&self, node: usize, peer: u32) -> Option<EspTransport> {
        self.nodes[node].core.outbound(PeerId(peer)).map(|sa| sa.transport)
    }
}

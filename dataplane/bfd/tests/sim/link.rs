//! The simulated link.

use std::collections::BTreeMap;

use braid_bfd::{Config, DownCause, Event, Nanos, Sessions, Status, Watch};

const PATH: u8 = 0;
/// Distance of the traffic that the path authenticates.
const TRAFFIC: Nanos = 5_000_000;

/// What the link does to packets.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) loss_percent: u32,
    /// At most so many packets in a row are lost.
    pub(crate) longest_run: u32,
    pub(crate) delay: (Nanos, Nanos),
}

/// A xorshift generator: the same choices in every run.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn word(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    fn between(&mut self, (least, most): (Nanos, Nanos)) -> Nanos {
        least + self.next() % (most - least + 1)
    }
}

/// Two tables with one session each.
pub(crate) struct Link {
    now: Nanos,
    ends: [Sessions<u8>; 2],
    queue: BTreeMap<(Nanos, u64), (usize, Vec<u8>)>,
    sequence: u64,
    random: Seeded,
    lost_in_a_row: [u32; 2],
    detection: [Option<Nanos>; 2],
    pub(crate) weather: Weather,
    /// Nothing sent by this end arrives.
    pub(crate) cut: [bool; 2],
    /// Until then both ends hear other packets of each other.
    pub(crate) traffic_until: Nanos,
    pub(crate) events: Vec<(Nanos, usize, Event)>,
    pub(crate) last_arrival: [Option<Nanos>; 2],
}

impl Link {
    pub(crate) fn new(seed: u64, weather: Weather, configs: [Config; 2]) -> Self {
        let mut link = Link {
            now: 1_000_000_000,
            ends: [Sessions::new(1), Sessions::new(1)],
            queue: BTreeMap::new(),
            sequence: 0,
            random: Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            lost_in_a_row: [0; 2],
            detection: [None; 2],
            weather,
            cut: [false; 2],
            traffic_until: 0,
            events: Vec::new(),
            last_arrival: [None; 2],
        };
        for (end, config) in configs.into_iter().enumerate() {
            link.restart(end, config);
        }
        link
    }

    pub(crate) fn now(&self) -> Nanos {
        self.now
    }

    pub(crate) fn status(&self, end: usize) -> Status {
        self.ends[end].get(&PATH).unwrap().status()
    }

    pub(crate) fn both_up(&self) -> bool {
        (0..2).all(|end| self.status(end).state == braid_bfd::State::Up)
    }

    pub(crate) fn events_of(&self, end: usize) -> Vec<(Nanos, Event)> {
        self.events.iter().filter(|(_, of, _)| *of == end).map(|(at, _, event)| (*at, *event)).collect()
    }

    /// The end forgets everything.
    pub(crate) fn restart(&mut self, end: usize, config: Config) {
        self.ends[end] = Sessions::new(1);
        let random = &mut self.random;
        self.ends[end].insert(PATH, config, &mut || random.word()).unwrap();
        self.last_arrival[end] = None;
        self.drain(end);
    }

    pub(crate) fn configure(&mut self, end: usize, config: Config) {
        assert!(self.ends[end].configure(&PATH, config));
        self.drain(end);
    }

    pub(crate) fn disable(&mut self, end: usize) {
        assert!(self.ends[end].disable(&PATH));
        self.drain(end);
    }

    pub(crate) fn enable(&mut self, end: usize) {
        assert!(self.ends[end].enable(&PATH));
        self.drain(end);
    }

    pub(crate) fn run(&mut self, time: Nanos) {
        let until = self.now + time;
        let mut still = 0;
        loop {
            let arrival = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timeout = (0..2).filter_map(|end| Some((self.ends[end].poll_timeout()?, end))).min();
            let next = [arrival, timeout.map(|(at, _)| at)].into_iter().flatten().min();
            let Some(at) = next.filter(|at| *at <= until) else { break };
            still = if at > self.now { 0 } else { still + 1 };
            assert!(still < 1000, "time stands still at {at}");
            self.now = self.now.max(at);
            // What was received goes before what is due.
            if arrival.is_some_and(|arrival| arrival <= self.now) {
                let ((_, _), (end, octets)) = self.queue.pop_first().unwrap();
                // A restarted end is still named by its old discriminator: that is discarded.
                if self.ends[end].handle_payload(self.now, &PATH, 255, &octets).is_ok() {
                    self.last_arrival[end] = Some(self.now);
                }
                self.drain(end);
            } else if let Some((_, end)) = timeout {
                let (now, traffic) = (self.now, self.traffic_until);
                let heard = now.min(traffic) / TRAFFIC * TRAFFIC;
                self.ends[end]
                    .handle_timeout(now, |_| Watch { heard: (traffic > 0).then_some(heard), unread: None });
                self.drain(end);
            }
        }
        self.now = until;
    }

    fn drain(&mut self, end: usize) {
        let Link { ends, random, .. } = self;
        let mut packets = Vec::new();
        while let Some((_, octets)) = ends[end].poll_transmit(self.now, &mut || random.word()) {
            packets.push(octets.to_vec());
        }
        while let Some((_, event)) = self.ends[end].poll_event() {
            self.check(end, event);
            self.events.push((self.now, end, event));
        }
        self.detection[end] = Some(self.status(end).detection_time.as_nanos() as Nanos);
        for octets in packets {
            self.send(end, octets);
        }
    }

    /// A verdict by silence is right exactly if there was silence.
    fn check(&self, end: usize, event: Event) {
        let Event::Down(DownCause::Expired { silent }) = event else { return };
        let silent = silent.as_nanos() as Nanos;
        assert_eq!(self.detection[end], Some(silent), "late or early at {}", self.now);
        if self.traffic_until == 0 {
            assert_eq!(self.last_arrival[end], Some(self.now - silent));
        }
    }

    fn send(&mut self, from: usize, octets: Vec<u8>) {
        let lost = self.random.word() % 100 < self.weather.loss_percent
            && self.lost_in_a_row[from] < self.weather.longest_run;
        self.lost_in_a_row[from] = if lost { self.lost_in_a_row[from] + 1 } else { 0 };
        let delay = self.random.between(self.weather.delay);
        if !lost && !self.cut[from] {
            self.sequence += 1;
            self.queue.insert((self.now + delay, self.sequence), (1 - from, octets));
        }
    }
}

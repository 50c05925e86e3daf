//! Two endpoints, and octets that choose what they do, when, and in what weather. Then it grows calm: whatever
//! happened before, one working pair of SAs must come of it within bounded time, and nothing may be left over.
//!
//! The fuzz target, the committed corpus and the seeded schedules all play the same game. It needs `net` and
//! `config` of the simulation beside it.

use std::time::Duration;

use braid_ike::crypto::KeMethod;
use braid_ike::{EndpointSettings, Lifetime, PeerConfig, PeerId, Role};

use super::config::{A, B, peer};
use super::net::{Net, Weather};

/// How long two endpoints may take to agree once the network is calm: a DPD timeout, the longest pause
/// between two attempts, and the attempt.
const HEALED_WITHIN: Duration = Duration::from_secs(180);
/// Leftovers of collisions are swept after this.
const SWEPT_WITHIN: Duration = Duration::from_secs(200);
/// Operations of one game.
const MAX_OPERATIONS: usize = 16;

/// Octets, and zeroes when they are used up.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn octet(&mut self) -> u64 {
        self.0.next().copied().unwrap_or_default().into()
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.octet() * bound / 256
    }

    fn is_over(&self) -> bool {
        self.0.len() == 0
    }
}

struct Game<'a> {
    net: Net,
    choices: Choices<'a>,
    both_initiate: bool,
    short: bool,
    generation: u32,
    trace: Vec<String>,
}

/// Plays; says what is wrong in the end. The simulated core panics at what no core may ever be told.
pub(crate) fn play(input: &[u8]) -> Result<(), String> {
    let mut game = Game::new(input);
    game.run();
    game.check().map_err(|what| {
        let nodes: Vec<_> = game.net.nodes.iter().map(|node| (&node.events, &node.endpoint)).collect();
        format!("{input:02x?}: {what}\n{}\n{nodes:?}", game.trace.join("\n"))
    })
}

impl<'a> Game<'a> {
    fn new(input: &'a [u8]) -> Self {
        // FNV-1a: the same octets are the same game.
        let seed = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
            (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut choices = Choices(input.iter());
        let (both_initiate, short) = (choices.below(10) < 3, choices.below(10) < 3);
        // In every second game key exchanges are computed beside, and take their time.
        let is_beside = seed & 1 != 0;
        let beside: &'static [KeMethod] = if is_beside { &KeMethod::ALL } else { &[] };
        let settings = EndpointSettings { beside, ..EndpointSettings::default() };
        let mut net = Net::with_settings(seed, &[A, B], settings);
        net.computed_in = Duration::from_millis(seed >> 1 & 0xff);
        let mut game = Self { net, choices, both_initiate, short, generation: 0, trace: Vec::new() };
        game.storm();
        for node in [0, 1] {
            let config = game.config(node);
            game.net.put_peer(node, 1 - node as u32, config);
        }
        game
    }

    fn config(&self, node: usize) -> PeerConfig {
        let role = if node == 0 || self.both_initiate { Role::Initiate } else { Role::Respond };
        let (local, remote) = if node == 0 { (A, B) } else { (B, A) };
        let mut config = peer(role, local, remote);
        if self.short {
            config.child_lifetime = Lifetime::of(Duration::from_secs(40));
            config.ike_lifetime = Lifetime::of(Duration::from_secs(100));
        }
        config
    }

    fn storm(&mut self) {
        let choices = &mut self.choices;
        self.net.weather = Weather {
            loss: choices.below(35),
            duplicates: choices.below(20),
            delay_min: Duration::from_millis(1 + choices.below(20)),
            delay_max: Duration::from_millis(21 + choices.below(400)),
        };
    }

    fn run(&mut self) {
        for _ in 0..MAX_OPERATIONS {
            if self.choices.is_over() {
                break;
            }
            let (kind, amount) = (self.choices.below(4), self.choices.octet());
            let pause = match kind {
                0 => Duration::from_millis(amount / 5),
                1 => Duration::from_millis(amount * 4),
                2 => Duration::from_millis(amount * 40),
                _ => Duration::from_millis(amount * 240),
            };
            self.run_with_pings(pause);
            self.operation();
        }
        self.net.weather = Weather::CALM;
        self.net.nodes.iter_mut().for_each(|node| node.cut = false);
        self.trace.push(format!("{:?} calm", self.net.now - self.net.start));
    }

    fn operation(&mut self) {
        let node = self.choices.below(2) as usize;
        let other = PeerId(1 - node as u32);
        let what = self.choices.below(16);
        self.trace.push(format!("{:?} node {node} operation {what}", self.net.now - self.net.start));
        let net = &mut self.net;
        match what {
            0..=2 => net.act(node, |e, now, rng| e.rekey_child(now, rng, other)),
            3..=4 => net.act(node, |e, now, rng| e.rekey_ike(now, rng, other)),
            5 => net.act(node, |e, now, rng| e.delete_child(now, rng, other)),
            6 => net.act(node, |e, now, rng| e.reset_peer(now, rng, other)),
            7 => net.act(node, |e, now, rng| e.probe(now, rng, other)),
            // Collisions: both at once.
            8 => (0..2).for_each(|n| net.act(n, |e, now, rng| e.rekey_child(now, rng, PeerId(1 - n as u32)))),
            9 => (0..2).for_each(|n| net.act(n, |e, now, rng| e.rekey_ike(now, rng, PeerId(1 - n as u32)))),
            10 => {
                net.act(node, |e, now, rng| e.rekey_ike(now, rng, other));
                net.act(1 - node, |e, now, rng| e.rekey_child(now, rng, PeerId(node as u32)));
            }
            11 => {
                net.act(node, |e, now, rng| e.rekey_child(now, rng, other));
                net.act(1 - node, |e, now, rng| e.delete_child(now, rng, PeerId(node as u32)));
            }
            12 => net.nodes[node].cut = !net.nodes[node].cut,
            13 => {
                self.generation += 1;
                let config = self.config(node);
                self.net.restart_control(node, self.generation, 1 - node as u32, config);
            }
            14 => {
                net.restart(node);
                let config = self.config(node);
                self.net.put_peer(node, 1 - node as u32, config);
            }
            _ => self.storm(),
        }
    }

    fn run_with_pings(&mut self, time: Duration) {
        for _ in 0..4 {
            self.net.ping(0, 1);
            self.net.ping(1, 0);
            self.net.run(time / 4);
        }
    }

    fn check(&mut self) -> Result<(), String> {
        if !self.net.run_until(HEALED_WITHIN, |net| net.connected(0, 1)) {
            return Err("no working pair".to_owned());
        }
        self.net.run(SWEPT_WITHIN);
        if !self.net.run_until(HEALED_WITHIN, |net| net.connected(0, 1)) {
            return Err("the pair did not last".to_owned());
        }
        let before: Vec<_> =
            self.net.nodes.iter().map(|n| (n.esp_sent, n.esp_received, n.esp_lost_here)).collect();
        for _ in 0..50 {
            if !(self.net.ping(0, 1) && self.net.ping(1, 0)) {
                return Err("no outbound SA".to_owned());
            }
            self.net.run(Duration::from_millis(100));
        }
        self.net.run(Duration::from_millis(100));
        for (node, before) in self.net.nodes.iter().zip(before) {
            if (node.esp_received - before.1, node.esp_lost_here - before.2) != (50, 0) {
                return Err("packets lost in the calm".to_owned());
            }
            // With short lifetimes a rekey may be under way.
            let limit = if self.short { 8 } else { 2 };
            if node.core.sas.len() > limit {
                return Err(format!("{} SAs in a core", node.core.sas.len()));
            }
            let ike = if self.short { 3 } else { 1 };
            if node.endpoint.ike_sas() > ike {
                return Err(format!("{} IKE SAs", node.endpoint.ike_sas()));
            }
            if node.stash.len() > ike {
                return Err(format!("{} stash entries", node.stash.len()));
            }
        }
        Ok(())
    }
}

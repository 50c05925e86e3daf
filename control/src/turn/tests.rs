//! The shipped turn against the core's shipped tables, without anything in between.
//!
//! The rig plays the sockets: it carries transactions and answers in order, loses them with a
//! connection, kills either process, and checks after every step what must hold always.

use core::time::Duration;
use std::{
    collections::{BTreeSet, VecDeque},
    path::Path,
    sync::Arc,
};

use braid_api::{
    BootId, Cause, Direction, Event as CoreEvent, Op, Rejected, Transaction, TunnelId, TunnelState, Verdict,
    launcher::{KernelPlan, LearnedVia, RouteChanges},
};
use braid_dataplane::{esp::Engine, tables::Writer};
use proptest::prelude::*;

use super::*;
use crate::outer::Blocked;

mod adoption;
mod failover;
mod reload;
mod wireguard;

/// Variants of one configuration: weights, a tunnel less, other keys, priorities, no routes, another order,
/// priorities without preemption.
const VARIANTS: usize = 8;
/// The same tunnels with keys that are negotiated, the peer's address unknown.
const NEGOTIATED: usize = VARIANTS;
/// As [`NEGOTIATED`], with a tunnel less.
const NEGOTIATED_LESS: usize = VARIANTS + 1;

fn configuration(variant: usize) -> Arc<Config> {
    configuration_with(variant, "", false)
}

/// With more at the end; `far` gives routes a distance that BGP undercuts.
fn configuration_with(variant: usize, more: &str, far: bool) -> Arc<Config> {
    let mut text = "[gateway]\nname = \"x\"\n".to_owned();
    let names = match variant {
        2 | NEGOTIATED_LESS => &["a", "b"][..],
        6 => &["c", "b", "a"],
        _ => &["a", "b", "c"],
    };
    for name in names {
        let index = usize::from(name.as_bytes()[0] - b'a');
        let key = |side: usize| {
            let salt = if variant == 3 && index == 0 { 0x40 } else { 0 };
            format!("{:02x}", 0x10 * (index + 1) + side + salt).repeat(20)
        };
        let weight = if variant == 1 { 5 } else { 1 };
        let priority = if variant == 4 || variant == 7 { index as i32 } else { 0 };
        let preempt = variant != 7;
        if variant >= NEGOTIATED {
            text.push_str(&format!(
                "[[tunnel]]\nname = \"{name}\"\nlocal = \"192.0.2.{}\"\nrole = \"respond\"\n\
                 inside = \"169.254.{}.2/30\"\n[tunnel.ike]\npsk = \"x\"\nremote-id = \"{name}.example\"\n",
                index + 1,
                index + 10
            ));
            continue;
        }
        text.push_str(&format!(
            "[[tunnel]]\nname = \"{name}\"\nlocal = \"192.0.2.{}\"\nremote = \"203.0.113.{}\"\n\
             inside = \"169.254.{}.2/30\"\nweight = {weight}\npriority = {priority}\npreempt = {preempt}\n\
             [tunnel.manual]\nsuite = \"aes128gcm16\"\nspi-in = {}\nspi-out = {}\nkey-in = \"{}\"\nkey-out = \"{}\"\n",
            index + 1, index + 1, index + 10, 0x1000 + index, 0x2000 + index, key(0), key(1),
        ));
    }
    if variant != 5 {
        let via = names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        text.push_str(&format!("[[route]]\nprefix = \"10.2.0.0/16\"\nvia = [{via}]\n"));
        if variant != 7 {
            text.push_str("[[route]]\nprefix = \"10.3.0.0/16\"\nvia = [\"a\", \"b\"]\n");
        }
    }
    if far {
        text = text.replace("[[route]]\n", "[[route]]\ndistance = 100\n");
    }
    text.push_str(more);
    Arc::new(crate::config::parse(&text, Path::new("x.toml"), 0o600).unwrap())
}

pub(super) struct Rig {
    pub(super) turn: Turn,
    now: Duration,
    disk: Memory,
    pub(super) core: Option<Writer>,
    connected: bool,
    boots: u8,
    to_core: VecDeque<Transaction>,
    from_core: VecDeque<Event>,
    plan: Option<KernelPlan>,
    plans: usize,
    /// Of the device, by the last plan.
    last_mtu: Option<u16>,
    /// Every key that any core has ever taken.
    installed: BTreeSet<Vec<u8>>,
    replies: Vec<(Token, Result<String, Vec<String>>)>,
    /// Reloads whose configuration is kept for the next life of control.
    in_force: Vec<Token>,
    pub(super) notes: Vec<Note>,
    /// The core refuses whatever has a route for it.
    pub(super) refuses: Option<ipnet::IpNet>,
    /// What the kernel has of learned routes.
    pub(super) kernel: BTreeMap<ipnet::IpNet, LearnedVia>,
    /// What the launcher was told of them.
    pub(super) kernel_messages: Vec<RouteChanges>,
    pub(super) swept: bool,
    exited: Option<String>,
    variant: usize,
    /// At the end of every configuration.
    more: String,
    pub(super) far_routes: bool,
    next_token: u64,
}

impl Rig {
    fn new() -> Self {
        Rig::with(0)
    }

    fn with(variant: usize) -> Self {
        Rig::made(variant, "")
    }

    /// With more at the end of the configuration.
    pub(super) fn with_text(more: &str) -> Self {
        Rig::made(0, more)
    }

    fn made(variant: usize, more: &str) -> Self {
        let disk = Memory::new([5; 32]);
        let mut rig = Rig {
            turn: Turn::new(
                configuration_with(variant, more, false),
                disk.clone(),
                [1; 16],
                1,
                Duration::ZERO,
            ),
            now: Duration::ZERO,
            disk,
            core: None,
            connected: false,
            boots: 0,
            to_core: VecDeque::new(),
            from_core: VecDeque::new(),
            plan: None,
            plans: 0,
            last_mtu: None,
            installed: BTreeSet::new(),
            replies: Vec::new(),
            in_force: Vec::new(),
            notes: Vec::new(),
            refuses: None,
            kernel: BTreeMap::new(),
            kernel_messages: Vec::new(),
            swept: false,
            exited: None,
            variant,
            more: more.to_owned(),
            far_routes: false,
            next_token: 0,
        };
        rig.start_core();
        rig.run_effects();
        rig
    }

    /// Everything delivered, connected and confirmed.
    fn settled() -> Self {
        let mut rig = Rig::new();
        rig.settle();
        rig
    }

    fn start_core(&mut self) {
        self.boots += 1;
        self.core = Some(Writer::new(1, BootId([self.boots; 16]), Engine::Ring, &[self.boots; 32]));
    }

    pub(super) fn event(&mut self, event: Event) {
        self.turn.handle(event, self.now);
        self.run_effects();
    }

    fn run_effects(&mut self) {
        let effects = self.turn.take_effects();
        let ranks: Vec<u8> = effects.iter().map(Effect::rank).collect();
        assert!(ranks.is_sorted(), "effects leave in their order: {effects:?}");
        let mut routes_done = 0;
        for effect in effects {
            match effect {
                Effect::Remember | Effect::RememberLater => self.disk = self.turn.memory().clone(),
                Effect::Transaction(transaction) => {
                    if self.connected {
                        self.to_core.push_back(transaction);
                    }
                }
                Effect::Plan(plan) => {
                    assert!(self.plan.is_none(), "one plan at a time");
                    self.last_mtu = Some(plan.mtu);
                    self.plan = Some(*plan);
                    self.plans += 1;
                }
                Effect::Routes(changes) => {
                    for via in self.kernel.values_mut() {
                        via.link.take_if(|link| changes.withdraw.contains(link));
                    }
                    self.kernel_messages.push(changes.clone());
                    self.kernel.extend(changes.put.into_iter().map(|put| (put.prefix, put.via)));
                    self.kernel.retain(|prefix, _| !changes.remove.contains(prefix));
                    self.swept |= changes.sweep;
                    routes_done += 1;
                }
                Effect::QueryStats => {
                    if let Some(core) = self.core.as_ref().filter(|_| self.connected) {
                        let stats = core.stats(self.now.as_nanos() as u64);
                        self.from_core.push_back(Event::Stats(stats.tunnels));
                    }
                }
                Effect::Reconnect => {
                    self.disconnect(true);
                    self.connect();
                }
                Effect::InForce(token) => self.in_force.push(token),
                Effect::Reply(token, result) => self.replies.push((token, result)),
                Effect::Note(note) => self.notes.push(note),
                Effect::Exit { message } => self.exited = Some(message),
            }
        }
        for _ in 0..routes_done {
            self.event(Event::RoutesDone);
        }
    }

    fn connect(&mut self) {
        let Some(core) = self.core.as_mut().filter(|_| !self.connected) else { return };
        let hello = core.hello(Duration::ZERO, 1, true);
        self.connected = true;
        self.event(Event::CoreHello(hello));
    }

    /// The connection is lost; the core has read all that was sent, or none.
    fn disconnect(&mut self, core_reads_first: bool) {
        if !self.connected {
            return;
        }
        while core_reads_first && self.core_step() {}
        self.connected = false;
        self.to_core.clear();
        self.from_core.clear();
        self.event(Event::CoreGone);
    }

    /// The core takes one transaction.
    fn core_step(&mut self) -> bool {
        let Some(core) = &mut self.core else { return false };
        let Some(transaction) = self.to_core.pop_front() else { return false };
        let epoch = transaction.epoch;
        let keys: Vec<Vec<u8>> = transaction
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::PutSa(sa) => Some(sa.key.expose().to_vec()),
                _ => None,
            })
            .collect();
        let refused = |op: &Op| matches!(op, Op::PutRoute { prefix, .. } if Some(*prefix) == self.refuses);
        let answer = match transaction.ops.iter().position(refused) {
            Some(op) => Err(Rejected { epoch, op: op as u32, reason: RejectReason::IdOutOfRange }),
            None => core.apply(transaction, self.now.as_nanos() as u64),
        };
        if answer.is_ok() {
            for key in keys {
                assert!(self.installed.insert(key), "a key was installed twice");
            }
        }
        self.from_core.push_back(match answer {
            Ok(_) => Event::Applied(epoch),
            Err(rejected) => Event::Rejected(rejected),
        });
        self.check_core();
        true
    }

    /// Control reads one message.
    fn control_step(&mut self) -> bool {
        let Some(event) = self.from_core.pop_front() else { return false };
        if let Event::Rejected(rejected) = &event
            && self.refuses.is_none()
        {
            panic!("the core refused: {rejected:?}");
        }
        self.event(event);
        true
    }

    fn finish_plan(&mut self, well: bool) {
        if self.plan.take().is_some() {
            self.event(if well { Event::PlanDone } else { Event::PlanFailed { message: "no".to_owned() } });
        }
    }

    pub(super) fn kill_core(&mut self) {
        self.core = None;
        self.disconnect(false);
        self.start_core();
    }

    pub(super) fn kill_control(&mut self, core_reads_first: bool) {
        while core_reads_first && self.core_step() {}
        self.connected = false;
        self.to_core.clear();
        self.from_core.clear();
        self.plan = None;
        let config = configuration_with(self.variant, &self.more, self.far_routes);
        self.turn = Turn::new(config, self.disk.clone(), [1; 16], 1, self.now);
        self.run_effects();
    }

    pub(super) fn reload(&mut self, variant: usize) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.variant = variant;
        let config = configuration_with(variant, &self.more, self.far_routes);
        self.event(Event::Configured { config, outer: BTreeMap::new(), token });
        token
    }

    fn id(&self, name: &str) -> Option<TunnelId> {
        let (tunnels, ..) = self.core.as_ref()?.summary();
        tunnels.iter().find(|tunnel| tunnel.name == name).map(|tunnel| tunnel.id)
    }

    fn state(&self, name: &str) -> Option<TunnelState> {
        Some(self.core.as_ref()?.states().get(self.id(name)?))
    }

    pub(super) fn view(&self, name: &str) -> (State, String) {
        let views = self.turn.tunnels(self.now);
        let view = views.iter().find(|view| view.tunnel.name == name).unwrap();
        (view.state, view.reason.clone())
    }

    /// A packet from a tunnel's peer is authentic.
    pub(super) fn hear(&mut self, name: &str) {
        let id = self.id(name).unwrap();
        let mut reader = self.core.as_ref().unwrap().reader();
        reader.enter().tunnel(id).unwrap().live.heard(self.now.as_nanos() as u64);
    }

    /// Whoever chooses routes has nothing more to say.
    pub(super) fn quiet(&mut self) {
        self.turn.handle_quiet(self.now);
    }

    /// After what time all that follows of a tunnel's last failure was done.
    pub(super) fn converged(&self, name: &str) -> Option<Duration> {
        let views = self.turn.tunnels(self.now);
        views.iter().find(|view| view.tunnel.name == name)?.last_failure.as_ref()?.converged
    }

    fn liveness(&mut self, name: &str, up: bool) {
        self.verdict(name, up, Cause::Probe);
    }

    pub(super) fn verdict(&mut self, name: &str, up: bool, cause: Cause) {
        let Some(tunnel) = self.id(name).filter(|_| self.connected) else { return };
        if !up && let Some(core) = &self.core {
            core.states().mask_by_core(tunnel);
        }
        let verdict = if up { Verdict::Up } else { Verdict::Down };
        let silent = if up { Duration::ZERO } else { Duration::from_millis(900) };
        let (detected, masked) = (1_000_000, 1_012_000);
        let event = CoreEvent::Liveness { tunnel, verdict, cause, silent, detected, masked };
        self.from_core.push_back(Event::Core(event));
    }

    fn link(&mut self, name: &str, up: bool) {
        let blocked = (!up).then(|| Blocked::LinkDown { name: "eth1".to_owned() });
        let outer = Outer { mtu: Some(1500), blocked, ..Outer::default() };
        self.event(Event::Outer([(name.to_owned(), outer)].into()));
    }

    pub(super) fn sleep(&mut self, time: Duration) {
        self.now += time;
        while self.turn.poll_timeout().is_some_and(|at| at <= self.now) {
            self.event(Event::Timer);
        }
    }

    /// Delivers everything and lets every timer pass.
    pub(super) fn settle(&mut self) {
        for _ in 0..200 {
            self.finish_plan(true);
            self.connect();
            while self.core_step() || self.control_step() {}
            self.sleep(Duration::from_secs(1));
            let quiet = self.plan.is_none() && self.to_core.is_empty() && self.from_core.is_empty();
            if quiet && self.turn.poll_timeout().is_none() {
                return;
            }
        }
    }

    /// What must hold in the core after every transaction.
    fn check_core(&self) {
        let Some(core) = &self.core else { return };
        let (tunnels, sas, _) = core.summary();
        let config = self.turn.config();
        let is_wireguard = |name: &str| {
            config.tunnels.iter().any(|tunnel| tunnel.name == name && tunnel.wireguard().is_some())
        };
        for tunnel in tunnels {
            if tunnel.state == TunnelState::Masked || is_wireguard(&tunnel.name) {
                continue;
            }
            for direction in [Direction::In, Direction::Out] {
                assert!(
                    sas.iter().any(|sa| sa.tunnel == tunnel.id && sa.direction == direction),
                    "{} is offered without an SA",
                    tunnel.name
                );
            }
        }
    }
}

#[test]
fn a_start_installs_everything_and_then_offers_it() {
    let mut rig = Rig::new();
    rig.connect();
    assert!(rig.to_core.is_empty(), "nothing before the plan is in force");
    rig.finish_plan(true);
    assert_eq!(rig.to_core.len(), 1);
    assert!(!rig.to_core[0].ops.iter().any(|op| matches!(op, Op::Unmask(_))));
    rig.core_step();
    assert_eq!(rig.state("a"), Some(TunnelState::Masked));
    assert_eq!(rig.view("a").0, State::Connecting);
    rig.control_step();
    let unmasks = rig.to_core[0].ops.iter().filter(|op| matches!(op, Op::Unmask(_)));
    assert_eq!(unmasks.count(), 3);
    rig.settle();
    for name in ["a", "b", "c"] {
        assert_eq!(rig.state(name), Some(TunnelState::Live));
        assert_eq!(rig.view(name), (State::Up, String::new()));
    }
    let stats = rig.core.as_ref().unwrap().stats(0);
    assert_eq!(stats.routes, 5, "two routes and three inside peers");
    assert!(rig.notes.contains(&Note::ManualKeys { tunnels: 3 }));
}

fn masks(rig: &Rig) -> bool {
    rig.to_core.iter().flat_map(|transaction| &transaction.ops).any(|op| matches!(op, Op::Mask(_)))
}

fn path(name: &str) -> Negotiated {
    let host = name.as_bytes()[0] - b'a' + 1;
    Negotiated {
        local: format!("192.0.2.{host}:4500").parse().unwrap(),
        remote: format!("203.0.113.{host}:61000").parse().unwrap(),
        encapsulation: braid_api::Encapsulation::Udp,
        keepalive: false,
        suite: braid_api::Suite::Aes256Gcm16,
    }
}

impl Rig {
    fn negotiate(&mut self, name: &str) {
        let salt = name.as_bytes()[0];
        let install = |direction, way: u8| IkeOp::Install {
            tunnel: name.to_owned(),
            negotiated: path(name),
            direction,
            spi: braid_api::Spi(0x1000 + u32::from(salt)),
            suite: braid_api::Suite::Aes256Gcm16,
            key: braid_api::SecretKey::new((0..36).map(|at| at ^ salt ^ way).collect()),
            esn: true,
            replay_window: 2048,
            selectors: braid_api::Selectors::default(),
            note: braid_api::StashValue(vec![salt]),
        };
        let ops = vec![install(Direction::In, 0), install(Direction::Out, 0x80)];
        assert!(matches!(self.turn.carry(ops), Ok(Some(_))));
        self.tell(name, IkeState::Up);
    }

    fn tell(&mut self, name: &str, state: IkeState) {
        self.event(Event::Ike([(name.to_owned(), state)].into()));
    }

    /// As [`Rig::settle`], for a state in which a timer is always set.
    pub(super) fn settle_for(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.finish_plan(true);
            self.connect();
            while self.core_step() || self.control_step() {}
            self.sleep(Duration::from_secs(1));
        }
    }
}

#[test]
fn after_a_core_restart_manual_tunnels_stay_down_and_say_so() {
    let mut rig = Rig::settled();
    rig.kill_core();
    rig.settle();
    for name in ["a", "b", "c"] {
        assert_eq!(rig.state(name), Some(TunnelState::Masked));
        let (state, reason) = rig.view(name);
        assert_eq!(state, State::Down);
        assert!(
            reason.starts_with("manual keys are not reused after the forwarding core restarted"),
            "{reason}"
        );
    }
    let stats = rig.core.as_ref().map(|core| core.stats(rig.now.as_nanos() as u64));
    let status = crate::status::status(
        &rig.turn,
        &crate::ike::Ike::new(),
        &crate::bgp::Bgp::new(0),
        stats.as_ref(),
        rig.now,
    );
    assert!(status.tunnels.iter().all(|tunnel| tunnel.mtu == 1438), "their suite's: {:?}", status.tunnels);
    // Other keys help; the old ones stay burnt, also for another life of control.
    let token = rig.reload(3);
    rig.settle();
    assert!(rig.replies.iter().any(|(to, result)| *to == token && result.is_ok()));
    assert_eq!(rig.view("a").0, State::Up);
    assert_eq!(rig.view("b").0, State::Down);
    rig.kill_control(true);
    rig.settle();
    assert_eq!(rig.view("a").0, State::Up);
    assert_eq!(rig.view("b").0, State::Down);
}

#[test]
fn a_transaction_lost_with_its_connection_burns_its_keys() {
    for core_reads_first in [false, true] {
        let mut rig = Rig::new();
        rig.connect();
        rig.finish_plan(true);
        rig.kill_control(core_reads_first);
        rig.settle();
        let expected = if core_reads_first { State::Up } else { State::Down };
        assert_eq!(rig.view("a").0, expected, "adopted, or never installed again");
    }
}

#[test]
fn the_plain_device_has_one_queue_and_so_one_worker() {
    for (core, expected) in [("", 3), ("offload = \"off\"", 1), ("offload = \"off\"\nworkers = 2", 2)] {
        let config = configuration_with(0, &format!("[core]\n{core}\n"), false);
        let mut turn = Turn::new(config, Memory::new([5; 32]), [1; 16], 3, Duration::ZERO);
        let plan = turn.take_effects().into_iter().find_map(|effect| match effect {
            Effect::Plan(plan) => Some(plan.workers),
            _ => None,
        });
        assert_eq!(plan, Some(expected), "{core}");
    }
}

#[test]
fn a_first_plan_that_fails_ends_control() {
    let mut rig = Rig::new();
    rig.finish_plan(false);
    assert_eq!(rig.exited.as_deref(), Some("no"));
}

#[test]
fn drain_and_undrain_are_answered_when_they_are_in_force() {
    let mut rig = Rig::settled();
    rig.event(Event::Drain { tunnel: "a".to_owned(), token: Token(1) });
    assert!(rig.replies.is_empty());
    rig.core_step();
    assert_eq!(rig.state("a"), Some(TunnelState::Draining));
    rig.control_step();
    assert_eq!(rig.replies, [(Token(1), Ok("done".to_owned()))]);
    assert_eq!(rig.view("a").0, State::Draining);
    rig.event(Event::Undrain { tunnel: "a".to_owned(), token: Token(2) });
    rig.settle();
    assert_eq!(rig.view("a").0, State::Up);
    rig.event(Event::Drain { tunnel: "x".to_owned(), token: Token(3) });
    let (_, Err(lines)) = &rig.replies[2] else { panic!("an error") };
    assert_eq!(lines[0], "no tunnel is named \"x\"; known: a, b, c");
}

#[test]
fn that_the_last_one_goes_on_carrying_is_told_to_who_drains_it() {
    let mut rig = Rig::settled();
    for (number, tunnel) in ["a", "b"].into_iter().enumerate() {
        rig.event(Event::Drain { tunnel: tunnel.to_owned(), token: Token(number as u64) });
        rig.settle();
    }
    let told: Vec<&str> = rig.replies.iter().map(|(_, reply)| reply.as_ref().unwrap().as_str()).collect();
    assert_eq!(told, ["done", "done, but no other tunnel is up: it goes on carrying"]);
    // Where c is, nobody needs them; between the two of 10.3.0.0/16 they share.
    let reasons = ["a", "b"].map(|name| rig.view(name).1.ends_with("it goes on carrying"));
    assert_eq!(reasons, [true, true]);
    assert_eq!(rig.view("c").0, State::Up);
}

#[test]
fn a_refused_tunnel_does_not_keep_the_others_down() {
    let mut rig = Rig::new();
    // No socket for b's address.
    let sockets = ["192.0.2.1:4500", "192.0.2.3:4500"].map(|local| local.parse().unwrap());
    let sockets = sockets.map(|local| (local, braid_api::Encapsulation::Udp)).to_vec();
    rig.core.as_mut().unwrap().set_sockets(sockets);
    rig.finish_plan(true);
    rig.connect();
    for _ in 0..10 {
        while rig.core_step() {}
        while let Some(event) = rig.from_core.pop_front() {
            rig.event(event);
        }
        rig.finish_plan(true);
    }
    assert_eq!(rig.view("a").0, State::Up);
    assert_eq!(rig.view("c").0, State::Up);
    let (state, reason) = rig.view("b");
    assert_eq!(
        (state, reason.as_str()),
        (State::Down, "the forwarding core refused it: there is no socket for the local address")
    );
}

#[test]
fn a_socket_that_comes_late_is_waited_for() {
    let mut rig = Rig::new();
    rig.core.as_mut().unwrap().set_sockets(Vec::new());
    rig.finish_plan(true);
    rig.connect();
    for _ in 0..10 {
        while rig.core_step() {}
        while let Some(event) = rig.from_core.pop_front() {
            rig.event(event);
        }
    }
    assert_eq!(rig.view("a").0, State::Down);
    let sockets = [1, 2, 3]
        .map(|host| (format!("192.0.2.{host}:4500").parse().unwrap(), braid_api::Encapsulation::Udp));
    rig.core.as_mut().unwrap().set_sockets(sockets.to_vec());
    rig.settle();
    for name in ["a", "b", "c"] {
        assert_eq!(rig.view(name), (State::Up, String::new()), "{name}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Core,
    Control,
    Plan(bool),
    Connect,
    Disconnect(bool),
    KillCore,
    KillControl(bool),
    Reload(usize),
    Liveness(usize, bool),
    Link(usize, bool),
    Drain(usize, bool),
    Sleep(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Core),
        6 => Just(Step::Control),
        4 => prop::bool::weighted(0.9).prop_map(Step::Plan),
        3 => Just(Step::Connect),
        1 => any::<bool>().prop_map(Step::Disconnect),
        1 => Just(Step::KillCore),
        1 => any::<bool>().prop_map(Step::KillControl),
        1 => (0..VARIANTS).prop_map(Step::Reload),
        3 => (0usize..3, any::<bool>()).prop_map(|(tunnel, up)| Step::Liveness(tunnel, up)),
        2 => (0usize..3, any::<bool>()).prop_map(|(tunnel, up)| Step::Link(tunnel, up)),
        1 => (0usize..3, any::<bool>()).prop_map(|(tunnel, drain)| Step::Drain(tunnel, drain)),
        2 => (0u64..2000).prop_map(Step::Sleep),
    ]
}

fn take(rig: &mut Rig, step: &Step) {
    let name = |index: &usize| ["a", "b", "c"][*index];
    match step {
        Step::Core => drop(rig.core_step()),
        Step::Control => drop(rig.control_step()),
        // A first plan that fails ends the process.
        Step::Plan(well) => {
            let well = *well || !rig.turn.has_plan_in_force();
            rig.finish_plan(well);
        }
        Step::Connect => rig.connect(),
        Step::Disconnect(reads) => rig.disconnect(*reads),
        Step::KillCore => rig.kill_core(),
        Step::KillControl(reads) => rig.kill_control(*reads),
        Step::Reload(variant) => {
            let before = rig.variant;
            let objected = !rig.turn.objections(&configuration(*variant)).is_empty();
            rig.reload(*variant);
            if objected {
                rig.variant = before;
            }
        }
        Step::Liveness(tunnel, up) => rig.liveness(name(tunnel), *up),
        Step::Link(tunnel, up) => rig.link(name(tunnel), *up),
        Step::Drain(tunnel, true) => {
            rig.event(Event::Drain { tunnel: name(tunnel).to_owned(), token: Token(1000) });
        }
        Step::Drain(tunnel, false) => {
            rig.event(Event::Undrain { tunnel: name(tunnel).to_owned(), token: Token(1001) });
        }
        Step::Sleep(ms) => rig.sleep(Duration::from_millis(*ms)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever happens, in whatever order: no key is installed twice, nothing is offered without
    /// its SAs, the core refuses nothing; and once it is quiet, what can carry does and what cannot
    /// does not, and says why.
    #[test]
    fn any_sequence_of_events_ends_in_the_desired_state(steps in prop::collection::vec(step(), 0..80)) {
        let mut rig = Rig::new();
        for step in &steps {
            take(&mut rig, step);
        }
        // The peers answer and the links are up: nothing but keys may keep a tunnel down.
        rig.settle_for(3);
        for name in ["a", "b", "c"] {
            rig.link(name, true);
            rig.liveness(name, true);
        }
        rig.settle_for(120);
        prop_assert!(rig.to_core.is_empty() && rig.from_core.is_empty() && rig.plan.is_none());
        let config = rig.turn.config().clone();
        prop_assert_eq!(rig.core.as_ref().unwrap().summary().0.len(), config.tunnels.len());
        let routes = config.routes.len() + config.tunnels.len();
        prop_assert_eq!(rig.core.as_ref().unwrap().stats(0).routes, routes as u64);
        for tunnel in &config.tunnels {
            let (state, reason) = rig.view(&tunnel.name);
            let core = rig.state(&tunnel.name);
            match state {
                State::Up | State::Standby => prop_assert_eq!(core, Some(TunnelState::Live)),
                State::Draining => prop_assert_eq!(core, Some(TunnelState::Draining)),
                State::Down => {
                    prop_assert_eq!(core, Some(TunnelState::Masked));
                    prop_assert!(reason.contains("manual keys"), "{}", reason);
                }
                State::Connecting => prop_assert!(false, "{} is connecting: {}", tunnel.name, reason),
            }
        }
        for (_, result) in &rig.replies {
            prop_assert!(result.as_ref().err().is_none_or(|lines| !lines.is_empty()));
        }
    }
}

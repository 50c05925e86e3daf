//! BFD between two cores as they ship, over the loopback device: up, down when the other one is killed, masked
//! before it is told, whether or not a control is there.

mod played;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use braid_api::{
    Allowed, Answer, Bfd, BfdState, BfdStats, BootId, Cause, DfPolicy, Direction, Encapsulation, Epoch,
    Event, FromCore, Op, Query, RejectReason, Sa, SaId, SecretKey, Selectors, Spi, Suite, ToCore,
    Transaction, Tunnel, TunnelId, TunnelState, TunnelStats, Verdict,
};

use played::{PATIENCE, Tables, World};

const TUNNEL: TunnelId = TunnelId(0);
/// Patient: a machine under load keeps processes off the processor for longer than BFD may be told to wait.
const TIMING: (Duration, u8) = (Duration::from_millis(100), 5);

fn inside(host: u8, v6: bool) -> IpAddr {
    if v6 { format!("fd00::{host}").parse().unwrap() } else { IpAddr::from([169, 254, 10, host]) }
}

fn session(host: u8, v6: bool) -> Bfd {
    Bfd { local: inside(host, v6), remote: inside(3 - host, v6), interval: TIMING.0, multiplier: TIMING.1 }
}

fn tunnel(host: u8, worlds: [&World; 2], bfd: Vec<Bfd>) -> Op {
    let [own, peer] = worlds;
    Op::PutTunnel(Tunnel {
        id: TUNNEL,
        name: "t".to_owned(),
        local: own.local,
        remote: Some(peer.local),
        uplink: None,
        follow_remote: false,
        encapsulation: Encapsulation::Udp,
        keepalive: false,
        inside: [false, true].map(|v6| inside(host, v6)).to_vec(),
        peer_inside: [false, true].map(|v6| inside(3 - host, v6)).to_vec(),
        path_mtu: 1500,
        clamp_mtu: 1400,
        df: DfPolicy::Honour,
        reach: Vec::new(),
        allowed: Allowed::Routed,
        probe: None,
        bfd,
    })
}

fn sas(host: u8, boot: BootId) -> [Op; 2] {
    let sa = |direction, sender: u8, id| {
        Op::PutSa(Sa {
            id: SaId(id),
            boot,
            tunnel: TUNNEL,
            direction,
            spi: Spi(0x1000 + u32::from(sender)),
            suite: Suite::Aes128Gcm16,
            key: SecretKey::new((0..20).map(|at| at ^ sender).collect()),
            esn: false,
            replay_window: 64,
            selectors: Selectors::default(),
        })
    };
    [sa(Direction::In, 3 - host, 1), sa(Direction::Out, host, 2)]
}

/// A core with its control.
struct Side {
    tables: Tables,
    epoch: u64,
}

impl Side {
    fn connect(world: &World) -> Self {
        Side { tables: Tables::connect(&world.dir), epoch: 0 }
    }

    /// Applies operations; the events that came before the answer are dropped.
    fn apply(&mut self, ops: Vec<Op>) -> Result<(), RejectReason> {
        self.epoch += 1;
        self.tables.send(&ToCore::Apply(Transaction { epoch: Epoch(self.epoch), ops }));
        loop {
            match self.tables.receive() {
                FromCore::Applied { .. } => return Ok(()),
                FromCore::Rejected(rejected) => return Err(rejected.reason),
                _ => {}
            }
        }
    }

    /// The next verdict: what, after what silence, how long before it was masked.
    fn verdict(&mut self) -> (Verdict, Duration, Duration) {
        loop {
            if let FromCore::Event(Event::Liveness { tunnel, verdict, cause, silent, detected, masked }) =
                self.tables.receive()
            {
                assert_eq!((tunnel, cause), (TUNNEL, Cause::Bfd));
                return (verdict, silent, Duration::from_nanos(masked.checked_sub(detected).unwrap()));
            }
        }
    }

    fn stats(&mut self) -> TunnelStats {
        let Answer::Stats(mut stats) = self.tables.ask(Query::Stats) else { panic!("another answer") };
        stats.tunnels.remove(0)
    }

    fn await_bfd(&mut self, what: &str, fits: impl Fn(&[BfdStats]) -> bool) -> Vec<BfdStats> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let bfd = self.stats().bfd;
            if fits(&bfd) {
                return bfd;
            }
            assert!(Instant::now() < deadline, "{what}: {bfd:?}");
        }
    }
}

fn connected(name: &str, families: &[bool]) -> ([World; 2], [Side; 2]) {
    let worlds = [1, 2].map(|host| World::new(&format!("{name}-{host}")));
    let sides = [0, 1].map(|index: usize| {
        let (own, peer, host) = (&worlds[index], &worlds[1 - index], index as u8 + 1);
        let mut side = Side::connect(own);
        let bfd = families.iter().map(|v6| session(host, *v6)).collect();
        let boot = side.tables.boot;
        let ops = [tunnel(host, [own, peer], bfd)].into_iter().chain(sas(host, boot));
        side.apply(ops.chain([Op::Unmask(TUNNEL)]).collect()).unwrap();
        side
    });
    (worlds, sides)
}

fn all_up(count: usize) -> impl Fn(&[BfdStats]) -> bool {
    move |bfd| bfd.len() == count && bfd.iter().all(|session| session.state == BfdState::Up)
}

#[test]
fn a_core_that_is_killed_is_noticed_masked_and_told() {
    let ([_a, b], [mut side, _]) = connected("killed", &[false, true]);
    assert_eq!(side.verdict().0, Verdict::Up);
    let sessions = side.await_bfd("both families up", all_up(2));
    assert!(sessions.iter().all(|session| session.interval == TIMING.0), "{sessions:?}");
    assert_eq!(side.stats().state, TunnelState::Live);
    drop(b);
    let (verdict, silent, masking) = side.verdict();
    assert_eq!(verdict, Verdict::Down);
    assert!(silent >= TIMING.0 * u32::from(TIMING.1), "{silent:?}");
    assert!(masking < Duration::from_secs(1), "{masking:?}");
    let stats = side.stats();
    assert_eq!((stats.state, stats.masked_by_core), (TunnelState::Masked, true));
    assert!(stats.bfd.iter().any(|session| session.vote == Verdict::Down), "{stats:?}");
}

#[test]
fn sessions_outlive_control_and_what_is_put_again_goes_on() {
    let ([a, b], [mut side, mut far]) = connected("control", &[false]);
    assert_eq!((side.verdict().0, far.verdict().0), (Verdict::Up, Verdict::Up));
    drop(side);
    let mut side = Side::connect(&a);
    side.apply(vec![tunnel(1, [&a, &b], vec![session(1, false)]), Op::Sweep]).unwrap();
    side.await_bfd("still up", all_up(1));
    assert_eq!(side.stats().state, TunnelState::Live);
    // Another interval is agreed on, and the session stays up at both ends.
    let slower = Bfd { interval: 2 * TIMING.0, ..session(1, false) };
    side.apply(vec![tunnel(1, [&a, &b], vec![slower])]).unwrap();
    for side in [&mut side, &mut far] {
        side.await_bfd("the new interval", |bfd| bfd.iter().all(|session| session.interval == 2 * TIMING.0));
    }
    // What is no longer asked for ends without a failure at either end: the first event since it was up.
    side.apply(vec![tunnel(1, [&a, &b], Vec::new())]).unwrap();
    assert_eq!(side.verdict().0, Verdict::Withdrawn);
    assert_eq!(far.verdict().0, Verdict::Withdrawn);
    assert_eq!([side.stats().state, far.stats().state], [TunnelState::Live; 2]);
    side.await_bfd("gone", <[BfdStats]>::is_empty);
}

#[test]
fn sessions_that_cannot_be_are_refused() {
    let (a, b) = (World::new("refused-1"), World::new("refused-2"));
    let mut side = Side::connect(&a);
    let good = session(1, false);
    let bad = [
        vec![Bfd { interval: Duration::from_millis(9), ..good }],
        vec![Bfd { multiplier: 0, ..good }],
        vec![Bfd { local: inside(2, false), ..good }],
        vec![Bfd { remote: inside(2, true), ..good }],
        vec![good, Bfd { remote: IpAddr::from([169, 254, 10, 9]), ..good }],
    ];
    for bfd in bad {
        assert_eq!(side.apply(vec![tunnel(1, [&a, &b], bfd)]), Err(RejectReason::BadBfd));
    }
    side.apply(vec![tunnel(1, [&a, &b], vec![good, session(1, true)])]).unwrap();
    side.await_bfd("two sessions", |bfd| bfd.len() == 2);
}

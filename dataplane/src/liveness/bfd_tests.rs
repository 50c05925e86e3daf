//! Two ends of tunnels on a virtual clock: packets cross in a millisecond unless a direction is cut.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;

const MS: u64 = 1_000_000;
const CROSSING: u64 = MS;
const TUNNEL: TunnelId = TunnelId(7);
const INTERVAL: Duration = Duration::from_millis(50);

/// What one end said: when, and what.
type Told = Vec<(u64, Verdict, Duration)>;

struct Side {
    bfd: Bfd,
    host: u8,
    told: Told,
    heard: Option<u64>,
    random: u32,
}

/// Both ends, and what is under way to each.
struct Pair {
    sides: [Side; 2],
    under_way: [Vec<(u64, BfdPacket)>; 2],
    /// From this end.
    cut: [bool; 2],
    now: u64,
}

fn address(host: u8, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into()
    } else {
        Ipv4Addr::new(169, 254, 10, host).into()
    }
}

fn session(host: u8, v6: bool) -> braid_api::Bfd {
    let (local, remote) = (address(host, v6), address(3 - host, v6));
    braid_api::Bfd { local, remote, interval: INTERVAL, multiplier: 3 }
}

impl Side {
    fn new(host: u8) -> Self {
        Side { bfd: Bfd::new(), host, told: Vec::new(), heard: None, random: host.into() }
    }

    fn drain(&mut self, now: u64) -> Vec<(Key, [u8; LENGTH])> {
        let mut outcome = Outcome::default();
        let mut seed = self.random;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed
        };
        self.bfd.drain(now, &mut random, &mut outcome);
        self.random = seed;
        for vote in outcome.votes {
            assert_eq!(vote.tunnel, TUNNEL);
            self.told.push((now, vote.verdict, vote.silent));
        }
        outcome.packets
    }

    fn configure(&mut self, wanted: &[braid_api::Bfd], now: u64) {
        let mut random = || 77 + u32::from(self.host);
        self.bfd.configure(TUNNEL, wanted, now, &mut random);
    }

    fn state(&self, v6: bool) -> Option<BfdState> {
        Some(self.bfd.stats(Key { tunnel: TUNNEL, v6 })?.state)
    }

    fn verdicts(&self) -> Vec<Verdict> {
        self.told.iter().map(|told| told.1).collect()
    }
}

impl Pair {
    /// Both ends with sessions of these families.
    fn new(families: &[bool]) -> Self {
        let mut sides = [Side::new(1), Side::new(2)];
        for side in &mut sides {
            let wanted: Vec<braid_api::Bfd> = families.iter().map(|v6| session(side.host, *v6)).collect();
            side.configure(&wanted, 0);
        }
        Pair { sides, under_way: [Vec::new(), Vec::new()], cut: [false; 2], now: 0 }
    }

    fn run(&mut self, until: u64) {
        loop {
            for index in 0..2 {
                let sent = self.sides[index].drain(self.now);
                for (key, control) in sent.into_iter().filter(|_| !self.cut[index]) {
                    let packet = self.sides[index].carry(key, &control);
                    self.under_way[1 - index].extend(packet.map(|packet| (self.now + CROSSING, packet)));
                }
            }
            let due = self.sides.iter().map(|side| side.bfd.due());
            let arrivals = self.under_way.iter().flatten().map(|(at, _)| *at);
            let next = due.chain(arrivals).min().unwrap_or(u64::MAX).max(self.now);
            if next > until {
                self.now = until;
                return;
            }
            self.now = next;
            for index in 0..2 {
                let side = &mut self.sides[index];
                for (_, packet) in self.under_way[index].extract_if(.., |(at, _)| *at <= next) {
                    let taken = side.bfd.handle_packet(next, &packet);
                    // One that its user has disabled takes none, and for one that is gone none would come here.
                    let gone = side.state(packet.v6).is_none();
                    assert!(gone || matches!(taken, Ok(()) | Err(Discard::AdminDown)), "{taken:?}");
                }
                let heard = side.heard;
                side.bfd.handle_timeout(next, |_| Watch { heard, unread: None });
            }
        }
    }
}

impl Side {
    /// As the packet comes out at the other end, if it is of a session there.
    fn carry(&self, key: Key, control: &[u8; LENGTH]) -> Option<BfdPacket> {
        let mut bytes = [0; MAX_LENGTH];
        let len = self.bfd.write(key, control, &mut bytes);
        let parsed = crate::packet::parse(&bytes[..len]).expect("a packet");
        let peer = session(3 - self.host, key.v6);
        crate::forward::take_bfd(TUNNEL, &[peer], &parsed, &bytes[..len]).map(|taken| taken.expect("whole"))
    }
}

#[test]
fn silence_takes_a_session_down_and_it_comes_back() {
    for v6 in [false, true] {
        let mut pair = Pair::new(&[v6]);
        pair.run(3000 * MS);
        for side in &pair.sides {
            assert_eq!(side.verdicts(), [Verdict::Up]);
            assert!(side.told[0].0 <= 2100 * MS, "{:?}", side.told);
        }
        pair.cut = [true; 2];
        pair.run(4000 * MS);
        for side in &pair.sides {
            let (at, verdict, silent) = side.told[1];
            assert_eq!((verdict, side.told.len()), (Verdict::Down, 2));
            assert!((3100 * MS..=3150 * MS + CROSSING).contains(&at), "{at}");
            assert_eq!(silent, 3 * INTERVAL);
        }
        pair.cut = [false; 2];
        pair.run(8000 * MS);
        for side in &pair.sides {
            assert_eq!(side.verdicts(), [Verdict::Up, Verdict::Down, Verdict::Up]);
            assert_eq!(side.state(v6), Some(BfdState::Up));
        }
    }
}

#[test]
fn a_timer_beside_authenticated_packets_is_late_but_the_peers_word_counts() {
    let mut pair = Pair::new(&[false]);
    pair.run(3000 * MS);
    // B's control packets are lost, and other packets of B are authenticated all the time.
    pair.cut = [false, true];
    pair.sides[0].heard = Some(u64::MAX);
    pair.run(10_000 * MS);
    assert_eq!(pair.sides[0].verdicts(), [Verdict::Up]);
    // Nor does A hear that B is down: nothing of A's is lost, so that it is not.
    assert_eq!(pair.sides[1].verdicts(), [Verdict::Up]);
    // Now A is not reached any more, and B says so.
    pair.cut = [true, false];
    pair.run(11_000 * MS);
    assert_eq!(pair.sides[1].verdicts(), [Verdict::Up, Verdict::Down]);
    assert_eq!(pair.sides[0].verdicts(), [Verdict::Up, Verdict::Down]);
    assert_eq!(pair.sides[0].told[1].2, Duration::ZERO);
}

#[test]
fn a_peer_that_does_not_speak_bfd_says_nothing_of_the_tunnel() {
    let mut pair = Pair::new(&[false]);
    pair.cut = [false, true];
    pair.run(60_000 * MS);
    assert_eq!((pair.sides[0].verdicts(), pair.sides[1].verdicts()), (vec![], vec![]));
    assert_eq!(pair.sides[1].state(false), Some(BfdState::Init));
}

#[test]
fn what_is_put_again_goes_on_and_another_interval_is_agreed_on() {
    let mut pair = Pair::new(&[false]);
    pair.run(3000 * MS);
    let key = Key { tunnel: TUNNEL, v6: false };
    let before = pair.sides[0].bfd.voters.get(&key).unwrap().1.discriminator();
    let wanted = session(1, false);
    pair.sides[0].configure(&[wanted], pair.now);
    pair.run(4000 * MS);
    pair.sides[0].configure(&[braid_api::Bfd { interval: 4 * INTERVAL, multiplier: 5, ..wanted }], pair.now);
    pair.run(6000 * MS);
    let stats = pair.sides.each_ref().map(|side| side.bfd.stats(key).unwrap());
    assert_eq!(stats.map(|stats| stats.interval), [4 * INTERVAL; 2]);
    assert_eq!(stats.map(|stats| stats.detection), [3 * 4 * INTERVAL, 5 * 4 * INTERVAL]);
    assert_eq!(pair.sides[0].bfd.voters.get(&key).unwrap().1.discriminator(), before);
    for side in &pair.sides {
        assert_eq!(side.verdicts(), [Verdict::Up]);
    }
    // Another address is another session.
    pair.sides[0].configure(&[braid_api::Bfd { remote: address(9, false), ..wanted }], pair.now);
    pair.run(6001 * MS);
    assert_eq!(pair.sides[0].verdicts(), [Verdict::Up, Verdict::Withdrawn]);
}

#[test]
fn one_that_is_no_longer_asked_for_says_so_and_is_no_failure() {
    let mut pair = Pair::new(&[false]);
    pair.run(3000 * MS);
    pair.sides[0].configure(&[], pair.now);
    pair.run(4000 * MS);
    for side in &pair.sides {
        assert_eq!(side.verdicts(), [Verdict::Up, Verdict::Withdrawn]);
    }
    assert_eq!(pair.sides[0].state(false), Some(BfdState::AdminDown));
    // Asked for again before it has gone.
    pair.sides[0].configure(&[session(1, false)], pair.now);
    pair.run(9000 * MS);
    for side in &pair.sides {
        assert_eq!(side.verdicts(), [Verdict::Up, Verdict::Withdrawn, Verdict::Up]);
    }
    pair.sides[0].configure(&[], pair.now);
    pair.run(13_000 * MS);
    assert_eq!(pair.sides[0].state(false), None);
    assert_eq!(pair.sides[0].bfd.due(), u64::MAX);
}

#[test]
fn a_peer_that_disables_a_session_that_is_down_ends_its_vote() {
    let mut pair = Pair::new(&[false]);
    pair.run(3000 * MS);
    pair.cut = [true; 2];
    pair.run(4000 * MS);
    pair.sides[1].configure(&[], pair.now);
    pair.cut = [true, false];
    pair.run(5000 * MS);
    assert_eq!(pair.sides[0].verdicts(), [Verdict::Up, Verdict::Down, Verdict::Withdrawn]);
    assert_eq!(pair.sides[1].verdicts(), [Verdict::Up, Verdict::Down, Verdict::Withdrawn]);
}

#[test]
fn one_family_that_is_down_takes_the_tunnel_out_and_both_bring_it_back() {
    let mut pair = Pair::new(&[false, true]);
    pair.run(3000 * MS);
    assert_eq!(pair.sides[0].verdicts(), [Verdict::Up]);
    // The other end gives one of them up without a word.
    pair.sides[1].bfd.voters.remove(Key { tunnel: TUNNEL, v6: true });
    for side in &mut pair.sides {
        // Packets for a session that is gone are refused: here they are not even delivered.
        side.heard = None;
    }
    pair.cut = [true, false];
    pair.run(4000 * MS);
    assert_eq!(pair.sides[0].verdicts(), [Verdict::Up, Verdict::Down]);
    pair.cut = [false; 2];
    pair.sides[1].configure(&[session(2, false), session(2, true)], pair.now);
    pair.run(9000 * MS);
    assert_eq!(pair.sides[0].verdicts(), [Verdict::Up, Verdict::Down, Verdict::Up]);
    assert_eq!([false, true].map(|v6| pair.sides[0].state(v6)), [Some(BfdState::Up); 2]);
}

#[test]
fn a_tunnel_that_is_gone_leaves_nothing_behind() {
    let mut pair = Pair::new(&[false, true]);
    pair.run(3000 * MS);
    pair.sides[0].bfd.forget(TUNNEL);
    assert!(pair.sides[0].drain(pair.now).is_empty());
    assert_eq!(pair.sides[0].verdicts(), [Verdict::Up]);
    assert_eq!(pair.sides[0].bfd.due(), u64::MAX);
    assert_eq!(pair.sides[0].state(false), None);
}

#[test]
fn a_packet_from_further_away_is_discarded() {
    let mut pair = Pair::new(&[false]);
    pair.run(3000 * MS);
    let key = Key { tunnel: TUNNEL, v6: false };
    let mut random = || 1;
    let mut outcome = Outcome::default();
    pair.sides[1].bfd.voters.leave(key, pair.now);
    pair.sides[1].bfd.drain(pair.now, &mut random, &mut outcome);
    let packet = pair.sides[1].carry(key, &outcome.packets[0].1).expect("of the session");
    let mut far = packet;
    far.ttl = 254;
    assert_eq!(pair.sides[0].bfd.handle_packet(pair.now, &far), Err(Discard::Ttl));
    assert_eq!(pair.sides[0].state(false), Some(BfdState::Up));
    assert_eq!(pair.sides[0].bfd.handle_packet(pair.now, &packet), Ok(()));
    assert_eq!(pair.sides[0].state(false), Some(BfdState::Down));
}

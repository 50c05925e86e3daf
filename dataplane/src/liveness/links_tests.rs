//! Two ends of a path on a virtual clock: packets cross in a millisecond unless a direction is cut.

use std::net::Ipv4Addr;

use std::time::Duration;

use braid_api::Verdict;
use braid_bfd::packet::LENGTH;

use super::*;

const MS: u64 = 1_000_000;
const INTERVAL: Duration = Duration::from_millis(50);

fn address(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 9, 0, host).into()
}

fn link(host: u8, multihop: bool) -> BfdLink {
    let (local, remote) = (address(host), address(3 - host));
    let bfd = braid_api::Bfd { local, remote, interval: INTERVAL, multiplier: 3 };
    BfdLink { bfd, multihop, interface: (!multihop).then(|| "dx0".to_owned()) }
}

/// Two ends, and what each has said.
struct Pair {
    ends: [Links; 2],
    told: [Vec<(Verdict, Duration)>; 2],
    under_way: Vec<(u64, usize, [u8; LENGTH])>,
    ttl: u8,
    cut: bool,
    now: u64,
}

impl Pair {
    fn new(multihop: bool) -> Self {
        let mut ends = [Links::new(), Links::new()];
        for (host, end) in (1..).zip(&mut ends) {
            end.set(vec![link(host, multihop)], 0, &mut || 77 + u32::from(host));
        }
        Pair { ends, told: [Vec::new(), Vec::new()], under_way: Vec::new(), ttl: 255, cut: false, now: 0 }
    }

    fn key(side: usize) -> Key {
        let host = side as u8 + 1;
        Key { local: address(host), remote: address(3 - host) }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time.as_nanos() as u64;
        loop {
            for side in 0..2 {
                let mut outcome = Outcome::default();
                self.ends[side].handle_timeout(self.now);
                self.ends[side].drain(self.now, &mut || 7, &mut outcome);
                for (key, verdict, silent) in outcome.votes {
                    assert_eq!(key, Pair::key(side));
                    self.told[side].push((verdict, silent));
                }
                let arrives = self.now + MS;
                let packets = outcome.packets.into_iter().filter(|_| !self.cut);
                self.under_way.extend(packets.map(|(_, packet)| (arrives, 1 - side, packet)));
            }
            let due = self.ends.iter().map(Links::due).chain(self.under_way.iter().map(|(at, ..)| *at));
            self.now = due.min().unwrap_or(u64::MAX).max(self.now).min(until);
            if self.now == until {
                return;
            }
            let now = self.now;
            let arrived: Vec<_> = self.under_way.extract_if(.., |(at, ..)| *at <= now).collect();
            for (_, side, packet) in arrived {
                let (door, from) = (self.ends[side].door(Pair::key(side)), Pair::key(side).remote);
                if let Some(door) = door {
                    let _ = self.ends[side].handle_packet(now, &door, from, self.ttl, &packet);
                }
            }
        }
    }

    fn verdicts(&mut self, side: usize) -> Vec<Verdict> {
        self.told[side].drain(..).map(|(verdict, _)| verdict).collect()
    }
}

#[test]
fn a_session_speaks_once_it_was_up() {
    for multihop in [false, true] {
        let mut pair = Pair::new(multihop);
        pair.cut = true;
        pair.run(Duration::from_secs(20));
        // Nobody was ever heard: that is no verdict.
        assert_eq!(pair.verdicts(0), [Verdict::Withdrawn]);
        pair.cut = false;
        pair.run(Duration::from_secs(5));
        assert_eq!(
            (pair.verdicts(0), pair.verdicts(1)),
            (vec![Verdict::Up], vec![Verdict::Withdrawn, Verdict::Up])
        );
        pair.cut = true;
        pair.run(Duration::from_millis(250));
        let [(Verdict::Down, silent)] = pair.told[0][..] else { panic!("{:?}", pair.told) };
        assert!(silent >= 3 * INTERVAL && silent < 4 * INTERVAL, "{silent:?}");
        pair.cut = false;
        pair.told = [Vec::new(), Vec::new()];
        pair.run(Duration::from_secs(5));
        assert_eq!(pair.verdicts(0), [Verdict::Up]);
    }
}

#[test]
fn all_is_told_again_when_it_is_set_again() {
    let mut pair = Pair::new(false);
    pair.run(Duration::from_secs(5));
    pair.verdicts(0);
    let now = pair.now;
    pair.ends[0].set(vec![link(1, false)], now, &mut || 1);
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.verdicts(0), [Verdict::Up]);
    // Nothing of it was noticed there.
    assert_eq!(pair.verdicts(1), [Verdict::Withdrawn, Verdict::Up]);
}

#[test]
fn what_is_no_longer_asked_for_is_no_failure() {
    let mut pair = Pair::new(false);
    pair.run(Duration::from_secs(5));
    let now = pair.now;
    pair.told = [Vec::new(), Vec::new()];
    pair.ends[0].set(Vec::new(), now, &mut || 1);
    pair.run(Duration::from_secs(5));
    assert_eq!((pair.verdicts(0), pair.verdicts(1)), (vec![Verdict::Withdrawn], vec![Verdict::Withdrawn]));
    assert!(pair.ends[0].doors().is_empty() && pair.ends[0].stats(Pair::key(0), None).is_none());
    // Back at another distance, it is another session.
    pair.ends[0].set(vec![link(1, true)], pair.now, &mut || 1);
    assert_eq!(pair.ends[0].ports(Pair::key(0)).map(|(_, port)| port), Some(PORT_MULTIHOP));
}

#[test]
fn on_a_link_only_what_was_sent_there_counts() {
    // RFC 5881 section 5.
    let mut pair = Pair::new(false);
    pair.ttl = 254;
    pair.run(Duration::from_secs(10));
    assert_eq!(pair.verdicts(0), [Verdict::Withdrawn]);
    let mut far = Pair::new(true);
    far.ttl = 3;
    far.run(Duration::from_secs(10));
    assert_eq!(far.verdicts(0), [Verdict::Withdrawn, Verdict::Up]);
}

#[test]
fn a_packet_by_another_door_is_none_of_the_sessions() {
    let mut pair = Pair::new(false);
    let mut outcome = Outcome::default();
    pair.ends[1].handle_timeout(0);
    pair.ends[1].drain(0, &mut || 7, &mut outcome);
    let (_, packet) = outcome.packets[0];
    let right = pair.ends[0].door(Pair::key(0)).unwrap();
    let others = [
        Door { port: PORT_MULTIHOP, ..right.clone() },
        Door { interface: Some("eth1".to_owned()), ..right.clone() },
        Door { interface: None, ..right.clone() },
        Door { local: address(9), ..right.clone() },
    ];
    for door in &others {
        let discarded = pair.ends[0].handle_packet(0, door, address(2), 255, &packet);
        assert_eq!(discarded, Err(Discard::UnknownPeer), "{door:?}");
    }
    assert_eq!(pair.ends[0].handle_packet(0, &right, address(3), 255, &packet), Err(Discard::UnknownPeer));
    assert_eq!(pair.ends[0].handle_packet(0, &right, address(2), 255, &packet), Ok(()));
    // RFC 5881 section 4.
    assert!(pair.ends[0].ports(Pair::key(0)).unwrap().0 >= 49_152);
}

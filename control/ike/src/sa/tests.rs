//! What cannot be seen from outside: the queue of exchanges.

use std::net::SocketAddr;

use super::*;

struct Zeros;

impl Random for Zeros {
    fn fill(&mut self, out: &mut [u8]) {
        out.fill(0);
    }
}

#[allow(clippy::disallowed_methods)] // some instant to count from
fn established() -> (IkeSa, Instant) {
    let (now, settings, directory) = (Instant::now(), EndpointSettings::default(), Directory::default());
    let (mut effects, mut esp_spis, mut upcalls) = (VecDeque::new(), BTreeSet::new(), Vec::new());
    let (mut ids, mut counters) = (Ids::default(), Counters::default());
    let mut computations = Computations::default();
    let mut cx = Cx {
        now,
        unix_time: Duration::ZERO,
        rng: &mut Zeros,
        settings: &settings,
        effects: &mut effects,
        esp_spis: &mut esp_spis,
        ids: &mut ids,
        upcalls: &mut upcalls,
        directory: &directory,
        counters: &mut counters,
        computations: &mut computations,
        made: None,
    };
    let address = SocketAddr::from(([192, 0, 2, 1], 500));
    let path = Path { local: address, remote: address };
    (IkeSa::blank(&mut cx, true, (IkeSpi([1; 8]), IkeSpi([2; 8])), path, Phase::Established), now)
}

#[test]
fn exchanges_that_wait_are_bounded_and_the_last_word_is_always_said() {
    let (mut sa, now) = established();
    for number in 0..10 * MAX_QUEUE as u64 {
        sa.want(now, Want::DeleteChild(ChildId(number)));
        sa.want(now, Want::RekeyChild(ChildId(number)));
    }
    assert_eq!(sa.queue.len(), MAX_QUEUE);
    sa.want(now, Want::DeleteIke);
    sa.want(now, Want::DeleteIke);
    assert_eq!(sa.queue.len(), MAX_QUEUE + 1);
    assert_eq!(sa.queue.front(), Some(&(now, Want::DeleteIke)));
}

#[test]
fn an_exchange_waits_once_and_until_the_earliest_time_that_was_asked_for() {
    let (mut sa, now) = established();
    let later = now + Duration::from_secs(5);
    sa.want(later, Want::Probe);
    sa.want(now, Want::Probe);
    sa.want(later, Want::Probe);
    assert_eq!(sa.queue, [(now, Want::Probe)]);
    let moved =
        |port| Want::MoveAddresses(Path { local: SocketAddr::from(([192, 0, 2, 1], port)), ..sa.path });
    let (first, last) = (moved(1), moved(2));
    sa.want(now, first);
    sa.want(now, last);
    assert_eq!(sa.queue, [(now, Want::Probe), (now, last)], "where it is now is what counts");
}

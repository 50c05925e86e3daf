//! Two gateways on a simulated link that loses, delays and reorders; the clock is virtual, the seed fixed.

mod link;

use std::time::Duration;

use braid_bfd::{Config, DownCause, Event, State};
use link::{Link, Weather};
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn config(millis: u64, multiplier: u8) -> Config {
    Config::new(ms(millis), multiplier).unwrap()
}

fn fair() -> Weather {
    Weather { loss_percent: 0, longest_run: u32::MAX, delay: (MS, 2 * MS) }
}

/// A link on which both ends are up and fast, at 10 s.
fn established(seed: u64, config: Config) -> Link {
    let mut link = Link::new(seed, fair(), [config; 2]);
    link.run(10 * SECOND);
    assert!(link.both_up());
    link.events.clear();
    link
}

#[test]
fn two_ends_come_up_within_slow_start_and_are_fast_at_once() {
    for seed in 1..200 {
        let mut link = Link::new(seed, fair(), [config(50, 3); 2]);
        link.run(1100 * MS);
        assert!(link.both_up(), "seed {seed}");
        for end in 0..2 {
            assert_eq!(link.status(end).detection_time, ms(150), "seed {seed}");
            assert_eq!(link.status(end).tx_interval, ms(50), "seed {seed}");
        }
        link.run(60 * SECOND);
        assert_eq!(link.events.len(), 2, "seed {seed}: {:?}", link.events);
    }
}

#[test]
fn silence_is_detected_within_the_detection_time_and_never_before() {
    for (seed, (interval, multiplier)) in
        (1..).zip([(10, 3), (50, 3), (100, 5), (300, 2), (1000, 1)].repeat(20))
    {
        let mut link = established(seed, config(interval, multiplier));
        let detection = interval * u64::from(multiplier) * MS;
        let cut = link.now();
        link.cut = [true; 2];
        link.run(2 * detection + SECOND);
        for end in 0..2 {
            let [(at, event)] = link.events_of(end)[..] else { panic!("seed {seed}: {:?}", link.events) };
            // What was sent just before the cut may arrive up to a delay after it.
            assert!(at <= cut + 2 * MS + detection, "seed {seed}");
            assert_eq!(at, link.last_arrival[end].unwrap() + detection, "seed {seed}");
            let silent = Duration::from_nanos(detection);
            assert_eq!(event, Event::Down(DownCause::Expired { silent }), "seed {seed}");
        }
    }
}

#[test]
fn a_link_cut_one_way_takes_both_ends_down() {
    let mut link = established(7, config(50, 3));
    let cut = link.now();
    link.cut = [true, false];
    link.run(SECOND);
    let [(deaf, _)] = link.events_of(1)[..] else { panic!("{:?}", link.events) };
    let [(told, event)] = link.events_of(0)[..] else { panic!("{:?}", link.events) };
    assert!(deaf <= cut + 152 * MS);
    assert!(told <= deaf + 2 * MS, "the signalled down does not wait for a timer");
    assert!(matches!(event, Event::Down(DownCause::Signaled { .. })), "{event:?}");
}

#[test]
fn loss_below_a_detection_time_never_takes_a_session_down() {
    for seed in 1..100 {
        let mut link = established(seed, config(50, 3));
        // Two intervals of silence and the delays are less than three.
        link.weather = Weather { loss_percent: 30, longest_run: 1, delay: (MS, 40 * MS) };
        link.run(120 * SECOND);
        assert_eq!(link.events, [], "seed {seed}");
    }
}

#[test]
fn under_any_loss_a_session_goes_down_exactly_when_a_detection_time_was_silent() {
    let mut falls = 0;
    for seed in 1..100 {
        let mut link = established(seed, config(50, 3));
        link.weather = Weather { loss_percent: 40, longest_run: u32::MAX, delay: (MS, 90 * MS) };
        // The link itself compares every verdict with the arrivals that it saw.
        link.run(60 * SECOND);
        falls += link.events.iter().filter(|(_, _, event)| *event != Event::Up).count();
        link.weather = fair();
        link.run(10 * SECOND);
        assert!(link.both_up(), "seed {seed}");
    }
    assert!(falls > 100, "{falls}: the weather was too good to test anything");
}

#[test]
fn reordering_and_loss_of_poll_sequences_still_end_with_the_same_intervals() {
    for seed in 1..100 {
        let weather = Weather { loss_percent: 25, longest_run: 3, delay: (MS, 30 * MS) };
        let mut link = Link::new(seed, weather, [config(50, 5), config(80, 5)]);
        link.run(60 * SECOND);
        link.weather = fair();
        link.run(10 * SECOND);
        for end in 0..2 {
            assert_eq!(link.status(end).tx_interval, ms(80), "seed {seed}");
            assert_eq!(link.status(end).detection_time, ms(400), "seed {seed}");
        }
    }
}

#[test]
fn the_restart_of_one_end_is_signalled_and_healed() {
    for seed in 1..100 {
        let mut link = established(seed, config(50, 3));
        let at = link.now();
        link.restart(1, config(50, 3));
        link.run(1500 * MS);
        assert!(link.both_up(), "seed {seed}");
        let first = link.events_of(0)[0];
        assert!(matches!(first.1, Event::Down(DownCause::Signaled { .. })), "seed {seed}: {first:?}");
        assert!(first.0 <= at + 3 * MS, "seed {seed}: {first:?}");
        assert_eq!(link.events_of(0).len(), 2, "seed {seed}");
    }
}

#[test]
fn intervals_change_under_way_without_a_flap() {
    for seed in 1..50 {
        let mut link = established(seed, config(50, 3));
        link.weather = Weather { loss_percent: 20, longest_run: 1, delay: (MS, 4 * MS) };
        for (mine, theirs) in [(200, 50), (20, 300), (1500, 1500), (10, 10), (10, 700), (50, 50)] {
            link.configure(0, config(mine, 3));
            // The second change meets the first's poll sequence.
            link.run(15 * MS);
            link.configure(1, config(theirs, 3));
            link.run(12 * SECOND);
            assert_eq!(link.events, [], "seed {seed}: {mine} {theirs}");
            for end in 0..2 {
                assert_eq!(link.status(end).tx_interval, ms(mine.max(theirs)), "seed {seed}");
                assert_eq!(link.status(end).detection_time, ms(3 * mine.max(theirs)), "seed {seed}");
            }
        }
    }
}

#[test]
fn a_disabled_end_is_no_failure_and_comes_back() {
    let mut link = established(3, config(50, 3));
    link.disable(0);
    link.run(5 * SECOND);
    assert_eq!(
        link.events_of(1).last().map(|(_, event)| *event),
        Some(Event::Down(DownCause::RemoteAdminDown))
    );
    assert_eq!((link.status(0).state, link.status(1).state), (State::AdminDown, State::Down));
    link.enable(0);
    link.run(2 * SECOND);
    assert!(link.both_up());
}

#[test]
fn traffic_that_the_path_authenticates_hides_the_loss_of_bfd_packets_and_its_end_is_seen() {
    let mut link = established(5, config(50, 3));
    link.cut = [true; 2];
    link.traffic_until = link.now() + 10 * SECOND;
    let ends = link.traffic_until;
    link.run(9 * SECOND);
    assert_eq!(link.events, []);
    link.run(2 * SECOND);
    for end in 0..2 {
        let [(at, _)] = link.events_of(end)[..] else { panic!("{:?}", link.events) };
        assert!((ends..=ends + 150 * MS).contains(&at), "{at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_ends_come_up_after_the_link_heals(
        seed in 1..u64::MAX,
        intervals in [10u64..2000, 10..2000],
        multipliers in [2u8..10, 2..10],
        loss_percent in 0u32..100,
        slowest in 1u64..3000,
        restarts in proptest::collection::vec((0usize..2, 0u64..20_000), 0..4),
        cuts in any::<[bool; 2]>(),
    ) {
        let configs = [0, 1].map(|end| config(intervals[end], multipliers[end]));
        let weather = Weather { loss_percent, longest_run: u32::MAX, delay: (MS, slowest * MS) };
        let mut link = Link::new(seed, weather, configs);
        link.cut = cuts;
        for (end, after) in restarts {
            link.run(after * MS);
            link.restart(end, configs[end]);
        }
        link.run(30 * SECOND);
        link.cut = [false; 2];
        link.weather = fair();
        // What is on its way, a detection time of the slowest settings, and the handshake at slow start.
        link.run(3 * SECOND + 20 * SECOND + 10 * SECOND);
        prop_assert!(link.both_up(), "{:?} {:?}", link.status(0), link.status(1));
        link.events.clear();
        link.run(60 * SECOND);
        prop_assert_eq!(&link.events, &[]);
        for end in 0..2 {
            let slower = intervals[0].max(intervals[1]);
            prop_assert_eq!(link.status(end).tx_interval, ms(slower));
            prop_assert_eq!(link.status(end).detection_time, ms(slower * u64::from(multipliers[1 - end])));
        }
    }
}

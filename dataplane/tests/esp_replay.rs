//! The replay window at its edges, and against a model that remembers every number.

use std::collections::BTreeSet;

use braid_dataplane::esp::{Replay, ReplayError};
use proptest::prelude::*;

const LOW: u64 = 1 << 32;

/// What a packet with full number `seq` meets: only its low half is on the wire.
fn receive(window: &mut Replay, seq: u64) -> Result<u64, ReplayError> {
    let seq = window.check(seq as u32)?;
    window.commit(seq)?;
    Ok(seq)
}

fn accepted(window: &mut Replay, seq: u64) -> bool {
    receive(window, seq) == Ok(seq)
}

#[test]
fn zero_is_never_accepted_and_one_is_the_first() {
    for esn in [false, true] {
        let mut window = Replay::new(64, esn);
        assert_eq!(receive(&mut window, 0), Err(ReplayError::Replayed));
        assert_eq!(receive(&mut window, 1), Ok(1));
        assert_eq!(receive(&mut window, 1), Err(ReplayError::Replayed));
        assert_eq!(receive(&mut window, 0), Err(ReplayError::Replayed));
        assert_eq!(window.top(), 1);
    }
}

#[test]
fn a_check_changes_nothing_and_a_commit_catches_a_twin() {
    let mut window = Replay::new(128, false);
    assert_eq!(window.check(7), Ok(7));
    assert_eq!(window.check(7), Ok(7));
    assert_eq!(window.top(), 0);
    assert_eq!(window.commit(7), Ok(()));
    assert_eq!(window.commit(7), Err(ReplayError::Replayed));
    // Checked while in the window, committed when it has moved on.
    assert_eq!(window.check(8), Ok(8));
    assert_eq!(window.commit(8 + 128), Ok(()));
    assert_eq!(window.commit(8), Err(ReplayError::TooOld));
}

/// The oldest number that still counts is `top - window + 1`, whatever the window's size.
#[test]
fn both_edges() {
    for size in [64, 65, 127, 128, 129, 1000, 1024, 2048, 8191, 8192] {
        let w = size as u64;
        let mut window = Replay::new(size, false);
        assert_eq!(window.window(), size);
        assert!(accepted(&mut window, 9));
        assert!(accepted(&mut window, 8));
        assert!(!accepted(&mut window, 9));
        assert!(accepted(&mut window, w));
        assert!(accepted(&mut window, 1), "window {size}");
        assert!(accepted(&mut window, w + 1));
        assert_eq!(receive(&mut window, 1), Err(ReplayError::TooOld));
        assert_eq!(receive(&mut window, 2), Ok(2));
        assert_eq!(receive(&mut window, 2), Err(ReplayError::Replayed));
        // A jump by exactly the window leaves only the new number; by one less, the old top too.
        let top = w + 1;
        assert!(accepted(&mut window, top + w - 1));
        assert_eq!(receive(&mut window, top), Err(ReplayError::Replayed));
        assert!(accepted(&mut window, top + 2 * w - 1));
        assert_eq!(receive(&mut window, top + w - 1), Err(ReplayError::TooOld));
        for seq in top + w..top + 2 * w - 1 {
            assert!(accepted(&mut window, seq), "{seq} with window {size}");
        }
        for seq in top + w..top + 2 * w {
            assert_eq!(receive(&mut window, seq), Err(ReplayError::Replayed));
        }
    }
}

#[test]
fn order_does_not_matter_within_the_window() {
    for size in [64, 2048, 8192] {
        let w = size as u64;
        let mut upwards = Replay::new(size, true);
        assert!((1..=3 * w).all(|seq| accepted(&mut upwards, seq)));
        let mut downwards = Replay::new(size, true);
        assert!((1..=w).rev().all(|seq| accepted(&mut downwards, seq)));
        assert!((1..=w).rev().all(|seq| !accepted(&mut downwards, seq)));
        let mut odd_first = Replay::new(size, true);
        assert!((1..=w).step_by(2).all(|seq| accepted(&mut odd_first, seq)));
        assert!((2..=w).step_by(2).all(|seq| accepted(&mut odd_first, seq)));
    }
}

#[test]
fn far_jumps_forget_everything_behind() {
    let mut window = Replay::new(2048, false);
    for seq in 1..=2048 {
        assert!(accepted(&mut window, seq));
    }
    // Multiples of the ring's size land on the same words.
    for jump in [2048, 4096, 1 << 20, 1 << 31] {
        let top = window.top();
        assert!(accepted(&mut window, top + jump));
        assert!(accepted(&mut window, top + jump - 2047));
        assert_eq!(receive(&mut window, top + jump - 2048), Err(ReplayError::TooOld));
    }
}

#[test]
fn thirty_two_bits_end() {
    let mut window = Replay::new(64, false);
    let last = u64::from(u32::MAX);
    assert!(accepted(&mut window, last));
    assert_eq!(receive(&mut window, last), Err(ReplayError::Replayed));
    assert!(accepted(&mut window, last - 63));
    // Without ESN a number that has wrapped is an old one.
    for seq in [0, 1, 63, last - 64] {
        assert_eq!(receive(&mut window, seq), Err(ReplayError::TooOld));
    }
}

/// RFC 4303 appendix A2: the window lies across the low half's end.
#[test]
fn extended_numbers_wrap() {
    for size in [64, 1024, 8192] {
        let w = size as u64;
        let mut window = Replay::new(size, true);
        // Before the first packet, and in the first cycle, there is no cycle before.
        assert_eq!(receive(&mut window, LOW - 1), Err(ReplayError::TooOld));
        // Up to the end of the first cycle, in steps below half of it.
        for seq in [1 << 30, 2 << 30, 3 << 30, LOW - w / 2] {
            assert!(accepted(&mut window, seq));
        }
        assert!(accepted(&mut window, LOW - 1));
        assert!(accepted(&mut window, LOW), "low half 0 of the second cycle");
        assert!(accepted(&mut window, LOW + 2));
        assert_eq!(window.check(1), Ok(LOW + 1));
        assert_eq!(window.check(u32::MAX - 1), Ok(LOW - 2), "still of the first cycle");
        assert_eq!(receive(&mut window, LOW - 1), Err(ReplayError::Replayed));
        // Last number of the first cycle that counts; the one below it is read as one of the second.
        assert_eq!(window.check((LOW + 3 - w) as u32), Ok(LOW + 3 - w));
        assert_eq!(window.check((LOW + 2 - w) as u32), Ok(2 * LOW + 2 - w));
        // Case A again: the lower edge is 0 of the second cycle.
        assert!(accepted(&mut window, LOW + w - 1));
        assert_eq!(receive(&mut window, LOW), Err(ReplayError::Replayed));
        assert_eq!(window.check(u32::MAX), Ok(2 * LOW - 1));
        assert!(accepted(&mut window, LOW + w));
        assert_eq!(window.check(0), Ok(2 * LOW), "behind the window: of the cycle to come");
    }
}

#[test]
fn the_last_extended_number() {
    let mut window = Replay::new(64, true);
    assert_eq!(window.commit(u64::MAX), Ok(()));
    assert_eq!(window.check(u32::MAX), Err(ReplayError::Replayed));
    assert_eq!(window.check(u32::MAX - 63), Ok(u64::MAX - 63));
    assert_eq!(window.check(u32::MAX - 64), Err(ReplayError::TooOld));
    assert_eq!(window.check(0), Err(ReplayError::TooOld));
}

#[test]
fn sizes_are_bounded() {
    assert_eq!(Replay::new(0, false).window(), Replay::MIN);
    assert_eq!(Replay::new(usize::MAX, false).window(), Replay::MAX);
}

/// Remembers everything and looks for the full number by trying the three nearest cycles.
struct Model {
    window: u64,
    top: u64,
    seen: BTreeSet<u64>,
    esn: bool,
}

impl Model {
    fn expect(&self, seq_low: u32) -> Result<u64, ReplayError> {
        let seq = if self.esn {
            // RFC 4303 appendix A2: the least number with this low half that is not behind the window.
            let edge = i128::from(self.top) - i128::from(self.window) + 1;
            let cycle = i128::from(self.top >> 32);
            let seq = (cycle - 1..=cycle + 1)
                .map(|high| (high << 32) + i128::from(seq_low))
                .find(|&seq| seq >= edge)
                .expect("a cycle ahead is always ahead");
            u64::try_from(seq).map_err(|_| ReplayError::TooOld)?
        } else {
            u64::from(seq_low)
        };
        if seq + self.window <= self.top {
            Err(ReplayError::TooOld)
        } else if seq == 0 || self.seen.contains(&seq) {
            Err(ReplayError::Replayed)
        } else {
            Ok(seq)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Steps around the top, of all magnitudes, from anywhere near a cycle's end.
    #[test]
    fn agrees_with_the_model(
        size in prop_oneof![Just(64usize), Just(128), Just(2048), Just(8192), 64usize..8192],
        esn: bool,
        start in prop_oneof![1u64..20_000, LOW - 20_000..LOW, LOW..LOW + 20_000, Just(7 * LOW - 5)],
        steps in prop::collection::vec(
            prop_oneof![
                4 => -70i64..70,
                4 => -3000i64..3000,
                2 => -9000i64..9000,
                1 => -20_000i64..20_000,
                1 => 0i64..1 << 31,
            ],
            1..300,
        ),
        authentic in prop::collection::vec(any::<bool>(), 300),
    ) {
        let start = if esn { start } else { start.min(LOW - 1) };
        let mut window = Replay::new(size, esn);
        let mut model = Model { window: size as u64, top: 0, seen: BTreeSet::new(), esn };
        prop_assert_eq!(window.commit(start), Ok(()));
        model.top = start;
        model.seen.insert(start);
        for (step, authentic) in steps.into_iter().zip(authentic) {
            let seq_low = model.top.wrapping_add_signed(step) as u32;
            let expected = model.expect(seq_low);
            prop_assert_eq!(window.check(seq_low), expected, "{} after {}", seq_low, model.top);
            if let (Ok(seq), true) = (expected, authentic) {
                prop_assert_eq!(window.commit(seq), Ok(()));
                prop_assert_eq!(window.commit(seq), Err(ReplayError::Replayed));
                model.top = model.top.max(seq);
                model.seen.insert(seq);
            }
            prop_assert_eq!(window.top(), model.top);
        }
    }
}

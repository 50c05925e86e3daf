//! By which tunnel a flow came, where its answers are to leave by the same.
//!
//! A table of fixed size without chains: each flow has a set of four places, and a flow that finds them taken gets
//! that of the one that was silent longest. A flow that was forgotten goes by its hash, as all do without pins.
//!
//! All state is relaxed atomics: workers that meet in one place at the same moment lose one of two entries.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use braid_api::TunnelId;

const SETS: usize = 16_384;
const WAYS: usize = 4;
/// Seconds of silence after which a flow is a new one.
const IDLE: u16 = 600;
/// By so many seconds rounds of workers may have begun apart.
const APART: u16 = 8;
/// In place of a tunnel: the flow began on this side.
const OURS: u16 = u16::MAX;

/// The flows, by their symmetric hash.
pub struct Pins(Box<[[AtomicU64; WAYS]]>);

/// What a place holds: 32 bits of the hash, of which one is always set, the tunnel, and the second of the last packet.
#[derive(Clone, Copy)]
struct Entry(u64);

impl Entry {
    fn new(hash: u64, from: u16, second: u16) -> Self {
        Entry(u64::from(tag(hash)) << 32 | u64::from(from) << 16 | u64::from(second))
    }

    fn is(self, hash: u64, second: u16) -> bool {
        (self.0 >> 32) as u32 == tag(hash) && self.age(second) < IDLE
    }

    fn from(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Of an empty place: the most there is. A worker whose round began before that of another is not a day late.
    fn age(self, second: u16) -> u16 {
        match second.wrapping_sub(self.0 as u16) {
            _ if self.0 == 0 => u16::MAX,
            age if age > u16::MAX - APART => 0,
            age => age,
        }
    }
}

fn tag(hash: u64) -> u32 {
    hash as u32 | 1
}

fn second(nanos: u64) -> u16 {
    (nanos / 1_000_000_000) as u16
}

impl Pins {
    pub(super) fn new() -> Self {
        Pins((0..SETS).map(|_| [const { AtomicU64::new(0) }; WAYS]).collect())
    }

    /// A packet of a flow came by a tunnel. What began on this side stays with its hash.
    pub fn arrived(&self, hash: u64, tunnel: TunnelId, nanos: u64) {
        // The one number that means something else.
        if tunnel.0 >= u32::from(OURS) {
            return;
        }
        let second = second(nanos);
        let (place, known) = self.find(hash, second);
        let from = match known {
            Some(entry) if entry.from() == OURS => OURS,
            // A peer that moves its flow has it answered where it sends now.
            Some(_) | None => tunnel.0 as u16,
        };
        let entry = Entry::new(hash, from, second);
        if known.is_none_or(|known| known.0 != entry.0) {
            place.store(entry.0, Relaxed);
        }
    }

    /// A packet of a flow leaves: by this tunnel, if the flow came by one.
    pub fn departs(&self, hash: u64, nanos: u64) -> Option<TunnelId> {
        let second = second(nanos);
        let (place, known) = self.find(hash, second);
        let entry = Entry::new(hash, known.map_or(OURS, Entry::from), second);
        if known.is_none_or(|known| known.0 != entry.0) {
            place.store(entry.0, Relaxed);
        }
        (entry.from() != OURS).then(|| TunnelId(entry.from().into()))
    }

    /// What [`Pins::departs`] would answer, without changing anything.
    pub fn peek(&self, hash: u64, nanos: u64) -> Option<TunnelId> {
        let from = self.find(hash, second(nanos)).1?.from();
        (from != OURS).then(|| TunnelId(from.into()))
    }

    /// The flow's place and what it holds of it, or the place that it may take.
    fn find(&self, hash: u64, second: u16) -> (&AtomicU64, Option<Entry>) {
        let set = &self.0[(hash >> (u64::BITS - SETS.ilog2())) as usize % SETS];
        let mut oldest = (&set[0], 0);
        for place in set {
            let entry = Entry(place.load(Relaxed));
            if entry.is(hash, second) {
                return (place, Some(entry));
            }
            if entry.age(second) > oldest.1 {
                oldest = (place, entry.age(second));
            }
        }
        (oldest.0, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const A: TunnelId = TunnelId(3);
    const B: TunnelId = TunnelId(0);

    #[test]
    fn a_flow_is_answered_where_it_came_from_and_follows_its_peer() {
        let pins = Pins::new();
        assert_eq!(pins.peek(7 << 40, 0), None);
        pins.arrived(7 << 40, A, SECOND);
        assert_eq!(pins.departs(7 << 40, 2 * SECOND), Some(A));
        pins.arrived(7 << 40, B, 3 * SECOND);
        assert_eq!((pins.departs(7 << 40, 3 * SECOND), pins.peek(7 << 40, 3 * SECOND)), (Some(B), Some(B)));
        // Another worker's round has begun before.
        pins.arrived(8 << 40, A, 5 * SECOND);
        assert_eq!(pins.departs(8 << 40, 5 * SECOND - 1), Some(A));
        // Another flow in the same set is another one.
        assert_eq!(pins.peek(7 << 40 | 2, 3 * SECOND), None);
    }

    #[test]
    fn what_began_here_goes_by_its_hash_wherever_the_answers_come_from() {
        let pins = Pins::new();
        assert_eq!(pins.departs(9, 0), None);
        pins.arrived(9, A, SECOND);
        assert_eq!(pins.departs(9, SECOND), None);
        // After long silence it is whoever speaks first.
        let later = SECOND * (2 + u64::from(IDLE));
        pins.arrived(9, A, later);
        assert_eq!(pins.departs(9, later), Some(A));
        assert_eq!(pins.peek(9, later + SECOND * u64::from(IDLE)), None);
    }

    #[test]
    fn a_full_set_forgets_whoever_was_silent_longest() {
        let pins = Pins::new();
        let flow = |number: u64| number << 1;
        for number in 0..WAYS as u64 {
            pins.arrived(flow(number), A, SECOND * (10 + number));
        }
        assert_eq!(pins.departs(flow(0), SECOND * 20), Some(A));
        pins.arrived(flow(9), B, SECOND * 21);
        let held: Vec<_> =
            (0..WAYS as u64).map(|number| pins.peek(flow(number), SECOND * 21).is_some()).collect();
        assert_eq!(held, [true, false, true, true]);
        assert_eq!(pins.peek(flow(9), SECOND * 21), Some(B));
    }
}

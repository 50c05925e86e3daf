//! Coarse time for the buckets: 32 bits that wrap.

/// A moment in units of 100 µs, wrapping after five days.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticks(pub u32);

impl Ticks {
    /// Nanoseconds in a tick.
    pub const NANOS: u64 = 100_000;

    /// The tick of a monotonic time in nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Ticks((nanos / Self::NANOS) as u32)
    }

    /// Whether more than `ticks` have passed since `earlier`.
    ///
    /// A moment of another thread, slightly in the future, counts as now. What is over 59 hours old
    /// looks like the future once, which merely delays a move by one packet.
    pub const fn passed_since(self, earlier: Ticks, ticks: u32) -> bool {
        let elapsed = self.0.wrapping_sub(earlier.0) as i32;
        elapsed > 0 && elapsed as u32 > ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_and_ignores_the_future() {
        assert!(Ticks(5).passed_since(Ticks(u32::MAX - 5), 10));
        assert!(!Ticks(5).passed_since(Ticks(u32::MAX - 5), 11));
        assert!(!Ticks(100).passed_since(Ticks(101), 0));
        assert!(!Ticks(7).passed_since(Ticks(7), 0));
        assert_eq!(Ticks::from_nanos(1_000_000_000), Ticks(10_000));
    }
}

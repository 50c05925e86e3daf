//! The receive window: which sequence numbers have been seen.
//!
//! RFC 4303 section 3.4.3 for the rule, appendix A2 for inferring the high half of an extended sequence number,
//! RFC 6479 for the shape: a ring of words that is cleared as the window moves over them, never shifted.
//!
//! Invariant: bits of the ring stand for the numbers `(top - window, top]`; the ring is at least a word larger than the
//! window, so that a word that is cleared for new numbers holds none that still count.

use std::fmt;

/// Bits in a word of the ring.
const WORD: u64 = u64::BITS as u64;

/// The replay window of one inbound SA.
pub struct Replay {
    /// One bit a sequence number, `seq / 64 % words.len()`; the number of words is a power of two.
    words: Box<[u64]>,
    /// How many numbers up to `top` are told apart, in packets.
    window: u64,
    /// Highest sequence number authenticated so far; 0 before the first.
    top: u64,
    esn: bool,
}

/// Why a sequence number was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// It was received before, or is the number 0, which is never sent.
    Replayed,
    /// It is behind the window, or beyond the last number there is.
    TooOld,
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReplayError::Replayed => "sequence number received before",
            ReplayError::TooOld => "sequence number behind the replay window",
        })
    }
}

impl std::error::Error for ReplayError {}

impl Replay {
    /// The smallest window, in packets.
    pub const MIN: usize = 64;
    /// The largest window, in packets.
    pub const MAX: usize = 8192;

    /// An empty window of `window` packets, brought within [`Self::MIN`] and [`Self::MAX`].
    #[must_use]
    pub fn new(window: usize, esn: bool) -> Replay {
        let window = window.clamp(Replay::MIN, Replay::MAX) as u64;
        let words = (window.div_ceil(WORD) + 1).next_power_of_two();
        Replay { words: vec![0; words as usize].into_boxed_slice(), window, top: 0, esn }
    }

    /// Highest sequence number authenticated so far; 0 before the first.
    #[inline]
    #[must_use]
    pub fn top(&self) -> u64 {
        self.top
    }

    /// The window's size in packets.
    #[must_use]
    pub fn window(&self) -> usize {
        self.window as usize
    }

    /// The full sequence number of a packet that carries `seq_low`, if it may be new. Changes nothing: the packet
    /// is not authentic yet (RFC 4303 section 3.4.3).
    ///
    /// # Errors
    /// [`ReplayError`] if the packet need not be decrypted at all.
    #[inline]
    pub fn check(&self, seq_low: u32) -> Result<u64, ReplayError> {
        let seq = if self.esn { self.extend(seq_low)? } else { u64::from(seq_low) };
        self.judge(seq)?;
        Ok(seq)
    }

    /// Records `seq`, as [`Self::check`] returned it, once its packet has proved authentic.
    ///
    /// # Errors
    /// [`ReplayError`] if another packet with this number, or so many later ones that it is too old now, were
    /// recorded since the check: then this packet must not be used.
    #[inline]
    pub fn commit(&mut self, seq: u64) -> Result<(), ReplayError> {
        self.judge(seq)?;
        if seq > self.top {
            self.advance(seq);
        }
        let (word, bit) = self.place(seq);
        self.words[word] |= bit;
        Ok(())
    }

    /// RFC 4303 appendix A2.2: of the numbers with this low half, the one nearest to the window from its
    /// lower edge upwards.
    #[inline]
    fn extend(&self, seq_low: u32) -> Result<u64, ReplayError> {
        let top_low = self.top as u32;
        let top_high = (self.top >> 32) as u32;
        let edge = top_low.wrapping_sub(self.window as u32 - 1);
        let high = if u64::from(top_low) >= self.window - 1 {
            // Case A: the window lies within one cycle of the low half.
            if seq_low >= edge { Some(top_high) } else { top_high.checked_add(1) }
        } else {
            // Case B: it began in the cycle before.
            if seq_low >= edge { top_high.checked_sub(1) } else { Some(top_high) }
        };
        let high = high.ok_or(ReplayError::TooOld)?;
        Ok(u64::from(high) << 32 | u64::from(seq_low))
    }

    #[inline]
    fn judge(&self, seq: u64) -> Result<(), ReplayError> {
        if seq > self.top {
            return Ok(());
        }
        if self.top - seq >= self.window {
            return Err(ReplayError::TooOld);
        }
        let (word, bit) = self.place(seq);
        // RFC 4303 section 3.3.3: the first packet has number 1, so 0 is nobody's.
        if seq == 0 || self.words[word] & bit != 0 {
            return Err(ReplayError::Replayed);
        }
        Ok(())
    }

    /// Moves the window up to `seq`, clearing the words it enters.
    fn advance(&mut self, seq: u64) {
        let len = self.words.len() as u64;
        let entered = (seq / WORD - self.top / WORD).min(len);
        for n in 0..entered {
            self.words[((seq / WORD - n) & (len - 1)) as usize] = 0;
        }
        self.top = seq;
    }

    /// Word and bit of `seq`.
    #[inline]
    fn place(&self, seq: u64) -> (usize, u64) {
        let word = (seq / WORD) & (self.words.len() as u64 - 1);
        (word as usize, 1 << (seq % WORD))
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("window", &self.window)
            .field("top", &self.top)
            .field("esn", &self.esn)
            .finish_non_exhaustive()
    }
}

//! The tunnel-state array that every packet consults: masking a tunnel is one store.
//!
//! A byte holds bits, not a state, so that a drain outlives a mask, and a mask by the core's own
//! liveness thread commutes with what control sends at the same moment. The core masks by itself;
//! only control unmasks.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use braid_api::{TunnelId, TunnelState};

/// Most tunnels that the core holds.
pub const MAX_TUNNELS: usize = 65_536;

pub(super) const MASKED: u8 = 1;
pub(super) const DRAINING: u8 = 2;
pub(super) const BY_CORE: u8 = 4;

/// State of every tunnel id, shared by all threads.
#[derive(Clone, Debug)]
pub struct TunnelStates(Arc<[AtomicU8]>);

impl TunnelStates {
    /// All masked.
    pub fn new() -> Self {
        TunnelStates((0..MAX_TUNNELS).map(|_| AtomicU8::new(MASKED)).collect())
    }

    /// Where the tunnel stands; an id that no tunnel has is masked.
    pub fn get(&self, tunnel: TunnelId) -> TunnelState {
        match self.bits(tunnel) {
            bits if bits & MASKED != 0 => TunnelState::Masked,
            bits if bits & DRAINING != 0 => TunnelState::Draining,
            _ => TunnelState::Live,
        }
    }

    /// Neither masked nor draining.
    #[inline]
    pub fn is_live(&self, tunnel: TunnelId) -> bool {
        self.bits(tunnel) == 0
    }

    /// In no group's choice.
    #[inline]
    pub fn is_masked(&self, tunnel: TunnelId) -> bool {
        self.bits(tunnel) & MASKED != 0
    }

    /// Whether a verdict of the core's liveness thread has masked it.
    pub fn is_masked_by_core(&self, tunnel: TunnelId) -> bool {
        self.bits(tunnel) & BY_CORE != 0
    }

    /// Masks a tunnel by a verdict of the core; false when it was masked already.
    pub fn mask_by_core(&self, tunnel: TunnelId) -> bool {
        let Some(slot) = self.0.get(tunnel.0 as usize) else { return false };
        slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
            (bits & MASKED == 0).then_some(bits | MASKED | BY_CORE)
        })
        .is_ok()
    }

    pub(super) fn set(&self, tunnel: TunnelId, bits: u8) {
        if let Some(slot) = self.0.get(tunnel.0 as usize) {
            slot.fetch_or(bits, Ordering::AcqRel);
        }
    }

    pub(super) fn clear(&self, tunnel: TunnelId, bits: u8) {
        if let Some(slot) = self.0.get(tunnel.0 as usize) {
            slot.fetch_and(!bits, Ordering::AcqRel);
        }
    }

    #[inline]
    fn bits(&self, tunnel: TunnelId) -> u8 {
        self.0.get(tunnel.0 as usize).map_or(MASKED, |slot| slot.load(Ordering::Relaxed))
    }
}

impl Default for TunnelStates {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_outlives_a_mask() {
        let states = TunnelStates::new();
        let tunnel = TunnelId(7);
        assert_eq!(states.get(tunnel), TunnelState::Masked);
        states.clear(tunnel, MASKED | BY_CORE);
        states.set(tunnel, DRAINING);
        assert_eq!(states.get(tunnel), TunnelState::Draining);
        assert!(states.mask_by_core(tunnel) && !states.mask_by_core(tunnel));
        assert!(states.is_masked_by_core(tunnel));
        assert_eq!(states.get(tunnel), TunnelState::Masked);
        states.clear(tunnel, MASKED | BY_CORE);
        assert_eq!(states.get(tunnel), TunnelState::Draining);
        states.clear(tunnel, DRAINING);
        assert_eq!(states.get(tunnel), TunnelState::Live);
    }

    #[test]
    fn an_id_out_of_range_is_masked() {
        let states = TunnelStates::new();
        let beyond = TunnelId(MAX_TUNNELS as u32);
        states.clear(beyond, MASKED);
        assert!(states.is_masked(beyond) && !states.mask_by_core(beyond));
    }
}

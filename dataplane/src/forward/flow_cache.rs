//! Per-worker caches of what the tables said, stamped with the tables' generation.
//!
//! They hold where a flow's route leads (a tunnel, or a bucket of a group), never whether the tunnel
//! is up: that is asked for every packet.

use braid_api::{GroupId, TunnelId};

use crate::packet::FlowKey;

const FLOWS: usize = 1024;
const SOURCES: usize = 256;

/// Where a flow's route leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// This tunnel, masked or not.
    Tunnel(TunnelId),
    /// A group, by this bucket; a group of one has only bucket 0.
    Bucket(GroupId, u16),
}

#[derive(Clone, Copy)]
struct FlowEntry {
    key: FlowKey,
    generation: u64,
    way: Way,
}

/// Flow to way.
pub(super) struct FlowCache(Box<[FlowEntry]>);

impl FlowCache {
    pub(super) fn new() -> Self {
        let entry =
            FlowEntry { key: FlowKey::default(), generation: u64::MAX, way: Way::Tunnel(TunnelId(0)) };
        FlowCache(vec![entry; FLOWS].into_boxed_slice())
    }

    #[inline]
    pub(super) fn get(&self, key: &FlowKey, generation: u64) -> Option<Way> {
        let entry = &self.0[key.slot() % FLOWS];
        (entry.generation == generation && entry.key == *key).then_some(entry.way)
    }

    pub(super) fn put(&mut self, key: &FlowKey, generation: u64, way: Way) {
        self.0[key.slot() % FLOWS] = FlowEntry { key: *key, generation, way };
    }
}

#[derive(Clone, Copy)]
struct SourceEntry {
    src: u128,
    v6: bool,
    tunnel: TunnelId,
    generation: u64,
}

/// Inner sources that a tunnel was found to be allowed to send.
pub(super) struct SourceCache(Box<[SourceEntry]>);

impl SourceCache {
    pub(super) fn new() -> Self {
        let entry = SourceEntry { src: 0, v6: false, tunnel: TunnelId(0), generation: u64::MAX };
        SourceCache(vec![entry; SOURCES].into_boxed_slice())
    }

    #[inline]
    fn index(src: u128, tunnel: TunnelId) -> usize {
        let fold = src as u64 ^ (src >> 64) as u64 ^ u64::from(tunnel.0).rotate_left(32);
        (fold.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize % SOURCES
    }

    #[inline]
    pub(super) fn holds(&self, src: u128, v6: bool, tunnel: TunnelId, generation: u64) -> bool {
        let entry = &self.0[Self::index(src, tunnel)];
        entry.src == src && entry.v6 == v6 && entry.tunnel == tunnel && entry.generation == generation
    }

    pub(super) fn put(&mut self, src: u128, v6: bool, tunnel: TunnelId, generation: u64) {
        self.0[Self::index(src, tunnel)] = SourceEntry { src, v6, tunnel, generation };
    }
}

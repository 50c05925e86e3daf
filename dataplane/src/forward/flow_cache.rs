//! Per-worker caches of what the tables said, stamped with the tables' generation.
//!
//! They hold where a flow's route leads (a tunnel, or a bucket of a group), never whether the tunnel
//! is up: that is asked for every packet.

use braid_api::TunnelId;

use crate::packet::FlowKey;

const FLOWS: usize = 2048;
const SOURCES: usize = 256;

/// Where a flow's route leads. Ids are below 65,536: the writer holds them there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// This tunnel, masked or not.
    Tunnel(u16),
    /// A group, by this bucket, whose home is this tunnel; a group of one has only bucket 0.
    Bucket { group: u16, bucket: u16, home: u16 },
}

/// What is remembered of a flow: a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct FlowEntry {
    key: FlowKey,
    generation: u64,
    way: Way,
    last_run: u64,
}

/// Flow to way and last run, two flows to a set, the newer one first.
///
/// Invariant: a flow that is not in its set has no packet in a run that is younger than the set's
/// youngest `last_run`, with which it comes back.
pub(super) struct FlowCache(Box<[FlowEntry; FLOWS]>);

/// The place of a flow in the cache, until another flow is asked for.
#[derive(Clone, Copy)]
pub(super) struct Place(usize);

impl FlowCache {
    pub(super) fn new() -> Self {
        let entry =
            FlowEntry { key: FlowKey::default(), generation: u64::MAX, way: Way::Tunnel(0), last_run: 0 };
        FlowCache(Box::new([entry; FLOWS]))
    }

    /// The flow's place, which it has from now on.
    #[inline(always)]
    pub(super) fn place(&mut self, key: &FlowKey) -> Place {
        let newer = key.slot() * 2 % FLOWS;
        if self.0[newer].key == *key {
            Place(newer)
        } else if self.0[newer + 1].key == *key {
            Place(newer + 1)
        } else {
            self.replace_older(newer, *key);
            Place(newer)
        }
    }

    #[cold]
    #[inline(never)]
    fn replace_older(&mut self, newer: usize, key: FlowKey) {
        let last_run = self.0[newer].last_run.max(self.0[newer + 1].last_run);
        self.0[newer + 1] = self.0[newer];
        self.0[newer] = FlowEntry { key, generation: u64::MAX, way: Way::Tunnel(0), last_run };
    }

    /// Where the flow's route led in this generation of the tables.
    #[inline(always)]
    pub(super) fn way(&self, place: Place, generation: u64) -> Option<Way> {
        let entry = &self.0[place.0 % FLOWS];
        (entry.generation == generation).then_some(entry.way)
    }

    pub(super) fn set_way(&mut self, place: Place, generation: u64, way: Way) {
        let entry = &mut self.0[place.0 % FLOWS];
        (entry.generation, entry.way) = (generation, way);
    }

    /// The youngest run that the flow may have a packet in.
    #[inline(always)]
    pub(super) fn last_run(&mut self, place: Place) -> &mut u64 {
        &mut self.0[place.0 % FLOWS].last_run
    }
}

const _: () = assert!(size_of::<FlowEntry>() == 64);

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{parse, tests::udp4};

    fn key(port: u16) -> FlowKey {
        parse(&udp4([10, 1, 0, 2], [10, 2, 0, 2], (port, 2), b"")).unwrap().key
    }

    #[test]
    fn a_flow_that_comes_back_does_not_forget_its_run() {
        let mut cache = FlowCache::new();
        let first = key(0);
        let set = first.slot() * 2 % FLOWS;
        let same_set: Vec<FlowKey> =
            (0..u16::MAX).map(key).filter(|key| key.slot() * 2 % FLOWS == set).take(4).collect();
        for (key, run) in same_set.iter().zip([5, 7, 8, 9]) {
            let place = cache.place(key);
            assert!(*cache.last_run(place) < 10);
            *cache.last_run(place) = run;
            cache.set_way(place, 1, Way::Tunnel(run as u16));
        }
        for (key, run) in same_set.iter().zip([5, 7, 8, 9]) {
            let place = cache.place(key);
            assert!(*cache.last_run(place) >= run);
        }
    }

    #[test]
    fn a_way_holds_for_its_flow_and_its_generation() {
        let mut cache = FlowCache::new();
        let place = cache.place(&key(1));
        assert_eq!(cache.way(place, 0), None);
        cache.set_way(place, 3, Way::Tunnel(7));
        let again = cache.place(&key(1));
        assert_eq!((cache.way(again, 3), cache.way(again, 4)), (Some(Way::Tunnel(7)), None));
        let other = cache.place(&key(2));
        assert_eq!(cache.way(other, 3), None);
    }
}

//! ECMP groups: a flow's hash names a bucket, a bucket leads to a tunnel.
//!
//! Every bucket has a home and a second choice within each priority. Failures are an overlay: a bucket
//! whose tunnel is masked moves at once, no other bucket moves. Whatever is not urgent waits for an
//! idle gap of the bucket, so that no packet overtakes another: going home after a failure (the flows
//! born meanwhile are healthy flows), leaving a draining tunnel, following a change of members.
//!
//! Invariants:
//! - Where a bucket leads is decided by a packet, here, and remembered in the bucket; a group that
//!   replaces another keeps the other's buckets, and one that takes over a prefix follows them.
//! - A masked tunnel is never picked; a draining one only for what it holds, or when nothing else is left.
//! - All state is relaxed atomics: two workers that decide about one bucket at the same moment come to
//!   the same result, save that one of them may send the packet in hand the old way.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use braid_api::{Member, TunnelId, TunnelState};

use super::{
    Ticks, TunnelLive, TunnelStates,
    buckets::{BUCKETS, Choice, Share, choices, rank},
};

/// Silence of a bucket, in ticks, after which it may move to another tunnel: 10 ms.
///
/// It must exceed the difference of the two paths' delays, or a packet could overtake. Tunnels of one
/// gateway usually differ by a few milliseconds; where the probes show more, the difference is added.
pub const IDLE_GAP: u32 = 100;

/// Most members of a group.
pub const MAX_MEMBERS: usize = 256;

/// No tunnel has this id.
const NOWHERE: u32 = u32::MAX;

/// A group of one or more tunnels.
pub struct Group {
    /// What control has put.
    pub settings: braid_api::Group,
    /// Members by ascending tunnel.
    members: Box<[GroupMember]>,
    /// By descending priority.
    tiers: Box<[Tier]>,
    /// Members again, tier by tier.
    tiered: Box<[Share]>,
    /// None in a group of one.
    buckets: Option<Arc<[Bucket]>>,
}

struct GroupMember {
    tunnel: u32,
    live: Arc<TunnelLive>,
}

struct Tier {
    /// In `tiered`.
    members: Range<usize>,
    /// Empty when there is one member.
    choices: Box<[Choice]>,
}

/// What a bucket remembers: 16 bytes, four in a cache line.
struct Bucket {
    /// The tunnel that it leads to, or [`NOWHERE`].
    current: AtomicU32,
    /// [`Ticks`] of the last packet.
    seen: AtomicU32,
    packets: AtomicU32,
    bytes: AtomicU32,
}

/// Where a bucket leads, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BucketPath {
    /// Where it belongs while all is well.
    pub home: TunnelId,
    /// Where the next packet goes.
    pub now: Option<TunnelId>,
}

impl Group {
    /// A group of valid members, each with its tunnel's live part. `previous` is what it replaces.
    pub(super) fn new(
        settings: braid_api::Group,
        live: Vec<Arc<TunnelLive>>,
        previous: Option<&Group>,
        now: Ticks,
    ) -> Self {
        let mut members: Box<[GroupMember]> = settings
            .members
            .iter()
            .zip(live)
            .map(|(member, live)| GroupMember { tunnel: member.tunnel.0, live })
            .collect();
        members.sort_by_key(|member| member.tunnel);
        let (tiers, tiered) = tiers_of(&settings.members);
        let buckets = (members.len() > 1).then(|| inherit(previous, now));
        Group { settings, members, tiers, tiered, buckets }
    }

    /// Flows of another group are in this one from now on: what is idle here goes on where it was there.
    pub(super) fn take_over(&self, from: &Group, now: Ticks) {
        let Some(buckets) = &self.buckets else { return };
        // Which of its flows are busy, a group of one does not know.
        let alone = from.members.first().map_or(NOWHERE, |member| member.tunnel);
        for (bucket, slot) in (0..).zip(buckets.iter()) {
            let (current, seen) = match from.slot(bucket) {
                Some(slot) => (slot.current.load(Relaxed), slot.seen.load(Relaxed)),
                None => (alone, now.0),
            };
            let (here, ours) = (slot.current.load(Relaxed), Ticks(slot.seen.load(Relaxed)));
            let is_idle = || {
                let member = self.member(here).filter(|_| self.contains(TunnelId(current)));
                let gap = member.map(|member| self.delay_difference(member, TunnelId(current)));
                gap.is_some_and(|gap| now.passed_since(ours, IDLE_GAP.saturating_add(gap)))
                    && Ticks(seen).passed_since(ours, 0)
            };
            if current != NOWHERE && (here == NOWHERE || is_idle()) {
                slot.current.store(current, Relaxed);
                slot.seen.store(seen, Relaxed);
            }
        }
    }

    /// Whether it has one member only, and so no buckets.
    #[inline]
    pub fn is_single(&self) -> bool {
        self.buckets.is_none()
    }

    /// The bucket of a flow's hash.
    #[inline]
    pub fn bucket_of(&self, hash: u64) -> u16 {
        (hash >> (u64::BITS - BUCKETS.ilog2())) as u16
    }

    /// Where the bucket belongs while all is well.
    pub fn home(&self, bucket: u16) -> TunnelId {
        let Some(tier) = self.tiers.first() else { return TunnelId(NOWHERE) };
        TunnelId(u32::from(match tier.choices.get(usize::from(bucket) % BUCKETS) {
            Some(choice) => choice.home,
            None => self.tiered[tier.members.start].tunnel,
        }))
    }

    /// Where a packet in this bucket goes now; `None`: nowhere. Moves the bucket where it must or may.
    /// `home` is the bucket's ([`Self::home`]), which the caller remembers with the bucket.
    /// A bucket's last packet may have been `late` ticks later than `now` said when it was picked for.
    #[inline]
    pub fn pick(
        &self,
        bucket: u16,
        home: TunnelId,
        states: &TunnelStates,
        now: Ticks,
        late: u32,
    ) -> Option<TunnelId> {
        let Some(slot) = self.slot(bucket) else { return self.only(states) };
        let seen = slot.seen.load(Relaxed);
        if seen != now.0 {
            slot.seen.store(now.0, Relaxed);
        }
        let current = slot.current.load(Relaxed);
        if current == home.0 && states.is_live(home) {
            return Some(home);
        }
        let tunnel = self.decide(bucket, current, Ticks(seen), states, now, late)?;
        if tunnel.0 != current {
            slot.current.store(tunnel.0, Relaxed);
        }
        Some(tunnel)
    }

    /// What [`Self::pick`] would answer, without changing anything.
    pub fn peek(&self, bucket: u16, states: &TunnelStates, now: Ticks) -> BucketPath {
        let home = self.home(bucket);
        let now = match self.slot(bucket) {
            None => self.only(states),
            Some(slot) => self.decide(
                bucket,
                slot.current.load(Relaxed),
                Ticks(slot.seen.load(Relaxed)),
                states,
                now,
                0,
            ),
        };
        BucketPath { home, now }
    }

    /// Counts packets and inner bytes of a bucket. The counters wrap, and may miss a few when two
    /// workers count in one bucket at the same moment.
    #[inline]
    pub fn count(&self, bucket: u16, packets: u32, bytes: u32) {
        if let Some(slot) = self.slot(bucket) {
            slot.packets.store(slot.packets.load(Relaxed).wrapping_add(packets), Relaxed);
            slot.bytes.store(slot.bytes.load(Relaxed).wrapping_add(bytes), Relaxed);
        }
    }

    /// Packets and inner bytes counted in a bucket so far, wrapping.
    pub fn load(&self, bucket: u16) -> (u32, u32) {
        self.slot(bucket).map_or((0, 0), |slot| (slot.packets.load(Relaxed), slot.bytes.load(Relaxed)))
    }

    /// Whether the tunnel is a member, and not masked.
    #[inline]
    pub fn may_carry(&self, tunnel: TunnelId, states: &TunnelStates) -> bool {
        !states.is_masked(tunnel) && self.contains(tunnel)
    }

    /// Whether the tunnel is a member.
    #[inline]
    pub fn contains(&self, tunnel: TunnelId) -> bool {
        self.member(tunnel.0).is_some()
    }

    #[inline]
    fn slot(&self, bucket: u16) -> Option<&Bucket> {
        self.buckets.as_ref().map(|buckets| &buckets[usize::from(bucket) % BUCKETS])
    }

    fn only(&self, states: &TunnelStates) -> Option<TunnelId> {
        let tunnel = TunnelId(self.members.first()?.tunnel);
        (!states.is_masked(tunnel)).then_some(tunnel)
    }

    fn member(&self, tunnel: u32) -> Option<&GroupMember> {
        let index = self.members.binary_search_by_key(&tunnel, |member| member.tunnel).ok()?;
        Some(&self.members[index])
    }

    #[inline(never)]
    fn decide(
        &self,
        bucket: u16,
        current: u32,
        seen: Ticks,
        states: &TunnelStates,
        now: Ticks,
        late: u32,
    ) -> Option<TunnelId> {
        let member = self.member(current).filter(|_| !states.is_masked(TunnelId(current)));
        let Some(member) = member else { return self.choose(bucket, current, states) };
        let here = TunnelId(current);
        let gap = IDLE_GAP.saturating_add(late);
        if !now.passed_since(seen, gap) {
            return Some(here);
        }
        let there = self.choose(bucket, current, states)?;
        let gap = gap.saturating_add(self.delay_difference(member, there));
        Some(if there == here || now.passed_since(seen, gap) { there } else { here })
    }

    /// By how much the path that a bucket leaves is slower than the other, in ticks.
    fn delay_difference(&self, from: &GroupMember, to: TunnelId) -> u32 {
        let latency = |member: &GroupMember| member.live.latency();
        match (latency(from), self.member(to.0).and_then(latency)) {
            // The round trip bounds the way there. Above an hour, the difference is nonsense.
            (Some(from), Some(to)) => {
                let nanos = from.saturating_sub(to).as_nanos() as u64;
                (nanos / Ticks::NANOS).min(36_000_000) as u32
            }
            (None, _) | (_, None) => 0,
        }
    }

    /// Where a bucket should lead: the best tier that has a live member; failing that, a draining one.
    fn choose(&self, bucket: u16, current: u32, states: &TunnelStates) -> Option<TunnelId> {
        let among = |usable: &dyn Fn(u32) -> bool| {
            self.tiers.iter().find_map(|tier| self.choose_in(tier, bucket, current, usable))
        };
        among(&|tunnel| states.is_live(TunnelId(tunnel)))
            .or_else(|| among(&|tunnel| states.get(TunnelId(tunnel)) == TunnelState::Draining))
            .map(TunnelId)
    }

    fn choose_in(&self, tier: &Tier, bucket: u16, current: u32, usable: &dyn Fn(u32) -> bool) -> Option<u32> {
        let members = &self.tiered[tier.members.clone()];
        if let Some(choice) = tier.choices.get(usize::from(bucket) % BUCKETS) {
            let chosen =
                [choice.home, choice.second].into_iter().map(u32::from).find(|&tunnel| usable(tunnel));
            if chosen.is_some() {
                return chosen;
            }
        }
        // Both are gone. What the bucket has is as good as any other, and moves nothing.
        if usable(current) && members.iter().any(|member| u32::from(member.tunnel) == current) {
            return Some(current);
        }
        members
            .iter()
            .filter(|member| usable(u32::from(member.tunnel)))
            .min_by_key(|&&member| rank(bucket, member))
            .map(|member| u32::from(member.tunnel))
    }
}

/// Tiers by descending priority, and the members in their order, by ascending tunnel within a tier.
fn tiers_of(members: &[Member]) -> (Box<[Tier]>, Box<[Share]>) {
    let mut sorted = members.to_vec();
    sorted.sort_by_key(|member| (std::cmp::Reverse(member.priority), member.tunnel));
    // The writer holds tunnel ids below 65,536.
    let tiered: Box<[Share]> =
        sorted.iter().map(|member| Share { tunnel: member.tunnel.0 as u16, weight: member.weight }).collect();
    let mut tiers = Vec::new();
    let mut start = 0;
    for tier in sorted.chunk_by(|a, b| a.priority == b.priority) {
        let range = start..start + tier.len();
        let choices = if tier.len() > 1 { choices(&tiered[range.clone()]) } else { Box::default() };
        start = range.end;
        tiers.push(Tier { members: range, choices });
    }
    (tiers.into(), tiered)
}

/// The buckets of the group that is replaced. A group of one had none: all its flows were on that one
/// tunnel, and those that are busy shall stay there.
fn inherit(previous: Option<&Group>, now: Ticks) -> Arc<[Bucket]> {
    if let Some(buckets) = previous.and_then(|group| group.buckets.clone()) {
        return buckets;
    }
    let current = previous.and_then(|group| group.members.first()).map_or(NOWHERE, |member| member.tunnel);
    (0..BUCKETS)
        .map(|_| Bucket {
            current: AtomicU32::new(current),
            seen: AtomicU32::new(now.0),
            packets: AtomicU32::new(0),
            bytes: AtomicU32::new(0),
        })
        .collect()
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;

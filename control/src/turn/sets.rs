//! The ways that prefixes have in common, and as which of them the core gets groups.
//!
//! Invariants:
//! - What a neighbor says makes no more than [`MAX_GROUPS`] different groups wanted, besides one for each tunnel.
//!   What goes beyond that shares a group of which there is one already, or one of those: see [`Sets::fit`].
//! - No group has more members than the core takes.

use std::collections::{BTreeMap, BTreeSet};

use braid_api::GroupId;
use braid_dataplane::tables::MAX_MEMBERS;

use crate::{
    config::{Config, Link, Neighbor},
    desired::LearnedMember,
};

/// Groups with more than one tunnel, or with one at another share than the configured: each takes 64 KiB of the core,
/// so that these take 64 MiB, and every one costs time whenever the tables are built. Neighbors that mean no harm
/// have as many as there are different sets of them with the same prefix, which are dozens; but a neighbor may name
/// a thousand bandwidths with as many prefixes, and the core has numbers for 65,536.
pub(super) const MAX_GROUPS: usize = 1024;
/// From so many on, new ones are for the configured shares only, which are few: as long as there is room for those,
/// prefixes keep all of their tunnels.
pub(super) const MAX_UNEVEN: usize = MAX_GROUPS / 4 * 3;
/// Below this the next that do not fit are news again.
const ROOMY: usize = MAX_GROUPS / 4;
/// Sets with tunnels that stand by; new ones beyond have none.
pub(super) const MAX_STANDBY: usize = 512;

/// Index of a set.
pub(super) type SetId = u32;
pub(super) const NONE: u32 = u32::MAX;

/// Ways that prefixes share.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) struct Ways {
    pub(super) link: Option<Link>,
    pub(super) members: Members,
}

/// The tunnels among them, by name, with their shares: what a group is made of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) struct Members {
    pub(super) tunnels: Vec<(String, u16)>,
    pub(super) standby: Vec<(String, u16)>,
}

impl Members {
    fn without_standby(&self) -> Members {
        Members { tunnels: self.tunnels.clone(), standby: Vec::new() }
    }

    /// One tunnel, of those with the largest share the first.
    fn first(&self) -> Members {
        let first = self.tunnels.iter().rev().max_by_key(|(_, weight)| *weight);
        Members { tunnels: first.cloned().into_iter().collect(), standby: Vec::new() }
    }
}

#[derive(Debug)]
pub(super) struct Set {
    pub(super) ways: Ways,
    uses: usize,
    /// As one of [`Sets::counted`].
    is_counted: bool,
    /// In the tables as last built.
    pub(super) group: Option<GroupId>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Sets {
    sets: Vec<Set>,
    by_ways: BTreeMap<Ways, SetId>,
    free: Vec<SetId>,
    with_standby: usize,
    /// What counts against [`MAX_GROUPS`], by how many sets it is the members of: those differ in their links.
    counted: BTreeMap<Members, usize>,
    /// What the configuration says of each tunnel's share.
    weights: BTreeMap<String, u16>,
    is_crowded: bool,
    /// Sets have come or gone since the tables were built.
    pub(super) have_changed: bool,
}

impl Sets {
    pub(super) fn configure(&mut self, config: &Config) {
        self.weights = config.tunnels.iter().map(|tunnel| (tunnel.name.clone(), tunnel.weight)).collect();
        for neighbor in config.bgp.iter().flat_map(|bgp| &bgp.neighbors) {
            let of = neighbor.tunnel().and_then(|tunnel| self.weights.get_mut(tunnel));
            if let (Some(weight), Neighbor { weight: Some(own), .. }) = (of, neighbor) {
                *weight = *own;
            }
        }
    }

    pub(super) fn get(&self, id: SetId) -> Option<&Set> {
        self.sets.get(id as usize)
    }

    /// Whether prefixes have not got the ways that they were to have, for want of room.
    pub(super) fn is_crowded(&self) -> bool {
        self.is_crowded
    }

    /// Whether any set in use is so.
    pub(super) fn any(&self, is: impl Fn(&Set) -> bool) -> bool {
        self.by_ways.values().any(|id| self.get(*id).is_some_and(&is))
    }

    /// One more has these ways, or what of them there is room for. `held` are the core's groups with routes of ours:
    /// one that nobody wants any more takes its room until the last prefix has left it.
    pub(super) fn intern(&mut self, mut ways: Ways, held: usize) -> SetId {
        let Members { tunnels, standby } = &mut ways.members;
        tunnels.truncate(MAX_MEMBERS);
        standby.truncate(MAX_MEMBERS - tunnels.len());
        if let Some(id) = self.share(&ways) {
            return id;
        }
        self.fit(&mut ways, held);
        if ways == Ways::default() {
            return NONE;
        }
        if let Some(id) = self.share(&ways) {
            return id;
        }
        self.with_standby += usize::from(!ways.members.standby.is_empty());
        let is_counted = self.counts(&ways.members);
        if is_counted {
            *self.counted.entry(ways.members.clone()).or_default() += 1;
        }
        let set = Set { ways: ways.clone(), uses: 1, is_counted, group: None };
        let free = self.free.pop();
        let id = match free.and_then(|id| Some((id, self.sets.get_mut(id as usize)?))) {
            Some((id, slot)) => {
                *slot = set;
                id
            }
            None => {
                self.sets.push(set);
                (self.sets.len() - 1) as SetId
            }
        };
        self.by_ways.insert(ways, id);
        self.have_changed = true;
        id
    }

    /// One more has a set that is there.
    fn share(&mut self, ways: &Ways) -> Option<SetId> {
        let id = *self.by_ways.get(ways)?;
        self.sets.get_mut(id as usize)?.uses += 1;
        Some(id)
    }

    /// One less has it.
    pub(super) fn release(&mut self, id: SetId) {
        let Some(set) = self.sets.get_mut(id as usize) else { return };
        set.uses -= 1;
        if set.uses > 0 {
            return;
        }
        set.group = None;
        let ways = core::mem::take(&mut set.ways);
        if core::mem::take(&mut set.is_counted)
            && let Some(count) = self.counted.get_mut(&ways.members)
        {
            *count -= 1;
            if *count == 0 {
                self.counted.remove(&ways.members);
            }
        }
        self.by_ways.remove(&ways);
        self.with_standby -= usize::from(!ways.members.standby.is_empty());
        self.is_crowded &= self.counted.len() >= ROOMY;
        self.free.push(id);
        self.have_changed = true;
    }

    /// Makes of the ways of a prefix what there is room for: all of them; without those that stand by; with the
    /// configured shares; one tunnel, of those with the largest share. Prefixes that have come into the groups of
    /// others stay there until BGP chooses anew for them.
    fn fit(&mut self, ways: &mut Ways, held: usize) {
        let full = ways.members.clone();
        if self.admit(ways, &full, held) || self.admit(ways, &full.without_standby(), held) {
            return;
        }
        self.is_crowded = true;
        let even = self.as_configured(&full);
        if self.admit(ways, &even, held) || self.admit(ways, &even.without_standby(), held) {
            return;
        }
        ways.members = self.as_configured(&full.first());
    }

    /// Whether a set with these members exists or there is room for it; then they are its ways.
    fn admit(&self, ways: &mut Ways, members: &Members, held: usize) -> bool {
        let before = core::mem::replace(&mut ways.members, members.clone());
        let is_admitted = self.by_ways.contains_key(ways)
            || (members.standby.is_empty() || self.with_standby < MAX_STANDBY)
                && self.has_room(members, held);
        if !is_admitted {
            ways.members = before;
        }
        is_admitted
    }

    fn has_room(&self, members: &Members, held: usize) -> bool {
        if !self.counts(members) || self.counted.contains_key(members) {
            return true;
        }
        let most = if *members == self.as_configured(members) { MAX_GROUPS } else { MAX_UNEVEN };
        self.counted.len() < most && held < 2 * MAX_GROUPS + self.weights.len()
    }

    fn as_configured(&self, members: &Members) -> Members {
        let mut members = members.clone();
        for (tunnel, weight) in members.tunnels.iter_mut().chain(&mut members.standby) {
            *weight = self.weight(tunnel);
        }
        members
    }

    /// Of those that do not, there are no more than tunnels.
    fn counts(&self, members: &Members) -> bool {
        match (&members.tunnels[..], &members.standby[..]) {
            ([], []) => false,
            ([(tunnel, weight)], []) => *weight != self.weight(tunnel),
            _ => true,
        }
    }

    fn weight(&self, tunnel: &str) -> u16 {
        self.weights.get(tunnel).copied().unwrap_or(1)
    }

    /// The members of those that are in use.
    pub(super) fn groups(&self) -> Vec<Vec<LearnedMember<'_>>> {
        fn members(tunnels: &[(String, u16)], standby: bool) -> impl Iterator<Item = LearnedMember<'_>> {
            tunnels.iter().map(move |(tunnel, weight)| LearnedMember { tunnel, weight: *weight, standby })
        }
        fn of(ways: &Ways) -> Vec<LearnedMember<'_>> {
            let Members { tunnels, standby } = &ways.members;
            members(tunnels, false).chain(members(standby, true)).collect()
        }
        self.by_ways.keys().map(of).collect()
    }

    /// The tables were built, with these groups for [`Sets::groups`]; those whose group is another now.
    pub(super) fn built(&mut self, groups: &[Option<GroupId>]) -> BTreeSet<SetId> {
        self.have_changed = false;
        let mut moved = BTreeSet::new();
        for (id, group) in self.by_ways.values().zip(groups) {
            if let Some(set) = self.sets.get_mut(*id as usize)
                && core::mem::replace(&mut set.group, *group) != *group
            {
                moved.insert(*id);
            }
        }
        moved
    }
}

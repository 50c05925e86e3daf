//! The decision process (RFC 4271 section 9.1) for one prefix: which path is best, which share the traffic with
//! it, and why the others do not.
//!
//! Paths are eliminated step by step, each step looking at all that remain, so that the order in which they
//! came never matters, not even for MEDs of several neighbor ASes.

use std::net::{IpAddr, Ipv4Addr};

use crate::attributes::{Attributes, GRACEFUL_SHUTDOWN};

/// LOCAL_PREF where nobody has set one.
pub const DEFAULT_LOCAL_PREF: u32 = 100;

/// Which paths may share traffic with the best one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Multipath {
    /// None.
    Off,
    /// Those that are equal up to the tie-breakers and have the same AS_PATH.
    Equal,
    /// Those that are equal up to the tie-breakers; the AS_PATH need only have the same length.
    Relaxed,
}

/// What is the same for all prefixes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecisionSettings {
    /// Whether traffic is shared.
    pub multipath: Multipath,
    /// By how many paths at most; at least one.
    pub max_paths: usize,
    /// Compare MEDs also of routes from different neighbor ASes.
    pub always_compare_med: bool,
    /// A missing MED is the worst one instead of the best, zero (RFC 4271 section 9.1.2.2 c).
    pub missing_med_is_worst: bool,
}

impl Default for DecisionSettings {
    fn default() -> Self {
        DecisionSettings {
            multipath: Multipath::Equal,
            max_paths: 64,
            always_compare_med: false,
            missing_med_is_worst: false,
        }
    }
}

/// A path that may be chosen: its next hop can be reached, and nothing speaks against it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its attributes.
    pub attributes: &'a Attributes,
    /// The peer is in another AS.
    pub external: bool,
    /// LOCAL_PREF for what external peers send.
    pub local_pref: u32,
    /// What it costs to reach the next hop.
    pub cost: u32,
    /// The peer's identifier.
    pub peer_id: Ipv4Addr,
    /// The peer's address.
    pub peer_address: IpAddr,
    /// Which of the peer's paths.
    pub path_id: u32,
    /// Which peer: the last resort.
    pub neighbor: u32,
}

impl Candidate<'_> {
    /// The degree of preference (RFC 4271 section 9.1.1): from internal peers LOCAL_PREF, from external ones what
    /// is configured. RFC 8326 section 4.2: a route that is about to go has none.
    pub fn preference(&self) -> u32 {
        if self.attributes.communities.contains(&GRACEFUL_SHUTDOWN) {
            return 0;
        }
        if self.external { self.local_pref } else { self.attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF) }
    }

    fn identifier(&self) -> Ipv4Addr {
        // RFC 4456 section 9: the originator's, if there is one.
        self.attributes.originator.unwrap_or(self.peer_id)
    }
}

/// What became of a path; the later, the further it came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// The import filter does not let the prefix pass.
    Filtered,
    /// Our AS number is in the AS_PATH, or we originated it.
    Looped,
    /// The next hop cannot be reached.
    Unreachable,
    /// Another has a higher preference.
    LocalPref,
    /// Another has a shorter AS_PATH.
    AsPathLength,
    /// Another has a better ORIGIN.
    Origin,
    /// Another from the same AS has a lower MED.
    Med,
    /// Another comes from outside.
    External,
    /// Another's next hop is nearer.
    Cost,
    /// Another peer's identifier is lower.
    Identifier,
    /// Another's CLUSTER_LIST is shorter.
    ClusterList,
    /// Another peer's address is lower.
    Address,
    /// Another of the same peer's paths is lower.
    PathId,
    /// It shares the traffic with the best.
    Multipath,
    /// It is the best.
    Best,
}

impl Reason {
    /// Whether the path carries traffic.
    pub fn chosen(self) -> bool {
        self >= Reason::Multipath
    }

    /// What a person reads.
    pub fn text(self) -> &'static str {
        match self {
            Reason::Filtered => "filtered on import",
            Reason::Looped => "our own AS in the path",
            Reason::Unreachable => "next hop not reachable",
            Reason::LocalPref => "lower local preference",
            Reason::AsPathLength => "longer AS path",
            Reason::Origin => "worse origin",
            Reason::Med => "higher MED from the same AS",
            Reason::External => "internal, while another is external",
            Reason::Cost => "next hop farther away",
            Reason::Identifier => "higher router identifier",
            Reason::ClusterList => "longer cluster list",
            Reason::Address => "higher neighbor address",
            Reason::PathId => "higher path identifier",
            Reason::Multipath => "equal to the best",
            Reason::Best => "best",
        }
    }
}

/// Says of each candidate what becomes of it: one is best if there is one at all.
pub fn decide(candidates: &[Candidate<'_>], settings: &DecisionSettings) -> Vec<Reason> {
    let mut reasons = vec![Reason::Best; candidates.len()];
    let mut alive: Vec<usize> = (0..candidates.len()).collect();
    let mut keep = Elimination { reasons: &mut reasons, alive: &mut alive };
    let of = |index: usize| &candidates[index];

    keep.lowest(Reason::LocalPref, |index| std::cmp::Reverse(of(index).preference()));
    // RFC 4271 section 9.1.2.2, a to g.
    keep.lowest(Reason::AsPathLength, |index| of(index).attributes.as_path.len());
    keep.lowest(Reason::Origin, |index| of(index).attributes.origin);
    keep.meds(candidates, settings);
    keep.lowest(Reason::External, |index| !of(index).external);
    keep.lowest(Reason::Cost, |index| of(index).cost);
    let equal = keep.alive.clone();
    keep.lowest(Reason::Identifier, |index| of(index).identifier());
    keep.lowest(Reason::ClusterList, |index| of(index).attributes.cluster_list.len());
    keep.lowest(Reason::Address, |index| of(index).peer_address);
    keep.lowest(Reason::PathId, |index| (of(index).path_id, of(index).neighbor));

    if let (Some(&best), true) = (alive.first(), settings.multipath != Multipath::Off && equal.len() > 1) {
        share(candidates, settings, best, equal, &mut reasons);
    }
    reasons
}

/// Of the paths that are equal but for the tie-breakers, in their order, those that may join the best.
fn share(
    candidates: &[Candidate<'_>],
    settings: &DecisionSettings,
    best: usize,
    mut equal: Vec<usize>,
    reasons: &mut [Reason],
) {
    equal.sort_by_key(|index| {
        let path = &candidates[*index];
        (
            path.identifier(),
            path.attributes.cluster_list.len(),
            path.peer_address,
            path.path_id,
            path.neighbor,
        )
    });
    let mut ways = vec![(candidates[best].neighbor, candidates[best].attributes.next_hop)];
    for index in equal {
        let path = &candidates[index];
        let way = (path.neighbor, path.attributes.next_hop);
        let alike = match settings.multipath {
            Multipath::Off => false,
            Multipath::Equal => path.attributes.as_path == candidates[best].attributes.as_path,
            Multipath::Relaxed => true,
        };
        // Two paths of one peer by the same next hop are one way.
        if alike && ways.len() < settings.max_paths && !ways.contains(&way) {
            ways.push(way);
            reasons[index] = Reason::Multipath;
        }
    }
}

struct Elimination<'a> {
    reasons: &'a mut [Reason],
    alive: &'a mut Vec<usize>,
}

impl Elimination<'_> {
    fn lowest<K: Ord>(&mut self, reason: Reason, key: impl Fn(usize) -> K) {
        if self.alive.len() < 2 {
            return;
        }
        let Some(lowest) = self.alive.iter().map(|index| key(*index)).min() else { return };
        self.retain(reason, |index| key(index) == lowest);
    }

    /// RFC 4271 section 9.1.2.2 c: of the routes from one neighbor AS, those with the lowest MED remain.
    fn meds(&mut self, candidates: &[Candidate<'_>], settings: &DecisionSettings) {
        if self.alive.len() < 2 {
            return;
        }
        let missing = if settings.missing_med_is_worst { u32::MAX } else { 0 };
        let med = |index: usize| candidates[index].attributes.med.unwrap_or(missing);
        let from = |index: usize| {
            // An empty AS_PATH of an internal peer stands for our own AS.
            (!settings.always_compare_med).then(|| candidates[index].attributes.neighbor_as())
        };
        let all = self.alive.clone();
        self.retain(Reason::Med, |index| {
            !all.iter().any(|other| from(*other) == from(index) && med(*other) < med(index))
        });
    }

    fn retain(&mut self, reason: Reason, keep: impl Fn(usize) -> bool) {
        let reasons = &mut *self.reasons;
        self.alive.retain(|index| {
            let kept = keep(*index);
            if !kept {
                reasons[*index] = reason;
            }
            kept
        });
    }
}

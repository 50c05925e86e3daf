//! The routing tables: what every neighbor sent (adj-RIB-in), and what was chosen of it (loc-RIB).
//!
//! One tree holds both: a prefix with its paths, each marked with what became of it. Attributes are shared, by
//! all routes of all neighbors that have the same. A change marks prefixes; [`Rib::decide`] looks at the marked
//! ones and yields what is different for whoever forwards. Work is proportional to what has changed.
//!
//! Invariants: a neighbor's `routes` are exactly its paths in the tree; a prefix in the tree has a path or is
//! marked; a path that is chosen stays in the forwarder's table until a [`Change`] says otherwise. What is gone with a
//! session is taken out in portions, by [`Rib::decide`]; it is no choice meanwhile, and is not counted.

pub mod decision;
mod interner;
mod path;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;

use crate::{
    attributes::Attributes,
    config::RouteLimit,
    policy::PrefixFilter,
    update::{Family, Nlri, Update},
};
use decision::{Candidate, DEFAULT_LOCAL_PREF, DecisionSettings, Reason, decide};
use interner::Interner;
use path::{Entry, Path};
use source::{Age, Source};

/// A neighbor, by the number that the caller has given it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NeighborId(pub u32);

/// Tells whether next hops can be reached.
pub trait Resolver {
    /// What it costs to reach the next hop that this neighbor named in these; `None` if it cannot be reached. Lower
    /// is nearer; an own address cannot be reached.
    fn cost(&self, neighbor: NeighborId, attributes: &Attributes) -> Option<u32>;

    /// Whether the way there is a link of the kernel's, beside what this gateway forwards itself. Such a path never
    /// stands by.
    fn is_link(&self, _neighbor: NeighborId, _attributes: &Attributes) -> bool {
        false
    }

    /// Whether two next hops are reached by the same tunnel, so that neither stands in for the other.
    fn is_same_way(&self, one: (NeighborId, IpAddr), other: (NeighborId, IpAddr)) -> bool {
        one == other
    }
}

/// What is configured of a neighbor, as far as its routes are concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImportSettings {
    /// It is in another AS.
    pub external: bool,
    /// Which prefixes pass.
    pub filter: PrefixFilter,
    /// The preference of what it sends, if it is external.
    pub local_pref: u32,
    /// Its share of the traffic among equal paths.
    pub weight: u32,
    /// How many routes it may send.
    pub limit: Option<RouteLimit>,
}

impl ImportSettings {
    /// An external neighbor whose routes all pass.
    pub fn external() -> Self {
        ImportSettings {
            external: true,
            filter: PrefixFilter::all(),
            local_pref: DEFAULT_LOCAL_PREF,
            weight: 1,
            limit: None,
        }
    }
}

/// A path that carries traffic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// Who sent it.
    pub neighbor: NeighborId,
    /// Where packets go.
    pub next_hop: IpAddr,
    /// Its share, relative to the others.
    pub weight: u32,
    /// Its attributes.
    pub attributes: Arc<Attributes>,
}

/// Another choice for a prefix: the best path first, then those that share its traffic; none: it is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The prefix.
    pub prefix: IpNet,
    /// The paths.
    pub paths: Vec<Chosen>,
    /// What would be chosen if there were none of these, and no links: where packets go until there is another
    /// choice. Behind a best path over a link, what would be chosen if there were no links.
    pub standby: Vec<Chosen>,
}

/// A path, and what became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explained {
    /// Who sent it.
    pub neighbor: NeighborId,
    /// Which of its paths.
    pub path_id: u32,
    /// Its attributes.
    pub attributes: Arc<Attributes>,
    /// Its sender has gone and may come back (RFC 4724).
    pub stale: bool,
    /// What became of it, and why.
    pub reason: Reason,
}

/// How many routes a neighbor has sent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// All that it holds up.
    pub received: usize,
    /// Those that passed the filter and have no loop.
    pub accepted: usize,
    /// Those that are kept although it has gone.
    pub stale: usize,
    /// Paths that were not taken since the session began, beyond [`MAX_PATHS`] to their prefixes.
    pub left_out: u64,
}

/// Something about a neighbor's number of routes that its user should know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// It nears its limit. Said once, and again only after the number has fallen.
    NearLimit {
        /// Routes it holds up.
        received: u32,
        /// And may.
        most: u32,
    },
    /// It sends more paths to a prefix than are taken. Said once a session.
    TooManyPaths {
        /// Which prefix.
        prefix: IpNet,
    },
    /// It went beyond. What was beyond was not taken: the session is to be ended (RFC 4486 subcode 1).
    BeyondLimit {
        /// Routes it may hold up.
        most: u32,
    },
}

/// After a restart of ours, nothing is chosen before those who had sessions have said all (RFC 4724 section
/// 4.1), or until the deadline.
struct Deferral {
    until: Instant,
    waiting: BTreeSet<(NeighborId, Family)>,
}

/// All routes.
pub struct Rib {
    local_as: u32,
    router_id: Ipv4Addr,
    settings: DecisionSettings,
    sources: BTreeMap<NeighborId, Source>,
    table: BTreeMap<IpNet, Entry>,
    marked: BTreeSet<IpNet>,
    /// Neighbors with routes that are gone and still in the table.
    leaving: BTreeSet<NeighborId>,
    interner: Interner,
    deferral: Option<Deferral>,
}

impl Rib {
    /// An empty table of a speaker with this AS number and identifier.
    pub fn new(local_as: u32, router_id: Ipv4Addr, settings: DecisionSettings) -> Self {
        Rib {
            local_as,
            router_id,
            settings,
            sources: BTreeMap::new(),
            table: BTreeMap::new(),
            marked: BTreeSet::new(),
            leaving: BTreeSet::new(),
            interner: Interner::default(),
            deferral: None,
        }
    }

    /// A neighbor's numbers.
    pub fn counts(&self, neighbor: NeighborId) -> Counts {
        let source = self.sources.get(&neighbor).filter(|source| !source.removed);
        source.map_or(Counts::default(), |source| Counts {
            received: source.received(),
            // Those that are gone are not told apart.
            accepted: source.accepted.min(source.received()),
            stale: source.stale(),
            left_out: source.left_out,
        })
    }

    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether [`Rib::decide`] has something to do.
    pub fn pending(&self) -> bool {
        !self.leaving.is_empty() || !self.marked.is_empty() && self.deferral.is_none()
    }

    /// When [`Rib::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deferral.as_ref().map(|deferral| deferral.until)
    }

    /// What a neighbor sent, as it sent it.
    pub fn received(&self, neighbor: NeighborId) -> impl Iterator<Item = (Nlri, &Arc<Attributes>)> {
        let source = self.sources.get(&neighbor);
        let routes =
            source.into_iter().flat_map(|source| source.routes.iter().map(move |nlri| (source, nlri)));
        routes.filter_map(move |(source, nlri)| {
            let path = self.table.get(&nlri.prefix)?.find(neighbor, nlri.path_id)?;
            (source.age(&nlri.prefix, path) != Age::Dead).then_some((*nlri, &path.attributes))
        })
    }

    /// The prefixes with their best paths, as last decided.
    pub fn best(&self) -> impl Iterator<Item = (&IpNet, NeighborId, &Arc<Attributes>)> {
        self.table.iter().filter_map(|(prefix, entry)| {
            let best = entry.paths.iter().find(|path| path.outcome == Reason::Best)?;
            Some((prefix, best.neighbor, &best.attributes))
        })
    }

    /// All paths to a prefix, and what becomes of each now.
    pub fn explain(&self, prefix: &IpNet, resolver: &dyn Resolver) -> Vec<Explained> {
        let Some(entry) = self.table.get(prefix) else { return Vec::new() };
        let reasons = judge(&self.sources, &self.settings, (prefix, entry), resolver, |_| true);
        let explain = |(path, reason): (&Path, Reason)| {
            let age = self.sources.get(&path.neighbor).map_or(Age::Dead, |source| source.age(prefix, path));
            (age != Age::Dead).then(|| Explained {
                neighbor: path.neighbor,
                path_id: path.path_id,
                attributes: path.attributes.clone(),
                stale: age == Age::Stale,
                reason,
            })
        };
        let mut explained: Vec<_> = entry.paths.iter().zip(reasons).filter_map(explain).collect();
        explained.sort_by_key(|path| std::cmp::Reverse(path.reason));
        explained
    }

    /// Makes a neighbor known, or gives it other settings, under which all its routes are judged anew.
    pub fn put_neighbor(&mut self, neighbor: NeighborId, settings: ImportSettings) {
        let source = self.sources.entry(neighbor).or_insert_with(|| Source::new(settings.clone()));
        source.removed = false;
        if source.settings == settings {
            return;
        }
        source.settings = settings;
        source.accepted = 0;
        let routes: Vec<_> = source.routes.iter().copied().collect();
        for nlri in routes {
            let Some(entry) = self.table.get_mut(&nlri.prefix) else { continue };
            let Some(path) = entry.find_mut(neighbor, nlri.path_id) else { continue };
            let Some(source) = self.sources.get_mut(&neighbor) else { return };
            path.barred = bar(source, self.local_as, self.router_id, &nlri.prefix, &path.attributes);
            source.accepted += usize::from(path.barred.is_none());
            // Its weight may be another.
            entry.changed |= path.in_use();
            self.marked.insert(nlri.prefix);
        }
    }

    /// Forgets a neighbor and its routes.
    pub fn remove_neighbor(&mut self, neighbor: NeighborId) {
        self.down(neighbor, &[]);
        if let Some(source) = self.sources.get_mut(&neighbor) {
            (source.removed, source.warned, source.left_out) = (true, false, 0);
            if source.routes.is_empty() {
                self.sources.remove(&neighbor);
            } else {
                self.leaving.insert(neighbor);
            }
        }
        if let Some(deferral) = &mut self.deferral {
            deferral.waiting.retain(|(waiting, _)| *waiting != neighbor);
        }
        self.settle();
    }

    /// The session is established: the peer's identifier and address break ties.
    pub fn established(&mut self, neighbor: NeighborId, id: Ipv4Addr, address: IpAddr) {
        let Some(source) = self.sources.get_mut(&neighbor) else { return };
        source.left_out = 0;
        if (source.id, source.address) != (id, address) {
            (source.id, source.address) = (id, address);
            self.marked.extend(source.routes.iter().map(|nlri| nlri.prefix));
        }
    }

    /// The session has ended: routes of the families in `retain` become stale, all others go.
    pub fn down(&mut self, neighbor: NeighborId, retain: &[Family]) {
        let Some(source) = self.sources.get_mut(&neighbor) else { return };
        source.end_session();
        let lost: Vec<Family> =
            [Family::Ipv4, Family::Ipv6].into_iter().filter(|family| !retain.contains(family)).collect();
        self.sweep_stale(neighbor, &lost);
    }

    /// What is still stale of these families goes.
    pub fn sweep_stale(&mut self, neighbor: NeighborId, families: &[Family]) {
        let Some(source) = self.sources.get_mut(&neighbor) else { return };
        for family in families {
            if source.expel(*family) {
                self.leaving.insert(neighbor);
            }
        }
        let limit = source.settings.limit;
        source.warned &= limit.is_some_and(|limit| source.received() >= limit.warn_at as usize);
    }

    /// The peer has sent all of a family: what is stale goes, and our own restart waits for it no longer.
    pub fn end_of_rib(&mut self, neighbor: NeighborId, family: Family) {
        self.sweep_stale(neighbor, &[family]);
        if let Some(deferral) = &mut self.deferral {
            deferral.waiting.remove(&(neighbor, family));
        }
        self.settle();
    }

    /// We have restarted: nothing is chosen until all of these have sent all, at most until the deadline.
    pub fn defer(&mut self, until: Instant, waiting: impl IntoIterator<Item = (NeighborId, Family)>) {
        self.deferral = Some(Deferral { until, waiting: waiting.into_iter().collect() });
        self.settle();
    }

    /// The neighbor is not waited for: it has no graceful restart, or restarts itself.
    pub fn do_not_wait(&mut self, neighbor: NeighborId) {
        self.wait_only_for(neighbor, &[]);
    }

    /// Of the neighbor, only these families are waited for: of any other it will send no End-of-RIB.
    pub fn wait_only_for(&mut self, neighbor: NeighborId, families: &[Family]) {
        if let Some(deferral) = &mut self.deferral {
            deferral.waiting.retain(|(waiting, family)| *waiting != neighbor || families.contains(family));
        }
        self.settle();
    }

    /// Ends the deferral if its deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.deferral = self.deferral.take().filter(|deferral| deferral.until > now);
    }

    /// Takes what a neighbor sent.
    pub fn update(&mut self, neighbor: NeighborId, update: &Update) -> Option<Notice> {
        for nlri in &update.withdrawn {
            self.withdraw(neighbor, *nlri);
        }
        let mut notice = None;
        for announcement in &update.announced {
            let attributes = self.interner.intern(&announcement.attributes);
            for nlri in &announcement.nlri {
                notice = self.announce(neighbor, *nlri, &attributes).or(notice);
                if matches!(notice, Some(Notice::BeyondLimit { .. })) {
                    return notice;
                }
            }
        }
        notice
    }

    /// Next hops have come within reach or gone out of it, or have become nearer or farther: prefixes with a
    /// path of which `concerned` says so are judged anew.
    pub fn next_hops_changed(&mut self, mut concerned: impl FnMut(NeighborId, IpAddr) -> bool) {
        for (prefix, entry) in &self.table {
            if entry.paths.iter().any(|path| concerned(path.neighbor, path.attributes.next_hop)) {
                self.marked.insert(*prefix);
            }
        }
    }

    /// Chooses paths for at most `budget` of the prefixes that have changed; yields those where the choice is
    /// another.
    pub fn decide(&mut self, resolver: &dyn Resolver, budget: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        // Neither waits for the other.
        let searched = self.take_out(if self.marked.is_empty() { budget } else { budget.div_ceil(2) });
        if self.deferral.is_some() {
            return changes;
        }
        for _ in searched..budget {
            let Some(prefix) = self.marked.pop_first() else { break };
            let Some(entry) = self.table.get_mut(&prefix) else { continue };
            let reasons = judge(&self.sources, &self.settings, (&prefix, entry), resolver, |_| true);
            let behind = (reasons.len() > 1).then(|| {
                let is_link = |path: &Path| resolver.is_link(path.neighbor, &path.attributes);
                let best = entry.paths.iter().zip(&reasons).find(|(_, reason)| **reason == Reason::Best);
                let by_link = best.is_some_and(|(path, _)| is_link(path));
                // What goes where the best goes replaces nothing when that fails.
                let way = |path: &Path| (path.neighbor, path.attributes.next_hop);
                let chosen = entry.paths.iter().zip(&reasons).filter(|(_, reason)| reason.chosen());
                let taken: Vec<_> = chosen.map(|(path, _)| way(path)).collect();
                let is_taken =
                    |path: &Path| taken.iter().any(|taken| resolver.is_same_way(*taken, way(path)));
                let others = |path: &Path| !is_link(path) && (by_link || !is_taken(path));
                judge(&self.sources, &self.settings, (&prefix, entry), resolver, others)
            });
            let mut changed = std::mem::take(&mut entry.changed);
            for (index, (path, reason)) in entry.paths.iter_mut().zip(reasons).enumerate() {
                // Whoever forwards does not care why a path is not chosen.
                changed |= path.outcome != reason && (path.outcome.chosen() || reason.chosen());
                path.outcome = reason;
                let standby = behind.as_ref().is_some_and(|behind| behind[index].chosen());
                changed |= std::mem::replace(&mut path.standby, standby) != standby;
            }
            let gone = entry.paths.is_empty();
            if changed {
                changes.push(Change {
                    prefix,
                    paths: chosen(entry, &self.sources, |path| path.outcome.chosen()),
                    standby: chosen(entry, &self.sources, |path| path.standby),
                });
            }
            if gone {
                self.table.remove(&prefix);
            }
        }
        changes
    }

    fn announce(&mut self, neighbor: NeighborId, nlri: Nlri, attributes: &Arc<Attributes>) -> Option<Notice> {
        let source = self.sources.get_mut(&neighbor).filter(|source| !source.removed)?;
        let limit = source.settings.limit;
        let (prefix, known) = (nlri.prefix, self.table.get(&nlri.prefix));
        let age_of = |path: &Path| source.age(&prefix, path);
        let age = known.and_then(|entry| entry.find(neighbor, nlri.path_id)).map(age_of);
        if matches!(age, None | Some(Age::Dead)) {
            if let Some(limit) = limit.filter(|limit| source.received() >= limit.most as usize) {
                return Some(Notice::BeyondLimit { most: limit.most });
            }
            // RFC 7911 section 6: the number of paths is to be bounded.
            let held = |path: &&Path| path.neighbor == neighbor && age_of(path) != Age::Dead;
            if known.is_some_and(|entry| {
                entry.paths.len() >= MAX_PATHS && entry.paths.iter().filter(held).count() >= MAX_PATHS
            }) {
                source.left_out += 1;
                return (source.left_out == 1).then_some(Notice::TooManyPaths { prefix });
            }
        }
        source.routes.insert(nlri);
        let barred = bar(source, self.local_as, self.router_id, &prefix, attributes);
        source.accepted += usize::from(barred.is_none());
        source.came(&prefix);
        let epoch = source.epoch();
        let entry = self.table.entry(prefix).or_default();
        match entry.find_mut(neighbor, nlri.path_id).zip(age) {
            Some((path, age)) => {
                source.accepted -= usize::from(path.barred.is_none());
                source.went(&prefix, age);
                path.epoch = epoch;
                let same = path.barred == barred && path.attributes == *attributes;
                if same && age != Age::Dead {
                    return None;
                }
                if !same {
                    path.attributes = attributes.clone();
                    path.barred = barred;
                    entry.changed |= path.in_use();
                }
            }
            None => entry.push(Path::new(neighbor, nlri.path_id, attributes.clone(), barred, epoch)),
        }
        self.marked.insert(prefix);
        let received = source.received() as u32;
        let limit = limit.filter(|limit| received >= limit.warn_at && !source.warned)?;
        source.warned = true;
        Some(Notice::NearLimit { received, most: limit.most })
    }

    fn withdraw(&mut self, neighbor: NeighborId, nlri: Nlri) {
        let Some(source) = self.sources.get_mut(&neighbor) else { return };
        if !source.routes.remove(&nlri) {
            return;
        }
        if let Some(entry) = self.table.get_mut(&nlri.prefix)
            && let Some(path) = entry.remove(neighbor, nlri.path_id)
        {
            source.accepted -= usize::from(path.barred.is_none());
            source.went(&nlri.prefix, source.age(&nlri.prefix, &path));
            entry.changed |= path.in_use();
            if entry.paths.is_empty() && !entry.changed {
                // Nobody was ever told of it.
                self.table.remove(&nlri.prefix);
                self.marked.remove(&nlri.prefix);
            } else {
                self.marked.insert(nlri.prefix);
            }
        }
        let limit = source.settings.limit;
        source.warned &= limit.is_some_and(|limit| source.received() >= limit.warn_at as usize);
    }

    /// Takes routes that are gone out of the table, looking at so many at most; at how many it has looked.
    fn take_out(&mut self, budget: usize) -> usize {
        let mut searched = 0;
        while searched < budget
            && let Some(neighbor) = self.leaving.first().copied()
        {
            let Some(source) = self.sources.get_mut(&neighbor) else {
                self.leaving.remove(&neighbor);
                continue;
            };
            let next = source.next_to_search(budget - searched);
            if next.is_empty() {
                self.leaving.remove(&neighbor);
                if source.removed {
                    self.sources.remove(&neighbor);
                }
                continue;
            }
            searched += next.len();
            for nlri in next {
                let path = self.table.get(&nlri.prefix).and_then(|entry| entry.find(neighbor, nlri.path_id));
                let source = self.sources.get(&neighbor);
                if path.zip(source).is_some_and(|(path, source)| source.age(&nlri.prefix, path) == Age::Dead)
                {
                    self.withdraw(neighbor, nlri);
                }
            }
        }
        searched
    }

    fn settle(&mut self) {
        self.deferral = self.deferral.take().filter(|deferral| !deferral.waiting.is_empty());
    }
}

/// What becomes of each path to a prefix, if there were only those that `of` names.
fn judge(
    sources: &BTreeMap<NeighborId, Source>,
    settings: &DecisionSettings,
    (prefix, entry): (&IpNet, &Entry),
    resolver: &dyn Resolver,
    of: impl Fn(&Path) -> bool,
) -> Vec<Reason> {
    let mut reasons = vec![Reason::Unreachable; entry.paths.len()];
    let (mut candidates, mut indices) = (Vec::new(), Vec::new());
    for (index, path) in entry.paths.iter().enumerate().filter(|(_, path)| of(path)) {
        if let Some(barred) = path.barred {
            reasons[index] = barred;
            continue;
        }
        let Some(source) = sources.get(&path.neighbor) else { continue };
        if source.age(prefix, path) == Age::Dead {
            continue;
        }
        let Some(cost) = resolver.cost(path.neighbor, &path.attributes) else { continue };
        indices.push(index);
        candidates.push(Candidate {
            attributes: &path.attributes,
            external: source.settings.external,
            local_pref: source.settings.local_pref,
            cost,
            peer_id: source.id,
            peer_address: source.address,
            path_id: path.path_id,
            neighbor: path.neighbor.0,
        });
    }
    if let [only] = indices[..] {
        reasons[only] = Reason::Best;
    } else {
        for (index, reason) in indices.into_iter().zip(decide(&candidates, settings)) {
            reasons[index] = reason;
        }
    }
    reasons
}

/// Why a route cannot be chosen, whatever the others are.
fn bar(
    source: &Source,
    local_as: u32,
    router_id: Ipv4Addr,
    prefix: &IpNet,
    attributes: &Attributes,
) -> Option<Reason> {
    // RFC 4271 section 9.1.2: a route whose AS_PATH contains our AS is not used; RFC 4456 section 8: nor is
    // one that we have originated.
    if attributes.as_path.contains(&local_as) || attributes.originator == Some(router_id) {
        return Some(Reason::Looped);
    }
    (!source.settings.filter.permits(prefix)).then_some(Reason::Filtered)
}

/// The paths that `of` names, best first, and how much each carries.
fn chosen(entry: &Entry, sources: &BTreeMap<NeighborId, Source>, of: impl Fn(&Path) -> bool) -> Vec<Chosen> {
    let mut paths: Vec<&Path> = entry.paths.iter().filter(|path| of(path)).collect();
    paths.sort_by_key(|path| (std::cmp::Reverse(path.outcome), path.neighbor, path.path_id));
    let bandwidths: Option<Vec<f32>> = paths.iter().map(|path| path.attributes.link_bandwidth()).collect();
    // One path needs no share; where one of several says nothing, what is configured counts.
    let bandwidths = bandwidths.filter(|bandwidths| bandwidths.len() > 1);
    let most = bandwidths.iter().flatten().copied().fold(0.0, f32::max);
    let share = |index: usize, path: &Path| match &bandwidths {
        Some(bandwidths) => ((bandwidths[index] / most * WHOLE).round() as u32).max(1),
        None => sources.get(&path.neighbor).map_or(1, |source| source.settings.weight),
    };
    let chosen = paths.iter().enumerate().map(|(index, path)| Chosen {
        neighbor: path.neighbor,
        next_hop: path.attributes.next_hop,
        weight: share(index, path),
        attributes: path.attributes.clone(),
    });
    chosen.collect()
}

/// Paths that a neighbor may hold up to one prefix: what each costs grows with their number.
pub const MAX_PATHS: usize = 64;
/// The weight of the path with the highest bandwidth.
const WHOLE: f32 = 1000.0;

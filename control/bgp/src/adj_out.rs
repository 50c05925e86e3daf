//! What a neighbor is told (adj-RIB-out): what we announce ourselves, and what we re-advertise of the routes of
//! neighbors that are named.
//!
//! Invariants: `sent` is what the peer holds of ours, once what [`AdjOut::poll`] has yielded was sent; a prefix
//! whose route or treatment has changed is in `pending`; the peer never holds more than its limit. What fits no message
//! is told like a route that is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    attributes::{Attributes, GRACEFUL_SHUTDOWN, NO_ADVERTISE, NO_EXPORT, NO_EXPORT_SUBCONFED},
    config::RouteLimit,
    policy::PrefixFilter,
    rib::{Change, NeighborId, Notice, decision::DEFAULT_LOCAL_PREF},
    update::{self, Family, Outgoing},
};

/// Of what is told by a way that is about to go.
pub const LEAVING_MED: u32 = u32::MAX - 1;
/// RFC 4360 section 2: set in the type of an extended community that does not leave the AS.
const NON_TRANSITIVE: u64 = 0x40 << 56;

/// What is configured of a neighbor, as far as what it is told is concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportSettings {
    /// Our AS number.
    pub local_as: u32,
    /// The peer is in another AS.
    pub external: bool,
    /// Our address towards it, which becomes the next hop of IPv4 routes; without one, none are sent.
    pub next_hop_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub next_hop_v6: Option<Ipv6Addr>,
    /// How many times more than once our AS number stands in front of the AS_PATH.
    pub prepend: u8,
    /// MED; without one, external peers get none, and internal ones what the route has.
    pub med: Option<u32>,
    /// Which prefixes pass.
    pub filter: PrefixFilter,
    /// The neighbors whose routes are re-advertised.
    pub sources: BTreeSet<NeighborId>,
    /// How many routes the peer takes.
    pub limit: Option<RouteLimit>,
    /// This way is about to go: the peer is to prefer any other.
    pub leaving: bool,
}

impl ExportSettings {
    /// An external peer that is told what we announce ourselves.
    pub fn external(local_as: u32, next_hop: IpAddr) -> Self {
        let (v4, v6) = match next_hop {
            IpAddr::V4(address) => (Some(address), None),
            IpAddr::V6(address) => (None, Some(address)),
        };
        ExportSettings {
            local_as,
            external: true,
            next_hop_v4: v4,
            next_hop_v6: v6,
            prepend: 0,
            med: None,
            filter: PrefixFilter::all(),
            sources: BTreeSet::new(),
            limit: None,
            leaving: false,
        }
    }
}

/// A route of a neighbor that may be re-advertised.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Learned {
    source: NeighborId,
    attributes: Arc<Attributes>,
    /// What internal peers are told of it.
    preference: u32,
}

/// What the peer holds of a prefix.
#[derive(Debug)]
struct Held {
    attributes: Arc<Attributes>,
    /// It asked to have it once more.
    again: bool,
}

/// What one neighbor is told.
#[derive(Debug)]
pub struct AdjOut {
    neighbor: NeighborId,
    settings: ExportSettings,
    originated: BTreeSet<IpNet>,
    learned: BTreeMap<IpNet, Learned>,
    sent: BTreeMap<IpNet, Held>,
    pending: BTreeSet<IpNet>,
    /// Families that are to be repeated, of which nothing was repeated yet.
    repeating: BTreeSet<Family>,
    beyond_limit: BTreeSet<IpNet>,
    /// AS numbers have four octets: what fits a message depends on it.
    four_octet_as: bool,
    warned: bool,
    told_beyond: bool,
}

impl AdjOut {
    /// Nothing yet.
    pub fn new(neighbor: NeighborId, settings: ExportSettings) -> Self {
        AdjOut {
            neighbor,
            settings,
            originated: BTreeSet::new(),
            learned: BTreeMap::new(),
            sent: BTreeMap::new(),
            pending: BTreeSet::new(),
            repeating: BTreeSet::new(),
            beyond_limit: BTreeSet::new(),
            four_octet_as: true,
            warned: false,
            told_beyond: false,
        }
    }

    /// What the peer holds of ours.
    pub fn advertised(&self) -> impl Iterator<Item = (&IpNet, &Arc<Attributes>)> {
        self.sent.iter().map(|(prefix, held)| (prefix, &held.attributes))
    }

    /// How many routes the peer holds of ours.
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// How many routes are held back, since the peer takes no more.
    pub fn held_back(&self) -> usize {
        self.beyond_limit.len()
    }

    /// Whether [`AdjOut::poll`] has something.
    pub fn pending(&self) -> bool {
        !self.pending.is_empty() || self.has_room() && !self.beyond_limit.is_empty()
    }

    /// The prefixes that we announce ourselves.
    pub fn announce(&mut self, prefixes: impl IntoIterator<Item = IpNet>) {
        let prefixes: BTreeSet<IpNet> = prefixes.into_iter().map(|prefix| prefix.trunc()).collect();
        self.pending.extend(self.originated.symmetric_difference(&prefixes));
        self.originated = prefixes;
    }

    /// A choice of the routing table. `external_pref` is the preference of the best path's neighbor if that is
    /// external.
    pub fn handle_change(&mut self, change: &Change, external_pref: Option<u32>) {
        let best = change.paths.first().filter(|best| self.settings.sources.contains(&best.neighbor));
        // RFC 4271 section 9.2: what came from internal peers does not go to internal peers.
        let best = best.filter(|_| self.settings.external || external_pref.is_some());
        let learned = best.map(|best| Learned {
            source: best.neighbor,
            attributes: best.attributes.clone(),
            preference: external_pref.unwrap_or(DEFAULT_LOCAL_PREF),
        });
        let differs = self.learned.get(&change.prefix) != learned.as_ref();
        match learned {
            Some(learned) => drop(self.learned.insert(change.prefix, learned)),
            None => drop(self.learned.remove(&change.prefix)),
        }
        if differs {
            self.pending.insert(change.prefix);
        }
    }

    /// Other settings: everything is looked at again. Routes of sources that are new come with
    /// [`AdjOut::handle_change`].
    pub fn configure(&mut self, settings: ExportSettings) {
        if self.settings != settings {
            self.learned.retain(|prefix, learned| {
                let kept = settings.sources.contains(&learned.source);
                if !kept {
                    self.pending.insert(*prefix);
                }
                kept
            });
            self.settings = settings;
            self.pending.extend(self.originated.iter().chain(self.learned.keys()).chain(self.sent.keys()));
        }
    }

    /// Our addresses towards it, where they are known only with the connection.
    pub fn set_next_hops(&mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        self.configure(ExportSettings { next_hop_v4: v4, next_hop_v6: v6, ..self.settings.clone() });
    }

    /// Whether this way is about to go.
    pub fn set_leaving(&mut self, leaving: bool) {
        self.configure(ExportSettings { leaving, ..self.settings.clone() });
    }

    /// Other MED from now on.
    pub fn set_med(&mut self, med: Option<u32>) {
        self.configure(ExportSettings { med, ..self.settings.clone() });
    }

    /// Whether it is told routes of any other neighbor.
    pub fn has_sources(&self) -> bool {
        !self.settings.sources.is_empty()
    }

    /// The session is established, with AS numbers of four octets or two, and the peer holds nothing of ours that
    /// counts.
    pub fn restart(&mut self, four_octet_as: bool) {
        self.four_octet_as = four_octet_as;
        self.sent.clear();
        self.repeating.clear();
        self.beyond_limit.clear();
        (self.warned, self.told_beyond) = (false, false);
        self.pending = self.originated.iter().chain(self.learned.keys()).copied().collect();
    }

    /// The peer wants all of a family again.
    pub fn refresh(&mut self, family: Family) {
        // A peer may ask thousands of times in what is read at once: the table is gone through once for it.
        if !self.repeating.insert(family) {
            return;
        }
        for (prefix, held) in self.sent.iter_mut().filter(|(prefix, _)| Family::of(prefix) == family) {
            held.again = true;
            self.pending.insert(*prefix);
        }
    }

    /// What is to be sent, of at most `budget` prefixes, and what the user should know.
    pub fn poll(&mut self, budget: usize) -> (Outgoing, Option<Notice>) {
        let (mut withdrawn, mut notice) = (Vec::new(), None);
        self.repeating.clear();
        let mut announced: BTreeMap<Arc<Attributes>, Vec<IpNet>> = BTreeMap::new();
        for _ in 0..budget {
            let Some(prefix) = self.next() else { break };
            match self.wanted(&prefix) {
                Some(wanted) if self.holds(&prefix, &wanted) => {}
                // What others in this message share is known to fit.
                Some(wanted)
                    if announced.contains_key(&wanted) || update::fits(&wanted, self.four_octet_as) =>
                {
                    if !self.has_room() && !self.sent.contains_key(&prefix) {
                        self.beyond_limit.insert(prefix);
                        continue;
                    }
                    self.beyond_limit.remove(&prefix);
                    self.sent.insert(prefix, Held { attributes: wanted.clone(), again: false });
                    announced.entry(wanted).or_default().push(prefix);
                }
                // RFC 4271 section 9.2: a route that fits no message is not advertised; RFC 8654 section 4: what was
                // told of its prefix before is withdrawn.
                Some(_) | None => {
                    self.beyond_limit.remove(&prefix);
                    if self.sent.remove(&prefix).is_some() {
                        withdrawn.push(prefix);
                    }
                }
            }
        }
        if let Some(limit) = self.settings.limit {
            notice = self.notice(limit);
        }
        (Outgoing { withdrawn, announced: announced.into_iter().collect() }, notice)
    }

    fn holds(&self, prefix: &IpNet, wanted: &Arc<Attributes>) -> bool {
        self.sent.get(prefix).is_some_and(|held| !held.again && held.attributes == *wanted)
    }

    /// The next prefix to look at: one that has changed, then one that waits for room.
    fn next(&mut self) -> Option<IpNet> {
        let waiting = |out: &mut Self| if out.has_room() { out.beyond_limit.pop_first() } else { None };
        self.pending.pop_first().or_else(|| waiting(self))
    }

    fn has_room(&self) -> bool {
        self.settings.limit.is_none_or(|limit| self.sent.len() < limit.most as usize)
    }

    fn notice(&mut self, limit: RouteLimit) -> Option<Notice> {
        let near = self.sent.len() >= limit.warn_at as usize;
        let beyond = !self.beyond_limit.is_empty();
        let (warn, tell) = (near && !self.warned, beyond && !self.told_beyond);
        (self.warned, self.told_beyond) = (near, beyond);
        if tell {
            return Some(Notice::BeyondLimit { most: limit.most });
        }
        warn.then_some(Notice::NearLimit { received: self.sent.len() as u32, most: limit.most })
    }

    /// The route as the peer sees it, if it may.
    fn wanted(&self, prefix: &IpNet) -> Option<Arc<Attributes>> {
        let ExportSettings { local_as, external, prepend, mut med, leaving, .. } = self.settings;
        // Understood also by peers that do not look at communities. The highest of all means "never" to some.
        med = if leaving { Some(LEAVING_MED) } else { med };
        let next_hop = match prefix {
            IpNet::V4(_) => self.settings.next_hop_v4.map(IpAddr::V4),
            IpNet::V6(_) => self.settings.next_hop_v6.map(IpAddr::V6),
        }?;
        if !self.settings.filter.permits(prefix) {
            return None;
        }
        let (mut out, preference) = if self.originated.contains(prefix) {
            (Attributes::originated(next_hop), DEFAULT_LOCAL_PREF)
        } else {
            let Learned { source, attributes, preference } = self.learned.get(prefix)?;
            // What it sent itself, it knows.
            if *source == self.neighbor || !may_leave(attributes, external) {
                return None;
            }
            (Attributes { next_hop, link_local: None, ..(**attributes).clone() }, *preference)
        };
        if external {
            // RFC 4271 section 5.1.2 b: our AS number comes first.
            let own = std::iter::repeat_n(local_as, 1 + usize::from(prepend));
            out.as_path = own.chain(out.as_path).collect();
            // Sections 5.1.4 and 5.1.5: neither a MED from another AS nor a preference leaves it.
            (out.med, out.local_pref) = (med, None);
            (out.originator, out.cluster_list) = (None, Vec::new());
            out.extended_communities.retain(|community| community & NON_TRANSITIVE == 0);
        } else {
            out.med = med.or(out.med);
            out.local_pref = Some(if leaving { 0 } else { preference });
        }
        // RFC 8326 section 4: tagged, and within the AS of no preference.
        if leaving && !out.communities.contains(&GRACEFUL_SHUTDOWN) {
            out.communities.push(GRACEFUL_SHUTDOWN);
        }
        Some(Arc::new(out))
    }
}

/// RFC 1997: well-known communities that keep a route here.
fn may_leave(attributes: &Attributes, external: bool) -> bool {
    !attributes.communities.iter().any(|community| match *community {
        NO_ADVERTISE => true,
        NO_EXPORT | NO_EXPORT_SUBCONFED => external,
        _ => false,
    })
}

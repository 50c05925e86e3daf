//! Tunnels that have failed and do not take their traffic back (`preempt = false`).
//!
//! Such a tunnel *yields* while it is down and tunnels of lower priority carry instead: in the core's groups it
//! stands behind all others from then on, so that it comes back as their standby. Once it is back and these are gone
//! it yields no longer, nor when one of its own priority carries.

use std::collections::BTreeMap;

use braid_api::{Member, TunnelId};

use super::{Effect, Offer, Runtime, Turn};
use crate::{desired::STANDBY, failover::Obstacle};

impl Turn {
    /// Whether a tunnel stands behind others because it has failed once.
    pub fn is_yielding(&self, tunnel: &str) -> bool {
        self.memory.yielding.contains_key(tunnel)
    }

    /// Looks again at who yields, if what is offered to traffic has changed.
    pub(super) fn yield_to_others(&mut self) {
        // Without a core nobody carries, and what it holds is not known.
        if self.core.is_none() || self.yielded_after == self.offer_changes {
            return;
        }
        self.yielded_after = self.offer_changes;
        let yielding = self.yielding();
        if yielding == self.memory.yielding {
            return;
        }
        self.memory.yielding = yielding;
        self.offer_changes += 1;
        self.yielded_after = self.offer_changes;
        self.effects.push(Effect::RememberLater);
        // In a turn of its own: thousands may fail one by one.
        self.needs_rebuild = true;
    }

    /// With the core all tunnels are gone, which is no failure of those that are soon back.
    fn has_failed(&self, runtime: &Runtime) -> bool {
        let why = runtime.last_failure.as_ref().map(|failure| &failure.why);
        why.is_some_and(|why| *why != Obstacle::NoCore || self.core_settles.is_none())
    }

    /// Names, each with the priority that it has lost its traffic to.
    fn yielding(&self) -> BTreeMap<String, i32> {
        let before = &self.memory.yielding;
        if self.config.tunnels.iter().all(|tunnel| tunnel.preempt) {
            return BTreeMap::new();
        }
        let known = self.config.tunnels.iter().zip(&self.tunnels).zip(&self.desired.ids);
        let mut priorities: BTreeMap<TunnelId, i32> = BTreeMap::new();
        for ((tunnel, runtime), id) in known.clone() {
            let carries = runtime.offer == Offer::Live && !runtime.draining;
            if let Some(id) = id.filter(|_| carries && !before.contains_key(&tunnel.name)) {
                priorities.insert(id, tunnel.priority);
            }
        }
        let own: BTreeMap<TunnelId, i32> =
            known.clone().filter_map(|((tunnel, _), id)| Some(((*id)?, tunnel.priority))).collect();
        // What carries a group in place of a tunnel, where that is of lower priority: the highest such.
        let mut instead: BTreeMap<TunnelId, i32> = BTreeMap::new();
        for group in self.desired.tables.groups.values() {
            // What BGP has a better choice than takes nothing from anybody.
            let members = || group.members.iter().filter(|member| member.priority != STANDBY);
            let live = |member: &Member| Some((*priorities.get(&member.tunnel)?, member.tunnel));
            let best = members().filter_map(live).max();
            let other = |member: &&Member| best.is_none_or(|(_, tunnel)| tunnel != member.tunnel);
            let second = members().filter(other).filter_map(live).max();
            for member in members() {
                let is_best = best.is_some_and(|(_, tunnel)| tunnel == member.tunnel);
                let Some((carries, _)) = (if is_best { second } else { best }) else { continue };
                if own.get(&member.tunnel).is_some_and(|own| carries < *own) {
                    let most = instead.entry(member.tunnel).or_insert(carries);
                    *most = carries.max(*most);
                }
            }
        }
        let yields =
            known.filter(|((tunnel, _), _)| !tunnel.preempt).filter_map(|((tunnel, runtime), id)| {
                let lower = instead.get(&(*id)?).copied();
                let to = match (before.get(&tunnel.name), lower) {
                    (Some(to), Some(lower)) if lower >= *to => *to,
                    // Those that it yields to may yet come up.
                    (Some(to), None) if self.core_settles.is_some() => *to,
                    (_, Some(lower)) if self.has_failed(runtime) && runtime.offer == Offer::Masked => lower,
                    _ => return None,
                };
                Some((tunnel.name.clone(), to))
            });
        yields.collect()
    }
}

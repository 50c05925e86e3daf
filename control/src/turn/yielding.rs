//! Tunnels that have failed and do not take their traffic back (`preempt = false`).
//!
//! Such a tunnel *yields* while it is down and tunnels of lower priority carry instead: in the core's groups it
//! stands behind all others from then on, so that it comes back as their standby. Once it is back and these are gone
//! it yields no longer, nor when one of its own priority carries.

use std::collections::BTreeMap;

use braid_api::TunnelId;

use super::{Effect, Offer, Turn};

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
        self.rebuild();
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
        let groups = self.desired.tables.groups.values();
        // What carries a group in place of a tunnel, where that is of lower priority: the highest such.
        let instead = |id: TunnelId, own: i32| {
            let of_it = groups.clone().filter(|group| group.members.iter().any(|member| member.tunnel == id));
            let carry = of_it.filter_map(|group| {
                let others = group.members.iter().filter(|member| member.tunnel != id);
                others.filter_map(|member| priorities.get(&member.tunnel)).max().copied()
            });
            carry.filter(|priority| *priority < own).max()
        };
        let yields =
            known.filter(|((tunnel, _), _)| !tunnel.preempt).filter_map(|((tunnel, runtime), id)| {
                let lower = id.and_then(|id| instead(id, tunnel.priority))?;
                let to = match before.get(&tunnel.name) {
                    Some(to) if lower >= *to => *to,
                    _ if runtime.failovers > 0 && runtime.offer == Offer::Masked => lower,
                    _ => return None,
                };
                Some((tunnel.name.clone(), to))
            });
        yields.collect()
    }
}

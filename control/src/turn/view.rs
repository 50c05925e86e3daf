//! What a turn shows of itself, for `braid status`.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use braid_api::{Direction, Group, GroupId, Member, SaId, Target, TunnelId};
use ipnet::IpNet;

use super::{Offer, Stages, Turn};
use crate::{
    config::{self, Link},
    desired::Negotiated,
    failover::Obstacle,
    outer::Outer,
};

/// A tunnel's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Carries traffic.
    Up,
    /// Does not, and says why.
    Down,
    /// On its way up.
    Connecting,
    /// Could carry traffic; tunnels of higher priority do.
    Standby,
    /// Loses its flows as they fall idle.
    Draining,
}

impl State {
    /// The name in `braid status --json`.
    pub fn name(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Down => "down",
            State::Connecting => "connecting",
            State::Standby => "standby",
            State::Draining => "draining",
        }
    }
}

/// A configured tunnel.
#[derive(Clone, Debug)]
pub struct TunnelView<'t> {
    /// As configured.
    pub tunnel: &'t config::Tunnel,
    /// In the core.
    pub id: Option<TunnelId>,
    /// Where it stands.
    pub state: State,
    /// Why, unless it is up.
    pub reason: String,
    /// What stands against offering it to traffic.
    pub obstacle: Option<&'t Obstacle>,
    /// For how long.
    pub since: Duration,
    /// The outer path.
    pub outer: Option<&'t Outer>,
    /// Inner MTU, in bytes.
    pub mtu: u16,
    /// What IKE has settled.
    pub negotiated: Option<&'t Negotiated>,
    /// The SAs are in the core.
    pub has_sas: bool,
    /// How often it was taken out while it carried.
    pub failovers: u64,
    /// The same by their causes.
    pub causes: &'t BTreeMap<&'static str, u64>,
    /// How long ago and why it was taken out last, and what was noted of it.
    pub last_failure: Option<FailureView<'t>>,
}

/// A tunnel's last failure.
#[derive(Clone, Debug)]
pub struct FailureView<'t> {
    /// How long ago.
    pub ago: Duration,
    /// Why.
    pub why: &'t Obstacle,
    /// What the core noted.
    pub stages: Option<Stages>,
    /// Between when control heard of it and when the core had all that follows of it.
    pub converged: Option<Duration>,
}

/// A route and its paths.
#[derive(Clone, Debug)]
pub struct RouteView<'t> {
    /// Inner destination.
    pub prefix: IpNet,
    /// `static`, `bgp` or `connected`.
    pub origin: &'static str,
    /// Tunnel name, weight, whether it carries now.
    pub paths: Vec<(&'t str, u16, bool)>,
    /// Before the tunnels, and whether the kernel takes it now.
    pub link: Option<(&'t Link, bool)>,
}

impl Turn {
    /// Every configured tunnel, in the order of the file.
    pub fn tunnels(&self, now: Duration) -> Vec<TunnelView<'_>> {
        let carrying = self.carrying();
        let mut active = BTreeSet::new();
        let mut grouped = BTreeSet::new();
        for group in self.desired.tables.groups.values() {
            let top = top_priority(group, &carrying);
            for member in &group.members {
                grouped.insert(member.tunnel);
                if Some(member.priority) == top {
                    active.insert(member.tunnel);
                }
            }
        }
        let view = |(index, tunnel)| self.view(index, tunnel, &carrying, &active, &grouped, now);
        self.config.tunnels.iter().enumerate().filter_map(view).collect()
    }

    fn view<'t>(
        &'t self,
        index: usize,
        tunnel: &'t config::Tunnel,
        carrying: &BTreeMap<TunnelId, bool>,
        active: &BTreeSet<TunnelId>,
        grouped: &BTreeSet<TunnelId>,
        now: Duration,
    ) -> Option<TunnelView<'t>> {
        let runtime = self.tunnels.get(index)?;
        let id = self.desired.ids.get(index).copied().flatten();
        let outranked = id.is_some_and(|id| grouped.contains(&id) && !active.contains(&id));
        let (state, reason) = match (&runtime.obstacle, runtime.offer) {
            (Some(why), _) if why.is_passing() => (State::Connecting, why.to_string()),
            (Some(why), _) => (State::Down, why.to_string()),
            (None, Offer::Masked | Offer::Unmasking(_)) => {
                (State::Connecting, "the forwarding core is about to use it".to_owned())
            }
            (None, Offer::Live) if runtime.draining => {
                let alone = id.is_some_and(|id| self.is_last(id, carrying));
                let goes_on = if alone { "; no other tunnel is up, so that it goes on carrying" } else { "" };
                (State::Draining, format!("drained on request; braid undrain brings it back{goes_on}"))
            }
            (None, Offer::Live) if outranked && self.is_yielding(&tunnel.name) => {
                let why =
                    "it has failed, and takes no traffic back from tunnels that carry (preempt = false)";
                (State::Standby, why.to_owned())
            }
            (None, Offer::Live) if outranked => (
                State::Standby,
                "tunnels of higher priority, or by which BGP has better routes, carry the traffic".to_owned(),
            ),
            (None, Offer::Live) => (State::Up, String::new()),
        };
        let outer = self.memory.outer.get(&tunnel.name);
        let held = |id| {
            if tunnel.ike().is_some() {
                return self.holds_ike_pair(id);
            }
            [Direction::In, Direction::Out].into_iter().all(|direction| {
                let spec = self.desired.tables.sas.get(&(id, direction));
                self.core
                    .as_ref()
                    .zip(spec)
                    .is_some_and(|(core, spec)| core.mirror.holds_sa(id, direction, spec))
            })
        };
        Some(TunnelView {
            tunnel,
            id,
            state,
            reason,
            obstacle: runtime.obstacle.as_ref(),
            since: now.saturating_sub(runtime.since),
            outer,
            mtu: crate::desired::tunnel_mtu(tunnel, outer, self.negotiated.get(&tunnel.name)),
            negotiated: self.negotiated.get(&tunnel.name),
            has_sas: id.is_some_and(held),
            failovers: runtime.failovers,
            causes: &runtime.causes,
            last_failure: runtime.last_failure.as_ref().map(|failure| FailureView {
                ago: now.saturating_sub(failure.at),
                why: &failure.why,
                stages: failure.stages,
                converged: failure.converged,
            }),
        })
    }

    /// Routes of these prefixes, those of the configuration first, each part by prefix; at most `limit` of those
    /// learned, and how many were left out.
    pub fn routes(&self, wanted: impl Fn(&IpNet) -> bool, limit: usize) -> (Vec<RouteView<'_>>, usize) {
        let carrying = self.carrying();
        let names: BTreeMap<TunnelId, &str> = self
            .config
            .tunnels
            .iter()
            .zip(&self.desired.ids)
            .filter_map(|(tunnel, id)| Some(((*id)?, tunnel.name.as_str())))
            .collect();
        let name = |id: &TunnelId| names.get(id).copied().unwrap_or_default();
        let tables = &self.desired.tables;
        let mut paths_of: BTreeMap<GroupId, Vec<(&str, u16, bool)>> = BTreeMap::new();
        for (id, group) in &tables.groups {
            let top = top_priority(group, &carrying);
            let path = |member: &Member| {
                let is_active = carrying.contains_key(&member.tunnel) && Some(member.priority) == top;
                (name(&member.tunnel), member.weight, is_active)
            };
            paths_of.insert(*id, group.members.iter().map(path).collect());
        }
        // Behind a link that is taken, tunnels are idle.
        let paths_to = |prefix: &IpNet, group: &GroupId| {
            let mut paths = paths_of.get(group).cloned().unwrap_or_default();
            if self.learned.has_link(prefix) {
                paths.iter_mut().for_each(|path| path.2 = false);
            }
            paths
        };
        let route = |(prefix, target): (&IpNet, &Target)| match target {
            Target::Group(id) => {
                RouteView { prefix: *prefix, origin: "static", paths: paths_to(prefix, id), link: None }
            }
            Target::Tunnel(id) => RouteView {
                prefix: *prefix,
                origin: "connected",
                paths: vec![(name(id), 1, carrying.contains_key(id))],
                link: None,
            },
        };
        let mut routes: Vec<RouteView<'_>> =
            tables.routes.iter().filter(|(prefix, _)| wanted(prefix)).map(route).collect();
        let by_link = self.config.routes.iter().filter(|route| wanted(&route.prefix));
        routes.extend(by_link.filter_map(|route| {
            let link = route.link.as_ref()?;
            let taken = self.learned.takes_link(&route.prefix, link);
            Some(RouteView {
                prefix: route.prefix,
                origin: "static",
                paths: Vec::new(),
                link: Some((link, taken)),
            })
        }));
        let (mut left, mut left_out) = (limit, 0);
        for (prefix, link, group) in self.learned.view().filter(|(prefix, ..)| wanted(prefix)) {
            if left == 0 {
                left_out += 1;
                continue;
            }
            left -= 1;
            let paths = group.map_or_else(Vec::new, |group| paths_to(&prefix, &group));
            routes.push(RouteView { prefix, origin: "bgp", paths, link });
        }
        (routes, left_out)
    }

    /// The name of a tunnel of the core.
    pub fn tunnel_name(&self, id: TunnelId) -> Option<&str> {
        self.core.as_ref()?.names.get(&id).map(String::as_str)
    }

    /// Members of a group: name, weight, priority.
    pub fn group_members(&self, id: GroupId) -> Vec<(&str, u16, i32)> {
        let group = self.core.as_ref().and_then(|core| core.mirror.groups.get(&id));
        let members = group.into_iter().flat_map(|group| &group.members);
        members
            .map(|member| {
                (self.tunnel_name(member.tunnel).unwrap_or_default(), member.weight, member.priority)
            })
            .collect()
    }

    /// Since the core started, or control where there is no core.
    pub fn uptime(&self, now: Duration) -> Duration {
        self.core.as_ref().map_or(now, |core| core.uptime.0 + now.saturating_sub(core.uptime.1))
    }

    /// Whether the core answers.
    pub fn has_core(&self) -> bool {
        self.core.is_some()
    }

    /// Numbers of the SAs that the core holds, as far as confirmed.
    pub fn held_sas(&self) -> Vec<SaId> {
        self.core.iter().flat_map(|core| core.mirror.sas().map(|(id, _)| id)).collect()
    }

    /// Whether it is in a group of which no other tunnel is up that is not drained.
    pub(super) fn is_last(&self, id: TunnelId, carrying: &BTreeMap<TunnelId, bool>) -> bool {
        let is_other = |member: &Member| member.tunnel != id && carrying.get(&member.tunnel) == Some(&false);
        let mut groups = self.desired.tables.groups.values();
        groups.any(|group| {
            let is_its = group.members.iter().any(|member| member.tunnel == id);
            is_its && !group.members.iter().any(is_other)
        })
    }

    /// Tunnels that carry traffic where their priority allows; true for those being drained.
    pub(super) fn carrying(&self) -> BTreeMap<TunnelId, bool> {
        let live = |(runtime, id): (&super::Runtime, &Option<TunnelId>)| {
            (runtime.offer == Offer::Live).then_some(((*id)?, runtime.draining))
        };
        self.tunnels.iter().zip(&self.desired.ids).filter_map(live).collect()
    }
}

/// The priority that carries a group's traffic: the highest of a tunnel that is not being drained,
/// or of one that is where there is no other.
fn top_priority(group: &Group, carrying: &BTreeMap<TunnelId, bool>) -> Option<i32> {
    let highest = |draining: bool| {
        let members = group.members.iter().filter(|member| carrying.get(&member.tunnel) == Some(&draining));
        members.map(|member| member.priority).max()
    };
    highest(false).or_else(|| highest(true))
}

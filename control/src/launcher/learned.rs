//! Routes that control learns: which the kernel has, and the steps to what it should have. Pure.
//!
//! There may be a million of them, so they are kept apart from the plan, under a protocol number and metrics of
//! their own: a change costs what has changed, and looking after the plan never lists them. They outlive
//! control; what its next life does not confirm goes when that asks for it.
//!
//! A learned prefix that covers a peer's outer address is captured as a planned one is ([`super::layout`]): its
//! routes live in the slot's table, and the layout has the rules that lead there. A way over a link is for outer
//! packets too, so that it lives in table main, and in the slot's table as well, should rules lead there.
//!
//! A way over a link goes before every way into the device, the plan's too: whoever learns has compared them. What
//! stands behind it, the device and the `unreachable` of a route that has tunnels as well, is in the kernel all the
//! while, and carries the traffic as soon as the link's route goes.
//!
//! Ways over links are next-hop objects of the kernel ([`super::next_hop`]), one for each gateway, link and what
//! stands behind: the kernel removes all routes by an object together with it, so that a link or a router that fails
//! costs one message, however many prefixes it had. Ways into the device need none: all lead to one device, and
//! moving prefixes from tunnel to tunnel changes nothing here.
//!
//! A neighbor on a link may name any address of its network as a next hop, so that their number is bounded: what is
//! to go by one more goes by what stands behind it, or has no kernel route.
//!
//! Not done: a learned route that others remove stays away until it changes, and a next hop until its link does. What
//! went without its next hop, since there were too many, waits for its next change too.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use braid_api::launcher::{IntoDevice, KernelPlan, LearnedVia, NextHop, RouteChanges};
use ipnet::IpNet;

use super::layout::{DEVICE_METRIC, MAIN, SLOTS, WORST_METRIC, table_of};
use super::next_hop;
use crate::{config::unroutable, shared::Shared};

/// Routing protocol number of learned routes.
pub const PROTOCOL: u8 = 0xB2;

/// The metric of a slot's learned routes into the device: behind those of all plans.
pub(super) fn metric(slot: u8) -> u32 {
    DEVICE_METRIC + u32::from(SLOTS) + u32::from(slot)
}

/// The metric of a slot's routes over links: before those of all plans.
pub(super) fn link_metric(slot: u8) -> u32 {
    DEVICE_METRIC - u32::from(SLOTS) + u32::from(slot)
}

/// The metric of the `unreachable` behind each.
pub(super) fn unreachable_metric(slot: u8) -> u32 {
    WORST_METRIC - u32::from(SLOTS) - u32::from(slot)
}

/// The slot that an `unreachable` route of this protocol number belongs to.
pub(super) fn slot_of_metric(metric: u32) -> Option<u8> {
    let behind = WORST_METRIC.checked_sub(u32::from(SLOTS))?;
    u8::try_from(behind.checked_sub(metric)?).ok().filter(|slot| *slot < SLOTS)
}

/// Where a kernel route leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// An ICMP error.
    Unreachable,
    /// Into the device.
    Device(IntoDevice),
    /// By the next-hop object of this number.
    NextHop(u32),
}

/// A kernel route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Route {
    /// Destination.
    pub(super) prefix: IpNet,
    /// Routing table.
    pub(super) table: u32,
    /// Lower wins.
    pub(super) metric: u32,
    /// Where it leads.
    pub(super) way: Way,
}

impl Route {
    fn is_in_place_of(&self, other: &Route) -> bool {
        (self.table, self.metric) == (other.table, other.metric)
    }
}

/// A change of the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Makes a next-hop object of this number.
    PutNextHop(u32, NextHop),
    /// Removes it, and all routes by it.
    RemoveNextHop(u32),
    /// Creates or replaces.
    Put(Route),
    /// Removes.
    Remove(Route),
}

#[derive(Clone, Copy, Debug)]
struct Held {
    /// Number in [`Learned::vias`]; [`STALE`] for one of a run that was killed.
    via: u16,
    /// Put by the present life of control.
    fresh: bool,
    captured: bool,
}

const STALE: u16 = u16::MAX;
/// Next hops, each counted once more for whatever else stands behind, and the ways without one beside them; far more
/// than there are routers on any link.
pub(super) const MAX_NEXT_HOPS: usize = 8192;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Learned {
    routes: BTreeMap<IpNet, Held>,
    /// Those of them that are captured, but for what an earlier run left.
    captured: BTreeSet<IpNet>,
    /// One whose next hop was withdrawn has no link any more, for all routes that hold it.
    vias: Shared<LearnedVia, u16>,
    /// There were more next hops than [`MAX_NEXT_HOPS`], in the present life of control.
    too_many: bool,
    peers: BTreeSet<IpAddr>,
    /// As [`KernelPlan::apart`].
    apart: BTreeSet<IpNet>,
    protect: BTreeSet<IpNet>,
    slot: u8,
}

impl Learned {
    /// What a killed run left in the kernel: `unreachable` routes, which stay for now, and routes over links, which
    /// these steps remove.
    pub(super) fn adopt(&mut self, slot: u8, found: impl IntoIterator<Item = Route>) -> Vec<Step> {
        self.slot = slot;
        let mut steps = Vec::new();
        for route in found {
            match route.way {
                Way::Unreachable => {
                    let held = Held { via: STALE, fresh: false, captured: route.table != MAIN };
                    self.routes.entry(route.prefix).or_insert(held);
                }
                Way::Device(_) | Way::NextHop(_) => steps.push(Step::Remove(route)),
            }
        }
        steps
    }

    /// Another life of control.
    pub(super) fn handle_new_control(&mut self) {
        self.routes.values_mut().for_each(|held| held.fresh = false);
        self.too_many = false;
    }

    /// Whether the present life of control has named more than [`MAX_NEXT_HOPS`].
    pub(super) fn had_too_many(&self) -> bool {
        self.too_many
    }

    /// These next hops have failed: steps that take them from all routes, at no cost for each.
    pub(super) fn withdraw(&mut self, failed: &[NextHop]) -> Vec<Step> {
        let failed: BTreeSet<&NextHop> = failed.iter().collect();
        let (slot, mut steps) = (self.slot, Vec::new());
        self.vias.replace(|number, via| {
            via.link.as_ref().filter(|link| failed.contains(link))?;
            steps.push(Step::RemoveNextHop(next_hop::id(slot, number)));
            Some(LearnedVia { link: None, ..*via })
        });
        steps
    }

    /// Takes changes in, but for [`Learned::withdraw`]: steps that add, then steps that remove.
    pub(super) fn change(&mut self, changes: RouteChanges) -> (Vec<Step>, Vec<Step>) {
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        for put in changes.put {
            let prefix = put.prefix.trunc();
            let LearnedVia { link, device } = &put.via;
            let is_own_family = |source: IpAddr| source.is_ipv4() == prefix.addr().is_ipv4();
            let usable = (link.is_some() || device.is_some())
                && link.as_ref().is_none_or(|link| !link.interface.is_empty())
                && device.and_then(|device| device.source).is_none_or(is_own_family);
            if usable && unroutable(&prefix).is_none() {
                self.put(prefix, &put.via, &mut add, &mut remove);
            }
        }
        for prefix in changes.remove {
            self.remove(prefix.trunc(), &mut remove);
        }
        if changes.sweep {
            let old = self.routes.iter().filter(|(_, held)| !held.fresh).map(|(prefix, _)| *prefix);
            for prefix in old.collect::<Vec<_>>() {
                self.remove(prefix, &mut remove);
            }
        }
        remove.extend(self.remove_unused());
        (add, remove)
    }

    fn put(&mut self, prefix: IpNet, via: &LearnedVia, add: &mut Vec<Step>, remove: &mut Vec<Step>) {
        let Some((number, is_new)) = self.take(via) else {
            // What it had it is not to have any more.
            self.remove(prefix, remove);
            return;
        };
        if let Some(link) = self.vias.get(number).and_then(|via| via.link.clone()).filter(|_| is_new) {
            add.push(Step::PutNextHop(self.id(number), link));
        }
        let held = Held { via: number, fresh: true, captured: self.capture(prefix) };
        let before = self.routes.insert(prefix, held);
        let had = before.map_or_else(Vec::new, |before| self.held_routes(prefix, before));
        let has = self.held_routes(prefix, held);
        // In the same place it is replaced; what has no place any more goes.
        let gone = had.iter().rev().filter(|gone| !has.iter().any(|kept| kept.is_in_place_of(gone)));
        remove.extend(gone.copied().map(Step::Remove));
        add.extend(has.into_iter().filter(|route| !had.contains(route)).map(Step::Put));
        if let Some(before) = before {
            self.vias.release(before.via);
        }
    }

    /// One use more of a way, or of what stands behind it where its next hop is one too many.
    fn take(&mut self, via: &LearnedVia) -> Option<(u16, bool)> {
        if via.link.is_some() {
            let taken = self.vias.take(via, MAX_NEXT_HOPS);
            self.too_many |= taken.is_none();
            if taken.is_some() || via.device.is_none() {
                return taken;
            }
        }
        self.vias.take(&LearnedVia { link: None, ..*via }, STALE.into())
    }

    fn remove(&mut self, prefix: IpNet, remove: &mut Vec<Step>) {
        if let Some(held) = self.routes.remove(&prefix) {
            self.captured.remove(&prefix);
            // The way first: what protects goes last.
            remove.extend(self.held_routes(prefix, held).into_iter().rev().map(Step::Remove));
            self.vias.release(held.via);
        }
    }

    /// Steps that remove the next hops that no route has any more.
    fn remove_unused(&mut self) -> Vec<Step> {
        let slot = self.slot;
        let unused = self.vias.free_unused().into_iter().filter(|(_, via)| via.link.is_some());
        unused.map(|(number, _)| Step::RemoveNextHop(next_hop::id(slot, number))).collect()
    }

    /// The kernel routes of a prefix: what protects, then the ways, the best one last.
    fn held_routes(&self, prefix: IpNet, held: Held) -> Vec<Route> {
        let captured = held.captured.then(|| table_of(self.slot));
        let table = captured.unwrap_or(MAIN);
        let unreachable =
            Route { prefix, table, metric: unreachable_metric(self.slot), way: Way::Unreachable };
        let Some(via) = self.vias.get(held.via) else { return vec![unreachable] };
        let mut routes = Vec::with_capacity(4);
        if let Some(device) = via.device {
            let metric = metric(self.slot);
            routes.extend([unreachable, Route { prefix, table, metric, way: Way::Device(device) }]);
        }
        if via.link.is_some() {
            let way = Way::NextHop(self.id(held.via));
            let route = |table| Route { prefix, table, metric: link_metric(self.slot), way };
            routes.extend(captured.into_iter().chain([MAIN]).map(route));
        }
        routes
    }

    /// Whether a prefix belongs where rules lead to it; it counts among those, or no more.
    fn capture(&mut self, prefix: IpNet) -> bool {
        let covered = prefix.network()..=prefix.broadcast();
        let captured = prefix.prefix_len() == 0
            || self.apart.contains(&prefix)
            || self.peers.range(covered).next().is_some();
        match captured {
            true => self.captured.insert(prefix),
            false => self.captured.remove(&prefix),
        };
        captured
    }

    /// A plan is about to come into force: steps that take prefixes to where they belong under it, before it and
    /// after it.
    pub(super) fn relocate(&mut self, slot: u8, plan: &KernelPlan) -> (Vec<Step>, Vec<Step>) {
        self.slot = slot;
        let peers = core::mem::replace(&mut self.peers, plan.peers.iter().copied().collect());
        self.apart = plan.apart.iter().map(IpNet::trunc).collect();
        self.protect = plan.protect.iter().map(IpNet::trunc).collect();
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let new = self.peers.difference(&peers).copied().map(IpNet::from);
        let mut concerned: BTreeSet<IpNet> = new.flat_map(wider_or_equal).collect();
        concerned.extend(&self.apart);
        concerned.extend(&self.captured);
        for prefix in concerned {
            let Some(held) = self.routes.get(&prefix).copied().filter(|held| held.via != STALE) else {
                continue;
            };
            let captured = self.capture(prefix);
            if captured == held.captured {
                continue;
            }
            let moved = Held { captured, ..held };
            self.routes.insert(prefix, moved);
            let (now, mut gone) = (self.held_routes(prefix, moved), self.held_routes(prefix, held));
            gone.retain(|route| !now.contains(route));
            before.extend(now.into_iter().map(Step::Put));
            after.extend(gone.into_iter().rev().map(Step::Remove));
        }
        (before, after)
    }

    /// Prefixes with routes into the device that the layout has to know of, with their sources: the captured
    /// ones, and those that cover a protected prefix.
    pub(super) fn known_to_layout(&self) -> BTreeMap<IpNet, Option<IpAddr>> {
        let mut known = self.captured.clone();
        known.extend(self.protect.iter().flat_map(|net| wider_or_equal(*net)));
        let source = |prefix: IpNet| {
            let held = self.routes.get(&prefix)?;
            let device = self.vias.get(held.via)?.device?;
            Some((prefix, device.source))
        };
        known.into_iter().filter_map(source).collect()
    }

    /// Steps that make all of them again, on a device that is new.
    pub(super) fn again(&self) -> Vec<Step> {
        let all = self.routes.iter().flat_map(|(prefix, held)| self.held_routes(*prefix, *held));
        all.map(Step::Put).collect()
    }

    /// Whether there are next hops on this link; `None`: on any.
    pub(super) fn has_next_hops(&self, interface: Option<&str>) -> bool {
        self.next_hops(interface).next().is_some()
    }

    /// Steps that make the next hops on this link, or on any, again, with their routes; those in `there` have stayed.
    pub(super) fn next_hops_again(&self, interface: Option<&str>, there: &BTreeSet<u32>) -> Vec<Step> {
        let lost = self.next_hops(interface).filter(|(number, _)| !there.contains(&self.id(*number)));
        let lost: BTreeMap<u16, &NextHop> = lost.collect();
        if lost.is_empty() {
            return Vec::new();
        }
        let again = |(number, link): (&u16, &&NextHop)| Step::PutNextHop(self.id(*number), (*link).clone());
        let routes = self.routes.iter().filter(|(_, held)| lost.contains_key(&held.via));
        let routes = routes.flat_map(|(prefix, held)| self.held_routes(*prefix, *held));
        let over_links = routes.filter(|route| matches!(route.way, Way::NextHop(_)));
        lost.iter().map(again).chain(over_links.map(Step::Put)).collect()
    }

    fn next_hops(&self, interface: Option<&str>) -> impl Iterator<Item = (u16, &NextHop)> {
        let all = self.vias.iter().filter_map(|(number, via)| Some((number, via.link.as_ref()?)));
        all.filter(move |(_, link)| interface.is_none_or(|interface| link.interface == interface))
    }

    fn id(&self, number: u16) -> u32 {
        next_hop::id(self.slot, number)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.vias.iter().next().is_none()
    }

    /// Steps that remove all of them.
    pub(super) fn clear(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for prefix in self.routes.keys().copied().collect::<Vec<_>>() {
            self.remove(prefix, &mut steps);
        }
        steps.extend(self.remove_unused());
        steps
    }
}

fn wider_or_equal(net: IpNet) -> impl Iterator<Item = IpNet> {
    let lengths = 0..=net.prefix_len();
    lengths.filter_map(move |len| IpNet::new(net.addr(), len).ok()).map(|net| net.trunc())
}

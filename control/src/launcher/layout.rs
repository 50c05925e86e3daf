//! What the kernel's routes, rules and addresses should be for one plan; and the steps from what
//! they are to that. Pure.
//!
//! Everything that outlives the device is marked by the routing protocol number [`PROTOCOL`] and
//! by the gateway's *slot*, a small number that is unique among the gateways of a network
//! namespace: it is part of the metric of `unreachable` routes, of the table's number and of each
//! rule's priority. So what belongs to a gateway can be read back from the kernel, also by the
//! next one in the slot after this one was killed.
//!
//! - An ordinary prefix lives in table main: a route into the device, and behind it an
//!   `unreachable` of worst metric, which remains when the device is gone.
//! - A prefix that covers a peer's outer address or may do so, and any default route, is *captured*: it lives
//!   in a table of the slot, and rules (longest prefix first) lead to it after asking main for
//!   something more specific. Outer packets carry [`OUTER_MARK`] and jump over all these rules.
//!   So a foreign route for the same prefix, a default route by DHCP say, never competes.
//!   Where no known peer is covered, there are two exceptions: what came out of the device and may not go back may take
//!   one; and so may all, where the prefix is only protected and within no routed one.
//! - A prefix that is only protected has the `unreachable` alone, with two exceptions. Within a
//!   routed prefix it has a route into the device as well, or it would shadow the wider one. So it
//!   has when captured, and the core drops its packets: with the `unreachable` alone,
//!   reverse-path filtering would refuse the peer's packets.
//! - Without transit, what came out of a tunnel may use any route but those into the device.
//! - The network of an inside address gets an `unreachable` too: its connected route dies with
//!   the device.
//!
//! Not done: a foreign route in main for exactly an ordinary prefix wins by its metric; the
//! administrator who put it there is taken to mean it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use braid_api::launcher::{KernelPlan, OUTER_MARK};
use ipnet::IpNet;

/// Routing protocol number of every route and rule that the launcher makes.
pub const PROTOCOL: u8 = 0xB1;
/// How many gateways one network namespace holds.
pub(super) const SLOTS: u8 = 16;
/// First of the slots' routing tables; also of the device groups.
pub(super) const TABLE_BASE: u32 = 0xB100;
/// Table main.
pub(super) const MAIN: u32 = 254;
/// Worst metric there is, that of slot 0; the following slots count down.
pub(super) const WORST_METRIC: u32 = u32::MAX;
/// Metric of routes into the device of slot 0; the following slots count up. What is below is for links that go
/// before ([`super::learned`]); the kernel takes none as it is for a metric of 0 (IPv6). No other program's routes shall
/// be taken for ours, nor ours for theirs: all lie above what routing daemons use (FRR 20, BIRD 32) and NetworkManager
/// for VPNs (50), and below what DHCP clients do (100 and more).
pub(super) const DEVICE_METRIC: u32 = 67;

/// Outer packets jump from here to [`PRIORITY_END`].
const PRIORITY_SKIP: u32 = 19_900;
/// First of the priorities by prefix length: four for each slot and length.
const PRIORITY_PREFIX: u32 = 20_000;
/// Two for each slot: the end of what came out of the device.
const PRIORITY_IIF: u32 = 28_300;
const PRIORITY_END: u32 = 28_400;
const PER_SLOT: u32 = 4;

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Via {
    /// An ICMP error.
    Unreachable,
    /// The device.
    Device,
}

/// A kernel route.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Route {
    /// Where it leads; first, so that sets list the unreachable ones first.
    pub(super) via: Via,
    /// Destination.
    pub(super) prefix: IpNet,
    /// Routing table.
    pub(super) table: u32,
    /// Lower wins.
    pub(super) metric: u32,
    /// Preferred source.
    pub(super) source: Option<IpAddr>,
}

impl Route {
    fn place(&self) -> (Via, IpNet, u32, u32) {
        (self.via, self.prefix, self.table, self.metric)
    }
}

/// What a rule does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Action {
    /// Nothing: a place to jump to.
    Nop,
    /// Jumps to a rule of this priority.
    Goto(u32),
    /// Looks into a table, and takes what it finds unless one of the conditions refuses it.
    Lookup {
        /// Routing table.
        table: u32,
        /// Prefixes of this length and shorter are refused.
        suppress_len: Option<u32>,
        /// Routes by a device of this group are refused.
        suppress_group: Option<u32>,
    },
    /// An ICMP error.
    Unreachable,
}

/// A routing policy rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rule {
    /// Of IPv6.
    pub v6: bool,
    /// Lower is asked first.
    pub(super) priority: u32,
    /// For packets of this mark.
    pub(super) mark: Option<u32>,
    /// For packets that came in by this device.
    pub(super) iif: Option<String>,
    /// For packets to this prefix.
    pub(super) to: Option<IpNet>,
    /// What it does.
    pub(super) action: Action,
}

impl Rule {
    /// The slot that a rule of our protocol number belongs to.
    pub(super) fn slot(&self) -> Option<u8> {
        let slots = u32::from(SLOTS);
        let p = self.priority;
        let slot = if (PRIORITY_SKIP..PRIORITY_SKIP + slots).contains(&p) {
            p - PRIORITY_SKIP
        } else if (PRIORITY_PREFIX..PRIORITY_IIF).contains(&p) {
            (p - PRIORITY_PREFIX) / PER_SLOT % slots
        } else if (PRIORITY_IIF..PRIORITY_IIF + 2 * slots).contains(&p) {
            (p - PRIORITY_IIF) / 2
        } else if (PRIORITY_END..PRIORITY_END + slots).contains(&p) {
            p - PRIORITY_END
        } else {
            return None;
        };
        u8::try_from(slot).ok()
    }

    /// The order of adding: what is jumped to before the jump, the jump before what it jumps
    /// over, a look-up before the refusal behind it.
    fn order(&self) -> (u8, u32) {
        (if self.action == Action::Nop { 0 } else { 1 }, self.priority)
    }
}

/// The table of a slot; also the group of its device.
pub(super) fn table_of(slot: u8) -> u32 {
    TABLE_BASE + u32::from(slot)
}

/// The metric of a slot's `unreachable` routes.
pub(super) fn unreachable_metric(slot: u8) -> u32 {
    WORST_METRIC - u32::from(slot)
}

/// The slot that an `unreachable` route of our protocol number belongs to.
pub(super) fn slot_of_metric(metric: u32) -> Option<u8> {
    u8::try_from(WORST_METRIC - metric).ok().filter(|slot| *slot < SLOTS)
}

/// Of what main has for a captured prefix, up to which length it is refused.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    /// To what came out of the device.
    from_device: u32,
    /// To all else.
    elsewhere: u32,
}

/// What belongs to a gateway in the kernel, the device and its settings apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Layout {
    /// Addresses on the device.
    pub(super) addresses: BTreeSet<IpNet>,
    /// Routes.
    pub(super) routes: BTreeSet<Route>,
    /// Rules.
    pub(super) rules: BTreeSet<Rule>,
}

impl Layout {
    /// What a plan asks for. `ipv6` tells whether the kernel has IPv6.
    pub(super) fn of(plan: &KernelPlan, slot: u8, ipv6: bool) -> Self {
        Self::with(plan, slot, ipv6, &BTreeMap::new())
    }

    /// The same beside learned prefixes ([`super::learned`]) with the sources of their routes: those that are
    /// captured get the rules that lead to them, and what is protected within one is routed too.
    pub(super) fn with(
        plan: &KernelPlan,
        slot: u8,
        ipv6: bool,
        learned: &BTreeMap<IpNet, Option<IpAddr>>,
    ) -> Self {
        let mut layout = Self { addresses: plan.addresses.iter().copied().collect(), ..Self::default() };
        let peers: BTreeSet<IpAddr> = plan.peers.iter().copied().collect();
        let covers_peer = |prefix: &IpNet| {
            let covered = prefix.network()..=prefix.broadcast();
            prefix.prefix_len() == 0 || peers.range(covered).next().is_some()
        };
        let mut sources = BTreeMap::new();
        for route in &plan.routes {
            sources.entry(route.prefix.trunc()).or_insert(route.source);
        }
        let covering = |prefix: &IpNet| {
            let shorter = (0..prefix.prefix_len()).rev();
            let mut nets = shorter.filter_map(|len| IpNet::new(prefix.addr(), len).ok());
            nets.find_map(|net| sources.get(&net.trunc()).or_else(|| learned.get(&net.trunc())).copied())
        };
        let mut placed = sources.clone();
        let refusal = |prefix: &IpNet| {
            let len = u32::from(prefix.prefix_len());
            let is_peers = covers_peer(prefix);
            let is_routed = sources.contains_key(prefix) || learned.contains_key(prefix);
            let elsewhere = if is_peers || is_routed || covering(prefix).is_some() { len } else { len - 1 };
            Refusal { elsewhere, from_device: if is_peers { len } else { len - 1 } }
        };
        let mut captured: BTreeMap<IpNet, Refusal> = learned
            .keys()
            .filter(|prefix| covers_peer(prefix))
            .map(|prefix| (*prefix, refusal(prefix)))
            .collect();
        let apart: BTreeSet<IpNet> = plan.apart.iter().map(IpNet::trunc).collect();
        let is_captured = |prefix: &IpNet| covers_peer(prefix) || apart.contains(prefix);
        for prefix in plan.protect.iter().map(IpNet::trunc) {
            if let Some(source) = covering(&prefix).or_else(|| is_captured(&prefix).then_some(None)) {
                placed.entry(prefix).or_insert(source);
            }
        }
        let networks = plan.addresses.iter().filter(|a| a.prefix_len() < a.max_prefix_len());
        let all = plan.protect.iter().chain(networks).map(IpNet::trunc);
        for prefix in all.chain(sources.keys().copied()).collect::<BTreeSet<_>>() {
            let table = if is_captured(&prefix) { table_of(slot) } else { MAIN };
            if is_captured(&prefix) {
                captured.entry(prefix).or_insert(refusal(&prefix));
            }
            layout.place(prefix, table, slot, placed.get(&prefix).copied());
        }
        for v6 in [false, true] {
            if !v6 || ipv6 {
                layout.add_rules(plan, slot, v6, &captured);
            }
        }
        layout
    }

    /// `source` is that of the route into the device; `None` for a prefix that has none.
    fn place(&mut self, prefix: IpNet, table: u32, slot: u8, source: Option<Option<IpAddr>>) {
        let metric = DEVICE_METRIC + u32::from(slot);
        if let Some(source) = source {
            self.routes.insert(Route { via: Via::Device, prefix, table, metric, source });
        }
        let metric = unreachable_metric(slot);
        self.routes.insert(Route { via: Via::Unreachable, prefix, table, metric, source: None });
    }

    fn add_rules(&mut self, plan: &KernelPlan, slot: u8, v6: bool, captured: &BTreeMap<IpNet, Refusal>) {
        let lookup =
            |table, suppress_len, suppress_group| Action::Lookup { table, suppress_len, suppress_group };
        let group = Some(table_of(slot));
        let blank = Rule { v6, priority: 0, mark: None, iif: None, to: None, action: Action::Nop };
        let from_device = Rule { iif: Some(plan.device.clone()), ..blank.clone() };
        let place = u32::from(slot);
        let mut any = false;
        for (prefix, refused) in captured.iter().filter(|(p, _)| matches!(p, IpNet::V6(_)) == v6) {
            any = true;
            let len = u32::from(prefix.prefix_len());
            let shorter = u32::from(prefix.max_prefix_len()) - len;
            let priority = PRIORITY_PREFIX + (shorter * u32::from(SLOTS) + place) * PER_SLOT;
            // The kernel lists a rule for all destinations without a destination.
            let to = (len > 0).then_some(*prefix);
            let mut add = |base: &Rule, offset, action| {
                let rule = Rule { priority: priority + offset, to, action, ..base.clone() };
                self.rules.insert(rule);
            };
            if !plan.transit {
                add(&from_device, 0, lookup(MAIN, Some(refused.from_device), group));
                add(&from_device, 1, Action::Unreachable);
            }
            add(&blank, 2, lookup(MAIN, Some(refused.elsewhere), None));
            add(&blank, 3, lookup(table_of(slot), None, None));
        }
        let mut add = |base: &Rule, priority, action| {
            self.rules.insert(Rule { priority, action, ..base.clone() });
        };
        if any {
            let end = PRIORITY_END + place;
            let marked = Rule { mark: Some(OUTER_MARK), ..blank.clone() };
            add(&marked, PRIORITY_SKIP + place, Action::Goto(end));
            add(&blank, end, Action::Nop);
        }
        if !plan.transit {
            let priority = PRIORITY_IIF + 2 * place;
            add(&from_device, priority, lookup(MAIN, None, group));
            add(&from_device, priority + 1, Action::Unreachable);
        }
    }

    /// Prefixes that have an `unreachable` route.
    pub(super) fn unreachable(&self) -> impl Iterator<Item = IpNet> {
        self.routes.iter().filter(|r| r.via == Via::Unreachable).map(|r| r.prefix)
    }
}

/// One change of the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Adds an address to the device.
    AddAddress(IpNet),
    /// Removes an address from the device.
    RemoveAddress(IpNet),
    /// Adds a route.
    AddRoute(Route),
    /// Gives a route another preferred source, in one operation.
    ChangeRoute {
        /// As it is.
        from: Route,
        /// As it shall be.
        to: Route,
    },
    /// Removes a route.
    RemoveRoute(Route),
    /// Adds a rule.
    AddRule(Rule),
    /// Removes a rule.
    RemoveRule(Rule),
}

impl Step {
    /// Whether it takes something away: such steps come last, and one that fails stops nothing.
    pub(super) fn removes(&self) -> bool {
        matches!(self, Self::RemoveAddress(_) | Self::RemoveRoute(_) | Self::RemoveRule(_))
    }

    /// The step that undoes this one.
    pub(super) fn inverse(self) -> Self {
        match self {
            Self::AddAddress(address) => Self::RemoveAddress(address),
            Self::RemoveAddress(address) => Self::AddAddress(address),
            Self::AddRoute(route) => Self::RemoveRoute(route),
            Self::ChangeRoute { from, to } => Self::ChangeRoute { from: to, to: from },
            Self::RemoveRoute(route) => Self::AddRoute(route),
            Self::AddRule(rule) => Self::RemoveRule(rule),
            Self::RemoveRule(rule) => Self::AddRule(rule),
        }
    }
}

/// The steps from one layout to the other: first all that is new, protection before what it
/// protects, then the removals in the opposite order. What is in both is not touched.
pub(super) fn steps(from: &Layout, to: &Layout) -> Vec<Step> {
    let mut add = Vec::new();
    let mut remove = Vec::new();
    let old: BTreeMap<_, &Route> =
        from.routes.difference(&to.routes).map(|route| (route.place(), route)).collect();
    let mut changed = BTreeSet::new();
    let new: Vec<&Route> = to.routes.difference(&from.routes).collect();
    let is = |via| move |r: &&&Route| r.via == via;
    add.extend(new.iter().filter(is(Via::Unreachable)).map(|r| Step::AddRoute((*r).clone())));
    add.extend(to.addresses.difference(&from.addresses).map(|a| Step::AddAddress(*a)));
    for route in new.iter().filter(is(Via::Device)) {
        match old.get(&route.place()) {
            Some(old) => {
                changed.insert((*old).clone());
                add.push(Step::ChangeRoute { from: (*old).clone(), to: (*route).clone() });
            }
            None => add.push(Step::AddRoute((*route).clone())),
        }
    }
    let mut rules: Vec<&Rule> = to.rules.difference(&from.rules).collect();
    rules.sort_by_key(|rule| rule.order());
    add.extend(rules.into_iter().cloned().map(Step::AddRule));

    let old: Vec<&Route> = old.into_values().filter(|r| !changed.contains(*r)).collect();
    remove.extend(old.iter().filter(is(Via::Unreachable)).map(|r| Step::RemoveRoute((*r).clone())));
    remove.extend(from.addresses.difference(&to.addresses).map(|a| Step::RemoveAddress(*a)));
    remove.extend(old.iter().filter(is(Via::Device)).map(|r| Step::RemoveRoute((*r).clone())));
    let mut rules: Vec<&Rule> = from.rules.difference(&to.rules).collect();
    rules.sort_by_key(|rule| rule.order());
    remove.extend(rules.into_iter().cloned().map(Step::RemoveRule));
    remove.reverse();
    add.extend(remove);
    add
}

//! What control knows that the core holds, and the changes that lead from there to what it should.
//!
//! Pure. Changes name SAs by their specification: keys join them only in the transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use braid_api::{
    Direction, Encapsulation, GatewaySettings, Group, GroupId, SaId, Spi, Suite, Target, Tunnel, TunnelId,
};
use ipnet::IpNet;

use crate::{
    desired::{SaSpec, Tables, WireGuardSpec},
    keys::KeyDigest,
};

/// An SA that the core holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldSa {
    /// Its tunnel.
    pub tunnel: TunnelId,
    /// Ours or the peer's.
    pub direction: Direction,
    /// On the wire.
    pub spi: Spi,
    /// Encryption and integrity.
    pub suite: Suite,
    /// Its key, unless it is none of the configuration's.
    pub digest: Option<KeyDigest>,
}

/// The core's tables as far as they were confirmed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mirror {
    /// What concerns all tunnels.
    pub gateway: Option<GatewaySettings>,
    /// Tunnels whose settings are known.
    pub tunnels: BTreeMap<TunnelId, Arc<Tunnel>>,
    /// Every tunnel, also those of which only the number is known.
    pub held: BTreeSet<TunnelId>,
    sas: BTreeMap<SaId, HeldSa>,
    keys: BTreeSet<(TunnelId, Direction, Spi, KeyDigest)>,
    /// WireGuard's keys that were put in this connection.
    pub wireguard: BTreeMap<TunnelId, WireGuardSpec>,
    /// Groups whose members are known to be put in this connection.
    pub groups: BTreeMap<GroupId, Group>,
    /// Routes put in this connection.
    pub routes: BTreeMap<IpNet, Target>,
    /// The core may hold more than was put in this connection.
    pub stale: bool,
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// What concerns all tunnels.
    SetGateway(GatewaySettings),
    /// Creates or changes a tunnel.
    PutTunnel(Arc<Tunnel>),
    /// Sets WireGuard's keys of a tunnel.
    PutWireGuard(TunnelId, WireGuardSpec),
    /// Removes an SA.
    RemoveSa(SaId),
    /// Installs an SA.
    PutSa(SaId, TunnelId, Direction, SaSpec),
    /// Creates or changes a group.
    PutGroup(Group),
    /// Creates or changes a route.
    PutRoute(IpNet, Target),
    /// Removes a route.
    RemoveRoute(IpNet),
    /// Removes a group.
    RemoveGroup(GroupId),
    /// Removes a tunnel with its SAs.
    RemoveTunnel(TunnelId),
    /// Removes what was not put in this connection.
    Sweep,
}

/// What else puts routes into the core, beside the desired tables.
pub trait Beside {
    /// The core still has routes of its into this group.
    fn holds(&self, group: GroupId) -> bool;
    /// It has a route for this prefix, or is about to.
    fn has_route(&self, prefix: &IpNet) -> bool;
    /// It has put all that it has: what is left of an earlier life may go.
    fn may_sweep(&self) -> bool;
}

impl Mirror {
    /// Of a core that may hold anything.
    pub fn stale() -> Self {
        Mirror { stale: true, ..Mirror::default() }
    }

    /// Whether the core holds an SA of this key for this tunnel and direction.
    pub fn holds_sa(&self, tunnel: TunnelId, direction: Direction, spec: &SaSpec) -> bool {
        self.keys.contains(&(tunnel, direction, spec.spi, spec.digest))
    }

    /// SAs that the core holds.
    pub fn sas(&self) -> impl Iterator<Item = (SaId, &HeldSa)> {
        self.sas.iter().map(|(id, sa)| (*id, sa))
    }

    /// The core holds this SA.
    pub fn insert_sa(&mut self, id: SaId, sa: HeldSa) {
        self.keys.extend(sa.digest.map(|digest| (sa.tunnel, sa.direction, sa.spi, digest)));
        self.sas.insert(id, sa);
    }

    fn remove_sa(&mut self, id: SaId) {
        if let Some(sa) = self.sas.remove(&id)
            && let Some(digest) = sa.digest
        {
            self.keys.remove(&(sa.tunnel, sa.direction, sa.spi, digest));
        }
    }

    fn remove_sas(&mut self, of: impl Fn(TunnelId) -> bool) {
        let gone: Vec<SaId> = self.sas.iter().filter(|(_, sa)| of(sa.tunnel)).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| self.remove_sa(id));
    }

    /// The changes that lead to `want`, in an order in which each is possible. `install` says
    /// whether the SAs of a tunnel may be installed; they are numbered when they are sent.
    pub fn changes_to(
        &self,
        want: &Tables,
        beside: &impl Beside,
        install: impl Fn(TunnelId) -> bool,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.stale || self.gateway != want.gateway {
            changes.extend(want.gateway.clone().map(Change::SetGateway));
        }
        let tunnels = want.tunnels.values().filter(|tunnel| self.tunnels.get(&tunnel.id) != Some(tunnel));
        changes.extend(tunnels.cloned().map(Change::PutTunnel));
        let keys = want.wireguard.iter().filter(|(id, spec)| self.wireguard.get(id) != Some(spec));
        changes.extend(keys.map(|(id, spec)| Change::PutWireGuard(*id, spec.clone())));
        self.change_sas(want, install, &mut changes);
        let groups = want.groups.values().filter(|group| self.groups.get(&group.id) != Some(group));
        changes.extend(groups.cloned().map(Change::PutGroup));
        let routes = want.routes.iter().filter(|(prefix, target)| self.routes.get(prefix) != Some(target));
        changes.extend(routes.map(|(prefix, target)| Change::PutRoute(*prefix, *target)));
        let gone = self.routes.keys().filter(|prefix| !want.routes.contains_key(prefix));
        // A route that takes its place needs no gap.
        changes.extend(gone.filter(|prefix| !beside.has_route(prefix)).copied().map(Change::RemoveRoute));
        let gone = self.groups.keys().filter(|id| !want.groups.contains_key(id) && !beside.holds(**id));
        changes.extend(gone.copied().map(Change::RemoveGroup));
        let gone = self.tunnels.keys().filter(|id| !want.tunnels.contains_key(id));
        changes.extend(gone.copied().map(Change::RemoveTunnel));
        if self.stale && beside.may_sweep() {
            changes.push(Change::Sweep);
        }
        changes
    }

    /// Removals first: a new SA may have the SPI of an old one.
    fn change_sas(&self, want: &Tables, install: impl Fn(TunnelId) -> bool, changes: &mut Vec<Change>) {
        let kept = |sa: &HeldSa| {
            want.sas.get(&(sa.tunnel, sa.direction)).is_some_and(|spec| sa.is(sa.tunnel, sa.direction, spec))
        };
        changes.extend(self.sas.iter().filter(|(_, sa)| !kept(sa)).map(|(id, _)| Change::RemoveSa(*id)));
        for ((tunnel, direction), spec) in &want.sas {
            if !self.holds_sa(*tunnel, *direction, spec) && install(*tunnel) {
                changes.push(Change::PutSa(SaId(0), *tunnel, *direction, spec.clone()));
            }
        }
    }

    /// A change was confirmed.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::SetGateway(settings) => self.gateway = Some(settings),
            Change::PutTunnel(tunnel) => {
                self.held.insert(tunnel.id);
                // The core forgets them with the protocol.
                if tunnel.encapsulation != Encapsulation::WireGuard {
                    self.wireguard.remove(&tunnel.id);
                }
                self.tunnels.insert(tunnel.id, tunnel);
            }
            Change::PutWireGuard(id, spec) => {
                self.wireguard.insert(id, spec);
            }
            Change::RemoveSa(id) => self.remove_sa(id),
            Change::PutSa(id, tunnel, direction, spec) => {
                let (spi, suite, digest) = (spec.spi, spec.suite, Some(spec.digest));
                self.insert_sa(id, HeldSa { tunnel, direction, spi, suite, digest });
            }
            Change::PutGroup(group) => {
                self.groups.insert(group.id, group);
            }
            Change::PutRoute(prefix, target) => {
                self.routes.insert(prefix, target);
            }
            Change::RemoveRoute(prefix) => {
                self.routes.remove(&prefix);
            }
            Change::RemoveGroup(id) => {
                self.groups.remove(&id);
            }
            Change::RemoveTunnel(id) => {
                self.tunnels.remove(&id);
                self.held.remove(&id);
                self.wireguard.remove(&id);
                self.remove_sas(|tunnel| tunnel == id);
            }
            Change::Sweep => {
                self.stale = false;
                self.held.retain(|id| self.tunnels.contains_key(id));
                let tunnels = core::mem::take(&mut self.tunnels);
                self.remove_sas(|tunnel| !tunnels.contains_key(&tunnel));
                self.tunnels = tunnels;
            }
        }
    }
}

impl HeldSa {
    fn is(&self, tunnel: TunnelId, direction: Direction, spec: &SaSpec) -> bool {
        self.tunnel == tunnel
            && self.direction == direction
            && self.spi == spec.spi
            && self.suite == spec.suite
            && self.digest == Some(spec.digest)
    }
}

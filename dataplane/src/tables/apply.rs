//! The writer: transactions, all or nothing.
//!
//! A transaction is applied to the copy of the tables that no reader sees, each change leaving behind what
//! undoes it. The first operation that fails takes everything back. When all have succeeded the copies
//! change places, and the same changes, whose objects exist already, go into the other one.
//!
//! Order of effects: tunnels are masked before the tables change, and offered after.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, RwLockWriteGuard},
};

use braid_api::{
    BfdLink, BootId, Encapsulation, Epoch, GatewaySettings, Generation, GroupId, MAX_OPS, MAX_STASH_ENTRIES,
    MAX_STASH_LEN, Member, Op, RejectReason, Rejected, Sa, SaId, StashValue, Target, Transaction, TunnelId,
    WireGuard,
};
use ipnet::IpNet;

use super::{
    Carrier, Change, Gateway, Group, MAX_GROUPS, MAX_MEMBERS, MAX_TUNNELS, Pins, Reader, Tables, Ticks,
    Tunnel, TunnelLive, TunnelStates, bfd_links,
    fib::Route,
    ledger::{GroupEntry, Ledger, TunnelEntry},
    left_right::LeftRight,
    mtu::smallest_inner_mtu,
    sas::{Foundry, SaHandle},
    state::{BY_CORE, DRAINING, MASKED},
};
use crate::{esp::Engine, wireguard::Peer};

/// Longest name of a tunnel, in bytes.
const MAX_NAME_LEN: usize = 64;
/// Pairs of groups of which one follows the other's flows in one transaction, each a look at all buckets: 10 ms.
const MAX_MOVES: usize = 512;
/// The smallest MTU of IPv4 (RFC 791 section 3.2).
const MIN_MTU: u16 = 68;

/// A transaction is in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The transaction's.
    pub epoch: Epoch,
    /// Tunnels that came, changed their settings or went, in no order.
    pub tunnels: Vec<TunnelId>,
    /// The BFD sessions outside the tunnels, if they were set.
    pub bfd_links: Option<Vec<BfdLink>>,
}

/// Owns the tables; there is one.
pub struct Writer {
    tables: LeftRight,
    states: TunnelStates,
    pub(super) ledger: Ledger,
    foundry: Foundry,
    workers: usize,
    sockets: Option<Vec<(SocketAddr, Encapsulation)>>,
    /// Number of the current synchronisation with a control; 0 before the first.
    sync: u32,
    last_epoch: Option<Epoch>,
    table_generation: u64,
    /// SAs whose lifetime was reported, and whether as hard.
    pub(super) reported: BTreeMap<SaId, bool>,
    /// Where peers were, as far as reported, of tunnels that follow them.
    pub(super) peers: Vec<Option<SocketAddr>>,
    /// Packets of SAs that control knows of.
    pub(super) told: BTreeMap<SaId, u64>,
}

impl Writer {
    /// Empty tables for this life of the core. `iv_secret` is 32 random bytes, never used before.
    pub fn new(workers: usize, boot: BootId, engine: Engine, iv_secret: &[u8; 32]) -> Self {
        let states = TunnelStates::new();
        let settings = GatewaySettings {
            hash_seed: [0; 16],
            symmetric_hash: false,
            pin_replies: false,
            icmp_source: Vec::new(),
            own: Vec::new(),
        };
        let gateway = Arc::new(Gateway { settings, pins: None });
        let copy = || Tables::new(states.clone(), gateway.clone());
        Writer {
            tables: LeftRight::new(copy(), copy()),
            states,
            ledger: Ledger::default(),
            foundry: Foundry::new(boot, engine, iv_secret),
            workers,
            sockets: None,
            sync: 0,
            last_epoch: None,
            table_generation: 0,
            reported: BTreeMap::new(),
            peers: Vec::new(),
            told: BTreeMap::new(),
        }
    }

    /// Access for one more thread.
    pub fn reader(&self) -> Reader {
        self.tables.reader()
    }

    /// Where every tunnel stands.
    pub fn states(&self) -> &TunnelStates {
        &self.states
    }

    /// This life of the core.
    pub fn boot(&self) -> BootId {
        self.foundry.boot
    }

    /// The outer sockets that exist; from now on a tunnel with another local address is rejected.
    pub fn set_sockets(&mut self, sockets: Vec<(SocketAddr, Encapsulation)>) {
        self.sockets = Some(sockets);
    }

    /// A control has said `Hello`: what it does not put again, its `Sweep` removes. Returns the number
    /// of this adoption, from 1.
    pub fn begin_sync(&mut self) -> Generation {
        self.sync = self.sync.wrapping_add(1);
        self.last_epoch = None;
        self.told.clear();
        self.peers.clear();
        Generation(self.sync)
    }

    /// Applies a transaction at `now`, in monotonic nanoseconds.
    ///
    /// Waits until no reader holds the copy that is to change: at most for one batch.
    ///
    /// # Errors
    /// The first operation at fault; then nothing has changed.
    pub fn apply(&mut self, transaction: Transaction, now: u64) -> Result<Applied, Rejected> {
        let Transaction { epoch, ops } = transaction;
        let reject = |op: usize, reason| Rejected { epoch, op: op as u32, reason };
        if ops.len() > MAX_OPS {
            return Err(reject(MAX_OPS, RejectReason::TooManyOps));
        }
        if self.last_epoch.is_some_and(|last| epoch <= last) {
            return Err(reject(0, RejectReason::StaleEpoch));
        }
        self.last_epoch = Some(epoch);
        let mut attempt = self.attempt(now);
        for (index, op) in ops.into_iter().enumerate() {
            if let Err(reason) = attempt.op(op) {
                attempt.roll_back();
                return Err(reject(index, reason));
            }
        }
        let mut done = attempt.done();
        for (from, to) in core::mem::take(&mut done.moved).values() {
            to.take_over(from, Ticks::from_nanos(now));
        }
        let bfd_links = done.bfd_links.take();
        let tunnels = self.commit(done);
        Ok(Applied { epoch, tunnels, bfd_links })
    }

    /// The outer path of a tunnel takes packets of this size, in bytes, or as many as its settings say.
    /// Returns the inner MTU from now on.
    pub fn set_path_mtu(&mut self, id: TunnelId, path_mtu: Option<u16>) -> Option<u16> {
        let live = self.ledger.tunnel(id)?.tunnel.live.clone();
        if live.path_mtu() != path_mtu {
            live.set_path_mtu(path_mtu);
            let mut attempt = self.attempt(0);
            attempt.renew_tunnel(id);
            let done = attempt.done();
            self.commit(done);
        }
        Some(self.ledger.tunnel(id)?.tunnel.mtu)
    }

    /// Keeps opaque bytes at once, beside all transactions; the tables do not change.
    ///
    /// # Errors
    /// [`RejectReason::StashFull`].
    pub fn put_stash(&mut self, key: u64, value: StashValue) -> Result<(), RejectReason> {
        put_stash(&mut self.ledger, key, value)?;
        self.ledger.commit();
        Ok(())
    }

    pub(super) fn routes(&self) -> usize {
        // Between transactions the two copies are equal.
        self.tables.passive().fib.len()
    }

    fn attempt(&mut self, now: u64) -> Attempt<'_> {
        Attempt {
            tables: self.tables.passive(),
            ledger: &mut self.ledger,
            foundry: &self.foundry,
            sockets: self.sockets.as_deref(),
            workers: self.workers,
            sync: self.sync,
            now,
            undo: Vec::new(),
            done: Done::default(),
        }
    }

    fn commit(&mut self, done: Done) -> Vec<TunnelId> {
        for (&tunnel, bits) in &done.states {
            self.states.set(tunnel, bits.set);
        }
        if !done.redo.is_empty() {
            self.swap(done.redo, done.visible);
        }
        for (&tunnel, bits) in &done.states {
            self.states.clear(tunnel, bits.clear);
        }
        for (live, remote) in &done.remotes {
            live.set_remote(Some(*remote));
        }
        for live in &done.paths {
            live.set_path_mtu(None);
        }
        self.ledger.commit();
        done.tunnels
    }

    /// Publishes the passive copy, and brings the other one up to it.
    fn swap(&mut self, changes: Vec<Change>, visible: bool) {
        if visible {
            self.table_generation += 1;
        }
        self.tables.passive().generation = self.table_generation;
        self.tables.publish();
        let mut other = self.tables.passive();
        for change in changes {
            other.set(change);
        }
        other.generation = self.table_generation;
    }
}

/// What a transaction that succeeds leaves to be done.
#[derive(Default)]
struct Done {
    /// For the other copy.
    redo: Vec<Change>,
    /// Whether readers would notice.
    visible: bool,
    states: BTreeMap<TunnelId, StateBits>,
    remotes: Vec<(Arc<TunnelLive>, SocketAddr)>,
    /// Groups that a prefix has left, and entered.
    moved: BTreeMap<(GroupId, GroupId), (Arc<Group>, Arc<Group>)>,
    /// Tunnels of whose paths nothing is to be believed but what their settings say.
    paths: Vec<Arc<TunnelLive>>,
    tunnels: Vec<TunnelId>,
    bfd_links: Option<Vec<BfdLink>>,
}

/// A bit is in one of both at most.
#[derive(Clone, Copy, Default)]
struct StateBits {
    set: u8,
    clear: u8,
}

/// A transaction under way.
struct Attempt<'a> {
    tables: RwLockWriteGuard<'a, Tables>,
    ledger: &'a mut Ledger,
    foundry: &'a Foundry,
    sockets: Option<&'a [(SocketAddr, Encapsulation)]>,
    workers: usize,
    sync: u32,
    now: u64,
    undo: Vec<Change>,
    done: Done,
}

type Outcome = Result<(), RejectReason>;

impl Attempt<'_> {
    fn done(self) -> Done {
        self.done
    }

    fn roll_back(mut self) {
        while let Some(change) = self.undo.pop() {
            self.tables.set(change);
        }
        self.ledger.roll_back();
    }

    fn change(&mut self, change: Change) {
        self.done.visible = true;
        self.change_silently(change);
    }

    /// A change that no reader would notice.
    fn change_silently(&mut self, change: Change) {
        self.done.redo.push(change.clone());
        let back = self.tables.set(change);
        self.undo.push(back);
    }

    fn op(&mut self, op: Op) -> Outcome {
        match op {
            Op::SetGateway(mut settings) => {
                // As the packet path searches them.
                settings.own.sort_unstable();
                if self.tables.gateway.settings != settings {
                    let known = self.tables.gateway.pins.clone();
                    let pins = settings.pin_replies.then(|| known.unwrap_or_else(|| Arc::new(Pins::new())));
                    self.change(Change::Gateway(Arc::new(Gateway { settings, pins })));
                }
                Ok(())
            }
            Op::PutTunnel(settings) => self.put_tunnel(settings),
            Op::RemoveTunnel(id) => self.remove_tunnel(id),
            Op::PutSa(sa) => self.put_sa(sa),
            Op::RemoveSa(id) => self.remove_sa(id),
            Op::PutWireGuard(settings) => self.put_wireguard(&settings),
            Op::PutGroup(settings) => self.put_group(settings),
            Op::RemoveGroup(id) => self.remove_group(id),
            Op::PutRoute { prefix, target } => self.put_route(prefix, target),
            Op::RemoveRoute { prefix } => {
                self.remove_route(prefix.trunc());
                Ok(())
            }
            Op::Mask(id) => self.set_state(id, MASKED, 0),
            Op::Unmask(id) => self.set_state(id, 0, MASKED | BY_CORE),
            Op::Drain(id) => self.set_state(id, DRAINING, 0),
            Op::Undrain(id) => self.set_state(id, 0, DRAINING),
            Op::SetBfdLinks(links) => {
                bfd_links::check(&links)?;
                self.done.bfd_links = Some(links);
                Ok(())
            }
            Op::Sweep => self.sweep(),
            Op::PutStash { key, value } => self.put_stash(key, value),
            Op::RemoveStash { key } => {
                self.ledger.set_stash(key, None);
                Ok(())
            }
        }
    }

    fn put_tunnel(&mut self, settings: braid_api::Tunnel) -> Outcome {
        let id = settings.id;
        self.check_tunnel(&settings)?;
        let Some(entry) = self.ledger.tunnel(id).cloned() else {
            let live = Arc::new(TunnelLive::new(self.workers, settings.remote));
            self.ledger.set_name(&settings.name, Some(id));
            let remote = settings.remote;
            let tunnel = Arc::new(Tunnel::new(Arc::new(settings), None, live, remote, None));
            self.install(TunnelEntry { tunnel, sas: Vec::new(), users: 0, synced: self.sync });
            self.done.tunnels.push(id);
            return self.set_state(id, MASKED, DRAINING | BY_CORE);
        };
        self.ledger.set_tunnel_synced(id, self.sync);
        let old = &entry.tunnel;
        if *old.settings == settings && old.live.path_mtu().is_none() {
            return Ok(());
        }
        if old.settings.name != settings.name {
            self.ledger.set_name(&old.settings.name, None);
            self.ledger.set_name(&settings.name, Some(id));
        }
        // A peer that has moved stays where it was heard, unless control names a new address.
        let moved = settings.remote.filter(|_| settings.remote != old.settings.remote);
        if let Some(remote) = moved {
            self.done.remotes.push((old.live.clone(), remote));
        }
        // Control looks at paths too, and has heard of what was found. Where it has not, that is found again.
        self.done.paths.extend(old.live.path_mtu().map(|_| old.live.clone()));
        let remote = moved.or_else(|| old.live.remote());
        let other_protocol = is_wireguard(&old.settings) != is_wireguard(&settings);
        if other_protocol {
            self.forget_peer(old);
        }
        let outbound = if other_protocol { None } else { old.outbound.clone() };
        let tunnel = Tunnel::new(Arc::new(settings), outbound, old.live.clone(), remote, None);
        self.install(TunnelEntry { tunnel: Arc::new(tunnel), synced: self.sync, ..entry });
        if other_protocol {
            self.renew_tunnel(id);
        }
        self.done.tunnels.push(id);
        Ok(())
    }

    fn check_tunnel(&self, settings: &braid_api::Tunnel) -> Outcome {
        if settings.id.0 as usize >= MAX_TUNNELS {
            return Err(RejectReason::IdOutOfRange);
        }
        let taken = self.ledger.name(&settings.name).is_some_and(|holder| holder != settings.id);
        let too_long = |name: &String| name.len() > MAX_NAME_LEN;
        let uplink_too_long = settings.uplink.as_ref().is_some_and(too_long);
        if settings.name.is_empty() || too_long(&settings.name) || uplink_too_long || taken {
            return Err(RejectReason::BadName);
        }
        let socket = (settings.local, settings.encapsulation);
        if self.sockets.is_some_and(|sockets| !sockets.contains(&socket)) {
            return Err(RejectReason::NoSocket);
        }
        let outer_v6 = settings.remote.unwrap_or(settings.local).is_ipv6();
        let mtu = smallest_inner_mtu(settings.path_mtu, outer_v6, settings.encapsulation);
        if mtu < MIN_MTU || settings.clamp_mtu < MIN_MTU {
            return Err(RejectReason::BadMtu);
        }
        if let Some(probe) = settings.probe {
            let ours = |v4: bool| settings.inside.iter().any(|address| address.is_ipv4() == v4);
            let peer = settings.peer_inside.iter().any(|address| ours(address.is_ipv4()));
            if !peer || probe.interval.is_zero() || probe.multiplier == 0 {
                return Err(RejectReason::BadProbe);
            }
        }
        let usable = |(index, bfd): (usize, &braid_api::Bfd)| {
            let alone =
                settings.bfd[..index].iter().all(|other| other.local.is_ipv6() != bfd.local.is_ipv6());
            let ours = settings.inside.contains(&bfd.local) && bfd.local.is_ipv6() == bfd.remote.is_ipv6();
            alone && ours && braid_bfd::Config::new(bfd.interval, bfd.multiplier).is_ok()
        };
        if settings.bfd.iter().enumerate().all(usable) { Ok(()) } else { Err(RejectReason::BadBfd) }
    }

    fn install(&mut self, entry: TunnelEntry) {
        let id = entry.tunnel.settings.id;
        self.change(Change::Tunnel(id, Some(entry.tunnel.clone())));
        self.ledger.set_tunnel(id, Some(entry));
    }

    fn remove_tunnel(&mut self, id: TunnelId) -> Outcome {
        let entry = self.ledger.tunnel(id).cloned().ok_or(RejectReason::UnknownTunnel)?;
        if entry.users > 0 {
            return Err(RejectReason::InUse);
        }
        for sa in &entry.sas {
            self.forget_sa(*sa);
        }
        self.forget_peer(&entry.tunnel);
        // Before the slot is cleared: a mask is set before the tables change.
        self.set_state(id, MASKED, DRAINING | BY_CORE)?;
        self.ledger.set_name(&entry.tunnel.settings.name, None);
        self.ledger.set_tunnel(id, None);
        self.change(Change::Tunnel(id, None));
        self.done.tunnels.push(id);
        Ok(())
    }

    /// WireGuard's keys of a tunnel that goes, or that has another protocol from now on.
    fn forget_peer(&mut self, tunnel: &Tunnel) {
        if let Some(peer) = tunnel.outbound.as_ref().and_then(Carrier::wireguard) {
            self.change(Change::Peer(peer.index, None));
        }
    }

    fn put_wireguard(&mut self, settings: &WireGuard) -> Outcome {
        let id = settings.tunnel;
        let entry = self.ledger.tunnel(id).cloned().ok_or(RejectReason::UnknownTunnel)?;
        let old = &entry.tunnel;
        if !is_wireguard(&old.settings) {
            return Err(RejectReason::OtherProtocol);
        }
        let check = self.foundry.wireguard_check(settings);
        let before = old.outbound.as_ref().and_then(Carrier::wireguard);
        if before.is_some_and(|before| before.check == check) {
            self.done.tunnels.push(id);
            return Ok(());
        }
        let peers = &self.tables.peers;
        let peer = Arc::new(self.foundry.make_peer(settings, check, |index| peers.contains_key(&index))?);
        // By the socket, our key and its own, an initiation finds its peer.
        let same = |other: &Arc<Peer>| {
            other.tunnel != id
                && other.public_key == peer.public_key
                && Arc::ptr_eq(&other.identity, &peer.identity)
                && self
                    .ledger
                    .tunnel(other.tunnel)
                    .is_some_and(|entry| entry.tunnel.settings.local == old.settings.local)
        };
        if peers.values().any(same) {
            return Err(RejectReason::PeerTaken);
        }
        if let Some(before) = before {
            self.change(Change::Peer(before.index, None));
        }
        self.change(Change::Peer(peer.index, Some(peer.clone())));
        let remote = self.remote_of(old);
        let (carrier, found) = (Some(Carrier::WireGuard(peer)), self.found_of(old));
        let tunnel = Arc::new(Tunnel::new(old.settings.clone(), carrier, old.live.clone(), remote, found));
        self.install(TunnelEntry { tunnel, ..entry });
        self.done.tunnels.push(id);
        Ok(())
    }

    /// Where the peer is, or will be once this transaction is in force.
    fn remote_of(&self, tunnel: &Tunnel) -> Option<SocketAddr> {
        let pending = self.done.remotes.iter().rev().find(|(live, _)| Arc::ptr_eq(live, &tunnel.live));
        pending.map(|(_, remote)| *remote).or_else(|| tunnel.live.remote())
    }

    /// What its path was found to take, unless this transaction says otherwise.
    fn found_of(&self, tunnel: &Tunnel) -> Option<u16> {
        let is_said = self.done.paths.iter().any(|live| Arc::ptr_eq(live, &tunnel.live));
        tunnel.live.path_mtu().filter(|_| !is_said)
    }

    fn put_sa(&mut self, sa: Sa) -> Outcome {
        let (id, tunnel) = (sa.id, sa.tunnel);
        if self.ledger.tunnel(tunnel).is_some_and(|entry| is_wireguard(&entry.tunnel.settings)) {
            return Err(RejectReason::OtherProtocol);
        }
        let (handle, check) = self.foundry.make(sa, self.ledger, self.now)?;
        if let SaHandle::In(inbound) = &handle {
            if self.tables.inbound.contains_key(&inbound.spi) {
                return Err(RejectReason::SpiTaken);
            }
            self.change(Change::Inbound(inbound.spi, Some(inbound.clone())));
        } else {
            self.ledger.use_key(check);
        }
        self.ledger.set_highest_sa(id);
        self.ledger.set_sa(id, Some(handle));
        let mut entry = self.ledger.tunnel(tunnel).cloned().ok_or(RejectReason::UnknownTunnel)?;
        entry.sas.push(id);
        self.ledger.set_tunnel(tunnel, Some(entry));
        self.renew_tunnel(tunnel);
        Ok(())
    }

    fn remove_sa(&mut self, id: SaId) -> Outcome {
        let tunnel = self.ledger.sa(id).ok_or(RejectReason::UnknownSa)?.tunnel();
        self.forget_sa(id);
        let mut entry = self.ledger.tunnel(tunnel).cloned().ok_or(RejectReason::UnknownTunnel)?;
        entry.sas.retain(|sa| *sa != id);
        self.ledger.set_tunnel(tunnel, Some(entry));
        self.renew_tunnel(tunnel);
        Ok(())
    }

    fn forget_sa(&mut self, id: SaId) {
        if let Some(SaHandle::In(inbound)) = self.ledger.sa(id) {
            let spi = inbound.spi;
            self.change(Change::Inbound(spi, None));
        }
        self.ledger.set_sa(id, None);
    }

    /// Brings a tunnel's outbound SA and MTU up to date: the newest SA carries it.
    fn renew_tunnel(&mut self, id: TunnelId) {
        let Some(entry) = self.ledger.tunnel(id).cloned() else { return };
        let newest = entry.sas.iter().rev().find_map(|sa| match self.ledger.sa(*sa)? {
            SaHandle::Out(outbound) => Some(Carrier::Esp(outbound.clone())),
            SaHandle::In(_) => None,
        });
        let old = &entry.tunnel;
        let outbound = if is_wireguard(&old.settings) { old.outbound.clone() } else { newest };
        let remote = self.remote_of(old);
        let found = self.found_of(old);
        let tunnel = Tunnel::new(old.settings.clone(), outbound, old.live.clone(), remote, found);
        self.install(TunnelEntry { tunnel: Arc::new(tunnel), ..entry });
    }

    fn put_group(&mut self, settings: braid_api::Group) -> Outcome {
        let id = settings.id;
        if id.0 as usize >= MAX_GROUPS {
            return Err(RejectReason::IdOutOfRange);
        }
        let live = self.check_members(&settings.members)?;
        let old = self.ledger.group(id).cloned();
        if let Some(old) = &old {
            self.ledger.set_group_synced(id, self.sync);
            if same_members(&old.group.settings.members, &settings.members) {
                return Ok(());
            }
            for member in &old.group.settings.members {
                self.ledger.refer(Target::Tunnel(member.tunnel), false);
            }
        }
        for member in &settings.members {
            self.ledger.refer(Target::Tunnel(member.tunnel), true);
        }
        let previous = old.as_ref().map(|old| old.group.as_ref());
        let group = Arc::new(Group::new(settings, live, previous, Ticks::from_nanos(self.now)));
        self.change(Change::Group(id, Some(group.clone())));
        let users = old.map_or(0, |old| old.users);
        self.ledger.set_group(id, Some(GroupEntry { group, users, synced: self.sync }));
        Ok(())
    }

    /// The members' live parts, in their order.
    fn check_members(&self, members: &[Member]) -> Result<Vec<Arc<TunnelLive>>, RejectReason> {
        if members.is_empty()
            || members.len() > MAX_MEMBERS
            || members.iter().any(|member| member.weight == 0)
        {
            return Err(RejectReason::BadMembers);
        }
        let mut ids: Vec<TunnelId> = members.iter().map(|member| member.tunnel).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(RejectReason::BadMembers);
        }
        let live = |member: &Member| Some(self.ledger.tunnel(member.tunnel)?.tunnel.live.clone());
        members.iter().map(live).collect::<Option<_>>().ok_or(RejectReason::UnknownTunnel)
    }

    fn remove_group(&mut self, id: GroupId) -> Outcome {
        let entry = self.ledger.group(id).cloned().ok_or(RejectReason::UnknownGroup)?;
        if entry.users > 0 {
            return Err(RejectReason::InUse);
        }
        for member in &entry.group.settings.members {
            self.ledger.refer(Target::Tunnel(member.tunnel), false);
        }
        self.ledger.set_group(id, None);
        self.change(Change::Group(id, None));
        Ok(())
    }

    fn put_route(&mut self, prefix: IpNet, target: Target) -> Outcome {
        match target {
            Target::Tunnel(id) => drop(self.ledger.tunnel(id).ok_or(RejectReason::UnknownTunnel)?),
            Target::Group(id) => drop(self.ledger.group(id).ok_or(RejectReason::UnknownGroup)?),
        }
        let prefix = prefix.trunc();
        let route = Route::new(target, self.sync);
        let old = self.tables.fib.get(prefix);
        if old == Some(route) {
            return Ok(());
        }
        let old = old.map(Route::target);
        if old == Some(target) {
            self.change_silently(Change::Route(prefix, Some(route)));
            return Ok(());
        }
        if let Some(old) = old {
            self.note_move(old, target);
            self.ledger.refer(old, false);
        }
        self.ledger.refer(target, true);
        self.change(Change::Route(prefix, Some(route)));
        Ok(())
    }

    fn note_move(&mut self, from: Target, to: Target) {
        let (Target::Group(from), Target::Group(to)) = (from, to) else { return };
        if self.done.moved.len() >= MAX_MOVES && !self.done.moved.contains_key(&(from, to)) {
            return;
        }
        if let (Some(old), Some(new)) = (self.ledger.group(from), self.ledger.group(to)) {
            self.done.moved.entry((from, to)).or_insert_with(|| (old.group.clone(), new.group.clone()));
        }
    }

    fn remove_route(&mut self, prefix: IpNet) {
        if let Some(old) = self.tables.fib.get(prefix) {
            self.ledger.refer(old.target(), false);
            self.change(Change::Route(prefix, None));
        }
    }

    fn sweep(&mut self) -> Outcome {
        let stale = |synced: u32| synced != self.sync;
        let routes: Vec<IpNet> = self
            .tables
            .fib
            .iter()
            .filter(|(_, route)| stale(route.synced))
            .map(|(prefix, _)| prefix)
            .collect();
        let groups: Vec<GroupId> =
            self.ledger.groups().filter(|(_, entry)| stale(entry.synced)).map(|(id, _)| id).collect();
        let tunnels: Vec<TunnelId> =
            self.ledger.tunnels().filter(|(_, entry)| stale(entry.synced)).map(|(id, _)| id).collect();
        // Users first. What was put again and still names something stale is control's mistake: `InUse`.
        routes.into_iter().for_each(|prefix| self.remove_route(prefix));
        groups.into_iter().try_for_each(|id| self.remove_group(id))?;
        tunnels.into_iter().try_for_each(|id| self.remove_tunnel(id))
    }

    fn set_state(&mut self, id: TunnelId, set: u8, clear: u8) -> Outcome {
        self.ledger.tunnel(id).ok_or(RejectReason::UnknownTunnel)?;
        let bits = self.done.states.entry(id).or_default();
        bits.set = bits.set & !clear | set;
        bits.clear = bits.clear & !set | clear;
        Ok(())
    }

    fn put_stash(&mut self, key: u64, value: StashValue) -> Outcome {
        put_stash(self.ledger, key, value)
    }
}

fn is_wireguard(settings: &braid_api::Tunnel) -> bool {
    settings.encapsulation == Encapsulation::WireGuard
}

fn put_stash(ledger: &mut Ledger, key: u64, value: StashValue) -> Outcome {
    let full = ledger.stash().len() >= MAX_STASH_ENTRIES && !ledger.stash().contains_key(&key);
    if value.0.len() > MAX_STASH_LEN || full {
        return Err(RejectReason::StashFull);
    }
    ledger.set_stash(key, Some(value));
    Ok(())
}

fn same_members(left: &[Member], right: &[Member]) -> bool {
    let sorted = |members: &[Member]| {
        let mut members = members.to_vec();
        members.sort_unstable();
        members
    };
    sorted(left) == sorted(right)
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;

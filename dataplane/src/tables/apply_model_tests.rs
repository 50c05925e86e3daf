//! Random transactions against a naive model that copies everything for every transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proptest::prelude::*;

use super::*;

/// Everything that a transaction may change, objects by their address.
#[derive(Debug, PartialEq)]
pub(super) struct Dump {
    copies: [String; 2],
    ledger: String,
    states: Vec<TunnelState>,
}

pub(super) fn dump(writer: &mut Writer) -> Dump {
    let copy = |tables: &Tables| {
        let routes: BTreeMap<IpNet, Route> = tables.fib.iter().collect();
        let tunnels: Vec<_> =
            tables.tunnels().map(|tunnel| (tunnel.settings.id, Arc::as_ptr(tunnel))).collect();
        let groups: Vec<_> = tables.groups.iter().flatten().map(Arc::as_ptr).collect();
        let inbound: BTreeMap<_, _> = tables.inbound.iter().map(|(spi, sa)| (spi, Arc::as_ptr(sa))).collect();
        let outbound: Vec<_> = tables
            .tunnels()
            .map(|tunnel| tunnel.outbound.as_ref().and_then(Carrier::esp).map(Arc::as_ptr))
            .collect();
        let settings = Arc::as_ptr(&tables.gateway);
        format!(
            "{} {routes:?} {tunnels:?} {groups:?} {inbound:?} {outbound:?} {settings:?}",
            tables.generation
        )
    };
    let passive = copy(&writer.tables.passive());
    writer.tables.publish();
    let active = copy(&writer.tables.passive());
    writer.tables.publish();
    let ledger = &writer.ledger;
    let tunnels: Vec<_> = ledger
        .tunnels()
        .map(|(id, entry)| (id, Arc::as_ptr(&entry.tunnel), &entry.sas, entry.users, entry.synced))
        .collect();
    let groups: Vec<_> = ledger
        .groups()
        .map(|(id, entry)| (id, Arc::as_ptr(&entry.group), entry.users, entry.synced))
        .collect();
    let ledger = format!("{tunnels:?} {groups:?} {}", ledger.digest());
    let states = (0..16).map(|id| writer.states.get(TunnelId(id))).collect();
    Dump { copies: [active, passive], ledger, states }
}

const PREFIXES: [&str; 5] = ["0.0.0.0/0", "10.2.0.0/16", "10.2.3.0/24", "fd00::/8", "10.2.3.4/32"];
const PROBES: [&str; 5] = ["192.0.2.1", "10.2.9.9", "10.2.3.9", "fd00::1", "10.2.3.4"];
const TUNNELS: u32 = 4;
const GROUPS: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    PutTunnel { id: u32, name: u32, path_mtu: u16 },
    RemoveTunnel(u32),
    PutSa { id: u64, tunnel: u32, out: bool, spi: u32, boot: bool, key: u64 },
    RemoveSa(u64),
    PutGroup { id: u32, members: Vec<u32> },
    RemoveGroup(u32),
    PutRoute { prefix: usize, tunnel: bool, id: u32 },
    RemoveRoute(usize),
    State { tunnel: u32, which: u8 },
    Sweep,
    Stash { key: u64, len: Option<usize> },
}

fn step() -> impl Strategy<Value = Step> {
    let tunnel = || 0..TUNNELS;
    prop_oneof![
        5 => (tunnel(), 0..TUNNELS + 1, prop_oneof![4 => Just(1500u16), 2 => Just(1400), 1 => Just(90)])
            .prop_map(|(id, name, path_mtu)| Step::PutTunnel { id, name, path_mtu }),
        1 => tunnel().prop_map(Step::RemoveTunnel),
        4 => (1..40u64, tunnel(), any::<bool>(), prop_oneof![6 => 256..262u32, 1 => Just(255)], 0..8u8, 0..40u64)
            .prop_map(|(id, tunnel, out, spi, boot, key)| Step::PutSa { id, tunnel, out, spi, boot: boot > 0, key }),
        1 => (1..40u64).prop_map(Step::RemoveSa),
        3 => (0..GROUPS, proptest::collection::vec(tunnel(), 0..4))
            .prop_map(|(id, members)| Step::PutGroup { id, members }),
        1 => (0..GROUPS).prop_map(Step::RemoveGroup),
        4 => (0..PREFIXES.len(), any::<bool>(), tunnel())
            .prop_map(|(prefix, tunnel, id)| Step::PutRoute { prefix, tunnel, id }),
        2 => (0..PREFIXES.len()).prop_map(Step::RemoveRoute),
        3 => (tunnel(), 0..4u8).prop_map(|(tunnel, which)| Step::State { tunnel, which }),
        1 => Just(Step::Sweep),
        1 => (0..3u64, proptest::option::of(prop_oneof![Just(3), Just(MAX_STASH_LEN + 1)]))
            .prop_map(|(key, len)| Step::Stash { key, len }),
    ]
}

impl Step {
    fn op(&self) -> Op {
        match *self {
            Step::PutTunnel { id, name, path_mtu } => {
                Op::PutTunnel(braid_api::Tunnel { name: format!("n{name}"), path_mtu, ..tunnel(id) })
            }
            Step::RemoveTunnel(id) => Op::RemoveTunnel(TunnelId(id)),
            Step::PutSa { id, tunnel, out, spi, boot, key } => {
                let direction = if out { Direction::Out } else { Direction::In };
                let made = sa(key, tunnel, direction, spi);
                Op::PutSa(Sa { id: SaId(id), boot: if boot { BOOT } else { BootId([0; 16]) }, ..made })
            }
            Step::RemoveSa(id) => Op::RemoveSa(SaId(id)),
            Step::PutGroup { id, ref members } => group(id, members),
            Step::RemoveGroup(id) => Op::RemoveGroup(GroupId(id)),
            Step::PutRoute { prefix, tunnel, id } => route(PREFIXES[prefix], target(tunnel, id)),
            Step::RemoveRoute(prefix) => Op::RemoveRoute { prefix: net(PREFIXES[prefix]) },
            Step::State { tunnel, which } => {
                [Op::Mask, Op::Unmask, Op::Drain, Op::Undrain][usize::from(which)](TunnelId(tunnel))
            }
            Step::Sweep => Op::Sweep,
            Step::Stash { key, len: Some(len) } => Op::PutStash { key, value: StashValue(vec![1; len]) },
            Step::Stash { key, len: None } => Op::RemoveStash { key },
        }
    }
}

fn target(tunnel: bool, id: u32) -> Target {
    if tunnel { Target::Tunnel(TunnelId(id)) } else { to_group(id) }
}

#[derive(Clone, Debug, Default)]
struct Model {
    sync: u32,
    /// Name, path MTU, synchronisation.
    tunnels: BTreeMap<u32, (u32, u16, u32)>,
    /// Masked, draining.
    states: BTreeMap<u32, (bool, bool)>,
    /// Tunnel, outbound, SPI.
    sas: BTreeMap<u64, (u32, bool, u32)>,
    highest: u64,
    keys: BTreeSet<u64>,
    groups: BTreeMap<u32, (BTreeSet<u32>, u32)>,
    routes: BTreeMap<usize, (Target, u32)>,
    stash: BTreeMap<u64, usize>,
}

impl Model {
    fn transaction(&mut self, steps: &[Step]) -> Result<(), (u32, RejectReason)> {
        let before = self.clone();
        for (index, step) in steps.iter().enumerate() {
            if let Err(reason) = self.step(step) {
                *self = before;
                return Err((index as u32, reason));
            }
        }
        Ok(())
    }

    fn tunnel_is_named(&self, id: u32) -> bool {
        self.groups.values().any(|(members, _)| members.contains(&id))
            || self.routes.values().any(|(to, _)| *to == target(true, id))
    }

    fn group_is_named(&self, id: u32) -> bool {
        self.routes.values().any(|(to, _)| *to == to_group(id))
    }

    fn remove_tunnel(&mut self, id: u32) -> Outcome {
        self.tunnels.get(&id).ok_or(RejectReason::UnknownTunnel)?;
        if self.tunnel_is_named(id) {
            return Err(RejectReason::InUse);
        }
        self.tunnels.remove(&id);
        self.states.remove(&id);
        self.sas.retain(|_, sa| sa.0 != id);
        Ok(())
    }

    fn remove_group(&mut self, id: u32) -> Outcome {
        self.groups.get(&id).ok_or(RejectReason::UnknownGroup)?;
        if self.group_is_named(id) {
            return Err(RejectReason::InUse);
        }
        self.groups.remove(&id);
        Ok(())
    }

    fn put_sa(&mut self, id: u64, (tunnel, out, spi): (u32, bool, u32), boot: bool, key: u64) -> Outcome {
        if !boot {
            return Err(RejectReason::OtherBoot);
        }
        if id <= self.highest {
            return Err(RejectReason::SaIdUsed);
        }
        if !self.tunnels.contains_key(&tunnel) {
            return Err(RejectReason::UnknownTunnel);
        }
        let taken = !out && self.sas.values().any(|sa| !sa.1 && sa.2 == spi);
        if spi < 256 || taken {
            return Err(RejectReason::SpiTaken);
        }
        if out && !self.keys.insert(key) {
            return Err(RejectReason::BadKey);
        }
        self.highest = id;
        self.sas.insert(id, (tunnel, out, spi));
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Outcome {
        let sync = self.sync;
        match *step {
            Step::PutTunnel { id, name, path_mtu } => {
                if self.tunnels.iter().any(|(holder, tunnel)| *holder != id && tunnel.0 == name) {
                    return Err(RejectReason::BadName);
                }
                if path_mtu < 200 {
                    return Err(RejectReason::BadMtu);
                }
                self.tunnels.insert(id, (name, path_mtu, sync));
                self.states.entry(id).or_insert((true, false));
            }
            Step::RemoveTunnel(id) => self.remove_tunnel(id)?,
            Step::PutSa { id, tunnel, out, spi, boot, key } => {
                self.put_sa(id, (tunnel, out, spi), boot, key)?
            }
            Step::RemoveSa(id) => drop(self.sas.remove(&id).ok_or(RejectReason::UnknownSa)?),
            Step::PutGroup { id, ref members } => {
                let set: BTreeSet<u32> = members.iter().copied().collect();
                if members.is_empty() || set.len() != members.len() {
                    return Err(RejectReason::BadMembers);
                }
                if !set.iter().all(|member| self.tunnels.contains_key(member)) {
                    return Err(RejectReason::UnknownTunnel);
                }
                self.groups.insert(id, (set, sync));
            }
            Step::RemoveGroup(id) => self.remove_group(id)?,
            Step::PutRoute { prefix, tunnel, id } => {
                match tunnel {
                    true => drop(self.tunnels.get(&id).ok_or(RejectReason::UnknownTunnel)?),
                    false => drop(self.groups.get(&id).ok_or(RejectReason::UnknownGroup)?),
                }
                self.routes.insert(prefix, (target(tunnel, id), sync));
            }
            Step::RemoveRoute(prefix) => drop(self.routes.remove(&prefix)),
            Step::State { tunnel, which } => {
                let state = self.states.get_mut(&tunnel).ok_or(RejectReason::UnknownTunnel)?;
                let bit = if which < 2 { &mut state.0 } else { &mut state.1 };
                *bit = which % 2 == 0;
            }
            Step::Sweep => {
                self.routes.retain(|_, route| route.1 == sync);
                for id in 0..GROUPS {
                    if self.groups.get(&id).is_some_and(|group| group.1 != sync) {
                        self.remove_group(id)?;
                    }
                }
                for id in 0..TUNNELS {
                    if self.tunnels.get(&id).is_some_and(|tunnel| tunnel.2 != sync) {
                        self.remove_tunnel(id)?;
                    }
                }
            }
            Step::Stash { len: Some(len), .. } if len > MAX_STASH_LEN => return Err(RejectReason::StashFull),
            Step::Stash { key, len: Some(len) } => drop(self.stash.insert(key, len)),
            Step::Stash { key, len: None } => drop(self.stash.remove(&key)),
        }
        Ok(())
    }

    /// The longest of [`PREFIXES`] that covers an address.
    fn lookup(&self, address: IpAddr) -> Option<(IpNet, Target)> {
        let routes = self.routes.iter().map(|(&prefix, &(to, _))| (net(PREFIXES[prefix]), to));
        routes.filter(|(prefix, _)| prefix.contains(&address)).max_by_key(|(prefix, _)| prefix.prefix_len())
    }

    fn check(&self, writer: &Writer, seen: &mut BTreeMap<u64, (usize, u64)>) {
        let mut reader = writer.reader();
        let tables = reader.enter();
        for probe in PROBES {
            let address = probe.parse().unwrap();
            assert_eq!(tables.route(address), self.lookup(address));
        }
        for id in 0..TUNNELS {
            let tunnel = tables.tunnel(TunnelId(id));
            assert_eq!(tunnel.is_some(), self.tunnels.contains_key(&id));
            let state = match self.states.get(&id) {
                Some((false, false)) => TunnelState::Live,
                Some((false, true)) => TunnelState::Draining,
                Some((true, _)) | None => TunnelState::Masked,
            };
            assert_eq!(tables.states().get(TunnelId(id)), state);
            let Some(tunnel) = tunnel else { continue };
            assert_eq!(tunnel.settings.name, format!("n{}", self.tunnels[&id].0));
            let newest = self.sas.iter().rev().find(|(_, sa)| sa.0 == id && sa.1).map(|(id, _)| SaId(*id));
            assert_eq!(tunnel.outbound.as_ref().and_then(Carrier::esp).map(|sa| sa.id), newest);
            let mtu = match (self.tunnels[&id].1, newest) {
                (1500, Some(_)) => 1438,
                (1500, None) => 1406,
                (_, Some(_)) => 1338,
                (_, None) => 1310,
            };
            assert_eq!(tunnel.mtu, mtu);
        }
        for id in 0..GROUPS {
            let members: Option<BTreeSet<u32>> = tables
                .group(GroupId(id))
                .map(|group| group.settings.members.iter().map(|member| member.tunnel.0).collect());
            assert_eq!(members, self.groups.get(&id).map(|group| group.0.clone()));
        }
        self.check_sas(writer, &tables, seen);
        let stash: BTreeMap<u64, usize> =
            writer.stash(0).into_iter().map(|(key, value)| (key, value.0.len())).collect();
        assert_eq!(stash, self.stash);
    }

    /// SAs are there, are the same objects as ever, and count on.
    fn check_sas(&self, writer: &Writer, tables: &Tables, seen: &mut BTreeMap<u64, (usize, u64)>) {
        assert_eq!(
            writer.ledger.sas().map(|(id, _)| id.0).collect::<Vec<_>>(),
            self.sas.keys().copied().collect::<Vec<_>>()
        );
        seen.retain(|id, _| self.sas.contains_key(id));
        for (&id, &(tunnel, out, spi)) in &self.sas {
            match writer.ledger.sa(SaId(id)).unwrap() {
                SaHandle::Out(sa) => {
                    let known = seen.entry(id).or_insert((Arc::as_ptr(sa) as usize, 1));
                    assert_eq!(known.0, Arc::as_ptr(sa) as usize);
                    assert_eq!(sa.lock().reserve(1), Ok(known.1));
                    known.1 += 1;
                    assert!(out && sa.tunnel.0 == tunnel);
                }
                SaHandle::In(sa) => {
                    assert!(Arc::ptr_eq(tables.inbound(Spi(spi)).unwrap(), sa));
                    let known = seen.entry(id).or_insert((Arc::as_ptr(sa) as usize, 1));
                    assert_eq!(known.0, Arc::as_ptr(sa) as usize);
                    sa.replay().commit(known.1).unwrap();
                    known.1 += 1;
                    assert!(!out && sa.tunnel.0 == tunnel);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn transactions_agree_with_a_naive_model(
        transactions in proptest::collection::vec(
            (0..12u8, proptest::collection::vec(step(), 1..8)),
            1..40,
        ),
    ) {
        let mut writer = writer();
        let mut model = Model::default();
        let mut seen = BTreeMap::new();
        for (hello, steps) in transactions {
            if hello == 0 {
                writer.begin_sync();
                model.sync += 1;
            }
            let before = dump(&mut writer);
            let ops = steps.iter().map(Step::op).collect();
            let expected = model.transaction(&steps);
            let got = apply(&mut writer, ops).map(|_| ()).map_err(|bad| (bad.op, bad.reason));
            prop_assert_eq!(got, expected);
            let after = dump(&mut writer);
            prop_assert_eq!(&after.copies[0], &after.copies[1]);
            if expected.is_err() {
                prop_assert_eq!(&after, &before);
            }
            model.check(&writer, &mut seen);
        }
    }
}

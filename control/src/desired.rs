//! From a configuration and what the machine says to what the kernel and the core should be like.
//!
//! Pure. Ids are kept: a tunnel keeps its number by its name, a group by its members, so that a
//! reload or a restart of control changes only what is different.

use core::net::{IpAddr, SocketAddr};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use braid_api::{
    Allowed, DfPolicy, Direction, Encapsulation, GatewaySettings, Group, GroupId, Member, Selectors, Spi,
    Suite, Target, Tunnel, TunnelId,
    launcher::{KernelPlan, PlannedRoute, PlannedSocket},
};
use braid_dataplane::tables::mtu::inner_mtu;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    config::{self, Config, Keys},
    keys::{KeyDigest, KeyRecord},
    outer::Outer,
    wireguard::{PublicKey, Secret},
};

/// Of an outer path that nothing is known about: Ethernet's.
const DEFAULT_PATH_MTU: u16 = 1500;
/// RFC 8200 section 5: below this, the kernel takes IPv6 off the device.
const MIN_DEVICE_MTU: u16 = 1280;
/// As many prefixes are kept apart from peers whose addresses nobody knows: each costs the kernel up to four rules, at
/// which it looks for every packet.
pub(crate) const MAX_APART: usize = 64;
/// With `df = "clear"`: the kernel must not refuse what the core is to fragment, from jumbo networks too.
const CLEARING_DEVICE_MTU: u16 = 9216;

/// What everything should be like.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    /// The kernel.
    pub plan: KernelPlan,
    /// The core.
    pub tables: Tables,
    /// Number of each tunnel that is in the tables, by index into [`Config::tunnels`].
    pub ids: Vec<Option<TunnelId>>,
    /// The group of each of [`Circumstances::learned`], if any of its tunnels is in the tables.
    pub learned: Vec<Option<GroupId>>,
}

/// What the core's tables should be like.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tables {
    /// What concerns all tunnels.
    pub gateway: Option<GatewaySettings>,
    /// Tunnels. What the core has confirmed is shared with [`crate::mirror::Mirror`].
    pub tunnels: BTreeMap<TunnelId, Arc<Tunnel>>,
    /// SAs, one per direction.
    pub sas: BTreeMap<(TunnelId, Direction), SaSpec>,
    /// Keys of WireGuard tunnels.
    pub wireguard: BTreeMap<TunnelId, WireGuardSpec>,
    /// ECMP groups.
    pub groups: BTreeMap<GroupId, Group>,
    /// Routes.
    pub routes: BTreeMap<IpNet, Target>,
}

/// An SA without its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SaSpec {
    /// Index into [`Config::tunnels`], where the key is.
    pub index: usize,
    /// Security parameters index.
    pub spi: Spi,
    /// Encryption and integrity.
    pub suite: Suite,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Anti-replay window in packets.
    pub replay_window: u32,
    /// Accepted inner addresses.
    pub selectors: Selectors,
    /// Tells the key from others.
    pub digest: KeyDigest,
}

/// WireGuard's settings of a tunnel without its secrets; equal wherever in the file they stand.
#[derive(Clone, Debug)]
pub struct WireGuardSpec {
    /// Index into [`Config::tunnels`], where the keys are.
    pub index: usize,
    /// The peer's key.
    pub peer: PublicKey,
    /// Tells the secrets from others.
    pub digests: (KeyDigest, Option<KeyDigest>),
    /// In seconds.
    pub keepalive: Option<u16>,
    /// We begin.
    pub initiate: bool,
    /// We begin once: the peer had a session with the last core.
    pub begin: bool,
}

impl PartialEq for WireGuardSpec {
    fn eq(&self, other: &Self) -> bool {
        let content = |spec: &Self| (spec.peer, spec.digests, spec.keepalive, spec.initiate);
        content(self) == content(other)
    }
}

impl Eq for WireGuardSpec {}

/// What of the machine and of earlier lives a desired state depends on.
#[derive(Debug)]
pub struct Circumstances<'a> {
    /// By tunnel name.
    pub outer: &'a BTreeMap<String, Outer>,
    /// Of the flow hash, unless the configuration has one.
    pub hash_seed: [u8; 16],
    /// Forwarding threads, unless the configuration says.
    pub workers: u32,
    /// Digests keys.
    pub keys: &'a KeyRecord,
    /// Numbers that the core knows.
    pub numbers: &'a Numbers,
    /// Indexes into [`Config::tunnels`] that the core refused.
    pub refused: &'a BTreeSet<usize>,
    /// By tunnel name.
    pub negotiated: &'a BTreeMap<String, Negotiated>,
    /// Where the last core heard WireGuard's peers, of those that have no session with this one yet, by tunnel name.
    pub found: &'a BTreeMap<String, SocketAddr>,
    /// Where peers were last heard that have moved or were unknown, by tunnel name.
    pub heard: &'a BTreeMap<String, IpAddr>,
    /// Names of tunnels that stand behind all others.
    pub yielding: &'a BTreeMap<String, i32>,
    /// Groups for what BGP has learned.
    pub learned: &'a [Vec<LearnedMember<'a>>],
}

/// A tunnel by which BGP reaches a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LearnedMember<'a> {
    /// Its name.
    pub tunnel: &'a str,
    /// Its share.
    pub weight: u16,
    /// Others are the better choice.
    pub standby: bool,
}

/// The priority in the core's groups of tunnels that BGP has a better choice than.
pub const STANDBY: i32 = i32::MIN;
/// That of tunnels that stand behind all others, but for those.
pub const YIELDING: i32 = STANDBY + 1;

/// What IKE has settled about a tunnel's outer path and SAs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Negotiated {
    /// Ours; port 0 for raw ESP.
    pub local: SocketAddr,
    /// The peer's; port 0 for raw ESP.
    pub remote: SocketAddr,
    /// How ESP travels.
    pub encapsulation: Encapsulation,
    /// A NAT's mapping must be kept open.
    pub keepalive: bool,
    /// Of the SAs.
    pub suite: Suite,
}

/// Numbers in use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Numbers {
    /// Tunnels by name.
    pub tunnels: BTreeMap<String, TunnelId>,
    /// Members of groups.
    pub groups: BTreeMap<GroupId, Vec<Member>>,
}

/// Builds it.
pub fn build(config: &Config, circumstances: &Circumstances<'_>) -> Desired {
    let ids = number_tunnels(config, circumstances);
    let mut tables = Tables { gateway: Some(gateway_settings(config, circumstances)), ..Tables::default() };
    let Grouped { groups, routes, learned } = build_groups(config, &ids, circumstances);
    tables.groups = groups;
    tables.routes = routes;
    let clamp = clamp_mtus(config, circumstances, &tables.groups, &ids);
    let neighbors = config.bgp.iter().flat_map(|bgp| &bgp.neighbors);
    let with_neighbor: BTreeSet<&str> = neighbors.filter_map(config::Neighbor::tunnel).collect();
    for (index, tunnel) in config.tunnels.iter().enumerate() {
        let Some(id) = ids[index] else { continue };
        let outer = circumstances.outer.get(&tunnel.name).cloned().unwrap_or_default();
        // Numbered only if it has a local address.
        let Some(local) = tunnel.local.or(outer.local) else { continue };
        let clamp_mtu = clamp.get(&id).copied().unwrap_or(DEFAULT_PATH_MTU);
        let mut entry = core_tunnel(tunnel, id, local, &outer, clamp_mtu);
        if tunnel.allowed.is_none() && with_neighbor.contains(tunnel.name.as_str()) {
            entry.allowed = Allowed::RoutedAnywhere;
        }
        if let Some(negotiated) = circumstances.negotiated.get(&tunnel.name) {
            negotiated.apply(&mut entry);
        }
        let calls = tunnel.remote.is_none() && tunnel.wireguard().is_some();
        let found = circumstances.found.get(&tunnel.name).copied().filter(|_| calls);
        entry.remote = entry.remote.or(found);
        tables.tunnels.insert(id, Arc::new(entry));
        if let Keys::Manual(manual) = &tunnel.keys {
            for (direction, spec) in sa_specs(index, tunnel, manual, circumstances.keys) {
                tables.sas.insert((id, direction), spec);
            }
        }
        if let Keys::WireGuard(wireguard) = &tunnel.keys {
            let initiate = tunnel.role == config::Role::Initiate;
            let spec = wireguard_spec(index, wireguard, circumstances.keys);
            tables.wireguard.insert(id, WireGuardSpec { initiate, begin: found.is_some(), ..spec });
        }
        let peers = tunnel.peer_inside.iter().map(|peer| (IpNet::from(*peer), Target::Tunnel(id)));
        tables.routes.extend(peers);
    }
    let plan = build_plan(config, circumstances, &ids, &tables);
    Desired { plan, tables, ids, learned }
}

impl Negotiated {
    /// Puts the path into a tunnel.
    pub(crate) fn apply(&self, tunnel: &mut Tunnel) {
        tunnel.local = self.local;
        tunnel.remote = Some(self.remote);
        tunnel.encapsulation = self.encapsulation;
        tunnel.keepalive = self.keepalive;
    }
}

fn gateway_settings(config: &Config, circumstances: &Circumstances<'_>) -> GatewaySettings {
    let mut icmp_source = config.gateway.source.clone();
    let inside = config.tunnels.iter().flat_map(|tunnel| &tunnel.inside).map(IpNet::addr);
    for address in inside {
        if !icmp_source.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            icmp_source.push(address);
        }
    }
    GatewaySettings {
        hash_seed: config.gateway.hash_seed.unwrap_or(circumstances.hash_seed),
        symmetric_hash: config.gateway.symmetric_hash,
        pin_replies: config.gateway.pin_replies,
        icmp_source,
        own: own_addresses(config, circumstances),
    }
}

/// Addresses that nobody but this gateway has: inside, of its own traffic, and outside.
fn own_addresses(config: &Config, circumstances: &Circumstances<'_>) -> Vec<IpAddr> {
    let mut own: BTreeSet<IpAddr> = config.gateway.source.iter().copied().collect();
    for tunnel in &config.tunnels {
        own.extend(tunnel.inside.iter().map(IpNet::addr));
        own.extend(tunnel.local);
        own.extend(circumstances.outer.get(&tunnel.name).and_then(|outer| outer.local));
        own.extend(circumstances.negotiated.get(&tunnel.name).map(|path| path.local.ip()));
    }
    own.into_iter().collect()
}

/// A tunnel that has a local address keeps its number, or takes the lowest that is free.
fn number_tunnels(config: &Config, circumstances: &Circumstances<'_>) -> Vec<Option<TunnelId>> {
    let known = &circumstances.numbers.tunnels;
    let mut taken: BTreeSet<TunnelId> = known.values().copied().collect();
    let mut next = 0;
    let usable = |index: usize, tunnel: &config::Tunnel| {
        let local = tunnel.local.or_else(|| circumstances.outer.get(&tunnel.name)?.local);
        local.is_some() && !circumstances.refused.contains(&index)
    };
    let number = |(index, tunnel): (usize, &config::Tunnel)| {
        if !usable(index, tunnel) {
            return None;
        }
        if let Some(id) = known.get(&tunnel.name) {
            return Some(*id);
        }
        while !taken.insert(TunnelId(next)) {
            next += 1;
        }
        Some(TunnelId(next))
    };
    config.tunnels.iter().enumerate().map(number).collect()
}

/// Inner MTU of a tunnel, in bytes: the least that a negotiation may lead to, until one has.
pub(crate) fn tunnel_mtu(
    tunnel: &config::Tunnel,
    outer: Option<&Outer>,
    negotiated: Option<&Negotiated>,
) -> u16 {
    let address = tunnel.local.or_else(|| outer?.local);
    let path_mtu = outer.and_then(|outer| outer.mtu).unwrap_or(DEFAULT_PATH_MTU);
    let v6 = address.is_some_and(|address| address.is_ipv6());
    if let Some(negotiated) = negotiated {
        return inner_mtu(path_mtu, v6, negotiated.encapsulation, negotiated.suite);
    }
    let mtus =
        tunnel.suites().into_iter().map(|suite| inner_mtu(path_mtu, v6, tunnel.encapsulation(), suite));
    mtus.min().unwrap_or(0)
}

/// Per tunnel the smallest inner MTU in the groups it is in, standbys included.
fn clamp_mtus(
    config: &Config,
    circumstances: &Circumstances<'_>,
    groups: &BTreeMap<GroupId, Group>,
    ids: &[Option<TunnelId>],
) -> BTreeMap<TunnelId, u16> {
    let mut clamp: BTreeMap<TunnelId, u16> = BTreeMap::new();
    for (tunnel, id) in config.tunnels.iter().zip(ids) {
        if let Some(id) = id {
            let outer = circumstances.outer.get(&tunnel.name);
            clamp.insert(*id, tunnel_mtu(tunnel, outer, circumstances.negotiated.get(&tunnel.name)));
        }
    }
    let own = clamp.clone();
    for group in groups.values() {
        let smallest = group.members.iter().filter_map(|member| own.get(&member.tunnel)).min();
        for member in &group.members {
            if let (Some(clamp), Some(smallest)) = (clamp.get_mut(&member.tunnel), smallest) {
                *clamp = (*clamp).min(*smallest);
            }
        }
    }
    clamp
}

fn core_tunnel(
    tunnel: &config::Tunnel,
    id: TunnelId,
    local: IpAddr,
    outer: &Outer,
    clamp_mtu: u16,
) -> Tunnel {
    let (port, remote_port) = tunnel.ports();
    let allowed = match &tunnel.allowed {
        None => Allowed::Routed,
        Some(prefixes) => {
            let peers = tunnel.peer_inside.iter().map(|peer| IpNet::from(*peer));
            Allowed::Prefixes(prefixes.iter().copied().chain(peers).collect())
        }
    };
    Tunnel {
        id,
        name: tunnel.name.clone(),
        local: SocketAddr::new(local, port),
        remote: remote_address(tunnel, outer).map(|remote| SocketAddr::new(remote, remote_port)),
        uplink: outer.interface.clone(),
        follow_remote: tunnel.manual().is_none(),
        encapsulation: tunnel.encapsulation(),
        // Nobody has looked for a NAT.
        keepalive: tunnel.manual().is_some(),
        inside: tunnel.inside.iter().map(IpNet::addr).collect(),
        peer_inside: tunnel.peer_inside.clone(),
        path_mtu: outer.mtu.unwrap_or(DEFAULT_PATH_MTU),
        clamp_mtu,
        df: tunnel.df,
        allowed,
        reach: tunnel.reach.clone(),
        probe: tunnel.probe,
        bfd: tunnel.bfd.clone(),
    }
}

fn remote_address(tunnel: &config::Tunnel, outer: &Outer) -> Option<IpAddr> {
    match &tunnel.remote {
        Some(config::Remote::Address(address)) => Some(*address),
        Some(config::Remote::Name(_)) => outer.remote,
        None => None,
    }
}

fn sa_specs(
    index: usize,
    tunnel: &config::Tunnel,
    manual: &config::Manual,
    keys: &KeyRecord,
) -> [(Direction, SaSpec); 2] {
    let spec = |spi, key: &config::Key| SaSpec {
        index,
        spi,
        suite: manual.suite,
        esn: manual.esn,
        replay_window: manual.replay_window,
        selectors: tunnel.selectors.clone(),
        digest: keys.digest(manual.suite, key.expose()),
    };
    [
        (Direction::In, spec(manual.spi_in, &manual.key_in)),
        (Direction::Out, spec(manual.spi_out, &manual.key_out)),
    ]
}

fn wireguard_spec(index: usize, wireguard: &config::WireGuard, keys: &KeyRecord) -> WireGuardSpec {
    let digest = |secret: &Secret| keys.digest(Suite::ChaCha20Poly1305, secret.expose());
    WireGuardSpec {
        index,
        peer: wireguard.peer_public_key,
        digests: (digest(&wireguard.private_key), wireguard.preshared_key.as_ref().map(digest)),
        keepalive: wireguard.keepalive,
        initiate: false,
        begin: false,
    }
}

/// Groups with what leads into them.
struct Grouped {
    groups: BTreeMap<GroupId, Group>,
    routes: BTreeMap<IpNet, Target>,
    /// In the order of [`Circumstances::learned`].
    learned: Vec<Option<GroupId>>,
}

/// Equal groups are one. A group keeps the number of the group that it resembles most, so that
/// flows of members that stay keep their buckets.
fn build_groups(config: &Config, ids: &[Option<TunnelId>], circumstances: &Circumstances<'_>) -> Grouped {
    let member = |index: &u32| {
        let tunnel = config.tunnels.get(*index as usize)?;
        let id = (*ids.get(*index as usize)?)?;
        Some(Member { tunnel: id, weight: tunnel.weight, priority: priority(tunnel, circumstances) })
    };
    let mut wanted: BTreeMap<Vec<Member>, Vec<IpNet>> = BTreeMap::new();
    for route in &config.routes {
        let mut members: Vec<Member> = route.via.iter().filter_map(member).collect();
        members.sort_unstable();
        // Without a member the kernel's route into the device stays, and the core drops: never in clear.
        if !members.is_empty() {
            wanted.entry(members).or_default().push(route.prefix);
        }
    }
    let learned = learned_members(config, ids, circumstances);
    for members in learned.iter().filter(|members| !members.is_empty()) {
        wanted.entry(members.clone()).or_default();
    }
    let numbers = number_groups(wanted.keys(), &circumstances.numbers.groups);
    let by_members: BTreeMap<Vec<Member>, GroupId> =
        wanted.keys().cloned().zip(numbers.iter().copied()).collect();
    let learned = learned.iter().map(|members| by_members.get(members).copied()).collect();
    let mut groups = BTreeMap::new();
    let mut routes = BTreeMap::new();
    for ((members, prefixes), id) in wanted.into_iter().zip(numbers) {
        routes.extend(prefixes.into_iter().map(|prefix| (prefix, Target::Group(id))));
        groups.insert(id, Group { id, members });
    }
    Grouped { groups, routes, learned }
}

/// In the core's groups.
fn priority(tunnel: &config::Tunnel, circumstances: &Circumstances<'_>) -> i32 {
    if circumstances.yielding.contains_key(&tunnel.name) {
        YIELDING
    } else {
        tunnel.priority.max(YIELDING + 1)
    }
}

/// The members of the groups that BGP wants, each by its share.
fn learned_members(
    config: &Config,
    ids: &[Option<TunnelId>],
    circumstances: &Circumstances<'_>,
) -> Vec<Vec<Member>> {
    let learned = circumstances.learned;
    if learned.is_empty() {
        return Vec::new();
    }
    let known = config.tunnels.iter().zip(ids).filter_map(|(tunnel, id)| Some((tunnel, (*id)?)));
    let by_name: BTreeMap<&str, (TunnelId, i32)> =
        known.map(|(tunnel, id)| (tunnel.name.as_str(), (id, priority(tunnel, circumstances)))).collect();
    let member = |learned: &LearnedMember<'_>| {
        let (tunnel, priority) = *by_name.get(learned.tunnel)?;
        let priority = if learned.standby { STANDBY } else { priority };
        Some(Member { tunnel, weight: learned.weight, priority })
    };
    let members = |learned: &Vec<LearnedMember<'_>>| {
        let mut members: Vec<Member> = learned.iter().filter_map(member).collect();
        members.sort_unstable();
        members
    };
    learned.iter().map(members).collect()
}

fn number_groups<'m>(
    wanted: impl Iterator<Item = &'m Vec<Member>>,
    known: &BTreeMap<GroupId, Vec<Member>>,
) -> Vec<GroupId> {
    let wanted: Vec<&Vec<Member>> = wanted.collect();
    let by_members: BTreeMap<Vec<Member>, GroupId> = known
        .iter()
        .map(|(id, members)| {
            let mut members = members.clone();
            members.sort_unstable();
            (members, *id)
        })
        .collect();
    let mut numbers: Vec<Option<GroupId>> =
        wanted.iter().map(|members| by_members.get(*members).copied()).collect();
    let mut taken: BTreeSet<GroupId> = numbers.iter().flatten().copied().collect();
    let mut containing: BTreeMap<TunnelId, Vec<GroupId>> = BTreeMap::new();
    for (id, members) in known.iter().filter(|(id, _)| !taken.contains(id)) {
        for member in members {
            containing.entry(member.tunnel).or_default().push(*id);
        }
    }
    for (members, number) in wanted.iter().zip(&mut numbers).filter(|(_, number)| number.is_none()) {
        let mut shared: BTreeMap<GroupId, usize> = BTreeMap::new();
        let candidates = members.iter().filter_map(|member| containing.get(&member.tunnel)).flatten();
        for id in candidates.filter(|id| !taken.contains(id)) {
            *shared.entry(*id).or_default() += 1;
        }
        // The lowest number among those that share most.
        *number =
            shared.into_iter().max_by_key(|(id, count)| (*count, core::cmp::Reverse(*id))).map(|(id, _)| id);
        taken.extend(*number);
    }
    // A number that the core still uses is free only once its group is removed.
    taken.extend(known.keys());
    let mut next = 0;
    let mut lowest_free = || {
        while !taken.insert(GroupId(next)) {
            next += 1;
        }
        GroupId(next)
    };
    numbers.into_iter().map(|number| number.unwrap_or_else(&mut lowest_free)).collect()
}

fn build_plan(
    config: &Config,
    circumstances: &Circumstances<'_>,
    ids: &[Option<TunnelId>],
    tables: &Tables,
) -> KernelPlan {
    let mut udp = BTreeSet::new();
    let mut raw_esp = BTreeSet::new();
    let mut peers = BTreeSet::new();
    let mut mtu = MIN_DEVICE_MTU;
    for (tunnel, id) in config.tunnels.iter().zip(ids) {
        let outer = circumstances.outer.get(&tunnel.name);
        mtu = mtu.max(tunnel_mtu(tunnel, outer, circumstances.negotiated.get(&tunnel.name)));
        if tunnel.df == DfPolicy::Clear {
            mtu = mtu.max(CLEARING_DEVICE_MTU);
        }
        peers.extend(outer.and_then(|outer| remote_address(tunnel, outer)));
        peers.extend(circumstances.negotiated.get(&tunnel.name).map(|path| path.remote.ip()));
        if let Some(config::Remote::Address(address)) = tunnel.remote {
            peers.insert(address);
        }
        let Some(local) = id.and_then(|id| tables.tunnels.get(&id)).map(|tunnel| tunnel.local) else {
            continue;
        };
        let socket = |port| PlannedSocket {
            local: SocketAddr::new(local.ip(), port),
            uplink: tunnel.uplink.clone(),
            wireguard: tunnel.wireguard().is_some(),
        };
        match &tunnel.keys {
            Keys::Manual(manual) => match manual.encapsulation {
                Encapsulation::Esp => raw_esp.insert(socket(0)),
                Encapsulation::Udp | Encapsulation::WireGuard => udp.insert(socket(local.port())),
            },
            Keys::WireGuard(_) => udp.insert(socket(local.port())),
            Keys::Ike(ike) => {
                udp.extend([config::IKE_PORT, config::NAT_PORT].map(socket));
                // Another address of ours may be where the next negotiation begins.
                let next = tunnel.local.or_else(|| outer?.local).filter(|next| *next != local.ip());
                udp.extend(next.into_iter().flat_map(|next| {
                    [config::IKE_PORT, config::NAT_PORT].map(|port| PlannedSocket {
                        local: SocketAddr::new(next, port),
                        uplink: tunnel.uplink.clone(),
                        wireguard: false,
                    })
                }));
                let bare = match ike.encapsulation {
                    braid_ike::Encapsulation::Udp => false,
                    braid_ike::Encapsulation::Auto | braid_ike::Encapsulation::Esp => true,
                };
                bare && raw_esp.insert(socket(0))
            }
        };
    }
    let (apart, _) = kept_apart(config, circumstances.outer);
    let heard = circumstances.heard.values().copied();
    peers.extend(heard.filter(|remote| may_cover_heard(config, &apart, *remote)));
    KernelPlan {
        device: config.core.device.clone(),
        mtu,
        // The plain device has one queue.
        workers: config.core.workers.unwrap_or(if config.core.offload { circumstances.workers } else { 1 }),
        offload: config.core.offload,
        addresses: inside_addresses(config),
        routes: plan_routes(config),
        protect: config.gateway.protect.clone(),
        transit: config.gateway.transit,
        udp: udp.into_iter().collect(),
        raw_esp: raw_esp.into_iter().collect(),
        peers: peers.into_iter().collect(),
        apart,
    }
}

/// The configuration's prefixes, and whether each goes over a link.
fn configured(config: &Config) -> impl Iterator<Item = (IpNet, bool)> {
    let routes = config.routes.iter().map(|route| (route.prefix.trunc(), route.link.is_some()));
    routes.chain(config.gateway.protect.iter().map(|prefix| (prefix.trunc(), false)))
}

/// Prefixes within which there may be peers whose addresses nobody knows: the widest, and how many more there are than
/// can be kept apart.
pub(crate) fn kept_apart(config: &Config, outer: &BTreeMap<String, Outer>) -> (Vec<IpNet>, usize) {
    let mut families = BTreeSet::new();
    // That the kernel is told the interface of a packet does not help: it takes the `unreachable` behind the route that
    // leads elsewhere for the answer.
    for tunnel in config.tunnels.iter().filter(|tunnel| tunnel.remote.is_none()) {
        match tunnel.local.or_else(|| outer.get(&tunnel.name)?.local) {
            Some(local) => families.extend([local.is_ipv4()]),
            None => families.extend([false, true]),
        }
    }
    let prefixes = configured(config)
        .filter(|(prefix, by_link)| !by_link && families.contains(&prefix.addr().is_ipv4()));
    let prefixes: BTreeSet<(u8, IpNet)> = prefixes.map(|(prefix, _)| (prefix.prefix_len(), prefix)).collect();
    let more = prefixes.len().saturating_sub(MAX_APART);
    (prefixes.into_iter().map(|(_, prefix)| prefix).take(MAX_APART).collect(), more)
}

/// Whether a route into the device may come to cover a peer that is heard here, if the plan does not name that address.
pub(crate) fn may_cover_heard(config: &Config, apart: &[IpNet], remote: IpAddr) -> bool {
    let may = |(prefix, by_link): (IpNet, bool)| {
        prefix.addr().is_ipv4() == remote.is_ipv4() && (by_link || !apart.contains(&prefix))
    };
    config.bgp.is_some() || configured(config).any(may)
}

/// In the order of the file; peers of one WireGuard interface share theirs.
fn inside_addresses(config: &Config) -> Vec<IpNet> {
    let mut seen = BTreeSet::new();
    let all = config.tunnels.iter().flat_map(|tunnel| tunnel.inside.iter().copied());
    all.filter(|address| seen.insert(*address)).collect()
}

fn plan_routes(config: &Config) -> Vec<PlannedRoute> {
    let source = |v4: bool| config.gateway.source.iter().copied().find(|address| address.is_ipv4() == v4);
    let mut routes: BTreeSet<PlannedRoute> = config
        .routes
        .iter()
        .filter(|route| route.link.is_none())
        .map(|route| PlannedRoute { prefix: route.prefix, source: source(route.prefix.addr().is_ipv4()) })
        .collect();
    for tunnel in &config.tunnels {
        // A peer within the inside network is reached by that network's own route.
        let outside =
            tunnel.peer_inside.iter().filter(|peer| !tunnel.inside.iter().any(|net| net.contains(*peer)));
        for peer in outside {
            let ours = tunnel.inside.iter().map(IpNet::addr).find(|ours| ours.is_ipv4() == peer.is_ipv4());
            routes.insert(PlannedRoute { prefix: IpNet::from(*peer), source: ours });
        }
    }
    routes.into_iter().collect()
}

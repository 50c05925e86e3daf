//! The tables: routes, ECMP groups, tunnels and SAs, and how transactions change them.
//!
//! [`Writer`] owns them; it belongs to one thread. Each worker has a [`Reader`] and enters the
//! published [`Tables`] once per batch. There are two copies, of which readers use one while the
//! writer changes the other (`left_right`); both refer to the same tunnels, groups and SAs.
//!
//! Invariants:
//! - A transaction is in force whole or not at all; what it costs depends on its operations alone
//!   (`Sweep` looks at every route once).
//! - No operation touches the sequence number or the replay window of a live SA, nor makes a second
//!   one: SA ids ascend within a boot, and no outbound key is taken twice.
//! - Masking is a store into [`TunnelStates`], visible to the next packet, whatever the tables hold.
//!
//! No I/O, no clock, no threads, no randomness: time and secrets are arguments.

mod apply;
mod bfd_links;
mod buckets;
mod fib;
mod group;
mod latency;
mod ledger;
mod left_right;
pub mod mtu;
mod pins;
mod report;
mod sas;
mod state;
mod ticks;
mod tunnel;

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher},
    net::IpAddr,
    sync::Arc,
};

use braid_api::{Flow, GatewaySettings, GroupId, PathAnswer, Spi, Target, TunnelId};
use ipnet::IpNet;

pub use apply::{Applied, Writer};
pub use buckets::BUCKETS;
pub use group::{BucketPath, Group, IDLE_GAP, MAX_MEMBERS};
pub use left_right::{Guard, Reader};
pub use pins::Pins;
pub use sas::key_check;
pub use state::{MAX_TUNNELS, TunnelStates};
pub use ticks::Ticks;
pub use tunnel::{Carrier, Tunnel, TunnelLive};

use crate::{esp::sa::InboundSa, wireguard::Peer};
use fib::{Fib, Route};

/// Most groups that the core holds.
pub const MAX_GROUPS: usize = 65_536;

/// One copy of all that a packet needs to know.
pub struct Tables {
    generation: u64,
    gateway: Arc<Gateway>,
    fib: Fib,
    tunnels: Vec<Option<Arc<Tunnel>>>,
    groups: Vec<Option<Arc<Group>>>,
    inbound: HashMap<Spi, Arc<InboundSa>, SpiHash>,
    peers: HashMap<u32, Arc<Peer>, SpiHash>,
    states: TunnelStates,
}

/// What concerns all tunnels, and what follows of it.
struct Gateway {
    settings: GatewaySettings,
    /// Where answers leave by the tunnel by which their flow came.
    pins: Option<Arc<Pins>>,
}

/// One change of one entry. Applying it yields the change that takes it back.
#[derive(Clone)]
enum Change {
    Gateway(Arc<Gateway>),
    Route(IpNet, Option<Route>),
    Tunnel(TunnelId, Option<Arc<Tunnel>>),
    Group(GroupId, Option<Arc<Group>>),
    Inbound(Spi, Option<Arc<InboundSa>>),
    Peer(u32, Option<Arc<Peer>>),
}

impl Tables {
    fn new(states: TunnelStates, gateway: Arc<Gateway>) -> Self {
        Tables {
            generation: 0,
            gateway,
            fib: Fib::default(),
            tunnels: Vec::new(),
            groups: Vec::new(),
            inbound: HashMap::default(),
            peers: HashMap::default(),
            states,
        }
    }

    /// Differs after every transaction that changed a route, group, tunnel, SA or setting. What a
    /// worker remembers about a flow is void when it has changed. Masks do not change it.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The longest prefix that covers an inner destination, and where it leads.
    #[inline]
    pub fn route(&self, destination: IpAddr) -> Option<(IpNet, Target)> {
        self.fib.lookup(destination)
    }

    /// A tunnel by its id.
    #[inline]
    pub fn tunnel(&self, id: TunnelId) -> Option<&Arc<Tunnel>> {
        self.tunnels.get(id.0 as usize)?.as_ref()
    }

    /// A group by its id.
    #[inline]
    pub fn group(&self, id: GroupId) -> Option<&Arc<Group>> {
        self.groups.get(id.0 as usize)?.as_ref()
    }

    /// The SA that a received SPI names (RFC 4303 section 3.4.2).
    #[inline]
    pub fn inbound(&self, spi: Spi) -> Option<&Arc<InboundSa>> {
        self.inbound.get(&spi)
    }

    /// The WireGuard peer that a received index names.
    #[inline]
    pub fn peer(&self, index: u32) -> Option<&Arc<Peer>> {
        self.peers.get(&index)
    }

    /// What concerns all tunnels.
    #[inline]
    pub fn settings(&self) -> &GatewaySettings {
        &self.gateway.settings
    }

    /// By which tunnels flows came, where that decides by which answers leave.
    #[inline]
    pub fn pins(&self) -> Option<&Pins> {
        self.gateway.pins.as_deref()
    }

    /// Where every tunnel stands.
    #[inline]
    pub fn states(&self) -> &TunnelStates {
        &self.states
    }

    /// Every tunnel, by ascending id.
    pub fn tunnels(&self) -> impl Iterator<Item = &Arc<Tunnel>> {
        self.tunnels.iter().flatten()
    }

    /// The way of a flow whose hash the caller has computed, and the tunnel by which it came, if that counts.
    /// Changes nothing.
    pub fn path(&self, flow: &Flow, hash: u64, pinned: Option<TunnelId>, now: Ticks) -> PathAnswer {
        let mut answer = PathAnswer { prefix: None, group: None, bucket: None, home: None, tunnel: None };
        let Some((prefix, target)) = self.route(flow.dst) else { return answer };
        answer.prefix = Some(prefix);
        match target {
            Target::Tunnel(id) => {
                answer.home = Some(id);
                answer.tunnel = self.tunnel(id).map(|_| id);
            }
            Target::Group(id) => {
                answer.group = Some(id);
                let Some(group) = self.group(id) else { return answer };
                let bucket = group.bucket_of(hash);
                let path = group.peek(bucket, &self.states, now);
                answer.bucket = (!group.is_single()).then_some(bucket);
                answer.home = Some(path.home);
                let pinned = pinned.filter(|tunnel| group.may_carry(*tunnel, &self.states));
                answer.tunnel = pinned.or(path.now);
            }
        }
        answer
    }

    fn set(&mut self, change: Change) -> Change {
        match change {
            Change::Gateway(gateway) => Change::Gateway(std::mem::replace(&mut self.gateway, gateway)),
            Change::Route(prefix, route) => Change::Route(prefix, self.fib.set(prefix, route)),
            Change::Tunnel(id, tunnel) => Change::Tunnel(id, replace_at(&mut self.tunnels, id.0, tunnel)),
            Change::Group(id, group) => Change::Group(id, replace_at(&mut self.groups, id.0, group)),
            Change::Inbound(spi, sa) => Change::Inbound(
                spi,
                match sa {
                    Some(sa) => self.inbound.insert(spi, sa),
                    None => self.inbound.remove(&spi),
                },
            ),
            Change::Peer(index, peer) => Change::Peer(
                index,
                match peer {
                    Some(peer) => self.peers.insert(index, peer),
                    None => self.peers.remove(&index),
                },
            ),
        }
    }
}

/// Puts a value at an index, growing the list; returns what was there.
fn replace_at<T>(list: &mut Vec<Option<T>>, index: u32, value: Option<T>) -> Option<T> {
    let index = index as usize;
    if index >= list.len() {
        value.as_ref()?;
        list.resize_with(index + 1, || None);
    }
    std::mem::replace(&mut list[index], value)
}

/// A cheap hash of SPIs and of WireGuard's indexes, which we have chosen: there is nobody to flood the table.
#[derive(Clone, Copy, Default)]
struct SpiHash;

struct SpiHasher(u64);

impl BuildHasher for SpiHash {
    type Hasher = SpiHasher;

    #[inline]
    fn build_hasher(&self) -> SpiHasher {
        SpiHasher(0)
    }
}

impl Hasher for SpiHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    #[inline]
    fn write_u32(&mut self, value: u32) {
        // Fibonacci hashing; the table takes its tag from the upper and its index from the lower bits.
        let product = u64::from(value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(self.0 as u32 ^ u32::from(byte));
        }
    }
}

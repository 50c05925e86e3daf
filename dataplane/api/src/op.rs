//! From control to the core: transactions of operations.

use core::time::Duration;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{BootId, Epoch, GroupId, Query, SaId, SecretKey, Spi, Suite, TunnelId};

/// Most operations in one transaction.
pub const MAX_OPS: usize = 65_536;
/// Longest opaque value in the stash, in bytes.
pub const MAX_STASH_LEN: usize = 16 * 1024;
/// Most SAs in one [`crate::Event::Traffic`].
pub const MAX_TRAFFIC: usize = 16_384;
/// Most BFD sessions outside the tunnels.
pub const MAX_BFD_LINKS: usize = 1024;
/// Most values in the stash.
pub const MAX_STASH_ENTRIES: usize = 65_536;

/// A frame from control to the core.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToCore {
    /// The first frame of a connection; the core answers with [`crate::Hello`] or closes.
    Hello {
        /// Control's [`crate::VERSION`].
        version: u32,
    },
    /// Answered by `Applied` or `Rejected`.
    Apply(Transaction),
    /// Answered by `Answer` with the same number.
    Query {
        /// Chosen by the asker.
        number: u32,
        /// What is asked.
        query: Query,
    },
}

/// Operations that take effect together or not at all.
#[derive(Debug, Serialize, Deserialize)]
pub struct Transaction {
    /// Ascending within a connection; named by the answer.
    pub epoch: Epoch,
    /// At most [`MAX_OPS`], applied in order.
    pub ops: Vec<Op>,
}

/// One change to the core's tables.
///
/// `Put` creates or replaces; putting what is there already changes nothing, so that a control
/// that comes back may put everything again and then [`Op::Sweep`]. [`Op::PutSa`] is the
/// exception: it only ever creates.
#[derive(Debug, Serialize, Deserialize)]
pub enum Op {
    /// What concerns all tunnels.
    SetGateway(GatewaySettings),
    /// Creates a tunnel, masked, or changes its settings; its SAs, its mask and its counters stay.
    PutTunnel(Tunnel),
    /// Removes a tunnel with its SAs. Rejected while a group or a route names it.
    RemoveTunnel(TunnelId),
    /// Installs an SA. Rejected when the id was ever used in this boot, when the boot is another,
    /// or when the SPI (inbound) is taken.
    PutSa(Sa),
    /// Removes an SA; its id is never free again.
    RemoveSa(SaId),
    /// The keys of a WireGuard tunnel. The same as before change nothing, so that its session goes on; others end
    /// it. They go with the tunnel.
    PutWireGuard(WireGuard),
    /// Creates or replaces an ECMP group.
    PutGroup(Group),
    /// Removes a group. Rejected while a route names it.
    RemoveGroup(GroupId),
    /// Creates or replaces a route of the core's prefix table.
    PutRoute {
        /// Inner destination.
        prefix: IpNet,
        /// Where it goes.
        target: Target,
    },
    /// Removes a route; without one, nothing happens.
    RemoveRoute {
        /// Inner destination.
        prefix: IpNet,
    },
    /// Takes the tunnel out of every group at once. The core does this by itself as well, by a
    /// verdict of its liveness thread.
    Mask(TunnelId),
    /// Offers the tunnel to traffic. Only control does this.
    Unmask(TunnelId),
    /// New and idle flows leave the tunnel; each bucket moves in an idle gap.
    Drain(TunnelId),
    /// Ends a drain.
    Undrain(TunnelId),
    /// The BFD sessions outside the tunnels are these and no others, at most [`MAX_BFD_LINKS`], each pair of
    /// addresses once. One that is as before goes on; one that is left out says to its peer that it is disabled.
    /// The verdicts of all are told again ([`crate::Event::BfdLink`]).
    SetBfdLinks(Vec<BfdLink>),
    /// Removes every tunnel, group and route that was not put since this connection's `Hello`,
    /// and the SAs of removed tunnels. SAs of tunnels that stay are kept.
    Sweep,
    /// Keeps opaque bytes for control's next life, in memory only.
    PutStash {
        /// Chosen by control.
        key: u64,
        /// At most [`MAX_STASH_LEN`] bytes.
        value: StashValue,
    },
    /// Forgets a value.
    RemoveStash {
        /// Chosen by control.
        key: u64,
    },
}

/// Opaque bytes of the stash; they may hold keys, hence zeroized.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
pub struct StashValue(#[serde(with = "crate::octets")] pub Vec<u8>);

impl core::fmt::Debug for StashValue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "StashValue({} bytes)", self.0.len())
    }
}

/// What concerns all tunnels.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GatewaySettings {
    /// Seed of the flow hash; the same after every restart, so that flows keep their buckets.
    pub hash_seed: [u8; 16],
    /// Both directions of a flow take the same bucket.
    pub symmetric_hash: bool,
    /// What answers a flow that came by a tunnel leaves by the same, if that is one of its route's and carries.
    pub pin_replies: bool,
    /// Source of ICMP errors that the core sends into the LAN, one per family.
    pub icmp_source: Vec<IpAddr>,
    /// Our own addresses, ascending: no peer may send from one of them.
    pub own: Vec<IpAddr>,
}

/// How a tunnel's packets travel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Encapsulation {
    /// ESP in UDP (RFC 3948).
    Udp,
    /// ESP as IP protocol 50 (RFC 4303).
    Esp,
    /// WireGuard, in UDP.
    WireGuard,
}

/// What happens to a packet with DF set that is too big.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DfPolicy {
    /// It is dropped and its sender told (RFC 1191, RFC 8201).
    Honour,
    /// IPv4: DF is cleared and the packet fragmented before encryption.
    Clear,
}

/// Inner source addresses that a tunnel may deliver.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Allowed {
    /// Those whose route leads into this tunnel, masked or not, and its inside peer.
    Routed,
    /// Those whose route leads into any tunnel, and its inside peer: where routes are learned, a reply may come
    /// by another tunnel than the one that is best.
    RoutedAnywhere,
    /// Exactly these.
    Prefixes(Vec<IpNet>),
}

/// In-tunnel probes of the peer's inside address, run by the core.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// Between two probes.
    pub interval: Duration,
    /// The tunnel is down when this many intervals passed without an authenticated packet.
    pub multiplier: u32,
}

/// A BFD session, run by the core; in a tunnel it is one hop away (RFC 5881).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bfd {
    /// An address of ours; in a tunnel, an inside one.
    pub local: IpAddr,
    /// The peer's, of the same family.
    pub remote: IpAddr,
    /// The shortest at which packets are sent and accepted, 10 ms and more. Another one while the session is up
    /// takes effect by a poll sequence (RFC 5880 section 6.8.3).
    pub interval: Duration,
    /// The peer is to take the session down when this many intervals passed in silence; 1 and more.
    pub multiplier: u8,
}

/// A BFD session outside the tunnels, run by the core by sockets of its own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BfdLink {
    /// Addresses and timing.
    pub bfd: Bfd,
    /// The peer is some routers away (RFC 5883), not on a link (RFC 5881).
    pub multihop: bool,
    /// The link: packets leave and are accepted by it alone.
    pub interface: Option<String>,
}

/// A tunnel as the core sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tunnel {
    /// Dense, from 0.
    pub id: TunnelId,
    /// The name of the configuration, at most 64 bytes, by which control knows it again.
    pub name: String,
    /// Outer address and UDP port of ours: names the socket (port 0 for raw ESP).
    pub local: SocketAddr,
    /// Outer address and UDP port of the peer, `None` until it is heard (a responder).
    pub remote: Option<SocketAddr>,
    /// The interface by which its packets leave, as far as it is known, at most 64 bytes: the core masks the tunnel
    /// when that loses its carrier, goes down or is removed.
    pub uplink: Option<String>,
    /// An authenticated packet that comes from elsewhere and is the newest of its SA moves the peer
    /// there: its address is changed by a NAT, or moves (RFC 7296 section 2.23). Without this, only
    /// an address that is not known yet is learnt, since whoever replays faster than the peer sends
    /// could move it.
    pub follow_remote: bool,
    /// How its packets travel.
    pub encapsulation: Encapsulation,
    /// A NAT's mapping is kept open while nothing else is sent; for ESP in UDP only.
    pub keepalive: bool,
    /// Our inside addresses.
    pub inside: Vec<IpAddr>,
    /// The peer's inside addresses; probes go to the first that has the family of one of ours.
    pub peer_inside: Vec<IpAddr>,
    /// Largest outer packet, in bytes, IP header included.
    pub path_mtu: u16,
    /// MTU that TCP's MSS is clamped to: the smallest of the groups that the tunnel is in.
    pub clamp_mtu: u16,
    /// For packets that are too big.
    pub df: DfPolicy,
    /// Inner sources accepted.
    pub allowed: Allowed,
    /// Inner destinations that the peer may send to, besides our inside addresses; none: any.
    pub reach: Vec<IpNet>,
    /// In-tunnel probes, if any.
    pub probe: Option<Probe>,
    /// At most one for each family. One whose addresses stay goes on, whatever else changes; one that is left
    /// out says to its peer that it is disabled.
    pub bfd: Vec<Bfd>,
}

/// Direction of an SA, as seen by this gateway.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Direction {
    /// From the peer.
    In,
    /// To the peer.
    Out,
}

/// Traffic selectors by address (RFC 4301 section 4.4.1.1); an empty list is any.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Selectors {
    /// On our side: destination inbound, source outbound.
    pub local: Vec<IpNet>,
    /// On the peer's side.
    pub remote: Vec<IpNet>,
}

/// One direction of an ESP SA.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sa {
    /// Never used before in this boot.
    pub id: SaId,
    /// The life of the core that this SA is made for.
    pub boot: BootId,
    /// Carries it.
    pub tunnel: TunnelId,
    /// Ours or the peer's.
    pub direction: Direction,
    /// In: chosen by us, unique in the core. Out: the peer's.
    pub spi: Spi,
    /// Encryption and integrity.
    pub suite: Suite,
    /// [`Suite::key_len`] bytes.
    pub key: SecretKey,
    /// Extended sequence numbers (RFC 4304).
    pub esn: bool,
    /// Anti-replay window in packets, 64 to 8192 and a multiple of 64; inbound only.
    pub replay_window: u32,
    /// Accepted inner addresses.
    pub selectors: Selectors,
}

/// The keys of a WireGuard tunnel: Curve25519, in 32 bytes each.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireGuard {
    /// Of [`Encapsulation::WireGuard`]. Tunnels of one socket may share our key, but not the peer's.
    pub tunnel: TunnelId,
    /// Ours.
    pub private_key: SecretKey,
    /// The peer's.
    pub peer_public_key: [u8; 32],
    /// Mixed into every handshake.
    pub preshared_key: Option<SecretKey>,
    /// A packet is sent after so many seconds without one.
    pub keepalive: Option<u16>,
    /// A session is made whenever there is none, for as long as the peer's address is known; else only when there
    /// is something to send.
    pub initiate: bool,
    /// A session is made at once, but only once: the peer may have one with the core before this one, and would not
    /// notice for long that it is gone. Of no account for keys that are there.
    pub begin: bool,
}

/// A member of a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Member {
    /// The tunnel.
    pub tunnel: TunnelId,
    /// Its share, 1 to 65535.
    pub weight: u16,
    /// Members of the highest priority that has one unmasked carry the traffic.
    pub priority: i32,
}

/// Next hops of equal standing. The core builds the buckets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Dense, from 0.
    pub id: GroupId,
    /// 1 to 256 members, each tunnel once.
    pub members: Vec<Member>,
}

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Target {
    /// Spread over a group, by its live members.
    Group(GroupId),
    /// This tunnel always, masked or not: its inside peer, which probes must reach.
    Tunnel(TunnelId),
}

/// The inner 5-tuple that [`Query::Path`] asks about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flow {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port (ICMP: identifier), 0 where there is none.
    pub src_port: u16,
    /// Destination port, 0 where there is none.
    pub dst_port: u16,
}

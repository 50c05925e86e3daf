//! Between the launcher, which keeps the privileges, and both processes.
//!
//! The launcher serves `launcher.sock` (`SOCK_SEQPACKET`) in the run directory. The core says
//! [`FromClient::Core`] and is sent [`ToCoreProcess`] messages, the first of which carries its
//! listening sockets, each later one a device or a socket, by `SCM_RIGHTS`. Control says
//! [`FromClient::Control`] and sends [`KernelPlan`]s: the launcher makes the kernel like the plan
//! and undoes on exit what it made. Control leaves it what it is configured by, for its next life. One message is one packet, in postcard's format.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Name of the launcher's socket in the run directory.
pub const LAUNCHER_SOCKET: &str = "launcher.sock";
/// Name of the core's table socket in the run directory.
pub const TABLES_SOCKET: &str = "tables.sock";
/// Name of the core's punt socket in the run directory.
pub const PUNT_SOCKET: &str = "punt.sock";
/// Longest message, in bytes.
pub const MAX_MESSAGE_LEN: usize = 128 * 1024;
/// Longest plan in a memory file, in bytes.
pub const MAX_PLAN_LEN: usize = 256 * 1024 * 1024;
/// Mark (`SO_MARK`) of every outer socket: routing rules let packets that carry it follow the
/// ordinary routes, whatever the tunnels' routes cover.
pub const OUTER_MARK: u32 = 0x000b_1a1d;

/// From a process to the launcher.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FromClient {
    /// The core is there and wants its file descriptors.
    Core,
    /// Control is there.
    Control,
    /// Control wants the kernel like this; answered by [`ToControl`].
    Plan(KernelPlan),
    /// Control has learned routes, or unlearned some; answered by [`ToControl::RoutesDone`].
    Routes(RouteChanges),
    /// As [`FromClient::Plan`], for a plan that does not fit a message: one descriptor comes
    /// along, a memory file that holds the [`KernelPlan`] in postcard's format from offset 0.
    PlanFile {
        /// Length of the plan, in bytes; at most [`MAX_PLAN_LEN`].
        len: u32,
    },
    /// What the next life of control may go on with, in a descriptor that comes along: a sealed memory file, into
    /// which the launcher does not look; without one there is nothing any more. Not answered.
    InForce,
}

/// From the launcher to the core. The file descriptors come with the message, in this order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToCoreProcess {
    /// Settings of this run; two descriptors and more: the listening table and punt sockets, and raw sockets that hear
    /// ICMP errors, as far as they can be had.
    Start {
        /// Forwarding threads.
        workers: u32,
        /// Whether segmentation offloads may be used.
        offload: bool,
    },
    /// One descriptor per queue, and with several queues one more, which all write to.
    Tun {
        /// The device's name.
        name: String,
        /// Whether packets carry a virtio-net header (offload).
        vnet_hdr: bool,
    },
    /// One descriptor per worker: UDP sockets bound to `local`.
    Udp {
        /// Bound address.
        local: SocketAddr,
        /// It is WireGuard's, not ESP's and IKE's.
        wireguard: bool,
    },
    /// One descriptor: a raw socket of IP protocol 50 bound to `local`.
    RawEsp {
        /// Bound address.
        local: IpAddr,
    },
    /// The socket with this address is no longer needed; no descriptor.
    Close {
        /// Which: port 0 is raw ESP.
        local: SocketAddr,
    },
}

/// From the launcher to control.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToControl {
    /// The plan is in force, and the core has been sent its sockets.
    Done,
    /// The routes are in the kernel, as far as it takes them.
    RoutesDone,
    /// The plan is not in force; one line says what could not be done and the remedy.
    Failed {
        /// One line.
        message: String,
    },
}

/// What the kernel should be like. The launcher owns what a plan names, and nothing else.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KernelPlan {
    /// The TUN device.
    pub device: String,
    /// Its MTU, in bytes.
    pub mtu: u16,
    /// Its queues.
    pub workers: u32,
    /// Whether segmentation offloads may be used.
    pub offload: bool,
    /// Inside addresses, on the device.
    pub addresses: Vec<IpNet>,
    /// Into the device; behind each the launcher puts an `unreachable` of worst metric.
    pub routes: Vec<PlannedRoute>,
    /// Prefixes that get only the `unreachable` route.
    pub protect: Vec<IpNet>,
    /// May a packet that came out of one tunnel go into another.
    pub transit: bool,
    /// UDP sockets.
    pub udp: Vec<PlannedSocket>,
    /// Raw sockets of IP protocol 50.
    pub raw_esp: Vec<PlannedSocket>,
    /// Outer addresses of the peers, which no route into the device may capture.
    pub peers: Vec<IpAddr>,
    /// Of `routes` and `protect`, what peers of unknown addresses may be within.
    pub apart: Vec<IpNet>,
}

/// Routes that come and go while the plan stays as it is. They survive control, until another life of it
/// sweeps.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RouteChanges {
    /// Next hops that have failed: before anything else all routes lose them at once, and what stands behind
    /// carries.
    pub withdraw: Vec<NextHop>,
    /// New, or with another way.
    pub put: Vec<RoutePut>,
    /// Gone.
    pub remove: Vec<IpNet>,
    /// What was not put since control said [`FromClient::Control`] goes.
    pub sweep: bool,
}

/// A learned route.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RoutePut {
    /// Destination.
    pub prefix: IpNet,
    /// Its way.
    pub via: LearnedVia,
}

/// Where a learned route leads: over a link, into the device, or both; then the link goes before.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub struct LearnedVia {
    /// To a router on a link.
    pub link: Option<NextHop>,
    /// Into the device, behind the link if there is one.
    pub device: Option<IntoDevice>,
}

/// A router on a link, which the kernel reaches without the core.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct NextHop {
    /// The router.
    pub gateway: IpAddr,
    /// The link.
    pub interface: String,
}

/// A way into the device; behind it the launcher puts an `unreachable` of worst metric.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct IntoDevice {
    /// Preferred source of the gateway's own traffic.
    pub source: Option<IpAddr>,
}

/// A kernel route into the device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PlannedRoute {
    /// Destination.
    pub prefix: IpNet,
    /// Preferred source of the gateway's own traffic.
    pub source: Option<IpAddr>,
}

/// An outer socket.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PlannedSocket {
    /// Bound address; port 0 for raw ESP.
    pub local: SocketAddr,
    /// Bound to this interface.
    pub uplink: Option<String>,
    /// It is WireGuard's, not ESP's and IKE's.
    pub wireguard: bool,
}

//! The five namespaces of the demonstration and what joins them.
//!
//! ```text
//! client -- gateway-a == path-1 == net == path-1 == gateway-b -- server
//!                     == path-2 == net == path-2 ==
//! ```
//! `net` is the world between the gateways: a router of which they see nothing. Cutting a path
//! there takes no link down and sends no ICMP error: packets vanish, as in a failing provider.
//!
//! A second pair of prefixes is routed over path-1 without any tunnel, for the comparison with
//! plain kernel forwarding. The devices keep the offloads that the kernel gives them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::error::Error;
use super::net::Namespace;

/// The namespaces.
#[derive(Debug)]
pub(super) struct Topology {
    pub(super) client: Namespace,
    pub(super) gateway_a: Namespace,
    pub(super) net: Namespace,
    pub(super) gateway_b: Namespace,
    pub(super) server: Namespace,
}

/// One way through the world between the gateways, and the tunnel that goes along it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    /// Of the tunnel, too.
    pub(super) name: &'static str,
    /// Outer address of gateway A.
    pub(super) a: Ipv4Addr,
    /// The router's address towards gateway A.
    pub(super) router_a: Ipv4Addr,
    /// The router's address towards gateway B.
    pub(super) router_b: Ipv4Addr,
    /// Outer address of gateway B.
    pub(super) b: Ipv4Addr,
    /// Addresses inside the tunnel, a /30.
    pub(super) inside_a: Ipv4Addr,
    /// Gateway B's.
    pub(super) inside_b: Ipv4Addr,
    /// The gateways' device on this path.
    pub(super) wan: &'static str,
    /// The router's device towards gateway A.
    pub(super) device_a: &'static str,
    /// The router's device towards gateway B.
    pub(super) device_b: &'static str,
}

/// Both paths.
pub(super) const PATHS: [Path; 2] = [
    Path {
        name: "path-1",
        a: Ipv4Addr::new(192, 0, 2, 1),
        router_a: Ipv4Addr::new(192, 0, 2, 2),
        router_b: Ipv4Addr::new(192, 0, 2, 6),
        b: Ipv4Addr::new(192, 0, 2, 5),
        inside_a: Ipv4Addr::new(169, 254, 10, 1),
        inside_b: Ipv4Addr::new(169, 254, 10, 2),
        wan: "wan1",
        device_a: "a1",
        device_b: "b1",
    },
    Path {
        name: "path-2",
        a: Ipv4Addr::new(198, 51, 100, 1),
        router_a: Ipv4Addr::new(198, 51, 100, 2),
        router_b: Ipv4Addr::new(198, 51, 100, 6),
        b: Ipv4Addr::new(198, 51, 100, 5),
        inside_a: Ipv4Addr::new(169, 254, 20, 1),
        inside_b: Ipv4Addr::new(169, 254, 20, 2),
        wan: "wan2",
        device_a: "a2",
        device_b: "b2",
    },
];

/// The network behind one gateway.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site {
    /// The host there.
    pub(super) host: Ipv4Addr,
    /// Its gateway.
    pub(super) gateway: Ipv4Addr,
    /// The host's IPv6 address.
    pub(super) host6: Ipv6Addr,
    /// Its gateway's.
    pub(super) gateway6: Ipv6Addr,
    /// The host's second address, reached by plain forwarding.
    pub(super) plain_host: Ipv4Addr,
    /// Its gateway's.
    pub(super) plain_gateway: Ipv4Addr,
}

/// The network with the client.
pub(super) const SITE_A: Site = Site {
    host: Ipv4Addr::new(10, 1, 0, 2),
    gateway: Ipv4Addr::new(10, 1, 0, 1),
    host6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2),
    gateway6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1),
    plain_host: Ipv4Addr::new(10, 11, 0, 2),
    plain_gateway: Ipv4Addr::new(10, 11, 0, 1),
};

/// The network with the server.
pub(super) const SITE_B: Site = Site {
    host: Ipv4Addr::new(10, 2, 0, 2),
    gateway: Ipv4Addr::new(10, 2, 0, 1),
    host6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2),
    gateway6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1),
    plain_host: Ipv4Addr::new(10, 12, 0, 2),
    plain_gateway: Ipv4Addr::new(10, 12, 0, 1),
};

impl Site {
    /// The prefixes that the tunnels carry.
    pub(super) fn prefixes(&self) -> [IpNet; 2] {
        [subnet(self.gateway, LAN4).trunc(), subnet(self.gateway6, LAN6).trunc()]
    }

    fn plain_prefix(&self) -> IpNet {
        subnet(self.plain_gateway, LAN4).trunc()
    }
}

impl Topology {
    /// Builds all of it.
    ///
    /// # Errors
    /// When the kernel refuses; then nothing stays.
    pub(super) fn build() -> Result<Self, Error> {
        let topology = Self {
            client: Namespace::new("client")?,
            gateway_a: Namespace::new("gateway-a")?,
            net: Namespace::new("net")?,
            gateway_b: Namespace::new("gateway-b")?,
            server: Namespace::new("server")?,
        };
        for router in [&topology.gateway_a, &topology.net, &topology.gateway_b] {
            router.run(|inside| inside.forward())?;
        }
        for (host, gateway, here, there) in [
            (&topology.client, &topology.gateway_a, SITE_A, SITE_B),
            (&topology.server, &topology.gateway_b, SITE_B, SITE_A),
        ] {
            join_site(host, gateway, here, there)?;
        }
        for path in PATHS {
            topology.join_gateways(path)?;
        }
        topology.route_plainly(PATHS[0])?;
        Ok(topology)
    }

    /// Lets everything on this path vanish in `net`, in both directions.
    pub(super) fn cut(&self, path: Path) -> Result<(), Error> {
        self.net.run(move |inside| {
            inside.swallow(path.a)?;
            inside.swallow(path.b)
        })
    }

    /// Undoes [`Topology::cut`].
    pub(super) fn restore(&self, path: Path) -> Result<(), Error> {
        self.net.run(move |inside| {
            inside.stop_swallowing(path.a)?;
            inside.stop_swallowing(path.b)
        })
    }

    /// Bytes that came into `net` from gateway A so far, per path.
    pub(super) fn carried(&self) -> Result<[u64; 2], Error> {
        self.net.run(|inside| inside.received(PATHS.map(|path| path.device_a)))
    }

    fn join_gateways(&self, path: Path) -> Result<(), Error> {
        let sides = [
            (&self.gateway_a, path.a, path.router_a, path.device_a, path.b),
            (&self.gateway_b, path.b, path.router_b, path.device_b, path.a),
        ];
        for (gateway, own, router, device, far) in sides {
            let there = gateway.descriptor();
            self.net.run(move |inside| {
                inside.veth(device, path.wan, there)?;
                inside.address(device, subnet(router, LINK))?;
                inside.up(device)
            })?;
            gateway.run(move |inside| {
                // Nothing but the tunnels speaks on these links, so that any other packet is a leak.
                inside.sysctl(&format!("net/ipv6/conf/{}/disable_ipv6", path.wan), "1")?;
                inside.address(path.wan, subnet(own, LINK))?;
                inside.up(path.wan)?;
                inside.route(subnet(far, LINK).trunc(), router.into(), None)
            })?;
        }
        Ok(())
    }

    fn route_plainly(&self, path: Path) -> Result<(), Error> {
        let (a, b) = (SITE_A.plain_prefix(), SITE_B.plain_prefix());
        self.gateway_a.run(move |inside| inside.route(b, path.router_a.into(), None))?;
        self.gateway_b.run(move |inside| inside.route(a, path.router_b.into(), None))?;
        self.net.run(move |inside| {
            inside.route(a, path.a.into(), None)?;
            inside.route(b, path.b.into(), None)
        })
    }
}

fn join_site(host: &Namespace, gateway: &Namespace, here: Site, there: Site) -> Result<(), Error> {
    let other_end = gateway.descriptor();
    host.run(move |inside| inside.veth(LAN, LAN, other_end))?;
    gateway.run(move |inside| {
        inside.address(LAN, subnet(here.gateway, LAN4))?;
        inside.address(LAN, subnet(here.gateway6, LAN6))?;
        inside.address(LAN, subnet(here.plain_gateway, LAN4))?;
        inside.up(LAN)
    })?;
    host.run(move |inside| {
        inside.sysctl("net/ipv4/ping_group_range", "0 0")?;
        inside.address(LAN, subnet(here.host, LAN4))?;
        inside.address(LAN, subnet(here.host6, LAN6))?;
        inside.address(LAN, subnet(here.plain_host, LAN4))?;
        inside.up(LAN)?;
        let [far4, far6] = there.prefixes();
        inside.route(far4, here.gateway.into(), Some(here.host.into()))?;
        inside.route(far6, here.gateway6.into(), None)?;
        inside.route(there.plain_prefix(), here.plain_gateway.into(), Some(here.plain_host.into()))
    })
}

fn subnet(address: impl Into<IpAddr>, length: u8) -> IpNet {
    IpNet::new_assert(address.into(), length)
}

const LAN: &str = "lan0";
const LAN4: u8 = 24;
const LAN6: u8 = 64;
const LINK: u8 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_share_no_subnet() {
        let mut subnets: Vec<IpNet> =
            PATHS.iter().flat_map(|path| [path.a, path.b]).map(|end| subnet(end, LINK).trunc()).collect();
        subnets.sort();
        subnets.dedup();
        assert_eq!(subnets.len(), 4);
        for path in PATHS {
            assert!(subnet(path.a, LINK).contains(&IpAddr::from(path.router_a)));
            assert!(subnet(path.b, LINK).contains(&IpAddr::from(path.router_b)));
            assert!(subnet(path.inside_a, LINK).contains(&IpAddr::from(path.inside_b)));
        }
    }
}

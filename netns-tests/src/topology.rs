//! The standard network: client — gateway A — (internet) — gateway B — server.
//!
//! | Namespace | Devices | Addresses |
//! |---|---|---|
//! | client | `eth0` | 10.1.0.2/24, fd00:1::2/64 |
//! | gateway A | `lan0`, `wan0`… | 10.1.0.1/24, fd00:1::1/64; path i: 192.0.2.(4i+1)/30, 2001:db8:a:i::1/64 |
//! | internet | `a0`…, `b0`… | path i: 192.0.2.(4i+2)/30, 198.51.100.(4i+2)/30, 2001:db8:a:i::2/64, 2001:db8:b:i::2/64 |
//! | gateway B | `lan0`, `wan0`… | 10.2.0.1/24, fd00:2::1/64; path i: 198.51.100.(4i+1)/30, 2001:db8:b:i::1/64 |
//! | server | `eth0` | 10.2.0.2/24, fd00:2::2/64 |
//!
//! Without the internet in the middle, gateway B has the other end of each pair itself:
//! 192.0.2.(4i+2)/30 and 2001:db8:a:i::2/64.

use crate::fault::{self, Fault};
use crate::{Error, Netns, Offload, Result};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Client's address.
pub const CLIENT: &str = "10.1.0.2";
/// Server's address.
pub const SERVER: &str = "10.2.0.2";
/// Client's IPv6 address.
pub const CLIENT6: &str = "fd00:1::2";
/// Server's IPv6 address.
pub const SERVER6: &str = "fd00:2::2";
/// Gateway A's address on the client's network.
pub const GATEWAY_A: &str = "10.1.0.1";
/// Gateway B's address on the server's network.
pub const GATEWAY_B: &str = "10.2.0.1";
/// The client's network.
pub const NET_A: &str = "10.1.0.0/24";
/// The server's network.
pub const NET_B: &str = "10.2.0.0/24";
/// The client's IPv6 network.
pub const NET_A6: &str = "fd00:1::/64";
/// The server's IPv6 network.
pub const NET_B6: &str = "fd00:2::/64";

/// A /24 has 64 networks of four addresses.
const MOST_PATHS: usize = 64;

/// How the network is to be.
#[derive(Debug, Clone)]
pub struct TopologyBuilder {
    paths: usize,
    internet: bool,
    lan_mtu: u32,
    outer_mtu: u32,
}

/// One outer path between the gateways.
#[derive(Debug, Clone)]
pub struct OuterPath {
    /// From 0.
    pub index: usize,
    /// The device at either gateway, `wan<index>`.
    pub device: String,
    /// Gateway A's outer address.
    pub a: Ipv4Addr,
    /// Gateway B's outer address.
    pub b: Ipv4Addr,
    /// Gateway A's outer IPv6 address.
    pub a6: Ipv6Addr,
    /// Gateway B's outer IPv6 address.
    pub b6: Ipv6Addr,
}

/// The network. Dropped, it is removed.
#[derive(Debug)]
pub struct Topology {
    /// Where inner traffic starts.
    pub client: Netns,
    /// The gateway at the client's side.
    pub gateway_a: Netns,
    /// What lies between the gateways, if anything.
    pub internet: Option<Netns>,
    /// The gateway at the server's side.
    pub gateway_b: Netns,
    /// Where inner traffic ends.
    pub server: Netns,
    /// The outer paths.
    pub paths: Vec<OuterPath>,
}

impl Default for TopologyBuilder {
    fn default() -> Self {
        Self { paths: 1, internet: true, lan_mtu: 1500, outer_mtu: 1500 }
    }
}

impl TopologyBuilder {
    /// Number of outer paths, 1 to 64; 1 by default.
    #[must_use]
    pub fn paths(mut self, paths: usize) -> Self {
        self.paths = paths;
        self
    }

    /// Joins the gateways directly, without the internet between them.
    #[must_use]
    pub fn direct(mut self) -> Self {
        self.internet = false;
        self
    }

    /// MTU of client's and server's networks in bytes; 1500 by default.
    #[must_use]
    pub fn lan_mtu(mut self, mtu: u32) -> Self {
        self.lan_mtu = mtu;
        self
    }

    /// MTU of the outer paths in bytes; 1500 by default.
    #[must_use]
    pub fn outer_mtu(mut self, mtu: u32) -> Self {
        self.outer_mtu = mtu;
        self
    }

    /// Builds it: forwarding on at the gateways, default routes at client and server, each
    /// gateway able to reach the other's outer addresses, and no route between client and server.
    ///
    /// # Errors
    /// When not root, or a program is missing.
    pub fn build(&self) -> Result<Topology> {
        if !(1..=MOST_PATHS).contains(&self.paths) {
            return Err(Error::Usage(format!("1 to {MOST_PATHS} paths, not {}", self.paths)));
        }
        let topology = Topology {
            client: Netns::new("client")?,
            gateway_a: Netns::new("gwa")?,
            internet: if self.internet { Some(Netns::new("internet")?) } else { None },
            gateway_b: Netns::new("gwb")?,
            server: Netns::new("server")?,
            paths: (0..self.paths).map(|index| self.path(index)).collect(),
        };
        topology.gateway_a.make_router()?;
        topology.gateway_b.make_router()?;
        lan(&topology.client, &topology.gateway_a, 1, self.lan_mtu)?;
        lan(&topology.server, &topology.gateway_b, 2, self.lan_mtu)?;
        if let Some(internet) = &topology.internet {
            internet.make_router()?;
        }
        for path in &topology.paths {
            match &topology.internet {
                Some(internet) => self.join_through(&topology, internet, path)?,
                None => self.join(&topology, path)?,
            }
        }
        Ok(topology)
    }

    fn path(&self, index: usize) -> OuterPath {
        // At most 64 paths (checked first), so neither overflows.
        #[allow(clippy::cast_possible_truncation)]
        let (host, group) = ((4 * index) as u8, index as u16);
        let a6 = |host| Ipv6Addr::new(0x2001, 0xdb8, 0xa, group, 0, 0, 0, host);
        let (b, b6) = if self.internet {
            let b6 = Ipv6Addr::new(0x2001, 0xdb8, 0xb, group, 0, 0, 0, 1);
            (Ipv4Addr::new(198, 51, 100, host.wrapping_add(1)), b6)
        } else {
            (Ipv4Addr::new(192, 0, 2, host.wrapping_add(2)), a6(2))
        };
        OuterPath {
            index,
            device: format!("wan{index}"),
            a: Ipv4Addr::new(192, 0, 2, host.wrapping_add(1)),
            b,
            a6: a6(1),
            b6,
        }
    }

    fn join(&self, topology: &Topology, path: &OuterPath) -> Result<()> {
        let (a, b) = (&topology.gateway_a, &topology.gateway_b);
        a.veth(&path.device, b, &path.device, self.outer_mtu)?;
        for (side, v4, v6) in [(a, path.a, path.a6), (b, path.b, path.b6)] {
            side.address(&path.device, &format!("{v4}/30"))?;
            side.address(&path.device, &format!("{v6}/64"))?;
        }
        Ok(())
    }

    fn join_through(&self, topology: &Topology, internet: &Netns, path: &OuterPath) -> Result<()> {
        let sides = [
            (&topology.gateway_a, "a", path.a, path.a6, path.b, path.b6),
            (&topology.gateway_b, "b", path.b, path.b6, path.a, path.a6),
        ];
        for (gateway, side, own, own6, far, far6) in sides {
            let middle = format!("{side}{}", path.index);
            gateway.veth(&path.device, internet, &middle, self.outer_mtu)?;
            let next = Ipv4Addr::from(u32::from(own) + 1);
            let next6 = Ipv6Addr::from(u128::from(own6) + 1);
            gateway.address(&path.device, &format!("{own}/30"))?;
            gateway.address(&path.device, &format!("{own6}/64"))?;
            internet.address(&middle, &format!("{next}/30"))?;
            internet.address(&middle, &format!("{next6}/64"))?;
            gateway.ip(&format!("route add {far}/32 via {next} dev {}", path.device))?;
            gateway.ip(&format!("route add {far6}/128 via {next6} dev {}", path.device))?;
        }
        Ok(())
    }
}

/// Joins a host and its gateway; `side` is the second number of the IPv4 network.
fn lan(host: &Netns, gateway: &Netns, side: u8, mtu: u32) -> Result<()> {
    host.veth("eth0", gateway, "lan0", mtu)?;
    host.address("eth0", &format!("10.{side}.0.2/24"))?;
    gateway.address("lan0", &format!("10.{side}.0.1/24"))?;
    host.address("eth0", &format!("fd00:{side}::2/64"))?;
    gateway.address("lan0", &format!("fd00:{side}::1/64"))?;
    host.ip(&format!("route add default via 10.{side}.0.1"))?;
    host.ip(&format!("-6 route add default via fd00:{side}::1"))?;
    Ok(())
}

impl Topology {
    /// The standard network with one path through an internet; see [`TopologyBuilder`].
    #[must_use]
    pub fn builder() -> TopologyBuilder {
        TopologyBuilder::default()
    }

    /// Every namespace, client first.
    #[must_use]
    pub fn namespaces(&self) -> Vec<&Netns> {
        let mut all = vec![&self.client, &self.gateway_a];
        all.extend(&self.internet);
        all.extend([&self.gateway_b, &self.server]);
        all
    }

    /// Routes between client and server without any tunnel, over the first path: the limit that
    /// tunnels are measured against.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn add_plain_routes(&self) -> Result<()> {
        self.plain_routes("add")
    }

    /// Removes what [`Topology::add_plain_routes`] added.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn remove_plain_routes(&self) -> Result<()> {
        self.plain_routes("del")
    }

    fn plain_routes(&self, verb: &str) -> Result<()> {
        let path = &self.paths[0];
        let (mut to_b, mut to_a) = ((path.b, path.b6), (path.a, path.a6));
        if let Some(internet) = &self.internet {
            internet.ip(&format!("route {verb} {NET_A} via {} dev a0", path.a))?;
            internet.ip(&format!("route {verb} {NET_B} via {} dev b0", path.b))?;
            internet.ip(&format!("-6 route {verb} {NET_A6} via {} dev a0", path.a6))?;
            internet.ip(&format!("-6 route {verb} {NET_B6} via {} dev b0", path.b6))?;
            to_b = next_host(path.a, path.a6);
            to_a = next_host(path.b, path.b6);
        }
        let device = &path.device;
        for (gateway, net, net6, via) in
            [(&self.gateway_a, NET_B, NET_B6, to_b), (&self.gateway_b, NET_A, NET_A6, to_a)]
        {
            gateway.ip(&format!("route {verb} {net} via {} dev {device}", via.0))?;
            gateway.ip(&format!("-6 route {verb} {net6} via {} dev {device}", via.1))?;
        }
        Ok(())
    }

    /// Cuts one path in its middle, silently, both ways.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn cut(&self, path: usize) -> Result<Vec<Fault>> {
        self.at_both_ends(path, |netns, device| fault::cut(netns, &[device]))
    }

    /// Loses packets of one path at random, both ways.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn lose(&self, path: usize, percent: f64) -> Result<Vec<Fault>> {
        self.at_both_ends(path, |netns, device| fault::loss(netns, device, percent))
    }

    fn at_both_ends(&self, path: usize, fault: impl Fn(&Netns, &str) -> Result<Fault>) -> Result<Vec<Fault>> {
        let Some(outer) = self.paths.get(path) else {
            return Err(Error::Usage(format!("no path {path}")));
        };
        match &self.internet {
            Some(internet) => {
                Ok(vec![fault(internet, &format!("a{path}"))?, fault(internet, &format!("b{path}"))?])
            }
            None => Ok(vec![fault(&self.gateway_a, &outer.device)?, fault(&self.gateway_b, &outer.device)?]),
        }
    }

    /// [`Netns::keep_flows_in_order`] in all of them.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn keep_flows_in_order(&self) -> Result<()> {
        self.namespaces().into_iter().try_for_each(Netns::keep_flows_in_order)
    }

    /// Turns offloads of every veth end on or off.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn offloads(&self, offload: Offload, on: bool) -> Result<()> {
        for netns in self.namespaces() {
            for device in netns.devices()? {
                let veth = ["eth", "lan", "wan", "a", "b"]
                    .iter()
                    .any(|kind| device.strip_prefix(kind).is_some_and(|rest| rest.parse::<u8>().is_ok()));
                if veth {
                    netns.offload(&device, offload, on)?;
                }
            }
        }
        Ok(())
    }
}

fn next_host(address: Ipv4Addr, address6: Ipv6Addr) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::from(u32::from(address) + 1), Ipv6Addr::from(u128::from(address6) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_own_addresses() {
        for builder in [Topology::builder(), Topology::builder().direct()] {
            let mut seen = std::collections::BTreeSet::new();
            for index in 0..MOST_PATHS {
                let path = builder.path(index);
                for address in [path.a, path.b] {
                    assert!(seen.insert(address), "{address} twice");
                }
            }
        }
    }

    #[test]
    fn refuses_a_count_of_paths_it_has_no_addresses_for() {
        for paths in [0, MOST_PATHS + 1] {
            let built = Topology::builder().paths(paths).build();
            assert!(matches!(built, Err(Error::Usage(_))));
        }
    }
}

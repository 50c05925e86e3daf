//! Braid itself: the shipped `braid` command on both gateways, ESP with fixed random keys.

use super::{Running, System, Wire, random_hex};
use braid_netns::gateway::Gateway;
use braid_netns::topology::{GATEWAY_A, GATEWAY_B, NET_A, NET_B};
use braid_netns::{Error, Result, Topology};
use std::fmt::Write;
use std::time::Duration;

const START: Duration = Duration::from_secs(20);

/// ESP in UDP over one or more tunnels, each on a path of its own.
#[derive(Debug)]
pub(super) struct Braid {
    /// By the configuration's name.
    pub(super) suite: &'static str,
    /// Tunnels in one ECMP group.
    pub(super) tunnels: usize,
}

/// Both directions of one tunnel.
struct Keys {
    a_to_b: String,
    b_to_a: String,
}

/// Whose configuration is written.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    A,
    B,
}

impl Braid {
    /// RFC 4106: the key, then four bytes of salt.
    fn key_bytes(&self) -> usize {
        if self.suite.contains("256") { 36 } else { 20 }
    }

    fn configuration(&self, side: Side, topology: &Topology, keys: &[Keys]) -> String {
        let (name, source, far) = match side {
            Side::A => ("gateway-a", GATEWAY_A, NET_B),
            Side::B => ("gateway-b", GATEWAY_B, NET_A),
        };
        let mut text = format!("[gateway]\nname = \"{name}\"\nsource = \"{source}\"\n");
        let tunnels = topology.paths.iter().zip(keys).take(self.tunnels).enumerate();
        for (index, (path, keys)) in tunnels {
            let (local, remote, host, key_in, key_out) = match side {
                Side::A => (path.a, path.b, 1, &keys.b_to_a, &keys.a_to_b),
                Side::B => (path.b, path.a, 2, &keys.a_to_b, &keys.b_to_a),
            };
            let spi = |from: Side| 0x1001 + 2 * index + usize::from(from == Side::B);
            let (spi_in, spi_out) = match side {
                Side::A => (spi(Side::B), spi(Side::A)),
                Side::B => (spi(Side::A), spi(Side::B)),
            };
            let inside = format!("169.254.{}.{host}/30", 10 + index);
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "\n[[tunnel]]\nname = \"t{index}\"\ntype = \"ipsec\"\n\
                 local = \"{local}\"\nremote = \"{remote}\"\ninside = \"{inside}\"\n\
                 \n[tunnel.manual]\nsuite = \"{}\"\nencapsulation = \"udp\"\n\
                 spi-in = {spi_in:#x}\nspi-out = {spi_out:#x}\n\
                 key-in = \"{key_in}\"\nkey-out = \"{key_out}\"\n",
                self.suite
            );
        }
        let via: Vec<String> = (0..self.tunnels).map(|index| format!("\"t{index}\"")).collect();
        let _ = write!(text, "\n[[route]]\nprefix = \"{far}\"\nvia = [{}]\n", via.join(", "));
        text
    }
}

impl System for Braid {
    fn name(&self) -> String {
        let bits = if self.suite.contains("256") { 256 } else { 128 };
        format!("braid-{bits}-{}", self.tunnels)
    }

    fn title(&self) -> String {
        let bits = if self.suite.contains("256") { 256 } else { 128 };
        let tunnels =
            if self.tunnels == 1 { "1 tunnel".to_owned() } else { format!("{} tunnels", self.tunnels) };
        format!("Braid, ESP AES-{bits}-GCM, {tunnels}")
    }

    fn paths(&self) -> usize {
        self.tunnels
    }

    fn far_end(&self) -> Option<&'static str> {
        Some("169.254.10.2")
    }

    fn wire(&self) -> Wire {
        Wire::EspInUdp
    }

    fn start(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        let keys: Vec<Keys> = (0..self.tunnels)
            .map(|_| {
                let bytes = self.key_bytes();
                Ok(Keys { a_to_b: random_hex(bytes)?, b_to_a: random_hex(bytes)? })
            })
            .collect::<Result<_>>()?;
        let start = |side, netns| Gateway::start(netns, &self.configuration(side, topology, &keys));
        let mut pair =
            Pair { a: start(Side::A, &topology.gateway_a)?, b: start(Side::B, &topology.gateway_b)? };
        for gateway in [&mut pair.a, &mut pair.b] {
            gateway.wait_up(START)?;
        }
        Ok(Box::new(pair))
    }
}

#[derive(Debug)]
struct Pair {
    a: Gateway,
    b: Gateway,
}

impl Running for Pair {
    fn diagnosis(&mut self) -> String {
        let mut said = String::new();
        for gateway in [&mut self.a, &mut self.b] {
            let status =
                gateway.status().map_or_else(|error: Error| error.to_string(), |json| json.to_string());
            let _ = writeln!(said, "{}\nstatus: {status}", gateway.process().failure());
        }
        said
    }
}

//! WireGuard in user space: Debian's wireguard-go, and boringtun-cli.

use super::{Running, System, Wire};
use braid_netns::topology::{NET_A, NET_B};
use braid_netns::wireguard::{Implementation, Keys, MTU, PORT, Wireguard as Daemon};
use braid_netns::{Netns, Result, Topology};
use std::net::Ipv4Addr;

/// One userspace implementation.
#[derive(Debug)]
pub(super) struct Wireguard {
    name: &'static str,
    title: &'static str,
    implementation: Implementation,
}

impl Wireguard {
    pub(super) fn go() -> Self {
        Self { name: "wireguard-go", title: "wireguard-go (Debian)", implementation: Implementation::Go }
    }

    pub(super) fn boringtun() -> Self {
        Self { name: "boringtun", title: "boringtun-cli 0.7.1", implementation: Implementation::Boringtun }
    }
}

impl System for Wireguard {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn title(&self) -> String {
        self.title.to_owned()
    }

    fn wire(&self) -> Wire {
        Wire::Wireguard(PORT)
    }

    fn start(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        let (a, b) = (&topology.gateway_a, &topology.gateway_b);
        let (keys_a, keys_b) = (Keys::generate(a)?, Keys::generate(b)?);
        let path = &topology.paths[0];
        let daemons = [
            self.gateway(a, &keys_a, &Peer { keys: &keys_b, address: path.b, net: NET_B })?,
            self.gateway(b, &keys_b, &Peer { keys: &keys_a, address: path.a, net: NET_A })?,
        ];
        Ok(Box::new(Daemons { daemons }))
    }
}

struct Peer<'a> {
    keys: &'a Keys,
    address: Ipv4Addr,
    net: &'a str,
}

impl Wireguard {
    fn gateway(&self, netns: &Netns, own: &Keys, peer: &Peer<'_>) -> Result<Daemon> {
        let daemon = Daemon::start(netns, self.implementation, MTU, &[], &[peer.net])?;
        daemon.configure(&format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
             [Peer]\nPublicKey = {}\nEndpoint = {}:{PORT}\nAllowedIPs = {}\n",
            own.private, peer.keys.public, peer.address, peer.net
        ))?;
        Ok(daemon)
    }
}

#[derive(Debug)]
struct Daemons {
    daemons: [Daemon; 2],
}

impl Running for Daemons {
    fn diagnosis(&mut self) -> String {
        self.daemons.each_mut().map(|daemon| daemon.failure().to_string()).join("\n")
    }
}

//! Debian's strongSwan with ESP in user space (plugin kernel-libipsec).

use super::{Running, System, Wire, random_hex};
use braid_netns::strongswan::{Auth, Connection, Strongswan as Daemon};
use braid_netns::topology::{NET_A, NET_B};
use braid_netns::{Netns, Result, Topology};
use std::net::Ipv4Addr;

/// IKEv2 with a shared key, ESP AES-128-GCM in UDP.
#[derive(Debug)]
pub(super) struct Strongswan;

impl System for Strongswan {
    fn name(&self) -> String {
        "strongswan".to_owned()
    }

    fn title(&self) -> String {
        "strongSwan, userspace ESP AES-128-GCM".to_owned()
    }

    fn wire(&self) -> Wire {
        Wire::EspInUdp
    }

    fn start(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        let secret = random_hex(32)?;
        let path = &topology.paths[0];
        // The responder first: the initiator's first message must find it.
        let b = gateway(&topology.gateway_b, &secret, (path.b, path.a), (NET_B, NET_A))?;
        let a = gateway(&topology.gateway_a, &secret, (path.a, path.b), (NET_A, NET_B))?;
        a.initiate()?;
        Ok(Box::new(Charons([a, b])))
    }
}

fn gateway(
    netns: &Netns,
    secret: &str,
    (local, remote): (Ipv4Addr, Ipv4Addr),
    (local_net, remote_net): (&str, &str),
) -> Result<Daemon> {
    let connection = Connection {
        local: local.to_string(),
        remote: remote.to_string(),
        local_id: local.to_string(),
        remote_id: remote.to_string(),
        auth: Auth::Psk(secret.to_owned()),
        proposals: "aes128-sha256-ecp256".to_owned(),
        esp_proposals: "aes128gcm16".to_owned(),
        local_ts: local_net.to_owned(),
        remote_ts: remote_net.to_owned(),
        connection: String::new(),
        child: String::new(),
        routes: None,
    };
    Daemon::start(netns, &connection)
}

#[derive(Debug)]
struct Charons([Daemon; 2]);

impl Running for Charons {
    fn diagnosis(&mut self) -> String {
        self.0.each_mut().map(|daemon| daemon.process().failure().to_string()).join("\n")
    }
}

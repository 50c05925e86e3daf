//! Braid itself: the shipped `braid` command on both gateways, keys by IKE or by WireGuard's handshakes.

use super::{OwnProbes, Running, System, Wire, random_hex};
use braid_netns::gateway::Gateway;
use braid_netns::topology::{GATEWAY_A, GATEWAY_B, NET_A, NET_B};
use braid_netns::wireguard::{Keys, PORT};
use braid_netns::{Error, Result, Topology};
use std::fmt::Write;
use std::time::Duration;

const START: Duration = Duration::from_secs(20);

/// One or more tunnels, each on a path of its own.
#[derive(Debug)]
pub(super) struct Braid {
    pub(super) protocol: Protocol,
    /// Tunnels in one ECMP group.
    pub(super) tunnels: usize,
}

/// What the tunnels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// ESP in UDP with this suite, in the words of a proposal.
    Esp(&'static str),
    WireGuard,
}

/// What both gateways know.
struct Secrets {
    psk: String,
    keys: [Keys; 2],
}

/// Whose configuration is written.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    A,
    B,
}

impl Braid {
    fn configuration(&self, side: Side, topology: &Topology, secrets: &Secrets) -> String {
        let (name, source, far) = match side {
            Side::A => ("gateway-a", GATEWAY_A, NET_B),
            Side::B => ("gateway-b", GATEWAY_B, NET_A),
        };
        let mut text = format!("[gateway]\nname = \"{name}\"\nsource = \"{source}\"\n");
        for (index, path) in topology.paths.iter().take(self.tunnels).enumerate() {
            let (local, remote, host, role) = match side {
                Side::A => (path.a, path.b, 1, "initiate"),
                Side::B => (path.b, path.a, 2, "respond"),
            };
            let inside = format!("169.254.{}.{host}/30", 10 + index);
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "\n[[tunnel]]\nname = \"t{index}\"\nrole = \"{role}\"\n\
                 local = \"{local}\"\nremote = \"{remote}\"\ninside = \"{inside}\"\n\
                 probe = {{ interval = \"10ms\", multiplier = 10 }}\n\n"
            );
            text += &self.protocol.section(side, secrets);
        }
        let via: Vec<String> = (0..self.tunnels).map(|index| format!("\"t{index}\"")).collect();
        let _ = write!(text, "\n[[route]]\nprefix = \"{far}\"\nvia = [{}]\n", via.join(", "));
        text
    }
}

impl Protocol {
    /// Where a tunnel's keys come from.
    fn section(self, side: Side, secrets: &Secrets) -> String {
        match self {
            Protocol::Esp(suite) => format!(
                "[tunnel.ike]\npsk = \"{}\"\n\
                 proposals = [\"{suite}-prfsha256-ecp256\"]\nesp-proposals = [\"{suite}-ecp256\"]\n",
                secrets.psk
            ),
            Protocol::WireGuard => {
                let [a, b] = &secrets.keys;
                let (own, peer) = if side == Side::A { (a, b) } else { (b, a) };
                format!(
                    "[tunnel.wireguard]\nprivate-key = \"{}\"\npeer-public-key = \"{}\"\nlisten-port = {PORT}\n",
                    own.private, peer.public
                )
            }
        }
    }
}

fn bits(suite: &str) -> u16 {
    if suite.contains("256") { 256 } else { 128 }
}

impl System for Braid {
    fn name(&self) -> String {
        match self.protocol {
            Protocol::Esp(suite) => format!("braid-{}-{}", bits(suite), self.tunnels),
            Protocol::WireGuard => format!("braid-wireguard-{}", self.tunnels),
        }
    }

    fn title(&self) -> String {
        let tunnels =
            if self.tunnels == 1 { "1 tunnel".to_owned() } else { format!("{} tunnels", self.tunnels) };
        match self.protocol {
            Protocol::Esp(suite) => format!("Braid, ESP AES-{}-GCM, {tunnels}", bits(suite)),
            Protocol::WireGuard => format!("Braid, WireGuard, {tunnels}"),
        }
    }

    fn paths(&self) -> usize {
        self.tunnels
    }

    fn far_end(&self) -> Option<&'static str> {
        Some("169.254.10.2")
    }

    fn wire(&self) -> Wire {
        match self.protocol {
            Protocol::Esp(_) => Wire::EspInUdp,
            Protocol::WireGuard => Wire::Wireguard(PORT),
        }
    }

    fn start(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        let keys = [Keys::generate(&topology.gateway_a)?, Keys::generate(&topology.gateway_b)?];
        let secrets = Secrets { psk: random_hex(32)?, keys };
        let start = |side, netns| Gateway::start(netns, &self.configuration(side, topology, &secrets));
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

    fn own_probes(&self) -> Option<OwnProbes> {
        let status = self.a.status().ok()?;
        let tunnel = status.get("tunnels")?.get(0)?;
        Some(OwnProbes {
            p99_ms: tunnel.get("latency_p99_ms")?.as_f64()?,
            sent: tunnel.get("probes_sent")?.as_u64()?,
            answered: tunnel.get("probes_answered")?.as_u64()?,
        })
    }
}

//! Braid itself: the shipped `braid` command on both gateways, keys by IKE.

use super::{OwnProbes, Running, System, Wire, random_hex};
use braid_netns::gateway::Gateway;
use braid_netns::topology::{GATEWAY_A, GATEWAY_B, NET_A, NET_B};
use braid_netns::{Error, Result, Topology};
use std::fmt::Write;
use std::time::Duration;

const START: Duration = Duration::from_secs(20);

/// ESP in UDP over one or more tunnels, each on a path of its own.
#[derive(Debug)]
pub(super) struct Braid {
    /// In the words of a proposal.
    pub(super) suite: &'static str,
    /// Tunnels in one ECMP group.
    pub(super) tunnels: usize,
}

/// Whose configuration is written.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    A,
    B,
}

impl Braid {
    fn configuration(&self, side: Side, topology: &Topology, psk: &str) -> String {
        let (name, source, far) = match side {
            Side::A => ("gateway-a", GATEWAY_A, NET_B),
            Side::B => ("gateway-b", GATEWAY_B, NET_A),
        };
        let suite = self.suite;
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
                "\n[[tunnel]]\nname = \"t{index}\"\ntype = \"ipsec\"\nrole = \"{role}\"\n\
                 local = \"{local}\"\nremote = \"{remote}\"\ninside = \"{inside}\"\n\
                 probe = {{ interval = \"10ms\", multiplier = 10 }}\n\
                 \n[tunnel.ike]\npsk = \"{psk}\"\n\
                 proposals = [\"{suite}-prfsha256-ecp256\"]\nesp-proposals = [\"{suite}-ecp256\"]\n"
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
        let psk = random_hex(32)?;
        let start = |side, netns| Gateway::start(netns, &self.configuration(side, topology, &psk));
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

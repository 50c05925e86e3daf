//! Two Braid gateways with fixed keys on the standard network, as most scenarios want them.

use braid_netns::gateway::Gateway;
use braid_netns::topology::{GATEWAY_A, GATEWAY_B, NET_A, NET_A6, NET_B, NET_B6, OuterPath};
use braid_netns::{Result, Topology, TopologyBuilder};
use std::fmt::Write;
use std::time::Duration;

/// Starting takes a fraction of a second; this is for a machine that does something else.
pub(crate) const START: Duration = Duration::from_secs(20);
/// How often a tunnel probes its peer, milliseconds.
pub(crate) const PROBE_INTERVAL: u64 = 50;
/// Probes unanswered in a row until a tunnel is down.
pub(crate) const PROBE_MULTIPLIER: u64 = 3;

/// So that a flow has the same way in every run.
const SEED: &str = "000102030405060708090a0b0c0d0e0f";

/// Which gateway.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The client's.
    A,
    /// The server's.
    B,
}

/// What the tunnels are to be.
#[derive(Clone)]
pub(crate) struct Setup {
    /// By the configuration's name.
    pub(crate) suite: &'static str,
    /// Bytes of one direction's key material.
    pub(crate) key_bytes: usize,
    /// `udp` or `esp`.
    pub(crate) encapsulation: &'static str,
    /// Number of tunnels; each has an outer path of its own.
    pub(crate) tunnels: usize,
    /// Tunnel whose outer addresses are IPv6.
    pub(crate) outer6: Option<usize>,
    /// Of the core; `None`: its default.
    pub(crate) workers: Option<u32>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            suite: "aes128gcm16",
            key_bytes: 20,
            encapsulation: "udp",
            tunnels: 2,
            outer6: None,
            workers: None,
        }
    }
}

impl Setup {
    /// SPI of the packets that this side sends into a tunnel.
    pub(crate) fn spi(tunnel: usize, from: Side) -> usize {
        0x1001 + 2 * tunnel + usize::from(from == Side::B)
    }

    /// The configuration of one side.
    pub(crate) fn configuration(&self, side: Side, paths: &[OuterPath]) -> String {
        let (name, source, source6, far) = match side {
            Side::A => ("gateway-a", GATEWAY_A, "fd00:1::1", [NET_B, NET_B6]),
            Side::B => ("gateway-b", GATEWAY_B, "fd00:2::1", [NET_A, NET_A6]),
        };
        let workers =
            self.workers.map_or_else(String::new, |workers| format!("[core]\nworkers = {workers}\n\n"));
        let mut text = format!(
            "{workers}[gateway]\nname = \"{name}\"\nsource = [\"{source}\", \"{source6}\"]\nhash-seed = \"{SEED}\"\n"
        );
        for (index, path) in paths.iter().take(self.tunnels).enumerate() {
            self.write_tunnel(&mut text, side, index, path);
        }
        let via: Vec<String> = (0..self.tunnels).map(|index| format!("\"t{index}\"")).collect();
        for prefix in far {
            // Writing to a String does not fail.
            let _ = write!(text, "\n[[route]]\nprefix = \"{prefix}\"\nvia = [{}]\n", via.join(", "));
        }
        text
    }

    /// Adds one tunnel to a side's configuration.
    pub(crate) fn write_tunnel(&self, text: &mut String, side: Side, index: usize, path: &OuterPath) {
        let outer = if self.outer6 == Some(index) {
            [path.a6.to_string(), path.b6.to_string()]
        } else {
            [path.a.to_string(), path.b.to_string()]
        };
        let (own, far, host, other) = match side {
            Side::A => (0, 1, 1, Side::B),
            Side::B => (1, 0, 2, Side::A),
        };
        let (local, remote) = (&outer[own], &outer[far]);
        let (spi_in, spi_out) = (Self::spi(index, other), Self::spi(index, side));
        let (key_in, key_out) = (self.key(index, other), self.key(index, side));
        let net = 10 + index;
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\n[[tunnel]]\nname = \"t{index}\"\ntype = \"ipsec\"\n\
             local = \"{local}\"\nremote = \"{remote}\"\n\
             inside = [\"169.254.{net}.{host}/30\", \"fd00:ffff:{net}::{host}/126\"]\n\
             probe = {{ interval = \"{PROBE_INTERVAL}ms\", multiplier = {PROBE_MULTIPLIER} }}\n\
             \n[tunnel.manual]\nsuite = \"{}\"\nencapsulation = \"{}\"\n\
             spi-in = {spi_in:#x}\nspi-out = {spi_out:#x}\n\
             key-in = \"{key_in}\"\nkey-out = \"{key_out}\"\n",
            self.suite, self.encapsulation
        );
    }

    /// Of what this side sends, in hexadecimal. Known to everybody who reads this: what is tested is
    /// not its secrecy.
    pub(crate) fn key(&self, tunnel: usize, from: Side) -> String {
        let start = 16 * tunnel + 128 * usize::from(from == Side::B);
        (0..self.key_bytes).map(|at| format!("{:02x}", (start + at * 7) % 256)).collect()
    }
}

/// The same configuration with probes that forgive a busy machine.
pub(crate) fn patient(text: String) -> String {
    text.replace(&format!("interval = \"{PROBE_INTERVAL}ms\""), "interval = \"500ms\"")
}

/// The network with both gateways running, every tunnel up.
pub(crate) struct Pair {
    // Before the network: dropped first.
    pub(crate) a: Gateway,
    pub(crate) b: Gateway,
    pub(crate) topology: Topology,
}

impl Pair {
    /// Builds the network for these tunnels and starts both gateways.
    pub(crate) fn start(setup: &Setup) -> Result<Self> {
        Self::start_edited(setup, Topology::builder().paths(setup.tunnels).build()?, |_, text| text)
    }

    /// As [`Pair::start`], with [`patient`] probes, for what is not about failures.
    pub(crate) fn start_patient(setup: &Setup) -> Result<Self> {
        Self::start_patient_on(setup, &Topology::builder())
    }

    /// As [`Pair::start_patient`], on a network of this kind.
    pub(crate) fn start_patient_on(setup: &Setup, builder: &TopologyBuilder) -> Result<Self> {
        Self::start_edited(setup, builder.clone().paths(setup.tunnels).build()?, |_, text| patient(text))
    }

    /// On a network that is there, each side with its configuration edited.
    pub(crate) fn start_edited(
        setup: &Setup,
        topology: Topology,
        edit: impl Fn(Side, String) -> String,
    ) -> Result<Self> {
        let mut pair = Self::launch(setup, topology, edit)?;
        pair.wait_up()?;
        Ok(pair)
    }

    /// As [`Pair::start_edited`], without waiting for anything to be up.
    pub(crate) fn launch(
        setup: &Setup,
        topology: Topology,
        edit: impl Fn(Side, String) -> String,
    ) -> Result<Self> {
        topology.keep_flows_in_order()?;
        let configured = |side| edit(side, setup.configuration(side, &topology.paths));
        let a = Gateway::start(&topology.gateway_a, &configured(Side::A))?;
        let b = Gateway::start(&topology.gateway_b, &configured(Side::B))?;
        Ok(Self { a, b, topology })
    }

    /// Waits until both sides have every tunnel up.
    pub(crate) fn wait_up(&mut self) -> Result<()> {
        self.a.wait_up(START)?;
        self.b.wait_up(START)
    }
}

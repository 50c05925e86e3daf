//! WireGuard in user space: Debian's wireguard-go, and boringtun-cli.

use super::{Running, System, Wire, run_beside, spawn_isolated};
use braid_netns::guard::{TempDir, temp_dir};
use braid_netns::topology::{NET_A, NET_B};
use braid_netns::{Error, Netns, Process, Result, Topology, retry_until};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

const PORT: u16 = 51820;
/// An outer MTU of 1500 less IPv6, UDP and WireGuard: wg-quick's own figure.
const MTU: u32 = 1420;
const DEVICE: &str = "wg0";
const START: Duration = Duration::from_secs(10);

/// One userspace implementation; both obey the same control protocol.
#[derive(Debug)]
pub(super) struct Wireguard {
    name: &'static str,
    title: &'static str,
    argv: &'static [&'static str],
}

impl Wireguard {
    pub(super) fn go() -> Self {
        Self {
            name: "wireguard-go",
            title: "wireguard-go (Debian)",
            argv: &["wireguard-go", "--foreground", DEVICE],
        }
    }

    pub(super) fn boringtun() -> Self {
        Self {
            name: "boringtun",
            title: "boringtun-cli 0.7.1",
            argv: &["boringtun-cli", "--foreground", "--disable-drop-privileges", DEVICE],
        }
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
        let directory = temp_dir("wg")?;
        let (a, b) = (&topology.gateway_a, &topology.gateway_b);
        let (key_a, key_b) = (Key::generate(a)?, Key::generate(b)?);
        let path = &topology.paths[0];
        let daemons = [
            self.gateway(a, &key_a, &Peer { key: &key_b, address: path.b, net: NET_B }, &directory)?,
            self.gateway(b, &key_b, &Peer { key: &key_a, address: path.a, net: NET_A }, &directory)?,
        ];
        Ok(Box::new(Daemons { daemons }))
    }
}

struct Peer<'a> {
    key: &'a Key,
    address: Ipv4Addr,
    net: &'a str,
}

impl Wireguard {
    fn gateway(&self, netns: &Netns, own: &Key, peer: &Peer<'_>, directory: &TempDir) -> Result<Process> {
        let daemon = spawn_isolated(netns, &with_peers_path(self.argv)?, &[])?;
        let configured = directory.path().join(netns.label());
        let text = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
             [Peer]\nPublicKey = {}\nEndpoint = {}:{PORT}\nAllowedIPs = {}\n",
            own.private, peer.key.public, peer.address, peer.net
        );
        fs::write(&configured, text).map_err(Error::io("cannot write a WireGuard configuration"))?;
        let file = configured.to_string_lossy().into_owned();
        retry_until(self.name, START, || run_beside(netns, &daemon, &["wg", "setconf", DEVICE, &file]))?;
        netns.ip(&format!("link set {DEVICE} mtu {MTU} up"))?;
        netns.ip(&format!("route add {} dev {DEVICE}", peer.net))?;
        Ok(daemon)
    }
}

/// boringtun-cli comes from crates.io, into `target/peers`, which need not be in the PATH.
fn with_peers_path(argv: &[&'static str]) -> Result<Vec<&'static str>> {
    const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/bin/boringtun-cli");
    let mut argv = argv.to_vec();
    if argv.first() == Some(&"boringtun-cli") {
        if !Path::new(PEERS).is_file() {
            return Err(Error::Usage(format!("no {PEERS}: netns-tests/run installs it")));
        }
        argv[0] = PEERS;
    }
    Ok(argv)
}

struct Key {
    private: String,
    public: String,
}

impl Key {
    fn generate(netns: &Netns) -> Result<Self> {
        let pair = netns.run(&["sh", "-c", "wg genkey | tee /dev/stderr | wg pubkey"])?;
        Ok(Self { private: pair.stderr.trim().to_owned(), public: pair.stdout.trim().to_owned() })
    }
}

#[derive(Debug)]
struct Daemons {
    daemons: [Process; 2],
}

impl Running for Daemons {
    fn diagnosis(&mut self) -> String {
        self.daemons.each_mut().map(|daemon| daemon.failure().to_string()).join("\n")
    }
}

//! The configuration file: TOML in, a checked [`Config`] or every error with its line out.
//!
//! A [`Config`] cannot be wrong in itself: names resolve, keys have their suite's length, inside
//! networks are disjoint. What it cannot know is whether the machine allows it. Reading is pure
//! but for [`Files`], which opens the file, and the files with keys that tunnels name.

mod bfd;
mod bgp;
mod check;
mod clients;
mod error;
mod files;
mod gateway;
mod ike;
mod metrics;
mod route;
mod section;
mod tunnel;
mod value;
mod wireguard;

#[cfg(test)]
mod clients_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wireguard_tests;

use core::time::Duration;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use braid_api::{Bfd, DfPolicy, Encapsulation, Probe, Selectors, Spi, Suite};
use ipnet::IpNet;
use toml::de::DeTable;
use zeroize::Zeroizing;

pub use bfd::BfdTiming;
pub use bgp::{Bgp, Neighbor, Place};
/// A router on a link, as a route or a neighbor has it.
pub use braid_api::launcher::NextHop as Link;
pub use clients::{Client, Clients};
pub use error::{ConfigError, Fault};
pub use files::Files;
pub(crate) use ike::core_suite;
pub(crate) use value::{dns_name, inside, name, unroutable};

use crate::wireguard::{PublicKey, Secret};
use error::Report;
use section::{Schema, Section};

/// Most tunnels (the core's limit).
pub const MAX_TUNNELS: usize = 65_536;
/// Most `[[route]]` entries, and `protect` prefixes.
pub const MAX_ROUTES: usize = 2_000_000;
/// The UDP port that IKE begins on (RFC 7296 section 2).
pub const IKE_PORT: u16 = 500;
/// The UDP port of IKE with NAT traversal and of UDP-encapsulated ESP (RFC 3948 section 2.1).
pub const NAT_PORT: u16 = 4500;
/// Longest file, in bytes.
pub const MAX_FILE_LEN: u64 = 512 * 1024 * 1024;

/// A whole configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where it was read.
    pub file: PathBuf,
    /// `[gateway]`.
    pub gateway: Gateway,
    /// `[core]`.
    pub core: CoreSettings,
    /// `[[tunnel]]`, in the order of the file.
    pub tunnels: Vec<Tunnel>,
    /// `[[route]]`, in the order of the file.
    pub routes: Vec<Route>,
    /// `[bgp]`.
    pub bgp: Option<Bgp>,
    /// `[clients]`, each of which is among `tunnels` too.
    pub clients: Option<Clients>,
    /// `[metrics]`.
    pub metrics: Option<Metrics>,
}

/// `[gateway]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Its name; default: the host's.
    pub name: String,
    /// Source addresses of the gateway's own traffic into the tunnels, at most one per family.
    pub source: Vec<IpAddr>,
    /// Never leaves in clear, besides every route's prefix.
    pub protect: Vec<IpNet>,
    /// May a packet that came out of one tunnel go into another.
    pub transit: bool,
    /// Seed of the flow hash; default: random, kept in the run directory.
    pub hash_seed: Option<[u8; 16]>,
    /// Both directions of a flow take the same tunnel, if the peer does the same.
    pub symmetric_hash: bool,
    /// What answers a flow that came by a tunnel leaves by the same.
    pub pin_replies: bool,
}

/// `[core]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoreSettings {
    /// Name of the TUN device.
    pub device: String,
    /// Forwarding threads; default: 1 below four CPUs, else one per CPU less one.
    pub workers: Option<u32>,
    /// Whether segmentation offloads may be used.
    pub offload: bool,
    /// The run directory, unless the command line names one.
    pub run_dir: Option<PathBuf>,
}

impl CoreSettings {
    /// Whether a core that runs by the one can go on by the other. `workers` is the default.
    pub fn fits(&self, running: &CoreSettings, workers: u32) -> bool {
        let fixed = |core: &CoreSettings| (core.workers.unwrap_or(workers), core.offload);
        self.device == running.device && fixed(self) == fixed(running)
    }
}

/// `[metrics]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metrics {
    /// Where it is answered.
    pub listen: SocketAddr,
}

/// Who begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// We do.
    Initiate,
    /// The peer does.
    Respond,
}

/// The peer's outer address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Remote {
    /// Fixed.
    Address(IpAddr),
    /// A DNS name.
    Name(String),
}

/// `[[tunnel]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// Unique.
    pub name: String,
    /// Line of its table, from 1.
    pub line: u32,
    /// Outer address of ours; `None`: routing chooses.
    pub local: Option<IpAddr>,
    /// The peer; `None`: any (responder).
    pub remote: Option<Remote>,
    /// Our inside addresses with their networks, at most one per family.
    pub inside: Vec<IpNet>,
    /// The peer's inside addresses, at most one per family.
    pub peer_inside: Vec<IpAddr>,
    /// Outer packets leave by this interface; `None`: routing decides.
    pub uplink: Option<String>,
    /// Who begins; without meaning for fixed keys.
    pub role: Role,
    /// Share within a group, 1 to 65535.
    pub weight: u16,
    /// The highest that is up carries traffic.
    pub priority: i32,
    /// After a failure it takes its traffic back from tunnels of lower priority.
    pub preempt: bool,
    /// In-tunnel probes, if any.
    pub probe: Option<Probe>,
    /// BFD sessions in it, at most one for each family; see [`Tunnel::add_bfd`].
    pub bfd: Vec<Bfd>,
    /// Inner sources accepted; `None`: what is routed there.
    pub allowed: Option<Vec<IpNet>>,
    /// Inner destinations that the peer may send to, besides our inside addresses; none: any.
    pub reach: Vec<IpNet>,
    /// For packets that are too big.
    pub df: DfPolicy,
    /// `local-ts` and `remote-ts`; empty lists for any.
    pub selectors: Selectors,
    /// How long a tunnel that came back is watched before it carries again; doubles with each
    /// failure that follows soon after.
    pub hold_down: Duration,
    /// Where the keys come from.
    pub keys: Keys,
}

/// Where a tunnel's keys come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Keys {
    /// `[tunnel.manual]`.
    Manual(Box<Manual>),
    /// `[tunnel.ike]`.
    Ike(Box<Ike>),
    /// `[tunnel.wireguard]`.
    WireGuard(Box<WireGuard>),
}

/// `[tunnel.wireguard]`: keys by WireGuard's own handshakes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WireGuard {
    /// Ours.
    pub private_key: Secret,
    /// The peer's.
    pub peer_public_key: PublicKey,
    /// Mixed into every handshake.
    pub preshared_key: Option<Secret>,
    /// UDP port of ours.
    pub listen_port: u16,
    /// UDP port of the peer.
    pub remote_port: u16,
    /// A packet is sent after so many seconds without one.
    pub keepalive: Option<u16>,
}

impl Tunnel {
    /// Asks for a BFD session with a peer inside, at this pace. False when there is no inside address of ours of
    /// the peer's family; a session that is asked for already keeps the shorter detection time.
    pub fn add_bfd(&mut self, remote: IpAddr, timing: BfdTiming) -> bool {
        let ours = self.inside.iter().map(IpNet::addr).find(|ours| ours.is_ipv4() == remote.is_ipv4());
        let Some(local) = ours else { return false };
        let wanted = Bfd { local, remote, interval: timing.interval, multiplier: timing.multiplier };
        match self.bfd.iter_mut().find(|other| other.local == local) {
            Some(other) if other.remote != remote => return false,
            Some(other) => {
                if wanted.interval * wanted.multiplier.into() < other.interval * other.multiplier.into() {
                    *other = wanted;
                }
            }
            None => self.bfd.push(wanted),
        }
        true
    }

    /// Its fixed keys, if it has such.
    pub fn manual(&self) -> Option<&Manual> {
        match &self.keys {
            Keys::Manual(manual) => Some(manual),
            Keys::Ike(_) | Keys::WireGuard(_) => None,
        }
    }

    /// Its WireGuard settings, if it has such.
    pub fn wireguard(&self) -> Option<&WireGuard> {
        match &self.keys {
            Keys::Manual(_) | Keys::Ike(_) => None,
            Keys::WireGuard(wireguard) => Some(wireguard),
        }
    }

    /// Its IKE settings, if it has such.
    pub fn ike(&self) -> Option<&Ike> {
        match &self.keys {
            Keys::Manual(_) | Keys::WireGuard(_) => None,
            Keys::Ike(ike) => Some(ike),
        }
    }

    /// How its packets travel as long as nothing was negotiated.
    pub fn encapsulation(&self) -> Encapsulation {
        match &self.keys {
            Keys::Manual(manual) => manual.encapsulation,
            Keys::Ike(ike) => match ike.encapsulation {
                braid_ike::Encapsulation::Udp | braid_ike::Encapsulation::Auto => Encapsulation::Udp,
                braid_ike::Encapsulation::Esp => Encapsulation::Esp,
            },
            Keys::WireGuard(_) => Encapsulation::WireGuard,
        }
    }

    /// UDP ports, ours and the peer's, as long as nothing was negotiated; 0 for raw ESP.
    pub fn ports(&self) -> (u16, u16) {
        match (&self.keys, self.encapsulation()) {
            (Keys::WireGuard(wireguard), _) => (wireguard.listen_port, wireguard.remote_port),
            (_, Encapsulation::Esp) => (0, 0),
            (Keys::Manual(manual), _) => (manual.port, manual.remote_port),
            (Keys::Ike(_), _) => (NAT_PORT, NAT_PORT),
        }
    }

    /// Every suite that its SAs may have, or the one that WireGuard has.
    pub fn suites(&self) -> Vec<Suite> {
        match &self.keys {
            Keys::Manual(manual) => vec![manual.suite],
            Keys::Ike(ike) => ike.suites().collect(),
            Keys::WireGuard(_) => vec![Suite::ChaCha20Poly1305],
        }
    }
}

/// `[tunnel.ike]`: keys by IKEv2.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ike {
    /// How both sides prove who they are.
    pub credential: Credential,
    /// How we call ourselves; `None`: by our outer address.
    pub local_id: Option<braid_ike::wire::Identity>,
    /// How the peer must call itself; `None`: as it likes, if it holds the pre-shared key.
    pub remote_id: Option<braid_ike::wire::Identity>,
    /// For the IKE SA, most wanted first.
    pub proposals: Vec<braid_ike::proposal::IkeProposal>,
    /// For child SAs, most wanted first.
    pub esp_proposals: Vec<braid_ike::proposal::EspProposal>,
    /// Of the IKE SA.
    pub lifetime: Duration,
    /// Of a child SA.
    pub child_lifetime: Duration,
    /// A child is replaced before it has carried this many bytes in one direction.
    pub child_bytes: Option<u64>,
    /// A child is replaced before it has carried this many packets in one direction.
    pub child_packets: Option<u64>,
    /// RFC 8784.
    pub ppk: Option<Ppk>,
    /// After this much silence the peer is asked whether it lives.
    pub dpd_interval: Duration,
    /// After this much silence it is dead.
    pub dpd_timeout: Duration,
    /// Whether ESP goes in UDP.
    pub encapsulation: braid_ike::Encapsulation,
    /// Our anti-replay window in packets.
    pub replay_window: u32,
    /// What the peer is known to have. Nothing depends on it: packets of an SA leave in the order of their
    /// sequence numbers, whatever worker sends them.
    pub peer_replay_window: u32,
    /// RFC 4555.
    pub mobike: bool,
    /// RFC 7383.
    pub fragmentation: bool,
}

/// How both sides of an IKE SA prove who they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Credential {
    /// With a pre-shared key.
    Psk(Key),
    /// With certificates; all in PEM.
    Certificate {
        /// Ours, then its intermediates.
        chain: Vec<u8>,
        /// The private key of the first.
        key: Key,
        /// CAs of the peer's.
        ca: Vec<u8>,
    },
}

/// `[tunnel.manual]`: ESP with fixed keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manual {
    /// Encryption and integrity.
    pub suite: Suite,
    /// Of packets from the peer.
    pub spi_in: Spi,
    /// Of packets to the peer.
    pub spi_out: Spi,
    /// Keying material of packets from the peer.
    pub key_in: Key,
    /// Keying material of packets to the peer.
    pub key_out: Key,
    /// How ESP travels.
    pub encapsulation: Encapsulation,
    /// Anti-replay window in packets.
    pub replay_window: u32,
    /// Extended sequence numbers (RFC 4304).
    pub esn: bool,
    /// UDP port of ours.
    pub port: u16,
    /// UDP port of the peer.
    pub remote_port: u16,
}

/// A post-quantum pre-shared key (RFC 8784).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ppk {
    /// By which both sides know it.
    pub id: String,
    /// The key.
    pub secret: Key,
    /// A peer that does not use it is refused.
    pub required: bool,
}

/// Keying material of one direction: zeroized on drop, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// Takes the material over.
    pub fn new(material: Zeroizing<Vec<u8>>) -> Self {
        Key(material)
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

/// `[[route]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Inner destination.
    pub prefix: IpNet,
    /// Indexes into [`Config::tunnels`], ascending; one ECMP group.
    pub via: Vec<u32>,
    /// Instead of tunnels.
    pub link: Option<Link>,
    /// The lower wins between origins.
    pub distance: u8,
}

impl Config {
    /// Interfaces of routes and neighbors outside the tunnels.
    pub fn links(&self) -> impl Iterator<Item = &str> {
        let routes = self.routes.iter().filter_map(|route| Some(route.link.as_ref()?.interface.as_str()));
        let neighbors = self.bgp.iter().flat_map(|bgp| &bgp.neighbors);
        routes.chain(neighbors.filter_map(|neighbor| neighbor.place.interface()))
    }

    /// The first tunnel with fixed keys, as the error that refuses it without
    /// `--insecure-manual-keys`.
    pub fn manual_keys(&self) -> Option<ConfigError> {
        let tunnel = self.tunnels.iter().find(|tunnel| tunnel.manual().is_some())?;
        Some(ConfigError {
            file: self.file.clone(),
            line: tunnel.line,
            key: "tunnel.manual".to_owned(),
            fault: Fault::ManualKeys,
        })
    }
}

/// Reads and checks a file.
///
/// # Errors
/// Every error found, by line.
pub fn load(file: &Path) -> Result<Config, Vec<ConfigError>> {
    load_from(&mut Files::default(), file)
}

/// Reads and checks a file of those, and all that it names.
///
/// # Errors
/// Every error found, by line.
pub fn load_from(files: &mut Files, file: &Path) -> Result<Config, Vec<ConfigError>> {
    let whole_file = |fault| vec![ConfigError { file: file.to_owned(), line: 0, key: String::new(), fault }];
    let contents = files.read(file, MAX_FILE_LEN).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => whole_file(Fault::TooLong { limit: MAX_FILE_LEN }),
        _ => whole_file(Fault::Unreadable { cause: error.to_string() }),
    })?;
    let text = core::str::from_utf8(&contents.bytes)
        .map_err(|error| whole_file(Fault::Unreadable { cause: error.to_string() }))?;
    let mut report = Report::new(file, text);
    report.files = core::mem::take(files);
    let config = read(text, file, contents.mode, &mut report);
    *files = core::mem::take(&mut report.files);
    config.ok_or_else(|| report.into_errors())
}

/// Checks a file's text. `mode` are its permission bits.
///
/// # Errors
/// Every error found, by line.
pub fn parse(text: &str, file: &Path, mode: u32) -> Result<Config, Vec<ConfigError>> {
    let mut report = Report::new(file, text);
    read(text, file, mode, &mut report).ok_or_else(|| report.into_errors())
}

/// `None` where the report says why.
fn read(text: &str, file: &Path, mode: u32, report: &mut Report) -> Option<Config> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in syntax {
        let at = error.span().map_or(0, |span| span.start);
        // The parser's own words, without the line it stands on, which may hold a key.
        report.error(at..at, "", Fault::Syntax { problem: error.message().to_owned() });
    }
    if !report.is_clean() {
        return None;
    }
    let root = Section::open(&ROOT, document.get_ref(), 0, report);
    let gateway = gateway::read_gateway(root, report);
    let core = gateway::read_core(root, report);
    let mut tunnels = tunnel::read_all(root, file, mode, report);
    let routes = route::read_all(root, &tunnels, report);
    let bgp = bgp::read(root, &gateway, &tunnels, (file, mode), report);
    bgp.iter().for_each(|bgp| bgp::add_bfd(bgp, &mut tunnels));
    let mut clients = clients::read(root, &gateway, &routes, (file, mode), report);
    if let Some((clients, line)) = &mut clients {
        clients::read_list(clients, report);
        tunnels.extend(clients::drafts(clients, *line));
    }
    let metrics = metrics::read(root, report);
    check::cross_check(&tunnels, &routes, report);
    if !report.is_clean() {
        return None;
    }
    let tunnels = tunnels.into_iter().filter_map(|draft| draft.tunnel).collect();
    let routes = routes.into_iter().map(|draft| draft.route).collect();
    Some(Config {
        file: file.to_owned(),
        gateway,
        core,
        tunnels,
        routes,
        bgp,
        clients: clients.map(|(clients, _)| clients),
        metrics,
    })
}

/// Every key with its default, as Markdown.
pub const KEYS: &str = include_str!("../../KEYS.md");

static ROOT: Schema =
    Schema { path: "", keys: &["gateway", "core", "tunnel", "route", "bgp", "clients", "metrics"] };

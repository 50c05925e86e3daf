//! `[clients]`, and the file in which `braid client` keeps them: people on the road, each a WireGuard tunnel.

use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use braid_api::{DfPolicy, Selectors};
use ipnet::IpNet;
use toml::de::DeTable;
use zeroize::Zeroizing;

use super::{
    Gateway, Keys, MAX_TUNNELS, Role, Tunnel, WireGuard,
    error::{Fault, Report},
    route::Draft as RouteDraft,
    section::{Item, Schema, Section},
    tunnel::Draft,
    value, wireguard,
};
use crate::wireguard::{PublicKey, Secret};

pub(super) static CLIENTS: Schema = Schema {
    path: "clients",
    keys: &[
        "network",
        "local",
        "listen-port",
        "endpoint",
        "private-key",
        "private-key-file",
        "reach",
        "dns",
        "keepalive",
        "file",
    ],
};
static ROOT: Schema = Schema { path: "", keys: &["client"] };
static CLIENT: Schema = Schema { path: "client", keys: &["name", "public-key", "preshared-key", "address"] };

/// Behind most NATs a mapping lives half a minute.
const DEFAULT_KEEPALIVE: u16 = 25;
const DEFAULT_FILE: &str = "clients.toml";
/// Prefixes that clients may reach: each is in the configuration of every one.
const MAX_REACH: usize = 256;
const MAX_DNS: usize = 8;

/// `[clients]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clients {
    /// Our inside addresses with the networks that clients have theirs from, at most one per family.
    pub network: Vec<IpNet>,
    /// Our outer address.
    pub local: IpAddr,
    /// UDP port of ours.
    pub listen_port: u16,
    /// What clients call: host and port.
    pub endpoint: String,
    /// Ours.
    pub private_key: Secret,
    /// What clients may reach.
    pub reach: Vec<IpNet>,
    /// For their configuration.
    pub dns: Vec<IpAddr>,
    /// For their configuration, in seconds.
    pub keepalive: Option<u16>,
    /// Where they are kept.
    pub file: PathBuf,
    /// In the order of the file.
    pub list: Vec<Client>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    /// Unique among tunnels.
    pub name: String,
    /// Its public key.
    pub public_key: PublicKey,
    /// Shared with it alone.
    pub preshared_key: Secret,
    /// Its inside addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
}

pub(super) fn read(
    root: Section<'_>,
    gateway: &Gateway,
    routes: &[RouteDraft],
    (file, mode): (&Path, u32),
    report: &mut Report,
) -> Option<(Clients, u32)> {
    let item = root.get("clients")?;
    let section = item.section(&CLIENTS, report)?;
    let mut exposed = false;
    let private_key = wireguard::read_private_key(section, (file, mode), &mut exposed, report);
    let network = read_network(section, report);
    let local = section
        .require("local", "local = \"192.0.2.10\", our outer address", report)
        .and_then(|item| item.parse(value::host_address, report));
    let listen_port = section.get("listen-port").and_then(|item| item.integer(1, 65_535, report));
    let listen_port = listen_port.map_or(wireguard::DEFAULT_PORT, |port| port as u16);
    let endpoint =
        section.get("endpoint").and_then(|item| item.parse(|text| endpoint(text, listen_port), report));
    let reach = section
        .require("reach", "reach = [\"10.1.0.0/16\"], the networks that clients may reach", report)
        .map(|item| read_reach(item, gateway, routes, report));
    let dns = section.get("dns").map(|item| item.one_or_list(MAX_DNS, value::host_address, report));
    let keepalive = match section.get("keepalive") {
        Some(item) => wireguard::read_keepalive(item, report),
        None => Some(DEFAULT_KEEPALIVE),
    };
    let named = section.get("file").and_then(|item| item.string(report)).unwrap_or(DEFAULT_FILE);
    let local = local?;
    let endpoint = endpoint.unwrap_or_else(|| core::net::SocketAddr::new(local, listen_port).to_string());
    let clients = Clients {
        network,
        local,
        listen_port,
        endpoint,
        private_key: private_key?,
        reach: reach?,
        dns: dns.into_iter().flatten().map(|(address, _)| address).collect(),
        keepalive,
        file: file.parent().unwrap_or(Path::new("")).join(named),
        list: Vec::new(),
    };
    Some((clients, report.line_of(section.start())))
}

fn read_network(section: Section<'_>, report: &mut Report) -> Vec<IpNet> {
    let example = "network = \"10.8.0.0/24\", which clients have their addresses from";
    let Some(item) = section.require("network", example, report) else { return Vec::new() };
    let mut ours: Vec<IpNet> = Vec::new();
    for (net, item) in item.one_or_list(2, value::prefix, report) {
        // Ours is the first; without a second there is no client.
        let Some(first) = hosts(&net).next().filter(|_| net.max_prefix_len() - net.prefix_len() >= 2) else {
            item.invalid(
                report,
                format!("{net} has no room for clients"),
                "a /30 (IPv6: /126) or larger is right",
            );
            continue;
        };
        if ours.iter().any(|other| other.addr().is_ipv4() == first.is_ipv4()) {
            item.invalid(report, "two networks of one family", "give at most one IPv4 and one IPv6");
        }
        ours.extend(IpNet::new(first, net.prefix_len()));
    }
    ours
}

fn read_reach(item: Item<'_>, gateway: &Gateway, routes: &[RouteDraft], report: &mut Report) -> Vec<IpNet> {
    let mut reach = Vec::new();
    for (net, item) in item.one_or_list(MAX_REACH, value::prefix, report) {
        let behind = |draft: &&RouteDraft| {
            let prefix = draft.route.prefix;
            draft.route.link.is_none() && (prefix.contains(&net) || net.contains(&prefix))
        };
        if let Some(draft) = routes.iter().find(behind).filter(|_| !gateway.transit) {
            let problem = format!("{net} has {} in it, which is behind a tunnel", draft.route.prefix);
            let remedy = "set transit = true in [gateway], so that packets go from one tunnel into another";
            item.invalid(report, problem, remedy);
        }
        reach.push(net);
    }
    reach
}

/// Without IPv6's anycast address of the routers (RFC 4291 section 2.6.1).
fn hosts(net: &IpNet) -> impl Iterator<Item = IpAddr> + use<> {
    let network = net.network();
    net.hosts().filter(move |host| *host != network)
}

/// A host, with a port or without.
fn endpoint(text: &str, port: u16) -> Result<String, Fault> {
    let is_host = |host: &str| host.parse::<core::net::Ipv4Addr>().is_ok() || value::dns_name(host);
    if text.parse::<core::net::SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(core::net::SocketAddr::new(address, port).to_string());
    }
    match text.rsplit_once(':') {
        Some((host, number)) if is_host(host) && number.parse::<u16>().is_ok_and(|port| port > 0) => {
            Ok(text.to_owned())
        }
        None if is_host(text) => Ok(format!("{text}:{port}")),
        Some(_) | None => Err(Fault::Invalid {
            problem: format!("{text:?} is neither a host nor a host with a port"),
            remedy: "write one like \"vpn.example.com\" or \"vpn.example.com:51820\"".to_owned(),
        }),
    }
}

impl Clients {
    /// The tunnel of a client.
    fn tunnel(&self, client: &Client, line: u32) -> Tunnel {
        Tunnel {
            name: client.name.clone(),
            line,
            local: Some(self.local),
            remote: None,
            inside: self.network.clone(),
            peer_inside: client.addresses.clone(),
            uplink: None,
            role: Role::Respond,
            weight: 1,
            priority: 0,
            preempt: true,
            probe: None,
            bfd: Vec::new(),
            allowed: Some(client.addresses.iter().copied().map(IpNet::from).collect()),
            reach: self.reach.clone(),
            df: DfPolicy::Honour,
            selectors: Selectors::default(),
            hold_down: core::time::Duration::ZERO,
            keys: Keys::WireGuard(Box::new(WireGuard {
                private_key: self.private_key.clone(),
                peer_public_key: client.public_key,
                preshared_key: Some(client.preshared_key.clone()),
                listen_port: self.listen_port,
                remote_port: self.listen_port,
                keepalive: None,
            })),
        }
    }

    /// The lowest address of each network that nobody has.
    pub fn free_addresses(&self) -> Option<Vec<IpAddr>> {
        let taken: HashSet<IpAddr> = self
            .network
            .iter()
            .map(IpNet::addr)
            .chain(self.list.iter().flat_map(|client| client.addresses.iter().copied()))
            .collect();
        self.network.iter().map(|net| hosts(net).find(|host| !taken.contains(host))).collect()
    }

    /// What stands in the file for these clients.
    pub fn file_text(list: &[Client]) -> Zeroizing<String> {
        use core::fmt::Write;
        // Sized first: a growing buffer would leave copies of keys in freed memory.
        let mut text = Zeroizing::new(String::with_capacity(512 * (list.len() + 1)));
        text.push_str("# Kept by `braid client`. Holds preshared keys: nobody else may read it.\n");
        for Client { name, public_key, preshared_key, addresses } in list {
            let addresses: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "\n[[client]]\nname = \"{name}\"\naddress = [{}]\npublic-key = \"{public_key}\"\n\
                 preshared-key = \"{}\"\n",
                addresses.join(", "),
                *preshared_key.to_base64()
            );
        }
        text
    }
}

/// Reads the clients' file; one that is not there has none.
pub(super) fn read_list(clients: &mut Clients, report: &mut Report) {
    let file = clients.file.clone();
    let unreadable = |cause| Fault::Unreadable { cause };
    let contents = match report.files.read(&file, super::MAX_FILE_LEN) {
        Ok(contents) => contents,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return report.error_in(&file, 0, "", unreadable(error.to_string())),
    };
    let text = match core::str::from_utf8(&contents.bytes) {
        Ok(text) => text,
        Err(error) => return report.error_in(&file, 0, "", unreadable(error.to_string())),
    };
    let mode = contents.mode;
    let mut own = Report::new(&file, text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in syntax {
        let at = error.span().map_or(0, |span| span.start);
        own.error(at..at, "", Fault::Syntax { problem: error.message().to_owned() });
    }
    if own.is_clean() {
        let root = Section::open(&ROOT, document.get_ref(), 0, &mut own);
        let mut exposed = false;
        let sections = root.get("client").map(|item| item.sections(&CLIENT, MAX_TUNNELS, &mut own));
        let mut taken: HashSet<IpAddr> = clients.network.iter().map(IpNet::addr).collect();
        for section in sections.into_iter().flatten() {
            let client = read_client(section, &clients.network, mode, &mut exposed, &mut own);
            let Some((client, item)) = client else { continue };
            if client.addresses.iter().any(|address| !taken.insert(*address)) {
                item.invalid(&mut own, "an address that is taken", "give each client addresses of its own");
                // As a tunnel, it would be refused once more.
                continue;
            }
            clients.list.push(client);
        }
    }
    report.extend(own);
}

fn read_client<'t>(
    section: Section<'t>,
    network: &[IpNet],
    mode: u32,
    exposed: &mut bool,
    report: &mut Report,
) -> Option<(Client, Item<'t>)> {
    let name = section.require("name", "name = \"alice\"", report)?.parse(value::name, report);
    let public_key = section.require("public-key", "public-key = \"…\"", report)?;
    let public_key = public_key.parse(wireguard::public_key, report);
    let preshared = section.require("preshared-key", "preshared-key = \"…\"", report)?;
    super::tunnel::refuse_exposed(preshared, mode, exposed, report);
    let preshared_key = preshared.parse(wireguard::secret_key, report);
    let item = section.require("address", "address = \"10.8.0.2\"", report)?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (address, item) in item.one_or_list(2, value::host_address, report) {
        if !network.iter().any(|net| net.contains(&address)) {
            item.invalid(report, format!("{address} is not within [clients] network"), "give one that is");
        } else if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            item.invalid(report, "two addresses of one family", "give at most one IPv4 and one IPv6");
        }
        addresses.push(address);
    }
    let client = Client { name: name?, public_key: public_key?, preshared_key: preshared_key?, addresses };
    Some((client, item))
}

/// Their tunnels.
pub(super) fn drafts(clients: &Clients, line: u32) -> impl Iterator<Item = Draft> + '_ {
    clients.list.iter().map(move |client| Draft {
        name: client.name.clone(),
        line,
        tunnel: Some(clients.tunnel(client, line)),
    })
}

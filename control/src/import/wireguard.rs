//! From a wg-quick configuration to one of Braid's.
//!
//! Pure. wg-quick's allowed IPs say two things, where packets go and whose are accepted: here they become
//! routes, of which `allowed` is the default. Not done: what belongs to the host and not to the tunnel (DNS, scripts,
//! tables), which is named, line by line.

use core::{
    fmt::{self, Write},
    net::IpAddr,
};
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{Imported, Line, MAX_ERRORS, usable_name, write_list};
use crate::{
    config::{MAX_TUNNELS, dns_name, inside, unroutable},
    wireguard::{PublicKey, Secret},
};

/// Most addresses and allowed IPs of one interface or peer.
const MAX_PREFIXES: usize = 65_536;

/// Reads a wg-quick configuration. Tunnels are called `name`, with a number where there are several; `local` is
/// our outer address.
///
/// # Errors
/// Every line that is wrong.
pub fn import(text: &str, name: &str, local: Option<IpAddr>) -> Result<Imported, Vec<Line>> {
    let mut reader = Reader::default();
    for (index, line) in text.lines().enumerate() {
        reader.read(index + 1, line);
    }
    reader.finish();
    if !reader.errors.is_empty() {
        return Err(reader.errors);
    }
    reader.leave_out_unroutable();
    reader.resolve_overlaps();
    let name = usable_name(name, "wg");
    // Sized first: a growing string would leave copies of keys in freed memory.
    let mut toml = Zeroizing::new(String::with_capacity(4096 + 8 * text.len() + 1024 * reader.peers.len()));
    // Writing to a string never fails.
    let _ = reader.write(&mut toml, &name, local);
    Ok(Imported { text: toml, notes: reader.notes })
}

#[derive(Default)]
struct Reader {
    section: Option<Section>,
    interfaces: usize,
    private_key: Option<Secret>,
    listen_port: Option<u16>,
    addresses: Vec<IpNet>,
    peers: Vec<Peer>,
    notes: Vec<Line>,
    errors: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Interface,
    Peer,
    Unknown,
}

#[derive(Default)]
struct Peer {
    line: usize,
    public_key: Option<PublicKey>,
    preshared_key: Option<Secret>,
    allowed: Vec<IpNet>,
    endpoint: Option<(String, u16)>,
    keepalive: Option<u16>,
}

/// A value that means nothing.
type Wrong = String;

impl Reader {
    fn read(&mut self, line: usize, text: &str) {
        let text = text.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            return;
        }
        if text.starts_with('[') {
            return self.open(line, text);
        }
        let Some((key, value)) = text.split_once('=') else {
            return self.error(line, "neither a section nor KEY = VALUE");
        };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        let read = match self.section {
            None => Err("a key before [Interface]".to_owned()),
            Some(Section::Interface) => self.interface_key(line, &key, value),
            Some(Section::Peer) => self.peer_key(&key, value),
            Some(Section::Unknown) => Ok(()), // reported already
        };
        if let Err(problem) = read {
            self.error(line, problem);
        }
    }

    fn open(&mut self, line: usize, text: &str) {
        let section = if text.eq_ignore_ascii_case("[interface]") {
            self.interfaces += 1;
            if self.interfaces > 1 {
                self.error(line, "a second [Interface]: import each in a file of its own");
            }
            Section::Interface
        } else if text.eq_ignore_ascii_case("[peer]") {
            if self.peers.len() == MAX_TUNNELS {
                self.error(line, format!("more than {MAX_TUNNELS} peers"));
            }
            if self.peers.len() < MAX_TUNNELS {
                self.peers.push(Peer { line, ..Peer::default() });
            }
            Section::Peer
        } else {
            self.error(line, "unknown section; [Interface] and [Peer] are known");
            Section::Unknown
        };
        self.section = Some(section);
    }

    fn interface_key(&mut self, line: usize, key: &str, value: &str) -> Result<(), Wrong> {
        let left_out = match key {
            "privatekey" => {
                self.private_key = Some(value.parse().map_err(|_| bad_key("PrivateKey"))?);
                return Ok(());
            }
            "listenport" => {
                self.listen_port = Some(port(value).ok_or("ListenPort: 1 to 65535 is right")?);
                return Ok(());
            }
            "address" => {
                for text in list(value) {
                    self.add_address(line, text)?;
                }
                return Ok(());
            }
            "dns" => "DNS: not carried over; Braid leaves the resolver alone",
            "mtu" => "MTU: not carried over; Braid takes it from the outer path",
            "table" if value.eq_ignore_ascii_case("off") => {
                "Table = off: not carried over; remove the [[route]] tables of prefixes that are not to be routed"
            }
            "table" => "Table: not carried over; Braid's routes never capture its own outer packets",
            "fwmark" => "FwMark: not carried over; Braid marks its outer packets itself",
            "saveconfig" => "SaveConfig: not carried over; Braid never writes its configuration",
            "preup" | "postup" | "predown" | "postdown" => {
                "a script: not carried over; let the host's own start-up do it"
            }
            _ => return Err(unknown(key, "PrivateKey, ListenPort, Address, DNS, MTU, Table, FwMark")),
        };
        self.note(line, left_out);
        Ok(())
    }

    fn add_address(&mut self, line: usize, text: &str) -> Result<(), Wrong> {
        // As wg-quick has it, an address alone is a host's.
        let text = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address).to_string(),
            Err(_) => text.to_owned(),
        };
        let net = inside(&text).map_err(|fault| format!("Address: {fault}"))?;
        if self.addresses.iter().any(|other| other.addr().is_ipv4() == net.addr().is_ipv4()) {
            self.note(
                line,
                format!("Address {net}: not carried over; a tunnel has one address of each family"),
            );
        } else {
            self.addresses.push(net);
        }
        Ok(())
    }

    fn peer_key(&mut self, key: &str, value: &str) -> Result<(), Wrong> {
        let Some(peer) = self.peers.last_mut() else { return Ok(()) };
        match key {
            "publickey" => peer.public_key = Some(value.parse().map_err(|_| bad_key("PublicKey"))?),
            "presharedkey" => peer.preshared_key = Some(value.parse().map_err(|_| bad_key("PresharedKey"))?),
            "allowedips" => {
                for text in list(value) {
                    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
                    let net = net.map_err(|_| format!("AllowedIPs: {text:?} is no prefix"))?;
                    if peer.allowed.len() == MAX_PREFIXES {
                        return Err(format!("AllowedIPs: more than {MAX_PREFIXES}"));
                    }
                    peer.allowed.push(net.trunc());
                }
            }
            "endpoint" => {
                let wrong = || format!("Endpoint: {value:?} is not like \"vpn.example.com:51820\"");
                let (host, number) = value.rsplit_once(':').ok_or_else(wrong)?;
                let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
                let is_host = match bracketed {
                    Some(v6) => v6.parse::<core::net::Ipv6Addr>().is_ok(),
                    None => host.parse::<core::net::Ipv4Addr>().is_ok() || dns_name(host),
                };
                let number = port(number).filter(|_| is_host).ok_or_else(wrong)?;
                peer.endpoint = Some((bracketed.unwrap_or(host).to_owned(), number));
            }
            "persistentkeepalive" => {
                peer.keepalive = match value {
                    "off" | "0" => None,
                    _ => Some(port(value).ok_or("PersistentKeepalive: \"off\" or 1 to 65535 is right")?),
                };
            }
            _ => {
                return Err(unknown(
                    key,
                    "PublicKey, PresharedKey, AllowedIPs, Endpoint, PersistentKeepalive",
                ));
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        if self.private_key.is_none() {
            self.error(1, "no PrivateKey in an [Interface]");
        }
        if self.peers.is_empty() {
            self.error(1, "no [Peer]: without one there is no tunnel");
        }
        let mut seen = BTreeMap::new();
        let mut errors = Vec::new();
        for peer in &self.peers {
            let Some(key) = peer.public_key else {
                errors.push((peer.line, "this [Peer] has no PublicKey".to_owned()));
                continue;
            };
            if let Some(first) = seen.insert(key, peer.line) {
                errors.push((peer.line, format!("this [Peer] has the PublicKey of that in line {first}")));
            }
        }
        errors.into_iter().for_each(|(line, text)| self.error(line, text));
    }

    /// Such as the groups of routing protocols, which go to every neighbor in WireGuard's tunnels alone.
    fn leave_out_unroutable(&mut self) {
        let mut left_out = Vec::new();
        for peer in &mut self.peers {
            peer.allowed.retain(|net| {
                let Some(what) = unroutable(net) else { return true };
                let text = format!(
                    "AllowedIPs {net}: not carried over; {what} does not leave by a tunnel of Braid's"
                );
                left_out.push((peer.line, text));
                false
            });
        }
        left_out.into_iter().for_each(|(line, text)| self.note(line, text));
    }

    /// As in WireGuard, a prefix belongs to the last peer that claims it.
    fn resolve_overlaps(&mut self) {
        let mut taken: BTreeMap<IpNet, usize> = BTreeMap::new();
        let mut lost = Vec::new();
        for peer in self.peers.iter_mut().rev() {
            let mut own = BTreeSet::new();
            peer.allowed.retain(|net| {
                let owner = taken.get(net).copied();
                if let Some(owner) = owner.filter(|_| !own.contains(net)) {
                    lost.push((
                        peer.line,
                        format!("AllowedIPs {net}: the peer of line {owner} has it, being later"),
                    ));
                    return false;
                }
                taken.insert(*net, peer.line);
                own.insert(*net)
            });
        }
        lost.into_iter().rev().for_each(|(line, text)| self.note(line, text));
    }

    fn write(&mut self, out: &mut String, name: &str, local: Option<IpAddr>) -> fmt::Result {
        let mut routes = Vec::new();
        let mut notes = Vec::new();
        for (index, peer) in self.peers.iter().enumerate() {
            let name = if self.peers.len() > 1 { format!("{name}-{}", index + 1) } else { name.to_owned() };
            let (Some(private_key), Some(public_key)) = (&self.private_key, peer.public_key) else {
                continue;
            };
            write!(out, "[[tunnel]]\nname = \"{name}\"\ntype = \"wireguard\"\n")?;
            if let Some(local) = local {
                writeln!(out, "local = \"{local}\"")?;
            }
            match &peer.endpoint {
                Some((host, _)) => writeln!(out, "remote = \"{host}\"")?,
                None => out.push_str("role = \"respond\"\n"),
            }
            if peer.endpoint.is_none() && local.is_none() {
                out.push_str("# local = \"192.0.2.10\"   our outer address, which this peer calls\n");
                let text = "no Endpoint: give the tunnel `local`, the address that this peer calls (or import with \
                            --local)";
                notes.push((peer.line, text.to_owned()));
            }
            let hosts = peer_hosts(&self.addresses, &peer.allowed);
            for host in hosts.iter().filter(|host| !self.addresses.iter().any(|net| net.contains(*host))) {
                let text = format!(
                    "{host} is taken for the peer's own address, which probes watch; if it is a host behind the \
                     peer, have a [[route]] to it instead of peer-inside"
                );
                notes.push((peer.line, text));
            }
            write_list(out, "inside", &self.addresses)?;
            write_list(out, "peer-inside", &hosts)?;
            write!(out, "\n[tunnel.wireguard]\nprivate-key = \"{}\"\n", *private_key.to_base64())?;
            if let Some(port) = self.listen_port {
                writeln!(out, "listen-port = {port}")?;
            }
            writeln!(out, "peer-public-key = \"{public_key}\"")?;
            if let Some((_, port)) = &peer.endpoint {
                writeln!(out, "remote-port = {port}")?;
            }
            if let Some(preshared_key) = &peer.preshared_key {
                writeln!(out, "preshared-key = \"{}\"", *preshared_key.to_base64())?;
            }
            if let Some(seconds) = peer.keepalive {
                writeln!(out, "keepalive = \"{seconds}s\"")?;
            }
            out.push('\n');
            let prefixes =
                peer.allowed.iter().filter(|net| !hosts.iter().any(|host| IpNet::from(*host) == **net));
            routes.extend(prefixes.map(|net| (*net, name.clone())));
        }
        for (prefix, name) in routes {
            write!(out, "[[route]]\nprefix = \"{prefix}\"\nvia = [\"{name}\"]\n\n")?;
        }
        notes.into_iter().for_each(|(line, text)| self.note(line, text));
        Ok(())
    }

    fn note(&mut self, line: usize, text: impl Into<String>) {
        self.notes.push(Line { line, text: text.into() });
    }

    fn error(&mut self, line: usize, text: impl Into<String>) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(Line { line, text: text.into() });
        }
    }
}

/// The peer's inside addresses: of each family that we have one of, the first host among its allowed IPs that our
/// network has. Any other is behind the peer, and a probe of it would say nothing of the tunnel.
fn peer_hosts(ours: &[IpNet], allowed: &[IpNet]) -> Vec<IpAddr> {
    let host = |ours: &IpNet| {
        let network = network_of(ours);
        let is_peer = |net: &&IpNet| {
            net.prefix_len() == net.max_prefix_len()
                && network.contains(&net.addr())
                && net.addr() != ours.addr()
        };
        allowed.iter().find(is_peer).map(IpNet::addr)
    };
    ours.iter().filter_map(host).collect()
}

/// Many give their address without its network: then it is of the usual size.
fn network_of(ours: &IpNet) -> IpNet {
    let usual = if ours.addr().is_ipv4() { 24 } else { 64 };
    if ours.prefix_len() < ours.max_prefix_len() {
        return *ours;
    }
    IpNet::new(ours.addr(), usual).unwrap_or(*ours)
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

fn bad_key(name: &str) -> Wrong {
    format!("{name}: no key of 32 bytes in base64 (44 characters)")
}

fn unknown(key: &str, known: &str) -> Wrong {
    format!("unknown key {key:?}; known here: {known}")
}

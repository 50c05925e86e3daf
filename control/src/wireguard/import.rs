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

use super::{PublicKey, Secret};
use crate::config::{MAX_TUNNELS, dns_name, inside};

/// Most addresses and allowed IPs of one interface or peer.
const MAX_PREFIXES: usize = 65_536;

/// What came of it.
#[derive(Debug)]
pub struct Imported {
    /// A configuration in TOML. It holds keys.
    pub text: Zeroizing<String>,
    /// What could not be carried over, and why.
    pub notes: Vec<Line>,
}

/// Something to be said of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// From 1.
    pub line: usize,
    /// In words; it shows no key.
    pub text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.text)
    }
}

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
    reader.resolve_overlaps();
    let name = usable_name(name);
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
        let mut uncalled = Vec::new();
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
                uncalled.push(peer.line);
            }
            let hosts = peer_hosts(&self.addresses, &peer.allowed);
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
        let text =
            "no Endpoint: give the tunnel `local`, the address that this peer calls (or import with --local)";
        uncalled.into_iter().for_each(|line| self.note(line, text));
        Ok(())
    }

    fn note(&mut self, line: usize, text: impl Into<String>) {
        self.notes.push(Line { line, text: text.into() });
    }

    fn error(&mut self, line: usize, text: impl Into<String>) {
        /// More are not worth reading.
        const MAX_ERRORS: usize = 200;
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(Line { line, text: text.into() });
        }
    }
}

/// The peer's inside addresses: of each family that we have one of, the first host among its allowed IPs.
fn peer_hosts(ours: &[IpNet], allowed: &[IpNet]) -> Vec<IpAddr> {
    let host = |ours: &IpNet| {
        let is_host = |net: &&IpNet| {
            net.prefix_len() == net.max_prefix_len()
                && net.addr().is_ipv4() == ours.addr().is_ipv4()
                && net.addr() != ours.addr()
        };
        allowed.iter().find(is_host).map(IpNet::addr)
    };
    ours.iter().filter_map(host).collect()
}

fn write_list<T: fmt::Display>(out: &mut String, key: &str, items: &[T]) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    let items: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    writeln!(out, "{key} = [{}]", items.join(", "))
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

/// A name for tunnels, from that of a file.
fn usable_name(name: &str) -> String {
    /// Leaves room for a number.
    const MAX_LEN: usize = 48;
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let name: String = name.chars().map(plain).take(MAX_LEN).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() { "wg".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: &str = "\
# office
[Interface]
PrivateKey = oK56DE9Ue9zK76rAc8pBl6opph+1v36lm7cXXsQKrQM=
Address = 10.9.0.2/24, fd00:9::2/64   # ours
ListenPort = 51821
DNS = 10.9.0.1
MTU = 1400
PostUp = iptables -A FORWARD -i %i -j ACCEPT

[peer]
publickey = GtL7fZc/bLnqZldpVofMCD6hDjrK28SsdLxevJ+qtKU=
PresharedKey = /UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=
Endpoint = vpn.example.com:51820
AllowedIPs = 10.9.0.1/32, 10.2.0.0/16, 0.0.0.0/0
AllowedIPs = fd00:9::1/128
PersistentKeepalive = 25
";

    fn imported(text: &str, local: Option<&str>) -> Imported {
        import(text, "wg0", local.map(|local| local.parse().unwrap())).unwrap()
    }

    fn parsed(imported: &Imported) -> toml::Table {
        toml::from_str(&imported.text).unwrap_or_else(|error| panic!("{error}\n{}", *imported.text))
    }

    fn strings(list: &toml::Value) -> Vec<&str> {
        list.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
    }

    #[test]
    fn that_no_routes_were_wanted_is_told() {
        let text = SITE.replace("MTU = 1400", "Table = off");
        let said: Vec<String> = imported(&text, None).notes.iter().map(ToString::to_string).collect();
        assert!(
            said.iter().any(|note| note.starts_with("7: Table = off: not carried over; remove")),
            "{said:?}"
        );
    }

    fn errors(text: &str) -> Vec<String> {
        import(text, "wg0", None).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_site_becomes_a_tunnel_and_its_routes() {
        let imported = imported(SITE, None);
        let notes: Vec<usize> = imported.notes.iter().map(|note| note.line).collect();
        assert_eq!(notes, [6, 7, 8], "{:?}", imported.notes);
        let config = parsed(&imported);
        let tunnel = &config["tunnel"][0];
        for (key, value) in [("name", "wg0"), ("type", "wireguard"), ("remote", "vpn.example.com")] {
            assert_eq!(tunnel[key].as_str(), Some(value));
        }
        assert!(tunnel.get("role").is_none(), "we begin");
        assert_eq!(strings(&tunnel["inside"]), ["10.9.0.2/24", "fd00:9::2/64"]);
        assert_eq!(strings(&tunnel["peer-inside"]), ["10.9.0.1", "fd00:9::1"]);
        let wireguard = tunnel["wireguard"].as_table().unwrap();
        for key in ["private-key", "peer-public-key", "preshared-key"] {
            let value = wireguard[key].as_str().unwrap();
            assert!(SITE.contains(value), "{key}");
        }
        let ports = [&wireguard["listen-port"], &wireguard["remote-port"]].map(toml::Value::as_integer);
        assert_eq!(ports, [Some(51_821), Some(51_820)]);
        assert_eq!(wireguard["keepalive"].as_str(), Some("25s"));
        let routes = config["route"].as_array().unwrap();
        let prefixes: Vec<&str> = routes.iter().map(|route| route["prefix"].as_str().unwrap()).collect();
        assert_eq!(prefixes, ["10.2.0.0/16", "0.0.0.0/0"]);
        assert!(routes.iter().all(|route| strings(&route["via"]) == ["wg0"]));
    }

    #[test]
    fn peers_of_a_hub_share_its_address_and_the_last_one_has_what_two_claim() {
        let key = |byte: u8| PublicKey([byte; 32]).to_string();
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.9.0.1/24\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = 10.9.0.2, 10.3.0.0/16\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = 10.9.0.3/32, 10.3.1.1/16\nEndpoint = [2001:db8::1]:9\n",
            key(1),
            key(2),
            key(3)
        );
        let hub = imported(&text, Some("2001:db8::2"));
        let notes: Vec<String> = hub.notes.iter().map(ToString::to_string).collect();
        assert_eq!(notes, ["4: AllowedIPs 10.3.0.0/16: the peer of line 7 has it, being later"]);
        let config = parsed(&hub);
        let tunnels = config["tunnel"].as_array().unwrap();
        let told =
            |key: &str| tunnels.iter().map(|it| it.get(key).and_then(|it| it.as_str())).collect::<Vec<_>>();
        assert_eq!(told("name"), [Some("wg0-1"), Some("wg0-2")]);
        assert_eq!(told("role"), [Some("respond"), None]);
        assert_eq!(told("remote"), [None, Some("2001:db8::1")]);
        assert_eq!(told("local"), [Some("2001:db8::2"); 2]);
        let hosts: Vec<&str> = tunnels.iter().flat_map(|tunnel| strings(&tunnel["peer-inside"])).collect();
        assert_eq!(hosts, ["10.9.0.2", "10.9.0.3"]);
        let routes = config["route"].as_array().unwrap();
        assert_eq!(routes.len(), 1);
        assert_eq!(strings(&routes[0]["via"]), ["wg0-2"]);
        // Without an address of ours, a peer that calls has nowhere to call.
        let without = imported(&text, None);
        assert!(without.notes.iter().any(|note| note.line == 4 && note.text.contains("--local")));
        assert!(parsed(&without)["tunnel"][0].get("local").is_none());
    }

    #[test]
    fn what_is_imported_is_a_right_configuration() {
        let key = |byte: u8| PublicKey([byte; 32]).to_string();
        let hub = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.9.0.1/24\nListenPort = 51830\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = 10.9.0.2, 10.3.0.0/16\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = 10.9.0.3/32\nEndpoint = 192.0.2.9:9\n",
            key(1),
            key(2),
            key(3)
        );
        for (text, local) in [(SITE, None), (hub.as_str(), Some("192.0.2.1"))] {
            let imported = imported(text, local);
            let config = crate::config::parse(&imported.text, std::path::Path::new("x.toml"), 0o100600);
            let config = config.unwrap_or_else(|errors| panic!("{errors:#?}\n{}", *imported.text));
            assert!(config.tunnels.iter().all(|tunnel| tunnel.wireguard().is_some()));
        }
    }

    #[test]
    fn every_wrong_line_is_named_and_no_key_is_shown() {
        let secret = "oK56DE9Ue9zK76rAc8pBl6opph+1v36lm7cXXsQKrQ";
        let text = format!(
            "Address = 1.2.3.4\n[Interface]\nPrivateKey = {secret}\nAddress = 10.0.0.0/24\nListenPort = 0\n\
             Adress = x\nnonsense\n[Pear]\nPublicKey = x\n[Peer]\nAllowedIPs = 10.0.0.0/33\nEndpoint = a:b\n\
             Endpoint = 1.2.3.4.5:6\nEndpoint = 2001:db8::1:5\nPersistentKeepalive = 70000\nPresharedKey = {secret}\n\
             [Interface]\n"
        );
        let errors = errors(&text);
        let lines: Vec<&str> = errors.iter().map(|error| error.split(':').next().unwrap()).collect();
        let expected =
            ["1", "3", "4", "5", "6", "7", "8", "11", "12", "13", "14", "15", "16", "17", "1", "10"];
        assert_eq!(lines, expected, "{errors:#?}");
        assert!(!errors.concat().contains(secret));
    }

    #[test]
    fn hostile_text_gives_lines_and_no_panic() {
        for text in
            ["", "[", "=", "[Interface]\n=\n", "\0\0", "[Peer]\n[Peer]\n", "[Interface]\nPrivateKey=\u{e4}"]
        {
            assert!(!errors(text).is_empty(), "{text:?}");
        }
        let many = "[Peer]\nnonsense\n".repeat(1000);
        assert_eq!(errors(&many).len(), 200);
        for name in ["", "../../etc/passwd", "\"\n[core]", &"x".repeat(1000)] {
            let imported = import(SITE, name, None).unwrap();
            let config = parsed(&imported);
            let name = config["tunnel"][0]["name"].as_str().unwrap();
            assert!(!name.contains(['/', '"', '\n']) && name.len() <= 64, "{name:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(\\[?(Interface|Peer|Address|AllowedIPs|Endpoint|PublicKey)\\]?|[ =,/:.#\\[\\]0-9a-f\n]|\\PC){0,60}") {
            let _ = import(&text, "wg0", None);
        }
    }
}

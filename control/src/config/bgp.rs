//! `[bgp]` and `[[bgp.neighbor]]`.

use core::time::Duration;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use braid_bgp::{Family, policy::PrefixMatch, rib::decision::Multipath};
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{
    BfdTiming, Gateway, Key, bfd,
    error::{Fault, Report},
    ike::read_file,
    section::{Item, Schema, Section},
    tunnel::{Draft as TunnelDraft, refuse_exposed},
    value,
};

pub(super) static BGP: Schema = Schema {
    path: "bgp",
    keys: &[
        "asn",
        "router-id",
        "announce",
        "distance",
        "multipath",
        "max-paths",
        "always-compare-med",
        "graceful-restart",
        "neighbor",
    ],
};

pub(super) static NEIGHBOR: Schema = Schema {
    path: "bgp.neighbor",
    keys: &[
        "name",
        "tunnel",
        "address",
        "interface",
        "multihop",
        "source",
        "asn",
        "hold-time",
        "passive",
        "bfd",
        "md5",
        "md5-file",
        "ttl-security",
        "families",
        "add-path",
        "export",
        "export-prefixes",
        "import",
        "local-preference",
        "med",
        "prepend",
        "weight",
        "graceful-restart",
        "max-prefix",
        "max-advertised",
    ],
};

static BFD: Schema = Schema { path: "bgp.neighbor.bfd", keys: bfd::KEYS };

/// Of what BGP learns.
const DEFAULT_DISTANCE: u8 = 20;
/// AWS's.
const DEFAULT_HOLD_TIME: Duration = Duration::from_secs(30);
const DEFAULT_RESTART_TIME: Duration = Duration::from_secs(120);
/// RFC 4724 section 3: 12 bits of seconds.
const MAX_RESTART_TIME: Duration = Duration::from_secs(4095);
/// More than the Internet's tables of both families, and no more than memory has room for.
const DEFAULT_MAX_PREFIX: u32 = 2_000_000;
const DEFAULT_LOCAL_PREFERENCE: u32 = 100;
const MAX_NEIGHBORS: usize = 4096;
/// Most rules of a filter, and prefixes announced.
const MAX_RULES: usize = 65_536;
const MAX_PREPEND: i64 = 32;
/// Most members of a group (the core's limit).
const MAX_PATHS: i64 = 256;

/// `[bgp]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bgp {
    /// Our AS number.
    pub asn: u32,
    /// Our identifier.
    pub router_id: Ipv4Addr,
    /// What we announce ourselves.
    pub announce: Vec<IpNet>,
    /// Of what is learned; the lower wins between origins.
    pub distance: u8,
    /// Which paths share traffic.
    pub multipath: Multipath,
    /// By how many paths at most.
    pub max_paths: u16,
    /// Compare MEDs of different neighbor ASes too.
    pub always_compare_med: bool,
    /// `[[bgp.neighbor]]`, in the order of the file.
    pub neighbors: Vec<Neighbor>,
}

/// `[[bgp.neighbor]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Neighbor {
    /// Unique.
    pub name: String,
    /// Line of its table, from 1.
    pub line: u32,
    /// Where it is.
    pub place: Place,
    /// Its AS number.
    pub asn: u32,
    /// Proposed.
    pub hold_time: Duration,
    /// Wait for it to connect.
    pub passive: bool,
    /// BFD with it: in its tunnel, on its link, or over several hops.
    pub bfd: Option<BfdTiming>,
    /// Signs every segment (RFC 2385).
    pub md5: Option<Key>,
    /// Only what was sent on this link (RFC 5082).
    pub ttl_security: bool,
    /// Offered; `None`: those of the tunnel or the address.
    pub families: Option<Vec<Family>>,
    /// Accept several paths a prefix.
    pub add_path: bool,
    /// Neighbors whose routes it is told, by name.
    pub export: Vec<String>,
    /// It is told only these; `None`: whatever is announced or exported.
    pub export_prefixes: Option<Vec<PrefixMatch>>,
    /// Only these are accepted; `None`: all but our own.
    pub import: Option<Vec<PrefixMatch>>,
    /// Of what it sends, if it is external.
    pub local_preference: u32,
    /// Told with routes; `None`: by the tunnel's priority among those with neighbors.
    pub med: Option<u32>,
    /// How many times more than once our AS number stands in what it is told.
    pub prepend: u8,
    /// Its share of the traffic among equal paths; `None`: the tunnel's.
    pub weight: Option<u16>,
    /// For how long it is asked to keep our routes when we are gone (RFC 4724); `None`: not at all.
    pub graceful_restart: Option<Duration>,
    /// How many routes it may send.
    pub max_prefix: u32,
    /// How many routes it takes.
    pub max_advertised: Option<u32>,
}

/// Where a neighbor is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// The inside peer of a tunnel.
    Tunnel(String),
    /// A router outside the tunnels.
    Address {
        /// Its address.
        address: IpAddr,
        /// On this link; `None`: more than one hop away.
        interface: Option<String>,
        /// Our address towards it; `None`: routing chooses.
        source: Option<IpAddr>,
    },
}

impl Place {
    /// The tunnel, if it is in one.
    pub fn tunnel(&self) -> Option<&str> {
        match self {
            Place::Tunnel(name) => Some(name),
            Place::Address { .. } => None,
        }
    }

    /// The link, if it is on one.
    pub fn interface(&self) -> Option<&str> {
        match self {
            Place::Tunnel(_) => None,
            Place::Address { interface, .. } => interface.as_deref(),
        }
    }
}

impl Neighbor {
    /// The tunnel in which it is, if it is in one.
    pub fn tunnel(&self) -> Option<&str> {
        self.place.tunnel()
    }
}

/// What else of the file neighbors refer to.
struct Context<'t> {
    /// The configuration's.
    file: &'t Path,
    tunnels: BTreeMap<&'t str, &'t TunnelDraft>,
    mode: u32,
    /// For all neighbors that do not say otherwise.
    graceful_restart: Option<Duration>,
}

pub(super) fn read(
    root: Section<'_>,
    gateway: &Gateway,
    tunnels: &[TunnelDraft],
    (file, mode): (&Path, u32),
    report: &mut Report,
) -> Option<Bgp> {
    let section = root.get("bgp")?.section(&BGP, report)?;
    let asn = section.require("asn", "asn = 65010", report).and_then(|item| as_number(&item, report));
    let router_id = read_router_id(section, gateway, tunnels, report);
    let announce = match section.get("announce") {
        Some(item) => item.one_or_list(MAX_RULES, value::prefix, report),
        None => Vec::new(),
    };
    let mut announce: Vec<IpNet> = announce.into_iter().map(|(prefix, _)| prefix).collect();
    announce.sort_unstable();
    announce.dedup();
    let restart = section.get("graceful-restart").map(|item| restart_time(&item, report));
    let context = Context {
        file,
        tunnels: tunnels.iter().map(|tunnel| (tunnel.name.as_str(), tunnel)).collect(),
        mode,
        graceful_restart: restart.unwrap_or(Some(DEFAULT_RESTART_TIME)),
    };
    let neighbors = read_neighbors(section, &context, report);
    let integer = |name, max, default, report: &mut Report| {
        section.get(name).and_then(|item| item.integer(1, max, report)).unwrap_or(default)
    };
    Some(Bgp {
        asn: asn?,
        router_id: router_id?,
        announce,
        distance: integer("distance", 255, DEFAULT_DISTANCE.into(), report) as u8,
        multipath: section
            .get("multipath")
            .and_then(|item| item.parse(multipath, report))
            .unwrap_or(Multipath::Equal),
        max_paths: integer("max-paths", MAX_PATHS, 64, report) as u16,
        always_compare_med: section
            .get("always-compare-med")
            .and_then(|item| item.boolean(report))
            .unwrap_or(false),
        neighbors,
    })
}

/// Has the tunnels run the BFD sessions that their neighbors want.
pub(super) fn add_bfd(bgp: &Bgp, tunnels: &mut [TunnelDraft]) {
    for neighbor in &bgp.neighbors {
        let (Some(timing), Some(name)) = (neighbor.bfd, neighbor.tunnel()) else { continue };
        let tunnels = tunnels.iter_mut().filter_map(|draft| draft.tunnel.as_mut());
        for tunnel in tunnels.filter(|tunnel| tunnel.name == name) {
            // As BGP's own session: IPv4 where there are both.
            let peer = tunnel.peer_inside.iter().copied().min_by_key(IpAddr::is_ipv6);
            // Without an address of ours the neighbor was reported already.
            peer.map(|peer| tunnel.add_bfd(peer, timing));
        }
    }
}

/// Left out, it is our first IPv4 address of those that are ours alone.
fn read_router_id(
    section: Section<'_>,
    gateway: &Gateway,
    tunnels: &[TunnelDraft],
    report: &mut Report,
) -> Option<Ipv4Addr> {
    if let Some(item) = section.get("router-id") {
        return item.parse(router_id, report);
    }
    let inside = tunnels.iter().filter_map(|draft| draft.tunnel.as_ref()).flat_map(|tunnel| &tunnel.inside);
    let mut own = gateway.source.iter().copied().chain(inside.map(IpNet::addr));
    let found = own.find_map(|address| match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    });
    if found.is_none() {
        section.require("router-id", "router-id = \"10.1.0.1\"", report);
    }
    found
}

fn router_id(text: &str) -> Result<Ipv4Addr, Fault> {
    match text.parse::<Ipv4Addr>() {
        Ok(id) if !id.is_unspecified() => Ok(id),
        _ => Err(Fault::Invalid {
            problem: format!("{text:?} is no router identifier"),
            remedy: "write an IPv4 address of this gateway, as in \"10.1.0.1\"".to_owned(),
        }),
    }
}

fn multipath(text: &str) -> Result<Multipath, Fault> {
    match text {
        "off" => Ok(Multipath::Off),
        "equal" => Ok(Multipath::Equal),
        "relaxed" => Ok(Multipath::Relaxed),
        _ => Err(Fault::Invalid {
            problem: format!("{text:?} is no way to share traffic"),
            remedy: "\"equal\", \"relaxed\" (AS paths of equal length) or \"off\" is right".to_owned(),
        }),
    }
}

fn as_number(item: &Item<'_>, report: &mut Report) -> Option<u32> {
    let asn = item.integer(1, u32::MAX.into(), report)?;
    // RFC 6793 section 9, RFC 7300.
    if matches!(asn, 23_456 | 65_535 | 0xffff_ffff) {
        item.invalid(report, format!("{asn} is reserved"), "use the AS number that both ends agreed on");
        return None;
    }
    u32::try_from(asn).ok()
}

/// `true`, `false`, or for how long.
fn restart_time(item: &Item<'_>, report: &mut Report) -> Option<Duration> {
    if item.is_string() {
        let time = item.parse(value::duration, report)?;
        if !(Duration::from_secs(1)..=MAX_RESTART_TIME).contains(&time) {
            item.invalid(report, format!("{} s", time.as_secs()), "\"1s\" to \"4095s\" is right");
        }
        return Some(time);
    }
    item.boolean(report)?.then_some(DEFAULT_RESTART_TIME)
}

fn read_neighbors(section: Section<'_>, context: &Context<'_>, report: &mut Report) -> Vec<Neighbor> {
    let Some(item) = section.get("neighbor") else {
        return Vec::new();
    };
    let mut exposed = false;
    let sections = item.sections(&NEIGHBOR, MAX_NEIGHBORS, report);
    let mut neighbors = Vec::new();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut places: BTreeMap<String, u32> = BTreeMap::new();
    for section in sections {
        let Some(neighbor) = read_neighbor(section, context, &mut exposed, report) else { continue };
        let mut once = |seen: &mut BTreeMap<String, u32>, what: String, key: &str, remedy: &str| {
            if let Some(line) = seen.insert(what.clone(), neighbor.line) {
                let problem = format!("{what:?} is taken");
                let fault = Fault::Conflict { problem, line, remedy: remedy.to_owned() };
                report.error_at_line(neighbor.line, key, fault);
            }
        };
        let place = match &neighbor.place {
            Place::Tunnel(name) => format!("tunnel {name}"),
            Place::Address { address, .. } => address.to_string(),
        };
        once(&mut places, place, "bgp.neighbor", "one session a neighbor is enough: remove one");
        once(&mut seen, neighbor.name.clone(), "bgp.neighbor.name", "give each neighbor its own name");
        neighbors.push((neighbor, section));
    }
    let known: Vec<String> = neighbors.iter().map(|(neighbor, _)| neighbor.name.clone()).collect();
    for (neighbor, section) in &neighbors {
        check_export(neighbor, *section, &known, report);
    }
    neighbors.into_iter().map(|(neighbor, _)| neighbor).collect()
}

fn check_export(neighbor: &Neighbor, section: Section<'_>, known: &[String], report: &mut Report) {
    let Some(item) = section.get("export") else { return };
    for name in &neighbor.export {
        if *name == neighbor.name {
            item.invalid(report, "a neighbor knows its own routes", "name other neighbors");
        } else if !known.contains(name) {
            let (name, known) = (name.clone(), known.to_vec().into());
            item.fault(report, Fault::UnknownName { kind: "neighbor", name, known });
        }
    }
}

fn read_neighbor(
    section: Section<'_>,
    context: &Context<'_>,
    exposed: &mut bool,
    report: &mut Report,
) -> Option<Neighbor> {
    let place = read_place(section, context, report);
    let name = section.get("name").and_then(|item| item.parse(value::name, report));
    let asn = section.require("asn", "asn = 64512", report).and_then(|item| as_number(&item, report));
    let md5 = read_md5(section, context, exposed, report);
    let bfd = section.get("bfd").and_then(|item| bfd::read(item, &BFD, report));
    let flag =
        |name, report: &mut Report| section.get(name).and_then(|item| item.boolean(report)).unwrap_or(false);
    let number = |name, min, max, report: &mut Report| {
        section.get(name).and_then(|item| item.integer(min, max, report))
    };
    let (passive, add_path) = (flag("passive", report), flag("add-path", report));
    let ttl_security = flag("ttl-security", report);
    if ttl_security && matches!(place, Some(Place::Address { interface: None, .. })) {
        let item = section.get("ttl-security")?;
        item.invalid(report, "the neighbor is several hops away", "leave it out, or name the interface");
    }
    let local_preference = number("local-preference", 0, u32::MAX.into(), report);
    let med = number("med", 0, u32::MAX.into(), report);
    let restart = section.get("graceful-restart").map(|item| restart_time(&item, report));
    let mut rules = |name| {
        let rules = section.get(name)?.one_or_list(MAX_RULES, prefix_match, report);
        Some(rules.into_iter().map(|(rule, _)| rule).collect())
    };
    let (import, export_prefixes) = (rules("import"), rules("export-prefixes"));
    let export = section.get("export").map(|item| item.one_or_list(MAX_NEIGHBORS, exported, report));
    let most = i64::from(u32::MAX);
    let neighbor = Neighbor {
        name: String::new(),
        line: report.line_of(section.start()),
        place: place?,
        asn: asn?,
        hold_time: section
            .get("hold-time")
            .and_then(|item| item.parse(hold_time, report))
            .unwrap_or(DEFAULT_HOLD_TIME),
        passive,
        bfd,
        md5,
        ttl_security,
        families: section.get("families").map(|item| read_families(&item, report)),
        add_path,
        export: export.into_iter().flatten().map(|(name, _)| name).collect(),
        export_prefixes,
        import,
        local_preference: local_preference.map_or(DEFAULT_LOCAL_PREFERENCE, |value| value as u32),
        med: med.map(|med| med as u32),
        prepend: number("prepend", 0, MAX_PREPEND, report).unwrap_or(0) as u8,
        weight: number("weight", 1, 65_535, report).map(|weight| weight as u16),
        graceful_restart: restart.unwrap_or(context.graceful_restart),
        max_prefix: number("max-prefix", 1, most, report).map_or(DEFAULT_MAX_PREFIX, |most| most as u32),
        max_advertised: number("max-advertised", 1, most, report).map(|most| most as u32),
    };
    let name = name.unwrap_or_else(|| match &neighbor.place {
        Place::Tunnel(tunnel) => tunnel.clone(),
        Place::Address { address, .. } => address.to_string(),
    });
    Some(Neighbor { name, ..neighbor })
}

/// Exactly one of a tunnel, a link and a way over several hops.
fn read_place(section: Section<'_>, context: &Context<'_>, report: &mut Report) -> Option<Place> {
    let interface = section.get("interface");
    let multihop = section.get("multihop").and_then(|item| item.boolean(report)) == Some(true);
    let source = section.get("source");
    let Some(tunnel) = section.get("tunnel") else {
        let address =
            section.require("address", "address = \"10.1.0.254\"; or tunnel = \"aws-a\"", report)?;
        let neighbor = address.parse(value::host_address, report)?;
        let interface = interface.and_then(|item| item.parse(value::interface, report));
        if interface.is_some() == multihop {
            let problem = match multihop {
                true => "it is on a link or several hops away, not both",
                false => "whether it is on a link is not said",
            };
            address.invalid(report, problem, "write interface = \"eth1\", or else multihop = true");
            return None;
        }
        let source = source.and_then(|item| {
            let source = item.parse(value::host_address, report)?;
            if source.is_ipv4() != neighbor.is_ipv4() {
                item.invalid(report, "another family than the neighbor's", "give an address of its family");
            }
            Some(source)
        });
        return Some(Place::Address { address: neighbor, interface, source });
    };
    for (name, item) in [("address", section.get("address")), ("interface", interface), ("source", source)] {
        if let Some(item) = item {
            let problem = format!("{name} and tunnel exclude each other");
            item.invalid(report, problem, "a neighbor in a tunnel is its inside peer: leave this out");
        }
    }
    let name = tunnel.string(report)?;
    let Some(draft) = context.tunnels.get(name) else {
        let known: Vec<String> = context.tunnels.keys().map(|name| (*name).to_owned()).collect();
        let fault = Fault::UnknownName { kind: "tunnel", name: name.to_owned(), known: known.into() };
        tunnel.fault(report, fault);
        return None;
    };
    if draft.tunnel.as_ref().is_some_and(|tunnel| tunnel.inside.is_empty() || tunnel.peer_inside.is_empty()) {
        let remedy = "give the tunnel inside = \"169.254.10.2/30\"";
        tunnel.invalid(report, format!("tunnel {name:?} has no inside addresses"), remedy);
    }
    Some(Place::Tunnel(name.to_owned()))
}

fn read_md5(
    section: Section<'_>,
    context: &Context<'_>,
    exposed: &mut bool,
    report: &mut Report,
) -> Option<Key> {
    let (inline, named) = (section.get("md5"), section.get("md5-file"));
    if let (Some(_), Some(second)) = (inline, named) {
        second.invalid(report, "a second key", "give one of md5 and md5-file");
        return None;
    }
    let (item, key) = match (inline, named) {
        (Some(item), _) => {
            let key = Zeroizing::new(item.string(report)?.as_bytes().to_vec());
            refuse_exposed(item, context.mode, exposed, report);
            (item, key)
        }
        (None, Some(item)) => {
            let mut key = read_file(item, context.file, true, report)?.bytes.clone();
            let end = key.iter().rposition(|octet| !matches!(octet, b'\n' | b'\r')).map_or(0, |at| at + 1);
            key.truncate(end);
            (item, key)
        }
        (None, None) => return None,
    };
    let most = braid_dataplane::io::tcp::MAX_MD5_KEY_LEN;
    if key.is_empty() || key.len() > most {
        item.invalid(report, format!("a key of {} bytes", key.len()), format!("1 to {most} bytes are right"));
        return None;
    }
    Some(Key::new(key))
}

/// RFC 4271 section 4.2: none, or at least three seconds.
fn hold_time(text: &str) -> Result<Duration, Fault> {
    let time = value::duration(text)?;
    let seconds = time.as_secs();
    if time.subsec_nanos() == 0 && (seconds == 0 || (3..=u64::from(u16::MAX)).contains(&seconds)) {
        return Ok(time);
    }
    Err(Fault::Invalid {
        problem: format!("{text:?} is no hold time"),
        remedy: "\"3s\" to \"65535s\" in whole seconds is right, or \"0s\" for none".to_owned(),
    })
}

fn read_families(item: &Item<'_>, report: &mut Report) -> Vec<Family> {
    let mut families = Vec::new();
    for (family, item) in item.one_or_list(2, family, report) {
        if families.contains(&family) {
            item.invalid(report, "a family stands there twice", "name each once");
        }
        families.push(family);
    }
    if item.is_empty_list() {
        item.invalid(report, "an empty list", "[\"ipv4\", \"ipv6\"] is both");
    }
    families
}

fn family(text: &str) -> Result<Family, Fault> {
    match text {
        "ipv4" => Ok(Family::Ipv4),
        "ipv6" => Ok(Family::Ipv6),
        _ => Err(Fault::Invalid {
            problem: format!("{text:?} is no address family"),
            remedy: "\"ipv4\" or \"ipv6\" is right".to_owned(),
        }),
    }
}

fn prefix_match(text: &str) -> Result<PrefixMatch, Fault> {
    text.parse::<PrefixMatch>().map_err(|error| Fault::Invalid {
        problem: error.to_string(),
        remedy: "write one like \"10.0.0.0/8 le 24\"; a prefix alone is itself only".to_owned(),
    })
}

/// `"bgp:NAME"`.
fn exported(text: &str) -> Result<String, Fault> {
    match text.strip_prefix("bgp:") {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(Fault::Invalid {
            problem: format!("{text:?} is nothing that can be exported"),
            remedy: "write \"bgp:\" and a neighbor's name; what begins here stands in [bgp] announce"
                .to_owned(),
        }),
    }
}

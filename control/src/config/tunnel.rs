//! `[[tunnel]]` and `[tunnel.manual]`.

use core::time::Duration;
use std::{net::IpAddr, path::Path};

use braid_api::{DfPolicy, Encapsulation, Probe, Selectors, Spi, Suite};
use ipnet::IpNet;

use super::{
    Key, Keys, MAX_TUNNELS, Manual, Remote, Role, Tunnel, bfd,
    error::{Fault, Report},
    ike,
    section::{Item, Schema, Section},
    value, wireguard,
};

pub(super) static TUNNEL: Schema = Schema {
    path: "tunnel",
    keys: &[
        "name",
        "type",
        "local",
        "remote",
        "inside",
        "peer-inside",
        "uplink",
        "role",
        "weight",
        "priority",
        "preempt",
        "probe",
        "bfd",
        "allowed",
        "df",
        "local-ts",
        "remote-ts",
        "hold-down",
        "manual",
        "ike",
        "wireguard",
    ],
};

static PROBE: Schema = Schema { path: "tunnel.probe", keys: &["interval", "multiplier"] };

static BFD: Schema = Schema { path: "tunnel.bfd", keys: bfd::KEYS };

pub(super) static MANUAL: Schema = Schema {
    path: "tunnel.manual",
    keys: &[
        "suite",
        "spi-in",
        "spi-out",
        "key-in",
        "key-out",
        "encapsulation",
        "replay-window",
        "esn",
        "port",
        "remote-port",
    ],
};

const DEFAULT_PROBE: Probe = Probe { interval: Duration::from_millis(300), multiplier: 3 };
const DEFAULT_HOLD_DOWN: Duration = Duration::from_millis(250);
/// RFC 3948 section 2.1: the port of IKE behind NAT, which UDP-encapsulated ESP shares.
const DEFAULT_PORT: u16 = 4500;
const DEFAULT_REPLAY_WINDOW: u32 = 2048;
/// Most prefixes in one list of a tunnel.
const MAX_PREFIXES: usize = 65_536;

/// A tunnel as read: with errors in it, only its name may be known, so that routes via it do not
/// look wrong as well.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) line: u32,
    pub(super) tunnel: Option<Tunnel>,
}

pub(super) fn read_all(root: Section<'_>, file: &Path, mode: u32, report: &mut Report) -> Vec<Draft> {
    let Some(item) = root.get("tunnel") else {
        return Vec::new();
    };
    let sections = item.sections(&TUNNEL, MAX_TUNNELS, report);
    let mut exposed = false;
    sections
        .into_iter()
        .map(|section| {
            let name = section
                .require("name", "name = \"aws-a\"", report)
                .and_then(|item| item.parse(value::name, report));
            let tunnel = read(section, name.clone().unwrap_or_default(), (file, mode), &mut exposed, report);
            Draft { name: name.unwrap_or_default(), line: report.line_of(section.start()), tunnel }
        })
        .collect()
}

fn read(
    section: Section<'_>,
    name: String,
    (file, mode): (&Path, u32),
    exposed: &mut bool,
    report: &mut Report,
) -> Option<Tunnel> {
    let kind = match section.get("type") {
        Some(item) => item.parse(tunnel_type, report)?,
        None if section.get("wireguard").is_some() => Kind::WireGuard,
        None => Kind::Ipsec,
    };
    let local = section.get("local").and_then(|item| item.parse(value::host_address, report));
    let remote = section.get("remote").and_then(|item| item.parse(remote, report));
    let role = section.get("role").and_then(|item| item.parse(role, report)).unwrap_or(Role::Initiate);
    check_outer(section, local, remote.as_ref(), role, report);
    let inside = read_inside(section, report);
    let peer_inside = read_peer_inside(section, &inside, report);
    let weight = section.get("weight").and_then(|item| item.integer(1, 65_535, report)).unwrap_or(1);
    let priority = section
        .get("priority")
        .and_then(|item| item.integer(i32::MIN.into(), i32::MAX.into(), report))
        .unwrap_or(0);
    let hold_down = section.get("hold-down").and_then(|item| item.parse(hold_down, report));
    let context = ike::Context { local, remote: remote.as_ref(), file, mode };
    let keys = read_keys(section, kind, &context, exposed, report);
    let mut tunnel = Tunnel {
        name,
        line: report.line_of(section.start()),
        local,
        remote,
        probe: read_probe(section, &inside, &peer_inside, report),
        bfd: Vec::new(),
        reach: Vec::new(),
        inside,
        peer_inside,
        uplink: section.get("uplink").and_then(|item| item.parse(value::interface, report)),
        role,
        weight: weight as u16,
        priority: priority as i32,
        preempt: section.get("preempt").and_then(|item| item.boolean(report)).unwrap_or(true),
        allowed: section.get("allowed").map(|item| prefixes(item, report)),
        df: section.get("df").and_then(|item| item.parse(df, report)).unwrap_or(DfPolicy::Honour),
        selectors: Selectors {
            local: section.get("local-ts").map_or_else(Vec::new, |item| selector(item, report)),
            remote: section.get("remote-ts").map_or_else(Vec::new, |item| selector(item, report)),
        },
        hold_down: hold_down.unwrap_or(DEFAULT_HOLD_DOWN),
        keys: keys?,
    };
    if let Some(item) = section.get("bfd")
        && let Some(timing) = bfd::read(item, &BFD, report)
    {
        // Of two families, the one that probes take.
        let peer = tunnel.peer_inside.first().copied();
        if !peer.is_some_and(|peer| tunnel.add_bfd(peer, timing)) {
            let remedy = if tunnel.inside.is_empty() {
                "give inside = \"169.254.10.2/30\", or bfd = false"
            } else {
                "give peer-inside, or bfd = false"
            };
            item.invalid(report, "no session: the peer's inside address is not known", remedy);
        }
    }
    Some(tunnel)
}

fn read_keys(
    section: Section<'_>,
    kind: Kind,
    context: &ike::Context<'_>,
    exposed: &mut bool,
    report: &mut Report,
) -> Option<Keys> {
    let (others, type_of_them): (&[&'static str], _) = match kind {
        Kind::Ipsec => (&["wireguard"], "wireguard"),
        Kind::WireGuard => (&["ike", "manual", "local-ts", "remote-ts"], "ipsec"),
    };
    for item in others.iter().filter_map(|name| section.get(name)) {
        let remedy = format!("leave it out, or use type = \"{type_of_them}\"");
        item.invalid(report, "the tunnel is of another type", remedy);
    }
    if kind == Kind::WireGuard {
        let item = section.require("wireguard", "a [tunnel.wireguard] table below it", report)?;
        let wireguard = item.section(&wireguard::WIREGUARD, report)?;
        let file = (context.file, context.mode);
        return wireguard::read(wireguard, file, exposed, report).map(|read| Keys::WireGuard(Box::new(read)));
    }
    match (section.get("ike"), section.get("manual")) {
        (Some(_), Some(manual)) => {
            manual.invalid(report, "a second way to get keys", "give [tunnel.ike] or [tunnel.manual]");
            None
        }
        (Some(item), None) => {
            let ike = ike::read(item.section(&ike::IKE, report)?, context, exposed, report)?;
            Some(Keys::Ike(Box::new(ike)))
        }
        (None, Some(item)) => {
            let manual = item.section(&MANUAL, report)?;
            if let Some(secret) = manual.get("key-in").or_else(|| manual.get("key-out")) {
                refuse_exposed(secret, context.mode, exposed, report);
            }
            read_manual(manual, report).map(|read| Keys::Manual(Box::new(read)))
        }
        (None, None) if section.get("wireguard").is_some() => None, // reported already
        (None, None) => section.require("ike", "a [tunnel.ike] table below it", report).and(None),
    }
}

fn check_outer(
    section: Section<'_>,
    local: Option<IpAddr>,
    remote: Option<&Remote>,
    role: Role,
    report: &mut Report,
) {
    match (local, remote) {
        (Some(local), Some(Remote::Address(remote))) => {
            let Some(item) = section.get("remote") else { return };
            if local == *remote {
                item.invalid(report, "the same address as local", "give the peer's outer address");
            } else if local.is_ipv4() != remote.is_ipv4() {
                item.invalid(report, "of another family than local", "give both as IPv4 or both as IPv6");
            }
        }
        (None, None) if section.get("local").is_none() && section.get("remote").is_none() => {
            section.require("local", "local = \"192.0.2.10\", needed where remote is left out", report);
        }
        (Some(_), None) if role == Role::Initiate && section.get("remote").is_none() => {
            section.require("remote", "remote = \"203.0.113.1\", or role = \"respond\" for any peer", report);
        }
        _ => {}
    }
}

fn read_inside(section: Section<'_>, report: &mut Report) -> Vec<IpNet> {
    let Some(item) = section.get("inside") else {
        return Vec::new();
    };
    let mut inside: Vec<IpNet> = Vec::new();
    for (net, item) in item.one_or_list(2, value::inside, report) {
        if inside.iter().any(|other| other.addr().is_ipv4() == net.addr().is_ipv4()) {
            item.invalid(report, "two inside addresses of one family", "give at most one IPv4 and one IPv6");
        }
        inside.push(net);
    }
    inside
}

fn read_peer_inside(section: Section<'_>, inside: &[IpNet], report: &mut Report) -> Vec<IpAddr> {
    let mut peers: Vec<IpAddr> = Vec::new();
    if let Some(item) = section.get("peer-inside") {
        for (address, item) in item.one_or_list(2, value::host_address, report) {
            if inside.iter().any(|net| net.addr() == address) {
                item.invalid(report, format!("{address} is our own inside address"), "give the peer's");
            } else if !inside.iter().any(|net| net.addr().is_ipv4() == address.is_ipv4()) {
                let remedy = "give an inside address of that family as well";
                item.invalid(report, format!("{address} has a family that inside has not"), remedy);
            } else if peers.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                item.invalid(report, "two peers of one family", "give at most one IPv4 and one IPv6");
            }
            peers.push(address);
        }
    }
    for net in inside {
        let derived = value::other_host(*net);
        if !peers.iter().any(|peer| peer.is_ipv4() == net.addr().is_ipv4()) {
            peers.extend(derived);
        }
    }
    peers
}

fn read_probe(
    section: Section<'_>,
    inside: &[IpNet],
    peers: &[IpAddr],
    report: &mut Report,
) -> Option<Probe> {
    let Some(item) = section.get("probe") else {
        return (!peers.is_empty()).then_some(DEFAULT_PROBE);
    };
    let probe = if item.is_table() {
        let table = item.section(&PROBE, report)?;
        let interval = table.get("interval").and_then(|item| item.parse(probe_interval, report));
        let multiplier = table.get("multiplier").and_then(|item| item.integer(1, 255, report));
        Probe {
            interval: interval.unwrap_or(DEFAULT_PROBE.interval),
            multiplier: multiplier.map_or(DEFAULT_PROBE.multiplier, |multiplier| multiplier as u32),
        }
    } else {
        if item.string(report)? == "off" {
            return None;
        }
        Probe { interval: item.parse(probe_interval, report)?, ..DEFAULT_PROBE }
    };
    if peers.is_empty() {
        let remedy = if inside.is_empty() {
            "give inside = \"169.254.10.2/30\", or probe = \"off\""
        } else {
            "give peer-inside, or probe = \"off\""
        };
        item.invalid(report, "nothing to probe: the peer's inside address is not known", remedy);
    }
    Some(probe)
}

fn read_manual(section: Section<'_>, report: &mut Report) -> Option<Manual> {
    let suite = section
        .require("suite", "suite = \"aes128gcm16\"", report)
        .and_then(|item| item.parse(suite, report));
    let spi_in = read_spi(section, "spi-in", "spi-in = 0x1001", report);
    let spi_out = read_spi(section, "spi-out", "spi-out = 0x1002", report);
    let key_in = read_key(section, "key-in", suite, report);
    let key_out = read_key(section, "key-out", suite, report);
    let encapsulation = section.get("encapsulation").and_then(|item| item.parse(encapsulation, report));
    let encapsulation = encapsulation.unwrap_or(Encapsulation::Udp);
    let replay_window = section.get("replay-window").and_then(|item| read_window(item, report));
    let mut port = |name| {
        let item = section.get(name)?;
        if encapsulation == Encapsulation::Esp {
            item.invalid(report, "raw ESP has no ports", "leave it out, or use encapsulation = \"udp\"");
        }
        item.integer(1, 65_535, report).map(|port| port as u16)
    };
    Some(Manual {
        port: port("port").unwrap_or(DEFAULT_PORT),
        remote_port: port("remote-port").unwrap_or(DEFAULT_PORT),
        suite: suite?,
        spi_in: spi_in?,
        spi_out: spi_out?,
        key_in: key_in?,
        key_out: key_out?,
        encapsulation,
        replay_window: replay_window.unwrap_or(DEFAULT_REPLAY_WINDOW),
        esn: section.get("esn").and_then(|item| item.boolean(report)).unwrap_or(false),
    })
}

/// Once per file is enough.
pub(super) fn refuse_exposed(secret: Item<'_>, mode: u32, exposed: &mut bool, report: &mut Report) {
    if mode & 0o077 != 0 && !*exposed {
        *exposed = true;
        secret.fault(report, Fault::SecretExposed { mode: mode & 0o7777 });
    }
}

fn read_spi(
    section: Section<'_>,
    name: &'static str,
    example: &'static str,
    report: &mut Report,
) -> Option<Spi> {
    // RFC 4303 section 2.1: 0 to 255 are reserved.
    let number = section.require(name, example, report)?.integer(256, u32::MAX.into(), report)?;
    Some(Spi(number as u32))
}

fn read_key(
    section: Section<'_>,
    name: &'static str,
    suite: Option<Suite>,
    report: &mut Report,
) -> Option<Key> {
    let example = format!("{name} = \"hexadecimal digits\", from a good source of randomness");
    let item = section.require(name, example, report)?;
    let bytes = item.parse(value::hex, report)?;
    let suite = suite?;
    if bytes.len() != suite.key_len() {
        let parts = match suite.integrity_key_len() {
            4 => "salt",
            _ => "integrity key",
        };
        let remedy = format!(
            "{suite} takes {}: a key of {}, then {} of {parts}",
            suite.key_len(),
            suite.encryption_key_len(),
            suite.integrity_key_len(),
        );
        item.invalid(report, format!("{} bytes", bytes.len()), remedy);
        return None;
    }
    Some(Key::new(bytes))
}

pub(super) fn read_window(item: Item<'_>, report: &mut Report) -> Option<u32> {
    let window = item.integer(64, 8192, report)?;
    if window % 64 != 0 {
        let right = (window + 63) / 64 * 64;
        item.invalid(report, format!("{window} is no multiple of 64"), format!("{right} would be right"));
        return None;
    }
    Some(window as u32)
}

fn prefixes(item: Item<'_>, report: &mut Report) -> Vec<IpNet> {
    item.one_or_list(MAX_PREFIXES, value::prefix, report).into_iter().map(|(net, _)| net).collect()
}

/// Selectors of which each family that occurs is "any" are the same as none.
fn selector(item: Item<'_>, report: &mut Report) -> Vec<IpNet> {
    let nets = prefixes(item, report);
    let any = |v4: bool| nets.iter().any(|net| net.addr().is_ipv4() == v4 && net.prefix_len() == 0);
    if any(true) && any(false) { Vec::new() } else { nets }
}

pub(super) fn choice<T: Copy>(text: &str, what: &str, choices: &[(&str, T)]) -> Result<T, Fault> {
    choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| Fault::Invalid {
        problem: format!("{text:?} is no {what}"),
        remedy: format!(
            "{} is right",
            choices.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(" or ")
        ),
    })
}

/// The protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ipsec,
    WireGuard,
}

fn tunnel_type(text: &str) -> Result<Kind, Fault> {
    choice(text, "type", &[("ipsec", Kind::Ipsec), ("wireguard", Kind::WireGuard)])
}

fn remote(text: &str) -> Result<Remote, Fault> {
    if text.parse::<IpAddr>().is_ok() {
        return value::host_address(text).map(Remote::Address);
    }
    if value::dns_name(text) {
        return Ok(Remote::Name(text.to_owned()));
    }
    Err(Fault::Invalid {
        problem: format!("{text:?} is neither an address nor a DNS name"),
        remedy: "write one like \"203.0.113.1\" or \"vpn.example.com\", without a port".to_owned(),
    })
}

fn role(text: &str) -> Result<Role, Fault> {
    choice(text, "role", &[("initiate", Role::Initiate), ("respond", Role::Respond)])
}

fn df(text: &str) -> Result<DfPolicy, Fault> {
    choice(text, "policy", &[("honour", DfPolicy::Honour), ("clear", DfPolicy::Clear)])
}

fn encapsulation(text: &str) -> Result<Encapsulation, Fault> {
    if text == "auto" {
        return Err(Fault::Invalid {
            problem: "fixed keys cannot find out about NAT".to_owned(),
            remedy: "\"udp\" or \"esp\" is right".to_owned(),
        });
    }
    choice(text, "encapsulation", &[("udp", Encapsulation::Udp), ("esp", Encapsulation::Esp)])
}

fn suite(text: &str) -> Result<Suite, Fault> {
    text.parse().map_err(|_| Fault::UnknownName {
        kind: "suite",
        name: text.to_owned(),
        known: Suite::ALL.iter().map(|suite| suite.name().to_owned()).collect(),
    })
}

fn probe_interval(text: &str) -> Result<Duration, Fault> {
    within(text, Duration::from_millis(5), Duration::from_secs(60))
}

fn hold_down(text: &str) -> Result<Duration, Fault> {
    within(text, Duration::ZERO, Duration::from_secs(600))
}

pub(super) fn within(text: &str, min: Duration, max: Duration) -> Result<Duration, Fault> {
    let value = value::duration(text)?;
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(Fault::Invalid {
        problem: format!("{text:?} is out of range"),
        remedy: format!("{min:?} to {max:?} is right"),
    })
}

//! From AWS's description of Site-to-Site VPN connections to a configuration of Braid's.
//!
//! Pure. Read are the JSON of DescribeVpnConnections and the XML within it, CustomerGatewayConfiguration, which is also
//! to be had alone. The XML tells of a tunnel's algorithms the weakest only, and nothing of IKE's version; the JSON
//! has both. Not done: the texts that AWS makes for the devices of others, whose form is not fixed.

mod read;
mod suite;
#[cfg(test)]
mod tests;

use core::{
    fmt::{self, Write},
    net::{IpAddr, Ipv4Addr},
};
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{Line, usable_name, write_list};

/// Something to be said of a file, by its place among those that were given.
pub type Said = (usize, Line);

/// What came of it.
#[derive(Debug)]
pub struct Imported {
    /// A configuration in TOML. It holds keys.
    pub text: Zeroizing<String>,
    /// What has to be added or decided.
    pub notes: Vec<Said>,
}

/// Reads the texts of files, each with one connection or more. `local` is our outer address, where routing is not to
/// choose it.
///
/// # Errors
/// Every line that is wrong.
pub fn import(texts: &[&str], local: Option<IpAddr>) -> Result<Imported, Vec<Said>> {
    let (mut connections, mut notes, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for (file, text) in texts.iter().enumerate() {
        match read::read(text) {
            Ok((read, left_out)) => {
                connections.extend(read.into_iter().map(|connection| Connection { file, ..connection }));
                notes.extend(left_out.into_iter().map(|line| (file, line)));
            }
            Err(wrong) => errors.extend(wrong.into_iter().map(|line| (file, line))),
        }
    }
    errors.extend(conflicts(&connections));
    if !errors.is_empty() {
        return Err(errors);
    }
    let tunnels: usize = connections.iter().map(|connection| connection.tunnels.len()).sum();
    let len: usize = texts.iter().map(|text| text.len()).sum();
    // Sized first: a growing string would leave copies of keys in freed memory.
    let mut out = Zeroizing::new(String::with_capacity(4096 + 4096 * tunnels + len));
    let mut writer = Writer { notes, local };
    // Writing to a string never fails.
    let _ = writer.write(&mut out, &connections);
    Ok(Imported { text: out, notes: writer.notes })
}

/// A VPN connection.
struct Connection {
    file: usize,
    line: usize,
    /// Empty where it is not told.
    id: String,
    /// Its options are known.
    is_described: bool,
    /// No BGP.
    is_static: bool,
    /// How many routes of ours it takes.
    takes: Option<u32>,
    /// Networks on our side, where they are not all.
    ours: Vec<IpNet>,
    /// Networks on AWS's side, where they are not all.
    theirs: Vec<IpNet>,
    /// Where AWS keeps its pre-shared keys.
    key_arn: Option<String>,
    /// By their outside addresses.
    tunnels: Vec<Tunnel>,
}

struct Tunnel {
    line: usize,
    /// AWS's outer address.
    outside: IpAddr,
    /// Ours, as AWS sees it.
    customer: Option<IpAddr>,
    /// Ours.
    inside: IpNet,
    peer_inside: Option<IpAddr>,
    psk: Option<Zeroizing<String>>,
    bgp: Option<Bgp>,
    proposal: String,
    esp_proposal: String,
    /// In seconds.
    lifetime: u64,
    /// In seconds.
    child_lifetime: u64,
    /// Interval and timeout, in seconds.
    dpd: (u64, u64),
    clears_df: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Bgp {
    ours: u32,
    theirs: u32,
    /// In seconds.
    hold_time: u64,
}

impl Tunnel {
    fn is_same_as(&self, other: &Self) -> bool {
        (self.outside, self.inside, &self.psk, self.bgp)
            == (other.outside, other.inside, &other.psk, other.bgp)
    }
}

/// What cannot be in one configuration.
fn conflicts(connections: &[Connection]) -> Vec<Said> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    let mut asn = None;
    for connection in connections {
        let mut error = |line, text| errors.push((connection.file, Line { line, text }));
        if !connection.id.is_empty() && !seen.insert(&connection.id) {
            error(connection.line, format!("{} was there already: name it once", connection.id));
        }
        for (line, ours) in connection.tunnels.iter().filter_map(|it| Some((it.line, it.bgp?.ours))) {
            let first = *asn.get_or_insert(ours);
            if first != ours {
                let text = format!(
                    "our AS number is {ours} here and {first} before, and a gateway has one: import them for \
                     gateways of their own"
                );
                error(line, text);
            }
        }
    }
    errors
}

struct Writer {
    notes: Vec<Said>,
    local: Option<IpAddr>,
}

impl Writer {
    fn write(&mut self, out: &mut String, connections: &[Connection]) -> fmt::Result {
        let mut names: Vec<Vec<String>> = Vec::new();
        let mut bases = BTreeSet::new();
        for connection in connections {
            let id = if connections.len() > 1 { connection.id.as_str() } else { "" };
            let mut base = usable_name(id, "aws");
            if !bases.insert(base.clone()) {
                base = format!("{base}-{}", names.len() + 1);
            }
            let own: Vec<String> =
                (0..connection.tunnels.len()).map(|index| format!("{base}-{}", letter(index))).collect();
            if !connection.is_described {
                let text = "this XML tells of the algorithms the weakest only: the strongest that AWS has by default \
                            are offered; where they were restricted, import the JSON of `aws ec2 \
                            describe-vpn-connections`";
                self.note(connection, connection.line, text);
            }
            for (tunnel, name) in connection.tunnels.iter().zip(&own) {
                self.write_tunnel(out, connection, tunnel, name)?;
            }
            names.push(own);
        }
        self.write_routes(out, connections, &names)?;
        self.write_bgp(out, connections, &names)
    }

    fn write_tunnel(
        &mut self,
        out: &mut String,
        connection: &Connection,
        tunnel: &Tunnel,
        name: &str,
    ) -> fmt::Result {
        if !connection.id.is_empty() {
            writeln!(out, "# {}", usable_name(&connection.id, "aws"))?;
        }
        write!(out, "[[tunnel]]\nname = \"{name}\"\ntype = \"ipsec\"\n")?;
        if let Some(local) = self.local {
            writeln!(out, "local = \"{local}\"")?;
        }
        write!(out, "remote = \"{}\"\ninside = \"{}\"\n", tunnel.outside, tunnel.inside)?;
        let of_two = tunnel.inside.max_prefix_len() - tunnel.inside.prefix_len() <= 2;
        if let Some(peer) = tunnel.peer_inside.filter(|peer| !(of_two && tunnel.inside.contains(peer))) {
            writeln!(out, "peer-inside = \"{peer}\"")?;
        }
        if tunnel.clears_df {
            out.push_str("df = \"clear\"\n");
        }
        if connection.is_static && !(connection.ours.is_empty() && connection.theirs.is_empty()) {
            // The inside addresses are not among them.
            out.push_str("probe = \"off\"\n");
            write_list(out, "local-ts", &connection.ours)?;
            write_list(out, "remote-ts", &connection.theirs)?;
        }
        out.push_str("\n[tunnel.ike]\n");
        match &tunnel.psk {
            Some(psk) => {
                out.push_str("psk = ");
                push_quoted(out, psk);
            }
            None => {
                write!(out, "psk-file = \"{name}.psk\"   # to be written; or certificate, key and ca")?;
                let place =
                    connection.key_arn.as_ref().map_or(String::new(), |arn| format!(" (it is in {arn})"));
                let text = format!(
                    "no pre-shared key is in it{place}: write it to {name}.psk beside the configuration, and chmod \
                     600 it; or give certificate, key and ca"
                );
                self.note(connection, tunnel.line, text);
            }
        }
        out.push('\n');
        if let Some(customer) = tunnel.customer.filter(|customer| self.local != Some(*customer)) {
            writeln!(out, "local-id = \"{customer}\"")?;
        }
        let Tunnel { proposal, esp_proposal, lifetime, child_lifetime, dpd: (interval, timeout), .. } =
            tunnel;
        write!(out, "proposals = [\"{proposal}\"]\nesp-proposals = [\"{esp_proposal}\"]\n")?;
        if *lifetime != 28_800 {
            writeln!(out, "lifetime = \"{lifetime}s\"")?;
        }
        if *child_lifetime != 3600 {
            writeln!(out, "child-lifetime = \"{child_lifetime}s\"")?;
        }
        if (*interval, *timeout) != (10, 30) && *timeout >= 3 {
            let interval = (*interval).clamp(1, timeout / 3);
            write!(out, "dpd-interval = \"{interval}s\"\ndpd-timeout = \"{timeout}s\"\n")?;
        }
        out.push('\n');
        Ok(())
    }

    /// Of connections without BGP.
    fn write_routes(
        &mut self,
        out: &mut String,
        connections: &[Connection],
        names: &[Vec<String>],
    ) -> fmt::Result {
        let mut routes: BTreeMap<IpNet, Vec<&str>> = BTreeMap::new();
        for (connection, names) in connections.iter().zip(names).filter(|(it, _)| it.is_static) {
            for prefix in &connection.theirs {
                routes.entry(*prefix).or_default().extend(names.iter().map(String::as_str));
            }
            if connection.theirs.is_empty() {
                out.push_str(
                    "# [[route]]\n# prefix = \"10.2.0.0/16\"   # to be written: what is behind AWS\n# ",
                );
                write_list(out, "via", names)?;
                out.push('\n');
                let text = format!(
                    "static routes: give what is behind AWS as a [[route]] via {}; until then nothing goes there",
                    names.join(" and ")
                );
                self.note(connection, connection.line, text);
            }
        }
        for (prefix, names) in &routes {
            write!(out, "[[route]]\nprefix = \"{prefix}\"\n")?;
            write_list(out, "via", names)?;
            out.push('\n');
        }
        Ok(())
    }

    fn write_bgp(
        &mut self,
        out: &mut String,
        connections: &[Connection],
        names: &[Vec<String>],
    ) -> fmt::Result {
        let speaking: Vec<(&Connection, &Tunnel, &str, Bgp)> = connections
            .iter()
            .zip(names)
            .flat_map(|(connection, names)| {
                let tunnels = connection.tunnels.iter().zip(names);
                tunnels.filter_map(move |(it, name)| Some((connection, it, name.as_str(), it.bgp?)))
            })
            .collect();
        let Some((first, _, _, bgp)) = speaking.first() else { return Ok(()) };
        write!(out, "[bgp]\nasn = {}\n", bgp.ours)?;
        let tunnels = || speaking.iter().map(|(_, tunnel, _, _)| *tunnel);
        let ours = self.local.into_iter().chain(tunnels().filter_map(|tunnel| tunnel.customer));
        let mut addresses = ours.chain(tunnels().map(|tunnel| tunnel.inside.addr()));
        let v4 = addresses.find_map(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        let router_id = v4.unwrap_or_else(|| {
            let text = "router-id is made up of an inside address: give an IPv4 address of this gateway, if it has one";
            self.note(first, first.line, text);
            made_up(tunnels().map(|tunnel| tunnel.inside.addr()))
        });
        writeln!(out, "router-id = \"{router_id}\"")?;
        let mut announced: Vec<IpNet> =
            speaking.iter().flat_map(|(connection, ..)| &connection.ours).copied().collect();
        announced.sort_unstable();
        announced.dedup();
        if announced.is_empty() {
            out.push_str("# announce = [\"10.1.0.0/16\"]   # to be written: our networks\n");
            let text = "give our networks as `announce` in [bgp]: until then AWS sends nothing here";
            self.note(first, first.line, text);
        }
        write_list(out, "announce", &announced)?;
        for (connection, _, name, bgp) in &speaking {
            write!(out, "\n[[bgp.neighbor]]\ntunnel = \"{name}\"\nasn = {}\n", bgp.theirs)?;
            if bgp.hold_time != 30 {
                writeln!(out, "hold-time = \"{}s\"", bgp.hold_time)?;
            }
            if let Some(most) = connection.takes {
                writeln!(out, "max-advertised = {most}")?;
            }
        }
        Ok(())
    }

    fn note(&mut self, connection: &Connection, line: usize, text: impl Into<String>) {
        self.notes.push((connection.file, Line { line, text: text.into() }));
    }
}

fn letter(index: usize) -> String {
    match u8::try_from(index) {
        Ok(index @ 0..26) => char::from(b'a' + index).to_string(),
        Ok(_) | Err(_) => (index + 1).to_string(),
    }
}

/// RFC 6286 section 2.1: any number but zero, if no other router of the AS has it.
fn made_up(addresses: impl Iterator<Item = IpAddr>) -> Ipv4Addr {
    let ends = addresses.map(|address| match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d)
        }
    });
    ends.filter(|id| !id.is_unspecified()).min().unwrap_or(Ipv4Addr::new(0, 0, 0, 1))
}

/// As a string of TOML.
fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            control if control.is_control() => {
                // Writing to a string never fails.
                let _ = write!(out, "\\u{:04X}", u32::from(control));
            }
            plain => out.push(plain),
        }
    }
    out.push('"');
}

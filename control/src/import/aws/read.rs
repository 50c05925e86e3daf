//! From AWS's XML and JSON to what they say.

use core::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::{
    Bgp, Connection, Tunnel,
    suite::{Encryption, Integrity, Taken},
};
use crate::{
    config::inside,
    import::{Line, MAX_ERRORS, xml::Element},
};

/// AWS takes so many routes of a customer gateway.
const VIRTUAL_PRIVATE_GATEWAY_TAKES: u32 = 100;
const TRANSIT_GATEWAY_TAKES: u32 = 1000;

/// The connections of a file, and those that are left out.
pub(super) fn read(text: &str) -> Result<(Vec<Connection>, Vec<Line>), Vec<Line>> {
    let text = text.trim_start_matches('\u{feff}');
    let of_text = |xml: &str| read_xml(xml, None).map(|connection| (vec![connection], Vec::new()));
    match text.trim_start().as_bytes().first() {
        Some(b'<') => of_text(text),
        // As `--query` gives it without `--output text`.
        Some(b'"') => of_text(&json::<Hidden>(text)?.0),
        Some(b'[') => read_described(json(text)?),
        Some(b'{') => {
            let answer: Answer = json(text)?;
            let one = match (answer.vpn_connections, answer.vpn_connection) {
                (Some(many), _) => return read_described(many),
                (None, Some(one)) => one,
                (None, None) => json(text)?,
            };
            read_described(vec![one])
        }
        _ => Err(vec![whole_file(
            "neither the JSON of `aws ec2 describe-vpn-connections` nor the XML that is its \
             CustomerGatewayConfiguration; what the console offers for download is another",
        )]),
    }
}

fn whole_file(text: impl Into<String>) -> Line {
    Line { line: 0, text: text.into() }
}

/// What is printed of an error never has a value in it, which may be a key.
fn json<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, Vec<Line>> {
    use serde_json::error::Category;
    serde_json::from_str(text).map_err(|error| {
        let text = match error.classify() {
            Category::Eof => "the JSON ends too early: is the file whole?",
            Category::Data => "other JSON than that of `aws ec2 describe-vpn-connections`",
            Category::Syntax | Category::Io => "no well-formed JSON",
        };
        vec![Line { line: error.line(), text: text.to_owned() }]
    })
}

/// A text that may hold a key.
struct Hidden(Zeroizing<String>);

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Hidden(Zeroizing::new(text)))
    }
}

/// Of DescribeVpnConnections, or of CreateVpnConnection and its like.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    vpn_connections: Option<Vec<Described>>,
    vpn_connection: Option<Described>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    vpn_connection_id: String,
    state: Option<String>,
    customer_gateway_configuration: Option<Hidden>,
    vpn_gateway_id: Option<String>,
    transit_gateway_id: Option<String>,
    core_network_arn: Option<String>,
    pre_shared_key_arn: Option<String>,
    #[serde(default)]
    options: Options,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Options {
    static_routes_only: bool,
    local_ipv4_network_cidr: Option<String>,
    local_ipv6_network_cidr: Option<String>,
    remote_ipv4_network_cidr: Option<String>,
    remote_ipv6_network_cidr: Option<String>,
    tunnel_options: Vec<TunnelOptions>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct TunnelOptions {
    outside_ip_address: Option<String>,
    pre_shared_key: Option<Hidden>,
    phase1_lifetime_seconds: Option<u64>,
    phase2_lifetime_seconds: Option<u64>,
    #[serde(alias = "DPDTimeoutSeconds")]
    dpd_timeout_seconds: Option<u64>,
    phase1_encryption_algorithms: Vec<Word>,
    phase2_encryption_algorithms: Vec<Word>,
    phase1_integrity_algorithms: Vec<Word>,
    phase2_integrity_algorithms: Vec<Word>,
    #[serde(rename = "Phase1DHGroupNumbers")]
    phase1_groups: Vec<Number>,
    #[serde(rename = "Phase2DHGroupNumbers")]
    phase2_groups: Vec<Number>,
    #[serde(alias = "IKEVersions")]
    ike_versions: Vec<Word>,
}

#[derive(Deserialize)]
struct Word {
    #[serde(rename = "Value")]
    value: String,
}

#[derive(Deserialize)]
struct Number {
    #[serde(rename = "Value")]
    value: u16,
}

fn read_described(all: Vec<Described>) -> Result<(Vec<Connection>, Vec<Line>), Vec<Line>> {
    let (mut connections, mut left_out, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for described in &all {
        let Some(configuration) = &described.customer_gateway_configuration else {
            let state = described.state.as_deref().unwrap_or("unknown");
            let text = format!(
                "{}: left out: AWS gives no CustomerGatewayConfiguration of it (its state is {state})",
                described.vpn_connection_id
            );
            left_out.push(whole_file(text));
            continue;
        };
        match read_xml(&configuration.0, Some(described)) {
            Ok(connection) => connections.push(connection),
            Err(wrong) => errors.extend(wrong),
        }
    }
    errors.truncate(MAX_ERRORS);
    match (connections.is_empty(), errors.is_empty()) {
        (_, false) => Err(errors),
        (true, true) if left_out.is_empty() => Err(vec![whole_file("no VPN connection is in it")]),
        (true, true) => Err(left_out),
        (false, true) => Ok((connections, left_out)),
    }
}

fn read_xml(text: &str, described: Option<&Described>) -> Result<Connection, Vec<Line>> {
    let mut reader = Reader { within: described.map(|it| it.vpn_connection_id.as_str()), errors: Vec::new() };
    let read = match Element::parse(text) {
        Ok(root) => reader.connection(&root, described),
        Err(error) => {
            reader.error(error.line, error.text);
            None
        }
    };
    read.filter(|_| reader.errors.is_empty()).ok_or(reader.errors)
}

struct Reader<'t> {
    /// The connection of the JSON that the XML is within, whose lines are no lines of the file.
    within: Option<&'t str>,
    errors: Vec<Line>,
}

impl Reader<'_> {
    fn line(&self, line: usize) -> usize {
        if self.within.is_some() { 0 } else { line }
    }

    fn error(&mut self, line: usize, text: impl Into<String>) {
        let text = text.into();
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(match self.within {
                Some(id) => {
                    whole_file(format!("{id}: line {line} of its CustomerGatewayConfiguration: {text}"))
                }
                None => Line { line, text },
            });
        }
    }

    fn connection(&mut self, root: &Element, described: Option<&Described>) -> Option<Connection> {
        if root.name != "vpn_connection" {
            let text =
                format!("<{}> where a CustomerGatewayConfiguration begins with <vpn_connection>", root.name);
            self.error(root.line, text);
            return None;
        }
        let attributes = root.find("vpn_connection_attributes").map_or("", Element::text);
        let is_static =
            attributes.contains("NoBGP") || described.is_some_and(|it| it.options.static_routes_only);
        let mut tunnels: Vec<Tunnel> = Vec::new();
        for element in root.children("ipsec_tunnel") {
            let Some(tunnel) = self.tunnel(element, is_static, described) else { continue };
            match tunnels.iter().find(|other| other.outside == tunnel.outside) {
                // Some that make such files say everything twice.
                Some(other) if other.is_same_as(&tunnel) => {}
                Some(_) => {
                    let text = format!("another tunnel to {} than above: remove one", tunnel.outside);
                    self.error(element.line, text);
                }
                None => tunnels.push(tunnel),
            }
        }
        if tunnels.is_empty() && self.errors.is_empty() {
            self.error(root.line, "it has no <ipsec_tunnel>: save the whole of it");
        }
        // They stand in another order each time.
        tunnels.sort_by_key(|tunnel| tunnel.outside);
        let (ours, theirs) = match described.map(|it| &it.options) {
            Some(options) => (
                self.networks([&options.local_ipv4_network_cidr, &options.local_ipv6_network_cidr]),
                self.networks([&options.remote_ipv4_network_cidr, &options.remote_ipv6_network_cidr]),
            ),
            None => (Vec::new(), Vec::new()),
        };
        let id = described.map(|it| it.vpn_connection_id.clone()).or_else(|| root.id.clone());
        Some(Connection {
            file: 0,
            line: self.line(root.line),
            id: id.unwrap_or_default(),
            is_described: described.is_some(),
            is_static,
            takes: takes(root, described),
            ours,
            theirs,
            key_arn: described.and_then(|it| it.pre_shared_key_arn.clone()),
            tunnels,
        })
    }

    fn tunnel(
        &mut self,
        element: &Element,
        is_static: bool,
        described: Option<&Described>,
    ) -> Option<Tunnel> {
        const OUTSIDE: &str = "vpn_gateway/tunnel_outside_address/ip_address";
        let outside = self.require(element, OUTSIDE).and_then(|found| self.address(found));
        let customer = element.find("customer_gateway/tunnel_outside_address/ip_address");
        let customer = customer.filter(|found| !found.text().is_empty()).and_then(|it| self.address(it));
        let inside = self.inside(element);
        let peer = element.find("vpn_gateway/tunnel_inside_address/ip_address");
        let peer_inside = peer.and_then(|found| self.address(found));
        let bgp = if is_static { None } else { Some(self.bgp(element)) };
        let find = |path| element.find(path).map_or("", Element::text);
        let mut ike = Taken::shown(
            find("ike/encryption_protocol"),
            find("ike/authentication_protocol"),
            find("ike/perfect_forward_secrecy"),
        );
        let mut esp = Taken::shown(
            find("ipsec/encryption_protocol"),
            find("ipsec/authentication_protocol"),
            find("ipsec/perfect_forward_secrecy"),
        );
        let lifetime = self.number(element, "ike/lifetime", 28_800);
        let child_lifetime = self.number(element, "ipsec/lifetime", 3600);
        let interval = self.number(element, "ipsec/dead_peer_detection/interval", 10);
        let retries = self.number(element, "ipsec/dead_peer_detection/retries", 3);
        let (mut lifetime, mut child_lifetime) = (lifetime?, child_lifetime?);
        let (interval, mut dpd_timeout) = (interval?, interval?.saturating_mul(retries?));
        let mut psk = element.find("ike/pre_shared_key").and_then(|found| usable_key(found.text()));
        let outside = outside?;
        let is_this = |options: &&TunnelOptions| {
            options.outside_ip_address.as_ref().is_some_and(|it| it.parse() == Ok(outside))
        };
        if let Some(options) = described.and_then(|it| it.options.tunnel_options.iter().find(is_this)) {
            let versions = &options.ike_versions;
            if !versions.is_empty() && !versions.iter().any(|version| version.value == "ikev2") {
                let text = format!(
                    "the tunnel to {outside} takes IKEv1 alone, which Braid does not speak; allow ikev2 with `aws ec2 \
                     modify-vpn-tunnel-options`"
                );
                self.error(element.line, text);
            }
            ike = taken(
                &options.phase1_encryption_algorithms,
                &options.phase1_integrity_algorithms,
                &options.phase1_groups,
            );
            esp = taken(
                &options.phase2_encryption_algorithms,
                &options.phase2_integrity_algorithms,
                &options.phase2_groups,
            );
            lifetime = options.phase1_lifetime_seconds.unwrap_or(lifetime);
            child_lifetime = options.phase2_lifetime_seconds.unwrap_or(child_lifetime);
            dpd_timeout = options.dpd_timeout_seconds.unwrap_or(dpd_timeout);
            let given = options.pre_shared_key.as_ref();
            psk = psk.or_else(|| given.and_then(|key| usable_key(&key.0)));
        }
        let (Some(proposal), Some(esp_proposal)) = (ike.ike_proposal(), esp.esp_proposal()) else {
            let text = format!(
                "the tunnel to {outside} takes no Diffie-Hellman group that Braid has; allow 20 with `aws ec2 \
                 modify-vpn-tunnel-options`"
            );
            self.error(element.line, text);
            return None;
        };
        Some(Tunnel {
            line: self.line(element.line),
            outside,
            customer,
            inside: inside?,
            peer_inside,
            psk,
            bgp: match bgp {
                Some(bgp) => Some(bgp?),
                None => None,
            },
            proposal,
            esp_proposal,
            lifetime,
            child_lifetime,
            dpd: (interval, dpd_timeout),
            clears_df: find("ipsec/clear_df_bit") != "false",
        })
    }

    fn bgp(&mut self, element: &Element) -> Option<Bgp> {
        let mut asn = |path| {
            let found = self.require(element, path)?;
            let number = found.text().parse::<u32>().ok().filter(|number| *number > 0);
            if number.is_none() {
                self.error(found.line, "<asn> is no AS number, which are 1 to 4294967295");
            }
            number
        };
        let (ours, theirs) = (asn("customer_gateway/bgp/asn"), asn("vpn_gateway/bgp/asn"));
        let hold_time = self.number(element, "customer_gateway/bgp/hold_time", 30);
        Some(Bgp { ours: ours?, theirs: theirs?, hold_time: hold_time? })
    }

    /// Our inside address with its network.
    fn inside(&mut self, element: &Element) -> Option<IpNet> {
        const INSIDE: &str = "customer_gateway/tunnel_inside_address";
        let found = self.require(element, INSIDE)?;
        let address = self.require(found, "ip_address").and_then(|it| self.address(it))?;
        let len = self.require(found, "network_cidr")?;
        match inside(&format!("{address}/{}", len.text())) {
            Ok(net) => Some(net),
            Err(fault) => {
                self.error(len.line, format!("<tunnel_inside_address>: {fault}"));
                None
            }
        }
    }

    fn require<'e>(&mut self, element: &'e Element, path: &str) -> Option<&'e Element> {
        let found = element.find(path).filter(|found| found.has_children() || !found.text().is_empty());
        if found.is_none() {
            let text = format!("<{}> has no {path}: save the whole configuration again", element.name);
            self.error(element.line, text);
        }
        found
    }

    fn address(&mut self, found: &Element) -> Option<IpAddr> {
        let address = found.text().parse();
        if address.is_err() {
            self.error(found.line, format!("<{}> is no address", found.name));
        }
        address.ok()
    }

    fn number(&mut self, element: &Element, path: &str, default: u64) -> Option<u64> {
        /// A week, as for lifetimes of ours.
        const MAX: u64 = 7 * 86_400;
        let Some(found) = element.find(path).filter(|found| !found.text().is_empty()) else {
            return Some(default);
        };
        let number = found.text().parse().ok().filter(|number| *number <= MAX);
        if number.is_none() {
            self.error(found.line, format!("<{}> is no number of at most {MAX}", found.name));
        }
        number
    }

    /// Those that are not all addresses.
    fn networks(&mut self, texts: [&Option<String>; 2]) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for text in texts.into_iter().flatten().filter(|text| !text.is_empty()) {
            match text.parse::<IpNet>() {
                Ok(net) if net.prefix_len() > 0 => networks.push(net.trunc()),
                Ok(_) => {}
                Err(_) => self.error(1, format!("{text:?} among its options is no network")),
            }
        }
        networks
    }
}

/// A key that is masked has stars.
fn usable_key(text: &str) -> Option<Zeroizing<String>> {
    let text = text.trim();
    (!text.is_empty() && !text.contains('*')).then(|| Zeroizing::new(text.to_owned()))
}

fn taken(encryption: &[Word], integrity: &[Word], groups: &[Number]) -> Taken {
    Taken {
        encryption: encryption.iter().filter_map(|word| Encryption::parse(&word.value)).collect(),
        integrity: integrity.iter().filter_map(|word| Integrity::parse(&word.value)).collect(),
        groups: groups.iter().map(|number| number.value).collect(),
    }
}

/// How many routes the other end takes, where it is known what it is.
fn takes(root: &Element, described: Option<&Described>) -> Option<u32> {
    let given = |id: &Option<String>| id.as_ref().is_some_and(|id| !id.is_empty());
    if let Some(described) = described {
        return match given(&described.vpn_gateway_id) {
            true => Some(VIRTUAL_PRIVATE_GATEWAY_TAKES),
            false if given(&described.transit_gateway_id) || given(&described.core_network_arn) => {
                Some(TRANSIT_GATEWAY_TAKES)
            }
            false => None,
        };
    }
    // It stands there for a virtual private gateway alone.
    Some(match root.find("vpn_gateway_id")?.text() {
        "" => TRANSIT_GATEWAY_TAKES,
        _ => VIRTUAL_PRIVATE_GATEWAY_TAKES,
    })
}

//! What becomes of AWS's descriptions. The samples have the shape of real ones, with addresses of documentation.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::config::{self, Config};

const KEYS: [&str; 2] = ["Zk3.w9_QbT7uYh2LxN5cVp8RsD1fGm4J", "aB_6.eH8jK2lMnO4pQrS6tUvWxYz0135"];

/// The second tunnel stands first, as it may.
fn bgp() -> String {
    xml(true, [tunnel(2, KEYS[1], true), tunnel(1, KEYS[0], true)])
}

fn static_routes() -> String {
    xml(false, [tunnel(1, KEYS[0], false), tunnel(2, KEYS[1], false)])
}

fn xml(bgp: bool, tunnels: [String; 2]) -> String {
    let attributes = if bgp {
        ""
    } else {
        "\n  <vpn_connection_attributes>NoBGPVPNConnection</vpn_connection_attributes>"
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<vpn_connection id=\"vpn-0123456789abcdef0\">\n  \
         <customer_gateway_id>cgw-0123456789abcdef0</customer_gateway_id>\n  \
         <vpn_gateway_id>vgw-0123456789abcdef0</vpn_gateway_id>\n  \
         <vpn_connection_type>ipsec.1</vpn_connection_type>{attributes}\n{}</vpn_connection>\n",
        tunnels.concat()
    )
}

fn tunnel(number: u8, key: &str, bgp: bool) -> String {
    let end = |name: &str, outside: &str, last: u8, asn: u32| {
        let bgp = match bgp {
            true => format!(
                "\n      <bgp>\n        <asn>{asn}</asn>\n        <hold_time>30</hold_time>\n      </bgp>"
            ),
            false => String::new(),
        };
        format!(
            "    <{name}>\n      <tunnel_outside_address>\n        <ip_address>{outside}</ip_address>\n      \
             </tunnel_outside_address>\n      <tunnel_inside_address>\n        \
             <ip_address>169.254.{number}0.{last}</ip_address>\n        \
             <network_mask>255.255.255.252</network_mask>\n        <network_cidr>30</network_cidr>\n      \
             </tunnel_inside_address>{bgp}\n    </{name}>\n"
        )
    };
    format!(
        "  <ipsec_tunnel>\n{}{}    <ike>\n      <authentication_protocol>sha1</authentication_protocol>\n      \
         <encryption_protocol>aes-128-cbc</encryption_protocol>\n      <lifetime>28800</lifetime>\n      \
         <perfect_forward_secrecy>group2</perfect_forward_secrecy>\n      <mode>main</mode>\n      \
         <pre_shared_key>{key}</pre_shared_key>\n    </ike>\n    <ipsec>\n      <protocol>esp</protocol>\n      \
         <authentication_protocol>hmac-sha1-96</authentication_protocol>\n      \
         <encryption_protocol>aes-128-cbc</encryption_protocol>\n      <lifetime>3600</lifetime>\n      \
         <perfect_forward_secrecy>group2</perfect_forward_secrecy>\n      <mode>tunnel</mode>\n      \
         <clear_df_bit>true</clear_df_bit>\n      \
         <fragmentation_before_encryption>true</fragmentation_before_encryption>\n      \
         <tcp_mss_adjustment>1379</tcp_mss_adjustment>\n      <dead_peer_detection>\n        \
         <interval>10</interval>\n        <retries>3</retries>\n      </dead_peer_detection>\n    </ipsec>\n  \
         </ipsec_tunnel>\n",
        end("customer_gateway", "192.0.2.10", 2, 65_010),
        end("vpn_gateway", &format!("203.0.113.{number}"), 1, 64_512),
    )
}

/// As `aws ec2 describe-vpn-connections` prints it.
fn described(xml: &str, options: Value) -> Value {
    json!({ "VpnConnections": [{
        "CustomerGatewayConfiguration": xml,
        "CustomerGatewayId": "cgw-0123456789abcdef0",
        "Category": "VPN",
        "State": "available",
        "Type": "ipsec.1",
        "VpnConnectionId": "vpn-0123456789abcdef0",
        "TransitGatewayId": "tgw-0123456789abcdef0",
        "GatewayAssociationState": "associated",
        "Options": options,
        "Routes": [],
        "Tags": [{ "Key": "Name", "Value": "branch" }],
        "VgwTelemetry": [{ "AcceptedRouteCount": 0, "OutsideIpAddress": "203.0.113.1", "Status": "DOWN" }]
    }] })
}

fn options(tunnels: Value) -> Value {
    json!({
        "EnableAcceleration": false, "StaticRoutesOnly": false, "LocalIpv4NetworkCidr": "0.0.0.0/0",
        "RemoteIpv4NetworkCidr": "0.0.0.0/0", "TunnelInsideIpVersion": "ipv4", "TunnelOptions": tunnels
    })
}

fn imported(text: &str) -> Imported {
    import(&[text], None).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

/// As `braid check` has it.
fn checked(imported: &Imported) -> Config {
    let config = config::parse(&imported.text, Path::new("braid.toml"), 0o100600);
    config.unwrap_or_else(|errors| panic!("{errors:#?}\n{}", *imported.text))
}

fn notes(imported: &Imported) -> Vec<String> {
    imported.notes.iter().map(|(file, line)| format!("{file}:{line}")).collect()
}

fn errors(text: &str) -> Vec<String> {
    let errors = import(&[text], None).unwrap_err();
    assert!(errors.iter().all(|(file, _)| *file == 0));
    errors.iter().map(|(_, line)| line.to_string()).collect()
}

#[test]
fn a_connection_with_bgp_becomes_tunnels_and_neighbors() {
    let imported = imported(&bgp());
    let expected = "\
# vpn-0123456789abcdef0
[[tunnel]]
name = \"aws-a\"
type = \"ipsec\"
remote = \"203.0.113.1\"
inside = \"169.254.10.2/30\"
df = \"clear\"

[tunnel.ike]
psk = \"Zk3.w9_QbT7uYh2LxN5cVp8RsD1fGm4J\"
local-id = \"192.0.2.10\"
proposals = [\"aes256gcm16-prfsha384-ecp384\"]
esp-proposals = [\"aes256gcm16-ecp384\"]

# vpn-0123456789abcdef0
[[tunnel]]
name = \"aws-b\"
type = \"ipsec\"
remote = \"203.0.113.2\"
inside = \"169.254.20.2/30\"
df = \"clear\"

[tunnel.ike]
psk = \"aB_6.eH8jK2lMnO4pQrS6tUvWxYz0135\"
local-id = \"192.0.2.10\"
proposals = [\"aes256gcm16-prfsha384-ecp384\"]
esp-proposals = [\"aes256gcm16-ecp384\"]

[bgp]
asn = 65010
router-id = \"192.0.2.10\"
# announce = [\"10.1.0.0/16\"]   # to be written: our networks

[[bgp.neighbor]]
tunnel = \"aws-a\"
asn = 64512
max-advertised = 100

[[bgp.neighbor]]
tunnel = \"aws-b\"
asn = 64512
max-advertised = 100
";
    assert_eq!(*imported.text, expected);
    let config = checked(&imported);
    let peers: Vec<String> = config.tunnels.iter().map(|tunnel| tunnel.peer_inside[0].to_string()).collect();
    assert_eq!(peers, ["169.254.10.1", "169.254.20.1"]);
    assert_eq!(config.bgp.unwrap().neighbors.len(), 2);
    let notes = notes(&imported);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with("0:2: this XML tells of the algorithms the weakest only"), "{notes:?}");
    assert!(notes[1].starts_with("0:2: give our networks as `announce`"), "{notes:?}");
}

#[test]
fn a_connection_with_static_routes_wants_them_written() {
    let imported = imported(&static_routes());
    assert!(imported.text.contains(
        "\n# [[route]]\n# prefix = \"10.2.0.0/16\"   # to be written: what is behind AWS\n# via = [\"aws-a\", \"aws-b\"]\n"
    ));
    assert!(
        notes(&imported)[1].contains("static routes: give what is behind AWS as a [[route]] via aws-a and")
    );
    let config = checked(&imported);
    assert!(config.bgp.is_none() && config.routes.is_empty());
    // With its comment made a key, it is right as well.
    let text = imported.text.replace("\n# [[", "\n[[").replace("\n# prefix", "\nprefix");
    let text = Zeroizing::new(text.replace("\n# via", "\nvia"));
    assert_eq!(checked(&Imported { text, notes: Vec::new() }).routes[0].via, [0, 1]);
}

#[test]
fn our_outer_address_is_written_if_it_is_given() {
    for (local, id) in [("192.0.2.10", false), ("10.0.0.5", true)] {
        let imported = import(&[&bgp()], Some(local.parse().unwrap())).unwrap();
        assert!(imported.text.contains(&format!("\nlocal = \"{local}\"\n")));
        // Behind a NAT, AWS knows us by another.
        assert_eq!(imported.text.contains("\nlocal-id = \"192.0.2.10\"\n"), id);
        checked(&imported);
    }
}

#[test]
fn the_json_tells_what_a_tunnel_takes() {
    let first = json!({
        "OutsideIpAddress": "203.0.113.1", "TunnelInsideCidr": "169.254.10.0/30", "PreSharedKey": KEYS[0],
        "Phase1LifetimeSeconds": 14400, "Phase2LifetimeSeconds": 1800, "RekeyMarginTimeSeconds": 270,
        "RekeyFuzzPercentage": 100, "ReplayWindowSize": 1024, "DpdTimeoutSeconds": 60, "DpdTimeoutAction": "restart",
        "Phase1EncryptionAlgorithms": [{ "Value": "AES128" }, { "Value": "AES256" }],
        "Phase2EncryptionAlgorithms": [{ "Value": "AES128-GCM-16" }, { "Value": "AES256" }],
        "Phase1IntegrityAlgorithms": [{ "Value": "SHA2-256" }, { "Value": "SHA2-512" }],
        "Phase2IntegrityAlgorithms": [{ "Value": "SHA2-256" }],
        "Phase1DHGroupNumbers": [{ "Value": 14 }, { "Value": 19 }],
        "Phase2DHGroupNumbers": [{ "Value": 14 }],
        "IkeVersions": [{ "Value": "ikev1" }, { "Value": "ikev2" }], "StartupAction": "add",
        "LogOptions": { "CloudWatchLogOptions": { "LogEnabled": false } }
    });
    // The other has the defaults, of which AWS says nothing.
    let second = json!({ "OutsideIpAddress": "203.0.113.2", "TunnelInsideCidr": "169.254.20.0/30" });
    let document = described(&bgp(), options(json!([second, first])));
    let whole = imported(&document.to_string());
    for line in [
        "proposals = [\"aes256-sha512-ecp256\"]\nesp-proposals = [\"aes128gcm16-modp2048\"]\nlifetime = \"14400s\"\n\
         child-lifetime = \"1800s\"\ndpd-interval = \"10s\"\ndpd-timeout = \"60s\"\n",
        "proposals = [\"aes256gcm16-prfsha384-ecp384\"]\nesp-proposals = [\"aes256gcm16-ecp384\"]\n\n",
        "max-advertised = 1000\n",
    ] {
        assert!(whole.text.contains(line), "{line}\n{}", *whole.text);
    }
    checked(&whole);
    let told = notes(&whole);
    assert!(told.len() == 1 && told[0].starts_with("0: give our networks"), "{told:?}");
    assert_eq!(*imported(&format!("\u{feff}\n {document}")).text, *whole.text);
    // As `--query` gives them, as CreateVpnConnection does, and with the XML alone.
    let one = &document["VpnConnections"][0];
    for part in [document["VpnConnections"].clone(), json!({ "VpnConnection": one }), one.clone()] {
        assert_eq!(*imported(&part.to_string()).text, *whole.text);
    }
    let alone = imported(&one["CustomerGatewayConfiguration"].to_string());
    assert_eq!(*alone.text, *imported(&bgp()).text);
}

#[test]
fn networks_that_a_static_connection_is_for_are_routes_and_selectors() {
    let mut options = options(json!([]));
    options["StaticRoutesOnly"] = true.into();
    options["LocalIpv4NetworkCidr"] = "10.1.0.0/16".into();
    options["RemoteIpv4NetworkCidr"] = "10.2.0.0/16".into();
    let imported = imported(&described(&static_routes(), options).to_string());
    let config = checked(&imported);
    assert_eq!(config.routes[0].via, [0, 1]);
    for tunnel in &config.tunnels {
        assert_eq!(tunnel.selectors.local, ["10.1.0.0/16".parse().unwrap()]);
        assert_eq!(tunnel.selectors.remote, ["10.2.0.0/16".parse().unwrap()]);
        assert!(tunnel.probe.is_none(), "it would go beside them");
    }
    assert!(imported.notes.is_empty(), "{:?}", imported.notes);
}

#[test]
fn ipv6_inside_and_outside() {
    let text = bgp()
        .replace("169.254.10.", "fd00:10::")
        .replace("169.254.20.", "fd00:20::")
        .replace("<network_cidr>30<", "<network_cidr>126<")
        .replace("203.0.113.", "2001:db8:a::")
        .replace("192.0.2.10", "2001:db8:c::1")
        .replace("vgw-0123456789abcdef0", "");
    let imported = imported(&text);
    let config = checked(&imported);
    assert_eq!(config.tunnels[1].inside[0].to_string(), "fd00:20::2/126");
    assert_eq!(config.tunnels[1].peer_inside[0].to_string(), "fd00:20::1");
    let bgp = config.bgp.unwrap();
    assert_eq!(bgp.router_id, Ipv4Addr::new(0, 0, 0, 2));
    assert_eq!(bgp.neighbors[0].max_advertised, Some(1000), "of a transit gateway");
    assert!(notes(&imported).iter().any(|note| note.contains("router-id is made up")));
}

#[test]
fn a_key_that_is_kept_elsewhere_is_a_file() {
    let without = format!("<pre_shared_key>{}</pre_shared_key>", KEYS[0]);
    for key in ["", "<pre_shared_key/>", "<pre_shared_key>****</pre_shared_key>"] {
        let mut document = described(&bgp().replace(&without, key), options(json!([])));
        document["VpnConnections"][0]["PreSharedKeyArn"] = "arn:aws:secretsmanager:x:1:secret:y".into();
        let imported = imported(&document.to_string());
        let table: toml::Table = toml::from_str(&imported.text).unwrap();
        assert_eq!(table["tunnel"][0]["ike"]["psk-file"].as_str(), Some("aws-a.psk"));
        let notes = notes(&imported);
        assert!(
            notes[0].contains("(it is in arn:aws:secretsmanager:x:1:secret:y): write it to aws-a.psk"),
            "{notes:?}"
        );
    }
    // Whatever stands in a key, it is one string.
    let odd = "a\"b\\c&#9;&lt;\u{e4}";
    let imported = imported(&bgp().replace(KEYS[0], odd));
    let table: toml::Table = toml::from_str(&imported.text).unwrap();
    assert_eq!(table["tunnel"][0]["ike"]["psk"].as_str(), Some("a\"b\\c\t<\u{e4}"));
}

#[test]
fn several_connections_are_one_configuration() {
    let other = static_routes()
        .replace("vpn-0123456789abcdef0", "vpn-0fedcba9876543210")
        .replace("203.0.113.", "198.51.100.")
        .replace("169.254.10.", "169.254.110.")
        .replace("169.254.20.", "169.254.120.");
    let both = import(&[&bgp(), &other], None).unwrap();
    let config = checked(&both);
    let names: Vec<&str> = config.tunnels.iter().map(|tunnel| tunnel.name.as_str()).collect();
    let [one, two] = ["vpn-0123456789abcdef0", "vpn-0fedcba9876543210"];
    assert_eq!(names, [format!("{one}-a"), format!("{one}-b"), format!("{two}-a"), format!("{two}-b")]);
    assert_eq!(both.notes.iter().map(|(file, _)| *file).collect::<Vec<_>>(), [0, 1, 1, 0]);
    let again = import(&[&bgp(), &bgp()], None).unwrap_err();
    assert!(
        again.len() == 1 && again[0].0 == 1 && again[0].1.text.contains("was there already"),
        "{again:?}"
    );
    let another = bgp().replace("65010", "65011").replace("vpn-0123456789abcdef0", two);
    let wrong = import(&[&bgp(), &another], None).unwrap_err();
    assert!(
        wrong.iter().all(|(file, line)| *file == 1 && line.text.contains("a gateway has one")),
        "{wrong:?}"
    );
}

#[test]
fn a_tunnel_that_is_said_twice_is_one() {
    let twice = xml(true, [tunnel(1, KEYS[0], true), tunnel(1, KEYS[0], true)]);
    assert_eq!(checked(&imported(&twice)).tunnels.len(), 1);
    let differs = xml(true, [tunnel(1, KEYS[0], true), tunnel(1, KEYS[1], true)]);
    assert_eq!(errors(&differs).len(), 1);
}

#[test]
fn connections_that_are_gone_are_left_out() {
    let mut document = described(&bgp(), options(json!([])));
    let gone = json!({ "VpnConnectionId": "vpn-0a", "State": "deleted" });
    document["VpnConnections"].as_array_mut().unwrap().push(gone.clone());
    let notes = notes(&imported(&document.to_string()));
    assert!(
        notes[0].starts_with("0: vpn-0a: left out") && notes[0].ends_with("(its state is deleted)"),
        "{notes:?}"
    );
    assert_eq!(errors(&json!([gone]).to_string()).len(), 1);
    assert_eq!(errors("[]"), [" no VPN connection is in it"]);
}

#[test]
fn every_wrong_line_is_named_with_its_remedy_and_no_key_is_shown() {
    let text = bgp();
    let line = |at: usize| text.lines().nth(at - 1).unwrap().trim().to_owned();
    // The lines of the first tunnel of the file.
    assert_eq!(
        [line(9), line(12)],
        ["<ip_address>192.0.2.10</ip_address>", "<ip_address>169.254.20.2</ip_address>"]
    );
    let wrong = text
        .replacen("192.0.2.10", "192.0.2.1000", 1)
        .replacen("<network_cidr>30", "<network_cidr>33", 1)
        .replacen("<asn>65010", "<asn>4294967296", 1)
        .replacen("<lifetime>28800", "<lifetime>soon", 1)
        .replacen("<ip_address>203.0.113.1</ip_address>", "", 1);
    assert!(errors(&format!("\n\n{wrong}"))[0].starts_with("11: "));
    let errors = errors(&wrong);
    let starts = [
        "9: <ip_address> is no address",
        "14: <tunnel_inside_address>: ",
        "17: <asn> is no AS number",
        "38: <lifetime> is no number",
        "59: <ipsec_tunnel> has no vpn_gateway/tunnel_outside_address/ip_address: save",
    ];
    assert_eq!(errors.len(), starts.len(), "{errors:#?}");
    for (error, start) in errors.iter().zip(starts) {
        assert!(error.starts_with(start), "{start}: {error}");
    }
    assert!(KEYS.iter().all(|key| !errors.concat().contains(key)));
}

#[test]
fn what_braid_cannot_speak_is_refused() {
    let alone = |name: &str, value: Value| {
        let mut one = json!({ "OutsideIpAddress": "203.0.113.1" });
        one[name] = json!([{ "Value": value }]);
        errors(&described(&bgp(), options(json!([one]))).to_string())
    };
    let old = alone("IkeVersions", "ikev1".into());
    assert!(
        old.len() == 1 && old[0].contains("takes IKEv1 alone") && old[0].contains("allow ikev2"),
        "{old:?}"
    );
    assert!(old[0].starts_with(" vpn-0123456789abcdef0: line "), "{old:?}");
    let unknown = alone("Phase1DHGroupNumbers", 99.into());
    assert!(unknown[0].contains("takes no Diffie-Hellman group that Braid has"), "{unknown:?}");
}

#[test]
fn hostile_text_gives_lines_and_no_panic() {
    let whole = described(&bgp(), options(json!([]))).to_string();
    for text in [bgp(), whole.clone()] {
        let text = text.trim_end();
        for len in (0..text.len()).step_by(7) {
            assert!(!errors(&text[..len]).is_empty(), "{len} bytes");
        }
    }
    let laughs = bgp().replace(
        "<vpn_connection ",
        "<!DOCTYPE x [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;&a;\">]><vpn_connection ",
    );
    assert!(errors(&laughs)[0].contains("a document type"));
    for (text, said) in [
        ("", "neither the JSON of"),
        ("! Amazon Web Services\n! Virtual Private Cloud\n", "neither the JSON of"),
        ("<html><body/></html>", "<html> where a CustomerGatewayConfiguration begins"),
        ("<vpn_connection/>", "it has no <ipsec_tunnel>"),
        ("{}", "other JSON than that of"),
        ("{\"VpnConnections\": {}}", "other JSON than that of"),
        ("{\"VpnConnections\": [}", "no well-formed JSON"),
        ("\"x\"", "no well-formed XML"),
        ("[[[[", "other JSON than that of"),
        ("[{", "ends too early"),
    ] {
        let errors = errors(text);
        assert!(errors.len() == 1 && errors[0].contains(said), "{text}: {errors:?}");
    }
    // A key of another type is not shown.
    let number = whole.replace("\"TunnelOptions\":[]", "\"TunnelOptions\":[{\"PreSharedKey\":123456789}]");
    assert_ne!(number, whole);
    assert!(!errors(&number).concat().contains("123456789"));
    let many = format!("<vpn_connection>{}</vpn_connection>", "<ipsec_tunnel/>".repeat(1000));
    assert_eq!(errors(&many).len(), 200);
    assert!(errors(&"[".repeat(1_000_000))[0].contains("JSON"));
}

proptest::proptest! {
    /// Whatever is changed in a right one.
    #[test]
    fn changed_text_is_read_or_refused(at in 0..4000_usize, len in 0..40_usize, with in "[<>/&a-z0-9\"{}\\[\\]]{0,8}") {
        for text in [bgp(), described(&bgp(), options(json!([]))).to_string()] {
            let mut text = text;
            let (from, to) = (at.min(text.len()), (at + len).min(text.len()));
            text.replace_range(from..to, &with);
            let _ = import(&[&text], None);
        }
    }
}

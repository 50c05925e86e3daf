//! What becomes of wg-quick's configurations.

use std::net::IpAddr;

use super::{Imported, wireguard};
use crate::wireguard::PublicKey;

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
    wireguard::import(text, "wg0", local.map(|local| local.parse::<IpAddr>().unwrap())).unwrap()
}

fn parsed(imported: &Imported) -> toml::Table {
    toml::from_str(&imported.text).unwrap_or_else(|error| panic!("{error}\n{}", *imported.text))
}

fn strings(list: &toml::Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

/// As `braid check` has it.
fn checked(imported: &Imported) -> crate::config::Config {
    let config = crate::config::parse(&imported.text, std::path::Path::new("x.toml"), 0o100600);
    config.unwrap_or_else(|errors| panic!("{errors:#?}\n{}", *imported.text))
}

#[test]
fn what_belongs_to_the_host_is_named_and_left_out() {
    for (line, said) in [
        ("DNS = 10.9.0.1, example.com", "DNS: not carried over; Braid leaves the resolver alone"),
        ("MTU = 1280", "MTU: not carried over; Braid takes it"),
        ("Table = off", "Table = off: not carried over; remove the [[route]]"),
        ("Table = 1234", "Table: not carried over; Braid's routes never capture"),
        ("Table = auto", "Table: not carried over; Braid's routes never capture"),
        ("FwMark = 0xca6c", "FwMark: not carried over; Braid marks its outer packets itself"),
        ("SaveConfig = true", "SaveConfig: not carried over; Braid never writes its configuration"),
        ("PreUp = true", "a script: not carried over"),
        (
            "PostUp = iptables -A FORWARD -i %i -j ACCEPT; iptables -t nat -A POSTROUTING",
            "a script: not carried",
        ),
        ("PreDown = true", "a script: not carried over"),
        ("postdown = ip rule del table 7 # by hand", "a script: not carried over"),
    ] {
        let text = SITE.replace("MTU = 1400", line);
        let notes = imported(&text, None).notes;
        let [_, note, _] = &notes[..] else { panic!("{notes:?}") };
        assert!(note.line == 7 && note.text.starts_with(said), "{line}: {note}");
        assert_eq!(*imported(&text, None).text, *imported(SITE, None).text, "{line}");
    }
}

#[test]
fn a_peers_own_address_is_one_that_our_network_has() {
    let site = |address: &str, allowed: &str| {
        let key = |byte: u8| PublicKey([byte; 32]).to_string();
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = {address}\n[Peer]\nPublicKey = {}\nEndpoint = 192.0.2.9:9\n\
             AllowedIPs = {allowed}\n",
            key(1),
            key(2)
        );
        let imported = imported(&text, None);
        let config = checked(&imported);
        let peers = config.tunnels[0].peer_inside.iter().map(ToString::to_string).collect::<Vec<_>>();
        let routes = config.routes.iter().map(|route| route.prefix.to_string()).collect::<Vec<_>>();
        let guesses = imported.notes.iter().filter(|note| note.text.contains("is taken for")).count();
        (peers.join(" "), routes.join(" "), guesses)
    };
    let site = |address, allowed| {
        let (peers, routes, guesses) = site(address, allowed);
        format!("{peers} | {routes} | {guesses}")
    };
    // A host of the LAN behind the peer says nothing of the tunnel, whether it stands first or alone.
    assert_eq!(site("10.9.0.1/24", "192.168.5.5/32, 10.9.0.2/32"), "10.9.0.2 | 192.168.5.5/32 | 0");
    assert_eq!(site("10.9.0.1/24", "192.168.5.5/32"), " | 192.168.5.5/32 | 0");
    // Our own address is no peer's.
    assert_eq!(site("10.9.0.1/24", "10.9.0.1/32, 10.9.0.7/32"), "10.9.0.7 | 10.9.0.1/32 | 0");
    // Without a network one of the usual size is meant, which is a guess.
    assert_eq!(site("10.9.0.2/32", "192.168.5.5, 10.9.0.1"), "10.9.0.1 | 192.168.5.5/32 | 1");
    assert_eq!(site("10.9.0.2", "192.168.5.5/32"), " | 192.168.5.5/32 | 0");
    assert_eq!(site("10.9.0.2/32", "10.9.0.0/24, 10.2.0.0/16"), " | 10.9.0.0/24 10.2.0.0/16 | 0");
    // Each family has its own.
    assert_eq!(
        site("10.9.0.2/24, fd00:9::2/128", "fd00:8::8/128, fd00:9::1/128, 10.2.0.1/32"),
        "fd00:9::1 | fd00:8::8/128 10.2.0.1/32 | 1"
    );
    // The other host of a network of two needs not be said.
    assert_eq!(site("10.9.0.2/30", "10.2.0.0/16"), "10.9.0.1 | 10.2.0.0/16 | 0");
}

#[test]
fn groups_of_routing_protocols_are_left_out() {
    let text = SITE.replace("10.2.0.0/16,", "10.2.0.0/16, 224.0.0.5/32, ff02::5/128, fe80::/64,");
    let imported = imported(&text, None);
    let said: Vec<&str> = imported.notes.iter().map(|note| note.text.as_str()).collect();
    for group in ["224.0.0.5/32", "ff02::5/128"] {
        let note = format!("AllowedIPs {group}: not carried over; multicast does not leave by a tunnel");
        assert!(said.iter().any(|said| said.starts_with(&note)), "{said:?}");
    }
    let prefixes: Vec<String> =
        checked(&imported).routes.iter().map(|route| route.prefix.to_string()).collect();
    assert_eq!(prefixes, ["10.2.0.0/16", "fe80::/64", "0.0.0.0/0"]);
}

#[test]
fn a_clients_usual_file_is_a_right_configuration() {
    let key = |byte: u8| PublicKey([byte; 32]).to_string();
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.8.0.2/32, fd00:8::2/128\nDNS = 1.1.1.1, 2606:4700:4700::1111\n\n\
         [Peer]\nPublicKey = {}\nPresharedKey = {}\nAllowedIPs = 0.0.0.0/0, ::/0\n\
         Endpoint = vpn.example.com:51820\nPersistentKeepalive = 25\n",
        key(1),
        key(2),
        key(3)
    );
    let imported = imported(&text, None);
    let notes: Vec<usize> = imported.notes.iter().map(|note| note.line).collect();
    assert_eq!(notes, [4], "{:?}", imported.notes);
    let config = checked(&imported);
    let [tunnel] = &config.tunnels[..] else { panic!("one tunnel") };
    assert_eq!(tunnel.remote, Some(crate::config::Remote::Name("vpn.example.com".to_owned())));
    assert_eq!(
        tunnel.inside.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.8.0.2/32", "fd00:8::2/128"]
    );
    assert!(tunnel.peer_inside.is_empty() && tunnel.probe.is_none(), "there is nobody to probe");
    assert_eq!(tunnel.wireguard().unwrap().keepalive, Some(25));
    let routes: Vec<String> = config.routes.iter().map(|route| route.prefix.to_string()).collect();
    assert_eq!(routes, ["0.0.0.0/0", "::/0"]);
}

fn errors(text: &str) -> Vec<String> {
    wireguard::import(text, "wg0", None).unwrap_err().iter().map(ToString::to_string).collect()
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
        let config = checked(&imported(text, local));
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
    let expected = ["1", "3", "4", "5", "6", "7", "8", "11", "12", "13", "14", "15", "16", "17", "1", "10"];
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
        let imported = wireguard::import(SITE, name, None).unwrap();
        let config = parsed(&imported);
        let name = config["tunnel"][0]["name"].as_str().unwrap();
        assert!(!name.contains(['/', '"', '\n']) && name.len() <= 64, "{name:?}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(\\[?(Interface|Peer|Address|AllowedIPs|Endpoint|PublicKey)\\]?|[ =,/:.#\\[\\]0-9a-f\n]|\\PC){0,60}") {
        let _ = wireguard::import(&text, "wg0", None);
    }
}

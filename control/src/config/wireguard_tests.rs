//! WireGuard's part of the file.

use std::path::Path;

use super::*;

const KEY: &str = "oK56DE9Ue9zK76rAc8pBl6opph+1v36lm7cXXsQKrQM=";
const PEER: &str = "GtL7fZc/bLnqZldpVofMCD6hDjrK28SsdLxevJ+qtKU=";
const OTHER: &str = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=";

fn hub(number: u8, peer: &str) -> String {
    format!(
        "[[tunnel]]\nname = \"wg{number}\"\ntype = \"wireguard\"\nlocal = \"192.0.2.1\"\nrole = \"respond\"\n\
         inside = \"10.9.0.1/24\"\npeer-inside = \"10.9.0.{number}\"\n\
         [tunnel.wireguard]\nprivate-key = \"{KEY}\"\npeer-public-key = \"{peer}\"\n"
    )
}

fn read(text: &str) -> Result<Config, Vec<String>> {
    let read = parse(text, Path::new("x.toml"), 0o100600);
    read.map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn error(text: &str) -> String {
    let errors = read(text).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(!errors[0].contains(KEY), "keys are not printed");
    errors[0].clone()
}

#[test]
fn peers_share_a_port_a_key_and_an_inside_network() {
    let config = read(&(hub(2, PEER) + &hub(3, OTHER))).unwrap();
    let [a, b] = &config.tunnels[..] else { panic!("two tunnels") };
    assert_eq!((a.ports(), a.encapsulation()), ((51_820, 51_820), Encapsulation::WireGuard));
    let (a, b) = (a.wireguard().unwrap(), b.wireguard().unwrap());
    assert_eq!(a.private_key, b.private_key);
    assert_eq!(a.peer_public_key.to_string(), PEER);
    assert!(!format!("{config:?}").contains(KEY), "keys are not printed");
}

#[test]
fn what_is_wrong_with_keys_and_ports_is_named() {
    let good = hub(2, PEER);
    for (from, to, expected) in [
        ("[tunnel.wireguard]", "[tunnel.ike]", "tunnel.ike: the tunnel is of another type"),
        (PEER, "x", "tunnel.wireguard.peer-public-key: no key of 32 bytes in base64"),
        ("private-key =", "private-kye =", "did you mean `private-key`?"),
        ("type = \"wireguard\"", "type = \"ipsec\"", "tunnel.wireguard: the tunnel is of another type"),
        ("[tunnel.wireguard]", "[tunnel.wireguard]\nlisten-port = 0", "0 is out of range; 1 to 65535"),
        ("[tunnel.wireguard]", "[tunnel.wireguard]\nkeepalive = \"0s\"", "is out of range"),
        (
            "[tunnel.wireguard]",
            "local-ts = \"10.0.0.0/8\"\n[tunnel.wireguard]",
            "tunnel.local-ts: the tunnel is of",
        ),
        ("private-key =", "private-key-file = \"/nowhere/wg.key\"\n#", "tunnel.wireguard.private-key-file: "),
    ] {
        assert!(good.contains(from), "{from}");
        let errors = read(&good.replace(from, to)).unwrap_err().join("\n");
        assert!(errors.contains(expected), "{from} -> {to}: {errors}");
        assert!(!errors.contains(KEY), "keys are not printed");
    }
}

#[test]
fn our_own_public_key_is_not_the_peers() {
    let ours = KEY.parse::<Secret>().unwrap().public().to_string();
    assert!(error(&hub(2, &ours)).contains("the public key of our private key"));
}

#[test]
fn one_peer_is_one_tunnel_and_has_an_address_of_its_own() {
    assert!(
        error(&(hub(2, PEER) + &hub(3, PEER))).contains("the peer's key is taken by the tunnel (line 1)")
    );
    assert!(
        error(&(hub(2, PEER) + &hub(2, OTHER).replace("wg2", "wg3"))).contains("10.9.0.2 is the inside peer")
    );
}

#[test]
fn a_port_belongs_to_one_protocol() {
    let ipsec = "[[tunnel]]\nname = \"a\"\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.9\"\n[tunnel.ike]\npsk = \"x\"\n";
    let port = |port| {
        hub(2, PEER).replace("[tunnel.wireguard]", &format!("[tunnel.wireguard]\nlisten-port = {port}"))
    };
    for taken in [4500, 500] {
        let expected = format!("UDP port {taken} of 192.0.2.1 is tunnel \"a\"'s, of another type");
        assert!(error(&(ipsec.to_owned() + &port(taken))).contains(&expected));
    }
    assert!(read(&(ipsec.to_owned() + &port(51_820))).is_ok());
}

#[test]
fn a_file_that_others_may_read_holds_no_key() {
    let errors = parse(&hub(2, PEER), Path::new("x.toml"), 0o100644).unwrap_err();
    assert!(errors[0].to_string().contains("tunnel.wireguard.private-key"), "{}", errors[0]);
}

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::*;

const GOOD: &str = r#"
[gateway]
name = "branch-1"
source = "10.1.0.1"
protect = ["10.0.0.0/8"]

[core]
device = "braid7"
workers = 2
offload = "off"

[[tunnel]]
name = "a"
type = "ipsec"
local = "192.0.2.10"
remote = "203.0.113.1"
inside = "169.254.10.2/30"
weight = 3
probe = { interval = "100ms", multiplier = 5 }
[tunnel.manual]
suite = "aes128gcm16"
spi-in = 0x1001
spi-out = 0x1002
key-in  = "000102030405060708090a0b0c0d0e0f10111213"
key-out = "a00102030405060708090a0b0c0d0e0f10111213"

[[tunnel]]
name = "b"
local = "192.0.2.10"
remote = "vpn.example.com"
inside = ["169.254.11.2/30", "fd00::1/126"]
priority = -1
probe = "off"
[tunnel.manual]
suite = "aes256-sha1"
spi-in = 0x1003
spi-out = 0x1004
encapsulation = "esp"
replay-window = 128
esn = true
key-in  = "b00102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f000102030405060708090a0b0c0d0e0f10111213"
key-out = "c00102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f000102030405060708090a0b0c0d0e0f10111213"

[[route]]
prefix = "10.2.0.0/16"
via = ["b", "a"]
"#;

fn errors(text: &str) -> Vec<String> {
    match parse(text, Path::new("x.toml"), 0o100600) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// The one error of the good file with `from` replaced by `to`, checked to be in the line of `to`.
fn error_with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from} is not in the file");
    let text = GOOD.replacen(from, to, 1);
    let errors = errors(&text);
    assert_eq!(errors.len(), 1, "{from} -> {to}: {errors:#?}");
    errors[0].clone()
}

/// Line, from 1, of the first occurrence.
fn line_of(text: &str, part: &str) -> usize {
    text[..text.find(part).unwrap()].matches('\n').count() + 1
}

#[test]
fn a_good_file_means_what_it_says() {
    let config = parse(GOOD, Path::new("x.toml"), 0o100600).unwrap();
    assert_eq!(config.gateway.name, "branch-1");
    assert_eq!(config.gateway.source, ["10.1.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(config.core.device, "braid7");
    assert_eq!((config.core.workers, config.core.offload), (Some(2), false));
    let [a, b] = &config.tunnels[..] else { panic!("two tunnels") };
    assert_eq!((a.weight, a.priority, b.weight, b.priority), (3, 0, 1, -1));
    assert_eq!(a.probe, Some(Probe { interval: Duration::from_millis(100), multiplier: 5 }));
    assert_eq!(b.probe, None);
    assert_eq!(a.peer_inside, ["169.254.10.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(
        b.peer_inside,
        ["169.254.11.1".parse::<IpAddr>().unwrap(), "fd00::2".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(b.remote, Some(Remote::Name("vpn.example.com".to_owned())));
    assert_eq!((a.ports(), b.ports()), ((4500, 4500), (0, 0)));
    let (first, second) = (a.manual().unwrap(), b.manual().unwrap());
    assert_eq!((first.esn, second.esn, second.replay_window), (false, true, 128));
    assert_eq!(second.encapsulation, Encapsulation::Esp);
    assert_eq!(first.key_in.expose()[..2], [0, 1]);
    assert_eq!(config.routes[0].via, [0, 1]);
    assert!(!format!("{config:?}").contains("0a0b"), "keys are not printed");
}

#[test]
fn the_contracts_defaults_apply() {
    let config = parse("[gateway]\n", Path::new("x.toml"), 0o100644).unwrap();
    assert_eq!(
        config.core,
        CoreSettings { device: "braid0".into(), workers: None, offload: true, run_dir: None }
    );
    assert!(!config.gateway.transit && !config.gateway.symmetric_hash && !config.gateway.pin_replies);
    assert_eq!(config.metrics, None, "nothing listens unless it is asked for");
}

#[test]
fn metrics_are_answered_where_it_says() {
    for listen in ["127.0.0.1:9466", "[::1]:9466", "0.0.0.0:80"] {
        let config =
            parse(&format!("[metrics]\nlisten = \"{listen}\"\n"), Path::new("x.toml"), 0o644).unwrap();
        assert_eq!(config.metrics, Some(Metrics { listen: listen.parse().unwrap() }));
    }
}

#[test]
fn every_error_names_line_key_and_remedy() {
    let cases = [
        ("weight = 3", "weihgt = 3", "tunnel.weihgt: unknown key; did you mean `weight`?"),
        ("spi-in = 0x1001", "spi_in = 0x1001", "did you mean `spi-in`?"),
        ("weight = 3", "zzz = 3", "tunnel.zzz: unknown key; known here: name, type"),
        ("weight = 3", "weight = 0", "tunnel.weight: 0 is out of range; 1 to 65535 is right"),
        ("weight = 3", "weight = \"3\"", "tunnel.weight: a string stands where an integer belongs"),
        ("weight = 3", "ike = { psk = \"x\" }", "tunnel.manual: a second way to get keys"),
        ("[core]", "[metrics]\n[core]", "metrics.listen: missing; for example listen = \"127.0.0.1:9466\""),
        (
            "[core]",
            "[metrics]\nlisten = 9466\n[core]",
            "metrics.listen: an integer stands where a string belongs",
        ),
        (
            "[core]",
            "[metrics]\nlisten = \"127.0.0.1\"\n[core]",
            "metrics.listen: \"127.0.0.1\" is no address with a port; write one like \"127.0.0.1:9466\" or",
        ),
        (
            "[core]",
            "[metrics]\nlisten = \"localhost:9466\"\n[core]",
            "metrics.listen: \"localhost:9466\" is no address with a port; write one like",
        ),
        (
            "[core]",
            "[metrics]\nlisten = \"127.0.0.1:0\"\n[core]",
            "metrics.listen: port 0 is none that anybody",
        ),
        (
            "[core]",
            "[metrics]\nlisten = \"[ff02::1]:9466\"\n[core]",
            "metrics.listen: ff02::1 is no address of a host; give the host's own address",
        ),
        (
            "[core]",
            "[metrics]\nlisten = \"127.0.0.1:9466\"\nport = 1\n[core]",
            "metrics.port: unknown key; known here: listen",
        ),
        (
            "type = \"ipsec\"",
            "type = \"gre\"",
            "tunnel.type: \"gre\" is no type; \"ipsec\" or \"wireguard\" is right",
        ),
        ("aes128gcm16", "aes129gcm16", "no suite is named \"aes129gcm16\"; known: aes256gcm16, aes128gcm16"),
        (
            "aes128gcm16",
            "aes256gcm16",
            "tunnel.manual.key-in: 20 bytes; aes256gcm16 takes 36: a key of 32, then 4 of salt",
        ),
        ("key-in  = \"000", "key-in  = \"00", "tunnel.manual.key-in: an odd number of digits"),
        (
            "key-in  = \"000",
            "key-in  = \"00x",
            "tunnel.manual.key-in: something in it is no hexadecimal digit",
        ),
        ("0x1003", "0x1001", "tunnel.manual.spi-in: 0x00001001 is taken by the tunnel (line 12)"),
        ("0x1001", "255", "tunnel.manual.spi-in: 255 is out of range; 256 to 4294967295"),
        ("key-out = \"a0", "key-out = \"00", "tunnel.manual.key-out: the key is used twice"),
        (
            "169.254.11.2/30",
            "169.254.10.1/30",
            "overlaps 169.254.10.2/30 of tunnel \"a\" (line 12); give each tunnel its own network; on AWS, set another TunnelInsideCidr",
        ),
        (
            "169.254.10.2/30",
            "169.254.10.2",
            "tunnel.inside: \"169.254.10.2\" is no address with a prefix length",
        ),
        ("169.254.10.2/30", "169.254.10.3/30", "169.254.10.3 is the network's broadcast address"),
        ("169.254.10.2/30", "169.254.10.0/30", "169.254.10.0 is the network's own address"),
        (
            "169.254.10.2/30",
            "203.0.113.2/30",
            "tunnel.inside: 203.0.113.2/30 holds 203.0.113.1, which is an address outside the tunnels; inside is",
        ),
        ("169.254.10.2/30", "169.254.10.2/24", "tunnel.probe: nothing to probe"),
        ("via = [\"b\", \"a\"]", "via = [\"b\", \"c\"]", "route.via: no tunnel is named \"c\"; known: a, b"),
        ("via = [\"b\", \"a\"]", "via = [\"b\", \"b\"]", "route.via: \"b\" stands there twice"),
        ("via = [\"b\", \"a\"]", "via = []", "route.via: an empty list"),
        (
            "via = [\"b\", \"a\"]",
            "via = [{ interface = \"dx0\" }]",
            "route.via.gateway: missing; for example gateway = \"10.9.0.1\"",
        ),
        (
            "via = [\"b\", \"a\"]",
            "via = { interface = \"dx0\", gateway = \"fd00::1\" }",
            "route.via.gateway: another family than the prefix's",
        ),
        (
            "via = [\"b\", \"a\"]",
            "via = [\"b\", { interface = \"dx0\", gateway = \"10.9.0.1\" }]",
            "route.via: a path over an interface shares with no other",
        ),
        (
            "via = [\"b\", \"a\"]",
            "via = [\"b\", \"a\"]\n[[route]]\nprefix = \"10.2.0.0/16\"\nvia = \"a\"\ndistance = 9",
            "10.2.0.0/16 is routed already (line 44); name all its tunnels in one via",
        ),
        (
            "via = [\"b\", \"a\"]",
            "via = [\"b\", \"a\"]\n[[route]]\nprefix = \"10.2.0.0/16\"\n\
             via = { interface = \"dx0\", gateway = \"10.9.0.1\" }",
            "10.2.0.0/16 is routed already (line 44); give each of its routes another distance",
        ),
        ("via = [\"b\", \"a\"]", "", "route.via: missing; for example via = [\"aws-a\", \"aws-b\"]"),
        (
            "prefix = \"10.2.0.0/16\"",
            "prefix = \"10.2.0.1/16\"",
            "has host bits set; \"10.2.0.0/16\" would be right",
        ),
        ("prefix = \"10.2.0.0/16\"", "prefix = \"10.2.0.1\"", "\"10.2.0.1/32\" would be right for one host"),
        (
            "prefix = \"10.2.0.0/16\"",
            "prefix = \"169.254.10.1/32\"",
            "169.254.10.1 is the inside peer of \"a\"",
        ),
        ("interval = \"100ms\"", "interval = \"100\"", "tunnel.probe.interval: \"100\" is no duration"),
        ("interval = \"100ms\"", "interval = \"1ms\"", "tunnel.probe.interval: \"1ms\" is out of range"),
        (
            "device = \"braid7\"",
            "device = \"braid-branch-north\"",
            "core.device: \"braid-branch-north\" has 18 bytes; an interface name has at most 15",
        ),
        ("offload = \"off\"", "offload = \"on\"", "core.offload: \"on\" is no way to offload"),
        (
            "remote = \"203.0.113.1\"",
            "remote = \"2001:db8::1\"",
            "tunnel.remote: of another family than local",
        ),
        ("remote = \"203.0.113.1\"", "remote = \"192.0.2.10\"", "tunnel.remote: the same address as local"),
        ("remote = \"203.0.113.1\"", "remote = \"203.0.113.1:4500\"", "is neither an address nor a DNS name"),
        ("remote = \"203.0.113.1\"", "remote = \"203.0.113.300\"", "is neither an address nor a DNS name"),
        ("remote = \"203.0.113.1\"\n", "\n", "tunnel.remote: missing"),
        ("local = \"192.0.2.10\"\nremote = \"203.0.113.1\"\n", "", "tunnel.local: missing"),
        ("encapsulation = \"esp\"", "encapsulation = \"auto\"", "fixed keys cannot find out about NAT"),
        (
            "encapsulation = \"esp\"",
            "encapsulation = \"esp\"\nport = 4501",
            "tunnel.manual.port: raw ESP has no ports",
        ),
        ("replay-window = 128", "replay-window = 100", "100 is no multiple of 64; 128 would be right"),
        ("name = \"b\"", "name = \"a b\"", "tunnel.name: \"a b\" is no usable name"),
        ("[[tunnel]]\nname = \"b\"", "[[tunnel]]", "tunnel.name: missing"),
        (
            "source = \"10.1.0.1\"",
            "source = \"10.1.0.1/24\"",
            "gateway.source: \"10.1.0.1/24\" is no address",
        ),
        ("weight = 3", "weight = 3\nweight = 4", "not TOML: duplicate key"),
    ];
    for (from, to, expected) in cases {
        let text = GOOD.replacen(from, to, 1);
        let found = errors(&text);
        assert!(!found.is_empty(), "{to}: no error");
        assert!(
            found.iter().any(|error| error.contains(expected)),
            "{to}: expected {expected:?}, found {found:#?}"
        );
        for error in &found {
            assert!(error.starts_with("x.toml:") && !error.contains('\n'), "{error}");
        }
    }
}

#[test]
fn bfd_is_asked_for_by_one_word_or_by_its_timing() {
    let with = |bfd: &str| {
        let text = GOOD.replacen("weight = 3\n", &format!("bfd = {bfd}\n"), 1);
        parse(&text, Path::new("x.toml"), 0o100600).unwrap().tunnels[0].bfd.clone()
    };
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let (local, remote) = (address("169.254.10.2"), address("169.254.10.1"));
    let ms = Duration::from_millis;
    for (bfd, interval, multiplier) in [
        ("true", ms(300), 3),
        ("{}", ms(300), 3),
        ("{ interval = \"10ms\" }", ms(10), 3),
        ("{ interval = \"1s\", multiplier = 255 }", ms(1000), 255),
    ] {
        assert_eq!(with(bfd), [Bfd { local, remote, interval, multiplier }]);
    }
    assert_eq!(with("false"), []);
    let cases = [
        ("bfd = 3\n", "tunnel.bfd", "where true or false belongs"),
        ("bfd = { interval = \"9ms\" }\n", "tunnel.bfd.interval", "10ms to 60s is right"),
        ("bfd = { multiplier = 0 }\n", "tunnel.bfd.multiplier", "1 to 255 is right"),
        ("bfd = { intervall = \"50ms\" }\n", "tunnel.bfd.intervall", "interval"),
    ];
    for (to, key, remedy) in cases {
        let error = error_with("weight = 3\n", to);
        assert!(error.contains(key) && error.contains(remedy), "{error}");
    }
    let error = error_with(
        "inside = \"169.254.10.2/30\"\nweight = 3\nprobe = { interval = \"100ms\", multiplier = 5 }",
        "inside = \"169.254.10.2/24\"\nbfd = true",
    );
    assert!(error.contains("give peer-inside"), "{error}");
}

#[test]
fn sessions_of_neighbours_join_those_of_their_tunnel() {
    let mut tunnel = parse(GOOD, Path::new("x.toml"), 0o100600).unwrap().tunnels.remove(1);
    let timing = |ms| BfdTiming { interval: Duration::from_millis(ms), multiplier: 3 };
    let peers: Vec<IpAddr> = tunnel.peer_inside.clone();
    assert!(peers.iter().all(|peer| tunnel.add_bfd(*peer, timing(100))));
    assert!(tunnel.add_bfd(peers[0], timing(300)) && tunnel.add_bfd(peers[1], timing(50)));
    let intervals: Vec<u128> = tunnel.bfd.iter().map(|bfd| bfd.interval.as_millis()).collect();
    assert_eq!(intervals, [100, 50]);
    // One session for each family.
    assert!(!tunnel.add_bfd("169.254.11.9".parse().unwrap(), timing(50)));
    assert_eq!(tunnel.bfd.len(), 2);
}

#[test]
fn a_socket_has_one_uplink() {
    let text = GOOD.replacen("weight = 3", "uplink = \"eth1\"", 1).replacen(
        "encapsulation = \"esp\"",
        "encapsulation = \"udp\"",
        1,
    );
    let found = errors(&text);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].contains("tunnel.uplink: 192.0.2.10 is used over another uplink by tunnel \"a\""),
        "{found:#?}"
    );
}

#[test]
fn the_line_is_the_values() {
    let error = error_with("weight = 3", "weight = 0");
    let line = line_of(GOOD, "weight = 3");
    assert!(error.starts_with(&format!("x.toml:{line}: ")), "{error}");
    let error = error_with("via = [\"b\", \"a\"]", "via = [\"b\",\n\"c\"]");
    let line = line_of(GOOD, "via = ") + 1;
    assert!(error.starts_with(&format!("x.toml:{line}: ")), "{error}");
}

#[test]
fn all_errors_are_reported_at_once() {
    let text = GOOD
        .replace("weight = 3", "weight = 0")
        .replace("offload = \"off\"", "offload = 1")
        .replace("via = [\"b\", \"a\"]", "via = [\"x\"]");
    let found = errors(&text);
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[0].contains("core.offload") && found[1].contains("tunnel.weight"));
}

#[test]
fn a_broken_tunnel_does_not_break_its_routes() {
    let found = errors(&GOOD.replace("suite = \"aes128gcm16\"\n", ""));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("tunnel.manual.suite: missing"), "{found:#?}");
}

#[test]
fn secrets_that_others_can_read_are_refused() {
    for mode in [0o100644, 0o100640, 0o100604, 0o100601] {
        let found = parse(GOOD, Path::new("x.toml"), mode).unwrap_err();
        assert_eq!(found.len(), 1, "once a file");
        assert_eq!(found[0].fault, Fault::SecretExposed { mode: mode & 0o7777 });
    }
    assert!(parse(GOOD, Path::new("x.toml"), 0o100400).is_ok());
}

#[test]
fn no_error_shows_a_key() {
    let secret = "deadbeefdeadbeef";
    for broken in [
        format!("key-in = \"{secret}\""),
        format!("key-in = \"{secret}zz\""),
        format!("key-in = {secret}"),
        format!("key-in = [\"{secret}\"]"),
        format!("key-in = \"{secret}\n\""),
    ] {
        let text = GOOD.replacen("key-in  = \"000102030405060708090a0b0c0d0e0f10111213\"", &broken, 1);
        let found = errors(&text);
        assert!(!found.is_empty(), "{broken}");
        assert!(found.iter().all(|error| !error.contains("deadbeef")), "{found:#?}");
    }
}

#[test]
fn peers_derive_from_small_networks() {
    for (inside, peer) in [
        ("10.0.0.1/30", "10.0.0.2"),
        ("10.0.0.6/30", "10.0.0.5"),
        ("10.0.0.0/31", "10.0.0.1"),
        ("10.0.0.1/31", "10.0.0.0"),
        ("fd00::1/126", "fd00::2"),
        ("fd00::6/126", "fd00::5"),
        ("fd00::/127", "fd00::1"),
    ] {
        let net = value::inside(inside).unwrap();
        assert_eq!(value::other_host(net), Some(peer.parse().unwrap()), "{inside}");
    }
    for inside in ["10.0.0.1/29", "10.0.0.1/32", "fd00::3/126", "fd00::1/64"] {
        assert_eq!(value::other_host(value::inside(inside).unwrap()), None, "{inside}");
    }
}

#[test]
fn the_number_of_errors_is_bounded() {
    let mut text = String::new();
    for n in 0..5000 {
        text.push_str(&format!("unknown{n} = 1\n"));
    }
    let found = errors(&text);
    assert_eq!(found.len(), 201);
    assert!(found[200].contains("4800 more errors"), "{}", found[200]);
}

#[test]
fn a_missing_file_is_one_line() {
    let errors = load(Path::new("/nonexistent/braid.toml")).unwrap_err();
    let text = errors[0].to_string();
    assert!(text.starts_with("/nonexistent/braid.toml: cannot be read: No such file"), "{text}");
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "[a-z\\[\\]\"= \n0-9./:{}#-]{0,200}") {
        let _ = parse(&text, Path::new("x.toml"), 0o600);
    }

    #[test]
    fn no_value_panics(key in "[a-z-]{1,12}", value in "\\PC{0,40}", at in 0usize..400) {
        let at = GOOD.match_indices('\n').map(|(at, _)| at).take_while(|found| *found <= at).last().unwrap_or(0);
        let mut text = GOOD.to_owned();
        text.insert_str(at + 1, &format!("{key} = {value}\n"));
        let _ = parse(&text, Path::new("x.toml"), 0o600);
    }
}

const IKE: &str = r#"
[[tunnel]]
name = "a"
local = "192.0.2.10"
remote = "203.0.113.1"
inside = "169.254.10.2/30"
[tunnel.ike]
psk = "not to be shown"
proposals = ["aes256gcm16-prfsha384-ecp384", "aes128-sha256-modp2048"]
esp-proposals = "aes128gcm16-ecp256"
lifetime = "2h"
dpd-interval = "1s"
dpd-timeout = "5s"
encapsulation = "auto"
peer-replay-window = 1024
"#;

fn ike_with(from: &str, to: &str) -> Result<Config, Vec<String>> {
    assert!(IKE.contains(from), "{from} is not in the file");
    parse(&IKE.replacen(from, to, 1), Path::new("x.toml"), 0o100600)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

#[test]
fn a_tunnel_with_ike_means_what_it_says() {
    let config = ike_with("", "").unwrap();
    let tunnel = &config.tunnels[0];
    let ike = tunnel.ike().unwrap();
    assert_eq!(ike.proposals.iter().map(ToString::to_string).collect::<Vec<_>>().len(), 2);
    assert_eq!(tunnel.suites(), [Suite::Aes128Gcm16]);
    assert_eq!(ike.local_id.as_ref().unwrap().to_string(), "192.0.2.10");
    assert_eq!(ike.remote_id.as_ref().unwrap().to_string(), "203.0.113.1");
    assert_eq!((ike.lifetime.as_secs(), ike.child_lifetime.as_secs()), (7200, 3600));
    assert_eq!((ike.replay_window, ike.peer_replay_window), (2048, 1024));
    assert_eq!((tunnel.encapsulation(), tunnel.ports()), (Encapsulation::Udp, (4500, 4500)));
    assert!(config.manual_keys().is_none());
    assert!(!format!("{config:?}").contains("not to be shown"), "keys are not printed");
}

#[test]
fn the_defaults_of_ike_are_strong_and_parse() {
    let text = "[[tunnel]]\nname = \"a\"\nlocal = \"192.0.2.10\"\nremote = \"gw.example.com\"\n[tunnel.ike]\npsk = \"x\"\n";
    let config = parse(text, Path::new("x.toml"), 0o100600).unwrap();
    let ike = config.tunnels[0].ike().unwrap();
    assert_eq!(ike.proposals.first().unwrap().to_string(), "aes256gcm16-prfsha384-ecp384");
    assert_eq!((ike.proposals.len(), ike.esp_proposals.len()), (2, 2));
    assert_eq!(config.tunnels[0].suites(), [Suite::Aes256Gcm16, Suite::Aes128Gcm16]);
    assert_eq!(ike.remote_id, None);
    assert_eq!(ike.encapsulation, braid_ike::Encapsulation::Udp);
}

#[test]
fn keys_of_ike_end_by_volume_and_take_a_post_quantum_key() {
    let plain = ike_with("", "").unwrap();
    let plain = plain.tunnels[0].ike().unwrap();
    assert_eq!((plain.child_bytes, plain.child_packets, &plain.ppk), (None, None, &None));
    let more = "child-lifetime-bytes = 1_000_000_000\nchild-lifetime-packets = 5000\n\
                ppk = \"nor this one\"\nppk-id = \"k1\"\nppk-required = false\npsk = ";
    let config = ike_with("psk = ", more).unwrap();
    let ike = config.tunnels[0].ike().unwrap();
    assert_eq!((ike.child_bytes, ike.child_packets), (Some(1_000_000_000), Some(5000)));
    let ppk = ike.ppk.as_ref().unwrap();
    assert_eq!((ppk.id.as_str(), ppk.secret.expose(), ppk.required), ("k1", &b"nor this one"[..], false));
    assert!(!format!("{config:?}").contains("nor this one"), "keys are not printed");
    let config = ike_with("psk = ", "ppk = \"x\"\nppk-id = \"k1\"\npsk = ").unwrap();
    assert!(config.tunnels[0].ike().unwrap().ppk.as_ref().unwrap().required, "unless it is said otherwise");
    let text =
        IKE.replacen("psk = \"not to be shown\"", "certificate = \"c\"\nppk = \"x\"\nppk-id = \"k\"", 1);
    let errors = parse(&text, Path::new("x.toml"), 0o100644).unwrap_err();
    assert!(errors.iter().any(|error| error.to_string().contains("chmod 600 it")), "{errors:?}");
}

#[test]
fn errors_of_ike_name_key_and_remedy() {
    let cases = [
        ("psk = \"not to be shown\"\n", "", "tunnel.ike.psk: missing; for example"),
        ("psk = \"not to be shown\"", "psk = \"\"", "`braid genpsk` makes one"),
        ("psk = ", "psk-file = \"/x\"\npsk = ", "a second way to authenticate"),
        ("psk = \"not to be shown\"", "psk-file = \"/nonexistent/psk\"", "/nonexistent/psk"),
        ("psk = \"not to be shown\"", "certificate = \"/nonexistent/c\"", "tunnel.ike.key: missing"),
        ("psk = ", "local-id = \"?\"\npsk = ", "tunnel.ike.local-id: \"?\" is no identity"),
        ("aes128-sha256-modp2048", "aes128-sha256-mopd2048", "nearest is \"modp2048\""),
        ("aes128-sha256-modp2048", "aes128-modp2048", "needs an integrity algorithm"),
        ("dpd-timeout = \"5s\"", "dpd-timeout = \"1s\"", "it must be more than dpd-interval"),
        ("\"auto\"", "\"tcp\"", "\"udp\" or \"auto\" or \"esp\" is right"),
        ("psk = ", "ppk = \"x\"\npsk = ", "tunnel.ike.ppk-id: missing; for example"),
        ("psk = ", "ppk = \"\"\nppk-id = \"k\"\npsk = ", "tunnel.ike.ppk: an empty key"),
        ("psk = ", "ppk = \"x\"\nppk-file = \"/x\"\npsk = ", "give one of ppk and ppk-file"),
        (
            "psk = ",
            "ppk-file = \"/nonexistent/k\"\nppk-id = \"k\"\npsk = ",
            "tunnel.ike.ppk-file: /nonexistent",
        ),
        ("psk = ", "ppk-required = true\npsk = ", "tunnel.ike.ppk-required: there is no key to it"),
        ("psk = ", "ppk = \"x\"\nppk-id = \"\"\npsk = ", "1 to 128 are possible"),
        ("lifetime = ", "child-lifetime-bytes = 1000\nlifetime = ", "1000000 to "),
        (
            "lifetime = ",
            "child-lifetime-packets = \"many\"\nlifetime = ",
            "tunnel.ike.child-lifetime-packets",
        ),
        ("lifetime = \"2h\"", "lifetime = \"1s\"", "5s to 604800s is right"),
    ];
    for (from, to, part) in cases {
        let errors = ike_with(from, to).expect_err(to);
        assert!(errors.iter().any(|error| error.contains(part)), "{to}: {errors:#?}");
        assert!(errors.iter().all(|error| error.starts_with("x.toml:")), "{errors:#?}");
    }
}

#[test]
fn a_secret_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = std::env::temp_dir().join(format!("braid-psk-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (file, config) = (dir.join("psk"), dir.join("x.toml"));
    std::fs::write(&file, "the key\n").unwrap();
    let text = IKE.replace("psk = \"not to be shown\"", "psk-file = \"psk\"");
    let read = |mode| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        parse(&text, &config, 0o100644)
    };
    let errors = read(0o644).unwrap_err();
    assert!(errors[0].to_string().contains("others may read it (mode 0644); chmod 600 it"), "{}", errors[0]);
    let Credential::Psk(psk) = &read(0o600).unwrap().tunnels[0].ike().unwrap().credential.clone() else {
        panic!("a pre-shared key")
    };
    assert_eq!(psk.expose(), b"the key");
    let exposed = parse(&text.replace("psk-file = \"psk\"", "psk = \"x\""), &config, 0o100644).unwrap_err();
    assert!(exposed[0].to_string().contains("chmod 600 it"), "{}", exposed[0]);
    std::fs::remove_dir_all(dir).unwrap();
}

const BGP: &str = r#"
[bgp]
asn = 65010
router-id = "10.1.0.1"
announce = ["10.1.0.0/16", "fd00:1::/48"]
multipath = "relaxed"
[[bgp.neighbor]]
tunnel = "a"
asn = 64512
hold-time = "9s"
md5 = "not to be shown"
import = ["10.0.0.0/8 le 24"]
local-preference = 200
prepend = 2
weight = 3
max-prefix = 1000
bfd = false
export = ["bgp:lan-router"]
export-prefixes = ["10.1.0.0/16"]
[[bgp.neighbor]]
name = "lan-router"
address = "10.1.0.254"
interface = "lan0"
asn = 65010
graceful-restart = false
"#;

fn bgp_with(from: &str, to: &str) -> Result<Config, Vec<String>> {
    assert!(BGP.contains(from), "{from} is not in the file");
    let text = format!("{GOOD}{}", BGP.replacen(from, to, 1));
    parse(&text, Path::new("x.toml"), 0o100600)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

#[test]
fn bgp_means_what_it_says() {
    let bgp = bgp_with("asn", "asn").unwrap().bgp.unwrap();
    assert_eq!((bgp.asn, bgp.router_id.to_string(), bgp.distance), (65_010, "10.1.0.1".to_owned(), 20));
    assert_eq!(bgp.announce.len(), 2);
    assert_eq!(bgp.multipath, braid_bgp::rib::decision::Multipath::Relaxed);
    let [a, router] = &bgp.neighbors[..] else { panic!("two neighbors") };
    assert_eq!((a.name.as_str(), a.tunnel(), a.asn), ("a", Some("a"), 64_512));
    assert_eq!((a.hold_time.as_secs(), a.local_preference, a.prepend, a.weight), (9, 200, 2, Some(3)));
    assert_eq!(a.md5.as_ref().unwrap().expose(), b"not to be shown");
    assert!(!format!("{a:?}").contains("not to be shown"));
    assert_eq!(a.import.as_ref().unwrap()[0].to_string(), "10.0.0.0/8 le 24");
    assert_eq!(a.export_prefixes.as_ref().unwrap()[0].to_string(), "10.1.0.0/16");
    assert_eq!((a.export.as_slice(), a.max_prefix), (&["lan-router".to_owned()][..], 1000));
    // No table grows without a bound.
    assert_eq!(router.max_prefix, 2_000_000);
    assert_eq!(a.graceful_restart, Some(Duration::from_secs(120)));
    assert_eq!(
        (router.name.as_str(), router.graceful_restart, router.hold_time.as_secs()),
        ("lan-router", None, 30)
    );
    let address = "10.1.0.254".parse().unwrap();
    let interface = Some("lan0".to_owned());
    assert_eq!(router.place, Place::Address { address, interface, source: None });
    // BFD runs in the neighbor's tunnel.
    let config = bgp_with("bfd = false", "bfd = { interval = \"100ms\" }").unwrap();
    assert_eq!(config.tunnels[0].bfd[0].remote.to_string(), "169.254.10.1");
    assert_eq!(config.tunnels[0].bfd[0].interval, Duration::from_millis(100));
    assert!(config.tunnels[1].bfd.is_empty());
    // Or on its link.
    let config = bgp_with("interface = \"lan0\"", "interface = \"lan0\"\nbfd = true").unwrap();
    let timing = config.bgp.unwrap().neighbors[1].bfd.unwrap();
    assert_eq!((timing.interval, timing.multiplier), (Duration::from_millis(300), 3));
    // Left out, the identifier is an address that is ours alone.
    let bgp = bgp_with("router-id = \"10.1.0.1\"\n", "").unwrap().bgp.unwrap();
    assert_eq!(bgp.router_id.to_string(), "10.1.0.1");
}

#[test]
fn every_error_of_bgp_names_line_key_and_remedy() {
    let cases = [
        ("asn = 65010\n", "", "bgp.asn: missing; for example asn = 65010"),
        ("asn = 64512", "asn = 23456", "bgp.neighbor.asn: 23456 is reserved"),
        ("asn = 64512", "asn = 0", "bgp.neighbor.asn: 0 is out of range"),
        (
            "router-id = \"10.1.0.1\"",
            "router-id = \"fd00::1\"",
            "is no router identifier; write an IPv4 address",
        ),
        ("10.1.0.0/16", "10.1.0.1/16", "bgp.announce: \"10.1.0.1/16\" has host bits set"),
        ("\"relaxed\"", "\"loose\"", "bgp.multipath: \"loose\" is no way to share traffic; \"equal\""),
        ("tunnel = \"a\"", "tunnel = \"c\"", "bgp.neighbor.tunnel: no tunnel is named \"c\"; known: a, b"),
        ("tunnel = \"a\"\n", "", "bgp.neighbor.address: missing"),
        ("tunnel = \"a\"", "tunnel = \"a\"\nmultihopp = true", "did you mean `multihop`?"),
        ("interface = \"lan0\"\n", "", "is not said; write interface = \"eth1\", or else multihop = true"),
        ("interface = \"lan0\"", "interface = \"lan0\"\nmultihop = true", "not both"),
        ("hold-time = \"9s\"", "hold-time = \"2s\"", "\"2s\" is no hold time; \"3s\" to \"65535s\""),
        ("10.0.0.0/8 le 24", "10.0.0.0/8 le 33", "bgp.neighbor.import: no prefix within is at least /8"),
        ("bgp:lan-router", "bgp:wan-router", "no neighbor is named \"wan-router\"; known: a, lan-router"),
        ("bgp:lan-router", "bgp:a", "a neighbor knows its own routes; name other neighbors"),
        ("bgp:lan-router", "static", "is nothing that can be exported; write \"bgp:\""),
        ("name = \"lan-router\"", "name = \"a\"", "bgp.neighbor.name: \"a\" is taken"),
        ("md5 = \"not to be shown\"", "md5 = \"\"", "bgp.neighbor.md5: a key of 0 bytes; 1 to 80 bytes"),
        (
            "md5 = ",
            "md5-file = \"/x\"\nmd5 = ",
            "bgp.neighbor.md5-file: a second key; give one of md5 and md5-file",
        ),
        (
            "md5 = \"not to be shown\"",
            "md5-file = \"/nonexistent/md5\"",
            "bgp.neighbor.md5-file: /nonexistent",
        ),
        ("prepend = 2", "prepend = 33", "bgp.neighbor.prepend: 33 is out of range; 0 to 32"),
    ];
    for (from, to, part) in cases {
        let errors = bgp_with(from, to).expect_err(to);
        assert!(errors.iter().any(|error| error.contains(part)), "{to}: {errors:#?}");
        let whole = |error: &String| error.starts_with("x.toml:") && !error.contains("not to be shown");
        assert!(errors.iter().all(whole), "{errors:#?}");
    }
    let exposed = parse(
        "[bgp]\nasn = 1\nrouter-id = \"10.0.0.1\"\n[[bgp.neighbor]]\naddress = \"10.0.0.2\"\n\
        multihop = true\nasn = 2\nmd5 = \"x\"\n",
        Path::new("x.toml"),
        0o100644,
    );
    assert!(
        exposed.unwrap_err()[0]
            .to_string()
            .starts_with("x.toml:8: bgp.neighbor.md5: the file holds a secret")
    );
}

#[test]
fn a_file_with_a_key_of_bgp_is_for_us_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = std::env::temp_dir().join(format!("braid-md5-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (file, config) = (dir.join("md5"), dir.join("x.toml"));
    std::fs::write(&file, "the key\n").unwrap();
    let text = format!("{GOOD}{}", BGP.replace("md5 = \"not to be shown\"", "md5-file = \"md5\""));
    let read = |mode| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        parse(&text, &config, 0o100600)
    };
    let errors = read(0o640).unwrap_err();
    assert!(errors[0].to_string().contains("others may read it (mode 0640); chmod 600 it"), "{}", errors[0]);
    let key = read(0o600).unwrap().bgp.unwrap().neighbors[0].md5.clone().unwrap();
    assert_eq!(key.expose(), b"the key");
    std::fs::write(&file, "\n").unwrap();
    assert!(read(0o600).unwrap_err()[0].to_string().contains("bgp.neighbor.md5-file: a key of 0 bytes"));
    std::fs::remove_dir_all(dir).unwrap();
}

/// Headings and first columns of the reference against what is read.
#[test]
fn the_reference_has_every_key_and_no_other() {
    let mut described: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut section = String::new();
    for line in KEYS.lines() {
        if let Some(heading) = line.strip_prefix("## `[") {
            section = heading.trim_matches(|c| "[]`".contains(c)).to_owned();
        } else if let Some(cells) = line.strip_prefix("| `") {
            let keys = cells.split(" | ").next().unwrap().trim_end_matches('`').split("`, `");
            let known = described.entry(section.clone()).or_default();
            keys.for_each(|key| assert!(known.insert(key), "{key} stands twice in {section}"));
        }
    }
    let schemas = [
        &gateway::GATEWAY,
        &gateway::CORE,
        &tunnel::TUNNEL,
        &tunnel::MANUAL,
        &ike::IKE,
        &wireguard::WIREGUARD,
        &route::ROUTE,
        &bgp::BGP,
        &bgp::NEIGHBOR,
        &clients::CLIENTS,
        &metrics::METRICS,
    ];
    let read = schemas.map(|schema| (schema.path.to_owned(), schema.keys.iter().copied().collect()));
    assert_eq!(described, BTreeMap::from(read));
    assert!(ROOT.keys.iter().all(|section| described.contains_key(*section)));
}

#[test]
fn a_core_that_runs_goes_on_only_with_the_same_threads_device_and_offload() {
    let core = |text: &str| {
        let text = format!("[core]\n{text}\n[gateway]\nname = \"here\"\n");
        parse(&text, std::path::Path::new("x.toml"), 0o600).unwrap().core
    };
    let running = core("");
    for (text, fits) in [
        ("", true),
        ("workers = 2", true),
        ("workers = 3", false),
        ("device = \"other0\"", false),
        ("offload = \"off\"", false),
        ("run-dir = \"/run/other\"", true),
    ] {
        assert_eq!(core(text).fits(&running, 2), fits, "{text}");
    }
}

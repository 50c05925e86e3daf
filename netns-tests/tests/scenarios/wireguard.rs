//! WireGuard against Debian's wireguard-go and boringtun-cli, its keys against Debian's wireguard-tools, and
//! between two Braid gateways.

use crate::failover::answers_to_probes;
use crate::kernel::kill_part;
use crate::mobile::masquerade;
use crate::pair::{Pair, START, Setup, Side, patient};
use crate::tunnel::{pings_cross, udp_crosses};
use base64::prelude::{BASE64_STANDARD, Engine};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use braid_netns::content;
use braid_netns::gateway::{Gateway, binary};
use braid_netns::paced::{Load, Paced};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, NET_A, NET_A6, NET_B, NET_B6, OuterPath, SERVER, SERVER6};
use braid_netns::traffic::{Pings, ping};
use braid_netns::wireguard::{Implementation, Keys, MTU, PORT, Wireguard};
use braid_netns::{Netns, Result, Topology, retry_until};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("wireguard::keys_are_those_of_wg", keys_are_those_of_wg),
    ("wireguard::with_wireguard_go", with_wireguard_go),
    ("wireguard::with_boringtun", with_boringtun),
    ("wireguard::peers_on_one_port", peers_on_one_port),
    ("wireguard::all_sizes_between_braids", all_sizes_between_braids),
    ("wireguard::mixed_with_esp", mixed_with_esp),
    ("wireguard::killed_and_back", killed_and_back),
    ("wireguard::behind_a_nat_that_changes", behind_a_nat_that_changes),
    ("wireguard::a_peer_that_begins_anew", a_peer_that_begins_anew),
    ("wireguard::renamed_by_a_reload", renamed_by_a_reload),
    ("wireguard::rekeyed_under_load", rekeyed_under_load),
    ("wireguard::rekeyed_by_braid_under_load", rekeyed_by_braid_under_load),
    ("wireguard::rekeyed_by_wireguard_go_under_load", rekeyed_by_wireguard_go_under_load),
    ("wireguard::flooded_by_strangers", flooded_by_strangers),
    ("wireguard::doctor_names_what_is_wrong", doctor_names_what_is_wrong),
];

const TRANSFER: Duration = Duration::from_secs(20);
/// What userspace peers carry on a busy machine without dropping any.
const LOAD: Load = Load::told_apart(16, 1);

/// What a preshared key of both sides is.
const PRESHARED: &str = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=";

/// Keys of both ends.
struct Pairs {
    braid: Keys,
    peer: Keys,
}

impl Pairs {
    fn generate(topology: &Topology) -> Result<Self> {
        Ok(Self { braid: Keys::generate(&topology.gateway_a)?, peer: Keys::generate(&topology.gateway_b)? })
    }
}

/// Braid at A's end, as its configuration says it; `more` are lines of `[tunnel.wireguard]`.
fn braid(outer: &[String; 2], keys: &Pairs, role: &str, more: &str) -> String {
    let [local, remote] = outer;
    let remote = if remote.is_empty() { String::new() } else { format!("remote = \"{remote}\"\n") };
    format!(
        "[gateway]\nname = \"gateway-a\"\nsource = [\"10.1.0.1\", \"fd00:1::1\"]\n\
         \n[[tunnel]]\nname = \"wg\"\ntype = \"wireguard\"\nrole = \"{role}\"\nlocal = \"{local}\"\n{remote}\
         inside = [\"169.254.10.2/30\", \"fd00:ffff::2/126\"]\nprobe = \"200ms\"\n\
         \n[tunnel.wireguard]\nprivate-key = \"{}\"\npeer-public-key = \"{}\"\n{more}\
         \n[[route]]\nprefix = \"{NET_B}\"\nvia = [\"wg\"]\n\
         \n[[route]]\nprefix = \"{NET_B6}\"\nvia = [\"wg\"]\n",
        keys.braid.private, keys.peer.public
    )
}

/// The peer at B's end; `endpoint` may be empty: it waits.
fn peer(
    topology: &Topology,
    implementation: Implementation,
    keys: &Pairs,
    endpoint: &str,
    more: &str,
) -> Result<Wireguard> {
    let addresses = ["169.254.10.1/30", "fd00:ffff::1/126"];
    let peer = Wireguard::start(&topology.gateway_b, implementation, MTU, &addresses, &[NET_A, NET_A6])?;
    let endpoint = if endpoint.is_empty() { String::new() } else { format!("Endpoint = {endpoint}\n") };
    peer.configure(&format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
         [Peer]\nPublicKey = {}\n{endpoint}{more}\
         AllowedIPs = {NET_A}, {NET_A6}, 169.254.10.2/32, fd00:ffff::2/128\n",
        keys.peer.private, keys.braid.public
    ))?;
    Ok(peer)
}

fn with_wireguard_go() -> Outcome {
    either_begins(Implementation::Go)
}

fn with_boringtun() -> Outcome {
    either_begins(Implementation::Boringtun)
}

/// Either side begins, outside of either family, with a preshared key and without.
fn either_begins(implementation: Implementation) -> Outcome {
    for (braid_begins, v6) in [(true, false), (false, false), (true, true), (false, true)] {
        let topology = Topology::builder().build()?;
        let path = &topology.paths[0];
        let keys = Pairs::generate(&topology)?;
        let (a, b) = if v6 {
            (format!("[{}]", path.a6), format!("[{}]", path.b6))
        } else {
            (path.a.to_string(), path.b.to_string())
        };
        let bare = |address: &str| address.trim_matches(['[', ']']).to_owned();
        let secret = if v6 { format!("preshared-key = \"{PRESHARED}\"\n") } else { String::new() };
        let line = if v6 { format!("PresharedKey = {PRESHARED}\n") } else { String::new() };
        let (role, remote, endpoint, keepalive) = match braid_begins {
            true => ("initiate", bare(&b), String::new(), ""),
            false => ("respond", String::new(), format!("{a}:{PORT}"), "PersistentKeepalive = 1\n"),
        };
        let _peer = peer(&topology, implementation, &keys, &endpoint, &(line + keepalive))?;
        let text = braid(&[bare(&a), remote], &keys, role, &secret);
        let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
        gateway.wait_up(START)?;
        let status = gateway.status()?;
        let tunnel = &status["tunnels"][0];
        assert_eq!(tunnel["type"], "wireguard");
        assert_eq!(tunnel["mtu"], if v6 { 1420 } else { 1440 });
        assert_eq!(tunnel["wireguard"]["peer_public_key"], keys.peer.public.as_str());
        assert!(tunnel["wireguard"]["last_handshake_s"].as_f64().is_some_and(|age| age < 30.0), "{tunnel}");
        carries(&topology)?;
        let drops = gateway.drops()?;
        assert_eq!(beside_setup(&drops), ["none"; 0], "{drops:?}");
    }
    Ok(())
}

/// Reasons for drops that have nothing to do with coming up, multicast of the kernel's, or what is too big.
fn beside_setup(drops: &BTreeMap<String, u64>) -> Vec<&str> {
    const SETUP: [&str; 4] = ["no_session", "unknown_peer", "not_routable", "too_big"];
    drops.keys().map(String::as_str).filter(|reason| !SETUP.contains(reason)).collect()
}

/// Content crosses both ways, over IPv4 and IPv6.
fn carries(topology: &Topology) -> Outcome {
    for address in [SERVER, SERVER6] {
        let result = ping(&topology.client, address, &Pings { size: 1000, ..Pings::default() })?;
        assert_eq!(result.rtt_ms.len(), 3, "pings to {address}");
    }
    for reverse in [false, true] {
        content::tcp(&topology.client, &topology.server, SERVER, 2_000_000, reverse, TRANSFER)?;
    }
    Ok(())
}

/// A tunnel of fixed keys becomes one of WireGuard; the keys are new in each run.
fn as_wireguard(text: &str, tunnel: usize, path: &OuterPath, side: Side, keys: &Pairs) -> String {
    let (own, other) = if side == Side::A { (&keys.braid, &keys.peer) } else { (&keys.peer, &keys.braid) };
    let marker = format!("name = \"t{tunnel}\"\n");
    let mut out = String::new();
    for (index, part) in text.split("[[tunnel]]\n").enumerate() {
        if index > 0 {
            out += "[[tunnel]]\n";
        }
        let Some((head, tail)) = part.split_once("[tunnel.manual]").filter(|_| part.starts_with(&marker))
        else {
            out += part;
            continue;
        };
        assert!(head.contains(&path.a.to_string()));
        out += &head.replace("type = \"ipsec\"", "type = \"wireguard\"");
        out += &format!(
            "[tunnel.wireguard]\nprivate-key = \"{}\"\npeer-public-key = \"{}\"\n",
            own.private, other.public
        );
        let rest = tail.find("\n[").map_or("", |at| &tail[at..]);
        out += rest;
    }
    out
}

/// Two Braid gateways; the tunnels named are WireGuard.
pub(crate) fn pair(tunnels: usize, of_wireguard: &[usize], edit: impl Fn(String) -> String) -> Result<Pair> {
    let setup = Setup { tunnels, ..Setup::default() };
    let topology = Topology::builder().paths(tunnels).build()?;
    let keys = Pairs::generate(&topology)?;
    let paths = topology.paths.clone();
    Pair::start_edited(&setup, topology, |side, text| {
        let all = of_wireguard.iter();
        edit(all.fold(text, |text, index| as_wireguard(&text, *index, &paths[*index], side, &keys)))
    })
}

/// Everything that crosses ESP crosses WireGuard, padded as it may be.
fn all_sizes_between_braids() -> Outcome {
    let pair = pair(1, &[0], patient)?;
    pings_cross(&pair.topology)?;
    for address in [SERVER, SERVER6] {
        udp_crosses(&pair.topology, address)?;
        for reverse in [false, true] {
            content::tcp(
                &pair.topology.client,
                &pair.topology.server,
                address,
                2_000_000,
                reverse,
                TRANSFER,
            )?;
        }
    }
    for gateway in [&pair.a, &pair.b] {
        let drops = gateway.drops()?;
        assert_eq!(beside_setup(&drops), ["none"; 0], "{drops:?}");
    }
    Ok(())
}

/// One tunnel of each in a group: each takes over for the other, and flows of the healthy one stay.
fn mixed_with_esp() -> Outcome {
    let pair = pair(2, &[1], |text| text)?;
    let topology = &pair.topology;
    for cut in [0, 1] {
        let origin = Instant::now();
        let there = Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?;
        state(&pair, cut, "up")?;
        answers_to_probes(&pair, cut)?;
        let both = ["t0", "t1"].map(|name| packets(&pair.a, name));
        let faults = topology.cut(cut)?;
        state(&pair, cut, "down")?;
        retry_until("flows on the other tunnel", START, || {
            let name = format!("t{}", 1 - cut);
            let now = packets(&pair.a, &name).map_err(|error| error.to_string())?;
            let before = both[1 - cut].as_ref().copied().unwrap_or(0);
            if now > before + 200 { Ok(()) } else { Err(format!("{name}: {before} then {now}")) }
        })?;
        for fault in faults {
            fault.undo()?;
        }
        state(&pair, cut, "up")?;
        let log = there.finish()?;
        // Detection takes 150 to 200 ms of one of two tunnels.
        assert!(log.lost().len() < log.sent() / 4, "{} of {} lost", log.lost().len(), log.sent());
    }
    Ok(())
}

fn state(pair: &Pair, tunnel: usize, wanted: &str) -> Outcome {
    retry_until("the tunnel's state", START, || {
        for gateway in [&pair.a, &pair.b] {
            let status = gateway.status().map_err(|error| error.to_string())?;
            let found = &status["tunnels"][tunnel];
            if found["state"] != wanted {
                return Err(found.to_string());
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn packets(gateway: &Gateway, tunnel: &str) -> Result<u64> {
    let status = gateway.status()?;
    let tunnels = status["tunnels"].as_array().cloned().unwrap_or_default();
    let found = tunnels.iter().find(|found| found["name"] == tunnel);
    Ok(found.and_then(|found| found["tx_packets"].as_u64()).unwrap_or(0))
}

/// Killed, control loses no packet; killed, the core has a new session within a second.
fn killed_and_back() -> Outcome {
    let mut pair = pair(1, &[0], patient)?;
    let origin = Instant::now();
    let there = Paced::start(&pair.topology.client, &pair.topology.server, SERVER, LOAD, origin)?;
    let back = Paced::start(&pair.topology.server, &pair.topology.client, CLIENT, LOAD, origin)?;
    kill_part(&pair.topology.gateway_a, "braid-control")?;
    pair.a.wait_up(START)?;
    let handshakes = |gateway: &Gateway| {
        Result::Ok(gateway.status()?["tunnels"][0]["wireguard"]["handshakes"].as_u64().unwrap_or(0))
    };
    assert_eq!(handshakes(&pair.a)?, handshakes(&pair.b)?, "control began anew");
    for log in [there.finish()?, back.finish()?] {
        assert_eq!((log.lost().len(), log.damaged), (0, 0), "{:?}", log.flaw());
    }
    let killed = Instant::now();
    kill_part(&pair.topology.gateway_a, "braid-dataplane")?;
    retry_until("traffic after the core's death", START, || {
        let one = Pings { count: 1, ..Pings::default() };
        match ping(&pair.topology.client, SERVER, &one) {
            Ok(result) if !result.rtt_ms.is_empty() => Ok(()),
            Ok(_) => Err("no answer".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })?;
    let took = killed.elapsed();
    // The aim is a second; a ping that fell into it waits for one more, and a first message that came too early is
    // sent again after five.
    assert!(took < Duration::from_secs(8), "{took:?}");
    Ok(())
}

/// The peer follows what is authentic, and Braid does.
fn behind_a_nat_that_changes() -> Outcome {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let keys = Pairs::generate(&topology)?;
    masquerade(&topology, 20_000)?;
    let peer = peer(&topology, Implementation::Go, &keys, "", "")?;
    let text = braid(&[path.a.to_string(), path.b.to_string()], &keys, "initiate", "keepalive = \"1s\"\n");
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    gateway.wait_up(START)?;
    carries(&topology)?;
    assert!(peer.show("endpoints")?.contains(":20"), "not through the NAT's port");
    let handshakes = gateway.status()?["tunnels"][0]["wireguard"]["handshakes"].clone();
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    internet.nft("delete table ip mapping")?;
    // An address that goes takes the mappings with it.
    internet.ip("addr del 198.51.100.2/30 dev b0")?;
    internet.ip("addr add 198.51.100.2/30 dev b0")?;
    masquerade(&topology, 30_000)?;
    carries(&topology)?;
    let endpoints = peer.show("endpoints")?;
    assert!(endpoints.contains(":30"), "still at the old mapping: {endpoints}");
    assert_eq!(
        gateway.status()?["tunnels"][0]["wireguard"]["handshakes"],
        handshakes,
        "followed, not begun anew"
    );
    Ok(())
}

/// Under another name the tunnel is another, which has the peer as soon as the core has let go of the first.
fn renamed_by_a_reload() -> Outcome {
    let mut pair = pair(1, &[0], patient)?;
    let text = std::fs::read_to_string(pair.a.configuration())?;
    pair.a.write_configuration(&text.replace("\"t0\"", "\"renamed\""))?;
    // The core refuses it at first.
    pair.a.braid(&["reload"])?;
    pair.a.wait_up(START)?;
    assert_eq!(pair.a.status()?["tunnels"][0]["name"], "renamed");
    content::tcp(&pair.topology.client, &pair.topology.server, SERVER, 1_000_000, false, TRANSFER)?;
    Ok(())
}

/// A peer that has lost its session, and does not begin, is called as soon as it no longer answers probes.
fn a_peer_that_begins_anew() -> Outcome {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let keys = Pairs::generate(&topology)?;
    let text = braid(&[path.a.to_string(), path.b.to_string()], &keys, "initiate", "");
    let first = peer(&topology, Implementation::Go, &keys, "", "")?;
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    gateway.wait_up(START)?;
    retry_until("an answered probe, which gives probes their vote", START, || {
        let status = gateway.status().map_err(|error| error.to_string())?;
        let answered = status["tunnels"][0]["probes_answered"].as_u64();
        if answered > Some(0) { Ok(()) } else { Err(status.to_string()) }
    })?;
    drop(first);
    let _second = peer(&topology, Implementation::Go, &keys, "", "")?;
    let begun = Instant::now();
    retry_until("traffic with the peer's next life", START, || {
        let one = Pings { count: 1, ..Pings::default() };
        match ping(&topology.client, SERVER, &one) {
            Ok(result) if !result.rtt_ms.is_empty() => Ok(()),
            Ok(_) => Err("no answer".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })?;
    // Boringtun by itself takes fifteen seconds; a first message that came too early is sent again after five.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
    Ok(())
}

/// New sessions, by either side, while packets cross: none is lost, none comes twice or late.
fn rekeyed_under_load() -> Outcome {
    let pair = pair(1, &[0], patient)?;
    pair.topology.keep_flows_in_order()?;
    let loads = both_ways(&pair.topology)?;
    // More than boringtun keeps sessions for, several times over.
    for round in 0..100 {
        let gateway = if round % 2 == 0 { &pair.a } else { &pair.b };
        let before = handshakes(gateway)?;
        gateway.rekey("t0", false)?;
        another_session(gateway, before, START)?;
    }
    unharmed(loads)
}

fn both_ways(topology: &Topology) -> Result<[Paced; 2]> {
    let origin = Instant::now();
    let there = Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?;
    Ok([there, Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?])
}

fn unharmed(loads: [Paced; 2]) -> Outcome {
    for load in loads {
        let log = load.finish()?;
        assert!(log.sent() > 200, "{}", log.sent());
        assert_eq!(log.flaw(), None);
    }
    Ok(())
}

fn handshakes(gateway: &Gateway) -> Result<u64> {
    Ok(gateway.status()?["tunnels"][0]["wireguard"]["handshakes"].as_u64().unwrap_or(0))
}

fn another_session(gateway: &Gateway, before: u64, patience: Duration) -> Result<()> {
    retry_until("another session", patience, || match handshakes(gateway) {
        Ok(now) if now > before => Ok(()),
        Ok(now) => Err(format!("{now} handshakes")),
        Err(error) => Err(error.to_string()),
    })
}

/// The other end takes each new session into use as the packets come.
fn rekeyed_by_braid_under_load() -> Outcome {
    for implementation in [Implementation::Go, Implementation::Boringtun] {
        let topology = Topology::builder().build()?;
        let path = &topology.paths[0];
        let keys = Pairs::generate(&topology)?;
        let _peer = peer(&topology, implementation, &keys, "", "")?;
        let text = braid(&[path.a.to_string(), path.b.to_string()], &keys, "initiate", "");
        let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
        gateway.wait_up(START)?;
        topology.keep_flows_in_order()?;
        let loads = both_ways(&topology)?;
        for _ in 0..10 {
            let before = handshakes(&gateway)?;
            gateway.rekey("wg", false)?;
            another_session(&gateway, before, START)?;
            // Initiations that follow each other closely are not answered.
            std::thread::sleep(Duration::from_millis(200));
        }
        unharmed(loads)?;
    }
    Ok(())
}

/// After two minutes, as the protocol has it (whitepaper section 6.2).
fn rekeyed_by_wireguard_go_under_load() -> Outcome {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let keys = Pairs::generate(&topology)?;
    let endpoint = format!("{}:{PORT}", path.a);
    let _peer = peer(&topology, Implementation::Go, &keys, &endpoint, "PersistentKeepalive = 1\n")?;
    let text = braid(&[path.a.to_string(), String::new()], &keys, "respond", "");
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    gateway.wait_up(START)?;
    let before = handshakes(&gateway)?;
    topology.keep_flows_in_order()?;
    let loads = both_ways(&topology)?;
    another_session(&gateway, before, Duration::from_secs(150))?;
    unharmed(loads)
}

/// Ten thousand initiations a second with a right first MAC, from whoever has read our public key: an established
/// tunnel loses nothing, and each is counted.
fn flooded_by_strangers() -> Outcome {
    const RATE: u32 = 10_000;
    const SECONDS: u32 = 3;
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let keys = Pairs::generate(&topology)?;
    let peer = peer(&topology, Implementation::Go, &keys, "", "")?;
    let text = braid(&[path.a.to_string(), path.b.to_string()], &keys, "initiate", "");
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    gateway.wait_up(START)?;
    let initiations: Vec<Vec<u8>> = strangers(&keys.braid.public, 64);
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let to = format!("{}:{PORT}", path.a);
    let socket = internet.enter(|| UdpSocket::bind("192.0.2.2:0"))??;
    let few = Load::told_apart(16, 1);
    let there = Paced::start(&topology.client, &topology.server, SERVER, few, Instant::now())?;
    let (start, mut sent) = (Instant::now(), 0_u32);
    while start.elapsed() < Duration::from_secs(SECONDS.into()) {
        let due = (start.elapsed().as_secs_f64() * f64::from(RATE)) as u32;
        while sent < due {
            // A full buffer is the flood's own fault.
            let _ = socket.send_to(&initiations[sent as usize % initiations.len()], &to);
            sent += 1;
        }
        std::thread::yield_now();
    }
    let log = there.finish()?;
    assert_eq!((log.lost().len(), log.damaged), (0, 0), "{:?}", log.flaw());
    let drops = gateway.drops()?;
    let of = |reason: &str| drops.get(reason).copied().unwrap_or(0);
    let counted = of("unknown_peer") + of("handshake_load");
    assert!(counted > u64::from(sent) * 9 / 10, "{sent} sent: {drops:?}");
    assert!(of("handshake_load") > of("unknown_peer"), "nobody had to prove its address: {drops:?}");
    assert!(peer.show("latest-handshakes")?.split_whitespace().nth(1).is_some_and(|at| at != "0"));
    Ok(())
}

/// Initiations to this public key by keys that nobody knows.
fn strangers(to: &str, count: usize) -> Vec<Vec<u8>> {
    let to: [u8; 32] = BASE64_STANDARD.decode(to).expect("base64").try_into().expect("32 bytes");
    let initiation = |number: usize| {
        let mut key = [3; 32];
        key[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
        let mut tunn =
            Tunn::new(StaticSecret::from(key), PublicKey::from(to), None, None, number as u32, None);
        let mut out = [0; 148];
        match tunn.format_handshake_initiation(&mut out, false) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    };
    (0..count).map(initiation).collect()
}

/// A key of nobody's, another preshared key, and a peer that is not there.
fn doctor_names_what_is_wrong() -> Outcome {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let keys = Pairs::generate(&topology)?;
    let other = Keys::generate(&topology.gateway_a)?;
    let outer = [path.a.to_string(), path.b.to_string()];
    let unknown = Pairs { braid: keys.braid.clone(), peer: other };
    let cases = [
        (&unknown, "initiate", "", "tunnel.wireguard.peer-public-key"),
        (
            &keys,
            "initiate",
            "preshared-key = \"/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=\"\n",
            "tunnel.wireguard",
        ),
    ];
    for (configured, role, more, key) in cases {
        let _peer = peer(
            &topology,
            Implementation::Go,
            &keys,
            &format!("{}:{PORT}", path.a),
            "PersistentKeepalive = 1\n",
        )?;
        let gateway = Gateway::start(&topology.gateway_a, &braid(&outer, configured, role, more))?;
        said(&gateway, key)?;
    }
    let gateway = Gateway::start(&topology.gateway_a, &braid(&outer, &keys, "initiate", ""))?;
    let found = said(&gateway, "remote")?;
    assert!(found.contains(&keys.braid.public), "our public key is what the peer must have: {found}");
    Ok(())
}

/// What doctor says once its finding concerns this key.
fn said(gateway: &Gateway, key: &str) -> Result<String> {
    retry_until("doctor's finding", START, || {
        let ran = gateway.braid(&["doctor", "--json"]).map_err(|error| error.to_string())?;
        let report: serde_json::Value =
            serde_json::from_str(&ran.stdout).map_err(|error| format!("{error}: {}", ran.stderr))?;
        let finding = &report["tunnels"][0]["findings"][0];
        if finding["key"] == key { Ok(finding.to_string()) } else { Err(report.to_string()) }
    })
}

/// Two peers behind one port and one private key of Braid's, each with its own address and network.
fn peers_on_one_port() -> Outcome {
    let topology = Topology::builder().paths(2).build()?;
    let keys = Pairs::generate(&topology)?;
    let second = Keys::generate(&topology.gateway_b)?;
    let third = Netns::new("road")?;
    topology.internet.as_ref().ok_or("no internet")?.veth("road0", &third, "eth0", 1500)?;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    internet.address("road0", "203.0.113.1/30")?;
    third.address("eth0", "203.0.113.2/30")?;
    third.ip("route add default via 203.0.113.1")?;
    topology.gateway_a.ip("route add 203.0.113.0/30 via 192.0.2.2 dev wan0")?;
    let tunnel = |name: &str, host: u8, peer: &Keys| {
        format!(
            "\n[[tunnel]]\nname = \"{name}\"\ntype = \"wireguard\"\nrole = \"respond\"\nlocal = \"{}\"\n\
             inside = \"10.9.0.1/24\"\npeer-inside = \"10.9.0.{host}\"\nprobe = \"200ms\"\n\
             \n[tunnel.wireguard]\nprivate-key = \"{}\"\npeer-public-key = \"{}\"\n",
            topology.paths[0].a, keys.braid.private, peer.public
        )
    };
    let text = format!(
        "[gateway]\nname = \"hub\"\nsource = \"10.1.0.1\"\n{}{}\n[[route]]\nprefix = \"{NET_B}\"\nvia = [\"site\"]\n",
        tunnel("site", 2, &keys.peer),
        tunnel("road", 3, &second)
    );
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    let start = |netns: &Netns, own: &Keys, host: u8| -> Result<Wireguard> {
        let address = format!("10.9.0.{host}/24");
        let peer = Wireguard::start(netns, Implementation::Go, MTU, &[&address], &[NET_A])?;
        peer.configure(&format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
             [Peer]\nPublicKey = {}\nEndpoint = {}:{PORT}\nPersistentKeepalive = 1\n\
             AllowedIPs = {NET_A}, 10.9.0.1/32\n",
            own.private, keys.braid.public, topology.paths[0].a
        ))?;
        Ok(peer)
    };
    let _site = start(&topology.gateway_b, &keys.peer, 2)?;
    let _road = start(&third, &second, 3)?;
    gateway.wait_up(START)?;
    content::tcp(&topology.client, &topology.server, SERVER, 1_000_000, false, TRANSFER)?;
    for (from, host) in [(&third, CLIENT), (&topology.client, "10.9.0.3")] {
        let result = ping(from, host, &Pings::default())?;
        assert_eq!(result.rtt_ms.len(), 3, "pings to {host}");
    }
    // Nobody sends from another's address (the routes decide who has it).
    third.address("wg0", "10.2.0.77/32")?;
    third
        .run(&["ping", "-c", "3", "-i", "0.2", "-W", "1", "-I", "10.2.0.77", CLIENT])
        .map_err(drop)
        .unwrap_err();
    let drops = gateway.drops()?;
    assert!(drops.get("source_not_allowed").is_some_and(|count| *count >= 3), "{drops:?}");
    Ok(())
}

fn keys_are_those_of_wg() -> Outcome {
    let (braid, wg) = (binary("braid")?, Path::new("wg").to_owned());
    for maker in [&braid, &wg] {
        for _ in 0..8 {
            let private = ask(maker, "genkey", "")?;
            let public = ask(&wg, "pubkey", &private)?;
            assert_eq!(ask(&braid, "pubkey", &private)?, public);
            assert_eq!(ask(maker, "genpsk", "")?.len(), public.len());
        }
    }
    Ok(())
}

/// What a program prints for this input.
fn ask(
    program: &Path,
    command: &str,
    input: &str,
) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let mut asked = Command::new(program);
    asked.arg(command).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = asked.spawn()?;
    child.stdin.take().ok_or("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    assert!(output.status.success(), "{} {command}: {}", program.display(), output.status);
    Ok(String::from_utf8(output.stdout)?)
}

//! WireGuard against Debian's wireguard-go and boringtun-cli, its keys against Debian's wireguard-tools, and
//! between two Braid gateways.

use crate::clients::road;
use crate::failover::{answers_to_probes, cut_one_and_restore};
use crate::kernel::kill_part;
use crate::pair::{Pair, START, Setup, Side, patient};
use crate::tunnel::{pings_cross, udp_crosses};
use crate::wireguard_rekey::{both_ways, handshakes};
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
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("wireguard::keys_are_those_of_wg", keys_are_those_of_wg),
    ("wireguard::with_wireguard_go", with_wireguard_go),
    ("wireguard::with_boringtun", with_boringtun),
    ("wireguard::peers_on_one_port", peers_on_one_port),
    ("wireguard::all_sizes_between_braids", all_sizes_between_braids),
    ("wireguard::mixed_with_esp", mixed_with_esp),
    ("wireguard::killed_and_back", killed_and_back),
    ("wireguard::a_peer_that_begins_anew", a_peer_that_begins_anew),
    ("wireguard::renamed_by_a_reload", renamed_by_a_reload),
    ("wireguard::doctor_names_what_is_wrong", doctor_names_what_is_wrong),
];

const TRANSFER: Duration = Duration::from_secs(20);
/// What userspace peers carry on a busy machine without dropping any.
pub(crate) const LOAD: Load = Load::told_apart(16, 1);

/// What a preshared key of both sides is.
const PRESHARED: &str = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=";

/// Keys of both ends.
pub(crate) struct Pairs {
    pub(crate) braid: Keys,
    pub(crate) peer: Keys,
}

impl Pairs {
    pub(crate) fn generate(topology: &Topology) -> Result<Self> {
        Ok(Self { braid: Keys::generate(&topology.gateway_a)?, peer: Keys::generate(&topology.gateway_b)? })
    }
}

/// Braid at A's end, as its configuration says it; `more` are lines of `[tunnel.wireguard]`.
pub(crate) fn braid(outer: &[String; 2], keys: &Pairs, role: &str, more: &str) -> String {
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
pub(crate) fn peer(
    topology: &Topology,
    implementation: Implementation,
    keys: &Pairs,
    endpoint: &str,
    more: &str,
) -> Result<Wireguard> {
    peer_routed(topology, implementation, keys, (endpoint, more), &[NET_A, NET_A6])
}

/// The same with these routes into its device.
pub(crate) fn peer_routed(
    topology: &Topology,
    implementation: Implementation,
    keys: &Pairs,
    (endpoint, more): (&str, &str),
    routes: &[&str],
) -> Result<Wireguard> {
    let addresses = ["169.254.10.1/30", "fd00:ffff::1/126"];
    let peer = Wireguard::start(&topology.gateway_b, implementation, MTU, &addresses, routes)?;
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

/// Waits for the first answer.
pub(crate) fn answered(from: &Netns, to: &str) -> Result<()> {
    retry_until(&format!("an answer of {to}"), START, || {
        match ping(from, to, &Pings { count: 1, ..Pings::default() }) {
            Ok(result) if !result.rtt_ms.is_empty() => Ok(()),
            Ok(_) => Err("none".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })
}

/// Content crosses both ways, over IPv4 and IPv6.
pub(crate) fn carries(topology: &Topology) -> Outcome {
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
    let topology = Topology::builder().paths(tunnels).build()?;
    let keys = Pairs::generate(&topology)?;
    pair_of(topology, &keys, of_wireguard, edit)
}

/// The same on a network that is there, with these keys; A's are those of `braid`. Each path has a tunnel.
pub(crate) fn pair_of(
    topology: Topology,
    keys: &Pairs,
    of_wireguard: &[usize],
    edit: impl Fn(String) -> String,
) -> Result<Pair> {
    let setup = Setup { tunnels: topology.paths.len(), ..Setup::default() };
    let paths = topology.paths.clone();
    Pair::start_edited(&setup, topology, |side, text| {
        let all = of_wireguard.iter();
        edit(all.fold(text, |text, index| as_wireguard(&text, *index, &paths[*index], side, keys)))
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

/// One tunnel of each in a group: each takes over for the other, and flows of the healthy one stay, those that begin in
/// the meantime as well.
fn mixed_with_esp() -> Outcome {
    let during = LOAD.at_port(40_000).of_tos(0x20);
    let pair = pair(2, &[1], |text| text)?;
    let Topology { client, server, .. } = &pair.topology;
    for cut in [0, 1] {
        for tunnel in [0, 1] {
            answers_to_probes(&pair, tunnel)?;
        }
        let causes = cut_one_and_restore(&pair, (cut, 2), SERVER, |restored| {
            if restored {
                return Ok(());
            }
            let origin = Instant::now();
            let there = Paced::start(client, server, SERVER, during, origin)?;
            let back = Paced::start(server, client, CLIENT, during, origin)?;
            sleep(Duration::from_secs(1));
            for load in [there, back] {
                let log = load.finish()?;
                assert_eq!(log.flaw(), None, "begun while tunnel {cut} was cut");
            }
            Ok(())
        })?;
        assert_eq!(causes, ["probe", "probe"]);
    }
    Ok(())
}

/// Killed, control loses no packet; killed, the core has a new session and carries traffic within a second.
fn killed_and_back() -> Outcome {
    const KILLS: usize = 3;
    let mut pair = pair(1, &[0], patient)?;
    let loads = both_ways(&pair.topology)?;
    kill_part(&pair.topology.gateway_a, "braid-control")?;
    pair.a.wait_up(START)?;
    assert_eq!(handshakes(&pair.a)?, handshakes(&pair.b)?, "control began anew");
    for load in loads {
        let log = load.finish()?;
        assert_eq!((log.lost().len(), log.damaged), (0, 0), "{:?}", log.flaw());
    }
    let mut gaps = Vec::new();
    for _ in 0..KILLS {
        gaps.push(gap_of_a_killed_core(&pair)?);
        pair.a.wait_up(START)?;
    }
    gaps.sort();
    // The machine may have had something else to do once.
    assert!(gaps[KILLS / 2] <= Duration::from_secs(1), "{gaps:?}");
    Ok(())
}

/// For how long nothing arrived, in the direction in which it was longer.
fn gap_of_a_killed_core(pair: &Pair) -> Result<Duration> {
    let Topology { client, server, gateway_a, .. } = &pair.topology;
    let origin = Instant::now();
    let there = Paced::start(client, server, SERVER, LOAD, origin)?;
    let back = Paced::start(server, client, CLIENT, LOAD, origin)?;
    sleep(Duration::from_millis(300));
    kill_part(gateway_a, "braid-dataplane")?;
    answered(client, SERVER)?;
    sleep(Duration::from_millis(300));
    let end = origin.elapsed();
    Ok(there.finish()?.longest_gap(end).max(back.finish()?.longest_gap(end)))
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
    answered(&topology.client, SERVER)?;
    // Boringtun by itself takes fifteen seconds; a first message that came too early is sent again after five.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
    Ok(())
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

/// Two peers behind one port of Braid's, each with its own address and network: of one private key outside of either
/// family, and of a private key each.
fn peers_on_one_port() -> Outcome {
    for (v6, two_keys) in [(false, false), (true, false), (true, true)] {
        each_has_its_own(v6, two_keys)
            .map_err(|error| format!("over IPv6: {v6}, two keys: {two_keys}: {error}"))?;
    }
    Ok(())
}

fn each_has_its_own(v6: bool, two_keys: bool) -> Outcome {
    let topology = Topology::builder().build()?;
    let keys = Pairs::generate(&topology)?;
    let second = Pairs::generate(&topology)?;
    let second = Pairs { braid: if two_keys { &second } else { &keys }.braid.clone(), peer: second.peer };
    let third = road(&topology)?;
    let path = &topology.paths[0];
    let (local, endpoint) = match v6 {
        true => (path.a6.to_string(), format!("[{}]:{PORT}", path.a6)),
        false => (path.a.to_string(), format!("{}:{PORT}", path.a)),
    };
    let tunnel = |name: &str, host: u8, keys: &Pairs| {
        format!(
            "\n[[tunnel]]\nname = \"{name}\"\ntype = \"wireguard\"\nrole = \"respond\"\nlocal = \"{local}\"\n\
             inside = \"10.9.0.1/24\"\npeer-inside = \"10.9.0.{host}\"\nprobe = \"200ms\"\n\
             \n[tunnel.wireguard]\nprivate-key = \"{}\"\npeer-public-key = \"{}\"\n",
            keys.braid.private, keys.peer.public
        )
    };
    let text = format!(
        "[gateway]\nname = \"hub\"\nsource = \"10.1.0.1\"\n{}{}\n[[route]]\nprefix = \"{NET_B}\"\nvia = [\"site\"]\n",
        tunnel("site", 2, &keys),
        tunnel("road", 3, &second)
    );
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    let start = |netns: &Netns, keys: &Pairs, host: u8| -> Result<Wireguard> {
        let address = format!("10.9.0.{host}/24");
        let peer = Wireguard::start(netns, Implementation::Go, MTU, &[&address], &[NET_A])?;
        peer.configure(&format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
             [Peer]\nPublicKey = {}\nEndpoint = {endpoint}\nPersistentKeepalive = 1\n\
             AllowedIPs = {NET_A}, 10.9.0.1/32\n",
            keys.peer.private, keys.braid.public
        ))?;
        Ok(peer)
    };
    let _site = start(&topology.gateway_b, &keys, 2)?;
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

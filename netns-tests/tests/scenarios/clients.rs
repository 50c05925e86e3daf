//! People on the road: `braid client`, and what Debian's wireguard-go makes of the configurations it prints.

use crate::kernel::kill_part;
use crate::pair::START;
use braid_netns::clients::Clients;
use braid_netns::gateway::Gateway;
use braid_netns::guard::temp_dir;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, GATEWAY_A, GATEWAY_B, NET_A, NET_B, SERVER};
use braid_netns::traffic::{Pings, ping};
use braid_netns::wireguard::{Implementation, Keys, MTU, PORT, Wireguard};
use braid_netns::{Netns, Ran, Result, Topology, retry_until};
use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("clients::come_and_go", come_and_go),
    ("clients::a_new_core_calls_those_of_the_last", a_new_core_calls_those_of_the_last),
    ("clients::a_thousand", a_thousand),
];

/// Where they call from.
pub(crate) const ROAD: [&str; 2] = ["203.0.113.1", "203.0.113.2"];
const ROAD6: [&str; 2] = ["2001:db8:c::1", "2001:db8:c::2"];

/// Two gateways with a tunnel between them; clients of the first reach its network and the one behind the tunnel,
/// but not what is not theirs to reach, and nobody is disturbed by another's coming or going.
fn come_and_go() -> Outcome {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let (a, b) = (Keys::generate(&topology.gateway_a)?, Keys::generate(&topology.gateway_b)?);
    let own = Keys::generate(&topology.gateway_a)?;
    let tunnel = |local, remote, host, own: &Keys, peer: &Keys| {
        format!(
            "\n[[tunnel]]\nname = \"site\"\ntype = \"wireguard\"\nlocal = \"{local}\"\nremote = \"{remote}\"\n\
             inside = \"169.254.10.{host}/30\"\nprobe = \"200ms\"\n[tunnel.wireguard]\nlisten-port = 51821\n\
             remote-port = 51821\nprivate-key = \"{}\"\npeer-public-key = \"{}\"\n",
            own.private, peer.public
        )
    };
    let text = format!(
        "[gateway]\nname = \"hub\"\nsource = \"{GATEWAY_A}\"\ntransit = true\n{}\
         \n[[route]]\nprefix = \"{NET_B}\"\nvia = [\"site\"]\n\
         \n[clients]\nnetwork = \"10.8.0.0/24\"\nlocal = \"{}\"\nprivate-key = \"{}\"\n\
         reach = [\"10.1.0.2/32\", \"{NET_B}\"]\ndns = \"{CLIENT}\"\nkeepalive = \"1s\"\n",
        tunnel(path.a, path.b, 1, &a, &b),
        path.a,
        own.private
    );
    let mut hub = Gateway::start(&topology.gateway_a, &text)?;
    let far = format!(
        "[gateway]\nname = \"far\"\nsource = \"{GATEWAY_B}\"\n{}\
         \n[[route]]\nprefix = \"{NET_A}\"\nvia = [\"site\"]\n\
         \n[[route]]\nprefix = \"10.8.0.0/24\"\nvia = [\"site\"]\n",
        tunnel(path.b, path.a, 2, &b, &a)
    );
    let mut far = Gateway::start(&topology.gateway_b, &far)?;
    hub.wait_up(START)?;
    far.wait_up(START)?;

    let refused = client(&hub, &["add", "site"])?;
    assert_eq!(refused.status.code(), Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("\"site\" is taken"), "{}", refused.stderr);
    let refused = client(&hub, &["add", "a\"\n[core]"])?;
    assert_eq!((refused.status.code(), refused.stderr.lines().count()), (Some(2), 1), "{}", refused.stderr);
    let road = road(&topology)?;
    let alice = added(&hub, "alice")?;
    assert!(alice.contains("DNS = 10.1.0.2\n") && alice.contains("Address = 10.8.0.2/32\n"), "{alice}");
    let connected = connect(&road, &alice)?;
    state(&hub, "alice", "up")?;
    for host in [CLIENT, SERVER] {
        retry_until("the first answer", START, || {
            match ping(&road, host, &Pings { count: 1, ..Pings::default() }) {
                Ok(result) if !result.rtt_ms.is_empty() => Ok(()),
                Ok(_) => Err(host.to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })?;
        assert_eq!(ping(&road, host, &Pings::default())?.rtt_ms.len(), 3, "pings to {host}");
    }
    // The client's own settings keep nobody from trying.
    road.ip(&format!("route add {GATEWAY_A}/32 dev wg0"))?;
    let peer = alice.lines().find_map(|line| line.strip_prefix("PublicKey = ")).ok_or("no key")?;
    connected.set(&["peer", peer, "allowed-ips", "0.0.0.0/0"])?;
    assert_eq!(
        ping(&road, GATEWAY_A, &Pings::default())?.rtt_ms.len(),
        0,
        "{GATEWAY_A} is not theirs to reach"
    );
    let drops = hub.drops()?;
    assert_eq!(drops.get("destination_not_allowed"), Some(&3), "{drops:?}");

    let handshakes = |name: &str| Result::Ok(tunnel_of(&hub, name)?["wireguard"]["handshakes"].clone());
    let before = [handshakes("alice")?, handshakes("site")?];
    let bob = added(&hub, "bob")?;
    assert!(bob.contains("Address = 10.8.0.3/32\n"), "{bob}");
    let listed = client(&hub, &["list", "--json"])?;
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout)?;
    assert_eq!((&listed[0]["state"], &listed[1]["name"]), (&"up".into(), &"bob".into()), "{listed}");
    let gone = client(&hub, &["remove", "bob"])?;
    assert!(gone.status.success(), "{}", gone.stderr);
    assert_eq!(ping(&road, SERVER, &Pings::default())?.rtt_ms.len(), 3);
    assert_eq!(before, [handshakes("alice")?, handshakes("site")?], "disturbed by another");

    assert!(client(&hub, &["remove", "alice"])?.status.success());
    assert_eq!(ping(&road, SERVER, &Pings::default())?.rtt_ms.len(), 0, "a removed client is still let in");
    let unknown = client(&hub, &["remove", "alice"])?;
    assert_eq!((unknown.status.code(), unknown.stderr.contains("there is none")), (Some(1), true));
    Ok(())
}

/// A client that only sends would notice after fifteen seconds (whitepaper section 6.5) that the gateway has lost its
/// session, and the gateway has no address of it.
fn a_new_core_calls_those_of_the_last() -> Outcome {
    let topology = Topology::builder().build()?;
    let key = Keys::generate(&topology.gateway_a)?.private;
    let text = format!(
        "[gateway]\nname = \"hub\"\nsource = \"{GATEWAY_A}\"\n\
         [clients]\nnetwork = \"10.8.0.0/24\"\nlocal = \"{}\"\nprivate-key = \"{key}\"\n\
         reach = [\"{NET_A}\"]\nkeepalive = \"off\"\n",
        topology.paths[0].a,
    );
    let mut hub = Gateway::start(&topology.gateway_a, &text)?;
    let road = road(&topology)?;
    let alice = added(&hub, "alice")?;
    let _connected = connect(&road, &alice)?;
    let answered = || {
        let one = Pings { count: 1, ..Pings::default() };
        match ping(&road, CLIENT, &one) {
            Ok(result) if !result.rtt_ms.is_empty() => Ok(()),
            Ok(_) => Err("no answer".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    };
    retry_until("the first answer", START, answered)?;
    // The core says so within a second.
    hub.process().wait_for_output("tunnel alice: the peer is now at", START)?;
    for _ in 0..2 {
        kill_part(&topology.gateway_a, "braid-dataplane")?;
        let killed = Instant::now();
        retry_until("traffic after the core's death", START, answered)?;
        // The aim is a second; a ping that fell into it waits for one more, and a message that came too early is sent
        // again after five.
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(8), "{took:?}");
    }
    Ok(())
}

/// They call a hundred at a time and reach the network behind the gateway, each with its own answers; nobody is disturbed by
/// another's coming or going, and all are back after the core's death.
fn a_thousand() -> Outcome {
    const COUNT: u16 = 1000;
    const REMOVED: usize = 500;
    /// What a client notices by itself takes it fifteen seconds.
    const SOON: Duration = Duration::from_secs(8);
    let topology = Topology::builder().build()?;
    let clients = Clients::generate(COUNT)?;
    let directory = temp_dir("clients")?;
    let list = directory.path().join("clients.toml");
    clients.write(&list)?;
    let text = format!(
        "[gateway]\nname = \"hub\"\nsource = \"{GATEWAY_A}\"\n\
         [clients]\nnetwork = \"{}\"\nlocal = \"{}\"\nprivate-key = \"{}\"\n\
         reach = [\"{NET_A}\"]\nfile = \"{}\"\n",
        braid_netns::clients::NETWORK,
        topology.paths[0].a,
        clients.gateway_key(),
        list.display(),
    );
    let mut hub = Gateway::start(&topology.gateway_a, &text)?;
    hub.process().wait_for_output("the forwarding core is there", START)?;
    let connected = clients.connect(&road(&topology)?, SocketAddrV4::new(topology.paths[0].a, PORT))?;
    let host = CLIENT.parse()?;
    let reach = |count: u16| {
        connected.ask(host);
        let begun = Instant::now();
        retry_until("an answer for each client", Duration::from_secs(60), || match connected.answered() {
            answered if answered == usize::from(count) => Ok(()),
            answered => Err(format!("{answered} of {count} have one")),
        })?;
        Result::Ok(begun.elapsed())
    };
    reach(COUNT)?;
    retry_until("the address of each client told", START, || {
        match hub.process().stderr().matches("the peer is now at").count() {
            told if told >= usize::from(COUNT) => Ok(()),
            told => Err(format!("{told} of {COUNT} are")),
        }
    })?;
    let handshakes = |hub: &Gateway| {
        let status = hub.status()?;
        let tunnels = status["tunnels"].as_array().cloned().unwrap_or_default();
        let count = |tunnel: &serde_json::Value| {
            (tunnel["name"].to_string(), tunnel["wireguard"]["handshakes"].as_u64())
        };
        Result::Ok(tunnels.iter().map(count).collect::<BTreeMap<_, _>>())
    };
    let mut before = handshakes(&hub)?;
    assert_eq!(before.len(), usize::from(COUNT));
    assert!(before.values().all(|count| *count >= Some(1)), "{before:?}");
    added(&hub, "alice")?;
    assert!(client(&hub, &["remove", "c500"])?.status.success());
    let took = reach(COUNT - 1)?;
    assert!(took < SOON && !connected.has_answer(REMOVED), "{took:?}");
    before.remove("\"c500\"");
    let mut after = handshakes(&hub)?;
    assert_eq!(after.remove("\"alice\""), Some(Some(0)));
    assert_eq!(before, after, "disturbed by another");

    let killed = Instant::now();
    kill_part(&topology.gateway_a, "braid-dataplane")?;
    reach(COUNT - 1)?;
    let took = killed.elapsed();
    // A call that is lost is made again after five.
    assert!(took < SOON, "{took:?}");
    assert_eq!(connected.strays(), 0, "packets that came to others than they were for");
    Ok(())
}

/// A host somewhere else in the internet.
pub(crate) fn road(topology: &Topology) -> Result<Netns> {
    let road = Netns::new("road")?;
    let internet =
        topology.internet.as_ref().ok_or_else(|| braid_netns::Error::Usage("no internet".to_owned()))?;
    internet.veth("road0", &road, "eth0", 1500)?;
    for ([next, own], length, family) in [(ROAD, 30, 4), (ROAD6, 64, 6)] {
        internet.address("road0", &format!("{next}/{length}"))?;
        road.address("eth0", &format!("{own}/{length}"))?;
        road.ip(&format!("-{family} route add default via {next}"))?;
    }
    topology.gateway_a.ip("route add 203.0.113.0/30 via 192.0.2.2 dev wan0")?;
    topology.gateway_a.ip("route add 2001:db8:c::/64 via 2001:db8:a::2 dev wan0")?;
    Ok(road)
}

/// Runs `braid client` with the gateway's own configuration.
fn client(gateway: &Gateway, arguments: &[&str]) -> Result<Ran> {
    let config = gateway.configuration().to_string_lossy().into_owned();
    let (verb, rest) = arguments.split_at(1);
    gateway.braid(&[&["client"], verb, &["--config", &config], rest].concat())
}

/// The configuration that is printed, with the picture that an app reads.
fn added(gateway: &Gateway, name: &str) -> Result<String> {
    let png = gateway.run_dir().join(format!("{name}.png"));
    let ran = client(gateway, &["add", name, "--png", &png.to_string_lossy()])?;
    assert!(ran.status.success(), "{}", ran.stderr);
    assert_eq!(read_qr(&png)?.trim_end(), ran.stdout.trim_end(), "the picture says something else");
    Ok(ran.stdout)
}

/// By ZBar.
fn read_qr(png: &Path) -> Result<String> {
    let mut command = Command::new("zbarimg");
    command.args(["--quiet", "--raw"]).arg(png);
    let read = command.output().map_err(braid_netns::Error::io("cannot run zbarimg"))?;
    Ok(String::from_utf8_lossy(&read.stdout).into_owned())
}

/// As `wg-quick` does it.
fn connect(netns: &Netns, configuration: &str) -> Result<Wireguard> {
    let value = |key: &str| {
        let line = configuration.lines().find_map(|line| line.strip_prefix(key));
        line.map(|value| value.trim_start_matches(" = ").to_owned()).unwrap_or_default()
    };
    let routes = value("AllowedIPs");
    let routes: Vec<&str> = routes.split(", ").collect();
    let peer = Wireguard::start(netns, Implementation::Go, MTU, &[&value("Address")], &routes)?;
    let known = |line: &&str| !line.starts_with("Address") && !line.starts_with("DNS");
    peer.configure(&configuration.lines().filter(known).collect::<Vec<_>>().join("\n"))?;
    Ok(peer)
}

fn tunnel_of(gateway: &Gateway, name: &str) -> Result<serde_json::Value> {
    let status = gateway.status()?;
    let tunnels = status["tunnels"].as_array().cloned().unwrap_or_default();
    Ok(tunnels.into_iter().find(|tunnel| tunnel["name"] == name).unwrap_or_default())
}

fn state(gateway: &Gateway, name: &str, wanted: &str) -> Outcome {
    retry_until("the client's state", START, || {
        let found = tunnel_of(gateway, name).map_err(|error| error.to_string())?;
        if found["state"] == wanted { Ok(()) } else { Err(found.to_string()) }
    })?;
    Ok(())
}

//! Braid at the client's side against Debian's strongSwan at the server's.

use crate::authority::{Authority, KeyKind};
use braid_netns::capture::{Capture, Packet};
use braid_netns::fault::Fault;
use braid_netns::gateway::Gateway;
use braid_netns::paced::{Load, Paced};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::strongswan::{Auth, Connection, Strongswan};
use braid_netns::topology::{CLIENT, NET_A, NET_B, SERVER};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Result, Topology, content, retry_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("strongswan::carries_without_braid", carries_without_braid),
    ("strongswan::braid_initiates", braid_initiates),
    ("strongswan::strongswan_initiates", strongswan_initiates),
    ("strongswan::every_suite_and_group", every_suite_and_group),
    ("strongswan::strongswan_rekeys_under_load", strongswan_rekeys_under_load),
    ("strongswan::braid_rekeys_under_load", braid_rekeys_under_load),
    ("strongswan::a_dead_peer_is_noticed_and_found_again", a_dead_peer_is_noticed_and_found_again),
    ("strongswan::a_braid_that_was_killed_is_taken_back", a_braid_that_was_killed_is_taken_back),
    ("strongswan::through_a_nat", through_a_nat),
    ("strongswan::certificates", certificates),
    ("strongswan::a_chain_longer_than_a_packet", a_chain_longer_than_a_packet),
    ("strongswan::through_loss", through_loss),
    ("strongswan::as_aws_does_it", as_aws_does_it),
];

const START: Duration = Duration::from_secs(20);
const TRANSFER: Duration = Duration::from_secs(20);
const SECRET: &str = "a.key.of_AWS.kind-2026";
const IKE: &str = "aes128-sha256-ecp256";
const ESP: &str = "aes128gcm16";
/// All that both have.
const IKE_SUITES: [&str; 22] = [
    "aes128-sha1-modp2048",
    "aes128-sha256-modp3072",
    "aes128-sha384-modp4096",
    "aes128-sha512-modp6144",
    "aes256-sha1-modp8192",
    "aes256-sha256-ecp256",
    "aes256-sha384-ecp384",
    "aes256-sha512-ecp521",
    "aes128gcm16-prfsha1-modp1024s160",
    "aes128gcm16-prfsha256-modp2048s224",
    "aes256gcm16-prfsha384-modp2048s256",
    "aes256gcm16-prfsha512-curve25519",
    "chacha20poly1305-prfsha256-ecp256",
    "chacha20poly1305-prfsha512-curve25519",
    "aes128-sha1-modp1024",
    "aes128-sha256-modp1536",
    "aes128-sha256-prfsha512-ecp256",
    "aes256-sha1-ecp384",
    "aes128gcm16-prfsha256-ecp256",
    "aes128gcm16-prfsha384-ecp384",
    "aes256gcm16-prfsha256-ecp256",
    "aes256gcm16-prfsha384-ecp384",
];
/// With and without a group of their own.
const ESP_SUITES: [&str; 11] = [
    "aes128gcm16-ecp256",
    "aes256gcm16-curve25519",
    "chacha20poly1305-ecp384",
    "aes128-sha1-modp2048",
    "aes256-sha1-ecp521",
    "aes128-sha256-modp2048s256",
    "aes256-sha256",
    "aes128-sha384-modp3072",
    "aes256-sha384",
    "aes128-sha512-ecp256",
    "aes256-sha512-modp4096",
];
/// As the other end may have been made: from the weakest to the strongest.
const AWS_IKE: [&str; 4] = [
    "aes128-sha1-modp1024",
    "aes256-sha256-modp2048",
    "aes256gcm16-prfsha384-ecp384",
    "aes256gcm16-prfsha512-modp2048s256",
];
const AWS_ESP: [&str; 4] =
    ["aes128-sha1-modp1024", "aes256-sha256-modp2048", "aes256gcm16-ecp384", "aes256gcm16-modp2048s256"];
/// What strongSwan in user space carries on a busy machine without dropping any.
const LOAD: Load = Load::told_apart(16, 1);
const ROUNDS: u64 = 5;
/// Packets each way between two rekeys.
const CARRIED: u64 = 500;
/// A handshake of which many messages are lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// Braid's end, as its configuration says it.
#[derive(Clone)]
struct Braid {
    role: &'static str,
    /// Lines of `[[tunnel]]`.
    tunnel: String,
    /// Lines of `[tunnel.ike]`.
    ike: String,
    proposals: Vec<String>,
    esp_proposals: Vec<String>,
}

impl Default for Braid {
    fn default() -> Self {
        Self {
            role: "initiate",
            tunnel: "probe = \"off\"\n".to_owned(),
            ike: format!("psk = \"{SECRET}\"\n"),
            proposals: vec![IKE.to_owned()],
            esp_proposals: vec![ESP.to_owned()],
        }
    }
}

impl Braid {
    fn text(&self, topology: &Topology) -> String {
        let path = &topology.paths[0];
        format!(
            "[gateway]\nname = \"gateway-a\"\nsource = \"10.1.0.1\"\n\
             \n[[tunnel]]\nname = \"swan\"\ntype = \"ipsec\"\nrole = \"{}\"\nlocal = \"{}\"\nremote = \"{}\"\n\
             inside = \"169.254.10.2/30\"\n{}\
             \n[tunnel.ike]\n{}proposals = {:?}\nesp-proposals = {:?}\n\
             \n[[route]]\nprefix = \"{NET_B}\"\nvia = [\"swan\"]\n",
            self.role, path.a, path.b, self.tunnel, self.ike, self.proposals, self.esp_proposals
        )
    }
}

/// strongSwan's end to fit.
fn swan(topology: &Topology) -> Connection {
    let path = &topology.paths[0];
    Connection {
        local: path.b.to_string(),
        remote: path.a.to_string(),
        local_id: path.b.to_string(),
        remote_id: path.a.to_string(),
        auth: Auth::Psk(SECRET.to_owned()),
        proposals: IKE.to_owned(),
        esp_proposals: ESP.to_owned(),
        local_ts: NET_B.to_owned(),
        remote_ts: NET_A.to_owned(),
        connection: String::new(),
        child: String::new(),
        routes: None,
    }
}

/// Both ends on a network.
struct Both {
    braid: Gateway,
    swan: Strongswan,
    topology: Topology,
}

impl Both {
    /// strongSwan is there first.
    fn start(topology: Topology, braid: &Braid, connection: &Connection) -> Result<Self> {
        let swan = Strongswan::start(&topology.gateway_b, connection)?;
        let braid = Gateway::start(&topology.gateway_a, &braid.text(&topology))?;
        Ok(Self { braid, swan, topology })
    }

    /// Waits until Braid has the tunnel up, saying what both said when it does not come.
    fn wait_up(&mut self) -> Outcome {
        self.braid.wait_up(START).map_err(|error| self.failure(&error.to_string()).into())
    }

    fn failure(&self, what: &str) -> String {
        let status = self.braid.status().unwrap_or_default();
        let log = self.swan.log();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        format!("{what}\nbraid: {} {}\nstrongSwan:\n{}", status["tunnels"], status["drops"], tail.join("\n"))
    }

    /// Waits until the server answers through the tunnel, whoever started it.
    fn wait_crossing(&self) -> Outcome {
        let probe = Pings { count: 1, ..Pings::default() };
        retry_until("a first packet", PATIENCE, || match ping(&self.topology.client, SERVER, &probe) {
            Ok(result) if result.rtt_ms.is_empty() => Err("nothing comes back".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        })
        .map_err(|error| self.failure(&error.to_string()).into())
    }

    /// Pings, and TCP both ways, contents compared; in the middle nothing is seen but IKE and ESP.
    fn carries(&self, bytes: usize) -> Outcome {
        let Topology { client, server, internet, .. } = &self.topology;
        let internet = internet.as_ref().ok_or("no internet")?;
        let capture = Capture::start(internet, "a0", "ip", 96)?;
        self.wait_crossing()?;
        let pings = ping(client, SERVER, &Pings { count: 20, size: 600, ..Pings::default() })?;
        assert_eq!(pings.rtt_ms.len(), 20, "{}", self.failure("pings were lost"));
        for reverse in [false, true] {
            content::tcp(client, server, SERVER, bytes, reverse, TRANSFER)
                .map_err(|error| self.failure(&error.to_string()))?;
        }
        let packets = capture.stop()?;
        let esp = packets.iter().filter(|packet| packet.is_esp_in_udp()).count();
        assert!(esp > 40, "{esp} of {} packets are ESP", packets.len());
        let other = packets.iter().find(|packet| !packet.is_udp_of(&[500, 4500]));
        assert!(other.is_none(), "in clear: {:?}", other.and_then(Packet::headers));
        Ok(())
    }

    /// Kills Braid and starts another.
    fn restart_braid(&mut self, braid: &Braid) -> Result<()> {
        self.braid.process().signal(Signal::SIGKILL);
        self.braid.process().wait(START)?;
        self.braid = Gateway::start(&self.topology.gateway_a, &braid.text(&self.topology))?;
        Ok(())
    }

    /// Waits until Braid has noticed.
    fn wait_down(&self) -> Outcome {
        retry_until("the tunnel down", START, || {
            let tunnel = self.tunnel().map_err(|error| error.to_string())?;
            if tunnel["state"] == "up" { Err(self.failure("still up")) } else { Ok(()) }
        })?;
        Ok(())
    }

    /// Numbered packets both ways.
    fn loads(&self) -> Result<[Paced; 2]> {
        let Topology { client, server, .. } = &self.topology;
        let origin = Instant::now();
        Ok([
            Paced::start(client, server, SERVER, LOAD, origin)?,
            Paced::start(server, client, CLIENT, LOAD, origin)?,
        ])
    }

    fn none_lost(&self, loads: [Paced; 2]) -> Outcome {
        for (load, from) in loads.into_iter().zip(["Braid", "strongSwan"]) {
            let log = load.finish()?;
            let lost = log.lost();
            assert!(log.sent() > 2000 && log.damaged == 0, "{} sent", log.sent());
            let drops = self.braid.drops()?;
            assert!(
                lost.is_empty(),
                "{}",
                self.failure(&format!(
                    "from {from}: {} of {} lost, {:?}; {drops:?}",
                    lost.len(),
                    log.sent(),
                    lost
                ))
            );
        }
        Ok(())
    }

    /// The line that names strongSwan's IKE SA by its SPIs.
    fn swan_ike_sa(&self) -> Result<String> {
        let sas = self.swan.sas()?;
        Ok(sas.lines().find(|line| line.contains("ESTABLISHED")).unwrap_or_default().to_owned())
    }

    fn tunnel(&self) -> Result<Value> {
        Ok(self.braid.status()?["tunnels"][0].clone())
    }
}

/// strongSwan at both ends: what fails here is no fault of Braid's.
fn carries_without_braid() -> Outcome {
    let topology = Topology::builder().build()?;
    let b = swan(&topology);
    let a = Connection {
        local: b.remote.clone(),
        remote: b.local.clone(),
        local_id: b.remote_id.clone(),
        remote_id: b.local_id.clone(),
        local_ts: b.remote_ts.clone(),
        remote_ts: b.local_ts.clone(),
        ..b.clone()
    };
    let _b = Strongswan::start(&topology.gateway_b, &b)?;
    let a = Strongswan::start(&topology.gateway_a, &a)?;
    a.initiate()?;
    let pings = ping(&topology.client, SERVER, &Pings { count: 10, ..Pings::default() })?;
    assert_eq!(pings.rtt_ms.len(), 10, "{}", a.log());
    Ok(())
}

fn braid_initiates() -> Outcome {
    let topology = Topology::builder().build()?;
    let connection = swan(&topology);
    let mut both = Both::start(topology, &Braid::default(), &connection)?;
    both.wait_up()?;
    both.carries(2_000_000)?;
    let tunnel = both.tunnel()?;
    assert_eq!(tunnel["ike"]["suite"], IKE, "{tunnel}");
    assert_eq!(tunnel["child"]["suite"], ESP, "{tunnel}");
    let sas = both.swan.sas()?;
    assert!(sas.contains("ESTABLISHED") && sas.contains("INSTALLED"), "{sas}");
    Ok(())
}

fn strongswan_initiates() -> Outcome {
    let topology = Topology::builder().build()?;
    let connection = swan(&topology);
    let mut both = Both::start(topology, &Braid { role: "respond", ..Braid::default() }, &connection)?;
    // Braid may not listen yet: what strongSwan sends is sent again.
    both.swan.initiate().map_err(|error| both.failure(&error.to_string()))?;
    both.wait_up()?;
    both.carries(2_000_000)
}

/// Braid offers one of each at a time; strongSwan has all, and lives on: every round is a peer that
/// came back. A new child SA shows that both make the same keys with the child's own group as well.
fn every_suite_and_group() -> Outcome {
    let topology = Topology::builder().build()?;
    let connection = Connection {
        proposals: IKE_SUITES.join(","),
        esp_proposals: ESP_SUITES.join(","),
        ..swan(&topology)
    };
    let mut both: Option<Both> = None;
    let mut topology = Some(topology);
    for (number, ike) in IKE_SUITES.into_iter().enumerate() {
        let esp = ESP_SUITES[number % ESP_SUITES.len()];
        let braid = Braid {
            proposals: vec![ike.to_owned()],
            esp_proposals: vec![esp.to_owned()],
            ..Braid::default()
        };
        let running = match (&mut both, topology.take()) {
            (Some(both), _) => {
                both.restart_braid(&braid)?;
                both
            }
            (none, Some(topology)) => none.insert(Both::start(topology, &braid, &connection)?),
            (None, None) => return Err("the network is made once".into()),
        };
        running.wait_up().map_err(|error| format!("{ike}, {esp}: {error}"))?;
        running.wait_crossing().map_err(|error| format!("{ike}, {esp}: {error}"))?;
        let before = running.tunnel()?;
        assert_eq!(before["ike"]["suite"], ike, "{before}");
        running.swan.swanctl(&["--rekey", "--child", "net"])?;
        retry_until("another child SA", START, || {
            let tunnel = running.tunnel().map_err(|error| error.to_string())?;
            let changed = tunnel["child"]["spi_in"] != before["child"]["spi_in"];
            if changed { Ok(()) } else { Err(running.failure(&format!("{ike}, {esp}"))) }
        })?;
        let suite = running.tunnel()?["child"]["suite"].as_str().unwrap_or_default().to_owned();
        assert!(esp.starts_with(suite.as_str()), "{suite} for {esp}");
        let pings = ping(&running.topology.client, SERVER, &Pings { size: 900, ..Pings::default() })?;
        assert_eq!(pings.rtt_ms.len(), 3, "{}", running.failure(&format!("{ike}, {esp}")));
    }
    Ok(())
}

/// strongSwan changes child and IKE SAs by turns.
fn strongswan_rekeys_under_load() -> Outcome {
    let topology = Topology::builder().build()?;
    let connection = swan(&topology);
    let mut both = Both::start(topology, &Braid::default(), &connection)?;
    both.wait_up()?;
    both.wait_crossing()?;
    let loads = both.loads()?;
    let mut outcome = Ok(());
    for round in 0..ROUNDS {
        let before = both.tunnel()?["child"]["spi_in"].clone();
        both.swan.swanctl(&["--rekey", "--child", "net"])?;
        outcome = retry_until("another child SA", START, || {
            let tunnel = both.tunnel().map_err(|error| error.to_string())?;
            if tunnel["child"]["spi_in"] == before { Err(format!("round {round}: {tunnel}")) } else { Ok(()) }
        });
        let was = both.swan_ike_sa()?;
        both.swan.swanctl(&["--rekey", "--ike", "peer"])?;
        outcome = outcome.and(retry_until("another IKE SA", START, || {
            let is = both.swan_ike_sa().map_err(|error| error.to_string())?;
            if is == was { Err(format!("round {round}: {is}")) } else { Ok(()) }
        }));
        if outcome.is_err() {
            break;
        }
        // The new keys carry packets both ways before they are old.
        retry_until("traffic on the new child SA", START, || {
            let child = both.tunnel().map_err(|error| error.to_string())?["child"].take();
            let carried = ["sequence_in", "sequence_out"].map(|way| child[way].as_u64().unwrap_or(0));
            if carried.iter().all(|packets| *packets >= CARRIED) { Ok(()) } else { Err(format!("{child}")) }
        })?;
    }
    both.none_lost(loads)?;
    outcome.map_err(|error| both.failure(&error.to_string()).into())
}

/// Braid changes both by its lifetimes.
fn braid_rekeys_under_load() -> Outcome {
    let topology = Topology::builder().build()?;
    let connection = swan(&topology);
    let mut braid = Braid::default();
    braid.ike += "child-lifetime = \"6s\"\nlifetime = \"14s\"\n";
    let mut both = Both::start(topology, &braid, &connection)?;
    both.wait_up()?;
    both.wait_crossing()?;
    let was = both.swan_ike_sa()?;
    let loads = both.loads()?;
    let outcome = retry_until("the rekeys", 3 * START, || {
        let tunnel = both.tunnel().map_err(|error| error.to_string())?;
        let is = both.swan_ike_sa().map_err(|error| error.to_string())?;
        let done = tunnel["child"]["rekeys"].as_u64().unwrap_or(0) >= ROUNDS && is != was;
        if done { Ok(()) } else { Err(format!("{is} {tunnel}")) }
    });
    both.none_lost(loads)?;
    outcome.map_err(|error| both.failure(&error.to_string()).into())
}

/// strongSwan is killed and comes back; goes silent and is heard again.
fn a_dead_peer_is_noticed_and_found_again() -> Outcome {
    let topology = Topology::builder().build()?;
    let connection = swan(&topology);
    let mut braid = Braid::default();
    braid.ike += "dpd-interval = \"1s\"\ndpd-timeout = \"4s\"\n";
    let mut both = Both::start(topology, &braid, &connection)?;
    both.wait_up()?;
    both.wait_crossing()?;

    both.swan.process().signal(Signal::SIGKILL);
    both.swan.process().wait(START)?;
    both.wait_down()?;
    both.swan = Strongswan::start(&both.topology.gateway_b, &connection)?;
    both.wait_crossing()?;

    let cut = both.topology.cut(0)?;
    both.wait_down()?;
    cut.into_iter().try_for_each(Fault::undo)?;
    both.wait_crossing()
}

/// Braid is killed with its keys and comes back before strongSwan has noticed; and again when it is
/// strongSwan that begins.
fn a_braid_that_was_killed_is_taken_back() -> Outcome {
    for role in ["initiate", "respond"] {
        let topology = Topology::builder().build()?;
        let mut connection = swan(&topology);
        if role == "respond" {
            connection.connection = "  dpd_delay = 1s\n  dpd_timeout = 4s\n".to_owned();
            connection.child = "    start_action = start\n    dpd_action = restart\n".to_owned();
        }
        let braid = Braid { role, ..Braid::default() };
        let mut both = Both::start(topology, &braid, &connection)?;
        both.wait_up()?;
        both.wait_crossing()?;
        both.restart_braid(&braid)?;
        both.wait_crossing().map_err(|error| format!("{role}: {error}"))?;
    }
    Ok(())
}

/// Masquerading in the middle; then its mapping changes.
fn through_a_nat() -> Outcome {
    let topology = Topology::builder().build()?;
    let connection = Connection { remote: "%any".to_owned(), ..swan(&topology) };
    masquerade(&topology, 20_000)?;
    let mut braid = Braid::default();
    // With MOBIKE strongSwan follows an address only when told to (RFC 4555 section 3.8).
    braid.ike += "dpd-interval = \"1s\"\ndpd-timeout = \"20s\"\nmobike = false\n";
    let mut both = Both::start(topology, &braid, &connection)?;
    both.wait_up()?;
    both.carries(500_000)?;
    let sas = both.swan.sas()?;
    assert!(sas.contains("[20"), "not through the NAT's port: {sas}");

    // An address that goes takes the mappings with it.
    let internet = both.topology.internet.as_ref().ok_or("no internet")?;
    internet.nft("delete table ip mapping")?;
    let b = both.topology.paths[0].b;
    internet.ip("addr del 198.51.100.2/30 dev b0")?;
    internet.ip("addr add 198.51.100.2/30 dev b0")?;
    assert_eq!(b.to_string(), "198.51.100.1");
    masquerade(&both.topology, 30_000)?;
    both.carries(500_000)?;
    let sas = both.swan.sas()?;
    assert!(sas.contains("[30"), "still at the old mapping: {sas}");
    Ok(())
}

fn masquerade(topology: &Topology, first_port: u16) -> Outcome {
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let last = first_port + 999;
    internet.nft(&format!(
        "table ip mapping {{ chain out {{ type nat hook postrouting priority srcnat; \
         oifname \"b0\" meta l4proto udp masquerade to :{first_port}-{last}; }}\n}}"
    ))?;
    Ok(())
}

fn certificates() -> Outcome {
    for kind in [KeyKind::Rsa, KeyKind::Ecdsa, KeyKind::Ed25519] {
        let authority = Authority::new(kind, 0)?;
        certified(&authority).map_err(|error| format!("{kind:?}: {error}"))?;
    }
    Ok(())
}

/// Messages that carry it are sent in pieces of their own (RFC 7383): IP's are lost on the way.
fn a_chain_longer_than_a_packet() -> Outcome {
    let both = certified(&Authority::new(KeyKind::Rsa, 3)?)?;
    let log = both.swan.log();
    for said in ["splitting IKE message", "received fragment #"] {
        assert!(log.contains(said), "not {said:?}: {log}");
    }
    Ok(())
}

/// Both ends up, each with a certificate of this authority.
fn certified(authority: &Authority) -> std::result::Result<Both, Box<dyn std::error::Error>> {
    let [near, far] = ["branch-1.example.com", "hub.example.com"].map(|name| authority.issue(name));
    let (near, far) = (near?, far?);
    let topology = Topology::builder().build()?;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    internet.nft(
        "table netdev whole {\n chain a { type filter hook ingress device \"a0\" priority 0; \
         ip frag-off & 0x3fff != 0 drop; }\n chain b { type filter hook ingress device \"b0\" priority 0; \
         ip frag-off & 0x3fff != 0 drop; }\n}",
    )?;
    let ike = format!(
        "certificate = {:?}\nkey = {:?}\nca = {:?}\n\
         local-id = \"branch-1.example.com\"\nremote-id = \"hub.example.com\"\n",
        near.certificate, near.key, near.ca
    );
    let connection = Connection {
        local_id: "hub.example.com".to_owned(),
        remote_id: "branch-1.example.com".to_owned(),
        auth: Auth::Certificate(far),
        ..swan(&topology)
    };
    let mut both = Both::start(topology, &Braid { ike, ..Braid::default() }, &connection)?;
    both.wait_up()?;
    both.wait_crossing()?;
    Ok(both)
}

fn through_loss() -> Outcome {
    let topology = Topology::builder().build()?;
    let connection = swan(&topology);
    let loss = topology.lose(0, 20.0)?;
    let mut braid = Braid::default();
    braid.ike += "child-lifetime = \"10s\"\n";
    let mut both = Both::start(topology, &braid, &connection)?;
    both.braid.wait_up(PATIENCE).map_err(|error| both.failure(&error.to_string()))?;
    both.wait_crossing()?;
    let rekeyed = retry_until("two child SAs after the first", PATIENCE, || {
        let tunnel = both.tunnel().map_err(|error| error.to_string())?;
        if tunnel["child"]["rekeys"].as_u64().unwrap_or(0) >= 2 { Ok(()) } else { Err(tunnel.to_string()) }
    });
    rekeyed.map_err(|error| both.failure(&error.to_string()))?;
    loss.into_iter().try_for_each(Fault::undo)?;
    both.carries(500_000)
}

/// As AWS does it: everything offered, selectors of all addresses, addresses inside, and either end
/// begins. Braid names one suite, and gets that one.
fn as_aws_does_it() -> Outcome {
    let wanted = ("aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384");
    for role in ["initiate", "respond"] {
        let topology = Topology::builder().build()?;
        topology.gateway_b.ip("addr add 169.254.10.1/32 dev lo")?;
        let start = if role == "respond" { "    start_action = start\n" } else { "" };
        let connection = Connection {
            proposals: AWS_IKE.join(","),
            esp_proposals: AWS_ESP.join(","),
            local_ts: "0.0.0.0/0".to_owned(),
            remote_ts: "0.0.0.0/0".to_owned(),
            connection: "  dpd_delay = 10s\n  rekey_time = 8h\n".to_owned(),
            child: format!("    rekey_time = 1h\n{start}"),
            routes: Some(vec!["169.254.10.2/32 src 169.254.10.1".to_owned(), NET_A.to_owned()]),
            ..swan(&topology)
        };
        let braid = Braid {
            role,
            tunnel: "probe = { interval = \"500ms\", multiplier = 6 }\ndf = \"clear\"\n".to_owned(),
            proposals: vec![wanted.0.to_owned()],
            esp_proposals: vec![wanted.1.to_owned()],
            ..Braid::default()
        };
        let mut both = Both::start(topology, &braid, &connection)?;
        both.wait_up().map_err(|error| format!("{role}: {error}"))?;
        both.carries(1_000_000)?;
        let tunnel = both.tunnel()?;
        assert_eq!(
            (&tunnel["ike"]["suite"], &tunnel["child"]["suite"]),
            (&wanted.0.into(), &"aes256gcm16".into())
        );
        retry_until("an answer from inside", START, || {
            let latency = both.tunnel().map_err(|error| error.to_string())?["latency_ms"].clone();
            if latency.is_number() { Ok(()) } else { Err(both.failure("no probe was answered")) }
        })?;
    }
    Ok(())
}

//! Braid at the client's side against Debian's strongSwan at the server's.

use crate::authority::{Authority, KeyKind};
use crate::swan::{Both, Braid, ESP, IKE, PATIENCE, START, swan};
use braid_netns::fault::Fault;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::strongswan::{Auth, Connection, Strongswan};
use braid_netns::topology::SERVER;
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Topology, retry_until};
use nix::sys::signal::Signal;
use std::time::Instant;

pub(crate) const ALL: &[Scenario] = &[
    ("strongswan::carries_without_braid", carries_without_braid),
    ("strongswan::braid_initiates", braid_initiates),
    ("strongswan::strongswan_initiates", strongswan_initiates),
    ("strongswan::every_suite_and_group", every_suite_and_group),
    ("strongswan::strongswan_rekeys_under_load", strongswan_rekeys_under_load),
    ("strongswan::braid_rekeys_under_load", braid_rekeys_under_load),
    ("strongswan::a_dead_peer_is_noticed_and_found_again", a_dead_peer_is_noticed_and_found_again),
    ("strongswan::a_braid_that_was_killed_is_taken_back", a_braid_that_was_killed_is_taken_back),
    ("strongswan::certificates", certificates),
    ("strongswan::a_chain_longer_than_a_packet", a_chain_longer_than_a_packet),
    ("strongswan::through_loss", through_loss),
];

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
const ROUNDS: u64 = 5;
/// Packets each way between two rekeys.
const CARRIED: u64 = 500;

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
    both.wait_settled(|_, _| true)
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
        running.swan.rekey(false)?;
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
    let loads = both.loads(Instant::now())?;
    let mut outcome = Ok(());
    for round in 0..ROUNDS {
        let before = both.tunnel()?["child"]["spi_in"].clone();
        both.swan.rekey(false)?;
        outcome = retry_until("another child SA", START, || {
            let tunnel = both.tunnel().map_err(|error| error.to_string())?;
            if tunnel["child"]["spi_in"] == before { Err(format!("round {round}: {tunnel}")) } else { Ok(()) }
        });
        let was = both.swan_ike_sa()?;
        both.swan.rekey(true)?;
        outcome = outcome.and(retry_until("another IKE SA", START, || {
            let is = both.swan_ike_sa().map_err(|error| error.to_string())?;
            if is == was || is.is_empty() { Err(format!("round {round}: {is}")) } else { Ok(()) }
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
    let loads = both.loads(Instant::now())?;
    let outcome = retry_until("the rekeys", 3 * START, || {
        let tunnel = both.tunnel().map_err(|error| error.to_string())?;
        let is = both.swan_ike_sa().map_err(|error| error.to_string())?;
        let done = tunnel["child"]["rekeys"].as_u64().unwrap_or(0) >= ROUNDS && is != was && !is.is_empty();
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
fn certified(authority: &Authority) -> Result<Both, Box<dyn std::error::Error>> {
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

//! Sessions of WireGuard replaced while packets cross: by command, by time, by either side, and while strangers flood
//! the gateway with handshakes.

use crate::pair::{START, patient};
use crate::wireguard::{LOAD, Pairs, braid, pair, peer};
use base64::prelude::{BASE64_STANDARD, Engine};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use braid_netns::capture::Capture;
use braid_netns::gateway::Gateway;
use braid_netns::paced::Paced;
use braid_netns::runner::{Outcome, Scenario, side_by_side};
use braid_netns::topology::{CLIENT, SERVER};
use braid_netns::wireguard::{Implementation, PORT};
use braid_netns::{Error, Netns, Result, Topology, retry_until};
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("wireguard_rekey::under_load", under_load),
    ("wireguard_rekey::by_braid_under_load", by_braid_under_load),
    ("wireguard_rekey::by_time_under_load", by_time_under_load),
    ("wireguard_rekey::while_strangers_flood", while_strangers_flood),
];

/// New sessions, by either side, while packets cross: none is lost, none comes twice or late.
fn under_load() -> Outcome {
    let pair = pair(1, &[0], patient)?;
    pair.topology.keep_flows_in_order()?;
    let loads = both_ways(&pair.topology)?;
    // More than boringtun keeps sessions for, several times over.
    for round in 0..100 {
        let gateway = if round % 2 == 0 { &pair.a } else { &pair.b };
        let before = handshakes(gateway)?;
        gateway.rekey("t0", false)?;
        another_session(gateway, before)?;
    }
    unharmed(loads)
}

pub(crate) fn both_ways(topology: &Topology) -> Result<[Paced; 2]> {
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

pub(crate) fn handshakes(gateway: &Gateway) -> Result<u64> {
    Ok(gateway.status()?["tunnels"][0]["wireguard"]["handshakes"].as_u64().unwrap_or(0))
}

fn another_session(gateway: &Gateway, before: u64) -> Result<()> {
    retry_until("another session", START, || match handshakes(gateway) {
        Ok(now) if now > before => Ok(()),
        Ok(now) => Err(format!("{now} handshakes")),
        Err(error) => Err(error.to_string()),
    })
}

/// The other end takes each new session into use as the packets come.
fn by_braid_under_load() -> Outcome {
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
            another_session(&gateway, before)?;
            // Initiations that follow each other closely are not answered.
            std::thread::sleep(Duration::from_millis(200));
        }
        unharmed(loads)?;
    }
    Ok(())
}

/// After two minutes, as the protocol has it (whitepaper section 6.2), by whoever has begun: either of the others, and
/// Braid.
fn by_time_under_load() -> Outcome {
    let cases = [(Implementation::Go, true), (Implementation::Boringtun, true), (Implementation::Go, false)];
    side_by_side(cases.map(|(implementation, peer_begins)| {
        move || {
            let done = by_time(implementation, peer_begins);
            done.map_err(|error| format!("{implementation:?}, begins: {peer_begins}: {error}").into())
        }
    }))
}

fn by_time(implementation: Implementation, peer_begins: bool) -> Outcome {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let keys = Pairs::generate(&topology)?;
    let (endpoint, more, remote, role) = match peer_begins {
        true => (format!("{}:{PORT}", path.a), "PersistentKeepalive = 1\n", String::new(), "respond"),
        false => (String::new(), "", path.b.to_string(), "initiate"),
    };
    let _peer = peer(&topology, implementation, &keys, &endpoint, more)?;
    let mut gateway =
        Gateway::start(&topology.gateway_a, &braid(&[path.a.to_string(), remote], &keys, role, ""))?;
    gateway.wait_up(START)?;
    let before = handshakes(&gateway)?;
    topology.keep_flows_in_order()?;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let calls = Capture::start_with_buffer(internet, "a0", "udp[8] = 1", 128, 1024)?;
    let loads = both_ways(&topology)?;
    retry_until("another session by time", Duration::from_secs(150), || {
        // Asked as often as elsewhere, three gateways would have little time for anything else.
        std::thread::sleep(Duration::from_millis(200));
        match handshakes(&gateway) {
            Ok(now) if now > before => Ok(()),
            Ok(now) => Err(format!("{now} handshakes")),
            Err(error) => Err(error.to_string()),
        }
    })?;
    unharmed(loads)?;
    let from: IpAddr = if peer_begins { path.b } else { path.a }.into();
    let callers: Vec<IpAddr> = calls.stop()?.iter().filter_map(|call| Some(call.headers()?.source)).collect();
    assert!(!callers.is_empty() && callers.iter().all(|caller| *caller == from), "{callers:?}, not {from}");
    Ok(())
}

/// More than ten thousand initiations a second with a right first MAC, from whoever has read our public key: an
/// established tunnel loses nothing, gets a new session when it is asked for, though the peer has to prove its address
/// for that, and each stranger is counted.
fn while_strangers_flood() -> Outcome {
    const RATE: f64 = 10_000.0;
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let keys = Pairs::generate(&topology)?;
    let peer = peer(&topology, Implementation::Go, &keys, "", "")?;
    let text = braid(&[path.a.to_string(), path.b.to_string()], &keys, "initiate", "");
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    gateway.wait_up(START)?;
    topology.keep_flows_in_order()?;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    // Strangers get them too, elsewhere.
    let to_peer = format!("src host {} and dst host {} and udp[8] = 3", path.a, path.b);
    let cookies = Capture::start(internet, "a0", &to_peer, 128)?;
    let initiations = strangers(&keys.braid.public, 64);
    let to = format!("{}:{PORT}", path.a);
    let loads = both_ways(&topology)?;
    let over = AtomicBool::new(false);
    let (flood, rekeyed) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood(internet, &initiations, &to, RATE * 1.2, &over));
        let rekeyed = rekeyed_by_a_cookie(&gateway);
        over.store(true, Ordering::Relaxed);
        (flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), rekeyed)
    });
    let (sent, took) = flood?;
    rekeyed?;
    unharmed(loads)?;
    let rate = sent as f64 / took.as_secs_f64();
    assert!(rate >= RATE, "{sent} in {took:?}: only {rate:.0} a second");
    let cookies = cookies.stop()?;
    assert!(!cookies.is_empty(), "the peer never had to prove its address");
    assert!(cookies.iter().all(|cookie| cookie.udp_payload().is_some_and(|payload| payload.len() == 64)));
    let drops = gateway.drops()?;
    let of = |reason: &str| drops.get(reason).copied().unwrap_or(0);
    let counted = of("unknown_peer") + of("handshake_load");
    assert!(counted > sent * 9 / 10, "{sent} sent: {drops:?}");
    assert!(of("handshake_load") > of("unknown_peer"), "nobody had to prove its address: {drops:?}");
    assert!(peer.show("latest-handshakes")?.split_whitespace().nth(1).is_some_and(|at| at != "0"));
    Ok(())
}

/// Begins new sessions until one was had for a cookie. The first messages of a second are taken without one; where the
/// peer's answer is refused, Braid asks again after five.
fn rekeyed_by_a_cookie(gateway: &Gateway) -> Result<()> {
    const AGAIN: Duration = Duration::from_secs(4);
    const ATTEMPTS: usize = 20;
    for _ in 0..ATTEMPTS {
        let (before, begun) = (handshakes(gateway)?, Instant::now());
        gateway.rekey("wg", false)?;
        another_session(gateway, before)?;
        if begun.elapsed() > AGAIN {
            return Ok(());
        }
        // Initiations that follow each other closely are not answered.
        std::thread::sleep(Duration::from_millis(200));
    }
    Err(Error::Usage(format!("{ATTEMPTS} sessions, each at once: there was no load")))
}

/// Sends these by turns, so many a second, until it is over; how many were sent, in which time.
fn flood(
    from: &Netns,
    messages: &[Vec<u8>],
    to: &str,
    rate: f64,
    over: &AtomicBool,
) -> Result<(u64, Duration)> {
    let bound = from.enter(|| UdpSocket::bind("192.0.2.2:0"))?;
    let socket = bound.map_err(Error::io("cannot bind"))?;
    let start = Instant::now();
    let (mut tried, mut sent) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * rate) as usize;
        while tried < due {
            // A full buffer is the flood's own fault.
            sent += u64::from(socket.send_to(&messages[tried % messages.len()], to).is_ok());
            tried += 1;
        }
        std::thread::yield_now();
    }
    Ok((sent, start.elapsed()))
}

/// Initiations to this public key by keys that nobody knows.
pub(crate) fn strangers(to: &str, count: usize) -> Vec<Vec<u8>> {
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

//! What a host on the way can send to a gateway's port of WireGuard, in the peer's name and in its own: each message is
//! counted under its own reason, exactly, none is answered, and none moves the peer.

use crate::hostile::{Attacker, unprobed};
use crate::pair::START;
use crate::wireguard::{Pairs, pair_of};
use crate::wireguard_rekey::strangers;
use base64::prelude::{BASE64_STANDARD, Engine};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use braid_netns::capture::{Capture, Packet};
use braid_netns::content::Pattern;
use braid_netns::gateway::Gateway;
use braid_netns::raw;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::SERVER;
use braid_netns::wireguard::PORT;
use braid_netns::{Error, Result, Topology, retry_until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

pub(crate) const ALL: &[Scenario] =
    &[("hostile_wireguard::each_is_counted_and_none_answered", each_is_counted_and_none_answered)];

/// Whose packets come back through the internet.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77));
/// Whitepaper section 6.1, Reject-After-Messages.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Type, receiver, counter; tag.
const OVERHEAD: usize = 32;
/// Whitepaper section 5.4.2: where the first MAC is; the second follows, which is looked at under load only.
const MAC1: usize = 116;
const MAC2: usize = MAC1 + 16;
/// Messages at once, each twice: what a socket's buffer holds while its worker is not running.
const MANY: usize = 400;
/// Those of handshakes, which a worker hands on 64 at a time.
const FEW: usize = 16;

/// A message, and what it counts as.
type Bad = (Vec<u8>, &'static str);

fn each_is_counted_and_none_answered() -> Outcome {
    let topology = Topology::builder().build()?;
    topology.gateway_b.ip(&format!("route add {STRANGER}/32 via 198.51.100.2 dev wan0"))?;
    let keys = Pairs::generate(&topology)?;
    let pair = pair_of(topology, &keys, &[0], |text| unprobed(&text))?;
    let path = pair.topology.paths[0].clone();
    let attacker = Attacker::between(pair, Some(PORT), path.a.into(), path.b.into())?;
    let (a, b) = (&attacker.pair.a, &attacker.pair.b);
    let initiation = initiation_of_a(&attacker, false)?;
    let seen = attacker.esp_of_pings(20, false)?;
    // Authentic, and new to gateway B.
    let lost = attacker.esp_of_pings(3, true)?;
    let before = tunnel(b)?;
    let answers =
        Capture::start(&attacker.pair.topology.gateway_b, "wan0", &format!("ip src host {}", path.b), 128)?;

    attack(&attacker, "flipped bits", flipped(&lost[0]), MANY)?;
    attack(&attacker, "cut and lengthened", of_other_lengths(&lost[1]), MANY)?;
    attack(&attacker, "replays", seen.iter().map(|packet| (packet.clone(), "replayed")).collect(), MANY)?;
    attack(&attacker, "of other sessions", of_other_sessions(&lost[0]), MANY)?;
    attack(&attacker, "counters", with_other_counters(&lost[0]), MANY)?;
    attack(&attacker, "garbage", garbage(), MANY)?;
    let index = word(&lost[0], 4);
    attack(&attacker, "answers that nobody asked for", unasked_answers(&keys.peer.private, index), FEW)?;
    let again = vec![(initiation.clone(), "replayed_handshake"); 8];
    attack(&attacker, "the same initiation", again, FEW)?;
    attack(&attacker, "altered initiations", altered_initiations(&initiation), FEW)?;
    let unknown = strangers(&keys.peer.public, 16).into_iter().map(|message| (message, "unknown_peer"));
    attack(&attacker, "strangers", unknown.collect(), FEW)?;

    let answers = answers.stop()?;
    let after = tunnel(b)?;
    let more = |what: &str| after[what].as_u64().unwrap_or(0) - before[what].as_u64().unwrap_or(0);
    let is_data = |packet: &Packet| packet.is_wireguard_data(PORT);
    let to: Vec<Option<IpAddr>> = answers
        .iter()
        .map(|packet| Some(packet.headers()?.destination).filter(|_| is_data(packet)))
        .collect();
    // Pings came in between, each of which has its answer.
    assert!(to.iter().all(|to| *to == Some(attacker.from)), "B answered with something else: {to:?}");
    assert_eq!((to.len() as u64, more("tx_packets")), (more("rx_packets"), more("rx_packets")));
    assert_eq!(after["wireguard"]["handshakes"], before["wireguard"]["handshakes"]);

    // What was altered above is good as it was, once.
    let before = attacker.received()?;
    attacker.counts("the originals", &[], || lost.iter().try_for_each(|packet| attacker.send(packet)))?;
    assert_eq!(attacker.received()?, before + 3 + 1);
    attack(
        &attacker,
        "the originals again",
        lost.iter().map(|packet| (packet.clone(), "replayed")).collect(),
        MANY,
    )?;
    beyond_the_window(&attacker)?;
    attack(&attacker, "old ones", seen.into_iter().map(|packet| (packet, "too_old")).collect(), MANY)?;

    // Authentic and newer than all before, but kept back and told by somebody else: it is answered, and moves nobody.
    let kept_back = initiation_of_a(&attacker, true)?;
    let handshakes = handshakes_of(b)?;
    attacker.counts("an initiation by another way", &[], || {
        attacker.socket.send(&from_a_stranger(&attacker, &kept_back))
    })?;
    assert_eq!(handshakes_of(b)?, handshakes + 1);
    assert_eq!(tunnel(b)?["remote"], format!("{}:{PORT}", path.a));
    attack(&attacker, "once more", vec![(kept_back, "replayed_handshake")], FEW)?;
    assert_eq!(a.status()?["tunnels"][0]["state"], "up");
    Ok(())
}

/// Sends each in A's name and in a stranger's, so many at once, and waits until all are counted; the peer does not move.
fn attack(attacker: &Attacker, what: &str, messages: Vec<Bad>, at_once: usize) -> Outcome {
    for messages in messages.chunks(at_once) {
        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        for (_, reason) in messages {
            *expected.entry(*reason).or_default() += 2;
        }
        let expected: Vec<(&str, u64)> = expected.into_iter().collect();
        attacker.counts(what, &expected, || {
            messages.iter().try_for_each(|(message, _)| {
                attacker.send(message)?;
                attacker.socket.send(&from_a_stranger(attacker, message))
            })
        })?;
    }
    let remote = tunnel(&attacker.pair.b)?["remote"].clone();
    assert_eq!(remote, format!("{}:{PORT}", attacker.from), "{what}: the peer has moved");
    Ok(())
}

fn from_a_stranger(attacker: &Attacker, message: &[u8]) -> Vec<u8> {
    raw::udp((STRANGER, 4321), (attacker.to, PORT), 0, message)
}

fn tunnel(gateway: &Gateway) -> Result<Value> {
    Ok(gateway.status()?["tunnels"][0].clone())
}

fn handshakes_of(gateway: &Gateway) -> Result<u64> {
    Ok(tunnel(gateway)?["wireguard"]["handshakes"].as_u64().unwrap_or(0))
}

/// Has A begin a handshake; its first message, which B does not get when `kept_back`.
fn initiation_of_a(attacker: &Attacker, kept_back: bool) -> Result<Vec<u8>> {
    let Topology { gateway_a, .. } = &attacker.pair.topology;
    let calls =
        Capture::start(gateway_a, "wan0", &format!("src host {} and udp[8] = 1", attacker.from), 2000)?;
    let cut = if kept_back { attacker.pair.topology.cut(0)? } else { Vec::new() };
    let before = handshakes_of(&attacker.pair.a)?;
    attacker.pair.a.rekey("t0", false)?;
    if !kept_back {
        retry_until("A's new session", START, || match handshakes_of(&attacker.pair.a) {
            Ok(now) if now > before => Ok(()),
            Ok(now) => Err(format!("{now} handshakes")),
            Err(error) => Err(error.to_string()),
        })?;
    }
    let calls = calls.stop()?;
    drop(cut);
    let call = calls.first().and_then(|call| call.udp_payload()).map(<[u8]>::to_vec);
    call.ok_or_else(|| Error::Usage("A has not called".to_owned()))
}

/// One bit at a time, but for the lowest bytes of index and counter: there may be such a session, and another number
/// that was seen is a replay.
fn flipped(packet: &[u8]) -> Vec<Bad> {
    let flip = |bit: usize| {
        let mut altered = packet.to_vec();
        altered[bit / 8] ^= 1 << (bit % 8);
        let reason = match bit / 8 {
            0..4 => "not_wireguard",
            4..8 => "unknown_session",
            _ => "bad_icv",
        };
        (altered, reason)
    };
    (0..packet.len() * 8).filter(|bit| !matches!(bit / 8, 4 | 8)).map(flip).collect()
}

fn of_other_lengths(packet: &[u8]) -> Vec<Bad> {
    let cut = (0..packet.len()).map(|length| {
        let reason = match length {
            0 => "truncated",
            1..OVERHEAD => "not_wireguard",
            _ => "bad_icv",
        };
        (packet[..length].to_vec(), reason)
    });
    let longer = (1..=64).map(|more| ([packet, &vec![0; more]].concat(), "bad_icv"));
    cut.chain(longer).collect()
}

/// Of the peer's other sessions, and of other peers.
fn of_other_sessions(packet: &[u8]) -> Vec<Bad> {
    let index = word(packet, 4);
    // The last byte counts sessions, of which there were few.
    let others = (64..128).flat_map(|step| [index ^ step, index ^ step << 8, index ^ step << 24]);
    others
        .map(|index| ([&packet[..4], &index.to_le_bytes(), &packet[8..]].concat(), "unknown_session"))
        .collect()
}

fn with_other_counters(packet: &[u8]) -> Vec<Bad> {
    let limit = REJECT_AFTER_MESSAGES;
    let counters = [
        (limit - 1, "bad_icv"),
        (limit, "counter_limit"),
        (limit + 1, "counter_limit"),
        (u64::MAX - 1, "counter_limit"),
        (u64::MAX, "counter_limit"),
    ];
    let with = |counter: u64| [&packet[..8], &counter.to_le_bytes(), &packet[16..]].concat();
    counters.into_iter().map(|(counter, reason)| (with(counter), reason)).collect()
}

/// Every type that there is not, types of another length than theirs, and what no type has.
fn garbage() -> Vec<Bad> {
    let mut message = vec![0; 65];
    Pattern::new(1).fill(&mut message);
    let of_type = |kind: u8, reserved: u8| {
        let mut message = message.clone();
        message[..4].copy_from_slice(&[kind, 0, reserved, 0]);
        message
    };
    let types = (0..=u8::MAX).filter(|kind| *kind != 4).map(|kind| of_type(kind, 0));
    let reserved = (1..=4).map(|kind| of_type(kind, 1));
    let anything = (1..=40).map(|number| {
        let mut message = vec![0; 8 + 34 * number];
        Pattern::new(number as u64).fill(&mut message);
        // Above all types.
        message[0] |= 0x80;
        message
    });
    types.chain(reserved).chain(anything).map(|message| (message, "not_wireguard")).collect()
}

/// Responses and cookies for B, with the index of its session and with others: of the responses some have a right first
/// MAC, for which B's public key is enough.
fn unasked_answers(private: &str, index: u32) -> Vec<Bad> {
    let mut answers = Vec::new();
    for index in [index, index ^ 0x5A00] {
        for number in 0..8 {
            let mut cookie = vec![0; 64];
            Pattern::new(number).fill(&mut cookie);
            let mut response = vec![0; 92];
            Pattern::new(number).fill(&mut response);
            cookie[..8].copy_from_slice(&[&[3, 0, 0, 0][..], &index.to_le_bytes()].concat());
            response[..4].copy_from_slice(&[2, 0, 0, 0]);
            response[8..12].copy_from_slice(&index.to_le_bytes());
            answers.extend([cookie, response, response_to(private, index >> 8)]);
        }
    }
    answers.into_iter().map(|message| (message, "bad_handshake")).collect()
}

/// As if whoever has this private key had called somebody, by this index.
fn response_to(private: &str, index: u32) -> Vec<u8> {
    let private: [u8; 32] = BASE64_STANDARD.decode(private).expect("base64").try_into().expect("32 bytes");
    let (caller, called) = (StaticSecret::from(private), StaticSecret::from([7; 32]));
    let (of_caller, of_called) = (PublicKey::from(&caller), PublicKey::from(&called));
    let (mut call, mut response) = ([0; 148], [0; 148]);
    let mut caller = Tunn::new(caller, of_called, None, None, index, None);
    let TunnResult::WriteToNetwork(call) = caller.format_handshake_initiation(&mut call, false) else {
        panic!("no initiation")
    };
    let mut called = Tunn::new(called, of_caller, None, None, 1, None);
    match called.decapsulate(None, call, &mut response) {
        TunnResult::WriteToNetwork(response) => response.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// A bit of each byte.
fn altered_initiations(initiation: &[u8]) -> Vec<Bad> {
    let flip = |at: usize| {
        let mut altered = initiation.to_vec();
        altered[at] ^= 0x40;
        let reason = match at {
            0..4 => "not_wireguard",
            4..MAC2 => "bad_handshake",
            _ => "replayed_handshake",
        };
        (altered, reason)
    };
    (0..initiation.len()).map(flip).collect()
}

/// More packets than a peer remembers by their numbers (1024).
fn beyond_the_window(attacker: &Attacker) -> Outcome {
    let client = &attacker.pair.topology.client;
    let socket = client.enter(|| UdpSocket::bind("0.0.0.0:0"))??;
    for _ in 0..16 {
        for _ in 0..100 {
            // Refused is what nobody listens for.
            let _ = socket.send_to(b"content", (SERVER, 9));
        }
        attacker.healthy()?;
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

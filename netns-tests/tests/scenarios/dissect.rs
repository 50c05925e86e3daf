//! Raw ESP on the wire, read by tshark, an implementation that shares nothing with ours: every packet
//! is authentic to it, and inside is what was sent. IKE, read with the keys that a gateway logs when asked to.

use crate::pair::{Pair, START, Setup, Side};
use braid_netns::capture::Capture;
use braid_netns::dissect::{self, Cipher, Dissected, EspSa, IkeMessage};
use braid_netns::gateway::Gateway;
use braid_netns::guard::temp_dir;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Topology, retry_until};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

pub(crate) const ALL: &[Scenario] = &[
    ("dissect::raw_esp_is_read_by_tshark", raw_esp_is_read_by_tshark),
    ("dissect::ike_is_read_with_the_key_log", ike_is_read_with_the_key_log),
];

/// Every cipher with both lengths of key, every integrity once: name, bytes of key material, bytes of it
/// for the cipher.
const SUITES: [(&str, usize, Cipher, usize); 6] = [
    ("aes128gcm16", 20, Cipher::Gcm16, 20),
    ("aes256gcm16", 36, Cipher::Gcm16, 36),
    ("aes128-sha1", 36, Cipher::CbcSha1, 16),
    ("aes256-sha256", 64, Cipher::CbcSha256, 32),
    ("aes128-sha384", 64, Cipher::CbcSha384, 16),
    ("aes256-sha512", 96, Cipher::CbcSha512, 32),
];
/// Of each kind: each way, of either family inside.
const PINGS: u32 = 5;

/// Two tunnels, IPv4 outside and IPv6 outside.
fn raw_esp_is_read_by_tshark() -> Outcome {
    for (suite, key_bytes, cipher, cipher_bytes) in SUITES {
        let setup = Setup { suite, key_bytes, encapsulation: "esp", outer6: Some(1), ..Setup::default() };
        // Frequent probes would be captured without end.
        let pair = Pair::start_patient(&setup)?;
        let mut sas = Vec::new();
        for (tunnel, path) in pair.topology.paths.iter().enumerate() {
            let ends: [IpAddr; 2] = if setup.outer6 == Some(tunnel) {
                [path.a6.into(), path.b6.into()]
            } else {
                [path.a.into(), path.b.into()]
            };
            for (side, [source, destination]) in [(Side::A, ends), (Side::B, [ends[1], ends[0]])] {
                let keys = setup.key(tunnel, side);
                let (key, integrity_key) = keys.split_at(2 * cipher_bytes);
                sas.push(EspSa {
                    source,
                    destination,
                    spi: u32::try_from(Setup::spi(tunnel, side))?,
                    cipher,
                    key: key.to_owned(),
                    integrity_key: integrity_key.to_owned(),
                });
            }
        }
        for tunnel in 0..setup.tunnels {
            let capture = Capture::start(&pair.topology.gateway_a, &format!("wan{tunnel}"), "esp", 0)?;
            let inside = [format!("169.254.{}.2", 10 + tunnel), format!("fd00:ffff:{}::2", 10 + tunnel)];
            for address in &inside {
                // The far end of a tunnel is reached by that tunnel only.
                let pings = Pings { count: PINGS, size: 333, ..Pings::default() };
                assert_eq!(
                    ping(&pair.topology.gateway_a, address, &pings)?.loss(),
                    0.0,
                    "{suite}: {address}"
                );
            }
            let packets = dissect::esp(&capture.record()?, &sas)?;
            judge(&packets, tunnel, &inside).map_err(|flaw| format!("{suite}, tunnel {tunnel}: {flaw}"))?;
        }
    }
    Ok(())
}

fn judge(packets: &[Dissected], tunnel: usize, inside: &[String]) -> Result<(), String> {
    if let Some(bad) =
        packets.iter().find(|packet| !packet.icv_good || packet.icv_bad || packet.inside().is_empty())
    {
        return Err(format!("not authentic to tshark, or not to be read: {bad:?}"));
    }
    for (address, layers) in inside.iter().zip(["ip:icmp", "ipv6:icmpv6"]) {
        // Requests name it as their destination, answers come from there.
        let of = |side: Side| {
            let spi = Setup::spi(tunnel, side);
            packets
                .iter()
                .filter(move |packet| packet.spi as usize == spi && packet.inside().starts_with(layers))
        };
        let asked = of(Side::A).filter(|packet| packet.destinations.iter().any(|it| it == address)).count();
        let answered = of(Side::B).count();
        if asked < PINGS as usize || answered < PINGS as usize {
            return Err(format!(
                "{asked} requests to {address} and {answered} answers in {} packets",
                packets.len()
            ));
        }
    }
    Ok(())
}

/// IKE suites: an AEAD, and a cipher with an integrity algorithm beside it.
const IKE_SUITES: [&str; 2] = ["aes256gcm16-prfsha384-ecp384", "aes256-sha256-ecp256"];
/// Numbers of exchanges (RFC 7296 section 3.1) and payloads (section 3.2).
const IKE_AUTH: u8 = 35;
const CREATE_CHILD_SA: u8 = 36;
const ENCRYPTED: u8 = 46;

fn ike_is_read_with_the_key_log() -> Outcome {
    for suite in IKE_SUITES {
        let directory = temp_dir("keys")?;
        let [log_a, log_b] =
            ["a", "b"].map(|name| directory.path().join(name).to_string_lossy().into_owned());
        let topology = Topology::builder().build()?;
        let capture = Capture::start(&topology.gateway_a, "wan0", "udp port 500 or udp port 4500", 0)?;
        let path = &topology.paths[0];
        let configuration = |role: &str, local: String, remote: String| {
            format!(
                "[[tunnel]]\nname = \"t\"\nrole = \"{role}\"\nlocal = \"{local}\"\nremote = \"{remote}\"\n\
                 probe = \"off\"\n[tunnel.ike]\npsk = \"correct horse battery staple\"\n\
                 proposals = [\"{suite}\"]\n"
            )
        };
        let text = configuration("respond", path.b.to_string(), path.a.to_string());
        let mut b = Gateway::start_with(&topology.gateway_b, &text, &["--ike-key-log", &log_b])?;
        let text = configuration("initiate", path.a.to_string(), path.b.to_string());
        let mut a = Gateway::start_with(&topology.gateway_a, &text, &["--ike-key-log", &log_a])?;
        a.wait_up(START)?;
        b.wait_up(START)?;
        let warned = a.process().stderr();
        assert_eq!(warned.matches("--ike-key-log: the keys of every IKE SA").count(), 1, "{warned}");
        // The IKE SA that takes the place of the first is logged as well, and what it does can be read.
        a.rekey("t", true)?;
        retry_until("another IKE SA", START, || {
            let rows = |log: &_| fs::read_to_string(log).map_or(0, |text| text.lines().count());
            let rows = [rows(&log_a), rows(&log_b)];
            if rows == [2, 2] { Ok(()) } else { Err(format!("{rows:?} rows")) }
        })?;
        let before = a.status()?["tunnels"][0]["child"]["spi_in"].clone();
        a.rekey("t", false)?;
        retry_until("another child", START, || {
            let status = a.status().map_err(|error| error.to_string())?;
            let now = &status["tunnels"][0]["child"]["spi_in"];
            if now.is_string() && *now != before { Ok(()) } else { Err(status.to_string()) }
        })?;
        let keys = fs::read_to_string(&log_a)?;
        assert_eq!(keys, fs::read_to_string(&log_b)?, "both sides have the same keys");
        assert_eq!(fs::metadata(&log_a)?.permissions().mode() & 0o777, 0o600);
        let capture = capture.record()?;
        let sealed = dissect::ike(&capture, "")?;
        assert!(sealed.iter().all(|message| inside(message).is_none_or(<[u8]>::is_empty)), "{sealed:?}");
        let opened = dissect::ike(&capture, &keys)?;
        let unread = opened.iter().find(|message| inside(message).is_some_and(<[u8]>::is_empty));
        // An INFORMATIONAL of nothing but its SK payload is an answer, or asks for a sign of life.
        assert!(unread.is_none_or(|message| message.exchange == 37), "{suite}: {unread:?} in {opened:?}");
        has(&opened, IKE_AUTH, &[35, 39, 33, 44, 45], suite)?;
        has(&opened, IKE_AUTH, &[36, 39, 33, 44, 45], suite)?;
        // Of the IKE SA, then of the child, under the new IKE SA's keys.
        has(&opened, CREATE_CHILD_SA, &[33, 40, 34], suite)?;
        has(&opened, CREATE_CHILD_SA, &[41, 33, 40, 44, 45], suite)?;
    }
    Ok(())
}

/// The payloads within the Encrypted one, if there is one.
fn inside(message: &IkeMessage) -> Option<&[u8]> {
    let at = message.payloads.iter().position(|kind| *kind == ENCRYPTED)?;
    message.payloads.get(at + 1..)
}

/// A message of this exchange has these payloads.
fn has(messages: &[IkeMessage], exchange: u8, payloads: &[u8], suite: &str) -> Outcome {
    let found = messages.iter().filter(|message| message.exchange == exchange).any(|message| {
        inside(message).is_some_and(|inside| payloads.iter().all(|payload| inside.contains(payload)))
    });
    if found {
        Ok(())
    } else {
        Err(format!("{suite}: no {exchange} with {payloads:?} in {messages:?}").into())
    }
}

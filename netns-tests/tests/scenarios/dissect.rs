//! Raw ESP on the wire, read by tshark, an implementation that shares nothing with ours: every packet
//! is authentic to it, and inside is what was sent.

use crate::pair::{Pair, Setup, Side};
use braid_netns::capture::Capture;
use braid_netns::dissect::{self, Cipher, Dissected, EspSa};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::traffic::{Pings, ping};
use std::net::IpAddr;

pub(crate) const ALL: &[Scenario] = &[("dissect::raw_esp_is_read_by_tshark", raw_esp_is_read_by_tshark)];

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
        let setup = Setup { suite, key_bytes, encapsulation: "esp", tunnels: 2, outer6: Some(1) };
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

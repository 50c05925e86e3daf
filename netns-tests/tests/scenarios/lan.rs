//! Networks that are not the plain one: jumbo frames inside and outside, devices without offloads,
//! loss, congestion marks, a NAT in the middle. What crosses is compared byte by byte.

use crate::pair::{PROBE_INTERVAL, PROBE_MULTIPLIER, Pair, Setup, Side, patient};
use braid_netns::capture::{Capture, Packet};
use braid_netns::content::{self, Echo};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, SERVER, SERVER6};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Error, Netns, Offload, Result, Topology, fault, poll_until, retry_until};
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("lan::jumbo_inside", || jumbo_inside(None)),
    ("lan::jumbo_inside_by_two_workers", || jumbo_inside(Some(2))),
    ("lan::jumbo_outside", jumbo_outside),
    ("lan::without_offloads", without_offloads),
    ("lan::loss_on_the_way", loss_on_the_way),
    ("lan::congestion_marks_and_classes", congestion_marks_and_classes),
    ("lan::behind_a_nat", behind_a_nat),
];

const SOON: Duration = Duration::from_secs(20);
const SYN: &str = "(tcp[13] & 2 != 0) or (ip6 proto 6 and ip6[53] & 2 != 0)";

fn one_tunnel() -> Setup {
    Setup { tunnels: 1, ..Setup::default() }
}

fn probe_off(text: &str) -> String {
    let probe = format!("{{ interval = \"{PROBE_INTERVAL}ms\", multiplier = {PROBE_MULTIPLIER} }}");
    text.replace(&probe, "\"off\"")
}

fn jumbo_inside(workers: Option<u32>) -> Outcome {
    // One path with IPv6 outside: it leaves less, and the clamp is for both.
    let setup = Setup { outer6: Some(1), workers, ..Setup::default() };
    let pair = Pair::start_patient_on(&setup, &Topology::builder().lan_mtu(9000))?;
    crosses(&pair.topology, &[1, 1400, 1411, 4000, 8972, 30_000, 65_507], 5)?;
    assert_eq!(clamped(&pair.topology)?, [1418 - 40, 1418 - 60]);
    Ok(())
}

fn jumbo_outside() -> Outcome {
    // Outer IPv4, UDP and ESP take 62 bytes of 9000.
    const MTU: u32 = 8938;
    let pair = Pair::start_patient_on(&one_tunnel(), &Topology::builder().lan_mtu(9000).outer_mtu(9000))?;
    let client = &pair.topology.client;
    let status = pair.a.status()?;
    assert_eq!(status["tunnels"][0]["mtu"].as_u64(), Some(u64::from(MTU)));
    for (address, headers) in [(SERVER, 28), (SERVER6, 48)] {
        let whole = Pings { size: MTU - headers, df: true, ..Pings::default() };
        assert_eq!(ping(client, address, &whole)?.rtt_ms.len(), 3);
        let more = Pings { size: whole.size + 1, count: 1, ..whole };
        assert!(ping(client, address, &more)?.rtt_ms.is_empty());
    }
    crosses(&pair.topology, &[1, 1472, 8910, 8911, 8972, 30_000, 65_507], 3)?;
    assert_eq!(clamped(&pair.topology)?, [MTU as u16 - 40, MTU as u16 - 60]);
    Ok(())
}

/// Datagrams of these sizes, and TCP, both ways and in both families.
fn crosses(topology: &Topology, sizes: &[usize], tries: u32) -> Outcome {
    for address in [SERVER, SERVER6] {
        let echo = Echo::new(&topology.client, &topology.server, address)?;
        for size in sizes {
            echo.round(*size, tries)?;
        }
        for bytes in [1, 100_000, 5_000_000] {
            for reverse in [false, true] {
                content::tcp(&topology.client, &topology.server, address, bytes, reverse, SOON)?;
            }
        }
    }
    Ok(())
}

/// The MSS that either end is offered, over IPv4 and IPv6.
fn clamped(topology: &Topology) -> std::result::Result<[u16; 2], Box<dyn std::error::Error>> {
    let mut found = [0; 2];
    for (address, found) in [SERVER, SERVER6].into_iter().zip(&mut found) {
        let captures =
            [&topology.server, &topology.client].map(|host| Capture::start(host, "eth0", SYN, 128));
        for _ in 0..8 {
            content::tcp(&topology.client, &topology.server, address, 10, false, SOON)?;
        }
        let mut offered = BTreeSet::new();
        for (capture, to_server) in captures.into_iter().zip([true, false]) {
            let packets = capture?.stop()?;
            let arrived = packets.iter().filter(|packet| {
                packet
                    .headers()
                    .is_some_and(|headers| (headers.destination.to_string() == address) == to_server)
            });
            let sizes: Vec<u16> = arrived.filter_map(mss).collect();
            assert_eq!(sizes.len(), 8, "to the server: {to_server}");
            offered.extend(sizes);
        }
        assert_eq!(offered.len(), 1, "{address}: {offered:?}");
        *found = offered.pop_first().unwrap_or_default();
    }
    Ok(found)
}

/// The MSS option of a SYN (RFC 9293 section 3.2).
fn mss(packet: &Packet) -> Option<u16> {
    let tcp = packet.ip.get(packet.headers()?.length..)?;
    let mut options = tcp.get(20..usize::from(*tcp.get(12)? >> 4) * 4)?;
    loop {
        match options {
            [2, 4, high, low, ..] => return Some(u16::from_be_bytes([*high, *low])),
            [1, rest @ ..] => options = rest,
            [kind, length, ..] if *kind != 0 => options = options.get(usize::from(*length).max(2)..)?,
            _ => return None,
        }
    }
}

fn without_offloads() -> Outcome {
    let off = |text: &str| format!("[core]\noffload = \"off\"\n\n{text}");
    for (a_off, b_off) in [(false, false), (true, false), (false, true), (true, true)] {
        let pair = Pair::start_edited(&one_tunnel(), Topology::builder().build()?, |side, text| {
            let text = patient(text);
            if (side == Side::A && a_off) || (side == Side::B && b_off) { off(&text) } else { text }
        })?;
        let topology = &pair.topology;
        let Topology { client, gateway_a, gateway_b, server, .. } = topology;
        let stages: [&[(&Netns, &str)]; 4] = [
            &[],
            &[(client, "eth0"), (gateway_a, "lan0")],
            &[(gateway_b, "wan0"), (gateway_a, "wan0")],
            &[(gateway_b, "lan0"), (server, "eth0")],
        ];
        for (stage, devices) in stages.into_iter().enumerate() {
            for (netns, device) in devices {
                netns.offload(device, Offload::All, false)?;
            }
            let both = crosses(topology, &[1, 1400, 1410, 4000, 65_507], 3);
            both.map_err(|why| format!("offload off at A: {a_off}, at B: {b_off}, stage {stage}: {why}"))?;
        }
        for gateway in [&pair.a, &pair.b] {
            let mut drops = gateway.drops()?;
            drops.retain(|reason, _| !matches!(reason.as_str(), "not_routable" | "unknown_spi"));
            assert!(drops.is_empty(), "{drops:?}");
        }
    }
    Ok(())
}

fn loss_on_the_way() -> Outcome {
    const LONG: Duration = Duration::from_secs(60);
    let pair = Pair::start_edited(&one_tunnel(), Topology::builder().build()?, |_, text| probe_off(&text))?;
    let topology = &pair.topology;
    let Topology { client, server, .. } = topology;
    // A loss is one packet then, not 64.
    topology.offloads(Offload::UdpSegmentation, false)?;
    for percent in [1.0, 5.0] {
        let faults = topology.lose(0, percent)?;
        for address in [SERVER, SERVER6] {
            for reverse in [false, true] {
                content::tcp(client, server, address, 2_000_000, reverse, LONG)?;
            }
        }
        drop(faults);
    }
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    for device in ["a0", "b0"] {
        let fault = fault::loss(internet, device, 20.0)?;
        for (address, reverse) in [(SERVER, false), (SERVER6, true)] {
            content::tcp(client, server, address, 200_000, reverse, LONG)?;
        }
        let echo = Echo::new(client, server, SERVER)?;
        let lost: u32 = (0..50).map(|size| echo.round(size * 20, 20)).sum::<Result<u32>>()?;
        assert!(lost > 0, "nothing was lost at 20 %");
        fault.undo()?;
    }
    for gateway in [&pair.a, &pair.b] {
        assert_eq!(gateway.status()?["tunnels"][0]["state"], "up");
    }
    Ok(())
}

/// ECN codepoints by their bits, and by nftables' names.
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;
const MARKS: [(u8, &str); 4] = [(NOT_ECT, "not-ect"), (ECT_1, "ect1"), (ECT_0, "ect0"), (CE, "ce")];

/// RFC 6040 section 4.2, figure 4: what leaves the tunnel, `None` for a drop.
fn decapsulated(inner: u8, outer: u8) -> Option<u8> {
    match (inner, outer) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (CE, _) | (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

fn congestion_marks_and_classes() -> Outcome {
    for outer6 in [None, Some(0)] {
        let setup = Setup { outer6, ..one_tunnel() };
        let pair = Pair::start_edited(&setup, Topology::builder().build()?, |_, text| probe_off(&text))?;
        let internet = pair.topology.internet.as_ref().ok_or("no internet")?;
        // The families inside and outside in three of the four ways.
        let addresses: &[&str] = if outer6.is_some() { &[SERVER6] } else { &[SERVER, SERVER6] };
        for &address in addresses {
            // What waits for a neighbour's address is overtaken by what comes just when it is known.
            Echo::new(&pair.topology.client, &pair.topology.server, address)?.round(20, 10)?;
            // Every class and mark, copied outside and restored inside.
            let all: Vec<u8> = (0..=255).collect();
            let (outer, inner) = marked(&pair.topology, address, &all)?;
            assert_eq!(outer, all, "{address}");
            assert_eq!(inner, all, "{address}");
            for (mark, name) in MARKS {
                let family = if outer6.is_some() { "ip6" } else { "ip" };
                internet.nft(&format!(
                    "table inet marks {{ chain c {{ type filter hook forward priority 0; \
                     iifname a0 {family} ecn set {name}; }}; }}"
                ))?;
                let sent: Vec<u8> = (0..64).collect();
                let before = pair.b.drops()?.get("ecn_illegal").copied().unwrap_or(0);
                let (_, inner) = marked(&pair.topology, address, &sent)?;
                internet.nft("delete table inet marks")?;
                let wanted: Vec<u8> =
                    sent.iter().filter_map(|tos| Some(tos & !3 | decapsulated(tos & 3, mark)?)).collect();
                assert_eq!(inner, wanted, "{address}, outside {name}");
                let dropped = pair.b.drops()?.get("ecn_illegal").copied().unwrap_or(0) - before;
                assert_eq!(dropped, (sent.len() - wanted.len()) as u64, "{address}, outside {name}");
            }
        }
    }
    Ok(())
}

/// Sends a datagram with each TOS; those of the outer packets as gateway A sends them, and those of
/// what reaches the server, both in order.
fn marked(topology: &Topology, address: &str, all: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    // What was joined is told apart on neither wire.
    topology.gateway_a.offload("wan0", Offload::UdpSegmentation, false)?;
    topology.gateway_b.offload("lan0", Offload::UdpSegmentation, false)?;
    let echo = Echo::new(&topology.client, &topology.server, address)?;
    let outside = Capture::start(&topology.gateway_a, "wan0", "udp dst port 4500", 64)?;
    let port = echo.server().local_addr().map_err(Error::io("no address"))?.port();
    let inside = Capture::start(&topology.server, "eth0", &format!("udp dst port {port}"), 64)?;
    for tos in all {
        let value = i32::from(*tos);
        let set = if address.contains(':') {
            setsockopt(echo.client(), sockopt::Ipv6TClass, &value)
        } else {
            setsockopt(echo.client(), sockopt::Ipv4Tos, &value)
        };
        set.map_err(|errno| Error::io("cannot mark")(errno.into()))?;
        echo.client().send(b"marked").map_err(Error::io("cannot send"))?;
    }
    let tos = |packet: &Packet| match packet.ip[0] >> 4 {
        4 => packet.ip[1],
        _ => packet.ip[0] << 4 | packet.ip[1] >> 4,
    };
    let inside = inside.stop()?.iter().map(tos).collect();
    let outside = outside.stop()?;
    let from_a = |packet: &&Packet| {
        packet.headers().is_some_and(|headers| {
            let path = &topology.paths[0];
            headers.source == path.a || headers.source == path.a6
        })
    };
    Ok((outside.iter().filter(from_a).map(tos).collect(), inside))
}

fn behind_a_nat() -> Outcome {
    /// Seconds that the NAT keeps a silent mapping: longer than between two keepalives, by little.
    const FORGETS: u64 = 22;
    let topology = Topology::builder().build()?;
    let internet = topology.internet.clone().ok_or("no internet")?;
    internet.nft(
        "table ip nat { chain post { type nat hook postrouting priority 100; \
         oifname b0 meta l4proto udp masquerade to :40000-49999 random; }; }",
    )?;
    internet.nft(
        "table ip count { counter keepalives { }; \
         chain c { type filter hook forward priority 0; iifname a0 udp length 9 counter name keepalives; }; }",
    )?;
    for timeout in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
        internet.sysctl(&format!("net/netfilter/{timeout}"), &FORGETS.to_string())?;
    }
    let remote = format!("remote = \"{}\"\n", topology.paths[0].a);
    let mut pair = Pair::launch(&one_tunnel(), topology, |side, text| {
        let text = probe_off(&text);
        if side == Side::B { text.replace(&remote, "role = \"respond\"\n") } else { text }
    })?;
    pair.a.wait_up(SOON)?;
    retry_until("B to wait for its peer", SOON, || {
        let status = pair.b.status().map_err(|error| error.to_string())?;
        let reason = status["tunnels"][0]["reason"].as_str().unwrap_or_default();
        if reason == "no peer has been heard yet" { Ok(()) } else { Err(reason.to_owned()) }
    })?;
    // B learns where A is from what A sends, and no sooner.
    poll_until("the first answer", SOON, || {
        let answered = !ping(&pair.topology.client, SERVER, &Pings::default()).ok()?.rtt_ms.is_empty();
        answered.then_some(())
    })?;
    pair.wait_up()?;
    let server = &pair.topology.server;
    let seen = || -> Result<String> {
        Ok(pair.b.status()?["tunnels"][0]["remote"].as_str().unwrap_or_default().to_owned())
    };
    crosses(&pair.topology, &[1, 1400, 1410, 4000], 3)?;
    let mapped = seen()?;
    let outside = "198.51.100.2:4";
    assert!(mapped.starts_with(outside) && !mapped.ends_with(":4500"), "{mapped}");
    // Silence, for longer than the NAT remembers.
    let quiet = Instant::now();
    let until = Duration::from_secs(FORGETS + 3);
    poll_until("the NAT's patience", until + SOON, || (quiet.elapsed() > until).then_some(()))?;
    assert_eq!(seen()?, mapped);
    assert!(ping(server, CLIENT, &Pings::default())?.loss() == 0.0, "the mapping was lost");
    let counted = internet.run(&["nft", "list", "counter", "ip", "count", "keepalives"])?.stdout;
    assert!(["packets 1 ", "packets 2 "].iter().any(|count| counted.contains(count)), "{counted}");
    Ok(())
}

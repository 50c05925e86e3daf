//! Traffic through tunnels with fixed keys: that it crosses, whatever its protocol, family and
//! size, and that nobody on the way sees any of it.

use crate::pair::{Pair, Setup, patient};
use crate::wireguard;
use braid_netns::capture::{Capture, Packet};
use braid_netns::content::{self, Echo};
use braid_netns::raw::checksum;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{SERVER, SERVER6};
use braid_netns::traffic::{IperfServer, Pings, TcpLoad, ping};
use braid_netns::{Offload, Topology};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) const ALL: &[Scenario] = &[
    ("tunnel::all_protocols_over_ipv4", all_protocols_over_ipv4),
    ("tunnel::all_protocols_over_ipv6", all_protocols_over_ipv6),
    ("tunnel::raw_esp", raw_esp),
    ("tunnel::every_suite", every_suite),
    ("tunnel::outer_checksums_are_there_and_right", outer_checksums_are_there_and_right),
];

const TCP: TcpLoad = TcpLoad { flows: 4, seconds: 1, reverse: false };
/// Bytes; the last ones are fragmented before they reach the gateway.
const UDP_SIZES: [usize; 9] = [1, 2, 15, 16, 512, 1300, 1472, 9000, 40_000];
const ESP: u8 = 50;
const TRANSFER: Duration = Duration::from_secs(20);
/// "Fragmentation needed" and "packet too big".
const TOO_BIG: &str = "(icmp[0] = 3 and icmp[1] = 4) or (icmp6 and ip6[40] = 2)";

fn all_protocols_over_ipv4() -> Outcome {
    everything_crosses_unseen(&Setup::default(), &[1438])
}

fn all_protocols_over_ipv6() -> Outcome {
    everything_crosses_unseen(&Setup { outer6: Some(1), ..Setup::default() }, &[1438, 1418])
}

fn raw_esp() -> Outcome {
    let setup = Setup { encapsulation: "esp", outer6: Some(1), ..Setup::default() };
    everything_crosses_unseen(&setup, &[1446, 1426])
}

/// With a capture of both outer paths, and of what the hosts are told; `mtus` are the tunnels', the
/// device's first.
fn everything_crosses_unseen(setup: &Setup, mtus: &[u32]) -> Outcome {
    let pair = Pair::start_patient(setup)?;
    let topology = &pair.topology;
    // Packets as a wire would carry them.
    topology.offloads(Offload::UdpSegmentation, false)?;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let captures = ["a0", "a1"]
        .iter()
        .map(|device| Capture::start(internet, device, "", 96))
        .collect::<Result<Vec<_>, _>>()?;
    let told = [&topology.client, &topology.server]
        .into_iter()
        .map(|host| Capture::start(host, "eth0", TOO_BIG, 96))
        .collect::<Result<Vec<_>, _>>()?;
    pings_cross(topology)?;
    for address in [SERVER, SERVER6] {
        udp_crosses(topology, address)?;
        let server = IperfServer::start(&topology.server, address)?;
        for reverse in [false, true] {
            let tcp = server.tcp(&topology.client, &TcpLoad { reverse, ..TCP })?;
            assert!(tcp.bytes > 1_000_000, "{address}: {tcp:?}");
        }
    }
    for (index, capture) in captures.into_iter().enumerate() {
        let packets = capture.stop()?;
        let esp = packets.iter().filter(|packet| is_esp(packet)).count();
        assert!(esp > 500, "path {index}: {esp} of {} packets are ESP", packets.len());
        let other: Vec<_> =
            packets.iter().filter(|packet| !is_esp(packet) && !is_housekeeping(packet)).collect();
        assert!(other.is_empty(), "path {index}: {} packets are no ESP: {:?}", other.len(), other[0]);
    }
    for capture in told {
        let packets = capture.stop()?;
        let told = |v6| packets.iter().filter(move |packet| packet.ip[0] >> 4 == if v6 { 6 } else { 4 });
        for v6 in [false, true] {
            let told: BTreeSet<u32> = told(v6).filter_map(Packet::too_big).collect();
            assert!(told.contains(&mtus[0]) && told.iter().all(|mtu| mtus.contains(mtu)), "{told:?}");
        }
    }
    Ok(())
}

pub(crate) fn pings_cross(topology: &Topology) -> Outcome {
    for address in [SERVER, SERVER6] {
        for size in [16, 17, 56, 1200, 8000, 20_000] {
            // IPv6 fragments at the sender, which learns the size by losing packets: see the datagrams.
            if address == SERVER6 && size > 1200 {
                continue;
            }
            let result = ping(&topology.client, address, &Pings { size, ..Pings::default() })?;
            assert_eq!(result.rtt_ms.len(), 3, "{size} bytes to {address}");
        }
        let df = Pings { size: 1200, df: true, ..Pings::default() };
        assert_eq!(ping(&topology.client, address, &df)?.rtt_ms.len(), 3, "with DF to {address}");
    }
    // Too big for the tunnel with DF: the gateway must say so to the sender, and smaller ones cross.
    let big = Pings { size: 1472, df: true, ..Pings::default() };
    assert_eq!(ping(&topology.client, SERVER, &big)?.rtt_ms.len(), 0, "1500 bytes crossed whole");
    let learnt = topology.client.ip(&format!("route get {SERVER}"))?;
    assert!(learnt.contains(" mtu 1"), "the path MTU was not told: {learnt}");
    Ok(())
}

/// Datagrams of every size there and back, contents compared.
pub(crate) fn udp_crosses(topology: &Topology, address: &str) -> Outcome {
    let echo = Echo::new(&topology.client, &topology.server, address)?;
    for size in UDP_SIZES {
        // Either end may have to learn from the device's MTU, and then from the tunnel's own.
        let lost = echo.round(size, 5)?;
        assert!(lost == 0 || size > 1300, "{lost} of {size} bytes to {address} were lost");
    }
    Ok(())
}

fn is_esp(packet: &Packet) -> bool {
    packet.is_esp_in_udp() || packet.headers().is_some_and(|headers| headers.protocol == ESP)
}

/// ARP and neighbour discovery, which stay on the link.
fn is_housekeeping(packet: &Packet) -> bool {
    match packet.ip.first().map(|first| first >> 4) {
        // Hop limit 255 (RFC 4861 section 6.1) and ICMPv6 133 to 137; or listener reports (143),
        // which carry a hop-by-hop header.
        Some(6) => match packet.ip.get(6) {
            Some(58) => packet.ip.get(40).is_some_and(|kind| (133..=137).contains(kind)),
            Some(0) => packet.ip.get(48) == Some(&143),
            _ => false,
        },
        Some(4) => false,
        // ARP: its first two bytes are the hardware type, 1.
        _ => packet.ip.starts_with(&[0, 1]),
    }
}

/// Every suite, with both encapsulations by turns; what it leaves of 1500 bytes is told, is carried
/// whole, and a byte more is refused.
fn every_suite() -> Outcome {
    let suites = [
        ("aes128gcm16", 20, 1438),
        ("aes256gcm16", 36, 1446),
        ("chacha20poly1305", 36, 1438),
        ("aes128-sha1", 36, 1438),
        ("aes256-sha1", 52, 1422),
        ("aes128-sha256", 48, 1438),
        ("aes256-sha256", 64, 1422),
        ("aes128-sha384", 64, 1422),
        ("aes256-sha384", 80, 1422),
        ("aes128-sha512", 80, 1422),
        ("aes256-sha512", 96, 1406),
    ];
    for (number, (suite, key_bytes, mtu)) in suites.into_iter().enumerate() {
        let encapsulation = if number % 2 == 0 { "udp" } else { "esp" };
        let pair =
            Pair::start_patient(&Setup { suite, key_bytes, encapsulation, tunnels: 1, ..Setup::default() })?;
        let told = pair.a.status()?["tunnels"][0]["mtu"].as_u64();
        assert_eq!(told, Some(mtu), "{suite} over {encapsulation}");
        let Topology { client, server, .. } = &pair.topology;
        for (address, headers) in [(SERVER, 28), (SERVER6, 48)] {
            let whole = Pings { size: mtu as u32 - headers, df: true, ..Pings::default() };
            assert_eq!(ping(client, address, &whole)?.rtt_ms.len(), 3, "{suite}: {mtu} bytes to {address}");
            let more = Pings { size: whole.size + 1, count: 1, ..whole };
            assert!(ping(client, address, &more)?.rtt_ms.is_empty(), "{suite}: more than {mtu} bytes whole");
            for reverse in [false, true] {
                content::tcp(client, server, address, 2_000_000, reverse, TRANSFER)?;
            }
        }
    }
    Ok(())
}

/// By both families and both protocols, where no device completes them on the way.
fn outer_checksums_are_there_and_right() -> Outcome {
    let esp = Pair::start_patient(&Setup { outer6: Some(1), ..Setup::default() })?;
    checksums_are_right(&esp)?;
    checksums_are_right(&wireguard::pair(1, &[0], patient)?)
}

fn checksums_are_right(pair: &Pair) -> Outcome {
    /// Each way, of each tunnel.
    const ENOUGH: usize = 20;
    let topology = &pair.topology;
    topology.offloads(Offload::All, false)?;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let captures = topology
        .paths
        .iter()
        .map(|path| Capture::start(internet, &format!("a{}", path.index), "udp", 0))
        .collect::<Result<Vec<_>, _>>()?;
    pings_cross(topology)?;
    for address in [SERVER, SERVER6] {
        udp_crosses(topology, address)?;
    }
    for reverse in [false, true] {
        content::tcp(&topology.client, &topology.server, SERVER, 200_000, reverse, TRANSFER)?;
    }
    for (path, capture) in captures.into_iter().enumerate() {
        let mut seen = BTreeMap::new();
        for packet in capture.stop()? {
            let headers = packet.headers().ok_or("no headers")?;
            let (addresses, udp) = if headers.source.is_ipv4() { (12, 20) } else { (8, 40) };
            assert_eq!(packet.ip.len(), packet.wire_length, "cut by the capture");
            // RFC 768: a zero says that there is none.
            assert_ne!(packet.ip[udp + 6..udp + 8], [0, 0], "no checksum: {headers:?}");
            let length = u32::try_from(packet.ip.len() - udp)?;
            let sum = checksum(&packet.ip[addresses..], 17 + length);
            assert_eq!(sum, 0, "a wrong checksum: {headers:?}, {length} bytes");
            *seen.entry(headers.source).or_insert(0) += 1;
        }
        assert!(seen.len() == 2 && seen.values().all(|count| *count > ENOUGH), "path {path}: {seen:?}");
    }
    Ok(())
}

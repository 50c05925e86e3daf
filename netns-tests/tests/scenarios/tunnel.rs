//! Traffic through tunnels with fixed keys: that it crosses, whatever its protocol, family and
//! size, and that nobody on the way sees any of it.

use crate::pair::{Pair, Setup};
use braid_netns::capture::{Capture, Packet};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{SERVER, SERVER6};
use braid_netns::traffic::{IperfServer, Pings, TcpLoad, ping};
use braid_netns::{Netns, Offload, Topology};
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

pub(crate) const ALL: &[Scenario] = &[
    ("tunnel::all_protocols_over_ipv4", all_protocols_over_ipv4),
    ("tunnel::all_protocols_over_ipv6", all_protocols_over_ipv6),
    ("tunnel::raw_esp", raw_esp),
    ("tunnel::every_suite", every_suite),
];

const TCP: TcpLoad = TcpLoad { flows: 4, seconds: 1, reverse: false };
/// Bytes; the last ones are fragmented before they reach the gateway.
const UDP_SIZES: [usize; 9] = [1, 2, 15, 16, 512, 1300, 1472, 9000, 40_000];
const ESP: u8 = 50;

fn all_protocols_over_ipv4() -> Outcome {
    everything_crosses_unseen(&Setup::default())
}

fn all_protocols_over_ipv6() -> Outcome {
    everything_crosses_unseen(&Setup { outer6: Some(1), ..Setup::default() })
}

fn raw_esp() -> Outcome {
    everything_crosses_unseen(&Setup { encapsulation: "esp", outer6: Some(1), ..Setup::default() })
}

/// With every suite, and a capture of both outer paths.
fn everything_crosses_unseen(setup: &Setup) -> Outcome {
    let pair = Pair::start(setup)?;
    let topology = &pair.topology;
    // Packets as a wire would carry them.
    topology.offloads(Offload::UdpSegmentation, false)?;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let captures = ["a0", "a1"]
        .iter()
        .map(|device| Capture::start(internet, device, "", 96))
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
    Ok(())
}

fn pings_cross(topology: &Topology) -> Outcome {
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
fn udp_crosses(topology: &Topology, address: &str) -> Outcome {
    let server = bind(&topology.server, address)?;
    let any = if address.contains(':') { "::" } else { "0.0.0.0" };
    let client = bind(&topology.client, any)?;
    client.connect(server.local_addr()?)?;
    let mut buffer = vec![0; 65_536];
    for size in UDP_SIZES {
        let sent: Vec<u8> = (0..size).map(|at| (at * 31 + size) as u8).collect();
        // Two of each: the first may find a path MTU out.
        let mut answered = false;
        for _ in 0..2 {
            if client.send(&sent).is_err() {
                continue;
            }
            let Ok((length, from)) = server.recv_from(&mut buffer) else { continue };
            assert_eq!(buffer[..length], sent[..], "{size} bytes to {address} arrived changed");
            server.send_to(&buffer[..length], from)?;
            let Ok(length) = client.recv(&mut buffer) else { continue };
            assert_eq!(buffer[..length], sent[..], "{size} bytes from {address} arrived changed");
            answered = true;
            break;
        }
        assert!(answered, "{size} bytes to {address} and back");
    }
    Ok(())
}

fn bind(netns: &Netns, address: &str) -> Result<UdpSocket, Box<dyn std::error::Error>> {
    let address: IpAddr = address.parse()?;
    let socket = netns.enter(|| UdpSocket::bind((address, 0)))??;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
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

/// Every suite in the list, with both encapsulations by turns.
fn every_suite() -> Outcome {
    let suites = [
        ("aes256gcm16", 36),
        ("chacha20poly1305", 36),
        ("aes128-sha256", 48),
        ("aes256-sha256", 64),
        ("aes128-sha1", 36),
        ("aes256-sha1", 52),
        ("aes256-sha384", 80),
        ("aes256-sha512", 96),
    ];
    for (number, (suite, key_bytes)) in suites.into_iter().enumerate() {
        let encapsulation = if number % 2 == 0 { "udp" } else { "esp" };
        let pair = Pair::start(&Setup { suite, key_bytes, encapsulation, tunnels: 1, outer6: None })?;
        for address in [SERVER, SERVER6] {
            let result = ping(&pair.topology.client, address, &Pings::default())?;
            assert_eq!(result.rtt_ms.len(), 3, "{suite} to {address}");
        }
        let server = IperfServer::start(&pair.topology.server, SERVER)?;
        let tcp = server.tcp(&pair.topology.client, &TCP)?;
        assert!(tcp.bytes > 1_000_000, "{suite}: {tcp:?}");
    }
    Ok(())
}

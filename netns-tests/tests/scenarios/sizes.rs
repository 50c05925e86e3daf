//! Packets of every size, whole, fragmented, too big, and what their senders are told.

use crate::pair::{Pair, Setup, patient};
use braid_netns::capture::{Capture, Packet};
use braid_netns::content::{self, Echo};
use braid_netns::gateway::Gateway;
use braid_netns::raw::{self, RawSocket};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, SERVER, SERVER6};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Family, Netns, Result, Topology, retry_until};
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

pub(crate) const ALL: &[Scenario] = &[
    ("sizes::one_byte_to_the_largest", || one_byte_to_the_largest(None)),
    ("sizes::one_byte_to_the_largest_by_two_workers", || one_byte_to_the_largest(Some(2))),
    ("sizes::fragments_of_a_flow_stay_together", || fragments_of_a_flow_stay_together(None)),
    ("sizes::fragments_of_a_flow_stay_together_at_two_workers", || {
        fragments_of_a_flow_stay_together(Some(2))
    }),
    ("sizes::df_cleared", df_cleared),
    ("sizes::a_narrower_path_is_followed", a_narrower_path_is_followed),
    ("sizes::a_path_that_is_wide_again_is_used", a_path_that_is_wide_again_is_used),
];

/// Of one tunnel with AES-GCM in UDP over IPv4 with 1500 bytes.
const MTU: usize = 1438;
/// "Fragmentation needed" and "packet too big".
const TOO_BIG: &str = "(icmp[0] = 3 and icmp[1] = 4) or (icmp6 and ip6[40] = 2)";
const SOON: Duration = Duration::from_secs(10);

fn one_tunnel() -> Setup {
    Setup { tunnels: 1, ..Setup::default() }
}

fn one_byte_to_the_largest(workers: Option<u32>) -> Outcome {
    let pair = Pair::start_patient(&Setup { workers, ..one_tunnel() })?;
    let Topology { client, server, .. } = &pair.topology;
    let told = Capture::start(client, "eth0", TOO_BIG, 96)?;
    for (address, headers, largest) in [(SERVER, 28, 65_507), (SERVER6, 48, 65_527)] {
        let echo = Echo::new(client, server, address)?;
        // Either end learns the path's MTU once; from then on nothing is lost.
        let lost = echo.round(1500 - headers, 3)?;
        assert_eq!(lost, 2, "{address}: each end loses one datagram to learn the MTU");
        let edge = MTU - headers;
        let whole = (0..=40).chain(edge - 40..=edge + 40).chain(1500 - headers - 8..=1500 - headers + 8);
        let sizes = whole.chain([2 * edge, 4000, 9000, 16_383, 16_384, 32_768, 50_000, largest]);
        for size in sizes {
            assert_eq!(echo.round(size, 1)?, 0);
        }
        for size in [1, 16, 56, edge - 1, edge, edge + 1, 1452, 8972, 40_000, 65_507] {
            let pings = Pings { size: size as u32, ..Pings::default() };
            // ping hands out no time below the size of one.
            let (sent, loss) = (size >= 16, ping(client, address, &pings)?.loss());
            assert!(!sent || loss == 0.0, "{size} bytes of ping to {address}");
        }
        for bytes in [1, edge, 10_000, 3_000_000] {
            for reverse in [false, true] {
                content::tcp(client, server, address, bytes, reverse, SOON)?;
            }
        }
    }
    // With DF on every packet, nothing but what fits crosses.
    for (address, headers) in [(SERVER, 28), (SERVER6, 48)] {
        for (size, crosses) in [(16, true), (MTU - headers, true), (MTU - headers + 1, false)] {
            let pings = Pings { size: size as u32, df: true, ..Pings::default() };
            assert_eq!(ping(client, address, &pings)?.rtt_ms.len(), if crosses { 3 } else { 0 }, "{size}");
        }
    }
    let told: BTreeSet<_> = told.stop()?.iter().filter_map(Packet::too_big).collect();
    assert_eq!(told, BTreeSet::from([MTU as u32]));
    // Without DF on any: the gateway fragments before it encrypts.
    for host in [client, server] {
        host.sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
        host.ip("route flush cache")?;
    }
    let told = Capture::start(client, "eth0", TOO_BIG, 96)?;
    let echo = Echo::new(client, server, SERVER)?;
    for size in [1, MTU - 28, MTU - 27, 1471, 1472, 1473, 2952, 2953, 30_000, 65_507] {
        assert_eq!(echo.round(size, 1)?, 0, "{size} bytes without DF");
    }
    assert_eq!(told.stop()?.len(), 0);
    for gateway in [&pair.a, &pair.b] {
        assert_eq!(unexpected(gateway.drops()?), BTreeMap::new());
    }
    Ok(())
}

/// What was dropped, without the multicast that every host sends on every link, and the probes of a
/// gateway that was up before its peer.
fn unexpected(mut drops: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    drops.retain(|reason, _| !matches!(reason.as_str(), "not_routable" | "unknown_spi"));
    drops
}

fn fragments_of_a_flow_stay_together(workers: Option<u32>) -> Outcome {
    const SIZE: usize = 6000;
    let pair = Pair::start_patient(&Setup { workers, ..Setup::default() })?;
    let topology = &pair.topology;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    for address in [SERVER, SERVER6] {
        let flows = 0..32_u8;
        let first = Echo::new(&topology.client, &topology.server, address)?;
        first.round(1500, 5)?;
        let captures = ["a0", "a1"].map(|device| Capture::start(internet, device, "udp dst port 4500", 64));
        for flow in flows.clone() {
            let echo = Echo::new(&topology.client, &topology.server, address)?;
            // Copied outside (RFC 4301 section 5.1.2), where it names the flow.
            mark(&echo, address, (flow + 1) << 2)?;
            for _ in 0..3 {
                echo.round(SIZE, 5)?;
            }
        }
        let mut ways: BTreeMap<u8, BTreeSet<usize>> = BTreeMap::new();
        let mut packets: BTreeMap<u8, usize> = BTreeMap::new();
        for (path, capture) in captures.into_iter().enumerate() {
            for packet in capture?.stop()?.iter().filter(|packet| packet.is_esp_in_udp()) {
                let flow = packet.ip[1] >> 2;
                if (1..=32).contains(&flow) && packet.headers().is_some_and(|h| is_from_a(h.source)) {
                    ways.entry(flow).or_default().insert(path);
                    *packets.entry(flow).or_default() += 1;
                }
            }
        }
        assert_eq!(ways.len(), flows.len());
        for (flow, ways) in &ways {
            assert_eq!(ways.len(), 1, "flow {flow} took {ways:?} to {address}");
        }
        let used: BTreeSet<_> = ways.values().flatten().collect();
        assert_eq!(used.len(), 2, "all flows to {address} took one path");
        // A super-packet of several counts as one in the capture; none would be no capture.
        assert!(packets.values().all(|count| *count > 0));
    }
    later_fragments_first(topology)
}

fn is_from_a(address: IpAddr) -> bool {
    address.to_string().starts_with("192.0.2.")
}

fn mark(echo: &Echo, address: &str, tos: u8) -> Result<()> {
    let set = if address.contains(':') {
        setsockopt(echo.client(), sockopt::Ipv6TClass, &i32::from(tos))
    } else {
        setsockopt(echo.client(), sockopt::Ipv4Tos, &i32::from(tos))
    };
    set.map_err(|errno| braid_netns::Error::io("cannot mark")(errno.into()))
}

/// The last fragment before the first: no ports are known yet, and still all of it arrives.
fn later_fragments_first(topology: &Topology) -> Outcome {
    let echo = Echo::new(&topology.client, &topology.server, SERVER)?;
    let socket = RawSocket::open(&topology.client, Family::V4)?;
    let (from, to): (IpAddr, IpAddr) = (CLIENT.parse()?, SERVER.parse()?);
    let port = echo.server().local_addr()?.port();
    let mut payload = vec![0; 2000];
    content::Pattern::new(7).fill(&mut payload);
    for id in 1..20_u16 {
        let whole = raw::udp((from, 4000 + id), (to, port), 0, &payload);
        let data = &whole[20..];
        for (at, more) in [(1600, false), (800, true), (0, true)] {
            let part = &data[at..data.len().min(at + 800)];
            let mut packet = raw::ip(from, to, 17, 0, part);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            let offset = (at / 8) as u16 | if more { 0x2000 } else { 0 };
            packet[6..8].copy_from_slice(&offset.to_be_bytes());
            socket.send(&packet)?;
        }
        let mut got = vec![0; 4000];
        let length = echo.server().recv(&mut got)?;
        assert_eq!(got[..length], payload[..], "fragments in reverse");
    }
    Ok(())
}

fn df_cleared() -> Outcome {
    let topology = Topology::builder().build()?;
    let pair = Pair::start_edited(&one_tunnel(), topology, |_, text| {
        patient(text).replace("type = \"ipsec\"\n", "type = \"ipsec\"\ndf = \"clear\"\n")
    })?;
    let Topology { client, server, .. } = &pair.topology;
    let told = ["eth0"; 2]
        .iter()
        .zip([client, server])
        .map(|(device, host)| Capture::start(host, device, TOO_BIG, 96));
    let told = told.collect::<Result<Vec<_>>>()?;
    // Whole on the LAN, with DF; in fragments through the tunnel, and nobody is told.
    let echo = Echo::new(client, server, SERVER)?;
    for size in [1410, 1411, 1450, 1472] {
        assert_eq!(echo.round(size, 1)?, 0, "{size} bytes with DF");
        let pings = Pings { size: size as u32, df: true, ..Pings::default() };
        assert_eq!(ping(client, SERVER, &pings)?.rtt_ms.len(), 3, "{size} bytes of ping with DF");
    }
    // IPv6 has no DF to clear: its senders are told.
    assert_eq!(Echo::new(client, server, SERVER6)?.round(1452, 3)?, 2);
    for capture in told {
        let packets = capture.stop()?;
        let families: BTreeSet<_> = packets.iter().map(|packet| packet.ip[0] >> 4).collect();
        assert_eq!(families, BTreeSet::from([6]));
        assert_eq!(packets.iter().filter_map(Packet::too_big).collect::<BTreeSet<_>>(), [MTU as u32].into());
    }
    for reverse in [false, true] {
        content::tcp(client, server, SERVER, 3_000_000, reverse, SOON)?;
    }
    Ok(())
}

/// A router in the middle says that less fits: senders are told in turn, and what fits crosses.
fn a_narrower_path_is_followed() -> Outcome {
    for (outer6, encapsulation, before, after) in [
        (None, "udp", 1438, 1338),
        (Some(0), "udp", 1418, 1318),
        (None, "esp", 1446, 1346),
        (Some(0), "esp", 1426, 1326),
    ] {
        let pair = Pair::start_patient(&Setup { outer6, encapsulation, ..one_tunnel() })?;
        let Topology { client, server, .. } = &pair.topology;
        let internet = pair.topology.internet.as_ref().ok_or("no internet")?;
        fits(client, before)?;
        narrow(&pair, internet, outer6.is_some(), "add")?;
        let told = Capture::start(client, "eth0", TOO_BIG, 96)?;
        learn(&pair, before, after)?;
        fits(client, after)?;
        let told: BTreeSet<_> = told.stop()?.iter().filter_map(Packet::too_big).collect();
        assert!(told.contains(&after) && told.iter().all(|mtu| [before, after].contains(mtu)), "{told:?}");
        for reverse in [false, true] {
            content::tcp(client, server, SERVER, 3_000_000, reverse, SOON)?;
            content::tcp(client, server, SERVER6, 3_000_000, reverse, SOON)?;
        }
        for gateway in [&pair.a, &pair.b] {
            assert_eq!(gateway.status()?["tunnels"][0]["state"], "up");
        }
    }
    Ok(())
}

/// The router in the middle takes 1400 bytes to either gateway (`add`), or as many as before (`del`).
fn narrow(pair: &Pair, internet: &Netns, v6: bool, what: &str) -> Outcome {
    let path = &pair.topology.paths[0];
    let ways = [(IpAddr::from(path.a), IpAddr::from(path.a6), "a0"), (path.b.into(), path.b6.into(), "b0")];
    for (v4, long, device) in ways {
        let (family, far) = if v6 { ("-6", long) } else { ("-4", v4) };
        let len = if v6 { 128 } else { 32 };
        internet.ip(&format!("{family} route {what} {far}/{len} dev {device} mtu lock 1400"))?;
    }
    Ok(())
}

/// Packets of `before` bytes, until the gateways have learned that only `after` fit.
fn learn(pair: &Pair, before: u32, after: u32) -> Outcome {
    let Topology { client, server, .. } = &pair.topology;
    for (gateway, host, address) in [(&pair.a, client, SERVER), (&pair.b, server, CLIENT)] {
        retry_until("the path's new MTU", SOON, || {
            let whole = Pings { size: before - 28, df: true, count: 1, ..Pings::default() };
            ping(host, address, &whole).map_err(|error| error.to_string())?;
            let mtu = mtu(gateway).map_err(|error| error.to_string())?;
            if mtu == Some(u64::from(after)) { Ok(()) } else { Err(format!("{mtu:?}")) }
        })?;
    }
    Ok(())
}

fn mtu(gateway: &Gateway) -> Result<Option<u64>> {
    Ok(gateway.status()?["tunnels"][0]["mtu"].as_u64())
}

/// The kernel forgets that a path was narrow, after ten minutes or what is set, and tells nobody.
fn a_path_that_is_wide_again_is_used() -> Outcome {
    for (outer6, before, after) in [(None, 1438, 1338), (Some(0), 1418, 1318)] {
        let topology = Topology::builder().build()?;
        for netns in [&topology.gateway_a, &topology.gateway_b] {
            netns.sysctl("net/ipv4/route/mtu_expires", "3")?;
            netns.sysctl("net/ipv6/route/mtu_expires", "3")?;
        }
        let pair = Pair::start_edited(&Setup { outer6, ..one_tunnel() }, topology, |_, text| patient(text))?;
        let internet = pair.topology.internet.as_ref().ok_or("no internet")?;
        narrow(&pair, internet, outer6.is_some(), "add")?;
        learn(&pair, before, after)?;
        narrow(&pair, internet, outer6.is_some(), "del")?;
        for gateway in [&pair.a, &pair.b] {
            retry_until("the path's old MTU", SOON, || match mtu(gateway) {
                Ok(mtu) if mtu == Some(u64::from(before)) => Ok(()),
                other => Err(format!("{other:?}")),
            })?;
        }
        fits(&pair.topology.client, before)?;
    }
    Ok(())
}

/// Packets of `mtu` bytes cross whole, larger ones do not.
fn fits(client: &Netns, mtu: u32) -> Outcome {
    for (address, headers) in [(SERVER, 28), (SERVER6, 48)] {
        let whole = Pings { size: mtu - headers, df: true, count: 2, ..Pings::default() };
        retry_until("whole packets", SOON, || match ping(client, address, &whole) {
            Ok(result) if result.rtt_ms.len() == 2 => Ok(()),
            Ok(_) => Err(format!("{mtu} bytes to {address}: no answer")),
            Err(error) => Err(error.to_string()),
        })?;
        let more = Pings { size: whole.size + 1, count: 1, ..whole };
        assert!(ping(client, address, &more)?.rtt_ms.is_empty(), "more than {mtu} bytes to {address}");
    }
    Ok(())
}

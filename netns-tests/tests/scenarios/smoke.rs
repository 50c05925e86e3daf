//! The harness itself: that its networks carry traffic, that its faults bite, and that it cleans
//! up. What fails here makes every other scenario meaningless.

use braid_netns::capture::Capture;
use braid_netns::leak::{Check, State};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{SERVER, SERVER6};
use braid_netns::traffic::{IperfServer, Pings, TcpLoad, ping};
use braid_netns::{Netns, Offload, Topology, fault, poll_until};
use std::time::Duration;

pub(crate) const ALL: &[Scenario] = &[
    ("smoke::plain_forwarding", plain_forwarding),
    ("smoke::direct_topology", direct_topology),
    ("smoke::no_route_without_plain_routes", no_route_without_plain_routes),
    ("smoke::cut_is_silent_and_heals", cut_is_silent_and_heals),
    ("smoke::loss_and_limits", loss_and_limits),
    ("smoke::capture_sees_both_families", capture_sees_both_families),
    ("smoke::leak_check_finds_leaks", leak_check_finds_leaks),
    ("smoke::dropping_kills_what_forked_away", dropping_kills_what_forked_away),
];

const TCP: TcpLoad = TcpLoad { flows: 1, seconds: 1, reverse: false };

fn plain_forwarding() -> Outcome {
    let topology = Topology::builder().paths(2).build()?;
    topology.add_plain_routes()?;
    for address in [SERVER, SERVER6] {
        let result = ping(&topology.client, address, &Pings::default())?;
        assert_eq!((result.sent, result.rtt_ms.len()), (3, 3), "{address}");
    }
    // Both outer paths reach the other gateway.
    for path in &topology.paths {
        for far in [path.b.to_string(), path.b6.to_string()] {
            let result = ping(&topology.gateway_a, &far, &Pings::default())?;
            assert_eq!(result.rtt_ms.len(), 3, "{far}");
        }
    }
    let server = IperfServer::start(&topology.server, SERVER)?;
    for reverse in [false, true] {
        let tcp = server.tcp(&topology.client, &TcpLoad { reverse, ..TCP })?;
        assert!(tcp.bytes > 10_000_000, "{tcp:?}");
    }
    let before = State::of(&topology.gateway_a)?;
    topology.remove_plain_routes()?;
    let changes = before.changes(&State::of(&topology.gateway_a)?);
    assert_eq!(changes.len(), 2, "{changes:?}");
    Ok(())
}

fn direct_topology() -> Outcome {
    let topology = Topology::builder().direct().paths(3).lan_mtu(9000).build()?;
    topology.add_plain_routes()?;
    topology.offloads(Offload::All, false)?;
    let result = ping(&topology.client, SERVER, &Pings { size: 1472, df: true, ..Pings::default() })?;
    assert_eq!(result.rtt_ms.len(), 3);
    let result = ping(&topology.client, SERVER, &Pings { size: 1473, df: true, ..Pings::default() })?;
    assert_eq!(result.rtt_ms.len(), 0, "1501 bytes crossed an MTU of 1500");
    topology.offloads(Offload::All, true)?;
    let server = IperfServer::start(&topology.server, SERVER)?;
    assert!(server.tcp(&topology.client, &TCP)?.bytes > 10_000_000);
    Ok(())
}

fn no_route_without_plain_routes() -> Outcome {
    let topology = Topology::builder().build()?;
    assert_eq!(ping(&topology.client, SERVER, &Pings::default())?.rtt_ms.len(), 0);
    Ok(())
}

fn cut_is_silent_and_heals() -> Outcome {
    for builder in [Topology::builder(), Topology::builder().direct()] {
        let topology = builder.build()?;
        topology.add_plain_routes()?;
        assert!(ping(&topology.client, SERVER, &Pings::default())?.loss() < 0.1);
        let cut = topology.cut(0)?;
        for address in [SERVER, SERVER6] {
            let result = ping(&topology.client, address, &Pings::default())?;
            assert!(result.rtt_ms.is_empty(), "{address} answers through a cut");
        }
        // Silent: the link is up and the neighbour is there.
        let links = topology.gateway_a.ip("-o link show wan0")?;
        assert!(links.contains("state UP"), "{links}");
        for fault in cut {
            fault.undo()?;
        }
        for address in [SERVER, SERVER6] {
            assert!(ping(&topology.client, address, &Pings::default())?.loss() < 0.1, "{address}");
        }
    }
    Ok(())
}

fn loss_and_limits() -> Outcome {
    let topology = Topology::builder().build()?;
    topology.add_plain_routes()?;
    let many = Pings { count: 400, interval: Duration::from_millis(2), ..Pings::default() };
    let faults = topology.lose(0, 20.0)?;
    let lost = ping(&topology.client, SERVER, &many)?.loss();
    // Both ways: 36 % expected; six standard deviations are 14 %.
    assert!((0.22..0.50).contains(&lost), "lost {lost}");
    drop(faults);
    assert!(ping(&topology.client, SERVER, &many)?.loss() < 0.01);

    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let fault = fault::limit_packets(internet, "a0", 50, 5)?;
    let lost = ping(&topology.client, SERVER, &many)?.loss();
    assert!(lost > 0.5, "500 a second through a limit of 50: lost {lost}");
    fault.undo()?;

    let fault = fault::limit_bits(internet, "b0", 50, 50)?;
    let server = IperfServer::start(&topology.server, SERVER)?;
    let tcp = server.tcp(&topology.client, &TcpLoad { seconds: 2, ..TCP })?;
    assert!(tcp.bits_per_second < 60e6, "{tcp:?}");
    fault.undo()?;
    Ok(())
}

fn capture_sees_both_families() -> Outcome {
    let topology = Topology::builder().build()?;
    topology.add_plain_routes()?;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let capture = Capture::start(internet, "a0", "icmp or icmp6", 128)?;
    for address in [SERVER, SERVER6] {
        ping(&topology.client, address, &Pings::default())?;
    }
    let packets = capture.stop()?;
    for address in [SERVER, SERVER6] {
        let to = packets.iter().filter_map(braid_netns::capture::Packet::headers);
        let requests = to.filter(|headers| headers.destination.to_string() == address).count();
        assert_eq!(requests, 3, "{address}");
    }
    Ok(())
}

fn leak_check_finds_leaks() -> Outcome {
    let check = Check::begin()?;
    let netns = Netns::new("leak")?;
    let before = State::of(&netns)?;
    netns.ip("link add d0 type bridge")?;
    netns.ip("link set d0 up")?;
    netns.ip("route add 203.0.113.0/24 dev d0")?;
    netns.ip("nexthop add id 7 via 203.0.113.1 dev d0")?;
    netns.sysctl("net/ipv4/ip_forward", "1")?;
    netns.nft("add table inet leak")?;
    let _sleeper = netns.spawn(&["sleep", "60"])?;
    let changes = before.changes(&State::of(&netns)?).join("\n");
    let kinds =
        ["device d0", "route 203.0.113.0/24", "nexthop id 7", "forwarding = 1", "table inet leak", "process"];
    for kind in kinds {
        assert!(changes.contains(kind), "{kind} not in\n{changes}");
    }
    let found = check.left_over()?.join("\n");
    assert!(found.contains(netns.name()) && found.contains("sleep"), "{found}");
    Ok(())
}

fn dropping_kills_what_forked_away() -> Outcome {
    let netns = Netns::new("fork")?;
    netns.run(&["sh", "-c", "setsid sleep 300 >/dev/null 2>&1 &"])?;
    let pids = poll_until("the forked process", Duration::from_secs(5), || {
        netns.processes().ok().filter(|pids| !pids.is_empty())
    })?;
    drop(netns);
    for pid in pids {
        let gone = !std::path::Path::new(&format!("/proc/{pid}")).exists();
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(gone || state.contains(") Z"), "{pid} still runs");
    }
    Ok(())
}

//! A tunnel that itself runs over the plain interface, as over Direct Connect with private addresses, beside one over
//! the internet: it carries while the interface is there.

use crate::bgp::{SOON, until};
use crate::direct::{FAR, LINK, NEAR, carries, topology};
use crate::failover::answers_to_probes;
use crate::pair::{Pair, Setup, patient};
use braid_netns::capture::Capture;
use braid_netns::paced::{Load, Paced};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, NET_A, NET_B, OuterPath, SERVER};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Error, Result, Topology, retry_until};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] =
    &[("direct_tunnel::its_interface_goes_and_comes_back", its_interface_goes_and_comes_back)];

/// Each way.
const LOAD: Load = Load::told_apart(64, 2);
const FEW: Pings = Pings { count: 5, interval: Duration::from_millis(20), size: 56, df: false };
/// From the loss of the interface to the last flow by the other tunnel: no probe needs to fail for it.
const MOVED: Duration = Duration::from_secs(1);
/// Of the tunnel over the interface.
const DIRECT: usize = 1;

/// Tunnel `t0` over the internet, `t1` over the interface and preferred.
fn start() -> Result<Pair> {
    let mut topology = topology(1)?;
    let address = |text: &str| text.parse::<Ipv4Addr>().map_err(|bad| Error::parse("an address", bad));
    let (a, b) = (address(NEAR)?, address(FAR)?);
    let over = OuterPath { index: DIRECT, device: LINK.to_owned(), a, b, ..topology.paths[0].clone() };
    topology.paths.push(over);
    Pair::start_edited(&Setup::default(), topology, |_, text| {
        let name = format!("name = \"t{DIRECT}\"\n");
        patient(text).replace(&name, &format!("{name}priority = 10\n"))
    })
}

/// Both ends use this tunnel alone.
fn both_use(pair: &Pair, tunnel: &str) -> Outcome {
    for (gateway, prefix) in [(&pair.a, NET_B), (&pair.b, NET_A)] {
        until(gateway, &format!("{tunnel} to carry"), |status| carries(status, prefix) == [tunnel])?;
    }
    Ok(())
}

/// What crosses is sealed, between the outer addresses of the tunnel that is over this device.
fn sealed_by(topology: &Topology, path: usize) -> Outcome {
    let outer = &topology.paths[path];
    let filter = format!("host {} and host {}", outer.a, outer.b);
    let seen = Capture::start(&topology.gateway_a, &outer.device, &filter, 96)?;
    let hosts = format!("host {CLIENT} or host {SERVER}");
    let clear = Capture::start(&topology.gateway_a, &outer.device, &hosts, 96)?;
    for (from, to) in [(&topology.client, SERVER), (&topology.server, CLIENT)] {
        assert_eq!(ping(from, to, &FEW)?.rtt_ms.len(), 5, "{to} by path {path}");
    }
    let sealed = seen.stop()?.iter().filter(|packet| packet.is_esp_in_udp()).count();
    assert!(sealed >= 20, "{sealed} packets by path {path}");
    assert_eq!(clear.stop()?.len(), 0, "in clear on {}", outer.device);
    Ok(())
}

/// Set down, or removed and made anew.
fn its_interface_goes_and_comes_back() -> Outcome {
    let pair = start()?;
    let topology = &pair.topology;
    let (a, b) = (&topology.gateway_a, &topology.gateway_b);
    both_use(&pair, "t1")?;
    sealed_by(topology, DIRECT)?;
    for removed in [false, true] {
        for tunnel in [0, DIRECT] {
            answers_to_probes(&pair, tunnel)?;
        }
        let origin = Instant::now();
        let under_way = loads(topology, origin)?;
        let lost_at = origin.elapsed();
        a.ip(&if removed { format!("link del {LINK}") } else { format!("link set {LINK} down") })?;
        both_use(&pair, "t0")?;
        for gateway in [&pair.a, &pair.b] {
            let status = gateway.status()?;
            let tunnel = &status["tunnels"][DIRECT];
            assert_eq!(
                (&tunnel["state"], &tunnel["last_failure"]["cause"]),
                (&"down".into(), &"link".into()),
                "{tunnel}"
            );
        }
        retry_until("all flows by the other tunnel", SOON, || {
            (origin.elapsed() > lost_at + MOVED).then_some(()).ok_or("not yet")
        })?;
        for load in under_way {
            let resumed = load.finish()?.resumed(lost_at);
            assert_eq!(resumed.len(), LOAD.flows, "every flow goes on");
            let slowest = resumed.iter().map(|(_, at)| *at - lost_at).max().unwrap_or_default();
            assert!(slowest < MOVED, "the slowest flow came back after {slowest:?}");
        }
        sealed_by(topology, 0)?;
        let under_way = loads(topology, Instant::now())?;
        if removed {
            a.veth(LINK, b, LINK, 1500)?;
            a.address(LINK, &format!("{NEAR}/30"))?;
            b.address(LINK, &format!("{FAR}/30"))?;
        } else {
            a.ip(&format!("link set {LINK} up"))?;
        }
        both_use(&pair, "t1")?;
        for load in under_way {
            let log = load.finish()?;
            assert_eq!((log.lost(), log.refused, log.damaged), (Vec::new(), 0, 0), "of {}", log.sent());
        }
        sealed_by(topology, DIRECT)?;
    }
    Ok(())
}

fn loads(topology: &Topology, origin: Instant) -> Result<[Paced; 2]> {
    Ok([
        Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?,
        Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?,
    ])
}

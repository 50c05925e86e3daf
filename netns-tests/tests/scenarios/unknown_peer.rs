//! Peers whose addresses the configuration does not say, within prefixes that routes lead into their own tunnels.

use crate::kernel::kill_part;
use crate::pair::{Pair, START, Side};
use crate::wireguard::Pairs;
use braid_netns::gateway::Gateway;
use braid_netns::runner::{Outcome, Scenario, side_by_side};
use braid_netns::topology::{GATEWAY_A, GATEWAY_B, NET_A, NET_B, SERVER};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Error, Result, Topology, retry_until};
use std::time::Duration;

pub(crate) const ALL: &[Scenario] = &[
    ("unknown_peer::within_a_static_route", within_a_static_route),
    ("unknown_peer::within_a_learned_route", within_a_learned_route),
];

/// Where gateway B is.
const AROUND_B: &str = "198.51.100.0/24";
/// Longer than three probes without an answer.
const PINGS: Pings = Pings { count: 40, interval: Duration::from_millis(50), size: 56, df: false };

/// Each is a responder that knows its peer by its keys only; with BGP it learns the prefix, else it has it configured.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Ike,
    WireGuard,
    /// Its packets are told their interface.
    WireGuardByUplink,
}

fn within_a_static_route() -> Outcome {
    side_by_side(
        [Kind::Ike, Kind::WireGuard, Kind::WireGuardByUplink].map(|kind| move || carries(kind, false)),
    )
}

fn within_a_learned_route() -> Outcome {
    side_by_side([Kind::Ike, Kind::WireGuard].map(|kind| move || carries(kind, true)))
}

fn carries(kind: Kind, learned: bool) -> Outcome {
    let mut pair = start(kind, learned)?;
    if learned {
        retry_until("the prefix around the peer", START, || {
            let way = pair.a.braid(&["routes", AROUND_B]).map_err(|error| error.to_string())?;
            if way.stdout.contains(AROUND_B) && way.stdout.contains("t0") { Ok(()) } else { Err(way.stdout) }
        })?;
    }
    let topology = &pair.topology;
    let answers = std::thread::scope(|scope| {
        let pings = scope.spawn(|| ping(&topology.client, SERVER, &PINGS));
        // The next one knows where the peer is from its first plan on.
        kill_part(&topology.gateway_a, "braid-control")?;
        pings.join().map_err(|_| Error::Usage("ping panicked".to_owned()))?
    })?;
    assert_eq!(answers.rtt_ms.len(), PINGS.count as usize, "{kind:?}");
    // What is no packet of the tunnel goes into it.
    let way = topology.gateway_a.ip("route get 198.51.100.77")?;
    assert!(way.contains("dev braid0"), "{kind:?}: {way}");
    pair.a.wait_up(START)?;
    // Of the end whose control has lived all the time.
    let tunnel = &pair.b.status()?["tunnels"][0];
    assert_eq!((&tunnel["state"], &tunnel["failovers"]), (&"up".into(), &0.into()), "{kind:?}: {tunnel}");
    Ok(())
}

/// Gateway A reaches B by its default route only.
fn start(kind: Kind, learned: bool) -> Result<Pair> {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    topology.gateway_a.ip(&format!("route del {}/32", path.b))?;
    topology.gateway_a.ip("route add default via 192.0.2.2")?;
    let keys = Pairs::generate(&topology)?;
    let text = |side| configuration(side, kind, learned, &topology, &keys);
    let a = Gateway::start(&topology.gateway_a, &text(Side::A))?;
    let b = Gateway::start(&topology.gateway_b, &text(Side::B))?;
    let mut pair = Pair { a, b, topology };
    pair.wait_up()?;
    Ok(pair)
}

fn configuration(side: Side, kind: Kind, learned: bool, topology: &Topology, keys: &Pairs) -> String {
    let path = &topology.paths[0];
    let (source, asn, peer_asn, far) = match side {
        Side::A => (GATEWAY_A, 65_001, 65_002, NET_B),
        Side::B => (GATEWAY_B, 65_002, 65_001, NET_A),
    };
    let (peering, own, theirs) = match side {
        Side::A => (
            format!("local = \"{}\"\nrole = \"respond\"\ninside = \"169.254.10.1/30\"\n", path.a),
            &keys.braid,
            &keys.peer,
        ),
        Side::B => (
            format!("local = \"{}\"\nremote = \"{}\"\ninside = \"169.254.10.2/30\"\n", path.b, path.a),
            &keys.peer,
            &keys.braid,
        ),
    };
    let secrets = match kind {
        Kind::Ike => "type = \"ipsec\"\n\n[tunnel.ike]\npsk = \"correct horse battery staple\"\n".to_owned(),
        Kind::WireGuard | Kind::WireGuardByUplink => format!(
            "type = \"wireguard\"\n\n[tunnel.wireguard]\nprivate-key = \"{}\"\npeer-public-key = \"{}\"\n",
            own.private, theirs.public
        ),
    };
    let uplink = match (kind, side) {
        (Kind::WireGuardByUplink, Side::A) => "uplink = \"wan0\"\n",
        _ => "",
    };
    let mut text = format!(
        "[gateway]\nname = \"gateway\"\nsource = \"{source}\"\n\n[[tunnel]]\nname = \"t0\"\nprobe = \"500ms\"\n\
         {peering}{uplink}{secrets}\n[[route]]\nprefix = \"{far}\"\nvia = [\"t0\"]\n"
    );
    if learned {
        let announced = if side == Side::B { AROUND_B } else { NET_A };
        text.push_str(&format!(
            "\n[bgp]\nasn = {asn}\nrouter-id = \"{source}\"\nannounce = [\"{announced}\"]\n\
             \n[[bgp.neighbor]]\ntunnel = \"t0\"\nasn = {peer_asn}\n"
        ));
    } else if side == Side::A {
        text.push_str(&format!("\n[[route]]\nprefix = \"{AROUND_B}\"\nvia = [\"t0\"]\n"));
    }
    text
}

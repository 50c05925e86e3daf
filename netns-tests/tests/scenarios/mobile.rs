//! Addresses that are not what they seem, or do not stay, against strongSwan: NATs that change their
//! mind, gateways that move (MOBIKE, RFC 4555), and a gateway whose public address is a NAT's.

use crate::swan::{Both, Braid, START, swan};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::strongswan::Connection;
use braid_netns::{Topology, retry_until};
use serde_json::Value;
use std::time::Instant;

pub(crate) const ALL: &[Scenario] = &[
    ("mobile::through_a_nat_that_changes", through_a_nat_that_changes),
    ("mobile::braid_moves", braid_moves),
    ("mobile::strongswan_moves", strongswan_moves),
    ("mobile::behind_one_to_one_nat", behind_one_to_one_nat),
];

/// Gateway A's next address and its router's.
const A_NEXT: [&str; 2] = ["203.0.113.1", "203.0.113.2"];
/// Gateway B's.
const B_NEXT: [&str; 2] = ["203.0.113.5", "203.0.113.6"];
/// The address that the world knows a gateway behind a NAT by.
const PUBLIC: &str = "203.0.113.10";
/// By which a gateway is known wherever it is.
const NAME: &str = "branch-1.example.com";

/// Masquerading in the middle; then its mapping changes. Without MOBIKE the peer follows what is
/// authentic (RFC 7296 section 2.23), with it what it is told (RFC 4555 section 3.8).
fn through_a_nat_that_changes() -> Outcome {
    for mobike in [false, true] {
        let topology = Topology::builder().build()?;
        let connection = Connection { remote: "%any".to_owned(), ..swan(&topology) };
        masquerade(&topology, 20_000)?;
        let mut braid = Braid::default();
        braid.ike += &format!("dpd-interval = \"1s\"\ndpd-timeout = \"20s\"\nmobike = {mobike}\n");
        let mut both = Both::start(topology, &braid, &connection)?;
        both.wait_up()?;
        both.carries(500_000)?;
        let before = both.swan_ike_sa()?;
        assert!(peer_of(&both)?.contains("[20"), "not through the NAT's port: {}", peer_of(&both)?);

        masquerade_anew(&both.topology, "b0", "198.51.100.2/30", 30_000)?;
        both.carries(500_000)?;
        let peer = peer_of(&both)?;
        assert!(peer.contains("[30"), "mobike {mobike}: still at the old mapping: {peer}");
        assert_eq!(before, both.swan_ike_sa()?, "mobike {mobike}: negotiated anew instead of followed");
    }
    Ok(())
}

pub(crate) fn masquerade(topology: &Topology, first_port: u16) -> Outcome {
    masquerade_towards(topology, "b0", first_port)
}

/// What leaves by this device, of either family, has ports of its own from this one on.
pub(crate) fn masquerade_towards(topology: &Topology, device: &str, first_port: u16) -> Outcome {
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    internet.nft(&mapping(device, first_port))?;
    Ok(())
}

/// From now on it has other ports. An address of the device that goes takes the mappings of before with it; at no time
/// there is none, or what leaves then would go on without.
pub(crate) fn masquerade_anew(topology: &Topology, device: &str, address: &str, first_port: u16) -> Outcome {
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    internet.nft(&format!("delete table inet mapping\n{}", mapping(device, first_port)))?;
    internet.ip(&format!("addr del {address} dev {device}"))?;
    Ok(internet.address(device, address)?)
}

fn mapping(device: &str, first_port: u16) -> String {
    let last = first_port + 999;
    format!(
        "table inet mapping {{ chain out {{ type nat hook postrouting priority srcnat; \
         oifname \"{device}\" meta l4proto udp masquerade to :{first_port}-{last}; }}\n}}"
    )
}

/// Where strongSwan has its peer.
fn peer_of(both: &Both) -> braid_netns::Result<String> {
    Ok(both.swan.sas()?.ike.first().map(|ike| ike.remote.clone()).unwrap_or_default())
}

/// Braid, which began, gets another address, and loses the first.
fn braid_moves() -> Outcome {
    let topology = Topology::builder().build()?;
    let connection = Connection { remote: "%any".to_owned(), remote_id: NAME.to_owned(), ..swan(&topology) };
    let mut braid = Braid { local: Some(""), ..Braid::default() };
    braid.ike += &format!("local-id = \"{NAME}\"\n");
    let mut both = Both::start(topology, &braid, &connection)?;
    both.wait_up()?;
    both.wait_crossing()?;
    let before = (both.swan_ike_sa()?, both.tunnel()?["child"].clone());
    let loads = both.loads(Instant::now())?;

    let Topology { gateway_a, gateway_b, internet, paths, .. } = &both.topology;
    let internet = internet.as_ref().ok_or("no internet")?;
    let [next, router] = A_NEXT;
    internet.ip(&format!("addr add {router}/30 dev a0"))?;
    gateway_b.ip(&format!("route add {next}/32 via 198.51.100.2 dev wan0"))?;
    gateway_a.ip(&format!("addr add {next}/30 dev wan0"))?;
    gateway_a.ip(&format!("route replace {}/32 via {router} dev wan0 src {next}", paths[0].b))?;
    gateway_a.ip(&format!("addr del {}/30 dev wan0", paths[0].a))?;
    retry_until("strongSwan to follow", START, || {
        let peer = peer_of(&both).map_err(|error| error.to_string())?;
        if peer == format!("{next}[4500]") { Ok(()) } else { Err(both.failure(&peer)) }
    })?;
    both.carries(500_000)?;
    moved(&both, &before)?;
    assert_eq!(both.tunnel()?["local"], format!("{next}:4500"));
    for log in both.finish(loads)? {
        assert!(log.lost().len() < log.sent() / 2, "{} of {} lost", log.lost().len(), log.sent());
    }
    Ok(())
}

/// strongSwan, which began, gets another address, and loses the first; Braid takes calls from anywhere.
fn strongswan_moves() -> Outcome {
    let topology = Topology::builder().build()?;
    let connection = Connection { local: "%any".to_owned(), local_id: NAME.to_owned(), ..swan(&topology) };
    let mut braid = Braid { role: "respond", remote: Some(""), ..Braid::default() };
    braid.ike += &format!("remote-id = \"{NAME}\"\n");
    let mut both = Both::start(topology, &braid, &connection)?;
    both.swan.initiate().map_err(|error| both.failure(&error.to_string()))?;
    both.wait_up()?;
    both.wait_crossing()?;
    let before = (both.swan_ike_sa()?, both.tunnel()?["child"].clone());

    let Topology { gateway_a, gateway_b, internet, paths, .. } = &both.topology;
    let internet = internet.as_ref().ok_or("no internet")?;
    let [next, router] = B_NEXT;
    internet.ip(&format!("addr add {router}/30 dev b0"))?;
    gateway_a.ip(&format!("route add {next}/32 via 192.0.2.2 dev wan0"))?;
    gateway_b.ip(&format!("addr add {next}/30 dev wan0"))?;
    gateway_b.ip(&format!("route replace {}/32 via {router} dev wan0 src {next}", paths[0].a))?;
    gateway_b.ip(&format!("addr del {}/30 dev wan0", paths[0].b))?;
    retry_until("Braid to follow", START, || {
        let tunnel = both.tunnel().map_err(|error| error.to_string())?;
        if tunnel["remote"] == format!("{next}:4500") {
            Ok(())
        } else {
            Err(both.failure(&tunnel.to_string()))
        }
    })?;
    both.carries(500_000)?;
    moved(&both, &before)?;
    Ok(())
}

/// The IKE SA is the one of before, and the child SA, or its heir: strongSwan's ESP in user space cannot
/// move an SA, so it replaces it.
fn moved(both: &Both, (ike, child): &(String, Value)) -> Outcome {
    assert_eq!(*ike, both.swan_ike_sa()?, "negotiated anew instead of moved");
    let now = both.tunnel()?["child"].clone();
    let is_heir = now["rekeys"].as_u64() > child["rekeys"].as_u64();
    assert!(now["spi_in"] == child["spi_in"] || is_heir, "made anew instead of moved: {child} {now}");
    both.wait_settled(|_, _| true)
}

/// As on EC2: Braid has a private address, and a NAT gives it a public one, which is its identity. Either
/// side begins.
fn behind_one_to_one_nat() -> Outcome {
    for role in ["initiate", "respond"] {
        let topology = Topology::builder().build()?;
        let private = topology.paths[0].a;
        let internet = topology.internet.as_ref().ok_or("no internet")?;
        internet.nft(&format!(
            "table ip nat {{\n chain in {{ type nat hook prerouting priority dstnat; \
             iifname \"b0\" ip daddr {PUBLIC} dnat to {private}; }}\n \
             chain out {{ type nat hook postrouting priority srcnat; \
             oifname \"b0\" ip saddr {private} snat to {PUBLIC}; }}\n}}"
        ))?;
        topology.gateway_b.ip(&format!("route replace {PUBLIC}/32 via 198.51.100.2 dev wan0"))?;
        // The private address means nothing there.
        topology.gateway_b.ip(&format!("route del {private}/32"))?;
        let connection =
            Connection { remote: PUBLIC.to_owned(), remote_id: PUBLIC.to_owned(), ..swan(&topology) };
        let mut braid = Braid { role, ..Braid::default() };
        braid.ike += &format!("local-id = \"{PUBLIC}\"\n");
        let mut both = Both::start(topology, &braid, &connection)?;
        if role == "respond" {
            both.swan.initiate().map_err(|error| both.failure(&error.to_string()))?;
        }
        both.wait_up().map_err(|error| format!("{role}: {error}"))?;
        both.carries(500_000)?;
        let (tunnel, peer) = (both.tunnel()?, peer_of(&both)?);
        assert_eq!((&tunnel["local"], peer), (&format!("{private}:4500").into(), format!("{PUBLIC}[4500]")));
        // Keys are replaced through it from either side.
        for ours in [true, false] {
            let before = both.tunnel()?["child"]["spi_in"].clone();
            if ours {
                both.braid.rekey("swan", false)?
            } else {
                both.swan.rekey(false)?
            }
            both.wait_settled(|_, child| child["spi_in"] != before)?;
        }
        both.carries(500_000)?;
    }
    Ok(())
}

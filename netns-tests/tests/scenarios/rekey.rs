//! Keys replaced on request, many times in a row, by either side of two Braids under load: nothing is
//! lost, nothing is overtaken, and one SA pair is left.

use crate::pair::START;
use braid_netns::gateway::Gateway;
use braid_netns::paced::{Load, Paced};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, NET_A, NET_B, SERVER};
use braid_netns::{Result, Topology, retry_until};
use serde_json::Value;
use std::time::Instant;

pub(crate) const ALL: &[Scenario] = &[
    ("rekey::many_in_a_row_under_load", many_in_a_row_under_load),
    ("rekey::under_full_packets_both_ways", under_full_packets_both_ways),
];

/// Every so many rekeys of the child SA are followed by one of the IKE SA.
const CHILDREN_PER_IKE: usize = 5;

fn many_in_a_row_under_load() -> Outcome {
    rekeys_lose_nothing(40, Load::told_apart(64, 2))
}

/// Super-packets, which are cut into segments and sealed while the keys change.
fn under_full_packets_both_ways() -> Outcome {
    rekeys_lose_nothing(20, Load { burst: 10, ..Load::of_length(8, 1, 1400) })
}

/// `rekeys` of the child SA, with the load each way.
fn rekeys_lose_nothing(rekeys: usize, load: Load) -> Outcome {
    let topology = Topology::builder().build()?;
    topology.keep_flows_in_order()?;
    let path = &topology.paths[0];
    let mut b = start(&topology, "respond", [path.b.to_string(), path.a.to_string()], NET_A)?;
    let mut a = start(&topology, "initiate", [path.a.to_string(), path.b.to_string()], NET_B)?;
    a.wait_up(START)?;
    b.wait_up(START)?;
    let origin = Instant::now();
    let loads = [
        Paced::start(&topology.client, &topology.server, SERVER, load, origin)?,
        Paced::start(&topology.server, &topology.client, CLIENT, load, origin)?,
    ];
    for number in 0..rekeys {
        let before = tunnel(&a)?;
        // By turns, and at times both at once.
        match number % 3 {
            0 => a.rekey("t", false)?,
            1 => b.rekey("t", false)?,
            _ => a.rekey("t", false).and(b.rekey("t", false))?,
        }
        changed(&a, |now| now["child"]["spi_in"] != before["child"]["spi_in"])?;
        if number % CHILDREN_PER_IKE == 0 {
            // By the side that did not make the IKE SA: then it is who did.
            let ours = before["ike"]["initiator"] == true;
            (if ours { &b } else { &a }).rekey("t", true)?;
            changed(&a, |now| now["ike"]["initiator"] == !ours)?;
        }
    }
    let drops = format!("dropped at A {:?}, at B {:?}", a.drops()?, b.drops()?);
    for load in loads {
        let log = load.finish()?;
        assert_eq!(log.flaw(), None, "{drops}");
    }
    retry_until("the same pair on both sides", START, || {
        let [a, b] = [tunnel(&a), tunnel(&b)].map(|it| it.map_err(|error| error.to_string()));
        let (a, b) = (a?["child"].take(), b?["child"].take());
        let crossed = a["spi_in"] == b["spi_out"] && a["spi_out"] == b["spi_in"] && a["spi_in"].is_string();
        if crossed { Ok(()) } else { Err(format!("{a} {b}")) }
    })?;
    Ok(())
}

fn start(topology: &Topology, role: &str, [local, remote]: [String; 2], far: &str) -> Result<Gateway> {
    let netns = if role == "initiate" { &topology.gateway_a } else { &topology.gateway_b };
    Gateway::start(
        netns,
        &format!(
            "[gateway]\nname = \"{role}\"\n\
             \n[[tunnel]]\nname = \"t\"\ntype = \"ipsec\"\nrole = \"{role}\"\nlocal = \"{local}\"\n\
             remote = \"{remote}\"\nprobe = \"off\"\n\
             \n[tunnel.ike]\npsk = \"correct horse battery staple\"\n\
             \n[[route]]\nprefix = \"{far}\"\nvia = [\"t\"]\n"
        ),
    )
}

fn tunnel(gateway: &Gateway) -> Result<Value> {
    Ok(gateway.status()?["tunnels"][0].take())
}

fn changed(gateway: &Gateway, is_new: impl Fn(&Value) -> bool) -> Result<()> {
    retry_until("new keys", START, || {
        let now = tunnel(gateway).map_err(|error| error.to_string())?;
        let there = now["child"]["spi_in"].is_string() && now["ike"]["suite"].is_string();
        if there && is_new(&now) { Ok(()) } else { Err(now.to_string()) }
    })
}

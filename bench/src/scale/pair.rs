//! Two gateways with many tunnels between two addresses, told apart by their identities.

use super::Usage;
use braid_netns::gateway::Gateway;
use braid_netns::topology::{GATEWAY_A, GATEWAY_B, NET_A, NET_B};
use braid_netns::{Error, Result, Topology, TopologyBuilder, retry_until};
use serde_json::Value;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Networks behind all tunnels but the first, of four addresses each; A's, then B's.
const FAR: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 64, 0, 0), Ipv4Addr::new(100, 96, 0, 0)];
const FAR_SIZE: usize = 4;

/// Which gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

/// What the tunnels are to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Setup {
    pub(super) tunnels: usize,
    /// Probes as they are by default, instead of none.
    pub(super) probed: bool,
    /// More of B's configuration.
    pub(super) more_of_b: String,
}

/// Both at work. The first tunnel joins client and server.
#[derive(Debug)]
pub(super) struct Pair {
    // Before the network: dropped first.
    pub(super) a: Gateway,
    pub(super) b: Gateway,
    pub(super) topology: Topology,
}

impl Setup {
    fn configuration(&self, side: Side, topology: &Topology) -> String {
        let path = &topology.paths[0];
        let (name, source, local, remote, role, lan) = match side {
            Side::A => ("gateway-a", GATEWAY_A, path.a, path.b, "initiate", NET_B),
            Side::B => ("gateway-b", GATEWAY_B, path.b, path.a, "respond", NET_A),
        };
        let (ours, theirs, far) = match side {
            Side::A => ("a", "b", FAR[1]),
            Side::B => ("b", "a", FAR[0]),
        };
        let probe = if self.probed { "" } else { "probe = \"off\"\n" };
        let mut text = format!("[gateway]\nname = \"{name}\"\nsource = \"{source}\"\n");
        for tunnel in 0..self.tunnels {
            let prefix = match tunnel {
                0 => lan.to_owned(),
                // Far fewer than fit in a /11.
                #[allow(clippy::cast_possible_truncation)]
                _ => format!("{}/30", Ipv4Addr::from(u32::from(far) + (tunnel * FAR_SIZE) as u32)),
            };
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "\n[[tunnel]]\nname = \"t{tunnel}\"\ntype = \"ipsec\"\nrole = \"{role}\"\n\
                 local = \"{local}\"\nremote = \"{remote}\"\n{probe}\
                 \n[tunnel.ike]\npsk = \"secret number {tunnel}\"\n\
                 local-id = \"{ours}{tunnel}.example.com\"\nremote-id = \"{theirs}{tunnel}.example.com\"\n\
                 \n[[route]]\nprefix = \"{prefix}\"\nvia = [\"t{tunnel}\"]\n"
            );
        }
        if side == Side::B {
            text.push_str(&self.more_of_b);
        }
        text
    }

    /// Starts both and returns at once.
    pub(super) fn launch(&self) -> Result<Pair> {
        self.launch_on(Topology::builder().build()?)
    }

    pub(super) fn launch_on(&self, topology: Topology) -> Result<Pair> {
        let b = Gateway::start(&topology.gateway_b, &self.configuration(Side::B, &topology))?;
        let a = Gateway::start(&topology.gateway_a, &self.configuration(Side::A, &topology))?;
        Ok(Pair { a, b, topology })
    }

    /// Without the internet between the gateways.
    pub(super) fn direct() -> TopologyBuilder {
        Topology::builder().direct()
    }
}

impl Pair {
    pub(super) fn gateway(&self, side: Side) -> &Gateway {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    /// What the gateway's processes have used so far, and hold.
    pub(super) fn usage(&self, side: Side) -> Result<Usage> {
        Usage::of(match side {
            Side::A => &self.topology.gateway_a,
            Side::B => &self.topology.gateway_b,
        })
    }

    /// Waits until this many tunnels are up at both ends, looking every `pause`: a look costs the
    /// gateways something.
    pub(super) fn wait_up(&self, tunnels: usize, pause: Duration, limit: Duration) -> Result<()> {
        for side in [Side::A, Side::B] {
            let gateway = self.gateway(side);
            retry_until("every tunnel up", limit, || {
                let up =
                    gateway.status().map(|status| count_up(&status)).map_err(|error| error.to_string())?;
                if up >= tunnels {
                    return Ok(());
                }
                std::thread::sleep(pause);
                Err(format!("{up} of {tunnels} at {side:?}"))
            })?;
        }
        Ok(())
    }

    /// The first tunnel, as one side sees it.
    pub(super) fn first(&self, side: Side) -> Result<Value> {
        Ok(self.gateway(side).status()?["tunnels"][0].clone())
    }

    pub(super) fn internet(&self) -> Result<&braid_netns::Netns> {
        self.topology.internet.as_ref().ok_or_else(|| Error::Usage("no internet".to_owned()))
    }
}

fn count_up(status: &Value) -> usize {
    let tunnels = status["tunnels"].as_array().into_iter().flatten();
    tunnels.filter(|tunnel| tunnel["state"] == "up").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_up() {
        let status = serde_json::json!({"tunnels": [{"state": "up"}, {"state": "down"}, {"state": "up"}]});
        assert_eq!(count_up(&status), 2);
        assert_eq!(count_up(&Value::Null), 0);
    }
}

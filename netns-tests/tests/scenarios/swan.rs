//! Braid at the client's side, Debian's strongSwan at the server's: what the scenarios with both share.

use braid_netns::capture::{Capture, Packet};
use braid_netns::gateway::Gateway;
use braid_netns::paced::{Load, Log, Paced};
use braid_netns::runner::Outcome;
use braid_netns::strongswan::{Auth, Connection, IkeSa, Strongswan};
use braid_netns::topology::{CLIENT, NET_A, NET_B, SERVER};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Result, Topology, content, retry_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

pub(crate) const START: Duration = Duration::from_secs(20);
const TRANSFER: Duration = Duration::from_secs(20);
const SECRET: &str = "a.key.of_AWS.kind-2026";
pub(crate) const IKE: &str = "aes128-sha256-ecp256";
pub(crate) const ESP: &str = "aes128gcm16";
/// What strongSwan in user space carries on a busy machine without dropping any.
const LOAD: Load = Load::told_apart(16, 1);
/// A handshake of which many messages are lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Braid's end, as its configuration says it.
#[derive(Clone)]
pub(crate) struct Braid {
    pub(crate) role: &'static str,
    /// Our outer address, unless it is the first path's; empty: routing chooses.
    pub(crate) local: Option<&'static str>,
    /// The peer's, unless it is the first path's; empty: any.
    pub(crate) remote: Option<&'static str>,
    /// Lines of `[[tunnel]]`.
    pub(crate) tunnel: String,
    /// Lines of `[tunnel.ike]`.
    pub(crate) ike: String,
    pub(crate) proposals: Vec<String>,
    pub(crate) esp_proposals: Vec<String>,
}

impl Default for Braid {
    fn default() -> Self {
        Self {
            role: "initiate",
            local: None,
            remote: None,
            tunnel: "probe = \"off\"\n".to_owned(),
            ike: format!("psk = \"{SECRET}\"\n"),
            proposals: vec![IKE.to_owned()],
            esp_proposals: vec![ESP.to_owned()],
        }
    }
}

impl Braid {
    pub(crate) fn text(&self, topology: &Topology) -> String {
        let path = &topology.paths[0];
        let line = |key: &str, given: Option<&str>, usual: String| match given.unwrap_or(&usual) {
            "" => String::new(),
            address => format!("{key} = \"{address}\"\n"),
        };
        let local = line("local", self.local, path.a.to_string());
        let remote = line("remote", self.remote, path.b.to_string());
        format!(
            "[gateway]\nname = \"gateway-a\"\nsource = \"10.1.0.1\"\n\
             \n[[tunnel]]\nname = \"swan\"\ntype = \"ipsec\"\nrole = \"{}\"\n{local}{remote}\
             inside = \"169.254.10.2/30\"\n{}\
             \n[tunnel.ike]\n{}proposals = {:?}\nesp-proposals = {:?}\n\
             \n[[route]]\nprefix = \"{NET_B}\"\nvia = [\"swan\"]\n",
            self.role, self.tunnel, self.ike, self.proposals, self.esp_proposals
        )
    }
}

/// strongSwan's end to fit.
pub(crate) fn swan(topology: &Topology) -> Connection {
    let path = &topology.paths[0];
    Connection {
        local: path.b.to_string(),
        remote: path.a.to_string(),
        local_id: path.b.to_string(),
        remote_id: path.a.to_string(),
        auth: Auth::Psk(SECRET.to_owned()),
        proposals: IKE.to_owned(),
        esp_proposals: ESP.to_owned(),
        local_ts: NET_B.to_owned(),
        remote_ts: NET_A.to_owned(),
        connection: String::new(),
        child: String::new(),
        routes: None,
    }
}

/// Both ends on a network.
pub(crate) struct Both {
    pub(crate) braid: Gateway,
    pub(crate) swan: Strongswan,
    pub(crate) topology: Topology,
}

impl Both {
    /// strongSwan is there first.
    pub(crate) fn start(topology: Topology, braid: &Braid, connection: &Connection) -> Result<Self> {
        let swan = Strongswan::start(&topology.gateway_b, connection)?;
        let braid = Gateway::start(&topology.gateway_a, &braid.text(&topology))?;
        Ok(Self { braid, swan, topology })
    }

    /// Waits until Braid has the tunnel up, saying what both said when it does not come.
    pub(crate) fn wait_up(&mut self) -> Outcome {
        self.braid.wait_up(START).map_err(|error| self.failure(&error.to_string()).into())
    }

    pub(crate) fn failure(&self, what: &str) -> String {
        let status = self.braid.status().unwrap_or_default();
        let log = self.swan.log();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        format!("{what}\nbraid: {} {}\nstrongSwan:\n{}", status["tunnels"], status["drops"], tail.join("\n"))
    }

    /// Waits until the server answers through the tunnel, whoever started it.
    pub(crate) fn wait_crossing(&self) -> Outcome {
        let probe = Pings { count: 1, ..Pings::default() };
        retry_until("a first packet", PATIENCE, || match ping(&self.topology.client, SERVER, &probe) {
            Ok(result) if result.rtt_ms.is_empty() => Err("nothing comes back".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        })
        .map_err(|error| self.failure(&error.to_string()).into())
    }

    /// Pings, and TCP both ways, contents compared; in the middle nothing is seen but IKE and ESP.
    pub(crate) fn carries(&self, bytes: usize) -> Outcome {
        let Topology { client, server, internet, .. } = &self.topology;
        let internet = internet.as_ref().ok_or("no internet")?;
        let capture = Capture::start(internet, "a0", "ip", 96)?;
        self.wait_crossing()?;
        let pings = ping(client, SERVER, &Pings { count: 20, size: 600, ..Pings::default() })?;
        assert_eq!(pings.rtt_ms.len(), 20, "{}", self.failure("pings were lost"));
        for reverse in [false, true] {
            content::tcp(client, server, SERVER, bytes, reverse, TRANSFER)
                .map_err(|error| self.failure(&error.to_string()))?;
        }
        let packets = capture.stop()?;
        let esp = packets.iter().filter(|packet| packet.is_esp_in_udp()).count();
        assert!(esp > 40, "{esp} of {} packets are ESP", packets.len());
        let other = packets.iter().find(|packet| !packet.is_udp_of(&[500, 4500]));
        assert!(other.is_none(), "in clear: {:?}", other.and_then(Packet::headers));
        Ok(())
    }

    /// Kills Braid and starts another.
    pub(crate) fn restart_braid(&mut self, braid: &Braid) -> Result<()> {
        self.braid.process().signal(Signal::SIGKILL);
        self.braid.process().wait(START)?;
        self.braid = Gateway::start(&self.topology.gateway_a, &braid.text(&self.topology))?;
        Ok(())
    }

    /// Waits until Braid has noticed.
    pub(crate) fn wait_down(&self) -> Outcome {
        retry_until("the tunnel down", START, || {
            let tunnel = self.tunnel().map_err(|error| error.to_string())?;
            if tunnel["state"] == "up" { Err(self.failure("still up")) } else { Ok(()) }
        })?;
        Ok(())
    }

    /// Numbered packets both ways, 1000 a second each.
    pub(crate) fn loads(&self, origin: Instant) -> Result<[Paced; 2]> {
        let Topology { client, server, .. } = &self.topology;
        Ok([
            Paced::start(client, server, SERVER, LOAD, origin)?,
            Paced::start(server, client, CLIENT, LOAD, origin)?,
        ])
    }

    /// Ends the loads; all that was sent arrived.
    pub(crate) fn none_lost(&self, loads: [Paced; 2]) -> Outcome {
        for (log, from) in self.finish(loads)?.iter().zip(["Braid", "strongSwan"]) {
            let lost = log.lost();
            let (count, sent) = (lost.len(), log.sent());
            assert!(sent > 2000, "{sent} sent");
            let drops = self.braid.drops()?;
            let flaw = format!("from {from}: {count} of {sent} lost, {lost:?}; {drops:?}");
            assert!(lost.is_empty(), "{}", self.failure(&flaw));
        }
        Ok(())
    }

    /// Ends the loads: what Braid's side sent, what strongSwan's did.
    pub(crate) fn finish(&self, loads: [Paced; 2]) -> Result<[Log; 2]> {
        let [near, far] = loads;
        let logs = [near.finish()?, far.finish()?];
        for log in &logs {
            assert!(log.sent() > 0 && log.damaged == 0, "{} sent, {} damaged", log.sent(), log.damaged);
        }
        Ok(logs)
    }

    /// The SPIs of strongSwan's IKE SA, where it has one.
    pub(crate) fn swan_ike_sa(&self) -> Result<String> {
        let sas = self.swan.sas()?.ike.into_iter().find(|sa| sa.state == "ESTABLISHED");
        Ok(sas.map(|sa| sa.spis).unwrap_or_default())
    }

    /// Waits until both have one IKE SA and one child SA, and the same: what exchanges leave behind when
    /// they are done. `is_new` tells from strongSwan's IKE SA and Braid's child whether those are the ones
    /// that are to be left.
    pub(crate) fn wait_settled(&self, is_new: impl Fn(&IkeSa, &Value) -> bool) -> Outcome {
        let settled = retry_until("one SA pair on both sides", PATIENCE, || {
            let mut sas = self.swan.sas().map_err(|error| error.to_string())?;
            // Deleted by both: the half that receives is kept a while for packets under way.
            sas.children.retain(|child| child.state != "DELETED");
            let tunnel = self.tunnel().map_err(|error| error.to_string())?;
            let spi = |way: &str| {
                let text = tunnel["child"][way].as_str().unwrap_or_default();
                u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
            };
            let is_one = match (&sas.ike[..], &sas.children[..]) {
                ([ike], [child]) => {
                    ike.state == "ESTABLISHED"
                        && child.state == "INSTALLED"
                        && (Some(child.spi_in), Some(child.spi_out)) == (spi("spi_out"), spi("spi_in"))
                        && is_new(ike, &tunnel["child"])
                }
                _ => false,
            };
            if is_one && tunnel["state"] == "up" {
                Ok(())
            } else {
                Err(format!("{sas:?} {}", tunnel["child"]))
            }
        });
        settled.map_err(|error| self.failure(&error.to_string()).into())
    }

    pub(crate) fn tunnel(&self) -> Result<Value> {
        Ok(self.braid.status()?["tunnels"][0].clone())
    }
}

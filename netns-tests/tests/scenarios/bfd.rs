//! BFD in the tunnels: a cut that it notices, with and without a control that could help; sessions that outlive
//! control; and FRR's and BIRD's BFD as the other end.

use crate::failover::{
    CUT, LOAD, Moment, RECOVERY, STAGE, bounded_by, cause, cut_and_restore, state_of_the_cut,
};
use crate::kernel::kill_part;
use crate::pair::{Pair, START, Setup, Side, patient};
use crate::wireguard::{self, Pairs};
use braid_netns::capture::{Capture, Packet};
use braid_netns::frr::Frr;
use braid_netns::gateway::Gateway;
use braid_netns::guard::temp_dir;
use braid_netns::paced::Paced;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, SERVER};
use braid_netns::wireguard::Implementation;
use braid_netns::{Error, Netns, Result, Topology, retry_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::thread::sleep;
use std::time::Instant;

pub(crate) const ALL: &[Scenario] = &[
    ("bfd::a_cut_tunnel_is_left_and_taken_again", a_cut_tunnel_is_left_and_taken_again),
    ("bfd::the_core_leaves_a_tunnel_while_control_stands_still", the_core_acts_alone),
    ("bfd::sessions_outlive_a_killed_control", sessions_outlive_a_killed_control),
    ("bfd::over_ipv6_and_changed_by_a_reload", over_ipv6_and_changed_by_a_reload),
    ("bfd::frr_is_the_other_end", frr_is_the_other_end),
    ("bfd::bird_is_the_other_end", bird_is_the_other_end),
    ("bfd::in_wireguard", in_wireguard),
    ("bfd::frr_is_the_other_end_in_wireguard", frr_is_the_other_end_in_wireguard),
];

/// As often as the probes of other scenarios, so that what those allow for recovery holds here too.
const BFD: &str = "bfd = { interval = \"50ms\", multiplier = 3 }";
pub(crate) const INTERVAL_MS: f64 = 50.0;
/// RFC 5880 section 4.1: the flags, of which 8 is C.
const FLAGS: usize = 1;
const CONTROL_PLANE_INDEPENDENT: u8 = 8;
const KILLS: usize = 3;
/// Control packets of a session, over many detection times.
const ENOUGH: u64 = 40;

/// Every tunnel with BFD, and with probes that would notice nothing so soon.
pub(crate) fn with_bfd(text: String) -> String {
    patient(text).replace("\nprobe = ", &format!("\n{BFD}\nprobe = "))
}

fn pair_with_bfd(tunnels: usize) -> Result<Pair> {
    let setup = Setup { tunnels, ..Setup::default() };
    let pair =
        Pair::start_edited(&setup, Topology::builder().paths(tunnels).build()?, |_, text| with_bfd(text))?;
    for gateway in [&pair.a, &pair.b] {
        sessions_are(gateway, "up", INTERVAL_MS)?;
    }
    Ok(pair)
}

/// Waits until every session of the gateway is in this state, at this interval.
pub(crate) fn sessions_are(gateway: &Gateway, state: &str, interval_ms: f64) -> Result<()> {
    retry_until(&format!("BFD {state}"), START, || {
        let status = gateway.status().map_err(|error| error.to_string())?;
        let there = |tunnel: &Value| {
            let bfd = &tunnel["bfd"];
            bfd["state"] == state && (state != "up" || bfd["interval_ms"] == interval_ms)
        };
        let tunnels = status["tunnels"].as_array().ok_or("no tunnels")?;
        if tunnels.iter().all(there) { Ok(()) } else { Err(status.to_string()) }
    })
}

pub(crate) fn failovers(gateway: &Gateway) -> Result<u64> {
    let status = gateway.status()?;
    Ok(status["tunnels"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|tunnel| tunnel["failovers"].as_u64())
        .sum())
}

fn a_cut_tunnel_is_left_and_taken_again() -> Outcome {
    let pair = pair_with_bfd(2)?;
    assert_eq!(cut_and_restore(&pair, 2)?, ["bfd", "bfd"]);
    let status = pair.a.status()?;
    let bfd = &status["tunnels"][CUT]["bfd"];
    assert_eq!((&bfd["state"], &bfd["multiplier"]), (&"up".into(), &3.into()), "{bfd}");
    assert_eq!(status["tunnels"][CUT]["failover_causes"]["bfd"], 1);
    let failure = &status["tunnels"][CUT]["last_failure"];
    assert!(
        failure["detected_ns"].as_u64().is_some() && failure["masked_us"].as_f64().is_some(),
        "{failure}"
    );
    let text = pair.a.braid(&["status"])?.stdout;
    let row =
        |first: &str, cell: &str| text.lines().any(|line| line.starts_with(first) && line.contains(cell));
    assert!(row("BFD", "DETECTS") && row("t0", "50 ms x 3") && row("t0", "bfd"), "{text}");
    Ok(())
}

/// As in ESP.
fn in_wireguard() -> Outcome {
    let pair = wireguard::pair(2, &[0, 1], with_bfd)?;
    for gateway in [&pair.a, &pair.b] {
        sessions_are(gateway, "up", INTERVAL_MS)?;
    }
    assert_eq!(cut_and_restore(&pair, 2)?, ["bfd", "bfd"]);
    Ok(())
}

/// Both ends are others': the tunnel wireguard-go's, the session FRR's.
fn frr_is_the_other_end_in_wireguard() -> Outcome {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    let keys = Pairs::generate(&topology)?;
    let _peer = wireguard::peer(&topology, Implementation::Go, &keys, "", "")?;
    let text = wireguard::braid(&[path.a.to_string(), path.b.to_string()], &keys, "initiate", "");
    // No probe is to notice anything first.
    let text = text.replace("\nprobe = \"200ms\"\n", &format!("\nprobe = \"2s\"\n{BFD}\n"));
    let mut gateway = Gateway::start(&topology.gateway_a, &text)?;
    gateway.wait_up(START)?;
    let bfdd = "bfd\n peer 169.254.10.2 local-address 169.254.10.1\n  detect-multiplier 3\n  \
                receive-interval 50\n  transmit-interval 50\n !\n!\n";
    let _frr = Frr::start(&topology.gateway_b, &[("bfdd", bfdd)])?;
    sessions_are(&gateway, "up", INTERVAL_MS)?;
    let inside = Capture::start(&topology.gateway_b, "wg0", "udp port 3784 and src host 169.254.10.2", 128)?;
    let origin = Instant::now();
    let load = Paced::start(&topology.client, &topology.server, SERVER, wireguard::LOAD, origin)?;
    sleep(STAGE);
    assert_eq!(load.finish()?.flaw(), None);
    as_rfc_5881_wants(&inside.stop()?, [169, 254, 10, 2]);
    assert_eq!(failovers(&gateway)?, 0);
    let faults = topology.cut(CUT)?;
    crate::failover::wait_for_state(&gateway, "down")?;
    assert_eq!(cause(&gateway)?, "bfd");
    for fault in faults {
        fault.undo()?;
    }
    crate::failover::wait_for_state(&gateway, "up")?;
    sessions_are(&gateway, "up", INTERVAL_MS)?;
    Ok(())
}

/// Both controls are stopped when the path is cut: nobody but the cores can leave it.
fn the_core_acts_alone() -> Outcome {
    let pair = pair_with_bfd(2)?;
    let topology = &pair.topology;
    let origin = Instant::now();
    let loads = [
        Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?,
        Paced::start(&topology.server, &topology.client, CLIENT, LOAD, origin)?,
    ];
    sleep(STAGE);
    let controls = [&topology.gateway_a, &topology.gateway_b].map(Stopped::control);
    let cut = Moment::now(origin);
    let faults = topology.cut(CUT)?;
    sleep(STAGE);
    for control in controls {
        drop(control?);
    }
    state_of_the_cut(&pair, "down")?;
    assert_eq!([cause(&pair.a)?, cause(&pair.b)?], ["bfd", "bfd"]);
    let restored = Moment::now(origin);
    for fault in faults {
        fault.undo()?;
    }
    state_of_the_cut(&pair, "up")?;
    for load in loads {
        bounded_by(&load.finish()?, cut, restored, RECOVERY);
    }
    Ok(())
}

/// A process that does not run until this is dropped.
pub(crate) struct Stopped(Pid);

impl Stopped {
    pub(crate) fn control(netns: &Netns) -> Result<Self> {
        let pid = retry_until("braid-control running", START, || {
            let processes = netns.processes().map_err(|error| error.to_string())?;
            let is_control = |pid: &i32| {
                fs::read_to_string(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.starts_with("braid-control"))
            };
            processes.into_iter().find(is_control).ok_or_else(|| "no braid-control".to_owned())
        })?;
        let pid = Pid::from_raw(pid);
        let _ = kill(pid, Signal::SIGSTOP);
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

fn sessions_outlive_a_killed_control() -> Outcome {
    let pair = pair_with_bfd(2)?;
    let topology = &pair.topology;
    let origin = Instant::now();
    let load = Paced::start(&topology.client, &topology.server, SERVER, LOAD, origin)?;
    for _ in 0..KILLS {
        kill_part(&topology.gateway_a, "braid-control")?;
        sessions_are(&pair.a, "up", INTERVAL_MS)?;
    }
    assert_eq!(load.finish()?.flaw(), None);
    for gateway in [&pair.a, &pair.b] {
        sessions_are(gateway, "up", INTERVAL_MS)?;
        assert_eq!(failovers(gateway)?, 0);
        assert_eq!(gateway.status()?["tunnels"][0]["bfd"]["diagnostic"], Value::Null);
    }
    Ok(())
}

fn over_ipv6_and_changed_by_a_reload() -> Outcome {
    let only_v6 = |text: String| {
        let mut text = with_bfd(text);
        for (net, host) in [(10, 1), (10, 2), (11, 1), (11, 2)] {
            text = text.replace(&format!("\"169.254.{net}.{host}/30\", "), "");
        }
        text
    };
    let setup = Setup::default();
    let topology = Topology::builder().paths(setup.tunnels).build()?;
    let pair = Pair::start_edited(&setup, topology, |_, text| only_v6(text))?;
    for gateway in [&pair.a, &pair.b] {
        sessions_are(gateway, "up", INTERVAL_MS)?;
        assert_eq!(
            gateway.status()?["tunnels"][0]["bfd"]["local"].as_str().map(|local| &local[..4]),
            Some("fd00")
        );
    }
    // Slower by a poll sequence, without a down at either end.
    let slower = only_v6(setup.configuration(Side::A, &pair.topology.paths)).replace("\"50ms\"", "\"120ms\"");
    pair.a.write_configuration(&slower)?;
    assert!(pair.a.braid(&["reload"])?.status.success());
    for gateway in [&pair.a, &pair.b] {
        sessions_are(gateway, "up", 120.0)?;
        assert_eq!(failovers(gateway)?, 0);
    }
    // No longer asked for at one end: no failure at the other.
    pair.a.write_configuration(&slower.replace("\nbfd = ", "\n# bfd = "))?;
    assert!(pair.a.braid(&["reload"])?.status.success());
    sessions_are(&pair.b, "down", 0.0)?;
    // It says so for a while, and is gone then.
    let left = pair.a.status()?["tunnels"][0]["bfd"].clone();
    assert!(left.is_null() || left["state"] == "admin-down", "{left}");
    for gateway in [&pair.a, &pair.b] {
        assert_eq!(failovers(gateway)?, 0);
        assert_eq!(gateway.status()?["tunnels"][0]["state"], "up");
    }
    pair.a.write_configuration(&slower)?;
    assert!(pair.a.braid(&["reload"])?.status.success());
    for gateway in [&pair.a, &pair.b] {
        sessions_are(gateway, "up", 120.0)?;
    }
    let faults = pair.topology.cut(CUT)?;
    state_of_the_cut(&pair, "down")?;
    assert_eq!([cause(&pair.a)?, cause(&pair.b)?], ["bfd", "bfd"]);
    for fault in faults {
        fault.undo()?;
    }
    state_of_the_cut(&pair, "up")?;
    Ok(())
}

/// At B there is no session of Braid's: what comes for UDP port 3784 goes to the kernel, where bfdd listens.
fn frr_is_the_other_end() -> Outcome {
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let edit = |side, text| if side == Side::A { with_bfd(text) } else { patient(text) };
    let pair = Pair::start_edited(&setup, Topology::builder().build()?, edit)?;
    let netns = &pair.topology.gateway_b;
    // Without a listener it says nothing of the tunnel.
    sessions_are(&pair.a, "down", 0.0)?;
    let said = pair.a.braid(&["doctor"])?.stdout;
    assert!(
        said.contains("no session from 169.254.10.1 to 169.254.10.2: the peer does not answer"),
        "{said}"
    );
    let inside = Capture::start(netns, "braid0", "udp port 3784", 128)?;
    let frr = Frr::start(
        netns,
        &[(
            "bfdd",
            "bfd\n peer 169.254.10.1 local-address 169.254.10.2\n  detect-multiplier 3\n  \
             receive-interval 50\n  transmit-interval 50\n !\n!\n",
        )],
    )?;
    sessions_are(&pair.a, "up", INTERVAL_MS)?;
    let peer = |fits: &dyn Fn(&Value) -> bool| {
        retry_until("FRR's session", START, || {
            let peers = frr.json("show bfd peers json").map_err(|error| error.to_string())?;
            if fits(&peers[0]) { Ok(()) } else { Err(peers.to_string()) }
        })
    };
    peer(&|peer| {
        peer["status"] == "up"
            && peer["remote-transmit-interval"] == 50
            && peer["remote-receive-interval"] == 50
    })?;
    for _ in 0..KILLS {
        kill_part(&pair.topology.gateway_a, "braid-control")?;
        sessions_are(&pair.a, "up", INTERVAL_MS)?;
    }
    // Long enough for a silence to be noticed.
    retry_until("FRR to hear enough", START, || {
        let counters = frr.json("show bfd peers counters json").map_err(|error| error.to_string())?;
        let heard = counters[0]["control-packet-input"].as_u64().unwrap_or(0);
        if heard >= ENOUGH { Ok(()) } else { Err(counters.to_string()) }
    })?;
    // Another interval, by a poll sequence.
    let slower =
        with_bfd(setup.configuration(Side::A, &pair.topology.paths)).replace("\"50ms\"", "\"200ms\"");
    pair.a.write_configuration(&slower)?;
    assert!(pair.a.braid(&["reload"])?.status.success());
    peer(&|peer| peer["status"] == "up" && peer["remote-transmit-interval"] == 200)?;
    let counters = frr.json("show bfd peers counters json")?;
    assert_eq!(counters[0]["session-down"], 0, "{counters}");
    assert_eq!(failovers(&pair.a)?, 0);
    as_rfc_5881_wants(&inside.stop()?, [169, 254, 10, 1]);
    // Disabled by its user: no verdict on the path.
    let shutdown = ["bfd", "peer 169.254.10.1 local-address 169.254.10.2", "shutdown"];
    frr.configure(&shutdown)?;
    sessions_are(&pair.a, "down", 0.0)?;
    assert_eq!((failovers(&pair.a)?, pair.a.status()?["tunnels"][0]["state"].as_str()), (0, Some("up")));
    frr.configure(&[shutdown[0], shutdown[1], "no shutdown"])?;
    sessions_are(&pair.a, "up", 200.0)?;
    let faults = pair.topology.cut(CUT)?;
    crate::failover::wait_for_state(&pair.a, "down")?;
    assert_eq!(cause(&pair.a)?, "bfd");
    peer(&|peer| peer["status"] == "down")?;
    for fault in faults {
        fault.undo()?;
    }
    crate::failover::wait_for_state(&pair.a, "up")?;
    peer(&|peer| peer["status"] == "up")?;
    Ok(())
}

/// As with FRR; and BIRD is killed, which is a failure, and comes back.
fn bird_is_the_other_end() -> Outcome {
    const BIRD: &str = "router id 10.2.0.1;\nprotocol device { }\nprotocol bfd {\n interface \"*\" {\n  \
        min rx interval 50 ms;\n  min tx interval 50 ms;\n  multiplier 3;\n };\n \
        neighbor 169.254.10.1 dev \"braid0\" local 169.254.10.2;\n}\n";
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let edit = |side, text| if side == Side::A { with_bfd(text) } else { patient(text) };
    let pair = Pair::start_edited(&setup, Topology::builder().build()?, edit)?;
    let netns = &pair.topology.gateway_b;
    let directory = temp_dir("bird")?;
    let in_directory = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let [file, socket, pid] = ["bird.conf", "bird.ctl", "bird.pid"].map(in_directory);
    fs::write(&file, BIRD).map_err(Error::io("cannot write bird.conf"))?;
    let argv = ["bird", "-f", "-c", &file, "-s", &socket, "-P", &pid];
    let mut bird = netns.spawn(&argv)?;
    for _ in 0..2 {
        sessions_are(&pair.a, "up", INTERVAL_MS)?;
        retry_until("BIRD's session", START, || {
            let said = netns.run(&["birdc", "-s", &socket, "show", "bfd", "sessions"]);
            let said = said.map_err(|error| error.to_string())?.stdout;
            let up = |line: &str| line.starts_with("169.254.10.1 ") && line.contains(" Up ");
            if said.lines().any(up) { Ok(()) } else { Err(said) }
        })?;
        crate::failover::wait_for_state(&pair.a, "up")?;
        bird.signal(Signal::SIGKILL);
        bird.wait(START)?;
        crate::failover::wait_for_state(&pair.a, "down")?;
        assert_eq!(cause(&pair.a)?, "bfd");
        bird = netns.spawn(&argv)?;
    }
    crate::failover::wait_for_state(&pair.a, "up")?;
    Ok(())
}

/// What came out of the tunnel from Braid, which has this address.
pub(crate) fn as_rfc_5881_wants(packets: &[Packet], from: [u8; 4]) {
    const UDP: usize = 20;
    const CONTROL: usize = UDP + 8;
    let ours: Vec<&Packet> = packets.iter().filter(|packet| packet.ip.get(12..16) == Some(&from)).collect();
    assert!(ours.len() > 10, "{} packets of {}", ours.len(), packets.len());
    for packet in &ours {
        let port = u16::from_be_bytes([packet.ip[UDP], packet.ip[UDP + 1]]);
        assert!(port >= 49_152, "RFC 5881 section 4: source port {port}");
        assert_eq!(packet.ip[8], 255, "RFC 5881 section 5: TTL");
        assert_ne!(packet.ip[CONTROL + FLAGS] & CONTROL_PLANE_INDEPENDENT, 0, "the C bit");
    }
}

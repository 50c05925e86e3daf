//! Commands and signals against gateways that forward, where a played core would prove nothing.

use crate::pair::{Pair, Setup, Side, patient};
use braid_netns::gateway::binary;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, SERVER};
use braid_netns::{Error, Result, poll_until, retry_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

pub(crate) const ALL: &[Scenario] = &[
    ("commands::path_names_the_tunnel_that_a_flow_takes", path_names_the_tunnel),
    ("commands::a_signal_reloads", a_signal_reloads),
    ("commands::status_leaves_the_terminal_as_it_was", status_leaves_the_terminal),
];

const SOON: Duration = Duration::from_secs(10);
const SOURCE_PORT: u16 = 40_000;

fn path_names_the_tunnel() -> Outcome {
    const PACKETS: u64 = 500;
    let pair = Pair::start_patient(&Setup::default())?;
    let client = &pair.topology.client;
    let path = |protocol: &str, port: u16| -> Result<String> {
        let (from, to) = (SOURCE_PORT.to_string(), port.to_string());
        let flow = ["--src", CLIENT, "--proto", protocol, "--sport", &from, "--dport", &to, "--json"];
        let ran = pair.a.braid(&[&["path", SERVER][..], &flow].concat())?;
        assert!(ran.status.success(), "{}", ran.stderr);
        let way: Value = serde_json::from_str(&ran.stdout).map_err(|bad| Error::parse("braid path", bad))?;
        Ok(way["tunnel"].as_str().unwrap_or_default().to_owned())
    };
    // The last port of each tunnel.
    let mut ports = BTreeMap::new();
    for port in 5000..5032 {
        let tunnel = path("udp", port)?;
        assert_eq!(path("17", port)?, tunnel, "the same flow again");
        ports.insert(tunnel, port);
    }
    assert_eq!(ports.keys().collect::<Vec<_>>(), ["t0", "t1"], "other ports, other tunnels");
    let sent = |tunnel: &str| -> Result<u64> {
        let status = pair.a.status()?;
        let tunnels =
            status["tunnels"].as_array().ok_or_else(|| Error::parse("braid status", "no tunnels"))?;
        let found = tunnels.iter().find(|status| status["name"] == tunnel);
        Ok(found.and_then(|status| status["tx_packets"].as_u64()).unwrap_or_default())
    };
    for (tunnel, port) in &ports {
        let before = [sent("t0")?, sent("t1")?];
        let socket = client.enter(|| UdpSocket::bind((CLIENT, SOURCE_PORT)))??;
        for _ in 0..PACKETS {
            // Nobody listens there, and that may be said already.
            let _ = socket.send_to(&[0; 100], (SERVER, *port));
        }
        let other = if tunnel == "t0" { 1 } else { 0 };
        retry_until("all packets in the tunnel that was named", SOON, || {
            let now = sent(tunnel).map_err(|error| error.to_string())?;
            if now >= before[1 - other] + PACKETS { Ok(()) } else { Err(now.to_string()) }
        })?;
        // Probes go there all the time.
        let strays = sent(["t0", "t1"][other])? - before[other];
        assert!(strays < PACKETS / 5, "{strays} packets in the other tunnel");
    }
    // What leads into no tunnel is no success.
    assert_eq!(pair.a.braid(&["path", "198.18.0.1"])?.status.code(), Some(1));
    Ok(())
}

fn a_signal_reloads() -> Outcome {
    let mut pair = Pair::start_patient(&Setup::default())?;
    let hang_up = |pid: i32| kill(Pid::from_raw(pid), Signal::SIGHUP).map_err(std::io::Error::from);
    let text = patient(Setup::default().configuration(Side::A, &pair.topology.paths));
    let weighed =
        |weight: u32| text.replacen("name = \"t0\"\n", &format!("name = \"t0\"\nweight = {weight}\n"), 1);
    let before = pair.a.status()?["tunnels"][0]["child"].clone();
    let pid = pair.a.process().pid();
    pair.a.write_configuration(&weighed(0))?;
    hang_up(pid)?;
    pair.a.process().wait_for_output("tunnel.weight: 0 is out of range", SOON)?;
    pair.a.write_configuration(&weighed(5))?;
    hang_up(pid)?;
    retry_until("the new weight", SOON, || {
        let status = pair.a.status().map_err(|error| error.to_string())?;
        let paths = &status["routes"][0]["paths"];
        let found =
            paths.as_array().into_iter().flatten().any(|path| path["tunnel"] == "t0" && path["weight"] == 5);
        if found { Ok(()) } else { Err(status["routes"].to_string()) }
    })?;
    let status = pair.a.status()?;
    assert!((0..2).all(|tunnel| status["tunnels"][tunnel]["state"] == "up"), "{}", status["tunnels"]);
    assert_eq!(status["tunnels"][0]["child"], before);
    assert_eq!(pair.a.process().ended(), None);
    Ok(())
}

fn status_leaves_the_terminal() -> Outcome {
    const LEAVE: &str = "\x1b[?1049l";
    let pair = Pair::start_patient(&Setup::default())?;
    let netns = &pair.topology.gateway_a;
    let (program, run_dir) = (binary("braid")?, pair.a.run_dir());
    let command = format!("{} status --watch --run-dir {}", program.display(), run_dir.display());
    // It gives the command a terminal, and has its exit status.
    let mut script = netns.spawn(&["script", "-qefc", &command, "/dev/null"])?;
    script.wait_for_output("gateway-a: 2 of 2 tunnels up", SOON)?;
    script.wait_for_output("q leaves", SOON)?;
    assert!(!script.stdout().contains(LEAVE));
    let watching = poll_until("the command", SOON, || {
        netns.processes().ok()?.into_iter().find(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split('\0').nth(1) == Some("status")
        })
    })?;
    kill(Pid::from_raw(watching), Signal::SIGINT).map_err(std::io::Error::from)?;
    assert_eq!(script.wait(SOON)?.code(), Some(0));
    assert!(script.stdout().contains(LEAVE), "{:?}", script.stdout());
    Ok(())
}

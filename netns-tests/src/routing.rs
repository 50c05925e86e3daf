//! Debian's routing daemons in a namespace: FRR (`zebra` and `bgpd`, asked by `vtysh`) and BIRD (asked by
//! `birdc`). Each has directories of its own; FRR, whose paths are fixed, a `/run` of its own.

use crate::guard::{TempDir, temp_dir};
use crate::{Error, Netns, Process, Result, retry_until};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const START: Duration = Duration::from_secs(20);

/// A BGP neighbor of a daemon.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: String,
    /// Own address towards it.
    pub local: String,
    /// Own IPv6 address towards it: the next hop of what it is told.
    pub local6: String,
    /// Its AS number.
    pub asn: u32,
    /// RFC 2385.
    pub md5: Option<String>,
    /// MULTI_EXIT_DISC of what it is told.
    pub med: u32,
}

/// What a daemon does.
#[derive(Debug, Clone)]
pub struct Speaker {
    /// Own AS number.
    pub asn: u32,
    /// Own identifier.
    pub id: String,
    /// Keepalive and hold time, seconds.
    pub timers: (u32, u32),
    /// RFC 4724, in both roles.
    pub graceful_restart: bool,
    /// What it announces; connected networks, for FRR.
    pub networks: Vec<String>,
    /// Neighbors.
    pub peers: Vec<Peer>,
}

/// Running zebra and bgpd. Dropped, they are killed.
#[derive(Debug)]
pub struct Frr {
    netns: Netns,
    // Before the directory: dropped first.
    daemons: Process,
    _directory: TempDir,
}

impl Frr {
    /// Starts both daemons.
    ///
    /// # Errors
    /// When FRR is missing or does not answer.
    pub fn start(netns: &Netns, speaker: &Speaker) -> Result<Self> {
        let directory = temp_dir("frr")?;
        // They drop root.
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open).map_err(Error::io("cannot open a directory to FRR"))?;
        write(&directory.path().join("zebra.conf"), "ip forwarding\nipv6 forwarding\n")?;
        write(&directory.path().join("bgpd.conf"), &frr_configuration(speaker))?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
        command.arg(
            "mount -t tmpfs tmpfs /run; install -o frr -g frr -d /run/frr\n\
             /usr/lib/frr/zebra --log stdout -P 0 -f $0/zebra.conf &\n\
             exec /usr/lib/frr/bgpd --log stdout -P 0 -f $0/bgpd.conf",
        );
        command.arg(directory.path());
        let daemons = netns.spawn_command(command)?;
        let started = Self { netns: netns.clone(), daemons, _directory: directory };
        retry_until("bgpd", START, || started.vtysh("show bgp summary json"))?;
        Ok(started)
    }

    /// Runs a command of `vtysh`.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn vtysh(&self, command: &str) -> Result<String> {
        let pid = self.daemons.pid().to_string();
        let argv = ["nsenter", "--target", &pid, "--mount", "vtysh", "-c", command];
        Ok(self.netns.run(&argv)?.stdout)
    }

    /// A command of `vtysh` that answers in JSON.
    ///
    /// # Errors
    /// As [`Netns::run`], or when it does not.
    pub fn json(&self, command: &str) -> Result<serde_json::Value> {
        let said = self.vtysh(command)?;
        serde_json::from_str(&said).map_err(|bad| Error::parse("vtysh", bad))
    }

    /// Both daemons, to look at.
    pub fn process(&mut self) -> &mut Process {
        &mut self.daemons
    }
}

fn frr_configuration(speaker: &Speaker) -> String {
    let mut text = format!(
        "frr defaults traditional\nrouter bgp {}\n bgp router-id {}\n no bgp ebgp-requires-policy\n",
        speaker.asn, speaker.id
    );
    if speaker.graceful_restart {
        text.push_str(" bgp graceful-restart\n");
    }
    let (keepalive, hold) = speaker.timers;
    // Writing to a String does not fail.
    for peer in &speaker.peers {
        let address = &peer.address;
        let _ = write!(
            text,
            " neighbor {address} remote-as {}\n neighbor {address} timers {keepalive} {hold}\n \
             neighbor {address} timers connect 1\n neighbor {address} update-source {}\n",
            peer.asn, peer.local
        );
        if let Some(key) = &peer.md5 {
            let _ = writeln!(text, " neighbor {address} password {key}");
        }
    }
    for (family, is_v6) in [("ipv4", false), ("ipv6", true)] {
        let _ = writeln!(text, " address-family {family} unicast");
        for network in speaker.networks.iter().filter(|network| network.contains(':') == is_v6) {
            let _ = writeln!(text, "  network {network}");
        }
        for (index, peer) in speaker.peers.iter().enumerate() {
            let address = &peer.address;
            let _ =
                write!(text, "  neighbor {address} activate\n  neighbor {address} route-map to{index} out\n");
        }
        text.push_str(" exit-address-family\n");
    }
    text.push_str("exit\n");
    for (index, peer) in speaker.peers.iter().enumerate() {
        let _ = write!(
            text,
            "route-map to{index} permit 10\n set metric {}\n set ipv6 next-hop global {}\nexit\n",
            peer.med, peer.local6
        );
    }
    text
}

/// A running bird. Dropped, it is killed.
#[derive(Debug)]
pub struct Bird {
    netns: Netns,
    // Before the directory: dropped first.
    daemon: Process,
    directory: TempDir,
}

impl Bird {
    /// Starts it, with more routes than the speaker's networks. The protocol of the first peer is `peer0`.
    ///
    /// # Errors
    /// When BIRD is missing or does not answer.
    pub fn start(netns: &Netns, speaker: &Speaker, more: &[String]) -> Result<Self> {
        let directory = temp_dir("bird")?;
        write(&directory.path().join("bird.conf"), &bird_configuration(speaker, more))?;
        let mut command = Command::new("bird");
        command.args(["-f", "-c"]).arg(directory.path().join("bird.conf"));
        command.arg("-s").arg(directory.path().join("bird.ctl"));
        command.arg("-P").arg(directory.path().join("bird.pid"));
        if speaker.graceful_restart {
            // It says that it has restarted, and takes over what the kernel has.
            command.arg("-R");
        }
        let daemon = netns.spawn_command(command)?;
        let started = Self { netns: netns.clone(), daemon, directory };
        retry_until("bird", START, || started.birdc(&["show", "status"]))?;
        Ok(started)
    }

    /// Runs a command of `birdc`.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn birdc(&self, command: &[&str]) -> Result<String> {
        let control = self.directory.path().join("bird.ctl").to_string_lossy().into_owned();
        let argv = [&["birdc", "-s", &control][..], command].concat();
        Ok(self.netns.run(&argv)?.stdout)
    }

    /// The daemon, to signal it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.daemon
    }
}

fn bird_configuration(speaker: &Speaker, more: &[String]) -> String {
    let mut text = format!(
        "log stderr all;\nrouter id {};\nprotocol device {{}}\n\
         protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}\n\
         protocol kernel {{ ipv6 {{ import none; export where source = RTS_BGP; }}; }}\n",
        speaker.id
    );
    // Writing to a String does not fail.
    for (family, is_v6) in [("ipv4", false), ("ipv6", true)] {
        let _ = writeln!(text, "protocol static {{ {family};");
        let all = speaker.networks.iter().chain(more);
        for network in all.filter(|network| network.contains(':') == is_v6) {
            let _ = writeln!(text, "  route {network} blackhole;");
        }
        text.push_str("}\n");
    }
    for (index, peer) in speaker.peers.iter().enumerate() {
        let restart = if speaker.graceful_restart { "on" } else { "aware" };
        let _ = write!(
            text,
            "protocol bgp peer{index} {{\n  local {} as {};\n  neighbor {} as {};\n  hold time {};\n  \
             connect delay time 1;\n  connect retry time 1;\n  error wait time 1, 2;\n  graceful restart {restart};\n",
            peer.local, speaker.asn, peer.address, peer.asn, speaker.timers.1
        );
        if let Some(key) = &peer.md5 {
            let _ = writeln!(text, "  password \"{key}\";");
        }
        let export = format!(
            "import all; export filter {{ if source != RTS_STATIC then reject; bgp_med = {}; accept; }};",
            peer.med
        );
        let _ = write!(
            text,
            "  ipv4 {{ {export} next hop self; }};\n  ipv6 {{ {export} next hop address {}; }};\n}}\n",
            peer.local6
        );
    }
    text
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("cannot write {}", path.display())))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
        .map_err(Error::io(format!("cannot open {}", path.display())))
}

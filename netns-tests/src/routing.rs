//! What a BGP speaker of another make does, in the words of neither of them, and Debian's BIRD in a namespace, asked
//! by `birdc`; FRR is in [`crate::frr`].

use crate::guard::{TempDir, temp_dir};
use crate::{Error, Netns, Process, Result, retry_until};
use std::fmt::Write;
use std::fs;
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
    /// Links on the way to it.
    pub hops: u8,
    /// RFC 2385.
    pub md5: Option<String>,
    /// It begins. FRR only.
    pub passive: bool,
    /// RFC 5082. FRR only.
    pub ttl_security: bool,
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
    /// What it announces.
    pub networks: Vec<String>,
    /// Neighbors.
    pub peers: Vec<Peer>,
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
        let configured = directory.path().join("bird.conf");
        fs::write(&configured, bird_configuration(speaker, more))
            .map_err(Error::io(format!("cannot write {}", configured.display())))?;
        let mut command = Command::new("bird");
        command.args(["-f", "-c"]).arg(configured);
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
        if peer.hops > 1 {
            let _ = writeln!(text, "  multihop {};", peer.hops);
        }
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

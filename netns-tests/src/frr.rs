//! Debian's FRR in a namespace: `zebra` and the daemons asked for, asked by `vtysh`.
//!
//! Each instance has a directory of its own for sockets, where daemons find each other.

use crate::guard::{TempDir, temp_dir};
use crate::process::check;
use crate::routing::Speaker;
use crate::{Error, Netns, Process, Result, retry_until};
use nix::sys::signal::Signal;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const DAEMONS: &str = "/usr/lib/frr";
/// All run on routers.
const ZEBRA: &str = "ip forwarding\nipv6 forwarding\n";
/// Whom they run as.
const USER: &str = "frr";
const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(5);
/// Where a daemon that was killed leaves a directory, by its name and process id.
const LEFT: &str = "/var/tmp/frr";

/// Running daemons. Dropped, they end.
#[derive(Debug)]
pub struct Frr {
    netns: Netns,
    // Before the directory: dropped first.
    daemons: Vec<(String, Process)>,
    directory: TempDir,
}

impl Frr {
    /// Starts zebra, and daemons such as `("bfdd", configuration)`; waits until all answer.
    ///
    /// # Errors
    /// When FRR is missing, or a daemon does not start.
    pub fn start(netns: &Netns, daemons: &[(&str, &str)]) -> Result<Self> {
        let directory = temp_dir("frr")?;
        give(directory.path())?;
        let mut frr = Self { netns: netns.clone(), daemons: Vec::new(), directory };
        // The others look for zebra's socket when they start.
        frr.add("zebra", ZEBRA)?;
        for (name, configuration) in daemons {
            frr.add(name, configuration)?;
        }
        Ok(frr)
    }

    /// As [`Frr::start`], with a bgpd that does this.
    ///
    /// # Errors
    /// As [`Frr::start`].
    pub fn speak(netns: &Netns, speaker: &Speaker) -> Result<Self> {
        Self::start(netns, &[("bgpd", &bgpd_configuration(speaker))])
    }

    /// Starts one more daemon, and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn add(&mut self, name: &str, configuration: &str) -> Result<()> {
        self.configure_and_launch(name, configuration)
    }

    /// Kills a daemon, as a crash does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let running = self.daemons.iter().position(|(daemon, _)| daemon == name);
        let running = running.ok_or_else(|| Error::Usage(format!("no {name} runs")))?;
        let (_, mut daemon) = self.daemons.remove(running);
        daemon.signal(Signal::SIGKILL);
        daemon.wait(STOP)?;
        let _ = fs::remove_dir_all(format!("{LEFT}/{name}.{}", daemon.pid()));
        Ok(())
    }

    /// Starts a daemon that was killed, with the configuration that it had first and this much more.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self, name: &str, more: &str) -> Result<()> {
        let path = self.configuration(name);
        let before = fs::read_to_string(&path);
        let before = before.map_err(Error::io(format!("cannot read {}", path.display())))?;
        self.configure_and_launch(name, &(before + more))
    }

    fn configuration(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.conf"))
    }

    fn configure_and_launch(&mut self, name: &str, configuration: &str) -> Result<()> {
        let path = self.configuration(name);
        fs::write(&path, configuration).map_err(Error::io(format!("cannot write {}", path.display())))?;
        give(&path)?;
        self.launch(name)?;
        retry_until(name, START, || self.ask_daemon(name, "show version")).map(drop)
    }

    /// What `vtysh -c` says to this.
    ///
    /// # Errors
    /// When no daemon understands it.
    pub fn vtysh(&self, command: &str) -> Result<String> {
        self.ask(&[], &[command])
    }

    /// The same, parsed.
    ///
    /// # Errors
    /// As [`Frr::vtysh`], or when the answer is no JSON.
    pub fn json(&self, command: &str) -> Result<serde_json::Value> {
        serde_json::from_str(&self.vtysh(command)?).map_err(|bad| Error::parse(command, bad))
    }

    /// Changes the running configuration, line by line.
    ///
    /// # Errors
    /// As [`Frr::vtysh`].
    pub fn configure(&self, lines: &[&str]) -> Result<()> {
        self.ask(&[], &[&["configure terminal"], lines].concat()).map(drop)
    }

    fn ask_daemon(&self, daemon: &str, command: &str) -> Result<String> {
        self.ask(&["-d", daemon], &[command])
    }

    fn ask(&self, options: &[&str], commands: &[&str]) -> Result<String> {
        let mut vtysh = Command::new("vtysh");
        vtysh.arg("--vty_socket").arg(self.directory.path()).args(options);
        for command in commands {
            vtysh.args(["-c", command]);
        }
        Ok(check(&format!("vtysh {commands:?}"), self.netns.output_of(vtysh)?)?.stdout)
    }

    fn launch(&mut self, name: &str) -> Result<()> {
        let directory = self.directory.path();
        let mut command = Command::new(Path::new(DAEMONS).join(name));
        command.arg("-f").arg(self.configuration(name));
        command.arg("-i").arg(directory.join(format!("{name}.pid")));
        command.arg("-z").arg(directory.join("zserv.api"));
        command.arg("--vty_socket").arg(directory);
        // No port for the terminal, and the log where the harness keeps it.
        command.args(["-P", "0", "--log", "stdout"]);
        if name == "bfdd" {
            command.arg("--bfdctl").arg(directory.join("bfdd.sock"));
        }
        self.daemons.push((name.to_owned(), self.netns.spawn_command(command)?));
        Ok(())
    }
}

impl Drop for Frr {
    fn drop(&mut self) {
        // Killed, they leave a directory each behind in /var/tmp.
        for (_, daemon) in self.daemons.iter_mut().rev() {
            let _ = daemon.stop(STOP);
        }
    }
}

/// Makes a path theirs.
fn give(path: &Path) -> Result<()> {
    let owner = nix::unistd::User::from_name(USER)
        .map_err(|errno| Error::io("cannot look for the user frr")(errno.into()))?
        .ok_or_else(|| Error::Usage("no user frr: install Debian's frr".to_owned()))?;
    nix::unistd::chown(path, Some(owner.uid), Some(owner.gid))
        .map_err(|errno| Error::io(format!("cannot give {} away", path.display()))(errno.into()))
}

fn bgpd_configuration(speaker: &Speaker) -> String {
    let mut text = format!(
        "frr defaults traditional\nrouter bgp {}\n bgp router-id {}\n no bgp ebgp-requires-policy\n \
         no bgp network import-check\n",
        speaker.asn, speaker.id
    );
    if speaker.graceful_restart {
        text.push_str(" bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n");
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
        if peer.hops > 1 {
            let _ = writeln!(text, " neighbor {address} ebgp-multihop {}", peer.hops);
        }
        if let Some(key) = &peer.md5 {
            let _ = writeln!(text, " neighbor {address} password {key}");
        }
        if peer.passive {
            let _ = writeln!(text, " neighbor {address} passive");
        }
        if peer.ttl_security {
            let _ = writeln!(text, " neighbor {address} ttl-security hops 1");
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

//! Debian's FRR in a namespace: `zebra` and the daemons asked for, asked by `vtysh`.
//!
//! Each instance has a directory of its own for sockets, where daemons find each other.

use crate::guard::{TempDir, temp_dir};
use crate::process::check;
use crate::{Error, Netns, Process, Result, retry_until};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const DAEMONS: &str = "/usr/lib/frr";
/// Whom they run as.
const USER: &str = "frr";
const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(5);

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
        let owner = nix::unistd::User::from_name(USER)
            .map_err(|errno| Error::io("cannot look for the user frr")(errno.into()))?
            .ok_or_else(|| Error::Usage("no user frr: install Debian's frr".to_owned()))?;
        let give = |path: &Path| {
            nix::unistd::chown(path, Some(owner.uid), Some(owner.gid))
                .map_err(|errno| Error::io(format!("cannot give {} away", path.display()))(errno.into()))
        };
        give(directory.path())?;
        let mut frr = Self { netns: netns.clone(), daemons: Vec::new(), directory };
        for (name, text) in [("zebra", "")].iter().chain(daemons) {
            let path = frr.directory.path().join(format!("{name}.conf"));
            fs::write(&path, text).map_err(Error::io(format!("cannot write {}", path.display())))?;
            give(&path)?;
            frr.launch(name)?;
            // The others look for zebra's socket when they start.
            retry_until(name, START, || frr.ask_daemon(name, "show version"))?;
        }
        Ok(frr)
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

    /// The daemon of this name, to signal it.
    pub fn daemon(&mut self, name: &str) -> Option<&mut Process> {
        self.daemons.iter_mut().find(|(other, _)| other == name).map(|(_, process)| process)
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
        command.arg("-f").arg(directory.join(format!("{name}.conf")));
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
        for (_, process) in self.daemons.iter_mut().rev() {
            let _ = process.stop(STOP);
        }
    }
}

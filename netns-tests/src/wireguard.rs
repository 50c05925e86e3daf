//! Userspace WireGuard of others in a namespace: Debian's wireguard-go, and boringtun-cli. Both are driven by
//! Debian's `wg`.
//!
//! Each daemon has a mount namespace and a `/run` of its own, since all use the same paths there.

use crate::guard::{TempDir, temp_dir};
use crate::{Error, Netns, Process, Result, retry_until};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What everybody uses.
pub const PORT: u16 = 51820;
/// The device of every daemon, alone in its namespace.
pub const DEVICE: &str = "wg0";
/// An outer MTU of 1500 less IPv6, UDP and WireGuard: wg-quick's own figure.
pub const MTU: u32 = 1420;
const START: Duration = Duration::from_secs(10);

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Implementation {
    /// Debian's wireguard-go.
    Go,
    /// boringtun-cli, which `netns-tests/run` installs.
    Boringtun,
}

/// A key pair in base64.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Secret.
    pub private: String,
    /// Its public half.
    pub public: String,
}

impl Keys {
    /// Made by `wg`.
    ///
    /// # Errors
    /// When wireguard-tools are missing.
    pub fn generate(netns: &Netns) -> Result<Self> {
        let pair = netns.run(&["sh", "-c", "wg genkey | tee /dev/stderr | wg pubkey"])?;
        Ok(Self { private: pair.stderr.trim().to_owned(), public: pair.stdout.trim().to_owned() })
    }
}

/// A running daemon. Dropped, it is killed.
#[derive(Debug)]
pub struct Wireguard {
    netns: Netns,
    // Before the directory: dropped first.
    daemon: Process,
    directory: TempDir,
}

impl Wireguard {
    /// Starts it and makes its device, with this MTU, addresses and routes; it has no keys yet.
    ///
    /// # Errors
    /// When a program is missing or refuses.
    pub fn start(
        netns: &Netns,
        implementation: Implementation,
        mtu: u32,
        addresses: &[&str],
        routes: &[&str],
    ) -> Result<Self> {
        let argv = match implementation {
            Implementation::Go => vec!["wireguard-go".to_owned(), "--foreground".to_owned()],
            Implementation::Boringtun => {
                vec![boringtun()?, "--foreground".to_owned(), "--disable-drop-privileges".to_owned()]
            }
        };
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.args(["mount -t tmpfs tmpfs /run && exec \"$@\"", "sh"]).args(argv).arg(DEVICE);
        let daemon = netns.spawn_command(command)?;
        let started = Self { netns: netns.clone(), daemon, directory: temp_dir("wg")? };
        retry_until("the WireGuard daemon", START, || started.wg(&["show", DEVICE]))?;
        for address in addresses {
            netns.address(DEVICE, address)?;
        }
        netns.ip(&format!("link set {DEVICE} mtu {mtu} up"))?;
        for route in routes {
            netns.ip(&format!("route add {route} dev {DEVICE}"))?;
        }
        Ok(started)
    }

    /// Sets keys and peers, as in the files of `wg setconf`.
    ///
    /// # Errors
    /// When `wg` refuses them.
    pub fn configure(&self, text: &str) -> Result<()> {
        let file = self.directory.path().join("wg.conf");
        fs::write(&file, text).map_err(Error::io("cannot write a WireGuard configuration"))?;
        self.wg(&["setconf", DEVICE, &file.to_string_lossy()]).map(drop)
    }

    /// `wg set wg0 <arguments>`.
    ///
    /// # Errors
    /// When `wg` refuses them.
    pub fn set(&self, arguments: &[&str]) -> Result<()> {
        self.wg(&[&["set", DEVICE], arguments].concat()).map(drop)
    }

    /// `wg show wg0 <what>`, such as `latest-handshakes`, `endpoints` or `transfer`: a line for each peer.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn show(&self, what: &str) -> Result<String> {
        self.wg(&["show", DEVICE, what])
    }

    /// What it said, and its exit status if it has ended.
    pub fn failure(&mut self) -> Error {
        self.daemon.failure()
    }

    /// Runs `wg` with the daemon's `/run`.
    fn wg(&self, arguments: &[&str]) -> Result<String> {
        let pid = self.daemon.pid().to_string();
        let mut all = vec!["nsenter", "--target", &pid, "--mount", "wg"];
        all.extend(arguments);
        Ok(self.netns.run(&all)?.stdout)
    }
}

/// It comes from crates.io, into `target/peers`, which need not be in the PATH.
fn boringtun() -> Result<String> {
    const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/bin/boringtun-cli");
    if !Path::new(PATH).is_file() {
        return Err(Error::Usage(format!("no {PATH}: netns-tests/run installs it")));
    }
    Ok(PATH.to_owned())
}

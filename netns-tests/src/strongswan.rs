//! Debian's strongSwan in a namespace: `charon` with ESP in user space (plugin kernel-libipsec),
//! driven by `swanctl`.
//!
//! Each daemon has a mount namespace and a `/run` of its own, since all use the same paths there.
//! What kernel-libipsec sends and receives is ESP in UDP, never raw ESP, and without extended
//! sequence numbers.

use crate::guard::{TempDir, temp_dir};
use crate::{Error, Netns, Process, Ran, Result, retry_until};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const CHARON: &str = "/usr/lib/ipsec/charon";
const START: Duration = Duration::from_secs(10);
/// kernel-libipsec does ESP, kernel-netlink addresses and routes only.
const PLUGINS: &str = "random nonce openssl kdf aes sha1 sha2 hmac gcm curve25519 pem pkcs1 x509 \
                       pubkey kernel-libipsec kernel-netlink socket-default vici updown";
/// What charon itself sends bears it, and goes past the routes into the tunnels.
const MARK: &str = "0x42";

/// How both ends prove who they are.
#[derive(Debug, Clone)]
pub enum Auth {
    /// With this shared key.
    Psk(String),
    /// With certificates.
    Certificate(Certificate),
}

/// PEM files of one end.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Its own certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority that signed the other end's.
    pub ca: PathBuf,
    /// Authorities between that one and its own certificate, to be sent along.
    pub between: Vec<PathBuf>,
}

/// One connection, named `peer`, with one child SA, named `net`. Texts are as in swanctl.conf.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Own outer address.
    pub local: String,
    /// The peer's outer address, or `%any`.
    pub remote: String,
    /// Own identity.
    pub local_id: String,
    /// The peer's identity.
    pub remote_id: String,
    /// How both prove it.
    pub auth: Auth,
    /// Of the IKE SA.
    pub proposals: String,
    /// Of the child SA.
    pub esp_proposals: String,
    /// Own traffic selectors.
    pub local_ts: String,
    /// The peer's traffic selectors.
    pub remote_ts: String,
    /// More lines of the connection.
    pub connection: String,
    /// More lines of the child.
    pub child: String,
    /// Routes into the tunnel, which, and all others there are, come before the one that is made of the
    /// selectors: with 0.0.0.0/0 that one would swallow the local network.
    pub routes: Option<Vec<String>>,
}

impl Connection {
    /// swanctl.conf.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "connections {{\n peer {{\n  version = 2\n  local_addrs = {}\n  remote_addrs = {}\n  encap = yes\n  \
             proposals = {}\n{}\n",
            self.local, self.remote, self.proposals, self.connection
        );
        let (local, remote, secrets) = self.proofs();
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "  local {{\n   id = {}\n{local}  }}\n  remote {{\n   id = {}\n{remote}  }}\n  children {{\n   net {{\n    \
             local_ts = {}\n    remote_ts = {}\n    esp_proposals = {}\n{}\n   }}\n  }}\n }}\n}}\n{secrets}",
            self.local_id, self.remote_id, self.local_ts, self.remote_ts, self.esp_proposals, self.child
        );
        text
    }

    /// Lines of the local and remote sections, and the secrets.
    fn proofs(&self) -> (String, String, String) {
        match &self.auth {
            Auth::Psk(secret) => (
                "   auth = psk\n".to_owned(),
                "   auth = psk\n".to_owned(),
                format!("secrets {{\n ike {{\n  secret = \"{secret}\"\n }}\n}}\n"),
            ),
            Auth::Certificate(files) => {
                let authorities: String = std::iter::once(&files.ca)
                    .chain(&files.between)
                    .enumerate()
                    .map(|(number, file)| format!(" ca{number} {{\n  cacert = {}\n }}\n", file.display()))
                    .collect();
                (
                    format!("   auth = pubkey\n   certs = {}\n", files.certificate.display()),
                    format!("   auth = pubkey\n   cacerts = {}\n", files.ca.display()),
                    format!("authorities {{\n{authorities}}}\n"),
                )
            }
        }
    }
}

/// A running charon. Dropped, it is killed.
#[derive(Debug)]
pub struct Strongswan {
    netns: Netns,
    // Before the directory: dropped first.
    charon: Process,
    directory: TempDir,
}

impl Strongswan {
    /// Starts it in a gateway's namespace and loads the connection.
    ///
    /// # Errors
    /// When strongSwan is missing, does not start, or refuses the connection.
    pub fn start(netns: &Netns, connection: &Connection) -> Result<Self> {
        let directory = temp_dir("swan")?;
        let text = format!(
            "charon {{\n load = {PLUGINS}\n install_virtual_ip = no\n \
             retransmit_timeout = 0.5\n retransmit_base = 1.3\n retransmit_tries = 8\n \
             filelog {{\n stderr {{\n default = 1\n }}\n }}\n plugins {{\n \
             kernel-libipsec {{\n allow_peer_ts = yes\n }}\n \
             kernel-netlink {{\n fwmark = !{MARK}\n }}\n socket-default {{\n fwmark = {MARK}\n }}\n }}\n}}\n\
             swanctl {{\n load = pem pkcs1 x509 pubkey openssl\n}}\n"
        );
        write(&directory.path().join("strongswan.conf"), &text)?;
        if let Auth::Certificate(files) = &connection.auth {
            keep_key(directory.path(), &files.key)?;
        }
        let charon = launch(netns, directory.path())?;
        let started = Self { netns: netns.clone(), charon, directory };
        started.load(connection)?;
        if connection.routes.is_some() {
            // kernel-libipsec makes its routes in table 220 whatever `install_routes` says.
            netns.ip("rule add pref 200 lookup main")?;
        }
        for route in connection.routes.iter().flatten() {
            netns.ip(&format!("route add {route} dev ipsec0"))?;
        }
        Ok(started)
    }

    /// Loads another connection in place of the one before.
    ///
    /// # Errors
    /// When it is refused.
    pub fn load(&self, connection: &Connection) -> Result<()> {
        let file = self.directory.path().join("swanctl.conf");
        write(&file, &connection.text())?;
        let file = file.to_string_lossy().into_owned();
        retry_until("charon", START, || self.swanctl(&["--load-all", "--file", &file])).map(drop)
    }

    /// Starts the child SA, and the IKE SA if there is none; waits until it is there.
    ///
    /// # Errors
    /// With what charon said, when it does not come up.
    pub fn initiate(&self) -> Result<()> {
        self.swanctl(&["--initiate", "--child", "net", "--timeout", "20"]).map(drop)
    }

    /// Runs `swanctl`; an exit status other than 0 is an error.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn swanctl(&self, arguments: &[&str]) -> Result<String> {
        let conf = format!("STRONGSWAN_CONF={}", self.settings());
        let directory = format!("SWANCTL_DIR={}", self.directory.path().display());
        let mut argv = vec!["env", &conf, &directory, "swanctl"];
        argv.extend(arguments);
        Ok(self.beside(&argv)?.stdout)
    }

    /// IKE and child SAs, in words.
    ///
    /// # Errors
    /// When charon does not answer.
    pub fn sas(&self) -> Result<String> {
        self.swanctl(&["--list-sas"])
    }

    /// All it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.charon.stderr()
    }

    /// The daemon, to signal it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.charon
    }

    /// Runs a program with the daemon's `/run`.
    fn beside(&self, argv: &[&str]) -> Result<Ran> {
        let pid = self.charon.pid().to_string();
        let mut all = vec!["nsenter", "--target", &pid, "--mount"];
        all.extend(argv);
        self.netns.run(&all)
    }

    fn settings(&self) -> String {
        self.directory.path().join("strongswan.conf").to_string_lossy().into_owned()
    }
}

fn launch(netns: &Netns, directory: &Path) -> Result<Process> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.args(["mount -t tmpfs tmpfs /run && exec \"$0\"", CHARON]);
    command.env("STRONGSWAN_CONF", directory.join("strongswan.conf"));
    netns.spawn_command(command)
}

/// swanctl reads keys from its own directory only.
fn keep_key(directory: &Path, key: &Path) -> Result<()> {
    let private = directory.join("private");
    fs::create_dir(&private)
        .and_then(|()| fs::copy(key, private.join("own.key")))
        .map(drop)
        .map_err(Error::io(format!("cannot copy {}", key.display())))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("cannot write {}", path.display())))
}

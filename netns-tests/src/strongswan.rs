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

/// The SAs there are, of whatever state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sas {
    /// IKE SAs.
    pub ike: Vec<IkeSa>,
    /// Child SAs of all of them.
    pub children: Vec<ChildSa>,
}

/// An IKE SA.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IkeSa {
    /// In strongSwan's words: `ESTABLISHED`, `REKEYING`, `DELETING` …
    pub state: String,
    /// Both SPIs.
    pub spis: String,
    /// Its suite.
    pub suite: String,
    /// Where the peer is, as in `192.0.2.1[4500]`.
    pub remote: String,
    /// Own address, likewise.
    pub local: String,
}

/// A child SA.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChildSa {
    /// In strongSwan's words: `INSTALLED`, `REKEYED`, `DELETED` …
    pub state: String,
    /// Its suite.
    pub suite: String,
    /// Of packets from the peer.
    pub spi_in: u32,
    /// Of packets to the peer.
    pub spi_out: u32,
}

impl Sas {
    /// From the words of `swanctl --list-sas`.
    fn read(text: &str) -> Self {
        let mut sas = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
            let depth = line.len() - line.trim_start().len();
            match (depth, &words[..]) {
                (0, [_, number, state, "IKEv2", spis @ ..]) if number.starts_with('#') => {
                    sas.ike.push(IkeSa {
                        state: (*state).to_owned(),
                        // A star marks our own.
                        spis: spis.join(" ").replace('*', ""),
                        ..IkeSa::default()
                    })
                }
                (2, [_, number, "reqid", _, state, _, suite, ..]) if number.starts_with('#') => {
                    sas.children.push(ChildSa {
                        state: (*state).to_owned(),
                        suite: suite.trim_start_matches("ESP:").to_owned(),
                        ..ChildSa::default()
                    });
                }
                (2, ["local", .., address]) => {
                    sas.ike.last_mut().into_iter().for_each(|ike| ike.local = (*address).to_owned());
                }
                (2, ["remote", .., address]) => {
                    sas.ike.last_mut().into_iter().for_each(|ike| ike.remote = (*address).to_owned());
                }
                (2, [suite]) => {
                    sas.ike.last_mut().into_iter().for_each(|ike| ike.suite = (*suite).to_owned());
                }
                (4, [way @ ("in" | "out"), spi, ..]) => {
                    let (Some(child), Ok(spi)) = (sas.children.last_mut(), u32::from_str_radix(spi, 16))
                    else {
                        continue;
                    };
                    *(if *way == "in" { &mut child.spi_in } else { &mut child.spi_out }) = spi;
                }
                _ => {}
            }
        }
        sas
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

    /// Replaces keys: those of the IKE SA, or of the child SA. Returns when the exchange is begun.
    ///
    /// # Errors
    /// When there is nothing to replace.
    pub fn rekey(&self, ike: bool) -> Result<()> {
        let what = if ike { ["--ike", "peer"] } else { ["--child", "net"] };
        self.swanctl(&[&["--rekey"][..], &what[..]].concat()).map(drop)
    }

    /// Deletes the IKE SA, or the child SA. Returns when the exchange is begun.
    ///
    /// # Errors
    /// When there is nothing to delete.
    pub fn terminate(&self, ike: bool) -> Result<()> {
        let what = if ike { ["--ike", "peer"] } else { ["--child", "net"] };
        // Without waiting for the peer's answer.
        self.swanctl(&[&["--terminate", "--timeout", "-1"][..], &what[..]].concat()).map(drop)
    }

    /// IKE and child SAs.
    ///
    /// # Errors
    /// When charon does not answer.
    pub fn sas(&self) -> Result<Sas> {
        Ok(Sas::read(&self.swanctl(&["--list-sas"])?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_list_of_sas() {
        let text = "peer: #3, ESTABLISHED, IKEv2, 1e1b2c3d4e5f6071_i* 8899aabbccddeeff_r\n  \
                    local  '198.51.100.1' @ 198.51.100.1[4500]\n  \
                    remote 'CN=far end' @ 192.0.2.1[61000]\n  \
                    AES_CBC-128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/ECP_256\n  \
                    established 0s ago, rekeying in 13968s\n  \
                    net: #4, reqid 1, INSTALLED, TUNNEL-in-UDP, ESP:AES_GCM_16-128/ECP_256\n    \
                    installed 0s ago, rekeying in 3333s, expires in 3960s\n    \
                    in  c5d6f6f1,      0 bytes,     0 packets\n    \
                    out 00000a78,      0 bytes,     0 packets\n    \
                    local  10.2.0.0/24\n    remote 10.1.0.0/24\n";
        let sas = Sas::read(text);
        let ike = IkeSa {
            state: "ESTABLISHED".to_owned(),
            spis: "1e1b2c3d4e5f6071_i 8899aabbccddeeff_r".to_owned(),
            suite: "AES_CBC-128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/ECP_256".to_owned(),
            remote: "192.0.2.1[61000]".to_owned(),
            local: "198.51.100.1[4500]".to_owned(),
        };
        let child = ChildSa {
            state: "INSTALLED".to_owned(),
            suite: "AES_GCM_16-128/ECP_256".to_owned(),
            spi_in: 0xc5d6_f6f1,
            spi_out: 0xa78,
        };
        assert_eq!(sas, Sas { ike: vec![ike], children: vec![child] });
        assert_eq!(Sas::read(""), Sas::default());
    }
}

//! The two gateways: the very `braid run` that anybody would start, one in each gateway's
//! namespace, with secrets drawn for this run: the tunnels' own keys they negotiate by IKE, or by WireGuard's
//! handshakes.
//!
//! A gateway is started by the thread of its namespace, which lives as long as this process, and
//! asks the kernel to be killed with it: whatever ends the demonstration ends the gateways.

use core::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path as FilePath, PathBuf};
use std::process::{self, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getpid, getppid};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Protocol;
use super::error::Error;
use super::net::Namespace;
use super::stop::Stop;
use super::topology::{PATHS, SITE_A, SITE_B};
use crate::wireguard::Secret;

/// A directory for keys and sockets that nobody else sees and that does not outlive this process:
/// a memory file system in this process's own mount namespace.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// # Errors
    /// When there is neither a place to mount on nor one to write to.
    pub(super) fn new() -> Result<Self, Error> {
        let none = None::<&str>;
        let private = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).is_ok();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        if private && mount(Some("tmpfs"), MOUNT_POINT, Some("tmpfs"), flags, Some("mode=0700")).is_ok() {
            return Ok(Self(PathBuf::from(MOUNT_POINT)));
        }
        let name = format!("braid-demo-{:016x}", random::<8>().map(u64::from_ne_bytes)?);
        let path = std::env::temp_dir().join(name);
        make_private(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.0 != FilePath::new(MOUNT_POINT) {
            // Nothing can be done about one that cannot be removed.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// One gateway.
#[derive(Debug)]
pub(super) struct Gateway {
    name: &'static str,
    child: process::Child,
    run_dir: PathBuf,
    log: PathBuf,
}

/// What a gateway says of a tunnel; of `braid status --json`, what is used here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TunnelStatus {
    /// As configured.
    pub(super) name: String,
    /// `up`, `down`, …
    pub(super) state: String,
    /// Inner bytes sent.
    pub(super) tx_bytes: u64,
    /// Its SAs, as soon as they were negotiated.
    pub(super) child: Option<Child>,
}

/// A tunnel's SAs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Child {
    /// Of what comes in, in hexadecimal.
    pub(super) spi_in: String,
    /// Of what goes out.
    pub(super) spi_out: String,
}

#[derive(Deserialize)]
struct Status {
    tunnels: Vec<TunnelStatus>,
}

/// What both gateways prove themselves with.
pub(super) struct Secrets {
    psk: Zeroizing<String>,
    /// WireGuard's, of A and of B.
    keys: [Secret; 2],
}

impl Secrets {
    /// # Errors
    /// When the system has no randomness.
    pub(super) fn draw() -> Result<Self, Error> {
        let key = || Ok(Secret::private(Zeroizing::new(random()?)));
        let psk = Zeroizing::new(hex(&*Zeroizing::new(random::<PSK_LEN>()?)));
        Ok(Self { psk, keys: [key()?, key()?] })
    }
}

impl Gateway {
    /// Starts the gateway of either side.
    ///
    /// # Errors
    /// When it cannot be started; what becomes of it then, [`Gateway::tunnels`] tells.
    pub(super) fn start(
        namespace: &Namespace,
        side: Side,
        protocols: [Protocol; 2],
        scratch: &Scratch,
        secrets: &Secrets,
    ) -> Result<Self, Error> {
        let name = side.name();
        let home = scratch.0.join(name);
        make_private(&home)?;
        let config = OpenOptions::new().write(true).create_new(true).mode(0o600).open(home.join(CONFIG));
        config
            .and_then(|mut file| file.write_all(configuration(side, protocols, secrets).as_bytes()))
            .map_err(Error::system(format!("cannot write the configuration of {name}")))?;
        let log = home.join("log");
        let run_dir = home.join(RUN_DIR);
        let child = {
            let (home, log) = (home.clone(), log.clone());
            namespace
                .run(move |_| spawn(&home, &log).map_err(Error::system(format!("cannot start {name}"))))?
        };
        Ok(Self { name, child, run_dir, log })
    }

    /// Its tunnels, or `None` while it does not answer yet.
    ///
    /// # Errors
    /// When it has ended, or answers nonsense.
    pub(super) fn tunnels(&mut self) -> Result<Option<Vec<TunnelStatus>>, Error> {
        let name = self.name;
        if let Ok(Some(status)) = self.child.try_wait() {
            let said = self.last_words().unwrap_or_else(|| status.to_string());
            return Err(Error::GatewayDied { name, said });
        }
        let asked = Command::new(SELF)
            .args(["status", "--json", "--run-dir"])
            .arg(&self.run_dir)
            .stdin(Stdio::null())
            .output()
            .map_err(Error::system(format!("cannot ask {name}")))?;
        if !asked.status.success() && asked.stdout.is_empty() {
            return Ok(None);
        }
        let status: Status = serde_json::from_slice(&asked.stdout)
            .map_err(|error| Error::Status { name, said: error.to_string() })?;
        Ok(Some(status.tunnels))
    }

    /// What it wrote last.
    pub(super) fn last_words(&self) -> Option<String> {
        let log = fs::read_to_string(&self.log).ok()?;
        log.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    }

    /// Ends them as SIGTERM does, and forcibly those for which that takes too long.
    pub(super) fn end(mut gateways: [Self; 2]) {
        for gateway in &gateways {
            if let Ok(pid) = i32::try_from(gateway.child.id()) {
                // One that is gone already needs no signal.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
        let mut ended = || gateways.iter_mut().all(|gateway| !matches!(gateway.child.try_wait(), Ok(None)));
        // Not the demonstration's own flag: ending goes on when interrupted.
        let _ = Stop::default().wait_for("their end", END_LIMIT, || Ok(ended().then_some(())));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Which gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The client's.
    A,
    /// The server's.
    B,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::A => "gateway-a",
            Self::B => "gateway-b",
        }
    }
}

/// The configuration of one side. A begins.
fn configuration(side: Side, protocols: [Protocol; 2], secrets: &Secrets) -> Zeroizing<String> {
    // Nothing is reallocated while the key is written, so that no copy of it stays behind.
    let mut text = Zeroizing::new(String::with_capacity(CONFIG_CAPACITY));
    let (own, far, role) = match side {
        Side::A => (SITE_A, SITE_B, "initiate"),
        Side::B => (SITE_B, SITE_A, "respond"),
    };
    // Writing to a string never fails.
    let _ = write!(text, "[gateway]\nname = \"{}\"\nsource = \"{}\"\n", side.name(), own.gateway);
    for (path, protocol) in PATHS.iter().zip(protocols) {
        let (local, remote, inside) = match side {
            Side::A => (path.a, path.b, path.inside_a),
            Side::B => (path.b, path.a, path.inside_b),
        };
        let _ = write!(
            text,
            "\n[[tunnel]]\nname = \"{}\"\nrole = \"{role}\"\n\
             local = \"{local}\"\nremote = \"{remote}\"\ninside = \"{inside}/30\"\n\
             probe = {{ interval = \"{PROBE_INTERVAL}\", multiplier = {PROBE_MULTIPLIER} }}\n",
            path.name,
        );
        let [a, b] = &secrets.keys;
        let (ours, theirs) = if side == Side::A { (a, b) } else { (b, a) };
        let _ = match protocol {
            Protocol::Esp => write!(
                text,
                "[tunnel.ike]\npsk = \"{}\"\nproposals = [\"{IKE_PROPOSAL}\"]\n\
                 esp-proposals = [\"{SUITE}-ecp256-esn\"]\n\
                 lifetime = \"{LIFETIME}\"\nchild-lifetime = \"{LIFETIME}\"\n",
                *secrets.psk,
            ),
            Protocol::WireGuard => write!(
                text,
                "[tunnel.wireguard]\nprivate-key = \"{}\"\npeer-public-key = \"{}\"\n",
                *ours.to_base64(),
                theirs.public(),
            ),
        };
    }
    let via = PATHS.map(|path| format!("\"{}\"", path.name)).join(", ");
    for prefix in far.prefixes() {
        let _ = write!(text, "\n[[route]]\nprefix = \"{prefix}\"\nvia = [{via}]\n");
    }
    text
}

/// Starts a child that becomes the gateway, from the thread that must outlive it.
fn spawn(home: &FilePath, log: &FilePath) -> io::Result<process::Child> {
    let log = File::create(log)?;
    Command::new(SELF)
        .args(["demo", "--parent", &getpid().to_string(), "--gateway"])
        .arg(home)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C is ours: we end the gateways in order.
        .process_group(0)
        .spawn()
}

/// The child's first steps: to die with its parent, then to become `braid run`.
pub(super) fn become_gateway(home: &FilePath, parent: i32) -> ExitCode {
    // We hold signals back for our own use, and a child inherits that.
    let _ = SigSet::all().thread_unblock();
    // The signal goes to whoever dies after this, so look whether it happened before.
    let parent_lives = || getppid() == Pid::from_raw(parent);
    let error = match set_pdeathsig(Signal::SIGKILL) {
        Ok(()) if parent_lives() => Command::new(SELF)
            .args(["run", "--config"])
            .arg(home.join(CONFIG))
            .arg("--run-dir")
            .arg(home.join(RUN_DIR))
            .exec(),
        Ok(()) => return ExitCode::FAILURE,
        Err(errno) => errno.into(),
    };
    eprintln!("cannot become a gateway: {error}");
    ExitCode::FAILURE
}

fn make_private(path: &FilePath) -> Result<(), Error> {
    let failed = || Error::system(format!("cannot make {}", path.display()));
    fs::DirBuilder::new().mode(0o700).create(path).map_err(failed())
}

/// Random bytes of the system.
///
/// # Errors
/// When it has none.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::System {
        what: "no randomness".to_owned(),
        source: io::Error::other(error),
    })?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string never fails.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What both tunnels encrypt with.
pub(super) const SUITE: &str = "aes128gcm16";
const PROBE_INTERVAL: &str = "30ms";
const PROBE_MULTIPLIER: u32 = 3;
const IKE_PROPOSAL: &str = "aes128gcm16-prfsha256-ecp256";
/// Longer than any run: the wire is judged by SPIs, which a rekey changes.
const LIFETIME: &str = "48h";
const PSK_LEN: usize = 32;
const CONFIG: &str = "braid.toml";
const CONFIG_CAPACITY: usize = 4096;
const RUN_DIR: &str = "run";
/// Masked for us alone; nobody else's view of it changes.
const MOUNT_POINT: &str = "/run";
/// The program that runs, even if its file was replaced meanwhile.
const SELF: &str = "/proc/self/exe";
const END_LIMIT: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::TunnelType;

    #[test]
    fn both_sides_mirror_each_other() {
        let (secrets, esp) = (Secrets::draw().unwrap(), [Protocol::Esp; 2]);
        let parse = |side| toml::from_str::<toml::Table>(&configuration(side, esp, &secrets)).unwrap();
        let (a, b) = (parse(Side::A), parse(Side::B));
        for path in 0..PATHS.len() {
            let (a, b) = (&a["tunnel"][path], &b["tunnel"][path]);
            for (one, other) in [("local", "remote"), ("remote", "local")] {
                assert_eq!(a[one], b[other]);
            }
            assert_ne!(a["role"], b["role"]);
            assert_eq!(a["ike"], b["ike"]);
            assert_eq!(a["ike"]["psk"].as_str().unwrap().len(), 2 * PSK_LEN);
        }
        assert_eq!(a["route"].as_array().unwrap().len(), 2);
        assert!(configuration(Side::A, esp, &secrets).capacity() == CONFIG_CAPACITY);
        let others = Secrets::draw().unwrap();
        assert_ne!(*secrets.psk, *others.psk, "another one in every run");
        assert_ne!(secrets.keys, others.keys, "other ones in every run");
    }

    #[test]
    fn the_gateways_take_their_configuration() {
        let secrets = Secrets::draw().unwrap();
        for protocols in
            [TunnelType::Ipsec, TunnelType::Wireguard, TunnelType::Mixed].map(TunnelType::protocols)
        {
            for side in [Side::A, Side::B] {
                let text = configuration(side, protocols, &secrets);
                let config = crate::config::parse(&text, FilePath::new(CONFIG), 0o600).unwrap();
                assert_eq!((config.tunnels.len(), config.routes.len()), (2, 2));
                for (tunnel, protocol) in config.tunnels.iter().zip(protocols) {
                    assert_eq!(tunnel.wireguard().is_some(), protocol == Protocol::WireGuard);
                }
                assert!(config.manual_keys().is_none());
            }
        }
    }

    #[test]
    fn status_needs_only_what_is_used() {
        let text = r#"{"gateway":"x","tunnels":[{"name":"p","state":"up","tx_bytes":7,"mtu":1438,"child":null}],"drops":{}}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!((status.tunnels[0].state.as_str(), status.tunnels[0].tx_bytes), ("up", 7));
    }
}

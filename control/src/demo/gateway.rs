//! The two gateways: the very `braid run` that anybody would start, one in each gateway's
//! namespace, with keys drawn for this run.
//!
//! A gateway is started by the thread of its namespace, which lives as long as this process, and
//! asks the kernel to be killed with it: whatever ends the demonstration ends the gateways.

use core::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getpid, getppid};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::capture::Spis;
use super::error::Error;
use super::net::Namespace;
use super::stop::Stop;
use super::topology::{PATHS, SITE_A, SITE_B};

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
    child: Child,
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
}

#[derive(Deserialize)]
struct Status {
    tunnels: Vec<TunnelStatus>,
}

/// Keys and SPIs of one run, per path, from A to B and from B to A.
pub(super) struct Keys {
    /// SPIs.
    pub(super) spis: Spis,
    keys: [[Zeroizing<String>; 2]; 2],
}

impl Keys {
    /// # Errors
    /// When the system has no randomness.
    pub(super) fn draw() -> Result<Self, Error> {
        let key = || -> Result<_, Error> { Ok(Zeroizing::new(hex(&*Zeroizing::new(random::<KEY_LEN>()?)))) };
        let mut spis = [[0; 2]; 2];
        for (number, spi) in spis.iter_mut().flatten().enumerate() {
            // RFC 4303 section 2.1: 1 to 255 are reserved. The lowest bits tell them apart.
            *spi = u32::from_ne_bytes(random()?) & !0x3 | 0x100 | number as u32;
        }
        Ok(Self { spis, keys: [[key()?, key()?], [key()?, key()?]] })
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
        scratch: &Scratch,
        keys: &Keys,
    ) -> Result<Self, Error> {
        let name = side.name();
        let home = scratch.0.join(name);
        make_private(&home)?;
        let config = OpenOptions::new().write(true).create_new(true).mode(0o600).open(home.join(CONFIG));
        config
            .and_then(|mut file| file.write_all(configuration(side, keys).as_bytes()))
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

/// The configuration of one side.
fn configuration(side: Side, keys: &Keys) -> Zeroizing<String> {
    // Nothing is reallocated while keys are written, so that no copy of them stays behind.
    let mut text = Zeroizing::new(String::with_capacity(CONFIG_CAPACITY));
    let (own, far) = match side {
        Side::A => (SITE_A, SITE_B),
        Side::B => (SITE_B, SITE_A),
    };
    // Writing to a string never fails.
    let _ = write!(text, "[gateway]\nname = \"{}\"\nsource = \"{}\"\n", side.name(), own.gateway);
    for (path, keys) in PATHS.iter().zip(keys.spis.iter().zip(&keys.keys)) {
        let ([spi_ab, spi_ba], [key_ab, key_ba]) = keys;
        let (local, remote, inside, spis, keys) = match side {
            Side::A => (path.a, path.b, path.inside_a, (spi_ba, spi_ab), (key_ba, key_ab)),
            Side::B => (path.b, path.a, path.inside_b, (spi_ab, spi_ba), (key_ab, key_ba)),
        };
        let _ = write!(
            text,
            "\n[[tunnel]]\nname = \"{}\"\ntype = \"ipsec\"\nlocal = \"{local}\"\nremote = \"{remote}\"\n\
             inside = \"{inside}/30\"\nprobe = {{ interval = \"{PROBE_INTERVAL}\", multiplier = {PROBE_MULTIPLIER} }}\n\
             [tunnel.manual]\nsuite = \"{SUITE}\"\nspi-in = {}\nspi-out = {}\nkey-in = \"{}\"\nkey-out = \"{}\"\n",
            path.name, spis.0, spis.1, **keys.0, **keys.1,
        );
    }
    let via = PATHS.map(|path| format!("\"{}\"", path.name)).join(", ");
    for prefix in far.prefixes() {
        let _ = write!(text, "\n[[route]]\nprefix = \"{prefix}\"\nvia = [{via}]\n");
    }
    text
}

/// Starts a child that becomes the gateway, from the thread that must outlive it.
fn spawn(home: &FilePath, log: &FilePath) -> io::Result<Child> {
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
            .args(["run", "--insecure-manual-keys", "--config"])
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
/// RFC 4106 section 8.1: a 16-byte key, then the 4-byte salt.
const KEY_LEN: usize = 20;
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

    #[test]
    fn both_sides_mirror_each_other() {
        let keys = Keys::draw().unwrap();
        let parse = |side| toml::from_str::<toml::Table>(&configuration(side, &keys)).unwrap();
        let (a, b) = (parse(Side::A), parse(Side::B));
        for path in 0..PATHS.len() {
            let (a, b) = (&a["tunnel"][path], &b["tunnel"][path]);
            for (one, other) in [("local", "remote"), ("remote", "local")] {
                assert_eq!(a[one], b[other]);
            }
            for (one, other) in [("spi-in", "spi-out"), ("spi-out", "spi-in"), ("key-in", "key-out")] {
                assert_eq!(a["manual"][one], b["manual"][other]);
                assert_ne!(a["manual"][one], b["manual"][one]);
            }
            assert_eq!(a["manual"]["key-in"].as_str().unwrap().len(), 2 * KEY_LEN);
        }
        assert_eq!(a["route"].as_array().unwrap().len(), 2);
        assert!(configuration(Side::A, &keys).capacity() == CONFIG_CAPACITY);
    }

    #[test]
    fn the_gateways_take_their_configuration() {
        let keys = Keys::draw().unwrap();
        for side in [Side::A, Side::B] {
            let config = crate::config::parse(&configuration(side, &keys), FilePath::new(CONFIG), 0o600);
            let config = config.unwrap();
            assert_eq!((config.tunnels.len(), config.routes.len()), (2, 2));
        }
    }

    #[test]
    fn spis_are_distinct_and_not_reserved() {
        let keys = Keys::draw().unwrap();
        let mut spis: Vec<u32> = keys.spis.into_iter().flatten().collect();
        spis.sort_unstable();
        spis.dedup();
        assert_eq!(spis.len(), 4);
        assert!(spis[0] > 255);
    }

    #[test]
    fn status_needs_only_what_is_used() {
        let text =
            r#"{"gateway":"x","tunnels":[{"name":"p","state":"up","tx_bytes":7,"mtu":1438}],"drops":{}}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!((status.tunnels[0].state.as_str(), status.tunnels[0].tx_bytes), ("up", 7));
    }
}

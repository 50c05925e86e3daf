//! One network namespace and what can be done in it.

use crate::process::{self, Process, Ran};
use crate::{Error, Result, guard};
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What `ethtool -K` can turn off on a veth, by ethtool's own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// Transmit and receive checksums, TSO, GSO, USO, GRO: every packet alone, checksums complete.
    All,
    /// UDP segmentation only: datagrams leave one by one, TCP stays as it is.
    UdpSegmentation,
}

impl Offload {
    fn features(self) -> &'static [&'static str] {
        match self {
            Self::All => &["tx", "rx", "tso", "gso", "gro", "tx-udp-segmentation"],
            Self::UdpSegmentation => &["tx-udp-segmentation"],
        }
    }
}

/// A network namespace. Clones are handles to the same one; when the last goes, everything that
/// runs in it is killed and it is removed, and its devices with it.
#[derive(Debug, Clone)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    label: String,
    handle: File,
}

impl Drop for Inner {
    fn drop(&mut self) {
        guard::remove_namespace(&self.name);
    }
}

impl Netns {
    /// Makes a namespace with its loopback up and duplicate address detection off (an address is
    /// usable at once). `label` becomes part of its unique name.
    ///
    /// # Errors
    /// When not root, or `ip` is missing.
    pub fn new(label: &str) -> Result<Self> {
        let name = guard::unique_name(label);
        guard::register_namespace(&name)?;
        let made = Self::make(&name, label);
        if made.is_err() {
            guard::remove_namespace(&name);
        }
        made
    }

    fn make(name: &str, label: &str) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(["netns", "add", name]);
        process::check("ip netns add", process::run(command)?)?;
        let path = Path::new(guard::NETNS_DIR).join(name);
        let handle = File::open(&path).map_err(Error::io(format!("cannot open {name}")))?;
        let made = Self(Arc::new(Inner { name: name.to_owned(), label: label.to_owned(), handle }));
        made.ip("link set lo up")?;
        for scope in ["all", "default"] {
            made.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
        }
        Ok(made)
    }

    /// Its name, as in `ip netns exec NAME`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The label it was made with.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets opened there stay there,
    /// and programs started there run there.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0.handle, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Io {
                    what: format!("cannot enter {}", self.0.name),
                    source: errno.into(),
                })?;
                Ok(work())
            });
            match inside.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs a program to its end; an exit status other than 0 is an error.
    ///
    /// # Errors
    /// [`Error::Spawn`], or [`Error::Command`] with what it said.
    pub fn run(&self, argv: &[&str]) -> Result<Ran> {
        process::check(&format!("[{}] {}", self.label(), process::line(argv)), self.output(argv)?)
    }

    /// Runs a program to its end and hands back whatever came of it.
    ///
    /// # Errors
    /// [`Error::Spawn`].
    pub fn output(&self, argv: &[&str]) -> Result<Ran> {
        self.output_of(command(argv)?)
    }

    /// As [`Netns::output`], for a command with an environment, a working directory, …
    ///
    /// # Errors
    /// [`Error::Spawn`].
    pub fn output_of(&self, command: Command) -> Result<Ran> {
        self.enter(|| process::run(command))?
    }

    /// Starts a program in the background.
    ///
    /// # Errors
    /// [`Error::Spawn`].
    pub fn spawn(&self, argv: &[&str]) -> Result<Process> {
        self.spawn_command(command(argv)?)
    }

    /// As [`Netns::spawn`], for a command with an environment, a working directory, …
    ///
    /// # Errors
    /// [`Error::Spawn`].
    pub fn spawn_command(&self, command: Command) -> Result<Process> {
        let name = format!("[{}] {}", self.label(), command.get_program().to_string_lossy());
        self.enter(|| Process::start(command, &name))?
    }

    /// Has all packets of a flow processed by one CPU at every end of a device that is there. Without it they queue
    /// at the CPU that sent them: a sender that the scheduler moves has its own packets overtake each
    /// other in the kernel, which is no gateway's fault.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn keep_flows_in_order(&self) -> Result<()> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from).min(32);
        let mask = format!("{:x}", u32::MAX >> (32 - cpus));
        let script =
            format!("for queue in /sys/class/net/*[0-9]/queues/rx-*/rps_cpus; do echo {mask} > $queue; done");
        // With the namespace's own /sys.
        self.run(&["ip", "netns", "exec", self.name(), "sh", "-ec", &script]).map(drop)
    }

    /// `ip <arguments>` inside, arguments separated by blanks.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut argv = vec!["ip"];
        argv.extend(arguments.split_whitespace());
        Ok(self.run(&argv)?.stdout)
    }

    /// Loads an nftables script.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn nft(&self, script: &str) -> Result<String> {
        Ok(self.run(&["nft", script])?.stdout)
    }

    /// Writes a sysctl, named by its path below `/proc/sys`.
    ///
    /// # Errors
    /// When it does not exist or refuses the value.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        let what = format!("[{}] cannot set {path} to {value}", self.label());
        self.enter(|| fs::write(Path::new("/proc/sys").join(path), value).map_err(Error::io(what)))?
    }

    /// Reads a sysctl, named by its path below `/proc/sys`.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn read_sysctl(&self, path: &str) -> Result<String> {
        let what = format!("[{}] cannot read {path}", self.label());
        let text =
            self.enter(|| fs::read_to_string(Path::new("/proc/sys").join(path)).map_err(Error::io(what)))??;
        Ok(text.trim().to_owned())
    }

    /// Turns forwarding on for both families, and strict reverse-path filtering off.
    ///
    /// # Errors
    /// As [`Netns::sysctl`].
    pub fn make_router(&self) -> Result<()> {
        self.sysctl("net/ipv4/ip_forward", "1")?;
        self.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        for scope in ["all", "default"] {
            self.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        Ok(())
    }

    /// Joins two namespaces by a veth pair and sets both ends up. `mtu` in bytes.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn veth(&self, device: &str, peer: &Self, peer_device: &str, mtu: u32) -> Result<()> {
        self.ip(&format!(
            "link add {device} mtu {mtu} type veth peer name {peer_device} mtu {mtu} netns {}",
            peer.name()
        ))?;
        self.ip(&format!("link set {device} up"))?;
        peer.ip(&format!("link set {peer_device} up")).map(drop)
    }

    /// Adds an address with its prefix length.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn address(&self, device: &str, address: &str) -> Result<()> {
        let no_dad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("addr add {address} dev {device}{no_dad}")).map(drop)
    }

    /// Turns offloads of a device on or off.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn offload(&self, device: &str, offload: Offload, on: bool) -> Result<()> {
        let mut argv = vec!["ethtool", "-K", device];
        for &feature in offload.features() {
            argv.extend([feature, if on { "on" } else { "off" }]);
        }
        self.run(&argv).map(drop)
    }

    /// Devices other than the loopback, in the kernel's order.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn devices(&self) -> Result<Vec<String>> {
        let listed = self.ip("-o link show")?;
        let names = listed.lines().filter_map(|line| line.split(": ").nth(1));
        Ok(names
            .map(|name| name.split('@').next().unwrap_or(name).to_owned())
            .filter(|name| name != "lo")
            .collect())
    }

    /// Process ids of all that runs inside.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let metadata = self.0.handle.metadata().map_err(Error::io(format!("{} is gone", self.name())))?;
        Ok(guard::processes_in(metadata.ino()))
    }

    /// True when something listens on the TCP port.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn listens_tcp(&self, port: u16) -> Result<bool> {
        let suffix = format!(":{port:04X}");
        self.enter(|| {
            // Not /proc/net: that is the process's first thread's namespace, not this thread's.
            ["tcp", "tcp6"].iter().any(|table| {
                let path = format!("/proc/thread-self/net/{table}");
                fs::read_to_string(path).unwrap_or_default().lines().any(|line| {
                    let mut fields = line.split_whitespace().skip(1);
                    let local = fields.next().is_some_and(|local| local.ends_with(&suffix));
                    local && fields.nth(1) == Some("0A")
                })
            })
        })
    }
}

fn command(argv: &[&str]) -> Result<Command> {
    let Some((program, arguments)) = argv.split_first() else {
        return Err(Error::Usage("an empty command".to_owned()));
    };
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

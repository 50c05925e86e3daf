//! Why a launch or a plan failed, each in one line that says what and where.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::layout::{SLOTS, Step};

/// Why the launcher could not start.
#[derive(Debug)]
pub(super) enum StartError {
    /// CAP_NET_ADMIN or CAP_NET_RAW is missing.
    Capability(&'static str),
    /// `/dev/net/tun` cannot be opened.
    NoTun(io::Error),
    /// Another gateway owns the run directory.
    Busy {
        /// The directory.
        dir: PathBuf,
        /// The owner's process id, as far as it can be read.
        pid: String,
    },
    /// The run directory is open to others.
    Open(PathBuf),
    /// A path or a file in the run directory.
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Something that is there on every Linux.
    System {
        /// What.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A process could not be started.
    Spawn {
        /// Its name.
        name: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capability(name) => {
                write!(f, "{name} is missing: run braid as root, or give the service this capability")
            }
            Self::NoTun(error) => write!(
                f,
                "/dev/net/tun cannot be opened: {error}: load the driver with `modprobe tun`, or give the container this device"
            ),
            Self::Busy { dir, pid } => write!(
                f,
                "{}: in use by another braid (process {pid}): stop that, or choose another --run-dir",
                dir.display()
            ),
            Self::Open(dir) => write!(
                f,
                "{}: the run directory must be private and owned by the user that runs braid: `chmod 700` it, or choose another --run-dir",
                dir.display()
            ),
            Self::File { path, error } => write!(f, "{}: {error}", path.display()),
            Self::System { what, error } => write!(f, "{what}: {error}"),
            Self::Spawn { name, error } => write!(f, "cannot start {name}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Why a plan is not in force.
#[derive(Debug)]
pub(super) enum PlanError {
    /// The plan contradicts itself or cannot be.
    Invalid(String),
    /// A setting that holds until the next start.
    Fixed {
        /// The configuration's key.
        key: &'static str,
        /// As it is.
        is: String,
    },
    /// The device.
    Device {
        /// Its name.
        name: String,
        /// What is wrong.
        error: braid_dataplane::io::tun::OpenError,
    },
    /// A setting of the device.
    DeviceSetting {
        /// Its name.
        name: String,
        /// Which setting.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// A UDP socket.
    Udp {
        /// Its address.
        local: SocketAddr,
        /// Its interface.
        uplink: Option<String>,
        /// What the kernel said.
        error: io::Error,
    },
    /// A raw socket.
    Raw {
        /// Its address.
        local: IpAddr,
        /// Its interface.
        uplink: Option<String>,
        /// What the kernel said.
        error: io::Error,
    },
    /// A sysctl.
    Sysctl {
        /// Its path below `/proc/sys`.
        path: String,
        /// What it should be.
        value: String,
        /// What the system said.
        error: io::Error,
    },
    /// A route, rule or address.
    Step {
        /// Which.
        step: Box<Step>,
        /// What the kernel said.
        error: io::Error,
    },
    /// All slots of the network namespace are taken.
    TooMany,
    /// The record in the run directory cannot be written.
    Record {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Netlink or another service of the kernel.
    Kernel {
        /// What was being done.
        what: &'static str,
        /// What it said.
        error: io::Error,
    },
}

fn on(f: &mut fmt::Formatter<'_>, uplink: Option<&String>) -> fmt::Result {
    uplink.map_or(Ok(()), |uplink| write!(f, " on {uplink}"))
}

fn socket_error(f: &mut fmt::Formatter<'_>, error: &io::Error, uplink: Option<&String>) -> fmt::Result {
    match (error.kind(), uplink) {
        (io::ErrorKind::AddrInUse, _) => f.write_str(
            "address in use: another gateway or IKE daemon has it; stop that (`ss -lunp` names it), or set another local, \
             or listen-port for WireGuard",
        ),
        (io::ErrorKind::AddrNotAvailable, _) => {
            f.write_str("not an address of this machine: set local to one that `ip address` lists")
        }
        (_, Some(uplink)) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
            write!(f, "there is no interface {uplink}: set uplink to one that `ip link` lists")
        }
        _ => write!(f, "{error}"),
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(what) => f.write_str(what),
            Self::Fixed { key, is } => {
                write!(f, "{key} cannot change while braid runs (it is {is}): stop braid and start it again")
            }
            Self::Device { name, error } => {
                write!(f, "device {name}: {error}")?;
                if matches!(error, braid_dataplane::io::tun::OpenError::Exists) {
                    f.write_str(": remove it, or set another [core] device")?;
                }
                Ok(())
            }
            Self::DeviceSetting { name, what, error } => write!(f, "device {name}: {what}: {error}"),
            Self::Udp { local, uplink, error } => {
                write!(f, "cannot bind UDP {local}")?;
                on(f, uplink.as_ref())?;
                f.write_str(": ")?;
                socket_error(f, error, uplink.as_ref())
            }
            Self::Raw { local, uplink, error } => {
                write!(f, "cannot bind ESP (IP protocol 50) on {local}")?;
                on(f, uplink.as_ref())?;
                f.write_str(": ")?;
                socket_error(f, error, uplink.as_ref())
            }
            Self::Sysctl { path, value, error } => {
                let name = path.replace('/', ".");
                write!(f, "cannot set sysctl {name} to {value}: {error}: set it before braid starts")
            }
            Self::Step { step, error } => step_error(f, step, error),
            Self::TooMany => write!(f, "{SLOTS} gateways run in this network namespace already"),
            Self::Record { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Kernel { what, error } => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for PlanError {}

fn step_error(f: &mut fmt::Formatter<'_>, step: &Step, error: &io::Error) -> fmt::Result {
    let verb = if step.removes() { "remove" } else { "add" };
    match step {
        Step::AddAddress(address) | Step::RemoveAddress(address) => {
            write!(f, "cannot {verb} inside address {address}: {error}")
        }
        Step::AddRoute(route) | Step::ChangeRoute { to: route, .. }
            if invalid_source(route.source, error) =>
        {
            let source = route.source.map_or_else(String::new, |source| source.to_string());
            write!(
                f,
                "source {source} of route {} is not an address of this machine: set [gateway] source to one that \
                 `ip address` lists",
                route.prefix
            )
        }
        Step::AddRoute(route) | Step::RemoveRoute(route) | Step::ChangeRoute { to: route, .. } => {
            write!(
                f,
                "cannot {verb} route {} (table {}, metric {})",
                route.prefix, route.table, route.metric
            )?;
            write!(f, ": {error}")
        }
        Step::AddRule(rule) | Step::RemoveRule(rule) => {
            let family = if rule.v6 { "IPv6" } else { "IPv4" };
            write!(f, "cannot {verb} {family} routing rule {}: {error}", rule.priority)
        }
    }
}

fn invalid_source(source: Option<IpAddr>, error: &io::Error) -> bool {
    source.is_some() && error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error())
}

//! TUN devices: multi-queue with a virtio-net header and segmentation offloads, or the plain
//! single-queue device of the tun-tap crate.
//!
//! Facts from the kernel's `tuntap` documentation and `linux/if_tun.h`: `TUNSETOFFLOAD` is
//! device-wide and survives a detach, so it is set on every open; `IFF_TUN_EXCL` refuses a device
//! that exists. A kernel without USO (before 6.2) gets TSO alone, one without TSO nothing, and where
//! there is no virtio-net header at all (`TUNGETFEATURES`) it is the plain device.
//!
//! With several queues the kernel gives a flow the queue that its answers were last written to, so
//! that a flow whose answers change their worker changes its own, and overtakes itself. What is
//! written to a detached queue teaches the kernel nothing (`tun_get_user` in `drivers/net/tun.c`):
//! all workers write to one such queue, and a flow's queue is a function of its hash.

use std::{
    ffi::{c_int, c_uint},
    fmt, fs,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
};

/// Longest name of a network device, in bytes.
pub const MAX_NAME_LEN: usize = libc::IFNAMSIZ - 1;

const TSO: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const USO: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// An open device.
#[derive(Debug)]
pub struct OpenedTun {
    /// The device's name.
    pub name: String,
    /// One non-blocking descriptor per queue, and after them, if there are several queues, one that
    /// all write to.
    pub fds: Vec<OwnedFd>,
    /// Whether each packet carries a virtio-net header.
    pub vnet_hdr: bool,
}

/// Why a device could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The name is empty, too long or has characters that no device name has.
    BadName,
    /// A device of this name exists.
    Exists,
    /// The kernel has no TUN driver.
    NoDriver(io::Error),
    /// CAP_NET_ADMIN is missing.
    NotPermitted,
    /// Several queues were asked for without offload.
    PlainIsSingleQueue,
    /// Anything else.
    Other(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::BadName => {
                write!(f, "not a name for a network device (1 to {MAX_NAME_LEN} characters)")
            }
            OpenError::Exists => f.write_str("a network device of this name exists already"),
            OpenError::NoDriver(error) => write!(f, "/dev/net/tun cannot be opened: {error}"),
            OpenError::NotPermitted => f.write_str("creating a TUN device needs CAP_NET_ADMIN"),
            OpenError::PlainIsSingleQueue => {
                f.write_str("without offload a device has one queue: set workers = 1")
            }
            OpenError::Other(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {}

/// Creates a TUN device that vanishes with its last descriptor.
///
/// With `offload`, what the kernel has of TSO and USO is turned on; without, or where its driver
/// has no virtio-net header, it is the plain device.
///
/// # Errors
/// See [`OpenError`]; nothing is left behind.
pub fn open(name: &str, queues: u32, offload: bool) -> Result<OpenedTun, OpenError> {
    open_with(&Kernel, name, queues, offload)
}

fn open_with(driver: &impl Driver, name: &str, queues: u32, offload: bool) -> Result<OpenedTun, OpenError> {
    let well_formed = !name.is_empty()
        && name.len() <= MAX_NAME_LEN
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    if !well_formed || name == "." || name == ".." {
        return Err(OpenError::BadName);
    }
    if fs::exists(format!("/sys/class/net/{name}")).unwrap_or(false) {
        return Err(OpenError::Exists);
    }
    if !offload {
        return open_plain(name, queues);
    }
    let first = open_driver()?;
    if driver.features(&first) & libc::IFF_VNET_HDR == 0 {
        return open_plain(name, queues);
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = flags | if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    set_interface(&first, name, flags | libc::IFF_TUN_EXCL)?;
    let mut fds = vec![first];
    for _ in 1..queues {
        let fd = open_driver()?;
        set_interface(&fd, name, flags)?;
        fds.push(fd);
    }
    if queues > 1 {
        let writer = open_driver()?;
        set_interface(&writer, name, flags)?;
        detach(&writer)?;
        fds.push(writer);
    }
    turn_on_offloads(driver, &fds[0]);
    Ok(OpenedTun { name: name.to_owned(), fds, vnet_hdr: true })
}

/// What not every TUN driver has.
trait Driver {
    /// The kinds of devices that it knows (`IFF_…`), none where it does not say.
    fn features(&self, fd: &OwnedFd) -> c_int;

    /// Whether it takes these offloads (`TUN_F_…`), all of them.
    fn set_offload(&self, fd: &OwnedFd, wanted: c_uint) -> bool;
}

/// The driver of the kernel that this runs on.
struct Kernel;

impl Driver for Kernel {
    fn features(&self, fd: &OwnedFd) -> c_int {
        let mut features: c_int = 0;
        // SAFETY: TUNGETFEATURES writes one int, which lives across the call.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) };
        if result == 0 { features } else { 0 }
    }

    fn set_offload(&self, fd: &OwnedFd, wanted: c_uint) -> bool {
        // SAFETY: TUNSETOFFLOAD takes its argument by value; the descriptor is open.
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(wanted)) == 0 }
    }
}

/// Everything, else without USO, else checksums alone, else nothing.
fn turn_on_offloads(driver: &impl Driver, fd: &OwnedFd) {
    for wanted in [TSO | USO, TSO, libc::TUN_F_CSUM, 0] {
        if driver.set_offload(fd, wanted) {
            break;
        }
    }
}

fn open_driver() -> Result<OwnedFd, OpenError> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/dev/net/tun", flags, rustix::fs::Mode::empty())
        .map_err(|error| OpenError::NoDriver(io::Error::from(error)))
}

fn set_interface(fd: &OwnedFd, name: &str, flags: c_int) -> Result<(), OpenError> {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives across the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut request) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => OpenError::Exists,
        Some(libc::EPERM) => OpenError::NotPermitted,
        _ => OpenError::Other(error),
    })
}

/// Takes the queue out of those that the kernel chooses from; it can still be written to.
fn detach(fd: &OwnedFd) -> Result<(), OpenError> {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
    request.ifr_ifru.ifru_flags = libc::IFF_DETACH_QUEUE as libc::c_short;
    // SAFETY: TUNSETQUEUE reads one ifreq, which lives across the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &mut request) } == 0 {
        return Ok(());
    }
    Err(OpenError::Other(io::Error::last_os_error()))
}

fn open_plain(name: &str, queues: u32) -> Result<OpenedTun, OpenError> {
    if queues > 1 {
        return Err(OpenError::PlainIsSingleQueue);
    }
    let device =
        tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tun).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EBUSY | libc::EEXIST) => OpenError::Exists,
                Some(libc::EPERM) => OpenError::NotPermitted,
                _ if error.kind() == io::ErrorKind::NotFound => OpenError::NoDriver(error),
                _ => OpenError::Other(error),
            }
        })?;
    // SAFETY: into_raw_fd gives up ownership, and nothing else holds the descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
    // SAFETY: TUNSETOFFLOAD takes its argument by value. The setting of an earlier owner survives.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, 0 as libc::c_ulong) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| OpenError::Other(error.into()))?;
    rustix::io::ioctl_fionbio(&fd, true).map_err(|error| OpenError::Other(error.into()))?;
    Ok(OpenedTun { name: name.to_owned(), fds: vec![fd], vnet_hdr: false })
}

/// One queue of a TUN device.
pub trait TunDevice {
    /// Whether each packet carries a virtio-net header.
    fn vnet_hdr(&self) -> bool;

    /// Reads one packet; its length in bytes, or `None` when none is waiting.
    ///
    /// # Errors
    /// The device is gone.
    fn read(&self, packet: &mut [u8]) -> io::Result<Option<usize>>;

    /// Writes one packet, gathered from its parts; false when the kernel did not take it.
    ///
    /// # Errors
    /// `EINVAL` for a header that this kernel does not like, or the device is gone.
    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<bool>;
}

/// A queue by its descriptor.
#[derive(Debug)]
pub struct TunQueue {
    fd: OwnedFd,
    /// What is written to instead of `fd`.
    writer: Option<OwnedFd>,
    vnet_hdr: bool,
}

impl TunQueue {
    /// The queues of a device from its open, non-blocking descriptors ([`OpenedTun::fds`]).
    ///
    /// # Errors
    /// No descriptor can be had any more.
    pub fn of(mut fds: Vec<OwnedFd>, vnet_hdr: bool) -> io::Result<Vec<Self>> {
        let writer = if fds.len() > 1 { fds.pop() } else { None };
        let share = |fd| {
            let writer = writer.as_ref().map(OwnedFd::try_clone).transpose()?;
            Ok(TunQueue { fd, writer, vnet_hdr })
        };
        fds.into_iter().map(share).collect()
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl TunDevice for TunQueue {
    fn vnet_hdr(&self) -> bool {
        self.vnet_hdr
    }

    fn read(&self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.fd, packet) {
            Ok(len) => Ok(Some(len)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<bool> {
        match rustix::io::writev(self.writer.as_ref().unwrap_or(&self.fd), parts) {
            Ok(_) => Ok(true),
            // The device is down or out of memory: the packet is lost, the device is not.
            Err(
                rustix::io::Errno::AGAIN
                | rustix::io::Errno::NOBUFS
                | rustix::io::Errno::NOMEM
                | rustix::io::Errno::IO,
            ) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// The kernel, if it had no more than this.
    struct Old {
        features: c_int,
        offloads: c_uint,
        turned_on: Cell<Option<c_uint>>,
    }

    impl Old {
        fn new(features: c_int, offloads: c_uint) -> Self {
            Old { features, offloads, turned_on: Cell::new(None) }
        }
    }

    impl Driver for Old {
        fn features(&self, fd: &OwnedFd) -> c_int {
            Kernel.features(fd) & self.features
        }

        fn set_offload(&self, fd: &OwnedFd, wanted: c_uint) -> bool {
            let takes = wanted & !self.offloads == 0 && Kernel.set_offload(fd, wanted);
            if takes {
                self.turned_on.set(Some(wanted));
            }
            takes
        }
    }

    /// Whether the kernel puts a virtio-net header before the device's packets.
    fn has_vnet_hdr(fd: &OwnedFd) -> bool {
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq, which lives across the call; it sets the flags.
        let flags = unsafe {
            assert_eq!(libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request), 0);
            request.ifr_ifru.ifru_flags
        };
        c_int::from(flags) & libc::IFF_VNET_HDR != 0
    }

    #[test]
    fn a_device_has_what_its_driver_has() {
        if std::env::var_os("BRAID_NETNS").is_none_or(|value| value != "1") {
            println!("a device needs root: BRAID_NETNS=1");
            return;
        }
        let name = format!("braidt{}", std::process::id());
        // What the driver knows of devices and of offloads, and what is then turned on.
        let all = TSO | USO;
        for (features, offloads, turned_on) in [
            (!0, all, Some(all)),
            (!0, TSO | libc::TUN_F_USO4, Some(TSO)),
            (!0, TSO, Some(TSO)),
            (!0, libc::TUN_F_CSUM | libc::TUN_F_TSO4, Some(libc::TUN_F_CSUM)),
            (!0, 0, Some(0)),
            (!libc::IFF_VNET_HDR, all, None),
            (0, all, None),
        ] {
            for queues in [1, 2] {
                let driver = Old::new(features, offloads);
                let opened = open_with(&driver, &name, queues, true);
                let Some(turned_on) = turned_on else {
                    if queues > 1 {
                        assert!(matches!(opened, Err(OpenError::PlainIsSingleQueue)));
                        continue;
                    }
                    let opened = opened.unwrap();
                    assert!(!opened.vnet_hdr && !has_vnet_hdr(&opened.fds[0]));
                    assert_eq!((opened.fds.len(), driver.turned_on.get()), (1, None));
                    continue;
                };
                let opened = opened.unwrap();
                assert!(opened.vnet_hdr && has_vnet_hdr(&opened.fds[0]));
                assert_eq!(opened.fds.len(), if queues > 1 { 3 } else { 1 });
                assert_eq!(driver.turned_on.get(), Some(turned_on));
                assert!(matches!(open_with(&driver, &name, queues, true), Err(OpenError::Exists)));
            }
        }
    }
}

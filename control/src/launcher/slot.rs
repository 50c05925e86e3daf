//! A gateway's place among those of its network namespace.
//!
//! A slot is held by a datagram socket with an abstract name: the kernel keeps these names per
//! network namespace and frees them with the process, however that ends. Through the same socket
//! a leaving gateway hands over to one that stays the sysctls that it changed, since the last one
//! has to put them back. Only datagrams of our own user are believed.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};

use super::layout::SLOTS;
use super::sysctl::Changed;

/// Longest hand-over, in bytes.
const MAX_LEN: usize = 64 * 1024;
/// How long another gateway may be in the middle of coming or going.
const PATIENCE: Duration = Duration::from_secs(3);

/// A slot that is ours.
#[derive(Debug)]
pub(super) struct Slot {
    number: u8,
    socket: OwnedFd,
}

impl Slot {
    /// Takes the first slot that is free, of those wanted, in this order.
    ///
    /// # Errors
    /// What the kernel said; `None` when all are taken.
    pub(super) fn claim(wanted: impl IntoIterator<Item = u8>) -> io::Result<Option<Self>> {
        for number in wanted {
            if let Some(socket) = bind_abstract(&slot_name(number))? {
                rustix::net::sockopt::set_socket_passcred(&socket, true)?;
                return Ok(Some(Self { number, socket }));
            }
        }
        Ok(None)
    }

    /// Its number.
    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// Gives a record to another gateway of the namespace; false when there is none.
    pub(super) fn hand_over(&self, record: &[Changed]) -> bool {
        let Ok(bytes) = serde_json::to_vec(record) else { return false };
        let others = (0..SLOTS).filter(|number| *number != self.number);
        others.into_iter().any(|number| {
            let Ok(address) = SocketAddrUnix::new_abstract_name(slot_name(number).as_bytes()) else {
                return false;
            };
            let sent = rustix::net::sendmsg_addr(
                &self.socket,
                &address,
                &[IoSlice::new(&bytes)],
                &mut SendAncillaryBuffer::default(),
                SendFlags::NOSIGNAL,
            );
            sent.is_ok()
        })
    }

    /// What others have handed over, once.
    pub(super) fn inherited(&self) -> Vec<Changed> {
        let mut all = Vec::new();
        let mut buffer = vec![0; MAX_LEN];
        let own = rustix::process::geteuid();
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let Ok(received) =
                rustix::net::recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::DONTWAIT)
            else {
                return all;
            };
            let trusted = control.drain().any(|message| {
                matches!(message, RecvAncillaryMessage::ScmCredentials(sender) if sender.uid == own)
            });
            let bytes = buffer.get(..received.bytes).unwrap_or_default();
            if trusted && let Ok(record) = serde_json::from_slice::<Vec<Changed>>(bytes) {
                all.extend(record.into_iter().filter(Changed::is_plausible));
            }
        }
    }
}

impl AsFd for Slot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Keeps the gateways of a namespace from coming and going at the same time.
#[derive(Debug)]
pub(super) struct NamespaceLock {
    _socket: OwnedFd,
}

impl NamespaceLock {
    /// Waits for the lock.
    ///
    /// # Errors
    /// `TimedOut`, when another one is stuck with it.
    pub(super) fn acquire() -> io::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(socket) = bind_abstract("braid-namespace-lock")? {
                return Ok(Self { _socket: socket });
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sole use of raw ESP at an address: the kernel itself would give every raw socket a copy.
///
/// # Errors
/// `AddrInUse`, when another gateway has it.
pub(super) fn claim_raw(local: IpAddr, uplink: Option<&str>) -> io::Result<OwnedFd> {
    let name = format!("braid-esp-{local}%{}", uplink.unwrap_or_default());
    bind_abstract(&name)?.ok_or_else(|| io::ErrorKind::AddrInUse.into())
}

fn slot_name(number: u8) -> String {
    format!("braid-gateway-{number}")
}

fn bind_abstract(name: &str) -> io::Result<Option<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
    match rustix::net::bind(&socket, &address) {
        Ok(()) => Ok(Some(socket)),
        Err(rustix::io::Errno::ADDRINUSE) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

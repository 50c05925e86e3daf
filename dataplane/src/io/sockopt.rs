//! Socket options that no safe wrapper has.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use libc::{c_int, c_void, socklen_t};

/// A new non-blocking socket that is closed on exec.
pub(super) fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket takes plain numbers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an integer option.
pub(super) fn set(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    set_bytes(fd, level, name, &value.to_ne_bytes())
}

/// Sets an option of bytes.
pub(super) fn set_bytes(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`, which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast::<c_void>(),
            value.len() as socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

// asm-generic/socket.h; not in libc.
const SO_BINDTOIFINDEX: c_int = 62;

/// The interface that a socket's packets leave by, if it is bound to one.
pub fn bound_interface(fd: BorrowedFd<'_>) -> Option<u32> {
    let mut index: c_int = 0;
    let mut len = size_of::<c_int>() as socklen_t;
    // SAFETY: pointer and length describe `index`, which lives across the call.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_BINDTOIFINDEX,
            (&raw mut index).cast::<c_void>(),
            &raw mut len,
        )
    };
    u32::try_from(index).ok().filter(|index| result == 0 && *index != 0)
}

/// Options that every outer socket has: mark, interface, buffers, TOS, DF.
pub(super) fn prepare(fd: BorrowedFd<'_>, v6: bool, uplink: Option<&str>, mark: u32) -> io::Result<()> {
    /// Holds what arrives while a batch is worked on; a smaller one costs TCP a fifth.
    const BUFFER: c_int = 8 << 20;
    if mark != 0 {
        set(fd, libc::SOL_SOCKET, libc::SO_MARK, mark as c_int)?;
    }
    if let Some(uplink) = uplink {
        set_bytes(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, uplink.as_bytes())?;
    }
    // Beyond rmem_max only with CAP_NET_ADMIN; without it, as much as is allowed.
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if set(fd, libc::SOL_SOCKET, force, BUFFER).is_err() {
            set(fd, libc::SOL_SOCKET, plain, BUFFER)?;
        }
    }
    if v6 {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?;
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)
    } else {
        set(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    }
}

/// Binds, or connects, a socket.
pub(super) fn with_address(
    fd: BorrowedFd<'_>,
    address: SocketAddr,
    call: unsafe extern "C" fn(c_int, *const libc::sockaddr, socklen_t) -> c_int,
) -> io::Result<()> {
    let mut storage = RawAddress::EMPTY;
    storage.set(address);
    // SAFETY: the storage holds an address of `len` bytes and lives across the call.
    let result = unsafe { call(fd.as_raw_fd(), (&raw const storage.bytes).cast(), storage.len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A socket address as the kernel has it.
#[derive(Clone, Copy)]
pub(super) struct RawAddress {
    pub(super) bytes: libc::sockaddr_in6,
    pub(super) len: socklen_t,
}

impl RawAddress {
    pub(super) const EMPTY: RawAddress = RawAddress {
        bytes: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
        len: size_of::<libc::sockaddr_in6>() as socklen_t,
    };

    pub(super) fn set(&mut self, address: SocketAddr) {
        *self = RawAddress::EMPTY;
        match address {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_in is smaller than sockaddr_in6, both are plain bytes.
                unsafe { (&raw mut self.bytes).cast::<libc::sockaddr_in>().write(raw) };
                self.len = size_of::<libc::sockaddr_in>() as socklen_t;
            }
            SocketAddr::V6(v6) => {
                self.bytes.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                self.bytes.sin6_port = v6.port().to_be();
                self.bytes.sin6_flowinfo = v6.flowinfo();
                self.bytes.sin6_addr.s6_addr = v6.ip().octets();
                self.bytes.sin6_scope_id = v6.scope_id();
            }
        }
    }

    pub(super) fn get(&self) -> Option<SocketAddr> {
        match i32::from(self.bytes.sin6_family) {
            libc::AF_INET => {
                // SAFETY: the family says that these bytes are a sockaddr_in.
                let raw = unsafe { (&raw const self.bytes).cast::<libc::sockaddr_in>().read() };
                Some((raw.sin_addr.s_addr.to_ne_bytes(), u16::from_be(raw.sin_port)).into())
            }
            libc::AF_INET6 => Some((self.bytes.sin6_addr.s6_addr, u16::from_be(self.bytes.sin6_port)).into()),
            _ => None,
        }
    }
}

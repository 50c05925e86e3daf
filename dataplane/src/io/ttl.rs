//! UDP sockets that send with the highest TTL or hop limit, and tell that of what they receive.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use libc::{c_int, c_void, iovec, msghdr};

use super::sockopt::{self, RawAddress};

/// What is sent leaves with it.
const TTL: c_int = 255;
/// Class CS6, as routing protocols have it (RFC 4594 section 3.1).
const TRAFFIC_CLASS: c_int = 0xc0;

/// A non-blocking socket bound to an address and, if one is given, to an interface. Needs no privilege: the kernel
/// lets anybody bind a socket to an interface that is bound to none (since Linux 5.7).
///
/// # Errors
/// `AddrInUse`, `AddrNotAvailable`, `NotFound` (no such interface), as the kernel has them.
pub fn open(local: SocketAddr, interface: Option<&str>) -> io::Result<OwnedFd> {
    let domain = if local.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    let socket = sockopt::socket(domain, libc::SOCK_DGRAM, 0)?;
    let fd = socket.as_fd();
    if let Some(interface) = interface {
        sockopt::set_bytes(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, interface.as_bytes()).map_err(
            |error| match error.raw_os_error() {
                Some(libc::ENODEV) => io::ErrorKind::NotFound.into(),
                _ => error,
            },
        )?;
    }
    if local.is_ipv6() {
        sockopt::set(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
        sockopt::set(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, TTL)?;
        sockopt::set(fd, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, TRAFFIC_CLASS)?;
        sockopt::set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
    } else {
        sockopt::set(fd, libc::IPPROTO_IP, libc::IP_TTL, TTL)?;
        sockopt::set(fd, libc::IPPROTO_IP, libc::IP_TOS, TRAFFIC_CLASS)?;
        sockopt::set(fd, libc::IPPROTO_IP, libc::IP_RECVTTL, 1)?;
    }
    sockopt::with_address(fd, local, libc::bind)?;
    Ok(socket)
}

/// A datagram that was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrived {
    /// Its length in bytes; what did not fit is lost.
    pub len: usize,
    /// Its sender.
    pub from: SocketAddr,
    /// Its TTL or hop limit.
    pub ttl: u8,
}

/// The next datagram of a socket of [`open`], if one waits. One whose sender or TTL the kernel does not tell is
/// passed over as having come from afar.
///
/// # Errors
/// The socket is of no use any more.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Arrived>> {
    /// Aligned like `cmsghdr`; room for one integer and more.
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut name = RawAddress::EMPTY;
    let mut control = Control([0; 64]);
    let mut vector = iovec { iov_base: buffer.as_mut_ptr().cast::<c_void>(), iov_len: buffer.len() };
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut header: msghdr = unsafe { core::mem::zeroed() };
    header.msg_name = (&raw mut name.bytes).cast::<c_void>();
    header.msg_namelen = name.len;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast::<c_void>();
    header.msg_controllen = control.0.len() as _;
    // SAFETY: the header's pointers are to memory that lives, and is lent to nobody else, across the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    if received < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Ok(None),
            _ => Err(error),
        };
    }
    let mut ttl = 0;
    // SAFETY: the kernel has filled `msg_controllen` bytes of `control`, which the header points to.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR yield headers that lie wholly within `control`.
        let (level, kind) = unsafe { ((*message).cmsg_level, (*message).cmsg_type) };
        if matches!(
            (level, kind),
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)
        ) {
            // SAFETY: both hold one int.
            let value = unsafe { libc::CMSG_DATA(message).cast::<c_int>().read_unaligned() };
            ttl = u8::try_from(value).unwrap_or(0);
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    let len = (received as usize).min(buffer.len());
    let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
    Ok(Some(Arrived { len, from: name.get().unwrap_or(nobody), ttl }))
}

/// Whether a socket is bound to the interface that has this name now: one that was taken away and made again is
/// another.
pub fn is_on(socket: BorrowedFd<'_>, interface: &str) -> bool {
    let index = rustix::net::netdevice::name_to_index(socket, interface).ok();
    index.is_some() && index == sockopt::bound_interface(socket)
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, time::Duration};

    use super::*;

    #[test]
    fn the_ttl_of_what_comes_is_told() {
        for (address, unicast) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
            let Ok(plain) = UdpSocket::bind(address) else { continue };
            plain.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let ours = open(address.parse().unwrap(), Some("lo")).unwrap();
            assert!(is_on(ours.as_fd(), "lo") && !is_on(ours.as_fd(), "none"));
            let to = crate::io::udp::local_address(&ours).unwrap();
            let mut buffer = [0; 8];
            assert_eq!(receive(ours.as_fd(), &mut buffer).unwrap(), None);
            if to.is_ipv4() {
                plain.set_ttl(254).unwrap();
            } else {
                rustix::net::sockopt::set_ipv6_unicast_hops(&plain, Some(254)).unwrap();
            }
            plain.send_to(b"packet that is long", to).unwrap();
            let arrived = receive(ours.as_fd(), &mut buffer).unwrap().unwrap();
            assert_eq!((arrived.len, arrived.ttl, &buffer[..]), (8, 254, &b"packet t"[..]));
            assert_eq!(arrived.from.ip().to_string(), unicast);
            // Ours have the highest.
            let other = open(address.parse().unwrap(), None).unwrap();
            rustix::net::sendto(
                &ours,
                b"x",
                rustix::net::SendFlags::empty(),
                &crate::io::udp::local_address(&other).unwrap(),
            )
            .unwrap();
            assert_eq!(receive(other.as_fd(), &mut buffer).unwrap().map(|arrived| arrived.ttl), Some(255));
        }
        assert_eq!(
            open("127.0.0.1:0".parse().unwrap(), Some("none")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}

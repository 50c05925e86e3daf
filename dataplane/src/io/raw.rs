//! Raw sockets of IP protocol 50.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use super::sockopt;

/// A raw ESP socket bound to one local address. IPv4 receives with the IP header, IPv6 without.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_RAW, `AddrNotAvailable`.
pub fn bind(local: IpAddr, uplink: Option<&str>, mark: u32) -> io::Result<OwnedFd> {
    let domain = if local.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    let fd = sockopt::socket(domain, libc::SOCK_RAW, libc::IPPROTO_ESP)?;
    sockopt::prepare(fd.as_fd(), local.is_ipv6(), uplink, mark)?;
    sockopt::with_address(fd.as_fd(), SocketAddr::new(local, 0), libc::bind)?;
    Ok(fd)
}

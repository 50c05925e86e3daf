//! Outer UDP sockets: opening, probing what the kernel's GSO takes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

pub use super::sockopt::bound_interface;
use super::{batch, sockopt};

/// `count` sockets bound to one address, one for each worker.
///
/// The first try is without `SO_REUSEPORT`, so that a second gateway on this address is refused
/// instead of silently taking a share of the traffic.
///
/// # Errors
/// `AddrInUse`, `AddrNotAvailable`, `PermissionDenied` as the kernel has them.
pub fn bind(local: SocketAddr, uplink: Option<&str>, mark: u32, count: u32) -> io::Result<Vec<OwnedFd>> {
    let alone = bind_one(local, uplink, mark, false)?;
    if count <= 1 {
        return Ok(vec![alone]);
    }
    let local = local_address(&alone)?;
    drop(alone);
    (0..count).map(|_| bind_one(local, uplink, mark, true)).collect()
}

fn bind_one(local: SocketAddr, uplink: Option<&str>, mark: u32, share: bool) -> io::Result<OwnedFd> {
    let domain = if local.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    let fd = sockopt::socket(domain, libc::SOCK_DGRAM, 0)?;
    sockopt::prepare(fd.as_fd(), local.is_ipv6(), uplink, mark)?;
    if local.is_ipv6() {
        // Not in `prepare`: a raw socket has one family anyway, and refuses the question.
        sockopt::set(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    // A kernel without UDP_GRO delivers datagram by datagram, which recvmmsg still batches.
    let _ = sockopt::set(fd.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
    if share {
        sockopt::set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    sockopt::with_address(fd.as_fd(), local, libc::bind)?;
    Ok(fd)
}

/// How many segments the kernel takes in one `UDP_SEGMENT` send: 128, 64, or 1 for no GSO at all.
/// Asks by sending to itself on loopback.
pub fn probe_max_segments() -> u16 {
    let probe = || -> io::Result<u16> {
        let fd = sockopt::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        sockopt::with_address(fd.as_fd(), (Ipv4Addr::LOCALHOST, 0).into(), libc::bind)?;
        let to = local_address(&fd)?;
        let bytes = [0; 128];
        for segments in [128, 64] {
            if batch::send_one(fd.as_fd(), &bytes[..segments], to, 1, 0).is_ok() {
                return Ok(segments as u16);
            }
        }
        Ok(1)
    };
    probe().unwrap_or(1)
}

/// Sends one datagram that may be fragmented on its way, from a socket whose others may not.
///
/// # Errors
/// As the kernel has them.
pub fn send_fragmented(socket: BorrowedFd<'_>, bytes: &[u8], to: SocketAddr, tos: u8) -> io::Result<()> {
    let modes = if to.is_ipv6() {
        [
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT, libc::IPV6_PMTUDISC_DO),
            (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0, 1),
        ]
        .as_slice()
    } else {
        [(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT, libc::IP_PMTUDISC_DO)].as_slice()
    };
    // For as long as this takes, packets of other threads may be fragmented too, which harms less
    // than a message that never arrives.
    let relaxed =
        modes.iter().try_for_each(|(level, name, off, _)| sockopt::set(socket, *level, *name, *off));
    let sent = relaxed.and_then(|()| batch::send_one(socket, bytes, to, bytes.len(), tos));
    let strict = modes.iter().try_for_each(|(level, name, _, on)| sockopt::set(socket, *level, *name, *on));
    sent.and(strict)
}

/// The address that a socket is bound to.
///
/// # Errors
/// The descriptor is no internet socket.
pub fn local_address(fd: impl AsFd) -> io::Result<SocketAddr> {
    SocketAddr::try_from(rustix::net::getsockname(fd)?)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_gateway_on_one_address_is_refused() {
        for count in [1, 2] {
            let first = bind((Ipv4Addr::LOCALHOST, 0).into(), None, 0, count).unwrap();
            assert_eq!(first.len(), count as usize);
            let local = local_address(&first[0]).unwrap();
            assert_eq!(bind(local, None, 0, count).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }
}

//! Raw sockets that hear what routers say of packets that they could not deliver.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use super::sockopt;

/// linux/icmp.h.
const ICMP_FILTER: libc::c_int = 1;
/// linux/icmpv6.h.
const ICMPV6_FILTER: libc::c_int = 1;

/// A non-blocking socket that receives "destination unreachable" and "time exceeded" (RFC 792, RFC 4443), of IPv4
/// with the IP header, of IPv6 without and "packet too big" as well.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_RAW; there may be no IPv6.
pub fn open(v6: bool) -> io::Result<OwnedFd> {
    if v6 {
        let socket = sockopt::socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)?;
        // A bit that is set keeps its type out.
        let mut filter = [0xff_u8; 32];
        filter[..4].copy_from_slice(&(!(1_u32 << 1 | 1 << 2 | 1 << 3)).to_ne_bytes());
        sockopt::set_bytes(socket.as_fd(), libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)?;
        return Ok(socket);
    }
    let socket = sockopt::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
    let filter = (!(1_u32 << 3 | 1 << 11)).to_ne_bytes();
    sockopt::set_bytes(socket.as_fd(), libc::SOL_RAW, ICMP_FILTER, &filter)?;
    Ok(socket)
}

//! Options of TCP sockets that control's BGP sessions want and no safe wrapper has.

use std::{io, net::IpAddr, os::fd::BorrowedFd};

use super::sockopt;

/// Longest key of a TCP-MD5 signature, in bytes (linux/tcp.h: `TCP_MD5SIG_MAXKEYLEN`).
pub const MAX_MD5_KEY_LEN: usize = 80;

// linux/tcp.h; not in libc.
const TCP_MD5SIG: libc::c_int = 14;
/// Length of `struct __kernel_sockaddr_storage`.
const STORAGE_LEN: usize = 128;

/// Signs what goes to a peer and expects its signature of what comes (RFC 2385). Connections that a listening
/// socket accepts inherit it. An empty key takes it back.
///
/// # Errors
/// As the kernel has them: `InvalidInput` for a key that is too long, `NotFound` for a kernel without it.
pub fn set_md5_key(fd: BorrowedFd<'_>, peer: IpAddr, key: &[u8]) -> io::Result<()> {
    if key.len() > MAX_MD5_KEY_LEN {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // struct tcp_md5sig: address, flags, prefix length, key length, interface, key.
    let mut option = [0; STORAGE_LEN + 8 + MAX_MD5_KEY_LEN];
    match peer {
        IpAddr::V4(address) => {
            option[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            option[4..8].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            option[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            option[8..24].copy_from_slice(&address.octets());
        }
    }
    option[STORAGE_LEN + 2..STORAGE_LEN + 4].copy_from_slice(&(key.len() as u16).to_ne_bytes());
    option[STORAGE_LEN + 8..][..key.len()].copy_from_slice(key);
    let set = sockopt::set_bytes(fd, libc::IPPROTO_TCP, TCP_MD5SIG, &option);
    option.fill(0);
    match set {
        // There was none to be taken back.
        Err(error) if key.is_empty() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Has the kernel drop what comes with a lower TTL or hop limit (RFC 5082).
///
/// # Errors
/// As the kernel has them.
pub fn set_min_ttl(fd: BorrowedFd<'_>, v6: bool, ttl: u8) -> io::Result<()> {
    if v6 {
        sockopt::set(fd, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, ttl.into())
    } else {
        sockopt::set(fd, libc::IPPROTO_IP, libc::IP_MINTTL, ttl.into())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
    };

    use super::*;

    #[test]
    fn a_ttl_below_the_least_is_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_min_ttl(listener.as_fd(), false, 255).unwrap();
        let v6 = TcpListener::bind("[::1]:0").ok();
        v6.into_iter().for_each(|v6| set_min_ttl(v6.as_fd(), true, 255).unwrap());
        // The default is 64: its SYN is not even answered.
        let address = listener.local_addr().unwrap();
        assert!(TcpStream::connect_timeout(&address, std::time::Duration::from_millis(200)).is_err());
    }

    #[test]
    fn a_key_that_is_too_long_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = "192.0.2.1".parse().unwrap();
        let refused = set_md5_key(listener.as_fd(), peer, &[7; MAX_MD5_KEY_LEN + 1]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}

//! What the path to a peer takes, as the kernel has learned it: asked by netlink (rtnetlink(7)),
//! since a mark can be named there without the privilege that `SO_MARK` needs.

use std::{io, net::IpAddr};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink, sockopt,
};

const HEADER_LEN: usize = 16;
const ROUTE_LEN: usize = 12;
const LINK_LEN: usize = 16;
const REPLY_LEN: usize = 16 * 1024;
const PATIENCE: core::time::Duration = core::time::Duration::from_secs(1);

// linux/rtnetlink.h; not all of them are in libc.
const RTAX_MTU: u16 = 2;
const RTA_METRICS: u16 = 8;
const RTA_MARK: u16 = 16;

/// The MTU of the path from one address to another, in bytes, outer IP header included, by the
/// routes of packets with this mark, which leave by interface `oif` if there is one.
///
/// # Errors
/// There is no route.
pub fn path_mtu(local: IpAddr, remote: IpAddr, mark: u32, oif: Option<u32>) -> io::Result<u16> {
    let route = ask(libc::RTM_GETROUTE, libc::RTM_NEWROUTE, &route_request(local, remote, mark, oif))?;
    let attributes = route.get(ROUTE_LEN..).unwrap_or_default();
    let learned = attribute(attributes, RTA_METRICS).and_then(|metrics| number(attribute(metrics, RTAX_MTU)));
    let mtu = match learned {
        Some(mtu) => mtu,
        None => link_mtu(number(attribute(attributes, libc::RTA_OIF)).ok_or(io::ErrorKind::InvalidData)?)?,
    };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn link_mtu(index: u32) -> io::Result<u32> {
    let mut request = [0; LINK_LEN];
    request[4..8].copy_from_slice(&index.to_ne_bytes());
    let link = ask(libc::RTM_GETLINK, libc::RTM_NEWLINK, &request)?;
    let mtu = number(attribute(link.get(LINK_LEN..).unwrap_or_default(), libc::IFLA_MTU));
    mtu.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn route_request(local: IpAddr, remote: IpAddr, mark: u32, oif: Option<u32>) -> Vec<u8> {
    let mut request = vec![0; ROUTE_LEN];
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    request[0] = if remote.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
    let full = if remote.is_ipv4() { 32 } else { 128 };
    (request[1], request[2]) = (full, full);
    put(&mut request, libc::RTA_DST, &octets(remote));
    put(&mut request, libc::RTA_SRC, &octets(local));
    put(&mut request, RTA_MARK, &mark.to_ne_bytes());
    if let Some(oif) = oif {
        put(&mut request, libc::RTA_OIF, &oif.to_ne_bytes());
    }
    request
}

/// Appends an attribute, padded to 4 bytes.
fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend((4 + value.len() as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of this kind.
fn attribute(mut list: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(list.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(list.get(2..4)?.try_into().ok()?);
        let value = list.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        list = list.get(len.next_multiple_of(4)..)?;
    }
}

fn number(value: Option<&[u8]>) -> Option<u32> {
    Some(u32::from_ne_bytes(value?.get(..4)?.try_into().ok()?))
}

/// Asks one question; the body of the answer.
fn ask(kind: u16, expected: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let mut message = Vec::with_capacity(HEADER_LEN + body.len());
    message.extend(((HEADER_LEN + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut reply = vec![0; REPLY_LEN];
    let (len, _) = rustix::net::recv(&socket, &mut reply[..], RecvFlags::empty())?;
    reply.truncate(len);
    let kind = reply.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    let body = reply.get(HEADER_LEN..).unwrap_or_default();
    match kind {
        Some(kind) if kind == expected => Ok(body.to_vec()),
        Some(kind) if kind == libc::NLMSG_ERROR as u16 => {
            let errno = number(Some(body)).map_or(libc::EPROTO, |errno| (errno as i32).wrapping_neg());
            Err(io::Error::from_raw_os_error(errno))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, os::fd::AsFd};

    use super::*;
    use crate::io::udp;

    #[test]
    fn loopback_has_a_path_mtu_with_and_without_a_mark() {
        let local: IpAddr = Ipv4Addr::LOCALHOST.into();
        for mark in [0, 77] {
            assert!(path_mtu(local, local, mark, None).unwrap() >= 1500);
        }
    }

    #[test]
    fn a_path_is_asked_for_by_the_interface_that_a_socket_is_bound_to() {
        let local: IpAddr = Ipv4Addr::LOCALHOST.into();
        let socket = udp::bind((local, 0).into(), Some("lo"), 0, 1).unwrap().remove(0);
        let lo = udp::bound_interface(socket.as_fd()).unwrap();
        assert!(path_mtu(local, local, 0, Some(lo)).unwrap() >= 1500);
        assert!(path_mtu(local, local, 0, Some(lo + 1_000_000)).is_err());
        let free = udp::bind((local, 0).into(), None, 0, 1).unwrap().remove(0);
        assert_eq!(udp::bound_interface(free.as_fd()), None);
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        // A documentation address, which no machine has.
        let foreign: IpAddr = Ipv4Addr::new(192, 0, 2, 77).into();
        assert!(path_mtu(foreign, Ipv4Addr::LOCALHOST.into(), 0, None).is_err());
    }

    #[test]
    fn attributes_cut_short_are_none() {
        let mut list = Vec::new();
        put(&mut list, 1, &[1, 2, 3]);
        put(&mut list, 2, &1400_u32.to_ne_bytes());
        assert_eq!(attribute(&list, 1), Some(&[1, 2, 3][..]));
        assert_eq!(number(attribute(&list, 2)), Some(1400));
        assert_eq!(attribute(&list, 3), None);
        for cut in 0..list.len() {
            assert_eq!(attribute(&list[..cut], 2), None);
        }
        assert_eq!(attribute(&[0; 8], 9), None);
    }
}

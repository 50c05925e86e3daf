//! Whole IP packets sent as they are, source address and all: what a host on the way could inject.

use crate::{Error, Family, Netns, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, setsockopt,
    socket, sockopt,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

/// A raw socket of one family, in one namespace.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
    family: Family,
}

impl RawSocket {
    /// Opens it.
    ///
    /// # Errors
    /// When not root.
    pub fn open(netns: &Netns, family: Family) -> Result<Self> {
        let domain = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let opened =
            netns.enter(|| socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw))?;
        let fd = opened.map_err(|errno| Error::io("cannot open a raw socket")(errno.into()))?;
        // Tens of thousands in a row must wait for the wire, not be refused.
        setsockopt(&fd, sockopt::SndBufForce, &(8 << 20))
            .map_err(|errno| Error::io("cannot enlarge a buffer")(errno.into()))?;
        Ok(Self { fd, family })
    }

    /// Sends a packet that starts with its IP header, by the namespace's routes. The kernel fills
    /// in IPv4's total length, checksum and, where it is 0, identification.
    ///
    /// # Errors
    /// When there is no route, or the packet is larger than the route's MTU.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        let failed =
            |errno: nix::Error| Error::io(format!("cannot inject {} bytes", packet.len()))(errno.into());
        let (fd, flags) = (self.fd.as_raw_fd(), MsgFlags::empty());
        let sent = match self.family {
            Family::V4 => {
                let to: [u8; 4] = field(packet, 16)?;
                sendto(fd, packet, &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::from(to), 0)), flags)
            }
            Family::V6 => {
                let to: [u8; 16] = field(packet, 24)?;
                let to = SocketAddrV6::new(Ipv6Addr::from(to), 0, 0, 0);
                sendto(fd, packet, &SockaddrIn6::from(to), flags)
            }
        };
        sent.map(drop).map_err(failed)
    }
}

fn field<const N: usize>(packet: &[u8], at: usize) -> Result<[u8; N]> {
    packet
        .get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Error::Usage("a packet without an IP header".to_owned()))
}

/// An IP packet around `payload`, its header checksum complete. `tos` is the traffic class in IPv6.
#[must_use]
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, tos: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(40 + payload.len());
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
            packet.extend([0x45, tos]);
            packet.extend(length.to_be_bytes());
            packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet, 0);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (source, destination) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
            packet.extend([0x60 | tos >> 4, tos << 4, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(octets(source));
            packet.extend(octets(destination));
        }
    }
    packet.extend(payload);
    packet
}

/// A UDP datagram in IP, checksums complete.
#[must_use]
pub fn udp(source: (IpAddr, u16), destination: (IpAddr, u16), tos: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut datagram = Vec::with_capacity(8 + payload.len());
    for word in [source.1, destination.1, length, 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.extend(payload);
    let mut packet = ip(source.0, destination.0, 17, tos, &datagram);
    let (addresses, header) = if packet[0] >> 4 == 4 { (12, 20) } else { (8, 40) };
    let pseudo = 17 + u32::from(length);
    let sum = match checksum(&packet[addresses..], pseudo) {
        // RFC 768: a sum of zero is sent as all ones.
        0 => 0xFFFF,
        sum => sum,
    };
    packet[header + 6..header + 8].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Internet checksum (RFC 1071) of `bytes`, started with `start`.
#[must_use]
pub fn checksum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.fold(u64::from(start), |sum, word| sum + u64::from(word));
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    // Folded to 16 bits just above.
    #[allow(clippy::cast_possible_truncation)]
    let folded = sum as u16;
    !folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_cancel() {
        let v4 = ((Ipv4Addr::new(10, 1, 0, 2).into(), 7), (Ipv4Addr::new(10, 2, 0, 2).into(), 9));
        let packet = udp(v4.0, v4.1, 3, b"odd");
        assert_eq!(packet.len(), 31);
        assert_eq!(checksum(&packet[..20], 0), 0);
        assert_eq!(checksum(&packet[12..], 17 + 11), 0);
        let v6 = ((Ipv6Addr::LOCALHOST.into(), 7), (Ipv6Addr::UNSPECIFIED.into(), 9));
        let packet = udp(v6.0, v6.1, 0xB9, b"even");
        assert_eq!(packet[..2], [0x6B, 0x90]);
        assert_eq!(checksum(&packet[8..], 17 + 12), 0);
    }
}

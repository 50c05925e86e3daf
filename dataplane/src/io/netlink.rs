//! Netlink sockets that hear what the kernel changes (linux/rtnetlink.h).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::{RecvFlags, SendFlags, netlink},
};

use super::sockopt;

/// `RTMGRP_LINK`, for [`subscribe`].
pub const LINKS: u32 = 1;
/// Longest datagram of the kernel.
pub const BUFFER_LEN: usize = 64 * 1024;

/// `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
/// `struct ifinfomsg`.
const LINK_LEN: usize = 16;
/// `struct rtmsg`, whose sixth byte is the protocol.
const ROUTE_LEN: usize = 12;
const ROUTE_PROTOCOL: usize = 5;
const IFLA_IFNAME: u16 = 3;
const RTA_GATEWAY: u32 = 5;
const RTA_NH_ID: u32 = 30;
const IFF_UP: u32 = 0x1;
const IFF_RUNNING: u32 = 0x40;

/// A non-blocking socket that hears what happens in these multicast groups (`RTMGRP_…`).
///
/// # Errors
/// The kernel refuses netlink.
pub fn subscribe(groups: u32) -> io::Result<OwnedFd> {
    let socket = sockopt::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Reads notices. Of a socket that is full the kernel drops all that come until the last has been read
/// (`netlink_overrun`, `netlink_rcv_wake`).
#[derive(Debug, Default)]
pub struct Receiver {
    lost: bool,
}

impl Receiver {
    /// The length of the next datagram; `None` where notices were lost, once none can be lost any more: whoever looks
    /// at all there is now will hear of what changes after it.
    ///
    /// # Errors
    /// `WouldBlock` where there is nothing to read; the socket is broken.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((len, _)) => return Ok(Some(len)),
                Err(Errno::NOBUFS) => self.lost = true,
                Err(Errno::WOULDBLOCK) if core::mem::take(&mut self.lost) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Lets the kernel keep notices of routes of this protocol to itself unless they lead over a link, by a gateway or a
/// next-hop object: whoever has a million routes made hears of none of them.
///
/// # Errors
/// The kernel refuses the filter.
pub fn ignore_device_routes(socket: BorrowedFd<'_>, protocol: u8) -> io::Result<()> {
    let mut program = device_routes_filter(protocol);
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `filter` describes `program`; both live across the call, which copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Classic BPF (linux/filter.h), which reads numbers as big-endian. A notice has a datagram of its own.
fn device_routes_filter(protocol: u8) -> [libc::sock_filter; 15] {
    const LOAD_U16: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const LOAD_U8: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const LOAD_U32: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const SET_A: u16 = (libc::BPF_LD | libc::BPF_IMM) as u16;
    const SET_X: u16 = (libc::BPF_LDX | libc::BPF_IMM) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // Where in the datagram an attribute of type X is, from offset A on; 0: nowhere.
    const FIND_ATTRIBUTE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR) as u32;
    const ATTRIBUTES: u32 = (HEADER_LEN + ROUTE_LEN) as u32;
    let kind = |kind: u16| u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        op(LOAD_U16, 0, 0, 4),
        op(EQUAL, 1, 0, kind(RTM_NEWROUTE)),
        op(EQUAL, 0, 10, kind(RTM_DELROUTE)),
        op(LOAD_U8, 0, 0, (HEADER_LEN + ROUTE_PROTOCOL) as u32),
        op(EQUAL, 0, 8, u32::from(protocol)),
        op(SET_X, 0, 0, RTA_GATEWAY),
        op(SET_A, 0, 0, ATTRIBUTES),
        op(LOAD_U32, 0, 0, FIND_ATTRIBUTE),
        op(EQUAL, 0, 4, 0),
        op(SET_X, 0, 0, RTA_NH_ID),
        op(SET_A, 0, 0, ATTRIBUTES),
        op(LOAD_U32, 0, 0, FIND_ATTRIBUTE),
        op(EQUAL, 1, 0, 0),
        op(RETURN, 0, 0, u32::MAX),
        op(RETURN, 0, 0, 0),
    ]
}

/// Asks for all links, which come like notices, without an acknowledgement.
///
/// # Errors
/// The kernel does not take it. It may also answer that it does not ([`is_refusal`]).
pub fn ask_for_links(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut request = [0; HEADER_LEN + LINK_LEN];
    request[..4].copy_from_slice(&((HEADER_LEN + LINK_LEN) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(socket, &request, SendFlags::DONTWAIT, &kernel)?;
    Ok(())
}

/// The links that a datagram tells of: their names, and whether they carry.
pub fn links(mut datagram: &[u8]) -> Vec<(String, bool)> {
    let mut links = Vec::new();
    while let Some(header) = datagram.first_chunk::<HEADER_LEN>() {
        let [l0, l1, l2, l3, t0, t1, ..] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = datagram.get(HEADER_LEN..len).unwrap_or_default();
        match u16::from_ne_bytes([t0, t1]) {
            RTM_NEWLINK => links.extend(name(body).map(|name| (name, carries(body)))),
            RTM_DELLINK => links.extend(name(body).map(|name| (name, false))),
            _ => {}
        }
        // RFC 3549 section 2.2: messages are aligned to four bytes.
        datagram = datagram.get(len.max(HEADER_LEN).next_multiple_of(4)..).unwrap_or_default();
    }
    links
}

/// Whether a datagram is an answer that a question was not taken (`NLMSG_ERROR`), as while an answer to another is
/// under way.
pub fn is_refusal(datagram: &[u8]) -> bool {
    let kind = datagram.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    kind == Some(NLMSG_ERROR)
}

fn carries(body: &[u8]) -> bool {
    let flags = body.get(8..12).and_then(|flags| flags.try_into().ok()).map_or(0, u32::from_ne_bytes);
    flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING
}

fn name(body: &[u8]) -> Option<String> {
    let mut attributes = body.get(LINK_LEN..)?;
    while let Some([l0, l1, t0, t1]) = attributes.first_chunk() {
        let len = usize::from(u16::from_ne_bytes([*l0, *l1]));
        if u16::from_ne_bytes([*t0, *t1]) == IFLA_IFNAME {
            let value = attributes.get(4..len)?;
            let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
            return String::from_utf8(value[..end].to_vec()).ok();
        }
        attributes = attributes.get(len.max(4).next_multiple_of(4)..)?;
    }
    None
}

/// Waits until there is something to read, so long at most, or until a signal comes.
pub fn wait(socket: &OwnedFd, longest: Option<Duration>) {
    let longest = longest.and_then(|longest| Timespec::try_from(longest).ok());
    let _ = rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], longest.as_ref());
}

/// Asks what the kernel does not know: refusals fill a socket as notices do, and anybody can have them sent.
#[cfg(test)]
pub(crate) fn ask_in_vain(socket: &OwnedFd, times: u32) {
    let mut question = [0; HEADER_LEN];
    question[..4].copy_from_slice(&(HEADER_LEN as u32).to_ne_bytes());
    question[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
    question[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    for _ in 0..times {
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(socket, &question, SendFlags::DONTWAIT, &kernel).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_LEN + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER_LEN, 0);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link(kind: u16, flags: u32, name: &str) -> Vec<u8> {
        let mut body = vec![0; LINK_LEN];
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        for (kind, value) in
            [(13_u16, b"\x05\0\0\0".to_vec()), (IFLA_IFNAME, [name.as_bytes(), b"\0"].concat())]
        {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        message(kind, &body)
    }

    #[test]
    fn links_are_read_by_name() {
        let up = IFF_UP | IFF_RUNNING;
        let datagram = [
            link(RTM_NEWLINK, up, "wan0"),
            message(RTM_NEWROUTE, &[0; ROUTE_LEN]),
            link(RTM_NEWLINK, IFF_UP, "wan1"),
            link(RTM_NEWLINK, IFF_RUNNING, "wan2"),
            link(RTM_DELLINK, up, "wan3"),
        ];
        let read: Vec<(String, bool)> = links(&datagram.concat());
        let expected = [("wan0", true), ("wan1", false), ("wan2", false), ("wan3", false)];
        assert_eq!(read, expected.map(|(name, up)| (name.to_owned(), up)));
    }

    #[test]
    fn nonsense_has_no_links_and_ends() {
        let whole = link(RTM_NEWLINK, IFF_UP, "wan0");
        for len in 0..whole.len() {
            assert!(links(&whole[..len]).is_empty());
            assert!(links(&vec![0; len]).is_empty());
            assert!(links(&vec![0xff; len]).is_empty());
        }
    }

    /// The kernel's own loopback interface and its own filter.
    #[test]
    fn the_kernel_answers_with_its_links() {
        let socket = subscribe(LINKS).unwrap();
        ask_for_links(socket.as_fd()).unwrap();
        wait(&socket, None);
        let mut buffer = vec![0; BUFFER_LEN];
        let len = Receiver::default().receive(socket.as_fd(), &mut buffer).unwrap().unwrap();
        assert!(links(&buffer[..len]).iter().any(|(name, _)| name == "lo"));
    }

    #[test]
    fn that_notices_were_lost_is_told_once_when_no_more_can_be() {
        let socket = subscribe(LINKS).unwrap();
        let mut receiver = Receiver::default();
        let mut buffer = vec![0; BUFFER_LEN];
        for _ in 0..2 {
            ask_in_vain(&socket, 10_000);
            let mut read = 0;
            while let Some(len) = receiver.receive(socket.as_fd(), &mut buffer).unwrap() {
                // Notices of the machine's own links may be among them.
                read += u32::from(is_refusal(&buffer[..len]));
            }
            assert!((1..10_000).contains(&read), "{read}");
            // A socket that is not full takes an answer again.
            ask_for_links(socket.as_fd()).unwrap();
            let mut read = Vec::new();
            while let Ok(len) = receiver.receive(socket.as_fd(), &mut buffer) {
                read.extend(links(&buffer[..len.expect("told once")]));
            }
            assert!(read.iter().any(|(name, _)| name == "lo"));
        }
    }

    #[test]
    fn a_refusal_is_known() {
        assert!(is_refusal(&message(NLMSG_ERROR, &(-libc::EBUSY).to_ne_bytes())));
        assert!(!is_refusal(&link(RTM_NEWLINK, IFF_UP, "wan0")));
        assert!((0..6).all(|len| !is_refusal(&vec![2; len])));
    }

    /// What the kernel's filter lets through, by a pair of sockets that take any bytes.
    #[test]
    fn only_our_own_device_routes_are_ignored() {
        use rustix::net::{AddressFamily, SocketFlags, SocketType};
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (from, to) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
        ignore_device_routes(to.as_fd(), 0xb2).unwrap();
        let route = |protocol: u8, attributes: &[u16]| {
            let mut body = vec![0; ROUTE_LEN];
            body[ROUTE_PROTOCOL] = protocol;
            for kind in attributes {
                body.extend([8_u16.to_ne_bytes(), kind.to_ne_bytes()].concat());
                body.extend([1, 2, 3, 4]);
            }
            body
        };
        let is_heard = |bytes: &[u8]| {
            // A socket says that nobody takes what its peer's filter drops.
            let _ = rustix::net::send(&from, bytes, SendFlags::DONTWAIT);
            let mut buffer = [0; 256];
            let received = Receiver::default().receive(to.as_fd(), &mut buffer);
            received.is_ok_and(|len| buffer[..len.unwrap()] == *bytes)
        };
        for kind in [RTM_NEWROUTE, RTM_DELROUTE] {
            assert!(!is_heard(&message(kind, &route(0xb2, &[1, 4, 15]))));
            assert!(is_heard(&message(kind, &route(0xb2, &[1, RTA_GATEWAY as u16]))));
            assert!(is_heard(&message(kind, &route(0xb2, &[1, RTA_NH_ID as u16]))));
            assert!(is_heard(&message(kind, &route(0xb1, &[1, 4]))));
        }
        assert!(is_heard(&link(RTM_NEWLINK, IFF_UP, "wan0")));
        assert!(is_heard(&message(RTM_GETLINK, &route(0xb2, &[1]))));
        assert!(!is_heard(&[1, 2, 3]), "too short for a notice");
    }
}

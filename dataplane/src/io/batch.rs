//! Many datagrams a system call: recvmmsg into a pool of slots, sendmmsg with `UDP_SEGMENT`.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use libc::{c_int, c_void, cmsghdr, iovec, mmsghdr, msghdr};

use super::sockopt::RawAddress;
use crate::offload::coalesce::Slots;

/// Largest datagram, or run of datagrams merged by GRO, in bytes.
pub const SLOT_LEN: usize = 65_536;
/// Before a datagram, if that is asked for, in bytes; more than one has on an Ethernet without jumbo frames.
pub const HEADROOM: usize = 2048;
/// Slots do not start at the same cache set.
const SLOT_STRIDE: usize = SLOT_LEN + 4096 + 192;
/// Room for TOS and `UDP_GRO`, or TOS and `UDP_SEGMENT`.
const CONTROL_LEN: usize = 64;

/// Control messages must be aligned like `cmsghdr`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// A received datagram, or several of equal size from one sender.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The slot that holds it.
    pub slot: usize,
    /// Bytes in all.
    pub len: usize,
    /// Bytes of each datagram but the last, which may be shorter.
    pub segment: usize,
    /// The sender's outer address.
    pub from: SocketAddr,
    /// Outer TOS or traffic class.
    pub tos: u8,
    /// Longer than the slot: the rest is lost.
    pub truncated: bool,
}

/// A pool of slots that datagrams are received into.
pub struct ReceivePool {
    memory: Vec<u8>,
    headers: Vec<mmsghdr>,
    vectors: Vec<iovec>,
    names: Vec<RawAddress>,
    controls: Vec<Control>,
    used: usize,
}

// SAFETY: the pointers in `headers` and `vectors` are set before each system call to memory that
// the pool itself owns and are not read otherwise.
unsafe impl Send for ReceivePool {}

impl ReceivePool {
    /// A pool of so many slots, all free.
    pub fn new(slots: usize) -> Self {
        // SAFETY: all-zero bytes are a valid mmsghdr.
        let header: mmsghdr = unsafe { core::mem::zeroed() };
        ReceivePool {
            memory: vec![0; slots * SLOT_STRIDE],
            headers: vec![header; slots],
            vectors: vec![iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; slots],
            names: vec![RawAddress::EMPTY; slots],
            controls: vec![Control([0; CONTROL_LEN]); slots],
            used: 0,
        }
    }

    /// Slots that are free.
    pub fn free(&self) -> usize {
        self.headers.len() - self.used
    }

    /// Frees all slots.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Receives what waits, at most `limit` messages, from byte `start` of a slot on, at most [`HEADROOM`]; the slots
    /// that were filled, each to be asked about with [`ReceivePool::received`].
    ///
    /// # Errors
    /// The socket is gone. Nothing waiting is 0.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        limit: usize,
        start: usize,
    ) -> io::Result<core::ops::Range<usize>> {
        let first = self.used;
        let count = self.free().min(limit);
        for index in first..first + count {
            let slot = &mut self.memory[index * SLOT_STRIDE + start.min(HEADROOM)..][..SLOT_LEN];
            self.vectors[index] = iovec { iov_base: slot.as_mut_ptr().cast::<c_void>(), iov_len: SLOT_LEN };
            self.names[index].len = RawAddress::EMPTY.len;
            let header: &mut msghdr = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index].bytes).cast::<c_void>();
            header.msg_namelen = RawAddress::EMPTY.len;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast::<c_void>();
            header.msg_controllen = CONTROL_LEN as _;
            header.msg_flags = 0;
        }
        if count == 0 {
            return Ok(first..first);
        }
        // SAFETY: `count` headers from `first` on were just filled with pointers into this pool,
        // which is borrowed mutably until the call returns.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers[first..].as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
                core::ptr::null_mut(),
            )
        };
        if received < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // An ICMP error that the kernel reports on this socket is no failure of the socket.
                Some(
                    libc::EAGAIN | libc::EINTR | libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH,
                ) => Ok(first..first),
                _ => Err(error),
            };
        }
        self.used += received as usize;
        Ok(first..self.used)
    }

    /// What a slot that was just filled holds; `None` for a sender of no internet family.
    pub fn received(&self, slot: usize) -> Option<Received> {
        let header = &self.headers[slot];
        let len = header.msg_len as usize;
        let (mut segment, mut tos) = (len, 0);
        for (level, kind, value) in control_messages(&header.msg_hdr, &self.controls[slot]) {
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    segment = usize::from(u16::from_ne_bytes([value[0], value[1]]))
                }
                (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => tos = value[0],
                _ => {}
            }
        }
        Some(Received {
            slot,
            len,
            segment: segment.clamp(1, len.max(1)),
            from: self.names[slot].get()?,
            tos,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }
}

impl Slots for ReceivePool {
    fn slot(&self, slot: usize) -> &[u8] {
        &self.memory[slot * SLOT_STRIDE..][..SLOT_LEN + HEADROOM]
    }

    fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        &mut self.memory[slot * SLOT_STRIDE..][..SLOT_LEN + HEADROOM]
    }
}

impl core::fmt::Debug for ReceivePool {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "ReceivePool({} of {} slots in use)", self.used, self.headers.len())
    }
}

/// Level, type and the first four bytes of each control message.
fn control_messages<'a>(
    header: &msghdr,
    control: &'a Control,
) -> impl Iterator<Item = (c_int, c_int, [u8; 4])> + use<'a> {
    const HEAD: usize = size_of::<cmsghdr>();
    let mut rest = &control.0[..header.msg_controllen.min(CONTROL_LEN)];
    core::iter::from_fn(move || {
        let head = rest.get(..HEAD)?;
        let word = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
        let len = usize::from_ne_bytes(head[..8].try_into().ok()?);
        let (level, kind) = (c_int::from_ne_bytes(word(8)), c_int::from_ne_bytes(word(12)));
        let payload = rest.get(HEAD..len)?;
        let mut value = [0; 4];
        let copied = payload.len().min(4);
        value[..copied].copy_from_slice(&payload[..copied]);
        rest = rest.get(len.next_multiple_of(8)..).unwrap_or(&[]);
        Some((level, kind, value))
    })
}

/// Where datagrams go, and how.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// The receiver.
    pub to: SocketAddr,
    /// Outer TOS or traffic class.
    pub tos: u8,
}

/// Most messages of one system call.
const MAX_MESSAGES: usize = 64;
/// Most pieces of one message (`UIO_MAXIOV` is above).
const MAX_PIECES: usize = 256;

/// Memory for sendmmsg.
pub struct SendBatch {
    headers: Vec<mmsghdr>,
    vectors: Vec<iovec>,
    names: Vec<RawAddress>,
    controls: Vec<Control>,
}

// SAFETY: as for ReceivePool: pointers are set before each call, to memory that the batch owns or
// that the caller lends for the call.
unsafe impl Send for SendBatch {}

impl Default for SendBatch {
    fn default() -> Self {
        // SAFETY: all-zero bytes are a valid mmsghdr.
        let header: mmsghdr = unsafe { core::mem::zeroed() };
        SendBatch {
            headers: vec![header; MAX_MESSAGES],
            vectors: vec![iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; MAX_PIECES],
            names: vec![RawAddress::EMPTY; MAX_MESSAGES],
            controls: vec![Control([0; CONTROL_LEN]); MAX_MESSAGES],
        }
    }
}

impl core::fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SendBatch")
    }
}

impl SendBatch {
    /// Sends pieces, one after the other, as datagrams of `segment` bytes of which only the last may be
    /// shorter: one system call, cut up by the kernel (`UDP_SEGMENT`).
    ///
    /// # Errors
    /// The kernel took nothing of it.
    pub fn send_gso<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        pieces: impl Iterator<Item = &'a [u8]>,
        segment: usize,
        out: Outgoing,
    ) -> io::Result<()> {
        let (mut count, mut len) = (0, 0);
        for piece in pieces {
            let Some(vector) = self.vectors.get_mut(count) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            *vector = vector_of(piece);
            count += 1;
            len += piece.len();
        }
        self.prepare(0, 0..count, (len > segment).then_some(segment), out);
        let mut result = Ok(());
        self.submit(socket, 1, |_, error| result = Err(error));
        result
    }

    /// Sends each datagram by itself, in order. `failed(error)` is called for each that the kernel did
    /// not take; the others are sent.
    pub fn send_each<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = &'a [u8]>,
        out: Outgoing,
        mut failed: impl FnMut(io::Error),
    ) {
        let mut datagrams = datagrams.peekable();
        while datagrams.peek().is_some() {
            let mut count = 0;
            for datagram in datagrams.by_ref().take(MAX_MESSAGES) {
                self.vectors[count] = vector_of(datagram);
                self.prepare(count, count..count + 1, None, out);
                count += 1;
            }
            self.submit(socket, count, |_, error| failed(error));
        }
    }

    /// Points message `index` to its pieces, receiver and options.
    fn prepare(
        &mut self,
        index: usize,
        vectors: core::ops::Range<usize>,
        segment: Option<usize>,
        out: Outgoing,
    ) {
        self.names[index].set(out.to);
        let control_len = write_control(&mut self.controls[index], segment, out);
        let header: &mut msghdr = &mut self.headers[index].msg_hdr;
        header.msg_name = (&raw mut self.names[index].bytes).cast::<c_void>();
        header.msg_namelen = self.names[index].len;
        header.msg_iov = self.vectors[vectors.clone()].as_mut_ptr();
        header.msg_iovlen = vectors.len() as _;
        header.msg_control = self.controls[index].0.as_mut_ptr().cast::<c_void>();
        header.msg_controllen = control_len as _;
    }

    fn submit(&mut self, socket: BorrowedFd<'_>, count: usize, mut failed: impl FnMut(usize, io::Error)) {
        let mut next = 0;
        while next < count {
            // SAFETY: headers `next..count` were filled by `prepare` since the last call; sendmmsg only
            // reads the bytes, which the callers' slices borrow until they return.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.headers[next..].as_mut_ptr(),
                    (count - next) as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            if sent > 0 {
                next += sent as usize;
                continue;
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINTR) {
                continue;
            }
            failed(next, error);
            next += 1;
        }
    }
}

fn vector_of(bytes: &[u8]) -> iovec {
    iovec { iov_base: bytes.as_ptr().cast_mut().cast::<c_void>(), iov_len: bytes.len() }
}

/// Sends one message.
pub(super) fn send_one(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    to: SocketAddr,
    segment: usize,
    tos: u8,
) -> io::Result<()> {
    SendBatch::default().send_gso(socket.as_fd(), core::iter::once(bytes), segment, Outgoing { to, tos })
}

/// Writes `UDP_SEGMENT` and TOS as far as they are needed; bytes used.
fn write_control(control: &mut Control, segment: Option<usize>, message: Outgoing) -> usize {
    const HEAD: usize = size_of::<cmsghdr>();
    let mut at = 0;
    let mut put = |level: c_int, kind: c_int, value: &[u8]| {
        let len = HEAD + value.len();
        control.0[at..at + 8].copy_from_slice(&len.to_ne_bytes());
        control.0[at + 8..at + 12].copy_from_slice(&level.to_ne_bytes());
        control.0[at + 12..at + 16].copy_from_slice(&kind.to_ne_bytes());
        control.0[at + HEAD..at + len].copy_from_slice(value);
        at += len.next_multiple_of(8);
    };
    if let Some(segment) = segment {
        put(libc::SOL_UDP, libc::UDP_SEGMENT, &(segment as u16).to_ne_bytes());
    }
    if message.tos != 0 {
        let (level, kind) = match message.to {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        put(level, kind, &c_int::from(message.tos).to_ne_bytes());
    }
    at
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::io::udp;

    fn exchange(local: SocketAddr) {
        let sockets = [0; 2].map(|_| udp::bind(local, None, 0, 1).unwrap().remove(0));
        let to = udp::local_address(&sockets[1]).unwrap();
        let bytes: Vec<u8> = (0..3500_u32).map(|i| (i % 251) as u8).collect();
        let mut batch = SendBatch::default();
        // Pieces of any number: what counts are the bytes in a row.
        let pieces = [&bytes[..1000], &bytes[1000..3000], &bytes[3000..]];
        batch.send_gso(sockets[0].as_fd(), pieces.into_iter(), 1000, Outgoing { to, tos: 0x2A }).unwrap();
        let out = Outgoing { to, tos: 0 };
        batch.send_each(sockets[0].as_fd(), [&b"x"[..]].into_iter(), out, |error| panic!("{error}"));
        let mut pool = ReceivePool::new(16);
        let mut arrived = Vec::new();
        let mut tos = Vec::new();
        while arrived.len() < 3501 {
            for slot in pool.receive(sockets[1].as_fd(), 16, 0).unwrap() {
                let got = pool.received(slot).unwrap();
                assert!(got.segment <= 1000 && !got.truncated);
                assert_eq!(got.from, udp::local_address(&sockets[0]).unwrap());
                arrived.extend_from_slice(&pool.slot(slot)[..got.len]);
                tos.push(got.tos);
            }
        }
        assert_eq!(arrived[..3500], bytes);
        assert_eq!(arrived[3500], b'x');
        assert_eq!((tos[0], tos[tos.len() - 1]), (0x2A, 0));
    }

    #[test]
    fn segments_and_tos_survive_loopback() {
        exchange((Ipv4Addr::LOCALHOST, 0).into());
        exchange((Ipv6Addr::LOCALHOST, 0).into());
    }

    #[test]
    fn a_message_that_the_kernel_refuses_does_not_stop_the_others() {
        let local: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let sockets = [0; 2].map(|_| udp::bind(local, None, 0, 1).unwrap().remove(0));
        let to = udp::local_address(&sockets[1]).unwrap();
        let huge = vec![0; 70_000];
        let messages = [&b"a"[..], &huge, b"b"];
        let mut failures = 0;
        let out = Outgoing { to, tos: 0 };
        SendBatch::default().send_each(sockets[0].as_fd(), messages.into_iter(), out, |_| failures += 1);
        assert_eq!(failures, 1);
        let mut pool = ReceivePool::new(4);
        while pool.free() > 2 {
            pool.receive(sockets[1].as_fd(), 4, 0).unwrap();
        }
        assert_eq!((pool.slot(0)[0], pool.slot(1)[0]), (b'a', b'b'));
    }

    #[test]
    fn the_kernel_says_how_many_segments_it_takes() {
        assert!([1, 64, 128].contains(&udp::probe_max_segments()));
    }
}

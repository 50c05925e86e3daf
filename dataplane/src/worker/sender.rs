//! Sending: runs are sealed and leave under the guard of their SA or session, and what the kernel refuses is
//! counted by cause.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use braid_api::Encapsulation;

use super::{Notice, Notices};
use crate::{
    drop_reason::DropReason,
    forward::{Drops, Wire},
    io::batch::{Outgoing, SendBatch},
    runs::Run,
    tables::Carrier,
    wireguard::NotSealed,
};

/// An outer socket and what comes out of it.
#[derive(Debug)]
pub struct OuterSocket {
    /// Bound address; port 0 for raw ESP.
    pub local: SocketAddr,
    /// It is WireGuard's, not ESP's and IKE's.
    pub wireguard: bool,
    /// This handle is received from: of those that share a socket one only, or the packets of a flow would overtake
    /// each other.
    pub receives: bool,
    /// Non-blocking.
    pub fd: OwnedFd,
}

impl OuterSocket {
    pub(super) fn wire(&self) -> Wire {
        if self.wireguard { Wire::WireGuard(self.local) } else { Wire::of(self.local) }
    }
}

/// Sends runs; the worker and the liveness thread have one each.
#[derive(Debug, Default)]
pub struct Sender {
    pub(super) sockets: Vec<OuterSocket>,
    by_address: HashMap<SocketAddr, usize>,
    batch: SendBatch,
    gso: bool,
}

/// What became of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    /// Packets that the kernel refused, by cause.
    pub full: u32,
    /// Larger than the path takes.
    pub too_big: u32,
    /// For another reason.
    pub failed: u32,
}

impl Sender {
    /// With `gso` runs go out in one piece over UDP.
    pub fn new(gso: bool) -> Self {
        Sender { gso, ..Sender::default() }
    }

    /// Adds a socket, or replaces the one with its address.
    pub fn add(&mut self, socket: OuterSocket) {
        self.remove(socket.local);
        self.by_address.insert(socket.local, self.sockets.len());
        self.sockets.push(socket);
    }

    /// Closes the socket with this address.
    pub fn remove(&mut self, local: SocketAddr) {
        if let Some(index) = self.by_address.remove(&local) {
            self.sockets.swap_remove(index);
            if let Some(moved) = self.sockets.get(index) {
                self.by_address.insert(moved.local, index);
            }
        }
    }

    /// The socket with this address.
    pub fn socket(&self, local: SocketAddr) -> Option<BorrowedFd<'_>> {
        self.by_address.get(&local).map(|&index| self.sockets[index].fd.as_fd())
    }

    /// Sends one datagram from the socket with the address `local`.
    pub fn send_one(&mut self, local: SocketAddr, datagram: &[u8], out: Outgoing) -> Sent {
        self.send(local, core::iter::once(datagram), datagram.len(), 1, out)
    }

    /// Sends what lies in `pieces`, one after the other, from the socket with the address `local`:
    /// packets of `segment` bytes, `packets` in all, of which only the last may be shorter.
    pub fn send<'a>(
        &mut self,
        local: SocketAddr,
        pieces: impl Iterator<Item = &'a [u8]> + Clone,
        segment: usize,
        packets: u32,
        out: Outgoing,
    ) -> Sent {
        let Some(&index) = self.by_address.get(&local) else {
            return Sent { failed: packets, ..Sent::default() };
        };
        let socket = self.sockets[index].fd.as_fd();
        let mut sent = Sent::default();
        if self.gso && local.port() != 0 {
            match self.batch.send_gso(socket, pieces.clone(), segment, out) {
                Ok(()) => return sent,
                // A device without checksum offload takes no GSO: one by one then, for this run.
                Err(error)
                    if packets > 1 && matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => {}
                Err(error) => {
                    sent.count(&error, packets);
                    return sent;
                }
            }
        }
        let datagrams = pieces.flat_map(|piece| piece.chunks(segment));
        self.batch.send_each(socket, datagrams, out, |error| sent.count(&error, 1));
        sent
    }
}

impl Sent {
    fn count(&mut self, error: &io::Error, packets: u32) {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => self.full += packets,
            Some(libc::EMSGSIZE) => self.too_big += packets,
            _ => self.failed += packets,
        }
    }

    fn all(self) -> u32 {
        self.full + self.too_big + self.failed
    }

    fn reasons(self) -> [(DropReason, u32); 3] {
        [
            (DropReason::SocketFull, self.full),
            (DropReason::PathMtu, self.too_big),
            (DropReason::SendFailed, self.failed),
        ]
    }
}

/// Seals a run and sends it, under the guard of the SA or the session, so that wire order is sequence order.
pub(super) fn leave(
    run: &mut Run,
    buffer: &mut [u8],
    sender: &mut Sender,
    drops: &Drops,
    number: usize,
    notices: &Notices,
) {
    let carrier = run.carrier.clone();
    let count = run.count;
    let out = Outgoing { to: run.to, tos: run.tos };
    let refused = |reason: DropReason| drops.add(number, reason as usize, u64::from(count));
    let sent = match &carrier {
        Carrier::Esp(sa) => {
            let mut sequence = sa.lock();
            if run.seal(&mut sequence, buffer).is_err() {
                refused(DropReason::Exhausted);
                notices.send(Notice::Exhausted(sa.id));
                return;
            }
            let local = match run.encapsulation {
                Encapsulation::Esp => SocketAddr::new(run.local.ip(), 0),
                Encapsulation::Udp | Encapsulation::WireGuard => run.local,
            };
            sender.send(local, run.pieces(buffer), run.segment, count, out)
        }
        Carrier::WireGuard(peer) => {
            let Some(mut session) = peer.sending() else {
                refused(DropReason::NoSession);
                return;
            };
            if let Err(NotSealed(reason)) = run.seal_wireguard(&mut session, buffer) {
                refused(reason);
                return;
            }
            sender.send(run.local, run.pieces(buffer), run.segment, count, out)
        }
    };
    if sent.all() > 0 {
        for (reason, packets) in sent.reasons() {
            drops.add(number, reason as usize, u64::from(packets));
        }
        if sent.too_big > 0 {
            notices.send(Notice::TooBigOutside(carrier.tunnel()));
        }
    }
    let delivered = u64::from(count - sent.all().min(count));
    let bytes =
        if sent.all() == 0 { run.inner_bytes } else { run.inner_bytes * delivered / u64::from(count.max(1)) };
    run.live.sent(number, delivered, bytes);
    if let Carrier::Esp(sa) = &carrier {
        sa.counter.add(delivered, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::udp;

    #[test]
    fn what_the_kernel_refuses_is_counted_by_its_cause() {
        for (errno, expected) in [
            (libc::EAGAIN, DropReason::SocketFull),
            (libc::ENOBUFS, DropReason::SocketFull),
            (libc::ENOMEM, DropReason::SocketFull),
            (libc::EMSGSIZE, DropReason::PathMtu),
            (libc::EPERM, DropReason::SendFailed),
            (libc::ENETUNREACH, DropReason::SendFailed),
        ] {
            let mut sent = Sent::default();
            sent.count(&io::Error::from_raw_os_error(errno), 3);
            assert_eq!(sent.all(), 3);
            let counted = sent.reasons().into_iter().filter(|(_, packets)| *packets > 0);
            assert_eq!(counted.collect::<Vec<_>>(), [(expected, 3)], "errno {errno}");
        }
    }

    #[test]
    fn what_does_not_fit_and_what_has_no_socket_is_not_sent() {
        let socket = udp::bind("127.0.0.1:0".parse().unwrap(), None, 0, 1).unwrap().remove(0);
        let local = udp::local_address(&socket).unwrap();
        let out = Outgoing { to: local, tos: 0 };
        for gso in [false, true] {
            let mut sender = Sender::new(gso);
            assert_eq!(sender.send_one(local, b"x", out), Sent { failed: 1, ..Sent::default() });
            sender.add(OuterSocket {
                local,
                wireguard: false,
                receives: true,
                fd: socket.try_clone().unwrap(),
            });
            assert_eq!(sender.send_one(local, b"x", out), Sent::default());
            // A byte more than UDP over IPv4 has room for.
            let sent = sender.send_one(local, &[0; 65_508], out);
            assert_eq!(sent, Sent { too_big: 1, ..Sent::default() });
        }
    }
}

//! What the workers have not read yet, of which a peer's silence must not be told.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use braid_bfd::Unread;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::worker::Drained;

/// The workers, and the sockets from which each receives.
pub(super) struct Readers {
    drained: Vec<Drained>,
    /// By address, one for each worker, from the first on.
    sockets: BTreeMap<SocketAddr, Vec<OwnedFd>>,
}

impl Readers {
    pub(super) fn new(drained: Vec<Drained>) -> Self {
        Readers { drained, sockets: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, local: SocketAddr, sockets: Vec<OwnedFd>) {
        self.sockets.insert(local, sockets);
    }

    pub(super) fn remove(&mut self, local: SocketAddr) {
        self.sockets.remove(&local);
    }

    /// What waits at this address and may be any peer's there: a worker may have been kept off the processor. Of
    /// several, it is as though all were in the hands of the slowest. What was heard is to be asked after this.
    pub(super) fn unread(&self, local: SocketAddr) -> Option<Unread> {
        let sockets = self.sockets.get(&local)?;
        let unread = sockets
            .iter()
            .zip(&self.drained)
            .filter_map(|(socket, drained)| drained.unread(|| is_readable(socket.as_fd())));
        unread.reduce(|one, other| Unread {
            since: one.since.min(other.since),
            read_at: one.read_at.min(other.read_at),
        })
    }
}

fn is_readable(socket: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn what_waits_for_any_worker_is_unread() {
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let drained = [(); 2].map(|()| Drained::default());
        let (local, other) = ("192.0.2.1:4500".parse().unwrap(), "192.0.2.2:4500".parse().unwrap());
        let mut readers = Readers::new(drained.to_vec());
        assert_eq!(readers.unread(local), None);
        readers.add(local, sockets.iter().map(|socket| socket.try_clone().unwrap().into()).collect());
        for (number, worker) in (0_u64..).zip(&drained) {
            worker.begin(1000 - 100 * number);
            worker.end(1000 - 100 * number);
        }
        assert_eq!((readers.unread(local), readers.unread(other)), (None, None));
        let unread = |since, read_at| Some(Unread { since, read_at });
        // The second began to read again, and has come to no end.
        drained[1].begin(1200);
        sockets[1].send_to(&[1], sockets[1].local_addr().unwrap()).unwrap();
        assert_eq!(readers.unread(local), unread(900, 1200));
        drained[1].end(1200);
        sockets[1].recv(&mut [0]).unwrap();
        for (socket, expected) in [(&sockets[0], unread(1000, 1000)), (&sockets[1], unread(1000, 1000))] {
            socket.send_to(&[1], socket.local_addr().unwrap()).unwrap();
            assert_eq!(readers.unread(local), expected);
        }
        sockets[1].recv(&mut [0]).unwrap();
        assert_eq!(readers.unread(local), unread(1000, 1000));
        readers.remove(local);
        assert_eq!(readers.unread(local), None);
    }
}

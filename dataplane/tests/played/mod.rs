//! The core as it ships, between a launcher, a control and a peer that are played here over the real sockets.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use braid_api::{
    Answer, BootId, FRAME_HEADER_LEN, FromCore, Generation, Query, StashValue, Stats, ToCore, VERSION,
    decode, encode, frame_len,
    launcher::{LAUNCHER_SOCKET, PUNT_SOCKET, TABLES_SOCKET, ToCoreProcess},
    punt::PuntOut,
};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, sockopt,
};

/// Nothing here takes long; a machine under load may.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The running core, and what stands around it.
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) core: Child,
    _launcher: OwnedFd,
    pub(crate) local: SocketAddr,
    pub(crate) peer: UdpSocket,
}

impl World {
    pub(crate) fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("braid-core-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let launcher = listen(&dir.join(LAUNCHER_SOCKET), SocketType::SEQPACKET);
        let tables = UnixListener::bind(dir.join(TABLES_SOCKET)).unwrap();
        let punt = listen(&dir.join(PUNT_SOCKET), SocketType::SEQPACKET);
        let core =
            Command::new(env!("CARGO_BIN_EXE_braid-dataplane")).arg("--run-dir").arg(&dir).spawn().unwrap();
        let launcher = rustix::net::accept(&launcher).unwrap();
        let start = ToCoreProcess::Start { workers: 1, offload: true };
        send_fds(&launcher, &start, &[tables.as_fd(), punt.as_fd()]);
        let socket = braid_dataplane::io::udp::bind("127.0.0.1:0".parse().unwrap(), None, 0, 1).unwrap();
        let local = braid_dataplane::io::udp::local_address(&socket[0]).unwrap();
        send_fds(&launcher, &ToCoreProcess::Udp { local, wireguard: false }, &[socket[0].as_fd()]);
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        World { dir, core, _launcher: launcher, local, peer }
    }

    /// A datagram as the peer of an SA sends it; `spi` is ours.
    pub(crate) fn ike(spi: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![7; 8];
        message.extend([spi; 8]);
        message.extend([0x2E; 12]);
        message.extend(body);
        message
    }

    pub(crate) fn send_from_peer(&self, message: &[u8]) {
        let mut datagram = vec![0; 4];
        datagram.extend(message);
        self.peer.send_to(&datagram, self.local).unwrap();
    }

    pub(crate) fn receive_at_peer(&self) -> Vec<u8> {
        let mut bytes = vec![0; 65_536];
        let (len, from) = self.peer.recv_from(&mut bytes).unwrap();
        assert_eq!(from, self.local);
        bytes.truncate(len);
        bytes
    }

    pub(crate) fn out(&self, bytes: &[u8], stash: Option<(u64, Vec<u8>)>) -> PuntOut {
        PuntOut {
            local: self.local,
            remote: self.peer.local_addr().unwrap(),
            bytes: bytes.to_vec(),
            stash: stash.map(|(key, value)| (key, StashValue(value))),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.core.kill();
        let _ = self.core.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn listen(path: &Path, kind: SocketType) -> OwnedFd {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 4).unwrap();
    socket
}

fn send_fds(socket: &OwnedFd, message: &ToCoreProcess, fds: &[std::os::fd::BorrowedFd<'_>]) {
    let frame = encode(message).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let parts = [IoSlice::new(&frame[FRAME_HEADER_LEN..])];
    rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// Control's connection to the tables.
pub(crate) struct Tables {
    stream: UnixStream,
    pub(crate) generation: Generation,
    pub(crate) boot: BootId,
}

impl Tables {
    pub(crate) fn connect(dir: &Path) -> Self {
        let stream = UnixStream::connect(dir.join(TABLES_SOCKET)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut tables = Tables { stream, generation: Generation(0), boot: BootId([0; 16]) };
        tables.send(&ToCore::Hello { version: VERSION });
        let FromCore::Hello(hello) = tables.receive() else { panic!("no hello") };
        (tables.generation, tables.boot) = (hello.generation, hello.boot);
        tables
    }

    pub(crate) fn send(&mut self, message: &ToCore) {
        self.stream.write_all(&encode(message).unwrap()).unwrap();
    }

    pub(crate) fn receive(&mut self) -> FromCore {
        let mut header = [0; FRAME_HEADER_LEN];
        self.stream.read_exact(&mut header).unwrap();
        let mut bytes = vec![0; frame_len(header).unwrap()];
        self.stream.read_exact(&mut bytes).unwrap();
        decode(&bytes).unwrap()
    }

    pub(crate) fn ask(&mut self, query: Query) -> Answer {
        self.send(&ToCore::Query { number: 1, query });
        loop {
            if let FromCore::Answer { number: 1, answer } = self.receive() {
                return answer;
            }
        }
    }

    pub(crate) fn stash(&mut self) -> Vec<(u64, Vec<u8>)> {
        let Answer::Stash(values) = self.ask(Query::Stash { from: 0 }) else { panic!("another answer") };
        values.iter().map(|(key, value)| (*key, value.0.clone())).collect()
    }

    pub(crate) fn drops(&mut self, reason: &str) -> u64 {
        let Answer::Stats(Stats { drops, .. }) = self.ask(Query::Stats) else { panic!("another answer") };
        drops.iter().find(|(name, _)| name == reason).unwrap().1
    }

    /// Waits until so many datagrams were dropped for this reason.
    pub(crate) fn await_drops(&mut self, reason: &str, at_least: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.drops(reason) < at_least {
            assert!(Instant::now() < deadline, "{reason}: {} of {at_least}", self.drops(reason));
        }
    }
}

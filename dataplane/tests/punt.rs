//! The core as it ships, between a launcher, a control and a peer that are played here over the real
//! sockets: IKE datagrams go both ways, and no datagram leaves before its stash is kept.

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
    Answer, Epoch, FRAME_HEADER_LEN, FromCore, Generation, MAX_STASH_LEN, Op, Query, StashValue, Stats,
    ToCore, Transaction, VERSION, decode, encode, frame_len,
    launcher::{LAUNCHER_SOCKET, PUNT_SOCKET, TABLES_SOCKET, ToCoreProcess},
    punt::{FromPunt, MAX_PUNT_LEN, PuntIn, PuntOut, ToPunt, encode_punt},
};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sockopt,
};

/// Nothing here takes long; a machine under load may.
const PATIENCE: Duration = Duration::from_secs(30);

/// The running core, and what stands around it.
struct World {
    dir: PathBuf,
    core: Child,
    _launcher: OwnedFd,
    local: SocketAddr,
    peer: UdpSocket,
}

impl World {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("braid-punt-{name}-{}", std::process::id()));
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
        send_fds(&launcher, &ToCoreProcess::Udp { local }, &[socket[0].as_fd()]);
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        World { dir, core, _launcher: launcher, local, peer }
    }

    fn control(&self) -> (Tables, Punt) {
        (Tables::connect(&self.dir), Punt::connect(&self.dir))
    }

    /// A datagram as the peer of an SA sends it; `spi` is ours.
    fn ike(spi: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![7; 8];
        message.extend([spi; 8]);
        message.extend([0x2E; 12]);
        message.extend(body);
        message
    }

    fn send_from_peer(&self, message: &[u8]) {
        let mut datagram = vec![0; 4];
        datagram.extend(message);
        self.peer.send_to(&datagram, self.local).unwrap();
    }

    fn receive_at_peer(&self) -> Vec<u8> {
        let mut bytes = vec![0; 65_536];
        let (len, from) = self.peer.recv_from(&mut bytes).unwrap();
        assert_eq!(from, self.local);
        bytes.truncate(len);
        bytes
    }

    fn out(&self, bytes: &[u8], stash: Option<(u64, Vec<u8>)>) -> PuntOut {
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
struct Tables {
    stream: UnixStream,
    generation: Generation,
}

impl Tables {
    fn connect(dir: &Path) -> Self {
        let stream = UnixStream::connect(dir.join(TABLES_SOCKET)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut tables = Tables { stream, generation: Generation(0) };
        tables.send(&ToCore::Hello { version: VERSION });
        let FromCore::Hello(hello) = tables.receive() else { panic!("no hello") };
        tables.generation = hello.generation;
        tables
    }

    fn send(&mut self, message: &ToCore) {
        self.stream.write_all(&encode(message).unwrap()).unwrap();
    }

    fn receive(&mut self) -> FromCore {
        let mut header = [0; FRAME_HEADER_LEN];
        self.stream.read_exact(&mut header).unwrap();
        let mut bytes = vec![0; frame_len(header).unwrap()];
        self.stream.read_exact(&mut bytes).unwrap();
        decode(&bytes).unwrap()
    }

    fn ask(&mut self, query: Query) -> Answer {
        self.send(&ToCore::Query { number: 1, query });
        loop {
            if let FromCore::Answer { number: 1, answer } = self.receive() {
                return answer;
            }
        }
    }

    fn stash(&mut self) -> Vec<(u64, Vec<u8>)> {
        let Answer::Stash(values) = self.ask(Query::Stash { from: 0 }) else { panic!("another answer") };
        values.iter().map(|(key, value)| (*key, value.0.clone())).collect()
    }

    fn drops(&mut self, reason: &str) -> u64 {
        let Answer::Stats(Stats { drops, .. }) = self.ask(Query::Stats) else { panic!("another answer") };
        drops.iter().find(|(name, _)| name == reason).unwrap().1
    }

    /// Waits until so many datagrams were dropped for this reason.
    fn await_drops(&mut self, reason: &str, at_least: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.drops(reason) < at_least {
            assert!(Instant::now() < deadline, "{reason}: {} of {at_least}", self.drops(reason));
        }
    }
}

/// Control's connection for IKE.
struct Punt(OwnedFd);

impl Punt {
    fn connect(dir: &Path) -> Self {
        let punt = Self::connect_silently(dir);
        punt.send(&ToPunt::Hello { version: VERSION });
        punt
    }

    fn connect_silently(dir: &Path) -> Self {
        let kind = SocketType::SEQPACKET;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(dir.join(PUNT_SOCKET)).unwrap()).unwrap();
        Punt(socket)
    }

    fn send(&self, message: &ToPunt) {
        rustix::net::send(&self.0, &encode_punt(message).unwrap(), SendFlags::NOSIGNAL).unwrap();
    }

    /// `None` when the core has closed the connection.
    fn receive(&self) -> Option<PuntIn> {
        let mut bytes = vec![0; MAX_PUNT_LEN];
        let (len, _) = rustix::net::recv(&self.0, &mut bytes[..], RecvFlags::empty()).unwrap();
        if len == 0 {
            return None;
        }
        let FromPunt::Received(received) = decode(&bytes[..len]).unwrap();
        Some(received)
    }

    /// Returns once the core has taken the `Hello`: it goes before what is sent after it.
    fn settle(&self, world: &World) {
        self.send(&ToPunt::Send(world.out(b"settled", None)));
        assert_eq!(world.receive_at_peer(), b"settled");
    }
}

#[test]
fn datagrams_go_both_ways_without_their_marker() {
    let world = World::new("both");
    let (_tables, punt) = world.control();
    punt.settle(&world);
    let message = World::ike(5, b"request");
    world.send_from_peer(&message);
    let remote = world.peer.local_addr().unwrap();
    assert_eq!(punt.receive(), Some(PuntIn { local: world.local, remote, bytes: message }));
    punt.send(&ToPunt::Send(world.out(b"\0\0\0\0answer", None)));
    assert_eq!(world.receive_at_peer(), b"\0\0\0\0answer");
    // Larger than any path takes in one piece, as certificates are.
    let large = vec![3; 9000];
    punt.send(&ToPunt::Send(world.out(&large, None)));
    assert_eq!(world.receive_at_peer(), large);
}

#[test]
fn no_datagram_leaves_unless_its_stash_is_kept() {
    let world = World::new("stash");
    let (mut tables, punt) = world.control();
    punt.send(&ToPunt::Send(world.out(b"kept", Some((4, vec![1; 100])))));
    assert_eq!(world.receive_at_peer(), b"kept");
    assert_eq!(tables.stash(), [(4, vec![1; 100])]);
    punt.send(&ToPunt::Send(world.out(b"too long", Some((5, vec![1; MAX_STASH_LEN + 1])))));
    punt.send(&ToPunt::Send(world.out(b"replaced", Some((4, vec![2; 50])))));
    assert_eq!(world.receive_at_peer(), b"replaced");
    assert_eq!(tables.stash(), [(4, vec![2; 50])]);
}

#[test]
fn a_stash_that_is_forgotten_after_it_was_sent_stays_forgotten() {
    let world = World::new("forgotten");
    let (mut tables, punt) = world.control();
    for key in 1..300 {
        punt.send(&ToPunt::Send(world.out(b"", Some((key, vec![1; 10])))));
        let ops = vec![Op::RemoveStash { key }];
        tables.send(&ToCore::Apply(Transaction { epoch: Epoch(key), ops }));
        assert_eq!(tables.stash(), []);
    }
}

#[test]
fn the_next_control_reads_what_the_last_one_had_sent() {
    let world = World::new("next");
    let (tables, punt) = world.control();
    for key in 0..2000 {
        punt.send(&ToPunt::Send(world.out(b"x", Some((key, vec![key as u8; 10])))));
    }
    let first = tables.generation;
    drop((tables, punt));
    let mut next = Tables::connect(&world.dir);
    assert!(next.generation > first);
    assert_eq!(next.stash().len(), 2000);
    // All of them were sent before the answer; more than the peer's buffer holds.
    world.peer.set_nonblocking(true).unwrap();
    while world.peer.recv(&mut [0; 16]).is_ok() {}
    world.peer.set_nonblocking(false).unwrap();
    Punt::connect(&world.dir).settle(&world);
}

#[test]
fn what_control_cannot_take_is_dropped_and_counted() {
    let world = World::new("drops");
    let mut tables = Tables::connect(&world.dir);
    world.send_from_peer(&World::ike(5, b"early"));
    tables.await_drops("nobody_listens", 1);
    world.send_from_peer(b"short");
    tables.await_drops("truncated", 1);
    let punt = Punt::connect(&world.dir);
    punt.settle(&world);
    // A flood of first messages leaves room for the SAs that exist.
    let deadline = Instant::now() + PATIENCE;
    while tables.drops("punt_full") < 1000 {
        (0..100).for_each(|_| world.send_from_peer(&World::ike(0, &[1; 400])));
        assert!(Instant::now() < deadline);
    }
    let flooded = tables.drops("punt_full");
    world.send_from_peer(&World::ike(5, b"established"));
    let mut strangers = 0;
    while punt.receive().unwrap().bytes != World::ike(5, b"established") {
        strangers += 1;
    }
    assert!(strangers > 50, "{strangers}");
    assert!(tables.drops("punt_full") >= flooded);
}

#[test]
fn another_version_or_no_greeting_ends_the_connection() {
    let world = World::new("version");
    for message in [ToPunt::Hello { version: VERSION + 1 }, ToPunt::Send(world.out(b"never", None))] {
        let punt = Punt::connect_silently(&world.dir);
        punt.send(&message);
        assert_eq!(punt.receive(), None);
    }
    let punt = Punt::connect(&world.dir);
    punt.settle(&world);
}

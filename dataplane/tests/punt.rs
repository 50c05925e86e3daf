//! IKE datagrams through the core as it ships: they go both ways, and no datagram leaves before its stash is
//! kept.

mod played;

use std::{os::fd::OwnedFd, path::Path, time::Instant};

use braid_api::{
    Epoch, MAX_STASH_LEN, Op, ToCore, Transaction, VERSION, decode,
    launcher::PUNT_SOCKET,
    punt::{FromPunt, MAX_PUNT_LEN, PuntIn, ToPunt, encode_punt},
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use played::{PATIENCE, Tables, World};

fn control(world: &World) -> (Tables, Punt) {
    (Tables::connect(&world.dir), Punt::connect(&world.dir))
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
    let (_tables, punt) = control(&world);
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
    let (mut tables, punt) = control(&world);
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
    let (mut tables, punt) = control(&world);
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
    let (tables, punt) = control(&world);
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

//! TCP for BGP: connections that we make, listening sockets, and a task that reads and one that writes for each
//! connection. They only move octets; [`super::speaker`] decides.
//!
//! Invariants: what is read waits in a bounded channel, so that a neighbor is read no faster than its routes are
//! taken in; what is to be written is bounded by [`Net::has_room`], which whoever sends routes asks first.
//!
//! Port 179 needs CAP_NET_BIND_SERVICE, which control keeps. Signatures (RFC 2385) and the least TTL (RFC 5082)
//! are socket options that no safe wrapper has: `braid_dataplane::io::tcp` has them.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use braid_bgp::{ConnectionId, rib::NeighborId};
use braid_dataplane::io::tcp;
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::settings::Endpoint;

/// RFC 4271 section 4.
const PORT: u16 = 179;
/// An attempt that takes longer has failed.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// What is still to be sent when a connection closes has so long.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// A neighbor that takes nothing for so long has failed, even if it still sends (RFC 9687, whose least time this
/// is; with a hold time of more than half of it that RFC would wait longer).
const SEND_HOLD: Duration = Duration::from_secs(8 * 60);
/// How long a gateway that stops waits for the last words.
const FLUSH_PATIENCE: Duration = Duration::from_millis(100);
/// Octets read at once.
const READ: usize = 64 * 1024;
/// Events that wait; with [`READ`], this bounds what is read ahead.
const QUEUE: usize = 32;
/// Octets that wait for a neighbor before no more routes are sent to it.
const ROOM: usize = 256 * 1024;
/// RFC 5082 section 3.
const MAX_TTL: u8 = 255;
/// Class CS6, as routing protocols have it (RFC 4594 section 3.1).
const TRAFFIC_CLASS: u8 = 0xc0;
const BACKLOG: u32 = 64;

/// A connection, by its neighbor and number.
pub(super) type Key = (NeighborId, ConnectionId);

/// What happened to a connection.
#[derive(Debug)]
pub(super) enum NetEvent {
    /// Somebody has connected.
    Accepted(TcpStream, SocketAddr),
    /// Ours is made; our end of it.
    Connected(Key, IpAddr),
    /// Octets.
    Received(Key, Bytes),
    /// It could not be made.
    Unreached(Key, Unreached),
    /// It has closed.
    Closed(Key),
    /// The neighbor has taken nothing for the send hold time.
    Stuck(Key),
    /// There is room again.
    Sent(NeighborId),
}

/// Why a connection could not be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unreached {
    /// The neighbor's machine has nobody there.
    Refused,
    /// Nothing was answered.
    Silent,
    /// There is no way there.
    NoRoute,
    /// The source is no address of ours.
    NotOurs,
    /// As the kernel has it.
    Other(String),
}

impl Unreached {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Unreached::Refused,
            io::ErrorKind::TimedOut => Unreached::Silent,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Unreached::NoRoute,
            io::ErrorKind::AddrNotAvailable => Unreached::NotOurs,
            _ => Unreached::Other(error.to_string()),
        }
    }
}

/// The sockets.
#[derive(Debug)]
pub(super) struct Net {
    events: mpsc::Sender<NetEvent>,
    incoming: mpsc::Receiver<NetEvent>,
    connections: HashMap<Key, Connection>,
    listeners: BTreeMap<IpAddr, Listener>,
    /// Tasks that write, also of connections that are closing.
    writing: JoinSet<()>,
    send_hold: Duration,
    /// Addresses that could not be listened on, and why.
    deaf: BTreeMap<IpAddr, io::Error>,
}

#[derive(Debug)]
struct Connection {
    /// Dropped, the writing task sends what it has and closes.
    outgoing: mpsc::UnboundedSender<Bytes>,
    /// Dropped with it: from then on the neighbor has [`CLOSE_PATIENCE`] to take it.
    _open: oneshot::Sender<()>,
    waiting: Arc<AtomicUsize>,
    reading: JoinHandle<()>,
}

#[derive(Debug)]
struct Listener {
    socket: Arc<TcpListener>,
    accepting: JoinHandle<()>,
    /// Neighbors that sign, with their keys.
    keys: BTreeMap<IpAddr, crate::config::Key>,
    /// Only what was sent on the link is heard.
    ttl_security: bool,
}

/// What is to be done about a port that cannot be had, where anything is.
pub(crate) fn remedy(error: &io::Error) -> Option<&'static str> {
    let is_taken = error.kind() == io::ErrorKind::AddrInUse;
    is_taken.then_some("`ss -ltnp` names who has it: let that leave it alone")
}

/// What an address of ours is listened on for.
#[derive(Debug)]
struct Wanted {
    keys: BTreeMap<IpAddr, crate::config::Key>,
    ttl_security: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Net {
    pub(super) fn new() -> Self {
        let (events, incoming) = mpsc::channel(QUEUE);
        Net {
            events,
            incoming,
            connections: HashMap::new(),
            listeners: BTreeMap::new(),
            writing: JoinSet::new(),
            send_hold: SEND_HOLD,
            deaf: BTreeMap::new(),
        }
    }

    /// The next event. Safe to cancel.
    pub(super) async fn next(&mut self) -> NetEvent {
        match self.incoming.recv().await {
            Some(event) => event,
            // We hold a sender ourselves.
            None => core::future::pending().await,
        }
    }

    /// Whether a connection of a neighbor takes more.
    pub(super) fn has_room(&self, neighbor: NeighborId) -> bool {
        let mut of = self.connections.iter().filter(|((other, _), _)| *other == neighbor);
        of.all(|(_, connection)| connection.waiting.load(Ordering::Relaxed) < ROOM)
    }

    /// Waits until connections that were closed have sent what they had, but not for long.
    pub(super) async fn flush(&mut self) {
        let _ = timeout(FLUSH_PATIENCE, async { while self.writing.join_next().await.is_some() {} }).await;
    }

    /// Listens where neighbors may connect, with their keys; says what cannot be had, once.
    pub(super) fn listen<'e>(&mut self, endpoints: impl Iterator<Item = &'e Endpoint>) -> Vec<String> {
        let mut wanted: BTreeMap<IpAddr, Wanted> = BTreeMap::new();
        for endpoint in endpoints {
            let Some(local) = endpoint.local.or_else(|| local_towards(endpoint)) else { continue };
            let of = wanted.entry(local).or_insert(Wanted { keys: BTreeMap::new(), ttl_security: true });
            of.keys.extend(endpoint.md5.clone().map(|key| (endpoint.remote, key)));
            // RFC 5082 section 3: what comes from afar is dropped before anything is done for it, where no neighbor
            // at this address may be far.
            of.ttl_security &= endpoint.ttl_security;
        }
        self.listeners.retain(|local, _| wanted.contains_key(local));
        self.deaf.retain(|local, _| wanted.contains_key(local));
        let mut lines = Vec::new();
        for (local, wanted) in wanted {
            let listening = match self.listeners.get_mut(&local) {
                Some(listener) => listener.follow(local, wanted),
                None => listen_on(local).and_then(|socket| {
                    let mut listener = Listener::start(socket, self.events.clone());
                    listener.follow(local, wanted)?;
                    self.listeners.insert(local, listener);
                    Ok(())
                }),
            };
            match listening {
                Ok(()) => drop(self.deaf.remove(&local)),
                Err(error) => {
                    let remedy = remedy(&error).map_or_else(String::new, |remedy| format!("; {remedy}"));
                    let line = format!("cannot listen for BGP on {local} port {PORT}: {error}{remedy}");
                    let is_news = self.deaf.insert(local, error).is_none();
                    lines.extend(is_news.then_some(line));
                }
            }
        }
        lines
    }

    /// Our addresses on which neighbors find nobody, and what the system says.
    pub(super) fn deaf(&self) -> impl Iterator<Item = (SocketAddr, &io::Error)> {
        self.deaf.iter().map(|(local, error)| (SocketAddr::new(*local, PORT), error))
    }

    /// Begins to connect.
    pub(super) fn connect(&mut self, key: Key, endpoint: &Endpoint) {
        let (events, endpoint) = (self.events.clone(), endpoint.clone());
        let (made, half) = oneshot::channel();
        let connection = self.start_writing(key, async { half.await.ok() });
        let reading = tokio::spawn(async move {
            let stream = match timeout(CONNECT_PATIENCE, connect(&endpoint)).await {
                Ok(Ok(stream)) => stream,
                failed => {
                    let why = match failed {
                        Ok(Err(error)) => Unreached::of(&error),
                        _ => Unreached::Silent,
                    };
                    // Nobody listens any more when control ends.
                    let _ = events.send(NetEvent::Unreached(key, why)).await;
                    return;
                }
            };
            let local = stream.local_addr().map_or(endpoint.remote, |local| local.ip());
            let (reading, writing) = stream.into_split();
            // Nobody waits for it where the connection is no longer wanted.
            let _ = made.send(writing);
            if events.send(NetEvent::Connected(key, local)).await.is_ok() {
                read(key, reading, events).await;
            }
        });
        self.connections.insert(key, connection(reading));
    }

    /// Takes an accepted connection over.
    pub(super) fn adopt(&mut self, key: Key, stream: TcpStream, endpoint: &Endpoint) -> io::Result<()> {
        prepare(stream.as_fd(), endpoint)?;
        stream.set_nodelay(true)?;
        let (reading, writing) = stream.into_split();
        let connection = self.start_writing(key, async { Some(writing) });
        let reading = tokio::spawn(read(key, reading, self.events.clone()));
        self.connections.insert(key, connection(reading));
        Ok(())
    }

    /// Starts the task that writes, once there is something to write to; yields what makes a connection of it
    /// and of the task that reads.
    fn start_writing<F>(&mut self, key: Key, made: F) -> impl FnOnce(JoinHandle<()>) -> Connection + use<F>
    where
        F: Future<Output = Option<OwnedWriteHalf>> + Send + 'static,
    {
        while self.writing.try_join_next().is_some() {}
        let (outgoing, queue) = mpsc::unbounded_channel();
        let (open, closing) = oneshot::channel::<()>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let (events, waits, send_hold) = (self.events.clone(), waiting.clone(), self.send_hold);
        self.writing.spawn(async move {
            let Some(mut to) = made.await else { return };
            // One patience for all that is left: a neighbor that reads nothing would else keep task, socket and
            // queue for ever, and have as many of them as it likes by connecting anew.
            let too_long = async {
                let _ = closing.await;
                tokio::time::sleep(CLOSE_PATIENCE).await;
            };
            tokio::select! {
                () = write(key, &mut to, queue, waits, events, send_hold) => {}
                () = too_long => {}
            }
        });
        move |reading| Connection { outgoing, _open: open, waiting, reading }
    }

    /// Sends.
    pub(super) fn transmit(&mut self, key: Key, octets: Bytes) {
        if let Some(connection) = self.connections.get(&key) {
            connection.waiting.fetch_add(octets.len(), Ordering::Relaxed);
            // A task that has ended has said so.
            let _ = connection.outgoing.send(octets);
        }
    }

    /// Closes, once what was sent has left.
    pub(super) fn close(&mut self, key: Key) {
        self.connections.remove(&key);
    }

    /// Whether a connection is still there: what is said of one that was closed is no news.
    pub(super) fn knows(&self, key: Key) -> bool {
        self.connections.contains_key(&key)
    }
}

impl Listener {
    fn start(socket: TcpListener, events: mpsc::Sender<NetEvent>) -> Self {
        let socket = Arc::new(socket);
        let accepted = socket.clone();
        let accepting = tokio::spawn(async move {
            loop {
                match accepted.accept().await {
                    Ok((stream, from)) => {
                        if events.send(NetEvent::Accepted(stream, from)).await.is_err() {
                            return;
                        }
                    }
                    // Out of descriptors, for one: those in use may be free again soon.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        Listener { socket, accepting, keys: BTreeMap::new(), ttl_security: false }
    }

    fn follow(&mut self, local: IpAddr, Wanted { keys, ttl_security }: Wanted) -> io::Result<()> {
        if self.ttl_security != ttl_security {
            // Connections that are accepted inherit it.
            let least = if ttl_security { MAX_TTL } else { 0 };
            tcp::set_min_ttl(self.socket.as_fd(), local.is_ipv6(), least)?;
            self.ttl_security = ttl_security;
        }
        self.set_keys(keys)
    }

    fn set_keys(&mut self, wanted: BTreeMap<IpAddr, crate::config::Key>) -> io::Result<()> {
        for peer in self.keys.keys().filter(|peer| !wanted.contains_key(*peer)) {
            tcp::set_md5_key(self.socket.as_fd(), *peer, &[])?;
        }
        for (peer, key) in wanted.iter().filter(|(peer, key)| self.keys.get(*peer) != Some(*key)) {
            tcp::set_md5_key(self.socket.as_fd(), *peer, key.expose())?;
        }
        self.keys = wanted;
        Ok(())
    }
}

/// The address that the kernel would take towards a neighbor, if it has a route.
pub(super) fn local_towards(endpoint: &Endpoint) -> Option<IpAddr> {
    let any: SocketAddr = match endpoint.remote {
        IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // Connecting a datagram socket sends nothing.
    let socket = std::net::UdpSocket::bind(any).ok()?;
    socket.connect((endpoint.remote, PORT)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn socket_of(remote: IpAddr) -> io::Result<TcpSocket> {
    let socket = if remote.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

fn listen_on(local: IpAddr) -> io::Result<TcpListener> {
    let socket = socket_of(local)?;
    // Connections of an earlier life may still be closing.
    socket.set_reuseaddr(true)?;
    // A neighbor with RFC 5082 wants it of the first answer already.
    set_ttl(socket.as_fd(), local.is_ipv6())?;
    socket.bind(SocketAddr::new(local, PORT))?;
    socket.listen(BACKLOG)
}

async fn connect(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let socket = socket_of(endpoint.remote)?;
    if let Some(interface) = &endpoint.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    prepare(socket.as_fd(), endpoint)?;
    if let Some(key) = &endpoint.md5 {
        tcp::set_md5_key(socket.as_fd(), endpoint.remote, key.expose())?;
    }
    if let Some(local) = endpoint.local {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    socket.connect(SocketAddr::new(endpoint.remote, PORT)).await
}

/// RFC 5082: ours leave with the highest TTL; those of a neighbor on the link must have it too, if so configured.
fn prepare(socket: std::os::fd::BorrowedFd<'_>, endpoint: &Endpoint) -> io::Result<()> {
    let v6 = endpoint.remote.is_ipv6();
    set_ttl(socket, v6)?;
    if endpoint.ttl_security {
        tcp::set_min_ttl(socket, v6, MAX_TTL)?;
    }
    Ok(())
}

fn set_ttl(socket: std::os::fd::BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    use rustix::net::sockopt;
    if v6 {
        sockopt::set_ipv6_unicast_hops(socket, Some(MAX_TTL))?;
        sockopt::set_ipv6_tclass(socket, TRAFFIC_CLASS.into())?;
    } else {
        sockopt::set_ip_ttl(socket, MAX_TTL.into())?;
        sockopt::set_ip_tos(socket, TRAFFIC_CLASS)?;
    }
    Ok(())
}

async fn read(key: Key, mut from: OwnedReadHalf, events: mpsc::Sender<NetEvent>) {
    let mut buffer = vec![0; READ];
    loop {
        let event = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => NetEvent::Closed(key),
            Ok(len) => NetEvent::Received(key, Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default())),
        };
        let over = matches!(event, NetEvent::Closed(_));
        if events.send(event).await.is_err() || over {
            return;
        }
    }
}

/// Ends with the queue, or when the neighbor takes nothing more.
async fn write(
    key: Key,
    to: &mut OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Bytes>,
    waiting: Arc<AtomicUsize>,
    events: mpsc::Sender<NetEvent>,
    send_hold: Duration,
) {
    while let Some(octets) = queue.recv().await {
        let mut written = 0;
        let all = async {
            while let Some(rest) = octets.get(written..).filter(|rest| !rest.is_empty()) {
                written += to.write(rest).await?;
            }
            io::Result::Ok(())
        };
        match timeout(send_hold, all).await {
            Ok(Ok(())) => {}
            // The reading half has heard it too.
            Ok(Err(_)) => return,
            Err(_) => {
                // Nobody listens any more when control ends.
                let _ = events.send(NetEvent::Stuck(key)).await;
                let mut last = None;
                while let Some(octets) = queue.recv().await {
                    last = Some(octets);
                }
                // RFC 9687 section 4: a NOTIFICATION is sent where that delays nothing; in the middle of another
                // message it would be read as a part of that.
                if let Some(last) = last.filter(|_| written == 0) {
                    let _ = to.try_write(&last);
                }
                return;
            }
        }
        let before = waiting.fetch_sub(octets.len(), Ordering::Relaxed);
        if before >= ROOM && before - octets.len() < ROOM && events.send(NetEvent::Sent(key.0)).await.is_err()
        {
            return;
        }
    }
    // It may have failed meanwhile.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = (NeighborId(1), ConnectionId(1));

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(Duration::from_secs(20), test).await }).unwrap();
    }

    fn endpoint() -> Endpoint {
        let remote = "127.0.0.1".parse().unwrap();
        Endpoint { remote, local: None, interface: None, ttl_security: false, md5: None }
    }

    async fn connected_pair(net: &mut Net) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, _) = listener.accept().await.unwrap();
        net.adopt(KEY, near, &endpoint()).unwrap();
        far
    }

    #[test]
    fn what_was_sent_leaves_before_the_connection_closes() {
        run(async {
            let mut net = Net::new();
            let mut far = connected_pair(&mut net).await;
            let long = Bytes::from(vec![7; 3 * ROOM]);
            net.transmit(KEY, long.clone());
            assert!(!net.has_room(KEY.0) && net.has_room(NeighborId(2)));
            net.transmit(KEY, Bytes::from_static(b"end"));
            net.close(KEY);
            assert!(!net.knows(KEY));
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            assert_eq!(all.len(), long.len() + 3);
            assert!(all.ends_with(b"end"));
        });
    }

    #[test]
    fn octets_come_in_order_and_then_the_end() {
        run(async {
            let mut net = Net::new();
            let mut far = connected_pair(&mut net).await;
            far.write_all(b"one").await.unwrap();
            let NetEvent::Received(KEY, octets) = net.next().await else { panic!("no octets") };
            assert_eq!(&octets[..], b"one");
            drop(far);
            assert!(matches!(net.next().await, NetEvent::Closed(KEY)));
        });
    }

    /// More than the kernel takes for somebody who reads nothing.
    async fn clogged_pair(net: &mut Net) -> TcpStream {
        let far = connected_pair(net).await;
        net.transmit(KEY, Bytes::from(vec![7; 64 << 20]));
        far.readable().await.unwrap();
        far
    }

    #[test]
    fn an_error_of_the_system_says_why_nobody_was_reached() {
        use rustix::io::Errno;
        let cases = [
            (Errno::CONNREFUSED, Unreached::Refused),
            (Errno::CONNRESET, Unreached::Refused),
            (Errno::TIMEDOUT, Unreached::Silent),
            (Errno::HOSTUNREACH, Unreached::NoRoute),
            (Errno::NETUNREACH, Unreached::NoRoute),
            (Errno::ADDRNOTAVAIL, Unreached::NotOurs),
            (Errno::PERM, Unreached::Other("Operation not permitted (os error 1)".to_owned())),
        ];
        for (errno, expected) in cases {
            assert_eq!(Unreached::of(&errno.into()), expected, "{errno:?}");
        }
    }

    #[test]
    fn a_neighbor_that_reads_nothing_does_not_keep_what_was_closed() {
        run(async {
            let mut net = Net::new();
            let _far = clogged_pair(&mut net).await;
            net.close(KEY);
            net.writing.join_next().await.unwrap().unwrap();
        });
    }

    #[test]
    fn a_neighbor_that_takes_nothing_for_long_has_failed() {
        run(async {
            let mut net = Net { send_hold: Duration::from_millis(100), ..Net::new() };
            let _far = clogged_pair(&mut net).await;
            assert!(matches!(net.next().await, NetEvent::Stuck(KEY)));
            // What waits is not kept for whoever reads nothing.
            net.transmit(KEY, Bytes::from_static(b"last"));
            net.close(KEY);
            net.writing.join_next().await.unwrap().unwrap();
        });
    }

    #[test]
    fn room_that_is_there_again_is_told() {
        run(async {
            let mut net = Net::new();
            let mut far = connected_pair(&mut net).await;
            net.transmit(KEY, Bytes::from(vec![7; 2 * ROOM]));
            assert!(!net.has_room(KEY.0));
            let mut all = vec![0; 2 * ROOM];
            far.read_exact(&mut all).await.unwrap();
            let NetEvent::Sent(neighbor) = net.next().await else { panic!("nothing told") };
            assert!(neighbor == KEY.0 && net.has_room(KEY.0));
        });
    }

    /// Whether somebody whose packets have this TTL is answered at all.
    async fn answers(to: SocketAddr, ttl: u8) -> bool {
        let socket = TcpSocket::new_v4().unwrap();
        rustix::net::sockopt::set_ip_ttl(&socket, ttl.into()).unwrap();
        timeout(Duration::from_millis(300), socket.connect(to)).await.is_ok_and(|connected| connected.is_ok())
    }

    #[test]
    fn a_listener_for_neighbors_on_the_link_hears_nobody_from_afar() {
        run(async {
            let net = Net::new();
            let local: IpAddr = "127.0.0.1".parse().unwrap();
            let socket = TcpListener::bind((local, 0)).await.unwrap();
            let to = socket.local_addr().unwrap();
            let mut listener = Listener::start(socket, net.events.clone());
            let mut answered = Vec::new();
            for ttl_security in [false, true, false] {
                listener.follow(local, Wanted { keys: BTreeMap::new(), ttl_security }).unwrap();
                answered.push((answers(to, MAX_TTL).await, answers(to, 254).await));
            }
            assert_eq!(answered, [(true, true), (true, false), (true, true)]);
        });
    }
}

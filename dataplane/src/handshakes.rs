//! WireGuard's thread: handshakes, which cost a worker too much, and timers.
//!
//! Workers hand it messages through a bounded queue; a flood of them fills that queue and disturbs nobody else.
//! A stranger's message is verified, and under load its sender's address proven (whitepaper section 5.3), before
//! any secret is used; what remains is bounded by the limiter of [`crate::wireguard`].

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, Instant},
};

use braid_api::{Event, TunnelId};

use crate::{
    counters::OTHER_THREAD,
    drop_reason::DropReason,
    forward::Drops,
    io::batch::Outgoing,
    tables::{Carrier, Reader, Tunnel},
    wireguard::{Admission, Identity, MAX_HANDSHAKE, Peer, TICK, receiver},
    worker::{Notice, Notices, OuterSocket, Sender, monotonic},
};

/// Messages that wait; at 60 us each, a sixteenth of a second.
const QUEUE: usize = 1024;
/// Of the limiters.
const SECOND: Duration = Duration::from_secs(1);
/// Handshakes begun in a row before messages are looked at again: answers to thousands would fill the queue.
const BEGUN_IN_A_ROW: usize = 32;
/// DSCP AF41 (RFC 2597): handshakes go before data, as those of Linux do.
const HANDSHAKE_TOS: u8 = 0x88;

/// To WireGuard's thread.
#[derive(Debug)]
pub enum Input {
    /// Tunnels that came, changed or went.
    Changed(Vec<TunnelId>),
    /// A message of a handshake.
    Message(SocketAddr, Handshake),
    /// Begin one with this tunnel's peer.
    Begin(TunnelId),
    /// An outer socket.
    Socket(OuterSocket),
    /// The socket of this address is no longer needed.
    Close(SocketAddr),
}

/// The way to WireGuard's thread: workers' messages are bounded, what the core's own thread has to say is not kept
/// waiting by them.
#[derive(Clone, Debug)]
pub struct Line {
    inputs: mpsc::Sender<Input>,
    waiting: Arc<AtomicUsize>,
}

impl Line {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Input>) {
        let (inputs, taken) = mpsc::channel();
        (Line { inputs, waiting: Arc::default() }, taken)
    }

    /// Hands a message over; false when too many wait.
    pub(crate) fn offer(&self, local: SocketAddr, message: Handshake) -> bool {
        if self.waiting.fetch_add(1, Relaxed) >= QUEUE {
            self.waiting.fetch_sub(1, Relaxed);
            return false;
        }
        self.inputs.send(Input::Message(local, message)).is_ok()
    }

    /// What must not be lost.
    pub(crate) fn send(&self, input: Input) {
        // Without the thread there is no core.
        let _ = self.inputs.send(input);
    }
}

/// A message of a handshake, as received.
#[derive(Debug)]
pub struct Handshake {
    from: SocketAddr,
    bytes: [u8; MAX_HANDSHAKE],
    len: u8,
}

impl Handshake {
    /// A message of at most [`MAX_HANDSHAKE`] bytes.
    pub(crate) fn new(from: SocketAddr, message: &[u8]) -> Self {
        let mut bytes = [0; MAX_HANDSHAKE];
        let len = message.len().min(MAX_HANDSHAKE);
        bytes[..len].copy_from_slice(&message[..len]);
        Handshake { from, bytes, len: len as u8 }
    }

    /// The message.
    pub fn message(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// One private key on one socket, and who may call it.
struct Interface {
    identity: Arc<Identity>,
    peers: HashMap<[u8; 32], Arc<Peer>>,
}

/// A tunnel that has keys.
struct Known {
    local: SocketAddr,
    peer: Arc<Peer>,
    /// What control was told of its session, if it was.
    told: Option<bool>,
}

/// The thread's state.
pub(crate) struct Handshakes {
    reader: Reader,
    sender: Sender,
    inputs: mpsc::Receiver<Input>,
    waiting: Arc<AtomicUsize>,
    notices: Notices,
    drops: Arc<Drops>,
    known: BTreeMap<TunnelId, Known>,
    interfaces: BTreeMap<SocketAddr, Vec<Interface>>,
    /// This tick's next tunnel, while there is one.
    next: Option<TunnelId>,
}

impl Handshakes {
    pub(crate) fn new(
        reader: Reader,
        line: &Line,
        inputs: mpsc::Receiver<Input>,
        notices: Notices,
        drops: Arc<Drops>,
    ) -> Self {
        Handshakes {
            reader,
            sender: Sender::new(false),
            inputs,
            waiting: Arc::clone(&line.waiting),
            notices,
            drops,
            known: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            next: None,
        }
    }

    /// Runs until all senders of inputs are gone.
    pub(crate) fn run(mut self) {
        let mut next_tick = Instant::now() + TICK;
        let mut next_second = Instant::now() + SECOND;
        loop {
            let input = match (self.known.is_empty(), self.next) {
                (true, _) => self.inputs.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                (false, None) => {
                    self.inputs.recv_timeout(next_tick.saturating_duration_since(Instant::now()))
                }
                (false, Some(_)) => self.inputs.recv_timeout(Duration::ZERO),
            };
            match input {
                Ok(input) => self.take(input),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            for _ in 1..QUEUE {
                let Ok(input) = self.inputs.try_recv() else { break };
                self.take(input);
            }
            let now = Instant::now();
            // However long a walk through thousands takes.
            if now >= next_second {
                next_second = now + SECOND;
                for identity in self.interfaces.values().flatten().map(|interface| &interface.identity) {
                    identity.handle_second();
                }
            }
            if self.next.is_none() && now >= next_tick {
                next_tick = now + TICK;
                self.next = self.known.first_key_value().map(|(id, _)| *id);
            }
            self.tick_some();
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Changed(tunnels) => tunnels.into_iter().for_each(|tunnel| self.refresh(tunnel)),
            Input::Message(local, handshake) => {
                self.waiting.fetch_sub(1, Relaxed);
                if let Err(reason) = self.handle(local, &handshake) {
                    self.drops.add(OTHER_THREAD, reason as usize, 1);
                }
            }
            Input::Begin(id) => {
                if let Some(known) = self.known.get(&id) {
                    known.peer.want_session();
                    self.tick_one(id);
                }
            }
            Input::Socket(socket) => self.sender.add(socket),
            Input::Close(local) => self.sender.remove(local),
        }
    }

    fn refresh(&mut self, id: TunnelId) {
        self.forget(id);
        let Some(tunnel) = self.tunnel(id) else { return };
        let Some(peer) = tunnel.outbound.as_ref().and_then(Carrier::wireguard) else { return };
        let local = tunnel.settings.local;
        let interfaces = self.interfaces.entry(local).or_default();
        let of_ours = |interface: &&mut Interface| Arc::ptr_eq(&interface.identity, &peer.identity);
        match interfaces.iter_mut().find(of_ours) {
            Some(interface) => drop(interface.peers.insert(peer.public_key, Arc::clone(peer))),
            None => interfaces.push(Interface {
                identity: Arc::clone(&peer.identity),
                peers: HashMap::from([(peer.public_key, Arc::clone(peer))]),
            }),
        }
        // A control that has put it again does not know how it stands.
        self.known.insert(id, Known { local, peer: Arc::clone(peer), told: None });
        // Thousands may have come at once, each of which has something to send.
        self.next = Some(self.next.map_or(id, |next| next.min(id)));
    }

    fn forget(&mut self, id: TunnelId) {
        let Some(Known { local, peer, .. }) = self.known.remove(&id) else { return };
        let Some(interfaces) = self.interfaces.get_mut(&local) else { return };
        for interface in interfaces.iter_mut() {
            let is_its = |other: &Arc<Peer>| Arc::ptr_eq(other, &peer);
            if interface.peers.get(&peer.public_key).is_some_and(is_its) {
                interface.peers.remove(&peer.public_key);
            }
        }
        interfaces.retain(|interface| !interface.peers.is_empty());
        if interfaces.is_empty() {
            self.interfaces.remove(&local);
        }
    }

    fn handle(&mut self, local: SocketAddr, handshake: &Handshake) -> Result<(), DropReason> {
        let from = handshake.from;
        let message = handshake.message();
        let mut reply = [0; MAX_HANDSHAKE];
        let peer = if message.first() == Some(&3) {
            // A cookie is not signed for a key of ours, but sealed for one message of ours.
            self.peer_of(receiver(message), local)
        } else {
            self.admitted(local, from, message, &mut reply)?
        };
        // An answer to an earlier life of ours says nothing of who calls.
        let is_call = message.first() == Some(&1);
        let peer = peer.ok_or(if is_call { DropReason::UnknownPeer } else { DropReason::BadHandshake })?;
        let handled = peer.handle_handshake(from.ip(), message, &mut reply)?;
        let Some(tunnel) = self.tunnel(peer.tunnel) else { return Ok(()) };
        if handled.reply > 0 {
            self.send(local, from, &reply[..handled.reply]);
        }
        if handled.established {
            // Whitepaper section 2.1: the peer is where its last authentic message came from. An initiation may be
            // one of before that somebody has kept, as long as nothing newer is known here: it moves nobody.
            tunnel.live.heard_from(from);
            tunnel.live.heard(monotonic().nanos);
            if peer.established() {
                self.notices.send(Notice::Event(Event::WireGuard { tunnel: peer.tunnel, up: true }));
            }
        }
        Ok(())
    }

    /// The peer of an initiation or a response, if it may be looked at; a cookie is sent where one is asked for.
    fn admitted(
        &mut self,
        local: SocketAddr,
        from: SocketAddr,
        message: &[u8],
        reply: &mut [u8; MAX_HANDSHAKE],
    ) -> Result<Option<Arc<Peer>>, DropReason> {
        let Some(interfaces) = self.interfaces.get(&local) else { return Ok(None) };
        for interface in interfaces {
            match interface.identity.admit(from.ip(), message, reply) {
                Admission::NotOurs => {}
                Admission::Refused(reason) => return Err(reason),
                Admission::From(public_key) => return Ok(interface.peers.get(&public_key).cloned()),
                Admission::For(index) => return Ok(self.peer_of(index, local)),
                Admission::Cookie(len) => {
                    let cookie = *reply;
                    self.send(local, from, &cookie[..len]);
                    return Err(DropReason::HandshakeLoad);
                }
            }
        }
        Err(DropReason::BadHandshake)
    }

    /// Whose index a response or cookie names that came to this address.
    fn peer_of(&self, index: u32, local: SocketAddr) -> Option<Arc<Peer>> {
        let peer = self.reader.clone().enter().peer(index).cloned()?;
        let is_its = self.known.get(&peer.tunnel).is_some_and(|known| known.local == local);
        is_its.then_some(peer)
    }

    /// Goes on with this tick as far as messages may wait.
    fn tick_some(&mut self) {
        let mut begun = 0;
        while let Some(id) = self.next.filter(|_| begun < BEGUN_IN_A_ROW) {
            begun += usize::from(self.tick_one(id));
            let others = self.known.range((Bound::Excluded(id), Bound::Unbounded));
            self.next = others.map(|(id, _)| *id).next();
        }
    }

    /// Without holding the tables: a handshake takes longer than a transaction may wait.
    fn tunnel(&self, id: TunnelId) -> Option<Arc<Tunnel>> {
        self.reader.clone().enter().tunnel(id).cloned()
    }

    /// Says whether there was something to send.
    fn tick_one(&mut self, id: TunnelId) -> bool {
        let Some(tunnel) = self.tunnel(id) else { return false };
        let Some(known) = self.known.get_mut(&id) else { return false };
        let remote = tunnel.live.remote();
        let mut out = [0; MAX_HANDSHAKE];
        let message = known.peer.handle_timeout(remote.is_some(), &mut out);
        let up = known.peer.is_up();
        if known.told != Some(up) && self.notices.send(Notice::Event(Event::WireGuard { tunnel: id, up })) {
            known.told = Some(up);
        }
        let local = known.local;
        let calls = if message == MAX_HANDSHAKE { known.peer.unanswered() } else { 0 };
        if let Some(to) = destination(remote, tunnel.settings.remote, calls).filter(|_| message > 0) {
            self.send(local, to, &out[..message]);
        }
        message > 0
    }

    fn send(&mut self, local: SocketAddr, to: SocketAddr, message: &[u8]) {
        self.sender.send_one(local, message, Outgoing { to, tos: HANDSHAKE_TOS });
    }
}

/// Where a message goes that is, if it is a call, the last of so many without an answer. Where the peer was heard it
/// may not be any more, or somebody else has relayed its words: each second call goes where the configuration says.
fn destination(heard: Option<SocketAddr>, configured: Option<SocketAddr>, calls: u32) -> Option<SocketAddr> {
    let again = calls > 0 && calls.is_multiple_of(2);
    configured.filter(|_| again).or(heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_call_without_an_answer_goes_where_the_configuration_says() {
        let [heard, configured] = [1, 2].map(|host| Some(SocketAddr::from(([192, 0, 2, host], 51_820))));
        let to = |calls| destination(heard, configured, calls);
        assert_eq!([0, 1, 2, 3, 4].map(to), [heard, heard, configured, heard, configured]);
        assert_eq!(destination(heard, None, 2), heard);
        assert_eq!(destination(None, None, 2), None);
    }
}

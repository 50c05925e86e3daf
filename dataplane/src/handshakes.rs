//! WireGuard's thread: handshakes, which cost a worker too much, and timers.
//!
//! Workers hand it messages through a bounded queue; a flood of them fills that queue and disturbs nobody else.
//! A stranger's message is verified, and under load its sender's address proven (whitepaper section 5.3), before
//! any secret is used; what remains is bounded by the limiter of [`crate::wireguard`].

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::Instant,
};

use braid_api::{Event, TunnelId};

use crate::{
    counters::OTHER_THREAD,
    drop_reason::DropReason,
    forward::Drops,
    io::batch::Outgoing,
    tables::{Carrier, Reader, Tunnel},
    wireguard::{Admission, Identity, MAX_HANDSHAKE, Peer, TICK},
    worker::{Notice, Notices, OuterSocket, Sender, monotonic},
};

/// Messages that wait; at 60 us each, a sixteenth of a second.
pub(crate) const QUEUE: usize = 1024;
/// DSCP AF41 (RFC 2597): handshakes go before data, as those of Linux do.
const HANDSHAKE_TOS: u8 = 0x88;

/// To WireGuard's thread.
#[derive(Debug)]
pub enum Input {
    /// Tunnels that came, changed or went.
    Changed(Vec<TunnelId>),
    /// A message of a handshake.
    Message(Handshake),
    /// Begin one with this tunnel's peer.
    Begin(TunnelId),
    /// An outer socket.
    Socket(OuterSocket),
    /// The socket of this address is no longer needed.
    Close(SocketAddr),
}

/// A message of a handshake, as received.
#[derive(Debug)]
pub struct Handshake {
    local: SocketAddr,
    from: SocketAddr,
    bytes: [u8; MAX_HANDSHAKE],
    len: u8,
}

impl Handshake {
    /// A message of at most [`MAX_HANDSHAKE`] bytes.
    pub(crate) fn new(local: SocketAddr, from: SocketAddr, message: &[u8]) -> Self {
        let mut bytes = [0; MAX_HANDSHAKE];
        let len = message.len().min(MAX_HANDSHAKE);
        bytes[..len].copy_from_slice(&message[..len]);
        Handshake { local, from, bytes, len: len as u8 }
    }

    fn message(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// One private key on one socket, and who may call it.
struct Interface {
    identity: Arc<Identity>,
    peers: HashMap<[u8; 32], Arc<Peer>>,
}

/// The thread's state.
pub(crate) struct Handshakes {
    reader: Reader,
    sender: Sender,
    inputs: mpsc::Receiver<Input>,
    notices: Notices,
    drops: Arc<Drops>,
    known: BTreeMap<TunnelId, (SocketAddr, Arc<Peer>)>,
    interfaces: BTreeMap<SocketAddr, Vec<Interface>>,
}

impl Handshakes {
    pub(crate) fn new(
        reader: Reader,
        inputs: mpsc::Receiver<Input>,
        notices: Notices,
        drops: Arc<Drops>,
    ) -> Self {
        Handshakes {
            reader,
            sender: Sender::new(false),
            inputs,
            notices,
            drops,
            known: BTreeMap::new(),
            interfaces: BTreeMap::new(),
        }
    }

    /// Runs until all senders of inputs are gone.
    pub(crate) fn run(mut self) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let input = match self.known.is_empty() {
                true => self.inputs.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                false => self.inputs.recv_timeout(next_tick.saturating_duration_since(Instant::now())),
            };
            match input {
                Ok(input) => self.take(input),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick();
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Changed(tunnels) => tunnels.into_iter().for_each(|tunnel| self.refresh(tunnel)),
            Input::Message(handshake) => {
                if let Err(reason) = self.handle(&handshake) {
                    self.drops.add(OTHER_THREAD, reason as usize, 1);
                }
            }
            Input::Begin(id) => {
                let Some((local, peer)) = self.known.get(&id).cloned() else { return };
                let mut reader = self.reader.clone();
                if let Some(tunnel) = reader.enter().tunnel(id) {
                    peer.want_session();
                    self.tick_one(local, &peer, tunnel);
                }
            }
            Input::Socket(socket) => self.sender.add(socket),
            Input::Close(local) => self.sender.remove(local),
        }
    }

    fn refresh(&mut self, id: TunnelId) {
        self.forget(id);
        let mut reader = self.reader.clone();
        let tables = reader.enter();
        let Some(tunnel) = tables.tunnel(id) else { return };
        let Some(peer) = tunnel.outbound.as_ref().and_then(Carrier::wireguard) else { return };
        let local = tunnel.settings.local;
        self.known.insert(id, (local, Arc::clone(peer)));
        let interfaces = self.interfaces.entry(local).or_default();
        let of_ours = |interface: &&mut Interface| Arc::ptr_eq(&interface.identity, &peer.identity);
        match interfaces.iter_mut().find(of_ours) {
            Some(interface) => drop(interface.peers.insert(peer.public_key, Arc::clone(peer))),
            None => interfaces.push(Interface {
                identity: Arc::clone(&peer.identity),
                peers: HashMap::from([(peer.public_key, Arc::clone(peer))]),
            }),
        }
        // A control that has put it again does not know.
        self.notices.send(Notice::Event(Event::WireGuard { tunnel: id, up: peer.is_up() }));
        self.tick_one(local, peer, tunnel);
    }

    fn forget(&mut self, id: TunnelId) {
        let Some((local, peer)) = self.known.remove(&id) else { return };
        let Some(interfaces) = self.interfaces.get_mut(&local) else { return };
        for interface in interfaces.iter_mut() {
            interface.peers.retain(|_, other| !Arc::ptr_eq(other, &peer));
        }
        interfaces.retain(|interface| !interface.peers.is_empty());
        if interfaces.is_empty() {
            self.interfaces.remove(&local);
        }
    }

    fn handle(&mut self, handshake: &Handshake) -> Result<(), DropReason> {
        let Handshake { local, from, .. } = *handshake;
        let message = handshake.message();
        let mut reply = [0; MAX_HANDSHAKE];
        let peer = if message.first() == Some(&3) {
            // A cookie is not signed for a key of ours, but sealed for one message of ours.
            self.peer_of(message)
        } else {
            self.admitted(local, from, message, &mut reply)?
        };
        let peer = peer.ok_or(DropReason::UnknownPeer)?;
        let handled = peer.handle_handshake(from.ip(), message, &mut reply)?;
        let mut reader = self.reader.clone();
        let tables = reader.enter();
        let Some(tunnel) = tables.tunnel(peer.tunnel) else { return Ok(()) };
        if handled.reply > 0 {
            // Whitepaper section 2.1: the peer is where its last authentic message came from.
            tunnel.live.heard_from(from);
            tunnel.live.heard(monotonic().nanos);
            self.send(local, from, &reply[..handled.reply]);
        }
        if handled.established && peer.established() {
            self.notices.send(Notice::Event(Event::WireGuard { tunnel: peer.tunnel, up: true }));
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
                Admission::For(index) => return Ok(self.reader.clone().enter().peer(index).cloned()),
                Admission::Cookie(len) => {
                    let cookie = *reply;
                    self.send(local, from, &cookie[..len]);
                    return Err(DropReason::HandshakeLoad);
                }
            }
        }
        Err(DropReason::BadHandshake)
    }

    /// Whose index a response or cookie names.
    fn peer_of(&self, message: &[u8]) -> Option<Arc<Peer>> {
        let index = u32::from_le_bytes(*message.get(4..)?.first_chunk()?) >> 8;
        self.reader.clone().enter().peer(index).cloned()
    }

    fn tick(&mut self) {
        for identity in self.interfaces.values().flatten().map(|interface| &interface.identity) {
            identity.handle_second();
        }
        let mut reader = self.reader.clone();
        let tables = reader.enter();
        let known = core::mem::take(&mut self.known);
        for (id, (local, peer)) in &known {
            if let Some(tunnel) = tables.tunnel(*id) {
                self.tick_one(*local, peer, tunnel);
            }
        }
        self.known = known;
    }

    fn tick_one(&mut self, local: SocketAddr, peer: &Peer, tunnel: &Tunnel) {
        let remote = tunnel.live.remote();
        let mut out = [0; MAX_HANDSHAKE];
        let ticked = peer.handle_timeout(remote.is_some(), &mut out);
        if let Some(remote) = remote.filter(|_| ticked.message > 0) {
            self.send(local, remote, &out[..ticked.message]);
        }
        if let Some(up) = ticked.up {
            self.notices.send(Notice::Event(Event::WireGuard { tunnel: peer.tunnel, up }));
        }
    }

    fn send(&mut self, local: SocketAddr, to: SocketAddr, message: &[u8]) {
        self.sender.send_one(local, message, Outgoing { to, tos: HANDSHAKE_TOS });
    }
}

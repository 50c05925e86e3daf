//! WireGuard: the only file that knows boringtun, which speaks the protocol (handshakes, cookies, sessions,
//! counters, timers).
//!
//! What boringtun leaves to its user is done here:
//! - a packet never enters boringtun's own queue: without a session nothing is handed to it, so that whatever
//!   is lost is counted; only keepalives that fell due without a session lie there, empty and 256 at most;
//! - counters end at the protocol's limits (whitepaper section 6.1), on either side, before boringtun sees them;
//! - packets are padded to 16 bytes, but not beyond the tunnel's MTU (section 5.4.6);
//! - initiations are verified by a limiter of the interface, and again, as boringtun insists, by one that never
//!   says that it is under load;
//! - a session's age counts only while [`Peer::handle_timeout`] is called: every [`TICK`].
//!
//! boringtun reads the clock and the system's randomness itself. A session may be opened and sealed by several
//! workers: one lock a peer, taken once for a run of packets, so that wire order is counter order.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use boringtun::{
    noise::{
        Packet, Tunn, TunnResult, errors::WireGuardError, handshake::parse_handshake_anon,
        rate_limiter::RateLimiter,
    },
    x25519::{PublicKey, StaticSecret},
};
use braid_api::{RejectReason, TunnelId, WireGuard, WireGuardStats};

use crate::drop_reason::DropReason;

/// Between two calls of [`Peer::handle_timeout`].
pub const TICK: Duration = Duration::from_millis(250);
/// Bytes before a sealed packet: type, receiver, counter (section 5.4.6).
pub const HEADER: usize = 16;
/// Bytes around a sealed packet: the header and the tag.
pub const OVERHEAD: usize = HEADER + 16;
/// The longest message of a handshake, in bytes: the initiation (section 5.4.2).
pub const MAX_HANDSHAKE: usize = 148;
/// Initiations and responses that are looked at in a second before their senders have to prove their address.
const HANDSHAKES_PER_SECOND: u64 = 2000;
/// Beyond these, of one source that has proven its address; of so many sources.
const HANDSHAKES_PER_SOURCE: u32 = 20;
const MAX_SOURCES: usize = 4096;
/// Section 6.1, Reject-After-Messages: no counter from here on is sent or accepted.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Section 6.1, Rekey-After-Messages.
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Section 6.1, Rekey-After-Time: whoever keeps a session at all times renews it then.
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// The same for the side that answered the last handshake, should the other one not do it.
const REKEY_AFTER_AS_RESPONDER: Duration = Duration::from_secs(150);
/// Initiations without an answer, five seconds apart, until the session counts as gone: the peer has lost its own.
const UNANSWERED: u32 = 3;

/// The message types (section 5.4) with what is needed to find a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// Of a handshake: the initiation, the response or a cookie.
    Handshake,
    /// A packet for the peer of this index.
    Data {
        /// [`Peer::index`].
        index: u32,
    },
}

/// What a datagram is.
///
/// # Errors
/// It is none of the protocol's, or its counter is beyond the limit.
#[inline]
pub fn message(datagram: &[u8]) -> Result<Message, DropReason> {
    match (datagram.first_chunk(), datagram.len()) {
        (Some([4, 0, 0, 0]), OVERHEAD..) => {
            let counter = counter_of(datagram);
            if counter >= REJECT_AFTER_MESSAGES {
                return Err(DropReason::CounterLimit);
            }
            Ok(Message::Data { index: word(datagram, 4) >> 8 })
        }
        (Some([1, 0, 0, 0]), MAX_HANDSHAKE) | (Some([2, 0, 0, 0]), 92) | (Some([3, 0, 0, 0]), 64) => {
            Ok(Message::Handshake)
        }
        _ => Err(DropReason::NotWireGuard),
    }
}

/// Bytes of a packet of `len` bytes on its way: padded to 16, but not beyond `mtu` (section 5.4.6).
#[inline]
pub fn padded_len(len: usize, mtu: u16) -> usize {
    len.next_multiple_of(16).min(usize::from(mtu)).max(len)
}

/// Whose index a response or a cookie names (sections 5.4.3 and 5.4.7), which [`message`] has found to be one.
pub fn receiver(message: &[u8]) -> u32 {
    word(message, if message[0] == 2 { 8 } else { 4 }) >> 8
}

#[inline]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
fn counter_of(datagram: &[u8]) -> u64 {
    u64::from(word(datagram, 12)) << 32 | u64::from(word(datagram, 8))
}

/// A private key of ours, and its limiters.
pub struct Identity {
    private: StaticSecret,
    public: PublicKey,
    /// Who is verified before any secret is used.
    limiter: RateLimiter,
    /// For boringtun, which verifies again.
    lenient: Arc<RateLimiter>,
    second: Mutex<Second>,
}

/// What has been looked at in this second.
#[derive(Default)]
struct Second {
    admitted: u64,
    by_source: HashMap<IpAddr, u32>,
}

impl Second {
    /// Whoever has proven its address under load is not therefore welcome without end.
    fn admits(&mut self, from: IpAddr) -> bool {
        self.admitted += 1;
        if self.admitted <= HANDSHAKES_PER_SECOND {
            return true;
        }
        let source = match from {
            IpAddr::V4(_) => from,
            // One network has as many addresses as it likes.
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        };
        if self.by_source.len() >= MAX_SOURCES && !self.by_source.contains_key(&source) {
            return false;
        }
        let count = self.by_source.entry(source).or_default();
        *count += 1;
        *count <= HANDSHAKES_PER_SOURCE
    }
}

impl Identity {
    fn new(private: [u8; 32]) -> Self {
        let private = StaticSecret::from(private);
        let public = PublicKey::from(&private);
        let limiter = RateLimiter::new(&public, HANDSHAKES_PER_SECOND);
        let lenient = Arc::new(RateLimiter::new(&public, u64::MAX));
        Identity { private, public, limiter, lenient, second: Mutex::default() }
    }

    /// Our public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.public.to_bytes()
    }

    /// To be called once a second: begins another second of the limiter.
    pub fn handle_second(&self) {
        self.limiter.reset_count();
        *self.second.lock().unwrap_or_else(PoisonError::into_inner) = Second::default();
    }

    /// Looks at an initiation or response before any state of a peer is touched.
    ///
    /// `reply` has room for [`MAX_HANDSHAKE`] bytes.
    pub fn admit(&self, from: IpAddr, message: &[u8], reply: &mut [u8; MAX_HANDSHAKE]) -> Admission {
        let packet = match self.limiter.verify_packet(Some(from), message, reply) {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(cookie)) => return Admission::Cookie(cookie.len()),
            Err(_) => return Admission::NotOurs,
        };
        if !self.second.lock().unwrap_or_else(PoisonError::into_inner).admits(from) {
            return Admission::Refused(DropReason::HandshakeLoad);
        }
        match packet {
            Packet::HandshakeInit(init) => match parse_handshake_anon(&self.private, &self.public, &init) {
                Ok(half) => Admission::From(half.peer_static_public),
                Err(_) => Admission::Refused(DropReason::BadHandshake),
            },
            Packet::HandshakeResponse(response) => Admission::For(response.receiver_idx >> 8),
            Packet::PacketCookieReply(_) | Packet::PacketData(_) => {
                Admission::Refused(DropReason::BadHandshake)
            }
        }
    }
}

/// What is to become of a message of a handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Made for another public key, or not for one at all.
    NotOurs,
    /// Its sender has to prove its address first (section 5.3): so many bytes of the reply are for it.
    Cookie(usize),
    /// An initiation of whoever has this public key.
    From([u8; 32]),
    /// For the peer with this index.
    For(u32),
    /// Not authentic.
    Refused(DropReason),
}

/// Makes identities, one for each private key, and indexes.
pub struct Identities {
    by_check: Mutex<HashMap<[u8; 16], std::sync::Weak<Identity>>>,
    next_index: AtomicU32,
}

impl Identities {
    /// `seed` is where indexes begin: another in each life of the core, so that what is meant for an earlier one
    /// reaches nobody.
    pub fn new(seed: u32) -> Self {
        Identities { by_check: Mutex::new(HashMap::new()), next_index: AtomicU32::new(seed) }
    }

    /// A peer without a session. `check` digests both private key and whatever else is secret; `own_check` the
    /// private key alone.
    ///
    /// # Errors
    /// [`RejectReason::BadKey`]: a key that has not 32 bytes, or a public key that nobody can have.
    pub fn make(
        &self,
        settings: &WireGuard,
        check: [u8; 16],
        own_check: [u8; 16],
        taken: impl Fn(u32) -> bool,
    ) -> Result<Peer, RejectReason> {
        let key = |bytes: &[u8]| <[u8; 32]>::try_from(bytes).map_err(|_| RejectReason::BadKey);
        let private = zeroize::Zeroizing::new(key(settings.private_key.expose())?);
        let preshared = settings.preshared_key.as_ref().map(|secret| key(secret.expose())).transpose()?;
        let preshared = zeroize::Zeroizing::new(preshared);
        if settings.peer_public_key == [0; 32] {
            return Err(RejectReason::BadKey);
        }
        let identity = {
            let mut known = self.by_check.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|_, identity| identity.strong_count() > 0);
            match known.get(&own_check).and_then(std::sync::Weak::upgrade) {
                Some(identity) => identity,
                None => {
                    let identity = Arc::new(Identity::new(*private));
                    known.insert(own_check, Arc::downgrade(&identity));
                    identity
                }
            }
        };
        let index = loop {
            // 24 bits of the index are the peer's, the lower 8 count its sessions.
            let index = self.next_index.fetch_add(1, Relaxed) & 0x00FF_FFFF;
            if !taken(index) {
                break index;
            }
        };
        let tunn = Tunn::new(
            identity.private.clone(),
            PublicKey::from(settings.peer_public_key),
            *preshared,
            settings.keepalive,
            index,
            Some(Arc::clone(&identity.lenient)),
        );
        Ok(Peer {
            tunnel: settings.tunnel,
            index,
            public_key: settings.peer_public_key,
            identity,
            initiate: settings.initiate,
            check,
            tunn: Mutex::new(tunn),
            up: AtomicBool::new(false),
            wanted: AtomicBool::new(settings.begin),
            initiated: AtomicBool::new(false),
            unanswered: AtomicU32::new(0),
            handshakes: AtomicU64::new(0),
        })
    }
}

/// A tunnel's keys and its sessions.
pub struct Peer {
    /// Whose.
    pub tunnel: TunnelId,
    /// 24 bits, by which what is received finds it.
    pub index: u32,
    /// The peer's.
    pub public_key: [u8; 32],
    /// Ours.
    pub identity: Arc<Identity>,
    /// A session is made whenever there is none.
    pub initiate: bool,
    /// Digest of its keys.
    pub check: [u8; 16],
    tunn: Mutex<Tunn>,
    /// There is a session, by which something was heard.
    up: AtomicBool,
    /// Something was to be sent, but there was no session, or an old one.
    wanted: AtomicBool,
    /// The last handshake was ours.
    initiated: AtomicBool,
    /// Initiations since something was last authenticated.
    unanswered: AtomicU32,
    handshakes: AtomicU64,
}

/// What a handshake message has led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handled {
    /// So many bytes of the reply are for the sender.
    pub reply: usize,
    /// There is a session that was made just now.
    pub established: bool,
}

impl Peer {
    fn lock(&self) -> MutexGuard<'_, Tunn> {
        // Whoever panicked has left the counters where they were counted to.
        self.tunn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the session for one run of packets to the peer; `None`: there is none, and one is asked for.
    pub fn sending(&self) -> Option<Sending<'_>> {
        let tunn = self.lock();
        // Only then boringtun would not queue.
        if tunn.time_since_last_handshake().is_none() {
            self.wanted.store(true, Relaxed);
            return None;
        }
        Some(Sending { tunn, peer: self })
    }

    /// Takes the sessions for one run of packets from the peer.
    pub fn receiving(&self) -> Receiving<'_> {
        Receiving { tunn: self.lock() }
    }

    /// Something was authenticated: the peer is there. True when control has to be told of a session.
    pub fn heard(&self) -> bool {
        if self.unanswered.load(Relaxed) != 0 {
            self.unanswered.store(0, Relaxed);
        }
        !self.up.load(Relaxed) && !self.up.swap(true, AcqRel)
    }

    /// Whether there is a session, by which something was heard.
    pub fn is_up(&self) -> bool {
        self.up.load(Acquire)
    }

    /// Takes a message of a handshake that [`Identity::admit`] has admitted.
    ///
    /// # Errors
    /// Why it led to nothing.
    pub fn handle_handshake(
        &self,
        from: IpAddr,
        message: &[u8],
        reply: &mut [u8; MAX_HANDSHAKE],
    ) -> Result<Handled, DropReason> {
        let is_response = message.first() == Some(&2);
        match self.lock().decapsulate(Some(from), message, reply) {
            TunnResult::WriteToNetwork(bytes) => {
                let reply = bytes.len();
                self.handshakes.fetch_add(1, Relaxed);
                self.initiated.store(is_response, Relaxed);
                self.unanswered.store(0, Relaxed);
                // What was asked for while there was none.
                self.wanted.store(false, Relaxed);
                Ok(Handled { reply, established: is_response })
            }
            TunnResult::Done => Ok(Handled { reply: 0, established: false }),
            // Section 5.1: an initiation that is not newer than the last is a replay.
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => Err(DropReason::ReplayedHandshake),
            _ => Err(DropReason::BadHandshake),
        }
    }

    /// What is due now: retransmissions, keepalives, a new session; says how many bytes of `out` are for the peer.
    /// `reachable` says whether the peer's address is known.
    pub fn handle_timeout(&self, reachable: bool, out: &mut [u8; MAX_HANDSHAKE]) -> usize {
        let mut tunn = self.lock();
        let mut message = match tunn.update_timers(out) {
            TunnResult::WriteToNetwork(bytes) => bytes.len(),
            _ => 0,
        };
        let age = tunn.time_since_last_handshake();
        let wanted = self.wanted.swap(false, Relaxed);
        if message == 0
            && (wanted || self.initiate && is_due(age, self.initiated.load(Relaxed)))
            && reachable
            && let TunnResult::WriteToNetwork(bytes) = tunn.format_handshake_initiation(out, false)
        {
            message = bytes.len();
        }
        drop(tunn);
        if message == MAX_HANDSHAKE && reachable {
            self.unanswered.fetch_add(1, Relaxed);
        }
        let gone = age.is_none() || self.unanswered.load(Relaxed) > UNANSWERED;
        if gone {
            self.up.store(false, Release);
        }
        message
    }

    /// Initiations in a row that led to nothing, the last of them included.
    pub fn unanswered(&self) -> u32 {
        self.unanswered.load(Relaxed)
    }

    /// Where it stands.
    pub fn stats(&self) -> WireGuardStats {
        WireGuardStats {
            last_handshake: self.lock().time_since_last_handshake(),
            handshakes: self.handshakes.load(Relaxed),
        }
    }

    /// A session was made by our own initiation. True when control has to be told.
    pub fn established(&self) -> bool {
        !self.up.swap(true, AcqRel)
    }

    /// A new session is wanted at the next tick.
    pub fn want_session(&self) {
        self.wanted.store(true, Release);
    }
}

/// Whether a session that is to be kept at all times has to be made, or made anew. `initiated`: by us, the last time.
fn is_due(age: Option<Duration>, initiated: bool) -> bool {
    age.is_none_or(|age| age >= if initiated { REKEY_AFTER } else { REKEY_AFTER_AS_RESPONDER })
}

/// Whether a packet with this counter asks for a new session, and whether it may be sent (section 6.1).
#[inline]
fn of_counter(counter: u64) -> (bool, bool) {
    (counter >= REKEY_AFTER_MESSAGES, counter < REJECT_AFTER_MESSAGES)
}

/// The session that packets to the peer take.
pub struct Sending<'a> {
    tunn: MutexGuard<'a, Tunn>,
    peer: &'a Peer,
}

/// A packet could not be sealed: the session is gone or used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotSealed(pub DropReason);

impl Sending<'_> {
    /// Seals `packet`, padding included, into `out`, which is [`OVERHEAD`] longer.
    ///
    /// # Errors
    /// [`NotSealed`]: nothing of `out` may be sent.
    #[inline]
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Result<(), NotSealed> {
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(sealed) if sealed.len() == packet.len() + OVERHEAD => {
                let (rekey, allowed) = of_counter(counter_of(sealed));
                if rekey {
                    self.peer.want_session();
                }
                if allowed { Ok(()) } else { Err(NotSealed(DropReason::CounterLimit)) }
            }
            _ => Err(NotSealed(DropReason::NoSession)),
        }
    }
}

/// The sessions that packets from the peer may be of.
pub struct Receiving<'a> {
    tunn: MutexGuard<'a, Tunn>,
}

impl Receiving<'_> {
    /// Opens a data message into `out`, which is not shorter; returns the length of the IP packet there, 0 for a
    /// keepalive.
    ///
    /// # Errors
    /// Why nothing came out.
    #[inline]
    pub fn open(&mut self, datagram: &[u8], out: &mut [u8]) -> Result<usize, DropReason> {
        match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Ok(packet.len())
            }
            TunnResult::Done => Ok(0),
            TunnResult::WriteToNetwork(_) => Err(DropReason::NotWireGuard),
            TunnResult::Err(error) => Err(refusal(&error)),
        }
    }
}

#[cold]
fn refusal(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::WrongIndex | WireGuardError::NoCurrentSession => DropReason::UnknownSession,
        WireGuardError::InvalidAeadTag => DropReason::BadIcv,
        WireGuardError::DuplicateCounter => DropReason::Replayed,
        WireGuardError::InvalidCounter => DropReason::TooOld,
        WireGuardError::InvalidPacket => DropReason::DecryptedMalformed,
        _ => DropReason::NotWireGuard,
    }
}

#[cfg(test)]
#[path = "wireguard_tests.rs"]
mod tests;

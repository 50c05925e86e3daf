//! All sessions of a gateway: which one a packet belongs to (RFC 5880 section 6.3), and which one is due.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    error::Error,
    fmt,
    num::NonZeroU32,
};

use crate::{
    Nanos,
    config::Config,
    packet::{Discard, LENGTH, Packet},
    session::{Event, Session, Unread},
    state::State,
};

/// How many random discriminators are tried before the next free one is taken.
const ATTEMPTS: usize = 16;

/// Packets discarded since the beginning, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters([u64; Discard::ALL.len()]);

impl Counters {
    /// How many were discarded for this reason.
    pub fn get(&self, reason: Discard) -> u64 {
        self.0[reason as usize]
    }
}

/// Why a session is not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsertError {
    /// There is one with this key.
    Exists,
    /// There are as many as the table may hold.
    Full,
}

impl fmt::Display for InsertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InsertError::Exists => "there is a session on this path",
            InsertError::Full => "no more sessions can be held",
        })
    }
}

impl Error for InsertError {}

/// What is known of a path beside its BFD, for [`Session::handle_timeout`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Watch {
    /// When it last authenticated any packet of its peer, if it can.
    pub heard: Option<Nanos>,
    /// Packets wait to be read that may be the peer's.
    pub unread: Option<Unread>,
}

struct Entry {
    session: Session,
    due: Option<Nanos>,
}

/// Sessions by the path on which their packets come.
///
/// `K` is that path as far as the receiver can tell it: the tunnel (and the family inside it), or interface
/// and addresses. It selects the session of packets that do not yet know its discriminator, and those that do
/// must still come by it.
pub struct Sessions<K> {
    entries: BTreeMap<K, Entry>,
    by_discriminator: BTreeMap<NonZeroU32, K>,
    due: BTreeSet<(Nanos, K)>,
    /// Changed since they were last drained.
    touched: BTreeSet<K>,
    events: VecDeque<(K, Event)>,
    limit: usize,
    discarded: Counters,
}

impl<K: Ord + Clone> Sessions<K> {
    /// An empty table for at most `limit` sessions.
    pub fn new(limit: usize) -> Self {
        Sessions {
            entries: BTreeMap::new(),
            by_discriminator: BTreeMap::new(),
            due: BTreeSet::new(),
            touched: BTreeSet::new(),
            events: VecDeque::new(),
            limit: limit.min(u32::MAX as usize / 2),
            discarded: Counters::default(),
        }
    }

    /// The session on this path.
    pub fn get(&self, key: &K) -> Option<&Session> {
        self.entries.get(key).map(|entry| &entry.session)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Session)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.session))
    }

    /// What was discarded, and why.
    pub fn discarded(&self) -> &Counters {
        &self.discarded
    }

    /// When [`Sessions::handle_timeout`] wants to be called; 0 if something waits to be drained.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        if self.touched.is_empty() { self.due.first().map(|(at, _)| *at) } else { Some(0) }
    }

    /// A UDP payload that came by this path, or the reason why it was discarded.
    pub fn handle_payload(&mut self, now: Nanos, path: &K, ttl: u8, payload: &[u8]) -> Result<(), Discard> {
        let result = self.accept(now, path, ttl, payload);
        if let Err(reason) = result {
            self.discarded.0[reason as usize] += 1;
        }
        result
    }

    /// Does what is due. `watch` tells what is known of a path beside its BFD.
    pub fn handle_timeout(&mut self, now: Nanos, mut watch: impl FnMut(&K) -> Watch) {
        while let Some((at, _)) = self.due.first()
            && *at <= now
        {
            let Some((_, key)) = self.due.pop_first() else { return };
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.due = None;
                let Watch { heard, unread } = watch(&key);
                entry.session.handle_timeout(now, heard, unread);
                self.touched.insert(key);
            }
        }
    }

    /// Makes an enabled session.
    pub fn insert(
        &mut self,
        key: K,
        config: Config,
        random: &mut dyn FnMut() -> u32,
    ) -> Result<(), InsertError> {
        if self.entries.contains_key(&key) {
            return Err(InsertError::Exists);
        }
        if self.entries.len() >= self.limit {
            return Err(InsertError::Full);
        }
        let discriminator = self.free_discriminator(random);
        self.by_discriminator.insert(discriminator, key.clone());
        let session = Session::new(config, discriminator);
        self.entries.insert(key.clone(), Entry { session, due: None });
        self.touched.insert(key);
        Ok(())
    }

    /// Forgets a session; its peer will notice by silence, unless it was disabled before and said so.
    pub fn remove(&mut self, key: &K) -> bool {
        let Some(entry) = self.entries.remove(key) else { return false };
        self.by_discriminator.remove(&entry.session.discriminator());
        if let Some(due) = entry.due {
            self.due.remove(&(due, key.clone()));
        }
        self.touched.remove(key);
        self.events.retain(|(of, _)| of != key);
        true
    }

    /// New settings; says whether there is such a session.
    pub fn configure(&mut self, key: &K, config: Config) -> bool {
        self.change(key, |session| session.configure(config))
    }

    /// Disables a session; says whether there is such a session.
    pub fn disable(&mut self, key: &K) -> bool {
        self.change(key, Session::disable)
    }

    /// Enables it again; says whether there is such a session.
    pub fn enable(&mut self, key: &K) -> bool {
        self.change(key, Session::enable)
    }

    /// The next packet to send, and by which path.
    pub fn poll_transmit(
        &mut self,
        now: Nanos,
        random: &mut dyn FnMut() -> u32,
    ) -> Option<(K, [u8; LENGTH])> {
        while let Some(key) = self.touched.first() {
            let Some(entry) = self.entries.get_mut(key) else {
                self.touched.pop_first();
                continue;
            };
            while let Some(event) = entry.session.poll_event() {
                self.events.push_back((key.clone(), event));
            }
            if let Some(packet) = entry.session.poll_transmit(now, random) {
                return Some((key.clone(), packet));
            }
            let key = key.clone();
            if let Some(due) = entry.due {
                self.due.remove(&(due, key.clone()));
            }
            entry.due = entry.session.poll_timeout();
            if let Some(due) = entry.due {
                self.due.insert((due, key.clone()));
            }
            self.touched.remove(&key);
        }
        None
    }

    /// What has happened, once [`Sessions::poll_transmit`] has yielded all.
    pub fn poll_event(&mut self) -> Option<(K, Event)> {
        self.events.pop_front()
    }

    fn accept(&mut self, now: Nanos, path: &K, ttl: u8, payload: &[u8]) -> Result<(), Discard> {
        let packet = Packet::decode(payload)?;
        let key = match NonZeroU32::new(packet.your_discriminator) {
            // "If the Your Discriminator field is nonzero, it MUST be used to select the session with which this
            // BFD packet is associated. If no session is found, the packet MUST be discarded."
            Some(discriminator) => {
                let key = self.by_discriminator.get(&discriminator).ok_or(Discard::UnknownDiscriminator)?;
                // A packet that came by another path says nothing of this one.
                if key == path { Ok(key) } else { Err(Discard::WrongPath) }?
            }
            // "If the Your Discriminator field is zero and the State field is not Down or AdminDown, the packet
            // MUST be discarded."
            None => match packet.state {
                State::Init | State::Up => return Err(Discard::ZeroYourDiscriminator),
                State::Down | State::AdminDown => path,
            },
        };
        let entry = self.entries.get_mut(key).ok_or(Discard::UnknownPeer)?;
        let result = entry.session.handle_packet(now, ttl, &packet);
        self.touched.insert(key.clone());
        result
    }

    fn change(&mut self, key: &K, change: impl FnOnce(&mut Session)) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        change(&mut entry.session);
        self.touched.insert(key.clone());
        true
    }

    /// RFC 5880 section 6.8.1: unique, nonzero, and "SHOULD be set to a random value".
    fn free_discriminator(&self, random: &mut dyn FnMut() -> u32) -> NonZeroU32 {
        let free = |candidate: &NonZeroU32| !self.by_discriminator.contains_key(candidate);
        let mut drawn = NonZeroU32::MIN;
        for _ in 0..ATTEMPTS {
            drawn = NonZeroU32::new(random()).unwrap_or(NonZeroU32::MIN);
            if free(&drawn) {
                return drawn;
            }
        }
        // The table holds less than half of all discriminators, so this ends.
        while !free(&drawn) {
            drawn = drawn.checked_add(1).unwrap_or(NonZeroU32::MIN);
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_find_their_reason() {
        for (index, reason) in Discard::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}

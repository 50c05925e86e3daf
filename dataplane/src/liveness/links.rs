//! The BFD sessions outside the tunnels (RFC 5881 on a link, RFC 5883 over several hops), and what they say of their
//! paths. No I/O, no clock, no randomness of its own.
//!
//! A session votes once it was up, until one of both ends disables it (RFC 5882 section 3.2) or it is no longer
//! asked for. No packet of the core's own says that a path outside is alive: BFD alone speaks of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use braid_api::{BfdLink, BfdLinkStats, MAX_BFD_LINKS, Verdict};
use braid_bfd::{
    Config, Discard, DownCause, Event, Hops, Sessions, State,
    datagram::{self, PORT_MULTIHOP, PORT_SINGLE_HOP},
    packet::LENGTH,
};

use super::bfd::{LEAVE_NANOS, stats};

/// RFC 5883 section 5 knows no least TTL: how far a path may be is its user's business.
const ANY_DISTANCE: Hops = Hops::Multi { min_ttl: 0 };

/// Which session: the addresses of both ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) local: IpAddr,
    pub(super) remote: IpAddr,
}

/// Where packets of sessions come in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Door {
    pub(super) local: IpAddr,
    pub(super) port: u16,
    pub(super) interface: Option<String>,
}

/// What came of the last inputs, in the order in which it is to be done.
#[derive(Default)]
pub(super) struct Outcome {
    /// What sessions say from now on, and for how long their peers were silent.
    pub(super) votes: Vec<(Key, Verdict, Duration)>,
    /// To be sent.
    pub(super) packets: Vec<(Key, [u8; LENGTH])>,
    /// Sessions whose status may be another.
    pub(super) touched: BTreeSet<Key>,
}

struct End {
    link: BfdLink,
    vote: Verdict,
    /// It is disabled, and goes then.
    leaves: Option<u64>,
}

/// All sessions.
pub(super) struct Links {
    sessions: Sessions<Key>,
    ends: BTreeMap<Key, End>,
    leaving: BTreeSet<(u64, Key)>,
    /// Not yet drained.
    votes: Vec<(Key, Verdict, Duration)>,
    touched: BTreeSet<Key>,
}

impl Links {
    pub(super) fn new() -> Self {
        Links {
            // Those that leave are still there for a while.
            sessions: Sessions::new(2 * MAX_BFD_LINKS),
            ends: BTreeMap::new(),
            leaving: BTreeSet::new(),
            votes: Vec::new(),
            touched: BTreeSet::new(),
        }
    }

    /// When [`Links::handle_timeout`] and [`Links::drain`] want to be called, in monotonic nanoseconds; 0 if
    /// something waits to be drained.
    pub(super) fn due(&self) -> u64 {
        if !self.votes.is_empty() || !self.touched.is_empty() {
            return 0;
        }
        let leaving = self.leaving.first().map(|(at, _)| *at);
        self.sessions.poll_timeout().into_iter().chain(leaving).min().unwrap_or(u64::MAX)
    }

    /// These are the sessions from now on; what each has to say is said again.
    pub(super) fn set(&mut self, wanted: Vec<BfdLink>, now: u64, random: &mut dyn FnMut() -> u32) {
        let keys: BTreeSet<Key> = wanted.iter().map(key_of).collect();
        for key in self.ends.keys().copied().filter(|key| !keys.contains(key)).collect::<Vec<_>>() {
            self.leave(key, now);
        }
        for link in wanted {
            self.put(link, random);
        }
        let ends = self.ends.iter().filter(|(_, end)| end.leaves.is_none());
        self.votes.extend(ends.map(|(key, end)| (*key, end.vote, Duration::ZERO)));
    }

    /// A packet that came in by a door, or why it was discarded.
    pub(super) fn handle_packet(
        &mut self,
        now: u64,
        door: &Door,
        remote: IpAddr,
        ttl: u8,
        payload: &[u8],
    ) -> Result<(), Discard> {
        let key = Key { local: door.local, remote };
        // By another port or interface it is not of this session (RFC 5883 section 5: single-hop and multihop
        // sessions are told apart by their ports).
        if self.ends.get(&key).is_none_or(|end| door_of(&end.link) != *door) {
            return Err(Discard::UnknownPeer);
        }
        self.sessions.handle_payload(now, &key, ttl, payload)?;
        self.touched.insert(key);
        // Down already, and now the peer's user disables it: that it was down is no verdict any more.
        let disabled =
            self.sessions.get(&key).is_some_and(|session| session.status().remote_state == State::AdminDown);
        if disabled {
            self.vote(key, Verdict::Withdrawn, Duration::ZERO);
        }
        Ok(())
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: u64) {
        self.sessions.handle_timeout(now, |_| None);
        while let Some(&(at, key)) = self.leaving.first()
            && at <= now
        {
            self.remove(key);
        }
    }

    /// Puts into `outcome` what is to be done now.
    pub(super) fn drain(&mut self, now: u64, random: &mut dyn FnMut() -> u32, outcome: &mut Outcome) {
        while let Some((key, packet)) = self.sessions.poll_transmit(now, random) {
            outcome.packets.push((key, packet));
            self.touched.insert(key);
        }
        while let Some((key, event)) = self.sessions.poll_event() {
            self.touched.insert(key);
            match event {
                Event::Up => self.vote(key, Verdict::Up, Duration::ZERO),
                Event::Down(DownCause::Expired { silent }) => self.vote(key, Verdict::Down, silent),
                Event::Down(DownCause::Signaled { .. }) => self.vote(key, Verdict::Down, Duration::ZERO),
                // RFC 5882 section 3.2: AdminDown says nothing of the path.
                Event::Down(DownCause::RemoteAdminDown | DownCause::AdminDown) => {
                    self.vote(key, Verdict::Withdrawn, Duration::ZERO);
                }
            }
        }
        outcome.votes.append(&mut self.votes);
        outcome.touched.append(&mut self.touched);
    }

    /// Where packets of the sessions come in.
    pub(super) fn doors(&self) -> BTreeSet<Door> {
        self.ends.values().map(|end| door_of(&end.link)).collect()
    }

    /// All sessions, with the interfaces that they are bound to.
    pub(super) fn keys(&self) -> impl Iterator<Item = (Key, Option<&str>)> {
        self.ends.iter().map(|(key, end)| (*key, end.link.interface.as_deref()))
    }

    /// From which port a session is best sent, and to which it goes.
    pub(super) fn ports(&self, key: Key) -> Option<(u16, u16)> {
        let (end, session) = (self.ends.get(&key)?, self.sessions.get(&key)?);
        Some((datagram::source_port(session.discriminator()), port_of(&end.link)))
    }

    /// Where packets of a session come in.
    pub(super) fn door(&self, key: Key) -> Option<Door> {
        self.ends.get(&key).map(|end| door_of(&end.link))
    }

    /// Where a session stands.
    pub(super) fn stats(&self, key: Key, problem: Option<String>) -> Option<BfdLinkStats> {
        let (end, session) = (self.ends.get(&key)?, self.sessions.get(&key)?);
        Some(BfdLinkStats { session: stats(key.local, key.remote, &session.status(), end.vote), problem })
    }

    fn put(&mut self, link: BfdLink, random: &mut dyn FnMut() -> u32) {
        let key = key_of(&link);
        let hops = if link.multihop { ANY_DISTANCE } else { Hops::Single };
        // The tables refuse what does not fit.
        let Ok(config) = Config::new(link.bfd.interval, link.bfd.multiplier) else { return };
        let config = config.with_hops(hops);
        if self.ends.get(&key).is_some_and(|end| door_of(&end.link) != door_of(&link)) {
            self.remove(key);
        }
        if let Some(end) = self.ends.get_mut(&key) {
            end.link = link;
            if let Some(at) = end.leaves.take() {
                self.leaving.remove(&(at, key));
                self.sessions.enable(&key);
            }
            if self.sessions.get(&key).is_some_and(|session| *session.config() != config) {
                self.sessions.configure(&key, config);
            }
        } else if self.sessions.insert(key, config, random).is_ok() {
            self.ends.insert(key, End { link, vote: Verdict::Withdrawn, leaves: None });
        }
        self.touched.insert(key);
    }

    /// Disables a session, so that its peer hears of it, and removes it later.
    fn leave(&mut self, key: Key, now: u64) {
        let Some(end) = self.ends.get_mut(&key).filter(|end| end.leaves.is_none()) else { return };
        end.leaves = Some(now + LEAVE_NANOS);
        self.leaving.insert((now + LEAVE_NANOS, key));
        self.sessions.disable(&key);
        self.vote(key, Verdict::Withdrawn, Duration::ZERO);
    }

    fn remove(&mut self, key: Key) {
        if let Some(end) = self.ends.remove(&key) {
            if let Some(at) = end.leaves {
                self.leaving.remove(&(at, key));
            }
            self.sessions.remove(&key);
            self.touched.insert(key);
        }
    }

    /// Notes what a session says, if it is news.
    fn vote(&mut self, key: Key, vote: Verdict, silent: Duration) {
        let Some(end) = self.ends.get_mut(&key) else { return };
        self.touched.insert(key);
        if core::mem::replace(&mut end.vote, vote) != vote {
            self.votes.push((key, vote, silent));
        }
    }
}

fn key_of(link: &BfdLink) -> Key {
    Key { local: link.bfd.local, remote: link.bfd.remote }
}

/// RFC 5881 section 4, RFC 5883 section 5.
fn port_of(link: &BfdLink) -> u16 {
    if link.multihop { PORT_MULTIHOP } else { PORT_SINGLE_HOP }
}

fn door_of(link: &BfdLink) -> Door {
    Door { local: link.bfd.local, port: port_of(link), interface: link.interface.clone() }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;

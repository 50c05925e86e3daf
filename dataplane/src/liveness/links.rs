//! The BFD sessions outside the tunnels (RFC 5881 on a link, RFC 5883 over several hops), and what they say of their
//! paths. No I/O, no clock, no randomness of its own.
//!
//! No packet of the core's own says that a path outside is alive: BFD alone speaks of it.

use std::{collections::BTreeSet, net::IpAddr};

use braid_api::{BfdLink, BfdLinkStats, MAX_BFD_LINKS};
use braid_bfd::{
    Config, Discard, Hops, Watch,
    datagram::{self, PORT_MULTIHOP, PORT_SINGLE_HOP},
};

use super::{
    bfd::stats,
    voters::{self, Voters},
};

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

/// What is to be done for sessions outside the tunnels.
pub(super) type Outcome = voters::Outcome<Key, voters::Vote<Key>>;

/// All sessions.
pub(super) struct Links(Voters<Key, BfdLink>);

impl Links {
    pub(super) fn new() -> Self {
        // Those that leave are still there for a while.
        Links(Voters::new(2 * MAX_BFD_LINKS))
    }

    /// When [`Links::handle_timeout`] and [`Links::drain`] want to be called, in monotonic nanoseconds; 0 if
    /// something waits to be drained.
    pub(super) fn due(&self) -> u64 {
        self.0.due()
    }

    /// These are the sessions from now on; what each has to say is said again.
    pub(super) fn set(&mut self, wanted: Vec<BfdLink>, now: u64, random: &mut dyn FnMut() -> u32) {
        let keys: BTreeSet<Key> = wanted.iter().map(key_of).collect();
        let unwanted = self.0.iter().map(|(key, _)| *key).filter(|key| !keys.contains(key));
        for key in unwanted.collect::<Vec<_>>() {
            self.0.leave(key, now);
        }
        for link in wanted {
            let hops = if link.multihop { ANY_DISTANCE } else { Hops::Single };
            // The tables refuse what does not fit.
            let Ok(config) = Config::new(link.bfd.interval, link.bfd.multiplier) else { continue };
            let is_other = |before: &BfdLink, link: &BfdLink| door_of(before) != door_of(link);
            self.0.put(key_of(&link), link, config.with_hops(hops), is_other, random);
        }
        self.0.say_again();
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
        if self.door(key).as_ref() != Some(door) {
            return Err(Discard::UnknownPeer);
        }
        self.0.handle_payload(now, key, ttl, payload)
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: u64) {
        self.0.handle_timeout(now, |_| Watch::default());
    }

    /// Puts into `outcome` what is to be done now.
    pub(super) fn drain(&mut self, now: u64, random: &mut dyn FnMut() -> u32, outcome: &mut Outcome) {
        self.0.drain(now, random, outcome, Some);
    }

    /// Where packets of the sessions come in.
    pub(super) fn doors(&self) -> BTreeSet<Door> {
        self.0.iter().map(|(_, end)| door_of(&end.info)).collect()
    }

    /// All sessions, with the interfaces that they are bound to.
    pub(super) fn keys(&self) -> impl Iterator<Item = (Key, Option<&str>)> {
        self.0.iter().map(|(key, end)| (*key, end.info.interface.as_deref()))
    }

    /// From which port a session is best sent, and to which it goes.
    pub(super) fn ports(&self, key: Key) -> Option<(u16, u16)> {
        let (end, session) = self.0.get(&key)?;
        Some((datagram::source_port(session.discriminator()), port_of(&end.info)))
    }

    /// Where packets of a session come in.
    pub(super) fn door(&self, key: Key) -> Option<Door> {
        self.0.get(&key).map(|(end, _)| door_of(&end.info))
    }

    /// Where a session stands.
    pub(super) fn stats(&self, key: Key, problem: Option<String>) -> Option<BfdLinkStats> {
        let (end, session) = self.0.get(&key)?;
        Some(BfdLinkStats { session: stats(key.local, key.remote, &session.status(), end.vote), problem })
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

//! BFD sessions with a vote on what they run over. No I/O, no clock, no randomness of its own.
//!
//! A session votes once it was up, until it goes down because one of both ends disabled it (RFC 5882 sections 3.2 and
//! 4.2) or it is no longer asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use braid_api::Verdict;
use braid_bfd::{Config, Discard, DownCause, Event, Session, Sessions, State, Watch, packet::LENGTH};

/// How long a session that is no longer asked for goes on to say so: RFC 5880 section 6.8.16 wants a detection
/// time, and what is disabled speaks once a second.
pub(super) const LEAVE_NANOS: u64 = 3_000_000_000;

/// What came of the last inputs, in the order in which it is to be done.
pub(super) struct Outcome<K, V> {
    /// What changed in what the sessions say.
    pub(super) votes: Vec<V>,
    /// To be sent.
    pub(super) packets: Vec<(K, [u8; LENGTH])>,
    /// Sessions whose status may be another.
    pub(super) touched: BTreeSet<K>,
}

impl<K, V> Default for Outcome<K, V> {
    fn default() -> Self {
        Outcome { votes: Vec::new(), packets: Vec::new(), touched: BTreeSet::new() }
    }
}

/// What a session says from now on, and for how long its peer was silent; zero if that said it.
pub(super) type Vote<K> = (K, Verdict, Duration);

/// What is known of a session beside its state.
pub(super) struct End<I> {
    /// What its user knows of it.
    pub(super) info: I,
    /// What it says.
    pub(super) vote: Verdict,
    /// It is disabled, and goes then.
    leaves: Option<u64>,
}

/// Sessions by their keys.
pub(super) struct Voters<K, I> {
    sessions: Sessions<K>,
    ends: BTreeMap<K, End<I>>,
    leaving: BTreeSet<(u64, K)>,
    /// Not yet drained.
    votes: Vec<Vote<K>>,
    touched: BTreeSet<K>,
}

impl<K: Copy + Ord, I> Voters<K, I> {
    /// For so many sessions, those that leave among them.
    pub(super) fn new(most: usize) -> Self {
        Voters {
            sessions: Sessions::new(most),
            ends: BTreeMap::new(),
            leaving: BTreeSet::new(),
            votes: Vec::new(),
            touched: BTreeSet::new(),
        }
    }

    /// When [`Voters::handle_timeout`] and [`Voters::drain`] want to be called, in monotonic nanoseconds; 0 if
    /// something waits to be drained.
    pub(super) fn due(&self) -> u64 {
        if !self.votes.is_empty() || !self.touched.is_empty() {
            return 0;
        }
        let leaving = self.leaving.first().map(|(at, _)| *at);
        self.sessions.poll_timeout().into_iter().chain(leaving).min().unwrap_or(u64::MAX)
    }

    /// A session, and what is known of it.
    pub(super) fn get(&self, key: &K) -> Option<(&End<I>, &Session)> {
        Some((self.ends.get(key)?, self.sessions.get(key)?))
    }

    /// All sessions, those that leave among them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &End<I>)> {
        self.ends.iter()
    }

    /// A control packet of a session, or why it was discarded.
    pub(super) fn handle_payload(
        &mut self,
        now: u64,
        key: K,
        ttl: u8,
        payload: &[u8],
    ) -> Result<(), Discard> {
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

    /// Does what is due. `watch` tells what is known of a path beside its BFD.
    pub(super) fn handle_timeout(&mut self, now: u64, watch: impl Fn(&K) -> Watch) {
        self.sessions.handle_timeout(now, watch);
        while let Some(&(at, key)) = self.leaving.first()
            && at <= now
        {
            self.remove(key);
        }
    }

    /// Puts what is to be done now into an outcome; `count` takes the votes.
    pub(super) fn drain<V>(
        &mut self,
        now: u64,
        random: &mut dyn FnMut() -> u32,
        outcome: &mut Outcome<K, V>,
        mut count: impl FnMut(Vote<K>) -> Option<V>,
    ) {
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
        outcome.votes.extend(self.votes.drain(..).filter_map(&mut count));
        outcome.touched.append(&mut self.touched);
    }

    /// A session is asked for: it is made, or is as asked for from now on. One that `is_other` than what is known of
    /// it begins anew.
    pub(super) fn put(
        &mut self,
        key: K,
        info: I,
        config: Config,
        is_other: impl FnOnce(&I, &I) -> bool,
        random: &mut dyn FnMut() -> u32,
    ) {
        if self.ends.get(&key).is_some_and(|end| is_other(&end.info, &info)) {
            self.remove(key);
        }
        if let Some(end) = self.ends.get_mut(&key) {
            end.info = info;
            if let Some(at) = end.leaves.take() {
                self.leaving.remove(&(at, key));
                self.sessions.enable(&key);
            }
            if self.sessions.get(&key).is_some_and(|session| *session.config() != config) {
                self.sessions.configure(&key, config);
            }
        } else if self.sessions.insert(key, config, random).is_ok() {
            self.ends.insert(key, End { info, vote: Verdict::Withdrawn, leaves: None });
        }
        self.touched.insert(key);
    }

    /// Disables a session, so that its peer hears of it, and removes it later.
    pub(super) fn leave(&mut self, key: K, now: u64) {
        let Some(end) = self.ends.get_mut(&key).filter(|end| end.leaves.is_none()) else { return };
        end.leaves = Some(now + LEAVE_NANOS);
        self.leaving.insert((now + LEAVE_NANOS, key));
        self.sessions.disable(&key);
        self.vote(key, Verdict::Withdrawn, Duration::ZERO);
    }

    /// Removes a session at once.
    pub(super) fn remove(&mut self, key: K) {
        self.vote(key, Verdict::Withdrawn, Duration::ZERO);
        if let Some(end) = self.ends.remove(&key) {
            if let Some(at) = end.leaves {
                self.leaving.remove(&(at, key));
            }
            self.sessions.remove(&key);
            self.touched.insert(key);
        }
    }

    /// What each has to say that is asked for is said again.
    pub(super) fn say_again(&mut self) {
        let ends = self.ends.iter().filter(|(_, end)| end.leaves.is_none());
        self.votes.extend(ends.map(|(key, end)| (*key, end.vote, Duration::ZERO)));
    }

    fn vote(&mut self, key: K, vote: Verdict, silent: Duration) {
        let Some(end) = self.ends.get_mut(&key) else { return };
        self.touched.insert(key);
        if core::mem::replace(&mut end.vote, vote) != vote {
            self.votes.push((key, vote, silent));
        }
    }
}

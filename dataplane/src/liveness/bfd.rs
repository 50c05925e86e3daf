//! The BFD sessions of all tunnels, and what they say of them. No I/O, no clock, no randomness of its own.
//!
//! A tunnel has one session for each family at most; one that is down takes it out, all that vote must agree
//! that it is up. A session votes once it was up, until it goes down because one of both ends disabled it (RFC
//! 5882 section 4.2) or it is no longer asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use braid_api::{BfdState, BfdStats, TunnelId, Verdict};
use braid_bfd::{
    Config, Discard, DownCause, Event, Sessions, State, Status,
    datagram::{self, MAX_LENGTH, PORT_SINGLE_HOP},
    packet::LENGTH,
};

use crate::{forward::BfdPacket, tables::MAX_TUNNELS};

/// How long a session that is no longer asked for goes on to say so: RFC 5880 section 6.8.16 wants a detection
/// time, and what is disabled speaks once a second.
pub(super) const LEAVE_NANOS: u64 = 3_000_000_000;

/// Which session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) tunnel: TunnelId,
    pub(super) v6: bool,
}

/// What came of the last inputs, in the order in which it is to be done.
#[derive(Default)]
pub(super) struct Outcome {
    /// What changed in what the sessions say of a tunnel.
    pub(super) votes: Vec<Vote>,
    /// To be sent into the tunnels.
    pub(super) packets: Vec<(Key, [u8; LENGTH])>,
    /// Sessions whose status may be another.
    pub(super) touched: BTreeSet<Key>,
}

/// What the sessions of a tunnel say of it from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Vote {
    pub(super) tunnel: TunnelId,
    pub(super) verdict: Verdict,
    /// `Down`: since the last sign of life; zero if the peer said it.
    pub(super) silent: Duration,
}

struct End {
    local: IpAddr,
    remote: IpAddr,
    vote: Verdict,
    /// It is disabled, and goes then.
    leaves: Option<u64>,
}

/// All sessions.
pub(super) struct Bfd {
    sessions: Sessions<Key>,
    ends: BTreeMap<Key, End>,
    leaving: BTreeSet<(u64, Key)>,
    /// What was said last of tunnels that have a vote.
    told: BTreeMap<TunnelId, Verdict>,
    /// Not yet drained.
    votes: Vec<Vote>,
    touched: BTreeSet<Key>,
}

impl Bfd {
    pub(super) fn new() -> Self {
        Bfd {
            sessions: Sessions::new(2 * MAX_TUNNELS),
            ends: BTreeMap::new(),
            leaving: BTreeSet::new(),
            told: BTreeMap::new(),
            votes: Vec::new(),
            touched: BTreeSet::new(),
        }
    }

    /// When [`Bfd::handle_timeout`] and [`Bfd::drain`] want to be called, in monotonic nanoseconds; 0 if something
    /// waits to be drained.
    pub(super) fn due(&self) -> u64 {
        if !self.votes.is_empty() || !self.touched.is_empty() {
            return 0;
        }
        let leaving = self.leaving.first().map(|(at, _)| *at);
        self.sessions.poll_timeout().into_iter().chain(leaving).min().unwrap_or(u64::MAX)
    }

    /// The sessions that a tunnel is to have from now on.
    pub(super) fn configure(
        &mut self,
        tunnel: TunnelId,
        wanted: &[braid_api::Bfd],
        now: u64,
        random: &mut dyn FnMut() -> u32,
    ) {
        for v6 in [false, true] {
            let key = Key { tunnel, v6 };
            match wanted.iter().find(|bfd| bfd.local.is_ipv6() == v6) {
                Some(bfd) => self.put(key, bfd, random),
                None => self.leave(key, now),
            }
        }
    }

    /// The tunnel is gone, and nothing can be said through it any more.
    pub(super) fn forget(&mut self, tunnel: TunnelId) {
        for v6 in [false, true] {
            self.remove(Key { tunnel, v6 });
        }
        self.told.remove(&tunnel);
    }

    /// A packet that came out of a tunnel, or why it was discarded.
    pub(super) fn handle_packet(&mut self, now: u64, packet: &BfdPacket) -> Result<(), Discard> {
        let key = Key { tunnel: packet.tunnel, v6: packet.v6 };
        self.sessions.handle_payload(now, &key, packet.ttl, packet.payload())?;
        self.touched.insert(key);
        // Down already, and now the peer's user disables it: that it was down is no verdict any more.
        let disabled =
            self.sessions.get(&key).is_some_and(|session| session.status().remote_state == State::AdminDown);
        if disabled {
            self.vote(key, Verdict::Withdrawn, Duration::ZERO);
        }
        Ok(())
    }

    /// Does what is due. `heard` is when a tunnel last authenticated a packet.
    pub(super) fn handle_timeout(&mut self, now: u64, heard: impl Fn(TunnelId) -> Option<u64>) {
        self.sessions.handle_timeout(now, |key| heard(key.tunnel));
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
                Event::Down(DownCause::RemoteAdminDown | DownCause::AdminDown) => {
                    self.vote(key, Verdict::Withdrawn, Duration::ZERO);
                }
            }
        }
        outcome.votes.append(&mut self.votes);
        outcome.touched.append(&mut self.touched);
    }

    /// Writes the IP packet around a control packet; its length, or 0 where the session is gone.
    pub(super) fn write(&self, key: Key, control: &[u8; LENGTH], out: &mut [u8; MAX_LENGTH]) -> usize {
        let (Some(end), Some(session)) = (self.ends.get(&key), self.sessions.get(&key)) else { return 0 };
        let ports = (datagram::source_port(session.discriminator()), PORT_SINGLE_HOP);
        datagram::write(out, end.local, end.remote, ports, control).unwrap_or(0)
    }

    /// Where a session stands.
    pub(super) fn stats(&self, key: Key) -> Option<BfdStats> {
        let (end, session) = (self.ends.get(&key)?, self.sessions.get(&key)?);
        Some(stats(end.local, end.remote, &session.status(), end.vote))
    }

    fn put(&mut self, key: Key, bfd: &braid_api::Bfd, random: &mut dyn FnMut() -> u32) {
        // The tables refuse what does not fit.
        let Ok(config) = Config::new(bfd.interval, bfd.multiplier) else { return };
        if self.ends.get(&key).is_some_and(|end| (end.local, end.remote) != (bfd.local, bfd.remote)) {
            self.remove(key);
        }
        if let Some(end) = self.ends.get_mut(&key) {
            if let Some(at) = end.leaves.take() {
                self.leaving.remove(&(at, key));
                self.sessions.enable(&key);
            }
            if self.sessions.get(&key).is_some_and(|session| *session.config() != config) {
                self.sessions.configure(&key, config);
            }
        } else if self.sessions.insert(key, config, random).is_ok() {
            let end = End { local: bfd.local, remote: bfd.remote, vote: Verdict::Withdrawn, leaves: None };
            self.ends.insert(key, end);
            self.weigh(key.tunnel, Duration::ZERO);
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

    fn vote(&mut self, key: Key, vote: Verdict, silent: Duration) {
        let Some(end) = self.ends.get_mut(&key) else { return };
        end.vote = vote;
        self.touched.insert(key);
        self.weigh(key.tunnel, silent);
    }

    /// Notes what all sessions of a tunnel say, if it is news.
    fn weigh(&mut self, tunnel: TunnelId, silent: Duration) {
        let votes = [false, true].map(|v6| self.ends.get(&Key { tunnel, v6 }).map(|end| end.vote));
        let any = |verdict: Verdict| votes.contains(&Some(verdict));
        let verdict = if any(Verdict::Down) {
            Verdict::Down
        } else if any(Verdict::Up) {
            Verdict::Up
        } else {
            Verdict::Withdrawn
        };
        let before = match verdict {
            Verdict::Withdrawn => self.told.remove(&tunnel),
            Verdict::Up | Verdict::Down => self.told.insert(tunnel, verdict),
        };
        if before.unwrap_or(Verdict::Withdrawn) != verdict {
            self.votes.push(Vote { tunnel, verdict, silent });
        }
    }
}

/// Where a session stands, in the words of the boundary.
pub(super) fn stats(local: IpAddr, remote: IpAddr, status: &Status, vote: Verdict) -> BfdStats {
    BfdStats {
        local,
        remote,
        state: state(status.state),
        remote_state: state(status.remote_state),
        diagnostic: status.diagnostic.code(),
        remote_diagnostic: status.remote_diagnostic.code(),
        interval: status.tx_interval,
        detection: status.detection_time,
        multiplier: status.multiplier,
        vote,
    }
}

fn state(state: State) -> BfdState {
    match state {
        State::AdminDown => BfdState::AdminDown,
        State::Down => BfdState::Down,
        State::Init => BfdState::Init,
        State::Up => BfdState::Up,
    }
}

#[cfg(test)]
#[path = "bfd_tests.rs"]
mod tests;

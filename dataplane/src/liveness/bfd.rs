//! The BFD sessions of all tunnels, and what they say of them. No I/O, no clock, no randomness of its own.
//!
//! A tunnel has one session for each family at most; one that is down takes it out, all that vote must agree
//! that it is up.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use braid_api::{BfdState, BfdStats, TunnelId, Verdict};
use braid_bfd::{
    Config, Discard, State, Status, Watch,
    datagram::{self, MAX_LENGTH, PORT_SINGLE_HOP},
    packet::LENGTH,
};

use super::voters::{self, Voters};
use crate::{forward::BfdPacket, tables::MAX_TUNNELS};

/// Which session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) tunnel: TunnelId,
    pub(super) v6: bool,
}

/// What is to be done for the sessions of tunnels.
pub(super) type Outcome = voters::Outcome<Key, Vote>;

/// What the sessions of a tunnel say of it from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Vote {
    pub(super) tunnel: TunnelId,
    pub(super) verdict: Verdict,
    /// `Down`: since the last sign of life; zero if the peer said it.
    pub(super) silent: Duration,
}

/// Addresses of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Ends {
    local: IpAddr,
    remote: IpAddr,
}

/// All sessions.
pub(super) struct Bfd {
    voters: Voters<Key, Ends>,
    /// What those that have a vote said last.
    said: Said,
}

/// What sessions that have a vote say.
#[derive(Default)]
struct Said(BTreeMap<Key, Verdict>);

impl Bfd {
    pub(super) fn new() -> Self {
        Bfd { voters: Voters::new(2 * MAX_TUNNELS), said: Said::default() }
    }

    /// When [`Bfd::handle_timeout`] and [`Bfd::drain`] want to be called, in monotonic nanoseconds; 0 if something
    /// waits to be drained.
    pub(super) fn due(&self) -> u64 {
        self.voters.due()
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
            let Some(bfd) = wanted.iter().find(|bfd| bfd.local.is_ipv6() == v6) else {
                self.voters.leave(key, now);
                continue;
            };
            // The tables refuse what does not fit.
            let Ok(config) = Config::new(bfd.interval, bfd.multiplier) else { continue };
            let ends = Ends { local: bfd.local, remote: bfd.remote };
            self.voters.put(key, ends, config, |before, ends| before != ends, random);
        }
    }

    /// The tunnel is gone, and nothing can be said through it any more, nor of it.
    pub(super) fn forget(&mut self, tunnel: TunnelId) {
        for v6 in [false, true] {
            let key = Key { tunnel, v6 };
            self.voters.remove(key);
            self.said.0.remove(&key);
        }
    }

    /// A packet that came out of a tunnel, or why it was discarded.
    pub(super) fn handle_packet(&mut self, now: u64, packet: &BfdPacket) -> Result<(), Discard> {
        let key = Key { tunnel: packet.tunnel, v6: packet.v6 };
        self.voters.handle_payload(now, key, packet.ttl, packet.payload())
    }

    /// Does what is due. `watch` tells what is known of a tunnel beside its BFD.
    pub(super) fn handle_timeout(&mut self, now: u64, watch: impl Fn(TunnelId) -> Watch) {
        self.voters.handle_timeout(now, |key| watch(key.tunnel));
    }

    /// Puts into `outcome` what is to be done now.
    pub(super) fn drain(&mut self, now: u64, random: &mut dyn FnMut() -> u32, outcome: &mut Outcome) {
        self.voters.drain(now, random, outcome, |vote| self.said.count(vote));
    }

    /// Writes the IP packet around a control packet; its length, or 0 where the session is gone.
    pub(super) fn write(&self, key: Key, control: &[u8; LENGTH], out: &mut [u8; MAX_LENGTH]) -> usize {
        let Some((end, session)) = self.voters.get(&key) else { return 0 };
        let ports = (datagram::source_port(session.discriminator()), PORT_SINGLE_HOP);
        datagram::write(out, end.info.local, end.info.remote, ports, control).unwrap_or(0)
    }

    /// Where a session stands.
    pub(super) fn stats(&self, key: Key) -> Option<BfdStats> {
        let (end, session) = self.voters.get(&key)?;
        Some(stats(end.info.local, end.info.remote, &session.status(), end.vote))
    }
}

impl Said {
    /// What all sessions of a tunnel say after this vote, if it is news.
    fn count(&mut self, (key, vote, silent): voters::Vote<Key>) -> Option<Vote> {
        let before = self.of(key.tunnel);
        match vote {
            Verdict::Withdrawn => self.0.remove(&key),
            Verdict::Up | Verdict::Down => self.0.insert(key, vote),
        };
        let verdict = self.of(key.tunnel);
        (verdict != before).then_some(Vote { tunnel: key.tunnel, verdict, silent })
    }

    fn of(&self, tunnel: TunnelId) -> Verdict {
        let votes = [false, true].map(|v6| self.0.get(&Key { tunnel, v6 }).copied());
        let any = |verdict| votes.contains(&Some(verdict));
        if any(Verdict::Down) {
            Verdict::Down
        } else if any(Verdict::Up) {
            Verdict::Up
        } else {
            Verdict::Withdrawn
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

//! One session: state, timers, poll sequences (RFC 5880 section 6.8).
//!
//! Invariants: `sent` and `last_received` and the intervals decide all deadlines, so that a change of any
//! interval needs no timer to be moved. `advertised` is what packets say, `effective` what we count with; they
//! differ only while the session is up and a poll sequence runs (section 6.8.3).

use std::{
    collections::VecDeque,
    num::{NonZeroU8, NonZeroU32},
    time::Duration,
};

use crate::{
    Nanos,
    config::{Config, Role},
    packet::{Diagnostic, Discard, LENGTH, Packet},
    state::{Input, State, next},
};

/// While not up, packets are at least this far apart, in microseconds (RFC 5880 section 6.8.3).
const SLOW: u32 = 1_000_000;
/// At most so much longer is a peer waited for while somebody reads and does not come to an end.
const WHILE_READ: Nanos = 10_000_000;
/// At most so much longer, and not longer than a detection time, while nobody reads.
const WHILE_UNREAD: Nanos = 100_000_000;
/// Events kept for a caller that does not drain.
const EVENTS: usize = 8;

/// What the session tells its user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Both ends hear each other.
    Up,
    /// It was up and is no longer.
    Down(DownCause),
}

/// Why a session went down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DownCause {
    /// Nothing was heard for the detection time.
    Expired {
        /// For how long nothing was heard.
        silent: Duration,
    },
    /// The peer said that it is down.
    Signaled {
        /// The peer's reason.
        diagnostic: Diagnostic,
    },
    /// The peer's user disabled the session: no verdict on the path (RFC 5882 section 4.2).
    RemoteAdminDown,
    /// Our user disabled it: likewise no verdict.
    AdminDown,
}

/// Packets of a path wait to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unread {
    /// All that came before this has been read.
    pub since: Nanos,
    /// When somebody last began to read.
    pub read_at: Nanos,
}

impl Unread {
    /// Whether something is still unread is asked again after this, in nanoseconds.
    pub const ASK_AGAIN: Nanos = 1_000_000;

    /// How much longer than until `silent_until` a peer is waited for at most, in nanoseconds.
    pub fn patience(self, silent_until: Nanos, detection_time: Nanos) -> Nanos {
        if self.since >= silent_until {
            0
        } else if self.read_at >= silent_until {
            WHILE_READ
        } else {
            detection_time.min(WHILE_UNREAD)
        }
    }
}

/// What can be said of a session at a glance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Our state.
    pub state: State,
    /// Why it last changed for the worse.
    pub diagnostic: Diagnostic,
    /// What the peer last said of itself.
    pub remote_state: State,
    /// And why.
    pub remote_diagnostic: Diagnostic,
    /// At what interval we send, before jitter.
    pub tx_interval: Duration,
    /// After what silence the session goes down.
    pub detection_time: Duration,
    /// Our detect multiplier.
    pub multiplier: u8,
    /// The peer's.
    pub remote_multiplier: u8,
    /// Our name for the session.
    pub discriminator: u32,
    /// The peer's; zero if unknown.
    pub remote_discriminator: u32,
    /// Whether the peer's BFD survives its control plane.
    pub remote_control_plane_independent: bool,
    /// Control packets sent.
    pub sent: u64,
    /// Control packets accepted.
    pub received: u64,
}

/// What the peer last said. The initial values are those of RFC 5880 section 6.8.1.
#[derive(Clone, Copy, Debug)]
struct Remote {
    state: State,
    diagnostic: Diagnostic,
    discriminator: u32,
    multiplier: NonZeroU8,
    desired_min_tx: u32,
    required_min_rx: u32,
    demand: bool,
    control_plane_independent: bool,
}

const UNKNOWN: Remote = Remote {
    state: State::Down,
    diagnostic: Diagnostic::NONE,
    discriminator: 0,
    multiplier: NonZeroU8::MIN,
    desired_min_tx: SLOW,
    required_min_rx: 1,
    demand: false,
    control_plane_independent: false,
};

/// Intervals in microseconds: the shortest at which we send, and at which we can receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Intervals {
    tx: u32,
    rx: u32,
}

/// Where a poll sequence stands (RFC 5880 section 6.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Poll {
    /// None runs.
    Idle,
    /// The next packet begins one.
    Wanted,
    /// Packets carry the poll bit.
    Running,
    /// It has ended; the next waits for a packet without the final bit, since otherwise it would be unclear to
    /// which of the two another final bit belongs (section 6.8.3, third choice).
    Settling,
}

/// The last packet that was not only the answer to a poll.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Nanos,
    /// Drawn for the interval that follows.
    jitter: u32,
}

/// A session with one peer.
#[derive(Debug)]
pub struct Session {
    config: Config,
    discriminator: NonZeroU32,
    state: State,
    diagnostic: Diagnostic,
    remote: Remote,
    advertised: Intervals,
    effective: Intervals,
    poll: Poll,
    answer_poll: bool,
    sent: Option<Sent>,
    /// What the peer was last told, without the poll and final bits.
    told: Option<[u8; LENGTH]>,
    /// `None` also once the peer has been forgotten.
    last_received: Option<Nanos>,
    /// The last sign of life, packet or other, of a session that is up.
    life: Nanos,
    /// What is added to the detection time because this machine stood still.
    grace: Nanos,
    /// What is added to it because what has arrived is unread.
    unread: Nanos,
    packets_sent: u64,
    packets_received: u64,
    events: VecDeque<Event>,
}

impl Session {
    /// A session that is down. The discriminator is unique among the gateway's sessions and best random.
    pub fn new(config: Config, discriminator: NonZeroU32) -> Self {
        let intervals = Intervals { tx: config.min_tx_micros().max(SLOW), rx: config.min_rx_micros() };
        Session {
            config,
            discriminator,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            remote: UNKNOWN,
            advertised: intervals,
            effective: intervals,
            poll: Poll::Idle,
            answer_poll: false,
            sent: None,
            told: None,
            last_received: None,
            life: 0,
            grace: 0,
            unread: 0,
            packets_sent: 0,
            packets_received: 0,
            events: VecDeque::new(),
        }
    }

    /// Our state.
    pub fn state(&self) -> State {
        self.state
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Our name for the session.
    pub fn discriminator(&self) -> NonZeroU32 {
        self.discriminator
    }

    /// All that can be said at a glance.
    pub fn status(&self) -> Status {
        Status {
            state: self.state,
            diagnostic: self.diagnostic,
            remote_state: self.remote.state,
            remote_diagnostic: self.remote.diagnostic,
            tx_interval: Duration::from_nanos(self.tx_interval()),
            detection_time: Duration::from_nanos(self.detection_time()),
            multiplier: self.config.multiplier().get(),
            remote_multiplier: self.remote.multiplier.get(),
            discriminator: self.discriminator.get(),
            remote_discriminator: self.remote.discriminator,
            remote_control_plane_independent: self.remote.control_plane_independent,
            sent: self.packets_sent,
            received: self.packets_received,
        }
    }

    /// When [`Session::handle_timeout`] and [`Session::poll_transmit`] want to be called; 0 if something waits
    /// to be sent now.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        let transmit = if self.must_send_now() { Some(0) } else { self.next_periodic() };
        [transmit, self.expires(), self.forgets()].into_iter().flatten().min()
    }

    /// A packet that was found to belong to this session (RFC 5880 section 6.8.6, from there on).
    pub fn handle_packet(&mut self, now: Nanos, ttl: u8, packet: &Packet) -> Result<(), Discard> {
        if !self.config.hops().admit(ttl) {
            return Err(Discard::Ttl);
        }
        // "If the A bit is set and no authentication is in use (bfd.AuthType is zero), the packet MUST be
        // discarded."
        if packet.authenticated {
            return Err(Discard::Authenticated);
        }
        self.remote = Remote {
            state: packet.state,
            diagnostic: packet.diagnostic,
            discriminator: packet.my_discriminator.get(),
            multiplier: packet.multiplier,
            desired_min_tx: packet.desired_min_tx,
            required_min_rx: packet.required_min_rx,
            demand: packet.demand,
            control_plane_independent: packet.control_plane_independent,
        };
        self.last_received = Some(now);
        self.heard(now);
        // "If a Poll Sequence is being transmitted by the local system and the Final (F) bit in the received
        // packet is set, the Poll Sequence MUST be terminated."
        match (self.poll, packet.r#final) {
            (Poll::Running, true) => {
                self.poll = Poll::Settling;
                self.effective = self.advertised;
            }
            (Poll::Settling, false) => {
                self.poll = Poll::Idle;
                self.retime();
            }
            (Poll::Idle | Poll::Wanted | Poll::Settling, true)
            | (Poll::Idle | Poll::Wanted | Poll::Running, false) => {}
        }
        if self.state == State::AdminDown {
            return Err(Discard::AdminDown);
        }
        let cause = match packet.state {
            State::AdminDown => DownCause::RemoteAdminDown,
            State::Down | State::Init | State::Up => DownCause::Signaled { diagnostic: packet.diagnostic },
        };
        self.step(Input::Received(packet.state), cause);
        // "If the Poll (P) bit is set, send a BFD Control packet to the remote system with the Poll (P) bit
        // clear, and the Final (F) bit set."
        self.answer_poll |= packet.poll;
        self.packets_received += 1;
        Ok(())
    }

    /// Does what is due. `heard` is when the path last authenticated any packet from the peer; `unread` is there where
    /// packets wait that may be the peer's.
    ///
    /// The peer is silent only as far as it was listened to: RFC 5880 section 6.8.4 counts from when a packet was
    /// received. What waits may be anybody's, so that it is waited for a short time only.
    pub fn handle_timeout(&mut self, now: Nanos, heard: Option<Nanos>, unread: Option<Unread>) {
        if self.state == State::Up {
            self.heard(heard.unwrap_or(0).min(now));
        }
        if let Some(expires) = self.expires().filter(|expires| *expires <= now) {
            let interval = self.remote_interval();
            let silent_until = expires - self.unread;
            let most = unread.map_or(0, |unread| unread.patience(silent_until, self.detection_time()));
            if now - expires >= interval && self.grace == 0 {
                // Woken so late, it is this machine that stood still: what has arrived meanwhile may be unread.
                // One interval more, and only once.
                self.grace = now - expires + interval;
            } else if self.unread < most {
                self.unread += now - expires + Unread::ASK_AGAIN;
            } else {
                let silent = Duration::from_nanos(now - self.life);
                self.step(Input::Expired, DownCause::Expired { silent });
            }
        }
        if self.forgets().is_some_and(|forgets| forgets <= now) {
            // RFC 5880 section 6.8.1: after a detection time without a packet bfd.RemoteDiscr MUST be zero;
            // section 6.8.18: and bfd.RemoteMinRxInterval SHOULD be 1.
            self.last_received = None;
            self.remote = UNKNOWN;
            self.poll = Poll::Idle;
            self.answer_poll = false;
        }
    }

    /// New settings. While up, they take effect as RFC 5880 section 6.8.3 orders.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
        self.retime();
    }

    /// Disables the session (RFC 5880 section 6.8.16); packets go on to say so.
    pub fn disable(&mut self) {
        self.step(Input::Disable, DownCause::AdminDown);
    }

    /// Enables it again.
    pub fn enable(&mut self) {
        self.step(Input::Enable, DownCause::AdminDown);
    }

    /// The next packet to send, if one is due. `random` is drawn once for each packet that paces the next.
    pub fn poll_transmit(&mut self, now: Nanos, random: &mut dyn FnMut() -> u32) -> Option<[u8; LENGTH]> {
        let content = self.packet();
        if self.answer_poll {
            // RFC 5880 section 6.8.7: "as soon as practicable, without respect to the transmission timer".
            self.answer_poll = false;
            self.told = Some(content.encode());
            self.packets_sent += 1;
            return Some(Packet { r#final: true, ..content }.encode());
        }
        if !self.must_send_now() && self.next_periodic().is_none_or(|at| at > now) {
            return None;
        }
        // RFC 5880 section 6.6: while the peer is in demand mode, whatever is new is told by a poll sequence.
        if self.remote_in_demand_mode() && self.poll == Poll::Idle {
            self.poll = Poll::Wanted;
        }
        if self.poll == Poll::Wanted {
            self.poll = Poll::Running;
        }
        self.sent = Some(Sent { at: now, jitter: random() });
        self.told = Some(content.encode());
        self.packets_sent += 1;
        Some(Packet { poll: self.poll == Poll::Running, ..content }.encode())
    }

    /// What has happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A sign of life.
    fn heard(&mut self, at: Nanos) {
        if at > self.life {
            self.life = at;
            self.grace = 0;
            self.unread = 0;
        }
    }

    fn step(&mut self, input: Input, cause: DownCause) {
        let before = self.state;
        let (state, diagnostic) = next(before, input);
        self.state = state;
        self.diagnostic = diagnostic.unwrap_or(self.diagnostic);
        if state == before {
            return;
        }
        if state == State::Up || before == State::Up {
            if self.events.len() == EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(if state == State::Up { Event::Up } else { Event::Down(cause) });
        }
        self.retime();
    }

    /// Follows the settings and the state with the intervals (RFC 5880 section 6.8.3).
    fn retime(&mut self) {
        // "When bfd.SessionState is not Up, the system MUST set bfd.DesiredMinTxInterval to a value of not less
        // than one second."
        let up = self.state == State::Up;
        let slowest = if up { 0 } else { SLOW };
        let wanted =
            Intervals { tx: self.config.min_tx_micros().max(slowest), rx: self.config.min_rx_micros() };
        if up && self.poll != Poll::Idle {
            // What is said must not change within a poll sequence.
            return;
        }
        let before = self.effective;
        self.effective = wanted;
        if up {
            // "If bfd.DesiredMinTxInterval is increased and bfd.SessionState is Up, the actual transmission
            // interval used MUST NOT change until the Poll Sequence described above has terminated."
            self.effective.tx = wanted.tx.min(before.tx);
            // "If bfd.RequiredMinRxInterval is reduced and bfd.SessionState is Up, the previous value [...] MUST
            // be used when calculating the Detection Time for the remote system until the Poll Sequence
            // described above has terminated."
            self.effective.rx = wanted.rx.max(before.rx);
        }
        if self.advertised != wanted {
            self.advertised = wanted;
            // "If either bfd.DesiredMinTxInterval is changed or bfd.RequiredMinRxInterval is changed, a Poll
            // Sequence MUST be initiated." There is nobody to poll before the peer is known.
            self.poll = if self.remote.discriminator == 0 { Poll::Idle } else { Poll::Wanted };
        }
    }

    fn packet(&self) -> Packet {
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: false,
            r#final: false,
            control_plane_independent: true,
            authenticated: false,
            demand: false,
            multiplier: self.config.multiplier(),
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx: self.advertised.tx,
            required_min_rx: self.advertised.rx,
            required_min_echo_rx: 0,
        }
    }

    /// RFC 5880 section 6.8.7: "a system MUST NOT transmit BFD Control packets if bfd.RemoteDiscr is zero and
    /// the system is taking the Passive role".
    fn silent(&self) -> bool {
        self.config.role() == Role::Passive && self.remote.discriminator == 0
    }

    fn remote_in_demand_mode(&self) -> bool {
        self.remote.demand && self.state == State::Up && self.remote.state == State::Up
    }

    /// Whether the peer is owed an answer, or something that it was not told yet (RFC 5880 section 6.8.7, "in
    /// order to more rapidly communicate a change in state").
    fn must_send_now(&self) -> bool {
        let news = || self.told.is_some_and(|told| told != self.packet().encode());
        // In demand mode news go with a poll sequence, which must not begin yet.
        let held = self.silent() || self.remote_in_demand_mode() && self.poll == Poll::Settling;
        self.answer_poll || !held && news()
    }

    /// When the next periodic packet is due.
    fn next_periodic(&self) -> Option<Nanos> {
        // RFC 5880 section 6.8.7: none while passive and unheard, none if the peer wants none, none while the
        // peer is in demand mode and no poll sequence is being transmitted.
        let polling = matches!(self.poll, Poll::Wanted | Poll::Running);
        if self.silent() || self.remote.required_min_rx == 0 || self.remote_in_demand_mode() && !polling {
            return None;
        }
        let Some(Sent { at, jitter }) = self.sent else { return Some(0) };
        let interval = self.tx_interval();
        Some(at + interval - reduction(interval, jitter))
    }

    /// RFC 5880 section 6.8.7: the larger of bfd.DesiredMinTxInterval and bfd.RemoteMinRxInterval.
    fn tx_interval(&self) -> Nanos {
        nanos(self.effective.tx.max(self.remote.required_min_rx))
    }

    /// At what interval the peer sends: the greater of bfd.RequiredMinRxInterval and the last received Desired
    /// Min TX Interval.
    fn remote_interval(&self) -> Nanos {
        nanos(self.effective.rx.max(self.remote.desired_min_tx))
    }

    /// RFC 5880 section 6.8.4.
    fn detection_time(&self) -> Nanos {
        u64::from(self.remote.multiplier.get()) * self.remote_interval()
    }

    /// When the session goes down unless it is heard.
    fn expires(&self) -> Option<Nanos> {
        match self.state {
            State::Init | State::Up => Some(self.life + self.detection_time() + self.grace + self.unread),
            State::AdminDown | State::Down => None,
        }
    }

    /// When the peer is forgotten unless it is heard.
    fn forgets(&self) -> Option<Nanos> {
        match self.state {
            State::Init | State::Up => None,
            State::AdminDown | State::Down => self.last_received.map(|last| last + self.detection_time()),
        }
    }
}

fn nanos(micros: u32) -> Nanos {
    u64::from(micros) * 1000
}

/// How much of the interval is left out: RFC 5880 section 6.8.7, "the interval MUST be reduced by a random value
/// of 0 to 25%", and with a detect multiplier of 1 by at least 10 %. That serves every multiplier: a packet less
/// often comes as late as it may.
fn reduction(interval: Nanos, random: u32) -> Nanos {
    let per_cent = u128::from(interval) / 100;
    // A u32 of random in 2^32 parts, an interval below 2^42: no overflow in 128 bits.
    let span = (per_cent * 15 * u128::from(random)) >> 32;
    (per_cent * 10 + span) as Nanos
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_its_bounds() {
        let interval = nanos(50_000);
        for random in [0, 1, u32::MAX / 2, u32::MAX] {
            let left = interval - reduction(interval, random);
            assert!((interval * 75 / 100..=interval * 90 / 100).contains(&left), "{random}: {left}");
        }
        assert_eq!(reduction(interval, 0), interval / 10);
        assert!(reduction(interval, u32::MAX) > interval * 249 / 1000);
        assert!(reduction(nanos(u32::MAX), u32::MAX) <= nanos(u32::MAX) / 4);
    }
}

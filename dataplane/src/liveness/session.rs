//! One tunnel's probes: what to do next, and what the silence means. No I/O, no clock.

use std::time::Duration;

use braid_api::{Cause, Probe};
use braid_bfd::Unread;

/// How long a tunnel may send nothing (RFC 3948 section 4): a NAT may forget it after half a minute.
const KEEPALIVE_NANOS: u64 = 20_000_000_000;
/// Silence is measured in looks this far apart, and begins up to one of them before it is seen.
const LOOK_NANOS: u64 = KEEPALIVE_NANOS / 4;
/// Looks at thousands of tunnels fall together on multiples of this: nobody waits for one, and each wakes a
/// thread that goes before all others.
const TOGETHER_NANOS: u64 = 50_000_000;
/// Looks that saw nothing sent, until a keepalive is due.
const QUIET_LOOKS: u8 = 3;
/// For so many detection times probes that were answered before may stay unanswered while the peer is heard:
/// a timer that expires beside authenticated packets is late, but not for ever. Probes and their answers are
/// served before anything is shed, so that no overload looks like this.
const ONE_WAY_DETECTIONS: u32 = 5;
/// Probes sent at once when the peer is said not to be reached: unanswered, they take the tunnel out.
const HASTENED: u8 = 3;
/// So many at most, while other packets are heard: at full load those of before may have waited to be read.
const MOST_HASTENED: u8 = 2 * HASTENED;
/// For so long each of them is waited for, beyond a round trip.
const HASTE_NANOS: u64 = 3_000_000;
/// By how much that judgement is later while something is unread. Not for ever: at full load there is always
/// something, and it may be another tunnel's.
const UNREAD_NANOS: u64 = 10_000_000;
/// Between the beginnings of two such rows of probes; twice as long after each that was answered, since whoever says
/// it was lying.
const HASTE_REST_NANOS: u64 = 1_000_000_000;
const LONGEST_HASTE_REST_NANOS: u64 = 64 * HASTE_REST_NANOS;
/// Probes whose reply can still be told.
const OUTSTANDING: usize = 16;

/// What to do when a session is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// Send a probe with this cookie; and the tunnel may have died.
    Probe {
        /// Its reply brings it back.
        cookie: u64,
        /// Set when the tunnel has just died.
        down: Option<Death>,
    },
    /// The tunnel has died.
    Down(Death),
    /// Send a NAT keepalive.
    Keepalive,
    /// Nothing yet.
    Nothing,
}

/// Why a tunnel is taken for dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Death {
    /// [`Cause::Probe`] or [`Cause::OneWay`].
    pub(super) cause: Cause,
    /// Since it was last heard; one-way: since a probe was last answered.
    pub(super) silent: Duration,
}

/// What a reply tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    /// Of the probe that it answers.
    pub(super) round_trip: Duration,
    /// Smoothed.
    pub(super) latency: Duration,
    /// The tunnel was not known to be alive.
    pub(super) up: bool,
}

/// The probes of one tunnel.
#[derive(Debug)]
pub(super) struct Session {
    probe: Option<Probe>,
    keepalive: bool,
    next_probe: u64,
    next_look: u64,
    quiet_looks: u8,
    sent_packets: u64,
    sequence: u64,
    outstanding: [(u64, u64); OUTSTANDING],
    /// When the last reply came; `None` before the first: then silence means nothing.
    replied: Option<u64>,
    /// Probes sent since then.
    unanswered: u32,
    /// When a packet or a reply was last heard, as far as this session knows.
    life: u64,
    /// What is added to the detection time because nobody listened, in nanoseconds: this thread stood still.
    grace: u64,
    /// And because what has arrived is unread.
    unread: u64,
    /// Until when either is counted.
    counted: u64,
    up: bool,
    smoothed: Option<u64>,
    haste: Option<Haste>,
    /// Not before this.
    next_haste: u64,
    haste_rest: u64,
}

/// Probes in a row.
#[derive(Clone, Copy, Debug)]
struct Haste {
    sent: u8,
    /// For each, in nanoseconds.
    wait: u64,
    /// Its end was put off once already.
    put_off: bool,
}

impl Session {
    pub(super) fn new(now: u64) -> Self {
        Session {
            probe: None,
            keepalive: false,
            next_probe: u64::MAX,
            next_look: u64::MAX,
            quiet_looks: 0,
            sent_packets: 0,
            sequence: 0,
            outstanding: [(0, 0); OUTSTANDING],
            replied: None,
            unanswered: 0,
            life: now,
            grace: 0,
            unread: 0,
            counted: now,
            up: false,
            smoothed: None,
            haste: None,
            next_haste: 0,
            haste_rest: HASTE_REST_NANOS,
        }
    }

    /// New settings; what was heard stays heard. True when the probes end that had a vote.
    pub(super) fn configure(&mut self, probe: Option<Probe>, keepalive: bool, now: u64) -> bool {
        let mut withdrawn = false;
        if self.probe != probe {
            self.probe = probe;
            self.unanswered = 0;
            // A shorter detection time may have passed already, and begins now.
            self.live(now);
            self.next_probe = if probe.is_some() { now } else { u64::MAX };
            if probe.is_none() {
                self.up = false;
                withdrawn = self.replied.take().is_some();
            }
        }
        if self.keepalive != keepalive {
            self.keepalive = keepalive;
            self.quiet_looks = 0;
            self.next_look = if keepalive { look_after(now) } else { u64::MAX };
        }
        withdrawn
    }

    /// When [`Session::turn`] wants to be called, in monotonic nanoseconds.
    pub(super) fn due(&self) -> u64 {
        self.next_probe.min(self.next_look).min(self.dies().unwrap_or(u64::MAX))
    }

    /// When the tunnel dies unless it is heard.
    fn dies(&self) -> Option<u64> {
        let detection = self.detection_time()?;
        (self.up && self.replied.is_some()).then_some(self.life + detection + self.grace + self.unread)
    }

    /// In nanoseconds.
    fn detection_time(&self) -> Option<u64> {
        self.probe.map(|probe| probe.interval.as_nanos() as u64 * u64::from(probe.multiplier))
    }

    /// Whether [`Session::turn`] is about to judge, so that it wants to know what is unread.
    pub(super) fn is_about_to_judge(&self, now: u64) -> bool {
        self.is_about_to_conclude(now) || self.dies().is_some_and(|dies| dies <= now)
    }

    /// Does what is due. `heard` is when the tunnel last authenticated a packet, and asked after `unread`, which is
    /// there where packets wait that may be its peer's; `sent` is how many it has sent in all.
    pub(super) fn turn(&mut self, now: u64, heard: Option<u64>, unread: Option<Unread>, sent: u64) -> Turn {
        let due = self.due();
        // A timer that fires although the tunnel has authenticated a packet is late, not right.
        self.live(heard.unwrap_or(0));
        // Woken late, it is this machine that stood still: probes that were due were not sent, and the peer, which may
        // be on the same machine, may have stood still as well. Who waits for what is unread does so for a time that
        // is bounded, late or not.
        let late = now.saturating_sub(due.max(self.life).max(self.counted));
        if self.unread > 0 {
            self.unread += late;
        } else {
            self.grace += late;
        }
        self.counted = now;
        let down =
            self.conclude(now, unread).or_else(|| self.verdict(now, unread)).or_else(|| self.one_way(now));
        if now >= self.next_probe
            && let Some(probe) = self.probe
        {
            let interval = (probe.interval.as_nanos() as u64).max(1);
            self.next_probe = match &mut self.haste {
                Some(haste) => {
                    haste.sent += 1;
                    now + haste.wait
                }
                // After a pause the probes that were missed are not made up for.
                None => (self.next_probe + interval).max(now + interval / 2),
            };
            self.sequence += 1;
            self.unanswered = self.unanswered.saturating_add(1);
            self.outstanding[self.sequence as usize % OUTSTANDING] = (self.sequence, now);
            return Turn::Probe { cookie: self.sequence, down };
        }
        if let Some(death) = down {
            return Turn::Down(death);
        }
        if now >= self.next_look {
            self.next_look = look_after(now);
            self.quiet_looks = if self.sent_packets == sent { self.quiet_looks + 1 } else { 0 };
            self.sent_packets = sent;
            if self.quiet_looks >= QUIET_LOOKS {
                self.quiet_looks = 0;
                return Turn::Keepalive;
            }
        }
        Turn::Nothing
    }

    /// Whether probes were answered, and are.
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Sends the next probe at this moment, if there are any.
    pub(super) fn probe_at(&mut self, now: u64) {
        if self.probe.is_some() {
            self.next_probe = now;
        }
    }

    /// The peer is said not to be reached: probes are sent now, and `round_trip` is waited for each.
    pub(super) fn hasten(&mut self, now: u64, round_trip: Duration) {
        // What never answered cannot be missed, and what is down cannot go down.
        if self.up && self.probe.is_some() && self.haste.is_none() && now >= self.next_haste {
            let wait = HASTE_NANOS + round_trip.as_nanos() as u64;
            self.haste = Some(Haste { sent: 0, wait, put_off: false });
            self.next_haste = now + self.haste_rest;
            self.next_probe = now;
        }
    }

    /// By probes in a row.
    fn is_about_to_conclude(&self, now: u64) -> bool {
        self.haste.is_some_and(|haste| haste.sent >= HASTENED) && now >= self.next_probe
    }

    /// Whether the probes in a row were left unanswered, and nothing else was heard while the last was waited for.
    fn conclude(&mut self, now: u64, unread: Option<Unread>) -> Option<Death> {
        if !self.is_about_to_conclude(now) {
            return None;
        }
        let haste = self.haste.as_mut()?;
        if unread.is_some() && !haste.put_off {
            haste.put_off = true;
            self.next_probe = now + UNREAD_NANOS;
            return None;
        }
        let haste = *haste;
        let is_heard = self.life + haste.wait > now;
        if self.up && is_heard && haste.sent < MOST_HASTENED {
            return None;
        }
        self.haste = None;
        if !self.up || is_heard {
            return None;
        }
        self.up = false;
        self.haste_rest = HASTE_REST_NANOS;
        Some(Death { cause: Cause::Probe, silent: Duration::from_nanos(now - self.life) })
    }

    /// Whether it is dead in both directions, or in the one from the peer.
    fn verdict(&mut self, now: u64, unread: Option<Unread>) -> Option<Death> {
        let dies = self.dies().filter(|dies| *dies <= now)?;
        let detection = self.detection_time()?;
        let most = unread.map_or(0, |unread| unread.patience(dies - self.unread, detection));
        if self.unread < most {
            self.unread += Unread::ASK_AGAIN;
            return None;
        }
        self.up = false;
        Some(Death { cause: Cause::Probe, silent: Duration::from_nanos(now - self.life) })
    }

    /// Whether it is dead in the direction to the peer, which is heard. Probes are counted, not time alone: those
    /// that this machine did not send while it stood still were not unanswered.
    fn one_way(&mut self, now: u64) -> Option<Death> {
        let probe = self.probe.filter(|_| self.up)?;
        let silent = Duration::from_nanos(now.saturating_sub(self.replied?));
        let patience = probe.multiplier.saturating_mul(ONE_WAY_DETECTIONS);
        if self.unanswered < patience || silent < probe.interval * patience {
            return None;
        }
        self.up = false;
        Some(Death { cause: Cause::OneWay, silent })
    }

    /// It was heard at this moment.
    fn live(&mut self, at: u64) {
        if at > self.life {
            self.life = at;
            (self.grace, self.unread) = (0, 0);
        }
    }

    /// A probe came back at `now`; `None` when it was answered before, or is forgotten.
    pub(super) fn reply(&mut self, cookie: u64, now: u64) -> Option<Answer> {
        let (sequence, sent) = self.outstanding[cookie as usize % OUTSTANDING];
        if sequence != cookie || sequence == 0 {
            return None;
        }
        self.outstanding[cookie as usize % OUTSTANDING] = (0, 0);
        let sample = now.saturating_sub(sent);
        // RFC 6298 section 2: alpha is 1/8.
        let smoothed = self.smoothed.map_or(sample, |smoothed| smoothed - smoothed / 8 + sample / 8);
        self.smoothed = Some(smoothed);
        self.replied = Some(now);
        self.unanswered = 0;
        if self.haste.take().is_some() {
            self.haste_rest = (self.haste_rest * 2).min(LONGEST_HASTE_REST_NANOS);
            self.next_haste = now + self.haste_rest;
        }
        self.live(now);
        let was = core::mem::replace(&mut self.up, true);
        Some(Answer {
            round_trip: Duration::from_nanos(sample),
            latency: Duration::from_nanos(smoothed),
            up: !was,
        })
    }
}

/// The next look: never later than it would be alone.
fn look_after(now: u64) -> u64 {
    (now + LOOK_NANOS) / TOGETHER_NANOS * TOGETHER_NANOS
}

#[cfg(test)]
mod tests {
    use braid_api::Verdict;

    use super::*;

    const MS: u64 = 1_000_000;
    const PROBE: Probe = Probe { interval: Duration::from_millis(100), multiplier: 3 };

    fn session() -> Session {
        let mut session = Session::new(0);
        session.configure(Some(PROBE), false, 0);
        session
    }

    /// Runs the session up to `until`, answering probes after `delay` where `answers` says so.
    fn play(session: &mut Session, from: u64, until: u64, delay: u64, answers: bool) -> Vec<(u64, Verdict)> {
        let mut verdicts = Vec::new();
        let mut replies = Vec::new();
        loop {
            let next = replies.first().map_or(u64::MAX, |&(at, _)| at).min(session.due().max(from));
            if next > until {
                return verdicts;
            }
            if replies.first().is_some_and(|&(at, _)| at == next) {
                let (at, cookie) = replies.remove(0);
                let answer = session.reply(cookie, at).expect("a probe of its own");
                assert_eq!(answer.round_trip, Duration::from_nanos(delay));
                verdicts.extend(answer.up.then_some((at, Verdict::Up)));
                continue;
            }
            match session.turn(next, None, None, 0) {
                Turn::Probe { cookie, down } => {
                    verdicts.extend(down.map(|_| (next, Verdict::Down)));
                    if answers {
                        replies.push((next + delay, cookie));
                    }
                }
                Turn::Down(_) => verdicts.push((next, Verdict::Down)),
                Turn::Keepalive | Turn::Nothing => {}
            }
        }
    }

    #[test]
    fn a_tunnel_dies_after_the_detection_time_and_comes_back_with_the_next_reply() {
        let mut session = session();
        assert_eq!(play(&mut session, 0, 1000 * MS, MS, true), [(MS, Verdict::Up)]);
        // The last reply came at 1001 ms at most; the detection time is 300 ms.
        let down = play(&mut session, 1000 * MS, 2000 * MS, MS, false);
        assert_eq!(down.len(), 1);
        assert!((1300 * MS - 100 * MS..=1301 * MS).contains(&down[0].0), "{down:?}");
        let up = play(&mut session, 2000 * MS, 3000 * MS, MS, true);
        assert_eq!(up.len(), 1);
        assert_eq!(up[0].1, Verdict::Up);
    }

    /// Runs it from where a router said that the peer is not reached; when it died.
    fn hasten(
        session: &mut Session,
        begin: u64,
        answers: bool,
        heard: impl Fn(u64) -> Option<u64>,
    ) -> Vec<u64> {
        session.hasten(begin, Duration::from_millis(1));
        let (mut deaths, mut at) = (Vec::new(), begin);
        while at < begin + 50 * MS {
            match session.turn(at, heard(at), None, 0) {
                Turn::Probe { cookie, down } => {
                    deaths.extend(down.map(|_| at - begin));
                    if answers {
                        session.reply(cookie, at + MS);
                    }
                }
                Turn::Down(_) => deaths.push(at - begin),
                Turn::Keepalive | Turn::Nothing => {}
            }
            at = session.due().max(at + 1);
        }
        deaths
    }

    #[test]
    fn what_a_router_says_has_probes_sent_and_their_silence_decides() {
        let healthy = || {
            let mut session = session();
            play(&mut session, 0, 1000 * MS, MS, true);
            session
        };
        let begin = 1010 * MS;
        // Three round trips of 1 ms and 9 ms.
        assert_eq!(hasten(&mut healthy(), begin, false, |_| None), [12 * MS]);
        // It was a lie.
        assert_eq!(hasten(&mut healthy(), begin, true, |_| None), []);
        // What was under way when it was said is heard a moment later; what is heard on and on is one-way at most.
        assert_eq!(hasten(&mut healthy(), begin, false, |_| Some(begin + 2 * MS)), [12 * MS]);
        let backlog = |at: u64| Some(at.min(begin + 13 * MS));
        assert_eq!(hasten(&mut healthy(), begin, false, backlog), [20 * MS]);
        assert_eq!(hasten(&mut healthy(), begin, false, |at| Some(at - MS / 2)), []);
        // Said again and again, it has no more probes sent.
        let mut session = healthy();
        hasten(&mut session, begin, true, |_| None);
        let sent = session.sequence;
        assert_eq!(hasten(&mut session, begin + 60 * MS, true, |_| None), []);
        assert!(session.sequence <= sent + 1, "{} {sent}", session.sequence);
        // And ever fewer: of rows that are asked for each second, ten minutes have one in 64.
        let mut session = healthy();
        let mut rows = 0;
        for second in 2..600 {
            play(&mut session, second * 1000 * MS, second * 1000 * MS + 900 * MS, MS, true);
            let sent = session.sequence;
            hasten(&mut session, second * 1000 * MS + 910 * MS, true, |_| None);
            rows +=
                u32::from(session.next_haste > (second * 1000 + 1500) * MS && session.sequence > sent + 1);
        }
        assert!(rows <= 16, "{rows}");
        // Who never answered is not missed.
        let mut never = Session::new(0);
        never.configure(Some(PROBE), false, 0);
        assert_eq!(hasten(&mut never, begin, false, |_| None), []);
    }

    #[test]
    fn a_judgement_by_probes_in_a_row_is_put_off_once_for_what_is_unread() {
        let mut session = session();
        play(&mut session, 0, 1000 * MS, MS, true);
        let begin = 1010 * MS;
        session.hasten(begin, Duration::from_millis(1));
        for sent in 0..3 {
            assert!(matches!(
                session.turn(begin + 4 * sent * MS, None, None, 0),
                Turn::Probe { down: None, .. }
            ));
        }
        let end = begin + 12 * MS;
        assert!(session.is_about_to_judge(end) && !session.is_about_to_judge(end - 1));
        let unread = Some(Unread { since: 0, read_at: 0 });
        assert_eq!(session.turn(end, None, unread, 0), Turn::Nothing);
        assert_eq!(session.turn(end + MS, None, unread, 0), Turn::Nothing);
        assert!(matches!(session.turn(end + 10 * MS, None, unread, 0), Turn::Probe { down: Some(_), .. }));
    }

    /// When a session dies whose peer was last heard at 901 ms, something being unread all the time, and each turn that
    /// much too late once it has begun to wait.
    fn dies_beside(unread: impl Fn(u64) -> Unread, late: u64) -> u64 {
        let mut session = session();
        play(&mut session, 0, 1000 * MS, MS, true);
        let mut at = session.due();
        loop {
            let unread = session.is_about_to_judge(at).then(|| unread(at));
            if let Turn::Down(_) | Turn::Probe { down: Some(_), .. } = session.turn(at, None, unread, 0) {
                return at;
            }
            at = session.due().max(at) + if session.unread > 0 { late } else { 0 };
        }
    }

    #[test]
    fn silence_counts_as_far_as_somebody_has_read() {
        let begun = |read_at| move |_| Unread { since: 1000 * MS, read_at };
        let none = dies_beside(|at| Unread { since: at, read_at: at }, 0);
        assert_eq!(none, 1201 * MS);
        // Nobody reads: 100 ms more; somebody does, and comes to no end: 10 ms.
        assert_eq!(dies_beside(begun(1000 * MS), 0), 1301 * MS);
        assert_eq!(dies_beside(begun(1201 * MS), 0), 1211 * MS);
        // Not longer where each question comes late.
        assert!(dies_beside(begun(1000 * MS), 7 * MS) <= 1309 * MS);
        assert!(dies_beside(begun(1201 * MS), 7 * MS) <= 1219 * MS);
    }

    #[test]
    fn a_peer_that_never_answers_is_not_dead() {
        let mut session = session();
        assert_eq!(play(&mut session, 0, 5000 * MS, MS, false), []);
    }

    #[test]
    fn probes_that_end_take_their_vote_along_if_they_had_one() {
        let mut answered = session();
        play(&mut answered, 0, 1000 * MS, MS, true);
        assert!(!answered.configure(Some(Probe { multiplier: 5, ..PROBE }), true, 1000 * MS));
        assert!(answered.configure(None, true, 1000 * MS));
        assert!(!answered.configure(None, true, 1000 * MS));
        let mut unanswered = session();
        play(&mut unanswered, 0, 1000 * MS, MS, false);
        assert!(!unanswered.configure(None, true, 1000 * MS));
        // Asked for again, they vote once they are answered.
        answered.configure(Some(PROBE), true, 2000 * MS);
        assert_eq!(play(&mut answered, 2000 * MS, 5000 * MS, MS, false), []);
    }

    #[test]
    fn an_authenticated_packet_is_a_sign_of_life() {
        let mut session = session();
        play(&mut session, 0, 1000 * MS, MS, true);
        let mut at = 1000 * MS;
        for _ in 0..10 {
            at = session.due().max(at);
            let turn = session.turn(at, Some(at - 1), None, 0);
            assert!(!matches!(turn, Turn::Down(_) | Turn::Probe { down: Some(_), .. }), "{turn:?}");
        }
    }

    /// Runs a session whose peer is heard all the time and answers each `one_in`th probe: deaths, and when.
    fn hear(session: &mut Session, from: u64, until: u64, one_in: u64) -> Vec<(u64, Death)> {
        let mut deaths = Vec::new();
        let mut at = session.due().max(from);
        while at <= until {
            match session.turn(at, Some(at - 1), None, 0) {
                Turn::Probe { cookie, down } => {
                    deaths.extend(down.map(|death| (at, death)));
                    if cookie.is_multiple_of(one_in) {
                        session.reply(cookie, at + MS);
                    }
                }
                Turn::Down(death) => deaths.push((at, death)),
                Turn::Keepalive | Turn::Nothing => {}
            }
            at = session.due().max(at);
        }
        deaths
    }

    #[test]
    fn a_peer_that_is_heard_and_answers_nothing_any_more_is_not_reached() {
        let mut session = session();
        play(&mut session, 0, 1000 * MS, MS, true);
        let deaths = hear(&mut session, 1000 * MS, 9000 * MS, u64::MAX);
        let [(at, Death { cause: Cause::OneWay, silent })] = deaths[..] else { panic!("{deaths:?}") };
        // Five times three intervals after the last answer, and until the next probe.
        assert!((2400 * MS..=2700 * MS).contains(&at), "{at}");
        assert!(silent >= Duration::from_millis(1500) && silent <= Duration::from_millis(1700), "{silent:?}");
        let up = play(&mut session, 9000 * MS, 9500 * MS, MS, true);
        assert_eq!(up.len(), 1, "{up:?}");
        assert_eq!(hear(&mut session, 9500 * MS, 10_500 * MS, u64::MAX), []);
    }

    #[test]
    fn a_peer_that_answers_now_and_then_is_reached() {
        let mut session = session();
        play(&mut session, 0, 1000 * MS, MS, true);
        assert_eq!(hear(&mut session, 1000 * MS, 60_000 * MS, 14), []);
    }

    #[test]
    fn probes_that_a_machine_did_not_send_were_not_left_unanswered() {
        let mut session = session();
        play(&mut session, 0, 1000 * MS, MS, true);
        assert_eq!(hear(&mut session, 60_000 * MS, 61_000 * MS, u64::MAX), []);
        assert_eq!(hear(&mut session, 61_000 * MS, 63_000 * MS, u64::MAX).len(), 1);
    }

    #[test]
    fn while_a_machine_stands_still_nobody_is_silent() {
        for answers in [true, false] {
            let mut session = session();
            play(&mut session, 0, 1000 * MS, MS, true);
            // Heard at 901 ms, with a probe due at 1100 ms and its end at 1201 ms. Nothing ran in between, not even the
            // thread that reads the replies, twice in a row.
            for woken in [1240, 1500] {
                let turn = session.turn(woken * MS, None, None, 0);
                assert!(matches!(turn, Turn::Probe { down: None, .. }), "{turn:?}");
            }
            let cookie = session.sequence;
            let late = (1240 - 1100) + (1500 - 1290);
            if answers {
                assert!(!session.reply(cookie, 1501 * MS).unwrap().up);
                assert_eq!(play(&mut session, 1501 * MS, 5000 * MS, MS, true), []);
            } else {
                let down = play(&mut session, 1501 * MS, 5000 * MS, MS, false);
                assert_eq!(down, [((1201 + late) * MS, Verdict::Down)]);
            }
        }
    }

    #[test]
    fn a_standstill_counts_once_whatever_was_due() {
        let mut session = Session::new(0);
        session.configure(Some(PROBE), true, 0);
        play(&mut session, 0, 1000 * MS, MS, true);
        // A probe and a look are due, one after the other.
        let woken = 61_000 * MS;
        for _ in 0..2 {
            let turn = session.turn(woken, None, None, 0);
            assert!(!matches!(turn, Turn::Down(_) | Turn::Probe { down: Some(_), .. }), "{turn:?}");
        }
        let down = play(&mut session, woken, 70_000 * MS, MS, false);
        assert!(down.len() == 1 && down[0].0 <= woken + 300 * MS, "{down:?}");
    }

    #[test]
    fn a_shorter_detection_time_begins_when_it_is_asked_for() {
        let slow = Probe { interval: Duration::from_secs(10), multiplier: 3 };
        let mut session = Session::new(0);
        session.configure(Some(slow), false, 0);
        play(&mut session, 0, 10_001 * MS, MS, true);
        session.configure(Some(PROBE), false, 16_000 * MS);
        let turn = session.turn(16_000 * MS, None, None, 0);
        assert!(matches!(turn, Turn::Probe { down: None, .. }), "{turn:?}");
        assert_eq!(play(&mut session, 16_001 * MS, 20_000 * MS, MS, false), [(16_300 * MS, Verdict::Down)]);
    }

    #[test]
    fn a_machine_that_is_always_late_comes_to_a_verdict() {
        let mut session = session();
        play(&mut session, 0, 1000 * MS, MS, true);
        let late = |n: u64| session.turn((1500 + 250 * n) * MS, None, None, 0);
        let verdicts = (0..8).map(late).filter(|turn| matches!(turn, Turn::Probe { down: Some(_), .. }));
        assert_eq!(verdicts.count(), 1);
    }

    #[test]
    fn a_reply_counts_once_and_only_to_its_probe() {
        let mut session = session();
        let Turn::Probe { cookie, .. } = session.turn(0, None, None, 0) else { panic!("no probe") };
        assert_eq!(session.reply(cookie + 1, MS), None);
        let ms = Duration::from_millis(1);
        assert_eq!(session.reply(cookie, MS), Some(Answer { round_trip: ms, latency: ms, up: true }));
        assert_eq!(session.reply(cookie, 2 * MS), None);
        let Turn::Probe { cookie, .. } = session.turn(100 * MS, None, None, 0) else { panic!("no probe") };
        // RFC 6298 section 2.3: an eighth of what is new.
        let smoothed = ms * 2;
        assert_eq!(
            session.reply(cookie, 109 * MS),
            Some(Answer { round_trip: ms * 9, latency: smoothed, up: false })
        );
    }

    #[test]
    fn looks_at_many_tunnels_fall_together() {
        let due = (0..5000).map(|start| {
            let mut session = Session::new(start * MS);
            session.configure(None, true, start * MS);
            for _ in 0..3 {
                assert!(session.due() > 4900 * MS, "not at once");
                session.turn(session.due() + MS, None, None, 0);
            }
            session.due()
        });
        assert_eq!(due.collect::<std::collections::BTreeSet<_>>().len(), 100);
    }

    #[test]
    fn no_silence_is_longer_than_a_nat_remembers() {
        // The last packet leaves just after a look; before it, there was traffic all the time.
        for last in [1, LOOK_NANOS + 1, 7 * LOOK_NANOS + 1] {
            let mut session = Session::new(0);
            session.configure(None, true, 0);
            let mut sent_at = last;
            for _ in 0..30 {
                let now = session.due();
                let turn = session.turn(now, None, None, now.min(last));
                if now > last {
                    assert!(now - sent_at <= KEEPALIVE_NANOS, "silent from {sent_at} to {now}");
                }
                if turn == Turn::Keepalive {
                    assert!(now > last, "a keepalive beside traffic");
                    sent_at = now;
                }
            }
            assert!(sent_at > last);
        }
    }
}

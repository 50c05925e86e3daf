//! Whether a tunnel may carry traffic: what its signals say, and how long it has to prove itself.
//!
//! Any signal takes a tunnel out; all that have ever been heard must agree before it comes back
//! (a peer that never answers probes does not keep its tunnel down). A tunnel that comes back
//! waits for its hold-down, which doubles with each failure that follows soon after the last.
//! Pure: time is an argument, measured from any fixed instant.

use core::{fmt, time::Duration};

use braid_api::{Cause, RejectReason};

use crate::outer::Blocked;

/// Longest hold-down after repeated failures.
const MAX_HOLD_DOWN: Duration = Duration::from_secs(30);
/// A failure so long after the last one counts as the first.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// Why a tunnel does not carry traffic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// The launcher has not made the kernel's part yet.
    NoPlan,
    /// The forwarding core does not answer.
    NoCore,
    /// The core has not confirmed the SAs yet.
    NotInstalled,
    /// The core refused the tunnel or its SAs.
    Refused(RejectReason),
    /// The keys were used in another life of the core, whose counters are lost.
    KeysUsed,
    /// No peer has been heard on a tunnel that waits for one.
    NoPeer,
    /// IKE has not negotiated SAs yet.
    Negotiating {
        /// The peer has to begin.
        by_peer: bool,
    },
    /// IKE has failed, or has ended the SAs.
    Ike {
        /// One word.
        cause: &'static str,
        /// In words.
        reason: String,
    },
    /// WireGuard has no session.
    NoSession {
        /// The peer has to begin.
        by_peer: bool,
        /// There was one, and handshakes stay unanswered.
        lost: bool,
    },
    /// An SA has no sequence number left (RFC 4303 section 3.3.3).
    Exhausted,
    /// The outer path.
    Outer(Blocked),
    /// A signal of the core's liveness thread.
    Silent {
        /// What spoke.
        cause: Cause,
        /// Between the last sign of life and the verdict.
        silent: Duration,
    },
    /// The BGP neighbor in it was not heard for its hold time, and neither was anything else.
    NeighborSilent {
        /// The hold time.
        hold_time: Duration,
    },
    /// It answers again and has to prove itself.
    HeldDown {
        /// When that is over.
        until: Duration,
        /// Failures in a row.
        failures: u32,
    },
}

impl Obstacle {
    /// Whether the tunnel is on its way up rather than failed.
    pub fn is_passing(&self) -> bool {
        match self {
            Obstacle::NoPlan | Obstacle::NoCore | Obstacle::NotInstalled | Obstacle::NoPeer => true,
            Obstacle::Negotiating { .. } => true,
            Obstacle::NoSession { lost, .. } => !lost,
            Obstacle::Ike { .. } => false,
            Obstacle::Refused(_)
            | Obstacle::KeysUsed
            | Obstacle::Exhausted
            | Obstacle::Outer(_)
            | Obstacle::Silent { .. }
            | Obstacle::NeighborSilent { .. }
            | Obstacle::HeldDown { .. } => false,
        }
    }

    /// One word for counters.
    pub fn cause(&self) -> &'static str {
        match self {
            Obstacle::NoPlan | Obstacle::NotInstalled | Obstacle::Refused(_) => "setup",
            Obstacle::NoCore => "core",
            Obstacle::KeysUsed => "keys",
            Obstacle::NoPeer => "peer",
            Obstacle::Negotiating { .. } => "ike",
            Obstacle::Ike { cause, .. } => cause,
            Obstacle::NoSession { .. } => "handshake",
            Obstacle::Exhausted => "exhausted",
            Obstacle::Outer(_) => "link",
            Obstacle::Silent { cause: Cause::Probe, .. } => "probe",
            Obstacle::Silent { cause: Cause::OneWay, .. } => "one-way",
            Obstacle::Silent { cause: Cause::Bfd, .. } => "bfd",
            Obstacle::Silent { cause: Cause::Link, .. } => "link",
            Obstacle::Silent { cause: Cause::Exhausted, .. } => "exhausted",
            Obstacle::NeighborSilent { .. } => "bgp",
            Obstacle::HeldDown { .. } => "hold-down",
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::NoPlan => f.write_str("device, addresses and sockets are being set up"),
            Obstacle::NoCore => f.write_str("the forwarding core does not answer"),
            Obstacle::NotInstalled => f.write_str("the forwarding core has not confirmed the SAs yet"),
            Obstacle::Refused(reason) => {
                write!(f, "the forwarding core refused it: {}", reject_reason(*reason))
            }
            Obstacle::KeysUsed => f.write_str(
                "manual keys are not reused after the forwarding core restarted; \
                 change the keys or restart braid",
            ),
            Obstacle::NoPeer => f.write_str("no peer has been heard yet"),
            Obstacle::Negotiating { by_peer: false } => f.write_str("keys are being negotiated"),
            Obstacle::Negotiating { by_peer: true } => f.write_str("waits for the peer, which is to begin"),
            Obstacle::Ike { reason, .. } => f.write_str(reason),
            Obstacle::NoSession { lost: true, .. } => f.write_str("the peer no longer answers handshakes"),
            Obstacle::NoSession { by_peer: false, .. } => {
                f.write_str("the peer has not answered a handshake yet")
            }
            Obstacle::NoSession { by_peer: true, .. } => f.write_str("waits for the peer, which is to begin"),
            Obstacle::Exhausted => {
                f.write_str("the SA's sequence numbers are used up; change the keys, or use esn = true")
            }
            Obstacle::Outer(blocked) => blocked.fmt(f),
            Obstacle::Silent { cause, silent } => {
                let what = match cause {
                    Cause::Probe => "no answer to probes",
                    Cause::OneWay => "probes unanswered although the peer is heard (one-way)",
                    Cause::Bfd if silent.is_zero() => {
                        return f.write_str("BFD is down: the peer does not hear us, or begins anew");
                    }
                    Cause::Bfd => "BFD is down: nothing heard",
                    Cause::Link => return f.write_str("the link of its outer path is down"),
                    Cause::Exhausted => "the SA's sequence numbers are used up",
                };
                write!(f, "{what} for {} ms", silent.as_millis())
            }
            Obstacle::NeighborSilent { hold_time } => {
                write!(
                    f,
                    "BGP: neither the neighbor nor anything else was heard for {} s",
                    hold_time.as_secs()
                )
            }
            Obstacle::HeldDown { failures, .. } => {
                write!(f, "it answers again and is watched for a moment ({failures} failures in a row)")
            }
        }
    }
}

fn reject_reason(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::TooManyOps => "too many operations at once",
        RejectReason::StaleEpoch => "operations out of order",
        RejectReason::UnknownTunnel => "unknown tunnel",
        RejectReason::UnknownGroup => "unknown group",
        RejectReason::UnknownSa => "unknown SA",
        RejectReason::IdOutOfRange => "more than it can hold",
        RejectReason::SaIdUsed => "the SA's number was used before",
        RejectReason::OtherBoot => "the SA was made for another life of the core",
        RejectReason::SpiTaken => "spi-in is taken or reserved",
        RejectReason::BadKey => "the key has a wrong length, is weak, or was used before",
        RejectReason::BadReplayWindow => "replay-window is not 64 to 8192",
        RejectReason::InUse => "still in use",
        RejectReason::BadMembers => "a group without usable members",
        RejectReason::BadName => "the name is too long or taken",
        RejectReason::NoSocket => "there is no socket for the local address",
        RejectReason::BadMtu => "the path MTU leaves no room for a packet",
        RejectReason::BadProbe => "probes without an inside peer",
        RejectReason::BadBfd => "a BFD session that cannot be",
        RejectReason::StashFull => "the stash is full",
        RejectReason::OtherProtocol => "its keys are of another protocol",
        RejectReason::PeerTaken => "another tunnel has this peer",
    }
}

/// A signal that may take a tunnel out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Signal {
    /// It has no vote yet.
    #[default]
    Unheard,
    Up,
    Down {
        /// What spoke.
        cause: Cause,
        silent: Duration,
    },
}

/// The signals of one tunnel and its record of failures.
#[derive(Clone, Debug)]
pub struct Health {
    hold_down: Duration,
    blocked: Option<Blocked>,
    /// The core's view of the link, which comes before ours and is the only one of a short loss.
    link: Signal,
    probe: Signal,
    bfd: Signal,
    /// The hold time of a BGP neighbor that fell silent.
    neighbor: Option<Duration>,
    exhausted: bool,
    /// BGP alone was against it at the last look.
    by_neighbor: bool,
    /// The core's view of the link alone is against it since the signals agreed last.
    by_link: bool,
    /// Whether the signals agreed at the last look.
    agreed: bool,
    failures: u32,
    last_failure: Option<Duration>,
    held_until: Option<Duration>,
    /// [`Self::held_until`] before the last failure.
    held_before: Option<Duration>,
}

impl Health {
    /// A tunnel of which nothing is known: no signal has a vote.
    pub fn new(hold_down: Duration) -> Self {
        Health {
            hold_down,
            blocked: None,
            link: Signal::Unheard,
            probe: Signal::Unheard,
            bfd: Signal::Unheard,
            neighbor: None,
            exhausted: false,
            by_neighbor: false,
            by_link: false,
            agreed: true,
            failures: 0,
            last_failure: None,
            held_until: None,
            held_before: None,
        }
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// When [`Health::obstacle`] changes without a signal.
    pub fn deadline(&self) -> Option<Duration> {
        self.held_until
    }

    /// What the signals have against carrying traffic.
    pub fn obstacle(&self, now: Duration) -> Option<Obstacle> {
        if let Some(objection) = self.objection() {
            return Some(objection);
        }
        let until = self.held_until.filter(|until| *until > now)?;
        Some(Obstacle::HeldDown { until, failures: self.failures })
    }

    /// What blocks the outer path.
    pub fn blocked(&self) -> Option<Obstacle> {
        self.blocked.clone().map(Obstacle::Outer)
    }

    /// A reload changed the base of the hold-down.
    pub fn set_hold_down(&mut self, hold_down: Duration) {
        self.hold_down = hold_down;
    }

    /// The outer path is free or blocked.
    pub fn handle_outer(&mut self, blocked: Option<Blocked>, now: Duration) {
        self.blocked = blocked;
        self.weigh(now);
    }

    /// The core's liveness thread has spoken; `silent` counts for a verdict of down.
    pub fn handle_liveness(&mut self, up: bool, cause: Cause, silent: Duration, now: Duration) {
        let signal = if up { Signal::Up } else { Signal::Down { cause, silent } };
        match cause {
            Cause::Probe | Cause::OneWay => self.probe = signal,
            Cause::Bfd => self.bfd = signal,
            Cause::Link => self.link = signal,
            Cause::Exhausted => self.exhausted = !up,
        }
        self.weigh(now);
    }

    /// For this hold time neither the BGP neighbor in the tunnel nor anything else was heard, or it was.
    pub fn handle_neighbor(&mut self, silent: Option<Duration>, now: Duration) {
        self.neighbor = silent;
        self.weigh(now);
    }

    /// A signal has no vote any more.
    pub fn handle_withdrawn(&mut self, cause: Cause, now: Duration) {
        match cause {
            Cause::Probe | Cause::OneWay => self.probe = Signal::Unheard,
            Cause::Bfd => self.bfd = Signal::Unheard,
            Cause::Link => self.link = Signal::Unheard,
            Cause::Exhausted => self.exhausted = false,
        }
        let by_link = self.by_link;
        self.weigh(now);
        // It leaves by another link, which has not failed.
        if cause == Cause::Link && by_link && self.agreed {
            self.held_until = self.held_before;
        }
    }

    /// A connection to the core begins, which may have spoken of the link when nobody listened. It does so again where
    /// the link is lost and the tunnel is offered.
    pub fn handle_hello(&mut self, now: Duration) {
        self.link = Signal::Unheard;
        self.weigh(now);
    }

    /// The core is another one: what the last one had heard is forgotten.
    pub fn handle_new_core(&mut self, now: Duration) {
        for signal in [&mut self.link, &mut self.probe, &mut self.bfd] {
            *signal = Signal::Unheard;
        }
        self.exhausted = false;
        self.weigh(now);
    }

    /// The tunnel has other SAs now.
    pub fn handle_new_keys(&mut self, now: Duration) {
        self.exhausted = false;
        self.weigh(now);
    }

    /// A signal that was heard says down.
    pub fn is_silent(&self) -> bool {
        matches!(self.probe, Signal::Down { .. }) || matches!(self.bfd, Signal::Down { .. })
    }

    fn objection(&self) -> Option<Obstacle> {
        if self.exhausted {
            return Some(Obstacle::Exhausted);
        }
        if let Some(blocked) = &self.blocked {
            return Some(Obstacle::Outer(blocked.clone()));
        }
        let down = [self.link, self.bfd, self.probe].into_iter().find_map(|signal| match signal {
            Signal::Down { cause, silent } => Some(Obstacle::Silent { cause, silent }),
            Signal::Unheard | Signal::Up => None,
        });
        down.or_else(|| self.neighbor.map(|hold_time| Obstacle::NeighborSilent { hold_time }))
    }

    fn weigh(&mut self, now: Duration) {
        let objection = self.objection();
        let agree = objection.is_none();
        match (self.agreed, agree) {
            (true, false) => {
                let again = self.last_failure.is_some_and(|last| now.saturating_sub(last) < FORGIVEN_AFTER);
                self.failures = if again { self.failures.saturating_add(1) } else { 1 };
                self.last_failure = Some(now);
                self.held_before = self.held_until.take();
            }
            // It could not flap faster than in the hold time.
            (false, true) => self.held_until = (!self.by_neighbor).then(|| now + self.hold()),
            (true, true) | (false, false) => {}
        }
        let link_is_down = matches!(self.link, Signal::Down { .. });
        let others = self.exhausted || self.blocked.is_some() || self.is_silent() || self.neighbor.is_some();
        self.by_link = (self.agreed || self.by_link) && link_is_down && !others;
        self.by_neighbor = matches!(objection, Some(Obstacle::NeighborSilent { .. }));
        self.agreed = agree;
    }

    fn hold(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        self.hold_down.saturating_mul(1 << doublings).min(MAX_HOLD_DOWN.max(self.hold_down))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(250);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn link_down() -> Option<Blocked> {
        Some(Blocked::LinkDown { name: "eth1".to_owned() })
    }

    #[test]
    fn a_peer_that_never_answers_does_not_keep_its_tunnel_down() {
        let health = Health::new(BASE);
        assert_eq!(health.obstacle(ms(0)), None);
    }

    #[test]
    fn any_signal_takes_it_out_and_all_must_agree() {
        let mut health = Health::new(BASE);
        health.handle_liveness(true, Cause::Probe, ms(0), ms(1));
        health.handle_outer(link_down(), ms(10));
        health.handle_liveness(false, Cause::Probe, ms(900), ms(910));
        assert_eq!(health.obstacle(ms(911)).unwrap().cause(), "link");
        health.handle_outer(None, ms(2000));
        assert_eq!(health.obstacle(ms(9000)).unwrap().cause(), "probe");
        health.handle_liveness(true, Cause::Probe, ms(0), ms(9000));
        assert_eq!(health.obstacle(ms(9001)).unwrap().cause(), "hold-down");
        assert_eq!(health.deadline(), Some(ms(9000) + BASE));
        assert_eq!(health.obstacle(ms(9000) + BASE), None);
    }

    #[test]
    fn a_way_that_is_dead_in_one_direction_is_told_so_until_a_probe_is_answered() {
        let mut health = Health::new(BASE);
        health.handle_liveness(true, Cause::Probe, ms(0), ms(1));
        health.handle_liveness(false, Cause::OneWay, ms(4500), ms(5000));
        let obstacle = health.obstacle(ms(5001)).unwrap();
        assert_eq!(obstacle.cause(), "one-way");
        assert_eq!(
            obstacle.to_string(),
            "probes unanswered although the peer is heard (one-way) for 4500 ms"
        );
        health.handle_liveness(true, Cause::Probe, ms(0), ms(6000));
        assert_eq!(health.obstacle(ms(6000) + BASE), None);
    }

    #[test]
    fn probes_and_bfd_must_agree_and_a_signal_that_is_withdrawn_has_no_say() {
        let mut health = Health::new(BASE);
        for cause in [Cause::Probe, Cause::Bfd] {
            health.handle_liveness(true, cause, ms(0), ms(1));
        }
        health.handle_liveness(false, Cause::Bfd, ms(150), ms(200));
        let obstacle = health.obstacle(ms(201)).unwrap();
        assert_eq!(obstacle.cause(), "bfd");
        assert_eq!(obstacle.to_string(), "BFD is down: nothing heard for 150 ms");
        health.handle_liveness(false, Cause::Probe, ms(900), ms(1000));
        health.handle_liveness(true, Cause::Bfd, ms(0), ms(2000));
        assert_eq!(health.obstacle(ms(9000)).unwrap().cause(), "probe");
        health.handle_liveness(false, Cause::Bfd, ms(0), ms(9000));
        health.handle_liveness(true, Cause::Probe, ms(0), ms(9000));
        let obstacle = health.obstacle(ms(9001)).unwrap();
        assert_eq!(obstacle.to_string(), "BFD is down: the peer does not hear us, or begins anew");
        health.handle_withdrawn(Cause::Bfd, ms(9500));
        assert_eq!(health.obstacle(ms(9501)).unwrap().cause(), "hold-down");
        assert_eq!(health.obstacle(ms(9500) + 2 * BASE), None);
    }

    #[test]
    fn a_link_that_was_down_for_a_moment_is_held_down_though_nobody_else_saw_it() {
        let mut health = Health::new(BASE);
        health.handle_liveness(true, Cause::Probe, ms(0), ms(1));
        health.handle_liveness(false, Cause::Link, ms(0), ms(10));
        let obstacle = health.obstacle(ms(10)).unwrap();
        assert_eq!(obstacle.cause(), "link");
        assert_eq!(obstacle.to_string(), "the link of its outer path is down");
        // A look at the link knows its name.
        health.handle_outer(link_down(), ms(11));
        assert_eq!(health.obstacle(ms(11)).unwrap().to_string(), "link eth1 is down");
        health.handle_outer(None, ms(12));
        assert_eq!(health.obstacle(ms(12)).unwrap().cause(), "link");
        health.handle_liveness(true, Cause::Link, ms(0), ms(13));
        assert_eq!(health.obstacle(ms(14)).unwrap().cause(), "hold-down");
        assert_eq!((health.failures(), health.obstacle(ms(13) + BASE)), (1, None));
    }

    #[test]
    fn a_tunnel_that_leaves_by_another_link_does_not_wait_for_the_one_that_was_lost() {
        let mut health = Health::new(BASE);
        let lost_and_left = |health: &mut Health, now| {
            health.handle_liveness(false, Cause::Link, ms(0), now);
            assert_eq!(health.obstacle(now).unwrap().cause(), "link");
            health.handle_withdrawn(Cause::Link, now + ms(1));
        };
        lost_and_left(&mut health, ms(10));
        assert_eq!((health.obstacle(ms(11)), health.failures()), (None, 1));
        // It goes on waiting for what it waited for before.
        health.handle_liveness(false, Cause::Probe, ms(900), ms(1000));
        health.handle_liveness(true, Cause::Probe, ms(0), ms(2000));
        lost_and_left(&mut health, ms(2010));
        assert_eq!(health.deadline(), Some(ms(2000) + 2 * BASE));
        assert_eq!(health.obstacle(ms(2000) + 2 * BASE), None);
        // What spoke as well has failed with its own right.
        health.handle_liveness(false, Cause::Link, ms(0), ms(9000));
        health.handle_liveness(false, Cause::Probe, ms(900), ms(9900));
        health.handle_liveness(true, Cause::Probe, ms(0), ms(9910));
        health.handle_withdrawn(Cause::Link, ms(9911));
        assert_eq!(health.obstacle(ms(9912)).unwrap().cause(), "hold-down");
    }

    #[test]
    fn of_a_link_nothing_is_known_after_a_hello() {
        let mut health = Health::new(BASE);
        health.handle_liveness(false, Cause::Link, ms(0), ms(10));
        health.handle_hello(ms(20));
        assert_eq!(health.obstacle(ms(21)).unwrap().cause(), "hold-down");
        assert_eq!(health.obstacle(ms(20) + BASE), None);
    }

    #[test]
    fn the_hold_down_doubles_and_is_bounded_and_forgiven() {
        let mut health = Health::new(BASE);
        let mut now = ms(0);
        let mut holds = Vec::new();
        for _ in 0..12 {
            health.handle_liveness(false, Cause::Probe, ms(900), now);
            now += ms(10);
            health.handle_liveness(true, Cause::Probe, ms(0), now);
            holds.push(health.deadline().unwrap() - now);
            now = health.deadline().unwrap();
            assert_eq!(health.obstacle(now), None);
        }
        assert_eq!(holds[..4], [BASE, BASE * 2, BASE * 4, BASE * 8]);
        assert_eq!(holds[11], MAX_HOLD_DOWN);
        now += FORGIVEN_AFTER;
        health.handle_liveness(false, Cause::Probe, ms(900), now);
        health.handle_liveness(true, Cause::Probe, ms(0), now);
        assert_eq!(health.deadline().unwrap() - now, BASE);
    }

    #[test]
    fn a_new_core_has_heard_nothing() {
        let mut health = Health::new(BASE);
        health.handle_liveness(true, Cause::Probe, ms(0), ms(0));
        health.handle_liveness(false, Cause::Probe, ms(900), ms(1));
        health.handle_new_core(ms(5));
        assert_eq!(health.obstacle(ms(5) + BASE), None);
    }
}

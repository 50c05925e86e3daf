//! Verdicts on their way to control, of which none may be lost: a tunnel that the core has masked stays so until
//! control knows.
//!
//! What finds the queue full waits here, for each tunnel and signal the last fall and what followed it, so that no more
//! waits than there are tunnels.

use std::collections::BTreeMap;

use braid_api::{Cause, Event, TunnelId, Verdict};

use crate::worker::{Notice, Notices};

/// The last verdict of down, and the one after it.
type Waiting = [Option<Event>; 2];

/// The way to control.
pub(super) struct Reports {
    notices: Notices,
    waiting: BTreeMap<(TunnelId, Cause), Waiting>,
}

impl Reports {
    pub(super) fn new(notices: Notices) -> Self {
        Reports { notices, waiting: BTreeMap::new() }
    }

    /// Something that is no verdict, and is lost where the queue is full.
    pub(super) fn tell(&self, event: Event) {
        self.notices.send(Notice::Event(event));
    }

    /// Reports an [`Event::Liveness`] of this tunnel and signal, now or as soon as there is room.
    pub(super) fn report(&mut self, tunnel: TunnelId, cause: Cause, verdict: Verdict, event: Event) {
        // That a way is dead in one direction is a verdict of its probes.
        let signal = if cause == Cause::OneWay { Cause::Probe } else { cause };
        let key = (tunnel, signal);
        if !self.waiting.contains_key(&key) && self.notices.send(Notice::Event(event.clone())) {
            return;
        }
        let waiting = self.waiting.entry(key).or_default();
        match verdict {
            Verdict::Down => *waiting = [Some(event), None],
            Verdict::Up | Verdict::Withdrawn => waiting[1] = Some(event),
        }
    }

    /// Sends what waits, as far as there is room; says whether all of it has gone.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(mut first) = self.waiting.first_entry() {
            for place in first.get_mut() {
                if let Some(event) = place {
                    if !self.notices.send(Notice::Event(event.clone())) {
                        return false;
                    }
                    *place = None;
                }
            }
            first.remove();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        time::Duration,
    };

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    const ROOM: usize = 2;

    fn reports() -> (Reports, mpsc::Receiver<Notice>) {
        let (queue, notices) = mpsc::sync_channel(ROOM);
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        (Reports::new(Notices::new(queue, Arc::new(wake))), notices)
    }

    fn report(reports: &mut Reports, tunnel: u32, verdict: Verdict) {
        report_by(Cause::Link, reports, tunnel, verdict);
    }

    fn report_by(cause: Cause, reports: &mut Reports, tunnel: u32, verdict: Verdict) {
        let tunnel = TunnelId(tunnel);
        let silent = Duration::ZERO;
        let event = Event::Liveness { tunnel, verdict, cause, silent, detected: 0, masked: 0 };
        reports.report(tunnel, cause, verdict, event);
    }

    fn heard(notices: &mpsc::Receiver<Notice>) -> Vec<(u32, Verdict)> {
        let told = notices.try_iter().map(|notice| match notice {
            Notice::Event(Event::Liveness { tunnel, verdict, .. }) => (tunnel.0, verdict),
            other => panic!("{other:?}"),
        });
        told.collect()
    }

    #[test]
    fn what_finds_no_room_comes_later_and_in_order() {
        use Verdict::{Down, Up};
        let (mut reports, notices) = reports();
        for tunnel in 0..4 {
            report(&mut reports, tunnel, Down);
        }
        assert_eq!(heard(&notices), [(0, Down), (1, Down)]);
        // There is room again, but what is newer does not overtake.
        report(&mut reports, 2, Up);
        assert!(!reports.flush());
        assert_eq!(heard(&notices), [(2, Down), (2, Up)]);
        assert!(reports.flush());
        assert_eq!(heard(&notices), [(3, Down)]);
    }

    #[test]
    fn verdicts_of_one_signal_by_two_causes_do_not_overtake() {
        use Verdict::{Down, Up};
        let (mut reports, notices) = reports();
        for (cause, tunnel, verdict) in
            [(Cause::Link, 0, Down), (Cause::Link, 1, Down), (Cause::OneWay, 7, Down), (Cause::Probe, 7, Up)]
        {
            report_by(cause, &mut reports, tunnel, verdict);
        }
        assert_eq!(heard(&notices).len(), ROOM);
        assert!(reports.flush());
        assert_eq!(heard(&notices), [(7, Down), (7, Up)]);
    }

    #[test]
    fn of_each_tunnel_the_last_fall_and_what_followed_wait() {
        use Verdict::{Down, Up, Withdrawn};
        let (mut reports, notices) = reports();
        for tunnel in 0..ROOM as u32 {
            report(&mut reports, tunnel, Down);
        }
        for verdict in [Up, Down, Up, Down, Withdrawn, Up].repeat(100) {
            report(&mut reports, 7, verdict);
        }
        report(&mut reports, 8, Up);
        assert_eq!(heard(&notices).len(), ROOM);
        assert!(!reports.flush());
        assert_eq!(heard(&notices), [(7, Down), (7, Up)]);
        assert!(reports.flush());
        assert_eq!(heard(&notices), [(8, Up)]);
    }
}

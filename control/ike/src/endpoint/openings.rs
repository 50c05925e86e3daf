//! How many first requests may be unanswered at once: what the machine and a peer cannot work off before the
//! first retransmission is not begun yet.
//!
//! A place is held until the first answer or the first retransmission, whatever comes first: a peer that is
//! silent keeps none. Who waits is served in the order in which he came; peers that came at the same instant,
//! in the order of their numbers. Each remote address has a line of its own, so that no address takes all
//! places; one that owes an answer gets few until it gives one.
//!
//! Invariant: a line that waits and may have another place stands in `ready` with its first ticket, no other
//! line does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::effect::{IkeSaId, PeerId};
use crate::settings::EndpointSettings;

/// Places of an address that has left a first request unanswered.
const PLACES_OF_SILENT: usize = 4;

/// A place in a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ticket {
    number: u64,
    remote: IpAddr,
}

/// Where the first request of an IKE SA stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opening {
    /// Sent once.
    Fresh,
    /// Sent again.
    Late,
    /// Answered, rightly or not.
    Answered,
    /// Given up.
    Over,
}

/// Peers that are about to be tried.
#[derive(Debug, Default)]
pub(super) struct Openings {
    lines: BTreeMap<IpAddr, Line>,
    ready: BTreeSet<(u64, IpAddr)>,
    /// Unanswered first requests, and whether they hold a place.
    unanswered: BTreeMap<IkeSaId, (IpAddr, bool)>,
    held: usize,
    last: u64,
    /// Somebody is served already.
    is_serving: bool,
}

/// One remote address.
#[derive(Debug, Default)]
struct Line {
    waiting: BTreeMap<u64, PeerId>,
    held: usize,
    unanswered: usize,
    is_silent: bool,
}

impl Openings {
    /// Stands in line.
    pub(super) fn wait(&mut self, settings: &EndpointSettings, peer: PeerId, remote: IpAddr) -> Ticket {
        self.last += 1;
        let number = self.last;
        self.change(settings, remote, |line| {
            line.waiting.insert(number, peer);
        });
        Ticket { number, remote }
    }

    /// Leaves the line.
    pub(super) fn leave(&mut self, settings: &EndpointSettings, ticket: Ticket) {
        self.change(settings, ticket.remote, |line| {
            line.waiting.remove(&ticket.number);
        });
    }

    /// Who goes next; what he opens is to be told by [`Openings::note`] before the next one is asked for.
    pub(super) fn next(&mut self, settings: &EndpointSettings) -> Option<PeerId> {
        if self.held >= settings.max_opening {
            return None;
        }
        let (number, remote) = *self.ready.first()?;
        let mut next = None;
        self.change(settings, remote, |line| next = line.waiting.remove(&number));
        next
    }

    /// Where the first request of an SA to `remote` stands now.
    pub(super) fn note(
        &mut self,
        settings: &EndpointSettings,
        sa: IkeSaId,
        remote: IpAddr,
        opening: Opening,
    ) {
        let before = self.unanswered.get(&sa).copied();
        let (remote, held) = before.unwrap_or((remote, false));
        let holds = match opening {
            // One that was late and begins anew, with a cookie, goes on without a place.
            Opening::Fresh => held || before.is_none(),
            Opening::Late | Opening::Answered | Opening::Over => false,
        };
        let is_unanswered = matches!(opening, Opening::Fresh | Opening::Late);
        if (before.is_none() && !is_unanswered) || before == Some((remote, holds)) && is_unanswered {
            return;
        }
        if is_unanswered {
            self.unanswered.insert(sa, (remote, holds));
        } else {
            self.unanswered.remove(&sa);
        }
        self.held = self.held + usize::from(holds) - usize::from(held);
        self.change(settings, remote, |line| {
            line.held = line.held + usize::from(holds) - usize::from(held);
            line.unanswered = line.unanswered + usize::from(is_unanswered) - usize::from(before.is_some());
            match opening {
                Opening::Late => line.is_silent = true,
                Opening::Answered => line.is_silent = false,
                Opening::Fresh | Opening::Over => {}
            }
        });
    }

    /// True for the outermost of nested calls only; [`Openings::end_serving`] follows.
    pub(super) fn begin_serving(&mut self) -> bool {
        !std::mem::replace(&mut self.is_serving, true)
    }

    pub(super) fn end_serving(&mut self) {
        self.is_serving = false;
    }

    fn change(&mut self, settings: &EndpointSettings, remote: IpAddr, change: impl FnOnce(&mut Line)) {
        let line = self.lines.entry(remote).or_default();
        if let Some(number) = line.first() {
            self.ready.remove(&(number, remote));
        }
        change(line);
        let most = if line.is_silent { PLACES_OF_SILENT } else { settings.max_opening_of_one };
        match line.first() {
            Some(number) if line.held < most => {
                self.ready.insert((number, remote));
            }
            None if line.unanswered == 0 => {
                self.lines.remove(&remote);
            }
            Some(_) | None => {}
        }
    }
}

impl Line {
    fn first(&self) -> Option<u64> {
        self.waiting.first_key_value().map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> EndpointSettings {
        EndpointSettings { max_opening: 8, max_opening_of_one: 6, ..EndpointSettings::default() }
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    /// Lets everybody begin who may; each SA has its peer's number.
    fn serve(openings: &mut Openings, remote: impl Fn(PeerId) -> IpAddr) -> Vec<u32> {
        let mut served = Vec::new();
        while let Some(peer) = openings.next(&settings()) {
            openings.note(&settings(), IkeSaId(peer.0.into()), remote(peer), Opening::Fresh);
            served.push(peer.0);
        }
        served
    }

    fn note(openings: &mut Openings, sa: u64, remote: IpAddr, opening: Opening) {
        openings.note(&settings(), IkeSaId(sa), remote, opening);
    }

    #[test]
    fn one_address_takes_its_share_in_order_and_answers_make_room() {
        let (mut openings, remote) = (Openings::default(), |_| address(1));
        for peer in 0..20 {
            openings.wait(&settings(), PeerId(peer), address(1));
        }
        assert_eq!(serve(&mut openings, remote), [0, 1, 2, 3, 4, 5]);
        note(&mut openings, 3, address(1), Opening::Answered);
        assert_eq!(serve(&mut openings, remote), [6]);
        note(&mut openings, 3, address(1), Opening::Over);
        assert_eq!(serve(&mut openings, remote), [] as [u32; 0], "a place is given back once");
    }

    #[test]
    fn a_silent_address_leaves_the_places_to_others() {
        let mut openings = Openings::default();
        let remote = |peer: PeerId| if peer.0 < 100 { address(1) } else { address(2) };
        for peer in (0..20).chain(100..120) {
            openings.wait(&settings(), PeerId(peer), remote(PeerId(peer)));
        }
        assert_eq!(serve(&mut openings, remote), [0, 1, 2, 3, 4, 5, 100, 101]);
        for late in 0..6 {
            note(&mut openings, late, address(1), Opening::Late);
        }
        assert_eq!(serve(&mut openings, remote), [6, 7, 8, 9, 102, 103], "four of the silent one");
        note(&mut openings, 0, address(1), Opening::Answered);
        note(&mut openings, 102, address(2), Opening::Answered);
        assert_eq!(serve(&mut openings, remote), [10], "it has spoken, and was there before");
    }

    #[test]
    fn who_leaves_is_not_served_and_an_address_without_business_is_forgotten() {
        let (mut openings, remote) = (Openings::default(), |_| address(1));
        let tickets: Vec<_> =
            (0..8).map(|peer| openings.wait(&settings(), PeerId(peer), address(1))).collect();
        openings.leave(&settings(), tickets[0]);
        openings.leave(&settings(), tickets[4]);
        assert_eq!(serve(&mut openings, remote), [1, 2, 3, 5, 6, 7]);
        openings.leave(&settings(), tickets[1]);
        for sa in [1, 2, 3, 5, 6] {
            note(&mut openings, sa, address(1), Opening::Late);
            note(&mut openings, sa, address(1), Opening::Over);
        }
        assert!(!openings.lines.is_empty());
        note(&mut openings, 7, address(1), Opening::Answered);
        assert!(openings.lines.is_empty() && openings.ready.is_empty() && openings.unanswered.is_empty());
        assert_eq!(openings.held, 0);
    }

    #[test]
    fn a_late_request_that_begins_anew_holds_no_place() {
        let mut openings = Openings::default();
        note(&mut openings, 1, address(1), Opening::Fresh);
        note(&mut openings, 1, address(1), Opening::Late);
        note(&mut openings, 1, address(1), Opening::Fresh);
        assert_eq!(openings.held, 0);
        note(&mut openings, 1, address(1), Opening::Over);
        assert!(openings.lines.is_empty());
    }
}

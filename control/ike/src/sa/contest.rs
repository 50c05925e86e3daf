//! Two IKE SAs with one peer, and how it is found out which one is left over.
//!
//! A peer that has lost its memory makes a new SA and answers on the old one no more; two sides that connected
//! at once both answer on both. So the older SA is asked whether the peer still has it, at once and for a short
//! time. Unanswered, it is dropped. Answered, both sides know both and choose alike: the younger of two that
//! one side began, else the one that began with the higher SPIs, whatever it was rekeyed into since. INITIAL_CONTACT needs no question (RFC 7296 section 2.4).
//!
//! Neither can end with none: who drops without asking was told by the maker of the younger SA, who asks on
//! the older, gets no answer and keeps the younger.

use std::time::{Duration, Instant};

use super::{Cx, IkeSa, Upcall, Want};
use crate::wire::IkeSpi;

/// How long the older SA has to show that the peer has it.
const CONTESTED_FOR: Duration = Duration::from_secs(3);

/// A younger SA with the same peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rival {
    began: bool,
    first_spis: (IkeSpi, IkeSpi),
}

/// The question whether this SA is left over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Contest {
    /// The rival's line: it may be rekeyed meanwhile.
    pub(crate) rival: (IkeSpi, IkeSpi),
    /// If the peer has both, this one goes.
    pub(crate) yields: bool,
    pub(crate) until: Instant,
    /// The peer was asked since. What was under way before proves nothing: it may have restarted since then.
    asked: bool,
}

impl IkeSa {
    /// This SA as a rival of older ones.
    pub(crate) fn as_rival(&self) -> Rival {
        Rival { began: self.began, first_spis: self.first_spis() }
    }

    /// By which both sides know its line: a rekey changes nothing of it.
    pub(crate) fn first_spis(&self) -> (IkeSpi, IkeSpi) {
        self.first_spis.unwrap_or((self.spi_i, self.spi_r))
    }

    /// Asks the peer whether it has this SA still.
    pub(crate) fn contest(&mut self, cx: &mut Cx<'_>, rival: Rival) {
        let yields = self.began == rival.began || self.first_spis() < rival.first_spis;
        let until = cx.now + CONTESTED_FOR;
        self.take_contest(cx.now, Some(Contest { rival: rival.first_spis, yields, until, asked: false }));
        self.hurry(cx);
    }

    /// Takes over the question that was asked of the SA that this one replaces.
    pub(crate) fn take_contest(&mut self, now: Instant, contest: Option<Contest>) {
        if let Some(contest) = contest {
            self.contest = Some(Contest { asked: false, ..contest });
            self.want(now, Want::Probe);
        }
    }

    pub(crate) fn note_asked(&mut self) {
        if let Some(contest) = &mut self.contest {
            contest.asked = true;
        }
    }

    /// A probe was answered.
    pub(crate) fn note_alive(&mut self, cx: &mut Cx<'_>) {
        if let Some(contest) = self.contest.take_if(|contest| contest.asked) {
            cx.upcalls.push(Upcall::Contested { sa: self.id, contest, is_alive: true });
        }
    }

    /// The time to answer is over.
    pub(crate) fn end_contest(&mut self, cx: &mut Cx<'_>) {
        if let Some(contest) = self.contest.take_if(|contest| contest.until <= cx.now) {
            cx.upcalls.push(Upcall::Contested { sa: self.id, contest, is_alive: false });
        }
    }
}

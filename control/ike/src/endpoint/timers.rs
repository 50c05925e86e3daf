//! One table of all deadlines; its first entry is the next wake-up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::effect::{IkeSaId, PeerId, TimerKind};

/// Whose deadline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Owner {
    Sa(IkeSaId),
    Peer(PeerId),
}

/// The deadlines, one for each owner.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeSet<(Instant, TimerKind, Owner)>,
    of: BTreeMap<Owner, (Instant, TimerKind)>,
}

impl Timers {
    /// Sets, moves or removes an owner's deadline.
    pub(crate) fn set(&mut self, owner: Owner, deadline: Option<(Instant, TimerKind)>) {
        if let Some((at, kind)) = self.of.remove(&owner) {
            self.due.remove(&(at, kind, owner));
        }
        if let Some((at, kind)) = deadline {
            self.due.insert((at, kind, owner));
            self.of.insert(owner, (at, kind));
        }
    }

    pub(crate) fn next(&self) -> Option<(Instant, TimerKind)> {
        self.due.first().map(|(at, kind, _)| (*at, *kind))
    }

    /// Takes the first owner that is due.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Owner> {
        let (at, kind, owner) = *self.due.first().filter(|(at, ..)| *at <= now)?;
        self.due.remove(&(at, kind, owner));
        self.of.remove(&owner);
        Some(owner)
    }
}

//! A neighbor as a source of routes, and how old they are.
//!
//! A session that ends makes all of its routes old at once, whatever their number: each path says in which session it
//! was last sent. Those that are gone are taken out of the table in portions, and count for nothing until then.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    ops::Bound,
};

use ipnet::IpNet;

use super::{ImportSettings, path::Path};
use crate::update::{Family, Nlri};

/// How old a path is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Age {
    /// Of the session.
    Fresh,
    /// Of an earlier one, and kept (RFC 4724).
    Stale,
    /// Of an earlier one, and gone.
    Dead,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    fresh: usize,
    stale: usize,
    dead: usize,
}

pub(super) struct Source {
    pub(super) settings: ImportSettings,
    pub(super) id: Ipv4Addr,
    pub(super) address: IpAddr,
    /// All that is in the table.
    pub(super) routes: BTreeSet<Nlri>,
    pub(super) accepted: usize,
    pub(super) warned: bool,
    pub(super) left_out: u64,
    /// It is no longer known, and goes with its last route.
    pub(super) removed: bool,
    /// How far the search for dead routes has come.
    cursor: Bound<Nlri>,
    /// Sessions that have ended.
    epoch: u32,
    /// Of each family: what was sent in earlier sessions than this is dead.
    floor: [u32; 2],
    tally: [Tally; 2],
}

impl Source {
    pub(super) fn new(settings: ImportSettings) -> Self {
        Source {
            settings,
            id: Ipv4Addr::UNSPECIFIED,
            address: Ipv4Addr::UNSPECIFIED.into(),
            routes: BTreeSet::new(),
            accepted: 0,
            warned: false,
            left_out: 0,
            removed: false,
            cursor: Bound::Unbounded,
            epoch: 0,
            floor: [0; 2],
            tally: [Tally::default(); 2],
        }
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(super) fn age(&self, prefix: &IpNet, path: &Path) -> Age {
        match path.epoch {
            epoch if epoch < self.floor[index(Family::of(prefix))] => Age::Dead,
            epoch if epoch < self.epoch => Age::Stale,
            _ => Age::Fresh,
        }
    }

    /// Routes that it holds up.
    pub(super) fn received(&self) -> usize {
        self.tally.iter().map(|tally| tally.fresh + tally.stale).sum()
    }

    pub(super) fn stale(&self) -> usize {
        self.tally.iter().map(|tally| tally.stale).sum()
    }

    /// A path has come.
    pub(super) fn came(&mut self, prefix: &IpNet) {
        self.tally[index(Family::of(prefix))].fresh += 1;
    }

    /// A path has gone, or is to be counted anew.
    pub(super) fn went(&mut self, prefix: &IpNet, age: Age) {
        let tally = &mut self.tally[index(Family::of(prefix))];
        match age {
            Age::Fresh => tally.fresh -= 1,
            Age::Stale => tally.stale -= 1,
            Age::Dead => tally.dead -= 1,
        }
    }

    /// The session has ended: all is stale.
    pub(super) fn end_session(&mut self) {
        self.epoch += 1;
        for tally in &mut self.tally {
            tally.stale += core::mem::take(&mut tally.fresh);
        }
    }

    /// What is stale of a family is dead. Says whether there is anything to be searched for.
    pub(super) fn expel(&mut self, family: Family) -> bool {
        let tally = &mut self.tally[index(family)];
        self.floor[index(family)] = self.epoch;
        let any = tally.stale > 0;
        tally.dead += core::mem::take(&mut tally.stale);
        if any {
            self.cursor = Bound::Unbounded;
        }
        any
    }

    /// The next routes to be searched for dead ones; none: there are no more.
    pub(super) fn next_to_search(&mut self, most: usize) -> Vec<Nlri> {
        if self.tally.iter().all(|tally| tally.dead == 0) {
            return Vec::new();
        }
        let next: Vec<Nlri> =
            self.routes.range((self.cursor, Bound::Unbounded)).take(most).copied().collect();
        self.cursor = next.last().map_or(Bound::Unbounded, |last| Bound::Excluded(*last));
        next
    }
}

fn index(family: Family) -> usize {
    match family {
        Family::Ipv4 => 0,
        Family::Ipv6 => 1,
    }
}

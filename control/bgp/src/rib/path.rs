//! The paths to one prefix.

use std::sync::Arc;

use crate::attributes::Attributes;

use super::{MAX_PATHS, NeighborId, decision::Reason};

/// A route that a neighbor sent.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) attributes: Arc<Attributes>,
    pub(super) neighbor: NeighborId,
    pub(super) path_id: u32,
    /// Why it cannot be chosen, whatever the others are.
    pub(super) barred: Option<Reason>,
    /// What became of it when it was last decided.
    pub(super) outcome: Reason,
    /// It was then among those that stand by behind a best path over a link.
    pub(super) standby: bool,
    pub(super) stale: bool,
}

impl Path {
    pub(super) fn new(
        neighbor: NeighborId,
        path_id: u32,
        attributes: Arc<Attributes>,
        barred: Option<Reason>,
    ) -> Self {
        // Until it is decided it carries no traffic.
        Path {
            attributes,
            neighbor,
            path_id,
            barred,
            outcome: Reason::Filtered,
            standby: false,
            stale: false,
        }
    }
}

/// A prefix. There are many with one path and few with more, so no room is kept for others.
#[derive(Default, Debug)]
pub(super) struct Entry {
    pub(super) paths: Vec<Path>,
    /// A path that is in use has gone or is another.
    pub(super) changed: bool,
}

impl Path {
    /// Whether whoever forwards knows of it.
    pub(super) fn in_use(&self) -> bool {
        self.standby || self.outcome.chosen()
    }
}

impl Entry {
    pub(super) fn find(&self, neighbor: NeighborId, path_id: u32) -> Option<&Path> {
        self.paths.iter().find(|path| path.neighbor == neighbor && path.path_id == path_id)
    }

    pub(super) fn find_mut(&mut self, neighbor: NeighborId, path_id: u32) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.neighbor == neighbor && path.path_id == path_id)
    }

    /// Whether a neighbor holds up as many paths as it may, and not this one.
    pub(super) fn is_full(&self, neighbor: NeighborId, path_id: u32) -> bool {
        let of = self.paths.iter().filter(|path| path.neighbor == neighbor);
        of.clone().count() >= MAX_PATHS && of.into_iter().all(|path| path.path_id != path_id)
    }

    pub(super) fn push(&mut self, path: Path) {
        self.paths.reserve_exact(1);
        self.paths.push(path);
    }

    pub(super) fn remove(&mut self, neighbor: NeighborId, path_id: u32) -> Option<Path> {
        let at = self.paths.iter().position(|path| path.neighbor == neighbor && path.path_id == path_id)?;
        Some(self.paths.swap_remove(at))
    }
}

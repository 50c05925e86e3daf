//! The paths to one prefix.

use std::sync::Arc;

use crate::attributes::Attributes;

use super::{NeighborId, decision::Reason};

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
    /// It was then among those that stand by.
    pub(super) standby: bool,
    /// In which session of its neighbor it was last sent.
    pub(super) epoch: u32,
}

impl Path {
    pub(super) fn new(
        neighbor: NeighborId,
        path_id: u32,
        attributes: Arc<Attributes>,
        barred: Option<Reason>,
        epoch: u32,
    ) -> Self {
        // Until it is decided it carries no traffic.
        Path { attributes, neighbor, path_id, barred, outcome: Reason::Filtered, standby: false, epoch }
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

    pub(super) fn push(&mut self, path: Path) {
        self.paths.reserve_exact(1);
        self.paths.push(path);
    }

    pub(super) fn remove(&mut self, neighbor: NeighborId, path_id: u32) -> Option<Path> {
        let at = self.paths.iter().position(|path| path.neighbor == neighbor && path.path_id == path_id)?;
        Some(self.paths.swap_remove(at))
    }
}

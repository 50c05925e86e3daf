//! What the core tells about an SA's children.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::child::ChildState;
use super::{Cx, IkeSa, Want};
use crate::diagnosis::{Fault, Step};
use crate::effect::ChildId;

impl IkeSa {
    /// The core could not hold a half of the child.
    pub(crate) fn install_failed(&mut self, cx: &mut Cx<'_>, id: ChildId) {
        let Some(child) = self.child_mut(id) else { return };
        child.pending_out = None;
        if child.state != ChildState::Deleting {
            child.mark_deleting(cx.now);
            self.want(cx.now, Want::DeleteChild(id));
            self.report(cx, Step::CreateChild, Fault::InstallFailed, None);
            self.note_children(cx.now);
            self.pump(cx);
        }
    }

    /// Authenticated ESP came in.
    pub(crate) fn esp_heard(&mut self, cx: &mut Cx<'_>, spi_in: Option<u32>, at: Instant) {
        if !self.children.iter().any(|child| spi_in.is_none_or(|spi| child.terms.spi_in == spi)) {
            return;
        }
        self.last_heard = self.last_heard.max(at.min(cx.now));
        let used = self.children.iter().find(|child| {
            spi_in == Some(child.terms.spi_in)
                && child.pending_out.is_some()
                && child.state != ChildState::Redundant
        });
        // RFC 7296 section 2.8: the peer uses the new pair, so it can be used.
        if let Some(id) = used.map(|child| child.id) {
            self.activate_child(cx, id);
        }
    }

    /// Authenticated ESP comes from elsewhere.
    pub(crate) fn esp_moved(&mut self, remote: SocketAddr) {
        if self.is_established() && self.nat.there && self.usable_child().is_some() {
            self.path.remote = remote;
        }
    }

    /// Rekeys by volume.
    pub(crate) fn child_used(&mut self, cx: &mut Cx<'_>, id: ChildId, bytes: u64, packets: u64) {
        let due = self.child_mut(id).is_some_and(|child| child.volume.is_used_up(bytes, packets));
        if due && self.is_established() {
            self.want_child_rekey(cx.now, id);
            self.pump(cx);
        }
    }

    /// The path has changed: what waits for an answer is sent again soon.
    pub(crate) fn hurry(&mut self, cx: &mut Cx<'_>) {
        self.window.hurry(cx.now, cx.settings);
        self.pump(cx);
    }

    /// How soon a missing child is made again: at once, unless the last one did not live either.
    pub(crate) fn childless_pause(lived: Option<Duration>) -> Duration {
        match lived {
            Some(lived) if lived < Duration::from_secs(10) => Duration::from_secs(5),
            Some(_) | None => Duration::from_millis(200),
        }
    }
}

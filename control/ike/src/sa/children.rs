//! The children of one IKE SA: which carries traffic, which is left over, and what happens when they end.

use std::time::{Duration, Instant};

use super::child::{Child, ChildState, Lingering};
use super::{Cx, IkeSa, Want};
use crate::effect::{ChildId, Effect};

impl IkeSa {
    /// Whether traffic can go both ways.
    pub(crate) fn usable_child(&self) -> Option<&Child> {
        self.children.iter().rev().find(|child| child.is_usable())
    }

    pub(crate) fn child_mut(&mut self, id: ChildId) -> Option<&mut Child> {
        self.children.iter_mut().find(|child| child.id == id)
    }

    /// Installs the outbound half of a child.
    pub(crate) fn activate_child(&mut self, cx: &mut Cx<'_>, id: ChildId) {
        let way = self.esp_transport();
        let activated = self.child_mut(id).is_some_and(|child| child.activate(cx, way));
        self.drop_twins(cx.now);
        self.note_children(cx.now);
        // What was stored with the answer says that the outbound half is not in the core.
        if activated && self.is_established() {
            cx.effects.extend(self.stash_update(cx.now).map(Effect::Stash));
        }
    }

    /// Of several pairs with the same selectors that are no replacements of each other the youngest stays. A
    /// peer makes a second one when it has lost the first, as in a change of IKE SAs that one side saw the end
    /// of and the other did not; traffic on the first would be swallowed.
    pub(crate) fn drop_twins(&mut self, now: Instant) {
        let works = |child: &&Child| child.is_usable() && child.state == ChildState::Live;
        let Some(youngest) = self.children.iter().filter(works).max_by_key(|child| child.id) else { return };
        let is_twin = |child: &&Child| {
            let same =
                child.terms.local == youngest.terms.local && child.terms.remote == youngest.terms.remote;
            same && child.id != youngest.id
        };
        let twins: Vec<_> =
            self.children.iter().filter(works).filter(is_twin).map(|child| child.id).collect();
        for id in twins {
            if let Some(child) = self.child_mut(id) {
                child.mark_deleting(now);
            }
            self.want(now, Want::DeleteChild(id));
        }
    }

    /// Ends a child: its outbound half at once.
    pub(crate) fn end_child(&mut self, cx: &mut Cx<'_>, id: ChildId, grace: Duration) {
        let Some(index) = self.children.iter().position(|child| child.id == id) else { return };
        let child = self.children.remove(index);
        self.last_child_lived = Some(cx.now.saturating_duration_since(child.created));
        if let Some(peer) = self.peer {
            self.lingering.extend(child.end(cx, peer, grace));
        }
        // RFC 7296 section 2.8: with the old pair gone, the peer can only mean the new one.
        if self.usable_child().is_none() {
            let heir =
                self.children.iter().find(|c| c.pending_out.is_some() && c.state != ChildState::Redundant);
            if let Some(heir) = heir.map(|child| child.id) {
                self.activate_child(cx, heir);
            }
        }
        self.note_children(cx.now);
    }

    /// Keeps `childless_since` true.
    pub(crate) fn note_children(&mut self, now: Instant) {
        let has =
            !self.is_established() || self.children.iter().any(|c| c.is_usable() || c.pending_out.is_some());
        match (has, self.childless_since) {
            (true, _) => self.childless_since = None,
            (false, Some(_)) => {}
            (false, None) => {
                self.childless_since = Some(now);
                self.childless_at = now + Self::childless_pause(self.last_child_lived);
            }
        }
    }

    /// Ends the children for sending; the inbound halves are left to another SA for their grace time.
    pub(crate) fn retire_children(&mut self, cx: &mut Cx<'_>) -> Vec<Lingering> {
        let Some(peer) = self.peer else { return Vec::new() };
        let grace = cx.settings.old_inbound_grace;
        let mut lingering = std::mem::take(&mut self.lingering);
        let children = std::mem::take(&mut self.children).into_iter();
        lingering.extend(children.filter_map(|child| child.end(cx, peer, grace)));
        lingering
    }

    pub(crate) fn drop_children(&mut self, cx: &mut Cx<'_>) {
        let Some(peer) = self.peer else { return };
        for child in std::mem::take(&mut self.children) {
            child.end(cx, peer, Duration::ZERO);
        }
        for old in std::mem::take(&mut self.lingering) {
            old.remove(cx, peer);
        }
    }
}

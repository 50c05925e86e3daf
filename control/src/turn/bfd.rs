//! The BFD sessions outside the tunnels: which the core is to have, and what they say.

use core::time::Duration;
use std::{collections::BTreeSet, net::IpAddr};

use braid_api::{BfdLink, Op, Verdict};

use super::{Effect, Note, Turn};

/// What is wanted, and what was heard.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// `None`: nobody has said so yet, and what an earlier life of control wanted goes on.
    wanted: Option<Vec<BfdLink>>,
    /// The core has it, or is about to.
    sent: bool,
    /// Of the peers that are down.
    down: BTreeSet<IpAddr>,
}

impl Sessions {
    pub(super) fn down(&self) -> &BTreeSet<IpAddr> {
        &self.down
    }
}

impl Turn {
    pub(super) fn want_bfd_links(&mut self, links: Vec<BfdLink>) {
        self.bfd.wanted = Some(links);
        self.bfd.sent = false;
    }

    /// Another connection to the core, or none: it will say again what its sessions say.
    pub(super) fn forget_bfd_links(&mut self) {
        self.bfd.sent = false;
        self.bfd.down.clear();
    }

    /// Tells the core which sessions are wanted, if it does not know yet.
    pub(super) fn send_bfd_links(&mut self) {
        let (Some(wanted), Some(core)) = (&self.bfd.wanted, &mut self.core) else { return };
        if !core::mem::replace(&mut self.bfd.sent, true) {
            let transaction = core.transaction(vec![Op::SetBfdLinks(wanted.clone())]);
            self.effects.push(Effect::Transaction(transaction));
        }
    }

    pub(super) fn handle_bfd_link(
        &mut self,
        local: IpAddr,
        remote: IpAddr,
        verdict: Verdict,
        silent: Duration,
    ) {
        let known =
            self.bfd.wanted.iter().flatten().any(|link| (link.bfd.local, link.bfd.remote) == (local, remote));
        // One that is no longer wanted says nothing more of the path.
        let changed = match verdict {
            Verdict::Down if known => self.bfd.down.insert(remote),
            Verdict::Down => false,
            Verdict::Up | Verdict::Withdrawn => self.bfd.down.remove(&remote),
        };
        if changed {
            self.offer_changes += 1;
            self.effects.push(Effect::Note(Note::Bfd { remote, verdict, silent }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::{Event, Learned, tests::Rig};

    fn link(host: u8) -> BfdLink {
        let (local, remote) = (IpAddr::from([10, 9, 0, 1]), IpAddr::from([10, 9, 0, host]));
        let bfd = braid_api::Bfd { local, remote, interval: Duration::from_millis(50), multiplier: 3 };
        BfdLink { bfd, multihop: false, interface: Some("dx0".to_owned()) }
    }

    /// What the core is told when this is wanted.
    fn sent(rig: &mut Rig, event: Event) -> Vec<Vec<BfdLink>> {
        rig.turn.handle(event, Duration::from_secs(60));
        let ops = rig.turn.take_effects().into_iter().filter_map(|effect| match effect {
            Effect::Transaction(transaction) => Some(transaction.ops),
            _ => None,
        });
        let links = ops.flatten().filter_map(|op| match op {
            Op::SetBfdLinks(links) => Some(links),
            _ => None,
        });
        links.collect()
    }

    fn want(links: Vec<BfdLink>) -> Event {
        Event::Learned(Learned { bfd_links: Some(links), ..Learned::default() })
    }

    fn says(host: u8, verdict: Verdict) -> Event {
        let BfdLink { bfd, .. } = link(host);
        let silent = Duration::from_millis(150);
        Event::Core(braid_api::Event::BfdLink { local: bfd.local, remote: bfd.remote, verdict, silent })
    }

    #[test]
    fn each_core_is_told_once_what_is_wanted() {
        let mut rig = Rig::with_text("");
        rig.settle();
        // Before anybody has said what is wanted, what an earlier life wanted stays.
        assert!(sent(&mut rig, Event::Timer).is_empty());
        assert_eq!(sent(&mut rig, want(vec![link(2)])), [vec![link(2)]]);
        assert!(sent(&mut rig, Event::Timer).is_empty());
        rig.kill_core();
        let mut core = rig.core.take().unwrap();
        let hello = core.hello(Duration::ZERO, 1, true);
        assert_eq!(sent(&mut rig, Event::CoreHello(hello)), [vec![link(2)]]);
        assert_eq!(sent(&mut rig, want(Vec::new())), [Vec::new()]);
    }

    #[test]
    fn a_path_is_down_from_one_verdict_to_the_next() {
        let mut rig = Rig::with_text("");
        rig.settle();
        sent(&mut rig, want(vec![link(2)]));
        let changes = rig.turn.offer_changes();
        rig.turn.handle(says(3, Verdict::Down), Duration::ZERO);
        assert!(rig.turn.bfd_down().is_empty(), "nobody asked for that one");
        for (verdict, down) in [
            (Verdict::Withdrawn, false),
            (Verdict::Up, false),
            (Verdict::Down, true),
            (Verdict::Down, true),
            (Verdict::Up, false),
            (Verdict::Down, true),
            (Verdict::Withdrawn, false),
        ] {
            rig.turn.handle(says(2, verdict), Duration::ZERO);
            assert_eq!(rig.turn.bfd_down().contains(&link(2).bfd.remote), down, "{verdict:?}");
        }
        assert_eq!(rig.turn.offer_changes(), changes + 4);
        rig.turn.handle(says(2, Verdict::Down), Duration::ZERO);
        // Another core knows nothing of it.
        rig.turn.handle(Event::CoreGone, Duration::ZERO);
        assert!(rig.turn.bfd_down().is_empty());
    }
}

//! Next hops on links that fail with their neighbor.
//!
//! When a neighbor's routes all go, so do the next hops that it alone has named: whoever forwards leaves them at
//! once, before a choice is made for a single prefix. What another neighbor on the link has named as well, such as
//! one that tells routes of others, stays for it to say.

use std::{collections::BTreeSet, net::IpAddr};

use braid_bgp::{Update, rib::NeighborId};

use super::Speaker;
use crate::{bgp::reach, config::Link};

/// Next hops that a neighbor on a link names: itself, for the most part.
const MAX_NAMED: usize = 64;

/// Those of a neighbor on a link, since its routes last went.
#[derive(Debug, Default)]
pub(super) struct Named {
    gateways: BTreeSet<IpAddr>,
    /// There were more of them, and it may be any.
    and_more: bool,
}

/// Those that nobody names any more, while the table is not done with their prefixes.
#[derive(Debug, Default)]
pub(super) struct Failed {
    links: BTreeSet<Link>,
    changed: bool,
}

impl Failed {
    pub(super) fn has_changed(&self) -> bool {
        self.changed
    }

    /// The table is done with all prefixes: nobody has chosen them.
    pub(super) fn clear(&mut self) {
        self.changed |= !self.links.is_empty();
        self.links.clear();
    }
}

impl Speaker {
    /// Next hops that have failed, if those are others than the last time.
    pub(in crate::bgp) fn take_failed(&mut self) -> Option<BTreeSet<Link>> {
        core::mem::take(&mut self.failed.changed).then(|| self.failed.links.clone())
    }

    /// A neighbor's routes have all gone.
    pub(super) fn fail_next_hops(&mut self, number: NeighborId) {
        let Some(peer) = self.peers.get_mut(&number) else { return };
        let named = core::mem::take(&mut peer.named);
        let Some(interface) = peer.place.interface().map(str::to_owned) else { return };
        let others = self.peers.values().filter(|peer| peer.place.interface() == Some(&interface));
        let others: Vec<&Named> = others.map(|peer| &peer.named).collect();
        let is_lost =
            |gateway: &IpAddr| !others.iter().any(|other| other.and_more || other.gateways.contains(gateway));
        for gateway in named.gateways.into_iter().filter(is_lost) {
            self.failed.links.insert(Link { gateway, interface: interface.clone() });
            self.failed.changed = true;
        }
    }

    /// A neighbor names next hops.
    pub(super) fn note_next_hops(&mut self, number: NeighborId, update: &Update) {
        let Some(peer) = self.peers.get_mut(&number) else { return };
        let Some(interface) = peer.place.interface() else { return };
        for announcement in &update.announced {
            let attributes = &announcement.attributes;
            let gateway = reach::gateway(attributes.next_hop, attributes.link_local);
            let named = &mut peer.named;
            if named.gateways.len() < MAX_NAMED || named.gateways.contains(&gateway) {
                named.gateways.insert(gateway);
            } else {
                named.and_more = true;
            }
            if !self.failed.links.is_empty() {
                let link = Link { gateway, interface: interface.to_owned() };
                self.failed.changed |= self.failed.links.remove(&link);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc, time::Instant};

    use braid_bgp::{
        Attributes, Cause, Event, Family,
        update::{Announcement, Nlri},
    };

    use super::*;
    use crate::{config, outer::Addresses};

    const CONFIG: &str = "[bgp]\nasn = 65010\nrouter-id = \"10.1.0.1\"\n\
        [[bgp.neighbor]]\nname = \"a\"\naddress = \"10.9.0.2\"\ninterface = \"dx0\"\nasn = 65020\n\
        [[bgp.neighbor]]\nname = \"b\"\naddress = \"10.9.0.3\"\ninterface = \"dx0\"\nasn = 65020\n\
        [[bgp.neighbor]]\nname = \"far\"\naddress = \"10.8.0.2\"\nmultihop = true\nasn = 65020\n";

    struct Rig {
        speaker: Speaker,
        now: Instant,
    }

    impl Rig {
        fn new() -> Self {
            let config = config::parse(CONFIG, Path::new("x.toml"), 0o600).unwrap();
            let now = Instant::now();
            let on_dx0 =
                Addresses { networks: ["10.9.0.0/24".parse().unwrap()].into(), ..Addresses::default() };
            let mut speaker = Speaker::new(&config, config.bgp.as_ref().unwrap(), 1, now);
            speaker.set_links(&[("dx0".to_owned(), on_dx0)].into(), now);
            Rig { speaker, now }
        }

        fn happens(&mut self, name: &str, event: Event) {
            let number = self.speaker.numbers[name];
            self.speaker.handle_event(number, event, self.now);
        }

        fn announces(&mut self, name: &str, next_hop: [u8; 4]) {
            let nlri = vec![Nlri { prefix: "10.2.0.0/16".parse().unwrap(), path_id: 0 }];
            let attributes = Arc::new(Attributes::originated(next_hop.into()));
            let announced = vec![Announcement { attributes, nlri }];
            self.happens(name, Event::Update(Update { announced, ..Update::default() }));
        }

        fn goes_down(&mut self, name: &str, retain: &[Family]) {
            self.happens(name, Event::Down { cause: Cause::Transport, retain: retain.to_vec() });
        }

        /// Last octets of the next hops that have failed, if that is news.
        fn failed(&mut self) -> Option<Vec<u8>> {
            let octet = |link: Link| match link.gateway {
                IpAddr::V4(gateway) if link.interface == "dx0" => gateway.octets()[3],
                _ => panic!("{link:?}"),
            };
            Some(self.speaker.take_failed()?.into_iter().map(octet).collect())
        }
    }

    #[test]
    fn a_neighbor_takes_the_next_hops_that_it_alone_has_named() {
        let mut rig = Rig::new();
        rig.announces("a", [10, 9, 0, 2]);
        rig.announces("a", [10, 9, 0, 7]);
        rig.announces("b", [10, 9, 0, 3]);
        rig.announces("b", [10, 9, 0, 7]);
        assert_eq!(rig.failed(), None);
        // Its routes are kept while it restarts.
        rig.goes_down("a", &[Family::Ipv4]);
        assert_eq!(rig.failed(), None);
        rig.goes_down("a", &[]);
        assert_eq!((rig.failed(), rig.failed()), (Some(vec![2]), None));
        // It is named again, by whomever.
        rig.announces("b", [10, 9, 0, 2]);
        assert_eq!(rig.failed(), Some(Vec::new()));
        rig.announces("a", [10, 9, 0, 2]);
        rig.goes_down("a", &[]);
        assert_eq!(rig.failed(), None);
        rig.goes_down("b", &[]);
        assert_eq!(rig.failed(), Some(vec![2, 3, 7]));
        // When all prefixes have other ways there is nothing more to say of them.
        while rig.speaker.rib.pending() {
            rig.speaker.work(|_| true, rig.now);
        }
        assert_eq!(rig.failed(), Some(Vec::new()));
    }

    #[test]
    fn a_neighbor_with_many_next_hops_may_have_named_any() {
        let mut rig = Rig::new();
        rig.announces("a", [10, 9, 0, 2]);
        for host in 0..=MAX_NAMED as u8 {
            rig.announces("b", [10, 9, 0, 100 + host]);
        }
        rig.goes_down("a", &[]);
        assert_eq!(rig.failed(), None);
        rig.goes_down("b", &[]);
        assert_eq!(rig.failed().map(|failed| failed.len()), Some(MAX_NAMED));
    }

    #[test]
    fn beside_links_nothing_fails() {
        let mut rig = Rig::new();
        rig.announces("far", [10, 9, 0, 2]);
        rig.goes_down("far", &[]);
        assert_eq!(rig.failed(), None);
    }
}

//! Which neighbors' sessions may run: what tunnels, links and BFD say of the paths to them.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use braid_api::{BfdLink, MAX_BFD_LINKS};

use super::{Endpoint, Peer, Speaker, YIELDING_MED};
use crate::{config::Place, outer::Links};

impl Speaker {
    pub(super) fn start_all(&mut self, now: Instant) {
        for number in self.peers.keys().copied().collect::<Vec<_>>() {
            if self.peers.get(&number).is_none_or(|peer| self.obstacle(peer).is_some()) {
                continue;
            }
            let Some(peer) = self.peers.get_mut(&number) else { continue };
            peer.session.start(now);
            self.drain(number, now);
        }
    }

    /// Why a neighbor's session may not run.
    pub(in crate::bgp) fn obstacle(&self, peer: &Peer) -> Option<&'static str> {
        match &peer.place {
            Place::Tunnel(tunnel) => {
                let may_run = self.reach.is_offered(tunnel) || self.trying.contains(tunnel);
                (!may_run).then_some("its tunnel carries no traffic")
            }
            Place::Address { interface, .. } => {
                let is_up = interface.as_ref().is_none_or(|interface| self.reach.is_up(interface));
                // RFC 5882 section 4.1 lets a session wait for BFD; one that was never up says nothing, so that a
                // neighbor without BFD is reached nevertheless.
                let is_down = peer.bfd.is_some() && self.bfd_down.contains(&peer.endpoint.remote);
                match (is_up, is_down) {
                    (false, _) => Some("its link is down"),
                    (true, true) => Some("BFD says that the path is down"),
                    (true, false) => None,
                }
            }
        }
    }

    /// A tunnel is offered to traffic, or no longer; `may_try` says that it would be, but for the silence of the
    /// neighbor in it.
    pub(in crate::bgp) fn offer(&mut self, tunnel: &str, offered: bool, may_try: bool, now: Instant) {
        let could_run = self.reach.is_offered(tunnel) || self.trying.contains(tunnel);
        if may_try {
            self.trying.insert(tunnel.to_owned());
        } else {
            self.trying.remove(tunnel);
        }
        if self.reach.offer(tunnel, offered) {
            let reach = &self.reach;
            self.rib.next_hops_changed(|neighbor, next_hop| reach.concerns(tunnel, neighbor, next_hop));
        }
        if !self.begun || could_run == (offered || may_try) {
            return;
        }
        self.switch(|peer| peer.place.tunnel() == Some(tunnel), "the tunnel is down", now);
    }

    /// These tunnels are being drained, and no others: what is behind us is to be reached by others.
    pub(in crate::bgp) fn set_drained(&mut self, drained: BTreeSet<String>) {
        for (number, peer) in &mut self.peers {
            let Some(tunnel) = peer.place.tunnel() else { continue };
            if self.drained.contains(tunnel) != drained.contains(tunnel) {
                peer.out.set_leaving(drained.contains(tunnel));
                self.unsent.insert(*number);
            }
        }
        self.drained = drained;
    }

    /// These tunnels stand behind others, and no more: what is behind us is to be reached by those.
    pub(in crate::bgp) fn set_yielding(&mut self, yielding: BTreeSet<String>) {
        for (number, peer) in &mut self.peers {
            let Some(tunnel) = peer.place.tunnel() else { continue };
            if self.yielding.contains(tunnel) != yielding.contains(tunnel) {
                peer.out.set_med(if yielding.contains(tunnel) { Some(YIELDING_MED) } else { peer.med });
                self.unsent.insert(*number);
            }
        }
        self.yielding = yielding;
    }

    /// These links are up, with these networks on them, and no others.
    pub(in crate::bgp) fn set_links(&mut self, up: &Links, now: Instant) {
        let were_up: BTreeSet<String> = self.reach.links_up().cloned().collect();
        let changed = self.reach.set_links(up);
        if changed.is_empty() {
            return;
        }
        let reach = &self.reach;
        self.rib.next_hops_changed(|neighbor, _| reach.is_by(&changed, neighbor));
        if !self.begun {
            return;
        }
        let is_switched = |interface: &str| were_up.contains(interface) != up.contains_key(interface);
        let on = |peer: &Peer| peer.place.interface().is_some_and(is_switched);
        self.switch(on, "the link is down", now);
    }

    /// BFD says of the paths to these neighbors that they are down, and of no others.
    pub(in crate::bgp) fn set_bfd_down(&mut self, down: &BTreeSet<IpAddr>, now: Instant) {
        let changed: BTreeSet<IpAddr> = self.bfd_down.symmetric_difference(down).copied().collect();
        self.bfd_down.clone_from(down);
        if !changed.is_empty() && self.begun {
            let at = |peer: &Peer| changed.contains(&peer.endpoint.remote) && peer.place.tunnel().is_none();
            self.switch(at, "BFD says that the path is down", now);
        }
    }

    /// The BFD sessions with neighbors outside the tunnels; `towards` is what routing chooses for our end, where
    /// it has a way.
    pub(in crate::bgp) fn bfd_links(
        &mut self,
        towards: impl Fn(&Endpoint) -> Option<IpAddr>,
    ) -> Vec<BfdLink> {
        let mut links = Vec::new();
        for peer in self.peers.values_mut() {
            let (Some(timing), Place::Address { interface, .. }) = (peer.bfd, &peer.place) else { continue };
            let known = peer.endpoint.local.or(peer.local).or(peer.bfd_local);
            peer.bfd_local = known.or_else(|| towards(&peer.endpoint));
            let Some(local) = peer.bfd_local else { continue };
            let (interval, multiplier) = (timing.interval, timing.multiplier);
            let bfd = braid_api::Bfd { local, remote: peer.endpoint.remote, interval, multiplier };
            links.push(BfdLink { bfd, multihop: interface.is_none(), interface: interface.clone() });
        }
        links.truncate(MAX_BFD_LINKS);
        links
    }

    /// Starts sessions, or ends them, as they may run or not.
    fn switch(&mut self, concerned: impl Fn(&Peer) -> bool, why: &str, now: Instant) {
        let numbers = self.peers.iter().filter(|(_, peer)| concerned(peer));
        let numbers = numbers.map(|(number, peer)| (*number, self.obstacle(peer).is_none()));
        for (number, may_run) in numbers.collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&number) else { continue };
            if may_run {
                peer.unreached = None;
                peer.session.start(now);
            } else {
                // RFC 9384: the peer is told that the path is what failed, should it hear it.
                peer.session.handle_bfd_down(now);
                self.drain(number, now);
                let Some(peer) = self.peers.get_mut(&number) else { continue };
                peer.session.stop(now, why);
            }
            self.drain(number, now);
        }
    }
}

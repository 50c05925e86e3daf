//! Which tunnels the endpoint has as peers: those with IKE that the core holds.

use super::*;

impl Ike {
    /// Follows the configuration and the core.
    pub(super) fn sync_peers(&mut self, turn: &mut Turn, now: Now) {
        if self.endpoint.is_none() || self.seen_changes == Some(turn.held_changes()) {
            return;
        }
        self.seen_changes = Some(turn.held_changes());
        let config = turn.config().clone();
        let mut wanted = BTreeSet::new();
        for tunnel in &config.tunnels {
            if tunnel.ike().is_some() && turn.holds_tunnel(&tunnel.name) {
                wanted.insert(tunnel.name.as_str());
                self.put_peer(turn, tunnel, now);
            }
        }
        let gone = self.by_name.keys().filter(|name| !wanted.contains(name.as_str())).cloned();
        for name in gone.collect::<Vec<_>>() {
            let (Some(id), Some(endpoint)) = (self.by_name.remove(&name), &mut self.endpoint) else {
                continue;
            };
            endpoint.remove_peer(now.instant, &mut self.random, id);
            self.peers.remove(&id);
            self.lost.remove(&name);
        }
    }

    /// The machine's view of outer paths has changed.
    pub fn handle_outer(&mut self, turn: &Turn, now: Instant) {
        for id in self.by_name.values().copied().collect::<Vec<_>>() {
            self.give_addresses(turn, id, now);
        }
    }

    fn put_peer(&mut self, turn: &Turn, tunnel: &config::Tunnel, now: Now) {
        let known = self.by_name.get(&tunnel.name).copied();
        let before = known.and_then(|id| self.peers.get(&id));
        if before.is_some_and(|peer| peer.tunnel == *tunnel) {
            return;
        }
        let outer = turn.outer(&tunnel.name);
        let Some(config) =
            settings::peer_config(tunnel, outer, before.map(|peer| (&peer.tunnel, &*peer.config)))
        else {
            return;
        };
        let config = Arc::new(config);
        let together = self.together.unwrap_or(TOGETHER).min(config.dpd_interval / TOGETHER_SHARE);
        self.together = Some(together);
        let id = known.unwrap_or(PeerId(self.next_peer));
        if known.is_none() {
            self.next_peer += 1;
            self.by_name.insert(tunnel.name.clone(), id);
            let by_peer = tunnel.role == config::Role::Respond;
            self.states.insert(tunnel.name.clone(), IkeState::Negotiating { by_peer });
        }
        let is_up = before.is_some_and(|peer| peer.is_up);
        let peer = Peer {
            name: tunnel.name.clone(),
            tunnel: tunnel.clone(),
            config: config.clone(),
            is_up,
            wants_address: false,
            given: None,
            last_failure: before.and_then(|peer| peer.last_failure.clone()),
        };
        self.peers.insert(id, peer);
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.put_peer(now.instant, &mut self.random, id, config);
        }
        self.give_addresses(turn, id, now.instant);
        // A peer that is to begin would go on with its old SAs until it misses us.
        if let (Some(path), Some(endpoint)) = (self.lost.remove(&tunnel.name), &mut self.endpoint)
            && tunnel.role == config::Role::Respond
        {
            let (local, remote) = (path.local.ip(), path.remote.ip());
            endpoint.set_addresses(now.instant, &mut self.random, id, local, remote);
            endpoint.initiate(now.instant, &mut self.random, id);
        }
    }

    /// Tells the endpoint outer addresses that the configuration does not have.
    pub(super) fn give_addresses(&mut self, turn: &Turn, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let tunnel = &peer.tunnel;
        let fixed = tunnel.local.is_some() && !matches!(tunnel.remote, Some(config::Remote::Name(_)));
        if fixed && !peer.wants_address {
            return;
        }
        let outer = turn.outer(&peer.name);
        let local = tunnel.local.or_else(|| outer?.local);
        let remote = match &tunnel.remote {
            Some(config::Remote::Address(address)) => Some(*address),
            Some(config::Remote::Name(_)) => outer.and_then(|outer| outer.remote),
            None => None,
        };
        let (Some(local), Some(remote)) = (local, remote) else { return };
        let news = peer.given.replace((local, remote)) != Some((local, remote));
        if (news || core::mem::take(&mut peer.wants_address))
            && let Some(endpoint) = &mut self.endpoint
        {
            endpoint.set_addresses(now, &mut self.random, id, local, remote);
        }
    }
}

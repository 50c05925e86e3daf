//! The configured peers, found by address and identity.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::crypto::IkeSuite;
use crate::diagnosis::Fault;
use crate::effect::{Path, PeerId};
use crate::proposal::IkeProposal;
use crate::settings::PeerConfig;
use crate::wire::{Identity, ProposalSpi};

/// How an identity is found; none for peers that may call themselves anything.
type IdentityKey = Option<(u8, Vec<u8>)>;

/// The peers, with indexes by outer address and by identity.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    peers: BTreeMap<PeerId, Arc<PeerConfig>>,
    /// Adopting thousands of SAs asks for as many.
    by_name: BTreeMap<String, PeerId>,
    /// Peers of a known address: configured, or resolved.
    by_remote: BTreeMap<IpAddr, BTreeSet<PeerId>>,
    /// Peers that may call from anywhere.
    anywhere: BTreeSet<PeerId>,
    /// Peers of an address, or of anywhere, by what they call themselves.
    by_identity: BTreeMap<(Option<IpAddr>, IdentityKey), BTreeSet<PeerId>>,
    addresses: BTreeMap<PeerId, IpAddr>,
}

impl Directory {
    /// Adds a peer or changes it.
    pub(crate) fn put(&mut self, id: PeerId, config: Arc<PeerConfig>) {
        let resolved = self.addresses.get(&id).copied();
        self.remove(id);
        let address = config.remote.or(resolved.filter(|_| config.remote_is_name));
        let identity = (address, key_of(&config));
        self.by_identity.entry(identity).or_default().insert(id);
        match address {
            Some(address) => {
                self.by_remote.entry(address).or_default().insert(id);
                self.addresses.insert(id, address);
            }
            // A name that was never resolved: nobody can be told apart from it.
            None => {
                self.anywhere.insert(id);
            }
        }
        self.by_name.insert(config.name.clone(), id);
        self.peers.insert(id, config);
    }

    /// A name was resolved.
    pub(crate) fn resolved(&mut self, id: PeerId, remote: IpAddr) {
        let Some(config) = self.peers.get(&id).cloned() else { return };
        if config.remote_is_name && self.addresses.get(&id) != Some(&remote) {
            self.remove(id);
            self.addresses.insert(id, remote);
            self.put(id, config);
        }
    }

    pub(crate) fn remove(&mut self, id: PeerId) {
        let Some(config) = self.peers.remove(&id) else { return };
        self.anywhere.remove(&id);
        if self.by_name.get(&config.name) == Some(&id) {
            self.by_name.remove(&config.name);
        }
        let address = self.addresses.remove(&id);
        remove_from(&mut self.by_identity, (address, key_of(&config)), id);
        if let Some(address) = address {
            remove_from(&mut self.by_remote, address, id);
        }
    }

    /// A peer by its configured name.
    pub(crate) fn by_name(&self, name: &str) -> Option<(PeerId, &Arc<PeerConfig>)> {
        let id = self.by_name.get(name)?;
        Some((*id, self.peers.get(id)?))
    }

    /// Who may call on this path, those of this very address first.
    pub(crate) fn candidates(&self, path: Path) -> impl Iterator<Item = (PeerId, &Arc<PeerConfig>)> {
        let exact = self.by_remote.get(&path.remote.ip()).into_iter().flatten();
        exact
            .chain(&self.anywhere)
            .filter_map(|id| self.peers.get(id).map(|config| (*id, config)))
            .filter(move |(_, config)| config.local.is_none_or(|local| local == path.local.ip()))
    }

    /// Who it is that calls itself `id` and asks for `wants`, under the suite agreed on in IKE_SA_INIT.
    pub(crate) fn identify(
        &self,
        path: Path,
        id: &Identity,
        wants: Option<&Identity>,
        suite: &IkeSuite,
    ) -> Result<(PeerId, Arc<PeerConfig>), Fault> {
        // Most callers have thousands beside them.
        for address in [Some(path.remote.ip()), None] {
            let called = [Some(id.index_key()), None].map(|key| self.by_identity.get(&(address, key)));
            let found = called.into_iter().flatten().flatten();
            let found = found.filter_map(|peer| self.peers.get(peer).map(|config| (*peer, config)));
            let fitting = found.filter(|(_, config)| {
                config.local.is_none_or(|local| local == path.local.ip())
                    && is_theirs(config, id)
                    && wants.is_none_or(|wants| config.local_id.matches(wants))
                    && allows(config, suite)
            });
            if let Some((peer, config)) = fitting.min_by_key(|(peer, _)| *peer) {
                return Ok((peer, config.clone()));
            }
        }
        // With one peer at that address the difference is worth telling.
        let mut others = self.candidates(path).filter(|(_, config)| !is_theirs(config, id));
        match (others.next().and_then(|(_, config)| config.remote_id.clone()), others.next()) {
            (Some(expected), None) => Err(Fault::PeerIdMismatch { expected, received: id.clone() }),
            _ => Err(Fault::UnknownPeer { identity: Some(id.clone()), wants: wants.cloned() }),
        }
    }
}

fn key_of(config: &PeerConfig) -> IdentityKey {
    config.remote_id.as_ref().map(Identity::index_key)
}

fn remove_from<K: Ord>(index: &mut BTreeMap<K, BTreeSet<PeerId>>, key: K, id: PeerId) {
    if let Some(ids) = index.get_mut(&key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(&key);
        }
    }
}

/// Whether the peer may call itself so.
fn is_theirs(config: &PeerConfig, id: &Identity) -> bool {
    config.remote_id.as_ref().is_none_or(|expected| expected.matches(id))
}

/// Whether the suite, chosen before the peer was known, is one that this peer may use.
fn allows(config: &PeerConfig, suite: &IkeSuite) -> bool {
    (1..=u8::MAX).zip(&config.ike_proposals).any(|(number, _)| {
        let answer = IkeProposal::answer(suite, number, ProposalSpi::None);
        IkeProposal::accept(&config.ike_proposals, &[answer]).is_some()
    })
}

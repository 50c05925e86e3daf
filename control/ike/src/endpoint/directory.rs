//! The configured peers, found by address and identity.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::crypto::IkeSuite;
use crate::diagnosis::Fault;
use crate::effect::{Path, PeerId};
use crate::proposal::IkeProposal;
use crate::settings::PeerConfig;
use crate::wire::{Identity, ProposalSpi};

/// The peers, with an index by outer address.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    peers: BTreeMap<PeerId, Arc<PeerConfig>>,
    /// Peers of a known address: configured, or resolved.
    by_remote: BTreeMap<IpAddr, Vec<PeerId>>,
    /// Peers that may call from anywhere.
    anywhere: Vec<PeerId>,
    addresses: BTreeMap<PeerId, IpAddr>,
}

impl Directory {
    /// Adds a peer or changes it.
    pub(crate) fn put(&mut self, id: PeerId, config: Arc<PeerConfig>) {
        let resolved = self.addresses.get(&id).copied();
        self.remove(id);
        let address = config.remote.or(resolved.filter(|_| config.remote_is_name));
        match address {
            Some(address) => {
                self.by_remote.entry(address).or_default().push(id);
                self.addresses.insert(id, address);
            }
            // A name that was never resolved: nobody can be told apart from it.
            None => self.anywhere.push(id),
        }
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
        self.peers.remove(&id);
        self.anywhere.retain(|other| *other != id);
        if let Some(address) = self.addresses.remove(&id)
            && let Some(ids) = self.by_remote.get_mut(&address)
        {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_remote.remove(&address);
            }
        }
    }

    /// A peer by its configured name.
    pub(crate) fn by_name(&self, name: &str) -> Option<(PeerId, &Arc<PeerConfig>)> {
        self.peers.iter().find(|(_, config)| config.name == name).map(|(id, config)| (*id, config))
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
        // The first that is not called so, and whether there are more: most callers have thousands beside them.
        let (mut expected, mut several) = (None, false);
        for (peer, config) in self.candidates(path) {
            let is_theirs = config.remote_id.as_ref().is_none_or(|expected| expected.matches(id));
            let is_ours = wants.is_none_or(|wants| config.local_id.matches(wants));
            if is_theirs && is_ours && allows(config, suite) {
                return Ok((peer, config.clone()));
            }
            if !is_theirs {
                several |= expected.is_some();
                expected = expected.or(config.remote_id.as_ref());
            }
        }
        // With one peer at that address the difference is worth telling.
        match expected.filter(|_| !several) {
            Some(expected) => Err(Fault::PeerIdMismatch { expected: expected.clone(), received: id.clone() }),
            None => Err(Fault::UnknownPeer { identity: Some(id.clone()), wants: wants.cloned() }),
        }
    }
}

/// Whether the suite, chosen before the peer was known, is one that this peer may use.
fn allows(config: &PeerConfig, suite: &IkeSuite) -> bool {
    (1..=u8::MAX).zip(&config.ike_proposals).any(|(number, _)| {
        let answer = IkeProposal::answer(suite, number, ProposalSpi::None);
        IkeProposal::accept(&config.ike_proposals, &[answer]).is_some()
    })
}

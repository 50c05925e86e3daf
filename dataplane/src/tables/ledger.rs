//! What the writer knows beside the tables: who refers to what, and what may never be used again.
//!
//! Every change goes through a setter that keeps what was there, so that a transaction that fails
//! half-way is taken back, newest change first.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use braid_api::{GroupId, SaId, StashValue, Target, TunnelId};

use super::{Group, Tunnel, replace_at, sas::SaHandle};

/// How many outbound keys are remembered after their SA has gone.
const REMEMBERED_KEYS: usize = 131_072;

/// A tunnel that exists.
#[derive(Clone)]
pub(super) struct TunnelEntry {
    pub(super) tunnel: Arc<Tunnel>,
    /// Its SAs by ascending id.
    pub(super) sas: Vec<SaId>,
    /// Groups and routes that name it.
    pub(super) users: u32,
    /// The synchronisation that last put it.
    pub(super) synced: u32,
}

/// A group that exists.
#[derive(Clone)]
pub(super) struct GroupEntry {
    pub(super) group: Arc<Group>,
    /// Routes that name it.
    pub(super) users: u32,
    /// The synchronisation that last put it.
    pub(super) synced: u32,
}

/// Takes one change of the ledger back.
enum Undo {
    Tunnel(TunnelId, Option<TunnelEntry>),
    TunnelUsers(TunnelId, u32),
    TunnelSynced(TunnelId, u32),
    Group(GroupId, Option<GroupEntry>),
    GroupUsers(GroupId, u32),
    GroupSynced(GroupId, u32),
    Sa(SaId, Option<SaHandle>),
    HighestSa(Option<SaId>),
    NewestKey,
    Name(String, Option<TunnelId>),
    Stash(u64, Option<StashValue>),
}

#[derive(Default)]
pub(super) struct Ledger {
    tunnels: Vec<Option<TunnelEntry>>,
    groups: Vec<Option<GroupEntry>>,
    sas: BTreeMap<SaId, SaHandle>,
    highest_sa: Option<SaId>,
    names: HashMap<String, TunnelId>,
    stash: BTreeMap<u64, StashValue>,
    keys: HashSet<[u8; 16]>,
    keys_by_age: VecDeque<[u8; 16]>,
    journal: Vec<Undo>,
}

impl Ledger {
    pub(super) fn tunnel(&self, id: TunnelId) -> Option<&TunnelEntry> {
        self.tunnels.get(id.0 as usize)?.as_ref()
    }

    pub(super) fn group(&self, id: GroupId) -> Option<&GroupEntry> {
        self.groups.get(id.0 as usize)?.as_ref()
    }

    pub(super) fn sa(&self, id: SaId) -> Option<&SaHandle> {
        self.sas.get(&id)
    }

    pub(super) fn name(&self, name: &str) -> Option<TunnelId> {
        self.names.get(name).copied()
    }

    pub(super) fn highest_sa(&self) -> Option<SaId> {
        self.highest_sa
    }

    pub(super) fn key_is_used(&self, check: &[u8; 16]) -> bool {
        self.keys.contains(check)
    }

    pub(super) fn stash(&self) -> &BTreeMap<u64, StashValue> {
        &self.stash
    }

    /// By ascending id.
    pub(super) fn tunnels(&self) -> impl Iterator<Item = (TunnelId, &TunnelEntry)> {
        let entries = self.tunnels.iter().enumerate();
        entries.filter_map(|(id, entry)| Some((TunnelId(id as u32), entry.as_ref()?)))
    }

    /// By ascending id.
    pub(super) fn groups(&self) -> impl Iterator<Item = (GroupId, &GroupEntry)> {
        let entries = self.groups.iter().enumerate();
        entries.filter_map(|(id, entry)| Some((GroupId(id as u32), entry.as_ref()?)))
    }

    /// By ascending id.
    pub(super) fn sas(&self) -> impl Iterator<Item = (SaId, &SaHandle)> {
        self.sas.iter().map(|(id, sa)| (*id, sa))
    }

    pub(super) fn set_tunnel(&mut self, id: TunnelId, entry: Option<TunnelEntry>) {
        let old = replace_at(&mut self.tunnels, id.0, entry);
        self.journal.push(Undo::Tunnel(id, old));
    }

    pub(super) fn set_group(&mut self, id: GroupId, entry: Option<GroupEntry>) {
        let old = replace_at(&mut self.groups, id.0, entry);
        self.journal.push(Undo::Group(id, old));
    }

    pub(super) fn set_tunnel_synced(&mut self, id: TunnelId, synced: u32) {
        if let Some(entry) = tunnel_mut(&mut self.tunnels, id) {
            self.journal.push(Undo::TunnelSynced(id, std::mem::replace(&mut entry.synced, synced)));
        }
    }

    pub(super) fn set_group_synced(&mut self, id: GroupId, synced: u32) {
        if let Some(entry) = group_mut(&mut self.groups, id) {
            self.journal.push(Undo::GroupSynced(id, std::mem::replace(&mut entry.synced, synced)));
        }
    }

    pub(super) fn set_sa(&mut self, id: SaId, sa: Option<SaHandle>) {
        let old = match sa {
            Some(sa) => self.sas.insert(id, sa),
            None => self.sas.remove(&id),
        };
        self.journal.push(Undo::Sa(id, old));
    }

    pub(super) fn set_highest_sa(&mut self, id: SaId) {
        self.journal.push(Undo::HighestSa(self.highest_sa.replace(id)));
    }

    pub(super) fn use_key(&mut self, check: [u8; 16]) {
        if self.keys.insert(check) {
            self.keys_by_age.push_back(check);
            self.journal.push(Undo::NewestKey);
        }
    }

    pub(super) fn set_name(&mut self, name: &str, id: Option<TunnelId>) {
        let old = match id {
            Some(id) => self.names.insert(name.to_owned(), id),
            None => self.names.remove(name),
        };
        self.journal.push(Undo::Name(name.to_owned(), old));
    }

    pub(super) fn set_stash(&mut self, key: u64, value: Option<StashValue>) {
        let old = match value {
            Some(value) => self.stash.insert(key, value),
            None => self.stash.remove(&key),
        };
        self.journal.push(Undo::Stash(key, old));
    }

    /// One more, or one fewer, names the target.
    pub(super) fn refer(&mut self, target: Target, more: bool) {
        let step = |users: &mut u32| {
            let old = *users;
            *users = if more { old + 1 } else { old - 1 };
            old
        };
        let undo = match target {
            Target::Tunnel(id) => {
                tunnel_mut(&mut self.tunnels, id).map(|entry| Undo::TunnelUsers(id, step(&mut entry.users)))
            }
            Target::Group(id) => {
                group_mut(&mut self.groups, id).map(|entry| Undo::GroupUsers(id, step(&mut entry.users)))
            }
        };
        self.journal.extend(undo);
    }

    /// All that is in neither tunnels nor groups, for tests to compare.
    #[cfg(test)]
    pub(super) fn digest(&self) -> String {
        let sas: Vec<_> = self.sas.iter().map(|(id, sa)| (id, sa.spi(), sa.tunnel())).collect();
        let names: BTreeMap<_, _> = self.names.iter().collect();
        let keys: std::collections::BTreeSet<_> = self.keys.iter().collect();
        let stash: Vec<_> = self.stash.iter().map(|(key, value)| (key, &value.0)).collect();
        assert!(self.journal.is_empty());
        assert_eq!(keys, self.keys_by_age.iter().collect());
        format!("{sas:?} {names:?} {keys:?} {stash:?} {:?}", self.highest_sa)
    }

    /// The transaction is in force.
    pub(super) fn commit(&mut self) {
        self.journal.clear();
        // One large transaction shall not hold memory for ever.
        self.journal.shrink_to(1024);
        while self.keys_by_age.len() > REMEMBERED_KEYS {
            if let Some(oldest) = self.keys_by_age.pop_front() {
                self.keys.remove(&oldest);
            }
        }
    }

    /// The transaction has failed.
    pub(super) fn roll_back(&mut self) {
        while let Some(undo) = self.journal.pop() {
            self.undo(undo);
        }
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Tunnel(id, old) => drop(replace_at(&mut self.tunnels, id.0, old)),
            Undo::Group(id, old) => drop(replace_at(&mut self.groups, id.0, old)),
            Undo::TunnelUsers(id, old) => {
                tunnel_mut(&mut self.tunnels, id).into_iter().for_each(|entry| entry.users = old);
            }
            Undo::TunnelSynced(id, old) => {
                tunnel_mut(&mut self.tunnels, id).into_iter().for_each(|entry| entry.synced = old);
            }
            Undo::GroupUsers(id, old) => {
                group_mut(&mut self.groups, id).into_iter().for_each(|entry| entry.users = old);
            }
            Undo::GroupSynced(id, old) => {
                group_mut(&mut self.groups, id).into_iter().for_each(|entry| entry.synced = old);
            }
            Undo::Sa(id, Some(old)) => drop(self.sas.insert(id, old)),
            Undo::Sa(id, None) => drop(self.sas.remove(&id)),
            Undo::HighestSa(old) => self.highest_sa = old,
            Undo::NewestKey => {
                if let Some(newest) = self.keys_by_age.pop_back() {
                    self.keys.remove(&newest);
                }
            }
            Undo::Name(name, Some(old)) => drop(self.names.insert(name, old)),
            Undo::Name(name, None) => drop(self.names.remove(&name)),
            Undo::Stash(key, Some(old)) => drop(self.stash.insert(key, old)),
            Undo::Stash(key, None) => drop(self.stash.remove(&key)),
        }
    }
}

fn tunnel_mut(tunnels: &mut [Option<TunnelEntry>], id: TunnelId) -> Option<&mut TunnelEntry> {
    tunnels.get_mut(id.0 as usize)?.as_mut()
}

fn group_mut(groups: &mut [Option<GroupEntry>], id: GroupId) -> Option<&mut GroupEntry> {
    groups.get_mut(id.0 as usize)?.as_mut()
}

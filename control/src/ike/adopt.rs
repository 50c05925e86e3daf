//! A new connection to the core: what an earlier life of control left there goes on, the rest goes.

use braid_api::{FRAME_HEADER_LEN, Generation, Stats, decode, encode};
use braid_ike::{HeldChild, PeerState};
use serde::{Deserialize, Serialize};

use super::*;
use crate::turn::NOTE;

/// What is kept in the stash with each SA.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct SaNote {
    pub(super) child: u64,
    pub(super) inbound: bool,
    pub(super) tunnel: String,
    pub(super) negotiated: Negotiated,
}

impl SaNote {
    pub(super) fn value(&self) -> Option<StashValue> {
        let frame = encode(self).ok()?;
        Some(StashValue(frame.get(FRAME_HEADER_LEN..)?.to_vec()))
    }
}

impl Ike {
    /// There is a core, and its stash was read. `stats` tells the ages of the SAs, where there are any;
    /// `unix_time` is the wall clock.
    pub fn start(
        &mut self,
        turn: &mut Turn,
        generation: Generation,
        stash: Vec<(u64, StashValue)>,
        stats: Option<&Stats>,
        unix_time: Duration,
        now: Now,
    ) {
        self.handle_core_gone(now.instant);
        if !stash.is_empty() {
            // It was only the connection that was lost.
            self.lost.clear();
        }
        let settings = EndpointSettings { key_log: self.logs_keys, ..EndpointSettings::default() };
        let mut endpoint = Endpoint::new(now.instant, unix_time, settings, &mut self.random);
        // Numbers of this life are above those of all before.
        endpoint.reserve_child_ids(ChildId(u64::from(generation.0) << 32));
        let (notes, states): (Vec<_>, Vec<_>) = stash.into_iter().partition(|(key, _)| key & NOTE != 0);
        self.read_notes(turn, &notes);
        // In ascending order, so that the newest is what stays.
        let negotiated = self.notes.values().map(|note| (note.tunnel.clone(), note.negotiated)).collect();
        turn.handle(TurnEvent::Adopt { negotiated }, now.turn);
        self.endpoint = Some(endpoint);
        self.sync_peers(turn, now);
        let held = held(&self.notes, stats);
        let mut adopted = BTreeSet::new();
        let Some(endpoint) = &mut self.endpoint else { return };
        // The newest first: of two that claim a child it is the heir.
        for (key, value) in states.into_iter().rev() {
            let held = |child: ChildId| held.get(&child).copied();
            match endpoint.adopt(now.instant, &mut self.random, &value.0, generation.0, &held) {
                Ok(sa) => adopted.extend(sa.children),
                Err(error) => {
                    tracing::warn!("an IKE SA of before cannot be adopted: {error}");
                    self.first.push(IkeOp::Forget(key));
                }
            }
        }
        // Told before anything else is, so that their traffic never stops.
        for (id, peer) in &mut self.peers {
            if endpoint.status(now.instant, *id).is_some_and(|status| status.state == PeerState::Up) {
                peer.is_up = true;
                self.states.insert(peer.name.clone(), IkeState::Up);
            }
        }
        self.drop_strays(turn, &adopted);
    }

    fn read_notes(&mut self, turn: &Turn, notes: &[(u64, StashValue)]) {
        let held: BTreeSet<SaId> = turn.ike_sas().map(|(id, ..)| id).collect();
        for (key, value) in notes {
            let id = SaId(key & !NOTE);
            match decode::<SaNote>(&value.0) {
                Ok(note) if held.contains(&id) => {
                    let way = if note.inbound { Way::In } else { Way::Out };
                    self.sas.insert((ChildId(note.child), way), id);
                    self.notes.insert(id, note);
                }
                Ok(_) | Err(_) => self.first.push(IkeOp::Forget(*key)),
            }
        }
    }

    /// SAs that nobody speaks for any more.
    fn drop_strays(&mut self, turn: &Turn, adopted: &BTreeSet<ChildId>) {
        for (id, ..) in turn.ike_sas() {
            let note = self.notes.get(&id);
            if note.is_some_and(|note| adopted.contains(&ChildId(note.child))) {
                continue;
            }
            if let Some(note) = self.notes.remove(&id) {
                let way = if note.inbound { Way::In } else { Way::Out };
                self.sas.remove(&(ChildId(note.child), way));
            }
            self.first.push(IkeOp::Remove(id));
        }
    }
}

/// What the core holds of those children of which it holds the inbound half.
fn held(notes: &BTreeMap<SaId, SaNote>, stats: Option<&Stats>) -> BTreeMap<ChildId, HeldChild> {
    let mut halves: BTreeMap<ChildId, [Option<Duration>; 2]> = BTreeMap::new();
    for sa in stats.iter().flat_map(|stats| &stats.sas) {
        if let Some(note) = notes.get(&sa.sa) {
            halves.entry(ChildId(note.child)).or_default()[usize::from(note.inbound)] = Some(sa.age);
        }
    }
    let held = halves.into_iter().filter_map(|(id, [out, inbound])| {
        // The age of the half that came first.
        let age = inbound?.max(out.unwrap_or_default());
        Some((id, HeldChild { age, outbound: out.is_some() }))
    });
    held.collect()
}

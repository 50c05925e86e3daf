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
        self.drop_strays(turn.ike_sas().map(|(id, ..)| id), &adopted, now.instant);
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

    /// SAs that nobody speaks for any more. One from the peer may have been replaced just before: what is under
    /// way on it still arrives.
    fn drop_strays(&mut self, held: impl Iterator<Item = SaId>, adopted: &BTreeSet<ChildId>, now: Instant) {
        let until = now + EndpointSettings::default().old_inbound_grace;
        for id in held {
            match self.notes.get(&id) {
                Some(note) if adopted.contains(&ChildId(note.child)) => {}
                Some(note) if note.inbound => self.strays.push((until, id)),
                Some(_) | None => self.drop_stray(id),
            }
        }
    }

    /// Strays whose time is over.
    pub(super) fn drop_due_strays(&mut self, now: Instant) {
        let due: Vec<_> = self.strays.extract_if(.., |(until, _)| *until <= now).collect();
        due.into_iter().for_each(|(_, id)| self.drop_stray(id));
    }

    fn drop_stray(&mut self, id: SaId) {
        if let Some(note) = self.notes.remove(&id) {
            let way = if note.inbound { Way::In } else { Way::Out };
            self.sas.remove(&(ChildId(note.child), way));
        }
        self.first.push(IkeOp::Remove(id));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_may_still_send_on_is_kept_for_its_grace_time() {
        let now = Instant::now();
        let mut ike = Ike::new();
        for (id, child, inbound) in [(1, 7, true), (2, 7, false), (3, 8, true), (4, 8, false)] {
            let path = Path { local: ([192, 0, 2, 1], 4500).into(), remote: ([192, 0, 2, 2], 4500).into() };
            let negotiated = path_of(path, EspTransport::Esp, braid_api::Suite::Aes128Gcm16);
            let note = SaNote { child, inbound, tunnel: "a".to_owned(), negotiated };
            ike.sas.insert((ChildId(child), if inbound { Way::In } else { Way::Out }), SaId(id));
            ike.notes.insert(SaId(id), note);
        }
        // Child 8 was adopted, of child 7 nobody knows, and 5 has no note.
        ike.drop_strays((1..=5).map(SaId), &BTreeSet::from([ChildId(8)]), now);
        let removed = |ike: &mut Ike| {
            let ops = core::mem::take(&mut ike.first).into_iter();
            ops.filter_map(|op| if let IkeOp::Remove(id) = op { Some(id.0) } else { None })
                .collect::<Vec<_>>()
        };
        assert_eq!(removed(&mut ike), [2, 5]);
        let until = ike.poll_timeout().unwrap();
        assert_eq!(until, now + Duration::from_secs(5));
        ike.handle_timeout(until - Duration::from_millis(1));
        assert_eq!(removed(&mut ike), [0; 0]);
        ike.handle_timeout(until);
        assert_eq!(removed(&mut ike), [1]);
        assert_eq!(ike.poll_timeout(), None);
        assert_eq!(ike.sas.len(), 2);
    }
}

//! WireGuard from the wire to the LAN: find the peer, open, and go on as with ESP.

use std::{net::SocketAddr, sync::Arc};

use braid_api::Event;

use super::{Arrival, Forwarder, MAX_REPLIES, Now, Progress};
use crate::{
    drop_reason::DropReason,
    handshakes::Handshake,
    io::batch::HEADROOM,
    offload::coalesce::Slots,
    tables::{Tables, Tunnel},
    wireguard::{Message, Peer, Receiving, message},
};

/// Neighbours of one peer share its lock and its counters.
struct Current<'t> {
    peer: &'t Arc<Peer>,
    tunnel: &'t Arc<Tunnel>,
    sessions: Receiving<'t>,
    authentic: bool,
    packets: u64,
    bytes: u64,
}

impl Current<'_> {
    fn finish(self, worker: usize, from: SocketAddr, now: Now, events: &mut Vec<Event>) {
        let Current { peer, tunnel, sessions, authentic, packets, bytes } = self;
        drop(sessions);
        if !authentic {
            return;
        }
        tunnel.live.received(worker, packets, bytes);
        tunnel.live.heard(now.nanos);
        // Whitepaper section 2.1: the peer is where its last authentic packet came from.
        tunnel.live.heard_from(from);
        if peer.heard() && events.len() < MAX_REPLIES {
            events.push(Event::WireGuard { tunnel: peer.tunnel, up: true });
        }
    }
}

impl Forwarder {
    /// [`Forwarder::inward`] for the socket of WireGuard with the address `local`.
    #[inline(never)]
    pub(super) fn inward_wireguard(
        &mut self,
        tables: &Tables,
        slots: &mut impl Slots,
        arrival: &mut Arrival,
        local: SocketAddr,
        now: Now,
    ) -> Progress {
        let mut current: Option<Current<'_>> = None;
        let mut progress = Progress::Done;
        while let Some(at) = arrival.next() {
            if self.lan.is_full() {
                arrival.again(&at);
                progress = Progress::Full;
                break;
            }
            let index = match message(&slots.slot(arrival.slot)[at.clone()]) {
                Ok(Message::Data { index }) => index,
                Ok(Message::Handshake) if self.handshakes.len() < MAX_REPLIES => {
                    // What is opened after it may take its place.
                    let message = &slots.slot(arrival.slot)[at];
                    self.handshakes.push(Handshake::new(arrival.from, message));
                    continue;
                }
                Ok(Message::Handshake) => {
                    self.drop(DropReason::HandshakeLoad, 1);
                    continue;
                }
                Err(reason) => {
                    self.drop(reason, 1);
                    continue;
                }
            };
            if current.as_ref().is_none_or(|current| current.peer.index != index) {
                if let Some(last) = current.take() {
                    last.finish(self.worker, arrival.from, now, &mut self.events);
                }
                current = find(tables, index, local);
            }
            let Some(of) = &mut current else {
                self.drop(DropReason::UnknownSession, 1);
                continue;
            };
            if let Err(reason) = self.open_wireguard(tables, of, slots, arrival, at, now) {
                self.drop(reason, 1);
            }
        }
        if let Some(last) = current {
            last.finish(self.worker, arrival.from, now, &mut self.events);
        }
        progress
    }

    #[inline]
    fn open_wireguard(
        &mut self,
        tables: &Tables,
        of: &mut Current<'_>,
        slots: &mut impl Slots,
        arrival: &Arrival,
        at: std::ops::Range<usize>,
        now: Now,
    ) -> Result<(), DropReason> {
        // boringtun opens from one place into another: into the place of what came before.
        let start = at.start - HEADROOM;
        let slot = slots.slot_mut(arrival.slot);
        let opened = if at.len() <= HEADROOM {
            let (before, rest) = slot.split_at_mut(at.start);
            of.sessions.open(&rest[..at.len()], &mut before[start..start + at.len()])
        } else {
            self.sealed.clear();
            self.sealed.extend_from_slice(&slot[at.clone()]);
            of.sessions.open(&self.sealed, &mut slot[start..start + at.len()])
        };
        of.authentic |= matches!(opened, Ok(_) | Err(DropReason::DecryptedMalformed));
        let len = match opened? {
            // Section 6.5: nothing is inside a keepalive.
            0 => return Ok(()),
            len => len,
        };
        let packet = self.parse_opened(&slots.slot(arrival.slot)[start..start + len])?;
        of.packets += 1;
        of.bytes += packet.len as u64;
        self.deliver(tables, of.tunnel, &packet, slots, arrival, start, now)
    }
}

/// A tunnel has one address of ours: what comes to another one could not be answered from there.
fn find(tables: &Tables, index: u32, local: SocketAddr) -> Option<Current<'_>> {
    let peer = tables.peer(index)?;
    let tunnel = tables.tunnel(peer.tunnel).filter(|tunnel| tunnel.settings.local == local)?;
    Some(Current { peer, tunnel, sessions: peer.receiving(), authentic: false, packets: 0, bytes: 0 })
}

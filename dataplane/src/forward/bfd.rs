//! BFD packets that came out of a tunnel (RFC 5881), taken for the sessions of the liveness thread.

use braid_api::{Bfd, TunnelId};
use braid_bfd::datagram::{Datagram, NotBfd, PORT_SINGLE_HOP};

use crate::packet::{Packet, protocol};

/// More octets of a payload than a packet without authentication has; no session accepts another.
const MAX_PAYLOAD: usize = 64;

/// A control packet for a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BfdPacket {
    /// Out of which tunnel.
    pub tunnel: TunnelId,
    /// Of which family.
    pub v6: bool,
    /// TTL or hop limit.
    pub ttl: u8,
    len: u8,
    payload: [u8; MAX_PAYLOAD],
}

impl BfdPacket {
    /// The UDP payload, as far as it matters.
    pub fn payload(&self) -> &[u8] {
        &self.payload[..usize::from(self.len)]
    }
}

/// Looks for a packet of one of a tunnel's sessions; `Err`: it is of one, and broken.
pub(crate) fn take(
    tunnel: TunnelId,
    sessions: &[Bfd],
    packet: &Packet,
    bytes: &[u8],
) -> Option<Result<BfdPacket, NotBfd>> {
    let port = packet.key.rest as u16;
    if sessions.is_empty() || packet.protocol != protocol::UDP || port != PORT_SINGLE_HOP {
        return None;
    }
    let (source, destination) = (packet.source(), packet.destination());
    sessions.iter().find(|session| session.remote == source && session.local == destination)?;
    let datagram = match Datagram::parse(bytes) {
        Ok(datagram) => datagram,
        // Extension headers or fragments: not what a session sends, nor what one must take.
        Err(NotBfd::Other) => return None,
        Err(broken) => return Some(Err(broken)),
    };
    let len = datagram.payload.len().min(MAX_PAYLOAD);
    let mut payload = [0; MAX_PAYLOAD];
    payload[..len].copy_from_slice(&datagram.payload[..len]);
    // At most MAX_PAYLOAD, which fits.
    Some(Ok(BfdPacket { tunnel, v6: packet.v6, ttl: datagram.ttl, len: len as u8, payload }))
}

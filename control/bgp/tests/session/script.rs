//! One neighbor, and a peer whose octets are written by hand.

use std::time::Instant;

use braid_bgp::{ConnectionId, Effect, Event, Neighbor, NeighborConfig, Update};

pub(crate) struct Script {
    pub(crate) neighbor: Neighbor,
    pub(crate) now: Instant,
    pub(crate) id: ConnectionId,
}

/// A whole message.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    out.extend(((19 + body.len()) as u16).to_be_bytes());
    out.push(kind);
    out.extend(body);
    out
}

pub(crate) fn keepalive() -> Vec<u8> {
    message(4, &[])
}

/// An OPEN with these capabilities, one optional parameter each.
pub(crate) fn open(asn: u16, hold: u16, id: [u8; 4], capabilities: &[&[u8]]) -> Vec<u8> {
    let parameters: Vec<u8> =
        capabilities.iter().flat_map(|c| [&[2, c.len() as u8][..], c].concat()).collect();
    let mut body = vec![4];
    body.extend(asn.to_be_bytes());
    body.extend(hold.to_be_bytes());
    body.extend(id);
    body.push(parameters.len() as u8);
    body.extend(parameters);
    message(1, &body)
}

/// Capabilities: IPv4 unicast, IPv6 unicast, route refresh, AS 65001 in four octets.
pub(crate) const IPV4: &[u8] = &[1, 4, 0, 1, 0, 1];
pub(crate) const IPV6: &[u8] = &[1, 4, 0, 2, 0, 1];
pub(crate) const REFRESH: &[u8] = &[2, 0];
pub(crate) const AS4: &[u8] = &[65, 4, 0, 0, 0xfd, 0xe9];
pub(crate) const EVERYTHING: &[&[u8]] = &[IPV4, IPV6, REFRESH, AS4];

/// An UPDATE of withdrawn routes, attributes and routes.
pub(crate) fn update(withdrawn: &[u8], attributes: &[&[u8]], nlri: &[u8]) -> Vec<u8> {
    let attributes = attributes.concat();
    let mut body = (withdrawn.len() as u16).to_be_bytes().to_vec();
    body.extend(withdrawn);
    body.extend((attributes.len() as u16).to_be_bytes());
    body.extend(attributes);
    body.extend(nlri);
    message(2, &body)
}

/// 10.1.0.0/16.
pub(crate) const TEN_ONE: &[u8] = &[16, 10, 1];
pub(crate) const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
/// 65001, in four octets.
pub(crate) const AS_PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9];
/// 169.254.10.1.
pub(crate) const NEXT_HOP: &[u8] = &[0x40, 3, 4, 169, 254, 10, 1];
/// MP_REACH_NLRI: fd00:1::/32 by fd00::1.
pub(crate) const REACH: &[u8] =
    &[0x80, 14, 26, 0, 2, 1, 16, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 32, 0xfd, 0, 0, 1];

impl Script {
    /// A neighbor that was connected to, and has sent its OPEN.
    pub(crate) fn accepted(config: NeighborConfig) -> Self {
        let now = crate::origin();
        let mut neighbor = Neighbor::new(NeighborConfig { passive: true, ..config }, 1);
        neighbor.start(now);
        let id = neighbor.handle_accepted(now).unwrap();
        let mut script = Script { neighbor, now, id };
        let [Effect::Transmit(_, open)] = &script.effects()[..] else { panic!("no OPEN") };
        assert_eq!(open[18], 1);
        script
    }

    /// Established with a peer of AS 65001 that has these capabilities.
    pub(crate) fn established(config: NeighborConfig, capabilities: &[&[u8]]) -> Self {
        let mut script = Script::accepted(config);
        script.feed(&open(65001, 30, [10, 0, 0, 2], capabilities));
        let effects = script.feed(&keepalive());
        assert!(
            effects.iter().any(|effect| matches!(effect, Effect::Event(Event::Established(_)))),
            "{effects:?}"
        );
        script
    }

    pub(crate) fn feed(&mut self, octets: &[u8]) -> Vec<Effect> {
        self.neighbor.handle_bytes(self.now, self.id, octets);
        self.effects()
    }

    pub(crate) fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.neighbor.poll_effect()).collect()
    }

    /// Feeds one UPDATE, of which only routes come.
    pub(crate) fn routes(&mut self, octets: &[u8]) -> Update {
        let effects = self.feed(octets);
        let [Effect::Event(Event::Update(update))] = &effects[..] else { panic!("{effects:?}") };
        update.clone()
    }
}

/// Code and subcode of the NOTIFICATION among the effects, if there is one; then the connection is closed.
pub(crate) fn notification(effects: &[Effect]) -> Option<(u8, u8)> {
    let sent = effects.iter().find_map(|effect| match effect {
        Effect::Transmit(_, octets) if octets[18] == 3 => Some((octets[19], octets[20])),
        _ => None,
    });
    let closed = effects.iter().any(|effect| matches!(effect, Effect::Close(_)));
    assert!(sent.is_none() || closed, "{effects:?}");
    sent
}

//! What the fuzz targets do with their input. `cargo test` runs the same over the committed corpus.

use std::time::Instant;

use braid_bgp::{
    Attributes, Effect, Event, Family, Neighbor, NeighborConfig, RouteLimit,
    adj_out::{AdjOut, ExportSettings},
    policy::PrefixMatch,
    rib::{ImportSettings, NeighborId, Resolver, Rib, decision::DecisionSettings},
};

/// Routes that the peer may send.
const MOST: u32 = 50;
const PEER: NeighborId = NeighborId(1);

struct Everything;

impl Resolver for Everything {
    fn cost(&self, _: NeighborId, _: &Attributes) -> Option<u32> {
        Some(0)
    }
}

/// From an established peer: an octet of circumstances, then its octets, which go all the way into the tables
/// and out to another peer.
pub(crate) fn stream(now: Instant, input: &[u8]) {
    let Some((&circumstances, octets)) = input.split_first() else { return };
    let (internal, add_path, two_octets) =
        (circumstances & 1 != 0, circumstances & 2 != 0, circumstances & 4 != 0);
    let local_as = if internal { 65001 } else { 65000 };
    let config = NeighborConfig {
        passive: true,
        families: vec![Family::Ipv4, Family::Ipv6],
        add_path,
        ..NeighborConfig::new(local_as, 65001, [10, 0, 0, 1].into())
    };
    let mut neighbor = Neighbor::new(config, 1);
    neighbor.start(now);
    let Ok(id) = neighbor.handle_accepted(now) else { return };
    neighbor.handle_bytes(now, id, &open(add_path, two_octets));
    neighbor.handle_bytes(now, id, &KEEPALIVE);
    assert!(neighbor.established().is_some());

    let mut rib = Rib::new(local_as, [10, 0, 0, 1].into(), DecisionSettings::default());
    let limit = Some(RouteLimit::new(MOST));
    rib.put_neighbor(PEER, ImportSettings { external: !internal, limit, ..ImportSettings::external() });
    let settings = ExportSettings {
        next_hop_v6: Some([0xfd00, 0, 0, 0, 0, 0, 0, 1].into()),
        sources: [PEER].into(),
        ..ExportSettings::external(local_as, [10, 0, 0, 1].into())
    };
    let mut out = AdjOut::new(NeighborId(2), settings);
    let (first, second) = octets.split_at(octets.len() / 2);
    for piece in [first, second] {
        neighbor.handle_bytes(now, id, piece);
        while let Some(effect) = neighbor.poll_effect() {
            match effect {
                Effect::Event(Event::Update(update)) => drop(rib.update(PEER, &update).is_some()),
                Effect::Event(Event::EndOfRib(family)) => rib.end_of_rib(PEER, family),
                Effect::Event(Event::Down { retain, .. }) => rib.down(PEER, &retain),
                Effect::Event(_) | Effect::Connect(_) | Effect::Transmit(..) | Effect::Close(_) => {}
            }
        }
        assert!(rib.counts(PEER).received <= MOST as usize);
        for change in rib.decide(&Everything, usize::MAX) {
            out.handle_change(&change, Some(100));
        }
        let (outgoing, _) = out.poll(usize::MAX);
        neighbor.send(&outgoing);
    }
    assert!(rib.len() <= MOST as usize);
    while let Some(effect) = neighbor.poll_effect() {
        if let Effect::Transmit(_, octets) = effect {
            assert!((19..=4096).contains(&octets.len()));
        }
    }
}

/// A rule of a prefix list.
pub(crate) fn filter(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(rule) = text.parse::<PrefixMatch>() {
        assert_eq!(rule.to_string().parse(), Ok(rule), "what is written is read");
    }
}

const KEEPALIVE: [u8; 19] = {
    let mut message = [0xff; 19];
    (message[16], message[17], message[18]) = (0, 19, 4);
    message
};

/// From AS 65001, with both families, route refresh, and what else there is.
fn open(add_path: bool, two_octets: bool) -> Vec<u8> {
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 6, 0];
    if add_path {
        capabilities.extend([69, 8, 0, 1, 1, 3, 0, 2, 1, 3]);
    }
    if !two_octets {
        capabilities.extend([65, 4, 0, 0, 0xfd, 0xe9]);
    }
    let parameters = [&[2, capabilities.len() as u8][..], &capabilities].concat();
    let body = [&[4, 0xfd, 0xe9, 0, 90, 10, 0, 0, 2, parameters.len() as u8][..], &parameters].concat();
    [&[0xff; 16][..], &[0, 19 + body.len() as u8, 1], &body].concat()
}

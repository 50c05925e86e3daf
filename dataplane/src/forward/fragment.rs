//! IPv4 fragmentation before encryption, and the memory that keeps a packet's fragments together.

use crate::{
    offload::checksum,
    packet::{FlowKey, Fragment, Packet},
};

const REMEMBERED: usize = 256;
/// A first fragment older than this is of another packet with the same identification.
const REMEMBER_NANOS: u64 = 2_000_000_000;

/// Cuts an IPv4 packet into fragments of at most `mtu` bytes (RFC 791 section 3.2).
pub(super) struct Fragmenter<'a> {
    packet: &'a [u8],
    header: usize,
    /// Payload bytes of each fragment but the last: a multiple of 8.
    step: usize,
    id: [u8; 2],
}

impl<'a> Fragmenter<'a> {
    /// `None` when the MTU leaves no room for 8 bytes of payload. `fresh` is the identification of a packet that
    /// forbade fragments: it has none that tells it from others (RFC 6864 section 4.1), and Linux says 0.
    pub(super) fn new(packet: &'a [u8], mtu: usize, fresh: u16) -> Option<Self> {
        let header = usize::from(packet[0] & 0x0F) * 4;
        let step = mtu.checked_sub(header)? / 8 * 8;
        let is_atomic = packet[6] & 0x60 == 0x40 && u16::from_be_bytes([packet[6], packet[7]]) & 0x1FFF == 0;
        let id = if is_atomic { fresh.to_be_bytes() } else { [packet[4], packet[5]] };
        (step > 0).then_some(Fragmenter { packet, header, step, id })
    }

    /// Fragments in all.
    pub(super) fn count(&self) -> usize {
        (self.packet.len() - self.header).div_ceil(self.step)
    }

    /// Bytes of fragment `index`.
    pub(super) fn len(&self, index: usize) -> usize {
        self.header_len(index) + (self.packet.len() - self.header - index * self.step).min(self.step)
    }

    /// Writes fragment `index` into exactly [`Fragmenter::len`] bytes; DF is cleared.
    pub(super) fn write(&self, index: usize, out: &mut [u8]) {
        let header = self.header_len(index);
        self.write_header(index, &mut out[..header]);
        let from = self.header + index * self.step;
        let payload = out.len() - header;
        out[header..].copy_from_slice(&self.packet[from..from + payload]);
        let old = u16::from_be_bytes([self.packet[6], self.packet[7]]);
        let more = index + 1 < self.count() || old & 0x2000 != 0;
        let offset = (old & 0x1FFF) + (index * self.step / 8) as u16;
        let word = offset | if more { 0x2000 } else { 0 };
        let len = out.len() as u16;
        out[0] = 0x40 | (header / 4) as u8;
        out[2..4].copy_from_slice(&len.to_be_bytes());
        out[4..6].copy_from_slice(&self.id);
        out[6..8].copy_from_slice(&word.to_be_bytes());
        checksum::set_ipv4_checksum(&mut out[..header]);
    }

    /// Options without the copied flag stay with the first fragment (RFC 791 section 3.1).
    fn header_len(&self, index: usize) -> usize {
        if index == 0 {
            return self.header;
        }
        (20 + self.copied_options().map(<[u8]>::len).sum::<usize>()).next_multiple_of(4)
    }

    fn write_header(&self, index: usize, out: &mut [u8]) {
        if index == 0 {
            out.copy_from_slice(&self.packet[..self.header]);
            return;
        }
        out[..20].copy_from_slice(&self.packet[..20]);
        let mut at = 20;
        for option in self.copied_options() {
            out[at..at + option.len()].copy_from_slice(option);
            at += option.len();
        }
        out[at..].fill(0);
    }

    fn copied_options(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = &self.packet[20..self.header];
        core::iter::from_fn(move || {
            loop {
                let kind = *rest.first()?;
                let len = match kind {
                    0 => return None,
                    1 => 1,
                    _ => usize::from(*rest.get(1)?),
                };
                let option = rest.get(..len).filter(|_| len > 0)?;
                rest = &rest[len..];
                if kind & 0x80 != 0 {
                    return Some(option);
                }
            }
        })
    }
}

#[derive(Clone, Copy)]
struct Entry {
    key: FlowKey,
    id: u32,
    ports: u64,
    nanos: u64,
}

/// The ports of first fragments, so that later ones take the same way.
pub(super) struct FragmentCache(Box<[Entry]>);

impl FragmentCache {
    pub(super) fn new() -> Self {
        let entry = Entry { key: FlowKey::default(), id: 0, ports: 0, nanos: 0 };
        FragmentCache(vec![entry; REMEMBERED].into_boxed_slice())
    }

    /// The packet's flow key: of a later fragment whose first was seen, the first one's.
    pub(super) fn key(&mut self, packet: &Packet, fragment: Fragment, nanos: u64) -> FlowKey {
        const PORTS: u64 = 0xFFFF_FFFF;
        let bare = FlowKey { rest: packet.key.rest & !PORTS, ..packet.key };
        let index = (bare.slot() ^ (fragment.id as usize).wrapping_mul(0x9E37_79B1)) % REMEMBERED;
        let entry = &mut self.0[index];
        if fragment.first {
            *entry = Entry { key: bare, id: fragment.id, ports: packet.key.rest & PORTS, nanos };
            return packet.key;
        }
        let known = entry.key == bare
            && entry.id == fragment.id
            && entry.nanos != 0
            && nanos.wrapping_sub(entry.nanos) < REMEMBER_NANOS;
        if known { FlowKey { rest: bare.rest | entry.ports, ..bare } } else { bare }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        offload::checksum::Sum,
        packet::{parse, tests::udp4},
    };

    fn reassemble(fragments: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = Vec::new();
        for (index, bytes) in fragments.iter().enumerate() {
            let packet = parse(bytes).unwrap();
            assert_eq!(packet.len, bytes.len());
            assert!(Sum::ZERO.bytes(&bytes[..packet.transport]).is_valid());
            let word = u16::from_be_bytes([bytes[6], bytes[7]]);
            assert_eq!(usize::from(word & 0x1FFF) * 8, payload.len());
            assert_eq!(word & 0x2000 != 0, index + 1 < fragments.len());
            assert_eq!(word & 0x4000, 0);
            payload.extend(&bytes[packet.transport..]);
        }
        payload
    }

    #[test]
    fn fragments_are_whole_again_together() {
        let payload: Vec<u8> = (0..4000_u32).map(|i| i as u8).collect();
        let mut packet = udp4([10, 1, 0, 2], [10, 2, 0, 2], (1, 2), &payload);
        packet[6] |= 0x40;
        for mtu in [28, 576, 1400, 1438] {
            let fragmenter = Fragmenter::new(&packet, mtu, 7).unwrap();
            let fragments: Vec<Vec<u8>> = (0..fragmenter.count())
                .map(|index| {
                    let mut out = vec![0xEE; fragmenter.len(index)];
                    fragmenter.write(index, &mut out);
                    assert!(out.len() <= mtu);
                    out
                })
                .collect();
            assert_eq!(reassemble(&fragments), packet[20..]);
        }
        assert!(Fragmenter::new(&packet, 27, 7).is_none());
    }

    #[test]
    fn fragments_of_two_packets_are_told_apart() {
        let id = |flags: [u8; 2], index| {
            let mut packet = udp4([10, 1, 0, 2], [10, 2, 0, 2], (1, 2), &[7; 100]);
            packet[4..8].copy_from_slice(&[0, 0, flags[0], flags[1]]);
            let fragmenter = Fragmenter::new(&packet, 84, 0x1234).unwrap();
            let mut out = vec![0; fragmenter.len(index)];
            fragmenter.write(index, &mut out);
            assert!(Sum::ZERO.bytes(&out[..20]).is_valid());
            u16::from_be_bytes([out[4], out[5]])
        };
        assert_eq!([id([0x40, 0], 0), id([0x40, 0], 1)], [0x1234; 2]);
        // One that may be cut, and pieces of what was cut before, have their own.
        for flags in [[0, 0], [0x20, 0], [0x60, 0], [0x40, 8], [0, 8]] {
            assert_eq!([id(flags, 0), id(flags, 1)], [0; 2], "{flags:?}");
        }
    }

    #[test]
    fn only_copied_options_travel_with_later_fragments() {
        let plain = udp4([10, 1, 0, 2], [10, 2, 0, 2], (1, 2), &[7; 100]);
        let mut packet = plain[..20].to_vec();
        packet[0] = 0x47;
        // A no-op, a record-route option that is not copied, a router alert that is.
        packet.extend([1, 7, 3, 4, 0x94, 4, 0, 0]);
        packet.extend(&plain[20..]);
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        let fragmenter = Fragmenter::new(&packet, 84, 7).unwrap();
        let mut second = vec![0; fragmenter.len(1)];
        fragmenter.write(1, &mut second);
        assert_eq!(second[0], 0x46);
        assert_eq!(second[20..24], [0x94, 4, 0, 0]);
    }

    #[test]
    fn later_fragments_follow_the_first() {
        let mut cache = FragmentCache::new();
        let mut bytes = udp4([10, 1, 0, 2], [10, 2, 0, 2], (1000, 2000), &[0; 64]);
        bytes[6] = 0x20;
        let first = parse(&bytes).unwrap();
        bytes[7] = 8;
        let later = parse(&bytes).unwrap();
        let fragment = later.fragment.unwrap();
        assert_eq!(cache.key(&later, fragment, 1), later.key);
        assert_eq!(cache.key(&first, first.fragment.unwrap(), 2), first.key);
        assert_eq!(cache.key(&later, fragment, 3), first.key);
        assert_eq!(cache.key(&later, fragment, 3 + REMEMBER_NANOS), later.key);
    }
}

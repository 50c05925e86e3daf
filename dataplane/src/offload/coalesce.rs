//! Joining packets that came out of tunnels into super-packets for the TUN device.
//!
//! A super-packet is a list of the places where its payloads lie, decrypted, in the receive pool:
//! nothing is copied but headers. It stays open over receive calls until the pool is written out.
//!
//! Rules: only neighbours of one flow join, in order; a packet that cannot join closes its flow's
//! super-packet, so that nothing is reordered within a flow. The kernel gives a super-packet fresh
//! checksums, so each packet's own is verified before it joins: what arrived broken stays alone and
//! stays broken.

use super::{
    MAX_HEADERS,
    checksum::{self, Sum},
    vnet::{Gso, VNET_LEN, Vnet},
};
use crate::packet::{FlowKey, Packet, protocol};

/// Most packets that wait to be written.
pub const MAX_PENDING: usize = 512;
/// Most packets that join: more would not make the device faster.
const MAX_PARTS: usize = 64;
/// Largest super-packet, in bytes.
const MAX_LEN: usize = 65_535;
const INDEX_LEN: usize = 1024;
const NONE: u16 = u16::MAX;

const TCP_ACK: u8 = 0x10;
const TCP_PSH: u8 = 0x08;

/// A place in the receive pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The pool's slot.
    pub slot: u16,
    /// First byte.
    pub start: u16,
    /// Bytes.
    pub len: u16,
}

/// One packet, or several joined, to be written to the device at once.
#[derive(Debug)]
pub struct Pending {
    key: FlowKey,
    kind: Kind,
    /// The first packet whole.
    first: Place,
    /// Payloads of the packets that joined the first.
    rest: Vec<Place>,
    header_len: u8,
    transport: u8,
    segment: u16,
    /// Bytes of the packet as it stands.
    total: u32,
    next_sequence: u32,
    /// The first packet's checksum was verified.
    verified: bool,
    push: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Nothing joins it.
    Closed,
    Tcp,
    Udp,
}

/// What is to be written, in the order of arrival.
#[derive(Debug)]
pub struct Coalescer {
    pending: Vec<Pending>,
    used: usize,
    /// Which pending packet of a flow is open.
    index: Box<[u16; INDEX_LEN]>,
    enabled: bool,
    udp_enabled: bool,
}

impl Coalescer {
    /// With `enabled` false, for a device without offload, every packet stays alone.
    pub fn new(enabled: bool) -> Self {
        Coalescer {
            pending: Vec::with_capacity(MAX_PENDING),
            used: 0,
            index: Box::new([NONE; INDEX_LEN]),
            enabled,
            udp_enabled: enabled,
        }
    }

    /// No super-packets from now on: the kernel refused one.
    pub fn disable(&mut self, gso: Gso) {
        self.udp_enabled = false;
        if gso != Gso::Udp {
            self.enabled = false;
        }
    }

    /// Whether no further packet can be taken until [`Coalescer::clear`].
    pub fn is_full(&self) -> bool {
        self.used == MAX_PENDING
    }

    /// What is to be written.
    pub fn pending(&self) -> &[Pending] {
        &self.pending[..self.used]
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        if self.used > 0 {
            self.used = 0;
            self.index.fill(NONE);
        }
    }

    /// Takes a packet that lies at `place`; `bytes` is its slot. The caller has made sure that it
    /// is not full.
    #[inline]
    pub fn push(&mut self, packet: &Packet, place: Place, slots: &impl Slots) {
        let candidate = if self.enabled { self.candidate(packet, place, slots) } else { None };
        if !self.enabled {
            self.append(Pending::closed(packet.key, place));
            return;
        }
        let cell = packet.key.slot() % INDEX_LEN;
        let open = self.index[cell];
        if let Some(header_len) = candidate {
            if open != NONE && self.join(usize::from(open), packet, place, header_len, slots) {
                return;
            }
            let number = self.used as u16;
            let pending = Pending::open(packet, place, header_len, slots);
            self.append(pending);
            self.index[cell] = number;
            return;
        }
        // Whatever follows in this flow must stay behind this packet.
        self.index[cell] = NONE;
        if packet.fragment.is_some() {
            // Fragments do not say which flow they are of.
            self.index.fill(NONE);
        }
        self.append(Pending::closed(packet.key, place));
    }

    fn append(&mut self, pending: Pending) {
        if let Some(slot) = self.pending.get_mut(self.used) {
            let mut rest = core::mem::take(&mut slot.rest);
            rest.clear();
            *slot = Pending { rest, ..pending };
        } else {
            let rest = Vec::with_capacity(MAX_PARTS);
            self.pending.push(Pending { rest, ..pending });
        }
        self.used += 1;
    }

    /// Bytes of the headers, if the packet may be part of a super-packet.
    #[inline]
    fn candidate(&self, packet: &Packet, place: Place, slots: &impl Slots) -> Option<u8> {
        if !packet.plain || packet.fragment.is_some() {
            return None;
        }
        let bytes = slots.bytes(place);
        match packet.protocol {
            protocol::TCP => {
                let tcp = bytes.get(packet.transport..packet.len)?;
                let header = usize::from(tcp.get(12)? >> 4) * 4;
                let flags = tcp[13];
                let plain = flags & !TCP_PSH == TCP_ACK && tcp[12] & 0x0F == 0;
                (plain && header >= 20 && header < tcp.len()).then(|| (packet.transport + header) as u8)
            }
            protocol::UDP if self.udp_enabled => {
                let udp = bytes.get(packet.transport..packet.len)?;
                let len = usize::from(u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]));
                (udp.len() > 8 && len == udp.len()).then_some((packet.transport + 8) as u8)
            }
            _ => None,
        }
    }

    /// Joins the packet to an open one, if it continues it.
    #[inline]
    fn join(
        &mut self,
        open: usize,
        packet: &Packet,
        place: Place,
        header_len: u8,
        slots: &impl Slots,
    ) -> bool {
        let pending = &mut self.pending[open];
        let payload = packet.len - usize::from(header_len);
        if pending.kind == Kind::Closed
            || pending.key != packet.key
            || pending.header_len != header_len
            || payload > usize::from(pending.segment)
            || pending.total as usize + payload > MAX_LEN
            || pending.rest.len() + 1 >= MAX_PARTS
        {
            return false;
        }
        let first = slots.bytes(pending.first);
        let bytes = slots.bytes(place);
        let headers = usize::from(header_len);
        let position = pending.rest.len() + 1;
        if !same_ip(&first[..headers], &bytes[..headers], packet.v6, position)
            || (pending.kind == Kind::Tcp && !pending.continues(first, bytes, packet.transport))
            || !pending.verify_first(first, packet)
            || !is_intact(packet, &bytes[..packet.len])
        {
            return false;
        }
        pending.push = pending.kind == Kind::Tcp && bytes[packet.transport + 13] & TCP_PSH != 0;
        pending.rest.push(Place {
            slot: place.slot,
            start: place.start + u16::from(header_len),
            len: payload as u16,
        });
        pending.total += payload as u32;
        pending.next_sequence = pending.next_sequence.wrapping_add(payload as u32);
        if payload < usize::from(pending.segment) || pending.push {
            pending.kind = Kind::Closed;
        }
        true
    }
}

/// Where packets lie.
pub trait Slots {
    /// The bytes of a slot.
    fn slot(&self, slot: usize) -> &[u8];

    /// The bytes of a slot, to open packets in place.
    fn slot_mut(&mut self, slot: usize) -> &mut [u8];

    /// The bytes of a place.
    #[inline]
    fn bytes(&self, place: Place) -> &[u8] {
        &self.slot(usize::from(place.slot))[usize::from(place.start)..][..usize::from(place.len)]
    }
}

impl Pending {
    fn closed(key: FlowKey, first: Place) -> Self {
        Pending {
            key,
            kind: Kind::Closed,
            first,
            rest: Vec::new(),
            header_len: 0,
            transport: 0,
            segment: 0,
            total: u32::from(first.len),
            next_sequence: 0,
            verified: false,
            push: false,
        }
    }

    fn open(packet: &Packet, first: Place, header_len: u8, slots: &impl Slots) -> Self {
        let bytes = slots.bytes(first);
        let payload = (packet.len - usize::from(header_len)) as u16;
        let mut pending = Pending::closed(packet.key, first);
        pending.transport = packet.transport as u8;
        pending.header_len = header_len;
        pending.segment = payload;
        if packet.protocol == protocol::TCP {
            let tcp = &bytes[packet.transport..];
            let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            pending.next_sequence = sequence.wrapping_add(u32::from(payload));
            pending.kind = if tcp[13] & TCP_PSH == 0 { Kind::Tcp } else { Kind::Closed };
        } else {
            pending.kind = Kind::Udp;
        }
        pending
    }

    /// Whether a TCP header is the first one's, one segment on.
    #[inline]
    fn continues(&self, first: &[u8], next: &[u8], transport: usize) -> bool {
        let end = usize::from(self.header_len);
        let (a, b) = (&first[transport..end], &next[transport..end]);
        let sequence = u32::from_be_bytes([b[4], b[5], b[6], b[7]]);
        // Ports are in the key; PSH may differ, acknowledgement, window, urgent pointer and options not.
        sequence == self.next_sequence
            && a[8..12] == b[8..12]
            && a[12] == b[12]
            && a[14..16] == b[14..16]
            && a[18..] == b[18..]
    }

    #[inline]
    fn verify_first(&mut self, first: &[u8], like: &Packet) -> bool {
        if !self.verified {
            self.verified = is_intact(like, &first[..usize::from(self.first.len)]);
            if !self.verified {
                self.kind = Kind::Closed;
            }
        }
        self.verified
    }

    /// What kind of super-packet it would be; `first` are the bytes of its first packet.
    pub fn gso(&self, first: &[u8]) -> Gso {
        match (first[0] >> 4, if first[0] >> 4 == 6 { first[6] } else { first[9] }) {
            (_, protocol::UDP) => Gso::Udp,
            (6, _) => Gso::Tcp6,
            _ => Gso::Tcp4,
        }
    }

    /// Packets in it.
    pub fn count(&self) -> usize {
        self.rest.len() + 1
    }

    /// The first packet, whole.
    pub fn first(&self) -> Place {
        self.first
    }

    /// The payloads behind it.
    pub fn rest(&self) -> &[Place] {
        &self.rest
    }

    /// The packets one by one, for a device that refused them joined: the headers still stand
    /// before their payloads.
    pub fn apart(&self) -> impl Iterator<Item = Place> + '_ {
        let header = u16::from(self.header_len);
        let rest = self.rest.iter().map(move |place| Place {
            slot: place.slot,
            start: place.start - header,
            len: place.len + header,
        });
        core::iter::once(self.first).chain(rest)
    }

    /// The virtio-net header and, for a super-packet, its packet headers with their length;
    /// a packet alone goes as it is.
    pub fn headers(&self, first: &[u8]) -> ([u8; VNET_LEN], Option<([u8; MAX_HEADERS], usize)>) {
        if self.rest.is_empty() {
            return (Vnet::default().encode(), None);
        }
        let len = usize::from(self.header_len);
        let transport = usize::from(self.transport);
        let mut headers = [0; MAX_HEADERS];
        headers[..len].copy_from_slice(&first[..len]);
        let v6 = headers[0] >> 4 == 6;
        let total = self.total as usize;
        let (protocol, addresses) = if v6 {
            headers[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
            (headers[6], 8..40)
        } else {
            headers[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            checksum::set_ipv4_checksum(&mut headers[..transport]);
            (headers[9], 12..20)
        };
        let partial = checksum::pseudo_header(&headers[addresses], protocol, total - transport).folded();
        let (gso, csum_offset) = if protocol == protocol::TCP {
            if self.push {
                headers[transport + 13] |= TCP_PSH;
            }
            (if v6 { Gso::Tcp6 } else { Gso::Tcp4 }, 16)
        } else {
            headers[transport + 4..transport + 6]
                .copy_from_slice(&((total - transport) as u16).to_be_bytes());
            (Gso::Udp, 6)
        };
        let at = transport + usize::from(csum_offset);
        headers[at..at + 2].copy_from_slice(&partial);
        let vnet = Vnet {
            needs_csum: true,
            gso,
            ecn: false,
            hdr_len: u16::from(self.header_len),
            gso_size: self.segment,
            csum_start: u16::from(self.transport),
            csum_offset,
        };
        (vnet.encode(), Some((headers, len)))
    }
}

/// Whether two IP headers agree in all that a super-packet has only once. `position` counts from the first.
#[inline]
fn same_ip(first: &[u8], next: &[u8], v6: bool, position: usize) -> bool {
    if v6 {
        // Version, traffic class, flow label; next header and hop limit.
        return first[..4] == next[..4] && first[6..8] == next[6..8];
    }
    let id = |header: &[u8]| u16::from_be_bytes([header[4], header[5]]);
    // With DF the identification has no meaning (RFC 6864 section 4.1); else the kernel counts up.
    let counted = first[6] & 0x40 != 0 || id(next) == id(first).wrapping_add(position as u16);
    first[1] == next[1] && first[6..9] == next[6..9] && counted
}

/// Whether the transport checksum is right, or a UDP packet over IPv4 has none (RFC 768).
#[inline]
fn is_intact(packet: &Packet, bytes: &[u8]) -> bool {
    let addresses = if packet.v6 { &bytes[8..40] } else { &bytes[12..20] };
    let transport = &bytes[packet.transport..];
    if packet.protocol == protocol::UDP && !packet.v6 && transport[6..8] == [0, 0] {
        return ip_intact(packet, bytes);
    }
    ip_intact(packet, bytes)
        && checksum::pseudo_header(addresses, packet.protocol, transport.len()).bytes(transport).is_valid()
}

#[inline]
fn ip_intact(packet: &Packet, bytes: &[u8]) -> bool {
    packet.v6 || Sum::ZERO.bytes(&bytes[..packet.transport]).is_valid()
}

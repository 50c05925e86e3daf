//! Cutting a super-packet from the TUN device into the packets that its sender meant (TSO, USO),
//! each written where it will be sealed, with its checksums complete.
//!
//! TCP per the kernel's own segmentation: sequence numbers advance by the segment size, FIN and PSH
//! stay with the last segment, CWR with the first (RFC 3168 section 6.1.2), the IPv4 identification
//! counts up.

use super::{
    checksum::{self, Sum},
    vnet::{Gso, Vnet},
};
use crate::packet::{Packet, protocol};

const TCP_FIN: u16 = 0x01;
const TCP_PSH: u16 = 0x08;
const TCP_CWR: u16 = 0x80;

/// What the device's header asks for does not fit the packet behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadOffload;

/// A packet from the device with what is left to do to it: nothing, its checksum, or cutting it up.
#[derive(Debug)]
pub struct Segmenter<'a> {
    packet: &'a [u8],
    work: Work,
    /// Bytes of all headers.
    headers: usize,
    transport: usize,
    segment: usize,
    count: usize,
    v6: bool,
    /// Of the parts of the transport checksum that are the same in all segments.
    fixed: Sum,
    /// The same for the IPv4 header.
    fixed_ip: Sum,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    /// A whole packet with whole checksums.
    Nothing,
    /// A partial checksum at `start`, to be put at `at`.
    Checksum {
        start: usize,
        at: usize,
    },
    Tcp,
    Udp,
}

impl<'a> Segmenter<'a> {
    /// Prepares a packet, `parsed` from `bytes`.
    ///
    /// # Errors
    /// [`BadOffload`] when the device's header contradicts the packet.
    #[inline]
    pub fn new(bytes: &'a [u8], parsed: &Packet, vnet: Vnet) -> Result<Self, BadOffload> {
        let packet = bytes.get(..parsed.len).ok_or(BadOffload)?;
        let mut segmenter = Segmenter {
            packet,
            work: Work::Nothing,
            headers: 0,
            transport: parsed.transport,
            segment: packet.len(),
            count: 1,
            v6: parsed.v6,
            fixed: Sum::ZERO,
            fixed_ip: Sum::ZERO,
        };
        if vnet.gso != Gso::None {
            return segmenter.cut(parsed, vnet);
        }
        if vnet.needs_csum {
            let start = usize::from(vnet.csum_start);
            let at = start + usize::from(vnet.csum_offset);
            if start < parsed.transport || at + 2 > packet.len() {
                return Err(BadOffload);
            }
            segmenter.work = Work::Checksum { start, at };
        }
        Ok(segmenter)
    }

    fn cut(mut self, parsed: &Packet, vnet: Vnet) -> Result<Self, BadOffload> {
        let (work, transport_len) = match (vnet.gso, parsed.protocol) {
            (Gso::Tcp4 | Gso::Tcp6, protocol::TCP) => {
                let offset = self.packet.get(parsed.transport + 12).ok_or(BadOffload)?;
                (Work::Tcp, usize::from(offset >> 4) * 4)
            }
            (Gso::Udp, protocol::UDP) => (Work::Udp, 8),
            _ => return Err(BadOffload),
        };
        let least = if work == Work::Tcp { 20 } else { 8 };
        self.headers = parsed.transport + transport_len;
        self.segment = usize::from(vnet.gso_size);
        if transport_len < least
            || self.headers >= self.packet.len()
            || self.headers > super::MAX_HEADERS
            || self.segment == 0
            || parsed.fragment.is_some()
        {
            return Err(BadOffload);
        }
        self.count = (self.packet.len() - self.headers).div_ceil(self.segment);
        self.work = work;
        let addresses = if self.v6 { &self.packet[8..40] } else { &self.packet[12..20] };
        let pseudo = checksum::pseudo_header(addresses, parsed.protocol, 0);
        let transport = &self.packet[parsed.transport..self.headers];
        self.fixed = if work == Work::Tcp {
            // All but sequence number, flags and checksum.
            pseudo
                .bytes(&transport[..4])
                .bytes(&transport[8..12])
                .bytes(&transport[14..16])
                .bytes(&transport[18..])
        } else {
            pseudo.bytes(&transport[..4])
        };
        if !self.v6 {
            // All but length, identification and checksum.
            self.fixed_ip = Sum::ZERO
                .bytes(&self.packet[..2])
                .bytes(&self.packet[6..10])
                .bytes(&self.packet[12..parsed.transport]);
        }
        Ok(self)
    }

    /// Packets that come out.
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of packet `index`.
    #[inline]
    pub fn len(&self, index: usize) -> usize {
        match self.work {
            Work::Nothing | Work::Checksum { .. } => self.packet.len(),
            Work::Tcp | Work::Udp => {
                let payload = self.packet.len() - self.headers;
                self.headers + (payload - index * self.segment).min(self.segment)
            }
        }
    }

    /// Bytes of the largest packet.
    #[inline]
    pub fn largest(&self) -> usize {
        self.len(0)
    }

    /// Writes packet `index` into exactly [`Segmenter::len`] bytes.
    #[inline]
    pub fn write(&self, index: usize, out: &mut [u8]) {
        match self.work {
            Work::Nothing => out.copy_from_slice(self.packet),
            Work::Checksum { start, at } => {
                out.copy_from_slice(self.packet);
                // The field holds the pseudo-header's sum, so it is part of what is summed.
                let checksum = Sum::ZERO.bytes(&out[start..]).checksum();
                out[at..at + 2].copy_from_slice(&no_zero(checksum, self.packet, self.transport, at));
            }
            Work::Tcp => self.write_tcp(index, out),
            Work::Udp => self.write_udp(index, out),
        }
    }

    fn write_headers(&self, index: usize, out: &mut [u8]) -> usize {
        let from = self.headers + index * self.segment;
        let payload = out.len() - self.headers;
        out[..self.headers].copy_from_slice(&self.packet[..self.headers]);
        out[self.headers..].copy_from_slice(&self.packet[from..from + payload]);
        if self.v6 {
            let len = (out.len() - 40) as u16;
            out[4..6].copy_from_slice(&len.to_be_bytes());
        } else {
            let len = out.len() as u16;
            let id = u16::from_be_bytes([out[4], out[5]]).wrapping_add(index as u16);
            out[2..4].copy_from_slice(&len.to_be_bytes());
            out[4..6].copy_from_slice(&id.to_be_bytes());
            out[10..12].copy_from_slice(&self.fixed_ip.word(len).word(id).checksum());
        }
        out.len() - self.transport
    }

    fn write_tcp(&self, index: usize, out: &mut [u8]) {
        let len = self.write_headers(index, out);
        let (headers, payload) = out.split_at_mut(self.headers);
        let tcp = &mut headers[self.transport..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let sequence = sequence.wrapping_add((index * self.segment) as u32);
        let mut flags = u16::from_be_bytes([tcp[12], tcp[13]]);
        if index + 1 < self.count {
            flags &= !(TCP_FIN | TCP_PSH);
        }
        if index > 0 {
            flags &= !TCP_CWR;
        }
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        tcp[12..14].copy_from_slice(&flags.to_be_bytes());
        let sum = self.fixed.double_word(len as u32).double_word(sequence).word(flags).bytes(payload);
        tcp[16..18].copy_from_slice(&sum.checksum());
    }

    fn write_udp(&self, index: usize, out: &mut [u8]) {
        let len = self.write_headers(index, out);
        let (headers, payload) = out.split_at_mut(self.headers);
        let udp = &mut headers[self.transport..];
        udp[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        // The length stands in the pseudo-header and in the header.
        let sum = self.fixed.double_word(len as u32).word(len as u16).bytes(payload);
        udp[6..8].copy_from_slice(&not_zero(sum.checksum()));
    }
}

/// UDP says "no checksum" with zero and sends ffff instead (RFC 768).
fn not_zero(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0, 0] { [0xFF, 0xFF] } else { checksum }
}

fn no_zero(checksum: [u8; 2], packet: &[u8], transport: usize, at: usize) -> [u8; 2] {
    let protocol = if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
    if protocol == protocol::UDP && at == transport + 6 { not_zero(checksum) } else { checksum }
}

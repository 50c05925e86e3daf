//! The virtio-net header that stands before each packet of a TUN device with offloads
//! (`linux/virtio_net.h`), in native byte order.

/// Bytes of the header.
pub const VNET_LEN: usize = 10;

/// The packet's checksum is partial: it holds the pseudo-header's sum.
pub const NEEDS_CSUM: u8 = 1;

/// What a super-packet is to be cut into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Gso {
    /// It is a packet.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams (USO).
    Udp,
}

/// The header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vnet {
    /// Whether the checksum is partial.
    pub needs_csum: bool,
    /// What the packet is to be cut into.
    pub gso: Gso,
    /// ECN of the super-packet: CWR on the first segment only (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// Bytes of IP and transport header.
    pub hdr_len: u16,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Where the checksum's sum starts.
    pub csum_start: u16,
    /// Where the checksum stands, from `csum_start`.
    pub csum_offset: u16,
}

impl Vnet {
    /// Nothing is left to do to the packet.
    #[inline]
    pub fn is_whole(self) -> bool {
        !self.needs_csum && self.gso == Gso::None
    }

    /// From the kernel; `None` for kinds that were not asked for.
    pub fn decode(bytes: [u8; VNET_LEN]) -> Option<Vnet> {
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match bytes[1] & 0x7F {
            0 => Gso::None,
            1 => Gso::Tcp4,
            4 => Gso::Tcp6,
            5 => Gso::Udp,
            _ => return None,
        };
        Some(Vnet {
            needs_csum: bytes[0] & NEEDS_CSUM != 0,
            gso,
            ecn: bytes[1] & 0x80 != 0,
            hdr_len: half(2),
            gso_size: half(4),
            csum_start: half(6),
            csum_offset: half(8),
        })
    }

    /// To the kernel.
    pub fn encode(self) -> [u8; VNET_LEN] {
        let gso = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 => 1,
            Gso::Tcp6 => 4,
            Gso::Udp => 5,
        };
        let mut bytes = [0; VNET_LEN];
        bytes[0] = if self.needs_csum { NEEDS_CSUM } else { 0 };
        bytes[1] = gso | if self.ecn { 0x80 } else { 0 };
        for (at, value) in
            [(2, self.hdr_len), (4, self.gso_size), (6, self.csum_start), (8, self.csum_offset)]
        {
            bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }
}

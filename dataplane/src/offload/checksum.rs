//! The Internet checksum (RFC 1071), in native byte order throughout.

use crate::io::simd;

/// A running one's complement sum of 16-bit words in native byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Nothing summed.
    pub const ZERO: Sum = Sum(0);

    /// Adds bytes; all but the last addition to a sum must be of even length.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        Sum(self.0 + u64::from(simd::sum(bytes)))
    }

    /// Adds a 16-bit number as it stands on the wire.
    #[inline]
    #[must_use]
    pub fn word(self, value: u16) -> Sum {
        Sum(self.0 + u64::from(value.to_be()))
    }

    /// Adds a 32-bit number as it stands on the wire.
    #[inline]
    #[must_use]
    pub fn double_word(self, value: u32) -> Sum {
        self.word((value >> 16) as u16).word(value as u16)
    }

    /// Takes a 16-bit number away again (RFC 1624 section 3).
    #[inline]
    #[must_use]
    pub fn without_word(self, value: u16) -> Sum {
        Sum(self.0 + u64::from(!value.to_be()))
    }

    /// Adds another sum over an even number of bytes.
    #[inline]
    #[must_use]
    pub fn sum(self, other: Sum) -> Sum {
        Sum(self.0 + other.0)
    }

    /// The sum in 16 bits, as the bytes of a field: what a partial checksum holds.
    #[inline]
    pub fn folded(self) -> [u8; 2] {
        let mut sum = (self.0 & 0xFFFF_FFFF) + (self.0 >> 32);
        sum = (sum & 0xFFFF) + (sum >> 16);
        sum = (sum & 0xFFFF) + (sum >> 16);
        sum = (sum & 0xFFFF) + (sum >> 16);
        (sum as u16).to_ne_bytes()
    }

    /// The complement, as the bytes of a finished checksum field.
    #[inline]
    pub fn checksum(self) -> [u8; 2] {
        (!u16::from_ne_bytes(self.folded())).to_ne_bytes()
    }

    /// Whether a sum over data that includes its checksum says that it arrived whole.
    #[inline]
    pub fn is_valid(self) -> bool {
        self.folded() == [0xFF, 0xFF]
    }
}

/// Sum of the pseudo-header of TCP, UDP or ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1);
/// `addresses` are source and destination as they stand in the IP header.
#[inline]
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> Sum {
    Sum::ZERO.bytes(addresses).word(u16::from(protocol)).double_word(len as u32)
}

/// Puts the checksum of an IPv4 header in place; its field may hold anything.
pub fn set_ipv4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = Sum::ZERO.bytes(header).checksum();
    header[10..12].copy_from_slice(&checksum);
}

/// Changes a 16-bit word at an even offset and mends the checksum over it (RFC 1624 equation 3).
#[inline]
pub fn replace_word(checksum: [u8; 2], old: u16, new: u16) -> [u8; 2] {
    let before = !u16::from_ne_bytes(checksum);
    Sum(u64::from(before)).without_word(old).word(new).checksum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        // RFC 1071 section 3: sum ddf2, whose complement is 220d.
        let sum = Sum::ZERO.bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), [0xdd, 0xf2]);
        assert_eq!(sum.checksum(), [0x22, 0x0d]);
    }

    #[test]
    fn an_incremental_update_equals_a_new_sum() {
        // RFC 1624 section 4: checksum dd2f, word 5555 becomes 3285: 0000.
        assert_eq!(replace_word([0xdd, 0x2f], 0x5555, 0x3285), [0x00, 0x00]);
        let mut header = *b"\x45\x00\x00\x54\x12\x34\x40\x00\x40\x01\x00\x00\x0a\x01\x00\x02\x0a\x02\x00\x02";
        set_ipv4_checksum(&mut header);
        assert!(Sum::ZERO.bytes(&header).is_valid());
        let mended = replace_word([header[10], header[11]], 0x4500, 0x4503);
        header[1] = 3;
        header[10..12].copy_from_slice(&mended);
        assert!(Sum::ZERO.bytes(&header).is_valid());
    }
}

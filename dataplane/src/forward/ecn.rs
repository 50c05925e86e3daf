//! Explicit congestion notification through a tunnel, normal mode (RFC 6040).

use crate::offload::checksum;

const MASK: u8 = 0b11;
const CE: u8 = 0b11;
const ECT_1: u8 = 0b01;

/// The congestion mark that must not be lost meets a packet that cannot carry it: drop it
/// (RFC 6040 section 4.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Illegal;

/// The outer TOS of a packet: DSCP copied (RFC 4301 section 5.1.2.1), ECN copied (RFC 6040 section 4.1).
#[inline]
pub(super) fn encapsulated(inner: u8) -> u8 {
    inner
}

/// Carries the outer mark into an opened packet, by the table of RFC 6040 section 4.2. DSCP stays
/// the inner one (RFC 4301 section 5.1.2.2).
#[inline]
pub(super) fn decapsulate(outer: u8, packet: &mut [u8], v6: bool, inner: u8) -> Result<(), Illegal> {
    let mark = match (inner & MASK, outer & MASK) {
        (0, CE) => return Err(Illegal),
        (0, _) | (CE, _) => return Ok(()),
        (_, CE) => CE,
        (0b10, ECT_1) => ECT_1,
        _ => return Ok(()),
    };
    let new = inner & !MASK | mark;
    if v6 {
        packet[1] = packet[1] & 0x0F | new << 4;
    } else {
        let old = u16::from_be_bytes([packet[0], packet[1]]);
        packet[1] = new;
        let word = u16::from_be_bytes([packet[0], packet[1]]);
        let mended = checksum::replace_word([packet[10], packet[11]], old, word);
        packet[10..12].copy_from_slice(&mended);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        offload::checksum::Sum,
        packet::{
            parse,
            tests::{udp4, udp6},
        },
    };

    /// RFC 6040 section 4.2, figure 4: rows are inner, columns outer, in the order
    /// Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn the_table_of_rfc_6040() {
        const CODEPOINTS: [u8; 4] = [0b00, 0b10, 0b01, 0b11];
        const TABLE: [[Option<u8>; 4]; 4] = [
            [Some(0b00), Some(0b00), Some(0b00), None],
            [Some(0b10), Some(0b10), Some(0b01), Some(0b11)],
            [Some(0b01), Some(0b01), Some(0b01), Some(0b11)],
            [Some(0b11), Some(0b11), Some(0b11), Some(0b11)],
        ];
        for (row, inner) in CODEPOINTS.into_iter().enumerate() {
            for (column, outer) in CODEPOINTS.into_iter().enumerate() {
                let dscp = 0x2E << 2;
                for v6 in [false, true] {
                    let mut packet = if v6 {
                        udp6((1, 2), b"x")
                    } else {
                        udp4([10, 0, 0, 1], [10, 0, 0, 2], (1, 2), b"x")
                    };
                    if v6 {
                        packet[0] = 0x60 | (dscp | inner) >> 4;
                        packet[1] = (dscp | inner) << 4;
                    } else {
                        packet[1] = dscp | inner;
                        checksum::set_ipv4_checksum(&mut packet[..20]);
                    }
                    let result = decapsulate(outer, &mut packet, v6, dscp | inner);
                    match TABLE[row][column] {
                        None => assert_eq!(result, Err(Illegal)),
                        Some(expected) => {
                            assert_eq!(result, Ok(()));
                            assert_eq!(parse(&packet).unwrap().tos, dscp | expected, "{inner} {outer} {v6}");
                            assert!(v6 || Sum::ZERO.bytes(&packet[..20]).is_valid());
                        }
                    }
                }
            }
        }
    }
}

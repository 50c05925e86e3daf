//! Inner MTU from suite, encapsulation and outer family.
//!
//! Exact: a packet of this size fills the outer packet, one byte more overflows it. AWS's published
//! table (Site-to-Site VPN user guide) is the same arithmetic for IPv4 outside and 1500 bytes.

use braid_api::{Encapsulation, Suite};

use crate::esp::Layout;

const UDP_HEADER: u16 = 8;
const IPV4_HEADER: u16 = 20;
const IPV6_HEADER: u16 = 40;
const WIREGUARD: u16 = crate::wireguard::OVERHEAD as u16;

/// Largest inner packet, in bytes, that fits an outer packet of `path_mtu` bytes; 0 when none does.
/// WireGuard has one suite: `suite` does not count then.
pub fn inner_mtu(path_mtu: u16, outer_is_v6: bool, encapsulation: Encapsulation, suite: Suite) -> u16 {
    let ip = if outer_is_v6 { IPV6_HEADER } else { IPV4_HEADER };
    let udp = match encapsulation {
        Encapsulation::Udp => UDP_HEADER,
        Encapsulation::Esp => 0,
        // Padding stops at the MTU, whatever the suite's.
        Encapsulation::WireGuard => return path_mtu.saturating_sub(ip + UDP_HEADER + WIREGUARD),
    };
    // Not above `path_mtu`, hence within 16 bits.
    Layout::of(suite).max_payload(usize::from(path_mtu.saturating_sub(ip + udp))) as u16
}

/// The inner MTU that every suite leaves: for a tunnel that has no SA yet.
pub fn smallest_inner_mtu(path_mtu: u16, outer_is_v6: bool, encapsulation: Encapsulation) -> u16 {
    Suite::ALL
        .into_iter()
        .map(|suite| inner_mtu(path_mtu, outer_is_v6, encapsulation, suite))
        .min()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AWS's table: suite, MTU as protocol 50, MTU with NAT traversal.
    const AWS: [(Suite, u16, u16); 10] = [
        (Suite::Aes128Gcm16, 1446, 1438),
        (Suite::Aes256Gcm16, 1446, 1438),
        (Suite::Aes128CbcSha1, 1438, 1422),
        (Suite::Aes256CbcSha1, 1438, 1422),
        (Suite::Aes128CbcSha256, 1438, 1422),
        (Suite::Aes256CbcSha256, 1438, 1422),
        (Suite::Aes128CbcSha384, 1422, 1422),
        (Suite::Aes256CbcSha384, 1422, 1422),
        (Suite::Aes128CbcSha512, 1422, 1406),
        (Suite::Aes256CbcSha512, 1422, 1406),
    ];

    #[test]
    fn agrees_with_the_table_of_aws() {
        for (suite, esp, udp) in AWS {
            assert_eq!(inner_mtu(1500, false, Encapsulation::Esp, suite), esp, "{suite} as protocol 50");
            assert_eq!(inner_mtu(1500, false, Encapsulation::Udp, suite), udp, "{suite} in UDP");
        }
        assert_eq!(inner_mtu(1500, false, Encapsulation::Udp, Suite::ChaCha20Poly1305), 1438);
        assert_eq!(inner_mtu(1500, true, Encapsulation::Udp, Suite::Aes128Gcm16), 1418);
        // The 1420 bytes that wg-quick takes are those of IPv6.
        assert_eq!(inner_mtu(1500, true, Encapsulation::WireGuard, Suite::Aes128Gcm16), 1420);
        assert_eq!(inner_mtu(1500, false, Encapsulation::WireGuard, Suite::Aes128Gcm16), 1440);
        assert_eq!(inner_mtu(9001, false, Encapsulation::Esp, Suite::Aes128Gcm16), 8946);
    }

    #[test]
    fn the_inner_mtu_fills_the_path_and_one_byte_more_does_not_fit() {
        let outer = |inner: u16, v6: bool, encapsulation: Encapsulation, suite: Suite| {
            let udp = if encapsulation == Encapsulation::Udp { 8 } else { 0 };
            (if v6 { 40 } else { 20 }) + udp + Layout::of(suite).sealed_len(usize::from(inner))
        };
        for suite in Suite::ALL {
            for encapsulation in [Encapsulation::Udp, Encapsulation::Esp] {
                for v6 in [false, true] {
                    for path in (576..=9216).step_by(37).chain([1280, 1500, 9001]) {
                        let inner = inner_mtu(path, v6, encapsulation, suite);
                        assert!(outer(inner, v6, encapsulation, suite) <= usize::from(path));
                        assert!(outer(inner + 1, v6, encapsulation, suite) > usize::from(path));
                    }
                }
            }
        }
    }

    #[test]
    fn no_room_is_no_mtu() {
        for suite in Suite::ALL {
            assert_eq!(inner_mtu(40, true, Encapsulation::Udp, suite), 0);
        }
        assert_eq!(smallest_inner_mtu(1500, false, Encapsulation::Udp), 1406);
    }
}

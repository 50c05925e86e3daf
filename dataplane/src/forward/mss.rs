//! Clamping the MSS of TCP to what fits the tunnels (RFC 9293 section 3.7.1), since not every path
//! delivers the ICMP errors of path MTU discovery.

use crate::{
    offload::checksum,
    packet::{Packet, protocol},
};

const SYN: u8 = 0x02;

/// Lowers the MSS option of a SYN to what fits packets of `mtu` bytes. The checksum is mended unless
/// it is `partial`, holding the pseudo-header alone.
#[inline(always)]
pub(super) fn clamp(bytes: &mut [u8], packet: &Packet, mtu: u16, partial: bool) {
    if packet.protocol != protocol::TCP || packet.fragment.is_some_and(|fragment| !fragment.first) {
        return;
    }
    let Some(tcp) = bytes.get_mut(packet.transport..packet.len) else { return };
    if tcp.len() >= 20 && tcp[13] & SYN != 0 {
        clamp_options(tcp, mtu.saturating_sub(if packet.v6 { 60 } else { 40 }), partial);
    }
}

fn clamp_options(tcp: &mut [u8], limit: u16, partial: bool) {
    let end = (usize::from(tcp[12] >> 4) * 4).min(tcp.len());
    let mut at = 20;
    while at < end {
        match tcp[at] {
            0 => return,
            1 => at += 1,
            kind => {
                let Some(&len) = tcp[..end].get(at + 1) else { return };
                let len = usize::from(len);
                if len < 2 || at + len > end {
                    return;
                }
                if kind == 2 && len == 4 {
                    let old = u16::from_be_bytes([tcp[at + 2], tcp[at + 3]]);
                    if old > limit {
                        replace(tcp, at + 2, limit, partial);
                    }
                    return;
                }
                at += len;
            }
        }
    }
}

/// Replaces a 16-bit number, which may stand at an odd offset: both words that it touches are mended.
fn replace(tcp: &mut [u8], at: usize, value: u16, partial: bool) {
    let first = at & !1;
    let last = (at + 1) & !1;
    let words = |tcp: &[u8]| {
        [first, last].map(|word| u16::from_be_bytes([tcp[word], tcp.get(word + 1).copied().unwrap_or(0)]))
    };
    let old = words(tcp);
    tcp[at..at + 2].copy_from_slice(&value.to_be_bytes());
    if partial {
        return;
    }
    let new = words(tcp);
    let mut mended = checksum::replace_word([tcp[16], tcp[17]], old[0], new[0]);
    if first != last {
        mended = checksum::replace_word(mended, old[1], new[1]);
    }
    tcp[16..18].copy_from_slice(&mended);
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, TcpOptionElement};

    use super::*;
    use crate::packet::parse;

    fn syn(mss: u16, options: &[TcpOptionElement]) -> Vec<u8> {
        let mut all = options.to_vec();
        all.push(TcpOptionElement::MaximumSegmentSize(mss));
        let builder = PacketBuilder::ipv4([10, 1, 0, 2], [10, 2, 0, 2], 64).tcp(1, 2, 3, 4).syn();
        let mut bytes = Vec::new();
        builder.options(&all).unwrap().write(&mut bytes, &[]).unwrap();
        bytes
    }

    fn mss_and_checksum(bytes: &[u8]) -> (u16, bool) {
        let packet = parse(bytes).unwrap();
        let tcp = &bytes[packet.transport..];
        let sum = checksum::pseudo_header(&bytes[12..20], 6, tcp.len()).bytes(tcp);
        let options = etherparse::TcpSlice::from_slice(tcp).unwrap();
        let mss = options
            .options_iterator()
            .find_map(|option| match option {
                Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
                _ => None,
            })
            .unwrap();
        (mss, sum.is_valid())
    }

    #[test]
    fn a_large_mss_is_lowered_and_the_checksum_stays_right() {
        for options in [&[][..], &[TcpOptionElement::Noop], &[TcpOptionElement::WindowScale(7)]] {
            let mut bytes = syn(1460, options);
            let packet = parse(&bytes).unwrap();
            clamp(&mut bytes, &packet, 1438, false);
            assert_eq!(mss_and_checksum(&bytes), (1398, true));
        }
    }

    #[test]
    fn a_small_mss_and_a_broken_checksum_are_left_alone() {
        let mut bytes = syn(1200, &[]);
        let before = bytes.clone();
        let packet = parse(&bytes).unwrap();
        clamp(&mut bytes, &packet, 1438, false);
        assert_eq!(bytes, before);
        let mut broken = syn(1460, &[]);
        broken[36] ^= 0x40;
        clamp(&mut broken, &packet, 1438, false);
        assert_eq!(mss_and_checksum(&broken), (1398, false));
    }

    proptest::proptest! {
        #[test]
        fn no_options_panic(options: Vec<u8>, limit: u16) {
            let mut tcp = vec![0; 20];
            tcp[12] = (5 + (options.len() / 4).min(10) as u8) << 4;
            tcp.extend(options);
            clamp_options(&mut tcp, limit, false);
        }
    }
}

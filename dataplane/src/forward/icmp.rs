//! ICMP that the core makes itself: errors for packets that are too big, replies to pings of the
//! inside address, and the probes' requests.

use std::net::IpAddr;

use crate::{
    offload::checksum::{self, Sum},
    packet::{Packet, protocol},
};

/// What a probe carries in front, so that its reply is told from a person's ping.
const PROBE_MAGIC: [u8; 8] = *b"braidprb";
/// CS6, network control (RFC 2474 section 4.2.2.2): not what a congested path drops first.
pub(crate) const NETWORK_CONTROL: u8 = 0xC0;
/// Payload of a probe: the magic and the cookie; zeros may follow.
const PROBE_LEN: usize = 16;

/// Errors a second that one worker may send (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
const ERRORS_PER_SECOND: u32 = 1000;

/// A token bucket of one second.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    second: u64,
    sent: u32,
}

impl Limiter {
    pub(super) fn allow(&mut self, nanos: u64) -> bool {
        let second = nanos / 1_000_000_000;
        if second != self.second {
            *self = Limiter { second, sent: 0 };
        }
        self.sent += 1;
        self.sent <= ERRORS_PER_SECOND
    }
}

/// "Fragmentation needed" (RFC 1191 section 4) or "packet too big" (RFC 4443 section 3.2) to the
/// sender of `bytes`; `None` where no error may be sent (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)).
pub(super) fn too_big(bytes: &[u8], packet: &Packet, mtu: u16, sources: &[IpAddr]) -> Option<Vec<u8>> {
    let later = packet.fragment.is_some_and(|fragment| !fragment.first);
    let sender = packet.source();
    if later || sender.is_unspecified() || sender.is_multicast() || is_error(bytes, packet) {
        return None;
    }
    let source = sources.iter().copied().find(|source| source.is_ipv6() == packet.v6);
    let source = source.unwrap_or_else(|| packet.destination());
    Some(match (source, sender) {
        (IpAddr::V4(source), IpAddr::V4(sender)) => {
            let quoted = &bytes[..packet.len.min(576 - 28)];
            let mut out = vec![0; 28];
            out[0] = 0x45;
            out[1] = 0xC0;
            out[2..4].copy_from_slice(&((28 + quoted.len()) as u16).to_be_bytes());
            out[8] = 64;
            out[9] = protocol::ICMP;
            out[12..16].copy_from_slice(&source.octets());
            out[16..20].copy_from_slice(&sender.octets());
            checksum::set_ipv4_checksum(&mut out[..20]);
            out[20] = 3;
            out[21] = 4;
            out[26..28].copy_from_slice(&mtu.to_be_bytes());
            out.extend_from_slice(quoted);
            let checksum = Sum::ZERO.bytes(&out[20..]).checksum();
            out[22..24].copy_from_slice(&checksum);
            out
        }
        (IpAddr::V6(source), IpAddr::V6(sender)) => {
            let quoted = &bytes[..packet.len.min(1280 - 48)];
            let mut out = vec![0; 48];
            out[0] = 0x60;
            out[4..6].copy_from_slice(&((8 + quoted.len()) as u16).to_be_bytes());
            out[6] = protocol::ICMPV6;
            out[7] = 64;
            out[8..24].copy_from_slice(&source.octets());
            out[24..40].copy_from_slice(&sender.octets());
            out[40] = 2;
            out[44..48].copy_from_slice(&u32::from(mtu).to_be_bytes());
            out.extend_from_slice(quoted);
            let sum = checksum::pseudo_header(&out[8..40], protocol::ICMPV6, out.len() - 40);
            let checksum = sum.bytes(&out[40..]).checksum();
            out[42..44].copy_from_slice(&checksum);
            out
        }
        _ => return None,
    })
}

fn is_error(bytes: &[u8], packet: &Packet) -> bool {
    let Some(&kind) = bytes.get(packet.transport) else { return false };
    match packet.protocol {
        protocol::ICMP => !matches!(kind, 0 | 8 | 9 | 10 | 13 | 14 | 15 | 16),
        protocol::ICMPV6 => kind < 128,
        _ => false,
    }
}

/// What an opened packet for our inside address is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Echo {
    /// A request, to be answered.
    Request,
    /// The reply to a probe.
    ProbeReply {
        /// From the request.
        cookie: u64,
    },
}

/// Looks for an echo request or a probe's reply.
pub(super) fn echo(bytes: &[u8], packet: &Packet) -> Option<Echo> {
    if packet.fragment.is_some() {
        return None;
    }
    let icmp = bytes.get(packet.transport..packet.len)?;
    let (request, reply) = match packet.protocol {
        protocol::ICMP => (8, 0),
        protocol::ICMPV6 => (128, 129),
        _ => return None,
    };
    if icmp.len() < 8 || icmp[1] != 0 {
        return None;
    }
    if icmp[0] == request {
        return icmp_sum(bytes, packet).is_valid().then_some(Echo::Request);
    }
    let payload = &icmp[8..];
    if icmp[0] != reply || payload.len() < PROBE_LEN || payload[..8] != PROBE_MAGIC {
        return None;
    }
    let mut cookie = [0; 8];
    cookie.copy_from_slice(&payload[8..PROBE_LEN]);
    Some(Echo::ProbeReply { cookie: u64::from_be_bytes(cookie) })
}

fn icmp_sum(bytes: &[u8], packet: &Packet) -> Sum {
    let icmp = &bytes[packet.transport..packet.len];
    let pseudo = if packet.v6 {
        checksum::pseudo_header(&bytes[8..40], protocol::ICMPV6, icmp.len())
    } else {
        Sum::ZERO
    };
    pseudo.bytes(icmp)
}

/// Makes a request into its reply (RFC 792, RFC 4443 section 4.2), in place.
pub(super) fn turn_round(bytes: &mut [u8], packet: &Packet) {
    let (src, dst, len) = if packet.v6 { (8, 24, 16) } else { (12, 16, 4) };
    for at in 0..len {
        bytes.swap(src + at, dst + at);
    }
    if packet.v6 {
        bytes[7] = 64;
    } else {
        bytes[8] = 64;
        checksum::set_ipv4_checksum(&mut bytes[..packet.transport]);
    }
    let icmp = &mut bytes[packet.transport..packet.len];
    let old = u16::from_be_bytes([icmp[0], icmp[1]]);
    icmp[0] = if packet.v6 { 129 } else { 0 };
    let new = u16::from_be_bytes([icmp[0], icmp[1]]);
    let mended = checksum::replace_word([icmp[2], icmp[3]], old, new);
    icmp[2..4].copy_from_slice(&mended);
}

/// An echo request that carries a cookie, of `len` bytes or as short as can be; `None` when the families differ.
pub(crate) fn probe(source: IpAddr, destination: IpAddr, cookie: u64, len: u16) -> Option<Vec<u8>> {
    let header = if destination.is_ipv4() { 20 } else { 40 };
    let mut icmp = vec![0; usize::from(len).saturating_sub(header).max(8 + PROBE_LEN)];
    icmp[4..8].copy_from_slice(&(cookie as u32).to_be_bytes());
    icmp[8..16].copy_from_slice(&PROBE_MAGIC);
    icmp[16..8 + PROBE_LEN].copy_from_slice(&cookie.to_be_bytes());
    let mut out;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            icmp[0] = 8;
            out = vec![0; 20];
            out[0] = 0x45;
            out[1] = NETWORK_CONTROL;
            out[2..4].copy_from_slice(&((20 + icmp.len()) as u16).to_be_bytes());
            out[6] = 0x40;
            out[8] = 64;
            out[9] = protocol::ICMP;
            out[12..16].copy_from_slice(&source.octets());
            out[16..20].copy_from_slice(&destination.octets());
            checksum::set_ipv4_checksum(&mut out);
            let checksum = Sum::ZERO.bytes(&icmp).checksum();
            icmp[2..4].copy_from_slice(&checksum);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            icmp[0] = 128;
            out = vec![0; 40];
            (out[0], out[1]) = (0x60 | NETWORK_CONTROL >> 4, NETWORK_CONTROL << 4);
            out[4..6].copy_from_slice(&(icmp.len() as u16).to_be_bytes());
            out[6] = protocol::ICMPV6;
            out[7] = 64;
            out[8..24].copy_from_slice(&source.octets());
            out[24..40].copy_from_slice(&destination.octets());
            let sum = checksum::pseudo_header(&out[8..40], protocol::ICMPV6, icmp.len());
            let checksum = sum.bytes(&icmp).checksum();
            icmp[2..4].copy_from_slice(&checksum);
        }
        _ => return None,
    }
    out.extend_from_slice(&icmp);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{
        parse,
        tests::{udp4, udp6},
    };

    #[test]
    fn a_probe_comes_back_with_its_cookie() {
        let pairs: [(&str, &str); 2] = [("169.254.10.2", "169.254.10.1"), ("fd00::2", "fd00::1")];
        for ((ours, theirs), len) in pairs.into_iter().flat_map(|pair| [(pair, 0), (pair, 1399)]) {
            let (ours, theirs): (IpAddr, IpAddr) = (ours.parse().unwrap(), theirs.parse().unwrap());
            let mut bytes = probe(ours, theirs, 0xDEAD_BEEF_0102_0304, len).unwrap();
            let packet = parse(&bytes).unwrap();
            assert!(len == 0 || bytes.len() == usize::from(len));
            assert_eq!(echo(&bytes, &packet), Some(Echo::Request));
            turn_round(&mut bytes, &packet);
            let packet = parse(&bytes).unwrap();
            assert!(icmp_sum(&bytes, &packet).is_valid());
            assert!(packet.v6 || Sum::ZERO.bytes(&bytes[..20]).is_valid());
            assert_eq!((packet.source(), packet.destination()), (theirs, ours));
            assert_eq!(echo(&bytes, &packet), Some(Echo::ProbeReply { cookie: 0xDEAD_BEEF_0102_0304 }));
        }
    }

    #[test]
    fn the_sender_of_a_big_packet_is_told_the_mtu() {
        let bytes = udp4([10, 1, 0, 2], [10, 2, 0, 2], (1, 2), &[0; 2000]);
        let error = too_big(&bytes, &parse(&bytes).unwrap(), 1438, &["10.1.0.1".parse().unwrap()]).unwrap();
        let packet = parse(&error).unwrap();
        assert!(packet.quotes());
        assert_eq!((&error[12..16], &error[16..20]), (&[10, 1, 0, 1][..], &[10, 1, 0, 2][..]));
        assert_eq!((error[20], error[21], &error[26..28]), (3, 4, &1438_u16.to_be_bytes()[..]));
        assert!(Sum::ZERO.bytes(&error[20..]).is_valid());
        assert!(too_big(&error, &packet, 100, &[]).is_none(), "no error about an error");

        let bytes = udp6((1, 2), &[0; 2000]);
        let error = too_big(&bytes, &parse(&bytes).unwrap(), 1418, &[]).unwrap();
        let packet = parse(&error).unwrap();
        assert_eq!((error[40], error.len()), (2, 1280));
        assert!(icmp_sum(&error, &packet).is_valid());
    }

    #[test]
    fn errors_are_limited_by_the_second() {
        let mut limiter = Limiter::default();
        assert_eq!((0..5000).filter(|_| limiter.allow(1)).count(), ERRORS_PER_SECOND as usize);
        assert!(limiter.allow(1_000_000_000));
    }
}

//! The kernel's next-hop objects (linux/nexthop.h), as far as learned routes need them: one gateway on one link.
//!
//! Their numbers are shared with whoever else makes such objects in the network namespace. Routing daemons count up
//! from small ones, or from a multiple of 2^28; ours begin at [`BASE`], and tell slot and index.

use std::net::IpAddr;

use rtnetlink::packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};

use super::layout::SLOTS;
use super::learned::PROTOCOL;

/// Number of the first object of slot 0.
const BASE: u32 = 0xB200_0000;
/// So many for each slot.
const PER_SLOT: u32 = 1 << 16;

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
/// `struct nhmsg`: family, scope, protocol, a reserved octet, and four of flags.
const HEADER_LEN: usize = 8;
const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The number of a slot's object.
pub(super) fn id(slot: u8, index: u16) -> u32 {
    BASE + u32::from(slot) * PER_SLOT + u32::from(index)
}

/// The slot that a number belongs to.
fn slot(id: u32) -> Option<u8> {
    u8::try_from(id.checked_sub(BASE)? / PER_SLOT).ok().filter(|slot| *slot < SLOTS)
}

/// A message of these objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NextHopMessage {
    kind: u16,
    family: u8,
    protocol: u8,
    id: Option<u32>,
    interface: Option<u32>,
    gateway: Option<IpAddr>,
}

impl NextHopMessage {
    /// Makes one; `interface` is the link's index.
    pub(super) fn new(id: u32, interface: u32, gateway: IpAddr) -> Self {
        Self {
            kind: RTM_NEWNEXTHOP,
            family: if gateway.is_ipv4() { AF_INET } else { AF_INET6 },
            protocol: PROTOCOL,
            id: Some(id),
            interface: Some(interface),
            gateway: Some(gateway),
        }
    }

    /// Removes one, and all routes by it.
    pub(super) fn remove(id: u32) -> Self {
        Self { id: Some(id), ..Self::bare(RTM_DELNEXTHOP) }
    }

    /// Asks for all of them, whoever made them.
    pub(super) fn list() -> Self {
        Self::bare(RTM_GETNEXTHOP)
    }

    /// The number, if it is an object of this slot's learned routes.
    pub(super) fn id_in(&self, slot: u8) -> Option<u32> {
        self.id.filter(|id| self.protocol == PROTOCOL && self::slot(*id) == Some(slot))
    }

    fn bare(kind: u16) -> Self {
        Self { kind, family: AF_UNSPEC, protocol: 0, id: None, interface: None, gateway: None }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.family, 0, self.protocol, 0, 0, 0, 0, 0];
        let mut push = |kind: u16, value: &[u8]| {
            // All are of four or sixteen octets, so that nothing is to be aligned.
            let len = 4 + value.len() as u16;
            bytes.extend([len.to_ne_bytes(), kind.to_ne_bytes()].concat());
            bytes.extend(value);
        };
        if let Some(id) = self.id {
            push(NHA_ID, &id.to_ne_bytes());
        }
        if let Some(interface) = self.interface {
            push(NHA_OIF, &interface.to_ne_bytes());
        }
        match self.gateway {
            Some(IpAddr::V4(gateway)) => push(NHA_GATEWAY, &gateway.octets()),
            Some(IpAddr::V6(gateway)) => push(NHA_GATEWAY, &gateway.octets()),
            None => {}
        }
        bytes
    }
}

impl NetlinkSerializable for NextHopMessage {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.bytes().len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes());
    }
}

impl NetlinkDeserializable for NextHopMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let Some([family, _, protocol, ..]) = payload.first_chunk::<HEADER_LEN>() else {
            return Err(DecodeError::from("a next hop without its header"));
        };
        let mut message = Self { family: *family, protocol: *protocol, ..Self::bare(header.message_type) };
        let mut rest = &payload[HEADER_LEN..];
        while let Some([l0, l1, k0, k1]) = rest.first_chunk() {
            let len = usize::from(u16::from_ne_bytes([*l0, *l1]));
            let value = rest.get(4..len).unwrap_or_default();
            let number = || value.try_into().ok().map(u32::from_ne_bytes);
            match u16::from_ne_bytes([*k0, *k1]) {
                NHA_ID => message.id = number(),
                NHA_OIF => message.interface = number(),
                NHA_GATEWAY => message.gateway = address(value),
                _ => {}
            }
            // RFC 3549 section 2.2: attributes are aligned to four octets.
            rest = rest.get(len.max(4).next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(message)
    }
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: u16, payload: &[u8]) -> Result<NextHopMessage, DecodeError> {
        let mut header = NetlinkHeader::default();
        header.message_type = kind;
        NextHopMessage::deserialize(&header, payload)
    }

    #[test]
    fn a_number_tells_slot_and_index() {
        let mut before = 0;
        for slot in 0..SLOTS {
            for index in [0, 1, u16::MAX] {
                let id = id(slot, index);
                assert!(id > before && self::slot(id) == Some(slot));
                before = id;
            }
        }
        for id in [0, 1, BASE - 1, id(SLOTS - 1, u16::MAX) + 1, u32::MAX] {
            assert_eq!(slot(id), None);
        }
    }

    #[test]
    fn messages_are_as_the_kernel_has_them() {
        let v4 = NextHopMessage::new(id(1, 2), 7, [10, 9, 0, 2].into());
        // As ip(8) sends it for `nexthop add id 2986409986 via 10.9.0.2 dev dx0 proto 178`, but for the order of the
        // last two.
        if cfg!(target_endian = "little") {
            let bytes = [
                2, 0, 0xB2, 0, 0, 0, 0, 0, 8, 0, 1, 0, 2, 0, 1, 0xB2, 8, 0, 5, 0, 7, 0, 0, 0, 8, 0, 6, 0, 10,
                9, 0, 2,
            ];
            assert_eq!((v4.message_type(), v4.bytes()), (104, bytes.to_vec()));
        }
        let v6 = NextHopMessage::new(id(0, 0), 9, "fe80::1".parse().unwrap());
        for message in [v4, v6, NextHopMessage::remove(id(3, 4)), NextHopMessage::list()] {
            assert_eq!(read(message.kind, &message.bytes()).unwrap(), message);
            assert_eq!(message.buffer_len() % 4, 0);
        }
    }

    #[test]
    fn only_objects_of_the_slot_and_of_our_protocol_are_ours() {
        let ours = NextHopMessage::new(id(1, 2), 7, [10, 9, 0, 2].into());
        assert_eq!((ours.id_in(1), ours.id_in(0)), (Some(id(1, 2)), None));
        let zebra = NextHopMessage { protocol: 11, ..ours.clone() };
        assert_eq!(zebra.id_in(1), None);
        let small = NextHopMessage { id: Some(12), ..ours };
        assert_eq!(small.id_in(1), None);
    }

    #[test]
    fn nonsense_is_read_to_its_end() {
        let whole = NextHopMessage::new(id(0, 0), 9, "fe80::1".parse().unwrap()).bytes();
        for len in 0..whole.len() {
            assert_eq!(read(RTM_NEWNEXTHOP, &whole[..len]).is_ok(), len >= HEADER_LEN);
            for byte in [0, 0xff] {
                let _ = read(RTM_NEWNEXTHOP, &vec![byte; len]);
            }
        }
    }
}

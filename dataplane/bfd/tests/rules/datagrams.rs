//! Control packets in IP and UDP.

use std::net::IpAddr;

use braid_bfd::{
    State,
    datagram::{Datagram, MAX_LENGTH, NotBfd, PORT_MULTIHOP, PORT_SINGLE_HOP, source_port, write},
};
use proptest::prelude::*;

use crate::packet;

const PAIRS: [(&str, &str); 2] = [("169.254.10.1", "169.254.10.2"), ("fd00::1", "fd00::2")];

fn written(pair: (&str, &str), port: u16) -> Vec<u8> {
    let mut out = [0xff; MAX_LENGTH];
    let [source, destination] = [pair.0, pair.1].map(|address| address.parse().unwrap());
    let length = write(&mut out, source, destination, (50_000, port), &packet(State::Up).encode()).unwrap();
    out[..length].to_vec()
}

#[test]
fn what_is_written_is_read() {
    for pair in PAIRS {
        for port in [PORT_SINGLE_HOP, PORT_MULTIHOP] {
            let octets = written(pair, port);
            let datagram = Datagram::parse(&octets).unwrap();
            assert_eq!(datagram.source, pair.0.parse::<IpAddr>().unwrap());
            assert_eq!(datagram.destination, pair.1.parse::<IpAddr>().unwrap());
            // RFC 5881 section 5.
            assert_eq!((datagram.ttl, datagram.source_port, datagram.port), (255, 50_000, port));
            assert_eq!(datagram.payload, packet(State::Up).encode());
        }
    }
}

#[test]
fn checksums_add_up_as_rfc_1071_says() {
    let octets = written(PAIRS[0], PORT_SINGLE_HOP);
    let words: Vec<u16> = octets.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    let sum = |words: &[u16]| {
        let mut sum: u64 = words.iter().map(|word| u64::from(*word)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum
    };
    assert_eq!(sum(&words[..10]), 0xffff);
    let mut udp: Vec<u16> = words[6..].to_vec();
    udp.extend([17, words[12]]);
    assert_eq!(sum(&udp), 0xffff);
}

#[test]
fn every_flipped_bit_is_seen_or_harmless() {
    for pair in PAIRS {
        let octets = written(pair, PORT_SINGLE_HOP);
        let udp = octets.len() - 32;
        for bit in 0..octets.len() * 8 {
            let mut changed = octets.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            if let Ok(datagram) = Datagram::parse(&changed) {
                // IPv6 has no header checksum; the pseudo-header covers addresses and length.
                assert!(udp == 40 && bit / 8 < 8, "bit {bit}: {datagram:?}");
            }
        }
    }
}

#[test]
fn fragments_other_ports_and_missing_checksums_are_refused() {
    let mut other = written(PAIRS[1], 3785);
    assert_eq!(Datagram::parse(&other), Err(NotBfd::Other));
    other = written(PAIRS[1], PORT_SINGLE_HOP);
    other[46..48].fill(0);
    assert_eq!(Datagram::parse(&other), Err(NotBfd::Checksum));
    let mut unchecked = written(PAIRS[0], PORT_SINGLE_HOP);
    unchecked[26..28].fill(0);
    assert!(Datagram::parse(&unchecked).is_ok());
    let mut fragment = written(PAIRS[0], PORT_SINGLE_HOP);
    fragment[6] = 0x20;
    assert_eq!(Datagram::parse(&fragment), Err(NotBfd::Other));
}

#[test]
fn addresses_are_of_one_family() {
    let mut out = [0; MAX_LENGTH];
    let [v4, v6] = [PAIRS[0].0, PAIRS[1].0].map(|address| address.parse().unwrap());
    let control = packet(State::Up).encode();
    assert_eq!(write(&mut out, v4, v6, (1, 2), &control), Err(NotBfd::Families));
}

proptest! {
    #[test]
    fn source_ports_are_from_the_dynamic_range(discriminator in 1..=u32::MAX) {
        prop_assert!(source_port(discriminator.try_into().unwrap()) >= 49152);
    }

    #[test]
    fn random_octets_never_panic(mut octets in proptest::collection::vec(any::<u8>(), 0..96), v6: bool) {
        let _ = Datagram::parse(&octets);
        if let Some(first) = octets.first_mut() {
            *first = if v6 { 0x60 } else { 0x45 };
        }
        let _ = Datagram::parse(&octets);
    }
}

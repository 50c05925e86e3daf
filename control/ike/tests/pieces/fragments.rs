//! Fragmentation (RFC 7383): any order, any repetition, bounded memory.

use braid_ike::crypto::{Cipher, IkeSuite, KeMethod, Opener, Prf, Sealer};
use braid_ike::wire::fragment::{FragmentPosition, MAX_FRAGMENTS, Reassembly, seal_fragmented};
use braid_ike::wire::{CertEncoding, CertPayload, Message, Opened, Parsed, Payload, parse};
use proptest::prelude::*;

use crate::Counting;
use crate::protection::{keys, message};

fn pair() -> (Sealer, Opener) {
    let suite = IkeSuite {
        cipher: Cipher::Aes128Gcm16,
        integrity: None,
        prf: Prf::HmacSha256,
        ke: KeMethod::Ecp256,
        additional: Vec::new(),
    };
    let keys = keys(&suite);
    (keys.sealer(true, 0).unwrap(), keys.opener(false).unwrap())
}

fn long(length: usize) -> Message {
    let data = (0..length).map(|at| (at % 251) as u8).collect();
    message(vec![Payload::Cert(CertPayload { encoding: CertEncoding::X509, data })])
}

fn open(datagram: &[u8], opener: &Opener) -> (FragmentPosition, Opened) {
    match parse(datagram).unwrap() {
        Parsed::Sealed(sealed) => (sealed.fragment.expect("a fragment"), sealed.open(opener).unwrap()),
        Parsed::Plain(_) => panic!("not sealed"),
    }
}

#[test]
fn what_fits_is_not_fragmented() {
    let (mut sealer, opener) = pair();
    let sent = long(500);
    let datagrams = seal_fragmented(&sent, 1200, &mut sealer, &mut Counting(0)).unwrap();
    let [datagram] = datagrams.as_slice() else { panic!("one datagram") };
    let Ok(Parsed::Sealed(sealed)) = parse(datagram) else { panic!("sealed") };
    assert_eq!(sealed.fragment, None);
    assert_eq!(sealed.open(&opener).unwrap().decode().unwrap(), sent);
}

#[test]
fn no_datagram_exceeds_the_limit_and_all_but_the_last_reach_it() {
    let (mut sealer, _) = pair();
    for limit in [128, 576, 1232] {
        let datagrams = seal_fragmented(&long(4000), limit, &mut sealer, &mut Counting(0)).unwrap();
        let (last, full) = datagrams.split_last().unwrap();
        assert!(full.iter().all(|datagram| datagram.len() == limit));
        assert!(last.len() <= limit);
    }
}

#[test]
fn too_many_fragments_are_not_sent_and_not_accepted() {
    let (mut sealer, _) = pair();
    assert!(seal_fragmented(&long(60_000), 128, &mut sealer, &mut Counting(0)).is_err());
    assert!(seal_fragmented(&long(4000), 40, &mut sealer, &mut Counting(0)).is_err());
    let mut datagram = seal_fragmented(&long(1000), 600, &mut sealer, &mut Counting(0)).unwrap().remove(0);
    // The total is the second half of the octets that follow the generic header.
    datagram[34..36].copy_from_slice(&(MAX_FRAGMENTS + 1).to_be_bytes());
    assert!(parse(&datagram).is_err());
    datagram[32..36].copy_from_slice(&[0, 0, 0, 2]);
    assert!(parse(&datagram).is_err());
    datagram[32..36].copy_from_slice(&[0, 3, 0, 2]);
    assert!(parse(&datagram).is_err());
}

/// RFC 7383 section 2.6: the sender lowered its fragment size after retransmitting in vain.
#[test]
fn a_larger_total_replaces_what_was_collected() {
    let (mut sealer, opener) = pair();
    let sent = long(2000);
    let coarse = seal_fragmented(&sent, 1200, &mut sealer, &mut Counting(0)).unwrap();
    let fine = seal_fragmented(&sent, 600, &mut sealer, &mut Counting(0)).unwrap();
    assert!(fine.len() > coarse.len());
    let mut reassembly = Reassembly::new();
    let mut insert = |datagram: &[u8]| {
        let (position, opened) = open(datagram, &opener);
        reassembly.insert(position, opened)
    };
    assert!(insert(&coarse[0]).is_none());
    let mut whole = None;
    for datagram in &fine {
        assert!(whole.is_none());
        whole = insert(datagram);
        // One of the coarse ones arrives late, and changes nothing.
        if whole.is_none() {
            assert!(insert(&coarse[1]).is_none());
        }
    }
    assert_eq!(whole.unwrap().decode().unwrap(), sent);
}

#[test]
fn another_message_id_starts_anew() {
    let (mut sealer, opener) = pair();
    let first = long(1500);
    let mut second = long(1700);
    second.header.message_id += 1;
    let old = seal_fragmented(&first, 900, &mut sealer, &mut Counting(0)).unwrap();
    let new = seal_fragmented(&second, 900, &mut sealer, &mut Counting(0)).unwrap();
    let mut reassembly = Reassembly::new();
    let mut insert = |datagram: &[u8]| {
        let (position, opened) = open(datagram, &opener);
        reassembly.insert(position, opened)
    };
    assert!(insert(&old[0]).is_none());
    let whole = new.iter().find_map(|datagram| insert(datagram)).unwrap();
    assert_eq!(whole.decode().unwrap(), second);
}

proptest! {
    #[test]
    fn fragments_in_any_order_and_repeated_make_the_message(
        length in 1_usize..6000,
        limit in 150_usize..1400,
        order in proptest::collection::vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let (mut sealer, opener) = pair();
        let sent = long(length);
        let datagrams = seal_fragmented(&sent, limit, &mut sealer, &mut Counting(0)).unwrap();
        prop_assume!(datagrams.len() > 1);
        let mut reassembly = Reassembly::new();
        // A random selection with repetitions, then everything, so that it completes.
        let mut arrivals: Vec<&Vec<u8>> = order.iter().map(|index| index.get(&datagrams)).collect();
        arrivals.extend(&datagrams);
        let whole = arrivals.into_iter().find_map(|datagram| {
            let (position, opened) = open(datagram, &opener);
            reassembly.insert(position, opened)
        });
        prop_assert_eq!(whole.unwrap().decode().unwrap(), sent);
    }
}

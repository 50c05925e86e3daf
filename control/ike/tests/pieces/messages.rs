//! Messages: what is encoded decodes to itself, another parser reads the same, and bad input is refused.

use std::net::{Ipv4Addr, Ipv6Addr};

use braid_ike::wire::{
    AddressRange, AuthMethod, AuthPayload, CertEncoding, CertPayload, CertRequest, DecodeError, Delete,
    ExchangeType, Header, IdPayload, Identity, IkeSpi, KePayload, MAX_PAYLOADS, Message, Nonce, Notify,
    NotifySubject, NotifyType, Parsed, Payload, PayloadType, Proposal, ProposalSpi, ProtocolId,
    TrafficSelector, Transform, TransformType, decode_chain, encode_chain, parse,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::hex;

fn octets(length: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), length)
}

fn transform() -> impl Strategy<Value = Transform> {
    (1_u8..14, any::<u16>(), any::<Option<u16>>()).prop_map(|(kind, id, key_bits)| Transform {
        kind: TransformType::from_number(kind),
        id,
        key_bits,
        other_attributes: Vec::new(),
    })
}

fn proposal() -> impl Strategy<Value = Proposal> {
    let spi = prop_oneof![
        Just((ProtocolId::Ike, ProposalSpi::None)),
        any::<[u8; 8]>().prop_map(|spi| (ProtocolId::Ike, ProposalSpi::Ike(IkeSpi(spi)))),
        any::<u32>().prop_map(|spi| (ProtocolId::Esp, ProposalSpi::Esp(spi))),
        octets(1..20).prop_map(|spi| (ProtocolId::Ah, ProposalSpi::Other(spi))),
    ];
    (any::<u8>(), spi, vec(transform(), 0..8)).prop_map(|(number, (protocol, spi), transforms)| Proposal {
        number,
        protocol,
        spi,
        transforms,
    })
}

fn identity() -> impl Strategy<Value = IdPayload> {
    let identity = prop_oneof![
        any::<[u8; 4]>().prop_map(|it| Identity::Ipv4(it.into())),
        any::<[u8; 16]>().prop_map(|it| Identity::Ipv6(it.into())),
        "[a-z.]{1,30}".prop_map(Identity::Fqdn),
        "[a-z.]{1,9}@[a-z.]{1,20}".prop_map(Identity::Email),
        octets(0..40).prop_map(Identity::Dn),
        octets(0..40).prop_map(Identity::KeyId),
        octets(0..40).prop_map(|data| Identity::Other { kind: 200, data }),
    ];
    (identity, any::<[u8; 3]>()).prop_map(|(identity, reserved)| IdPayload { identity, reserved })
}

fn notify() -> impl Strategy<Value = Notify> {
    let subject = prop_oneof![
        Just(NotifySubject::Ike),
        any::<u32>().prop_map(NotifySubject::Esp),
        octets(1..20).prop_map(|spi| NotifySubject::Other { protocol: 2, spi }),
    ];
    (subject, any::<u16>(), octets(0..40)).prop_map(|(subject, kind, data)| Notify {
        subject,
        kind: NotifyType(kind),
        data,
    })
}

fn selector() -> impl Strategy<Value = TrafficSelector> {
    let addresses = prop_oneof![
        any::<(u32, u32)>().prop_map(|(a, b)| AddressRange::V4(a.min(b).into(), a.max(b).into())),
        any::<(u128, u128)>().prop_map(|(a, b)| AddressRange::V6(a.min(b).into(), a.max(b).into())),
    ];
    let ports = prop_oneof![
        Just((0, u16::MAX)),
        Just((u16::MAX, 0)),
        any::<(u16, u16)>().prop_map(|(a, b)| (a.min(b), a.max(b))),
    ];
    (any::<u8>(), ports, addresses).prop_map(|(protocol, (start_port, end_port), addresses)| {
        TrafficSelector { protocol, start_port, end_port, addresses }
    })
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        vec(proposal(), 1..4).prop_map(Payload::Sa),
        (any::<u16>(), octets(0..300)).prop_map(|(group, data)| Payload::Ke(KePayload { group, data })),
        identity().prop_map(Payload::IdI),
        identity().prop_map(Payload::IdR),
        (any::<u8>(), octets(0..300)).prop_map(|(encoding, data)| {
            Payload::Cert(CertPayload { encoding: CertEncoding(encoding), data })
        }),
        (any::<u8>(), octets(0..60)).prop_map(|(encoding, authorities)| {
            Payload::CertReq(CertRequest { encoding: CertEncoding(encoding), authorities })
        }),
        (any::<u8>(), octets(0..90))
            .prop_map(|(method, data)| { Payload::Auth(AuthPayload { method: AuthMethod(method), data }) }),
        octets(16..=256).prop_map(|nonce| Payload::Nonce(Nonce::new(nonce).unwrap())),
        notify().prop_map(Payload::Notify),
        prop_oneof![
            Just(Delete::Ike),
            vec(any::<u32>(), 0..9).prop_map(Delete::Esp),
            vec(any::<[u8; 4]>(), 0..9).prop_map(|spis| Delete::Other {
                protocol: 2,
                spi_size: 4,
                spis: spis.concat(),
            }),
        ]
        .prop_map(Payload::Delete),
        octets(0..40).prop_map(Payload::VendorId),
        vec(selector(), 1..5).prop_map(Payload::TsI),
        vec(selector(), 1..5).prop_map(Payload::TsR),
        octets(0..40).prop_map(Payload::Configuration),
        octets(0..40).prop_map(Payload::Eap),
    ]
}

prop_compose! {
    fn message()(
        initiator in 1_u64..,
        responder in any::<u64>(),
        exchange in any::<u8>(),
        (from_initiator, response, higher_version) in any::<(bool, bool, bool)>(),
        minor_version in 0_u8..16,
        message_id in any::<u32>(),
        payloads in vec(payload(), 0..8),
    ) -> Message {
        let header = Header {
            initiator_spi: IkeSpi(initiator.to_be_bytes()),
            responder_spi: IkeSpi(responder.to_be_bytes()),
            exchange: ExchangeType::from_number(exchange),
            from_initiator,
            response,
            higher_version,
            minor_version,
            message_id,
        };
        Message { header, payloads }
    }
}

fn plain(datagram: &[u8]) -> Result<Message, DecodeError> {
    match parse(datagram)? {
        Parsed::Plain(message) => Ok(message),
        Parsed::Sealed(_) => panic!("not plain"),
    }
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_itself(message in message()) {
        prop_assert_eq!(plain(&message.encode_plain()).unwrap(), message);
    }

    #[test]
    fn another_parser_reads_the_same(mut message in message()) {
        // It refuses short Delete and Vendor ID payloads, and cuts long ones.
        message.payloads.retain(|payload| !matches!(payload, Payload::Delete(_) | Payload::VendorId(_)));
        let datagram = message.encode_plain();
        let (rest, (header, payloads)) = ipsec_parser::parse_ikev2_message(&datagram).unwrap();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(header.init_spi.to_be_bytes(), message.header.initiator_spi.0);
        prop_assert_eq!(header.resp_spi.to_be_bytes(), message.header.responder_spi.0);
        prop_assert_eq!(header.exch_type.0, message.header.exchange.number());
        prop_assert_eq!(header.msg_id, message.header.message_id);
        prop_assert_eq!(header.length as usize, datagram.len());
        // Its first element is a placeholder.
        let payloads = payloads.unwrap();
        prop_assert_eq!(payloads.len(), message.payloads.len() + 1);
        for (theirs, ours) in payloads[1..].iter().zip(&message.payloads) {
            same(&theirs.content, ours)?;
        }
    }

    #[test]
    fn cut_or_changed_messages_never_panic(
        message in message(),
        cut in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut datagram = message.encode_plain();
        let _ = parse(&datagram[..cut.index(datagram.len())]);
        for (at, value) in changes {
            let at = at.index(datagram.len());
            datagram[at] = value;
        }
        crate::corpus::exercise(&datagram);
    }

    #[test]
    fn noise_never_panics(noise in octets(0..400), first in any::<u8>()) {
        let _ = decode_chain(first, &noise);
        crate::corpus::exercise(&noise);
    }

    #[test]
    fn narrowing_stays_within_both(ours in vec(selector(), 1..4), theirs in vec(selector(), 1..4)) {
        for narrowed in TrafficSelector::narrow(&ours, &theirs) {
            prop_assert!(ours.iter().any(|it| it.contains(&narrowed)));
            prop_assert!(theirs.iter().any(|it| it.contains(&narrowed)));
        }
        prop_assert_eq!(TrafficSelector::narrow(&ours, &ours[..1]), vec![ours[0]]);
    }

    #[test]
    fn prefixes_cover_exactly_the_range(a in any::<u32>(), b in any::<u32>()) {
        let (start, end) = (a.min(b), a.max(b));
        let prefixes = AddressRange::V4(start.into(), end.into()).prefixes();
        prop_assert!(prefixes.len() <= 62);
        let mut next = u64::from(start);
        for prefix in prefixes {
            let AddressRange::V4(first, last) = AddressRange::from_prefix(prefix) else { panic!("IPv4") };
            prop_assert_eq!(u64::from(u32::from(first)), next);
            next = u64::from(u32::from(last)) + 1;
        }
        prop_assert_eq!(next, u64::from(end) + 1);
    }
}

fn same(theirs: &ipsec_parser::IkeV2PayloadContent<'_>, ours: &Payload) -> Result<(), TestCaseError> {
    use ipsec_parser::IkeV2PayloadContent as Theirs;
    match (theirs, ours) {
        (Theirs::SA(theirs), Payload::Sa(ours)) => {
            prop_assert_eq!(theirs.len(), ours.len());
            for (theirs, ours) in theirs.iter().zip(ours) {
                prop_assert_eq!(theirs.proposal_num, ours.number);
                prop_assert_eq!(theirs.protocol_id.0, ours.protocol.number());
                let transforms = theirs.transforms.iter().map(|it| (it.transform_type.0, it.transform_id));
                let ours = ours.transforms.iter().map(|it| (it.kind.number(), it.id));
                prop_assert!(transforms.eq(ours));
            }
        }
        (Theirs::KE(theirs), Payload::Ke(ours)) => {
            prop_assert_eq!(theirs.dh_group.0, ours.group);
            prop_assert_eq!(theirs.kex_data, ours.data.as_slice());
        }
        (Theirs::IDi(theirs), Payload::IdI(ours)) | (Theirs::IDr(theirs), Payload::IdR(ours)) => {
            prop_assert_eq!(theirs.id_type.0, ours.identity.kind());
            prop_assert_eq!(theirs.ident_data, &ours.body()[4..]);
        }
        (Theirs::Certificate(theirs), Payload::Cert(ours)) => {
            prop_assert_eq!(theirs.cert_data, ours.data.as_slice());
        }
        (Theirs::CertificateRequest(theirs), Payload::CertReq(ours)) => {
            prop_assert_eq!(theirs.ca_data, ours.authorities.as_slice());
        }
        (Theirs::Authentication(theirs), Payload::Auth(ours)) => {
            // It takes the reserved octets for the beginning of the data.
            prop_assert_eq!(theirs.auth_method.0, ours.method.0);
        }
        (Theirs::Nonce(theirs), Payload::Nonce(ours)) => {
            prop_assert_eq!(theirs.nonce_data, ours.octets());
        }
        // It cuts the last four octets of a notification's data off.
        (Theirs::Notify(theirs), Payload::Notify(ours)) => {
            prop_assert_eq!(theirs.notify_type.0, ours.kind.0);
            prop_assert!(ours.data.starts_with(theirs.notify_data.unwrap_or_default()));
        }
        (Theirs::TSi(theirs), Payload::TsI(ours)) | (Theirs::TSr(theirs), Payload::TsR(ours)) => {
            prop_assert_eq!(theirs.ts.len(), ours.len());
            for (theirs, ours) in theirs.ts.iter().zip(ours) {
                prop_assert_eq!((theirs.start_port, theirs.end_port), (ours.start_port, ours.end_port));
                prop_assert!(ours.addresses.contains_address(theirs.get_start_addr().unwrap()));
                prop_assert!(ours.addresses.contains_address(theirs.get_end_addr().unwrap()));
            }
        }
        (Theirs::Unknown(theirs), Payload::Configuration(ours) | Payload::Eap(ours)) => {
            prop_assert_eq!(*theirs, ours.as_slice());
        }
        (theirs, ours) => prop_assert!(false, "{theirs:?} is not {ours:?}"),
    }
    Ok(())
}

/// An IKE_SA_INIT header around a chain.
fn datagram(first: u8, chain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let spi = IkeSpi([1; 8]);
    let header = Header::new(spi, IkeSpi::ZERO, ExchangeType::IkeSaInit, true, false, 0);
    header.encode(first, 28 + chain.len() as u32, &mut out);
    out.extend_from_slice(chain);
    out
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let good = datagram(0, &[]);
    assert!(plain(&good).unwrap().payloads.is_empty());
    for length in 0..28 {
        assert_eq!(plain(&good[..length]), Err(DecodeError::Truncated));
    }
    let with = |at: usize, value: u8| {
        let mut changed = good.clone();
        changed[at] = value;
        plain(&changed)
    };
    assert_eq!(with(27, 29), Err(DecodeError::LengthMismatch));
    assert_eq!(with(24, 1), Err(DecodeError::LengthMismatch));
    assert!(matches!(with(17, 0x30), Err(DecodeError::MajorVersion { major: 3, .. })));
    assert!(matches!(with(17, 0x10), Err(DecodeError::MajorVersion { major: 1, .. })));
    // RFC 7296 section 2.5: a higher minor version is ignored.
    assert_eq!(with(17, 0x2f).unwrap().header.minor_version, 15);
    let mut zero = good.clone();
    zero[..8].fill(0);
    assert_eq!(plain(&zero), Err(DecodeError::ZeroSpi));
    let mut trailing = good;
    trailing.push(0);
    assert_eq!(plain(&trailing), Err(DecodeError::LengthMismatch));
}

/// RFC 7296 section 2.5.
#[test]
fn the_critical_bit_matters_for_unknown_payloads_only() {
    let unknown = |flags: u8| plain(&datagram(200, &[43, flags, 0, 5, 7, 0, 0, 0, 4]));
    assert_eq!(unknown(0).unwrap().payloads, [Payload::VendorId(Vec::new())]);
    assert_eq!(unknown(0x80), Err(DecodeError::UnsupportedCritical(200)));
    let known = plain(&datagram(43, &[0, 0x80, 0, 5, 7]));
    assert_eq!(known.unwrap().payloads, [Payload::VendorId(vec![7])]);
}

#[test]
fn chains_that_do_not_add_up_are_refused() {
    let vendor = PayloadType::VendorId.number();
    // Lengths below the generic header, beyond the message, and octets left over.
    for chain in [&[0, 0, 0, 3][..], &[0, 0, 0, 5], &[0, 0, 0, 4, 0], &[0, 0, 0], &[vendor, 0, 0, 4]] {
        assert!(plain(&datagram(vendor, chain)).is_err(), "{chain:?}");
    }
    let many = vec![Payload::VendorId(Vec::new()); MAX_PAYLOADS];
    let (first, chain) = encode_chain(&many);
    assert_eq!(decode_chain(first, &chain).unwrap(), many);
    let (first, chain) = encode_chain(&vec![Payload::VendorId(Vec::new()); MAX_PAYLOADS + 1]);
    assert!(decode_chain(first, &chain).is_err());
    // An encrypted payload inside an encrypted payload.
    assert_eq!(decode_chain(46, &[0, 0, 0, 4]), Err(DecodeError::MisplacedEncrypted));
    assert_eq!(decode_chain(53, &[0, 0, 0, 8, 0, 1, 0, 1]), Err(DecodeError::MisplacedEncrypted));
    // An encrypted payload that is not the last.
    assert!(parse(&datagram(46, &[vendor, 0, 0, 4, 0, 0, 0, 4])).is_err());
}

#[test]
fn forbidden_values_inside_payloads_are_refused() {
    let refused = |kind: PayloadType, body: &str| {
        let body = hex(body);
        let mut chain = vec![0, 0, 0, (body.len() + 4) as u8];
        chain.extend_from_slice(&body);
        assert!(decode_chain(kind.number(), &chain).is_err(), "{kind:?} {body:02x?}");
    };
    // Nonces of 15 and of no octets.
    refused(PayloadType::Nonce, "000000000000000000000000000000");
    refused(PayloadType::Nonce, "");
    // No proposal; a proposal longer than the payload; "more" without more; transforms missing.
    refused(PayloadType::Sa, "");
    refused(PayloadType::Sa, "00000009 01010000");
    refused(PayloadType::Sa, "02000008 01010000");
    refused(PayloadType::Sa, "00000008 01010001");
    refused(PayloadType::Sa, "00000010 01010001 03000008 01000014");
    refused(PayloadType::Sa, "00000003 01010000");
    // An attribute cut short.
    refused(PayloadType::Sa, "00000012 01010001 0000000a 01000014 800e");
    refused(PayloadType::Sa, "00000014 01010001 0000000c 01000014 000e0004");
    // No selector; end before start; ports out of order; wrong length.
    refused(PayloadType::TsI, "00000000");
    refused(PayloadType::TsI, "01000000 07000010 0000ffff 0a000002 0a000001");
    refused(PayloadType::TsI, "01000000 07000010 00020001 0a000001 0a000002");
    refused(PayloadType::TsR, "01000000 07000011 0000ffff 0a000001 0a000002 00");
    refused(PayloadType::TsR, "02000000 07000010 0000ffff 0a000001 0a000002");
    // Delete whose count and size contradict the length; an IKE SA with an SPI.
    refused(PayloadType::Delete, "03040002 00001000");
    refused(PayloadType::Delete, "03080001 0000000000001000");
    refused(PayloadType::Delete, "01080001 0000000000001000");
    refused(PayloadType::Notify, "0304");
    refused(PayloadType::Notify, "03044009 0000");
    refused(PayloadType::Ke, "001300");
    refused(PayloadType::IdI, "0100");
    refused(PayloadType::Auth, "02");
    refused(PayloadType::Cert, "");
}

#[test]
fn selectors_of_an_unknown_type_are_left_out() {
    let body = hex("02000000 09000008 0000ffff 07000010 0000ffff 0a000001 0a000002");
    let mut chain = vec![0, 0, 0, (body.len() + 4) as u8];
    chain.extend_from_slice(&body);
    let payloads = decode_chain(PayloadType::TsI.number(), &chain).unwrap();
    let [Payload::TsI(selectors)] = payloads.as_slice() else { panic!("one payload") };
    assert_eq!(selectors.len(), 1);
}

/// Content that contradicts its type becomes an identity that matches nothing.
#[test]
fn odd_identities_match_nothing() {
    for (kind, data) in
        [(1, &[1, 2, 3][..]), (5, &[0; 4]), (2, b""), (2, &[0xff]), (3, "ü@x".as_bytes()), (77, b"x")]
    {
        let identity = Identity::from_wire(kind, data);
        assert!(matches!(identity, Identity::Other { .. }), "{kind}");
        assert!(!identity.matches(&identity));
    }
    let (a, b) = (Identity::Fqdn("GW.Example".into()), Identity::Fqdn("gw.example".into()));
    assert!(a.matches(&b));
    assert!(!a.matches(&Identity::Email("gw.example".into())));
    assert_eq!(Identity::Fqdn("a\u{1b}b".into()).to_string(), "a\\u{1b}b");
}

#[test]
fn narrowing_by_the_rules() {
    let selector = |prefix: &str| TrafficSelector::from_prefix(prefix.parse().unwrap());
    let any = [selector("0.0.0.0/0"), selector("::/0")];
    assert_eq!(TrafficSelector::narrow(&any, &any), any);
    assert_eq!(TrafficSelector::narrow(&any, &[selector("10.0.0.0/8")]), [selector("10.0.0.0/8")]);
    assert_eq!(TrafficSelector::narrow(&[selector("10.1.0.0/16")], &any), [selector("10.1.0.0/16")]);
    assert!(TrafficSelector::narrow(&[selector("10.0.0.0/8")], &[selector("192.168.0.0/16")]).is_empty());
    // A specific selector first, then the general one: one result.
    let proposed = [selector("10.0.0.1/32"), selector("10.0.0.0/8")];
    assert_eq!(TrafficSelector::narrow(&any, &proposed), [selector("10.0.0.0/8")]);
    let port =
        |start_port, end_port| TrafficSelector { protocol: 6, start_port, end_port, ..selector("0.0.0.0/0") };
    assert_eq!(port(80, 90).intersection(&port(85, 99)), Some(port(85, 90)));
    assert_eq!(port(80, 90).intersection(&port(91, 99)), None);
    assert_eq!(port(0, u16::MAX).intersection(&port(u16::MAX, 0)), Some(port(u16::MAX, 0)));
    assert_eq!(port(80, 90).intersection(&port(u16::MAX, 0)), None);
    assert_eq!(port(80, 80).to_string(), "0.0.0.0/0[6/80-80]");
    let range = AddressRange::V4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 6));
    assert_eq!(TrafficSelector { addresses: range, ..any[0] }.to_string(), "10.0.0.1-10.0.0.6");
    let all = AddressRange::V6(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from(u128::MAX));
    assert_eq!(all.prefixes(), ["::/0".parse().unwrap()]);
}

#[test]
fn notifications_read_back() {
    assert_eq!(Notify::invalid_ke(20).wanted_group(), Some(20));
    assert_eq!(Notify::bare(NotifyType::INVALID_KE_PAYLOAD).wanted_group(), None);
    assert_eq!(Notify::signature_hashes(&[2, 3]).numbers().collect::<Vec<_>>(), [2, 3]);
    assert!(NotifyType::NO_PROPOSAL_CHOSEN.is_error());
    assert!(!NotifyType::INITIAL_CONTACT.is_error());
    assert_eq!(NotifyType(14).to_string(), "NO_PROPOSAL_CHOSEN");
    assert_eq!(NotifyType(40_000).to_string(), "notify 40000");
}

/// RFC 9242 section 3.3.2: header and SK header with lengths as if nothing were encrypted.
#[test]
fn int_auth_covers_adjusted_lengths() {
    let header = Header::new(IkeSpi([1; 8]), IkeSpi([2; 8]), ExchangeType::IkeIntermediate, true, false, 1);
    let (first, inner) = encode_chain(&[Payload::Nonce(Nonce::new(vec![9; 16]).unwrap())]);
    let octets = Message::int_auth_octets(&header, first, &inner);
    let expected = hex(
        "0101010101010101 0202020202020202 2e202b08 00000001 00000034 28000018 00000014 09090909090909090909090909090909",
    );
    assert_eq!(*octets, expected);
}

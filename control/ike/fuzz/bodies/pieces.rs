//! What the fuzz targets do with their input. `cargo test` runs the same over the committed corpus.

use std::sync::LazyLock;
use std::time::Duration;

use braid_ike::auth::{SignedOctets, SignedOctetsInput, TrustStore, Verifier, dn};
use braid_ike::crypto::{Cipher, IkeSuite, KeMethod, Opener, Prf, Sealer};
use braid_ike::proposal::{ChildExchange, EspProposal, IkeProposal, describe};
use braid_ike::wire::fragment::Reassembly;
use braid_ike::wire::{
    AuthMethod, AuthPayload, CertEncoding, CertPayload, ExchangeType, Header, IdPayload, Identity, IkeSpi,
    Message, Nonce, Parsed, Payload, decode_chain, encode_chain, parse,
};
use braid_ike::{Random, SecretBytes};

struct Zeroes;

impl Random for Zeroes {
    fn fill(&mut self, out: &mut [u8]) {
        out.fill(0);
    }
}

fn suite() -> IkeSuite {
    IkeSuite {
        cipher: Cipher::Aes128Gcm16,
        integrity: None,
        prf: Prf::HmacSha256,
        ke: KeMethod::Ecp256,
        additional: Vec::new(),
    }
}

fn sealer_and_opener() -> (Sealer, Opener) {
    let (key, none) = (SecretBytes::new(vec![1; 20]), SecretBytes::default());
    let sealer = Sealer::new(&suite(), &key, &none, 0).expect("a key of the suite's length");
    (sealer, Opener::new(&suite(), &key, &none).expect("a key of the suite's length"))
}

/// A datagram from a stranger.
pub(crate) fn datagram(input: &[u8]) {
    match parse(input) {
        Ok(Parsed::Plain(message)) => {
            inspect(&message.payloads);
            let _ = stable(&message);
        }
        Ok(Parsed::Sealed(sealed)) => {
            let (_, opener) = sealer_and_opener();
            assert!(sealed.open(&opener).is_err(), "nobody sealed this");
        }
        Err(error) => drop(error.to_string()),
    }
}

/// The inside of an SK payload from an authenticated peer: first the type of the first payload, then the chain.
pub(crate) fn chain(input: &[u8]) {
    let Some((&first, chain)) = input.split_first() else { return };
    let Ok(payloads) = decode_chain(first, chain) else { return };
    inspect(&payloads);
    let spi = IkeSpi([1; 8]);
    let header = Header::new(spi, spi, ExchangeType::Informational, true, false, 1);
    let message = Message { header, payloads };
    if !stable(&message) {
        return;
    }
    let (mut sealer, opener) = sealer_and_opener();
    let mut reassembly = Reassembly::new();
    let Ok(datagrams) = braid_ike::wire::fragment::seal_fragmented(&message, 576, &mut sealer, &mut Zeroes)
    else {
        return;
    };
    let (last, mut whole) = (datagrams.len() - 1, None);
    for (index, datagram) in datagrams.iter().enumerate() {
        let Ok(Parsed::Sealed(sealed)) = parse(datagram) else { panic!("what was sealed parses") };
        let position = sealed.fragment;
        let opened = sealed.open(&opener).expect("what was sealed opens");
        whole = match position {
            None => Some(opened),
            Some(position) => reassembly.insert(position, opened),
        };
        assert_eq!(whole.is_some(), index == last);
    }
    let opened = whole.expect("the last fragment completes the message");
    assert_eq!(
        opened.decode().map(|message| encode_chain(&message.payloads)),
        Ok(encode_chain(&message.payloads))
    );
}

/// A certificate from a peer, whose AUTH cannot verify.
pub(crate) fn certificate(input: &[u8]) {
    static TRUST: LazyLock<Verifier> = LazyLock::new(|| {
        let store =
            TrustStore::from_pem(include_bytes!("ca.pem")).expect("a CA certificate of this repository");
        Verifier::Certificate(Box::new(store))
    });
    let claimed = Identity::Fqdn("gw.example.org".to_owned());
    let nonce = Nonce::new(vec![1; 16]).expect("16 octets");
    let octets = SignedOctets::new(&SignedOctetsInput {
        prf: Prf::HmacSha256,
        message: b"message",
        peer_nonce: &nonce,
        sk_p: &SecretBytes::new(vec![1; 32]),
        id: &IdPayload::new(claimed.clone()),
        int_auth: None,
    });
    let auth = AuthPayload { method: AuthMethod::SIGNATURE, data: input.to_vec() };
    let payload = CertPayload { encoding: CertEncoding::X509, data: input.to_vec() };
    let now = Duration::from_secs(1_780_272_000);
    let certificates = [payload.clone(), payload];
    let result = TRUST.verify(Prf::HmacSha256, &octets, &auth, &claimed, &certificates, now);
    assert!(result.is_err(), "nobody signed this");
}

/// Text of the configuration: proposals and names.
pub(crate) fn text(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match text.parse::<IkeProposal>() {
        Ok(proposal) => assert_eq!(proposal.to_string().parse::<IkeProposal>(), Ok(proposal)),
        Err(error) => drop(error.to_string()),
    }
    match text.parse::<EspProposal>() {
        Ok(proposal) => assert_eq!(proposal.to_string().parse::<EspProposal>(), Ok(proposal)),
        Err(error) => drop(error.to_string()),
    }
    if let Some(name) = dn::from_text(text) {
        assert!(dn::equal(&name, &name));
        drop(dn::to_text(&name));
    }
    drop(dn::to_text(input));
    let _ = dn::equal(input, input);
}

/// Everything that is computed from a payload before anybody decides what it is worth.
fn inspect(payloads: &[Payload]) {
    for payload in payloads {
        match payload {
            Payload::Sa(proposals) => {
                drop(describe(proposals));
                let ike = ["aes256gcm16-prfsha384-ecp384-ke1_mlkem768", "aes128-sha256-modp2048"];
                let ours: Vec<IkeProposal> = ike.iter().filter_map(|text| text.parse().ok()).collect();
                let _ = IkeProposal::select(&ours, proposals);
                let _ = IkeProposal::accept(&ours, proposals);
                let ours: Vec<EspProposal> = "aes256gcm16-ecp384-esn-noesn".parse().into_iter().collect();
                let _ = EspProposal::select(&ours, proposals, ChildExchange::IkeAuth);
                let _ = EspProposal::accept(&ours, proposals, ChildExchange::CreateChildSa);
            }
            Payload::IdI(id) | Payload::IdR(id) => {
                drop(id.identity.to_string());
                let _ = id.identity.matches(&id.identity);
            }
            Payload::TsI(selectors) | Payload::TsR(selectors) => {
                for selector in selectors {
                    drop(selector.to_string());
                }
                drop(braid_ike::wire::TrafficSelector::narrow(selectors, selectors));
            }
            Payload::Notify(notify) => {
                let _ = (notify.wanted_group(), notify.numbers().count(), notify.kind.to_string());
            }
            _ => {}
        }
    }
}

/// Encoding what was decoded decodes to the same. Whether it can be encoded.
fn stable(message: &Message) -> bool {
    // A payload whose selectors were all of unknown types has none left, which cannot be written.
    let empty =
        |payload: &Payload| matches!(payload, Payload::TsI(list) | Payload::TsR(list) if list.is_empty());
    if message.payloads.iter().any(empty) {
        return false;
    }
    match parse(&message.encode_plain()) {
        Ok(Parsed::Plain(again)) => assert_eq!(&again, message),
        other => panic!("{other:?}"),
    }
    true
}

//! A peer that has the keys and does not keep to the protocol: what is authentic is still bounded and refused.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use braid_ike::crypto::{Cipher, IkeSuite, KeMethod, Opener, Prf, Sealer};
use braid_ike::proposal::{ChildExchange, EspProposal};
use braid_ike::wire::{
    Delete, ExchangeType, Header, IkeSpi, Message, Nonce, Notify, NotifyType, Parsed, Payload, PayloadType,
    TrafficSelector, encode_chain, parse,
};
use braid_ike::{
    ChildId, Direction, EndpointSettings, Fault, Path, PeerConfig, PeerId, Role, SecretBytes, Violation,
};

use crate::config::{A, B, peer};
use crate::exchanges::{run_with_traffic, up};
use crate::net::{Net, Seeded};

/// Of no payload that is known.
const UNKNOWN: u8 = 200;
const CRITICAL: u8 = 0x80;
/// Children of one IKE SA at most.
const MAX_CHILDREN: usize = 16;

/// Speaks with one node's keys.
struct Forger {
    sealer: Sealer,
    /// Of what the other one sends.
    opener: Opener,
    spis: (IkeSpi, IkeSpi),
    of_initiator: bool,
}

fn octets(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digit).collect()
}

impl Forger {
    /// Of node 0, which made the IKE SA, or of node 1.
    fn of(net: &Net, node: usize) -> Self {
        let fields: Vec<&str> = net.nodes[node].key_log.last().unwrap().split(',').collect();
        let spi = |field: &str| IkeSpi(octets(field).try_into().unwrap());
        let [sk_ei, sk_er] = [fields[2], fields[3]].map(|field| SecretBytes::new(octets(field)));
        let suite = IkeSuite {
            cipher: Cipher::Aes128Gcm16,
            integrity: None,
            prf: Prf::HmacSha256,
            ke: KeMethod::from_number(31).unwrap(),
            additional: Vec::new(),
        };
        let none = SecretBytes::default();
        let (ours, theirs) = if node == 0 { (&sk_ei, &sk_er) } else { (&sk_er, &sk_ei) };
        Forger {
            sealer: Sealer::new(&suite, ours, &none, u32::MAX).unwrap(),
            opener: Opener::new(&suite, theirs, &none).unwrap(),
            spis: (spi(fields[0]), spi(fields[1])),
            of_initiator: node == 0,
        }
    }

    fn header(&self, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
        Header::new(self.spis.0, self.spis.1, exchange, self.of_initiator, response, message_id)
    }

    /// A message with a payload of an unknown type before `payloads`.
    fn with_unknown(&mut self, header: &Header, flags: u8, payloads: &[Payload]) -> Vec<u8> {
        let (first, chain) = encode_chain(payloads);
        let inner = [&[first, flags, 0, 8, 1, 2, 3, 4][..], &chain].concat();
        let length = 4 + self.sealer.sealed_len(inner.len());
        let mut out = Vec::new();
        header.encode(PayloadType::Encrypted.number(), (28 + length) as u32, &mut out);
        out.extend_from_slice(&[UNKNOWN, 0]);
        out.extend_from_slice(&(length as u16).to_be_bytes());
        self.sealer.seal(&mut out, &inner, &mut Seeded(1)).unwrap();
        out
    }

    fn seal(&mut self, header: Header, payloads: Vec<Payload>) -> Vec<u8> {
        Message { header, payloads }.seal(&mut self.sealer, &mut Seeded(2)).unwrap()
    }

    fn open(&self, bytes: &[u8]) -> Message {
        let Parsed::Sealed(sealed) = parse(bytes).unwrap() else { panic!("in clear") };
        sealed.open(&self.opener).unwrap().decode().unwrap()
    }
}

/// Established, every key logged.
fn established(seed: u64, change: impl Fn(&mut PeerConfig)) -> Net {
    let settings = EndpointSettings { key_log: true, ..EndpointSettings::default() };
    let mut net = Net::with_settings(seed, &[A, B], settings);
    for (node, role, local, remote) in [(1, Role::Respond, B, A), (0, Role::Initiate, A, B)] {
        let mut config = peer(role, local, remote);
        change(&mut config);
        net.put_peer(node, 1 - node as u32, config);
    }
    up(&mut net);
    net
}

/// What `node` sends from now on, which does not arrive.
fn intercept(net: &mut Net, node: usize) -> Rc<RefCell<Vec<Vec<u8>>>> {
    let sent = Rc::new(RefCell::new(Vec::<Vec<u8>>::new()));
    let recorder = sent.clone();
    net.censor = Some(Box::new(move |from, bytes| {
        if from == node {
            recorder.borrow_mut().push(bytes.to_vec());
        }
        from == node
    }));
    sent
}

fn to(node: usize) -> Path {
    let address = |node: usize| format!("{}:4500", [A, B][node]).parse().unwrap();
    Path { local: address(node), remote: address(1 - node) }
}

/// All that a message that is refused leaves as it was.
#[derive(PartialEq, Debug)]
struct State {
    ike_sas: usize,
    in_core: Vec<(ChildId, Direction)>,
    path: Option<Path>,
    child: Option<ChildId>,
}

fn state(net: &Net, node: usize) -> State {
    let node = &net.nodes[node];
    let status = node.endpoint.status(net.now, PeerId(0)).unwrap();
    State {
        ike_sas: node.endpoint.ike_sas(),
        in_core: node.core.sas.keys().copied().collect(),
        path: status.path,
        child: status.child.map(|child| child.id),
    }
}

fn new_child(config: &PeerConfig, spi: u32) -> Vec<Payload> {
    let selectors = |prefixes: &[ipnet::IpNet]| {
        prefixes.iter().copied().map(TrafficSelector::from_prefix).collect::<Vec<_>>()
    };
    vec![
        Payload::Sa(EspProposal::offer_all(&config.esp_proposals, spi, ChildExchange::CreateChildSa)),
        Payload::Nonce(Nonce::generate(&mut Seeded(u64::from(spi)))),
        Payload::TsI(selectors(&config.local_ts)),
        Payload::TsR(selectors(&config.remote_ts)),
    ]
}

fn without_pfs(config: &mut PeerConfig) {
    config.esp_proposals = vec!["aes128gcm16".parse().unwrap()];
}

/// RFC 7296 section 2.5.
#[test]
fn a_critical_payload_that_is_not_known_is_refused_and_changes_nothing() {
    let mut config = peer(Role::Initiate, A, B);
    without_pfs(&mut config);
    let requests = [
        (ExchangeType::Informational, Vec::new()),
        (ExchangeType::Informational, vec![Payload::Delete(Delete::Ike)]),
        (ExchangeType::CreateChildSa, new_child(&config, 0x1234_5678)),
    ];
    for (exchange, payloads) in requests {
        let mut net = established(36, without_pfs);
        let mut forger = Forger::of(&net, 0);
        let before = state(&net, 1);
        let sent = intercept(&mut net, 1);
        // Requests 0 and 1 made the SA.
        let header = forger.header(exchange, false, 2);
        let request = forger.with_unknown(&header, CRITICAL, &payloads);
        net.inject(1, to(1), request.clone());
        net.run(Duration::from_millis(1));
        let answer = forger.open(&sent.borrow()[0]);
        assert_eq!(answer.header, Header { from_initiator: false, response: true, ..header });
        let refusal = Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![UNKNOWN]);
        assert_eq!(answer.payloads, [Payload::Notify(refusal)]);
        assert_eq!(state(&net, 1), before, "{exchange:?}");
        // Refused the same way when it comes again.
        net.inject(1, to(1), request);
        net.run(Duration::from_millis(1));
        assert_eq!((sent.borrow().len(), &sent.borrow()[0]), (2, &sent.borrow()[1]));
        net.censor = None;
        net.act(1, |e, now, rng| e.rekey_child(now, rng, PeerId(0)));
        run_with_traffic(&mut net, Duration::from_secs(1));
        assert!(net.failures(1).is_empty());
    }
}

#[test]
fn a_payload_that_is_not_known_and_not_critical_is_skipped() {
    let mut net = established(37, without_pfs);
    let mut forger = Forger::of(&net, 0);
    let sent = intercept(&mut net, 1);
    let header = forger.header(ExchangeType::Informational, false, 2);
    let request = forger.with_unknown(&header, 0, &[Payload::VendorId(vec![1])]);
    net.inject(1, to(1), request);
    net.run(Duration::from_millis(1));
    assert_eq!(forger.open(&sent.borrow()[0]).payloads, []);
}

#[test]
fn a_critical_payload_that_is_not_known_in_an_answer_ends_the_sa() {
    let mut net = established(38, |_| {});
    let mut forger = Forger::of(&net, 1);
    intercept(&mut net, 1);
    net.act(0, |e, now, rng| e.probe(now, rng, PeerId(1)));
    net.run(Duration::from_millis(50));
    let header = forger.header(ExchangeType::Informational, true, 2);
    let answer = forger.with_unknown(&header, CRITICAL, &[]);
    net.inject(0, to(0), answer);
    net.run(Duration::from_millis(1));
    let unknown = Fault::Violation(Violation::UnknownCritical(UNKNOWN));
    assert!(net.failures(0).contains(&&unknown), "{:?}", net.failures(0));
    assert!(!net.is_up(0, 1));
    net.censor = None;
    up(&mut net);
}

#[test]
fn children_of_one_sa_are_bounded() {
    let mut net = established(39, without_pfs);
    let mut forger = Forger::of(&net, 0);
    let mut config = peer(Role::Initiate, A, B);
    without_pfs(&mut config);
    // It never learns that it has more than one: none of the answers arrives, nor any Delete.
    let sent = intercept(&mut net, 1);
    let (mut made, mut refused) = (1, 0);
    for number in 0..2 * MAX_CHILDREN as u32 {
        let header = forger.header(ExchangeType::CreateChildSa, false, 2 + number);
        let request = forger.seal(header, new_child(&config, 0x1000 + number));
        net.inject(1, to(1), request);
        net.run(Duration::from_millis(1));
        let sent = sent.borrow();
        let mut messages = sent.iter().map(|bytes| forger.open(bytes));
        let answer = messages.find(|m| m.header.response && m.header.message_id == 2 + number).unwrap();
        match answer.notify(NotifyType::NO_ADDITIONAL_SAS) {
            Some(_) => refused += 1,
            None => made += 1,
        }
        assert!(net.nodes[1].core.sas.len() <= 2 * MAX_CHILDREN);
    }
    assert_eq!((made, refused), (MAX_CHILDREN, MAX_CHILDREN + 1));
    assert!(net.is_up(1, 0));
}

/// RFC 4555 sections 3.7 and 4.2.5: whoever answers for the peer at an address must have seen what was sent there.
#[test]
fn an_answer_with_another_cookie2_ends_the_sa() {
    type Alter = fn(&[u8]) -> Option<Vec<u8>>;
    let altered: [(bool, Alter); 4] = [
        (true, |cookie| Some(cookie.to_vec())),
        (false, |_| None),
        (false, |cookie| Some(cookie.iter().map(|octet| octet ^ 1).collect())),
        (false, |cookie| Some(cookie[..cookie.len() - 1].to_vec())),
    ];
    for (number, (is_right, alter)) in altered.into_iter().enumerate() {
        const ELSEWHERE: &str = "192.0.2.77";
        let mut net = established(40, |config| {
            if config.role == Role::Respond {
                config.remote = None;
            }
        });
        let mut forger = Forger::of(&net, 1);
        let first = net.nodes[0].endpoint.status(net.now, PeerId(1)).unwrap().child.unwrap().id;
        let sent = intercept(&mut net, 0);
        net.readdress(0, ELSEWHERE);
        let (local, remote) = (ELSEWHERE.parse().unwrap(), B.parse().unwrap());
        net.act(0, |e, now, rng| e.set_addresses(now, rng, PeerId(1), local, remote));
        let request = forger.open(&sent.borrow()[0]);
        assert!(request.notify(NotifyType::UPDATE_SA_ADDRESSES).is_some());
        let cookie = request.notify(NotifyType::COOKIE2).unwrap().data.clone();
        let header = forger.header(ExchangeType::Informational, true, request.header.message_id);
        let echo = alter(&cookie).map(|data| Payload::Notify(Notify::new(NotifyType::COOKIE2, data)));
        let answer = forger.seal(header, echo.into_iter().collect());
        let path = Path { local: format!("{ELSEWHERE}:4500").parse().unwrap(), remote: to(0).remote };
        net.inject(0, path, answer);
        net.run(Duration::from_millis(1));
        assert_eq!(net.is_up(0, 1), is_right, "answer {number}");
        let is_delete = |bytes: &Vec<u8>| {
            Header::decode(bytes).unwrap().0.exchange == ExchangeType::Informational
                && forger.open(bytes).payloads == [Payload::Delete(Delete::Ike)]
        };
        let told = sent.borrow().iter().skip(1).any(is_delete);
        assert_eq!(told, !is_right, "answer {number}: the peer is told");
        if !is_right {
            let fault = Fault::Violation(Violation::MissingPayload("COOKIE2"));
            assert!(net.failures(0).contains(&&fault), "{:?}", net.failures(0));
            net.censor = None;
            up(&mut net);
            assert_ne!(net.nodes[0].core.outbound(PeerId(1)).unwrap().id, first);
        }
    }
}

//! What IKE_AUTH and CREATE_CHILD_SA share: the terms of a child SA, offered, chosen and checked.

use ipnet::IpNet;

use super::super::child::{Child, ChildKeys, ChildTerms};
use super::super::parts::Parts;
use super::super::{Cx, IkeSa, MAX_CHILDREN};
use crate::SecretBytes;
use crate::crypto::{EspSuite, KeMethod};
use crate::diagnosis::{Fault, Violation};
use crate::effect::ChildId;
use crate::proposal::{ChildExchange, EspProposal, Selected};
use crate::settings::PeerConfig;
use crate::wire::{Nonce, Notify, NotifyType, Payload, Proposal, ProposalSpi, TrafficSelector};

/// Most prefixes on one side of a child's selectors.
const MAX_PREFIXES: usize = 256;

/// Why there is no child.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// For the peer.
    pub(crate) notify: Notify,
    /// For the operator.
    pub(crate) fault: Fault,
}

/// A child's terms as a responder has chosen them, short of its own SPI.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) selected: Selected<EspSuite>,
    pub(crate) spi_out: u32,
    pub(crate) ts_i: Vec<TrafficSelector>,
    pub(crate) ts_r: Vec<TrafficSelector>,
}

/// Our offers for a child with an inbound SPI.
pub(crate) fn child_offers(config: &PeerConfig, spi: u32, exchange: ChildExchange) -> Vec<Proposal> {
    let numbered = config.esp_proposals.iter().zip(1..=u8::MAX);
    numbered.map(|(proposal, number)| proposal.offer(number, spi, exchange)).collect()
}

/// Both sides' selectors as an initiator proposes them.
pub(crate) fn proposed_selectors(config: &PeerConfig) -> [Payload; 2] {
    [Payload::TsI(selectors(&config.local_ts)), Payload::TsR(selectors(&config.remote_ts))]
}

/// The key exchange that an initiator tries first.
pub(crate) fn first_group(config: &PeerConfig) -> Option<KeMethod> {
    config.esp_proposals.first().and_then(|proposal| proposal.kes.first()).copied()
}

/// Responder: chooses from the peer's offer, or says why not.
pub(crate) fn choose_child(
    config: &PeerConfig,
    parts: &Parts<'_>,
    exchange: ChildExchange,
) -> Result<Chosen, Box<Refusal>> {
    let (Some(offered), Some(ts_i), Some(ts_r)) = (parts.sa, parts.ts_i, parts.ts_r) else {
        return Err(Box::new(Refusal {
            notify: Notify::bare(NotifyType::INVALID_SYNTAX),
            fault: Fault::Violation(Violation::MissingPayload("SA, TSi or TSr")),
        }));
    };
    let no_proposal = || {
        Box::new(Refusal {
            notify: Notify::bare(NotifyType::NO_PROPOSAL_CHOSEN),
            fault: Fault::NoProposal { ours: child_offers(config, 0, exchange), peers: offered.to_vec() },
        })
    };
    let selected = EspProposal::select(&config.esp_proposals, offered, exchange).ok_or_else(no_proposal)?;
    let ProposalSpi::Esp(spi_out) = selected.peer_spi else { return Err(no_proposal()) };
    // RFC 7296 section 3.3.1, RFC 4303 section 2.1.
    if spi_out < 256 {
        return Err(no_proposal());
    }
    let (ours, peers) = (selectors(&config.local_ts), selectors(&config.remote_ts));
    let (narrow_r, narrow_i) = (narrow(&ours, ts_r), narrow(&peers, ts_i));
    if narrow_i.is_empty() || narrow_r.is_empty() {
        return Err(Box::new(Refusal {
            notify: Notify::bare(NotifyType::TS_UNACCEPTABLE),
            fault: Fault::TrafficSelectors { ours: (ours, peers), peers: (ts_r.to_vec(), ts_i.to_vec()) },
        }));
    }
    Ok(Chosen { selected, spi_out, ts_i: narrow_i, ts_r: narrow_r })
}

impl Chosen {
    /// SA, TSi and TSr of the answer.
    pub(crate) fn payloads(&self, spi_in: u32) -> (Payload, [Payload; 2]) {
        let answer = EspProposal::answer(&self.selected.suite, self.selected.number, spi_in);
        let selectors = [Payload::TsI(self.ts_i.clone()), Payload::TsR(self.ts_r.clone())];
        (Payload::Sa(vec![answer]), selectors)
    }

    /// With our SPI, from the responder's side.
    pub(crate) fn terms(&self, spi_in: u32) -> ChildTerms {
        ChildTerms {
            spi_in,
            spi_out: self.spi_out,
            esn: self.selected.suite.esn,
            suite: self.selected.suite.clone(),
            local: prefixes(&self.ts_r),
            remote: prefixes(&self.ts_i),
        }
    }
}

/// Initiator: checks the answer against what was offered.
pub(crate) fn check_answer(
    config: &PeerConfig,
    parts: &Parts<'_>,
    spi_in: u32,
    exchange: ChildExchange,
) -> Result<ChildTerms, Fault> {
    let (Some(answer), Some(ts_i), Some(ts_r)) = (parts.sa, parts.ts_i, parts.ts_r) else {
        return Err(Fault::Violation(Violation::MissingPayload("SA, TSi or TSr")));
    };
    let selected = EspProposal::accept(&config.esp_proposals, answer, exchange)
        .ok_or(Fault::Violation(Violation::NotOffered))?;
    let ProposalSpi::Esp(spi_out) = selected.peer_spi else {
        return Err(Fault::Violation(Violation::BadSpi));
    };
    if spi_out < 256 {
        return Err(Fault::Violation(Violation::BadSpi));
    }
    let (ours, peers) = (selectors(&config.local_ts), selectors(&config.remote_ts));
    // RFC 7296 section 2.9: the answer is a subset of the proposal.
    let within = |allowed: &[TrafficSelector], answer: &[TrafficSelector]| {
        !answer.is_empty() && answer.iter().all(|ts| allowed.iter().any(|allowed| allowed.contains(ts)))
    };
    let (local, remote) = (prefixes(ts_i), prefixes(ts_r));
    if !within(&ours, ts_i) || !within(&peers, ts_r) || local.is_empty() || remote.is_empty() {
        return Err(Fault::TrafficSelectors { ours: (ours, peers), peers: (ts_i.to_vec(), ts_r.to_vec()) });
    }
    Ok(ChildTerms { spi_in, spi_out, esn: selected.suite.esn, suite: selected.suite, local, remote })
}

impl IkeSa {
    /// Derives a child's keys and installs its inbound half.
    pub(crate) fn make_child(
        &mut self,
        cx: &mut Cx<'_>,
        terms: ChildTerms,
        shared: &[&SecretBytes],
        (ni, nr): (&Nonce, &Nonce),
        we_asked: bool,
    ) -> Option<ChildId> {
        let (peer, config) = (self.peer?, self.config.clone()?);
        if self.children.len() >= MAX_CHILDREN {
            return None;
        }
        let keys = self.crypt.as_ref()?.keys.child(&terms.suite, shared, ni, nr).ok()?;
        let keys = if we_asked {
            ChildKeys { outbound: keys.initiator, inbound: keys.responder }
        } else {
            ChildKeys { outbound: keys.responder, inbound: keys.initiator }
        };
        let way = self.esp_transport();
        let child = Child::install(cx, peer, &config, terms, keys, way);
        let id = child.id;
        self.children.push(child);
        self.note_children(cx.now);
        Some(id)
    }
}

pub(crate) fn selectors(prefixes: &[IpNet]) -> Vec<TrafficSelector> {
    prefixes.iter().copied().map(TrafficSelector::from_prefix).collect()
}

/// What both allow, without restrictions to protocols or ports: the core selects by address only.
fn narrow(allowed: &[TrafficSelector], proposed: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let whole: Vec<_> = proposed.iter().filter(|ts| ts.is_addresses_only()).copied().collect();
    let mut narrowed = TrafficSelector::narrow(allowed, &whole);
    while narrowed.iter().map(|ts| ts.addresses.prefixes().len()).sum::<usize>() > MAX_PREFIXES {
        narrowed.pop();
    }
    narrowed
}

/// The addresses as prefixes; none if the selectors restrict more than addresses, or are too many.
fn prefixes(selectors: &[TrafficSelector]) -> Vec<IpNet> {
    let all: Vec<IpNet> = selectors.iter().flat_map(|ts| ts.addresses.prefixes()).collect();
    let usable = selectors.iter().all(TrafficSelector::is_addresses_only) && all.len() <= MAX_PREFIXES;
    if usable { all } else { Vec::new() }
}

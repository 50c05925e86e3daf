//! Selection (RFC 7296 sections 2.7 and 3.3.6, RFC 9370 section 2.2.2).

use std::collections::BTreeMap;

use super::{ChildExchange, EspProposal, IkeProposal, Selected};
use crate::crypto::{Cipher, EspSuite, IkeSuite, Integrity, KeMethod, Prf};
use crate::wire::{Proposal, ProposalSpi, ProtocolId, Transform, TransformType};

/// The number that means "none" in every transform type that has it.
const NONE: u16 = 0;

impl IkeProposal {
    /// Responder: the best of ours that the peer offers. Our order of preference decides.
    pub fn select(ours: &[Self], offered: &[Proposal]) -> Option<Selected<IkeSuite>> {
        ours.iter().find_map(|ours| {
            offered.iter().find_map(|offer| {
                let suite = ours.matching(offer)?;
                Some(Selected { suite, peer_spi: offer.spi.clone(), number: offer.number })
            })
        })
    }

    /// Initiator: the responder's choice, if it is one of what [`IkeProposal::offer_all`] offered
    /// (RFC 7296 section 2.7).
    pub fn accept(ours: &[Self], answer: &[Proposal]) -> Option<Selected<IkeSuite>> {
        let [answer] = answer else { return None };
        let ours = ours.get(usize::from(answer.number).checked_sub(1)?)?;
        let suite = ours.matching(answer).filter(|_| is_single(answer))?;
        Some(Selected { suite, peer_spi: answer.spi.clone(), number: answer.number })
    }

    fn matching(&self, offer: &Proposal) -> Option<IkeSuite> {
        let spi_fits = matches!(offer.spi, ProposalSpi::None | ProposalSpi::Ike(_));
        if offer.protocol != ProtocolId::Ike || !spi_fits || has_unknown_type(offer) {
            return None;
        }
        // RFC 7296 section 3.3.3: an IKE SA has no ESN transform.
        if of_type(offer, TransformType::Esn).next().is_some() {
            return None;
        }
        let (cipher, integrity) = protection(&self.ciphers, &self.integrities, offer)?;
        let prf = first(&self.prfs, |prf: Prf| contains(offer, &prf.transform()))?;
        let ke = key_exchange(&self.kes, TransformType::KeyExchange, offer, &[])?;
        let additional = additional(&self.additional, offer, ke)?;
        Some(IkeSuite { cipher, integrity, prf, ke, additional })
    }
}

impl EspProposal {
    /// Responder: the best of ours that the peer offers.
    pub fn select(
        ours: &[Self],
        offered: &[Proposal],
        exchange: ChildExchange,
    ) -> Option<Selected<EspSuite>> {
        ours.iter().find_map(|ours| {
            offered.iter().find_map(|offer| {
                let suite = ours.matching(offer, exchange)?;
                Some(Selected { suite, peer_spi: offer.spi.clone(), number: offer.number })
            })
        })
    }

    /// Initiator: the responder's choice, if it is one of what [`EspProposal::offer_all`] offered.
    pub fn accept(ours: &[Self], answer: &[Proposal], exchange: ChildExchange) -> Option<Selected<EspSuite>> {
        let [answer] = answer else { return None };
        let ours = ours.get(usize::from(answer.number).checked_sub(1)?)?;
        let suite = ours.matching(answer, exchange).filter(|_| is_single(answer))?;
        Some(Selected { suite, peer_spi: answer.spi.clone(), number: answer.number })
    }

    fn matching(&self, offer: &Proposal, exchange: ChildExchange) -> Option<EspSuite> {
        // RFC 4303 section 2.1: SPIs up to 255 are reserved.
        let spi_fits = matches!(offer.spi, ProposalSpi::Esp(256..));
        if offer.protocol != ProtocolId::Esp || !spi_fits || has_unknown_type(offer) {
            return None;
        }
        let (cipher, integrity) = protection(&self.ciphers, &self.integrities, offer)?;
        let esn = self.esn.iter().copied().find(|esn| {
            // RFC 7296 section 3.3.3 makes ESN mandatory; its absence is read as "no extended numbers".
            contains(offer, &Transform::new(TransformType::Esn, u16::from(*esn)))
                || (!esn && of_type(offer, TransformType::Esn).next().is_none())
        })?;
        let (ke, additional) = match exchange {
            ChildExchange::IkeAuth => (None, Vec::new()),
            ChildExchange::CreateChildSa if self.kes.is_empty() => {
                let kes = (1..=7).map(TransformType::AdditionalKe).chain([TransformType::KeyExchange]);
                if !kes.into_iter().all(|kind| may_be_absent(offer, kind)) {
                    return None;
                }
                (None, Vec::new())
            }
            ChildExchange::CreateChildSa => {
                let ke = key_exchange(&self.kes, TransformType::KeyExchange, offer, &[])?;
                (Some(ke), additional(&self.additional, offer, ke)?)
            }
        };
        Some(EspSuite { cipher, integrity, ke, additional, esn })
    }
}

fn first<T: Copy>(list: &[T], mut test: impl FnMut(T) -> bool) -> Option<T> {
    list.iter().copied().find(|item| test(*item))
}

fn of_type(offer: &Proposal, kind: TransformType) -> impl Iterator<Item = &Transform> {
    offer.transforms.iter().filter(move |transform| transform.kind == kind)
}

fn contains(offer: &Proposal, wanted: &Transform) -> bool {
    offer.transforms.contains(wanted)
}

/// RFC 7296 section 3.3.6: a proposal with a transform type not understood is not acceptable.
fn has_unknown_type(offer: &Proposal) -> bool {
    offer.transforms.iter().any(|transform| matches!(transform.kind, TransformType::Other(_)))
}

/// Whether the offer allows that nothing of a type is chosen.
fn may_be_absent(offer: &Proposal, kind: TransformType) -> bool {
    let mut transforms = of_type(offer, kind).peekable();
    transforms.peek().is_none() || transforms.any(|transform| transform.id == NONE)
}

/// RFC 7296 section 2.7: an answer has one transform of each type.
fn is_single(answer: &Proposal) -> bool {
    let kinds = answer.transforms.iter().map(|transform| transform.kind);
    kinds.clone().enumerate().all(|(index, kind)| kinds.clone().take(index).all(|earlier| earlier != kind))
}

fn protection(
    ciphers: &[Cipher],
    integrities: &[Integrity],
    offer: &Proposal,
) -> Option<(Cipher, Option<Integrity>)> {
    let cipher = first(ciphers, |cipher| contains(offer, &cipher.transform()))?;
    if cipher.is_aead() {
        // RFC 5282 section 8: no integrity algorithm, or NONE, beside an AEAD.
        return may_be_absent(offer, TransformType::Integrity).then_some((cipher, None));
    }
    let integrity = first(integrities, |integrity| contains(offer, &integrity.transform()))?;
    Some((cipher, Some(integrity)))
}

fn key_exchange(
    ours: &[KeMethod],
    kind: TransformType,
    offer: &Proposal,
    used: &[KeMethod],
) -> Option<KeMethod> {
    first(ours, |method| !used.contains(&method) && contains(offer, &Transform::new(kind, method.number())))
}

/// One method for every slot of ours, none for any other; no method twice (RFC 9370 section 2.2.2).
fn additional(
    ours: &BTreeMap<u8, Vec<KeMethod>>,
    offer: &Proposal,
    ke: KeMethod,
) -> Option<Vec<(u8, KeMethod)>> {
    let mut used = vec![ke];
    let mut chosen = Vec::new();
    for slot in 1..=7 {
        let kind = TransformType::AdditionalKe(slot);
        match ours.get(&slot) {
            None if may_be_absent(offer, kind) => {}
            None => return None,
            Some(methods) => {
                let method = key_exchange(methods, kind, offer, &used)?;
                used.push(method);
                chosen.push((slot, method));
            }
        }
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ike(texts: &[&str]) -> Vec<IkeProposal> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn esp(texts: &[&str]) -> Vec<EspProposal> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn negotiate(initiator: &[&str], responder: &[&str]) -> Option<String> {
        let (ours, theirs) = (ike(initiator), ike(responder));
        let offer = IkeProposal::offer_all(&ours, &ProposalSpi::None);
        let selected = IkeProposal::select(&theirs, &offer)?;
        let answer = IkeProposal::answer(&selected.suite, selected.number, ProposalSpi::None);
        let accepted = IkeProposal::accept(&ours, &[answer]).expect("the initiator accepts its own offer");
        assert_eq!(accepted.suite, selected.suite);
        Some(accepted.suite.to_string())
    }

    fn negotiate_child(initiator: &[&str], responder: &[&str], exchange: ChildExchange) -> Option<String> {
        let (ours, theirs) = (esp(initiator), esp(responder));
        let offer = EspProposal::offer_all(&ours, 0x1000, exchange);
        let selected = EspProposal::select(&theirs, &offer, exchange)?;
        assert_eq!(selected.peer_spi, ProposalSpi::Esp(0x1000));
        let answer = EspProposal::answer(&selected.suite, selected.number, 0x2000);
        let accepted = EspProposal::accept(&ours, &[answer], exchange).expect("accepts its own offer");
        Some(accepted.suite.to_string())
    }

    #[test]
    fn the_responders_preference_decides() {
        let both = ["aes128-sha256-modp2048", "aes256gcm16-prfsha384-ecp384"];
        assert_eq!(
            negotiate(&both, &["aes256gcm16-prfsha384-ecp384", "aes128-sha256-modp2048"]).as_deref(),
            Some("aes256gcm16-prfsha384-ecp384")
        );
        assert_eq!(
            negotiate(&["aes128-aes256-sha1-sha512-modp1024-modp2048s256"], &["aes256-sha512-modp2048s256"])
                .as_deref(),
            Some("aes256-sha512-modp2048s256")
        );
        assert_eq!(negotiate(&["aes128-sha256-modp2048"], &["aes256-sha256-modp2048"]), None);
    }

    #[test]
    fn additional_key_exchanges_must_be_wanted_by_both() {
        let hybrid = "aes256gcm16-prfsha384-ecp384-ke1_mlkem768";
        assert_eq!(negotiate(&[hybrid], &[hybrid]).as_deref(), Some(hybrid));
        assert_eq!(negotiate(&[hybrid], &["aes256gcm16-prfsha384-ecp384"]), None);
        assert_eq!(negotiate(&["aes256gcm16-prfsha384-ecp384"], &[hybrid]), None);
    }

    #[test]
    fn an_additional_none_makes_it_optional() {
        let mut offer = ike(&["aes256gcm16-prfsha384-ecp384-ke1_mlkem768"])
            .first()
            .map(|it| it.offer(1, ProposalSpi::None))
            .unwrap();
        offer.transforms.push(Transform::new(TransformType::AdditionalKe(1), NONE));
        let selected = IkeProposal::select(&ike(&["aes256gcm16-prfsha384-ecp384"]), &[offer]);
        assert_eq!(selected.unwrap().suite.additional, []);
    }

    #[test]
    fn the_child_of_ike_auth_ignores_key_exchanges() {
        let (pfs, plain) = (["aes256gcm16-ecp384"], ["aes256gcm16"]);
        assert_eq!(negotiate_child(&pfs, &plain, ChildExchange::IkeAuth).as_deref(), Some("aes256gcm16"));
        assert_eq!(negotiate_child(&pfs, &plain, ChildExchange::CreateChildSa), None);
        assert_eq!(negotiate_child(&plain, &pfs, ChildExchange::CreateChildSa), None);
        assert_eq!(
            negotiate_child(&pfs, &pfs, ChildExchange::CreateChildSa).as_deref(),
            Some("aes256gcm16-ecp384")
        );
    }

    #[test]
    fn extended_sequence_numbers_when_both_can() {
        let exchange = ChildExchange::CreateChildSa;
        let both = ["aes128gcm16-esn-noesn"];
        assert_eq!(negotiate_child(&both, &both, exchange).as_deref(), Some("aes128gcm16-esn"));
        assert_eq!(negotiate_child(&both, &["aes128gcm16"], exchange).as_deref(), Some("aes128gcm16"));
        assert_eq!(negotiate_child(&["aes128gcm16-esn"], &["aes128gcm16"], exchange), None);
        let mut offer = EspProposal::offer_all(&esp(&["aes128gcm16"]), 0x1000, exchange);
        offer[0].transforms.retain(|transform| transform.kind != TransformType::Esn);
        assert!(EspProposal::select(&esp(&["aes128gcm16"]), &offer, exchange).is_some());
    }

    #[test]
    fn an_answer_that_was_not_offered_is_refused() {
        let ours = ike(&["aes128-aes256-sha256-modp2048"]);
        let good = ike(&["aes256-sha256-modp2048"]).first().unwrap().offer(1, ProposalSpi::None);
        assert!(IkeProposal::accept(&ours, std::slice::from_ref(&good)).is_some());
        let wrong_number = Proposal { number: 2, ..good.clone() };
        assert!(IkeProposal::accept(&ours, &[wrong_number]).is_none());
        let zero = Proposal { number: 0, ..good.clone() };
        assert!(IkeProposal::accept(&ours, &[zero]).is_none());
        assert!(IkeProposal::accept(&ours, &[good.clone(), good.clone()]).is_none());
        assert!(IkeProposal::accept(&ours, &[ours[0].offer(1, ProposalSpi::None)]).is_none());
        let weaker = ike(&["aes128-sha1-modp2048"]).first().unwrap().offer(1, ProposalSpi::None);
        assert!(IkeProposal::accept(&ours, &[weaker]).is_none());
    }

    #[test]
    fn unknown_attributes_and_types_are_not_accepted() {
        let ours = ike(&["aes128-sha256-modp2048"]);
        let offer = ours[0].offer(1, ProposalSpi::None);
        let mut with_attribute = offer.clone();
        with_attribute.transforms[0].other_attributes = vec![0x80, 1, 0, 1];
        assert!(IkeProposal::select(&ours, &[with_attribute]).is_none());
        let mut with_type = offer.clone();
        with_type.transforms.push(Transform::new(TransformType::Other(99), 1));
        assert!(IkeProposal::select(&ours, &[with_type]).is_none());
        let ah = Proposal { protocol: ProtocolId::Ah, ..offer };
        assert!(IkeProposal::select(&ours, &[ah]).is_none());
    }

    #[test]
    fn a_reserved_spi_is_refused() {
        let exchange = ChildExchange::CreateChildSa;
        let offer = EspProposal::offer_all(&esp(&["aes128gcm16"]), 255, exchange);
        assert!(EspProposal::select(&esp(&["aes128gcm16"]), &offer, exchange).is_none());
    }
}

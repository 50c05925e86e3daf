//! Proposals: parsing strongSwan's notation, offering, selecting, printing.
//!
//! A proposal here is one line of the configuration: alternatives by transform type. Offers are numbered from
//! 1 in the order of the list, and an answer is looked up by that number (RFC 7296 section 3.3.1).

mod select;
mod text;

use std::collections::BTreeMap;

pub use text::describe;

use crate::crypto::{Cipher, EspSuite, IkeSuite, Integrity, KeMethod, Prf};
use crate::wire::{Proposal, ProposalSpi, ProtocolId, Transform, TransformType};

/// What this side offers or accepts for an IKE SA: alternatives by transform type, in order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkeProposal {
    /// Ciphers, all AEAD or none.
    pub ciphers: Vec<Cipher>,
    /// Integrity algorithms; empty exactly with AEADs.
    pub integrities: Vec<Integrity>,
    /// PRFs.
    pub prfs: Vec<Prf>,
    /// Key exchange methods.
    pub kes: Vec<KeMethod>,
    /// Additional key exchanges by slot, 1 to 7.
    pub additional: BTreeMap<u8, Vec<KeMethod>>,
}

/// What this side offers or accepts for a child SA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspProposal {
    /// Ciphers, all AEAD or none.
    pub ciphers: Vec<Cipher>,
    /// Integrity algorithms; empty exactly with AEADs.
    pub integrities: Vec<Integrity>,
    /// Key exchange methods; empty without PFS.
    pub kes: Vec<KeMethod>,
    /// Additional key exchanges by slot, 1 to 7.
    pub additional: BTreeMap<u8, Vec<KeMethod>>,
    /// Extended sequence numbers, in order of preference: `[true, false]` offers both.
    pub esn: Vec<bool>,
}

/// What is wrong with a proposal's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposalError {
    /// A keyword that means nothing, with the nearest that does.
    UnknownKeyword {
        /// The keyword.
        keyword: String,
        /// The nearest known one.
        nearest: &'static str,
    },
    /// No encryption algorithm.
    NoCipher,
    /// No integrity algorithm beside a cipher that needs one.
    NoIntegrity,
    /// An integrity algorithm beside an AEAD in a child's proposal.
    IntegrityWithAead,
    /// AEADs and other ciphers in one proposal.
    MixedCiphers,
    /// No PRF, and no integrity algorithm to imply one.
    NoPrf,
    /// No key exchange in an IKE proposal.
    NoKeyExchange,
    /// ML-KEM as the first key exchange.
    KemFirst(&'static str),
    /// Additional key exchanges in a child's proposal without a first one.
    AdditionalWithoutFirst,
    /// A keyword that does not belong into this kind of proposal (a PRF or ESN).
    Misplaced(&'static str),
}

/// A suite chosen from what a peer offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected<S> {
    /// The suite.
    pub suite: S,
    /// The peer's SPI in the proposal chosen.
    pub peer_spi: ProposalSpi,
    /// The proposal's number, which the answer repeats.
    pub number: u8,
}

/// Whether key exchange transforms count: not in IKE_AUTH (RFC 7296 section 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildExchange {
    /// IKE_AUTH: key exchange transforms are neither offered nor looked at.
    IkeAuth,
    /// CREATE_CHILD_SA.
    CreateChildSa,
}

impl IkeProposal {
    /// All proposals of a list as the body of an SA payload.
    pub fn offer_all(ours: &[Self], spi: &ProposalSpi) -> Vec<Proposal> {
        (1..=u8::MAX).zip(ours).map(|(number, one)| one.offer(number, spi.clone())).collect()
    }

    /// As an offer on the wire.
    pub fn offer(&self, number: u8, spi: ProposalSpi) -> Proposal {
        let mut transforms: Vec<Transform> = self.ciphers.iter().map(|it| it.transform()).collect();
        transforms.extend(self.integrities.iter().map(|it| it.transform()));
        transforms.extend(self.prfs.iter().map(|it| it.transform()));
        transforms.extend(self.kes.iter().map(|it| ke_transform(TransformType::KeyExchange, *it)));
        transforms.extend(additional_transforms(&self.additional));
        Proposal { number, protocol: ProtocolId::Ike, spi, transforms }
    }

    /// The suite as an answer on the wire.
    pub fn answer(suite: &IkeSuite, number: u8, spi: ProposalSpi) -> Proposal {
        let one = Self {
            ciphers: vec![suite.cipher],
            integrities: suite.integrity.into_iter().collect(),
            prfs: vec![suite.prf],
            kes: vec![suite.ke],
            additional: suite.additional.iter().map(|(slot, method)| (*slot, vec![*method])).collect(),
        };
        one.offer(number, spi)
    }
}

impl EspProposal {
    /// All proposals of a list as the body of an SA payload.
    pub fn offer_all(ours: &[Self], spi: u32, exchange: ChildExchange) -> Vec<Proposal> {
        (1..=u8::MAX).zip(ours).map(|(number, one)| one.offer(number, spi, exchange)).collect()
    }

    /// As an offer on the wire.
    pub fn offer(&self, number: u8, spi: u32, exchange: ChildExchange) -> Proposal {
        let mut transforms: Vec<Transform> = self.ciphers.iter().map(|it| it.transform()).collect();
        transforms.extend(self.integrities.iter().map(|it| it.transform()));
        if exchange == ChildExchange::CreateChildSa {
            transforms.extend(self.kes.iter().map(|it| ke_transform(TransformType::KeyExchange, *it)));
            transforms.extend(additional_transforms(&self.additional));
        }
        transforms.extend(self.esn.iter().map(|esn| Transform::new(TransformType::Esn, u16::from(*esn))));
        Proposal { number, protocol: ProtocolId::Esp, spi: ProposalSpi::Esp(spi), transforms }
    }

    /// The suite as an answer on the wire.
    pub fn answer(suite: &EspSuite, number: u8, spi: u32) -> Proposal {
        let one = Self {
            ciphers: vec![suite.cipher],
            integrities: suite.integrity.into_iter().collect(),
            kes: suite.ke.into_iter().collect(),
            additional: suite.additional.iter().map(|(slot, method)| (*slot, vec![*method])).collect(),
            esn: vec![suite.esn],
        };
        one.offer(number, spi, ChildExchange::CreateChildSa)
    }
}

fn ke_transform(kind: TransformType, method: KeMethod) -> Transform {
    Transform::new(kind, method.number())
}

fn additional_transforms(additional: &BTreeMap<u8, Vec<KeMethod>>) -> impl Iterator<Item = Transform> + '_ {
    additional.iter().flat_map(|(slot, methods)| {
        methods.iter().map(|method| ke_transform(TransformType::AdditionalKe(*slot), *method))
    })
}

impl std::fmt::Display for ProposalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownKeyword { keyword, nearest } => {
                write!(f, "unknown algorithm \"{}\"; nearest is \"{nearest}\"", keyword.escape_debug())
            }
            Self::NoCipher => f.write_str("no encryption algorithm"),
            Self::NoIntegrity => f.write_str("AES-CBC needs an integrity algorithm, such as sha256"),
            Self::IntegrityWithAead => {
                f.write_str("an AEAD (GCM, ChaCha20-Poly1305) takes no integrity algorithm")
            }
            Self::MixedCiphers => {
                f.write_str("AEADs and AES-CBC do not go into one proposal; write two proposals")
            }
            Self::NoPrf => f.write_str("no PRF, such as prfsha384"),
            Self::NoKeyExchange => f.write_str("no key exchange method, such as ecp384"),
            Self::KemFirst(name) => {
                write!(f, "{name} goes beside another key exchange: write it as ke1_{name}")
            }
            Self::AdditionalWithoutFirst => {
                f.write_str("an additional key exchange needs a first one, such as ecp384")
            }
            Self::Misplaced(keyword) => write!(f, "\"{keyword}\" does not belong into this proposal"),
        }
    }
}

impl std::error::Error for ProposalError {}

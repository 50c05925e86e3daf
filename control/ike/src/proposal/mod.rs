//! Proposals: parsing strongSwan's notation, offering, selecting, printing.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::crypto::{Cipher, EspSuite, IkeSuite, Integrity, KeMethod, Prf};
use crate::wire::{Proposal, ProposalSpi};

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

impl FromStr for IkeProposal {
    type Err = ProposalError;

    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let _ = text;
        todo!()
    }
}

impl FromStr for EspProposal {
    type Err = ProposalError;

    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let _ = text;
        todo!()
    }
}

impl IkeProposal {
    /// As an offer on the wire.
    pub fn offer(&self, number: u8, spi: ProposalSpi) -> Proposal {
        let _ = (number, spi);
        todo!()
    }

    /// Responder: the best of ours that the peer offers. Our order of preference decides.
    pub fn select(ours: &[Self], offered: &[Proposal]) -> Option<Selected<IkeSuite>> {
        let _ = (ours, offered);
        todo!()
    }

    /// Initiator: the responder's choice, if it is one of what we offered (RFC 7296 section 2.7).
    pub fn accept(ours: &[Self], answer: &[Proposal]) -> Option<Selected<IkeSuite>> {
        let _ = (ours, answer);
        todo!()
    }

    /// The suite as an answer on the wire.
    pub fn answer(suite: &IkeSuite, number: u8, spi: ProposalSpi) -> Proposal {
        let _ = (suite, number, spi);
        todo!()
    }
}

/// Whether key exchange transforms count: not in IKE_AUTH (RFC 7296 section 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildExchange {
    /// IKE_AUTH: key exchange transforms are neither offered nor looked at.
    IkeAuth,
    /// CREATE_CHILD_SA.
    CreateChildSa,
}

impl EspProposal {
    /// As an offer on the wire.
    pub fn offer(&self, number: u8, spi: u32, exchange: ChildExchange) -> Proposal {
        let _ = (number, spi, exchange);
        todo!()
    }

    /// Responder: the best of ours that the peer offers.
    pub fn select(
        ours: &[Self],
        offered: &[Proposal],
        exchange: ChildExchange,
    ) -> Option<Selected<EspSuite>> {
        let _ = (ours, offered, exchange);
        todo!()
    }

    /// Initiator: the responder's choice, if it is one of what we offered.
    pub fn accept(ours: &[Self], answer: &[Proposal], exchange: ChildExchange) -> Option<Selected<EspSuite>> {
        let _ = (ours, answer, exchange);
        todo!()
    }

    /// The suite as an answer on the wire.
    pub fn answer(suite: &EspSuite, number: u8, spi: u32) -> Proposal {
        let _ = (suite, number, spi);
        todo!()
    }
}

/// Proposals from the wire as text, with numbers where this crate knows no name: for a diagnosis.
pub fn describe(proposals: &[Proposal]) -> String {
    let _ = proposals;
    todo!()
}

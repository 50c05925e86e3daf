//! strongSwan's notation, both ways.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::{EspProposal, IkeProposal, ProposalError};
use crate::crypto::{Cipher, Integrity, KeMethod, Prf};
use crate::wire::{Proposal, Transform, TransformType};

enum Keyword {
    Cipher(Cipher),
    Integrity(Integrity),
    Prf(Prf),
    Ke(KeMethod),
    AdditionalKe(u8, KeMethod),
    Esn(bool),
}

/// Other spellings that strongSwan takes.
const ALIASES: [(&str, &str); 11] = [
    ("aes", "aes128"),
    ("aes128gcm128", "aes128gcm16"),
    ("aes256gcm128", "aes256gcm16"),
    ("sha", "sha1"),
    ("sha2_256", "sha256"),
    ("sha2_384", "sha384"),
    ("sha2_512", "sha512"),
    ("x25519", "curve25519"),
    ("modp1024_160", "modp1024s160"),
    ("modp2048_224", "modp2048s224"),
    ("modp2048_256", "modp2048s256"),
];

impl Keyword {
    fn parse(text: &str) -> Result<Self, ProposalError> {
        let lower = text.to_ascii_lowercase();
        let name = ALIASES.iter().find(|(alias, _)| *alias == lower).map_or(lower.as_str(), |(_, name)| name);
        if let Some(method) = KeMethod::ALL.into_iter().find(|it| it.name() == name) {
            return Ok(Self::Ke(method));
        }
        if let Some((slot, method)) = name.strip_prefix("ke").and_then(|rest| rest.split_once('_')) {
            let method_name = ALIASES.iter().find(|(alias, _)| *alias == method).map_or(method, |(_, to)| to);
            let method = KeMethod::ALL.into_iter().find(|it| it.name() == method_name);
            if let (Ok(slot @ 1..=7), Some(method)) = (slot.parse(), method) {
                return Ok(Self::AdditionalKe(slot, method));
            }
        }
        let cipher = Cipher::ALL.into_iter().find(|it| it.name() == name).map(Self::Cipher);
        let integrity = || Integrity::ALL.into_iter().find(|it| it.name() == name).map(Self::Integrity);
        let prf = || Prf::ALL.into_iter().find(|it| it.name() == name).map(Self::Prf);
        let esn = || match name {
            "esn" => Some(Self::Esn(true)),
            "noesn" => Some(Self::Esn(false)),
            _ => None,
        };
        cipher.or_else(integrity).or_else(prf).or_else(esn).ok_or_else(|| ProposalError::UnknownKeyword {
            keyword: text.to_owned(),
            nearest: nearest(&lower),
        })
    }
}

fn nearest(keyword: &str) -> &'static str {
    let names = Cipher::ALL.iter().map(|it| it.name());
    let names = names.chain(Integrity::ALL.iter().map(|it| it.name()));
    let names = names.chain(Prf::ALL.iter().map(|it| it.name()));
    let names = names.chain(KeMethod::ALL.iter().map(|it| it.name())).chain(["esn", "noesn", "ke1_mlkem768"]);
    // What only lacks its end is meant, though another be nearer: "sha2" is not "sha1".
    let distance = |name: &&str| (!name.starts_with(keyword), strsim::damerau_levenshtein(keyword, name));
    names.min_by_key(distance).unwrap_or_default()
}

#[derive(Default)]
struct Parts {
    ciphers: Vec<Cipher>,
    integrities: Vec<Integrity>,
    prfs: Vec<Prf>,
    kes: Vec<KeMethod>,
    additional: BTreeMap<u8, Vec<KeMethod>>,
    esn: Vec<bool>,
}

fn push_once<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

impl Parts {
    fn parse(text: &str) -> Result<Self, ProposalError> {
        let mut parts = Self::default();
        for token in text.trim().split('-') {
            match Keyword::parse(token.trim())? {
                Keyword::Cipher(it) => push_once(&mut parts.ciphers, it),
                Keyword::Integrity(it) => push_once(&mut parts.integrities, it),
                Keyword::Prf(it) => push_once(&mut parts.prfs, it),
                Keyword::Ke(it) if it.is_kem() => return Err(ProposalError::KemFirst(it.name())),
                Keyword::Ke(it) => push_once(&mut parts.kes, it),
                Keyword::AdditionalKe(slot, it) => {
                    push_once(parts.additional.entry(slot).or_default(), it);
                }
                Keyword::Esn(it) => push_once(&mut parts.esn, it),
            }
        }
        let aeads = parts.ciphers.iter().filter(|it| it.is_aead()).count();
        match parts.ciphers.len() {
            0 => Err(ProposalError::NoCipher),
            // RFC 7296 section 3.3: an AEAD cannot stand beside a cipher that needs an integrity algorithm.
            all if aeads != 0 && aeads != all => Err(ProposalError::MixedCiphers),
            _ if aeads == 0 && parts.integrities.is_empty() => Err(ProposalError::NoIntegrity),
            _ => Ok(parts),
        }
    }

    fn is_aead(&self) -> bool {
        self.ciphers.iter().all(|it| it.is_aead())
    }
}

impl FromStr for IkeProposal {
    type Err = ProposalError;

    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let mut parts = Parts::parse(text)?;
        match parts.esn.first() {
            Some(true) => return Err(ProposalError::Misplaced("esn")),
            Some(false) => return Err(ProposalError::Misplaced("noesn")),
            None => {}
        }
        if parts.prfs.is_empty() {
            parts.prfs = parts.integrities.iter().map(|it| it.prf()).collect();
        }
        if parts.is_aead() {
            // As strongSwan reads it: beside an AEAD, "sha384" can only have meant the PRF.
            parts.integrities.clear();
        }
        if parts.prfs.is_empty() {
            return Err(ProposalError::NoPrf);
        }
        if parts.kes.is_empty() {
            return Err(ProposalError::NoKeyExchange);
        }
        let Parts { ciphers, integrities, prfs, kes, additional, esn: _ } = parts;
        Ok(Self { ciphers, integrities, prfs, kes, additional })
    }
}

impl FromStr for EspProposal {
    type Err = ProposalError;

    fn from_str(text: &str) -> Result<Self, ProposalError> {
        let parts = Parts::parse(text)?;
        if let Some(prf) = parts.prfs.first() {
            return Err(ProposalError::Misplaced(prf.name()));
        }
        if parts.is_aead() && !parts.integrities.is_empty() {
            return Err(ProposalError::IntegrityWithAead);
        }
        if parts.kes.is_empty() && !parts.additional.is_empty() {
            return Err(ProposalError::AdditionalWithoutFirst);
        }
        let Parts { ciphers, integrities, prfs: _, kes, additional, mut esn } = parts;
        if esn.is_empty() {
            esn.push(false);
        }
        Ok(Self { ciphers, integrities, kes, additional, esn })
    }
}

fn write_names<'a>(f: &mut fmt::Formatter<'_>, names: impl Iterator<Item = &'a str>) -> fmt::Result {
    names.enumerate().try_for_each(|(index, name)| write!(f, "{}{name}", if index == 0 { "" } else { "-" }))
}

fn write_additional(f: &mut fmt::Formatter<'_>, additional: &BTreeMap<u8, Vec<KeMethod>>) -> fmt::Result {
    additional
        .iter()
        .flat_map(|(slot, methods)| methods.iter().map(move |method| (slot, method)))
        .try_for_each(|(slot, method)| write!(f, "-ke{slot}_{}", method.name()))
}

impl fmt::Display for IkeProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let implied = self.integrities.iter().map(|it| it.prf()).eq(self.prfs.iter().copied());
        let prfs = self.prfs.iter().map(|it| it.name()).filter(|_| !implied);
        let names = self.ciphers.iter().map(|it| it.name());
        let names = names.chain(self.integrities.iter().map(|it| it.name())).chain(prfs);
        write_names(f, names.chain(self.kes.iter().map(|it| it.name())))?;
        write_additional(f, &self.additional)
    }
}

impl fmt::Display for EspProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.ciphers.iter().map(|it| it.name());
        let names = names.chain(self.integrities.iter().map(|it| it.name()));
        write_names(f, names.chain(self.kes.iter().map(|it| it.name())))?;
        write_additional(f, &self.additional)?;
        match self.esn.as_slice() {
            [] | [false] => Ok(()),
            list => list.iter().try_for_each(|esn| f.write_str(if *esn { "-esn" } else { "-noesn" })),
        }
    }
}

/// Proposals from the wire as text, with numbers where this crate knows no name: for a diagnosis.
pub fn describe(proposals: &[Proposal]) -> String {
    let texts: Vec<String> = proposals.iter().map(describe_one).collect();
    texts.join(", ")
}

fn describe_one(proposal: &Proposal) -> String {
    let names: Vec<String> = proposal.transforms.iter().filter_map(transform_name).collect();
    names.join("-")
}

fn transform_name(transform: &Transform) -> Option<String> {
    let ke = || KeMethod::from_number(transform.id).map(KeMethod::name);
    let name = match transform.kind {
        TransformType::Encryption => Cipher::from_transform(transform).map(Cipher::name),
        TransformType::Prf => Prf::from_transform(transform).map(Prf::name),
        TransformType::Integrity => Integrity::from_transform(transform).map(Integrity::name),
        TransformType::KeyExchange => ke(),
        TransformType::AdditionalKe(slot) => return ke().map(|name| format!("ke{slot}_{name}")),
        // "noesn" says nothing that its absence does not.
        TransformType::Esn if transform.id == 0 => return None,
        TransformType::Esn if transform.id == 1 => Some("esn"),
        TransformType::Esn | TransformType::Other(_) => None,
    };
    if let Some(name) = name {
        return Some(name.to_owned());
    }
    // "NONE" of a type says nothing either.
    if transform.id == 0 && transform.kind != TransformType::Encryption {
        return None;
    }
    let kind = match transform.kind {
        TransformType::Encryption => "encr".to_owned(),
        TransformType::Prf => "prf".to_owned(),
        TransformType::Integrity => "integ".to_owned(),
        TransformType::KeyExchange => "ke".to_owned(),
        TransformType::Esn => "esn".to_owned(),
        TransformType::AdditionalKe(slot) => format!("ke{slot}"),
        TransformType::Other(number) => format!("type{number}"),
    };
    let key = transform.key_bits.map(|bits| format!("/{bits}")).unwrap_or_default();
    Some(format!("{kind}#{}{key}", transform.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ike(text: &str) -> Result<String, ProposalError> {
        text.parse::<IkeProposal>().map(|it| it.to_string())
    }

    fn esp(text: &str) -> Result<String, ProposalError> {
        text.parse::<EspProposal>().map(|it| it.to_string())
    }

    #[test]
    fn canonical_text_parses_back_to_itself() {
        for text in [
            "aes256gcm16-prfsha384-ecp384",
            "aes128-sha256-modp2048",
            "aes256gcm16-prfsha384-ecp384-ke1_mlkem768",
            "aes128-aes256-sha1-sha256-modp2048-ecp256",
            "chacha20poly1305-prfsha256-curve25519-ke1_mlkem512-ke2_mlkem1024",
            "aes128-sha256-prfsha512-modp1024",
        ] {
            assert_eq!(ike(text).as_deref(), Ok(text));
        }
        for text in ["aes256gcm16-ecp384", "aes128-sha1-modp2048", "aes256gcm16-esn-noesn", "aes128gcm16-esn"]
        {
            assert_eq!(esp(text).as_deref(), Ok(text));
        }
    }

    #[test]
    fn other_spellings_mean_the_same() {
        assert_eq!(ike("AES-sha2_256-x25519").as_deref(), Ok("aes128-sha256-curve25519"));
        assert_eq!(ike("aes256gcm128-sha384-ecp384").as_deref(), Ok("aes256gcm16-prfsha384-ecp384"));
        assert_eq!(esp("aes256gcm16-noesn").as_deref(), Ok("aes256gcm16"));
        assert_eq!(
            ike("aes128gcm16-prfsha256-ecp256-ke1_x25519").as_deref(),
            Ok("aes128gcm16-prfsha256-ecp256-ke1_curve25519")
        );
    }

    #[test]
    fn an_unknown_keyword_is_named_with_the_nearest() {
        let error = |keyword: &str, nearest| {
            Err(ProposalError::UnknownKeyword { keyword: keyword.to_owned(), nearest })
        };
        assert_eq!(ike("aes256gmc16-prfsha384-ecp384"), error("aes256gmc16", "aes256gcm16"));
        assert_eq!(ike("aes256gcm16-prfsha384-ecp385"), error("ecp385", "ecp384"));
        assert_eq!(esp("aes129-sha1"), error("aes129", "aes128"));
        assert_eq!(esp("aes128-sha2"), error("sha2", "sha256"));
        assert_eq!(ike("aes256gcm16-prfsha384-ecp384-ke8_mlkem768"), error("ke8_mlkem768", "ke1_mlkem768"));
        assert!(matches!(esp(""), Err(ProposalError::UnknownKeyword { .. })));
    }

    #[test]
    fn incomplete_proposals_are_refused() {
        assert_eq!(ike("sha256-modp2048"), Err(ProposalError::NoCipher));
        assert_eq!(ike("aes128-modp2048"), Err(ProposalError::NoIntegrity));
        assert_eq!(ike("aes128gcm16-modp2048"), Err(ProposalError::NoPrf));
        assert_eq!(ike("aes128-sha256"), Err(ProposalError::NoKeyExchange));
        assert_eq!(ike("aes128-aes128gcm16-sha256-ecp256"), Err(ProposalError::MixedCiphers));
        assert_eq!(ike("aes128-sha256-mlkem768"), Err(ProposalError::KemFirst("mlkem768")));
        assert_eq!(ike("aes128-sha256-ecp256-esn"), Err(ProposalError::Misplaced("esn")));
        assert_eq!(esp("aes128gcm16-sha256"), Err(ProposalError::IntegrityWithAead));
        assert_eq!(esp("aes128gcm16-prfsha256"), Err(ProposalError::Misplaced("prfsha256")));
        assert_eq!(esp("aes128gcm16-ke1_mlkem768"), Err(ProposalError::AdditionalWithoutFirst));
    }

    #[test]
    fn description_shows_numbers_of_unknown_transforms() {
        let mut offer: Proposal = "aes128-sha1-modp1024"
            .parse::<IkeProposal>()
            .map(|it| it.offer(1, crate::wire::ProposalSpi::None))
            .unwrap();
        offer.transforms.push(Transform::with_key(TransformType::Encryption, 3, 192));
        assert_eq!(describe(&[offer]), "aes128-sha1-prfsha1-modp1024-encr#3/192");
    }
}

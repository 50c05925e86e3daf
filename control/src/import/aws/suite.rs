//! Which algorithms are offered to AWS: one of each kind, since it takes the weakest that it is offered.

/// Strongest first, as are all of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Encryption {
    Aes256Gcm16,
    Aes128Gcm16,
    Aes256,
    Aes128,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Integrity {
    Sha384,
    Sha512,
    Sha256,
    Sha1,
}

/// IANA's numbers of the Diffie-Hellman groups that AWS knows, and strongSwan's names.
const GROUPS: [(u16, &str); 13] = [
    (20, "ecp384"),
    (21, "ecp521"),
    (19, "ecp256"),
    (16, "modp4096"),
    (15, "modp3072"),
    (17, "modp6144"),
    (18, "modp8192"),
    (14, "modp2048"),
    (24, "modp2048s256"),
    (23, "modp2048s224"),
    (5, "modp1536"),
    (22, "modp1024s160"),
    (2, "modp1024"),
];

/// What a tunnel takes for the IKE SA, or for its children; an empty list is AWS's default, which has all.
#[derive(Clone, Default)]
pub(super) struct Taken {
    pub(super) encryption: Vec<Encryption>,
    pub(super) integrity: Vec<Integrity>,
    pub(super) groups: Vec<u16>,
}

impl Encryption {
    /// `AES256-GCM-16` or `aes-256-cbc`, as the API and the XML have it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        match (text.contains("gcm"), text.contains("256"), text.contains("128")) {
            (true, true, _) => Some(Self::Aes256Gcm16),
            (true, false, true) => Some(Self::Aes128Gcm16),
            (false, true, _) => Some(Self::Aes256),
            (false, false, true) => Some(Self::Aes128),
            (_, false, false) => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm16 => "aes256gcm16",
            Self::Aes128Gcm16 => "aes128gcm16",
            Self::Aes256 => "aes256",
            Self::Aes128 => "aes128",
        }
    }

    fn is_aead(self) -> bool {
        matches!(self, Self::Aes256Gcm16 | Self::Aes128Gcm16)
    }
}

impl Integrity {
    /// `SHA2-256` or `hmac-sha2-256-128`, as the API and the XML have it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let has = |bits: &str| text.contains(bits);
        // "sha2-256-128" cuts its output to 128.
        [("384", Self::Sha384), ("512", Self::Sha512), ("256", Self::Sha256), ("sha1", Self::Sha1)]
            .into_iter()
            .find(|(bits, _)| has(bits))
            .map(|(_, integrity)| integrity)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Sha256 => "sha256",
            Self::Sha1 => "sha1",
        }
    }
}

impl Taken {
    /// From what the XML shows, which is the weakest that is taken: where it is the weakest of all, the others are
    /// taken too; where it is not, no other is known to be.
    pub(super) fn shown(encryption: &str, integrity: &str, group: &str) -> Self {
        let group = group.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok();
        let encryption = Encryption::parse(encryption).filter(|it| *it != Encryption::Aes128);
        let integrity = Integrity::parse(integrity).filter(|it| *it != Integrity::Sha1);
        Taken {
            encryption: encryption.into_iter().collect(),
            integrity: integrity.into_iter().collect(),
            groups: group.into_iter().filter(|group| *group != 2).collect(),
        }
    }

    /// For the IKE SA; nothing where it takes no group that we have.
    pub(super) fn ike_proposal(&self) -> Option<String> {
        let (encryption, integrity, group) = self.strongest()?;
        let prf = if encryption.is_aead() { "prf" } else { "" };
        Some(format!("{}-{prf}{}-{group}", encryption.name(), integrity.name()))
    }

    /// For its children; nothing where it takes no group that we have.
    pub(super) fn esp_proposal(&self) -> Option<String> {
        let (encryption, integrity, group) = self.strongest()?;
        if encryption.is_aead() {
            return Some(format!("{}-{group}", encryption.name()));
        }
        Some(format!("{}-{}-{group}", encryption.name(), integrity.name()))
    }

    fn strongest(&self) -> Option<(Encryption, Integrity, &'static str)> {
        let encryption = self.encryption.iter().min().copied().unwrap_or(Encryption::Aes256Gcm16);
        let integrity = self.integrity.iter().min().copied().unwrap_or(Integrity::Sha384);
        let is_taken = |number: u16| self.groups.is_empty() || self.groups.contains(&number);
        let (_, group) = GROUPS.into_iter().find(|(number, _)| is_taken(*number))?;
        Some((encryption, integrity, group))
    }
}

#[cfg(test)]
mod tests {
    use braid_ike::proposal::{EspProposal, IkeProposal};

    use super::*;

    #[test]
    fn every_choice_is_a_proposal_that_we_have() {
        let encryptions = [("AES128", "aes-128-cbc"), ("AES256", "aes-256-cbc")]
            .into_iter()
            .chain([("AES128-GCM-16", "aes-128-gcm-16"), ("AES256-GCM-16", "aes-256-gcm-16")]);
        for (api, xml) in encryptions {
            let encryption = Encryption::parse(api).unwrap();
            assert!(Encryption::parse(xml) == Some(encryption), "{xml}");
            for (api, xml) in [
                ("SHA1", "hmac-sha1-96"),
                ("SHA2-256", "hmac-sha2-256-128"),
                ("SHA2-384", "hmac-sha2-384-192"),
                ("SHA2-512", "hmac-sha2-512-256"),
            ] {
                let integrity = Integrity::parse(api).unwrap();
                assert!(Integrity::parse(xml) == Some(integrity), "{xml}");
                for (group, _) in GROUPS {
                    let taken = Taken {
                        encryption: vec![encryption],
                        integrity: vec![integrity],
                        groups: vec![group],
                    };
                    let ike = taken.ike_proposal().unwrap();
                    assert!(ike.parse::<IkeProposal>().is_ok(), "{ike}");
                    let esp = taken.esp_proposal().unwrap();
                    assert!(esp.parse::<EspProposal>().is_ok(), "{esp}");
                }
            }
        }
    }

    #[test]
    fn of_several_the_strongest_is_offered() {
        let offered = |taken: &Taken| {
            [taken.ike_proposal(), taken.esp_proposal()].map(|proposal| proposal.unwrap_or_default())
        };
        let defaults = ["aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384"];
        assert_eq!(offered(&Taken::default()), defaults);
        let some = Taken {
            encryption: vec![Encryption::Aes128, Encryption::Aes256],
            integrity: vec![Integrity::Sha1, Integrity::Sha256],
            groups: vec![2, 14, 99],
        };
        assert_eq!(offered(&some), ["aes256-sha256-modp2048"; 2]);
        assert_eq!(Taken { groups: vec![99], ..some }.ike_proposal(), None);
        // The XML shows the weakest that is taken.
        for (shown, expected) in [
            (["aes-128-cbc", "sha1", "group2"], defaults),
            (["aes-128-cbc", "hmac-sha1-96", "group2"], defaults),
            (["", "", ""], defaults),
            (["aes-256-cbc", "sha1", "group2"], ["aes256-sha384-ecp384"; 2]),
            (
                ["aes-128-cbc", "sha2-256", "group14"],
                ["aes256gcm16-prfsha256-modp2048", "aes256gcm16-modp2048"],
            ),
        ] {
            let [encryption, integrity, group] = shown;
            assert_eq!(offered(&Taken::shown(encryption, integrity, group)), expected, "{shown:?}");
        }
    }
}

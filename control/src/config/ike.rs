//! `[tunnel.ike]`: IKEv2 (RFC 7296) for one tunnel.
//!
//! Files that it names are read here, relative to the configuration's own directory, so that a [`Ike`]
//! holds all that a negotiation needs. Not done: EAP, raw public keys.

use core::time::Duration;
use std::{net::IpAddr, path::Path, sync::Arc};

use braid_api::Suite;
use braid_ike::{
    Encapsulation, Role as IkeRole,
    auth::{CertificateCredential, CredentialError, TrustStore, dn},
    crypto::{Cipher, Integrity},
    proposal::{EspProposal, IkeProposal, ProposalError},
    wire::Identity,
};
use zeroize::Zeroizing;

use super::{
    Credential, Ike, Key, Ppk, Remote, Role,
    error::{Fault, Report},
    files::Contents,
    section::{Item, Schema, Section},
    tunnel::{choice, read_window, refuse_exposed, within},
    value,
};

pub(super) static IKE: Schema = Schema {
    path: "tunnel.ike",
    keys: &[
        "psk",
        "psk-file",
        "certificate",
        "key",
        "ca",
        "local-id",
        "remote-id",
        "proposals",
        "esp-proposals",
        "lifetime",
        "child-lifetime",
        "child-lifetime-bytes",
        "child-lifetime-packets",
        "dpd-interval",
        "dpd-timeout",
        "encapsulation",
        "replay-window",
        "peer-replay-window",
        "mobike",
        "fragmentation",
        "ppk",
        "ppk-file",
        "ppk-id",
        "ppk-required",
    ],
};

/// The first is what two Braids agree on; the second is for peers without the larger group.
const DEFAULT_PROPOSALS: [&str; 2] =
    ["aes256gcm16-prfsha384-ecp384", "aes128gcm16-prfsha256-ecp256-curve25519"];
const DEFAULT_ESP_PROPOSALS: [&str; 2] =
    ["aes256gcm16-ecp384-esn-noesn", "aes128gcm16-ecp256-curve25519-esn-noesn"];
const DEFAULT_LIFETIME: Duration = Duration::from_secs(8 * 3600);
const DEFAULT_CHILD_LIFETIME: Duration = Duration::from_secs(3600);
const DEFAULT_DPD_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_DPD_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_REPLAY_WINDOW: u32 = 2048;
/// strongSwan's default.
const DEFAULT_PEER_REPLAY_WINDOW: u32 = 32;
/// Below these a busy tunnel would do nothing but change its keys.
const MIN_CHILD_BYTES: i64 = 1_000_000;
const MIN_CHILD_PACKETS: i64 = 1_000;
/// Longest name of a post-quantum pre-shared key, in bytes.
const MAX_PPK_ID_LEN: usize = 128;
/// Most proposals in one list, as many as a message of IKE may carry.
const MAX_PROPOSALS: usize = 32;
/// Longest file that a tunnel may name, in bytes.
const MAX_FILE_LEN: u64 = 256 * 1024;

/// What of the tunnel itself the defaults depend on.
pub(super) struct Context<'a> {
    pub(super) local: Option<IpAddr>,
    pub(super) remote: Option<&'a Remote>,
    /// The configuration file.
    pub(super) file: &'a Path,
    /// Its permission bits.
    pub(super) mode: u32,
}

pub(super) fn read(
    section: Section<'_>,
    context: &Context<'_>,
    exposed: &mut bool,
    report: &mut Report,
) -> Option<Ike> {
    for item in ["psk", "ppk"].into_iter().filter_map(|name| section.get(name)) {
        refuse_exposed(item, context.mode, exposed, report);
    }
    let credential = read_credential(section, context.file, report);
    let local_id = match section.get("local-id") {
        Some(item) => item.parse(identity, report),
        None => context.local.map(identity_of),
    };
    let remote_id = match section.get("remote-id") {
        Some(item) => item.parse(identity, report),
        None => default_remote_id(section, context, report),
    };
    check_local_id(section, credential.as_ref(), local_id.as_ref(), report);
    let proposals = read_proposals::<IkeProposal>(section, "proposals", &DEFAULT_PROPOSALS, report);
    let esp_proposals =
        read_proposals::<EspProposal>(section, "esp-proposals", &DEFAULT_ESP_PROPOSALS, report);
    let mut time = |name, default, min, max| {
        section
            .get(name)
            .and_then(|item| item.parse(|text| within(text, min, max), report))
            .unwrap_or(default)
    };
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
    let lifetime = time("lifetime", DEFAULT_LIFETIME, second * 5, day * 7);
    let child_lifetime = time("child-lifetime", DEFAULT_CHILD_LIFETIME.min(lifetime), second * 5, day * 7);
    let mut volume = |name, min| {
        let limit = section.get(name).and_then(|item| item.integer(min, i64::MAX, report));
        limit.and_then(|limit| u64::try_from(limit).ok())
    };
    let child_bytes = volume("child-lifetime-bytes", MIN_CHILD_BYTES);
    let child_packets = volume("child-lifetime-packets", MIN_CHILD_PACKETS);
    let mut time = |name, default, min, max| {
        section
            .get(name)
            .and_then(|item| item.parse(|text| within(text, min, max), report))
            .unwrap_or(default)
    };
    let dpd_interval = time("dpd-interval", DEFAULT_DPD_INTERVAL, second / 10, day);
    let dpd_timeout = time("dpd-timeout", DEFAULT_DPD_TIMEOUT.max(dpd_interval * 3), second / 5, day);
    if let Some(item) = section.get("dpd-timeout")
        && dpd_timeout <= dpd_interval
    {
        let remedy = format!("it must be more than dpd-interval, which is {dpd_interval:?}");
        item.invalid(report, format!("{dpd_timeout:?} is too short"), remedy);
    }
    let encapsulation = section.get("encapsulation").and_then(|item| item.parse(encapsulation, report));
    let replay_window = section.get("replay-window").and_then(|item| read_window(item, report));
    let peer_replay_window =
        section.get("peer-replay-window").and_then(|item| item.integer(1, 65_536, report));
    let ppk = read_ppk(section, context.file, report);
    let mut flag = |name| section.get(name).and_then(|item| item.boolean(report)).unwrap_or(true);
    Some(Ike {
        mobike: flag("mobike"),
        fragmentation: flag("fragmentation"),
        credential: credential?,
        local_id,
        remote_id,
        proposals,
        esp_proposals,
        lifetime,
        child_lifetime,
        child_bytes,
        child_packets,
        ppk,
        dpd_interval,
        dpd_timeout,
        encapsulation: encapsulation.unwrap_or(Encapsulation::Udp),
        replay_window: replay_window.unwrap_or(DEFAULT_REPLAY_WINDOW),
        peer_replay_window: peer_replay_window.map_or(DEFAULT_PEER_REPLAY_WINDOW, |window| window as u32),
    })
}

/// The core's name of a negotiated suite; `None` for one that it cannot do.
pub(crate) fn core_suite(cipher: Cipher, integrity: Option<Integrity>) -> Option<Suite> {
    Some(match (cipher, integrity) {
        (Cipher::Aes128Gcm16, None) => Suite::Aes128Gcm16,
        (Cipher::Aes256Gcm16, None) => Suite::Aes256Gcm16,
        (Cipher::ChaCha20Poly1305, None) => Suite::ChaCha20Poly1305,
        (Cipher::Aes128Cbc, Some(Integrity::HmacSha1_96)) => Suite::Aes128CbcSha1,
        (Cipher::Aes128Cbc, Some(Integrity::HmacSha256_128)) => Suite::Aes128CbcSha256,
        (Cipher::Aes128Cbc, Some(Integrity::HmacSha384_192)) => Suite::Aes128CbcSha384,
        (Cipher::Aes128Cbc, Some(Integrity::HmacSha512_256)) => Suite::Aes128CbcSha512,
        (Cipher::Aes256Cbc, Some(Integrity::HmacSha1_96)) => Suite::Aes256CbcSha1,
        (Cipher::Aes256Cbc, Some(Integrity::HmacSha256_128)) => Suite::Aes256CbcSha256,
        (Cipher::Aes256Cbc, Some(Integrity::HmacSha384_192)) => Suite::Aes256CbcSha384,
        (Cipher::Aes256Cbc, Some(Integrity::HmacSha512_256)) => Suite::Aes256CbcSha512,
        (Cipher::Aes128Cbc | Cipher::Aes256Cbc, None)
        | (Cipher::Aes128Gcm16 | Cipher::Aes256Gcm16 | Cipher::ChaCha20Poly1305, Some(_)) => return None,
    })
}

impl Ike {
    /// Every suite that a negotiation may end with.
    pub fn suites(&self) -> impl Iterator<Item = Suite> + '_ {
        self.esp_proposals.iter().flat_map(|proposal| {
            let pairs = proposal.ciphers.iter().flat_map(|cipher| {
                let integrities = proposal.integrities.iter().map(|integrity| (*cipher, Some(*integrity)));
                let alone = cipher.is_aead().then_some((*cipher, None));
                alone.into_iter().chain(integrities.filter(|_| !cipher.is_aead()))
            });
            pairs.filter_map(|(cipher, integrity)| core_suite(cipher, integrity))
        })
    }
}

impl From<Role> for IkeRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Initiate => IkeRole::Initiate,
            Role::Respond => IkeRole::Respond,
        }
    }
}

fn read_credential(section: Section<'_>, file: &Path, report: &mut Report) -> Option<Credential> {
    let given = ["psk", "psk-file", "certificate"].into_iter().filter_map(|name| section.get(name));
    let mut given = given.collect::<Vec<_>>();
    if let Some(second) = given.get(1) {
        second.invalid(report, "a second way to authenticate", "give one of psk, psk-file and certificate");
        return None;
    }
    if given.pop().is_none() {
        let example = "psk-file = \"/etc/braid/aws-a.psk\", or certificate, key and ca";
        section.require("psk", example, report);
        return None;
    }
    if let Some(item) = section.get("psk") {
        return item.parse(psk, report).map(Credential::Psk);
    }
    if let Some(item) = section.get("psk-file") {
        let read = read_file(item, file, true, report)?;
        let text = core::str::from_utf8(&read.bytes).unwrap_or_default().trim_end_matches(['\n', '\r']);
        return match psk(text) {
            Ok(key) => Some(Credential::Psk(key)),
            Err(fault) => {
                item.fault(report, fault);
                None
            }
        };
    }
    let certificate = section.get("certificate")?;
    let key = section.require("key", "key = \"/etc/braid/branch-1.key\"", report);
    let ca = section.require("ca", "ca = \"/etc/braid/ca.pem\"", report);
    let (key, ca) = (key?, ca?);
    let chain = read_file(certificate, file, false, report);
    let private = read_file(key, file, true, report);
    let authorities = read_file(ca, file, false, report);
    let (chain, private, authorities) = (&chain?.bytes, &private?.bytes, &authorities?.bytes);
    let refuse = |item: Item<'_>, error: CredentialError, report: &mut Report| {
        item.invalid(report, error.to_string(), "name a PEM file that holds it");
    };
    if let Err(error) = CertificateCredential::from_pem(chain, private) {
        let item = match error {
            CredentialError::NoKey | CredentialError::UnsupportedKey | CredentialError::KeyMismatch => key,
            CredentialError::NotPem
            | CredentialError::NoCertificate
            | CredentialError::MalformedCertificate => certificate,
        };
        refuse(item, error, report);
        return None;
    }
    if let Err(error) = TrustStore::from_pem(authorities) {
        refuse(ca, error, report);
        return None;
    }
    Some(Credential::Certificate {
        chain: chain.to_vec(),
        key: Key::new(private.clone()),
        ca: authorities.to_vec(),
    })
}

/// A post-quantum pre-shared key (RFC 8784): key and name go together.
fn read_ppk(section: Section<'_>, file: &Path, report: &mut Report) -> Option<Ppk> {
    let (inline, named) = (section.get("ppk"), section.get("ppk-file"));
    if let (Some(_), Some(second)) = (inline, named) {
        second.invalid(report, "a second post-quantum pre-shared key", "give one of ppk and ppk-file");
        return None;
    }
    if inline.is_none() && named.is_none() {
        for name in ["ppk-id", "ppk-required"] {
            if let Some(item) = section.get(name) {
                item.invalid(
                    report,
                    "there is no key to it",
                    "give ppk or ppk-file as well, or leave it out",
                );
            }
        }
        return None;
    }
    let secret = match (inline, named) {
        (Some(item), _) => item.parse(psk, report),
        (None, Some(item)) => read_file(item, file, true, report).and_then(|read| {
            let text = core::str::from_utf8(&read.bytes).unwrap_or_default().trim_end_matches(['\n', '\r']);
            psk(text).map_err(|fault| item.fault(report, fault)).ok()
        }),
        (None, None) => None,
    };
    let id = section.require("ppk-id", "ppk-id = \"branch-1\", by which both sides know the key", report);
    let id = id.and_then(|item| item.parse(ppk_id, report));
    let required = section.get("ppk-required").and_then(|item| item.boolean(report)).unwrap_or(true);
    Some(Ppk { id: id?, secret: secret?, required })
}

fn ppk_id(text: &str) -> Result<String, Fault> {
    if text.is_empty() || text.len() > MAX_PPK_ID_LEN {
        return Err(Fault::Invalid {
            problem: format!("a name of {} bytes", text.len()),
            remedy: format!("1 to {MAX_PPK_ID_LEN} are possible"),
        });
    }
    Ok(text.to_owned())
}

fn psk(text: &str) -> Result<Key, Fault> {
    if text.is_empty() {
        return Err(Fault::Invalid {
            problem: "an empty key".to_owned(),
            remedy: "`braid genpsk` makes one".to_owned(),
        });
    }
    Ok(Key::new(Zeroizing::new(text.as_bytes().to_vec())))
}

/// A file that the configuration names; `secret` ones must not be readable by others.
pub(super) fn read_file(
    item: Item<'_>,
    config: &Path,
    secret: bool,
    report: &mut Report,
) -> Option<Arc<Contents>> {
    let name = item.string(report)?;
    let path = config.parent().unwrap_or(Path::new("")).join(name);
    match report.files.read(&path, MAX_FILE_LEN) {
        Ok(contents) if secret && contents.mode & 0o077 != 0 => {
            let problem = format!(
                "{} holds a secret and others may read it (mode {:04o})",
                path.display(),
                contents.mode & 0o7777
            );
            item.invalid(report, problem, "chmod 600 it");
            None
        }
        Ok(contents) => Some(contents),
        Err(error) => {
            item.invalid(report, format!("{}: {error}", path.display()), "name a file that can be read");
            None
        }
    }
}

/// A peer that proves itself by a certificate of a CA must be one in particular.
fn default_remote_id(section: Section<'_>, context: &Context<'_>, report: &mut Report) -> Option<Identity> {
    let by_certificate = section.get("certificate").is_some();
    match context.remote {
        Some(Remote::Address(address)) => Some(identity_of(*address)),
        Some(Remote::Name(name)) if by_certificate => Some(Identity::Fqdn(name.clone())),
        None if by_certificate => {
            section.require("remote-id", "remote-id = \"branch-2.example.com\"", report);
            None
        }
        Some(Remote::Name(_)) | None => None,
    }
}

fn check_local_id(
    section: Section<'_>,
    credential: Option<&Credential>,
    local_id: Option<&Identity>,
    report: &mut Report,
) {
    if let (Some(Credential::Certificate { chain, key, .. }), Some(id)) = (credential, local_id)
        && let Ok(certificate) = CertificateCredential::from_pem(chain, key.expose())
    {
        let borne = certificate.identities();
        if !borne.iter().any(|identity| identity.matches(id)) {
            let list = borne.iter().map(|identity| format!("\"{identity}\"")).collect::<Vec<_>>().join(", ");
            let problem = format!("the certificate does not bear {id}");
            if let Some(item) = section.get("local-id").or_else(|| section.get("certificate")) {
                item.invalid(report, problem, format!("give local-id as one of {list}"));
            }
        }
    }
}

trait Proposal: Sized {
    fn parse(text: &str) -> Result<Self, ProposalError>;
    const EXAMPLE: &'static str;
}

impl Proposal for IkeProposal {
    fn parse(text: &str) -> Result<Self, ProposalError> {
        text.parse()
    }
    const EXAMPLE: &'static str = DEFAULT_PROPOSALS[0];
}

impl Proposal for EspProposal {
    fn parse(text: &str) -> Result<Self, ProposalError> {
        text.parse()
    }
    const EXAMPLE: &'static str = DEFAULT_ESP_PROPOSALS[0];
}

fn read_proposals<P: Proposal>(
    section: Section<'_>,
    name: &'static str,
    default: &[&str],
    report: &mut Report,
) -> Vec<P> {
    let parse = |text: &str| {
        P::parse(text).map_err(|error| Fault::Invalid {
            problem: format!("{text:?}: {error}"),
            remedy: format!("write one like {:?}", P::EXAMPLE),
        })
    };
    let Some(item) = section.get(name) else {
        return default.iter().filter_map(|text| parse(text).ok()).collect();
    };
    if item.is_empty_list() {
        item.invalid(report, "an empty list", format!("write one like [{:?}], or leave it out", P::EXAMPLE));
    }
    item.one_or_list(MAX_PROPOSALS, parse, report).into_iter().map(|(proposal, _)| proposal).collect()
}

fn identity_of(address: IpAddr) -> Identity {
    match address {
        IpAddr::V4(v4) => Identity::Ipv4(v4),
        IpAddr::V6(v6) => Identity::Ipv6(v6),
    }
}

/// An address, a DN where it has an `=`, an e-mail address where it has an `@`, else an FQDN. A leading `@`
/// makes an FQDN of anything, as strongSwan has it.
fn identity(text: &str) -> Result<Identity, Fault> {
    let invalid = |problem: String| Fault::Invalid {
        problem,
        remedy: "write an address, \"gw.example.com\", \"me@example.com\" or \"C=DE, O=Example, CN=gw\""
            .to_owned(),
    };
    if let Ok(address) = text.parse() {
        return Ok(identity_of(address));
    }
    if let Some(name) = text.strip_prefix('@').filter(|name| !name.is_empty()) {
        return Ok(Identity::Fqdn(name.to_owned()));
    }
    if text.contains('=') {
        return dn::from_text(text).map(Identity::Dn).ok_or_else(|| invalid(format!("{text:?} is no DN")));
    }
    if let Some((user, host)) = text.split_once('@') {
        return if !user.is_empty() && value::dns_name(host) {
            Ok(Identity::Email(text.to_owned()))
        } else {
            Err(invalid(format!("{text:?} is no e-mail address")))
        };
    }
    if value::dns_name(text) {
        return Ok(Identity::Fqdn(text.to_owned()));
    }
    Err(invalid(format!("{text:?} is no identity")))
}

fn encapsulation(text: &str) -> Result<Encapsulation, Fault> {
    choice(
        text,
        "encapsulation",
        &[("udp", Encapsulation::Udp), ("auto", Encapsulation::Auto), ("esp", Encapsulation::Esp)],
    )
}

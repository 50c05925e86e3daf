//! What failed in IKE, in the words of the configuration and of AWS's tunnel options: the step, what either
//! side said, and the remedy.

use std::net::IpAddr;

use braid_ike::{
    Diagnosis, DownCause, Fault, Step, Violation,
    auth::AuthError,
    crypto::KeMethod,
    proposal::describe,
    wire::{ExchangeType, Identity, NotifyType, Proposal, TrafficSelector},
};

/// Something that an operator has to mend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What is wrong, with what either side said.
    pub problem: String,
    /// The key of the configuration that it concerns, if one.
    pub key: &'static str,
    /// What to do.
    pub remedy: String,
}

/// One line for status and the log.
pub fn reason(diagnosis: &Diagnosis) -> String {
    let step = step(diagnosis.step);
    let remote = diagnosis.remote.map(|remote| format!(" with {remote}")).unwrap_or_default();
    format!("{step}{remote}: {}", finding(diagnosis).problem)
}

/// Why a tunnel went down: one word, and a sentence.
pub fn down(cause: DownCause) -> (&'static str, &'static str) {
    match cause {
        DownCause::DeadPeer => ("dpd", "the peer does not answer any more (dead peer detection)"),
        DownCause::PeerDeleted => ("peer", "the peer has deleted the SAs"),
        DownCause::Deleted => ("ike", "the SAs were deleted here and are negotiated anew"),
        DownCause::Expired => {
            ("expired", "the SAs reached the end of their lifetime before they were rekeyed")
        }
        DownCause::Refused => ("ike", "the peer refused what the SAs need"),
        DownCause::InstallFailed => ("ike", "the forwarding core could not take the SAs"),
    }
}

/// The step, in the RFC's words.
pub fn step(step: Step) -> &'static str {
    match step {
        Step::Init => "IKE_SA_INIT",
        Step::Intermediate => "IKE_INTERMEDIATE",
        Step::Auth => "IKE_AUTH",
        Step::CreateChild => "CREATE_CHILD_SA",
        Step::RekeyChild => "CREATE_CHILD_SA (rekey of the child)",
        Step::RekeyIke => "CREATE_CHILD_SA (rekey of the IKE SA)",
        Step::Informational => "INFORMATIONAL",
        Step::Established => "established",
    }
}

/// The same of an exchange that waits for its answer.
pub fn exchange(exchange: ExchangeType) -> &'static str {
    match exchange {
        ExchangeType::IkeSaInit => "IKE_SA_INIT",
        ExchangeType::IkeIntermediate => "IKE_INTERMEDIATE",
        ExchangeType::IkeAuth => "IKE_AUTH",
        ExchangeType::CreateChildSa | ExchangeType::IkeFollowupKe => "CREATE_CHILD_SA",
        ExchangeType::Informational | ExchangeType::Other(_) => "INFORMATIONAL",
    }
}

/// What to do about a peer that does not answer.
pub const UNREACHABLE: &str = "let UDP 500 and 4500 pass on the way (firewalls, security groups, network ACLs), and see \
                               that the peer runs and has our outer address as its peer (AWS: the customer gateway's IP \
                               address; Startup action = Add makes AWS wait for us)";

/// What is wrong and what to do.
pub fn finding(diagnosis: &Diagnosis) -> Finding {
    let say = |key, problem: String, remedy: &str| Finding { problem, key, remedy: remedy.to_owned() };
    let ike = matches!(diagnosis.step, Step::Init | Step::Intermediate | Step::RekeyIke);
    match &diagnosis.fault {
        Fault::Unreachable { sent } => say("remote", format!("no answer to {sent} requests"), UNREACHABLE),
        Fault::DeadPeer => say(
            "dpd-timeout",
            "the peer has fallen silent".to_owned(),
            "see whether the peer runs and its outer path is up; AWS does this during tunnel maintenance",
        ),
        Fault::NoProposal { ours, peers } => no_proposal(ike, ours, peers),
        Fault::InvalidKe { offered, wanted } => say(
            if ike { "proposals" } else { "esp-proposals" },
            format!("we offer the groups {}, the peer wants {}", groups(offered), group(*wanted)),
            if ike {
                "name a group in proposals that the peer has (AWS: Phase 1 DH group numbers)"
            } else {
                "name a group in esp-proposals that the peer has (AWS: Phase 2 DH group numbers)"
            },
        ),
        Fault::AuthMismatch => say(
            "psk",
            "the peer's proof is wrong: it has another pre-shared key".to_owned(),
            "give both sides the same psk (AWS: the tunnel option Pre-shared key)",
        ),
        Fault::AuthMethodMismatch { method } => say(
            "psk",
            format!("the peer authenticates by method {method}, which is not what is configured for it"),
            "give both sides a psk, or both a certificate",
        ),
        Fault::PeerRejectedUs { by_certificate: true } => say(
            "certificate",
            "the peer refuses our certificate (AUTHENTICATION_FAILED)".to_owned(),
            "see that the peer trusts the CA of our certificate, that it is within its time by the peer's clock, and \
             that it bears local-id, which the peer must expect; the peer's own log says which of them (AWS: the \
             customer gateway's certificate, of AWS Private CA)",
        ),
        Fault::PeerRejectedUs { by_certificate: false } => say(
            "psk",
            "the peer refuses our proof (AUTHENTICATION_FAILED)".to_owned(),
            "compare psk and local-id with what the peer has for us (AWS: Pre-shared key, the customer gateway's IP \
             address); the peer's own log says which of them",
        ),
        Fault::PeerIdMismatch { expected, received } => {
            let from = behind_nat(diagnosis, received);
            say(
                "remote-id",
                format!("the peer calls itself {received}, we expect {expected}{from}"),
                &format!(
                    "set remote-id = \"{received}\" if that is the peer, or mend the peer's own identity (behind a NAT: \
                     local-id there = its public address)"
                ),
            )
        }
        Fault::UnknownPeer { identity: None, .. } => say(
            "remote",
            "somebody calls from an address that no tunnel has as its remote".to_owned(),
            "if it is a peer, give its tunnel this address as remote",
        ),
        Fault::UnknownPeer { identity, wants } => {
            let from = identity.as_ref().map(|identity| behind_nat(diagnosis, identity)).unwrap_or_default();
            unknown_peer(identity.as_ref(), wants.as_ref(), &from)
        }
        Fault::Certificate(error) => certificate(error),
        Fault::Ppk { .. } => say(
            "",
            "the post-quantum pre-shared keys (RFC 8784) do not match".to_owned(),
            "this gateway has none: the peer must not require one",
        ),
        Fault::TrafficSelectors { ours, peers } => traffic_selectors(ours, peers),
        Fault::PeerDeleted { at_once: true } => say(
            "local-id",
            "the peer deleted the SA right after it was made".to_owned(),
            "the peer's log says why; often two gateways with the same local-id push each other out (AWS: two devices \
             behind one customer gateway), or the peer refuses what comes through",
        ),
        Fault::PeerDeleted { at_once: false } => say(
            "",
            "the peer deleted the SA".to_owned(),
            "nothing to do here if the peer was restarted or is being maintained; it is negotiated anew",
        ),
        Fault::PeerError(kind) => peer_error(*kind),
        Fault::Malformed(error) => say(
            "",
            format!("the peer's message cannot be read: {error}"),
            "update the peer; something on the way may also cut datagrams (try fragmentation = true)",
        ),
        Fault::Violation(violation) => {
            say("", format!("the peer breaks the protocol: {}", broken(*violation)), "update the peer")
        }
        Fault::Expired => say(
            "lifetime",
            "the end of life came before a rekey succeeded".to_owned(),
            "the peer must answer rekeys: see its log",
        ),
        Fault::InstallFailed => say(
            "",
            "the forwarding core refused the SA".to_owned(),
            "its log says why; braid status shows whether it runs",
        ),
        Fault::NatForbidden => say(
            "encapsulation",
            "a NAT is on the way, and encapsulation = \"esp\" forbids UDP".to_owned(),
            "set encapsulation = \"auto\" or \"udp\"",
        ),
    }
}

fn no_proposal(ike: bool, ours: &[Proposal], peers: &[Proposal]) -> Finding {
    let (key, aws) = if ike { ("proposals", "Phase 1") } else { ("esp-proposals", "Phase 2") };
    let list = |proposals: &[Proposal]| match describe(proposals) {
        text if text.is_empty() => "does not say what it wants".to_owned(),
        text => format!("has {text}"),
    };
    Finding {
        problem: format!("no proposal in common: this side {}, the peer {}", list(ours), list(peers)),
        key,
        remedy: format!(
            "name one in {key} that the peer accepts (AWS: {aws} encryption algorithms, {aws} integrity algorithms, \
             {aws} DH group numbers){}",
            // It may refuse whoever it does not know in these words.
            if ike && peers.is_empty() {
                "; or the peer has no tunnel for our address: see its log"
            } else {
                ""
            }
        ),
    }
}

/// Whether it calls from another address than its own, in words.
fn behind_nat(diagnosis: &Diagnosis, identity: &Identity) -> String {
    let address = match identity {
        Identity::Ipv4(v4) => IpAddr::V4(*v4),
        Identity::Ipv6(v6) => IpAddr::V6(*v6),
        _ => return String::new(),
    };
    match diagnosis.remote.map(|remote| remote.ip()) {
        Some(remote) if remote != address => format!("; it calls from {remote}: a NAT stands before it"),
        Some(_) | None => String::new(),
    }
}

fn unknown_peer(identity: Option<&Identity>, wants: Option<&Identity>, from: &str) -> Finding {
    let who = identity.map_or_else(|| "somebody".to_owned(), ToString::to_string);
    let whom = wants.map(|wants| format!(" and wants {wants}")).unwrap_or_default();
    Finding {
        problem: format!("{who} calls{whom}, and no tunnel is configured for it{from}"),
        key: "remote-id",
        remedy: "give a tunnel its address as remote, or its identity as remote-id, and ours as local-id"
            .to_owned(),
    }
}

fn certificate(error: &AuthError) -> Finding {
    let (key, problem, remedy) = match error {
        AuthError::WrongPsk => {
            ("psk", "the pre-shared keys differ".to_owned(), "give both sides the same psk".to_owned())
        }
        AuthError::WrongSignature => (
            "ca",
            "the peer's signature is not of its certificate's key".to_owned(),
            "mend the peer's key and certificate".to_owned(),
        ),
        AuthError::MethodMismatch { received } => (
            "certificate",
            format!("the peer authenticates by method {received}, not by what is configured"),
            "give both sides a psk, or both a certificate".to_owned(),
        ),
        AuthError::UnsupportedAlgorithm => (
            "ca",
            "the peer signs with an algorithm that is not accepted".to_owned(),
            "use RSA of 2048 bits up, ECDSA or Ed25519 with SHA-2".to_owned(),
        ),
        AuthError::NoCertificate => (
            "ca",
            "the peer sent no certificate".to_owned(),
            "give the peer a certificate, and let it send it".to_owned(),
        ),
        AuthError::MalformedCertificate => {
            ("ca", "a certificate cannot be read".to_owned(), "make the peer's certificate anew".to_owned())
        }
        AuthError::CertificateExpired { not_after } => (
            "ca",
            format!("the peer's certificate expired on {}", date(*not_after)),
            "renew the peer's certificate; see also whether our clock is right".to_owned(),
        ),
        AuthError::CertificateNotYetValid { not_before } => (
            "ca",
            format!("the peer's certificate is not valid before {}", date(*not_before)),
            "set the clocks: ours, or that of the authority that made it".to_owned(),
        ),
        AuthError::UntrustedCa { issuer } => (
            "ca",
            format!("the peer's certificate is of {issuer}, whom ca does not name"),
            "put that CA's certificate into the file that ca names".to_owned(),
        ),
        AuthError::InvalidChain(fault) => (
            "ca",
            format!("the peer's chain of certificates is not accepted: {fault:?}"),
            "make the peer's certificate anew".to_owned(),
        ),
        AuthError::IdentityNotInCertificate { claimed, borne } => (
            "remote-id",
            format!("the peer calls itself {claimed}, its certificate bears {}", join(borne)),
            "let the peer use an identity of its certificate, and name that in remote-id".to_owned(),
        ),
    };
    Finding { problem, key, remedy }
}

fn traffic_selectors(
    ours: &(Vec<TrafficSelector>, Vec<TrafficSelector>),
    peers: &(Vec<TrafficSelector>, Vec<TrafficSelector>),
) -> Finding {
    let theirs = if peers.0.is_empty() && peers.1.is_empty() {
        "the peer does not say what it wants".to_owned()
    } else {
        format!("the peer wants local {} remote {}", join(&peers.0), join(&peers.1))
    };
    Finding {
        problem: format!(
            "no traffic selectors in common: ours local {} remote {}, {theirs}",
            join(&ours.0),
            join(&ours.1)
        ),
        key: "local-ts",
        remedy:
            "let local-ts and remote-ts be what the peer has the other way round (AWS: Local and Remote IPv4 \
                 network CIDR, which should be 0.0.0.0/0)"
                .to_owned(),
    }
}

fn peer_error(kind: NotifyType) -> Finding {
    Finding {
        problem: format!("the peer answers with {kind}"),
        key: "",
        remedy: "the peer's log says why".to_owned(),
    }
}

fn broken(violation: Violation) -> String {
    match violation {
        Violation::MissingPayload(name) => format!("its message lacks {name}"),
        Violation::NotOffered => "it chose what was not offered".to_owned(),
        Violation::BadNonce => "a nonce of a wrong length".to_owned(),
        Violation::BadPublicValue => "a public value outside its group".to_owned(),
        Violation::BadSpi => "a reserved SPI".to_owned(),
        Violation::UnknownCritical(kind) => format!("it demands payload {kind}, which is not known here"),
        Violation::CookieLoop => "it asks for cookies again and again".to_owned(),
        Violation::UnexpectedExchange => "an exchange out of place".to_owned(),
    }
}

/// A day of the Gregorian calendar and the time of day, UTC, of seconds since 1970; earlier is 1970.
fn date(unix: i64) -> String {
    const DAY: u64 = 86_400;
    // Days since 1 March of the year 0, in eras of 400 years that are alike.
    let unix = u64::try_from(unix).unwrap_or_default();
    let days = unix / DAY + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    let time = unix % DAY;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", time / 3600, time / 60 % 60)
}

fn group(number: u16) -> String {
    KeMethod::from_number(number)
        .map_or_else(|| format!("group {number}"), |it| format!("{} ({number})", it.name()))
}

fn groups(numbers: &[u16]) -> String {
    numbers.iter().map(|number| group(*number)).collect::<Vec<_>>().join(", ")
}

fn join<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "nothing".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (unix, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_583_020_800, "2020-03-01 00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(unix), text);
        }
    }
}

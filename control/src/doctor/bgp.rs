//! What `braid doctor` says of BGP neighbors without a session, and of those that may lose it. Pure.

use std::{io, net::SocketAddr};

use braid_bgp::Notification;

use super::{Finding, finding};
use crate::bgp::{Trouble, Unreached, Why, remedy};

/// What may be wrong with a session that was refused (RFC 4271 section 6.2, RFC 4486).
const OPEN: u8 = 2;
const BAD_AS: u8 = 2;
const BAD_ID: u8 = 3;
const UNACCEPTABLE_HOLD: u8 = 6;
const CEASE: u8 = 6;
const TOO_MANY: u8 = 1;
const SHUT_DOWN: u8 = 2;
const REMOVED: u8 = 3;
const REJECTED: u8 = 5;

/// What is to be mended, if it can be told. `answers` is whether the neighbor's address answers echoes.
pub(super) fn of(trouble: &Trouble, answers: Option<bool>) -> Option<Finding> {
    let step = format!("BGP with {}", trouble.name);
    let Trouble { address, our_asn, asn, .. } = trouble;
    let at = |problem: String, key: &str, remedy: String| Some(finding(&step, problem, key, remedy));
    match &trouble.why {
        // The tunnel's own finding says it.
        Why::Held(_) if trouble.tunnel.is_some() => None,
        Why::Held(why) => at(
            format!("{address}: {why}"),
            "bgp.neighbor.interface",
            "see the link, its cable or its provider, and whether the neighbor runs".to_owned(),
        ),
        Why::WeRefuse(said) if is(said, OPEN, BAD_AS) => {
            let theirs = trouble.opened.map_or_else(|| "another".to_owned(), |opened| opened.asn.to_string());
            at(
                format!("{address} says that its AS number is {theirs}, {asn} is expected"),
                "bgp.neighbor.asn",
                format!("set asn = {theirs}, or mend the AS number there"),
            )
        }
        Why::ItRefuses(said) if is(said, OPEN, BAD_AS) => at(
            format!("{address} expects another AS number than ours, which is {our_asn}"),
            "bgp.asn",
            format!("have the neighbor expect {our_asn}, or set [bgp] asn to what it expects"),
        ),
        Why::WeRefuse(said) | Why::ItRefuses(said) if is(said, OPEN, BAD_ID) => {
            let theirs =
                trouble.opened.map_or_else(String::new, |opened| format!(", and its is {}", opened.id));
            at(
                format!("one of both ends does not take the other's identifier{theirs}: they must differ"),
                "bgp.router-id",
                "give each router an identifier of its own".to_owned(),
            )
        }
        Why::ItRefuses(said) if is(said, OPEN, UNACCEPTABLE_HOLD) => at(
            format!("{address} does not take our hold time"),
            "bgp.neighbor.hold-time",
            "set hold-time to what the neighbor allows".to_owned(),
        ),
        Why::WeRefuse(said) if is(said, CEASE, TOO_MANY) => at(
            format!("{address} has sent more routes than it may"),
            "bgp.neighbor.max-prefix",
            "have it send fewer, or allow more".to_owned(),
        ),
        Why::ItRefuses(said) if is(said, CEASE, TOO_MANY) => at(
            format!("{address} says that we have sent more routes than it takes"),
            "bgp.announce",
            "announce fewer, as by aggregates (AWS takes 100)".to_owned(),
        ),
        Why::ItRefuses(said)
            if said.code == CEASE && matches!(said.subcode, SHUT_DOWN | REMOVED | REJECTED) =>
        {
            at(
                format!("{address} says: {said}"),
                "bgp.neighbor.address",
                format!("enable the session with {} at the neighbor", ours(trouble)),
            )
        }
        Why::WeRefuse(said) => at(format!("we said to {address}: {said}"), "", retried()),
        Why::ItRefuses(said) => at(format!("{address} says: {said}"), "", retried()),
        Why::Unreached(unreached) => of_unreached(trouble, unreached, answers, &step),
        Why::Broken => at(
            format!("{address} closes connections before the session begins, without a word"),
            "bgp.neighbor.address",
            format!("see whether it has a session with {} and AS {our_asn}, and its log", ours(trouble)),
        ),
        // RFC 2385 section 2.0: a segment that is not signed as expected is dropped, and nobody is told.
        Why::Trying if trouble.is_passive && trouble.is_signed => at(
            format!(
                "{address} has not connected yet, and we wait for it (passive); with a wrong or missing MD5 password \
                 there, its attempts are dropped without a word"
            ),
            "bgp.neighbor.passive",
            format!(
                "have it connect to {}, TCP port 179, with the same md5 password, or leave passive out",
                ours(trouble)
            ),
        ),
        Why::Trying if trouble.is_passive => at(
            format!("{address} has not connected yet, and we wait for it (passive)"),
            "bgp.neighbor.passive",
            format!("have it connect to {}, TCP port 179, or leave passive out", ours(trouble)),
        ),
        Why::Trying => None,
        Why::NearAws { told, most } => at(
            format!("{address} is told {told} routes: if it is AWS's, it may end the session beyond {most}"),
            "bgp.neighbor.max-advertised",
            "set max-advertised to what the neighbor takes; announce fewer where that is too few".to_owned(),
        ),
    }
}

fn of_unreached(
    trouble: &Trouble,
    unreached: &Unreached,
    answers: Option<bool>,
    step: &str,
) -> Option<Finding> {
    let address = trouble.address;
    let (problem, key, remedy) = match (unreached, answers) {
        (Unreached::Refused, _) => (
            format!("{address} refuses TCP port 179: there is no BGP speaker, or it does not know us"),
            "bgp.neighbor.address",
            format!("see whether the address is right, and has a session with {}", ours(trouble)),
        ),
        // A segment whose signature is missing, wrong or not expected is dropped without a word (RFC 2385).
        (Unreached::Silent, Some(true)) if trouble.is_signed => (
            format!(
                "{address} answers echoes and nothing on TCP port 179: its MD5 password is another, it has none, or no \
                 BGP speaker runs there"
            ),
            "bgp.neighbor.md5",
            "give both ends the same password".to_owned(),
        ),
        (Unreached::Silent, Some(true)) => (
            format!(
                "{address} answers echoes and nothing on TCP port 179: it expects an MD5 password, or something on the \
                 way drops it"
            ),
            "bgp.neighbor.md5",
            "set md5 as at the neighbor, or let TCP port 179 pass".to_owned(),
        ),
        (Unreached::Silent, _) => (
            format!("{address} answers nothing on TCP port 179"),
            "bgp.neighbor.address",
            format!(
                "see whether the address is right, is up, and lets TCP port 179 pass{}",
                if trouble.is_signed {
                    "; a wrong MD5 password looks the same"
                } else {
                    "; so looks one that wants md5"
                }
            ),
        ),
        (Unreached::NoRoute, _) => (
            format!("there is no way to {address}"),
            "bgp.neighbor.address",
            "see whether the address is right and on the link; else add a route to it".to_owned(),
        ),
        (Unreached::NotOurs, _) => (
            format!("{} is no address of this gateway", ours(trouble)),
            "bgp.neighbor.source",
            "name one of its addresses, or leave source out".to_owned(),
        ),
        (Unreached::Other(error), _) => {
            (format!("{address} cannot be connected to: {error}"), "bgp.neighbor.address", retried())
        }
    };
    Some(finding(step, problem, key, remedy))
}

fn is(said: &Notification, code: u8, subcode: u8) -> bool {
    (said.code, said.subcode) == (code, subcode)
}

fn ours(trouble: &Trouble) -> String {
    trouble.local.map_or_else(|| "our address".to_owned(), |local| local.to_string())
}

fn retried() -> String {
    "it is tried again by itself; see the log of both ends if it stays so".to_owned()
}

/// Where neighbors that connect find nobody. Sessions that we begin are not concerned.
pub(super) fn of_deaf(local: SocketAddr, error: &io::Error) -> Finding {
    let problem = format!("cannot listen on {local}: {error}");
    finding("BGP", problem, "bgp.neighbor", remedy(error).map_or_else(retried, str::to_owned))
}

#[cfg(test)]
mod tests {
    use braid_bgp::Opened;

    use super::*;

    fn trouble(why: Why) -> Trouble {
        Trouble {
            name: "aws".to_owned(),
            address: "169.254.10.1".parse().unwrap(),
            local: Some("169.254.10.2".parse().unwrap()),
            tunnel: Some("a".to_owned()),
            our_asn: 65_010,
            asn: 64_512,
            opened: Some(Opened { asn: 64_513, id: [10, 0, 0, 9].into() }),
            is_signed: false,
            is_passive: false,
            why,
        }
    }

    fn said(code: u8, subcode: u8) -> Notification {
        Notification { code, subcode, text: "in words".to_owned() }
    }

    #[test]
    fn every_reason_has_its_key_and_its_remedy() {
        let plain = |why| (trouble(why), None);
        let signed = |why, answers| (Trouble { is_signed: true, ..trouble(why) }, answers);
        let silent = || Why::Unreached(Unreached::Silent);
        let cases = [
            (plain(Why::WeRefuse(said(2, 2))), "bgp.neighbor.asn", "64513, 64512 is expected", "asn = 64513"),
            (plain(Why::ItRefuses(said(2, 2))), "bgp.asn", "ours, which is 65010", "expect 65010"),
            (plain(Why::ItRefuses(said(2, 3))), "bgp.router-id", "its is 10.0.0.9", "of its own"),
            (plain(Why::ItRefuses(said(2, 6))), "bgp.neighbor.hold-time", "hold time", "allows"),
            (plain(Why::WeRefuse(said(6, 1))), "bgp.neighbor.max-prefix", "more routes", "fewer"),
            (plain(Why::ItRefuses(said(6, 1))), "bgp.announce", "more routes", "AWS takes 100"),
            (
                plain(Why::ItRefuses(said(6, 2))),
                "bgp.neighbor.address",
                "in words (6/2)",
                "enable the session",
            ),
            (plain(Why::WeRefuse(said(4, 0))), "", "in words (4/0)", "by itself"),
            (
                plain(Why::Unreached(Unreached::Refused)),
                "bgp.neighbor.address",
                "refuses TCP port 179",
                "169.254.10.2",
            ),
            (
                signed(silent(), Some(true)),
                "bgp.neighbor.md5",
                "its MD5 password is another",
                "same password",
            ),
            ((trouble(silent()), Some(true)), "bgp.neighbor.md5", "expects an MD5 password", "set md5"),
            (signed(silent(), None), "bgp.neighbor.address", "answers nothing", "a wrong MD5 password"),
            (plain(silent()), "bgp.neighbor.address", "answers nothing", "wants md5"),
            (plain(Why::Unreached(Unreached::NoRoute)), "bgp.neighbor.address", "no way", "add a route"),
            (
                plain(Why::Unreached(Unreached::NotOurs)),
                "bgp.neighbor.source",
                "169.254.10.2 is no",
                "leave source out",
            ),
            (plain(Why::Broken), "bgp.neighbor.address", "without a word", "AS 65010"),
            (
                plain(Why::NearAws { told: 90, most: 100 }),
                "bgp.neighbor.max-advertised",
                "is told 90 routes: if it is AWS's, it may end the session beyond 100",
                "set max-advertised",
            ),
        ];
        for ((trouble, answers), key, problem, remedy) in cases {
            let found = of(&trouble, answers).unwrap();
            assert_eq!((found.step.as_str(), found.key.as_str()), ("BGP with aws", key), "{found:?}");
            assert!(found.problem.contains(problem) && found.remedy.contains(remedy), "{found:?}");
        }
        // The tunnel's finding says why; and what has only begun is no finding.
        assert_eq!((of(&trouble(Why::Held("x")), None), of(&trouble(Why::Trying), None)), (None, None));
        let passive = Trouble { is_passive: true, ..trouble(Why::Trying) };
        let found = of(&passive, None).unwrap();
        assert_eq!(found.key, "bgp.neighbor.passive");
        assert!(!found.problem.contains("MD5") && !found.remedy.contains("md5"), "{found:?}");
        // What the kernel drops for its signature looks like a neighbor that does not connect.
        let found = of(&Trouble { is_signed: true, ..passive }, None).unwrap();
        assert_eq!(found.key, "bgp.neighbor.passive");
        assert!(
            found.problem.contains("wrong or missing MD5 password") && found.remedy.contains("same md5"),
            "{found:?}"
        );
        let link = Trouble { tunnel: None, ..trouble(Why::Held("its link is down")) };
        assert!(of(&link, None).unwrap().problem.contains("its link is down"));
    }
}

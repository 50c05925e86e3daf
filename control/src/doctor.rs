//! What `braid doctor` says: per tunnel the step that fails, what either side said, and the remedy; the same of BGP
//! neighbors without a session.
//!
//! Pure: from control's state, IKE's, BGP's and the core's counters.

mod bgp;
mod wireguard;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use braid_api::{BfdState, BfdStats, Cause, Stats, TunnelId, TunnelStats, Verdict};
use braid_ike::{Diagnosis, Fault, PeerState, PeerStatus, wire::Identity};
use serde::{Deserialize, Serialize};

use crate::{
    bgp::Bgp,
    config::Remote,
    failover::Obstacle,
    ike::{Ike, words},
    outer::Blocked,
    turn::{State, TunnelView, Turn},
};

/// Packets sent without one coming back that are worth a word.
const ONE_WAY: u64 = 20;
/// A peer that was heard within this time is heard.
const HEARD: Duration = Duration::from_secs(1);
/// An end so recent is worth a word although the tunnel is up again.
const FLAPPING: Duration = Duration::from_secs(60);
const ESP_PASSES: &str = "UDP 4500, or IP protocol 50 with encapsulation = \"esp\" (security groups, network ACLs, \
                          firewalls on the way)";
/// Calls of strangers are told for so long.
const RECENT: Duration = Duration::from_secs(300);

/// The whole report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Every tunnel that was looked at.
    pub tunnels: Vec<Tunnel>,
    /// What concerns no tunnel in particular.
    pub others: Vec<Finding>,
}

/// A tunnel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tunnel {
    /// As configured.
    pub name: String,
    /// As in `braid status`.
    pub state: String,
    /// Empty if all is well.
    pub findings: Vec<Finding>,
}

/// Something to be mended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// Where it fails: `outer path`, `IKE_SA_INIT`, `IKE_AUTH`, `traffic` and so on.
    pub step: String,
    /// What is wrong, with what either side said.
    pub problem: String,
    /// The key of the configuration that it concerns; empty if none.
    pub key: String,
    /// What to do.
    pub remedy: String,
}

impl Report {
    /// Nothing was found.
    pub fn is_clean(&self) -> bool {
        self.others.is_empty() && self.tunnels.iter().all(|tunnel| tunnel.findings.is_empty())
    }
}

/// What was seen of the core for a report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look<'a> {
    /// Counters at its beginning.
    pub before: Option<&'a Stats>,
    /// Counters at its end; none without a core.
    pub after: Option<&'a Stats>,
    /// What was sent through tunnels in between.
    pub echoes: Option<&'a BTreeMap<TunnelId, Echoes>>,
}

/// Echo requests through one tunnel, by the length of the inner packet in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Echoes {
    /// Sent.
    pub asked: BTreeSet<u16>,
    /// Answered.
    pub back: BTreeSet<u16>,
}

impl Echoes {
    /// All that were sent were answered.
    pub fn is_whole(&self) -> bool {
        self.asked.is_subset(&self.back)
    }
}

/// The look at one tunnel.
#[derive(Clone, Copy, Debug)]
struct Seen<'a> {
    before: Option<&'a TunnelStats>,
    after: &'a TunnelStats,
    echoes: Option<&'a Echoes>,
}

/// Reports on one tunnel, or on all. `None` if there is none of this name.
pub fn report(
    turn: &Turn,
    ike: &Ike,
    bgp: &Bgp,
    look: &Look<'_>,
    name: Option<&str>,
    now: Duration,
    instant: Instant,
) -> Option<Report> {
    let all = turn.tunnels(now);
    let views = all.iter().filter(|view| name.is_none_or(|name| view.tunnel.name == name));
    let strangers: Vec<(Duration, &Diagnosis)> = ike
        .strangers()
        .map(|(at, diagnosis)| (instant.saturating_duration_since(*at), diagnosis))
        .filter(|(ago, _)| *ago < RECENT)
        .collect();
    let troubles = bgp.troubles();
    let tunnels: Vec<Tunnel> = views
        .map(|view| {
            let of =
                |stats: Option<&'_ Stats>, id| stats?.tunnels.iter().position(|stats| stats.tunnel == id);
            let seen = view.id.and_then(|id| {
                let after = look.after?;
                Some(Seen {
                    before: of(look.before, id).and_then(|at| look.before?.tunnels.get(at)),
                    after: after.tunnels.get(of(look.after, id)?)?,
                    echoes: look.echoes.and_then(|echoes| echoes.get(&id)),
                })
            });
            let peer = ike.status(&view.tunnel.name, instant);
            let failure = ike.last_failure(&view.tunnel.name);
            let failure = failure.map(|(at, what)| (instant.saturating_duration_since(*at), what.clone()));
            let stranger = strangers.iter().rev().find_map(|(ago, what)| Some((*ago, called(view, what)?)));
            // The later one.
            let failure = failure.into_iter().chain(stranger).min_by_key(|(ago, _)| *ago);
            let mut findings: Vec<Finding> =
                findings(view, seen, peer.as_ref(), failure.as_ref(), look.after).into_iter().collect();
            // Where the tunnel carries nothing, BGP cannot have a session.
            if view.state == State::Up || findings.is_empty() {
                let answers = seen.and_then(|seen| seen.echoes).map(|echoes| !echoes.back.is_empty());
                let inside =
                    troubles.iter().filter(|trouble| trouble.tunnel.as_ref() == Some(&view.tunnel.name));
                findings.extend(inside.filter_map(|trouble| bgp::of(trouble, answers)));
            }
            Tunnel { name: view.tunnel.name.clone(), state: view.state.name().to_owned(), findings }
        })
        .collect();
    if name.is_some() && tunnels.is_empty() {
        return None;
    }
    let mut others = Vec::new();
    if look.after.is_none() {
        let remedy = "see the log of braid run, which starts it again by itself";
        others.push(finding("forwarding core", "it does not answer", "", remedy));
    }
    let nobodys = strangers.iter().filter(|(_, what)| !all.iter().any(|view| called(view, what).is_some()));
    others.extend(nobodys.map(|(_, diagnosis)| of_diagnosis(diagnosis)));
    if name.is_none() {
        let outside = troubles.iter().filter(|trouble| trouble.tunnel.is_none());
        others.extend(outside.filter_map(|trouble| bgp::of(trouble, None)));
        others.extend(bgp.deaf().map(|(local, error)| bgp::of_deaf(local, error)));
    }
    others.dedup();
    Some(Report { tunnels, others })
}

/// What keeps metrics from being answered.
pub fn of_metrics(metrics: &crate::status::Metrics) -> Option<Finding> {
    let problem = metrics.problem.as_ref()?;
    Some(finding(
        "metrics",
        format!("cannot listen on {}: {problem}", metrics.listen),
        "metrics.listen",
        "name an address of this machine and a port that nothing else has; it is tried again every second",
    ))
}

fn finding(step: &str, problem: impl Into<String>, key: &str, remedy: impl Into<String>) -> Finding {
    Finding { step: step.to_owned(), problem: problem.into(), key: key.to_owned(), remedy: remedy.into() }
}

fn of_diagnosis(diagnosis: &Diagnosis) -> Finding {
    let words::Finding { problem, key, remedy } = words::finding(diagnosis);
    let step = words::step(diagnosis.step);
    let step = diagnosis.remote.map_or_else(|| step.to_owned(), |remote| format!("{step} with {remote}"));
    Finding { step, problem, key: key.to_owned(), remedy }
}

/// Somebody who called from this tunnel's peer's address and is not whom it expects.
fn called(view: &TunnelView<'_>, diagnosis: &Diagnosis) -> Option<Diagnosis> {
    let remote = match &view.tunnel.remote {
        Some(Remote::Address(address)) => *address,
        Some(Remote::Name(_)) => view.outer?.remote?,
        None => return None,
    };
    let expected = view.tunnel.ike()?.remote_id.clone()?;
    let received = match &diagnosis.fault {
        Fault::UnknownPeer { identity: Some(received), .. } | Fault::PeerIdMismatch { received, .. } => {
            received
        }
        _ => return None,
    };
    let is_there = diagnosis.remote.is_some_and(|from| from.ip() == remote) && *received != expected;
    let fault = Fault::PeerIdMismatch { expected, received: received.clone() };
    is_there.then(|| Diagnosis { fault, ..diagnosis.clone() })
}

type Failure<'a> = Option<&'a (Duration, Diagnosis)>;

fn findings(
    view: &TunnelView<'_>,
    seen: Option<Seen<'_>>,
    peer: Option<&PeerStatus>,
    failure: Failure<'_>,
    stats: Option<&Stats>,
) -> Option<Finding> {
    match view.state {
        State::Up | State::Standby | State::Draining => {
            let carried = seen.and_then(|seen| traffic(view, seen, peer)).or_else(|| flapping(view, failure));
            carried.or_else(|| without_bfd(seen?.after)).or_else(|| unanswered(view, seen?.after, stats))
        }
        State::Down | State::Connecting => Some(why_not_up(view, seen, peer, failure, stats)),
    }
}

/// Up again, and not for the first time.
fn flapping(view: &TunnelView<'_>, failure: Failure<'_>) -> Option<Finding> {
    let (ago, diagnosis) = failure?;
    let at_once = matches!(diagnosis.fault, Fault::PeerDeleted { at_once: true });
    (at_once && *ago < FLAPPING).then(|| failed(view, diagnosis))
}

/// BFD that is asked for and that the peer does not speak, so that it guards nothing.
fn without_bfd(stats: &TunnelStats) -> Option<Finding> {
    let silent = |session: &&BfdStats| session.vote == Verdict::Withdrawn && session.state != BfdState::Up;
    let session = stats.bfd.iter().find(silent)?;
    let BfdStats { local, remote, .. } = session;
    let (what, remedy) = match (session.state, session.remote_state) {
        (BfdState::Init, _) => {
            ("the peer is heard but does not hear us", "let UDP 3784 in at the peer".to_owned())
        }
        (_, BfdState::AdminDown) => ("the peer has disabled its session", "enable it there".to_owned()),
        (_, BfdState::Down | BfdState::Init | BfdState::Up) => (
            "the peer does not answer",
            format!(
                "give the peer a session from {remote} to {local}, or set bfd = false (AWS tunnels have none)"
            ),
        ),
    };
    Some(finding("BFD", format!("no session from {local} to {remote}: {what}"), "bfd", remedy))
}

/// Probes that were never answered, so that they guard nothing.
fn unanswered(view: &TunnelView<'_>, seen: &TunnelStats, stats: Option<&Stats>) -> Option<Finding> {
    let (sent, answered) = seen.probes;
    view.tunnel.probe.filter(|_| answered == 0 && sent >= ONE_WAY)?;
    let foreign = |reason: &str| reason == "source_not_allowed";
    let drops = stats.into_iter().flat_map(|stats| &stats.drops);
    let foreign: u64 = drops.filter(|(reason, _)| foreign(reason)).map(|(_, count)| *count).sum();
    let foreign = match foreign {
        0 => String::new(),
        count => {
            format!(", and {count} packets came out of tunnels from addresses that are not their peers'")
        }
    };
    Some(finding(
        "traffic",
        format!("none of {sent} probes was ever answered: a silent failure would not be seen{foreign}"),
        "inside",
        "see that inside is in the network that the peer has, and that the peer answers pings to its inside address; \
         or set probe = \"off\", and bfd where the peer speaks it",
    ))
}

/// What the counters and the echoes say of a tunnel that has SAs or a session.
fn traffic(view: &TunnelView<'_>, seen: Seen<'_>, peer: Option<&PeerStatus>) -> Option<Finding> {
    let after = seen.after;
    if let Some(echoes) = seen.echoes
        && let Some(longest) = echoes.back.last()
    {
        let vanished = echoes.asked.iter().find(|len| *len > longest)?;
        return Some(black_hole(*longest, *vanished));
    }
    if view.tunnel.wireguard().is_some() {
        return wireguard::traffic(after);
    }
    let arrived = seen.before.map_or(0, |before| after.rx_packets.saturating_sub(before.rx_packets));
    let hears = arrived > 0 || after.heard_ago.is_some_and(|ago| ago < HEARD);
    let answered = after.answered_ago.is_some();
    if hears {
        // A peer that never answers echoes is not told from one that does not get them.
        return answered.then(|| {
            let ago = after.answered_ago.unwrap_or_default();
            finding(
                "traffic",
                format!(
                    "one-way: the peer's ESP arrives ({} packets so far), but for {} it has answered nothing that we \
                     send: our ESP does not reach it",
                    after.rx_packets,
                    seconds(ago)
                ),
                "encapsulation",
                format!("let our ESP pass to the peer: {ESP_PASSES}"),
            )
        });
    }
    if !answered && (after.tx_packets < ONE_WAY || after.rx_packets > 0) {
        return None;
    }
    let alive = peer.is_some_and(|peer| peer.state == PeerState::Up && peer.waiting_for.is_none());
    let silent = match after.heard_ago {
        Some(ago) => format!("none has come back for {}", seconds(ago)),
        None => "none came back".to_owned(),
    };
    let sent = after.tx_packets;
    Some(if alive {
        finding(
            "traffic",
            format!(
                "one-way: {sent} packets went out and {silent}, while the peer answers IKE: its ESP does not reach us"
            ),
            "encapsulation",
            format!(
                "let the peer's ESP pass to us: {ESP_PASSES}; and see that the peer's routes lead back into the tunnel"
            ),
        )
    } else {
        finding(
            "traffic",
            format!("{sent} packets went out and {silent}; IKE is not answered either"),
            "remote",
            "see whether the peer runs and its outer path is up; AWS does this during tunnel maintenance",
        )
    })
}

fn black_hole(longest: u16, vanished: u16) -> Finding {
    finding(
        "traffic",
        format!(
            "MTU black hole: inner packets of up to {longest} bytes are answered, those of {vanished} bytes vanish: the \
             outer path takes less than its interface says, and nobody tells"
        ),
        "uplink",
        "let ICMP \"fragmentation needed\" (IPv6: \"packet too big\") pass on the outer path, or give the route to \
         the peer its true MTU (ip route change ... mtu N), which the tunnel's MTU follows",
    )
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// A failure of IKE, and what of our own settings makes it likely.
fn failed(view: &TunnelView<'_>, diagnosis: &Diagnosis) -> Finding {
    let finding = of_diagnosis(diagnosis);
    let ours = match view.tunnel.ike().map(|ike| &ike.local_id) {
        Some(Some(Identity::Ipv4(address))) => Some(IpAddr::V4(*address)),
        Some(None) => view.tunnel.local.or_else(|| view.outer?.local),
        _ => None,
    };
    let private = ours.filter(|ours| matches!(ours, IpAddr::V4(v4) if v4.is_private()));
    match private.zip(diagnosis.remote) {
        Some((ours, remote))
            if matches!(diagnosis.fault, Fault::PeerRejectedUs { .. })
                && !matches!(remote.ip(), IpAddr::V4(v4) if v4.is_private()) =>
        {
            Finding {
                problem: format!(
                    "{}; we call ourselves {ours}, a private address that the peer does not see behind a NAT",
                    finding.problem
                ),
                key: "local-id".to_owned(),
                remedy: format!(
                    "behind a NAT set local-id to the public address, as the peer knows it (AWS: the customer gateway's \
                     IP address); else {}",
                    finding.remedy
                ),
                ..finding
            }
        }
        _ => finding,
    }
}

fn why_not_up(
    view: &TunnelView<'_>,
    seen: Option<Seen<'_>>,
    peer: Option<&PeerStatus>,
    failure: Failure<'_>,
    stats: Option<&Stats>,
) -> Finding {
    match view.obstacle {
        Some(Obstacle::NoSession { by_peer, .. }) => {
            if let Some(keys) = view.tunnel.wireguard() {
                return wireguard::no_session(view, keys, *by_peer, stats);
            }
        }
        Some(Obstacle::Outer(blocked)) => return outer_path(blocked),
        Some(Obstacle::Negotiating { .. } | Obstacle::Ike { .. }) => {}
        Some(Obstacle::Silent { cause, .. }) if *cause == Cause::Bfd => {
            return seen.and_then(|seen| traffic(view, seen, peer)).unwrap_or_else(|| {
                let remedy = "see whether the peer still has a BFD session with our inside address; bfd = false if not";
                finding("BFD", view.reason.clone(), "bfd", remedy)
            });
        }
        Some(Obstacle::Silent { .. } | Obstacle::HeldDown { .. }) => {
            return seen.and_then(|seen| traffic(view, seen, peer)).unwrap_or_else(|| {
                finding(
                    "traffic",
                    view.reason.clone(),
                    "probe",
                    "see whether the peer's inside address answers to ping; probe = \"off\" if it never does",
                )
            });
        }
        Some(_) | None => {
            return finding(
                "setup",
                view.reason.clone(),
                "",
                "it may pass by itself; else see the log of braid run",
            );
        }
    }
    if let Some((_, diagnosis)) = failure {
        return failed(view, diagnosis);
    }
    match (peer.map(|peer| peer.state), peer.and_then(|peer| peer.waiting_for)) {
        (Some(PeerState::Idle), _) => finding(
            "IKE_SA_INIT",
            "no peer has called yet",
            "role",
            "let the peer initiate, and UDP 500 and 4500 pass, or set role = \"initiate\" here (AWS: Startup action = \
             Start)",
        ),
        (_, Some(exchange)) => finding(
            words::exchange(exchange),
            format!("the peer has not answered for {}", seconds(view.since)),
            "remote",
            words::UNREACHABLE,
        ),
        (_, None) => finding("IKE_SA_INIT", view.reason.clone(), "", "ask again in a moment"),
    }
}

fn outer_path(blocked: &Blocked) -> Finding {
    let (key, remedy) = match blocked {
        Blocked::Unresolved { .. } => ("remote", "mend the name or the resolver, or give an address"),
        Blocked::NoRoute { .. } => ("remote", "add a route to the peer's outer address"),
        Blocked::NoInterface { .. } => ("uplink", "name an interface that exists"),
        Blocked::LinkDown { .. } => ("uplink", "set the link up: see its cable or its provider"),
    };
    finding("outer path", blocked.to_string(), key, remedy)
}

//! What `braid doctor` says: per tunnel the step that fails, what either side said, and the remedy.
//!
//! Pure: from control's state, IKE's and the core's counters.

use std::time::{Duration, Instant};

use braid_api::{Stats, TunnelStats};
use braid_ike::{PeerState, PeerStatus};
use serde::{Deserialize, Serialize};

use crate::{
    failover::Obstacle,
    ike::{Ike, words},
    outer::Blocked,
    turn::{State, TunnelView, Turn},
};

/// Packets sent without one coming back that are worth a word.
const ONE_WAY: u64 = 20;
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

/// Looks at one tunnel, or at all. `None` if there is none of this name.
pub fn report(
    turn: &Turn,
    ike: &Ike,
    stats: Option<&Stats>,
    name: Option<&str>,
    now: Duration,
    instant: Instant,
) -> Option<Report> {
    let views = turn.tunnels(now);
    let views = views.iter().filter(|view| name.is_none_or(|name| view.tunnel.name == name));
    let tunnels: Vec<Tunnel> = views
        .map(|view| {
            let counters = stats.into_iter().flat_map(|stats| &stats.tunnels);
            let counters = view.id.and_then(|id| counters.into_iter().find(|stats| stats.tunnel == id));
            let peer = ike.status(&view.tunnel.name, instant);
            Tunnel {
                name: view.tunnel.name.clone(),
                state: view.state.name().to_owned(),
                findings: findings(view, counters, peer.as_ref()).into_iter().collect(),
            }
        })
        .collect();
    if name.is_some() && tunnels.is_empty() {
        return None;
    }
    let mut others = Vec::new();
    if stats.is_none() {
        let remedy = "see the log of braid run, which starts it again by itself";
        others.push(finding("forwarding core", "it does not answer", "", remedy));
    }
    let strangers = ike.strangers().filter(|(at, _)| instant.saturating_duration_since(*at) < RECENT);
    others.extend(strangers.map(|(_, diagnosis)| of_diagnosis(diagnosis)));
    others.dedup();
    Some(Report { tunnels, others })
}

fn finding(step: &str, problem: impl Into<String>, key: &str, remedy: impl Into<String>) -> Finding {
    Finding { step: step.to_owned(), problem: problem.into(), key: key.to_owned(), remedy: remedy.into() }
}

fn of_diagnosis(diagnosis: &braid_ike::Diagnosis) -> Finding {
    let words::Finding { problem, key, remedy } = words::finding(diagnosis);
    let step = words::step(diagnosis.step);
    let step = diagnosis.remote.map_or_else(|| step.to_owned(), |remote| format!("{step} with {remote}"));
    Finding { step, problem, key: key.to_owned(), remedy }
}

fn findings(
    view: &TunnelView<'_>,
    counters: Option<&TunnelStats>,
    peer: Option<&PeerStatus>,
) -> Option<Finding> {
    match view.state {
        State::Up | State::Standby | State::Draining => {
            let counters = counters?;
            (counters.tx_packets >= ONE_WAY && counters.rx_packets == 0).then(|| {
                finding(
                    "traffic",
                    format!("{} packets went out and none came back", counters.tx_packets),
                    "encapsulation",
                    "let ESP pass both ways (UDP 4500, or IP protocol 50 with encapsulation = \"esp\"), and see \
                     that the peer's routes lead back into the tunnel",
                )
            })
        }
        State::Down | State::Connecting => Some(why_not_up(view, peer)),
    }
}

fn why_not_up(view: &TunnelView<'_>, peer: Option<&PeerStatus>) -> Finding {
    match view.obstacle {
        Some(Obstacle::Outer(blocked)) => return outer_path(blocked),
        Some(Obstacle::Negotiating { .. } | Obstacle::Ike { .. }) => {}
        Some(Obstacle::Silent { .. } | Obstacle::HeldDown { .. }) => {
            return finding(
                "traffic",
                view.reason.clone(),
                "probe",
                "see whether the peer's inside address answers to ping; probe = \"off\" if it never does",
            );
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
    if let Some((_, diagnosis)) = peer.and_then(|peer| peer.last_failure.as_ref()) {
        return of_diagnosis(diagnosis);
    }
    let waiting = peer.and_then(|peer| peer.waiting_for).map(|exchange| format!("{exchange:?}"));
    match (peer.map(|peer| peer.state), waiting) {
        (Some(PeerState::Idle), _) => finding(
            "IKE_SA_INIT",
            "no peer has called yet",
            "role",
            "let the peer initiate, or set role = \"initiate\" here (AWS: startup action start)",
        ),
        (_, Some(exchange)) => finding(
            &exchange,
            "the peer has not answered yet",
            "remote",
            "wait a moment; then let UDP 500 and 4500 pass on the way",
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

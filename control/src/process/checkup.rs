//! What `braid doctor` looks at over a moment: echoes of several lengths through each tunnel, and the core's
//! counters before and after them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use braid_api::{Query, Stats, TunnelId};
use tokio::sync::oneshot;

use super::{Control, Pending};
use crate::{
    admin::Response,
    doctor::{self, Echoes, Look},
};

/// For an answer from the other side of the world, and for counters to move.
const LOOK: Duration = Duration::from_secs(1);
/// Tunnels that are sent echoes at once.
const MAX_TUNNELS: usize = 64;
/// Inner packets that may find the way blocked, in bytes, below the tunnel's MTU; the first is as short as an
/// echo over IPv6 can be.
const LENGTHS: [u16; 8] = [64, 576, 1000, 1200, 1280, 1320, 1360, 1400];

/// A look that is under way.
pub(super) struct Checkup {
    tunnel: Option<String>,
    to: oneshot::Sender<Response>,
    before: Stats,
    echoes: BTreeMap<TunnelId, Echoes>,
    due: Instant,
}

impl Control {
    /// The counters were read: sends the echoes, if there is a tunnel that can.
    pub(super) fn begin_checkup(
        &mut self,
        tunnel: Option<String>,
        to: oneshot::Sender<Response>,
        before: Stats,
    ) {
        let mut echoes = BTreeMap::new();
        for view in self.turn.tunnels(self.now()) {
            let wanted = tunnel.as_ref().is_none_or(|name| *name == view.tunnel.name);
            let has_peer = !view.tunnel.peer_inside.is_empty() && !view.tunnel.inside.is_empty();
            let Some(id) = view.id.filter(|_| wanted && has_peer && view.has_sas) else { continue };
            let Some(stats) = before.tunnels.iter().find(|stats| stats.tunnel == id) else { continue };
            let shorter = LENGTHS.into_iter().filter(|len| *len < stats.mtu);
            let asked = shorter.chain([stats.mtu]).collect();
            echoes.insert(id, Echoes { asked, ..Echoes::default() });
            if echoes.len() >= MAX_TUNNELS {
                break;
            }
        }
        for (tunnel, echoes) in &echoes {
            // Twice: one that is lost by chance is no finding.
            for len in echoes.asked.iter().chain(&echoes.asked) {
                self.query(Query::Echo { tunnel: *tunnel, len: *len }, Pending::Echo);
            }
        }
        let due = if echoes.is_empty() { Instant::now() } else { Instant::now() + LOOK };
        self.checkups.push(Checkup { tunnel, to, before, echoes, due });
    }

    /// When [`Control::finish_checkups`] has something to do.
    pub(super) fn checkup_due(&self) -> Option<Instant> {
        self.checkups.iter().map(|checkup| checkup.due).min()
    }

    /// An echo came back; where all have, there is nothing to wait for.
    pub(super) fn note_echo(&mut self, tunnel: TunnelId, len: u16) {
        for checkup in &mut self.checkups {
            if let Some(echoes) = checkup.echoes.get_mut(&tunnel) {
                echoes.back.insert(len);
            }
            if checkup.echoes.values().all(Echoes::is_whole) {
                checkup.due = Instant::now();
            }
        }
    }

    /// Those whose time is over read the counters again.
    pub(super) fn finish_checkups(&mut self) {
        let now = Instant::now();
        let (due, waiting) =
            core::mem::take(&mut self.checkups).into_iter().partition(|checkup| checkup.due <= now);
        self.checkups = waiting;
        let due: Vec<Checkup> = due;
        for checkup in due {
            if self.greeted {
                self.query(Query::Stats, Pending::Checkup(checkup));
            } else {
                self.conclude(checkup, None);
            }
        }
    }

    /// The report.
    pub(super) fn conclude(&self, checkup: Checkup, after: Option<&Stats>) {
        let Checkup { tunnel, to, before, echoes, .. } = checkup;
        let look = Look { before: Some(&before), after, echoes: Some(&echoes) };
        self.send_report(to, tunnel.as_deref(), &look);
    }

    pub(super) fn send_report(&self, to: oneshot::Sender<Response>, tunnel: Option<&str>, look: &Look<'_>) {
        let mut report =
            doctor::report(&self.turn, &self.ike, &self.bgp, look, tunnel, self.now(), Instant::now());
        if let Some(report) = &mut report
            && tunnel.is_none()
        {
            report.others.extend(self.metrics.view().as_ref().and_then(doctor::of_metrics));
        }
        // Whoever hung up does not want to know.
        let _ = to.send(match report {
            Some(report) => super::serve::document(&report),
            None => Response::failed(format!("braid: no tunnel is named {:?}", tunnel.unwrap_or_default())),
        });
    }
}

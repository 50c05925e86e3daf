//! IKE between the loop's sockets and clocks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use braid_api::{Event as CoreEvent, Query, StashValue, Stats, Verdict};

use super::{Control, Failure, Pending, sleep_until};
use crate::{ike::Now, turn::Event};

/// How long a gateway that stops waits for its peers.
const LEAVE_WITHIN: Duration = Duration::from_millis(300);

impl Control {
    /// One event into the turn, and what IKE has to know of it.
    pub(super) fn handle(&mut self, event: Event) {
        let now = Instant::now();
        let outer = matches!(event, Event::Outer(_) | Event::Configured { .. });
        let hello = match &event {
            Event::CoreHello(hello) => Some(hello.stash_entries),
            Event::CoreGone => {
                self.ike.handle_core_gone(now);
                self.punt.clear();
                None
            }
            Event::Applied(epoch) => {
                self.ike.handle_answer(*epoch, true, now);
                None
            }
            Event::Rejected(rejected) => {
                self.ike.handle_answer(rejected.epoch, false, now);
                None
            }
            Event::Core(event) => {
                self.tell_ike(event, now);
                None
            }
            _ => None,
        };
        let adopted = match &event {
            Event::CoreHello(hello) => Some(!hello.tunnels.is_empty()),
            _ => None,
        };
        self.turn.handle(event, self.now());
        if let Some(adopted) = adopted {
            let sessions = self.turn.memory().sessions.clone();
            self.bgp.handle_hello(adopted, &sessions, now);
        }
        if outer {
            self.ike.handle_outer(&self.turn, now);
        }
        match hello {
            Some(0) => self.start_ike(Vec::new(), None),
            Some(_) => self.query(Query::Stash { from: 0 }, Pending::Stash(Vec::new())),
            None => {}
        }
    }

    fn tell_ike(&mut self, event: &CoreEvent, now: Instant) {
        match event {
            CoreEvent::SaLifetime { sa, hard: false } => self.ike.handle_sa_lifetime(*sa, now),
            CoreEvent::EndpointMoved { tunnel, remote } => {
                if let Some(name) = self.turn.tunnel_name(*tunnel) {
                    self.ike.handle_moved(name, *remote, now);
                }
            }
            CoreEvent::Traffic(traffic) => self.ike.handle_traffic(traffic, now),
            CoreEvent::Liveness { tunnel, verdict: Verdict::Down, .. } => {
                let Some(name) = self.turn.tunnel_name(*tunnel).map(str::to_owned) else { return };
                if self.is_wireguard(&name) {
                    // A peer that has begun anew knows nothing of the session, and says so to nobody: without this
                    // boringtun would find out after fifteen seconds.
                    self.query(Query::Handshake(*tunnel), Pending::Echo);
                }
                self.ike.handle_silence(&name, now);
            }
            CoreEvent::SaLifetime { hard: true, .. }
            | CoreEvent::Liveness { .. }
            | CoreEvent::WireGuard { .. }
            | CoreEvent::Echo { .. }
            | CoreEvent::BfdLink { .. }
            | CoreEvent::PathMtu { .. } => {}
        }
    }

    /// More of the stash; it ends where nothing more comes.
    pub(super) fn read_stash(&mut self, mut read: Vec<(u64, StashValue)>, more: Vec<(u64, StashValue)>) {
        let next = more.last().and_then(|(key, _)| key.checked_add(1));
        read.extend(more);
        match next {
            Some(from) => self.query(Query::Stash { from }, Pending::Stash(read)),
            None => self.query(Query::Stats, Pending::Ages(read)),
        }
    }

    pub(super) fn start_ike(&mut self, stash: Vec<(u64, StashValue)>, stats: Option<&Stats>) {
        // A clock before 1970 is wrong anyway: no certificate is valid then.
        let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = self.both_clocks();
        self.ike.start(&mut self.turn, self.generation, stash, stats, unix_time, now);
    }

    /// Lets IKE do what can be done. Its datagrams leave first: the stash that goes with one is older than
    /// what the transactions behind it store or forget.
    pub(super) async fn drive_ike(&mut self) -> Result<(), Failure> {
        let now = self.both_clocks();
        let datagrams = self.ike.drive(&mut self.turn, now);
        let rows = self.ike.take_key_log();
        self.key_log.iter_mut().for_each(|log| log.write(&rows));
        datagrams.into_iter().for_each(|datagram| self.punt.send(datagram));
        self.ike.take_computations().into_iter().for_each(|task| self.worker.compute(task));
        self.run_effects().await
    }

    /// Tells all peers that their SAs end, and waits a little for their answers. The core carries it still.
    pub(super) async fn take_leave(&mut self) -> Result<(), Failure> {
        // BGP first, while its tunnels are there.
        self.leave_bgp().await;
        let until = Instant::now() + LEAVE_WITHIN;
        self.ike.close(Instant::now());
        loop {
            self.drive_ike().await?;
            if self.ike.is_closed() || Instant::now() >= until {
                return Ok(());
            }
            let deadline = self.ike.poll_timeout().map_or(until, |at| at.min(until));
            tokio::select! {
                biased;
                incoming = self.core.next() => {
                    if let Some(event) = self.handle_core(incoming) {
                        self.handle(event);
                        self.run_effects().await?;
                    }
                }
                (life, computed) = self.worker.next() => {
                    self.ike.handle_computed(life, computed, Instant::now());
                }
                received = self.punt.next() => self.ike.handle_datagram(&received, Instant::now()),
                () = sleep_until(Some(deadline)) => self.ike.handle_timeout(Instant::now()),
            }
        }
    }

    fn both_clocks(&self) -> Now {
        let instant = Instant::now();
        Now { instant, turn: instant - self.start }
    }
}

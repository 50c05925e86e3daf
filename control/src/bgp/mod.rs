//! BGP between the loop's sockets and clocks: [`speaker`] decides, [`net`] moves octets, [`settings`] and
//! [`reach`] translate, [`view`] shows.

mod aws;
mod net;
mod reach;
mod settings;
mod speaker;
#[cfg(test)]
mod speaker_tests;
mod trouble;
mod view;

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use braid_api::BfdLink;
pub use net::Unreached;
pub(crate) use net::remedy;
pub use settings::Endpoint;
pub use trouble::{Trouble, Why};
pub use view::{NeighborView, PathView, RouteAnswer};

use net::{Net, NetEvent};
use speaker::{Command, Speaker};

use crate::{
    config::{self, Config},
    turn::{self, Learned, Turn},
};

/// Between two tries to listen where that was not possible, or where addresses may have changed.
const LISTEN_INTERVAL: Duration = Duration::from_secs(1);

/// The speaker, if one is configured, with its sockets.
pub struct Bgp {
    speaker: Option<Speaker>,
    /// As configured.
    config: Option<config::Bgp>,
    net: Net,
    seed: u64,
    listen_at: Option<Instant>,
    /// Neighbors of the earlier life, if there was one; taken at the core's first hello.
    begun: bool,
    /// What an earlier speaker chose is void.
    reset: bool,
    offers_seen: Option<u64>,
    told_complete: bool,
    /// BFD sessions that the core was told to have.
    bfd_told: Option<Vec<BfdLink>>,
    /// And is to have.
    bfd_wanted: Option<Vec<BfdLink>>,
}

impl Bgp {
    /// Nothing yet. `seed` is for jitter.
    pub fn new(seed: u64) -> Self {
        Bgp {
            speaker: None,
            config: None,
            net: Net::new(),
            seed,
            listen_at: None,
            begun: false,
            reset: false,
            offers_seen: None,
            told_complete: false,
            bfd_told: None,
            bfd_wanted: None,
        }
    }

    /// A configuration is in force.
    pub fn configure(&mut self, config: &Config, now: Instant) {
        let before = core::mem::replace(&mut self.config, config.bgp.clone());
        let Some(bgp) = &config.bgp else {
            self.end("no longer configured", now);
            return;
        };
        let another =
            |speaker: &Speaker| before.as_ref().is_none_or(|before| speaker.is_another(before, bgp));
        if self.speaker.as_ref().is_some_and(another) {
            self.end("configured anew", now);
        }
        match &mut self.speaker {
            Some(speaker) => speaker.configure(config, bgp, now),
            None => {
                let mut speaker = Speaker::new(config, bgp, self.seed, now);
                if self.begun {
                    speaker.begin(None, now);
                }
                self.speaker = Some(speaker);
                self.offers_seen = None;
            }
        }
        self.told_complete = false;
        // Before the core is there, addresses are not either.
        self.listen_at = self.begun.then_some(now);
        self.want_bfd();
        self.run_commands();
    }

    /// Which BFD sessions the core is to have. Nothing is said before addresses are there: what an earlier life
    /// wanted goes on until then.
    fn want_bfd(&mut self) {
        if self.begun {
            let speaker = self.speaker.as_mut();
            self.bfd_wanted =
                Some(speaker.map_or_else(Vec::new, |speaker| speaker.bfd_links(net::local_towards)));
        }
    }

    /// Ends the speaker.
    fn end(&mut self, why: &str, now: Instant) {
        if let Some(speaker) = &mut self.speaker {
            speaker.stop(why, now);
            self.run_commands();
            self.reset = true;
            self.told_complete = false;
        }
        self.speaker = None;
        self.listen_at = None;
        drop(self.net.listen(core::iter::empty()));
        self.want_bfd();
    }

    /// The core is there; `adopted` if it has worked before this life of control.
    pub fn handle_hello(&mut self, adopted: bool, had_sessions: &BTreeSet<String>, now: Instant) {
        if core::mem::replace(&mut self.begun, true) {
            return;
        }
        let had_sessions = Some(had_sessions).filter(|sessions| adopted && !sessions.is_empty());
        if let Some(speaker) = &mut self.speaker {
            speaker.begin(had_sessions, now);
            self.listen_at = Some(now);
        }
        self.want_bfd();
        self.run_commands();
    }

    /// The next event of a connection. Safe to cancel.
    pub async fn next(&mut self) -> Happened {
        Happened(self.net.next().await)
    }

    /// Takes it in.
    pub fn handle(&mut self, happened: Happened, now: Instant) {
        let Some(speaker) = &mut self.speaker else { return };
        match happened.0 {
            NetEvent::Accepted(stream, from) => {
                let Ok(local) = stream.local_addr() else { return };
                let Some(number) = speaker.neighbor_at(from.ip(), local.ip()) else {
                    tracing::info!("{from} is no BGP neighbor and tried to be one");
                    return;
                };
                let Some(id) = speaker.accepted(number, now) else { return };
                let Some(peer) = speaker.peers.get(&number) else { return };
                if self.net.adopt((number, id), stream, &peer.endpoint).is_err() {
                    speaker.closed(number, id, now);
                }
                speaker.local_address(number, local.ip());
                speaker.drain(number, now);
            }
            NetEvent::Connected(key, local) if self.net.knows(key) => {
                speaker.local_address(key.0, local);
                speaker.connected(key.0, key.1, now);
            }
            NetEvent::Received(key, octets) if self.net.knows(key) => {
                speaker.received(key.0, key.1, &octets, now);
            }
            NetEvent::Unreached(key, why) if self.net.knows(key) => {
                self.net.close(key);
                speaker.unreached(key.0, why);
                speaker.closed(key.0, key.1, now);
            }
            NetEvent::Closed(key) if self.net.knows(key) => {
                self.net.close(key);
                speaker.closed(key.0, key.1, now);
            }
            NetEvent::Stuck(key) if self.net.knows(key) => speaker.stuck(key.0, key.1, now),
            NetEvent::Sent(number) => speaker.sent(number),
            NetEvent::Connected(..)
            | NetEvent::Received(..)
            | NetEvent::Unreached(..)
            | NetEvent::Closed(_)
            | NetEvent::Stuck(_) => {}
        }
        self.run_commands();
    }

    /// When [`Bgp::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let speaker = self.speaker.as_ref()?;
        [speaker.poll_timeout(), self.listen_at].into_iter().flatten().min()
    }

    /// Our addresses on which neighbors find nobody, and what the system says.
    pub fn deaf(&self) -> impl Iterator<Item = (SocketAddr, &io::Error)> {
        self.net.deaf()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(speaker) = &mut self.speaker else { return };
        let is_listening = self.listen_at.is_some_and(|at| at <= now);
        if is_listening {
            self.listen_at = Some(now + LISTEN_INTERVAL);
            for line in self.net.listen(speaker.peers.values().map(|peer| &peer.endpoint)) {
                tracing::warn!("{line}");
            }
        }
        speaker.handle_timeout(now);
        if is_listening {
            self.want_bfd();
        }
        self.run_commands();
    }

    /// Whether [`Bgp::work`] has something to do.
    pub fn has_work(&self) -> bool {
        let complete = match &self.speaker {
            Some(speaker)
                if speaker.sessions_changed || speaker.has_work(|number| self.net.has_room(number)) =>
            {
                return true;
            }
            Some(speaker) => speaker.is_complete(),
            None => self.begun,
        };
        self.reset || complete && !self.told_complete || self.bfd_wanted != self.bfd_told
    }

    /// Tells the speaker which links are up and which tunnels are offered to traffic, if that has changed.
    pub fn follow(&mut self, turn: &Turn, now: Instant) {
        if self.offers_seen == Some(turn.offer_changes()) {
            return;
        }
        self.offers_seen = Some(turn.offer_changes());
        let (Some(speaker), Some(config)) = (&mut self.speaker, &self.config) else { return };
        speaker.set_links(turn.links(), now);
        speaker.set_bfd_down(turn.bfd_down(), now);
        let tunnels = || config.neighbors.iter().filter_map(config::Neighbor::tunnel);
        for tunnel in tunnels() {
            speaker.offer(tunnel, turn.is_offered(tunnel), turn.awaits_bgp(tunnel), now);
        }
        let drained = tunnels().filter(|tunnel| turn.is_drained(tunnel)).map(str::to_owned);
        speaker.set_drained(drained.collect());
        let yielding = tunnels().filter(|tunnel| turn.is_yielding(tunnel)).map(str::to_owned);
        speaker.set_yielding(yielding.collect());
        self.run_commands();
    }

    /// Does a portion of the work; what of it the turn has to know, if anything. Next hops that have failed are a
    /// portion of their own: it takes one message to leave them, and a while to choose anew for their prefixes.
    pub fn work(&mut self, now: Instant) -> Option<turn::Event> {
        let speaker = self.speaker.as_mut().filter(|_| !self.reset);
        if let Some(failed) = speaker.and_then(Speaker::take_failed) {
            return Some(turn::Event::Learned(Learned { failed: Some(failed), ..Learned::default() }));
        }
        let reset = core::mem::take(&mut self.reset);
        let mut learned = Learned { reset, ..Learned::default() };
        match &mut self.speaker {
            Some(speaker) => {
                speaker.work(|number| self.net.has_room(number), now);
                learned.routes = speaker.take_changes();
                learned.complete = speaker.is_complete();
                if core::mem::take(&mut speaker.sessions_changed) {
                    learned.sessions = Some(speaker.established());
                    learned.silent = Some(speaker.silent.clone());
                }
            }
            None => learned.complete = self.begun,
        }
        self.run_commands();
        let news = learned.complete && !core::mem::replace(&mut self.told_complete, learned.complete);
        if self.bfd_wanted != self.bfd_told {
            learned.bfd_links.clone_from(&self.bfd_wanted);
            self.bfd_told.clone_from(&self.bfd_wanted);
        }
        if reset {
            learned.silent.get_or_insert_default();
        }
        let something = reset
            || news
            || !learned.routes.is_empty()
            || learned.sessions.is_some()
            || learned.bfd_links.is_some();
        something.then_some(turn::Event::Learned(learned))
    }

    /// Ends all sessions, telling the peers.
    pub fn stop(&mut self, now: Instant) {
        if let Some(speaker) = &mut self.speaker {
            speaker.stop("the gateway stops", now);
        }
        self.run_commands();
    }

    /// Waits until the last words have left, but not for long.
    pub async fn flush(&mut self) {
        self.net.flush().await;
    }

    fn run_commands(&mut self) {
        let Some(speaker) = &mut self.speaker else { return };
        while let Some(command) = speaker.poll_command() {
            match command {
                Command::Connect(number, id) => {
                    if let Some(peer) = speaker.peers.get(&number) {
                        self.net.connect((number, id), &peer.endpoint);
                    }
                }
                Command::Transmit(number, id, octets) => self.net.transmit((number, id), octets),
                Command::Close(number, id) => self.net.close((number, id)),
            }
        }
        for said in speaker.take_said() {
            if said.warning {
                tracing::warn!("{}", said.line);
            } else {
                tracing::info!("{}", said.line);
            }
        }
    }
}

/// Something happened to a connection.
#[derive(Debug)]
pub struct Happened(NetEvent);

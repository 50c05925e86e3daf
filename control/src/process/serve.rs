//! Answers to the administration socket, and reloads.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use braid_api::{Answer, Flow, Query, Stats};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{Asked, Control, Loaded, Pending, START, Token, load, lookups_of};
use crate::{
    admin::{Request, Response},
    config::{Files, Remote},
    doctor::Look,
    in_force::InForce,
    status,
    turn::{Event, State},
};

/// Exit status of a command that met a wrong configuration.
const WRONG_CONFIGURATION: u8 = 2;

impl Control {
    /// Answers a question, or makes it an event.
    pub(super) fn answer(&mut self, (request, answer): Asked) -> Option<Event> {
        self.documents += 1;
        match request {
            Request::Status if self.greeted => self.query(Query::Stats, Pending::Status(answer)),
            Request::Status => self.answer_without_core(Pending::Status(answer)),
            Request::Routes { asked, why } => {
                let routes = status::routes(&self.turn, &self.bgp, asked.as_ref(), why);
                // Whoever hung up does not want to know.
                let _ = answer.send(document(&routes));
            }
            Request::Doctor { tunnel } if self.greeted => {
                self.query(Query::Stats, Pending::Doctor(tunnel, answer));
            }
            Request::Doctor { tunnel } => self.answer_without_core(Pending::Doctor(tunnel, answer)),
            Request::Path { dst, src, protocol, sport, dport } => {
                let src = src.unwrap_or_else(|| self.source_for(dst));
                let flow = Flow { src, dst, protocol, src_port: sport, dst_port: dport };
                let pending = Pending::Path(flow, answer);
                if src.is_ipv4() == dst.is_ipv4() && self.greeted {
                    self.query(Query::Path(flow), pending);
                } else if let Pending::Path(_, answer) = pending {
                    let line = if self.greeted {
                        "braid: source and destination are of different families"
                    } else {
                        "braid: the forwarding core does not answer"
                    };
                    let _ = answer.send(Response::failed(line));
                }
            }
            Request::Reload => self.reload(Some(answer)),
            Request::Drain { tunnel } => {
                let token = self.wait_for(answer);
                return Some(Event::Drain { tunnel, token });
            }
            Request::Undrain { tunnel } => {
                let token = self.wait_for(answer);
                return Some(Event::Undrain { tunnel, token });
            }
            Request::Rekey { tunnel, ike: false } if self.is_wireguard(&tunnel) => {
                let id = self.turn.tunnels(self.now()).iter().find(|view| view.tunnel.name == tunnel)?.id;
                match id.filter(|_| self.greeted) {
                    Some(id) => self.query(Query::Handshake(id), Pending::Handshake(answer)),
                    None => {
                        drop(answer.send(Response::failed("braid: the forwarding core does not have it")))
                    }
                }
            }
            Request::Rekey { tunnel, ike } => {
                let begun = self.ike.rekey(&tunnel, ike, std::time::Instant::now());
                // Whoever hung up does not want to know.
                let _ = answer.send(match begun {
                    Ok(()) => Response::Ok("begun".into()),
                    Err(why) => Response::failed(format!("braid: {why}")),
                });
            }
        }
        None
    }

    pub(super) fn is_wireguard(&self, name: &str) -> bool {
        let tunnels = &self.turn.config().tunnels;
        tunnels.iter().any(|tunnel| tunnel.name == name && tunnel.wireguard().is_some())
    }

    fn wait_for(&mut self, answer: oneshot::Sender<Response>) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.waiting.insert(token, answer);
        token
    }

    fn source_for(&self, dst: IpAddr) -> IpAddr {
        let config = self.turn.config();
        let sources = config.gateway.source.iter().copied();
        let inside = config.tunnels.iter().flat_map(|tunnel| &tunnel.inside).map(ipnet::IpNet::addr);
        sources.chain(inside).find(|source| source.is_ipv4() == dst.is_ipv4()).unwrap_or(match dst {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        })
    }

    /// The core has answered.
    pub(super) fn pass_answer(&mut self, pending: Pending, answer: Answer) {
        match (pending, answer) {
            (Pending::Status(to), Answer::Stats(stats)) => self.send_status(to, Some(&stats)),
            (Pending::Scrape(to), Answer::Stats(stats)) => self.send_scrape(to, Some(&stats)),
            (Pending::Doctor(tunnel, to), Answer::Stats(stats)) => self.begin_checkup(tunnel, to, stats),
            (Pending::Checkup(checkup), Answer::Stats(stats)) => self.conclude(checkup, Some(&stats)),
            (Pending::Checkup(checkup), _) => self.conclude(checkup, None),
            (Pending::Scrape(to), _) => self.send_scrape(to, None),
            (Pending::Path(flow, to), Answer::Path(answer)) => {
                let _ = to.send(document(&status::way(&self.turn, &flow, &answer, self.now())));
            }
            (Pending::Handshake(to), Answer::Handshake) => {
                let _ = to.send(Response::Ok("begun".into()));
            }
            (Pending::Turn | Pending::Stash(_) | Pending::Ages(_) | Pending::Echo, _) => {}
            (
                Pending::Status(to) | Pending::Path(_, to) | Pending::Doctor(_, to) | Pending::Handshake(to),
                _,
            ) => {
                let _ = to.send(Response::failed("braid: the forwarding core answered another question"));
            }
        }
    }

    /// There is no core that could.
    pub(super) fn answer_without_core(&self, pending: Pending) {
        match pending {
            Pending::Turn | Pending::Stash(_) | Pending::Ages(_) | Pending::Echo => {}
            Pending::Status(to) => self.send_status(to, None),
            Pending::Scrape(to) => self.send_scrape(to, None),
            Pending::Doctor(tunnel, to) => self.send_report(to, tunnel.as_deref(), &Look::default()),
            Pending::Checkup(checkup) => self.conclude(checkup, None),
            Pending::Path(_, to) | Pending::Handshake(to) => {
                let _ = to.send(Response::failed("braid: the forwarding core does not answer"));
            }
        }
    }

    fn send_status(&self, to: oneshot::Sender<Response>, stats: Option<&Stats>) {
        let status = status::status(&self.turn, &self.ike, &self.bgp, stats, self.now());
        // Whoever hung up does not want to know.
        let _ = to.send(document(&status::Status { metrics: self.metrics.view(), ..status }));
    }

    /// Reads the configuration again, beside the loop: a large one takes a while.
    pub(super) fn reload(&mut self, answer: Option<oneshot::Sender<Response>>) {
        let token = match answer {
            Some(answer) => self.wait_for(answer),
            None => {
                self.next_token += 1;
                Token(self.next_token)
            }
        };
        let (file, allowed) = (self.args.config.clone(), self.args.insecure_manual_keys);
        let workers = self.workers;
        let loaded = self.loaded.clone();
        tokio::task::spawn_blocking(move || {
            let mut files = Files::default();
            let config = load(&mut files, &file, allowed);
            let config = config.map(|config| (config, InForce { files, workers }.keep_or_warn()));
            // Nobody listens any more when control ends.
            let _ = loaded.send(Loaded { token, config });
        });
    }

    pub(super) fn configured(&mut self, loaded: Loaded) -> Option<Event> {
        let Loaded { token, config } = loaded;
        let (config, kept) = match config {
            Ok(loaded) => loaded,
            Err(errors) => {
                self.refuse(token, errors.iter().map(ToString::to_string).collect());
                return None;
            }
        };
        let objections = self.turn.objections(&config);
        if !objections.is_empty() {
            self.refuse(token, objections.iter().map(ToString::to_string).collect());
            return None;
        }
        self.lookups = lookups_of(&config);
        self.ask_names(|_| true);
        let outer = self.look(Some(&config));
        // Should our first plan not be in force yet, it is another's by then.
        self.kept.remove(&START);
        self.kept.insert(token, kept);
        Some(Event::Configured { config: config.into(), outer, token })
    }

    fn refuse(&mut self, token: Token, lines: Vec<String>) {
        for line in &lines {
            tracing::warn!("not reloaded: {line}");
        }
        if let Some(answer) = self.waiting.remove(&token) {
            let _ = answer.send(Response::Failed { lines, status: WRONG_CONFIGURATION });
        }
    }

    pub(super) fn reply(&mut self, token: Token, result: Result<String, Vec<String>>) {
        // It was refused, or is in the launcher's hands.
        self.kept.remove(&token);
        // The lookups follow the configuration, which a failed reload has put back.
        self.lookups = lookups_of(self.turn.config());
        let Some(answer) = self.waiting.remove(&token) else {
            if let Err(lines) = result {
                lines.iter().for_each(|line| tracing::warn!("not reloaded: {line}"));
            }
            return;
        };
        let _ = answer.send(match result {
            Ok(line) => Response::Ok(line.into()),
            Err(lines) => Response::Failed { lines, status: 1 },
        });
    }

    /// Names of tunnels that are not up are asked for again.
    pub(super) fn refresh_names(&mut self) {
        let is_name = |lookup: &crate::watch::Lookup| matches!(lookup.remote, Some(Remote::Name(_)));
        if !self.lookups.values().any(is_name) {
            return;
        }
        let views = self.turn.tunnels(self.now());
        let down: BTreeSet<String> = views
            .iter()
            .filter(|view| matches!(view.state, State::Down | State::Connecting))
            .map(|view| view.tunnel.name.clone())
            .collect();
        if !down.is_empty() {
            self.ask_names(|tunnel| down.contains(tunnel));
        }
    }

    fn ask_names(&mut self, of: impl Fn(&str) -> bool) {
        let has_name = |(tunnel, lookup): &(&String, &crate::watch::Lookup)| {
            matches!(lookup.remote, Some(Remote::Name(_))) && of(tunnel)
        };
        for (_, lookup) in self.lookups.iter().filter(has_name) {
            if let Some(Remote::Name(name)) = &lookup.remote {
                self.names.ask(name, lookup.local);
            }
        }
    }
}

pub(super) fn document<T: Serialize>(document: &T) -> Response {
    match serde_json::to_value(document) {
        Ok(value) => Response::Ok(value),
        Err(error) => Response::failed(format!("braid: {error}")),
    }
}

//! Which tunnels are offered to traffic.

use core::time::Duration;

use braid_api::{Direction, Op, TunnelId};

use super::{Effect, Failure, Note, Offer, Session, Token, Turn};
use crate::{config::Role, failover::Obstacle};

impl Turn {
    /// Masks and unmasks what was touched, in one transaction: the first of the turn.
    pub(super) fn offer(&mut self, now: Duration) {
        let mut ops = Vec::new();
        let mut unmasked = Vec::new();
        for index in core::mem::take(&mut self.touched) {
            let obstacle = self.obstacle(index, now);
            let number = self.number(index);
            let drained = self
                .config
                .tunnels
                .get(index)
                .is_some_and(|tunnel| self.memory.drained.contains(&tunnel.name));
            let Some(runtime) = self.tunnels.get_mut(index) else { continue };
            if runtime.health.is_silent() || runtime.silent_neighbor.is_some() {
                self.silent.insert(index);
            } else {
                self.silent.remove(&index);
            }
            match (runtime.offer, &obstacle, number) {
                (Offer::Live | Offer::Unmasking(_), Some(_), number) => {
                    ops.extend(number.map(Op::Mask));
                    runtime.offer = Offer::Masked;
                    runtime.draining = false;
                }
                (Offer::Masked, None, Some(id)) => {
                    // A mask does not end a drain; which of both the core holds, it need not say.
                    ops.push(if drained { Op::Drain(id) } else { Op::Undrain(id) });
                    ops.push(Op::Unmask(id));
                    runtime.draining = drained;
                    unmasked.push((index, id));
                }
                (Offer::Live | Offer::Unmasking(_), None, Some(id)) if drained != runtime.draining => {
                    ops.push(if drained { Op::Drain(id) } else { Op::Undrain(id) });
                    runtime.draining = drained;
                }
                (Offer::Masked, Some(_), _) | (_, None, _) => {}
            }
            self.record(index, obstacle, now);
            self.arm(index, now);
        }
        if ops.is_empty() {
            return;
        }
        self.offer_changes += 1;
        let Some(core) = &mut self.core else { return };
        let transaction = core.transaction(ops);
        for (index, id) in unmasked {
            if let Some(runtime) = self.tunnels.get_mut(index) {
                runtime.offer = Offer::Unmasking(transaction.epoch);
                core.unmasking.entry(transaction.epoch).or_default().push(id);
            }
        }
        self.effects.push(Effect::Transaction(transaction));
    }

    /// What stands against offering a tunnel.
    fn obstacle(&self, index: usize, now: Duration) -> Option<Obstacle> {
        if let Some(reason) = self.refused.get(&index) {
            return Some(Obstacle::Refused(*reason));
        }
        let runtime = self.tunnels.get(index)?;
        let Some(core) = &self.core else { return Some(Obstacle::NoCore) };
        let Some(id) = self.desired.ids.get(index).copied().flatten() else {
            return Some(runtime.health.obstacle(now).unwrap_or(Obstacle::NoPlan));
        };
        if !core.mirror.held.contains(&id) || self.number(index) != Some(id) {
            return Some(if self.has_plan_in_force() { Obstacle::NotInstalled } else { Obstacle::NoPlan });
        }
        let is_ike = self.config.tunnels.get(index).is_some_and(|tunnel| tunnel.ike().is_some());
        let is_wireguard = self.desired.tables.wireguard.contains_key(&id);
        let sas = match (is_ike, is_wireguard) {
            (true, _) => self.ike_obstacle(index, id),
            (false, true) => self.session_obstacle(index),
            (false, false) => self.sa_obstacle(id),
        };
        if let Some(obstacle) = sas {
            // A link that is down is why nothing is negotiated.
            return Some(runtime.health.blocked().unwrap_or(obstacle));
        }
        let knows_peer = is_ike
            || is_wireguard
            || self.desired.tables.tunnels.get(&id).is_some_and(|tunnel| tunnel.remote.is_some());
        if !knows_peer && runtime.heard_from.is_none() {
            return Some(runtime.health.obstacle(now).unwrap_or(Obstacle::NoPeer));
        }
        if runtime.unexplained {
            return Some(Obstacle::NotInstalled);
        }
        runtime.health.obstacle(now)
    }

    fn session_obstacle(&self, index: usize) -> Option<Obstacle> {
        let runtime = self.tunnels.get(index)?;
        let by_peer = self.config.tunnels.get(index)?.role == Role::Respond;
        match (runtime.session, runtime.offer) {
            (Session::Up, _) | (Session::Unknown, Offer::Live | Offer::Unmasking(_)) => None,
            (Session::Lost, _) => Some(Obstacle::NoSession { by_peer, lost: true }),
            (Session::None, _) | (Session::Unknown, Offer::Masked) => {
                Some(Obstacle::NoSession { by_peer, lost: false })
            }
        }
    }

    fn sa_obstacle(&self, id: TunnelId) -> Option<Obstacle> {
        let core = self.core.as_ref()?;
        let mut waiting = false;
        for direction in [Direction::In, Direction::Out] {
            let Some(spec) = self.desired.tables.sas.get(&(id, direction)) else {
                return Some(Obstacle::NotInstalled);
            };
            if core.mirror.holds_sa(id, direction, spec) {
                continue;
            }
            if self.memory.keys.is_used(&spec.digest) && !core.is_installing(id, direction) {
                return Some(Obstacle::KeysUsed);
            }
            waiting = true;
        }
        waiting.then_some(Obstacle::NotInstalled)
    }

    /// Notes a change, for the log and for status.
    fn record(&mut self, index: usize, obstacle: Option<Obstacle>, now: Duration) {
        let (Some(runtime), Some(tunnel)) = (self.tunnels.get_mut(index), self.config.tunnels.get(index))
        else {
            return;
        };
        if runtime.obstacle == obstacle {
            return;
        }
        let carried = runtime.obstacle.is_none();
        let changed = match (&runtime.obstacle, &obstacle) {
            (Some(before), Some(after)) => before.cause() != after.cause(),
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        };
        if changed {
            self.offer_changes += 1;
            runtime.since = now;
            let tunnel = tunnel.name.clone();
            match &obstacle {
                None => self.effects.push(Effect::Note(Note::Up { tunnel })),
                Some(Obstacle::HeldDown { failures, .. }) => {
                    self.effects.push(Effect::Note(Note::Watched { tunnel, failures: *failures }));
                }
                Some(why) if carried || !why.is_passing() => {
                    self.effects.push(Effect::Note(Note::Down { tunnel, why: why.clone() }));
                }
                Some(_) => {}
            }
        }
        if carried && let Some(why) = &obstacle {
            runtime.failovers += 1;
            *runtime.causes.entry(why.cause()).or_default() += 1;
            let by_core = matches!(why, Obstacle::Silent { .. } | Obstacle::Outer(_));
            let stages = runtime.stages.take().filter(|_| by_core);
            let failure = Failure { at: now, why: why.clone(), stages, converged: None };
            runtime.last_failure = Some(Box::new(failure));
            self.converging.insert(index);
        }
        if obstacle.is_none() {
            runtime.stages = None;
        }
        runtime.obstacle = obstacle;
    }

    /// Sets the tunnel's timer.
    fn arm(&mut self, index: usize, now: Duration) {
        let Some(runtime) = self.tunnels.get_mut(index) else { return };
        let deadline = runtime.health.deadline().filter(|deadline| *deadline > now);
        if deadline == runtime.deadline {
            return;
        }
        if let Some(old) = core::mem::replace(&mut runtime.deadline, deadline) {
            self.deadlines.remove(&(old, index));
        }
        self.deadlines.extend(deadline.map(|deadline| (deadline, index)));
    }

    pub(super) fn handle_drain(&mut self, name: String, drain: bool, token: Token) {
        let Some(index) = self.by_name.get(&name).copied() else {
            let known: Vec<&str> = self.by_name.keys().map(String::as_str).take(12).collect();
            let line = format!("no tunnel is named {name:?}; known: {}", known.join(", "));
            self.effects.push(Effect::Reply(token, Err(vec![line])));
            return;
        };
        let changed =
            if drain { self.memory.drained.insert(name.clone()) } else { self.memory.drained.remove(&name) };
        if changed {
            self.offer_changes += 1;
            self.effects.push(Effect::RememberLater);
            self.touched.insert(index);
        }
        let acts = self
            .tunnels
            .get(index)
            .is_some_and(|runtime| runtime.offer != Offer::Masked && runtime.draining != drain);
        let id = self.desired.ids.get(index).copied().flatten();
        let alone = drain && id.is_some_and(|id| self.is_last(id, &self.carrying()));
        match &mut self.core {
            Some(core) if changed && acts => {
                let line =
                    if alone { "done, but no other tunnel is up: it goes on carrying" } else { "done" };
                // The offers of this turn are its next transaction.
                core.await_next(token, line);
            }
            _ => {
                let line = match (changed, drain) {
                    (true, true) => "it carries nothing now, and will not when it comes up",
                    (true, false) => "it will carry traffic when it comes up",
                    (false, true) => "it was drained already",
                    (false, false) => "it was not drained",
                };
                self.effects.push(Effect::Reply(token, Ok(line.to_owned())));
            }
        }
    }
}

//! SAs that IKE negotiates: into the core in transactions of their own, out of it again, and what they mean
//! for the tunnels.
//!
//! They stand beside the desired tables, which know SAs of fixed keys only: the negotiation decides when an SA
//! comes and goes. With each SA a note is kept in the core's stash, by which the next life of control tells
//! which child it belongs to and by which path its tunnel is reached.

use core::{net::SocketAddr, time::Duration};
use std::{collections::BTreeMap, sync::Arc};

use braid_api::{Direction, Epoch, Op, Sa, SaId, SecretKey, Selectors, Spi, StashValue, Suite, TunnelId};

use super::{Effect, Turn};
use crate::{desired::Negotiated, failover::Obstacle};

/// Notes of SAs in the stash have this bit in their key, IKE's own values have not.
pub(crate) const NOTE: u64 = 1 << 63;

/// What IKE wants done in the core.
#[derive(Debug)]
pub enum IkeOp {
    /// Installs an SA.
    Install {
        /// Whose, by name.
        tunnel: String,
        /// The path that goes with it.
        negotiated: Negotiated,
        /// From or to the peer.
        direction: Direction,
        /// On the wire.
        spi: Spi,
        /// Encryption and integrity.
        suite: Suite,
        /// Keying material.
        key: SecretKey,
        /// Extended sequence numbers.
        esn: bool,
        /// Anti-replay window in packets.
        replay_window: u32,
        /// Accepted inner addresses.
        selectors: Selectors,
        /// For the next life of control.
        note: StashValue,
    },
    /// Removes an SA.
    Remove(SaId),
    /// The peer is reached by another path.
    Move {
        /// Which, by name.
        tunnel: String,
        /// From now on.
        negotiated: Negotiated,
    },
    /// Changes the note of an SA.
    Note(SaId, StashValue),
    /// Stores a value.
    Stash(u64, StashValue),
    /// Forgets a value.
    Forget(u64),
}

/// Where a tunnel stands with IKE.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum IkeState {
    /// Nothing was heard of IKE since the core was found.
    #[default]
    Unknown,
    /// It has no SAs yet.
    Negotiating {
        /// The peer has to begin.
        by_peer: bool,
    },
    /// It has none, and this is why.
    Failed {
        /// One word.
        cause: &'static str,
        /// In words.
        reason: String,
    },
    /// It has a pair that works.
    Up,
}

/// The core does not hold the tunnel, so that nothing of the transaction was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotHeld;

/// A transaction on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Carried {
    /// Named by the answer.
    pub epoch: Epoch,
    /// Numbers of the SAs to be installed, in the order of the operations.
    pub installed: Vec<SaId>,
}

/// An SA of IKE in the core, or on its way there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct IkeSa {
    pub(super) tunnel: TunnelId,
    pub(super) direction: Direction,
    /// The core has confirmed it.
    pub(super) is_held: bool,
}

/// All of them in one connection to the core.
#[derive(Debug)]
pub(super) struct IkeSas {
    pub(super) sas: BTreeMap<SaId, IkeSa>,
    /// Confirmed SAs of each tunnel: inbound, outbound.
    held: BTreeMap<TunnelId, (usize, usize)>,
    pub(super) pending: BTreeMap<Epoch, Vec<Step>>,
    /// An earlier life of control has left values that were not read yet.
    pub(super) awaits_stash: bool,
}

/// What a transaction of IKE's changes.
#[derive(Debug)]
pub(super) enum Step {
    Installed(SaId, IkeSa),
    Removed(SaId),
    Path(Arc<braid_api::Tunnel>),
}

impl IkeSas {
    pub(super) fn new(awaits_stash: bool) -> Self {
        IkeSas { sas: BTreeMap::new(), held: BTreeMap::new(), pending: BTreeMap::new(), awaits_stash }
    }

    pub(super) fn insert(&mut self, id: SaId, sa: IkeSa) {
        self.remove(id);
        self.sas.insert(id, sa);
        if sa.is_held {
            *self.count(sa) += 1;
        }
    }

    fn remove(&mut self, id: SaId) {
        if let Some(sa) = self.sas.remove(&id)
            && sa.is_held
        {
            *self.count(sa) -= 1;
        }
    }

    fn count(&mut self, sa: IkeSa) -> &mut usize {
        let held = self.held.entry(sa.tunnel).or_default();
        match sa.direction {
            Direction::In => &mut held.0,
            Direction::Out => &mut held.1,
        }
    }

    /// The core has removed tunnels with their SAs.
    pub(super) fn forget(&mut self, gone: impl Fn(TunnelId) -> bool) {
        self.sas.retain(|_, sa| !gone(sa.tunnel));
        self.held.retain(|tunnel, _| !gone(*tunnel));
    }

    fn holds_pair(&self, tunnel: TunnelId) -> bool {
        self.held.get(&tunnel).is_some_and(|(inbound, outbound)| *inbound > 0 && *outbound > 0)
    }
}

impl Turn {
    /// Sends operations of IKE in one transaction; `None` if there is nothing to send them to or nothing
    /// to be done.
    ///
    /// # Errors
    /// The core does not hold a tunnel that they need.
    pub fn carry(&mut self, ops: Vec<IkeOp>) -> Result<Option<Carried>, NotHeld> {
        let is_held = |op: &IkeOp| match op {
            IkeOp::Install { tunnel, .. } | IkeOp::Move { tunnel, .. } => self.holds_tunnel(tunnel),
            IkeOp::Remove(_) | IkeOp::Note(..) | IkeOp::Stash(..) | IkeOp::Forget(_) => true,
        };
        if !ops.iter().all(is_held) {
            return Err(NotHeld);
        }
        let mut sent = Vec::new();
        let mut steps = Vec::new();
        let mut installed = Vec::new();
        for op in ops {
            match op {
                IkeOp::Install {
                    tunnel,
                    negotiated,
                    direction,
                    spi,
                    suite,
                    key,
                    esn,
                    replay_window,
                    selectors,
                    note,
                } => {
                    self.negotiate(&tunnel, negotiated, &mut sent, &mut steps);
                    let Some(id) = self.numbers.tunnels.get(&tunnel).copied() else { continue };
                    let Some(core) = &mut self.core else { continue };
                    let (number, boot) = (core.sa_number(), core.boot);
                    sent.push(Op::PutSa(Sa {
                        id: number,
                        boot,
                        tunnel: id,
                        direction,
                        spi,
                        suite,
                        key,
                        esn,
                        replay_window,
                        selectors,
                    }));
                    sent.push(Op::PutStash { key: NOTE | number.0, value: note });
                    let sa = IkeSa { tunnel: id, direction, is_held: false };
                    core.ike.insert(number, sa);
                    steps.push(Step::Installed(number, sa));
                    installed.push(number);
                }
                IkeOp::Remove(id) => {
                    // With its tunnel it may be gone already.
                    if self.core.as_ref().is_some_and(|core| core.ike.sas.contains_key(&id)) {
                        sent.push(Op::RemoveSa(id));
                        steps.push(Step::Removed(id));
                    }
                    sent.push(Op::RemoveStash { key: NOTE | id.0 });
                }
                IkeOp::Move { tunnel, negotiated } => {
                    self.negotiate(&tunnel, negotiated, &mut sent, &mut steps);
                }
                IkeOp::Note(id, value) => sent.push(Op::PutStash { key: NOTE | id.0, value }),
                IkeOp::Stash(key, value) => sent.push(Op::PutStash { key, value }),
                IkeOp::Forget(key) => sent.push(Op::RemoveStash { key }),
            }
        }
        let Some(core) = self.core.as_mut().filter(|_| !sent.is_empty()) else { return Ok(None) };
        let transaction = core.transaction(sent);
        let epoch = transaction.epoch;
        core.ike.pending.insert(epoch, steps);
        self.effects.push(Effect::Transaction(transaction));
        Ok(Some(Carried { epoch, installed }))
    }

    /// Whether the core holds a tunnel.
    pub fn holds_tunnel(&self, name: &str) -> bool {
        let number = self.numbers.tunnels.get(name);
        number.zip(self.core.as_ref()).is_some_and(|(id, core)| core.mirror.held.contains(id))
    }

    /// Counts the times that the tunnels of the core or of the configuration may have changed.
    pub fn held_changes(&self) -> u64 {
        self.held_changes
    }

    /// The outer path of a tunnel, as the machine sees it.
    pub fn outer(&self, name: &str) -> Option<&crate::outer::Outer> {
        self.memory.outer.get(name)
    }

    /// SAs that are IKE's, confirmed or on their way.
    pub fn ike_sas(&self) -> impl Iterator<Item = (SaId, TunnelId, Direction)> + '_ {
        let sas = self.core.iter().flat_map(|core| &core.ike.sas);
        sas.map(|(id, sa)| (*id, sa.tunnel, sa.direction))
    }

    /// Both directions are in the core.
    pub(super) fn holds_ike_pair(&self, id: TunnelId) -> bool {
        self.core.as_ref().is_some_and(|core| core.ike.holds_pair(id))
    }

    /// Makes a path the tunnel's own.
    fn negotiate(&mut self, name: &str, path: Negotiated, ops: &mut Vec<Op>, steps: &mut Vec<Step>) {
        if self.negotiated.insert(name.to_owned(), path) != Some(path) {
            // MTUs and the kernel's part may follow, in a turn of their own.
            self.needs_rebuild = true;
        }
        if let Some(index) = self.by_name.get(name).copied() {
            self.note_heard(index, path.remote.ip());
        }
        let Some(id) = self.numbers.tunnels.get(name) else { return };
        let (Some(tunnel), Some(core)) = (self.desired.tables.tunnels.get_mut(id), &self.core) else {
            return;
        };
        path.apply(Arc::make_mut(tunnel));
        if core.mirror.tunnels.get(id) != Some(tunnel) {
            ops.push(Op::PutTunnel((**tunnel).clone()));
            steps.push(Step::Path(tunnel.clone()));
        }
    }

    /// The core follows an authenticated packet to another address of the peer. True if it is no other than
    /// was negotiated.
    pub(super) fn follow(&mut self, index: usize, remote: SocketAddr) -> bool {
        let Some(tunnel) = self.config.tunnels.get(index) else { return false };
        let Some(path) = self.negotiated.get_mut(&tunnel.name) else { return false };
        if core::mem::replace(&mut path.remote, remote) == remote {
            return true;
        }
        let id = self.numbers.tunnels.get(&tunnel.name).copied();
        self.note_heard(index, remote.ip());
        id.into_iter().for_each(|id| self.note_remote(id, Some(remote)));
        false
    }

    /// What the core knows of a peer's address without being told is not put again.
    pub(super) fn note_remote(&mut self, id: TunnelId, remote: Option<SocketAddr>) {
        let held = self.core.as_mut().and_then(|core| core.mirror.tunnels.get_mut(&id));
        for tunnel in held.into_iter().chain(self.desired.tables.tunnels.get_mut(&id)) {
            Arc::make_mut(tunnel).remote = remote;
        }
    }

    pub(super) fn ike_applied(&mut self, steps: Vec<Step>, now: Duration) {
        let Some(core) = &mut self.core else { return };
        for step in steps {
            match step {
                Step::Installed(id, sa) => {
                    core.ike.insert(id, IkeSa { is_held: true, ..sa });
                    let index = core.names.get(&sa.tunnel).and_then(|name| self.by_name.get(name)).copied();
                    if let Some(runtime) = index.and_then(|index| self.tunnels.get_mut(index)) {
                        runtime.health.handle_new_keys(now);
                    }
                    self.touched.extend(index);
                }
                Step::Removed(id) => {
                    let tunnel = core.ike.sas.get(&id).map(|sa| sa.tunnel);
                    core.ike.remove(id);
                    let name = tunnel.and_then(|tunnel| core.names.get(&tunnel));
                    self.touched.extend(name.and_then(|name| self.by_name.get(name)));
                }
                Step::Path(tunnel) => {
                    core.mirror.tunnels.insert(tunnel.id, tunnel);
                    // What waits may hold the path of before.
                    core.is_dirty |= !core.is_idle();
                }
            }
        }
    }

    pub(super) fn ike_rejected(&mut self, steps: Vec<Step>) {
        let Some(core) = &mut self.core else { return };
        for step in steps {
            match step {
                Step::Installed(id, _) => core.ike.remove(id),
                Step::Removed(_) | Step::Path(_) => {}
            }
        }
    }

    pub(super) fn handle_ike(&mut self, states: BTreeMap<String, IkeState>) {
        for (name, state) in states {
            let Some(index) = self.by_name.get(&name).copied() else { continue };
            if let Some(runtime) = self.tunnels.get_mut(index) {
                runtime.ike = state;
            }
            self.touched.insert(index);
        }
    }

    pub(super) fn handle_adopt(&mut self, negotiated: BTreeMap<String, Negotiated>) {
        let Some(core) = &mut self.core else { return };
        core.ike.awaits_stash = false;
        self.plan_held_until = None;
        self.negotiated = negotiated;
        let (config, by_name) = (&self.config, &self.by_name);
        self.negotiated.retain(|name, _| {
            let tunnel = by_name.get(name).and_then(|index| config.tunnels.get(*index));
            tunnel.is_some_and(|tunnel| tunnel.ike().is_some())
        });
        for runtime in &mut self.tunnels {
            // What IKE says from now on, it says of what was adopted.
            runtime.ike = IkeState::Unknown;
        }
        self.rebuild();
        self.touch_all();
    }

    /// A path that was negotiated under another configuration is none of this one's.
    pub(super) fn forget_negotiated(&mut self, before: &crate::config::Config) {
        let path = |tunnel: &crate::config::Tunnel| {
            let encapsulation = tunnel.ike().map(|ike| ike.encapsulation);
            (tunnel.local, tunnel.remote.clone(), encapsulation)
        };
        let find = |config: &crate::config::Config| -> BTreeMap<String, _> {
            let ike = config.tunnels.iter().filter(|tunnel| tunnel.ike().is_some());
            ike.map(|tunnel| (tunnel.name.clone(), path(tunnel))).collect()
        };
        let (old, new) = (find(before), find(&self.config));
        self.negotiated.retain(|name, _| new.contains_key(name) && old.get(name) == new.get(name));
    }

    /// What stands against a tunnel whose keys IKE negotiates.
    pub(super) fn ike_obstacle(&self, index: usize, id: TunnelId) -> Option<Obstacle> {
        let tunnel = self.config.tunnels.get(index)?;
        let holds_pair = self.holds_ike_pair(id);
        let awaits_stash = self.core.as_ref().is_some_and(|core| core.ike.awaits_stash);
        match &self.tunnels.get(index)?.ike {
            // What an earlier life had brought up goes on until it is known whether it can be adopted.
            _ if holds_pair && awaits_stash => None,
            IkeState::Unknown | IkeState::Up if holds_pair => None,
            IkeState::Unknown => {
                Some(Obstacle::Negotiating { by_peer: tunnel.role == crate::config::Role::Respond })
            }
            IkeState::Negotiating { by_peer } => Some(Obstacle::Negotiating { by_peer: *by_peer }),
            IkeState::Failed { cause, reason } => Some(Obstacle::Ike { cause, reason: reason.clone() }),
            IkeState::Up => Some(Obstacle::NotInstalled),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use braid_api::{BootId, Encapsulation, Generation, Hello, Transaction};

    use super::*;
    use crate::{
        memory::Memory,
        turn::{Event, REBUILD_GAP, State},
    };

    const NOW: Duration = Duration::from_secs(1);

    fn hello(stash_entries: u32) -> Event {
        Event::CoreHello(Hello {
            version: braid_api::VERSION,
            boot: BootId([1; 16]),
            generation: Generation(1),
            uptime: Duration::ZERO,
            workers: 1,
            offload: false,
            tunnels: Vec::new(),
            sas: Vec::new(),
            groups: Vec::new(),
            stash_entries,
        })
    }

    fn turn() -> Turn {
        turn_with("")
    }

    /// With more at the end of its configuration.
    fn turn_with(more: &str) -> Turn {
        let text = "[[tunnel]]\nname = \"a\"\nlocal = \"192.0.2.1\"\nrole = \"respond\"\n[tunnel.ike]\npsk = \"x\"\n";
        let text = text.to_owned() + more;
        let config = crate::config::parse(&text, std::path::Path::new("x.toml"), 0o600).unwrap();
        let mut turn = Turn::new(Arc::new(config), Memory::new([0; 32]), [0; 16], 1, Duration::ZERO);
        turn.take_effects();
        turn.handle(Event::PlanDone, NOW);
        turn
    }

    fn transactions(turn: &mut Turn) -> Vec<Transaction> {
        let effects = turn.take_effects().into_iter();
        effects
            .filter_map(|effect| if let Effect::Transaction(it) = effect { Some(it) } else { None })
            .collect()
    }

    fn path() -> Negotiated {
        Negotiated {
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: "203.0.113.7:61000".parse().unwrap(),
            encapsulation: Encapsulation::Udp,
            keepalive: false,
            suite: Suite::Aes256Gcm16,
        }
    }

    fn install(direction: Direction) -> IkeOp {
        IkeOp::Install {
            tunnel: "a".to_owned(),
            negotiated: path(),
            direction,
            spi: Spi(0x1000),
            suite: Suite::Aes256Gcm16,
            key: SecretKey::new(vec![7; 36]),
            esn: true,
            replay_window: 2048,
            selectors: Selectors::default(),
            note: StashValue(vec![1]),
        }
    }

    fn tell(turn: &mut Turn, state: IkeState) {
        turn.handle(Event::Ike(BTreeMap::from([("a".to_owned(), state)])), NOW);
    }

    fn state(turn: &Turn) -> State {
        turn.tunnels(NOW)[0].state
    }

    /// The core holds the tunnel.
    fn synced() -> Turn {
        sync(turn())
    }

    fn sync(mut turn: Turn) -> Turn {
        turn.handle(hello(0), NOW);
        turn.handle(Event::Adopt { negotiated: BTreeMap::new() }, NOW);
        for transaction in transactions(&mut turn) {
            turn.handle(Event::Applied(transaction.epoch), NOW);
        }
        assert!(turn.holds_tunnel("a"));
        turn
    }

    #[test]
    fn nothing_is_put_before_the_stash_was_read() {
        let mut turn = turn();
        turn.handle(hello(3), NOW);
        assert!(transactions(&mut turn).is_empty());
        turn.handle(Event::Adopt { negotiated: BTreeMap::from([("a".to_owned(), path())]) }, NOW);
        assert!(transactions(&mut turn).is_empty(), "the kernel's part is first");
        turn.handle(Event::PlanDone, NOW);
        let first = transactions(&mut turn).remove(0);
        let put = first.ops.iter().find_map(|op| if let Op::PutTunnel(it) = op { Some(it) } else { None });
        assert_eq!(put.unwrap().remote, Some(path().remote));
    }

    #[test]
    fn a_tunnel_is_offered_once_the_core_holds_both_sas_and_masked_when_ike_is_down() {
        let mut turn = synced();
        assert_eq!(turn.carry(Vec::new()), Ok(None));
        let carried = turn.carry(vec![install(Direction::In), install(Direction::Out)]).unwrap().unwrap();
        let sent = transactions(&mut turn).remove(0);
        assert_eq!(sent.epoch, carried.epoch);
        assert!(matches!(&sent.ops[0], Op::PutTunnel(it) if it.remote == Some(path().remote)), "{sent:?}");
        assert!(matches!(&sent.ops[1], Op::PutSa(sa) if sa.id == carried.installed[0]));
        let note = NOTE | carried.installed[0].0;
        assert!(matches!(&sent.ops[2], Op::PutStash { key, .. } if *key == note));
        tell(&mut turn, IkeState::Up);
        assert_eq!(state(&turn), State::Connecting);
        assert!(transactions(&mut turn).is_empty(), "not offered before it is confirmed");
        turn.handle(Event::Applied(carried.epoch), NOW);
        let unmask = transactions(&mut turn).remove(0);
        assert!(matches!(unmask.ops[..], [Op::Undrain(_), Op::Unmask(_)]), "{unmask:?}");
        turn.handle(Event::Applied(unmask.epoch), NOW);
        assert_eq!(state(&turn), State::Up);
        tell(&mut turn, IkeState::Failed { cause: "dpd", reason: "silent".to_owned() });
        let mask = transactions(&mut turn).remove(0);
        assert!(matches!(mask.ops[..], [Op::Mask(_)]), "{mask:?}");
        assert_eq!((state(&turn), turn.tunnels(NOW)[0].reason.as_str()), (State::Down, "silent"));
    }

    #[test]
    fn paths_that_change_in_a_row_are_built_in_together() {
        let mut turn = synced();
        let change = |turn: &mut Turn, port: u16| {
            let mut path = path();
            path.remote.set_port(port);
            turn.carry(vec![IkeOp::Move { tunnel: "a".to_owned(), negotiated: path }]).unwrap();
        };
        change(&mut turn, 61_001);
        assert_eq!(turn.poll_timeout(), Some(Duration::ZERO), "the first does not wait");
        turn.handle(Event::Timer, NOW);
        change(&mut turn, 61_002);
        let due = turn.poll_timeout().unwrap();
        assert_eq!(due, NOW + REBUILD_GAP);
        turn.handle(Event::Timer, NOW);
        assert!(turn.needs_rebuild, "too soon");
        turn.handle(Event::Timer, due);
        assert!(!turn.needs_rebuild && turn.poll_timeout().is_none());
    }

    #[test]
    fn where_the_core_follows_a_peer_no_learned_route_shall_cover_it() {
        let bgp = "[bgp]\nasn = 65010\nrouter-id = \"10.1.0.1\"\n[[bgp.neighbor]]\nname = \"far\"\n\
                   address = \"10.9.0.2\"\ninterface = \"dx0\"\nasn = 65020\n";
        let mut turn = sync(turn_with(bgp));
        turn.carry(vec![install(Direction::In), install(Direction::Out)]).unwrap();
        turn.handle(Event::Timer, NOW);
        let peers = |turn: &Turn| turn.desired.plan.peers.clone();
        assert_eq!(peers(&turn), [path().remote.ip()]);
        turn.handle(Event::PlanDone, NOW);
        let tunnel = turn.numbers.tunnels["a"];
        let remote = "198.51.100.9:4500".parse::<SocketAddr>().unwrap();
        turn.handle(Event::Core(braid_api::Event::EndpointMoved { tunnel, remote }), NOW);
        turn.handle(Event::Timer, NOW + REBUILD_GAP);
        assert_eq!(peers(&turn), [remote.ip()]);
    }

    #[test]
    fn what_the_core_does_not_hold_is_not_sent() {
        let mut turn = turn();
        assert_eq!(turn.carry(vec![install(Direction::In)]), Err(NotHeld));
        assert!(transactions(&mut turn).is_empty());
    }
}

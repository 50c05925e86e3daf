//! The thread that probes tunnels from inside and masks the dead: it survives the death of control.
//!
//! A probe is an echo request to the peer's inside address, sealed like any packet. A tunnel is dead
//! when, for its detection time, neither a probe came back nor any other packet was authenticated, or
//! when for several of them no probe came back although the peer is heard: then the way there is dead.
//! A probe votes only after the first reply, since some peers never answer. Where a router says that the peer is not
//! reached (`unreachable`), three probes in a row are enough. A tunnel whose uplink carries nothing any more
//! (`uplinks`) is dead too. The thread masks at once and reports after; it never unmasks: that is control's. It also
//! keeps NAT mappings alive (RFC 3948 section 4).
//!
//! BFD sessions (RFC 5880, RFC 5881) run here as well, their packets put straight into the tunnels: of a tunnel
//! that authenticates packets no timer says that it is dead, but what the peer signals counts always. Those outside
//! the tunnels have a thread of their own (`link_thread`), which waits for its sockets.

mod bfd;
pub(crate) mod link_thread;
mod links;
mod readers;
mod reports;
mod session;
pub(crate) mod unreachable;
pub(crate) mod uplinks;
mod voters;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
    time::Duration,
};

use braid_api::{Cause, Encapsulation, Event, TunnelId, Verdict};
use braid_bfd::{Watch, datagram::MAX_LENGTH};

use crate::{
    counters::OTHER_THREAD,
    drop_reason::DropReason,
    esp::{NEXT_HEADER_IPV4, NEXT_HEADER_IPV6, sa::OutboundSa, write_trailer},
    forward::{BfdPacket, Drops, ProbeReply, icmp},
    io::batch::Outgoing,
    tables::{Carrier, Reader, Tunnel, TunnelStates},
    wireguard,
    worker::{Drained, Notices, OuterSocket, Sender, monotonic},
};
use bfd::{Bfd, Outcome, Vote};
use readers::Readers;
use reports::Reports;
use session::{Death, Session, Turn};

/// Cookies of echoes that were asked for have this bit; the length follows.
const ECHO: u64 = 1 << 63;
/// Echoes that are waited for, at most.
const MAX_ECHOES: usize = 4096;
/// Within this time after something was heard no BFD expires.
const JUST_HEARD_NANOS: u64 = 10_000_000;
const LONGEST_SLEEP_NANOS: u64 = 3_600_000_000_000;
/// Until verdicts that found the queue to control full are tried again.
const RETRY_NANOS: u64 = 1_000_000;

/// To the liveness thread.
#[derive(Debug)]
pub enum Input {
    /// Tunnels that came, changed or went with a transaction, of which each is told.
    Changed(Vec<TunnelId>),
    /// A probe came back.
    Reply(ProbeReply),
    /// A BFD packet came out of a tunnel.
    Bfd(BfdPacket),
    /// A router says that the tunnel's peer cannot be reached.
    Unreachable(TunnelId),
    /// An interface carries, or does not any more.
    Link {
        /// Its name.
        name: String,
        /// It is up and has its carrier.
        carries: bool,
    },
    /// An echo request of this length is asked for, in bytes of the inner packet.
    Echo(TunnelId, u16),
    /// An outer socket.
    Socket(OuterSocket),
    /// From which the workers receive at this address, one for each from the first on.
    Readers(SocketAddr, Vec<OwnedFd>),
    /// The socket of this address is no longer needed.
    Close(SocketAddr),
}

/// The thread's state.
pub struct Liveness {
    reader: Reader,
    states: TunnelStates,
    sender: Sender,
    inputs: mpsc::Receiver<Input>,
    reports: Reports,
    drops: Arc<Drops>,
    readers: Readers,
    sessions: BTreeMap<TunnelId, Session>,
    due: BTreeSet<(u64, TunnelId)>,
    /// Echoes that were asked for and did not come back yet.
    echoes: BTreeSet<(TunnelId, u16)>,
    bfd: Bfd,
    outcome: Outcome,
    /// Tunnels that are down by their uplinks.
    without_link: BTreeMap<TunnelId, Lost>,
}

/// An uplink that a tunnel has lost.
struct Lost {
    name: String,
    /// It carries again, and that the way beyond it does so too is to be proven by a probe.
    returned: bool,
}

impl Liveness {
    /// With how far each worker has read; without tunnels and sockets, which come as inputs.
    pub fn new(
        reader: Reader,
        states: TunnelStates,
        inputs: mpsc::Receiver<Input>,
        notices: Notices,
        drops: Arc<Drops>,
        drained: Vec<Drained>,
    ) -> Self {
        Liveness {
            reader,
            states,
            sender: Sender::new(false),
            inputs,
            reports: Reports::new(notices),
            drops,
            readers: Readers::new(drained),
            sessions: BTreeMap::new(),
            due: BTreeSet::new(),
            echoes: BTreeSet::new(),
            bfd: Bfd::new(),
            outcome: Outcome::default(),
            without_link: BTreeMap::new(),
        }
    }

    /// Runs until all senders of inputs are gone.
    pub fn run(mut self) {
        loop {
            let now = monotonic().nanos;
            let due = self.due.first().map_or(u64::MAX, |(due, _)| *due).min(self.bfd.due());
            let longest = if self.reports.flush() { LONGEST_SLEEP_NANOS } else { RETRY_NANOS };
            let wait = due.saturating_sub(now).min(longest);
            match self.inputs.recv_timeout(Duration::from_nanos(wait)) {
                Ok(input) => self.take(input),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            // What has been received is heard before a deadline fires.
            while let Ok(input) = self.inputs.try_recv() {
                self.take(input);
            }
            self.run_bfd(monotonic().nanos);
            self.fire(monotonic().nanos);
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Changed(tunnels) => {
                tunnels.into_iter().for_each(|tunnel| self.refresh(tunnel));
                self.mask_again();
            }
            Input::Reply(reply) => self.heard(reply),
            Input::Bfd(packet) => {
                if self.bfd.handle_packet(monotonic().nanos, &packet).is_err() {
                    self.drops.add(OTHER_THREAD, DropReason::BfdDiscarded as usize, 1);
                }
            }
            Input::Unreachable(tunnel) => self.hasten(tunnel),
            Input::Link { name, carries: true } => self.link_returned(&name),
            Input::Link { name, carries: false } => self.link_lost(&name),
            Input::Echo(tunnel, len) => {
                let mut reader = self.reader.clone();
                if let Some(tunnel) = reader.enter().tunnel(tunnel) {
                    if self.echoes.len() >= MAX_ECHOES {
                        self.echoes.clear();
                    }
                    self.echoes.insert((tunnel.settings.id, len));
                    self.probe(tunnel, ECHO | u64::from(len), len);
                }
            }
            Input::Socket(socket) => self.sender.add(socket),
            Input::Readers(local, sockets) => self.readers.add(local, sockets),
            Input::Close(local) => {
                self.sender.remove(local);
                self.readers.remove(local);
            }
        }
    }

    fn refresh(&mut self, id: TunnelId) {
        let mut reader = self.reader.clone();
        let tables = reader.enter();
        if let Some(old) = self.sessions.get(&id) {
            self.due.remove(&(old.due(), id));
        }
        let Some(tunnel) = tables.tunnel(id) else {
            self.sessions.remove(&id);
            self.bfd.forget(id);
            self.without_link.remove(&id);
            return;
        };
        let now = monotonic().nanos;
        if let Some(lost) = self.without_link.get(&id) {
            let moved = tunnel.settings.uplink.as_ref() != Some(&lost.name);
            let unproven = lost.returned && tunnel.settings.probe.is_none();
            if moved || unproven {
                self.without_link.remove(&id);
                let verdict = if moved { Verdict::Withdrawn } else { Verdict::Up };
                self.report(id, verdict, Cause::Link, Duration::ZERO, (now, now));
            }
        }
        self.bfd.configure(id, &tunnel.settings.bfd, now, &mut random);
        let settings = &tunnel.settings;
        let keepalive = settings.keepalive && settings.encapsulation == Encapsulation::Udp;
        let mut session = self.sessions.remove(&id).unwrap_or_else(|| Session::new(now));
        let withdrawn = session.configure(settings.probe, keepalive, now);
        // Clients on the road are many, and none is probed.
        if settings.probe.is_some() || keepalive {
            self.due.insert((session.due(), id));
            self.sessions.insert(id, session);
        }
        if withdrawn {
            self.report(id, Verdict::Withdrawn, Cause::Probe, Duration::ZERO, (now, now));
        }
    }

    /// All are masked before the first is told of.
    fn link_lost(&mut self, name: &str) {
        let now = monotonic().nanos;
        let mut reader = self.reader.clone();
        let tables = reader.enter();
        let over = tables.tunnels().filter(|tunnel| tunnel.settings.uplink.as_deref() == Some(name));
        let mut masked = Vec::new();
        for id in over.map(|tunnel| tunnel.settings.id) {
            let lost = Lost { name: name.to_owned(), returned: false };
            if self.without_link.insert(id, lost).is_none() {
                masked.push((id, self.mask(id)));
            }
        }
        for (id, masked) in masked {
            self.report(id, Verdict::Down, Cause::Link, Duration::ZERO, (now, masked));
        }
    }

    /// Control may have unmasked before it knew of a lost link, or have been told when nobody listened.
    fn mask_again(&mut self) {
        let now = monotonic().nanos;
        let lost = self.without_link.keys().copied();
        let unmasked: Vec<TunnelId> = lost.filter(|id| !self.states.is_masked(*id)).collect();
        for id in unmasked {
            let masked = self.mask(id);
            self.report(id, Verdict::Down, Cause::Link, Duration::ZERO, (now, masked));
        }
    }

    /// What lies beyond the link may take longer to be there: where probes are answered, one of them says so first.
    fn link_returned(&mut self, name: &str) {
        let now = monotonic().nanos;
        let mut back = Vec::new();
        for (id, lost) in self.without_link.iter_mut().filter(|(_, lost)| lost.name == name) {
            match self.sessions.get_mut(id).filter(|session| session.is_up()) {
                Some(session) => {
                    lost.returned = true;
                    self.due.remove(&(session.due(), *id));
                    session.probe_at(now);
                    self.due.insert((session.due(), *id));
                }
                None => back.push(*id),
            }
        }
        back.into_iter().for_each(|id| self.link_is_back(id, now));
    }

    fn link_is_back(&mut self, id: TunnelId, now: u64) {
        self.without_link.remove(&id);
        self.report(id, Verdict::Up, Cause::Link, Duration::ZERO, (now, now));
    }

    fn hasten(&mut self, id: TunnelId) {
        let mut reader = self.reader.clone();
        let tables = reader.enter();
        let (Some(tunnel), Some(session)) = (tables.tunnel(id), self.sessions.get_mut(&id)) else { return };
        let round_trip = tunnel.live.latency_p99().max(tunnel.live.latency()).unwrap_or_default();
        self.due.remove(&(session.due(), id));
        session.hasten(monotonic().nanos, round_trip);
        self.due.insert((session.due(), id));
    }

    /// What is due of BFD, and what came of its packets.
    fn run_bfd(&mut self, now: u64) {
        if self.bfd.due() > now {
            return;
        }
        let mut reader = self.reader.clone();
        let tables = reader.enter();
        let readers = &self.readers;
        self.bfd.handle_timeout(now, |tunnel| {
            let Some(tunnel) = tables.tunnel(tunnel) else { return Watch::default() };
            let heard = tunnel.live.last_heard();
            if heard.is_some_and(|heard| now.saturating_sub(heard) < JUST_HEARD_NANOS) {
                return Watch { heard, unread: None };
            }
            let unread = readers.unread(socket_address(&tunnel.settings));
            Watch { heard: tunnel.live.last_heard(), unread }
        });
        let mut outcome = core::mem::take(&mut self.outcome);
        self.bfd.drain(now, &mut random, &mut outcome);
        // Masked first, reported after, and only then sent: what follows takes no part in the failover.
        for Vote { tunnel, verdict, silent } in outcome.votes.drain(..) {
            let masked = if verdict == Verdict::Down { self.mask(tunnel) } else { now };
            self.report(tunnel, verdict, Cause::Bfd, silent, (now, masked));
        }
        for (key, control) in outcome.packets.drain(..) {
            let mut packet = [0; MAX_LENGTH];
            let len = self.bfd.write(key, &control, &mut packet);
            if let Some(tunnel) = tables.tunnel(key.tunnel).filter(|_| len > 0) {
                self.send_inside(tunnel, &packet[..len]);
            }
        }
        while let Some(key) = outcome.touched.pop_first() {
            if let Some(tunnel) = tables.tunnel(key.tunnel) {
                tunnel.live.set_bfd(key.v6, self.bfd.stats(key));
            }
        }
        self.outcome = outcome;
    }

    fn heard(&mut self, reply: ProbeReply) {
        if reply.cookie & ECHO != 0 {
            let len = (reply.cookie & u64::from(u16::MAX)) as u16;
            // Told once: a peer that answers again and again is not to keep control busy.
            if self.echoes.remove(&(reply.tunnel, len)) {
                self.reports.tell(Event::Echo { tunnel: reply.tunnel, len });
            }
            return;
        }
        let Some(session) = self.sessions.get_mut(&reply.tunnel) else { return };
        let Some(answer) = session.reply(reply.cookie, reply.nanos) else { return };
        let mut reader = self.reader.clone();
        if let Some(tunnel) = reader.enter().tunnel(reply.tunnel) {
            tunnel.live.answered(reply.nanos, answer.round_trip, answer.latency);
        }
        if answer.up {
            let now = monotonic().nanos;
            self.report(reply.tunnel, Verdict::Up, Cause::Probe, Duration::ZERO, (now, now));
        }
        if self.without_link.get(&reply.tunnel).is_some_and(|lost| lost.returned) {
            self.link_is_back(reply.tunnel, monotonic().nanos);
        }
    }

    fn fire(&mut self, now: u64) {
        while let Some(&(due, id)) = self.due.first()
            && due <= now
        {
            self.due.pop_first();
            let mut reader = self.reader.clone();
            let tables = reader.enter();
            let Some(tunnel) = tables.tunnel(id) else { continue };
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let judges = session.is_about_to_judge(now);
            let unread = judges.then(|| self.readers.unread(socket_address(&tunnel.settings))).flatten();
            let turn = session.turn(now, tunnel.live.last_heard(), unread, tunnel.live.tx().0);
            self.due.insert((session.due(), id));
            match turn {
                Turn::Probe { cookie, down } => {
                    // Masked first, reported after: what follows takes no part in the failover.
                    if let Some(death) = down {
                        self.died(id, death, now);
                    }
                    tunnel.live.probed();
                    self.probe(tunnel, cookie, 0);
                }
                Turn::Down(death) => self.died(id, death, now),
                Turn::Keepalive => {
                    if let Some(to) = tunnel.live.remote() {
                        let out = Outgoing { to, tos: 0 };
                        self.sender.send_one(tunnel.settings.local, &[0xFF], out);
                    }
                }
                Turn::Nothing => {}
            }
        }
    }

    fn died(&mut self, id: TunnelId, Death { cause, silent }: Death, now: u64) {
        let masked = self.mask(id);
        self.report(id, Verdict::Down, cause, silent, (now, masked));
    }

    /// Masks a tunnel; says when that was in force.
    fn mask(&self, id: TunnelId) -> u64 {
        self.states.mask_by_core(id);
        monotonic().nanos
    }

    fn report(
        &mut self,
        tunnel: TunnelId,
        verdict: Verdict,
        cause: Cause,
        silent: Duration,
        (detected, masked): (u64, u64),
    ) {
        let event = Event::Liveness { tunnel, verdict, cause, silent, detected, masked };
        self.reports.report(tunnel, cause, verdict, event);
    }

    fn probe(&mut self, tunnel: &Tunnel, cookie: u64, len: u16) {
        let settings = &tunnel.settings;
        let pair = settings.peer_inside.iter().find_map(|peer| {
            let ours = settings.inside.iter().find(|ours| ours.is_ipv6() == peer.is_ipv6())?;
            Some((*ours, *peer))
        });
        let Some((ours, peer)) = pair else { return };
        if let Some(packet) = icmp::probe(ours, peer, cookie, len.min(tunnel.mtu)) {
            self.send_inside(tunnel, &packet);
        }
    }

    /// Seals an IP packet and sends it, under the SA's guard like every packet.
    fn send_inside(&mut self, tunnel: &Tunnel, packet: &[u8]) {
        let (Some(carrier), Some(to)) = (&tunnel.outbound, tunnel.live.remote()) else { return };
        let out = Outgoing { to, tos: icmp::NETWORK_CONTROL };
        let local = socket_address(&tunnel.settings);
        match carrier {
            Carrier::Esp(sa) => {
                let mut esp = laid_out(sa, packet);
                let mut sequence = sa.lock();
                let Ok(number) = sequence.reserve(1) else { return };
                sequence.sealer().seal(&mut esp, number);
                self.sender.send_one(local, &esp, out);
                drop(sequence);
                sa.counter.add(1, packet.len() as u64);
            }
            Carrier::WireGuard(peer) => {
                let mut padded = packet.to_vec();
                padded.resize(wireguard::padded_len(packet.len(), tunnel.mtu), 0);
                let mut sealed = vec![0; padded.len() + wireguard::OVERHEAD];
                let Some(mut session) = peer.sending() else { return };
                if session.seal(&padded, &mut sealed).is_err() {
                    return;
                }
                self.sender.send_one(local, &sealed, out);
            }
        }
        tunnel.live.sent(OTHER_THREAD, 1, packet.len() as u64);
    }
}

/// A packet as it is to be sealed.
fn laid_out(sa: &OutboundSa, packet: &[u8]) -> Vec<u8> {
    let layout = sa.layout;
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    let next_header = if is_v6 { NEXT_HEADER_IPV6 } else { NEXT_HEADER_IPV4 };
    let mut esp = vec![0; layout.sealed_len(packet.len())];
    esp[..4].copy_from_slice(&sa.spi.0.to_be_bytes());
    let (payload, end) = esp[layout.header_len()..].split_at_mut(packet.len());
    payload.copy_from_slice(packet);
    write_trailer(end, layout.pad_len(packet.len()), next_header);
    esp
}

/// The socket that a tunnel sends and receives by.
fn socket_address(settings: &braid_api::Tunnel) -> SocketAddr {
    match settings.encapsulation {
        Encapsulation::Udp | Encapsulation::WireGuard => settings.local,
        Encapsulation::Esp => SocketAddr::new(settings.local.ip(), 0),
    }
}

/// For discriminators and jitter. Without it, a session still has a discriminator of its own.
fn random() -> u32 {
    getrandom::u32().unwrap_or(0)
}

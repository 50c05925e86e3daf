//! The thread that probes tunnels from inside and masks the dead: it survives the death of control.
//!
//! A probe is an echo request to the peer's inside address, sealed like any packet. A tunnel is dead
//! when, for its detection time, neither a probe came back nor any other packet was authenticated, or
//! when for several of them no probe came back although the peer is heard: then the way there is dead.
//! A probe votes only after the first reply, since some peers never answer. The thread masks at once
//! and reports after; it never unmasks: that is control's. It also keeps NAT mappings alive
//! (RFC 3948 section 4).

mod session;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::Duration,
};

use braid_api::{Cause, Encapsulation, Event, TunnelId, Verdict};

use crate::{
    counters::OTHER_THREAD,
    esp::{NEXT_HEADER_IPV4, NEXT_HEADER_IPV6, write_trailer},
    forward::{ProbeReply, icmp},
    io::batch::Outgoing,
    tables::{Reader, Tunnel, TunnelStates},
    worker::{Notice, Notices, OuterSocket, Sender, monotonic},
};
use session::{Death, Session, Turn};

/// Cookies of echoes that were asked for have this bit; the length follows.
const ECHO: u64 = 1 << 63;
/// Echoes that are waited for, at most.
const MAX_ECHOES: usize = 4096;

/// To the liveness thread.
#[derive(Debug)]
pub enum Input {
    /// Tunnels that came, changed or went.
    Changed(Vec<TunnelId>),
    /// A probe came back.
    Reply(ProbeReply),
    /// An echo request of this length is asked for, in bytes of the inner packet.
    Echo(TunnelId, u16),
    /// An outer socket.
    Socket(OuterSocket),
    /// The socket of this address is no longer needed.
    Close(SocketAddr),
}

/// The thread's state.
pub struct Liveness {
    reader: Reader,
    states: TunnelStates,
    sender: Sender,
    inputs: mpsc::Receiver<Input>,
    notices: Notices,
    sessions: BTreeMap<TunnelId, Session>,
    due: BTreeSet<(u64, TunnelId)>,
    /// Echoes that were asked for and did not come back yet.
    echoes: BTreeSet<(TunnelId, u16)>,
}

impl Liveness {
    /// A thread's state without tunnels and sockets, which come as inputs.
    pub fn new(
        reader: Reader,
        states: TunnelStates,
        inputs: mpsc::Receiver<Input>,
        notices: Notices,
    ) -> Self {
        Liveness {
            reader,
            states,
            sender: Sender::new(false),
            inputs,
            notices,
            sessions: BTreeMap::new(),
            due: BTreeSet::new(),
            echoes: BTreeSet::new(),
        }
    }

    /// Runs until all senders of inputs are gone.
    pub fn run(mut self) {
        loop {
            let now = monotonic().nanos;
            let wait = self.due.first().map_or(u64::MAX, |(due, _)| due.saturating_sub(now));
            match self.inputs.recv_timeout(Duration::from_nanos(wait.min(3_600_000_000_000))) {
                Ok(input) => self.take(input),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            // What has been received is heard before a deadline fires.
            while let Ok(input) = self.inputs.try_recv() {
                self.take(input);
            }
            self.fire(monotonic().nanos);
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Changed(tunnels) => tunnels.into_iter().for_each(|tunnel| self.refresh(tunnel)),
            Input::Reply(reply) => self.heard(reply),
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
            Input::Close(local) => self.sender.remove(local),
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
            return;
        };
        let now = monotonic().nanos;
        let keepalive = tunnel.settings.encapsulation == Encapsulation::Udp;
        let session = self.sessions.entry(id).or_insert_with(|| Session::new(now));
        session.configure(tunnel.settings.probe, keepalive, now);
        self.due.insert((session.due(), id));
    }

    fn heard(&mut self, reply: ProbeReply) {
        if reply.cookie & ECHO != 0 {
            let len = (reply.cookie & u64::from(u16::MAX)) as u16;
            // Told once: a peer that answers again and again is not to keep control busy.
            if self.echoes.remove(&(reply.tunnel, len)) {
                self.notices.send(Notice::Event(Event::Echo { tunnel: reply.tunnel, len }));
            }
            return;
        }
        let Some(session) = self.sessions.get_mut(&reply.tunnel) else { return };
        let heard = session.reply(reply.cookie, reply.nanos);
        let mut reader = self.reader.clone();
        if let Some(tunnel) = reader.enter().tunnel(reply.tunnel) {
            tunnel.live.answered(reply.nanos, session.latency());
        }
        if heard == Some(Verdict::Up) {
            self.report(reply.tunnel, Verdict::Up, Cause::Probe, Duration::ZERO);
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
            let turn = session.turn(now, tunnel.live.last_heard(), tunnel.live.tx().0);
            self.due.insert((session.due(), id));
            match turn {
                Turn::Probe { cookie, down } => {
                    // Masked first, reported after: what follows takes no part in the failover.
                    if let Some(death) = down {
                        self.died(id, death);
                    }
                    self.probe(tunnel, cookie, 0);
                }
                Turn::Down(death) => self.died(id, death),
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

    fn died(&self, id: TunnelId, Death { cause, silent }: Death) {
        self.states.mask_by_core(id);
        self.report(id, Verdict::Down, cause, silent);
    }

    fn report(&self, tunnel: TunnelId, verdict: Verdict, cause: Cause, silent: Duration) {
        self.notices.send(Notice::Event(Event::Liveness { tunnel, verdict, cause, silent }));
    }

    /// Seals and sends a probe, under the SA's guard like every packet.
    fn probe(&mut self, tunnel: &Tunnel, cookie: u64, len: u16) {
        let settings = &tunnel.settings;
        let (Some(sa), Some(to)) = (&tunnel.outbound, tunnel.live.remote()) else { return };
        let pair = settings.peer_inside.iter().find_map(|peer| {
            let ours = settings.inside.iter().find(|ours| ours.is_ipv6() == peer.is_ipv6())?;
            Some((*ours, *peer))
        });
        let Some((ours, peer)) = pair else { return };
        let Some(packet) = icmp::probe(ours, peer, cookie, len.min(tunnel.mtu)) else { return };
        let layout = sa.layout;
        let next_header = if peer.is_ipv6() { NEXT_HEADER_IPV6 } else { NEXT_HEADER_IPV4 };
        let mut esp = vec![0; layout.sealed_len(packet.len())];
        esp[..4].copy_from_slice(&sa.spi.0.to_be_bytes());
        let (payload, end) = esp[layout.header_len()..].split_at_mut(packet.len());
        payload.copy_from_slice(&packet);
        write_trailer(end, layout.pad_len(packet.len()), next_header);
        let sa = Arc::clone(sa);
        let mut sequence = sa.lock();
        let Ok(number) = sequence.reserve(1) else { return };
        sequence.sealer().seal(&mut esp, number);
        let local = match settings.encapsulation {
            Encapsulation::Udp => settings.local,
            Encapsulation::Esp => SocketAddr::new(settings.local.ip(), 0),
        };
        let out = Outgoing { to, tos: icmp::PROBE_TOS };
        self.sender.send_one(local, &esp, out);
        drop(sequence);
        tunnel.live.sent(OTHER_THREAD, 1, packet.len() as u64);
        sa.counter.add(1, packet.len() as u64);
    }
}

//! The thread that hears of interfaces that lose or regain their carrier, so that a tunnel is left at once, however
//! busy control is.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::mpsc,
    time::Duration,
};

use super::Input;
use crate::{io::netlink, worker::monotonic};

/// Until the kernel is asked again what it did not answer.
const RETRY_NANOS: u64 = 100_000_000;

/// The thread's state.
pub(crate) struct Uplinks {
    socket: OwnedFd,
    notices: netlink::Receiver,
    inputs: mpsc::SyncSender<Input>,
    /// When to ask how all links are, since notices were lost: in monotonic nanoseconds.
    asks_at: Option<u64>,
}

impl Uplinks {
    /// Listens from now on, in the network namespace of the calling thread.
    pub(crate) fn new(inputs: mpsc::SyncSender<Input>) -> io::Result<Self> {
        let socket = netlink::subscribe(netlink::LINKS)?;
        Ok(Uplinks { socket, notices: netlink::Receiver::default(), inputs, asks_at: None })
    }

    /// Runs as long as there is a liveness thread.
    pub(crate) fn run(mut self) {
        let mut buffer = vec![0; netlink::BUFFER_LEN];
        loop {
            let alive = match self.notices.receive(self.socket.as_fd(), &mut buffer) {
                Ok(len) => self.take(len.map(|len| &buffer[..len])),
                Err(_) => {
                    self.wait();
                    true
                }
            };
            if !alive {
                return;
            }
        }
    }

    /// Takes a datagram, or that some were lost; says whether there is still a liveness thread.
    fn take(&mut self, datagram: Option<&[u8]>) -> bool {
        let Some(datagram) = datagram else {
            self.asks_at = Some(monotonic().nanos);
            return true;
        };
        if netlink::is_refusal(datagram) {
            self.asks_at = Some(monotonic().nanos + RETRY_NANOS);
        }
        // One that is lost would leave a tunnel masked: it waits for its place.
        let mut links = netlink::links(datagram).into_iter();
        links.all(|(name, carries)| self.inputs.send(Input::Link { name, carries }).is_ok())
    }

    fn wait(&mut self) {
        let now = monotonic().nanos;
        if self.asks_at.is_some_and(|at| at <= now) {
            let refused = netlink::ask_for_links(self.socket.as_fd()).is_err();
            self.asks_at = refused.then_some(now + RETRY_NANOS);
        }
        netlink::wait(&self.socket, self.asks_at.map(|at| Duration::from_nanos(at.saturating_sub(now))));
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc, time::Duration};

    use braid_api::{
        Allowed, BootId, Cause, DfPolicy, Encapsulation, Epoch, Event, Op, Probe, Transaction, Tunnel,
        TunnelId, Verdict,
    };
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::{
        esp::Engine,
        forward::{Drops, ProbeReply},
        liveness::Liveness,
        tables::Writer,
        worker::{Notice, Notices, monotonic},
    };

    fn tunnel(id: u32, uplink: &str) -> Op {
        Op::PutTunnel(settings(id, uplink, None))
    }

    fn settings(id: u32, uplink: &str, probe: Option<Probe>) -> Tunnel {
        let inside = |host| probe.map(|_| IpAddr::from([169, 254, 10, host])).into_iter().collect();
        Tunnel {
            id: TunnelId(id),
            name: format!("t{id}"),
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: Some("203.0.113.1:4500".parse().unwrap()),
            uplink: Some(uplink.to_owned()),
            follow_remote: false,
            encapsulation: Encapsulation::Udp,
            keepalive: false,
            inside: inside(1),
            peer_inside: inside(2),
            path_mtu: 1500,
            clamp_mtu: 1400,
            df: DfPolicy::Honour,
            allowed: Allowed::Routed,
            reach: Vec::new(),
            probe,
            bfd: Vec::new(),
        }
    }

    struct Rig {
        writer: Writer,
        liveness: Liveness,
        notices: mpsc::Receiver<Notice>,
        epoch: u64,
        /// Of the last probe.
        sequence: u64,
    }

    impl Rig {
        fn new() -> Self {
            let writer = Writer::new(1, BootId([7; 16]), Engine::Ring, &[9; 32]);
            let (queue, notices) = mpsc::sync_channel(64);
            let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
            let liveness = Liveness::new(
                writer.reader(),
                writer.states().clone(),
                mpsc::sync_channel(1).1,
                Notices::new(queue, Arc::new(wake)),
                Arc::new(Drops::new(1)),
                Vec::new(),
            );
            Rig { writer, liveness, notices, epoch: 0, sequence: 0 }
        }

        fn apply(&mut self, ops: Vec<Op>) {
            self.epoch += 1;
            let tunnels = ops.iter().filter_map(|op| match op {
                Op::PutTunnel(tunnel) => Some(tunnel.id),
                Op::RemoveTunnel(id) => Some(*id),
                _ => None,
            });
            let changed = Input::Changed(tunnels.collect());
            self.writer.apply(Transaction { epoch: Epoch(self.epoch), ops }, 1).unwrap();
            self.liveness.take(changed);
        }

        /// The probe that is due is sent, and answered.
        fn answer(&mut self) {
            self.sequence += 1;
            self.liveness.fire(monotonic().nanos);
            let nanos = monotonic().nanos;
            self.liveness.take(Input::Reply(ProbeReply {
                tunnel: TunnelId(0),
                cookie: self.sequence,
                nanos,
            }));
        }

        fn link(&mut self, name: &str, carries: bool) {
            self.liveness.take(Input::Link { name: name.to_owned(), carries });
        }

        /// What was told since: tunnels by their numbers, and what of them; a hundred more by their probes.
        fn told(&self) -> Vec<(u32, Verdict)> {
            let told = self.notices.try_iter().map(|notice| match notice {
                Notice::Event(Event::Liveness { tunnel, verdict, cause: Cause::Probe, .. }) => {
                    (100 + tunnel.0, verdict)
                }
                Notice::Event(Event::Liveness {
                    tunnel,
                    verdict,
                    cause: Cause::Link,
                    silent,
                    detected,
                    masked,
                }) => {
                    assert!(silent == Duration::ZERO && detected <= masked);
                    (tunnel.0, verdict)
                }
                other => panic!("{other:?}"),
            });
            told.collect()
        }

        fn is_masked(&self, id: u32) -> bool {
            self.writer.states().is_masked_by_core(TunnelId(id))
        }
    }

    #[test]
    fn the_kernel_is_asked_where_notices_were_lost_or_a_question_was_not_taken() {
        let refusal = [20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xF0, 0xFF, 0xFF, 0xFF];
        for datagram in [None, Some(&refusal[..])] {
            let (inputs, received) = mpsc::sync_channel(64);
            let mut uplinks = Uplinks::new(inputs).unwrap();
            assert!(uplinks.take(datagram));
            std::thread::spawn(move || uplinks.run());
            let mut answers = core::iter::from_fn(|| received.recv_timeout(Duration::from_secs(10)).ok());
            assert!(answers.any(|input| matches!(input, Input::Link { name, .. } if name == "lo")));
        }
    }

    #[test]
    fn what_control_unmasks_before_it_knows_is_masked_again() {
        let mut rig = Rig::new();
        rig.apply(vec![tunnel(0, "wan0"), tunnel(1, "wan0"), tunnel(2, "wan1")]);
        rig.apply((0..3).map(|id| Op::Unmask(TunnelId(id))).collect());
        rig.link("wan0", false);
        assert_eq!(rig.told(), [(0, Verdict::Down), (1, Verdict::Down)]);
        rig.apply(vec![Op::Unmask(TunnelId(1))]);
        assert_eq!(rig.told(), [(1, Verdict::Down)]);
        assert_eq!([0, 1, 2].map(|id| rig.is_masked(id)), [true, true, false]);
        rig.link("wan0", true);
        assert_eq!(rig.told(), [(0, Verdict::Up), (1, Verdict::Up)]);
        rig.apply(vec![Op::Unmask(TunnelId(1))]);
        assert_eq!((rig.told(), rig.is_masked(1)), (vec![], false));
    }

    #[test]
    fn tunnels_over_a_link_go_with_it_and_are_told_when_it_returns() {
        let mut rig = Rig::new();
        rig.apply(vec![tunnel(0, "wan0"), tunnel(1, "wan0"), tunnel(2, "wan1")]);
        rig.apply((0..3).map(|id| Op::Unmask(TunnelId(id))).collect());
        rig.link("wan0", true);
        rig.link("lan0", false);
        assert_eq!(rig.told(), []);
        rig.link("wan0", false);
        assert_eq!(rig.told(), [(0, Verdict::Down), (1, Verdict::Down)]);
        assert_eq!([0, 1, 2].map(|id| rig.is_masked(id)), [true, true, false]);
        rig.link("wan0", false);
        assert_eq!(rig.told(), []);
        // One leaves by another link from now on, and whether that carries nobody has said.
        rig.apply(vec![tunnel(0, "wan0"), tunnel(1, "wan1")]);
        assert_eq!(rig.told(), [(1, Verdict::Withdrawn)]);
        rig.link("wan0", true);
        assert_eq!(rig.told(), [(0, Verdict::Up)]);
        // Only control offers it again.
        assert!(rig.is_masked(0));
        // What is removed has no link to lose.
        rig.link("wan1", false);
        assert_eq!(rig.told(), [(1, Verdict::Down), (2, Verdict::Down)]);
        rig.apply(vec![Op::RemoveTunnel(TunnelId(2))]);
        rig.link("wan1", true);
        assert_eq!(rig.told(), [(1, Verdict::Up)]);
    }

    #[test]
    fn where_probes_are_answered_one_proves_that_the_way_beyond_the_link_is_back() {
        let probe = Probe { interval: Duration::from_secs(3600), multiplier: 3 };
        let mut rig = Rig::new();
        rig.apply(vec![Op::PutTunnel(settings(0, "wan0", Some(probe))), Op::Unmask(TunnelId(0))]);
        // Probes that were never answered prove nothing.
        for carries in [false, true] {
            rig.link("wan0", carries);
        }
        assert_eq!(rig.told(), [(0, Verdict::Down), (0, Verdict::Up)]);
        rig.answer();
        assert_eq!(rig.told(), [(100, Verdict::Up)]);
        for carries in [false, true, false, true] {
            rig.link("wan0", carries);
        }
        assert_eq!(rig.told(), [(0, Verdict::Down)]);
        assert!(rig.liveness.due.first().is_some_and(|(due, _)| *due <= monotonic().nanos), "at once");
        rig.answer();
        assert_eq!(rig.told(), [(0, Verdict::Up)]);
        // Nor do probes that are no longer asked for.
        for carries in [false, true] {
            rig.link("wan0", carries);
        }
        assert_eq!(rig.told(), [(0, Verdict::Down)]);
        rig.apply(vec![tunnel(0, "wan0")]);
        assert_eq!(rig.told(), [(0, Verdict::Up), (100, Verdict::Withdrawn)]);
    }
}

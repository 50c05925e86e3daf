//! Two workers over loopback; a pair of sockets is each one's device.

use braid_api::{
    Allowed, BootId, DfPolicy, Direction, Encapsulation, Epoch, Op, Sa, SecretKey, Selectors, Spi, Suite,
    Target, Transaction, Tunnel,
};
use etherparse::PacketBuilder;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::*;
use crate::{
    esp::{Engine, sa::OutboundSa},
    io::udp,
    tables::Writer,
};

const TUNNEL: TunnelId = TunnelId(0);
const SUITE: Suite = Suite::Aes128Gcm16;

struct End {
    worker: Worker,
    /// The kernel's end of the device.
    lan: OwnedFd,
    drops: Arc<Drops>,
    notices: mpsc::Receiver<Notice>,
    probes: mpsc::Receiver<Input>,
    _writer: Writer,
}

/// Both ends, whose liveness threads take so many inputs.
fn ends(inputs: usize) -> [End; 2] {
    let sockets = [(); 2].map(|()| udp::bind("127.0.0.1:0".parse().unwrap(), None, 0, 1).unwrap().remove(0));
    let [a, b] = [&sockets[0], &sockets[1]].map(|socket| udp::local_address(socket).unwrap());
    let [first, second] = sockets;
    [End::new(1, first, a, b, inputs), End::new(2, second, b, a, inputs)]
}

impl End {
    fn new(side: u8, socket: OwnedFd, local: SocketAddr, remote: SocketAddr, inputs: usize) -> Self {
        let boot = BootId([side; 16]);
        let peer = 3 - side;
        let mut writer = Writer::new(1, boot, Engine::detect(), &[3; 32]);
        let inside = |side: u8| vec![std::net::IpAddr::from([169, 254, 1, side])];
        let tunnel = Tunnel {
            id: TUNNEL,
            name: "t".into(),
            local,
            remote: Some(remote),
            uplink: None,
            follow_remote: false,
            encapsulation: Encapsulation::Udp,
            keepalive: false,
            inside: inside(side),
            peer_inside: inside(peer),
            path_mtu: 1500,
            clamp_mtu: 1500,
            df: DfPolicy::Honour,
            allowed: Allowed::Routed,
            probe: None,
            bfd: Vec::new(),
            reach: Vec::new(),
        };
        let sa = |sender: u8, direction| {
            Op::PutSa(Sa {
                id: SaId(1 + u64::from(direction == Direction::Out)),
                boot,
                tunnel: TUNNEL,
                direction,
                spi: Spi(0x1000 + u32::from(sender)),
                suite: SUITE,
                key: SecretKey::new(vec![sender; SUITE.key_len()]),
                esn: false,
                replay_window: 64,
                selectors: Selectors::default(),
            })
        };
        let route =
            |prefix: String| Op::PutRoute { prefix: prefix.parse().unwrap(), target: Target::Tunnel(TUNNEL) };
        let ops = vec![
            Op::PutTunnel(tunnel),
            sa(peer, Direction::In),
            sa(side, Direction::Out),
            route(format!("10.{peer}.0.0/16")),
            route(format!("169.254.1.{peer}/32")),
            Op::Unmask(TUNNEL),
        ];
        writer.apply(Transaction { epoch: Epoch(1), ops }, 0).unwrap();
        let eventfd = || rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        let (queue, notices) = mpsc::sync_channel(64);
        let (inputs, probes) = mpsc::sync_channel(inputs);
        let drops = Arc::new(Drops::new(1));
        let mut worker = Worker::new(Setup {
            number: 0,
            max_segments: udp::probe_max_segments(),
            offload: false,
            reader: writer.reader(),
            states: writer.states().clone(),
            drops: Arc::clone(&drops),
            commands: mpsc::channel().1,
            wake: eventfd(),
            notices: Notices::new(queue, Arc::new(eventfd())),
            probes: inputs,
            punt: PuntLine::default(),
            handshakes: handshakes::Line::new().0,
            drained: Drained::default(),
        });
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (device, lan) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        worker.device = TunQueue::of(vec![device], false).unwrap().pop();
        worker.sender.add(OuterSocket { local, wireguard: false, receives: true, fd: socket });
        End { worker, lan, drops, notices, probes, _writer: writer }
    }

    /// The kernel of the LAN sends packets, which the worker takes all at once.
    fn send(&mut self, packets: &[Vec<u8>]) {
        for packet in packets {
            rustix::net::send(&self.lan, packet, SendFlags::empty()).unwrap();
        }
        assert!(self.worker.transmit());
    }

    /// What the worker has written to the LAN.
    fn delivered(&self) -> Vec<Vec<u8>> {
        let packets = core::iter::from_fn(|| {
            let mut bytes = vec![0; 65_536];
            let (len, _) = rustix::net::recv(&self.lan, &mut bytes[..], RecvFlags::empty()).ok()?;
            bytes.truncate(len);
            Some(bytes)
        });
        packets.collect()
    }

    fn drops(&self) -> Vec<(&'static str, u64)> {
        let counted = DropReason::ALL.iter().map(|reason| (reason.name(), self.drops.sum(*reason as usize)));
        counted.filter(|(_, count)| *count > 0).collect()
    }

    fn outbound(&mut self) -> Arc<OutboundSa> {
        let tables = self.worker.reader.enter();
        Arc::clone(tables.tunnel(TUNNEL).unwrap().outbound.as_ref().unwrap().esp().unwrap())
    }
}

/// From the first end's network to the second one's.
fn packets(count: u32) -> Vec<Vec<u8>> {
    let packet = |number: u32| {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4([10, 1, 0, 1], [10, 2, 0, 1], 64).udp(1000, 2000);
        builder.write(&mut bytes, &number.to_be_bytes()).unwrap();
        bytes
    };
    (0..count).map(packet).collect()
}

/// To the second end's inside address.
fn echo(reply: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ipv4([169, 254, 1, 1], [169, 254, 1, 2], 64);
    match reply {
        true => builder.icmpv4_echo_reply(1, 1).write(&mut bytes, payload).unwrap(),
        false => builder.icmpv4_echo_request(1, 1).write(&mut bytes, payload).unwrap(),
    }
    bytes
}

#[test]
fn what_one_lan_sends_the_other_gets() {
    let [mut a, mut b] = ends(1);
    a.send(&packets(100));
    assert!(b.worker.receive());
    assert_eq!(b.delivered(), packets(100));
    assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
    assert_eq!(a.outbound().counter.packets(), 100);
}

#[test]
fn without_sequence_numbers_nothing_leaves() {
    // So many are left, so many packets follow in each of these runs, and so many of them leave.
    for (left, runs, leave) in [(3, &[3, 1, 2][..], 3), (2, &[3, 1], 0), (0, &[1], 0)] {
        let [mut a, mut b] = ends(1);
        let sa = a.outbound();
        let last = u32::try_from(sa.last_sequence()).unwrap();
        sa.lock().reserve(last - left).unwrap();
        for packets_in_run in runs {
            a.send(&packets(*packets_in_run));
        }
        // What left has arrived, on loopback, when it has been sent.
        assert_eq!(b.worker.receive(), leave > 0);
        assert_eq!(b.delivered().len(), leave as usize);
        assert_eq!(b.drops(), []);
        let refused = runs.iter().sum::<u32>() - leave;
        assert_eq!(a.drops(), [("sequence_exhausted", u64::from(refused))]);
        assert_eq!(sa.counter.packets(), u64::from(leave));
        assert!(sa.is_stopped());
        assert!(matches!(a.notices.try_recv(), Ok(Notice::Exhausted(id)) if id == sa.id));
    }
}

#[test]
fn what_the_kernel_does_not_send_is_counted() {
    let [mut a, mut b] = ends(1);
    let local = a.worker.sender.sockets[0].local;
    a.worker.sender.remove(local);
    a.send(&packets(5));
    assert!(!b.worker.receive());
    assert_eq!(a.drops(), [("send_failed", 5)]);
    assert_eq!(a.outbound().counter.packets(), 0);
}

#[test]
fn what_the_device_does_not_take_is_counted() {
    const SENT: u32 = 200;
    let [mut a, mut b] = ends(1);
    sockopt::set_socket_send_buffer_size(b.worker.device.as_ref().unwrap(), 1).unwrap();
    a.send(&packets(SENT));
    b.worker.receive();
    let delivered = b.delivered();
    assert!((1..SENT as usize).contains(&delivered.len()));
    assert_eq!(delivered, packets(delivered.len() as u32));
    assert_eq!(b.drops(), [("device_full", u64::from(SENT) - delivered.len() as u64)]);
    // One that is gone takes nothing.
    let [mut a, mut b] = ends(1);
    b.worker.device = None;
    a.send(&packets(SENT));
    b.worker.receive();
    assert_eq!(b.drops(), [("device_full", u64::from(SENT))]);
}

#[test]
fn what_the_liveness_thread_does_not_take_is_counted() {
    let [mut a, mut b] = ends(1);
    let reply = |cookie: u64| echo(true, &[&b"braidprb"[..], &cookie.to_be_bytes()].concat());
    a.send(&[reply(1), reply(2), reply(3)]);
    b.worker.receive();
    assert!(matches!(b.probes.try_recv(), Ok(Input::Reply(reply)) if reply.cookie == 1));
    assert!(b.probes.try_recv().is_err());
    assert_eq!(b.drops(), [("liveness_full", 2)]);
    // There is room again.
    a.send(&[reply(4)]);
    b.worker.receive();
    assert!(matches!(b.probes.try_recv(), Ok(Input::Reply(reply)) if reply.cookie == 4));
}

#[test]
fn more_than_the_lan_can_be_given_at_a_time_is_shed_and_a_ping_is_answered() {
    const SENT: u32 = 3000;
    let [mut a, mut b] = ends(1);
    for some in packets(SENT).chunks(100) {
        a.send(some);
    }
    a.send(&[echo(false, b"are you there")]);
    assert!(b.worker.receive());
    let drops = b.drops();
    let shed = drops.iter().find(|(reason, _)| *reason == "overload").map_or(0, |(_, count)| *count);
    assert!(shed > 0, "{drops:?}");
    let lost: u64 = drops.iter().map(|(_, count)| count).sum();
    assert_eq!(b.delivered().len() as u64 + lost, u64::from(SENT), "{drops:?}");
    assert!(a.worker.receive());
    let answers = a.delivered();
    assert_eq!(answers.iter().map(|answer| answer[20]).collect::<Vec<_>>(), [0], "one echo reply");
    // Overload ends with the phase.
    b.delivered();
    a.send(&packets(1));
    b.worker.receive();
    assert_eq!((b.delivered(), b.drops()), (packets(1), drops));
}

#[test]
fn a_batch_that_lost_the_processor_is_late_until_no_stamp_of_it_counts() {
    const MS: u64 = 1_000_000;
    let mut lateness = Lateness::default();
    let mut at = |ms: u64, worked| lateness.at(Now::from_nanos(ms * MS), worked).late;
    assert_eq!(at(5000, false), 0);
    assert_eq!(at(5001, true), 0);
    // 12 ms in one batch: late for that long and the idle gap.
    assert_eq!(at(5013, true), 120);
    assert_eq!(at(5014, true), 120);
    assert_eq!(at(5035, false), 120);
    assert_eq!(at(5036, true), 0);
    // Silence makes nothing late.
    assert_eq!(at(9000, false), 0);
}

#[test]
fn what_a_worker_holds_in_its_hands_is_unread() {
    let drained = Drained::default();
    let unread = |since, read_at| Some(Unread { since, read_at });
    drained.begin(1001);
    drained.end(1001);
    assert_eq!(drained.unread(|| false), None);
    assert_eq!(drained.unread(|| true), unread(1000, 1001));
    drained.begin(1500);
    assert_eq!(drained.unread(|| false), unread(1000, 1500));
    // Taken while it was asked.
    drained.end(2000);
    let taken = || {
        drained.begin(2500);
        false
    };
    assert_eq!(drained.unread(taken), unread(2000, 2500));
}

#[test]
fn a_worker_says_how_far_it_has_read() {
    let [mut a, mut b] = ends(16);
    let drained = b.worker.drained.clone();
    b.worker.now = Now::from_nanos(1_000_000);
    assert!(!b.worker.receive());
    assert_eq!(drained.unread(|| true), Some(Unread { since: 1_000_000, read_at: 1_000_000 }));
    a.send(&packets(1));
    b.worker.now = Now::from_nanos(2_000_000);
    assert!(b.worker.receive());
    // It has looked again, to find nothing more.
    let unread = drained.unread(|| true).unwrap();
    assert!(unread.since > 2_000_000 && unread.read_at > 2_000_000);
    assert_eq!(drained.unread(|| false), None);
}

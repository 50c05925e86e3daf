//! The devices alone: what a gateway in user space forwards that computes nothing, over the same kind of device and
//! socket as Braid's, by one thread and the same order of calls.

use super::{Running, System, Wire};
use braid_dataplane::io::batch::{Outgoing, ReceivePool, SendBatch};
use braid_dataplane::io::{tun, udp};
use braid_dataplane::offload::coalesce::Slots;
use braid_netns::topology::{NET_A, NET_B};
use braid_netns::{Error, Netns, Result, Topology};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const DEVICE: &str = "devices0";
/// Neither ESP's nor WireGuard's.
const PORT: u16 = 40_000;
/// Of an inner packet, as in an ESP tunnel.
const MTU: usize = 1406;
/// Of the pieces in which a super-packet is sent: about what ESP makes of an inner packet.
const SEGMENT: usize = 1430;
/// What one GSO send takes.
const LONGEST: usize = 65_507;
/// As Braid's workers: bytes before the socket is looked at again, messages before the device is, and a while before
/// sleep.
const TURN: usize = 512 * 1024;
const MESSAGES: usize = 48;
const LINGER: Duration = Duration::from_micros(50);
/// Longest sleep, after which it is seen whether to end.
const SLEEP: u8 = 100;

/// Super-packets go from the device to the socket and back as they are read, in clear.
#[derive(Debug)]
pub(super) struct Devices {
    /// What each gateway waits for each byte, in hundredths of a nanosecond, and does not look at it.
    pub(super) wait: u32,
}

impl System for Devices {
    fn name(&self) -> String {
        if self.wait == 0 { "devices".to_owned() } else { format!("devices-{}", self.wait) }
    }

    fn title(&self) -> String {
        if self.wait == 0 {
            return "the devices alone, nothing computed".to_owned();
        }
        format!("the devices, 0.{:02} ns of waiting a byte", self.wait)
    }

    fn wire(&self) -> Wire {
        Wire::Plain
    }

    fn start(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        let (a, b) = (&topology.gateway_a, &topology.gateway_b);
        let path = &topology.paths[0];
        Ok(Box::new([self.gateway(a, path.a, path.b, NET_B)?, self.gateway(b, path.b, path.a, NET_A)?]))
    }
}

impl Devices {
    fn gateway(&self, netns: &Netns, local: Ipv4Addr, remote: Ipv4Addr, net: &str) -> Result<Forwarder> {
        let (device, socket) = netns.enter(|| -> Result<_> {
            let device =
                tun::open(DEVICE, 1, true).map_err(|error| Error::Usage(format!("{DEVICE}: {error}")))?;
            let socket = udp::bind(SocketAddr::from((local, PORT)), None, 0, 1)
                .map_err(Error::io(format!("cannot bind {local}")))?;
            Ok((device, socket))
        })??;
        netns.ip(&format!("link set {DEVICE} up mtu {MTU}"))?;
        netns.ip(&format!("route add {net} dev {DEVICE}"))?;
        let queue = tun::TunQueue::of(device.fds, device.vnet_hdr)
            .map_err(Error::io(format!("cannot take {DEVICE}")))?
            .remove(0);
        let mut ends = Ends {
            queue,
            socket: socket.into_iter().next().ok_or_else(|| Error::Usage("no socket".to_owned()))?,
            out: Outgoing { to: SocketAddr::from((remote, PORT)), tos: 0 },
            wait: self.wait,
            pool: ReceivePool::new(1),
            batch: SendBatch::default(),
            buffer: vec![0; LONGEST],
        };
        let end = Arc::new(AtomicBool::new(false));
        let ends_with = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let mut last = Instant::now();
            while !ends_with.load(Ordering::Relaxed) {
                if ends.forward() {
                    last = Instant::now();
                } else if last.elapsed() < LINGER {
                    std::thread::yield_now();
                } else {
                    ends.sleep();
                }
            }
        });
        Ok(Forwarder { thread: Some(thread), end })
    }
}

/// A thread that forwards; dropped, it ends.
#[derive(Debug)]
struct Forwarder {
    thread: Option<JoinHandle<()>>,
    end: Arc<AtomicBool>,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Running for [Forwarder; 2] {}

struct Ends {
    queue: tun::TunQueue,
    socket: OwnedFd,
    out: Outgoing,
    wait: u32,
    pool: ReceivePool,
    batch: SendBatch,
    buffer: Vec<u8>,
}

impl Ends {
    /// False when nothing was there. What does not fit is lost.
    fn forward(&mut self) -> bool {
        use tun::TunDevice;
        let mut any = false;
        let mut messages = 0;
        while messages < MESSAGES
            && let Ok(slots) = self.pool.receive(self.socket.as_fd(), 1, 0)
            && !slots.is_empty()
        {
            any = true;
            messages += 1;
            for received in slots.filter_map(|slot| self.pool.received(slot)) {
                wait(self.wait, received.len);
                let packet = &self.pool.slot(received.slot)[..received.len];
                let _ = self.queue.write(&[std::io::IoSlice::new(packet)]);
            }
            self.pool.clear();
        }
        let mut bytes = 0;
        while bytes < TURN
            && let Ok(Some(len)) = self.queue.read(&mut self.buffer)
        {
            any = true;
            bytes += len;
            wait(self.wait, len);
            let packet = core::iter::once(&self.buffer[..len]);
            let _ = self.batch.send_gso(self.socket.as_fd(), packet, SEGMENT, self.out);
        }
        any
    }

    fn sleep(&self) {
        let polled = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut both = [polled(self.socket.as_fd()), polled(self.queue.as_fd())];
        let _ = poll(&mut both, PollTimeout::from(SLEEP));
    }
}

/// Keeps the processor for `wait` hundredths of a nanosecond a byte.
fn wait(wait: u32, bytes: usize) {
    let long = Duration::from_nanos(u64::from(wait) * bytes as u64 / 100);
    let start = Instant::now();
    while !long.is_zero() && start.elapsed() < long {
        core::hint::spin_loop();
    }
}

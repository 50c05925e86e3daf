//! Small UDP packets at a fixed rate, over many flows.
//!
//! Every packet leaves the client's device on its own, flows interleaved one by one, so that the
//! gateway sees what a network card would hand it: no GSO, nothing merged beforehand. A packet
//! socket that sends ready frames (`sendmmsg`) is the cheapest way to do that; on a small machine
//! the generator takes its time from what it measures.

use braid_netns::{Error, Netns, Result};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockType, bind, sendmmsg, socket,
};
use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Destination port of every packet; the receiver counts by it.
pub const PORT: u16 = 30_000;
/// First source port; flows have consecutive ones.
const FIRST_SOURCE_PORT: u16 = 20_000;
/// Packets a system call.
const BATCH: usize = 32;
/// Behind by more than this, the generator gives up on the missed packets: a burst of them would
/// measure queues. What was really sent is what is reported.
const CATCH_UP: Duration = Duration::from_millis(4);
/// Ahead of schedule it sleeps this long, so that it does not spin on a processor that others need.
const NAP: Duration = Duration::from_micros(100);
const ETHERNET: usize = 14;
/// IPv4 and UDP headers.
pub const HEADERS: usize = 28;

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// Packets a second.
    pub rate: f64,
    /// How long.
    pub duration: Duration,
    /// Number of flows, each with its own source port.
    pub flows: u16,
    /// Length of each IP packet, headers included, in bytes; at least [`HEADERS`].
    pub length: usize,
}

/// Shared with a generator at work.
#[derive(Debug, Default)]
pub struct Control {
    /// Set to end it.
    pub stop: AtomicBool,
    /// Packets sent so far.
    pub sent: AtomicU64,
}

/// What was sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Packets.
    pub packets: u64,
    /// How long that took.
    pub elapsed: Duration,
}

impl Sent {
    /// Packets a second really offered.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // far below 2^52 packets
    pub fn rate(&self) -> f64 {
        self.packets as f64 / self.elapsed.as_secs_f64()
    }
}

/// The two ends of the first hop.
#[derive(Debug)]
pub struct FirstHop<'a> {
    /// Where the generator runs.
    pub client: &'a Netns,
    /// Its device.
    pub device: &'a str,
    /// The namespace of the next hop.
    pub gateway: &'a Netns,
    /// The next hop's device.
    pub gateway_device: &'a str,
}

/// Sends until the offer's duration is over or it is told to stop.
///
/// # Errors
/// When the devices are not there or the socket cannot be opened.
pub fn send(
    hop: &FirstHop<'_>,
    from: Ipv4Addr,
    to: Ipv4Addr,
    offer: &Offer,
    control: &Control,
) -> Result<Sent> {
    let next = hop.gateway.enter(|| link_address(hop.gateway_device))??;
    hop.client.enter(|| {
        let own = link_address(hop.device)?;
        let frames: Vec<Vec<u8>> = (0..offer.flows)
            .map(|flow| frame(mac(&own), mac(&next), from, to, FIRST_SOURCE_PORT + flow, offer.length))
            .collect();
        // Protocol 0: this socket receives nothing.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| Error::io("cannot open a packet socket")(errno.into()))?;
        bind(socket.as_raw_fd(), &own)
            .map_err(|errno| Error::io("cannot bind the packet socket")(errno.into()))?;
        paced(socket.as_raw_fd(), &frames, offer, control)
    })?
}

fn paced(socket: i32, frames: &[Vec<u8>], offer: &Offer, control: &Control) -> Result<Sent> {
    let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
    let addresses = [None::<LinkAddr>; BATCH];
    let mut sent = 0_u64;
    let mut flow = 0;
    // Advanced whenever missed packets are given up.
    let started = Instant::now();
    let mut schedule = started;
    let mut scheduled = 0.0;
    let mut headers = MultiHeaders::<LinkAddr>::preallocate(BATCH, None);
    loop {
        let now = Instant::now();
        if now - started >= offer.duration || control.stop.load(Ordering::Relaxed) {
            return Ok(Sent { packets: sent, elapsed: now - started });
        }
        let due = (now - schedule).as_secs_f64() * offer.rate - scheduled;
        if due < 1.0 {
            std::thread::sleep(NAP);
            continue;
        }
        if due > CATCH_UP.as_secs_f64() * offer.rate {
            schedule = now - CATCH_UP / 2;
            scheduled = 0.0;
            continue;
        }
        // At least 1 and at most BATCH.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let count = (due as usize).min(BATCH);
        let batch = (0..count).map(|at| &slices[(flow + at) % slices.len()]);
        match sendmmsg(socket, &mut headers, batch, &addresses[..count], [], MsgFlags::empty()) {
            Ok(done) => {
                let done = done.count();
                flow = (flow + done) % slices.len();
                sent += done as u64;
                control.sent.store(sent, Ordering::Relaxed);
                #[allow(clippy::cast_precision_loss)]
                {
                    scheduled += done as f64;
                }
            }
            Err(nix::Error::ENOBUFS | nix::Error::EINTR) => {}
            Err(errno) => return Err(Error::io("cannot send")(errno.into())),
        }
    }
}

fn link_address(device: &str) -> Result<LinkAddr> {
    let mut addresses = getifaddrs().map_err(|errno| Error::io("cannot list devices")(errno.into()))?;
    addresses
        .find(|entry| entry.interface_name == device && as_link(entry).is_some())
        .and_then(|entry| as_link(&entry))
        .ok_or_else(|| Error::Usage(format!("no device {device}")))
}

fn as_link(entry: &nix::ifaddrs::InterfaceAddress) -> Option<LinkAddr> {
    entry.address.as_ref()?.as_link_addr().copied()
}

fn mac(address: &LinkAddr) -> [u8; 6] {
    address.addr().unwrap_or_default()
}

/// An Ethernet frame with one UDP packet, both checksums complete.
fn frame(
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    source: Ipv4Addr,
    destination: Ipv4Addr,
    source_port: u16,
    length: usize,
) -> Vec<u8> {
    let length = length.max(HEADERS);
    // An MTU fits in 16 bits.
    let total = u16::try_from(length).unwrap_or(u16::MAX);
    let mut frame = Vec::with_capacity(ETHERNET + length);
    frame.extend(destination_mac);
    frame.extend(source_mac);
    frame.extend([0x08, 0x00]);
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    // No identification, Don't Fragment, 64 hops, UDP, checksum to come.
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    let checksum = internet_checksum(&frame[ETHERNET..ETHERNET + 20], 0);
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
    let udp = frame.len();
    frame.extend(source_port.to_be_bytes());
    frame.extend(PORT.to_be_bytes());
    frame.extend((total - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.resize(ETHERNET + length, 0);
    // RFC 768: over a pseudo header too, and 0 is sent as its complement.
    let pseudo = sum(&source.octets()) + sum(&destination.octets()) + 17 + u32::from(total - 20);
    let checksum = match internet_checksum(&frame[udp..], pseudo) {
        0 => u16::MAX,
        checksum => checksum,
    };
    frame[udp + 6..udp + 8].copy_from_slice(&checksum.to_be_bytes());
    frame
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8], start: u32) -> u16 {
    let mut total = start + sum(bytes);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    // Folded to 16 bits above.
    #[allow(clippy::cast_possible_truncation)]
    {
        !(total as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_asked_length_and_right_checksums() {
        let (from, to) = (Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 2, 0, 2));
        let frame = frame([1; 6], [2; 6], from, to, 20_001, 64);
        assert_eq!(frame.len(), ETHERNET + 64);
        let ip = &frame[ETHERNET..];
        assert_eq!(internet_checksum(&ip[..20], 0), 0);
        let pseudo = sum(&from.octets()) + sum(&to.octets()) + 17 + 44;
        assert_eq!(internet_checksum(&ip[20..], pseudo), 0);
        assert_eq!(ip[2..4], [0, 64]);
    }

    /// The example of RFC 1071 section 3.
    #[test]
    fn checksum_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet_checksum(&bytes, 0), !0xddf2);
    }
}

//! The thread that hears routers say that a peer cannot be reached.
//!
//! Such a message can be forged, so it decides nothing (RFC 7296 section 2.4): it has the tunnel's probes sent at
//! once, and their silence decides.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::mpsc,
    time::Duration,
};

use braid_api::Encapsulation;
use rustix::{
    event::{PollFd, PollFlags},
    net::RecvFlags,
};

use super::{Input, socket_address};
use crate::{tables::Reader, worker::monotonic};

/// Messages that are looked at in a second: each may cost a look at every tunnel.
const PER_SECOND: u32 = 100;
/// Of any kind that are received in a second.
const RECEIVED_PER_SECOND: u32 = 1000;
/// Beyond these it rests for so long, and the kernel drops what does not fit the socket.
const REST: Duration = Duration::from_millis(50);
/// The IP header, the message's own eight bytes, and what it quotes: a header and eight bytes more.
const BUFFER: usize = 256;
const UDP: u8 = 17;
const ESP: u8 = 50;

/// The packet that could not be delivered, with ports of zero where it was raw ESP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Quoted {
    from: SocketAddr,
    to: SocketAddr,
}

/// The thread's state.
pub(crate) struct Unreachable {
    sockets: Vec<OwnedFd>,
    reader: Reader,
    inputs: mpsc::SyncSender<Input>,
    /// In which this was received, and looked at.
    second: u64,
    received: u32,
    looked: u32,
}

impl Unreachable {
    pub(crate) fn new(sockets: Vec<OwnedFd>, reader: Reader, inputs: mpsc::SyncSender<Input>) -> Self {
        Unreachable { sockets, reader, inputs, second: 0, received: 0, looked: 0 }
    }

    /// Runs as long as there is a liveness thread.
    pub(crate) fn run(mut self) {
        let mut buffer = [0; BUFFER];
        loop {
            let mut polled: Vec<_> =
                self.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
            // Interrupted, it finds nothing, and waits again.
            let _ = rustix::event::poll(&mut polled, None);
            drop(polled);
            for index in 0..self.sockets.len() {
                let quoted = self.receive(index, &mut buffer);
                if !self.may_go_on(quoted.is_some(), monotonic().nanos / 1_000_000_000) {
                    std::thread::sleep(REST);
                } else if quoted.is_some_and(|quoted| !self.tell(quoted)) {
                    return;
                }
            }
        }
    }

    fn receive(&self, index: usize, buffer: &mut [u8; BUFFER]) -> Option<Quoted> {
        let (len, _) = rustix::net::recv(&self.sockets[index], &mut buffer[..], RecvFlags::DONTWAIT).ok()?;
        quoted(&buffer[..len])
    }

    /// Counts a message, of those that name somebody apart.
    fn may_go_on(&mut self, names_somebody: bool, second: u64) -> bool {
        if self.second != second {
            (self.second, self.received, self.looked) = (second, 0, 0);
        }
        self.received += 1;
        self.looked += u32::from(names_somebody);
        self.received <= RECEIVED_PER_SECOND && self.looked <= PER_SECOND
    }

    /// Says whether there is still somebody to tell.
    fn tell(&mut self, quoted: Quoted) -> bool {
        let mut reader = self.reader.clone();
        let tables = reader.enter();
        let concerned = tables.tunnels().filter(|tunnel| {
            let is_raw = tunnel.settings.encapsulation == Encapsulation::Esp;
            let remote = tunnel.live.remote();
            let remote = remote.map(|to| if is_raw { SocketAddr::new(to.ip(), 0) } else { to });
            remote == Some(quoted.to) && socket_address(&tunnel.settings) == quoted.from
        });
        let ids: Vec<_> = concerned.map(|tunnel| tunnel.settings.id).collect();
        drop(tables);
        ids.into_iter().all(|id| {
            // Where inputs wait, one that only hastens is the first to be done without.
            let told = self.inputs.try_send(Input::Unreachable(id));
            !matches!(told, Err(mpsc::TrySendError::Disconnected(_)))
        })
    }
}

/// What a message of one of [`crate::io::icmp`]'s sockets quotes, if it says that the peer is not reached.
fn quoted(message: &[u8]) -> Option<Quoted> {
    if message.first()? >> 4 == 4 {
        let icmp = message.get(usize::from(message[0] & 0x0f) * 4..)?;
        // RFC 792; code 4 says that a packet was too big, and the peer is there.
        match icmp.get(..2)? {
            [3, 4] => return None,
            [3 | 11, _] => {}
            _ => return None,
        }
        let ip = icmp.get(8..)?;
        let header: &[u8; 20] = ip.first_chunk()?;
        let address =
            |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
        return ends(header[9], address(12), address(16), ip.get(usize::from(header[0] & 0x0f) * 4..)?);
    }
    // RFC 4443 sections 3.1 and 3.3.
    if !matches!(message.first()?, 1 | 3) {
        return None;
    }
    let header: &[u8; 40] = message.get(8..)?.first_chunk()?;
    let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(*header[at..].first_chunk::<16>()?)));
    ends(header[6], address(8)?, address(24)?, message.get(48..)?)
}

fn ends(protocol: u8, from: IpAddr, to: IpAddr, transport: &[u8]) -> Option<Quoted> {
    let (source, destination) = match protocol {
        UDP => {
            let [a, b, c, d] = *transport.first_chunk()?;
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        }
        ESP => (0, 0),
        _ => return None,
    };
    Some(Quoted { from: SocketAddr::new(from, source), to: SocketAddr::new(to, destination) })
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const US: [u8; 4] = [192, 0, 2, 1];
    const PEER: [u8; 4] = [198, 51, 100, 1];

    /// As the socket of IPv4 has it: a router's header, the message, and the packet of ours.
    fn message_v4(kind: u8, code: u8, packet: &[u8]) -> Vec<u8> {
        let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
        icmp.extend(&packet[..packet.len().min(28)]);
        let header =
            etherparse::Ipv4Header::new(icmp.len() as u16, 64, etherparse::IpNumber::ICMP, [10, 0, 0, 9], US);
        let mut message = header.unwrap().to_bytes().to_vec();
        message.extend(icmp);
        message
    }

    fn ours() -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(US, PEER, 64).udp(4500, 4501).write(&mut packet, &[1; 40]).unwrap();
        packet
    }

    #[test]
    fn what_says_that_a_peer_is_not_reached_names_both_ends() {
        let both = Quoted { from: (US, 4500).into(), to: (PEER, 4501).into() };
        for (kind, code, expected) in
            [(3, 1, true), (3, 3, true), (11, 0, true), (3, 4, false), (8, 0, false)]
        {
            assert_eq!(quoted(&message_v4(kind, code, &ours())), expected.then_some(both), "{kind}/{code}");
        }
        let mut raw = ours();
        raw[9] = ESP;
        let ends = Quoted { from: (US, 0).into(), to: (PEER, 0).into() };
        assert_eq!(quoted(&message_v4(3, 1, &raw)), Some(ends));
        raw[9] = 6;
        assert_eq!(quoted(&message_v4(3, 1, &raw)), None);
        let (us, peer) = ([0x20; 16], [0x21; 16]);
        let mut packet = Vec::new();
        PacketBuilder::ipv6(us, peer, 64).udp(4500, 4501).write(&mut packet, &[1; 40]).unwrap();
        let v6 = |kind: u8| [&[kind, 0, 0, 0, 0, 0, 0, 0], &packet[..48]].concat();
        let both = Quoted { from: (us, 4500).into(), to: (peer, 4501).into() };
        assert_eq!((quoted(&v6(1)), quoted(&v6(3)), quoted(&v6(2))), (Some(both), Some(both), None));
    }

    #[test]
    fn what_is_cut_short_anywhere_names_nobody_and_nothing_panics() {
        let whole = message_v4(3, 1, &ours());
        for len in 0..whole.len() {
            let cut = quoted(&whole[..len]);
            assert_eq!(cut.is_some(), len >= 20 + 8 + 20 + 4, "{len}");
        }
        let mut seed = 1_u32;
        for _ in 0..100_000 {
            let bytes: Vec<u8> = (0..seed % 80)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 24) as u8
                })
                .collect();
            quoted(&bytes);
            seed = seed.wrapping_add(0x9e37_79b9);
        }
    }
}

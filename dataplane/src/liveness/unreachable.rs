//! The thread that hears routers say that a peer cannot be reached, or that the path to it is narrow.
//!
//! The first can be forged, so it decides nothing (RFC 7296 section 2.4): it has the tunnel's probes sent at once, and
//! their silence decides. The second the kernel hears itself, except where raw ESP goes over IPv6: of what no connected
//! socket has sent it learns nothing (`rawv6_err` in `net/ipv6/raw.c`).

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
use crate::{
    tables::{Carrier, Reader, Tunnel},
    worker::{Notice, Notices, monotonic},
};

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
/// RFC 8200 section 5.
const MIN_MTU_V6: u32 = 1280;

/// The packet that could not be delivered, with ports of zero where it was raw ESP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Quoted {
    from: SocketAddr,
    to: SocketAddr,
    /// It was too big, and the peer is there.
    narrow: Option<Narrow>,
}

/// Of raw ESP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Narrow {
    spi: u32,
    path_mtu: u16,
}

/// The thread's state.
pub(crate) struct Unreachable {
    sockets: Vec<OwnedFd>,
    reader: Reader,
    inputs: mpsc::SyncSender<Input>,
    notices: Notices,
    /// In which this was received, and looked at.
    second: u64,
    received: u32,
    looked: u32,
}

impl Unreachable {
    pub(crate) fn new(
        sockets: Vec<OwnedFd>,
        reader: Reader,
        inputs: mpsc::SyncSender<Input>,
        notices: Notices,
    ) -> Self {
        Unreachable { sockets, reader, inputs, notices, second: 0, received: 0, looked: 0 }
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
        if let Some(Narrow { spi, path_mtu }) = quoted.narrow {
            // Who forges it has seen a packet of ours; lost, the next one says it again.
            for tunnel in concerned.filter(|tunnel| sends_by(tunnel, spi)) {
                self.notices.send(Notice::Narrow { tunnel: tunnel.settings.id, path_mtu });
            }
            return true;
        }
        let ids: Vec<_> = concerned.map(|tunnel| tunnel.settings.id).collect();
        drop(tables);
        ids.into_iter().all(|id| {
            // Where inputs wait, one that only hastens is the first to be done without.
            let told = self.inputs.try_send(Input::Unreachable(id));
            !matches!(told, Err(mpsc::TrySendError::Disconnected(_)))
        })
    }
}

fn sends_by(tunnel: &Tunnel, spi: u32) -> bool {
    matches!(&tunnel.outbound, Some(Carrier::Esp(sa)) if sa.spi.0 == spi)
}

/// What a message of one of [`crate::io::icmp`]'s sockets quotes, if it says that the peer is not reached, or how narrow
/// the path of raw ESP over IPv6 is.
fn quoted(message: &[u8]) -> Option<Quoted> {
    if message.first()? >> 4 == 4 {
        let icmp = message.get(usize::from(message[0] & 0x0f) * 4..)?;
        // RFC 792. Code 4 says that a packet was too big, code 2 that nobody takes the protocol: the peer is there, and
        // Linux says the latter of raw sockets that are full (`raw_v4_input` in `net/ipv4/raw.c`).
        match icmp.get(..2)? {
            [3, 2 | 4] => return None,
            [3 | 11, _] => {}
            _ => return None,
        }
        let ip = icmp.get(8..)?;
        let header: &[u8; 20] = ip.first_chunk()?;
        let address =
            |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
        return ends(header[9], address(12), address(16), ip.get(usize::from(header[0] & 0x0f) * 4..)?);
    }
    // RFC 4443 sections 3.1 to 3.3. RFC 8201 section 4: what is less than any link takes is to be discarded.
    let path_mtu = match *message.first_chunk::<8>()? {
        [1 | 3, ..] => None,
        [2, _, _, _, a, b, c, d] => {
            let mtu = u32::from_be_bytes([a, b, c, d]);
            Some(u16::try_from(mtu).ok().filter(|_| mtu >= MIN_MTU_V6)?)
        }
        _ => return None,
    };
    let header: &[u8; 40] = message.get(8..)?.first_chunk()?;
    let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(*header[at..].first_chunk::<16>()?)));
    let transport = message.get(48..)?;
    let quoted = ends(header[6], address(8)?, address(24)?, transport)?;
    let Some(path_mtu) = path_mtu else { return Some(quoted) };
    let spi = transport.first_chunk().filter(|_| header[6] == ESP)?;
    Some(Quoted { narrow: Some(Narrow { spi: u32::from_be_bytes(*spi), path_mtu }), ..quoted })
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
    Some(Quoted { from: SocketAddr::new(from, source), to: SocketAddr::new(to, destination), narrow: None })
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
        let both = Quoted { from: (US, 4500).into(), to: (PEER, 4501).into(), narrow: None };
        for (kind, code, expected) in
            [(3, 1, true), (3, 3, true), (11, 0, true), (3, 2, false), (3, 4, false), (8, 0, false)]
        {
            assert_eq!(quoted(&message_v4(kind, code, &ours())), expected.then_some(both), "{kind}/{code}");
        }
        let mut raw = ours();
        raw[9] = ESP;
        let ends = Quoted { from: (US, 0).into(), to: (PEER, 0).into(), narrow: None };
        assert_eq!(quoted(&message_v4(3, 1, &raw)), Some(ends));
        raw[9] = 6;
        assert_eq!(quoted(&message_v4(3, 1, &raw)), None);
        let (us, peer) = ([0x20; 16], [0x21; 16]);
        let mut packet = Vec::new();
        PacketBuilder::ipv6(us, peer, 64).udp(4500, 4501).write(&mut packet, &[1; 40]).unwrap();
        let v6 = |kind: u8| [&[kind, 0, 0, 0, 0, 0, 0, 0], &packet[..48]].concat();
        let both = Quoted { from: (us, 4500).into(), to: (peer, 4501).into(), narrow: None };
        assert_eq!((quoted(&v6(1)), quoted(&v6(3)), quoted(&v6(2))), (Some(both), Some(both), None));
    }

    #[test]
    fn a_narrow_path_is_heard_of_where_the_kernel_does_not_listen() {
        let (us, peer) = ([0x20; 16], [0x21; 16]);
        let mut packet = Vec::new();
        let spi = [0x12, 0x34, 0x56, 0x78];
        PacketBuilder::ipv6(us, peer, 64).write(&mut packet, 50.into(), &spi).unwrap();
        let says = |mtu: u32, packet: &[u8]| {
            let [a, b, c, d] = mtu.to_be_bytes();
            quoted(&[&[2, 0, 0, 0, a, b, c, d], packet].concat())
        };
        let narrow = |path_mtu| Quoted {
            from: (us, 0).into(),
            to: (peer, 0).into(),
            narrow: Some(Narrow { spi: 0x1234_5678, path_mtu }),
        };
        assert_eq!((says(1400, &packet), says(1280, &packet)), (Some(narrow(1400)), Some(narrow(1280))));
        // Less than any link takes, more than there is, cut short, and not ours to hear.
        assert_eq!(
            (says(1279, &packet), says(65_536, &packet), says(1400, &packet[..43])),
            (None, None, None)
        );
        packet[6] = UDP;
        assert_eq!(says(1400, &packet), None);
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

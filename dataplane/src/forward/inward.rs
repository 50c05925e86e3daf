//! From the wire to the LAN: authenticate, check, join.

use std::{
    net::SocketAddr,
    ops::Range,
    sync::{Arc, MutexGuard},
};

use braid_api::{
    Allowed, Direction, Event, SaTraffic, Spi, Target,
    punt::{IKE_PORT, NON_ESP_MARKER},
};

use super::{
    Forwarder, MAX_REPLIES, Now, ProbeReply, Progress, bfd, ecn,
    icmp::{self, Echo},
    mss,
};
use crate::{
    drop_reason::DropReason,
    esp::{
        NEXT_HEADER_IPV4, NEXT_HEADER_IPV6, NEXT_HEADER_NONE, OpenError, Replay, ReplayError, sa::InboundSa,
    },
    io::batch::HEADROOM,
    offload::coalesce::{Place, Slots},
    packet::{self, Packet},
    tables::{Tables, Tunnel},
};

/// What kind of socket a datagram came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wire {
    /// UDP: ESP, IKE behind the non-ESP marker, keepalives (RFC 3948 section 2).
    Udp,
    /// UDP port 500: IKE without a marker (RFC 7296 section 2).
    Ike,
    /// Raw ESP, behind its IPv4 header.
    Esp4,
    /// Raw ESP, without its IPv6 header.
    Esp6,
    /// UDP: WireGuard, on the socket of this address.
    WireGuard(SocketAddr),
}

impl Wire {
    /// Of the socket of ESP and IKE that is bound to this address; port 0 is raw ESP.
    pub fn of(local: SocketAddr) -> Self {
        match local {
            SocketAddr::V4(_) if local.port() == 0 => Wire::Esp4,
            SocketAddr::V6(_) if local.port() == 0 => Wire::Esp6,
            _ if local.port() == IKE_PORT => Wire::Ike,
            _ => Wire::Udp,
        }
    }

    /// Where in a slot datagrams begin: what is before them takes what comes out where it cannot be opened in place.
    pub fn headroom(self) -> usize {
        match self {
            Wire::WireGuard(_) => HEADROOM,
            Wire::Udp | Wire::Ike | Wire::Esp4 | Wire::Esp6 => 0,
        }
    }
}

/// Datagrams of equal size from one sender, and how much of them has been dealt with.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Where they lie, from [`Wire::headroom`] on.
    pub slot: usize,
    /// Where they end in the slot.
    end: usize,
    /// Bytes of each but the last.
    pub segment: usize,
    /// The sender's outer address.
    pub from: SocketAddr,
    /// Outer TOS.
    pub tos: u8,
    /// From what kind of socket.
    pub wire: Wire,
    done: usize,
}

impl Arrival {
    /// Datagrams that were just received, `len` bytes in all.
    pub fn new(slot: usize, len: usize, segment: usize, from: SocketAddr, tos: u8, wire: Wire) -> Self {
        let start = wire.headroom();
        Arrival { slot, end: start + len, segment: segment.max(1), from, tos, wire, done: start }
    }

    /// Where the next datagram lies.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Range<usize>> {
        let at = self.done..(self.done + self.segment).min(self.end);
        self.done = at.end;
        (!at.is_empty()).then_some(at)
    }

    /// The datagram there is not dealt with.
    #[inline]
    pub(super) fn again(&mut self, at: &Range<usize>) {
        self.done = at.start;
    }
}

/// Neighbours of one SA share its lock and its counters.
struct Current<'t> {
    sa: &'t Arc<InboundSa>,
    tunnel: &'t Arc<Tunnel>,
    replay: MutexGuard<'t, Replay>,
    packets: u64,
    bytes: u64,
    /// The highest sequence number before this run.
    top: u64,
}

impl Current<'_> {
    fn finish(self, worker: usize, from: SocketAddr, now: Now, events: &mut Vec<Event>) {
        if self.packets == 0 {
            return;
        }
        let Current { sa, tunnel, .. } = self;
        // RFC 7296 section 2.8: the first packet tells that the peer uses the SA.
        if sa.counter.packets() == 0 && events.len() < MAX_REPLIES {
            events.push(Event::Traffic(vec![SaTraffic {
                sa: sa.id,
                tunnel: sa.tunnel,
                direction: Direction::In,
                spi: sa.spi,
                packets: self.packets,
                bytes: self.bytes,
                heard_ago: Some(core::time::Duration::ZERO),
            }]));
        }
        sa.counter.add(self.packets, self.bytes);
        tunnel.live.received(worker, self.packets, self.bytes);
        tunnel.live.heard(now.nanos);
        // A responder learns the peer's address from the first packet that proves its sender. A
        // known address stays unless control lets it move, and then only the newest packet moves
        // it: an older one may come by the path that the peer has left.
        let learns = tunnel.settings.remote.is_none();
        let follows = tunnel.settings.follow_remote && self.replay.top() > self.top;
        if learns || follows {
            tunnel.live.heard_from(from);
        }
    }
}

impl Forwarder {
    /// Takes datagrams from the wire as far as super-packets for the LAN.
    #[inline]
    pub fn inward(
        &mut self,
        tables: &Tables,
        slots: &mut impl Slots,
        arrival: &mut Arrival,
        now: Now,
    ) -> Progress {
        if let Wire::WireGuard(local) = arrival.wire {
            return self.inward_wireguard(tables, slots, arrival, local, now);
        }
        let mut current: Option<Current<'_>> = None;
        let mut progress = Progress::Done;
        while let Some(Range { start, end }) = arrival.next() {
            if self.lan.is_full() {
                arrival.again(&(start..end));
                progress = Progress::Full;
                break;
            }
            let Some(start) = self.esp_start(slots.slot(arrival.slot), start, end, arrival) else { continue };
            let esp = &slots.slot(arrival.slot)[start..end];
            let spi = Spi(u32::from_be_bytes([esp[0], esp[1], esp[2], esp[3]]));
            if current.as_ref().is_none_or(|current| current.sa.spi != spi) {
                if let Some(last) = current.take() {
                    last.finish(self.worker, arrival.from, now, &mut self.events);
                }
                current = find(tables, spi);
            }
            let Some(of) = &mut current else {
                self.drop(DropReason::UnknownSpi, 1);
                continue;
            };
            if let Err(reason) = self.open(tables, of, slots, arrival, start..end, now) {
                self.drop(reason, 1);
            }
        }
        if let Some(last) = current {
            last.finish(self.worker, arrival.from, now, &mut self.events);
        }
        progress
    }

    /// Where ESP starts in a datagram, if it is ESP.
    #[inline]
    fn esp_start(&mut self, slot: &[u8], start: usize, end: usize, arrival: &Arrival) -> Option<usize> {
        let datagram = &slot[start..end];
        match arrival.wire {
            Wire::Udp => {
                // RFC 3948 section 2.3: one byte ff keeps a NAT's mapping alive.
                if datagram == [0xFF] {
                    return None;
                }
                // RFC 3948 section 2.2: four zero bytes before IKE, where ESP has its SPI.
                if datagram.len() > 4 && datagram[..4] == NON_ESP_MARKER {
                    self.punt(start + NON_ESP_MARKER.len()..end);
                    return None;
                }
                if datagram.len() < 8 {
                    self.drop(DropReason::Truncated, 1);
                    return None;
                }
                Some(start)
            }
            Wire::Ike => {
                // A NAT's mapping is kept alive here too, by peers that have not floated.
                if datagram != [0xFF] {
                    self.punt(start..end);
                }
                None
            }
            Wire::Esp4 => {
                let header = usize::from(datagram.first().copied().unwrap_or(0) & 0x0F) * 4;
                if header < 20 || datagram.len() < header + 8 {
                    self.drop(DropReason::Truncated, 1);
                    return None;
                }
                Some(start + header)
            }
            Wire::Esp6 if datagram.len() < 8 => {
                self.drop(DropReason::Truncated, 1);
                None
            }
            Wire::Esp6 => Some(start),
            // That is no ESP.
            Wire::WireGuard(_) => None,
        }
    }

    /// Control gets it whatever the load is.
    fn punt(&mut self, message: Range<usize>) {
        if self.punted.len() < MAX_REPLIES {
            self.punted.push(message);
        } else {
            self.drop(DropReason::PuntFull, 1);
        }
    }

    #[inline]
    fn open(
        &mut self,
        tables: &Tables,
        of: &mut Current<'_>,
        slots: &mut impl Slots,
        arrival: &Arrival,
        at: Range<usize>,
        now: Now,
    ) -> Result<(), DropReason> {
        let slot = slots.slot_mut(arrival.slot);
        let esp = &mut slot[at.clone()];
        let low = u32::from_be_bytes([esp[4], esp[5], esp[6], esp[7]]);
        let sequence = of.replay.check(low).map_err(replayed)?;
        let opened = of.sa.opener().open(esp, sequence).map_err(|error| match error {
            OpenError::TooShort | OpenError::NotWholeBlocks => DropReason::Truncated,
            OpenError::BadIcv => DropReason::BadIcv,
            OpenError::BadPadding => DropReason::BadTrailer,
        });
        // RFC 4303 section 3.4.3: the window moves only once the packet is authentic, and then always.
        if matches!(opened, Ok(_) | Err(DropReason::BadTrailer)) {
            of.replay.commit(sequence).map_err(replayed)?;
        }
        let opened = opened?;
        let inner = &mut esp[opened.start..opened.end];
        match opened.next_header {
            // RFC 4303 section 2.6: dummy packets are dropped without remark, but they prove the peer.
            NEXT_HEADER_NONE => {
                of.packets += 1;
                return Ok(());
            }
            NEXT_HEADER_IPV4 if inner.first().is_some_and(|first| first >> 4 == 4) => {}
            NEXT_HEADER_IPV6 if inner.first().is_some_and(|first| first >> 4 == 6) => {}
            NEXT_HEADER_IPV4 | NEXT_HEADER_IPV6 => return Err(DropReason::DecryptedMalformed),
            _ => return Err(DropReason::BadTrailer),
        }
        let packet = self.parse_opened(inner)?;
        of.packets += 1;
        of.bytes += packet.len as u64;
        if !of.sa.any && !of.sa.accepts(packet.source(), packet.destination()) {
            return Err(DropReason::SelectorIn);
        }
        self.deliver(tables, of.tunnel, &packet, slots, arrival, at.start + opened.start, now)
    }

    /// What came out of a tunnel.
    #[inline(always)]
    pub(super) fn parse_opened(&self, inner: &[u8]) -> Result<Packet, DropReason> {
        match packet::parse_usual_v4(inner) {
            Some(packet) => Ok(packet),
            None => packet::parse(inner).map_err(|_| DropReason::DecryptedMalformed),
        }
    }

    /// Takes an authentic packet, which begins at `start` in the arrival's slot, as far as the LAN.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "inlined into both protocols")]
    pub(super) fn deliver(
        &mut self,
        tables: &Tables,
        tunnel: &Tunnel,
        packet: &Packet,
        slots: &mut impl Slots,
        arrival: &Arrival,
        start: usize,
        now: Now,
    ) -> Result<(), DropReason> {
        if !self.source_allowed(tables, tunnel, packet) {
            return Err(DropReason::SourceNotAllowed);
        }
        let to_us = tunnel.settings.inside.contains(&packet.destination());
        if !tunnel.settings.reach.is_empty() && !to_us && !reaches(tunnel, packet.destination()) {
            return Err(DropReason::DestinationNotAllowed);
        }
        let inner = &mut slots.slot_mut(arrival.slot)[start..start + packet.len];
        if arrival.tos & 0b11 != 0 {
            ecn::decapsulate(arrival.tos, inner, packet.v6, packet.tos)
                .map_err(|_| DropReason::EcnIllegal)?;
        }
        if to_us && self.answer(tunnel, packet, inner, now)? {
            return Ok(());
        }
        if self.overloaded && !to_us {
            return Err(DropReason::Overload);
        }
        mss::clamp(inner, packet, tunnel.settings.clamp_mtu, false);
        if let Some(pins) = tables.pins()
            && !packet.quotes()
        {
            let hash = packet.key.hash(&tables.settings().hash_seed, true);
            pins.arrived(hash, tunnel.settings.id, now.nanos);
        }
        let place = Place { slot: arrival.slot as u16, start: start as u16, len: packet.len as u16 };
        self.lan.push(packet, place, slots);
        Ok(())
    }

    /// Whether the tunnel may send from this source; found by the routes unless configured.
    #[inline]
    fn source_allowed(&mut self, tables: &Tables, tunnel: &Tunnel, packet: &Packet) -> bool {
        let settings = &tunnel.settings;
        let generation = tables.generation();
        if self.sources.holds(packet.source_number(), packet.v6, settings.id, generation) {
            return true;
        }
        let source = packet.source();
        // Nobody else has our addresses, whatever the routes let him send.
        if tables.settings().own.binary_search(&source).is_ok() {
            return false;
        }
        let allowed = settings.peer_inside.contains(&source)
            || match &settings.allowed {
                Allowed::Prefixes(prefixes) => prefixes.iter().any(|prefix| prefix.contains(&source)),
                Allowed::Routed => match tables.route(source) {
                    Some((_, Target::Tunnel(id))) => id == settings.id,
                    Some((_, Target::Group(id))) => {
                        tables.group(id).is_some_and(|group| group.contains(settings.id))
                    }
                    None => false,
                },
                Allowed::RoutedAnywhere => match tables.route(source) {
                    Some((_, Target::Tunnel(id))) => id == settings.id,
                    Some((_, Target::Group(_))) => true,
                    None => false,
                },
            };
        if allowed {
            self.sources.put(packet.source_number(), packet.v6, settings.id, generation);
        }
        allowed
    }

    /// Answers a ping of the inside address and takes probes' replies and BFD: all live in overload.
    fn answer(
        &mut self,
        tunnel: &Tunnel,
        packet: &Packet,
        bytes: &mut [u8],
        now: Now,
    ) -> Result<bool, DropReason> {
        let settings = &tunnel.settings;
        match bfd::take(settings.id, &settings.bfd, packet, bytes) {
            Some(Ok(packet)) if self.bfd_packets.len() < MAX_REPLIES => {
                self.bfd_packets.push(packet);
                return Ok(true);
            }
            Some(Ok(_)) => return Err(DropReason::LivenessFull),
            Some(Err(_)) => return Err(DropReason::BfdDiscarded),
            None => {}
        }
        Ok(match icmp::echo(bytes, packet) {
            // A ping that is too big for the way back is left to the kernel, which fragments.
            Some(Echo::Request) if packet.len <= usize::from(tunnel.mtu) => {
                icmp::turn_round(bytes, packet);
                self.reply(tunnel, packet, bytes)?;
                true
            }
            Some(Echo::ProbeReply { .. }) if self.probe_replies.len() == MAX_REPLIES => {
                return Err(DropReason::LivenessFull);
            }
            Some(Echo::ProbeReply { cookie }) => {
                self.probe_replies.push(ProbeReply { tunnel: settings.id, cookie, nanos: now.nanos });
                true
            }
            Some(Echo::Request) | None => false,
        })
    }
}

#[cold]
fn reaches(tunnel: &Tunnel, destination: std::net::IpAddr) -> bool {
    tunnel.settings.reach.iter().any(|prefix| prefix.contains(&destination))
}

fn find(tables: &Tables, spi: Spi) -> Option<Current<'_>> {
    let sa = tables.inbound(spi)?;
    let tunnel = tables.tunnel(sa.tunnel)?;
    let replay = sa.replay();
    let top = replay.top();
    Some(Current { sa, tunnel, replay, packets: 0, bytes: 0, top })
}

fn replayed(error: ReplayError) -> DropReason {
    match error {
        ReplayError::Replayed => DropReason::Replayed,
        ReplayError::TooOld => DropReason::TooOld,
    }
}

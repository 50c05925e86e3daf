//! From the LAN to the wire: look up, choose a tunnel, cut up, place in a run.

use std::{net::IpAddr, ops::Range};

use braid_api::{DfPolicy, GroupId, Target, TunnelId};

use super::{
    Forwarder, Now, Progress, ecn,
    flow_cache::{Place, Way},
    fragment::Fragmenter,
    icmp, mss,
};
use crate::{
    drop_reason::DropReason,
    offload::{segment::Segmenter, vnet::Vnet},
    packet::{self, Packet},
    runs::{Kind, NoPlace},
    tables::{Carrier, Group, Pins, Tables, Tunnel},
};

/// A packet from the device, and how much of it has been dealt with.
#[derive(Debug)]
pub struct Departure {
    /// Where the packet lies in the buffer that runs are sealed from, without the device's header.
    at: Range<usize>,
    /// The device's header.
    vnet: Vnet,
    /// Segments, or fragments of a segment, that are placed already.
    placed: (usize, usize),
    kept: bool,
}

impl Departure {
    /// A packet that was just read.
    pub fn new(at: Range<usize>, vnet: Vnet) -> Self {
        Departure { at, vnet, placed: (0, 0), kept: false }
    }

    /// Whether a run will be sealed from where the packet lies, which must stay as it is until no run
    /// waits.
    pub fn is_kept(&self) -> bool {
        self.kept
    }
}

/// A packet and its flow's place in the cache.
#[derive(Clone, Copy)]
struct InFlow {
    packet: Packet,
    flow: Place,
}

impl Forwarder {
    /// Takes a packet from the LAN as far as a run for the wire.
    #[inline]
    pub fn outward(
        &mut self,
        tables: &Tables,
        buffer: &mut [u8],
        departure: &mut Departure,
        now: Now,
    ) -> Progress {
        let bytes = &buffer[departure.at.clone()];
        if let Some(packet) = packet::parse_usual_v4(bytes) {
            self.outward_parsed(tables, packet, buffer, departure, now)
        } else if let Some(packet) = packet::parse_usual_v6(bytes) {
            self.outward_parsed(tables, packet, buffer, departure, now)
        } else {
            self.outward_unusual(tables, buffer, departure, now)
        }
    }

    /// ICMP, fragments, options, extension headers.
    #[cold]
    #[inline(never)]
    fn outward_unusual(
        &mut self,
        tables: &Tables,
        buffer: &mut [u8],
        departure: &mut Departure,
        now: Now,
    ) -> Progress {
        let Ok(mut packet) = packet::parse(&buffer[departure.at.clone()]) else {
            return self.end(DropReason::InnerMalformed, 1);
        };
        if let Some(fragment) = packet.fragment {
            packet.key = self.fragments.key(&packet, fragment, now.nanos);
        }
        self.outward_parsed(tables, packet, buffer, departure, now)
    }

    /// Inlined for each family, so that of a usual packet nothing is written to memory that nobody
    /// asks for.
    #[inline(always)]
    fn outward_parsed(
        &mut self,
        tables: &Tables,
        packet: Packet,
        buffer: &mut [u8],
        departure: &mut Departure,
        now: Now,
    ) -> Progress {
        let flow = self.flows.place(&packet.key);
        // What an error quotes must not decide where the error goes.
        let known = if packet.quotes() { None } else { self.flows.way(flow, tables.generation()) };
        let way = match known {
            Some(way) => way,
            None => match self.find_way(tables, packet, flow) {
                Ok(way) => way,
                Err(reason) => return self.end_whole(reason, &packet, buffer, departure),
            },
        };
        let (tunnel, group) = match way {
            Way::Tunnel(id) => (Some(TunnelId(id.into())), None),
            Way::Bucket { group, bucket, home } => match tables.group(GroupId(group.into())) {
                Some(group) => {
                    let home = TunnelId(home.into());
                    let pinned = match tables.pins() {
                        None => None,
                        Some(pins) => self.pinned(tables, pins, group, &packet, now),
                    };
                    let tunnel =
                        pinned.or_else(|| group.pick(bucket, home, &self.states, now.ticks, now.late));
                    (tunnel, Some((group, bucket)))
                }
                None => (None, None),
            },
        };
        let Some(tunnel) = tunnel.and_then(|id| tables.tunnel(id)) else {
            return self.end_whole(DropReason::NoTunnel, &packet, buffer, departure);
        };
        let before = departure.placed.0;
        let progress = self.place_packet(tables, tunnel, &InFlow { packet, flow }, buffer, departure, now);
        if before == 0
            && let Some((group, bucket)) = group
        {
            group.count(bucket, 1, packet.len as u32);
        }
        progress
    }

    /// The tunnel by which the packet's flow came, if the packet's route leads there too.
    #[cold]
    #[inline(never)]
    fn pinned(
        &self,
        tables: &Tables,
        pins: &Pins,
        group: &Group,
        packet: &Packet,
        now: Now,
    ) -> Option<TunnelId> {
        // Errors are no flow.
        if packet.quotes() {
            return None;
        }
        let tunnel = pins.departs(packet.key.hash(&tables.settings().hash_seed, true), now.nanos)?;
        group.may_carry(tunnel, &self.states).then_some(tunnel)
    }

    /// Where the packet's route leads; remembered for the flow.
    #[cold]
    #[inline(never)]
    fn find_way(&mut self, tables: &Tables, packet: Packet, flow: Place) -> Result<Way, DropReason> {
        let destination = packet.destination();
        let no_route =
            if is_local_scope(destination) { DropReason::NotRoutable } else { DropReason::NoRoute };
        let way = match tables.route(destination).ok_or(no_route)?.1 {
            Target::Tunnel(tunnel) => Way::Tunnel(tunnel.0 as u16),
            Target::Group(id) => {
                let group = tables.group(id).ok_or(DropReason::NoRoute)?;
                let settings = tables.settings();
                let bucket = if group.is_single() {
                    0
                } else {
                    group.bucket_of(packet.key.hash(&settings.hash_seed, settings.symmetric_hash))
                };
                Way::Bucket { group: id.0 as u16, bucket, home: group.home(bucket).0 as u16 }
            }
        };
        if !packet.quotes() {
            self.flows.set_way(flow, tables.generation(), way);
        }
        Ok(way)
    }

    /// Into a run, in as many pieces as the device asks for.
    #[inline(always)]
    fn place_packet(
        &mut self,
        tables: &Tables,
        tunnel: &Tunnel,
        of: &InFlow,
        buffer: &mut [u8],
        departure: &mut Departure,
        now: Now,
    ) -> Progress {
        let packet = &of.packet;
        let Some(carrier) = &tunnel.outbound else {
            return self.end_whole(DropReason::NoSa, packet, buffer, departure);
        };
        if let Carrier::Esp(sa) = carrier
            && !sa.any
            && !sa.accepts(packet.source(), packet.destination())
        {
            return self.end_whole(DropReason::SelectorOut, packet, buffer, departure);
        }
        let at = departure.at.start..departure.at.start + packet.len;
        mss::clamp(&mut buffer[at.clone()], packet, tunnel.settings.clamp_mtu, departure.vnet.needs_csum);
        if !departure.vnet.is_whole() || packet.len > usize::from(tunnel.mtu) {
            return self.place_segments(tables, tunnel, *of, &buffer[at], departure, now);
        }
        let kind = kind(&of.packet);
        let last = self.flows.last_run(of.flow);
        departure.kept = true;
        match self.runs.keep(tunnel, carrier, kind, buffer, at, last) {
            Ok(()) => Progress::Done,
            Err(NoPlace::Full) => Progress::Full,
            Err(NoPlace::NoRemote) => self.end(DropReason::NoSa, 1),
        }
    }

    #[inline(never)]
    fn place_segments(
        &mut self,
        tables: &Tables,
        tunnel: &Tunnel,
        of: InFlow,
        bytes: &[u8],
        departure: &mut Departure,
        now: Now,
    ) -> Progress {
        let Some(carrier) = &tunnel.outbound else { return self.end(DropReason::NoSa, 1) };
        let packet = &of.packet;
        let Ok(segments) = Segmenter::new(bytes, packet, departure.vnet) else {
            return self.end(DropReason::InnerMalformed, 1);
        };
        if segments.largest() > usize::from(tunnel.mtu) {
            let may_fragment = !packet.v6 && (!packet.df || tunnel.settings.df == DfPolicy::Clear);
            if may_fragment {
                return self.fragment(tunnel, carrier, &of, &segments, &mut departure.placed);
            }
            if self.errors.len() < super::MAX_REPLIES && self.limiter.allow(now.nanos) {
                let sources = &tables.settings().icmp_source;
                self.errors.extend(icmp::too_big(bytes, packet, tunnel.mtu, sources));
            }
            return self.end(DropReason::TooBig, segments.count() as u64);
        }
        let kind = kind(&of.packet);
        let last = self.flows.last_run(of.flow);
        for index in departure.placed.0..segments.count() {
            match self.runs.place(tunnel, carrier, kind, segments.len(index), last) {
                Ok(out) => segments.write(index, out),
                Err(NoPlace::Full) => {
                    departure.placed.0 = index;
                    return Progress::Full;
                }
                Err(NoPlace::NoRemote) => {
                    return self.end(DropReason::NoSa, (segments.count() - index) as u64);
                }
            }
        }
        Progress::Done
    }

    /// Fragments before encryption (RFC 4301 section 8.2.1 leaves this to the gateway; AWS wants it).
    #[cold]
    fn fragment(
        &mut self,
        tunnel: &Tunnel,
        carrier: &Carrier,
        of: &InFlow,
        segments: &Segmenter<'_>,
        placed: &mut (usize, usize),
    ) -> Progress {
        for index in placed.0..segments.count() {
            let mut whole = core::mem::take(&mut self.scratch);
            whole.clear();
            whole.resize(segments.len(index), 0);
            segments.write(index, &mut whole);
            let progress = self.fragment_one(tunnel, carrier, of, &whole, &mut placed.1);
            self.scratch = whole;
            if progress == Progress::Full {
                placed.0 = index;
                return Progress::Full;
            }
            placed.1 = 0;
        }
        Progress::Done
    }

    fn fragment_one(
        &mut self,
        tunnel: &Tunnel,
        carrier: &Carrier,
        of: &InFlow,
        whole: &[u8],
        placed: &mut usize,
    ) -> Progress {
        let mtu = usize::from(tunnel.mtu);
        let kind = kind(&of.packet);
        let last = self.flows.last_run(of.flow);
        if whole.len() <= mtu {
            return match self.runs.place(tunnel, carrier, kind, whole.len(), last) {
                Ok(out) => {
                    out.copy_from_slice(whole);
                    Progress::Done
                }
                Err(NoPlace::Full) => Progress::Full,
                Err(NoPlace::NoRemote) => self.end(DropReason::NoSa, 1),
            };
        }
        let Some(fragments) = Fragmenter::new(whole, mtu, self.fragment_id) else {
            return self.end(DropReason::TooBig, 1);
        };
        for index in *placed..fragments.count() {
            match self.runs.place(tunnel, carrier, kind, fragments.len(index), last) {
                Ok(out) => fragments.write(index, out),
                Err(NoPlace::Full) => {
                    *placed = index;
                    return Progress::Full;
                }
                Err(NoPlace::NoRemote) => return self.end(DropReason::NoSa, 1),
            }
        }
        // Not before the last one has found its place: it is cut anew after each flush.
        self.fragment_id = self.fragment_id.wrapping_add(1);
        Progress::Done
    }

    /// A packet of the gateway's own, within the tunnel's MTU, into one tunnel, masked or not: a ping's reply.
    pub(super) fn reply(&mut self, tunnel: &Tunnel, packet: &Packet, bytes: &[u8]) -> Result<(), DropReason> {
        let carrier = tunnel.outbound.as_ref().ok_or(DropReason::NoSa)?;
        let flow = self.flows.place(&packet.key);
        let last = self.flows.last_run(flow);
        match self.runs.place(tunnel, carrier, kind(packet), packet.len, last) {
            Ok(out) => out.copy_from_slice(&bytes[..packet.len]),
            Err(NoPlace::Full) => return Err(DropReason::EchoFull),
            Err(NoPlace::NoRemote) => return Err(DropReason::NoSa),
        }
        Ok(())
    }

    /// Nothing more of what the device gave: a super-packet counts as the packets that it stands for.
    #[cold]
    #[inline(never)]
    fn end_whole(
        &self,
        reason: DropReason,
        packet: &Packet,
        buffer: &[u8],
        departure: &Departure,
    ) -> Progress {
        let segments = Segmenter::new(&buffer[departure.at.clone()], packet, departure.vnet);
        let packets = segments.map_or(1, |segments| segments.count() - departure.placed.0);
        self.end(reason, packets as u64)
    }

    #[cold]
    fn end(&self, reason: DropReason, packets: u64) -> Progress {
        self.drop(reason, packets);
        Progress::Done
    }
}

/// What the run needs to know.
#[inline(always)]
fn kind(packet: &Packet) -> Kind {
    Kind { tos: ecn::encapsulated(packet.tos), v6: packet.v6 }
}

/// Traffic that the kernel sends on every interface and no tunnel carries: multicast, broadcast,
/// link-local IPv6.
fn is_local_scope(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(to) => to.is_multicast() || to.is_broadcast(),
        IpAddr::V6(to) => to.is_multicast() || to.is_unicast_link_local(),
    }
}

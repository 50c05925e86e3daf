//! From the LAN to the wire: look up, choose a tunnel, cut up, place in a run.

use std::sync::Arc;

use braid_api::{DfPolicy, Target, TunnelId};

use super::{Forwarder, Now, Progress, ecn, flow_cache::Way, fragment::Fragmenter, icmp, mss};
use crate::{
    drop_reason::DropReason,
    esp::sa::OutboundSa,
    offload::{segment::Segmenter, vnet::Vnet},
    packet::{self, Packet},
    runs::NoPlace,
    tables::{Tables, Tunnel},
};

/// A packet from the device, and how much of it has been dealt with.
#[derive(Debug)]
pub struct Departure<'a> {
    /// The packet, without the device's header.
    pub bytes: &'a mut [u8],
    /// The device's header.
    pub vnet: Vnet,
    /// Segments, or fragments of a segment, that are placed already.
    placed: (usize, usize),
}

impl<'a> Departure<'a> {
    /// A packet that was just read.
    pub fn new(bytes: &'a mut [u8], vnet: Vnet) -> Self {
        Departure { bytes, vnet, placed: (0, 0) }
    }
}

impl Forwarder {
    /// Takes a packet from the LAN as far as a run for the wire.
    #[inline]
    pub fn outward(&mut self, tables: &Tables, departure: &mut Departure<'_>, now: Now) -> Progress {
        let mut packet = match packet::parse(departure.bytes) {
            Ok(packet) => packet,
            Err(packet::Malformed) => return self.end(DropReason::InnerMalformed, 1),
        };
        if let Some(fragment) = packet.fragment {
            packet.key = self.fragments.key(&packet, fragment, now.nanos);
        }
        let Some(way) = self.way(tables, &packet) else {
            let reason = if is_local_scope(&packet) { DropReason::NotRoutable } else { DropReason::NoRoute };
            return self.end(reason, 1);
        };
        let Some(tunnel) = self.choose(tables, way, now) else { return self.end(DropReason::NoTunnel, 1) };
        let before = departure.placed.0;
        let progress = self.place_segments(tables, tunnel, &packet, departure, now);
        if before == 0
            && let Way::Bucket(group, bucket) = way
            && let Some(group) = tables.group(group)
        {
            group.count(bucket, 1, packet.len as u32);
        }
        progress
    }

    /// Where the packet's route leads; cached by flow.
    #[inline]
    fn way(&mut self, tables: &Tables, packet: &Packet) -> Option<Way> {
        let generation = tables.generation();
        // What an error quotes must not decide where the error goes.
        let cacheable = !packet.quotes();
        if cacheable && let Some(way) = self.flows.get(&packet.key, generation) {
            return Some(way);
        }
        let way = match tables.route(packet.destination())?.1 {
            Target::Tunnel(tunnel) => Way::Tunnel(tunnel),
            Target::Group(id) => {
                let group = tables.group(id)?;
                let settings = tables.settings();
                let bucket = if group.is_single() {
                    0
                } else {
                    group.bucket_of(packet.key.hash(&settings.hash_seed, settings.symmetric_hash))
                };
                Way::Bucket(id, bucket)
            }
        };
        if cacheable {
            self.flows.put(&packet.key, generation, way);
        }
        Some(way)
    }

    #[inline]
    fn choose<'t>(&self, tables: &'t Tables, way: Way, now: Now) -> Option<&'t Arc<Tunnel>> {
        let id: TunnelId = match way {
            Way::Tunnel(id) => id,
            Way::Bucket(group, bucket) => tables.group(group)?.pick(bucket, &self.states, now.ticks())?,
        };
        tables.tunnel(id)
    }

    #[inline]
    fn place_segments(
        &mut self,
        tables: &Tables,
        tunnel: &Tunnel,
        packet: &Packet,
        departure: &mut Departure<'_>,
        now: Now,
    ) -> Progress {
        let Some(sa) = &tunnel.outbound else { return self.end(DropReason::NoSa, 1) };
        if !sa.any && !sa.accepts(packet.source(), packet.destination()) {
            return self.end(DropReason::SelectorOut, 1);
        }
        mss::clamp(departure.bytes, packet, tunnel.settings.clamp_mtu, departure.vnet.needs_csum);
        let Ok(segments) = Segmenter::new(departure.bytes, packet, departure.vnet) else {
            return self.end(DropReason::InnerMalformed, 1);
        };
        let packet = &Packet { tos: ecn::encapsulated(packet.tos), ..*packet };
        if segments.largest() > usize::from(tunnel.mtu) {
            let may_fragment = !packet.v6 && (!packet.df || tunnel.settings.df == DfPolicy::Clear);
            if may_fragment {
                return self.fragment(tunnel, sa, packet, &segments, &mut departure.placed);
            }
            if self.errors.len() < super::MAX_REPLIES && self.limiter.allow(now.nanos) {
                let sources = &tables.settings().icmp_source;
                self.errors.extend(icmp::too_big(departure.bytes, packet, tunnel.mtu, sources));
            }
            return self.end(DropReason::TooBig, segments.count() as u64);
        }
        for index in departure.placed.0..segments.count() {
            match self.runs.place(tunnel, sa, packet, segments.len(index)) {
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
        sa: &Arc<OutboundSa>,
        packet: &Packet,
        segments: &Segmenter<'_>,
        placed: &mut (usize, usize),
    ) -> Progress {
        for index in placed.0..segments.count() {
            let mut whole = core::mem::take(&mut self.scratch);
            whole.clear();
            whole.resize(segments.len(index), 0);
            segments.write(index, &mut whole);
            let progress = self.fragment_one(tunnel, sa, packet, &whole, &mut placed.1);
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
        sa: &Arc<OutboundSa>,
        packet: &Packet,
        whole: &[u8],
        placed: &mut usize,
    ) -> Progress {
        let mtu = usize::from(tunnel.mtu);
        if whole.len() <= mtu {
            return match self.runs.place(tunnel, sa, packet, whole.len()) {
                Ok(out) => {
                    out.copy_from_slice(whole);
                    Progress::Done
                }
                Err(NoPlace::Full) => Progress::Full,
                Err(NoPlace::NoRemote) => self.end(DropReason::NoSa, 1),
            };
        }
        let Some(fragments) = Fragmenter::new(whole, mtu) else { return self.end(DropReason::TooBig, 1) };
        for index in *placed..fragments.count() {
            match self.runs.place(tunnel, sa, packet, fragments.len(index)) {
                Ok(out) => fragments.write(index, out),
                Err(NoPlace::Full) => {
                    *placed = index;
                    return Progress::Full;
                }
                Err(NoPlace::NoRemote) => return self.end(DropReason::NoSa, 1),
            }
        }
        Progress::Done
    }

    /// A packet of the gateway's own into one tunnel, masked or not: a ping's reply.
    pub(super) fn reply(&mut self, tunnel: &Tunnel, packet: &Packet, bytes: &[u8]) {
        let Some(sa) = &tunnel.outbound else { return };
        if packet.len <= usize::from(tunnel.mtu)
            && let Ok(out) = self.runs.place(tunnel, sa, packet, packet.len)
        {
            out.copy_from_slice(&bytes[..packet.len]);
        }
    }

    fn end(&self, reason: DropReason, packets: u64) -> Progress {
        self.drop(reason, packets);
        Progress::Done
    }
}

/// Traffic that the kernel sends on every interface and no tunnel carries: multicast, broadcast,
/// link-local IPv6.
fn is_local_scope(packet: &Packet) -> bool {
    match packet.destination() {
        std::net::IpAddr::V4(to) => to.is_multicast() || to.is_broadcast(),
        std::net::IpAddr::V6(to) => to.is_multicast() || to.is_unicast_link_local(),
    }
}

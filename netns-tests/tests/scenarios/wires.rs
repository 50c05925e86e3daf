//! Which outer wire each flow of a paced load takes, from captures of the encrypted packets, and
//! that no SA ever repeats itself.

use braid_netns::capture::{Capture, Packet};
use braid_netns::paced::Load;
use braid_netns::topology::OuterPath;
use braid_netns::wireguard::PORT;
use braid_netns::{Error, Offload, Result, Topology};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::pair::Side;

/// Of the UDP payload, bytes. The thread of handshakes sends these, beside whatever the workers send.
const KEEPALIVE: usize = 32;

/// Captures of every outer path, in the middle, of what one gateway sends.
pub(crate) struct Wires {
    captures: Vec<(usize, Capture)>,
}

/// What was seen.
pub(crate) struct Ways {
    /// When, on which path, an ESP packet in UDP or a data message of WireGuard.
    packets: Vec<(Duration, usize, Sealed)>,
}

#[derive(Clone, Copy)]
struct Sealed {
    wireguard: bool,
    /// Or the receiver's index.
    spi: u32,
    /// From 1.
    sequence: u64,
    /// Of the UDP payload, bytes.
    length: usize,
    /// The outer packet's type of service but for congestion, which is the inner one's.
    class: u8,
}

impl Sealed {
    /// The flow whose packet it is. Others are as long now and then, and of another class.
    fn flow(&self, load: Load) -> Option<usize> {
        let flow = if self.wireguard { load.wireguard_flow(self.length) } else { load.esp_flow(self.length) };
        flow.filter(|_| self.class == load.tos)
    }
}

/// Now, on the captures' clock.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Of a path's capture: seconds of the loads here. Several are made beside tunnels that are timed.
const RING_KIB: u32 = 4096;

impl Wires {
    /// Watches what `side` sends. Super-packets are cut before the wire from now on, so that every
    /// packet is seen alone.
    pub(crate) fn watch(topology: &Topology, side: Side) -> Result<Self> {
        topology.offloads(Offload::UdpSegmentation, false)?;
        topology.keep_flows_in_order()?;
        let internet = topology.internet.as_ref().ok_or_else(|| Error::Usage("no internet".to_owned()))?;
        let watch = |path: &OuterPath| {
            let (device, own) = match side {
                Side::A => (format!("a{}", path.index), path.a),
                Side::B => (format!("b{}", path.index), path.b),
            };
            let filter = format!("(udp port 4500 or udp port {PORT}) and src host {own}");
            Ok((path.index, Capture::start_with_buffer(internet, &device, &filter, 64, RING_KIB)?))
        };
        Ok(Self { captures: topology.paths.iter().map(watch).collect::<Result<_>>()? })
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Result<Ways> {
        let mut packets = Vec::new();
        for (path, capture) in self.captures {
            let seen = capture.stop()?;
            packets.extend(seen.iter().filter_map(|packet| Some((packet.time, path, sealed(packet)?))));
        }
        Ok(Ways { packets })
    }
}

impl Ways {
    /// By flow, the paths on which it was seen.
    pub(crate) fn of_flows(&self, load: Load, during: Range<Duration>) -> BTreeMap<usize, BTreeSet<usize>> {
        let mut ways: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (at, path, sealed) in &self.packets {
            if during.contains(at)
                && let Some(flow) = sealed.flow(load)
            {
                ways.entry(flow).or_default().insert(*path);
            }
        }
        ways
    }

    /// When a flow was first seen on another path than this one.
    pub(crate) fn first_elsewhere(
        &self,
        load: Load,
        during: Range<Duration>,
        flow: usize,
        path: usize,
    ) -> Option<(Duration, usize)> {
        let elsewhere = |(at, other, sealed): &&(Duration, usize, Sealed)| {
            during.contains(at) && *other != path && sealed.flow(load) == Some(flow)
        };
        self.packets.iter().filter(elsewhere).map(|(at, other, _)| (*at, *other)).min()
    }

    /// The first ESP sequence number, or counter of WireGuard's, that did not come after the last one of its SPI or
    /// index: a nonce used twice, or a wire order that is not the order of sealing.
    pub(crate) fn out_of_sequence(&self) -> Option<String> {
        let mut last: BTreeMap<u32, u64> = BTreeMap::new();
        for (_, path, sealed) in &self.packets {
            let before = last.insert(sealed.spi, sealed.sequence).unwrap_or(0);
            if sealed.sequence <= before {
                let Sealed { spi, sequence, .. } = sealed;
                return Some(format!("path {path}: SPI {spi:#x} sends {sequence} after {before}"));
            }
        }
        None
    }

    /// Packets seen.
    pub(crate) fn count(&self) -> usize {
        self.packets.len()
    }
}

fn sealed(packet: &Packet) -> Option<Sealed> {
    let wireguard = packet.is_wireguard_data(PORT);
    let length = packet.wire_length - packet.headers()?.length;
    if !wireguard && !packet.is_esp_in_udp() || wireguard && length == KEEPALIVE {
        return None;
    }
    let payload = packet.udp_payload()?;
    let word = |at: usize| payload.get(at..at + 4)?.try_into().ok();
    let (spi, sequence) = if wireguard {
        let counter = payload.get(8..16)?.try_into().ok()?;
        (u32::from_le_bytes(word(4)?), u64::from_le_bytes(counter) + 1)
    } else {
        (u32::from_be_bytes(word(0)?), u32::from_be_bytes(word(4)?).into())
    };
    let [first, second, ..] = packet.ip[..] else { return None };
    let class = if first >> 4 == 4 { second } else { first << 4 | second >> 4 } & 0xfc;
    Some(Sealed { wireguard, spi, sequence, length, class })
}

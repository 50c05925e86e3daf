//! Which flows take one of the tunnels, told from its encrypted packets in mid-path.

use braid_netns::capture::{Capture, Packet};
use braid_netns::paced::Load;
use braid_netns::{Error, Result, Topology};
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// CS2 (RFC 2474): by it the paced flows are told from all else, whose packets may have their lengths by chance. The
/// kernel's queues prefer it to nothing.
pub(super) const MARK: u8 = 0x40;

/// For a few thousand packets a second; the gateways' packets do not wait while it is made.
const BUFFER_KIB: u32 = 4096;

/// Now, on the captures' clock.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Captures of what either gateway sends into the tunnel.
pub(super) struct Wire([Capture; 2]);

impl Wire {
    pub(super) fn watch(topology: &Topology, tunnel: usize) -> Result<Self> {
        let internet = topology.internet.as_ref().ok_or_else(|| Error::Usage("no internet".to_owned()))?;
        let path = &topology.paths[tunnel];
        let watch = |device: String, from| {
            let filter = format!("udp port 4500 and src host {from} and ip[1] & 0xfc == {MARK}");
            Capture::start_with_buffer(internet, &device, &filter, 64, BUFFER_KIB)
        };
        Ok(Self([watch(format!("a{tunnel}"), path.a)?, watch(format!("b{tunnel}"), path.b)?]))
    }

    /// What was seen of A's, and of B's.
    pub(super) fn stop(self, load: Load) -> Result<[Seen; 2]> {
        let [a, b] = self.0.map(|capture| {
            let packets = capture.stop()?;
            let flow = |packet: &Packet| load.esp_flow(packet.wire_length - packet.headers()?.length);
            let packets = packets.iter().filter_map(|packet| Some((packet.time, flow(packet)?))).collect();
            Ok::<_, Error>(Seen(packets))
        });
        Ok([a?, b?])
    }
}

/// When a packet of which flow was on the wire.
pub(super) struct Seen(Vec<(Duration, usize)>);

impl Seen {
    fn flows(&self, during: Range<Duration>) -> BTreeSet<usize> {
        self.0.iter().filter(|(at, _)| during.contains(at)).map(|(_, flow)| *flow).collect()
    }

    /// How many there are in a time.
    pub(super) fn flows_in(&self, during: Range<Duration>) -> usize {
        self.flows(during).len()
    }

    /// How many there are before a moment.
    pub(super) fn flows_before(&self, moment: Duration) -> usize {
        self.flows_in(Duration::ZERO..moment)
    }

    /// How many there are after a moment that were not there before.
    pub(super) fn strangers(&self, moment: Duration) -> usize {
        self.flows(moment..Duration::MAX).difference(&self.flows(Duration::ZERO..moment)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_that_came_from_elsewhere_is_a_stranger() {
        let at = Duration::from_millis;
        let seen = Seen(vec![(at(1), 0), (at(2), 1), (at(6), 0), (at(7), 2)]);
        assert_eq!([seen.flows_before(at(5)), seen.strangers(at(5)), seen.flows_in(at(2)..at(7))], [2, 1, 2]);
        assert_eq!(seen.strangers(at(8)), 0);
    }
}

//! The kernel alone: the limit everything else is measured against.

use super::{Running, System, Wire};
use braid_netns::{Offload, Result, Topology};

/// Plain kernel forwarding between the gateways.
#[derive(Debug)]
pub(super) struct Plain {
    /// Whether the devices segment, coalesce and checksum.
    pub(super) offloads: bool,
}

impl System for Plain {
    fn name(&self) -> String {
        if self.offloads { "plain" } else { "plain-no-offloads" }.to_owned()
    }

    fn title(&self) -> String {
        let state = if self.offloads { "on" } else { "off" };
        format!("plain forwarding, offloads {state}")
    }

    fn wire(&self) -> Wire {
        Wire::Plain
    }

    fn start(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        topology.add_plain_routes()?;
        if !self.offloads {
            topology.offloads(Offload::All, false)?;
        }
        Ok(Box::new(Kernel))
    }
}

/// Nothing runs; the routes go with the topology.
#[derive(Debug)]
struct Kernel;

impl Running for Kernel {}

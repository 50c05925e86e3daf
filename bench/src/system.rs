//! What is compared: plain forwarding, Braid, and peers, each behind one trait.

mod braid;
mod devices;
mod plain;
mod strongswan;
mod wireguard;

use braid_netns::capture::{Capture, Packet};
use braid_netns::topology::SERVER;
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Error, Result, Topology, retry_until};
use std::time::Duration;

/// How long a system may take until the first packet crosses.
const START: Duration = Duration::from_secs(20);

/// What crosses between the gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Inner packets as they are.
    Plain,
    /// ESP in UDP, port 4500 (RFC 3948).
    EspInUdp,
    /// WireGuard on this port.
    Wireguard(u16),
}

/// A way to join the two networks.
pub trait System {
    /// Short name, as on the command line.
    fn name(&self) -> String;

    /// What it is, for the table.
    fn title(&self) -> String;

    /// Outer paths it uses.
    fn paths(&self) -> usize {
        1
    }

    /// The other end of the first tunnel as gateway A sees it inside, if it has an address.
    fn far_end(&self) -> Option<&'static str> {
        None
    }

    /// What must be seen between the gateways.
    fn wire(&self) -> Wire;

    /// Starts it on both gateways. It may still be negotiating when this returns.
    ///
    /// # Errors
    /// When a program is missing or refuses.
    fn start(&self, topology: &Topology) -> Result<Box<dyn Running>>;
}

/// What a system says of the probes that it sends by itself through its first tunnel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OwnProbes {
    /// What 99 of 100 recent round trips do not exceed, in milliseconds.
    pub p99_ms: f64,
    /// Since it started.
    pub sent: u64,
    /// Of these.
    pub answered: u64,
}

/// A running system; dropped, it ends.
pub trait Running: std::fmt::Debug {
    /// What it has to say when no packet crosses: its output, its state.
    fn diagnosis(&mut self) -> String {
        String::new()
    }

    /// What it knows of probes of its own in the tunnels, if it sends any.
    fn own_probes(&self) -> Option<OwnProbes> {
        None
    }
}

/// All systems there are, in the order of the table; plain forwarding first.
#[must_use]
pub fn all() -> Vec<Box<dyn System>> {
    let mut systems: Vec<Box<dyn System>> =
        vec![Box::new(plain::Plain { offloads: true }), Box::new(plain::Plain { offloads: false })];
    // Nothing; what AES-GCM takes for a byte; what it and all else of Braid takes.
    for wait in [0, 20, 30] {
        systems.push(Box::new(devices::Devices { wait }));
    }
    for suite in ["aes128gcm16", "aes256gcm16"] {
        for tunnels in [1, 2] {
            systems.push(Box::new(braid::Braid { protocol: braid::Protocol::Esp(suite), tunnels }));
        }
    }
    systems.push(Box::new(braid::Braid { protocol: braid::Protocol::WireGuard, tunnels: 1 }));
    systems.push(Box::new(strongswan::Strongswan));
    systems.push(Box::new(wireguard::Wireguard::go()));
    systems.push(Box::new(wireguard::Wireguard::boringtun()));
    systems
}

/// Proves that packets cross, and that what crosses between the gateways is what it should be.
///
/// # Errors
/// When nothing crosses in time, or something crosses in another form.
pub fn verify(topology: &Topology, wire: Wire, running: &mut dyn Running) -> Result<()> {
    let probe = Pings { count: 1, ..Pings::default() };
    let crossed = retry_until("the first packet", START, || match ping(&topology.client, SERVER, &probe) {
        Ok(result) if result.rtt_ms.is_empty() => Err("nothing comes back".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    });
    if let Err(error) = crossed {
        return Err(Error::Usage(format!("{error}\n{}", running.diagnosis())));
    }
    let captures: Vec<Capture> = topology
        .paths
        .iter()
        .map(|path| Capture::start(&topology.gateway_a, &path.device, "ip or ip6", 96))
        .collect::<Result<_>>()?;
    let pings = Pings { count: 20, size: 600, ..Pings::default() };
    let result = ping(&topology.client, SERVER, &pings)?;
    if result.loss() > 0.0 {
        return Err(Error::Usage(format!("{} of 20 pings lost", 20 - result.rtt_ms.len())));
    }
    let mut carriers = 0;
    for capture in captures {
        for packet in capture.stop()? {
            // 600 bytes of payload cannot hide in a keepalive or a handshake.
            if is_as_expected(&packet, wire)? && packet.wire_length > 600 {
                carriers += 1;
            }
        }
    }
    // Each ping crosses twice.
    if carriers < 40 {
        return Err(Error::Usage(format!("only {carriers} of 40 packets were seen as {wire:?}")));
    }
    Ok(())
}

/// True for a packet that carries traffic in the expected form, false for one that may be there
/// beside it.
fn is_as_expected(packet: &Packet, wire: Wire) -> Result<bool> {
    let carries = match wire {
        Wire::Plain => true,
        Wire::EspInUdp => packet.is_esp_in_udp(),
        Wire::Wireguard(port) => packet.is_wireguard_data(port),
    };
    let beside = match wire {
        Wire::Plain => true,
        Wire::EspInUdp => packet.is_udp_of(&[500, 4500]),
        Wire::Wireguard(port) => packet.is_udp_of(&[port]),
    };
    let neighbour = packet.headers().is_some_and(|headers| headers.protocol == 58 || headers.protocol == 0);
    if !carries && !beside && !neighbour {
        let seen = packet.headers();
        return Err(Error::Usage(format!("in clear between the gateways: {seen:?}")));
    }
    Ok(carries)
}

/// Bytes from the kernel's generator as lower-case hexadecimal.
fn random_hex(bytes: usize) -> Result<String> {
    use std::io::Read;
    let mut random = vec![0; bytes];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(Error::io("cannot read /dev/urandom"))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, port: u16, payload: &[u8]) -> Packet {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        ip.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        ip.extend(port.to_be_bytes());
        ip.extend(port.to_be_bytes());
        ip.extend([0, 0, 0, 0]);
        ip.extend(payload);
        Packet { time: Duration::ZERO, wire_length: ip.len(), ip }
    }

    #[test]
    fn traffic_in_clear_is_no_measurement() {
        let esp = packet(17, 4500, &[0, 0, 0x10, 1, 0, 0, 0, 1]);
        let ike = packet(17, 4500, &[0, 0, 0, 0, 1, 2, 3, 4]);
        let data = packet(17, 51820, &[4, 0, 0, 0, 1, 2, 3, 4]);
        let icmp = packet(1, 0, &[]);
        assert!(is_as_expected(&esp, Wire::EspInUdp).unwrap());
        assert!(!is_as_expected(&ike, Wire::EspInUdp).unwrap());
        assert!(is_as_expected(&data, Wire::Wireguard(51820)).unwrap());
        for wire in [Wire::EspInUdp, Wire::Wireguard(51820)] {
            assert!(is_as_expected(&icmp, wire).is_err());
        }
        assert!(is_as_expected(&data, Wire::EspInUdp).is_err());
    }

    #[test]
    fn names_are_unique_and_plain_comes_first() {
        let mut names: Vec<String> = all().iter().map(|system| system.name()).collect();
        assert_eq!(names[0], "plain");
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}

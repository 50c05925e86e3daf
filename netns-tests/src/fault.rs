//! Faults on a link: silence, loss, limits. Each is undone when dropped.
//!
//! They act on what *enters* a device, so in the middle of a path neither gateway sees a link
//! signal; ARP and IPv6 neighbour discovery pass, since their failure would be one.
//! A GSO super-packet is one packet here: turn offloads off ([`crate::Offload`]) where a loss
//! rate per wire packet matters.

use crate::{Error, Netns, Result, guard};

/// Passes what must pass for the link to look healthy.
const NEIGHBOURS: &str = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept;";

/// A fault in force.
#[derive(Debug)]
#[must_use = "a fault is undone when dropped"]
pub struct Fault {
    netns: Netns,
    undo: Vec<String>,
}

impl Fault {
    /// Undoes the fault now, telling whether that worked.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn undo(mut self) -> Result<()> {
        for command in std::mem::take(&mut self.undo) {
            let argv: Vec<&str> = command.split_whitespace().collect();
            self.netns.run(&argv)?;
        }
        Ok(())
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        for command in std::mem::take(&mut self.undo) {
            let argv: Vec<&str> = command.split_whitespace().collect();
            let _ = self.netns.output(&argv);
        }
    }
}

/// Silently drops every IPv4 and IPv6 packet that enters one of the devices.
///
/// # Errors
/// As [`Netns::run`].
pub fn cut(netns: &Netns, devices: &[&str]) -> Result<Fault> {
    ingress(netns, devices, &format!("{NEIGHBOURS} meta protocol {{ ip, ip6 }} drop;"))
}

/// Drops packets that enter the device at random; `percent` in hundredths of all, two decimals
/// counted.
///
/// # Errors
/// As [`Netns::run`].
pub fn loss(netns: &Netns, device: &str, percent: f64) -> Result<Fault> {
    // At most 100 %, so the product fits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let per_ten_thousand = (percent.clamp(0.0, 100.0) * 100.0).round() as u32;
    let rule = format!(
        "{NEIGHBOURS} meta protocol {{ ip, ip6 }} numgen random mod 10000 < {per_ten_thousand} drop;"
    );
    ingress(netns, &[device], &rule)
}

/// Drops what exceeds a packet rate on entry to the device, without queueing.
///
/// # Errors
/// As [`Netns::run`].
pub fn limit_packets(netns: &Netns, device: &str, per_second: u32, burst: u32) -> Result<Fault> {
    let rule = format!(
        "{NEIGHBOURS} meta protocol {{ ip, ip6 }} \
         limit rate over {per_second}/second burst {burst} packets drop;"
    );
    ingress(netns, &[device], &rule)
}

/// Drops what matches an nftables expression on entry to the devices, e.g. `udp dport 4500`.
///
/// # Errors
/// As [`Netns::run`]; a bad expression is nft's error.
pub fn drop_matching(netns: &Netns, devices: &[&str], expression: &str) -> Result<Fault> {
    ingress(netns, devices, &format!("{expression} drop;"))
}

/// IKE messages that are kept from their receivers; ESP passes.
#[derive(Debug)]
#[must_use = "a fault is undone when dropped"]
pub struct HeldIke {
    fault: Fault,
    table: String,
    devices: usize,
}

/// Drops IKE messages that enter the devices by the port of NAT traversal (RFC 7296 section 2.23), and
/// counts them: a request whose answer cannot come is sent again until it can.
///
/// # Errors
/// As [`Netns::run`].
pub fn hold_ike(netns: &Netns, devices: &[&str]) -> Result<HeldIke> {
    let table = table_name();
    let mut script = String::new();
    for (index, device) in devices.iter().enumerate() {
        // RFC 3948 section 2.2: four octets of zero stand before IKE.
        script.push_str(&format!(
            "counter held{index} {{ }}\n\
             chain c{index} {{ type filter hook ingress device \"{device}\" priority 0; policy accept; \
             udp dport 4500 @th,64,32 0 counter name held{index} drop; }}\n"
        ));
    }
    netns.nft(&format!("table netdev {table} {{\n{script}}}"))?;
    let fault = Fault { netns: netns.clone(), undo: vec![format!("nft delete table netdev {table}")] };
    Ok(HeldIke { fault, table, devices: devices.len() })
}

impl HeldIke {
    /// How many were kept back so far, by device.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn counts(&self) -> Result<Vec<u64>> {
        (0..self.devices)
            .map(|index| {
                let listed =
                    self.fault.netns.nft(&format!("list counter netdev {} held{index}", self.table))?;
                let mut words = listed.split_whitespace().skip_while(|word| *word != "packets").skip(1);
                let count = words.next().and_then(|word| word.parse().ok());
                count.ok_or_else(|| Error::parse("nft list counter", format!("no count in {listed:?}")))
            })
            .collect()
    }

    /// Lets them pass again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release(self) -> Result<()> {
        self.fault.undo()
    }
}

/// Shapes what *leaves* the device with a token bucket, queueing up to `queue_ms`.
///
/// # Errors
/// As [`Netns::run`].
pub fn limit_bits(netns: &Netns, device: &str, mbit: u32, queue_ms: u32) -> Result<Fault> {
    // The bucket must hold one GSO super-packet, or it never leaves.
    let rate = format!("{mbit}mbit");
    let queue = format!("{queue_ms}ms");
    netns.run(&[
        "tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", &rate, "burst", "128kb", "latency",
        &queue,
    ])?;
    Ok(Fault { netns: netns.clone(), undo: vec![format!("tc qdisc del dev {device} root")] })
}

fn ingress(netns: &Netns, devices: &[&str], rules: &str) -> Result<Fault> {
    let table = table_name();
    let chains: String = devices
        .iter()
        .enumerate()
        .map(|(index, device)| {
            format!(
                "chain c{index} {{ type filter hook ingress device \"{device}\" priority 0; \
                 policy accept; {rules} }}\n"
            )
        })
        .collect();
    netns.nft(&format!("table netdev {table} {{\n{chains}}}"))?;
    Ok(Fault { netns: netns.clone(), undo: vec![format!("nft delete table netdev {table}")] })
}

fn table_name() -> String {
    format!("fault_{}", guard::unique_name("t").replace('-', "_"))
}

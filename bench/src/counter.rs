//! Counts UDP packets where they arrive, without receiving each in user space.
//!
//! An nftables rule at the receiver's device counts and drops them. One entry there may be a
//! UDP-GSO super-packet of many datagrams (a gateway that wrote one to its TUN device hands it to
//! the veth whole, as it would to a card that segments), so datagrams are told from the byte
//! count: every entry has one set of headers, every datagram one payload.

use crate::generator::{HEADERS, PORT};
use braid_netns::{Error, Netns, Result, poll_until};
use std::time::Duration;

const TABLE: &str = "bench_small";

/// The rule in force; removed when dropped.
#[derive(Debug)]
pub struct Counter<'a> {
    netns: &'a Netns,
    payload: u64,
}

/// What arrived so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// Datagrams.
    pub datagrams: u64,
    /// Packets as the device handed them over, super-packets counting once.
    pub entries: u64,
}

impl<'a> Counter<'a> {
    /// Starts counting datagrams of `length` bytes (IP header included) that enter `device`.
    ///
    /// # Errors
    /// When nft refuses.
    pub fn start(netns: &'a Netns, device: &str, length: usize) -> Result<Self> {
        netns.nft(&format!(
            "table netdev {TABLE} {{
                counter arrived {{ }}
                chain in {{
                    type filter hook ingress device \"{device}\" priority 0; policy accept;
                    udp dport {PORT} counter name arrived drop
                }}
            }}"
        ))?;
        let payload = (length.max(HEADERS + 1) - HEADERS) as u64;
        Ok(Self { netns, payload })
    }

    /// What arrived so far.
    ///
    /// # Errors
    /// When nft's answer is not understood.
    pub fn read(&self) -> Result<Arrived> {
        let listed = self.netns.nft(&format!("list counter netdev {TABLE} arrived"))?;
        parse(&listed, self.payload)
            .ok_or_else(|| Error::parse("nft list counter", format!("no counts in {listed:?}")))
    }

    /// Waits until nothing more arrives (queues have drained), and reads.
    ///
    /// # Errors
    /// When nft's answer is not understood.
    pub fn settle(&self) -> Result<Arrived> {
        let mut before = None;
        let mut same = 0;
        poll_until("the last packets", Duration::from_secs(5), || {
            let now = self.read().ok()?;
            same = if before == Some(now) { same + 1 } else { 0 };
            before = Some(now);
            // Five looks, 20 ms apart.
            (same == 5).then_some(now)
        })
    }
}

fn parse(listed: &str, payload_length: u64) -> Option<Arrived> {
    let mut words = listed.split_whitespace();
    words.find(|word| *word == "packets")?;
    let entries: u64 = words.next()?.parse().ok()?;
    words.find(|word| *word == "bytes")?;
    let bytes: u64 = words.next()?.parse().ok()?;
    let payload = bytes.checked_sub(entries * HEADERS as u64)?;
    Some(Arrived { datagrams: payload / payload_length, entries })
}

impl Drop for Counter<'_> {
    fn drop(&mut self) {
        let _ = self.netns.nft(&format!("delete table netdev {TABLE}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_datagrams_from_super_packets() {
        // Needs no namespace of its own: only the text is read.
        let arrived = |entries: u64, bytes: u64| {
            let listed = format!("counter arrived {{\n packets {entries} bytes {bytes}\n}}");
            parse(&listed, 36).unwrap()
        };
        assert_eq!(arrived(10, 640), Arrived { datagrams: 10, entries: 10 });
        // Two super-packets of 40 datagrams each, and one alone.
        assert_eq!(arrived(3, 2 * (28 + 40 * 36) + 64), Arrived { datagrams: 81, entries: 3 });
        assert_eq!(parse("counter arrived {}", 36), None);
    }
}

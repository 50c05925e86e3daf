//! A status as Prometheus's text, version 0.0.4. Pure.
//!
//! A counter whose count is not known is left out: a zero instead would look like a restart, and all that was
//! counted before would be counted again when it is known. Names and labels are part of the interface.

use core::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, prometheus_text},
    metrics::MetricType,
    registry::Registry,
};

pub(super) use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

use crate::status::{Status, Tunnel};

/// The whole text.
pub(super) fn text(status: Status) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition(status)));
    let mut text = String::new();
    // Writing to a string never fails.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Exposition(Status);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Status { tunnels, neighbors, drops, .. } = &self.0;
        let mut up =
            gauge(&mut encoder, "braid_tunnel_up", "1 for a tunnel that is up, standby or draining")?;
        for tunnel in tunnels {
            up.encode_family(&[("tunnel", name(tunnel))])?.encode_gauge(&i64::from(is_up(tunnel)))?;
        }
        for (name_of, help, count) in COUNTS {
            let mut encoder = counter(&mut encoder, name_of, help)?;
            for tunnel in tunnels {
                if let Some(count) = count(tunnel) {
                    encoder.encode_family(&[("tunnel", name(tunnel))])?.count(count)?;
                }
            }
        }
        let mut dropped = counter(&mut encoder, "braid_drops", "Packets that were not delivered")?;
        for (reason, count) in drops {
            dropped.encode_family(&[("reason", reason.as_str())])?.count(*count)?;
        }
        let mut failovers = counter(
            &mut encoder,
            "braid_failovers",
            "Times a tunnel was taken out while it carried traffic",
        )?;
        for tunnel in tunnels {
            for (cause, count) in &tunnel.failover_causes {
                let labels = [("tunnel", name(tunnel)), ("cause", cause.as_str())];
                failovers.encode_family(&labels)?.count(*count)?;
            }
        }
        let mut prefixes =
            gauge(&mut encoder, "braid_bgp_prefixes", "Routes that a BGP neighbor holds up or was told")?;
        for neighbor in neighbors {
            for (direction, count) in [("received", neighbor.received), ("advertised", neighbor.advertised)] {
                let labels = [("neighbor", neighbor.name.as_str()), ("direction", direction)];
                prefixes.encode_family(&labels)?.encode_gauge(&count)?;
            }
        }
        let help = "Smoothed round-trip time of a tunnel's probes";
        let mut latency = gauge(&mut encoder, "braid_path_latency_seconds", help)?;
        for tunnel in tunnels {
            if let Some(milliseconds) = tunnel.latency_ms {
                latency.encode_family(&[("tunnel", name(tunnel))])?.encode_gauge(&(milliseconds / 1e3))?;
            }
        }
        Ok(())
    }
}

/// Reads a count of a tunnel, if it is known.
type Count = fn(&Tunnel) -> Option<u64>;

/// Counters with no label but the tunnel; the library adds `_total`.
const COUNTS: [(&str, &str, Count); 5] = [
    ("braid_tunnel_tx_bytes", "Bytes of inner packets sent", |tunnel| known(tunnel, tunnel.tx_bytes)),
    ("braid_tunnel_tx_packets", "Inner packets sent", |tunnel| known(tunnel, tunnel.tx_packets)),
    ("braid_tunnel_rx_bytes", "Bytes of inner packets received", |tunnel| known(tunnel, tunnel.rx_bytes)),
    ("braid_tunnel_rx_packets", "Inner packets received", |tunnel| known(tunnel, tunnel.rx_packets)),
    ("braid_rekeys", "Times a tunnel's keys were replaced by others", rekeys),
];

fn known(tunnel: &Tunnel, count: u64) -> Option<u64> {
    tunnel.counted.then_some(count)
}

/// Of an SA pair; of WireGuard, whose every handshake makes new keys, all but the first one.
fn rekeys(tunnel: &Tunnel) -> Option<u64> {
    match (&tunnel.wireguard, &tunnel.child) {
        (Some(wireguard), _) => known(tunnel, wireguard.handshakes.saturating_sub(1)),
        (None, Some(child)) => Some(child.rekeys),
        (None, None) => None,
    }
}

fn is_up(tunnel: &Tunnel) -> bool {
    matches!(tunnel.state.as_str(), "up" | "standby" | "draining")
}

fn name(tunnel: &Tunnel) -> &str {
    &tunnel.name
}

fn gauge<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}

fn counter<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)
}

trait Counts {
    fn count(&mut self, count: u64) -> fmt::Result;
}

impl Counts for MetricEncoder<'_> {
    /// Without an exemplar, which this text cannot hold.
    fn count(&mut self, count: u64) -> fmt::Result {
        self.encode_counter::<[(&str, &str); 0], u64, u64>(&count, None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::metrics::tests::{neighbor, status, tunnel};

    /// What a strict reader finds: the value of every series, and the type of every name.
    #[derive(Default)]
    struct Read {
        series: BTreeMap<String, String>,
        types: BTreeMap<String, String>,
    }

    /// Reads the text as its format demands it: HELP, TYPE and samples of a name together and in that order, no name
    /// and no series twice, only escapes that there are.
    fn read(text: &str) -> Read {
        let mut read = Read::default();
        let mut helped = BTreeSet::new();
        let mut current = String::new();
        assert!(text.ends_with('\n'), "the last line ends");
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').unwrap();
                assert!(helped.insert(name.to_owned()) && !words.is_empty(), "{line}");
                name.clone_into(&mut current);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, current, "TYPE follows HELP");
                assert!(matches!(kind, "counter" | "gauge"), "{line}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                assert_eq!(read.types.insert(name.to_owned(), kind.to_owned()), None);
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                value.parse::<f64>().unwrap();
                let (name, labels) = series.split_once('{').unwrap();
                assert_eq!(name, current, "samples follow their TYPE: {line}");
                assert!(read.types.contains_key(name), "{line}");
                read_labels(labels.strip_suffix('}').unwrap());
                assert_eq!(read.series.insert(series.to_owned(), value.to_owned()), None, "{line}");
            }
        }
        read
    }

    /// Names with their values.
    fn read_labels(mut text: &str) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        loop {
            let (name, rest) = text.split_once("=\"").unwrap();
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            let mut value = String::new();
            let mut characters = rest.char_indices();
            let end = loop {
                match characters.next().expect("the value ends") {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match characters.next().unwrap().1 {
                        'n' => '\n',
                        other @ ('\\' | '"') => other,
                        other => panic!("no such escape: {other}"),
                    }),
                    (_, other) => value.push(other),
                }
            };
            assert_eq!(labels.insert(name.to_owned(), value), None);
            match rest[end + 1..].strip_prefix(',') {
                Some(more) => text = more,
                None => {
                    assert_eq!(rest.len(), end + 1, "{rest}");
                    return labels;
                }
            }
        }
    }

    #[test]
    fn the_text_has_the_names_of_the_interface() {
        let read = read(&text(status(Vec::new())));
        let expected = [
            ("braid_bgp_prefixes", "gauge"),
            ("braid_drops_total", "counter"),
            ("braid_failovers_total", "counter"),
            ("braid_path_latency_seconds", "gauge"),
            ("braid_rekeys_total", "counter"),
            ("braid_tunnel_rx_bytes_total", "counter"),
            ("braid_tunnel_rx_packets_total", "counter"),
            ("braid_tunnel_tx_bytes_total", "counter"),
            ("braid_tunnel_tx_packets_total", "counter"),
            ("braid_tunnel_up", "gauge"),
        ];
        let types: Vec<(&str, &str)> =
            read.types.iter().map(|(name, kind)| (name.as_str(), kind.as_str())).collect();
        assert_eq!(types, expected);
        assert!(read.series.is_empty(), "{:?}", read.series);
    }

    #[test]
    fn the_text_says_what_the_status_says() {
        let mut a = tunnel("a", "up");
        (a.tx_packets, a.tx_bytes, a.rx_packets, a.rx_bytes) = (1, 20, u64::MAX, 4);
        a.latency_ms = Some(1.25);
        a.failover_causes = [("probe".to_owned(), 2), ("link".to_owned(), 1)].into();
        let mut child = crate::status::Child {
            suite: String::new(),
            spi_in: String::new(),
            spi_out: String::new(),
            rekey_in_s: None,
            rekeys: 7,
            sequence_out: 0,
            sequence_in: 0,
        };
        a.child = Some(child.clone());
        let states = ["standby", "draining", "down", "connecting"];
        let others = states.into_iter().map(|state| tunnel(state, state));
        let mut status = status([a].into_iter().chain(others).collect());
        status.drops = [("replayed".to_owned(), 3), ("no_route".to_owned(), 0)].into();
        status.neighbors = vec![neighbor("aws-a", 5, 1)];
        let read_back = read(&text(status.clone())).series;
        let expected = [
            ("braid_bgp_prefixes{neighbor=\"aws-a\",direction=\"advertised\"}", "1"),
            ("braid_bgp_prefixes{neighbor=\"aws-a\",direction=\"received\"}", "5"),
            ("braid_drops_total{reason=\"no_route\"}", "0"),
            ("braid_drops_total{reason=\"replayed\"}", "3"),
            ("braid_failovers_total{tunnel=\"a\",cause=\"link\"}", "1"),
            ("braid_failovers_total{tunnel=\"a\",cause=\"probe\"}", "2"),
            ("braid_path_latency_seconds{tunnel=\"a\"}", "0.00125"),
            ("braid_rekeys_total{tunnel=\"a\"}", "7"),
            ("braid_tunnel_rx_bytes_total{tunnel=\"a\"}", "4"),
            ("braid_tunnel_rx_packets_total{tunnel=\"a\"}", "18446744073709551615"),
            ("braid_tunnel_tx_bytes_total{tunnel=\"a\"}", "20"),
            ("braid_tunnel_tx_packets_total{tunnel=\"a\"}", "1"),
        ];
        for (series, value) in expected {
            assert_eq!(read_back.get(series).map(String::as_str), Some(value), "{series}: {read_back:#?}");
        }
        for (state, up) in
            [("a", "1"), ("standby", "1"), ("draining", "1"), ("down", "0"), ("connecting", "0")]
        {
            assert_eq!(read_back[&format!("braid_tunnel_up{{tunnel=\"{state}\"}}")], up);
        }
        // Four counts of each of the other four, and what they are up for.
        assert_eq!(read_back.len(), expected.len() + 5 + 4 * 4);
        child.rekeys = 0;
        status.tunnels[0].child = Some(child);
        let again = read(&text(status)).series;
        assert_eq!(again["braid_rekeys_total{tunnel=\"a\"}"], "0", "a count of nothing is a count");
    }

    #[test]
    fn what_is_not_counted_is_left_out() {
        let mut a = tunnel("a", "down");
        a.counted = false;
        a.wireguard = Some(crate::status::WireGuard {
            last_handshake_s: None,
            handshakes: 0,
            public_key: String::new(),
            peer_public_key: String::new(),
        });
        let left: Vec<String> = read(&text(status(vec![a.clone()]))).series.into_keys().collect();
        assert_eq!(left, ["braid_tunnel_up{tunnel=\"a\"}"]);
        a.counted = true;
        for (handshakes, rekeys) in [(0, "0"), (1, "0"), (3, "2")] {
            a.wireguard.as_mut().unwrap().handshakes = handshakes;
            let read = read(&text(status(vec![a.clone()]))).series;
            assert_eq!(read["braid_rekeys_total{tunnel=\"a\"}"], rekeys);
        }
    }

    #[test]
    fn labels_are_escaped() {
        let odd = "a\"b\\c\nd}{,=é";
        let mut status = status(Vec::new());
        status.drops = [(odd.to_owned(), 1)].into();
        let text = text(status);
        let series: Vec<String> = read(&text).series.into_keys().collect();
        assert_eq!(series, ["braid_drops_total{reason=\"a\\\"b\\\\c\\nd}{,=é\"}"]);
        let labels = series[0].strip_prefix("braid_drops_total{").unwrap().strip_suffix('}').unwrap();
        assert_eq!(read_labels(labels)["reason"], odd);
    }
}

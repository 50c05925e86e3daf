//! What was measured: as the JSON document of the contract, and as a summary for people.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::error::Shortfall;
use super::topology::PATHS;

/// All that one run measured.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Report {
    /// Gbit/s of TCP payload through the tunnels.
    pub(super) gbps: f64,
    /// Gbit/s of the same flows by plain kernel forwarding.
    pub(super) plain_gbps: f64,
    /// Of the two.
    pub(super) ratio: f64,
    /// TCP flows of either.
    pub(super) flows: usize,
    /// How the throughput was split.
    pub(super) tunnels: Vec<Share>,
    /// One tunnel cut and brought back.
    pub(super) failover: Failover,
    /// Whether every packet seen on the outer links was ESP of this run, and all protocols crossed.
    pub(super) encrypted: bool,
    /// Packets looked at on the outer links.
    pub(super) packets_inspected: u64,
    /// Protocols that crossed.
    pub(super) crossed: Vec<&'static str>,
    /// Median idle round trip of ICMP.
    pub(super) round_trip_ms: f64,
    #[serde(skip)]
    pub(super) shortfalls: Vec<Shortfall>,
}

/// A tunnel's part of the throughput.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Share {
    /// Tunnel.
    pub(super) name: &'static str,
    /// Of all bytes, 0 to 1.
    pub(super) share: f64,
}

/// What the cut cost, both directions together.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Failover {
    /// Packets that never arrived.
    pub(super) lost_packets: usize,
    /// From the cut until the last flow came through again.
    pub(super) recovery_ms: f64,
    /// Flows of the other tunnel that changed over.
    pub(super) healthy_flows_moved: usize,
    /// Packets sent meanwhile.
    pub(super) sent_packets: usize,
    /// The tunnel that was cut.
    pub(super) cut: &'static str,
    /// Flows that were on it.
    pub(super) flows_hit: usize,
    /// Of these, flows that came back only with the path.
    pub(super) flows_not_recovered: usize,
    /// Flows in all.
    pub(super) flows: usize,
    /// From the restoration until both gateways offered the tunnel again.
    pub(super) return_ms: f64,
}

impl Report {
    /// The document of `--json`.
    pub(super) fn json(&self) -> String {
        let mut rounded = self.clone();
        let figures =
            [&mut rounded.gbps, &mut rounded.plain_gbps, &mut rounded.ratio, &mut rounded.round_trip_ms];
        for figure in figures {
            *figure = round(*figure, 3);
        }
        for tunnel in &mut rounded.tunnels {
            tunnel.share = round(tunnel.share, 3);
        }
        rounded.failover.recovery_ms = round(rounded.failover.recovery_ms, 1);
        rounded.failover.return_ms = round(rounded.failover.return_ms, 1);
        // Numbers, strings and lists only: this cannot fail, and an empty document would be noticed.
        serde_json::to_string(&rounded).unwrap_or_default()
    }

    /// The summary.
    pub(super) fn summary(&self) -> String {
        let mut text = String::new();
        let mut line = |head: &str, rest: String| {
            // Writing to a string never fails.
            let _ = writeln!(text, "  {head:<12}{rest}");
        };
        let failover = &self.failover;
        line(
            "throughput",
            format!(
                "{:.2} Gbit/s encrypted, {:.2} Gbit/s by plain kernel forwarding: ratio {:.2} ({} TCP flows)",
                self.gbps, self.plain_gbps, self.ratio, self.flows
            ),
        );
        let split =
            self.tunnels.iter().map(|tunnel| format!("{} {:.1} %", tunnel.name, 100.0 * tunnel.share));
        line("split", split.collect::<Vec<_>>().join(", "));
        line("crossed", format!("{}; round trip {:.2} ms", self.crossed.join(", "), self.round_trip_ms));
        let wire = if self.encrypted {
            "all of the tunnels' own protocol or of its handshakes; nothing in clear"
        } else {
            "NOT all encrypted"
        };
        line("on the wire", format!("{} packets inspected: {wire}", grouped(self.packets_inspected)));
        line(
            "failover",
            format!(
                "{} cut silently: {} of {} flows hit, {}; {} of {} packets lost",
                failover.cut,
                failover.flows_hit,
                failover.flows,
                failover.recovered(),
                grouped(failover.lost_packets as u64),
                grouped(failover.sent_packets as u64),
            ),
        );
        line("", format!("flows of the healthy tunnel moved: {}", failover.healthy_flows_moved));
        line("return", format!("{} carries traffic again after {:.0} ms", failover.cut, failover.return_ms));
        for shortfall in &self.shortfalls {
            line("NOT SHOWN", shortfall.to_string());
        }
        text
    }
}

impl Failover {
    /// In words.
    pub(super) fn recovered(&self) -> String {
        match self.flows_not_recovered {
            0 => format!("all back after {:.0} ms", self.recovery_ms),
            dead => format!("{dead} NOT back while it was cut"),
        }
    }
}

/// Shares of the bytes that each tunnel sent.
pub(super) fn shares(bytes: [u64; 2]) -> Vec<Share> {
    let all = bytes.iter().sum::<u64>().max(1) as f64;
    PATHS.iter().zip(bytes).map(|(path, sent)| Share { name: path.name, share: sent as f64 / all }).collect()
}

/// Gbit/s.
pub(super) fn gbps(bytes: u64, during: Duration) -> f64 {
    bytes as f64 * 8e-9 / during.as_secs_f64().max(1e-9)
}

/// Milliseconds.
pub(super) fn ms(duration: Duration) -> f64 {
    1e3 * duration.as_secs_f64()
}

fn round(figure: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (figure * scale).round() / scale
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_fields_of_the_contract() {
        let report = Report { tunnels: shares([3, 1]), encrypted: true, gbps: 1.23456, ..Report::default() };
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        for pointer in [
            "/gbps",
            "/plain_gbps",
            "/ratio",
            "/failover/lost_packets",
            "/failover/recovery_ms",
            "/failover/healthy_flows_moved",
        ] {
            assert!(json.pointer(pointer).is_some_and(serde_json::Value::is_number), "{pointer}");
        }
        assert_eq!(json["encrypted"], true);
        assert_eq!(json["gbps"], 1.235);
        assert_eq!(json["tunnels"][0]["name"], "path-1");
        assert_eq!(json["tunnels"][0]["share"], 0.75);
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(123_456), "123,456");
    }

    #[test]
    fn the_summary_names_what_was_not_shown() {
        let report = Report {
            shortfalls: vec![Shortfall::NotReturned("path-1")],
            tunnels: shares([0, 0]),
            ..Report::default()
        };
        assert!(report.summary().contains("path-1 carried nothing"));
    }
}

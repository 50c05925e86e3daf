//! Traffic by iperf3 and ping, and what they measured.

use crate::{Error, Netns, Process, Result, poll_until};
use std::time::Duration;

/// iperf3's own default.
const PORT: u16 = 5201;

/// TCP's congestion control, unless told otherwise. What the machine prefers is inherited by namespaces, and one that paces
/// by estimates (bbr) measures its own guesses. Asked of each connection: a namespace's default may
/// only be one that the machine allows everybody (`tcp_allowed_congestion_control`).
pub const CONGESTION_CONTROL: &str = "cubic";

/// An iperf3 server in the background.
#[derive(Debug)]
pub struct IperfServer {
    _process: Process,
    address: String,
    congestion: String,
}

/// What to send.
#[derive(Debug, Clone)]
pub struct TcpLoad {
    /// Parallel connections.
    pub flows: u32,
    /// Seconds.
    pub seconds: u32,
    /// From the server to the client instead.
    pub reverse: bool,
}

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TcpResult {
    /// Payload at the receiver, bytes.
    pub bytes: u64,
    /// Payload rate at the receiver, bits per second.
    pub bits_per_second: f64,
    /// Segments sent again.
    pub retransmits: u64,
}

/// How to ping.
#[derive(Debug, Clone)]
pub struct Pings {
    /// Number of echo requests.
    pub count: u32,
    /// Between two requests.
    pub interval: Duration,
    /// ICMP payload, bytes.
    pub size: u32,
    /// Don't Fragment set; what exceeds a known path MTU is then not sent.
    pub df: bool,
}

impl Default for Pings {
    fn default() -> Self {
        Self { count: 3, interval: Duration::from_millis(10), size: 56, df: false }
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub struct PingResult {
    /// Requests sent.
    pub sent: u32,
    /// Round-trip times of those answered, milliseconds, in order of arrival. Duplicates excluded.
    pub rtt_ms: Vec<f64>,
}

impl PingResult {
    /// Share lost, 0 to 1.
    #[must_use]
    pub fn loss(&self) -> f64 {
        let answered = u32::try_from(self.rtt_ms.len()).unwrap_or(u32::MAX).min(self.sent);
        f64::from(self.sent - answered) / f64::from(self.sent.max(1))
    }

    /// Round-trip time at a quantile (0 to 1), milliseconds; none when nothing was answered.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let mut sorted = self.rtt_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        // Nearest rank; a list of round-trip times is far below 2^52 long.
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rank = (quantile.clamp(0.0, 1.0) * last as f64).round() as usize;
        sorted.get(rank).copied()
    }
}

impl IperfServer {
    /// Starts it, on all addresses; clients will use `address`.
    ///
    /// # Errors
    /// When iperf3 is missing or does not listen.
    pub fn start(netns: &Netns, address: &str) -> Result<Self> {
        let mut process = netns.spawn(&["iperf3", "-s"])?;
        let listening = poll_until("iperf3 server", Duration::from_secs(10), || {
            let up = netns.listens_tcp(PORT).unwrap_or(false);
            (up || process.ended().is_some()).then_some(up)
        })?;
        if !listening {
            return Err(process.failure());
        }
        Ok(Self { _process: process, address: address.to_owned(), congestion: CONGESTION_CONTROL.to_owned() })
    }

    /// With another congestion control for what is sent from now on.
    #[must_use]
    pub fn with_congestion(self, congestion: &str) -> Self {
        Self { congestion: congestion.to_owned(), ..self }
    }

    /// Sends TCP from `client` (or to it) and waits for the result.
    ///
    /// # Errors
    /// When iperf3 fails, or does not end in time.
    pub fn tcp(&self, client: &Netns, load: &TcpLoad) -> Result<TcpResult> {
        let mut running = self.tcp_in_background(client, load)?;
        running.finish()
    }

    /// Starts sending TCP at a rate that leaves capacity, to do something else meanwhile: what is
    /// then sent again was lost.
    ///
    /// # Errors
    /// When iperf3 is missing.
    pub fn tcp_at_rate(
        &self,
        client: &Netns,
        flows: u32,
        mbit_per_flow: u32,
        seconds: u32,
    ) -> Result<RunningTcp> {
        let rate = format!("{mbit_per_flow}M");
        self.start_tcp(client, &TcpLoad { flows, seconds, reverse: false }, &["-b", &rate])
    }

    /// Starts sending TCP, to do something else meanwhile.
    ///
    /// # Errors
    /// When iperf3 is missing.
    pub fn tcp_in_background(&self, client: &Netns, load: &TcpLoad) -> Result<RunningTcp> {
        self.start_tcp(client, load, &[])
    }

    fn start_tcp(&self, client: &Netns, load: &TcpLoad, more: &[&str]) -> Result<RunningTcp> {
        let (seconds, flows) = (load.seconds.to_string(), load.flows.to_string());
        let mut argv = vec!["iperf3", "-J", "-c", &self.address, "-t", &seconds, "-P", &flows];
        argv.extend(["--connect-timeout", "5000", "-C", &self.congestion]);
        argv.extend(more);
        if load.reverse {
            argv.push("-R");
        }
        Ok(RunningTcp {
            process: client.spawn(&argv)?,
            deadline: Duration::from_secs(u64::from(load.seconds) + 30),
        })
    }
}

/// TCP being sent.
#[derive(Debug)]
pub struct RunningTcp {
    process: Process,
    deadline: Duration,
}

impl RunningTcp {
    /// Waits for the end and the result.
    ///
    /// # Errors
    /// When iperf3 fails, or does not end in time.
    pub fn finish(&mut self) -> Result<TcpResult> {
        let status = self.process.wait(self.deadline)?;
        let output = self.process.stdout();
        if !status.success() {
            return Err(self.process.failure());
        }
        tcp_result(&output)
    }
}

fn tcp_result(json: &str) -> Result<TcpResult> {
    let report: serde_json::Value = serde_json::from_str(json).map_err(|bad| Error::parse("iperf3", bad))?;
    let end = &report["end"];
    let received = &end["sum_received"];
    match (received["bytes"].as_u64(), received["bits_per_second"].as_f64()) {
        (Some(bytes), Some(bits_per_second)) => Ok(TcpResult {
            bytes,
            bits_per_second,
            retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        }),
        _ => Err(Error::parse("iperf3", "no end.sum_received in its report")),
    }
}

/// Pings `address` from `netns`. That nothing came back is a result, not an error.
///
/// # Errors
/// When ping is missing or its output is not understood.
pub fn ping(netns: &Netns, address: &str, pings: &Pings) -> Result<PingResult> {
    let count = pings.count.to_string();
    let interval = format!("{:.3}", pings.interval.as_secs_f64());
    let size = pings.size.to_string();
    let mut argv = vec!["ping", "-n", "-c", &count, "-i", &interval, "-s", &size, "-W", "1"];
    if pings.df {
        argv.extend(["-M", "do"]);
    }
    argv.push(address);
    let ran = netns.output(&argv)?;
    // 1: not everything was answered; 2: ping itself failed.
    if ran.status.code().is_none_or(|code| code > 1) {
        return Err(Error::Command {
            command: argv.join(" "),
            status: ran.status.to_string(),
            output: ran.stderr.trim().to_owned(),
        });
    }
    ping_result(&ran.stdout)
}

fn ping_result(output: &str) -> Result<PingResult> {
    let sent = output
        .lines()
        .find(|line| line.contains("packets transmitted"))
        .and_then(|line| line.split(' ').next()?.parse().ok())
        .ok_or_else(|| Error::parse("ping", format!("no summary in {output:?}")))?;
    let rtt_ms = output
        .lines()
        .filter(|line| line.contains("bytes from") && !line.contains("DUP!"))
        .filter_map(|line| {
            let (_, time) = line.split_once("time=")?;
            time.split(' ').next()?.parse().ok()
        })
        .collect();
    Ok(PingResult { sent, rtt_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ping() {
        let output = "PING 10.2.0.2 (10.2.0.2) 56(84) bytes of data.\n\
            64 bytes from 10.2.0.2: icmp_seq=1 ttl=62 time=0.250 ms\n\
            64 bytes from 10.2.0.2: icmp_seq=1 ttl=62 time=0.300 ms (DUP!)\n\
            64 bytes from 10.2.0.2: icmp_seq=3 ttl=62 time=1.50 ms\n\n\
            --- 10.2.0.2 ping statistics ---\n\
            4 packets transmitted, 2 received, +1 duplicates, 50% packet loss, time 3ms\n";
        let result = ping_result(output).unwrap();
        assert_eq!(result.rtt_ms, [0.25, 1.5]);
        assert!((result.loss() - 0.5).abs() < 1e-9);
        assert_eq!(result.quantile(0.99), Some(1.5));
        assert_eq!(result.quantile(0.0), Some(0.25));
        assert!(ping_result("ping: unknown host").is_err());
    }

    #[test]
    fn nothing_answered_is_all_lost() {
        let none = PingResult { sent: 5, rtt_ms: Vec::new() };
        assert!((none.loss() - 1.0).abs() < 1e-9);
        assert_eq!(none.quantile(0.5), None);
    }

    #[test]
    fn reads_iperf3() {
        let json = r#"{"end": {"sum_sent": {"retransmits": 7},
            "sum_received": {"bytes": 1000, "bits_per_second": 8000.5}}}"#;
        let result = tcp_result(json).unwrap();
        assert_eq!((result.bytes, result.retransmits), (1000, 7));
        assert!(tcp_result("{}").is_err());
    }
}

//! The course of the demonstration: wait, prove, load, cut, restore; each step measures its part of
//! the report. Nothing here is taken from one run to the next, and nothing is assumed: what was
//! not seen is a shortfall.

use std::time::{Duration, Instant};

use super::Protocol;
use super::bulk::Bulk;
use super::capture::{Capture, Direction, Seen, Stage, Wire, Wires};
use super::crossing::{self, Crossing, Marker};
use super::display::{Bar, Display, State};
use super::error::{Error, Shortfall};
use super::gateway::{Child, Gateway, SUITE, Scratch, Secrets, Side, TunnelStatus, random};
use super::paced::{FLOWS, Log, Paced};
use super::report::{Failover, Report, gbps, ms, shares};
use super::stop::Stop;
use super::topology::{PATHS, SITE_A, SITE_B, Topology};

/// Everything that runs. Fields are dropped in this order: gateways before their namespaces and
/// their directory.
struct Demo<'d> {
    gateways: [Gateway; 2],
    topology: Topology,
    _scratch: Scratch,
    protocols: [Protocol; 2],
    wires: Wires,
    marker: Marker,
    stop: &'d Stop,
    display: &'d mut Display,
    report: Report,
}

/// Runs it from beginning to end; `seconds` is how long the tunnels are loaded.
///
/// # Errors
/// When it cannot go on; what it went through but did not show is in the report.
pub(super) fn perform(
    protocols: [Protocol; 2],
    seconds: Duration,
    flows: usize,
    stop: &Stop,
    display: &mut Display,
) -> Result<Report, Error> {
    display.live("building five network namespaces", &[]);
    let scratch = Scratch::new()?;
    let topology = Topology::build()?;
    let secrets = Secrets::draw()?;
    // Who answers is there before who begins.
    let b = Gateway::start(&topology.gateway_b, Side::B, protocols, &scratch, &secrets)?;
    let gateways = [Gateway::start(&topology.gateway_a, Side::A, protocols, &scratch, &secrets)?, b];
    let marker = random()?;
    let report = Report { flows, ..Report::default() };
    let wires = [Wire::WireGuard; 2];
    let mut demo =
        Demo { gateways, topology, _scratch: scratch, protocols, wires, marker, stop, display, report };
    demo.wait_until_up()?;
    let proof = demo.prove()?;
    demo.load(seconds)?;
    let failover = demo.fail_over()?;
    demo.conclude(&[proof, failover]);
    let Demo { gateways, report, .. } = demo;
    Gateway::end(gateways);
    Ok(report)
}

impl Demo<'_> {
    fn wait_until_up(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        self.display.live("starting two gateways with two tunnels", &[]);
        let (gateways, protocols) = (&mut self.gateways, self.protocols);
        self.wires = self.stop.wait_for("all tunnels up", START_LIMIT, || negotiated(gateways, protocols))?;
        let told = format!("{}, after {:.0} ms", told(protocols), ms(start.elapsed()));
        self.display.done("two tunnels up", &told);
        Ok(())
    }

    /// All protocols, with every packet on the outer links looked at.
    fn prove(&mut self) -> Result<Seen, Error> {
        self.display.live("TCP, UDP and ICMP, IPv4 and IPv6", &[]);
        let capture = Capture::start(&self.topology.net, self.wires, self.marker)?;
        let Topology { client, server, .. } = &self.topology;
        let Crossing { crossed, missing, round_trip } =
            crossing::cross(client, server, self.marker, CROSS_LIMIT, self.stop)?;
        let seen = capture.so_far();
        self.display.done("crossed", &crossed.join(", "));
        self.report.crossed = crossed;
        self.report.round_trip_ms = round_trip.map(ms).unwrap_or_default();
        if !missing.is_empty() {
            self.report.shortfalls.push(Shortfall::NotCrossed(missing));
        }
        Ok(seen)
    }

    /// TCP as fast as it goes: by turns without and with tunnels, so that what else the machine
    /// does meets both alike.
    fn load(&mut self, seconds: Duration) -> Result<(), Error> {
        let (mut plain, mut sealed, mut split) = ((0, Duration::ZERO), (0, Duration::ZERO), [0; 2]);
        for turn in 1..=TURNS {
            let round = format!("{turn}/{TURNS}");
            let step = format!("plain kernel forwarding {round}");
            add(&mut plain, self.transfer(&step, SITE_B.plain_host, seconds / 2 / TURNS, false)?);
            let before = self.sent_bytes()?;
            let step = format!("through the tunnels {round}");
            add(&mut sealed, self.transfer(&step, SITE_B.host, seconds / TURNS, true)?);
            let after = self.sent_bytes()?;
            for path in 0..split.len() {
                split[path] += after[path].saturating_sub(before[path]);
            }
        }
        let report = &mut self.report;
        report.plain_gbps = gbps(plain.0, plain.1);
        report.gbps = gbps(sealed.0, sealed.1);
        report.ratio = if report.plain_gbps > 0.0 { report.gbps / report.plain_gbps } else { 0.0 };
        report.tunnels = shares(split);
        let (plain, sealed) = (report.plain_gbps, report.gbps);
        self.display.done("plain forwarding", &format!("{plain:.2} Gbit/s"));
        self.display.done("through the tunnels", &format!("{sealed:.2} Gbit/s"));
        Ok(())
    }

    /// One transfer; bytes received after the warm-up, and during how long.
    fn transfer(
        &mut self,
        step: &str,
        to: std::net::Ipv4Addr,
        during: Duration,
        tunnels: bool,
    ) -> Result<(u64, Duration), Error> {
        let Topology { client, server, .. } = &self.topology;
        let bulk = Bulk::start(client, server, to.into(), self.report.flows)?;
        self.stop.sleep(WARM_UP)?;
        let (start, first) = (Instant::now(), bulk.received());
        let mut last = (start, self.topology.carried()?);
        while start.elapsed() < during {
            self.stop.sleep(REDRAW.min(during.saturating_sub(start.elapsed())))?;
            let now = (Instant::now(), self.topology.carried()?);
            let rates: [f64; 2] =
                std::array::from_fn(|path| gbps(now.1[path].saturating_sub(last.1[path]), now.0 - last.0));
            last = now;
            if tunnels {
                self.draw(step, rates, "Gbit/s", None);
            } else {
                let step = format!("{step:<30} {:7.2} Gbit/s", rates.iter().sum::<f64>());
                self.display.live(&step, &[]);
            }
        }
        Ok((bulk.received() - first, start.elapsed()))
    }

    /// Paced flows in both directions while one path is cut in mid-path and restored.
    fn fail_over(&mut self) -> Result<Seen, Error> {
        // A busy machine may have taken one for dead under load.
        let gateways = &mut self.gateways;
        self.stop.wait_for("all tunnels up", RETURN_LIMIT, || all_up(gateways))?;
        let capture = Capture::start(&self.topology.net, self.wires, self.marker)?;
        let origin = Instant::now();
        let paced = self.pace(origin)?;
        self.watch(&capture, "steady traffic", STEADY, None)?;

        let cut = origin.elapsed();
        capture.enter(Stage::Cut);
        self.topology.cut(PATHS[CUT])?;
        self.watch(&capture, "one path cut in mid-path, silently", CUT_LASTS, Some(CUT))?;
        let restored = origin.elapsed();
        capture.enter(Stage::Restored);
        self.topology.restore(PATHS[CUT])?;
        self.display.live("path restored", &[]);
        let gateways = &mut self.gateways;
        self.stop.wait_for("the restored tunnel up", RETURN_LIMIT, || all_up(gateways))?;
        let back = origin.elapsed();
        self.watch(&capture, "path restored", AFTER, None)?;
        let logs = paced.map(Paced::finish);

        capture.enter(Stage::NewFlows);
        let paced = self.pace(origin)?;
        self.watch(&capture, "new flows", NEW_FLOWS, None)?;
        drop(paced.map(Paced::finish));
        let seen = capture.so_far();
        self.judge(&logs, &seen, cut, restored, back);
        Ok(seen)
    }

    fn pace(&self, origin: Instant) -> Result<[Paced; 2], Error> {
        let a = (&self.topology.client, SITE_A.host);
        let b = (&self.topology.server, SITE_B.host);
        Ok([Paced::start(a, b, self.marker, origin)?, Paced::start(b, a, self.marker, origin)?])
    }

    fn judge(&mut self, logs: &[Log; 2], seen: &Seen, cut: Duration, restored: Duration, back: Duration) {
        let outages = logs.each_ref().map(|log| log.outage(cut, restored));
        let name = PATHS[CUT].name;
        let recovery = outages.iter().map(|outage| outage.recovery).max().unwrap_or_default();
        let failover = Failover {
            lost_packets: outages.iter().map(|outage| outage.lost).sum(),
            recovery_ms: ms(recovery),
            healthy_flows_moved: seen.moved_to(CUT),
            sent_packets: outages.iter().map(|outage| outage.sent).sum(),
            cut: name,
            flows_hit: outages.iter().map(|outage| outage.hit.len()).sum(),
            flows_not_recovered: outages.iter().map(|outage| outage.not_recovered).sum(),
            flows: 2 * FLOWS,
            return_ms: ms(back.saturating_sub(restored)),
        };
        let on_path = |stage, path| seen.on_path(stage, path).iter().all(|packets| *packets > 0);
        let shortfalls = &mut self.report.shortfalls;
        let both = [Direction::AToB, Direction::BToA];
        if both.iter().any(|direction| seen.flows_on(Stage::Before, *direction, CUT).is_empty()) {
            shortfalls.push(Shortfall::TunnelIdle(name));
        }
        if failover.flows_not_recovered > 0 {
            shortfalls.push(Shortfall::NotRecovered(failover.flows_not_recovered));
        }
        if failover.healthy_flows_moved > 0 {
            shortfalls.push(Shortfall::HealthyMoved(failover.healthy_flows_moved));
        }
        if !on_path(Stage::NewFlows, CUT) {
            shortfalls.push(Shortfall::NotReturned(name));
        }
        let outcome = format!(
            "{} of {} flows hit, {}, {} packets lost",
            failover.flows_hit,
            failover.flows,
            failover.recovered(),
            failover.lost_packets
        );
        self.display.done("one path cut", &outcome);
        self.display.done("path restored", &format!("both carry traffic after {:.0} ms", failover.return_ms));
        self.report.failover = failover;
    }

    /// Whether what crossed the outer links was encrypted, all of it.
    fn conclude(&mut self, looks: &[Seen]) {
        let report = &mut self.report;
        let leaks = looks.iter().filter_map(|seen| seen.first_leak.clone());
        let mut shortfalls: Vec<_> = leaks.map(Shortfall::InClear).collect();
        for (number, path) in PATHS.iter().enumerate() {
            let both_ways = (0..2).all(|way| looks.iter().any(|seen| seen.sealed[number][way] > 0));
            if !both_ways {
                shortfalls.push(Shortfall::NothingSeen(path.name));
            }
        }
        let crossed = !report.shortfalls.iter().any(|one| matches!(one, Shortfall::NotCrossed(_)));
        report.encrypted = crossed && shortfalls.is_empty();
        report.packets_inspected =
            looks.iter().map(|seen| seen.packets() + seen.handshakes + seen.leaks).sum();
        // What matters most is said first.
        shortfalls.append(&mut report.shortfalls);
        report.shortfalls = shortfalls;
    }

    /// Bytes that each tunnel of gateway A has sent so far.
    fn sent_bytes(&mut self) -> Result<[u64; 2], Error> {
        let [gateway, _] = &mut self.gateways;
        let tunnels = self.stop.wait_for("the tunnels' counters", STATUS_LIMIT, || gateway.tunnels())?;
        let sent =
            |name| tunnels.iter().find(|tunnel| tunnel.name == name).map_or(0, |tunnel| tunnel.tx_bytes);
        Ok(PATHS.map(|path| sent(path.name)))
    }

    /// Lets time pass and shows what the capture sees.
    fn watch(
        &mut self,
        capture: &Capture,
        step: &str,
        during: Duration,
        cut: Option<usize>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let counted = |seen: Seen| seen.sealed.map(|ways| ways.iter().sum::<u64>());
        let mut last = (start, counted(capture.so_far()));
        while start.elapsed() < during {
            self.stop.sleep(REDRAW.min(during.saturating_sub(start.elapsed())))?;
            let now = (Instant::now(), counted(capture.so_far()));
            let seconds = (now.0 - last.0).as_secs_f64();
            let rates =
                std::array::from_fn(|path| 1e-3 * now.1[path].saturating_sub(last.1[path]) as f64 / seconds);
            last = now;
            self.draw(step, rates, "kpps", cut);
        }
        Ok(())
    }

    fn draw(&mut self, step: &str, rates: [f64; 2], unit: &'static str, cut: Option<usize>) {
        let scale = rates.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let bars: [Bar; 2] = std::array::from_fn(|path| Bar {
            name: PATHS[path].name,
            state: if cut == Some(path) { State::Cut } else { State::Up },
            level: rates[path] / scale,
            rate: rates[path],
            unit,
        });
        self.display.live(step, &bars);
    }
}

/// What may cross in every tunnel, as soon as all are up and both gateways name the same SPIs.
fn negotiated(gateways: &mut [Gateway; 2], protocols: [Protocol; 2]) -> Result<Option<Wires>, Error> {
    if all_up(gateways)?.is_none() {
        return Ok(None);
    }
    let [a, b] = gateways;
    let (Some(a), Some(b)) = (a.tunnels()?, b.tunnels()?) else { return Ok(None) };
    let wires: Vec<Wire> = PATHS
        .iter()
        .zip(protocols)
        .map_while(|(path, protocol)| match protocol {
            Protocol::Esp => spis(&a, &b, path.name).map(Wire::Esp),
            Protocol::WireGuard => Some(Wire::WireGuard),
        })
        .collect();
    Ok(wires.try_into().ok())
}

/// A tunnel's SPIs, from A to B and from B to A, if both say the same.
fn spis(a: &[TunnelStatus], b: &[TunnelStatus], name: &str) -> Option<[u32; 2]> {
    let child = |tunnels: &[TunnelStatus]| tunnels.iter().find(|tunnel| tunnel.name == name)?.child.clone();
    let (Child { spi_in, spi_out }, b) = (child(a)?, child(b)?);
    // A collision of both sides' handshakes may not be settled yet.
    if (&spi_in, &spi_out) != (&b.spi_out, &b.spi_in) {
        return None;
    }
    let number = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    Some([number(&spi_out)?, number(&spi_in)?])
}

/// In words.
fn told(protocols: [Protocol; 2]) -> String {
    let one = |protocol| match protocol {
        Protocol::Esp => format!("IKEv2 and ESP with {SUITE}"),
        Protocol::WireGuard => "WireGuard".to_owned(),
    };
    let [first, second] = protocols.map(one);
    if first == second { first } else { format!("{first} on one, {second} on the other") }
}

/// `Some` once every tunnel of both gateways is up.
fn all_up(gateways: &mut [Gateway; 2]) -> Result<Option<()>, Error> {
    for gateway in gateways {
        let up = gateway.tunnels()?.is_some_and(|tunnels| {
            tunnels.len() == PATHS.len() && tunnels.iter().all(|tunnel| tunnel.state == "up")
        });
        if !up {
            return Ok(None);
        }
    }
    Ok(Some(()))
}

fn add(sum: &mut (u64, Duration), part: (u64, Duration)) {
    sum.0 += part.0;
    sum.1 += part.1;
}

/// The path that is cut.
const CUT: usize = 0;
const TURNS: u32 = 5;
const WARM_UP: Duration = Duration::from_millis(200);
const REDRAW: Duration = Duration::from_millis(200);
const STEADY: Duration = Duration::from_millis(600);
const CUT_LASTS: Duration = Duration::from_millis(1000);
const AFTER: Duration = Duration::from_millis(300);
const NEW_FLOWS: Duration = Duration::from_millis(300);
const START_LIMIT: Duration = Duration::from_secs(10);
const CROSS_LIMIT: Duration = Duration::from_secs(5);
const RETURN_LIMIT: Duration = Duration::from_secs(10);
const STATUS_LIMIT: Duration = Duration::from_secs(3);

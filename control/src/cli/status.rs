//! `braid status`.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use crossterm::{
    cursor,
    event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    execute, queue, terminal,
};
use nix::sys::signal::{SigSet, Signal};

use super::{
    FAILED, RunDir,
    ask::{ask, print},
};
use crate::{
    admin::Request,
    status::{Failure, Metrics, Status, Tunnel},
};

/// Between two looks of `--watch`.
const INTERVAL: Duration = Duration::from_secs(1);

/// Says what is up, what is not and why.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exits with 0 when the gateway answers, whatever its tunnels do; --json says it all to programs.

Examples: braid status
          braid status --watch
          braid status --json | jq '.tunnels[] | {name, state, reason}'")]
pub(super) struct Args {
    /// Print one JSON document and nothing else
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Look again every second, until q or Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

pub(super) fn run(args: &Args) -> ExitCode {
    if args.watch {
        return watch(&args.run_dir.path);
    }
    let value = match ask(&args.run_dir.path, &Request::Status) {
        Ok(value) => value,
        Err(code) => return code,
    };
    if args.json {
        print(&format!("{value}\n"));
        return ExitCode::SUCCESS;
    }
    match serde_json::from_value::<Status>(value) {
        Ok(status) => {
            print(&table(&status, None));
            ExitCode::SUCCESS
        }
        Err(error) => other_version(&error),
    }
}

fn other_version(error: &serde_json::Error) -> ExitCode {
    eprintln!("braid: the gateway is of another version: {error}");
    ExitCode::from(FAILED)
}

fn watch(run_dir: &Path) -> ExitCode {
    leave_on_signals();
    if !io::stdout().is_terminal() {
        return watch_lines(run_dir);
    }
    let mut screen = match Screen::enter() {
        Ok(screen) => screen,
        Err(_) => return watch_lines(run_dir),
    };
    let mut before: Option<(Instant, Status)> = None;
    loop {
        let at = Instant::now();
        let value = match ask_quietly(run_dir) {
            Ok(value) => value,
            Err(line) => {
                drop(screen);
                eprintln!("{line}");
                return ExitCode::from(FAILED);
            }
        };
        let status: Status = match serde_json::from_value(value) {
            Ok(status) => status,
            Err(error) => {
                drop(screen);
                return other_version(&error);
            }
        };
        let rates = before.as_ref().map(|(then, status)| (at - *then, status));
        if screen.show(&table(&status, rates)).is_err() {
            return ExitCode::SUCCESS;
        }
        before = Some((at, status));
        match wait_for_key(at + INTERVAL) {
            Ok(true) => return ExitCode::SUCCESS,
            Ok(false) => {}
            Err(_) => return ExitCode::SUCCESS,
        }
    }
}

fn ask_quietly(run_dir: &Path) -> Result<serde_json::Value, String> {
    match crate::admin::request(run_dir, &Request::Status)? {
        crate::admin::Response::Ok(value) => Ok(value),
        crate::admin::Response::Failed { lines, .. } => Err(lines.join("; ")),
    }
}

/// Where there is no terminal: a table every second, until nobody reads.
fn watch_lines(run_dir: &Path) -> ExitCode {
    let mut before: Option<(Instant, Status)> = None;
    loop {
        let at = Instant::now();
        let value = match ask(run_dir, &Request::Status) {
            Ok(value) => value,
            Err(code) => return code,
        };
        let status: Status = match serde_json::from_value(value) {
            Ok(status) => status,
            Err(error) => return other_version(&error),
        };
        let rates = before.as_ref().map(|(then, status)| (at - *then, status));
        let text = format!("{}\n", table(&status, rates));
        if io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).is_err() {
            return ExitCode::SUCCESS;
        }
        before = Some((at, status));
        std::thread::sleep(INTERVAL.saturating_sub(at.elapsed()));
    }
}

/// True when the user wants to leave.
fn wait_for_key(until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if !event::poll(left)? {
            return Ok(false);
        }
        if let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
}

/// The alternate screen; what was there before comes back when it is dropped.
struct Screen(io::Stdout);

impl Screen {
    fn enter() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        let mut screen = Screen(io::stdout());
        execute!(screen.0, terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    fn show(&mut self, text: &str) -> io::Result<()> {
        // Some terminals do not know their size.
        let (width, height) = match terminal::size()? {
            (0, _) | (_, 0) => (80, 24),
            size => size,
        };
        queue!(self.0, cursor::MoveTo(0, 0))?;
        let lines = text.lines().chain(["", "q leaves"]).take(usize::from(height));
        for (row, line) in lines.enumerate() {
            let line: String = line.chars().take(usize::from(width)).collect();
            queue!(self.0, cursor::MoveTo(0, row as u16), terminal::Clear(terminal::ClearType::CurrentLine))?;
            self.0.write_all(line.as_bytes())?;
        }
        queue!(self.0, terminal::Clear(terminal::ClearType::FromCursorDown))?;
        self.0.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave_screen();
    }
}

fn leave_screen() {
    // A terminal that is gone needs no restoring.
    let _ = execute!(io::stdout(), cursor::Show, terminal::LeaveAlternateScreen);
    let _ = terminal::disable_raw_mode();
}

/// A signal ends it as well as a key does, and leaves the terminal as it was.
fn leave_on_signals() {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    if signals.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            if terminal::is_raw_mode_enabled().is_ok_and(|is_ours| is_ours) {
                leave_screen();
            }
            std::process::exit(0);
        }
    });
}

/// The page for people. `before` gives rates instead of totals.
fn table(status: &Status, before: Option<(Duration, &Status)>) -> String {
    /// More routes than fit a screen are counted only.
    const MAX_ROUTES: usize = 20;
    let up = status.tunnels.iter().filter(|tunnel| tunnel.state == "up").count();
    let mut text = format!(
        "{}: {up} of {} tunnels up, running for {}{}\n",
        status.gateway,
        status.tunnels.len(),
        time(status.uptime_s),
        if status.core { "" } else { "; THE FORWARDING CORE DOES NOT ANSWER" },
    );
    if let Some(Metrics { listen, problem: Some(problem) }) = &status.metrics {
        text.push_str(&format!("no metrics: cannot listen on {listen}: {problem}\n"));
    }
    text.push('\n');
    let titles = match before {
        Some(_) => ["TUNNEL", "STATE", "FOR", "OUT", "IN", "RTT/P99", "MTU", "LOCAL", "REMOTE", ""],
        None => ["TUNNEL", "STATE", "FOR", "SENT", "RECEIVED", "RTT/P99", "MTU", "LOCAL", "REMOTE", ""],
    };
    let mut rows = vec![titles.map(str::to_owned)];
    for tunnel in &status.tunnels {
        let earlier = before.and_then(|(elapsed, status)| {
            Some((elapsed, status.tunnels.iter().find(|earlier| earlier.name == tunnel.name)?))
        });
        rows.push(row(tunnel, earlier));
    }
    text.push_str(&align(&rows));
    text.push_str(&bfd_table(status));
    text.push_str(&failure_table(status));
    if !status.routes.is_empty() {
        let mut rows = vec![["ROUTE", "ORIGIN", "PATHS"].map(str::to_owned)];
        for route in status.routes.iter().take(MAX_ROUTES) {
            let path = |path: &crate::status::Path| {
                let weight = if path.weight == 1 { String::new() } else { format!(" x{}", path.weight) };
                format!("{}{weight}{}", way(path), if path.active { "" } else { " (idle)" })
            };
            let paths = route.paths.iter().map(path).collect::<Vec<_>>().join(", ");
            rows.push([route.prefix.clone(), route.origin.clone(), paths]);
        }
        text.push_str(&format!("\n{}", align(&rows)));
        let more = status.routes.len().saturating_sub(MAX_ROUTES) + status.routes_left_out;
        if more > 0 {
            text.push_str(&format!("and {more} more routes: braid routes\n"));
        }
    }
    if !status.neighbors.is_empty() {
        let titles = ["NEIGHBOR", "AS", "STATE", "FOR", "RECEIVED", "ACCEPTED", "ADVERTISED", "ADDRESS", ""];
        let mut rows = vec![titles.map(str::to_owned)];
        rows.extend(status.neighbors.iter().map(neighbor_row));
        text.push_str(&format!("\n{}", align(&rows)));
    }
    let drops: Vec<String> = status
        .drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    text.push_str(&format!(
        "\nDROPS   {}\n",
        if drops.is_empty() { "none".to_owned() } else { drops.join(", ") }
    ));
    text
}

fn row(tunnel: &Tunnel, before: Option<(Duration, &Tunnel)>) -> [String; 10] {
    let amounts = match before {
        Some((elapsed, earlier)) => {
            let rate =
                |now: u64, then: u64| bits(now.saturating_sub(then) as f64 * 8.0 / elapsed.as_secs_f64());
            [rate(tunnel.tx_bytes, earlier.tx_bytes), rate(tunnel.rx_bytes, earlier.rx_bytes)]
        }
        None => [bytes(tunnel.tx_bytes), bytes(tunnel.rx_bytes)],
    };
    let [out, inward] = amounts;
    let address = |address: &Option<String>| address.clone().unwrap_or_else(|| "any".to_owned());
    [
        tunnel.name.clone(),
        tunnel.state.clone(),
        time(tunnel.since_s),
        out,
        inward,
        match (tunnel.latency_ms, tunnel.latency_p99_ms) {
            (Some(mean), Some(slow)) => format!("{mean:.1}/{slow:.1} ms"),
            _ => "-".to_owned(),
        },
        tunnel.mtu.to_string(),
        address(&tunnel.local),
        address(&tunnel.remote),
        tunnel.reason.clone(),
    ]
}

/// Sessions of BFD, where there are any.
fn bfd_table(status: &Status) -> String {
    let mut rows = vec![["BFD", "STATE", "EVERY", "DETECTS", "PEER", "PEER'S STATE", ""].map(str::to_owned)];
    let of_tunnels = status.tunnels.iter().filter_map(|tunnel| Some((&tunnel.name, tunnel.bfd.as_ref()?)));
    let outside = status.neighbors.iter().filter(|neighbor| neighbor.tunnel.is_none());
    let of_neighbors = outside.filter_map(|neighbor| Some((&neighbor.name, neighbor.bfd.as_ref()?)));
    for (name, bfd) in of_tunnels.chain(of_neighbors) {
        rows.push([
            name.clone(),
            bfd.state.clone(),
            format!("{} ms x {}", bfd.interval_ms, bfd.multiplier),
            format!("{} ms", bfd.detection_ms),
            bfd.remote.clone(),
            bfd.remote_state.clone(),
            bfd.problem.clone().or_else(|| bfd.diagnostic.clone()).unwrap_or_default(),
        ]);
    }
    if rows.len() == 1 { String::new() } else { format!("\n{}", align(&rows)) }
}

/// The tunnel of a path, or its link.
pub(super) fn way(path: &crate::status::Path) -> String {
    match (&path.tunnel, &path.interface, &path.gateway) {
        (Some(tunnel), ..) => tunnel.clone(),
        (None, Some(interface), Some(gateway)) => format!("{gateway} on {interface}"),
        (None, interface, _) => interface.clone().unwrap_or_default(),
    }
}

fn neighbor_row(neighbor: &crate::bgp::NeighborView) -> [String; 9] {
    let stale = if neighbor.stale > 0 { format!(" ({} stale)", neighbor.stale) } else { String::new() };
    let malformed = (neighbor.malformed > 0).then(|| format!("{} malformed messages", neighbor.malformed));
    let reason = Some(neighbor.reason.clone()).filter(|reason| !reason.is_empty());
    let remarks: Vec<String> = reason.into_iter().chain(malformed).collect();
    [
        neighbor.name.clone(),
        neighbor.asn.to_string(),
        neighbor.state.clone(),
        neighbor.since_s.map_or_else(|| "-".to_owned(), time),
        format!("{}{stale}", neighbor.received),
        neighbor.accepted.to_string(),
        neighbor.advertised.to_string(),
        neighbor.address.clone(),
        remarks.join("; "),
    ]
}

/// The last failure of each tunnel that had one, the latest first.
fn failure_table(status: &Status) -> String {
    /// More than fit a screen are in `--json`.
    const MAX_FAILURES: usize = 10;
    let mut failed: Vec<(&Tunnel, &Failure)> =
        status.tunnels.iter().filter_map(|tunnel| Some((tunnel, tunnel.last_failure.as_ref()?))).collect();
    failed.sort_by(|one, other| one.1.ago_s.total_cmp(&other.1.ago_s));
    let mut rows = vec![["LAST FAILURE", "AGO", "CAUSE", "MASKED IN", "ALL DONE IN", ""].map(str::to_owned)];
    for (tunnel, failure) in failed.into_iter().take(MAX_FAILURES) {
        rows.push([
            tunnel.name.clone(),
            time(failure.ago_s),
            failure.cause.clone(),
            failure.masked_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.0} us")),
            failure.converged_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
            failure.reason.clone(),
        ]);
    }
    if rows.len() == 1 { String::new() } else { format!("\n{}", align(&rows)) }
}

/// Columns as wide as their widest cell, two blanks between them.
pub(super) fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn time(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3600 % 24),
    }
}

fn bytes(count: u64) -> String {
    scaled(count as f64, "B")
}

fn bits(rate: f64) -> String {
    scaled(rate, "bit/s")
}

fn scaled(value: f64, unit: &str) -> String {
    let steps = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match steps.into_iter().find(|(step, _)| value >= *step) {
        Some((step, prefix)) => format!("{:.1} {prefix}{unit}", value / step),
        None => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!(scaled(0.0, "B"), "0 B");
        assert_eq!(scaled(1_500_000.0, "bit/s"), "1.5 Mbit/s");
        assert_eq!(scaled(2.5e9, "B"), "2.5 GB");
        assert_eq!(
            (time(9.25), time(61.0), time(7300.0), time(90_000.0)),
            ("9.2 s".into(), "1 min 1 s".into(), "2 h 1 min".into(), "1 d 1 h".into())
        );
    }

    #[test]
    fn what_a_neighbor_sends_wrong_is_shown_beside_why_it_is_not_there() {
        let neighbor = |malformed: u64, reason: &str| {
            let json = serde_json::json!({
                "name": "a", "address": "169.254.10.1", "tunnel": "a", "asn": 64512, "state": "established",
                "reason": reason, "since_s": 1.0, "received": 5, "accepted": 4, "stale": 2, "left_out": 0,
                "advertised": 1, "held_back": 0, "hold_time_s": 30, "families": ["ipv4"],
                "graceful_restart": true, "bfd": null, "messages_received": 9, "established": 1,
                "malformed": malformed,
            });
            let [.., received, _, _, _, last] = neighbor_row(&serde_json::from_value(json).unwrap());
            assert_eq!(received, "5 (2 stale)");
            last
        };
        assert_eq!(neighbor(0, ""), "");
        assert_eq!(neighbor(3, ""), "3 malformed messages");
        assert_eq!(neighbor(3, "the connection failed"), "the connection failed; 3 malformed messages");
    }

    #[test]
    fn columns_align() {
        let rows = [["a".to_owned(), "bb".to_owned()], ["ccc".to_owned(), "d".to_owned()]];
        assert_eq!(align(&rows), "a    bb\nccc  d\n");
    }
}

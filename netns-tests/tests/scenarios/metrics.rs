//! Metrics for Prometheus, scraped with curl: they say what `braid status --json` says, whatever happens to
//! tunnels, keys, the configuration and control, and nobody who may connect stops them.

use crate::failover::{CUT, answers_to_probes, state_of_the_cut};
use crate::kernel::kill_part;
use crate::pair::{Pair, START, Side};
use braid_netns::gateway::Gateway;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{GATEWAY_A, GATEWAY_B, NET_A, NET_B, OuterPath, SERVER};
use braid_netns::traffic::{IperfServer, TcpLoad};
use braid_netns::{Netns, Ran, Result, Topology, retry_until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("metrics::say_what_the_status_says", say_what_the_status_says),
    ("metrics::withstand_who_may_connect", withstand_who_may_connect),
];

const LISTEN: &str = "127.0.0.1:9466";
/// Far more than are served at a time.
const IDLE: usize = 200;
/// Of curl, seconds: a scrape takes milliseconds.
const PATIENCE: &str = "5";

/// The value of every series.
type Series = BTreeMap<String, f64>;

fn say_what_the_status_says() -> Outcome {
    let pair = start()?;
    let (topology, netns) = (&pair.topology, &pair.topology.gateway_a);
    let page = curl(netns, &["-i", &url(LISTEN)])?.stdout.to_lowercase();
    assert!(page.starts_with("http/1.1 200 ok\r\n"), "{page}");
    assert!(page.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{page}");
    assert!(page.contains("\n# type braid_tunnel_tx_bytes_total counter\n"), "{page}");
    let elsewhere = curl(netns, &["-i", &format!("http://{LISTEN}/")])?.stdout;
    assert!(elsewhere.starts_with("HTTP/1.1 404 "), "{elsewhere}");
    assert!(elsewhere.ends_with("\r\n\r\nnothing is here: metrics are at /metrics\n"), "{elsewhere}");
    let posted = curl(netns, &["-i", "-d", "x=y", &url(LISTEN)])?.stdout;
    assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");

    let idle = agreed(&pair.a, netns, LISTEN)?;
    let server = IperfServer::start(&topology.server, SERVER)?;
    for reverse in [false, true] {
        server.tcp(&topology.client, &TcpLoad { flows: 32, seconds: 1, reverse })?;
    }
    pair.a.rekey("t0", false)?;
    retry_until("a rekey", START, || {
        let rekeys =
            pair.a.status().map_err(|error| error.to_string())?["tunnels"][0]["child"]["rekeys"].take();
        if rekeys.as_u64() >= Some(1) { Ok(()) } else { Err(rekeys.to_string()) }
    })?;
    let loaded = agreed(&pair.a, netns, LISTEN)?;
    went_on(&idle, &loaded);
    for tunnel in ["t0", "t1"] {
        for way in ["tx", "rx"] {
            let bytes = format!("braid_tunnel_{way}_bytes_total{{tunnel=\"{tunnel}\"}}");
            assert!(
                loaded[&bytes] > idle[&bytes] + 100_000.0,
                "{bytes}: {} then {}",
                idle[&bytes],
                loaded[&bytes]
            );
        }
    }
    for (series, value) in [
        ("braid_rekeys_total{tunnel=\"t0\"}", 1.0),
        ("braid_rekeys_total{tunnel=\"t1\"}", 0.0),
        ("braid_bgp_prefixes{neighbor=\"t0\",direction=\"received\"}", 2.0),
        ("braid_bgp_prefixes{neighbor=\"t0\",direction=\"advertised\"}", 1.0),
        ("braid_tunnel_up{tunnel=\"t0\"}", 1.0),
    ] {
        assert_eq!(loaded.get(series), Some(&value), "{series}");
    }
    assert!(loaded["braid_path_latency_seconds{tunnel=\"t1\"}"] > 0.0);

    let cut = a_cut_is_counted(&pair, &loaded)?;
    // What the core counts survives control.
    kill_part(netns, "braid-control")?;
    state_of_the_cut(&pair, "up")?;
    let adopted = agreed(&pair.a, netns, LISTEN)?;
    let of_core = |series: &Series| {
        let counted = |name: &str| name.starts_with("braid_tunnel_") || name.starts_with("braid_drops_total");
        series.clone().into_iter().filter(|(name, _)| counted(name)).collect::<Series>()
    };
    went_on(&of_core(&cut), &adopted);
    moves_with_a_reload(&pair)
}

/// Counts one failover of the cut tunnel; what is agreed on after it has come back.
fn a_cut_is_counted(pair: &Pair, before: &Series) -> Result<Series> {
    let netns = &pair.topology.gateway_a;
    let faults = pair.topology.cut(CUT)?;
    state_of_the_cut(pair, "down")?;
    let down = agreed(&pair.a, netns, LISTEN)?;
    assert_eq!((down["braid_tunnel_up{tunnel=\"t0\"}"], down["braid_tunnel_up{tunnel=\"t1\"}"]), (0.0, 1.0));
    let failovers: Vec<(&String, &f64)> =
        down.iter().filter(|(name, _)| name.starts_with("braid_failovers_total")).collect();
    assert_eq!(failovers, [(&"braid_failovers_total{tunnel=\"t0\",cause=\"probe\"}".to_owned(), &1.0)]);
    for fault in faults {
        fault.undo()?;
    }
    state_of_the_cut(pair, "up")?;
    let up = agreed(&pair.a, netns, LISTEN)?;
    assert_eq!(up["braid_tunnel_up{tunnel=\"t0\"}"], 1.0);
    // New keys may have been negotiated from scratch meanwhile, which begins their count anew.
    let lasting = |series: &Series| {
        series.clone().into_iter().filter(|(name, _)| !name.starts_with("braid_rekeys")).collect::<Series>()
    };
    went_on(&lasting(before), &lasting(&down));
    went_on(&lasting(&down), &lasting(&up));
    Ok(up)
}

fn moves_with_a_reload(pair: &Pair) -> Outcome {
    const MOVED: &str = "[::1]:9477";
    let netns = &pair.topology.gateway_a;
    let configuration = configuration(Side::A, &pair.topology.paths);
    pair.a.write_configuration(&configuration.replace(LISTEN, "[::1]"))?;
    let refused = pair.a.braid(&["reload"])?;
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        refused.stderr.contains("metrics.listen: \"[::1]\" is no address with a port"),
        "{}",
        refused.stderr
    );
    scrape(netns, LISTEN)?;
    pair.a.write_configuration(&configuration.replace(LISTEN, MOVED))?;
    assert!(pair.a.braid(&["reload"])?.status.success());
    retry_until("metrics at another address", START, || scrape(netns, MOVED).map(drop))?;
    agreed(&pair.a, netns, MOVED)?;
    assert!(!is_listening(netns, 9466)?, "the old address is still listened on");
    // Nothing of it concerns the tunnels.
    pair.a.write_configuration(&without_metrics(&configuration))?;
    assert!(pair.a.braid(&["reload"])?.status.success());
    retry_until("no metrics", START, || match is_listening(netns, 9477) {
        Ok(false) => Ok(()),
        Ok(true) => Err("somebody listens".to_owned()),
        Err(error) => Err(error.to_string()),
    })?;
    let status = pair.a.status()?;
    assert_eq!(
        (&status["metrics"], &status["tunnels"][1]["failovers"]),
        (&Value::Null, &0.into()),
        "{status}"
    );
    Ok(())
}

/// Idle connections, half requests, junk and scrapes from everywhere at once: a scrape is answered, and no tunnel
/// notices.
fn withstand_who_may_connect() -> Outcome {
    let pair = start()?;
    let netns = &pair.topology.gateway_a;
    let before = pair.a.status()?["neighbors"][0]["established"].clone();
    let mut idle = connect(netns, IDLE)?;
    for (number, stream) in idle.iter_mut().enumerate() {
        // Of some the gateway has hung up already.
        let _ = match number % 3 {
            0 => stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a"),
            1 => stream.write_all(&[0xff; 512]),
            _ => Ok(()),
        };
    }
    let begun = Instant::now();
    agreed(&pair.a, netns, LISTEN)?;
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?} beside idle connections", begun.elapsed());
    drop(idle);
    flood(&pair)?;
    agreed(&pair.a, netns, LISTEN)?;
    let status = pair.a.status()?;
    for tunnel in status["tunnels"].as_array().into_iter().flatten() {
        assert_eq!((&tunnel["state"], &tunnel["failovers"]), (&"up".into(), &0.into()), "{tunnel}");
    }
    assert_eq!(status["neighbors"][0]["established"], before, "{status}");
    Ok(())
}

/// Scrapes one after the other, from several at once; control goes on answering others.
fn flood(pair: &Pair) -> Result<()> {
    const TIME: Duration = Duration::from_secs(2);
    let netns = &pair.topology.gateway_a;
    std::thread::scope(|scope| {
        let end = Instant::now() + TIME;
        let scraping = move || netns.enter(|| while_until(end));
        let scraping: Vec<_> = (0..4).map(|_| scope.spawn(scraping)).collect();
        let mut slowest = Duration::ZERO;
        while Instant::now() < end {
            let asked = Instant::now();
            pair.a.status()?;
            slowest = slowest.max(asked.elapsed());
        }
        assert!(slowest < Duration::from_secs(2), "braid status took {slowest:?}");
        for thread in scraping {
            let answers = thread.join().map_err(|_| braid_netns::Error::Usage("panicked".to_owned()))??;
            assert!(answers > 10, "{answers} answers");
        }
        Ok(())
    })
}

/// Scrapes until then; how many were answered.
fn while_until(end: Instant) -> usize {
    let mut answers = 0;
    while Instant::now() < end {
        let Ok(mut stream) = TcpStream::connect(LISTEN) else { continue };
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        if asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.contains(" 200 OK\r\n") {
            answers += 1;
        }
    }
    answers
}

/// Two gateways with two tunnels, whose latency is known, and BGP in one of them; A answers for its metrics.
fn start() -> Result<Pair> {
    let topology = Topology::builder().paths(2).build()?;
    let a = Gateway::start(&topology.gateway_a, &configuration(Side::A, &topology.paths))?;
    let b = Gateway::start(&topology.gateway_b, &configuration(Side::B, &topology.paths))?;
    let mut pair = Pair { a, b, topology };
    pair.wait_up()?;
    // A tunnel is up before its first answer, but has no latency yet, and no cut of it is noticed.
    for tunnel in 0..2 {
        answers_to_probes(&pair, tunnel)?;
    }
    retry_until("BGP", START, || {
        let neighbor = pair.a.status().map_err(|error| error.to_string())?["neighbors"][0].take();
        let told = neighbor["received"] == 2 && neighbor["advertised"] == 1;
        if told { Ok(()) } else { Err(neighbor.to_string()) }
    })?;
    Ok(pair)
}

fn configuration(side: Side, paths: &[OuterPath]) -> String {
    let (name, role, source, asn, peer_asn, far, announced) = match side {
        Side::A => ("gateway-a", "initiate", GATEWAY_A, 65_001, 65_002, NET_B, format!("\"{NET_A}\"")),
        Side::B => (
            "gateway-b",
            "respond",
            GATEWAY_B,
            65_002,
            65_001,
            NET_A,
            format!("\"{NET_B}\", \"10.99.0.0/24\""),
        ),
    };
    let mut text = format!("[gateway]\nname = \"{name}\"\nsource = \"{source}\"\n");
    if side == Side::A {
        text.push_str(&format!("\n[metrics]\nlisten = \"{LISTEN}\"\n"));
    }
    for (index, path) in paths.iter().enumerate() {
        let (local, remote, host) = match side {
            Side::A => (path.a, path.b, 1),
            Side::B => (path.b, path.a, 2),
        };
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\n[[tunnel]]\nname = \"t{index}\"\ntype = \"ipsec\"\nrole = \"{role}\"\nlocal = \"{local}\"\n\
             remote = \"{remote}\"\ninside = \"169.254.{}.{host}/30\"\n\
             probe = {{ interval = \"1s\", multiplier = 3 }}\n\
             \n[tunnel.ike]\npsk = \"correct horse battery staple\"\n",
            10 + index
        );
    }
    let _ = write!(
        text,
        "\n[[route]]\nprefix = \"{far}\"\nvia = [\"t0\", \"t1\"]\n\
         \n[bgp]\nasn = {asn}\nrouter-id = \"{source}\"\nannounce = [{announced}]\n\
         \n[[bgp.neighbor]]\ntunnel = \"t0\"\nasn = {peer_asn}\n"
    );
    text
}

fn without_metrics(configuration: &str) -> String {
    configuration.replace(&format!("[metrics]\nlisten = \"{LISTEN}\"\n"), "")
}

fn url(listen: &str) -> String {
    format!("http://{listen}/metrics")
}

fn curl(netns: &Netns, arguments: &[&str]) -> Result<Ran> {
    // `-g`: brackets are an address.
    netns.run(&[&["curl", "-gsS", "--noproxy", "*", "--max-time", PATIENCE], arguments].concat())
}

fn scrape(netns: &Netns, listen: &str) -> Result<Series> {
    let text = curl(netns, &["-f", &url(listen)])?.stdout;
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        Some((series.to_owned(), value.parse().ok()?))
    };
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| sample(line).ok_or_else(|| braid_netns::Error::Usage(format!("no sample: {line:?}"))))
        .collect()
}

/// What a scrape between two equal looks at the status says, which is what these say.
fn agreed(gateway: &Gateway, netns: &Netns, listen: &str) -> Result<Series> {
    retry_until("metrics that agree with the status", START, || {
        let text = |error: braid_netns::Error| error.to_string();
        let before = expected(&gateway.status().map_err(text)?);
        let found = scrape(netns, listen).map_err(text)?;
        let after = expected(&gateway.status().map_err(text)?);
        if before == found && found == after {
            return Ok(found);
        }
        let differs = |other: &Series| {
            let names = found.keys().chain(other.keys());
            names.filter(|name| found.get(*name) != other.get(*name)).cloned().collect::<Vec<_>>()
        };
        Err(format!("{:?} before, {:?} after", differs(&before), differs(&after)))
    })
}

/// What the metrics of this status are.
fn expected(status: &Value) -> Series {
    let mut series = Series::new();
    for tunnel in status["tunnels"].as_array().into_iter().flatten() {
        let name = tunnel["name"].as_str().unwrap_or_default();
        let up = matches!(tunnel["state"].as_str(), Some("up" | "standby" | "draining"));
        series.insert(format!("braid_tunnel_up{{tunnel=\"{name}\"}}"), f64::from(u8::from(up)));
        for count in ["tx_bytes", "tx_packets", "rx_bytes", "rx_packets"] {
            let value = tunnel[count].as_f64();
            series.extend(
                value.map(|value| (format!("braid_tunnel_{count}_total{{tunnel=\"{name}\"}}"), value)),
            );
        }
        let rekeys = tunnel["child"]["rekeys"].as_f64();
        series.extend(rekeys.map(|rekeys| (format!("braid_rekeys_total{{tunnel=\"{name}\"}}"), rekeys)));
        for (cause, count) in tunnel["failover_causes"].as_object().into_iter().flatten() {
            let name = format!("braid_failovers_total{{tunnel=\"{name}\",cause=\"{cause}\"}}");
            series.extend(count.as_f64().map(|count| (name, count)));
        }
        let latency = tunnel["latency_ms"].as_f64().map(|latency| latency / 1e3);
        let name = format!("braid_path_latency_seconds{{tunnel=\"{name}\"}}");
        series.extend(latency.map(|latency| (name, latency)));
    }
    for neighbor in status["neighbors"].as_array().into_iter().flatten() {
        let name = neighbor["name"].as_str().unwrap_or_default();
        for direction in ["received", "advertised"] {
            let name = format!("braid_bgp_prefixes{{neighbor=\"{name}\",direction=\"{direction}\"}}");
            series.extend(neighbor[direction].as_f64().map(|count| (name, count)));
        }
    }
    for (reason, count) in status["drops"].as_object().into_iter().flatten() {
        let name = format!("braid_drops_total{{reason=\"{reason}\"}}");
        series.extend(count.as_f64().map(|count| (name, count)));
    }
    series
}

/// No counter has vanished or gone backwards.
fn went_on(before: &Series, after: &Series) {
    for (name, value) in before.iter().filter(|(name, _)| name.contains("_total{")) {
        assert!(after.get(name) >= Some(value), "{name}: {value}, then {:?}", after.get(name));
    }
}

/// Connections of whoever is in the gateway's namespace.
fn connect(netns: &Netns, number: usize) -> Result<Vec<TcpStream>> {
    let connected: std::io::Result<Vec<TcpStream>> =
        netns.enter(|| (0..number).map(|_| TcpStream::connect(LISTEN)).collect())?;
    connected.map_err(braid_netns::Error::io("cannot connect"))
}

fn is_listening(netns: &Netns, port: u16) -> Result<bool> {
    netns.listens_tcp(port)
}

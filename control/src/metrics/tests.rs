use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::json;

use super::*;
use crate::{bgp::NeighborView, status::Tunnel};

/// Nothing here takes long; a machine under load may.
const LONG: Duration = Duration::from_secs(30);

pub(super) fn status(tunnels: Vec<Tunnel>) -> Status {
    Status {
        gateway: "g".to_owned(),
        uptime_s: 1.0,
        tunnels,
        routes: Vec::new(),
        routes_left_out: 0,
        neighbors: Vec::new(),
        drops: Default::default(),
        core: true,
        metrics: None,
    }
}

/// One that the core has.
pub(super) fn tunnel(name: &str, state: &str) -> Tunnel {
    let tunnel = json!({
        "name": name, "type": "ipsec", "state": state, "reason": "", "since_s": 1.0, "inside": "",
        "mtu": 1400, "tx_packets": 0, "tx_bytes": 0, "rx_packets": 0, "rx_bytes": 0, "probes_sent": 0,
        "probes_answered": 0, "weight": 1, "priority": 0, "buckets": 0, "failovers": 0, "failover_causes": {},
    });
    Tunnel { counted: true, ..serde_json::from_value(tunnel).unwrap() }
}

pub(super) fn neighbor(name: &str, received: usize, advertised: usize) -> NeighborView {
    serde_json::from_value(json!({
        "name": name, "address": "192.0.2.1", "asn": 64512, "state": "established", "reason": "",
        "received": received, "accepted": 0, "stale": 0, "left_out": 0, "advertised": advertised,
        "held_back": 0, "families": [], "graceful_restart": false, "messages_received": 0, "established": 1,
        "malformed": 0,
    }))
    .unwrap()
}

/// The endpoint with a loop that answers each question after `delay`; dropped, the loop ends.
struct Played {
    asked: Arc<AtomicUsize>,
    orders: mpsc::UnboundedSender<Option<SocketAddr>>,
    views: watch::Receiver<Option<status::Metrics>>,
}

impl Played {
    fn start(listen: SocketAddr, delay: Duration) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let (orders, mut ordered) = mpsc::unbounded_channel();
        let (shown, views) = watch::channel(None);
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut metrics = Metrics::new();
                metrics.listen(Some(listen));
                loop {
                    shown.send_replace(metrics.view());
                    tokio::select! {
                        to = metrics.next() => {
                            count.fetch_add(1, Ordering::Relaxed);
                            sleep(delay).await;
                            drop(to.send(status(vec![tunnel("a", "up")])));
                        }
                        order = ordered.recv() => match order {
                            Some(listen) => metrics.listen(listen),
                            None => return,
                        },
                        () = sleep(Duration::from_millis(5)) => {}
                    }
                }
            });
        });
        Played { asked, orders, views }
    }
}

/// A port that nobody has at the moment.
fn free() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
}

/// Connects as soon as somebody listens.
fn connect(to: SocketAddr) -> TcpStream {
    let end = Instant::now() + LONG;
    loop {
        match TcpStream::connect(to) {
            // From a port to itself TCP connects without anybody who listens.
            Ok(stream) if stream.local_addr().unwrap() != to => {
                stream.set_read_timeout(Some(LONG)).unwrap();
                return stream;
            }
            answer if Instant::now() > end => panic!("{to}: {answer:?}"),
            Ok(_) | Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// The whole answer to a request.
fn ask(to: SocketAddr, request: &str) -> String {
    let mut stream = connect(to);
    // Who is refused early may be hung up on in between.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn get(to: SocketAddr, path: &str) -> String {
    ask(to, &format!("GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n"))
}

#[test]
fn one_path_is_answered_and_the_others_say_so() {
    let listen = free();
    let _played = Played::start(listen, Duration::ZERO);
    let answer = get(listen, "/metrics");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(head.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert_eq!(head.matches("content-type").count(), 1, "{head}");
    assert!(head.contains(&format!("\r\ncontent-length: {}", body.len())), "{head}");
    assert!(body.contains("\nbraid_tunnel_up{tunnel=\"a\"} 1\n"), "{body}");
    // A query changes nothing, nor does a whole address or an old version.
    for request in ["GET /metrics?a=b HTTP/1.1\r\nHost: g\r\n\r\n", "GET /metrics HTTP/1.0\r\n\r\n"] {
        let answer = ask(listen, request);
        assert!(answer.contains(" 200 OK\r\n"), "{request}: {answer}");
    }
    for path in ["/", "/metric", "/metrics/", "/../metrics", "//metrics"] {
        let answer = get(listen, path);
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{path}: {answer}");
        assert!(answer.ends_with("\r\n\r\nnothing is here: metrics are at /metrics\n"), "{answer}");
    }
    for method in ["POST", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let answer =
            ask(listen, &format!("{method} /metrics HTTP/1.1\r\nHost: g\r\nContent-Length: 0\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{answer}");
        assert!(answer.contains("\r\nallow: GET\r\n"), "{answer}");
        assert_eq!(answer.ends_with("only GET is answered at /metrics\n"), method != "HEAD", "{answer}");
    }
}

#[test]
fn what_is_no_request_or_too_long_is_refused() {
    let listen = free();
    let played = Played::start(listen, Duration::ZERO);
    let long = format!("GET /metrics HTTP/1.1\r\nHost: g\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET /metrics HTTP/1.1\r\nHost: g\r\n{}\r\n", "X: y\r\n".repeat(1000));
    for (request, refused) in
        [("\0\0\0\0\r\n\r\n", "400"), ("GET /metrics SPDY/9\r\n\r\n", "400"), (&long, "431"), (&many, "431")]
    {
        let answer = ask(listen, request);
        // Who is still writing may lose the answer.
        assert!(answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {refused} ")), "{answer}");
    }
    assert_eq!(played.asked.load(Ordering::Relaxed), 0, "control was troubled");
    assert!(get(listen, "/metrics").contains(" 200 OK\r\n"));
}

#[test]
fn idle_connections_give_way() {
    let listen = free();
    let _played = Played::start(listen, Duration::ZERO);
    let mut idle = Vec::new();
    for number in 0..200 {
        let mut stream = connect(listen);
        if number % 2 == 0 {
            // Half a request is as idle as none.
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:").unwrap();
        }
        idle.push(stream);
    }
    let begun = Instant::now();
    assert!(get(listen, "/metrics").contains(" 200 OK\r\n"));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // The first were hung up on, the last are still served.
    let mut first = Vec::new();
    let _ = idle[1].read_to_end(&mut first);
    assert!(first.is_empty());
    let last = idle.last_mut().unwrap();
    last.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 OK\r\n"), "{answer}");
}

/// However many ask, control is asked once at a time, and not again until it has rested.
#[test]
fn a_flood_of_scrapes_shares_answers() {
    let listen = free();
    let delay = Duration::from_millis(100);
    let played = Played::start(listen, delay);
    let begun = Instant::now();
    let scrapes: Vec<_> = (0..20).map(|_| thread::spawn(move || get(listen, "/metrics"))).collect();
    for scrape in scrapes {
        let answer = scrape.join().unwrap();
        assert!(answer.contains(" 200 OK\r\n"), "{answer}");
    }
    let asked = played.asked.load(Ordering::Relaxed);
    let most = 1 + begun.elapsed().as_millis() / (delay * REST).as_millis();
    assert!((1..=most as usize).contains(&asked), "{asked} times in {:?}", begun.elapsed());
}

#[test]
fn it_moves_and_ends_as_it_is_told() {
    let (first, second) = (free(), free());
    let played = Played::start(first, Duration::ZERO);
    assert!(get(first, "/metrics").contains(" 200 OK\r\n"));
    played.orders.send(Some(second)).unwrap();
    assert!(get(second, "/metrics").contains(" 200 OK\r\n"));
    assert!(TcpStream::connect(first).is_err(), "nobody listens at the old address");
    // The same port of another address, which takes the old one in.
    let any = SocketAddr::new([0, 0, 0, 0].into(), second.port());
    played.orders.send(Some(any)).unwrap();
    let other = SocketAddr::new([127, 0, 0, 2].into(), second.port());
    assert!(get(other, "/metrics").contains(" 200 OK\r\n"));
    played.orders.send(None).unwrap();
    let end = Instant::now() + LONG;
    while TcpStream::connect(second).is_ok() {
        assert!(Instant::now() < end, "it still listens");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_address_in_use_is_told_and_tried_again() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let listen = taken.local_addr().unwrap();
    let played = Played::start(listen, Duration::ZERO);
    let mut views = played.views.clone();
    let mut shown = |wanted: &dyn Fn(&status::Metrics) -> bool| {
        let end = Instant::now() + LONG;
        loop {
            let view = views.borrow_and_update().clone();
            if view.as_ref().is_some_and(wanted) {
                return view.unwrap();
            }
            assert!(Instant::now() < end, "{view:?}");
            thread::sleep(Duration::from_millis(1));
        }
    };
    let view = shown(&|view| view.problem.is_some());
    assert_eq!(view.listen, listen.to_string());
    assert!(view.problem.unwrap().contains("in use"));
    drop(taken);
    assert!(get(listen, "/metrics").contains(" 200 OK\r\n"));
    shown(&|view| view.problem.is_none());
}

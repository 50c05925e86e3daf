//! Proof that TCP, UDP and ICMP cross in both families: a request with this run's marker goes from
//! client to server, and the very same bytes must come back.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::error::Error;
use super::net::Namespace;
use super::stop::Stop;
use super::topology::SITE_B;

/// Random bytes that every packet of ours carries and no captured packet may show.
pub(super) type Marker = [u8; 16];

/// What came back.
#[derive(Debug, Default)]
pub(super) struct Crossing {
    /// Protocols that crossed.
    pub(super) crossed: Vec<&'static str>,
    /// Protocols that did not.
    pub(super) missing: Vec<&'static str>,
    /// Median round-trip time of ICMP, idle.
    pub(super) round_trip: Option<Duration>,
}

/// Waits until packets pass, then tries every protocol once.
///
/// # Errors
/// When nothing passes within `limit`, or sockets cannot be made.
pub(super) fn cross(
    client: &Namespace,
    server: &Namespace,
    marker: Marker,
    limit: Duration,
    stop: &Stop,
) -> Result<Crossing, Error> {
    let echoes = Echoes::start(server)?;
    let to = IpAddr::from(SITE_B.host);
    stop.wait_for("a ping through the tunnels", limit, || {
        client.run(move |_| Ok(ping(to, &marker, IMPATIENCE).ok()))
    })?;
    let mut crossing = Crossing::default();
    let [(udp4, tcp4), (udp6, tcp6)] = echoes.addresses;
    let asked = client.run(move |_| {
        Ok([
            ("ICMP", ping(udp4.ip(), &marker, PATIENCE)),
            ("ICMPv6", ping(udp6.ip(), &marker, PATIENCE)),
            ("UDP", ask_udp(udp4, &marker)),
            ("UDP over IPv6", ask_udp(udp6, &marker)),
            ("TCP", ask_tcp(tcp4, &marker)),
            ("TCP over IPv6", ask_tcp(tcp6, &marker)),
        ])
    })?;
    for (name, outcome) in asked {
        let list = if outcome.is_ok() { &mut crossing.crossed } else { &mut crossing.missing };
        list.push(name);
    }
    let mut times = client
        .run(move |_| Ok((0..PINGS).filter_map(|_| ping(to, &marker, PATIENCE).ok()).collect::<Vec<_>>()))?;
    times.sort_unstable();
    crossing.round_trip = times.get(times.len() / 2).copied();
    Ok(crossing)
}

/// Sockets of the server that send everything back, UDP and TCP for each family.
struct Echoes {
    addresses: [(SocketAddr, SocketAddr); 2],
    stop: Stop,
}

impl Echoes {
    fn start(server: &Namespace) -> Result<Self, Error> {
        let stop = Stop::default();
        let open = |host: IpAddr| -> Result<_, Error> {
            let failed = move || Error::system(format!("cannot open sockets on {host}"));
            let (udp, tcp) = server.run(move |_| {
                let udp = UdpSocket::bind((host, 0)).map_err(failed())?;
                Ok((udp, TcpListener::bind((host, 0)).map_err(failed())?))
            })?;
            udp.set_read_timeout(Some(TICK)).map_err(failed())?;
            tcp.set_nonblocking(true).map_err(failed())?;
            let addresses = (udp.local_addr().map_err(failed())?, tcp.local_addr().map_err(failed())?);
            let stop = stop.clone();
            thread::spawn(move || echo(&udp, &tcp, &stop));
            Ok(addresses)
        };
        let addresses = [open(SITE_B.host.into())?, open(SITE_B.host6.into())?];
        Ok(Self { addresses, stop })
    }
}

impl Drop for Echoes {
    fn drop(&mut self) {
        self.stop.set();
    }
}

fn echo(udp: &UdpSocket, tcp: &TcpListener, stop: &Stop) {
    let mut buffer = [0; 2048];
    while !stop.is_set() {
        if let Ok((length, from)) = udp.recv_from(&mut buffer) {
            // An answer that cannot be sent is missed by the one who asked.
            let _ = udp.send_to(&buffer[..length], from);
        }
        while let Ok((flow, _)) = tcp.accept() {
            let _ = echo_tcp(flow);
        }
    }
}

fn echo_tcp(mut flow: TcpStream) -> std::io::Result<()> {
    flow.set_nonblocking(false)?;
    flow.set_read_timeout(Some(PATIENCE))?;
    let mut request = [0; REQUEST];
    flow.read_exact(&mut request)?;
    flow.write_all(&request)
}

fn ask_tcp(to: SocketAddr, marker: &Marker) -> std::io::Result<Duration> {
    let start = Instant::now();
    let mut flow = TcpStream::connect_timeout(&to, PATIENCE)?;
    flow.set_read_timeout(Some(PATIENCE))?;
    let (sent, mut answer) = (request(marker), [0; REQUEST]);
    flow.write_all(&sent)?;
    flow.read_exact(&mut answer)?;
    same(&sent, &answer, start)
}

fn ask_udp(to: SocketAddr, marker: &Marker) -> std::io::Result<Duration> {
    let start = Instant::now();
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (sent, mut answer) = (request(marker), [0; REQUEST + 1]);
    socket.send(&sent)?;
    let length = socket.recv(&mut answer)?;
    same(&sent, &answer[..length], start)
}

/// One echo request of the kernel's ping sockets: it fills in identifier and checksum itself and
/// hands up only answers to our own requests.
fn ping(to: IpAddr, marker: &Marker, patience: Duration) -> std::io::Result<Duration> {
    let (family, protocol, kind) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let start = Instant::now();
    let socket = UdpSocket::from(socket(family, SocketType::DGRAM, Some(protocol))?);
    socket.connect((to, 0))?;
    socket.set_read_timeout(Some(patience))?;
    // RFC 792, RFC 4443 section 4.1: type, code, checksum, identifier, sequence number, data.
    let mut sent = vec![kind, 0, 0, 0, 0, 0, 0, 1];
    sent.extend(request(marker));
    let mut answer = [0; ICMP_HEADER + REQUEST + 1];
    socket.send(&sent)?;
    let length = socket.recv(&mut answer)?;
    same(&sent[ICMP_HEADER..], answer.get(ICMP_HEADER..length).unwrap_or_default(), start)
}

fn same(sent: &[u8], answer: &[u8], start: Instant) -> std::io::Result<Duration> {
    if sent == answer { Ok(start.elapsed()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

fn request(marker: &Marker) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    for (place, byte) in request.iter_mut().zip(marker.iter().cycle()) {
        *place = *byte;
    }
    request
}

const ICMP_HEADER: usize = 8;
const REQUEST: usize = 64;
const PINGS: usize = 21;
const PATIENCE: Duration = Duration::from_secs(1);
const IMPATIENCE: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_millis(2);

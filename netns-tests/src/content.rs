//! Traffic whose content is compared byte by byte at the other end: what arrives is what was sent,
//! or it is an error.

use crate::{Error, Netns, Result};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// How long a datagram or its echo may take before it counts as lost, where another follows.
const ROUND: Duration = Duration::from_millis(500);
/// Where none follows.
const LAST: Duration = Duration::from_secs(5);

/// Bytes that no shift, swap or repetition leaves the same: a stream made from a seed.
#[derive(Debug, Clone)]
pub struct Pattern(u64);

impl Pattern {
    /// The stream of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next bytes of the stream.
    pub fn fill(&mut self, out: &mut [u8]) {
        for word in out.chunks_mut(8) {
            // Xorshift (Marsaglia 2003): the state never becomes 0.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

/// A UDP socket at either end, the server's returning what it gets.
#[derive(Debug)]
pub struct Echo {
    client: UdpSocket,
    server: UdpSocket,
}

impl Echo {
    /// Sockets in both namespaces; `address` is the server's.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub fn new(client: &Netns, server: &Netns, address: &str) -> Result<Self> {
        let address = parse(address)?;
        let bind = |netns: &Netns, address: IpAddr| -> Result<UdpSocket> {
            let bound = netns.enter(|| UdpSocket::bind((address, 0)))?;
            let socket = bound.map_err(Error::io(format!("cannot bind {address}")))?;
            socket.set_read_timeout(Some(ROUND)).map_err(Error::io("cannot set a timeout"))?;
            Ok(socket)
        };
        let server = bind(server, address)?;
        let any = if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from([0, 0, 0, 0]) };
        let client = bind(client, any)?;
        let to = server.local_addr().map_err(Error::io("no local address"))?;
        client.connect(to).map_err(Error::io("cannot connect"))?;
        Ok(Self { client, server })
    }

    /// Sends a datagram of `size` bytes there and back until one comes back, `tries` times at
    /// most; the number of those that did not.
    ///
    /// # Errors
    /// When none did, or one arrived changed.
    pub fn round(&self, size: usize, tries: u32) -> Result<u32> {
        let mut sent = vec![0; size];
        let mut got = vec![0; 65_536];
        for lost in 0..tries {
            datagram(lost, &mut sent);
            self.forget_late_ones()?;
            let patience = if lost + 1 == tries { LAST } else { ROUND };
            for socket in [&self.client, &self.server] {
                socket.set_read_timeout(Some(patience)).map_err(Error::io("cannot set a timeout"))?;
            }
            // Refused when it is known to be too big, with DF; told of an earlier one otherwise.
            if self.client.send(&sent).is_err() {
                continue;
            }
            let Some(from) = awaited(&self.server, "there", &sent, lost, &mut got)? else { continue };
            if self.server.send_to(&sent, from).is_err() {
                continue;
            }
            if awaited(&self.client, "back", &sent, lost, &mut got)?.is_some() {
                return Ok(lost);
            }
        }
        Err(Error::Usage(format!("none of {tries} datagrams of {size} bytes came back")))
    }

    fn forget_late_ones(&self) -> Result<()> {
        for socket in [&self.client, &self.server] {
            socket.set_nonblocking(true).map_err(Error::io("cannot drain"))?;
            // An error that was told counts as one received; more than a few there cannot be.
            for _ in 0..16 {
                match socket.recv(&mut [0; 64]) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    _ => {}
                }
            }
            socket.set_nonblocking(false).map_err(Error::io("cannot drain"))?;
        }
        Ok(())
    }

    /// The client's end.
    #[must_use]
    pub fn client(&self) -> &UdpSocket {
        &self.client
    }

    /// The server's end.
    #[must_use]
    pub fn server(&self) -> &UdpSocket {
        &self.server
    }
}

/// What is sent at this try, of this size.
fn datagram(attempt: u32, out: &mut [u8]) {
    Pattern::new((out.len() as u64) << 8 | u64::from(attempt)).fill(out);
}

/// From where a datagram came, if one did in time; those of earlier tries, which may come late, are passed over.
fn awaited(
    socket: &UdpSocket,
    way: &str,
    sent: &[u8],
    attempt: u32,
    got: &mut [u8],
) -> Result<Option<SocketAddr>> {
    loop {
        let Ok((length, from)) = socket.recv_from(got) else { return Ok(None) };
        if !is_late(&got[..length], sent.len(), attempt) {
            compare(way, sent, &got[..length])?;
            return Ok(Some(from));
        }
    }
}

/// Whether a datagram is of an earlier try than this one of this size, and can be told from it.
fn is_late(got: &[u8], size: usize, attempt: u32) -> bool {
    /// Of no size are there more.
    const TRIES: u32 = 64;
    let mut earlier = vec![0; got.len()];
    let tries = if got.len() == size { attempt } else { TRIES };
    let mut is_of = |attempt| {
        datagram(attempt, &mut earlier);
        earlier == got
    };
    let is_this_one = got.len() == size && is_of(attempt);
    !is_this_one && (0..tries).any(is_of)
}

fn compare(way: &str, sent: &[u8], got: &[u8]) -> Result<()> {
    if sent == got {
        return Ok(());
    }
    let at = sent.iter().zip(got).position(|(a, b)| a != b);
    Err(Error::Usage(format!("{} bytes {way}: {} arrived, first difference {at:?}", sent.len(), got.len())))
}

/// Sends `bytes` over one TCP connection from `client` to `server`, or back when `reverse`, within
/// `deadline`; how long that took.
///
/// # Errors
/// When it does not end in time, or a byte is not what was sent.
pub fn tcp(
    client: &Netns,
    server: &Netns,
    address: &str,
    bytes: usize,
    reverse: bool,
    deadline: Duration,
) -> Result<Duration> {
    let address = parse(address)?;
    let listener = server.enter(|| TcpListener::bind((address, 0)))?.map_err(Error::io("cannot listen"))?;
    let to = listener.local_addr().map_err(Error::io("no local address"))?;
    let begin = Instant::now();
    let end = begin + deadline;
    let outcome = std::thread::scope(|scope| {
        let far = scope.spawn(|| {
            let stream = accept(&listener, end)?;
            if reverse { send(stream, bytes, end) } else { receive(stream, bytes, end) }
        });
        let near = (|| {
            let stream =
                client.enter(|| TcpStream::connect_timeout(&to, deadline)).map_err(io::Error::other)??;
            if reverse { receive(stream, bytes, end) } else { send(stream, bytes, end) }
        })();
        near.and(far.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    outcome.map_err(Error::io(format!("{bytes} bytes of TCP with {to}, reverse: {reverse}")))?;
    Ok(begin.elapsed())
}

fn parse(address: &str) -> Result<IpAddr> {
    address.parse().map_err(|_| Error::Usage(format!("{address} is no address")))
}

fn accept(listener: &TcpListener, end: Instant) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, SocketAddr::V4(_) | SocketAddr::V6(_))) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                left(end)?;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    }
}

/// What remains until `end`.
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn send(mut stream: TcpStream, bytes: usize, end: Instant) -> io::Result<()> {
    let mut pattern = Pattern::new(bytes as u64);
    let mut chunk = vec![0; 65_536];
    let mut rest = bytes;
    while rest > 0 {
        let part = &mut chunk[..rest.min(65_536)];
        pattern.fill(part);
        stream.set_write_timeout(Some(left(end)?))?;
        stream.write_all(part)?;
        rest -= part.len();
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The other end closes only once it has compared everything.
    stream.set_read_timeout(Some(left(end)?))?;
    match stream.read(&mut chunk)? {
        0 => Ok(()),
        _ => Err(io::Error::other("the receiver answered")),
    }
}

fn receive(mut stream: TcpStream, bytes: usize, end: Instant) -> io::Result<()> {
    let mut pattern = Pattern::new(bytes as u64);
    let (mut wanted, mut got) = (vec![0; 65_536], vec![0; 65_536]);
    let mut rest = bytes;
    while rest > 0 {
        let size = rest.min(65_536);
        pattern.fill(&mut wanted[..size]);
        stream.set_read_timeout(Some(left(end)?))?;
        stream.read_exact(&mut got[..size])?;
        if let Some(at) = wanted[..size].iter().zip(&got[..size]).position(|(a, b)| a != b) {
            return Err(io::Error::other(format!("byte {} is wrong", bytes - rest + at)));
        }
        rest -= size;
    }
    stream.set_read_timeout(Some(left(end)?))?;
    match stream.read(&mut got)? {
        0 => Ok(()),
        more => Err(io::Error::other(format!("{more} bytes too many"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_depends_on_its_seed_and_does_not_repeat() {
        let stream = |seed| {
            let mut out = [0; 4096];
            Pattern::new(seed).fill(&mut out);
            out
        };
        assert_eq!(stream(1), stream(1));
        assert_ne!(stream(1), stream(2));
        let words: std::collections::BTreeSet<_> = stream(0).chunks(8).map(<[u8]>::to_vec).collect();
        assert_eq!(words.len(), 512);
    }

    #[test]
    fn what_comes_late_is_of_an_earlier_try() {
        let sent = |size: usize, attempt| {
            let mut out = vec![0; size];
            datagram(attempt, &mut out);
            out
        };
        assert!(is_late(&sent(100, 0), 100, 1) && is_late(&sent(99, 7), 100, 0));
        assert!(!is_late(&sent(100, 1), 100, 1) && !is_late(&sent(100, 2), 100, 1));
        // Of few bytes all tries look alike.
        assert!(!is_late(&[], 0, 1) && is_late(&[], 20, 0));
        assert!((0..64).all(|attempt| !is_late(&sent(1, attempt), 1, attempt)));
        let mut damaged = sent(100, 0);
        damaged[99] ^= 1;
        assert!(!is_late(&damaged, 100, 1) && !is_late(&damaged[..99], 100, 1));
    }

    #[test]
    fn what_changed_is_found() {
        assert!(compare("there", &[1, 2, 3], &[1, 2, 3]).is_ok());
        let error = compare("there", &[1, 2, 3], &[1, 9, 3]).unwrap_err().to_string();
        assert!(error.contains("Some(1)"), "{error}");
        assert!(compare("there", &[1, 2, 3], &[1, 2]).is_err());
    }
}

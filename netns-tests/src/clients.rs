//! WireGuard clients by the thousand, as `braid client add` makes them: boringtun's, all in one thread, so
//! that little of the machine goes to them.

use crate::{Error, Netns, Result, raw};
use base64::prelude::{BASE64_STANDARD, Engine};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// `network` of their `[clients]`.
pub const NETWORK: &str = "10.64.0.0/14";
/// As the configurations that `braid client` prints, in seconds.
const KEEPALIVE: u16 = 25;
const TICK: Duration = Duration::from_millis(250);
/// So many begin in a tick: less than what has a gateway ask for cookies.
const AT_ONCE: usize = 100;
const MAX_DATAGRAM: usize = 2048;
const ICMP: u8 = 1;
const ECHO_HEADER: usize = 8;

/// The keys of a gateway and of its clients.
#[derive(Debug)]
pub struct Clients {
    gateway: [u8; 32],
    preshared: [u8; 32],
    own: Vec<[u8; 32]>,
}

impl Clients {
    /// Of so many, 65,535 at most.
    ///
    /// # Errors
    /// Without randomness.
    pub fn generate(count: u16) -> Result<Self> {
        let own = (0..count).map(|_| random()).collect::<Result<_>>()?;
        Ok(Self { gateway: random()?, preshared: random()?, own })
    }

    /// The gateway's private key, in base64.
    #[must_use]
    pub fn gateway_key(&self) -> String {
        BASE64_STANDARD.encode(self.gateway)
    }

    /// The inside address of one of them; the gateway has the first.
    #[must_use]
    pub fn address(index: usize) -> Ipv4Addr {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 2).to_bits().saturating_add(index))
    }

    /// Writes them as `braid client add` keeps them: the `file` of `[clients]`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let mut text = String::new();
        let preshared = BASE64_STANDARD.encode(self.preshared);
        for (index, own) in self.own.iter().enumerate() {
            let public = BASE64_STANDARD.encode(PublicKey::from(&StaticSecret::from(*own)).as_bytes());
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "[[client]]\nname = \"c{index}\"\naddress = \"{}\"\npublic-key = \"{public}\"\n\
                 preshared-key = \"{preshared}\"\n",
                Self::address(index)
            );
        }
        let failed = || Error::io("cannot write the clients");
        fs::write(file, text).map_err(failed())?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).map_err(failed())
    }

    /// Connects them all, a hundred at once and each from a port of its own, from this namespace to the gateway's
    /// address.
    ///
    /// # Errors
    /// When there are no sockets to be had.
    pub fn connect(&self, road: &Netns, gateway: SocketAddrV4) -> Result<Connected> {
        let failed = || Error::io("the clients' sockets");
        let open = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(gateway)?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        };
        let count = self.own.len();
        room_for(count)?;
        let sockets = road.enter(|| (0..count).map(|_| open()).collect::<io::Result<Vec<_>>>())?;
        let sockets = sockets.map_err(failed())?;
        let public = PublicKey::from(&StaticSecret::from(self.gateway));
        let tunn = |(index, own): (u32, &[u8; 32])| {
            let (own, preshared) = (StaticSecret::from(*own), Some(self.preshared));
            Tunn::new(own, public, preshared, Some(KEEPALIVE), index, None)
        };
        let tunns: Vec<Tunn> = (0..).zip(&self.own).map(tunn).collect();
        let (board, (stop, stopped)) = (Arc::new(Board::new(count)), oneshot::channel());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed())?;
        let played = Arc::clone(&board);
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                for (index, (tunn, socket)) in tunns.into_iter().zip(sockets).enumerate() {
                    let socket = tokio::net::UdpSocket::from_std(socket).map_err(failed())?;
                    let gateway = IpAddr::V4(*gateway.ip());
                    tokio::spawn(Client { index, socket, gateway, tunn, board: Arc::clone(&played) }.play());
                }
                // Dropped or sent: it is over.
                let _ = stopped.await;
                Ok(())
            })
        });
        Ok(Connected { board, stop: Some(stop), thread: Some(thread) })
    }
}

/// Lets this process open so many sockets more.
fn room_for(count: usize) -> Result<()> {
    let failed = |errno: nix::Error| Error::io(format!("no room for {count} sockets"))(errno.into());
    let wanted = count as u64 + 1024;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).map_err(failed)?;
    }
    Ok(())
}

/// Clients that are connected, or try to be. Dropped, they are gone without a word.
#[derive(Debug)]
pub struct Connected {
    board: Arc<Board>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Connected {
    /// Each asks a host for an echo, four times a second, until it has an answer.
    pub fn ask(&self, host: Ipv4Addr) {
        *self.board.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(host);
        self.board.round.fetch_add(1, Ordering::AcqRel);
    }

    /// How many have an answer to what was asked last.
    #[must_use]
    pub fn answered(&self) -> usize {
        let round = self.board.round.load(Ordering::Acquire);
        self.board.answered.iter().filter(|answered| answered.load(Ordering::Acquire) == round).count()
    }

    /// Whether this one has.
    #[must_use]
    pub fn has_answer(&self, index: usize) -> bool {
        let round = self.board.round.load(Ordering::Acquire);
        self.board.answered[index].load(Ordering::Acquire) == round
    }

    /// How many packets came to a client that were not for its address.
    #[must_use]
    pub fn strays(&self) -> usize {
        self.board.strays.load(Ordering::Relaxed)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) if !thread::panicking() => std::panic::resume_unwind(panic),
            Some(Ok(Err(error))) if !thread::panicking() => panic!("{error}"),
            _ => {}
        }
    }
}

/// Between the clients and who watches them.
#[derive(Debug)]
struct Board {
    asked: Mutex<Option<Ipv4Addr>>,
    /// Counts what was asked; the sequence number of its echoes.
    round: AtomicU16,
    /// Of each the last round in which it had an answer.
    answered: Vec<AtomicU16>,
    strays: AtomicUsize,
}

impl Board {
    fn new(count: usize) -> Self {
        Self {
            asked: Mutex::new(None),
            round: AtomicU16::new(0),
            answered: (0..count).map(|_| AtomicU16::new(0)).collect(),
            strays: AtomicUsize::new(0),
        }
    }
}

struct Client {
    index: usize,
    socket: tokio::net::UdpSocket,
    gateway: IpAddr,
    tunn: Tunn,
    board: Arc<Board>,
}

impl Client {
    async fn play(mut self) {
        let mut datagram = [0; MAX_DATAGRAM];
        let turn = TICK * u32::try_from(self.index / AT_ONCE).unwrap_or(u32::MAX);
        let mut ticks = tokio::time::interval_at(Instant::now() + turn, TICK);
        let mut has_begun = false;
        loop {
            tokio::select! {
                // An error is the gateway's absence, told by ICMP.
                received = self.socket.recv(&mut datagram) => {
                    self.take(&datagram[..received.unwrap_or(0)]);
                }
                _ = ticks.tick() => self.tick(std::mem::replace(&mut has_begun, true)),
            }
        }
    }

    fn take(&mut self, datagram: &[u8]) {
        let mut out = [0; MAX_DATAGRAM];
        match self.tunn.decapsulate(Some(self.gateway), datagram, &mut out) {
            // What is lost is sent again by the timers.
            TunnResult::WriteToNetwork(reply) => drop(self.socket.try_send(reply)),
            TunnResult::WriteToTunnelV4(packet, _) => self.board.take(self.index, packet),
            TunnResult::WriteToTunnelV6(..) => drop(self.board.strays.fetch_add(1, Ordering::Relaxed)),
            TunnResult::Done | TunnResult::Err(_) => {}
        }
    }

    fn tick(&mut self, has_begun: bool) {
        let mut out = [0; MAX_DATAGRAM];
        let due = match has_begun {
            true => self.tunn.update_timers(&mut out),
            false => self.tunn.format_handshake_initiation(&mut out, false),
        };
        if let TunnResult::WriteToNetwork(message) = due {
            let _ = self.socket.try_send(message);
        }
        if let Some((host, round)) = self.board.asks(self.index)
            // Without a session it would be kept, and be sent once there is one.
            && self.tunn.time_since_last_handshake().is_some()
            && let TunnResult::WriteToNetwork(sealed) =
                self.tunn.encapsulate(&echo_request(self.index, host, round), &mut out)
        {
            let _ = self.socket.try_send(sealed);
        }
    }
}

impl Board {
    /// Whom a client without an answer asks, and in which round.
    fn asks(&self, index: usize) -> Option<(Ipv4Addr, u16)> {
        let round = self.round.load(Ordering::Acquire);
        let host = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        host.filter(|_| self.answered[index].load(Ordering::Relaxed) != round).map(|host| (host, round))
    }

    /// A packet has come to a client.
    fn take(&self, index: usize, packet: &[u8]) {
        let [source, destination] = [12, 16].map(|at| packet.get(at..at + 4));
        if destination != Some(&Clients::address(index).octets()) {
            self.strays.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let round = self.round.load(Ordering::Acquire);
        let is_answer = packet.get(9) == Some(&ICMP)
            && packet.get(20) == Some(&0)
            && packet.get(24..28) == Some(&echo_number(index, round))
            && source == asked.map(|host| host.octets()).as_ref().map(<[u8; 4]>::as_slice);
        if is_answer {
            self.answered[index].store(round, Ordering::Release);
        }
    }
}

/// Identifier and sequence number.
fn echo_number(index: usize, round: u16) -> [u8; 4] {
    let [high, low] = u16::try_from(index).unwrap_or(u16::MAX).to_be_bytes();
    let [round_high, round_low] = round.to_be_bytes();
    [high, low, round_high, round_low]
}

fn echo_request(index: usize, host: Ipv4Addr, round: u16) -> Vec<u8> {
    let mut echo = [0; ECHO_HEADER];
    echo[0] = 8;
    echo[4..].copy_from_slice(&echo_number(index, round));
    let sum = raw::checksum(&echo, 0);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    raw::ip(Clients::address(index).into(), host.into(), ICMP, 0, &echo)
}

fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(Error::io("cannot read /dev/urandom"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the host would say.
    fn reply(request: &[u8]) -> Vec<u8> {
        let mut reply = request.to_vec();
        reply.copy_within(12..16, 16);
        reply[12..16].copy_from_slice(&request[16..20]);
        reply[20] = 0;
        reply
    }

    #[test]
    fn an_answer_is_its_askers_own_and_of_this_round() {
        let (board, host) = (Board::new(300), Ipv4Addr::new(10, 1, 0, 2));
        *board.asked.lock().unwrap() = Some(host);
        board.round.store(7, Ordering::Relaxed);
        let answered = || board.answered.iter().filter(|round| round.load(Ordering::Relaxed) == 7).count();
        board.take(299, &reply(&echo_request(299, host, 6)));
        board.take(299, &echo_request(299, host, 7));
        let mut of_another = reply(&echo_request(299, host, 7));
        of_another[15] += 1;
        board.take(299, &of_another);
        assert_eq!((answered(), board.strays.load(Ordering::Relaxed)), (0, 1));
        board.take(298, &reply(&echo_request(299, host, 7)));
        assert_eq!((answered(), board.strays.load(Ordering::Relaxed)), (0, 2));
        board.take(299, &reply(&echo_request(299, host, 7)));
        assert_eq!((answered(), board.strays.load(Ordering::Relaxed)), (1, 2));
    }
}

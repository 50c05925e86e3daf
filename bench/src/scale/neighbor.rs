//! A BGP neighbor that announces very many prefixes.

use braid_bgp::{
    Attributes, ConnectionId, Effect, Event, Family, Neighbor, NeighborConfig, Outgoing, SessionState,
};
use braid_netns::{Error, Netns, Result};
use ipnet::{IpNet, Ipv4Net};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub(crate) const OURS: u32 = 65_010;
pub(crate) const THEIRS: u32 = 64_512;
const PORT: u16 = 179;
/// Prefixes that share their attributes, as in a real table.
const SHARED: u32 = 20;
/// First of the prefixes; each is a /25.
const FIRST: u32 = 0x0b00_0000;
const LENGTH: u8 = 25;
/// What is waited for octets before a look at timers, orders and connections.
const READ: Duration = Duration::from_millis(20);

/// Prefix by number.
pub(crate) fn prefix(number: u32) -> IpNet {
    let size = 32 - u32::from(LENGTH);
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(FIRST + (number << size)), LENGTH))
}

/// So many of them, by this next hop.
pub(crate) fn table(count: u32, next_hop: Ipv4Addr) -> Outgoing {
    let group = |group: u32| {
        let attributes = Attributes {
            as_path: vec![THEIRS, 3356 + group % 50, 1000 + group % 60_000],
            communities: vec![(THEIRS << 16) | (group % 400), (3356 << 16) | 5],
            ..Attributes::originated(next_hop.into())
        };
        let prefixes = (group * SHARED..count.min((group + 1) * SHARED)).map(prefix).collect();
        (Arc::new(attributes), prefixes)
    };
    Outgoing { withdrawn: Vec::new(), announced: (0..count.div_ceil(SHARED)).map(group).collect() }
}

/// The neighbor, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Far {
    orders: Sender<Outgoing>,
    thread: JoinHandle<Result<()>>,
}

impl Far {
    /// Listens at this address. With a standing table it tells that to every session, one after the other, and
    /// takes a new connection for the end of the last; without one its first session is its only one.
    pub(crate) fn start(netns: &Netns, address: Ipv4Addr, standing: Option<Outgoing>) -> Result<Self> {
        let listener =
            netns.enter(|| TcpListener::bind((address, PORT)))?.map_err(Error::io("cannot listen"))?;
        listener.set_nonblocking(true).map_err(failed())?;
        let (orders, taken) = mpsc::channel();
        let thread = thread::spawn(move || serve(&listener, &taken, standing.as_ref()));
        Ok(Self { orders, thread })
    }

    /// Tells the other end.
    pub(crate) fn say(&self, outgoing: Outgoing) -> Result<()> {
        let ended = self.thread.is_finished() || self.orders.send(outgoing).is_err();
        if ended { Err(Error::Usage("the session has ended".to_owned())) } else { Ok(()) }
    }
}

/// Until whoever gives orders is gone.
fn serve(listener: &TcpListener, orders: &Receiver<Outgoing>, standing: Option<&Outgoing>) -> Result<()> {
    let mut session: Option<Session> = None;
    let mut buffer = vec![0; 64 * 1024];
    let mut waiting = Vec::new();
    loop {
        match listener.accept() {
            Ok((stream, _)) if session.is_none() || standing.is_some() => {
                session = Some(Session::of(stream)?);
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed()(error)),
        }
        match session.as_mut().map(|session| session.step(&mut buffer, standing)) {
            None => thread::sleep(READ),
            Some(Ok(())) => {}
            Some(Err(_)) if standing.is_some() => session = None,
            Some(Err(error)) => return Err(error),
        }
        match orders.try_recv() {
            Ok(outgoing) => waiting.push(outgoing),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        if let Some(session) = session.as_mut().filter(|session| session.is_established()) {
            waiting.drain(..).for_each(|outgoing| session.neighbor.send(&outgoing));
        }
    }
}

struct Session {
    stream: TcpStream,
    neighbor: Neighbor,
    id: ConnectionId,
    told: bool,
}

impl Session {
    fn of(stream: TcpStream) -> Result<Self> {
        stream.set_nonblocking(false).map_err(failed())?;
        stream.set_read_timeout(Some(READ)).map_err(failed())?;
        let config =
            NeighborConfig { passive: true, ..NeighborConfig::new(THEIRS, OURS, [10, 2, 0, 1].into()) };
        let mut neighbor = Neighbor::new(config, 1);
        neighbor.start(Instant::now());
        let refused = |_| Error::Usage("the session takes no connection".to_owned());
        let id = neighbor.handle_accepted(Instant::now()).map_err(refused)?;
        Ok(Self { stream, neighbor, id, told: false })
    }

    fn is_established(&self) -> bool {
        self.neighbor.state() == SessionState::Established
    }

    /// Reads, lets its timers fire, and writes what follows.
    fn step(&mut self, buffer: &mut [u8], standing: Option<&Outgoing>) -> Result<()> {
        match self.stream.read(buffer) {
            Ok(0) => return Err(Error::Usage("the other end has closed".to_owned())),
            Ok(len) => self.neighbor.handle_bytes(Instant::now(), self.id, &buffer[..len]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(failed()(error)),
        }
        if self.neighbor.poll_timeout().is_some_and(|at| at <= Instant::now()) {
            self.neighbor.handle_timeout(Instant::now());
        }
        if self.is_established() && !core::mem::replace(&mut self.told, true) {
            if let Some(standing) = standing {
                self.neighbor.send(standing);
            }
            self.neighbor.send_end_of_rib(Family::Ipv4);
        }
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        while let Some(effect) = self.neighbor.poll_effect() {
            match effect {
                Effect::Transmit(of, octets) if of == self.id => {
                    self.stream.write_all(&octets).map_err(failed())?;
                }
                Effect::Event(Event::Down { cause, .. }) => {
                    return Err(Error::Usage(format!("the far session ended: {cause:?}")));
                }
                Effect::Transmit(..) | Effect::Event(_) | Effect::Connect(_) | Effect::Close(_) => {}
            }
        }
        Ok(())
    }
}

fn failed() -> impl FnOnce(std::io::Error) -> Error {
    Error::io("the far session")
}

//! The throughput generator: TCP flows from client to server that send as fast as they are let.
//!
//! Each end of each flow has a thread of its own that blocks, as ordinary programs do; both ends
//! copy every byte. Measured against one thread an end that polls all flows: that depends on which
//! cores the kernel happens to choose (8 to 30 Gbit/s by plain forwarding on two cores, with idle
//! time left), this does not (15 to 18, no idle time). What counts is what the receiver has read.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use super::error::Error;
use super::net::Namespace;

/// Flows under way.
#[derive(Debug)]
pub(super) struct Bulk {
    received: Arc<AtomicU64>,
    ends: Vec<End>,
}

/// One end of a flow.
#[derive(Debug)]
struct End {
    /// The same connection as the thread's, for ending it.
    flow: TcpStream,
    thread: JoinHandle<()>,
}

impl Bulk {
    /// Connects `flows` flows to the server's address and lets them go.
    ///
    /// # Errors
    /// When a flow cannot be connected.
    pub(super) fn start(
        client: &Namespace,
        server: &Namespace,
        to: IpAddr,
        flows: usize,
    ) -> Result<Self, Error> {
        let listener = server.run(move |_| {
            TcpListener::bind((to, 0)).map_err(Error::system(format!("cannot listen on {to}")))
        })?;
        let to = listener.local_addr().map_err(Error::system("cannot listen"))?;
        let mut pairs = Vec::with_capacity(flows);
        for _ in 0..flows {
            let sending = client.run(move |_| connect(to))?;
            let (receiving, _) = listener.accept().map_err(Error::system("cannot accept a flow"))?;
            pairs.push((sending, receiving));
        }
        let mut bulk = Self { received: Arc::default(), ends: Vec::with_capacity(2 * flows) };
        for (sending, receiving) in pairs {
            let received = Arc::clone(&bulk.received);
            bulk.ends.push(End::start(receiving, move |flow| receive(flow, &received))?);
            bulk.ends.push(End::start(sending, send)?);
        }
        Ok(bulk)
    }

    /// Bytes that have arrived so far, over all flows.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        for end in &self.ends {
            // One that is closed already needs no shutdown.
            let _ = end.flow.shutdown(Shutdown::Both);
        }
        for end in self.ends.drain(..) {
            // A generator that panicked has delivered nothing more, which the figures show.
            let _ = end.thread.join();
        }
    }
}

impl End {
    fn start(flow: TcpStream, work: impl FnOnce(TcpStream) + Send + 'static) -> Result<Self, Error> {
        // An aborted connection sends nothing more once it is closed: later steps look at the wire.
        set_socket_linger(&flow, Some(Duration::ZERO)).map_err(Error::system("cannot set up a flow"))?;
        let own = flow.try_clone().map_err(Error::system("cannot set up a flow"))?;
        let thread = thread::Builder::new()
            .spawn(move || work(own))
            .map_err(Error::system("cannot start a thread"))?;
        Ok(Self { flow, thread })
    }
}

fn connect(to: SocketAddr) -> Result<TcpStream, Error> {
    TcpStream::connect_timeout(&to, CONNECT_LIMIT).map_err(Error::system(format!("cannot connect to {to}")))
}

fn send(mut flow: TcpStream) {
    let chunk = vec![0x5a; CHUNK];
    while flow.write_all(&chunk).is_ok() {}
}

fn receive(mut flow: TcpStream, received: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(bytes @ 1..) = flow.read(&mut buffer) {
        received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

const CHUNK: usize = 128 * 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

//! The throughput generator: TCP flows from client to server that send as fast as they are let.
//!
//! One thread writes all flows and one reads them, as iperf3 does, and both copy every byte. With a
//! thread for each end of each flow the generator itself takes the cores: on two cores plain
//! forwarding then goes from about 10 to 16 Gbit/s and the tunnels stay at 4.7, since forwarding in
//! the kernel needs no turn of the scheduler and a gateway's thread competes with all of them. What
//! counts is what the receiver has read.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_linger, set_tcp_congestion};

use super::error::Error;
use super::net::Namespace;
use super::stop::Stop;

/// Flows under way.
#[derive(Debug)]
pub(super) struct Bulk {
    received: Arc<AtomicU64>,
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
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
        let mut sending = Vec::with_capacity(flows);
        let mut receiving = Vec::with_capacity(flows);
        for _ in 0..flows {
            sending.push(set_up(client.run(move |_| connect(to))?)?);
            let (flow, _) = listener.accept().map_err(Error::system("cannot accept a flow"))?;
            receiving.push(set_up(flow)?);
        }
        let mut bulk = Self { received: Arc::default(), stop: Stop::default(), threads: Vec::new() };
        let stop = bulk.stop.clone();
        bulk.spawn(move || send(sending, &stop))?;
        let (stop, received) = (bulk.stop.clone(), Arc::clone(&bulk.received));
        bulk.spawn(move || receive(receiving, &received, &stop))?;
        Ok(bulk)
    }

    /// Bytes that have arrived so far, over all flows.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = thread::Builder::new().spawn(work).map_err(Error::system("cannot start a thread"))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.stop.set();
        for thread in self.threads.drain(..) {
            // A generator that panicked has delivered nothing more, which the figures show.
            let _ = thread.join();
        }
    }
}

fn connect(to: SocketAddr) -> Result<TcpStream, Error> {
    TcpStream::connect_timeout(&to, CONNECT_LIMIT).map_err(Error::system(format!("cannot connect to {to}")))
}

fn set_up(flow: TcpStream) -> Result<TcpStream, Error> {
    flow.set_nonblocking(true).map_err(Error::system("cannot set up a flow"))?;
    // An aborted connection sends nothing more once it is closed: later steps look at the wire.
    set_socket_linger(&flow, Some(Duration::ZERO)).map_err(Error::system("cannot set up a flow"))?;
    // What the machine prefers may pace by estimates (bbr), and then its guesses are measured. A
    // namespace's default cannot be set to what the machine does not allow everybody; a connection's
    // can. A kernel without cubic keeps its own.
    let _ = set_tcp_congestion(&flow, "cubic");
    Ok(flow)
}

fn send(mut flows: Vec<TcpStream>, stop: &Stop) {
    let chunk = vec![0x5a; CHUNK];
    while !stop.is_set() && !flows.is_empty() {
        each_ready(&mut flows, PollFlags::OUT, |flow| flow.write(&chunk));
    }
}

fn receive(mut flows: Vec<TcpStream>, received: &AtomicU64, stop: &Stop) {
    let mut buffer = vec![0; CHUNK];
    while !stop.is_set() && !flows.is_empty() {
        each_ready(&mut flows, PollFlags::IN, |flow| {
            let read = flow.read(&mut buffer)?;
            received.fetch_add(read as u64, Ordering::Relaxed);
            Ok(read)
        });
    }
}

/// Moves bytes on every flow that is ready; a flow that has ended leaves.
fn each_ready(
    flows: &mut Vec<TcpStream>,
    wanted: PollFlags,
    mut work: impl FnMut(&mut TcpStream) -> std::io::Result<usize>,
) {
    let mut polled: Vec<_> = flows.iter().map(|flow| PollFd::new(flow, wanted)).collect();
    // Interrupted or timed out: nothing is ready, and the caller looks whether to stop.
    let _ = poll(&mut polled, Some(&POLL_LIMIT));
    let ready: Vec<bool> = polled.iter().map(|flow| !flow.revents().is_empty()).collect();
    let mut ready = ready.into_iter();
    flows.retain_mut(|flow| match ready.next() {
        Some(true) => match work(flow) {
            Ok(moved) => moved > 0,
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        },
        Some(false) | None => true,
    });
}

const CHUNK: usize = 128 * 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
const POLL_LIMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

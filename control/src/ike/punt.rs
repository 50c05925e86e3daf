//! Control's end of `punt.sock`: IKE datagrams both ways, and a new connection when one ends.
//!
//! What does not fit waits here, up to a bound; beyond it the oldest is lost, as on any network: IKE sends
//! again.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use braid_api::{
    VERSION, decode,
    launcher::PUNT_SOCKET,
    punt::{FromPunt, MAX_PUNT_LEN, PuntIn, PuntOut, ToPunt, encode_punt},
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use tokio::{io::Interest, net::UnixStream, time::Instant};
use zeroize::Zeroizing;

use crate::core_client::ready;

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(20);
/// Datagrams that wait.
const QUEUE: usize = 4096;

/// The connection, or the attempt to have one.
#[derive(Debug)]
pub struct PuntClient {
    path: PathBuf,
    stream: Option<UnixStream>,
    retry_at: Instant,
    output: VecDeque<Zeroizing<Vec<u8>>>,
    input: Vec<u8>,
}

impl PuntClient {
    /// Will connect to the core of this run directory.
    pub fn new(run_dir: &Path) -> Self {
        PuntClient {
            path: run_dir.join(PUNT_SOCKET),
            stream: None,
            retry_at: Instant::now(),
            output: VecDeque::new(),
            input: vec![0; MAX_PUNT_LEN],
        }
    }

    /// Sends a datagram, now if the socket takes it, else in [`PuntClient::next`].
    pub fn send(&mut self, datagram: PuntOut) {
        let Ok(packet) = encode_punt(&ToPunt::Send(datagram)) else {
            tracing::error!("an IKE datagram does not fit the punt socket");
            return;
        };
        if self.output.len() >= QUEUE {
            self.output.pop_front();
        }
        self.output.push_back(packet);
        // A failure shows again when the connection is read.
        let _ = self.flush();
    }

    /// The core is gone: what waits was meant for it.
    pub fn clear(&mut self) {
        self.output.clear();
    }

    /// The next datagram. Safe to cancel.
    pub async fn next(&mut self) -> PuntIn {
        loop {
            if self.stream.is_none() {
                tokio::time::sleep_until(self.retry_at).await;
                self.retry_at = Instant::now() + RETRY;
                if self.connect().is_err() {
                    continue;
                }
            }
            match self.read_or_write().await {
                Ok(received) => return received,
                Err(_) => {
                    self.stream = None;
                    self.retry_at = Instant::now() + RETRY;
                }
            }
        }
    }

    /// A datagram that is there already, without waiting. What goes wrong shows again in [`PuntClient::next`].
    pub fn received(&mut self) -> Option<PuntIn> {
        let FromPunt::Received(received) = self.receive().ok()??;
        Some(received)
    }

    fn connect(&mut self) -> io::Result<()> {
        let address = SocketAddrUnix::new(&self.path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        let hello =
            encode_punt(&ToPunt::Hello { version: VERSION }).map_err(|_| io::ErrorKind::InvalidInput)?;
        rustix::net::send(&socket, &hello, SendFlags::NOSIGNAL)?;
        // Tokio has no type for `SOCK_SEQPACKET`; its stream waits for any Unix socket.
        self.stream = Some(UnixStream::from_std(socket.into())?);
        Ok(())
    }

    async fn read_or_write(&mut self) -> io::Result<PuntIn> {
        loop {
            let stream = self.stream.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            let ready = ready(stream, !self.output.is_empty()).await?;
            if ready.is_writable() {
                self.flush()?;
            }
            if (ready.is_readable() || ready.is_read_closed())
                && let Some(FromPunt::Received(received)) = self.receive()?
            {
                return Ok(received);
            }
        }
    }

    fn receive(&mut self) -> io::Result<Option<FromPunt>> {
        let stream = self.stream.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let input = &mut self.input[..];
        let read = stream.try_io(Interest::READABLE, || {
            let (read, _) = rustix::net::recv(stream, &mut *input, RecvFlags::empty())?;
            Ok(read)
        });
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => decode(&self.input[..read]).map(Some).map_err(|_| io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(stream) = &self.stream else { return Ok(()) };
        while let Some(packet) = self.output.front() {
            let sent = stream
                .try_io(Interest::WRITABLE, || Ok(rustix::net::send(stream, packet, SendFlags::NOSIGNAL)?));
            match sent {
                Ok(_) => self.output.pop_front(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }
}

//! Control's end of `tables.sock`: frames both ways, and a new connection when one ends.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use braid_api::{
    FRAME_HEADER_LEN, FromCore, ToCore, VERSION, decode, encode, frame_len, launcher::TABLES_SOCKET,
};
use tokio::{
    io::{Interest, Ready},
    net::UnixStream,
    time::Instant,
};
use zeroize::Zeroizing;

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(20);
/// After a connection that ended without a greeting.
const RETRY_AFTER_REFUSAL: Duration = Duration::from_secs(1);
/// Read at once, in bytes.
const CHUNK: usize = 64 * 1024;

/// What the connection brings.
#[derive(Debug)]
pub enum Incoming {
    /// A frame; the first is `Hello`.
    Message(FromCore),
    /// The connection ended. Another is being tried.
    Lost,
    /// The core is of another version.
    OtherVersion {
        /// Its version.
        theirs: u32,
    },
}

/// The connection, or the attempt to have one.
#[derive(Debug)]
pub struct CoreClient {
    path: PathBuf,
    stream: Option<UnixStream>,
    greeted: bool,
    /// The connection was given up, and nobody was told yet.
    owes_loss: bool,
    retry_at: Instant,
    input: Vec<u8>,
    output: VecDeque<Zeroizing<Vec<u8>>>,
    /// Bytes of the first frame of `output` that were sent.
    sent: usize,
}

impl CoreClient {
    /// Will connect to the core of this run directory.
    pub fn new(run_dir: &Path) -> Self {
        CoreClient {
            path: run_dir.join(TABLES_SOCKET),
            stream: None,
            greeted: false,
            owes_loss: false,
            retry_at: Instant::now(),
            input: Vec::new(),
            output: VecDeque::new(),
            sent: 0,
        }
    }

    /// Sends a message, now as far as the socket takes it, the rest in [`CoreClient::next`]. Without
    /// a connection it is dropped: whoever sent it learns of the loss.
    ///
    /// # Errors
    /// The message does not fit a frame.
    pub fn send(&mut self, message: &ToCore) -> io::Result<()> {
        if self.stream.is_none() {
            return Ok(());
        }
        self.output.push_back(encode(message).map_err(|_| io::ErrorKind::InvalidInput)?);
        // A failure shows again when the connection is read.
        let _ = self.flush();
        Ok(())
    }

    /// Gives the connection up, which [`CoreClient::next`] tells, and begins another.
    pub fn reconnect(&mut self) {
        self.owes_loss = self.greeted;
        self.retry_at = Instant::now() + RETRY_AFTER_REFUSAL;
        self.close();
    }

    /// The next message. Safe to cancel.
    pub async fn next(&mut self) -> Incoming {
        loop {
            if core::mem::take(&mut self.owes_loss) {
                return Incoming::Lost;
            }
            if self.stream.is_none() {
                self.connect().await;
            }
            match self.read_or_write().await {
                Ok(FromCore::Hello(hello)) if hello.version != VERSION => {
                    self.reconnect();
                    return Incoming::OtherVersion { theirs: hello.version };
                }
                Ok(message) => {
                    self.greeted = true;
                    return Incoming::Message(message);
                }
                Err(_) => {
                    let greeted = self.greeted;
                    self.retry_at = Instant::now() + if greeted { RETRY } else { RETRY_AFTER_REFUSAL };
                    self.close();
                    if greeted {
                        return Incoming::Lost;
                    }
                }
            }
        }
    }

    fn close(&mut self) {
        self.stream = None;
        self.greeted = false;
        self.input.clear();
        self.output.clear();
        self.sent = 0;
    }

    async fn connect(&mut self) {
        loop {
            tokio::time::sleep_until(self.retry_at).await;
            self.retry_at = Instant::now() + RETRY;
            if let Ok(stream) = UnixStream::connect(&self.path).await {
                self.stream = Some(stream);
                if self.send(&ToCore::Hello { version: VERSION }).is_ok() {
                    return;
                }
                self.close();
            }
        }
    }

    async fn read_or_write(&mut self) -> io::Result<FromCore> {
        loop {
            if let Some(message) = self.take_frame()? {
                return Ok(message);
            }
            let stream = self.stream.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            let ready = ready(stream, !self.output.is_empty()).await?;
            if ready.is_writable() {
                self.flush()?;
            }
            if ready.is_readable() || ready.is_read_closed() {
                self.fill()?;
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let stream = self.stream.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let before = self.input.len();
        self.input.resize(before + CHUNK, 0);
        let read = stream.try_read(&mut self.input[before..]);
        self.input.truncate(before + read.as_ref().copied().unwrap_or(0));
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(stream) = &self.stream else { return Ok(()) };
        while let Some(frame) = self.output.front() {
            match stream.try_write(frame.get(self.sent..).unwrap_or_default()) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.sent >= frame.len() {
                self.output.pop_front();
                self.sent = 0;
            }
        }
        Ok(())
    }

    fn take_frame(&mut self) -> io::Result<Option<FromCore>> {
        let Some(header) = self.input.first_chunk::<FRAME_HEADER_LEN>() else { return Ok(None) };
        let len = frame_len(*header).map_err(|_| io::ErrorKind::InvalidData)?;
        let Some(body) = self.input.get(FRAME_HEADER_LEN..FRAME_HEADER_LEN + len) else { return Ok(None) };
        let message = decode(body).map_err(|_| io::ErrorKind::InvalidData)?;
        self.input.drain(..FRAME_HEADER_LEN + len);
        Ok(Some(message))
    }
}

/// Waits until there is something to read, or room for what waits to be written.
pub(crate) async fn ready(stream: &UnixStream, writes: bool) -> io::Result<Ready> {
    let interest = if writes { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
    stream.ready(interest).await
}

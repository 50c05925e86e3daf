//! Connections on `launcher.sock`: one message is one packet, descriptors come along.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use braid_api::FRAME_HEADER_LEN;
use braid_api::launcher::{FromClient, KernelPlan, MAX_MESSAGE_LEN, MAX_PLAN_LEN};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use crate::in_force;

/// Most descriptors in one message that the kernel takes (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;
/// How long a process may leave its messages unread.
const PATIENCE: Duration = Duration::from_secs(5);

/// A listening socket.
///
/// Tokio has no type for `SOCK_SEQPACKET`; its stream listener accepts on any Unix socket.
#[derive(Debug)]
pub(super) struct Listener(UnixListener);

impl Listener {
    /// Takes a listening, non-blocking socket over.
    ///
    /// # Errors
    /// The runtime refuses it.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        UnixListener::from_std(socket.into()).map(Self)
    }

    /// Waits for a connection of our own user; others are turned away.
    ///
    /// # Errors
    /// The socket is broken, or descriptors ran out.
    pub(super) async fn accept(&self) -> io::Result<Connection> {
        loop {
            let (socket, _) = self.0.accept().await?;
            let user = socket.peer_cred()?.uid();
            if user == rustix::process::geteuid().as_raw() {
                return Ok(Connection(socket));
            }
            tracing::warn!("a process of user {user} tried to reach the launcher");
        }
    }
}

/// A connection to the core or to control.
#[derive(Debug)]
pub(super) struct Connection(UnixStream);

impl Connection {
    /// Waits for the next message; `None` at the end, and for what is no message.
    /// With [`FromClient::InForce`] its memory file, if it has one.
    pub(super) async fn receive(&self) -> Option<(FromClient, Option<OwnedFd>)> {
        let mut buffer = vec![0; MAX_MESSAGE_LEN];
        let received =
            self.0.async_io(Interest::READABLE, || receive_packet(self.0.as_fd(), &mut buffer)).await;
        let (len, file) = received.ok()?;
        let message = braid_api::decode(buffer.get(..len)?).ok()?;
        match message {
            FromClient::PlanFile { len } => {
                read_plan(&File::from(file?), len).map(|plan| (FromClient::Plan(plan), None))
            }
            FromClient::InForce if file.as_ref().is_some_and(|file| !in_force::is_sealed(file)) => None,
            FromClient::InForce => Some((FromClient::InForce, file)),
            other => Some((other, None)),
        }
    }

    /// Sends one message with descriptors.
    ///
    /// # Errors
    /// The peer is gone, or has left its messages unread for long.
    pub(super) async fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let frame = braid_api::encode(message).map_err(|_| io::ErrorKind::InvalidInput)?;
        let bytes = frame.get(FRAME_HEADER_LEN..).unwrap_or_default();
        if bytes.len() > MAX_MESSAGE_LEN || fds.len() > MAX_FDS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let send = self.0.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let parts = [IoSlice::new(bytes)];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            rustix::net::sendmsg(&self.0, &parts, &mut control, flags)?;
            Ok(())
        });
        tokio::time::timeout(PATIENCE, send).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

fn receive_packet(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, flags)?;
    let mut file = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            file = fds.last();
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((received.bytes, file))
}

fn read_plan(file: &File, len: u32) -> Option<KernelPlan> {
    let len = usize::try_from(len).ok().filter(|len| *len <= MAX_PLAN_LEN)?;
    // What the file does not hold is not set aside either.
    let held = file.metadata().ok()?.len();
    if held < u64::try_from(len).ok()? {
        return None;
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).ok()?;
    braid_api::decode(&bytes).ok()
}

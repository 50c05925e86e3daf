//! Control's end of `launcher.sock`: plans out, answers in.

use std::{
    io::{self, IoSlice, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use braid_api::{
    FRAME_HEADER_LEN, decode, encode,
    launcher::{
        FromClient, KernelPlan, LAUNCHER_SOCKET, MAX_MESSAGE_LEN, MAX_PLAN_LEN, RouteChanges, ToControl,
    },
};
use rustix::{
    fs::MemfdFlags,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType,
    },
};
use tokio::{io::Interest, net::UnixStream};

/// The connection. Control is of no use without it.
#[derive(Debug)]
pub struct LauncherClient(UnixStream);

impl LauncherClient {
    /// Connects, and says who we are.
    ///
    /// # Errors
    /// No launcher listens in this run directory.
    pub async fn connect(run_dir: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(run_dir.join(LAUNCHER_SOCKET))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        // Tokio has no type for `SOCK_SEQPACKET`; its stream waits for any Unix socket.
        let client = LauncherClient(UnixStream::from_std(socket.into())?);
        client.send(&FromClient::Control, None).await?;
        Ok(client)
    }

    /// Sends a plan, in a memory file where it does not fit a message.
    ///
    /// # Errors
    /// The launcher is gone, or the plan is longer than it takes.
    pub async fn plan(&self, plan: KernelPlan) -> io::Result<()> {
        let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
        let bytes = encode(&plan).map_err(|_| too_long())?;
        let bytes = bytes.get(FRAME_HEADER_LEN..).unwrap_or_default();
        // Room for the message's own tag.
        if bytes.len() < MAX_MESSAGE_LEN - 16 {
            return self.send(&FromClient::Plan(plan), None).await;
        }
        if bytes.len() > MAX_PLAN_LEN {
            return Err(too_long());
        }
        let mut file = std::fs::File::from(rustix::fs::memfd_create("braid-plan", MemfdFlags::CLOEXEC)?);
        file.write_all(bytes)?;
        let len = u32::try_from(bytes.len()).map_err(|_| too_long())?;
        self.send(&FromClient::PlanFile { len }, Some(file.as_fd())).await
    }

    /// Gives the launcher what the next life may go on with; `None`: there is nothing.
    ///
    /// # Errors
    /// The launcher is gone.
    pub async fn in_force(&self, kept: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.send(&FromClient::InForce, kept).await
    }

    /// Sends learned routes.
    ///
    /// # Errors
    /// The launcher is gone.
    pub async fn routes(&self, changes: RouteChanges) -> io::Result<()> {
        self.send(&FromClient::Routes(changes), None).await
    }

    /// The next answer. Safe to cancel.
    ///
    /// # Errors
    /// The launcher is gone, or says what does not decode.
    pub async fn next(&self) -> io::Result<ToControl> {
        let mut buffer = vec![0; MAX_MESSAGE_LEN];
        let len = self
            .0
            .async_io(Interest::READABLE, || {
                let flags = rustix::net::RecvFlags::DONTWAIT;
                Ok(rustix::net::recv(self.0.as_fd(), &mut buffer[..], flags)?.0)
            })
            .await?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        decode(buffer.get(..len).unwrap_or_default()).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    async fn send(&self, message: &FromClient, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let frame = encode(message).map_err(|_| io::ErrorKind::InvalidInput)?;
        let bytes = frame.get(FRAME_HEADER_LEN..).unwrap_or_default();
        let fds: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        self.0
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                rustix::net::sendmsg(self.0.as_fd(), &[IoSlice::new(bytes)], &mut control, flags)?;
                Ok(())
            })
            .await
    }
}

//! IKE datagrams between the outer sockets and control, over `punt.sock`.
//!
//! Workers hand what comes from the wire to [`PuntLine`], each by one send that never waits. The
//! core's own thread takes what control sends: it stores the stash, then sends the datagram
//! (RFC 7296 section 2: the state that answers a message must outlive the message).
//!
//! Invariants: nobody waits for control; first messages of strangers never take more than half of
//! the line, so that a flood of them does not keep established SAs from control; whatever control
//! has sent is done before a newer connection, or a frame on the tables, is served.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use arc_swap::ArcSwapOption;
use braid_api::{
    VERSION, decode,
    punt::{FromPunt, MAX_PUNT_LEN, PuntIn, PuntOut, ToPunt, encode_punt},
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};

use crate::{
    drop_reason::DropReason,
    forward::{Drops, icmp},
    io::{batch::Outgoing, queue, udp},
    tables::Writer,
    worker::{OuterSocket, Sender},
};

/// IKE header, in bytes (RFC 7296 section 3.1): nothing shorter is a message.
const IKE_HEADER_LEN: usize = 28;
/// Where the responder's SPI stands in it, which is zero in a first message.
const RESPONDER_SPI: core::ops::Range<usize> = 8..16;
/// What is asked of the kernel for the line; it grants up to `net.core.wmem_max`.
const LINE_BYTES: usize = 4 << 20;
/// Messages of control that are taken before the core looks at anything else.
const MESSAGES_PER_TURN: usize = 256;

/// The way to control, shared by all workers. Without a control, nobody listens.
#[derive(Clone, Debug, Default)]
pub struct PuntLine(Arc<ArcSwapOption<Line>>);

#[derive(Debug)]
struct Line {
    socket: Arc<OwnedFd>,
    capacity: usize,
}

impl PuntLine {
    /// Hands an IKE message to control. Never waits.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn offer(&self, local: SocketAddr, remote: SocketAddr, message: &[u8]) -> Result<(), DropReason> {
        if message.len() < IKE_HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        let line = self.0.load();
        let Some(line) = line.as_deref() else { return Err(DropReason::NobodyListens) };
        let first = message[RESPONDER_SPI].iter().all(|byte| *byte == 0);
        if first && queue::unread(line.socket.as_fd()).is_ok_and(|bytes| bytes > line.capacity / 2) {
            return Err(DropReason::PuntFull);
        }
        let received = FromPunt::Received(PuntIn { local, remote, bytes: message.to_vec() });
        let Ok(packet) = encode_punt(&received) else { return Err(DropReason::Truncated) };
        match rustix::net::send(&line.socket, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET | rustix::io::Errno::NOTCONN) => {
                Err(DropReason::NobodyListens)
            }
            Err(_) => Err(DropReason::PuntFull),
        }
    }

    /// From now on datagrams go into this socket, or nowhere.
    fn set(&self, socket: Option<&Arc<OwnedFd>>) {
        let line = |socket: &Arc<OwnedFd>| {
            let _ = sockopt::set_socket_send_buffer_size(socket, LINE_BYTES);
            let capacity = sockopt::socket_send_buffer_size(socket).unwrap_or(LINE_BYTES);
            Arc::new(Line { socket: Arc::clone(socket), capacity })
        };
        self.0.store(socket.map(line));
    }
}

/// The core's end of `punt.sock`.
pub(crate) struct Punt {
    pub(crate) listener: OwnedFd,
    line: PuntLine,
    control: Option<Connection>,
    sender: Sender,
    drops: Arc<Drops>,
    packet: zeroize::Zeroizing<Vec<u8>>,
}

struct Connection {
    socket: Arc<OwnedFd>,
    greeted: bool,
}

impl Punt {
    pub(crate) fn new(listener: OwnedFd, line: PuntLine, drops: Arc<Drops>) -> Self {
        Punt {
            listener,
            line,
            control: None,
            sender: Sender::new(false),
            drops,
            packet: zeroize::Zeroizing::new(vec![0; MAX_PUNT_LEN]),
        }
    }

    /// The connection to be polled, if there is one.
    pub(crate) fn socket(&self) -> Option<&OwnedFd> {
        self.control.as_ref().map(|control| &*control.socket)
    }

    pub(crate) fn add_socket(&mut self, socket: OuterSocket) {
        self.sender.add(socket);
    }

    /// The interface that packets from `local` leave by, if they may not leave by any other.
    pub(crate) fn uplink(&self, local: SocketAddr) -> Option<u32> {
        udp::bound_interface(self.sender.socket(local)?)
    }

    pub(crate) fn remove_socket(&mut self, local: SocketAddr) {
        self.sender.remove(local);
    }

    /// Takes a new control, after all that the old one had sent.
    fn accept(&mut self, tables: &mut Writer) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::acceptfrom_with(&self.listener, flags) else { return };
        let socket = socket.0;
        let ours = rustix::process::getuid();
        if sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid == ours || peer.uid.is_root()) {
            self.drain(tables);
            self.close();
            self.control = Some(Connection { socket: Arc::new(socket), greeted: false });
        }
    }

    /// Does all that control has sent so far, on a connection that it has just made too: what its
    /// next life reads from the stash is the newest.
    pub(crate) fn finish(&mut self, tables: &mut Writer) {
        let mut polled = [PollFd::new(&self.listener, PollFlags::IN)];
        let called = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        if called.is_ok_and(|ready| ready > 0) {
            self.accept(tables);
        }
        self.drain(tables);
    }

    fn drain(&mut self, tables: &mut Writer) {
        // The line of a process that is alive and sends on does not hold more than this.
        const MOST: usize = 64;
        for _ in 0..MOST {
            if !self.serve(tables) {
                break;
            }
        }
    }

    /// Serves what control has sent; whether there may be more.
    pub(crate) fn serve(&mut self, tables: &mut Writer) -> bool {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(control) = &mut self.control else { return false };
            let received = rustix::net::recv(&control.socket, &mut self.packet[..], RecvFlags::TRUNC);
            let message = match received {
                Err(rustix::io::Errno::AGAIN) => return false,
                Err(rustix::io::Errno::INTR) => continue,
                Ok((0, _)) | Err(_) => {
                    self.close();
                    return false;
                }
                Ok((len, _)) => self.packet.get(..len).and_then(|packet| decode::<ToPunt>(packet).ok()),
            };
            match message {
                Some(ToPunt::Hello { version }) if version == VERSION => {
                    control.greeted = true;
                    self.line.set(Some(&control.socket));
                }
                Some(ToPunt::Send(out)) if control.greeted => self.send(out, tables),
                Some(ToPunt::Hello { .. } | ToPunt::Send(_)) | None => {
                    self.close();
                    return false;
                }
            }
        }
        true
    }

    fn close(&mut self) {
        self.line.set(None);
        self.control = None;
    }

    fn send(&mut self, out: PuntOut, tables: &mut Writer) {
        let PuntOut { local, remote, bytes, stash } = out;
        if let Some((key, value)) = stash
            && let Err(reason) = tables.put_stash(key, value)
        {
            // Sent without it, the peer would hold state that nobody here remembers.
            tracing::error!(?reason, "an IKE message was not sent: its state cannot be kept");
            return;
        }
        if bytes.is_empty() {
            return;
        }
        let out = Outgoing { to: remote, tos: icmp::NETWORK_CONTROL };
        let sent = self.sender.send_one(local, &bytes, out);
        let reason = match sent {
            _ if sent.full > 0 => DropReason::SocketFull,
            // RFC 7296 section 2: messages up to 1280 bytes go everywhere, longer ones must be able to.
            _ if sent.too_big > 0 && self.send_in_fragments(local, remote, &bytes).is_ok() => return,
            _ if sent.too_big > 0 => DropReason::PathMtu,
            _ if sent.failed > 0 => DropReason::SendFailed,
            _ => return,
        };
        self.drops.add(crate::counters::OTHER_THREAD, reason as usize, 1);
    }

    fn send_in_fragments(&self, local: SocketAddr, remote: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let socket = self.sender.socket(local).ok_or(io::ErrorKind::NotFound)?;
        udp::send_fragmented(socket, bytes, remote, icmp::NETWORK_CONTROL)
    }
}

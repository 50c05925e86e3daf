//! Runs: packets of equal outer size and TOS for one tunnel, side by side as one GSO send.
//!
//! A packet is written where it will be sealed; sequence numbers are reserved and packets sealed
//! when the run leaves, so that wire order is sequence order whatever order runs are filled in.
//! Runs leave in the order in which they were opened, and no packet enters a run that is older than
//! the last one that its flow used: no flow is ever reordered.

use std::{net::SocketAddr, sync::Arc};

use braid_api::Encapsulation;

use crate::{
    esp::{
        NEXT_HEADER_IPV4, NEXT_HEADER_IPV6,
        sa::{Exhausted, OutboundSa, Sequence},
        write_trailer,
    },
    packet::Packet,
    tables::{Tunnel, TunnelLive},
};

/// Most runs that wait, open or full.
pub const MAX_RUNS: usize = 16;
/// Largest UDP payload over IPv4, in bytes; what one GSO send takes.
const MAX_BYTES: usize = 65_507;
const FLOWS: usize = 1024;

/// Packets that leave together.
pub struct Run {
    /// The SA that seals them.
    pub sa: Arc<OutboundSa>,
    /// The tunnel's counters.
    pub live: Arc<TunnelLive>,
    /// Our outer address, which names the socket.
    pub local: SocketAddr,
    /// The peer's outer address.
    pub to: SocketAddr,
    /// How ESP travels.
    pub encapsulation: Encapsulation,
    /// Outer TOS.
    pub tos: u8,
    /// Packets.
    pub count: u32,
    /// Their bytes before sealing.
    pub inner_bytes: u64,
    /// Bytes of each ESP packet; the last may be shorter.
    pub segment: usize,
    len: usize,
    ordinal: u32,
    closed: bool,
    memory: Box<[u8]>,
}

impl Run {
    /// Seals all packets under the SA's guard; the bytes to send.
    ///
    /// # Errors
    /// [`Exhausted`]: nothing may be sent.
    pub fn seal(&mut self, sequence: &mut Sequence<'_>) -> Result<&[u8], Exhausted> {
        let first = sequence.reserve(self.count)?;
        let sealer = sequence.sealer();
        for (esp, number) in self.memory[..self.len].chunks_mut(self.segment).zip(first..) {
            sealer.seal(esp, number);
        }
        Ok(&self.memory[..self.len])
    }
}

/// The bounded pool of runs of one worker.
pub struct Runs {
    /// Waiting, oldest first.
    waiting: Vec<Run>,
    /// Memory of runs that have left.
    spare: Vec<Box<[u8]>>,
    /// By a cheap number of the flow: the youngest run that it may have a packet in.
    last: Box<[u32; FLOWS]>,
    next_ordinal: u32,
    max_segments: u32,
    closed: bool,
}

/// Why a packet found no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPlace {
    /// Runs must leave first.
    Full,
    /// The peer's outer address is not known.
    NoRemote,
}

impl Runs {
    /// `max_segments`: what the kernel takes in one GSO send; 1 without GSO still makes runs, which
    /// are sent with sendmmsg.
    pub fn new(max_segments: u16) -> Self {
        Runs {
            waiting: Vec::with_capacity(MAX_RUNS),
            spare: (0..MAX_RUNS).map(|_| vec![0; MAX_BYTES].into_boxed_slice()).collect(),
            last: Box::new([0; FLOWS]),
            next_ordinal: 1,
            max_segments: u32::from(max_segments.max(64)),
            closed: false,
        }
    }

    /// Whether a run is full, so that it should leave.
    #[inline]
    pub fn has_closed(&self) -> bool {
        self.closed
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Room for one packet of `len` bytes in a run; its trailer is written, the packet itself is for
    /// the caller to write.
    ///
    /// # Errors
    /// [`NoPlace`].
    #[inline]
    pub fn place(
        &mut self,
        tunnel: &Tunnel,
        sa: &Arc<OutboundSa>,
        packet: &Packet,
        len: usize,
    ) -> Result<&mut [u8], NoPlace> {
        let layout = sa.layout;
        let pad = layout.pad_len(len);
        let sealed = layout.sealed_len(len);
        let flow = packet.key.slot() % FLOWS;
        let index = match self.find(sa, packet.tos, sealed, self.last[flow]) {
            Some(index) => index,
            None => self.open(tunnel, sa, packet.tos, sealed)?,
        };
        let run = &mut self.waiting[index];
        self.last[flow] = run.ordinal;
        run.count += 1;
        run.inner_bytes += len as u64;
        let start = run.len;
        run.len += sealed;
        if sealed < run.segment || run.count >= self.max_segments || run.len + run.segment > MAX_BYTES {
            run.closed = true;
            self.closed = true;
        }
        let esp = &mut run.memory[start..start + sealed];
        esp[..4].copy_from_slice(&sa.spi.0.to_be_bytes());
        let header = layout.header_len();
        let next_header = if packet.v6 { NEXT_HEADER_IPV6 } else { NEXT_HEADER_IPV4 };
        write_trailer(&mut esp[header + len..sealed - layout.icv_len], pad, next_header);
        Ok(&mut esp[header..header + len])
    }

    /// The run that the packet may enter: of its size, or larger when it is the flow's last run,
    /// whose tail it becomes.
    #[inline]
    fn find(&self, sa: &Arc<OutboundSa>, tos: u8, sealed: usize, last: u32) -> Option<usize> {
        self.waiting.iter().rposition(|run| {
            !run.closed
                && (run.segment == sealed || (run.segment > sealed && run.ordinal == last))
                && run.tos == tos
                && run.ordinal.wrapping_sub(last) as i32 >= 0
                && Arc::ptr_eq(&run.sa, sa)
        })
    }

    #[cold]
    fn open(
        &mut self,
        tunnel: &Tunnel,
        sa: &Arc<OutboundSa>,
        tos: u8,
        sealed: usize,
    ) -> Result<usize, NoPlace> {
        let to = tunnel.live.remote().ok_or(NoPlace::NoRemote)?;
        let memory = self.spare.pop().ok_or(NoPlace::Full)?;
        self.waiting.push(Run {
            sa: Arc::clone(sa),
            live: Arc::clone(&tunnel.live),
            local: tunnel.settings.local,
            to,
            encapsulation: tunnel.settings.encapsulation,
            tos,
            count: 0,
            inner_bytes: 0,
            segment: sealed,
            len: 0,
            ordinal: self.next_ordinal,
            closed: false,
            memory,
        });
        self.next_ordinal = self.next_ordinal.wrapping_add(1);
        Ok(self.waiting.len() - 1)
    }

    /// Lets runs leave in order: all, or only up to the youngest full one.
    pub fn flush(&mut self, all: bool, mut leave: impl FnMut(&mut Run)) {
        let end = if all {
            self.waiting.len()
        } else {
            self.waiting.iter().rposition(|run| run.closed).map_or(0, |last| last + 1)
        };
        for mut run in self.waiting.drain(..end) {
            leave(&mut run);
            self.spare.push(run.memory);
        }
        self.closed = false;
        // An ordinal that is half a round old would look young again.
        if self.waiting.is_empty() && self.next_ordinal > u32::MAX / 4 {
            self.last.fill(0);
            self.next_ordinal = 1;
        }
    }
}

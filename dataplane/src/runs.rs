//! Runs: packets of equal outer size and TOS for one tunnel, side by side as one GSO send.
//!
//! For ESP, a whole packet is sealed where it was read and gathered from there; what is cut up is written into
//! the run's own memory and sealed there. WireGuard's packets are sealed from where they lie into the run's
//! memory, since boringtun wants two places: what is cut up waits one packet further on than it is sealed to. Sequence numbers are reserved and packets sealed when the
//! run leaves, so that wire order is sequence order whatever order runs are filled in.
//! Runs leave in the order in which they were opened, and no packet enters a run that is older than
//! the last one that its flow used, which the caller remembers: no flow is ever reordered.

use std::{net::SocketAddr, ops::Range, sync::Arc};

use braid_api::Encapsulation;

use crate::{
    esp::{
        NEXT_HEADER_IPV4, NEXT_HEADER_IPV6,
        sa::{Exhausted, OutboundSa, Sequence},
        write_trailer,
    },
    tables::{Carrier, Tunnel, TunnelLive},
    wireguard::{self, NotSealed, Sending},
};

/// Most runs that wait, open or full.
pub const MAX_RUNS: usize = 16;
/// Largest UDP payload over IPv4, in bytes; what one GSO send takes.
const MAX_BYTES: usize = 65_507;
/// Room for a run, and for what waits one packet further on.
const MEMORY: usize = 2 * MAX_BYTES;
/// Bytes before a packet in the worker's buffer that its ESP header may take: 8 and a CBC suite's IV.
pub const HEADROOM: usize = 24;
/// Bytes behind it for the longest padding, the trailer and the longest ICV: 15, 2 and 32.
pub const TAILROOM: usize = 49;
/// Most segments of one GSO send in any kernel (`UDP_MAX_SEGMENTS`).
const MOST_SEGMENTS: usize = 128;
const HINTS: usize = 64;

/// Packets that leave together.
pub struct Run {
    /// What seals them.
    pub carrier: Carrier,
    /// The tunnel's counters.
    pub live: Arc<TunnelLive>,
    /// Our outer address, which names the socket.
    pub local: SocketAddr,
    /// The peer's outer address.
    pub to: SocketAddr,
    /// How they travel.
    pub encapsulation: Encapsulation,
    /// Outer TOS.
    pub tos: u8,
    /// Packets.
    pub count: u32,
    /// Their bytes before sealing.
    pub inner_bytes: u64,
    /// Bytes of each sealed packet; the last may be shorter.
    pub segment: usize,
    len: usize,
    ordinal: u64,
    closed: bool,
    memory: Box<[u8]>,
    /// Bytes of `memory` that are used.
    used: usize,
    /// The ESP packets in their order; for WireGuard, the packets to be sealed.
    pieces: Vec<Piece>,
}

/// Where ESP packets lie side by side, or a packet for WireGuard.
#[derive(Clone, Copy)]
struct Piece {
    start: u32,
    len: u32,
    /// In the worker's buffer, one packet where it was read; else in the run's memory.
    kept: bool,
}

impl Piece {
    #[inline(always)]
    fn range(self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

impl Run {
    /// Seals all packets under the SA's guard. `buffer` is where packets that were kept
    /// ([`Runs::keep`]) have been read.
    ///
    /// # Errors
    /// [`Exhausted`]: nothing may be sent.
    pub fn seal(&mut self, sequence: &mut Sequence<'_>, buffer: &mut [u8]) -> Result<(), Exhausted> {
        let mut number = sequence.reserve(self.count)?;
        let sealer = sequence.sealer();
        for &piece in &self.pieces {
            if piece.kept {
                sealer.seal(&mut buffer[piece.range()], number);
                number += 1;
                continue;
            }
            for esp in self.memory[piece.range()].chunks_mut(self.segment) {
                sealer.seal(esp, number);
                number += 1;
            }
        }
        Ok(())
    }

    /// Seals all packets by a WireGuard session, in whose hands the caller has it. `buffer` as for [`Run::seal`].
    ///
    /// # Errors
    /// [`NotSealed`]: nothing may be sent.
    pub fn seal_wireguard(&mut self, session: &mut Sending<'_>, buffer: &[u8]) -> Result<(), NotSealed> {
        for (number, piece) in self.pieces.iter().enumerate() {
            let sealed = piece.len as usize + wireguard::OVERHEAD;
            let at = number * self.segment;
            let (done, waiting) = self.memory.split_at_mut(at + self.segment);
            let packet = match piece.kept {
                true => &buffer[piece.range()],
                false => &waiting[wireguard::HEADER..wireguard::HEADER + piece.len as usize],
            };
            session.seal(packet, &mut done[at..at + sealed])?;
        }
        self.pieces.clear();
        self.pieces.push(Piece { start: 0, len: self.len as u32, kept: false });
        Ok(())
    }

    /// What is to be sent, in order: whole sealed packets of [`Run::segment`] bytes each, only the very
    /// last may be shorter. `buffer` as for [`Run::seal`].
    pub fn pieces<'a>(&'a self, buffer: &'a [u8]) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone {
        self.pieces
            .iter()
            .map(|&piece| if piece.kept { &buffer[piece.range()] } else { &self.memory[piece.range()] })
    }
}

/// The bounded pool of runs of one worker.
pub struct Runs {
    /// Waiting, oldest first.
    waiting: Vec<Run>,
    /// Memory of runs that have left.
    spare: Vec<(Box<[u8]>, Vec<Piece>)>,
    /// By tunnel: the run that its last packet entered, which the next will probably enter too.
    hints: [u8; HINTS],
    /// From 1, never again.
    next_ordinal: u64,
    max_segments: u32,
    closed: bool,
}

/// What a run needs to know of an inner packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// Outer TOS.
    pub tos: u8,
    /// IPv6 rather than IPv4.
    pub v6: bool,
}

/// What a packet asks of the run that it enters.
struct Wanted<'a> {
    carrier: &'a Carrier,
    tos: u8,
    sealed: usize,
    last: u64,
}

impl Wanted<'_> {
    /// A run of its size, or larger when it is the flow's last run, whose tail it becomes.
    #[inline(always)]
    fn fits(&self, run: &Run) -> bool {
        run.carrier.is(self.carrier)
            && !run.closed
            && (run.segment == self.sealed || (run.segment > self.sealed && run.ordinal == self.last))
            && run.tos == self.tos
            && run.ordinal >= self.last
    }
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
            spare: (0..MAX_RUNS)
                .map(|_| (vec![0; MEMORY].into_boxed_slice(), Vec::with_capacity(MOST_SEGMENTS)))
                .collect(),
            hints: [0; HINTS],
            next_ordinal: 1,
            max_segments: u32::from(max_segments.clamp(64, MOST_SEGMENTS as u16)),
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

    /// Room for one packet of `len` bytes in a run; its trailer or padding is written, the packet itself is for
    /// the caller to write. `last` is the flow's last run, 0 for none, and is set.
    ///
    /// # Errors
    /// [`NoPlace`].
    #[inline]
    pub fn place(
        &mut self,
        tunnel: &Tunnel,
        carrier: &Carrier,
        kind: Kind,
        len: usize,
        last: &mut u64,
    ) -> Result<&mut [u8], NoPlace> {
        let sa = match carrier {
            Carrier::Esp(sa) => sa,
            Carrier::WireGuard(_) => return self.place_wireguard(tunnel, carrier, kind, len, last),
        };
        let layout = sa.layout;
        let sealed = layout.sealed_len(len);
        let run = self.enter(tunnel, carrier, kind, sealed, len, last)?;
        let start = run.used;
        run.used += sealed;
        match run.pieces.last_mut() {
            Some(piece) if !piece.kept => piece.len += sealed as u32,
            _ => run.pieces.push(Piece { start: start as u32, len: sealed as u32, kept: false }),
        }
        run.memory[start..start + 4].copy_from_slice(&sa.spi.0.to_be_bytes());
        let payload = start + layout.header_len();
        let end = start + sealed - layout.icv_len;
        write_trailer(&mut run.memory[payload + len..end], layout.pad_len(len), next_header(kind));
        Ok(&mut run.memory[payload..payload + len])
    }

    #[inline]
    fn place_wireguard(
        &mut self,
        tunnel: &Tunnel,
        carrier: &Carrier,
        kind: Kind,
        len: usize,
        last: &mut u64,
    ) -> Result<&mut [u8], NoPlace> {
        let padded = wireguard::padded_len(len, tunnel.mtu);
        let run = self.enter(tunnel, carrier, kind, padded + wireguard::OVERHEAD, len, last)?;
        // One packet further on than it is sealed to.
        let start = run.count as usize * run.segment + wireguard::HEADER;
        run.pieces.push(Piece { start: start as u32, len: padded as u32, kept: false });
        let packet = &mut run.memory[start..start + padded];
        packet[len..].fill(0);
        Ok(&mut packet[..len])
    }

    /// Takes the packet that lies in the worker's buffer and stays there until the run has been sent:
    /// header and trailer are put around it ([`HEADROOM`], [`TAILROOM`]). `last` as for [`Self::place`].
    ///
    /// # Errors
    /// [`NoPlace`].
    #[inline(always)]
    pub fn keep(
        &mut self,
        tunnel: &Tunnel,
        carrier: &Carrier,
        kind: Kind,
        buffer: &mut [u8],
        packet: Range<usize>,
        last: &mut u64,
    ) -> Result<(), NoPlace> {
        match carrier {
            Carrier::Esp(sa) => self.keep_esp(tunnel, carrier, sa, kind, buffer, packet, last),
            Carrier::WireGuard(_) => self.keep_wireguard(tunnel, carrier, kind, buffer, packet, last),
        }
    }

    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "inlined into its only caller")]
    fn keep_esp(
        &mut self,
        tunnel: &Tunnel,
        carrier: &Carrier,
        sa: &Arc<OutboundSa>,
        kind: Kind,
        buffer: &mut [u8],
        packet: Range<usize>,
        last: &mut u64,
    ) -> Result<(), NoPlace> {
        let layout = sa.layout;
        let sealed = layout.sealed_len(packet.len());
        let run = self.enter(tunnel, carrier, kind, sealed, packet.len(), last)?;
        let start = packet.start - layout.header_len();
        run.pieces.push(Piece { start: start as u32, len: sealed as u32, kept: true });
        let esp = &mut buffer[start..start + sealed];
        esp[..4].copy_from_slice(&sa.spi.0.to_be_bytes());
        let end = sealed - layout.icv_len;
        let (_, trailer) = esp[..end].split_at_mut(layout.header_len() + packet.len());
        write_trailer(trailer, layout.pad_len(packet.len()), next_header(kind));
        Ok(())
    }

    #[inline]
    fn keep_wireguard(
        &mut self,
        tunnel: &Tunnel,
        carrier: &Carrier,
        kind: Kind,
        buffer: &mut [u8],
        packet: Range<usize>,
        last: &mut u64,
    ) -> Result<(), NoPlace> {
        let padded = wireguard::padded_len(packet.len(), tunnel.mtu);
        let run = self.enter(tunnel, carrier, kind, padded + wireguard::OVERHEAD, packet.len(), last)?;
        run.pieces.push(Piece { start: packet.start as u32, len: padded as u32, kept: true });
        // Within TAILROOM.
        buffer[packet.end..packet.start + padded].fill(0);
        Ok(())
    }

    /// The run that a packet of `len` bytes, `sealed` bytes on the wire, enters.
    #[inline(always)]
    fn enter(
        &mut self,
        tunnel: &Tunnel,
        carrier: &Carrier,
        kind: Kind,
        sealed: usize,
        len: usize,
        last: &mut u64,
    ) -> Result<&mut Run, NoPlace> {
        let hint = usize::from(self.hints[carrier.tunnel().0 as usize % HINTS]);
        let wanted = Wanted { carrier, tos: kind.tos, sealed, last: *last };
        let index = match self.waiting.get(hint) {
            Some(run) if wanted.fits(run) => hint,
            _ => self.find_or_open(tunnel, &wanted)?,
        };
        let run = &mut self.waiting[index];
        *last = run.ordinal;
        run.count += 1;
        run.inner_bytes += len as u64;
        run.len += sealed;
        if sealed < run.segment || run.count >= self.max_segments || run.len + run.segment > MAX_BYTES {
            run.closed = true;
            self.closed = true;
        }
        Ok(run)
    }

    #[inline(never)]
    fn find_or_open(&mut self, tunnel: &Tunnel, wanted: &Wanted<'_>) -> Result<usize, NoPlace> {
        let index = match self.waiting.iter().rposition(|run| wanted.fits(run)) {
            Some(index) => index,
            None => self.open(tunnel, wanted)?,
        };
        self.hints[wanted.carrier.tunnel().0 as usize % HINTS] = index as u8;
        Ok(index)
    }

    fn open(&mut self, tunnel: &Tunnel, wanted: &Wanted<'_>) -> Result<usize, NoPlace> {
        let to = tunnel.live.remote().ok_or(NoPlace::NoRemote)?;
        let (memory, pieces) = self.spare.pop().ok_or(NoPlace::Full)?;
        self.waiting.push(Run {
            carrier: wanted.carrier.clone(),
            live: Arc::clone(&tunnel.live),
            local: tunnel.settings.local,
            to,
            encapsulation: tunnel.settings.encapsulation,
            tos: wanted.tos,
            count: 0,
            inner_bytes: 0,
            segment: wanted.sealed,
            len: 0,
            ordinal: self.next_ordinal,
            closed: false,
            memory,
            used: 0,
            pieces,
        });
        self.next_ordinal += 1;
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
            run.pieces.clear();
            self.spare.push((run.memory, run.pieces));
        }
        self.closed = false;
    }
}

#[inline(always)]
fn next_header(kind: Kind) -> u8 {
    if kind.v6 { NEXT_HEADER_IPV6 } else { NEXT_HEADER_IPV4 }
}

//! An established IKE SA as octets, for the next life of this process.
//!
//! Kept in memory by the core, never on disk. The value has the IKE SA's keys, its window with the last
//! answer, and the terms of its children, but no child keys: those stay in the core with their sequence
//! numbers. Times are ages, since the next life has another clock; the age of a child, which the core knows,
//! says how long ago the value was written.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::child::{Child, ChildState, ChildTerms, READY_WITHIN, Volume};
use super::exchanges::rekey_ike::IkeCollision;
use super::nat::Nat;
use super::parts::Parts;
use super::window::Window;
use super::{Cx, End, IkeSa, PeerCaps, Phase, Task, Want};
use crate::SecretBytes;
use crate::crypto::{Cipher, EspSuite, IkeKeys, IkeSuite, Integrity, KeMethod, Prf};
use crate::effect::{ChildId, DownCause, HeldChild, IkeSaId, Path};
use crate::wire::{ExchangeType, IkeSpi};

/// Of this layout.
const VERSION: u8 = 3;
/// States of children.
const LIVE: u8 = 0;
const REPLACED: u8 = 1;
const REDUNDANT: u8 = 2;
const DELETING: u8 = 3;
/// An answer longer than this is not kept: then a peer that missed it finds us silent once.
const MAX_ANSWER: usize = 8 * 1024;

/// Why a value cannot be adopted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdoptError {
    /// Not of this layout, or damaged.
    Malformed,
    /// A generation of 0, which fresh SAs have: nonces could repeat.
    Generation,
    /// No peer of that name is configured, or not as it was.
    UnknownPeer,
    /// An SA with that SPI is there already.
    Duplicate,
}

impl std::fmt::Display for AdoptError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Malformed => "stash value malformed",
            Self::Generation => "generation 0 cannot adopt",
            Self::UnknownPeer => "no such peer in the configuration",
            Self::Duplicate => "IKE SA adopted already",
        })
    }
}

impl std::error::Error for AdoptError {}

impl IkeSa {
    /// The SA as octets; none before it is established.
    pub(crate) fn export(&self, now: Instant) -> Option<SecretBytes> {
        let (crypt, config) = (self.crypt.as_ref()?, self.config.as_ref()?);
        let phase = match self.phase {
            Phase::Established => 0,
            Phase::Replaced => 1,
            Phase::Deleting => 2,
            Phase::Handshake(_) | Phase::Closed { .. } | Phase::Dead => return None,
        };
        let mut out = Writer(Vec::with_capacity(1024));
        out.u8(VERSION);
        out.octets(config.name.as_bytes());
        out.u64(self.id.0);
        out.u8(phase);
        out.u8(self.initiator.into());
        out.0.extend_from_slice(&self.spi_i.0);
        out.0.extend_from_slice(&self.spi_r.0);
        out.address(self.path.local);
        out.address(self.path.remote);
        out.u8(self.began.into());
        let (first_i, first_r) = self.first_spis();
        [first_i, first_r].iter().for_each(|spi| out.0.extend_from_slice(&spi.0));
        [self.nat.supported, self.nat.here, self.nat.there, self.caps.fragmentation, self.caps.mobike]
            .iter()
            .for_each(|flag| out.u8((*flag).into()));
        out.octets(self.nat.seen.as_ref().map_or(&[], |seen| &seen[..]));
        out.ike_suite(crypt.keys.suite());
        out.octets(crypt.keys.export().expose());
        out.duration(now.saturating_duration_since(self.created));
        out.duration(self.rekey_at.saturating_duration_since(now));
        out.duration(self.expires_at.saturating_duration_since(now));
        out.u64(self.child_rekeys);
        let (rival, nonce) = match &self.collision {
            Some(collision) => (collision.sa.0, collision.low_nonce.as_slice()),
            None => (0, &[][..]),
        };
        out.u64(rival);
        out.octets(nonce);
        self.export_window(&mut out);
        out.u32(self.children.len() as u32);
        self.children.iter().for_each(|child| export_child(&mut out, child, now));
        Some(SecretBytes::new(out.0))
    }

    fn export_window(&self, out: &mut Writer) {
        out.u32(self.window.next_request());
        out.u32(self.window.expected());
        let kept = self
            .window
            .kept_answer()
            .filter(|(_, answer)| answer.iter().map(Vec::len).sum::<usize>() <= MAX_ANSWER);
        match kept {
            Some((digest, answer)) => {
                out.u8(1);
                out.0.extend_from_slice(digest);
                out.datagrams(answer);
            }
            None => out.u8(0),
        }
        match self.window.outstanding() {
            Some(request) => {
                let spi_in = match &self.task {
                    Some(Task::Child(task)) => Some(task.spi_in),
                    Some(Task::Followup(followup)) => followup.spi_in(),
                    Some(Task::Forgotten { spi_in, .. }) => *spi_in,
                    _ => None,
                };
                out.u8(1);
                out.u8(request.exchange.number());
                out.u32(spi_in.unwrap_or(0));
                out.u8(self.is_rekeying_ike().into());
                out.u8(self.is_busy_with_child().into());
                out.datagrams(&request.datagrams);
            }
            None => out.u8(0),
        }
    }

    /// What [`IkeSa::export`] wrote. `held` tells what the core has of a child still.
    pub(crate) fn import(
        cx: &mut Cx<'_>,
        value: &[u8],
        generation: u32,
        held: &dyn Fn(ChildId) -> Option<HeldChild>,
    ) -> Result<Self, AdoptError> {
        if generation == 0 {
            return Err(AdoptError::Generation);
        }
        let mut from = Reader(value);
        from.sa(cx, generation, held).ok_or(AdoptError::Malformed)?
    }

    /// The answer to a request of an earlier life.
    pub(crate) fn handle_forgotten(
        &mut self,
        cx: &mut Cx<'_>,
        spi_in: Option<u32>,
        rekeys_ike: bool,
        parts: &Parts<'_>,
    ) {
        if parts.error().is_some() || !self.is_established() {
            self.yield_to_peers_rekey(cx);
            return;
        }
        if rekeys_ike {
            // The new SA's keys are lost with the private value: both SAs end, and another is made.
            self.delete(cx, End { cause: DownCause::Expired, diagnosis: None });
        } else if let Some(spi) = spi_in {
            // So are the child's: the peer is told to forget it.
            let payloads = vec![crate::wire::Payload::Delete(crate::wire::Delete::Esp(vec![spi]))];
            self.start_request(cx, Task::DeleteChildren(Vec::new()), ExchangeType::Informational, payloads);
        }
    }
}

fn export_child(out: &mut Writer, child: &Child, now: Instant) {
    out.u64(child.id.0);
    out.u32(child.terms.spi_in);
    out.u32(child.terms.spi_out);
    let (state, heir) = match child.state {
        ChildState::Live | ChildState::Rekeying => (LIVE, 0),
        ChildState::Replaced(heir) => (REPLACED, heir.0),
        ChildState::Redundant => (REDUNDANT, 0),
        ChildState::Deleting => (DELETING, 0),
    };
    out.u8(state);
    out.u64(heir);
    let suite = &child.terms.suite;
    out.u8(position(&Cipher::ALL, &suite.cipher));
    out.u8(suite.integrity.map_or(u8::MAX, |integrity| position(&Integrity::ALL, &integrity)));
    out.u16(suite.ke.map_or(0, KeMethod::number));
    out.additional(&suite.additional);
    out.u8(suite.esn.into());
    for prefixes in [&child.terms.local, &child.terms.remote] {
        out.u32(prefixes.len() as u32);
        prefixes.iter().for_each(|prefix| out.prefix(*prefix));
    }
    out.duration(now.saturating_duration_since(child.created));
    out.duration(child.rekey_at.saturating_duration_since(now));
    out.duration(child.expires_at.saturating_duration_since(now));
}

fn position<T: PartialEq>(all: &[T], one: &T) -> u8 {
    all.iter().position(|other| other == one).map_or(u8::MAX, |index| index as u8)
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn octets(&mut self, octets: &[u8]) {
        self.u32(octets.len() as u32);
        self.0.extend_from_slice(octets);
    }

    fn datagrams(&mut self, datagrams: &[Vec<u8>]) {
        self.u32(datagrams.len() as u32);
        datagrams.iter().for_each(|datagram| self.octets(datagram));
    }

    fn duration(&mut self, duration: Duration) {
        self.u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    }

    fn ip(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(ip) => self.octets(&ip.octets()),
            IpAddr::V6(ip) => self.octets(&ip.octets()),
        }
    }

    fn address(&mut self, address: SocketAddr) {
        self.ip(address.ip());
        self.u16(address.port());
    }

    fn prefix(&mut self, prefix: IpNet) {
        self.ip(prefix.addr());
        self.u8(prefix.prefix_len());
    }

    fn additional(&mut self, additional: &[(u8, KeMethod)]) {
        self.u8(additional.len() as u8);
        for (slot, method) in additional {
            self.u8(*slot);
            self.u16(method.number());
        }
    }

    fn ike_suite(&mut self, suite: &IkeSuite) {
        self.u8(position(&Cipher::ALL, &suite.cipher));
        self.u8(suite.integrity.map_or(u8::MAX, |integrity| position(&Integrity::ALL, &integrity)));
        self.u8(position(&Prf::ALL, &suite.prf));
        self.u16(suite.ke.number());
        self.additional(&suite.additional);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.array::<1>()?[0])
    }

    fn flag(&mut self) -> Option<bool> {
        Some(self.u8()? != 0)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.array()?))
    }

    fn octets(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    fn datagrams(&mut self) -> Option<Vec<Vec<u8>>> {
        let count = self.u32()?.min(256);
        (0..count).map(|_| self.octets().map(<[u8]>::to_vec)).collect()
    }

    fn duration(&mut self) -> Option<Duration> {
        // A century at most: instants stay in range.
        Some(Duration::from_millis(self.u64()?.min(3_155_760_000_000)))
    }

    fn ip(&mut self) -> Option<IpAddr> {
        let octets = self.octets()?;
        match octets.len() {
            4 => Some(<[u8; 4]>::try_from(octets).ok()?.into()),
            16 => Some(<[u8; 16]>::try_from(octets).ok()?.into()),
            _ => None,
        }
    }

    fn address(&mut self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.ip()?, self.u16()?))
    }

    fn prefixes(&mut self) -> Option<Vec<IpNet>> {
        let count = self.u32()?.min(1024);
        (0..count).map(|_| IpNet::new(self.ip()?, self.u8()?).ok()).collect()
    }

    fn integrity(&mut self) -> Option<Option<Integrity>> {
        match self.u8()? {
            u8::MAX => Some(None),
            index => Integrity::ALL.get(usize::from(index)).copied().map(Some),
        }
    }

    fn additional(&mut self) -> Option<Vec<(u8, KeMethod)>> {
        let count = self.u8()?;
        (0..count).map(|_| Some((self.u8()?, KeMethod::from_number(self.u16()?)?))).collect()
    }

    fn ike_suite(&mut self) -> Option<IkeSuite> {
        Some(IkeSuite {
            cipher: *Cipher::ALL.get(usize::from(self.u8()?))?,
            integrity: self.integrity()?,
            prf: *Prf::ALL.get(usize::from(self.u8()?))?,
            ke: KeMethod::from_number(self.u16()?)?,
            additional: self.additional()?,
        })
    }

    fn esp_suite(&mut self) -> Option<EspSuite> {
        Some(EspSuite {
            cipher: *Cipher::ALL.get(usize::from(self.u8()?))?,
            integrity: self.integrity()?,
            ke: match self.u16()? {
                0 => None,
                number => Some(KeMethod::from_number(number)?),
            },
            additional: self.additional()?,
            esn: self.flag()?,
        })
    }

    fn sa(
        &mut self,
        cx: &mut Cx<'_>,
        generation: u32,
        held: &dyn Fn(ChildId) -> Option<HeldChild>,
    ) -> Option<Result<IkeSa, AdoptError>> {
        if self.u8()? != VERSION {
            return None;
        }
        let name = std::str::from_utf8(self.octets()?).ok()?;
        let Some((peer, config)) = cx.directory.by_name(name).map(|(id, config)| (id, config.clone())) else {
            return Some(Err(AdoptError::UnknownPeer));
        };
        let id = IkeSaId(self.u64()?);
        let phase = match self.u8()? {
            0 => Phase::Established,
            1 => Phase::Replaced,
            2 => Phase::Deleting,
            _ => return None,
        };
        let initiator = self.flag()?;
        let (spi_i, spi_r) = (IkeSpi(self.array()?), IkeSpi(self.array()?));
        let path = Path { local: self.address()?, remote: self.address()? };
        let mut sa = IkeSa::blank(cx, initiator, (spi_i, spi_r), path, phase);
        (sa.id, sa.peer, sa.config) = (id, Some(peer), Some(config));
        sa.began = self.flag()?;
        sa.first_spis = Some((IkeSpi(self.array()?), IkeSpi(self.array()?)));
        sa.nat = Nat { supported: self.flag()?, here: self.flag()?, there: self.flag()?, seen: None };
        sa.caps = PeerCaps { fragmentation: self.flag()?, mobike: self.flag()?, ..PeerCaps::default() };
        sa.nat.seen = self.octets()?.try_into().ok();
        let suite = self.ike_suite()?;
        let keys = IkeKeys::import(&suite, &SecretBytes::from_slice(self.octets()?)).ok()?;
        sa.take_keys(cx, keys, generation).ok()?;
        let (ike_age, rekey_in, expires_in) = (self.duration()?, self.duration()?, self.duration()?);
        sa.child_rekeys = self.u64()?;
        let (rival, low_nonce) = (self.u64()?, self.octets()?.to_vec());
        sa.collision = (rival != 0).then_some(IkeCollision { sa: IkeSaId(rival), low_nonce });
        self.window(cx, &mut sa)?;
        let elapsed = self.children(cx, &mut sa, held)?;
        sa.created = cx.now.checked_sub(ike_age + elapsed).unwrap_or(cx.now);
        sa.rekey_at = cx.now + rekey_in.saturating_sub(elapsed);
        sa.expires_at = cx.now + expires_in.saturating_sub(elapsed);
        sa.note_children(cx.now);
        if matches!(sa.phase, Phase::Replaced | Phase::Deleting) {
            sa.expires_at = cx.now + super::CLOSED_FOR;
        }
        // Nothing is known of what was heard meanwhile: the peer is asked.
        if sa.is_established() {
            sa.want(cx.now, Want::Probe);
        }
        Some(Ok(sa))
    }

    fn window(&mut self, cx: &Cx<'_>, sa: &mut IkeSa) -> Option<()> {
        sa.window = Window::resume(self.u32()?, self.u32()?);
        if self.flag()? {
            let digest = self.array()?;
            sa.window.restore_answer(digest, self.datagrams()?);
        }
        if self.flag()? {
            let exchange = ExchangeType::from_number(self.u8()?);
            let (spi, rekeys_ike, busy) = (self.u32()?, self.flag()?, self.flag()?);
            sa.window.restore_request(cx.now, exchange, self.datagrams()?);
            let spi_in = (spi != 0).then_some(spi);
            sa.task = Some(match sa.phase {
                Phase::Deleting => Task::DeleteIke,
                _ => Task::Forgotten { spi_in, rekeys_ike, busy },
            });
        }
        Some(())
    }

    /// The children; returns how long ago the value was written, as far as the core's ages tell.
    fn children(
        &mut self,
        cx: &mut Cx<'_>,
        sa: &mut IkeSa,
        held: &dyn Fn(ChildId) -> Option<HeldChild>,
    ) -> Option<Duration> {
        let config = sa.config.clone()?;
        let mut elapsed = Duration::ZERO;
        let mut times = Vec::new();
        for _ in 0..self.u32()?.min(super::MAX_CHILDREN as u32) {
            let id = ChildId(self.u64()?);
            let (spi_in, spi_out) = (self.u32()?, self.u32()?);
            let (state, heir) = (self.u8()?, ChildId(self.u64()?));
            let suite = self.esp_suite()?;
            let (local, remote) = (self.prefixes()?, self.prefixes()?);
            let (age_then, rekey_in, expires_in) = (self.duration()?, self.duration()?, self.duration()?);
            if cx.esp_spis.contains(&spi_in) {
                // A younger IKE SA has inherited it.
                continue;
            }
            let held = held(id);
            if let Some(held) = held {
                elapsed = elapsed.max(held.age.saturating_sub(age_then));
            }
            times.push((rekey_in, expires_in));
            cx.esp_spis.insert(spi_in);
            cx.ids.child = cx.ids.child.max(id.0);
            let outbound = held.is_some_and(|held| held.outbound);
            sa.children.push(Child {
                id,
                terms: ChildTerms { spi_in, spi_out, esn: suite.esn, suite, local, remote },
                state: match state {
                    LIVE if held.is_some() => ChildState::Live,
                    REPLACED if outbound => ChildState::Replaced(heir),
                    // What nothing is received on is of no use, and so is what was on its way out.
                    _ => ChildState::Deleting,
                },
                created: cx.now.checked_sub(held.map_or(age_then, |held| held.age)).unwrap_or(cx.now),
                rekey_at: cx.now,
                expires_at: cx.now,
                volume: Volume::of(&config, cx.rng),
                pending_out: None,
                in_installed: held.is_some(),
                out_installed: outbound,
            });
        }
        for (child, (rekey_in, expires_in)) in sa.children.iter_mut().zip(times) {
            child.rekey_at = cx.now + rekey_in.saturating_sub(elapsed);
            child.expires_at = cx.now + expires_in.saturating_sub(elapsed).max(super::CLOSED_FOR);
        }
        sa.resume_children(cx.now);
        Some(elapsed)
    }
}

impl IkeSa {
    /// What an earlier life would have done next with its children.
    fn resume_children(&mut self, now: Instant) {
        let there: Vec<ChildId> = self.children.iter().filter(|c| c.in_installed).map(|c| c.id).collect();
        let mut wants = Vec::new();
        for child in &mut self.children {
            match child.state {
                // The peer may have moved on to a pair that is lost here; it will be told so.
                ChildState::Replaced(heir) if !there.contains(&heir) => child.state = ChildState::Live,
                ChildState::Deleting => wants.push(Want::DeleteChild(child.id)),
                _ if child.is_half() => {
                    // The key of its outbound half died with the life that had not installed it yet.
                    child.expires_at = child.expires_at.min(now + READY_WITHIN);
                    child.state = ChildState::Rekeying;
                    wants.push(Want::RekeyChild(child.id));
                }
                ChildState::Live | ChildState::Rekeying | ChildState::Replaced(_) | ChildState::Redundant => {
                }
            }
        }
        wants.into_iter().for_each(|want| self.want(now, want));
    }
}

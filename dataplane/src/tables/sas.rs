//! Making SAs of what control sends, and refusing those that would break an invariant.

use std::sync::Arc;

use braid_api::{BootId, Direction, RejectReason, Sa, SaId, SaSummary, Spi, Suite, TunnelId, WireGuard};
use ring::hmac;

use super::ledger::Ledger;
use crate::counters::PacketCounter;
use crate::esp::{
    Engine, Opener, Replay, Sealer,
    sa::{Identity, InboundSa, OutboundSa},
};
use crate::wireguard::{Identities, Peer};

/// Most SAs of one tunnel.
const MAX_SAS_PER_TUNNEL: usize = 256;

/// The first SPI that is not reserved (RFC 4303 section 2.1).
const FIRST_SPI: u32 = 256;

/// An SA of either direction.
#[derive(Clone)]
pub(super) enum SaHandle {
    Out(Arc<OutboundSa>),
    In(Arc<InboundSa>),
}

impl SaHandle {
    pub(super) fn tunnel(&self) -> TunnelId {
        match self {
            SaHandle::Out(sa) => sa.tunnel,
            SaHandle::In(sa) => sa.tunnel,
        }
    }

    pub(super) fn direction(&self) -> Direction {
        match self {
            SaHandle::Out(_) => Direction::Out,
            SaHandle::In(_) => Direction::In,
        }
    }

    pub(super) fn spi(&self) -> Spi {
        match self {
            SaHandle::Out(sa) => sa.spi,
            SaHandle::In(sa) => sa.spi,
        }
    }

    pub(super) fn suite(&self) -> Suite {
        match self {
            SaHandle::Out(sa) => sa.suite,
            SaHandle::In(sa) => sa.suite,
        }
    }

    pub(super) fn counter(&self) -> &PacketCounter {
        match self {
            SaHandle::Out(sa) => &sa.counter,
            SaHandle::In(sa) => &sa.counter,
        }
    }

    pub(super) fn summary(&self, id: SaId) -> SaSummary {
        let (key_check, stopped) = match self {
            SaHandle::Out(sa) => (sa.key_check, sa.is_stopped()),
            SaHandle::In(sa) => (sa.key_check, false),
        };
        SaSummary {
            id,
            tunnel: self.tunnel(),
            direction: self.direction(),
            spi: self.spi(),
            suite: self.suite(),
            key_check,
            stopped,
        }
    }
}

/// Digest of a key by which its holder recognises it: HMAC-SHA2-256 under the boot id, first 16 bytes.
pub fn key_check(boot: BootId, key: &[u8]) -> [u8; 16] {
    first_half(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &boot.0), key))
}

fn first_half(tag: hmac::Tag) -> [u8; 16] {
    std::array::from_fn(|index| tag.as_ref()[index])
}

/// What SAs are made with.
pub(super) struct Foundry {
    pub(super) boot: BootId,
    engine: Engine,
    iv_secret: hmac::Key,
    identities: Identities,
}

impl Foundry {
    pub(super) fn new(boot: BootId, engine: Engine, iv_secret: &[u8; 32]) -> Self {
        let indexes = u32::from_le_bytes(std::array::from_fn(|index| boot.0[index]));
        Foundry {
            boot,
            engine,
            iv_secret: hmac::Key::new(hmac::HMAC_SHA256, iv_secret),
            identities: Identities::new(indexes),
        }
    }

    /// Digest of all that a WireGuard peer is made of.
    pub(super) fn wireguard_check(&self, settings: &WireGuard) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.iv_secret);
        context.update(settings.private_key.expose());
        context.update(&settings.peer_public_key);
        let preshared = settings.preshared_key.as_ref();
        context.update(&[preshared.is_some().into(), settings.initiate.into()]);
        context.update(preshared.map_or(&[], |key| key.expose()));
        context.update(&settings.keepalive.unwrap_or(0).to_be_bytes());
        first_half(context.sign())
    }

    /// A WireGuard peer without a session; `taken` says which indexes are in use.
    ///
    /// # Errors
    /// [`RejectReason::BadKey`].
    pub(super) fn make_peer(
        &self,
        settings: &WireGuard,
        check: [u8; 16],
        taken: impl Fn(u32) -> bool,
    ) -> Result<Peer, RejectReason> {
        let own_check = first_half(hmac::sign(&self.iv_secret, settings.private_key.expose()));
        self.identities.make(settings, check, own_check, taken)
    }

    /// The SA, and the digest of its key.
    ///
    /// # Errors
    /// The first invariant that it would break.
    pub(super) fn make(
        &self,
        sa: Sa,
        ledger: &Ledger,
        now: u64,
    ) -> Result<(SaHandle, [u8; 16]), RejectReason> {
        // A core that died has lost its counters: no SA of another life is ever installed.
        if sa.boot != self.boot {
            return Err(RejectReason::OtherBoot);
        }
        // Ids ascend, so that none is used twice within a boot, and nothing has to be remembered for it.
        if ledger.highest_sa().is_some_and(|highest| sa.id <= highest) {
            return Err(RejectReason::SaIdUsed);
        }
        let tunnel = ledger.tunnel(sa.tunnel).ok_or(RejectReason::UnknownTunnel)?;
        if tunnel.sas.len() >= MAX_SAS_PER_TUNNEL {
            return Err(RejectReason::IdOutOfRange);
        }
        // RFC 4303 section 2.1: 0 to 255 are reserved.
        if sa.spi.0 < FIRST_SPI {
            return Err(RejectReason::SpiTaken);
        }
        let check = key_check(self.boot, sa.key.expose());
        let identity = Identity {
            id: sa.id,
            spi: sa.spi,
            tunnel: sa.tunnel,
            suite: sa.suite,
            esn: sa.esn,
            selectors: sa.selectors,
            key_check: check,
            installed: now,
        };
        let key = sa.key.expose();
        let handle = match sa.direction {
            Direction::Out => {
                // Another SA with this key counts from 1 again: with AES-GCM that repeats nonces.
                if ledger.key_is_used(&check) {
                    return Err(RejectReason::BadKey);
                }
                let iv_key = first_half(hmac::sign(&self.iv_secret, &sa.id.0.to_be_bytes()));
                let sealer = Sealer::new(sa.suite, key, sa.esn, &iv_key, self.engine)
                    .map_err(|_| RejectReason::BadKey)?;
                SaHandle::Out(Arc::new(OutboundSa::new(identity, sealer)))
            }
            Direction::In => {
                let window = sa.replay_window as usize;
                if !(Replay::MIN..=Replay::MAX).contains(&window) || !window.is_multiple_of(64) {
                    return Err(RejectReason::BadReplayWindow);
                }
                let opener =
                    Opener::new(sa.suite, key, sa.esn, self.engine).map_err(|_| RejectReason::BadKey)?;
                SaHandle::In(Arc::new(InboundSa::new(identity, opener, Replay::new(window, sa.esn))))
            }
        };
        Ok((handle, check))
    }
}

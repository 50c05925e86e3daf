//! NAT detection and what follows from it (RFC 7296 section 2.23).

use super::parts::Parts;
use crate::Random;
use crate::crypto::nat_detection_hash;
use crate::effect::{EspTransport, Path};
use crate::random::random_array;
use crate::settings::Encapsulation;
use crate::wire::{IkeSpi, Notify, NotifyType, Payload};

/// What is known about NATs on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Nat {
    /// The peer does NAT traversal.
    pub(crate) supported: bool,
    /// A NAT stands before us, so its mapping must be kept open.
    pub(crate) here: bool,
    /// A NAT stands before the peer, or the peer makes us believe so.
    pub(crate) there: bool,
    /// Where the peer saw us last: its NAT_DETECTION_DESTINATION_IP. None is unknown, as after a rekey, whose
    /// SPIs enter the hash.
    pub(crate) seen: Option<[u8; 20]>,
}

impl Nat {
    /// From the peer's NAT_DETECTION payloads, received on `path`.
    pub(crate) fn detect(parts: &Parts<'_>, spi_i: IkeSpi, spi_r: IkeSpi, path: Path) -> Self {
        let data = |kind| {
            parts
                .notifies
                .iter()
                .filter(move |notify| notify.kind == kind)
                .map(|notify| notify.data.as_slice())
        };
        let supported = Self::is_asked(parts);
        let remote = nat_detection_hash(spi_i, spi_r, path.remote);
        let local = nat_detection_hash(spi_i, spi_r, path.local);
        Self {
            supported,
            // RFC 7296 section 2.23: no source hash that matches means a NAT before the sender; the
            // destination hash that does not match, one before us.
            there: supported && !data(NotifyType::NAT_DETECTION_SOURCE_IP).any(|hash| hash == remote),
            here: supported && !data(NotifyType::NAT_DETECTION_DESTINATION_IP).any(|hash| hash == local),
            seen: seen(parts),
        }
    }

    /// Whether a message has the payloads that an answer must have then too (RFC 4555 section 3.8).
    pub(crate) fn is_asked(parts: &Parts<'_>) -> bool {
        parts.has(NotifyType::NAT_DETECTION_SOURCE_IP) && parts.has(NotifyType::NAT_DETECTION_DESTINATION_IP)
    }

    /// Whether the peer sees us elsewhere than before. What was not known before counts: RFC 4555 section 3.8
    /// calls the needless update harmless.
    pub(crate) fn has_moved(self, parts: &Parts<'_>) -> bool {
        self.here && seen(parts).is_some_and(|seen| Some(seen) != self.seen)
    }

    /// Our NAT_DETECTION payloads for a message on `path`.
    pub(crate) fn payloads(
        mode: Encapsulation,
        rng: &mut dyn Random,
        spi_i: IkeSpi,
        spi_r: IkeSpi,
        path: Path,
    ) -> Vec<Payload> {
        let source = match mode {
            // Without these payloads the peer does no NAT traversal.
            Encapsulation::Esp => return Vec::new(),
            // A source that cannot match makes the peer find a NAT, and so encapsulate.
            Encapsulation::Udp => random_array(rng),
            Encapsulation::Auto => nat_detection_hash(spi_i, spi_r, path.local),
        };
        let destination = nat_detection_hash(spi_i, spi_r, path.remote);
        [
            (NotifyType::NAT_DETECTION_SOURCE_IP, source),
            (NotifyType::NAT_DETECTION_DESTINATION_IP, destination),
        ]
        .map(|(kind, hash)| Payload::Notify(Notify::new(kind, hash.to_vec())))
        .to_vec()
    }

    /// How ESP goes.
    pub(crate) fn transport(self, mode: Encapsulation) -> EspTransport {
        let wanted = match mode {
            Encapsulation::Udp => true,
            Encapsulation::Auto => self.here || self.there,
            Encapsulation::Esp => false,
        };
        // A peer that fakes a NAT encapsulates; one that does no NAT traversal would drop ESP in UDP.
        if self.supported && (wanted || self.there || self.here) {
            // RFC 7296 section 2.23: who stands behind the NAT keeps its mapping.
            EspTransport::Udp { keepalive: self.here }
        } else {
            EspTransport::Esp
        }
    }
}

fn seen(parts: &Parts<'_>) -> Option<[u8; 20]> {
    parts.notify(NotifyType::NAT_DETECTION_DESTINATION_IP)?.data.as_slice().try_into().ok()
}

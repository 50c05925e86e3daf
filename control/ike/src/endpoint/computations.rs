//! Computations that wait for the owner, and whose result is awaited.
//!
//! Two lines take turns: what our own SAs and authenticated peers need, at most two for each SA; and what
//! strangers ask for, which is bounded in all and for each address, and refused beyond: they ask again. So
//! a flood of first requests with the largest group costs others every second computation, never more.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use crate::crypto::beside::Task;
use crate::crypto::{Computation, ComputationId};
use crate::effect::{IkeSaId, Path};
use crate::settings::EndpointSettings;
use crate::wire::IkeSpi;

/// Computations that strangers may have waiting.
const MAX_OF_STRANGERS: usize = 16;
/// Of them, those of one address.
const MAX_OF_ONE_STRANGER: usize = 4;
/// With more than this many waiting, a stranger has to show first that it is where it says (RFC 7296 section 2.6).
const UNASKED: usize = 2;

/// Whose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asker {
    /// An SA of ours, or one that is authenticated.
    Sa(IkeSaId),
    /// An SA that is not authenticated, of somebody at this address.
    HalfOpen(IkeSaId, IpAddr),
    /// A first request, by which there is no SA yet.
    First(FirstKey),
}

/// The initiator's SPI and address.
pub(crate) type FirstKey = (IkeSpi, SocketAddr);

/// A first request that waits for its answer to be computed.
#[derive(Debug)]
pub(super) struct First {
    pub(super) path: Path,
    pub(super) bytes: Vec<u8>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Computations {
    last: u64,
    ours: VecDeque<(Asker, Computation)>,
    strangers: VecDeque<(Asker, Computation)>,
    under_way: BTreeMap<ComputationId, Asker>,
    is_strangers_turn: bool,
}

impl Computations {
    /// Puts a computation in its line; `None` if that is full.
    pub(crate) fn ask(&mut self, asker: Asker, task: Task) -> Option<ComputationId> {
        let line = match asker.stranger() {
            None => &mut self.ours,
            Some(remote) => {
                let of_one = self.strangers.iter().filter(|(other, _)| other.stranger() == Some(remote));
                if self.strangers.len() >= MAX_OF_STRANGERS || of_one.count() >= MAX_OF_ONE_STRANGER {
                    return None;
                }
                &mut self.strangers
            }
        };
        self.last += 1;
        let id = ComputationId(self.last);
        line.push_back((asker, Computation { id, task }));
        Some(id)
    }

    /// Whether strangers wait in such a number that they should prove their address.
    pub(super) fn is_crowded(&self) -> bool {
        self.strangers.len() > UNASKED
    }

    /// The next one for the owner, of those that are still awaited.
    pub(super) fn next(
        &mut self,
        settings: &EndpointSettings,
        is_awaited: impl Fn(Asker, ComputationId) -> bool,
    ) -> Option<Computation> {
        while self.under_way.len() < settings.max_computations {
            let (first, second) = if self.is_strangers_turn {
                (&mut self.strangers, &mut self.ours)
            } else {
                (&mut self.ours, &mut self.strangers)
            };
            let (asker, computation) = first.pop_front().or_else(|| second.pop_front())?;
            if is_awaited(asker, computation.id) {
                self.is_strangers_turn = asker.stranger().is_none();
                self.under_way.insert(computation.id, asker);
                return Some(computation);
            }
        }
        None
    }

    /// The owner has computed; whose it is, if it is one of this endpoint's.
    pub(super) fn done(&mut self, id: ComputationId) -> Option<Asker> {
        self.under_way.remove(&id)
    }
}

impl Asker {
    fn stranger(self) -> Option<IpAddr> {
        match self {
            Self::Sa(_) => None,
            Self::HalfOpen(_, remote) => Some(remote),
            Self::First((_, remote)) => Some(remote.ip()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;
    use crate::crypto::KeMethod;
    use crate::crypto::beside::Drawn;

    struct Sevens;

    impl Random for Sevens {
        fn fill(&mut self, out: &mut [u8]) {
            out.fill(7);
        }
    }

    fn task() -> Task {
        let method = KeMethod::Modp2048;
        Task::KeyPair { method, drawn: Drawn::for_method(method, &mut Sevens) }
    }

    fn first(host: u8, spi: u8) -> Asker {
        Asker::First((IkeSpi([spi; 8]), SocketAddr::from(([192, 0, 2, host], 500))))
    }

    /// Who is served, one at a time.
    fn order(all: &mut Computations) -> Vec<Asker> {
        let settings = EndpointSettings { max_computations: 1, ..EndpointSettings::default() };
        let mut order = Vec::new();
        while let Some(next) = all.next(&settings, |_, _| true) {
            assert!(all.next(&settings, |_, _| true).is_none(), "one at a time");
            order.extend(all.done(next.id));
        }
        order
    }

    #[test]
    fn strangers_and_our_own_take_turns() {
        let mut all = Computations::default();
        for number in 1..=3 {
            assert!(all.ask(first(number, 1), task()).is_some());
            assert!(all.ask(Asker::Sa(IkeSaId(number.into())), task()).is_some());
        }
        let sa = |number| Asker::Sa(IkeSaId(number));
        assert_eq!(order(&mut all), [sa(1), first(1, 1), sa(2), first(2, 1), sa(3), first(3, 1)]);
    }

    #[test]
    fn strangers_are_bounded_in_all_and_by_address_and_our_own_are_not() {
        let mut all = Computations::default();
        let of_one = (0..10).filter(|spi| all.ask(first(1, *spi), task()).is_some()).count();
        assert_eq!(of_one, MAX_OF_ONE_STRANGER);
        assert!(all.is_crowded());
        let of_all = (2..100).filter(|host| all.ask(first(*host, 0), task()).is_some()).count();
        assert_eq!(of_one + of_all, MAX_OF_STRANGERS);
        assert!((0..100).all(|sa| all.ask(Asker::Sa(IkeSaId(sa)), task()).is_some()));
    }

    #[test]
    fn what_nobody_awaits_any_more_is_not_computed() {
        let mut all = Computations::default();
        let gone = all.ask(Asker::Sa(IkeSaId(1)), task()).unwrap();
        let there = all.ask(Asker::Sa(IkeSaId(2)), task()).unwrap();
        let next = all.next(&EndpointSettings::default(), |asker, _| asker == Asker::Sa(IkeSaId(2)));
        assert_eq!(next.map(|next| next.id), Some(there));
        assert_eq!((all.done(gone), all.done(there)), (None, Some(Asker::Sa(IkeSaId(2)))));
        assert_eq!(all.done(there), None, "once");
    }
}

//! Key exchange computations as values: drawn where the randomness is, computed by whoever has the time.
//!
//! A finite-field exchange takes milliseconds to hundreds of them; the owner of an endpoint computes it beside
//! its loop ([`Computation::run`]) and brings the result back ([`crate::Endpoint::handle_computed`]). The
//! same functions compute at once what is not worth the way. Secrets are wiped on drop wherever they are.

use zeroize::Zeroizing;

use super::{CryptoError, KeMethod, KePrivate, SharedSecret};
use crate::Random;

/// Names a computation within one endpoint; never used twice in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ComputationId(pub u64);

/// To be computed.
#[derive(Debug)]
pub struct Computation {
    pub(crate) id: ComputationId,
    pub(crate) task: Task,
}

/// Computed.
#[derive(Debug)]
pub struct Computed {
    pub(crate) id: ComputationId,
    pub(crate) made: Made,
}

/// What is to be computed.
#[derive(Debug)]
pub(crate) enum Task {
    KeyPair { method: KeMethod, drawn: Drawn },
    Answer { method: KeMethod, drawn: Drawn, peer: Vec<u8> },
    Agreement { private: KePrivate, peer: Vec<u8> },
}

/// What came of it, and of what: a result is only used for what it was made for.
#[derive(Debug)]
pub(crate) enum Made {
    KeyPair { method: KeMethod, result: Result<KePrivate, CryptoError> },
    Answer { method: KeMethod, peer: Vec<u8>, result: Result<(Vec<u8>, SharedSecret), CryptoError> },
    Agreement { peer: Vec<u8>, result: Result<SharedSecret, CryptoError> },
}

impl Computation {
    /// Which it is.
    pub fn id(&self) -> ComputationId {
        self.id
    }

    /// Computes; this is what takes long.
    pub fn run(self) -> Computed {
        let made = match self.task {
            Task::KeyPair { method, mut drawn } => {
                Made::KeyPair { method, result: method.initiate(&mut drawn) }
            }
            Task::Answer { method, mut drawn, peer } => {
                let result = method.respond(&mut drawn, &peer);
                Made::Answer { method, peer, result }
            }
            Task::Agreement { private, peer } => {
                let result = private.finish(&peer);
                Made::Agreement { peer, result }
            }
        };
        Computed { id: self.id, made }
    }
}

/// Random octets drawn beforehand. Beyond their end come zeroes, which no curve that draws again takes for a
/// private value.
pub(crate) struct Drawn {
    octets: Zeroizing<Vec<u8>>,
    used: usize,
}

impl Drawn {
    /// As many as the method needs.
    pub(crate) fn for_method(method: KeMethod, rng: &mut dyn Random) -> Self {
        let mut octets = Zeroizing::new(vec![0; method.octets_to_draw()]);
        rng.fill(&mut octets);
        Self { octets, used: 0 }
    }
}

impl Random for Drawn {
    fn fill(&mut self, out: &mut [u8]) {
        let rest = self.octets.get(self.used..).unwrap_or_default();
        let (now, beyond) = out.split_at_mut(rest.len().min(out.len()));
        now.copy_from_slice(&rest[..now.len()]);
        beyond.fill(0);
        self.used += now.len();
    }
}

impl std::fmt::Debug for Drawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Drawn({} octets)", self.octets.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting(u8);

    impl Random for Counting {
        fn fill(&mut self, out: &mut [u8]) {
            for octet in out {
                self.0 = self.0.wrapping_add(1);
                *octet = self.0;
            }
        }
    }

    fn run(task: Task) -> Made {
        Computation { id: ComputationId(1), task }.run().made
    }

    #[test]
    fn computed_beside_or_at_once_both_sides_agree() {
        for method in KeMethod::ALL {
            let drawn = Drawn::for_method(method, &mut Counting(3));
            let Made::KeyPair { result: Ok(private), .. } = run(Task::KeyPair { method, drawn }) else {
                panic!("{method:?}: no key pair");
            };
            if !method.is_kem() {
                let at_once = method.initiate(&mut Counting(3)).unwrap();
                assert_eq!(private.public(), at_once.public(), "{method:?}: the same draws");
            }
            let drawn = Drawn::for_method(method, &mut Counting(77));
            let peer = private.public().to_vec();
            let Made::Answer { result: Ok((public, theirs)), .. } = run(Task::Answer { method, drawn, peer })
            else {
                panic!("{method:?}: no answer");
            };
            let Made::Agreement { result: Ok(ours), .. } = run(Task::Agreement { private, peer: public })
            else {
                panic!("{method:?}: no agreement");
            };
            assert_eq!(ours, theirs, "{method:?}");
        }
    }

    #[test]
    fn nothing_is_made_of_used_up_randomness() {
        let method = KeMethod::Ecp256;
        let mut drawn = Drawn::for_method(method, &mut Counting(0));
        drawn.fill(&mut vec![0; method.octets_to_draw()]);
        assert_eq!(method.initiate(&mut drawn).err(), Some(CryptoError::Library));
    }
}

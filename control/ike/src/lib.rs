//! IKEv2 (RFC 7296) as pure state machines: messages, cryptography, authentication, and the [`Endpoint`] that
//! holds all IKE SAs of a gateway.
//!
//! Nothing here opens a socket, reads a clock or draws a random number by itself: the caller passes `now`
//! and a [`Random`]. The exceptions live inside aws-lc-rs, which takes no outside randomness for ML-KEM key
//! pairs and encapsulation nor for ECDSA and RSA-PSS signatures; each function that reaches them says so.
//!
//! Not done: EAP, IKEv1, AH, Configuration payloads (decoded as opaque and ignored).

#![forbid(unsafe_code)]

pub mod auth;
pub mod crypto;
pub mod diagnosis;
pub mod effect;
pub mod endpoint;
pub mod proposal;
pub mod random;
mod sa;
pub mod secret;
pub mod settings;
pub mod status;
pub mod wire;

pub use crypto::{Computation, ComputationId, Computed};
pub use diagnosis::{Diagnosis, Fault, Step, Violation};
pub use effect::{
    ChildId, ChildSa, Direction, DownCause, Effect, EspTransport, Event, HeldChild, IkeSaId, Path, PeerId,
    StashUpdate, TimerKind,
};
pub use endpoint::{Adopted, Endpoint};
pub use random::Random;
pub use sa::stash::AdoptError;
pub use secret::SecretBytes;
pub use settings::{Encapsulation, EndpointSettings, Lifetime, PeerConfig, Ppk, Role};
pub use status::{Counters, PeerState, PeerStatus};

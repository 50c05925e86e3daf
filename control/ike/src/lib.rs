//! IKEv2 (RFC 7296) as pure state machines: messages, cryptography, authentication.
//!
//! Nothing here opens a socket, reads a clock or draws a random number by itself: the caller passes `now`
//! and a [`Random`]. The exceptions live inside aws-lc-rs, which takes no outside randomness for ML-KEM key
//! pairs and encapsulation nor for ECDSA and RSA-PSS signatures; each function that reaches them says so.
//!
//! Not done: EAP, IKEv1, AH, Configuration payloads (decoded as opaque and ignored).

#![forbid(unsafe_code)]

pub mod auth;
pub mod crypto;
pub mod proposal;
pub mod random;
pub mod secret;
pub mod wire;

pub use random::Random;
pub use secret::SecretBytes;

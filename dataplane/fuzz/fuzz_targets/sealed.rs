//! `cargo +nightly fuzz run sealed`; the body is in bodies/pieces.rs, which `cargo test` replays the corpus with.

#![no_main]

#[path = "../bodies/pieces.rs"]
#[allow(dead_code)]
mod pieces;

libfuzzer_sys::fuzz_target!(|input: &[u8]| pieces::sealed(input));

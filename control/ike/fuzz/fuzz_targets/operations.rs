//! `cargo +nightly fuzz run operations`; the body is in bodies/operations.rs, which `cargo test` replays the
//! corpus with.

#![no_main]

#[path = "../../tests/sim/config.rs"]
#[allow(dead_code)]
mod config;
#[path = "../../tests/sim/net.rs"]
#[allow(dead_code)]
mod net;
#[path = "../bodies/operations.rs"]
mod operations;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Err(what) = operations::play(input) {
        panic!("{what}");
    }
});

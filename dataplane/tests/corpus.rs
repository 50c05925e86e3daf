//! The committed fuzzing corpus.

#[path = "../fuzz/bodies/pieces.rs"]
mod pieces;
#[path = "../fuzz/replay.rs"]
mod replay;

use replay::replay;

/// Changed versions of each file.
const VARIANTS: u64 = 200;

#[test]
fn packets_of_the_lan() {
    replay("inner", VARIANTS, pieces::inner);
}

#[test]
fn datagrams() {
    replay("datagram", VARIANTS, pieces::datagram);
}

#[test]
fn authentic_packets() {
    replay("sealed", VARIANTS, pieces::sealed);
}

#[test]
fn messages() {
    replay("message", VARIANTS, pieces::message);
}

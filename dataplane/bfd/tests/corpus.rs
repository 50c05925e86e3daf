//! The committed fuzzing corpus.

#[path = "../fuzz/bodies/pieces.rs"]
mod pieces;
#[path = "../../fuzz/replay.rs"]
mod replay;

use replay::replay;

/// Changed versions of each file.
const VARIANTS: u64 = 400;

#[test]
fn packets() {
    replay("packet", VARIANTS, pieces::packet);
}

#[test]
fn sessions() {
    replay("session", VARIANTS, pieces::session);
}

//! The committed fuzzing corpus.

#[path = "../../fuzz/bodies/pieces.rs"]
mod pieces;
#[path = "../../../../dataplane/fuzz/replay.rs"]
mod replay;

use replay::replay;

pub(crate) use pieces::datagram as exercise;

/// Changed versions of each file.
const VARIANTS: u64 = 400;

#[test]
fn datagrams() {
    replay("datagram", VARIANTS, pieces::datagram);
}

#[test]
fn chains() {
    replay("chain", VARIANTS, pieces::chain);
}

#[test]
fn certificates() {
    replay("certificate", VARIANTS, pieces::certificate);
}

#[test]
fn texts() {
    replay("text", VARIANTS, pieces::text);
}

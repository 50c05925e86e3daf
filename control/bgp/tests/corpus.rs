//! The committed fuzzing corpus.

#[path = "../fuzz/bodies/pieces.rs"]
mod pieces;
#[path = "../../../dataplane/fuzz/replay.rs"]
mod replay;

use replay::replay;

/// Changed versions of each file.
const VARIANTS: u64 = 400;

#[test]
#[allow(clippy::disallowed_methods)]
fn streams() {
    replay("stream", VARIANTS, |input| pieces::stream(std::time::Instant::now(), input));
}

#[test]
fn filters() {
    replay("filter", VARIANTS, pieces::filter);
}

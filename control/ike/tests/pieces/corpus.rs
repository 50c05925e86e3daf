//! Replays the committed fuzzing corpus through the bodies of the fuzz targets.

use std::path::Path;

#[path = "../../fuzz/bodies/pieces.rs"]
mod pieces;

pub(crate) use pieces::datagram as exercise;

fn replay(target: &str, body: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    for file in files {
        println!("{}", file.display());
        body(&std::fs::read(&file).unwrap());
    }
}

#[test]
fn datagrams() {
    replay("datagram", pieces::datagram);
}

#[test]
fn chains() {
    replay("chain", pieces::chain);
}

#[test]
fn certificates() {
    replay("certificate", pieces::certificate);
}

#[test]
fn texts() {
    replay("text", pieces::text);
}

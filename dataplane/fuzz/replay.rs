//! Replays a committed fuzzing corpus through the bodies of the fuzz targets, as it is and with seeded changes: a
//! module of each crate's tests whose `fuzz/corpus` it is.

use std::path::Path;

/// A xorshift generator: the same changes in every run.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// One to four changes: an octet set, nudged or removed, one put in, a piece repeated, the end cut off.
    fn change(&mut self, original: &[u8]) -> Vec<u8> {
        let mut changed = original.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(changed.len());
            match (self.below(6), changed.get_mut(at)) {
                (0, Some(octet)) => *octet = self.below(256) as u8,
                (1, Some(octet)) => *octet = octet.wrapping_add([1, 255, 128][self.below(3)]),
                (2, Some(_)) => drop(changed.remove(at)),
                (3, Some(_)) => {
                    let piece = changed[at..changed.len().min(at + 16)].to_vec();
                    changed.splice(at..at, piece);
                }
                (4, Some(_)) => changed.truncate(at),
                (_, _) => changed.insert(at, self.below(256) as u8),
            }
        }
        changed
    }
}

/// Feeds a target's body every file, and so many changed versions of each.
pub(crate) fn replay(target: &str, variants: u64, body: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    for (index, file) in files.iter().enumerate() {
        println!("{}", file.display());
        let original = std::fs::read(file).unwrap();
        body(&original);
        for variant in 1..=variants {
            let mut seeded = Seeded(variant << 32 | (index as u64 + 1) << 8 | 1);
            let changed = seeded.change(&original);
            // Shown only if the body panics.
            println!("variant {variant}: {changed:02x?}");
            body(&changed);
        }
    }
}

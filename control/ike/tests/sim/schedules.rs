//! Games of octets from seeds, and from the fuzzing corpus ([`crate::operations`]).

use std::path::Path;

use braid_ike::Random;

use crate::net::Seeded;
use crate::operations::play;

/// Changed versions of each file of the corpus.
const VARIANTS: u64 = 50;

/// Names the seed when something deeper panics.
struct Naming(u64);

impl Drop for Naming {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the schedule of seed {}", self.0);
        }
    }
}

fn schedule(seed: u64) -> Result<(), String> {
    let _naming = Naming(seed);
    let mut rng = Seeded(seed ^ 0x5eed);
    // What comes first, and four octets for each operation.
    let mut octets = vec![0; 6 + 4 * (rng.below(12) as usize + 1)];
    rng.fill(&mut octets);
    play(&octets).map_err(|what| format!("seed {seed}: {what}"))
}

/// 10,000 in all, in four parts that run side by side. `BRAID_IKE_SEEDS` sets another
/// number for each part, `BRAID_IKE_SEED` runs one alone.
fn schedules(part: u64) {
    let of_environment = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let count = of_environment("BRAID_IKE_SEEDS").unwrap_or(2_500);
    let all = match of_environment("BRAID_IKE_SEED") {
        Some(seed) => seed..seed + 1,
        None => part * count..(part + 1) * count,
    };
    let failed: Vec<String> = all.filter_map(|seed| schedule(seed).err()).collect();
    assert!(failed.is_empty(), "{} schedules failed\n{}", failed.len(), failed.join("\n\n"));
}

#[test]
fn schedules_first_quarter() {
    schedules(0);
}

#[test]
fn schedules_second_quarter() {
    schedules(1);
}

#[test]
fn schedules_third_quarter() {
    schedules(2);
}

#[test]
fn schedules_last_quarter() {
    schedules(3);
}

#[test]
fn the_corpus_of_operations_is_replayed() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/operations");
    let mut files: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    let mut failed = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let original = std::fs::read(file).unwrap();
        failed.extend(play(&original).err());
        for variant in 0..VARIANTS {
            let mut rng = Seeded(variant << 16 | index as u64);
            let mut changed = original.clone();
            for _ in 0..=rng.below(3) {
                let at = rng.below(changed.len() as u64) as usize;
                changed[at] = rng.next() as u8;
            }
            println!("{}, variant {variant}: {changed:02x?}", file.display());
            failed.extend(play(&changed).err());
        }
    }
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n\n"));
}

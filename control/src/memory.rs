//! What control remembers over its own restarts, within one life of its launcher: which keys were
//! sent to which core, which tunnels are drained or yield, the outer paths as last seen, where peers were heard, and
//! that there is a plan.
//!
//! Pure but for [`load`], [`save`] and [`hash_seed`], which keep it in the run directory. Nothing
//! in it is secret.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use braid_api::BootId;
use serde::{Deserialize, Serialize};

use crate::{
    keys::{KeyDigest, KeyRecord},
    outer::Outer,
};

const FILE: &str = "control.json";
const SEED_FILE: &str = "hash-seed";
/// More than 65,536 tunnels need.
const MAX_FILE_LEN: u64 = 64 * 1024 * 1024;

/// The memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Memory {
    /// Manual keys that were sent to a core.
    pub keys: KeyRecord,
    /// Names of drained tunnels.
    pub drained: BTreeSet<String>,
    /// Names of tunnels that have failed and do not take their traffic back, with the priority of those that carry it.
    pub yielding: BTreeMap<String, i32>,
    /// Outer paths by tunnel name.
    pub outer: BTreeMap<String, Outer>,
    /// Where peers were last heard that move or were unknown, by tunnel name.
    pub heard: BTreeMap<String, IpAddr>,
    /// The launcher has put a plan in force.
    pub planned: bool,
    /// Names of the BGP neighbors with sessions.
    pub sessions: BTreeSet<String>,
}

impl Memory {
    /// Remembers nothing.
    pub fn new(salt: [u8; 32]) -> Self {
        let keys = KeyRecord::new(salt);
        Memory {
            keys,
            drained: BTreeSet::new(),
            yielding: BTreeMap::new(),
            outer: BTreeMap::new(),
            heard: BTreeMap::new(),
            planned: false,
            sessions: BTreeSet::new(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    launcher: String,
    salt: String,
    used_keys: BTreeMap<String, String>,
    drained: BTreeSet<String>,
    #[serde(default)]
    yielding: BTreeMap<String, i32>,
    outer: BTreeMap<String, Outer>,
    #[serde(default)]
    heard: BTreeMap<String, IpAddr>,
    #[serde(default)]
    planned: bool,
    #[serde(default)]
    sessions: BTreeSet<String>,
}

/// Reads what an earlier life under the same launcher left; `None` when there was none.
///
/// # Errors
/// The file is there and cannot be used: going on without it might install a key twice.
pub fn load(run_dir: &Path, launcher: &str) -> io::Result<Option<Memory>> {
    let mut text = String::new();
    match fs::File::open(run_dir.join(FILE)) {
        Ok(file) => file.take(MAX_FILE_LEN).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let file: File = serde_json::from_str(&text)?;
    if file.launcher != launcher {
        return Ok(None);
    }
    let used =
        file.used_keys.iter().map(|(digest, boot)| Some((KeyDigest(unhex(digest)?), BootId(unhex(boot)?))));
    let used: Option<BTreeMap<KeyDigest, BootId>> = used.collect();
    let (Some(used), Some(salt)) = (used, unhex(&file.salt)) else {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    };
    let keys = KeyRecord::restore(salt, used);
    Ok(Some(Memory {
        keys,
        drained: file.drained,
        yielding: file.yielding,
        outer: file.outer,
        heard: file.heard,
        planned: file.planned,
        sessions: file.sessions,
    }))
}

/// Writes it so that a reader finds the old or the new one whole, whichever process is killed.
///
/// # Errors
/// What the file system says; then nothing that depends on it may be done.
pub fn save(run_dir: &Path, launcher: &str, memory: &Memory) -> io::Result<()> {
    let used = memory.keys.used().iter().map(|(digest, boot)| (hex(&digest.0), hex(&boot.0)));
    let file = File {
        launcher: launcher.to_owned(),
        salt: hex(memory.keys.salt()),
        used_keys: used.collect(),
        drained: memory.drained.clone(),
        yielding: memory.yielding.clone(),
        outer: memory.outer.clone(),
        heard: memory.heard.clone(),
        planned: memory.planned,
        sessions: memory.sessions.clone(),
    };
    let text = serde_json::to_vec(&file)?;
    write_whole(&run_dir.join(FILE), &text)
}

/// The seed of the flow hash, made at the first start in this run directory.
///
/// # Errors
/// What the file system says.
pub fn hash_seed(run_dir: &Path, fresh: [u8; 16]) -> io::Result<[u8; 16]> {
    let path = run_dir.join(SEED_FILE);
    if let Ok(text) = fs::read_to_string(&path)
        && let Some(seed) = unhex(text.trim())
    {
        return Ok(seed);
    }
    write_whole(&path, hex(&fresh).as_bytes())?;
    Ok(fresh)
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    fs::rename(new, path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use braid_api::Suite;

    use super::*;
    use crate::outer::Blocked;

    fn directory(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("braid-memory-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn it_survives_control_and_ends_with_the_launcher() {
        let dir = directory("survives");
        let mut memory = Memory::new([7; 32]);
        let digest = memory.keys.digest(Suite::Aes128Gcm16, &[1; 20]);
        memory.keys.mark(digest, BootId([3; 16]));
        memory.drained.insert("a".to_owned());
        memory.planned = true;
        memory.sessions.insert("a".to_owned());
        memory.heard.insert("a".to_owned(), "192.0.2.7".parse().unwrap());
        let blocked = Some(Blocked::LinkDown { name: "eth1".to_owned() });
        memory.outer.insert("a".to_owned(), Outer { mtu: Some(1400), blocked, ..Outer::default() });
        save(&dir, "1:2", &memory).unwrap();
        assert_eq!(load(&dir, "1:2").unwrap(), Some(memory));
        assert_eq!(load(&dir, "1:3").unwrap(), None);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_broken_file_is_an_error_and_not_an_empty_memory() {
        let dir = directory("broken");
        fs::write(dir.join(FILE), "{").unwrap();
        assert!(load(&dir, "1:2").is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_seed_is_made_once() {
        let dir = directory("seed");
        assert_eq!(hash_seed(&dir, [1; 16]).unwrap(), [1; 16]);
        assert_eq!(hash_seed(&dir, [2; 16]).unwrap(), [1; 16]);
        fs::remove_dir_all(dir).unwrap();
    }
}

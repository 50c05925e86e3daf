//! What exists now, so that it can be removed: on drop, on Ctrl-C, and by the next run when this
//! one was killed.

use crate::{Error, Result, retry_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

/// Where iproute2 keeps named namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";
const PREFIX: &str = "bn";

#[derive(Default)]
struct Made {
    namespaces: BTreeSet<String>,
    directories: BTreeSet<PathBuf>,
    /// Set while a signal's clean-up runs: nothing may be made any more.
    closing: bool,
}

static MADE: Mutex<Made> =
    Mutex::new(Made { namespaces: BTreeSet::new(), directories: BTreeSet::new(), closing: false });
static SERIAL: AtomicU32 = AtomicU32::new(0);
static SIGNALS: Once = Once::new();

fn made() -> MutexGuard<'static, Made> {
    // A panicking test must not keep the others from cleaning up.
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name no other run and no other namespace of this run has.
pub(crate) fn unique_name(label: &str) -> String {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{serial}-{label}", std::process::id())
}

/// Enters a namespace that is about to be made, and starts watching for Ctrl-C.
pub(crate) fn register_namespace(name: &str) -> Result<()> {
    watch_signals();
    let mut made = made();
    if made.closing {
        return Err(Error::Usage("interrupted".to_owned()));
    }
    made.namespaces.insert(name.to_owned());
    Ok(())
}

/// Kills what runs in the namespace and removes it.
pub(crate) fn remove_namespace(name: &str) {
    kill_all_in(name);
    let _ =
        Command::new("ip").args(["netns", "del", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    made().namespaces.remove(name);
}

/// A fresh private directory, removed with everything else.
///
/// # Errors
/// When it cannot be made.
pub fn temp_dir(label: &str) -> Result<TempDir> {
    let path = std::env::temp_dir().join(unique_name(label));
    fs::create_dir(&path).map_err(Error::io(format!("cannot make {}", path.display())))?;
    made().directories.insert(path.clone());
    Ok(TempDir(path))
}

/// A directory that goes when its owner goes.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if remove_directory(&self.0) {
            made().directories.remove(&self.0);
        }
    }
}

/// Removes a directory with all that is in it; whether it is gone. What was just killed may still be inside a
/// call that makes a file there, so a refusal is not the last word.
fn remove_directory(path: &Path) -> bool {
    let gone = || match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Err(error.to_string()),
        other => Ok(other.is_ok()),
    };
    retry_until("an empty directory", Duration::from_secs(5), gone).unwrap_or(false)
}

/// Removes everything this process made and has not yet removed. Called on SIGINT, SIGTERM and
/// SIGHUP; a binary whose `main` ends by `std::process::exit` calls it first.
pub fn remove_all() {
    let (namespaces, directories) = {
        let made = made();
        (made.namespaces.clone(), made.directories.clone())
    };
    for name in &namespaces {
        remove_namespace(name);
    }
    for directory in &directories {
        remove_directory(directory);
    }
}

/// Makes SIGINT, SIGTERM and SIGHUP remove everything before the process ends with 128 + the
/// signal's number. Called by itself when the first namespace is made.
pub fn watch_signals() {
    SIGNALS.call_once(|| {
        let (ready, installed) = std::sync::mpsc::channel();
        std::thread::spawn(move || wait_for_signal(&ready));
        // Until the handlers stand, a Ctrl-C would leave behind what is made next.
        let _ = installed.recv_timeout(Duration::from_secs(5));
    });
}

fn wait_for_signal(ready: &std::sync::mpsc::Sender<()>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    let number = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).ok()?;
        let mut terminate = signal(SignalKind::terminate()).ok()?;
        let mut hangup = signal(SignalKind::hangup()).ok()?;
        let _ = ready.send(());
        Some(tokio::select! {
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
            _ = hangup.recv() => 1,
        })
    });
    if let Some(number) = number {
        made().closing = true;
        eprintln!("interrupted: removing namespaces and processes");
        remove_all();
        std::process::exit(128 + number);
    }
}

/// Removes namespaces and directories of runs whose process no longer exists.
pub fn reap_stale() {
    for name in names_in(Path::new(NETNS_DIR)) {
        if owner(&name).is_some_and(|pid| !alive(pid)) {
            remove_namespace(&name);
        }
    }
    let temp = std::env::temp_dir();
    for name in names_in(&temp) {
        if owner(&name).is_some_and(|pid| !alive(pid)) {
            remove_directory(&temp.join(name));
        }
    }
}

/// Namespaces and directories that this run made and that still exist.
pub(crate) fn leftovers() -> Vec<PathBuf> {
    let own = Some(std::process::id());
    let places = [PathBuf::from(NETNS_DIR), std::env::temp_dir()];
    let mut left: Vec<PathBuf> = Vec::new();
    for place in places {
        left.extend(names_in(&place).iter().filter(|name| owner(name) == own).map(|name| place.join(name)));
    }
    left
}

/// Processes in the namespace, by the namespace's inode: what forked away is found too.
pub(crate) fn processes_in(inode: u64) -> Vec<i32> {
    names_in(Path::new("/proc"))
        .into_iter()
        .filter_map(|name| name.parse::<i32>().ok())
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|net| net.ino() == inode))
        .collect()
}

fn kill_all_in(name: &str) {
    let Ok(namespace) = fs::metadata(Path::new(NETNS_DIR).join(name)) else {
        return;
    };
    // Again until none is left: a process may fork while the list is read.
    for _ in 0..250 {
        let pids = processes_in(namespace.ino());
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let others: Vec<i32> = pids.into_iter().filter(|&pid| pid != own).collect();
        if others.iter().all(|&pid| is_zombie(pid)) {
            return;
        }
        for pid in others {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(4));
    }
}

/// A dead child not yet waited for holds nothing any more.
fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_or(true, |stat| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')))
}

fn owner(name: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok()
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_owner() {
        let name = unique_name("client");
        assert_eq!(owner(&name), Some(std::process::id()));
        assert_ne!(name, unique_name("client"));
        assert_eq!(owner("bridge-1"), None);
        assert_eq!(owner("bn-1"), None);
    }

    #[test]
    fn a_temporary_directory_goes_with_its_owner() {
        let directory = temp_dir("unit").unwrap();
        let path = directory.path().to_owned();
        assert!(path.is_dir());
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_goes_although_somebody_still_writes_into_it() {
        let directory = temp_dir("written").unwrap();
        let path = directory.path().to_owned();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || {
                // As many as can be until the directory is gone, but not for ever.
                for number in 0..20_000 {
                    let written = fs::write(path.join(number.to_string()), "");
                    let _ = begun.send(());
                    if written.is_err() {
                        return;
                    }
                }
            })
        };
        has_begun.recv().unwrap();
        drop(directory);
        writer.join().unwrap();
        assert!(!path.exists());
    }
}

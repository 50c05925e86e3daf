//! The run directory: private, one owner, its sockets, and the record of what has to be undone.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::error::StartError;
use super::sysctl::Changed;

const LOCK: &str = "lock";
const RECORD: &str = "kernel.json";
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// What has to survive the launcher's own sudden death. Written before what it records is done.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    /// Boot and network namespace that the rest is about.
    pub(super) namespace: String,
    /// The slot, by which everything else in the kernel can be found.
    pub(super) slot: Option<u8>,
    /// Sysctls to put back.
    pub(super) sysctls: Vec<Changed>,
}

/// The directory, locked.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    made: bool,
    _lock: OwnedFd,
}

impl RunDir {
    /// Makes the directory if need be, and becomes its owner.
    ///
    /// # Errors
    /// Another braid owns it, it is open to others, or the system refuses.
    pub(super) fn open(path: &Path) -> Result<Self, StartError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| StartError::File { path, error }
        };
        let path = std::path::absolute(path).map_err(failed(path))?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed(parent))?;
        }
        let made = match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(&path)(error)),
        };
        make_private(&path)?;
        let lock = lock(&path)?;
        Ok(Self { path, made, _lock: lock })
    }

    /// Its absolute path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A listening socket in the directory; one left by a killed launcher is replaced.
    ///
    /// # Errors
    /// The path is too long for a socket's, or the system refuses.
    pub(super) fn listen(&self, name: &str, kind: SocketType) -> Result<OwnedFd, StartError> {
        let path = self.path.join(name);
        let bound = || -> io::Result<OwnedFd> {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        bound().map_err(|error| StartError::File { path: path.clone(), error })
    }

    /// Reads the record of an earlier run; an empty one if there is none for this boot and
    /// network namespace.
    pub(super) fn record(&self) -> Record {
        let namespace = namespace();
        let read = fs::read(self.path.join(RECORD)).ok();
        let record: Option<Record> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        record
            .filter(|record| record.namespace == namespace)
            .map(|mut record| {
                record.sysctls.retain(Changed::is_plausible);
                record
            })
            .unwrap_or_else(|| Record { namespace, ..Record::default() })
    }

    /// Where the record is.
    pub(super) fn record_path(&self) -> PathBuf {
        self.path.join(RECORD)
    }

    /// Replaces the record, at once or not at all.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn write_record(&self, record: &Record) -> io::Result<()> {
        let bytes = serde_json::to_vec(record)?;
        let new = self.path.join("kernel.json.new");
        fs::write(&new, bytes)?;
        fs::rename(&new, self.record_path())
    }

    /// Removes the record: nothing is left to undo.
    pub(super) fn remove_record(&self) {
        let _ = fs::remove_file(self.record_path());
    }

    /// Removes every socket and the lock, and the directory if we made it and it is empty.
    pub(super) fn close(self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "sock") {
                let _ = fs::remove_file(path);
            }
        }
        let _ = fs::remove_file(self.path.join(LOCK));
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

fn make_private(path: &Path) -> Result<(), StartError> {
    let failed = |error| StartError::File { path: path.to_owned(), error };
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(StartError::Open(path.to_owned()));
    }
    if metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    // An empty directory is there for us; one with content is somebody's, /tmp perhaps.
    let empty = fs::read_dir(path).map_err(failed)?.next().is_none();
    if !empty {
        return Err(StartError::Open(path.to_owned()));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)
}

fn lock(dir: &Path) -> Result<OwnedFd, StartError> {
    let path = dir.join(LOCK);
    let failed = |error: rustix::io::Errno| StartError::File { path: path.clone(), error: error.into() };
    loop {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let pid = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
                return Err(StartError::Busy { dir: dir.to_owned(), pid });
            }
            Err(error) => return Err(failed(error)),
        }
        // Its last owner may have removed the file between our open and our lock.
        let ours = rustix::fs::fstat(&file).map_err(failed)?;
        if rustix::fs::stat(&path).is_ok_and(|now| (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino)) {
            rustix::fs::ftruncate(&file, 0).map_err(failed)?;
            let pid = format!("{}\n", std::process::id());
            rustix::io::write(&file, pid.as_bytes()).map_err(failed)?;
            return Ok(file);
        }
    }
}

/// Names boot and network namespace.
fn namespace() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let net = fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
    format!("{} {}", boot.trim(), net.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("braid-run-dir-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_run_directory_has_one_owner() {
        let path = temporary("owner");
        let first = RunDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let second = RunDir::open(&path).unwrap_err();
        let text = second.to_string();
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        first.close();
        assert!(!path.exists());
        RunDir::open(&path).unwrap().close();
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_open_to_others_is_refused_unless_it_is_empty() {
        let path = temporary("open");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path.join("file"), "").unwrap();
        assert!(matches!(RunDir::open(&path), Err(StartError::Open(_))));
        fs::remove_file(path.join("file")).unwrap();
        RunDir::open(&path).unwrap().close();
        assert!(path.is_dir(), "not made by us, so not removed");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::remove_dir(&path).unwrap();
    }

    #[test]
    fn the_record_is_of_one_boot_and_namespace() {
        let path = temporary("record");
        let dir = RunDir::open(&path).unwrap();
        let mut record = dir.record();
        assert_eq!(record.slot, None);
        record.slot = Some(3);
        dir.write_record(&record).unwrap();
        assert_eq!(dir.record(), record);
        record.namespace = "another".to_owned();
        dir.write_record(&record).unwrap();
        assert_eq!(dir.record().slot, None);
        dir.remove_record();
        dir.close();
        assert!(!path.exists());
    }
}

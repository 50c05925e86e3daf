//! The file that takes the keys of IKE SAs, where the one who starts braid asks for it: rows of Wireshark's
//! table `ikev2_decryption_table`.
//!
//! Only its owner may read it, and that is us: anything else is refused before a key is written.

use core::fmt;
use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use braid_ike::SecretBytes;
use rustix::fs::{Mode, OFlags};

/// An open key log.
#[derive(Debug)]
pub struct KeyLog {
    path: PathBuf,
    /// None after it could not be written.
    file: Option<File>,
}

/// Why there is none.
#[derive(Debug)]
pub struct KeyLogError {
    path: PathBuf,
    fault: KeyLogFault,
}

/// What is wrong with the file.
#[derive(Debug)]
enum KeyLogFault {
    /// It cannot be opened, or made.
    Open(io::Error),
    /// It is a pipe, a device or the like.
    NotAFile,
    /// It belongs to another user.
    OfAnother,
    /// Its permissions let others in.
    Permissions(u32),
}

impl KeyLog {
    /// Opens a file to append to, or makes it, readable by nobody else.
    ///
    /// # Errors
    /// It cannot be opened, or others could read it.
    pub fn open(path: &Path) -> Result<Self, KeyLogError> {
        let failed = |fault| KeyLogError { path: path.to_owned(), fault };
        // A link may lead where somebody else wants the keys; a pipe without a reader would be waited for.
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed(KeyLogFault::Open(error.into())))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(|error| failed(KeyLogFault::Open(error)))?;
        if !metadata.is_file() {
            return Err(failed(KeyLogFault::NotAFile));
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(failed(KeyLogFault::OfAnother));
        }
        match metadata.mode() & 0o777 {
            mode if mode & 0o077 != 0 => Err(failed(KeyLogFault::Permissions(mode))),
            _ => Ok(KeyLog { path: path.to_owned(), file: Some(file) }),
        }
    }

    /// Appends rows. After a failure, which is logged, nothing more is written.
    pub fn write(&mut self, rows: &[SecretBytes]) {
        let Some(file) = self.file.as_mut() else { return };
        if let Err(error) = rows.iter().try_for_each(|row| file.write_all(row.expose())) {
            tracing::error!("{}: no more keys are written: {error}", self.path.display());
            self.file = None;
        }
    }
}

/// The warning of the start.
impl fmt::Display for KeyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "--ike-key-log: the keys of every IKE SA are written to {}: whoever has them reads and forges IKE",
            self.path.display()
        )
    }
}

impl fmt::Display for KeyLogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--ike-key-log {}: ", self.path.display())?;
        match &self.fault {
            KeyLogFault::Open(error) => write!(f, "cannot open it: {error}"),
            KeyLogFault::NotAFile => write!(f, "not a regular file: name one, or one that is not there yet"),
            KeyLogFault::OfAnother => write!(f, "belongs to another user: name a file that is not there yet"),
            KeyLogFault::Permissions(mode) => {
                write!(f, "others may use it (mode {mode:04o}): chmod 600 it, or name another")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn temp_dir(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("braid-key-log-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn a_file_is_made_for_us_alone_and_appended_to() {
        let dir = temp_dir("append");
        let path = dir.join("keys");
        for row in ["one\n", "two\n"] {
            let mut log = KeyLog::open(&path).unwrap();
            log.write(&[SecretBytes::from_slice(row.as_bytes())]);
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_others_may_read_is_refused() {
        let dir = temp_dir("refuse");
        let path = dir.join("keys");
        fs::write(&path, "").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = KeyLog::open(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(KeyLog::open(&path).is_ok());
        std::os::unix::fs::symlink(&path, dir.join("link")).unwrap();
        assert!(KeyLog::open(&dir.join("link")).is_err());
        assert!(KeyLog::open(&dir.join("nowhere/keys")).is_err());
        let device = KeyLog::open(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(device.contains("not a regular file"), "{device}");
        fs::remove_dir_all(dir).unwrap();
    }
}

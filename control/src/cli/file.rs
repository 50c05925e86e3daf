//! Files that are written whole or not at all, and can be put back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// A file that was written, with what it held before. Only its owner may read it.
pub(super) struct Written<'a> {
    path: &'a Path,
    before: Option<Zeroizing<Vec<u8>>>,
}

impl<'a> Written<'a> {
    pub(super) fn new(path: &'a Path, bytes: &[u8]) -> io::Result<Self> {
        let before = match fs::metadata(path) {
            // A device or a pipe would be replaced by a file of its name.
            Ok(metadata) if !metadata.is_file() => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            Ok(_) => Some(Zeroizing::new(fs::read(path)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let written = Written { path, before };
        match replace(path, bytes) {
            Ok(()) => Ok(written),
            Err(error) => {
                let _ = written.undo();
                Err(error)
            }
        }
    }

    /// The file is as it was.
    pub(super) fn undo(self) -> io::Result<()> {
        match self.before {
            Some(bytes) => replace(self.path, &bytes),
            None => match fs::remove_file(self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            },
        }
    }
}

/// Whole or not at all, whoever is killed.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let _ = fs::remove_file(&beside);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    // So that a power cut does not let in again whoever was removed.
    File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?
        .sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_taken_back() {
        let directory = std::env::temp_dir().join(format!("braid-file-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("a");
        let there = || fs::read_dir(&directory).unwrap().count();
        Written::new(&path, b"new").unwrap().undo().unwrap();
        assert_eq!(there(), 0);
        fs::write(&path, "old").unwrap();
        let written = Written::new(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        written.undo().unwrap();
        assert_eq!((fs::read(&path).unwrap(), there()), (b"old".to_vec(), 1));
        // Neither is made anew where it is something else, nor left half.
        for wrong in [&directory, Path::new("/dev/null"), &directory.join("none/a")] {
            assert!(Written::new(wrong, b"new").is_err(), "{}", wrong.display());
        }
        assert_eq!(there(), 1);
        fs::remove_dir_all(directory).unwrap();
    }
}

//! The configuration that is in force, for control's next life: a memory file with what its files held when they were
//! accepted, in the launcher's hands. It is taken where what stands on the disk by then cannot be applied. Like those
//! files it holds keys; unlike control's own copies of them it is not wiped when it is freed.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
};
use zeroize::Zeroizing;

use crate::config::Files;

/// Longest copy, in bytes.
const MAX_LEN: u64 = 1024 * 1024 * 1024;

/// Files, and what the machine had when braid started.
#[derive(Debug)]
pub(crate) struct InForce {
    /// The files.
    pub(crate) files: Files,
    /// Forwarding threads, where the configuration does not say.
    pub(crate) workers: u32,
}

impl InForce {
    /// Writes it into a memory file that nobody can change.
    ///
    /// # Errors
    /// There is no memory file to be had, or it would be too long.
    pub(crate) fn keep(&self) -> io::Result<OwnedFd> {
        let create = |more| {
            rustix::fs::memfd_create("braid-in-force", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | more)
        };
        let made = match create(MemfdFlags::NOEXEC_SEAL) {
            // Before Linux 6.3.
            Err(Errno::INVAL) => create(MemfdFlags::empty()),
            made => made,
        };
        let mut file = File::from(made?);
        file.write_all(&self.workers.to_le_bytes())?;
        self.files.write(&mut file)?;
        if file.metadata()?.len() > MAX_LEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        rustix::fs::fcntl_add_seals(&file, seals() | SealFlags::SEAL)?;
        Ok(file.into())
    }

    /// As [`InForce::keep`]; without it the next life needs files that can be applied.
    pub(crate) fn keep_or_warn(&self) -> Option<OwnedFd> {
        let kept = self.keep();
        kept.map_err(|error| tracing::warn!("no copy is kept of the configuration in force: {error}")).ok()
    }

    /// Reads what [`InForce::keep`] has written.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn read(file: impl AsFd) -> io::Result<Self> {
        let file = File::from(file.as_fd().try_clone_to_owned()?);
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let len = file.metadata()?.len();
        if !is_sealed(&file) || len > MAX_LEN {
            return Err(invalid());
        }
        let mut bytes = Zeroizing::new(vec![0; usize::try_from(len).map_err(|_| invalid())?]);
        file.read_exact_at(&mut bytes, 0)?;
        let (workers, files) = bytes.split_first_chunk::<4>().ok_or_else(invalid)?;
        Ok(InForce { workers: u32::from_le_bytes(*workers), files: Files::copied(files)? })
    }
}

fn seals() -> SealFlags {
    SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK
}

/// Whether it is a memory file that nobody can change.
pub(crate) fn is_sealed(file: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|found| found.contains(seals()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

    use super::*;
    use crate::config;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("braid-in-force-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Directory(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const CONFIG: &str = r#"
        [gateway]
        name = "a"
        [[tunnel]]
        name = "t"
        local = "192.0.2.1"
        remote = "192.0.2.2"
        [tunnel.ike]
        psk-file = "t.psk"
        [clients]
        network = "10.8.0.0/24"
        local = "192.0.2.1"
        private-key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
        reach = ["10.1.0.0/16"]
    "#;

    #[test]
    fn what_was_accepted_is_read_again_whatever_has_become_of_the_files() {
        let directory = Directory::new("accepted");
        let file = directory.write("braid.toml", CONFIG);
        let secret = directory.write("t.psk", "a long secret");
        let mut files = Files::default();
        let accepted = config::load_from(&mut files, &file).unwrap();
        let kept = InForce { files, workers: 3 }.keep().unwrap();

        directory.write("braid.toml", "[gateway");
        fs::remove_file(&secret).unwrap();
        // No clients were there, and it stays so.
        let clients = directory.write("clients.toml", "[[client]]");
        assert!(config::load(&file).is_err());
        // Twice, since a life may follow another.
        for _ in 0..2 {
            let mut again = InForce::read(&kept).unwrap();
            assert_eq!(again.workers, 3);
            assert_eq!(config::load_from(&mut again.files, &file).unwrap(), accepted);
        }
        assert!(clients.exists() && !secret.exists());
    }

    #[test]
    fn a_file_that_two_tunnels_name_is_read_once() {
        let directory = Directory::new("once");
        let secret = directory.write("t.psk", "a long secret");
        let mut files = Files::default();
        let first = files.read(&secret, 100).unwrap();
        directory.write("t.psk", "another");
        assert!(std::sync::Arc::ptr_eq(&first, &files.read(&secret, 100).unwrap()));
        fs::remove_file(&secret).unwrap();
        assert!(std::sync::Arc::ptr_eq(&first, &files.read(&secret, 100).unwrap()));
    }

    #[test]
    fn permissions_are_kept_too() {
        let directory = Directory::new("permissions");
        let file = directory.write("braid.toml", CONFIG);
        let secret = directory.write("t.psk", "a long secret");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
        let mut files = Files::default();
        let errors = config::load_from(&mut files, &file).unwrap_err();
        let mut copied = InForce::read(InForce { files, workers: 1 }.keep().unwrap()).unwrap().files;
        assert_eq!(config::load_from(&mut copied, &file).unwrap_err(), errors);
    }

    #[test]
    fn a_kept_configuration_cannot_be_changed_and_nothing_else_is_taken_for_one() {
        let directory = Directory::new("sealed");
        let file = directory.write("braid.toml", CONFIG);
        directory.write("t.psk", "a long secret");
        let mut files = Files::default();
        config::load_from(&mut files, &file).unwrap();
        let mut whole = Vec::new();
        files.write(&mut whole).unwrap();
        let kept = File::from(InForce { files, workers: 1 }.keep().unwrap());
        assert!(kept.write_at(b"x", 0).is_err());
        assert!(kept.set_len(0).is_err());
        for len in 0..whole.len() {
            let Ok(mut part) = Files::copied(&whole[..len]) else { continue };
            // Whole fields, but not all of them: the last is the secret.
            assert!(config::load_from(&mut part, &file).is_err(), "{len} of {} bytes", whole.len());
        }
        assert!(InForce::read(File::open("/dev/null").unwrap()).is_err());
        assert!(InForce::read(File::open(&file).unwrap()).is_err());
    }
}

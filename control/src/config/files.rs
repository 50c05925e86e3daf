//! Where a configuration's files come from: the file system, or a copy of what was read from there before.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use zeroize::Zeroizing;

/// What stands in a file.
pub(crate) struct Contents {
    /// Its bytes; wiped when nobody has them any more.
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    /// Its permission bits.
    pub(crate) mode: u32,
}

/// The files of one reading of a configuration.
#[derive(Default)]
pub struct Files {
    /// They are all there is: the file system is not asked.
    is_copy: bool,
    /// As they were read; `None` for one that was not there.
    read: BTreeMap<PathBuf, Option<Arc<Contents>>>,
}

impl Files {
    /// Those that [`Files::write`] has written.
    ///
    /// # Errors
    /// `InvalidData` for what it has not.
    pub fn copied(bytes: &[u8]) -> io::Result<Self> {
        let mut rest = Fields(bytes);
        let mut read = BTreeMap::new();
        while !rest.0.is_empty() {
            let path = PathBuf::from(OsStr::from_bytes(rest.bytes()?));
            let contents = match rest.number()? {
                0 => None,
                _ => {
                    let mode = u32::try_from(rest.number()?).map_err(|_| io::ErrorKind::InvalidData)?;
                    Some(Arc::new(Contents { bytes: Zeroizing::new(rest.bytes()?.to_vec()), mode }))
                }
            };
            read.insert(path, contents);
        }
        Ok(Files { is_copy: true, read })
    }

    /// Writes all that was read.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut field = |bytes: &[u8]| {
            to.write_all(&(bytes.len() as u64).to_le_bytes())?;
            to.write_all(bytes)
        };
        for (path, contents) in &self.read {
            field(path.as_os_str().as_bytes())?;
            match contents {
                None => field(&[])?,
                Some(contents) => {
                    field(&[1])?;
                    field(&contents.mode.to_le_bytes())?;
                    field(&contents.bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Reads a file of at most `limit` bytes, each but once.
    ///
    /// # Errors
    /// The system's, `FileTooLarge`, or `NotFound` for one that the copy does not have.
    pub(crate) fn read(&mut self, path: &Path, limit: u64) -> io::Result<Arc<Contents>> {
        match self.read.get(path) {
            Some(Some(contents)) if contents.bytes.len() as u64 > limit => {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            Some(Some(contents)) => return Ok(Arc::clone(contents)),
            Some(None) => return Err(io::ErrorKind::NotFound.into()),
            None if self.is_copy => return Err(io::ErrorKind::NotFound.into()),
            None => {}
        }
        let contents = read(path, limit);
        match &contents {
            Ok(contents) => drop(self.read.insert(path.to_owned(), Some(Arc::clone(contents)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.read.insert(path.to_owned(), None);
            }
            Err(_) => {}
        }
        contents
    }
}

impl core::fmt::Debug for Files {
    /// Names only: what stands in them is secret.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self.read.keys()).finish()
    }
}

fn read(path: &Path, limit: u64) -> io::Result<Arc<Contents>> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.len() > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    // Sized first: a growing buffer would leave copies of keys in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 1));
    Read::by_ref(&mut file).take(limit).read_to_end(&mut bytes)?;
    Ok(Arc::new(Contents { bytes, mode: metadata.mode() }))
}

/// What [`Files::write`] writes: fields behind their lengths. A serializer would leave unwiped copies of keys in the
/// buffers that it grows.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let (len, rest) = self.0.split_first_chunk::<8>().ok_or_else(invalid)?;
        let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| invalid())?;
        let (bytes, rest) = rest.split_at_checked(len).ok_or_else(invalid)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u64> {
        let bytes = self.bytes()?;
        let mut number = [0; 8];
        let place = number.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidData)?;
        place.copy_from_slice(bytes);
        Ok(u64::from_le_bytes(number))
    }
}

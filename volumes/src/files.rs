//! Containers and anchors in files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, OFlags, flock};
use sha2::{Digest as _, Sha256};

use crate::anchor::{Anchor, AnchorError, Mark};
use crate::block::array;
use crate::inode::Time;
use crate::keys::{Fresh, VolumeId};
use crate::secret::Secret;
use crate::store::{Store, StoreError};

/// A container in a file, or on a block device.
#[derive(Debug)]
pub struct FileStore {
    file: File,
    writable: bool,
}

impl FileStore {
    /// Opens a container. Who writes has it alone; readers share it.
    ///
    /// # Errors
    /// What the system says; `WouldBlock` if another process has it open.
    pub fn open(path: &Path, writable: bool) -> io::Result<Self> {
        Self::locked(OpenOptions::new().read(true).write(writable), path, writable)
    }

    /// Makes a file for a container, with mode 0600, where none is.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        Self::locked(
            options.read(true).write(true).create_new(true).mode(0o600),
            path,
            true,
        )
    }

    fn locked(options: &mut OpenOptions, path: &Path, writable: bool) -> io::Result<Self> {
        let file = options.custom_flags(OFlags::NOCTTY.bits() as i32).open(path)?;
        let kind = if writable {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        flock(&file, kind)?;
        Ok(Self { file, writable })
    }
}

fn store_error(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreError::Full
        }
        _ => StoreError::Refused(error.raw_os_error().unwrap_or(0)),
    }
}

impl Store for FileStore {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.file
            .read_exact_at(out, offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => StoreError::End {
                    end: offset.saturating_add(out.len() as u64),
                },
                _ => store_error(error),
            })
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        if !self.writable {
            return Err(StoreError::ReadOnly);
        }
        self.file.write_all_at(bytes, offset).map_err(store_error)
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(store_error)
    }

    fn len(&mut self) -> Result<u64, StoreError> {
        self.file.metadata().map(|m| m.len()).map_err(store_error)
    }

    fn set_len(&mut self, len: u64) -> Result<(), StoreError> {
        if !self.writable {
            return Err(StoreError::ReadOnly);
        }
        self.file.set_len(len).map_err(store_error)
    }
}

const ANCHOR_MARK: &[u8; 8] = b"CLOAKANC";
const ANCHOR: usize = 8 + 16 + 8 + 32 + 32;

/// An anchor in a file. It helps only as far as the file is out of reach of who might set the volume back: on another
/// disk, in a folder that the OS service can't write.
///
/// 96 bytes: mark `CLOAKANC`, volume (16), counter (8, little-endian), digest of the superblock (32), SHA-256 of all
/// that (32) against torn writes. It is replaced as a whole, by renaming.
#[derive(Debug)]
pub struct FileAnchor {
    path: PathBuf,
    /// It may be made with the first mark.
    may_begin: bool,
}

impl FileAnchor {
    /// The anchor of a volume that was used with it before. A file that is missing is an error.
    #[must_use]
    pub fn existing(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            may_begin: false,
        }
    }

    /// An anchor for a new volume, or for one that is to be trusted as it is now.
    #[must_use]
    pub fn begin(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            may_begin: true,
        }
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let new = PathBuf::from(name);
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        sync_folder(&self.path)
    }
}

/// Makes a file's name durable.
///
/// # Errors
/// What the system says.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn anchor_error(error: &io::Error) -> AnchorError {
    AnchorError::Unavailable(error.raw_os_error().unwrap_or(0))
}

impl Anchor for FileAnchor {
    fn last(&mut self) -> Result<Option<Mark>, AnchorError> {
        let mut bytes = Vec::with_capacity(ANCHOR + 1);
        match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return if self.may_begin {
                    Ok(None)
                } else {
                    Err(AnchorError::Unknown)
                };
            }
            Err(error) => return Err(anchor_error(&error)),
            Ok(file) => file
                .take(ANCHOR as u64 + 1)
                .read_to_end(&mut bytes)
                .map_err(|e| anchor_error(&e))?,
        };
        let good = bytes.len() == ANCHOR
            && &bytes[..8] == ANCHOR_MARK
            && <[u8; 32]>::from(Sha256::digest(&bytes[..ANCHOR - 32])) == bytes[ANCHOR - 32..];
        if !good {
            return Err(AnchorError::Damaged);
        }
        Ok(Some(Mark {
            volume: VolumeId(array(&bytes[8..24])),
            counter: u64::from_le_bytes(array(&bytes[24..32])),
            root: array(&bytes[32..64]),
        }))
    }

    fn advance(&mut self, mark: &Mark) -> Result<(), AnchorError> {
        let mut bytes = [0; ANCHOR];
        bytes[..8].copy_from_slice(ANCHOR_MARK);
        bytes[8..24].copy_from_slice(&mark.volume.0);
        bytes[24..32].copy_from_slice(&mark.counter.to_le_bytes());
        bytes[32..64].copy_from_slice(&mark.root);
        let sum = Sha256::digest(&bytes[..ANCHOR - 32]);
        bytes[ANCHOR - 32..].copy_from_slice(&sum);
        self.replace(&bytes).map_err(|error| anchor_error(&error))
    }
}

/// The system's clock.
#[must_use]
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time {
        seconds: since.as_secs() as i64,
        nanoseconds: since.subsec_nanos(),
    }
}

/// Random bytes from the system.
///
/// # Errors
/// What the system says.
pub fn fresh() -> io::Result<Fresh> {
    Ok(Fresh(**Secret::random()?.into_bytes()))
}

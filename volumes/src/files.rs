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
/// Where the second record lies, if there is one: in a sector of its own, so that writing one leaves the other whole.
const SECOND: usize = 512;

fn anchor_record(mark: &Mark) -> [u8; ANCHOR] {
    let mut bytes = [0; ANCHOR];
    bytes[..8].copy_from_slice(ANCHOR_MARK);
    bytes[8..24].copy_from_slice(&mark.volume.0);
    bytes[24..32].copy_from_slice(&mark.counter.to_le_bytes());
    bytes[32..64].copy_from_slice(&mark.root);
    let sum = Sha256::digest(&bytes[..ANCHOR - 32]);
    bytes[ANCHOR - 32..].copy_from_slice(&sum);
    bytes
}

fn parse_anchor_record(bytes: &[u8]) -> Option<Mark> {
    let record = bytes.get(..ANCHOR)?;
    let good = &record[..8] == ANCHOR_MARK
        && <[u8; 32]>::from(Sha256::digest(&record[..ANCHOR - 32])) == record[ANCHOR - 32..];
    good.then(|| Mark {
        volume: VolumeId(array(&record[8..24])),
        counter: u64::from_le_bytes(array(&record[24..32])),
        root: array(&record[32..64]),
    })
}

/// The newest record of an anchor's file, and which of the two it is. One that was torn by a crash is not good, and
/// the other one is then that of the commit before.
fn newest_anchor_record(bytes: &[u8]) -> Result<(usize, Mark), AnchorError> {
    let first = parse_anchor_record(bytes);
    let second = bytes.get(SECOND..).and_then(parse_anchor_record);
    if bytes.len() != ANCHOR && bytes.len() != SECOND + ANCHOR {
        return Err(AnchorError::Damaged);
    }
    match (first, second) {
        (Some(first), Some(second)) if first.volume != second.volume => Err(AnchorError::Damaged),
        (Some(first), Some(second)) if second.counter > first.counter => Ok((1, second)),
        (Some(first), _) => Ok((0, first)),
        (None, Some(second)) => Ok((1, second)),
        (None, None) => Err(AnchorError::Damaged),
    }
}

fn read_anchor(file: &File) -> Result<(usize, Mark), AnchorError> {
    let mut bytes = Vec::with_capacity(SECOND + ANCHOR + 1);
    file.take((SECOND + ANCHOR) as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| anchor_error(&e))?;
    newest_anchor_record(&bytes)
}

/// An anchor file that is held open, for who can open no file any more (the monitor, once the VM runs). Nobody else
/// holds it meanwhile. Its two records are written by turns, in place.
#[derive(Debug)]
pub struct HeldAnchor {
    file: File,
    /// The newest record and which of the two it is; `None` when it begins.
    newest: Option<(usize, Mark)>,
}

impl HeldAnchor {
    /// Opens an anchor's file. A missing one is an error, unless the anchor begins (`begins`): it is then made.
    ///
    /// # Errors
    /// [`AnchorError`]; `Unavailable(EWOULDBLOCK)` if another process holds it.
    pub fn open(path: &Path, begins: bool) -> Result<Self, AnchorError> {
        let open = |new: bool| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(new).mode(0o600);
            options.custom_flags(OFlags::NOCTTY.bits() as i32).open(path)
        };
        let (file, new) = match open(false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && begins => {
                let file = open(true).and_then(|file| sync_folder(path).map(|()| file));
                (file.map_err(|e| anchor_error(&e))?, true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(AnchorError::Unknown),
            other => (other.map_err(|e| anchor_error(&e))?, false),
        };
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| AnchorError::Unavailable(e.raw_os_error()))?;
        // An empty one is of a run that began it and never came to a commit.
        let empty = new || begins && file.metadata().map_err(|e| anchor_error(&e))?.len() == 0;
        let newest = if empty { None } else { Some(read_anchor(&file)?) };
        Ok(Self { file, newest })
    }

    /// What it saw last; `None` when it begins.
    #[must_use]
    pub fn seen(&self) -> Option<Mark> {
        self.newest.map(|(_, mark)| mark)
    }
}

impl Anchor for HeldAnchor {
    fn last(&mut self) -> Result<Option<Mark>, AnchorError> {
        Ok(self.seen())
    }

    /// Refuses (EINVAL) what is not newer, or of another volume, whoever asks.
    fn advance(&mut self, mark: &Mark) -> Result<(), AnchorError> {
        let record = match self.newest {
            Some((_, seen)) if seen == *mark => return Ok(()),
            Some((_, seen)) if seen.volume != mark.volume || seen.counter >= mark.counter => {
                return Err(AnchorError::Unavailable(rustix::io::Errno::INVAL.raw_os_error()));
            }
            Some((record, _)) => 1 - record,
            None => 0,
        };
        let written = self
            .file
            .write_all_at(&anchor_record(mark), (record * SECOND) as u64)
            .and_then(|()| self.file.sync_data());
        written.map_err(|e| anchor_error(&e))?;
        self.newest = Some((record, *mark));
        Ok(())
    }
}

/// An anchor in a file. It helps only as far as the file is out of reach of who might set the volume back: on another
/// disk, in a folder that the OS service can't write.
///
/// A record has 96 bytes: mark `CLOAKANC`, volume (16), counter (8, little-endian), digest of the superblock (32),
/// SHA-256 of all that (32) against torn writes. The file has one at byte 0, and a second one at byte 512 where a
/// [`HeldAnchor`] wrote it; the one with the larger counter counts. This type replaces the file as a whole, by renaming.
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
        match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.may_begin {
                    Ok(None)
                } else {
                    Err(AnchorError::Unknown)
                }
            }
            Err(error) => Err(anchor_error(&error)),
            Ok(file) => read_anchor(&file).map(|(_, mark)| Some(mark)),
        }
    }

    fn advance(&mut self, mark: &Mark) -> Result<(), AnchorError> {
        self.replace(&anchor_record(mark))
            .map_err(|error| anchor_error(&error))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(counter: u64) -> Mark {
        Mark {
            volume: VolumeId([3; 16]),
            counter,
            root: [counter as u8; 32],
        }
    }

    #[test]
    fn a_held_anchor_goes_forward_only_and_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("anchor");
        assert_eq!(HeldAnchor::open(&path, false).unwrap_err(), AnchorError::Unknown);
        let mut held = HeldAnchor::open(&path, true).unwrap();
        assert_eq!(held.seen(), None);
        for counter in 1..6 {
            held.advance(&mark(counter)).unwrap();
            assert_eq!(FileAnchor::existing(&path).last(), Ok(Some(mark(counter))));
        }
        for refused in [
            mark(4),
            mark(0),
            Mark {
                root: [9; 32],
                ..mark(5)
            },
            Mark {
                volume: VolumeId([4; 16]),
                ..mark(9)
            },
        ] {
            assert!(held.advance(&refused).is_err(), "{refused:?}");
        }
        held.advance(&mark(5)).unwrap();
        assert!(
            matches!(HeldAnchor::open(&path, false), Err(AnchorError::Unavailable(_))),
            "two hold it"
        );
        drop(held);
        assert_eq!(HeldAnchor::open(&path, false).unwrap().seen(), Some(mark(5)));
        // The other kind of writer leaves one record, which is read as well.
        FileAnchor::existing(&path).advance(&mark(6)).unwrap();
        let mut held = HeldAnchor::open(&path, false).unwrap();
        assert_eq!(held.seen(), Some(mark(6)));
        held.advance(&mark(7)).unwrap();
        assert_eq!(FileAnchor::existing(&path).last(), Ok(Some(mark(7))));
    }

    #[test]
    fn a_torn_record_leaves_the_one_before_and_two_torn_ones_are_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("anchor");
        let mut held = HeldAnchor::open(&path, true).unwrap();
        held.advance(&mark(1)).unwrap();
        held.advance(&mark(2)).unwrap();
        drop(held);
        let whole = std::fs::read(&path).unwrap();
        for torn in [SECOND, SECOND + 40, SECOND + ANCHOR - 1] {
            let mut bytes = whole.clone();
            bytes[torn] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(FileAnchor::existing(&path).last(), Ok(Some(mark(1))));
            bytes[torn - SECOND] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(FileAnchor::existing(&path).last(), Err(AnchorError::Damaged));
        }
        for cut in [0, 1, ANCHOR - 1, ANCHOR + 1, SECOND, SECOND + ANCHOR - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(
                FileAnchor::existing(&path).last(),
                Err(AnchorError::Damaged),
                "{cut}"
            );
        }
    }
}

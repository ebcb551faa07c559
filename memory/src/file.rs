//! A file of the OS side that holds ciphertext, each page at its guest-physical address: the OS view (a memfd, so
//! that touching a page that is not there can be seen) or a swap file.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};

use crate::error::{MemoryError, Step};
use crate::page::{PAGE_SIZE, Page, PageBytes};
use crate::sides::{Run, Store, StoreError};

/// What becomes of stale ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// A hole is made, so that the next touch asks for the page as it is then. For views.
    Removed,
    /// It stays until it is written over: it never opens, as versions only grow. For swap files.
    Left,
}

/// Ciphertext in a file.
#[derive(Debug)]
pub struct FileStore {
    file: File,
    len: u64,
    stale: Stale,
}

impl FileStore {
    /// An OS view of that many pages: a memfd that another process can map.
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    pub fn view(pages: u64) -> Result<Self, MemoryError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create(c"cloak-view", flags).step("making the OS view (memfd_create)")?;
        let own = Self::sized(File::from(fd), pages, Stale::Removed)?;
        // Its size is not the OS side's to change.
        fcntl_add_seals(&own.file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .step("fixing the size of the OS view (F_ADD_SEALS)")?;
        Ok(own)
    }

    /// A swap file of that many pages. What was in it is gone.
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    pub fn swap(path: &Path, pages: u64) -> Result<Self, MemoryError> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .step("opening the swap file")?;
        Self::sized(file, pages, Stale::Left)
    }

    fn sized(file: File, pages: u64, stale: Stale) -> Result<Self, MemoryError> {
        let len = pages * PAGE_SIZE as u64;
        ftruncate(&file, len).step("giving the OS side's file its size (ftruncate)")?;
        Ok(Self { file, len, stale })
    }

    /// A second descriptor, to hand to the OS side.
    ///
    /// # Errors
    /// [`MemoryError::Os`].
    pub fn share(&self) -> Result<OwnedFd, MemoryError> {
        self.file
            .as_fd()
            .try_clone_to_owned()
            .step("sharing the OS side's file")
    }

    /// Pages that the file has room for.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.len / PAGE_SIZE as u64
    }
}

impl AsFd for FileStore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Store for FileStore {
    fn put(&self, first: Page, ciphertext: &[PageBytes]) -> Result<(), StoreError> {
        Ok(self.file.write_all_at(ciphertext.as_flattened(), first.gpa())?)
    }

    fn fetch(&self, first: Page, out: &mut [PageBytes]) -> Result<(), StoreError> {
        // A file that the OS side made longer harms nothing, but it says that someone is at work.
        let found = self.file.metadata()?.len();
        if found != self.len {
            return Err(StoreError::Length {
                expected: self.len,
                found,
            });
        }
        match self.file.read_exact_at(out.as_flattened_mut(), first.gpa()) {
            // Cut off since.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(StoreError::Length {
                expected: self.len,
                found: self.file.metadata()?.len(),
            }),
            other => Ok(other?),
        }
    }

    fn forget(&self, run: Run) -> Result<(), StoreError> {
        if self.stale == Stale::Left {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, run.first.gpa(), run.count * PAGE_SIZE as u64)
            .map_err(|e| StoreError::Io(e.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64) -> Page {
        Page::new(number).unwrap()
    }

    #[test]
    fn pages_lie_at_their_addresses() {
        let store = FileStore::view(8).unwrap();
        store.put(page(3), &[[1; 4096], [2; 4096]]).unwrap();
        let mut out = [[9; 4096]; 3];
        store.fetch(page(2), &mut out).unwrap();
        assert_eq!(out, [[0; 4096], [1; 4096], [2; 4096]]);
        store.forget(Run::one(page(3))).unwrap();
        store.fetch(page(3), &mut out[..1]).unwrap();
        assert_eq!(out[0], [0; 4096]);
    }

    #[test]
    fn another_length_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swap");
        let store = FileStore::swap(&path, 4).unwrap();
        store.put(page(1), &[[7; 4096]]).unwrap();
        let other = File::options().write(true).open(&path).unwrap();
        for wrong in [0, 4096, 16383, 16385, 1 << 30] {
            other.set_len(wrong).unwrap();
            let error = store.fetch(page(1), &mut [[0; 4096]]).unwrap_err();
            assert!(
                matches!(error, StoreError::Length { expected: 16384, found } if found == wrong),
                "{error}"
            );
        }
    }

    #[test]
    fn a_swap_file_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swap");
        drop(FileStore::swap(&path, 4).unwrap());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

//! What path look-ups of a process start from.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use spin::Mutex;

/// Working directory, root and file-creation mask of a process.
#[derive(Debug)]
pub struct FsContext {
    /// Working directory, absolute and normalised, in the guest's name space.
    pub cwd: Mutex<Vec<u8>>,
    /// Root directory (`chroot`), absolute and normalised.
    pub root: Mutex<Vec<u8>>,
    /// File-creation mask.
    pub umask: AtomicU32,
}

impl Default for FsContext {
    fn default() -> Self {
        Self {
            cwd: Mutex::new(b"/".to_vec()),
            root: Mutex::new(b"/".to_vec()),
            umask: AtomicU32::new(0o022),
        }
    }
}

impl FsContext {
    /// The same, for another process.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self {
            cwd: Mutex::new(self.cwd.lock().clone()),
            root: Mutex::new(self.root.lock().clone()),
            umask: AtomicU32::new(self.umask.load(Ordering::Relaxed)),
        }
    }
}

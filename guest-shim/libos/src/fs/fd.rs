//! Descriptors: a table of numbers, each with an open file.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use spin::Mutex;

use super::File;
use crate::errno::{Errno, SysResult};
use crate::mem;
use crate::process::Process;

/// `O_NONBLOCK`.
pub const O_NONBLOCK: u32 = 0o4000;
/// `O_APPEND`.
pub const O_APPEND: u32 = 0o2000;
/// `O_CLOEXEC`.
pub const O_CLOEXEC: u32 = 0o2_000_000;
/// `O_PATH`.
pub const O_PATH: u32 = 0o10_000_000;

/// An open file description: what descriptors that were duplicated share.
pub struct OpenFile {
    /// What is open.
    pub file: Arc<dyn File>,
    flags: AtomicU32,
    /// Position in bytes. Held while a read or write moves it, so it must be a lock that may park.
    pub position: PositionLock,
    /// Absolute path under which it was opened, for `/proc/self/fd` and relative look-ups.
    pub path: Mutex<Vec<u8>>,
    /// The sets that watch it.
    pub watchers: super::epoll::Watchers,
}

impl core::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("OpenFile")
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}

/// A file position with a parking lock around it.
#[derive(Debug, Default)]
pub struct PositionLock {
    held: AtomicU32,
    value: core::sync::atomic::AtomicU64,
    queue: crate::sched::WaitQueue,
}

impl PositionLock {
    /// Runs `work` on the position; others wait meanwhile.
    pub fn with<R>(&self, work: impl FnOnce(&mut u64) -> R) -> R {
        self.queue
            .wait_while(|| self.held.swap(1, Ordering::Acquire) != 0);
        let mut value = self.value.load(Ordering::Relaxed);
        let result = work(&mut value);
        self.value.store(value, Ordering::Relaxed);
        self.held.store(0, Ordering::Release);
        self.queue.wake_all(0);
        result
    }
}

/// Open files of all processes.
static OPEN: AtomicU64 = AtomicU64::new(0);

/// How many files are open, in all processes and on their way between them.
#[must_use]
pub fn open_files() -> u64 {
    OPEN.load(Ordering::Relaxed)
}

impl OpenFile {
    /// A fresh open file. `flags` as for `open` (access mode and status flags).
    #[must_use]
    pub fn new(file: Arc<dyn File>, flags: u32, path: Vec<u8>) -> Arc<Self> {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            file,
            flags: AtomicU32::new(flags & !O_CLOEXEC),
            position: PositionLock::default(),
            path: Mutex::new(path),
            watchers: super::epoll::Watchers::default(),
        })
    }

    /// Access mode and status flags.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Changes the flags in `mask` to `value`.
    pub fn set_flags(&self, mask: u32, value: u32) {
        let old = self.flags.load(Ordering::Relaxed);
        self.flags.store(old & !mask | value & mask, Ordering::Relaxed);
    }

    /// Whether calls on it must not wait.
    #[must_use]
    pub fn nonblocking(&self) -> bool {
        self.flags() & O_NONBLOCK != 0
    }

    /// Whether it was opened for reading.
    #[must_use]
    pub fn readable(&self) -> bool {
        self.flags() & (3 | O_PATH) != 1 && self.flags() & O_PATH == 0
    }

    /// Whether it was opened for writing.
    #[must_use]
    pub fn writable(&self) -> bool {
        matches!(self.flags() & 3, 1 | 2) && self.flags() & O_PATH == 0
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        super::epoll::dropped(self);
        super::locks::dropped(self);
        super::inotify::closed(self);
        let file = self.file.clone();
        file.closed(self);
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One entry.
#[derive(Debug, Clone)]
pub struct Descriptor {
    /// The open file.
    pub open: Arc<OpenFile>,
    /// Closed by `execve`.
    pub close_on_exec: bool,
}

/// A process's descriptors.
#[derive(Debug)]
pub struct FdTable {
    entries: Mutex<Vec<Option<Descriptor>>>,
    soft_limit: AtomicUsize,
    hard_limit: AtomicUsize,
    /// Processes that use it.
    users: AtomicUsize,
}

impl FdTable {
    /// An empty table with these limits on the number of descriptors.
    #[must_use]
    pub fn new(soft: usize, hard: usize) -> Self {
        Self {
            entries: Mutex::new(Vec::new()),
            soft_limit: AtomicUsize::new(soft),
            hard_limit: AtomicUsize::new(hard),
            users: AtomicUsize::new(1),
        }
    }

    /// Another process uses it, too.
    pub fn share(self: &Arc<Self>) -> Arc<Self> {
        self.users.fetch_add(1, Ordering::Relaxed);
        self.clone()
    }

    /// A process does not use it any more. With the last one all descriptors are closed.
    pub fn leave(&self) {
        if self.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            let closed = core::mem::take(&mut *self.entries.lock());
            drop(closed); // closing may park: not under the lock
        }
    }

    /// Soft and hard limit.
    pub fn limits(&self) -> (usize, usize) {
        (
            self.soft_limit.load(Ordering::Relaxed),
            self.hard_limit.load(Ordering::Relaxed),
        )
    }

    /// Sets soft and hard limit.
    pub fn set_limits(&self, soft: usize, hard: usize) {
        self.soft_limit.store(soft, Ordering::Relaxed);
        self.hard_limit.store(hard, Ordering::Relaxed);
    }

    /// The open file of `fd`.
    ///
    /// # Errors
    /// EBADF.
    pub fn get(&self, fd: i32) -> SysResult<Arc<OpenFile>> {
        self.entry(fd).map(|d| d.open)
    }

    /// The entry of `fd`.
    ///
    /// # Errors
    /// EBADF.
    pub fn entry(&self, fd: i32) -> SysResult<Descriptor> {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        self.entries
            .lock()
            .get(index)
            .cloned()
            .flatten()
            .ok_or(Errno::EBADF)
    }

    /// Gives `open` the lowest free number that is at least `least`.
    ///
    /// # Errors
    /// EMFILE; ENOMEM when the libos is short of memory: what a descriptor stands for takes some.
    pub fn insert(&self, open: Arc<OpenFile>, close_on_exec: bool, least: usize) -> SysResult<i32> {
        if mem::is_scarce() {
            return Err(Errno::ENOMEM);
        }
        let limit = self.soft_limit.load(Ordering::Relaxed);
        let mut entries = self.entries.lock();
        let free = (least..entries.len())
            .find(|&i| entries[i].is_none())
            .unwrap_or_else(|| entries.len().max(least));
        if free >= limit {
            return Err(Errno::EMFILE);
        }
        if free >= entries.len() {
            entries.resize(free + 1, None);
        }
        entries[free] = Some(Descriptor { open, close_on_exec });
        i32::try_from(free).map_err(|_| Errno::EMFILE)
    }

    /// Puts `open` at `fd`, replacing what is there.
    ///
    /// # Errors
    /// EBADF when the number is beyond the limit.
    pub fn replace(&self, fd: i32, open: Arc<OpenFile>, close_on_exec: bool) -> SysResult<()> {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        if index >= self.soft_limit.load(Ordering::Relaxed) {
            return Err(Errno::EBADF);
        }
        let old = {
            let mut entries = self.entries.lock();
            if index >= entries.len() {
                entries.resize(index + 1, None);
            }
            entries[index].replace(Descriptor { open, close_on_exec })
        };
        drop(old); // closing may park: not under the lock
        Ok(())
    }

    /// Takes `fd` out. Dropping the result closes it.
    ///
    /// # Errors
    /// EBADF.
    pub fn remove(&self, fd: i32) -> SysResult<Descriptor> {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        self.entries
            .lock()
            .get_mut(index)
            .and_then(Option::take)
            .ok_or(Errno::EBADF)
    }

    /// Sets close-on-exec.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_close_on_exec(&self, fd: i32, value: bool) -> SysResult<()> {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let mut entries = self.entries.lock();
        let entry = entries
            .get_mut(index)
            .and_then(Option::as_mut)
            .ok_or(Errno::EBADF)?;
        entry.close_on_exec = value;
        Ok(())
    }

    /// Numbers in use.
    pub fn numbers(&self) -> Vec<i32> {
        let entries = self.entries.lock();
        (0i32..)
            .zip(entries.iter())
            .filter(|(_, e)| e.is_some())
            .map(|(i, _)| i)
            .collect()
    }

    /// A table with the same open files (for `fork`).
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let (soft, hard) = self.limits();
        let copy = Self::new(soft, hard);
        copy.entries.lock().clone_from(&self.entries.lock());
        copy
    }

    /// Takes out what `execve` closes. Dropping the result closes it.
    pub fn take_for_exec(&self) -> Vec<Descriptor> {
        let mut entries = self.entries.lock();
        entries
            .iter_mut()
            .filter(|e| e.as_ref().is_some_and(|d| d.close_on_exec))
            .filter_map(Option::take)
            .collect()
    }
}

/// The current process's open file of `fd`.
///
/// # Errors
/// EBADF.
pub fn get(fd: i32) -> SysResult<Arc<OpenFile>> {
    Process::current().files.get(fd)
}

/// The same, if it was opened for reading.
///
/// # Errors
/// EBADF.
pub fn reader(fd: i32) -> SysResult<Arc<OpenFile>> {
    Some(get(fd)?).filter(|open| open.readable()).ok_or(Errno::EBADF)
}

/// The same, if it was opened for writing.
///
/// # Errors
/// EBADF.
pub fn writer(fd: i32) -> SysResult<Arc<OpenFile>> {
    Some(get(fd)?).filter(|open| open.writable()).ok_or(Errno::EBADF)
}

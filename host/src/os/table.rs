//! The descriptor table: which numbers the guest was given, and what stands behind them.
//!
//! The guest's numbers are positions in this table, never the process's own descriptors, so nothing that
//! the service keeps for itself can be named. A request in progress holds its entry: a close from another
//! vCPU takes the number away at once, and the file when the last request is done.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloak_abi::hostop::ROOT_FD;
use rustix::io::Errno;

use super::flow::Flow;
use super::sys::Stat;

/// How a file is read and written without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Regular file or block device: page cache first, then a worker.
    Regular,
    /// Directory.
    Directory,
    /// `O_PATH`: names a place, can't be read or written.
    Location,
    /// Socket of ours: `O_NONBLOCK` is set.
    Socket,
    /// Pipe, FIFO, terminal or other device of ours: `O_NONBLOCK` is set.
    Stream,
    /// Inherited pipe: per-call flags.
    SharedPipe,
    /// Inherited socket: per-call flags.
    SharedSocket,
    /// Inherited file that knows no per-call flags: asked by poll(2) first.
    SharedDevice,
}

/// Writes in a row that go to a worker after one that took long.
const SLOW_WRITES: u8 = 32;

/// An open file.
#[derive(Debug)]
pub struct Entry {
    file: OwnedFd,
    /// How it is read and written.
    pub kind: Kind,
    /// Came from a mount that the guest may not change.
    pub read_only: bool,
    /// On a file system that answers over a network or from another process.
    pub remote: bool,
    /// Opened for synchronous or direct writes.
    pub synchronous: bool,
    /// A terminal: job control applies.
    pub terminal: bool,
    /// Device number of its file system.
    pub device: u64,
    /// Token under which it is registered for readiness, or [`UNWATCHED`].
    watched: AtomicU64,
    /// Close may wait for the peer.
    pub lingers: AtomicBool,
    /// Its file system does not know `RWF_NOWAIT`, and keeps its files in memory or on a local disk.
    knows_no_nowait: AtomicBool,
    slow_writes: AtomicU8,
    flow: Mutex<Flow>,
}

/// No token: those have 32 bits.
const UNWATCHED: u64 = u64::MAX;

impl Entry {
    /// An entry for `file`; the flags are public for the opener to set.
    pub fn new(file: OwnedFd, kind: Kind) -> Self {
        Self {
            file,
            kind,
            read_only: false,
            remote: false,
            synchronous: false,
            terminal: false,
            device: 0,
            watched: AtomicU64::new(UNWATCHED),
            lingers: AtomicBool::new(false),
            knows_no_nowait: AtomicBool::new(false),
            slow_writes: AtomicU8::new(0),
            flow: Mutex::default(),
        }
    }

    /// What it has in hand, if it is a stream.
    pub fn flow(&self) -> MutexGuard<'_, Flow> {
        // A panic ends the process.
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the token under which it is registered for readiness.
    pub fn is_watched_from_now_on(&self, token: u32) {
        self.watched.store(u64::from(token), Ordering::Relaxed);
    }

    /// Whether it is registered for readiness.
    pub fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed) != UNWATCHED
    }

    /// Whether it is registered under `token`.
    pub fn is_watched_as(&self, token: u32) -> bool {
        self.watched.load(Ordering::Relaxed) == u64::from(token)
    }

    /// Whether `RWF_NOWAIT` may be tried here.
    pub fn may_know_nowait(&self) -> bool {
        !self.knows_no_nowait.load(Ordering::Relaxed)
    }

    /// `RWF_NOWAIT` was refused.
    pub fn knows_no_nowait(&self) {
        self.knows_no_nowait.store(true, Ordering::Relaxed);
    }

    /// Whether writes are slow at the moment (the disk is behind and Linux makes writers wait). Counts
    /// down, so that the ring's thread tries again after a while.
    pub fn writes_slowly(&self) -> bool {
        self.slow_writes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok()
    }

    /// A write took long.
    pub fn wrote_slowly(&self) {
        self.slow_writes.store(SLOW_WRITES, Ordering::Relaxed);
    }

    /// `EROFS` unless the guest may change it.
    pub fn writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Another descriptor of the same open file.
    pub fn duplicate(&self) -> Result<Self, Errno> {
        let mut copy = Self::new(rustix::io::fcntl_dupfd_cloexec(&self.file, 3)?, self.kind);
        copy.read_only = self.read_only;
        copy.remote = self.remote;
        copy.synchronous = self.synchronous;
        copy.terminal = self.terminal;
        copy.device = self.device;
        copy.lingers = AtomicBool::new(self.lingers.load(Ordering::Relaxed));
        copy.knows_no_nowait = AtomicBool::new(self.knows_no_nowait.load(Ordering::Relaxed));
        Ok(copy)
    }
}

impl AsFd for Entry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The kind of a file that the service opened itself, with `O_NONBLOCK`.
pub fn kind_of(stat: &Stat) -> Kind {
    match stat.mode() & libc::S_IFMT {
        libc::S_IFREG | libc::S_IFBLK => Kind::Regular,
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFSOCK => Kind::Socket,
        _ => Kind::Stream,
    }
}

#[derive(Debug, Default)]
struct Places {
    entries: Vec<Option<Arc<Entry>>>,
    free: Vec<u32>,
}

/// All open files of the guest.
#[derive(Debug)]
pub struct Table {
    places: Mutex<Places>,
    roots: Vec<Arc<Entry>>,
    limit: u32,
}

impl Table {
    /// A table with the standard streams as 0, 1, 2 and one root for each mount; at most `limit` files.
    pub fn new(streams: [Entry; 3], roots: Vec<Entry>, limit: u32) -> Self {
        let entries = streams.into_iter().map(|entry| Some(Arc::new(entry))).collect();
        let roots = roots.into_iter().map(Arc::new).collect();
        Self {
            places: Mutex::new(Places {
                entries,
                free: Vec::new(),
            }),
            roots,
            limit: limit.min(ROOT_FD),
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Nothing under this lock can panic half-way, so a poisoned table is still whole.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a number.
    ///
    /// # Errors
    /// `EBADF` when the number was not given out.
    pub fn lookup(&self, fd: u64) -> Result<Arc<Entry>, Errno> {
        let fd = u32::try_from(fd).map_err(|_| Errno::BADF)?;
        if let Some(root) = fd.checked_sub(ROOT_FD) {
            return self.roots.get(root as usize).cloned().ok_or(Errno::BADF);
        }
        self.places()
            .entries
            .get(fd as usize)
            .cloned()
            .flatten()
            .ok_or(Errno::BADF)
    }

    /// Gives out a number.
    ///
    /// # Errors
    /// `EMFILE` when there are too many; the file is closed.
    pub fn insert(&self, entry: Entry) -> Result<u32, Errno> {
        let mut places = self.places();
        let entry = Some(Arc::new(entry));
        if let Some(fd) = places.free.pop()
            && let Some(place) = places.entries.get_mut(fd as usize)
        {
            *place = entry;
            return Ok(fd);
        }
        let fd = u32::try_from(places.entries.len())
            .ok()
            .filter(|fd| *fd < self.limit)
            .ok_or(Errno::MFILE)?;
        places.entries.push(entry);
        Ok(fd)
    }

    /// Gives out two numbers, or none.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn insert_pair(&self, first: Entry, second: Entry) -> Result<(u32, u32), Errno> {
        let first = self.insert(first)?;
        match self.insert(second) {
            Ok(second) => Ok((first, second)),
            Err(errno) => {
                self.remove(u64::from(first))?;
                Err(errno)
            }
        }
    }

    /// Takes a number back.
    ///
    /// # Errors
    /// `EBADF` when it was not given out, or is a root.
    pub fn remove(&self, fd: u64) -> Result<Arc<Entry>, Errno> {
        let fd = u32::try_from(fd).map_err(|_| Errno::BADF)?;
        let mut places = self.places();
        let entry = places
            .entries
            .get_mut(fd as usize)
            .and_then(Option::take)
            .ok_or(Errno::BADF)?;
        places.free.push(fd);
        Ok(entry)
    }
}

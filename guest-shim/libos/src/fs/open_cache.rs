//! Files of read-only mounts that were just opened: the same file is opened again without the host, for a second.
//!
//! Programs start by opening the same libraries and settings, and servers open the same files for each request. As with
//! [`super::name_cache`], what others change is seen at the next look, at most a second later.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hashbrown::HashMap;
use spin::{Lazy, Mutex};

use super::file::Stat;
use super::flags::{S_IFMT, S_IFREG};
use super::hostfd::HostFd;
use super::hostops::{self, At};
use super::mount::Dir;
use super::read_cache::believed_until;
use crate::arch;
use crate::errno::SysResult;

/// Most files kept open: beyond that those of which nothing is believed any more are closed, or all.
const MOST: usize = 256;

/// Who may have one open file of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Any number of open files here: none of them takes locks on the host.
    Many,
    /// One at a time: its locks on the host are the open file's.
    One,
}

/// A place on the host, and how it is opened.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Where the path begins.
    pub dir: &'a Dir,
    /// The path.
    pub path: &'a [u8],
    /// `abi::hostop::resolve` bits.
    pub how: u64,
    /// Flags of open(2).
    pub flags: u32,
}

impl Asked<'_> {
    fn at(&self) -> At<'_> {
        At {
            dir: self.dir.number(),
            path: self.path,
            how: self.how,
        }
    }

    fn key(&self) -> Key {
        Key {
            dir: self.dir.number(),
            how: self.how,
            flags: self.flags,
            path: self.path.to_vec(),
        }
    }
}

/// A regular file, opened for reading.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The host's open file.
    pub fd: Arc<HostFd>,
    /// What the host said of it.
    pub stat: Stat,
    /// Until when that is believed, ticks.
    pub until: u64,
}

impl Opened {
    /// What the host gave, believed `until` then.
    #[must_use]
    pub fn new(fd: HostFd, stat: Stat, until: u64) -> Self {
        let fd = Arc::new(fd);
        Self { fd, stat, until }
    }

    /// Whether it is one to be read. Files that are made up when they are read say that they are empty.
    #[must_use]
    pub fn has_content(stat: &Stat) -> bool {
        stat.mode & S_IFMT == S_IFREG && stat.size > 0
    }
}

/// What the host has just opened.
#[derive(Debug)]
pub enum Fresh {
    /// A file to be read, which is kept here for the next one, too.
    Kept(Opened),
    /// Anything else: it is the caller's alone.
    Own {
        /// The host's open file.
        fd: HostFd,
        /// What the host said of it.
        stat: Stat,
        /// Until when that is believed, ticks.
        until: u64,
    },
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    dir: u64,
    how: u64,
    flags: u32,
    path: Vec<u8>,
}

struct Kept {
    opened: Opened,
    /// So that its number means no other one meanwhile.
    _dir: Dir,
}

static FILES: Lazy<Mutex<HashMap<Key, Kept>>> = Lazy::new(|| Mutex::new(HashMap::new()));

/// The file, if it was opened a moment ago.
#[must_use]
pub fn known(asked: &Asked<'_>, sharing: Sharing) -> Option<Opened> {
    let key = asked.key();
    let files = FILES.lock();
    let opened = &files.get(&key)?.opened;
    // One is the table's own.
    let may_be_shared = sharing == Sharing::Many || Arc::strong_count(&opened.fd) == 1;
    (may_be_shared && arch::ticks() < opened.until).then(|| opened.clone())
}

/// Asks the host to open it.
///
/// # Errors
/// What the host reports.
pub fn open(asked: &Asked<'_>) -> SysResult<Fresh> {
    let until = believed_until();
    let (fd, stat) = hostops::open(asked.at(), asked.flags, 0)?;
    if !Opened::has_content(&stat) {
        return Ok(Fresh::Own { fd, stat, until });
    }
    let opened = Opened::new(fd, stat, until);
    keep(asked, opened.clone());
    Ok(Fresh::Kept(opened))
}

fn keep(asked: &Asked<'_>, opened: Opened) {
    let kept = Kept {
        opened,
        _dir: asked.dir.clone(),
    };
    let mut gone = Vec::new();
    let mut files = FILES.lock();
    if files.len() >= MOST {
        let now = arch::ticks();
        gone.extend(files.extract_if(|_, kept| kept.opened.until <= now));
    }
    if files.len() >= MOST {
        gone.extend(files.drain());
    }
    let former = files.insert(asked.key(), kept);
    drop(files);
    drop((gone, former)); // closes descriptors: not under the lock
}

/// How many files are kept that nobody has open.
#[cfg(feature = "bare")]
pub(crate) fn idle() -> usize {
    let files = FILES.lock();
    let idle = |kept: &&Kept| Arc::strong_count(&kept.opened.fd) == 1;
    files.values().filter(idle).count()
}

/// Nothing is kept any more: for tests that count what is held.
#[cfg(test)]
pub(crate) fn clear() {
    let gone = core::mem::take(&mut *FILES.lock());
    drop(gone);
}

/// The open file has something on the host that ends with it: it goes with its last user.
pub fn forget(fd: &Arc<HostFd>) {
    let mut files = FILES.lock();
    let gone: Vec<_> = files
        .extract_if(|_, kept| Arc::ptr_eq(&kept.opened.fd, fd))
        .collect();
    drop(files);
    drop(gone);
}

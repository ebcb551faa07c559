//! The mount table: which file system serves which part of the name space.
//!
//! Made at boot; a program may add to it and take away ([`super::calls_mount`]). Besides it there is what the libos
//! learns of the host: a *border* is a directory
//! where a host mount's tree goes over into another of the host's file systems. The service does not follow
//! a path across one by itself, so from the first walk across it the border is remembered, with a
//! descriptor: as on Linux, what is mounted stays what it is.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use cloak_abi::hostop::{MAX_MOUNTS, ROOT_FD};
use spin::{Mutex, RwLock};

use super::hostfd::HostFd;
use super::hostops::{self, At};
use super::node::Node;
use super::path;
use crate::errno::{Errno, SysResult};

/// A host directory to look up names in.
#[derive(Debug, Clone)]
pub enum Dir {
    /// The root of a host mount, by its number.
    Root(u64),
    /// A directory that was opened on the way.
    Open(Arc<HostFd>),
}

impl Dir {
    /// Its host descriptor.
    #[must_use]
    pub fn number(&self) -> u64 {
        match self {
            Self::Root(number) => *number,
            Self::Open(fd) => fd.number(),
        }
    }
}

/// What is mounted.
#[derive(Clone)]
pub enum Source {
    /// A directory of the host.
    Host(Dir),
    /// A file system in the guest.
    Node(Arc<dyn Node>),
}

/// One mount.
#[derive(Clone)]
pub struct Mount {
    /// Where, absolute and normalised.
    pub path: Vec<u8>,
    /// What.
    pub source: Source,
    /// Writes give EROFS.
    pub read_only: bool,
    /// Nobody outside changes its files while the guest runs.
    pub exclusive: bool,
    /// Type, for `/proc/mounts`.
    pub kind: &'static str,
    /// Its number in `/proc/self/mountinfo`.
    pub id: u32,
}

impl Mount {
    fn new(kind: &'static str, path: Vec<u8>, source: Source, read_only: bool) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self {
            path,
            source,
            read_only,
            exclusive: false,
            kind,
            id,
        }
    }

    /// The same files at another place, for `mount --bind`.
    #[must_use]
    pub fn bind(kind: &'static str, path: Vec<u8>, source: Source, read_only: bool) -> Self {
        Self::new(kind, path, source, read_only)
    }

    /// Device number of its files.
    ///
    /// # Errors
    /// What the host or the file system reports.
    pub fn device(&self) -> SysResult<u64> {
        match &self.source {
            Source::Host(Dir::Root(root)) => root_device(*root),
            Source::Host(Dir::Open(fd)) => hostops::fstat(fd).map(|stat| stat.dev),
            Source::Node(node) => node.stat().map(|stat| stat.dev),
        }
    }

    /// Whether it is an overlay, or a part of one.
    #[must_use]
    pub fn is_overlay(&self) -> bool {
        match &self.source {
            Source::Node(node) => node.as_any().is::<super::overlay::OverlayNode>(),
            Source::Host(_) => false,
        }
    }

    /// Host mount `index` at `path`.
    ///
    /// # Errors
    /// EINVAL for an index that can't be.
    pub fn host(index: u32, path: &[u8], read_only: bool) -> SysResult<Self> {
        let source = Source::Host(root_dir(index)?);
        Ok(Self::new("cloakfs", path::join(b"/", path), source, read_only))
    }

    /// The same, with files that nobody outside changes.
    #[must_use]
    pub fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// A file system in the guest at `path`.
    #[must_use]
    pub fn node(kind: &'static str, path: &[u8], root: Arc<dyn Node>, read_only: bool) -> Self {
        Self::new(kind, path::join(b"/", path), Source::Node(root), read_only)
    }

    /// Whether it is the host's tree that everything else is mounted on.
    #[must_use]
    pub fn is_host_root(&self) -> bool {
        self.path == b"/" && matches!(self.source, Source::Host(_))
    }
}

/// Most borders remembered; beyond that they are walked across each time.
const BORDERS_MAX: usize = 64;

static MOUNTS: RwLock<Vec<Arc<Mount>>> = RwLock::new(Vec::new());
static NEXT_ID: AtomicU32 = AtomicU32::new(20);
static BORDERS: RwLock<Vec<Arc<Mount>>> = RwLock::new(Vec::new());
static BORDER_COUNT: AtomicUsize = AtomicUsize::new(0);
/// No path goes to the host as a whole: a link there could lead past a mount that must not be passed.
static WALKED: AtomicBool = AtomicBool::new(false);
static ROOT_DEVICES: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

/// The root directory of host mount `index`.
///
/// # Errors
/// EINVAL for an index that can't be.
pub fn root_dir(index: u32) -> SysResult<Dir> {
    if index < MAX_MOUNTS {
        Ok(Dir::Root(u64::from(ROOT_FD + index)))
    } else {
        Err(Errno::EINVAL)
    }
}

/// Sets the table: later mounts cover earlier ones at the same path.
///
/// # Errors
/// EINVAL when nothing is mounted at `/`, or the table was set before.
pub fn set(mounts: Vec<Mount>) -> SysResult<()> {
    let mut table = MOUNTS.write();
    if !table.is_empty() || !mounts.iter().any(|m| m.path == b"/") {
        return Err(Errno::EINVAL);
    }
    *table = mounts.into_iter().map(Arc::new).collect();
    Ok(())
}

/// From now on all paths are walked here, name by name.
pub fn walk_names() {
    WALKED.store(true, Ordering::Release);
}

/// Whether they are.
#[must_use]
pub fn names_are_walked() -> bool {
    WALKED.load(Ordering::Acquire)
}

/// All mounts.
#[must_use]
pub fn all() -> Vec<Arc<Mount>> {
    MOUNTS.read().clone()
}

/// Changes the table; paths may lead elsewhere from then on.
///
/// # Errors
/// Those of `change`.
pub fn change<T>(change: impl FnOnce(&mut Vec<Arc<Mount>>) -> SysResult<T>) -> SysResult<T> {
    let mut table = all();
    let before = table.clone(); // what goes, goes outside of the lock
    let result = {
        let mut shared = MOUNTS.write();
        table.clone_from(&shared);
        let result = change(&mut table)?;
        shared.clone_from(&table);
        result
    };
    super::overlay::paths::changed();
    drop(before);
    Ok(result)
}

fn longest<'m>(mounts: &'m [Arc<Mount>], path: &[u8]) -> Option<&'m Arc<Mount>> {
    mounts
        .iter()
        .filter(|m| path::below(&m.path, path).is_some())
        .max_by_key(|m| m.path.len())
}

/// The mount that serves an absolute, normalised path.
///
/// # Errors
/// ENOENT before [`set`].
pub fn covering(path: &[u8]) -> SysResult<Arc<Mount>> {
    longest(&MOUNTS.read(), path).cloned().ok_or(Errno::ENOENT)
}

/// Whether nobody outside changes the file at an absolute, normalised path of the host's.
#[must_use]
pub fn is_exclusive(path: &[u8]) -> bool {
    longest(&MOUNTS.read(), path).is_some_and(|mount| mount.exclusive)
}

/// The border below which the path lies, if the path is the host's and one is known.
#[must_use]
pub fn border(path: &[u8], mount: &Mount) -> Option<Arc<Mount>> {
    if BORDER_COUNT.load(Ordering::Acquire) == 0 {
        return None;
    }
    let borders = BORDERS.read();
    longest(&borders, path)
        .filter(|b| b.path.len() > mount.path.len())
        .cloned()
}

/// What is mounted at exactly this path.
#[must_use]
pub fn at(path: &[u8]) -> Option<Arc<Mount>> {
    MOUNTS.read().iter().rev().find(|m| m.path == path).cloned()
}

/// Remembers a border: `fd` is the directory at `path`, on another device than its parent.
pub fn learn_border(path: &[u8], fd: &Arc<HostFd>, read_only: bool) {
    let mut borders = BORDERS.write();
    if borders.len() >= BORDERS_MAX || borders.iter().any(|b| b.path == path) {
        return;
    }
    let source = Source::Host(Dir::Open(fd.clone()));
    borders.push(Arc::new(Mount::new("cloakfs", path.to_vec(), source, read_only)));
    BORDER_COUNT.store(borders.len(), Ordering::Release);
}

/// Forgets what the host said about borders.
#[cfg(test)]
pub(crate) fn forget_borders() {
    let forgotten = core::mem::take(&mut *BORDERS.write());
    BORDER_COUNT.store(0, Ordering::Release);
    drop(forgotten);
}

/// Device number of a host mount's root.
///
/// # Errors
/// What the host reports.
pub fn root_device(root: u64) -> SysResult<u64> {
    if let Some((_, device)) = ROOT_DEVICES.lock().iter().find(|(r, _)| *r == root) {
        return Ok(*device);
    }
    let statx = hostops::statx(At::itself(root), super::flags::AT_EMPTY_PATH, 0x7ff)?;
    let device = super::attributes::stat_of(&statx).dev;
    ROOT_DEVICES.lock().push((root, device));
    Ok(device)
}

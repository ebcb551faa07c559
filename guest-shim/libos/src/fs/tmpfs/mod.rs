//! `tmpfs`: a file system in guest memory. Nothing of it ever leaves the VM.
//!
//! | module | concept |
//! |---|---|
//! | this | the file system, its limit, inodes |
//! | [`dir`] | directories: making, removing, linking, renaming entries |
//! | [`mod@file`] | open regular files, `memfd`, seals |
//! | [`detached`] | inodes whose names another file system keeps |
//!
//! Locks: [`Tmpfs::tree`] is held while entries change, so that a rename sees a tree that stands still;
//! an inode's own locks are held for single accesses, inside of it.

mod detached;
mod dir;
mod file;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use cloak_abi::layout::PAGE;
use spin::Mutex;

pub use dir::Directory;
pub(super) use file::written_clears;
pub use file::{MemoryFile, memfd};

use super::attributes::{StatFs, make_dev};
use super::dirent::Entry;
use super::file::{File, Stat};
use super::flags::*;
use super::node::{self, Link, New, Node};
use super::pipe::Pipe;
use super::providers;
use crate::errno::{Errno, SysResult};
use crate::mem::pages::{Frame, PageCache};
use crate::process::Credentials;
use crate::user::Buf;

const MAGIC: i64 = 0x0102_1994;
/// Bytes that an inode counts for against the limit.
const INODE_COST: u64 = 1024;
/// Largest value of an extended attribute.
const XATTR_MAX: usize = 65536;

static DEVICES: AtomicU32 = AtomicU32::new(32);

/// A file system.
#[derive(Debug)]
pub struct Tmpfs {
    device: u64,
    limit: u64,
    used: AtomicU64,
    next_inode: AtomicU64,
    tree: Mutex<()>,
    root: Mutex<Option<Arc<Inode>>>,
}

/// What can be changed of an inode.
#[derive(Debug, Clone)]
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u64,
    rdev: u64,
    atime: [i64; 2],
    mtime: [i64; 2],
    ctime: [i64; 2],
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug)]
enum Body {
    Directory(Directory),
    File(Arc<PageCache>),
    Link(Vec<u8>),
    Fifo(Arc<Pipe>),
    Special,
}

/// A file, directory, link or special file.
#[derive(Debug)]
pub struct Inode {
    fs: Arc<Tmpfs>,
    number: u64,
    /// Device and number that `stat` says, where they are not this file system's own.
    identity: Option<(u64, u64)>,
    meta: Mutex<Meta>,
    body: Body,
    /// Itself, for what refers back to it.
    this: Weak<Inode>,
    /// Seals of `fcntl(F_ADD_SEALS)`.
    seals: AtomicU32,
    /// Bytes of pages that the file system counts for this file.
    charged: Mutex<u64>,
}

impl Tmpfs {
    /// A file system of at most `limit` bytes whose root has this mode.
    #[must_use]
    pub fn new(limit: u64, mode: u32) -> Arc<Self> {
        let fs = Arc::new(Self {
            device: make_dev(0, DEVICES.fetch_add(1, Ordering::Relaxed)),
            limit: limit.max(16 * INODE_COST),
            used: AtomicU64::new(0),
            next_inode: AtomicU64::new(1),
            tree: Mutex::new(()),
            root: Mutex::new(None),
        });
        let meta = Meta::new(S_IFDIR | mode, 0, 0, 0);
        // The limit has room for it.
        if let Ok(root) = Inode::new(&fs, meta, Body::Directory(Directory::default())) {
            root.meta.lock().nlink = 2;
            *fs.root.lock() = Some(root);
        }
        fs
    }

    /// Its root directory.
    #[must_use]
    pub fn root(self: &Arc<Self>) -> Arc<dyn Node> {
        match &*self.root.lock() {
            Some(root) => root.clone(),
            None => Self::new(self.limit, 0o755).root(),
        }
    }

    /// Counts `bytes` against the limit.
    fn charge(&self, bytes: u64) -> SysResult<()> {
        if bytes == 0 {
            return Ok(()); // also beyond the limit, where a race may have led
        }
        let add = |used: u64| used.checked_add(bytes).filter(|&u| u <= self.limit);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map(drop)
            .map_err(|_| Errno::ENOSPC)
    }

    /// Bytes left under the limit.
    fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    /// Makes a file in the root directory, for root: used at boot.
    ///
    /// # Errors
    /// EEXIST, ENOSPC.
    pub fn populate(&self, name: &[u8], new: New<'_>, mode: u32) -> SysResult<()> {
        let root = self.root.lock().clone().ok_or(Errno::ENOENT)?;
        root.make(&Credentials::default(), name, new, mode).map(drop)
    }

    /// Makes a file with this content in the root directory, for root: used at boot.
    ///
    /// # Errors
    /// EEXIST, ENOSPC.
    pub fn file(&self, name: &[u8], content: &[u8]) -> SysResult<Arc<dyn Node>> {
        let root = self.root.lock().clone().ok_or(Errno::ENOENT)?;
        let made = root.make(&Credentials::default(), name, New::Node(S_IFREG, 0), 0o644)?;
        MemoryFile::new(made.clone()).write_at(0, &mut Buf::own(content))?;
        Ok(made)
    }

    /// Makes a file of pages that are not the context's alone in the root directory, for root. Its length stays.
    ///
    /// # Errors
    /// EEXIST, ENOSPC.
    pub fn lend(&self, name: &[u8], frames: impl Iterator<Item = Frame>, bytes: u64) -> SysResult<()> {
        let root = self.root.lock().clone().ok_or(Errno::ENOENT)?;
        let made = root.make(&Credentials::default(), name, New::Node(S_IFREG, 0), 0o666)?;
        let Body::File(pages) = &made.body else {
            return Err(Errno::EIO);
        };
        (0..)
            .zip(frames)
            .for_each(|(page, frame)| drop(pages.insert(page, frame)));
        pages.set_size(bytes);
        *made.charged.lock() = pages.used();
        self.correct(0, pages.used());
        made.seals.store(file::FIXED_LENGTH, Ordering::Release);
        Ok(())
    }

    /// What was charged as `before` is now `now`.
    fn correct(&self, before: u64, now: u64) {
        if now > before {
            self.used.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.release(before - now);
        }
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Meta {
    fn new(mode: u32, uid: u32, gid: u32, rdev: u64) -> Self {
        let now = providers::get().now();
        Self {
            mode,
            uid,
            gid,
            nlink: 1,
            rdev,
            atime: now,
            mtime: now,
            ctime: now,
            xattrs: BTreeMap::new(),
        }
    }
}

impl Body {
    /// Of what was just made.
    fn of(new: New<'_>) -> SysResult<Self> {
        match new {
            New::Link(target) => Ok(Self::Link(target.to_vec())),
            New::Node(kind, _) => match kind & S_IFMT {
                S_IFDIR => Ok(Self::Directory(Directory::default())),
                S_IFREG => Ok(Self::File(Arc::default())),
                S_IFIFO => Ok(Self::Fifo(Pipe::new(false))),
                S_IFSOCK | S_IFCHR | S_IFBLK => Ok(Self::Special),
                _ => Err(Errno::EINVAL),
            },
        }
    }
}

impl Inode {
    fn new(fs: &Arc<Tmpfs>, meta: Meta, body: Body) -> SysResult<Arc<Self>> {
        Self::with_identity(fs, meta, body, None)
    }

    fn with_identity(
        fs: &Arc<Tmpfs>,
        meta: Meta,
        body: Body,
        identity: Option<(u64, u64)>,
    ) -> SysResult<Arc<Self>> {
        fs.charge(INODE_COST)?;
        let number = fs.next_inode.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new_cyclic(|this| Self {
            fs: fs.clone(),
            number,
            identity,
            meta: Mutex::new(meta),
            body,
            this: this.clone(),
            seals: AtomicU32::new(file::F_SEAL_SEAL),
            charged: Mutex::new(0),
        }))
    }

    /// A new inode below this directory: of the caller, or of the directory's group with its set-gid bit.
    fn child(&self, who: &Credentials, new: New<'_>, mode: u32) -> SysResult<Arc<Self>> {
        let parent = self.meta.lock().clone();
        let inherits = parent.mode & S_ISGID != 0;
        let gid = if inherits { parent.gid } else { who.gid[3] };
        let (kind, rdev) = match new {
            New::Node(kind, rdev) => (kind & S_IFMT, rdev),
            New::Link(_) => (S_IFLNK, 0),
        };
        let body = Body::of(new)?;
        let bits = match new {
            New::Link(_) => 0o777,
            New::Node(..) if kind == S_IFDIR && inherits => mode & 0o7777 | S_ISGID,
            New::Node(..) => mode & 0o7777,
        };
        let inode = Self::new(&self.fs, Meta::new(kind | bits, who.uid[3], gid, rdev), body)?;
        if kind == S_IFDIR {
            inode.meta.lock().nlink = 2;
        }
        Ok(inode)
    }

    fn directory(&self) -> SysResult<&Directory> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    /// Its content or attributes changed.
    fn touch(&self, content: bool) {
        let now = providers::get().now();
        let mut meta = self.meta.lock();
        meta.ctime = now;
        if content {
            meta.mtime = now;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Meta)) {
        let now = providers::get().now();
        let mut meta = self.meta.lock();
        change(&mut meta);
        meta.ctime = now;
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        let attributes: usize = self
            .meta
            .lock()
            .xattrs
            .iter()
            .map(|(n, v)| n.len() + v.len())
            .sum();
        self.fs
            .release(INODE_COST + *self.charged.lock() + attributes as u64);
    }
}

impl Node for Inode {
    fn stat(&self) -> SysResult<Stat> {
        let (size, blocks) = match &self.body {
            Body::File(pages) => (pages.size(), pages.used().div_ceil(512)),
            Body::Link(target) => (target.len() as u64, 0),
            Body::Directory(directory) => (directory.size(), 0),
            Body::Fifo(_) | Body::Special => (0, 0),
        };
        let meta = self.meta.lock();
        Ok(Stat {
            dev: self.identity.map_or(self.fs.device, |(dev, _)| dev),
            ino: self.identity.map_or(self.number, |(_, ino)| ino),
            nlink: meta.nlink,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            rdev: meta.rdev,
            size: size as i64,
            blksize: PAGE as i64,
            blocks: blocks as i64,
            atime: meta.atime,
            mtime: meta.mtime,
            ctime: meta.ctime,
            ..Stat::default()
        })
    }

    fn statfs(&self) -> StatFs {
        let free = self.fs.left();
        StatFs {
            kind: MAGIC,
            bsize: PAGE as i64,
            blocks: self.fs.limit / PAGE,
            bfree: free / PAGE,
            bavail: free / PAGE,
            files: self.fs.limit / INODE_COST,
            ffree: free / INODE_COST,
            namelen: NAME_MAX as i64,
            frsize: PAGE as i64,
            ..StatFs::default()
        }
    }

    fn open(self: Arc<Self>, flags: u32) -> SysResult<Arc<dyn File>> {
        let node = self.clone();
        self.open_as(node, flags)
    }

    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Node>> {
        match self.directory()?.find(name) {
            Some(inode) => Ok(inode),
            None => Err(Errno::ENOENT),
        }
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(&Entry<'_>) -> bool) -> SysResult<()> {
        self.directory()?.list(self, from, each);
        Ok(())
    }

    fn read_link(&self) -> SysResult<Link> {
        match &self.body {
            Body::Link(target) => Ok(Link::Path(target.clone())),
            _ => Err(Errno::EINVAL),
        }
    }

    fn create(&self, name: &[u8], new: New<'_>, mode: u32) -> SysResult<Arc<dyn Node>> {
        self.make(&node::credentials(), name, new, mode)
            .map(|inode| inode as Arc<dyn Node>)
    }

    fn create_unnamed(&self, mode: u32) -> SysResult<Arc<dyn Node>> {
        self.directory()?;
        let inode = self.child(&node::credentials(), New::Node(S_IFREG, 0), mode)?;
        inode.meta.lock().nlink = 0;
        Ok(inode)
    }

    fn remove(&self, name: &[u8], directory: bool) -> SysResult<()> {
        self.take(name, directory)
    }

    fn link(&self, name: &[u8], node: &Arc<dyn Node>) -> SysResult<()> {
        let inode = node.as_any().downcast_ref::<Self>().ok_or(Errno::EXDEV)?;
        self.add_link(name, inode)
    }

    fn rename(&self, name: &[u8], to: &Arc<dyn Node>, new_name: &[u8], flags: u32) -> SysResult<()> {
        let to = to.as_any().downcast_ref::<Self>().ok_or(Errno::EXDEV)?;
        self.move_entry(name, to, new_name, flags)
    }

    fn set_mode(&self, mode: u32) -> SysResult<()> {
        self.change(|meta| meta.mode = meta.mode & S_IFMT | mode & 0o7777);
        Ok(())
    }

    fn set_owner(&self, uid: u32, gid: u32) -> SysResult<()> {
        self.change(|meta| {
            meta.uid = if uid == u32::MAX { meta.uid } else { uid };
            meta.gid = if gid == u32::MAX { meta.gid } else { gid };
            if !is_dir(meta.mode) && meta.mode & 0o111 != 0 {
                meta.mode &= !(S_ISUID | S_ISGID);
            }
        });
        Ok(())
    }

    fn set_times(&self, access: Option<[i64; 2]>, modification: Option<[i64; 2]>) -> SysResult<()> {
        self.change(|meta| {
            meta.atime = access.unwrap_or(meta.atime);
            meta.mtime = modification.unwrap_or(meta.mtime);
        });
        Ok(())
    }

    fn truncate(&self, size: u64) -> SysResult<()> {
        match &self.body {
            Body::File(pages) => self.resize(pages, size),
            Body::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn xattr(&self, name: &[u8]) -> SysResult<Vec<u8>> {
        self.meta.lock().xattrs.get(name).cloned().ok_or(Errno::ENODATA)
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> SysResult<()> {
        if value.len() > XATTR_MAX {
            return Err(Errno::E2BIG);
        }
        let known = self.meta.lock().xattrs.get(name).map(Vec::len);
        match (known, flags) {
            (Some(_), 1) => return Err(Errno::EEXIST),
            (None, 2) => return Err(Errno::ENODATA),
            _ => {}
        }
        self.fs.charge((name.len() + value.len()) as u64)?;
        let mut old = None;
        self.change(|meta| old = meta.xattrs.insert(name.to_vec(), value.to_vec()));
        if let Some(old) = old {
            self.fs.release((name.len() + old.len()) as u64);
        }
        Ok(())
    }

    fn xattrs(&self) -> SysResult<Vec<u8>> {
        let meta = self.meta.lock();
        Ok(meta
            .xattrs
            .keys()
            .flat_map(|name| name.iter().copied().chain([0]))
            .collect())
    }

    fn remove_xattr(&self, name: &[u8]) -> SysResult<()> {
        let mut old = None;
        self.change(|meta| old = meta.xattrs.remove(name));
        let old = old.ok_or(Errno::ENODATA)?;
        self.fs.release((name.len() + old.len()) as u64);
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

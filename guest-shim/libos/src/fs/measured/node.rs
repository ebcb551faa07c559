//! Files, folders and links of what is measured, as the look-up knows them.
//!
//! The manifest says what is in a file and where a link leads. It says nothing of owners and permissions, and the OS side
//! is not asked: all belongs to root, and everybody may read and execute everything and change nothing.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;

use cloak_abi::layout::PAGE;
use spin::Mutex;

use super::content::Content;
use super::file::MeasuredFile;
use super::{device, next_inode};
use crate::errno::{Errno, SysResult};
use crate::fs::attributes::StatFs;
use crate::fs::dirent::Entry;
use crate::fs::file::{File, Stat};
use crate::fs::flags::{O_ACCMODE, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::fs::node::{Link, Node};
use crate::fs::nodedir::NodeDir;
use crate::fs::read_cache;
use crate::mem::pages::PageCache;

/// What `statfs` says that it is: "CLKM".
const MAGIC: i64 = 0x434c_4b4d;

fn statfs() -> StatFs {
    StatFs {
        kind: MAGIC,
        bsize: PAGE as i64,
        namelen: 255,
        frsize: PAGE as i64,
        ..StatFs::default()
    }
}

fn stat(inode: u64, mode: u32, size: u64) -> Stat {
    Stat {
        dev: device(),
        ino: inode,
        nlink: 1,
        mode,
        size: size as i64,
        blksize: PAGE as i64,
        blocks: size.div_ceil(512) as i64,
        ..Stat::default()
    }
}

/// A file.
pub struct FileNode {
    pub(super) content: Content,
    inode: u64,
    /// Those of its shared mappings, while there are some.
    pages: Mutex<Weak<PageCache>>,
}

impl FileNode {
    /// A file with this content.
    #[must_use]
    pub fn new(content: Content) -> Arc<Self> {
        Arc::new(Self {
            content,
            inode: next_inode(),
            pages: Mutex::new(Weak::new()),
        })
    }

    /// What the caches know it by.
    pub(super) fn key(&self) -> read_cache::Key {
        (device(), self.inode)
    }

    pub(super) fn pages(&self, length: u64) -> Arc<PageCache> {
        let mut pages = self.pages.lock();
        if let Some(there) = pages.upgrade() {
            return there;
        }
        let fresh = Arc::new(PageCache::default());
        fresh.set_size(length);
        *pages = Arc::downgrade(&fresh);
        fresh
    }
}

impl Node for FileNode {
    fn stat(&self) -> SysResult<Stat> {
        let known = self.content.known(self.key())?;
        let own = stat(self.inode, S_IFREG | 0o555, known.length);
        Ok(Stat {
            atime: known.modified,
            mtime: known.modified,
            ctime: known.modified,
            ..own
        })
    }

    fn statfs(&self) -> StatFs {
        statfs()
    }

    fn open(self: Arc<Self>, flags: u32) -> SysResult<Arc<dyn File>> {
        if flags & O_ACCMODE != 0 {
            return Err(Errno::EROFS);
        }
        Ok(Arc::new(MeasuredFile::open(self)?))
    }

    fn truncate(&self, _size: u64) -> SysResult<()> {
        Err(Errno::EROFS)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A folder: what is in it, the manifest says.
pub struct Folder {
    inode: u64,
    children: BTreeMap<Vec<u8>, Arc<dyn Node>>,
}

impl Folder {
    /// A folder with these entries.
    #[must_use]
    pub fn new(children: BTreeMap<Vec<u8>, Arc<dyn Node>>) -> Self {
        Self {
            inode: next_inode(),
            children,
        }
    }
}

/// Inode number and type of an entry, without a look at the file.
fn described(node: &Arc<dyn Node>) -> (u64, u8) {
    let any = node.as_any();
    if let Some(file) = any.downcast_ref::<FileNode>() {
        return (file.inode, (S_IFREG >> 12) as u8);
    }
    match node.stat() {
        Ok(stat) => (stat.ino, ((stat.mode & S_IFMT) >> 12) as u8),
        Err(_) => (0, 0),
    }
}

impl Node for Folder {
    fn stat(&self) -> SysResult<Stat> {
        Ok(stat(self.inode, S_IFDIR | 0o555, 0))
    }

    fn statfs(&self) -> StatFs {
        statfs()
    }

    fn open(self: Arc<Self>, _flags: u32) -> SysResult<Arc<dyn File>> {
        Ok(Arc::new(NodeDir(self)))
    }

    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Node>> {
        self.children.get(name).cloned().ok_or(Errno::ENOENT)
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(&Entry<'_>) -> bool) -> SysResult<()> {
        let dots = [&b"."[..], b".."].map(|name| (name, (self.inode, (S_IFDIR >> 12) as u8)));
        let children = self
            .children
            .iter()
            .map(|(name, node)| (name.as_slice(), described(node)));
        let all = (1u64..).zip(dots.into_iter().chain(children));
        for (next, (name, (ino, kind))) in all.skip(usize::try_from(from).unwrap_or(usize::MAX)) {
            if !each(&Entry {
                ino,
                next,
                kind,
                name,
            }) {
                break;
            }
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A symbolic link.
pub struct SymbolicLink {
    inode: u64,
    target: Vec<u8>,
}

impl SymbolicLink {
    /// One that leads to `target`.
    #[must_use]
    pub fn new(target: Vec<u8>) -> Self {
        Self {
            inode: next_inode(),
            target,
        }
    }
}

impl Node for SymbolicLink {
    fn stat(&self) -> SysResult<Stat> {
        Ok(stat(self.inode, S_IFLNK | 0o777, self.target.len() as u64))
    }

    fn statfs(&self) -> StatFs {
        statfs()
    }

    fn open(self: Arc<Self>, _flags: u32) -> SysResult<Arc<dyn File>> {
        Err(Errno::ELOOP)
    }

    fn read_link(&self) -> SysResult<Link> {
        Ok(Link::Path(self.target.clone()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

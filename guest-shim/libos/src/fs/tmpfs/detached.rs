//! Inodes without names here: the upper layer of an [`overlay`](crate::fs::overlay), which keeps its names itself.

use alloc::sync::Arc;

use super::{Body, Inode, MemoryFile, Meta, Tmpfs};
use crate::errno::{Errno, SysResult};
use crate::fs::file::{File, Stat};
use crate::fs::node::{New, Node};
use crate::fs::nodedir::NodeDir;

impl Tmpfs {
    /// An inode with these attributes, device and number included, of the kind of `new`.
    ///
    /// # Errors
    /// ENOSPC; EINVAL for a kind that there isn't.
    pub(in crate::fs) fn detached(self: &Arc<Self>, stat: &Stat, new: New<'_>) -> SysResult<Arc<Inode>> {
        let mut meta = Meta::new(stat.mode, stat.uid, stat.gid, stat.rdev);
        meta.nlink = stat.nlink;
        (meta.atime, meta.mtime, meta.ctime) = (stat.atime, stat.mtime, stat.ctime);
        Inode::with_identity(self, meta, Body::of(new)?, Some((stat.dev, stat.ino)))
    }
}

impl Inode {
    /// Opens it; the open file says that it is of `node`.
    pub(in crate::fs) fn open_as(
        self: Arc<Self>,
        node: Arc<dyn Node>,
        flags: u32,
    ) -> SysResult<Arc<dyn File>> {
        match &self.body {
            Body::Directory(_) => Ok(Arc::new(NodeDir(node))),
            Body::File(_) => Ok(Arc::new(MemoryFile::of(node, self))),
            Body::Link(_) => Err(Errno::ELOOP),
            Body::Fifo(pipe) => pipe.clone().open(flags, Some(node)),
            Body::Special => {
                let (mode, rdev) = {
                    let meta = self.meta.lock();
                    (meta.mode, meta.rdev)
                };
                crate::fs::special::open(mode, rdev)
            }
        }
    }

    /// Puts mode and times back to what `stat` says: its content was filled in by the file system, not by a program.
    pub(in crate::fs) fn restore(&self, stat: &Stat) {
        let mut meta = self.meta.lock();
        meta.mode = stat.mode;
        (meta.atime, meta.mtime, meta.ctime) = (stat.atime, stat.mtime, stat.ctime);
    }

    /// One name more, or one less.
    pub(in crate::fs) fn count_name(&self, more: bool) {
        self.change(|meta| {
            meta.nlink = if more {
                meta.nlink + 1
            } else {
                meta.nlink.saturating_sub(1)
            };
        });
    }

    /// An entry of this directory came or went.
    pub(in crate::fs) fn entries_changed(&self) {
        self.touch(true);
    }
}

//! The interface of a node: attributes and opening. Reading goes to the layer that has it, changing to the upper one.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::copy_up::Content;
use super::listing::{self, OverlayDir};
use super::{Entry as TableEntry, OverlayNode, paths};
use crate::errno::{Errno, SysResult};
use crate::fs::attributes::StatFs;
use crate::fs::dirent::Entry;
use crate::fs::file::{File, Stat};
use crate::fs::flags::*;
use crate::fs::hostfile::HostFile;
use crate::fs::node::{Link, New, Node};
use crate::fs::open::wanted;

/// `OVERLAYFS_SUPER_MAGIC`.
const MAGIC: i64 = 0x794c_7630;
/// What a directory of the upper layer counts as bytes.
const DIRECTORY_SIZE: i64 = 4096;

impl OverlayNode {
    /// Device, number and mode, without a look at the host.
    pub(super) fn identity(&self) -> Stat {
        self.known.lock().stat
    }

    /// Of a directory: two, and one for each directory in it; one if part of it is the host's, as nobody counts those.
    fn count_links(&self) -> u64 {
        if self.is_removed() {
            return 0;
        }
        if self.lower.is_some() {
            return 1;
        }
        let entries = self.entries.lock();
        let directories = entries
            .values()
            .filter(|entry| matches!(entry, TableEntry::Node { node, .. } if node.is_directory()));
        2 + directories.count() as u64
    }

    fn open_regular(self: Arc<Self>, flags: u32) -> SysResult<Arc<dyn File>> {
        if wanted(flags) & MAY_WRITE != 0 {
            let content = if flags & O_TRUNC != 0 {
                Content::Nothing
            } else {
                Content::Whole
            };
            self.copy_up(content)?;
        }
        let (None, Some(lower)) = (self.upper.get(), &self.lower) else {
            return self.copy_up(Content::Whole)?.clone().open_as(self.clone(), flags);
        };
        let opened = match lower.open_content(|stat| self.is_same(stat)) {
            Err(Errno::ESTALE | Errno::ENOENT) => return Err(self.fs.stale()),
            result => result?,
        };
        let (stat, until) = (opened.stat, opened.until);
        if stat.mode & S_IFMT != S_IFREG {
            return Err(self.fs.stale());
        }
        if self.is_same(&stat) || !self.is_pinned() {
            self.learn(stat, until);
        }
        Ok(Arc::new(
            HostFile::read_only(opened, flags & !O_ACCMODE).of(self.clone()),
        ))
    }
}

impl Node for OverlayNode {
    fn stat(&self) -> SysResult<Stat> {
        let Some(upper) = self.upper.get() else {
            let stat = self.lower_stat()?;
            let nlink = stat.nlink.saturating_sub(u64::from(self.is_removed()));
            return Ok(Stat { nlink, ..stat });
        };
        let stat = upper.stat()?;
        if is_dir(stat.mode) {
            let (nlink, size) = (self.count_links(), DIRECTORY_SIZE);
            return Ok(Stat { nlink, size, ..stat });
        }
        Ok(stat)
    }

    fn search_stat(&self) -> SysResult<Stat> {
        match self.upper.get() {
            None if self.is_directory() => Ok(self.identity()),
            Some(upper) => upper.stat(),
            None => self.lower_stat(),
        }
    }

    fn statfs(&self) -> StatFs {
        StatFs {
            kind: MAGIC,
            ..self.fs.upper.root().statfs()
        }
    }

    fn open(self: Arc<Self>, flags: u32) -> SysResult<Arc<dyn File>> {
        match self.kind() {
            S_IFDIR => Ok(Arc::new(OverlayDir::new(self))),
            S_IFREG => self.open_regular(flags),
            // The host's ends of a FIFO are none of this tree's.
            S_IFIFO => self.copy_up(Content::Whole)?.clone().open_as(self.clone(), flags),
            S_IFLNK => Err(Errno::ELOOP),
            _ => {
                let stat = self.stat()?;
                crate::fs::special::open(stat.mode, stat.rdev)
            }
        }
    }

    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Node>> {
        self.find(name).map(|node| node as Arc<dyn Node>)
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(&Entry<'_>) -> bool) -> SysResult<()> {
        listing::entries(&self.list_all()?, from, each);
        Ok(())
    }

    fn read_link(&self) -> SysResult<Link> {
        match (self.upper.get(), &self.lower) {
            (Some(upper), _) => upper.read_link(),
            (None, Some(lower)) if self.kind() == S_IFLNK => {
                Ok(Link::Path(self.link_target(lower)?.to_vec()))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn create(&self, name: &[u8], new: New<'_>, mode: u32) -> SysResult<Arc<dyn Node>> {
        self.make(name, new, mode).map(|node| node as Arc<dyn Node>)
    }

    fn create_unnamed(&self, mode: u32) -> SysResult<Arc<dyn Node>> {
        self.make_unnamed(mode).map(|node| node as Arc<dyn Node>)
    }

    fn remove(&self, name: &[u8], directory: bool) -> SysResult<()> {
        self.take(name, directory)
    }

    fn link(&self, name: &[u8], node: &Arc<dyn Node>) -> SysResult<()> {
        self.add_link(name, Self::of_node(node)?)
    }

    fn rename(&self, name: &[u8], to: &Arc<dyn Node>, new_name: &[u8], flags: u32) -> SysResult<()> {
        self.move_entry(name, Self::of_node(to)?, new_name, flags)
    }

    fn set_mode(&self, mode: u32) -> SysResult<()> {
        self.copy_up(Content::Whole)?.set_mode(mode)?;
        paths::changed();
        Ok(())
    }

    fn set_owner(&self, uid: u32, gid: u32) -> SysResult<()> {
        self.copy_up(Content::Whole)?.set_owner(uid, gid)?;
        paths::changed();
        Ok(())
    }

    fn set_times(&self, access: Option<[i64; 2]>, modification: Option<[i64; 2]>) -> SysResult<()> {
        self.copy_up(Content::Whole)?.set_times(access, modification)
    }

    fn truncate(&self, size: u64) -> SysResult<()> {
        match self.kind() {
            S_IFDIR => Err(Errno::EISDIR),
            S_IFREG if size == 0 => self.copy_up(Content::Nothing)?.truncate(0),
            S_IFREG => self.copy_up(Content::Whole)?.truncate(size),
            _ => Err(Errno::EINVAL),
        }
    }

    fn xattr(&self, name: &[u8]) -> SysResult<Vec<u8>> {
        match (self.upper.get(), &self.lower) {
            (None, Some(lower)) => lower.xattr(name),
            _ => self.copy_up(Content::Whole)?.xattr(name),
        }
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> SysResult<()> {
        self.copy_up(Content::Whole)?.set_xattr(name, value, flags)
    }

    fn xattrs(&self) -> SysResult<Vec<u8>> {
        match (self.upper.get(), &self.lower) {
            (None, Some(lower)) => lower.xattrs(),
            _ => self.copy_up(Content::Whole)?.xattrs(),
        }
    }

    fn remove_xattr(&self, name: &[u8]) -> SysResult<()> {
        self.copy_up(Content::Whole)?.remove_xattr(name)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

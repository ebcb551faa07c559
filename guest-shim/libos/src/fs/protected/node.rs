//! Files and directories of a protected volume, as the look-up knows them.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;

use cloak_abi::layout::PAGE;
use cloak_volumes::{Ino, SetAttributes, SetMode, Time};
use spin::Mutex;

use super::Protected;
use super::file::VolumeFile;
use crate::errno::{Errno, SysResult};
use crate::fs::attributes::StatFs;
use crate::fs::dirent::Entry;
use crate::fs::file::{File, Stat};
use crate::fs::flags::*;
use crate::fs::node::{Link, New, Node};
use crate::fs::nodedir::NodeDir;
use crate::fs::pipe::Pipe;
use crate::mem::pages::PageCache;

/// What `statfs` says that it is: "CLKV".
const MAGIC: i64 = 0x434c_4b56;
/// Names that are taken from the volume at a time.
const LISTED: usize = 64;
/// Positions of `.` and `..` in a listing; the volume's own are larger.
const FIRST: u64 = 2;

/// An inode that somebody refers to.
pub struct Inode {
    pub(super) fs: Arc<Protected>,
    pub(super) ino: Ino,
    /// Type bits of its mode, which never change.
    kind: u32,
    /// Those of its shared mappings, from the first one on.
    pages: Mutex<Option<Arc<PageCache>>>,
    /// Of a FIFO.
    pipe: Option<Arc<Pipe>>,
    this: Weak<Self>,
}

impl Inode {
    pub(super) fn new(fs: Arc<Protected>, ino: Ino, mode: u32) -> Arc<Self> {
        let kind = mode & S_IFMT;
        Arc::new_cyclic(|this| Self {
            fs,
            ino,
            kind,
            pages: Mutex::new(None),
            pipe: (kind == S_IFIFO).then(|| Pipe::new(false)),
            this: this.clone(),
        })
    }

    pub(super) const fn is_directory(&self) -> bool {
        is_dir(self.kind)
    }

    pub(super) fn pages(&self) -> Option<Arc<PageCache>> {
        self.pages.lock().clone()
    }

    pub(super) fn pages_of_size(&self, size: u64) -> Arc<PageCache> {
        let mut pages = self.pages.lock();
        let there = pages.get_or_insert_with(|| {
            let fresh = PageCache::default();
            fresh.track();
            fresh.set_size(size);
            Arc::new(fresh)
        });
        there.clone()
    }

    /// What `node` is in this volume.
    pub(super) fn of<'n>(&self, node: &'n Arc<dyn Node>) -> SysResult<&'n Self> {
        let inode = node.as_any().downcast_ref::<Self>();
        inode
            .filter(|inode| Arc::ptr_eq(&inode.fs, &self.fs))
            .ok_or(Errno::EXDEV)
    }

    fn set(&self, set: &SetAttributes) -> SysResult<()> {
        self.fs.with(|state| state.volume.set_attributes(self.ino, set))
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        self.fs.forget(self.ino, self.pages.lock().take());
    }
}

const fn seconds(time: Time) -> [i64; 2] {
    [time.seconds, time.nanoseconds as i64]
}

fn time([seconds, nanoseconds]: [i64; 2]) -> Time {
    Time {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or(0).min(999_999_999),
    }
}

/// Attributes as calls give them.
pub(super) fn stat_of(device: u64, stat: &cloak_volumes::Stat) -> Stat {
    Stat {
        dev: device,
        ino: stat.ino.0,
        nlink: u64::from(stat.links),
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.device,
        size: stat.size as i64,
        blksize: PAGE as i64,
        blocks: (stat.blocks * (PAGE / 512)) as i64,
        atime: seconds(stat.accessed),
        mtime: seconds(stat.modified),
        ctime: seconds(stat.changed),
        ..Stat::default()
    }
}

impl Node for Inode {
    fn stat(&self) -> SysResult<Stat> {
        self.fs
            .with(|state| Ok(stat_of(self.fs.device, &state.volume.stat(self.ino)?)))
    }

    fn statfs(&self) -> StatFs {
        let usage = self.fs.usage();
        StatFs {
            kind: MAGIC,
            bsize: PAGE as i64,
            blocks: usage.limit,
            bfree: usage.free,
            bavail: usage.free,
            // Inodes are blocks like others: as many as there is room for.
            files: usage.inodes.saturating_add(usage.free),
            ffree: usage.free_inodes.saturating_add(usage.free),
            namelen: NAME_MAX as i64,
            frsize: PAGE as i64,
            ..StatFs::default()
        }
    }

    fn open(self: Arc<Self>, flags: u32) -> SysResult<Arc<dyn File>> {
        match self.kind {
            S_IFDIR => Ok(Arc::new(NodeDir(self))),
            S_IFREG => Ok(Arc::new(VolumeFile::new(self, flags))),
            S_IFLNK => Err(Errno::ELOOP),
            S_IFIFO => {
                let pipe = self.pipe.clone().ok_or(Errno::ENXIO)?;
                pipe.open(flags, Some(self as Arc<dyn Node>))
            }
            _ => {
                let stat = self.stat()?;
                crate::fs::special::open(stat.mode, stat.rdev)
            }
        }
    }

    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Node>> {
        self.fs.with(|state| {
            let ino = state.volume.lookup(self.ino, name)?;
            Ok(self.fs.inode(state, ino)? as Arc<dyn Node>)
        })
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(&Entry<'_>) -> bool) -> SysResult<()> {
        let parent = self.fs.with(|state| state.volume.parent(self.ino))?;
        let dots = [(0, &b"."[..], self.ino), (1, b"..", parent)];
        for (position, name, ino) in dots {
            let entry = Entry {
                ino: ino.0,
                next: position + 1,
                kind: d_type(S_IFDIR),
                name,
            };
            if position >= from && !each(&entry) {
                return Ok(());
            }
        }
        let mut after = if from <= FIRST { 0 } else { from };
        loop {
            let names = self
                .fs
                .with(|state| state.volume.readdir(self.ino, after, LISTED))?;
            let Some(last) = names.last() else {
                return Ok(());
            };
            after = last.cookie;
            for name in &names {
                let entry = Entry {
                    ino: name.ino.0,
                    next: name.cookie,
                    kind: name.kind,
                    name: &name.name,
                };
                if !each(&entry) {
                    return Ok(());
                }
            }
        }
    }

    fn read_link(&self) -> SysResult<Link> {
        if self.kind != S_IFLNK {
            return Err(Errno::EINVAL);
        }
        self.fs
            .with(|state| Ok(Link::Path(state.volume.readlink(self.ino)?)))
    }

    fn create(&self, name: &[u8], new: New<'_>, mode: u32) -> SysResult<Arc<dyn Node>> {
        self.make(name, new, mode).map(|inode| inode as Arc<dyn Node>)
    }

    fn create_unnamed(&self, mode: u32) -> SysResult<Arc<dyn Node>> {
        self.make_unnamed(mode).map(|inode| inode as Arc<dyn Node>)
    }

    fn remove(&self, name: &[u8], directory: bool) -> SysResult<()> {
        self.take(name, directory)
    }

    fn link(&self, name: &[u8], node: &Arc<dyn Node>) -> SysResult<()> {
        self.add_link(name, self.of(node)?)
    }

    fn rename(&self, name: &[u8], to: &Arc<dyn Node>, new_name: &[u8], flags: u32) -> SysResult<()> {
        self.move_name(name, self.of(to)?, new_name, flags)
    }

    fn set_mode(&self, mode: u32) -> SysResult<()> {
        self.set(&SetAttributes {
            permissions: Some(mode & 0o7777),
            ..SetAttributes::default()
        })
    }

    fn set_owner(&self, uid: u32, gid: u32) -> SysResult<()> {
        let given = |id: u32| (id != u32::MAX).then_some(id);
        self.fs.with(|state| {
            let mode = state.volume.stat(self.ino)?.mode;
            let permissions =
                (!is_dir(mode) && mode & 0o111 != 0).then_some(mode & 0o7777 & !(S_ISUID | S_ISGID));
            let set = SetAttributes {
                permissions,
                uid: given(uid),
                gid: given(gid),
                ..SetAttributes::default()
            };
            state.volume.set_attributes(self.ino, &set)
        })
    }

    fn set_times(&self, access: Option<[i64; 2]>, modification: Option<[i64; 2]>) -> SysResult<()> {
        self.set(&SetAttributes {
            accessed: access.map(time),
            modified: modification.map(time),
            ..SetAttributes::default()
        })
    }

    fn truncate(&self, size: u64) -> SysResult<()> {
        match self.kind {
            S_IFREG => self.resize(size),
            S_IFDIR => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn sync(&self) -> SysResult<()> {
        self.make_durable()
    }

    fn xattr(&self, name: &[u8]) -> SysResult<Vec<u8>> {
        self.fs.with(|state| state.volume.attribute(self.ino, name))
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> SysResult<()> {
        let mode = match flags {
            1 => SetMode::Create,
            2 => SetMode::Replace,
            _ => SetMode::Any,
        };
        self.fs
            .with(|state| state.volume.set_attribute(self.ino, name, value, mode))
    }

    fn xattrs(&self) -> SysResult<Vec<u8>> {
        let names = self.fs.with(|state| state.volume.attributes(self.ino))?;
        Ok(names
            .into_iter()
            .flat_map(|name| name.into_iter().chain([0]))
            .collect())
    }

    fn remove_xattr(&self, name: &[u8]) -> SysResult<()> {
        self.fs
            .with(|state| state.volume.remove_attribute(self.ino, name))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Inode {
    /// Itself, for what keeps it.
    pub(super) fn this(&self) -> SysResult<Arc<Self>> {
        self.this.upgrade().ok_or(Errno::ENOENT)
    }
}

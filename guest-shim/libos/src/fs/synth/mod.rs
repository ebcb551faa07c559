//! Synthetic file systems: `/proc` and `/sys`, made from what the libos knows when they are read.
//!
//! Nothing of the host's own `/proc` and `/sys` is passed through: it would describe another machine.
//!
//! | module | concept |
//! |---|---|
//! | this | generated files, directories and links |
//! | [`machine`] | `/proc` files about the machine |
//! | [`tasks`] | `/proc/PID` |
//! | [`texts`] | the texts of `/proc/PID` files |
//! | [`sysfs`] | `/sys` |
//! | [`tsm`] | `/sys/kernel/config/tsm`: reports about the machine |

mod machine;
mod sysfs;
mod tasks;
#[cfg(test)]
mod tests;
mod texts;
mod tsm;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::attributes::{StatFs, make_dev};
use super::dirent::Entry;
use super::file::{File, Stat};
use super::flags::*;
use super::hostfile::seek_from;
use super::node::{Link, New, Node};
use super::nodedir::NodeDir;
use super::{OpenFile, providers};
use crate::errno::{Errno, SysResult};
use crate::user::Buf;

/// Root of `/proc`.
#[must_use]
pub fn proc_root() -> Arc<dyn Node> {
    Arc::new(Directory {
        path: b"/".to_vec(),
        owner: (0, 0),
        source: Arc::new(tasks::Root),
    })
}

/// Root of `/sys`.
#[must_use]
pub fn sys_root() -> Arc<dyn Node> {
    Arc::new(Directory {
        path: b"/sys".to_vec(),
        owner: (0, 0),
        source: sysfs::root(),
    })
}

const PROC_MAGIC: i64 = 0x9fa0;

/// Makes a file's content.
pub type Make = Arc<dyn Fn() -> SysResult<Vec<u8>> + Send + Sync>;
/// Takes what is written to a file.
pub type Take = Arc<dyn Fn(&[u8]) -> SysResult<()> + Send + Sync>;

/// What a name in a synthetic directory is.
#[derive(Clone)]
pub enum Item {
    /// A directory.
    Directory(Arc<dyn Source>),
    /// A file, readable by all.
    File(Make),
    /// A file that can be written, too.
    Writable(Make, Take),
    /// A symbolic link.
    Link(Arc<dyn Fn() -> SysResult<Link> + Send + Sync>),
}

/// A file whose content is always the same.
#[must_use]
pub fn text(content: impl Into<Vec<u8>>) -> Item {
    let content = content.into();
    Item::File(Arc::new(move || Ok(content.clone())))
}

/// A file whose content is made when it is opened.
pub fn made<T: Into<Vec<u8>>>(make: impl Fn() -> T + Send + Sync + 'static) -> Item {
    Item::File(Arc::new(move || Ok(make().into())))
}

/// What is in a synthetic directory.
pub trait Source: Send + Sync {
    /// Names, in the order of a listing.
    fn names(&self) -> SysResult<Vec<Vec<u8>>>;
    /// The item of a name.
    fn find(&self, name: &[u8]) -> Option<Item>;
    /// Makes a directory of this name in it.
    fn make(&self, name: &[u8]) -> SysResult<()> {
        let _ = name;
        Err(Errno::EPERM)
    }
    /// Takes the directory of this name out of it.
    fn unmake(&self, name: &[u8]) -> SysResult<()> {
        let _ = name;
        Err(Errno::EPERM)
    }
    /// User and group.
    fn owner(&self) -> (u32, u32) {
        (0, 0)
    }
    /// Permission bits of the directory.
    fn mode(&self) -> u32 {
        0o555
    }
    /// The process that the directory stands for.
    fn process(&self) -> Option<i32> {
        None
    }
}

/// The process whose directory under `/proc` this is.
#[must_use]
pub fn process_of(node: &dyn Node) -> Option<i32> {
    node.as_any().downcast_ref::<Directory>()?.source.process()
}

/// A directory whose content does not change.
#[derive(Default)]
pub struct Fixed(Vec<(Vec<u8>, Item)>);

impl Fixed {
    /// Adds an item.
    #[must_use]
    pub fn with(mut self, name: impl Into<Vec<u8>>, item: Item) -> Self {
        self.0.push((name.into(), item));
        self
    }

    /// The finished directory.
    #[must_use]
    pub fn done(self) -> Item {
        Item::Directory(Arc::new(self))
    }
}

impl Source for Fixed {
    fn names(&self) -> SysResult<Vec<Vec<u8>>> {
        Ok(self.0.iter().map(|(name, _)| name.clone()).collect())
    }

    fn find(&self, name: &[u8]) -> Option<Item> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, item)| item.clone())
    }
}

/// FNV-1a of a path: the inode number of what is there, the same each time.
fn inode(path: &[u8]) -> u64 {
    let hash = path.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, &b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    hash >> 16 | 1
}

fn stat_of(path: &[u8], mode: u32, nlink: u64, (uid, gid): (u32, u32)) -> Stat {
    let now = providers::get().now();
    let dev = make_dev(0, if path.starts_with(b"/sys") { 22 } else { 21 });
    let times = (now, now, now);
    let (atime, mtime, ctime) = times;
    Stat {
        dev,
        ino: inode(path),
        nlink,
        mode,
        uid,
        gid,
        blksize: 1024,
        atime,
        mtime,
        ctime,
        ..Stat::default()
    }
}

fn statfs() -> StatFs {
    StatFs {
        kind: PROC_MAGIC,
        bsize: 4096,
        namelen: 255,
        frsize: 4096,
        ..StatFs::default()
    }
}

struct Directory {
    path: Vec<u8>,
    owner: (u32, u32),
    source: Arc<dyn Source>,
}

impl Directory {
    fn child(&self, name: &[u8], item: Item) -> Arc<dyn Node> {
        let mut path = self.path.clone();
        super::path::push(&mut path, name);
        let owner = self.source.owner();
        match item {
            Item::Directory(source) => Arc::new(Self {
                path,
                owner: source.owner(),
                source,
            }),
            Item::File(make) => Arc::new(Leaf {
                path,
                owner,
                make,
                take: None,
            }),
            Item::Writable(make, take) => Arc::new(Leaf {
                path,
                owner,
                make,
                take: Some(take),
            }),
            Item::Link(target) => Arc::new(Symlink { path, owner, target }),
        }
    }
}

impl Node for Directory {
    fn stat(&self) -> SysResult<Stat> {
        Ok(stat_of(&self.path, S_IFDIR | self.source.mode(), 2, self.owner))
    }

    fn statfs(&self) -> StatFs {
        statfs()
    }

    fn open(self: Arc<Self>, _flags: u32) -> SysResult<Arc<dyn File>> {
        Ok(Arc::new(NodeDir(self)))
    }

    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Node>> {
        self.source
            .find(name)
            .map(|item| self.child(name, item))
            .ok_or(Errno::ENOENT)
    }

    fn create(&self, name: &[u8], new: New<'_>, _mode: u32) -> SysResult<Arc<dyn Node>> {
        match new {
            New::Node(mode, _) if mode & S_IFMT == S_IFDIR => self.source.make(name)?,
            _ => return Err(Errno::EPERM),
        }
        self.lookup(name)
    }

    fn remove(&self, name: &[u8], directory: bool) -> SysResult<()> {
        if directory {
            self.source.unmake(name)
        } else {
            Err(Errno::EPERM)
        }
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(&Entry<'_>) -> bool) -> SysResult<()> {
        let names = self.source.names()?;
        let dots = [b".".to_vec(), b"..".to_vec()];
        let all = dots.iter().chain(&names);
        for (position, name) in (0u64..)
            .zip(all)
            .skip(usize::try_from(from).unwrap_or(usize::MAX))
        {
            let kind = match self.source.find(name) {
                _ if position < 2 => 4,
                Some(Item::Directory(_)) => 4,
                Some(Item::Link(_)) => 10,
                Some(_) => 8,
                None => continue,
            };
            let mut path = self.path.clone();
            super::path::push(&mut path, name);
            if !each(&Entry {
                ino: inode(&path),
                next: position + 1,
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

struct Symlink {
    path: Vec<u8>,
    owner: (u32, u32),
    target: Arc<dyn Fn() -> SysResult<Link> + Send + Sync>,
}

impl Node for Symlink {
    fn stat(&self) -> SysResult<Stat> {
        Ok(stat_of(&self.path, S_IFLNK | 0o777, 1, self.owner))
    }

    fn statfs(&self) -> StatFs {
        statfs()
    }

    fn open(self: Arc<Self>, _flags: u32) -> SysResult<Arc<dyn File>> {
        Err(Errno::ELOOP)
    }

    fn read_link(&self) -> SysResult<Link> {
        (self.target)()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Clone)]
struct Leaf {
    path: Vec<u8>,
    owner: (u32, u32),
    make: Make,
    take: Option<Take>,
}

impl Node for Leaf {
    fn stat(&self) -> SysResult<Stat> {
        let mode = if self.take.is_some() { 0o644 } else { 0o444 };
        Ok(stat_of(&self.path, S_IFREG | mode, 1, self.owner))
    }

    fn statfs(&self) -> StatFs {
        statfs()
    }

    fn open(self: Arc<Self>, flags: u32) -> SysResult<Arc<dyn File>> {
        if flags & O_ACCMODE != 0 && self.take.is_none() {
            return Err(Errno::EACCES);
        }
        let content = if flags & O_ACCMODE == O_WRONLY {
            Vec::new()
        } else {
            (self.make)()?
        };
        Ok(Arc::new(Generated {
            leaf: self.clone(),
            node: self,
            content,
        }))
    }

    fn truncate(&self, _size: u64) -> SysResult<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An open generated file: its content as it was when it was opened.
struct Generated {
    leaf: Arc<Leaf>,
    node: Arc<dyn Node>,
    content: Vec<u8>,
}

impl File for Generated {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        file.position.with(|position| {
            let done = self.read_at(*position, to)?;
            *position += done as u64;
            Ok(done)
        })
    }

    fn read_at(&self, offset: u64, to: &mut Buf) -> SysResult<usize> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|at| self.content.get(at..))
            .unwrap_or_default();
        to.put(rest)
    }

    fn write(&self, _file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        self.write_at(0, from)
    }

    fn write_at(&self, _offset: u64, from: &mut Buf) -> SysResult<usize> {
        let take = self.leaf.take.as_ref().ok_or(Errno::EACCES)?;
        let mut bytes = alloc::vec![0; from.len().min(4096)];
        let len = from.take(&mut bytes)?;
        take(&bytes[..len])?;
        Ok(len)
    }

    fn stat(&self) -> SysResult<Stat> {
        self.leaf.stat()
    }

    fn seek(&self, file: &OpenFile, offset: i64, whence: u32) -> SysResult<u64> {
        file.position.with(|position| {
            *position = match whence {
                SEEK_SET => seek_from(0, offset)?,
                SEEK_CUR => seek_from(*position, offset)?,
                _ => return Err(Errno::EINVAL),
            };
            Ok(*position)
        })
    }

    fn truncate(&self, _size: u64) -> SysResult<()> {
        Ok(())
    }

    fn node(&self) -> Option<&Arc<dyn Node>> {
        Some(&self.node)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

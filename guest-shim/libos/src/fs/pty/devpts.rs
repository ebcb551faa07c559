//! `devpts`: the directory of the slaves.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::slave::Slave;
use super::{Owner, Pair, SLAVE_MAJOR, control, pair, pairs};
use crate::errno::{Errno, SysResult};
use crate::fs::attributes::{StatFs, make_dev};
use crate::fs::dirent::Entry;
use crate::fs::file::{File, Stat};
use crate::fs::flags::{O_NOCTTY, O_PATH, S_IFCHR, S_IFDIR, d_type};
use crate::fs::node::Node;
use crate::fs::nodedir::NodeDir;
use crate::fs::providers;

/// `DEVPTS_SUPER_MAGIC`.
const MAGIC: i64 = 0x1cd1;
/// Device number of the file system.
const DEVICE: u64 = make_dev(0, 24);
/// Inode number of the directory, of `ptmx`, and of slave 0.
const ROOT_INODE: u64 = 1;
const MASTER_INODE: u64 = 2;
const FIRST_INODE: u64 = 3;

struct Directory;
struct MasterNode;
struct SlaveNode(Arc<Pair>);

/// Its root directory.
#[must_use]
pub fn root() -> Arc<dyn Node> {
    Arc::new(Directory)
}

/// The slave of this number.
///
/// # Errors
/// EIO when its master is gone.
pub fn slave(number: u32) -> SysResult<Arc<dyn Node>> {
    let pair = pair(number).ok_or(Errno::EIO)?;
    Ok(Arc::new(SlaveNode(pair)))
}

fn statfs() -> StatFs {
    StatFs {
        kind: MAGIC,
        bsize: 4096,
        namelen: 255,
        frsize: 4096,
        ..StatFs::default()
    }
}

impl Node for Directory {
    fn stat(&self) -> SysResult<Stat> {
        let now = providers::get().now();
        Ok(Stat {
            dev: DEVICE,
            ino: ROOT_INODE,
            nlink: 2,
            mode: S_IFDIR | 0o755,
            blksize: 1024,
            atime: now,
            mtime: now,
            ctime: now,
            ..Stat::default()
        })
    }

    fn statfs(&self) -> StatFs {
        statfs()
    }

    fn open(self: Arc<Self>, _flags: u32) -> SysResult<Arc<dyn File>> {
        Ok(Arc::new(NodeDir(self)))
    }

    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Node>> {
        if name == b"ptmx" {
            return Ok(Arc::new(MasterNode));
        }
        let plain = name == b"0" || name.first() != Some(&b'0') && name.iter().all(u8::is_ascii_digit);
        core::str::from_utf8(name)
            .ok()
            .filter(|_| plain)
            .and_then(|text| text.parse().ok())
            .and_then(pair)
            .map(|pair| Arc::new(SlaveNode(pair)) as Arc<dyn Node>)
            .ok_or(Errno::ENOENT)
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(&Entry<'_>) -> bool) -> SysResult<()> {
        let slaves = pairs().into_iter().map(|pair| {
            let place = u64::from(pair.number) + FIRST_INODE;
            (place, place, S_IFCHR, format!("{}", pair.number).into_bytes())
        });
        let fixed = [
            (0, ROOT_INODE, S_IFDIR, b".".to_vec()),
            (1, ROOT_INODE, S_IFDIR, b"..".to_vec()),
            (2, MASTER_INODE, S_IFCHR, b"ptmx".to_vec()),
        ];
        for (place, ino, mode, name) in fixed.into_iter().chain(slaves) {
            let entry = Entry {
                ino,
                next: place + 1,
                kind: d_type(mode),
                name: &name,
            };
            if place >= from && !each(&entry) {
                break;
            }
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Node for MasterNode {
    fn stat(&self) -> SysResult<Stat> {
        let now = providers::get().now();
        Ok(Stat {
            dev: DEVICE,
            ino: MASTER_INODE,
            nlink: 1,
            mode: S_IFCHR | 0o666,
            rdev: make_dev(5, 2),
            blksize: 1024,
            atime: now,
            mtime: now,
            ctime: now,
            ..Stat::default()
        })
    }

    fn statfs(&self) -> StatFs {
        statfs()
    }

    fn open(self: Arc<Self>, _flags: u32) -> SysResult<Arc<dyn File>> {
        super::open_master()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl SlaveNode {
    fn change(&self, change: impl FnOnce(&mut Owner)) {
        let now = self.0.now();
        let mut owner = self.0.owner.lock();
        change(&mut owner);
        owner.times[2] = now;
    }
}

impl Node for SlaveNode {
    fn stat(&self) -> SysResult<Stat> {
        let owner = *self.0.owner.lock();
        Ok(Stat {
            dev: DEVICE,
            ino: u64::from(self.0.number) + FIRST_INODE,
            nlink: 1,
            mode: S_IFCHR | owner.mode,
            uid: owner.uid,
            gid: owner.gid,
            rdev: make_dev(SLAVE_MAJOR, self.0.number),
            blksize: 1024,
            atime: owner.times[0],
            mtime: owner.times[1],
            ctime: owner.times[2],
            ..Stat::default()
        })
    }

    fn statfs(&self) -> StatFs {
        statfs()
    }

    fn open(self: Arc<Self>, flags: u32) -> SysResult<Arc<dyn File>> {
        let slave = Slave::open(self.0.clone(), self.clone())?;
        if flags & (O_NOCTTY | O_PATH) == 0 {
            control::acquire_by_open(&self.0);
        }
        Ok(slave)
    }

    fn set_mode(&self, mode: u32) -> SysResult<()> {
        self.change(|owner| owner.mode = mode & 0o7777);
        Ok(())
    }

    fn set_owner(&self, uid: u32, gid: u32) -> SysResult<()> {
        self.change(|owner| {
            owner.uid = if uid == u32::MAX { owner.uid } else { uid };
            owner.gid = if gid == u32::MAX { owner.gid } else { gid };
        });
        Ok(())
    }

    fn set_times(&self, access: Option<[i64; 2]>, modification: Option<[i64; 2]>) -> SysResult<()> {
        self.change(|owner| {
            owner.times[0] = access.unwrap_or(owner.times[0]);
            owner.times[1] = modification.unwrap_or(owner.times[1]);
        });
        Ok(())
    }

    fn xattrs(&self) -> SysResult<Vec<u8>> {
        Ok(Vec::new())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

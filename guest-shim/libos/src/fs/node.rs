//! Nodes: files and directories of the file systems that live in the guest (`tmpfs`, `/proc`, `/sys`, `/dev`).
//!
//! The look-up ([`super::walk`]) goes from node to node; what a node can't do, its defaults refuse.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use super::OpenFile;
use super::attributes::StatFs;
use super::dirent::Entry;
use super::file::{File, Stat};
use super::flags::{MAY_EXEC, MAY_WRITE, S_ISVTX, is_dir};
use crate::errno::{Errno, SysResult};
use crate::process::{Credentials, Process};

/// Where a symbolic link leads.
pub enum Link {
    /// To a path.
    Path(Vec<u8>),
    /// To something that is open (`/proc/self/fd/N`), whatever its name is by now.
    Open(Arc<OpenFile>),
}

/// What to make in a directory.
#[derive(Debug, Clone, Copy)]
pub enum New<'a> {
    /// A directory, file, FIFO, socket or device, by the type bits of the mode; the device number.
    Node(u32, u64),
    /// A symbolic link to this target.
    Link(&'a [u8]),
}

/// A file or directory in the guest. Methods may park (a volume asks the host), so not while a spin lock is held.
pub trait Node: Send + Sync {
    /// Attributes.
    fn stat(&self) -> SysResult<Stat>;
    /// Attributes for a look-up that goes on below: of a directory they may be older than [`Node::stat`].
    fn search_stat(&self) -> SysResult<Stat> {
        self.stat()
    }
    /// The file system it is in.
    fn statfs(&self) -> StatFs;
    /// Opens it. What the flags ask for has been permitted, and O_TRUNC is the caller's to carry out.
    fn open(self: Arc<Self>, flags: u32) -> SysResult<Arc<dyn File>>;
    /// The entry of this name.
    fn lookup(&self, name: &[u8]) -> SysResult<Arc<dyn Node>> {
        let _ = name;
        Err(Errno::ENOTDIR)
    }
    /// Calls `each` for the directory's entries from position `from` on, `.` and `..` included, until it
    /// says false. Positions only grow, and one that was given stays good whatever is made or removed.
    fn entries(&self, from: u64, each: &mut dyn FnMut(&Entry<'_>) -> bool) -> SysResult<()> {
        let _ = (from, each);
        Err(Errno::ENOTDIR)
    }
    /// Where the link leads.
    fn read_link(&self) -> SysResult<Link> {
        Err(Errno::EINVAL)
    }
    /// Makes an entry (the name is not taken, or EEXIST).
    fn create(&self, name: &[u8], new: New<'_>, mode: u32) -> SysResult<Arc<dyn Node>> {
        let _ = (name, new, mode);
        Err(Errno::EPERM)
    }
    /// Makes a file without a name (`O_TMPFILE`).
    fn create_unnamed(&self, mode: u32) -> SysResult<Arc<dyn Node>> {
        let _ = mode;
        Err(Errno::EOPNOTSUPP)
    }
    /// Takes an entry away; `directory`: as `rmdir`.
    fn remove(&self, name: &[u8], directory: bool) -> SysResult<()> {
        let _ = (name, directory);
        Err(Errno::EPERM)
    }
    /// Another name for `node`, which is of the same file system or gives EXDEV.
    fn link(&self, name: &[u8], node: &Arc<dyn Node>) -> SysResult<()> {
        let _ = (name, node);
        Err(Errno::EPERM)
    }
    /// Moves the entry `name` to `new_name` in `to`.
    fn rename(&self, name: &[u8], to: &Arc<dyn Node>, new_name: &[u8], flags: u32) -> SysResult<()> {
        let _ = (name, to, new_name, flags);
        Err(Errno::EPERM)
    }
    /// Sets the permission bits.
    fn set_mode(&self, mode: u32) -> SysResult<()> {
        let _ = mode;
        Err(Errno::EPERM)
    }
    /// Sets the owner; `u32::MAX` leaves it.
    fn set_owner(&self, uid: u32, gid: u32) -> SysResult<()> {
        let _ = (uid, gid);
        Err(Errno::EPERM)
    }
    /// Sets access and modification time; `None` leaves it.
    fn set_times(&self, access: Option<[i64; 2]>, modification: Option<[i64; 2]>) -> SysResult<()> {
        let _ = (access, modification);
        Err(Errno::EPERM)
    }
    /// Sets the size.
    fn truncate(&self, size: u64) -> SysResult<()> {
        let _ = size;
        Err(Errno::EINVAL)
    }
    /// Makes what was done to it durable (`fsync` of a directory).
    fn sync(&self) -> SysResult<()> {
        Ok(())
    }
    /// The value of an extended attribute.
    fn xattr(&self, name: &[u8]) -> SysResult<Vec<u8>> {
        let _ = name;
        Err(Errno::EOPNOTSUPP)
    }
    /// Sets an extended attribute (`XATTR_CREATE` 1, `XATTR_REPLACE` 2).
    fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> SysResult<()> {
        let _ = (name, value, flags);
        Err(Errno::EOPNOTSUPP)
    }
    /// Names of the extended attributes, each with a NUL.
    fn xattrs(&self) -> SysResult<Vec<u8>> {
        Ok(Vec::new())
    }
    /// Removes an extended attribute.
    fn remove_xattr(&self, name: &[u8]) -> SysResult<()> {
        let _ = name;
        Err(Errno::EOPNOTSUPP)
    }
    /// For file systems to find their own nodes.
    fn as_any(&self) -> &dyn Any;
}

/// Identity that a check is made for.
#[must_use]
pub fn credentials() -> Credentials {
    Process::current().credentials.lock().clone()
}

/// Whether the caller is still who he was.
#[must_use]
pub fn is_caller(who: &Credentials) -> bool {
    *Process::current().credentials.lock() == *who
}

/// Whether `who` may do `want` (`MAY_*`) to something with these attributes.
///
/// # Errors
/// EACCES.
pub fn permit(stat: &Stat, who: &Credentials, want: u32) -> SysResult<()> {
    permit_as(stat, who, who.uid[3], who.gid[3], want)
}

/// [`permit`] for the real identity, as `access` asks.
///
/// # Errors
/// EACCES.
pub fn permit_real(stat: &Stat, who: &Credentials, want: u32) -> SysResult<()> {
    permit_as(stat, who, who.uid[0], who.gid[0], want)
}

fn permit_as(stat: &Stat, who: &Credentials, uid: u32, gid: u32, want: u32) -> SysResult<()> {
    if uid == 0 {
        let executable = is_dir(stat.mode) || stat.mode & 0o111 != 0;
        return if want & MAY_EXEC == 0 || executable {
            Ok(())
        } else {
            Err(Errno::EACCES)
        };
    }
    let granted = if uid == stat.uid {
        stat.mode >> 6
    } else if gid == stat.gid || who.groups.contains(&stat.gid) {
        stat.mode >> 3
    } else {
        stat.mode
    };
    if want & !granted & 7 == 0 {
        Ok(())
    } else {
        Err(Errno::EACCES)
    }
}

/// Whether entries may be made in this directory.
///
/// # Errors
/// EACCES, ENOTDIR.
pub fn permit_entries(directory: &Stat, who: &Credentials) -> SysResult<()> {
    if !is_dir(directory.mode) {
        return Err(Errno::ENOTDIR);
    }
    permit(directory, who, MAY_WRITE | MAY_EXEC)
}

/// Whether `entry` may be taken out of `directory`: the sticky bit's rule.
///
/// # Errors
/// EACCES, EPERM, ENOTDIR.
pub fn permit_removal(directory: &Stat, entry: &Stat, who: &Credentials) -> SysResult<()> {
    permit_entries(directory, who)?;
    let sticky = directory.mode & S_ISVTX != 0;
    let owner = [0, entry.uid, directory.uid].contains(&who.uid[3]);
    if sticky && !owner {
        Err(Errno::EPERM)
    } else {
        Ok(())
    }
}

//! Copying up: from its first change on a file has attributes and content of its own, in guest memory.

use alloc::sync::Arc;
use alloc::vec;

use super::lower::Lower;
use super::{OverlayNode, paths};
use crate::errno::{Errno, SysResult};
use crate::fs::file::{File, Stat};
use crate::fs::flags::{S_IFLNK, S_IFMT, S_IFREG, is_dir};
use crate::fs::hostfile::{HostFile, Position};
use crate::fs::node::{New, Node};
use crate::fs::tmpfs::{Inode, MemoryFile};
use crate::user::Buf;

/// Bytes copied at a time.
const PART: usize = 64 << 10;

/// What is copied besides attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// What is in the file.
    Whole,
    /// Nothing: the file is about to be emptied.
    Nothing,
}

impl OverlayNode {
    /// Its inode in the upper layer, made if there is none yet.
    ///
    /// # Errors
    /// ENOSPC; what the host reports when the file can't be read.
    pub(super) fn copy_up(&self, content: Content) -> SysResult<&Arc<Inode>> {
        if let Some(upper) = self.upper.get() {
            return Ok(upper);
        }
        self.copying.with(|_| {
            if let Some(upper) = self.upper.get() {
                return Ok(upper);
            }
            let lower = self.lower.as_ref().ok_or(Errno::EIO)?;
            let inode = self.copy(lower, content)?;
            self.pin();
            Ok(self.upper.call_once(|| inode))
        })
    }

    fn copy(&self, lower: &Lower, content: Content) -> SysResult<Arc<Inode>> {
        let stat = self.lower_stat()?;
        let target;
        let new = if stat.mode & S_IFMT == S_IFLNK {
            target = self.link_target(lower)?;
            New::Link(target)
        } else {
            New::Node(stat.mode & S_IFMT, stat.rdev)
        };
        // Its other names in the lower layer stay what they are; of a directory nobody counts them.
        let nlink = u64::from(!self.is_removed());
        let inode = self.fs.upper.detached(&Stat { nlink, ..stat }, new)?;
        if stat.mode & S_IFMT == S_IFREG && content == Content::Whole {
            copy_content(lower, &inode)?;
        }
        copy_attributes(lower, &inode)?;
        inode.restore(&stat);
        if is_dir(stat.mode) {
            paths::changed();
        }
        Ok(inode)
    }

    /// Where it leads, a symbolic link of the lower layer.
    pub(super) fn link_target(&self, lower: &Lower) -> SysResult<&[u8]> {
        if let Some(target) = self.target.get() {
            return Ok(target);
        }
        let target = lower.read_link()?;
        Ok(self.target.call_once(|| target))
    }
}

fn copy_content(lower: &Lower, inode: &Arc<Inode>) -> SysResult<()> {
    let (fd, stat) = lower.open(0)?;
    if stat.mode & S_IFMT != S_IFREG {
        return Err(Errno::ESTALE);
    }
    let from = HostFile::new(fd, &stat, 0, Position::Guest);
    let to = MemoryFile::new(inode.clone());
    let mut part = vec![0; PART];
    let mut at = 0;
    loop {
        let got = from.read_direct(at, &mut Buf::own_mut(&mut part))?;
        if got == 0 {
            break;
        }
        // Holes stay holes.
        if part[..got].iter().any(|&b| b != 0) {
            let mut rest = Buf::own(&part[..got]);
            let mut offset = at;
            while !rest.is_empty() {
                offset += to.write_at(offset, &mut rest)? as u64;
            }
        }
        at += got as u64;
    }
    inode.truncate(at)
}

/// Copies the extended attributes that a program may use.
fn copy_attributes(lower: &Lower, inode: &Inode) -> SysResult<()> {
    // What the host does not show does not belong to the copy either.
    let names = lower.xattrs().unwrap_or_default();
    for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let known = [&b"user."[..], b"security.", b"trusted."];
        if !known.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        match lower.xattr(name) {
            Ok(value) => inode.set_xattr(name, &value, 0)?,
            Err(Errno::ENODATA | Errno::EACCES | Errno::EPERM) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

//! Names in directories of a protected volume: made, removed, linked, moved.

use alloc::format;
use alloc::sync::Arc;

use cloak_volumes::{Ino, NewInode, Target, VolumeError};

use super::node::{Inode, stat_of};
use super::{Protected, State};
use crate::errno::{Errno, SysResult};
use crate::fs::flags::*;
use crate::fs::node::{self, New};

/// A step that the volume refuses, or that the caller may not do.
enum Step {
    Volume(VolumeError),
    Forbidden(Errno),
}

impl From<VolumeError> for Step {
    fn from(error: VolumeError) -> Self {
        Self::Volume(error)
    }
}

impl Protected {
    /// [`Protected::with`] for work that also checks what the caller may do.
    fn with_checks<R>(&self, work: impl FnOnce(&mut State) -> Result<R, Step>) -> SysResult<R> {
        self.with(|state| match work(state) {
            Ok(done) => Ok(Ok(done)),
            Err(Step::Forbidden(errno)) => Ok(Err(errno)),
            Err(Step::Volume(error)) => Err(error),
        })?
    }

    fn permit_removal(&self, state: &mut State, directory: Ino, entry: Ino) -> Result<(), Step> {
        let directory = stat_of(self.device, &state.volume.stat(directory)?);
        let entry = stat_of(self.device, &state.volume.stat(entry)?);
        node::permit_removal(&directory, &entry, &node::credentials()).map_err(Step::Forbidden)
    }
}

impl Inode {
    /// What a new inode in this directory is: the caller's, or of the directory's group with its set-gid bit.
    fn newcomer(&self, state: &mut State, mode: u32, device: u64) -> Result<NewInode, VolumeError> {
        let parent = state.volume.stat(self.ino)?;
        let who = node::credentials();
        let inherits = parent.mode & S_ISGID != 0;
        let group_bit = if inherits && is_dir(mode) { S_ISGID } else { 0 };
        Ok(NewInode {
            mode: mode | group_bit,
            uid: who.uid[3],
            gid: if inherits { parent.gid } else { who.gid[3] },
            device,
        })
    }

    pub(super) fn make(&self, name: &[u8], new: New<'_>, mode: u32) -> SysResult<Arc<Self>> {
        let (kind, device) = match new {
            New::Node(kind, device) => (kind & S_IFMT, device),
            New::Link(_) => (S_IFLNK, 0),
        };
        self.fs.with(|state| {
            let newcomer = self.newcomer(state, kind | mode & 0o7777, device)?;
            let ino = match new {
                New::Link(target) => state.volume.symlink(self.ino, name, target, &newcomer)?,
                New::Node(..) if kind == S_IFDIR => state.volume.mkdir(self.ino, name, &newcomer)?,
                New::Node(..) => state.volume.create_file(self.ino, name, &newcomer)?,
            };
            self.fs.inode(state, ino)
        })
    }

    /// A file that lost its name as soon as it had it. If the VM ends now, the volume removes it when it is opened.
    pub(super) fn make_unnamed(&self, mode: u32) -> SysResult<Arc<Self>> {
        self.fs.with(|state| {
            let newcomer = self.newcomer(state, S_IFREG | mode & 0o7777, 0)?;
            let name = format!(".unnamed-{:016x}", crate::random::word());
            let ino = state.volume.create_file(self.ino, name.as_bytes(), &newcomer)?;
            let inode = self.fs.inode(state, ino)?;
            state.volume.unlink(self.ino, name.as_bytes())?;
            Ok(inode)
        })
    }

    pub(super) fn take(&self, name: &[u8], directory: bool) -> SysResult<()> {
        self.fs.with_checks(|state| {
            let entry = state.volume.lookup(self.ino, name)?;
            self.fs.permit_removal(state, self.ino, entry)?;
            if directory {
                state.volume.rmdir(self.ino, name)?;
            } else {
                state.volume.unlink(self.ino, name)?;
            }
            Ok(())
        })
    }

    pub(super) fn add_link(&self, name: &[u8], inode: &Self) -> SysResult<()> {
        if inode.is_directory() {
            return Err(Errno::EPERM);
        }
        let inode = inode.this()?;
        self.fs.with(|state| state.volume.link(inode.ino, self.ino, name))
    }

    pub(super) fn move_name(&self, name: &[u8], to: &Self, new_name: &[u8], flags: u32) -> SysResult<()> {
        let target = match flags {
            RENAME_NOREPLACE => Target::Keep,
            RENAME_EXCHANGE => Target::Exchange,
            _ => Target::Replace,
        };
        self.fs.with_checks(|state| {
            let moved = state.volume.lookup(self.ino, name)?;
            self.fs.permit_removal(state, self.ino, moved)?;
            match state.volume.lookup(to.ino, new_name) {
                // renameat2(2) looks at this before it looks at rights.
                Ok(_) if target == Target::Keep => return Err(Step::Forbidden(Errno::EEXIST)),
                Ok(there) => self.fs.permit_removal(state, to.ino, there)?,
                Err(VolumeError::NotFound) => {
                    let directory = stat_of(self.fs.device, &state.volume.stat(to.ino)?);
                    node::permit_entries(&directory, &node::credentials()).map_err(Step::Forbidden)?;
                }
                Err(error) => return Err(error.into()),
            }
            state.volume.rename(self.ino, name, to.ino, new_name, target)?;
            Ok(())
        })
    }
}

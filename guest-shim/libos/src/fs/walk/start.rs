//! Where a look-up starts, and what it must not do.

use alloc::vec::Vec;

use crate::errno::{Errno, SysResult};
use crate::fs::flags::{AT_FDCWD, is_dir};
use crate::fs::{OpenFile, fd};
use crate::process::Process;

/// What a look-up must not do (`openat2`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Leave the file system where it starts.
    pub(super) one_mount: bool,
    /// Follow the links of `/proc` that lead to open files.
    pub(super) no_magic: bool,
    /// Follow any link.
    pub(super) no_links: bool,
    /// Leave the directory where it starts.
    pub(super) beneath: bool,
    /// Have another root than the directory where it starts.
    pub(super) in_root: bool,
}

impl Bounds {
    /// Of `RESOLVE_*` bits (`include/uapi/linux/openat2.h`).
    ///
    /// # Errors
    /// EINVAL.
    pub fn of(resolve: u64) -> SysResult<Self> {
        let has = |bit: u64| resolve & bit != 0;
        if has(!0x1f) || has(8) && has(0x10) {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            one_mount: has(1),
            no_magic: has(2),
            no_links: has(4),
            beneath: has(8),
            in_root: has(0x10),
        })
    }

    /// Whether a link to an open file may be followed.
    pub(super) fn permit_magic(self) -> SysResult<()> {
        if self.no_magic || self.no_links {
            Err(Errno::ELOOP)
        } else if self.beneath || self.in_root {
            Err(Errno::EXDEV)
        } else {
            Ok(())
        }
    }
}

/// Where a look-up starts.
#[derive(Debug, Clone)]
pub struct Start {
    pub(super) base: Vec<u8>,
    pub(super) root: Vec<u8>,
    pub(super) bounds: Bounds,
}

impl Start {
    /// For `path` relative to `dirfd`.
    ///
    /// # Errors
    /// EBADF, ENOTDIR for a relative path and a descriptor that won't do.
    pub fn of(dirfd: i32, path: &[u8]) -> SysResult<Self> {
        let process = Process::current();
        let root = process.fs.root.lock().clone();
        let base = if path.first() == Some(&b'/') {
            root.clone()
        } else if dirfd == AT_FDCWD {
            process.fs.cwd.lock().clone()
        } else {
            directory_path(&*fd::get(dirfd)?)?
        };
        Ok(Self {
            base,
            root,
            bounds: Bounds::default(),
        })
    }

    /// The same, for a look-up in bounds.
    ///
    /// # Errors
    /// As [`Start::of`]; EXDEV for an absolute path that must stay beneath a directory.
    pub fn within(dirfd: i32, path: &[u8], bounds: Bounds) -> SysResult<Self> {
        let is_absolute = path.first() == Some(&b'/');
        if is_absolute && bounds.beneath {
            return Err(Errno::EXDEV);
        }
        let mut start = Self::of(dirfd, if bounds.in_root { b"." } else { path })?;
        if bounds.in_root {
            start.root.clone_from(&start.base);
        }
        start.bounds = bounds;
        Ok(start)
    }

    /// The root of the name space.
    #[must_use]
    pub fn root() -> Self {
        Self {
            base: b"/".to_vec(),
            root: b"/".to_vec(),
            bounds: Bounds::default(),
        }
    }
}

pub(super) fn directory_path(open: &OpenFile) -> SysResult<Vec<u8>> {
    let known = open.file.as_any().is::<crate::fs::hostdir::HostDir>();
    if !known && !is_dir(open.file.stat()?.mode) {
        return Err(Errno::ENOTDIR);
    }
    Ok(open.path.lock().clone())
}

//! The lower layer: places in a host mount, and what is asked about them. Only requests that read.

use alloc::sync::Arc;
use alloc::vec::Vec;

use cloak_abi::hostop::{PATH_MAX, resolve};

use crate::errno::{Errno, SysResult};
use crate::fs::attributes::{STATX_BASIC, stat_of};
use crate::fs::file::Stat;
use crate::fs::flags::{AT_NO_AUTOMOUNT, AT_SYMLINK_NOFOLLOW, O_DIRECTORY, O_NOFOLLOW, O_PATH, is_dir};
use crate::fs::hostfd::HostFd;
use crate::fs::hostops::{self, At};
use crate::fs::mount::Dir;
use crate::fs::open_cache::{self, Asked, Fresh, Opened, Sharing};

/// A place: the whole path from the mount's root, so that it takes one request, however deep it lies. No component of
/// it was a symbolic link when it was looked up. Where another file system of the host is mounted, paths begin anew.
#[derive(Debug, Clone)]
pub struct Lower {
    dir: Dir,
    path: Vec<u8>,
    how: u64,
}

/// An answer that says that the path is another one by now.
fn stale(error: Errno) -> Errno {
    match error {
        Errno::ELOOP | Errno::ENOTDIR | Errno::EXDEV => Errno::ESTALE,
        other => other,
    }
}

impl Lower {
    /// A mount's root.
    pub fn root(dir: Dir) -> Self {
        Self {
            dir,
            path: b".".to_vec(),
            how: resolve::ROOTED,
        }
    }

    fn at(&self) -> At<'_> {
        At {
            dir: self.dir.number(),
            path: &self.path,
            how: self.how,
        }
    }

    fn child(&self, name: &[u8]) -> SysResult<Self> {
        let mut path = Vec::with_capacity(self.path.len() + 1 + name.len());
        if self.path != b"." {
            path.extend_from_slice(&self.path);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if path.len() > PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        Ok(Self {
            dir: self.dir.clone(),
            path,
            how: resolve::ROOTED,
        })
    }

    fn statx(&self) -> SysResult<Stat> {
        let flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT;
        hostops::statx(self.at(), flags, STATX_BASIC).map(|x| stat_of(&x))
    }

    /// Attributes now; a link's own.
    ///
    /// # Errors
    /// ESTALE when the path does not lead there any more; what the host reports.
    pub fn attributes(&self) -> SysResult<Stat> {
        self.statx().map_err(stale)
    }

    /// The entry of this name in the directory.
    ///
    /// # Errors
    /// ENOENT; ESTALE when this is no directory any more; what the host reports.
    pub fn look_up(&self, name: &[u8]) -> SysResult<(Self, Stat)> {
        let child = self.child(name)?;
        match child.statx() {
            Ok(stat) => Ok((child, stat)),
            Err(Errno::EXDEV) => self.border(name),
            Err(e) => Err(stale(e)),
        }
    }

    /// An entry on which another file system is mounted: from there on paths begin at its own descriptor.
    fn border(&self, name: &[u8]) -> SysResult<(Self, Stat)> {
        let (parent, _) = hostops::open(self.at(), O_PATH | O_DIRECTORY | O_NOFOLLOW, 0).map_err(stale)?;
        let at = At {
            dir: parent.number(),
            path: name,
            how: resolve::COMPONENT,
        };
        let (fd, stat) = hostops::open(at, O_PATH | O_NOFOLLOW, 0).map_err(stale)?;
        if is_dir(stat.mode) {
            return Ok((Self::root(Dir::Open(Arc::new(fd))), stat));
        }
        let file = Self {
            dir: Dir::Open(Arc::new(parent)),
            path: name.to_vec(),
            how: resolve::COMPONENT,
        };
        Ok((file, stat))
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// ESTALE when something else is there by now; what the host reports.
    pub fn open(&self, flags: u32) -> SysResult<(HostFd, Stat)> {
        hostops::open(self.at(), flags | O_NOFOLLOW, 0).map_err(stale)
    }

    /// Opens it for its content, or takes what was opened a moment ago and is `still` the same.
    ///
    /// # Errors
    /// ESTALE when something else is there by now; what the host reports.
    pub fn open_content(&self, still: impl FnOnce(&Stat) -> bool) -> SysResult<Opened> {
        let asked = Asked {
            dir: &self.dir,
            path: &self.path,
            how: self.how,
            flags: O_NOFOLLOW,
        };
        match open_cache::known(&asked, Sharing::Many) {
            Some(known) if still(&known.stat) => return Ok(known),
            _ => {}
        }
        Ok(match open_cache::open(&asked).map_err(stale)? {
            Fresh::Kept(opened) => opened,
            Fresh::Own { fd, stat, until } => Opened::new(fd, stat, until),
        })
    }

    /// Where it leads, as a symbolic link.
    ///
    /// # Errors
    /// ESTALE when it is none any more; what the host reports.
    pub fn read_link(&self) -> SysResult<Vec<u8>> {
        hostops::read_link(self.at()).map_err(|e| {
            if e == Errno::EINVAL {
                Errno::ESTALE
            } else {
                stale(e)
            }
        })
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// What the host reports.
    pub fn xattr(&self, name: &[u8]) -> SysResult<Vec<u8>> {
        let most = 65536;
        hostops::xattr(self.at(), name, most, false).map(|(_, value)| value)
    }

    /// Names of the extended attributes, each with a NUL.
    ///
    /// # Errors
    /// What the host reports.
    pub fn xattrs(&self) -> SysResult<Vec<u8>> {
        match hostops::xattrs(self.at(), 65536, false) {
            Ok((_, names)) => Ok(names),
            Err(Errno::EOPNOTSUPP) => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }
}

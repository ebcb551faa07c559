//! How the guest's paths are resolved: never outside of the directory they are relative to.
//!
//! Resolution is the kernel's (openat2(2)), so there is no race between checking and using. An operation on
//! an existing object opens the object with `O_PATH` and works on that; an operation on a name opens the
//! name's directory and hands the last component to a call that does not follow it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cloak_abi::hostop::{PATH_MAX, resolve};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::region::Buffer;
use super::request::{Call, Place, Refusal};

/// Copies a path of `len` bytes at `at` into `into`, which then holds it with a final NUL.
///
/// # Errors
/// `ENOENT` when empty, `ENAMETOOLONG`, `EINVAL` when outside of the buffer or with a NUL inside.
pub fn take<'s>(
    buffer: &Buffer<'_>,
    at: usize,
    len: usize,
    into: &'s mut Vec<u8>,
) -> Result<&'s CStr, Errno> {
    match len {
        0 => Err(Errno::NOENT),
        1..=PATH_MAX => take_text(buffer, at, len, into),
        _ => Err(Errno::NAMETOOLONG),
    }
}

/// The same for a text that may be empty, up to the size of the buffer.
pub fn take_text<'s>(
    buffer: &Buffer<'_>,
    at: usize,
    len: usize,
    into: &'s mut Vec<u8>,
) -> Result<&'s CStr, Errno> {
    let source = buffer.part(at, len)?;
    into.clear();
    into.resize(len + 1, 0);
    source.read(&mut into[..len]);
    CStr::from_bytes_with_nul(into).map_err(|_| Errno::INVAL)
}

/// [`resolve`] bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// Below the directory, on one file system.
    Rooted,
    /// One component.
    Component,
}

impl Resolve {
    /// Parses argument `n`.
    ///
    /// # Errors
    /// `EINVAL` for bits of another build.
    pub fn parse(call: &Call<'_>, n: usize) -> Result<Self, Errno> {
        match call.arg(n) {
            resolve::ROOTED => Ok(Self::Rooted),
            resolve::COMPONENT => Ok(Self::Component),
            _ => Err(Errno::INVAL),
        }
    }

    /// One component may cross into another file system, but `..` must not leave the directory and a link
    /// is the libos's to resolve.
    fn flags(self) -> ResolveFlags {
        match self {
            Self::Rooted => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
            Self::Component => {
                ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS
            }
        }
    }

    /// Refuses what is not one component, where it must be.
    pub fn check(self, path: &CStr) -> Result<(), Errno> {
        let bytes = path.to_bytes();
        match self {
            Self::Component if bytes.contains(&b'/') || bytes == b".." => Err(Errno::INVAL),
            _ => Ok(()),
        }
    }
}

/// Times that openat2 is tried again when a rename elsewhere made it give up.
const TRIES: usize = 16;

/// Opens a path. On the ring's thread what is not in the directory cache goes to a worker.
///
/// # Errors
/// Those of openat2(2), `EXDEV` for one that leaves the file system included.
pub fn open(
    call: &Call<'_>,
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
    mode: Mode,
    how: Resolve,
) -> Result<OwnedFd, Refusal> {
    how.check(path)?;
    let flags = flags | OFlags::CLOEXEC;
    let changes = OFlags::CREATE | OFlags::TRUNC | OFlags::TMPFILE;
    // The kernel takes RESOLVE_CACHED only for what changes nothing. Creating is done here at once: a
    // directory that something is created in has most likely been looked up before.
    if call.place == Place::Ring && !flags.intersects(changes) {
        let cached = how.flags() | ResolveFlags::CACHED;
        return match rustix::fs::openat2(dir, path, flags, mode, cached) {
            Err(Errno::AGAIN) => Err(Refusal::Defer),
            other => Ok(other?),
        };
    }
    for _ in 1..TRIES {
        match rustix::fs::openat2(dir, path, flags, mode, how.flags()) {
            Err(Errno::AGAIN) => {}
            other => return Ok(other?),
        }
    }
    Ok(rustix::fs::openat2(dir, path, flags, mode, how.flags())?)
}

/// Whether the last component is followed when it is a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Followed.
    Follow,
    /// Is the object itself.
    Itself,
}

impl Last {
    /// From AT_* flags.
    pub fn from_flags(flags: u32) -> Self {
        if flags & libc::AT_SYMLINK_NOFOLLOW as u32 != 0 {
            Self::Itself
        } else {
            Self::Follow
        }
    }
}

/// Opens an existing object as a place (`O_PATH`).
///
/// # Errors
/// Those of [`open`].
pub fn object(
    call: &Call<'_>,
    dir: BorrowedFd<'_>,
    path: &CStr,
    last: Last,
    how: Resolve,
) -> Result<OwnedFd, Refusal> {
    let flags = match last {
        Last::Follow => OFlags::PATH,
        Last::Itself => OFlags::PATH | OFlags::NOFOLLOW,
    };
    open(call, dir, path, flags, Mode::empty(), how)
}

/// A directory that was given, or was opened on the way.
#[derive(Debug)]
enum Dir<'p> {
    Given(BorrowedFd<'p>),
    Opened(OwnedFd),
}

/// A name in its directory: what operations on names work on.
#[derive(Debug)]
pub struct Leaf<'p> {
    dir: Dir<'p>,
    /// The last component, with slashes after it if there were any.
    pub name: &'p CStr,
}

impl Leaf<'_> {
    /// The directory, if it was opened on the way.
    pub fn into_opened(self) -> Option<OwnedFd> {
        match self.dir {
            Dir::Given(_) => None,
            Dir::Opened(fd) => Some(fd),
        }
    }
}

impl AsFd for Leaf<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.dir {
            Dir::Given(fd) => *fd,
            Dir::Opened(fd) => fd.as_fd(),
        }
    }
}

/// Splits a path into that of the last component's directory, with its slash (empty: none), and the last
/// component with the slashes after it.
///
/// # Errors
/// `EBUSY` for a path that is only slashes.
pub fn split(path: &CStr) -> Result<(&[u8], &CStr), Errno> {
    let bytes = path.to_bytes_with_nul();
    let end = bytes
        .iter()
        .rposition(|b| *b != b'/' && *b != 0)
        .ok_or(Errno::BUSY)?;
    let start = bytes[..end]
        .iter()
        .rposition(|b| *b == b'/')
        .map_or(0, |slash| slash + 1);
    let name = CStr::from_bytes_with_nul(&bytes[start..]).map_err(|_| Errno::INVAL)?;
    Ok((&bytes[..start], name))
}

/// Opens the directory of a path's last component.
///
/// # Errors
/// Those of [`open`] and [`split`].
pub fn leaf<'p>(call: &Call<'_>, dir: BorrowedFd<'p>, path: &'p CStr) -> Result<Leaf<'p>, Refusal> {
    let (parent, name) = split(path)?;
    if parent.is_empty() {
        return Ok(Leaf {
            dir: Dir::Given(dir),
            name,
        });
    }
    let mut bytes = [0u8; PATH_MAX + 1];
    bytes
        .get_mut(..parent.len())
        .ok_or(Errno::NAMETOOLONG)?
        .copy_from_slice(parent);
    let parent = CStr::from_bytes_until_nul(&bytes).map_err(|_| Errno::NAMETOOLONG)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let dir = open(call, dir, parent, flags, Mode::empty(), Resolve::Rooted)?;
    Ok(Leaf {
        dir: Dir::Opened(dir),
        name,
    })
}

/// The name under which an open file can be found again by calls that know no descriptors.
pub fn magic_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_split_before_the_last_component() {
        let parts = |path: &'static CStr| split(path).map(|(dir, name)| (dir, name.to_bytes()));
        assert_eq!(parts(c"name"), Ok((&b""[..], &b"name"[..])));
        assert_eq!(parts(c"name//"), Ok((&b""[..], &b"name//"[..])));
        assert_eq!(parts(c"a/b/c"), Ok((&b"a/b/"[..], &b"c"[..])));
        assert_eq!(parts(c"a/b/"), Ok((&b"a/"[..], &b"b/"[..])));
        assert_eq!(parts(c"/x"), Ok((&b"/"[..], &b"x"[..])));
        assert_eq!(parts(c"///"), Err(Errno::BUSY));
        assert_eq!(parts(c""), Err(Errno::BUSY));
    }

    #[test]
    fn one_component_is_no_path() {
        for path in [c"..", c"a/b", c"a/", c"/"] {
            assert_eq!(Resolve::Component.check(path), Err(Errno::INVAL), "{path:?}");
        }
        for path in [c".", c"...", c"a"] {
            assert_eq!(Resolve::Component.check(path), Ok(()), "{path:?}");
        }
    }
}

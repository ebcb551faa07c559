//! What is known of a file: status, permissions, owner, times, access.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::paths::{self, Last, Resolve};
use super::request::{Call, Refusal, Reply, Scratch};
use super::sys;
use super::table::{Entry, Kind};

const EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;
const NOFOLLOW: u32 = libc::AT_SYMLINK_NOFOLLOW as u32;

/// [`cloak_abi::hostop::HostOp::FStat`]
pub fn fstat(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    call.may_be_remote(&entry)?;
    call.buffer().write(sys::fstat(entry.as_fd())?.bytes());
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::StatFs`]
pub fn statfs(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    call.may_be_remote(&entry)?;
    call.buffer().write(sys::fstatfs(entry.as_fd())?.bytes());
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::StatX`]
pub fn statx(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    call.may_be_remote(&entry)?;
    let flags = call.word(1);
    let (last, sync) = (Last::from_flags(flags), flags & libc::AT_STATX_SYNC_TYPE as u32);
    let mask = call.word(2) & 0x7fff_ffff;
    let status = match call.len(3)? {
        0 => sys::statx(entry.as_fd(), c"", sync | EMPTY_PATH, mask)?,
        len => {
            let path = paths::take(&call.buffer(), 0, len, &mut scratch.path)?;
            match Resolve::parse(call, 4)? {
                Resolve::Component => statx_component(&entry, path, last, sync, mask)?,
                how @ Resolve::Rooted => {
                    let place = paths::object(call, entry.as_fd(), path, last, how)?;
                    sys::statx(place.as_fd(), c"", sync | EMPTY_PATH, mask)?
                }
            }
        }
    };
    call.buffer().write(status.bytes());
    Ok(().into())
}

/// One component that is not followed can't leave the directory (`..` is refused), so one call will do.
fn statx_component(
    dir: &Entry,
    name: &std::ffi::CStr,
    last: Last,
    sync: u32,
    mask: u32,
) -> Result<sys::Statx, Errno> {
    Resolve::Component.check(name)?;
    let status = sys::statx(dir.as_fd(), name, sync | NOFOLLOW, mask | libc::STATX_TYPE)?;
    let is_link = u32::from(status.mode()) & libc::S_IFMT == libc::S_IFLNK;
    if is_link && last == Last::Follow {
        Err(Errno::LOOP)
    } else {
        Ok(status)
    }
}

/// [`cloak_abi::hostop::HostOp::Access`]
pub fn access(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    let mode = call.word(1);
    let flags = call.word(2) & libc::AT_EACCESS as u32;
    let target = target(
        call,
        &entry,
        0,
        3,
        Last::from_flags(call.word(2)),
        Resolve::parse(call, 4)?,
        scratch,
    )?;
    sys::access(target.as_fd(), c"", mode, flags | EMPTY_PATH)?;
    let asks_to_write = mode & libc::W_OK as u32 != 0;
    if entry.read_only && asks_to_write && !is_special(target.as_fd())? {
        return Err(Errno::ROFS.into());
    }
    Ok(().into())
}

fn is_special(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let kind = sys::fstat(fd)?.mode() & libc::S_IFMT;
    Ok(!matches!(kind, libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK))
}

/// What an operation on an existing object works on.
#[derive(Debug)]
pub enum Target {
    /// The descriptor itself.
    Given(Arc<Entry>),
    /// What the path leads to, as a place.
    Opened(OwnedFd),
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Given(entry) => entry.as_fd(),
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

/// The target of an operation whose path has `args[len_arg]` bytes at `at`; length 0 is `dir` itself.
pub fn target(
    call: &Call<'_>,
    dir: &Arc<Entry>,
    at: usize,
    len_arg: usize,
    last: Last,
    how: Resolve,
    scratch: &mut Scratch,
) -> Result<Target, Refusal> {
    call.may_be_remote(dir)?;
    let len = call.len(len_arg)?;
    if len == 0 {
        return Ok(Target::Given(Arc::clone(dir)));
    }
    let path = paths::take(&call.buffer(), at, len, &mut scratch.path)?;
    Ok(Target::Opened(paths::object(call, dir.as_fd(), path, last, how)?))
}

/// [`cloak_abi::hostop::HostOp::ChMod`]
pub fn chmod(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    let mode = Mode::from_raw_mode(call.word(1) & 0o7777);
    let last = Last::from_flags(call.word(2));
    let target = target(call, &entry, 0, 3, last, Resolve::Rooted, scratch)?;
    entry.writable()?;
    match target {
        Target::Given(entry) if entry.kind != Kind::Location => rustix::fs::fchmod(&*entry, mode)?,
        // A place can't be changed by descriptor (before fchmodat2), but by its magic link.
        place => {
            rustix::fs::chmodat(CWD, paths::magic_path(place.as_fd()), mode, AtFlags::empty())?;
        }
    }
    Ok(().into())
}

/// [`cloak_abi::hostop::HostOp::ChOwn`]
pub fn chown(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    let id = |n| Some(call.word(n)).filter(|id| *id != u32::MAX);
    let (owner, group) = (id(1).map(Uid::from_raw), id(2).map(Gid::from_raw));
    let last = Last::from_flags(call.word(4));
    let target = target(call, &entry, 0, 3, last, Resolve::Rooted, scratch)?;
    entry.writable()?;
    rustix::fs::chownat(&target, c"", owner, group, AtFlags::EMPTY_PATH)?;
    Ok(().into())
}

/// Bytes of two `struct timespec`.
const TIMES: usize = 32;

/// [`cloak_abi::hostop::HostOp::UTimes`]
pub fn utimes(call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    let entry = call.file(0)?;
    let field = |at: usize| call.buffer().array(at).map(i64::from_ne_bytes);
    let time = |at: usize| {
        Ok::<_, Errno>(Timespec {
            tv_sec: field(at)?,
            tv_nsec: field(at + 8)?,
        })
    };
    let times = Timestamps {
        last_access: time(0)?,
        last_modification: time(16)?,
    };
    let last = Last::from_flags(call.word(2));
    let target = target(call, &entry, TIMES, 3, last, Resolve::Rooted, scratch)?;
    entry.writable()?;
    match target {
        Target::Given(entry) if entry.kind != Kind::Location => rustix::fs::futimens(&*entry, &times)?,
        place => rustix::fs::utimensat(&place, c"", &times, AtFlags::EMPTY_PATH)?,
    }
    Ok(().into())
}

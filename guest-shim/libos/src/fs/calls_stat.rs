//! System calls that ask about files: `stat` and its forms, `access`, `readlink`, `statfs`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::attributes::{self, STATX_BASIC, StatFs, Statx};
use super::calls_open::path_argument;
use super::file::Stat;
use super::flags::*;
use super::hostops::{self, At};
use super::name_cache::{self, Question};
use super::node::{self, Link};
use super::walk::{self, Last, Place};
use super::{OpenFile, fd};
use crate::errno::{Errno, SysResult};
use crate::syscall::{Args, Entry, full};
use crate::user;

/// Calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(4, "stat", "px", stat),
    full(5, "fstat", "fx", fstat),
    full(6, "lstat", "px", lstat),
    full(21, "access", "px", access),
    full(89, "readlink", "pxs", readlink),
    full(137, "statfs", "px", statfs),
    full(138, "fstatfs", "fx", fstatfs),
    full(262, "newfstatat", "fpxx", newfstatat),
    full(267, "readlinkat", "fpxs", readlinkat),
    full(269, "faccessat", "fpx", faccessat),
    full(332, "statx", "fpxxx", statx),
    full(439, "faccessat2", "fpxx", faccessat2),
];

const fn last(flags: u32) -> Last {
    if flags & AT_SYMLINK_NOFOLLOW != 0 {
        Last::Itself
    } else {
        Last::Follow
    }
}

/// The attributes that a path leads to.
fn statx_at(dirfd: i32, path: &[u8], flags: u32, mask: u32) -> SysResult<Statx> {
    if path.is_empty() {
        if flags & AT_EMPTY_PATH == 0 {
            return Err(Errno::ENOENT);
        }
        return statx_open(dirfd, flags, mask);
    }
    let host_flags = flags & (AT_SYMLINK_NOFOLLOW | AT_STATX_SYNC) | AT_NO_AUTOMOUNT;
    walk::with(dirfd, path, last(flags), |place| match place {
        Place::Host(place) => {
            let question = Question::Attributes(host_flags, mask);
            let statx = name_cache::answer(place, question, || hostops::statx(place.at(), host_flags, mask))?;
            if place.must_be_directory && !is_dir(u32::from(statx.mode)) {
                return Err(Errno::ENOTDIR);
            }
            Ok(statx)
        }
        Place::Node(place) => match &place.open {
            Some(open) => open.file.stat().map(|s| attributes::statx_of(&s)),
            None => place.node()?.stat().map(|s| attributes::statx_of(&s)),
        },
    })
}

fn statx_open(dirfd: i32, flags: u32, mask: u32) -> SysResult<Statx> {
    if dirfd == AT_FDCWD {
        return statx_at(dirfd, b".", flags, mask);
    }
    let open = fd::get(dirfd)?;
    match open.file.host_fd() {
        Some(number) if mask & !STATX_BASIC != 0 && open.file.node().is_none() => hostops::statx(
            At::itself(number.into()),
            AT_EMPTY_PATH | flags & AT_STATX_SYNC,
            mask,
        ),
        _ => open.file.stat().map(|s| attributes::statx_of(&s)),
    }
}

fn stat_at(dirfd: i32, path: &[u8], flags: u32) -> SysResult<Stat> {
    if path.is_empty() && flags & AT_EMPTY_PATH != 0 && dirfd != AT_FDCWD {
        return fd::get(dirfd)?.file.stat();
    }
    statx_at(dirfd, path, flags, STATX_BASIC).map(|x| attributes::stat_of(&x))
}

fn give(to: u64, stat: &Stat) -> SysResult {
    user::write(to, stat)?;
    Ok(0)
}

fn stat(args: &Args) -> SysResult {
    give(args.u64(1), &stat_at(AT_FDCWD, &path_argument(args.u64(0))?, 0)?)
}

fn lstat(args: &Args) -> SysResult {
    give(
        args.u64(1),
        &stat_at(AT_FDCWD, &path_argument(args.u64(0))?, AT_SYMLINK_NOFOLLOW)?,
    )
}

fn fstat(args: &Args) -> SysResult {
    give(args.u64(1), &fd::get(args.i32(0))?.file.stat()?)
}

fn newfstatat(args: &Args) -> SysResult {
    let flags = args.u32(3);
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_NO_AUTOMOUNT) != 0 {
        return Err(Errno::EINVAL);
    }
    // glibc's fstat passes an empty path; some programs pass NULL.
    let path = optional_path(args.u64(1), flags)?;
    give(args.u64(2), &stat_at(args.i32(0), &path, flags)?)
}

/// A path argument that may be NULL with AT_EMPTY_PATH.
fn optional_path(address: u64, flags: u32) -> SysResult<Vec<u8>> {
    if address == 0 && flags & AT_EMPTY_PATH != 0 {
        Ok(Vec::new())
    } else {
        path_argument(address)
    }
}

fn statx(args: &Args) -> SysResult {
    let (flags, mask) = (args.u32(2), args.u32(3));
    let known = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_NO_AUTOMOUNT | AT_STATX_SYNC;
    if flags & !known != 0 || flags & AT_STATX_SYNC == AT_STATX_SYNC || mask >> 31 != 0 {
        return Err(Errno::EINVAL);
    }
    let path = optional_path(args.u64(1), flags)?;
    let statx = statx_at(args.i32(0), &path, flags, mask)?;
    user::write(args.u64(4), &statx)?;
    Ok(0)
}

fn access_at(dirfd: i32, path: &[u8], mode: u32, flags: u32) -> SysResult {
    if mode & !7 != 0 || flags & !(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    if path.is_empty() && flags & AT_EMPTY_PATH != 0 {
        let stat = stat_at(dirfd, path, flags)?;
        return check_access(&stat, mode, flags);
    }
    walk::with(dirfd, path, last(flags), |place| match place {
        Place::Host(place) => {
            let flags = flags & (AT_EACCESS | AT_SYMLINK_NOFOLLOW);
            name_cache::answer(place, Question::Access(mode, flags), || {
                hostops::access(place.at(), mode, flags).map(|()| Statx::default())
            })?;
            Ok(0)
        }
        Place::Node(place) => {
            let stat = match &place.open {
                Some(open) => open.file.stat()?,
                None => place.node()?.stat()?,
            };
            let content = matches!(stat.mode & S_IFMT, S_IFREG | S_IFDIR | S_IFLNK);
            if mode & MAY_WRITE != 0 && place.read_only && content {
                return Err(Errno::EROFS);
            }
            check_access(&stat, mode, flags)
        }
    })
}

fn check_access(stat: &Stat, mode: u32, flags: u32) -> SysResult {
    let who = node::credentials();
    if flags & AT_EACCESS != 0 {
        node::permit(stat, &who, mode)?
    } else {
        node::permit_real(stat, &who, mode)?
    }
    Ok(0)
}

fn access(args: &Args) -> SysResult {
    access_at(AT_FDCWD, &path_argument(args.u64(0))?, args.u32(1), 0)
}

fn faccessat(args: &Args) -> SysResult {
    access_at(args.i32(0), &path_argument(args.u64(1))?, args.u32(2), 0)
}

fn faccessat2(args: &Args) -> SysResult {
    access_at(
        args.i32(0),
        &path_argument(args.u64(1))?,
        args.u32(2),
        args.u32(3),
    )
}

fn link_target(dirfd: i32, path: &[u8]) -> SysResult<Vec<u8>> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    walk::with(dirfd, path, Last::Itself, |place| match place {
        Place::Host(place) => hostops::read_link(place.at()),
        Place::Node(place) => match place.node()?.read_link()? {
            Link::Path(target) => Ok(target),
            Link::Open(open) => Ok(open_name(&open)),
        },
    })
}

/// The name under which `/proc/self/fd/N` shows an open file.
fn open_name(open: &Arc<OpenFile>) -> Vec<u8> {
    let path = open.path.lock().clone();
    let is_path = path.first() == Some(&b'/') && !path.ends_with(b" (deleted)");
    if is_path { walk::canonical(&path) } else { path }
}

fn readlink_to(dirfd: i32, path: &[u8], to: u64, size: u64) -> SysResult {
    let size = usize::try_from(size as i32)
        .ok()
        .filter(|&s| s > 0)
        .ok_or(Errno::EINVAL)?;
    let target = link_target(dirfd, path)?;
    let len = target.len().min(size);
    user::copy_out(to, &target[..len])?;
    Ok(len as u64)
}

fn readlink(args: &Args) -> SysResult {
    readlink_to(AT_FDCWD, &path_argument(args.u64(0))?, args.u64(1), args.u64(2))
}

fn readlinkat(args: &Args) -> SysResult {
    let path = path_argument(args.u64(1))?;
    if path.is_empty() {
        // The link itself, opened with O_PATH | O_NOFOLLOW.
        let path = fd::get(args.i32(0))?.path.lock().clone();
        return readlink_to(AT_FDCWD, &path, args.u64(2), args.u64(3));
    }
    readlink_to(args.i32(0), &path, args.u64(2), args.u64(3))
}

fn open_statfs(open: &OpenFile) -> SysResult<StatFs> {
    if let Some(node) = open.file.node() {
        return Ok(node.statfs());
    }
    match open.file.host_fd() {
        Some(number) => hostops::statfs(u64::from(number)),
        // Pipes and the like.
        None => Ok(StatFs {
            kind: 0x0904_1934,
            bsize: 4096,
            namelen: 255,
            frsize: 4096,
            ..StatFs::default()
        }),
    }
}

fn statfs(args: &Args) -> SysResult {
    let path = path_argument(args.u64(0))?;
    let statfs = walk::with(AT_FDCWD, &path, Last::Follow, |place| match place {
        Place::Host(place) => {
            let (fd, _) = hostops::open(place.at(), O_PATH, 0)?;
            let mut statfs = hostops::statfs(fd.number())?;
            statfs.flags |= i64::from(place.read_only);
            Ok(statfs)
        }
        Place::Node(place) => Ok(place.node()?.statfs()),
    })?;
    user::write(args.u64(1), &statfs)?;
    Ok(0)
}

fn fstatfs(args: &Args) -> SysResult {
    let statfs = open_statfs(&*fd::get(args.i32(0))?)?;
    user::write(args.u64(1), &statfs)?;
    Ok(0)
}

//! System calls that change files' attributes and sizes: `chmod`, `chown`, `utimensat`, `truncate`,
//! `fallocate`, `fsync` and their forms.

use alloc::sync::Arc;

use cloak_abi::layout::PAGE;

use super::calls_open::path_argument;
use super::file::Stat;
use super::flags::*;
use super::hostops::{self, At};
use super::inotify::{self, event};
use super::node::{self, Node};
use super::walk::{self, Last, Place, Start};
use super::{OpenFile, fd, open, providers, size_limit};
use crate::errno::{Errno, SysResult};
use crate::syscall::{Args, Entry, full};
use crate::user;

/// Calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(74, "fsync", "f", fsync),
    full(75, "fdatasync", "f", fdatasync),
    full(76, "truncate", "pi", truncate),
    full(77, "ftruncate", "fi", ftruncate),
    full(90, "chmod", "px", chmod),
    full(91, "fchmod", "fx", fchmod),
    full(92, "chown", "pii", chown),
    full(93, "fchown", "fii", fchown),
    full(94, "lchown", "pii", lchown),
    full(132, "utime", "px", utime),
    full(162, "sync", "", sync),
    full(187, "readahead", "fis", advise),
    full(221, "fadvise64", "fiii", advise),
    full(235, "utimes", "px", utimes),
    full(260, "fchownat", "fpiix", fchownat),
    full(261, "futimesat", "fpx", futimesat),
    full(268, "fchmodat", "fpx", fchmodat),
    full(277, "sync_file_range", "fiix", sync_file_range),
    full(280, "utimensat", "fpxx", utimensat),
    full(285, "fallocate", "fxii", fallocate),
    full(306, "syncfs", "f", syncfs),
    full(452, "fchmodat2", "fpxx", fchmodat2),
];

const fn last(follow: bool) -> Last {
    if follow { Last::Follow } else { Last::Itself }
}

/// Changes attributes of what a path or an open file leads to: on the host, or of a node.
fn change(
    dirfd: i32,
    path: &[u8],
    flags: u32,
    host: impl Fn(At<'_>, bool) -> SysResult<()>,
    change_node: impl Fn(&dyn Node, &Stat) -> SysResult<()>,
) -> SysResult {
    let follow = flags & AT_SYMLINK_NOFOLLOW == 0;
    if path.is_empty() {
        if flags & AT_EMPTY_PATH == 0 {
            return Err(Errno::ENOENT);
        }
        let open = fd::get(dirfd)?;
        return change_open(&open, &host, &change_node);
    }
    walk::with_object(dirfd, path, last(follow), |place| match place {
        Place::Host(place) => {
            host(place.at(), follow)?;
            inotify::happened(&place.path, event::ATTRIB);
            Ok(0)
        }
        Place::Node(place) => {
            if let Some(open) = &place.open {
                return change_open(open, &host, &change_node);
            }
            let node = place.node()?;
            if place.read_only {
                return Err(Errno::EROFS);
            }
            change_node(&**node, &node.stat()?)?;
            inotify::happened(&place.path, event::ATTRIB);
            Ok(0)
        }
    })
}

fn change_open(
    open: &OpenFile,
    host: &impl Fn(At<'_>, bool) -> SysResult<()>,
    change_node: &impl Fn(&dyn Node, &Stat) -> SysResult<()>,
) -> SysResult {
    if let Some(node) = open.file.node() {
        change_node(&**node, &node.stat()?)?;
        inotify::happened_to(open, event::ATTRIB);
        return Ok(0);
    }
    let number = open.file.host_fd().ok_or(Errno::EPERM)?;
    host(At::itself(number.into()), true)?;
    inotify::happened_to(open, event::ATTRIB);
    Ok(0)
}

/// Only its owner changes a file's mode and times to what he likes.
fn permit_owner(stat: &Stat) -> SysResult<()> {
    let user = node::credentials().uid[3];
    if user == 0 || user == stat.uid {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

fn change_mode(dirfd: i32, path: &[u8], mode: u32, flags: u32) -> SysResult {
    let mode = mode & 0o7777;
    change(
        dirfd,
        path,
        flags,
        |at, follow| hostops::change_mode(at, mode, follow),
        |node, stat| {
            permit_owner(stat)?;
            if is_link(stat.mode) {
                return Err(Errno::EOPNOTSUPP);
            }
            let who = node::credentials();
            let foreign = who.uid[3] != 0 && who.gid[3] != stat.gid && !who.groups.contains(&stat.gid);
            node.set_mode(if foreign && !is_dir(stat.mode) {
                mode & !S_ISGID
            } else {
                mode
            })
        },
    )
}

fn chmod(args: &Args) -> SysResult {
    change_mode(AT_FDCWD, &path_argument(args.u64(0))?, args.u32(1), 0)
}

fn not_a_place(number: i32) -> SysResult<()> {
    if fd::get(number)?.flags() & O_PATH != 0 {
        Err(Errno::EBADF)
    } else {
        Ok(())
    }
}

fn fchmod(args: &Args) -> SysResult {
    not_a_place(args.i32(0))?;
    change_mode(args.i32(0), b"", args.u32(1), AT_EMPTY_PATH)
}

fn fchmodat(args: &Args) -> SysResult {
    change_mode(args.i32(0), &path_argument(args.u64(1))?, args.u32(2), 0)
}

fn fchmodat2(args: &Args) -> SysResult {
    let flags = args.u32(3);
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    change_mode(args.i32(0), &path_argument(args.u64(1))?, args.u32(2), flags)
}

fn change_owner(dirfd: i32, path: &[u8], uid: u32, gid: u32, flags: u32) -> SysResult {
    change(
        dirfd,
        path,
        flags,
        |at, follow| hostops::change_owner(at, uid, gid, follow),
        |node, stat| {
            let who = node::credentials();
            let own_group = gid == u32::MAX || gid == who.gid[3] || who.groups.contains(&gid);
            let owner = who.uid[3] == stat.uid && (uid == u32::MAX || uid == stat.uid) && own_group;
            if who.uid[3] != 0 && !owner && (uid, gid) != (u32::MAX, u32::MAX) {
                return Err(Errno::EPERM);
            }
            node.set_owner(uid, gid)
        },
    )
}

fn chown(args: &Args) -> SysResult {
    change_owner(
        AT_FDCWD,
        &path_argument(args.u64(0))?,
        args.u32(1),
        args.u32(2),
        0,
    )
}

fn lchown(args: &Args) -> SysResult {
    change_owner(
        AT_FDCWD,
        &path_argument(args.u64(0))?,
        args.u32(1),
        args.u32(2),
        AT_SYMLINK_NOFOLLOW,
    )
}

fn fchown(args: &Args) -> SysResult {
    not_a_place(args.i32(0))?;
    change_owner(args.i32(0), b"", args.u32(1), args.u32(2), AT_EMPTY_PATH)
}

fn fchownat(args: &Args) -> SysResult {
    let flags = args.u32(4);
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    change_owner(
        args.i32(0),
        &path_argument(args.u64(1))?,
        args.u32(2),
        args.u32(3),
        flags,
    )
}

const UTIME_NOW: i64 = 0x3fff_ffff;
const UTIME_OMIT: i64 = 0x3fff_fffe;

fn change_times(dirfd: i32, path: &[u8], times: Option<[[i64; 2]; 2]>, flags: u32) -> SysResult {
    let times = times.unwrap_or([[0, UTIME_NOW]; 2]);
    if times
        .iter()
        .any(|t| !matches!(t[1], 0..1_000_000_000 | UTIME_NOW | UTIME_OMIT))
    {
        return Err(Errno::EINVAL);
    }
    if times.iter().all(|t| t[1] == UTIME_OMIT) {
        return Ok(0);
    }
    let now = times.iter().all(|t| t[1] == UTIME_NOW);
    let value = |t: [i64; 2]| match t[1] {
        UTIME_OMIT => None,
        UTIME_NOW => Some(providers::get().now()),
        _ => Some(t),
    };
    change(
        dirfd,
        path,
        flags,
        |at, follow| hostops::change_times(at, times, follow),
        |node, stat| {
            let writer = now && node::permit(stat, &node::credentials(), MAY_WRITE).is_ok();
            if !writer {
                permit_owner(stat).map_err(|e| if now { Errno::EACCES } else { e })?;
            }
            node.set_times(value(times[0]), value(times[1]))
        },
    )
}

/// Reads two `struct timeval` as `struct timespec`.
fn timevals(address: u64) -> SysResult<Option<[[i64; 2]; 2]>> {
    if address == 0 {
        return Ok(None);
    }
    let times = user::read::<[[i64; 2]; 2]>(address)?;
    if times.iter().any(|t| !(0..1_000_000).contains(&t[1])) {
        return Err(Errno::EINVAL);
    }
    Ok(Some(times.map(|[seconds, micros]| [seconds, micros * 1000])))
}

fn utime(args: &Args) -> SysResult {
    let times = match args.u64(1) {
        0 => None,
        address => Some(user::read::<[i64; 2]>(address)?.map(|seconds| [seconds, 0])),
    };
    change_times(AT_FDCWD, &path_argument(args.u64(0))?, times, 0)
}

fn utimes(args: &Args) -> SysResult {
    change_times(AT_FDCWD, &path_argument(args.u64(0))?, timevals(args.u64(1))?, 0)
}

fn futimesat(args: &Args) -> SysResult {
    let times = timevals(args.u64(2))?;
    if args.u64(1) == 0 {
        return change_times(args.i32(0), b"", times, AT_EMPTY_PATH);
    }
    change_times(args.i32(0), &path_argument(args.u64(1))?, times, 0)
}

fn utimensat(args: &Args) -> SysResult {
    let flags = args.u32(3);
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let times = match args.u64(2) {
        0 => None,
        address => Some(user::read::<[[i64; 2]; 2]>(address)?),
    };
    if args.u64(1) == 0 {
        return change_times(args.i32(0), b"", times, AT_EMPTY_PATH);
    }
    change_times(args.i32(0), &path_argument(args.u64(1))?, times, flags)
}

fn truncate(args: &Args) -> SysResult {
    let size = args.offset(1)?;
    let path = path_argument(args.u64(0))?;
    // Opening checks what is to be checked: permission, kind, read-only mounts.
    let flags = O_WRONLY | O_NONBLOCK | inotify::UNNOTICED;
    let open = open::open_from(&Start::of(AT_FDCWD, &path)?, &path, flags, 0)?;
    truncate_open(&open, size)
}

fn truncate_open(open: &OpenFile, size: u64) -> SysResult {
    size_limit::check(open, size)?;
    open.file.truncate(size)?;
    ends_at(open, size);
    inotify::happened_to(open, event::MODIFY);
    Ok(0)
}

/// The file ends here now: what was mapped behind its last page is gone, with the copies of private mappings.
pub(super) fn ends_at(open: &OpenFile, size: u64) {
    unmap(open, size.div_ceil(PAGE), u64::MAX, true);
}

fn unmap(open: &OpenFile, first: u64, last: u64, and_copies: bool) {
    // One owner is the file itself, one is here: no shared mapping.
    if first < last
        && let Some(pages) = open.file.mapped_pages()
        && (Arc::strong_count(&pages) > 2 || and_copies && pages.is_copied())
    {
        providers::get().unmap_pages(&pages, first, last, and_copies);
    }
}

/// Frees the whole pages of `[offset, offset + len)`, which read as zeros from now on.
///
/// # Errors
/// What the file says to it.
pub fn punch(open: &OpenFile, offset: u64, len: u64) -> SysResult<()> {
    open.file
        .allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, len)?;
    unmap(open, offset.div_ceil(PAGE), (offset + len) / PAGE, false);
    Ok(())
}

fn ftruncate(args: &Args) -> SysResult {
    let size = args.offset(1)?;
    let open = fd::get(args.i32(0))?;
    if !open.writable() {
        return Err(if open.flags() & O_PATH != 0 {
            Errno::EBADF
        } else {
            Errno::EINVAL
        });
    }
    truncate_open(&open, size)
}

fn fallocate(args: &Args) -> SysResult {
    let open = fd::writer(args.i32(0))?;
    let (offset, len) = (args.offset(2)?, args.offset(3)?);
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    if offset.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
        return Err(Errno::EFBIG);
    }
    if args.u32(1) & FALLOC_FL_KEEP_SIZE == 0 {
        size_limit::check(&open, offset + len)?;
    }
    open.file.allocate(args.u32(1), offset, len)?;
    if args.u32(1) & !FALLOC_FL_KEEP_SIZE != 0 {
        // A hole, or zeros: pages were dropped.
        unmap(&open, offset.div_ceil(PAGE), (offset + len) / PAGE, false);
    }
    inotify::happened_to(&open, event::MODIFY);
    Ok(0)
}

/// `fallocate` leaves the size as it is.
const FALLOC_FL_KEEP_SIZE: u32 = 1;
const FALLOC_FL_PUNCH_HOLE: u32 = 2;

fn synced(number: i32, data_only: bool) -> SysResult {
    let open = fd::get(number)?;
    if open.flags() & O_PATH != 0 {
        return Err(Errno::EBADF);
    }
    open.file.sync(data_only).map(|()| 0)
}

fn fsync(args: &Args) -> SysResult {
    synced(args.i32(0), false)
}

fn fdatasync(args: &Args) -> SysResult {
    synced(args.i32(0), true)
}

fn sync(_: &Args) -> SysResult {
    // sync(2) has no errors.
    let _ = super::sync_all();
    Ok(0)
}

fn syncfs(args: &Args) -> SysResult {
    let open = fd::get(args.i32(0))?;
    super::sync_all()?;
    if let Some(number) = open
        .file
        .host_fd()
        .filter(|_| open.flags() & O_PATH == 0 && open.file.node().is_none())
    {
        crate::host::call(
            cloak_abi::hostop::HostOp::Sync,
            [u64::from(number), 2, 0, 0, 0, 0],
        )?;
    }
    Ok(0)
}

fn sync_file_range(args: &Args) -> SysResult {
    if args.u32(3) & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    args.offset(1)?;
    args.offset(2)?;
    synced(args.i32(0), true)
}

/// `fadvise64`, `readahead`: advice that needs no answer.
fn advise(args: &Args) -> SysResult {
    let open = fd::get(args.i32(0))?;
    match open.file.stat()?.mode & S_IFMT {
        S_IFIFO | S_IFSOCK => Err(Errno::ESPIPE),
        _ => Ok(0),
    }
}

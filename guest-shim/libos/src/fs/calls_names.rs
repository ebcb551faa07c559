//! System calls that make, remove and move names: `mkdir`, `unlink`, `rename`, `link`, `symlink`, `mknod`.

use core::sync::atomic::Ordering;

use super::attributes::{STATX_BASIC, stat_of};
use super::calls_open::path_argument;
use super::flags::*;
use super::host_fifos;
use super::hostops;
use super::node::{self, New};
use super::walk::{self, HostPlace, Last, NodePlace, Place};
use super::{OpenFile, fd, inotify, path};
use crate::errno::{Errno, SysResult};
use crate::process::Process;
use crate::syscall::{Args, Entry, full};

/// Calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(82, "rename", "pp", rename),
    full(83, "mkdir", "px", mkdir),
    full(84, "rmdir", "p", rmdir),
    full(86, "link", "pp", link),
    full(87, "unlink", "p", unlink),
    full(88, "symlink", "pp", symlink),
    full(133, "mknod", "pxx", mknod),
    full(258, "mkdirat", "fpx", mkdirat),
    full(259, "mknodat", "fpxx", mknodat),
    full(263, "unlinkat", "fpx", unlinkat),
    full(264, "renameat", "fpfp", renameat),
    full(265, "linkat", "fpfpx", linkat),
    full(266, "symlinkat", "pfp", symlinkat),
    full(316, "renameat2", "fpfpx", renameat2),
];

/// Makes an entry in the directory of a name that is not taken.
///
/// # Errors
/// EEXIST, EACCES, EROFS, and those of the file system.
pub fn make_in_node(place: &NodePlace, new: New<'_>, mode: u32) -> SysResult {
    if place.node.is_some() {
        return Err(Errno::EEXIST);
    }
    if place.must_be_directory && !matches!(new, New::Node(S_IFDIR, _)) {
        return Err(Errno::ENOENT);
    }
    let parent = place.parent()?;
    node::permit_entries(&parent.stat()?, &node::credentials())?;
    let directory = matches!(new, New::Node(S_IFDIR, _));
    parent.create(&place.name, new, mode)?;
    inotify::made(&place.path, directory);
    Ok(0)
}

fn masked(mode: u32) -> u32 {
    mode & !Process::current().fs.umask.load(Ordering::Relaxed)
}

fn make_dir(dirfd: i32, path: &[u8], mode: u32) -> SysResult {
    let mode = masked(mode & 0o1777);
    check_last(dirfd, path, Nameless::always(Errno::EEXIST))?;
    walk::with(dirfd, path, Last::Name, |place| match place {
        Place::Host(place) => {
            hostops::make_dir(place.at(), mode)?;
            inotify::made(&place.path, true);
            Ok(0)
        }
        Place::Node(place) => make_in_node(place, New::Node(S_IFDIR, 0), mode),
    })
}

fn mkdir(args: &Args) -> SysResult {
    make_dir(AT_FDCWD, &path_argument(args.u64(0))?, args.u32(1))
}

fn mkdirat(args: &Args) -> SysResult {
    make_dir(args.i32(0), &path_argument(args.u64(1))?, args.u32(2))
}

fn make_node(dirfd: i32, path: &[u8], mode: u32, device: u32) -> SysResult {
    let kind = match mode & S_IFMT {
        0 => S_IFREG,
        S_IFDIR => return Err(Errno::EPERM),
        kind => kind,
    };
    if !matches!(kind, S_IFREG | S_IFIFO | S_IFSOCK | S_IFCHR | S_IFBLK) {
        return Err(Errno::EINVAL);
    }
    if matches!(kind, S_IFCHR | S_IFBLK) && node::credentials().uid[1] != 0 {
        return Err(Errno::EPERM);
    }
    let mode = kind | masked(mode & 0o7777);
    check_last(dirfd, path, Nameless::always(Errno::EEXIST))?;
    walk::with(dirfd, path, Last::Name, |place| match place {
        Place::Host(place) => {
            hostops::make_node(place.at(), mode, u64::from(device))?;
            if kind == S_IFIFO {
                host_fifos::made(place);
            }
            inotify::made(&place.path, false);
            Ok(0)
        }
        Place::Node(place) => make_in_node(place, New::Node(kind, u64::from(device)), mode),
    })
}

fn mknod(args: &Args) -> SysResult {
    make_node(AT_FDCWD, &path_argument(args.u64(0))?, args.u32(1), args.u32(2))
}

fn mknodat(args: &Args) -> SysResult {
    make_node(
        args.i32(0),
        &path_argument(args.u64(1))?,
        args.u32(2),
        args.u32(3),
    )
}

/// What a call on a name says when the path ends in none.
#[derive(Clone, Copy)]
struct Nameless {
    dot: Errno,
    dot_dot: Errno,
    root: Errno,
}

impl Nameless {
    const fn always(errno: Errno) -> Self {
        Self {
            dot: errno,
            dot_dot: errno,
            root: errno,
        }
    }
}

/// Checks that a path ends in a name that can be made, removed or moved. What is before it is looked up first, as by Linux.
fn check_last(dirfd: i32, path: &[u8], nameless: Nameless) -> SysResult<()> {
    let (parent, name) = path::last_component(path);
    let errno = match name {
        b"." => nameless.dot,
        b".." => nameless.dot_dot,
        b"" if !path.is_empty() => nameless.root,
        _ => return path::check_name(name),
    };
    walk::directory(dirfd, parent)?;
    Err(errno)
}

fn remove(dirfd: i32, path: &[u8], flags: u32) -> SysResult {
    let directory = flags & AT_REMOVEDIR != 0;
    let nameless = if directory {
        Nameless {
            dot: Errno::EINVAL,
            dot_dot: Errno::ENOTEMPTY,
            root: Errno::EBUSY,
        }
    } else {
        Nameless::always(Errno::EISDIR)
    };
    check_last(dirfd, path, nameless)?;
    walk::with(dirfd, path, Last::Name, |place| match place {
        Place::Host(place) => {
            hostops::unlink(place.at(), flags)?;
            host_fifos::removed(&place.path);
            inotify::removed(&place.path, directory);
            Ok(0)
        }
        Place::Node(place) => {
            place.node()?;
            place.parent()?.remove(&place.name, directory)?;
            inotify::removed(&place.path, directory);
            Ok(0)
        }
    })
}

fn unlink(args: &Args) -> SysResult {
    remove(AT_FDCWD, &path_argument(args.u64(0))?, 0)
}

fn rmdir(args: &Args) -> SysResult {
    remove(AT_FDCWD, &path_argument(args.u64(0))?, AT_REMOVEDIR)
}

fn unlinkat(args: &Args) -> SysResult {
    let flags = args.u32(2);
    if flags & !AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    remove(args.i32(0), &path_argument(args.u64(1))?, flags)
}

fn move_name(from: (i32, &[u8]), to: (i32, &[u8]), flags: u32) -> SysResult {
    let known = RENAME_NOREPLACE | RENAME_EXCHANGE;
    if flags & !(known | RENAME_WHITEOUT) != 0 || flags & known == known || flags & RENAME_WHITEOUT != 0 {
        return Err(Errno::EINVAL);
    }
    check_last(from.0, from.1, Nameless::always(Errno::EBUSY))?;
    let taken = if flags & RENAME_NOREPLACE != 0 {
        Errno::EEXIST
    } else {
        Errno::EBUSY
    };
    check_last(to.0, to.1, Nameless::always(taken))?;
    walk::with(from.0, from.1, Last::Name, |source| {
        walk::with(to.0, to.1, Last::Name, |target| match (source, target) {
            (Place::Host(source), Place::Host(target)) => {
                let directory = inotify::watched() && is_host_directory(source);
                hostops::rename(source.at(), target.at(), flags)?;
                let exchanged = flags & RENAME_EXCHANGE != 0;
                host_fifos::renamed(&source.path, &target.path, exchanged);
                inotify::renamed(&source.path, &target.path, directory, exchanged);
                Ok(0)
            }
            (Place::Node(source), Place::Node(target)) => rename_nodes(source, target, flags),
            _ => Err(Errno::EXDEV),
        })
    })
}

fn is_host_directory(place: &HostPlace) -> bool {
    let stat = hostops::statx(place.at(), AT_SYMLINK_NOFOLLOW, STATX_BASIC);
    stat.is_ok_and(|stat| is_dir(stat_of(&stat).mode))
}

fn rename_nodes(source: &NodePlace, target: &NodePlace, flags: u32) -> SysResult {
    let moved = source.node()?;
    let directory = is_dir(moved.stat()?.mode);
    if !directory && (source.must_be_directory || target.must_be_directory) {
        return Err(Errno::ENOTDIR);
    }
    let (from, to) = (source.parent()?, target.parent()?);
    from.rename(&source.name, to, &target.name, flags)?;
    inotify::renamed(
        &source.path,
        &target.path,
        directory,
        flags & RENAME_EXCHANGE != 0,
    );
    Ok(0)
}

fn rename(args: &Args) -> SysResult {
    let (from, to) = (path_argument(args.u64(0))?, path_argument(args.u64(1))?);
    move_name((AT_FDCWD, &from), (AT_FDCWD, &to), 0)
}

fn renameat(args: &Args) -> SysResult {
    let (from, to) = (path_argument(args.u64(1))?, path_argument(args.u64(3))?);
    move_name((args.i32(0), &from), (args.i32(2), &to), 0)
}

fn renameat2(args: &Args) -> SysResult {
    let (from, to) = (path_argument(args.u64(1))?, path_argument(args.u64(3))?);
    move_name((args.i32(0), &from), (args.i32(2), &to), args.u32(4))
}

fn link_at(from: (i32, &[u8]), to: (i32, &[u8]), flags: u32) -> SysResult {
    if flags & !(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    if from.1.is_empty() && flags & AT_EMPTY_PATH != 0 {
        return link_open(from.0, to);
    }
    let last = if flags & AT_SYMLINK_FOLLOW != 0 {
        Last::Follow
    } else {
        Last::Itself
    };
    check_last(to.0, to.1, Nameless::always(Errno::EEXIST))?;
    walk::with_object(from.0, from.1, last, |source| {
        if let Place::Node(source) = source {
            source.node()?;
        }
        walk::with(to.0, to.1, Last::Name, |target| match (source, target) {
            (Place::Host(source), Place::Host(target)) => {
                hostops::link(source.at(), target.at(), flags & AT_SYMLINK_FOLLOW)?;
                inotify::linked(&source.path, &target.path);
                Ok(0)
            }
            (Place::Node(source), Place::Node(target)) => match &source.open {
                Some(open) => link_open_node(open, target),
                None => {
                    link_node(source.node()?, target)?;
                    inotify::linked(&source.path, &target.path);
                    Ok(0)
                }
            },
            _ => Err(Errno::EXDEV),
        })
    })
}

fn link_node(node: &alloc::sync::Arc<dyn node::Node>, target: &NodePlace) -> SysResult {
    if target.node.is_some() {
        return Err(Errno::EEXIST);
    }
    if target.must_be_directory {
        return Err(Errno::ENOENT);
    }
    let parent = target.parent()?;
    node::permit_entries(&parent.stat()?, &node::credentials())?;
    parent.link(&target.name, node).map(|()| 0)
}

fn link_open_node(open: &OpenFile, target: &NodePlace) -> SysResult {
    link_node(open.file.node().ok_or(Errno::EXDEV)?, target)?;
    inotify::made(&target.path, false);
    Ok(0)
}

/// A name for an open file (`O_TMPFILE`).
fn link_open(from: i32, to: (i32, &[u8])) -> SysResult {
    let open = fd::get(from)?;
    walk::with(to.0, to.1, Last::Name, |target| match target {
        Place::Node(target) => link_open_node(&open, target),
        Place::Host(target) => {
            let fd = open.file.host_fd().ok_or(Errno::EXDEV)?;
            let source = hostops::At::itself(fd.into());
            hostops::link(source, target.at(), AT_EMPTY_PATH)?;
            inotify::made(&target.path, false);
            Ok(0)
        }
    })
}

fn link(args: &Args) -> SysResult {
    let (from, to) = (path_argument(args.u64(0))?, path_argument(args.u64(1))?);
    link_at((AT_FDCWD, &from), (AT_FDCWD, &to), 0)
}

fn linkat(args: &Args) -> SysResult {
    let (from, to) = (path_argument(args.u64(1))?, path_argument(args.u64(3))?);
    link_at((args.i32(0), &from), (args.i32(2), &to), args.u32(4))
}

fn symlink_at(target: &[u8], dirfd: i32, path: &[u8]) -> SysResult {
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    check_last(dirfd, path, Nameless::always(Errno::EEXIST))?;
    walk::with(dirfd, path, Last::Name, |place| match place {
        Place::Host(place) => {
            hostops::symlink(target, place.at())?;
            inotify::made(&place.path, false);
            Ok(0)
        }
        Place::Node(place) => make_in_node(place, New::Link(target), 0o777),
    })
}

fn symlink(args: &Args) -> SysResult {
    symlink_at(
        &path_argument(args.u64(0))?,
        AT_FDCWD,
        &path_argument(args.u64(1))?,
    )
}

fn symlinkat(args: &Args) -> SysResult {
    symlink_at(
        &path_argument(args.u64(0))?,
        args.i32(1),
        &path_argument(args.u64(2))?,
    )
}

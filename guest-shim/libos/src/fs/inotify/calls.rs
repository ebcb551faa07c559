//! The system calls.

use super::{Inotify, event};
use crate::errno::{Errno, SysResult};
use crate::fs::attributes::{STATX_BASIC, stat_of};
use crate::fs::calls_open::path_argument;
use crate::fs::fd::{O_CLOEXEC, O_NONBLOCK};
use crate::fs::flags::{AT_FDCWD, AT_SYMLINK_NOFOLLOW, MAY_READ, is_dir};
use crate::fs::walk::{self, Last, Place};
use crate::fs::{anon, fd, hostops, node};
use crate::syscall::{Args, Entry, full, partial};

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(253, "inotify_init", "", init),
    partial(
        254,
        "inotify_add_watch",
        "fpx",
        "told by path: not of changes by another hard link, nor of those of the host",
        add_watch,
    ),
    full(255, "inotify_rm_watch", "fi", rm_watch),
    full(294, "inotify_init1", "x", init1),
];

fn create(flags: u32) -> SysResult {
    if flags & !(O_NONBLOCK | O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    anon::install(Inotify::new()?, flags, b"anon_inode:inotify".to_vec())
}

fn init(_: &Args) -> SysResult {
    create(0)
}

fn init1(args: &Args) -> SysResult {
    create(args.u32(0))
}

fn with<R>(number: i32, work: impl FnOnce(&Inotify) -> SysResult<R>) -> SysResult<R> {
    let open = fd::get(number)?;
    work(open.file.as_any().downcast_ref().ok_or(Errno::EINVAL)?)
}

fn add_watch(args: &Args) -> SysResult {
    let mask = args.u32(2);
    let both = event::MASK_ADD | event::MASK_CREATE;
    if mask & event::ALL == 0 || mask & both == both {
        return Err(Errno::EINVAL);
    }
    with(args.i32(0), |_| Ok(()))?;
    let path = path_argument(args.u64(1))?;
    let follows = mask & event::DONT_FOLLOW == 0;
    let last = if follows { Last::Follow } else { Last::Itself };
    let (stat, path) = walk::with_object(AT_FDCWD, &path, last, |place| match place {
        Place::Host(place) => {
            let flags = if follows { 0 } else { AT_SYMLINK_NOFOLLOW };
            let stat = stat_of(&hostops::statx(place.at(), flags, STATX_BASIC)?);
            Ok((stat, place.path.clone()))
        }
        Place::Node(place) => Ok((place.node()?.stat()?, place.path.clone())),
    })?;
    if mask & event::ONLY_DIRECTORY != 0 && !is_dir(stat.mode) {
        return Err(Errno::ENOTDIR);
    }
    node::permit(&stat, &node::credentials(), MAY_READ)?;
    with(args.i32(0), |inotify| inotify.watch(&path, mask)).map(|number| number as u64)
}

fn rm_watch(args: &Args) -> SysResult {
    with(args.i32(0), |inotify| inotify.unwatch(args.i32(1))).map(|()| 0)
}

//! System calls that change the name space: `mount`, `umount2`. For root inside; what is mounted from the host is fixed
//! at boot.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::calls_open::path_argument;
use super::flags::{AT_FDCWD, is_dir};
use super::mount::{self, Dir, Mount, Source};
use super::tmpfs::Tmpfs;
use super::walk::{self, Last, Place};
use super::{devfs, hostops, node, path, pty, synth};
use crate::errno::{Errno, SysResult};
use crate::syscall::{Args, Entry, partial};
use crate::user;

/// Calls served here.
pub const SYSCALLS: &[Entry] = &[
    partial(
        165,
        "mount",
        "ppsxp",
        "tmpfs, proc, sysfs, devpts and devtmpfs; bind, move, read-only by a remount; nothing propagates",
        mount,
    ),
    partial(166, "umount2", "px", "what is open stays open", umount),
];

const MS_RDONLY: u64 = 1;
const MS_REMOUNT: u64 = 32;
const MS_BIND: u64 = 4096;
const MS_MOVE: u64 = 8192;
const MS_REC: u64 = 16384;
/// MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED.
const PROPAGATION: u64 = 0xf << 17;

const MNT_FORCE: u32 = 1;
const MNT_DETACH: u32 = 2;
const MNT_EXPIRE: u32 = 4;
const UMOUNT_NOFOLLOW: u32 = 8;

/// Bytes of a memory file system that is mounted without a size.
const SIZE_DEFAULT: u64 = 1 << 30;
/// Most mounts.
const MOUNTS_MAX: usize = 1024;

/// Where a path leads, as something to mount, or to mount on.
struct Found {
    path: Vec<u8>,
    source: Source,
    read_only: bool,
    is_directory: bool,
}

fn find(path: &[u8], last: Last) -> SysResult<Found> {
    walk::with(AT_FDCWD, path, last, |place| match place {
        Place::Node(place) => {
            let node = place.node()?;
            Ok(Found {
                path: place.path.clone(),
                source: Source::Node(node.clone()),
                read_only: place.read_only,
                is_directory: is_dir(node.stat()?.mode),
            })
        }
        Place::Host(place) => {
            let (fd, stat) = hostops::open(place.at(), super::flags::O_PATH, 0)?;
            Ok(Found {
                path: place.path.clone(),
                source: Source::Host(Dir::Open(Arc::new(fd))),
                read_only: place.read_only,
                is_directory: is_dir(stat.mode),
            })
        }
    })
    .map(|found| Found {
        path: walk::resolved(&found.path),
        ..found
    })
}

fn permit() -> SysResult<()> {
    if node::credentials().uid[1] == 0 {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

fn mount(args: &Args) -> SysResult {
    let (target, flags) = (path_argument(args.u64(1))?, args.u64(3));
    permit()?;
    let target = find(&target, Last::Follow)?;
    if flags & MS_REMOUNT != 0 {
        return remount(&target.path, flags & MS_RDONLY != 0);
    }
    if flags & MS_BIND != 0 {
        return bind(&path_argument(args.u64(0))?, target, flags & MS_REC != 0);
    }
    if flags & PROPAGATION != 0 {
        return index_of(&mount::all(), &target.path).map(|_| 0); // there is one name space
    }
    if flags & MS_MOVE != 0 {
        return move_mount(&path_argument(args.u64(0))?, target);
    }
    let kind = path_argument(args.u64(2))?;
    let options = match args.u64(4) {
        0 => Vec::new(),
        address => user::read_string(address, 4095)?,
    };
    let (kind, root) = file_system(&kind, &options)?;
    if !target.is_directory {
        return Err(Errno::ENOTDIR);
    }
    add(Mount::node(kind, &target.path, root, flags & MS_RDONLY != 0))
}

fn add(fresh: Mount) -> SysResult {
    mount::change(|table| {
        if table.len() >= MOUNTS_MAX {
            return Err(Errno::ENOSPC);
        }
        table.push(Arc::new(fresh));
        Ok(0)
    })
}

/// A file system of this type with these options.
fn file_system(kind: &[u8], options: &[u8]) -> SysResult<(&'static str, Arc<dyn node::Node>)> {
    match kind {
        b"tmpfs" | b"ramfs" => {
            let (mut size, mut mode) = (SIZE_DEFAULT, 0o1777);
            for option in options.split(|&b| b == b',') {
                if let Some(text) = option.strip_prefix(b"size=") {
                    size = parse_size(text)?;
                } else if let Some(text) = option.strip_prefix(b"mode=") {
                    mode = parse(text, 8)? as u32 & 0o7777;
                }
            }
            Ok(("tmpfs", Tmpfs::new(size, mode).root()))
        }
        b"proc" => Ok(("proc", synth::proc_root())),
        b"sysfs" => Ok(("sysfs", synth::sys_root())),
        b"devpts" => Ok(("devpts", pty::root())),
        b"devtmpfs" => Ok(("devtmpfs", devfs::root())),
        _ => Err(Errno::ENODEV),
    }
}

fn parse(text: &[u8], radix: u32) -> SysResult<u64> {
    core::str::from_utf8(text)
        .ok()
        .and_then(|text| u64::from_str_radix(text, radix).ok())
        .ok_or(Errno::EINVAL)
}

/// Bytes, with `k`, `m` or `g`, or a part of memory in per cent.
fn parse_size(text: &[u8]) -> SysResult<u64> {
    let Some((unit, number)) = text.split_last() else {
        return Err(Errno::EINVAL);
    };
    let factor = match unit {
        b'k' | b'K' => 1 << 10,
        b'm' | b'M' => 1 << 20,
        b'g' | b'G' => 1 << 30,
        b'%' => super::providers::get().memory().total / 100,
        _ => return parse(text, 10),
    };
    parse(number, 10)?.checked_mul(factor).ok_or(Errno::EINVAL)
}

fn index_of(table: &[Arc<Mount>], path: &[u8]) -> SysResult<usize> {
    table.iter().rposition(|m| m.path == path).ok_or(Errno::EINVAL)
}

fn remount(path: &[u8], read_only: bool) -> SysResult {
    mount::change(|table| {
        let index = index_of(table, path)?;
        let old = &table[index];
        // What the host gave for reading stays so.
        if old.read_only && !read_only && matches!(old.source, Source::Host(_)) {
            return Err(Errno::EPERM);
        }
        table[index] = Arc::new(Mount {
            read_only,
            ..(**old).clone()
        });
        Ok(0)
    })
}

fn bind(source: &[u8], target: Found, below: bool) -> SysResult {
    let source = find(source, Last::Follow)?;
    if source.is_directory != target.is_directory {
        return Err(Errno::ENOTDIR);
    }
    // A host directory is reached by names in it; a file of the host has none.
    if !source.is_directory && matches!(source.source, Source::Host(_)) {
        return Err(Errno::EINVAL);
    }
    let kind = mount::covering(&source.path)?.kind;
    mount::change(|table| {
        let mut fresh = alloc::vec![Mount::bind(
            kind,
            target.path.clone(),
            source.source,
            source.read_only
        )];
        for inner in table.iter().filter(|_| below) {
            match path::below(&source.path, &inner.path) {
                Some(rest) if !rest.is_empty() => fresh.push(Mount::bind(
                    inner.kind,
                    path::join(&target.path, rest),
                    inner.source.clone(),
                    inner.read_only,
                )),
                _ => {}
            }
        }
        if table.len() + fresh.len() > MOUNTS_MAX {
            return Err(Errno::ENOSPC);
        }
        table.extend(fresh.into_iter().map(Arc::new));
        Ok(0)
    })
}

fn move_mount(source: &[u8], target: Found) -> SysResult {
    let from = find(source, Last::Follow)?.path;
    mount::change(|table| {
        index_of(table, &from)?;
        if from == b"/" || path::below(&from, &target.path).is_some() {
            return Err(Errno::EINVAL);
        }
        for mount in table.iter_mut() {
            if let Some(rest) = path::below(&from, &mount.path) {
                let path = path::join(&target.path, rest);
                *mount = Arc::new(Mount {
                    path,
                    ..(**mount).clone()
                });
            }
        }
        Ok(0)
    })
}

fn umount(args: &Args) -> SysResult {
    let (target, flags) = (path_argument(args.u64(0))?, args.u32(1));
    if flags & !(MNT_FORCE | MNT_DETACH | MNT_EXPIRE | UMOUNT_NOFOLLOW) != 0
        || flags & MNT_EXPIRE != 0 && flags & (MNT_FORCE | MNT_DETACH) != 0
    {
        return Err(Errno::EINVAL);
    }
    permit()?;
    let last = if flags & UMOUNT_NOFOLLOW != 0 {
        Last::Itself
    } else {
        Last::Follow
    };
    let path = find(&target, last)?.path;
    let gone = mount::change(|table| {
        let index = index_of(table, &path)?;
        if path == b"/" {
            return Err(Errno::EBUSY);
        }
        let is_inner = |m: &Arc<Mount>| m.path.len() > path.len() && path::below(&path, &m.path).is_some();
        if flags & MNT_DETACH == 0 && table.iter().skip(index).any(is_inner) {
            return Err(Errno::EBUSY);
        }
        let top = table.remove(index);
        let mut gone: Vec<_> = table.extract_if(index.., |m| is_inner(m)).collect();
        gone.push(top);
        Ok(gone)
    })?;
    drop(gone);
    Ok(0)
}

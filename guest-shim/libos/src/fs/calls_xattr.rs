//! System calls on extended attributes.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::calls_open::path_argument;
use super::fd;
use super::flags::{AT_FDCWD, MAY_READ, MAY_WRITE, O_PATH, S_IFDIR, S_IFMT, S_IFREG};
use super::hostops::{self, At};
use super::node::{self, Node};
use super::walk::{self, Last, Place};
use crate::errno::{Errno, SysResult};
use crate::syscall::{Args, Entry, full};
use crate::user;

/// Calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(188, "setxattr", "ppxsx", |a| set(&path(a, Last::Follow)?, a)),
    full(189, "lsetxattr", "ppxsx", |a| set(&path(a, Last::Itself)?, a)),
    full(190, "fsetxattr", "fpxsx", |a| set(&open(a)?, a)),
    full(191, "getxattr", "ppxs", |a| get(&path(a, Last::Follow)?, a)),
    full(192, "lgetxattr", "ppxs", |a| get(&path(a, Last::Itself)?, a)),
    full(193, "fgetxattr", "fpxs", |a| get(&open(a)?, a)),
    full(194, "listxattr", "pxs", |a| list(&path(a, Last::Follow)?, a)),
    full(195, "llistxattr", "pxs", |a| list(&path(a, Last::Itself)?, a)),
    full(196, "flistxattr", "fxs", |a| list(&open(a)?, a)),
    full(197, "removexattr", "pp", |a| remove(&path(a, Last::Follow)?, a)),
    full(198, "lremovexattr", "pp", |a| remove(&path(a, Last::Itself)?, a)),
    full(199, "fremovexattr", "fp", |a| remove(&open(a)?, a)),
];

/// Longest attribute name.
const NAME_MAX: usize = 255;
/// Largest value and list.
const VALUE_MAX: usize = 65536;

/// Whose attributes are meant.
enum Subject {
    Path(Vec<u8>, Last),
    Host(u64),
    Node(Arc<dyn Node>),
}

fn path(args: &Args, last: Last) -> SysResult<Subject> {
    Ok(Subject::Path(path_argument(args.u64(0))?, last))
}

fn open(args: &Args) -> SysResult<Subject> {
    let open = fd::get(args.i32(0))?;
    if open.flags() & O_PATH != 0 {
        return Err(Errno::EBADF);
    }
    match (open.file.node(), open.file.host_fd()) {
        (Some(node), _) => Ok(Subject::Node(node.clone())),
        (None, Some(number)) => Ok(Subject::Host(u64::from(number))),
        (None, None) => Err(Errno::EOPNOTSUPP),
    }
}

fn on<T>(
    subject: &Subject,
    host: impl Fn(At<'_>, bool) -> SysResult<T>,
    on_node: impl Fn(&dyn Node, bool) -> SysResult<T>,
) -> SysResult<T> {
    match subject {
        Subject::Host(dir) => host(At::itself(*dir), true),
        Subject::Node(node) => on_node(&**node, false),
        Subject::Path(path, last) => walk::with_object(AT_FDCWD, path, *last, |place| match place {
            Place::Host(place) => host(place.at(), *last == Last::Follow),
            Place::Node(place) => on_node(&**place.node()?, place.read_only),
        }),
    }
}

fn name(address: u64) -> SysResult<Vec<u8>> {
    let name = user::read_string(address, NAME_MAX).map_err(|e| {
        if e == Errno::ENAMETOOLONG {
            Errno::ERANGE
        } else {
            e
        }
    })?;
    if name.is_empty() {
        Err(Errno::ERANGE)
    } else {
        Ok(name)
    }
}

/// Whether the caller may use an attribute of this name space.
fn permit(node: &dyn Node, name: &[u8], want: u32) -> SysResult<()> {
    let stat = node.stat()?;
    let who = node::credentials();
    if name.starts_with(b"user.") {
        if !matches!(stat.mode & S_IFMT, S_IFREG | S_IFDIR) {
            return Err(if want == MAY_WRITE {
                Errno::EPERM
            } else {
                Errno::ENODATA
            });
        }
        return node::permit(&stat, &who, want);
    }
    if name.starts_with(b"trusted.") || name.starts_with(b"security.") {
        let root = who.uid[3] == 0;
        return match want {
            MAY_WRITE if !root => Err(Errno::EPERM),
            _ if !root && name.starts_with(b"trusted.") => Err(Errno::ENODATA),
            _ => Ok(()),
        };
    }
    Err(Errno::EOPNOTSUPP)
}

/// Gives bytes, or with no room their length only.
fn give(bytes: &[u8], to: u64, size: usize) -> SysResult {
    if size > 0 {
        if bytes.len() > size {
            return Err(Errno::ERANGE);
        }
        user::copy_out(to, bytes)?;
    }
    Ok(bytes.len() as u64)
}

fn given((len, bytes): (usize, Vec<u8>), to: u64, size: usize) -> SysResult {
    if size == 0 {
        Ok(len as u64)
    } else {
        give(&bytes, to, size)
    }
}

fn get(subject: &Subject, args: &Args) -> SysResult {
    let (name, to, size) = (name(args.u64(1))?, args.u64(2), args.usize(3).min(VALUE_MAX));
    on(
        subject,
        |at, follow| given(hostops::xattr(at, &name, size, follow)?, to, size),
        |node, _| {
            permit(node, &name, MAY_READ)?;
            give(&node.xattr(&name)?, to, size)
        },
    )
}

fn set(subject: &Subject, args: &Args) -> SysResult {
    let (name, len, flags) = (name(args.u64(1))?, args.usize(3), args.u32(4));
    if flags > 2 {
        return Err(Errno::EINVAL);
    }
    if len > VALUE_MAX {
        return Err(Errno::E2BIG);
    }
    let mut value = alloc::vec![0; len];
    user::copy_in(&mut value, args.u64(2))?;
    on(
        subject,
        |at, follow| hostops::set_xattr(at, &name, &value, flags, follow).map(|()| 0),
        |node, read_only| {
            if read_only {
                return Err(Errno::EROFS);
            }
            permit(node, &name, MAY_WRITE)?;
            node.set_xattr(&name, &value, flags).map(|()| 0)
        },
    )
}

fn list(subject: &Subject, args: &Args) -> SysResult {
    let (to, size) = (args.u64(1), args.usize(2).min(VALUE_MAX));
    on(
        subject,
        |at, follow| given(hostops::xattrs(at, size, follow)?, to, size),
        |node, _| give(&node.xattrs()?, to, size),
    )
}

fn remove(subject: &Subject, args: &Args) -> SysResult {
    let name = name(args.u64(1))?;
    on(
        subject,
        |at, follow| hostops::remove_xattr(at, &name, follow).map(|()| 0),
        |node, read_only| {
            if read_only {
                return Err(Errno::EROFS);
            }
            permit(node, &name, MAY_WRITE)?;
            node.remove_xattr(&name).map(|()| 0)
        },
    )
}

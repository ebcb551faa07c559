//! System calls that open and close: `open` and its forms, `close`, directories' content, working
//! directory, root, `umask`.

use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::Ordering;

use super::flags::{AT_FDCWD, O_ACCMODE, O_CLOEXEC, O_CREAT, O_PATH, O_TMPFILE, O_TRUNC, O_WRONLY};
use super::walk::{Bounds, Start};
use super::{OpenFile, dirent, fd, node, open, path, walk};
use crate::errno::{Errno, SysResult};
use crate::process::Process;
use crate::syscall::{Args, Entry, full, partial};
use crate::user::{self, Buf};

/// Calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(2, "open", "pxx", open),
    full(3, "close", "f", close),
    full(78, "getdents", "fxu", getdents),
    full(79, "getcwd", "xs", getcwd),
    full(80, "chdir", "p", chdir),
    full(81, "fchdir", "f", fchdir),
    full(85, "creat", "px", creat),
    full(95, "umask", "x", umask),
    full(161, "chroot", "p", chroot),
    full(217, "getdents64", "fxu", getdents64),
    full(257, "openat", "fpxx", openat),
    full(436, "close_range", "uux", close_range),
    partial(437, "openat2", "fpxs", "RESOLVE_CACHED gives EAGAIN", openat2),
];

/// Longest path with its NUL.
const PATH_SIZE: usize = 4096;

/// Reads a path argument.
///
/// # Errors
/// EFAULT, ENAMETOOLONG.
pub fn path_argument(address: u64) -> SysResult<alloc::vec::Vec<u8>> {
    user::read_string(address, PATH_SIZE - 1)
}

fn open_to_fd(dirfd: i32, address: u64, flags: u32, mode: u32) -> SysResult {
    let path = path_argument(address)?;
    install(open::open_at(dirfd, &path, flags, mode)?, flags & O_CLOEXEC != 0)
}

/// Gives an open file the lowest free number.
fn install(open: Arc<OpenFile>, close_on_exec: bool) -> SysResult {
    let number = Process::current().files.insert(open, close_on_exec, 0)?;
    Ok(number as u64)
}

fn open(args: &Args) -> SysResult {
    open_to_fd(AT_FDCWD, args.u64(0), args.u32(1), args.u32(2))
}

fn openat(args: &Args) -> SysResult {
    open_to_fd(args.i32(0), args.u64(1), args.u32(2), args.u32(3))
}

fn creat(args: &Args) -> SysResult {
    open_to_fd(AT_FDCWD, args.u64(0), O_CREAT | O_WRONLY | O_TRUNC, args.u32(1))
}

const RESOLVE_CACHED: u64 = 0x20;

fn openat2(args: &Args) -> SysResult {
    if args.usize(3) < 24 {
        return Err(Errno::EINVAL);
    }
    let [flags, mode, resolve] = user::read::<[u64; 3]>(args.u64(2))?;
    if args.usize(3) > 24 {
        let rest = user::read_array::<u8>(args.u64(2) + 24, (args.usize(3) - 24).min(PATH_SIZE))?;
        if rest.iter().any(|&b| b != 0) {
            return Err(Errno::E2BIG);
        }
    }
    let flags = u32::try_from(flags).map_err(|_| Errno::EINVAL)?;
    let makes = flags & O_CREAT != 0 || flags & O_TMPFILE == O_TMPFILE;
    if flags & O_ACCMODE == O_ACCMODE || mode & !0o7777 != 0 || mode != 0 && !makes {
        return Err(Errno::EINVAL);
    }
    let bounds = Bounds::of(resolve & !RESOLVE_CACHED)?;
    if resolve & RESOLVE_CACHED != 0 {
        return Err(Errno::EAGAIN);
    }
    if resolve == 0 {
        return open_to_fd(args.i32(0), args.u64(1), flags, mode as u32);
    }
    let path = path_argument(args.u64(1))?;
    let start = Start::within(args.i32(0), &path, bounds)?;
    let umask = Process::current().fs.umask.load(Ordering::Relaxed);
    let open = open::open_from(&start, &path, flags, mode as u32 & !umask)?;
    install(open, flags & O_CLOEXEC != 0)
}

fn close(args: &Args) -> SysResult {
    let process = Process::current();
    let closed = process.files.remove(args.i32(0))?;
    super::locks::closed(&process, &closed.open);
    Ok(0)
}

const CLOSE_RANGE_UNSHARE: u32 = 2;
const CLOSE_RANGE_CLOEXEC: u32 = 4;

fn close_range(args: &Args) -> SysResult {
    let (first, last, flags) = (args.u32(0), args.u32(1), args.u32(2));
    if first > last || flags & !(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    // CLOSE_RANGE_UNSHARE: threads of a process always share their descriptors here.
    let process = Process::current();
    let chosen = |number: &i32| u32::try_from(*number).is_ok_and(|n| (first..=last).contains(&n));
    for number in process.files.numbers().into_iter().filter(chosen) {
        if flags & CLOSE_RANGE_CLOEXEC != 0 {
            // Another thread may have closed it meanwhile.
            let _ = process.files.set_close_on_exec(number, true);
        } else if let Ok(closed) = process.files.remove(number) {
            super::locks::closed(&process, &closed.open);
        }
    }
    Ok(0)
}

fn directory_of(args: &Args) -> SysResult<Arc<OpenFile>> {
    let open = fd::get(args.i32(0))?;
    if open.flags() & O_PATH != 0 {
        Err(Errno::EBADF)
    } else {
        Ok(open)
    }
}

fn getdents64(args: &Args) -> SysResult {
    let open = directory_of(args)?;
    let mut to = Buf::user(args.u64(1), args.u32(2) as usize)?;
    open.file.read_dir(&open, &mut to).map(|n| n as u64)
}

fn getdents(args: &Args) -> SysResult {
    let open = directory_of(args)?;
    let mut records = vec![0; (args.u32(2) as usize).min(crate::host::CAPACITY)];
    let len = open.file.read_dir(&open, &mut Buf::own_mut(&mut records))?;
    let old = dirent::to_old(&records[..len])?;
    dirent::give(&old, &mut Buf::user(args.u64(1), args.u32(2) as usize)?).map(|n| n as u64)
}

fn getcwd(args: &Args) -> SysResult {
    let process = Process::current();
    let cwd = process.fs.cwd.lock().clone();
    let root = process.fs.root.lock().clone();
    let mut text = match path::below(&root, &cwd) {
        Some(rest) => path::join(b"/", rest),
        // Outside of the root: Linux says so.
        None => [b"(unreachable)", &cwd[..]].concat(),
    };
    text.push(0);
    if text.len() > args.usize(1) {
        return Err(Errno::ERANGE);
    }
    user::copy_out(args.u64(0), &text)?;
    Ok(text.len() as u64)
}

fn change_directory(to: alloc::vec::Vec<u8>) -> SysResult {
    *Process::current().fs.cwd.lock() = to;
    Ok(0)
}

fn chdir(args: &Args) -> SysResult {
    change_directory(walk::directory(AT_FDCWD, &path_argument(args.u64(0))?)?)
}

fn fchdir(args: &Args) -> SysResult {
    change_directory(walk::directory(args.i32(0), b".")?)
}

fn chroot(args: &Args) -> SysResult {
    let root = walk::directory(AT_FDCWD, &path_argument(args.u64(0))?)?;
    if node::credentials().uid[1] != 0 {
        return Err(Errno::EPERM);
    }
    *Process::current().fs.root.lock() = root;
    Ok(0)
}

fn umask(args: &Args) -> SysResult {
    let old = Process::current()
        .fs
        .umask
        .swap(args.u32(0) & 0o777, Ordering::Relaxed);
    Ok(u64::from(old))
}

//! System calls that move data: `read`, `write` and their vectored and positioned forms, `lseek`.

use super::flags::O_APPEND;
use super::inotify::{self, event};
use super::{OpenFile, fd, size_limit};
use crate::errno::{Errno, SysResult};
use crate::syscall::{Args, Entry, full, partial};
use crate::user::Buf;

/// Calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(0, "read", "fxs", read),
    full(1, "write", "fxs", write),
    full(8, "lseek", "fii", lseek),
    full(17, "pread64", "fxsi", pread64),
    full(18, "pwrite64", "fxsi", pwrite64),
    full(19, "readv", "fxu", readv),
    full(20, "writev", "fxu", writev),
    full(295, "preadv", "fxui", preadv),
    full(296, "pwritev", "fxui", pwritev),
    partial(327, "preadv2", "fxuiix", "RWF_NOWAIT gives EOPNOTSUPP", preadv2),
    partial(328, "pwritev2", "fxuiix", "RWF_NOWAIT gives EOPNOTSUPP", pwritev2),
];

const RWF_HIPRI: u32 = 1;
const RWF_DSYNC: u32 = 2;
const RWF_SYNC: u32 = 4;
const RWF_APPEND: u32 = 0x10;

/// A wait that a signal ended is restarted where the handler allows it.
fn restartable<T>(result: SysResult<T>) -> SysResult<T> {
    result.map_err(|e| if e == Errno::EINTR { Errno::ERESTARTSYS } else { e })
}

/// Tells who watches the file.
pub(super) fn was_read(open: &OpenFile, bytes: usize) -> u64 {
    if bytes > 0 {
        inotify::happened_to(open, event::ACCESS);
    }
    bytes as u64
}

/// Tells who watches the file.
pub(super) fn was_written(open: &OpenFile, bytes: usize) -> u64 {
    if bytes > 0 {
        inotify::happened_to(open, event::MODIFY);
    }
    bytes as u64
}

fn do_read(open: &OpenFile, to: &mut Buf) -> SysResult {
    restartable(open.file.read(open, to)).map(|n| was_read(open, n))
}

fn do_write(open: &OpenFile, from: &mut Buf) -> SysResult {
    size_limit::cut(open, None, from)?;
    restartable(open.file.write(open, from)).map(|n| was_written(open, n))
}

fn read(args: &Args) -> SysResult {
    let open = fd::reader(args.i32(0))?;
    do_read(&open, &mut Buf::user(args.u64(1), args.usize(2))?)
}

fn write(args: &Args) -> SysResult {
    let open = fd::writer(args.i32(0))?;
    do_write(&open, &mut Buf::user(args.u64(1), args.usize(2))?)
}

fn readv(args: &Args) -> SysResult {
    let open = fd::reader(args.i32(0))?;
    do_read(&open, &mut Buf::user_vector(args.u64(1), args.usize(2))?)
}

fn writev(args: &Args) -> SysResult {
    let open = fd::writer(args.i32(0))?;
    do_write(&open, &mut Buf::user_vector(args.u64(1), args.usize(2))?)
}

fn read_at(open: &OpenFile, offset: u64, to: &mut Buf) -> SysResult {
    restartable(open.file.read_at(offset, to)).map(|n| was_read(open, n))
}

/// Writes at the end without moving the position.
fn append(open: &OpenFile, from: &mut Buf) -> SysResult {
    let size = u64::try_from(open.file.stat()?.size).unwrap_or(0);
    size_limit::cut(open, Some(size), from)?;
    open.file.write_at(size, from).map(|n| was_written(open, n))
}

fn write_at(open: &OpenFile, offset: u64, from: &mut Buf) -> SysResult {
    if open.flags() & O_APPEND != 0 {
        // As on Linux (pwrite(2), BUGS): the data goes to the end, the position stays.
        return append(open, from);
    }
    size_limit::cut(open, Some(offset), from)?;
    restartable(open.file.write_at(offset, from)).map(|n| was_written(open, n))
}

fn pread64(args: &Args) -> SysResult {
    let (open, offset) = (fd::reader(args.i32(0))?, args.offset(3)?);
    read_at(&open, offset, &mut Buf::user(args.u64(1), args.usize(2))?)
}

fn pwrite64(args: &Args) -> SysResult {
    let (open, offset) = (fd::writer(args.i32(0))?, args.offset(3)?);
    write_at(&open, offset, &mut Buf::user(args.u64(1), args.usize(2))?)
}

fn preadv(args: &Args) -> SysResult {
    let (open, offset) = (fd::reader(args.i32(0))?, args.offset(3)?);
    read_at(&open, offset, &mut Buf::user_vector(args.u64(1), args.usize(2))?)
}

fn pwritev(args: &Args) -> SysResult {
    let (open, offset) = (fd::writer(args.i32(0))?, args.offset(3)?);
    write_at(&open, offset, &mut Buf::user_vector(args.u64(1), args.usize(2))?)
}

fn preadv2(args: &Args) -> SysResult {
    if args.u32(5) & !RWF_HIPRI != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if args.i64(3) == -1 {
        readv(args)
    } else {
        preadv(args)
    }
}

fn pwritev2(args: &Args) -> SysResult {
    let flags = args.u32(5);
    if flags & !(RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_APPEND) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let open = fd::writer(args.i32(0))?;
    let mut from = Buf::user_vector(args.u64(1), args.usize(2))?;
    let done = if flags & RWF_APPEND != 0 {
        append(&open, &mut from)?
    } else if args.i64(3) == -1 {
        do_write(&open, &mut from)?
    } else {
        write_at(&open, args.offset(3)?, &mut from)?
    };
    if flags & (RWF_DSYNC | RWF_SYNC) != 0 {
        open.file.sync(flags & RWF_SYNC == 0)?;
    }
    Ok(done)
}

fn lseek(args: &Args) -> SysResult {
    let open = fd::get(args.i32(0))?;
    if open.flags() & super::fd::O_PATH != 0 {
        return Err(Errno::EBADF);
    }
    let whence = args.u32(2);
    if whence > super::flags::SEEK_HOLE {
        return Err(Errno::EINVAL);
    }
    open.file.seek(&open, args.i64(1), whence)
}

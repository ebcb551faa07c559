//! System calls that copy between descriptors: `sendfile`, `copy_file_range`, `splice` and its like.

use alloc::sync::Arc;
use alloc::vec;

use super::calls_io::{was_read, was_written};
use super::file::ready;
use super::flags::{O_APPEND, S_IFMT, S_IFREG, is_dir};
use super::pipe::PipeEnd;
use super::{File, OpenFile, fd, size_limit};
use crate::errno::{Errno, SysResult};
use crate::syscall::{Args, Entry, full, partial};
use crate::user::{self, Buf, RW_MAX};

/// Calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(40, "sendfile", "ffxs", sendfile),
    partial(
        275,
        "splice",
        "fxfxsx",
        "copies; not from a stream of the host",
        splice,
    ),
    full(276, "tee", "ffsx", tee),
    partial(278, "vmsplice", "fxsx", "copies", vmsplice),
    full(326, "copy_file_range", "fxfxsx", copy_file_range),
];

/// Bytes copied at a time.
const PART: usize = 64 << 10;
const SPLICE_F_NONBLOCK: u32 = 2;
/// All that there are.
const SPLICE_FLAGS: u32 = 0xf;

/// Where one side of a copy is.
struct Side {
    open: Arc<OpenFile>,
    /// Position, or none for the open file's own.
    offset: Option<u64>,
}

impl Side {
    fn of(number: i32, offset: u64) -> SysResult<Self> {
        let offset = match offset {
            0 => None,
            address => Some(u64::try_from(user::read::<i64>(address)?).map_err(|_| Errno::EINVAL)?),
        };
        Ok(Self {
            open: fd::get(number)?,
            offset,
        })
    }

    fn read(&self, part: &mut [u8], done: u64) -> SysResult<usize> {
        let mut to = Buf::own_mut(part);
        match self.offset {
            Some(offset) => self.open.file.read_at(offset.saturating_add(done), &mut to),
            None => self.open.file.read(&self.open, &mut to),
        }
    }

    fn write(&self, part: &[u8], done: u64) -> SysResult<usize> {
        let mut from = Buf::own(part);
        let offset = self.offset.map(|offset| offset.saturating_add(done));
        size_limit::cut(&self.open, offset, &mut from)?;
        match offset {
            Some(offset) => self.open.file.write_at(offset, &mut from),
            None => self.open.file.write(&self.open, &mut from),
        }
    }

    /// Puts the position of what could not be written back.
    fn unread(&self, bytes: usize) -> SysResult<()> {
        if self.offset.is_none() && bytes > 0 {
            self.open
                .file
                .seek(&self.open, -(bytes as i64), super::flags::SEEK_CUR)?;
        }
        Ok(())
    }

    fn give_offset(&self, address: u64, done: u64) -> SysResult<()> {
        match self.offset {
            Some(offset) => user::write(address, &offset.saturating_add(done)),
            None => Ok(()),
        }
    }
}

fn copy(from: &Side, to: &Side, len: usize) -> SysResult {
    if !from.open.readable() || !to.open.writable() {
        return Err(Errno::EBADF);
    }
    let len = len.min(RW_MAX);
    let mut part = vec![0; PART.min(len)];
    let mut done = 0;
    while done < len {
        let room = part.len().min(len - done);
        let step = from.read(&mut part[..room], done as u64).and_then(|got| {
            let wrote = to.write(&part[..got], done as u64);
            from.unread(got - *wrote.as_ref().unwrap_or(&0))?;
            Ok((got, wrote?))
        });
        match step {
            Ok((got, wrote)) => {
                done += wrote;
                if wrote < room || wrote < got {
                    break;
                }
            }
            Err(Errno::EINTR) if done == 0 => return Err(Errno::ERESTARTSYS),
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    was_read(&from.open, done);
    Ok(was_written(&to.open, done))
}

fn sendfile(args: &Args) -> SysResult {
    let to = Side::of(args.i32(0), 0)?;
    let from = Side::of(args.i32(1), args.u64(2))?;
    if to.open.flags() & O_APPEND != 0 {
        return Err(Errno::EINVAL);
    }
    // As on Linux, what is sent must be a file with positions.
    if !from.open.readable() {
        return Err(Errno::EBADF);
    }
    let position = from.open.file.seek(&from.open, 0, super::flags::SEEK_CUR);
    let len = args.usize(3);
    if position.is_err() || len == 0 && is_dir(from.open.file.stat()?.mode) {
        return Err(Errno::EINVAL);
    }
    // A directory says so when it is read: to ask first would be one more request for each file that is sent.
    let done = copy(&from, &to, len).map_err(|error| match error {
        Errno::EISDIR => Errno::EINVAL,
        other => other,
    })?;
    from.give_offset(args.u64(2), done)?;
    Ok(done)
}

fn copy_file_range(args: &Args) -> SysResult {
    let from = Side::of(args.i32(0), args.u64(1))?;
    let to = Side::of(args.i32(2), args.u64(3))?;
    if args.u32(5) != 0 {
        return Err(Errno::EINVAL);
    }
    let modes = [from.open.file.stat()?.mode, to.open.file.stat()?.mode];
    if modes.iter().any(|&m| is_dir(m)) {
        return Err(Errno::EISDIR);
    }
    if modes.iter().any(|m| m & S_IFMT != S_IFREG) {
        return Err(Errno::EINVAL);
    }
    if to.open.flags() & O_APPEND != 0 {
        return Err(Errno::EBADF);
    }
    let done = copy(&from, &to, args.usize(4))?;
    from.give_offset(args.u64(1), done)?;
    to.give_offset(args.u64(3), done)?;
    Ok(done)
}

fn splice(args: &Args) -> SysResult {
    if args.usize(4) == 0 {
        return Ok(0);
    }
    if args.u32(5) & !SPLICE_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let from = Side::of(args.i32(0), args.u64(1))?;
    let to = Side::of(args.i32(2), args.u64(3))?;
    if !from.open.readable() || !to.open.writable() {
        return Err(Errno::EBADF);
    }
    let seekable = |side: &Side| side.open.file.seek(&side.open, 0, super::flags::SEEK_CUR).is_ok();
    let done = if let Some(pipe) = from.open.file.as_any().downcast_ref::<PipeEnd>() {
        if from.offset.is_some() {
            return Err(Errno::ESPIPE);
        }
        splice_out(pipe, &from, &to, args.usize(4), args.u32(5))?
    } else if seekable(&from) {
        copy(&from, &to, args.usize(4))?
    } else {
        // What was read of a stream of the host and can't be written would be lost.
        return Err(Errno::EINVAL);
    };
    from.give_offset(args.u64(1), done)?;
    to.give_offset(args.u64(3), done)?;
    Ok(done)
}

/// From a pipe: what can't be written stays in it.
fn splice_out(pipe: &PipeEnd, from: &Side, to: &Side, len: usize, flags: u32) -> SysResult {
    let mut done = 0;
    while done < len {
        // Only the first part is waited for.
        let nonblocking = done > 0 || flags & SPLICE_F_NONBLOCK != 0 || from.open.nonblocking();
        let room = PART.min(len - done);
        match pipe.hand_over(room, nonblocking, |part| to.write(part, done as u64)) {
            Ok(0) => break,
            Ok(wrote) => done += wrote,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(done as u64)
}

/// From pipe to pipe, and it stays in the first.
fn tee(args: &Args) -> SysResult {
    if args.u32(3) & !SPLICE_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    if args.usize(2) == 0 {
        return Ok(0);
    }
    let (from, to) = (fd::get(args.i32(0))?, fd::get(args.i32(1))?);
    if !from.readable() || !to.writable() {
        return Err(Errno::EBADF);
    }
    let ends = [&from, &to].map(|open| open.file.as_any().downcast_ref::<PipeEnd>());
    let [Some(source), Some(sink)] = ends else {
        return Err(Errno::EINVAL);
    };
    if source.is_of_the_same_pipe(sink) {
        return Err(Errno::EINVAL);
    }
    let nonblocking = args.u32(3) & SPLICE_F_NONBLOCK != 0;
    if nonblocking && sink.poll() & ready::OUT == 0 {
        return Err(Errno::EAGAIN);
    }
    let copy = |part: &[u8]| sink.write(&to, &mut Buf::own(part));
    let len = args.usize(2).min(PART);
    let done = source.look_at(len, nonblocking || from.nonblocking(), copy)?;
    Ok(done as u64)
}

/// As `writev` to a pipe, or `readv` from one.
fn vmsplice(args: &Args) -> SysResult {
    if args.u32(3) & !SPLICE_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let open = fd::get(args.i32(0))?;
    let pipe = open.file.as_any().downcast_ref::<PipeEnd>().ok_or(Errno::EBADF)?;
    let mut memory = Buf::user_vector(args.u64(1), args.usize(2))?;
    if memory.is_empty() {
        return Ok(0);
    }
    let done = if open.writable() {
        if args.u32(3) & SPLICE_F_NONBLOCK != 0 && pipe.poll() & ready::OUT == 0 {
            return Err(Errno::EAGAIN);
        }
        pipe.write(&open, &mut memory)
    } else {
        if args.u32(3) & SPLICE_F_NONBLOCK != 0 && pipe.poll() & (ready::IN | ready::HUP) == 0 {
            return Err(Errno::EAGAIN);
        }
        pipe.read(&open, &mut memory)
    };
    done.map(|done| done as u64)
}

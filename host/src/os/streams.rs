//! Reading and writing without ever making the ring wait.
//!
//! Regular files are read from the page cache (`RWF_NOWAIT` costs 30 ns more than pread(2)); what is not
//! cached goes to a worker. Writes go to the page cache at once; when Linux makes writers wait because the
//! disk is behind, the next ones go to a worker.
//!
//! Files that were inherited share their open file with the shell that started us, so `O_NONBLOCK` must
//! not be set on them: pipes know per-call flags, sockets too, and the rest is asked by poll(2) first.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::readiness::is_ready;
use super::region::Buffer;
use super::request::{Answer, Call, Place, Refusal, Reply};
use super::sys::{self, Address};
use super::table::{Entry, Kind};
use super::terminal;

/// A write that takes longer than this was made to wait.
const SLOW: Duration = Duration::from_millis(1);
/// Bytes that a blocking pipe takes whole when it is ready for writing (PIPE_BUF).
const PIPE_PART: usize = 4096;
/// Bytes that other blocking devices are given at a time.
const DEVICE_PART: usize = 256;

/// [`cloak_abi::hostop::HostOp::Read`]
pub fn read(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    let out = call.data(1)?;
    let fd = entry.as_fd();
    let len = match entry.kind {
        Kind::Regular => read_file(call, &entry, &out)?,
        Kind::SharedPipe => match sys::read_nowait(fd, &out, -1) {
            Err(Errno::OPNOTSUPP) => read_when_ready(&entry, &out)?,
            other => other?,
        },
        Kind::SharedSocket => sys::receive(fd, None, None, &out, 0)?.len,
        Kind::SharedDevice => read_when_ready(&entry, &out)?,
        Kind::Socket | Kind::Stream | Kind::Directory | Kind::Location => {
            sys::read(fd, &out).map_err(|errno| terminal::explain_read(&entry, errno))?
        }
    };
    Ok(len.into())
}

fn read_when_ready(entry: &Entry, out: &Buffer<'_>) -> Result<usize, Refusal> {
    let events = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
    if !is_ready(entry.as_fd(), events)? {
        return Err(Errno::AGAIN.into());
    }
    sys::read(entry.as_fd(), out).map_err(|errno| terminal::explain_read(entry, errno))
}

/// Reads a regular file at its position.
fn read_file(call: &Call<'_>, entry: &Entry, out: &Buffer<'_>) -> Result<usize, Refusal> {
    call.may_be_remote(entry)?;
    if call.place == Place::Worker || !entry.may_know_nowait() {
        return Ok(sys::read(entry.as_fd(), out)?);
    }
    let len = match sys::read_nowait(entry.as_fd(), out, -1) {
        Err(Errno::AGAIN) => return Err(Refusal::Defer),
        Err(Errno::OPNOTSUPP) => {
            entry.knows_no_nowait();
            return Ok(sys::read(entry.as_fd(), out)?);
        }
        other => other?,
    };
    if len == out.len() {
        return Ok(len);
    }
    // The end of the file, or of what is cached. The position has moved, so this can't start again on a
    // worker; programs do not expect short reads of files. An error here comes again at the next read.
    let rest = out.part(len, out.len() - len)?;
    Ok(len + sys::read(entry.as_fd(), &rest).unwrap_or(0))
}

/// [`cloak_abi::hostop::HostOp::PRead`]
pub fn pread(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    let out = call.data(1)?;
    let offset = call.offset(2)?;
    call.may_be_remote(&entry)?;
    if call.place == Place::Worker || entry.kind != Kind::Regular || !entry.may_know_nowait() {
        return Ok(sys::pread(entry.as_fd(), &out, offset)?.into());
    }
    match sys::read_nowait(entry.as_fd(), &out, offset) {
        Ok(len) if len == out.len() => Ok(len.into()),
        Ok(len) if ends(&entry, offset, len)? => Ok(len.into()),
        Ok(_) | Err(Errno::AGAIN) => Err(Refusal::Defer),
        Err(Errno::OPNOTSUPP) => {
            entry.knows_no_nowait();
            Ok(sys::pread(entry.as_fd(), &out, offset)?.into())
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a short read was short because the file ends there.
fn ends(entry: &Entry, offset: i64, len: usize) -> Result<bool, Errno> {
    let size = sys::fstat(entry.as_fd())?.size();
    Ok(offset.cast_unsigned().saturating_add(len as u64) >= size)
}

/// [`cloak_abi::hostop::HostOp::Write`]
pub fn write(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    let data = call.data(1)?;
    let fd = entry.as_fd();
    if entry.terminal {
        terminal::may_write(&entry, call.arg(2) == 1)?;
    }
    let len = match entry.kind {
        Kind::Regular => write_file(call, &entry, || sys::write(fd, &data))?,
        Kind::SharedPipe => match sys::write_nowait(fd, &data) {
            Err(Errno::OPNOTSUPP) => write_when_ready(&entry, &data, PIPE_PART)?,
            other => other?,
        },
        Kind::SharedSocket => sys::send(fd, &Address::NONE, None, &data, 0)?,
        Kind::SharedDevice => write_when_ready(&entry, &data, DEVICE_PART)?,
        Kind::Socket => in_turn(&entry, data.len(), || sys::write(fd, &data))?,
        Kind::Stream | Kind::Directory | Kind::Location => sys::write(fd, &data)?,
    };
    Ok(len.into())
}

/// Sends to a socket of ours, unless bytes are kept for it that come first.
pub fn in_turn(
    entry: &Entry,
    len: usize,
    send: impl FnOnce() -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut flow = entry.flow();
    let sent = if flow.keeps() { Err(Errno::AGAIN) } else { send() };
    if matches!(sent, Err(Errno::AGAIN)) || sent.is_ok_and(|sent| sent < len) {
        flow.wants_room();
    }
    sent
}

fn write_when_ready(entry: &Entry, data: &Buffer<'_>, most: usize) -> Result<usize, Errno> {
    if !is_ready(entry.as_fd(), PollFlags::OUT | PollFlags::ERR)? {
        return Err(Errno::AGAIN);
    }
    sys::write(entry.as_fd(), &data.part(0, data.len().min(most))?)
}

/// [`cloak_abi::hostop::HostOp::PWrite`]
pub fn pwrite(call: &Call<'_>) -> Reply {
    let entry = call.file(0)?;
    let data = call.data(1)?;
    let offset = call.offset(2)?;
    Ok(write_file(call, &entry, || sys::pwrite(entry.as_fd(), &data, offset))?.into())
}

fn write_file(
    call: &Call<'_>,
    entry: &Entry,
    write: impl FnOnce() -> Result<usize, Errno>,
) -> Result<usize, Refusal> {
    call.may_be_remote(entry)?;
    if call.place == Place::Worker {
        return Ok(write()?);
    }
    if entry.synchronous || entry.writes_slowly() {
        call.may_take_long()?;
    }
    let start = Instant::now();
    let result = write();
    if start.elapsed() > SLOW {
        entry.wrote_slowly();
    }
    Ok(result?)
}

/// [`cloak_abi::hostop::HostOp::Pipe`]
pub fn pipe(call: &Call<'_>) -> Reply {
    let flags = PipeFlags::from_bits_retain(call.word(0)) & PipeFlags::DIRECT;
    let (read, write) = rustix::pipe::pipe_with(flags | PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
    let ends = (Entry::new(read, Kind::Stream), Entry::new(write, Kind::Stream));
    let (read, write) = call.shared.table.insert_pair(ends.0, ends.1)?;
    Ok(Answer::with(read as usize, u64::from(write)))
}

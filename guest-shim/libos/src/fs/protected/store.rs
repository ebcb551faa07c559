//! The container: a file of the OS side that is read and written by requests. What comes from there is believed in
//! nothing: the volume checks every byte, and a length or an error only says that something is missing.
//!
//! Writes are not waited for one by one: while the host takes one, the next is sealed. What touches the same bytes waits, and
//! so does a flush, before which nothing counts as written. One that fails makes all that change the container fail from then on.
//! The host is told to begin with the disk's work meanwhile, so that a flush has little left to wait for. What is read in a row is
//! asked for ahead ([`super::ahead`]).

use alloc::collections::VecDeque;
use alloc::vec;

use cloak_abi::hostop::HostOp;
use cloak_volumes::{Store, StoreError};

use super::ahead::{Ahead, LEFT};
use crate::errno::{Errno, SysResult};
use crate::fs::hostfd::HostFd;
use crate::fs::hostops;
use crate::host::{Answer, CAPACITY, Pending, Request};

/// `LOCK_SH | LOCK_NB` and `LOCK_EX | LOCK_NB`.
const LOCK_SHARED: u64 = 1 | 4;
const LOCK_ALONE: u64 = 2 | 4;
/// Writes on their way at most.
const DEPTH: usize = 8;
/// Bytes that are written before the host is told to begin with the disk's work on them. Fewer make more requests to the disk,
/// more leave more to a flush.
const WRITE_OUT: u64 = 1 << 20;
/// How [`HostOp::Sync`] works: `fdatasync`, with which the length is flushed, too.
const DATA: u64 = 1;
/// It begins to write out.
const BEGIN: u64 = 3;

/// An open container.
#[derive(Debug)]
pub struct Container {
    fd: HostFd,
    writable: bool,
    /// In the order in which they were begun.
    writing: VecDeque<Writing>,
    /// Why a write failed that had been taken.
    failed: Option<StoreError>,
    ahead: Ahead,
    /// Where the first and the last byte are that the host was not told to write out, and how many there are.
    unsent: (u64, u64, u64),
}

/// Nothing unsent.
const NONE: (u64, u64, u64) = (u64::MAX, 0, 0);

/// A write on its way.
#[derive(Debug)]
struct Writing {
    pending: Pending,
    offset: u64,
    len: usize,
}

impl Writing {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.len as u64)
    }

    fn touches(&self, start: u64, end: u64) -> bool {
        self.offset < end && start < self.end()
    }
}

impl Container {
    /// Opens the container that is host mount `root`. Who writes has it alone, as far as the OS side is honest; if it
    /// is not, two writers find each other's blocks and stop.
    ///
    /// # Errors
    /// What the OS side says; EWOULDBLOCK (EAGAIN) when it is in use.
    pub fn open(root: u64, writable: bool) -> SysResult<Self> {
        let flags = if writable { crate::fs::flags::O_RDWR } else { 0 };
        let fd = open(root, flags)?;
        let lock = if writable { LOCK_ALONE } else { LOCK_SHARED };
        hostops::plain(HostOp::Flock, &fd, lock, 0, 0)?;
        Ok(Self::of(fd, writable))
    }

    /// Opens it for a look from outside, whoever has it in use.
    ///
    /// # Errors
    /// What the OS side says.
    pub fn look(root: u64) -> SysResult<Self> {
        Ok(Self::of(open(root, 0)?, false))
    }

    /// Whether there is not a byte in it.
    ///
    /// # Errors
    /// What the OS side says.
    pub fn is_empty(&mut self) -> Result<bool, StoreError> {
        Ok(Store::len(self)? == 0)
    }

    const fn of(fd: HostFd, writable: bool) -> Self {
        Self {
            fd,
            writable,
            writing: VecDeque::new(),
            failed: None,
            ahead: Ahead::new(),
            unsent: NONE,
        }
    }

    fn may_write(&self) -> Result<(), StoreError> {
        match self.failed {
            _ if !self.writable => Err(StoreError::ReadOnly),
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Waits for the writes up to the last one that touches `start..end`.
    fn settle(&mut self, start: u64, end: u64) {
        let touches = |writing: &Writing| writing.touches(start, end);
        if let Some(last) = self.writing.iter().rposition(touches) {
            self.settle_first(last + 1);
        }
    }

    /// Reads, and waits for it.
    fn read_now(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let end = offset.saturating_add(out.len() as u64);
        self.settle(offset, end);
        let fd = self.fd.number();
        all(
            out.len(),
            end,
            |request, done, want| {
                let at = offset.saturating_add(done as u64);
                request.call(HostOp::PRead, [fd, want as u64, at, 0, 0, 0])
            },
            |request, done, got| request.get(0, &mut out[done..done + got]),
        )
    }

    /// Counts bytes that are written, and tells the host to begin once there are many. No answer is waited for: it changes
    /// nothing of what is durable.
    fn write_out(&mut self, offset: u64, end: u64) {
        let (first, last, bytes) = self.unsent;
        self.unsent = (first.min(offset), last.max(end), bytes + (end - offset));
        let (first, last, bytes) = self.unsent;
        if bytes < WRITE_OUT {
            return;
        }
        self.unsent = NONE;
        if let Some(request) = Request::spare(LEFT) {
            request.send(HostOp::Sync, [self.fd.number(), BEGIN, first, last - first, 0, 0]);
        }
    }

    /// What is on its way is done, well or not.
    fn settle_all(&mut self) -> Result<(), StoreError> {
        self.settle_first(self.writing.len());
        self.may_write()
    }

    fn settle_first(&mut self, count: usize) {
        for writing in self.writing.drain(..count) {
            let (request, answer) = writing.pending.finish();
            let written = match answer.len(writing.len) {
                Ok(got) if got == writing.len => Ok(()),
                Ok(0) => Err(StoreError::End {
                    end: writing.offset.saturating_add(writing.len as u64),
                }),
                // The rest, this time at once. It is ciphertext, so what the OS side did to it meanwhile is found out.
                Ok(got) => {
                    let mut rest = vec![0; writing.len - got];
                    request.get(got, &mut rest);
                    drop(request);
                    write_all(&self.fd, writing.offset.saturating_add(got as u64), &rest)
                }
                Err(errno) => Err(refused(errno)),
            };
            if let Err(why) = written {
                self.failed.get_or_insert(why);
            }
        }
        if self.failed.is_some() && !self.writing.is_empty() {
            // Nothing is begun any more, so nobody would come by to take these answers.
            self.settle_first(self.writing.len());
        }
    }
}

/// Requests until `len` bytes are through; each is given what is left and where.
fn all(
    len: usize,
    end: u64,
    mut step: impl FnMut(&mut Request, usize, usize) -> Answer,
    mut done_with: impl FnMut(&Request, usize, usize),
) -> Result<(), StoreError> {
    let mut request = Request::new();
    let mut done = 0;
    while done < len {
        let want = (len - done).min(CAPACITY);
        let got = step(&mut request, done, want).len(want).map_err(refused)?;
        if got == 0 {
            return Err(StoreError::End { end });
        }
        done_with(&request, done, got);
        done += got;
    }
    Ok(())
}

/// Writes and waits.
fn write_all(fd: &HostFd, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
    let end = offset.saturating_add(bytes.len() as u64);
    let number = fd.number();
    all(
        bytes.len(),
        end,
        |request, done, want| {
            request.put(0, &bytes[done..done + want]);
            let at = offset.saturating_add(done as u64);
            request.call(HostOp::PWrite, [number, want as u64, at, 0, 0, 0])
        },
        |_, _, _| {},
    )
}

/// The file that is host mount `root` itself.
fn open(root: u64, flags: u32) -> SysResult<HostFd> {
    Ok(hostops::open(hostops::At::itself(root), flags, 0)?.0)
}

fn refused(errno: Errno) -> StoreError {
    /// `EDQUOT`.
    const QUOTA: i32 = 122;
    match errno {
        Errno::ENOSPC | Errno::EFBIG => StoreError::Full,
        other if other.number() == QUOTA => StoreError::Full,
        other => StoreError::Refused(other.number()),
    }
}

impl Store for Container {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let end = offset.saturating_add(out.len() as u64);
        let there = self.ahead.take(offset, out);
        if there < out.len() {
            self.read_now(offset.saturating_add(there as u64), &mut out[there..])?;
        }
        let touched = |start, end| self.writing.iter().any(|writing| writing.touches(start, end));
        self.ahead.go_on(&self.fd, (offset, end), there, touched);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let end = offset.saturating_add(bytes.len() as u64);
        self.ahead.forget(offset, end);
        self.settle(offset, end);
        let fd = self.fd.number();
        let start = offset;
        for (offset, piece) in (offset..).step_by(CAPACITY).zip(bytes.chunks(CAPACITY)) {
            if self.writing.len() == DEPTH {
                self.settle_first(1);
            }
            self.may_write()?;
            let mut request = Request::new();
            request.put(0, piece);
            let len = piece.len();
            let pending = request.begin(HostOp::PWrite, [fd, len as u64, offset, 0, 0, 0]);
            self.writing.push_back(Writing { pending, offset, len });
        }
        self.write_out(start, end);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.settle_all()?;
        self.unsent = NONE;
        hostops::plain(HostOp::Sync, &self.fd, DATA, 0, 0).map_err(refused)
    }

    fn len(&mut self) -> Result<u64, StoreError> {
        let stat = hostops::fstat(&self.fd).map_err(refused)?;
        u64::try_from(stat.size).map_err(|_| StoreError::Refused(Errno::EIO.number()))
    }

    fn set_len(&mut self, len: u64) -> Result<(), StoreError> {
        self.settle_all()?;
        self.ahead.forget(0, u64::MAX);
        hostops::plain(HostOp::Truncate, &self.fd, len, 0, 0).map_err(refused)
    }

    fn forget(&mut self) -> bool {
        self.ahead.distrust()
    }
}

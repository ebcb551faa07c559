//! An end of a pipe, as a file.

use alloc::sync::Arc;
use core::any::Any;

use super::Pipe;
use super::ring::{MAX_CAPACITY, PIPE_BUF, Span};
use crate::errno::{Errno, SysResult};
use crate::fs::anon::{self, FIONREAD, S_IFIFO};
use crate::fs::file::{Stat, ready};
use crate::fs::node::Node;
use crate::fs::{File, OpenFile, signals};
use crate::sched::WaitQueue;
use crate::user::{self, Buf};

const F_SETPIPE_SZ: u32 = 1031;
const F_GETPIPE_SZ: u32 = 1032;

/// A reading end, a writing end, or both (a FIFO opened for reading and writing).
pub struct PipeEnd {
    pipe: Arc<Pipe>,
    reads: bool,
    writes: bool,
    /// Writers that the pipe had had when this end was opened: no hang-up before one more has come.
    writers_before: u64,
    /// What stands for a FIFO in its file system.
    node: Option<Arc<dyn Node>>,
}

impl core::fmt::Debug for PipeEnd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PipeEnd")
            .field("pipe", &self.pipe)
            .finish_non_exhaustive()
    }
}

impl PipeEnd {
    pub(super) fn new(pipe: Arc<Pipe>, reads: bool, writes: bool, node: Option<Arc<dyn Node>>) -> Arc<Self> {
        let writers_before = {
            let mut state = pipe.state.lock();
            // With a writer there already, its going is a hang-up for this end.
            let before = state.writers_ever - u64::from(state.writers > 0);
            if reads {
                state.readers += 1;
                state.readers_ever += 1;
            }
            if writes {
                state.writers += 1;
                state.writers_ever += 1;
            }
            before
        };
        pipe.opening.wake_all(0);
        Arc::new(Self {
            pipe,
            reads,
            writes,
            writers_before,
            node,
        })
    }

    fn poll_read(&self) -> u32 {
        let state = self.pipe.state.lock();
        let data = if state.ring.filled() > 0 {
            ready::IN | ready::RDNORM
        } else {
            0
        };
        let hung = state.writers == 0 && state.writers_ever != self.writers_before;
        data | if hung { ready::HUP } else { 0 }
    }

    fn poll_write(&self) -> u32 {
        let state = self.pipe.state.lock();
        let room = if state.ring.has_room() {
            ready::OUT | ready::WRNORM
        } else {
            0
        };
        room | if state.readers == 0 { ready::ERR } else { 0 }
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        {
            let mut state = self.pipe.state.lock();
            state.readers -= u32::from(self.reads);
            state.writers -= u32::from(self.writes);
            if state.readers == 0 && state.writers == 0 {
                state.ring.clear(); // a FIFO keeps nothing between its users
            }
        }
        self.pipe.hang_up();
    }
}

impl File for PipeEnd {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        if !self.reads {
            return Err(Errno::EBADF);
        }
        if to.is_empty() {
            return Ok(0);
        }
        let Some(span) = self.reserve_read(to.len(), file.nonblocking())? else {
            return Ok(0);
        };
        let result = span.copy_to(to);
        self.pipe.end_read(result.unwrap_or(0));
        result
    }

    fn write(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        if !self.writes {
            return Err(Errno::EBADF);
        }
        let mut done = 0;
        while !from.is_empty() {
            match self.write_part(file, from) {
                Ok((put, whole)) => {
                    done += put;
                    if !whole {
                        break; // an address faulted
                    }
                }
                Err(error) => {
                    let error = if error == Errno::EPIPE {
                        signals::broken_pipe()
                    } else {
                        error
                    };
                    return if done > 0 { Ok(done) } else { Err(error) };
                }
            }
        }
        Ok(done)
    }

    fn stat(&self) -> SysResult<Stat> {
        match &self.node {
            Some(node) => node.stat(),
            None => Ok(anon::stat(S_IFIFO | 0o600, self.pipe.inode)),
        }
    }

    fn node(&self) -> Option<&Arc<dyn Node>> {
        self.node.as_ref()
    }

    fn poll(&self) -> u32 {
        let read = if self.reads { self.poll_read() } else { 0 };
        read | if self.writes { self.poll_write() } else { 0 }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(if self.reads {
            &self.pipe.read_pollers
        } else {
            &self.pipe.write_pollers
        })
    }

    fn ioctl(&self, _: &OpenFile, request: u32, argument: u64) -> SysResult {
        if request != FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let len = self.pipe.state.lock().ring.filled();
        user::write(argument, &i32::try_from(len).unwrap_or(i32::MAX))?;
        Ok(0)
    }

    fn fcntl(&self, _: &OpenFile, command: u32, argument: u64) -> SysResult {
        let capacity = match command {
            F_SETPIPE_SZ => set_capacity_of(self, argument as u32 as usize)?,
            F_GETPIPE_SZ => capacity_of(self)?,
            _ => return Err(Errno::EINVAL),
        };
        Ok(capacity as u64)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl PipeEnd {
    /// Hands up to `len` bytes to `sink` and takes out what that says it took; 0 at the end.
    ///
    /// # Errors
    /// EAGAIN, ERESTARTSYS, and those of `sink`, which then took nothing.
    pub fn hand_over(
        &self,
        len: usize,
        nonblocking: bool,
        sink: impl FnOnce(&[u8]) -> SysResult<usize>,
    ) -> SysResult<usize> {
        let Some(span) = self.reserve_read(len, nonblocking)? else {
            return Ok(0);
        };
        let mut part = alloc::vec![0; span.len];
        let copied = span.copy_to(&mut Buf::own_mut(&mut part));
        let taken = copied.and_then(|got| sink(&part[..got]));
        self.pipe.end_read(taken.unwrap_or(0));
        taken
    }

    /// Shows up to `len` bytes to `sink`, and leaves them; gives what that says it took; 0 at the end.
    ///
    /// # Errors
    /// EAGAIN, ERESTARTSYS, and those of `sink`.
    pub fn look_at(
        &self,
        len: usize,
        nonblocking: bool,
        sink: impl FnOnce(&[u8]) -> SysResult<usize>,
    ) -> SysResult<usize> {
        let Some(span) = self.reserve_read(len, nonblocking)? else {
            return Ok(0);
        };
        let mut part = alloc::vec![0; span.len];
        let copied = span.copy_to(&mut Buf::own_mut(&mut part));
        self.pipe.end_read(0);
        sink(&part[..copied?])
    }

    /// Whether both are ends of one pipe.
    #[must_use]
    pub fn is_of_the_same_pipe(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pipe, &other.pipe)
    }

    /// What may be read now, up to `len` bytes; none at the end.
    fn reserve_read(&self, len: usize, nonblocking: bool) -> SysResult<Option<Span>> {
        let begin = || self.pipe.begin_read(len, nonblocking);
        // Without a registration when there is something at once.
        begin().unwrap_or_else(|| {
            let sleeping = &self.pipe.sleeping_readers;
            sleeping.wait(u64::MAX, begin).map_err(restart)
        })
    }

    /// Writes what fits; also says whether all that was reserved could be copied.
    fn write_part(&self, file: &OpenFile, from: &mut Buf) -> SysResult<(usize, bool)> {
        let (want, nonblocking) = (from.len(), file.nonblocking());
        let begin = || self.pipe.begin_write(want, nonblocking);
        let span = begin().unwrap_or_else(|| {
            let sleeping = &self.pipe.sleeping_writers;
            sleeping.wait(u64::MAX, begin).map_err(restart)
        })?;
        let result = span.copy_from(from);
        self.pipe.end_write(result.unwrap_or(0));
        result.map(|put| (put, put == span.len))
    }
}

fn restart(error: Errno) -> Errno {
    if error == Errno::EINTR {
        Errno::ERESTARTSYS
    } else {
        error
    }
}

/// `F_GETPIPE_SZ`.
///
/// # Errors
/// EBADF when it is no pipe.
pub fn capacity_of(file: &dyn File) -> SysResult<usize> {
    let end = file.as_any().downcast_ref::<PipeEnd>().ok_or(Errno::EBADF)?;
    Ok(end.pipe.state.lock().ring.capacity())
}

/// `F_SETPIPE_SZ`; gives the capacity set, which may be more than asked for.
///
/// # Errors
/// EBADF when it is no pipe; EINVAL, EPERM beyond the limit, EBUSY when it holds more.
pub fn set_capacity_of(file: &dyn File, capacity: usize) -> SysResult<usize> {
    let end = file.as_any().downcast_ref::<PipeEnd>().ok_or(Errno::EBADF)?;
    if capacity > i32::MAX as usize {
        return Err(Errno::EINVAL);
    }
    if capacity > MAX_CAPACITY {
        return Err(Errno::EPERM);
    }
    let capacity = capacity.max(PIPE_BUF).next_power_of_two();
    if !end.pipe.state.lock().ring.set_capacity(capacity) {
        return Err(Errno::EBUSY);
    }
    end.pipe.sleeping_writers.wake_one();
    end.pipe.write_pollers.wake_all(ready::OUT);
    Ok(capacity)
}

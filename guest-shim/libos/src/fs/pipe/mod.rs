//! Pipes and FIFOs, inside the guest only.
//!
//! A [`Pipe`] holds the [`Ring`] and counts its ends; a [`PipeEnd`] is what a descriptor refers to. Threads
//! that wait sleep on queues of their own, woken one at a time; pollers have others, woken all. Who leaves
//! the ring passes the turn on, so that one wake-up for each change is enough.

mod end;
pub mod ring;

use alloc::sync::Arc;

use spin::Mutex;

pub use end::{PipeEnd, capacity_of, set_capacity_of};
use ring::{Refused, Ring, Span};

use super::anon;
use super::fd::{O_CLOEXEC, O_NONBLOCK};
use super::file::ready;
use super::node::Node;
use super::{File, OpenFile};
use crate::errno::{Errno, SysResult};
use crate::sched::WaitQueue;
use crate::sched::time_calls::wait_until;
use crate::syscall::{Args, Entry, full};

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[full(22, "pipe", "x", pipe), full(293, "pipe2", "xx", pipe2)];

/// `O_DIRECT`: packet mode.
const O_DIRECT: u32 = 0o40_000;

/// What both ends share. A FIFO's inode keeps one.
#[derive(Debug)]
pub struct Pipe {
    state: Mutex<State>,
    sleeping_readers: WaitQueue,
    sleeping_writers: WaitQueue,
    read_pollers: WaitQueue,
    write_pollers: WaitQueue,
    /// Opens of a FIFO that wait for the other side.
    opening: WaitQueue,
    inode: u64,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    readers: u32,
    writers: u32,
    /// Ends that were ever opened: an open that waits must not miss one that came and went.
    readers_ever: u64,
    writers_ever: u64,
}

impl Pipe {
    /// A pipe with no ends yet.
    #[must_use]
    pub fn new(packets: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                ring: Ring::new(packets),
                readers: 0,
                writers: 0,
                readers_ever: 0,
                writers_ever: 0,
            }),
            sleeping_readers: WaitQueue::new(),
            sleeping_writers: WaitQueue::new(),
            read_pollers: WaitQueue::new(),
            write_pollers: WaitQueue::new(),
            opening: WaitQueue::new(),
            inode: anon::next_inode(),
        })
    }

    /// A reading end, at once.
    #[must_use]
    pub fn reader(self: &Arc<Self>) -> Arc<PipeEnd> {
        PipeEnd::new(self.clone(), true, false, None)
    }

    /// A writing end, at once.
    #[must_use]
    pub fn writer(self: &Arc<Self>) -> Arc<PipeEnd> {
        PipeEnd::new(self.clone(), false, true, None)
    }

    /// Opens a FIFO for reading: waits for a writer unless `flags` say not to.
    ///
    /// # Errors
    /// ERESTARTSYS.
    fn open_reader(self: &Arc<Self>, flags: u32, node: Option<Arc<dyn Node>>) -> SysResult<Arc<dyn File>> {
        let seen = self.state.lock().writers_ever;
        let end = PipeEnd::new(self.clone(), true, false, node);
        let here = || {
            let state = self.state.lock();
            state.writers > 0 || state.writers_ever != seen
        };
        if flags & O_NONBLOCK == 0 {
            wait_until(&self.opening, u64::MAX, here).map_err(|_| Errno::ERESTARTSYS)?;
        }
        Ok(end)
    }

    /// Opens a FIFO for writing: waits for a reader unless `flags` say not to.
    ///
    /// # Errors
    /// ENXIO when it must not wait and nobody reads; ERESTARTSYS.
    fn open_writer(self: &Arc<Self>, flags: u32, node: Option<Arc<dyn Node>>) -> SysResult<Arc<dyn File>> {
        let seen = {
            let state = self.state.lock();
            if flags & O_NONBLOCK != 0 && state.readers == 0 {
                return Err(Errno::ENXIO);
            }
            state.readers_ever
        };
        let end = PipeEnd::new(self.clone(), false, true, node);
        let here = || {
            let state = self.state.lock();
            state.readers > 0 || state.readers_ever != seen
        };
        if flags & O_NONBLOCK == 0 {
            wait_until(&self.opening, u64::MAX, here).map_err(|_| Errno::ERESTARTSYS)?;
        }
        Ok(end)
    }

    /// Opens a FIFO as the access mode in `flags` says; `node` stands for it in its file system. Reading and writing never waits.
    ///
    /// # Errors
    /// As [`Pipe::open_reader`] and [`Pipe::open_writer`]; EINVAL for mode 3.
    pub fn open(self: &Arc<Self>, flags: u32, node: Option<Arc<dyn Node>>) -> SysResult<Arc<dyn File>> {
        match flags & 3 {
            0 => self.open_reader(flags, node),
            1 => self.open_writer(flags, node),
            2 => Ok(PipeEnd::new(self.clone(), true, true, node)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// A part to read, nothing at the end of the data, or None: wait.
    fn begin_read(&self, want: usize, nonblocking: bool) -> Option<SysResult<Option<Span>>> {
        let mut state = self.state.lock();
        match state.ring.reserve_read(want) {
            Ok(span) => Some(Ok(Some(span))),
            Err(Refused::Busy) => None,
            Err(Refused::Full) if state.writers == 0 => Some(Ok(None)),
            Err(Refused::Full) if nonblocking => Some(Err(Errno::EAGAIN)),
            Err(Refused::Full) => None,
        }
    }

    fn end_read(&self, taken: usize) {
        let (had_room, has_room, more) = {
            let mut state = self.state.lock();
            let had_room = state.ring.has_room();
            state.ring.commit_read(taken);
            (
                had_room,
                state.ring.has_room(),
                state.ring.filled() > 0 || state.writers == 0,
            )
        };
        if has_room {
            self.sleeping_writers.wake_one();
        }
        if more {
            self.sleeping_readers.wake_one();
        }
        if has_room && !had_room {
            self.write_pollers.wake_all(ready::OUT | ready::WRNORM);
            // An end that reads and writes waits there for both.
            self.read_pollers.wake_all(ready::OUT | ready::WRNORM);
        }
    }

    /// A part to write, or None: wait.
    fn begin_write(&self, want: usize, nonblocking: bool) -> Option<SysResult<Span>> {
        let mut state = self.state.lock();
        if state.readers == 0 {
            return Some(Err(Errno::EPIPE));
        }
        match state.ring.reserve_write(want) {
            Ok(span) => Some(Ok(span)),
            Err(Refused::Full) if nonblocking => Some(Err(Errno::EAGAIN)),
            Err(_) => None,
        }
    }

    fn end_write(&self, put: usize) {
        let more = {
            let mut state = self.state.lock();
            state.ring.commit_write(put);
            state.ring.filled() < state.ring.capacity()
        };
        self.sleeping_readers.wake_one();
        if more {
            self.sleeping_writers.wake_one();
        }
        self.read_pollers.wake_all(ready::IN | ready::RDNORM);
    }

    /// An end is gone.
    fn hang_up(&self) {
        self.sleeping_readers.wake_all(0);
        self.sleeping_writers.wake_all(0);
        self.read_pollers.wake_all(ready::HUP | ready::IN);
        self.write_pollers.wake_all(ready::ERR | ready::OUT);
    }
}

fn pipe(args: &Args) -> SysResult {
    create(args.u64(0), 0)
}

fn pipe2(args: &Args) -> SysResult {
    create(args.u64(0), args.u32(1))
}

fn create(address: u64, flags: u32) -> SysResult {
    if flags & !(O_CLOEXEC | O_NONBLOCK | O_DIRECT) != 0 {
        return Err(Errno::EINVAL);
    }
    let pipe = Pipe::new(flags & O_DIRECT != 0);
    let (status, close) = (flags & (O_NONBLOCK | O_DIRECT), flags & O_CLOEXEC != 0);
    let name = anon::numbered("pipe", pipe.inode);
    let reader = OpenFile::new(pipe.reader(), status, name.clone());
    let writer = OpenFile::new(pipe.writer(), status | 1, name);
    anon::install_pair(address, (reader, close), (writer, close))
}

#[cfg(test)]
mod tests;

//! `eventfd`: a counter to wait on.

use alloc::sync::Arc;
use core::any::Any;

use spin::Mutex;

use super::anon;
use super::fd::{O_CLOEXEC, O_NONBLOCK};
use super::file::{Stat, ready};
use super::{File, OpenFile};
use crate::errno::{Errno, SysResult};
use crate::sched::WaitQueue;
use crate::syscall::{Args, Entry, full};
use crate::user::Buf;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(284, "eventfd", "u", eventfd),
    full(290, "eventfd2", "ux", eventfd2),
];

const SEMAPHORE: u32 = 1;
/// The largest value of the counter.
const MOST: u64 = u64::MAX - 1;

/// The counter.
#[derive(Debug)]
pub struct EventFd {
    count: Mutex<u64>,
    semaphore: bool,
    inode: u64,
    readers: WaitQueue,
    writers: WaitQueue,
    pollers: WaitQueue,
}

impl EventFd {
    /// A counter; a `semaphore` gives 1 at each read.
    #[must_use]
    pub fn new(initial: u64, semaphore: bool) -> Self {
        Self {
            count: Mutex::new(initial),
            semaphore,
            inode: anon::next_inode(),
            readers: WaitQueue::new(),
            writers: WaitQueue::new(),
            pollers: WaitQueue::new(),
        }
    }

    fn try_take(&self) -> Option<u64> {
        let mut count = self.count.lock();
        let taken = if self.semaphore { 1 } else { *count };
        (*count > 0).then(|| {
            *count -= taken;
            taken
        })
    }

    fn try_add(&self, value: u64) -> Option<()> {
        let mut count = self.count.lock();
        (MOST - *count >= value).then(|| *count += value)
    }
}

/// `attempt`, again and again on `queue` unless the file must not wait.
fn blocking<T>(file: &OpenFile, queue: &WaitQueue, attempt: impl Fn() -> Option<T>) -> SysResult<T> {
    match attempt() {
        Some(value) => Ok(value),
        None if file.nonblocking() => Err(Errno::EAGAIN),
        None => queue
            .wait(u64::MAX, || attempt().map(Ok))
            .map_err(|_| Errno::ERESTARTSYS),
    }
}

impl File for EventFd {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        if to.len() < 8 {
            return Err(Errno::EINVAL);
        }
        let value = blocking(file, &self.readers, || self.try_take())?;
        if *self.count.lock() > 0 {
            self.readers.wake_one();
        }
        self.writers.wake_all(0);
        self.pollers.wake_all(ready::OUT | ready::WRNORM);
        to.put(&value.to_ne_bytes())
    }

    fn write(&self, file: &OpenFile, from: &mut Buf) -> SysResult<usize> {
        let mut bytes = [0; 8];
        if from.len() < 8 {
            return Err(Errno::EINVAL);
        }
        if from.take(&mut bytes)? != 8 {
            return Err(Errno::EFAULT);
        }
        let value = u64::from_ne_bytes(bytes);
        if value > MOST {
            return Err(Errno::EINVAL);
        }
        blocking(file, &self.writers, || self.try_add(value))?;
        self.readers.wake_one();
        self.pollers.wake_all(ready::IN | ready::RDNORM);
        Ok(8)
    }

    fn stat(&self) -> SysResult<Stat> {
        Ok(anon::stat(0o600, self.inode))
    }

    fn poll(&self) -> u32 {
        let count = *self.count.lock();
        let read = if count > 0 { ready::IN | ready::RDNORM } else { 0 };
        read | if count < MOST {
            ready::OUT | ready::WRNORM
        } else {
            0
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.pollers)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn eventfd(args: &Args) -> SysResult {
    create(args.u32(0), 0)
}

fn eventfd2(args: &Args) -> SysResult {
    create(args.u32(0), args.u32(1))
}

fn create(initial: u32, flags: u32) -> SysResult {
    if flags & !(SEMAPHORE | O_CLOEXEC | O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = Arc::new(EventFd::new(u64::from(initial), flags & SEMAPHORE != 0));
    anon::install(
        file,
        flags & (O_CLOEXEC | O_NONBLOCK) | 2,
        b"anon_inode:[eventfd]".to_vec(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &OpenFile) -> SysResult<u64> {
        let mut bytes = [0; 8];
        file.file.read(file, &mut Buf::own_mut(&mut bytes))?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn write(file: &OpenFile, value: u64) -> SysResult<usize> {
        file.file.write(file, &mut Buf::own(&value.to_ne_bytes()))
    }

    fn open(initial: u64, semaphore: bool, flags: u32) -> Arc<OpenFile> {
        OpenFile::new(Arc::new(EventFd::new(initial, semaphore)), flags | 2, Vec::new())
    }

    #[test]
    fn a_read_takes_all_and_a_semaphore_gives_one() {
        let file = open(0, false, O_NONBLOCK);
        assert_eq!(read(&file), Err(Errno::EAGAIN));
        assert_eq!(
            (write(&file, 3), write(&file, 4), read(&file)),
            (Ok(8), Ok(8), Ok(7))
        );
        let file = open(2, true, O_NONBLOCK);
        assert_eq!(
            (read(&file), read(&file), read(&file)),
            (Ok(1), Ok(1), Err(Errno::EAGAIN))
        );
    }

    #[test]
    fn the_counter_does_not_overflow() {
        let file = open(0, false, O_NONBLOCK);
        assert_eq!(write(&file, u64::MAX), Err(Errno::EINVAL));
        assert_eq!(write(&file, u64::MAX - 1), Ok(8));
        assert_eq!(write(&file, 1), Err(Errno::EAGAIN));
        assert_eq!(file.file.poll(), ready::IN | ready::RDNORM);
        assert_eq!(write(&file, 0), Ok(8));
    }

    #[test]
    fn blocked_readers_each_get_their_turn() {
        let file = open(0, true, 0);
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let file = file.clone();
                std::thread::spawn(move || read(&file))
            })
            .collect();
        assert_eq!(write(&file, 4), Ok(8));
        readers
            .into_iter()
            .for_each(|r| assert_eq!(r.join().expect("reader"), Ok(1)));
    }
}

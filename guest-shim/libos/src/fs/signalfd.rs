//! `signalfd`: pending signals of the reading thread, as records.

use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::{AtomicU64, Ordering};

use super::fd::{self, O_CLOEXEC, O_NONBLOCK};
use super::file::{Stat, ready};
use super::{File, OpenFile, anon, signals};
use crate::errno::{Errno, SysResult};
use crate::sched::WaitQueue;
use crate::syscall::{Args, Entry, full};
use crate::user::Buf;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(282, "signalfd", "fxs", signalfd),
    full(289, "signalfd4", "fxsx", signalfd4),
];

/// The set of signals that the descriptor takes. Whose signals is decided at each read: the caller's.
#[derive(Debug)]
pub struct SignalFd {
    set: AtomicU64,
    inode: u64,
}

impl SignalFd {
    fn set(&self) -> u64 {
        self.set.load(Ordering::Relaxed)
    }

    /// The first record: waits for it where the file may.
    fn first(&self, file: &OpenFile) -> SysResult<signals::SignalInfo> {
        match signals::take(self.set()) {
            Some(info) => Ok(info),
            None if file.nonblocking() => Err(Errno::EAGAIN),
            None => signals::ARRIVALS
                .wait(u64::MAX, || signals::take(self.set()).map(Ok))
                .map_err(|_| Errno::ERESTARTSYS),
        }
    }
}

impl File for SignalFd {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        const RECORD: usize = size_of::<signals::SignalInfo>();
        if to.len() < RECORD {
            return Err(Errno::EINVAL);
        }
        let mut done = to.put(&self.first(file)?)?;
        while to.len() >= RECORD {
            let Some(info) = signals::take(self.set()) else {
                break;
            };
            done += to.put(&info)?;
        }
        Ok(done)
    }

    fn stat(&self) -> SysResult<Stat> {
        Ok(anon::stat(0o600, self.inode))
    }

    fn poll(&self) -> u32 {
        if signals::pending(self.set()) {
            ready::IN | ready::RDNORM
        } else {
            0
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&signals::ARRIVALS)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn signalfd(args: &Args) -> SysResult {
    open(args.i32(0), signals::read_set(args.u64(1), args.usize(2))?, 0)
}

fn signalfd4(args: &Args) -> SysResult {
    open(
        args.i32(0),
        signals::read_set(args.u64(1), args.usize(2))?,
        args.u32(3),
    )
}

fn open(number: i32, set: u64, flags: u32) -> SysResult {
    if flags & !(O_CLOEXEC | O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    if number == -1 {
        let file = Arc::new(SignalFd {
            set: AtomicU64::new(set),
            inode: anon::next_inode(),
        });
        return anon::install(file, flags | 2, b"anon_inode:[signalfd]".to_vec());
    }
    let open = fd::get(number)?;
    let file = open
        .file
        .as_any()
        .downcast_ref::<SignalFd>()
        .ok_or(Errno::EINVAL)?;
    file.set.store(set, Ordering::Relaxed);
    signals::arrived();
    Ok(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spin::Mutex;

    /// Two pending signals, number 10 and number 12.
    struct Two(Mutex<u64>);

    impl signals::Signals for Two {
        fn raise(&self, _: u32) {}
        fn set_mask(&self, _: u64) {}
        fn restore_mask(&self, _: bool) {}
        fn pending(&self, set: u64) -> bool {
            *self.0.lock() & set != 0
        }
        fn take(&self, set: u64) -> Option<signals::SignalInfo> {
            let mut pending = self.0.lock();
            let bit = *pending & set;
            (bit != 0).then(|| {
                let number = bit.trailing_zeros();
                *pending &= !(1 << number);
                let mut info = [0; 128];
                info[0] = number as u8 + 1;
                info
            })
        }
        fn job(&self) -> crate::fs::jobs::Job {
            crate::fs::jobs::Job {
                group: 1,
                session: 1,
                first: 1,
            }
        }
        fn group_is_of(&self, _group: i32, _session: i32) -> bool {
            false
        }
        fn does_nothing(&self, _signal: u32) -> bool {
            true
        }
        fn raise_in_group(&self, _group: i32, _signal: u32) {}

        fn raise_in_process(&self, _pid: i32, _signal: u32) {}

        fn leads_session(&self) -> bool {
            false
        }

        fn is_orphaned(&self, _group: i32) -> bool {
            false
        }
    }

    #[test]
    fn records_are_read_in_order_and_then_nothing() {
        static TWO: Two = Two(Mutex::new(1 << 9 | 1 << 11));
        signals::install(&TWO);
        let set = 1u64 << 9 | 1 << 11;
        let number = signalfd4(&Args([
            u64::MAX,
            &raw const set as u64,
            8,
            u64::from(O_NONBLOCK),
            0,
            0,
        ]));
        let open = fd::get(number.expect("opens") as i32).expect("open");
        assert_eq!(open.file.poll(), ready::IN | ready::RDNORM);
        let mut bytes = [0; 300];
        assert_eq!(open.file.read(&open, &mut Buf::own_mut(&mut bytes)), Ok(256));
        assert_eq!((bytes[0], bytes[128]), (10, 12));
        assert_eq!(
            open.file.read(&open, &mut Buf::own_mut(&mut bytes)),
            Err(Errno::EAGAIN)
        );
    }
}

//! `timerfd`: expirations of a timer, as a counter.
//!
//! As on Linux an interval timer fires once and then waits to be read: the read counts what has passed
//! meanwhile and arms it for the next multiple, so that a timer that nobody reads costs nothing.

use alloc::sync::{Arc, Weak};
use core::any::Any;

use spin::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::fd::{self, O_CLOEXEC, O_NONBLOCK};
use super::file::{Stat, ready};
use super::{File, OpenFile, anon};
use crate::errno::{Errno, SysResult};
use crate::sched::clock::{self, Timespec, id};
use crate::sched::timer::{self, TimerKey};
use crate::sched::{WaitQueue, Waker};
use crate::syscall::{Args, Entry, full, partial};
use crate::user::{self, Buf};

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(283, "timerfd_create", "ix", create),
    partial(
        286,
        "timerfd_settime",
        "fxxx",
        "TFD_TIMER_CANCEL_ON_SET never cancels: the clock is not set",
        set,
    ),
    full(287, "timerfd_gettime", "fx", get),
];

const ABSTIME: u32 = 1;
const CANCEL_ON_SET: u32 = 2;

/// Linux's `struct itimerspec`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Setting {
    interval: Timespec,
    value: Timespec,
}

/// The timer.
#[derive(Debug)]
pub struct TimerFd {
    clock: i32,
    state: Mutex<State>,
    readers: WaitQueue,
    pollers: WaitQueue,
    inode: u64,
    this: Weak<Self>,
}

#[derive(Debug, Default)]
struct State {
    /// Monotonic nanoseconds of the next (or the last unread) expiration; None: not armed.
    due: Option<u64>,
    /// Nanoseconds; 0: once.
    interval: u64,
    /// Expired and not yet read.
    fired: bool,
    key: Option<TimerKey>,
}

impl Waker for TimerFd {
    fn wake(&self, _ready: u32) {
        {
            let mut state = self.state.lock();
            // A setting may have come after the timer was taken off its list.
            if state.due.is_none_or(|due| clock::monotonic() < due) {
                return;
            }
            state.fired = true;
        }
        self.readers.wake_one();
        self.pollers.wake_all(ready::IN | ready::RDNORM);
    }
}

impl TimerFd {
    fn new(clock: i32) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            clock,
            state: Mutex::default(),
            readers: WaitQueue::new(),
            pollers: WaitQueue::new(),
            inode: anon::next_inode(),
            this: this.clone(),
        })
    }

    /// Puts the timer on the list for its next expiration.
    fn arm(&self, state: &mut State) {
        if let (Some(due), Some(this)) = (state.due, self.this.upgrade()) {
            state.key = Some(timer::add(
                clock::deadline(due),
                Arc::new(Ring(Arc::downgrade(&this))),
            ));
        }
    }

    /// Expirations since the last read.
    fn take(&self) -> Option<u64> {
        let mut state = self.state.lock();
        if !core::mem::take(&mut state.fired) {
            return None;
        }
        let due = state.due?;
        if state.interval == 0 {
            state.due = None;
            return Some(1);
        }
        let count = 1 + clock::monotonic().saturating_sub(due) / state.interval;
        state.due = Some(due.saturating_add(count.saturating_mul(state.interval)));
        self.arm(&mut state);
        Some(count)
    }

    /// Time left and interval.
    fn setting(&self) -> Setting {
        let state = self.state.lock();
        let now = clock::monotonic();
        let left = match state.due {
            None => 0,
            Some(due) if due > now => due - now,
            // Between expirations that nobody read: what is left to the next one.
            Some(due) if state.interval > 0 => state.interval - (now - due) % state.interval,
            Some(_) => u64::from(!state.fired),
        };
        Setting {
            interval: Timespec::from_ns(state.interval),
            value: Timespec::from_ns(left),
        }
    }

    fn configure(&self, setting: &Setting, absolute: bool) -> SysResult<()> {
        let (interval, value) = (setting.interval.to_ns()?, setting.value.to_ns()?);
        let due = match value {
            0 => None,
            value if absolute => Some(clock::to_monotonic(self.clock, value).ok_or(Errno::EINVAL)?),
            value => Some(clock::monotonic().saturating_add(value)),
        };
        let mut state = self.state.lock();
        if let Some(key) = state.key.take() {
            timer::remove(key);
        }
        *state = State {
            due,
            interval,
            fired: false,
            key: None,
        };
        self.arm(&mut state);
        Ok(())
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        if let Some(key) = self.state.lock().key.take() {
            timer::remove(key);
        }
    }
}

/// What is on the list of timers: it must not keep a closed timer alive.
struct Ring(Weak<TimerFd>);

impl Waker for Ring {
    fn wake(&self, ready: u32) {
        if let Some(timer) = self.0.upgrade() {
            timer.wake(ready);
        }
    }
}

impl File for TimerFd {
    fn read(&self, file: &OpenFile, to: &mut Buf) -> SysResult<usize> {
        if to.len() < 8 {
            return Err(Errno::EINVAL);
        }
        let count = match self.take() {
            Some(count) => count,
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => self
                .readers
                .wait(u64::MAX, || self.take().map(Ok))
                .map_err(|_| Errno::ERESTARTSYS)?,
        };
        to.put(&count.to_ne_bytes())
    }

    fn stat(&self) -> SysResult<Stat> {
        Ok(anon::stat(0o600, self.inode))
    }

    fn poll(&self) -> u32 {
        if self.state.lock().fired {
            ready::IN | ready::RDNORM
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

fn create(args: &Args) -> SysResult {
    let (clock, flags) = (args.i32(0), args.u32(1));
    let known = [
        id::REALTIME,
        id::MONOTONIC,
        id::BOOTTIME,
        id::REALTIME_ALARM,
        id::BOOTTIME_ALARM,
    ];
    if !known.contains(&clock) || flags & !(O_CLOEXEC | O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    anon::install(TimerFd::new(clock), flags | 2, b"anon_inode:[timerfd]".to_vec())
}

/// Runs `work` on the timer behind `number`.
fn with<R>(number: i32, work: impl FnOnce(&TimerFd) -> SysResult<R>) -> SysResult<R> {
    let open = fd::get(number)?;
    work(
        open.file
            .as_any()
            .downcast_ref::<TimerFd>()
            .ok_or(Errno::EINVAL)?,
    )
}

fn set(args: &Args) -> SysResult {
    let flags = args.u32(1);
    if flags & !(ABSTIME | CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL);
    }
    let new: Setting = user::read(args.u64(2))?;
    with(args.i32(0), |timer| {
        let old = timer.setting();
        timer.configure(&new, flags & ABSTIME != 0)?;
        if args.u64(3) != 0 {
            user::write(args.u64(3), &old)?;
        }
        Ok(0)
    })
}

fn get(args: &Args) -> SysResult {
    let setting = with(args.i32(0), |timer| Ok(timer.setting()))?;
    user::write(args.u64(1), &setting)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &OpenFile) -> SysResult<u64> {
        let mut bytes = [0; 8];
        file.file.read(file, &mut Buf::own_mut(&mut bytes))?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn ms(n: i64) -> Timespec {
        Timespec {
            sec: 0,
            nsec: n * 1_000_000,
        }
    }

    #[test]
    fn one_shot_interval_and_disarming() {
        let timer = TimerFd::new(id::MONOTONIC);
        let open = OpenFile::new(timer.clone(), 2, Vec::new());
        timer
            .configure(
                &Setting {
                    interval: ms(0),
                    value: ms(2),
                },
                false,
            )
            .expect("valid");
        assert!(timer.setting().value != Timespec::default());
        assert_eq!(read(&open), Ok(1));
        assert_eq!(timer.setting(), Setting::default());
        timer
            .configure(
                &Setting {
                    interval: ms(2),
                    value: ms(1),
                },
                false,
            )
            .expect("valid");
        std::thread::sleep(std::time::Duration::from_millis(12));
        assert!(read(&open).expect("expired") >= 5);
        // One more period, or several on a busy machine.
        assert!(read(&open).expect("expired") >= 1);
        open.set_flags(O_NONBLOCK, O_NONBLOCK);
        timer.configure(&Setting::default(), false).expect("valid");
        assert_eq!((read(&open), timer.poll()), (Err(Errno::EAGAIN), 0));
    }

    #[test]
    fn absolute_times_of_the_past_fire_at_once() {
        let timer = TimerFd::new(id::REALTIME);
        let open = OpenFile::new(timer.clone(), 2, Vec::new());
        let past = Timespec::from_ns(clock::realtime().saturating_sub(1_000_000).max(1));
        timer
            .configure(
                &Setting {
                    interval: ms(0),
                    value: past,
                },
                true,
            )
            .expect("valid");
        assert_eq!(read(&open), Ok(1));
    }
}

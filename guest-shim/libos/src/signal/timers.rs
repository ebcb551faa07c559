//! Timers that send signals: `alarm`, `setitimer`, POSIX timers.
//!
//! Each is an entry of the one timer map ([`crate::sched::timer`]) whose waker sends the signal and, for a
//! periodic timer, adds the next entry.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};

use spin::Mutex;

use super::pending::{Info, code};
use super::{number, send_process, send_thread};
use crate::errno::{Errno, SysResult};
use crate::process::Process;
use crate::sched::clock::{self, Timespec};
use crate::sched::timer::{self, TimerKey};
use crate::sched::{Thread, Waker};
use crate::syscall::{Args, Entry, full, partial};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(37, "alarm", "u", alarm),
    partial(36, "getitimer", "ix", "ITIMER_REAL", getitimer),
    partial(38, "setitimer", "ixx", "ITIMER_REAL", setitimer),
    partial(
        222,
        "timer_create",
        "ixx",
        "signals to the process or a thread; clocks that run",
        timer_create,
    ),
    full(223, "timer_settime", "iixx", timer_settime),
    full(224, "timer_gettime", "ix", timer_gettime),
    partial(225, "timer_getoverrun", "i", "always 0", |a| {
        find(a.i32(0)).map(|_| 0)
    }),
    full(226, "timer_delete", "i", timer_delete),
];

const TIMER_ABSTIME: u32 = 1;
/// Most POSIX timers of a process.
const MOST: usize = 4096;
/// Name of the timer behind `alarm` and `ITIMER_REAL`.
const REAL: i32 = -1;

/// Whom it tells, and how.
#[derive(Debug)]
enum Target {
    Process(Weak<Process>),
    Thread(Weak<Thread>),
    Nobody,
}

#[derive(Debug, Default)]
struct Armed {
    /// Monotonic nanoseconds of the next expiry; 0: not armed.
    at: u64,
    /// Nanoseconds between expiries; 0: once.
    interval: u64,
    key: Option<TimerKey>,
}

#[derive(Debug)]
struct SignalTimer {
    me: Weak<Self>,
    target: Target,
    clock: i32,
    info: Info,
    armed: Mutex<Armed>,
}

static TIMERS: Mutex<BTreeMap<i32, Arc<SignalTimer>>> = Mutex::new(BTreeMap::new());

impl SignalTimer {
    fn new(target: Target, clock: i32, info: Info) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            target,
            clock,
            info,
            armed: Mutex::default(),
        })
    }

    /// Arms it for monotonic time `at` (0: disarms); gives what was left and the interval before.
    fn set(&self, at: u64, interval: u64) -> [u64; 2] {
        let mut armed = self.armed.lock();
        let old = Self::left(&armed);
        if let Some(key) = armed.key.take() {
            timer::remove(key);
        }
        *armed = Armed {
            at,
            interval,
            key: None,
        };
        if at != 0
            && let Some(me) = self.me.upgrade()
        {
            armed.key = Some(timer::add(clock::deadline(at), me));
        }
        old
    }

    fn left(armed: &Armed) -> [u64; 2] {
        match armed.at {
            0 => [0, armed.interval],
            // An armed timer never shows nothing left.
            at => [at.saturating_sub(clock::monotonic()).max(1), armed.interval],
        }
    }
}

impl Waker for SignalTimer {
    fn wake(&self, _ready: u32) {
        {
            let mut armed = self.armed.lock();
            armed.key = None;
            armed.at = match armed.interval {
                0 => 0,
                // What a busy machine missed is skipped, not sent in a burst.
                interval => armed.at.max(clock::monotonic().saturating_sub(interval)) + interval,
            };
            if armed.at != 0
                && let Some(me) = self.me.upgrade()
            {
                armed.key = Some(timer::add(clock::deadline(armed.at), me));
            }
        }
        match &self.target {
            Target::Process(process) => drop(process.upgrade().map(|p| send_process(&p, self.info))),
            Target::Thread(thread) => drop(thread.upgrade().map(|t| send_thread(&t, self.info))),
            Target::Nobody => {}
        }
    }
}

fn real() -> Arc<SignalTimer> {
    let info = Info {
        signal: number::SIGALRM,
        code: code::SI_KERNEL,
        ..Info::default()
    };
    let process = Arc::downgrade(&Process::current());
    let make = || SignalTimer::new(Target::Process(process), clock::id::MONOTONIC, info);
    TIMERS.lock().entry(REAL).or_insert_with(make).clone()
}

fn find(id: i32) -> SysResult<Arc<SignalTimer>> {
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    TIMERS.lock().get(&id).cloned().ok_or(Errno::EINVAL)
}

/// Monotonic time `ns` from now; 0 stays 0 (disarmed).
fn from_now(ns: u64) -> u64 {
    if ns == 0 {
        0
    } else {
        clock::monotonic().saturating_add(ns)
    }
}

fn alarm(a: &Args) -> SysResult {
    let [left, _] = real().set(from_now(u64::from(a.u32(0)) * clock::SECOND), 0);
    Ok(left.div_ceil(clock::SECOND))
}

/// `struct itimerval`: interval, value, each seconds and microseconds.
fn itimer(ns: [u64; 2]) -> [u64; 4] {
    let [left, interval] = ns.map(|n| n.div_ceil(1000));
    [
        interval / 1_000_000,
        interval % 1_000_000,
        left / 1_000_000,
        left % 1_000_000,
    ]
}

fn only_real(which: i32) -> SysResult<()> {
    if which == 0 { Ok(()) } else { Err(Errno::EINVAL) }
}

fn getitimer(a: &Args) -> SysResult {
    only_real(a.i32(0))?;
    let left = SignalTimer::left(&real().armed.lock());
    user::write(a.u64(1), &itimer(left)).map(|()| 0)
}

fn setitimer(a: &Args) -> SysResult {
    only_real(a.i32(0))?;
    let new: [u64; 4] = if a.u64(1) == 0 {
        [0; 4]
    } else {
        user::read(a.u64(1))?
    };
    if new[1] >= 1_000_000 || new[3] >= 1_000_000 {
        return Err(Errno::EINVAL);
    }
    let ns = |s: u64, us: u64| s.saturating_mul(clock::SECOND).saturating_add(us * 1000);
    let old = real().set(from_now(ns(new[2], new[3])), ns(new[0], new[1]));
    if a.u64(2) != 0 {
        user::write(a.u64(2), &itimer(old))?;
    }
    Ok(0)
}

fn timer_create(a: &Args) -> SysResult {
    let clock = a.i32(0);
    clock::offset(clock).ok_or(Errno::EINVAL)?;
    let process = Process::current();
    // struct sigevent: value, signal and kind, thread
    let (value, signal, kind, tid) = match a.u64(1) {
        0 => (0, number::SIGALRM, 0, 0),
        at => {
            let [value, head, tail]: [u64; 3] = user::read(at)?;
            (value, head as u32, (head >> 32) as u32, tail as i32)
        }
    };
    if kind != 1 && !(1..=64).contains(&signal) {
        return Err(Errno::EINVAL);
    }
    let target = match kind {
        0 | 2 => Target::Process(Arc::downgrade(&process)),
        1 => Target::Nobody,
        4 => Target::Thread(Arc::downgrade(&process.thread(tid).ok_or(Errno::EINVAL)?)),
        _ => return Err(Errno::EINVAL),
    };
    let mut timers = TIMERS.lock();
    let id = (0..MOST as i32)
        .find(|id| !timers.contains_key(id))
        .ok_or(Errno::EAGAIN)?;
    let value = if a.u64(1) == 0 { id as u64 } else { value };
    let info = Info {
        signal,
        errno: 0,
        code: code::SI_TIMER,
        fields: [id as u64, value, 0],
    };
    timers.insert(id, SignalTimer::new(target, clock, info));
    drop(timers);
    user::write(a.u64(2), &id).map(|()| 0)
}

fn timer_settime(a: &Args) -> SysResult {
    let timer = find(a.i32(0))?;
    let [interval, value] =
        [0, 16].map(|at| user::read::<Timespec>(a.u64(2).wrapping_add(at)).and_then(Timespec::to_ns));
    let (interval, value) = (interval?, value?);
    let at = match value {
        0 => 0,
        at if a.u32(1) & TIMER_ABSTIME != 0 => {
            clock::to_monotonic(timer.clock, at).ok_or(Errno::EINVAL)?.max(1)
        }
        ns => from_now(ns),
    };
    let old = timer.set(at, interval);
    if a.u64(3) != 0 {
        write_spec(a.u64(3), old)?;
    }
    Ok(0)
}

fn write_spec(to: u64, [left, interval]: [u64; 2]) -> SysResult<()> {
    user::write(to, &Timespec::from_ns(interval))?;
    user::write(to.wrapping_add(16), &Timespec::from_ns(left))
}

fn timer_gettime(a: &Args) -> SysResult {
    let timer = find(a.i32(0))?;
    let left = SignalTimer::left(&timer.armed.lock());
    write_spec(a.u64(1), left).map(|()| 0)
}

fn timer_delete(a: &Args) -> SysResult {
    let timer = find(a.i32(0))?;
    timer.set(0, 0);
    TIMERS.lock().remove(&a.i32(0));
    Ok(0)
}

//! System calls of timers that send signals: `alarm`, `setitimer`, `timer_create`.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use spin::Mutex;

use super::interval::{Interval, Source};
use super::number::{SIGALRM, SIGKILL, SIGXCPU};
use super::pending::{Info, TimerSignal, code};
use super::{send_process, send_timer};
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::process::{Process, limits};
use crate::sched::clock::{self, SECOND, Timespec, id};
use crate::syscall::{Args, Entry, full, partial};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(36, "getitimer", "ix", getitimer),
    full(37, "alarm", "u", alarm),
    partial(
        38,
        "setitimer",
        "ixx",
        "ITIMER_VIRTUAL counts time in system calls too",
        setitimer,
    ),
    partial(
        222,
        "timer_create",
        "ixx",
        "a thread's processor-time clock counts the whole process",
        timer_create,
    ),
    full(223, "timer_settime", "iixx", timer_settime),
    full(224, "timer_gettime", "ix", timer_gettime),
    full(225, "timer_getoverrun", "i", timer_getoverrun),
    full(226, "timer_delete", "i", timer_delete),
];

/// Most timers of one process.
const MAX_TIMERS: usize = 32_768;
const ABSTIME: u32 = 1;

const SIGEV_SIGNAL: i32 = 0;
const SIGEV_NONE: i32 = 1;
const SIGEV_THREAD_ID: i32 = 4;

/// The timers of a process.
#[derive(Debug, Default)]
pub struct Timers {
    interval: Mutex<[Option<Arc<Interval>>; 3]>,
    created: Mutex<Created>,
    /// Holds the limit of processor time, where there is one.
    cpu_limit: Mutex<Option<Arc<Interval>>>,
}

#[derive(Debug, Default)]
struct Created {
    next: i32,
    by_id: BTreeMap<i32, Arc<Timer>>,
}

impl Timers {
    /// Deletes those of `timer_create`.
    pub fn clear_created(&self) {
        let gone = core::mem::take(&mut *self.created.lock());
        drop(gone); // outside the lock
    }

    /// Deletes all.
    pub fn clear(&self) {
        self.clear_created();
        let gone = core::mem::take(&mut *self.interval.lock());
        drop(gone);
        let gone = self.cpu_limit.lock().take();
        drop(gone);
    }
}

/// A timer of `timer_create`.
#[derive(Debug)]
struct Timer {
    clock: i32,
    interval: Arc<Interval>,
    signal: Arc<TimerSignal>,
}

fn processor(process: &Arc<Process>) -> Source {
    let process = Arc::downgrade(process);
    Source::Processor {
        used: Box::new(move || {
            process
                .upgrade()
                .map_or(0, |p| crate::process::providers::used_ns(&p))
        }),
        parallel: u64::from(arch::boot().vcpus),
    }
}

/// Holds the process to its limit of processor time from now on: SIGXCPU at the soft limit and each second after it,
/// SIGKILL at the hard one.
pub fn limit_cpu(process: &Arc<Process>) {
    let owner = Arc::downgrade(process);
    let timer = process
        .signals
        .timers
        .cpu_limit
        .lock()
        .get_or_insert_with(|| {
            let action = move |_| {
                if let Some(process) = owner.upgrade() {
                    cpu_limit_reached(&process);
                }
            };
            Interval::new(processor(process), Box::new(action))
        })
        .clone();
    let soft = process.limits.soft(limits::CPU);
    // No time at all counts as a second, as on Linux.
    let due = (soft != limits::INFINITY).then(|| soft.max(1).saturating_mul(SECOND));
    timer.set(due, SECOND);
}

fn cpu_limit_reached(process: &Process) {
    let [_, hard] = process.limits.0.lock()[limits::CPU];
    let is_over = crate::process::providers::used_ns(process) >= hard.saturating_mul(SECOND);
    let info = Info {
        signal: if is_over { SIGKILL } else { SIGXCPU },
        code: code::SI_KERNEL,
        ..Info::default()
    };
    send_process(process, info);
}

/// Timer `which` of `setitimer`, made at its first use.
fn itimer(which: i32) -> SysResult<Arc<Interval>> {
    let index = usize::try_from(which)
        .ok()
        .filter(|&n| n < 3)
        .ok_or(Errno::EINVAL)?;
    let process = Process::current();
    let mut slots = process.signals.timers.interval.lock();
    let timer = slots[index].get_or_insert_with(|| {
        let owner = Arc::downgrade(&process);
        let action = move |_| {
            let info = Info {
                signal: [SIGALRM, super::number::SIGVTALRM, super::number::SIGPROF][index],
                code: code::SI_KERNEL,
                ..Info::default()
            };
            if let Some(process) = owner.upgrade() {
                send_process(&process, info);
            }
        };
        let source = if index == 0 {
            Source::Real
        } else {
            processor(&process)
        };
        Interval::new(source, Box::new(action))
    });
    Ok(timer.clone())
}

fn arm(timer: &Interval, value: u64, period: u64) -> (u64, u64) {
    let due = (value != 0).then(|| timer.now().saturating_add(value));
    timer.set(due, if value == 0 { 0 } else { period })
}

fn alarm(a: &Args) -> SysResult {
    let (left, _) = arm(&*itimer(0)?, u64::from(a.u32(0)) * SECOND, 0);
    // To the nearest second, but never 0 for a timer that is armed.
    let seconds = (left + SECOND / 2) / SECOND;
    Ok(if left == 0 { 0 } else { seconds.max(1) })
}

/// `struct itimerval`: period and value, in seconds and microseconds.
fn itimerval((left, period): (u64, u64)) -> [u64; 4] {
    let left = left.next_multiple_of(1000);
    [
        period / SECOND,
        period % SECOND / 1000,
        left / SECOND,
        left % SECOND / 1000,
    ]
}

fn from_timeval(seconds: i64, micros: i64) -> SysResult<u64> {
    let nsec = micros
        .checked_mul(1000)
        .filter(|_| (0..1_000_000).contains(&micros))
        .ok_or(Errno::EINVAL)?;
    Timespec { sec: seconds, nsec }.to_ns()
}

fn getitimer(a: &Args) -> SysResult {
    let setting = itimer(a.i32(0))?.setting();
    user::write(a.u64(1), &itimerval(setting))?;
    Ok(0)
}

fn setitimer(a: &Args) -> SysResult {
    // Linux takes no value for one of zeros.
    let new: [i64; 4] = if a.u64(1) == 0 {
        [0; 4]
    } else {
        user::read(a.u64(1))?
    };
    let (period, value) = (from_timeval(new[0], new[1])?, from_timeval(new[2], new[3])?);
    let old = arm(&*itimer(a.i32(0))?, value, period);
    if a.u64(2) != 0 {
        user::write(a.u64(2), &itimerval(old))?;
    }
    Ok(0)
}

fn timer_create(a: &Args) -> SysResult {
    let clock = a.i32(0);
    let process = Process::current();
    let source = match clock {
        id::PROCESS_CPUTIME | id::THREAD_CPUTIME => processor(&process),
        _ if clock::offset(clock).is_some() => Source::Real,
        _ => return Err(Errno::EINVAL),
    };
    let timers = &process.signals.timers;
    let number = reserve(timers)?;
    // sigval, signal and way of notification, thread
    let event: [u64; 3] = match a.u64(1) {
        0 => [u64::from(number as u32), u64::from(SIGALRM), 0],
        address => user::read(address)?,
    };
    let (signal, notify) = (event[1] as u32, (event[1] >> 32) as i32);
    let thread = match notify {
        SIGEV_SIGNAL | SIGEV_NONE => None,
        SIGEV_THREAD_ID => Some(process.thread(event[2] as i32).ok_or(Errno::EINVAL)?),
        _ => return Err(Errno::EINVAL),
    };
    if notify != SIGEV_NONE && !(1..=64).contains(&signal) {
        return Err(Errno::EINVAL);
    }
    let own = Arc::new(TimerSignal::default());
    let (queued, owner) = (own.clone(), Arc::downgrade(&process));
    let target = thread.as_ref().map(Arc::downgrade);
    let action = move |count: u64| {
        let Some(process) = owner.upgrade().filter(|_| notify != SIGEV_NONE) else {
            return;
        };
        let thread = target.as_ref().map(alloc::sync::Weak::upgrade);
        if matches!(thread, Some(None)) {
            return; // its thread has ended
        }
        let info = Info {
            signal,
            errno: 0,
            code: code::SI_TIMER,
            fields: [u64::from(number as u32), event[0], 0],
        };
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        send_timer(&process, thread.flatten().as_deref(), info, &queued, count);
    };
    user::write(a.u64(2), &number)?;
    let timer = Timer {
        clock,
        interval: Interval::new(source, Box::new(action)),
        signal: own,
    };
    timers.created.lock().by_id.insert(number, Arc::new(timer));
    Ok(0)
}

fn reserve(timers: &Timers) -> SysResult<i32> {
    let mut created = timers.created.lock();
    if created.by_id.len() >= MAX_TIMERS {
        return Err(Errno::EAGAIN);
    }
    while created.by_id.contains_key(&created.next) {
        created.next = (created.next + 1) & i32::MAX;
    }
    let number = created.next;
    created.next = (number + 1) & i32::MAX;
    Ok(number)
}

fn created(number: i32) -> SysResult<Arc<Timer>> {
    let process = Process::current();
    let timers = process.signals.timers.created.lock();
    timers.by_id.get(&number).cloned().ok_or(Errno::EINVAL)
}

fn itimerspec((left, period): (u64, u64)) -> [Timespec; 2] {
    [Timespec::from_ns(period), Timespec::from_ns(left)]
}

fn timer_settime(a: &Args) -> SysResult {
    let timer = created(a.i32(0))?;
    let [period, value]: [Timespec; 2] = user::read(a.u64(2))?;
    let (period, value) = (period.to_ns()?, value.to_ns()?);
    let due = match value {
        0 => None,
        // Processor time counts from the process's start, as its clock does.
        value if a.u32(1) & ABSTIME != 0 => Some(clock::to_monotonic(timer.clock, value).unwrap_or(value)),
        value => Some(timer.interval.now().saturating_add(value)),
    };
    timer.signal.reset();
    let old = timer.interval.set(due, period);
    if a.u64(3) != 0 {
        user::write(a.u64(3), &itimerspec(old))?;
    }
    Ok(0)
}

fn timer_gettime(a: &Args) -> SysResult {
    let setting = created(a.i32(0))?.interval.setting();
    user::write(a.u64(1), &itimerspec(setting))?;
    Ok(0)
}

fn timer_getoverrun(a: &Args) -> SysResult {
    Ok(u64::from(created(a.i32(0))?.signal.overrun()))
}

fn timer_delete(a: &Args) -> SysResult {
    let process = Process::current();
    let gone = process.signals.timers.created.lock().by_id.remove(&a.i32(0));
    // Dropped here, outside the lock.
    gone.map(|_| 0).ok_or(Errno::EINVAL)
}

//! System calls that read clocks and sleep.

use spin::Once;

use super::clock::{self, SECOND, Timespec, id};
use super::{WaitQueue, current};
use crate::errno::{Errno, SysResult};
use crate::signal::restart;
use crate::syscall::{Args, Entry, eperm, full, partial, refused};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(35, "nanosleep", "xx", nanosleep),
    full(96, "gettimeofday", "xx", gettimeofday),
    partial(100, "times", "x", "children's times are 0", times),
    refused(164, "settimeofday", "the clock is the platform's", eperm),
    full(201, "time", "x", time),
    refused(227, "clock_settime", "the clock is the platform's", eperm),
    partial(
        228,
        "clock_gettime",
        "ix",
        "processor time of other processes is refused",
        clock_gettime,
    ),
    full(229, "clock_getres", "ix", clock_getres),
    partial(
        230,
        "clock_nanosleep",
        "iixx",
        "processor-time clocks are refused",
        clock_nanosleep,
    ),
];

/// Whose processor time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuClock {
    /// That of the process that asks.
    Process,
    /// That of a thread of that process, by its number; 0: the one that asks.
    Thread(i32),
}

/// Gives processor time in nanoseconds, None for a thread that is not there. Set by the scheduler; until then
/// processor time is the time since boot.
pub static CPU_TIME: Once<fn(CpuClock) -> Option<u64>> = Once::new();

fn cpu_time(clock: CpuClock) -> SysResult {
    CPU_TIME
        .get()
        .map_or_else(|| Some(clock::monotonic()), |f| f(clock))
        .ok_or(Errno::EINVAL)
}

/// What `clock` shows, in nanoseconds.
///
/// # Errors
/// EINVAL for an unknown clock.
pub fn now(clock: i32) -> SysResult<u64> {
    match clock {
        id::PROCESS_CPUTIME => cpu_time(CpuClock::Process),
        id::THREAD_CPUTIME => cpu_time(CpuClock::Thread(0)),
        id::REALTIME | id::REALTIME_COARSE | id::REALTIME_ALARM | id::TAI => Ok(clock::realtime()),
        id::BOOTTIME | id::BOOTTIME_ALARM => Ok(clock::boottime()),
        id::MONOTONIC | id::MONOTONIC_RAW | id::MONOTONIC_COARSE => Ok(clock::monotonic()),
        _ => own_cpu_clock(clock).and_then(cpu_time),
    }
}

/// A clock number made from a process or thread number (`MAKE_PROCESS_CPUCLOCK`, `MAKE_THREAD_CPUCLOCK`): 0 means the
/// caller.
fn own_cpu_clock(clock: i32) -> SysResult<CpuClock> {
    let (pid, kind) = (!(clock >> 3), clock & 7);
    let own = pid == 0 || pid == crate::process::Process::current().pid;
    match kind {
        0..=2 if clock < 0 && own => Ok(CpuClock::Process),
        4..=6 if clock < 0 => Ok(CpuClock::Thread(pid)),
        _ => Err(Errno::EINVAL),
    }
}

fn clock_gettime(args: &Args) -> SysResult {
    let now = now(args.i32(0))?;
    user::write(args.u64(1), &Timespec::from_ns(now))?;
    Ok(0)
}

fn clock_getres(args: &Args) -> SysResult {
    now(args.i32(0))?;
    let coarse = matches!(args.i32(0), id::REALTIME_COARSE | id::MONOTONIC_COARSE);
    if args.u64(1) != 0 {
        user::write(
            args.u64(1),
            &Timespec {
                sec: 0,
                nsec: if coarse { 4_000_000 } else { 1 },
            },
        )?;
    }
    Ok(0)
}

fn gettimeofday(args: &Args) -> SysResult {
    if args.u64(0) != 0 {
        let now = clock::realtime();
        user::write(args.u64(0), &[now / SECOND, now % SECOND / 1000])?;
    }
    if args.u64(1) != 0 {
        user::write(args.u64(1), &[0i32; 2])?;
    }
    Ok(0)
}

fn time(args: &Args) -> SysResult {
    let seconds = clock::realtime() / SECOND;
    if args.u64(0) != 0 {
        user::write(args.u64(0), &seconds)?;
    }
    Ok(seconds)
}

/// `CLOCKS_PER_SEC` of the kernel (`USER_HZ`).
const HZ: u64 = 100;

fn times(args: &Args) -> SysResult {
    if args.u64(0) != 0 {
        let used = cpu_time(CpuClock::Process)? / (SECOND / HZ);
        user::write(args.u64(0), &[used, 0, 0, 0])?;
    }
    Ok(clock::boottime() / (SECOND / HZ))
}

fn nanosleep(args: &Args) -> SysResult {
    let ns = user::read::<Timespec>(args.u64(0))?.to_ns()?;
    sleep_for(ns, args.u64(1))
}

const TIMER_ABSTIME: i32 = 1;

fn clock_nanosleep(args: &Args) -> SysResult {
    let clock = args.i32(0);
    if matches!(
        clock,
        id::MONOTONIC_RAW | id::REALTIME_COARSE | id::MONOTONIC_COARSE
    ) {
        return Err(Errno::EOPNOTSUPP);
    }
    // A thread can't wait for its own processor time to pass; other processes' clocks are not kept.
    clock::offset(clock).ok_or(if clock == id::PROCESS_CPUTIME {
        Errno::EOPNOTSUPP
    } else {
        Errno::EINVAL
    })?;
    let ns = user::read::<Timespec>(args.u64(2))?.to_ns()?;
    if args.i32(1) & TIMER_ABSTIME == 0 {
        return sleep_for(ns, args.u64(3));
    }
    let until = clock::to_monotonic(clock, ns).ok_or(Errno::EINVAL)?;
    // An absolute sleep starts again as it is.
    sleep_until(until).map_err(|_| Errno::ERESTARTNOHAND)
}

fn sleep_for(ns: u64, remaining: u64) -> SysResult {
    sleep_on(clock::monotonic().saturating_add(ns), remaining)
}

/// Sleeps until `until`; interrupted, tells what is left and can go on.
fn sleep_on(until: u64, remaining: u64) -> SysResult {
    sleep_until(until).or_else(|_| {
        let left = until.saturating_sub(clock::monotonic());
        if remaining != 0 {
            user::write(remaining, &Timespec::from_ns(left))?;
        }
        Err(restart::later(move || sleep_on(until, remaining)))
    })
}

/// Sleeps until the monotonic time `until` (nanoseconds).
///
/// # Errors
/// EINTR.
pub fn sleep_until(until: u64) -> SysResult {
    let deadline = clock::deadline(until);
    loop {
        if clock::monotonic() >= until {
            return Ok(0);
        }
        if current().has_signal() {
            return Err(Errno::EINTR);
        }
        super::park(deadline);
    }
}

/// The tick that a relative timeout in the program's memory stands for: never when `address` is 0.
///
/// # Errors
/// EFAULT, EINVAL.
pub fn timeout_at(address: u64) -> SysResult<u64> {
    if address == 0 {
        return Ok(u64::MAX);
    }
    user::read::<Timespec>(address)?.to_ns().map(clock::deadline_in)
}

/// The tick that a timeout in milliseconds stands for: never when it is negative.
#[must_use]
pub fn timeout_ms(ms: i32) -> u64 {
    u64::try_from(ms).map_or(u64::MAX, |ms| clock::deadline_in(ms * 1_000_000))
}

/// Parks on `queue` until `ready` gives true. `ready` must not park.
///
/// # Errors
/// EINTR, ETIMEDOUT.
pub fn wait_until(queue: &WaitQueue, deadline: u64, mut ready: impl FnMut() -> bool) -> SysResult<()> {
    queue.wait(deadline, || ready().then_some(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(values: &[u64]) -> Args {
        let mut all = [0; 6];
        all[..values.len()].copy_from_slice(values);
        Args(all)
    }

    #[test]
    fn sleeping_lasts_at_least_as_long_as_asked() {
        let time = Timespec {
            sec: 0,
            nsec: 3_000_000,
        };
        let before = clock::monotonic();
        assert_eq!(nanosleep(&args(&[&raw const time as u64, 0])), Ok(0));
        assert!(clock::monotonic() - before >= 3_000_000);
        let until = Timespec::from_ns(clock::monotonic() + 2_000_000);
        assert_eq!(clock_nanosleep(&args(&[1, 1, &raw const until as u64, 0])), Ok(0));
        assert!(clock::monotonic() >= until.to_ns().expect("valid"));
    }

    #[test]
    fn an_interrupted_sleep_tells_what_is_left_and_can_go_on() {
        use core::sync::atomic::Ordering;
        let hour = Timespec { sec: 3600, nsec: 0 };
        let mut left = Timespec::default();
        current().signal.store(true, Ordering::SeqCst);
        let result = nanosleep(&args(&[&raw const hour as u64, &raw mut left as u64]));
        current().signal.store(false, Ordering::SeqCst);
        assert_eq!(result, Err(Errno::ERESTART_RESTARTBLOCK));
        assert!((3590..3600).contains(&left.sec));
    }

    #[test]
    fn unknown_clocks_are_refused() {
        let mut out = Timespec::default();
        assert_eq!(
            clock_gettime(&args(&[99, &raw mut out as u64])),
            Err(Errno::EINVAL)
        );
        assert_eq!(clock_gettime(&args(&[1, &raw mut out as u64])), Ok(0));
        // MAKE_PROCESS_CPUCLOCK, MAKE_THREAD_CPUCLOCK and no kind at all, each of number 0.
        assert_eq!(own_cpu_clock(!0 << 3 | 2), Ok(CpuClock::Process));
        assert_eq!(own_cpu_clock(!7 << 3 | 6), Ok(CpuClock::Thread(7)));
        assert_eq!(own_cpu_clock(!0 << 3 | 3), Err(Errno::EINVAL));
        let bad = Timespec { sec: 0, nsec: -1 };
        assert_eq!(nanosleep(&args(&[&raw const bad as u64, 0])), Err(Errno::EINVAL));
    }
}

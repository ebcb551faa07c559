//! Scheduling policy calls: policy, priority, nice value and affinity of threads.
//!
//! They are kept for each thread, told back, and inherited, since programs compare what they set with what they get. The
//! scheduler does not obey them: one queue serves all vCPUs in turn.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::sched::{self, Thread};
use crate::syscall::{Args, Entry, full, partial};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    partial(140, "getpriority", "ii", "one process", getpriority),
    partial(141, "setpriority", "iii", "kept, not obeyed", setpriority),
    partial(142, "sched_setparam", "ix", "priority 0 only", set_param),
    full(143, "sched_getparam", "ix", param),
    partial(
        144,
        "sched_setscheduler",
        "iix",
        "SCHED_OTHER, SCHED_BATCH and SCHED_IDLE, kept, not obeyed",
        set_scheduler,
    ),
    full(145, "sched_getscheduler", "i", scheduler),
    full(146, "sched_get_priority_max", "i", |a| {
        priorities(a.u32(0)).map(|(_, highest)| highest)
    }),
    full(147, "sched_get_priority_min", "i", |a| {
        priorities(a.u32(0)).map(|(lowest, _)| lowest)
    }),
    full(148, "sched_rr_get_interval", "ix", interval),
    partial(203, "sched_setaffinity", "isx", "kept, not obeyed", set_affinity),
    full(204, "sched_getaffinity", "isx", affinity),
];

const OTHER: u32 = 0;
const FIFO: u32 = 1;
const ROUND_ROBIN: u32 = 2;
const BATCH: u32 = 3;
const IDLE: u32 = 5;
const DEADLINE: u32 = 6;
const RESET_ON_FORK: u32 = 0x4000_0000;

/// The monitor's time slice, nanoseconds.
const SLICE: u64 = 4_000_000;

/// Lowest and highest priority of a policy.
fn priorities(policy: u32) -> SysResult<(u64, u64)> {
    match policy {
        FIFO | ROUND_ROBIN => Ok((1, 99)),
        OTHER | BATCH | IDLE | DEADLINE => Ok((0, 0)),
        _ => Err(Errno::EINVAL),
    }
}

/// The thread that a call names; 0 is the one that calls.
fn named(tid: i32) -> SysResult<Arc<Thread>> {
    match tid {
        0 => Ok(sched::current_arc()),
        _ => super::all()
            .iter()
            .find_map(|p| p.thread(tid))
            .ok_or(Errno::ESRCH),
    }
}

/// As [`named`], for calls that take a negative number for an error of its own.
fn named_or_invalid(tid: i32) -> SysResult<Arc<Thread>> {
    if tid < 0 { Err(Errno::EINVAL) } else { named(tid) }
}

fn getpriority(_: &Args) -> SysResult {
    Ok((20 - sched::current().nice.load(Ordering::Relaxed)) as u64)
}

fn setpriority(a: &Args) -> SysResult {
    let thread = sched::current();
    let new = i64::from(a.i32(2).clamp(-20, 19));
    let root = thread.process.credentials.lock().uid[1] == 0;
    if new < thread.nice.load(Ordering::Relaxed) && !root {
        return Err(Errno::EACCES);
    }
    thread.nice.store(new, Ordering::Relaxed);
    Ok(0)
}

fn scheduler(a: &Args) -> SysResult {
    let thread = named_or_invalid(a.i32(0))?;
    Ok(u64::from(thread.policy.load(Ordering::Relaxed)))
}

fn param(a: &Args) -> SysResult {
    if a.u64(1) == 0 {
        return Err(Errno::EINVAL);
    }
    named_or_invalid(a.i32(0))?;
    user::write(a.u64(1), &0u32).map(|()| 0)
}

/// Checks a priority for a policy: only the policies whose one priority is 0 can be had.
fn check(policy: u32, address: u64) -> SysResult<()> {
    if address == 0 {
        return Err(Errno::EINVAL);
    }
    let (lowest, highest) = priorities(policy)?;
    let priority = u64::from(user::read::<u32>(address)?);
    if !(lowest..=highest).contains(&priority) {
        Err(Errno::EINVAL)
    } else if lowest > 0 || policy == DEADLINE {
        Err(Errno::EPERM)
    } else {
        Ok(())
    }
}

fn set_param(a: &Args) -> SysResult {
    let thread = named_or_invalid(a.i32(0))?;
    check(thread.policy.load(Ordering::Relaxed) & !RESET_ON_FORK, a.u64(1)).map(|()| 0)
}

fn set_scheduler(a: &Args) -> SysResult {
    let thread = named_or_invalid(a.i32(0))?;
    check(a.u32(1) & !RESET_ON_FORK, a.u64(2))?;
    thread.policy.store(a.u32(1), Ordering::Relaxed);
    Ok(0)
}

fn interval(a: &Args) -> SysResult {
    named_or_invalid(a.i32(0))?;
    user::write(a.u64(1), &[0, SLICE]).map(|()| 0)
}

/// The vCPUs there are.
fn all_vcpus() -> u64 {
    u64::MAX >> (64 - arch::boot().vcpus.clamp(1, 64))
}

fn set_affinity(a: &Args) -> SysResult {
    let thread = named(a.i32(0))?;
    let mut mask = [0u8; 8];
    let len = a.usize(1).min(mask.len());
    user::copy_in(&mut mask[..len], a.u64(2))?;
    let mask = u64::from_le_bytes(mask) & all_vcpus();
    if mask == 0 {
        return Err(Errno::EINVAL);
    }
    thread.affinity.store(mask, Ordering::Relaxed);
    Ok(0)
}

fn affinity(a: &Args) -> SysResult {
    let len = a.usize(1);
    if len < 8 || !len.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let mask = named(a.i32(0))?.affinity.load(Ordering::Relaxed) & all_vcpus();
    user::write(a.u64(2), &mask)?;
    Ok(8)
}

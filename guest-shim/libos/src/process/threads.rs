//! Thread system calls: exit, futex, identity, CPU affinity.

use core::sync::atomic::Ordering;

use super::{Process, Status, exit_group, exit_thread};
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::sched::clock::{self, Timespec};
use crate::sched::{self, futex};
use crate::signal::restart::later;
use crate::syscall::{Args, Entry, full, partial, refused};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(60, "exit", "i", exit),
    full(231, "exit_group", "i", exit_all),
    partial(202, "futex", "xiuxxu", "no priority inheritance", futex_call),
    refused(
        449,
        "futex_waitv",
        "programs fall back to futex",
        crate::syscall::enosys,
    ),
    full(186, "gettid", "", |_| Ok(sched::current().tid() as u64)),
    full(218, "set_tid_address", "x", set_tid_address),
    full(273, "set_robust_list", "xs", set_robust_list),
    full(274, "get_robust_list", "ixx", get_robust_list),
    partial(
        334,
        "rseq",
        "xuix",
        "CPU number kept at exit; no critical-section aborts: refused as by an older kernel",
        crate::syscall::enosys,
    ),
    full(24, "sched_yield", "", |_| {
        sched::yield_now();
        Ok(0)
    }),
    full(309, "getcpu", "xxx", getcpu),
    full(158, "arch_prctl", "xx", arch_prctl),
];

fn exit(a: &Args) -> SysResult {
    exit_thread(a.u32(0) as u8)
}

fn exit_all(a: &Args) -> SysResult {
    exit_group(Status::Exited(a.u32(0) as u8))
}

fn set_tid_address(a: &Args) -> SysResult {
    let thread = sched::current();
    thread.clear_tid.store(a.u64(0), Ordering::Relaxed);
    Ok(thread.tid() as u64)
}

fn set_robust_list(a: &Args) -> SysResult {
    if a.usize(1) != 24 {
        return Err(Errno::EINVAL);
    }
    sched::current().robust_list.store(a.u64(0), Ordering::Relaxed);
    Ok(0)
}

fn get_robust_list(a: &Args) -> SysResult {
    let list = match a.i32(0) {
        0 => sched::current().robust_list.load(Ordering::Relaxed),
        tid => Process::current()
            .thread(tid)
            .ok_or(Errno::ESRCH)?
            .robust_list
            .load(Ordering::Relaxed),
    };
    user::write(a.u64(1), &list)?;
    user::write(a.u64(2), &24u64).map(|()| 0)
}

fn futex_call(a: &Args) -> SysResult {
    const PRIVATE: u32 = 128;
    const REALTIME: u32 = 256;
    let (address, operation, value) = (a.u64(0), a.u32(1), a.u32(2));
    let private = operation & PRIVATE != 0;
    let count = |n: u32| n as i32 as usize;
    let key = futex::key(address, private)?;
    match operation & !(PRIVATE | REALTIME) {
        0 => {
            let deadline = match a.u64(3) {
                0 => u64::MAX,
                timeout => clock::deadline_in(user::read::<Timespec>(timeout)?.to_ns()?),
            };
            wait_on(address, key, value, deadline)
        }
        9 => {
            let deadline = match a.u64(3) {
                0 => u64::MAX,
                timeout => {
                    let id = if operation & REALTIME != 0 {
                        clock::id::REALTIME
                    } else {
                        clock::id::MONOTONIC
                    };
                    let ns = user::read::<Timespec>(timeout)?.to_ns()?;
                    clock::deadline(clock::to_monotonic(id, ns).ok_or(Errno::EINVAL)?)
                }
            };
            // With an absolute timeout it can be made again as it is.
            futex::wait(address, key, value, a.u32(5), deadline).map_err(|error| match error {
                Errno::EINTR => Errno::ERESTARTSYS,
                other => other,
            })
        }
        1 => Ok(futex::wake(key, count(value), !0) as u64),
        10 if a.u32(5) == 0 => Err(Errno::EINVAL),
        10 => Ok(futex::wake(key, count(value), a.u32(5)) as u64),
        op @ (3 | 4) => {
            let to = futex::key(a.u64(4), private)?;
            let expected = (op == 4).then(|| a.u32(5));
            futex::requeue(
                address,
                key,
                to,
                count(value),
                a.u64(3) as u32 as i32 as usize,
                expected,
            )
        }
        5 => {
            let second = futex::key(a.u64(4), private)?;
            futex::wake_op(
                key,
                second,
                a.u64(4),
                count(value),
                a.u64(3) as u32 as i32 as usize,
                a.u32(5),
            )
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// `FUTEX_WAIT`: interrupted with a relative timeout, it must not start again with all of it.
fn wait_on(address: u64, key: u64, value: u32, deadline: u64) -> SysResult {
    futex::wait(address, key, value, !0, deadline).map_err(|error| match error {
        Errno::EINTR if deadline == u64::MAX => Errno::ERESTARTSYS,
        Errno::EINTR => later(move || wait_on(address, key, value, deadline)),
        other => other,
    })
}

fn getcpu(a: &Args) -> SysResult {
    if a.u64(0) != 0 {
        user::write(a.u64(0), &(arch::vcpu_index() as u32))?;
    }
    if a.u64(1) != 0 {
        user::write(a.u64(1), &0u32)?;
    }
    Ok(0)
}

fn arch_prctl(a: &Args) -> SysResult {
    match a.u32(0) {
        0x1002 if a.u64(1) < 1 << 47 => {
            arch::set_fs_base(a.u64(1));
            Ok(0)
        }
        0x1002 => Err(Errno::EPERM),
        0x1003 => user::write(a.u64(1), &arch::fs_base()).map(|()| 0),
        // GS is the libos's own. No system library uses it on x86-64.
        _ => Err(Errno::EINVAL),
    }
}

//! Parents, process groups and sessions: the system calls.

use alloc::sync::Arc;

use super::{Process, family, find};
use crate::errno::{Errno, SysResult};
use crate::sched;
use crate::syscall::{Args, Entry, full};

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(110, "getppid", "", |_| {
        Ok(sched::current().process.family.parent() as u64)
    }),
    full(111, "getpgrp", "", |_| {
        Ok(sched::current().process.family.group() as u64)
    }),
    full(
        121,
        "getpgid",
        "i",
        |a| Ok(named(a.i32(0))?.family.group() as u64),
    ),
    full(124, "getsid", "i", |a| {
        Ok(named(a.i32(0))?.family.session() as u64)
    }),
    full(109, "setpgid", "ii", |a| {
        family::set_group(&sched::current().process, a.i32(0), a.i32(1)).map(|()| 0)
    }),
    full(112, "setsid", "", setsid),
];

fn named(pid: i32) -> SysResult<Arc<Process>> {
    if pid == 0 {
        Ok(Process::current())
    } else {
        find(pid).ok_or(Errno::ESRCH)
    }
}

fn setsid(_: &Args) -> SysResult {
    let process = &sched::current().process;
    family::set_session(process)?;
    Ok(process.pid as u64)
}

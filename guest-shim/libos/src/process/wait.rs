//! Waiting for children: `wait4`, `waitid`.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::family::{self, Look, Report, Usage};
use super::{Process, pidfd};
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::sched;
use crate::signal::number::{SIGCHLD, SIGCONT};
use crate::signal::pending::Info;
use crate::syscall::{Args, Entry, full};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(61, "wait4", "ixix", wait4),
    full(247, "waitid", "iixix", waitid),
];

const NOHANG: u32 = 1;
const STOPPED: u32 = 2;
const EXITED: u32 = 4;
const CONTINUED: u32 = 8;
const NOWAIT: u32 = 0x0100_0000;
const NOTHREAD: u32 = 0x2000_0000;
const ALL: u32 = 0x4000_0000;
const CLONE: u32 = 0x8000_0000;

/// Which children.
#[derive(Debug)]
enum Which {
    Any,
    One(i32),
    Group(i32),
}

impl Which {
    fn is(&self, child: &Process, options: u32) -> bool {
        let wanted = match self {
            Self::Any => true,
            Self::One(pid) => child.pid == *pid,
            Self::Group(group) => child.family.group() == *group,
        };
        let clone = child.family.exit_signal.load(Ordering::Relaxed) != SIGCHLD;
        wanted && (options & ALL != 0 || clone == (options & CLONE != 0))
    }
}

/// What happened to a child.
#[derive(Debug)]
struct Found {
    pid: i32,
    uid: u32,
    /// As `wait4` gives it.
    word: u32,
    /// `si_code` and `si_status`.
    code: (i32, u64),
    usage: Usage,
}

fn look(child: &Arc<Process>, which: &Which, options: u32) -> Look<Found> {
    if !which.is(child, options) {
        return Look::Other;
    }
    let keep = options & NOWAIT != 0;
    let found = |word, code, usage| Found {
        pid: child.pid,
        uid: child.credentials.lock().uid[0],
        word,
        code,
        usage,
    };
    if let Some(remains) = child.family.remains() {
        if options & EXITED == 0 {
            return Look::Nothing;
        }
        let status = remains.status;
        return Look::Found(found(status.word(), status.code(), remains.usage), !keep);
    }
    let mut report = child.family.report.lock();
    let (word, code) = match *report {
        Some(Report::Stopped(signal)) if options & STOPPED != 0 => {
            (u32::from(signal) << 8 | 0x7f, (5, u64::from(signal)))
        }
        Some(Report::Continued) if options & CONTINUED != 0 => (0xffff, (6, u64::from(SIGCONT))),
        _ => return Look::Nothing,
    };
    if !keep {
        *report = None;
    }
    drop(report);
    Look::Found(found(word, code, Usage::default()), false)
}

fn wait(which: &Which, options: u32) -> SysResult<Option<Found>> {
    let process = &sched::current().process;
    let attempt = || {
        let (found, any) = family::children(process, |child| look(child, which, options));
        match found {
            Some(found) => {
                let mut used = process.family.children.lock();
                if found.code.0 <= 3 && options & NOWAIT == 0 {
                    *used = used.plus(found.usage);
                }
                Some(Ok(Some(found)))
            }
            None if !any => Some(Err(Errno::ECHILD)),
            None if options & NOHANG != 0 => Some(Ok(None)),
            None => None,
        }
    };
    match process.family.children_changed.wait(u64::MAX, attempt) {
        Err(Errno::EINTR) => Err(Errno::ERESTARTSYS),
        result => result,
    }
}

/// `struct rusage`.
#[must_use]
pub fn rusage(usage: &Usage) -> [u64; 18] {
    let us = usage.ticks / (arch::ticks_per_second() / 1_000_000).max(1);
    let mut out = [0; 18];
    (out[0], out[1]) = (us / 1_000_000, us % 1_000_000);
    out[4] = usage.peak;
    out[6] = usage.faults;
    out
}

fn wait4(a: &Args) -> SysResult {
    let options = a.u32(2);
    if options & !(NOHANG | STOPPED | CONTINUED | NOTHREAD | ALL | CLONE) != 0 {
        return Err(Errno::EINVAL);
    }
    let which = match a.i32(0) {
        -1 => Which::Any,
        0 => Which::Group(sched::current().process.family.group()),
        i32::MIN => return Err(Errno::ESRCH),
        pid if pid < 0 => Which::Group(-pid),
        pid => Which::One(pid),
    };
    let Some(found) = wait(&which, options | EXITED)? else {
        return Ok(0);
    };
    if a.u64(1) != 0 {
        user::write(a.u64(1), &found.word)?;
    }
    if a.u64(3) != 0 {
        user::write(a.u64(3), &rusage(&found.usage))?;
    }
    Ok(found.pid as u64)
}

fn waitid(a: &Args) -> SysResult {
    let mut options = a.u32(3);
    if options & !(NOHANG | STOPPED | EXITED | CONTINUED | NOWAIT | NOTHREAD | ALL | CLONE) != 0
        || options & (STOPPED | EXITED | CONTINUED) == 0
    {
        return Err(Errno::EINVAL);
    }
    let which = match (a.u32(0), a.i32(1)) {
        (0, _) => Which::Any,
        (1, pid) if pid > 0 => Which::One(pid),
        (2, 0) => Which::Group(sched::current().process.family.group()),
        (2, group) if group > 0 => Which::Group(group),
        (3, fd) if fd >= 0 => {
            let (process, nonblocking) = pidfd::of(fd)?;
            if nonblocking {
                options |= NOHANG;
            }
            Which::One(process.pid)
        }
        _ => return Err(Errno::EINVAL),
    };
    let found = wait(&which, options)?;
    if found.is_none() && a.u32(0) == 3 && a.u32(3) & NOHANG == 0 {
        return Err(Errno::EAGAIN);
    }
    let info = found.as_ref().map_or(Info::default(), |f| {
        let mut info = Info::user(SIGCHLD, f.code.0, f.pid, f.uid);
        info.fields[1] = f.code.1;
        info
    });
    if a.u64(2) != 0 {
        user::copy_out(a.u64(2), &info.bytes())?;
    }
    if let Some(found) = found.filter(|_| a.u64(4) != 0) {
        user::write(a.u64(4), &rusage(&found.usage))?;
    }
    Ok(0)
}

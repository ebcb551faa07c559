//! Descriptors that stand for processes.

use alloc::sync::Arc;
use core::any::Any;

use super::{Process, all, find, may_signal};
use crate::errno::{Errno, SysResult};
use crate::fs::fd::{self, O_CLOEXEC, O_NONBLOCK};
use crate::fs::file::{Stat, ready};
use crate::fs::{File, anon, synth};
use crate::sched::WaitQueue;
use crate::signal::pending::{Info, code};
use crate::signal::send_process;
use crate::syscall::{Args, Entry, full, partial};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(434, "pidfd_open", "ix", pidfd_open),
    full(424, "pidfd_send_signal", "fixx", pidfd_send_signal),
    partial(
        438,
        "pidfd_getfd",
        "fix",
        "own processes, or by root: there is no ptrace to ask",
        pidfd_getfd,
    ),
];

/// A process, seen through a descriptor.
struct PidFd {
    process: Arc<Process>,
    inode: u64,
}

impl File for PidFd {
    fn stat(&self) -> SysResult<Stat> {
        Ok(anon::stat(0o600, self.inode))
    }

    fn poll(&self) -> u32 {
        if self.process.family.has_ended() {
            ready::IN | ready::RDNORM
        } else {
            0
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.process.family.ended)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Makes a descriptor for a process.
///
/// # Errors
/// EMFILE.
pub fn open(process: Arc<Process>, flags: u32) -> SysResult {
    let file = Arc::new(PidFd {
        process,
        inode: anon::next_inode(),
    });
    anon::install(file, flags | O_CLOEXEC | 2, b"anon_inode:[pidfd]".to_vec())
}

/// The process of a descriptor, and whether waiting for it must not block.
///
/// # Errors
/// EBADF when it is none.
pub fn of(number: i32) -> SysResult<(Arc<Process>, bool)> {
    let open = fd::get(number)?;
    let file = open.file.as_any().downcast_ref::<PidFd>().ok_or(Errno::EBADF)?;
    Ok((file.process.clone(), open.nonblocking()))
}

fn pidfd_open(a: &Args) -> SysResult {
    if a.u32(1) & !O_NONBLOCK != 0 || a.i32(0) <= 0 {
        return Err(Errno::EINVAL);
    }
    let is_thread = |p: &Arc<Process>| p.thread(a.i32(0)).is_some();
    match find(a.i32(0)) {
        Some(process) => open(process, a.u32(1)),
        None if all().iter().any(is_thread) => Err(Errno::EINVAL),
        None => Err(Errno::ESRCH),
    }
}

/// The process to signal: that of a pidfd, or whose directory under `/proc` is open.
fn target_of(number: i32) -> SysResult<Arc<Process>> {
    let pid = fd::get(number)?
        .file
        .node()
        .and_then(|node| synth::process_of(&**node));
    match pid {
        Some(pid) => find(pid).ok_or(Errno::ESRCH),
        None => of(number).map(|(process, _)| process),
    }
}

fn pidfd_send_signal(a: &Args) -> SysResult {
    if a.u32(3) != 0 || a.u32(1) > 64 {
        return Err(Errno::EINVAL);
    }
    let target = target_of(a.i32(0))?;
    let own = Process::current();
    let info = if a.u64(2) == 0 {
        Info::user(a.u32(1), code::SI_USER, own.pid, own.credentials.lock().uid[0])
    } else {
        let mut bytes = [0; 128];
        user::copy_in(&mut bytes, a.u64(2))?;
        let info = Info::from_bytes(a.u32(1), &bytes);
        if bytes[..4] != a.u32(1).to_le_bytes() {
            return Err(Errno::EINVAL);
        }
        if target.pid != own.pid && (info.code >= 0 || info.code == code::SI_TKILL) {
            return Err(Errno::EPERM);
        }
        info
    };
    if target.family.has_ended() {
        return Err(Errno::ESRCH);
    }
    if !may_signal(&target) {
        return Err(Errno::EPERM);
    }
    if a.u32(1) != 0 {
        send_process(&target, info);
    }
    Ok(0)
}

fn pidfd_getfd(a: &Args) -> SysResult {
    if a.u32(2) != 0 {
        return Err(Errno::EINVAL);
    }
    let (target, _) = of(a.i32(0))?;
    if !may_signal(&target) {
        return Err(Errno::EPERM);
    }
    if target.family.has_ended() {
        return Err(Errno::ESRCH);
    }
    let open = target.files.get(a.i32(1))?;
    Process::current().files.insert(open, true, 0).map(|n| n as u64)
}

//! Another program in a process: `execve`.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::load::{Executable, Program};
use super::{Process, Status, end, exit_group, open};
use crate::arch::{self, Frame};
use crate::errno::{Errno, SysResult};
use crate::fs::flags::AT_FDCWD;
use crate::fs::{fd, locks};
use crate::mem::space::Space;
use crate::sched::{self, VectorArea, futex};
use crate::signal::number::{SIGCHLD, SIGKILL};
use crate::signal::{AltStack, bit};
use crate::syscall::{Args, Entry, full, partial};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    partial(
        59,
        "execve",
        "pxx",
        "set-id bits of files on shared volumes are ignored; descriptors shared by CLONE_FILES stay shared",
        |a| {
            let path = user::read_string(a.u64(0), PATH_MAX)?;
            exec(path, a.u64(1), a.u64(2))
        },
    ),
    full(322, "execveat", "fpxxx", execveat),
];

const PATH_MAX: usize = 4095;
/// Most bytes of arguments and environment together.
const STRINGS_MAX: usize = 2 << 20;
/// Most bytes of one.
const STRING_MAX: usize = 128 << 10;
const EMPTY_PATH: u32 = 0x1000;
const NOFOLLOW: u32 = 0x100;

fn execveat(a: &Args) -> SysResult {
    let (number, flags) = (a.i32(0), a.u32(4));
    if flags & !(EMPTY_PATH | NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut path = user::read_string(a.u64(1), PATH_MAX)?;
    if path.is_empty() {
        if flags & EMPTY_PATH == 0 {
            return Err(Errno::ENOENT);
        }
        fd::get(number)?;
        path = alloc::format!("/proc/self/fd/{number}").into_bytes();
    } else if path[0] != b'/' && number != AT_FDCWD {
        let mut whole = fd::get(number)?.path.lock().clone();
        whole.push(b'/');
        whole.extend_from_slice(&path);
        path = whole;
    }
    exec(path, a.u64(2), a.u64(3))
}

/// The strings of a vector of pointers that ends with a null pointer.
fn strings(vector: u64, left: &mut usize) -> SysResult<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    if vector == 0 {
        return Ok(all);
    }
    for i in 0u64.. {
        let at = vector.checked_add(8 * i).ok_or(Errno::EFAULT)?;
        let pointer: u64 = user::read(at)?;
        if pointer == 0 {
            break;
        }
        let text = user::read_string(pointer, STRING_MAX.min(*left))
            .map_err(|e| if e == Errno::ENAMETOOLONG { Errno::E2BIG } else { e })?;
        *left = left.checked_sub(text.len() + 9).ok_or(Errno::E2BIG)?;
        all.push(text);
    }
    Ok(all)
}

fn exec(path: Vec<u8>, arguments: u64, environment: u64) -> SysResult {
    let mut left = STRINGS_MAX;
    let mut arguments = strings(arguments, &mut left)?;
    let environment = strings(environment, &mut left)?;
    if arguments.is_empty() {
        arguments.push(Vec::new());
    }
    let name = base_name(&path);
    let executable = open(Program {
        path,
        arguments,
        environment,
    })
    .map_err(Errno::from)?;
    become_sole()?;
    let space = match Space::empty() {
        Ok(space) => space,
        Err(error) => {
            sched::current().process.sole.store(0, Ordering::SeqCst);
            return Err(error);
        }
    };
    // From here on there is no way back.
    let start = replace(space, executable);
    let thread = sched::current();
    *thread.name.lock() = name;
    thread.process.sole.store(0, Ordering::SeqCst);
    let Ok(start) = start else {
        exit_group(Status::Signalled(SIGKILL as u8));
    };
    reset_registers();
    *sched::frame() = Frame::start(start.rip, start.rsp);
    sched::frame().regs.orig_rax = u64::MAX;
    thread.signals.full_restore.store(true, Ordering::Relaxed);
    Ok(0)
}

fn base_name(path: &[u8]) -> [u8; 16] {
    let base = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
    let mut name = [0; 16];
    let len = base.len().min(15);
    name[..len].copy_from_slice(&base[..len]);
    name
}

/// Ends all other threads and takes the process's number.
fn become_sole() -> SysResult<()> {
    let thread = sched::current();
    let process = &thread.process;
    // Two threads at once: the second ends, as on Linux.
    if process
        .sole
        .compare_exchange(0, thread.tid(), Ordering::SeqCst, Ordering::Relaxed)
        .is_err()
    {
        return Err(Errno::EAGAIN);
    }
    process.notify_others();
    let alone = || process.threads().len() == 1;
    process
        .thread_ended
        .wait_while(|| !alone() && !process.is_exiting());
    if process.is_exiting() {
        return Err(Errno::EINTR);
    }
    if thread.tid() != process.pid {
        process.remove_thread(thread.tid());
        thread.become_leader();
        process.sole.store(thread.tid(), Ordering::SeqCst);
        process.add_thread(&sched::current_arc());
    }
    // What the first thread said at its end is not the process's word.
    *process.family.status.lock() = None;
    Ok(())
}

/// Leaves the old program's memory and state behind and loads the new one.
fn replace(space: alloc::sync::Arc<Space>, executable: Executable) -> SysResult<super::Start> {
    let thread = sched::current();
    let process = Process::current();
    futex::release_robust(thread);
    let clear = thread.clear_tid.swap(0, Ordering::Relaxed);
    if clear != 0 && !thread.space().is_sole() && user::write(clear, &0u32).is_ok() {
        futex::wake_address(clear, 1);
    }
    thread.robust_list.store(0, Ordering::Relaxed);
    thread.rseq.store(0, Ordering::Relaxed);
    let old = process.replace_space(space.clone());
    sched::enter_space(space);
    old.leave();
    drop(old);
    end::release(&process);
    for descriptor in process.files.take_for_exec() {
        locks::closed(&process, &descriptor.open);
    }
    process.signals.timers.clear_created();
    for action in process.signals.actions.lock().iter_mut() {
        if action.handler != 1 {
            action.handler = 0;
        }
        (action.flags, action.restorer, action.mask) = (0, 0, 0);
    }
    *thread.signals.alt_stack.lock() = AltStack::default();
    *thread.fault_extra.lock() = None;
    let gains = !process.family.no_new_privileges.load(Ordering::Relaxed);
    let set = executable.identity();
    let changed = {
        let mut credentials = process.credentials.lock();
        let before = (credentials.uid[1], credentials.gid[1]);
        credentials.take_identity(if gains { set } else { (None, None) });
        before != (credentials.uid[1], credentials.gid[1])
    };
    process.family.executed.store(true, Ordering::Relaxed);
    process.family.undumpable.store(changed, Ordering::Relaxed);
    // Another program's parent waits for it as for any child.
    process.family.exit_signal.store(SIGCHLD, Ordering::Relaxed);
    let killed = thread.process.signals.pending.bits() & bit(SIGKILL) != 0;
    if killed {
        return Err(Errno::EINTR);
    }
    executable.load()
}

/// Vector state and segment base as at a program's start.
pub(super) fn reset_registers() {
    let mut area = VectorArea::new();
    area.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    area.0[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    arch::restore_vector(&mut area.0);
    arch::set_fs_base(0);
}

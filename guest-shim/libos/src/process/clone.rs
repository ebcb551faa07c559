//! New threads and processes.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicI32, Ordering};

use super::{FIRST_PID, Family, Process, family, limits, pidfd};
use crate::arch;
use crate::errno::{Errno, SysResult};
use crate::fs::FsContext;
use crate::sched::{self, Thread};
use crate::signal::number::{SIGCHLD, SIGKILL};
use crate::signal::{AltStack, bit, timer_calls};
use crate::syscall::{Args, Entry, partial};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    partial(
        56,
        "clone",
        "xxxxx",
        "no name spaces; CLONE_SIGHAND without CLONE_THREAD copies",
        clone,
    ),
    partial(
        435,
        "clone3",
        "xs",
        "no name spaces, cgroups or chosen numbers; CLONE_SIGHAND without CLONE_THREAD copies",
        clone3,
    ),
    crate::syscall::full(57, "fork", "", |_| {
        start(Clone {
            exit_signal: SIGCHLD,
            ..Clone::default()
        })
    }),
    crate::syscall::full(58, "vfork", "", |_| {
        start(Clone {
            flags: CLONE_VM | CLONE_VFORK,
            exit_signal: SIGCHLD,
            ..Clone::default()
        })
    }),
];

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Name spaces, cgroups: not here.
const CLONE_NEW: u64 = 0x7e02_0080 | 0x2_0000_0000;

/// Highest number of a process or thread, as on Linux.
const MAX_ID: i32 = 4_194_304;

static NEXT_ID: AtomicI32 = AtomicI32::new(FIRST_PID + 1);

/// A number for a process or thread that nobody has.
pub fn next_id() -> i32 {
    let next = |id: i32| Some(if id + 1 < MAX_ID { id + 1 } else { 300 });
    loop {
        let id = NEXT_ID
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .unwrap_or(FIRST_PID);
        if !family::is_used(id) {
            return id;
        }
    }
}

/// What is asked of clone.
#[derive(Debug, Default, Clone, Copy)]
struct Clone {
    flags: u64,
    exit_signal: u32,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    pidfd: u64,
    tls: u64,
}

impl Clone {
    fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }

    fn check(&self) -> SysResult<()> {
        let wrong = self.has(CLONE_THREAD) && !self.has(CLONE_SIGHAND)
            || self.has(CLONE_SIGHAND) && !self.has(CLONE_VM)
            || self.has(CLONE_SIGHAND) && self.has(CLONE_CLEAR_SIGHAND)
            || self.exit_signal > 64;
        if wrong {
            Err(Errno::EINVAL)
        } else if self.flags & CLONE_NEW != 0 {
            Err(Errno::EPERM)
        } else {
            Ok(())
        }
    }
}

fn clone(a: &Args) -> SysResult {
    let [flags, stack, parent_tid, child_tid, tls, _] = a.0;
    let what = Clone {
        flags: flags & 0xffff_ff00,
        exit_signal: (flags & 0xff) as u32,
        stack,
        parent_tid,
        child_tid,
        pidfd: parent_tid,
        tls,
    };
    if what.has(CLONE_PIDFD | CLONE_PARENT_SETTID) {
        return Err(Errno::EINVAL);
    }
    start(what)
}

fn clone3(a: &Args) -> SysResult {
    let size = a.usize(1);
    if !(64..=4096).contains(&size) {
        return Err(if size > 4096 { Errno::E2BIG } else { Errno::EINVAL });
    }
    // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, then set_tid, its size, cgroup
    let w: [u64; 8] = user::read(a.u64(0))?;
    let more = user::read_array::<u8>(a.u64(0) + 64, size - 64)?;
    if more.iter().any(|&b| b != 0) {
        return Err(if size > 88 { Errno::E2BIG } else { Errno::EINVAL });
    }
    if (w[5] == 0) != (w[6] == 0) || w[0] & 0xff != 0 || w[4] > 64 {
        return Err(Errno::EINVAL);
    }
    let stack = w[5].checked_add(w[6]).ok_or(Errno::EINVAL)?;
    start(Clone {
        flags: w[0],
        exit_signal: w[4] as u32,
        stack,
        parent_tid: w[3],
        child_tid: w[2],
        pidfd: w[1],
        tls: w[7],
    })
}

fn start(what: Clone) -> SysResult {
    what.check()?;
    let process = Process::current();
    check_limit(&process)?;
    if what.has(CLONE_THREAD) {
        if what.has(CLONE_PIDFD) {
            return Err(Errno::EINVAL);
        }
        let id = next_id();
        let thread = prepare(&what, process.clone(), id)?;
        if what.has(CLONE_PARENT_SETTID) {
            user::write(what.parent_tid, &id)?;
        }
        process.add_thread(&thread);
        thread.start();
        return Ok(id as u64);
    }
    let child = child(&what, &process)?;
    let thread = match prepare(&what, child.clone(), child.pid).and_then(|thread| {
        family::add(&child)?;
        Ok(thread)
    }) {
        Ok(thread) => thread,
        Err(error) => {
            child.space().leave();
            child.files.leave();
            return Err(error);
        }
    };
    drop(process);
    // A bad address is the caller's problem, as on Linux: the child is there.
    if what.has(CLONE_PARENT_SETTID) {
        let _ = user::write(what.parent_tid, &child.pid);
    }
    if what.has(CLONE_PIDFD)
        && let Ok(number) = pidfd::open(child.clone(), 0)
    {
        let _ = user::write(what.pidfd, &(number as i32));
    }
    child.add_thread(&thread);
    thread.start();
    drop(thread);
    if what.has(CLONE_VFORK) {
        wait_for_release(&child);
    }
    Ok(child.pid as u64)
}

/// `RLIMIT_NPROC`: as many processes and threads of one user, but the superuser's.
fn check_limit(process: &Process) -> SysResult<()> {
    let user = process.credentials.lock().uid[0];
    let most = process.limits.soft(limits::NPROC);
    if user == 0 || most == limits::INFINITY {
        return Ok(());
    }
    let theirs = |p: &&Arc<Process>| p.credentials.lock().uid[0] == user;
    // One that has ended counts until its parent knows.
    let of = |p: &Arc<Process>| p.threads().len().max(1) as u64;
    if family::all().iter().filter(theirs).map(of).sum::<u64>() < most {
        Ok(())
    } else {
        Err(Errno::EAGAIN)
    }
}

/// A process like the running one.
fn child(what: &Clone, parent: &Arc<Process>) -> SysResult<Arc<Process>> {
    let space = if what.has(CLONE_VM) {
        parent.space().share()
    } else {
        let space = parent.space();
        space.copy(space.is_sole() && parent.threads().len() == 1)?
    };
    let files = if what.has(CLONE_FILES) {
        parent.files.share()
    } else {
        Arc::new(parent.files.duplicate())
    };
    let fs = if what.has(CLONE_FS) {
        parent.fs.clone()
    } else {
        Arc::new(FsContext::duplicate(&parent.fs))
    };
    let credentials = parent.credentials.lock().clone();
    let relation = Family::child(parent, what.has(CLONE_PARENT), what.exit_signal);
    let child = Process::new(next_id(), files, fs, credentials, space, relation);
    let mut actions = *parent.signals.actions.lock();
    if what.has(CLONE_CLEAR_SIGHAND) {
        for action in actions.iter_mut().filter(|a| a.handler > 1) {
            action.handler = 0;
        }
    }
    *child.signals.actions.lock() = actions;
    *child.limits.0.lock() = *parent.limits.0.lock();
    *child.image.lock() = parent.image.lock().clone();
    let child = Arc::new(child);
    if child.limits.soft(limits::CPU) != limits::INFINITY {
        timer_calls::limit_cpu(&child);
    }
    Ok(child)
}

/// The thread that `clone` makes, in `process`.
fn prepare(what: &Clone, process: Arc<Process>, id: i32) -> SysResult<Arc<Thread>> {
    let parent = sched::current();
    let mut frame = *sched::frame();
    frame.regs.rax = 0;
    frame.regs.orig_rax = u64::MAX;
    if what.stack != 0 {
        frame.regs.rsp = what.stack;
    }
    let tls = if what.has(CLONE_SETTLS) {
        what.tls
    } else {
        arch::fs_base()
    };
    let thread = Thread::new(process, id, frame, tls)?;
    let mask = parent.signals.mask.load(Ordering::Relaxed);
    thread.signals.mask.store(mask, Ordering::Relaxed);
    *thread.name.lock() = *parent.name.lock();
    thread.inherit_policy(parent);
    let own_stack = !what.has(CLONE_VM) || what.has(CLONE_VFORK);
    *thread.signals.alt_stack.lock() = if own_stack {
        *parent.signals.alt_stack.lock()
    } else {
        AltStack::default()
    };
    if what.has(CLONE_CHILD_SETTID) {
        thread.set_tid.store(what.child_tid, Ordering::Relaxed);
        if what.has(CLONE_VM) {
            // Its creator may look at once.
            let _ = user::write(what.child_tid, &id);
        }
    }
    if what.has(CLONE_CHILD_CLEARTID) {
        thread.clear_tid.store(what.child_tid, Ordering::Relaxed);
    }
    thread.inherit_vector();
    Ok(thread)
}

/// `vfork`: the parent sleeps until the child has memory of its own. Only its death ends that earlier.
fn wait_for_release(child: &Process) {
    let thread = sched::current();
    let killed = || {
        let pending = thread.signals.pending.bits() | thread.process.signals.pending.bits();
        thread.process.ends(thread) || pending & bit(SIGKILL) != 0
    };
    child
        .family
        .released
        .wait_while(|| !child.family.is_released.load(Ordering::SeqCst) && !killed());
}

//! How threads and processes end.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use cloak_abi::ring::{Stat, exit_status};
use spin::Lazy;

use super::family::{self, Remains, Usage};
use super::{FIRST_PID, Process};
use crate::arch;
use crate::fs::{hostfd, open_cache};
use crate::ipc::semaphores::SEMAPHORES;
use crate::mem::frames;
use crate::mem::space::Space;
use crate::sched::{self, futex};
use crate::{host, signal, syscall, user};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// With this code.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
}

impl Status {
    /// As `wait4` gives it.
    #[must_use]
    pub fn word(self) -> u32 {
        match self {
            Self::Exited(code) => u32::from(code) << 8,
            Self::Signalled(signal) => u32::from(signal),
        }
    }

    /// `si_code` and `si_status`.
    #[must_use]
    pub fn code(self) -> (i32, u64) {
        match self {
            Self::Exited(code) => (1, u64::from(code)),
            Self::Signalled(signal) => (2, u64::from(signal)),
        }
    }
}

/// What threads that have given up their memory run in.
pub(super) static NOWHERE: Lazy<Arc<Space>> = Lazy::new(Space::first);

/// Page faults of processes that ended, for `--stats`.
static FAULTS: AtomicU64 = AtomicU64::new(0);

/// Ends the running thread; the process with it when it was the last.
pub fn exit_thread(code: u8) -> ! {
    let thread = sched::current();
    let process = &thread.process;
    let last = process.threads().len() == 1;
    if !(last && thread.space().is_sole()) {
        // Nobody else could see either.
        futex::release_robust(thread);
        let clear = thread.clear_tid.load(Ordering::Relaxed);
        if clear != 0 && user::write(clear, &0u32).is_ok() {
            futex::wake_address(clear, 1);
        }
    } else if thread.robust_list.load(Ordering::Relaxed) != 0 {
        // Robust futexes may lie in shared memory.
        futex::release_robust(thread);
    }
    if thread.tid() == process.pid {
        // What counts when the others end without a word of their own.
        process.family.status.lock().get_or_insert(Status::Exited(code));
    }
    if process.remove_thread(thread.tid()) == 0 {
        let name = *thread.name.lock();
        finish(process, Status::Exited(code), name);
    } else {
        process.thread_ended.wake_all(0);
    }
    sched::end_thread()
}

/// Ends the running process.
pub fn exit_group(status: Status) -> ! {
    {
        let process = &sched::current().process;
        if !process.exiting.swap(true, Ordering::SeqCst) {
            *process.family.status.lock() = Some(status);
            process.notify_others();
        }
    }
    exit_thread(0)
}

/// The last thread has gone: gives up everything that the process has.
fn finish(process: &Arc<Process>, otherwise: Status, name: [u8; 16]) {
    process.exiting.store(true, Ordering::SeqCst);
    let status = process.family.status.lock().unwrap_or(otherwise);
    if process.pid == FIRST_PID {
        end_vm(status);
    }
    process.signals.timers.clear();
    let usage = Usage {
        ticks: process.cpu_time(),
        faults: process.space().lock().faults,
        peak: process.most_resident(),
    }
    .plus(*process.family.children.lock());
    FAULTS.fetch_add(usage.faults, Ordering::Relaxed);
    sched::abandon_space(NOWHERE.clone());
    process.replace_space(NOWHERE.clone()).leave();
    release(process);
    process.files.leave();
    crate::fs::locks::process_ended(process.pid);
    let touched = SEMAPHORES.lock().process_ended(process.pid);
    touched.iter().for_each(|queue| queue.wake_all(0));
    if process.family.session() == process.pid {
        crate::fs::pty::session_ended(process.pid);
    }
    super::outside::ended(process.pid, status);
    family::ended(process, Remains { status, usage, name });
}

/// The memory that the process got from its parent for a while is the parent's alone again (`vfork`).
pub fn release(process: &Process) {
    if !process.family.is_released.swap(true, Ordering::SeqCst) {
        process.family.released.wake_all(0);
    }
}

/// The first process has ended: so does the VM.
fn end_vm(status: Status) -> ! {
    // Said by the volume that fails; the program's own status stays what it is.
    let _ = crate::fs::sync_all();
    crate::net::host::finish();
    leave_statistics();
    let code = match status {
        Status::Exited(code) => exit_status::exited(code),
        Status::Signalled(signal) => exit_status::signalled(signal),
    };
    arch::exit(code, "")
}

fn leave_statistics() {
    let blocks = || (0..arch::boot().vcpus as usize).map(arch::vcpu_block);
    let load = |counter: &core::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let sum = |f: fn(&cloak_abi::vcpu::VcpuBlock) -> &core::sync::atomic::AtomicU64| {
        blocks().map(|b| load(f(b))).sum()
    };
    let values: [(Stat, u64); 16] = [
        (Stat::Calls, load(&syscall::CALLS)),
        (Stat::Trapped, load(&syscall::TRAPPED)),
        (Stat::Forwarded, load(&host::REQUESTS)),
        (Stat::Exceptions, sum(|b| &b.exceptions)),
        (Stat::Kcalls, sum(|b| &b.kcalls)),
        (Stat::Interrupts, sum(|b| &b.interrupts)),
        (Stat::Dropped, sum(|b| &b.dropped)),
        (Stat::Patched, load(&crate::patch::PATCHED)),
        (Stat::Switches, load(&sched::SWITCHES)),
        (Stat::Halts, load(&sched::HALTS)),
        (
            Stat::Faults,
            Process::current().space().lock().faults + load(&FAULTS),
        ),
        (Stat::Doorbells, load(&host::DOORBELLS)),
        (Stat::Signals, load(&signal::DELIVERED)),
        (Stat::Frames, frames::usage().0),
        (
            Stat::HostFiles,
            hostfd::count().saturating_sub(open_cache::idle()) as u64,
        ),
        (
            Stat::Threads,
            family::all().iter().map(|p| p.threads().len() as u64).sum(),
        ),
    ];
    for (stat, value) in values {
        host::header().stats[stat as usize].store(value, Ordering::Relaxed);
    }
}

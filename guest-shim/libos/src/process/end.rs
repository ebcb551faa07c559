//! How threads and the program end.

use core::sync::atomic::Ordering;

use cloak_abi::ring::{Stat, exit_status};

use super::Process;
use crate::arch;
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

/// Ends the running thread; the process with it when it was the last.
pub fn exit_thread(code: u8) -> ! {
    let thread = sched::current();
    let process = thread.process.clone();
    futex::release_robust(thread);
    let clear = thread.clear_tid.load(Ordering::Relaxed);
    if clear != 0 && user::write(clear, &0u32).is_ok() {
        futex::wake_address(clear, 1);
    }
    let left = process.remove_thread(thread.tid);
    if left == 0 {
        exit_group(Status::Exited(code));
    }
    drop(process);
    sched::end_thread()
}

/// Ends the process. It is the VM's only one, so the VM ends with it.
pub fn exit_group(status: Status) -> ! {
    let process = Process::current();
    if process.exiting.swap(true, Ordering::SeqCst) {
        sched::end_thread(); // another thread is doing it
    }
    crate::fs::shared_pages::sync_all();
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
    let values: [(Stat, u64); 12] = [
        (Stat::Calls, load(&syscall::CALLS)),
        (Stat::Trapped, load(&syscall::TRAPPED)),
        (Stat::Forwarded, load(&host::REQUESTS)),
        (Stat::Exceptions, sum(|b| &b.exceptions)),
        (Stat::Kcalls, sum(|b| &b.kcalls)),
        (Stat::Interrupts, sum(|b| &b.interrupts)),
        (Stat::Patched, load(&crate::patch::PATCHED)),
        (Stat::Switches, load(&sched::SWITCHES)),
        (Stat::Halts, load(&sched::HALTS)),
        (Stat::Faults, Process::current().space.lock().faults),
        (Stat::Doorbells, load(&host::DOORBELLS)),
        (Stat::Signals, load(&signal::DELIVERED)),
    ];
    for (stat, value) in values {
        host::header().stats[stat as usize].store(value, Ordering::Relaxed);
    }
}

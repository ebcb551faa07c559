//! One page per vCPU that the kernel and the libos of the running context share.
//!
//! The kernel writes the upcall frame and enters the libos; the libos copies the frame before anything
//! can raise another exception. The libos is trusted with its own context only, so what the kernel reads
//! here is checked like any argument.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::kcall::PageOp;

/// Most page operations in one kernel call.
pub const MAX_OPS: usize = 64;

/// What an upcall reports. Registers not listed are still in the CPU, as the program left them.
#[derive(Debug)]
#[repr(C)]
pub struct VcpuBlock {
    /// Interrupted instruction.
    pub rip: AtomicU64,
    /// Its stack pointer.
    pub rsp: AtomicU64,
    /// Its flags.
    pub rflags: AtomicU64,
    /// Exception or interrupt vector.
    pub vector: AtomicU64,
    /// Error code that the CPU pushed, else 0.
    pub error: AtomicU64,
    /// CR2 at a page fault, else what it was.
    pub cr2: AtomicU64,
    /// Return address of a `SYSCALL` that entered CPL 0.
    pub syscall_rip: AtomicU64,
    /// Flags at that `SYSCALL`.
    pub syscall_rflags: AtomicU64,
    /// Set by the kernel when an interrupt came while libos code ran; the libos clears it.
    pub pending: AtomicU32,
    /// [`VcpuState`], written by the libos. The kernel needs no shoot-down to a halted vCPU.
    pub state: AtomicU32,
    /// Set by the kernel on a halted vCPU whose translations are stale; on leaving
    /// [`VcpuState::Halted`] the libos makes a [`crate::kcall::Kcall::Flush`].
    pub stale: AtomicU32,
    /// Index of this vCPU.
    pub index: AtomicU32,
    /// Interrupts taken, for `--stats`.
    pub interrupts: AtomicU64,
    /// Exceptions taken (page faults and others), for `--stats`. Counted by the libos.
    pub exceptions: AtomicU64,
    /// Kernel calls made, for `--stats`. Counted by the libos.
    pub kcalls: AtomicU64,
    /// RAX of the upcall.
    pub rax: AtomicU64,
    /// RCX of the upcall.
    pub rcx: AtomicU64,
    /// Code segment of the upcall.
    pub cs: AtomicU64,
    /// Arguments of [`crate::kcall::Kcall::PageOps`].
    pub ops: [PageOp; MAX_OPS],
    /// Interrupts and exceptions dropped, for `--stats`. Counted by the kernel.
    pub dropped: AtomicU64,
}

/// What a vCPU is doing, as far as its waker must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum VcpuState {
    /// Not yet started; needs an explicit start.
    Offline = 0,
    /// In the program or the libos; will look at its queues by itself at the next entry.
    Running = 1,
    /// Has nothing to run and polls its queues.
    Polling = 2,
    /// Has left to the monitor and waits to be woken.
    Halted = 3,
}

impl VcpuState {
    /// Marks a vCPU that is offline as one that polls, for who then starts it: true for one of those that find it offline at the
    /// same time.
    pub fn leave_offline(state: &AtomicU32) -> bool {
        let [offline, polling] = [Self::Offline, Self::Polling].map(|state| state as u32);
        state
            .compare_exchange(offline, polling, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }
}

/// Values written to [`crate::layout::monitor_port`]: low byte the call, the rest its argument. A vCPU is named by its
/// context's number of it; no other context's vCPUs can be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MonitorCall {
    /// Wait until woken or until the deadline in the vCPU's queue page.
    Halt = 0,
    /// Inject [`crate::layout::KICK_VECTOR`] into vCPU `argument`.
    Kick = 1,
    /// Start vCPU `argument`.
    Start = 2,
    /// End the context; the status is in the shared header.
    Exit = 3,
    /// The kernel found something that must not be; the reason is `argument`.
    Panic = 4,
    /// Remember the mark in slot `argument` of the [`crate::anchor::AnchorPage`], durably, before going on.
    Anchor = 5,
    /// The process of slot `argument` of the [`crate::exec::ExecPage`] has ended.
    Ended = 6,
}

impl MonitorCall {
    /// The call and its argument, from the value written to the port.
    #[must_use]
    pub const fn decode(value: u32) -> Option<(Self, u32)> {
        let call = match value & 0xff {
            0 => Self::Halt,
            1 => Self::Kick,
            2 => Self::Start,
            3 => Self::Exit,
            4 => Self::Panic,
            5 => Self::Anchor,
            6 => Self::Ended,
            _ => return None,
        };
        Some((call, value >> 8))
    }

    /// The value to write to the port.
    #[must_use]
    pub const fn encode(self, argument: u32) -> u32 {
        self as u32 | argument << 8
    }
}

crate::tripwire!(
    core::mem::offset_of!(VcpuBlock, syscall_rip) == 48,
    "VcpuBlock.syscall_rip (used by assembly)"
);
crate::tripwire!(
    core::mem::offset_of!(VcpuBlock, pending) == 64,
    "VcpuBlock.pending (used by assembly)"
);
crate::tripwire!(
    core::mem::offset_of!(VcpuBlock, interrupts) == 80,
    "VcpuBlock.interrupts (used by assembly)"
);
crate::tripwire!(core::mem::offset_of!(VcpuBlock, ops) == 128, "VcpuBlock.ops");
crate::tripwire!(size_of::<VcpuBlock>() <= 4096, "VcpuBlock fits a page");

#[cfg(test)]
mod tests {
    extern crate std;

    use std::thread;
    use std::vec::Vec;

    use super::*;

    /// Two threads go over many of them: who is behind has less to do, catches up, and meets the other at each one.
    #[test]
    fn one_thread_takes_a_vcpu_from_offline() {
        let states: Vec<AtomicU32> = (0..1 << 20).map(|_| AtomicU32::new(0)).collect();
        let take = || {
            states
                .iter()
                .filter(|state| VcpuState::leave_offline(state))
                .count()
        };
        for _ in 0..20 {
            states
                .iter()
                .for_each(|state| state.store(VcpuState::Offline as u32, Ordering::SeqCst));
            let took: usize = thread::scope(|scope| {
                let threads = [scope.spawn(take), scope.spawn(take)];
                threads
                    .map(|thread| thread.join().expect("it counts"))
                    .iter()
                    .sum()
            });
            assert_eq!(took, states.len());
        }
    }
}

//! Where the entry code meets Rust: system calls, faults, interrupts.

use core::sync::atomic::Ordering;

use cloak_abi::layout::KICK_VECTOR;

use super::entry::{Frame, OwnTrap, fixup, must_not_park};
use super::{panic_exit, vcpu_block, vcpu_index};
use crate::mem::space::{Access, Fault};
use crate::{host, patch, sched, signal};

/// A system call. Gives whether all registers must be restored from the frame.
pub extern "C" fn syscall(frame: &mut Frame, trapped: u32) -> bool {
    crate::syscall::enter(frame, trapped != 0);
    let whole = leave(frame);
    whole | patch::depart(frame, trapped == 0 && !whole)
}

/// What is due before the program goes on: pending interrupts, completions, signals. Gives whether the
/// frame needs a full restore.
fn leave(frame: &mut Frame) -> bool {
    let index = vcpu_index();
    let block = vcpu_block(index);
    if block.pending.load(Ordering::Relaxed) != 0 {
        block.pending.store(0, Ordering::Relaxed);
        sched::tick();
    } else {
        host::poll(index);
        sched::spread();
    }
    signal::deliver(frame)
}

/// An exception or a kick that came while the program ran.
pub extern "C" fn upcall_user(frame: &mut Frame) {
    let block = vcpu_block(vcpu_index());
    let load = |word: &core::sync::atomic::AtomicU64| word.load(Ordering::Relaxed);
    frame.regs.rip = load(&block.rip);
    frame.regs.rflags = load(&block.rflags);
    frame.regs.orig_rax = u64::MAX; // not in a system call
    block.exceptions.fetch_add(1, Ordering::Relaxed);
    let (vector, error, address) = (load(&block.vector), load(&block.error), load(&block.cr2));
    if vector == u64::from(KICK_VECTOR) {
        sched::tick();
    } else {
        exception(frame, vector, error, address);
    }
    leave(frame);
    patch::depart(frame, false);
}

fn exception(frame: &mut Frame, vector: u64, error: u64, address: u64) {
    if vector == 14 {
        match crate::mem::space::current().fault(address, access(error)) {
            Ok(()) => return,
            Err(fault) => return raise_fault(frame, address, error, fault),
        }
    }
    signal::raise_exception(frame, vector, error);
}

fn raise_fault(frame: &mut Frame, address: u64, error: u64, fault: Fault) {
    signal::raise_page_fault(frame, address, error, fault);
}

fn access(error: u64) -> Access {
    if error & 16 != 0 {
        Access::Execute
    } else if error & 2 != 0 {
        Access::Write
    } else {
        Access::Read
    }
}

/// An exception in the libos itself: only the copy routines may meet one.
pub extern "C" fn upcall_own(trap: &mut OwnTrap) {
    let block = vcpu_block(vcpu_index());
    let load = |word: &core::sync::atomic::AtomicU64| word.load(Ordering::Relaxed);
    trap.rip = load(&block.rip);
    trap.rflags = load(&block.rflags);
    block.exceptions.fetch_add(1, Ordering::Relaxed);
    let (vector, error, address) = (load(&block.vector), load(&block.error), load(&block.cr2));
    let Some(end) = fixup(trap.rip) else {
        panic_exit(&alloc::format!(
            "exception {vector} (error {error:#x}) at {:#x}, address {address:#x}, in the libos",
            trap.rip
        ));
    };
    let served = vector == 14
        && !must_not_park(trap.rip)
        && crate::mem::space::current().fault(address, access(error)).is_ok();
    if !served {
        trap.rip = end;
    }
}

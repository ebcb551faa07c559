//! Sending signals, and what happens before a thread goes on to its program.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use cloak_abi::hostop::HostOp;
use cloak_abi::kcall::Kcall;
use cloak_abi::ring::TYPED;

use super::frame;
pub use super::frame::Extra as FaultExtra;
use super::frame::Extra;
use super::pending::{Info, Pending, TimerSignal, code};
use super::{Default_, IGNORED, UNBLOCKABLE, bit, default_action, number};
use crate::arch::{self, Frame};
use crate::errno::Errno;
use crate::fs::jobs;
use crate::host;
use crate::mem::space::Fault;
use crate::process::{self, FIRST_PID, Process};
use crate::sched::{self, Thread};

const SA_RESTART: u64 = 0x1000_0000;
/// Number of `restart_syscall`.
const RESTART_SYSCALL: u64 = 219;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;

/// Signals delivered, for `--stats`.
pub static DELIVERED: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

/// Sends to a process: some thread of it that does not block the signal takes it.
pub fn send_process(process: &Process, info: Info) -> bool {
    to_process(process, info.signal, |pending| pending.add(info))
}

fn to_process(process: &Process, signal: u32, add: impl FnOnce(&Pending) -> bool) -> bool {
    prepare(process, signal);
    let blocked_by_all = process
        .threads()
        .iter()
        .all(|t| t.signals.mask.load(Ordering::Relaxed) & bit(signal) != 0);
    if process.signals.ignores(signal) && !blocked_by_all {
        return true;
    }
    let added = add(&process.signals.pending);
    crate::fs::signals::arrived();
    let threads = process.threads();
    let takes = |t: &&Arc<Thread>| t.signals.wants(&process.signals);
    // One that sleeps hears it first; else one that runs is interrupted.
    let chosen = threads.iter().filter(takes).min_by_key(|t| t.is_on_cpu());
    if let Some(thread) = chosen {
        notify(thread);
    }
    added
}

/// Sends to one thread.
pub fn send_thread(thread: &Thread, info: Info) -> bool {
    to_thread(thread, info.signal, |pending| pending.add(info))
}

fn to_thread(thread: &Thread, signal: u32, add: impl FnOnce(&Pending) -> bool) -> bool {
    let process = &thread.process;
    prepare(process, signal);
    let blocked = thread.signals.mask.load(Ordering::Relaxed) & bit(signal) != 0;
    if process.signals.ignores(signal) && !blocked {
        return true;
    }
    let added = add(&thread.signals.pending);
    crate::fs::signals::arrived();
    notify(thread);
    added
}

/// Sends the signal of a timer that expired `count` times: to one thread, or to the process.
pub fn send_timer(
    process: &Process,
    thread: Option<&Thread>,
    info: Info,
    timer: &Arc<TimerSignal>,
    count: u32,
) {
    let add = |pending: &Pending| {
        pending.add_timer(info, timer, count);
        true
    };
    match thread {
        Some(thread) => to_thread(thread, info.signal, add),
        None => to_process(process, info.signal, add),
    };
}

/// SIGCONT and the stop signals cancel each other.
fn prepare(process: &Process, signal: u32) {
    let stops = bit(number::SIGSTOP) | bit(number::SIGTSTP) | bit(number::SIGTTIN) | bit(number::SIGTTOU);
    match default_action(signal) {
        Default_::Continue => {
            process.signals.pending.discard(stops);
            process
                .threads()
                .iter()
                .for_each(|t| t.signals.pending.discard(stops));
            process.go_on();
        }
        Default_::Stop => process.signals.pending.discard(bit(number::SIGCONT)),
        _ => {}
    }
}

/// Makes a thread look at its signals.
pub fn notify(thread: &Thread) {
    thread.unpark();
    if thread.is_on_cpu() && !core::ptr::eq(thread, sched::current()) {
        arch::kcall(Kcall::Kick, thread.last_vcpu() as u64);
    }
}

fn from_kernel(signal: u32) -> Info {
    Info {
        signal,
        code: code::SI_KERNEL,
        ..Info::default()
    }
}

/// Sends to every process of a group, as the terminal does.
pub fn send_group(group: i32, signal: u32) {
    let mut all = process::all();
    all.retain(|p| p.family.group() == group && !p.family.has_ended());
    for process in all {
        send_process(&process, from_kernel(signal));
    }
}

/// Signals that the monitor received for the program.
pub fn take_outside() {
    process::outside::attend();
    let mut bits = host::header().signals.swap(0, Ordering::AcqRel);
    let Some(init) = process::initial() else { return };
    while bits != 0 {
        let at = bits.trailing_zeros();
        bits &= bits - 1;
        let signal = at % TYPED + 1;
        match signal {
            // What is typed is for all of the group that has the terminal.
            _ if at >= TYPED => {
                let group = jobs::given().unwrap_or(FIRST_PID);
                send_group(group, signal);
                // Who leads the session is told of the terminal's end, too.
                if signal == number::SIGHUP && group != FIRST_PID {
                    send_process(&init, from_kernel(signal));
                }
            }
            // As a shell goes on with a job: all that a typed signal stopped.
            number::SIGCONT => send_group(FIRST_PID, signal),
            _ => {
                send_process(&init, from_kernel(signal));
            }
        }
    }
    if host::header().service_gone.load(Ordering::Relaxed) != 0 {
        arch::panic_exit("the OS service has ended: no file or network is left (was it killed?)");
    }
}

/// An exception of the program that is not a page fault.
pub fn raise_exception(frame: &mut Frame, vector: u64, error: u64) {
    let rip = frame.regs.rip;
    let info = match vector {
        0 => Info::fault(number::SIGFPE, 1, rip),
        1 | 3 => Info {
            signal: number::SIGTRAP,
            code: code::SI_KERNEL,
            ..Info::default()
        },
        6 => Info::fault(number::SIGILL, 2, rip),
        16 | 19 => Info::fault(number::SIGFPE, 3, rip),
        17 => Info {
            signal: number::SIGBUS,
            code: 1,
            ..Info::default()
        },
        _ => Info {
            signal: number::SIGSEGV,
            code: code::SI_KERNEL,
            ..Info::default()
        },
    };
    force(
        info,
        Extra {
            cr2: 0,
            error,
            trap: vector,
            mask: 0,
        },
    );
}

/// A page fault of the program that can't be served.
pub fn raise_page_fault(_frame: &mut Frame, address: u64, error: u64, fault: Fault) {
    let info = match fault {
        Fault::NotMapped => Info::fault(number::SIGSEGV, 1, address),
        Fault::Access => Info::fault(number::SIGSEGV, 2, address),
        Fault::Bus => Info::fault(number::SIGBUS, 2, address),
    };
    force(
        info,
        Extra {
            cr2: address,
            error: error & 0x17 | 4,
            trap: 14,
            mask: 0,
        },
    );
}

/// A signal that can't wait: blocked or ignored, it ends the process.
pub fn force(info: Info, extra: Extra) {
    let thread = sched::current();
    let blocked = thread.signals.mask.load(Ordering::Relaxed) & bit(info.signal) != 0;
    let mut actions = thread.process.signals.actions.lock();
    let action = &mut actions[info.signal as usize - 1];
    if blocked || action.handler == IGNORED {
        action.handler = 0;
    }
    drop(actions);
    if blocked {
        thread
            .signals
            .mask
            .fetch_and(!bit(info.signal), Ordering::Relaxed);
    }
    *thread.fault_extra.lock() = Some((info.signal, extra));
    thread.signals.pending.add(info);
}

/// Whatever is due before the thread goes on. Gives whether all registers must be restored.
pub fn deliver(frame: &mut Frame) -> bool {
    let thread = sched::current();
    loop {
        if thread.process.ends(thread) {
            process::exit_thread(0);
        }
        if thread.process.is_stopped() {
            process::stop_wait();
        }
        if !thread.signals.wants(&thread.process.signals) {
            break;
        }
        let wanted = !thread.signals.mask.load(Ordering::Relaxed);
        let info = thread
            .signals
            .pending
            .take(wanted)
            .or_else(|| thread.process.signals.pending.take(wanted));
        let Some(info) = info else { break };
        handle(thread, frame, &info);
    }
    // A call that was interrupted for nothing starts again: its arguments are still there.
    restart(frame, None);
    if let Some(mask) = thread.signals.saved_mask.lock().take() {
        thread.signals.mask.store(mask, Ordering::Relaxed);
        if thread.signals.wants(&thread.process.signals) {
            return deliver(frame);
        }
    }
    thread.signals.full_restore.swap(false, Ordering::Relaxed)
}

fn handle(thread: &Thread, frame: &mut Frame, info: &Info) {
    let action = thread.process.signals.action(info.signal);
    match action.handler {
        0 => default(frame, info.signal),
        1 => {}
        _ => run_handler(thread, frame, info),
    }
}

fn default(frame: &Frame, signal: u32) {
    match default_action(signal) {
        Default_::Ignore | Default_::Continue => {}
        Default_::Stop if !sched::current().process.stops_outside() => {
            sched::current().process.stop(signal as u8);
        }
        Default_::Stop => {
            // The whole VM stops, as far as the host's shell can see; a failure leaves it running.
            let _ = host::call(HostOp::Stop, [u64::from(number::SIGSTOP), 0, 0, 0, 0, 0]);
        }
        Default_::Terminate => {
            crate::trace::death(frame, signal);
            process::exit_group(process::Status::Signalled(signal as u8));
        }
    }
}

/// Puts the handler's frame on the stack; a stack that is not there ends the process.
fn run_handler(thread: &Thread, frame: &mut Frame, info: &Info) {
    DELIVERED.fetch_add(1, Ordering::Relaxed);
    crate::trace::signal(info);
    let action = thread.process.signals.action(info.signal);
    if action.flags & SA_RESETHAND != 0 {
        thread.process.signals.actions.lock()[info.signal as usize - 1].handler = 0;
    }
    restart(frame, Some(action.flags & SA_RESTART != 0));
    frame.regs.rip = crate::patch::logical(frame.regs.rip);
    let mask = thread.signals.mask.load(Ordering::Relaxed);
    let fault = thread
        .fault_extra
        .lock()
        .take_if(|(signal, _)| *signal == info.signal);
    let mut extra = fault.map_or(
        Extra {
            cr2: 0,
            error: 0,
            trap: 0,
            mask: 0,
        },
        |(_, e)| e,
    );
    extra.mask = thread.signals.saved_mask.lock().take().unwrap_or(mask);
    let mut alt = *thread.signals.alt_stack.lock();
    if frame::push(frame, info, &action, &mut alt, &extra).is_err() {
        crate::trace::death(frame, number::SIGSEGV);
        process::exit_group(process::Status::Signalled(number::SIGSEGV as u8));
    }
    *thread.signals.alt_stack.lock() = alt;
    let own = if action.flags & SA_NODEFER == 0 {
        bit(info.signal)
    } else {
        0
    };
    thread
        .signals
        .mask
        .store((mask | action.mask | own) & !UNBLOCKABLE, Ordering::Relaxed);
    thread.signals.full_restore.store(true, Ordering::Relaxed);
}

/// An interrupted call starts again or ends with EINTR. `handler`: a handler runs, with or without SA_RESTART.
fn restart(frame: &mut Frame, handler: Option<bool>) {
    if frame.regs.orig_rax == u64::MAX {
        return;
    }
    let Some(error) = restart_error(frame.regs.rax) else {
        return;
    };
    let again = match handler {
        None => true,
        Some(restarts) => error == Errno::ERESTARTNOINTR || error == Errno::ERESTARTSYS && restarts,
    };
    if again {
        // The instruction before the logical return address is the SYSCALL, or the jump that replaced it.
        frame.regs.rip = crate::patch::logical(frame.regs.rip) - 2;
        frame.regs.rax = match error {
            Errno::ERESTART_RESTARTBLOCK => RESTART_SYSCALL,
            _ => frame.regs.orig_rax,
        };
        frame.regs.orig_rax = u64::MAX;
        sched::current()
            .signals
            .full_restore
            .store(true, Ordering::Relaxed);
    } else {
        frame.regs.rax = Errno::EINTR.to_rax();
    }
}

fn restart_error(rax: u64) -> Option<Errno> {
    [
        Errno::ERESTARTSYS,
        Errno::ERESTARTNOINTR,
        Errno::ERESTARTNOHAND,
        Errno::ERESTART_RESTARTBLOCK,
    ]
    .into_iter()
    .find(|e| e.to_rax() == rax)
}

/// `rt_sigreturn`.
pub fn sigreturn(frame: &mut Frame) {
    let thread = sched::current();
    let mut alt = *thread.signals.alt_stack.lock();
    match frame::pop(frame, &mut alt) {
        Ok(mask) => {
            thread.signals.mask.store(mask & !UNBLOCKABLE, Ordering::Relaxed);
            *thread.signals.alt_stack.lock() = alt;
            thread.signals.full_restore.store(true, Ordering::Relaxed);
        }
        Err(_) => {
            let info = Info {
                signal: number::SIGSEGV,
                code: code::SI_KERNEL,
                ..Info::default()
            };
            force(
                info,
                Extra {
                    cr2: 0,
                    error: 0,
                    trap: 0,
                    mask: 0,
                },
            );
        }
    }
}

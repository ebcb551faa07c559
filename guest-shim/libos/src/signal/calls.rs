//! Signal system calls.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::number::SIGCONT;
use super::pending::{Info, code};
use super::{Action, AltStack, UNBLOCKABLE, bit, send_process, send_thread};
use crate::errno::{Errno, SysResult};
use crate::process::{self, Process};
use crate::sched::clock::{self, Timespec};
use crate::sched::{self, park};
use crate::syscall::{Args, Entry, full};
use crate::user;

/// System calls served here.
pub const SYSCALLS: &[Entry] = &[
    full(13, "rt_sigaction", "ixxs", sigaction),
    full(14, "rt_sigprocmask", "ixxs", sigprocmask),
    full(15, "rt_sigreturn", "", sigreturn),
    full(127, "rt_sigpending", "xs", sigpending),
    full(128, "rt_sigtimedwait", "xxxs", sigtimedwait),
    full(130, "rt_sigsuspend", "xs", sigsuspend),
    full(131, "sigaltstack", "xx", sigaltstack),
    full(34, "pause", "", pause),
    full(219, "restart_syscall", "", restart_syscall),
    full(62, "kill", "ii", kill),
    full(200, "tkill", "ii", tkill),
    full(234, "tgkill", "iii", tgkill),
    full(129, "rt_sigqueueinfo", "iix", sigqueueinfo),
    full(297, "rt_tgsigqueueinfo", "iiix", tgsigqueueinfo),
];

fn signal_number(n: u32) -> SysResult<u32> {
    if (1..=64).contains(&n) {
        Ok(n)
    } else {
        Err(Errno::EINVAL)
    }
}

fn set_size(a: &Args, n: usize) -> SysResult<()> {
    if a.usize(n) == 8 {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

fn sigaction(a: &Args) -> SysResult {
    set_size(a, 3)?;
    let signal = signal_number(a.u32(0))?;
    if a.u64(1) != 0 && bit(signal) & UNBLOCKABLE != 0 {
        return Err(Errno::EINVAL);
    }
    let new = match a.u64(1) {
        0 => None,
        address => {
            let [handler, flags, restorer, mask]: [u64; 4] = user::read(address)?;
            Some(Action {
                handler,
                flags,
                restorer,
                mask: mask & !UNBLOCKABLE,
            })
        }
    };
    let process = Process::current();
    let old = {
        let mut actions = process.signals.actions.lock();
        let slot = &mut actions[signal as usize - 1];
        new.map_or(*slot, |new| core::mem::replace(slot, new))
    };
    if new.is_some() && process.signals.ignores(signal) {
        process.signals.pending.discard(bit(signal));
        process
            .threads()
            .iter()
            .for_each(|t| t.signals.pending.discard(bit(signal)));
    }
    if a.u64(2) != 0 {
        user::write(a.u64(2), &[old.handler, old.flags, old.restorer, old.mask])?;
    }
    Ok(0)
}

fn sigprocmask(a: &Args) -> SysResult {
    set_size(a, 3)?;
    let signals = &sched::current().signals;
    let old = signals.mask.load(Ordering::Relaxed);
    if a.u64(1) != 0 {
        let set: u64 = user::read(a.u64(1))?;
        let new = match a.u32(0) {
            0 => old | set,
            1 => old & !set,
            2 => set,
            _ => return Err(Errno::EINVAL),
        };
        signals.mask.store(new & !UNBLOCKABLE, Ordering::Relaxed);
    }
    if a.u64(2) != 0 {
        user::write(a.u64(2), &old)?;
    }
    Ok(0)
}

fn sigreturn(_: &Args) -> SysResult {
    super::sigreturn(sched::frame());
    Ok(sched::frame().regs.rax)
}

fn sigpending(a: &Args) -> SysResult {
    let thread = sched::current();
    let set = (thread.signals.pending.bits() | thread.process.signals.pending.bits())
        & thread.signals.mask.load(Ordering::Relaxed);
    user::write(a.u64(0), &set).map(|()| 0)
}

fn sigtimedwait(a: &Args) -> SysResult {
    set_size(a, 3)?;
    let set: u64 = user::read::<u64>(a.u64(0))? & !UNBLOCKABLE;
    let deadline = match a.u64(2) {
        0 => u64::MAX,
        address => clock::deadline_in(user::read::<Timespec>(address)?.to_ns()?),
    };
    let thread = sched::current();
    let take = || {
        thread
            .signals
            .pending
            .take(set)
            .or_else(|| thread.process.signals.pending.take(set))
    };
    thread.signals.awaited.store(set, Ordering::SeqCst);
    let result = loop {
        if let Some(info) = take() {
            break Ok(info);
        }
        if thread.has_signal() {
            break Err(Errno::EINTR);
        }
        if deadline != u64::MAX && crate::arch::ticks() >= deadline {
            break Err(Errno::EAGAIN);
        }
        park(deadline);
    };
    thread.signals.awaited.store(0, Ordering::SeqCst);
    let info = result?;
    if a.u64(1) != 0 {
        user::copy_out(a.u64(1), &info.bytes())?;
    }
    Ok(u64::from(info.signal))
}

fn sigsuspend(a: &Args) -> SysResult {
    set_size(a, 1)?;
    let mask: u64 = user::read(a.u64(0))?;
    with_mask(mask);
    wait_for_signal()
}

/// Blocks `mask` for the time of one call; the old mask comes back after a handler ran.
pub fn with_mask(mask: u64) {
    let signals = &sched::current().signals;
    let old = signals.mask.swap(mask & !UNBLOCKABLE, Ordering::SeqCst);
    signals.saved_mask.lock().get_or_insert(old);
}

/// The mask that [`with_mask`] replaced comes back now: nothing interrupted the call.
pub fn restore_mask() {
    let signals = &sched::current().signals;
    if let Some(mask) = signals.saved_mask.lock().take() {
        signals.mask.store(mask, Ordering::SeqCst);
    }
}

fn wait_for_signal() -> SysResult {
    while !sched::current().has_signal() {
        park(u64::MAX);
    }
    Err(Errno::ERESTARTNOHAND)
}

fn pause(_: &Args) -> SysResult {
    wait_for_signal()
}

fn restart_syscall(_: &Args) -> SysResult {
    let rest = sched::current().signals.rest.lock().take();
    rest.map_or(Err(Errno::EINTR), super::restart::Rest::go_on)
}

fn sigaltstack(a: &Args) -> SysResult {
    let thread = sched::current();
    let rsp = sched::frame().regs.rsp;
    let old = *thread.signals.alt_stack.lock();
    let inside = old.size != 0 && rsp > old.base && rsp - old.base <= old.size;
    if a.u64(0) != 0 {
        let [base, flags, size]: [u64; 3] = user::read(a.u64(0))?;
        let flags = flags as u32;
        if inside {
            return Err(Errno::EPERM);
        }
        let new = match flags & !(1 << 31) {
            2 => AltStack::default(),
            0 | 1 if size < 2048 => return Err(Errno::ENOMEM),
            0 | 1 => AltStack {
                base,
                size,
                flags: flags & 1 << 31,
            },
            _ => return Err(Errno::EINVAL),
        };
        *thread.signals.alt_stack.lock() = new;
    }
    if a.u64(1) != 0 {
        let flags = u64::from(old.flags | u32::from(inside));
        user::write(a.u64(1), &[old.base, flags, old.size])?;
    }
    Ok(0)
}

fn sender(signal: u32, code: i32) -> Info {
    let process = Process::current();
    Info::user(signal, code, process.pid, process.credentials.lock().uid[0])
}

fn kill(a: &Args) -> SysResult {
    let signal = a.u32(1);
    if signal > 64 {
        return Err(Errno::EINVAL);
    }
    let info = sender(signal.max(1), code::SI_USER);
    let own = Process::current();
    let targets: Vec<Arc<Process>> = match a.i32(0) {
        pid if pid > 0 => {
            let target = process::find(pid).ok_or(Errno::ESRCH)?;
            return send(&target, signal, info);
        }
        0 => group(own.family.group()),
        -1 => process::all()
            .into_iter()
            .filter(|p| p.pid != process::FIRST_PID && p.pid != own.pid)
            .collect(),
        pid => group(pid.checked_neg().ok_or(Errno::ESRCH)?),
    };
    let mut result = Err(Errno::ESRCH);
    // The caller last: it may end.
    let (me, others): (Vec<_>, Vec<_>) = targets.into_iter().partition(|p| p.pid == own.pid);
    for target in others.iter().chain(&me) {
        result = match (result, send(target, signal, info)) {
            (Ok(n), _) | (_, Ok(n)) => Ok(n),
            (_, error) => error,
        };
    }
    result
}

fn group(number: i32) -> Vec<Arc<Process>> {
    let mut all = process::all();
    all.retain(|p| p.family.group() == number);
    all
}

fn send(target: &Process, signal: u32, info: Info) -> SysResult {
    let continues = signal == SIGCONT && target.family.session() == Process::current().family.session();
    if !continues && !process::may_signal(target) {
        return Err(Errno::EPERM);
    }
    if signal != 0 && !target.family.has_ended() && !send_process(target, info) {
        return Err(Errno::EAGAIN);
    }
    Ok(0)
}

fn to_thread(tgid: Option<i32>, tid: i32, signal: u32, info: Info) -> SysResult {
    if tid <= 0 || signal > 64 {
        return Err(Errno::EINVAL);
    }
    let thread = match tgid {
        Some(pid) => process::find(pid).and_then(|p| p.thread(tid)),
        None => process::all().iter().find_map(|p| p.thread(tid)),
    };
    let thread = thread.ok_or(Errno::ESRCH)?;
    if !process::may_signal(&thread.process) {
        return Err(Errno::EPERM);
    }
    if signal != 0 && !send_thread(&thread, info) {
        return Err(Errno::EAGAIN);
    }
    Ok(0)
}

fn tkill(a: &Args) -> SysResult {
    let info = sender(a.u32(1).clamp(1, 64), code::SI_TKILL);
    to_thread(None, a.i32(0), a.u32(1), info)
}

fn tgkill(a: &Args) -> SysResult {
    if a.i32(0) <= 0 {
        return Err(Errno::EINVAL);
    }
    let info = sender(a.u32(2).clamp(1, 64), code::SI_TKILL);
    to_thread(Some(a.i32(0)), a.i32(1), a.u32(2), info)
}

fn queued(signal: u32, address: u64) -> SysResult<Info> {
    let mut bytes = [0; 128];
    user::copy_in(&mut bytes, address)?;
    Ok(Info::from_bytes(signal_number(signal)?, &bytes))
}

fn sigqueueinfo(a: &Args) -> SysResult {
    let info = queued(a.u32(1), a.u64(2))?;
    let target = process::find(a.i32(0)).ok_or(Errno::ESRCH)?;
    if target.pid != Process::current().pid && (info.code >= 0 || info.code == code::SI_TKILL) {
        return Err(Errno::EPERM);
    }
    send(&target, info.signal, info)
}

fn tgsigqueueinfo(a: &Args) -> SysResult {
    let info = queued(a.u32(2), a.u64(3))?;
    to_thread(Some(a.i32(0)), a.i32(1), a.u32(2), info)
}

//! Threads for real: one libos stack each, switched at CPL 3.
//!
//! ```text
//!            enqueue                pick
//!  parked ───────────▶ queued ───────────▶ running ──┐
//!     ▲                   ▲                   │      │ tick, others wait
//!     └───── park ────────┼───────────────────┘      │
//!                         └──────────────────────────┘
//! ```
//! A thread that has left the processor in mind only (its registers are still being saved) has `on_cpu` set
//! and is not picked until then. One queue serves all vCPUs. A vCPU without work polls for a while (one of
//! them at a time: polling vCPUs would take host cores from each other), then halts.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use cloak_abi::kcall::Kcall;
use cloak_abi::vcpu::{MonitorCall, VcpuState};

use super::queue::{enqueue, others_wait, pick};
use super::thread::{EMPTY, ENDED, PARKED, Thread};
use super::timer;
use super::vcpus::{VCPUS, in_ticks, is_spare, load_space, patience, set_state, vcpu, vcpus, wake_a_vcpu};
use crate::arch::{self, Frame};
use crate::host;
use crate::mem::space::Space;
use crate::process::Process;

/// How long a vCPU without work polls before it halts at most, in microseconds: what a halt and a wake-up cost.
pub(super) const POLL_US: u64 = 100;
/// The same at least. Where polling brings nothing, because whoever has to answer waits for this very core, it is a waste.
const POLL_LEAST_US: u64 = 5;
/// One in so many polls lasts as long as it may: whether that is worth it may have changed.
const PROBE: u64 = 16;

static POLLER: AtomicBool = AtomicBool::new(false);
/// Thread switches, for `--stats`.
pub static SWITCHES: AtomicU64 = AtomicU64::new(0);
/// Halts, for `--stats`.
pub static HALTS: AtomicU64 = AtomicU64::new(0);

/// First code of a new thread, on its own stack.
pub(super) extern "C" fn first(thread: u64) -> ! {
    finish_switch();
    // SAFETY: the switch made it current, which keeps it alive.
    let thread = unsafe { &*(thread as *const Thread) };
    if thread.process.is_exiting() {
        crate::process::exit_thread(0);
    }
    let word = thread.set_tid.load(Ordering::Relaxed);
    if word != 0 {
        // As on Linux, an address that can't be written is not reported.
        let _ = crate::user::write(word, &thread.tid());
    }
    // SAFETY: written by the creator before the thread was queued, and the thread's own since.
    let frame = unsafe { &mut *thread.start_frame.get() };
    crate::patch::depart(frame, false);
    arch::resume(frame)
}

/// The thread that runs this. Valid until it ends, so not to be kept.
#[must_use]
pub fn current() -> &'static Thread {
    // SAFETY: the current thread is kept alive by its vCPU.
    unsafe { &*(arch::tcb().thread.get() as *const Thread) }
}

/// To be called first by a thread that starts in the libos.
pub fn begin() {
    finish_switch();
}

/// The running thread goes to its program, with these registers.
pub fn enter_program(frame: Frame) -> ! {
    let slot = current().start_frame.get();
    // SAFETY: the running thread's own; `resume` copies it to the stack's top, which is elsewhere.
    unsafe {
        *slot = frame;
        arch::resume(&*slot)
    }
}

/// The running thread goes on in another address space.
pub fn enter_space(space: Arc<Space>) {
    load_space(space.tables);
    // SAFETY: the running thread's own; nobody else reads it, and the caller keeps no reference to the old one.
    let old = unsafe { core::mem::replace(&mut *current().space.get(), space) };
    drop(old);
}

/// The running thread gives its address space up for `other`, which is loaded when that must be: it does not
/// touch the program's memory any more.
pub fn abandon_space(other: Arc<Space>) {
    // SAFETY: as in `enter_space`.
    let old = unsafe { core::mem::replace(&mut *current().space.get(), other) };
    drop(old);
}

/// Remembers the frame of the system call that the running thread is in.
pub fn set_frame(frame: &mut Frame) {
    current().frame.set(frame);
}

/// The frame of the system call that the running thread is in.
#[allow(clippy::mut_from_ref)]
pub fn frame() -> &'static mut Frame {
    // SAFETY: set at the entry of the call that runs now; the entry code does not touch it meanwhile, and
    // callers do not keep it.
    unsafe { &mut *current().frame.get() }
}

/// The thread that runs this, to keep.
#[must_use]
pub fn current_arc() -> Arc<Thread> {
    // A running thread has owners.
    current()
        .me
        .upgrade()
        .unwrap_or_else(|| arch::panic_exit("a running thread without an owner"))
}

/// Sleeps until unparked or until `deadline` (ticks; `u64::MAX`: never). May return early.
pub fn park(deadline: u64) {
    let thread = current();
    if thread
        .state
        .compare_exchange(EMPTY, PARKED, Ordering::SeqCst, Ordering::Relaxed)
        .is_err()
    {
        thread.state.store(EMPTY, Ordering::SeqCst);
        return;
    }
    let timer = (deadline != u64::MAX).then(|| timer::add(deadline, current_arc()));
    switch_to_next();
    if let Some(timer) = timer {
        timer::remove(timer);
    }
}

/// Lets others run, if any wait.
pub fn yield_now() {
    if others_wait() {
        enqueue(current_arc());
        switch_to_next();
    }
}

/// A time slice has ended, or something happened outside.
pub fn tick() {
    attend();
    yield_now();
}

/// Looks at everything that comes from outside the running thread.
fn attend() {
    host::poll_all(vcpus());
    timer::expire(arch::ticks());
    crate::signal::take_outside();
}

/// Ends the running thread.
pub fn end_thread() -> ! {
    current().exiting.store(true, Ordering::SeqCst);
    current().state.store(ENDED, Ordering::SeqCst);
    switch_to_next();
    arch::panic_exit("an ended thread ran again")
}

/// Runs the next thread, or this vCPU's idle thread.
fn switch_to_next() {
    let next = pick().unwrap_or_else(|| {
        // SAFETY: own vCPU's element; set at its start.
        unsafe { (*vcpu().idle.get()).clone() }.unwrap_or_else(|| arch::panic_exit("no idle thread"))
    });
    switch_to(next);
}

fn switch_to(next: Arc<Thread>) {
    let me = core::ptr::from_ref(current());
    if core::ptr::eq(me, Arc::as_ptr(&next)) {
        return;
    }
    next.on_cpu.store(true, Ordering::Relaxed);
    if next.tid() != 0 {
        // An idle thread runs in whatever address space there is.
        load_space(next.space().tables);
    }
    SWITCHES.fetch_add(1, Ordering::Relaxed);
    let index = arch::vcpu_index();
    let now = arch::ticks();
    next.started.set(now);
    let target = next.context.get();
    // SAFETY: own vCPU's element; `next` is ours by `on_cpu`; `me` stays alive in `previous` until
    // `finish_switch` has run on the other side.
    unsafe {
        (*me)
            .cpu_ticks
            .fetch_add(now.saturating_sub((*me).started.get()), Ordering::Relaxed);
        arch::set_tcb(&raw const next.tcb, index);
        *VCPUS[index].previous.get() = (*VCPUS[index].current.get()).replace(next);
        arch::switch((*me).context.get(), target);
    }
    finish_switch();
}

/// Runs in the new thread: the old one's registers are saved now.
fn finish_switch() {
    // SAFETY: own vCPU's element.
    let previous = unsafe { (*vcpu().previous.get()).take() };
    if let Some(previous) = previous {
        previous.on_cpu.store(false, Ordering::Release);
    }
}

/// Turns the code that runs on vCPU `index` into its idle thread.
pub fn start_vcpu(index: usize, process: Arc<Process>) {
    let idle = Thread::build(process, 0, None, Frame::start(0, 0), first);
    idle.on_cpu.store(true, Ordering::Relaxed);
    // SAFETY: own vCPU's element, first use; the idle thread lives for ever.
    unsafe {
        arch::set_tcb(&raw const idle.tcb, index);
        *VCPUS[index].idle.get() = Some(idle.clone());
        *VCPUS[index].current.get() = Some(idle);
    }
    set_state(index, VcpuState::Running);
}

/// The idle thread's life.
pub fn idle() -> ! {
    let index = arch::vcpu_index();
    loop {
        attend();
        if let Some(next) = pick() {
            run(index, next);
        } else if is_spare(index) || !poll_for_work(index) {
            halt(index);
        }
    }
}

fn run(index: usize, next: Arc<Thread>) {
    set_state(index, VcpuState::Running);
    if others_wait() {
        wake_a_vcpu();
    }
    switch_to(next);
}

/// Polls for some time; gives whether there may be work.
fn poll_for_work(index: usize) -> bool {
    if POLLER.swap(true, Ordering::SeqCst) {
        return false;
    }
    set_state(index, VcpuState::Polling);
    let is_probe = vcpu().polls.fetch_add(1, Ordering::Relaxed).is_multiple_of(PROBE);
    let time = if is_probe { POLL_US } else { patience() };
    let end = arch::ticks() + in_ticks(time);
    let mut found = false;
    while !found && arch::ticks() < end {
        host::poll_all(vcpus());
        if timer::next_deadline() <= arch::ticks() {
            timer::expire(arch::ticks());
        }
        found = others_wait() || called();
        core::hint::spin_loop();
    }
    POLLER.store(false, Ordering::SeqCst);
    let next = if found { time * 2 } else { patience() / 2 };
    vcpu()
        .patience
        .store(next.clamp(POLL_LEAST_US, POLL_US), Ordering::Relaxed);
    found
}

/// Whether the monitor has something for this context: signals, or a further process.
fn called() -> bool {
    host::header().signals.load(Ordering::SeqCst) != 0 || crate::process::outside::is_asked()
}

/// Halts until woken. Whoever makes work looks at the state after making it; we look for work after
/// setting the state.
fn halt(index: usize) {
    let deadline = timer::next_deadline();
    host::queue(index).deadline.store(deadline, Ordering::SeqCst);
    VCPUS[index].rung.store(false, Ordering::SeqCst);
    set_state(index, VcpuState::Halted);
    fence(Ordering::SeqCst);
    let work = others_wait() || host::has_news(vcpus()) || called() || timer::next_deadline() < deadline;
    let is_spare = is_spare(index);
    if work && is_spare {
        wake_a_vcpu();
    }
    if !work || is_spare {
        HALTS.fetch_add(1, Ordering::Relaxed);
        arch::monitor(MonitorCall::Halt, 0);
    }
    set_state(index, VcpuState::Running);
    let block = arch::vcpu_block(index);
    if block.stale.swap(0, Ordering::SeqCst) != 0 {
        arch::kcall(Kcall::Flush, 0);
    }
    block.pending.store(0, Ordering::Relaxed);
}

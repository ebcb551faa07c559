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

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

use cloak_abi::kcall::Kcall;
use cloak_abi::layout::MAX_VCPUS;
use cloak_abi::vcpu::{MonitorCall, VcpuState};
use spin::Mutex;

use super::timer;
use crate::arch::{self, Context, Frame, Stack, Tcb, XSAVE_MAX};
use crate::errno::{Errno, SysResult};
use crate::host;
use crate::mem::space::Space;
use crate::mem::tables::Tables;
use crate::process::Process;
use crate::signal::ThreadSignals;

/// Slack of timers that Linux begins with, nanoseconds.
pub const DEFAULT_SLACK: u64 = 50_000;

const EMPTY: u32 = 0;
const PARKED: u32 = 1;
const NOTIFIED: u32 = 2;
/// Never runs again, whatever wakes it.
const ENDED: u32 = 3;

/// How long a vCPU without work polls before it halts at most, in microseconds: what a halt and a wake-up cost.
const POLL_US: u64 = 100;
/// The same at least. Where polling brings nothing, because whoever has to answer waits for this very core, it is a waste.
const POLL_LEAST_US: u64 = 5;
/// One in so many polls lasts as long as it may: whether that is worth it may have changed.
const PROBE: u64 = 16;
/// How long a woken thread may wait for its waker's vCPU before another vCPU is woken for it.
const SPREAD_US: u64 = 20;
/// How long a thread is left to another vCPU that has its address space loaded.
const LEAVE_US: u64 = 10;
/// The same for a halted one, which is woken.
const LEAVE_HALTED_US: u64 = 50;
/// How long threads may wait behind others whose address space is loaded.
const FAIR_US: u64 = 1000;
/// Changes of address space on one vCPU in a millisecond after which another one is woken: processes that hand over to
/// each other do so without an entry to the kernel where each has a vCPU.
const CHANGES: u64 = 8;

/// 64-byte aligned vector state.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct VectorArea(pub [u8; XSAVE_MAX]);

impl VectorArea {
    /// All zero.
    #[must_use]
    pub fn new() -> Box<Self> {
        Box::new(Self([0; XSAVE_MAX]))
    }
}

/// A thread of a program (or a vCPU's idle thread).
#[derive(Debug)]
#[repr(C)]
pub struct Thread {
    tcb: Tcb,
    me: Weak<Self>,
    state: AtomicU32,
    on_cpu: AtomicBool,
    context: UnsafeCell<Context>,
    _stack: Option<Stack>,
    vector: UnsafeCell<Box<VectorArea>>,
    /// Registers with which it starts, or goes on after `execve`.
    pub start_frame: UnsafeCell<Frame>,
    tid: AtomicI32,
    /// The process it belongs to.
    pub process: Arc<Process>,
    space: UnsafeCell<Arc<Space>>,
    /// Signals of this thread.
    pub signals: ThreadSignals,
    /// `CLONE_CHILD_SETTID`: where it writes its number before it starts, or 0.
    pub set_tid: AtomicU64,
    /// `set_tid_address`: cleared and woken at its end.
    pub clear_tid: AtomicU64,
    /// `set_robust_list`.
    pub robust_list: AtomicU64,
    /// Registered restartable-sequence area, or 0.
    pub rseq: AtomicU64,
    /// Its name (`PR_SET_NAME`).
    pub name: Mutex<[u8; 16]>,
    /// CPU time used, ticks, without the current turn.
    pub cpu_ticks: AtomicU64,
    started: Cell<u64>,
    /// When it was queued last, ticks.
    queued: AtomicU64,
    /// Frame of the entry that it is in, for signal delivery on behalf of others.
    pub exiting: AtomicBool,
    /// Nice value.
    pub nice: AtomicI64,
    /// Scheduling policy (`SCHED_*`), told back but not obeyed.
    pub policy: AtomicU32,
    /// `PR_SET_TIMERSLACK`, nanoseconds: told back but not obeyed.
    pub timer_slack: AtomicU64,
    /// vCPUs it may run on, by `sched_setaffinity`: told back but not obeyed.
    pub affinity: AtomicU64,
    /// Signal of the last exception, and what its frame must say besides.
    pub fault_extra: Mutex<Option<(u32, crate::signal::FaultExtra)>>,
    frame: Cell<*mut Frame>,
}

// SAFETY: `context`, `space`, `start_frame`, `started` and the control block's cells are touched only by the vCPU that
// runs the thread or, before it first runs, by its creator; `on_cpu` orders one owner after the other.
unsafe impl Send for Thread {}
// SAFETY: as above.
unsafe impl Sync for Thread {}

/// What one vCPU knows of itself. Only that vCPU touches it.
struct Vcpu {
    current: UnsafeCell<Option<Arc<Thread>>>,
    previous: UnsafeCell<Option<Arc<Thread>>>,
    idle: UnsafeCell<Option<Arc<Thread>>>,
    /// How long it polls, microseconds: more when that brought something the last time, less when not.
    patience: AtomicU64,
    /// How often it has polled.
    polls: AtomicU64,
    /// The millisecond of its last change of address space, and how many there were in it.
    changes: Cell<(u64, u64)>,
    /// Tag of the address space that it has loaded ([`Tables::tag`]). Others read it.
    space: AtomicU64,
    /// When another vCPU last woke it for the sake of that, ticks.
    rung: AtomicU64,
}

// SAFETY: each element is used by its own vCPU only.
unsafe impl Sync for Vcpu {}

static VCPUS: [Vcpu; MAX_VCPUS] = [const {
    Vcpu {
        current: UnsafeCell::new(None),
        previous: UnsafeCell::new(None),
        idle: UnsafeCell::new(None),
        patience: AtomicU64::new(POLL_US),
        polls: AtomicU64::new(0),
        changes: Cell::new((0, 0)),
        space: AtomicU64::new(0),
        rung: AtomicU64::new(0),
    }
}; MAX_VCPUS];

static QUEUE: Mutex<VecDeque<Arc<Thread>>> = Mutex::new(VecDeque::new());
static WAITING: AtomicUsize = AtomicUsize::new(0);
static QUEUED_AT: AtomicU64 = AtomicU64::new(0);
static POLLER: AtomicBool = AtomicBool::new(false);
/// Thread switches, for `--stats`.
pub static SWITCHES: AtomicU64 = AtomicU64::new(0);
/// Halts, for `--stats`.
pub static HALTS: AtomicU64 = AtomicU64::new(0);

impl Thread {
    /// A thread that will start with `frame` and this FS base.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(process: Arc<Process>, tid: i32, frame: Frame, fs_base: u64) -> SysResult<Arc<Self>> {
        let stack = Stack::new().ok_or(Errno::ENOMEM)?;
        let thread = Self::build(process, tid, Some(stack), frame, first);
        // SAFETY: not yet known to anybody else.
        unsafe { (*thread.context.get()).set_fs_base(fs_base) };
        Ok(thread)
    }

    /// A thread that starts in the libos.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn with_entry(
        process: Arc<Process>,
        tid: i32,
        entry: extern "C" fn(u64) -> !,
    ) -> SysResult<Arc<Self>> {
        let stack = Stack::new().ok_or(Errno::ENOMEM)?;
        Ok(Self::build(process, tid, Some(stack), Frame::start(0, 0), entry))
    }

    fn build(
        process: Arc<Process>,
        tid: i32,
        stack: Option<Stack>,
        frame: Frame,
        entry: extern "C" fn(u64) -> !,
    ) -> Arc<Self> {
        let top = stack.as_ref().map_or(0, Stack::top);
        let vector = VectorArea::new();
        let area = vector.0.as_ptr() as u64;
        Arc::new_cyclic(|me| Self {
            tcb: Tcb {
                thread: Cell::new(me.as_ptr() as u64),
                stack_top: Cell::new(top),
                user_rsp: Cell::new(0),
                vcpu_block: Cell::new(0),
                vcpu_index: Cell::new(0),
            },
            me: me.clone(),
            state: AtomicU32::new(EMPTY),
            on_cpu: AtomicBool::new(false),
            context: UnsafeCell::new(match top {
                0 => Context::idle(area),
                _ => arch::new_context(top, entry, me.as_ptr() as u64, area),
            }),
            _stack: stack,
            vector: UnsafeCell::new(vector),
            start_frame: UnsafeCell::new(frame),
            tid: AtomicI32::new(tid),
            space: UnsafeCell::new(process.space()),
            process,
            signals: ThreadSignals::default(),
            set_tid: AtomicU64::new(0),
            clear_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            rseq: AtomicU64::new(0),
            name: Mutex::new([0; 16]),
            cpu_ticks: AtomicU64::new(0),
            started: Cell::new(0),
            queued: AtomicU64::new(0),
            exiting: AtomicBool::new(false),
            nice: AtomicI64::new(0),
            policy: AtomicU32::new(0),
            timer_slack: AtomicU64::new(DEFAULT_SLACK),
            affinity: AtomicU64::new(u64::MAX),
            fault_extra: Mutex::new(None),
            frame: Cell::new(core::ptr::null_mut()),
        })
    }

    /// Lets it go on, now or at its next park.
    pub fn unpark(&self) {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let new = match state {
                ENDED => return,
                PARKED => EMPTY,
                _ => NOTIFIED,
            };
            match self
                .state
                .compare_exchange_weak(state, new, Ordering::SeqCst, Ordering::Relaxed)
            {
                Ok(PARKED) => break,
                Ok(_) => return,
                Err(found) => state = found,
            }
        }
        if let Some(me) = self.me.upgrade() {
            enqueue(me);
        }
    }

    /// Lets a new thread run for the first time.
    pub fn start(self: &Arc<Self>) {
        enqueue(self.clone());
    }

    /// Its number.
    pub fn tid(&self) -> i32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// It takes the number of its process, whose first thread has ended (`execve`).
    pub fn become_leader(&self) {
        self.tid.store(self.process.pid, Ordering::Relaxed);
    }

    /// Its address space. To be asked by the thread itself, or before it runs.
    pub fn space(&self) -> &Space {
        // SAFETY: changed by the running thread only, in `enter_space`, whose callers keep no reference.
        unsafe { &*self.space.get() }
    }

    /// A new thread starts with its creator's vector state.
    pub fn inherit_vector(&self) {
        // SAFETY: the thread is not yet queued, so nobody else reaches its area.
        arch::save_vector(unsafe { &mut (*self.vector.get()).0 });
    }

    /// A new thread has its creator's place among others.
    pub fn inherit_policy(&self, creator: &Self) {
        self.nice
            .store(creator.nice.load(Ordering::Relaxed), Ordering::Relaxed);
        self.policy
            .store(creator.policy.load(Ordering::Relaxed), Ordering::Relaxed);
        self.timer_slack
            .store(creator.timer_slack.load(Ordering::Relaxed), Ordering::Relaxed);
        self.affinity
            .store(creator.affinity.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether a signal waits to be delivered to it.
    pub fn has_signal(&self) -> bool {
        self.signals.wants(&self.process.signals) || self.process.ends(self)
    }

    /// Whether it runs on a vCPU now.
    pub fn is_on_cpu(&self) -> bool {
        self.on_cpu.load(Ordering::SeqCst)
    }

    /// The vCPU on which it runs or last ran.
    pub fn last_vcpu(&self) -> usize {
        self.tcb.vcpu_index.get() as usize
    }

    /// CPU time used, ticks.
    pub fn cpu_time(&self) -> u64 {
        let running = if self.is_on_cpu() {
            arch::ticks().saturating_sub(self.started.get())
        } else {
            0
        };
        self.cpu_ticks.load(Ordering::Relaxed) + running
    }
}

/// First code of a new thread, on its own stack.
extern "C" fn first(thread: u64) -> ! {
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

/// This vCPU loads an address space, if it has not.
fn load_space(tables: Tables) {
    let loaded = &vcpu().space;
    if loaded.load(Ordering::Relaxed) != tables.tag() {
        // First the tag: who sees the old one may take the old tables away, and they must not be loaded then.
        loaded.store(tables.tag(), Ordering::SeqCst);
        tables.load();
        note_change();
    }
}

/// This vCPU has changed its address space.
fn note_change() {
    let changes = &vcpu().changes;
    let now = arch::ticks() / (arch::ticks_per_second() / 1000);
    let (when, before) = changes.get();
    let count = if when == now { before + 1 } else { 1 };
    changes.set((now, count));
    if count == CHANGES {
        wake_a_vcpu();
    }
}

/// What is better for a thread that waits than to run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Elsewhere {
    /// Nothing.
    No,
    /// A vCPU that has its address space loaded takes it.
    Polls,
    /// The same where that one is halted: it can be woken in less time than a change of address space takes.
    Halted(usize),
}

/// For a thread that has waited for so many ticks.
fn elsewhere(thread: &Thread, me: usize, waited: u64) -> Elsewhere {
    let tag = thread.space().tables.tag();
    let has = |i: usize| VCPUS[i].space.load(Ordering::Relaxed) == tag;
    if has(me) || waited > in_ticks(LEAVE_HALTED_US) {
        return Elsewhere::No;
    }
    let find = |state: VcpuState| (0..vcpus()).find(|&i| i != me && has(i) && host_state(i) == state as u32);
    if waited <= in_ticks(LEAVE_US) && find(VcpuState::Polling).is_some() {
        return Elsewhere::Polls;
    }
    find(VcpuState::Halted).map_or(Elsewhere::No, Elsewhere::Halted)
}

/// Wakes a halted vCPU, unless that was done just now.
fn ring_once(halted: usize) {
    let now = arch::ticks();
    let rung = &VCPUS[halted].rung;
    if now.saturating_sub(rung.load(Ordering::Relaxed)) > in_ticks(LEAVE_HALTED_US) {
        rung.store(now, Ordering::Relaxed);
        arch::doorbell(1 + halted as u32);
    }
}

fn in_ticks(us: u64) -> u64 {
    us * arch::ticks_per_second() / 1_000_000
}

/// Whether the thread that waits longest can run here only after a change of address space, which costs more than a
/// short wait.
#[must_use]
pub fn next_is_far() -> bool {
    let loaded = vcpu().space.load(Ordering::Relaxed);
    let queue = QUEUE.lock();
    queue
        .front()
        .is_some_and(|next| next.space().tables.tag() != loaded)
}

/// The kernel has freed an address space: if this vCPU had it, it has the first one now.
pub fn space_freed(tables: Tables) {
    let loaded = &vcpu().space;
    if loaded.load(Ordering::Relaxed) == tables.tag() {
        loaded.store(0, Ordering::SeqCst);
    }
}

/// Whether a vCPU has these tables loaded, as they are or as they were when something else was mapped there.
pub fn has_root(tables: Tables) -> bool {
    (0..vcpus()).any(|i| tables.is_tagged(VCPUS[i].space.load(Ordering::SeqCst)))
}

/// Whether this vCPU has an address space loaded.
pub fn is_loaded_here(tables: Tables) -> bool {
    vcpu().space.load(Ordering::Relaxed) == tables.tag()
}

/// Whether another vCPU than this one has an address space loaded.
pub fn is_loaded_elsewhere(tables: Tables) -> bool {
    let me = arch::vcpu_index();
    (0..vcpus()).any(|i| i != me && VCPUS[i].space.load(Ordering::SeqCst) == tables.tag())
}

/// Whether vCPU `index` may be in a program in this address space. `false` stays so until it has passed
/// [`crate::patch::depart`].
pub fn may_run_program(index: usize, space: Tables) -> bool {
    let state = host_state(index);
    let is_idle = [VcpuState::Halted, VcpuState::Polling, VcpuState::Offline]
        .iter()
        .any(|idle| *idle as u32 == state);
    !is_idle && VCPUS[index].space.load(Ordering::SeqCst) == space.tag()
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

/// Whether other threads wait for a vCPU.
#[must_use]
pub fn others_wait() -> bool {
    WAITING.load(Ordering::Relaxed) != 0
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

fn enqueue(thread: Arc<Thread>) {
    thread.queued.store(arch::ticks(), Ordering::Relaxed);
    let mut queue = QUEUE.lock();
    queue.push_back(thread);
    if publish(&queue) == 1 {
        QUEUED_AT.store(arch::ticks(), Ordering::Relaxed);
    }
}

/// Tells how many wait, while the queue is locked: a late word would stand for ever. Gives the number.
fn publish(queue: &VecDeque<Arc<Thread>>) -> usize {
    let len = queue.len();
    WAITING.store(len, Ordering::SeqCst);
    host::header().waiting.store(len as u32, Ordering::Relaxed);
    len
}

fn pick() -> Option<Arc<Thread>> {
    if !others_wait() {
        return None;
    }
    let me = core::ptr::from_ref(current());
    let index = arch::vcpu_index();
    let loaded = vcpu().space.load(Ordering::Relaxed);
    let mut queue = QUEUE.lock();
    let now = arch::ticks();
    let waited = |t: &Thread| now.saturating_sub(t.queued.load(Ordering::Relaxed));
    // One whose last vCPU still saves its registers is left for the next look. Waiting for it here would hang
    // two vCPUs that leave each other's next thread.
    let free = |t: &Arc<Thread>| core::ptr::eq(Arc::as_ptr(t), me) || !t.on_cpu.load(Ordering::Acquire);
    // In turn, but for what saves changes of address space.
    let near = |t: &Arc<Thread>| t.space().tables.tag() == loaded;
    let is_overdue = queue.front().is_some_and(|t| waited(t) > in_ticks(FAIR_US));
    let mut halted = None;
    let ready = queue
        .iter()
        .position(|t| free(t) && (is_overdue || near(t)))
        .or_else(|| {
            let mut is_for_here = |t: &Arc<Thread>| match elsewhere(t, index, waited(t)) {
                Elsewhere::No => true,
                Elsewhere::Polls => false,
                Elsewhere::Halted(vcpu) => {
                    halted = Some(vcpu);
                    false
                }
            };
            queue.iter().position(|t| free(t) && is_for_here(t))
        });
    let thread = ready.and_then(|i| queue.remove(i));
    if publish(&queue) > 0 {
        QUEUED_AT.store(arch::ticks(), Ordering::Relaxed);
    }
    drop(queue);
    if let Some(vcpu) = halted {
        ring_once(vcpu);
    }
    thread
}

/// A thread has waited longer than a hand-over takes: wake another vCPU for it.
pub fn spread() {
    if !others_wait() {
        return;
    }
    let waited = arch::ticks().saturating_sub(QUEUED_AT.load(Ordering::Relaxed));
    if waited > SPREAD_US * arch::ticks_per_second() / 1_000_000 {
        wake_a_vcpu();
    }
}

fn wake_a_vcpu() {
    let state = |i: &usize| host_state(*i);
    let count = vcpus();
    if (0..count).any(|i| state(&i) == VcpuState::Polling as u32) {
        return;
    }
    if let Some(halted) = (0..count).find(|i| state(i) == VcpuState::Halted as u32) {
        arch::doorbell(1 + halted as u32);
    } else if let Some(offline) = (0..count).find(|i| state(i) == VcpuState::Offline as u32) {
        // Marked at once, so that it is started once.
        set_state(offline, VcpuState::Polling);
        arch::kcall(Kcall::Start, offline as u64);
    }
}

fn host_state(index: usize) -> u32 {
    arch::vcpu_block(index).state.load(Ordering::SeqCst)
}

fn set_state(index: usize, state: VcpuState) {
    arch::vcpu_block(index)
        .state
        .store(state as u32, Ordering::SeqCst);
    host::queue(index).state.store(state as u32, Ordering::SeqCst);
}

fn vcpus() -> usize {
    arch::boot().vcpus as usize
}

fn vcpu() -> &'static Vcpu {
    &VCPUS[arch::vcpu_index()]
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
        } else if !poll_for_work(index) {
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
    let end = arch::ticks() + time * arch::ticks_per_second() / 1_000_000;
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

/// How long it is worth while to poll on this vCPU, microseconds.
#[must_use]
pub fn patience() -> u64 {
    vcpu().patience.load(Ordering::Relaxed)
}

/// Halts until woken. Whoever makes work looks at the state after making it; we look for work after
/// setting the state.
fn halt(index: usize) {
    let deadline = timer::next_deadline();
    host::queue(index).deadline.store(deadline, Ordering::SeqCst);
    set_state(index, VcpuState::Halted);
    fence(Ordering::SeqCst);
    let work = others_wait() || host::has_news(vcpus()) || called() || timer::next_deadline() < deadline;
    if !work {
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

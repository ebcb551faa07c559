//! A thread of a program: what it is, and what others may ask of it.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;

use super::queue::enqueue;
use super::run::first;
use crate::arch::{self, Context, Frame, Stack, Tcb, XSAVE_MAX};
use crate::errno::{Errno, SysResult};
use crate::mem::space::Space;
use crate::process::Process;
use crate::signal::ThreadSignals;

/// Slack of timers that Linux begins with, nanoseconds.
pub const DEFAULT_SLACK: u64 = 50_000;

pub(super) const EMPTY: u32 = 0;
pub(super) const PARKED: u32 = 1;
const NOTIFIED: u32 = 2;
/// Never runs again, whatever wakes it.
pub(super) const ENDED: u32 = 3;

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
    pub(super) tcb: Tcb,
    pub(super) me: Weak<Self>,
    pub(super) state: AtomicU32,
    pub(super) on_cpu: AtomicBool,
    pub(super) context: UnsafeCell<Context>,
    _stack: Option<Stack>,
    vector: UnsafeCell<Box<VectorArea>>,
    /// Registers with which it starts, or goes on after `execve`.
    pub start_frame: UnsafeCell<Frame>,
    tid: AtomicI32,
    /// The process it belongs to.
    pub process: Arc<Process>,
    pub(super) space: UnsafeCell<Arc<Space>>,
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
    pub(super) started: Cell<u64>,
    /// When it was queued last, ticks.
    pub(super) queued: AtomicU64,
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
    pub(super) frame: Cell<*mut Frame>,
}

// SAFETY: `context`, `space`, `start_frame`, `started` and the control block's cells are touched only by the vCPU that
// runs the thread or, before it first runs, by its creator; `on_cpu` orders one owner after the other.
unsafe impl Send for Thread {}
// SAFETY: as above.
unsafe impl Sync for Thread {}

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

    pub(super) fn build(
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

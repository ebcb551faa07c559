//! The queue of threads that could run: one for all vCPUs.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use spin::Mutex;

use super::run::current;
use super::thread::Thread;
use super::vcpus::{Elsewhere, elsewhere, in_ticks, is_spare, ring, vcpu, wake_a_vcpu};
use crate::arch;
use crate::host;

/// How long a woken thread may wait for its waker's vCPU before another vCPU is woken for it.
const SPREAD_US: u64 = 20;
/// How long threads may wait behind others whose address space is loaded.
const FAIR_US: u64 = 1000;

static QUEUE: Mutex<VecDeque<Arc<Thread>>> = Mutex::new(VecDeque::new());
static WAITING: AtomicUsize = AtomicUsize::new(0);
static QUEUED_AT: AtomicU64 = AtomicU64::new(0);

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

/// Whether other threads wait for a vCPU.
#[must_use]
pub fn others_wait() -> bool {
    WAITING.load(Ordering::Relaxed) != 0
}

pub(super) fn enqueue(thread: Arc<Thread>) {
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

pub(super) fn pick() -> Option<Arc<Thread>> {
    let index = arch::vcpu_index();
    if !others_wait() || is_spare(index) {
        return None;
    }
    let me = core::ptr::from_ref(current());
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
        ring(vcpu);
    }
    thread
}

/// A thread has waited longer than a hand-over takes: wake another vCPU for it.
pub fn spread() {
    if !others_wait() {
        return;
    }
    let waited = arch::ticks().saturating_sub(QUEUED_AT.load(Ordering::Relaxed));
    if waited > in_ticks(SPREAD_US) {
        wake_a_vcpu();
    }
}

//! Threads under test: each host thread is one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::process::Process;

/// A thread of a program.
#[derive(Debug)]
pub struct Thread {
    host: std::thread::Thread,
    /// Whether a signal is pending (tests set it).
    pub signal: AtomicBool,
    /// The process it belongs to.
    pub process: Arc<Process>,
}

thread_local! {
    static CURRENT: Arc<Thread> = Arc::new(Thread {
        host: std::thread::current(),
        signal: AtomicBool::new(false),
        process: Process::for_tests(),
    });
}

impl Thread {
    /// Lets it go on, now or at its next park.
    pub fn unpark(&self) {
        self.host.unpark();
    }

    /// Whether a signal waits to be delivered to it.
    pub fn has_signal(&self) -> bool {
        self.signal.load(Ordering::SeqCst)
    }
}

/// The thread that runs this.
#[must_use]
pub fn current() -> Arc<Thread> {
    CURRENT.with(Arc::clone)
}

/// The thread that runs this, to keep.
#[must_use]
pub fn current_arc() -> Arc<Thread> {
    current()
}

/// Lets others run.
pub fn yield_now() {
    std::thread::yield_now();
}

/// Sleeps until unparked or until `deadline` (ticks; `u64::MAX`: never). May return early.
pub fn park(deadline: u64) {
    if deadline == u64::MAX {
        std::thread::park();
        return;
    }
    let left = deadline.saturating_sub(crate::arch::ticks());
    let ns = u128::from(left) * 1_000_000_000 / u128::from(crate::arch::ticks_per_second());
    std::thread::park_timeout(Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)));
}

/// Whether other threads wait for a vCPU.
#[must_use]
pub fn others_wait() -> bool {
    false
}

/// Whether the next thread can run only after a change of address space.
#[must_use]
pub fn next_is_far() -> bool {
    false
}

/// How long it is worth while to poll, microseconds.
#[must_use]
pub fn patience() -> u64 {
    20
}

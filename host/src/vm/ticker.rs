//! Time slices: while threads wait for a vCPU, or events wait to be looked at, running vCPUs are kicked.
//!
//! The guest asks for nothing and pays nothing when each of its threads has a vCPU. The thread sleeps while
//! every vCPU is halted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use cloak_abi::vcpu::VcpuState;

use super::clock::Clock;
use super::error::{Step, VmError};
use super::shared::SharedRegion;
use super::vcpu::Handle;

/// Length of a time slice: about what Linux gives each of two busy threads.
const SLICE: Duration = Duration::from_millis(4);
/// How many slices all vCPUs must have been halted before the thread sleeps for good.
const IDLE_SLICES: u32 = 8;

/// Handle to the time-slice thread.
#[derive(Debug, Clone)]
pub struct Ticker {
    asleep: Arc<AtomicBool>,
    thread: Arc<OnceLock<Thread>>,
}

impl Ticker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(
        shared: Arc<SharedRegion>,
        handles: Arc<[Arc<Handle>]>,
        clock: Clock,
    ) -> Result<Self, VmError> {
        let ticker = Self {
            asleep: Arc::new(AtomicBool::new(false)),
            thread: Arc::new(OnceLock::new()),
        };
        let asleep = ticker.asleep.clone();
        let spawned = thread::Builder::new()
            .name("ticker".to_owned())
            .stack_size(64 << 10)
            .spawn(move || tick(&shared, &handles, clock, &asleep))
            .step("starting the time-slice thread")?;
        // Set once, here: it can't be set already.
        let _ = ticker.thread.set(spawned.thread().clone());
        Ok(ticker)
    }

    /// A vCPU runs again.
    pub fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

fn tick(shared: &SharedRegion, handles: &[Arc<Handle>], clock: Clock, asleep: &AtomicBool) {
    let mut idle = 0;
    loop {
        thread::sleep(SLICE);
        let running = |i: &usize| shared.queue(*i).state.load(Ordering::SeqCst) != VcpuState::Halted as u32;
        let started = |i: &usize| shared.queue(*i).state.load(Ordering::SeqCst) != VcpuState::Offline as u32;
        let busy: Vec<usize> = (0..handles.len()).filter(started).filter(running).collect();
        if busy.is_empty() {
            idle += 1;
            if idle < IDLE_SLICES {
                continue;
            }
            asleep.store(true, Ordering::SeqCst);
            // Whoever leaves its halt after this look finds `asleep` set and unparks.
            if (0..handles.len()).filter(started).all(|i| !running(&i)) {
                thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
        }
        idle = 0;
        if unseen(shared, clock, handles.len()) {
            busy.iter().for_each(|&i| handles[i].kick());
        }
    }
}

/// Whether something waits in the shared region that only a vCPU can take.
///
/// Answers are among it: the vCPU whose thread waits for one may run another thread that makes no calls.
fn unseen(shared: &SharedRegion, clock: Clock, vcpus: usize) -> bool {
    let (header, events) = (shared.header(), shared.events());
    let timer = header.timer.load(Ordering::Relaxed);
    let answers = |i: usize| {
        let queue = shared.queue(i);
        queue.cq_tail.load(Ordering::Relaxed) != queue.cq_head.load(Ordering::Relaxed)
    };
    header.waiting.load(Ordering::Relaxed) != 0
        || (0..vcpus).any(answers)
        || timer != u64::MAX && clock.guest_now() >= timer
        || events.tail.load(Ordering::Relaxed) != events.head.load(Ordering::Relaxed)
        || header.signals.load(Ordering::Relaxed) != 0
}

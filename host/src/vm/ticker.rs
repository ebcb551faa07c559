//! Time slices: while threads wait for a vCPU, or events wait to be looked at, running vCPUs are kicked.
//!
//! The guest asks for nothing and pays nothing when each of its threads has a vCPU. The thread sleeps while
//! every vCPU is halted, by what the threads of the vCPUs say: the guest's own word comes later, by as much as a start or
//! a loaded host makes it, and a program that only computes is never looked at again by who slept over it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

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

    /// A vCPU is active ([`Handle::is_active`]).
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
        if handles.iter().any(|handle| handle.is_active()) {
            idle = 0;
            if unseen(shared, clock, handles.len()) {
                let active = handles.iter().filter(|handle| handle.is_active());
                active.for_each(|handle| handle.kick());
            }
        } else if idle < IDLE_SLICES {
            idle += 1;
        } else {
            idle = 0;
            asleep.store(true, Ordering::SeqCst);
            // Whoever becomes active after this look finds `asleep` set and unparks.
            if !handles.iter().any(|handle| handle.is_active()) {
                thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// The slices of a VM with one vCPU.
    fn ticker_of_one() -> (Ticker, Arc<SharedRegion>, Arc<Handle>) {
        let shared = Arc::new(SharedRegion::create(1).expect("a region"));
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("an eventfd");
        let handle = Arc::new(Handle::new(wake));
        let handles = Arc::new([handle.clone()]);
        let ticker = Ticker::start(shared.clone(), handles, Clock::new(1_000_000, 0)).expect("a thread");
        (ticker, shared, handle)
    }

    /// Whether a kick comes, for which a thread waits.
    fn is_kicked(shared: &SharedRegion, handle: &Handle) -> bool {
        shared.header().waiting.store(1, Ordering::SeqCst);
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if handle.is_kicked() {
                return true;
            }
            thread::sleep(SLICE);
        }
        false
    }

    #[test]
    fn a_vcpu_that_is_slow_to_say_that_it_runs_gets_its_slices() {
        let (ticker, shared, handle) = ticker_of_one();
        handle.set_active(true);
        ticker.wake();
        // The guest's word is that it is offline still, or halted.
        thread::sleep(SLICE * 4 * IDLE_SLICES);
        assert!(is_kicked(&shared, &handle));
    }

    #[test]
    fn a_vcpu_that_starts_after_a_long_sleep_gets_its_slices() {
        let (ticker, shared, handle) = ticker_of_one();
        while !ticker.asleep.load(Ordering::SeqCst) {
            thread::sleep(SLICE);
        }
        handle.set_active(true);
        ticker.wake();
        assert!(is_kicked(&shared, &handle));
    }
}

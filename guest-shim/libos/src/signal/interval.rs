//! Timers that tell something each time they expire: what `alarm`, `setitimer` and `timer_create` stand on.
//!
//! A timer of real time is on the list of timers with its deadline. One of processor time is looked at when,
//! with every vCPU at work for the process, its time could have come at the earliest.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};

use spin::Mutex;

use crate::sched::timer::{self, TimerKey};
use crate::sched::{Waker, clock};

/// Looks at processor time no more often than Linux's own tick does.
const CPU_TICK: u64 = 4_000_000;

/// What a timer counts.
pub enum Source {
    /// Monotonic time.
    Real,
    /// Processor time in nanoseconds, used up to `parallel` times as fast as real time passes.
    Processor {
        /// What has been used.
        used: Box<dyn Fn() -> u64 + Send + Sync>,
        /// Number of vCPUs.
        parallel: u64,
    },
}

/// What an expiry does; takes the number of periods that passed.
pub type Action = Box<dyn Fn(u64) + Send + Sync>;

/// A timer.
pub struct Interval {
    source: Source,
    action: Action,
    state: Mutex<State>,
    this: Weak<Self>,
}

#[derive(Default)]
struct State {
    /// In the source's time.
    due: Option<u64>,
    /// Nanoseconds; 0: once.
    period: u64,
    key: Option<TimerKey>,
}

impl core::fmt::Debug for Interval {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Interval").finish_non_exhaustive()
    }
}

impl Interval {
    /// A timer that is not armed.
    pub fn new(source: Source, action: Action) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            source,
            action,
            state: Mutex::default(),
            this: this.clone(),
        })
    }

    /// What the timer counts, now.
    pub fn now(&self) -> u64 {
        match &self.source {
            Source::Real => clock::monotonic(),
            Source::Processor { used, .. } => used(),
        }
    }

    /// Nanoseconds left (0: not armed) and period.
    pub fn setting(&self) -> (u64, u64) {
        let now = self.now();
        let state = self.state.lock();
        // What is armed has at least a moment left.
        let left = state.due.map_or(0, |due| due.saturating_sub(now).max(1));
        (left, state.period)
    }

    /// Arms it for `due` in the source's time, or disarms it; gives what [`Self::setting`] gave before.
    pub fn set(&self, due: Option<u64>, period: u64) -> (u64, u64) {
        let old = self.setting();
        let now = self.now();
        let mut state = self.state.lock();
        if let Some(key) = state.key.take() {
            timer::remove(key);
        }
        *state = State {
            due,
            period,
            key: None,
        };
        self.arm(&mut state, now);
        old
    }

    fn arm(&self, state: &mut State, now: u64) {
        let Some(due) = state.due else { return };
        let at = match &self.source {
            Source::Real => due,
            Source::Processor { parallel, .. } => {
                let left = due.saturating_sub(now) / (*parallel).max(1);
                clock::monotonic().saturating_add(left.max(CPU_TICK))
            }
        };
        let ring = Ring(self.this.clone());
        state.key = Some(timer::add(clock::deadline(at), Arc::new(ring)));
    }

    /// Its place on the list has come: gives the periods that passed.
    fn expired(&self) -> Option<u64> {
        let now = self.now();
        let mut state = self.state.lock();
        let due = state.due?;
        if now < due {
            // Processor time that was not used, or a setting that came after the list was read.
            if let Some(key) = state.key.take() {
                timer::remove(key);
            }
            self.arm(&mut state, now);
            return None;
        }
        let count = match state.period {
            0 => 1,
            period => 1 + (now - due) / period,
        };
        state.due = (state.period != 0).then(|| due.saturating_add(count.saturating_mul(state.period)));
        self.arm(&mut state, now);
        Some(count)
    }
}

impl Drop for Interval {
    fn drop(&mut self) {
        if let Some(key) = self.state.lock().key.take() {
            timer::remove(key);
        }
    }
}

/// What is on the list of timers: it must not keep a deleted timer alive.
struct Ring(Weak<Interval>);

impl Waker for Ring {
    fn wake(&self, _ready: u32) {
        if let Some(timer) = self.0.upgrade()
            && let Some(count) = timer.expired()
        {
            (timer.action)(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    fn counting(source: Source) -> (Arc<Interval>, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(0));
        let counter = count.clone();
        let action = Box::new(move |n| {
            counter.fetch_add(n, Ordering::SeqCst);
        });
        (Interval::new(source, action), count)
    }

    fn reaches(count: &AtomicU64, wanted: u64) -> bool {
        let end = Instant::now() + Duration::from_secs(60);
        while count.load(Ordering::SeqCst) < wanted && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        count.load(Ordering::SeqCst) >= wanted
    }

    #[test]
    fn once_then_periodic_then_disarmed() {
        let (timer, count) = counting(Source::Real);
        assert_eq!(timer.set(Some(timer.now() + 1_000_000), 0), (0, 0));
        assert!(reaches(&count, 1));
        assert_eq!(timer.setting(), (0, 0));
        timer.set(Some(timer.now()), 500_000);
        assert!(reaches(&count, 6) && timer.setting().1 == 500_000);
        timer.set(None, 0);
        assert_eq!(timer.setting(), (0, 0));
    }

    #[test]
    fn a_far_deadline_is_told_and_can_be_replaced() {
        let (timer, count) = counting(Source::Real);
        timer.set(Some(timer.now() + clock::SECOND * 1000), 0);
        let left = timer.set(Some(timer.now()), 0).0;
        assert!(left > 0 && left <= clock::SECOND * 1000);
        assert!(reaches(&count, 1));
    }

    #[test]
    fn processor_time_that_is_not_used_does_not_count() {
        let used = Arc::new(AtomicU64::new(5));
        let clock = used.clone();
        let (timer, count) = counting(Source::Processor {
            used: Box::new(move || clock.load(Ordering::SeqCst)),
            parallel: 2,
        });
        timer.set(Some(100), 0);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((count.load(Ordering::SeqCst), timer.setting().0), (0, 95));
        used.store(100, Ordering::SeqCst);
        assert!(reaches(&count, 1));
    }
}

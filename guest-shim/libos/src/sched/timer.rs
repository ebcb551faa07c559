//! Timers: who is to be told at what time.
//!
//! One ordered map for the whole context: (deadline, sequence) to waker. Sleeping threads do not come here
//! ([`super::park`] takes a deadline); timer descriptors and interval timers do. The idle loop halts until
//! [`next_deadline`], which is one load, and whoever finds it passed calls [`expire`].

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use super::Waker;

/// No deadline.
pub const NEVER: u64 = u64::MAX;

/// Identifies a timer until it expires or is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerKey {
    deadline: u64,
    seq: u64,
}

struct Timers {
    next_seq: u64,
    pending: BTreeMap<TimerKey, Arc<dyn Waker>>,
}

static TIMERS: Mutex<Timers> = Mutex::new(Timers {
    next_seq: 0,
    pending: BTreeMap::new(),
});
/// Deadline of the first timer. Written under the lock.
static FIRST: AtomicU64 = AtomicU64::new(NEVER);

/// Has `waker` told once, at or soon after `deadline` (ticks).
pub fn add(deadline: u64, waker: Arc<dyn Waker>) -> TimerKey {
    let key = {
        let mut timers = TIMERS.lock();
        timers.next_seq += 1;
        let key = TimerKey {
            deadline,
            seq: timers.next_seq,
        };
        timers.pending.insert(key, waker);
        publish(&timers);
        key
    };
    #[cfg(not(feature = "bare"))]
    hosted::first_changed();
    key
}

/// Forgets a timer; false when it has expired already. Its waker may still be on its way then.
pub fn remove(key: TimerKey) -> bool {
    let waker = {
        let mut timers = TIMERS.lock();
        let waker = timers.pending.remove(&key);
        publish(&timers);
        waker
    };
    waker.is_some() // dropped outside the lock: it may be the last owner of a file
}

fn publish(timers: &Timers) {
    let first = timers
        .pending
        .first_key_value()
        .map_or(NEVER, |(key, _)| key.deadline);
    FIRST.store(first, Ordering::SeqCst);
    // While every vCPU is busy, the monitor's time-slice thread kicks one when this has passed.
    #[cfg(feature = "bare")]
    crate::host::header().timer.store(first, Ordering::Relaxed);
}

/// Deadline of the first timer in ticks; [`NEVER`] when there is none.
#[must_use]
pub fn next_deadline() -> u64 {
    FIRST.load(Ordering::SeqCst)
}

/// Tells all whose deadline is not after `now` (ticks), in order; gives how many. Does not park.
pub fn expire(now: u64) -> usize {
    if now < next_deadline() {
        return 0;
    }
    let due: Vec<_> = {
        let mut timers = TIMERS.lock();
        let mut due = Vec::new();
        while let Some(entry) = timers.pending.first_entry() {
            if entry.key().deadline > now {
                break;
            }
            due.push(entry.remove());
        }
        publish(&timers);
        due
    };
    due.iter().for_each(|waker| waker.wake(0));
    due.len()
}

#[cfg(not(feature = "bare"))]
mod hosted {
    //! Under test a thread stands for the idle loop.
    use std::sync::{Condvar, Mutex, Once};
    use std::time::Duration;

    use crate::arch::{ticks, ticks_per_second};

    static CHANGED: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    static START: Once = Once::new();

    pub fn first_changed() {
        START.call_once(|| {
            std::thread::spawn(run);
        });
        let guard = CHANGED.0.lock();
        CHANGED.1.notify_one();
        drop(guard);
    }

    fn run() {
        let Ok(mut guard) = CHANGED.0.lock() else { return };
        loop {
            let left = super::next_deadline().saturating_sub(ticks());
            let wait = Duration::from_secs_f64((left as f64 / ticks_per_second() as f64).min(0.05));
            if let Ok((back, _)) = CHANGED.1.wait_timeout(guard, wait) {
                drop(back);
            }
            super::expire(ticks());
            let Ok(again) = CHANGED.0.lock() else { return };
            guard = again;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicUsize;
    use std::time::Duration;

    struct Count(AtomicUsize);

    impl Waker for Count {
        fn wake(&self, _ready: u32) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn ten_thousand_timers_expire_once_each() {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let start = crate::arch::ticks();
        let keys: Vec<_> = (0..10_000).map(|i| add(start + i * 100, count.clone())).collect();
        let far = add(NEVER - 1, count.clone());
        while keys.iter().any(|&key| TIMERS.lock().pending.contains_key(&key)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(count.0.load(Ordering::SeqCst), 10_000);
        assert!(keys.into_iter().all(|key| !remove(key)));
        assert!(remove(far) && !remove(far));
    }
}

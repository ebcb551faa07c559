//! Wait queues: who wants to know when something changes.
//!
//! Waiting is by condition: register, look, park, look again. A wake-up between look and park is not lost,
//! because [`super::park`] takes the token that [`Thread::unpark`] leaves.

use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;

use super::{Thread, current, current_arc, park};
use crate::errno::{Errno, SysResult};

/// Something that is told when what it waits for may have come.
pub trait Waker: Send + Sync {
    /// `ready`: the epoll events that became true, or 0 when that does not matter. Called without locks of
    /// the queue's owner held by contract; must not park.
    fn wake(&self, ready: u32);
}

impl Waker for Thread {
    fn wake(&self, _ready: u32) {
        self.unpark();
    }
}

/// Identifies a registration in one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

/// The queue.
pub struct WaitQueue {
    inner: Mutex<Inner>,
}

struct Inner {
    next: u64,
    entries: Vec<(u64, Arc<dyn Waker>)>,
}

impl core::fmt::Debug for WaitQueue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("WaitQueue").finish_non_exhaustive()
    }
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                next: 0,
                entries: Vec::new(),
            }),
        }
    }

    /// Registers `waker` until [`WaitQueue::remove`].
    pub fn add(&self, waker: Arc<dyn Waker>) -> Key {
        let mut inner = self.inner.lock();
        inner.next += 1;
        let key = inner.next;
        inner.entries.push((key, waker));
        Key(key)
    }

    /// Ends a registration.
    pub fn remove(&self, key: Key) {
        self.inner.lock().entries.retain(|(k, _)| *k != key.0);
    }

    /// Registrations.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.inner.lock().entries.len()
    }

    /// Tells the one that has waited longest.
    pub fn wake_one(&self) {
        let first = {
            let mut inner = self.inner.lock();
            if inner.entries.is_empty() {
                None
            } else {
                Some(inner.entries.remove(0))
            }
        };
        if let Some((_, waker)) = first {
            waker.wake(0);
        }
    }

    /// Tells all; registrations stay.
    pub fn wake_all(&self, ready: u32) {
        let all: Vec<_> = {
            let inner = self.inner.lock();
            if inner.entries.is_empty() {
                return;
            }
            inner.entries.iter().map(|(_, w)| w.clone()).collect()
        };
        all.iter().for_each(|w| w.wake(ready));
    }

    /// Parks while `condition` is true. Signals do not end it. `condition` may act when it gives false (take a
    /// lock): it is not asked again then.
    pub fn wait_while(&self, mut condition: impl FnMut() -> bool) {
        while condition() {
            let key = self.add(current_arc());
            let still = condition();
            if still {
                park(u64::MAX);
            }
            self.remove(key);
            if !still {
                return;
            }
        }
    }

    /// Parks until `attempt` gives something, a signal is pending (EINTR: the caller turns it into a
    /// restart where Linux does) or `deadline` (ticks, `u64::MAX`: never) has passed (ETIMEDOUT).
    ///
    /// # Errors
    /// What `attempt` gives, EINTR, ETIMEDOUT.
    pub fn wait<T>(&self, deadline: u64, mut attempt: impl FnMut() -> Option<SysResult<T>>) -> SysResult<T> {
        loop {
            if let Some(result) = attempt() {
                return result;
            }
            let key = self.add(current_arc());
            let result = attempt();
            if result.is_none() && !current().has_signal() {
                park(deadline);
            }
            self.remove(key);
            if let Some(result) = result.or_else(&mut attempt) {
                return result;
            }
            if current().has_signal() {
                return Err(Errno::EINTR);
            }
            if deadline != u64::MAX && crate::arch::ticks() >= deadline {
                return Err(Errno::ETIMEDOUT);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_waiter_sees_what_happened_between_look_and_park() {
        let queue = Arc::new(WaitQueue::new());
        let flag = Arc::new(AtomicBool::new(false));
        for _ in 0..200 {
            flag.store(false, Ordering::SeqCst);
            let other = (queue.clone(), flag.clone());
            let setter = std::thread::spawn(move || {
                other.1.store(true, Ordering::SeqCst);
                other.0.wake_all(0);
            });
            queue.wait_while(|| !flag.load(Ordering::SeqCst));
            setter.join().expect("setter");
        }
    }

    #[test]
    fn a_condition_that_acts_is_not_asked_again() {
        let queue = WaitQueue::new();
        let mut asked = 0;
        // Free at the second look, and taken by that look.
        queue.wait_while(|| {
            asked += 1;
            asked != 2
        });
        assert_eq!(asked, 2);
    }

    #[test]
    fn waiting_ends_at_its_deadline() {
        let queue = WaitQueue::new();
        let deadline = crate::arch::ticks() + 1000;
        assert_eq!(queue.wait::<()>(deadline, || None), Err(Errno::ETIMEDOUT));
    }
}
